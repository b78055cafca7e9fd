//! The bytes of Plash's stream protocol: messages with a length, invocations in them, calls in those.
//!
//! It reads slices and writes vectors. It does not know sockets, descriptors or who is waiting.
//!
//! ```text
//! message     "MSG!"  int32 bytes of data  int32 descriptors  data  zeroes up to a multiple of 4
//! data        "Invk"  id of whom  int32 n  n ids of capabilities  what is said
//!             "Drop"  id of what is not needed any more
//! a call      "Call"  int32 method  arguments        capability 0 is where the answer is to go
//! id          index << 8 | namespace
//! ```
//!
//! Integers are those of the machine, since both sides are on it.

use std::ops::Range;

use thiserror::Error;

/// Before the data: the mark and two lengths.
pub const HEADER_BYTES: usize = 12;

/// What one message may have. Plash has no such limit; a length that a peer announces is memory here.
pub const DATA_BYTES_MAX: usize = 256 * 1024;

/// Descriptors that have come and belong to no message yet. Plash ends the process beyond it; here it is the
/// connection.
pub const DESCRIPTORS_MAX: usize = 20;

const MESSAGE: &[u8; 4] = b"MSG!";
const INVOKE: &[u8; 4] = b"Invk";
const DROP: &[u8; 4] = b"Drop";
const CALL: &[u8; 4] = b"Call";

/// What an answerer says when it lets go of a continuation without an answer.
pub const CONNECTION_ERROR: &[u8; 4] = b"ECon";

/// A capability as one side writes it for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// In the table of whoever has the object: 24 bits.
    pub index: u32,
    /// Whose table, and for how long.
    pub namespace: Namespace,
}

/// Whose object an [`Id`] names, as seen by who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// The receiver's.
    Receiver,
    /// The sender's.
    Sender,
    /// The sender's, gone when it is invoked once: a place for an answer.
    SenderOnce,
}

impl Id {
    fn write(self) -> u32 {
        let namespace = match self.namespace {
            Namespace::Receiver => 0,
            Namespace::Sender => 1,
            Namespace::SenderOnce => 2,
        };
        self.index << 8 | namespace
    }

    fn read(word: u32) -> Result<Id, Malformed> {
        let namespace = match word & 0xff {
            0 => Namespace::Receiver,
            1 => Namespace::Sender,
            2 => Namespace::SenderOnce,
            _ => return Err(Malformed::Namespace),
        };
        Ok(Id { index: word >> 8, namespace })
    }
}

/// What one message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// Somebody is invoked.
    Invoked {
        /// Whom.
        whom: Id,
        /// The first of the capabilities that came along: with a call, where the answer is to go.
        first: Option<Id>,
        /// What it is told.
        data: &'a [u8],
    },
    /// Something is not needed any more.
    Dropped(Id),
}

/// Why bytes are no message. The connection cannot go on: nobody knows where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// It does not begin with the mark.
    #[error("no message begins here")]
    Mark,
    /// A length that is negative, or beyond the limits.
    #[error("a length beyond the limits")]
    Length,
    /// Neither an invocation nor a drop, or one that is cut short.
    #[error("neither an invocation nor a drop")]
    Kind,
    /// An id of a namespace that does not exist.
    #[error("an id of an unknown namespace")]
    Namespace,
    /// Told to somebody that does not exist.
    #[error("nobody has this id")]
    Nobody,
}

/// Where one message lies, once all its bytes are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its data.
    pub data: Range<usize>,
    /// How many descriptors belong to it.
    pub descriptors: usize,
    /// Where the next one begins.
    pub end: usize,
}

/// The message that begins at `start`: `None` while some of it has not come.
///
/// # Errors
/// See [`Malformed`].
pub fn frame(bytes: &[u8], start: usize) -> Result<Option<Frame>, Malformed> {
    let rest = &bytes[start.min(bytes.len())..];
    if !MESSAGE.starts_with(&rest[..rest.len().min(MESSAGE.len())]) {
        return Err(Malformed::Mark);
    }
    let Some(header) = rest.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = length(header, 4, DATA_BYTES_MAX)?;
    let descriptors = self::length(header, 8, DESCRIPTORS_MAX)?;
    let data = start + HEADER_BYTES..start + HEADER_BYTES + length;
    let end = data.start + length.next_multiple_of(4);
    Ok((bytes.len() >= end).then_some(Frame { data, descriptors, end }))
}

fn length(header: &[u8; HEADER_BYTES], at: usize, most: usize) -> Result<usize, Malformed> {
    let word = word(header, at).ok_or(Malformed::Kind)?;
    let length = usize::try_from(word).map_err(|_| Malformed::Length)?;
    if length <= most { Ok(length) } else { Err(Malformed::Length) }
}

/// What the data of a message says.
///
/// # Errors
/// [`Malformed::Kind`] and [`Malformed::Namespace`].
pub fn read(data: &[u8]) -> Result<Said<'_>, Malformed> {
    let id = |at| Id::read(word(data, at).ok_or(Malformed::Kind)?);
    match data.first_chunk::<4>() {
        Some(INVOKE) => {
            let count = word(data, 8).ok_or(Malformed::Kind)? as usize;
            // Each takes four bytes, so that no more can be announced than have come.
            let start = count.checked_mul(4).and_then(|bytes| bytes.checked_add(12));
            let rest = start.and_then(|start| data.get(start..)).ok_or(Malformed::Kind)?;
            for other in 1..count {
                id(12 + 4 * other)?;
            }
            let first = if count > 0 { Some(id(12)?) } else { None };
            Ok(Said::Invoked { whom: id(4)?, first, data: rest })
        }
        Some(DROP) if data.len() == 8 => Ok(Said::Dropped(id(4)?)),
        _ => Err(Malformed::Kind),
    }
}

/// The method and the arguments, if what is said is a call.
pub fn call(said: &[u8]) -> Option<(u32, &[u8])> {
    let rest = said.strip_prefix(CALL)?;
    Some((word(rest, 0)?, &rest[4..]))
}

/// A message in which `whom` is called and the answer is to go to `answer`.
pub fn write_call(into: &mut Vec<u8>, whom: Id, answer: Id, method: u32, arguments: &[&[u8]]) {
    let head = [whom.write(), 1, answer.write(), u32::from_ne_bytes(*CALL), method];
    write_message(into, 0, INVOKE, &head, arguments);
}

/// A message in which `whom` is told something, without capabilities.
pub fn write_invocation(into: &mut Vec<u8>, whom: Id, descriptors: usize, said: &[&[u8]]) {
    write_message(into, descriptors, INVOKE, &[whom.write(), 0], said);
}

/// A message that says something is not needed any more.
pub fn write_drop(into: &mut Vec<u8>, what: Id) {
    write_message(into, 0, DROP, &[what.write()], &[]);
}

fn write_message(into: &mut Vec<u8>, descriptors: usize, kind: &[u8; 4], head: &[u32], parts: &[&[u8]]) {
    let length = 4 + 4 * head.len() + parts.iter().map(|part| part.len()).sum::<usize>();
    assert!(length <= DATA_BYTES_MAX, "a message of {length} bytes: only {DATA_BYTES_MAX} are allowed");
    assert!(descriptors <= DESCRIPTORS_MAX, "{descriptors} descriptors: {DESCRIPTORS_MAX} are allowed");
    into.extend(MESSAGE);
    into.extend((length as u32).to_ne_bytes());
    into.extend((descriptors as u32).to_ne_bytes());
    into.extend(kind);
    head.iter().for_each(|word| into.extend(word.to_ne_bytes()));
    parts.iter().for_each(|part| into.extend(*part));
    into.resize(into.len() + length.next_multiple_of(4) - length, 0);
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SERVICE: Id = Id { index: 0, namespace: Namespace::Receiver };
    const ANSWER: Id = Id { index: 5, namespace: Namespace::SenderOnce };

    fn a_call() -> Vec<u8> {
        let mut bytes = Vec::new();
        write_call(&mut bytes, SERVICE, ANSWER, 7, &[b"two ", b"parts"]);
        bytes
    }

    #[test]
    fn a_call_is_these_bytes() {
        let mut expected = b"MSG!".to_vec();
        for word in [33_u32, 0] {
            expected.extend(word.to_ne_bytes());
        }
        expected.extend(b"Invk");
        for word in [0_u32, 1, 5 << 8 | 2] {
            expected.extend(word.to_ne_bytes());
        }
        expected.extend(b"Call");
        expected.extend(7_u32.to_ne_bytes());
        expected.extend(b"two parts\0\0\0");
        assert_eq!(a_call(), expected);
    }

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let bytes = a_call();
        let frame = frame(&bytes, 0).unwrap().unwrap();
        assert_eq!((frame.descriptors, frame.end), (0, bytes.len()));
        let Said::Invoked { whom, first, data } = read(&bytes[frame.data]).unwrap() else { panic!() };
        assert_eq!((whom, first), (SERVICE, Some(ANSWER)));
        assert_eq!(call(data), Some((7, &b"two parts"[..])));
    }

    #[test]
    fn a_message_that_has_not_all_come_is_awaited() {
        let bytes = a_call();
        for length in 0..bytes.len() {
            assert_eq!(frame(&bytes[..length], 0), Ok(None), "after {length} bytes");
        }
    }

    #[test]
    fn messages_that_came_together_are_taken_apart() {
        let mut bytes = a_call();
        let second = bytes.len();
        write_drop(&mut bytes, Id { index: 9, namespace: Namespace::Receiver });
        let first = frame(&bytes, 0).unwrap().unwrap();
        assert_eq!(first.end, second);
        let next = frame(&bytes, first.end).unwrap().unwrap();
        let dropped = Said::Dropped(Id { index: 9, namespace: Namespace::Receiver });
        assert_eq!(read(&bytes[next.data]), Ok(dropped));
    }

    #[test]
    fn an_answer_says_how_many_descriptors_belong_to_it() {
        let mut bytes = Vec::new();
        write_invocation(&mut bytes, Id { index: 5, namespace: Namespace::Receiver }, 2, &[b"Okay"]);
        assert_eq!(frame(&bytes, 0).unwrap().unwrap().descriptors, 2);
        // 28 bytes and a descriptor is what Plash answers to an open.
        assert_eq!(bytes.len(), 28);
    }

    #[test]
    fn what_begins_with_another_mark_is_told_at_its_first_byte() {
        for bytes in [&b"X"[..], b"MSGX", b"MSG?and more of it"] {
            assert_eq!(frame(bytes, 0), Err(Malformed::Mark));
        }
    }

    #[test]
    fn lengths_are_judged_before_anything_is_kept() {
        let header = |length: u32, descriptors: u32| {
            [MESSAGE.as_slice(), &length.to_ne_bytes(), &descriptors.to_ne_bytes()].concat()
        };
        let bytes_max = DATA_BYTES_MAX as u32;
        let descriptors_max = DESCRIPTORS_MAX as u32;
        assert_eq!(frame(&header(bytes_max, descriptors_max), 0), Ok(None));
        assert_eq!(frame(&header(bytes_max + 1, 0), 0), Err(Malformed::Length));
        assert_eq!(frame(&header(0, descriptors_max + 1), 0), Err(Malformed::Length));
        assert_eq!(frame(&header(u32::MAX, 0), 0), Err(Malformed::Length), "a negative one");
    }

    #[test]
    fn data_that_says_nothing_known_is_malformed() {
        let announced = [INVOKE.as_slice(), &[0; 4], &u32::MAX.to_ne_bytes()].concat();
        let other = [INVOKE.as_slice(), &3_u32.to_ne_bytes(), &[0; 4]].concat();
        for (data, why) in [
            (&b""[..], Malformed::Kind),
            (b"Inv", Malformed::Kind),
            (b"Invk\0\0\0\0", Malformed::Kind),
            (b"Drop\0\0\0\0\0", Malformed::Kind),
            (b"Othr\0\0\0\0", Malformed::Kind),
            (&announced, Malformed::Kind),
            (&other, Malformed::Namespace),
        ] {
            assert_eq!(read(data), Err(why), "{data:?}");
        }
    }
}
