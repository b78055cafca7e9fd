//! Introduces peers that come and go to each other, many times, and says how fast, with how many descriptors,
//! and what merely passing a descriptor on costs beside it. It fails if an introduction does, if there are
//! ever more descriptors than there may be, if one is left, or if a connection gets more than its share.
//!
//! `cargo run --release -p sendright-introduction --example soak -- [INTRODUCTIONS] [PEERS] [plain|proof]`
//! with `--processes N` for peers in N processes of their own, `--hostile N` for so many hostile connections
//! meanwhile, `--json` for programs.
//!
//! By default everything is in one process and on one thread, so the numbers are of work and not of waiting.
//! Each introduction is followed by one descriptor that is merely passed on by way of a third, in the same
//! process; both are measured from asking to having. It owns the processes it starts. It knows no bytes.

#[path = "../tests/attack/mod.rs"]
mod attack;
#[path = "../tests/crowd/mod.rs"]
mod crowd;

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fs::{Permissions, set_permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use crowd::{Crowd, Forwarding, descriptors, descriptors_max};
use hdrhistogram::Histogram;
use introduction::{
    Connection, Expect, Identity, Locator, Netlayer, NetlayerOptions, Proof, PublicKey, Server,
    ServerOptions, ServerStats,
};
use ring::{Companion, Executor, Kind, Reactor, ReceiveError, Socket};
use serde_json::json;

type Anything<T> = Result<T, Box<dyn Error>>;

/// In another process a peer leaves with each so-many-th introduction, and is away for so long.
const STAY: usize = 100;
const AWAY_TIME: Duration = Duration::from_millis(5);

/// The user that attacks, where we may start somebody else's process.
const NOBODY: u32 = 65_534;

#[derive(Parser)]
#[command(about = "Introduces peers that come and go to each other, many times")]
struct Arguments {
    #[arg(default_value_t = 100_000)]
    introductions: usize,
    #[arg(default_value_t = 200)]
    peers: usize,
    #[arg(default_value = "plain")]
    mode: Mode,
    /// Peers are in so many processes of their own; with 1, in the server's.
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Hostile connections meanwhile, of another user where that is possible; it goes on until they are made.
    #[arg(long, default_value_t = 0, conflicts_with = "processes")]
    hostile: usize,
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Plain,
    Proof,
}

/// What a process is that this program has started.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Attack { path: PathBuf, count: usize, victim: String },
    #[command(hide = true)]
    Member { path: PathBuf, server: PublicKey, process: usize },
}

impl Arguments {
    fn proof(&self) -> Proof {
        match self.mode {
            Mode::Plain => Proof::None,
            Mode::Proof => Proof::Required,
        }
    }
}

fn main() -> Anything<ExitCode> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Attack { path, count, victim }) => {
            attack::attack(path, *count, victim)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Role::Member { path, server, process }) => {
            be_member(&arguments, path, *server, *process)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let result = match arguments.processes {
                0 | 1 => in_one_process(&arguments)?,
                _ => in_several(&arguments)?,
            };
            Ok(result.tell(&arguments))
        }
    }
}

/// How long something took, each time.
struct Times(Histogram<u64>);

impl Times {
    fn new() -> Anything<Times> {
        Ok(Times(Histogram::new(3)?))
    }

    fn add(&mut self, time: Duration) -> Anything<()> {
        Ok(self.0.record(u64::try_from(time.as_nanos())?)?)
    }

    /// One after the other, in each process.
    fn per_second(&self, processes: usize) -> f64 {
        1e9 / self.0.mean() * processes.max(1) as f64
    }

    fn text(&self, what: &str, processes: usize) -> String {
        let at = |part| Duration::from_nanos(self.0.value_at_quantile(part));
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        let (count, rate) = (self.0.len(), self.per_second(processes));
        format!("{count} {what}: {rate:.0} a second; p50 {p50:?}, p99 {p99:?}, p99.9 {p999:?}")
    }

    fn json(&self, processes: usize) -> serde_json::Value {
        let at = |part| self.0.value_at_quantile(part);
        json!({
            "count": self.0.len(), "per_second": self.per_second(processes), "max_ns": self.0.max(),
            "p50_ns": at(0.5), "p99_ns": at(0.99), "p99_9_ns": at(0.999),
        })
    }
}

struct Outcome {
    driver: String,
    introductions: Times,
    forwarding: Times,
    descriptors: Descriptors,
    to_the_absent: usize,
    returns: usize,
    stats: ServerStats,
}

/// How many were open in the server's process.
struct Descriptors {
    before: usize,
    most: usize,
    allowed: usize,
    after: usize,
}

impl Outcome {
    /// Says it, and whether all is well.
    fn tell(&self, arguments: &Arguments) -> ExitCode {
        let Descriptors { before, most, allowed, after } = self.descriptors;
        let Outcome { to_the_absent, returns, ref stats, .. } = *self;
        let processes = arguments.processes;
        let (reads, records) = (stats.most_reads_in_a_turn, stats.most_records_in_a_turn);
        if arguments.json {
            let counters: serde_json::Map<_, _> =
                stats.counters().map(|counter| (counter.name.to_owned(), counter.count.into())).collect();
            let told = json!({
                "driver": self.driver, "peers": arguments.peers, "processes": processes,
                "proof": arguments.mode == Mode::Proof, "hostile": arguments.hostile,
                "introductions": self.introductions.json(processes),
                "forwarding": self.forwarding.json(processes),
                "to_the_absent": to_the_absent, "returns": returns,
                "descriptors": { "before": before, "most": most, "allowed": allowed, "after": after },
                "most_reads_in_a_turn": reads, "most_records_in_a_turn": records, "server": counters,
            });
            println!("{told}");
        } else {
            println!("{}", self.driver);
            println!("{}", self.introductions.text("introductions", processes));
            println!("{}", self.forwarding.text("descriptors passed on over two hops", processes));
            println!("peers came back {returns} times, and were asked for {to_the_absent} times while away");
            println!("descriptors: {before} before, {most} at most of {allowed} allowed, {after} after");
            println!("of one connection in one turn: at most {reads} reads and {records} records");
            println!("{stats:?}");
        }
        let is_well = most <= allowed
            && after == before
            && reads <= 1
            && records <= ServerOptions::default().turn_records_max as u64
            && (arguments.hostile > 0 || stats.violations + stats.late + stats.evicted + stats.lost == 0);
        if is_well {
            ExitCode::SUCCESS
        } else {
            eprintln!("a limit was not kept");
            ExitCode::FAILURE
        }
    }
}

// -- in one process --------------------------------------------------------------------------------------

fn in_one_process(arguments: &Arguments) -> Anything<Outcome> {
    let before = descriptors()?;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let (mut introductions, mut forwarding) = (Times::new()?, Times::new()?);
    let limit = descriptors_max(before, arguments.peers);
    let server = Rc::new(match arguments.hostile {
        0 => crowd::server(&reactor, arguments.peers)?,
        // As it is by default: its limits are what keeps the hostile within bounds.
        _ => Server::new(&reactor, Identity::generate()?, ServerOptions::default()),
    });
    let (mut most, mut to_the_absent, mut returns) = (0, 0, 0);
    executor.block_on(async {
        let mut crowd = Crowd::gather(&reactor, &server, arguments.peers, arguments.proof()).await?;
        let mut siege = match arguments.hostile {
            0 => None,
            count => Some(Siege::begin(&reactor, &server, count).await?),
        };
        crowd.stays = siege.as_ref().is_some_and(|siege| !siege.is_anothers);
        let raw = Forwarding::new(&reactor)?;
        let mut round = 0;
        while match &siege {
            Some(siege) => !siege.is_over.get(),
            None => round < arguments.introductions,
        } {
            if let Some(time) = crowd.meet().await? {
                introductions.add(time)?;
            }
            forwarding.add(raw.pass_one().await?)?;
            round += 1;
        }
        if let Some(siege) = &mut siege {
            siege.end()?;
        }
        (most, to_the_absent, returns) = (crowd.descriptors_most, crowd.to_the_absent, crowd.returns);
        Ok::<_, Box<dyn Error>>(())
    })?;
    let stats = server.stats();
    let driver = reactor.driver().to_string();
    drop((server, executor));
    reactor.turn(ring::Wait::Not)?;
    drop(reactor);
    ring::closer_idle();
    let after = descriptors()?;
    // Connections and introductions that are not ours count against the server's own limits.
    let of_others = ServerOptions::default();
    let of_others = of_others.connections_max + of_others.introductions_max;
    let allowed = if arguments.hostile > 0 { limit + of_others } else { limit };
    let descriptors = Descriptors { before, most, allowed, after };
    Ok(Outcome { driver, introductions, forwarding, descriptors, to_the_absent, returns, stats })
}

/// Those who attack, in a process of their own.
struct Siege {
    child: Child,
    is_over: Rc<Cell<bool>>,
    is_anothers: bool,
    _folder: tempfile::TempDir,
    /// One lets in whoever comes, one sees that the attack is over, and one is asked for by the attackers and
    /// takes what it gets.
    _tasks: [Companion; 3],
}

impl Siege {
    async fn begin(reactor: &Reactor, server: &Rc<Server>, count: usize) -> Anything<Siege> {
        let victim = Netlayer::new(reactor, Identity::generate()?);
        let (near, far) = Socket::pair(reactor, Kind::Stream)?;
        server.admit(far)?;
        let line = near.into_fd().map_err(|_| "a fresh socket is idle")?;
        let _gone = victim.add_server(line, Expect::key(server.key())).await?;
        let (folder, path, serving) = listen(reactor, server)?;
        let is_anothers = rustix::process::geteuid().is_root();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("attack").arg(path).arg(count.to_string()).arg(victim.key().to_string());
        if is_anothers {
            command.uid(NOBODY).gid(NOBODY);
        }
        let (near, far) = Socket::pair(reactor, Kind::Stream)?;
        let child = command.stdin(Stdio::from(far)).spawn()?;
        drop(command);
        let is_over = Rc::new(Cell::new(false));
        let seen = Rc::clone(&is_over);
        let watching = reactor.companion(async move {
            let _ = near.receive().await;
            seen.set(true);
        });
        let taking = reactor.companion(async move {
            loop {
                drop(victim.incoming().await.accept());
            }
        });
        let _tasks = [serving, watching, taking];
        Ok(Siege { child, is_over, is_anothers, _folder: folder, _tasks })
    }

    fn end(&mut self) -> Anything<()> {
        if self.child.wait()?.success() { Ok(()) } else { Err("the attack has failed".into()) }
    }
}

/// A place for others to come to, and the task that lets them in.
fn listen(reactor: &Reactor, server: &Rc<Server>) -> Anything<(tempfile::TempDir, PathBuf, Companion)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("socket");
    let listener = Socket::listen(reactor, &path, Kind::Stream)?;
    set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    set_permissions(&path, Permissions::from_mode(0o666))?;
    let server = Rc::clone(server);
    let serving = reactor.companion(async move {
        if let Err(error) = server.serve(&listener).await {
            eprintln!("the server does not listen any more: {error}");
        }
    });
    Ok((folder, path, serving))
}

// -- in several ------------------------------------------------------------------------------------------

fn in_several(arguments: &Arguments) -> Anything<Outcome> {
    let before = descriptors()?;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let server = Rc::new(crowd::server(&reactor, arguments.peers)?);
    let (folder, path, serving) = listen(&reactor, &server)?;
    let mut children = Vec::new();
    let mut controls = Vec::new();
    for process in 0..arguments.processes {
        let (near, far) = Socket::pair(&reactor, Kind::Stream)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([arguments.introductions.to_string(), arguments.peers.to_string()]);
        command.arg(if arguments.mode == Mode::Proof { "proof" } else { "plain" });
        command.arg(format!("--processes={}", arguments.processes));
        command.arg("member").arg(&path).args([server.key().to_string(), process.to_string()]);
        children.push(command.stdin(Stdio::from(far)).stdout(Stdio::piped()).spawn()?);
        controls.push(near);
    }
    let mut most = 0;
    executor.block_on(async {
        // All are here; then they ask; then all have asked.
        for step in 0..2 {
            for control in &controls {
                control.receive().await.map_err(|_| "a process has ended")?;
                most = descriptors()?.max(most);
            }
            if step == 0 {
                for control in &controls {
                    control.send("go").await?;
                }
            }
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    drop(controls);
    let (mut introductions, mut forwarding, mut returns) = (Times::new()?, Times::new()?, 0);
    for mut child in children {
        let mut told = Vec::new();
        child.stdout.take().ok_or("it is piped")?.read_to_end(&mut told)?;
        if !child.wait()?.success() {
            return Err("a process has failed".into());
        }
        let mut numbers =
            told.chunks_exact(8).map(|it| u64::from_le_bytes(it.try_into().unwrap_or_default()));
        returns += usize::try_from(numbers.next().ok_or("it has told nothing")?)?;
        while let (Some(one), Some(other)) = (numbers.next(), numbers.next()) {
            introductions.add(Duration::from_nanos(one))?;
            forwarding.add(Duration::from_nanos(other))?;
        }
    }
    let stats = server.stats();
    let driver = reactor.driver().to_string();
    drop((serving, server, executor, folder));
    reactor.turn(ring::Wait::Not)?;
    drop(reactor);
    ring::closer_idle();
    let after = descriptors()?;
    let allowed = descriptors_max(before, arguments.peers) + 2 * arguments.processes;
    // From another process nobody can see who is away.
    let to_the_absent = 0;
    let descriptors = Descriptors { before, most, allowed, after };
    Ok(Outcome { driver, introductions, forwarding, descriptors, to_the_absent, returns, stats })
}

/// One of all peers, as each process knows it.
fn identity(place: usize) -> Identity {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(place as u64).to_le_bytes());
    Identity::from_seed(&seed)
}

/// The peers of one process.
struct Members {
    reactor: Reactor,
    path: PathBuf,
    server: PublicKey,
    proof: Proof,
    here: RefCell<Vec<Option<Here>>>,
    returning: RefCell<Vec<Companion>>,
    returns: Cell<u64>,
}

/// A peer, and the task that answers in its name.
type Here = (Rc<Netlayer>, Companion);

fn be_member(arguments: &Arguments, path: &Path, server: PublicKey, process: usize) -> Anything<()> {
    let before = descriptors()?;
    let own: Vec<usize> = (process..arguments.peers).step_by(arguments.processes).collect();
    let count = arguments.introductions / arguments.processes;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let members = Rc::new(Members {
        reactor: reactor.clone(),
        path: path.to_owned(),
        server,
        proof: arguments.proof(),
        here: RefCell::new((0..arguments.peers).map(|_| None).collect()),
        returning: RefCell::default(),
        returns: Cell::new(0),
    });
    let control = Socket::wrap(&reactor, line_to_the_parent()?)?;
    let mut told: Vec<u8> = Vec::new();
    executor.block_on(async {
        for place in &own {
            members.come(*place).await?;
        }
        control.send("here").await?;
        control.receive().await.map_err(|_| "the server has ended")?;
        let raw = Forwarding::new(&reactor)?;
        for round in 0..count {
            if round % STAY == STAY - 1 {
                members.leave_and_return(own[round / STAY % own.len()]);
            }
            if round % 8 == 0 {
                ring::closer_idle();
            }
            let asker = members.somebody_here(&own, round)?;
            let to = (round * 31 + process * 17 + 1) % arguments.peers;
            let time = members.ask(&asker, to).await?;
            if descriptors()? > descriptors_max(before, own.len()) {
                return Err(format!("{} descriptors in a process of peers", descriptors()?).into());
            }
            told.extend(u64::try_from(time.as_nanos())?.to_le_bytes());
            told.extend(u64::try_from(raw.pass_one().await?.as_nanos())?.to_le_bytes());
        }
        control.send("done").await?;
        // The others may still ask for ours.
        match control.receive().await {
            Err(ReceiveError::Closed) => Ok::<_, Box<dyn Error>>(()),
            other => Err(format!("{other:?}").into()),
        }
    })?;
    let mut out = io::stdout().lock();
    out.write_all(&members.returns.get().to_le_bytes())?;
    Ok(out.write_all(&told)?)
}

/// Standard input, which is the line to whoever started us.
fn line_to_the_parent() -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    io::stdin().as_fd().try_clone_to_owned()
}

impl Members {
    async fn come(self: &Rc<Members>, place: usize) -> Anything<()> {
        let line = Socket::connect(&self.reactor, &self.path, Kind::Stream).await?;
        let line = line.into_fd().map_err(|_| "a fresh socket is idle")?;
        let mut options = NetlayerOptions::default();
        options.proof = self.proof;
        let netlayer = Rc::new(Netlayer::with_options(&self.reactor, identity(place), options));
        let _gone = netlayer.add_server(line, Expect::key(self.server).bound()).await?;
        let answering = Rc::clone(&netlayer);
        let answers = self.reactor.companion(async move {
            loop {
                let Connection::SeqPacket(socket) = answering.incoming().await.accept() else { continue };
                // Whoever asked may be gone already.
                if socket.receive().await.is_ok() {
                    let _ = socket.try_send((place as u64).to_le_bytes().as_slice());
                }
            }
        });
        self.here.borrow_mut()[place] = Some((netlayer, answers));
        Ok(())
    }

    fn leave_and_return(self: &Rc<Members>, place: usize) {
        let left = self.here.borrow_mut()[place].take();
        let Some(left) = left else { return };
        drop(left);
        let members = Rc::clone(self);
        let returning = self.reactor.companion(async move {
            members.reactor.sleep(AWAY_TIME).await;
            match members.come(place).await {
                Ok(()) => members.returns.set(members.returns.get() + 1),
                Err(error) => eprintln!("a peer could not come back: {error}"),
            }
        });
        self.returning.borrow_mut().push(returning);
    }

    fn somebody_here(&self, own: &[usize], from: usize) -> Anything<Rc<Netlayer>> {
        let here = self.here.borrow();
        let mut places = (0..own.len()).map(|step| own[(from + step) % own.len()]);
        let found = places.find_map(|place| here[place].as_ref().map(|(netlayer, _)| Rc::clone(netlayer)));
        Ok(found.ok_or("all are away")?)
    }

    /// Asks for a peer, wherever it is, and hears from it that it is the one.
    async fn ask(&self, asker: &Netlayer, to: usize) -> Anything<Duration> {
        let mut location = Locator::new(identity(to).key());
        location.hints.servers.insert(self.server);
        location.hints.seqpacket = true;
        location.hints.proof = self.proof;
        let start = Instant::now();
        let Connection::SeqPacket(socket) = asker.connect(&location).await? else {
            return Err("a connection of another kind".into());
        };
        socket.send("who is it?").await?;
        let answer = socket.receive().await?;
        let time = start.elapsed();
        if answer.bytes() != (to as u64).to_le_bytes() { Err("somebody else".into()) } else { Ok(time) }
    }
}
