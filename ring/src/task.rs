//! A set of tasks: futures that are polled when their wakers say so; and the waker of one future beside them.
//! Knows no reactor but its bell.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll, RawWakerVTable, Wake, Waker};

use slab::Slab;

use crate::remote::Bell;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError, TryLockError};

pub(crate) struct Tasks {
    slots: RefCell<Slab<Task>>,
    ready: Arc<Ready>,
    /// Those that have yet to be polled: that were ready when a round began, or were called here since. Here,
    /// and not with who polls them: a task may take turns itself, and wait for what another of its round
    /// does; or it may unwind.
    round: RefCell<VecDeque<Called>>,
    /// The one that is being polled.
    polled: Cell<Option<Polled>>,
}

/// As small as can be: each session has one.
enum Task {
    Waits(Work),
    /// Its work has been taken out meanwhile.
    Polled {
        /// Of its signal, by which it is known.
        address: *const (),
        /// It was to be polled, by a turn that it takes itself.
        again: bool,
    },
}

struct Work {
    future: Pin<Box<dyn Future<Output = ()>>>,
    /// Kept, so that a poll need not make one.
    waker: Waker,
}

/// How a task has come to be in a round.
enum Called {
    /// By its waker, which anybody may hold.
    Elsewhere(Arc<Signal>),
    /// By its place, on this thread: no lock, no count of references, nothing that crosses threads.
    Here(usize),
}

/// What is known of a task by its waker, while it is polled.
#[derive(Clone, Copy)]
struct Polled {
    data: *const (),
    vtable: &'static RawWakerVTable,
    slot: usize,
}

/// Who asks for something that comes later.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// A task of the set that wakes it, by its place there.
    Task(usize),
    Other(&'a Waker),
}

/// Whoever is to be woken when it has come.
pub(crate) enum Sleeper {
    /// A task of the set that wakes it. If its place has been given to another, that one is polled in vain.
    Task(usize),
    Other(Waker),
}

impl Sleeper {
    #[inline]
    pub(crate) fn is(&self, asker: Asker<'_>) -> bool {
        match (self, asker) {
            (Sleeper::Task(slot), Asker::Task(asks)) => *slot == asks,
            (Sleeper::Other(waker), Asker::Other(asks)) => waker.will_wake(asks),
            _ => false,
        }
    }
}

impl From<Asker<'_>> for Sleeper {
    #[inline]
    fn from(asker: Asker<'_>) -> Sleeper {
        match asker {
            Asker::Task(slot) => Sleeper::Task(slot),
            Asker::Other(waker) => Sleeper::Other(waker.clone()),
        }
    }
}

/// One task of a set.
#[derive(Clone)]
pub(crate) struct TaskId(Arc<Signal>);

impl Tasks {
    pub(crate) fn new(bell: Arc<Bell>) -> Tasks {
        let (some, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let ready = Ready { queue: Mutex::new(VecDeque::new()), some, closed, bell };
        let (round, polled) = (RefCell::new(VecDeque::new()), Cell::new(None));
        Tasks { slots: RefCell::new(Slab::new()), ready: Arc::new(ready), round, polled }
    }

    /// Adds a task, which is polled soon.
    pub(crate) fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskId {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let queued = AtomicBool::new(false);
        let signal = Arc::new(Signal { slot: entry.key(), queued, ready: Arc::clone(&self.ready) });
        entry.insert(Task::Waits(Work { future, waker: Waker::from(Arc::clone(&signal)) }));
        drop(slots);
        Signal::wake_by_ref(&signal);
        TaskId(signal)
    }

    /// Removes a task. Its future is dropped here, or when the poll it is in returns.
    pub(crate) fn remove(&self, id: &TaskId) {
        let mut slots = self.slots.borrow_mut();
        let removed = match slots.get(id.0.slot) {
            Some(task) if task.is_of(&id.0) => slots.try_remove(id.0.slot),
            _ => None,
        };
        // Dropping it may run anybody's code.
        drop(slots);
        drop(removed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    #[inline]
    pub(crate) fn any_ready(&self) -> bool {
        self.ready.some.load(Ordering::Acquire) || !self.round.borrow().is_empty()
    }

    /// Who asks, if this is how it wants to be woken.
    #[inline]
    pub(crate) fn asker<'a>(&self, waker: &'a Waker) -> Asker<'a> {
        match self.polled.get() {
            Some(polled) if polled.is_woken_by(waker) => Asker::Task(polled.slot),
            _ => Asker::Other(waker),
        }
    }

    /// Wakes whoever asked.
    #[inline]
    pub(crate) fn wake(&self, sleeper: Sleeper) {
        match sleeper {
            Sleeper::Task(slot) => self.call(slot),
            Sleeper::Other(waker) => waker.wake(),
        }
    }

    fn call(&self, slot: usize) {
        self.round.borrow_mut().push_back(Called::Here(slot));
        self.ready.bell.ring_for_the_host();
    }

    /// Polls each task that is ready now, once. Says whether there was one.
    #[inline]
    pub(crate) fn run(&self) -> bool {
        self.any_ready() && self.run_ready()
    }

    #[inline(never)]
    fn run_ready(&self) -> bool {
        if self.ready.some.load(Ordering::Acquire) {
            self.ready.move_into(&mut self.round.borrow_mut());
        }
        let count = self.round.borrow().len();
        for _ in 0..count {
            let next = self.round.borrow_mut().pop_front();
            let Some(called) = next else { break };
            self.poll(called);
        }
        count > 0
    }

    fn poll(&self, called: Called) {
        let Some((slot, mut work)) = self.take(called) else { return };
        let polling = Polling::begin(self, &work.waker, slot);
        let poll = work.future.as_mut().poll(&mut Context::from_waker(&work.waker));
        drop(polling);
        let mut slots = self.slots.borrow_mut();
        let mut finished = None;
        match slots.get_mut(slot) {
            Some(Task::Polled { address, again }) if ptr::eq(*address, work.waker.data()) => match poll {
                Poll::Pending => {
                    let again = *again;
                    slots[slot] = Task::Waits(work);
                    drop(slots);
                    if again {
                        self.call(slot);
                    }
                    return;
                }
                Poll::Ready(()) => finished = slots.try_remove(slot),
            },
            // Removed while it was polled.
            _ => {}
        }
        drop(slots);
        drop(finished);
        drop(work);
    }

    /// The work of one that is to be polled, and its place.
    #[inline]
    fn take(&self, called: Called) -> Option<(usize, Work)> {
        let mut slots = self.slots.borrow_mut();
        let (slot, task) = match &called {
            // If its place has been given to another, that one is polled in vain.
            Called::Here(slot) => (*slot, slots.get_mut(*slot)?),
            Called::Elsewhere(signal) => {
                // Before the poll: a wake-up during it queues the task once more. A swap, because a wake-up
                // that found it queued already has left it at that: what it was about has to be seen in this
                // poll. After a mere store the poll may look before others see what was stored, and they
                // leave it at that for ever.
                signal.queued.swap(false, Ordering::AcqRel);
                // Its place may have been given to another.
                (signal.slot, slots.get_mut(signal.slot).filter(|task| task.is_of(signal))?)
            }
        };
        let address = match task {
            Task::Waits(work) => work.waker.data(),
            Task::Polled { again, .. } => {
                *again = true;
                return None;
            }
        };
        match mem::replace(task, Task::Polled { address, again: false }) {
            Task::Waits(work) => Some((slot, work)),
            Task::Polled { .. } => unreachable!("looked at above"),
        }
    }

    /// Drops all tasks.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.slots.borrow_mut());
        drop(all);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // The queue holds signals and they hold the queue: whoever comes late finds it closed.
        let late = {
            let queue = self.ready.lock();
            self.ready.closed.store(true, Ordering::Release);
            queue.map(|mut queue| std::mem::take(&mut *queue))
        };
        drop(late);
        self.clear();
    }
}

impl Task {
    /// Whether this is its signal.
    fn is_of(&self, signal: &Arc<Signal>) -> bool {
        let address = match self {
            Task::Waits(work) => work.waker.data(),
            Task::Polled { address, .. } => *address,
        };
        ptr::eq(address, Arc::as_ptr(signal).cast())
    }
}

impl Polled {
    #[inline]
    fn is_woken_by(&self, waker: &Waker) -> bool {
        ptr::eq(self.data, waker.data()) && ptr::eq(self.vtable, waker.vtable())
    }
}

/// For as long as a task is polled, even if it unwinds; then the one that was polled before is again.
struct Polling<'a> {
    tasks: &'a Tasks,
    before: Option<Polled>,
}

impl Polling<'_> {
    fn begin<'a>(tasks: &'a Tasks, waker: &Waker, slot: usize) -> Polling<'a> {
        let polled = Polled { data: waker.data(), vtable: waker.vtable(), slot };
        Polling { tasks, before: tasks.polled.replace(Some(polled)) }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.tasks.polled.set(self.before);
    }
}

struct Ready {
    queue: Mutex<VecDeque<Arc<Signal>>>,
    /// Whether anything is queued. Written under the lock, and looked at without it: who queues something
    /// rings the bell after that, so that nobody sleeps who has looked too early.
    some: AtomicBool,
    closed: AtomicBool,
    bell: Arc<Bell>,
}

impl Ready {
    /// Moves all that is queued to the end of this.
    fn move_into(&self, round: &mut VecDeque<Called>) {
        let queue = self.lock();
        // In a forked child, where nobody can look, nothing is ready.
        self.some.store(false, Ordering::Release);
        if let Some(mut queue) = queue {
            round.extend(queue.drain(..).map(Called::Elsewhere));
        }
    }

    /// `None` in a forked child, if a thread held it at the moment of the fork: that thread is not there to
    /// let go of it, and nothing runs there any more.
    // Two instructions more than `Mutex::lock` where it stands, and twenty where it is called.
    #[inline(always)]
    fn lock(&self) -> Option<MutexGuard<'_, VecDeque<Arc<Signal>>>> {
        match self.queue.try_lock() {
            Ok(queue) => Some(queue),
            Err(TryLockError::WouldBlock) => self.wait_for_lock(),
            // Nothing panics while it is held.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        }
    }

    #[cold]
    fn wait_for_lock(&self) -> Option<MutexGuard<'_, VecDeque<Arc<Signal>>>> {
        if self.bell.is_a_parents() {
            return None;
        }
        Some(self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Signal {
    slot: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(mut queue) = self.ready.lock() else { return };
        // Under the lock, or one that comes late from another thread would stay in a queue it holds itself.
        if !self.ready.closed.load(Ordering::Acquire) {
            queue.push_back(Arc::clone(self));
            self.ready.some.store(true, Ordering::Release);
            drop(queue);
            self.ready.bell.ring_from_elsewhere();
        }
    }
}

/// The waker of one future that is no task, because somebody waits for it where it is.
pub(crate) struct Main {
    woken: AtomicBool,
    bell: Arc<Bell>,
}

impl Main {
    /// Woken, since nobody has polled it yet.
    pub(crate) fn new(bell: Arc<Bell>) -> Arc<Main> {
        Arc::new(Main { woken: AtomicBool::new(true), bell })
    }

    /// Whether it has been woken since this was asked last. Before the poll: a wake-up during it counts.
    pub(crate) fn take_wake(&self) -> bool {
        self.is_woken() && self.woken.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }
}

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.bell.ring_from_elsewhere();
    }
}
