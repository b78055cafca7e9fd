//! Room for a large message that is put together from pieces.
//!
//! It owns one decision: in which pages such a room is. It does not know who sends what.

use std::collections::TryReserveError;

use crate::sys;

/// What the processors have that this was measured on: 2 MiB.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// From so many bytes on, room is asked for in huge pages: 32 MiB.
///
/// Below it allocators keep what is freed and give it out again, pages and all. Above it every room is new
/// from the kernel, which then clears 16,384 small pages for 64 MiB, one fault each: that took longer than
/// the copying (1.4 GB/s through a socket pair, and 3.4 in huge pages, on one CPU of a virtual machine). For
/// 1 or 4 MiB the same advice made it slower, since it keeps the allocator from using again what it has.
pub const HUGE_ROOM_BYTES_MIN: usize = 32 << 20;

/// An empty vector with room for so many bytes, none of which is used before something is written there.
///
/// ```
/// let mut message = ring::room_for(64 << 20)?;
/// message.extend_from_slice(b"the first piece");
/// assert!(message.capacity() >= 64 << 20);
/// # Ok::<(), std::collections::TryReserveError>(())
/// ```
///
/// # Errors
/// There is not so much memory, or address space, to be had.
pub fn room_for(bytes: usize) -> Result<Vec<u8>, TryReserveError> {
    let mut room = Vec::new();
    room.try_reserve_exact(bytes)?;
    if bytes >= HUGE_ROOM_BYTES_MIN {
        sys::prefer_huge_pages(room.spare_capacity_mut());
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_room_holds_what_is_put_into_it() {
        for bytes in [0, 1, HUGE_ROOM_BYTES_MIN - 1, HUGE_ROOM_BYTES_MIN, HUGE_ROOM_BYTES_MIN + 4097] {
            let mut room = room_for(bytes).unwrap();
            room.resize(bytes, 7);
            assert_eq!(room.len(), bytes);
            assert!(room.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        assert!(room_for(usize::MAX / 2 + 1).is_err());
    }

    #[test]
    fn a_piece_smaller_than_a_huge_page_is_left_as_it_is() {
        let mut room: Vec<u8> = Vec::with_capacity(4096);
        sys::prefer_huge_pages(room.spare_capacity_mut());
        sys::prefer_huge_pages(&mut []);
        room.resize(4096, 7);
        assert!(room.iter().all(|byte| *byte == 7));
    }
}
