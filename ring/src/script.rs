//! Simulated worlds, for tests: several reactors on one thread, one clock, and one seed that decides whatever
//! the kernel leaves open.
//!
//! A world owns the clock and the seed; the reactors of its parties, and what runs on them, are the test's.
//! It runs whoever has something to do, in an order of its own, and lets time pass only when nobody has. What
//! happens in one can be repeated with its seed. It does not know what the parties do.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::closer::WORLDS;
pub use crate::driver::faults::{Fault, Faults, Happened, Sabotage};
use crate::driver::script::{Decision, Fate};
use crate::executor::Executor;
use crate::reactor::{Config, Reactor};
use crate::sys::{self, Interrupted};

/// So many steps without an end are taken for a world that goes round in circles.
pub const STEPS_MAX: u64 = 1_000_000;

/// From here on a broken pipe kills this process: Rust's programs ignore the signal, others that a library is
/// used by may not.
///
/// # Errors
/// The kernel's.
pub fn die_of_broken_pipes() -> io::Result<()> {
    sys::die_of_broken_pipes()
}

/// Sets an option of SOL_SOCKET by its number, as a stranger might who holds the socket too.
///
/// # Errors
/// The kernel's.
pub fn set_any_socket_option(fd: impl AsFd, number: i32, value: &[u8]) -> io::Result<()> {
    sys::set_any_socket_option(fd.as_fd(), number, value)
}

/// Has the kernel send SIGIO to a process whenever the descriptor is ready, for all who hold it.
///
/// # Errors
/// The kernel's.
pub fn signal_when_ready(fd: impl AsFd, process: i32) -> io::Result<()> {
    sys::signal_when_ready(fd.as_fd(), process)
}

/// From here on this signal (SIGALRM, SIGUSR1) only interrupts: with `restart` system calls begin again after
/// it where the kernel can (SA_RESTART), and without they fail with EINTR.
///
/// # Errors
/// The kernel's: no such signal.
pub fn catch_signal(signal: i32, restart: bool) -> io::Result<()> {
    sys::catch_signal(signal, if restart { Interrupted::BeginsAgain } else { Interrupted::Fails })
}

/// How many signals this process has [caught](catch_signal).
pub fn signals_caught() -> u64 {
    sys::SIGNALS_CAUGHT.load(Ordering::Relaxed)
}

/// A system call that a test may have refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemCall {
    /// `sendto`, `sendmsg` and `sendmmsg`.
    Send,
    /// `recvmsg`.
    Receive,
    /// `socketpair`.
    Pair,
    /// `io_uring_enter`.
    EnterRing,
    /// `epoll_ctl`.
    Watch,
}

impl SystemCall {
    /// All of them.
    pub const EACH: [SystemCall; 5] =
        [SystemCall::Send, SystemCall::Receive, SystemCall::Pair, SystemCall::EnterRing, SystemCall::Watch];
}

/// Calls that wait to be let through or refused: those of the thread that made this, and of what it starts.
/// When this is dropped they fail with ENOSYS.
#[derive(Debug)]
pub struct CallGate(OwnedFd);

impl CallGate {
    /// From here on each of these calls of this thread waits for [`answer`](CallGate::answer), which another
    /// thread gives. The thread may gain no privileges any more (`PR_SET_NO_NEW_PRIVS`), or is privileged.
    ///
    /// # Errors
    /// The kernel's: it lets no filter be installed, or not a second one of this kind.
    pub fn install(calls: &[SystemCall]) -> io::Result<CallGate> {
        let numbers: Vec<_> = calls.iter().flat_map(|call| sys::numbers_of(*call)).copied().collect();
        sys::have_calls_asked_about(&numbers).map(CallGate)
    }

    /// Waits for a call, and lets it go on, or fail with the error number that `judge` gives it.
    ///
    /// # Errors
    /// The kernel's: who made the call has been interrupted or is gone.
    pub fn answer(&self, judge: impl FnOnce(SystemCall) -> Option<i32>) -> io::Result<()> {
        let (number, id) = sys::call_asked_about(self.0.as_fd())?;
        let call = SystemCall::EACH.into_iter().find(|call| sys::numbers_of(*call).contains(&number));
        sys::answer_call(self.0.as_fd(), id, call.and_then(judge))
    }
}

impl AsFd for CallGate {
    /// Readable while a call waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One simulated world. While there is one in a process, descriptors are closed at once.
///
/// ```
/// # #[cfg(feature = "script")] {
/// use ring::script::{Faults, World};
/// use ring::{Executor, Kind, Socket};
///
/// let world = World::new(42, Faults::UNNOTICED);
/// let here = Executor::new(&world.reactor()?);
/// let there = Executor::new(&world.reactor()?);
/// let (near, far) = Socket::pair(here.reactor(), Kind::SeqPacket)?;
/// let far = Socket::wrap(there.reactor(), far).expect("a socket");
/// there.spawn(async move { far.send("hello").await.expect("somebody is there") });
/// let said = std::rc::Rc::new(std::cell::OnceCell::new());
/// let heard = std::rc::Rc::clone(&said);
/// here.spawn(async move {
///     let _ = heard.set(near.receive().await.expect("a message").into_bytes());
/// });
/// world.run(&[&here, &there], || said.get().is_some())?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct World {
    fate: Rc<Fate>,
    started: Instant,
}

impl World {
    /// A world in which so much goes wrong.
    pub fn new(seed: u64, faults: Faults) -> World {
        WORLDS.fetch_add(1, Ordering::Relaxed);
        let fate = Fate::new(seed, faults);
        let started = fate.now();
        World { fate, started }
    }

    /// What everything follows from.
    pub fn seed(&self) -> u64 {
        self.fate.seed()
    }

    /// From now on so much goes wrong, for all.
    pub fn set_faults(&self, faults: Faults) {
        self.fate.set_faults(faults);
    }

    /// From now on the drivers do what none of ours does, and somebody is to notice it.
    pub fn sabotage(&self, sabotage: Sabotage) {
        self.fate.set_sabotage(sabotage);
    }

    /// How often each kind of fault has happened so far.
    pub fn happened(&self) -> Happened {
        self.fate.happened()
    }

    /// One more party, with few buffers.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn reactor(&self) -> io::Result<Reactor> {
        self.reactor_with(&Config { buffers: 8, ..Config::default() })
    }

    /// One more party.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn reactor_with(&self, config: &Config) -> io::Result<Reactor> {
        Reactor::scripted(config, Rc::clone(&self.fate))
    }

    /// A number below `count`, for the test's own choices.
    pub fn below(&self, count: usize) -> usize {
        self.fate.below(count)
    }

    /// Whether something happens that happens in so many of a thousand cases.
    pub fn happens(&self, per_mille: u32) -> bool {
        self.fate.happens(per_mille)
    }

    /// A number that two worlds have in common when everything in them has happened in the same way.
    pub fn print(&self) -> u64 {
        self.fate.print()
    }

    /// The test has done something between two steps that a party may notice.
    pub fn stir(&self) {
        self.fate.stir();
    }

    /// How much time has passed.
    pub fn elapsed(&self) -> Duration {
        self.fate.now().saturating_duration_since(self.started)
    }

    /// The clock leaps ahead, between two steps: for everybody, whatever they were about to do.
    pub fn leap(&self, time: Duration) {
        self.fate.pass_until(self.fate.now() + time);
    }

    /// The process of this reactor is killed: from here on nothing of it happens. Whoever calls this drops
    /// the reactor, its executor and all that lives on it next; then its descriptors are closed, and nothing
    /// more is sent.
    pub fn kill(&self, reactor: &Reactor) {
        let Some(party) = reactor.with(|core, _| core.driver.party_of(&self.fate)) else { return };
        self.fate.remember(Decision { party, what: "is killed", slot: None, number: 0 });
        self.fate.count(Fault::Killed);
        if reactor.with(|core, _| core.driver.is_at_work()) {
            self.fate.count(Fault::KilledAtWork);
        }
        self.fate.parties.borrow_mut()[party].dead = true;
        self.fate.stir();
    }

    /// Runs the parties, in any order, until this holds; which is asked before each step.
    ///
    /// # Errors
    /// Nobody has anything to do any more, and nobody waits for a moment to come; or it never ends.
    pub fn run(&self, parties: &[&Executor], mut until: impl FnMut() -> bool) -> Result<(), Stuck> {
        // The test may have done something in between.
        self.fate.stir();
        for _ in 0..STEPS_MAX {
            if until() {
                return Ok(());
            }
            self.step(parties)?;
        }
        Err(Stuck { why: Why::Circling, fate: Rc::clone(&self.fate) })
    }

    /// Lets one party take a step, or time pass.
    ///
    /// # Errors
    /// Nobody has anything to do any more, and nobody waits for a moment to come.
    pub fn step(&self, parties: &[&Executor]) -> Result<(), Stuck> {
        let standings = self.fate.parties.borrow();
        let standing = |executor: &&&Executor| {
            let party = executor.reactor().with(|core, _| core.driver.party_of(&self.fate));
            standings[party.expect("a party of this world")]
        };
        let busy: Vec<&Executor> =
            parties.iter().filter(|executor| !standing(executor).idle).copied().collect();
        let due = parties.iter().filter_map(|executor| standing(&executor).due).min();
        drop(standings);
        match (busy.len(), due) {
            (0, Some(moment)) => self.fate.pass_until(moment),
            (0, None) => return Err(Stuck { why: Why::Still, fate: Rc::clone(&self.fate) }),
            (count, _) => {
                let one = busy[self.fate.below(count)];
                self.fate.conducted.set(true);
                let moved = one.step();
                self.fate.conducted.set(false);
                if moved {
                    self.fate.stir();
                }
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        WORLDS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.fate, f)
    }
}

/// A world in which nothing can happen any more, or which does not come to an end.
#[derive(Error)]
#[error("{why}: {fate}")]
pub struct Stuck {
    why: Why,
    fate: Rc<Fate>,
}

impl fmt::Debug for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, Error)]
enum Why {
    #[error("everybody waits for somebody else")]
    Still,
    #[error("it goes round in circles")]
    Circling,
}
