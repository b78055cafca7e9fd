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

/// A queue whose first stands in place for as long as it is alone, which it mostly is: then it is put there
/// and taken out, and no memory is lent and given back for it. For what is small.
///
/// ```
/// let mut line = ring::Line::new();
/// line.push_back("first");
/// line.push_back("second");
/// assert_eq!((line.len(), line.pop_front(), line.pop_front()), (2, Some("first"), Some("second")));
/// ```
#[derive(Debug)]
pub struct Line<T>(Places<T>);

#[derive(Debug)]
#[allow(clippy::box_collection, reason = "as in a `Queue`")]
enum Places<T> {
    None,
    One(T),
    Many(Box<VecDeque<T>>),
}

impl<T> Line<T> {
    /// An empty one, without memory.
    pub const fn new() -> Line<T> {
        Line(Places::None)
    }

    /// Whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much is in it.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.0 {
            Places::None => 0,
            Places::One(_) => 1,
            Places::Many(queue) => queue.len(),
        }
    }

    /// Puts one more behind the others, in memory from the allocator if it has none.
    #[inline]
    pub fn push_back(&mut self, last: T) {
        match self.0 {
            Places::None => self.0 = Places::One(last),
            Places::One(_) | Places::Many(_) => self.with_memory().push_back(last),
        }
    }

    /// Takes the first out, and keeps the memory. See [`Spare::pop_front_of`].
    #[inline]
    pub fn pop_front(&mut self) -> Option<T> {
        match &mut self.0 {
            Places::Many(queue) => queue.pop_front(),
            Places::None => None,
            Places::One(_) => self.take_one(),
        }
    }

    #[inline]
    fn take_one(&mut self) -> Option<T> {
        match std::mem::replace(&mut self.0, Places::None) {
            Places::One(one) => Some(one),
            Places::None | Places::Many(_) => unreachable!("looked at before"),
        }
    }

    /// What is in it, where that is one and has been alone.
    #[inline]
    pub fn alone(&self) -> Option<&T> {
        match &self.0 {
            Places::One(one) => Some(one),
            Places::None | Places::Many(_) => None,
        }
    }

    /// What is last, to be changed.
    #[inline]
    pub fn back_mut(&mut self) -> Option<&mut T> {
        match &mut self.0 {
            Places::None => None,
            Places::One(one) => Some(one),
            Places::Many(queue) => queue.back_mut(),
        }
    }

    /// All that is in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match &self.0 {
            Places::None => (None, None),
            Places::One(one) => (Some(one), None),
            Places::Many(queue) => (None, Some(queue.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// It as a queue in memory, from the allocator if it has none.
    pub fn with_memory(&mut self) -> &mut VecDeque<T> {
        self.spread_into(Box::default)
    }

    /// It as a queue, in this memory if it has none.
    fn spread_into(&mut self, memory: impl FnOnce() -> Box<VecDeque<T>>) -> &mut VecDeque<T> {
        if !matches!(self.0, Places::Many(_)) {
            let mut queue = memory();
            queue.extend(self.pop_front());
            self.0 = Places::Many(queue);
        }
        match &mut self.0 {
            Places::Many(queue) => queue,
            Places::None | Places::One(_) => unreachable!("made above"),
        }
    }
}

impl<T> Default for Line<T> {
    fn default() -> Line<T> {
        Line::new()
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
        {
            self.keep_memory(memory);
        }
    }

    #[allow(clippy::box_collection, reason = "the boxes go from queue to queue")]
    fn keep_memory(&mut self, memory: Box<VecDeque<T>>) {
        if self.0.len() < SPARES_MAX && memory.capacity() <= SPARE_PLACES_MAX {
            self.0.push(memory);
        }
    }

    /// Puts one more at the end of a line, which is lent memory if it needs some.
    #[inline]
    pub fn push_back(&mut self, line: &mut Line<T>, last: T) {
        match line.0 {
            Places::None => line.0 = Places::One(last),
            Places::One(_) | Places::Many(_) => self.push_behind(line, last),
        }
    }

    #[inline(never)]
    fn push_behind(&mut self, line: &mut Line<T>, last: T) {
        line.spread_into(|| self.0.pop().unwrap_or_default()).push_back(last);
    }

    /// Takes the first out of a line, and keeps its memory if that was the last.
    #[inline]
    pub fn pop_front_of(&mut self, line: &mut Line<T>) -> Option<T> {
        match line.0 {
            Places::None => None,
            Places::One(_) => line.take_one(),
            Places::Many(_) => self.pop_of_many(line),
        }
    }

    #[inline(never)]
    fn pop_of_many(&mut self, line: &mut Line<T>) -> Option<T> {
        let first = line.pop_front();
        if line.is_empty()
            && let Places::Many(memory) = std::mem::replace(&mut line.0, Places::None)
        {
            self.keep_memory(memory);
        }
        first
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
    fn a_line_of_one_has_no_memory_and_a_longer_one_gives_it_back() {
        let (mut spare, mut line) = (Spare::default(), Line::new());
        for length in [1_usize, 2, 3, 1] {
            (0..length).for_each(|number| spare.push_back(&mut line, number));
            assert_eq!((line.len(), line.back_mut().copied()), (length, length.checked_sub(1)));
            assert!(line.iter().copied().eq(0..length));
            assert!((0..length).all(|number| spare.pop_front_of(&mut line) == Some(number)));
            assert_eq!(
                (line.is_empty(), line.pop_front(), spare.pop_front_of(&mut line)),
                (true, None, None)
            );
        }
        assert_eq!(spare.0.len(), 1);
        // Without anybody to lend it any it has its own, and what stood in place is first there.
        line.push_back(7);
        line.with_memory().push_back(8);
        assert_eq!((line.pop_front(), line.pop_front(), line.pop_front()), (Some(7), Some(8), None));
        line.push_back(9);
        assert_eq!((spare.pop_front_of(&mut line), spare.0.len()), (Some(9), 2));
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
