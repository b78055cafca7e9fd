//! A socket at a path of the file system: made so that nobody can connect before its mode is right, in nobody
//! else's place, and gone in the end.
//!
//! It owns the name, the lock beside it and the socket until it listens. It must never know what is said on
//! the socket, and removes nothing but sockets that nobody listens on and what it has made itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::output::{Failure, printable};

/// Connections that the kernel keeps waiting, at most; `net.core.somaxconn` is the limit that counts.
const BACKLOG: i32 = i32::MAX;

/// The longest path that fits into an address with the zero after it, which most programs insist on.
const PATH_BYTES_MAX: usize = 107;

/// How long a process that has ended may still seem to listen, and how often that is looked at.
const CLOSING_TIME: Duration = Duration::from_secs(1);
const KNOCK_PAUSE: Duration = Duration::from_millis(20);

/// A name that is ours. Dropped, it is given up: the socket and the lock are removed.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Of socket and lock. What is removed is removed in here, wherever the directory has moved to.
    directory: OwnedFd,
    name: String,
    /// Held for as long as the place is ours. Whoever finds a socket on which nobody listens yet must not
    /// take it for one on which nobody listens any more.
    _lock: OwnedFd,
    /// The file of our socket, by device and number.
    bound: Option<(u64, u64)>,
}

impl Place {
    /// Takes a path: a socket that is bound there, and on which nobody can connect yet.
    ///
    /// A failure says who is there already, if somebody is.
    pub fn take(path: &Path, mode: u32) -> Result<(Place, OwnedFd), Failure> {
        let shown = shown(path);
        let name = path.file_name().and_then(|name| name.to_str());
        let is_short = path.as_os_str().len() <= PATH_BYTES_MAX;
        let Some(name) = name.filter(|_| is_short) else {
            return Err(Failure::usage(format_args!(
                "{shown}: the path of a socket ends in a name in UTF-8 and has {PATH_BYTES_MAX} bytes at most"
            )));
        };
        let failed = |what: &str, errno: Errno| {
            Failure::new(format_args!("{shown}: {what}: {}", std::io::Error::from(errno)))
        };
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, above, flags, Mode::empty())
            .map_err(|errno| failed("cannot open its directory", errno))?;
        let lock = lock(directory.as_fd(), name).map_err(|errno| match errno {
            Errno::WOULDBLOCK => {
                Failure::new(format_args!("{shown}: another server has it, or is about to take it"))
            }
            errno => failed("cannot lock it", errno),
        })?;
        let mut place =
            Place { path: path.to_owned(), directory, name: name.to_owned(), _lock: lock, bound: None };
        place.clear()?;
        let socket = place.bind(mode).map_err(|errno| failed("cannot make a socket there", errno))?;
        Ok((place, socket))
    }

    /// The directory in which things will have to be removed.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Removes what is left of a server that has ended. Anything else is in the way, and stays.
    fn clear(&self) -> Result<(), Failure> {
        let shown = shown(&self.path);
        let failed = |errno: Errno| Failure::new(format_args!("{shown}: {}", std::io::Error::from(errno)));
        let stat = match self.look() {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Failure::usage(format_args!("{shown} is there already, and is no socket")));
        }
        match self.knock_until_told() {
            // Nobody listens.
            Err(Errno::CONNREFUSED) => {
                rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()).map_err(failed)
            }
            // Gone since.
            Err(Errno::NOENT) => Ok(()),
            // Somebody does, and perhaps is busy, or serves another kind of socket.
            Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS | Errno::PROTOTYPE) => {
                Err(Failure::new(format_args!("{shown}: another server listens there")))
            }
            Err(errno) => Err(Failure::new(format_args!(
                "{shown}: a socket is there already, and whether anybody listens on it cannot be told: {}",
                std::io::Error::from(errno)
            ))),
        }
    }

    /// Tries to connect, for a while: nobody of our kind listens there, or they had the lock. But the kernel
    /// takes a moment to close what was in the ring of a process that was killed, and until then its listener
    /// is there for everybody to connect to.
    fn knock_until_told(&self) -> Result<(), Errno> {
        let deadline = Instant::now() + CLOSING_TIME;
        loop {
            let told = self.knock();
            if matches!(told, Err(Errno::CONNREFUSED | Errno::NOENT)) || Instant::now() >= deadline {
                return told;
            }
            std::thread::sleep(KNOCK_PAUSE);
        }
    }

    /// Tries to connect.
    fn knock(&self) -> Result<(), Errno> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?)
    }

    fn bind(&mut self, mode: u32) -> Result<OwnedFd, Errno> {
        let socket = socket()?;
        let mode = Mode::from_raw_mode(mode);
        // The file has its mode from the first moment on, where no default access list of the directory is in
        // force; and nobody can connect before the socket listens, when the mode is right in any case.
        let before = rustix::process::umask(Mode::from_raw_mode(0o777) - mode);
        let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(&self.path)?);
        rustix::process::umask(before);
        bound?;
        let stat = self.look()?;
        self.bound = Some((stat.st_dev, stat.st_ino));
        rustix::fs::chmodat(&self.directory, &self.name, mode, AtFlags::empty())?;
        Ok(socket)
    }

    fn look(&self) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(bound) = self.bound else {
            let _ = rustix::fs::unlinkat(&self.directory, lock_name(&self.name), AtFlags::empty());
            return;
        };
        // Somebody may have put something else there.
        if self.look().is_ok_and(|stat| (stat.st_dev, stat.st_ino) == bound) {
            let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
        let _ = rustix::fs::unlinkat(&self.directory, lock_name(&self.name), AtFlags::empty());
    }
}

/// From now on whoever is allowed to can connect.
pub fn listen(socket: &OwnedFd) -> std::io::Result<()> {
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Takes the lock that stands for a name, without waiting. Whoever gives it up removes the file, so it has to
/// be the file that is there when the lock is ours.
fn lock(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let name = lock_name(name);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let lock = rustix::fs::openat(directory, &name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let ours = rustix::fs::fstat(&lock)?;
        match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => return Ok(lock),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn lock_name(name: &str) -> String {
    format!("{name}.lock")
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;
    use crate::output::Outcome;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn taken(path: &Path) -> (Place, OwnedFd) {
        Place::take(path, 0o640).unwrap()
    }

    fn refused(path: &Path) -> (Outcome, String) {
        let failure = Place::take(path, 0o640).unwrap_err();
        (failure.outcome(), failure.to_string())
    }

    fn names(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path()).unwrap().count()
    }

    #[test]
    fn the_mode_is_right_before_anybody_can_connect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_place, socket) = taken(&path);
        assert_eq!(mode(&path), 0o640);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        listen(&socket).unwrap();
        assert_eq!(mode(&path), 0o640);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(taken(&path));
        assert_eq!(names(&folder), 0);
    }

    #[test]
    fn what_somebody_else_put_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let taken = taken(&path);
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(taken);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let (_place, socket) = taken(&path);
        listen(&socket).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_server_that_listens_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _theirs = UnixListener::bind(&path).unwrap();
        let (outcome, sentence) = refused(&path);
        assert_eq!(outcome, Outcome::Failed);
        assert!(sentence.contains("another server listens"), "{sentence}");
        UnixStream::connect(&path).unwrap();
        assert_eq!(names(&folder), 1, "no lock is left");
    }

    #[test]
    fn a_server_that_does_not_listen_yet_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_place, socket) = taken(&path);
        let (outcome, sentence) = refused(&path);
        assert_eq!(outcome, Outcome::Failed);
        assert!(sentence.contains("another server has it"), "{sentence}");
        listen(&socket).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _theirs = UnixDatagram::bind(&path).unwrap();
        assert_eq!(refused(&path).0, Outcome::Failed);
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "precious").unwrap();
        let link = folder.path().join("link");
        let gone = folder.path().join("gone");
        drop(UnixListener::bind(&gone).unwrap());
        symlink(&gone, &link).unwrap();
        for path in [&path, &link, &folder.path().join(".")] {
            assert_eq!(refused(path).0, Outcome::Usage, "{path:?}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(fs::symlink_metadata(&gone).is_ok());
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[test]
    fn a_path_is_as_long_as_an_address_takes() {
        let folder = tempfile::tempdir().unwrap();
        let room = PATH_BYTES_MAX - folder.path().as_os_str().len() - 1;
        drop(taken(&folder.path().join("n".repeat(room))));
        let (outcome, sentence) = refused(&folder.path().join("n".repeat(room + 1)));
        assert_eq!(outcome, Outcome::Usage);
        assert!(sentence.contains("107 bytes"), "{sentence}");
    }

    #[test]
    fn a_lock_that_was_left_behind_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("socket.lock"), "").unwrap();
        drop(taken(&folder.path().join("socket")));
        assert_eq!(names(&folder), 0);
    }
}
