//! Where descriptors go to be closed when closing them might take time.
//!
//! A few threads for the whole process, the first started when the first descriptor needs it, and another
//! when all of them are busy: one lingering socket must not hold up the rest. They own what they were given
//! and know nothing else. The queue is bounded by the process's own descriptor limit, since each entry is an
//! open descriptor, and receives stop long before that: see [`QUEUE_MAX`].

use std::os::fd::{AsFd, OwnedFd};
#[cfg(feature = "script")]
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::crew::Crew;
use crate::envelope;
use crate::fork;
use crate::sync::thread;
use crate::sys::{self, Half, SocketOption, ready};

/// With this many descriptors waiting to be closed, receives are not armed any more: whoever sends us
/// descriptors that take seconds to close waits for them as we do.
pub(crate) const QUEUE_MAX: usize = 256;

/// Of the first process in a line of forks that closes anything; those after it follow, each with its own.
static FIRST: Crew<OwnedFd> = Crew::new();

/// Closes now what closes at once; queues the rest.
pub(crate) fn close(fd: OwnedFd) {
    if sys::closes_at_once(fd.as_fd()) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// Closes a connected AF_UNIX socket that is ours alone but whose peer may be anybody.
///
/// What the peer left unread in it is closed with it, and that may be a descriptor that lingers. So: nothing
/// more in (`shutdown`), look whether anything is there, and only an empty socket is closed on this thread.
/// Only credentials tell an empty packet, which may have brought descriptors, from the end.
///
/// The look installs what it finds: whoever calls this has room for as many descriptors as a message carries.
pub(crate) fn retire(fd: OwnedFd, credentials_asked: bool) {
    if !credentials_asked {
        let _ = sys::set_socket_option(fd.as_fd(), SocketOption::PassCredentials, 1);
    }
    let _ = sys::shutdown(fd.as_fd(), Half::Reading);
    close_if_empty(fd);
}

/// The same for one that has been shut down already.
pub(crate) fn retire_shut(fd: OwnedFd, credentials_asked: bool) {
    if !credentials_asked {
        let _ = sys::set_socket_option(fd.as_fd(), SocketOption::PassCredentials, 1);
    }
    close_if_empty(fd);
}

fn close_if_empty(fd: OwnedFd) {
    if envelope::is_empty(fd.as_fd()) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// The same for an end that others may hold too, which therefore must not be shut down, and from which
/// nothing may be taken: it would be missing elsewhere.
///
/// A message that comes between the look and the close, on an end whose last holder we are after all, is
/// closed on this thread. Who cannot rule that out says that the socket is private.
pub(crate) fn retire_shared(fd: OwnedFd) {
    // A listener's queue holds connections, with queues of their own.
    let listens = sys::socket_option(fd.as_fd(), SocketOption::Listening).is_ok_and(|listens| listens != 0);
    if listens {
        queue(fd);
    } else {
        retire_connected(fd);
    }
}

/// The same where it is known to be no listener.
pub(crate) fn retire_connected(fd: OwnedFd) {
    if sys::poll_now(fd.as_fd(), ready::READ).is_ok_and(|mask| mask == 0) {
        drop(fd);
    } else {
        queue(fd);
    }
}

/// Ends a connection at this end, for all who hold it, and leaves the closing to the threads.
pub(crate) fn end(fd: OwnedFd) {
    let _ = sys::shutdown(fd.as_fd(), Half::Both);
    queue(fd);
}

/// How many descriptors wait. In a forked child those of its parent do not count: nobody there will close
/// them, and it would wait for that for ever.
pub(crate) fn backlog() -> usize {
    if FIRST.is_used() { crew().backlog() } else { 0 }
}

/// Whether something is being closed, or waits for it. For tests of what takes long to close.
pub fn closer_busy() -> bool {
    FIRST.is_used() && crew().is_busy()
}

/// Blocks until everything handed over so far is closed. For tests that count descriptors.
pub fn closer_idle() {
    if FIRST.is_used() {
        crew().wait_until_idle();
    }
}

/// Those of this process.
fn crew() -> &'static Crew<OwnedFd> {
    FIRST.of(fork::generation().number())
}

/// How many simulated worlds there are in this process: while there is one, everything is closed at once, on
/// the thread, or nothing could be repeated.
#[cfg(feature = "script")]
pub(crate) static WORLDS: AtomicUsize = AtomicUsize::new(0);

fn is_scripted() -> bool {
    #[cfg(feature = "script")]
    return WORLDS.load(Ordering::Relaxed) > 0;
    #[cfg(not(feature = "script"))]
    false
}

/// Leaves it to the threads.
pub(crate) fn queue(fd: OwnedFd) {
    if is_scripted() {
        return drop(fd);
    }
    // With no thread to be had it is closed here. Waiting is the worse of two evils only for this thread; not
    // closing would be worse for all.
    drop(crew().queue(fd, start));
}

/// Leaves all of these to the threads, of which one is woken. Says whether there were any.
pub(crate) fn queue_all(fds: impl Iterator<Item = OwnedFd>) -> bool {
    let mut fds = fds.peekable();
    if is_scripted() {
        fds.for_each(drop);
        return false;
    }
    let any = fds.peek().is_some();
    if any {
        drop(crew().queue_all(fds, start));
    }
    any
}

/// Calls another thread if anything still waits, which may stand behind what takes long. Says whether.
pub(crate) fn urge() -> bool {
    backlog() > 0 && crew().urge(start)
}

fn start() -> bool {
    thread::Builder::new().name("sendright-closer".into()).spawn(serve).is_ok()
}

fn serve() {
    let crew = crew();
    loop {
        crew.serve_one(start);
    }
}
