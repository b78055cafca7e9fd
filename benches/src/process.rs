//! A suite's servers: the suite's own program once more, told by the environment which part to play.
//!
//! It owns the child from its start to its end, and says how it died. It does not know what is served.

use std::env;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use perf::Cpus;
use ring::{Config, DriverChoice, Reactor};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Signal};
use rustix::thread::CpuSet;

/// Why something could not be measured.
pub type Failure = Box<dyn Error>;

/// A part that a suite's servers can play: its name, and what it does.
pub type Part = (&'static str, fn(Order) -> Result<(), Failure>);

/// What a server is started with.
#[derive(Debug)]
pub struct Order {
    /// What it may use.
    pub given: Vec<OwnedFd>,
    /// What it is to do, in words of its part.
    pub told: String,
    /// What its reactor is to run on.
    pub driver: DriverChoice,
}

impl Order {
    /// A reactor on that driver, and otherwise as it is by default.
    ///
    /// # Errors
    /// The driver cannot be had.
    pub fn reactor(&self) -> Result<Reactor, Failure> {
        Ok(Reactor::with_config(Config { driver: self.driver, ..Config::default() })?)
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

const PART: &str = "SENDRIGHT_BENCHES_PART";
const TOLD: &str = "SENDRIGHT_BENCHES_TOLD";
const GIVEN: &str = "SENDRIGHT_BENCHES_GIVEN";
const DRIVER: &str = "SENDRIGHT_BENCHES_DRIVER";
const CPU: &str = "SENDRIGHT_BENCHES_CPU";

/// The first number a server's descriptors have; the others follow.
const FIRST_NUMBER: i32 = 3;

/// How long a server may take to end when it should. Then it is killed, and that is a failure.
const ENDING_TIME_MAX: Duration = Duration::from_secs(20);

/// Plays a part, and ends the process, if that is what it was started for. To be called first in `main`.
pub fn serve_if_asked(parts: &[Part]) {
    let Ok(asked) = env::var(PART) else { return };
    let played = match parts.iter().find(|(name, _)| *name == asked) {
        Some((_, part)) => play(*part),
        None => Err(format!("nobody here plays {asked}").into()),
    };
    match played {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{asked}: {error}");
            std::process::exit(1)
        }
    }
}

fn play(part: fn(Order) -> Result<(), Failure>) -> Result<(), Failure> {
    // The suite may be killed while a call is under way, and then nobody would end this process.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut cpu = CpuSet::new();
    cpu.set(env::var(CPU)?.parse()?);
    rustix::thread::sched_setaffinity(None, &cpu)?;
    let given: i32 = env::var(GIVEN)?.parse()?;
    let given = (FIRST_NUMBER..FIRST_NUMBER + given).map(ring::inherit::take).collect::<Result<_, _>>()?;
    part(Order { given, told: env::var(TOLD)?, driver: env::var(DRIVER)?.parse()? })
}

/// A process that plays a part. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    part: &'static str,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Starts one on the server's CPU. Its reactors have this driver.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        part: &'static str,
        told: &str,
        driver: DriverChoice,
        cpus: &Cpus,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Server, Failure> {
        let mut command = Command::new(env::current_exe()?);
        command.env(PART, part).env(TOLD, told).env(CPU, cpus.server.to_string());
        command.env(GIVEN, descriptors.len().to_string());
        command.env(DRIVER, driver.to_string());
        ring::inherit::give(&mut command, descriptors.into_iter().zip(FIRST_NUMBER..).collect());
        Ok(Server { part, child: command.spawn()?, ended: None })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What failed, and whether that was because this server has died: which takes a moment to be seen after
    /// its sockets have closed.
    pub fn blame(&mut self, error: impl Into<Failure>) -> Failure {
        let error = error.into();
        match self.ended_within(Duration::from_secs(1)) {
            Some(status) => format!("{error}: the server ({}) has ended, {status}", self.part).into(),
            None => error,
        }
    }

    /// Sees it end, which it does when nobody holds the other end of what it was given.
    ///
    /// # Errors
    /// It did not end, or not well.
    pub fn end(mut self) -> Result<(), Failure> {
        match self.ended_within(ENDING_TIME_MAX) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the server ({}) has ended, {status}", self.part).into()),
            None => Err(format!("the server ({}) did not end in {ENDING_TIME_MAX:?}", self.part).into()),
        }
    }

    fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let pidfd =
                rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).ok()?;
            let time = Timespec::try_from(time).ok()?;
            rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).ok()?;
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
