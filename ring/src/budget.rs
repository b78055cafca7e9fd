//! How many more descriptors may arrive.
//!
//! The process's limit, less what is open, less a reserve for everybody else in the process. It is an
//! estimate that is never too small for long: descriptors received are counted, their closing is not, and
//! when that says there is no room left the truth is asked for. What the rest of the process opens, other
//! reactors included, is noticed some turns later; the reserve is for that. It knows no socket.
//!
//! A limit that was lowered leaves descriptors open whose numbers are at the limit or above. They use up no
//! number below it: whoever counted them waited for ever where a number was free.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::closer;
use crate::fd::DESCRIPTORS_MAX;
use crate::sys;

/// After so many turns the truth is asked for even if the estimate says there is room: others may have opened
/// descriptors, or lowered the limit.
const TURNS_MAX: u32 = 64;

/// Where few seem left, the numbers below the limit are asked about one by one: for each 1,024 of them once
/// in this time (it takes some 0.2 ms), at once when the limit is lowered, and each time the truth is asked
/// for while some are open above.
const COUNTED_AGAIN: Duration = Duration::from_millis(100);

/// How long receives wait for as many descriptors as they want before they make do with fewer.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Budget {
    clock: Clock,
    directory: Option<OwnedFd>,
    reserve: usize,
    limit: Cell<usize>,
    used: Cell<usize>,
    /// Whether some were open at the limit or above when the numbers below it were last counted.
    some_above: Cell<bool>,
    /// When they were.
    counted: Cell<Option<Instant>>,
    /// Since the truth was asked for.
    turns: Cell<u32>,
    /// Since when receives have found less than they want.
    short_since: Cell<Option<Instant>>,
    /// How often a receive was told to wait.
    starved: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(reserve: usize, clock: Clock) -> Budget {
        let budget = Budget {
            clock,
            directory: sys::open_descriptor_directory(),
            reserve,
            limit: Cell::new(0),
            used: Cell::new(0),
            some_above: Cell::new(false),
            counted: Cell::new(None),
            turns: Cell::new(0),
            short_since: Cell::new(None),
            starved: Cell::new(0),
        };
        budget.measure();
        budget
    }

    /// How many a receive that wants room for `wanted` may take now. Zero means: wait.
    ///
    /// With less than it wants it waits too, for a while: descriptors mostly come free soon, and a message
    /// that brings more than there is room for loses them. But who holds most of the process's descriptors
    /// for good should not be served nothing at all.
    pub(crate) fn room(&self, wanted: usize) -> usize {
        if wanted == 0 {
            return self.left();
        }
        let room = self.room_for(wanted);
        self.starved.set(self.starved.get() + u64::from(room == 0));
        room
    }

    fn room_for(&self, wanted: usize) -> usize {
        if closer::backlog() >= closer::QUEUE_MAX {
            return 0;
        }
        if self.left() < wanted.max(DESCRIPTORS_MAX) {
            self.measure_once_a_turn();
        }
        let left = self.left();
        if left >= wanted {
            self.short_since.set(None);
            return left;
        }
        let now = self.clock.now();
        let since = self.short_since.get().unwrap_or(now);
        self.short_since.set(Some(since));
        if now.saturating_duration_since(since) < PATIENCE {
            return 0;
        }
        // What a message brings beyond this is lost, so it has to be true now, and not when the turn began:
        // a call lost its descriptors to a limit that had been raised again before it was made.
        self.measure();
        self.left()
    }

    /// How often a receive was told to wait.
    pub(crate) fn starved(&self) -> u64 {
        self.starved.get()
    }

    /// Whether those that wait might find room.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    /// Whether there is room for so many at this moment.
    pub(crate) fn has_room_for(&self, count: usize) -> bool {
        self.measure_once_a_turn();
        self.covers(count)
    }

    /// Whether the estimate says there is room for so many, without asking anybody.
    pub(crate) fn covers(&self, count: usize) -> bool {
        self.left() >= count && closer::backlog() < closer::QUEUE_MAX
    }

    /// What is not open and not kept in reserve.
    fn left(&self) -> usize {
        // With a very low limit the reserve gives way, or nothing would ever arrive.
        let reserve = self.reserve.min(self.limit.get() / 4);
        self.limit.get().saturating_sub(reserve + self.used.get())
    }

    /// So many have arrived.
    pub(crate) fn took(&self, count: usize) {
        self.used.set(self.used.get() + count);
    }

    /// A turn begins.
    pub(crate) fn turn(&self) {
        self.turns.set(self.turns.get() + 1);
        // Without the directory asking means to scan the whole table.
        if self.turns.get() >= TURNS_MAX && self.directory.is_some() {
            self.measure();
        }
    }

    /// A turn has slept, and what was true before that need not be any more: a call lost its descriptors to a
    /// limit that was lowered while its receiver, which had looked for it in vain, slept.
    pub(crate) fn slept(&self) {
        self.turns.set(self.turns.get().max(1));
    }

    fn measure_once_a_turn(&self) {
        if self.turns.get() > 0 {
            self.measure();
        }
    }

    /// Asks for the truth.
    pub(crate) fn measure(&self) {
        self.turns.set(0);
        let open = sys::open_descriptors(self.directory.as_ref().map(AsFd::as_fd));
        let limit = sys::descriptor_limit();
        let before = self.limit.replace(limit);
        self.used.set(open);
        if self.left() < DESCRIPTORS_MAX && limit <= sys::NUMBERS_ASKED_MAX {
            self.leave_out_those_above(limit < before);
        }
    }

    fn leave_out_those_above(&self, lowered: bool) {
        let now = self.clock.now();
        let pause = COUNTED_AGAIN * (self.limit.get() / 1024 + 1) as u32;
        let recent = |counted| now.saturating_duration_since(counted) < pause;
        if !lowered && !self.some_above.get() && self.counted.get().is_some_and(recent) {
            return;
        }
        self.counted.set(Some(now));
        let below = sys::open_descriptors_below(self.limit.get());
        self.some_above.set(below < self.used.get());
        self.used.set(below);
    }
}

/// Held by unit tests that count this process's descriptors, or open many of them.
#[cfg(test)]
pub(crate) static COUNTED: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use super::*;

    /// What was estimated a second ago is no reason to lose what a message brings.
    #[cfg(feature = "script")]
    #[test]
    fn whoever_makes_do_with_fewer_has_asked_just_now() {
        let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
        let now = std::rc::Rc::new(Cell::new(Instant::now()));
        let budget = Budget::new(0, Clock::Scripted(std::rc::Rc::clone(&now)));
        budget.took(usize::MAX / 2);
        assert_eq!(budget.room(17), 0);
        now.set(now.get() + PATIENCE);
        assert!(budget.room(17) >= 17, "in the same turn");
    }

    #[test]
    fn descriptors_are_counted_without_proc() {
        let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
        let told = sys::open_descriptors(sys::open_descriptor_directory().as_ref().map(AsFd::as_fd));
        let scanned = sys::open_descriptors(None);
        // Other tests of this process may open or close one meanwhile.
        assert!(told.abs_diff(scanned) < 16, "{told} told, {scanned} scanned");
        assert!(scanned >= 3);
    }
}
