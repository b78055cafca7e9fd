//! Each system call this crate makes, once, as a safe function.
//!
//! Nothing here keeps state and nothing here knows what a call is for. `RawFd` lives here so that it need not
//! live elsewhere: what goes in is a `BorrowedFd`, what comes out is an `OwnedFd` with close-on-exec set.

use std::io::{self, Write as _};
use std::mem::{self, MaybeUninit};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::fd::Kind;
use crate::message::Credentials;
use crate::room::HUGE_PAGE_BYTES;
#[cfg(feature = "script")]
use crate::script::SystemCall;

/// Error numbers the rest of the crate tells apart.
pub(crate) mod errno {
    pub(crate) const EACCES: i32 = libc::EACCES;
    pub(crate) const EAGAIN: i32 = libc::EAGAIN;
    pub(crate) const EBUSY: i32 = libc::EBUSY;
    pub(crate) const ECANCELED: i32 = libc::ECANCELED;
    pub(crate) const ECONNREFUSED: i32 = libc::ECONNREFUSED;
    pub(crate) const ECONNRESET: i32 = libc::ECONNRESET;
    pub(crate) const EFAULT: i32 = libc::EFAULT;
    pub(crate) const EINTR: i32 = libc::EINTR;
    pub(crate) const EMFILE: i32 = libc::EMFILE;
    pub(crate) const EMSGSIZE: i32 = libc::EMSGSIZE;
    pub(crate) const ENFILE: i32 = libc::ENFILE;
    pub(crate) const ENOBUFS: i32 = libc::ENOBUFS;
    pub(crate) const ENOMEM: i32 = libc::ENOMEM;
    pub(crate) const ENOSYS: i32 = libc::ENOSYS;
    pub(crate) const ENOTCONN: i32 = libc::ENOTCONN;
    pub(crate) const EPERM: i32 = libc::EPERM;
    pub(crate) const EPIPE: i32 = libc::EPIPE;
    pub(crate) const ETOOMANYREFS: i32 = libc::ETOOMANYREFS;
}

/// `poll` masks, the same numbers for io_uring, epoll and `poll` itself.
pub(crate) mod ready {
    pub(crate) const READ: u32 = libc::POLLIN as u32;
    pub(crate) const WRITE: u32 = libc::POLLOUT as u32;
    /// Both ways are shut: the other end is closed, and nothing can undo that.
    pub(crate) const ENDED: u32 = libc::POLLHUP as u32;
    pub(crate) const HUNG_UP: u32 = libc::POLLRDHUP as u32 | libc::POLLHUP as u32;
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: every caller passes a number the kernel has just made for us and that nobody else has seen.
    // Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

// -- sockets --------------------------------------------------------------------------------------------

/// A connected pair of AF_UNIX sockets, close-on-exec.
pub(crate) fn socketpair(kind: Kind) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let flags = socket_type(kind) | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for the two numbers the kernel writes.
    // Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
    check(unsafe { libc::socketpair(libc::AF_UNIX, flags, 0, ends.as_mut_ptr()) })?;
    Ok((own(ends[0]), own(ends[1])))
}

/// An unconnected AF_UNIX socket, close-on-exec and non-blocking (a connect to a full backlog must not wait).
pub(crate) fn socket(kind: Kind) -> io::Result<OwnedFd> {
    let flags = socket_type(kind) | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: three integers. Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::socket(libc::AF_UNIX, flags, 0) }).map(own)
}

/// An unconnected AF_UNIX socket for datagrams, close-on-exec.
pub(crate) fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: three integers. Kept honest by `datagrams.rs::an_empty_datagram_with_a_descriptor_arrives`.
    check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }).map(own)
}

/// Whether it is an AF_UNIX socket for datagrams.
pub(crate) fn is_datagram_socket(fd: BorrowedFd<'_>) -> bool {
    is_unix_socket(fd) && socket_option(fd, SocketOption::Type).is_ok_and(|kind| kind == libc::SOCK_DGRAM)
}

/// Whether it is an AF_UNIX socket of any type.
pub(crate) fn is_unix_socket(fd: BorrowedFd<'_>) -> bool {
    socket_option(fd, SocketOption::Domain).is_ok_and(|domain| domain == libc::AF_UNIX)
}

fn socket_type(kind: Kind) -> libc::c_int {
    match kind {
        Kind::SeqPacket => libc::SOCK_SEQPACKET,
        Kind::Stream => libc::SOCK_STREAM,
    }
}

/// The longest path an AF_UNIX address holds, in bytes.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A name of AF_UNIX as the kernel wants it: a path, or an abstract name, which begins with a zero.
pub(crate) struct UnixAddress {
    pub(crate) address: libc::sockaddr_un,
    pub(crate) length: libc::socklen_t,
}

impl UnixAddress {
    pub(crate) fn of_path(path: &Path) -> io::Result<UnixAddress> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > SOCKET_PATH_BYTES_MAX || bytes.contains(&0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a path a socket can have (1 to 107 bytes)",
            ));
        }
        // The zero after it counts.
        Ok(UnixAddress::new(bytes, 0, bytes.len() + 1))
    }

    /// The caller has checked that it fits.
    pub(crate) fn of_abstract_name(name: &[u8]) -> UnixAddress {
        assert!(name.len() <= SOCKET_PATH_BYTES_MAX);
        UnixAddress::new(name, 1, name.len() + 1)
    }

    fn new(bytes: &[u8], place: usize, length: usize) -> UnixAddress {
        // SAFETY: all zeroes is a valid `sockaddr_un`. Kept honest by
        // `socket.rs::a_listener_is_connected_to_by_path`.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (slot, byte) in address.sun_path[place..].iter_mut().zip(bytes) {
            *slot = *byte as libc::c_char;
        }
        let length = mem::offset_of!(libc::sockaddr_un, sun_path) + length;
        UnixAddress { address, length: length as libc::socklen_t }
    }
}

/// Connects to the listener of that name. `WouldBlock` when its backlog is full.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: &UnixAddress) -> io::Result<()> {
    let address = (&raw const to.address).cast();
    // SAFETY: `address` points at a whole `sockaddr_un`, and `length` is within it.
    // Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::connect(fd.as_raw_fd(), address, to.length) }).map(drop)
}

/// Gives the socket a name.
pub(crate) fn bind(fd: BorrowedFd<'_>, to: &UnixAddress) -> io::Result<()> {
    let address = (&raw const to.address).cast();
    // SAFETY: as in `connect`. Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::bind(fd.as_raw_fd(), address, to.length) }).map(drop)
}

/// Lets others connect. The kernel keeps one connection more than `backlog` waiting, and no more than
/// `net.core.somaxconn`.
pub(crate) fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: two integers. Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Takes one connection, if there is one.
///
/// O_NONBLOCK belongs to the open description, and `accept` has no flag of its own for not waiting. So it is
/// said again each time: a holder that had taken it back once would have stopped this thread.
pub(crate) fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    set_nonblocking(fd)?;
    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null asks the kernel not to write an address.
    // Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::accept4(fd.as_raw_fd(), address, length, libc::SOCK_CLOEXEC) }).map(own)
}

/// From here on a broken pipe kills this process, as it kills every program that does not say otherwise.
#[cfg(feature = "script")]
pub(crate) fn die_of_broken_pipes() -> io::Result<()> {
    // SAFETY: the default needs no handler of ours.
    // Kept honest by `broken_pipes.rs::a_broken_pipe_would_kill_it`.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What becomes of a system call that a signal interrupts.
#[cfg(feature = "script")]
#[derive(Clone, Copy)]
pub(crate) enum Interrupted {
    /// It fails with EINTR.
    Fails,
    /// It begins again, as far as the kernel knows how to (SA_RESTART).
    BeginsAgain,
}

/// How many signals were caught.
#[cfg(feature = "script")]
pub(crate) static SIGNALS_CAUGHT: AtomicU64 = AtomicU64::new(0);

/// From here on this signal is counted, and nothing else happens.
#[cfg(feature = "script")]
pub(crate) fn catch_signal(signal: i32, interrupted: Interrupted) -> io::Result<()> {
    extern "C" fn count(_: libc::c_int) {
        SIGNALS_CAUGHT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    let count: extern "C" fn(libc::c_int) = count;
    // SAFETY: all zeroes is an action: the default, with no flags and nothing blocked.
    // Kept honest by `interrupted.rs::a_reactor_serves_under_a_storm_of_signals`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = count as libc::sighandler_t;
    if let Interrupted::BeginsAgain = interrupted {
        action.sa_flags = libc::SA_RESTART;
    }
    // SAFETY: the handler adds to an atomic number, which may be done in a signal's handler.
    // Kept honest by `interrupted.rs::a_reactor_serves_under_a_storm_of_signals`.
    check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// Makes a descriptor of *ours* non-blocking. Never to be used on a stranger's: the flag is shared.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integers only. Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    if flags & libc::O_NONBLOCK != 0 {
        return Ok(());
    }
    // SAFETY: integers only. Kept honest by `socket.rs::a_listener_is_connected_to_by_path`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Which half of a connection to shut down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Reading,
    Both,
}

/// Shuts a connection down for everybody who holds this end.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, half: Half) -> io::Result<()> {
    let how = match half {
        Half::Reading => libc::SHUT_RD,
        Half::Both => libc::SHUT_RDWR,
    };
    // SAFETY: two integers. Kept honest by `withdrawal.rs::a_dropped_call_is_seen_by_the_answerer`.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// Socket options read or set here, all of them `int`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketOption {
    Domain,
    Type,
    Listening,
    PassCredentials,
    PassPidfd,
    /// Whether descriptors may be sent to it at all (Linux 6.16).
    PassRights,
    SendBuffer,
}

/// Not in `libc` yet. The number of all architectures but Alpha, PA-RISC and SPARC.
const SO_PASSRIGHTS: libc::c_int = 83;

impl SocketOption {
    fn name(self) -> libc::c_int {
        match self {
            SocketOption::Domain => libc::SO_DOMAIN,
            SocketOption::Type => libc::SO_TYPE,
            SocketOption::Listening => libc::SO_ACCEPTCONN,
            SocketOption::PassCredentials => libc::SO_PASSCRED,
            SocketOption::PassPidfd => libc::SO_PASSPIDFD,
            SocketOption::PassRights => SO_PASSRIGHTS,
            SocketOption::SendBuffer => libc::SO_SNDBUF,
        }
    }
}

pub(crate) fn socket_option(fd: BorrowedFd<'_>, option: SocketOption) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    let into = (&raw mut value).cast();
    // SAFETY: `value` has the `length` bytes the kernel may write.
    // Kept honest by `socket.rs::what_is_not_an_af_unix_socket_is_refused`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option.name(), into, &raw mut length)
    })?;
    Ok(value)
}

pub(crate) fn set_socket_option(fd: BorrowedFd<'_>, option: SocketOption, value: i32) -> io::Result<()> {
    let length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    let from = (&raw const value).cast();
    // SAFETY: `value` has the `length` bytes the kernel reads.
    // Kept honest by `end_of_file.rs::a_thousand_empty_packets_then_a_message`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option.name(), from, length) })
        .map(drop)
}

/// Sets any option of a socket (of SOL_SOCKET), known here or not, as a stranger might who holds it too.
#[cfg(feature = "script")]
pub(crate) fn set_any_socket_option(fd: BorrowedFd<'_>, number: i32, value: &[u8]) -> io::Result<()> {
    let (from, length) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: `value` has the `length` bytes the kernel reads, and no option that is set in tests makes it
    // read anything those point at. Kept honest by `holders.rs::no_option_keeps_a_message_from_arriving`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, number, from, length) }).map(drop)
}

/// Has the process be told by a signal when the descriptor is ready (F_SETOWN and O_ASYNC).
#[cfg(feature = "script")]
pub(crate) fn signal_when_ready(fd: BorrowedFd<'_>, process: i32) -> io::Result<()> {
    // SAFETY: integers only. Kept honest by `holders.rs::a_holder_of_the_same_user_can_have_us_signalled`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, process) })?;
    // SAFETY: integers only. Kept honest by `holders.rs::a_holder_of_the_same_user_can_have_us_signalled`.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: integers only. Kept honest by `holders.rs::a_holder_of_the_same_user_can_have_us_signalled`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_ASYNC) }).map(drop)
}

/// Whether the kernel names senders (SO_PASSCRED), as it was told to by us or by somebody before us.
pub(crate) fn names_senders(fd: BorrowedFd<'_>) -> bool {
    socket_option(fd, SocketOption::PassCredentials).is_ok_and(|asked| asked != 0)
}

/// Has the kernel name senders (SO_PASSCRED) where another holder may have told it not to. On a stream nobody
/// needs them.
pub(crate) fn name_senders_again(fd: BorrowedFd<'_>) {
    if socket_option(fd, SocketOption::Type).is_ok_and(|kind| kind == libc::SOCK_SEQPACKET) {
        let _ = set_socket_option(fd, SocketOption::PassCredentials, 1);
    }
}

/// The number by which the kernel knows a socket, whatever descriptor it is asked through.
///
/// Like the domain and the type it is told without the lock of the socket, on which a stranger may sit.
pub(crate) fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = mem::size_of::<u64>() as libc::socklen_t;
    let into = (&raw mut cookie).cast();
    // SAFETY: `cookie` has the `length` bytes the kernel may write.
    // Kept honest by `socket.rs::a_socket_is_known_by_its_cookie`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, into, &raw mut length)
    })?;
    Ok(cookie)
}

/// AF_UNIX and of a type we speak: which one. Another socket is `None`; what is no socket at all (a
/// descriptor opened with O_PATH is none) is an error.
///
/// Both questions are answered without side effects, without the lock of the socket, which the sender of a
/// TCP socket may sit on for as long as it likes, and without asking a file system in user space.
pub(crate) fn unix_kind(fd: BorrowedFd<'_>) -> io::Result<Option<Kind>> {
    if socket_option(fd, SocketOption::Domain)? != libc::AF_UNIX {
        return Ok(None);
    }
    Ok(match socket_option(fd, SocketOption::Type)? {
        libc::SOCK_SEQPACKET => Some(Kind::SeqPacket),
        libc::SOCK_STREAM => Some(Kind::Stream),
        _ => None,
    })
}

/// Whether the socket has (or had) a peer.
pub(crate) fn is_connected(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: all zeroes is a valid `sockaddr_un`. Kept honest by `socket.rs::connectedness_is_told`.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;
    let into = (&raw mut address).cast();
    // SAFETY: `address` has the `length` bytes the kernel may write. Kept honest by
    // `socket.rs::connectedness_is_told`.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), into, &raw mut length) }).is_ok()
}

/// Who was at the other end when the socket was connected.
pub(crate) fn peer_credentials(fd: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
    let (into, option) = ((&raw mut who).cast(), libc::SO_PEERCRED);
    // SAFETY: `who` has the `length` bytes the kernel may write.
    // Kept honest by `datagrams.rs::a_stream_knows_who_connected`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, into, &raw mut length) })?;
    Ok(Credentials { pid: who.pid, uid: who.uid, gid: who.gid })
}

// -- readiness ------------------------------------------------------------------------------------------

/// What `poll` says at once about one descriptor.
pub(crate) fn poll_now(fd: BorrowedFd<'_>, interest: u32) -> io::Result<u32> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: interest as libc::c_short, revents: 0 };
    // SAFETY: one entry, and it outlives the call. Kept honest by `socket.rs::readiness_is_awaited`.
    check(unsafe { libc::poll(&raw mut entry, 1, 0) })?;
    Ok(entry.revents as u16 as u32)
}

/// Sleeps until one descriptor is ready for what interests, and says for what; 0 when the time is over.
/// `None` sleeps for ever.
pub(crate) fn poll_within(fd: BorrowedFd<'_>, interest: u32, within: Option<Duration>) -> io::Result<u32> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: interest as libc::c_short, revents: 0 };
    let time = within.map(|within| libc::timespec {
        tv_sec: libc::time_t::try_from(within.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: within.subsec_nanos() as _,
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one entry, and it outlives the call, as the time does.
    // Kept honest by `blocking.rs::a_receive_ends_at_its_deadline`.
    check(unsafe { libc::ppoll(&raw mut entry, 1, time, std::ptr::null()) })?;
    Ok(entry.revents as u16 as u32)
}

/// How long a receive that waits in the kernel waits at most, from now on. Belongs to the socket, whoever
/// holds it.
pub(crate) fn set_receive_timeout(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: timeout.subsec_micros() as _,
    };
    let (from, length) = ((&raw const time).cast(), mem::size_of::<libc::timeval>() as libc::socklen_t);
    // SAFETY: `time` has the `length` bytes the kernel reads.
    // Kept honest by `blocking.rs::a_far_deadline_is_left_to_the_sockets_own_limit`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, from, length) })
        .map(drop)
}

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: one integer. Kept honest by `driver.rs::each_driver_can_be_forced`.
    check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own)
}

/// One readiness event.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) data: u64,
    /// As in [`ready`].
    pub(crate) mask: u32,
}

/// What an edge-triggered watch is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    Reading,
    ReadingAndWriting,
}

impl Watched {
    fn events(self) -> u32 {
        let reading = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
        match self {
            Watched::Reading => reading as u32,
            Watched::ReadingAndWriting => (reading | libc::EPOLLOUT) as u32,
        }
    }
}

/// Watches `fd`, edge-triggered, until `epoll_remove`.
pub(crate) fn epoll_add(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    data: u64,
    what: Watched,
) -> io::Result<()> {
    epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, what.events(), data)
}

/// Changes what a watch is for. What is the case already makes an event.
pub(crate) fn epoll_modify(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    data: u64,
    what: Watched,
) -> io::Result<()> {
    epoll_control(epoll, libc::EPOLL_CTL_MOD, fd, what.events(), data)
}

/// Watches `fd`, level-triggered, for reading.
pub(crate) fn epoll_add_level(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>, data: u64) -> io::Result<()> {
    epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, data)
}

pub(crate) fn epoll_remove(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    epoll_control(epoll, libc::EPOLL_CTL_DEL, fd, 0, 0)
}

fn epoll_control(
    epoll: BorrowedFd<'_>,
    what: i32,
    fd: BorrowedFd<'_>,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` outlives the call. Kept honest by `socket.rs::readiness_is_awaited`.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), what, fd.as_raw_fd(), &raw mut event) }).map(drop)
}

/// How many events one `epoll_wait` may return.
pub(crate) const EVENTS_MAX: usize = 256;

/// Waits for events; `None` waits for ever. Whole milliseconds, rounded up, so that no timer fires early.
pub(crate) fn epoll_wait(
    epoll: BorrowedFd<'_>,
    timeout: Option<Duration>,
    into: &mut Vec<Event>,
) -> io::Result<()> {
    let milliseconds = match timeout {
        None => -1,
        Some(wait) => i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
    };
    // Not cleared: mostly one event comes, and the room is for many.
    let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; EVENTS_MAX];
    let (room, length) = (events.as_mut_ptr().cast(), EVENTS_MAX as libc::c_int);
    // SAFETY: room for `length` events. Kept honest by `driver.rs::each_driver_can_be_forced`.
    let count = check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), room, length, milliseconds) })?;
    into.extend(events[..count as usize].iter().map(|event| {
        // SAFETY: the kernel has filled so many. Kept honest by `driver.rs::each_driver_can_be_forced`.
        let event = unsafe { event.assume_init() };
        Event { data: event.u64, mask: event.events }
    }));
    Ok(())
}

/// A descriptor that is readable once it was rung, until it is drained.
pub(crate) type EventFd = OwnedFd;

pub(crate) fn eventfd() -> io::Result<EventFd> {
    // SAFETY: two integers. Kept honest by `executor.rs::another_thread_wakes_the_reactor`.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(own)
}

/// Adds one. A full counter is as good: it is readable either way.
pub(crate) fn eventfd_ring(fd: BorrowedFd<'_>) {
    let one = 1_u64;
    // SAFETY: eight bytes of our own. Kept honest by `executor.rs::another_thread_wakes_the_reactor`.
    let _ = unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Back to zero: an eventfd that was rung, a timer that has gone off.
pub(crate) fn counter_drain(fd: BorrowedFd<'_>) {
    let mut count = 0_u64;
    // SAFETY: eight bytes of our own. Kept honest by `executor.rs::another_thread_wakes_the_reactor`.
    let _ = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// A timer whose descriptor is readable once it has gone off.
pub(crate) fn timer_create() -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: two integers. Kept honest by `guest.rs::a_timer_wakes_the_host`.
    check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) }).map(own)
}

/// Sets the timer to go off once, after this time, instead of what it was set for.
#[allow(clippy::unnecessary_cast)] // Not of the same types everywhere.
pub(crate) fn timer_set(fd: BorrowedFd<'_>, after: Duration) -> io::Result<()> {
    // Zero would stop it.
    let after = after.max(Duration::from_nanos(1));
    let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let seconds = libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX);
    let first = libc::timespec { tv_sec: seconds, tv_nsec: after.subsec_nanos() as _ };
    let time = libc::itimerspec { it_interval: never, it_value: first };
    // SAFETY: `time` outlives the call, and where the old time would go is null. Kept honest by
    // `guest.rs::a_timer_wakes_the_host`.
    check(unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const time, std::ptr::null_mut()) })
        .map(drop)
}

/// Sleeps until the descriptor is readable, the time is up or a signal comes; `None` is for ever.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let milliseconds = match timeout {
        None => -1,
        Some(wait) => i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
    };
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, and it outlives the call. Kept honest by `guest.rs::a_guest_can_be_its_own_host`.
    match check(unsafe { libc::poll(&raw mut entry, 1, milliseconds) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result.map(drop),
    }
}

// -- limits ---------------------------------------------------------------------------------------------

/// The soft RLIMIT_NOFILE.
pub(crate) fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call. Kept honest by
    // `budget.rs::a_receive_waits_when_descriptors_run_out`.
    match check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }) {
        Ok(_) => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        Err(_) => 1024,
    }
}

/// The directory whose size is the number of our descriptors, if there is such a thing.
pub(crate) fn open_descriptor_directory() -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a string that ends in zero. Kept honest by
    // `budget.rs::a_receive_waits_when_descriptors_run_out`.
    check(unsafe { libc::open(c"/proc/self/fd".as_ptr(), flags) }).ok().map(own)
}

/// How many descriptors this process has open. `directory` answers in one call since Linux 6.2; without it
/// (no /proc, an older kernel) the numbers below the limit are asked about one by one.
pub(crate) fn open_descriptors(directory: Option<BorrowedFd<'_>>) -> usize {
    if let Some(stat) = directory.and_then(|directory| stat(directory).ok())
        && stat.st_size > 0
    {
        return stat.st_size as usize;
    }
    open_descriptors_below(descriptor_limit())
}

/// How many numbers below this one are open: one system call for each, up to [`NUMBERS_ASKED_MAX`] or a gap
/// that no busy process has, since numbers are given out lowest first.
///
/// It does not `poll` them, which would be one call for all: that asks the file, and a stranger's file (FUSE)
/// answers when it likes.
pub(crate) fn open_descriptors_below(limit: usize) -> usize {
    const GAP_MAX: u32 = 1024;
    let (mut open, mut gap) = (0, 0);
    for number in 0..limit.min(NUMBERS_ASKED_MAX) {
        if close_on_exec(number as RawFd).is_some() {
            (open, gap) = (open + 1, 0);
        } else if gap == GAP_MAX {
            break;
        } else {
            gap += 1;
        }
    }
    open
}

/// How many numbers are asked about one by one at most: some 20 ms' worth.
pub(crate) const NUMBERS_ASKED_MAX: usize = 65_536;

fn stat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    // SAFETY: all zeroes is a valid `stat`. Kept honest by `closing.rs::a_lingering_socket_does_not_block`.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` outlives the call. Kept honest by `closing.rs::a_lingering_socket_does_not_block`.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) })?;
    Ok(stat)
}

/// Whether closing this descriptor cannot make the closing thread wait: a pipe, or a small file in memory.
///
/// A socket is not on this list, not even one of AF_UNIX: what is queued in it is closed with it, and that
/// may be a TCP socket that lingers. Nor is a large file in memory, whose pages are freed by whoever closes
/// it last, nor a pipe with a name, which may be on a file system that goes with it.
pub(crate) fn closes_at_once(fd: BorrowedFd<'_>) -> bool {
    const SMALL: i64 = 1 << 20;
    if !has_seals(fd) {
        return is_nameless_pipe(fd);
    }
    // In tmpfs, or in large pages, of which so few bytes are a few at most: nothing else has seals.
    memory_taken(fd).is_some_and(|bytes| bytes <= SMALL)
}

/// How much memory a file takes that is known to be in memory. `fstat` tells too, and takes half as long
/// again for all else that it tells; it is asked where there is no such question (gVisor).
#[allow(clippy::unnecessary_cast)] // Not of the same types everywhere.
fn memory_taken(fd: BorrowedFd<'_>) -> Option<i64> {
    let mut bytes: i64 = 0;
    // SAFETY: `bytes` is as long as what the kernel writes, and outlives the call.
    // Kept honest by `closing.rs::what_closes_at_once_is_closed_here`.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIOQSIZE, &raw mut bytes) };
    if told == 0 { Some(bytes) } else { stat(fd).ok().map(|stat| stat.st_blocks as i64 * 512) }
}

/// Whether it is a file of tmpfs, or one of large pages. The first question about a file of which nothing is
/// known: the file system is not asked, while `fstat` and `fstatfs` of a file of FUSE are answered by whoever
/// has mounted it, and not before they like.
fn has_seals(fd: BorrowedFd<'_>) -> bool {
    seals(fd).is_ok()
}

/// The same for pipes. Where there is no /proc nobody can tell, and none is.
fn is_nameless_pipe(fd: BorrowedFd<'_>) -> bool {
    // Asked of each descriptor that nobody has taken, and so without memory of its own.
    const PIPE: &[u8] = b"pipe:[";
    let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    if write!(&mut link["/proc/self/fd/".len()..], "{}\0", fd.as_raw_fd()).is_err() {
        return false;
    }
    let mut name = [0_u8; PIPE.len()];
    // SAFETY: `link` ends in a zero, and `name` has as many bytes as the kernel may write.
    // Kept honest by `closing.rs::what_closes_at_once_is_closed_here`.
    let length = unsafe { libc::readlink(link.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
    length == PIPE.len() as isize && name == PIPE
}

/// The magic number of the file system a descriptor is on.
#[allow(clippy::unnecessary_cast)] // Not of the same type everywhere.
fn file_system(fd: BorrowedFd<'_>) -> Option<i64> {
    // SAFETY: all zeroes is a valid `statfs`. Kept honest by `closing.rs::a_lingering_socket_does_not_block`.
    let mut system: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: `system` outlives the call. Kept honest by `closing.rs::a_lingering_socket_does_not_block`.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut system) }).ok()?;
    Some(system.f_type as i64)
}

// -- memory ---------------------------------------------------------------------------------------------

/// Tells the kernel that this memory had better be in huge pages. Only advice: nothing is said if it cannot.
pub(crate) fn prefer_huge_pages(memory: &mut [mem::MaybeUninit<u8>]) {
    let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
    let Some(whole) = memory.len().checked_sub(start).map(|length| length & !(HUGE_PAGE_BYTES - 1)) else {
        return;
    };
    let Some(memory) = memory.get_mut(start..start + whole).filter(|memory| !memory.is_empty()) else {
        return;
    };
    // SAFETY: whole pages that are ours; which pages hold them changes nothing that can be read there.
    // Kept honest by `room.rs::a_room_holds_what_is_put_into_it`.
    let _ = unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_HUGEPAGE) };
}

// -- forks ----------------------------------------------------------------------------------------------

/// One word in a page of its own.
pub(crate) struct Word(NonNull<AtomicU64>);

// SAFETY: it owns its page as a box owns its memory, and what is in there is an atomic.
// Kept honest by `fork.rs::threads_of_a_child_agree_on_its_generation`.
unsafe impl Send for Word {}

// SAFETY: as above: all that a shared word lends is a shared atomic.
// Kept honest by `fork.rs::threads_of_a_child_agree_on_its_generation`.
unsafe impl Sync for Word {}

impl Word {
    /// A word of zero.
    pub(crate) fn new() -> io::Result<Word> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        // Kept honest by `fork.rs::a_child_is_another_generation`.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), Word::BYTES, protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Word).ok_or_else(io::Error::last_os_error)
    }

    /// A word of zero, which the kernel makes zero again in every forked child (Linux 4.14).
    pub(crate) fn wiped_on_fork() -> io::Result<Word> {
        let word = Word::new()?;
        // SAFETY: its own page, in which nothing is kept yet.
        // Kept honest by `fork.rs::without_the_page_a_child_is_another_generation_all_the_same`.
        check(unsafe { libc::madvise(word.0.as_ptr().cast(), Word::BYTES, libc::MADV_WIPEONFORK) })?;
        Ok(word)
    }

    /// The kernel rounds this up to a page.
    const BYTES: usize = mem::size_of::<AtomicU64>();
}

impl Deref for Word {
    type Target = AtomicU64;

    #[inline]
    fn deref(&self) -> &AtomicU64 {
        // SAFETY: a page that was zeroes at first, aligned as pages are, mapped until the drop, and used as
        // this one atomic only. Kept honest by `fork.rs::a_child_is_another_generation`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; whoever borrowed from it is gone.
        // Kept honest by `forked.rs::a_reactor_leaves_no_page_behind`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Word::BYTES) };
    }
}

/// The number of this process, as the kernel has it now.
pub(crate) fn process_number() -> u32 {
    std::process::id()
}

/// A number of the calling thread, which no other thread has while this one is there.
#[inline]
pub(crate) fn thread_number() -> usize {
    // SAFETY: asks for nothing and cannot fail.
    // Kept honest by `executor.rs::another_thread_wakes_the_reactor`.
    unsafe { libc::pthread_self() as usize }
}

/// Runs `child` in a fork of this process and ends that with what it returns. The number of the child.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs what a test gives it, on the one thread it has, and ends. Locks that other
    // threads held stay locked there: the C library takes care of its own, and the test of the rest.
    // Kept honest by `fork.rs::a_child_is_another_generation`.
    let number = check(unsafe { libc::fork() })?;
    if number > 0 {
        return Ok(number);
    }
    // A panic must not unwind into the parent's test.
    let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: ends the process at once, without running anything of the parent's.
    // Kept honest by `fork.rs::a_child_is_another_generation`.
    unsafe { libc::_exit(status) }
}

/// Forks this process: both go on from here. The number of the child, or 0 in it.
#[cfg(feature = "script")]
pub(crate) fn fork_and_go_on() -> io::Result<i32> {
    // SAFETY: the test that calls this has one thread, and sees to it that the child comes to its end.
    // Kept honest by `forked.rs::a_task_that_forks_amid_a_guests_turn_ends_that_in_the_child`.
    check(unsafe { libc::fork() })
}

// -- randomness -----------------------------------------------------------------------------------------

/// Fills the bytes with what nobody can guess.
pub(crate) fn random(mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        // SAFETY: `into` has as many bytes as the kernel may write.
        // Kept honest by `datagrams.rs::random_names_differ`.
        let filled = unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), 0) };
        match usize::try_from(filled) {
            Ok(filled) => into = &mut into[filled..],
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

// -- files in memory ------------------------------------------------------------------------------------

/// What cannot be done to a file in memory any more, by anybody.
pub(crate) mod seal {
    pub(crate) const SEAL: i32 = libc::F_SEAL_SEAL;
    pub(crate) const SHRINK: i32 = libc::F_SEAL_SHRINK;
    pub(crate) const GROW: i32 = libc::F_SEAL_GROW;
    pub(crate) const WRITE: i32 = libc::F_SEAL_WRITE;
    pub(crate) const FUTURE_WRITE: i32 = 0x10;
}

/// An empty file in memory that can be sealed, and not executed where the kernel knows that.
pub(crate) fn memory_file() -> io::Result<OwnedFd> {
    const NOEXEC_SEAL: libc::c_uint = 8;
    const FLAGS: libc::c_uint = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let name = c"sendright".as_ptr();
    // SAFETY: a string that ends in zero. Kept honest by
    // `shared_memory.rs::what_one_mapping_writes_another_reads`.
    match check(unsafe { libc::memfd_create(name, FLAGS | NOEXEC_SEAL) }) {
        // Before Linux 6.3 nobody knew that files in memory could be executed.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // SAFETY: as above. Kept honest by `shared_memory.rs::what_one_mapping_writes_another_reads`.
            check(unsafe { libc::memfd_create(name, FLAGS) }).map(own)
        }
        result => result.map(own),
    }
}

/// Gives a file so many zero bytes and the memory for them, now.
pub(crate) fn allocate(fd: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    loop {
        // SAFETY: integers only. Kept honest by `shared_memory.rs::fresh_memory_is_zero`.
        match check(unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, bytes) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

/// The seals of a file in memory; an error for any other.
pub(crate) fn seals(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: integers only. Kept honest by `shared_memory.rs::seals_are_told`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })
}

pub(crate) fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> io::Result<()> {
    // SAFETY: integers only. Kept honest by `shared_memory.rs::seals_are_told`.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// The size in bytes of a file of tmpfs, which is where files in memory are; `None` for any other. Large
/// pages have a file system of their own, and promise less.
#[allow(clippy::unnecessary_cast)] // Not of the same types everywhere.
pub(crate) fn memory_file_bytes(fd: BorrowedFd<'_>) -> Option<u64> {
    let is_memory = has_seals(fd) && file_system(fd) == Some(libc::TMPFS_MAGIC as i64);
    let stat = stat(fd).ok().filter(|_| is_memory)?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then(|| (stat.st_size as i64).unsigned_abs())
}

/// How a mapping may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Reading,
    ReadingAndWriting,
    /// What nobody can write to. Before Linux 6.7 such a file could not be mapped as shared, not even for
    /// reading; and with nobody who writes, a private mapping shows the same.
    ReadingForGood,
}

/// Maps the first `bytes` of a file, shared with everybody who maps it.
pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize, access: Access) -> io::Result<NonNull<u8>> {
    let (protection, flags) = match access {
        Access::Reading => (libc::PROT_READ, libc::MAP_SHARED),
        Access::ReadingAndWriting => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        Access::ReadingForGood => (libc::PROT_READ, libc::MAP_PRIVATE),
    };
    let (anywhere, number) = (std::ptr::null_mut(), fd.as_raw_fd());
    // SAFETY: the kernel chooses a place where nothing is.
    // Kept honest by `shared_memory.rs::what_one_mapping_writes_another_reads`.
    let memory = unsafe { libc::mmap(anywhere, bytes, protection, flags, number, 0) };
    match NonNull::new(memory.cast::<u8>()) {
        Some(place) if memory != libc::MAP_FAILED => Ok(place),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a mapping.
///
/// # Safety
/// It was made by [`map`] with as many bytes, and nothing refers to it any more.
pub(crate) unsafe fn unmap(memory: NonNull<u8>, bytes: usize) {
    // SAFETY: as the caller promises. Kept honest by
    // `shared_memory.rs::memory_is_used_after_its_descriptor_is_closed`.
    let _ = unsafe { libc::munmap(memory.as_ptr().cast(), bytes) };
}

// -- inheritance ----------------------------------------------------------------------------------------

/// Whether the number is open, and if so whether it is closed on exec.
pub(crate) fn close_on_exec(number: RawFd) -> Option<bool> {
    // SAFETY: integers only; asking about a closed number is answered with EBADF.
    // Kept honest by `inherit.rs::a_number_is_claimed_once`.
    let flags = check(unsafe { libc::fcntl(number, libc::F_GETFD) }).ok()?;
    Some(flags & libc::FD_CLOEXEC != 0)
}

/// Claims an inherited descriptor. The caller has made sure that it is open and *not* close-on-exec, which
/// nothing opened by this process's Rust code is, and that nobody claimed it before.
pub(crate) fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only. Kept honest by `inherit.rs::a_number_is_claimed_once`.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(own(number))
}

/// A copy of the descriptor under exactly this number, if it is free.
fn occupy(fd: BorrowedFd<'_>, number: RawFd) -> Option<OwnedFd> {
    // SAFETY: integers only. Kept honest by
    // `inherit.rs::a_program_that_does_not_exist_is_an_error_whatever_the_numbers`.
    let copy = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) }).map(own).ok()?;
    (copy.as_raw_fd() == number).then_some(copy)
}

/// Lets `command` start with each descriptor under its number. The copies here close with the `Command`.
pub(crate) fn inherit(command: &mut Command, descriptors: Vec<(OwnedFd, RawFd)>) {
    let above = descriptors.iter().map(|(_, number)| *number).max().unwrap_or(2).saturating_add(1);
    // Numbers that are free here are taken, or the pipe on which `Command` is told that the program could not
    // be started may get one of them: it would then be overwritten, and a failed start look like success.
    let taken: Vec<OwnedFd> =
        descriptors.iter().filter_map(|(fd, number)| occupy(fd.as_fd(), *number)).collect();
    // Room made here: between fork and exec nothing may allocate.
    let mut parked: Vec<RawFd> = vec![-1; descriptors.len()];
    let arrange = move || {
        let _held = &taken;
        // First out of each other's way, above every number asked for; then each to its own.
        for (place, (fd, _)) in parked.iter_mut().zip(&descriptors) {
            // SAFETY: integers only. Kept honest by `inherit.rs::numbers_may_cross`.
            *place = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) })?;
        }
        for (place, (_, number)) in parked.iter().zip(&descriptors) {
            // SAFETY: integers only; the copy is open across exec, which is the point.
            // Kept honest by `inherit.rs::numbers_may_cross`.
            check(unsafe { libc::dup2(*place, *number) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `arrange` calls fcntl and dup2 and nothing else: both are
    // async-signal-safe, and it neither allocates nor locks. Kept honest by `inherit.rs::numbers_may_cross`.
    unsafe { command.pre_exec(arrange) };
}

// -- system calls that a test answers ---------------------------------------------------------------------

/// What the kernel calls it here.
#[cfg(feature = "script")]
pub(crate) fn numbers_of(call: SystemCall) -> &'static [libc::c_long] {
    match call {
        SystemCall::Send => &[libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg],
        SystemCall::Receive => &[libc::SYS_recvmsg],
        SystemCall::Pair => &[libc::SYS_socketpair],
        SystemCall::EnterRing => &[libc::SYS_io_uring_enter],
        SystemCall::Watch => &[libc::SYS_epoll_ctl],
    }
}

/// Has this thread's calls of these numbers, and those of threads and processes it starts, wait for the word
/// of whoever holds the descriptor. When that is closed they fail with ENOSYS. The thread has given up
/// gaining privileges before, or is privileged.
#[cfg(feature = "script")]
pub(crate) fn have_calls_asked_about(numbers: &[libc::c_long]) -> io::Result<OwnedFd> {
    let step = |code: u32, k: u32, jt: usize| libc::sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
    let count = numbers.len();
    // The number of the call is the first word of what the filter is shown.
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    program.extend(numbers.iter().enumerate().map(|(place, number)| {
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *number as u32, count - place)
    }));
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the kernel copies the program, which is as long as is said and lives until the end of this
    // call. Kept honest by `shortages.rs::an_enter_that_is_put_off_for_a_while_is_made_up_for`.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    check(listener as libc::c_int).map(own)
}

/// The number of a call that waits for a word, and what the kernel calls this one. Waits for it.
#[cfg(feature = "script")]
pub(crate) fn call_asked_about(listener: BorrowedFd<'_>) -> io::Result<(libc::c_long, u64)> {
    // SAFETY: all zeroes is a notification, and what the kernel asks for.
    // Kept honest by `shortages.rs::an_enter_that_is_put_off_for_a_while_is_made_up_for`.
    let mut asked: libc::seccomp_notif = unsafe { mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes one notification, whose size is part of the request's number.
    // Kept honest by `shortages.rs::an_enter_that_is_put_off_for_a_while_is_made_up_for`.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut asked) })?;
    Ok((libc::c_long::from(asked.data.nr), asked.id))
}

/// Has such a call fail with this error, or go on as if nobody had been asked.
#[cfg(feature = "script")]
pub(crate) fn answer_call(listener: BorrowedFd<'_>, id: u64, refusal: Option<i32>) -> io::Result<()> {
    let goes_on = if refusal.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let error = -refusal.unwrap_or(0);
    let mut word = libc::seccomp_notif_resp { id, val: 0, error, flags: goes_on };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads one response, whose size is part of the request's number.
    // Kept honest by `shortages.rs::an_enter_that_is_put_off_for_a_while_is_made_up_for`.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut word) }).map(drop)
}
