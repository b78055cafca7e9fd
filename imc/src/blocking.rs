//! The same connections for programs without a reactor: connect, accept, send and receive where they are
//! called.
//!
//! The protocol and its outcomes are those of the crate; what differs is who waits. Everything here is `Send`
//! and nothing is shared between threads. It does not know what messages mean, and it starts no loop.
//!
//! ```
//! use imc::blocking::bound_socket;
//!
//! let (mut bound, address) = bound_socket()?;
//! let server = std::thread::spawn(move || {
//!     let mut arrival = bound.accept()?;
//!     let question = arrival.socket.receive()?.into_bytes();
//!     arrival.socket.send(question.to_ascii_uppercase())?;
//!     Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! });
//!
//! let mut connection = address.connect()?;
//! connection.send("hello")?;
//! assert_eq!(connection.receive()?.bytes(), b"HELLO");
//! server.join().unwrap().unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::blocking::{Inbox, NO_DESCRIPTORS, Outgoing, ReceiveError, Received, Socket};
use ring::{SendError, WaitPolicy, discard};
use thiserror::Error;

use crate::bound::{Violation, known};
use crate::{AcceptError, CONFIRM, CONNECT, ConnectError, Violations, Who, WrapError};

/// A fresh pair: the right to accept, and the right to connect.
///
/// # Errors
/// The kernel's: out of descriptors.
pub fn bound_socket() -> io::Result<(BoundSocket, SocketAddress)> {
    let (near, far) = Socket::pair()?;
    let address = SocketAddress::from_fd(far).map_err(io::Error::other)?;
    let mut bound = BoundSocket::new(near);
    bound.address = ring::socket_cookie(&address).ok();
    Ok((bound, address))
}

/// The right to connect, for programs without a reactor: see [`imc::SocketAddress`](crate::SocketAddress).
/// Dropping it closes this copy only.
pub struct SocketAddress {
    socket: Socket,
}

impl SocketAddress {
    /// Takes a descriptor that is said to be an address. That it is not rather the bound end, or an end of
    /// some connection, cannot be seen; whoever passes it on says what it is.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(fd: OwnedFd) -> Result<SocketAddress, WrapError> {
        Ok(SocketAddress { socket: connected(fd)? })
    }

    /// Connects: queues a request with the acceptor, and waits for room if its queue is full.
    ///
    /// Success does not mean that anybody has looked at the request, or will. The connection can be used at
    /// once; what is sent waits in it.
    ///
    /// # Errors
    /// See [`ConnectError`]. In all cases nothing was sent.
    pub fn connect(&self) -> Result<ConnectedSocket, ConnectError> {
        self.connect_until(None)
    }

    /// As [`connect`](SocketAddress::connect), until a moment at the latest.
    ///
    /// # Errors
    /// See [`ConnectError`]; [`WouldBlock`](ConnectError::WouldBlock) if the queue was full all the time.
    pub fn connect_until(&self, deadline: Option<Instant>) -> Result<ConnectedSocket, ConnectError> {
        let (near, far) = Socket::pair().map_err(ConnectError::from_pair)?;
        self.socket.send(&[CONNECT], &[&far], deadline)?;
        // Our only copy: while we held it, the death of an acceptor that has not read the request would not
        // be seen.
        drop(far);
        Ok(ConnectedSocket::new(near))
    }

    /// Connects now, or says why not.
    ///
    /// # Errors
    /// [`ConnectError::WouldBlock`] if the acceptor's queue is full.
    pub fn try_connect(&self) -> Result<ConnectedSocket, ConnectError> {
        self.connect_until(Some(Instant::now()))
    }

    /// Connects to an acceptor that [confirms](BoundSocket::set_confirming), and waits for that, but no
    /// longer than `within` for everything together. Nothing on the wire tells whether an acceptor confirms.
    ///
    /// # Errors
    /// See [`ConfirmError`]. `Unconfirmed` brings the connection, which stays usable.
    pub fn connect_confirmed(&self, within: Duration) -> Result<ConnectedSocket, ConfirmError> {
        let deadline = Instant::now().checked_add(within);
        let mut near = self.connect_until(deadline).map_err(ConfirmError::Connect)?;
        match near.inbox.receive(&near.socket, deadline) {
            Ok(message) if message.bytes() == CONFIRM && message.descriptors() == 0 => {}
            Ok(_) => return Err(ConfirmError::Malformed),
            Err(ReceiveError::Deadline) => {
                near.confirmation_due = true;
                return Err(ConfirmError::Unconfirmed(Box::new(near)));
            }
            Err(ReceiveError::Closed) => return Err(ConfirmError::Gone),
            Err(ReceiveError::Io(error)) => return Err(ConfirmError::Io(error)),
            // More than one byte, or descriptors: whatever it was, it was no confirmation.
            Err(_) => return Err(ConfirmError::Malformed),
        }
        Ok(near)
    }

    /// A duplicate, for another holder: to be sent in a message, or given to a child or another thread.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone_fd()
    }

    /// The descriptor itself.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into_fd()
    }
}

impl AsFd for SocketAddress {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketAddress").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}

/// No connection was confirmed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// Nothing came in time. The request is in the acceptor's queue, or was taken from it; it may yet be
    /// confirmed, or never. The connection inside is as usable as after a plain `connect`, and swallows a
    /// confirmation that comes later.
    #[error("the acceptor has not confirmed in time")]
    Unconfirmed(Box<ConnectedSocket>),
    /// The request was sent, and the connection has ended without a confirmation: the acceptor died or
    /// dropped the request. Nothing but the request was sent.
    #[error("the connection ended before it was confirmed")]
    Gone,
    /// The first thing that came was not a confirmation: the acceptor does not confirm, or is none. The
    /// connection is closed, and what came is lost.
    #[error("the acceptor said something else instead of confirming")]
    Malformed,
    /// No request was sent. [`ConnectError::WouldBlock`] says that the queue was full all the time.
    #[error("no request was sent: {0}")]
    Connect(#[source] ConnectError),
    /// The request was sent; waiting for the confirmation failed. Anything else the kernel said.
    #[error(transparent)]
    Io(io::Error),
}

/// A connection: messages with descriptors, whole, in order, both ways. See
/// [`imc::ConnectedSocket`](crate::ConnectedSocket).
///
/// Dropping it ends the connection for both sides. In a forked child dropping it only closes the child's
/// copy; a parent that leaves the connection to its child takes the [descriptor](ConnectedSocket::into_fd)
/// out and closes that.
pub struct ConnectedSocket {
    socket: Socket,
    inbox: Inbox,
    confirmation_due: bool,
}

impl ConnectedSocket {
    fn new(socket: Socket) -> ConnectedSocket {
        // Given away by whoever connected, so that the end can be told at once.
        socket.set_private(true);
        ConnectedSocket { socket, inbox: Inbox::new(WaitPolicy::Sleep), confirmation_due: false }
    }

    /// A connection without an acceptor: one end here, the other to be given to a child or a thread.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn pair() -> io::Result<(ConnectedSocket, OwnedFd)> {
        let (near, far) = Socket::pair()?;
        Ok((ConnectedSocket::new(near), far))
    }

    /// Takes the end of a connection. Nobody else may hold it.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(fd: OwnedFd) -> Result<ConnectedSocket, WrapError> {
        connected(fd).map(ConnectedSocket::new)
    }

    /// How to wait for what is not there yet: asleep, unless told otherwise.
    pub fn set_wait_policy(&mut self, wait: WaitPolicy) {
        self.inbox = Inbox::new(wait);
    }

    /// Sends a message, and waits for room in the queue. Descriptors that were given with it are closed here.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    pub fn send<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<(), SendError> {
        self.send_until(message, None)
    }

    /// As [`send`](ConnectedSocket::send), until a moment at the latest.
    ///
    /// # Errors
    /// See [`SendError`]; [`WouldBlock`](SendError::WouldBlock) if the queue was full all the time.
    pub fn send_until<'a>(
        &self,
        message: impl Into<Outgoing<'a>>,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        let message = message.into();
        self.socket.send(&[message.bytes()], message.descriptors(), deadline)
    }

    /// The next message, in this connection's buffer until it is dropped.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] at the end: the other side is gone, or never accepted. The others say what
    /// was lost, and receiving goes on.
    pub fn receive(&mut self) -> Result<Received<'_>, ReceiveError> {
        self.receive_until(None)
    }

    /// As [`receive`](ConnectedSocket::receive), until a moment at the latest.
    ///
    /// # Errors
    /// As `receive`; [`Deadline`](ReceiveError::Deadline) if nothing came.
    pub fn receive_until(&mut self, deadline: Option<Instant>) -> Result<Received<'_>, ReceiveError> {
        if !self.confirmation_due {
            return self.inbox.receive(&self.socket, deadline);
        }
        let first = self.inbox.receive(&self.socket, deadline);
        if let Err(ReceiveError::Deadline) = first {
            return Err(ReceiveError::Deadline);
        }
        // Only the first message can be the confirmation that is owed. A copy, since anything else in its
        // place is passed on.
        self.confirmation_due = false;
        match first.map(Received::into_owned) {
            Ok(message) if message.bytes() == CONFIRM && message.descriptors() == 0 => {
                self.inbox.receive(&self.socket, deadline)
            }
            first => first,
        }
    }

    /// How many descriptors one message may bring: at most 253, 16 until told otherwise.
    pub fn set_descriptors_max(&self, count: usize) {
        self.socket.set_descriptors_max(count);
    }

    /// The socket underneath, private as it is here.
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// The descriptor itself. Nothing is shut down.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into_fd()
    }
}

impl AsFd for ConnectedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for ConnectedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectedSocket").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}

/// One connection, and who made it.
#[derive(Debug)]
pub struct Arrival {
    /// The connection.
    pub socket: ConnectedSocket,
    /// Who asked for it.
    pub who: Who,
}

/// The right to accept, for programs without a reactor: see [`imc::BoundSocket`](crate::BoundSocket).
///
/// Dropping it makes every further connect fail, and ends the connections that were not accepted.
pub struct BoundSocket {
    socket: Socket,
    /// The kernel's number of the other end, where that was made here.
    address: Option<u64>,
    inbox: Inbox,
    confirming: bool,
    violations: Violations,
}

impl BoundSocket {
    fn new(socket: Socket) -> BoundSocket {
        // Others hold the other end; this one is ours alone, and those who connect shall see when it goes.
        socket.set_private(true);
        let inbox = Inbox::new(WaitPolicy::Sleep);
        let violations = Violations::default();
        BoundSocket { socket, address: None, inbox, confirming: false, violations }
    }

    /// Takes the bound end that this process was started with. Nobody else may hold it.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(fd: OwnedFd) -> Result<BoundSocket, WrapError> {
        connected(fd).map(BoundSocket::new)
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// See [`AcceptError`]. Nothing that one peer sends is an error.
    pub fn accept(&mut self) -> Result<Arrival, AcceptError> {
        loop {
            if let Some(arrival) = self.accept_until(None)? {
                return Ok(arrival);
            }
        }
    }

    /// As [`accept`](BoundSocket::accept), until a moment at the latest; then `None`.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub fn accept_until(&mut self, deadline: Option<Instant>) -> Result<Option<Arrival>, AcceptError> {
        loop {
            let judged = match self.inbox.receive(&self.socket, deadline) {
                Ok(message) => judge(message, self.address),
                Err(ReceiveError::Deadline) => return Ok(None),
                Err(ReceiveError::Closed) => return Err(AcceptError::Gone),
                Err(ReceiveError::Io(error)) => return Err(AcceptError::Io(error)),
                Err(ReceiveError::DescriptorsLost(message)) => {
                    Err(Violation::of_what_is_left(message.bytes(), CONNECT, message.descriptors()))
                }
                // Truncated, and so much longer than one byte.
                Err(_) => Err(Violation::WrongMessage),
            };
            match judged {
                Ok(arrival) => {
                    if self.confirming {
                        // A client that has filled its own queue, or is gone, goes without.
                        let _ = arrival.socket.socket.try_send(&[CONFIRM], NO_DESCRIPTORS);
                    }
                    return Ok(Some(arrival));
                }
                Err(violation) => *violation.counter(&mut self.violations) += 1,
            }
        }
    }

    /// Asks for the [process](Who::pidfd) of whoever connects, with each connection accepted from now on: see
    /// [`imc::BoundSocket::ask_for_pidfds`](crate::BoundSocket::ask_for_pidfds).
    ///
    /// # Errors
    /// The kernel has none (before Linux 6.5).
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        self.socket.ask_for_pidfds()
    }

    /// Whether to confirm each connection before handing it out, for clients that
    /// [wait for it](SocketAddress::connect_confirmed). All clients must know. Off at first.
    pub fn set_confirming(&mut self, confirming: bool) {
        self.confirming = confirming;
    }

    /// What holders of the address did wrong so far.
    pub fn violations(&self) -> Violations {
        self.violations
    }

    /// The descriptor itself, for a child that is to accept. The waiting requests go with it.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into_fd()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundSocket")
            .field("fd", &self.as_fd())
            .field("violations", &self.violations)
            .finish_non_exhaustive()
    }
}

/// What the message asks for, if it is a request. All other descriptors of it are closed with it.
fn judge(mut message: Received<'_>, address: Option<u64>) -> Result<Arrival, Violation> {
    if message.bytes() != CONNECT {
        return Err(Violation::WrongMessage);
    }
    if message.descriptors() > 1 {
        return Err(Violation::Several);
    }
    let far = message.take_descriptor().ok_or(Violation::None)?;
    // What is said there would come back here.
    if address.is_some_and(|own| ring::socket_cookie(&far).is_ok_and(|cookie| cookie == own)) {
        discard(far);
        return Err(Violation::OwnAddress);
    }
    let socket = connected(far).map_err(Violation::Unfit)?;
    let who = Who { credentials: known(message.credentials()), pidfd: message.take_pidfd() };
    Ok(Arrival { socket: ConnectedSocket::new(socket), who })
}

/// An AF_UNIX socket of type SEQPACKET that is connected, or was.
fn connected(fd: OwnedFd) -> Result<Socket, WrapError> {
    let socket = Socket::from_fd(fd).map_err(|error| match error {
        ring::WrapError::NotASocket => WrapError::NotASocket,
        _ => WrapError::WrongKind,
    })?;
    if socket.is_connected() {
        return Ok(socket);
    }
    let why = if socket.is_listening() { WrapError::Listening } else { WrapError::Unconnected };
    // Elsewhere, since whoever made it may put something slow to close into it.
    discard(socket.into_fd());
    Err(why)
}
