//! Loom's in the place of the standard library's: what `src/sync.rs` is to the library.

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread::{self, ThreadId};
pub(crate) use std::sync::PoisonError;

/// The standard library's, behind a lock that loom knows: whoever finds the value has seen it made.
pub(crate) struct OnceLock<T> {
    gate: Mutex<()>,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> OnceLock<T> {
        OnceLock { gate: Mutex::new(()), value: std::sync::OnceLock::new() }
    }
}

pub(crate) fn made_once<T>(lock: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    let _behind = lock.gate.lock().unwrap();
    lock.value.get_or_init(make)
}

macro_rules! const_fn {
    ($visible:vis fn $($function:tt)+) => { $visible fn $($function)+ };
}
pub(crate) use const_fn;
