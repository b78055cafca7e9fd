//! Noticing that this process is the child of a fork.
//!
//! Owns one page that the kernel empties in every child, and the count of processes that followed each other.
//! It knows no socket: whoever holds something that a child must not use notes the generation it was made in,
//! and compares.

pub use crate::generation::Generation;
use crate::sync::{AtomicU64, OnceLock};
use crate::sys;

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
        Watch::Page(mark) => Generation::of_page(mark, &COUNT),
        Watch::Process => Generation::of_process(sys::process_number(), &ASKED),
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

/// Generations given out in this line of processes.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The process that asked last, in the upper half, and its generation.
static ASKED: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn a_wiped_page_begins_another_generation() {
        let (mark, count) = (AtomicU64::new(0), AtomicU64::new(0));
        let of_page = |mark| Generation::of_page(mark, &count);
        let first = of_page(&mark);
        assert_eq!(of_page(&mark), first);
        mark.store(0, Ordering::Relaxed);
        let second = of_page(&mark);
        assert_ne!(second, first);
        assert_eq!(of_page(&mark), second);
    }

    #[test]
    fn another_process_number_begins_another_generation() {
        let asked = AtomicU64::new(0);
        let of_process = |number| Generation::of_process(number, &asked);
        let first = of_process(7);
        assert_eq!(of_process(7), first);
        let second = of_process(8);
        assert_ne!(second, first);
        assert_eq!(of_process(8), second);
        // The grandchild that was given the grandparent's number.
        assert_ne!(of_process(7), first);
    }
}
