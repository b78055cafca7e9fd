//! An answer that owns what came with it, and can go to another thread.
//!
//! It knows neither sockets nor sessions.

use std::os::fd::OwnedFd;

use bytemuck::AnyBitPattern;
use ring::{Bytes, Descriptors};

use crate::blocking::Object;
use crate::error::CallError;

/// An answer: bytes, and descriptors to take. Those not taken are closed when it is dropped, without making
/// the thread wait.
#[derive(Debug, Default)]
pub struct Answer {
    bytes: Bytes,
    descriptors: Descriptors,
}

impl Answer {
    #[inline]
    pub(super) fn new(bytes: impl Into<Bytes>, descriptors: impl Into<Descriptors>) -> Answer {
        Answer { bytes: bytes.into(), descriptors: descriptors.into() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to keep.
    pub fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes).into_vec()
    }

    /// The bytes as plain data.
    ///
    /// # Errors
    /// [`CallError::Malformed`] if there are more or fewer bytes than `T` has.
    pub fn read<T: AnyBitPattern>(&self) -> Result<T, CallError> {
        let value = bytemuck::try_pod_read_unaligned(&self.bytes);
        value.map_err(|_| CallError::Malformed("the answer has another length"))
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// Takes the first descriptor that has not been taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.take_first()
    }

    /// Takes all descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.take_all()
    }

    /// Takes the first descriptor that has not been taken yet as an object with sessions, which it is if
    /// whoever answered says so. `None` if there is none, or if it cannot be one; then it is closed.
    pub fn take_object(&mut self) -> Option<Object> {
        self.take_descriptor().and_then(|fd| Object::from_fd(fd).ok())
    }
}
