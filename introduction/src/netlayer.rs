//! A program's side: registered with servers, asking for others, and being asked for.
//!
//! Owns the connections to servers and what has arrived over them and has not been taken. A connection to
//! another peer, once handed out, is the program's own and outlives everything here.

mod link;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use imc::ConnectedSocket;
use link::{Answer, Link, shake_hands};
use ring::{Companion, Fd, Kind, Reactor, Socket, discard};
use slab::Slab;
use thiserror::Error;

use crate::blur::blurred;
use crate::identity::Identity;
use crate::inlet::Come;
use crate::locator::{Hints, Locator, Proof, PublicKey, SERVERS_MAX};
use crate::proof;
use crate::reading::{Ended, Reading, TURN_RECORDS_MAX, connected};
use crate::record::{Form, Outcome, Record, asker};
use crate::signal::{Signal, before};
use crate::statement::Between;

/// How a netlayer behaves, and its limits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NetlayerOptions {
    /// Whether connections over SEQPACKET pairs are welcome. Our locator then says so. Default true.
    pub seqpacket: bool,
    /// Whether everybody who connects must prove who they are on the connection itself, as we do; our locator
    /// then says so. It keeps Goblins out. Default [`Proof::None`].
    pub proof: Proof,
    /// Whose connections are taken. Default: everybody's.
    pub welcome: Welcome,
    /// Connections that have arrived and that nobody has taken, those that are being proved included. Default
    /// 64. Beyond it further ones are refused.
    pub incoming_max: usize,
    /// How many of these one key may have. Default 8, so that several others can still connect. Beyond it
    /// further ones are refused.
    pub incoming_of_key_max: usize,
    /// Servers at the same time. Default 32, as many as a locator names, and never more.
    pub servers_max: usize,
    /// Introductions that wait to be sent to a server. Default 256, at most 512. Beyond it
    /// [`ConnectError::Busy`].
    pub asking_max: usize,
    /// How long a server may take for the registration. Default 5 s.
    pub handshake_time: Duration,
    /// How long a record of a server may take once it has begun, its descriptor included. Default 5 s.
    pub record_time: Duration,
    /// How long a connection that has arrived is kept for somebody to take it, and one that is refused before
    /// it is closed, and up to a tenth more. Default 10 s: as long as a server keeps what it cannot deliver,
    /// so that those who ask cannot tell the one from the other.
    pub incoming_time: Duration,
    /// How long whoever connects waits for a proof or a confirmation. Default 15 s.
    pub connect_time: Duration,
}

impl Default for NetlayerOptions {
    fn default() -> NetlayerOptions {
        NetlayerOptions {
            seqpacket: true,
            proof: Proof::None,
            welcome: Welcome::Everybody,
            incoming_max: 64,
            incoming_of_key_max: 8,
            servers_max: SERVERS_MAX,
            asking_max: 256,
            handshake_time: Duration::from_secs(5),
            record_time: Duration::from_secs(5),
            incoming_time: Duration::from_secs(10),
            connect_time: Duration::from_secs(15),
        }
    }
}

/// Whose connections a netlayer takes.
///
/// To anybody else it is as if we were not there: nothing that comes is read or answered, not even where a
/// [proof](NetlayerOptions::proof) is demanded, and all of it is closed when its time is over. With a proof
/// to refuse what has [arrived](Netlayer::incoming) would be too late for that: to prove who we are is to
/// show that we are here.
///
/// ```
/// use introduction::{Identity, NetlayerOptions, Proof, Welcome};
///
/// let friend = Identity::generate()?.key();
/// let mut options = NetlayerOptions::default();
/// options.proof = Proof::Required;
/// options.welcome = Welcome::Keys([friend].into());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Welcome {
    /// Everybody's.
    #[default]
    Everybody,
    /// Those of whoever the server says holds one of these keys. A dishonest server can have anybody listened
    /// to; where a proof is demanded, none but these are let in all the same.
    Keys(BTreeSet<PublicKey>),
}

impl Welcome {
    fn is_for(&self, key: &PublicKey) -> bool {
        match self {
            Welcome::Everybody => true,
            Welcome::Keys(keys) => keys.contains(key),
        }
    }
}

/// What is expected of a server.
///
/// ```
/// use introduction::{Expect, Identity};
///
/// let key = Identity::generate()?.key();
/// // This server, and nothing signed that another could use.
/// let expect = Expect::key(key).bound();
/// assert!(expect.key == Some(key) && expect.bound);
/// // Whoever it is, one of Goblins included.
/// assert_eq!(Expect::default().key, None);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Expect {
    /// Its key. Another one is refused before anything is signed.
    ///
    /// It keeps apart the servers that a program is connected to. It does not show that nobody stands in
    /// between: servers sign any challenge, so whoever holds the other end of our stream, and can reach the
    /// server, can have ours signed there. That the stream leads to the server has to be known from where it
    /// came: a path that only the server can bind, or whoever passed it to us. A
    /// [proof](NetlayerOptions::proof) needs no such knowledge.
    pub key: Option<PublicKey>,
    /// That it speaks the extension, so that what we sign is of use with the server of that key only. A
    /// server that has a key of its own cannot register in our name elsewhere; whoever passes on all that
    /// both sides say, keys included, only gets us registered where we wanted to be, on its connection. Keeps
    /// Goblins' servers out.
    pub bound: bool,
}

impl Expect {
    /// A server of this key.
    pub fn key(key: PublicKey) -> Expect {
        Expect { key: Some(key), bound: false }
    }

    /// The same, and what is signed must be for it alone.
    #[must_use]
    pub fn bound(mut self) -> Expect {
        self.bound = true;
        self
    }
}

/// No registration with a server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddServerError {
    /// Not a connected AF_UNIX stream. It is closed.
    #[error("not a connected AF_UNIX stream")]
    NotAStream,
    /// The server has closed the connection, before anything of ours was signed or after.
    #[error("the server has closed the connection")]
    Closed,
    /// The server did not answer in time.
    #[error("the server did not answer in time")]
    Late,
    /// The server said something else than it should, or its signature is not that of its key. Nothing was
    /// signed.
    #[error("the server said something else than it should")]
    Malformed,
    /// It is not the server that was expected, but this one. Nothing was signed.
    #[error("not the server that was expected but {0}")]
    Unexpected(PublicKey),
    /// The server would take a signature that is good for other servers too. Nothing was signed.
    #[error("the server does not speak the extension that binds a signature to it")]
    NotBound,
    /// As many servers as there may be.
    #[error("too many servers")]
    Full,
    /// What the kernel said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// No connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// We are registered with none of the servers that the locator names. Nothing was sent.
    #[error("no server in common")]
    NoServer,
    /// The locator demands a proof of a kind that is not known here. Nothing was sent.
    #[error("the locator demands a proof of an unknown kind")]
    UnknownProof,
    /// The locator names more than [`SERVERS_MAX`] servers: it was put together here, and nobody would read
    /// it. Nothing was sent.
    #[error("the locator names too many servers")]
    TooManyServers,
    /// Too many introductions wait for this server already. Nothing was sent.
    #[error("too many introductions wait for the server")]
    Busy,
    /// The server disconnected before the end was known. The peer may have got the connection; it is closed.
    #[error("the server disconnected")]
    Disconnected,
    /// Nobody has answered in time: the peer is not there, does not want to, or is busy. The connection is
    /// closed.
    #[error("nobody has answered in time")]
    Unanswered,
    /// The peer has refused, or may not be reached by us.
    #[error("refused")]
    Refused,
    /// Nobody of that key is registered.
    #[error("nobody of that key is registered")]
    Unknown,
    /// The server does not confirm. The connection is as good as any that is not confirmed.
    #[error("the server does not confirm")]
    Unconfirmed(Connection),
    /// Whoever is at the other end could not prove to be who was asked for. The connection is closed, and
    /// nothing was said on it.
    #[error("whoever is at the other end is not who was asked for")]
    NotProved,
    /// What the kernel said: no descriptors left. Nothing was sent; or, where a proof is demanded, the peer
    /// has answered and there was no room for the descriptor that it sent. The connection is closed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection to another peer. The server has no part in it any more.
#[derive(Debug)]
#[non_exhaustive]
pub enum Connection {
    /// Bytes, as every peer of this protocol can speak.
    Stream(Socket),
    /// Messages and descriptors, between two that both welcome them.
    SeqPacket(ConnectedSocket),
}

impl Connection {
    fn new(reactor: &Reactor, fd: OwnedFd, kind: Kind) -> Option<Connection> {
        match kind {
            Kind::SeqPacket => ConnectedSocket::from_fd(reactor, fd).ok().map(Connection::SeqPacket),
            Kind::Stream => {
                let socket = Socket::wrap(reactor, fd).ok()?;
                socket.set_private(true);
                Some(Connection::Stream(socket))
            }
        }
    }

    /// Bytes, if that is what it is.
    pub fn into_stream(self) -> Option<Socket> {
        match self {
            Connection::Stream(socket) => Some(socket),
            Connection::SeqPacket(_) => None,
        }
    }

    /// Messages and descriptors, if that is what it is.
    pub fn into_seqpacket(self) -> Option<ConnectedSocket> {
        match self {
            Connection::SeqPacket(socket) => Some(socket),
            Connection::Stream(_) => None,
        }
    }

    fn into_fd(self) -> Option<OwnedFd> {
        match self {
            Connection::Stream(socket) => socket.into_fd().ok(),
            Connection::SeqPacket(socket) => socket.into_fd().ok(),
        }
    }
}

/// A program among others: one identity, several servers. It works as long as the reactor's turns are taken,
/// whoever takes them.
///
/// ```
/// use introduction::{Connection, Expect, Identity, Netlayer, Server, ServerOptions};
/// use ring::{Executor, Kind, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let server = Server::new(&reactor, Identity::generate()?, ServerOptions::default());
/// let connect = || -> std::io::Result<_> {
///     let (near, far) = Socket::pair(&reactor, Kind::Stream)?;
///     server.admit(far).expect("a stream");
///     Ok(near.into_fd().expect("idle"))
/// };
/// Executor::new(&reactor).block_on(async {
///     let anne = Netlayer::new(&reactor, Identity::generate()?);
///     let bert = Netlayer::new(&reactor, Identity::generate()?);
///     // These futures end when the server has disconnected.
///     let _annes = anne.add_server(connect()?, Expect::key(server.key())).await?;
///     let _berts = bert.add_server(connect()?, Expect::key(server.key())).await?;
///
///     // What Anne has to know of Bert, as text if she likes.
///     let locator = bert.our_location().to_string();
///     let connection = anne.connect(&locator.parse()?).await?;
///
///     let incoming = bert.incoming().await;
///     assert_eq!(incoming.from().key, anne.key());
///     let Connection::SeqPacket(theirs) = incoming.accept() else { return Err("of the other kind".into()) };
///     let Connection::SeqPacket(ours) = connection else { return Err("of the other kind".into()) };
///     ours.send("hello").await?;
///     assert_eq!(theirs.receive().await?.bytes(), b"hello");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Netlayer {
    shared: Rc<Shared>,
    _clock: Companion,
}

struct Shared {
    reactor: Reactor,
    identity: Identity,
    options: NetlayerOptions,
    welcome: RefCell<Welcome>,
    state: RefCell<State>,
    /// Something has arrived for the program.
    arrived: Signal,
    /// Something new is to be closed at some time.
    tick: Signal,
}

#[derive(Default)]
struct State {
    links: BTreeMap<PublicKey, Rc<Link>>,
    /// The tasks of each link, which end with it.
    tasks: BTreeMap<PublicKey, Vec<Companion>>,
    incoming: VecDeque<Arrived>,
    /// Tasks that prove who is at both ends.
    proving: Slab<(PublicKey, Option<Companion>)>,
    /// Refused, and kept open until their time is over.
    refused: VecDeque<(Instant, Fd)>,
}

struct Arrived {
    from: Locator,
    link: Rc<Link>,
    number: Option<u64>,
    is_proved: bool,
    connection: Connection,
    deadline: Instant,
}

/// A connection that somebody has asked for. Dropped, it is refused.
///
/// ```no_run
/// # async fn serve(netlayer: introduction::Netlayer, friend: introduction::PublicKey) {
/// use introduction::Connection;
///
/// loop {
///     let incoming = netlayer.incoming().await;
///     if incoming.from().key != friend {
///         // It is closed after a while, as if nobody were here.
///         incoming.refuse();
///         continue;
///     }
///     match incoming.accept() {
///         Connection::SeqPacket(socket) => println!("messages and descriptors over {socket:?}"),
///         Connection::Stream(socket) => println!("bytes over {socket:?}"),
///         other => println!("something new: {other:?}"),
///     }
/// }
/// # }
/// ```
pub struct Incoming {
    shared: Rc<Shared>,
    arrived: Option<Arrived>,
}

/// Ends when a server has disconnected. Made by [`Netlayer::add_server`]; dropping it changes nothing.
#[must_use = "awaited, it tells when the server is gone"]
pub struct Disconnected {
    link: Rc<Link>,
    wait: Pin<Box<dyn Future<Output = ()>>>,
}

impl Netlayer {
    /// A netlayer as most want it.
    pub fn new(reactor: &Reactor, identity: Identity) -> Netlayer {
        Netlayer::with_options(reactor, identity, NetlayerOptions::default())
    }

    /// A netlayer as asked for.
    pub fn with_options(reactor: &Reactor, identity: Identity, options: NetlayerOptions) -> Netlayer {
        let shared = Rc::new(Shared {
            reactor: reactor.clone(),
            identity,
            welcome: RefCell::new(options.welcome.clone()),
            options,
            state: RefCell::default(),
            arrived: Signal::default(),
            tick: Signal::default(),
        });
        let clock = reactor.companion(watch_the_clock(Rc::clone(&shared)));
        Netlayer { shared, _clock: clock }
    }

    /// Who we are.
    pub fn key(&self) -> PublicKey {
        self.shared.identity.key()
    }

    /// Where we are to be found, at this moment: with the servers we are registered with.
    pub fn our_location(&self) -> Locator {
        self.shared.our_location()
    }

    /// Registers with the server at the other end of a connected stream. How it was connected, or inherited,
    /// is the program's business.
    ///
    /// Ends when we are registered, as far as a peer can know: servers confirm nothing. The future that it
    /// gives ends when the server has disconnected; other servers, and all connections to peers, are not
    /// concerned by that, and the server can be added again. A server that is added while we are still
    /// connected to it takes the place of the old connection.
    ///
    /// # Errors
    /// See [`AddServerError`]. The descriptor is closed.
    pub async fn add_server(&self, fd: OwnedFd, expect: Expect) -> Result<Disconnected, AddServerError> {
        let shared = &self.shared;
        let socket = match connected(&shared.reactor, Fd::from(fd)) {
            Some((fd, Kind::Stream)) => {
                Socket::wrap(&shared.reactor, fd).map_err(|_| AddServerError::NotAStream)?
            }
            Some((fd, Kind::SeqPacket)) => {
                discard(fd);
                return Err(AddServerError::NotAStream);
            }
            None => return Err(AddServerError::NotAStream),
        };
        socket.set_private(true);
        let record_time = shared.options.record_time;
        let mut reading = Reading::new(&socket, record_time, TURN_RECORDS_MAX, Rc::default());
        let time = shared.options.handshake_time;
        let greeted = shake_hands(&shared.identity, &socket, &mut reading, expect, time).await?;
        let is_full = {
            let links = &shared.state.borrow().links;
            links.len() >= shared.options.servers_max.min(SERVERS_MAX) && !links.contains_key(&greeted.server)
        };
        if is_full {
            return Err(AddServerError::Full);
        }
        let link = Rc::new(Link::new(socket, &greeted));
        shared.lose(&greeted.server, None);
        let reader = shared.reactor.companion(read_from(Rc::clone(shared), Rc::clone(&link), reading));
        let writer = shared.reactor.companion(link::write_to(Rc::clone(&link)));
        let mut state = shared.state.borrow_mut();
        state.links.insert(link.server, Rc::clone(&link));
        state.tasks.insert(link.server, vec![reader, writer]);
        drop(state);
        Ok(Disconnected::new(link))
    }

    /// From now on takes the connections of these. What has arrived already is not concerned.
    pub fn set_welcome(&self, welcome: Welcome) {
        self.shared.welcome.replace(welcome);
    }

    /// Leaves a server. Connections to peers are not concerned.
    pub fn remove_server(&self, server: &PublicKey) {
        self.shared.lose(server, None);
    }

    /// Asks to be introduced, and gives our end of the connection. It is the first server of the locator that
    /// is asked with which we are registered.
    ///
    /// Where the locator demands a proof of identity, it ends when both sides have proved who they are, and
    /// there is no connection without. Otherwise success means only that somebody was asked: what is said
    /// waits in the connection, and if nobody takes it we read the end of file, 10 s later at most. It is of
    /// SEQPACKET where the locator welcomes that, and a stream otherwise.
    ///
    /// # Errors
    /// See [`ConnectError`]; only a demanded proof can be `Unanswered`, `NotProved` or `Disconnected`.
    pub async fn connect(&self, locator: &Locator) -> Result<Connection, ConnectError> {
        let link = self.shared.link_to(locator)?;
        match locator.hints.proof {
            Proof::Unknown => Err(ConnectError::UnknownProof),
            Proof::Required => self.connect_proved(locator, &link, None).await,
            Proof::None => self.ask(locator, &link, None),
        }
    }

    /// As [`connect`](Netlayer::connect), and waits until the server says that the peer has taken the
    /// connection.
    ///
    /// ```no_run
    /// # async fn find(netlayer: introduction::Netlayer, locator: introduction::Locator) {
    /// use introduction::ConnectError;
    ///
    /// match netlayer.connect_confirmed(&locator).await {
    ///     Ok(connection) => println!("taken: {connection:?}"),
    ///     Err(ConnectError::Unconfirmed(connection)) => println!("as good as any: {connection:?}"),
    ///     // Not there, not willing or busy: nobody can tell.
    ///     Err(ConnectError::Unanswered) => println!("nobody"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ConnectError`]. With a server that does not confirm, `Unconfirmed` has the connection.
    pub async fn connect_confirmed(&self, locator: &Locator) -> Result<Connection, ConnectError> {
        let link = self.shared.link_to(locator)?;
        if locator.hints.proof == Proof::Unknown {
            return Err(ConnectError::UnknownProof);
        }
        if !link.is_extended {
            return self.connect(locator).await.and_then(|it| Err(ConnectError::Unconfirmed(it)));
        }
        let answer = Rc::new(Answer::default());
        let connecting = async {
            match locator.hints.proof {
                Proof::Required => self.connect_proved(locator, &link, Some(&answer)).await,
                _ => self.ask(locator, &link, Some(&answer)),
            }
        };
        let connection = connecting.await?;
        let moment = self.shared.reactor.now() + self.shared.options.connect_time;
        match before(&self.shared.reactor, moment, answer.wait()).await {
            Some(Some(Outcome::Accepted)) => Ok(connection),
            Some(Some(Outcome::Refused)) => Err(ConnectError::Refused),
            Some(Some(Outcome::Unknown)) => Err(ConnectError::Unknown),
            Some(Some(Outcome::Unanswered)) | None => Err(ConnectError::Unanswered),
            Some(None) => Err(ConnectError::Disconnected),
        }
    }

    fn ask(
        &self,
        locator: &Locator,
        link: &Rc<Link>,
        answer: Option<&Rc<Answer>>,
    ) -> Result<Connection, ConnectError> {
        let kind = if locator.hints.seqpacket { Kind::SeqPacket } else { Kind::Stream };
        let (near, far) = Socket::pair(&self.shared.reactor, kind)?;
        self.post(self.our_location(), locator, link, far, answer)?;
        match kind {
            Kind::Stream => Ok(Connection::Stream(near)),
            Kind::SeqPacket => {
                let fd = near.into_fd().map_err(|_| io::Error::other("a fresh socket is idle"))?;
                let socket = ConnectedSocket::from_fd(&self.shared.reactor, fd).map_err(io::Error::other)?;
                Ok(Connection::SeqPacket(socket))
            }
        }
    }

    fn post(
        &self,
        from: Locator,
        locator: &Locator,
        link: &Rc<Link>,
        far: OwnedFd,
        answer: Option<&Rc<Answer>>,
    ) -> Result<(), ConnectError> {
        if link.unsent() >= self.shared.options.asking_max.min(link::ASKING_MAX) {
            return Err(ConnectError::Busy);
        }
        let record =
            Record::NewConnection { from, to: locator.clone(), number: None }.to_bytes(Form::Goblins);
        link.ask(record, Fd::made_here(far), answer);
        Ok(())
    }

    async fn connect_proved(
        &self,
        locator: &Locator,
        link: &Rc<Link>,
        answer: Option<&Rc<Answer>>,
    ) -> Result<Connection, ConnectError> {
        let shared = &self.shared;
        let (near, far) = Socket::pair(&shared.reactor, Kind::SeqPacket)?;
        let between = Between { asker: self.key(), answerer: locator.key, server: link.server };
        let (from, mut written) = (self.our_location(), Vec::new());
        from.write(&mut written);
        let asking = proof::Asking::begin(&shared.identity, between, &written, &near, &far).await?;
        self.post(from, locator, link, far, answer)?;
        let moment = shared.reactor.now() + shared.options.connect_time;
        match before(&shared.reactor, moment, asking.finish(&shared.identity, &near)).await {
            Some(Ok(socket)) => Ok(Connection::SeqPacket(socket)),
            Some(Err(proof::Failed::Closed)) | None => Err(ConnectError::Unanswered),
            Some(Err(proof::Failed::Wrong)) => Err(ConnectError::NotProved),
            Some(Err(proof::Failed::Ours(error))) => Err(ConnectError::Io(error)),
        }
    }

    /// The next connection that somebody has asked for, over whichever server. Dropping the future loses
    /// none. Only one task at a time can wait.
    pub async fn incoming(&self) -> Incoming {
        loop {
            let arrived = self.shared.state.borrow_mut().incoming.pop_front();
            match arrived {
                Some(arrived) => {
                    return Incoming { shared: Rc::clone(&self.shared), arrived: Some(arrived) };
                }
                None => self.shared.arrived.wait().await,
            }
        }
    }
}

impl Drop for Netlayer {
    fn drop(&mut self) {
        let servers: Vec<PublicKey> = self.shared.state.borrow().links.keys().copied().collect();
        for server in servers {
            self.shared.lose(&server, None);
        }
        let left = self.shared.state.take();
        drop(left);
    }
}

impl fmt::Debug for Netlayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlayer").field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Shared {
    fn our_location(&self) -> Locator {
        let servers = self.state.borrow().links.keys().copied().collect();
        let NetlayerOptions { seqpacket, proof, .. } = self.options;
        let hints = Hints { servers, seqpacket, proof, ..Hints::default() };
        Locator { key: self.identity.key(), hints }
    }

    /// The first of the locator's servers that we are registered with.
    fn link_to(&self, locator: &Locator) -> Result<Rc<Link>, ConnectError> {
        if locator.hints.servers.len() > SERVERS_MAX {
            return Err(ConnectError::TooManyServers);
        }
        let state = self.state.borrow();
        let found = locator.hints.servers.iter().find_map(|server| state.links.get(server));
        found.map(Rc::clone).ok_or(ConnectError::NoServer)
    }

    /// A server is gone; only this very connection to it, if one is named.
    fn lose(&self, server: &PublicKey, only: Option<&Rc<Link>>) {
        let mut state = self.state.borrow_mut();
        let is_meant = |link: &Rc<Link>| only.is_none_or(|only| Rc::ptr_eq(only, link));
        if !state.links.get(server).is_some_and(is_meant) {
            return;
        }
        let link = state.links.remove(server);
        let tasks = state.tasks.remove(server);
        drop(state);
        if let Some(link) = link {
            link.end();
        }
        drop(tasks);
    }

    /// Hands a connection to the program, if it has room for it.
    fn deliver(&self, arrived: Arrived) {
        self.state.borrow_mut().incoming.push_back(arrived);
        self.arrived.ring();
        self.tick.ring();
    }

    /// Whether one more of this key may come.
    fn has_room(&self, from: &PublicKey) -> bool {
        let state = self.state.borrow();
        let incoming = state.incoming.iter().map(|arrived| arrived.from.key);
        let proving = state.proving.iter().map(|(_, (key, _))| *key);
        let of_key = incoming.chain(proving).filter(|key| key == from).count();
        let all = state.incoming.len() + state.proving.len();
        all < self.options.incoming_max && of_key < self.options.incoming_of_key_max
    }

    /// Keeps what is refused open until its time is over, as a server does with what it cannot deliver.
    fn refuse(&self, link: &Link, number: Option<u64>, fd: Option<OwnedFd>, deadline: Instant) {
        link.judge(number, false);
        let Some(fd) = fd else { return };
        let mut state = self.state.borrow_mut();
        state.refused.push_back((deadline, Fd::from(fd)));
        let excess = state.refused.len().saturating_sub(self.options.incoming_max);
        let excess: Vec<(Instant, Fd)> = state.refused.drain(..excess).collect();
        drop(state);
        drop(excess);
        self.tick.ring();
    }

    fn introduced(
        self: &Rc<Self>,
        link: &Rc<Link>,
        record: &[u8],
        from: Locator,
        number: Option<u64>,
        fd: Fd,
    ) {
        let deadline = self.reactor.now() + blurred(&self.reactor, self.options.incoming_time);
        let Some((fd, kind)) = connected(&self.reactor, fd) else {
            return link.judge(number, false);
        };
        let is_proved = self.options.proof != Proof::None;
        let is_fit = match kind {
            Kind::Stream => !is_proved,
            Kind::SeqPacket => is_proved || self.options.seqpacket,
        };
        let is_welcome = self.welcome.borrow().is_for(&from.key);
        if !is_fit || !is_welcome || !self.has_room(&from.key) {
            return self.refuse(link, number, Some(fd), deadline);
        }
        let link = Rc::clone(link);
        if is_proved {
            return self.prove(link, asker(record).to_vec(), from, number, fd, deadline);
        }
        if let Some(connection) = Connection::new(&self.reactor, fd, kind) {
            self.deliver(Arrived { from, link, number, is_proved, connection, deadline });
        }
    }

    /// Starts a task that finds out whether `from` is who is at the other end.
    fn prove(
        self: &Rc<Self>,
        link: Rc<Link>,
        written: Vec<u8>,
        from: Locator,
        number: Option<u64>,
        fd: OwnedFd,
        deadline: Instant,
    ) {
        let place = self.state.borrow_mut().proving.insert((from.key, None));
        let shared = Rc::clone(self);
        let task = self.reactor.companion(async move {
            let between = Between { asker: from.key, answerer: shared.identity.key(), server: link.server };
            let answering = proof::answer(&shared.reactor, &shared.identity, between, &written, fd);
            let proved = before(&shared.reactor, deadline, answering).await;
            let own = shared.state.borrow_mut().proving.try_remove(place);
            match proved {
                Some((Ok(socket), _)) => {
                    let connection = Connection::SeqPacket(socket);
                    let is_proved = true;
                    shared.deliver(Arrived { from, link, number, is_proved, connection, deadline });
                }
                Some((Err(_), fd)) => shared.refuse(&link, number, fd, deadline),
                None => link.judge(number, false),
            }
            // This very task: its work is dropped when this poll returns.
            drop(own);
        });
        let kept = self.state.borrow_mut().proving.get_mut(place).map(|(_, kept)| kept.replace(task));
        drop(kept);
    }

    fn first_deadline(&self) -> Option<Instant> {
        let state = self.state.borrow();
        let incoming = state.incoming.iter().map(|arrived| arrived.deadline);
        incoming.chain(state.refused.iter().map(|(deadline, _)| *deadline)).min()
    }

    fn expire(&self, now: Instant) {
        let mut state = self.state.borrow_mut();
        let late = take_due(&mut state.incoming, |arrived| arrived.deadline <= now);
        let closed = take_due(&mut state.refused, |(deadline, _)| *deadline <= now);
        drop(state);
        for arrived in &late {
            arrived.link.judge(arrived.number, false);
        }
        drop((late, closed));
    }
}

/// Takes out what is due. It need not stand in front: what was proved slowly or refused late stands behind
/// what came after it.
fn take_due<T>(queue: &mut VecDeque<T>, is_due: impl Fn(&T) -> bool) -> VecDeque<T> {
    let (due, left) = queue.drain(..).partition(is_due);
    *queue = left;
    due
}

/// Closes what has waited too long.
async fn watch_the_clock(shared: Rc<Shared>) {
    loop {
        let first = shared.first_deadline();
        match first {
            None => shared.tick.wait().await,
            Some(moment) => {
                before(&shared.reactor, moment, shared.tick.wait()).await;
            }
        }
        shared.expire(shared.reactor.now());
    }
}

/// All that a server says.
async fn read_from(shared: Rc<Shared>, link: Rc<Link>, mut reading: Reading) {
    // Whatever ended it, the server is of no use any more.
    let _ = listen(&shared, &link, &mut reading).await;
    shared.lose(&link.server, Some(&link));
}

async fn listen(shared: &Rc<Shared>, link: &Rc<Link>, reading: &mut Reading) -> Result<(), Ended> {
    loop {
        let (come, descriptor) = reading.next(&link.socket, None).await?;
        match (come, descriptor) {
            (Come::Record { record: Record::NewConnection { from, to, number }, bytes }, Some(fd))
                if to.key == shared.identity.key() && number.is_some() == link.is_extended =>
            {
                shared.introduced(link, &bytes, from, number, fd);
            }
            (Come::Record { record: Record::Outcome { number, outcome }, .. }, None) if link.is_extended => {
                link.answered(number, outcome);
            }
            // Its descriptor was lost here; whoever asked sees the end of file.
            (Come::Lost(Record::NewConnection { number, .. }), _) => link.judge(number, false),
            _ => return Err(Ended::Violation),
        }
    }
}

impl Incoming {
    fn arrived(&self) -> &Arrived {
        self.arrived.as_ref().expect("until it is accepted or refused")
    }

    /// Who asks, as the server has verified it: the key is theirs. The hints are what the server says that
    /// they say, and may lack a demand for [a proof](NetlayerOptions::proof). Where they
    /// [have proved](Incoming::is_proved) who they are, all of it is theirs, whatever the server is.
    pub fn from(&self) -> &Locator {
        &self.arrived().from
    }

    /// The server that introduced them.
    pub fn server(&self) -> PublicKey {
        self.arrived().link.server
    }

    /// Whether they have proved to be who they are on the connection itself.
    pub fn is_proved(&self) -> bool {
        self.arrived().is_proved
    }

    /// Whether a locator that they claim later, in whatever protocol is spoken on the connection, is theirs.
    pub fn is_from(&self, claimed: &Locator) -> bool {
        claimed.key == self.from().key
    }

    /// Takes the connection. Whoever asked is told, if they and the server understand that.
    pub fn accept(mut self) -> Connection {
        let arrived = self.arrived.take().expect("until it is accepted or refused");
        arrived.link.judge(arrived.number, true);
        arrived.connection
    }

    /// Refuses it, as dropping it does. It is closed when its time is over, not before: whoever asked shall
    /// not see that anybody is here. Where [a proof](NetlayerOptions::proof) is demanded it has seen that
    /// before; [`Welcome`] says beforehand who is answered.
    pub fn refuse(self) {
        drop(self);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(Arrived { link, number, connection, deadline, .. }) = self.arrived.take() {
            self.shared.refuse(&link, number, connection.into_fd(), deadline);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("from", &self.from().key).finish_non_exhaustive()
    }
}

impl Disconnected {
    fn new(link: Rc<Link>) -> Disconnected {
        let waiting = Rc::clone(&link);
        let wait = Box::pin(async move { waiting.ended().await });
        Disconnected { link, wait }
    }

    /// The server.
    pub fn server(&self) -> PublicKey {
        self.link.server
    }

    /// Whether the server speaks the extension: it confirms, and what was signed for it is of use nowhere
    /// else.
    pub fn is_extended(&self) -> bool {
        self.link.is_extended
    }
}

impl Future for Disconnected {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.wait.as_mut().poll(context)
    }
}

impl fmt::Debug for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disconnected").field("server", &self.server()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_taken_wherever_it_stands() {
        let mut queue = VecDeque::from([5, 1, 4, 2]);
        assert_eq!(take_due(&mut queue, |deadline| *deadline <= 2), [1, 2]);
        assert_eq!(queue, [5, 4]);
    }
}
