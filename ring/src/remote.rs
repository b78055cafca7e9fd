//! The only part of a reactor that other threads may hold: a bell.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

use crate::sys;

/// Wakes a sleeping reactor from another thread. Cheap while it is awake: the bell is rung only for a
/// sleeper.
///
/// It outlives the reactor without harm. It does not carry messages: put them where the woken task looks.
#[derive(Clone)]
pub struct Remote(Arc<Bell>);

impl Remote {
    pub(crate) fn new(bell: Arc<Bell>) -> Remote {
        Remote(bell)
    }

    /// Makes the reactor's current or next sleep end at once.
    pub fn wake(&self) {
        self.0.ring();
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

pub(crate) struct Bell {
    eventfd: OwnedFd,
    home: ThreadId,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        Ok(Bell {
            eventfd: sys::eventfd()?,
            home: thread::current().id(),
            rung: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        })
    }

    /// The descriptor a driver sleeps on.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.eventfd.try_clone()
    }

    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            sys::eventfd_ring(self.eventfd.as_fd());
        }
    }

    /// As `ring`, unless called on the reactor's own thread, which is awake.
    pub(crate) fn ring_from_elsewhere(&self) {
        if thread::current().id() != self.home {
            self.ring();
        }
    }

    /// Announces a sleep. False if the bell has been rung meanwhile: do not sleep then.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.rung.swap(false, Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}
