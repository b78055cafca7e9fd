//! What the benchmark suites share: how one runs, the ratio to what was measured beside, and Plash's own
//! protocol as a baseline.
//!
//! Workloads, floors and servers are those of `perf`. It does not decide which combinations are worth
//! measuring (the suites do), measure what it was not asked to, or use anything of the libraries that a
//! program of a user could not use.
#![forbid(unsafe_code)]

pub mod plash;
pub mod service;
pub mod subject;
pub mod suite;

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

/// Opens a file, as each file service of the suites does.
///
/// # Errors
/// The kernel's.
pub fn open_for_reading(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
