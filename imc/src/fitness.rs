//! Whether a descriptor that came from somewhere is what this protocol speaks over.
//!
//! Asks the kernel and changes nothing. What it refuses it closes without waiting. It does not know where the
//! descriptor came from.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ring::{Kind, Reactor, Socket, discard};

use crate::WrapError;

/// An AF_UNIX socket of type SEQPACKET that is connected, or was, on this reactor.
pub(crate) fn connected(reactor: &Reactor, fd: OwnedFd) -> Result<Socket, WrapError> {
    let fd = socket(fd)?;
    let socket = Socket::wrap(reactor, fd).map_err(|_| WrapError::WrongKind)?;
    if socket.kind() != Kind::SeqPacket {
        return Err(refused(socket, WrapError::WrongKind));
    }
    if socket.is_listening() {
        return Err(refused(socket, WrapError::Listening));
    }
    if !socket.is_connected() {
        return Err(refused(socket, WrapError::Unconnected));
    }
    Ok(socket)
}

/// The descriptor, if it is a socket at all.
fn socket(fd: OwnedFd) -> Result<OwnedFd, WrapError> {
    // `UnixStream` is only the way to ask. The timeout is a question every socket answers and nothing else
    // does, without side effects and, unlike its name or its peer's, without the lock of the socket: the
    // sender may sit on that lock of a TCP socket for as long as it likes. And unlike `fstat` it is never
    // passed on to a file system in user space.
    let asked = UnixStream::from(fd);
    let is_socket = asked.read_timeout().is_ok();
    let fd = OwnedFd::from(asked);
    if is_socket {
        Ok(fd)
    } else {
        discard(fd);
        Err(WrapError::NotASocket)
    }
}

fn refused(socket: Socket, why: WrapError) -> WrapError {
    // Not simply dropped: a `Socket` that looks empty is closed where it stands, and a stranger can put
    // something slow to close into this one after the look.
    match socket.into_fd() {
        Ok(fd) => discard(fd),
        Err(socket) => drop(socket),
    }
    why
}
