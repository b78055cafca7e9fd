//! Receive buffers: one allocation, lent by number.
//!
//! A buffer is in one of three places: on the free list, with the kernel (which may write to it at any time),
//! or lent to somebody who reads it and gives it back by dropping the [`Lease`]. The pool knows no message.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::message::PACKET_BYTES_MAX;

/// In front of a multishot's payload stand its own header and the control data, for which there is room as
/// for the widest message.
pub(crate) const HEAD_BYTES: usize = 1152;

/// One buffer: the largest message, and the head.
pub(crate) const BUFFER_BYTES: usize = PACKET_BYTES_MAX + HEAD_BYTES;

const ALIGNMENT: usize = 64;

/// The allocation and its free list.
pub(crate) struct Pool {
    memory: NonNull<u8>,
    count: u16,
    free: RefCell<Vec<u16>>,
    lent: Cell<usize>,
}

impl Pool {
    pub(crate) fn new(count: u16) -> Rc<Pool> {
        assert!(count > 0);
        // Zeroed, which for a piece this large costs nothing until a page is touched.
        // SAFETY: the layout is not empty. Kept honest by `descriptors.rs::buffers_come_back`.
        let memory = unsafe { alloc::alloc_zeroed(Pool::layout(count)) };
        let Some(memory) = NonNull::new(memory) else { alloc::handle_alloc_error(Pool::layout(count)) };
        Rc::new(Pool { memory, count, free: RefCell::new((0..count).rev().collect()), lent: Cell::new(0) })
    }

    fn layout(count: u16) -> Layout {
        Layout::from_size_align(BUFFER_BYTES * usize::from(count), ALIGNMENT).expect("65,535 buffers fit")
    }

    pub(crate) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// How many somebody reads.
    pub(crate) fn lent(&self) -> usize {
        self.lent.get()
    }

    /// Takes a buffer off the free list, for the kernel.
    pub(crate) fn take(&self) -> Option<u16> {
        self.free.borrow_mut().pop()
    }

    /// Puts one back that the kernel has let go of.
    pub(crate) fn put(&self, number: u16) {
        let mut free = self.free.borrow_mut();
        assert!(free.len() < self.count());
        free.push(number);
    }

    /// Where a buffer is, for the kernel to write to.
    pub(crate) fn address(&self, number: u16) -> NonNull<u8> {
        assert!(number < self.count);
        // SAFETY: within the allocation. Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { self.memory.add(BUFFER_BYTES * usize::from(number)) }
    }

    /// Lends a buffer that is neither free nor the kernel's any more.
    pub(crate) fn lend(self: &Rc<Pool>, number: u16, range: Range<usize>) -> Lease {
        assert!(range.end <= BUFFER_BYTES);
        assert!(range.start <= range.end);
        self.lent.set(self.lent.get() + 1);
        Lease { pool: Rc::clone(self), number, range }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; every lease holds the pool alive.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { alloc::dealloc(self.memory.as_ptr(), Pool::layout(self.count)) };
    }
}

/// A part of one buffer, lent until dropped.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    number: u16,
    range: Range<usize>,
}

impl Lease {
    pub(crate) fn bytes(&self) -> &[u8] {
        let start = self.pool.address(self.number);
        // SAFETY: within the buffer. Kept honest by `descriptors.rs::buffers_come_back`.
        let start = unsafe { start.add(self.range.start) };
        // SAFETY: the buffer is initialised (zeroed when made) and lent to us alone: the kernel gets it back
        // only when this lease has put its number on the free list.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.range.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.pool.address(self.number);
        // SAFETY: within the buffer. Kept honest by `descriptors.rs::buffers_come_back`.
        let start = unsafe { start.add(self.range.start) };
        // SAFETY: as in `bytes`, and `&mut self` is the only lease of this number.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.range.len()) }
    }

    /// Keeps only a part of what it has.
    pub(crate) fn narrow(&mut self, part: Range<usize>) {
        assert!(part.end <= self.range.len());
        assert!(part.start <= part.end);
        self.range = self.range.start + part.start..self.range.start + part.end;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get() - 1);
        self.pool.put(self.number);
    }
}
