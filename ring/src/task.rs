//! A set of tasks: futures that are polled when their wakers say so; and the waker of one future beside them.
//! Knows no reactor but its bell.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::remote::Bell;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError, TryLockError};

type Work = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct Tasks {
    slots: RefCell<Slab<Task>>,
    ready: Arc<Ready>,
    /// Those that were ready when a round began, and have yet to be polled. Here, and not with who polls
    /// them: a task may take turns itself, and wait for what another of its round does; or it may unwind.
    round: RefCell<VecDeque<Arc<Signal>>>,
}

struct Task {
    /// Taken out while it is polled.
    work: Option<Work>,
    signal: Arc<Signal>,
}

/// One task of a set.
#[derive(Clone)]
pub(crate) struct TaskId(Arc<Signal>);

impl Tasks {
    pub(crate) fn new(bell: Arc<Bell>) -> Tasks {
        let (some, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let ready = Ready { queue: Mutex::new(VecDeque::new()), some, closed, bell };
        let round = RefCell::new(VecDeque::new());
        Tasks { slots: RefCell::new(Slab::new()), ready: Arc::new(ready), round }
    }

    /// Adds a task, which is polled soon.
    pub(crate) fn spawn(&self, work: Work) -> TaskId {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let queued = AtomicBool::new(false);
        let signal = Arc::new(Signal { slot: entry.key(), queued, ready: Arc::clone(&self.ready) });
        entry.insert(Task { work: Some(work), signal: Arc::clone(&signal) });
        drop(slots);
        Signal::wake_by_ref(&signal);
        TaskId(signal)
    }

    /// Removes a task. Its future is dropped here, or when the poll it is in returns.
    pub(crate) fn remove(&self, id: &TaskId) {
        let mut slots = self.slots.borrow_mut();
        let removed = match slots.get(id.0.slot) {
            Some(task) if Arc::ptr_eq(&task.signal, &id.0) => slots.try_remove(id.0.slot),
            _ => None,
        };
        // Dropping it may run anybody's code.
        drop(slots);
        drop(removed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.ready.some.load(Ordering::Acquire) || !self.round.borrow().is_empty()
    }

    /// Polls each task that is ready now, once. Says whether there was one.
    pub(crate) fn run(&self) -> bool {
        if !self.any_ready() {
            return false;
        }
        self.ready.move_into(&mut self.round.borrow_mut());
        let count = self.round.borrow().len();
        for _ in 0..count {
            let next = self.round.borrow_mut().pop_front();
            let Some(signal) = next else { break };
            self.poll(signal);
        }
        count > 0
    }

    fn poll(&self, signal: Arc<Signal>) {
        // Before the poll: a wake-up during it queues the task once more. A swap, because a wake-up that
        // found it queued already has left it at that: what it was about has to be seen in this poll. After a
        // mere store the poll may look before others see what was stored, and they leave it at that for ever.
        signal.queued.swap(false, Ordering::AcqRel);
        let (slot, address) = (signal.slot, Arc::as_ptr(&signal));
        // Which keeps the signal where it is for as long as this takes.
        let waker = Waker::from(signal);
        // Its place may have been given to another.
        let is_the_same = |task: &Task| ptr::eq(Arc::as_ptr(&task.signal), address);
        let found = match self.slots.borrow_mut().get_mut(slot) {
            Some(task) if is_the_same(task) => task.work.take(),
            _ => None,
        };
        let Some(mut work) = found else { return };
        let poll = work.as_mut().poll(&mut Context::from_waker(&waker));
        let mut slots = self.slots.borrow_mut();
        let mut finished = None;
        match slots.get_mut(slot) {
            Some(task) if is_the_same(task) => match poll {
                Poll::Pending => {
                    task.work = Some(work);
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
    fn move_into(&self, round: &mut VecDeque<Arc<Signal>>) {
        let queue = self.lock();
        // In a forked child, where nobody can look, nothing is ready.
        self.some.store(false, Ordering::Release);
        if let Some(mut queue) = queue {
            round.append(&mut queue);
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
