//! The right to accept.
//!
//! A `BoundSocket` owns the end that never travels, and counts what holders of the address do wrong. It
//! judges the form of a request; whom to serve is for the program. Nothing a peer sends may end its loop.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use ring::{Credentials, Look, Reactor, ReceiveError, Received, SendError, Socket};

use crate::{AcceptError, CONFIRM, CONNECT, ConnectedSocket, WrapError, fitness};

/// The right to accept what connects by the [`SocketAddress`](crate::SocketAddress) at the other end.
///
/// ```
/// # use imc::{AcceptError, BoundSocket};
/// async fn serve(bound: BoundSocket) -> Result<(), AcceptError> {
///     loop {
///         match bound.accept().await {
///             // Dropped: the client reads the end of file.
///             Ok(arrival) if arrival.who.credentials.is_none_or(|who| who.uid != 0) => drop(arrival),
///             Ok(arrival) => println!("{:?} is connected", arrival.who.credentials),
///             Err(AcceptError::Gone) => return Ok(()),
///             Err(error) => return Err(error),
///         }
///     }
/// }
/// ```
///
/// Dropping it makes every further connect fail, and ends the connections that were not accepted.
pub struct BoundSocket {
    socket: Socket,
    /// The kernel's number of the other end, where that was made here.
    address: Option<NonZeroU64>,
    confirming: Cell<bool>,
    /// Once there are some.
    violations: Cell<Option<Box<Violations>>>,
}

/// One connection, and who made it.
#[derive(Debug)]
pub struct Arrival {
    /// The connection.
    pub socket: ConnectedSocket,
    /// Who asked for it.
    pub who: Who,
}

/// Who sent a request to connect, as the kernel tells it, whatever became of the process since.
///
/// That is not the same as `SO_PEERCRED` of the connection, which names whoever made the pair. And it names
/// who *sent*, not who wanted it sent.
#[derive(Debug)]
pub struct Who {
    /// Process, user and group. `None` for a request that was queued before the kernel was asked to tell,
    /// which can happen around [`BoundSocket::from_fd`].
    pub credentials: Option<Credentials>,
    /// The process itself, which cannot be mistaken for a later one of the same number. Readable when it has
    /// ended. `None` unless it is [asked for](BoundSocket::ask_for_pidfds), and without a free descriptor, or
    /// where the process was gone already.
    pub pidfd: Option<OwnedFd>,
}

/// What holders of an address did wrong, by kind. In each case all the descriptors were closed, nothing was
/// answered, and the acceptor read on.
///
/// Empty packets are not here: they never come this far, and are counted in
/// [`ring::Stats::empty_packets`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violations {
    /// Something else than the byte `c` (or, where [datagrams](crate::older::datagram) connect, than
    /// nothing).
    pub wrong_message: u64,
    /// A request without a descriptor.
    pub none: u64,
    /// A request with more than one.
    pub several: u64,
    /// The descriptor was no socket, or O_PATH.
    pub not_a_socket: u64,
    /// A socket of another family than AF_UNIX or of another type than SOCK_SEQPACKET.
    pub wrong_kind: u64,
    /// A listening socket.
    pub listening: u64,
    /// A socket connected to nobody.
    pub unconnected: u64,
    /// The address itself, as far as it is [known](BoundSocket::address_cookie).
    pub own_address: u64,
    /// Descriptors that were lost on their way because *this* process had no room for them, or because a
    /// security module kept them back. Not the sender's fault; it reads the end of file.
    pub lost: u64,
}

impl Violations {
    /// All of them together.
    pub fn total(&self) -> u64 {
        let Violations {
            wrong_message,
            none,
            several,
            not_a_socket,
            wrong_kind,
            listening,
            unconnected,
            own_address,
            lost,
        } = self;
        let unfit = not_a_socket + wrong_kind + listening + unconnected + own_address;
        wrong_message + none + several + unfit + lost
    }
}

impl BoundSocket {
    pub(crate) fn new(socket: Socket) -> BoundSocket {
        // Others hold the other end; this one is ours alone, and those who connect shall see when it goes.
        socket.set_private(true);
        // Asked for now, since a request queued before carries nothing.
        socket.ask_for_credentials();
        BoundSocket { socket, address: None, confirming: Cell::new(false), violations: Cell::default() }
    }

    /// The address of this bound socket was made here, and is this.
    pub(crate) fn with_address(mut self, address: impl AsFd) -> BoundSocket {
        self.address = ring::socket_cookie(address).ok().and_then(NonZeroU64::new);
        self
    }

    /// The kernel's number ([`ring::socket_cookie`]) of the address of this bound socket, if the two were
    /// made together, by [`bound_socket`](crate::bound_socket). A request that brings the address itself as
    /// the connection is a violation: what is said there comes back, and such a connection never ends, since
    /// this bound socket is its other side. Who accepts from several bound sockets compares with the
    /// addresses of all of them.
    pub fn address_cookie(&self) -> Option<u64> {
        self.address.map(NonZeroU64::get)
    }

    /// Takes the bound end that this process was started with. Nobody else may hold it, unless it is
    /// [shared](BoundSocket::set_shared). That it is not rather the address cannot be seen.
    ///
    /// # Errors
    /// Anything but a connected AF_UNIX socket of type SEQPACKET is refused and closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<BoundSocket, WrapError> {
        fitness::connected(reactor, fd).map(BoundSocket::new)
    }

    /// The next connection, in the order in which they were asked for.
    ///
    /// It may have ended by now; then what the client sent before can still be received. Dropping the future
    /// loses no connection.
    ///
    /// # Errors
    /// See [`AcceptError`]. Nothing that one peer sends is an error.
    pub async fn accept(&self) -> Result<Arrival, AcceptError> {
        // Where many are asked for at once the next is here: to look takes less than a turn of the reactor.
        let mut looked = false;
        poll_fn(|context| match std::mem::replace(&mut looked, true) {
            false => self.admit_one(|| self.socket.poll_receive_here(context)),
            true => self.poll_accept(context),
        })
        .await
    }

    /// As [`accept`](BoundSocket::accept), for futures written by hand. One waker is kept for each bound
    /// socket, so only one task at a time can wait.
    ///
    /// # Errors
    /// As `accept`.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<Result<Arrival, AcceptError>> {
        self.admit_one(|| self.socket.poll_receive(context))
    }

    /// As [`accept`](BoundSocket::accept), for a bound socket that is [shared](BoundSocket::set_shared): a
    /// request is taken from the queue only while this is awaited, and only this one.
    ///
    /// # Errors
    /// As `accept`.
    pub async fn accept_one(&self) -> Result<Arrival, AcceptError> {
        let mut look = Look::default();
        poll_fn(|context| self.poll_accept_one(&mut look, context)).await
    }

    /// As [`accept_one`](BoundSocket::accept_one), for futures written by hand. Whoever drops the [`Look`]
    /// stops waiting.
    ///
    /// # Errors
    /// As `accept`.
    pub fn poll_accept_one(
        &self,
        look: &mut Look,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arrival, AcceptError>> {
        self.admit_one(|| self.socket.poll_take_one(look, context))
    }

    /// Receives until a connection or the end has come.
    fn admit_one(
        &self,
        mut receive: impl FnMut() -> Poll<Result<Received, ReceiveError>>,
    ) -> Poll<Result<Arrival, AcceptError>> {
        loop {
            if let Some(accepted) = self.admit(ready!(receive())) {
                return Poll::Ready(accepted);
            }
        }
    }

    /// What came, if it is a connection or the end; anything else is counted.
    fn admit(&self, received: Result<Received, ReceiveError>) -> Option<Result<Arrival, AcceptError>> {
        let judged = match received {
            Ok(message) => {
                judge(self.reactor(), message, CONNECT).and_then(|arrival| self.no_mirror(arrival))
            }
            Err(ReceiveError::Closed) => return Some(Err(AcceptError::Gone)),
            Err(ReceiveError::Forked) => return Some(Err(AcceptError::Forked)),
            Err(ReceiveError::Io(error)) => return Some(Err(AcceptError::Io(error))),
            Err(ReceiveError::DescriptorsLost(message)) => {
                Err(Violation::of_what_is_left(message.bytes(), CONNECT, message.descriptors()))
            }
            // Truncated, and so much longer than one byte.
            Err(_) => Err(Violation::WrongMessage),
        };
        match judged {
            Ok(arrival) => {
                self.confirm(&arrival.socket);
                Some(Ok(arrival))
            }
            Err(violation) => {
                self.count(violation);
                None
            }
        }
    }

    /// The connection, unless it is the address of this very bound socket.
    fn no_mirror(&self, arrival: Arrival) -> Result<Arrival, Violation> {
        let own = self
            .address
            .is_some_and(|own| ring::socket_cookie(&arrival.socket).is_ok_and(|cookie| cookie == own.get()));
        if own {
            // Others hold it too, and it is not to be shut down for them.
            arrival.socket.into_socket().set_private(false);
            return Err(Violation::OwnAddress);
        }
        Ok(arrival)
    }

    /// Says `a` on a fresh connection, in a packet of its own.
    fn confirm(&self, socket: &ConnectedSocket) {
        if !self.confirming.get() {
            return;
        }
        // Other errors say that the connection has ended. It is handed out all the same: there may be
        // something left in it.
        if let Err(SendError::WouldBlock) = socket.try_send(CONFIRM) {
            // The client has filled its own queue before giving it away. The confirmation waits there like
            // any message, and nobody waits for it.
            socket.socket().post_or(&[CONFIRM], Vec::new(), CONFIRM.to_vec());
        }
    }

    fn count(&self, violation: Violation) {
        let mut violations = self.violations.take().unwrap_or_default();
        *violation.counter(&mut violations) += 1;
        self.violations.set(Some(violations));
    }

    /// Asks for the [process](Who::pidfd) of whoever connects, with each connection accepted from now on,
    /// those included that wait in the queue: the kernel has noted who sent them. Not asked for at first,
    /// since it makes a connection a tenth dearer, and the [credentials](Who::credentials) come in any case.
    ///
    /// ```
    /// # use imc::{AcceptError, BoundSocket};
    /// async fn until_it_ends(bound: &BoundSocket) -> Result<(), AcceptError> {
    ///     bound.ask_for_pidfds().map_err(AcceptError::Io)?;
    ///     let arrival = bound.accept().await?;
    ///     // Readable when that process has ended.
    ///     let process = arrival.who.pidfd;
    ///     # let _ = process;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// The kernel has none (before Linux 6.5).
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        self.socket.ask_for_pidfds()
    }

    /// How many requests one turn of the reactor may bring while somebody awaits them, as
    /// [`Socket::set_burst`]. For those who do so much for each that others are not to wait for many.
    ///
    /// ```
    /// # let reactor = ring::Reactor::new()?;
    /// let (bound, _address) = imc::bound_socket(&reactor)?;
    /// bound.set_burst(4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_burst(&self, requests: usize) {
        self.socket.set_burst(requests);
    }

    /// Whether to confirm each connection before handing it out, for clients that
    /// [wait for it](crate::SocketAddress::connect_confirmed). All clients must know. Off at first.
    pub fn set_confirming(&self, confirming: bool) {
        self.confirming.set(confirming);
    }

    /// Whether other processes hold this bound socket too, and accept from it. Then dropping it here is not
    /// the end of it: requests go on waiting for the others. Off at first.
    ///
    /// ```
    /// # use imc::{AcceptError, Arrival, BoundSocket};
    /// // In each of several workers that have inherited one bound socket.
    /// async fn accept_for_me(bound: &BoundSocket) -> Result<Arrival, AcceptError> {
    ///     bound.set_shared(true);
    ///     bound.accept_one().await
    /// }
    /// ```
    pub fn set_shared(&self, shared: bool) {
        self.socket.set_private(!shared);
    }

    /// A duplicate of the bound end, for another process that is to accept from it too. Say
    /// [`set_shared`](BoundSocket::set_shared) on both sides.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.share()
    }

    /// What holders of the address did wrong so far.
    pub fn violations(&self) -> Violations {
        let violations = self.violations.take();
        let counted = violations.as_deref().copied().unwrap_or_default();
        self.violations.set(violations);
        counted
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    /// The descriptor itself, for a child that is to accept. The waiting requests go with it.
    ///
    /// # Errors
    /// Gives the bound socket back while it accepts. A request that nobody awaits any more is asked home by
    /// that: another attempt after a turn succeeds, unless one has arrived, which must be accepted first.
    pub fn into_fd(self) -> Result<OwnedFd, BoundSocket> {
        let BoundSocket { socket, address, confirming, violations } = self;
        socket.into_fd().map_err(|socket| BoundSocket { socket, address, confirming, violations })
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
            .field("violations", &self.violations())
            .finish_non_exhaustive()
    }
}

/// What the message asks for, if it is a request of these bytes. All other descriptors of it are closed with
/// it.
pub(crate) fn judge(reactor: &Reactor, mut message: Received, bytes: &[u8]) -> Result<Arrival, Violation> {
    if message.bytes() != bytes {
        return Err(Violation::WrongMessage);
    }
    if message.descriptors() > 1 {
        return Err(Violation::Several);
    }
    let far = message.take_descriptor().ok_or(Violation::None)?;
    let socket = fitness::connected(reactor, far).map_err(Violation::Unfit)?;
    let who = Who { credentials: known(message.credentials()), pidfd: message.take_pidfd() };
    Ok(Arrival { socket: ConnectedSocket::new(socket), who })
}

/// Why a message is no request.
pub(crate) enum Violation {
    WrongMessage,
    None,
    Several,
    Unfit(WrapError),
    OwnAddress,
    Lost,
}

impl Violation {
    /// Of a message some of whose descriptors did not arrive.
    pub(crate) fn of_what_is_left(bytes: &[u8], request: &[u8], descriptors: usize) -> Violation {
        match descriptors {
            _ if bytes != request => Violation::WrongMessage,
            0 | 1 => Violation::Lost,
            _ => Violation::Several,
        }
    }

    pub(crate) fn counter(self, violations: &mut Violations) -> &mut u64 {
        match self {
            Violation::WrongMessage => &mut violations.wrong_message,
            Violation::None => &mut violations.none,
            Violation::Several => &mut violations.several,
            Violation::Unfit(WrapError::NotASocket) => &mut violations.not_a_socket,
            Violation::Unfit(WrapError::WrongKind) => &mut violations.wrong_kind,
            Violation::Unfit(WrapError::Listening) => &mut violations.listening,
            Violation::Unfit(WrapError::Unconnected) => &mut violations.unconnected,
            Violation::OwnAddress => &mut violations.own_address,
            Violation::Lost => &mut violations.lost,
        }
    }
}

/// What the kernel writes when it did not know yet that it would be asked: no process, and the overflow user,
/// who must not be mistaken for `nobody`.
pub(crate) fn known(credentials: Option<Credentials>) -> Option<Credentials> {
    const OVERFLOW: u32 = 65_534;
    credentials.filter(|who| who.pid != 0 || who.uid != OVERFLOW)
}
