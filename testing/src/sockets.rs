//! Sockets as a test wants them: raw packets with descriptors, blocking and without a reactor, and the TCP
//! socket whose closing takes seconds.
//!
//! Knows no protocol and no driver: it is the other side, the one that is not ours.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The most descriptors one packet can carry.
pub const PACKET_DESCRIPTORS_MAX: usize = 253;

/// The most bytes [`receive_packet`] takes whole: more than a socket sends with the usual SO_SNDBUF.
pub const RAW_PACKET_BYTES_MAX: usize = 256 * 1024;

/// How long [`lingering_tcp`] makes a close wait.
pub const LINGER_TIME: Duration = Duration::from_secs(60);

/// A connected pair of AF_UNIX SEQPACKET sockets, blocking.
#[track_caller]
pub fn packet_pair() -> (OwnedFd, OwnedFd) {
    pair(SocketType::SEQPACKET)
}

/// A connected pair of AF_UNIX STREAM sockets, blocking.
#[track_caller]
pub fn stream_pair() -> (OwnedFd, OwnedFd) {
    pair(SocketType::STREAM)
}

#[track_caller]
fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// What [`receive_packet`] got.
#[derive(Debug)]
pub struct Packet {
    /// The payload; empty at the end, and for an empty packet.
    pub bytes: Vec<u8>,
    /// The descriptors in the order they were sent.
    pub descriptors: Vec<OwnedFd>,
    /// The kernel dropped part of the payload or some of the descriptors.
    pub truncated: bool,
}

/// Sends one packet with descriptors, waiting for room unless the socket is nonblocking.
///
/// ```
/// use std::os::fd::AsFd;
///
/// let (near, far) = testing::packet_pair();
/// testing::send_packet(&near, b"mine", &[near.as_fd()]).unwrap();
/// let packet = testing::receive_packet(&far).unwrap();
/// assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"mine"[..], 1));
/// ```
///
/// # Errors
/// The kernel's.
pub fn send_packet(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = SendAncillaryMessage::ScmRights(descriptors);
    let mut room = vec![MaybeUninit::uninit(); message.size()];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        assert!(control.push(message), "room for {} descriptors", descriptors.len());
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    assert_eq!(sent, bytes.len(), "a packet is sent whole or not at all");
    Ok(())
}

/// Receives one packet with its descriptors, waiting for it unless the socket is nonblocking.
///
/// # Errors
/// The kernel's.
pub fn receive_packet(socket: impl AsFd) -> io::Result<Packet> {
    let mut bytes = vec![0; RAW_PACKET_BYTES_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let truncated = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Packet { bytes, descriptors, truncated })
}

/// From now on operations on the open description (every holder's) return at once.
#[track_caller]
pub fn set_nonblocking(fd: impl AsFd) {
    ioctl_fionbio(fd, true).unwrap();
}

/// From now on operations on the open description (every holder's) wait.
#[track_caller]
pub fn set_blocking(fd: impl AsFd) {
    ioctl_fionbio(fd, false).unwrap();
}

/// A TCP connection to ourselves that is stuck: see [`lingering_tcp`].
#[derive(Debug)]
pub struct Lingering {
    /// Closing this takes [`LINGER_TIME`], or until `far` is closed.
    pub near: OwnedFd,
    /// The peer that does not read. Dropping it lets a waiting close of `near` go.
    pub far: OwnedFd,
}

/// A descriptor as a hostile stranger would send it: a connected TCP socket with unsent data and SO_LINGER,
/// whose `close` blocks the thread that calls it, O_NONBLOCK or not.
///
/// # Panics
/// If the machine has no loopback.
#[track_caller]
pub fn lingering_tcp() -> Lingering {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // What is accepted inherits this. So small a receive buffer is full long before the sender's is, and then
    // data stays unsent whatever the kernel does about its buffers later.
    set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    set_socket_linger(&near, Some(LINGER_TIME)).unwrap();
    near.set_nonblocking(true).unwrap();
    let error = loop {
        if let Err(error) = near.write(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    near.set_nonblocking(false).unwrap();
    Lingering { near: near.into(), far: far.into() }
}
