//! One receive beside the drivers, into memory of the caller's: for what their buffers do not fit.
//!
//! The socket is awaited to be readable, and then one plain system call takes one message. It keeps to the
//! same budget and gives the same errors as any receive. It must not be mixed with receives of the drivers on
//! the same socket, which would take messages away from under it.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use crate::driver::{STARVED_RETRY, child};
use crate::envelope::Room;
use crate::error::ReceiveError;
use crate::fd::DESCRIPTORS_MAX;
use crate::message::Received;
use crate::op::Core;
use crate::request::Arrival;
use crate::socket::Socket;
use crate::sys::errno;

/// How many packets are taken from a socket in a row, messages or not, before others have their turn. Whoever
/// only waits for the next message would otherwise never come to an end while a peer sends as fast as it is
/// read: nothing here waits for a turn of the reactor.
const GLANCES_MAX: u8 = 16;

/// The largest packet that a socket is sure to send with the usual SO_SNDBUF, in bytes: for protocols that
/// need more than [`PACKET_BYTES_MAX`](crate::PACKET_BYTES_MAX) and receive with
/// [`Socket::receive_large`].
pub const LARGE_PACKET_BYTES_MAX: usize = 196_608;

/// What a glance at the socket found.
pub(crate) enum Glance {
    Arrived(Arrival),
    Empty,
    /// There may be a message, but no room for the descriptors it may bring.
    Starved,
    Failed(io::Error),
}

/// What a message of no bytes and no control data means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// A datagram like any other.
    IsAMessage,
    /// The end, if it is said twice.
    MayBeTheEnd,
}

impl Core {
    /// Takes one message now, if there is one, past the driver and the pool.
    ///
    /// As in the drivers there is room for as many descriptors as can come, or as the budget has left: what
    /// is too much is sorted out afterwards, and not closed by the kernel on this thread.
    pub(crate) fn glance(&mut self, key: usize, scratch: &mut [u8]) -> Glance {
        if self.driver.is_child() {
            return Glance::Failed(child::refusal());
        }
        let (fd, room) = self.receiving(key);
        let wanted = usize::from(room.descriptors) + usize::from(room.pidfd);
        let budget = self.budget();
        let granted = budget.room(wanted);
        if granted == 0 && wanted > 0 {
            return Glance::Starved;
        }
        let offered = Room { descriptors: granted.min(DESCRIPTORS_MAX) as u16, pidfd: room.pidfd };
        let taken = match self.driver.receive_beside(&fd, scratch, offered) {
            Ok(taken) => taken,
            Err(error) => return failed(error),
        };
        let message = Received::owned(scratch[..taken.length].to_vec(), taken.control);
        let budget = self.budget();
        budget.took(message.descriptors() + usize::from(offered.pidfd));
        if taken.control_lost {
            budget.measure();
        }
        let nothing = taken.length == 0 && message.is_bare();
        Glance::Arrived(Arrival {
            message,
            bytes_lost: taken.bytes_lost,
            control_lost: taken.control_lost,
            nothing,
            hung_up: false,
        })
    }
}

fn failed(error: io::Error) -> Glance {
    match error.raw_os_error() {
        // A reset says that the peer left messages of ours unread; its own are still in the queue.
        Some(errno::EINTR | errno::ECONNRESET) => Glance::Empty,
        _ if error.kind() == io::ErrorKind::WouldBlock => Glance::Empty,
        _ => Glance::Failed(error),
    }
}

impl Socket {
    /// The next message, of up to `scratch.len()` bytes, taken with a system call of its own when the socket
    /// is readable. For SEQPACKET sockets whose messages may be longer than
    /// [`PACKET_BYTES_MAX`](crate::PACKET_BYTES_MAX); up to [`LARGE_PACKET_BYTES_MAX`] are sent without
    /// anybody's settings.
    ///
    /// What a socket receives is received either so or with [`receive`](Socket::receive), not with both.
    /// Dropping the future loses nothing. The message has memory of its own; `scratch` can be used for the
    /// next at once.
    ///
    /// ```
    /// # use ring::{Executor, Kind, LARGE_PACKET_BYTES_MAX, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let far = Socket::wrap(&reactor, far)?;
    /// # Executor::new(&reactor).block_on(async {
    /// far.send(vec![7; 150_000]).await?;
    /// let mut scratch = vec![0; LARGE_PACKET_BYTES_MAX];
    /// assert_eq!(near.receive_large(&mut scratch).await?.bytes().len(), 150_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As `receive`; `Truncated` for a message longer than `scratch`.
    ///
    /// # Panics
    /// If `scratch` is empty.
    pub async fn receive_large(&self, scratch: &mut [u8]) -> Result<Received, ReceiveError> {
        self.receive_beside(scratch, Nothing::MayBeTheEnd).await
    }

    pub(crate) async fn receive_beside(
        &self,
        scratch: &mut [u8],
        nothing: Nothing,
    ) -> Result<Received, ReceiveError> {
        assert!(!scratch.is_empty(), "there is room for a byte, or every message would look empty");
        // Only credentials tell an empty packet from the end of file.
        self.ask_for_credentials();
        let (mut nothings, mut shut_down) = (0, false);
        loop {
            if self.has_glanced(GLANCES_MAX) {
                let_others().await;
            }
            match self.glance(scratch) {
                Glance::Arrived(arrival) if arrival.nothing && nothing == Nothing::MayBeTheEnd => {
                    nothings += 1;
                    if nothings == 2 {
                        return Err(ReceiveError::Closed);
                    }
                    self.ask_for_credentials_again();
                }
                Glance::Arrived(arrival) if is_empty_packet(&arrival, nothing) => {
                    nothings = 0;
                    self.reactor().with(|core, _| core.stats.empty_packets += 1);
                }
                Glance::Arrived(arrival) => return self.judge(arrival),
                // Another holder has shut it down, which makes it readable for ever with nothing to read. A
                // datagram may have come in between, so it is asked once more.
                Glance::Empty if nothing == Nothing::IsAMessage && self.is_hung_up() => {
                    if std::mem::replace(&mut shut_down, true) {
                        return Err(ReceiveError::Closed);
                    }
                }
                Glance::Empty => self.readable().await.map_err(ReceiveError::from_kernel)?,
                Glance::Starved => self.reactor().sleep(STARVED_RETRY).await,
                Glance::Failed(error) => return Err(ReceiveError::from_kernel(error)),
            }
        }
    }
}

/// Ends when polled again.
async fn let_others() {
    let mut over = false;
    poll_fn(|context| {
        if std::mem::replace(&mut over, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Nobody of ours sends one on a connection, and it must not pass for the end of file.
fn is_empty_packet(arrival: &Arrival, nothing: Nothing) -> bool {
    nothing == Nothing::MayBeTheEnd && arrival.message.bytes().is_empty() && !arrival.bytes_lost
}
