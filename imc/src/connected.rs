//! What both sides hold in the end: messages and descriptors, both ways.
//!
//! A `ConnectedSocket` owns its end, which is nobody else's, and knows whether a confirmation may still come.
//! It does not know what messages mean.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use ring::{Kind, Message, Reactor, ReceiveError, Received, SendError, Sending, Socket};

use crate::{CONFIRM, WrapError, fitness};

/// A connection: messages with descriptors, whole, in order, both ways.
///
/// It belongs to one process. Like Native Client's, it carries descriptors and so does not travel: an end in
/// the queue of another connection is seen by nobody, and two of them in each other's queues never close. The
/// types help, since it is no `Fd` that could be put into a message; [`into_fd`](ConnectedSocket::into_fd) is
/// for handing it to a child.
///
/// Dropping it sends what is still queued, then ends the connection for both sides.
pub struct ConnectedSocket {
    socket: Socket,
    confirmation_due: Cell<bool>,
}

impl ConnectedSocket {
    pub(crate) fn new(socket: Socket) -> ConnectedSocket {
        // Given away by whoever connected, so that the end can be told at once.
        socket.set_private(true);
        socket.set_nameless();
        ConnectedSocket { socket, confirmation_due: Cell::new(false) }
    }

    /// A connection without an acceptor: one end here, the other to be given to a child.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn pair(reactor: &Reactor) -> io::Result<(ConnectedSocket, OwnedFd)> {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
        Ok((ConnectedSocket::new(near), far))
    }

    /// Takes the end of a connection that this process was started with. Nobody else may hold it.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<ConnectedSocket, WrapError> {
        fitness::connected(reactor, fd).map(ConnectedSocket::new)
    }

    /// Sends a message, after those asked for before it, and waits for room in the queue.
    ///
    /// Awaited, it ends with a [`SendError`] if nothing was sent. Dropping the future takes the message back
    /// if it has not left yet.
    pub fn send(&self, message: impl Into<Message>) -> Sending {
        self.socket.send(message)
    }

    /// Sends now or says why not.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if the queue is full or something waits before it.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.socket.try_send(message)
    }

    /// Sends a last message, silently, and ends the connection when it has gone.
    ///
    /// # Errors
    /// What is wrong with the message itself (empty, too large): the connection is ended without it.
    pub fn finish(self, message: impl Into<Message>) -> Result<(), SendError> {
        self.socket.finish(message)
    }

    /// The next message. Dropping the future loses none.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] at the end: the other side is gone, or never accepted. The others say what
    /// was lost, and receiving goes on.
    pub async fn receive(&self) -> Result<Received, ReceiveError> {
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// As [`receive`](ConnectedSocket::receive), for futures written by hand. One waker is kept for each
    /// connection, so only one task at a time can wait.
    ///
    /// # Errors
    /// As `receive`.
    pub fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let mut result = ready!(self.socket.poll_receive(context));
        if self.is_late_confirmation(&result) {
            result = ready!(self.socket.poll_receive(context));
        }
        Poll::Ready(result)
    }

    /// As [`receive`](ConnectedSocket::receive), where many wait for what mostly comes together, and may be
    /// there already: looks before it waits.
    pub(crate) async fn receive_together(&self) -> Result<Received, ReceiveError> {
        let mut looked = false;
        poll_fn(|context| match std::mem::replace(&mut looked, true) {
            false => self.socket.poll_receive_together(context),
            true => self.socket.poll_receive(context),
        })
        .await
    }

    /// The next message, if the reactor has brought it already: see [`ring::Socket::try_receive`].
    pub fn try_receive(&self) -> Option<Result<Received, ReceiveError>> {
        let result = self.socket.try_receive()?;
        if self.is_late_confirmation(&result) { self.socket.try_receive() } else { Some(result) }
    }

    /// Whether this is what a confirming acceptor owes. Only the first message can be: anything else in its
    /// place is passed on, and nothing is owed any more.
    fn is_late_confirmation(&self, result: &Result<Received, ReceiveError>) -> bool {
        let is_confirmation = |message: &Received| message.bytes() == CONFIRM && message.descriptors() == 0;
        self.confirmation_due.take() && result.as_ref().is_ok_and(is_confirmation)
    }

    pub(crate) fn expect_confirmation(&self) {
        self.confirmation_due.set(true);
    }

    /// Whether this connection came out of [`ConfirmError::Unconfirmed`](crate::ConfirmError::Unconfirmed)
    /// and nothing has been received on it since. The confirmation is swallowed when it comes, and no longer
    /// due from then on. As with all confirmations, an acceptor that does *not* confirm and begins with the
    /// single byte `a` is misunderstood.
    pub fn is_confirmation_due(&self) -> bool {
        self.confirmation_due.get()
    }

    /// How many descriptors one message may bring: at most 253, 16 until told otherwise.
    pub fn set_descriptors_max(&self, count: usize) {
        self.socket.set_descriptors_max(count);
    }

    /// The socket underneath, for its other verbs. What is received there directly may begin with a
    /// [confirmation](ConnectedSocket::is_confirmation_due).
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket underneath, private as it is here. A [confirmation](ConnectedSocket::is_confirmation_due)
    /// that comes is a message like any other from then on.
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// The socket underneath, with nothing away and nothing arrived; a receive that is gone by then takes
    /// nothing from those to come.
    pub(crate) fn into_idle_socket(self) -> Result<Socket, ConnectedSocket> {
        let reactor = self.reactor().clone();
        let fd = self.into_fd()?;
        // It was one a moment ago.
        let socket = Socket::wrap(&reactor, fd).expect("a socket stays one");
        socket.set_private(true);
        Ok(socket)
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    /// The descriptor itself, for a child.
    ///
    /// # Errors
    /// Gives the connection back while something of it is away (a send, a receive) or has arrived and has not
    /// been taken. A receive that nobody awaits is asked home by that: another attempt after a turn succeeds,
    /// unless it has brought a message.
    pub fn into_fd(self) -> Result<OwnedFd, ConnectedSocket> {
        let ConnectedSocket { socket, confirmation_due } = self;
        socket.into_fd().map_err(|socket| ConnectedSocket { socket, confirmation_due })
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
