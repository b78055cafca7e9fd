//! The frames of a session: every byte that follows an attach, parsed once and written without allocating.
//!
//! This file owns the layout of a frame, the closed set of kinds and the rules a single packet can break. It
//! must never know sockets, descriptors or which calls are under way: a rule that needs memory of earlier
//! packets belongs to the session, and windows are counted in [`credit`](crate::credit). Whatever a peer puts
//! into a packet ends in a [`Malformed`], never in a panic. The prose, with its reasons and the worked
//! examples the tests below read, is in `PROTOCOL.md`.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use thiserror::Error;

/// The largest packet on a session, headers included.
///
/// It belongs to the protocol and not to anybody's `SO_SNDBUF`: a message that fits today fits everywhere.
/// Why so many: see [`ring::PACKET_BYTES_MAX`].
pub const PACKET_BYTES_MAX: usize = 102_080;

/// The smallest `packet_bytes_max` a HELLO may announce: one page, so that every session carries small calls.
pub const PACKET_BYTES_MIN: usize = 4_096;

/// The header in front of every payload.
pub const HEADER_BYTES: usize = 16;

/// The largest payload of one frame: what a packet has left after one header.
pub const PAYLOAD_BYTES_MAX: usize = PACKET_BYTES_MAX - HEADER_BYTES;

/// How many bytes each part of a large message has, but for the last: 102,016, as many cache lines as fit a
/// packet behind the header. See [`Hello::part_bytes_max`].
pub const PART_BYTES_MAX: usize = part_bytes(PAYLOAD_BYTES_MAX as u32) as usize;

/// What [`PART_BYTES_MAX`] is a multiple of.
const PART_BYTES_UNIT: u32 = 64;

const fn part_bytes(payload_bytes_max: u32) -> u32 {
    payload_bytes_max / PART_BYTES_UNIT * PART_BYTES_UNIT
}

/// Payloads up to this size fit a packet of every session, whatever its HELLO says.
pub(crate) const SMALL_BYTES_MAX: usize = 1024;

/// What follows the header of a frame with [`Flags`], in front of its message: as long as the header, so that
/// the message is as aligned as it would be without.
pub const EXTENSION_BYTES: usize = 16;

/// The largest message a HELLO may announce, less a byte 2 GiB: a window is a `u32` and must have room for
/// two of them.
pub const MESSAGE_BYTES_MAX: usize = u32::MAX as usize / 2;

/// The largest message unless the server says otherwise: 64 MiB.
pub const MESSAGE_BYTES_DEFAULT: u32 = 64 << 20;

/// Bytes of large messages under way, calls and room for answers together, unless the server says otherwise:
/// the largest call beside the largest answer.
pub const LARGE_WINDOW_DEFAULT: u32 = 2 * MESSAGE_BYTES_DEFAULT;

/// Descriptors in one packet, and so in one frame. The kernel's own limit (`SCM_MAX_FD`): 254 is `EINVAL`.
pub const DESCRIPTORS_MAX: usize = 253;

/// Calls a client may have under way unless the server says otherwise.
pub const CALLS_WINDOW_DEFAULT: u32 = 256;

/// Bytes under way, calls and room for answers together, unless the server says otherwise: 18 MiB, so that
/// 256 small calls may each await an answer of 64 KiB.
pub const BYTES_WINDOW_DEFAULT: u32 = 18 << 20;

/// Descriptors of calls under way unless the server says otherwise.
pub const DESCRIPTORS_WINDOW_DEFAULT: u32 = 64;

/// Descriptors one call may carry unless the server says otherwise. It decides the control room of a receive.
pub const CALL_DESCRIPTORS_DEFAULT: u32 = 16;

/// The first bytes of a HELLO. What answers an attach with anything else is not one of ours.
pub const MAGIC: [u8; 4] = *b"SRT1";

/// The version this library speaks.
pub const VERSION: u16 = 1;

/// Payload of a HELLO.
pub const HELLO_BYTES: usize = 36;

/// Payload of a CREDIT.
pub const CREDIT_BYTES: usize = 16;

/// Payload of a REFUSED.
pub const REFUSED_BYTES: usize = 1;

/// A HELLO, header included.
pub const HELLO_FRAME_BYTES: usize = HEADER_BYTES + HELLO_BYTES;

/// A CREDIT, header included.
pub const CREDIT_FRAME_BYTES: usize = HEADER_BYTES + CREDIT_BYTES;

/// A REFUSED, header included.
pub const REFUSED_FRAME_BYTES: usize = HEADER_BYTES + REFUSED_BYTES;

/// The part of a HELLO that every version has in this place: magic, version, flags.
const HELLO_OPENING_BYTES: usize = 8;

// The defaults must be a HELLO that a client accepts, and every length must survive the trip through a u32.
const _: () = assert!(PACKET_BYTES_MAX <= u32::MAX as usize / 2);
const _: () = assert!(BYTES_WINDOW_DEFAULT as usize >= 2 * PACKET_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_DEFAULT as usize <= MESSAGE_BYTES_MAX);
const _: () = assert!(LARGE_WINDOW_DEFAULT >= 2 * MESSAGE_BYTES_DEFAULT);
const _: () = assert!(DESCRIPTORS_WINDOW_DEFAULT >= CALL_DESCRIPTORS_DEFAULT);
const _: () = assert!(DESCRIPTORS_MAX <= u8::MAX as usize);
const _: () = assert!(HEADER_BYTES + SMALL_BYTES_MAX <= PACKET_BYTES_MIN);

/// The frames of one packet, in order, ending after the first error.
///
/// `arrived` says how many descriptors came with the packet: at most one frame may declare any, and it must
/// declare exactly those. The last item is an error if descriptors came that no frame declared.
///
/// ```
/// use seqpacket::wire::{self, Arrived, Body, FromClient, Header, Size};
///
/// let mut packet = Header::call(7, Size::of_bytes(3)?, Size::of_bytes(64)?).encode().to_vec();
/// packet.extend_from_slice(b"add");
/// packet.extend_from_slice(&Header::cancel(6).encode());
///
/// let mut frames = wire::frames(&packet, Arrived::Whole(0));
/// let first = frames.next().unwrap()?.from_client()?;
/// assert!(matches!(first, FromClient::Call { number: 7, body: Body::Whole(b"add"), .. }));
/// let second = frames.next().unwrap()?.from_client()?;
/// assert!(matches!(second, FromClient::Cancel { number: 6 }));
/// assert!(frames.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn frames(packet: &[u8], arrived: Arrived) -> Frames<'_> {
    Frames { rest: packet, arrived, claimed: false, state: State::Fresh }
}

/// The frames of a packet from where an earlier look at it has stopped.
pub(crate) fn frames_from(packet: &[u8], place: Place) -> Frames<'_> {
    let Place { read, arrived, claimed } = place;
    let state = if read == 0 { State::Fresh } else { State::Under };
    Frames { rest: &packet[read..], arrived, claimed, state }
}

/// How far a packet has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes.
    pub(crate) read: usize,
    arrived: Arrived,
    /// A frame has declared its descriptors.
    claimed: bool,
}

impl Place {
    /// Nothing has been read.
    pub(crate) fn beginning(arrived: Arrived) -> Place {
        Place::after(0, arrived)
    }

    /// So many bytes of whole frames have been read, none of which has declared descriptors.
    pub(crate) fn after(read: usize, arrived: Arrived) -> Place {
        Place { read, arrived, claimed: false }
    }

    /// So many bytes of whole frames have been read, one of which has declared the descriptors, and has them.
    pub(crate) fn behind_descriptors(read: usize) -> Place {
        Place { read, arrived: Arrived::Whole(0), claimed: true }
    }
}

/// How many descriptors came with a packet, and whether the kernel says that some are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// All that were sent.
    Whole(usize),
    /// The first so many; the rest were lost at the receiver (`MSG_CTRUNC`). That is no fault of the sender.
    Cut(usize),
}

/// Iterator over the frames of a packet; made by [`frames`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    arrived: Arrived,
    claimed: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Under,
    Ended,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.state {
            State::Ended => return None,
            State::Fresh => self.check_packet().and_then(|()| self.take_frame()),
            State::Under if !self.rest.is_empty() => self.take_frame(),
            State::Under => {
                self.state = State::Ended;
                return self.unclaimed().map(Err);
            }
        };
        self.state = if item.is_ok() { State::Under } else { State::Ended };
        Some(item)
    }
}

impl std::iter::FusedIterator for Frames<'_> {}

impl<'a> Frames<'a> {
    /// Where to go on in the packet this reads, if frames are left.
    pub(crate) fn place_in(&self, packet: &[u8]) -> Option<Place> {
        let (arrived, claimed) = (self.arrived, self.claimed);
        let place = Place { read: packet.len() - self.rest.len(), arrived, claimed };
        (self.state == State::Under && !self.rest.is_empty()).then_some(place)
    }

    fn check_packet(&self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Err(Malformed::Empty),
            bytes if bytes > PACKET_BYTES_MAX => Err(Malformed::PacketTooLong { bytes }),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn take_frame(&mut self) -> Result<Frame<'a>, Malformed> {
        let Some((header, rest)) = self.rest.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::HeaderCut { left: self.rest.len() });
        };
        let header = Header::parse(header)?;
        let Some((payload, rest)) = rest.split_at_checked(header.length as usize) else {
            return Err(Malformed::PayloadCut { length: header.length, left: rest.len() });
        };
        let (extension, payload) = match payload.split_first_chunk() {
            Some((extension, payload)) if header.flags.any() => {
                (Some(Extension::parse(extension, header.flags)?), payload)
            }
            // A header with flags and less payload than that has been refused above.
            _ => (None, payload),
        };
        let missing = self.claim(header.descriptors)?;
        self.rest = rest;
        Ok(Frame { header, extension, payload, missing })
    }

    /// Gives the packet's descriptors to the frame that declares them; says how many of them did not arrive.
    #[inline(always)]
    fn claim(&mut self, declared: u8) -> Result<u8, Malformed> {
        if declared == 0 {
            return Ok(0);
        }
        if self.claimed {
            return Err(Malformed::SecondDescriptors);
        }
        self.claimed = true;
        let here = match self.arrived {
            Arrived::Whole(here) if here == usize::from(declared) => here,
            Arrived::Cut(here) if here <= usize::from(declared) => here,
            Arrived::Whole(arrived) | Arrived::Cut(arrived) => {
                return Err(Malformed::DescriptorsDiffer { declared, arrived });
            }
        };
        // `here <= declared`, so the difference is a u8 again.
        Ok((usize::from(declared) - here) as u8)
    }

    /// Descriptors that no frame declared. When some were cut and none came, the cut may have hit other
    /// control data of the receiver's own asking, so the sender is not blamed.
    fn unclaimed(&self) -> Option<Malformed> {
        match self.arrived {
            _ if self.claimed => None,
            Arrived::Whole(0) | Arrived::Cut(0) => None,
            Arrived::Whole(arrived) | Arrived::Cut(arrived) => {
                Some(Malformed::DescriptorsUnclaimed { arrived })
            }
        }
    }
}

/// One frame of a packet, not yet asked whether its sender may send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the header says.
    pub header: Header,
    /// What follows it on a frame with flags.
    pub extension: Option<Extension>,
    /// What follows those: exactly `header.length` bytes together with the extension.
    pub payload: &'a [u8],
    /// How many of `header.descriptors` were lost on arrival.
    pub missing: u8,
}

impl<'a> Frame<'a> {
    /// The frame without its payload.
    #[inline]
    pub fn opening(&self) -> Opening {
        Opening { header: self.header, extension: self.extension }
    }

    #[inline]
    fn body(&self) -> Body<'a> {
        match self.opening().total() {
            Some(total) => Body::Large { total },
            None => Body::Whole(self.payload),
        }
    }

    /// The frame as a client may send it.
    #[inline(always)]
    pub fn from_client(self) -> Result<FromClient<'a>, Malformed> {
        let Frame { header, payload, missing, .. } = self;
        let Header { number, descriptors, .. } = header;
        match header.kind {
            Kind::Call => Ok(FromClient::Call {
                number,
                body: self.body(),
                descriptors,
                missing,
                answer: header.answer(),
                time_left: self.opening().time_left(),
            }),
            Kind::Part => Ok(FromClient::Part { number, payload }),
            Kind::Cancel => Ok(FromClient::Cancel { number }),
            Kind::Grant => Ok(FromClient::Grant { number }),
            Kind::Lost => Ok(FromClient::Lost { number }),
            Kind::Goodbye => Ok(FromClient::Goodbye),
            kind @ (Kind::Hello
            | Kind::Answer
            | Kind::Dropped
            | Kind::Credit
            | Kind::Refused
            | Kind::Elsewhere) => Err(Malformed::WrongSide(kind)),
        }
    }

    /// The frame as a server may send it; the payload of a HELLO, CREDIT or REFUSED is parsed here, once.
    #[inline(always)]
    pub fn from_server(self) -> Result<FromServer<'a>, Malformed> {
        let Frame { header, payload, missing, .. } = self;
        let Header { number, descriptors, .. } = header;
        match header.kind {
            Kind::Hello => Ok(FromServer::Hello(Hello::parse(payload)?)),
            Kind::Answer => Ok(FromServer::Answer { number, body: self.body(), descriptors, missing }),
            Kind::Part => Ok(FromServer::Part { number, payload }),
            Kind::Elsewhere => Ok(FromServer::Elsewhere { number, missing }),
            Kind::Dropped => Ok(FromServer::Dropped { number }),
            Kind::Credit => Ok(FromServer::Credit(Windows::parse(payload)?)),
            Kind::Refused => Ok(FromServer::Refused { number, reason: RefusedReason::parse(payload)? }),
            Kind::Goodbye => Ok(FromServer::Goodbye),
            kind @ (Kind::Call | Kind::Cancel | Kind::Grant | Kind::Lost) => Err(Malformed::WrongSide(kind)),
        }
    }
}

/// Everything a client can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromClient<'a> {
    /// A call that wants an answer under this number.
    Call {
        /// Chosen by the client, free again after the final frame.
        number: u32,
        /// Opaque.
        body: Body<'a>,
        /// How many of the packet's descriptors belong to the call: all of them, or none.
        descriptors: u8,
        /// How many of those were lost here. Not zero: REFUSED with [`RefusedReason::DescriptorsLost`].
        missing: u8,
        /// What the caller has reserved for the answer.
        answer: Size,
        /// How long the caller would still wait when it wrote this; `None` if it has not said.
        time_left: Option<Duration>,
    },
    /// The next bytes of a large call.
    Part {
        /// The call.
        number: u32,
        /// One byte at least.
        payload: &'a [u8],
    },
    /// The caller withdrew. The number still ends with one final frame.
    Cancel {
        /// The call, which may have ended already.
        number: u32,
    },
    /// A call that asks for a fresh address, to be given to somebody else.
    Grant {
        /// Chosen by the client, free again after the final frame.
        number: u32,
    },
    /// Not all descriptors that the server sent for this call have arrived. Nothing answers it.
    Lost {
        /// The call: answered, or being answered, and not made again since.
        number: u32,
    },
    /// No more calls will be made.
    Goodbye,
}

/// Everything a server can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromServer<'a> {
    /// The first frame of a session and only that.
    Hello(Hello),
    /// The answer; final.
    Answer {
        /// The call it ends.
        number: u32,
        /// Opaque. A large answer ends its call with its last part.
        body: Body<'a>,
        /// How many of the packet's descriptors belong to the answer: all of them, or none.
        descriptors: u8,
        /// How many of those were lost here.
        missing: u8,
    },
    /// The next bytes of a large answer; the last ones are final.
    Part {
        /// The call it answers.
        number: u32,
        /// One byte at least.
        payload: &'a [u8],
    },
    /// Whoever answers will do so over the descriptor of this frame; final.
    Elsewhere {
        /// The call it ends.
        number: u32,
        /// 1 if the descriptor was lost here.
        missing: u8,
    },
    /// Nobody will answer; final. The call may have been seen.
    Dropped {
        /// The call it ends.
        number: u32,
    },
    /// The windows from now on.
    Credit(Windows),
    /// The library refused in the server's place; final.
    Refused {
        /// The call it ends.
        number: u32,
        /// Why.
        reason: RefusedReason,
    },
    /// No more calls will be taken.
    Goodbye,
}

/// The message of a call or an answer, as far as it is in the frame that opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It follows in parts.
    Large {
        /// So many bytes, all parts together.
        total: u32,
    },
}

/// The sixteen bytes before a payload, checked on the way in and on the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload.
    pub length: u32,
    /// The call it is about; 0 where it is about the session.
    pub number: u32,
    /// What the frame means.
    pub kind: Kind,
    /// Descriptors of the packet that belong to this frame.
    pub descriptors: u8,
    /// Descriptors the caller has reserved for the answer.
    pub answer_descriptors: u8,
    /// What the first bytes of the payload say beyond this.
    pub flags: Flags,
    /// Bytes of message the caller has reserved for the answer.
    pub answer_bytes: u32,
}

impl Header {
    /// Reads a header and checks all that can be checked without its payload.
    #[inline(always)]
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let [length, number, [kind, descriptors, answer_descriptors, flags], answer_bytes]: [[u8; 4]; 4] =
            bytemuck::cast(*bytes);
        let header = Header {
            length: u32::from_le_bytes(length),
            number: u32::from_le_bytes(number),
            kind: Kind::try_from(kind)?,
            descriptors,
            answer_descriptors,
            flags: Flags::parse(flags)?,
            answer_bytes: u32::from_le_bytes(answer_bytes),
        };
        header.check()?;
        Ok(header)
    }

    /// Writes the header.
    ///
    /// # Panics
    /// If a peer would call it [`Malformed`]: the constructors below make none of those.
    #[inline(always)]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        assert_eq!(self.check(), Ok(()), "a header that no peer would accept");
        bytemuck::cast([
            self.length.to_le_bytes(),
            self.number.to_le_bytes(),
            [self.kind as u8, self.descriptors, self.answer_descriptors, self.flags.byte()],
            self.answer_bytes.to_le_bytes(),
        ])
    }

    /// A call that carries `message` and has room for `answer`. One that needs more than this header, because
    /// it is large or says how long its caller waits, is [`Hello::call`].
    pub fn call(number: u32, message: Size, answer: Size) -> Header {
        Header {
            length: message.bytes,
            descriptors: message.descriptors,
            answer_descriptors: answer.descriptors,
            answer_bytes: answer.bytes,
            ..Header::bare(Kind::Call, number)
        }
    }

    /// The answer to call `number`. A large one is [`Hello::answer_to`].
    pub fn answer_to(number: u32, message: Size) -> Header {
        Header {
            length: message.bytes,
            descriptors: message.descriptors,
            ..Header::bare(Kind::Answer, number)
        }
    }

    /// The next `bytes` of the large call or answer `number`.
    pub fn part(number: u32, bytes: u32) -> Header {
        Header { length: bytes, ..Header::bare(Kind::Part, number) }
    }

    /// The answer to call `number` comes over the descriptor that goes with this.
    pub fn elsewhere(number: u32) -> Header {
        Header { descriptors: 1, ..Header::bare(Kind::Elsewhere, number) }
    }

    /// Nobody will answer call `number`.
    pub fn dropped(number: u32) -> Header {
        Header::bare(Kind::Dropped, number)
    }

    /// The caller withdraws call `number`.
    pub fn cancel(number: u32) -> Header {
        Header::bare(Kind::Cancel, number)
    }

    /// Descriptors of what ended call `number` were lost.
    pub fn lost(number: u32) -> Header {
        Header::bare(Kind::Lost, number)
    }

    /// Asks for a fresh address under `number`.
    pub fn grant(number: u32) -> Header {
        Header { answer_descriptors: 1, ..Header::bare(Kind::Grant, number) }
    }

    /// No more calls will be made, or taken.
    pub fn goodbye() -> Header {
        Header::bare(Kind::Goodbye, 0)
    }

    /// What the caller has reserved for the answer; [`Size::NONE`] on frames that await none.
    pub fn answer(&self) -> Size {
        Size { bytes: self.answer_bytes, descriptors: self.answer_descriptors }
    }

    fn bare(kind: Kind, number: u32) -> Header {
        Header {
            length: 0,
            number,
            kind,
            descriptors: 0,
            answer_descriptors: 0,
            flags: Flags::NONE,
            answer_bytes: 0,
        }
    }

    /// The rules of one header. Fields that mean nothing on a kind must be zero, so that they can mean
    /// something one day and so that two implementations cannot disagree about a byte without noticing.
    #[inline]
    fn check(&self) -> Result<(), Malformed> {
        if self.is_whole_and_right() { Ok(()) } else { self.check_each() }
    }

    /// Whether it is what nearly all are: a call or an answer that is whole, with nothing wrong. Asked first,
    /// because each frame is checked where it is written and where it is read, and rule by rule that took as
    /// long as filing it.
    #[inline]
    fn is_whole_and_right(&self) -> bool {
        let fits = self.length as usize <= PAYLOAD_BYTES_MAX
            && usize::from(self.descriptors.max(self.answer_descriptors)) <= DESCRIPTORS_MAX;
        let answer_is_right = match self.kind {
            Kind::Call => self.answer_bytes as usize <= MESSAGE_BYTES_MAX,
            Kind::Answer => self.answer_bytes == 0 && self.answer_descriptors == 0,
            _ => false,
        };
        fits && answer_is_right && self.flags == Flags::NONE
    }

    fn check_each(&self) -> Result<(), Malformed> {
        let Header { length, number, kind, descriptors, answer_descriptors, flags, answer_bytes } = *self;
        let flags_are_right = match kind {
            Kind::Call => true,
            Kind::Answer => !flags.deadline,
            _ => flags == Flags::NONE,
        };
        if !flags_are_right {
            return Err(Malformed::FrameFlags { kind, flags: flags.byte() });
        }
        let extended = match flags {
            Flags { large: true, .. } => length as usize == EXTENSION_BYTES,
            Flags { deadline: true, .. } => length as usize >= EXTENSION_BYTES,
            Flags::NONE => true,
        };
        if !kind.allows_length(length as usize) || !extended {
            return Err(Malformed::Length { kind, length });
        }
        if number != 0 && !kind.is_about_a_call() {
            return Err(Malformed::Number { kind, number });
        }
        let descriptors_are_right = match kind {
            Kind::Call | Kind::Answer => true,
            Kind::Elsewhere => descriptors == 1,
            _ => descriptors == 0,
        };
        if !descriptors_are_right {
            return Err(Malformed::Descriptors { kind, descriptors });
        }
        if usize::from(descriptors.max(answer_descriptors)) > DESCRIPTORS_MAX {
            return Err(Malformed::TooManyDescriptors(descriptors.max(answer_descriptors)));
        }
        let answer_is_right = match kind {
            Kind::Call => answer_bytes as usize <= MESSAGE_BYTES_MAX,
            Kind::Grant => answer_bytes == 0 && answer_descriptors == 1,
            _ => answer_bytes == 0 && answer_descriptors == 0,
        };
        if !answer_is_right {
            return Err(Malformed::Answer { kind, answer_bytes, answer_descriptors });
        }
        Ok(())
    }
}

/// What a call or an answer has beyond its header. With any of these an [`Extension`] comes before the
/// message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// The message does not fit a packet. It follows in parts.
    pub large: bool,
    /// The call says how long its caller waits.
    pub deadline: bool,
}

impl Flags {
    /// None of them: no extension.
    pub const NONE: Flags = Flags { large: false, deadline: false };

    /// Whether there is an extension.
    pub fn any(self) -> bool {
        self != Flags::NONE
    }

    fn parse(byte: u8) -> Result<Flags, Malformed> {
        match byte {
            0..=3 => Ok(Flags { large: byte & 1 != 0, deadline: byte & 2 != 0 }),
            unknown => Err(Malformed::UnknownFlags(unknown)),
        }
    }

    fn byte(self) -> u8 {
        u8::from(self.large) | u8::from(self.deadline) << 1
    }
}

/// The sixteen bytes that follow the header of a frame with [`Flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Bytes of the whole message; 0 if it is not large.
    pub total: u32,
    /// Microseconds the caller would still wait when this was written; 0 if it has not said.
    pub time_left_us: u64,
}

impl Extension {
    fn parse(bytes: &[u8; EXTENSION_BYTES], flags: Flags) -> Result<Extension, Malformed> {
        let [total, time_left_us]: [[u8; 8]; 2] = bytemuck::cast(*bytes);
        let (total, time_left_us) = (u64::from_le_bytes(total), u64::from_le_bytes(time_left_us));
        if total > MESSAGE_BYTES_MAX as u64 || (total == 0) == flags.large {
            return Err(Malformed::Total(total));
        }
        if time_left_us != 0 && !flags.deadline {
            return Err(Malformed::TimeLeft(time_left_us));
        }
        Ok(Extension { total: total as u32, time_left_us })
    }

    fn encode(&self) -> [u8; EXTENSION_BYTES] {
        bytemuck::cast([u64::from(self.total).to_le_bytes(), self.time_left_us.to_le_bytes()])
    }
}

/// A frame without its payload: the header, and the extension where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The header.
    pub header: Header,
    /// There if the header has flags.
    pub extension: Option<Extension>,
}

impl Opening {
    /// The bytes in front of the message.
    ///
    /// # Panics
    /// If a peer would call them [`Malformed`].
    #[inline(always)]
    pub fn encode(&self) -> OpeningBytes {
        assert_eq!(self.extension.is_some(), self.header.flags.any(), "an extension belongs to flags");
        let mut opening = OpeningBytes { bytes: [0; HEADER_BYTES + EXTENSION_BYTES], length: HEADER_BYTES };
        opening.bytes[..HEADER_BYTES].copy_from_slice(&self.header.encode());
        if let Some(extension) = &self.extension {
            let bytes = extension.encode();
            assert_eq!(
                Extension::parse(&bytes, self.header.flags),
                Ok(*extension),
                "an extension for no peer"
            );
            opening.bytes[HEADER_BYTES..].copy_from_slice(&bytes);
            opening.length += EXTENSION_BYTES;
        }
        opening
    }

    /// The message that is opened: all of it, with what follows in parts.
    #[inline]
    pub fn message(&self) -> Size {
        let extension_bytes = if self.extension.is_some() { EXTENSION_BYTES as u32 } else { 0 };
        let bytes = self.total().unwrap_or(self.header.length.saturating_sub(extension_bytes));
        Size { bytes, descriptors: self.header.descriptors }
    }

    /// What the caller has reserved for the answer.
    #[inline]
    pub fn answer(&self) -> Size {
        self.header.answer()
    }

    /// How many bytes follow in parts; `None` if the message is whole.
    #[inline]
    pub fn total(&self) -> Option<u32> {
        self.extension.filter(|_| self.header.flags.large).map(|extension| extension.total)
    }

    /// How long the caller would still wait when this was written; `None` if it has not said.
    pub fn time_left(&self) -> Option<Duration> {
        let extension = self.extension.filter(|_| self.header.flags.deadline);
        extension.map(|extension| Duration::from_micros(extension.time_left_us))
    }
}

impl From<Header> for Opening {
    /// # Panics
    /// If the header has flags, and so is not all of it.
    fn from(header: Header) -> Opening {
        assert!(!header.flags.any(), "a header with flags has an extension");
        Opening { header, extension: None }
    }
}

/// What an [`Opening`] looks like on the wire.
#[derive(Clone, Copy, Debug)]
pub struct OpeningBytes {
    bytes: [u8; HEADER_BYTES + EXTENSION_BYTES],
    length: usize,
}

impl Deref for OpeningBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What a frame means. A closed set: an unknown kind ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Server to client, the first frame of a session.
    Hello = 1,
    /// Client to server.
    Call = 2,
    /// Server to client; final.
    Answer = 3,
    /// Server to client: nobody will answer; final.
    Dropped = 4,
    /// Client to server: the caller withdrew.
    Cancel = 5,
    /// Server to client: larger windows.
    Credit = 6,
    /// Server to client, with a [`RefusedReason`]; final.
    Refused = 7,
    /// Client to server: a fresh address for somebody else, please. Counts as a call.
    Grant = 8,
    /// Either way: no more calls.
    Goodbye = 9,
    /// Either way: the next bytes of a large call or answer.
    Part = 10,
    /// Server to client, with a descriptor over which somebody will answer; final.
    Elsewhere = 11,
    /// Client to server: descriptors of an answer did not all arrive.
    Lost = 12,
}

impl Kind {
    /// Whether a frame of this kind ends the number it carries; a large answer does so with its last part.
    pub fn is_final(self) -> bool {
        matches!(self, Kind::Answer | Kind::Dropped | Kind::Refused | Kind::Elsewhere)
    }

    fn is_about_a_call(self) -> bool {
        match self {
            Kind::Call | Kind::Answer | Kind::Dropped | Kind::Cancel | Kind::Refused | Kind::Grant => true,
            Kind::Part | Kind::Elsewhere | Kind::Lost => true,
            Kind::Hello | Kind::Credit | Kind::Goodbye => false,
        }
    }

    fn allows_length(self, bytes: usize) -> bool {
        match self {
            Kind::Call | Kind::Answer => bytes <= PAYLOAD_BYTES_MAX,
            // A part without a byte would be progress for ever.
            Kind::Part => (1..=PART_BYTES_MAX).contains(&bytes),
            // A later version may say more; the reader shall find its version before it finds its length.
            Kind::Hello => (HELLO_OPENING_BYTES..=PAYLOAD_BYTES_MAX).contains(&bytes),
            Kind::Credit => bytes == CREDIT_BYTES,
            Kind::Refused => bytes == REFUSED_BYTES,
            Kind::Dropped | Kind::Cancel | Kind::Grant | Kind::Goodbye => bytes == 0,
            Kind::Elsewhere | Kind::Lost => bytes == 0,
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Kind, Malformed> {
        match byte {
            1 => Ok(Kind::Hello),
            2 => Ok(Kind::Call),
            3 => Ok(Kind::Answer),
            4 => Ok(Kind::Dropped),
            5 => Ok(Kind::Cancel),
            6 => Ok(Kind::Credit),
            7 => Ok(Kind::Refused),
            8 => Ok(Kind::Grant),
            9 => Ok(Kind::Goodbye),
            10 => Ok(Kind::Part),
            11 => Ok(Kind::Elsewhere),
            12 => Ok(Kind::Lost),
            unknown => Err(Malformed::Kind(unknown)),
        }
    }
}

/// The kind as `PROTOCOL.md` writes it.
impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Kind::Hello => "HELLO",
            Kind::Call => "CALL",
            Kind::Answer => "ANSWER",
            Kind::Dropped => "DROPPED",
            Kind::Cancel => "CANCEL",
            Kind::Credit => "CREDIT",
            Kind::Refused => "REFUSED",
            Kind::Grant => "GRANT",
            Kind::Goodbye => "GOODBYE",
            Kind::Part => "PART",
            Kind::Elsewhere => "ELSEWHERE",
            Kind::Lost => "LOST",
        })
    }
}

/// A message by size, its descriptors included, or the room kept for one: never more than a HELLO may
/// announce.
///
/// ```
/// use seqpacket::wire::{MESSAGE_BYTES_MAX, Oversize, Size};
///
/// let room = Size::of_bytes(4_096)?.with_descriptors(1)?;
/// assert!(room.holds(Size::of_bytes(12)?));
/// assert_eq!(Size::of_bytes(MESSAGE_BYTES_MAX + 1), Err(Oversize::Bytes));
/// # Ok::<(), Oversize>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    bytes: u32,
    descriptors: u8,
}

impl Size {
    /// No bytes, no descriptors.
    pub const NONE: Size = Size { bytes: 0, descriptors: 0 };

    /// The most one frame holds.
    pub const OF_A_FRAME: Size = Size { bytes: PAYLOAD_BYTES_MAX as u32, descriptors: DESCRIPTORS_MAX as u8 };

    /// The most there can be.
    pub const LARGEST: Size = Size { bytes: MESSAGE_BYTES_MAX as u32, descriptors: DESCRIPTORS_MAX as u8 };

    /// So many bytes and no descriptors.
    #[inline]
    pub fn of_bytes(bytes: usize) -> Result<Size, Oversize> {
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Oversize::Bytes);
        }
        Ok(Size { bytes: bytes as u32, descriptors: 0 })
    }

    /// The same bytes and so many descriptors.
    #[inline]
    pub fn with_descriptors(self, descriptors: usize) -> Result<Size, Oversize> {
        if descriptors > DESCRIPTORS_MAX {
            return Err(Oversize::Descriptors);
        }
        Ok(Size { descriptors: descriptors as u8, ..self })
    }

    /// Bytes.
    pub fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Descriptors.
    pub fn descriptors(self) -> usize {
        usize::from(self.descriptors)
    }

    /// The same descriptors and no more bytes than that.
    pub fn at_most_bytes(self, bytes: u32) -> Size {
        Size { bytes: self.bytes.min(bytes), ..self }
    }

    /// Whether `message` fits into this room.
    pub fn holds(self, message: Size) -> bool {
        message.bytes <= self.bytes && message.descriptors <= self.descriptors
    }
}

/// Why no session can carry a message. Found before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Oversize {
    /// More than [`MESSAGE_BYTES_MAX`] bytes.
    #[error("more than {MESSAGE_BYTES_MAX} bytes")]
    Bytes,
    /// More than [`DESCRIPTORS_MAX`] descriptors.
    #[error("more than {DESCRIPTORS_MAX} descriptors")]
    Descriptors,
}

/// What the server promises at the start of a session.
///
/// ```
/// use seqpacket::wire::{Hello, Windows};
///
/// let hello = Hello { windows: Windows { calls: 32, ..Windows::default() }, ..Hello::default() };
/// hello.check()?;
/// assert_eq!(hello.frame().len(), 52);
/// # Ok::<(), seqpacket::wire::Malformed>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the client may have under way from now on.
    pub windows: Windows,
    /// Descriptors one call may carry: more find no control room at the server.
    pub call_descriptors_max: u32,
    /// The largest packet either side sends on this session.
    pub packet_bytes_max: u32,
    /// The largest message either side sends. No more than [`payload_bytes_max`](Hello::payload_bytes_max):
    /// nothing is large here.
    pub message_bytes_max: u32,
}

impl Default for Hello {
    fn default() -> Hello {
        Hello {
            windows: Windows::default(),
            call_descriptors_max: CALL_DESCRIPTORS_DEFAULT,
            packet_bytes_max: PACKET_BYTES_MAX as u32,
            message_bytes_max: MESSAGE_BYTES_DEFAULT,
        }
    }
}

impl Hello {
    /// Reads the payload of a HELLO.
    pub fn parse(payload: &[u8]) -> Result<Hello, Malformed> {
        let (words, rest) = payload.as_chunks::<4>();
        let &[magic, [v0, v1, f0, f1], ref promises @ ..] = words else {
            return Err(Malformed::length(Kind::Hello, payload));
        };
        if magic != MAGIC {
            return Err(Malformed::Magic(magic));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let flags = u16::from_le_bytes([f0, f1]);
        if flags != 0 {
            return Err(Malformed::Flags(flags));
        }
        let (
            &[calls, bytes, descriptors, large, call_descriptors_max, packet_bytes_max, message_bytes_max],
            [],
        ) = (promises, rest)
        else {
            return Err(Malformed::length(Kind::Hello, payload));
        };
        let hello = Hello {
            windows: Windows::of([calls, bytes, descriptors, large]),
            call_descriptors_max: u32::from_le_bytes(call_descriptors_max),
            packet_bytes_max: u32::from_le_bytes(packet_bytes_max),
            message_bytes_max: u32::from_le_bytes(message_bytes_max),
        };
        hello.check()?;
        Ok(hello)
    }

    /// Whether a client would accept this. A session that cannot carry its own largest call is a trap: the
    /// call would pass every test with small messages and wait for ever with a large one.
    pub fn check(&self) -> Result<(), Malformed> {
        let packet_bytes = self.packet_bytes_max as usize;
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&packet_bytes) {
            return Err(Malformed::PacketBytes(self.packet_bytes_max));
        }
        if self.call_descriptors_max as usize > DESCRIPTORS_MAX {
            return Err(Malformed::CallDescriptors(self.call_descriptors_max));
        }
        if self.windows.calls == 0 {
            return Err(Malformed::WindowTooSmall(Resource::Calls));
        }
        // Two packets: the largest call, and beside it the largest answer.
        if (self.windows.bytes as usize) < 2 * packet_bytes {
            return Err(Malformed::WindowTooSmall(Resource::Bytes));
        }
        if self.windows.descriptors < self.call_descriptors_max {
            return Err(Malformed::WindowTooSmall(Resource::Descriptors));
        }
        let messages = self.payload_bytes_max()..=MESSAGE_BYTES_MAX as u32;
        if !messages.contains(&self.message_bytes_max) {
            return Err(Malformed::MessageBytes(self.message_bytes_max));
        }
        let largest_two = if self.carries_large() { 2 * self.message_bytes_max } else { 0 };
        if self.windows.large_bytes < largest_two {
            return Err(Malformed::WindowTooSmall(Resource::LargeBytes));
        }
        Ok(())
    }

    /// Opens a call on this session: whole if it fits a packet beside what it says of its caller's patience,
    /// and large otherwise. Nothing but its size decides. Time left is said in whole microseconds.
    ///
    /// ```
    /// use seqpacket::wire::{Hello, Size};
    ///
    /// let hello = Hello::default();
    /// assert_eq!(hello.call(7, Size::of_bytes(102_064)?, Size::NONE, None).total(), None);
    /// assert_eq!(hello.call(7, Size::of_bytes(102_065)?, Size::NONE, None).total(), Some(102_065));
    /// # Ok::<(), seqpacket::wire::Oversize>(())
    /// ```
    #[inline]
    pub fn call(&self, number: u32, message: Size, answer: Size, time_left: Option<Duration>) -> Opening {
        let header = Header {
            descriptors: message.descriptors,
            answer_descriptors: answer.descriptors,
            answer_bytes: answer.bytes,
            ..Header::bare(Kind::Call, number)
        };
        self.open(header, message, time_left)
    }

    /// Opens the answer to call `number`: whole if it fits a packet, and large otherwise.
    #[inline]
    pub fn answer_to(&self, number: u32, message: Size) -> Opening {
        let header = Header { descriptors: message.descriptors, ..Header::bare(Kind::Answer, number) };
        self.open(header, message, None)
    }

    #[inline]
    fn open(&self, header: Header, message: Size, time_left: Option<Duration>) -> Opening {
        let deadline = time_left.is_some();
        let large = message.bytes > self.whole_bytes_max(deadline);
        let flags = Flags { large, deadline };
        let extension = flags.any().then(|| Extension {
            total: if large { message.bytes } else { 0 },
            // Rounded up, so that the server's patience never ends before the caller's. A u64 of microseconds
            // is half a million years.
            time_left_us: time_left
                .map_or(0, |time| time.as_nanos().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        });
        let length = if flags.any() { EXTENSION_BYTES as u32 } else { 0 };
        let length = if large { length } else { length + message.bytes };
        Opening { header: Header { length, flags, ..header }, extension }
    }

    /// The largest message that goes into the packet that opens it.
    fn whole_bytes_max(&self, deadline: bool) -> u32 {
        self.payload_bytes_max() - if deadline { EXTENSION_BYTES as u32 } else { 0 }
    }

    /// Whether messages may be larger than a packet.
    pub fn carries_large(&self) -> bool {
        self.message_bytes_max > self.payload_bytes_max()
    }

    /// Whether room for an answer is for a large one.
    #[inline]
    pub fn is_large_room(&self, answer: Size) -> bool {
        answer.bytes > self.payload_bytes_max()
    }

    /// Whether a frame keeps to what this HELLO promised. The sender asks before sending and the receiver
    /// after receiving; [`Header::parse`] knows only the limits that hold on every session.
    #[inline]
    pub fn admits(&self, opening: &Opening) -> Result<(), Malformed> {
        let header = &opening.header;
        if header.length > self.payload_bytes_max() {
            return Err(Malformed::Length { kind: header.kind, length: header.length });
        }
        // What would fit a packet is not large: one way to say each thing.
        if let Some(total) = opening.total()
            && (total <= self.whole_bytes_max(header.flags.deadline) || total > self.message_bytes_max)
        {
            return Err(Malformed::Total(total.into()));
        }
        if header.answer_bytes > self.message_bytes_max {
            return Err(Malformed::Answer {
                kind: header.kind,
                answer_bytes: header.answer_bytes,
                answer_descriptors: header.answer_descriptors,
            });
        }
        if header.kind == Kind::Call && u32::from(header.descriptors) > self.call_descriptors_max {
            return Err(Malformed::TooManyDescriptors(header.descriptors));
        }
        Ok(())
    }

    /// The largest payload of one frame of this session.
    #[inline]
    pub fn payload_bytes_max(&self) -> u32 {
        self.packet_bytes_max.saturating_sub(HEADER_BYTES as u32)
    }

    /// How many bytes each part of a large message has, but for the last: as many cache lines of 64 bytes as
    /// fit a packet behind the header.
    ///
    /// Not all that fit: parts of 102,064 bytes begin 16 bytes earlier within a page each time, and sooner or
    /// later one stands where a kernel that copies with `rep movsb` is five times slower: where the
    /// destination is a little ahead of the source within a page (AMD Zen 3; it was the second part of
    /// every message in a `Vec` of glibc's, and 26 µs). In steps of cache lines none of the first 63 does.
    #[inline]
    pub fn part_bytes_max(&self) -> u32 {
        part_bytes(self.payload_bytes_max())
    }

    /// The whole HELLO, header included.
    ///
    /// # Panics
    /// If [`check`](Hello::check) fails: options from outside are to be checked where they come in.
    pub fn frame(&self) -> [u8; HELLO_FRAME_BYTES] {
        assert_eq!(self.check(), Ok(()), "a HELLO that no client would accept");
        let mut bytes = [0; HELLO_FRAME_BYTES];
        let header = Header { length: HELLO_BYTES as u32, ..Header::bare(Kind::Hello, 0) };
        bytes[..16].copy_from_slice(&header.encode());
        bytes[16..20].copy_from_slice(&MAGIC);
        bytes[20..22].copy_from_slice(&VERSION.to_le_bytes());
        // 22..24 are the flags, of which version 1 has none.
        bytes[24..40].copy_from_slice(&self.windows.encode());
        bytes[40..44].copy_from_slice(&self.call_descriptors_max.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.packet_bytes_max.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.message_bytes_max.to_le_bytes());
        bytes
    }
}

/// What a client may have under way at any moment, from sending a call to receiving its final frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Calls, grants included.
    pub calls: u32,
    /// Frame bytes of the calls and room for their answers, large messages not counted.
    pub bytes: u32,
    /// Descriptors sent with the calls. Those of the answers fill the client's table, and the client sees to
    /// that itself.
    pub descriptors: u32,
    /// Bytes of large calls, and of room for large answers.
    pub large_bytes: u32,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows {
            calls: CALLS_WINDOW_DEFAULT,
            bytes: BYTES_WINDOW_DEFAULT,
            descriptors: DESCRIPTORS_WINDOW_DEFAULT,
            large_bytes: LARGE_WINDOW_DEFAULT,
        }
    }
}

impl Windows {
    /// Reads the payload of a CREDIT. That it only grows is checked where the old windows are known.
    pub fn parse(payload: &[u8]) -> Result<Windows, Malformed> {
        match payload.as_chunks::<4>() {
            (&[calls, bytes, descriptors, large], []) => Ok(Windows::of([calls, bytes, descriptors, large])),
            _ => Err(Malformed::length(Kind::Credit, payload)),
        }
    }

    /// The whole CREDIT, header included.
    pub fn frame(&self) -> [u8; CREDIT_FRAME_BYTES] {
        let mut bytes = [0; CREDIT_FRAME_BYTES];
        let header = Header { length: CREDIT_BYTES as u32, ..Header::bare(Kind::Credit, 0) };
        bytes[..16].copy_from_slice(&header.encode());
        bytes[16..].copy_from_slice(&self.encode());
        bytes
    }

    fn of([calls, bytes, descriptors, large_bytes]: [[u8; 4]; 4]) -> Windows {
        Windows {
            calls: u32::from_le_bytes(calls),
            bytes: u32::from_le_bytes(bytes),
            descriptors: u32::from_le_bytes(descriptors),
            large_bytes: u32::from_le_bytes(large_bytes),
        }
    }

    fn encode(&self) -> [u8; CREDIT_BYTES] {
        let Windows { calls, bytes, descriptors, large_bytes } = *self;
        bytemuck::cast([calls, bytes, descriptors, large_bytes].map(u32::to_le_bytes))
    }
}

/// The payload of a packet that is the whole answer to call `number` and nothing else, with as many
/// descriptors as have come: what most packets to a caller are, told by one look. `None` says nothing:
/// [`frames`] reads what it is.
pub(crate) fn only_answer(packet: &[u8], descriptors: usize, number: u32) -> Option<&[u8]> {
    let (header, payload) = packet.split_first_chunk::<HEADER_BYTES>()?;
    let length = u32::try_from(payload.len()).ok()?;
    let descriptors =
        u8::try_from(descriptors).ok().filter(|count| usize::from(*count) <= DESCRIPTORS_MAX)?;
    let kind = [Kind::Answer as u8, descriptors, 0, 0];
    let expected: [u8; HEADER_BYTES] =
        bytemuck::cast([length.to_le_bytes(), number.to_le_bytes(), kind, [0; 4]]);
    (*header == expected).then_some(payload)
}

/// The call that a packet, or the rest of one, begins with, if it is what most calls are: whole, of few
/// bytes, with no time limit and with room for an answer that fits a frame of this session. `None` says
/// nothing: [`frames`] reads what it is. Whether its descriptors have come is for others to see.
#[inline]
pub(crate) fn small_call<'a>(packet: &'a [u8], hello: &Hello) -> Option<SmallCall<'a>> {
    let (header, rest) = packet.split_first_chunk::<HEADER_BYTES>()?;
    let [length, number, [kind, descriptors, answer_descriptors, flags], answer_bytes]: [[u8; 4]; 4] =
        bytemuck::cast(*header);
    let (length, answer_bytes) = (u32::from_le_bytes(length), u32::from_le_bytes(answer_bytes));
    let bare = (kind, flags) == (Kind::Call as u8, 0) && u32::from(descriptors) <= hello.call_descriptors_max;
    let small = length <= SMALL_BYTES_MAX as u32 && answer_bytes <= hello.payload_bytes_max();
    if !bare || !small || usize::from(answer_descriptors) > DESCRIPTORS_MAX {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length as usize)?;
    let answer = Size { bytes: answer_bytes, descriptors: answer_descriptors };
    Some(SmallCall { number: u32::from_le_bytes(number), payload, descriptors, answer, rest })
}

/// What [`small_call`] has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SmallCall<'a> {
    pub(crate) number: u32,
    pub(crate) payload: &'a [u8],
    pub(crate) descriptors: u8,
    pub(crate) answer: Size,
    /// What follows in the packet.
    pub(crate) rest: &'a [u8],
}

/// The header of a call of so many bytes, which fit a packet: [`Header::encode`] for what nearly all are.
#[inline]
pub(crate) fn small_call_header(number: u32, message: Size, room: Size) -> [u8; HEADER_BYTES] {
    debug_assert!(message.bytes() <= PAYLOAD_BYTES_MAX && message.descriptors() <= DESCRIPTORS_MAX);
    debug_assert!(room.descriptors() <= DESCRIPTORS_MAX);
    bytemuck::cast([
        message.bytes.to_le_bytes(),
        number.to_le_bytes(),
        [Kind::Call as u8, message.descriptors, room.descriptors, Flags::NONE.byte()],
        room.bytes.to_le_bytes(),
    ])
}

/// The header of an answer of so many bytes, which fit a packet: [`Header::encode`] for what nearly all are.
#[inline]
pub(crate) fn small_answer_header(number: u32, message: Size) -> [u8; HEADER_BYTES] {
    debug_assert!(message.bytes() <= PAYLOAD_BYTES_MAX && message.descriptors() <= DESCRIPTORS_MAX);
    bytemuck::cast([
        message.bytes.to_le_bytes(),
        number.to_le_bytes(),
        [Kind::Answer as u8, message.descriptors, 0, Flags::NONE.byte()],
        [0; 4],
    ])
}

/// Whether a packet of so many bytes, which begins with these, is one part of a large message and nothing
/// else.
pub(crate) fn is_one_part(packet: &[u8], length: usize) -> bool {
    let header = packet.first_chunk().and_then(|header| Header::parse(header).ok());
    header.is_some_and(|header| header.kind == Kind::Part && HEADER_BYTES + header.length as usize == length)
}

/// Of which call a part is that has been received where it belongs: its packet is the header that was
/// expected, word for word.
pub(crate) fn part_landed(packet: &[u8]) -> u32 {
    let header = packet.first_chunk().and_then(|header| Header::parse(header).ok());
    header.expect("only what was expected lands").number
}

/// The answer that a packet begins with, if it is small: what nearly all are, told by one look. `None` says
/// nothing: [`frames_from`] reads what it is. Whether its descriptors have come is for others to see.
#[inline]
pub(crate) fn small_answer(packet: &[u8]) -> Option<SmallAnswer<'_>> {
    let (header, rest) = packet.split_first_chunk::<HEADER_BYTES>()?;
    let [length, number, [kind, descriptors, nothing @ ..], answer_bytes]: [[u8; 4]; 4] =
        bytemuck::cast(*header);
    let length = u32::from_le_bytes(length) as usize;
    let is_answer = kind == Kind::Answer as u8 && nothing == [0; 2] && answer_bytes == [0; 4];
    if !is_answer || length > SMALL_BYTES_MAX || usize::from(descriptors) > DESCRIPTORS_MAX {
        return None;
    }
    Some(SmallAnswer { number: u32::from_le_bytes(number), payload: rest.get(..length)?, descriptors })
}

/// What [`small_answer`] has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SmallAnswer<'a> {
    pub(crate) number: u32,
    pub(crate) payload: &'a [u8],
    pub(crate) descriptors: u8,
}

/// Why the library ended a call in the server's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
#[non_exhaustive]
pub enum RefusedReason {
    /// Policy. Asking again will not help.
    #[error("refused by policy")]
    Refused = 1,
    /// The answer does not fit what the caller reserved. The call was seen.
    #[error("the answer does not fit what was reserved for it")]
    TooLarge = 2,
    /// The call's descriptors did not all arrive; it was not shown to anybody.
    #[error("the descriptors of the call did not all arrive")]
    DescriptorsLost = 3,
    /// The server has no descriptors left for what was asked.
    #[error("the server is out of descriptors")]
    OutOfDescriptors = 4,
    /// The end of a call that its caller withdrew.
    #[error("the call was cancelled")]
    Cancelled = 5,
    /// The call crossed the server's GOODBYE; it was not shown to anybody, so trying elsewhere is safe.
    #[error("the server had said goodbye")]
    Leaving = 6,
    /// The caller's time had passed before anybody took the call; it was not shown to anybody.
    #[error("the deadline had passed before the call was taken")]
    Expired = 7,
    /// The server has no memory left for a call as large; it was not shown to anybody.
    #[error("the server is out of memory")]
    OutOfMemory = 8,
}

impl RefusedReason {
    /// Reads the payload of a REFUSED.
    pub fn parse(payload: &[u8]) -> Result<RefusedReason, Malformed> {
        let &[byte] = payload else {
            return Err(Malformed::length(Kind::Refused, payload));
        };
        match byte {
            1 => Ok(RefusedReason::Refused),
            2 => Ok(RefusedReason::TooLarge),
            3 => Ok(RefusedReason::DescriptorsLost),
            4 => Ok(RefusedReason::OutOfDescriptors),
            5 => Ok(RefusedReason::Cancelled),
            6 => Ok(RefusedReason::Leaving),
            7 => Ok(RefusedReason::Expired),
            8 => Ok(RefusedReason::OutOfMemory),
            unknown => Err(Malformed::Reason(unknown)),
        }
    }

    /// The whole REFUSED that ends call `number`, header included.
    pub fn frame(self, number: u32) -> [u8; REFUSED_FRAME_BYTES] {
        // One is written with each answer that brings descriptors, and its header need not be checked.
        let header: [u8; HEADER_BYTES] = bytemuck::cast([
            (REFUSED_BYTES as u32).to_le_bytes(),
            number.to_le_bytes(),
            [Kind::Refused as u8, 0, 0, Flags::NONE.byte()],
            [0; 4],
        ]);
        let mut bytes = [self as u8; REFUSED_FRAME_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        bytes
    }
}

/// One of the four things a window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Calls under way.
    Calls,
    /// Bytes sent and reserved.
    Bytes,
    /// Descriptors sent.
    Descriptors,
    /// Bytes of large messages sent and reserved.
    LargeBytes,
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Resource::Calls => "calls",
            Resource::Bytes => "bytes",
            Resource::Descriptors => "descriptors",
            Resource::LargeBytes => "bytes of large messages",
        })
    }
}

/// What a peer got wrong. There is no repair: the session is closed, the violation counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A packet without a byte. No side ever sends one, for it reads like the end.
    #[error("an empty packet")]
    Empty,
    /// More than [`PACKET_BYTES_MAX`].
    #[error("a packet of {bytes} bytes")]
    PacketTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The packet ends inside a header.
    #[error("{left} bytes where a header should be")]
    HeaderCut {
        /// What was left of the packet.
        left: usize,
    },
    /// The packet ends inside a payload.
    #[error("{left} bytes where a payload of {length} should be")]
    PayloadCut {
        /// What the header promised.
        length: u32,
        /// What was left of the packet.
        left: usize,
    },
    /// No such kind.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// Flags on a header that nobody knows.
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// Flags on a kind that has none, or not these.
    #[error("{kind} with flags {flags:#04x}")]
    FrameFlags {
        /// The kind.
        kind: Kind,
        /// What it had.
        flags: u8,
    },
    /// The length of a large message that is none, or too large, or of a message that is not large.
    #[error("a message of {0} bytes in all")]
    Total(u64),
    /// Time left on a frame that does not say so.
    #[error("{0} microseconds left without a deadline")]
    TimeLeft(u64),
    /// A frame that ends a call whose message, or whose answer, is not complete, and may not end it so.
    #[error("{kind} in the middle of a large message, number {number}")]
    Midway {
        /// What came.
        kind: Kind,
        /// Of which call.
        number: u32,
    },
    /// What came with ELSEWHERE is not a connected SEQPACKET socket.
    #[error("an answer from elsewhere over something else than a socket")]
    Elsewhere,
    /// The other side sends these.
    #[error("{0} from the wrong side")]
    WrongSide(Kind),
    /// A payload longer or shorter than its kind, or than the session, allows.
    #[error("{kind} with a payload of {length} bytes")]
    Length {
        /// Whose payload.
        kind: Kind,
        /// Its length.
        length: u32,
    },
    /// A number on a frame that is about the session.
    #[error("{kind} with number {number}")]
    Number {
        /// The kind that has none.
        kind: Kind,
        /// What it had.
        number: u32,
    },
    /// Descriptors on a kind that carries none.
    #[error("{kind} with {descriptors} descriptors")]
    Descriptors {
        /// The kind that carries none.
        kind: Kind,
        /// What it declared.
        descriptors: u8,
    },
    /// More descriptors than a packet, or a call on this session, can carry.
    #[error("{0} descriptors")]
    TooManyDescriptors(u8),
    /// Room for an answer on a frame that has none, or not the room it must have.
    #[error("{kind} that reserves {answer_bytes} bytes and {answer_descriptors} descriptors")]
    Answer {
        /// The kind.
        kind: Kind,
        /// What it declared.
        answer_bytes: u32,
        /// What it declared.
        answer_descriptors: u8,
    },
    /// Two frames of one packet declare descriptors, so nobody can say which is whose.
    #[error("a second frame with descriptors in one packet")]
    SecondDescriptors,
    /// A frame declares another number of descriptors than came.
    #[error("{declared} descriptors declared, {arrived} arrived")]
    DescriptorsDiffer {
        /// What the frame says.
        declared: u8,
        /// What the packet brought.
        arrived: usize,
    },
    /// Descriptors came and no frame declares any.
    #[error("{arrived} descriptors that no frame declares")]
    DescriptorsUnclaimed {
        /// What the packet brought.
        arrived: usize,
    },
    /// A HELLO that does not begin with [`MAGIC`].
    #[error("magic {0:02x?}")]
    Magic([u8; 4]),
    /// A HELLO of a version we do not speak.
    #[error("version {0}")]
    Version(u16),
    /// A HELLO with flags, of which version 1 has none.
    #[error("flags {0:#06x}")]
    Flags(u16),
    /// A HELLO whose packets are smaller than [`PACKET_BYTES_MIN`] or larger than [`PACKET_BYTES_MAX`].
    #[error("packets of at most {0} bytes")]
    PacketBytes(u32),
    /// A HELLO whose calls carry more than [`DESCRIPTORS_MAX`].
    #[error("calls of at most {0} descriptors")]
    CallDescriptors(u32),
    /// A HELLO whose messages are smaller than its packets, or larger than [`MESSAGE_BYTES_MAX`].
    #[error("messages of at most {0} bytes")]
    MessageBytes(u32),
    /// A window that the largest call of its session does not fit.
    #[error("a window too small for its own calls: {0}")]
    WindowTooSmall(Resource),
    /// A CREDIT that takes something back.
    #[error("a window shrank: {0}")]
    WindowShrunk(Resource),
    /// No such reason.
    #[error("unknown reason {0}")]
    Reason(u8),
    /// A call or grant after its client's GOODBYE, or a second GOODBYE of one side.
    #[error("{0} after a GOODBYE")]
    AfterGoodbye(Kind),
}

impl Malformed {
    /// Of which nobody knows how much longer it was.
    pub(crate) const LONGER_THAN_A_PACKET: Malformed =
        Malformed::PacketTooLong { bytes: PACKET_BYTES_MAX + 1 };
}

impl Malformed {
    fn length(kind: Kind, payload: &[u8]) -> Malformed {
        Malformed::Length { kind, length: payload.len().try_into().unwrap_or(u32::MAX) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &str = include_str!("../../PROTOCOL.md");

    /// One block ` ```example NAME ` of the document.
    #[derive(Debug)]
    struct Example {
        name: &'static str,
        from_client: bool,
        descriptors: usize,
        refused: Option<&'static str>,
        bytes: Vec<u8>,
    }

    fn examples() -> Vec<Example> {
        let mut examples = Vec::new();
        let mut lines = DOCUMENT.lines();
        while let Some(line) = lines.next() {
            let Some(name) = line.strip_prefix("```example ") else { continue };
            let mut example =
                Example { name, from_client: false, descriptors: 0, refused: None, bytes: Vec::new() };
            for line in lines.by_ref().take_while(|line| *line != "```") {
                let (field, value) = line.split_once(": ").unwrap();
                let value = value.split('#').next().unwrap().trim();
                match field {
                    "from" => example.from_client = value == "client",
                    "descriptors" => example.descriptors = value.parse().unwrap(),
                    "refused" => example.refused = Some(value),
                    "hex" => example
                        .bytes
                        .extend(value.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap())),
                    other => panic!("{name}: unknown field {other}"),
                }
            }
            examples.push(example);
        }
        examples
    }

    fn size(bytes: usize, descriptors: usize) -> Size {
        Size::of_bytes(bytes).unwrap().with_descriptors(descriptors).unwrap()
    }

    fn with_payload(header: Header, payload: &[u8]) -> Vec<u8> {
        [&header.encode(), payload].concat()
    }

    /// The bytes the library writes for a well-formed example of the document.
    fn written(name: &str) -> Option<Vec<u8>> {
        let larger = Windows { calls: 512, bytes: 36 << 20, ..Windows::default() };
        let hello = Hello::default();
        let part = |number, bytes: &[u8]| with_payload(Header::part(number, bytes.len() as u32), bytes);
        let packet = match name {
            "hello" => Hello::default().frame().to_vec(),
            "two-calls" => [
                with_payload(Header::call(7, size(3, 0), size(64, 0)), b"add"),
                with_payload(Header::call(8, size(4, 1), size(PAYLOAD_BYTES_MAX, 2)), b"open"),
            ]
            .concat(),
            "answers" => {
                [with_payload(Header::answer_to(7, size(2, 0)), b"42"), Header::dropped(8).encode().to_vec()]
                    .concat()
            }
            "answer-with-descriptors" => Header::answer_to(8, size(0, 2)).encode().to_vec(),
            "refused" => RefusedReason::DescriptorsLost.frame(8).to_vec(),
            "cancel" => Header::cancel(7).encode().to_vec(),
            "lost" => Header::lost(8).encode().to_vec(),
            "credit" => larger.frame().to_vec(),
            "goodbye" => Header::goodbye().encode().to_vec(),
            "grant" => Header::grant(9).encode().to_vec(),
            "granted" => Header::answer_to(9, size(0, 1)).encode().to_vec(),
            "call-with-deadline" => {
                let time_left = Some(Duration::from_millis(250));
                let opening = hello.call(7, size(3, 0), size(64, 0), time_left).encode();
                [&opening[..], b"add"].concat()
            }
            "large-call" => hello.call(7, size(150_000, 1), size(8 << 20, 0), None).encode().to_vec(),
            "large-call-with-deadline" => {
                let time_left = Some(Duration::from_secs(30));
                hello.call(7, size(102_049, 0), Size::NONE, time_left).encode().to_vec()
            }
            "part" => part(7, b"more"),
            "large-answer" => hello.answer_to(7, size(8 << 20, 0)).encode().to_vec(),
            "parts-of-two-answers" => {
                [part(7, b"lastly"), part(8, b"and so"), Header::dropped(9).encode().to_vec()].concat()
            }
            "elsewhere" => Header::elsewhere(7).encode().to_vec(),
            _ => return None,
        };
        Some(packet)
    }

    /// What reading such an example must give.
    fn meant(name: &str) -> Option<Vec<Said<'static>>> {
        let call = |number, body, descriptors, answer, time_left| {
            let (descriptors, missing) = (descriptors, 0);
            Said::Client(FromClient::Call { number, body, descriptors, missing, answer, time_left })
        };
        let add = call(7, Body::Whole(b"add"), 0, size(64, 0), None);
        let open = call(8, Body::Whole(b"open"), 1, size(102_064, 2), None);
        let answer = |number, body, descriptors| FromServer::Answer { number, body, descriptors, missing: 0 };
        let whole = |number, payload, descriptors| answer(number, Body::Whole(payload), descriptors);
        let large_bytes = 128 << 20;
        let larger = Windows { calls: 512, bytes: 36 << 20, descriptors: 64, large_bytes };
        let hello = Hello {
            windows: Windows { calls: 256, bytes: 18 << 20, descriptors: 64, large_bytes },
            call_descriptors_max: 16,
            packet_bytes_max: 102_080,
            message_bytes_max: 64 << 20,
        };
        Some(match name {
            "hello" => vec![Said::Server(FromServer::Hello(hello))],
            "two-calls" => vec![add, open],
            "answers" => {
                vec![Said::Server(whole(7, b"42", 0)), Said::Server(FromServer::Dropped { number: 8 })]
            }
            "answer-with-descriptors" => vec![Said::Server(whole(8, b"", 2))],
            "refused" => {
                vec![Said::Server(FromServer::Refused { number: 8, reason: RefusedReason::DescriptorsLost })]
            }
            "cancel" => vec![Said::Client(FromClient::Cancel { number: 7 })],
            "lost" => vec![Said::Client(FromClient::Lost { number: 8 })],
            "credit" => vec![Said::Server(FromServer::Credit(larger))],
            "goodbye" => vec![Said::Server(FromServer::Goodbye)],
            "grant" => vec![Said::Client(FromClient::Grant { number: 9 })],
            "granted" => vec![Said::Server(whole(9, b"", 1))],
            "call-with-deadline" => {
                vec![call(7, Body::Whole(b"add"), 0, size(64, 0), Some(Duration::from_millis(250)))]
            }
            "large-call" => vec![call(7, Body::Large { total: 150_000 }, 1, size(8 << 20, 0), None)],
            "large-call-with-deadline" => {
                vec![call(7, Body::Large { total: 102_049 }, 0, Size::NONE, Some(Duration::from_secs(30)))]
            }
            "part" => vec![Said::Client(FromClient::Part { number: 7, payload: b"more" })],
            "large-answer" => vec![Said::Server(answer(7, Body::Large { total: 8 << 20 }, 0))],
            "parts-of-two-answers" => vec![
                Said::Server(FromServer::Part { number: 7, payload: b"lastly" }),
                Said::Server(FromServer::Part { number: 8, payload: b"and so" }),
                Said::Server(FromServer::Dropped { number: 9 }),
            ],
            "elsewhere" => vec![Said::Server(FromServer::Elsewhere { number: 7, missing: 0 })],
            _ => return None,
        })
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Said<'a> {
        Client(FromClient<'a>),
        Server(FromServer<'a>),
    }

    fn read(packet: &[u8], arrived: Arrived, from_client: bool) -> Result<Vec<Said<'_>>, Malformed> {
        frames(packet, arrived)
            .map(|frame| match from_client {
                true => frame?.from_client().map(Said::Client),
                false => frame?.from_server().map(Said::Server),
            })
            .collect()
    }

    #[test]
    fn every_example_of_the_document_is_what_the_library_writes_and_reads() {
        let mut checked = 0;
        for example in examples() {
            let arrived = Arrived::Whole(example.descriptors);
            let said = read(&example.bytes, arrived, example.from_client);
            match (example.name, example.refused) {
                // Spoken before there is a session; not frames.
                ("connect", None) => assert_eq!((&example.bytes[..], example.descriptors), (&b"c"[..], 1)),
                // Of a plain object; `large.rs` has its test.
                ("plain-large-answer", None) => {}
                ("confirmation", None) => {
                    assert_eq!((&example.bytes[..], example.descriptors), (&b"a"[..], 0))
                }
                (name, Some(refused)) => {
                    let found = format!("{:?}", said.unwrap_err());
                    let variant = found.split([' ', '(']).next().unwrap();
                    assert_eq!(variant, refused, "{name}");
                }
                (name, None) => {
                    let written =
                        written(name).unwrap_or_else(|| panic!("no test writes the example {name}"));
                    assert_eq!(example.bytes, written, "{name}");
                    assert_eq!(said.unwrap(), meant(name).unwrap(), "{name}");
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, 18, "an example is gone from the document, or came without its test");
    }

    #[test]
    fn every_kind_has_an_example() {
        let mut seen: Vec<u8> = examples()
            .iter()
            .filter(|example| example.refused.is_none())
            .flat_map(|example| frames(&example.bytes, Arrived::Whole(example.descriptors)))
            .filter_map(|frame| Some(frame.ok()?.header.kind as u8))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn the_document_states_the_limits_of_the_code() {
        let with_commas = |n: usize| {
            let digits = n.to_string();
            let groups: Vec<&str> =
                digits.as_bytes().rchunks(3).rev().map(|g| str::from_utf8(g).unwrap()).collect();
            groups.join(",")
        };
        let largest = format!("| `MESSAGE_BYTES_MAX` | {} bytes |", with_commas(MESSAGE_BYTES_MAX));
        assert!(DOCUMENT.contains(&largest));
        assert!(DOCUMENT.contains(&with_commas(MESSAGE_BYTES_DEFAULT as usize)));
        assert!(
            DOCUMENT.contains(&format!("| `PACKET_BYTES_MAX` | {} bytes |", with_commas(PACKET_BYTES_MAX)))
        );
        assert!(DOCUMENT.contains(&format!("| `DESCRIPTORS_MAX` | {DESCRIPTORS_MAX} descriptors |")));
        assert!(DOCUMENT.contains(&format!("0 to {}", with_commas(PAYLOAD_BYTES_MAX))));
        assert!(DOCUMENT.contains(&format!("| {}, or what is left |", with_commas(PART_BYTES_MAX))));
        assert_eq!(Hello::default().part_bytes_max() as usize, PART_BYTES_MAX);
        assert_eq!(Hello { packet_bytes_max: 4_096, ..Hello::default() }.part_bytes_max(), 4_032);
        let packets = format!("{} to {}", with_commas(PACKET_BYTES_MIN), with_commas(PACKET_BYTES_MAX));
        assert!(DOCUMENT.contains(&packets));
    }

    fn only_error(packet: &[u8], arrived: Arrived) -> Malformed {
        let mut frames = frames(packet, arrived).skip_while(Result::is_ok);
        let error = frames.next().unwrap().unwrap_err();
        assert_eq!(frames.next(), None, "nothing follows an error");
        error
    }

    #[test]
    fn an_empty_packet_is_an_error_and_not_an_end() {
        assert_eq!(only_error(b"", Arrived::Whole(0)), Malformed::Empty);
    }

    #[test]
    fn the_largest_packet_is_read_and_one_byte_more_is_not() {
        let header = Header::call(1, size(PAYLOAD_BYTES_MAX, 0), Size::NONE);
        let mut packet = with_payload(header, &vec![0x5a; PAYLOAD_BYTES_MAX]);
        assert_eq!(frames(&packet, Arrived::Whole(0)).count(), 1);
        assert!(frames(&packet, Arrived::Whole(0)).all(|frame| frame.is_ok()));
        packet.push(0);
        assert_eq!(
            only_error(&packet, Arrived::Whole(0)),
            Malformed::PacketTooLong { bytes: PACKET_BYTES_MAX + 1 }
        );
    }

    #[test]
    fn a_payload_longer_than_a_packet_is_named_before_it_is_looked_for() {
        let mut bytes = Header::call(1, Size::NONE, Size::NONE).encode();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Malformed::Length { kind: Kind::Call, length: u32::MAX };
        assert_eq!(only_error(&bytes, Arrived::Whole(0)), error);
    }

    #[test]
    fn a_packet_that_ends_in_a_header_is_cut() {
        let packet = [&Header::cancel(1).encode()[..], &[0; 15]].concat();
        assert_eq!(only_error(&packet, Arrived::Whole(0)), Malformed::HeaderCut { left: 15 });
    }

    #[test]
    fn two_frames_with_descriptors_in_one_packet_are_refused() {
        let call = |number| Header::call(number, size(0, 1), Size::NONE).encode();
        let packet = [call(1), call(2)];
        assert_eq!(only_error(packet.as_flattened(), Arrived::Whole(1)), Malformed::SecondDescriptors);
    }

    #[test]
    fn a_frame_gets_exactly_the_descriptors_it_declares() {
        let packet = Header::call(1, size(0, 2), Size::NONE).encode();
        let mut whole = frames(&packet, Arrived::Whole(2));
        assert_eq!(whole.next().unwrap().unwrap().missing, 0);
        assert_eq!(whole.next(), None);
        for arrived in [0, 1, 3] {
            let error = Malformed::DescriptorsDiffer { declared: 2, arrived };
            assert_eq!(only_error(&packet, Arrived::Whole(arrived)), error);
        }
    }

    #[test]
    fn descriptors_lost_at_the_receiver_are_missing_and_nobodys_fault() {
        let packet = Header::call(1, size(0, 2), Size::NONE).encode();
        for (arrived, missing) in [(0, 2), (1, 1), (2, 0)] {
            assert_eq!(frames(&packet, Arrived::Cut(arrived)).next().unwrap().unwrap().missing, missing);
        }
        let error = Malformed::DescriptorsDiffer { declared: 2, arrived: 3 };
        assert_eq!(only_error(&packet, Arrived::Cut(3)), error);
    }

    #[test]
    fn descriptors_that_no_frame_declares_are_refused_after_the_last_frame() {
        let packet = [Header::cancel(1).encode(), Header::cancel(2).encode()];
        let mut frames = frames(packet.as_flattened(), Arrived::Cut(1));
        assert!(frames.next().unwrap().is_ok());
        assert!(frames.next().unwrap().is_ok());
        assert_eq!(frames.next(), Some(Err(Malformed::DescriptorsUnclaimed { arrived: 1 })));
        assert_eq!(frames.next(), None);
    }

    #[test]
    fn control_data_cut_beside_a_frame_without_descriptors_is_not_held_against_the_sender() {
        let packet = Header::cancel(1).encode();
        assert!(frames(&packet, Arrived::Cut(0)).all(|frame| frame.is_ok()));
    }

    #[test]
    fn each_side_refuses_what_only_it_may_send() {
        let frame = |header| Frame { header, extension: None, payload: b"", missing: 0 };
        for header in [Header::answer_to(1, Size::NONE), Header::dropped(1), Header::elsewhere(1)] {
            assert_eq!(frame(header).from_client(), Err(Malformed::WrongSide(header.kind)));
        }
        let call = Header::call(1, Size::NONE, Size::NONE);
        for header in [call, Header::cancel(1), Header::grant(1), Header::lost(1)] {
            assert_eq!(frame(header).from_server(), Err(Malformed::WrongSide(header.kind)));
        }
        for packet in
            [&Hello::default().frame()[..], &Windows::default().frame(), &RefusedReason::Refused.frame(1)]
        {
            assert!(matches!(read(packet, Arrived::Whole(0), true), Err(Malformed::WrongSide(_))));
        }
    }

    #[test]
    fn fields_without_a_meaning_must_be_zero() {
        let spoil = |header: [u8; 16], at: usize, value: u8| {
            let mut bytes = header;
            bytes[at] = value;
            Header::parse(&bytes).unwrap_err()
        };
        let cancel = Header::cancel(7).encode();
        let goodbye = Header::goodbye().encode();
        let grant = Header::grant(7).encode();
        let lost = Header::lost(7).encode();
        assert_eq!(spoil(lost, 0, 1), Malformed::Length { kind: Kind::Lost, length: 1 });
        assert_eq!(spoil(lost, 9, 1), Malformed::Descriptors { kind: Kind::Lost, descriptors: 1 });
        assert_eq!(spoil(cancel, 0, 1), Malformed::Length { kind: Kind::Cancel, length: 1 });
        assert_eq!(spoil(cancel, 9, 1), Malformed::Descriptors { kind: Kind::Cancel, descriptors: 1 });
        assert_eq!(spoil(cancel, 11, 128), Malformed::UnknownFlags(128));
        assert_eq!(spoil(cancel, 11, 1), Malformed::FrameFlags { kind: Kind::Cancel, flags: 1 });
        assert_eq!(spoil(goodbye, 7, 1), Malformed::Number { kind: Kind::Goodbye, number: 1 << 24 });
        assert_eq!(
            spoil(cancel, 10, 1),
            Malformed::Answer { kind: Kind::Cancel, answer_bytes: 0, answer_descriptors: 1 }
        );
        for (at, value) in [(10, 0), (10, 2), (12, 1)] {
            assert!(matches!(spoil(grant, at, value), Malformed::Answer { kind: Kind::Grant, .. }));
        }
        assert_eq!(spoil(cancel, 8, 0), Malformed::Kind(0));
        assert_eq!(spoil(cancel, 8, 13), Malformed::Kind(13));
    }

    #[test]
    fn only_calls_and_answers_are_large_and_only_calls_have_a_deadline() {
        let flagged = |header: Header, flags| Header { flags, length: 16, ..header }.check();
        let (large, deadline) =
            (Flags { large: true, deadline: false }, Flags { large: false, deadline: true });
        let call = Header::call(1, Size::NONE, Size::NONE);
        let answer = Header::answer_to(1, Size::NONE);
        for (header, flags) in [(call, large), (call, deadline), (answer, large)] {
            assert_eq!(flagged(header, flags), Ok(()));
        }
        for (header, flags) in
            [(answer, deadline), (Header::part(1, 16), large), (Header::grant(1), deadline)]
        {
            assert!(matches!(flagged(header, flags), Err(Malformed::FrameFlags { .. })));
        }
    }

    #[test]
    fn a_flag_promises_an_extension_and_large_nothing_else() {
        let call = |length, large, deadline| {
            let header = Header::call(1, Size::NONE, Size::NONE);
            Header { flags: Flags { large, deadline }, length, ..header }.check()
        };
        assert_eq!(call(16, true, true), Ok(()));
        assert_eq!(call(17, false, true), Ok(()));
        for (length, large, deadline) in [(15, true, false), (17, true, true), (15, false, true)] {
            assert_eq!(call(length, large, deadline), Err(Malformed::Length { kind: Kind::Call, length }));
        }
    }

    #[test]
    fn an_extension_says_what_its_flags_announce_and_nothing_else() {
        let flags = |large, deadline| Flags { large, deadline };
        let read = |total: u64, time: u64, flags| {
            Extension::parse(&bytemuck::cast([total.to_le_bytes(), time.to_le_bytes()]), flags)
        };
        let most = MESSAGE_BYTES_MAX as u64;
        let extension = |total, time_left_us| Ok(Extension { total, time_left_us });
        assert_eq!(read(most, 0, flags(true, false)), extension(most as u32, 0));
        assert_eq!(read(most, 5, flags(true, true)), extension(most as u32, 5));
        assert_eq!(read(0, u64::MAX, flags(false, true)), extension(0, u64::MAX));
        assert_eq!(read(most + 1, 0, flags(true, false)), Err(Malformed::Total(most + 1)));
        assert_eq!(read(0, 0, flags(true, false)), Err(Malformed::Total(0)));
        assert_eq!(read(1, 0, flags(false, true)), Err(Malformed::Total(1)));
        assert_eq!(read(most, 1, flags(true, false)), Err(Malformed::TimeLeft(1)));
    }

    #[test]
    fn a_message_is_large_where_a_packet_ends_and_a_deadline_moves_that_end() {
        let hello = Hello { packet_bytes_max: 4_096, ..Hello::default() };
        let time = Some(Duration::from_secs(1));
        for (bytes, time_left, total) in
            [(4_080, None, None), (4_081, None, Some(4_081)), (4_064, time, None), (4_065, time, Some(4_065))]
        {
            let opening = hello.call(1, size(bytes, 2), Size::NONE, time_left);
            assert_eq!((opening.total(), opening.time_left()), (total, time_left));
            assert_eq!(opening.message(), size(bytes, 2));
            assert_eq!(hello.admits(&opening), Ok(()));
        }
        assert_eq!(hello.answer_to(1, size(4_080, 0)).total(), None);
        assert_eq!(hello.answer_to(1, size(4_081, 0)).total(), Some(4_081));
    }

    #[test]
    fn what_fits_a_packet_is_not_large_and_what_no_session_holds_is_refused() {
        let hello = Hello { message_bytes_max: 150_000, ..Hello::default() };
        let large = |total, deadline| {
            let header = Header { length: 16, ..Header::call(1, Size::NONE, Size::NONE) };
            let header = Header { flags: Flags { large: true, deadline }, ..header };
            hello.admits(&Opening { header, extension: Some(Extension { total, time_left_us: 0 }) })
        };
        for (total, deadline) in [(102_065, false), (102_049, true), (150_000, false), (150_000, true)] {
            assert_eq!(large(total, deadline), Ok(()));
        }
        for (total, deadline) in [(102_064, false), (102_048, true), (150_001, false), (1, true)] {
            assert_eq!(large(total, deadline), Err(Malformed::Total(total.into())));
        }
    }

    #[test]
    fn a_session_whose_messages_fit_its_packets_carries_nothing_large() {
        let hello = Hello { message_bytes_max: 102_064, ..Hello::default() };
        assert_eq!((hello.check(), hello.carries_large()), (Ok(()), false));
        assert!(hello.admits(&hello.call(1, size(102_065, 0), Size::NONE, None)).is_err());
        assert!(hello.admits(&hello.answer_to(1, size(102_065, 0))).is_err());
        let room = Header::call(1, Size::NONE, size(102_065, 0));
        assert!(matches!(hello.admits(&room.into()), Err(Malformed::Answer { .. })));
    }

    #[test]
    fn a_part_has_a_byte_and_an_answer_from_elsewhere_a_descriptor() {
        assert_eq!(Header::part(1, 0).check(), Err(Malformed::Length { kind: Kind::Part, length: 0 }));
        assert_eq!(Header::part(1, PART_BYTES_MAX as u32).check(), Ok(()));
        let length = PART_BYTES_MAX as u32 + 1;
        assert_eq!(Header::part(1, length).check(), Err(Malformed::Length { kind: Kind::Part, length }));
        for descriptors in [0, 2] {
            let header = Header { descriptors, ..Header::elsewhere(1) };
            assert_eq!(header.check(), Err(Malformed::Descriptors { kind: Kind::Elsewhere, descriptors }));
        }
        let part = Header { descriptors: 1, ..Header::part(1, 5) };
        assert_eq!(part.check(), Err(Malformed::Descriptors { kind: Kind::Part, descriptors: 1 }));
    }

    #[test]
    fn room_for_an_answer_ends_where_messages_end() {
        let mut header = Header::call(1, Size::OF_A_FRAME, Size::LARGEST);
        assert_eq!(Header::parse(&header.encode()), Ok(header));
        header.answer_bytes += 1;
        assert!(matches!(header.check(), Err(Malformed::Answer { .. })));
        header = Header::call(1, Size::NONE, Size::NONE);
        header.answer_descriptors = 254;
        assert_eq!(header.check(), Err(Malformed::TooManyDescriptors(254)));
    }

    #[test]
    fn a_size_ends_where_messages_end() {
        assert_eq!(
            Size::of_bytes(MESSAGE_BYTES_MAX).unwrap().with_descriptors(DESCRIPTORS_MAX),
            Ok(Size::LARGEST)
        );
        assert_eq!(Size::of_bytes(MESSAGE_BYTES_MAX + 1), Err(Oversize::Bytes));
        assert_eq!(Size::NONE.with_descriptors(DESCRIPTORS_MAX + 1), Err(Oversize::Descriptors));
    }

    #[test]
    fn a_hello_that_traps_its_own_calls_is_refused_on_both_sides() {
        let good = Hello::default();
        let windows = |windows| Hello { windows, ..good };
        let two_packets = 2 * PACKET_BYTES_MAX as u32;
        assert_eq!(windows(Windows { bytes: two_packets, ..good.windows }).check(), Ok(()));
        assert_eq!(windows(Windows { calls: 1, descriptors: 16, ..good.windows }).check(), Ok(()));
        let two_messages = Windows { large_bytes: 300_000, ..good.windows };
        assert_eq!(Hello { message_bytes_max: 150_000, ..windows(two_messages) }.check(), Ok(()));
        let nothing_large = Windows { large_bytes: 0, ..good.windows };
        assert_eq!(Hello { message_bytes_max: 102_064, ..windows(nothing_large) }.check(), Ok(()));
        for (bad, error) in [
            (
                windows(Windows { bytes: two_packets - 1, ..good.windows }),
                Malformed::WindowTooSmall(Resource::Bytes),
            ),
            (windows(Windows { calls: 0, ..good.windows }), Malformed::WindowTooSmall(Resource::Calls)),
            (
                windows(Windows { descriptors: 15, ..good.windows }),
                Malformed::WindowTooSmall(Resource::Descriptors),
            ),
            (
                Hello { message_bytes_max: 150_001, ..windows(two_messages) },
                Malformed::WindowTooSmall(Resource::LargeBytes),
            ),
            (Hello { message_bytes_max: 102_063, ..good }, Malformed::MessageBytes(102_063)),
            (Hello { message_bytes_max: 1 << 31, ..good }, Malformed::MessageBytes(1 << 31)),
            (Hello { packet_bytes_max: 4_095, ..good }, Malformed::PacketBytes(4_095)),
            (Hello { packet_bytes_max: 102_081, ..good }, Malformed::PacketBytes(102_081)),
            (Hello { call_descriptors_max: 254, ..good }, Malformed::CallDescriptors(254)),
        ] {
            assert_eq!(bad.check(), Err(error));
            let mut payload = good.frame()[HEADER_BYTES..].to_vec();
            payload[8..24].copy_from_slice(&bad.windows.encode());
            payload[24..28].copy_from_slice(&bad.call_descriptors_max.to_le_bytes());
            payload[28..32].copy_from_slice(&bad.packet_bytes_max.to_le_bytes());
            payload[32..].copy_from_slice(&bad.message_bytes_max.to_le_bytes());
            assert_eq!(Hello::parse(&payload), Err(error));
        }
    }

    #[test]
    fn a_hello_says_what_is_wrong_with_its_opening() {
        let good = Hello::default().frame()[HEADER_BYTES..].to_vec();
        let spoil = |at: usize| {
            let mut payload = good.clone();
            payload[at] ^= 0x80;
            Hello::parse(&payload).unwrap_err()
        };
        assert_eq!(spoil(0), Malformed::Magic([b'S' ^ 0x80, b'R', b'T', b'1']));
        assert_eq!(spoil(4), Malformed::Version(0x81));
        assert_eq!(spoil(7), Malformed::Flags(0x8000));
        for bytes in [0, 7, 8, 35] {
            assert!(matches!(Hello::parse(&good[..bytes]), Err(Malformed::Length { .. })));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(Hello::parse(&longer), Err(Malformed::Length { kind: Kind::Hello, length: 37 }));
    }

    #[test]
    fn a_session_admits_what_its_hello_promised_and_no_more() {
        let hello = Hello {
            packet_bytes_max: 4_096,
            call_descriptors_max: 2,
            message_bytes_max: 4_080,
            ..Hello::default()
        };
        let call = |message, answer| hello.admits(&Header::call(1, message, answer).into());
        assert_eq!(call(size(4_080, 2), size(4_080, 253)), Ok(()));
        assert!(matches!(call(size(4_081, 0), Size::NONE), Err(Malformed::Length { .. })));
        assert!(matches!(call(Size::NONE, size(4_081, 0)), Err(Malformed::Answer { .. })));
        assert_eq!(call(size(0, 3), Size::NONE), Err(Malformed::TooManyDescriptors(3)));
        // How many come back is between the caller's reserve and the answer.
        assert_eq!(hello.admits(&Header::answer_to(1, size(0, 3)).into()), Ok(()));
    }

    #[test]
    fn the_header_of_a_small_call_is_that_of_any_call() {
        for bytes in [0, 1, 64, PAYLOAD_BYTES_MAX] {
            for room in [Size::NONE, size(64, 7), Size::OF_A_FRAME] {
                for descriptors in [0, 1, DESCRIPTORS_MAX] {
                    let message = size(bytes, descriptors);
                    assert_eq!(small_call_header(9, message, room), Header::call(9, message, room).encode());
                }
            }
        }
    }

    #[test]
    fn an_answer_is_small_up_to_a_limit_and_no_further() {
        for (bytes, small) in [(0, true), (SMALL_BYTES_MAX, true), (SMALL_BYTES_MAX + 1, false)] {
            let payload = vec![7; bytes];
            let packet = with_payload(Header::answer_to(9, size(bytes, 0)), &payload);
            let answer = SmallAnswer { number: 9, payload: &payload, descriptors: 0 };
            assert_eq!(small_answer(&packet), small.then_some(answer));
        }
        assert_eq!(small_answer(&Header::dropped(9).encode()), None);
    }

    #[test]
    fn the_header_of_a_small_answer_is_that_of_any_answer() {
        for message in [Size::NONE, size(64, 1), Size::OF_A_FRAME] {
            assert_eq!(small_answer_header(9, message), Header::answer_to(9, message).encode());
        }
    }

    #[test]
    fn every_reason_comes_back_and_others_do_not() {
        for byte in 0..=u8::MAX {
            match RefusedReason::parse(&[byte]) {
                Ok(reason) => assert_eq!(reason.frame(0)[HEADER_BYTES..], [byte]),
                Err(error) => assert_eq!(error, Malformed::Reason(byte)),
            }
        }
        assert!(RefusedReason::parse(&[]).is_err());
        assert!(RefusedReason::parse(&[1, 1]).is_err());
    }

    fn any_size() -> impl Strategy<Value = Size> {
        (0..=300_usize, 0..=DESCRIPTORS_MAX).prop_map(|(bytes, descriptors)| size(bytes, descriptors))
    }

    /// A message that may be large on a session of small packets.
    fn any_message() -> impl Strategy<Value = Size> {
        prop_oneof![any_size(), (4_000..=150_000_usize).prop_map(|bytes| size(bytes, 0))]
    }

    const SMALL_PACKETS: Hello = Hello {
        windows: Windows { calls: 256, bytes: 1 << 20, descriptors: 64, large_bytes: 1 << 20 },
        call_descriptors_max: 253,
        packet_bytes_max: 4_096,
        message_bytes_max: 150_000,
    };

    fn opened(number: u32, message: Size, answer: Size, time_left_ms: Option<u32>) -> Vec<u8> {
        let time_left = time_left_ms.map(|time| Duration::from_millis(time.into()));
        let opening = SMALL_PACKETS.call(number, message, answer, time_left);
        assert_eq!((opening.message(), opening.answer()), (message, answer));
        let payload = opening.total().map_or(message.bytes(), |_| 0);
        [&opening.encode()[..], &vec![0xa5; payload]].concat()
    }

    fn any_windows() -> impl Strategy<Value = Windows> {
        any::<[u32; 4]>().prop_map(|[calls, bytes, descriptors, large_bytes]| Windows {
            calls,
            bytes,
            descriptors,
            large_bytes,
        })
    }

    /// Any frame of the library's own making, whole.
    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let number = any::<u32>;
        let whole = |header: Header| with_payload(header, &vec![0xa5; header.length as usize]);
        prop_oneof![
            (number(), any_size(), any_size())
                .prop_map(move |(n, message, answer)| whole(Header::call(n, message, answer))),
            (number(), any_size()).prop_map(move |(n, message)| whole(Header::answer_to(n, message))),
            (number(), any_size(), any_message(), proptest::option::of(any::<u32>()))
                .prop_map(move |(n, message, answer, time)| opened(n, message, answer, time)),
            (number(), any_message()).prop_map(move |(n, answer)| {
                let opening = SMALL_PACKETS.answer_to(n, answer);
                let payload = opening.total().map_or(answer.bytes(), |_| 0);
                [&opening.encode()[..], &vec![0xa5; payload]].concat()
            }),
            (number(), 1..=300_u32).prop_map(move |(n, bytes)| whole(Header::part(n, bytes))),
            number().prop_map(|n| Header::elsewhere(n).encode().to_vec()),
            number().prop_map(|n| Header::dropped(n).encode().to_vec()),
            number().prop_map(|n| Header::cancel(n).encode().to_vec()),
            number().prop_map(|n| Header::lost(n).encode().to_vec()),
            number().prop_map(|n| Header::grant(n).encode().to_vec()),
            Just(Header::goodbye().encode().to_vec()),
            any_windows().prop_map(|windows| windows.frame().to_vec()),
            (number(), 1..=8_u8)
                .prop_map(|(n, byte)| RefusedReason::parse(&[byte]).unwrap().frame(n).to_vec()),
            Just(Hello::default().frame().to_vec()),
        ]
    }

    fn arrived() -> impl Strategy<Value = Arrived> {
        prop_oneof![(0..300_usize).prop_map(Arrived::Whole), (0..300_usize).prop_map(Arrived::Cut)]
    }

    /// Reads a packet as both sides would, and says whether the reader kept its own promises.
    fn read_anything(packet: &[u8], arrived: Arrived) {
        let mut consumed = 0;
        let mut ended = false;
        for frame in frames(packet, arrived) {
            assert!(!ended, "nothing follows an error");
            let Ok(frame) = frame else {
                ended = true;
                continue;
            };
            // A frame that was accepted is one that we would write in the same way.
            let opening = frame.opening().encode();
            assert_eq!(packet[consumed..][..opening.len()], *opening);
            consumed += opening.len();
            assert_eq!(packet[consumed..][..frame.payload.len()], *frame.payload);
            consumed += frame.payload.len();
            assert!(frame.missing <= frame.header.descriptors);
            let (client, server) = (frame.from_client(), frame.from_server());
            // These are the frames that both may send.
            let of_both = matches!(frame.header.kind, Kind::Goodbye | Kind::Part);
            assert!(client.is_err() || server.is_err() || of_both);
            let _ = Hello::default().admits(&frame.opening());
        }
        assert!(ended || consumed == packet.len(), "a packet without an error is read to its last byte");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            packet in prop::collection::vec(any::<u8>(), 0..200),
            arrived in arrived(),
        ) {
            read_anything(&packet, arrived);
        }

        #[test]
        fn spoiled_frames_are_read_without_a_panic(
            frames in prop::collection::vec(any_frame(), 1..6),
            spoiled in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
            arrived in arrived(),
        ) {
            let mut packet = frames.concat();
            for (at, value) in spoiled {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            read_anything(&packet, arrived);
            packet.truncate(cut.index(packet.len()));
            read_anything(&packet, arrived);
        }

        #[test]
        fn any_payload_is_parsed_without_a_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(hello) = Hello::parse(&payload) {
                prop_assert_eq!(&hello.frame()[HEADER_BYTES..], &payload[..]);
            }
            if let Ok(windows) = Windows::parse(&payload) {
                prop_assert_eq!(&windows.frame()[HEADER_BYTES..], &payload[..]);
            }
            if let Ok(reason) = RefusedReason::parse(&payload) {
                prop_assert_eq!(&reason.frame(1)[HEADER_BYTES..], &payload[..]);
            }
        }

        /// What is told by one look is what reading it frame by frame would tell.
        #[test]
        fn an_answer_alone_is_told_by_one_look(
            mut packet in any_frame(), number in 0..3_u32, descriptors in 0..2_usize, cut in 0..4_usize
        ) {
            packet.truncate(packet.len().saturating_sub(cut.saturating_sub(2)));
            let read: Vec<_> = frames(&packet, Arrived::Whole(descriptors)).collect();
            let slowly = match read.as_slice() {
                [Ok(frame)] => match frame.from_server() {
                    Ok(FromServer::Answer { number: of, body: Body::Whole(payload), .. }) if of == number => {
                        Some(payload)
                    }
                    _ => None,
                },
                _ => None,
            };
            prop_assert_eq!(only_answer(&packet, descriptors, number), slowly);
        }

        /// The same of one that begins a packet.
        #[test]
        fn a_small_answer_is_told_by_one_look(
            mut packet in any_frame(), more in any_frame(), cut in 0..4_usize
        ) {
            packet.extend_from_slice(&more);
            packet.truncate(packet.len().saturating_sub(cut * 9));
            // As many as it says have come.
            let arrived = Arrived::Whole(packet.get(9).copied().unwrap_or(0).into());
            let slowly = match frames(&packet, arrived).next() {
                Some(Ok(frame)) => match frame.from_server() {
                    Ok(FromServer::Answer { number, body: Body::Whole(payload), descriptors, .. })
                        if payload.len() <= SMALL_BYTES_MAX =>
                    {
                        Some(SmallAnswer { number, payload, descriptors })
                    }
                    _ => None,
                },
                _ => None,
            };
            prop_assert_eq!(small_answer(&packet), slowly);
        }

        #[test]
        fn a_small_call_is_told_by_one_look(
            written in prop::collection::vec(any_frame(), 1..3),
            spoiled in proptest::option::of((0..HEADER_BYTES, any::<u8>())),
            cut in 0..4_usize,
            (whole_packets, few) in any::<(bool, bool)>(),
        ) {
            let hello = if whole_packets { Hello::default() } else { SMALL_PACKETS };
            let mut packet = written.concat();
            if few {
                packet[9] %= 3;
            }
            if let Some((at, value)) = spoiled {
                packet[at] = value;
            }
            packet.truncate(packet.len().saturating_sub(cut.saturating_sub(2)));
            // As many as it says have come.
            let arrived = Arrived::Whole(packet.get(9).copied().unwrap_or(0).into());
            let first = frames(&packet, arrived).next().and_then(Result::ok);
            let slowly = first.filter(|frame| hello.admits(&frame.opening()).is_ok()).and_then(|frame| {
                match frame.from_client().unwrap_or(FromClient::Goodbye) {
                    FromClient::Call { number, body: Body::Whole(payload), descriptors, answer, .. }
                        if frame.extension.is_none()
                            && payload.len() <= SMALL_BYTES_MAX
                            && !hello.is_large_room(answer) =>
                    {
                        let rest = &packet[HEADER_BYTES + payload.len()..];
                        let call = SmallCall { number, payload, descriptors, answer, rest };
                        let message = size(payload.len(), descriptors.into());
                        assert_eq!(Header::call(number, message, answer), frame.header);
                        Some(call)
                    }
                    _ => None,
                }
            });
            prop_assert_eq!(small_call(&packet, &hello), slowly);
        }

        #[test]
        fn what_is_written_is_read_back(mut written in prop::collection::vec(any_frame(), 1..20)) {
            // One packet carries descriptors for one frame only: keep to the rule that senders keep to.
            let mut descriptors = 0;
            for frame in &mut written {
                match descriptors {
                    0 => descriptors = usize::from(frame[9]),
                    _ if frame[8] == Kind::Elsewhere as u8 => *frame = Header::dropped(1).encode().to_vec(),
                    _ => frame[9] = 0,
                }
            }
            let packet = written.concat();
            let arrived = Arrived::Whole(descriptors);
            let read: Vec<Vec<u8>> = frames(&packet, arrived)
                .map(|frame| frame.map(|frame| [&frame.opening().encode()[..], frame.payload].concat()))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_hello_that_may_be_said_is_read_back(
            windows in any_windows(),
            call_descriptors_max in 0..=260_u32,
            packet_bytes_max in 4_000..=104_000_u32,
            message_bytes_max in prop_oneof![4_000..=200_000_u32, any::<u32>()],
        ) {
            let hello = Hello { windows, call_descriptors_max, packet_bytes_max, message_bytes_max };
            if hello.check().is_ok() {
                prop_assert_eq!(Hello::parse(&hello.frame()[HEADER_BYTES..]), Ok(hello));
            }
        }

        #[test]
        fn a_header_is_read_as_it_was_written_or_not_at_all(
            bytes in any::<[u8; HEADER_BYTES]>(),
            kind in 0..15_u8,
            flags in 0..5_u8,
        ) {
            // Most random headers fail at once; small fields reach the later rules.
            let mut small = bytes;
            small[1..4].fill(0);
            small[8] = kind;
            small[11] = flags;
            small[13..].fill(0);
            for bytes in [bytes, small] {
                if let Ok(header) = Header::parse(&bytes) {
                    prop_assert_eq!(header.encode(), bytes);
                }
            }
        }
    }
}
