//! The frames of a session: every byte that follows an attach, parsed once and written without allocating.
//!
//! This file owns the layout of a frame, the closed set of kinds and the rules a single packet can break. It
//! must never know sockets, descriptors or which calls are under way: a rule that needs memory of earlier
//! packets belongs to the session, and windows are counted in [`credit`](crate::credit). Whatever a peer puts
//! into a packet ends in a [`Malformed`], never in a panic. The prose, with its reasons and the worked
//! examples the tests below read, is in `PROTOCOL.md`.

use std::fmt;

use thiserror::Error;

/// The largest packet on a session, headers included.
///
/// It belongs to the protocol and not to anybody's `SO_SNDBUF`: a message that fits today fits everywhere.
pub const PACKET_BYTES_MAX: usize = 65_536;

/// The smallest `packet_bytes_max` a HELLO may announce: one page, so that every session carries small calls.
pub const PACKET_BYTES_MIN: usize = 4_096;

/// The header in front of every payload.
pub const HEADER_BYTES: usize = 16;

/// The largest payload of one frame: what a packet has left after one header.
pub const PAYLOAD_BYTES_MAX: usize = PACKET_BYTES_MAX - HEADER_BYTES;

/// Descriptors in one packet, and so in one frame. The kernel's own limit (`SCM_MAX_FD`): 254 is `EINVAL`.
pub const DESCRIPTORS_MAX: usize = 253;

/// Calls a client may have under way unless the server says otherwise.
pub const CALLS_WINDOW_DEFAULT: u32 = 256;

/// Bytes under way, calls and room for answers together, unless the server says otherwise: 18 MiB, so that
/// 256 small calls may each await the largest answer.
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
pub const HELLO_BYTES: usize = 28;

/// Payload of a CREDIT.
pub const CREDIT_BYTES: usize = 12;

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
const _: () = assert!(DESCRIPTORS_WINDOW_DEFAULT >= CALL_DESCRIPTORS_DEFAULT);
const _: () = assert!(DESCRIPTORS_MAX <= u8::MAX as usize);

/// The frames of one packet, in order, ending after the first error.
///
/// `arrived` says how many descriptors came with the packet: at most one frame may declare any, and it must
/// declare exactly those. The last item is an error if descriptors came that no frame declared.
///
/// ```
/// use seqpacket::wire::{self, Arrived, FromClient, Header, Size};
///
/// let mut packet = Header::call(7, Size::of_bytes(3)?, Size::of_bytes(64)?).encode().to_vec();
/// packet.extend_from_slice(b"add");
/// packet.extend_from_slice(&Header::cancel(6).encode());
///
/// let mut frames = wire::frames(&packet, Arrived::Whole(0));
/// let first = frames.next().unwrap()?.from_client()?;
/// assert!(matches!(first, FromClient::Call { number: 7, payload: b"add", .. }));
/// let second = frames.next().unwrap()?.from_client()?;
/// assert!(matches!(second, FromClient::Cancel { number: 6 }));
/// assert!(frames.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn frames(packet: &[u8], arrived: Arrived) -> Frames<'_> {
    Frames { rest: packet, arrived, claimed: false, state: State::Fresh }
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
    fn check_packet(&self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Err(Malformed::Empty),
            bytes if bytes > PACKET_BYTES_MAX => Err(Malformed::PacketTooLong { bytes }),
            _ => Ok(()),
        }
    }

    fn take_frame(&mut self) -> Result<Frame<'a>, Malformed> {
        let Some((header, rest)) = self.rest.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::HeaderCut { left: self.rest.len() });
        };
        let header = Header::parse(header)?;
        let Some((payload, rest)) = rest.split_at_checked(header.length as usize) else {
            return Err(Malformed::PayloadCut { length: header.length, left: rest.len() });
        };
        let missing = self.claim(header.descriptors)?;
        self.rest = rest;
        Ok(Frame { header, payload, missing })
    }

    /// Gives the packet's descriptors to the frame that declares them; says how many of them did not arrive.
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
    /// Exactly `header.length` bytes.
    pub payload: &'a [u8],
    /// How many of `header.descriptors` were lost on arrival.
    pub missing: u8,
}

impl<'a> Frame<'a> {
    /// The frame as a client may send it.
    pub fn from_client(self) -> Result<FromClient<'a>, Malformed> {
        let Frame { header, payload, missing } = self;
        let Header { number, descriptors, .. } = header;
        match header.kind {
            Kind::Call => {
                Ok(FromClient::Call { number, payload, descriptors, missing, answer: header.answer() })
            }
            Kind::Cancel => Ok(FromClient::Cancel { number }),
            Kind::Grant => Ok(FromClient::Grant { number }),
            Kind::Goodbye => Ok(FromClient::Goodbye),
            kind @ (Kind::Hello | Kind::Answer | Kind::Dropped | Kind::Credit | Kind::Refused) => {
                Err(Malformed::WrongSide(kind))
            }
        }
    }

    /// The frame as a server may send it; the payload of a HELLO, CREDIT or REFUSED is parsed here, once.
    pub fn from_server(self) -> Result<FromServer<'a>, Malformed> {
        let Frame { header, payload, missing } = self;
        let Header { number, descriptors, .. } = header;
        match header.kind {
            Kind::Hello => Ok(FromServer::Hello(Hello::parse(payload)?)),
            Kind::Answer => Ok(FromServer::Answer { number, payload, descriptors, missing }),
            Kind::Dropped => Ok(FromServer::Dropped { number }),
            Kind::Credit => Ok(FromServer::Credit(Windows::parse(payload)?)),
            Kind::Refused => Ok(FromServer::Refused { number, reason: RefusedReason::parse(payload)? }),
            Kind::Goodbye => Ok(FromServer::Goodbye),
            kind @ (Kind::Call | Kind::Cancel | Kind::Grant) => Err(Malformed::WrongSide(kind)),
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
        payload: &'a [u8],
        /// How many of the packet's descriptors belong to the call: all of them, or none.
        descriptors: u8,
        /// How many of those were lost here. Not zero: REFUSED with [`RefusedReason::DescriptorsLost`].
        missing: u8,
        /// What the caller has reserved for the answer.
        answer: Size,
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
        /// Opaque.
        payload: &'a [u8],
        /// How many of the packet's descriptors belong to the answer: all of them, or none.
        descriptors: u8,
        /// How many of those were lost here.
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
    /// Bytes of payload the caller has reserved for the answer.
    pub answer_bytes: u32,
}

impl Header {
    /// Reads a header and checks all that can be checked without its payload.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let [length, number, [kind, descriptors, answer_descriptors, reserved], answer_bytes]: [[u8; 4]; 4] =
            bytemuck::cast(*bytes);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        let header = Header {
            length: u32::from_le_bytes(length),
            number: u32::from_le_bytes(number),
            kind: Kind::try_from(kind)?,
            descriptors,
            answer_descriptors,
            answer_bytes: u32::from_le_bytes(answer_bytes),
        };
        header.check()?;
        Ok(header)
    }

    /// Writes the header.
    ///
    /// # Panics
    /// If a peer would call it [`Malformed`]: the constructors below make none of those.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        assert_eq!(self.check(), Ok(()), "a header that no peer would accept");
        bytemuck::cast([
            self.length.to_le_bytes(),
            self.number.to_le_bytes(),
            [self.kind as u8, self.descriptors, self.answer_descriptors, 0],
            self.answer_bytes.to_le_bytes(),
        ])
    }

    /// A call that carries `message` and has room for `answer`.
    pub fn call(number: u32, message: Size, answer: Size) -> Header {
        Header {
            length: message.bytes,
            descriptors: message.descriptors,
            answer_descriptors: answer.descriptors,
            answer_bytes: answer.bytes,
            ..Header::bare(Kind::Call, number)
        }
    }

    /// The answer to call `number`.
    pub fn answer_to(number: u32, message: Size) -> Header {
        Header {
            length: message.bytes,
            descriptors: message.descriptors,
            ..Header::bare(Kind::Answer, number)
        }
    }

    /// Nobody will answer call `number`.
    pub fn dropped(number: u32) -> Header {
        Header::bare(Kind::Dropped, number)
    }

    /// The caller withdraws call `number`.
    pub fn cancel(number: u32) -> Header {
        Header::bare(Kind::Cancel, number)
    }

    /// Asks for a fresh address under `number`.
    pub fn grant(number: u32) -> Header {
        Header { answer_descriptors: 1, ..Header::bare(Kind::Grant, number) }
    }

    /// No more calls will be made, or taken.
    pub fn goodbye() -> Header {
        Header::bare(Kind::Goodbye, 0)
    }

    /// What the frame carries.
    pub fn message(&self) -> Size {
        Size { bytes: self.length, descriptors: self.descriptors }
    }

    /// What the caller has reserved for the answer; [`Size::NONE`] on frames that await none.
    pub fn answer(&self) -> Size {
        Size { bytes: self.answer_bytes, descriptors: self.answer_descriptors }
    }

    fn bare(kind: Kind, number: u32) -> Header {
        Header { length: 0, number, kind, descriptors: 0, answer_descriptors: 0, answer_bytes: 0 }
    }

    /// The rules of one header. Fields that mean nothing on a kind must be zero, so that they can mean
    /// something one day and so that two implementations cannot disagree about a byte without noticing.
    fn check(&self) -> Result<(), Malformed> {
        let Header { length, number, kind, descriptors, answer_descriptors, answer_bytes } = *self;
        if !kind.allows_length(length as usize) {
            return Err(Malformed::Length { kind, length });
        }
        if number != 0 && !kind.is_about_a_call() {
            return Err(Malformed::Number { kind, number });
        }
        if descriptors != 0 && !kind.carries_descriptors() {
            return Err(Malformed::Descriptors { kind, descriptors });
        }
        if usize::from(descriptors.max(answer_descriptors)) > DESCRIPTORS_MAX {
            return Err(Malformed::TooManyDescriptors(descriptors.max(answer_descriptors)));
        }
        let answer_is_right = match kind {
            Kind::Call => answer_bytes as usize <= PAYLOAD_BYTES_MAX,
            Kind::Grant => answer_bytes == 0 && answer_descriptors == 1,
            _ => answer_bytes == 0 && answer_descriptors == 0,
        };
        if !answer_is_right {
            return Err(Malformed::Answer { kind, answer_bytes, answer_descriptors });
        }
        Ok(())
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
}

impl Kind {
    /// Whether a frame of this kind ends the number it carries.
    pub fn is_final(self) -> bool {
        matches!(self, Kind::Answer | Kind::Dropped | Kind::Refused)
    }

    fn is_about_a_call(self) -> bool {
        match self {
            Kind::Call | Kind::Answer | Kind::Dropped | Kind::Cancel | Kind::Refused | Kind::Grant => true,
            Kind::Hello | Kind::Credit | Kind::Goodbye => false,
        }
    }

    fn carries_descriptors(self) -> bool {
        matches!(self, Kind::Call | Kind::Answer)
    }

    fn allows_length(self, bytes: usize) -> bool {
        match self {
            Kind::Call | Kind::Answer => bytes <= PAYLOAD_BYTES_MAX,
            // A later version may say more; the reader shall find its version before it finds its length.
            Kind::Hello => (HELLO_OPENING_BYTES..=PAYLOAD_BYTES_MAX).contains(&bytes),
            Kind::Credit => bytes == CREDIT_BYTES,
            Kind::Refused => bytes == REFUSED_BYTES,
            Kind::Dropped | Kind::Cancel | Kind::Grant | Kind::Goodbye => bytes == 0,
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
        })
    }
}

/// A payload and its descriptors by size, never more than one frame holds: of a message, or of the room kept
/// for an answer.
///
/// ```
/// use seqpacket::wire::{Oversize, PAYLOAD_BYTES_MAX, Size};
///
/// let room = Size::of_bytes(4_096)?.with_descriptors(1)?;
/// assert!(room.holds(Size::of_bytes(12)?));
/// assert_eq!(Size::of_bytes(PAYLOAD_BYTES_MAX + 1), Err(Oversize::Bytes));
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
    pub const LARGEST: Size = Size { bytes: PAYLOAD_BYTES_MAX as u32, descriptors: DESCRIPTORS_MAX as u8 };

    /// So many bytes and no descriptors.
    pub fn of_bytes(bytes: usize) -> Result<Size, Oversize> {
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(Oversize::Bytes);
        }
        Ok(Size { bytes: bytes as u32, descriptors: 0 })
    }

    /// The same bytes and so many descriptors.
    pub fn with_descriptors(self, descriptors: usize) -> Result<Size, Oversize> {
        if descriptors > DESCRIPTORS_MAX {
            return Err(Oversize::Descriptors);
        }
        Ok(Size { descriptors: descriptors as u8, ..self })
    }

    /// Bytes of payload.
    pub fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Descriptors.
    pub fn descriptors(self) -> usize {
        usize::from(self.descriptors)
    }

    /// Whether `message` fits into this room.
    pub fn holds(self, message: Size) -> bool {
        message.bytes <= self.bytes && message.descriptors <= self.descriptors
    }
}

/// Why no frame can hold a message. Found before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Oversize {
    /// More than [`PAYLOAD_BYTES_MAX`] bytes.
    #[error("more than {PAYLOAD_BYTES_MAX} bytes")]
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
/// assert_eq!(hello.frame().len(), 44);
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
}

impl Default for Hello {
    fn default() -> Hello {
        Hello {
            windows: Windows::default(),
            call_descriptors_max: CALL_DESCRIPTORS_DEFAULT,
            packet_bytes_max: PACKET_BYTES_MAX as u32,
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
        let (&[calls, bytes, descriptors, call_descriptors_max, packet_bytes_max], []) = (promises, rest)
        else {
            return Err(Malformed::length(Kind::Hello, payload));
        };
        let hello = Hello {
            windows: Windows::of([calls, bytes, descriptors]),
            call_descriptors_max: u32::from_le_bytes(call_descriptors_max),
            packet_bytes_max: u32::from_le_bytes(packet_bytes_max),
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
        Ok(())
    }

    /// Whether a frame keeps to what this HELLO promised. The sender asks before sending and the receiver
    /// after receiving; [`Header::parse`] knows only the limits that hold on every session.
    pub fn admits(&self, header: &Header) -> Result<(), Malformed> {
        if header.length > self.payload_bytes_max() {
            return Err(Malformed::Length { kind: header.kind, length: header.length });
        }
        if header.answer_bytes > self.payload_bytes_max() {
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
    pub fn payload_bytes_max(&self) -> u32 {
        self.packet_bytes_max.saturating_sub(HEADER_BYTES as u32)
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
        bytes[24..36].copy_from_slice(&self.windows.encode());
        bytes[36..40].copy_from_slice(&self.call_descriptors_max.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.packet_bytes_max.to_le_bytes());
        bytes
    }
}

/// What a client may have under way at any moment, from sending a call to receiving its final frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Calls, grants included.
    pub calls: u32,
    /// Frame bytes of the calls and room for their answers.
    pub bytes: u32,
    /// Descriptors sent with the calls. Those of the answers fill the client's table, and the client sees to
    /// that itself.
    pub descriptors: u32,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows {
            calls: CALLS_WINDOW_DEFAULT,
            bytes: BYTES_WINDOW_DEFAULT,
            descriptors: DESCRIPTORS_WINDOW_DEFAULT,
        }
    }
}

impl Windows {
    /// Reads the payload of a CREDIT. That it only grows is checked where the old windows are known.
    pub fn parse(payload: &[u8]) -> Result<Windows, Malformed> {
        match payload.as_chunks::<4>() {
            (&[calls, bytes, descriptors], []) => Ok(Windows::of([calls, bytes, descriptors])),
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

    fn of([calls, bytes, descriptors]: [[u8; 4]; 3]) -> Windows {
        Windows {
            calls: u32::from_le_bytes(calls),
            bytes: u32::from_le_bytes(bytes),
            descriptors: u32::from_le_bytes(descriptors),
        }
    }

    fn encode(&self) -> [u8; CREDIT_BYTES] {
        bytemuck::cast([self.calls.to_le_bytes(), self.bytes.to_le_bytes(), self.descriptors.to_le_bytes()])
    }
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
            unknown => Err(Malformed::Reason(unknown)),
        }
    }

    /// The whole REFUSED that ends call `number`, header included.
    pub fn frame(self, number: u32) -> [u8; REFUSED_FRAME_BYTES] {
        let mut bytes = [0; REFUSED_FRAME_BYTES];
        let header = Header { length: REFUSED_BYTES as u32, ..Header::bare(Kind::Refused, number) };
        bytes[..16].copy_from_slice(&header.encode());
        bytes[16] = self as u8;
        bytes
    }
}

/// One of the three things a window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Calls under way.
    Calls,
    /// Bytes sent and reserved.
    Bytes,
    /// Descriptors sent.
    Descriptors,
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Resource::Calls => "calls",
            Resource::Bytes => "bytes",
            Resource::Descriptors => "descriptors",
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
    /// Byte 11 of a header is not zero.
    #[error("reserved byte is {0}")]
    Reserved(u8),
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
            "credit" => larger.frame().to_vec(),
            "goodbye" => Header::goodbye().encode().to_vec(),
            "grant" => Header::grant(9).encode().to_vec(),
            "granted" => Header::answer_to(9, size(0, 1)).encode().to_vec(),
            _ => return None,
        };
        Some(packet)
    }

    /// What reading such an example must give.
    fn meant(name: &str) -> Option<Vec<Said<'static>>> {
        let add =
            FromClient::Call { number: 7, payload: b"add", descriptors: 0, missing: 0, answer: size(64, 0) };
        let open = FromClient::Call {
            number: 8,
            payload: b"open",
            descriptors: 1,
            missing: 0,
            answer: size(65_520, 2),
        };
        let answer =
            |number, payload, descriptors| FromServer::Answer { number, payload, descriptors, missing: 0 };
        let larger = Windows { calls: 512, bytes: 36 << 20, descriptors: 64 };
        let hello = Hello {
            windows: Windows { calls: 256, bytes: 18 << 20, descriptors: 64 },
            call_descriptors_max: 16,
            packet_bytes_max: 65_536,
        };
        Some(match name {
            "hello" => vec![Said::Server(FromServer::Hello(hello))],
            "two-calls" => vec![Said::Client(add), Said::Client(open)],
            "answers" => {
                vec![Said::Server(answer(7, b"42", 0)), Said::Server(FromServer::Dropped { number: 8 })]
            }
            "answer-with-descriptors" => vec![Said::Server(answer(8, b"", 2))],
            "refused" => {
                vec![Said::Server(FromServer::Refused { number: 8, reason: RefusedReason::DescriptorsLost })]
            }
            "cancel" => vec![Said::Client(FromClient::Cancel { number: 7 })],
            "credit" => vec![Said::Server(FromServer::Credit(larger))],
            "goodbye" => vec![Said::Server(FromServer::Goodbye)],
            "grant" => vec![Said::Client(FromClient::Grant { number: 9 })],
            "granted" => vec![Said::Server(answer(9, b"", 1))],
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
        assert_eq!(checked, 10, "an example is gone from the document, or came without its test");
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
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_document_states_the_limits_of_the_code() {
        let with_commas = |n: usize| format!("{},{:03}", n / 1000, n % 1000);
        assert!(
            DOCUMENT.contains(&format!("| `PACKET_BYTES_MAX` | {} bytes |", with_commas(PACKET_BYTES_MAX)))
        );
        assert!(DOCUMENT.contains(&format!("| `DESCRIPTORS_MAX` | {DESCRIPTORS_MAX} descriptors |")));
        assert!(DOCUMENT.contains(&format!("0 to {}", with_commas(PAYLOAD_BYTES_MAX))));
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
        let frame = |header| Frame { header, payload: b"", missing: 0 };
        for header in [Header::answer_to(1, Size::NONE), Header::dropped(1)] {
            assert_eq!(frame(header).from_client(), Err(Malformed::WrongSide(header.kind)));
        }
        for header in [Header::call(1, Size::NONE, Size::NONE), Header::cancel(1), Header::grant(1)] {
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
        assert_eq!(spoil(cancel, 0, 1), Malformed::Length { kind: Kind::Cancel, length: 1 });
        assert_eq!(spoil(cancel, 9, 1), Malformed::Descriptors { kind: Kind::Cancel, descriptors: 1 });
        assert_eq!(spoil(cancel, 11, 128), Malformed::Reserved(128));
        assert_eq!(spoil(goodbye, 7, 1), Malformed::Number { kind: Kind::Goodbye, number: 1 << 24 });
        assert_eq!(
            spoil(cancel, 10, 1),
            Malformed::Answer { kind: Kind::Cancel, answer_bytes: 0, answer_descriptors: 1 }
        );
        for (at, value) in [(10, 0), (10, 2), (12, 1)] {
            assert!(matches!(spoil(grant, at, value), Malformed::Answer { kind: Kind::Grant, .. }));
        }
        assert_eq!(spoil(cancel, 8, 0), Malformed::Kind(0));
        assert_eq!(spoil(cancel, 8, 10), Malformed::Kind(10));
    }

    #[test]
    fn room_for_an_answer_ends_where_a_packet_ends() {
        let mut header = Header::call(1, Size::LARGEST, Size::LARGEST);
        assert_eq!(Header::parse(&header.encode()), Ok(header));
        header.answer_bytes += 1;
        assert!(matches!(header.check(), Err(Malformed::Answer { .. })));
        header = Header::call(1, Size::NONE, Size::NONE);
        header.answer_descriptors = 254;
        assert_eq!(header.check(), Err(Malformed::TooManyDescriptors(254)));
    }

    #[test]
    fn a_size_ends_where_a_frame_ends() {
        assert_eq!(
            Size::of_bytes(PAYLOAD_BYTES_MAX).unwrap().with_descriptors(DESCRIPTORS_MAX),
            Ok(Size::LARGEST)
        );
        assert_eq!(Size::of_bytes(PAYLOAD_BYTES_MAX + 1), Err(Oversize::Bytes));
        assert_eq!(Size::NONE.with_descriptors(DESCRIPTORS_MAX + 1), Err(Oversize::Descriptors));
    }

    #[test]
    fn a_hello_that_traps_its_own_calls_is_refused_on_both_sides() {
        let good = Hello::default();
        let windows = |windows| Hello { windows, ..good };
        let two_packets = 2 * PACKET_BYTES_MAX as u32;
        assert_eq!(windows(Windows { bytes: two_packets, ..good.windows }).check(), Ok(()));
        assert_eq!(windows(Windows { calls: 1, descriptors: 16, ..good.windows }).check(), Ok(()));
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
            (Hello { packet_bytes_max: 4_095, ..good }, Malformed::PacketBytes(4_095)),
            (Hello { packet_bytes_max: 65_537, ..good }, Malformed::PacketBytes(65_537)),
            (Hello { call_descriptors_max: 254, ..good }, Malformed::CallDescriptors(254)),
        ] {
            assert_eq!(bad.check(), Err(error));
            let mut payload = good.frame()[HEADER_BYTES..].to_vec();
            payload[8..20].copy_from_slice(&bad.windows.encode());
            payload[20..24].copy_from_slice(&bad.call_descriptors_max.to_le_bytes());
            payload[24..].copy_from_slice(&bad.packet_bytes_max.to_le_bytes());
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
        for bytes in [0, 7, 8, 27] {
            assert!(matches!(Hello::parse(&good[..bytes]), Err(Malformed::Length { .. })));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(Hello::parse(&longer), Err(Malformed::Length { kind: Kind::Hello, length: 29 }));
    }

    #[test]
    fn a_session_admits_what_its_hello_promised_and_no_more() {
        let hello = Hello { packet_bytes_max: 4_096, call_descriptors_max: 2, ..Hello::default() };
        let call = |message, answer| hello.admits(&Header::call(1, message, answer));
        assert_eq!(call(size(4_080, 2), size(4_080, 253)), Ok(()));
        assert!(matches!(call(size(4_081, 0), Size::NONE), Err(Malformed::Length { .. })));
        assert!(matches!(call(Size::NONE, size(4_081, 0)), Err(Malformed::Answer { .. })));
        assert_eq!(call(size(0, 3), Size::NONE), Err(Malformed::TooManyDescriptors(3)));
        // How many come back is between the caller's reserve and the answer.
        assert_eq!(hello.admits(&Header::answer_to(1, size(0, 3))), Ok(()));
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

    fn any_windows() -> impl Strategy<Value = Windows> {
        any::<[u32; 3]>().prop_map(|[calls, bytes, descriptors]| Windows { calls, bytes, descriptors })
    }

    /// Any frame of the library's own making, whole.
    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let number = any::<u32>;
        let whole = |header: Header| with_payload(header, &vec![0xa5; header.length as usize]);
        prop_oneof![
            (number(), any_size(), any_size())
                .prop_map(move |(n, message, answer)| whole(Header::call(n, message, answer))),
            (number(), any_size()).prop_map(move |(n, message)| whole(Header::answer_to(n, message))),
            number().prop_map(|n| Header::dropped(n).encode().to_vec()),
            number().prop_map(|n| Header::cancel(n).encode().to_vec()),
            number().prop_map(|n| Header::grant(n).encode().to_vec()),
            Just(Header::goodbye().encode().to_vec()),
            any_windows().prop_map(|windows| windows.frame().to_vec()),
            (number(), 1..=6_u8)
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
            assert_eq!(packet[consumed..][..HEADER_BYTES], frame.header.encode());
            consumed += HEADER_BYTES;
            assert_eq!(packet[consumed..][..frame.payload.len()], *frame.payload);
            consumed += frame.payload.len();
            assert!(frame.missing <= frame.header.descriptors);
            let (client, server) = (frame.from_client(), frame.from_server());
            // GOODBYE is the one frame that both may send.
            assert!(client.is_err() || server.is_err() || frame.header.kind == Kind::Goodbye);
            let _ = Hello::default().admits(&frame.header);
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

        #[test]
        fn what_is_written_is_read_back(mut written in prop::collection::vec(any_frame(), 1..20)) {
            // One packet carries descriptors for one frame only: keep to the rule that senders keep to.
            let mut descriptors = 0;
            for frame in &mut written {
                match descriptors {
                    0 => descriptors = usize::from(frame[9]),
                    _ => frame[9] = 0,
                }
            }
            let packet = written.concat();
            let arrived = Arrived::Whole(descriptors);
            let read: Vec<Vec<u8>> = frames(&packet, arrived)
                .map(|frame| frame.map(|frame| with_payload(frame.header, frame.payload)))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_hello_that_may_be_said_is_read_back(
            windows in any_windows(),
            call_descriptors_max in 0..=260_u32,
            packet_bytes_max in 4_000..=66_000_u32,
        ) {
            let hello = Hello { windows, call_descriptors_max, packet_bytes_max };
            if hello.check().is_ok() {
                prop_assert_eq!(Hello::parse(&hello.frame()[HEADER_BYTES..]), Ok(hello));
            }
        }

        #[test]
        fn a_header_is_read_as_it_was_written_or_not_at_all(
            bytes in any::<[u8; HEADER_BYTES]>(),
            kind in 0..12_u8,
        ) {
            // Most random headers fail at once; small fields reach the later rules.
            let mut small = bytes;
            small[1..4].fill(0);
            small[8] = kind;
            small[11] = 0;
            small[13..].fill(0);
            for bytes in [bytes, small] {
                if let Ok(header) = Header::parse(&bytes) {
                    prop_assert_eq!(header.encode(), bytes);
                }
            }
        }
    }
}
