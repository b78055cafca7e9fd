//! Who waits for which moment. Knows no clock but the one it is asked with.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::task::{Asker, Sleeper};

/// Moments and those who sleep until then, the earliest first.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: BTreeMap<(Instant, u64), Sleeper>,
    count: u64,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alarm(Instant, u64);

impl Timers {
    /// Wakes whoever asks at `moment`.
    pub(crate) fn set(&mut self, moment: Instant, asker: Asker<'_>) -> Alarm {
        self.count += 1;
        self.waiting.insert((moment, self.count), Sleeper::from(asker));
        Alarm(moment, self.count)
    }

    /// Replaces who is woken by one that has not gone off; gives back the old one, to be dropped outside.
    pub(crate) fn replace(&mut self, alarm: Alarm, asker: Asker<'_>) -> Option<Sleeper> {
        let waiting = self.waiting.get_mut(&(alarm.0, alarm.1))?;
        if waiting.is(asker) { None } else { Some(std::mem::replace(waiting, Sleeper::from(asker))) }
    }

    /// Removes one; gives back who was to be woken, to be dropped outside.
    pub(crate) fn unset(&mut self, alarm: Alarm) -> Option<Sleeper> {
        self.waiting.remove(&(alarm.0, alarm.1))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the first goes off.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((moment, _), _)| *moment)
    }

    /// Takes out all that are due.
    pub(crate) fn expire(&mut self, now: Instant, woken: &mut Vec<Sleeper>) {
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            woken.push(entry.remove());
        }
    }
}
