//! One stream socket on which whole messages are sent and received, with their descriptors.
//!
//! It owns the socket, what has come but was not asked for yet, and the descriptors among it. It does not
//! know what a message says.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::wire::{self, DESCRIPTORS_MAX};
use super::{CallError, Malformed};

/// What is read at a time, at least.
const READ_BYTES: usize = 64 * 1024;

/// One side of a connection.
pub(super) struct Connection {
    socket: OwnedFd,
    /// From `start` to `end` lies what has come and was not taken.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Connection {
        Connection { socket, inbox: vec![0; READ_BYTES], start: 0, end: 0, descriptors: VecDeque::new() }
    }

    /// Writes all of it, and the descriptors with its first byte.
    pub(super) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let mut sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        while sent < bytes.len() {
            sent += rustix::net::send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// The data of the next message and its descriptors, which take the place of what is in `descriptors`;
    /// `None` at the end.
    pub(super) fn receive(&mut self, descriptors: &mut Vec<OwnedFd>) -> Result<Option<&[u8]>, CallError> {
        descriptors.clear();
        let frame = loop {
            match wire::frame(&self.inbox[..self.end], self.start)? {
                // A descriptor comes with the first byte of its message, and so it is here.
                Some(frame) if frame.descriptors > self.descriptors.len() => {
                    return Err(CallError::DescriptorsLost);
                }
                Some(frame) => break frame,
                None if self.read()? => {}
                None if self.start == self.end => return Ok(None),
                None => return Err(CallError::Gone),
            }
        };
        self.start = frame.end;
        descriptors.extend(self.descriptors.drain(..frame.descriptors));
        Ok(Some(&self.inbox[frame.data]))
    }

    /// Reads what is there; false at the end.
    fn read(&mut self) -> Result<bool, CallError> {
        self.make_room();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut self.inbox[self.end..])];
        let received = recvmsg(&self.socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(CallError::DescriptorsLost);
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(Malformed::Length.into());
        }
        self.end += received.bytes;
        Ok(received.bytes > 0)
    }

    /// What was taken makes way, and a message that is larger than the room gets more of it: at most twice
    /// the largest, whose length was judged before.
    fn make_room(&mut self) {
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.inbox.len() {
            self.inbox.resize(2 * self.end, 0);
        }
    }
}
