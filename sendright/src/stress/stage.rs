//! The processes of a stress run: started, killed at any moment, started again, and brought to rest.
//!
//! It owns every party, what outlives them (the objects' other ends, the way to the introduction server, the
//! pipes) and the thread that reads the journal. It uses no reactor and makes no call, so that what it checks
//! with is not what it checks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use introduction::PublicKey;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use super::client::DEPTH;
use super::deed::{Dice, Way};
use super::journal::{self, Event, Journal, Role};
use super::judge::{Judge, Tally};
use super::party::{self, JOURNAL_FD, Order};
use super::{CLIENTS, SERVERS, Settings, THIRDS};
use crate::output::{self, Failure};

/// How often the judging process looks for what there is to do.
const TICK: Duration = Duration::from_millis(2);

/// How often it looks how much memory everybody has, and draws.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a listener may outlive its process before the next one is started all the same.
const LINGERS_MAX: Duration = Duration::from_secs(10);

/// How long nobody may write anything down before what is missing is lost: more than the ten seconds for
/// which a closed socket keeps its last words, and more than a party may take to come to rest.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a process may take to end, and what was in flight to be gone, when nobody is left.
const END_TIME_MAX: Duration = Duration::from_secs(20);

/// Calls that a client is allowed at a time.
const ALLOWED_MAX: u64 = 1_024;

/// Connections that the introduction server is to take: of the living, and of some that have just died.
const CONNECTIONS_MAX: usize = 4 * (CLIENTS + SERVERS);

/// Calls under way at a time, of everybody together.
pub const UNDER_WAY_MAX: usize = CLIENTS * 2 * DEPTH;

/// What a run has come to.
#[derive(Debug)]
pub struct Ended {
    pub way: Way,
    pub tally: Tally,
    pub leaked: Vec<Leak>,
    pub max_rss_kib: u64,
    pub elapsed: Duration,
    pub sentences: Vec<String>,
    pub interrupted: bool,
}

/// Descriptors that are open and should not be.
#[derive(Debug)]
pub struct Leak {
    pub who: String,
    pub kind: String,
    pub count: u64,
}

/// Runs one way to its end.
pub fn run(settings: &Settings, way: Way, stop: &AtomicBool, bar: &ProgressBar) -> Result<Ended, Failure> {
    let started = Instant::now();
    let before = party::open();
    let mut stage = Stage::set(settings, way)?;
    let mut ended = match stage.play(stop, bar).and_then(|()| stage.rest(bar)) {
        Ok(rested) => stage.end(rested),
        Err(failure) => {
            stage.abandon();
            return Err(failure);
        }
    }?;
    ended.leaked.extend(more("this process", &party::open(), &before));
    ended.elapsed = started.elapsed();
    ended.interrupted = stop.load(Ordering::Relaxed);
    Ok(ended)
}

struct Stage<'a> {
    settings: &'a Settings,
    way: Way,
    place: tempfile::TempDir,
    introducer: Option<PublicKey>,
    /// What a fresh introduction server has open.
    fresh_introducer: BTreeMap<String, u32>,
    /// Both ends of what outlives whoever serves it.
    object: (OwnedFd, OwnedFd),
    thirds: Vec<(OwnedFd, OwnedFd)>,
    journal: Journal,
    journal_fd: OwnedFd,
    canary: (OwnedFd, OwnedFd),
    judge: Arc<Mutex<Judge>>,
    reader: JoinHandle<()>,
    actors: Vec<Actor>,
    /// Clients that have been killed, of which the journal is not read to the end yet, and what they might.
    ghosts: Vec<(u32, u64)>,
    lives: u32,
    max_rss_kib: u64,
    dice: Dice,
}

struct Actor {
    role: Role,
    life: u32,
    child: Child,
    /// The introduction server has none.
    control: Option<OwnedFd>,
    may_call: u64,
}

/// Who was there at the end, and how a fresh one of each kind compares.
struct Rested {
    leaked: Vec<Leak>,
}

impl<'a> Stage<'a> {
    fn set(settings: &'a Settings, way: Way) -> Result<Stage<'a>, Failure> {
        let place = tempfile::Builder::new().prefix("sendright-stress-").tempdir();
        let place = place.map_err(|error| {
            Failure::new(format_args!("no place for the introduction server: {error} (TMPDIR says where)"))
        })?;
        let (reading, writing) = io::pipe().map_err(not_started)?;
        let (canary, canary_copy) = io::pipe().map_err(not_started)?;
        rustix::io::ioctl_fionbio(&canary, true).map_err(|error| not_started(error.into()))?;
        let judge = Arc::new(Mutex::new(Judge::new(settings.fds)));
        let journal_fd = OwnedFd::from(writing);
        let journal = Journal::new(journal_fd.try_clone().map_err(not_started)?);
        let listener = Arc::clone(&judge);
        let copy = settings.journal.as_deref().map(append).transpose()?;
        let reader = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || read(reading, copy, &listener))
            .map_err(not_started)?;
        let thirds = (0..THIRDS).map(|_| pair()).collect::<io::Result<_>>().map_err(not_started)?;
        let mut stage = Stage {
            settings,
            way,
            place,
            introducer: None,
            fresh_introducer: BTreeMap::new(),
            object: pair().map_err(not_started)?,
            thirds,
            journal,
            journal_fd,
            canary: (canary.into(), canary_copy.into()),
            judge,
            reader,
            actors: Vec::new(),
            ghosts: Vec::new(),
            lives: 0,
            max_rss_kib: 0,
            dice: Dice::new(settings.seed),
        };
        for role in stage.cast() {
            if let Err(failure) = stage.start(role) {
                stage.abandon();
                return Err(failure);
            }
        }
        Ok(stage)
    }

    /// Everybody, in the order in which they are needed.
    fn cast(&self) -> Vec<Role> {
        let thirds = (0..THIRDS as u8).map(Role::Third);
        let servers = (0..SERVERS as u8).map(Role::Server);
        let clients = (0..CLIENTS as u8).map(Role::Client);
        [Role::Introducer].into_iter().chain(thirds).chain(servers).chain(clients).collect()
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // -- lives --------------------------------------------------------------------------------------------

    /// Begins a life.
    fn start(&mut self, role: Role) -> Result<(), Failure> {
        self.lives += 1;
        let life = self.lives;
        self.write(life, Event::Started { role })?;
        let actor = match role {
            Role::Introducer => self.start_introducer(life)?,
            _ => self.start_party(role, life)?,
        };
        self.actors.push(actor);
        Ok(())
    }

    fn start_introducer(&mut self, life: u32) -> Result<Actor, Failure> {
        self.let_the_last_one_go();
        let mut command = program("introduce", self.settings.driver.as_deref());
        command.arg("--socket").arg(self.place.path().join("introduce"));
        command.arg("--key").arg(self.place.path().join("key"));
        command.args(["--mode", "0600", "--candid", "--with-parent", "--log", "error"]);
        let most = CONNECTIONS_MAX.to_string();
        command.args(["--max-connections", &most, "--max-connections-per-user", &most]);
        command.args(["--max-introductions", "64"]);
        let is_first = self.introducer.is_none();
        command.stdout(if is_first { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdin(Stdio::null()).spawn().map_err(not_started)?;
        if let Some(stdout) = child.stdout.take() {
            let mut key = String::new();
            let read = BufReader::new(stdout).read_line(&mut key);
            let key = key.trim_end().parse();
            let (Ok(1..), Ok(key)) = (read, key) else {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Failure::new("the introduction server did not get ready"));
            };
            self.introducer = Some(key);
            self.fresh_introducer = party::kinds(&child.id().to_string());
        }
        Ok(Actor { role: Role::Introducer, life, child, control: None, may_call: 0 })
    }

    /// A killed server that had a ring is dead before its listener is closed, on a busy machine for longer
    /// than the next one would wait: it would find that another listens there, and end.
    fn let_the_last_one_go(&self) {
        let path = self.place.path().join("introduce");
        let begun = Instant::now();
        while begun.elapsed() < LINGERS_MAX && UnixStream::connect(&path).is_ok() {
            std::thread::sleep(TICK);
        }
    }

    fn start_party(&mut self, role: Role, life: u32) -> Result<Actor, Failure> {
        let (name, index) = match role {
            Role::Client(index) => ("client", index),
            Role::Server(index) => ("server", index),
            Role::Third(index) => ("third", index),
            Role::Introducer => return Err(Failure::new("no party")),
        };
        let key = self.introducer.ok_or_else(|| Failure::new("there is no introduction server"))?;
        let mut command = program("__stress", self.settings.driver.as_deref());
        command.args(["--role", name, "--index", &index.to_string(), "--life", &life.to_string()]);
        command.args(["--way", self.way.name(), "--fds", &self.settings.fds.to_string()]);
        command.args(["--seed", &self.settings.seed.to_string(), "--server", &key.to_string()]);
        command.arg("--via").arg(self.place.path().join("introduce"));
        if !self.settings.cpus.is_empty() {
            let cpu = self.settings.cpus[self.seat(role) % self.settings.cpus.len()];
            command.args(["--cpu", &cpu.to_string()]);
        }
        let (control, far) = pair().map_err(not_started)?;
        // In the order of their numbers: journal, canary, control, and what belongs to the role.
        let mut given = vec![&self.journal_fd, &self.canary.1, &far];
        let thirds = self.thirds.iter().map(|(_, address)| address);
        match role {
            Role::Client(_) => given.push(&self.object.1),
            Role::Server(0) => given.extend(thirds.chain([&self.object.0])),
            Role::Server(_) => given.extend(thirds),
            Role::Third(index) => given.push(&self.thirds[usize::from(index)].0),
            Role::Introducer => {}
        }
        let given = (JOURNAL_FD..).zip(given).map(|(number, fd)| Ok((fd.try_clone()?, number)));
        let given = given.collect::<io::Result<_>>().map_err(not_started)?;
        ring::inherit::give(&mut command, given);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(not_started)?;
        Ok(Actor { role, life, child, control: Some(control), may_call: 0 })
    }

    /// On which of the CPUs a role has its place: who calls whom is spread over them.
    fn seat(&self, role: Role) -> usize {
        match role {
            Role::Client(index) | Role::Third(index) => usize::from(index),
            Role::Server(index) => usize::from(index) + 1,
            Role::Introducer => 0,
        }
    }

    /// Ends a life at this very moment, and begins the next of the same role.
    fn kill(&mut self, index: usize) -> Result<(), Failure> {
        self.look_at_memory(index);
        let mut actor = self.actors.swap_remove(index);
        self.write(actor.life, Event::Killing)?;
        let _ = actor.child.kill();
        let _ = actor.child.wait();
        actor.until_hung_up()?;
        self.over(&actor, false)?;
        self.start(actor.role)
    }

    fn over(&mut self, actor: &Actor, well: bool) -> Result<(), Failure> {
        self.ghosts.push((actor.life, actor.may_call));
        // Everything it has written stands before this.
        self.write(actor.life, Event::Over { well })
    }

    fn write(&self, life: u32, event: Event) -> Result<(), Failure> {
        self.journal
            .write(life, event)
            .map_err(|error| Failure::new(format_args!("the journal cannot be written: {error}")))
    }

    // -- the play -----------------------------------------------------------------------------------------

    /// Has calls made and parties killed, until there were enough of the former.
    fn play(&mut self, stop: &AtomicBool, bar: &ProgressBar) -> Result<(), Failure> {
        let began = Instant::now();
        // The time that was asked for is for calls; starting everybody takes as long as it takes.
        let mut first_call = None;
        let (mut next_kill, mut next_look) = (self.next_kill(began), began);
        let mut progress = (0, began);
        loop {
            let now = Instant::now();
            let (calls, entries) = {
                let judge = self.judge();
                (judge.tally().calls, judge.entries())
            };
            if calls > 0 {
                first_call.get_or_insert(now);
            }
            let since = first_call.unwrap_or(began + SILENCE_MAX);
            let is_late = self.settings.time.is_some_and(|time| now >= since + time);
            if is_late && calls == 0 {
                self.judge().trouble("nobody has made a call".into());
            }
            if calls >= self.settings.calls || is_late || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if entries != progress.0 {
                progress = (entries, now);
            } else if now.saturating_duration_since(progress.1) > SILENCE_MAX {
                self.judge().trouble(format!("nothing has happened for {SILENCE_MAX:?}"));
                return Ok(());
            }
            self.allow_calls(calls);
            self.reap()?;
            if next_kill.is_some_and(|moment| now >= moment) {
                let victim = self.dice.roll(self.actors.len() as u64) as usize;
                self.kill(victim)?;
                next_kill = self.next_kill(Instant::now());
            }
            if now >= next_look {
                (0..self.actors.len()).for_each(|index| self.look_at_memory(index));
                self.draw(bar);
                next_look = now + LOOK_EVERY;
            }
            std::thread::sleep(TICK);
        }
    }

    /// From half the time that was asked for to one and a half of it.
    fn next_kill(&mut self, now: Instant) -> Option<Instant> {
        let every = self.settings.kill_every?;
        let micros = every.as_micros() as u64;
        Some(now + Duration::from_micros(micros / 2 + self.dice.roll(micros)))
    }

    /// Shares out the calls that are left, so that there are exactly as many as were asked for however many
    /// clients die without having made theirs.
    fn allow_calls(&mut self, calls: u64) {
        let judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        self.ghosts.retain(|(life, _)| !judge.is_over(*life));
        let ghosts = self.ghosts.iter().map(|(life, may)| may.saturating_sub(judge.calls_of(*life)));
        let living =
            self.actors.iter().map(|actor| actor.may_call.saturating_sub(judge.calls_of(actor.life)));
        let promised: u64 = ghosts.chain(living).sum();
        // Read again under the same lock: calls that were written down since would be promised twice.
        let calls = calls.max(judge.tally().calls);
        let mut left = self.settings.calls.saturating_sub(calls).saturating_sub(promised);
        let share = (left / CLIENTS as u64).clamp(1, ALLOWED_MAX);
        for actor in &mut self.actors {
            let Role::Client(_) = actor.role else { continue };
            let unused = actor.may_call.saturating_sub(judge.calls_of(actor.life));
            if left == 0 || unused > share / 2 {
                continue;
            }
            let more = share.min(left);
            if actor.tell(Order::Call(more)) {
                actor.may_call += more;
                left -= more;
            }
        }
    }

    /// Whoever has ended by itself is missed, and replaced.
    fn reap(&mut self) -> Result<(), Failure> {
        let mut index = 0;
        while index < self.actors.len() {
            match self.actors[index].child.try_wait() {
                Ok(Some(status)) => {
                    let actor = self.actors.swap_remove(index);
                    self.judge().trouble(format!("{}: {status}", actor.role));
                    self.over(&actor, false)?;
                    self.start(actor.role)?;
                }
                _ => index += 1,
            }
        }
        Ok(())
    }

    fn look_at_memory(&mut self, index: usize) {
        if let Some(kib) = party::peak_kib(&self.actors[index].child.id().to_string()) {
            self.max_rss_kib = self.max_rss_kib.max(kib);
        }
    }

    fn draw(&self, bar: &ProgressBar) {
        let judge = self.judge();
        let tally = judge.tally();
        bar.set_position(tally.calls);
        bar.set_message(format!("{}, {} killed", self.way.name(), tally.killed));
    }

    // -- the end ------------------------------------------------------------------------------------------

    /// Brings everybody to rest, those first who call, and compares each with a fresh one of its kind.
    fn rest(&mut self, bar: &ProgressBar) -> Result<Rested, Failure> {
        bar.set_message(format!("{}, coming to rest", self.way.name()));
        let is_client = |role: Role| matches!(role, Role::Client(_));
        let is_server = |role: Role| matches!(role, Role::Server(_));
        let is_third = |role: Role| matches!(role, Role::Third(_));
        let mut leaked = Vec::new();
        let mut all_rest = self.rest_all(is_client);
        all_rest &= self.rest_all(is_server);
        all_rest &= self.rest_all(is_third);
        if all_rest {
            let survivors = self.actors.len();
            for role in self.cast() {
                if !matches!(role, Role::Introducer) {
                    self.start(role)?;
                }
            }
            let fresh: Vec<(Role, u32)> = self.lives_from(survivors);
            self.rest_all(|_| true);
            let judge = self.judge();
            for actor in &self.actors[..survivors] {
                let fresh = fresh.iter().find(|(role, _)| *role == actor.role);
                let kinds = |life| judge.rest(life).map(|rest| &rest.kinds);
                if let Some((now, then)) = kinds(actor.life).zip(fresh.and_then(|(_, life)| kinds(*life))) {
                    leaked.extend(more(&actor.role.to_string(), now, then));
                }
            }
        }
        Ok(Rested { leaked })
    }

    fn lives_from(&self, index: usize) -> Vec<(Role, u32)> {
        self.actors[index..].iter().map(|actor| (actor.role, actor.life)).collect()
    }

    /// Has all of a kind let go of everything, and waits until they have. False if nothing happens any more.
    fn rest_all(&mut self, which: impl Fn(Role) -> bool) -> bool {
        let resting = |actor: &&mut Actor| actor.control.is_some() && which(actor.role);
        for actor in self.actors.iter_mut().filter(resting) {
            actor.tell(Order::Rest);
        }
        let mut progress = (0, Instant::now());
        loop {
            let (entries, left) = {
                let judge = self.judge();
                let left = |actor: &&Actor| {
                    actor.control.is_some() && which(actor.role) && judge.rest(actor.life).is_none()
                };
                (judge.entries(), self.actors.iter().filter(left).map(|actor| actor.role).collect::<Vec<_>>())
            };
            if left.is_empty() {
                return true;
            }
            if entries != progress.0 {
                progress = (entries, Instant::now());
            } else if progress.1.elapsed() > SILENCE_MAX {
                let who: Vec<_> = left.iter().map(Role::to_string).collect();
                self.judge().trouble(format!("not come to rest: {}", who.join(", ")));
                return false;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends everybody, and looks whether anything is left of what was in flight.
    fn end(mut self, rested: Rested) -> Result<Ended, Failure> {
        let Rested { mut leaked } = rested;
        let mut actors = std::mem::take(&mut self.actors);
        for actor in &actors {
            let peak = party::peak_kib(&actor.child.id().to_string());
            self.max_rss_kib = self.max_rss_kib.max(peak.unwrap_or(0));
        }
        actors.iter_mut().filter(|actor| actor.control.is_some()).for_each(|actor| {
            actor.tell(Order::End);
        });
        let (introducers, parties): (Vec<_>, Vec<_>) =
            actors.into_iter().partition(|actor| actor.role == Role::Introducer);
        for mut actor in parties {
            let well = actor.wait().is_some_and(|status| status.success());
            self.over(&actor, well)?;
        }
        for mut actor in introducers {
            leaked.extend(self.introducer_at_rest(&actor));
            let _ = kill_process(Pid::from_child(&actor.child), Signal::TERM);
            let well = actor.wait().is_some_and(|status| status.success());
            self.over(&actor, well)?;
        }
        let (way, max_rss_kib) = (self.way, self.max_rss_kib);
        let Stage { place, object, thirds, journal, journal_fd, canary, judge, reader, .. } = self;
        drop((object, thirds, journal, journal_fd));
        // It ends with the last who can write.
        let _ = reader.join();
        place.close().map_err(|error| Failure::new(format_args!("cleaning up: {error}")))?;
        let (watching, copy) = canary;
        drop(copy);
        if !is_alone(&watching, END_TIME_MAX) {
            leaked.push(Leak {
                who: "the kernel".into(),
                kind: "in flight, in nobody's queue".into(),
                count: 1,
            });
        }
        let judge = Arc::into_inner(judge).ok_or_else(|| Failure::new("the journal is still read"))?;
        let (tally, sentences) = judge.into_inner().unwrap_or_else(PoisonError::into_inner).end();
        let (elapsed, interrupted) = (Duration::ZERO, false);
        Ok(Ended { way, tally, leaked, max_rss_kib, elapsed, sentences, interrupted })
    }

    /// What the introduction server has open beyond a fresh one, when all its peers have left.
    fn introducer_at_rest(&self, actor: &Actor) -> Vec<Leak> {
        let since = Instant::now();
        loop {
            let now = party::kinds(&actor.child.id().to_string());
            let leaked = more("introduction server", &now, &self.fresh_introducer);
            if leaked.is_empty() || since.elapsed() > END_TIME_MAX {
                return leaked;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Something has failed: nobody is to stay behind.
    fn abandon(self) {
        let Stage { actors, journal, journal_fd, reader, .. } = self;
        for mut actor in actors {
            let _ = actor.child.kill();
            let _ = actor.child.wait();
        }
        drop((journal, journal_fd));
        let _ = reader.join();
    }
}

impl Actor {
    /// Says something to the party, if it is there.
    fn tell(&mut self, order: Order) -> bool {
        let sent = self.control.as_ref().map(|control| {
            rustix::net::send(control, &order.bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        });
        matches!(sent, Some(Ok(_)))
    }

    /// Waits until what it had open is closed. The kernel lets go of what an io_uring watches only some time
    /// after the process has ended, and until then others' messages still go to the dead.
    fn until_hung_up(&self) -> Result<(), Failure> {
        let Some(control) = &self.control else { return Ok(()) };
        let failed = |error: Errno| Failure::new(format_args!("waiting for the dead: {error}"));
        sockopt::set_socket_timeout(control, sockopt::Timeout::Recv, Some(END_TIME_MAX)).map_err(failed)?;
        loop {
            match rustix::net::recv(control, &mut [0_u8; 1], RecvFlags::empty()) {
                Ok((0, _)) => return Ok(()),
                // An order that was not read any more.
                Ok(_) | Err(Errno::CONNRESET | Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// How it ended, which it must do soon.
    fn wait(&mut self) -> Option<ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < END_TIME_MAX {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(TICK),
                ended => return ended.ok().flatten(),
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

/// The file in which the journal is kept, if somebody wants to read it.
fn append(path: &Path) -> Result<BufWriter<File>, Failure> {
    let file = File::options().append(true).create(true).open(path);
    let shown = output::printable(path.as_os_str().as_bytes());
    file.map(BufWriter::new).map_err(|error| Failure::new(format_args!("--journal {shown}: {error}")))
}

/// Reads the journal until nobody can write in it any more.
fn read(pipe: io::PipeReader, mut copy: Option<BufWriter<File>>, judge: &Mutex<Judge>) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let mut judge = judge.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = &mut copy
            && let Err(error) = copy.write_all(&line)
        {
            judge.trouble(format!("the journal cannot be kept: {error}"));
        }
        match journal::entry(&line) {
            Some(entry) => judge.see(entry),
            None => judge.trouble("a line of the journal is torn".into()),
        }
    }
}

/// Whether nobody has a copy of the other end of this pipe, wherever it may be. What lies in queues that lead
/// to themselves goes when the kernel looks for such, which it does when a socket is closed.
fn is_alone(pipe: &OwnedFd, time: Duration) -> bool {
    let since = Instant::now();
    let mut byte = [0];
    loop {
        match rustix::io::read(pipe.as_fd(), &mut byte) {
            Ok(0) => return true,
            _ if since.elapsed() > time => return false,
            _ => drop(pair()),
        }
        std::thread::sleep(TICK);
    }
}

/// What somebody has more than there was, by kind.
fn more(who: &str, now: &BTreeMap<String, u32>, then: &BTreeMap<String, u32>) -> Vec<Leak> {
    let more = now.iter().filter_map(|(kind, count)| {
        let more = count.saturating_sub(then.get(kind).copied().unwrap_or(0));
        (more > 0).then(|| Leak { who: who.to_owned(), kind: kind.clone(), count: more.into() })
    });
    more.collect()
}

/// This program once more.
fn program(command: &str, driver: Option<&str>) -> Command {
    // Whatever has become of the file it was started from.
    let mut program = match std::env::current_exe() {
        Ok(path) if !Path::new("/proc/self/exe").exists() => Command::new(path),
        _ => Command::new("/proc/self/exe"),
    };
    // In a group of its own: what is typed at the terminal is for the judging process.
    program.arg0("sendright").arg(command).process_group(0);
    if let Some(driver) = driver {
        program.arg("--driver").arg(driver);
    }
    program
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn not_started(error: io::Error) -> Failure {
    Failure::new(format_args!("cannot start the processes: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::BorrowedFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};

    use super::*;

    fn send(through: &OwnedFd, fds: &[BorrowedFd<'_>]) {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        rustix::net::sendmsg(through, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    }

    fn canary() -> (OwnedFd, OwnedFd) {
        let (watching, copy) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&watching, true).unwrap();
        (watching.into(), copy.into())
    }

    #[test]
    fn what_is_in_flight_in_a_queue_that_somebody_holds_is_noticed() {
        let (watching, copy) = canary();
        let (near, far) = pair().unwrap();
        send(&near, &[copy.as_fd()]);
        drop(copy);
        assert!(!is_alone(&watching, Duration::ZERO));
        drop((near, far));
        assert!(is_alone(&watching, END_TIME_MAX));
    }

    #[test]
    fn what_is_in_flight_in_a_queue_that_leads_to_itself_is_collected() {
        let (watching, copy) = canary();
        let (near, far) = pair().unwrap();
        send(&near, &[copy.as_fd(), far.as_fd()]);
        drop((copy, near, far));
        assert!(is_alone(&watching, END_TIME_MAX));
    }

    #[test]
    fn only_what_is_more_than_before_is_a_leak() {
        let kinds = |kinds: &[(&str, u32)]| kinds.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
        let leaked = more("x", &kinds(&[("socket", 3), ("pipe", 1)]), &kinds(&[("socket", 1), ("pipe", 2)]));
        assert_eq!(
            leaked.iter().map(|leak| (leak.kind.as_str(), leak.count)).collect::<Vec<_>>(),
            [("socket", 2)]
        );
    }
}
