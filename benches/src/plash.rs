//! Plash's own protocol: all objects of a process behind one stream socket. What it is measured against.
//!
//! Written from the description of the protocol, so that the question its author left open can be answered:
//! what is one socket for each object worth, against one connection that carries the messages of all?
//! As in Plash there is one write and one read for each side of a call, blocking; several calls can be under
//! way, each with a return continuation of its own.
//!
//! It does not share a connection among threads or after a fork (Plash takes a lock and two round trips for
//! that), pass objects other than return continuations, or recover from a malformed message.

mod connection;
pub mod wire;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use thiserror::Error;

pub use wire::Malformed;

use connection::Connection;
use wire::{Id, Namespace, Said};

/// The object that a connection begins with, on the server's side.
pub const ROOT: u32 = 0;

/// Answers what it was told.
pub const ECHO: u32 = u32::from_ne_bytes(*b"Echo");

/// Opens a file for reading: flags, mode and length of the path as integers, and the path.
pub const OPEN: u32 = u32::from_ne_bytes(*b"Open");

/// How an answer begins that is none of the errors.
pub const OKAY: &[u8; 4] = b"Okay";

/// How a call ended that has no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The connection is closed, in the middle of a message maybe.
    #[error("the connection is closed")]
    Gone,
    /// The continuation was dropped.
    #[error("nobody will answer")]
    Dropped,
    /// The kernel has dropped some.
    #[error("descriptors are missing")]
    DescriptorsLost,
    /// The other side does not speak the protocol.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The kernel's.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// What was answered.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// Its descriptors.
    pub descriptors: &'a mut Vec<OwnedFd>,
}

/// The side that calls.
pub struct Caller {
    connection: Connection,
    outgoing: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// By index: whether an answer is awaited there.
    awaited: Vec<bool>,
    free: Vec<u32>,
}

impl Caller {
    /// On a connected stream socket.
    pub fn new(socket: OwnedFd) -> Caller {
        Caller {
            connection: Connection::new(socket),
            outgoing: Vec::new(),
            descriptors: Vec::new(),
            awaited: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Calls a method of the root object and waits for the answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(&mut self, method: u32, arguments: &[&[u8]]) -> Result<Answer<'_>, CallError> {
        let number = self.begin(method, arguments)?;
        let (answered, answer) = self.finish()?;
        if answered == number { Ok(answer) } else { Err(Malformed::Nobody.into()) }
    }

    /// Sends a call: the number under which its answer will come.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn begin(&mut self, method: u32, arguments: &[&[u8]]) -> Result<u32, CallError> {
        let number = self.free.pop().unwrap_or(self.awaited.len() as u32);
        match self.awaited.get_mut(number as usize) {
            Some(awaited) => *awaited = true,
            None => self.awaited.push(true),
        }
        let whom = Id { index: ROOT, namespace: Namespace::Receiver };
        let answer = Id { index: number, namespace: Namespace::SenderOnce };
        self.outgoing.clear();
        wire::write_call(&mut self.outgoing, whom, answer, method, arguments);
        self.connection.send(&self.outgoing, &[])?;
        Ok(number)
    }

    /// The next answer, whichever call it belongs to.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn finish(&mut self) -> Result<(u32, Answer<'_>), CallError> {
        let data = self.connection.receive(&mut self.descriptors)?.ok_or(CallError::Gone)?;
        let (whom, data) = match wire::read(data)? {
            Said::Invoked { whom, data, .. } => (whom, data),
            Said::Dropped(whom) => (whom, wire::CONNECTION_ERROR.as_slice()),
        };
        let is_awaited = self.awaited.get_mut(whom.index as usize).filter(|awaited| **awaited);
        let (Some(awaited), Namespace::Receiver) = (is_awaited, whom.namespace) else {
            return Err(Malformed::Nobody.into());
        };
        // Good for one answer: the number is free again.
        *awaited = false;
        self.free.push(whom.index);
        if data == wire::CONNECTION_ERROR {
            return Err(CallError::Dropped);
        }
        Ok((whom.index, Answer { data, descriptors: &mut self.descriptors }))
    }

    /// Opens a file at the other side.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::Dropped`] too where the other side could not open it.
    pub fn open(&mut self, path: &[u8]) -> Result<OwnedFd, CallError> {
        let integers = [0_u32, 0, path.len() as u32].map(u32::to_ne_bytes);
        let answer = self.call(OPEN, &[integers.as_flattened(), path])?;
        answer.descriptors.pop().ok_or(CallError::Dropped)
    }
}

/// What a method answers: bytes, and perhaps a descriptor; `None` drops the continuation.
pub type Answered<'a> = Option<(&'a [u8], Option<OwnedFd>)>;

/// Answers calls of the root object until the other side closes: an answer is one write.
///
/// # Errors
/// See [`CallError`].
pub fn serve(
    socket: OwnedFd,
    mut method: impl for<'a> FnMut(u32, &'a [u8]) -> Answered<'a>,
) -> Result<(), CallError> {
    let mut connection = Connection::new(socket);
    let (mut outgoing, mut descriptors) = (Vec::new(), Vec::new());
    while let Some(data) = connection.receive(&mut descriptors)? {
        let Said::Invoked { whom, first, data } = wire::read(data)? else { continue };
        if whom != (Id { index: ROOT, namespace: Namespace::Receiver }) {
            return Err(Malformed::Nobody.into());
        }
        // Told something without a place for an answer, or nothing that is a call: nobody is to be answered.
        let (Some(continuation), Some((code, arguments))) = (first, wire::call(data)) else { continue };
        let continuation = Id { index: continuation.index, namespace: Namespace::Receiver };
        outgoing.clear();
        let fd = match method(code, arguments) {
            Some((bytes, fd)) => {
                wire::write_invocation(&mut outgoing, continuation, usize::from(fd.is_some()), &[bytes]);
                fd
            }
            None => {
                wire::write_invocation(&mut outgoing, continuation, 0, &[wire::CONNECTION_ERROR]);
                None
            }
        };
        let lent: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        connection.send(&outgoing, &lent)?;
    }
    Ok(())
}

/// The two methods that are measured: [`ECHO`] and [`OPEN`], the latter beneath no particular directory.
pub fn echo_and_open<'a>(method: u32, arguments: &'a [u8]) -> Answered<'a> {
    match method {
        ECHO => Some((arguments, None)),
        OPEN => {
            let (_, path) = arguments.split_at_checked(12)?;
            let file = crate::open_for_reading(path).ok()?;
            Some((OKAY, Some(file)))
        }
        _ => None,
    }
}
