//! A server process of a peer: this program once more, playing a part that it does not have in common with
//! what measures us. It is stopped while it is not its turn if it would look meanwhile.

use std::os::fd::OwnedFd;

use perf::process::{Order, Part, Server};
use perf::{Cpus, Wait};
use ring::DriverChoice;
use rustix::net::{AddressFamily, SocketFlags};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::peer::{self, Peer, Terms};

/// What a server process is told to play.
pub const PART: Part = ("peer", play);

#[derive(Serialize, Deserialize)]
struct Told {
    peer: Peer,
    terms: Terms,
}

fn play(mut order: Order) -> Result<(), Failure> {
    let Told { peer, terms } = serde_json::from_str(&order.told)?;
    let [end] = order.take()?;
    peer::serve(peer, terms, end)
}

/// A server process. Dropping it kills it; [`end`](Child::end) sees it end by itself.
pub struct Child {
    server: Server,
    /// Looks for ever while it serves.
    looks: bool,
}

impl Child {
    /// Starts one, with the end of the pair that its caller is to use.
    pub fn start(peer: Peer, terms: Terms, cpus: &Cpus) -> Result<(Child, OwnedFd), Failure> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, peer.socket_type(), flags, None)?;
        let told = serde_json::to_string(&Told { peer, terms })?;
        let server = Server::start(PART.0, &told, DriverChoice::Auto, cpus, vec![far])?;
        Ok((Child { server, looks: terms.looks }, near))
    }

    pub fn id(&self) -> u32 {
        self.server.id()
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
        if self.looks {
            let pid = Pid::from_raw(self.id() as i32).ok_or("a process without a number")?;
            rustix::process::kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Waits for it to end by itself, which it does when its caller has gone.
    pub fn end(self) -> Result<(), Failure> {
        self.wake()?;
        Ok(self.server.end()?)
    }

    /// What failed, and whether that was because it has died.
    pub fn blame(&mut self, error: Failure) -> Failure {
        self.server.blame(error)
    }
}

/// How a peer is to wait, of what is wanted.
pub fn terms(peer: Peer, depth: usize, fds: usize, wanted: Wait) -> Terms {
    Terms { depth, has_descriptor: fds > 0, looks: peer.wait(wanted) == Wait::Spin }
}
