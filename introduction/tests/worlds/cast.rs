//! Who lives in a world of strangers: servers behind a path, and netlayers that ask for each other.
//!
//! They tell the account what they do and what they are told. They do not know what happens to them.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use introduction::{
    AddServerError, ConnectError, Connection, Expect, Identity, Incoming, Locator, Netlayer, NetlayerOptions,
    Peer, Policy, Proof, PublicKey, Server, ServerOptions,
};
use ring::{Executor, Kind, Message, Reactor, ReceiveError, Socket, Spawner};
use tempfile::TempDir;

use super::{Attempt, Busy, End, Holdings, Party, Quota, Setting, at_most, identified, identity};

/// In such a time everything of an introduction is over: that of the connection, of the confirmation, of the
/// server's keeping and of the peer's, and of those before it where a peer may have one at a time.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(300);

/// Descriptors of one process: its reactor's own, its listener, its connections to two servers and what it
/// has just received; of a server besides, what its limits say.
const PARTY_DESCRIPTORS_MAX: usize = 24;

/// Descriptors of one attempt: both ends of its pair, and what is passed over it, on both sides.
const ATTEMPT_DESCRIPTORS_MAX: usize = 8;

/// Memory of one process: its buffers, and the tables.
const PARTY_BYTES_MAX: usize = 2 << 20;

/// Memory of one attempt.
const ATTEMPT_BYTES_MAX: usize = 256 << 10;

/// Tells some of the askers what has become of what they asked for.
struct Candid(bool);

impl Policy for Candid {
    fn may_know(&self, _: &Peer) -> bool {
        self.0
    }
}

/// The processes that are one introduction server, one after the other, and where it is found.
pub struct ServerHome {
    pub number: u8,
    pub path: PathBuf,
    pub party: Option<Party>,
    pub server: Option<Rc<Server>>,
    /// Whether another takes over when it is dead.
    pub comes_back: bool,
    listener: OwnedFd,
    limits: ServerOptions,
}

impl ServerHome {
    pub fn new(setting: &Setting, folder: &TempDir, number: u8) -> ServerHome {
        let path = folder.path().join(number.to_string());
        let listener = UnixListener::bind(&path).unwrap();
        let limits = server_options(setting);
        let (party, server, comes_back) = (None, None, true);
        ServerHome { number, path, party, server, comes_back, listener: listener.into(), limits }
    }

    pub fn identity(&self) -> Identity {
        Identity::from_seed(&[200 + self.number; 32])
    }

    /// A process takes over.
    pub fn start(&mut self, setting: &Rc<Setting>) {
        let party = Party::join(&setting.world);
        let policy = Candid(setting.candid);
        let server =
            Rc::new(Server::with_policy(party.reactor(), self.identity(), self.limits.clone(), policy));
        let listener = Socket::wrap(party.reactor(), self.listener.try_clone().unwrap()).unwrap();
        let serving = Rc::downgrade(&server);
        party.0.spawn(async move {
            let Some(server) = serving.upgrade() else { return };
            let Err(error) = server.serve(&listener).await else { return };
            panic!("the server does not accept any more: {error}");
        });
        (self.party, self.server) = (Some(party), Some(server));
    }

    pub fn die(&mut self, setting: &Setting) {
        if let Some(party) = self.party.take() {
            setting.world.kill(party.reactor());
            self.server = None;
        }
    }

    fn is_missed(&self) -> bool {
        self.party.is_none() && self.comes_back
    }

    /// Its tables keep to their limits, whoever is connected.
    fn is_within_limits(&self, setting: &Setting) {
        let Some(server) = &self.server else { return };
        let (limits, stats, allowed) = (&self.limits, server.stats(), setting.model.allowed.get());
        assert!(server.connections() <= limits.connections_max, "too many connections");
        // One that is on its way to a peer cannot be taken back to make room.
        let on_their_way = server.connections();
        let most = limits.introductions_max + on_their_way;
        assert!(server.introductions() <= most, "too many introductions");
        assert!(stats.most_reads_in_a_turn <= 1, "more than its share is read");
        assert!(
            stats.most_records_in_a_turn <= limits.turn_records_max as u64,
            "more than a share of records"
        );
        if !allowed.rogues {
            assert_eq!(stats.violations, 0, "honest peers are blamed");
            assert!(allowed.shortages || stats.lost == 0, "a descriptor was lost, and there was room");
        }
    }
}

fn server_options(setting: &Setting) -> ServerOptions {
    let mut options = ServerOptions::default();
    if setting.tiny {
        options.connections_max = 4 + setting.world.below(3);
        options.user_connections_max = options.connections_max;
        options.newcomers_max = 1 + setting.world.below(3);
        options.held_max = 1 + setting.world.below(2);
        options.introductions_max = 2 + setting.world.below(4);
        options.turn_records_max = 1 + setting.world.below(3);
    }
    options
}

/// One program: registered with all servers, asking for others, and asked for.
pub struct Program {
    pub party: Option<Party>,
    pub netlayer: Option<Rc<Netlayer>>,
    pub number: usize,
    proof: Proof,
    seqpacket: bool,
}

impl Program {
    pub fn start(setting: &Rc<Setting>, number: usize) -> Program {
        let party = Party::join(&setting.world);
        let mut options = NetlayerOptions::default();
        options.seqpacket = setting.world.happens(600);
        options.proof = if setting.world.happens(300) { Proof::Required } else { Proof::None };
        if setting.tiny {
            options.incoming_max = 1 + setting.world.below(2);
            options.incoming_of_key_max = 1;
            options.asking_max = 1 + setting.world.below(2);
        }
        let (proof, seqpacket) = (options.proof, options.seqpacket);
        let identity = Identity::from_seed(&[1 + number as u8; 32]);
        setting.keys.borrow_mut().push(identity.key());
        let netlayer = Rc::new(Netlayer::with_options(party.reactor(), identity, options));
        let answering = answer(
            Rc::clone(setting),
            Rc::clone(&netlayer),
            party.reactor().clone(),
            number,
            party.0.spawner(),
        );
        party.0.spawn(answering);
        Program { party: Some(party), netlayer: Some(netlayer), number, proof, seqpacket }
    }

    /// Registers with a server, again and again, as long as it lives.
    pub fn keep(&self, setting: &Rc<Setting>, path: PathBuf, expect: Expect, honest: bool) {
        let (Some(party), Some(netlayer)) = (&self.party, &self.netlayer) else { return };
        let (setting, netlayer, reactor) = (Rc::clone(setting), Rc::clone(netlayer), party.reactor().clone());
        party.0.spawn(async move {
            loop {
                if let Ok(socket) = Socket::connect(&reactor, &path, Kind::Stream).await {
                    let fd = socket.into_fd().expect("nothing was asked of it");
                    match netlayer.add_server(fd, expect).await {
                        Ok(gone) => gone.await,
                        Err(AddServerError::Closed | AddServerError::Io(_) | AddServerError::Late) => {}
                        Err(error) => assert!(!honest, "an honest server: {error}"),
                    }
                }
                reactor.sleep(setting.milliseconds(200)).await;
            }
        });
    }

    pub fn die(&mut self, setting: &Setting) {
        if let Some(party) = self.party.take() {
            setting.world.kill(party.reactor());
            self.netlayer = None;
        }
    }

    /// Where it is to be found by who knows these servers.
    pub fn locator(&self, servers: &[PublicKey]) -> Locator {
        let mut locator = Locator::new(Identity::from_seed(&[1 + self.number as u8; 32]).key());
        locator.hints.servers = servers.iter().copied().collect();
        locator.hints.proof = self.proof;
        locator.hints.seqpacket = self.seqpacket;
        locator
    }
}

/// Takes, refuses or lets lie whatever comes.
async fn answer(
    setting: Rc<Setting>,
    netlayer: Rc<Netlayer>,
    reactor: Reactor,
    own: usize,
    spawner: Spawner,
) {
    loop {
        let incoming = netlayer.incoming().await;
        let from = setting.number_of(&incoming.from().key);
        // Who has proved it is who it says. A rogue server may say anything of others.
        let vouched = incoming.is_proved() || !setting.model.allowed.get().rogues;
        let Some(from) = from else {
            assert!(setting.model.allowed.get().rogues, "nobody knows this one");
            setting.model.strangers.set(setting.model.strangers.get() + 1);
            spawner.spawn(hear_a_stranger(reactor.clone(), incoming.accept()));
            continue;
        };
        match setting.world.below(20) {
            0 | 1 => {
                setting.model.declines(from, own);
                incoming.refuse();
            }
            2 => {
                setting.model.declines(from, own);
                spawner.spawn(let_lie(reactor.clone(), incoming));
            }
            _ => {
                setting.model.accepts(from, own);
                let connection = incoming.accept();
                spawner.spawn(echo(Rc::clone(&setting), connection, from, own, vouched));
            }
        }
    }
}

async fn let_lie(reactor: Reactor, incoming: Incoming) {
    reactor.sleep(Duration::from_secs(30)).await;
    drop(incoming);
}

/// It may say what it likes.
async fn hear_a_stranger(reactor: Reactor, connection: Connection) {
    let hearing = Box::pin(async move {
        match &connection {
            Connection::Stream(socket) => drop(socket.receive().await),
            Connection::SeqPacket(socket) => drop(socket.receive().await),
            _ => {}
        }
    });
    at_most(&reactor, Duration::from_secs(5), hearing).await;
}

/// Both kinds of connection, and what is said over them: a mark and a descriptor there, the mark back.
enum Line<'a> {
    Stream(&'a Socket),
    SeqPacket(&'a imc::ConnectedSocket),
}

const MARK_BYTES: usize = 8;

impl Line<'_> {
    fn of(connection: &Connection) -> Line<'_> {
        match connection {
            Connection::Stream(socket) => Line::Stream(socket),
            Connection::SeqPacket(socket) => Line::SeqPacket(socket),
            other => panic!("a kind that is new: {other:?}"),
        }
    }

    async fn say(&self, mark: u64, descriptor: Option<OwnedFd>) -> bool {
        let message = Message::new(mark.to_ne_bytes());
        let message = descriptor.into_iter().fold(message, Message::with_descriptor);
        match self {
            Line::Stream(socket) => socket.send(message).await.is_ok(),
            Line::SeqPacket(socket) => socket.send(message).await.is_ok(),
        }
    }

    /// A mark, and the descriptor that came with it; nothing at the end, or where something else was said.
    async fn hear(&self) -> Option<(u64, Option<OwnedFd>)> {
        let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
        while bytes.len() < MARK_BYTES {
            let received = match self {
                Line::Stream(socket) => socket.receive().await,
                Line::SeqPacket(socket) => socket.receive().await,
            };
            let mut received = match received {
                Ok(received) | Err(ReceiveError::DescriptorsLost(received)) => received,
                Err(ReceiveError::Closed) => return None,
                Err(error) => panic!("{error}"),
            };
            bytes.extend_from_slice(received.bytes());
            descriptors.extend(received.take_descriptors());
        }
        assert!(descriptors.len() <= 1, "more descriptors than were sent");
        // Who is not vouched for may have had something else in mind: to prove who it is, for one.
        Some((u64::from_ne_bytes(bytes.try_into().ok()?), descriptors.pop()))
    }
}

async fn echo(setting: Rc<Setting>, connection: Connection, from: usize, own: usize, vouched: bool) {
    let line = Line::of(&connection);
    // A rogue server can hand out an end of its own in anybody's name.
    if !vouched {
        let heard = pin!(line.hear());
        let reactor = match &connection {
            Connection::Stream(socket) => socket.reactor(),
            Connection::SeqPacket(socket) => socket.reactor(),
            other => panic!("a kind that is new: {other:?}"),
        };
        if let Some(Some((mark, descriptor))) = at_most(reactor, ATTEMPT_TIME_MAX, heard).await {
            setting.model.arrives(mark, from, own, false, descriptor.as_ref().map(identity));
            line.say(mark, None).await;
        }
        return;
    }
    if let Some((mark, descriptor)) = line.hear().await {
        setting.model.arrives(mark, from, own, true, descriptor.as_ref().map(identity));
        line.say(mark, None).await;
    }
}

/// Whom to ask for, and how.
pub struct Wish {
    pub to: usize,
    pub locator: Locator,
    pub confirmed: bool,
    pub patience: Option<Duration>,
}

/// One attempt, from the first word to its end.
pub async fn ask(busy: Busy, netlayer: Rc<Netlayer>, reactor: Reactor, own: usize, wish: Wish) {
    let setting = &busy.0;
    let (descriptor, known) = identified();
    let Wish { to, locator, confirmed, patience } = wish;
    let attempt = Attempt::new(&setting.model, own, to, known, locator.hints.proof == Proof::Required);
    let mark = attempt.mark;
    let asking = pin!(talk(setting, &netlayer, &locator, confirmed, mark, descriptor));
    let time = patience.unwrap_or(ATTEMPT_TIME_MAX);
    match at_most(&reactor, time, asking).await {
        Some(end) => attempt.ends(end),
        None => {
            // Nobody lets go of what a silent server keeps.
            let silent = patience.is_some() || setting.model.allowed.get().rogues;
            assert!(silent, "attempt {mark} takes for ever: {:?}", setting.world);
            attempt.ends(End::Withdrawn);
        }
    }
}

async fn talk(
    setting: &Setting,
    netlayer: &Netlayer,
    locator: &Locator,
    confirmed: bool,
    mark: u64,
    descriptor: OwnedFd,
) -> End {
    let connecting = async {
        match confirmed {
            true => netlayer.connect_confirmed(locator).await,
            false => netlayer.connect(locator).await,
        }
    };
    let connection = match connecting.await {
        Ok(connection) => {
            if confirmed {
                setting.model.is_confirmed(mark);
            }
            connection
        }
        Err(ConnectError::Unconfirmed(connection)) => {
            assert!(setting.model.allowed.get().rogues, "honest servers confirm");
            connection
        }
        Err(error) => return end_of(&error),
    };
    let line = Line::of(&connection);
    if !line.say(mark, Some(descriptor)).await {
        return End::Closed;
    }
    match line.hear().await {
        Some((heard, _)) => {
            assert_eq!(heard, mark, "an answer to another");
            End::Answered
        }
        None => End::Closed,
    }
}

fn end_of(error: &ConnectError) -> End {
    match error {
        ConnectError::NoServer => End::NoServer,
        ConnectError::Busy => End::Busy,
        ConnectError::Disconnected => End::Disconnected,
        ConnectError::Unanswered => End::Unanswered,
        ConnectError::Refused => End::Refused,
        ConnectError::Unknown => End::Unknown,
        ConnectError::NotProved => End::NotProved,
        ConnectError::Io(_) => End::Kernel,
        other => panic!("{other}"),
    }
}

/// Everybody of one world.
pub struct Cast {
    pub servers: Vec<ServerHome>,
    pub programs: Vec<Program>,
    /// Those who are not honest, and their servers' processes.
    pub rogues: Vec<Party>,
    pub folder: TempDir,
    /// Attempts made so far, for the quota of those that nobody waits for any more.
    pub quota: Quota,
    parties: Cell<usize>,
}

impl Cast {
    pub fn new(setting: &Rc<Setting>, quota: Quota, servers: u8, programs: usize) -> Cast {
        let folder = tempfile::tempdir().unwrap();
        let mut servers: Vec<ServerHome> =
            (0..servers).map(|number| ServerHome::new(setting, &folder, number)).collect();
        servers.iter_mut().for_each(|server| server.start(setting));
        let programs: Vec<Program> = (0..programs).map(|number| Program::start(setting, number)).collect();
        for program in &programs {
            for server in &servers {
                let expect = Expect::key(server.identity().key()).bound();
                program.keep(setting, server.path.clone(), expect, true);
            }
        }
        let (rogues, parties) = (Vec::new(), Cell::new(0));
        Cast { servers, programs, rogues, folder, quota, parties }
    }

    pub fn server_keys(&self) -> Vec<PublicKey> {
        self.servers.iter().map(|server| server.identity().key()).collect()
    }

    fn executors(&self) -> Vec<&Executor> {
        let servers = self.servers.iter().filter_map(|server| server.party.as_ref());
        let programs = self.programs.iter().filter_map(|program| program.party.as_ref());
        servers.chain(programs).chain(&self.rogues).map(|party| &party.0).collect()
    }

    /// Somebody does something, or time passes; then everything is looked at.
    pub fn step(&mut self, setting: &Rc<Setting>) {
        setting.count_step();
        if self.servers.iter().any(ServerHome::is_missed) && setting.world.happens(30) {
            self.revive(setting);
        }
        if let Err(stuck) = setting.world.step(&self.executors()) {
            assert!(self.servers.iter().any(ServerHome::is_missed), "{stuck}");
            self.revive(setting);
        }
        self.servers.iter().for_each(|server| server.is_within_limits(setting));
        self.is_within_quota(setting);
    }

    fn revive(&mut self, setting: &Rc<Setting>) {
        let missed = self.servers.iter_mut().filter(|server| server.is_missed());
        missed.for_each(|server| server.start(setting));
    }

    fn is_within_quota(&self, setting: &Setting) {
        let parties = self.executors().len();
        self.parties.set(self.parties.get().max(parties));
        let servers = self.servers.iter().filter_map(|server| server.server.as_ref());
        let kept: usize = servers.map(|server| server.connections() + server.introductions()).sum();
        let arriving: usize = match setting.tiny {
            true => 2,
            false => NetlayerOptions::default().incoming_max,
        };
        // What nobody waits for any more lies with the servers, and with whoever has not looked at it.
        let open = setting.model.under_way() + kept + arriving;
        self.quota.holds(Holdings {
            descriptors: self.parties.get() * PARTY_DESCRIPTORS_MAX + open * ATTEMPT_DESCRIPTORS_MAX,
            bytes: self.parties.get() * PARTY_BYTES_MAX + open * ATTEMPT_BYTES_MAX,
        });
    }

    /// Everybody goes. The servers see it, and nothing of anybody is left with them.
    pub fn finish(mut self, setting: &Rc<Setting>) {
        setting.world.set_faults(ring::script::Faults::NONE);
        self.programs.clear();
        self.rogues.clear();
        let servers: Vec<Rc<Server>> = self.servers.iter().filter_map(|home| home.server.clone()).collect();
        let is_empty = |server: &Rc<Server>| server.connections() == 0 && server.introductions() == 0;
        let parties: Vec<&Executor> = self.executors();
        let left = setting.world.run(&parties, || servers.iter().all(is_empty));
        left.unwrap_or_else(|stuck| panic!("a server keeps what nobody wants: {stuck}"));
        drop(parties);
        drop(servers);
        let Cast { servers, folder, quota, .. } = self;
        drop((servers, folder));
        setting.model.over();
        quota.is_given_back();
    }
}
