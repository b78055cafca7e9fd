//! A set of tasks: futures that are polled when their wakers say so; and the waker of one future beside them.
//! Knows no reactor but its bell.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::remote::Bell;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError, TryLockError};

type Work = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct Tasks {
    slots: RefCell<Slab<Task>>,
    ready: Arc<Ready>,
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
        let ready = Ready { queue: Mutex::new(VecDeque::new()), closed: AtomicBool::new(false), bell };
        Tasks { slots: RefCell::new(Slab::new()), ready: Arc::new(ready) }
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
        self.ready.lock().is_some_and(|queue| !queue.is_empty())
    }

    /// Polls each task that is ready now, once. Says whether there was one.
    pub(crate) fn run(&self) -> bool {
        let count = self.ready.lock().map_or(0, |queue| queue.len());
        for _ in 0..count {
            let next = self.ready.lock().and_then(|mut queue| queue.pop_front());
            let Some(signal) = next else { break };
            self.poll(&signal);
        }
        count > 0
    }

    fn poll(&self, signal: &Arc<Signal>) {
        // Before the poll: a wake-up during it queues the task once more. A swap, because a wake-up that
        // found it queued already has left it at that: what it was about has to be seen in this poll. After a
        // mere store the poll may look before others see what was stored, and they leave it at that for ever.
        signal.queued.swap(false, Ordering::AcqRel);
        let found = match self.slots.borrow_mut().get_mut(signal.slot) {
            Some(task) if Arc::ptr_eq(&task.signal, signal) => task.work.take(),
            _ => None,
        };
        let Some(mut work) = found else { return };
        let waker = Waker::from(Arc::clone(signal));
        let poll = work.as_mut().poll(&mut Context::from_waker(&waker));
        let mut slots = self.slots.borrow_mut();
        let mut finished = None;
        match slots.get_mut(signal.slot) {
            Some(task) if Arc::ptr_eq(&task.signal, signal) => match poll {
                Poll::Pending => {
                    task.work = Some(work);
                    return;
                }
                Poll::Ready(()) => finished = slots.try_remove(signal.slot),
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
    closed: AtomicBool,
    bell: Arc<Bell>,
}

impl Ready {
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
        self.woken.swap(false, Ordering::AcqRel)
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
