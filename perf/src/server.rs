//! The other process: this program once more, told by an environment variable what to serve.
//!
//! It owns that variable, the child and how its death is told. It does not know what calls are made.

use std::env;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use ring::{Config, DriverChoice, Executor, Message, Reactor};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Signal};
use seqpacket::{Mailbox, PlainMailbox};
use serde::{Deserialize, Serialize};

use crate::floor;
use crate::place::{self, Wait};

/// What to serve, as JSON. Who sees it in its environment is a server.
const SERVER_VARIABLE: &str = "SENDRIGHT_PERF_SERVER";

/// Under which number a server finds its end of the pair.
const END: i32 = 3;

/// How long a server may take to end after the last holder of its object has gone, or to be seen dead after
/// its sockets have closed. Then it is killed, and that is an error.
const ENDING_TIME_MAX: Duration = Duration::from_secs(10);

/// Something that is served on one end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Service {
    /// Bare system calls: each packet is sent back.
    Echo {
        /// Whether packets may bring descriptors.
        fds: bool,
    },
    /// Bare system calls: each packet is sent back over the last of its descriptors.
    Continuations {
        /// Whether that descriptor goes home with the answer.
        returns: bool,
    },
    /// The mailbox of an object with sessions.
    Session,
    /// The mailbox of a plain object.
    Plain {
        /// Whether continuations go home with answers.
        returns: bool,
        /// How many descriptors a call may carry, if more than by default.
        fds: usize,
    },
}

/// What a server is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    service: Service,
    driver: String,
    spins: bool,
    cpu: usize,
}

/// If this process was started as a server: serves, and ends the process. To be called first in `main`.
pub fn serve_if_asked() {
    let Some(order) = env::var_os(SERVER_VARIABLE) else { return };
    let served = serde_json::from_str(&order.to_string_lossy())
        .map_err(Box::from)
        .and_then(|order: Order| serve(&order, ring::inherit::take(END)?));
    match served {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("a server of measurements: {error}");
            std::process::exit(1)
        }
    }
}

fn serve(order: &Order, end: OwnedFd) -> Result<(), Box<dyn Error>> {
    // Whoever measures may be killed while a call is under way, and then nobody would.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let wait = if order.spins { Wait::Spin } else { Wait::Sleep };
    // CPUs are counted when the reactor is made, and so before this process is told to keep to one.
    let reactor = match order.service {
        Service::Echo { .. } | Service::Continuations { .. } => None,
        _ => {
            let driver: DriverChoice = order.driver.parse()?;
            Some(Reactor::with_config(Config { driver, wait: wait.policy(), ..Config::default() })?)
        }
    };
    place::pin(&[order.cpu])?;
    match (&order.service, reactor) {
        (Service::Echo { fds }, _) => Ok(floor::serve_echo(end, *fds, wait)?),
        (Service::Continuations { returns }, _) => Ok(floor::serve_continuations(end, *returns, wait)?),
        (Service::Session, Some(reactor)) => serve_session(&reactor, end),
        (Service::Plain { returns, fds }, Some(reactor)) => serve_plain(&reactor, end, *returns, *fds),
        (_, None) => Err("a service that needs a reactor".into()),
    }
}

fn serve_session(reactor: &Reactor, end: OwnedFd) -> Result<(), Box<dyn Error>> {
    let mailbox = Mailbox::from_fd(reactor, end)?;
    Executor::new(reactor).block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let mut answer = Message::from(call.bytes());
            while let Some(descriptor) = call.take_descriptor() {
                answer.push_descriptor(descriptor);
            }
            call.answer(answer)?;
        }
        Ok(())
    })
}

fn serve_plain(reactor: &Reactor, end: OwnedFd, returns: bool, fds: usize) -> Result<(), Box<dyn Error>> {
    let mailbox = PlainMailbox::from_fd(reactor, end)?;
    if fds > seqpacket::PLAIN_ARGUMENTS_DEFAULT {
        mailbox.set_arguments_max(fds);
    }
    if returns {
        mailbox.return_continuations();
    }
    Executor::new(reactor).block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let mut answer = Message::from(call.bytes());
            while let Some(descriptor) = call.take_descriptor() {
                answer.push_descriptor(descriptor);
            }
            call.answer(answer)?;
        }
        Ok(())
    })
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

/// How and where a service is to run.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    /// The driver of its reactor, if it has one.
    pub driver: DriverChoice,
    /// How it waits.
    pub wait: Wait,
    /// Its CPU.
    pub cpu: usize,
}

/// A server process. Dropping it kills it; [`end`](Server::end) sees it end by itself.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
}

/// How a server ended that should not have, or not like this.
#[derive(Debug)]
pub struct Death {
    status: Option<ExitStatus>,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "it ended with {status}"),
            None => write!(f, "it did not end in {ENDING_TIME_MAX:?} and was killed"),
        }
    }
}

impl Server {
    /// Starts one with this end of a pair. It ends when nobody holds the other any more, and dies with the
    /// thread that started it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Program, service: &Service, at: Posting, end: OwnedFd) -> io::Result<Server> {
        let spins = at.wait == Wait::Spin;
        let order = Order { service: service.clone(), driver: at.driver.to_string(), spins, cpu: at.cpu };
        let mut command = Command::new(&program.0);
        command.env(SERVER_VARIABLE, serde_json::to_string(&order)?);
        // What the environment asks for is meant for those who choose drivers, and that was done.
        command.env_remove(ring::DRIVER_VARIABLE);
        ring::inherit::give(&mut command, vec![(end, END)]);
        Ok(Server { child: Some(command.spawn()?) })
    }

    /// Its process.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits for it to end by itself, which it does when nobody holds its object any more.
    ///
    /// # Errors
    /// It did not end, or not well.
    pub fn end(mut self) -> Result<(), Death> {
        match self.ended_within(ENDING_TIME_MAX) {
            Some(status) if status.success() => Ok(()),
            status => Err(Death { status }),
        }
    }

    /// After a call has failed: whether that is because it died, which takes a moment to be seen after its
    /// sockets have closed.
    pub fn death(&mut self) -> Option<Death> {
        let status = self.ended_within(Duration::from_secs(1))?;
        Some(Death { status: Some(status) })
    }

    fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        if let Some(pid) = Pid::from_raw(child.id() as i32)
            && let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            && let Ok(time) = Timespec::try_from(time)
        {
            let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
            let _ = rustix::event::poll(&mut ended, Some(&time));
        }
        let status = child.try_wait().ok()??;
        self.child = None;
        Some(status)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// As many descriptors as this process may have without asking anybody: hundreds of calls under way at a time
/// have one or two each. Children inherit it.
///
/// # Errors
/// The kernel's.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(rustix::process::setrlimit(Resource::Nofile, limit)?)
}
