//! Descriptors of every sort that can be passed, and one that cannot.
//!
//! A closed list. It makes them and gives them away; it does not know who gets them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, inotify, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, recv,
    shutdown, socket_with, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Something that has a path.
    Path(&'static str),
    /// A place in a file system, which can be neither read nor written.
    PlaceOnly(&'static str),
    PipeToRead,
    PipeToWrite,
    Unix(SocketType, State),
    Tcp,
    TcpListening,
    Udp,
    Memory(Sealed),
    Event,
    Epoll,
    Timer,
    Inotify,
    Process,
    /// Cannot be passed.
    Ring,
}

/// What has been done with a socket of this machine's own before it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// And whoever passes it keeps the other end.
    Connected,
    /// And the other end is closed.
    Left,
    /// Both ways.
    ShutDown,
    /// Something lies in its queue, with a descriptor.
    Filled,
    Unconnected,
    Listening,
}

/// What a file in memory says of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// 64 KiB, for now: whoever passes it can shrink it.
    NotAtAll,
    /// 64 KiB for good, as a peer of ours makes it.
    Size,
    /// And its contents too.
    Contents,
    /// It cannot shrink, and can grow.
    ShrinkingOnly,
    /// Of no whole number of pages, for good.
    Odd,
    /// Of no bytes, for good.
    Empty,
    /// Of more than any machine has, for good.
    Huge,
}

/// A descriptor to pass, and what its maker keeps of it.
pub(crate) struct Made {
    pub(crate) fd: OwnedFd,
    pub(crate) kept: Option<OwnedFd>,
}

impl Sort {
    pub(crate) const ALL: [Sort; 48] = [
        Sort::Unix(SocketType::SEQPACKET, State::Connected),
        Sort::Unix(SocketType::SEQPACKET, State::Left),
        Sort::Unix(SocketType::SEQPACKET, State::ShutDown),
        Sort::Unix(SocketType::SEQPACKET, State::Filled),
        Sort::Unix(SocketType::SEQPACKET, State::Unconnected),
        Sort::Unix(SocketType::SEQPACKET, State::Listening),
        Sort::Unix(SocketType::STREAM, State::Connected),
        Sort::Unix(SocketType::STREAM, State::Left),
        Sort::Unix(SocketType::STREAM, State::ShutDown),
        Sort::Unix(SocketType::STREAM, State::Filled),
        Sort::Unix(SocketType::STREAM, State::Unconnected),
        Sort::Unix(SocketType::STREAM, State::Listening),
        Sort::Unix(SocketType::DGRAM, State::Connected),
        Sort::Unix(SocketType::DGRAM, State::Left),
        Sort::Unix(SocketType::DGRAM, State::ShutDown),
        Sort::Unix(SocketType::DGRAM, State::Filled),
        Sort::Unix(SocketType::DGRAM, State::Unconnected),
        Sort::Path("/dev/null"),
        Sort::Path("/dev/zero"),
        Sort::Path("/dev/full"),
        Sort::Path("/"),
        Sort::Path("/proc/self/exe"),
        Sort::Path("/proc/self/status"),
        Sort::Path("/proc/self/maps"),
        Sort::Path("/proc/self/mem"),
        Sort::Path("/proc/self/fd"),
        Sort::Path("/proc/self/ns/net"),
        Sort::Path("/sys/kernel"),
        Sort::PlaceOnly("/"),
        Sort::PlaceOnly("/proc/self/exe"),
        Sort::PlaceOnly("/dev/null"),
        Sort::PipeToRead,
        Sort::PipeToWrite,
        Sort::Tcp,
        Sort::TcpListening,
        Sort::Udp,
        Sort::Memory(Sealed::NotAtAll),
        Sort::Memory(Sealed::Size),
        Sort::Memory(Sealed::Contents),
        Sort::Memory(Sealed::ShrinkingOnly),
        Sort::Memory(Sealed::Odd),
        Sort::Memory(Sealed::Empty),
        Sort::Memory(Sealed::Huge),
        Sort::Event,
        Sort::Epoll,
        Sort::Timer,
        Sort::Inotify,
        Sort::Process,
    ];

    /// Makes one. `None` where the machine has none.
    pub(crate) fn make(self) -> Option<Made> {
        let fd = match self {
            Sort::Path(path) => File::open(path).ok()?.into(),
            Sort::PlaceOnly(path) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).ok()?
            }
            Sort::PipeToRead => return std::io::pipe().ok().map(|(reader, writer)| both(reader, writer)),
            Sort::PipeToWrite => return std::io::pipe().ok().map(|(reader, writer)| both(writer, reader)),
            Sort::Unix(kind, state) => return unix(kind, state),
            Sort::Tcp => socket_with(AddressFamily::INET, SocketType::STREAM, CLOEXEC, None).ok()?,
            Sort::TcpListening => {
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, CLOEXEC, None).ok()?;
                listen(&socket, 1).ok()?;
                socket
            }
            Sort::Udp => socket_with(AddressFamily::INET, SocketType::DGRAM, CLOEXEC, None).ok()?,
            Sort::Memory(sealed) => return memory(sealed),
            Sort::Event => eventfd(0, EventfdFlags::CLOEXEC).ok()?,
            Sort::Epoll => epoll::create(epoll::CreateFlags::CLOEXEC).ok()?,
            Sort::Timer => timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).ok()?,
            Sort::Inotify => inotify::init(inotify::CreateFlags::CLOEXEC).ok()?,
            Sort::Process => pidfd_open(getpid(), PidfdFlags::empty()).ok()?,
            Sort::Ring => ring()?,
        };
        Some(Made { fd, kept: None })
    }
}

const CLOEXEC: SocketFlags = SocketFlags::CLOEXEC;

fn both(fd: impl Into<OwnedFd>, kept: impl Into<OwnedFd>) -> Made {
    Made { fd: fd.into(), kept: Some(kept.into()) }
}

fn unix(kind: SocketType, state: State) -> Option<Made> {
    let pair = || socketpair(AddressFamily::UNIX, kind, CLOEXEC | SocketFlags::NONBLOCK, None).ok();
    let single = || socket_with(AddressFamily::UNIX, kind, CLOEXEC, None).ok();
    match state {
        State::Connected => pair().map(|(fd, kept)| both(fd, kept)),
        State::Left => pair().map(|(fd, _)| Made { fd, kept: None }),
        State::ShutDown => {
            let (fd, kept) = pair()?;
            shutdown(&fd, Shutdown::Both).ok()?;
            Some(both(fd, kept))
        }
        State::Filled => {
            let (fd, kept) = pair()?;
            let inside = File::open("/dev/null").ok()?;
            testing::send_packet(&kept, b"a", &[inside.as_fd()]).ok()?;
            testing::send_packet(&kept, b"c", &[kept.as_fd()]).ok()?;
            Some(both(fd, kept))
        }
        State::Unconnected => single().map(|fd| Made { fd, kept: None }),
        State::Listening => {
            let fd = single()?;
            // The kernel chooses a name that is free.
            bind(&fd, &SocketAddrUnix::new_unnamed()).ok()?;
            listen(&fd, 1).ok()?;
            Some(Made { fd, kept: None })
        }
    }
}

fn memory(sealed: Sealed) -> Option<Made> {
    const UNIT_BYTES: u64 = imc::MEMORY_UNIT_BYTES as u64;
    let fd = memfd_create("thrown", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?;
    let bytes = match sealed {
        Sealed::NotAtAll | Sealed::Size | Sealed::Contents | Sealed::ShrinkingOnly => UNIT_BYTES,
        Sealed::Odd => UNIT_BYTES + 1,
        Sealed::Empty => 0,
        Sealed::Huge => 1 << 46,
    };
    ftruncate(&fd, bytes).ok()?;
    let size = SealFlags::SHRINK | SealFlags::GROW;
    let seals = match sealed {
        Sealed::NotAtAll => SealFlags::empty(),
        Sealed::Size | Sealed::Odd | Sealed::Empty | Sealed::Huge => size,
        Sealed::Contents => size | SealFlags::WRITE | SealFlags::SEAL,
        Sealed::ShrinkingOnly => SealFlags::SHRINK,
    };
    fcntl_add_seals(&fd, seals).ok()?;
    let kept = fd.try_clone().ok()?;
    Some(both(fd, kept))
}

/// A duplicate of the ring that this process sleeps in, if it does.
fn ring() -> Option<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let number = std::fs::read_dir("/proc/self/fd").ok()?.find_map(|entry| {
        let path = entry.ok()?.path();
        let is_ring = std::fs::read_link(&path).ok()?.to_string_lossy().contains("[io_uring]");
        is_ring.then(|| path.file_name()?.to_str()?.parse().ok())?
    })?;
    pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok()
}

/// Takes the bytes that lie in a socket, and leaves the descriptors to the kernel.
pub(crate) fn steal(socket: impl AsFd) -> bool {
    let mut bytes = [0; 64];
    recv(socket, &mut bytes, RecvFlags::DONTWAIT).is_ok()
}
