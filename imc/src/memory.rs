//! Memory that several processes hold: what Native Client called a memory object.
//!
//! The descriptors own the memory, and each says what can be relied on: [`SharedMemory`] has a size for good,
//! [`FrozenMemory`] contents too. What that rests on are the kernel's seals, which are looked at here and
//! never taken at anybody's word. It knows nothing of messages.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::discard;
use ring::shared_memory::{self, FrozenMapping, Mapping, Seals, WritableMapping};
use thiserror::Error;

/// Sizes of [`SharedMemory`] are multiples of this, as Native Client's were, whose memory was mapped in
/// pieces of 64 KiB: on every machine a multiple of the page, so that what one can map another can.
pub const MEMORY_UNIT_BYTES: usize = 65_536;

/// The largest memory, in bytes: one gibibyte, all that a Native Client program could address. What is made
/// here is committed at once, and a stranger's is mapped; neither should be left to their word.
pub const MEMORY_BYTES_MAX: usize = shared_memory::BYTES_MAX as usize;

/// Memory that every holder can read and write, and nobody can make smaller or larger.
///
/// ```
/// use imc::SharedMemory;
///
/// let memory = SharedMemory::create(65_536)?;
/// let here = memory.map_writable()?;
/// // Another holder, in this or another process.
/// let there = SharedMemory::from_fd(memory.share()?)?.map()?;
///
/// here.write_at(4_000, b"seen by both")?;
/// let mut seen = [0; 12];
/// there.read_at(4_000, &mut seen)?;
/// assert_eq!(&seen, b"seen by both");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What a holder can rely on
///
/// The size: it is sealed, so that no other holder can make touching the mapping fatal (SIGBUS). What remains
/// is said in [`ring::shared_memory`]. Not the contents: another holder may write at any moment, also while
/// something is being read, and what is read twice may differ. So there is no slice of it, only copies; check
/// the copy, not the memory.
///
/// A mapping is for reading ([`Mapping`]) or for both ([`WritableMapping`]), by type: the first has no way to
/// write. Mappings stay usable when the memory is dropped.
///
/// It is a descriptor and so can be sent to another thread, and in a
/// [`TypedMessage`](crate::TypedMessage) to another process.
pub struct SharedMemory {
    held: Held,
}

impl SharedMemory {
    /// Fresh memory of so many bytes, all zero. It is there when this returns: running out is an error here
    /// and not a signal later.
    ///
    /// # Errors
    /// [`MemoryError::Size`] unless it is a multiple of 64 KiB ([`MEMORY_UNIT_BYTES`]) and not zero;
    /// [`TooLarge`](MemoryError::TooLarge), [`OutOfMemory`](MemoryError::OutOfMemory),
    /// [`OutOfDescriptors`](MemoryError::OutOfDescriptors).
    pub fn create(bytes: usize) -> Result<SharedMemory, MemoryError> {
        check_size(bytes as u64)?;
        let fd = shared_memory::create(bytes as u64).map_err(MemoryError::of_making)?;
        Ok(SharedMemory { held: Held::new(fd, bytes) })
    }

    /// Takes a descriptor that is said to be shared memory, from whomever.
    ///
    /// # Errors
    /// What is not a file in memory ([`NotMemory`](MemoryError::NotMemory)), what could still change its size
    /// ([`Unsealed`](MemoryError::Unsealed)) and what has a size that no shared memory has is refused, and
    /// closed without making this thread wait.
    pub fn from_fd(fd: OwnedFd) -> Result<SharedMemory, MemoryError> {
        let held = Held::examined(fd, Seals::SIZE)?;
        check_size(held.bytes as u64)?;
        Ok(SharedMemory { held })
    }

    /// Its size in bytes. Never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.held.bytes
    }

    /// Maps all of it for reading.
    ///
    /// # Errors
    /// [`OutOfMemory`](MemoryError::OutOfMemory) for want of address space.
    pub fn map(&self) -> Result<Mapping, MemoryError> {
        Mapping::new(self.as_fd()).map_err(MemoryError::from_kernel)
    }

    /// Maps all of it for reading and writing.
    ///
    /// # Errors
    /// As `map`, and [`ReadOnly`](MemoryError::ReadOnly) if whoever passed it on has kept that right back: by
    /// a seal, or by a descriptor for reading only.
    pub fn map_writable(&self) -> Result<WritableMapping, MemoryError> {
        WritableMapping::new(self.as_fd()).map_err(MemoryError::from_kernel)
    }

    /// Ends all writing, by everybody and for good. All mappings must be gone first, those for reading too:
    /// the kernel cannot know that nobody will make them writable.
    ///
    /// ```
    /// use imc::SharedMemory;
    ///
    /// let memory = SharedMemory::create(65_536)?;
    /// memory.map_writable()?.write_at(0, b"for ever")?;
    /// let frozen = memory.seal_writes().map_err(|(_memory, error)| error)?;
    /// assert!(frozen.map()?.starts_with(b"for ever"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Gives the memory back: with [`Mapped`](MemoryError::Mapped) while it is mapped somewhere (or the
    /// kernel is still writing to it for somebody, which it waits for, for less than a tenth of a second),
    /// with [`ReadOnly`](MemoryError::ReadOnly) if it has been shared already, since no seals are added after
    /// that.
    pub fn seal_writes(self) -> Result<FrozenMemory, (SharedMemory, MemoryError)> {
        match shared_memory::add_seals(self.as_fd(), Seals::FROZEN) {
            Ok(()) => Ok(FrozenMemory { held: self.held }),
            Err(error) => Err((self, MemoryError::from_kernel(error))),
        }
    }

    /// A duplicate, for another holder. From now on no seals are added: nobody who gets it can keep the
    /// others from writing.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.settle();
        self.as_fd().try_clone_to_owned()
    }

    /// Another handle to the same memory.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn try_clone(&self) -> io::Result<SharedMemory> {
        Ok(SharedMemory { held: Held::new(self.as_fd().try_clone_to_owned()?, self.len()) })
    }

    /// The descriptor itself, [settled](SharedMemory::share) like a duplicate.
    pub fn into_fd(self) -> OwnedFd {
        self.settle();
        self.held.into_fd()
    }

    fn settle(&self) {
        // Refused if somebody has settled it before, or has passed it on for reading only: as good.
        let _ = shared_memory::add_seals(self.as_fd(), Seals::SETTLED);
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("fd", &self.as_fd()).field("bytes", &self.len()).finish()
    }
}

/// Memory that nobody can change any more: plain bytes for whoever maps it.
///
/// ```
/// use imc::FrozenMemory;
///
/// let memory = FrozenMemory::of(&[b"a table ", b"for all my workers"])?;
/// let received = FrozenMemory::from_fd(memory.share()?)?;
/// assert_eq!(&received.map()?[..], b"a table for all my workers");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FrozenMemory {
    held: Held,
}

impl FrozenMemory {
    /// Memory with these parts, one after the other.
    ///
    /// # Errors
    /// [`Size`](MemoryError::Size) for nothing at all; [`TooLarge`](MemoryError::TooLarge),
    /// [`OutOfMemory`](MemoryError::OutOfMemory), [`OutOfDescriptors`](MemoryError::OutOfDescriptors); and
    /// [`Mapped`](MemoryError::Mapped) if the kernel would not let go of one of its pages for the better part
    /// of a second.
    pub fn of(parts: &[&[u8]]) -> Result<FrozenMemory, MemoryError> {
        let bytes = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        check_not_empty(bytes as u64)?;
        let fd = shared_memory::create_frozen(parts).map_err(MemoryError::of_making)?;
        Ok(FrozenMemory { held: Held::new(fd, bytes) })
    }

    /// Takes a descriptor that is said to be memory nobody can change.
    ///
    /// # Errors
    /// As [`SharedMemory::from_fd`], for any size; and [`Writable`](MemoryError::Writable) for memory that
    /// somebody may still write to.
    pub fn from_fd(fd: OwnedFd) -> Result<FrozenMemory, MemoryError> {
        let held = Held::examined(fd, Seals::FROZEN)?;
        check_not_empty(held.bytes as u64)?;
        Ok(FrozenMemory { held })
    }

    /// Its size in bytes. Never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.held.bytes
    }

    /// Maps all of it.
    ///
    /// # Errors
    /// [`OutOfMemory`](MemoryError::OutOfMemory) for want of address space.
    pub fn map(&self) -> Result<FrozenMapping, MemoryError> {
        FrozenMapping::new(self.as_fd()).map_err(MemoryError::from_kernel)
    }

    /// A duplicate, for another holder.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }

    /// Another handle to the same memory.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn try_clone(&self) -> io::Result<FrozenMemory> {
        Ok(FrozenMemory { held: Held::new(self.share()?, self.len()) })
    }

    /// The descriptor itself.
    pub fn into_fd(self) -> OwnedFd {
        self.held.into_fd()
    }
}

impl AsFd for FrozenMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

impl fmt::Debug for FrozenMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenMemory").field("fd", &self.as_fd()).field("bytes", &self.len()).finish()
    }
}

/// Why there is no such memory, or no such mapping of it. A descriptor that is refused has been closed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Not a file in memory: something else altogether, or one of large pages, whose use can fail at any
    /// time.
    #[error("not a file in memory")]
    NotMemory,
    /// Its size could still change: it is not sealed against shrinking and growing.
    #[error("its size is not sealed")]
    Unsealed,
    /// Its contents could still change: it is not sealed against writing.
    #[error("it is not sealed against writing")]
    Writable,
    /// Of so many bytes there is no such memory: shared memory has a multiple of 64 KiB, and none is empty.
    #[error("{0} bytes are no size that shared memory has")]
    Size(u64),
    /// More than [`MEMORY_BYTES_MAX`].
    #[error("more memory than there may be")]
    TooLarge,
    /// Whoever passed it on has kept back the right to write to it, or to seal it.
    #[error("the memory is for reading only, or has all its seals")]
    ReadOnly,
    /// It is still mapped somewhere, and so could be written to.
    #[error("the memory is still mapped")]
    Mapped,
    /// The machine has no memory left, or this process no address space.
    #[error("no memory left")]
    OutOfMemory,
    /// This process has no descriptors left.
    #[error("no descriptors left")]
    OutOfDescriptors,
    /// Anything else the kernel said.
    #[error(transparent)]
    Io(io::Error),
}

impl MemoryError {
    /// Whoever may not make memory at all (a sandbox refuses it) has none that could be read only.
    fn of_making(error: io::Error) -> MemoryError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => MemoryError::Io(error),
            _ => MemoryError::from_kernel(error),
        }
    }

    fn from_kernel(error: io::Error) -> MemoryError {
        // The same numbers on every architecture.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        match error.kind() {
            io::ErrorKind::PermissionDenied => MemoryError::ReadOnly,
            io::ErrorKind::ResourceBusy => MemoryError::Mapped,
            io::ErrorKind::FileTooLarge => MemoryError::TooLarge,
            io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => MemoryError::OutOfMemory,
            _ if matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) => MemoryError::OutOfDescriptors,
            _ => MemoryError::Io(error),
        }
    }
}

/// What both kinds hold. Left to the closer threads at the end: a large file's pages are freed by whoever
/// closes it last.
struct Held {
    /// Present until dropped.
    fd: Option<OwnedFd>,
    bytes: usize,
}

impl Held {
    fn new(fd: OwnedFd, bytes: usize) -> Held {
        Held { fd: Some(fd), bytes }
    }

    /// What the kernel says it is.
    fn examined(fd: OwnedFd, needed: Seals) -> Result<Held, MemoryError> {
        let mut held = Held::new(fd, 0);
        let facts = shared_memory::examine(held.as_fd()).ok_or(MemoryError::NotMemory)?;
        if !facts.seals.size {
            return Err(MemoryError::Unsealed);
        }
        if needed.writes && !facts.seals.writes {
            return Err(MemoryError::Writable);
        }
        if facts.bytes > shared_memory::BYTES_MAX {
            return Err(MemoryError::TooLarge);
        }
        held.bytes = facts.bytes as usize;
        Ok(held)
    }

    fn into_fd(mut self) -> OwnedFd {
        self.fd.take().expect("present until dropped")
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("present until dropped").as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.fd.take().into_iter().for_each(discard);
    }
}

fn check_size(bytes: u64) -> Result<(), MemoryError> {
    check_not_empty(bytes)?;
    if !bytes.is_multiple_of(MEMORY_UNIT_BYTES as u64) {
        return Err(MemoryError::Size(bytes));
    }
    if bytes > shared_memory::BYTES_MAX { Err(MemoryError::TooLarge) } else { Ok(()) }
}

fn check_not_empty(bytes: u64) -> Result<(), MemoryError> {
    if bytes == 0 { Err(MemoryError::Size(bytes)) } else { Ok(()) }
}
