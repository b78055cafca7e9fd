//! Leaving the file system, and showing that it is left.
//!
//! It owns the attempt to open what must not open any more. It must never know what the process does next.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::report::Sandboxed;
use crate::sandbox;

/// Gives up the file system, the network and signals to others, as far as this kernel lets us, and tries
/// `forbidden`.
pub fn enter(forbidden: &Path) -> Sandboxed {
    let (landlock_abi, detail) = match sandbox::restrict(&[]) {
        Ok(status) => sandbox::describe(&status),
        Err(error) => (None, format!("not available: {error}")),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(forbidden, flags, Mode::empty());
    let (refused, direct_open) = match opened {
        Ok(_) => (false, "it opens".to_string()),
        Err(errno) => (true, std::io::Error::from(errno).to_string()),
    };
    Sandboxed { landlock_abi, detail, direct_open, refused }
}
