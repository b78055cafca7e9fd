//! The only part of a reactor that other threads may hold: a bell.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Waker;

use crate::driver::SleepPlace;
use crate::fork::{self, Generation};
use crate::sync::{
    AtomicBool, AtomicU8, Mutex, MutexGuard, Ordering, PoisonError, ThreadNumber, this_thread,
};
use crate::sys::{self, EventFd};

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

/// Whoever rings need not strike: before it sleeps the reactor looks whether it was rung.
const AWAKE: u8 = 0;
/// Whoever rings strikes.
const ASLEEP: u8 = 1;
/// Somebody has rung, and the reactor has not looked since.
const RUNG: u8 = 2;

pub(crate) struct Bell {
    eventfd: EventFd,
    home: ThreadNumber,
    place: SleepPlace,
    /// AWAKE, ASLEEP or RUNG. One word for all three, so that a turn that sleeps changes it twice and no
    /// more: each change locks the cache line, which costs as much as twenty other instructions. Never merely
    /// stored to but always exchanged: that acquires what the one who rang has said before. After a store it
    /// could be looked at too early, found missing, and its ring be forgotten.
    state: AtomicU8,
    /// Woken instead of the eventfd: a host that runs tasks needs no system call to be told.
    attendant: Mutex<Option<Waker>>,
    /// Written to as well while a driver sleeps past what its ring tells it. Another one, because the kernel
    /// writes to no eventfd on behalf of another that was just written to, but by milliseconds later. None
    /// in a host's loop.
    alert: Option<EventFd>,
    alerts: AtomicBool,
    made_in: Generation,
}

impl Bell {
    pub(crate) fn new(place: SleepPlace) -> io::Result<Bell> {
        Ok(Bell {
            eventfd: sys::eventfd()?,
            home: this_thread(),
            place,
            state: AtomicU8::new(AWAKE),
            attendant: Mutex::new(None),
            alert: if place == SleepPlace::OwnTurn { Some(sys::eventfd()?) } else { None },
            alerts: AtomicBool::new(false),
            made_in: fork::generation(),
        })
    }

    /// The eventfd a driver sleeps on.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// The eventfd that is written to besides, if [asked for](Bell::alert_too).
    pub(crate) fn alert(&self) -> Option<&EventFd> {
        self.alert.as_ref()
    }

    /// From here on whoever rings for a sleeper writes to the second eventfd too. False if somebody has rung
    /// since the reactor fell asleep, who may not have.
    pub(crate) fn alert_too(&self) -> bool {
        self.alerts.store(true, Ordering::SeqCst);
        // An exchange, so that who rings after it has seen what was stored before.
        self.state.compare_exchange(ASLEEP, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The first is enough again.
    pub(crate) fn alert_no_more(&self) {
        self.alerts.store(false, Ordering::SeqCst);
    }

    pub(crate) fn ring(&self) {
        if self.state.swap(RUNG, Ordering::SeqCst) == ASLEEP {
            self.strike();
        }
    }

    /// As `ring`, unless called on the reactor's own thread, which is awake then. But for a guest: there the
    /// host's own code runs between two turns; and for the handler of a signal, which may run in its sleep.
    pub(crate) fn ring_from_elsewhere(&self) {
        if self.place == SleepPlace::HostLoop || this_thread() != self.home || self.is_asleep() {
            self.ring();
        }
    }

    /// As `ring`, on the reactor's own thread, which is awake then. But for a guest.
    #[inline]
    pub(crate) fn ring_for_the_host(&self) {
        if self.place == SleepPlace::HostLoop {
            self.ring();
        }
    }

    /// Makes the sleeper's descriptor readable, whether it sleeps or not.
    pub(crate) fn strike(&self) {
        // The parent's sleep is none of a child's business, which shares the eventfd with it.
        if self.is_a_parents() {
            return;
        }
        // Cloned, since it is woken where nothing is locked.
        let attendant = self.attendant().clone();
        match attendant {
            Some(waker) => waker.wake(),
            None => sys::eventfd_ring(self.eventfd.as_fd()),
        }
        if self.alerts.load(Ordering::SeqCst)
            && let Some(alert) = self.alert()
        {
            sys::eventfd_ring(alert.as_fd());
        }
    }

    /// From here on this waker is woken, and the eventfd left alone. Gives back the one before, to be dropped
    /// where nothing is locked.
    pub(crate) fn attend(&self, waker: Option<Waker>) -> Option<Waker> {
        // A thread that is not there may have locked it in the parent.
        if self.is_a_parents() { waker } else { std::mem::replace(&mut *self.attendant(), waker) }
    }

    /// Whether this process is a forked child of the one that made it.
    pub(crate) fn is_a_parents(&self) -> bool {
        fork::generation() != self.made_in
    }

    /// Until what is given back is dropped the eventfd is written to after all: who would be woken instead
    /// runs on this thread, which sleeps.
    pub(crate) fn unattended(&self) -> Unattended<'_> {
        Unattended { bell: self, attendant: self.attend(None) }
    }

    fn attendant(&self) -> MutexGuard<'_, Option<Waker>> {
        // Half a waker cannot be seen: it is replaced whole.
        self.attendant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was rung: whoever calls this looks at everything next.
    pub(crate) fn hear(&self) {
        self.state.swap(AWAKE, Ordering::SeqCst);
    }

    pub(crate) fn is_rung(&self) -> bool {
        self.state.load(Ordering::SeqCst) == RUNG
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ASLEEP
    }

    /// Announces a sleep. False if the bell has been rung meanwhile: do not sleep then.
    pub(crate) fn fall_asleep(&self) -> bool {
        match self.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) | Err(ASLEEP) => true,
            Err(_) => {
                self.state.swap(AWAKE, Ordering::SeqCst);
                false
            }
        }
    }

    /// The sleep is over. What was rung meanwhile stays to be heard.
    pub(crate) fn awake(&self) {
        if self.is_asleep() {
            let _ = self.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

pub(crate) struct Unattended<'a> {
    bell: &'a Bell,
    attendant: Option<Waker>,
}

impl Drop for Unattended<'_> {
    fn drop(&mut self) {
        drop(self.bell.attend(self.attendant.take()));
    }
}
