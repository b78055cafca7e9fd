//! What is done with a call, and what is in it: all of it follows from its number.
//!
//! It owns the bytes of calls and answers and the choice of what happens to a call. Every party works it out
//! for itself, so that nothing has to be told, and nothing that arrives can be taken for something else. It
//! does no I/O.

use std::time::Duration;

/// The longest call and the longest answer, in bytes.
pub const LARGE_BYTES_MAX: usize = 300_000;

/// Below this a call is one packet.
const SMALL_BYTES_MAX: usize = 4_000;

/// The longest plain call: one packet.
const PACKET_BYTES: usize = 100_000;

/// How calls travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    Session,
    Plain,
    Returned,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Session, Way::Plain, Way::Returned];

    pub fn name(self) -> &'static str {
        match self {
            Way::Session => "session",
            Way::Plain => "plain",
            Way::Returned => "returned",
        }
    }

    pub fn named(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered by whoever takes it.
    Answered,
    /// It is handed on, and this third party answers.
    HandedOn(usize),
    /// Whoever takes it lets go of it.
    LetGo,
}

/// All there is to know about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deed {
    pub fate: Fate,
    pub bytes: usize,
    pub answer_bytes: usize,
    /// The caller does not wait for the answer, but withdraws the call after so long.
    pub withdrawn: Option<Duration>,
    /// Whoever takes it thinks about it for so long.
    pub pause: Option<Duration>,
}

impl Deed {
    /// What the number of a call says, in a run with this seed.
    pub fn of(call: u64, way: Way, seed: u64) -> Deed {
        let mut dice = Dice::new(call ^ seed.rotate_left(17));
        let fate = match dice.roll(64) {
            0 => Fate::LetGo,
            1..=8 => Fate::HandedOn(dice.roll(super::THIRDS as u64) as usize),
            _ => Fate::Answered,
        };
        let is_large = dice.roll(48) == 0;
        let length = |dice: &mut Dice, max: usize| 16 + dice.roll(max as u64 - 16) as usize;
        let bytes = match (is_large, way) {
            (false, _) => length(&mut dice, SMALL_BYTES_MAX),
            (true, Way::Session) => length(&mut dice, LARGE_BYTES_MAX),
            (true, Way::Plain | Way::Returned) => length(&mut dice, PACKET_BYTES),
        };
        let answer_bytes = match (is_large, fate) {
            // A third party has one packet to answer with.
            (true, Fate::Answered) => length(&mut dice, LARGE_BYTES_MAX),
            _ => length(&mut dice, SMALL_BYTES_MAX),
        };
        let micros = |dice: &mut Dice| Duration::from_micros(dice.roll(3_000));
        let withdrawn = (dice.roll(40) == 0).then(|| micros(&mut dice));
        let pause = (dice.roll(8) == 0).then(|| micros(&mut dice));
        Deed { fate, bytes, answer_bytes, withdrawn, pause }
    }

    /// Whether the answer may take more than one packet, so that a plain caller has to expect that.
    pub fn has_large_answer(&self) -> bool {
        self.answer_bytes > SMALL_BYTES_MAX
    }
}

/// The bytes of a call.
pub fn call_bytes(call: u64, deed: &Deed) -> Vec<u8> {
    filled(call, call, deed.bytes)
}

/// The bytes of its answer.
pub fn answer_bytes(call: u64, deed: &Deed) -> Vec<u8> {
    filled(call, scattered(!call), deed.answer_bytes)
}

/// The number of the call that these bytes are, or the answer to.
pub fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|first| u64::from_le_bytes(*first))
}

fn filled(call: u64, mut filling: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    bytes.extend(call.to_le_bytes());
    while bytes.len() < length {
        filling = filling.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(filling.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Numbers that look like chance and come again with the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// From 0 to below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        scattered(self.0) % sides.max(1)
    }
}

/// Each bit depends on each bit, and no two numbers give the same (splitmix64).
fn scattered(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn everything_happens_to_some_call_and_fits() {
        for way in Way::ALL {
            let deeds: Vec<Deed> = (0..10_000).map(|call| Deed::of(call, way, 1)).collect();
            let any = |what: &dyn Fn(&Deed) -> bool| assert!(deeds.iter().any(what));
            any(&|deed| deed.fate == Fate::LetGo);
            any(&|deed| deed.fate == Fate::HandedOn(0));
            any(&|deed| deed.fate == Fate::HandedOn(1));
            any(&|deed| deed.withdrawn.is_some() && deed.pause.is_some());
            any(&|deed| deed.has_large_answer() && deed.answer_bytes > seqpacket::PLAIN_BYTES_MAX);
            any(&|deed| deed.bytes > SMALL_BYTES_MAX);
            let call_max = if way == Way::Session { LARGE_BYTES_MAX } else { seqpacket::PLAIN_BYTES_MAX };
            for deed in &deeds {
                assert!(deed.bytes <= call_max && deed.answer_bytes <= LARGE_BYTES_MAX, "{deed:?}");
                let is_handed_on = matches!(deed.fate, Fate::HandedOn(_));
                assert!(!is_handed_on || deed.answer_bytes <= seqpacket::PLAIN_BYTES_MAX, "{deed:?}");
            }
        }
    }

    #[test]
    fn no_bytes_are_taken_for_those_of_another_call() {
        let deed = Deed::of(5, Way::Session, 1);
        let (call, answer) = (call_bytes(5, &deed), answer_bytes(5, &deed));
        assert_eq!((call.len(), answer.len()), (deed.bytes, deed.answer_bytes));
        assert_eq!((number(&call), number(&answer)), (Some(5), Some(5)));
        assert_ne!(call[8..16], answer[8..16]);
        assert_ne!(call_bytes(6, &deed)[8..16], call[8..16]);
        assert_eq!(number(b"short"), None);
    }
}
