//! Bytes that begin with a page of memory: where bare system calls send from and receive into.
//!
//! A floor must be as fast as bare calls can be, and a kernel that copies with `rep movsb` is not where the
//! destination is a little ahead of the source within a page: on AMD's Zen 3 65,536 bytes that are received
//! 16 bytes behind the beginning of a page, where every large `Vec` has them, take 32 µs instead of 5, and
//! the bare packets of 1 MiB 735 instead of 230. Between two buffers that begin with a page it is never so.
//!
//! It does not know what is copied, or how large a page is elsewhere.

use std::ops::{Deref, DerefMut};

/// The page of most machines; a multiple of it begins where this does.
const PAGE_BYTES: usize = 4096;

/// So many bytes, the first of which is the first of a page.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Zeroes.
    pub fn new(length: usize) -> Aligned {
        let bytes = vec![0; length + PAGE_BYTES];
        let start = bytes.as_ptr().addr().wrapping_neg() % PAGE_BYTES;
        Aligned { bytes, start, length }
    }

    /// The same bytes as these.
    pub fn copy_of(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::new(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl DerefMut for Aligned {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_the_first_of_a_page() {
        for length in [0, 1, 100, 65_536, 1 << 20] {
            let aligned = Aligned::new(length);
            assert_eq!((aligned.as_ptr().addr() % PAGE_BYTES, aligned.len()), (0, length));
        }
        assert_eq!(&Aligned::copy_of(b"bytes")[..], b"bytes");
    }
}
