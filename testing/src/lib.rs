//! What the tests of the whole workspace share.
//!
//! Each test body runs in a process of its own, on each driver, and ends with the descriptors it began with:
//! see [`on_each_driver!`] and [`in_own_process!`]. What needs a second process gets one that was exec'd, not
//! forked: see [`helper!`] and [`start_helper!`]. The rest is what tests keep asking of the machine: raw
//! packets, sockets whose closing blocks, fewer descriptors, less privilege, no io_uring.
//!
//! The macros are for the tests in a package's `tests/`. The unit tests of `ring` itself see two `ring`s (the
//! one under test and the one this package was built with), and should keep to [`Census`] and the sockets.
//!
//! It does not know any protocol, it does not retry, and it does not wait for luck: where it waits, it waits
//! for a named condition until a named limit, and fails with that name.
//!
//! ```no_run
//! use ring::Reactor;
//! use testing::{helper, on_each_driver, start_helper};
//!
//! helper! {
//!     fn echo(descriptors: Vec<std::os::fd::OwnedFd>) {
//!         let packet = testing::receive_packet(&descriptors[0]).unwrap();
//!         testing::send_packet(&descriptors[0], &packet.bytes, &[]).unwrap();
//!     }
//! }
//!
//! on_each_driver! {
//!     fn another_process_answers(reactor: &Reactor) {
//!         let (near, far) = testing::packet_pair();
//!         let helper = start_helper!(echo, vec![far]);
//!         testing::send_packet(&near, b"anyone?", &[]).unwrap();
//!         assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"anyone?");
//!         helper.succeeded();
//!     }
//! }
//! # fn main() {}
//! ```
#![forbid(unsafe_code)]
// A harness reports what the machine refuses it by failing the test.
#![allow(clippy::unwrap_used)]

pub mod body;
mod census;
mod fork;
#[cfg(feature = "script")]
mod gate;
mod helper;
mod host;
mod in_flight;
#[cfg(feature = "script")]
pub mod meddling;
mod role;
mod sockets;
mod steps;
#[cfg(feature = "script")]
mod storm;
mod surroundings;
mod wait;
#[cfg(feature = "script")]
pub mod worlds;

pub use rustix::io::Errno;

pub use body::{BODY_TIME_MAX, End, Outcome};
pub use census::Census;
pub use fork::{Forked, fork};
#[cfg(feature = "script")]
pub use gate::{Refusals, gated};
pub use helper::{HELPER_TIME_MAX, Helper, only};
#[doc(hidden)]
pub use helper::{be_helper, path_of};
pub use host::{Host, TRIGGERS, Trigger, guest};
pub use in_flight::{TooManyInFlight, park, too_many_in_flight};
#[cfg(feature = "script")]
pub use meddling::meddle;
pub use role::{driver, helper_argument, reactor, settle};
pub use sockets::{
    LINGER_TIME, Lingering, PACKET_DESCRIPTORS_MAX, Packet, RAW_PACKET_BYTES_MAX, lingering_tcp, packet_pair,
    receive_packet, send_packet, set_blocking, set_nonblocking, stream_pair,
};
pub use steps::{ends, poll_once, turn};
#[cfg(feature = "script")]
pub use storm::{STORM_SIGNALS_MIN, storm};
pub use surroundings::{
    DescriptorLimit, MemoryLimit, NOBODY, become_a_user_of_its_own, become_nobody, become_user_of,
    count_apart, enter_sandbox, leave_descriptors, leave_memory, limit_descriptors, refuse_io_uring,
    refuse_landlock, refuse_wiping_on_fork,
};
pub use wait::{WAIT_TIME_MAX, wait_until};
