//! The right to connect.
//!
//! A `SocketAddress` owns one copy of an end that others hold too, so it never shuts that end down, and never
//! receives on it. It knows how to ask for a connection; who answers, and whether, it learns only from the
//! connection.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ring::{Message, Reactor, Sleep, Socket};

use crate::{CONFIRM, CONNECT, ConfirmError, ConnectError, ConnectedSocket, WrapError, fitness};

/// The right to connect to whoever holds the [`BoundSocket`](crate::BoundSocket) at the other end.
///
/// In spite of its name, which is Native Client's, it is not an address but a descriptor, and it travels as
/// one:
///
/// ```
/// # use imc::{ConnectedSocket, SocketAddress, bound_socket};
/// # use ring::{Executor, Message, Reactor};
/// # let reactor = Reactor::new()?;
/// # let (near, far) = ConnectedSocket::pair(&reactor)?;
/// # let far = ConnectedSocket::from_fd(&reactor, far)?;
/// # let (bound, address) = bound_socket(&reactor)?;
/// # Executor::new(&reactor).block_on(async {
/// near.send(Message::from("here I am").with_descriptor(address.share()?)).await?;
///
/// let mut message = far.receive().await?;
/// let fd = message.take_descriptor().ok_or("no address")?;
/// let connection = SocketAddress::from_fd(&reactor, fd)?.connect().await?;
/// # let arrival = bound.accept().await?;
/// # connection.send(Message::from("hello")).await?;
/// # assert_eq!(arrival.socket.receive().await?.bytes(), b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Everybody who has got hold of one can pass it on. Dropping it closes this copy only.
pub struct SocketAddress {
    socket: Socket,
}

impl SocketAddress {
    /// Takes a descriptor that is said to be an address. That it is not rather the bound end, or an end of
    /// some connection, cannot be seen; whoever passes it on says what it is.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<SocketAddress, WrapError> {
        let socket = fitness::connected(reactor, fd)?;
        Ok(SocketAddress { socket })
    }

    /// Connects: queues a request with the acceptor, and waits for room if its queue is full.
    ///
    /// Success does not mean that anybody has looked at the request, or will. The connection can be used at
    /// once; what is sent waits in it. Connections asked for at the same time may be accepted in another
    /// order.
    ///
    /// Dropping the future withdraws the request: it is not sent, or arrives as a connection that has ended.
    ///
    /// # Errors
    /// See [`ConnectError`]. In all cases nothing was sent.
    pub async fn connect(&self) -> Result<ConnectedSocket, ConnectError> {
        let (near, request) = self.request()?;
        // One goes at once, without a turn of the reactor. Many together leave together: one by one each of
        // them would wake the acceptor.
        self.socket.send_in_any_order(request).await?;
        Ok(near)
    }

    /// Connects now, or says why not.
    ///
    /// # Errors
    /// [`ConnectError::WouldBlock`] if the acceptor's queue is full, or others here wait for room in it.
    pub fn try_connect(&self) -> Result<ConnectedSocket, ConnectError> {
        let (near, request) = self.request()?;
        self.socket.try_send(request)?;
        Ok(near)
    }

    /// Connects to an acceptor that [confirms](crate::BoundSocket::set_confirming), and waits for that, but
    /// no longer than `within` for everything together.
    ///
    /// Nothing on the wire tells whether an acceptor confirms: this is only for those that are known to. In
    /// turn [`connect`](SocketAddress::connect) to one that does finds the confirmation as the first message.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use imc::{ConfirmError, ConnectedSocket, SocketAddress};
    /// async fn patiently(address: &SocketAddress) -> Result<ConnectedSocket, ConfirmError> {
    ///     match address.connect_confirmed(Duration::from_secs(1)).await {
    ///         // Busy, perhaps. The request still stands, and so we say what we have to say.
    ///         Err(ConfirmError::Unconfirmed(socket)) => Ok(socket),
    ///         result => result,
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// See [`ConfirmError`]. `Unconfirmed` brings the connection, which stays usable. With a `within` that is
    /// over before the next turn of the reactor the request may not have left: `Connect(WouldBlock)`.
    pub async fn connect_confirmed(&self, within: Duration) -> Result<ConnectedSocket, ConfirmError> {
        let mut sleep = self.reactor().sleep(within);
        let near = match before(&mut sleep, self.connect()).await {
            Some(result) => result.map_err(ConfirmError::Connect)?,
            None => return Err(ConfirmError::Connect(ConnectError::WouldBlock)),
        };
        // Of many that left together the acceptor has mostly confirmed all when the first is seen.
        match before(&mut sleep, near.receive_together()).await {
            Some(Ok(message)) if message.bytes() == CONFIRM && message.descriptors() == 0 => Ok(near),
            Some(Ok(_)) => Err(ConfirmError::Malformed),
            Some(Err(error)) => Err(error.into()),
            None => {
                near.expect_confirmation();
                Err(ConfirmError::Unconfirmed(near))
            }
        }
    }

    /// A fresh connection's near end, and the request with its far end. The message owns the only copy: while
    /// we held another, the death of an acceptor that has not read the request would not be seen.
    fn request(&self) -> Result<(ConnectedSocket, Message), ConnectError> {
        let (near, far) = ConnectedSocket::pair(self.reactor()).map_err(ConnectError::from_pair)?;
        Ok((near, Message::from(CONNECT).with_descriptor(self.reactor().made_here(far))))
    }

    /// A duplicate, for another holder: to be sent in a message, or given to a child.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.share()
    }

    /// Another handle to the same address, on the same reactor.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn try_clone(&self) -> io::Result<SocketAddress> {
        let socket = Socket::wrap(self.reactor(), self.share()?).map_err(io::Error::other)?;
        Ok(SocketAddress { socket })
    }

    /// The descriptor itself.
    ///
    /// # Errors
    /// Gives the address back while a request is on its way. [`share`](SocketAddress::share) is always
    /// possible.
    pub fn into_fd(self) -> Result<OwnedFd, SocketAddress> {
        self.socket.into_fd().map_err(|socket| SocketAddress { socket })
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
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

/// What the future ends with, or nothing if the time is over first. With both at once it is the future's:
/// what has been done must not be lost.
async fn before<T>(sleep: &mut Sleep, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep);
    poll_fn(|context| {
        if let Poll::Ready(result) = future.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        sleep.as_mut().poll(context).map(|()| None)
    })
    .await
}
