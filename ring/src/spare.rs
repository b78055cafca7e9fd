//! Memory of queues that have become empty, for those that are about to be used.
//!
//! A program may hold ten thousand sockets, each with queues of its own, of which a handful is in use at any
//! moment. A queue that kept its memory would cost each of them some hundred bytes, and one that gave it back
//! to the allocator would cost each message an allocation. It does not know what is queued.

use std::collections::VecDeque;

/// So many pieces of memory are kept …
const SPARES_MAX: usize = 64;

/// … unless they have grown beyond so many places.
const SPARE_PLACES_MAX: usize = 1024;

/// Memory for queues of one kind.
///
/// ```
/// use std::collections::VecDeque;
/// use ring::Spare;
///
/// let mut spare = Spare::default();
/// let (mut first, mut second) = (VecDeque::from([1]), VecDeque::new());
/// first.pop_front();
/// spare.keep(&mut first);
/// spare.lend(&mut second);
/// assert_eq!(first.capacity(), 0);
/// assert!(second.capacity() > 0);
/// ```
#[derive(Debug)]
pub struct Spare<T>(Vec<VecDeque<T>>);

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare(Vec::new())
    }
}

impl<T> Spare<T> {
    /// Before something is put into a queue: memory, if the queue has none and some is kept here.
    pub fn lend(&mut self, queue: &mut VecDeque<T>) {
        if queue.capacity() == 0
            && let Some(memory) = self.0.pop()
        {
            *queue = memory;
        }
    }

    /// After something was taken out of a queue: keeps its memory, if it is empty.
    pub fn keep(&mut self, queue: &mut VecDeque<T>) {
        if queue.is_empty() && queue.capacity() > 0 {
            let memory = std::mem::take(queue);
            if self.0.len() < SPARES_MAX && memory.capacity() <= SPARE_PLACES_MAX {
                self.0.push(memory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_in_use_keeps_its_memory() {
        let (mut spare, mut queue) = (Spare::default(), VecDeque::from([1, 2]));
        queue.pop_front();
        spare.keep(&mut queue);
        assert_eq!(queue, [2]);
        spare.lend(&mut queue);
        assert_eq!(queue, [2]);
    }

    #[test]
    fn so_many_are_kept_and_not_one_more() {
        let mut spare = Spare::default();
        for _ in 0..=SPARES_MAX {
            spare.keep(&mut VecDeque::<u8>::with_capacity(4));
        }
        assert_eq!(spare.0.len(), SPARES_MAX);
    }

    #[test]
    fn one_that_has_grown_too_large_is_given_back() {
        let mut spare = Spare::default();
        for places in [SPARE_PLACES_MAX + 1, SPARE_PLACES_MAX] {
            let mut queue = VecDeque::<u8>::new();
            queue.reserve_exact(places);
            spare.keep(&mut queue);
            assert_eq!(queue.capacity(), 0);
        }
        assert_eq!(spare.0.len(), 1);
        assert_eq!(spare.0[0].capacity(), SPARE_PLACES_MAX);
    }
}
