//! What somebody else who holds a socket can set on it: every option there is, and every flag of the open
//! description.
//!
//! Sets and tells what it has set. It does not know what anybody makes of it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Options of SOL_SOCKET have numbers below this, with some to spare. Those of Alpha, MIPS, PA-RISC and SPARC
/// are others, and there this tries fewer.
const NUMBERS: std::ops::Range<i32> = 1..100;

/// Not tried: SO_ATTACH_FILTER and SO_ATTACH_REUSEPORT_CBPF, whose values point at memory, and SO_PASSRIGHTS,
/// which by its meaning keeps descriptors from arriving.
const LEFT_OUT: [i32; 3] = [26, 51, SO_PASSRIGHTS];

/// Asks for the credentials of whoever sends.
pub const SO_PASSCRED: i32 = 16;

/// Whether descriptors may be sent to the socket at all (Linux 6.16).
pub const SO_PASSRIGHTS: i32 = 83;

/// How long a receive waits at most.
pub const SO_RCVTIMEO: i32 = 20;

/// Sets each option to each of several values, as far as the kernel lets us, and after each calls `then` with
/// words for what was set. What was set stays set while the next is tried.
pub fn meddle(fd: impl AsFd, mut then: impl FnMut(&str)) {
    let fd = fd.as_fd();
    let integers = [1, 0, -1, i32::MAX, 64, 1].map(|value: i32| value.to_ne_bytes().to_vec());
    // A time of one microsecond, and none; to linger for three seconds.
    let time = |microseconds: u64| [0_u64.to_ne_bytes(), microseconds.to_ne_bytes()].concat();
    let linger = [1_i32.to_ne_bytes(), 3_i32.to_ne_bytes()].concat();
    let values: Vec<Vec<u8>> = integers.into_iter().chain([time(1), time(0), linger]).collect();
    for number in NUMBERS.filter(|number| !LEFT_OUT.contains(number)) {
        for value in &values {
            if set_option(fd, number, value) {
                then(&format!("option {number} set to {value:?}"));
            }
        }
    }
    for flags in [OFlags::NONBLOCK, OFlags::from_bits_retain(O_ASYNC), OFlags::NONBLOCK, OFlags::empty()] {
        fcntl_setfl(fd, flags).unwrap();
        then(&format!("flags set to {flags:?}"));
    }
    assert!(!fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK), "it waits when told nothing else");
}

/// FASYNC, which rustix does not name.
const O_ASYNC: u32 = 0o20_000;

/// Sets one option of SOL_SOCKET, and says whether the kernel let us.
pub fn set_option(fd: BorrowedFd<'_>, number: i32, value: &[u8]) -> bool {
    ring::script::set_any_socket_option(fd, number, value).is_ok()
}
