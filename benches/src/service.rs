//! The same echo and the same file service by each protocol: Plash's stream, sessions, plain calls and bare
//! packets.
//!
//! What begins with a slash is a path, and is answered with the opened file; everything else comes back. It
//! does not compare them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use perf::Wait;
use perf::aligned::Aligned;
use perf::floor::{FDS_MAX, packet_pair, receive_with, send_with};
use perf::process::{Failure, Order};
use ring::{Executor, Message, Reactor};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use seqpacket::{Mailbox, Object, PlainMailbox, PlainObject, blocking};

use crate::plash::{self, Caller};

/// How it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Packets and nothing else: the floor.
    Raw,
    /// One stream for everything, by Plash's protocol. Its caller waits where it calls.
    Plash,
    /// A session, from a task.
    Session,
    /// A session, by a caller that waits where it calls.
    SessionBlocking,
    /// Plain calls, from a task.
    Plain,
    /// Plain calls, by a caller that waits where it calls.
    PlainBlocking,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 6] = [
        Protocol::Raw,
        Protocol::Plash,
        Protocol::Session,
        Protocol::SessionBlocking,
        Protocol::Plain,
        Protocol::PlainBlocking,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Raw => "raw",
            Protocol::Plash => "plash",
            Protocol::Session => "session, async",
            Protocol::SessionBlocking => "session, blocking",
            Protocol::Plain => "plain, async",
            Protocol::PlainBlocking => "plain, blocking",
        }
    }

    /// Whether there is a reactor in it, and so a driver.
    pub fn has_reactor(self) -> bool {
        !matches!(self, Protocol::Raw | Protocol::Plash)
    }

    /// The two ends of a connection for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ends(self) -> Result<(OwnedFd, OwnedFd), Failure> {
        match self {
            Protocol::Plash => {
                let flags = SocketFlags::CLOEXEC;
                Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
            }
            _ => Ok(packet_pair()?),
        }
    }
}

// -- the servers -------------------------------------------------------------------------------------------

/// Serves by the protocol it is told until nobody holds the other end any more.
///
/// # Errors
/// The first of anything; a path that cannot be opened.
pub fn serve(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == order.told);
    match protocol.ok_or("no such protocol")? {
        Protocol::Raw => serve_raw(&end),
        Protocol::Plash => Ok(plash::serve(end, plash::echo_and_open)?),
        Protocol::Session | Protocol::SessionBlocking => serve_sessions(&order.reactor()?, end),
        Protocol::Plain | Protocol::PlainBlocking => serve_plain(&order.reactor()?, end),
    }
}

fn serve_raw(end: &OwnedFd) -> Result<(), Failure> {
    let (mut room, mut none) = (Aligned::new(65_536), Vec::with_capacity(FDS_MAX));
    loop {
        let length = receive_with(end.as_fd(), &mut room, &mut none, Wait::Sleep)?;
        match room.get(..length) {
            None | Some([]) => return Ok(()),
            Some(path @ [b'/', ..]) => {
                let file = crate::open_for_reading(path)?;
                send_with(end.as_fd(), plash::OKAY, &[file.as_fd()], SendFlags::empty())?;
            }
            Some(said) => perf::floor::send(end.as_fd(), said)?,
        }
    }
}

/// What is answered.
fn answer(asked: &[u8]) -> Result<Message, Failure> {
    match asked {
        path @ [b'/', ..] => Ok(Message::from(plash::OKAY).with_descriptor(crate::open_for_reading(path)?)),
        said => Ok(Message::from(said)),
    }
}

fn serve_sessions(reactor: &Reactor, end: OwnedFd) -> Result<(), Failure> {
    let mailbox = Mailbox::from_fd(reactor, end)?;
    Executor::new(reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = answer(call.bytes())?;
            call.answer(answer)?;
        }
        Ok(())
    })
}

fn serve_plain(reactor: &Reactor, end: OwnedFd) -> Result<(), Failure> {
    let mailbox = PlainMailbox::from_fd(reactor, end)?;
    Executor::new(reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = answer(call.bytes())?;
            call.answer(answer)?;
        }
        Ok(())
    })
}

// -- the client --------------------------------------------------------------------------------------------

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// So many echoes of 64 bytes, begun together.
    Echo(usize),
    /// This file, which is closed when it is there.
    Open(Vec<u8>),
}

/// A client of [`serve`].
pub struct Client {
    side: Side,
    request: Request,
}

enum Side {
    Raw(OwnedFd),
    Plash(Caller),
    Session(Executor, Object),
    SessionBlocking(Box<blocking::Object>),
    Plain(Executor, PlainObject),
    PlainBlocking(Box<blocking::PlainObject>),
}

/// What is echoed. It is no path.
const SAID: [u8; 64] = [7; 64];

impl Client {
    /// On the near end of a connection.
    ///
    /// # Errors
    /// The first of anything.
    pub fn new(
        reactor: &Reactor,
        protocol: Protocol,
        end: OwnedFd,
        request: Request,
    ) -> Result<Client, Failure> {
        let executor = Executor::new(reactor);
        let side = match protocol {
            Protocol::Raw => Side::Raw(end),
            Protocol::Plash => Side::Plash(Caller::new(end)),
            Protocol::Session => Side::Session(executor, Object::from_fd(reactor, end)?),
            Protocol::SessionBlocking => Side::SessionBlocking(Box::new(blocking::Object::from_fd(end)?)),
            Protocol::Plain => Side::Plain(executor, PlainObject::from_fd(reactor, end)?),
            Protocol::PlainBlocking => Side::PlainBlocking(Box::new(blocking::PlainObject::from_fd(end)?)),
        };
        Ok(Client { side, request })
    }

    /// Asks so many times.
    ///
    /// # Errors
    /// The first of anything; an answer that is not what it should be.
    pub fn requests(&mut self, count: u64) -> Result<Duration, Failure> {
        let start = Instant::now();
        match &self.request {
            Request::Echo(depth) => self.side.echoes(*depth, count)?,
            Request::Open(path) => self.side.opens(path, count)?,
        }
        Ok(start.elapsed())
    }

    /// Lets go of everything.
    pub fn end(self) {
        match self.side {
            Side::Session(executor, object) => {
                drop(object);
                executor.settle();
            }
            Side::Plain(executor, object) => {
                drop(object);
                executor.settle();
            }
            Side::Raw(_) | Side::Plash(_) | Side::SessionBlocking(_) | Side::PlainBlocking(_) => {}
        }
    }
}

impl Side {
    fn echoes(&mut self, depth: usize, count: u64) -> Result<(), Failure> {
        match self {
            Side::Raw(socket) => {
                let mut room = [0; 128];
                for _ in 0..count {
                    for _ in 0..depth {
                        perf::floor::send(socket.as_fd(), &SAID)?;
                    }
                    for _ in 0..depth {
                        let length = receive_with(socket.as_fd(), &mut room, &mut Vec::new(), Wait::Sleep)?;
                        check(&room[..length])?;
                    }
                }
            }
            Side::Plash(caller) => {
                for _ in 0..count {
                    for _ in 0..depth {
                        caller.begin(plash::ECHO, &[&SAID])?;
                    }
                    for _ in 0..depth {
                        check(caller.finish()?.1.data)?;
                    }
                }
            }
            Side::Session(executor, object) => executor.block_on(async {
                let mut calls = Vec::with_capacity(depth);
                for _ in 0..count {
                    calls.extend((0..depth).map(|_| object.call(&SAID)));
                    for call in calls.drain(..) {
                        check(call.await?.bytes())?;
                    }
                }
                Ok::<(), Failure>(())
            })?,
            Side::SessionBlocking(object) => {
                let said = vec![SAID; depth];
                for _ in 0..count {
                    for answer in object.call_many(&said) {
                        check(answer?.bytes())?;
                    }
                }
            }
            Side::Plain(executor, object) => executor.block_on(async {
                let mut calls = Vec::with_capacity(depth);
                for _ in 0..count {
                    calls.extend((0..depth).map(|_| object.call(&SAID)));
                    for call in calls.drain(..) {
                        check(call.await?.bytes())?;
                    }
                }
                Ok::<(), Failure>(())
            })?,
            Side::PlainBlocking(object) => {
                for _ in 0..count {
                    let calls = (0..depth).map(|_| object.begin(&SAID)).collect::<Result<Vec<_>, _>>()?;
                    for call in calls {
                        check(call.finish()?.bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn opens(&mut self, path: &[u8], count: u64) -> Result<(), Failure> {
        const NONE: &str = "no file in the answer";
        match self {
            Side::Raw(socket) => {
                let (mut room, mut arrived) = ([0; 128], Vec::with_capacity(FDS_MAX));
                for _ in 0..count {
                    perf::floor::send(socket.as_fd(), path)?;
                    receive_with(socket.as_fd(), &mut room, &mut arrived, Wait::Sleep)?;
                    arrived.pop().ok_or(NONE)?;
                }
            }
            Side::Plash(caller) => {
                for _ in 0..count {
                    caller.open(path)?;
                }
            }
            Side::Session(executor, object) => executor.block_on(async {
                for _ in 0..count {
                    object.call(path).await?.take_descriptor().ok_or(NONE)?;
                }
                Ok::<(), Failure>(())
            })?,
            Side::SessionBlocking(object) => {
                for _ in 0..count {
                    object.call(path)?.take_descriptor().ok_or(NONE)?;
                }
            }
            Side::Plain(executor, object) => executor.block_on(async {
                for _ in 0..count {
                    object.call(path).await?.take_descriptor().ok_or(NONE)?;
                }
                Ok::<(), Failure>(())
            })?,
            Side::PlainBlocking(object) => {
                for _ in 0..count {
                    object.call(path)?.take_descriptor().ok_or(NONE)?;
                }
            }
        }
        Ok(())
    }
}

fn check(answer: &[u8]) -> Result<(), Failure> {
    if answer == SAID { Ok(()) } else { Err("an answer that is not what was said".into()) }
}
