//! What is shared between threads is made of these and of nothing else: the standard library's.
//!
//! `tests/loom.rs` compiles the files that use them once more with loom's in this place, and tries every
//! order in which threads can take their steps. So whatever other threads may touch takes its atomics and
//! locks from here; `Arc` it does not, since a waker must be the standard library's.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
pub(crate) use std::thread;

pub(crate) use once_cell::race::OnceBox;

/// A number that no other thread has which is there at the same time.
pub(crate) type ThreadNumber = usize;

/// That of this thread. The standard library's number of a thread comes with a handle to it, whose making and
/// dropping costs two locked instructions each time.
pub(crate) fn this_thread() -> ThreadNumber {
    crate::sys::thread_number()
}

/// What is in there, made by the first who asks. Of several who ask at once each may make one, and one is
/// kept: nothing is locked meanwhile, since a child that is forked then would have it locked for ever.
pub(crate) fn made_once<T>(once: &OnceBox<T>, make: impl FnOnce() -> Box<T>) -> &T {
    once.get_or_init(make)
}

/// A function that can make a static. Loom's types cannot be made in one: there it is an ordinary function.
macro_rules! const_fn {
    ($visible:vis fn $($function:tt)+) => { $visible const fn $($function)+ };
}
pub(crate) use const_fn;
