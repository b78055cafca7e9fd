//! Queues that have memory only while there is something in them, and where that memory is meanwhile.
//!
//! A program may hold ten thousand sockets, each with queues of its own, of which a handful is in use at any
//! moment. A queue that kept its memory would cost each of them some hundred bytes, and one that gave it back
//! to the allocator would cost each message an allocation. Nothing here knows what is queued.

use std::collections::VecDeque;

/// So many pieces of memory are kept …
const SPARES_MAX: usize = 64;

/// … unless they have grown beyond so many places.
const SPARE_PLACES_MAX: usize = 1024;

/// A queue that is one pointer while it has no memory. Otherwise it is a [`VecDeque`], and used like one.
#[derive(Debug)]
#[allow(clippy::box_collection, reason = "the pointer is what an idle socket has instead of a queue")]
pub struct Queue<T>(Option<Box<VecDeque<T>>>);

impl<T> Queue<T> {
    /// An empty one, without memory.
    pub const fn new() -> Queue<T> {
        Queue(None)
    }

    /// Whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// How much is in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }

    /// Takes the first out.
    #[inline]
    pub fn pop_front(&mut self) -> Option<T> {
        self.0.as_mut()?.pop_front()
    }

    /// Takes all out, and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.clear();
        }
    }

    /// What is first.
    #[inline]
    pub fn front(&self) -> Option<&T> {
        self.0.as_ref()?.front()
    }

    /// The same, to be changed.
    #[inline]
    pub fn front_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()?.front_mut()
    }

    /// What is last, to be changed.
    #[inline]
    pub fn back_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()?.back_mut()
    }

    /// All that is in it, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.0.iter_mut().flat_map(|queue| queue.iter_mut())
    }

    /// The queue, if it has memory.
    pub fn memory(&self) -> Option<&VecDeque<T>> {
        self.0.as_deref()
    }

    /// The queue, with memory from the allocator if it has none.
    pub fn with_memory(&mut self) -> &mut VecDeque<T> {
        self.0.get_or_insert_default()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue::new()
    }
}

/// Memory for queues of one kind.
///
/// ```
/// use ring::{Queue, Spare};
///
/// let mut spare = Spare::default();
/// let (mut first, mut second) = (Queue::new(), Queue::new());
/// spare.lend(&mut first).push_back("hello");
/// assert_eq!(spare.pop_front(&mut first), Some("hello"));
/// // The same memory once more.
/// spare.lend(&mut second).push_back("hello to you");
/// assert_eq!((first.len(), second.len()), (0, 1));
/// ```
#[derive(Debug)]
#[allow(clippy::vec_box, clippy::box_collection, reason = "the boxes go from queue to queue")]
pub struct Spare<T>(Vec<Box<VecDeque<T>>>);

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare(Vec::new())
    }
}

impl<T> Spare<T> {
    /// The queue with memory, some that is kept here if it has none.
    #[inline]
    pub fn lend<'a>(&mut self, queue: &'a mut Queue<T>) -> &'a mut VecDeque<T> {
        queue.0.get_or_insert_with(|| self.0.pop().unwrap_or_default())
    }

    /// Takes the first out of a queue, and keeps its memory if that was the last.
    #[inline]
    pub fn pop_front(&mut self, queue: &mut Queue<T>) -> Option<T> {
        let first = queue.pop_front();
        self.keep(queue);
        first
    }

    /// Keeps the memory of a queue in which nothing is left.
    #[inline]
    pub fn keep(&mut self, queue: &mut Queue<T>) {
        if queue.is_empty()
            && let Some(memory) = queue.0.take()
            && self.0.len() < SPARES_MAX
            && memory.capacity() <= SPARE_PLACES_MAX
        {
            self.0.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_in_use_keeps_its_memory() {
        let (mut spare, mut queue) = (Spare::default(), Queue::new());
        spare.lend(&mut queue).extend([1, 2]);
        assert_eq!(spare.pop_front(&mut queue), Some(1));
        assert!(spare.0.is_empty());
        assert_eq!((queue.front(), queue.len()), (Some(&2), 1));
        assert_eq!(spare.pop_front(&mut queue), Some(2));
        assert_eq!(spare.0.len(), 1);
    }

    #[test]
    fn a_queue_without_memory_is_empty_and_one_pointer() {
        let mut queue = Queue::<u8>::new();
        assert!(queue.is_empty());
        assert_eq!((queue.len(), queue.pop_front(), queue.iter().next()), (0, None, None));
        assert_eq!(size_of_val(&queue), size_of::<usize>());
    }

    #[test]
    fn so_many_are_kept_and_not_one_more() {
        let (mut spare, mut queues) = (Spare::default(), Vec::new());
        for _ in 0..=SPARES_MAX {
            queues.push(Queue::<u8>::new());
        }
        queues.iter_mut().for_each(|queue| {
            queue.with_memory();
        });
        queues.iter_mut().for_each(|queue| spare.keep(queue));
        assert_eq!(spare.0.len(), SPARES_MAX);
    }

    #[test]
    fn one_that_has_grown_too_large_is_given_back() {
        let mut spare = Spare::default();
        for places in [SPARE_PLACES_MAX + 1, SPARE_PLACES_MAX] {
            let mut queue = Queue::<u8>::new();
            queue.with_memory().reserve_exact(places);
            spare.keep(&mut queue);
        }
        assert_eq!(spare.0.len(), 1);
        assert_eq!(spare.0[0].capacity(), SPARE_PLACES_MAX);
    }
}
