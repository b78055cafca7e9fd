//! Connecting by an empty datagram with one end of a pair, to a random name.
//!
//! What Native Client did on Linux from 2008 to 2010. It makes the same connections as the replacement, and
//! differs only in how the far end gets to the acceptor. What is wrong with it is in [the table](super).

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::{Datagrams, Fd, Message, Reactor, ReceiveError};

use super::Token;
use crate::bound::{Violation, judge};
use crate::{AcceptError, Arrival, ConnectError, ConnectedSocket, Violations, WrapError};

/// The bytes of a request: none. A datagram without bytes is no end of file, since there is no such end here.
const REQUEST: &[u8; 0] = b"";

/// A socket with a fresh name: the right to accept, and what others need to connect.
///
/// # Errors
/// The kernel's: out of descriptors; `AddrInUse` if two have drawn the same token, "which is not supposed to
/// happen".
pub fn bound_socket(reactor: &Reactor) -> io::Result<(BoundSocket, SocketAddress)> {
    let token = Token::random()?;
    let datagrams = Datagrams::bind(reactor, &token.name())?;
    Ok((BoundSocket { datagrams, violations: Cell::default() }, SocketAddress { token }))
}

/// The right to accept. Anybody in the same network namespace can send to it.
///
/// Dropping it frees the name and ends the connections that were not accepted. It is never told that nobody
/// will connect any more.
pub struct BoundSocket {
    datagrams: Datagrams,
    violations: Cell<Violations>,
}

impl BoundSocket {
    /// The next connection. Whatever else anybody sends is closed, counted and not answered. Dropping the
    /// future loses no connection.
    ///
    /// # Errors
    /// [`AcceptError::Io`]; and [`AcceptError::Gone`] if somebody who holds this very socket (a child that
    /// has inherited it) has shut it down. There is always somebody who could connect.
    pub async fn accept(&self) -> Result<Arrival, AcceptError> {
        loop {
            let judged = match self.datagrams.receive().await {
                Ok(message) => judge(self.reactor(), message, REQUEST),
                Err(ReceiveError::DescriptorsLost(message)) => {
                    Err(Violation::of_what_is_left(message.bytes(), REQUEST, message.descriptors()))
                }
                Err(ReceiveError::Closed) => return Err(AcceptError::Gone),
                Err(ReceiveError::Forked) => return Err(AcceptError::Forked),
                Err(ReceiveError::Io(error)) => return Err(AcceptError::Io(error)),
                // Longer than a packet, and so much longer than nothing.
                Err(_) => Err(Violation::WrongMessage),
            };
            match judged {
                Ok(arrival) => return Ok(arrival),
                Err(violation) => self.count(violation),
            }
        }
    }

    /// Asks for the [process](crate::Who::pidfd) of whoever connects, with each connection accepted from now
    /// on.
    ///
    /// # Errors
    /// The kernel has none (before Linux 6.5).
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        self.datagrams.ask_for_pidfds()
    }

    fn count(&self, violation: Violation) {
        let mut violations = self.violations.get();
        *violation.counter(&mut violations) += 1;
        self.violations.set(violations);
    }

    /// What was sent to the name that was no request.
    pub fn violations(&self) -> Violations {
        self.violations.get()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.datagrams.reactor()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.datagrams.as_fd()
    }
}

impl fmt::Debug for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("datagram::BoundSocket")
            .field("fd", &self.as_fd())
            .field("violations", &self.violations.get())
            .finish()
    }
}

/// The one socket from which all requests of a process, or of several, are sent. It has no name.
///
/// Native Client's processes were started with it, so that their sandbox need not allow `socket`; it lets its
/// holder send to *every* name there is, which is no small thing to give away.
pub struct ServiceSocket {
    datagrams: Datagrams,
}

impl ServiceSocket {
    /// A fresh one.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn new(reactor: &Reactor) -> io::Result<ServiceSocket> {
        Ok(ServiceSocket { datagrams: Datagrams::unbound(reactor)? })
    }

    /// The one that this process was started with.
    ///
    /// # Errors
    /// [`WrapError::WrongKind`] for anything but an AF_UNIX datagram socket, which is closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<ServiceSocket, WrapError> {
        let datagrams = Datagrams::from_fd(reactor, fd).map_err(|_| WrapError::WrongKind)?;
        Ok(ServiceSocket { datagrams })
    }

    /// A duplicate, to be given to a child.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.datagrams.as_fd().try_clone_to_owned()
    }
}

impl fmt::Debug for ServiceSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSocket").field("fd", &self.datagrams.as_fd()).finish()
    }
}

/// What is needed to connect: a name. Unlike [the replacement's](crate::SocketAddress) it is no descriptor,
/// and holding it is no right: whoever guesses or reads it has it too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    token: Token,
}

impl SocketAddress {
    /// Connects: queues a request with whoever has the name, and waits for room (by trying again, since
    /// nobody tells). Success does not mean that anybody has looked at the request, or will, or that it is
    /// who was meant.
    ///
    /// Dropping the future withdraws the request, or leaves a connection that has ended.
    ///
    /// # Errors
    /// See [`ConnectError`]; [`Gone`](ConnectError::Gone) if nobody has the name. In all cases nothing was
    /// sent.
    pub async fn connect(&self, service: &ServiceSocket) -> Result<ConnectedSocket, ConnectError> {
        let (near, request) = request(service)?;
        service.datagrams.send_to(&self.token.name(), request).await?;
        Ok(near)
    }

    /// Connects now, or says why not.
    ///
    /// # Errors
    /// [`ConnectError::WouldBlock`] if the queue is full.
    pub fn try_connect(&self, service: &ServiceSocket) -> Result<ConnectedSocket, ConnectError> {
        let (near, request) = request(service)?;
        service.datagrams.try_send_to(&self.token.name(), request)?;
        Ok(near)
    }

    /// What to tell others.
    pub fn token(&self) -> &Token {
        &self.token
    }
}

/// A fresh connection's near end, and the request with its far end, of which no copy stays here.
fn request(service: &ServiceSocket) -> Result<(ConnectedSocket, Message), ConnectError> {
    let reactor = service.datagrams.reactor();
    let (near, far) = ConnectedSocket::pair(reactor).map_err(ConnectError::from_pair)?;
    Ok((near, Message::from(REQUEST).with_descriptor(Fd::made_here(far))))
}

impl From<Token> for SocketAddress {
    fn from(token: Token) -> SocketAddress {
        SocketAddress { token }
    }
}
