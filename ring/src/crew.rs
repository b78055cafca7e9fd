//! Threads that drop what they are given, for whoever must not wait for that.
//!
//! A crew has its queue and calls threads as they are needed: one for the first thing, and another whenever
//! all of them are busy and something waits. It does not know what it drops, nor how a thread is started.

use std::collections::VecDeque;

use crate::sync::{
    AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, OnceBox, Ordering, PoisonError, const_fn, made_once,
};

/// How many threads drop at a time. Whoever has more things than that which take for ever, and then a queue
/// full of others, waits; SECURITY.md says what to do about it.
const THREADS_MAX: usize = 8;

pub(crate) struct Crew<T> {
    /// The process it is of, or 0. A forked child has the queue but not the threads, and the lock as it was
    /// in that moment, perhaps held for ever by a thread that is not there. And the queue may name what the
    /// child has not got: the kernel copies the table of descriptors before the memory. So the child leaves
    /// all that alone, and what waited there stays open in it.
    of: AtomicU64,
    heir: OnceBox<Crew<T>>,
    /// The length of the queue, to be read without the lock.
    waiting: AtomicUsize,
    state: Mutex<State<T>>,
    /// There is something to drop: one thread is woken.
    filled: Condvar,
    /// There is nothing to drop any more. Apart from the other, or idle threads would wake each other for
    /// ever.
    emptied: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Taken from the queue, not yet dropped: as many threads are busy.
    dropping: usize,
    threads: usize,
}

impl<T> State<T> {
    fn is_busy(&self) -> bool {
        self.dropping > 0 || !self.waiting.is_empty()
    }

    /// Sees to it that a thread is free for what waits. False if there is none at all.
    fn call_a_thread(&mut self, start: impl FnOnce() -> bool) -> bool {
        if self.dropping == self.threads && self.threads < THREADS_MAX && start() {
            self.threads += 1;
        }
        self.threads > 0
    }
}

impl<T> Crew<T> {
    const_fn! {
        pub(crate) fn new() -> Crew<T> {
            Crew {
                of: AtomicU64::new(0),
                heir: OnceBox::new(),
                waiting: AtomicUsize::new(0),
                state: Mutex::new(State { waiting: VecDeque::new(), dropping: 0, threads: 0 }),
                filled: Condvar::new(),
                emptied: Condvar::new(),
            }
        }
    }

    /// Whether anything was ever asked of it or its heirs.
    pub(crate) fn is_used(&self) -> bool {
        self.of.load(Ordering::Relaxed) != 0
    }

    /// The one of the process with this number in its line of forks, which is never 0: this one, if it was
    /// the first to ask, or one of its heirs.
    pub(crate) fn of(&self, process: u64) -> &Crew<T> {
        let mut crew = self;
        loop {
            // Looked at before it is written to: this is asked before each receive.
            let of = match crew.of.load(Ordering::Relaxed) {
                0 => crew
                    .of
                    .compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed)
                    .unwrap_or_else(|of| of),
                of => of,
            };
            if of == process || of == 0 {
                return crew;
            }
            let heir = made_once(&crew.heir, || Box::new(Crew::new()));
            crew = heir;
        }
    }

    /// How many things wait, as it was a moment ago.
    pub(crate) fn backlog(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Leaves it to the threads. `start` starts one, which serves for as long as the process lives. If there
    /// is none and none can be had it is given back.
    pub(crate) fn queue(&self, thing: T, start: impl FnOnce() -> bool) -> Result<(), T> {
        let mut state = self.lock();
        if !state.call_a_thread(start) {
            return Err(thing);
        }
        state.waiting.push_back(thing);
        self.wake_one(state);
        Ok(())
    }

    /// Leaves all of these to the threads, of which one is woken: what comes first is dropped first. What
    /// waits behind something that takes long is another thread's as soon as anything else is queued, or
    /// [`urge`](Crew::urge) is called. If there is no thread, and none can be had, they are given back.
    pub(crate) fn queue_all(
        &self,
        things: impl Iterator<Item = T>,
        start: impl FnOnce() -> bool,
    ) -> Result<(), Vec<T>> {
        // Whoever lists them may take a while, and the threads want the lock.
        let things: Vec<T> = things.collect();
        let mut state = self.lock();
        if !state.call_a_thread(start) {
            return Err(things);
        }
        state.waiting.extend(things);
        self.wake_one(state);
        Ok(())
    }

    /// Something was queued.
    fn wake_one(&self, state: MutexGuard<'_, State<T>>) {
        self.waiting.store(state.waiting.len(), Ordering::Relaxed);
        drop(state);
        self.filled.notify_one();
    }

    /// Calls another thread for what still waits, if anything does. Says whether.
    pub(crate) fn urge(&self, start: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        let waits = !state.waiting.is_empty();
        if waits {
            state.call_a_thread(start);
        }
        drop(state);
        if waits {
            self.filled.notify_one();
        }
        waits
    }

    /// What each thread does again and again: waits for one thing and drops it.
    pub(crate) fn serve_one(&self, start: impl FnOnce() -> bool) {
        let mut state = self.lock();
        let thing = loop {
            match state.waiting.pop_front() {
                Some(thing) => break thing,
                None => state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.dropping += 1;
        self.waiting.store(state.waiting.len(), Ordering::Relaxed);
        if !state.waiting.is_empty() {
            // This one may take long, and nobody may come by to queue another.
            state.call_a_thread(start);
        }
        drop(state);
        drop(thing);
        let mut state = self.lock();
        state.dropping -= 1;
        if !state.is_busy() {
            self.emptied.notify_all();
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Blocks until everything handed over so far is dropped.
    pub(crate) fn wait_until_idle(&self) {
        let mut state = self.lock();
        while state.is_busy() {
            state = self.emptied.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it is held; a poisoned lock is still a good queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
