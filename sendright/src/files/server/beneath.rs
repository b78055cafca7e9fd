//! What is done to the file system, always beneath a directory and never through a link.
//!
//! It owns how a path is opened, how what was opened is told from what has taken its place, and what the
//! kernel's refusals are called. It must never know who asks, and keeps nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ring::discard;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT,
};
use rustix::io::Errno;

use crate::files::wire::{
    self, Access, Attributes, Kind, Leaf, MODE_SET_ID, Moment, More, NewTime, NewTimes, PageWriter, Path,
    Refusal, Refused,
};

/// How a path is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// The kernel keeps us beneath the directory, whatever the path.
    Beneath,
    /// A kernel without `openat2`: one leaf after the other, and `O_NOFOLLOW` keeps each of them one.
    LeafByLeaf,
}

/// Flags for what is only held and looked at.
const HELD: OFlags = OFlags::PATH;

/// O_NONBLOCK: a pipe that took a file's place must not hold the whole service until somebody writes.
const NEVER_WAITING: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);

impl Opener {
    /// Tries `openat2` and goes without where it is missing or a filter refuses it.
    pub fn choose(directory: impl AsFd) -> Opener {
        match open_beneath(directory, b".", HELD, Mode::empty()) {
            Ok(_) => Opener::Beneath,
            Err(_) => Opener::LeafByLeaf,
        }
    }

    /// What is there, whatever it is, held and not opened.
    pub fn hold(self, directory: impl AsFd, path: Path<'_>) -> Result<OwnedFd, Refused> {
        self.open(directory, path, HELD).map_err(refused)
    }

    /// The directory that is there, held.
    pub fn hold_directory(self, directory: impl AsFd, path: Path<'_>) -> Result<OwnedFd, Refused> {
        match self.open(&directory, path, HELD | OFlags::DIRECTORY) {
            // Linux says so of a link as well, where a directory is wanted.
            Err(Errno::NOTDIR) => match self.open(&directory, path, HELD).map(stat) {
                Ok(Ok(stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    Err(refused(Errno::LOOP))
                }
                _ => Err(refused(Errno::NOTDIR)),
            },
            result => result.map_err(refused),
        }
    }

    /// The regular file that is there, opened.
    pub fn open_file(
        self,
        directory: impl AsFd,
        path: Path<'_>,
        access: Access,
    ) -> Result<(OwnedFd, Stat), Refused> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let opened = self.open(directory, path, flags | NEVER_WAITING).map_err(refused)?;
        let stat = rustix::fs::fstat(&opened).map_err(refused)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((opened, stat)),
            // Closing it may take as long as whoever made it likes.
            _ => {
                discard(opened);
                Err(Refused::plainly(Refusal::WrongKind))
            }
        }
    }

    fn open(self, directory: impl AsFd, path: Path<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = if path.is_here() { b"." } else { path.bytes() };
        match self {
            Opener::Beneath => open_beneath(directory, name, flags, Mode::empty()),
            Opener::LeafByLeaf => open_leaf_by_leaf(directory.as_fd(), path, flags),
        }
    }
}

fn open_beneath(directory: impl AsFd, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel may say so while somebody renames, although there is no `..` in the path.
    const AGAIN_MAX: usize = 8;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&directory, name, flags, mode, resolve) {
            Err(Errno::AGAIN) if tries < AGAIN_MAX => tries += 1,
            result => return result,
        }
    }
}

fn open_leaf_by_leaf(directory: BorrowedFd<'_>, path: Path<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above: Option<OwnedFd> = None;
    let mut leaves = path.leaves().peekable();
    while let Some(leaf) = leaves.next() {
        let from = above.as_ref().map_or(directory, |above| above.as_fd());
        if leaves.peek().is_none() {
            return rustix::fs::openat(from, leaf.bytes(), flags, Mode::empty());
        }
        above = Some(match rustix::fs::openat(from, leaf.bytes(), step, Mode::empty()) {
            Err(Errno::NOTDIR) if is_link(from, leaf) => return Err(Errno::LOOP),
            result => result?,
        });
    }
    rustix::fs::openat(directory, ".", flags, Mode::empty())
}

fn is_link(directory: BorrowedFd<'_>, leaf: Leaf<'_>) -> bool {
    rustix::fs::statat(directory, leaf.bytes(), AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Which file and of which type, on this machine, while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    kind: FileType,
}

impl Identity {
    /// What tells it from others.
    pub fn of(stat: &Stat) -> Identity {
        Identity { device: stat.st_dev, inode: stat.st_ino, kind: FileType::from_raw_mode(stat.st_mode) }
    }
}

/// What the kernel says about something held or opened.
pub fn stat(fd: impl AsFd) -> Result<Stat, Refused> {
    rustix::fs::fstat(fd).map_err(refused)
}

/// The same in the words of the wire.
// Elsewhere than on x86-64 the kernel counts links in 32 bits.
#[allow(clippy::useless_conversion)]
pub fn attributes(stat: &Stat) -> Attributes {
    let moment =
        |seconds: i64, nanoseconds: u64| Moment::new(seconds, u32::try_from(nanoseconds).unwrap_or_default());
    Attributes {
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        mode: stat.st_mode & 0o7777,
        links: u64::from(stat.st_nlink),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        block_bytes: u32::try_from(stat.st_blksize).unwrap_or_default(),
        device: stat.st_dev,
        inode: stat.st_ino,
        special: stat.st_rdev,
        accessed: moment(stat.st_atime, stat.st_atime_nsec),
        modified: moment(stat.st_mtime, stat.st_mtime_nsec),
        changed: moment(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Permission bits that may be given.
pub fn mode(bits: u32) -> Result<Mode, Refused> {
    if bits & MODE_SET_ID != 0 {
        return Err(Refused::plainly(Refusal::SetId));
    }
    Ok(Mode::from_raw_mode(bits))
}

/// Permission bits of something held. What is held may be anything but a link, so it is reached by its
/// number: a name could stand for something else by now.
pub fn set_mode(held: &OwnedFd, bits: u32) -> Result<(), Refused> {
    let mode = mode(bits)?;
    rustix::fs::chmodat(CWD, number(not_a_link(held)?), mode, AtFlags::empty()).map_err(refused)
}

/// The times of something held, links excepted.
pub fn set_times(held: &OwnedFd, times: NewTimes) -> Result<(), Refused> {
    let time = |new: NewTime| match new {
        NewTime::Unchanged => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        NewTime::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        NewTime::At(Moment { seconds, nanoseconds }) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    };
    let times = Timestamps { last_access: time(times.accessed), last_modification: time(times.modified) };
    rustix::fs::utimensat(CWD, number(not_a_link(held)?), &times, AtFlags::empty()).map_err(refused)
}

fn not_a_link(held: &OwnedFd) -> Result<&OwnedFd, Refused> {
    match FileType::from_raw_mode(stat(held)?.st_mode) {
        FileType::Symlink => Err(Refused::plainly(Refusal::Link)),
        _ => Ok(held),
    }
}

/// The name under which the kernel knows a descriptor of ours.
pub fn number(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// One page of the names in `directory`.
///
/// Nothing is remembered between pages: the cursor is the place the kernel gave for the entry after which to
/// go on, so any holder may list at any pace, and a listing that is never finished costs nothing.
pub fn list(directory: impl AsFd, cursor: u64) -> Result<Vec<u8>, Refused> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(&directory, ".", flags, Mode::empty()).map_err(refused)?;
    if cursor != wire::CURSOR_START {
        let place = SeekFrom::Start(cursor);
        rustix::fs::seek(&readable, place).map_err(refused)?;
    }
    let mut page = PageWriter::new(cursor);
    for entry in Dir::new(readable).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        // What cannot be named in a request is `.`, `..`, or longer than any name Linux knows.
        let Ok(name) = Leaf::new(entry.file_name().to_bytes()) else { continue };
        let kind = kind_of(directory.as_fd(), name, entry.file_type());
        let goes_on_at = entry.offset().cast_unsigned();
        if !page.push(kind, name.bytes(), goes_on_at) {
            return Ok(page.finish(More::Yes));
        }
    }
    Ok(page.finish(More::No))
}

fn kind_of(directory: BorrowedFd<'_>, name: Leaf<'_>, listed: FileType) -> Kind {
    match listed {
        FileType::Unknown => match rustix::fs::statat(directory, name.bytes(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => kind(FileType::from_raw_mode(stat.st_mode)),
            Err(_) => Kind::Unknown,
        },
        known => kind(known),
    }
}

fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::Unknown => Kind::Unknown,
    }
}

/// Where a link points that is held.
pub fn read_link(held: &OwnedFd) -> Result<Vec<u8>, Refused> {
    match rustix::fs::readlinkat(held, "", Vec::new()) {
        Ok(target) => Ok(wire::target(target.to_bytes())),
        // What the kernel says of an empty name and no link.
        Err(Errno::NOENT | Errno::INVAL) => Err(Refused::plainly(Refusal::WrongKind)),
        Err(errno) => Err(refused(errno)),
    }
}

/// What a refusal of the kernel is called.
pub fn refused(errno: Errno) -> Refused {
    let refusal = match errno {
        Errno::NOENT => Refusal::NotFound,
        Errno::LOOP => Refusal::Link,
        Errno::ACCESS | Errno::PERM => Refusal::Denied,
        Errno::MFILE | Errno::NFILE => Refusal::Busy,
        // NXIO: a pipe without reader, a socket, a device without driver.
        Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => Refusal::WrongKind,
        Errno::EXIST => Refusal::Exists,
        Errno::NOTEMPTY => Refusal::NotEmpty,
        Errno::ROFS => Refusal::ReadOnly,
        _ => Refusal::Failed,
    };
    Refused { refusal, errno: errno.raw_os_error().unsigned_abs() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn at(path: &str) -> Path<'_> {
        Path::new(path.as_bytes()).unwrap()
    }

    /// On a kernel without `openat2` there is no difference that anybody could see.
    #[test]
    fn both_ways_to_open_reach_and_refuse_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("sub/deep")).unwrap();
        fs::write(tree.join("sub/file"), "text").unwrap();
        fs::write(folder.path().join("secret"), "").unwrap();
        symlink("..", tree.join("up")).unwrap();
        symlink("sub", tree.join("inside")).unwrap();
        symlink("../../secret", tree.join("sub/out")).unwrap();
        let root = rustix::fs::open(&tree, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let paths = [
            "",
            "sub",
            "sub/deep",
            "sub/file",
            "sub/file/x",
            "no",
            "no/x",
            "up",
            "up/secret",
            "inside/file",
            "sub/out",
            "inside",
            "sub/deep/no",
        ];
        for path in paths {
            let told = |opener: Opener| {
                let seen = |fd: OwnedFd| Identity::of(&stat(fd).unwrap());
                let refusal = |refused: Refused| refused.refusal;
                (
                    opener.hold(&root, at(path)).map(seen).map_err(refusal),
                    opener.hold_directory(&root, at(path)).map(seen).map_err(refusal),
                    opener.open_file(&root, at(path), Access::Read).map(|(fd, _)| seen(fd)).map_err(refusal),
                )
            };
            assert_eq!(told(Opener::Beneath), told(Opener::LeafByLeaf), "{path:?}");
        }
        let leaf_by_leaf = Opener::LeafByLeaf;
        assert_eq!(leaf_by_leaf.hold(&root, at("up/secret")).unwrap_err().refusal, Refusal::Link);
        assert_eq!(leaf_by_leaf.hold_directory(&root, at("inside")).unwrap_err().refusal, Refusal::Link);
        assert!(leaf_by_leaf.hold(&root, at("sub/deep")).is_ok());
    }
}
