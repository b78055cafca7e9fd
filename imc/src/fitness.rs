//! Whether a descriptor that came from somewhere is what this protocol speaks over.
//!
//! Asks the kernel and changes nothing. What it refuses it closes without waiting. It does not know where the
//! descriptor came from.

use std::os::fd::OwnedFd;

use ring::{Kind, Reactor, Socket, discard};

use crate::WrapError;

/// An AF_UNIX socket of type SEQPACKET that is connected, or was, on this reactor.
pub(crate) fn connected(reactor: &Reactor, fd: OwnedFd) -> Result<Socket, WrapError> {
    let socket = Socket::wrap(reactor, fd).map_err(|error| match error {
        ring::WrapError::NotASocket => WrapError::NotASocket,
        _ => WrapError::WrongKind,
    })?;
    if socket.kind() != Kind::SeqPacket {
        return Err(refused(socket, WrapError::WrongKind));
    }
    // A listener has no peer, and this is asked of every continuation that arrives: one question if all is
    // well.
    if !socket.is_connected() {
        let why = if socket.is_listening() { WrapError::Listening } else { WrapError::Unconnected };
        return Err(refused(socket, why));
    }
    Ok(socket)
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
