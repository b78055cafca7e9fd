//! Descriptors that travel one way, without a byte of data: the Native Client paper's Table 3.
//!
//! So many messages are sent, each with so many descriptors, and then one packet comes back that says all
//! have been received and closed. What is measured is therefore sending, receiving and closing them. It does
//! not know the table.

use std::os::fd::{AsFd, OwnedFd};

use imc::{ConnectedSocket, PlainFile, TypedMessage, TypedSocket, blocking};
use ring::{Executor, Fd, Message, Reactor};
use rustix::net::SendFlags;

use crate::floor::{FDS_MAX, packet_pair, receive_with, send_with, something_to_pass};
use crate::place::Wait;
use crate::process::{Failure, Order};

/// The paper's row: microseconds for a transfer of 1 to 8 descriptors, on Linux, in 2009.
pub const PAPER_US: [f64; 8] = [3.3, 5.3, 6.6, 8.2, 9.7, 11.1, 12.6, 14.2];

/// How many messages are acknowledged together: enough that the acknowledgement is no part of the result, and
/// few enough for any queue.
pub const BATCH: usize = 32;

/// Who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `sendmsg` and `recvmsg`.
    Raw,
    /// Connected sockets, without a reactor on the sending side.
    Blocking,
    /// Connected sockets.
    Connected,
    /// Typed messages, which is what Native Client's were: each descriptor is declared, and looked at.
    Typed,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 4] = [Way::Raw, Way::Blocking, Way::Connected, Way::Typed];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Way::Raw => "raw",
            Way::Blocking => "blocking",
            Way::Connected => "connected",
            Way::Typed => "typed",
        }
    }
}

/// Who receives: see [`serve`].
pub const RECEIVER: &str = "receiver";

/// What a message says that has nothing to say. An empty packet would look like the end.
const NOTHING: &[u8; 1] = b"d";
const ALL: &[u8; 3] = b"all";

/// Receives and closes until the other side closes: one packet back for each [`BATCH`].
///
/// # Errors
/// The first of anything.
pub fn serve(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    if order.told == Way::Raw.name() {
        return serve_raw(end);
    }
    let reactor = order.reactor()?;
    let connection = ConnectedSocket::from_fd(&reactor, end)?;
    Executor::new(&reactor).block_on(async {
        if order.told == Way::Typed.name() {
            let socket = TypedSocket::new(connection).map_err(|_| "a fresh connection is idle")?;
            loop {
                for _ in 0..BATCH {
                    match socket.receive().await {
                        Ok(message) => drop(message),
                        Err(imc::TypedReceiveError::Closed) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                }
                socket.send(TypedMessage::new(ALL)).await?;
            }
        }
        loop {
            for _ in 0..BATCH {
                match connection.receive().await {
                    // Taken, as by a program that wants them: of what is left in a message each is asked
                    // whether closing it could take long.
                    Ok(mut message) => drop(message.take_descriptors()),
                    Err(ring::ReceiveError::Closed) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            connection.send(ALL).await?;
        }
    })
}

fn serve_raw(end: OwnedFd) -> Result<(), Failure> {
    let (mut room, mut arrived) = ([0; 16], Vec::with_capacity(FDS_MAX));
    loop {
        for _ in 0..BATCH {
            if receive_with(end.as_fd(), &mut room, &mut arrived, Wait::Sleep)? == 0 {
                return Ok(());
            }
            arrived.clear();
        }
        crate::floor::send(end.as_fd(), ALL)?;
    }
}

/// The side that sends.
pub struct Sender {
    side: Side,
    count: usize,
    passed: Fd,
}

enum Side {
    Raw(OwnedFd),
    Blocking(blocking::ConnectedSocket),
    Connected(Executor, ConnectedSocket),
    Typed(Executor, TypedSocket),
}

impl Sender {
    /// One that sends so many descriptors with each message, and the end of who receives them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(way: Way, count: usize, reactor: &Reactor) -> Result<(Sender, OwnedFd), Failure> {
        let (near, far) = packet_pair()?;
        let executor = Executor::new(reactor);
        let side = match way {
            Way::Raw => Side::Raw(near),
            Way::Blocking => Side::Blocking(blocking::ConnectedSocket::from_fd(near)?),
            Way::Connected => Side::Connected(executor, ConnectedSocket::from_fd(reactor, near)?),
            Way::Typed => {
                let connection = ConnectedSocket::from_fd(reactor, near)?;
                let socket = TypedSocket::new(connection).map_err(|_| "a fresh connection is idle")?;
                Side::Typed(executor, socket)
            }
        };
        Ok((Sender { side, count, passed: Fd::made_here(something_to_pass()?) }, far))
    }

    /// What a batch needs that is not part of a transfer: typed messages own what they send, and so each
    /// needs duplicates, made off the clock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn prepare(&self) -> Result<Vec<TypedMessage>, Failure> {
        let Side::Typed(..) = &self.side else { return Ok(Vec::new()) };
        let message = |_| {
            let mut message = TypedMessage::new([]);
            for _ in 0..self.count {
                message.push(PlainFile::new(self.passed.as_fd().try_clone_to_owned()?)?);
            }
            Ok(message)
        };
        (0..BATCH).map(message).collect()
    }

    /// Sends one batch and waits until all of it has been received.
    ///
    /// # Errors
    /// The first of anything; the receiver has ended.
    pub fn batch(&mut self, prepared: Vec<TypedMessage>) -> Result<(), Failure> {
        let Sender { side, count, passed } = self;
        match side {
            Side::Raw(socket) => {
                let descriptors = [passed.as_fd(); FDS_MAX];
                for _ in 0..BATCH {
                    send_with(socket.as_fd(), NOTHING, &descriptors[..*count], SendFlags::empty())?;
                }
                let (mut room, mut none) = ([0; 16], Vec::new());
                match receive_with(socket.as_fd(), &mut room, &mut none, Wait::Sleep)? {
                    0 => Err("the receiver has gone".into()),
                    _ => Ok(()),
                }
            }
            Side::Blocking(socket) => {
                for _ in 0..BATCH {
                    let mut message = ring::blocking::Outgoing::from(NOTHING);
                    for _ in 0..*count {
                        message = message.lend(passed.as_fd());
                    }
                    socket.send(message)?;
                }
                Ok(socket.receive().map(drop)?)
            }
            Side::Connected(executor, socket) => executor.block_on(async {
                for _ in 0..BATCH {
                    let mut message = Message::from(NOTHING);
                    for _ in 0..*count {
                        message.push_descriptor(passed.clone());
                    }
                    socket.send(message).await?;
                }
                Ok(socket.receive().await.map(drop)?)
            }),
            Side::Typed(executor, socket) => executor.block_on(async {
                for message in prepared {
                    socket.send(message).await?;
                }
                Ok(socket.receive().await.map(drop)?)
            }),
        }
    }

    /// Lets go of everything.
    pub fn end(self) {
        match self.side {
            Side::Raw(socket) => drop(socket),
            Side::Blocking(socket) => drop(socket),
            Side::Connected(executor, socket) => {
                drop(socket);
                executor.settle();
            }
            Side::Typed(executor, socket) => {
                drop(socket);
                executor.settle();
            }
        }
    }
}

/// The slope of a straight line through these costs of 1, 2, 3 … descriptors: what one more of them costs.
pub fn slope(costs: &[f64]) -> f64 {
    let count = costs.len() as f64;
    let middle = (count + 1.0) / 2.0;
    let mean = costs.iter().sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for (index, cost) in costs.iter().enumerate() {
        let distance = index as f64 + 1.0 - middle;
        above += distance * (cost - mean);
        below += distance * distance;
    }
    above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_says_one_and_a_half_microseconds_for_each() {
        assert!((slope(&PAPER_US) - 1.53).abs() < 0.01, "{}", slope(&PAPER_US));
    }

    #[test]
    fn the_slope_of_a_line_is_its_own() {
        assert!((slope(&[2.0, 4.5, 7.0, 9.5]) - 2.5).abs() < 1e-9);
    }
}
