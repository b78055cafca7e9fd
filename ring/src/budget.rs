//! How many more descriptors may arrive.
//!
//! The process's limit, less what is open, less a reserve for everybody else in the process, less what the
//! kernel may install at any moment into receives already armed. It is an estimate that is never too small
//! for long: descriptors received are counted, their closing is not, and when that says there is no room left
//! the truth is asked for. It knows no socket.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use crate::closer;
use crate::sys;

pub(crate) struct Budget {
    directory: Option<OwnedFd>,
    reserve: usize,
    limit: Cell<usize>,
    used: Cell<usize>,
    exposed: Cell<usize>,
}

impl Budget {
    pub(crate) fn new(reserve: usize) -> Budget {
        let budget = Budget {
            directory: sys::open_descriptor_directory(),
            reserve,
            limit: Cell::new(0),
            used: Cell::new(0),
            exposed: Cell::new(0),
        };
        budget.measure();
        budget
    }

    /// How many a receive may take now, of the `wanted` it would like. Zero means: wait.
    pub(crate) fn room(&self, wanted: usize) -> usize {
        // A socket that takes no descriptors at all needs no room for them.
        if wanted == 0 {
            return 0;
        }
        if closer::backlog() >= closer::QUEUE_MAX {
            return 0;
        }
        if self.left() < wanted {
            self.measure();
        }
        self.left().min(wanted)
    }

    /// Whether the estimate says there is room for so many, without asking anybody.
    pub(crate) fn covers(&self, count: usize) -> bool {
        self.left() >= count && closer::backlog() < closer::QUEUE_MAX
    }

    fn left(&self) -> usize {
        // With a very low limit the reserve gives way, or nothing would ever arrive.
        let reserve = self.reserve.min(self.limit.get() / 4);
        self.limit.get().saturating_sub(reserve + self.used.get() + self.exposed.get())
    }

    /// So many have arrived.
    pub(crate) fn took(&self, count: usize) {
        self.used.set(self.used.get() + count);
    }

    /// The kernel may now install so many without asking us.
    pub(crate) fn expose(&self, count: usize) {
        self.exposed.set(self.exposed.get() + count);
    }

    /// It may not any more.
    pub(crate) fn cover(&self, count: usize) {
        assert!(self.exposed.get() >= count);
        self.exposed.set(self.exposed.get() - count);
    }

    fn measure(&self) {
        self.limit.set(sys::descriptor_limit());
        self.used.set(sys::open_descriptors(self.directory.as_ref().map(AsFd::as_fd)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted_without_proc() {
        let told = sys::open_descriptors(sys::open_descriptor_directory().as_ref().map(AsFd::as_fd));
        let scanned = sys::open_descriptors(None);
        // Other tests of this process may open or close one meanwhile.
        assert!(told.abs_diff(scanned) < 16, "{told} told, {scanned} scanned");
        assert!(scanned >= 3);
    }

    #[test]
    fn what_is_exposed_is_not_given_twice() {
        let budget = Budget::new(32);
        let before = budget.left();
        budget.expose(100);
        assert_eq!(budget.left(), before - 100);
        budget.cover(100);
        assert_eq!(budget.left(), before);
    }
}
