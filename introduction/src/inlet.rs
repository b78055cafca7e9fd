//! Takes apart what a stream brings: records back to back, split anywhere or together, and between them the
//! bytes that only carry a descriptor.
//!
//! No I/O. It owns what has come and has not been asked for: one record is cut off at a time, so that
//! whoever sends thousands at once decides nothing about how much is done for it. It sees of a descriptor
//! only whether one came with a read; the descriptor itself waits with whoever reads.
//!
//! The rule it rests on: the kernel ends a read after the bytes that were sent with a descriptor. So whatever
//! follows a record in the read that brought the descriptor is what the sender sent with it, which means
//! nothing.

use thiserror::Error;

use crate::record::{RECORD_BYTES_MAX, Record, RecordError};
use crate::syrup::Scanner;

/// The most bytes that may be sent along with a descriptor. They mean nothing.
pub const DUMMY_BYTES_MAX: usize = 4096;

/// A read of so many bytes may have been cut off.
pub(crate) const READ_BYTES_MAX: usize = ring::PACKET_BYTES_MAX;

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Come {
    /// A record; of an introduction, only now that its descriptor is there. With the bytes it had.
    Record { record: Record, bytes: Vec<u8> },
    /// An introduction whose descriptor was lost in this process, which is nobody's fault but our own.
    Lost(Record),
}

/// What a read brought besides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Nothing,
    Descriptor,
    /// There was one, and it was lost here.
    Lost,
}

/// What a peer did wrong on its stream. The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum StreamError {
    /// A record that is none, or longer than [`RECORD_BYTES_MAX`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An introduction without a descriptor: other bytes came where it should have been.
    #[error("no descriptor where one belongs")]
    Missing,
    /// A descriptor that belongs to no introduction, or more than one.
    #[error("a descriptor where none belongs")]
    Unexpected,
    /// More than [`DUMMY_BYTES_MAX`] bytes sent along with a descriptor.
    #[error("too many bytes beside a descriptor")]
    Dummy,
}

#[derive(Debug)]
pub(crate) struct Inlet {
    scanner: Scanner,
    /// What the last read brought, and how much of it has been looked at.
    read: Vec<u8>,
    seen: usize,
    carried: Carried,
    /// Of a record that began in an earlier read.
    partial: Vec<u8>,
    /// An introduction that waits for its descriptor.
    waiting: Option<(Record, Vec<u8>)>,
}

impl Inlet {
    pub(crate) fn new() -> Inlet {
        Inlet {
            scanner: Scanner::new(RECORD_BYTES_MAX),
            read: Vec::new(),
            seen: 0,
            carried: Carried::Nothing,
            partial: Vec::new(),
            waiting: None,
        }
    }

    /// Whether something has begun and not ended: the rest must come soon.
    pub(crate) fn is_within(&self) -> bool {
        self.scanner.is_within() || self.waiting.is_some()
    }

    /// Whether all that was read has been looked at, and the next read is due.
    pub(crate) fn is_used_up(&self) -> bool {
        self.seen == self.read.len() && self.carried == Carried::Nothing
    }

    /// Takes what one read brought. The one before is used up.
    pub(crate) fn take(&mut self, bytes: &[u8], carried: Carried) -> Result<(), StreamError> {
        assert!(self.is_used_up(), "one read after the other");
        if carried != Carried::Nothing && bytes.len() >= READ_BYTES_MAX {
            // What was sent with it may go on in the next read.
            return Err(StreamError::Dummy);
        }
        self.read.clear();
        // A flood shall not be remembered by its room.
        self.read.shrink_to(RECORD_BYTES_MAX);
        self.read.extend_from_slice(bytes);
        (self.seen, self.carried) = (0, carried);
        Ok(())
    }

    /// The next record of what was read, if it has one more.
    pub(crate) fn cut(&mut self) -> Result<Option<Come>, StreamError> {
        if self.is_used_up() {
            return Ok(None);
        }
        if self.waiting.is_none() {
            let rest = &self.read[self.seen..];
            let Some(length) = self.scanner.scan(rest).map_err(RecordError::Malformed)? else {
                self.partial.extend_from_slice(rest);
                self.seen = self.read.len();
                // It would belong to an introduction that has not been named yet.
                return if self.carried == Carried::Nothing {
                    Ok(None)
                } else {
                    Err(StreamError::Unexpected)
                };
            };
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(&rest[..length]);
            self.seen += length;
            match Record::read(&whole)? {
                record @ Record::NewConnection { .. } => self.waiting = Some((record, whole)),
                record => return Ok(Some(Come::Record { record, bytes: whole })),
            }
        }
        let rest = self.read.len() - self.seen;
        match self.carried {
            Carried::Nothing if rest == 0 => return Ok(None),
            Carried::Nothing => return Err(StreamError::Missing),
            _ if rest > DUMMY_BYTES_MAX => return Err(StreamError::Dummy),
            Carried::Descriptor | Carried::Lost => {}
        }
        let is_lost = self.carried == Carried::Lost;
        (self.seen, self.carried) = (self.read.len(), Carried::Nothing);
        Ok(self.waiting.take().map(|(record, bytes)| match is_lost {
            true => Come::Lost(record),
            false => Come::Record { record, bytes },
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::locator::{Locator, PublicKey};
    use crate::record::Form;

    fn introduction() -> Vec<u8> {
        let (from, to) = (Locator::new(PublicKey([1; 32])), Locator::new(PublicKey([2; 32])));
        Record::NewConnection { from, to, number: None }.to_bytes(Form::Goblins)
    }

    fn verdict(number: u64) -> Vec<u8> {
        Record::Verdict { number, accepted: true }.to_bytes(Form::Goblins)
    }

    /// All that one read brings.
    fn all(inlet: &mut Inlet, bytes: &[u8], carried: Carried) -> Result<Vec<Come>, StreamError> {
        inlet.take(bytes, carried)?;
        let mut come = Vec::new();
        while let Some(next) = inlet.cut()? {
            come.push(next);
        }
        assert!(inlet.is_used_up());
        Ok(come)
    }

    fn whole(bytes: Vec<u8>) -> Come {
        Come::Record { record: Record::read(&bytes).unwrap(), bytes }
    }

    #[test]
    fn record_and_descriptor_come_together_or_apart() {
        let bytes = introduction();
        for dummy in [1, 4, DUMMY_BYTES_MAX] {
            let dummy = vec![b'<'; dummy];
            let mut inlet = Inlet::new();
            let together = [bytes.clone(), dummy.clone()].concat();
            assert_eq!(all(&mut inlet, &together, Carried::Descriptor).unwrap(), [whole(bytes.clone())]);
            assert!(!inlet.is_within());
            assert_eq!(all(&mut inlet, &bytes, Carried::Nothing).unwrap(), []);
            assert!(inlet.is_within());
            assert_eq!(all(&mut inlet, &dummy, Carried::Descriptor).unwrap(), [whole(bytes.clone())]);
            assert!(!inlet.is_within());
        }
        // On the record's own bytes.
        assert_eq!(all(&mut Inlet::new(), &bytes, Carried::Descriptor).unwrap(), [whole(bytes)]);
    }

    #[test]
    fn more_bytes_beside_a_descriptor_than_are_accepted_are_refused() {
        let mut inlet = Inlet::new();
        all(&mut inlet, &introduction(), Carried::Nothing).unwrap();
        let dummy = vec![0; DUMMY_BYTES_MAX + 1];
        assert_eq!(all(&mut inlet, &dummy, Carried::Descriptor), Err(StreamError::Dummy));
        let full = vec![0; READ_BYTES_MAX];
        assert_eq!(all(&mut Inlet::new(), &full, Carried::Descriptor), Err(StreamError::Dummy));
    }

    #[test]
    fn a_descriptor_belongs_to_the_introduction_before_it() {
        let mut inlet = Inlet::new();
        all(&mut inlet, &introduction(), Carried::Nothing).unwrap();
        assert_eq!(all(&mut inlet, &introduction(), Carried::Nothing), Err(StreamError::Missing));
        let together = [introduction(), verdict(1)].concat();
        assert_eq!(all(&mut Inlet::new(), &together, Carried::Nothing), Err(StreamError::Missing));
        assert_eq!(all(&mut Inlet::new(), &verdict(1), Carried::Descriptor), Err(StreamError::Unexpected));
        assert_eq!(all(&mut Inlet::new(), b"<", Carried::Descriptor), Err(StreamError::Unexpected));
    }

    #[test]
    fn what_comes_at_once_is_cut_off_one_by_one() {
        let mut inlet = Inlet::new();
        inlet.take(&[verdict(1), verdict(2), b"nonsense".to_vec()].concat(), Carried::Nothing).unwrap();
        assert_eq!(inlet.cut(), Ok(Some(whole(verdict(1)))));
        assert!(!inlet.is_used_up());
        assert_eq!(inlet.cut(), Ok(Some(whole(verdict(2)))));
        assert!(matches!(inlet.cut(), Err(StreamError::Record(_))));
    }

    #[test]
    fn a_lost_descriptor_costs_its_introduction_only() {
        let mut inlet = Inlet::new();
        let lost = all(&mut inlet, &[introduction(), b"1234".to_vec()].concat(), Carried::Lost).unwrap();
        assert_eq!(lost, [Come::Lost(Record::read(&introduction()).unwrap())]);
        assert_eq!(all(&mut inlet, &verdict(1), Carried::Nothing).unwrap(), [whole(verdict(1))]);
    }

    #[test]
    fn a_record_is_as_long_as_is_accepted_or_refused_before_it_has_come() {
        let mut inlet = Inlet::new();
        assert!(matches!(all(&mut inlet, b"<300000000:", Carried::Nothing), Err(StreamError::Record(_))));
    }

    proptest! {
        #[test]
        fn records_may_be_split_anywhere(cuts in prop::collection::vec(0_usize..1000, 0..12)) {
            let records: Vec<Vec<u8>> = (0..9).map(verdict).collect();
            let written = [records.concat(), introduction()].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % written.len()).collect();
            cuts.extend([0, written.len()]);
            cuts.sort();
            let mut inlet = Inlet::new();
            let mut come = Vec::new();
            for cut in cuts.windows(2) {
                come.extend(all(&mut inlet, &written[cut[0]..cut[1]], Carried::Nothing).unwrap());
            }
            come.extend(all(&mut inlet, b"9000", Carried::Descriptor).unwrap());
            let expected: Vec<Come> =
                records.into_iter().chain([introduction()]).map(whole).collect();
            prop_assert_eq!(come, expected);
        }
    }
}
