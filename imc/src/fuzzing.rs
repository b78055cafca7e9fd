//! The decoder of typed messages, called with bytes of anybody's, and what must hold whatever they are.
//!
//! Behind the feature `fuzzing`, for the package `hostile` and the targets in `fuzz/`: nothing here is part
//! of the library. It must never know what a descriptor really is.

use crate::wire::{DATA_BYTES_MAX, HEADER_BYTES, Header, PLACES_MAX};

/// Reads a typed message.
pub fn read_typed(bytes: &[u8]) {
    let _ = Header::decode(bytes);
}

/// A typed message that is read is written as it came, for there is one way only to write each.
pub fn check_typed(bytes: &[u8]) {
    let Ok((header, data)) = Header::decode(bytes) else { return };
    assert!(header.kinds().len() <= PLACES_MAX);
    assert!(header.descriptors() <= header.kinds().len());
    assert!(data.len() <= DATA_BYTES_MAX);
    assert_eq!(data, &bytes[HEADER_BYTES..], "the rest of the packet is the data");
    let written = Header::new(header.kinds(), data.len());
    assert_eq!(written, header);
    assert_eq!(written.encode(), bytes[..HEADER_BYTES]);
}
