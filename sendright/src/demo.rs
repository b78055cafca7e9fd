//! The demonstration: a file service, a client without a file system that is introduced to it, and a third
//! process with one directory.
//!
//! It owns the processes, which are this program started again with a handful of descriptors and nothing else
//! in common, the comparison of what they report with direct reading, and the verdict. It must never take
//! part in the calls themselves: it uses no reactor, so that what it checks with is not what it checks.

mod compare;
mod direct;
mod hasher;
mod judge;
mod report;
mod sandbox;
pub mod service;
mod summary;
pub mod walker;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use crate::census::Census;
use crate::introduce;
use crate::latency::{Latencies, Way};
use crate::options::Demo;
use crate::output::{self, Failure, Outcome};
use compare::Comparison;
use direct::Go;
use judge::Introduction;
use report::{Fact, Record, Served, Walked};

/// What each process finds under which number.
const REPORT_FD: i32 = 3;
/// The service and the client: a line to the introduction server; or, where nobody is introduced, the mailbox
/// end of the root object and the address to attach to.
const LINE_FD: i32 = 4;
/// The service: the directory it exports.
const ROOT_FD: i32 = 5;
/// The client and the third process: the socket between them.
const GUEST_FD: i32 = 5;

/// What is said when a directory is handed over.
const HERE_IS_A_DIRECTORY: &[u8] = b"directory";

/// How long the service may take to register with the introduction server.
const READY_TIME_MAX: Duration = Duration::from_secs(10);

/// Connections that the introduction server is to take, and introductions.
const STRANGERS: usize = 2;

/// Descriptors for which the introduction server insists on room.
const SERVER_DESCRIPTORS: usize = introduce::DESCRIPTORS_RESERVE + 2 * STRANGERS;

/// Findings of direct reading, handed over so many at a time.
const BATCH: usize = 256;

/// Batches and packets on their way to the comparison; whoever is faster waits.
const EVENTS_MAX: usize = 64;

/// How often the progress is drawn, and how long the processes may take to end when all is said.
const DRAW_EVERY: Duration = Duration::from_millis(100);
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// How long it may take until a process whose sockets are closed has ended.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// How long nobody may say anything while nobody does anything either, looked at every so often. Counted in
/// looks, not by the clock: a demonstration that was suspended as a whole goes on when it is resumed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const IDLE_LOOKS_MAX: u32 = 12;

/// Processor time between two looks that is no work but the looking itself.
const IDLE_TICKS_MAX: u64 = 1;

/// Descriptors each process needs beyond those it starts with, however little it holds at a time.
const DESCRIPTORS_NEEDED: usize = 48;

/// Runs the demonstration and says how it went.
pub fn run(options: &Demo) -> Result<Outcome, Failure> {
    let path = options.directory.clone().unwrap_or_else(default_directory);
    let root = direct::open_root(&path)
        .map_err(|error| Failure::new(format_args!("cannot open {}: {error}", printable(&path))))?;
    if let Some(failure) = no_such_driver(options) {
        return Err(failure);
    }
    enough_descriptors(options)?;
    let started = Instant::now();
    let began = now();
    let granted = direct::pick_directory(root.as_fd())
        .map_err(|error| Failure::new(format_args!("cannot read {}: {error}", printable(&path))))?;

    let (mut stage, introduction) = Stage::set(options, &path, &root, granted.as_deref())?;
    let bar = progress(options);
    let mut story = Story::new(granted.clone(), introduction);
    watch(&mut stage, &mut story, &root, &bar);
    bar.finish_and_clear();
    let ends = stage.end();

    let judgement = judge::judge(story, &ends, root.as_fd(), began, granted.as_deref());
    let summary = summary::Summary::new(&judgement, &path, granted.as_deref(), started.elapsed());
    let told = match options.json {
        true => output::say(&summary.json()),
        false => output::say(&summary.text()),
    };
    told?;
    Ok(if judgement.is_good() { Outcome::Good } else { Outcome::Failed })
}

/// The checkout around the current directory, or else the current directory.
fn default_directory() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let checkout = here.ancestors().find(|directory| directory.join(".git").exists());
    checkout.map_or_else(|| here.clone(), Path::to_path_buf)
}

/// The three processes would each complain of a driver that cannot be had; once is enough.
fn no_such_driver(options: &Demo) -> Option<Failure> {
    crate::reactor::start(options.driver.as_deref()).err()
}

/// With hardly any descriptors the processes would wait for room that never comes.
fn enough_descriptors(options: &Demo) -> Result<(), Failure> {
    let open = count(&mut Census::open())?.and_then(|open| usize::try_from(open).ok());
    let needed = open.unwrap_or_default() + DESCRIPTORS_NEEDED;
    let limit = crate::reactor::descriptors_max();
    if limit < needed {
        let advice = "raise it with `ulimit -n`";
        return Err(Failure::new(format_args!(
            "RLIMIT_NOFILE is {limit}, and {needed} are needed: {advice}"
        )));
    }
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if let Some(hard) = hard.filter(|hard| *hard < SERVER_DESCRIPTORS as u64 && !options.inherited) {
        return Err(Failure::new(format_args!(
            "the hard RLIMIT_NOFILE is {hard}, and an introduction server needs {SERVER_DESCRIPTORS}: raise \
             it, or do without with --inherited"
        )));
    }
    Ok(())
}

/// The time by the clock that stamps changes of files, which goes by ticks and lies behind the exact one.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Duration::try_from(now).unwrap_or_default()
}

fn printable(path: &Path) -> String {
    output::printable(path.as_os_str().as_bytes())
}

// -- the processes ------------------------------------------------------------------------------------------

/// One of the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Server,
    Service,
    Client,
    Guest,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Server, Role::Service, Role::Client, Role::Guest];

    /// What it is called in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Role::Server => "introduction server",
            Role::Service => "service",
            Role::Client => "client",
            Role::Guest => "third process",
        }
    }
}

/// The processes, as long as they run.
struct Stage {
    actors: Vec<Actor>,
}

struct Actor {
    role: Role,
    child: Child,
    /// Where it tells what it does; the introduction server tells nothing.
    report: Option<OwnedFd>,
    /// How it ended, once that is known.
    status: Option<ExitStatus>,
}

impl Stage {
    /// Starts everybody. With an introduction it also gives what is known of it so far.
    fn set(
        options: &Demo,
        path: &Path,
        root: &OwnedFd,
        granted: Option<&[u8]>,
    ) -> Result<(Stage, Option<Introduction>), Failure> {
        let mut stage = Stage { actors: Vec::new() };
        let (to_guest, from_client) = pair().map_err(not_started)?;
        let root = root.try_clone().map_err(not_started)?;
        let mut service = program("__service", options);
        let mut client = program("__walker", options);
        client.arg("--forbidden").arg(path);
        if let Some(name) = granted {
            // In one word, since the name may begin with a dash.
            client.arg(joined(b"--grant=", name));
        }

        let introduction = match options.inherited {
            true => {
                let (mailbox, address) = pair().map_err(not_started)?;
                stage.start(Role::Service, service, vec![(mailbox, LINE_FD), (root, ROOT_FD)])?;
                stage.start(Role::Client, client, vec![(address, LINE_FD), (to_guest, GUEST_FD)])?;
                None
            }
            false => {
                let (server, lines) = stage.start_server(options)?;
                let [line, clients_line] = lines;
                service.arg("--server").arg(&server);
                stage.start(Role::Service, service, vec![(line, LINE_FD), (root, ROOT_FD)])?;
                let locator = stage.locator_of_service()?;
                client.arg("--server").arg(&server).arg("--locator").arg(&locator);
                stage.start(Role::Client, client, vec![(clients_line, LINE_FD), (to_guest, GUEST_FD)])?;
                Some(Introduction { server, locator, client: None, service: None, stepped_out: false })
            }
        };

        let mut guest = program("__walker", options);
        guest.arg("--guest").arg("--forbidden").arg(path);
        stage.start(Role::Guest, guest, vec![(from_client, GUEST_FD)])?;
        Ok((stage, introduction))
    }

    /// Starts a process. The command ends here, and with it the descriptors that it has given: a mailbox end
    /// kept here would hide the service's death.
    fn start(
        &mut self,
        role: Role,
        mut command: Command,
        mut given: Vec<(OwnedFd, i32)>,
    ) -> Result<(), Failure> {
        let (report, far) = pair().map_err(not_started)?;
        given.push((far, REPORT_FD));
        ring::inherit::give(&mut command, given);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(not_started)?;
        self.actors.push(Actor { role, child, report: Some(report), status: None });
        Ok(())
    }

    /// Starts an introduction server in a private place, which the processes need not reach: each gets a line
    /// that is connected already. Gives the server's key and the lines.
    fn start_server(&mut self, options: &Demo) -> Result<(String, [OwnedFd; 2]), Failure> {
        let place = tempfile::Builder::new().prefix("sendright-demo-").tempdir();
        let place = place.map_err(|error| {
            Failure::new(format_args!(
                "no place for the introduction server: {error} (TMPDIR says where, --inherited does without)"
            ))
        })?;
        let path = place.path().join("introduce");
        let mut command = program("introduce", options);
        command.arg("--socket").arg(&path).args(["--mode", "0600", "--fresh-key", "--with-parent"]);
        let most = STRANGERS.to_string();
        command.args(["--max-connections", &most, "--max-connections-per-user", &most]);
        command.args(["--max-introductions", &most, "--log", "error"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(not_started)?;
        let stdout = child.stdout.take();
        self.actors.push(Actor { role: Role::Server, child, report: None, status: None });
        let mut key = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut key));
        if !matches!(read, Some(Ok(1..))) {
            return Err(Failure::new("the introduction server did not get ready"));
        }
        let line = || UnixStream::connect(&path).map(OwnedFd::from).map_err(not_started);
        let lines = [line()?, line()?];
        // Nobody else is to come, and nothing is left behind however this ends.
        place.close().map_err(not_started)?;
        Ok((key.trim_end().to_string(), lines))
    }

    /// Waits for the first thing that the service says: where it is to be found.
    fn locator_of_service(&self) -> Result<String, Failure> {
        let failed = || Failure::new("the service did not register with the introduction server");
        let service = self.actors.iter().find(|actor| actor.role == Role::Service);
        let report = service.and_then(|service| service.report.as_ref()).ok_or_else(failed)?;
        let set = |time| sockopt::set_socket_timeout(report, sockopt::Timeout::Recv, time);
        set(Some(READY_TIME_MAX)).map_err(|_| failed())?;
        let mut buffer = vec![0; report::PACKET_BYTES_MAX];
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(report, &mut *buffer, RecvFlags::empty()))
                .map_err(|_| failed())?;
        set(None).map_err(|_| failed())?;
        match report::records(&buffer[..length]).next() {
            Some(Ok(Record::Listed { locator })) => Ok(locator),
            _ => Err(failed()),
        }
    }

    /// Ends the introduction server, in good order. Says whether that is how it ended.
    fn dismiss_server(&mut self) -> bool {
        let Some(server) = self.actors.iter_mut().find(|actor| actor.role == Role::Server) else {
            return false;
        };
        if server.status.is_none() {
            let _ = kill_process(Pid::from_child(&server.child), Signal::TERM);
            server.status = server.end(Instant::now() + END_TIME_MAX);
        }
        server.status.is_some_and(|status| status.success())
    }

    /// Waits for what is left to end, and ends what does not.
    fn end(mut self) -> HashMap<Role, End> {
        let deadline = Instant::now() + END_TIME_MAX;
        let mut ends = HashMap::new();
        for actor in &mut self.actors {
            let by_itself = actor.status.is_some();
            let status = actor.end(deadline);
            ends.insert(actor.role, End { pid: actor.child.id(), status, by_itself });
        }
        ends
    }

    /// Learns how the process ended that was the first to fall silent, and who else has ended by itself by
    /// then: one may give up because another has died, and be heard of first.
    fn settle(&mut self, role: Role) {
        let deadline = Instant::now() + END_TIME_MAX;
        for actor in self.actors.iter_mut().filter(|actor| actor.role == role) {
            actor.status = actor.end(deadline);
        }
        std::thread::sleep(SETTLE_TIME);
        for actor in self.actors.iter_mut().filter(|actor| actor.role != role) {
            actor.status = actor.child.try_wait().ok().flatten();
        }
    }

    /// Processor time that all have used so far, this process included, in ticks.
    fn ticks(&self) -> u64 {
        let ids = self.actors.iter().map(|actor| actor.child.id()).chain([std::process::id()]);
        ids.filter_map(ticks_of).sum()
    }

    fn kill_all(&mut self) {
        for actor in &mut self.actors {
            let _ = actor.child.kill();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_all();
        for actor in &mut self.actors {
            let _ = actor.child.wait();
        }
    }
}

impl Actor {
    fn end(&mut self, deadline: Instant) -> Option<ExitStatus> {
        if self.status.is_some() {
            return self.status;
        }
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return None;
                }
            }
        }
    }
}

/// User and system time of a process, as the kernel tells it.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything; the third field follows it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// How a process ended; no status if it had to be ended.
pub struct End {
    pub pid: u32,
    pub status: Option<ExitStatus>,
    /// Before it was asked to.
    pub by_itself: bool,
}

fn program(command: &str, options: &Demo) -> Command {
    // Whatever has become of the file it was started from.
    let mut program = match std::env::current_exe() {
        Ok(path) if !Path::new("/proc/self/exe").exists() => Command::new(path),
        _ => Command::new("/proc/self/exe"),
    };
    program.arg0("sendright").arg(command);
    if let Some(driver) = &options.driver {
        program.arg("--driver").arg(driver);
    }
    program
}

fn joined(option: &[u8], value: &[u8]) -> std::ffi::OsString {
    OsStr::from_bytes(&[option, value].concat()).to_os_string()
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// In a process of the demonstration: claims what it was started with.
fn inherited(number: i32) -> Result<OwnedFd, Failure> {
    let what = "this is a part of `sendright demo`, which starts it";
    ring::inherit::take(number).map_err(|error| Failure::usage(format_args!("{what}: {error}")))
}

/// In a process of the demonstration: it has no purpose without the one that started it.
fn die_with_parent() {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// In a process of the demonstration: how many descriptors it has.
fn count(census: &mut Census) -> Result<Option<i64>, Failure> {
    census.count().map_err(|error| Failure::new(format_args!("counting descriptors: {error}")))
}

fn not_started(error: io::Error) -> Failure {
    Failure::new(format_args!("cannot start the processes: {error}"))
}

/// In a process of the demonstration: a part of its report, sent at once. The last words are sent when
/// everything else is gone.
fn send_records(report: &OwnedFd, records: &[Record<'_>]) -> Result<(), Failure> {
    let mut packet = Vec::new();
    for record in records {
        record.encode(&mut packet);
        if packet.len() >= report::PACKET_BYTES_SOFT {
            send_packet(report, &std::mem::take(&mut packet))?;
        }
    }
    send_packet(report, &packet)
}

fn send_packet(report: &OwnedFd, packet: &[u8]) -> Result<(), Failure> {
    if packet.is_empty() {
        return Ok(());
    }
    rustix::io::retry_on_intr(|| rustix::net::send(report, packet, SendFlags::NOSIGNAL))
        .map(drop)
        .map_err(|error| Failure::new(format_args!("reporting: {error}")))
}

// -- what they say ------------------------------------------------------------------------------------------

/// Everything the demonstration heard.
#[derive(Debug)]
pub struct Story {
    granted: Option<Vec<u8>>,
    /// The client's reading of the whole tree, against direct reading.
    pub whole: Comparison,
    /// The third process's reading of the granted directory, against the same.
    pub part: Comparison,
    pub walked: HashMap<Role, Walked>,
    pub served: Option<Served>,
    /// How client and service have met, where they had to.
    pub introduction: Option<Introduction>,
    pub session: Latencies,
    pub plain: Latencies,
    /// What went wrong that is no property of the tree.
    pub trouble: Vec<String>,
    /// Why it ended early, if it did.
    pub cut: Option<Cut>,
    /// Names of directories by number, for each walking process.
    paths: HashMap<Role, Vec<Vec<u8>>>,
    /// Places found by direct reading, and whether that is all.
    found: u64,
}

/// Something happened.
enum Event {
    /// Direct reading found these.
    Direct(Vec<(Vec<u8>, Fact)>),
    /// Direct reading has ended.
    DirectEnd(io::Result<()>),
    /// A process reported a packet of records.
    Packet(Role, Vec<u8>),
    /// A process will report nothing more.
    ReportEnd(Role),
}

impl Story {
    fn new(granted: Option<Vec<u8>>, introduction: Option<Introduction>) -> Story {
        Story {
            granted,
            whole: Comparison::default(),
            part: Comparison::default(),
            walked: HashMap::new(),
            served: None,
            introduction,
            session: Latencies::new(),
            plain: Latencies::new(),
            trouble: Vec::new(),
            cut: None,
            // The root has the first number and no name.
            paths: HashMap::from([(Role::Client, vec![Vec::new()]), (Role::Guest, vec![Vec::new()])]),
            found: 0,
        }
    }

    fn direct(&mut self, path: Vec<u8>, fact: Fact) {
        self.found += 1;
        if let Some(below) = self.below_granted(&path) {
            self.part.direct(below, fact.clone());
        }
        self.whole.direct(path, fact);
    }

    /// The same path as the third process has it, if it is in what that was granted.
    fn below_granted(&self, path: &[u8]) -> Option<Vec<u8>> {
        match &self.granted {
            None => Some(path.to_vec()),
            Some(granted) => match path.strip_prefix(granted.as_slice())? {
                [] => Some(Vec::new()),
                [b'/', below @ ..] => Some(below.to_vec()),
                _ => None,
            },
        }
    }

    /// Takes a packet of records. `false` if it is none.
    fn packet(&mut self, role: Role, packet: &[u8]) -> bool {
        for record in report::records(packet) {
            let understood = match record {
                Ok(record) => self.record(role, record).is_some(),
                Err(report::Nonsense) => false,
            };
            if !understood {
                self.trouble.push(format!("the {} reported nonsense", role.name()));
                return false;
            }
        }
        true
    }

    fn record(&mut self, role: Role, record: Record<'_>) -> Option<()> {
        match record {
            Record::Number { number, parent, name } => {
                let paths = self.paths.get_mut(&role)?;
                let path = direct::join(paths.get(usize::try_from(parent).ok()?)?, name.bytes());
                // Numbers are given in order: a list is enough.
                (paths.len() == usize::try_from(number).ok()?).then(|| paths.push(path))
            }
            Record::Found { directory, name, fact } => {
                let directory = self.paths.get(&role)?.get(usize::try_from(directory).ok()?)?;
                let path = match name {
                    Some(name) => direct::join(directory, name.bytes()),
                    None => directory.clone(),
                };
                match role {
                    Role::Client => self.whole.reported(path, fact),
                    Role::Guest => self.part.reported(path, fact),
                    Role::Server | Role::Service => return None,
                }
                Some(())
            }
            // That is heard before anything else, or not at all.
            Record::Listed { .. } => None,
            Record::Met(met) => {
                let introduction = self.introduction.as_mut()?;
                match role {
                    Role::Client => introduction.client = Some(met),
                    Role::Service => introduction.service = Some(met),
                    Role::Server | Role::Guest => return None,
                }
                Some(())
            }
            Record::Latency { way, latency_ns, calls } => {
                match way {
                    Way::Session => self.session.record_many(latency_ns, calls),
                    Way::Plain => self.plain.record_many(latency_ns, calls),
                }
                Some(())
            }
            Record::Trouble { sentence } => {
                self.trouble.push(format!("{}: {sentence}", role.name()));
                Some(())
            }
            Record::Walked(walked) => {
                self.walked.insert(role, walked);
                Some(())
            }
            Record::Served(served) => {
                self.served = Some(served);
                Some(())
            }
        }
    }

    /// Whether client and service have met, and the server is still there.
    fn needs_no_server(&self) -> bool {
        self.introduction.as_ref().is_some_and(|introduction| {
            introduction.client.is_some() && introduction.service.is_some() && !introduction.stepped_out
        })
    }

    fn has_last_words_of(&self, role: Role) -> bool {
        match role {
            Role::Server => true,
            Role::Service => self.served.is_some(),
            Role::Client | Role::Guest => self.walked.contains_key(&role),
        }
    }
}

/// Listens to everybody until all has been said, or somebody has died.
fn watch(stage: &mut Stage, story: &mut Story, root: &OwnedFd, bar: &ProgressBar) {
    let (sender, events) = mpsc::sync_channel(EVENTS_MAX);
    for actor in &mut stage.actors {
        if let Some(report) = actor.report.take() {
            let (role, sender) = (actor.role, sender.clone());
            start_thread("report", move || listen(role, &report, &sender));
        }
    }
    match root.try_clone() {
        Ok(root) => start_thread("direct", move || read_directly(&root, &sender)),
        Err(error) => {
            story.trouble.push(format!("reading directly: {error}"));
            story.cut = Some(Cut::Trouble);
            return stage.kill_all();
        }
    }
    if let Err(cut) = hear(&events, story, stage, bar) {
        if let Cut::Died(role) = cut {
            // How it ended is known in a moment, and what the others are about to suffer must not hide it.
            stage.settle(role);
        }
        story.cut = Some(cut);
        // Whoever is left waits for somebody who will not come.
        stage.kill_all();
    }
}

/// Why the demonstration ended before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A process ended without its last words.
    Died(Role),
    /// Told as trouble.
    Trouble,
}

/// Takes events until each process has had its last words and direct reading has ended.
fn hear(
    events: &Receiver<Event>,
    story: &mut Story,
    stage: &mut Stage,
    bar: &ProgressBar,
) -> Result<(), Cut> {
    let mut silent_left = stage.actors.iter().filter(|actor| actor.role != Role::Server).count();
    let mut direct_left = true;
    let mut drawn = Instant::now();
    while silent_left > 0 || direct_left {
        match next_event(events, story, stage)? {
            Event::Direct(batch) => {
                for (path, fact) in batch {
                    story.direct(path, fact);
                }
            }
            Event::DirectEnd(result) => {
                direct_left = false;
                if let Err(error) = result {
                    story.trouble.push(format!("reading directly: {error}"));
                    return Err(Cut::Trouble);
                }
            }
            Event::Packet(role, packet) => {
                if !story.packet(role, &packet) {
                    return Err(Cut::Trouble);
                }
                // Both have what they need: the client begins when the server is no more.
                if story.needs_no_server() {
                    let stepped_out = stage.dismiss_server();
                    if let Some(introduction) = &mut story.introduction {
                        introduction.stepped_out = stepped_out;
                    }
                    if !stepped_out {
                        return Err(Cut::Died(Role::Server));
                    }
                }
            }
            Event::ReportEnd(role) => {
                silent_left -= 1;
                if !story.has_last_words_of(role) {
                    return Err(Cut::Died(role));
                }
            }
        }
        if drawn.elapsed() >= DRAW_EVERY {
            drawn = Instant::now();
            bar.set_length(story.found.max(story.whole.settled()));
            bar.set_position(story.whole.settled());
            bar.set_message(format!("{} in the third process", story.part.settled()));
        }
    }
    Ok(())
}

/// The next event. An error when there will be none, because nobody is left or because everybody is stuck.
fn next_event(events: &Receiver<Event>, story: &mut Story, stage: &Stage) -> Result<Event, Cut> {
    let mut ticks = 0;
    let mut idle_looks = 0;
    loop {
        match events.recv_timeout(LOOK_EVERY) {
            Ok(event) => return Ok(event),
            Err(RecvTimeoutError::Disconnected) => return Err(Cut::Trouble),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // A file of many gigabytes is silence, but not idleness.
        let before = std::mem::replace(&mut ticks, stage.ticks());
        idle_looks = if ticks.saturating_sub(before) <= IDLE_TICKS_MAX { idle_looks + 1 } else { 0 };
        if idle_looks >= IDLE_LOOKS_MAX {
            let idle = LOOK_EVERY * idle_looks;
            story.trouble.push(format!("nothing has been said or done for {} s", idle.as_secs()));
            return Err(Cut::Trouble);
        }
    }
}

/// A thread that ends when nobody listens any more, and need not be waited for.
fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) {
    // Without the thread its sender is dropped, and the events end early: that is noticed.
    let _ = std::thread::Builder::new().name(name.into()).spawn(work);
}

fn listen(role: Role, report: &OwnedFd, events: &SyncSender<Event>) {
    let mut buffer = vec![0; report::PACKET_BYTES_MAX];
    loop {
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(report, &mut *buffer, RecvFlags::empty()));
        let event = match received {
            Ok((length, _)) if length > 0 => Event::Packet(role, buffer[..length].to_vec()),
            // The process died with something of ours unread, which it never has: look again for the end.
            Err(rustix::io::Errno::CONNRESET) => continue,
            _ => Event::ReportEnd(role),
        };
        let last = matches!(event, Event::ReportEnd(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn read_directly(root: &OwnedFd, events: &SyncSender<Event>) {
    let mut batch = Vec::with_capacity(BATCH);
    let result = direct::walk(root.as_fd(), |path, fact| {
        batch.push((path, fact));
        if batch.len() < BATCH {
            return Go::On;
        }
        match events.send(Event::Direct(std::mem::take(&mut batch))) {
            Ok(()) => Go::On,
            Err(_) => Go::Stop,
        }
    });
    let _ = events.send(Event::Direct(batch));
    let _ = events.send(Event::DirectEnd(result));
}

fn progress(options: &Demo) -> ProgressBar {
    if options.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bar:32} {human_pos} of {human_len} compared, {msg} [{elapsed}]";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message("0 in the third process");
    bar
}
