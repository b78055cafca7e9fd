//! Loom's in the place of the standard library's: what `src/sync.rs` is to the library.

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread;
pub(crate) use loom::thread::ThreadId as ThreadNumber;
pub(crate) use std::sync::{PoisonError, TryLockError};

pub(crate) fn this_thread() -> ThreadNumber {
    thread::current().id()
}

/// As the library's, behind a lock that loom knows: whoever finds the value has seen it made.
pub(crate) struct OnceBox<T> {
    gate: Mutex<()>,
    value: std::sync::OnceLock<Box<T>>,
}

impl<T> OnceBox<T> {
    pub(crate) fn new() -> OnceBox<T> {
        OnceBox { gate: Mutex::new(()), value: std::sync::OnceLock::new() }
    }
}

pub(crate) fn made_once<T>(once: &OnceBox<T>, make: impl FnOnce() -> Box<T>) -> &T {
    let _behind = once.gate.lock().unwrap();
    once.value.get_or_init(make)
}

macro_rules! const_fn {
    ($visible:vis fn $($function:tt)+) => { $visible fn $($function)+ };
}
pub(crate) use const_fn;
