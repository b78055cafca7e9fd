//! Where descriptors go to be closed when closing them might take time.
//!
//! A few threads for the whole process, the first started when the first descriptor needs it, and another
//! when all of them are busy: one lingering socket must not hold up the rest. They own what they were given
//! and know nothing else. The queue is bounded by the process's own descriptor limit, since each entry is an
//! open descriptor, and receives stop long before that: see [`QUEUE_MAX`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::envelope;
use crate::fork;
use crate::sys::{self, Half, SocketOption, ready};

/// With this many descriptors waiting to be closed, receives are not armed any more: whoever sends us
/// descriptors that take seconds to close waits for them as we do.
pub(crate) const QUEUE_MAX: usize = 256;

/// How many threads close at a time. Whoever sends more descriptors than that which take for ever, and then a
/// queue full of others, stops receives that could bring descriptors; SECURITY.md says what to do about it.
const THREADS_MAX: usize = 8;

/// Of the first process in a line of forks that closes anything; those after it follow, each with its own.
static FIRST: Closer = Closer::new();

struct Closer {
    /// The process it is of, or 0. A forked child has the queue but not the threads, and the lock as it was
    /// in that moment, perhaps held for ever by a thread that is not there. And the queue may name what the
    /// child has not got: the kernel copies the table of descriptors before the memory. So the child leaves
    /// all that alone, and what waited there stays open in it.
    of: AtomicU64,
    heir: OnceLock<Box<Closer>>,
    /// The length of the queue, to be read without the lock.
    waiting: AtomicUsize,
    state: Mutex<State>,
    /// There is something to close: one thread is woken.
    filled: Condvar,
    /// There is nothing to close any more. Apart from the other, or idle threads would wake each other for
    /// ever.
    emptied: Condvar,
}

struct State {
    waiting: VecDeque<OwnedFd>,
    /// Taken from the queue, not yet closed: as many threads are busy.
    closing: usize,
    threads: usize,
}

impl State {
    fn is_busy(&self) -> bool {
        self.closing > 0 || !self.waiting.is_empty()
    }

    /// Sees to it that a thread is free for what waits. False if there is none at all.
    fn call_a_thread(&mut self) -> bool {
        if self.closing == self.threads
            && self.threads < THREADS_MAX
            && thread::Builder::new().name("sendright-closer".into()).spawn(serve).is_ok()
        {
            self.threads += 1;
        }
        self.threads > 0
    }
}

/// Closes now what closes at once; queues the rest.
pub(crate) fn close(fd: OwnedFd) {
    if sys::closes_at_once(fd.as_fd()) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// Closes a connected AF_UNIX socket that is ours alone but whose peer may be anybody.
///
/// What the peer left unread in it is closed with it, and that may be a descriptor that lingers. So: nothing
/// more in (`shutdown`), look whether anything is there, and only an empty socket is closed on this thread.
/// Only credentials tell an empty packet, which may have brought descriptors, from the end.
///
/// The look installs what it finds: whoever calls this has room for as many descriptors as a message carries.
pub(crate) fn retire(fd: OwnedFd, credentials_asked: bool) {
    if !credentials_asked {
        let _ = sys::set_socket_option(fd.as_fd(), SocketOption::PassCredentials, 1);
    }
    let _ = sys::shutdown(fd.as_fd(), Half::Reading);
    if envelope::is_empty(fd.as_fd()) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// The same for an end that others may hold too, which therefore must not be shut down, and from which
/// nothing may be taken: it would be missing elsewhere.
///
/// A message that comes between the look and the close, on an end whose last holder we are after all, is
/// closed on this thread. Who cannot rule that out says that the socket is private.
pub(crate) fn retire_shared(fd: OwnedFd) {
    // A listener's queue holds connections, with queues of their own.
    let listens = sys::socket_option(fd.as_fd(), SocketOption::Listening).is_ok_and(|listens| listens != 0);
    if listens {
        queue(fd);
    } else {
        retire_connected(fd);
    }
}

/// The same where it is known to be no listener.
pub(crate) fn retire_connected(fd: OwnedFd) {
    if sys::poll_now(fd.as_fd(), ready::READ).is_ok_and(|mask| mask == 0) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// How many descriptors wait. In a forked child those of its parent do not count: nobody there will close
/// them, and it would wait for that for ever.
pub(crate) fn backlog() -> usize {
    if is_used() { closer().waiting.load(Ordering::Relaxed) } else { 0 }
}

/// Whether something is being closed, or waits for it. For tests of what takes long to close.
pub fn closer_busy() -> bool {
    is_used() && closer().lock().is_busy()
}

/// Blocks until everything handed over so far is closed. For tests that count descriptors.
pub fn closer_idle() {
    if !is_used() {
        return;
    }
    let closer = closer();
    let mut state = closer.lock();
    while state.is_busy() {
        state = closer.emptied.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Whether anything was ever handed over.
fn is_used() -> bool {
    FIRST.of.load(Ordering::Relaxed) != 0
}

/// The closer of this process.
fn closer() -> &'static Closer {
    let here = fork::generation().number();
    let mut closer = &FIRST;
    loop {
        // Looked at before it is written to: this is asked before each receive.
        let of = match closer.of.load(Ordering::Relaxed) {
            0 => closer
                .of
                .compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed)
                .unwrap_or_else(|of| of),
            of => of,
        };
        if of == here || of == 0 {
            return closer;
        }
        closer = closer.heir.get_or_init(|| Box::new(Closer::new()));
    }
}

impl Closer {
    const fn new() -> Closer {
        Closer {
            of: AtomicU64::new(0),
            heir: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State { waiting: VecDeque::new(), closing: 0, threads: 0 }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; a poisoned lock is still a good queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many simulated worlds there are in this process: while there is one, everything is closed at once, on
/// the thread, or nothing could be repeated.
#[cfg(feature = "script")]
pub(crate) static WORLDS: AtomicUsize = AtomicUsize::new(0);

fn is_scripted() -> bool {
    #[cfg(feature = "script")]
    return WORLDS.load(Ordering::Relaxed) > 0;
    #[cfg(not(feature = "script"))]
    false
}

/// Leaves it to the threads.
pub(crate) fn queue(fd: OwnedFd) {
    if is_scripted() {
        return drop(fd);
    }
    let closer = closer();
    let mut state = closer.lock();
    if !state.call_a_thread() {
        // No thread to be had. Waiting here is the worse of two evils only for this thread; not closing would
        // be worse for all.
        drop(state);
        drop(fd);
        return;
    }
    state.waiting.push_back(fd);
    closer.waiting.store(state.waiting.len(), Ordering::Relaxed);
    drop(state);
    closer.filled.notify_one();
}

fn serve() {
    let closer = closer();
    let mut state = closer.lock();
    loop {
        let Some(fd) = state.waiting.pop_front() else {
            if state.closing == 0 {
                closer.emptied.notify_all();
            }
            state = closer.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.closing += 1;
        closer.waiting.store(state.waiting.len(), Ordering::Relaxed);
        if !state.waiting.is_empty() {
            // This one may take long, and nobody may come by to queue another.
            state.call_a_thread();
        }
        drop(state);
        drop(fd);
        state = closer.lock();
        state.closing -= 1;
    }
}
