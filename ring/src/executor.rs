//! A small executor for programs that live on a reactor: spawn, block_on, settle.
//!
//! It owns its tasks. It knows no sockets; any futures will do, and their wakers may be called from any
//! thread.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::driver::is_put_off;
use crate::fork::ForkedChild;
use crate::op::LAST_TURNS_MAX;
use crate::reactor::{Reactor, Wait};
use crate::task::{Main, Tasks};

/// Runs futures on a reactor, on one thread. A handle; tasks are dropped with the last one.
///
/// ```
/// use ring::{Executor, Reactor};
///
/// let executor = Executor::new(&Reactor::new()?);
/// executor.spawn(async { println!("in the background") });
/// assert_eq!(executor.block_on(async { 6 * 7 }), 42);
/// # Ok::<(), ring::StartError>(())
/// ```
#[derive(Clone)]
pub struct Executor(Rc<Shared>);

struct Shared {
    reactor: Reactor,
    tasks: Tasks,
}

/// What [`Executor::settle`] leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whether tasks are left, waiting for something outside.
    pub tasks_left: bool,
    /// When the first timer goes off, if any is set.
    pub next_timer: Option<Instant>,
}

impl Executor {
    /// An executor for this reactor.
    pub fn new(reactor: &Reactor) -> Executor {
        let tasks = Tasks::new(Arc::clone(reactor.bell()));
        Executor(Rc::new(Shared { reactor: reactor.clone(), tasks }))
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    /// Starts a task. It runs during `block_on` and `settle`.
    ///
    /// A task that needs to spawn holds a [`Spawner`]: one that holds its own executor is never dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.spawn(Box::pin(task));
    }

    /// A handle for tasks to spawn with.
    pub fn spawner(&self) -> Spawner {
        Spawner(Rc::downgrade(&self.0))
    }

    /// Runs this future, and the tasks beside it, until the future ends. What it sent at the end has been
    /// shown to the kernel by then.
    ///
    /// # Panics
    /// If the kernel refuses to go on ([`Reactor::turn`] fails), which no peer can cause; not because it has
    /// no memory to go on with just now: then it is asked again until it has. And in a forked child of the
    /// process that made the reactor, if the future waits for what never comes there: a timer of this
    /// reactor, a thread of the parent's. Verbs end in a child, refused by name.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _driving = Driving::begin(&self.0.reactor);
        let mut future = pin!(future);
        let main = Main::new(Arc::clone(self.0.reactor.bell()));
        let waker = Waker::from(Arc::clone(&main));
        let mut turned = false;
        loop {
            if main.take_wake()
                && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                // The last answer, the farewell: queued, and nobody may ever turn again. A turn for its own
                // sake is for those who poll what has not ended, again and again, and never wait.
                if !turned || self.0.reactor.has_something_to_show() {
                    self.send_what_can_go();
                }
                return output;
            }
            self.0.tasks.run();
            let busy = main.is_woken() || self.0.tasks.any_ready();
            self.turn(if busy { Wait::Not } else { Wait::Forever });
            turned = true;
        }
    }

    /// Runs until nothing can run without something from outside, and never sleeps.
    ///
    /// # Panics
    /// As [`block_on`](Executor::block_on).
    pub fn settle(&self) -> Settled {
        let _driving = Driving::begin(&self.0.reactor);
        loop {
            let ran = self.0.tasks.run();
            let happened = self.turn(Wait::Not);
            if !ran && !happened && !self.0.tasks.any_ready() {
                break;
            }
        }
        let next_timer = self.0.reactor.with(|core, _| core.timers.first());
        Settled { tasks_left: !self.0.tasks.is_empty(), next_timer }
    }

    /// One step of a simulated world: each task that is ready, and one turn. Says whether anything happened.
    #[cfg(feature = "script")]
    pub(crate) fn step(&self) -> bool {
        let ran = self.0.tasks.run();
        let wait = if self.0.tasks.any_ready() { Wait::Not } else { Wait::Forever };
        self.turn(wait) || ran || wait == Wait::Not
    }

    /// Polls each task that is ready, once. Says whether there was one.
    pub(crate) fn run_ready(&self) -> bool {
        self.0.tasks.run()
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.0.tasks.any_ready()
    }

    pub(crate) fn any_left(&self) -> bool {
        !self.0.tasks.is_empty()
    }

    /// A socket sends one message in a turn, so several messages take several turns.
    fn send_what_can_go(&self) {
        for _ in 0..LAST_TURNS_MAX {
            self.turn(Wait::Not);
            if !self.0.reactor.with(|core, _| core.is_sending()) {
                break;
            }
        }
    }

    fn turn(&self, wait: Wait) -> bool {
        if self.0.reactor.is_forked() {
            let happened = self.0.reactor.turn_in_child();
            assert!(happened || wait == Wait::Not, "nothing ever happens here again: {ForkedChild}");
            return happened;
        }
        match self.0.reactor.turn_here(wait) {
            // For as long as that is so: whoever cannot wait has a deadline, and those are kept.
            Err(error) if is_put_off(&error) => false,
            turned => turned.expect("the kernel refuses to go on with the reactor"),
        }
    }
}

/// While an executor takes turns, sockets that were let go of may be closed when it suits.
struct Driving<'a> {
    reactor: &'a Reactor,
    before: bool,
}

impl Driving<'_> {
    fn begin(reactor: &Reactor) -> Driving<'_> {
        // Whoever sleeps elsewhere does so where nobody here knows of it.
        let own = reactor.sleeps_in_its_turns();
        Driving { reactor, before: reactor.with(|core, _| core.set_driven(own)) }
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.reactor.with(|core, _| core.set_driven(self.before));
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("reactor", &self.0.reactor).finish_non_exhaustive()
    }
}

/// Starts tasks on an executor without keeping it alive.
#[derive(Clone)]
pub struct Spawner(Weak<Shared>);

impl Spawner {
    /// Starts a task. False, and the task dropped, if the executor is gone.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> bool {
        match self.0.upgrade() {
            Some(shared) => {
                shared.tasks.spawn(Box::pin(task));
                true
            }
            None => false,
        }
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner")
    }
}
