//! The other processes: this program once more, told by an environment variable which part to play.
//!
//! It owns that variable, and each child from its start to its end, and says how it died. It does not know
//! what is served.

use std::env;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use ring::{Config, DriverChoice, Reactor};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Signal};
use serde::{Deserialize, Serialize};

use crate::PARTS;
use crate::place::{self, Cpus, Wait};

/// Why something could not be measured.
pub type Failure = Box<dyn Error>;

/// A part that a server can play: its name, and what it does.
pub type Part = (&'static str, fn(Order) -> Result<(), Failure>);

/// What to play, as JSON. Who sees it in its environment is a server.
const VARIABLE: &str = "SENDRIGHT_PERF_SERVER";

/// The first number a server's descriptors have; the others follow.
const FIRST_NUMBER: i32 = 3;

/// How long a server may take to end when it should. Then it is killed, and that is a failure.
const ENDING_TIME_MAX: Duration = Duration::from_secs(20);

/// How long it may take until a server is seen to be dead after its sockets have closed.
const DYING_TIME_MAX: Duration = Duration::from_secs(1);

/// What a server is started with.
#[derive(Debug)]
pub struct Order {
    /// What it may use.
    pub given: Vec<OwnedFd>,
    /// What it is to do, in words of its part.
    pub told: String,
    /// What its reactor is to run on.
    pub driver: DriverChoice,
    /// How it waits.
    pub wait: Wait,
    /// Its CPU, and those it may use; none where nobody said.
    place: Option<(usize, Vec<usize>)>,
}

/// An order as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    part: String,
    told: String,
    given: i32,
    driver: String,
    spins: bool,
    cpu: usize,
}

impl Order {
    /// One for a server that sleeps, wherever it is.
    pub fn new(given: Vec<OwnedFd>, told: String, driver: DriverChoice) -> Order {
        Order { given, told, driver, wait: Wait::Sleep, place: None }
    }

    /// A reactor on that driver, waiting like that, and otherwise as it is by default.
    ///
    /// # Errors
    /// The driver cannot be had.
    pub fn reactor(&self) -> Result<Reactor, Failure> {
        let config = Config { driver: self.driver, wait: self.wait.policy(), ..Config::default() };
        let Some((cpu, allowed)) = &self.place else { return Ok(Reactor::with_config(config)?) };
        // CPUs are counted when a reactor is made, for the thread that makes it: one that keeps to its CPU
        // already would never look.
        place::pin(allowed)?;
        let reactor = Reactor::with_config(config);
        place::pin(&[*cpu])?;
        Ok(reactor?)
    }

    /// The descriptors, of which there are as many as expected.
    ///
    /// # Errors
    /// There are not.
    pub fn take<const N: usize>(&mut self) -> Result<[OwnedFd; N], Failure> {
        let given = std::mem::take(&mut self.given);
        given.try_into().map_err(|given: Vec<_>| format!("{} descriptors, not {N}", given.len()).into())
    }
}

/// Plays a part, and ends the process, if that is what it was started for. To be called first in `main`.
pub fn serve_if_asked() {
    serve_if_asked_as(&[]);
}

/// As [`serve_if_asked`], by a program that has parts of its own, too.
pub fn serve_if_asked_as(parts: &[Part]) {
    let Some(written) = env::var_os(VARIABLE) else { return };
    match play(parts, &written.to_string_lossy()) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("a server of measurements: {error}");
            std::process::exit(1)
        }
    }
}

fn play(parts: &[Part], written: &str) -> Result<(), Failure> {
    let Written { part, told, given, driver, spins, cpu } = serde_json::from_str(written)?;
    let mut known = parts.iter().chain(PARTS);
    let (_, play) =
        known.find(|(name, _)| *name == part).ok_or_else(|| format!("nobody here plays {part}"))?;
    // Whoever measures may be killed while a call is under way, and then nobody would end this process.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let allowed = place::allowed()?;
    place::pin(&[cpu])?;
    let given = (FIRST_NUMBER..FIRST_NUMBER + given).map(ring::inherit::take).collect::<Result<_, _>>()?;
    let wait = if spins { Wait::Spin } else { Wait::Sleep };
    play(Order { given, told, driver: driver.parse()?, wait, place: Some((cpu, allowed)) })
}

/// Which program servers are: this one, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Program(PathBuf);

impl Program {
    /// This one.
    ///
    /// # Errors
    /// Nobody knows its path.
    pub fn this() -> io::Result<Program> {
        env::current_exe().map(Program)
    }

    /// Another one that calls [`serve_if_asked`] first: for programs whose `main` is not theirs, as that of
    /// tests.
    pub fn at(path: impl Into<PathBuf>) -> Program {
        Program(path.into())
    }
}

/// How and where a server is to run.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    /// The driver of its reactor, if it has one.
    pub driver: DriverChoice,
    /// How it waits.
    pub wait: Wait,
    /// Its CPU.
    pub cpu: usize,
}

impl Posting {
    /// On the server's of these CPUs, waiting as they suggest.
    pub fn on(cpus: &Cpus, driver: DriverChoice) -> Posting {
        Posting { driver, wait: cpus.wait(), cpu: cpus.server }
    }
}

/// A process that plays a part. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    part: &'static str,
    child: Child,
    ended: Option<ExitStatus>,
}

/// How a server ended that should not have, or not like this.
#[derive(Debug)]
pub struct Death {
    part: &'static str,
    status: Option<ExitStatus>,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Death { part, .. } = self;
        match self.status {
            Some(status) => write!(f, "the server ({part}) has ended with {status}"),
            None => write!(f, "the server ({part}) did not end in {ENDING_TIME_MAX:?} and was killed"),
        }
    }
}

impl Error for Death {}

impl Server {
    /// Starts one that is this program once more, with these descriptors. It dies with the thread that
    /// started it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        part: &'static str,
        told: &str,
        driver: DriverChoice,
        cpus: &Cpus,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Server> {
        Server::start_with(&Program::this()?, part, told, Posting::on(cpus, driver), descriptors)
    }

    /// As [`start`](Server::start), another program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_with(
        program: &Program,
        part: &'static str,
        told: &str,
        at: Posting,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Server> {
        let written = Written {
            part: part.to_owned(),
            told: told.to_owned(),
            given: descriptors.len() as i32,
            driver: at.driver.to_string(),
            spins: at.wait == Wait::Spin,
            cpu: at.cpu,
        };
        let mut command = Command::new(&program.0);
        command.env(VARIABLE, serde_json::to_string(&written)?);
        ring::inherit::give(&mut command, descriptors.into_iter().zip(FIRST_NUMBER..).collect());
        Ok(Server { part, child: command.spawn()?, ended: None })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What failed, and whether that was because this server has died.
    pub fn blame(&mut self, error: impl Into<Failure>) -> Failure {
        let error = error.into();
        match self.death() {
            Some(death) => format!("{error}: {death}").into(),
            None => error,
        }
    }

    /// After something has failed: whether it has died, which takes a moment to be seen after its sockets
    /// have closed.
    pub fn death(&mut self) -> Option<Death> {
        let status = self.ended_within(DYING_TIME_MAX)?;
        Some(Death { part: self.part, status: Some(status) })
    }

    /// Sees it end, which it does when nobody holds the other end of what it was given.
    ///
    /// # Errors
    /// It did not end, or not well.
    pub fn end(mut self) -> Result<(), Death> {
        match self.ended_within(ENDING_TIME_MAX) {
            Some(status) if status.success() => Ok(()),
            status => Err(Death { part: self.part, status }),
        }
    }

    fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            match rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
                Ok(pidfd) => {
                    let time = Timespec::try_from(time).ok()?;
                    rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).ok()?;
                }
                // Nobody tells when it ends: valgrind, under which calls are counted, knows no pidfd.
                Err(_) => {
                    let asked_until = Instant::now() + time;
                    while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < asked_until {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            self.ended = self.child.try_wait().ok()?;
        }
        self.ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How many descriptors this process may have, after asking for so many.
///
/// The limit is raised to what the machine allows without asking anybody, and further where this process has
/// the right to. Children inherit it.
pub fn descriptors_allowed(wanted: u64) -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let mut raised = limit;
    raised.current = limit.maximum;
    // Without the right to it the first is refused.
    let mut further = limit;
    (further.current, further.maximum) = (Some(wanted), Some(wanted));
    if limit.maximum.is_none_or(|most| most >= wanted)
        || rustix::process::setrlimit(Resource::Nofile, further).is_err()
    {
        // Raising to one's own maximum needs no right.
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
