//! Who waits for which moment. Knows no clock but the one it is asked with.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Instant;

/// Moments and wakers, the earliest first.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    count: u64,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alarm(Instant, u64);

impl Timers {
    /// Wakes `waker` at `moment`.
    pub(crate) fn set(&mut self, moment: Instant, waker: Waker) -> Alarm {
        self.count += 1;
        self.waiting.insert((moment, self.count), waker);
        Alarm(moment, self.count)
    }

    /// Replaces the waker of one that has not gone off; gives back the old one, to be dropped outside.
    pub(crate) fn replace(&mut self, alarm: Alarm, waker: &Waker) -> Option<Waker> {
        let waiting = self.waiting.get_mut(&(alarm.0, alarm.1))?;
        if waiting.will_wake(waker) { None } else { Some(std::mem::replace(waiting, waker.clone())) }
    }

    /// Removes one; gives back its waker, to be dropped outside.
    pub(crate) fn unset(&mut self, alarm: Alarm) -> Option<Waker> {
        self.waiting.remove(&(alarm.0, alarm.1))
    }

    /// When the first goes off.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((moment, _), _)| *moment)
    }

    /// Takes out all that are due.
    pub(crate) fn expire(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            woken.push(entry.remove());
        }
    }
}
