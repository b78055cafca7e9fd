//! What arrived in one frame or packet: bytes, and descriptors to take.
//!
//! It owns both. Descriptors that nobody takes are closed without making the thread wait. It does not know
//! calls.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytemuck::AnyBitPattern;
use ring::{Credentials, Descriptors, Received};

use crate::wire::SMALL_BYTES_MAX;

/// Payloads up to this size are copied out of the packet they shared with others; larger ones keep it if they
/// are most of it. Otherwise a call of a thousand bytes, which is counted as that, would hold 102,080 for as
/// long as nobody takes it.
const COPIED_MAX: usize = SMALL_BYTES_MAX;

#[derive(Default)]
pub(crate) struct Parcel {
    bytes: Bytes,
    descriptors: Descriptors,
}

enum Bytes {
    Copied(ring::Bytes),
    /// All of a packet.
    Whole(Received),
    Shared(Rc<Received>, Range<usize>),
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::Copied(ring::Bytes::default())
    }
}

/// A packet whose parts go to several parcels.
pub(crate) enum Packet {
    /// So small that all its parts are copied.
    Small(Received),
    Shared(Rc<Received>),
}

impl Packet {
    pub(crate) fn new(packet: Received) -> Packet {
        if packet.bytes().len() <= COPIED_MAX {
            Packet::Small(packet)
        } else {
            Packet::Shared(Rc::new(packet))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Packet::Small(packet) => packet.bytes(),
            Packet::Shared(packet) => packet.bytes(),
        }
    }

    /// How many bytes of it are elsewhere: [`Received::landed`].
    pub(crate) fn landed(&self) -> usize {
        match self {
            Packet::Small(packet) => packet.landed(),
            Packet::Shared(packet) => packet.landed(),
        }
    }
}

impl Parcel {
    /// All of a packet.
    pub(crate) fn whole(mut packet: Received) -> Parcel {
        let descriptors = packet.take_list();
        Parcel { bytes: Bytes::Whole(packet), descriptors }
    }

    /// All of a packet, and who sent it, if the kernel was asked to tell by then.
    pub(crate) fn whole_of(packet: Received) -> (Parcel, Option<Credentials>) {
        let who = packet.credentials().filter(is_somebody);
        (Parcel::whole(packet), who)
    }

    /// Puts a part of a packet into this empty parcel. In place, because a parcel is large to move.
    #[inline]
    pub(crate) fn fill(&mut self, packet: &Packet, part: &[u8]) {
        self.bytes = match packet {
            Packet::Shared(packet) if part.len() > COPIED_MAX => share_or_copy(packet, part),
            _ => return self.copy(part),
        };
    }

    /// Puts a copy of these bytes into this empty parcel.
    #[inline]
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        match &mut self.bytes {
            Bytes::Copied(place) => place.copy_from(bytes),
            Bytes::Whole(_) | Bytes::Shared(..) => self.become_copy(bytes),
        }
    }

    #[cold]
    fn become_copy(&mut self, bytes: &[u8]) {
        self.bytes = Bytes::Copied(ring::Bytes::from(bytes));
    }

    /// Lets go of what is left in it.
    #[inline]
    pub(crate) fn empty(&mut self) {
        if !self.descriptors.is_empty() {
            self.descriptors = Descriptors::default();
        }
        match &mut self.bytes {
            Bytes::Copied(bytes) => bytes.release(),
            Bytes::Whole(_) | Bytes::Shared(..) => self.bytes = Bytes::default(),
        }
    }

    /// Bytes alone.
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Parcel {
        Parcel { bytes: Bytes::Copied(ring::Bytes::from(bytes)), descriptors: Descriptors::default() }
    }

    /// Descriptors alone, to be closed or given to a part.
    pub(crate) fn of_descriptors(descriptors: Descriptors) -> Parcel {
        Parcel { bytes: Bytes::default(), descriptors }
    }

    /// Puts descriptors into this empty parcel.
    #[inline]
    pub(crate) fn hold(&mut self, descriptors: Descriptors) {
        debug_assert!(self.descriptors.is_empty());
        self.descriptors = descriptors;
    }

    /// Moves the descriptors of another parcel here.
    pub(crate) fn take_from(&mut self, other: &mut Parcel) {
        if !other.descriptors.is_empty() {
            self.descriptors.append(&mut other.descriptors);
        }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Copied(bytes) => bytes,
            Bytes::Whole(packet) => packet.bytes(),
            Bytes::Shared(packet, range) => &packet.bytes()[range.clone()],
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self.bytes {
            Bytes::Copied(bytes) => bytes.into_vec(),
            Bytes::Whole(packet) => packet.into_bytes(),
            Bytes::Shared(packet, range) => packet.bytes()[range].to_vec(),
        }
    }

    pub(crate) fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.take_first()
    }

    pub(crate) fn take_last_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.take_last()
    }

    /// The descriptors, for who looks for one of his own among them.
    pub(crate) fn descriptor_list(&mut self) -> &mut Descriptors {
        &mut self.descriptors
    }

    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.take_all()
    }

    /// The bytes as plain data of exactly this size.
    pub(crate) fn read<T: AnyBitPattern>(&self) -> Option<T> {
        bytemuck::try_pod_read_unaligned(self.bytes()).ok()
    }
}

/// Whether the kernel means somebody. Of a packet that was sent before it was asked to tell by whom, it says
/// process 0 and the overflow user, who must not be mistaken for `nobody`.
pub(crate) fn is_somebody(who: &Credentials) -> bool {
    const OVERFLOW: u32 = 65_534;
    who.pid != 0 || who.uid != OVERFLOW
}

fn share_or_copy(packet: &Rc<Received>, part: &[u8]) -> Bytes {
    if part.len() < packet.bytes().len() / 2 {
        return Bytes::Copied(ring::Bytes::from(part));
    }
    let start = part.as_ptr() as usize - packet.bytes().as_ptr() as usize;
    Bytes::Shared(Rc::clone(packet), start..start + part.len())
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel")
            .field("bytes", &self.bytes().len())
            .field("descriptors", &self.descriptors())
            .finish()
    }
}
