//! Messages as the kernel wants them: a `msghdr` with everything it points at, in one box that never moves;
//! and control data, which becomes `OwnedFd`s before anything else can happen to it.
//!
//! An envelope owns its bytes and its descriptors until it is dropped. It does not know sockets' queues,
//! drivers or who is waiting.

// Lengths in a `msghdr` are `size_t` with glibc and `socklen_t` with musl.
#![allow(clippy::unnecessary_cast)]

#[cfg(uring)]
use std::cell::UnsafeCell;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
#[cfg(uring)]
use std::sync::atomic::{Ordering, compiler_fence};

use crate::fd::{DESCRIPTORS_MAX, Descriptors, Fd, Shell};
use crate::message::{Credentials, Fds, Message};
use crate::sys::UnixAddress;

/// How many [pieces](crate::Socket::send_pieces) all sockets of a reactor send at once between two of its
/// turns: 3, as many as fill the kernel's queue at the usual SO_SNDBUF. Besides the one that each
/// socket has in its turn, everybody else waits for no more than that.
pub const PIECES_SENT_AT_ONCE_MAX: usize = 3;

/// How many messages leave with one system call, where each would otherwise take one: as many as somebody
/// connects at once, and 2 KiB of headers.
pub(crate) const SENT_TOGETHER_MAX: usize = 32;

/// A message on its way out.
pub(crate) struct Envelope {
    header: libc::msghdr,
    vectors: [libc::iovec; 2],
    bytes: Vec<u8>,
    /// What follows the bytes: a piece of something larger, which is not copied for it.
    piece: Option<(Arc<Vec<u8>>, Range<usize>)>,
    /// The control message, as `u64` for its alignment. The list of descriptors *is* this.
    control: Vec<u64>,
    descriptors: Fds,
    /// Of one post among others: what its descriptors were attached to, which goes without saying if they
    /// cannot be sent.
    carrier: Option<Carrier>,
    /// What is said in its place.
    instead: Vec<u8>,
    /// How much of a stream's bytes the kernel has taken.
    sent: usize,
}

/// The bytes that came with descriptors, and what is done about them if those cannot be sent.
struct Carrier {
    bytes: Range<usize>,
    /// Under which number somebody is told.
    told: Option<u64>,
}

/// What becomes of a post that cannot be sent with its descriptors.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Otherwise<'a> {
    /// This is said in its place, without any: 1 to 102,080 bytes.
    Say(&'a [u8]),
    /// It is left out, and whoever has posted it [is told](crate::Socket::take_failed) under this number.
    Tell(u64),
}

impl Envelope {
    pub(crate) fn new(message: Message) -> Box<Envelope> {
        let (bytes, descriptors) = message.into_contents();
        let bytes = bytes.into_vec();
        // SAFETY: all zeroes is a valid `msghdr`. Kept honest by
        // `order.rs::four_sends_on_a_full_queue_arrive_in_order`.
        let header: libc::msghdr = unsafe { mem::zeroed() };
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let vectors = [nothing; 2];
        let (control, instead) = (Vec::new(), Vec::new());
        let (piece, carrier) = (None, None);
        Box::new(Envelope { header, vectors, bytes, piece, control, descriptors, carrier, instead, sent: 0 })
    }

    /// Puts a message into an empty one. What is left of it is empty: to move a message from hand to hand
    /// costs more than to take it apart where it stands.
    pub(crate) fn fill(&mut self, message: &mut Message) {
        assert!(self.descriptors.is_empty());
        message.move_into(&mut self.bytes, &mut self.descriptors);
    }

    /// Bytes in all.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len() + self.piece.as_ref().map_or(0, |(_, piece)| piece.len())
    }

    pub(crate) fn descriptors(&self) -> &[Fd] {
        &self.descriptors
    }

    pub(crate) fn has_descriptors(&self) -> bool {
        !self.descriptors.is_empty()
    }

    /// Adds to a message that has not been sealed yet.
    pub(crate) fn append(&mut self, part: &[u8]) {
        assert_eq!(self.sent, 0, "nothing is added to a message on its way");
        self.bytes.extend_from_slice(part);
    }

    /// Adds a piece of something larger, which is not copied for it, at the end of a message that has not
    /// been sealed yet. Not for streams, which may take a part of it.
    pub(crate) fn append_piece(&mut self, whole: Arc<Vec<u8>>, piece: Range<usize>) {
        assert!(piece.end <= whole.len(), "a piece is of what is there");
        assert!(self.piece.is_none(), "one piece is the end");
        self.piece = Some((whole, piece));
    }

    /// Adds descriptors to a message that has none and has not been sealed yet.
    pub(crate) fn attach(&mut self, descriptors: Fds) {
        assert!(self.descriptors.is_empty());
        self.descriptors = descriptors;
    }

    /// Says what becomes of the last so many bytes if the descriptors, which are theirs, cannot be sent.
    pub(crate) fn provide(&mut self, length: usize, otherwise: Otherwise<'_>) {
        assert!(self.carrier.is_none(), "descriptors are of one post");
        let told = match otherwise {
            Otherwise::Say(instead) => {
                self.instead.extend_from_slice(instead);
                None
            }
            Otherwise::Tell(number) => Some(number),
        };
        self.carrier = Some(Carrier { bytes: self.bytes.len() - length..self.bytes.len(), told });
    }

    /// Bytes in all, with or without its descriptors: what is said in their place may be longer.
    #[inline]
    pub(crate) fn length_at_most(&self) -> usize {
        match &self.carrier {
            Some(Carrier { bytes, .. }) => self.length() + self.instead.len().saturating_sub(bytes.len()),
            None => self.length(),
        }
    }

    /// Whether somebody has said what becomes of it without its descriptors.
    pub(crate) fn is_provided_for(&self) -> bool {
        self.carrier.is_some()
    }

    /// The number under which somebody wants to be told if this is not sent.
    pub(crate) fn told(&self) -> Option<u64> {
        self.carrier.as_ref().and_then(|carrier| carrier.told)
    }

    /// Lets go of the descriptors, which could not be sent, and of what was said with them; and says what is
    /// to be said instead. What else is in it stays.
    pub(crate) fn go_without(&mut self) {
        if let Some(Carrier { bytes, .. }) = self.carrier.take() {
            self.bytes.splice(bytes, self.instead.drain(..));
        }
        self.descriptors.clear();
        self.sent = 0;
    }

    /// Lets go of everything, but for the memory. Each descriptor is closed, if nobody else holds it, and
    /// what is left of it told.
    #[inline]
    pub(crate) fn clear(&mut self, left: impl FnMut(Shell)) {
        self.bytes.clear();
        self.sent = 0;
        if !self.is_bytes_alone() {
            self.clear_the_rest(left);
        }
    }

    #[inline(never)]
    fn clear_the_rest(&mut self, left: impl FnMut(Shell)) {
        self.piece = None;
        self.descriptors.drain(..).filter_map(Fd::close).for_each(left);
        self.carrier = None;
        self.instead.clear();
    }

    /// Whether it has nothing but bytes of its own, as most have.
    #[inline]
    fn is_bytes_alone(&self) -> bool {
        self.piece.is_none() && self.descriptors.is_empty() && self.carrier.is_none()
    }

    /// How many bytes it has memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Lets go of the descriptors, which could not be sent.
    pub(crate) fn leave_descriptors(&mut self) {
        self.descriptors.clear();
    }

    /// Points the header at what is to be sent now. From here until the kernel has answered, nothing moves.
    #[inline]
    pub(crate) fn seal(&mut self) {
        let rest = &mut self.bytes[self.sent..];
        self.vectors[0].iov_base = rest.as_mut_ptr().cast();
        self.vectors[0].iov_len = rest.len();
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = 1;
        self.header.msg_control = ptr::null_mut();
        self.header.msg_controllen = 0;
        if !self.is_bytes_alone() {
            self.seal_the_rest();
        }
    }

    #[inline(never)]
    fn seal_the_rest(&mut self) {
        assert!(self.descriptors.len() <= DESCRIPTORS_MAX);
        if let Some((whole, piece)) = &self.piece {
            let piece = &whole[piece.clone()];
            // Sending only reads, though an `iovec` does not say so.
            self.vectors[1].iov_base = piece.as_ptr().cast_mut().cast();
            self.vectors[1].iov_len = piece.len();
            self.header.msg_iovlen = 2;
        }
        // Descriptors go with a stream's first byte and must not go again with its rest.
        if !self.descriptors.is_empty() && self.sent == 0 {
            let length = self.write_control();
            self.header.msg_control = self.control.as_mut_ptr().cast();
            self.header.msg_controllen = length as _;
        }
    }

    /// Shows the kernel no more than so many bytes of a sealed message: what a stream takes when its buffer
    /// is nearly full.
    #[cfg(feature = "script")]
    pub(crate) fn seal_at_most(&mut self, bytes: usize) {
        self.vectors[0].iov_len = self.vectors[0].iov_len.min(bytes);
    }

    /// Writes the one SCM_RIGHTS message and says how long it is.
    fn write_control(&mut self) -> usize {
        let words = rights_bytes(self.descriptors.len()).div_ceil(mem::size_of::<u64>());
        // What it held before is written over.
        if self.control.len() < words {
            self.control.resize(words, 0);
        }
        write_rights(&mut self.control, self.descriptors.iter().map(|fd| fd.as_fd().as_raw_fd()))
    }

    /// The sealed header, for a driver to show to the kernel.
    pub(crate) fn header(&self) -> *const libc::msghdr {
        &raw const self.header
    }

    /// The kernel took `count` bytes. Says whether anything is left, which only a stream can have.
    pub(crate) fn advance(&mut self, count: usize) -> bool {
        self.sent += count;
        assert!(self.sent <= self.length(), "the kernel took more than it was given");
        self.sent < self.length()
    }

    /// Whether a stream has taken a part: the rest must follow.
    pub(crate) fn is_under_way(&self) -> bool {
        self.sent > 0
    }

    /// Sends a sealed envelope now, without waiting and without a signal.
    #[inline]
    pub(crate) fn send(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        match self.bare() {
            Some(bytes) => send_bytes(fd, bytes),
            None => self.send_with_header(fd),
        }
    }

    /// What it is, sealed or not, if that is bytes in one piece and nothing else, of which none have gone.
    #[inline]
    pub(crate) fn bytes_alone(&self) -> Option<&[u8]> {
        let alone = self.is_bytes_alone() && self.sent == 0;
        alone.then_some(&*self.bytes)
    }

    /// What is to be sent now, if that is bytes in one piece and nothing else.
    #[inline]
    pub(crate) fn bare(&self) -> Option<&[u8]> {
        let libc::msghdr { msg_name, msg_controllen, .. } = self.header;
        let bare = msg_controllen == 0 && msg_name.is_null() && self.piece.is_none();
        bare.then(|| &self.bytes[self.sent..][..self.vectors[0].iov_len])
    }

    #[inline(never)]
    fn send_with_header(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: sealed by the caller, and nothing it points at moves while the call runs.
        // Kept honest by `order.rs::four_sends_on_a_full_queue_arrive_in_order`.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), self.header(), SEND_FLAGS) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    /// The same, to a name.
    pub(crate) fn send_to(&mut self, fd: BorrowedFd<'_>, to: &UnixAddress) -> io::Result<usize> {
        // The kernel only reads it.
        self.header.msg_name = (&raw const to.address).cast_mut().cast();
        self.header.msg_namelen = to.length;
        let result = self.send(fd);
        self.header.msg_name = ptr::null_mut();
        self.header.msg_namelen = 0;
        result
    }
}

/// Sends bytes that lie in one piece and have nothing beside them. There is no header for the kernel to fetch
/// then, and what that points at: a sixtieth of a round trip.
#[inline]
pub(crate) fn send_bytes(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are borrowed for the length of the call, which only reads them.
    // Kept honest by `order.rs::four_sends_on_a_full_queue_arrive_in_order`.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Sends pieces of one whole now, with one system call, each behind bytes of its own and in a message of its
/// own; no more than [`PIECES_SENT_AT_ONCE_MAX`]. Says how many have gone: if not all, then the next cannot
/// go now.
pub(crate) fn send_pieces(
    fd: BorrowedFd<'_>,
    whole: &[u8],
    pieces: &[(&[u8], Range<usize>)],
) -> io::Result<usize> {
    let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut vectors = [[nothing; 2]; PIECES_SENT_AT_ONCE_MAX];
    // SAFETY: all zeroes is a valid `mmsghdr`. Kept honest by
    // `order.rs::pieces_that_are_sent_together_arrive_in_order`.
    let mut headers: [libc::mmsghdr; PIECES_SENT_AT_ONCE_MAX] = unsafe { mem::zeroed() };
    let count = pieces.len().min(PIECES_SENT_AT_ONCE_MAX);
    for (place, (bytes, piece)) in pieces[..count].iter().enumerate() {
        // Sending only reads, though an `iovec` does not say so.
        let vector =
            |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        vectors[place] = [vector(bytes), vector(&whole[piece.clone()])];
        headers[place].msg_hdr.msg_iov = vectors[place].as_mut_ptr();
        headers[place].msg_hdr.msg_iovlen = 2;
    }
    // SAFETY: the headers point at memory of this frame and of the caller's, with its true lengths, and
    // nothing of it moves while the call runs.
    // Kept honest by `order.rs::pieces_that_are_sent_together_arrive_in_order`.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as _, SEND_FLAGS as _) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Sends these sealed envelopes now, with one system call, each in a message of its own; no more than
/// [`SENT_TOGETHER_MAX`]. Says how many have gone: if not all, then the next cannot go now.
pub(crate) fn send_together<'a>(
    fd: BorrowedFd<'_>,
    envelopes: impl Iterator<Item = &'a Envelope>,
) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid `mmsghdr`. Kept honest by
    // `at_once.rs::of_those_that_may_overtake_the_first_goes_at_once_and_the_others_together`.
    let mut headers: [libc::mmsghdr; SENT_TOGETHER_MAX] = unsafe { mem::zeroed() };
    let mut count = 0;
    for (header, envelope) in headers.iter_mut().zip(envelopes) {
        header.msg_hdr = envelope.header;
        count += 1;
    }
    // SAFETY: sealed by the caller, who lends them for longer than the call takes, and so nothing that the
    // headers point at moves meanwhile. Kept honest by
    // `at_once.rs::of_those_that_may_overtake_the_first_goes_at_once_and_the_others_together`.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as _, SEND_FLAGS as _) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Never wait in the kernel (the wait is ours), never a signal.
pub(crate) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Every descriptor arrives close-on-exec.
pub(crate) const RECEIVE_FLAGS: libc::c_int = libc::MSG_CMSG_CLOEXEC;

const CONTROL_HEADER: usize = align(mem::size_of::<libc::cmsghdr>());

const fn align(length: usize) -> usize {
    length.next_multiple_of(mem::size_of::<usize>())
}

// The same as the C library's macros have, whatever the size of a pointer; and a list of `u64`, which on 32
// bits is aligned to four bytes, holds a header where it may be.
// SAFETY: arithmetic. Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
const _: () = assert!(unsafe { libc::CMSG_LEN(0) } as usize == CONTROL_HEADER);
// SAFETY: arithmetic. Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
const _: () = assert!(unsafe { libc::CMSG_SPACE(4 * 253) } as usize == rights_bytes(253));
const _: () = assert!(mem::align_of::<libc::cmsghdr>() <= mem::align_of::<u64>());

/// How long control data with so many descriptors is.
const fn rights_bytes(descriptors: usize) -> usize {
    CONTROL_HEADER + align(mem::size_of::<RawFd>() * descriptors)
}

/// Writes one SCM_RIGHTS message with these descriptors and says how long it is.
fn write_rights(into: &mut [u64], numbers: impl ExactSizeIterator<Item = RawFd>) -> usize {
    let length = rights_bytes(numbers.len());
    assert!(length <= mem::size_of_val(into));
    // SAFETY: all zeroes is a valid `cmsghdr`. Kept honest by
    // `descriptors.rs::many_descriptors_arrive_in_order`.
    let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
    header.cmsg_len = (CONTROL_HEADER + mem::size_of::<RawFd>() * numbers.len()) as _;
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    let start = into.as_mut_ptr().cast::<u8>();
    // SAFETY: `into` has at least `length` bytes, of which the header is the first few.
    // Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
    unsafe { start.cast::<libc::cmsghdr>().write(header) };
    for (place, number) in numbers.enumerate() {
        let offset = CONTROL_HEADER + place * mem::size_of::<RawFd>();
        // SAFETY: `offset` and the four bytes after it are within `length`.
        // Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
        let slot = unsafe { start.add(offset) };
        // SAFETY: as above; a `RawFd` is written where no alignment is promised.
        // Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
        unsafe { slot.cast::<RawFd>().write_unaligned(number) };
    }
    length
}

/// What a receive is ready to take besides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// At most `DESCRIPTORS_MAX`; small, since each socket and each receive has one.
    pub(crate) descriptors: u16,
    pub(crate) pidfd: bool,
}

impl Room {
    /// Bytes of control data: the sender's credentials, then exactly so many descriptors, then the pidfd.
    ///
    /// Exactly: the kernel fills alignment padding with descriptors too, so that `CMSG_SPACE(4)` admits two.
    /// A pidfd comes last and needs the padding, so with one wanted a descriptor more may slip in.
    ///
    /// Where there is room for all the descriptors that a message can carry, there is as much again as we
    /// have: other holders of the socket may ask for times or labels (SO_TIMESTAMP, SO_PASSSEC), which come
    /// before the descriptors, and in a room that was measured to the byte the last eight were lost.
    pub(crate) const fn bytes(self) -> usize {
        if self.descriptors as usize >= DESCRIPTORS_MAX {
            return CONTROL_WORDS_MAX * mem::size_of::<u64>();
        }
        const CREDENTIALS: usize = CONTROL_HEADER + align(mem::size_of::<libc::ucred>());
        let data = self.descriptors as usize * mem::size_of::<RawFd>();
        match (self.descriptors, self.pidfd) {
            (0, false) => CREDENTIALS,
            (_, false) => CREDENTIALS + CONTROL_HEADER + data,
            (_, true) => CREDENTIALS + CONTROL_HEADER + align(data) + CONTROL_HEADER + align(4),
        }
    }

    /// The widest there is: nothing that can be sent is kept back by the kernel for want of space.
    pub(crate) const WIDEST: Room = Room { descriptors: DESCRIPTORS_MAX as u16, pidfd: true };
}

/// What the widest room needs is 136 of these, in `u64`. The rest is for what other holders of a socket ask
/// for: three kinds of time (96 bytes) and a label.
const CONTROL_WORDS_MAX: usize = 192;

/// In `u64`, for up to twelve descriptors.
const CONTROL_OF_FEW: usize = 8;

/// Everything that came beside the bytes.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) descriptors: Descriptors,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) pidfd: Option<OwnedFd>,
}

impl Control {
    /// Takes ownership of every descriptor named in received control data.
    ///
    /// # Safety
    /// `bytes` is control data the kernel wrote for a message received by this process, and this is the only
    /// time it is claimed.
    #[inline]
    pub(crate) unsafe fn claim(bytes: &[u8]) -> Control {
        // Of most messages there is none, and then nothing is to be carried from there to here.
        if bytes.is_empty() {
            return Control::default();
        }
        // SAFETY: as its caller says. Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
        unsafe { Control::claim_some(bytes) }
    }

    /// # Safety
    /// See `claim`.
    #[inline(never)]
    unsafe fn claim_some(mut bytes: &[u8]) -> Control {
        let mut control = Control::default();
        while bytes.len() >= mem::size_of::<libc::cmsghdr>() {
            // SAFETY: there are enough bytes for a header; alignment is not assumed.
            // Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
            let header = unsafe { bytes.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
            let length = header.cmsg_len as usize;
            if length < CONTROL_HEADER || length > bytes.len() {
                break;
            }
            control.file(header.cmsg_level, header.cmsg_type, &bytes[CONTROL_HEADER..length]);
            bytes = &bytes[align(length).min(bytes.len())..];
        }
        control
    }

    /// One control message, by level and type; those we do not know are skipped.
    fn file(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        const SCM_PIDFD: libc::c_int = 4;
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                self.descriptors.reserve(numbers(data).len());
                for number in numbers(data) {
                    // SAFETY: the kernel has just installed this number in our table for this message.
                    // Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
                    self.descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                // A negative number says that the kernel had no descriptor left for it.
                let number = numbers(data).next().filter(|number| *number >= 0);
                // SAFETY: as above. Kept honest by `descriptors.rs::a_pidfd_names_the_sender`.
                self.pidfd = number.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                let mut fields = numbers(data);
                if let (Some(pid), Some(uid), Some(gid)) = (fields.next(), fields.next(), fields.next()) {
                    self.credentials = Some(Credentials { pid, uid: uid as u32, gid: gid as u32 });
                }
            }
            _ => {}
        }
    }

    /// Whether there was any control data that we know: on a socket that asks for credentials, its absence
    /// beside zero bytes is the end of file.
    pub(crate) fn is_empty(&self) -> bool {
        self.credentials.is_none() && self.descriptors.is_empty() && self.pidfd.is_none()
    }
}

fn numbers(data: &[u8]) -> impl ExactSizeIterator<Item = i32> + '_ {
    data.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

/// One message taken from a socket.
pub(crate) struct Taken {
    pub(crate) length: usize,
    /// How many of these bytes are in a landing.
    pub(crate) landed: usize,
    pub(crate) control: Control,
    /// MSG_TRUNC: bytes are missing.
    pub(crate) bytes_lost: bool,
    /// MSG_CTRUNC: control data, and so perhaps descriptors, are missing.
    pub(crate) control_lost: bool,
}

/// Sends parts as one packet, now, without waiting and without a signal, with descriptors that stay ours.
pub(crate) fn send_parts(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[impl AsFd],
) -> io::Result<usize> {
    assert!(descriptors.len() <= DESCRIPTORS_MAX);
    // SAFETY: all zeroes is a valid `msghdr`. Kept honest by
    // `blocking.rs::a_message_of_parts_arrives_whole_with_its_descriptors`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    // An `IoSlice` is an `iovec`; the kernel reads it and what it points at.
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = parts.len() as _;
    if descriptors.is_empty() {
        return send_header(fd, &header);
    }
    // Mostly there is one, and to fill room for all there can be with zeroes would take longer than the rest.
    let (mut few, mut many);
    let control = if rights_bytes(descriptors.len()) <= CONTROL_OF_FEW * mem::size_of::<u64>() {
        few = [0_u64; CONTROL_OF_FEW];
        few.as_mut_slice()
    } else {
        many = [0_u64; CONTROL_WORDS_MAX];
        many.as_mut_slice()
    };
    let numbers = descriptors.iter().map(|fd| fd.as_fd().as_raw_fd());
    header.msg_controllen = write_rights(control, numbers) as _;
    header.msg_control = control.as_mut_ptr().cast();
    send_header(fd, &header)
}

/// Sends what a header points at, all of which its caller has borrowed.
fn send_header(fd: BorrowedFd<'_>, header: &libc::msghdr) -> io::Result<usize> {
    // SAFETY: everything the header points at is borrowed for the length of the call.
    // Kept honest by `blocking.rs::a_message_of_parts_arrives_whole_with_its_descriptors`.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), header, SEND_FLAGS) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Where the bytes of a message go: one piece of memory, or three, one behind the other.
pub(crate) struct Place<'a> {
    vectors: [libc::iovec; 3],
    count: usize,
    /// What they point at.
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Place<'a> {
    pub(crate) fn one(into: &'a mut [u8]) -> Place<'a> {
        Place { vectors: [vector_of(into), NOWHERE, NOWHERE], count: 1, borrowed: PhantomData }
    }

    pub(crate) fn around(
        before: &'a mut [u8],
        piece: &'a mut [MaybeUninit<u8>],
        behind: &'a mut [u8],
    ) -> Place<'a> {
        let vectors = [vector_of(before), vector_of(piece), vector_of(behind)];
        Place { vectors, count: 3, borrowed: PhantomData }
    }
}

const NOWHERE: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Receives now, without waiting.
pub(crate) fn receive(fd: BorrowedFd<'_>, into: &mut [u8], room: Room) -> io::Result<Taken> {
    receive_in(fd, Place::one(into), room)
}

/// The same, into whatever place.
pub(crate) fn receive_in(fd: BorrowedFd<'_>, place: Place<'_>, room: Room) -> io::Result<Taken> {
    receive_with(fd, place, room, RECEIVE_FLAGS | libc::MSG_DONTWAIT)
}

/// Receives, asleep in the kernel until there is something. Whoever has made the open description
/// non-blocking, or given it a time limit, makes this say `WouldBlock`.
pub(crate) fn receive_asleep(fd: BorrowedFd<'_>, into: &mut [u8], room: Room) -> io::Result<Taken> {
    receive_with(fd, Place::one(into), room, RECEIVE_FLAGS)
}

/// Memory of somebody's who has borrowed it to us for longer than this is used.
fn vector_of<T>(into: &mut [T]) -> libc::iovec {
    libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: mem::size_of_val(into) }
}

/// The header of a receive that sleeps and that somebody else may end: with a write to its [weak
/// place](Snare::weak_place). If that comes before the receive has begun, it fails (EFAULT). If the receive
/// sleeps already and is interrupted after the write, the kernel begins it again, and then it fails.
///
/// It stands where it is for as long as it exists.
#[cfg(uring)]
pub(crate) struct Snare(Box<UnsafeCell<libc::msghdr>>);

#[cfg(uring)]
impl Snare {
    pub(crate) fn new() -> Snare {
        // SAFETY: all zeroes is a valid `msghdr`.
        // Kept honest by `sleeping.rs::a_message_ends_a_sleep_in_its_socket`.
        Snare(Box::new(UnsafeCell::new(unsafe { mem::zeroed() })))
    }

    /// Where the kernel is told of the memory for bytes: eight bytes, of which a small number makes an
    /// address where nothing can be.
    pub(crate) fn weak_place(&self) -> *mut u8 {
        let header = self.0.get();
        // SAFETY: within the header. Kept honest by `sleeping.rs::another_socket_ends_it`.
        unsafe { (&raw mut (*header).msg_iov).cast() }
    }

    /// Receives, asleep in the kernel until there is something, unless a last look finds a reason not to.
    /// `WouldBlock` then, and where somebody has made the open description non-blocking; EFAULT if it was
    /// ended.
    pub(crate) fn receive_asleep(
        &self,
        fd: BorrowedFd<'_>,
        place: Place<'_>,
        room: Room,
        last_look: impl FnOnce() -> bool,
    ) -> io::Result<Taken> {
        receive_by(place, room, |prepared| {
            let header = self.0.get();
            // SAFETY: nobody else writes to it but the kernel, on this thread's behalf and in place of it.
            // Volatile, because the kernel may do so between this and the call below.
            // Kept honest by `sleeping.rs::another_socket_ends_it`.
            unsafe { header.write_volatile(*prepared) };
            compiler_fence(Ordering::SeqCst);
            if !last_look() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // The system call itself: the function of that name may hand the kernel a copy (musl's does), and
            // then nobody would ever be woken.
            // SAFETY: the header points at what `prepared` does, or at nothing; the kernel checks.
            // Kept honest by `sleeping.rs::another_socket_ends_it`.
            let length = unsafe { libc::syscall(libc::SYS_recvmsg, fd.as_raw_fd(), header, RECEIVE_FLAGS) };
            // SAFETY: as above. Kept honest by `sleeping.rs::a_message_ends_a_sleep_in_its_socket`.
            *prepared = unsafe { header.read_volatile() };
            Ok(length as isize)
        })
    }
}

#[inline]
fn receive_with(fd: BorrowedFd<'_>, place: Place<'_>, room: Room, flags: libc::c_int) -> io::Result<Taken> {
    receive_by(place, room, |header| {
        // SAFETY: see `receive_by`. Kept honest by `descriptors.rs::many_descriptors_arrive_in_order`.
        Ok(unsafe { libc::recvmsg(fd.as_raw_fd(), header, flags) })
    })
}

/// Receives by this call, which is given a header that points at memory of this frame, and at what the
/// callers have borrowed for `place`, with their true lengths; and which leaves there what the kernel says.
#[inline(always)]
fn receive_by(
    mut place: Place<'_>,
    room: Room,
    call: impl FnOnce(&mut libc::msghdr) -> io::Result<isize>,
) -> io::Result<Taken> {
    // Not zeroed, which would take as long as the rest of this: only what the kernel has filled is read.
    let mut control = MaybeUninit::<[u64; CONTROL_WORDS_MAX]>::uninit();
    let control_bytes = room.bytes();
    assert!(control_bytes <= mem::size_of_val(&control));
    let into = &mut place.vectors[..place.count];
    let bytes_max: usize = into.iter().map(|vector| vector.iov_len).sum();
    // SAFETY: all zeroes is a valid `msghdr`. Kept honest by
    // `descriptors.rs::many_descriptors_arrive_in_order`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = into.as_mut_ptr();
    header.msg_iovlen = into.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control_bytes as _;
    let length = call(&mut header)?;
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let filled = (header.msg_controllen as usize).min(control_bytes);
    // SAFETY: the kernel wrote `filled` bytes of the array. Kept honest by
    // `descriptors.rs::many_descriptors_arrive_in_order`.
    let bytes = unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), filled) };
    // SAFETY: control data of the message just received, claimed here and nowhere else.
    // Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
    let control = unsafe { Control::claim(bytes) };
    Ok(Taken {
        length: (length as usize).min(bytes_max),
        landed: 0,
        control,
        bytes_lost: header.msg_flags & libc::MSG_TRUNC != 0,
        control_lost: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Whether nothing is queued on a socket that is about to be closed. Takes one message to find out.
pub(crate) fn is_empty(fd: BorrowedFd<'_>) -> bool {
    let mut byte = [0_u8; 1];
    // Twice, because a reset is reported once in front of what is queued.
    for _ in 0..2 {
        match receive(fd, &mut byte, Room::WIDEST) {
            Ok(taken) => return taken.length == 0 && taken.control.is_empty(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            // A listener, whose queue holds connections: nobody can tell from here what is in those.
            Err(_) => return false,
        }
    }
    false
}
