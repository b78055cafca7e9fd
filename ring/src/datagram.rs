//! Datagrams: messages to names, without a connection.
//!
//! A [`Datagrams`] owns one socket. It is here for protocols that connect by name; it has no order to keep
//! with anything, and so no queue of its own.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::beside::Nothing;
use crate::envelope::Envelope;
use crate::error::{ReceiveError, SendError, WrapError};
use crate::fd::{DESCRIPTORS_MAX, Kind, discard};
use crate::message::{Message, PACKET_BYTES_MAX, Received};
use crate::name::AbstractName;
use crate::reactor::Reactor;
use crate::socket::Socket;
use crate::sys;

/// A full queue is tried again after this long, at first. Nothing tells when it has room.
const RETRY_FIRST: Duration = Duration::from_millis(1);

/// The longest pause between two such attempts.
const RETRY_LAST: Duration = Duration::from_millis(32);

/// An AF_UNIX datagram socket on a reactor.
///
/// Anybody who knows a name can send to it. What arrives carries the sender's credentials. A datagram may be
/// empty, with descriptors or without: there is no end of file that it could be taken for.
///
/// ```
/// use ring::{AbstractName, Datagrams, Executor, Message, Reactor};
///
/// let reactor = Reactor::new()?;
/// let name = AbstractName::random("example-", 27)?;
/// let bound = Datagrams::bind(&reactor, &name)?;
/// let sender = Datagrams::unbound(&reactor)?;
///
/// Executor::new(&reactor).block_on(async {
///     let (reader, _writer) = std::io::pipe()?;
///     let empty = Message::new("").with_descriptor(std::os::fd::OwnedFd::from(reader));
///     sender.send_to(&name, empty).await?;
///     let mut received = bound.receive().await?;
///     assert_eq!(received.bytes(), b"");
///     assert!(received.take_descriptor().is_some());
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Datagrams {
    socket: Socket,
    /// Where datagrams are received to; made when the first is awaited, and away while one is.
    scratch: RefCell<Vec<u8>>,
}

impl Datagrams {
    /// A socket with this name, which nobody else may have.
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` if somebody has the name.
    pub fn bind(reactor: &Reactor, name: &AbstractName) -> io::Result<Datagrams> {
        let datagrams = Datagrams::unbound(reactor)?;
        sys::bind(datagrams.as_fd(), &name.address())?;
        Ok(datagrams)
    }

    /// A socket without a name, to send from.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn unbound(reactor: &Reactor) -> io::Result<Datagrams> {
        reactor.is_ours()?;
        let fd = sys::datagram_socket()?;
        Ok(Datagrams::new(reactor, fd, true))
    }

    /// Takes a datagram socket that this process was started with. Others may hold it too.
    ///
    /// # Errors
    /// Anything but an AF_UNIX datagram socket is refused, and closed without making this thread wait.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<Datagrams, WrapError> {
        if sys::is_datagram_socket(fd.as_fd()) {
            Ok(Datagrams::new(reactor, fd, false))
        } else {
            discard(fd);
            Err(WrapError::NotUnix)
        }
    }

    fn new(reactor: &Reactor, fd: OwnedFd, private: bool) -> Datagrams {
        // Of the two kinds it is this one: whole messages. Nothing is sent or received through the table,
        // which only awaits readiness and closes.
        let socket = Socket::new(reactor, fd, Kind::SeqPacket, private);
        // At once, since a datagram queued before carries nothing.
        socket.ask_for_credentials();
        Datagrams { socket, scratch: RefCell::default() }
    }

    /// The next datagram, of up to [`PACKET_BYTES_MAX`] bytes. Dropping the future loses none.
    ///
    /// # Errors
    /// [`ReceiveError::Truncated`] and [`ReceiveError::DescriptorsLost`] say what was lost, and receiving
    /// goes on. No sender can end it; [`ReceiveError::Closed`] says that another holder of this very socket
    /// has shut it down.
    pub async fn receive(&self) -> Result<Received, ReceiveError> {
        let mut scratch = self.scratch.take();
        scratch.resize(PACKET_BYTES_MAX, 0);
        let result = self.socket.receive_beside(&mut scratch, Nothing::IsAMessage).await;
        self.scratch.replace(scratch);
        result
    }

    /// Sends a datagram to whoever has that name, and waits for room in their queue. How much fits is the
    /// kernel's business (`net.unix.max_dgram_qlen` and one more: 11 with the usual setting).
    ///
    /// Dropping the future sends nothing, or has sent everything.
    ///
    /// # Errors
    /// [`SendError::Gone`] if nobody has the name.
    pub async fn send_to(&self, name: &AbstractName, message: impl Into<Message>) -> Result<(), SendError> {
        let mut envelope = sealed(message.into())?;
        let mut pause = RETRY_FIRST;
        loop {
            match self.send_now(name, &mut envelope) {
                Err(SendError::WouldBlock) => self.socket.reactor().sleep(pause).await,
                result => return result,
            }
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    /// Sends a datagram now, or says why not.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if the queue is full; [`SendError::Gone`] if nobody has the name.
    pub fn try_send_to(&self, name: &AbstractName, message: impl Into<Message>) -> Result<(), SendError> {
        let mut envelope = sealed(message.into())?;
        self.send_now(name, &mut envelope)
    }

    fn send_now(&self, name: &AbstractName, envelope: &mut Envelope) -> Result<(), SendError> {
        let sent = self.reactor().is_ours().and_then(|()| envelope.send_to(self.as_fd(), &name.address()));
        sent.map_err(SendError::from_kernel)?;
        let (bytes, descriptors) = (envelope.length() as u64, envelope.descriptors().len() as u64);
        self.socket.reactor().with(|core, _| {
            core.stats.messages_sent += 1;
            core.stats.bytes_sent += bytes;
            core.stats.descriptors_sent += descriptors;
        });
        Ok(())
    }

    /// How many descriptors one datagram may bring: at most 253, 16 until told otherwise.
    pub fn set_descriptors_max(&self, count: usize) {
        self.socket.set_descriptors_max(count);
    }

    /// Asks for a pidfd of the sender with every datagram (Linux 6.5).
    ///
    /// # Errors
    /// The kernel does not know them.
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        self.socket.ask_for_pidfds()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    /// The descriptor itself, name, queue and all.
    ///
    /// # Errors
    /// Gives the socket back while a wait of it is on its way home; another attempt after a turn succeeds.
    pub fn into_fd(self) -> Result<OwnedFd, Datagrams> {
        let Datagrams { socket, scratch } = self;
        socket.into_fd().map_err(|socket| Datagrams { socket, scratch })
    }
}

fn sealed(message: Message) -> Result<Box<Envelope>, SendError> {
    if message.descriptors().len() > DESCRIPTORS_MAX {
        return Err(SendError::TooLarge);
    }
    let mut envelope = Envelope::new(message);
    envelope.seal();
    Ok(envelope)
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagrams").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}
