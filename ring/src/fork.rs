//! Noticing that this process is the child of a fork.
//!
//! Owns pages that the kernel empties in every child, and the count of processes that followed each other.
//! It knows no socket: whoever holds something that a child must not use notes the generation it was made in,
//! and compares. Nothing here is ever locked, since a fork would leave it locked in the child.

use std::io;

use thiserror::Error;

pub use crate::generation::Generation;
use crate::sync::{AtomicU64, OnceBox, Ordering, made_once};
use crate::sys::{self, Word};

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

/// Forks this process, and goes on in both; gives back the child's number, and 0 in the child. For tests.
///
/// # Errors
/// The kernel's.
#[cfg(feature = "script")]
#[doc(hidden)]
pub fn fork_and_go_on_for_tests() -> std::io::Result<i32> {
    sys::fork_and_go_on()
}

/// This is a forked child of the process that made the reactor, which stays the parent's.
///
/// What the child has of it are copies: of memory in which the parent goes on writing down what it awaits,
/// of a ring both would write to, of sockets on which both would speak. So each verb of an inherited reactor
/// is refused with this, before anything is touched: as `Forked` by those whose errors are enums, and inside
/// an [`io::Error`] by the others, where [`ForkedChild::is`] finds it.
///
/// A child may drop what it has inherited, which closes its copies and says nothing to anybody; it may take
/// the descriptors out ([`Socket::into_fd`](crate::Socket::into_fd)); and it may make a reactor of its own.
///
/// ```
/// use ring::fork::ForkedChild;
///
/// // What `Reactor::turn` says in a child.
/// let refused = std::io::Error::from(ForkedChild);
/// assert!(ForkedChild::is(&refused));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the reactor belongs to the process that made it, and this is a forked child of that")]
pub struct ForkedChild;

impl ForkedChild {
    /// Whether this is what went wrong.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inside| inside.is::<ForkedChild>())
    }
}

impl From<ForkedChild> for io::Error {
    fn from(forked: ForkedChild) -> io::Error {
        io::Error::other(forked)
    }
}

/// Where something was made: in this process, or in one that this is a forked child of.
///
/// With a page of its own, so that asking is one load and one comparison. It is asked before each step of a
/// reactor.
pub(crate) struct Origin {
    word: Word,
    made_in: Generation,
}

/// The word, where nothing has forked since.
const HERE: u64 = 1;

/// The word, where the kernel does not wipe it: the generation has to be asked for.
const UNKNOWN: u64 = 2;

impl Origin {
    pub(crate) fn here() -> io::Result<Origin> {
        let made_in = generation();
        let (word, mark) = match Word::wiped_on_fork() {
            Ok(word) => (word, HERE),
            Err(_) => (Word::new()?, UNKNOWN),
        };
        word.store(mark, Ordering::Relaxed);
        Ok(Origin { word, made_in })
    }

    /// Whether this process is a child of the one it was made in.
    #[inline]
    pub(crate) fn is_a_parents(&self) -> bool {
        self.word.load(Ordering::Relaxed) != HERE && self.ask()
    }

    #[cold]
    fn ask(&self) -> bool {
        self.word.load(Ordering::Relaxed) != UNKNOWN || generation() != self.made_in
    }
}

enum Watch {
    Page(Word),
    Process,
}

fn watch() -> &'static Watch {
    // Of two threads that come here first one maps a page in vain.
    static WATCH: OnceBox<Watch> = OnceBox::new();
    made_once(&WATCH, || Box::new(Word::wiped_on_fork().map_or(Watch::Process, Watch::Page)))
}

/// Generations given out in this line of processes.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The process that asked last, in the upper half, and its generation.
static ASKED: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use super::*;

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
