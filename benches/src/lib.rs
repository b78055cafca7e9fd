//! What the benchmark suites share: servers, placement, baselines, and the ratio to what was measured beside.
//!
//! It does not decide which combinations are worth measuring (the suites do), measure what it was not asked
//! to, or use anything of the libraries that a program of a user could not use.
#![forbid(unsafe_code)]

pub mod plash;
pub mod service;
pub mod subject;
pub mod suite;

use std::os::fd::OwnedFd;

pub use perf::{connect, fds, large, process, scale};
use rustix::fs::{Mode, OFlags};

/// Opens a file, as each file service of the suites does.
///
/// # Errors
/// The kernel's.
pub fn open_for_reading(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
