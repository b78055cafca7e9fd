//! The one thing of the kernel that the models need: a descriptor that is readable once it was rung.

use std::io;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

/// Copies are one and the same, as duplicates of a descriptor are.
#[derive(Clone)]
pub(crate) struct EventFd(Arc<(Mutex<bool>, Condvar)>);

impl EventFd {
    pub(crate) fn as_fd(&self) -> &EventFd {
        self
    }

    pub(crate) fn try_clone(&self) -> io::Result<EventFd> {
        Ok(self.clone())
    }

    /// Asleep until it is readable; drains it.
    pub(crate) fn sleep(&self) {
        let (readable, rung) = &*self.0;
        let mut readable = readable.lock().unwrap();
        while !*readable {
            readable = rung.wait(readable).unwrap();
        }
        *readable = false;
    }
}

pub(crate) fn eventfd() -> io::Result<EventFd> {
    Ok(EventFd(Arc::new((Mutex::new(false), Condvar::new()))))
}

pub(crate) fn eventfd_ring(fd: &EventFd) {
    let (readable, rung) = &*fd.0;
    *readable.lock().unwrap() = true;
    rung.notify_all();
}
