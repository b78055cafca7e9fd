//! A user who has as many descriptors in flight as the kernel allows one.
//!
//! It owns the descriptors it parks. It does not know who is refused because of them.

use std::os::fd::{AsFd, OwnedFd};

use crate::sockets::{packet_pair, send_packet};
use crate::surroundings::{DescriptorLimit, become_nobody, limit_descriptors};

/// How many descriptors the user may have in flight, which is the soft limit of whoever sends.
const LIMIT: u8 = 200;

/// More would be parked in vain.
const ATTEMPTS: usize = 8;

/// Descriptors in a queue that nobody reads: until this is dropped no process of this user can send any.
#[derive(Debug)]
#[must_use = "what is parked comes back when this is dropped"]
pub struct TooManyInFlight {
    _limit: DescriptorLimit,
    _parked: (OwnedFd, OwnedFd),
}

/// Becomes nobody (the limit does not bind root) and parks descriptors until the kernel refuses.
///
/// # Panics
/// If it never refuses.
#[track_caller]
pub fn too_many_in_flight() -> TooManyInFlight {
    become_nobody();
    let limit = limit_descriptors(LIMIT.into());
    let (near, far) = packet_pair();
    // Not an end of the pair itself, which would be queued in itself.
    let (reader, _writer) = std::io::pipe().unwrap();
    let copies = vec![reader.as_fd(); LIMIT.into()];
    let refused = (0..ATTEMPTS).any(|_| send_packet(&near, b"parked", &copies).is_err());
    assert!(refused, "this user may have as many descriptors in flight as it likes");
    TooManyInFlight { _limit: limit, _parked: (near, far) }
}
