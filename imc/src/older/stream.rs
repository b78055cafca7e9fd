//! Connecting by `socket`, `bind`, `listen`, `accept` and `connect`, on a random name.
//!
//! What Native Client did on Mac OS X and was first thought to do on Linux. A connection here is a stream: it
//! keeps bytes in order and nothing else. What is wrong with it is in [the table](super).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ring::{Credentials, Kind, Message, Reactor, ReceiveError, Received, SendError, Sending, Socket};

use super::Token;
use crate::ConnectError;

/// How many connections Native Client let wait: one more than this.
pub const BACKLOG: u16 = 5;

/// A listener on a fresh name: the right to accept, and what others need to connect.
///
/// `backlog` and one more connections can wait to be accepted, whoever they are from ([`BACKLOG`] was Native
/// Client's number); then whoever connects waits.
///
/// # Errors
/// The kernel's: out of descriptors; `AddrInUse` if two have drawn the same token, "which is not supposed to
/// happen".
pub fn bound_socket(reactor: &Reactor, backlog: u16) -> io::Result<(BoundSocket, SocketAddress)> {
    let token = Token::random()?;
    let listener = Socket::listen_abstract(reactor, &token.name(), Kind::Stream, backlog)?;
    Ok((BoundSocket { listener }, SocketAddress { token }))
}

/// The right to accept.
///
/// ```
/// # use imc::older::stream;
/// # let reactor = ring::Reactor::new()?;
/// let (bound, address) = stream::bound_socket(&reactor, stream::BACKLOG)?;
/// # ring::Executor::new(&reactor).block_on(async {
/// let client = address.connect(&reactor).await?;
/// let server = bound.accept().await?;
/// client.send("bytes").await?;
/// assert_eq!(server.receive().await?.bytes(), b"bytes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it frees the name and ends the connections that were not accepted. It is never told that nobody
/// will connect any more.
pub struct BoundSocket {
    listener: Socket,
}

impl BoundSocket {
    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// The kernel's. With no descriptors left it waits.
    pub async fn accept(&self) -> io::Result<ConnectedSocket> {
        self.listener.accept().await.map(|socket| ConnectedSocket { socket })
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.listener.reactor()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl fmt::Debug for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("stream::BoundSocket").field("fd", &self.as_fd()).finish()
    }
}

/// What is needed to connect: a name. Unlike [the replacement's](crate::SocketAddress) it is no descriptor,
/// and holding it is no right: whoever guesses or reads it has it too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    token: Token,
}

impl SocketAddress {
    /// Connects, and waits for room if too many wait already (by trying again each millisecond, since nobody
    /// tells). Success means that the connection waits to be accepted.
    ///
    /// # Errors
    /// [`ConnectError::Gone`] if nobody listens under the name.
    pub async fn connect(&self, reactor: &Reactor) -> Result<ConnectedSocket, ConnectError> {
        let socket = Socket::connect_abstract(reactor, &self.token.name(), Kind::Stream).await;
        socket.map(|socket| ConnectedSocket { socket }).map_err(ConnectError::from_connect)
    }

    /// Connects now, or says why not.
    ///
    /// # Errors
    /// [`ConnectError::WouldBlock`] if too many wait already.
    pub fn try_connect(&self, reactor: &Reactor) -> Result<ConnectedSocket, ConnectError> {
        let socket = Socket::try_connect_abstract(reactor, &self.token.name(), Kind::Stream);
        socket.map(|socket| ConnectedSocket { socket }).map_err(ConnectError::from_connect)
    }

    /// What to tell others.
    pub fn token(&self) -> &Token {
        &self.token
    }
}

impl From<Token> for SocketAddress {
    fn from(token: Token) -> SocketAddress {
        SocketAddress { token }
    }
}

/// A connection: bytes in order, both ways. What was sent in two pieces may be received in one, or in three;
/// descriptors come with the first byte of the piece they were sent with.
pub struct ConnectedSocket {
    socket: Socket,
}

impl ConnectedSocket {
    /// Sends bytes, and descriptors with the first of them.
    pub fn send(&self, message: impl Into<Message>) -> Sending {
        self.socket.send(message)
    }

    /// Sends now or says why not.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if there is no room for the first byte.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.socket.try_send(message)
    }

    /// Some of the bytes that have come, at least one. Dropping the future loses none.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] at the end.
    pub async fn receive(&self) -> Result<Received, ReceiveError> {
        self.socket.receive().await
    }

    /// Who was at the other end when it was connected: of a connection that was accepted, who called
    /// `connect`; of one that was made here, who called `listen`. This is what streams have that the other
    /// ways do not: it cannot be somebody who only passed something on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peer(&self) -> io::Result<Credentials> {
        self.socket.peer_credentials()
    }

    /// The socket underneath, for its other verbs.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }
}

impl AsFd for ConnectedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for ConnectedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("stream::ConnectedSocket").field("fd", &self.as_fd()).finish()
    }
}
