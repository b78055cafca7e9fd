//! The number of a process in a line of forks, given out once however many threads ask for it first.
//!
//! It is handed the words that the number is kept in. It does not know where they are, and no kernel.

use crate::sync::{AtomicU64, Ordering};

/// One process in a line of forks. Two that are equal were told in the same process.
///
/// ```
/// let before = ring::fork::generation();
/// // … perhaps the host program forks here …
/// if ring::fork::generation() == before {
///     // Still the process that made whatever is to be used now.
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(u64);

impl Generation {
    /// Never 0, and greater than any ancestor's.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Of the process whose page this mark is on. `count` is how many were given out in this line of
    /// processes: a child counts on from its parent's, so that no ancestor's generation comes again.
    pub(crate) fn of_page(mark: &AtomicU64, count: &AtomicU64) -> Generation {
        let marked = mark.load(Ordering::Relaxed);
        if marked != 0 {
            return Generation(marked);
        }
        let fresh = count.fetch_add(1, Ordering::Relaxed) + 1;
        // Of several threads that find the page empty one marks it; the others take that mark.
        match mark.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Generation(fresh),
            Err(marked) => Generation(marked),
        }
    }

    /// Of the process with this number. `asked` is the process that asked last, in the upper half, and its
    /// generation.
    pub(crate) fn of_process(number: u32, asked: &AtomicU64) -> Generation {
        let mut last = asked.load(Ordering::Relaxed);
        loop {
            if (last >> 32) as u32 == number {
                return Generation(last & u64::from(u32::MAX));
            }
            let fresh = u64::from(number) << 32 | ((last + 1) & u64::from(u32::MAX));
            match asked.compare_exchange(last, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Generation(fresh & u64::from(u32::MAX)),
                Err(other) => last = other,
            }
        }
    }
}
