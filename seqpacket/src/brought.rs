//! What a call brought, from its arrival until its handler is done with it.
//!
//! It stands in a box, and only the box goes from the session's queue to the handler: a call is written once,
//! where it arrives, and not moved. The boxes of calls that have ended are kept for the next. It does not
//! know whose call it is.

use std::time::Instant;

use crate::parcel::Parcel;
use crate::wire::Size;

/// So many empty boxes the mailboxes of a reactor keep for calls to come: as many as one session may have
/// under way unless its server says otherwise, some 50 KiB.
const SPARE_BOXES_MAX: usize = 256;

/// A call that waits to be taken, or that somebody has.
#[derive(Debug)]
pub(crate) struct Brought {
    pub(crate) number: u32,
    /// For its answer.
    pub(crate) room: Size,
    /// When its caller gives up, if it has said.
    pub(crate) deadline: Option<Instant>,
    pub(crate) parcel: Parcel,
}

/// Boxes with nothing in them.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "the boxes go from call to call")]
pub(crate) struct SpareBoxes(Vec<Box<Brought>>);

impl SpareBoxes {
    /// A box for a call, whose parcel is still to be filled.
    #[inline]
    pub(crate) fn lend(&mut self, number: u32, room: Size, deadline: Option<Instant>) -> Box<Brought> {
        match self.0.pop() {
            Some(mut brought) => {
                (brought.number, brought.room, brought.deadline) = (number, room, deadline);
                brought
            }
            None => Box::new(Brought { number, room, deadline, parcel: Parcel::default() }),
        }
    }

    /// Takes a box back that was emptied.
    #[inline]
    pub(crate) fn keep(&mut self, brought: Box<Brought>) {
        if self.0.len() < SPARE_BOXES_MAX {
            self.0.push(brought);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_used_again() {
        let mut spare = SpareBoxes::default();
        let first = spare.lend(1, Size::NONE, None);
        let place: *const Brought = &raw const *first;
        spare.keep(first);
        let second = spare.lend(2, Size::OF_A_FRAME, None);
        assert_eq!((&raw const *second, second.number, second.room), (place, 2, Size::OF_A_FRAME));
    }

    #[test]
    fn so_many_are_kept_and_not_one_more() {
        let mut spare = SpareBoxes::default();
        let boxes: Vec<_> = (0..=SPARE_BOXES_MAX).map(|_| spare.lend(0, Size::NONE, None)).collect();
        boxes.into_iter().for_each(|brought| spare.keep(brought));
        assert_eq!(spare.0.len(), SPARE_BOXES_MAX);
    }
}
