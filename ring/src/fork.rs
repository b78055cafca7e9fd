//! Noticing that this process is the child of a fork.
//!
//! Owns one page that the kernel empties in every child, and the count of processes that followed each other.
//! It knows no socket: whoever holds something that a child must not use notes the generation it was made in,
//! and compares.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys;

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
}

/// How a fork is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// By a page that the kernel wipes in the child (MADV_WIPEONFORK, Linux 4.14). Asking is two loads.
    WipedPage,
    /// By the number of the process, where the kernel (or a sandbox) refuses the page. Asking is a system
    /// call, 0.1 µs. A descendant that was given the number of an ancestor, dead by then, and that asks for
    /// the first time after that, is taken for the ancestor.
    ProcessNumber,
}

/// Which process this is, in a line of forks. Cheap enough to be asked before each call.
///
/// A child of `vfork` shares its parent's memory and is not told apart; all it may do is `exec`.
pub fn generation() -> Generation {
    match watch() {
        Watch::Page(mark) => of_page(mark),
        Watch::Process => of_process(sys::process_number()),
    }
}

/// How forks are noticed here. Decided once for the process and its children.
pub fn notice() -> Notice {
    match watch() {
        Watch::Page(_) => Notice::WipedPage,
        Watch::Process => Notice::ProcessNumber,
    }
}

/// Runs `child` in a fork of this process, whose exit status it decides; gives back the child's number. Only
/// the calling thread exists there, and nothing of this process is run to its end. For tests.
///
/// # Errors
/// The kernel's.
#[doc(hidden)]
pub fn fork_for_tests(child: impl FnOnce() -> i32) -> std::io::Result<i32> {
    sys::fork(child)
}

enum Watch {
    Page(&'static AtomicU64),
    Process,
}

fn watch() -> &'static Watch {
    static WATCH: OnceLock<Watch> = OnceLock::new();
    if let Some(watch) = WATCH.get() {
        return watch;
    }
    // Mapped before the lock is asked for and not under it: a fork by another thread meanwhile would leave it
    // locked in the child. Of two threads that come here first one maps a page in vain.
    let watch = sys::wiped_on_fork().map_or(Watch::Process, Watch::Page);
    WATCH.get_or_init(|| watch)
}

/// Generations given out in this line of processes. A child counts on from its parent's, so that no
/// ancestor's generation comes again.
static COUNT: AtomicU64 = AtomicU64::new(0);

fn of_page(mark: &AtomicU64) -> Generation {
    let marked = mark.load(Ordering::Relaxed);
    if marked != 0 {
        return Generation(marked);
    }
    let fresh = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    // Of several threads that find the page empty one marks it; the others take that mark.
    match mark.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Generation(fresh),
        Err(marked) => Generation(marked),
    }
}

/// The process that asked last, in the upper half, and its generation.
static ASKED: AtomicU64 = AtomicU64::new(0);

fn of_process(number: u32) -> Generation {
    let mut asked = ASKED.load(Ordering::Relaxed);
    loop {
        if (asked >> 32) as u32 == number {
            return Generation(asked & u64::from(u32::MAX));
        }
        let fresh = u64::from(number) << 32 | ((asked + 1) & u64::from(u32::MAX));
        match ASKED.compare_exchange(asked, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Generation(fresh & u64::from(u32::MAX)),
            Err(other) => asked = other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_page_begins_another_generation() {
        let mark = AtomicU64::new(0);
        let first = of_page(&mark);
        assert_eq!(of_page(&mark), first);
        mark.store(0, Ordering::Relaxed);
        let second = of_page(&mark);
        assert_ne!(second, first);
        assert_eq!(of_page(&mark), second);
    }

    #[test]
    fn another_process_number_begins_another_generation() {
        let first = of_process(7);
        assert_eq!(of_process(7), first);
        let second = of_process(8);
        assert_ne!(second, first);
        assert_eq!(of_process(8), second);
        // The grandchild that was given the grandparent's number.
        assert_ne!(of_process(7), first);
    }
}
