//! What can go wrong with one message, as seen by whoever sends or receives it.
//!
//! `io::Error` inside is the kernel's word, passed on; the named variants are what a peer did or a limit of
//! ours, to be handled by name.

use std::io;

use thiserror::Error;

use crate::fork::ForkedChild;
use crate::message::Received;
use crate::sys::errno;

/// A message was not sent. Nothing of it has been seen by anybody; its descriptors are closed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody holds the other end any more (EPIPE, ECONNRESET).
    #[error("nobody holds the other end any more")]
    Gone,
    /// The queue is full (EAGAIN). Only `try_send` says so; the others wait.
    #[error("the queue is full")]
    WouldBlock,
    /// More bytes than the socket takes in one message (EMSGSIZE; SO_SNDBUF less 32 bytes), or more than 253
    /// descriptors.
    #[error("the message is too large for the socket")]
    TooLarge,
    /// An empty message on a SEQPACKET socket: it could not be told from the end of file.
    #[error("an empty message cannot be told from the end of file")]
    Empty,
    /// Too many descriptors of this user are in flight (ETOOMANYREFS): the sender's soft RLIMIT_NOFILE bounds
    /// what all processes of its uid together have sent and nobody has received yet.
    #[error("too many descriptors of this user are in flight (raise RLIMIT_NOFILE, or wait)")]
    OutOfDescriptors,
    /// The reactor is that of the process this one was forked from; see
    /// [`ForkedChild`](crate::fork::ForkedChild).
    #[error("{ForkedChild}")]
    Forked,
    /// Anything else the kernel said.
    #[error(transparent)]
    Io(io::Error),
}

impl SendError {
    pub(crate) fn from_kernel(error: io::Error) -> SendError {
        match error.raw_os_error() {
            Some(errno::EPIPE | errno::ECONNRESET | errno::ENOTCONN | errno::ECONNREFUSED) => SendError::Gone,
            Some(errno::EMSGSIZE) => SendError::TooLarge,
            Some(errno::ETOOMANYREFS) => SendError::OutOfDescriptors,
            _ if error.kind() == io::ErrorKind::WouldBlock => SendError::WouldBlock,
            _ if ForkedChild::is(&error) => SendError::Forked,
            _ => SendError::Io(error),
        }
    }
}

/// No whole message was received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// End of file: nobody holds the other end any more, and all they sent has been received.
    #[error("nobody holds the other end any more")]
    Closed,
    /// The message was longer than [`PACKET_BYTES_MAX`](crate::PACKET_BYTES_MAX): its first bytes, and such
    /// descriptors as arrived.
    #[error("the message was longer than a packet may be, and its end is lost")]
    Truncated(Received),
    /// Descriptors are missing: more were sent than the socket takes, or than this process has room for, or a
    /// security module kept one back. The bytes are whole; the descriptors inside are the first ones sent, in
    /// order.
    #[error("descriptors of the message are lost")]
    DescriptorsLost(Received),
    /// The reactor is that of the process this one was forked from, which receives what comes; see
    /// [`ForkedChild`](crate::fork::ForkedChild).
    #[error("{ForkedChild}")]
    Forked,
    /// The kernel said something else. The socket receives no more.
    #[error(transparent)]
    Io(io::Error),
}

impl ReceiveError {
    pub(crate) fn from_kernel(error: io::Error) -> ReceiveError {
        if ForkedChild::is(&error) { ReceiveError::Forked } else { ReceiveError::Io(error) }
    }
}

/// A descriptor is not a socket this crate speaks. It has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WrapError {
    /// Not a socket at all (an O_PATH descriptor is none either).
    #[error("not a socket")]
    NotASocket,
    /// A socket, but not of AF_UNIX and of type SEQPACKET or STREAM.
    #[error("not an AF_UNIX socket of type SEQPACKET or STREAM")]
    NotUnix,
}
