//! What the kernel has, found by using it.
//!
//! It owns one small experiment for each feature, and what its absence means. It must never draw conclusions
//! from a version number.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::{DESCRIPTORS_MAX, Kind, PACKET_BYTES_MAX, Reactor, Socket};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::PidfdFlags;
use serde::Serialize;

use crate::sandbox;

/// Something the kernel has or has not.
#[derive(Debug, Serialize)]
pub struct Feature {
    pub name: &'static str,
    pub works: bool,
    pub detail: String,
}

/// Small packets tried before a queue is called endless.
const QUEUE_TRIED_MAX: usize = 4_096;

/// Tries everything.
pub fn all(reactor: &Reactor) -> Vec<Feature> {
    vec![
        seqpacket_descriptors(),
        seqpacket_bytes(),
        seqpacket_queue(),
        credentials(),
        sender_pidfd(reactor),
        pidfd(),
        openat2(),
        landlock(),
        memfd_seals(),
    ]
}

fn seqpacket_descriptors() -> Feature {
    let name = "descriptors in a packet";
    let tried = pair().and_then(|(near, _far)| {
        let fits = send_descriptors(&near, DESCRIPTORS_MAX);
        let too_many = send_descriptors(&near, DESCRIPTORS_MAX + 1);
        fits.map(|()| too_many.err())
    });
    let detail = match &tried {
        Ok(Some(errno)) => format!("{DESCRIPTORS_MAX}; one more is refused: {}", words(*errno)),
        Ok(None) => format!("{DESCRIPTORS_MAX} and more"),
        Err(errno) => format!("{DESCRIPTORS_MAX} are refused: {}", words(*errno)),
    };
    Feature { name, works: tried.is_ok(), detail }
}

fn seqpacket_bytes() -> Feature {
    let name = "bytes in a packet";
    let packet = vec![1; PACKET_BYTES_MAX];
    let tried = pair().and_then(|(near, _far)| rustix::net::send(&near, &packet, SendFlags::DONTWAIT));
    let detail = match &tried {
        Ok(_) => format!("{PACKET_BYTES_MAX}, the largest of the protocol, in one piece"),
        Err(errno) => {
            format!("{PACKET_BYTES_MAX}, the largest of the protocol, is refused: {}", words(*errno))
        }
    };
    Feature { name, works: tried.is_ok(), detail }
}

fn seqpacket_queue() -> Feature {
    let name = "packets in a queue";
    let tried = pair().map(|(near, _far)| {
        let sent = |_: &usize| rustix::net::send(&near, b"c", SendFlags::DONTWAIT).is_ok();
        (0..QUEUE_TRIED_MAX).take_while(sent).count()
    });
    let detail = match &tried {
        Ok(QUEUE_TRIED_MAX) => format!("more than {QUEUE_TRIED_MAX} small ones"),
        Ok(count) => format!("{count} small ones before a sender has to wait"),
        Err(errno) => words(*errno),
    };
    Feature { name, works: tried.is_ok_and(|count| count > 0), detail }
}

fn credentials() -> Feature {
    let name = "sender's credentials";
    let tried = pair().and_then(|(near, _far)| rustix::net::sockopt::set_socket_passcred(&near, true));
    feature(name, tried, "each message says who sent it; the end of file is told by it")
}

fn sender_pidfd(reactor: &Reactor) -> Feature {
    let name = "sender's pidfd";
    let tried = Socket::pair(reactor, Kind::SeqPacket).and_then(|(near, _far)| near.ask_for_pidfds());
    let (works, detail) = match tried {
        Ok(()) => (true, "a message can name its sender for good".to_string()),
        Err(error) => (false, error.to_string()),
    };
    Feature { name, works, detail }
}

fn pidfd() -> Feature {
    let me = rustix::process::getpid();
    let tried = rustix::process::pidfd_open(me, PidfdFlags::empty());
    feature("pidfd_open", tried.map(drop), "a process can be held without its number")
}

fn openat2() -> Feature {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let tried = rustix::fs::openat2(CWD, ".", flags, Mode::empty(), resolve);
    feature("openat2", tried.map(drop), "the kernel keeps an opener beneath a directory")
}

fn landlock() -> Feature {
    // The ruleset stays with the thread that asks for it: one is made for it and ends with it.
    let tried = std::thread::Builder::new().name("landlock".into()).spawn(|| sandbox::restrict(&[]));
    let status = tried.map(std::thread::JoinHandle::join);
    let (works, detail) = match status {
        Ok(Ok(Ok(status))) => {
            let (abi, detail) = sandbox::describe(&status);
            (abi.is_some(), detail)
        }
        Ok(Ok(Err(error))) => (false, format!("not available: {error}")),
        Ok(Err(_)) => (false, "not available: the thread that tried it died".to_string()),
        Err(error) => (false, format!("not tried: {error}")),
    };
    Feature { name: "Landlock", works, detail }
}

fn memfd_seals() -> Feature {
    let tried = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .and_then(|memfd| rustix::fs::fcntl_add_seals(memfd, SealFlags::SHRINK | SealFlags::SEAL));
    feature("sealed memfd", tried, "memory can be shared that nobody can shrink")
}

fn feature(name: &'static str, tried: Result<(), Errno>, good: &str) -> Feature {
    let detail = match &tried {
        Ok(()) => good.to_string(),
        Err(errno) => words(*errno),
    };
    Feature { name, works: tried.is_ok(), detail }
}

fn words(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one packet with `count` copies of one descriptor. The other end need not receive it.
fn send_descriptors(socket: &OwnedFd, count: usize) -> Result<(), Errno> {
    let copies: Vec<BorrowedFd<'_>> = vec![socket.as_fd(); count];
    let message = SendAncillaryMessage::ScmRights(&copies);
    let mut room = vec![MaybeUninit::uninit(); message.size()];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !control.push(message) {
        return Err(Errno::NOBUFS);
    }
    let bytes = [IoSlice::new(b"c")];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}
