//! Files in memory whose size cannot change, and what may safely be done with a mapping of one.
//!
//! What makes a mapping dangerous is a file that somebody else shrinks: to touch what is gone is SIGBUS. A
//! file is mapped here only if it is one of tmpfs (which files in memory are) and *sealed* against shrinking,
//! and no seal is ever taken off again. What makes it treacherous is somebody who writes while we look: such
//! memory is never seen as a slice, only copied, by atomic accesses. Only memory that is sealed against
//! writing too is plain bytes.
//!
//! It does not know who else has the memory, and what they say about it does not count.
//!
//! # When touching a mapping can fail all the same
//!
//! A holder of memory that is not sealed against writing can punch a hole into it (`fallocate`): the bytes
//! there read as zero, the size stays, and the next to touch them gets a fresh page. That page can be refused
//! only on a machine that never promises more memory than it has (`vm.overcommit_memory` = 2) and has no
//! more, or by the limit of a control group, and then the process that touches it is killed. The same goes
//! for a sparse file that a stranger has made. Whoever must survive that copies with `pread` instead of
//! mapping, or asks for memory sealed against writing, into which nobody can punch. Broken RAM and broken
//! swap are SIGBUS everywhere. Files of large pages (hugetlb), where running out is SIGBUS any day, are
//! refused.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::buffer::{Frozen, Mapped};
use crate::sys::{self, Access, seal};

/// The largest file in memory that is made or mapped here, in bytes: one gibibyte, all that a Native Client
/// program could address. Memory is committed when a file is made, and the kernel goes on committing until
/// the machine has none left, so there must be a limit before it is asked.
pub const BYTES_MAX: u64 = 1 << 30;

/// What can never be done to a file in memory any more, by whomever. Seals are only added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Seals {
    /// Its size does not change: `F_SEAL_SHRINK` and `F_SEAL_GROW`.
    pub size: bool,
    /// Nobody can write to it: `F_SEAL_WRITE`.
    pub writes: bool,
    /// Nobody can begin to write to it, but mappings that exist may: `F_SEAL_FUTURE_WRITE`.
    pub new_writers: bool,
    /// There will be no more seals: `F_SEAL_SEAL`.
    pub seals: bool,
}

impl Seals {
    /// The size is for good.
    pub const SIZE: Seals = Seals { size: true, writes: false, new_writers: false, seals: false };
    /// The contents are for good, and so is everything else.
    pub const FROZEN: Seals = Seals { size: true, writes: true, new_writers: false, seals: true };

    /// There will be no more seals, whatever there are.
    pub const SETTLED: Seals = Seals { size: false, writes: false, new_writers: false, seals: true };

    fn from_kernel(bits: i32) -> Seals {
        let size = seal::SHRINK | seal::GROW;
        Seals {
            size: bits & size == size,
            writes: bits & seal::WRITE != 0,
            new_writers: bits & seal::FUTURE_WRITE != 0,
            seals: bits & seal::SEAL != 0,
        }
    }

    fn to_kernel(self) -> i32 {
        let of = |wanted: bool, bits: i32| if wanted { bits } else { 0 };
        of(self.size, seal::SHRINK | seal::GROW)
            | of(self.writes, seal::WRITE)
            | of(self.new_writers, seal::FUTURE_WRITE)
            | of(self.seals, seal::SEAL)
    }
}

/// What the kernel says about a file in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Its size, in bytes. For good only if [`Seals::size`] is.
    pub bytes: u64,
    /// What nobody can do to it any more.
    pub seals: Seals,
}

/// A file in memory of so many zero bytes, whose size is sealed. The memory is there when this returns, so
/// that running out is an error here and not a signal later.
///
/// ```
/// use ring::shared_memory::{self, Mapping, WritableMapping};
///
/// let memory = shared_memory::create(65_536)?;
/// let here = WritableMapping::new(&memory)?;
/// let there = Mapping::new(&memory)?;
/// here.write_at(1_000, b"seen by both")?;
/// let mut seen = [0; 12];
/// there.read_at(1_000, &mut seen)?;
/// assert_eq!(&seen, b"seen by both");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` for no bytes at all, which nobody could map; `FileTooLarge` above [`BYTES_MAX`], before
/// anything is committed; and the kernel's: out of descriptors, out of memory (ENOMEM, ENOSPC).
pub fn create(bytes: u64) -> io::Result<OwnedFd> {
    if bytes > BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let fd = sys::memory_file()?;
    sys::allocate(fd.as_fd(), bytes)?;
    add_seals(&fd, Seals::SIZE)?;
    Ok(fd)
}

/// How often the kernel is asked to seal memory that nobody else has, if it says that it is in use.
const SEALING_ATTEMPTS: u32 = 8;

/// A file in memory with the contents of these parts, one after the other, that nobody can ever change.
///
/// ```
/// use ring::shared_memory::{self, FrozenMapping};
///
/// let memory = shared_memory::create_frozen(&[b"two ", b"parts"])?;
/// assert_eq!(&FrozenMapping::new(&memory)?[..], b"two parts");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// As [`create`]; and `ResourceBusy` if the kernel itself would not let go of a page for long.
pub fn create_frozen(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    if parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len() as u64)) > BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut file = File::from(sys::memory_file()?);
    for part in parts {
        file.write_all(part)?;
    }
    let fd = OwnedFd::from(file);
    seal_what_nobody_has(SEALING_ATTEMPTS, || add_seals(&fd, Seals::FROZEN))?;
    Ok(fd)
}

/// Nobody else has it, so that if it is busy the kernel is busy with one of its pages, to see whether it is
/// used or to move it. Each attempt waits for that, a tenth of a second at most.
fn seal_what_nobody_has(attempts: u32, mut seal: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..attempts {
        match seal() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => return result,
        }
    }
    seal()
}

/// What the kernel says about a descriptor, if it is a file in memory of ordinary pages; `None` if it is
/// anything else. Nothing is changed, and nothing waits for whoever made it.
pub fn examine(fd: impl AsFd) -> Option<Facts> {
    let fd = fd.as_fd();
    let bytes = sys::memory_file_bytes(fd)?;
    // A file on a mounted tmpfs has no seals but the one against sealing, and is found wanting by that.
    let seals = Seals::from_kernel(sys::seals(fd).ok()?);
    // Asked once more: with the size sealed in between, the first answer may be an old one.
    let bytes = if seals.size { sys::memory_file_bytes(fd)? } else { bytes };
    Some(Facts { bytes, seals })
}

/// Adds seals, for everybody and for good.
///
/// # Errors
/// The kernel's: `PermissionDenied` if it has been sealed against sealing or the descriptor is for reading
/// only; `ResourceBusy` for a seal against writing while anybody has it mapped, for reading too, since who
/// has a shared mapping could make it writable (or while the kernel itself reads from it or writes to it on
/// behalf of somebody, which it waits for, for less than a tenth of a second).
pub fn add_seals(fd: impl AsFd, seals: Seals) -> io::Result<()> {
    sys::add_seals(fd.as_fd(), seals.to_kernel())
}

/// The size of what may be mapped with such seals, and what seals it has.
fn mappable(fd: BorrowedFd<'_>, needed: Seals) -> io::Result<(usize, Seals)> {
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    let facts = examine(fd).ok_or_else(|| refused("not a file in memory of ordinary pages"))?;
    if !facts.seals.size {
        return Err(refused("its size is not sealed"));
    }
    if needed.writes && !facts.seals.writes {
        return Err(refused("it is not sealed against writing"));
    }
    if facts.bytes == 0 {
        return Err(refused("it is empty"));
    }
    if facts.bytes > BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let bytes = usize::try_from(facts.bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    Ok((bytes, facts.seals))
}

/// Memory mapped for reading, which others may be writing to. It stays when the descriptor is closed.
#[derive(Debug)]
pub struct Mapping(Mapped);

impl Mapping {
    /// Maps all of it.
    ///
    /// # Errors
    /// `InvalidInput` for what is no file in memory, is empty or has a size that is not sealed;
    /// `FileTooLarge` above [`BYTES_MAX`]; and the kernel's: `PermissionDenied`, `OutOfMemory` (for want of
    /// address space, or of mappings).
    pub fn new(fd: impl AsFd) -> io::Result<Mapping> {
        // Once: whoever is asked twice may answer with two descriptors, of which one was not looked at.
        let fd = fd.as_fd();
        let (bytes, seals) = mappable(fd, Seals::SIZE)?;
        let access = if seals.writes { Access::ReadingForGood } else { Access::Reading };
        Mapped::new(fd, bytes, access).map(Mapping)
    }

    /// Its size in bytes.
    #[allow(clippy::len_without_is_empty)] // Never.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies from `offset` on, as many bytes as `into` has. What somebody writes meanwhile is seen, or not,
    /// or in part.
    ///
    /// # Errors
    /// `InvalidInput` if that is not all within it; `into` is as it was.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        within(&self.0, offset, into.len())?;
        self.0.copy_out(offset, into);
        Ok(())
    }

    /// The word of the machine at this index (the byte offset divided by eight, or by four on a machine of 32
    /// bits), and with it, on this machine, everything written before it was stored with `Release`.
    pub fn word(&self, index: usize) -> Option<usize> {
        let word = self.0.words().get(index)?.load(Ordering::Relaxed);
        // Beside the load and not as a part of it: of memory mapped for reading only a relaxed load is sure
        // to be a mere load on every machine.
        fence(Ordering::Acquire);
        Some(word)
    }
}

/// Memory mapped for reading and writing. It stays when the descriptor is closed.
#[derive(Debug)]
pub struct WritableMapping(Mapped);

impl WritableMapping {
    /// Maps all of it.
    ///
    /// # Errors
    /// As [`Mapping::new`]; `PermissionDenied` for memory that is sealed against writing, or a descriptor for
    /// reading only.
    pub fn new(fd: impl AsFd) -> io::Result<WritableMapping> {
        let fd = fd.as_fd();
        let (bytes, _) = mappable(fd, Seals::SIZE)?;
        Mapped::new(fd, bytes, Access::ReadingAndWriting).map(WritableMapping)
    }

    /// Its size in bytes.
    #[allow(clippy::len_without_is_empty)] // Never.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// As [`Mapping::read_at`].
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        within(&self.0, offset, into.len())?;
        self.0.copy_out(offset, into);
        Ok(())
    }

    /// Copies `from` to `offset` on. Whoever reads meanwhile sees it, or not, or in part; who writes to other
    /// bytes is not disturbed.
    ///
    /// # Errors
    /// `InvalidInput` if that is not all within it; nothing is written.
    pub fn write_at(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        within(&self.0, offset, from.len())?;
        self.0.copy_in(offset, from);
        Ok(())
    }

    /// The word of the machine at this index (the byte offset divided by eight, or by four on a machine of 32
    /// bits), for counters and flags that several processes share.
    ///
    /// ```
    /// # use std::sync::atomic::Ordering;
    /// # use ring::shared_memory::{self, Mapping, WritableMapping};
    /// # let memory = shared_memory::create(4_096)?;
    /// let here = WritableMapping::new(&memory)?;
    /// let there = Mapping::new(&memory)?;
    /// here.write_at(64, b"written before")?;
    /// here.word(0).unwrap().store(1, Ordering::Release);
    /// if there.word(0) == Some(1) {
    ///     // What was written before is there too.
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn word(&self, index: usize) -> Option<&AtomicUsize> {
        self.0.words().get(index)
    }
}

/// Memory that nobody can change: plain bytes. It stays when the descriptor is closed.
#[derive(Debug)]
pub struct FrozenMapping(Frozen);

impl FrozenMapping {
    /// Maps all of it, having seen that it is sealed against writing.
    ///
    /// # Errors
    /// As [`Mapping::new`]; `InvalidInput` also for memory that is not sealed against writing.
    pub fn new(fd: impl AsFd) -> io::Result<FrozenMapping> {
        let fd = fd.as_fd();
        let (bytes, _) = mappable(fd, Seals::FROZEN)?;
        Frozen::new(fd, bytes).map(FrozenMapping)
    }
}

impl Deref for FrozenMapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn within(mapped: &Mapped, offset: usize, length: usize) -> io::Result<()> {
    let end = offset.checked_add(length).filter(|end| *end <= mapped.len());
    end.map(drop).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not within the memory"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// 4 MiB that nobody had mapped were "still mapped", once in some hundred thousand.
    #[test]
    fn what_the_kernel_is_busy_with_is_sealed_a_little_later() {
        let busy_for = |times: u32| {
            let left = Cell::new(times);
            seal_what_nobody_has(3, || match left.get() {
                0 => Ok(()),
                _ => {
                    left.set(left.get() - 1);
                    Err(io::ErrorKind::ResourceBusy.into())
                }
            })
        };
        assert!(busy_for(0).is_ok());
        assert!(busy_for(2).is_ok());
        assert_eq!(busy_for(3).map_err(|error| error.kind()), Err(io::ErrorKind::ResourceBusy));
        let refused = || Err(io::ErrorKind::PermissionDenied.into());
        let result = seal_what_nobody_has(3, refused);
        assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::PermissionDenied));
    }
}
