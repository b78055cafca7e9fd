//! The reactor asleep in a foreign loop: a guest of epoll, of tokio, of whatever owns `main`.
//!
//! It owns a reactor that never sleeps by itself, an executor, and one descriptor that is readable whenever
//! a turn would find something to do. It must never know which loop watches that descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::driver::{Sleep, SleepPlace, StartError};
use crate::executor::Executor;
use crate::fork::ForkedChild;
use crate::reactor::{Config, Reactor};

/// How many rounds one [`Guest::turn`] takes at most, so that guests that are never done do not starve their
/// host. In a round each task that is ready is polled once, and all that has arrived is brought home; a call
/// and its answer within one process are four or five.
pub const ROUNDS_MAX: usize = 32;

/// A reactor that sleeps in somebody else's loop.
///
/// Sockets and objects are made on its [`reactor`](Guest::reactor) and tasks run on its
/// [`executor`](Guest::executor) as on any. What it does not do is sleep: the host watches
/// [`as_fd`](AsFd::as_fd) for reading, level or edge triggered as it likes, and calls [`turn`](Guest::turn)
/// when it is readable.
///
/// The descriptor is readable whenever there is something to do: a message has come or can go, a timer is
/// due, a task was woken by another thread or between two turns by the host's own code, something was asked
/// for between two turns. A turn with nothing to do is allowed, and costs one system call. The descriptor is
/// not to be read, only watched.
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// use ring::{Guest, Kind, Socket};
/// use rustix::event::{PollFd, PollFlags, poll};
///
/// let guest = Guest::new()?;
/// let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket)?;
/// let far = Socket::wrap(guest.reactor(), far)?;
/// let heard = Rc::new(Cell::new(false));
/// let tells = Rc::clone(&heard);
/// guest.executor().spawn(async move {
///     tells.set(near.receive().await.is_ok());
/// });
/// guest.executor().spawn(async move {
///     let _ = far.send("hello").await;
/// });
///
/// // The host: any loop that can watch a descriptor.
/// while !heard.get() {
///     poll(&mut [PollFd::new(&guest, PollFlags::IN)], None)?;
///     guest.turn()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What the host notices
///
/// Nothing but the descriptor: no signals, no interrupted system calls, no threads. On io_uring the
/// descriptor is an eventfd that the ring writes to, and timers are the ring's; on epoll it is the epoll
/// itself, with a timer's descriptor inside. A timer that was set and unset again may wake the host once, in
/// vain.
///
/// # What stays as it is
///
/// A guest is not `Send` and stays in the process that made it, as any [`Reactor`]: in a forked child `turn`
/// says so ([`ForkedChild`]). [`Executor::block_on`]
/// and [`Reactor::turn`] work, and block the host with everything else on its thread until they return; what
/// they leave to do makes the descriptor readable. Tasks of other executors on this reactor are not run by
/// `turn`. A host that watches with epoll takes the descriptor out of it before the guest is dropped, as with
/// any descriptor.
pub struct Guest {
    executor: Executor,
    /// Our own, since what it refers to is the driver's, somewhere inside.
    watched: OwnedFd,
}

/// What a turn of a guest leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AfterTurn {
    /// Whether tasks are left on the guest's executor.
    pub tasks_left: bool,
    /// Whether the turn ended because it was long enough, with more to do at once. The descriptor is readable
    /// then; a host that does not like to ask it can call again.
    pub more: bool,
}

impl Guest {
    /// A guest as the machine allows it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new() -> Result<Guest, StartError> {
        Guest::with_config(Config::default())
    }

    /// A guest as asked for. [`Config::wait`] has no effect: the thread is the host's to burn.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn with_config(config: Config) -> Result<Guest, StartError> {
        let reactor = Reactor::sleeping_in(config, SleepPlace::HostLoop)?;
        let guest = Guest { watched: reactor.watched()?, executor: Executor::new(&reactor) };
        // What the driver has done to try itself is no reason to wake anybody.
        guest.turn()?;
        Ok(guest)
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.executor.reactor()
    }

    /// The executor whose tasks run during [`turn`](Guest::turn).
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Does what there is to do, and never sleeps: brings home what has arrived, wakes, runs tasks, sends; at
    /// most [`ROUNDS_MAX`] rounds of it.
    ///
    /// # Errors
    /// The kernel refuses to go on, or this is a forked child ([`Reactor::turn`]). No peer can cause that.
    pub fn turn(&self) -> io::Result<AfterTurn> {
        let reactor = self.reactor();
        if reactor.is_forked() {
            return self.turn_in_child();
        }
        let mut stay = Stay { reactor, restless: true };
        reactor.take_back();
        for _ in 0..ROUNDS_MAX {
            reactor.bell().hear();
            let ran = self.executor.run_ready();
            // One of them has forked, and this is where the child came back to.
            if reactor.is_forked() {
                return self.turn_in_child();
            }
            let happened = reactor.step(Sleep::Not)?;
            if ran || happened || self.executor.any_ready() {
                continue;
            }
            if reactor.hand_over()? {
                stay.restless = false;
                break;
            }
            reactor.take_back();
        }
        Ok(AfterTurn { tasks_left: self.executor.any_left(), more: stay.restless })
    }

    /// Those who wait are told, and the host is not called again: the descriptor is its parent's.
    fn turn_in_child(&self) -> io::Result<AfterTurn> {
        for _ in 0..ROUNDS_MAX {
            let ran = self.executor.run_ready();
            if !self.reactor().turn_in_child() && !ran {
                break;
            }
        }
        Err(ForkedChild.into())
    }
}

impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("reactor", self.reactor()).finish_non_exhaustive()
    }
}

/// One turn. Unless it came to rest the host is called again, also when a task panicked: what other tasks
/// wait for has not gone away.
struct Stay<'a> {
    reactor: &'a Reactor,
    restless: bool,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if self.restless {
            self.reactor.call_the_host();
        }
    }
}
