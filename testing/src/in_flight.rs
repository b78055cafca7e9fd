//! A user who has as many descriptors in flight as the kernel allows one.
//!
//! It owns the descriptors it parks. It does not know who is refused because of them.

use std::os::fd::{AsFd, OwnedFd};

use crate::sockets::{PACKET_DESCRIPTORS_MAX, packet_pair, send_packet, set_nonblocking};
use crate::surroundings::{
    DescriptorLimit, become_a_user_of_its_own, limit_descriptors, unlimited_descriptors,
};

/// How many descriptors the user may have in flight, which is the soft limit of whoever sends.
const LIMIT: u8 = 200;

/// Packets of [`LIMIT`] descriptors that are parked: the kernel refuses whoever has more than the limit.
const PARKED_PACKETS: usize = 2;

/// Descriptors in a queue that nobody reads: until this is dropped no process of this user can send any.
#[derive(Debug)]
#[must_use = "what is parked comes back when this is dropped"]
pub struct TooManyInFlight {
    _limit: DescriptorLimit,
    _parked: (OwnedFd, OwnedFd),
}

/// Descriptors that a hostile holder leaves in the queues of others, or in its own.
///
/// Sends packets of as many descriptors as one carries, all of the same file, until the socket takes no more,
/// and says how many descriptors that were: some 70,000 with the usual buffer.
pub fn park(socket: impl AsFd, bytes: &[u8]) -> usize {
    let socket = socket.as_fd();
    let file = std::fs::File::open("/dev/null").unwrap();
    let copies = vec![file.as_fd(); PACKET_DESCRIPTORS_MAX];
    set_nonblocking(socket);
    (0..).take_while(|_| send_packet(socket, bytes, &copies).is_ok()).count() * PACKET_DESCRIPTORS_MAX
}

/// Becomes a user of its own (the limit does not bind root), parks descriptors, and then lowers this
/// process's limit below what is parked.
///
/// The kernel counts for each user, and where tests do not run as root all of them are one. So what is parked
/// here is too many by itself, and is parked under the highest limit there is: a crowd that only filled up
/// what another test's had left was none any more when that one ended.
///
/// # Panics
/// If nothing can be parked, or the kernel does not refuse more.
#[track_caller]
pub fn too_many_in_flight() -> TooManyInFlight {
    become_a_user_of_its_own();
    let (near, far) = packet_pair();
    // Not an end of the pair itself, which would be queued in itself.
    let (reader, _writer) = std::io::pipe().unwrap();
    let copies = vec![reader.as_fd(); LIMIT.into()];
    let unlimited = unlimited_descriptors();
    for _ in 0..PARKED_PACKETS {
        send_packet(&near, b"parked", &copies).unwrap();
    }
    drop(unlimited);
    let limit = limit_descriptors(LIMIT.into());
    let refused = send_packet(&near, b"one too many", &copies[..1]).is_err();
    assert!(refused, "this user may have as many descriptors in flight as it likes");
    TooManyInFlight { _limit: limit, _parked: (near, far) }
}
