//! Memory that others write to as well: receive buffers, which the kernel does, and mappings of files in
//! memory, which other processes do.
//!
//! Receive buffers are one allocation, lent by number. One is on the free list, or lent to somebody who has
//! it filled and reads it, and gives it back by dropping the [`Lease`]. A [`Landing`] is the memory of a
//! message that comes in pieces, in which the kernel puts the next one where it belongs. A [`Mapped`] file is
//! seen as atomic words, because nothing keeps the other processes from writing while we look. None of them
//! knows what a message means.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::envelope::{Place, Taken};
use crate::message::PACKET_BYTES_MAX;
use crate::sys::{self, Access, seal};

const ALIGNMENT: usize = 64;

/// How far apart buffers begin: whole pages (of 4 KiB), so that all of them begin at the same place within
/// one. Where the copy of a packet is slow depends on that place.
const STRIDE: usize = PACKET_BYTES_MAX.next_multiple_of(4096);

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
        Layout::from_size_align(STRIDE * usize::from(count), ALIGNMENT).expect("65,535 buffers fit")
    }

    pub(crate) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// How many somebody reads.
    pub(crate) fn lent(&self) -> usize {
        self.lent.get()
    }

    /// Takes a buffer off the free list, to be lent.
    pub(crate) fn take(&self) -> Option<u16> {
        self.free.borrow_mut().pop()
    }

    /// Puts one back that the kernel has let go of.
    #[inline]
    pub(crate) fn put(&self, number: u16) {
        let mut free = self.free.borrow_mut();
        assert!(free.len() < self.count());
        free.push(number);
    }

    /// Where a buffer is, for the kernel to write to.
    pub(crate) fn address(&self, number: u16) -> NonNull<u8> {
        assert!(number < self.count);
        // SAFETY: within the allocation. Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { self.memory.add(STRIDE * usize::from(number)) }
    }

    /// Lends a buffer that was taken off the free list.
    pub(crate) fn lend(self: &Rc<Pool>, number: u16, range: Range<usize>) -> Lease {
        assert!(range.end <= PACKET_BYTES_MAX);
        assert!(range.start <= range.end);
        self.lent.set(self.lent.get() + 1);
        Lease { pool: Rc::clone(self), number, landed: 0, range }
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
    /// How many bytes of the message are not here but in a landing.
    landed: u32,
    range: Range<usize>,
}

impl Lease {
    /// Keeps the first so many bytes of a message, the rest of which has landed.
    pub(crate) fn keep_head(&mut self, bytes: usize, landed: usize) {
        self.narrow(0..bytes);
        self.landed = u32::try_from(landed).expect("no more than a packet");
    }

    pub(crate) fn landed(&self) -> usize {
        self.landed as usize
    }

    #[inline]
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
    #[inline]
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get() - 1);
        self.pool.put(self.number);
    }
}

/// With how many bytes each message begins that is to be received into a [`Landing`].
pub const LANDING_HEAD_BYTES: usize = 16;

/// Memory for a message that arrives in pieces, into which a socket receives the next one where it belongs,
/// so that it need not be copied, when [told to](crate::Socket::expect_piece).
///
/// Nothing of what has been received is seen here before somebody [takes](Landing::take_landed) it, who has
/// been told of it by the [message](crate::Received::landed).
///
/// ```
/// use ring::{Executor, Kind, LANDING_HEAD_BYTES, Landing, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
/// let far = Socket::wrap(&reactor, far)?;
/// let landing = Landing::new(ring::room_for(1 << 20)?);
///
/// let head = b"piece 7 of many:";
/// assert!(far.expect_piece(&landing, head, 3));
/// Executor::new(&reactor).block_on(async {
///     near.send([head.as_slice(), b"and"].concat()).await?;
///     let message = far.receive().await?;
///     assert_eq!((message.bytes(), message.landed()), (head.as_slice(), 3));
///     assert_eq!((landing.len(), landing.take_landed(), landing.len()), (0, 3, 3));
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// assert_eq!(landing.take_bytes(), b"and");
/// # assert_eq!(head.len(), LANDING_HEAD_BYTES);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Landing(Rc<RefCell<Site>>);

#[derive(Debug)]
struct Site {
    bytes: Vec<u8>,
    expected: Option<Expected>,
    /// So many bytes behind the others have been received, and nobody has taken them.
    landed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    head: [u8; LANDING_HEAD_BYTES],
    length: usize,
}

impl Landing {
    /// What is received comes behind these bytes. There is as much room as the vector has.
    pub fn new(bytes: Vec<u8>) -> Landing {
        Landing(Rc::new(RefCell::new(Site { bytes, expected: None, landed: 0 })))
    }

    /// See [`Socket::expect_piece`](crate::Socket::expect_piece).
    pub(crate) fn expect(&self, head: &[u8; LANDING_HEAD_BYTES], length: usize) {
        let mut site = self.0.borrow_mut();
        assert!((1..=PACKET_BYTES_MAX - LANDING_HEAD_BYTES).contains(&length));
        assert!(length <= site.bytes.capacity() - site.bytes.len(), "there is no capacity for it");
        site.landed = 0;
        site.expected = Some(Expected { head: *head, length });
    }

    /// What has landed belongs to the bytes from here on. Says how many there are.
    pub fn take_landed(&self) -> usize {
        let mut site = self.0.borrow_mut();
        let Site { bytes, landed, .. } = &mut *site;
        let landed = std::mem::take(landed);
        assert!(landed <= bytes.capacity() - bytes.len());
        // SAFETY: `receive_with` has counted what was written there, and nothing has been put there since.
        // Kept honest by `buffer.rs::what_is_expected_lands_behind_what_is_there`.
        unsafe { bytes.set_len(bytes.len() + landed) };
        landed
    }

    /// Puts bytes behind those that are there. What has landed and was not taken is forgotten, and nothing is
    /// expected any more.
    pub fn push(&self, more: &[u8]) {
        let mut site = self.0.borrow_mut();
        site.forget();
        site.bytes.extend_from_slice(more);
    }

    /// How many bytes are here.
    pub fn len(&self) -> usize {
        self.0.borrow().bytes.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For how many there is room, with those that are here.
    pub fn capacity(&self) -> usize {
        self.0.borrow().bytes.capacity()
    }

    /// Where the first byte is, for whoever counts pages.
    pub fn address(&self) -> usize {
        self.0.borrow().bytes.as_ptr() as usize
    }

    /// Keeps none of the bytes, and memory for so many.
    pub fn clear(&self, bytes_max: usize) {
        let mut site = self.0.borrow_mut();
        site.forget();
        site.bytes.clear();
        site.bytes.shrink_to(bytes_max);
    }

    /// Takes the bytes, with their memory. Nothing lands here any more.
    pub fn take_bytes(&self) -> Vec<u8> {
        let mut site = self.0.borrow_mut();
        site.forget();
        std::mem::take(&mut site.bytes)
    }

    /// The next message is received elsewhere.
    pub(crate) fn expect_nothing(&self) {
        self.0.borrow_mut().expected = None;
    }

    /// Receives a message by this call: into the buffer, or what was expected to its place. The call may
    /// sleep: while it lasts nobody gets at the memory, and when it fails whatever was expected still is.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        receive: impl FnOnce(Place<'_>) -> io::Result<Taken>,
    ) -> io::Result<Taken> {
        let mut site = self.0.borrow_mut();
        let Some(expected) = site.expected.filter(|expected| expected.end() <= buffer.len()) else {
            site.expected = None;
            return receive(Place::one(buffer));
        };
        site.receive_with(expected, buffer, |[head, behind], piece| {
            receive(Place::around(head, piece, behind))
        })
    }
}

impl Expected {
    fn end(&self) -> usize {
        LANDING_HEAD_BYTES + self.length
    }
}

impl Site {
    fn forget(&mut self) {
        self.expected = None;
        self.landed = 0;
    }

    /// `receive` writes to the first part of the buffer, to the piece and to the second part of the buffer,
    /// in this order, and says how many bytes that were.
    fn receive_with(
        &mut self,
        expected: Expected,
        buffer: &mut [u8],
        receive: impl FnOnce([&mut [u8]; 2], &mut [MaybeUninit<u8>]) -> io::Result<Taken>,
    ) -> io::Result<Taken> {
        let piece = &mut self.bytes.spare_capacity_mut()[..expected.length];
        let (head, rest) = buffer.split_at_mut(LANDING_HEAD_BYTES);
        let (gap, behind) = rest.split_at_mut(expected.length);
        let taken = receive([head, behind], piece)?;
        // Whoever looks at it first may expect something else behind it: a second message that begins with
        // the same head was taken for one of the first, which had been withdrawn in between.
        self.expected = None;
        let is_bare = taken.control.descriptors.is_empty() && !taken.control_lost && !taken.bytes_lost;
        if taken.length == expected.end() && *head == expected.head && is_bare {
            self.landed = expected.length;
            return Ok(Taken { landed: expected.length, ..taken });
        }
        let written = taken.length.saturating_sub(LANDING_HEAD_BYTES).min(expected.length);
        // SAFETY: so many have been written. Kept honest by `buffer.rs::what_is_not_expected_is_moved_back`.
        let written = unsafe { std::slice::from_raw_parts(piece.as_ptr().cast::<u8>(), written) };
        gap[..written.len()].copy_from_slice(written);
        Ok(taken)
    }
}

/// The size of a word, in bytes.
pub(crate) const WORD: usize = mem::size_of::<usize>();

/// The first so many bytes of a file, shared with everybody else who maps it.
///
/// All access is by whole words of the machine, also where a part of one is meant: accesses of different
/// sizes that race are not defined, and others may race with us at any time.
pub(crate) struct Mapped {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is only looked at through atomics, or its contents never change; unmapping is for the last
// owner. Kept honest by `shared_memory.rs::threads_share_a_mapping`.
unsafe impl Send for Mapped {}
// SAFETY: as above. Kept honest by `shared_memory.rs::threads_share_a_mapping`.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The file is at least so long and can never be shorter: a page beyond its end would be fatal to touch.
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: usize, access: Access) -> io::Result<Mapped> {
        assert!(bytes > 0);
        Ok(Mapped { memory: sys::map(fd, bytes, access)?, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// All words, the last of which may lie in part behind the end of the file, but on its last page. Writing
    /// to those of a mapping for reading is fatal; `shared_memory.rs` keeps to it.
    pub(crate) fn words(&self) -> &[AtomicUsize] {
        let words = self.memory.as_ptr().cast_const().cast::<AtomicUsize>();
        // SAFETY: mapped until dropped, aligned to a page, and on pages of the file, which cannot shrink.
        // Kept honest by `shared_memory.rs::bounds_are_kept`.
        unsafe { std::slice::from_raw_parts(words, self.bytes.div_ceil(WORD)) }
    }

    /// Copies from `offset` on. What is written meanwhile may be seen in part.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.bytes && into.len() <= self.bytes - offset);
        let words = self.words();
        let (head, rest) = into.split_at_mut(head_length(offset, into.len()));
        if !head.is_empty() {
            let word = words[offset / WORD].load(Ordering::Relaxed).to_ne_bytes();
            head.copy_from_slice(&word[offset % WORD..offset % WORD + head.len()]);
        }
        let mut index = (offset + head.len()) / WORD;
        let mut chunks = rest.chunks_exact_mut(WORD);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&words[index].load(Ordering::Relaxed).to_ne_bytes());
            index += 1;
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let word = words[index].load(Ordering::Relaxed).to_ne_bytes();
            tail.copy_from_slice(&word[..tail.len()]);
        }
    }

    /// Copies to `offset` on. Whoever reads meanwhile may see a part of it; bytes beside it are left alone.
    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(offset <= self.bytes && from.len() <= self.bytes - offset);
        let words = self.words();
        let (head, rest) = from.split_at(head_length(offset, from.len()));
        if !head.is_empty() {
            write_part(&words[offset / WORD], offset % WORD, head);
        }
        let mut index = (offset + head.len()) / WORD;
        let chunks = rest.chunks_exact(WORD);
        let tail = chunks.remainder();
        for chunk in chunks {
            let mut word = [0; WORD];
            word.copy_from_slice(chunk);
            words[index].store(usize::from_ne_bytes(word), Ordering::Relaxed);
            index += 1;
        }
        if !tail.is_empty() {
            write_part(&words[index], 0, tail);
        }
    }
}

/// The same of a file that nobody can write to any more: bytes like any others.
#[derive(Debug)]
pub(crate) struct Frozen(Mapped);

impl Frozen {
    /// Also refuses a file that is not sealed against writing, since everything here rests on that.
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Frozen> {
        if sys::seals(fd)? & seal::WRITE == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Mapped::new(fd, bytes, Access::ReadingForGood).map(Frozen)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let Frozen(Mapped { memory, bytes }) = self;
        // SAFETY: mapped until dropped, within the file, which cannot shrink, and sealed against writing by
        // whatever mapping or call. Kept honest by `shared_memory.rs::frozen_memory_is_plain_bytes`.
        unsafe { std::slice::from_raw_parts(memory.as_ptr(), *bytes) }
    }
}

/// How many bytes there are before the first word boundary.
fn head_length(offset: usize, length: usize) -> usize {
    (offset.next_multiple_of(WORD) - offset).min(length)
}

/// Two steps, each of which ends: a loop that compares and exchanges could be kept going by a hostile writer.
fn write_part(word: &AtomicUsize, place: usize, bytes: &[u8]) {
    let (mut mask, mut value) = ([0xff; WORD], [0; WORD]);
    mask[place..place + bytes.len()].fill(0);
    value[place..place + bytes.len()].copy_from_slice(bytes);
    word.fetch_and(usize::from_ne_bytes(mask), Ordering::Relaxed);
    word.fetch_or(usize::from_ne_bytes(value), Ordering::Relaxed);
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with as many bytes, and borrowed by nobody any more.
        // Kept honest by `shared_memory.rs::memory_is_used_after_its_descriptor_is_closed`.
        unsafe { sys::unmap(self.memory, self.bytes) };
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

// No system call in here: the one part of what is unsafe that an interpreter can run.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::envelope::Control;

    #[test]
    fn buffers_lie_beside_each_other() {
        let pool = Pool::new(3);
        let numbers: Vec<u16> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(numbers, [0, 1, 2]);
        for number in numbers {
            let mut lease = pool.lend(number, 0..PACKET_BYTES_MAX);
            lease.bytes_mut().fill(number as u8 + 1);
            lease.bytes_mut()[PACKET_BYTES_MAX - 1] = 0;
            assert_eq!(lease.bytes()[0], number as u8 + 1);
        }
        assert_eq!((pool.take(), pool.lent()), (Some(2), 0));
        assert_eq!(pool.lend(1, 0..2).bytes(), [2, 2]);
    }

    #[test]
    fn a_lease_outlives_whoever_lent_it() {
        let pool = Pool::new(2);
        let number = pool.take().unwrap();
        let mut lease = pool.lend(number, 10..30);
        drop(pool);
        lease.bytes_mut().copy_from_slice(b"twenty bytes of text");
        lease.narrow(7..12);
        assert_eq!(lease.bytes(), b"bytes");
        lease.narrow(5..5);
        assert_eq!(lease.bytes(), b"");
    }

    const HEAD: &[u8; LANDING_HEAD_BYTES] = b"this is expected";

    /// What a kernel does with this message, and what is found in the buffer and in the landing then.
    fn received(landing: &Landing, message: &[u8]) -> (Vec<u8>, usize) {
        let mut buffer = [0; 64];
        let mut site = landing.0.borrow_mut();
        let expected = site.expected.unwrap();
        let receive = |[head, behind]: [&mut [u8]; 2], piece: &mut [MaybeUninit<u8>]| {
            let ends = [head.len(), head.len() + piece.len()].map(|end| end.min(message.len()));
            head.iter_mut().zip(message).for_each(|(place, byte)| *place = *byte);
            for (place, byte) in piece.iter_mut().zip(&message[ends[0]..]) {
                place.write(*byte);
            }
            behind.iter_mut().zip(&message[ends[1]..]).for_each(|(place, byte)| *place = *byte);
            let (bytes_lost, control_lost) = (false, false);
            let (length, control) = (message.len(), Control::default());
            Ok(Taken { length, landed: 0, control, bytes_lost, control_lost })
        };
        let Taken { length, landed, .. } = site.receive_with(expected, &mut buffer, receive).unwrap();
        (buffer[..length - landed].to_vec(), landed)
    }

    fn landing_of(bytes: &[u8], capacity: usize) -> Landing {
        let mut place = Vec::with_capacity(capacity);
        place.extend_from_slice(bytes);
        Landing::new(place)
    }

    #[test]
    fn what_is_expected_lands_behind_what_is_there() {
        let landing = landing_of(b"one ", 20);
        landing.expect(HEAD, 4);
        assert_eq!(received(&landing, &[HEAD.as_slice(), b"two "].concat()), (HEAD.to_vec(), 4));
        assert_eq!(landing.len(), 4, "nobody has looked at it");
        assert_eq!(landing.take_landed(), 4);
        assert_eq!(landing.take_landed(), 0, "once");
        landing.push(b"three");
        assert_eq!(landing.take_bytes(), b"one two three");
        assert_eq!((landing.capacity(), landing.is_empty()), (0, true), "the memory is not kept");
    }

    #[test]
    fn what_is_not_expected_is_moved_back() {
        let landing = landing_of(b"", 4);
        let messages: [&[u8]; 7] = [
            b"",
            b"short",
            b"as long as a hea",
            b"this is expectes1234",
            b"this is expected123",
            b"this is expected12345",
            b"something longer than all that is expected",
        ];
        for message in messages {
            landing.expect(HEAD, 4);
            assert_eq!(received(&landing, message), (message.to_vec(), 0));
            assert_eq!(landing.take_landed(), 0);
            assert!(landing.0.borrow().expected.is_none(), "it would have been the next of all");
        }
    }

    #[test]
    fn what_has_landed_and_nobody_took_is_not_shown() {
        let landing = landing_of(b"", 8);
        let message = [HEAD.as_slice(), b"1234"].concat();
        for forget in [|landing: &Landing| landing.push(b"5"), |landing: &Landing| landing.clear(8)] {
            landing.expect(HEAD, 4);
            assert_eq!(received(&landing, &message).1, 4);
            forget(&landing);
            assert_eq!(landing.take_landed(), 0);
        }
        assert!(landing.is_empty());
    }

    #[test]
    #[should_panic(expected = "capacity")]
    fn no_more_is_expected_than_there_is_room_for() {
        landing_of(b"12345", 8).expect(HEAD, 4);
    }

    #[test]
    fn a_part_of_a_word_is_written_and_the_rest_left_alone() {
        for place in 0..WORD {
            for length in 1..=WORD - place {
                let word = AtomicUsize::new(usize::MAX);
                write_part(&word, place, &vec![7; length]);
                let seen = word.load(Ordering::Relaxed).to_ne_bytes();
                let is_written = |at: &usize| (place..place + length).contains(at);
                assert!((0..WORD).all(|at| seen[at] == if is_written(&at) { 7 } else { 255 }), "{seen:?}");
            }
        }
    }
}
