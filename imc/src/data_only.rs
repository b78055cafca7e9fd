//! Connections without descriptors, which therefore may travel.
//!
//! A `DataOnlySocket` sends and receives bytes, and sees to it that nothing else comes. It owns its copy of
//! the end; others may hold copies too.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::{Kind, Reactor, ReceiveError, Received, SendError, Socket};

use crate::{NACL_BYTES_MAX, WrapError, fitness};

/// A connection for bytes only, made by Native Client's `imc_socketpair`.
///
/// ```
/// use imc::DataOnlySocket;
///
/// let reactor = ring::Reactor::new()?;
/// let (one, other) = DataOnlySocket::pair(&reactor)?;
/// ring::Executor::new(&reactor).block_on(async {
///     one.send("nothing but bytes").await?;
///     assert_eq!(other.receive().await?.bytes(), b"nothing but bytes");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A socket either travels or carries descriptors, never both: that is what keeps sockets from ending up in
/// each other's queues, in circles that nobody can reach and that stay open. This one travels. So a message
/// that brings descriptors is a violation: it is dropped *whole*, its descriptors are closed, it is counted
/// ([`violations`](DataOnlySocket::violations)), and the next message is read. Half of what somebody sent is
/// not what they meant, and who breaks the rule should not find that it nearly works.
///
/// Where the kernel can (Linux 6.16) a pair made here is told to refuse descriptors, and then who sends one
/// is refused (EPERM) and nothing is ever queued. Before that, and on an end made by somebody else, what is
/// queued is queued until it is received.
pub struct DataOnlySocket {
    socket: Socket,
    /// Where messages are received to; made when the first is awaited, and away while one is.
    scratch: RefCell<Vec<u8>>,
    violations: Cell<u64>,
}

impl DataOnlySocket {
    /// Both ends of a fresh connection.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn pair(reactor: &Reactor) -> io::Result<(DataOnlySocket, DataOnlySocket)> {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
        let far = Socket::wrap(reactor, far).map_err(io::Error::other)?;
        far.set_private(true);
        for end in [&near, &far] {
            // An older kernel cannot; then it is only noticed when one is received.
            let _ = end.refuse_descriptors();
        }
        Ok((DataOnlySocket::new(near), DataOnlySocket::new(far)))
    }

    /// Takes a descriptor that is said to be one. That it is not rather an address, or an end of a connection
    /// that carries descriptors, cannot be seen.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<DataOnlySocket, WrapError> {
        fitness::connected(reactor, fd).map(DataOnlySocket::new)
    }

    fn new(socket: Socket) -> DataOnlySocket {
        socket.set_descriptors_max(0);
        // At once: what is sent before carries none, and could not be told from the end if it is empty.
        socket.ask_for_credentials();
        DataOnlySocket { socket, scratch: RefCell::default(), violations: Cell::new(0) }
    }

    /// Sends bytes, up to [`NACL_BYTES_MAX`] of them, and waits for room in the queue. Dropping the future
    /// takes the message back if it has not left yet.
    ///
    /// # Errors
    /// [`SendError::Gone`] if nobody holds the other end; [`SendError::Empty`], [`SendError::TooLarge`].
    pub async fn send(&self, bytes: impl Into<Vec<u8>>) -> Result<(), SendError> {
        self.socket.send(fitting(bytes.into())?).await
    }

    /// Sends now or says why not.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if the queue is full or something waits before it; and as
    /// [`send`](DataOnlySocket::send).
    pub fn try_send(&self, bytes: impl Into<Vec<u8>>) -> Result<(), SendError> {
        self.socket.try_send(fitting(bytes.into())?)
    }

    /// The next message. Dropping the future loses none.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] at the end; [`ReceiveError::Truncated`] for more than [`NACL_BYTES_MAX`]
    /// bytes, and receiving goes on.
    pub async fn receive(&self) -> Result<Received, ReceiveError> {
        loop {
            let mut scratch = self.scratch.take();
            scratch.resize(NACL_BYTES_MAX, 0);
            let result = self.socket.receive_large(&mut scratch).await;
            self.scratch.replace(scratch);
            match result {
                Err(ReceiveError::DescriptorsLost(_)) => self.violations.set(self.violations.get() + 1),
                result => return result,
            }
        }
    }

    /// How many messages brought descriptors and were dropped.
    pub fn violations(&self) -> u64 {
        self.violations.get()
    }

    /// A duplicate, for another holder. Both receive from the same queue.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        // From now on dropping this one must not end the connection of the others.
        self.socket.set_private(false);
        self.socket.share()
    }

    /// Another handle to the same end, on the same reactor.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn try_clone(&self) -> io::Result<DataOnlySocket> {
        let fd = self.share()?;
        Socket::wrap(self.reactor(), fd).map(DataOnlySocket::new).map_err(io::Error::other)
    }

    /// The descriptor itself.
    ///
    /// # Errors
    /// Gives the socket back while something of it is away: another attempt after a turn succeeds.
    /// [`share`](DataOnlySocket::share) is always possible.
    pub fn into_fd(self) -> Result<OwnedFd, DataOnlySocket> {
        let DataOnlySocket { socket, scratch, violations } = self;
        socket.into_fd().map_err(|socket| DataOnlySocket { socket, scratch, violations })
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }
}

fn fitting(bytes: Vec<u8>) -> Result<Vec<u8>, SendError> {
    if bytes.len() > NACL_BYTES_MAX { Err(SendError::TooLarge) } else { Ok(bytes) }
}

impl AsFd for DataOnlySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for DataOnlySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataOnlySocket")
            .field("fd", &self.as_fd())
            .field("violations", &self.violations.get())
            .finish_non_exhaustive()
    }
}
