//! Descriptors as this crate holds them: those we send (`Fd`), those that arrived (`Descriptors`), and the
//! closing of both.
//!
//! Knows no socket and no message. What it must never do is close a descriptor that a stranger made on the
//! caller's thread when that could take time: see [`discard`].

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use crate::closer;
use crate::sys;

/// The most descriptors one message carries. The kernel's limit (`SCM_MAX_FD`): a 254th is EINVAL.
pub const DESCRIPTORS_MAX: usize = 253;

/// How many descriptors a socket accepts in one message until told otherwise.
pub const DESCRIPTORS_DEFAULT: usize = 16;

/// The two types of socket this crate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `SOCK_SEQPACKET`: messages, whole and in order.
    SeqPacket,
    /// `SOCK_STREAM`: bytes in order; descriptors arrive with the first byte of the send they were in.
    Stream,
}

/// A descriptor to be sent: owned, and shared where several messages carry the same one.
///
/// The last one closes it. Where that could take time (a TCP socket that lingers) it is left to the
/// [closer](discard) thread.
#[derive(Clone)]
pub struct Fd(Rc<Held>);

struct Held {
    fd: Option<OwnedFd>,
    /// Made here and seen by nobody who could make its closing slow.
    ours: bool,
    /// Under which number the epoll driver watches it.
    watch: Cell<Option<u32>>,
}

impl Fd {
    /// A descriptor that this program made itself and whose closing cannot take time: the far end of a pair
    /// whose near end stays here, a pipe, a small file in memory. The last holder closes it where it stands,
    /// without asking the kernel what it is and without the closer threads.
    ///
    /// ```
    /// use ring::{Fd, Kind, Message, Reactor, Socket};
    /// let (near, far) = Socket::pair(&Reactor::new()?, Kind::SeqPacket)?;
    /// let call = Message::from("answer here").with_descriptor(Fd::made_here(far));
    /// # drop((near, call));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn made_here(fd: OwnedFd) -> Fd {
        Fd::ours(fd)
    }

    /// One that this crate made itself, which is closed where it stands.
    pub(crate) fn ours(fd: OwnedFd) -> Fd {
        Fd(Rc::new(Held { fd: Some(fd), ours: true, watch: Cell::new(None) }))
    }

    /// Where the epoll driver notes under which number it watches this descriptor.
    pub(crate) fn watch(&self) -> &Cell<Option<u32>> {
        &self.0.watch
    }

    /// The descriptor itself, if nobody else holds it.
    ///
    /// # Errors
    /// Gives the handle back when another clone of it exists.
    pub fn try_into_owned(self) -> Result<OwnedFd, Fd> {
        match Rc::try_unwrap(self.0) {
            Ok(mut held) => Ok(held.fd.take().expect("held until dropped")),
            Err(shared) => Err(Fd(shared)),
        }
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd(Rc::new(Held { fd: Some(fd), ours: false, watch: Cell::new(None) }))
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_ref().expect("held until dropped").as_fd()
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.as_fd()).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.fd.take() {
            Some(fd) if self.ours => drop(fd),
            Some(fd) => discard(fd),
            None => {}
        }
    }
}

/// Closes a descriptor that somebody else made, without ever making this thread wait.
///
/// `close` of a stranger's TCP socket with unsent data and SO_LINGER takes as long as the stranger likes, and
/// so may a file of a FUSE file system or a socket in whose queue such a thing lies. Pipes and small
/// files in memory are closed here; everything else is closed by threads of their own, started when needed.
pub fn discard(fd: OwnedFd) {
    closer::close(fd);
}

/// Whether a descriptor is an AF_UNIX socket, of whatever type and in whatever state: what can have
/// descriptors in its queue, and so be part of a cycle of them. Asks the kernel and changes nothing.
pub fn is_unix_socket(fd: impl AsFd) -> bool {
    sys::is_unix_socket(fd.as_fd())
}

/// The descriptors of one received message, in the order they were sent. Closes what nobody took.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(VecDeque<OwnedFd>);

impl Descriptors {
    pub(crate) fn push(&mut self, fd: OwnedFd) {
        self.0.push_back(fd);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the first so many. Says whether there were more.
    pub(crate) fn truncate(&mut self, count: usize) -> bool {
        if self.0.len() <= count {
            return false;
        }
        let excess = self.0.split_off(count.min(self.0.len()));
        excess.into_iter().for_each(discard);
        true
    }

    pub(crate) fn take_first(&mut self) -> Option<OwnedFd> {
        self.0.pop_front()
    }

    pub(crate) fn take_last(&mut self) -> Option<OwnedFd> {
        self.0.pop_back()
    }

    pub(crate) fn take_all(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.0).into()
    }
}

impl Drop for Descriptors {
    #[inline]
    fn drop(&mut self) {
        // Most messages bring none.
        if !self.0.is_empty() {
            self.take_all().into_iter().for_each(discard);
        }
    }
}
