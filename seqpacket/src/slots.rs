//! The calls of one session, each in a slot whose place is the call's number.
//!
//! A slot is used again and never moves: what is known of a call, and then its answer, is written where it
//! stands, and taken from there. This file owns the free places and the stages a call goes through. It must
//! never know windows, or who may say what.

use std::ops::{Index, IndexMut};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use ring::{Message, Socket};

use crate::credit::Cost;
use crate::error::CallError;
use crate::parcel::Parcel;
use crate::parts::Assembly;
use crate::wire::{Header, Kind, Opening, Size};

pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// The place that is taken next: one that is free, or the end of the row.
    next: usize,
}

pub(crate) struct Slot {
    pub(crate) stage: Stage,
    /// Of whoever waits for its end.
    pub(crate) waker: Option<Waker>,
    /// A large answer that has begun.
    pub(crate) arriving: Option<Box<Assembly>>,
    /// What was answered and nobody has taken.
    pub(crate) answer: Parcel,
}

pub(crate) enum Stage {
    /// Nobody's. The place that is taken after this one stands here.
    Free(usize),
    Queued(Box<Outgoing>),
    /// Queued, and then withdrawn: gone when its turn comes, or when the queue is swept.
    Void,
    Sent(UnderWay),
    /// The caller is gone; the number is not free before its final frame.
    Withdrawn(UnderWay),
    /// For the session it has ended: somebody answers over a socket of its own.
    Elsewhere(Elsewhere),
    /// Withdrawn here, because its large answer is of no use, and the caller has not been told.
    Failed(UnderWay, Box<CallError>),
    /// The answer stands beside this.
    Answered,
    Ended(Box<CallError>),
}

/// A call that has not been sent, because something waits before it.
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    pub(crate) number: u32,
    pub(crate) asked: Asked,
}

#[derive(Clone, Copy)]
pub(crate) enum Asked {
    /// The caller waits until this moment, if it has said.
    Call {
        message: Size,
        room: Size,
        deadline: Option<Instant>,
    },
    Grant,
}

/// Where a call is answered that the server has handed on.
#[derive(Clone)]
pub(crate) struct Elsewhere {
    pub(crate) near: Rc<Socket>,
    pub(crate) room: Size,
}

/// What is known of a call that was sent.
#[derive(Clone, Copy)]
pub(crate) struct UnderWay {
    pub(crate) number: u32,
    /// Room for its answer.
    pub(crate) answer: Size,
    /// It asks for an address.
    pub(crate) is_grant: bool,
    /// Of a call with descriptors, which may fail to be sent: tells it from others of its number.
    pub(crate) posted: u32,
    pub(crate) cost: Cost,
}

impl UnderWay {
    #[inline]
    pub(crate) fn new(opening: &Opening, cost: Cost) -> UnderWay {
        let Header { number, kind, .. } = opening.header;
        UnderWay { number, answer: opening.answer(), is_grant: kind == Kind::Grant, posted: 0, cost }
    }
}

impl Default for Slots {
    fn default() -> Slots {
        // Most have one call under way at a time, or none.
        Slots { slots: Vec::with_capacity(1), next: 0 }
    }
}

impl Slots {
    /// The key of the next call, which is also its number: free again when the slot is.
    #[inline]
    pub(crate) fn vacant_key(&self) -> usize {
        self.next
    }

    /// Gives the vacant key to a call.
    #[inline]
    pub(crate) fn insert(&mut self, stage: Stage) {
        match self.slots.get_mut(self.next) {
            Some(slot) => {
                let Stage::Free(next) = slot.stage else { unreachable!("the next place is free") };
                self.next = next;
                slot.go_on(stage);
            }
            None => self.lengthen(stage),
        }
    }

    #[cold]
    fn lengthen(&mut self, stage: Stage) {
        self.slots.push(Slot { stage, waker: None, arriving: None, answer: Parcel::default() });
        self.next = self.slots.len();
    }

    /// Frees a slot. Gives back the stage it was in, which is to be dropped when nothing is borrowed.
    pub(crate) fn remove(&mut self, key: usize) -> Stage {
        let slot = &mut self.slots[key];
        assert!(!matches!(slot.stage, Stage::Free(_)), "a slot is freed once");
        let stage = std::mem::replace(&mut slot.stage, Stage::Free(self.next));
        slot.arriving = None;
        self.next = key;
        stage
    }

    /// Takes the answer out of a slot, which is free by that.
    #[inline]
    pub(crate) fn take_answer(&mut self, key: usize) -> Parcel {
        let slot = &mut self.slots[key];
        assert!(slot.is_answered(), "looked at before");
        slot.go_on(Stage::Free(self.next));
        self.next = key;
        std::mem::take(&mut slot.answer)
    }

    /// A slot that may be there or not, as somebody else says.
    #[inline]
    pub(crate) fn find(&self, key: usize) -> Option<&Slot> {
        self.slots.get(key)
    }

    /// As `find`, to be changed.
    #[inline]
    pub(crate) fn find_mut(&mut self, key: usize) -> Option<&mut Slot> {
        self.slots.get_mut(key)
    }

    /// Those that are not free.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter(|(_, slot)| !matches!(slot.stage, Stage::Free(_)))
    }
}

impl Index<usize> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, key: usize) -> &Slot {
        &self.slots[key]
    }
}

impl IndexMut<usize> for Slots {
    #[inline]
    fn index_mut(&mut self, key: usize) -> &mut Slot {
        &mut self.slots[key]
    }
}

impl Slot {
    #[inline]
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Answered)
    }

    /// Where the answer is to be put, which has come.
    #[inline]
    pub(crate) fn be_answered(&mut self) -> &mut Parcel {
        self.go_on(Stage::Answered);
        &mut self.answer
    }

    /// Puts the call into its next stage, where the one before has nothing that is to be dropped, as those of
    /// most calls: to find that out each time took as long as the rest of it.
    #[inline]
    pub(crate) fn go_on(&mut self, stage: Stage) {
        debug_assert!(matches!(self.stage, Stage::Free(_) | Stage::Sent(_) | Stage::Answered));
        std::mem::forget(std::mem::replace(&mut self.stage, stage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(slots: &Slots) -> Stage {
        let number = slots.vacant_key() as u32;
        let (answer, cost) = (Size::NONE, Cost::NOTHING);
        Stage::Sent(UnderWay { number, answer, is_grant: false, posted: 0, cost })
    }

    fn fill(slots: &mut Slots, count: usize) {
        for _ in 0..count {
            let stage = sent(slots);
            slots.insert(stage);
        }
    }

    fn keys(slots: &Slots) -> Vec<usize> {
        slots.iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn what_was_freed_last_is_taken_first_and_the_row_grows_only_when_it_is_full() {
        let mut slots = Slots::default();
        fill(&mut slots, 3);
        assert!(matches!(slots.remove(0), Stage::Sent(_)));
        slots[2].be_answered().copy(b"answer");
        assert_eq!(slots.take_answer(2).bytes(), b"answer");
        assert_eq!((keys(&slots), slots.vacant_key()), (vec![1], 2));
        fill(&mut slots, 1);
        assert_eq!((keys(&slots), slots.vacant_key()), (vec![1, 2], 0));
        fill(&mut slots, 2);
        assert_eq!((keys(&slots), slots.vacant_key()), (vec![0, 1, 2, 3], 4));
    }

    #[test]
    fn an_answer_that_was_taken_leaves_nothing_to_the_next_call() {
        let mut slots = Slots::default();
        fill(&mut slots, 1);
        slots[0].be_answered().copy(&[7; 1024]);
        assert_eq!(slots.take_answer(0).bytes().len(), 1024);
        fill(&mut slots, 1);
        assert!(slots[0].answer.bytes().is_empty());
    }

    #[test]
    #[should_panic(expected = "a slot is freed once")]
    fn a_slot_is_not_freed_twice() {
        let mut slots = Slots::default();
        fill(&mut slots, 1);
        slots.remove(0);
        slots.remove(0);
    }
}
