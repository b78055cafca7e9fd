//! The floors beside which the measuring programs put what a call costs: nothing but system calls.
//!
//! One piece for all of them, or a ratio in one table would not be a ratio in another. It does not know what
//! is measured, or how long a table takes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// What is said, both ways.
pub const PAYLOAD: [u8; 64] = [7; 64];

/// How a floor waits for what it receives: in the kernel.
#[inline]
pub fn asleep(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    rustix::net::recv(socket, into, RecvFlags::empty()).map(|(length, _)| length)
}

pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

#[inline]
pub fn call_raw(
    socket: BorrowedFd<'_>,
    receive: impl Fn(BorrowedFd<'_>, &mut [u8]) -> Result<usize>,
) -> Result<()> {
    rustix::net::send(socket, &PAYLOAD, SendFlags::NOSIGNAL)?;
    receive(socket, &mut [0; 128]).map(drop)
}

pub fn serve_raw(
    socket: OwnedFd,
    receive: impl Fn(BorrowedFd<'_>, &mut [u8]) -> Result<usize>,
) -> Result<()> {
    let mut message = [0; 128];
    loop {
        match receive(socket.as_fd(), &mut message)? {
            0 => return Ok(()),
            length => rustix::net::send(&socket, &message[..length], SendFlags::NOSIGNAL)?,
        };
    }
}

/// Pair, send with the far end, close it, receive, close.
#[inline]
pub fn call_five_steps(
    object: BorrowedFd<'_>,
    receive: impl Fn(BorrowedFd<'_>, &mut [u8]) -> Result<usize>,
) -> Result<()> {
    let (near, far) = packet_pair()?;
    send_with(object, &PAYLOAD, far.as_fd())?;
    drop(far);
    receive(near.as_fd(), &mut [0; 128]).map(drop)
}

pub fn serve_five_steps(mailbox: OwnedFd) -> Result<()> {
    let mut message = [0; 128];
    while let Some((length, continuation)) = receive_with(mailbox.as_fd(), &mut message)? {
        rustix::net::send(&continuation, &message[..length], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

#[inline]
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [fd];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// One message and its one descriptor; nothing at the end.
pub fn receive_with(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<Option<(usize, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(into)];
    let received = rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor.map(|descriptor| (received.bytes, descriptor)))
}
