//! One message: [`Message`] to send, [`Received`] to take apart.
//!
//! They own their bytes and descriptors. What a message means is for others.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::buffer::Lease;
use crate::envelope::Control;
use crate::fd::{Descriptors, Fd};

/// The largest message a socket receives whole, in bytes. A longer one arrives as
/// [`ReceiveError::Truncated`](crate::ReceiveError::Truncated).
///
/// It belongs to the protocols built on this crate, not to anybody's SO_SNDBUF (212,992 bytes by default,
/// which another holder of a shared socket can change).
///
/// It is the largest for which the kernel needs no more than 32 KiB in one piece: it gives a packet 17 pages
/// (of 4 KiB), and what they do not hold has to lie together. For one byte more it would look for 64 KiB,
/// which it does not keep at hand, and two instead of three would fit a queue at the usual SO_SNDBUF.
pub const PACKET_BYTES_MAX: usize = 102_080;

/// A message to send: bytes, and up to [`DESCRIPTORS_MAX`](crate::DESCRIPTORS_MAX) descriptors in order.
///
/// ```
/// use ring::Message;
/// let (reader, _writer) = std::io::pipe()?;
/// let message = Message::from("here is a pipe").with_descriptor(std::os::fd::OwnedFd::from(reader));
/// assert_eq!(message.bytes(), b"here is a pipe");
/// assert_eq!(message.descriptors().len(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Message {
    bytes: Bytes,
    descriptors: Fds,
}

/// What a message is sent with: mostly nothing or one, which stands in the message itself.
pub(crate) type Fds = SmallVec<[Fd; 2]>;

/// For how many there is memory once there are more than stand in the message.
const SPILLED: usize = 8;

/// So many bytes stand in a message itself, and cost no allocation.
pub const BYTES_INSIDE_MAX: usize = 120;

/// Bytes that somebody owns: up to [`BYTES_INSIDE_MAX`] in place, more of them in memory of their own.
///
/// ```
/// let few = ring::Bytes::from(b"few".as_slice());
/// assert_eq!(&*few, b"few");
/// assert_eq!(few.into_vec(), b"few");
/// ```
#[derive(Clone)]
pub struct Bytes(Place);

#[derive(Clone)]
enum Place {
    Inside {
        bytes: [u8; BYTES_INSIDE_MAX],
        length: u8,
    },
    Outside(Vec<u8>),
    /// Others may have them too.
    Shared(Arc<Vec<u8>>),
}

impl Bytes {
    /// As a vector, which the few have to be copied into, and those that others have too.
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Place::Inside { .. } => self.to_vec(),
            Place::Outside(bytes) => bytes,
            Place::Shared(bytes) => Arc::unwrap_or_clone(bytes),
        }
    }

    /// To be shared, for which the few have to be copied.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// let shared = Arc::new(vec![7; 1000]);
    /// assert!(Arc::ptr_eq(&shared, &ring::Bytes::from(Arc::clone(&shared)).into_shared()));
    /// ```
    pub fn into_shared(self) -> Arc<Vec<u8>> {
        match self.0 {
            Place::Shared(bytes) => bytes,
            _ => Arc::new(self.into_vec()),
        }
    }

    /// Puts the bytes into an empty vector: the few are copied there, and of the many it becomes the vector.
    fn move_into(&mut self, empty: &mut Vec<u8>) {
        assert!(empty.is_empty());
        match &self.0 {
            Place::Inside { bytes, length } => empty.extend_from_slice(&bytes[..usize::from(*length)]),
            Place::Outside(_) | Place::Shared(_) => *empty = std::mem::take(self).into_vec(),
        }
        self.release();
    }

    /// None, and a place for a few.
    #[inline]
    fn inside() -> Bytes {
        Bytes(Place::Inside { bytes: [0; BYTES_INSIDE_MAX], length: 0 })
    }

    /// Becomes a copy of these bytes, in place where they are few.
    #[inline]
    pub fn copy_from(&mut self, from: &[u8]) {
        if from.len() > BYTES_INSIDE_MAX {
            self.0 = Place::Outside(from.to_vec());
            return;
        }
        // Made where it stands: to copy the bytes into one that is then moved here takes twice as long.
        if let Place::Outside(_) | Place::Shared(_) = self.0 {
            *self = Bytes::inside();
        }
        let Place::Inside { bytes, length } = &mut self.0 else { unreachable!("made above") };
        bytes[..from.len()].copy_from_slice(from);
        *length = from.len() as u8;
    }

    /// Becomes empty, and gives back memory of its own.
    #[inline]
    pub fn release(&mut self) {
        match &mut self.0 {
            Place::Inside { length, .. } => *length = 0,
            Place::Outside(bytes) => *bytes = Vec::new(),
            Place::Shared(_) => *self = Bytes::default(),
        }
    }

    /// As a vector in place.
    fn as_vec(&mut self) -> &mut Vec<u8> {
        if !matches!(self.0, Place::Outside(_)) {
            self.0 = Place::Outside(std::mem::take(self).into_vec());
        }
        match &mut self.0 {
            Place::Outside(bytes) => bytes,
            Place::Inside { .. } | Place::Shared(_) => unreachable!("moved out above"),
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(from: &[u8]) -> Bytes {
        if from.len() > BYTES_INSIDE_MAX {
            return Bytes(Place::Outside(from.to_vec()));
        }
        let mut bytes = [0; BYTES_INSIDE_MAX];
        bytes[..from.len()].copy_from_slice(from);
        Bytes(Place::Inside { bytes, length: from.len() as u8 })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(Place::Outside(bytes))
    }
}

impl From<Arc<Vec<u8>>> for Bytes {
    fn from(bytes: Arc<Vec<u8>>) -> Bytes {
        Bytes(Place::Shared(bytes))
    }
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes(Place::Outside(Vec::new()))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Inside { bytes, length } => &bytes[..usize::from(*length)],
            Place::Outside(bytes) => bytes,
            Place::Shared(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Message {
    /// A message of these bytes and no descriptors.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Message {
        Message { bytes: Bytes::from(bytes.into()), descriptors: Fds::new() }
    }

    /// The message with one more descriptor at its end. It is closed here once it has been sent.
    #[must_use]
    pub fn with_descriptor(mut self, fd: impl Into<Fd>) -> Message {
        self.push_descriptor(fd);
        self
    }

    /// Adds one more descriptor at the end.
    pub fn push_descriptor(&mut self, fd: impl Into<Fd>) {
        if self.descriptors.len() == self.descriptors.capacity() {
            // Who adds a third mostly adds more, and to move the list again for the fifth costs more than
            // all else that is done for it here.
            self.descriptors.reserve(self.descriptors.len().max(SPILLED - self.descriptors.inline_size()));
        }
        self.descriptors.push(fd.into());
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        self.bytes.as_vec()
    }

    /// The descriptors, in the order in which they will arrive.
    pub fn descriptors(&self) -> &[Fd] {
        &self.descriptors
    }

    /// Bytes and descriptors apart.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Fd>) {
        (self.bytes.into_vec(), self.descriptors.into_vec())
    }

    /// As [`into_parts`](Message::into_parts), and few bytes stay where they are.
    pub fn into_bytes_and_descriptors(self) -> (Bytes, Vec<Fd>) {
        (self.bytes, self.descriptors.into_vec())
    }

    /// Takes the descriptors out.
    #[inline]
    pub(crate) fn take_descriptors(&mut self) -> Fds {
        std::mem::take(&mut self.descriptors)
    }

    /// As it goes into an envelope.
    pub(crate) fn into_contents(self) -> (Bytes, Fds) {
        (self.bytes, self.descriptors)
    }

    /// As it goes into an envelope that is used again and empty. Nothing is left here.
    pub(crate) fn move_into(&mut self, bytes: &mut Vec<u8>, descriptors: &mut Fds) {
        self.bytes.move_into(bytes);
        std::mem::swap(&mut self.descriptors, descriptors);
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Message {
        Message::new(bytes)
    }
}

impl From<&[u8]> for Message {
    #[inline]
    fn from(bytes: &[u8]) -> Message {
        // Written where it stands: see `Bytes::copy_from`.
        let mut message = Message { bytes: Bytes::inside(), descriptors: Fds::new() };
        message.bytes.copy_from(bytes);
        message
    }
}

impl<const N: usize> From<&[u8; N]> for Message {
    fn from(bytes: &[u8; N]) -> Message {
        Message::from(bytes.as_slice())
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Message {
        Message::from(text.as_bytes())
    }
}

/// Bytes that others have too, or that are sent more than once: a large message is sent from where they lie,
/// and what fits a packet is copied, as ever.
///
/// ```
/// use std::sync::Arc;
/// let news = Arc::new(vec![7; 1 << 20]);
/// let (one, other) = (ring::Message::from(Arc::clone(&news)), ring::Message::from(news));
/// assert_eq!(one.bytes().as_ptr(), other.bytes().as_ptr());
/// ```
impl From<Arc<Vec<u8>>> for Message {
    fn from(bytes: Arc<Vec<u8>>) -> Message {
        Message { bytes: Bytes::from(bytes), descriptors: Fds::new() }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Message {
        Message::new(text)
    }
}

/// Who sent a message: filled in by the kernel, of the process that called `sendmsg`.
///
/// A message sent before the receiver asked for credentials has a `pid` of 0 and the overflow user
/// (65534). `pid` may have been taken over by another process by the time it is looked at; a
/// [pidfd](Received::take_pidfd) cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Process, in the receiver's pid namespace.
    pub pid: i32,
    /// Effective user, in the receiver's user namespace.
    pub uid: u32,
    /// Effective group, in the receiver's user namespace.
    pub gid: u32,
}

/// A message that arrived. What is not taken from it is closed when it is dropped, without making the thread
/// wait ([`discard`](crate::discard)).
pub struct Received {
    payload: Payload,
    control: Control,
}

/// Where the bytes of a message lie.
pub(crate) enum Payload {
    Lent(Lease),
    Owned(Vec<u8>),
}

impl Received {
    pub(crate) fn new(payload: Payload, control: Control) -> Received {
        Received { payload, control }
    }

    pub(crate) fn owned(bytes: Vec<u8>, control: Control) -> Received {
        Received { payload: Payload::Owned(bytes), control }
    }

    /// How many of its bytes are not [here](Received::bytes), but have been received behind those of the
    /// [`Landing`](crate::Landing) of its socket: none but where somebody has asked for that.
    #[inline]
    pub fn landed(&self) -> usize {
        match &self.payload {
            Payload::Lent(lease) => lease.landed(),
            Payload::Owned(_) => 0,
        }
    }

    /// How many bytes it has, here and there.
    #[inline]
    pub(crate) fn length(&self) -> usize {
        self.bytes().len() + self.landed()
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.payload {
            Payload::Lent(lease) => lease.bytes(),
            Payload::Owned(bytes) => bytes,
        }
    }

    /// The bytes, to keep.
    pub fn into_bytes(mut self) -> Vec<u8> {
        match std::mem::replace(&mut self.payload, Payload::Owned(Vec::new())) {
            Payload::Lent(lease) => lease.bytes().to_vec(),
            Payload::Owned(bytes) => bytes,
        }
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.control.descriptors.len()
    }

    /// Takes the first descriptor that has not been taken yet. All are close-on-exec.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.control.descriptors.take_first()
    }

    /// Takes the last descriptor that has not been taken yet.
    pub fn take_last_descriptor(&mut self) -> Option<OwnedFd> {
        self.control.descriptors.take_last()
    }

    /// Takes all the descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.control.descriptors.take_all()
    }

    /// Takes all the descriptors that have not been taken yet, as the list they are in.
    pub fn take_list(&mut self) -> Descriptors {
        std::mem::take(&mut self.control.descriptors)
    }

    /// Who sent it. Present on SEQPACKET sockets.
    pub fn credentials(&self) -> Option<Credentials> {
        self.control.credentials
    }

    /// A pidfd of the sender, if the socket asks for them and the kernel (6.5 or later) had one.
    pub fn take_pidfd(&mut self) -> Option<OwnedFd> {
        self.control.pidfd.take()
    }

    /// Closes the descriptors behind the first `count`, which are more than the receiver wants. Says whether
    /// there were any.
    pub(crate) fn keep_descriptors(&mut self, count: usize) -> bool {
        self.control.descriptors.truncate(count)
    }

    /// The descriptors, for a driver that makes up what a kernel may do to them.
    #[cfg(feature = "script")]
    pub(crate) fn descriptors_mut(&mut self) -> &mut Descriptors {
        &mut self.control.descriptors
    }

    /// Drops it. Of one that is [bytes alone](Received::is_bytes_alone) only the buffer is to be let go of,
    /// and to ask that of each part takes longer than all else.
    // By force, or it is moved once more to be let go of.
    #[inline(always)]
    pub(crate) fn let_go(self) {
        let alone = self.is_bytes_alone();
        let Received { payload, control } = self;
        drop(payload);
        if alone && !control.descriptors.has_spilled() {
            std::mem::forget(control);
        }
    }

    /// Whether nothing came but bytes, all of which are here, and descriptors.
    #[inline]
    pub(crate) fn is_all_here(&self) -> bool {
        self.control.pidfd.is_none() && self.landed() == 0
    }

    /// The bytes where they lie, but for those that have [landed](Received::landed), and the descriptors to
    /// take.
    #[inline]
    pub fn lying(&mut self) -> (&[u8], &mut Descriptors) {
        let Received { payload, control } = self;
        let bytes = match payload {
            Payload::Lent(lease) => lease.bytes(),
            Payload::Owned(bytes) => bytes,
        };
        (bytes, &mut control.descriptors)
    }

    /// Whether nothing came with its bytes that is to be taken, and all of them are here.
    #[inline]
    pub(crate) fn is_bytes_alone(&self) -> bool {
        self.control.descriptors.is_empty() && self.is_all_here()
    }

    /// Whether it came without credentials and without descriptors.
    pub(crate) fn is_bare(&self) -> bool {
        self.control.is_empty()
    }

    /// Copies the bytes out of the receive buffer, which goes back to the pool.
    pub(crate) fn detach(&mut self) {
        if let Payload::Lent(lease) = &self.payload
            && lease.landed() == 0
        {
            self.payload = Payload::Owned(lease.bytes().to_vec());
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("bytes", &self.length())
            .field("descriptors", &self.descriptors())
            .field("credentials", &self.credentials())
            .finish()
    }
}
