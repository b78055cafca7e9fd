//! Connecting, accepting and closing, across two processes: ours, and the same by bare system calls.
//!
//! The client connects so many times at once and lets go of all; the acceptor accepts each and lets go; when
//! it has done so for a whole batch it says so in one packet, for which the client waits. Where a connection
//! is confirmed, the confirmation is what is waited for. It does not send anything on the connections.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use imc::older::{self, Token, datagram};
use imc::{BoundSocket, SocketAddress};
use ring::{Executor, Reactor, Socket};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, MMsgHdr, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, sockopt,
};

use crate::floor::packet_pair;
use crate::process::{Failure, Order};

/// How two processes come by a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Passing the far end of a pair over an address.
    Replacement,
    /// The same, and waiting for the acceptor's word.
    Confirmed,
    /// By a name: `socket`, `connect`, `accept`.
    Stream,
    /// By a name, to which the far end of a pair is sent.
    Datagram,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 4] = [Way::Replacement, Way::Confirmed, Way::Stream, Way::Datagram];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Way::Replacement => "replacement",
            Way::Confirmed => "confirmed",
            Way::Stream => "stream",
            Way::Datagram => "datagram",
        }
    }

    fn named(name: &str) -> Result<Way, Failure> {
        let way = Way::ALL.into_iter().find(|way| way.name() == name);
        way.ok_or_else(|| format!("{name} is no way to connect").into())
    }
}

/// What bare system calls do about a peer that may be anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Nothing: what is passed is a connection, and closes at once.
    Trusting,
    /// What ours must: the acceptor is told who asks, and asks what it was passed (a socket of that family,
    /// of that type, connected?); and each end is closed when it is known that nothing lies in it.
    Asking,
}

impl Manner {
    fn name(self) -> &'static str {
        match self {
            Manner::Trusting => "trusting",
            Manner::Asking => "asking",
        }
    }
}

/// What an acceptor is told: see [`serve`].
pub fn told(way: Way, depth: usize) -> String {
    format!("{} {depth}", way.name())
}

/// What an acceptor by bare system calls is told: see [`serve_raw`].
pub fn told_raw(way: Way, depth: usize, manner: Manner) -> String {
    format!("{} {}", told(way, depth), manner.name())
}

fn heard(told: &str) -> Result<(Way, usize), Failure> {
    let (way, depth) = told.split_once(' ').ok_or("a way and a depth")?;
    Ok((Way::named(way)?, depth.parse()?))
}

fn heard_raw(told: &str) -> Result<(Way, usize, Manner), Failure> {
    let (told, manner) = told.rsplit_once(' ').ok_or("a way, a depth and a manner")?;
    let known = [Manner::Trusting, Manner::Asking].into_iter().find(|known| known.name() == manner);
    let (way, depth) = heard(told)?;
    Ok((way, depth, known.ok_or_else(|| format!("{manner} is no manner"))?))
}

/// Who accepts: see [`serve`].
pub const ACCEPTOR: &str = "acceptor";
/// Who accepts by bare system calls: see [`serve_raw`].
pub const RAW_ACCEPTOR: &str = "raw acceptor";

/// How many requests may wait in a backlog: as many as a batch has.
const BACKLOG: u16 = 64;

/// How long a confirmation may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(10);

// -- ours --------------------------------------------------------------------------------------------------

/// The acceptor: on the first descriptor it says what is to be said, and where it has one, the second is its
/// bound socket. It ends when the first is closed by the other side.
///
/// # Errors
/// The first of anything.
pub fn serve(order: Order) -> Result<(), Failure> {
    let (way, depth) = heard(&order.told)?;
    let reactor = order.reactor()?;
    let mut given = order.given.into_iter();
    let control = given.next().ok_or("no control socket")?;
    let control = Socket::wrap(&reactor, control)?;
    let executor = Executor::new(&reactor);
    let accepting = async {
        match way {
            Way::Replacement | Way::Confirmed => {
                let bound = BoundSocket::from_fd(&reactor, given.next().ok_or("no bound socket")?)?;
                bound.set_confirming(way == Way::Confirmed);
                let confirms = way == Way::Confirmed;
                loop {
                    for _ in 0..depth {
                        match bound.accept().await {
                            Ok(arrival) => drop(arrival),
                            Err(imc::AcceptError::Gone) => return Ok(()),
                            Err(error) => return Err(error.into()),
                        }
                    }
                    if !confirms {
                        control.send("all").await?;
                    }
                }
            }
            Way::Stream => {
                let (bound, address) = older::stream::bound_socket(&reactor, BACKLOG)?;
                control.send(address.token().characters()).await?;
                loop {
                    for _ in 0..depth {
                        bound.accept().await?;
                    }
                    control.send("all").await?;
                }
            }
            Way::Datagram => {
                let (bound, address) = datagram::bound_socket(&reactor)?;
                control.send(address.token().characters()).await?;
                loop {
                    for _ in 0..depth {
                        bound.accept().await?;
                    }
                    control.send("all").await?;
                }
            }
        }
    };
    executor.block_on(async {
        match select(std::pin::pin!(accepting), std::pin::pin!(control.hung_up())).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Ok(()),
        }
    })
}

/// The client.
pub struct Client {
    executor: Executor,
    control: Socket,
    connecting: Connecting,
    depth: usize,
}

enum Connecting {
    Replacement(SocketAddress),
    Confirmed(SocketAddress),
    Stream(older::stream::SocketAddress),
    Datagram(datagram::SocketAddress, datagram::ServiceSocket),
}

/// What a client and its acceptor need of each other: the client's end, and the acceptor's descriptors.
///
/// # Errors
/// The kernel's.
pub fn ends(way: Way) -> Result<(Vec<OwnedFd>, Vec<OwnedFd>), Failure> {
    let (near, far) = packet_pair()?;
    let (mut here, mut there) = (vec![near], vec![far]);
    if matches!(way, Way::Replacement | Way::Confirmed) {
        let (address, bound) = packet_pair()?;
        here.push(address);
        there.push(bound);
    }
    Ok((here, there))
}

impl Client {
    /// On the client's [`ends`], with the acceptor started.
    ///
    /// # Errors
    /// The first of anything; the acceptor has ended.
    pub fn new(reactor: &Reactor, way: Way, depth: usize, ends: Vec<OwnedFd>) -> Result<Client, Failure> {
        let executor = Executor::new(reactor);
        let mut ends = ends.into_iter();
        let control = Socket::wrap(reactor, ends.next().ok_or("no control socket")?)?;
        let mut address = || ends.next().ok_or("no address");
        let token = || -> Result<Token, Failure> {
            let said = executor.block_on(control.receive())?;
            Ok(Token::new(String::from_utf8_lossy(said.bytes()))?)
        };
        let connecting = match way {
            Way::Replacement => Connecting::Replacement(SocketAddress::from_fd(reactor, address()?)?),
            Way::Confirmed => Connecting::Confirmed(SocketAddress::from_fd(reactor, address()?)?),
            Way::Stream => Connecting::Stream(token()?.into()),
            Way::Datagram => Connecting::Datagram(token()?.into(), datagram::ServiceSocket::new(reactor)?),
        };
        Ok(Client { executor, control, connecting, depth })
    }

    /// Connects so many batches.
    ///
    /// # Errors
    /// The first of anything; the acceptor has ended.
    pub fn batches(&mut self, count: u64) -> Result<(), Failure> {
        let Client { executor, control, connecting, depth } = self;
        executor.block_on(async {
            for _ in 0..count {
                connecting.connect_all(executor.reactor(), *depth).await?;
                if !matches!(connecting, Connecting::Confirmed(_)) {
                    control.receive().await?;
                }
            }
            Ok(())
        })
    }

    /// Lets go of everything.
    pub fn end(self) {
        let Client { executor, control, connecting, .. } = self;
        drop((control, connecting));
        executor.settle();
    }
}

impl Connecting {
    async fn connect_all(&self, reactor: &Reactor, depth: usize) -> Result<(), Failure> {
        match self {
            Connecting::Replacement(address) => all(depth, || address.connect()).await,
            Connecting::Confirmed(address) => all(depth, || address.connect_confirmed(PATIENCE)).await,
            Connecting::Stream(address) => all(depth, || address.connect(reactor)).await,
            Connecting::Datagram(address, service) => all(depth, || address.connect(service)).await,
        }
    }
}

/// So many at once, all of which are held until the last is there.
async fn all<T, E, F>(depth: usize, one: impl Fn() -> F) -> Result<(), Failure>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    if depth == 1 {
        return Ok(one().await.map(drop)?);
    }
    // More than 30 joined would each be kept in a task of its own, which takes a tenth of what a client does.
    const JOINED_MAX: usize = 16;
    let group = |first| join_all((first..depth.min(first + JOINED_MAX)).map(|_| one()));
    let held = join_all((0..depth).step_by(JOINED_MAX).map(group)).await;
    held.into_iter().flatten().try_for_each(|connection| Ok(connection.map(drop)?))
}

// -- bare system calls -------------------------------------------------------------------------------------

/// The acceptor by bare system calls. It ends when the socket it accepts on is shut down, or when nobody
/// holds the other end of it.
///
/// # Errors
/// The kernel's.
pub fn serve_raw(mut order: Order) -> Result<(), Failure> {
    let (way, depth, manner) = heard_raw(&order.told)?;
    let [control, bound] = order.take()?;
    if manner == Manner::Asking {
        sockopt::set_socket_passcred(&bound, true)?;
    }
    let mut accepted = Vec::with_capacity(depth);
    loop {
        for _ in 0..depth {
            let near = match way {
                // Shut down.
                Way::Stream => match accept_with(&bound, SocketFlags::CLOEXEC) {
                    Err(Errno::INVAL) => return Ok(()),
                    accepted => Some(accepted?),
                },
                Way::Replacement | Way::Confirmed | Way::Datagram => receive_one(bound.as_fd())?,
            };
            let Some(near) = near else { return Ok(()) };
            if manner == Manner::Asking {
                judge(near.as_fd())?;
            }
            if way == Way::Confirmed {
                rustix::net::send(&near, b"a", SendFlags::NOSIGNAL)?;
            }
            // A socket closed while others are in flight calls the kernel's collector of those.
            if way != Way::Stream {
                accepted.push(near);
            }
        }
        close_all(&mut accepted, manner)?;
        if way != Way::Confirmed {
            rustix::net::send(&control, b"all", SendFlags::NOSIGNAL)?;
        }
    }
}

/// The client by bare system calls.
pub struct RawClient {
    way: Way,
    depth: usize,
    manner: Manner,
    control: OwnedFd,
    /// Where requests go: an address, or a socket to send from.
    over: OwnedFd,
    /// Where the acceptor listens, where it has a name: and the acceptor's own socket, to be shut down.
    named: Option<(SocketAddrUnix, OwnedFd)>,
    held: Vec<OwnedFd>,
    /// Far ends, until all of them have been sent.
    sent: Vec<OwnedFd>,
}

impl RawClient {
    /// A client, and the descriptors of its acceptor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(way: Way, depth: usize, manner: Manner) -> Result<(RawClient, Vec<OwnedFd>), Failure> {
        let (control, far) = packet_pair()?;
        let (over, bound, named) = match way {
            Way::Replacement | Way::Confirmed => {
                let (address, bound) = packet_pair()?;
                (address, bound, None)
            }
            Way::Stream | Way::Datagram => {
                let kind = if way == Way::Stream { SocketType::STREAM } else { SocketType::DGRAM };
                let bound = socket(kind)?;
                let token = Token::random()?;
                let name = format!("sendright-benches-{}", token.characters());
                let name = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
                rustix::net::bind(&bound, &name)?;
                if way == Way::Stream {
                    rustix::net::listen(&bound, BACKLOG.into())?;
                }
                let kept = bound.try_clone()?;
                (socket(SocketType::DGRAM)?, bound, Some((name, kept)))
            }
        };
        let (held, sent) = (Vec::with_capacity(depth), Vec::with_capacity(depth));
        Ok((RawClient { way, depth, manner, control, over, named, held, sent }, vec![far, bound]))
    }

    /// Connects so many batches.
    ///
    /// # Errors
    /// The kernel's; the acceptor has ended.
    pub fn batches(&mut self, count: u64) -> Result<(), Failure> {
        for _ in 0..count {
            match self.way {
                Way::Replacement | Way::Confirmed => self.replace_all()?,
                Way::Stream | Way::Datagram => {
                    for _ in 0..self.depth {
                        let near = self.connect()?;
                        self.held.push(near);
                    }
                }
            }
            match self.way {
                Way::Confirmed => self.held.iter().try_for_each(|near| hear(near.as_fd()))?,
                _ => hear(self.control.as_fd())?,
            }
            close_all(&mut self.held, self.manner)?;
        }
        Ok(())
    }

    /// In the order that takes least by plain system calls: all pairs first, then all requests together, and
    /// only then are the ends closed that were sent. One after the other takes a fifth longer.
    fn replace_all(&mut self) -> Result<(), Failure> {
        for _ in 0..self.depth {
            let (near, far) = packet_pair()?;
            self.held.push(near);
            self.sent.push(far);
        }
        send_requests(self.over.as_fd(), &self.sent)?;
        self.sent.clear();
        Ok(())
    }

    fn connect(&self) -> Result<OwnedFd, Failure> {
        match (self.way, &self.named) {
            (Way::Stream, Some((name, _))) => {
                let near = socket(SocketType::STREAM)?;
                rustix::net::connect(&near, name)?;
                Ok(near)
            }
            (Way::Datagram, Some((name, _))) => {
                let (near, far) = packet_pair()?;
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let far = [far.as_fd()];
                control.push(SendAncillaryMessage::ScmRights(&far));
                rustix::net::sendmsg_addr(
                    &self.over,
                    name,
                    &[IoSlice::new(&[])],
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?;
                Ok(near)
            }
            _ => Err("only a name is connected to one by one".into()),
        }
    }

    /// Lets go of everything.
    pub fn end(self) {
        if let Some((_, bound)) = &self.named {
            // If it is refused, the acceptor will be reported as one that does not end.
            let _ = rustix::net::shutdown(bound, Shutdown::Both);
        }
    }
}

/// Requests to connect, one with each of these, by one system call.
fn send_requests(over: BorrowedFd<'_>, far: &[OwnedFd]) -> Result<(), Failure> {
    let byte = [IoSlice::new(b"c")];
    let far: Vec<_> = far.iter().map(|far| [far.as_fd()]).collect();
    let mut spaces = vec![[MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]; far.len()];
    let mut controls: Vec<_> = spaces.iter_mut().map(|space| SendAncillaryBuffer::new(space)).collect();
    for (control, far) in controls.iter_mut().zip(&far) {
        control.push(SendAncillaryMessage::ScmRights(far));
    }
    let mut requests: Vec<_> = controls.iter_mut().map(|control| MMsgHdr::new(&byte, control)).collect();
    let mut left = requests.as_mut_slice();
    while !left.is_empty() {
        let sent = rustix::net::sendmmsg(over, left, SendFlags::NOSIGNAL)?;
        left = &mut left[sent..];
    }
    Ok(())
}

/// What has to be known of a descriptor that a stranger has passed: that it is a connection.
fn judge(passed: BorrowedFd<'_>) -> Result<(), Failure> {
    let fits = sockopt::socket_domain(passed)? == AddressFamily::UNIX
        && sockopt::socket_type(passed)? == SocketType::SEQPACKET;
    rustix::net::getpeername(passed)?;
    if fits { Ok(()) } else { Err("something else than a connection was passed".into()) }
}

/// Closes all of these ends; in the manner of [`Manner::Asking`] each when nothing more can come and nothing
/// is there, which only credentials tell from an empty packet.
fn close_all(ends: &mut Vec<OwnedFd>, manner: Manner) -> Result<(), Failure> {
    if manner == Manner::Asking {
        // As many as a packet may bring.
        const DESCRIPTORS_MAX: usize = 253;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        for end in &*ends {
            sockopt::set_socket_passcred(end, true)?;
            rustix::net::shutdown(end, Shutdown::Both)?;
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0; 1];
            let found = rustix::net::recvmsg(end, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
            if found.bytes > 0 || control.drain().next().is_some() {
                return Err("something was left in a connection".into());
            }
        }
    }
    ends.clear();
    Ok(())
}

fn socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// One packet; none at the end.
fn hear(socket: BorrowedFd<'_>) -> Result<(), Failure> {
    match rustix::net::recv(socket, &mut [0; 16], RecvFlags::empty())? {
        (0, _) => Err("the acceptor has gone".into()),
        _ => Ok(()),
    }
}

/// The descriptor of a request; none at the end.
fn receive_one(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let mut room = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}
