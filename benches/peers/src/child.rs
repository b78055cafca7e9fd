//! A server process of a peer: this program once more, told by its environment what to serve, on a CPU of its
//! caller's choice. It dies with whoever started it, and is waited for.

use std::env;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use perf::{Cpus, Wait};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::peer::{self, Peer, Terms};

/// Where a server finds what it is to do.
const SERVER_VARIABLE: &str = "SENDRIGHT_PEERS_SERVER";

/// Under which number it finds its end of the pair.
const END: i32 = 3;

/// How long it may take to end after its caller has gone.
const ENDING_TIME_MAX: Duration = Duration::from_secs(10);

/// How long after a call has failed it may take until its server is seen to be dead.
const DYING_TIME_MAX: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
struct Order {
    peer: Peer,
    terms: Terms,
    cpu: usize,
}

/// If this process was started as a server: serves, and ends the process. To be called first in `main`.
pub fn serve_if_asked() {
    let Some(order) = env::var_os(SERVER_VARIABLE) else { return };
    let served = serde_json::from_str(&order.to_string_lossy()).map_err(Failure::from).and_then(serve);
    if let Err(error) = served {
        eprintln!("a server of peers: {error}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

fn serve(order: Order) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Cpus::named(&order.cpu.to_string())?.pin_client()?;
    peer::serve(order.peer, order.terms, ring::inherit::take(END)?)
}

/// A server process. Dropping it kills it; [`end`](Child::end) sees it end by itself.
pub struct Child {
    process: std::process::Child,
    has_ended: bool,
    /// Looks for ever while it serves, and so must be stopped while it is not its turn.
    looks: bool,
}

impl Child {
    /// Starts one, with the end of the pair that its caller is to use. This thread keeps to its own CPU from
    /// then on.
    pub fn start(peer: Peer, terms: Terms, cpus: &Cpus) -> Result<(Child, OwnedFd), Failure> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, peer.socket_type(), flags, None)?;
        let mut command = Command::new(env::current_exe()?);
        command.env(SERVER_VARIABLE, serde_json::to_string(&Order { peer, terms, cpu: cpus.server })?);
        ring::inherit::give(&mut command, vec![(far, END)]);
        // It keeps to the CPUs of whoever starts it until it has found its own.
        cpus.unpin()?;
        let process = command.spawn();
        cpus.pin_client()?;
        Ok((Child { process: process?, has_ended: false, looks: terms.looks }, near))
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its turn begins: whoever looks may.
    pub fn wake(&self) -> Result<(), Failure> {
        self.signal(Signal::CONT)
    }

    /// Its turn is over: whoever looks would keep the CPU from the others' servers.
    pub fn rest(&self) -> Result<(), Failure> {
        self.signal(Signal::STOP)
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        match self.looks {
            true => Ok(rustix::process::kill_process(self.pid()?, signal)?),
            false => Ok(()),
        }
    }

    /// Waits for it to end by itself, which it does when its caller has gone.
    pub fn end(mut self) -> Result<(), Failure> {
        self.wake()?;
        match self.ended_within(ENDING_TIME_MAX)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("its server ended with {status}").into()),
            None => Err("its server does not end".into()),
        }
    }

    /// What to say of a call that has failed: that its server has died, if it has, which takes a moment to be
    /// seen.
    pub fn explained(&mut self, error: Failure) -> Failure {
        match self.ended_within(DYING_TIME_MAX) {
            Ok(Some(status)) => format!("its server ended with {status}: {error}").into(),
            _ => error,
        }
    }

    fn ended_within(&mut self, time: Duration) -> Result<Option<ExitStatus>, Failure> {
        let pidfd = rustix::process::pidfd_open(self.pid()?, PidfdFlags::empty())?;
        let time = Timespec::try_from(time)?;
        if rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time))? == 0 {
            return Ok(None);
        }
        let status = self.process.wait()?;
        self.has_ended = true;
        Ok(Some(status))
    }

    fn pid(&self) -> Result<Pid, Failure> {
        Pid::from_raw(self.process.id() as i32).ok_or_else(|| "a process without a number".into())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// How a peer is to wait, of what is wanted.
pub fn terms(peer: Peer, depth: usize, fds: usize, wanted: Wait) -> Terms {
    Terms { depth, has_descriptor: fds > 0, looks: peer.wait(wanted) == Wait::Spin }
}
