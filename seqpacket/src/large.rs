//! A large answer of a plain object: a header that says how long it is, and as many packets as it takes.
//!
//! The continuation's pair belongs to one call, so that nobody's packets come between. This file puts an
//! answer together and takes one apart; it does no I/O and knows no socket. Both sides know beforehand that
//! an answer comes like this: nothing in it says so.

use ring::HUGE_ROOM_BYTES_MIN;

use crate::error::{CallError, Part};
use crate::parcel::Parcel;
use crate::plain::PLAIN_BYTES_MAX;

/// How many bytes a large answer may have, unless the caller says otherwise: 64 MiB, the memory a caller
/// commits for one answer without having said so.
pub const LARGE_ANSWER_BYTES_DEFAULT: usize = 64 << 20;

/// Before the bytes of the first packet: how many there are in all (eight bytes), and eight of zero.
pub(crate) const LARGE_HEADER_BYTES: usize = 16;

/// The bytes of the packets of an answer, in order. The descriptors go with the first.
pub(crate) fn packets(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (start, rest) = bytes.split_at(bytes.len().min(PLAIN_BYTES_MAX - LARGE_HEADER_BYTES));
    let first = [&(bytes.len() as u64).to_le_bytes()[..], &[0; 8], start].concat();
    std::iter::once(first).chain(rest.chunks(PLAIN_BYTES_MAX).map(<[u8]>::to_vec))
}

/// An answer of which some packets have arrived.
pub(crate) struct Assembly {
    bytes_max: usize,
    begun: Option<Begun>,
}

struct Begun {
    total: usize,
    bytes: Vec<u8>,
    descriptors: Parcel,
}

impl Assembly {
    /// Of an answer of so many bytes at most.
    pub(crate) fn new(bytes_max: usize) -> Assembly {
        Assembly { bytes_max, begun: None }
    }

    /// Adds the next packet, and the descriptors that came with it. Gives the answer when it is whole.
    pub(crate) fn add(&mut self, packet: &[u8], descriptors: Parcel) -> Result<Option<Parcel>, CallError> {
        let (begun, payload) = match &mut self.begun {
            Some(begun) if descriptors.descriptors() == 0 => (begun, packet),
            Some(_) => return Err(CallError::Malformed("descriptors within a large answer")),
            None => {
                let (total, payload) =
                    parse(packet).ok_or(CallError::Malformed("not the beginning of a large answer"))?;
                // Before any memory is taken for it.
                let total = usize::try_from(total).ok().filter(|total| *total <= self.bytes_max);
                let total = total.ok_or(CallError::TooLarge(Part::Answer))?;
                (self.begun.insert(Begun { total, bytes: Vec::new(), descriptors }), payload)
            }
        };
        if payload.len() > begun.total - begun.bytes.len() {
            return Err(CallError::Malformed("a large answer is longer than it says"));
        }
        begun.make_room(payload.len())?;
        begun.bytes.extend_from_slice(payload);
        if begun.bytes.len() < begun.total {
            return Ok(None);
        }
        Ok(self.begun.take().map(|mut whole| {
            let mut answer = Parcel::of_bytes(whole.bytes);
            answer.take_from(&mut whole.descriptors);
            answer
        }))
    }
}

impl Begun {
    /// Memory follows what has arrived, whatever was announced, and never goes beyond it: by no more than as
    /// much again, or a huge page.
    fn make_room(&mut self, more: usize) -> Result<(), CallError> {
        let (length, needed) = (self.bytes.len(), self.bytes.len() + more);
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        if length == 0 && self.total >= HUGE_ROOM_BYTES_MIN {
            // Nothing but addresses before something is written there; grown by and by it would have small
            // pages only, each of which the kernel clears by itself.
            let room = ring::room_for(self.total).map_err(|_| CallError::OutOfMemory(Part::Answer))?;
            self.bytes = room;
            return Ok(());
        }
        let wanted = needed.max(2 * self.bytes.capacity()).min(self.total);
        self.bytes.try_reserve_exact(wanted - length).map_err(|_| CallError::OutOfMemory(Part::Answer))
    }
}

fn parse(packet: &[u8]) -> Option<(u64, &[u8])> {
    let (total, rest) = packet.split_first_chunk::<8>()?;
    let (reserved, payload) = rest.split_first_chunk::<8>()?;
    (*reserved == [0; 8]).then_some((u64::from_le_bytes(*total), payload))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::OwnedFd;

    use super::*;

    fn assembled(packets: impl IntoIterator<Item = Vec<u8>>, bytes_max: usize) -> Result<Vec<u8>, CallError> {
        let mut assembly = Assembly::new(bytes_max);
        for packet in packets {
            assert!(packet.len() <= PLAIN_BYTES_MAX && !packet.is_empty());
            if let Some(whole) = assembly.add(&packet, Parcel::default())? {
                return Ok(whole.into_bytes());
            }
        }
        Err(CallError::Dropped)
    }

    #[test]
    fn an_answer_is_put_together_as_it_was_taken_apart() {
        let first = PLAIN_BYTES_MAX - LARGE_HEADER_BYTES;
        for length in [0, 1, first - 1, first, first + 1, first + PLAIN_BYTES_MAX, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let count = packets(&bytes).count();
            assert_eq!(count, 1 + length.saturating_sub(first).div_ceil(PLAIN_BYTES_MAX), "{length}");
            assert_eq!(assembled(packets(&bytes), length).unwrap(), bytes, "{length}");
        }
    }

    #[test]
    fn the_example_of_the_document_is_what_is_written_and_read() {
        let document = include_str!("../../PROTOCOL.md");
        let (_, example) = document.split_once("```example plain-large-answer\n").unwrap();
        let lines = example.lines().take_while(|line| *line != "```");
        let bytes: Vec<u8> = lines
            .filter_map(|line| line.strip_prefix("hex: ")?.split('#').next())
            .flat_map(|line| line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()))
            .collect();
        assert!(packets(b"long one").eq([bytes.clone()]));
        assert_eq!(assembled([bytes], 8).unwrap(), b"long one");
        assert!(document.contains("`LARGE_ANSWER_BYTES_DEFAULT`, 67,108,864 bytes"));
        assert_eq!(LARGE_ANSWER_BYTES_DEFAULT, 67_108_864);
    }

    #[test]
    fn an_answer_has_as_many_bytes_as_the_caller_takes_and_not_one_more() {
        let bytes = vec![7; 150_000];
        assert!(assembled(packets(&bytes), 150_000).is_ok());
        assert!(matches!(assembled(packets(&bytes), 149_999), Err(CallError::TooLarge(Part::Answer))));
        let most = [u64::MAX.to_le_bytes(), [0; 8]].concat();
        assert!(matches!(assembled([most], usize::MAX - 1), Err(CallError::TooLarge(Part::Answer))));
    }

    #[test]
    fn no_memory_is_taken_for_what_is_only_announced() {
        let mut assembly = Assembly::new(LARGE_ANSWER_BYTES_DEFAULT);
        let header = [(LARGE_ANSWER_BYTES_DEFAULT as u64).to_le_bytes(), [0; 8]].concat();
        assert!(assembly.add(&header, Parcel::default()).unwrap().is_none());
        let begun = assembly.begun.as_ref().unwrap();
        assert_eq!((begun.total, begun.bytes.capacity()), (LARGE_ANSWER_BYTES_DEFAULT, 0));
    }

    #[test]
    fn a_room_for_huge_pages_is_asked_for_at_once_with_the_first_bytes() {
        for (total, capacity) in [(HUGE_ROOM_BYTES_MIN, HUGE_ROOM_BYTES_MIN), (HUGE_ROOM_BYTES_MIN - 1, 8)] {
            let mut assembly = Assembly::new(LARGE_ANSWER_BYTES_DEFAULT);
            let first = [(total as u64).to_le_bytes(), [0; 8], [7; 8]].concat();
            assert!(assembly.add(&first, Parcel::default()).unwrap().is_none());
            assert_eq!(assembly.begun.as_ref().unwrap().bytes.capacity(), capacity);
        }
    }

    #[test]
    fn what_is_no_large_answer_is_malformed() {
        let good: Vec<Vec<u8>> = packets(&[7; 150_000]).collect();
        let mut reserved = good.clone();
        reserved[0][15] = 1;
        let longer = [good[0].clone(), vec![7; 150_000 - good[0].len() + 17]];
        for packets in [vec![vec![0; 15]], reserved, longer.to_vec(), vec![[0; 17].to_vec()]] {
            assert!(matches!(assembled(packets, 1 << 20), Err(CallError::Malformed(_))));
        }
        assert!(matches!(assembled(good[..1].to_vec(), 1 << 20), Err(CallError::Dropped)));
    }

    #[test]
    fn descriptors_come_with_the_first_packet_only() {
        let pipe = || Parcel::of_descriptors(vec![OwnedFd::from(std::io::pipe().unwrap().0)].into());
        let packets: Vec<Vec<u8>> = packets(&[7; 150_000]).collect();
        let mut assembly = Assembly::new(150_000);
        assert!(assembly.add(&packets[0], pipe()).unwrap().is_none());
        assert_eq!(assembly.add(&packets[1], Parcel::default()).unwrap().unwrap().descriptors(), 1);
        let mut assembly = Assembly::new(150_000);
        assert!(assembly.add(&packets[0], pipe()).unwrap().is_none());
        assert!(matches!(assembly.add(&packets[1], pipe()), Err(CallError::Malformed(_))));
    }
}
