//! The introduction server: peers register, ask for each other, and get a socket of their own.
//!
//! Owns a task that reads and one that writes for each connection, and a clock. It passes descriptors on and
//! never looks into what is said over them. Nothing that one peer does ends it, or keeps others waiting.

mod registry;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use registry::{After, Id, Letter, Registry, Serial, Times};
use ring::{Companion, Credentials, Fd, Kind, Reactor, SendError, Socket, discard};
use rustix::io::Errno;
use rustix::net::sockopt;
use thiserror::Error;

use crate::blur::blurred;
use crate::identity::{Identity, is_signed, random};
use crate::inlet::Come;
use crate::locator::{Locator, PublicKey};
use crate::passing::pass;
use crate::policy::{Open, Peer, Policy};
use crate::reading::{Ended, Most, Reading, TURN_RECORDS_MAX, connected};
use crate::record::{CHALLENGE_BYTES, Challenge, Form, Outcome, Record};
use crate::signal::{Signal, before};
use crate::statement;

/// Bytes sent along with a descriptor. Four, as Goblins expects, and these as it sends them.
pub(crate) const DUMMY: &[u8; 4] = &[0x39, 0x30, 0, 0];

/// What the kernel may keep for a peer that does not read (it doubles this). So little that a silent peer
/// holds no more than about five descriptors in flight: they count against the *server's* user, for whom the
/// kernel allows as many as RLIMIT_NOFILE, and the next would be refused to everybody.
const SEND_BUFFER: usize = 4096;

/// Descriptors for which there must be room before another connection is accepted: a few receives' worth.
/// Without it connections could take the last one, and then nothing is received any more, not even the end of
/// those who have gone.
const ACCEPT_ROOM: usize = 8;

/// After a connection could not be accepted for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Limits of a server. All are tested on both sides.
///
/// ```
/// use std::time::Duration;
///
/// let mut options = introduction::ServerOptions::default();
/// options.connections_max = 1000;
/// options.introduction_time = Duration::from_secs(30);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Connections in all. Default 256: a quarter of the usual RLIMIT_NOFILE, so that connections, the
    /// descriptors of introductions and those in flight fit into it together. Beyond it newcomers are turned
    /// away.
    pub connections_max: usize,
    /// Connections of one user. Default 128: one user leaves the others half.
    pub user_connections_max: usize,
    /// Connections that have not proved who they are. Default 32. Beyond it the oldest has to go of the
    /// user who has most of them, since an honest one needs microseconds.
    pub newcomers_max: usize,
    /// Introductions under way that one peer has asked for. Default 16. Beyond it nothing more is read from
    /// that peer.
    pub held_max: usize,
    /// Introductions under way in all. Default 256. Beyond it whoever has asked for most loses its oldest.
    ///
    /// Two kinds cannot be taken back, and where all are of these a new one is let in all the same: those
    /// that are just being sent to somebody, one for each connection at most, and those that are over but for
    /// telling whoever asked, which hold no descriptor any more and count for its `held_max`. So one for each
    /// connection, with its descriptor, may come on top of this where somebody does not read.
    pub introductions_max: usize,
    /// Records of one connection that are looked at in one turn of the reactor, at least one. Default 16: a
    /// read can bring 2,600 of the shortest, and what makes a turn long is paid for by all the others. The
    /// rest is looked at in the turns that follow, and nothing more is read before. There is one read of one
    /// connection in a turn.
    pub turn_records_max: usize,
    /// How long a newcomer may take to prove who it is. Default 5 s.
    pub handshake_time: Duration,
    /// How long a record that has begun may take, its descriptor included. Default 5 s.
    pub record_time: Duration,
    /// How long a peer may leave its queue full. Default 10 s.
    pub write_time: Duration,
    /// How long an introduction is kept, whether anybody takes it or not, and up to a tenth more, which is
    /// drawn each time: what is closed here because nobody is there shall not be told by the clock from what
    /// a peer closes that has refused. Default 10 s.
    pub introduction_time: Duration,
    /// How the server's signature is written. Default: as Goblins reads it.
    pub form: Form,
    /// Whether only peers may register that sign for this server and no other (PROTOCOL.md, "Introductions").
    /// Keeps out relayed registrations, and Goblins. Default false.
    pub bound_registration_only: bool,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            connections_max: 256,
            user_connections_max: 128,
            newcomers_max: 32,
            held_max: 16,
            introductions_max: 256,
            turn_records_max: TURN_RECORDS_MAX,
            handshake_time: Duration::from_secs(5),
            record_time: Duration::from_secs(5),
            write_time: Duration::from_secs(10),
            introduction_time: Duration::from_secs(10),
            form: Form::Goblins,
            bound_registration_only: false,
        }
    }
}

/// What a server has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections taken.
    pub admitted: u64,
    /// Connections turned away or pushed out, because there were too many.
    pub turned_away: u64,
    /// Peers that have registered, each time they did.
    pub registrations: u64,
    /// Introductions asked for.
    pub introductions: u64,
    /// Introductions passed on.
    pub passed_on: u64,
    /// Introductions whose time ran out.
    pub expired: u64,
    /// Introductions that made room for others.
    pub evicted: u64,
    /// Introductions whose descriptor did not arrive because *this* process had no room for it.
    pub lost: u64,
    /// Connections ended because they said what may not be said: records that are none, signatures that are
    /// not theirs, another's name, descriptors that are no connected AF_UNIX sockets or stand where they do
    /// not belong.
    pub violations: u64,
    /// Connections ended because they did not say in time what they had to, or did not read.
    pub late: u64,
    /// Connections, registrations and introductions that policy did not allow.
    pub refused: u64,
    /// The most reads that one connection has had in one turn of the reactor.
    pub most_reads_in_a_turn: u64,
    /// The most records of one connection that were looked at in one turn of the reactor. Never more than
    /// [`ServerOptions::turn_records_max`].
    pub most_records_in_a_turn: u64,
}

impl ServerStats {
    /// Each count with its name and what it counts, for whoever shows them all: a new one is not forgotten.
    ///
    /// ```
    /// let stats = introduction::ServerStats::default();
    /// for counter in stats.counters() {
    ///     println!("{} {} ({})", counter.name, counter.count, counter.meaning);
    /// }
    /// ```
    pub fn counters(&self) -> impl Iterator<Item = Counter> + use<> {
        let ServerStats {
            admitted,
            turned_away,
            registrations,
            introductions,
            passed_on,
            expired,
            evicted,
            lost,
            violations,
            late,
            refused,
            // The most of something, and no count.
            most_reads_in_a_turn: _,
            most_records_in_a_turn: _,
        } = *self;
        let counter = |name, count, meaning| Counter { name, count, meaning };
        [
            counter("admitted", admitted, "connections taken"),
            counter("turned_away", turned_away, "connections for which there was no room"),
            counter("registrations", registrations, "peers that have registered, each time they did"),
            counter("introductions", introductions, "introductions asked for"),
            counter("passed_on", passed_on, "introductions passed on"),
            counter("expired", expired, "introductions whose time ran out"),
            counter("evicted", evicted, "introductions that made room for others"),
            counter("lost", lost, "introductions whose descriptor found no room in the server"),
            counter("violations", violations, "connections ended for what they said"),
            counter("late", late, "connections ended because they did not speak or read in time"),
            counter("refused", refused, "connections, registrations and introductions that policy refused"),
        ]
        .into_iter()
    }
}

/// One of the counts in [`ServerStats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counter {
    /// Its name there.
    pub name: &'static str,
    /// How many.
    pub count: u64,
    /// Of what, in a few words.
    pub meaning: &'static str,
}

/// A descriptor was not taken as a peer's connection. It is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// Not a connected AF_UNIX stream.
    #[error("not a connected AF_UNIX stream")]
    NotAStream,
    /// As many connections as there may be, in all or of this user.
    #[error("too many connections")]
    Full,
    /// Policy is against it.
    #[error("policy is against it")]
    Refused,
}

/// An introduction server on a reactor. It works as long as the reactor's turns are taken, whoever takes
/// them, and ends when dropped: all peers see the end of file.
///
/// ```no_run
/// # use std::path::Path;
/// use introduction::{Identity, Server, ServerOptions};
/// use ring::{Executor, Kind, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let server = Server::new(&reactor, Identity::generate()?, ServerOptions::default());
/// println!("{}", server.key());
/// let listener = Socket::listen(&reactor, Path::new("/run/introduce"), Kind::Stream)?;
/// Executor::new(&reactor).block_on(server.serve(&listener))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    shared: Rc<Shared>,
    _clock: Companion,
}

struct Shared {
    reactor: Reactor,
    identity: Identity,
    options: ServerOptions,
    policy: Box<dyn Policy>,
    registry: RefCell<Registry>,
    most: Rc<Cell<Most>>,
    /// A new introduction: the clock may have to go off earlier.
    tick: Signal,
}

/// What the two tasks of one connection share.
struct Line {
    socket: Socket,
    /// Something is to be sent.
    outgoing: Signal,
    /// An introduction has ended.
    room: Signal,
}

impl Server {
    /// A server that introduces everybody to everybody.
    ///
    /// The identity should be used for nothing else. A server signs any challenge it is given, so whoever is
    /// connected to it can register with *other* servers under its key, where these do not insist on bound
    /// registrations.
    pub fn new(reactor: &Reactor, identity: Identity, options: ServerOptions) -> Server {
        Server::with_policy(reactor, identity, options, Open)
    }

    /// A server that asks first.
    ///
    /// ```
    /// use introduction::{Identity, Peer, Policy, Server, ServerOptions};
    ///
    /// struct OneUser(u32);
    ///
    /// impl Policy for OneUser {
    ///     fn may_register(&self, peer: &Peer) -> bool {
    ///         peer.credentials.uid == self.0
    ///     }
    /// }
    ///
    /// let reactor = ring::Reactor::new()?;
    /// let (identity, options) = (Identity::generate()?, ServerOptions::default());
    /// let server = Server::with_policy(&reactor, identity, options, OneUser(1000));
    /// assert_eq!(server.stats().registrations, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_policy(
        reactor: &Reactor,
        identity: Identity,
        options: ServerOptions,
        policy: impl Policy + 'static,
    ) -> Server {
        let shared = Rc::new(Shared {
            reactor: reactor.clone(),
            identity,
            registry: RefCell::new(Registry::new(options.clone())),
            options,
            policy: Box::new(policy),
            most: Rc::default(),
            tick: Signal::default(),
        });
        let clock = reactor.companion(watch_the_clock(Rc::clone(&shared)));
        Server { shared, _clock: clock }
    }

    /// The key by which peers know this server. Tell them beforehand.
    pub fn key(&self) -> PublicKey {
        self.shared.identity.key()
    }

    /// Takes a connected stream as a new peer's: one that was accepted, or an end of a pair.
    ///
    /// # Errors
    /// See [`AdmitError`]. The descriptor is closed.
    pub fn admit(&self, fd: OwnedFd) -> Result<(), AdmitError> {
        match connected(&self.shared.reactor, Fd::from(fd)) {
            Some((fd, Kind::Stream)) => {
                let socket = Socket::wrap(&self.shared.reactor, fd).map_err(|_| AdmitError::NotAStream)?;
                self.admit_socket(socket)
            }
            Some((fd, Kind::SeqPacket)) => {
                discard(fd);
                Err(AdmitError::NotAStream)
            }
            None => Err(AdmitError::NotAStream),
        }
    }

    fn admit_socket(&self, socket: Socket) -> Result<(), AdmitError> {
        let credentials = socket.peer_credentials().map_err(|_| AdmitError::NotAStream)?;
        if !self.shared.policy.may_connect(&credentials) {
            self.shared.count(&Ended::Refused);
            return Err(AdmitError::Refused);
        }
        let _ = sockopt::set_socket_send_buffer_size(socket.as_fd(), SEND_BUFFER);
        socket.set_private(true);
        let line = Rc::new(Line { socket, outgoing: Signal::default(), room: Signal::default() });
        let shared = &self.shared;
        let admitted = shared.with(|registry, after| registry.admit(credentials, Rc::clone(&line), after));
        let id = admitted.map_err(|registry::Full| AdmitError::Full)?;
        let reading = shared.reactor.companion(read_from(Rc::clone(shared), id, Rc::clone(&line)));
        let writing = shared.reactor.companion(write_to(Rc::clone(shared), id, line));
        let left = shared.with(|registry, _| registry.employ(id, reading, writing));
        drop(left);
        Ok(())
    }

    /// Accepts connections for as long as the future is polled. While this process has hardly any descriptors
    /// left, newcomers wait in the listener's backlog.
    ///
    /// # Errors
    /// What the kernel says against accepting. A lack of descriptors, or of memory, is waited out.
    pub async fn serve(&self, listener: &Socket) -> io::Result<()> {
        loop {
            while !self.shared.reactor.may_open(ACCEPT_ROOM) {
                self.shared.reactor.sleep(ACCEPT_PAUSE).await;
            }
            match listener.accept().await {
                // Too many: it sees the end of file.
                Ok(socket) => drop(self.admit_socket(socket)),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                        self.shared.reactor.sleep(ACCEPT_PAUSE).await;
                    }
                    Some(Errno::CONNABORTED) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Asks policy again about everybody who is connected, and disconnects those whom it would turn away now.
    /// For owners whose policy changes: it is asked once about each connection and each registration, not
    /// again with each introduction. Gives how many are gone; [`ServerStats::refused`] counts them.
    pub fn review(&self) -> usize {
        let shared = &self.shared;
        let connected = shared.registry.borrow().connected();
        let is_refused = |(_, credentials, key): &(Id, Credentials, Option<PublicKey>)| {
            let may_stay = |key| shared.policy.may_register(&Peer { key, credentials: *credentials });
            !shared.policy.may_connect(credentials) || !key.is_none_or(may_stay)
        };
        let refused: Vec<Id> = connected.into_iter().filter(is_refused).map(|(id, ..)| id).collect();
        for id in &refused {
            shared.count(&Ended::Refused);
            shared.with(|registry, after| registry.remove(*id, after));
        }
        refused.len()
    }

    /// What has been counted so far.
    pub fn stats(&self) -> ServerStats {
        let most = self.shared.most.get();
        let mut stats = self.shared.registry.borrow().stats;
        (stats.most_reads_in_a_turn, stats.most_records_in_a_turn) = (most.reads, most.records);
        stats
    }

    /// Connections there are now, registered or not.
    pub fn connections(&self) -> usize {
        self.shared.registry.borrow().connections()
    }

    /// Peers registered now.
    pub fn registered(&self) -> usize {
        self.shared.registry.borrow().registered()
    }

    /// Introductions under way now.
    pub fn introductions(&self) -> usize {
        self.shared.registry.borrow().introductions()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.with(Registry::remove_all);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Shared {
    /// One step with the tables, and then what follows from it.
    fn with<T>(&self, step: impl FnOnce(&mut Registry, &mut After) -> T) -> T {
        let mut after = After::default();
        let result = step(&mut self.registry.borrow_mut(), &mut after);
        after.happen();
        result
    }

    /// Introduces, if both are there and policy allows it.
    fn route(&self, serial: Serial) {
        let matched = self.registry.borrow().matched(serial);
        match matched {
            None => {}
            Some(Ok(found)) if self.policy.may_reach(&found.from, &found.to) => {
                self.with(|registry, after| registry.pass_on(serial, found.to_id, after));
            }
            Some(Ok(found)) => {
                self.with(|registry, _| registry.stats.refused += 1);
                self.tell_if_candid(serial, &found.from, Outcome::Refused);
            }
            Some(Err(from)) => self.tell_if_candid(serial, &from, Outcome::Unknown),
        }
    }

    fn tell_if_candid(&self, serial: Serial, from: &Peer, outcome: Outcome) {
        if self.policy.may_know(from) {
            self.with(|registry, after| registry.tell(serial, outcome, after));
        }
    }

    fn count(&self, ended: &Ended) {
        let mut registry = self.registry.borrow_mut();
        let stats = &mut registry.stats;
        match ended {
            Ended::Closed | Ended::Ours(_) => {}
            Ended::Late => stats.late += 1,
            Ended::Violation => stats.violations += 1,
            Ended::Refused => stats.refused += 1,
        }
    }
}

/// Ends introductions whose time is over.
async fn watch_the_clock(shared: Rc<Shared>) {
    loop {
        let first = shared.registry.borrow().first_deadline();
        match first {
            None => shared.tick.wait().await,
            Some(moment) => {
                before(&shared.reactor, moment, shared.tick.wait()).await;
            }
        }
        let now = shared.reactor.now();
        shared.with(|registry, after| registry.expire(now, after));
    }
}

/// All that a connection says.
async fn read_from(shared: Rc<Shared>, id: Id, line: Rc<Line>) {
    let ended = match converse(&shared, id, &line).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    };
    shared.count(&ended);
    note(&line, &ended);
    // With the connection this task ends.
    shared.with(|registry, after| registry.remove(id, after));
}

/// For whoever wants to know who it was. Nothing is borrowed: a subscriber may be anybody's code.
#[cfg(feature = "tracing")]
fn note(line: &Line, ended: &Ended) {
    let who = line.socket.peer_credentials();
    let (pid, uid) = who.map_or((None, None), |who| (Some(who.pid), Some(who.uid)));
    match ended {
        Ended::Closed => tracing::debug!(pid, uid, "a peer has gone"),
        Ended::Late => tracing::debug!(pid, uid, "a peer was late, and is disconnected"),
        Ended::Violation => tracing::debug!(pid, uid, "a peer said what may not be said"),
        Ended::Ours(error) => tracing::warn!(pid, uid, %error, "a peer is lost"),
        Ended::Refused => tracing::debug!(pid, uid, "policy is against a peer"),
    }
}

#[cfg(not(feature = "tracing"))]
fn note(_: &Line, _: &Ended) {}

enum Never {}

async fn converse(shared: &Shared, id: Id, line: &Line) -> Result<Never, Ended> {
    let options = &shared.options;
    let (time, records_max, most) = (options.record_time, options.turn_records_max, Rc::clone(&shared.most));
    let mut reading = Reading::new(&line.socket, time, records_max, most);
    let key = shake_hands(shared, id, line, &mut reading).await?;
    loop {
        let (come, descriptor) = reading.next(&line.socket, None).await?;
        match (come, descriptor) {
            (Come::Record { record: Record::NewConnection { from, to, number: None }, bytes }, Some(fd)) => {
                if from.key != key {
                    return Err(Ended::Violation);
                }
                let connected = connected(&shared.reactor, fd).ok_or(Ended::Violation)?;
                introduce(shared, id, line, to, bytes, Fd::from(connected.0)).await;
            }
            (Come::Record { record: Record::Verdict { number, accepted }, .. }, None) => {
                let judged = shared.with(|registry, after| registry.judge(id, number, accepted, after));
                match judged {
                    Err(registry::NeverSent) => return Err(Ended::Violation),
                    Ok(None) => {}
                    Ok(Some((serial, from))) => shared.tell_if_candid(serial, &from, Outcome::Refused),
                }
            }
            (Come::Lost(_), _) => shared.with(|registry, _| registry.lost(id)),
            _ => return Err(Ended::Violation),
        }
    }
}

/// Waits until this peer may ask for one more, and so does not read meanwhile; then introduces.
async fn introduce(shared: &Shared, id: Id, line: &Line, to: Locator, record: Vec<u8>, fd: Fd) {
    while !shared.registry.borrow().has_room(id) {
        line.room.wait().await;
    }
    let now = shared.reactor.now();
    // Drawn one by one: what is closed shall not be told by when its end was told.
    let [deadline, closed_by] =
        [(); 2].map(|()| now + blurred(&shared.reactor, shared.options.introduction_time));
    let times = Times { deadline, closed_by };
    let serial = shared.with(|registry, after| registry.introduce(id, to.key, record, fd, times, after));
    shared.tick.ring();
    if let Some(serial) = serial {
        shared.route(serial);
    }
}

/// Registers the peer, once it has proved its key.
async fn shake_hands(
    shared: &Shared,
    id: Id,
    line: &Line,
    reading: &mut Reading,
) -> Result<PublicKey, Ended> {
    let deadline = shared.reactor.now() + shared.options.handshake_time;
    let (come, _) = reading.next(&line.socket, Some(deadline)).await?;
    let Come::Record { record: Record::Register { locator, challenge }, .. } = come else {
        return Err(Ended::Violation);
    };
    let (peer, ours) = (locator.key, random().map_err(Ended::Ours)?);
    let theirs = <[u8; CHALLENGE_BYTES]>::try_from(challenge.bytes()).ok();
    let bound = theirs
        .filter(|_| locator.hints.extension)
        .map(|theirs| statement::registration(&shared.identity.key(), &peer, &theirs, &ours));
    if bound.is_none() && shared.options.bound_registration_only {
        return Err(Ended::Refused);
    }
    let response = response(shared, &challenge, &ours, bound.is_some());
    let sent = before(&shared.reactor, deadline, line.socket.send(response)).await;
    sent.ok_or(Ended::Late)?.map_err(|_| Ended::Closed)?;

    let (come, _) = reading.next(&line.socket, Some(deadline)).await?;
    let Come::Record { record: Record::Signature { payload, signature }, .. } = come else {
        return Err(Ended::Violation);
    };
    // Our own signature under a challenge can be had by asking: it is what this server says to everybody.
    if bound.is_none() && peer == shared.identity.key() {
        return Err(Ended::Violation);
    }
    let signed = bound.as_deref().unwrap_or(&ours);
    if payload.bytes() != ours || !is_signed(&peer, signed, &signature) {
        return Err(Ended::Violation);
    }
    let credentials = line.socket.peer_credentials().map_err(Ended::Ours)?;
    if !shared.policy.may_register(&Peer { key: peer, credentials }) {
        return Err(Ended::Refused);
    }
    let is_extended = bound.is_some();
    let waiting = shared.with(|registry, after| registry.register(id, peer, is_extended, after));
    for serial in waiting {
        shared.route(serial);
    }
    Ok(peer)
}

fn response(
    shared: &Shared,
    challenge: &Challenge,
    ours: &[u8; CHALLENGE_BYTES],
    is_extended: bool,
) -> Vec<u8> {
    let (key, signature) = (shared.identity.key(), shared.identity.sign_challenge(challenge));
    let ours = Challenge::new(ours).expect("as long as a challenge is");
    let version = u64::from(is_extended);
    match shared.options.form {
        Form::Draft => Record::draft_response(&key, &ours, challenge, &signature, version),
        form => Record::ServerResponse { key, challenge: ours, signature, form, version }.to_bytes(form),
    }
}

/// All that is said to a connection after it has registered.
async fn write_to(shared: Rc<Shared>, id: Id, line: Rc<Line>) {
    loop {
        let letter = shared.with(|registry, _| registry.next_letter(id));
        let is_sent = match letter {
            None => {
                line.outgoing.wait().await;
                continue;
            }
            Some(Letter::Introduction { serial, record, fd }) => {
                // Two messages: who reads byte by byte would lose a descriptor that came with the record.
                let is_sent = send(&shared, &line, line.socket.send(record)).await
                    && send(&shared, &line, pass(&line.socket, DUMMY, fd)).await;
                if is_sent {
                    shared.with(|registry, after| registry.passed(serial, id, after));
                } else {
                    shared.with(|registry, _| registry.returned(serial, id));
                    // The peer may have come back before this was known.
                    shared.route(serial);
                }
                is_sent
            }
            Some(Letter::Outcome { serial, record }) => {
                let is_sent = send(&shared, &line, line.socket.send(record)).await;
                shared.with(|registry, after| registry.finish(serial, after));
                is_sent
            }
        };
        if !is_sent || shared.registry.borrow().is_gone(id) {
            // With the connection this task ends.
            return shared.with(|registry, after| registry.remove(id, after));
        }
    }
}

/// Sends within time, or says that the peer is of no use any more.
async fn send(shared: &Shared, line: &Line, sending: impl Future<Output = Result<(), SendError>>) -> bool {
    let deadline = shared.reactor.now() + shared.options.write_time;
    let mut sending = pin!(sending);
    match before(&shared.reactor, deadline, sending.as_mut()).await {
        Some(sent) => sent.is_ok(),
        None => {
            shared.count(&Ended::Late);
            // It ends what waits for room. Whether the kernel has taken the message at the last moment must
            // be known: what has left for one connection must not leave for another.
            line.socket.shut_down();
            sending.await.is_ok()
        }
    }
}
