//! Descriptors as this crate holds them: those we send (`Fd`), those that arrived (`Descriptors`), and the
//! closing of both.
//!
//! Knows no socket and no message. What it must never do is close a descriptor that a stranger made on the
//! caller's thread when that could take time: see [`discard`].

use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use smallvec::SmallVec;

use crate::buffer::Landing;
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
    notes: Notes,
    /// Where pieces of something larger are received. A cell, since each idle socket has one.
    landing: Cell<Option<Landing>>,
}

/// What is noted of a descriptor, in one word: each idle socket has it.
pub(crate) struct Notes(Cell<u32>);

impl Notes {
    /// Made here and seen by nobody who could make its closing slow.
    const OURS: u32 = 1 << 31;

    fn new(ours: bool) -> Notes {
        Notes(Cell::new(if ours { Notes::OURS } else { 0 }))
    }

    fn is_ours(&self) -> bool {
        self.0.get() & Notes::OURS != 0
    }

    /// Under which number the epoll driver watches it.
    #[inline]
    pub(crate) fn get(&self) -> Option<u32> {
        (self.0.get() & !Notes::OURS).checked_sub(1)
    }

    pub(crate) fn take(&self) -> Option<u32> {
        let watch = self.get();
        self.set(None);
        watch
    }

    pub(crate) fn set(&self, watch: Option<u32>) {
        let number = watch.map_or(0, |number| number + 1);
        assert!(number < Notes::OURS, "fewer than 2^31 descriptors");
        self.0.set(self.0.get() & Notes::OURS | number);
    }
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
        Fd(Rc::new(Held::new(fd, true)))
    }

    /// Where the epoll driver notes under which number it watches this descriptor.
    pub(crate) fn watch(&self) -> &Notes {
        &self.0.notes
    }

    /// Whether this is a clone of that one.
    pub(crate) fn is_clone_of(&self, other: &Fd) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Where pieces of something larger are received from this descriptor, if anywhere.
    #[inline]
    pub(crate) fn landing(&self) -> Option<Landing> {
        let landing = self.0.landing.take()?;
        self.0.landing.set(Some(landing.clone()));
        Some(landing)
    }

    pub(crate) fn set_landing(&self, landing: Option<Landing>) {
        let old = self.0.landing.replace(landing);
        drop(old);
    }

    /// What is left of a handle that nobody else has a clone of, to hold another descriptor: it is closed as
    /// when it is dropped. `None` where there is a clone.
    pub(crate) fn close(mut self) -> Option<Shell> {
        let held = Rc::get_mut(&mut self.0)?;
        held.close();
        held.forget();
        Some(Shell(self))
    }

    /// The descriptor itself, if nobody else holds it, and what is left of the handle.
    ///
    /// # Errors
    /// Gives the handle back when another clone of it exists.
    pub(crate) fn try_into_parts(mut self) -> Result<(OwnedFd, Shell), Fd> {
        let Some(held) = Rc::get_mut(&mut self.0) else { return Err(self) };
        let fd = held.fd.take().expect("held until dropped");
        held.forget();
        Ok((fd, Shell(self)))
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

/// The memory of a handle without its descriptor.
pub(crate) struct Shell(Fd);

impl Shell {
    /// As [`Fd::made_here`], without asking for memory.
    pub(crate) fn hold(mut self, fd: OwnedFd) -> Fd {
        let held = Rc::get_mut(&mut self.0.0).expect("a shell has one owner");
        held.fd = Some(fd);
        held.notes = Notes::new(true);
        self.0
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd(Rc::new(Held::new(fd, false)))
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

impl Held {
    fn new(fd: OwnedFd, ours: bool) -> Held {
        Held { fd: Some(fd), notes: Notes::new(ours), landing: Cell::new(None) }
    }

    /// What was noted of a descriptor that is gone.
    fn forget(&mut self) {
        self.notes.set(None);
        self.landing.set(None);
    }

    fn close(&mut self) {
        match self.fd.take() {
            Some(fd) if self.notes.is_ours() => drop(fd),
            Some(fd) => discard(fd),
            None => {}
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.close();
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

/// The descriptors of a received message that nobody has taken yet, in the order they were sent. Closes those
/// when it is dropped, without making the thread wait ([`discard`]).
///
/// ```
/// # use ring::{Descriptors, Executor, Kind, Message, Reactor, Socket};
/// # let reactor = Reactor::new()?;
/// # let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
/// # let far = Socket::wrap(&reactor, far)?;
/// # Executor::new(&reactor).block_on(async {
/// let (reader, writer) = std::io::pipe()?;
/// let message = Message::from("both ends").with_descriptor(std::os::fd::OwnedFd::from(reader));
/// near.send(message.with_descriptor(std::os::fd::OwnedFd::from(writer))).await?;
///
/// let mut descriptors: Descriptors = far.receive().await?.take_list();
/// let _writer = descriptors.take_last();
/// assert_eq!(descriptors.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Descriptors(SmallVec<[OwnedFd; 2]>);

impl Descriptors {
    /// One more, at the end.
    pub fn push(&mut self, fd: OwnedFd) {
        self.0.push(fd);
    }

    /// Makes room for so many more at once: with one after the other the list moves at the third, fifth and
    /// ninth.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.0.reserve_exact(more);
    }

    /// Whether the list has memory of its own, to be given back.
    #[inline]
    pub(crate) fn has_spilled(&self) -> bool {
        self.0.spilled()
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order, to be looked at.
    pub fn iter(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter()
    }

    /// Keeps the first so many. Says whether there were more.
    #[inline]
    pub(crate) fn truncate(&mut self, count: usize) -> bool {
        let excess = self.0.len() > count;
        // Of most messages there is nothing to drain, and to do it took as long as to receive them.
        if excess {
            self.0.drain(count..).for_each(discard);
        }
        excess
    }

    /// Takes the first.
    pub fn take_first(&mut self) -> Option<OwnedFd> {
        // The others move up: there are 253 at most.
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// Takes the last.
    pub fn take_last(&mut self) -> Option<OwnedFd> {
        self.0.pop()
    }

    /// Takes all of them.
    pub fn take_all(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.0).into_vec()
    }

    /// Moves all of another list to the end of this one.
    pub fn append(&mut self, other: &mut Descriptors) {
        self.0.append(&mut other.0);
    }
}

impl From<Vec<OwnedFd>> for Descriptors {
    fn from(descriptors: Vec<OwnedFd>) -> Descriptors {
        Descriptors(SmallVec::from_vec(descriptors))
    }
}

impl Drop for Descriptors {
    #[inline]
    fn drop(&mut self) {
        // Most messages bring none.
        if !self.0.is_empty() {
            self.0.drain(..).for_each(discard);
        }
    }
}
