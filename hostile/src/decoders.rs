//! Everything that makes sense of bytes that a peer has sent.
//!
//! A closed list, with what each may have in memory at once. It does not know the rules: they are in the
//! `fuzzing` of the crate that has the decoder.

use imc::fuzzing as imc_decoders;
use introduction::fuzzing as introduction_decoders;
use peak_alloc::PeakAlloc;
use sendright::fuzzing as file_decoders;
use seqpacket::fuzzing as seqpacket_decoders;

use crate::memory::Memory;

/// Something that reads bytes of anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decoder {
    /// A packet of a session: frames.
    Packet,
    /// A large message of a session: parts.
    Parts,
    /// A large answer of a plain object.
    LargeAnswer,
    /// A typed message.
    Typed,
    /// A value of Syrup.
    Syrup,
    /// A record of an introduction, with the locators, keys and signatures in it.
    Record,
    /// A stream of records and what comes with their descriptors.
    Stream,
    /// A locator, a sturdy reference and a key as people pass them on.
    Uri,
    /// A message of a proof of identity.
    Proof,
    /// A request to the file service, to one of its files or links, or to be let in.
    FileRequest,
    /// What the file service answers.
    FileAnswer,
}

impl Decoder {
    /// All there are.
    pub const ALL: [Decoder; 11] = [
        Decoder::Packet,
        Decoder::Parts,
        Decoder::LargeAnswer,
        Decoder::Typed,
        Decoder::Syrup,
        Decoder::Record,
        Decoder::Stream,
        Decoder::Uri,
        Decoder::Proof,
        Decoder::FileRequest,
        Decoder::FileAnswer,
    ];

    /// What its target and its corpus are called.
    pub fn name(self) -> &'static str {
        match self {
            Decoder::Packet => "packet",
            Decoder::Parts => "parts",
            Decoder::LargeAnswer => "large_answer",
            Decoder::Typed => "typed",
            Decoder::Syrup => "syrup",
            Decoder::Record => "record",
            Decoder::Stream => "stream",
            Decoder::Uri => "uri",
            Decoder::Proof => "proof",
            Decoder::FileRequest => "file_request",
            Decoder::FileAnswer => "file_answer",
        }
    }

    /// Has it read these bytes, and everything that must hold checked.
    ///
    /// # Panics
    /// If it does not hold, or reading took more memory than [`bytes_max`](Decoder::bytes_max).
    pub fn check(self, bytes: &[u8], allocator: &'static PeakAlloc) {
        let (read, check) = self.functions();
        let bytes_max = self.bytes_max(bytes.len());
        let peak_bytes = Memory::peak_of(allocator, bytes_max, || read(bytes));
        assert!(
            peak_bytes <= bytes_max,
            "{} bytes take {peak_bytes} of memory, not {bytes_max}",
            bytes.len()
        );
        check(bytes);
    }

    /// How much memory it may have at once, given so many bytes.
    pub fn bytes_max(self, bytes: usize) -> usize {
        match self {
            // In place.
            Decoder::Packet | Decoder::Typed | Decoder::FileRequest | Decoder::FileAnswer => 0,
            Decoder::Proof => 0,
            // All of the message, when it has begun: its sender has the right to so much.
            Decoder::Parts => seqpacket_decoders::TOTAL_BYTES_MAX,
            // What has come, and as much again while it moves.
            Decoder::LargeAnswer => 3 * bytes + 4_096,
            // A value of one byte is five words, in a list that has room for as many again; and where nothing
            // may stand twice, each is written down once more, at each depth.
            Decoder::Syrup | Decoder::Record => SYRUP_BYTES_MAX,
            // One read, one record that has begun, and what came of those before it.
            Decoder::Stream => SYRUP_BYTES_MAX + 160 * bytes,
            // A set of keys, and a swiss number.
            Decoder::Uri => 4 * introduction::URI_BYTES_MAX,
        }
    }

    /// What reads, and what checks.
    fn functions(self) -> (Reading, Reading) {
        match self {
            Decoder::Packet => (seqpacket_decoders::read_packet, seqpacket_decoders::check_packet),
            Decoder::Parts => (seqpacket_decoders::read_parts, seqpacket_decoders::check_parts),
            Decoder::LargeAnswer => {
                (seqpacket_decoders::read_large_answer, seqpacket_decoders::check_large_answer)
            }
            Decoder::Typed => (imc_decoders::read_typed, imc_decoders::check_typed),
            Decoder::Syrup => (introduction_decoders::read_syrup, introduction_decoders::check_syrup),
            Decoder::Record => (introduction_decoders::read_record, introduction_decoders::check_record),
            Decoder::Stream => (introduction_decoders::read_stream, introduction_decoders::check_stream),
            Decoder::Uri => (introduction_decoders::read_uri, introduction_decoders::check_uri),
            Decoder::Proof => (introduction_decoders::read_proof, introduction_decoders::check_proof),
            Decoder::FileRequest => (file_decoders::read_request, file_decoders::check_request),
            Decoder::FileAnswer => (file_decoders::read_answer, file_decoders::check_answer),
        }
    }
}

type Reading = fn(&[u8]);

/// What a record of 4,096 bytes may come to in memory while it is read.
const SYRUP_BYTES_MAX: usize = 1 << 20;
