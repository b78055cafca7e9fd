//! How many descriptors this process has, also when it can no longer open anything.
//!
//! It owns one open directory, `/proc/self/fd`, taken before the sandbox closes: reading on in an open
//! directory is allowed in there, opening it is not. It must never know which descriptors ought to be there.

use std::io;

use rustix::fs::{Dir, Mode, OFlags};

/// A way to count the descriptors of this process, now and later.
pub struct Census {
    listing: Option<Dir>,
}

impl Census {
    /// Opens the list. Without a `/proc` there is nothing to count with, and counts are `None`.
    pub fn open() -> Census {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = rustix::fs::open("/proc/self/fd", flags, Mode::empty()).and_then(Dir::new);
        Census { listing: listing.ok() }
    }

    /// Counts, its own descriptor included.
    pub fn count(&mut self) -> io::Result<Option<i64>> {
        let Some(listing) = &mut self.listing else { return Ok(None) };
        listing.rewind();
        let mut count = 0;
        while let Some(entry) = listing.read() {
            let entry = entry?;
            if entry.file_name().to_bytes()[0].is_ascii_digit() {
                count += 1;
            }
        }
        Ok(Some(count))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_count_follows_what_is_opened_and_closed() {
        let mut census = Census::open();
        // Other tests of this process open and close too: only that counting again works is sure.
        let first = census.count().unwrap().unwrap();
        let second = census.count().unwrap().unwrap();
        assert!(first > 0);
        assert!(second > 0);
    }
}
