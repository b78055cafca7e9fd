//! Reading a tree directly, without anybody's service: what the demonstration compares with.
//!
//! It owns its own way through the tree on purpose. It shares no code with the service or its client, so that
//! a mistake there is not made here too; and it runs on plain blocking calls in a thread of its own. It keeps
//! one directory open at a time however deep the tree is, and goes past `PATH_MAX` in steps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::report::{BEYOND_BYTES_MAX, Fact};
use crate::files::wire::Kind;

/// One step into the tree stays below the kernel's `PATH_MAX` of 4,096 bytes.
const STEP_BYTES_MAX: usize = 3_500;

/// Read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Opens the directory a demonstration is about.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Reads everything below `root` and hands each finding on. Stops early when `found` says so.
pub fn walk(root: BorrowedFd<'_>, mut found: impl FnMut(Vec<u8>, Fact) -> Go) -> io::Result<()> {
    let mut to_do = vec![Vec::new()];
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Some(directory) = to_do.pop() {
        let (at, entries) = match list(root, &directory) {
            Ok(listed) => listed,
            Err(Errno::NOENT) if !directory.is_empty() => {
                // Gone since its name was read.
                found(directory, Fact::Vanished);
                continue;
            }
            Err(errno) if !directory.is_empty() => {
                found(directory, unreadable(errno));
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        if found(directory.clone(), Fact::Directory) == Go::Stop {
            return Ok(());
        }
        for (name, kind) in entries {
            let path = join(&directory, &name);
            if kind == FileType::Directory {
                to_do.push(path);
                continue;
            }
            let fact = look(at.as_fd(), &name, kind, &mut buffer);
            if found(path, fact) == Go::Stop {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether a walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    On,
    Stop,
}

/// What is at `path` now; `None` if nothing is.
pub fn read_again(root: BorrowedFd<'_>, path: &[u8]) -> Option<Fact> {
    let (directory, name) = split(path)?;
    let at = match open_directory(root, directory) {
        Ok(at) => at,
        Err(Errno::NOENT | Errno::NOTDIR) => return None,
        Err(errno) => return Some(unreadable(errno)),
    };
    let kind = match rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return None,
        Err(errno) => return Some(unreadable(errno)),
    };
    let fact = match kind {
        FileType::Directory => match list(root, path) {
            Ok(_) => Fact::Directory,
            Err(errno) => unreadable(errno),
        },
        other => look(at.as_fd(), name, other, &mut vec![0; CHUNK_BYTES]),
    };
    Some(fact).filter(|fact| *fact != Fact::Vanished)
}

/// Whether what is at `path` has been changed, renamed or made after `moment`, by the file system's own
/// clock.
///
/// The change time can not be set from outside, so nobody can excuse a wrong answer with it.
pub fn touched_since(root: BorrowedFd<'_>, path: &[u8], moment: Duration) -> bool {
    let Some((directory, name)) = split(path) else { return false };
    let Ok(at) = open_directory(root, directory) else { return false };
    let Ok(stat) = rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    changed_at(&stat) >= moment
}

/// Whether something was made, removed or renamed in one of the directories above `path` after `moment`.
pub fn names_changed_since(root: BorrowedFd<'_>, path: &[u8], moment: Duration) -> bool {
    let mut above = path;
    while let Some((directory, _)) = split(above) {
        let stat = match directory {
            b"" => rustix::fs::fstat(root),
            _ => open_directory(root, directory).and_then(rustix::fs::fstat),
        };
        if stat.is_ok_and(|stat| changed_at(&stat) >= moment) {
            return true;
        }
        above = directory;
    }
    false
}

/// A directory to hand to the second reader: the first one inside `root`, hidden ones last. `None` if there
/// is none.
pub fn pick_directory(root: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let (_, entries) = list(root, b"")?;
    let directories = entries.into_iter().filter(|(_, kind)| *kind == FileType::Directory);
    let mut names: Vec<_> = directories.map(|(name, _)| (name.starts_with(b"."), name)).collect();
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).find(|name| list(root, name).is_ok()))
}

/// The descriptor the names are relative to, and the names with what they stand for.
type Listing = (OwnedFd, Vec<(Vec<u8>, FileType)>);

fn list(root: BorrowedFd<'_>, path: &[u8]) -> Result<Listing, Errno> {
    let at = open_directory(root, path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(&at, ".", flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::new(readable)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            known => known,
        };
        entries.push((name.to_vec(), kind));
    }
    Ok((at, entries))
}

/// Opens the directory `path` below `root`, following no link, in steps the kernel takes.
fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    let mut left = path;
    while !left.is_empty() {
        let (step, rest) = split_step(left);
        at = rustix::fs::openat(&at, step, flags, Mode::empty())?;
        left = rest;
    }
    Ok(at)
}

/// The longest beginning of `path` that ends at a slash and is one step, and what follows the slash.
fn split_step(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= STEP_BYTES_MAX {
        return (path, &[]);
    }
    match path[..STEP_BYTES_MAX].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        // No name is that long: the kernel says so.
        None => (path, &[]),
    }
}

/// The directory of a path and the name in it; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((&[], path)),
    }
}

/// The path of `name` in `directory`; the root is the empty path.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

fn look(at: BorrowedFd<'_>, name: &[u8], kind: FileType, buffer: &mut [u8]) -> Fact {
    match kind {
        FileType::RegularFile => read(at, name, buffer).unwrap_or_else(missing_or_unreadable),
        FileType::Symlink => match rustix::fs::readlinkat(at, name, Vec::new()) {
            Ok(target) => Fact::Link { target: target.into_bytes() },
            Err(errno) => missing_or_unreadable(errno),
        },
        FileType::Directory => Fact::Directory,
        FileType::Fifo => Fact::Other(Kind::Fifo),
        FileType::Socket => Fact::Other(Kind::Socket),
        FileType::BlockDevice => Fact::Other(Kind::BlockDevice),
        FileType::CharacterDevice => Fact::Other(Kind::CharacterDevice),
        FileType::Unknown => Fact::Other(Kind::Unknown),
    }
}

fn read(at: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Result<Fact, Errno> {
    // Without O_NONBLOCK a pipe that took the file's place would hold us for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Fact::Vanished);
    }
    let most = u64::try_from(stat.st_size).unwrap_or(0).saturating_add(BEYOND_BYTES_MAX);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        match rustix::io::read(&file, &mut *buffer) {
            Ok(0) => break,
            Ok(length) => {
                hash.update(&buffer[..length]);
                bytes += length as u64;
                if bytes > most {
                    return Ok(Fact::Endless { bytes: most });
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Fact::File { bytes, sha256: hash.finalize().into() })
}

fn missing_or_unreadable(errno: Errno) -> Fact {
    match errno {
        // LOOP: a link has taken its place.
        Errno::NOENT | Errno::LOOP => Fact::Vanished,
        other => unreadable(other),
    }
}

fn unreadable(errno: Errno) -> Fact {
    Fact::Unreadable { errno: errno.raw_os_error().unsigned_abs() }
}

fn changed_at(stat: &rustix::fs::Stat) -> Duration {
    let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
    Duration::new(seconds, u32::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    fn read_all(root: &Path) -> BTreeMap<Vec<u8>, Fact> {
        let root = open_root(root).unwrap();
        let mut all = BTreeMap::new();
        walk(root.as_fd(), |path, fact| {
            assert_eq!(all.insert(path, fact), None);
            Go::On
        })
        .unwrap();
        all
    }

    #[test]
    fn each_thing_is_found_once_and_links_are_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("d")).unwrap();
        fs::write(tree.path().join("d/f"), b"abc").unwrap();
        std::os::unix::fs::symlink("d", tree.path().join("l")).unwrap();
        let all = read_all(tree.path());
        let paths: Vec<_> = all.keys().map(Vec::as_slice).collect();
        assert_eq!(paths, [&b""[..], b"d", b"d/f", b"l"]);
        assert_eq!(all[&b"l"[..]], Fact::Link { target: b"d".to_vec() });
        assert!(
            matches!(all[&b"d/f"[..]], Fact::File { bytes: 3, sha256 } if sha256.starts_with(&[0xba, 0x78]))
        );
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_read() {
        let tree = tempfile::tempdir().unwrap();
        let root = open_root(tree.path()).unwrap();
        let name = "n".repeat(200);
        let mut at = root.try_clone().unwrap();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let deepest = read_all(tree.path()).into_keys().map(|path| path.len()).max();
        assert_eq!(deepest, Some(40 * 201 - 1));
    }

    #[test]
    fn what_was_touched_after_a_moment_is_known() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("f"), b"abc").unwrap();
        let root = open_root(tree.path()).unwrap();
        assert!(touched_since(root.as_fd(), b"f", Duration::ZERO));
        assert!(names_changed_since(root.as_fd(), b"f", Duration::ZERO));
        let later = Duration::from_secs(u64::from(u32::MAX));
        assert!(!touched_since(root.as_fd(), b"f", later));
        assert!(!names_changed_since(root.as_fd(), b"f", later));
        assert!(!touched_since(root.as_fd(), b"gone", Duration::ZERO));
        assert!(read_again(root.as_fd(), b"gone").is_none());
        assert!(matches!(read_again(root.as_fd(), b"f"), Some(Fact::File { bytes: 3, .. })));
    }

    #[test]
    fn the_directory_to_hand_on_is_a_visible_one_if_there_is_one() {
        let tree = tempfile::tempdir().unwrap();
        let root = open_root(tree.path()).unwrap();
        assert_eq!(pick_directory(root.as_fd()).unwrap(), None);
        fs::create_dir(tree.path().join(".hidden")).unwrap();
        assert_eq!(pick_directory(root.as_fd()).unwrap(), Some(b".hidden".to_vec()));
        fs::create_dir(tree.path().join("seen")).unwrap();
        assert_eq!(pick_directory(root.as_fd()).unwrap(), Some(b"seen".to_vec()));
    }
}
