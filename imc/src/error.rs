//! How connecting and accepting fail, and what may be assumed then.
//!
//! Each variant says what was sent and who may have seen it. `io::Error` is the kernel's word, passed on.
//! What peers of an acceptor do wrong is no error here: it is counted where it happens.

use std::io;

use ring::fork::ForkedChild;
use ring::{ReceiveError, SendError};
use thiserror::Error;

use crate::ConnectedSocket;

/// No request was queued. Nothing was sent, the acceptor has seen nothing, and trying again is safe.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The acceptor is gone for good (or somebody has shut the address down). Nothing was sent.
    #[error("the bound socket is gone")]
    Gone,
    /// The acceptor's queue is full. Nothing was sent. Only `try_connect` and `connect_confirmed` say so;
    /// `connect` waits.
    #[error("the acceptor's queue is full")]
    WouldBlock,
    /// This process has no descriptors left for a pair (EMFILE, ENFILE), or too many of this user are in
    /// flight (ETOOMANYREFS). Nothing was sent.
    #[error("no descriptors left for a connection")]
    OutOfDescriptors,
    /// The reactor is that of the process this one was forked from; see
    /// [`ring::fork::ForkedChild`]. Nothing was sent.
    #[error("{ForkedChild}")]
    Forked,
    /// Anything else the kernel said. Nothing was sent.
    #[error(transparent)]
    Io(io::Error),
}

impl ConnectError {
    /// No pair could be made.
    pub(crate) fn from_pair(error: io::Error) -> ConnectError {
        // The same numbers on every architecture.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        match error.raw_os_error() {
            Some(ENFILE | EMFILE) => ConnectError::OutOfDescriptors,
            _ if ForkedChild::is(&error) => ConnectError::Forked,
            _ => ConnectError::Io(error),
        }
    }
}

impl ConnectError {
    /// A call of `connect` failed.
    pub(crate) fn from_connect(error: io::Error) -> ConnectError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Gone,
            io::ErrorKind::WouldBlock => ConnectError::WouldBlock,
            _ => ConnectError::from_pair(error),
        }
    }
}

impl From<SendError> for ConnectError {
    fn from(error: SendError) -> ConnectError {
        match error {
            SendError::Gone => ConnectError::Gone,
            SendError::WouldBlock => ConnectError::WouldBlock,
            SendError::OutOfDescriptors => ConnectError::OutOfDescriptors,
            SendError::Forked => ConnectError::Forked,
            SendError::Io(error) => ConnectError::Io(error),
            // One byte and one descriptor are neither empty nor too large; a variant to come is not known.
            other => ConnectError::Io(io::Error::other(other)),
        }
    }
}

/// No connection was confirmed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// Nothing came in time. The request is in the acceptor's queue, or was taken from it; it may yet be
    /// confirmed, or never. The connection inside is as usable as after a plain `connect`: what is sent on it
    /// waits to be accepted. A confirmation that comes later is swallowed by it
    /// ([`ConnectedSocket::is_confirmation_due`]).
    #[error("the acceptor has not confirmed in time")]
    Unconfirmed(ConnectedSocket),
    /// The request was sent, and the connection has ended without a confirmation: the acceptor died or
    /// dropped the request. Nothing but the request was sent.
    #[error("the connection ended before it was confirmed")]
    Gone,
    /// The first thing that came was not a confirmation: the acceptor does not confirm, or is none. The
    /// connection is closed, and what came is lost.
    #[error("the acceptor said something else instead of confirming")]
    Malformed,
    /// No request was sent. [`ConnectError::WouldBlock`] says that the queue was full all the time.
    #[error("no request was sent: {0}")]
    Connect(#[source] ConnectError),
    /// The request was sent by the process that this one was forked from, which has the connection; see
    /// [`ring::fork::ForkedChild`].
    #[error("{ForkedChild}")]
    Forked,
    /// The request was sent; waiting for the confirmation failed. Anything else the kernel said.
    #[error(transparent)]
    Io(io::Error),
}

impl From<ReceiveError> for ConfirmError {
    fn from(error: ReceiveError) -> ConfirmError {
        match error {
            ReceiveError::Closed => ConfirmError::Gone,
            ReceiveError::Forked => ConfirmError::Forked,
            ReceiveError::Io(error) => ConfirmError::Io(error),
            // More than one byte, or descriptors: whatever it was, it was no confirmation.
            _ => ConfirmError::Malformed,
        }
    }
}

/// Nobody will connect any more.
///
/// Nothing that one peer sends leads here; see [`BoundSocket::violations`](crate::BoundSocket::violations).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Every copy of the address is closed (or a holder has shut it down for all), and the queue is empty.
    #[error("nobody holds the address any more")]
    Gone,
    /// The reactor is that of the process this one was forked from; see [`ring::fork::ForkedChild`].
    #[error("{ForkedChild}")]
    Forked,
    /// The kernel said something else. The bound socket accepts no more.
    #[error(transparent)]
    Io(io::Error),
}

/// A descriptor is not the end of a connection of this protocol. It has been closed, without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WrapError {
    /// No socket, or none that can be used (O_PATH).
    #[error("not a socket")]
    NotASocket,
    /// A socket of another family than AF_UNIX or of another type than SOCK_SEQPACKET.
    #[error("not an AF_UNIX socket of type SEQPACKET")]
    WrongKind,
    /// It listens.
    #[error("a listening socket")]
    Listening,
    /// It is connected to nobody, and never was.
    #[error("an unconnected socket")]
    Unconnected,
}
