//! What the processes of the demonstration tell the one that started them: compact records, streamed.
//!
//! It owns the encoding and nothing else. A directory gets a number when it is first mentioned, and
//! everything in it names that number, so no record grows with the depth of the tree. It does no input or
//! output and panics on no input; who reads it treats nonsense as a failure of whoever wrote it.

use serde::{Deserialize, Serialize};

use crate::files::wire::{Kind, Leaf};
use crate::latency::Way;

/// Records travel in packets of whole records; one that is fuller than this is sent before another record is
/// added.
pub const PACKET_BYTES_SOFT: usize = 16_384;

/// No packet is longer: the soft limit and the longest record (the last words of a process).
pub const PACKET_BYTES_MAX: usize = 65_536;

/// How much more than its size a file is read. What then has not come to its end is taken to have none: many
/// a file of `/proc` says that it has 0 bytes, and gives as many as anybody takes.
pub const BEYOND_BYTES_MAX: u64 = 32 << 20;

/// The number of the directory a walk begins in. It is never announced.
pub const ROOT: u32 = 0;

/// What was found at a place in the tree. Two readings of one tree agree when these are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A directory that could be listed.
    Directory,
    /// A regular file, read to its end.
    File { bytes: u64, sha256: [u8; 32] },
    /// A regular file that goes on and on, read so far and no further ([`BEYOND_BYTES_MAX`]).
    Endless { bytes: u64 },
    /// A symbolic link, not followed.
    Link { target: Vec<u8> },
    /// Something that is never opened: its kind.
    Other(Kind),
    /// The kernel refused to open, list or read it, with this error.
    Unreadable { errno: u32 },
    /// Listed, and gone or something else when it was opened.
    Vanished,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// From now on `number` means the directory `name` in the directory `parent`.
    Number { number: u32, parent: u32, name: Leaf<'a> },
    /// What was found at `name` in the directory `directory`, or, without a name, at that directory itself.
    Found { directory: u32, name: Option<Leaf<'a>>, fact: Fact },
    /// So many calls took so long, within the histogram's precision.
    Latency { way: Way, latency_ns: u64, calls: u64 },
    /// The first record of a service that is to be found by a locator: this one.
    Listed { locator: String },
    /// Two have been introduced to each other, says one of them.
    Met(Met),
    /// Something went wrong that is no property of the tree.
    Trouble { sentence: String },
    /// The last record of a walking process.
    Walked(Walked),
    /// The last record of the service.
    Served(Served),
}

/// Whom a process has met through the introduction server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// Its own key.
    pub key: String,
    /// The key of whoever is at the other end.
    pub other: String,
    /// Whether that has been proved on the connection itself.
    pub proved: bool,
}

/// The last words of a process that walked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    pub driver: String,
    pub reason: String,
    pub sandbox: Sandboxed,
    /// Descriptors this process sent or received. The one between client and third process counts as sent.
    pub descriptors_passed: u64,
    /// `None` where the descriptors of a process cannot be counted.
    pub leaked_descriptors: Option<i64>,
    /// Files held open or being fetched at one time.
    pub in_flight_max: usize,
    pub complete: bool,
}

/// What stands between a walking process and the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandboxed {
    /// The Landlock version in force; `None` when there is no Landlock here.
    pub landlock_abi: Option<i32>,
    /// Why there is none, or how much of it there is.
    pub detail: String,
    /// What a direct open of the exported directory said, sandbox in force.
    pub direct_open: String,
    /// Whether that open failed.
    pub refused: bool,
}

/// The last words of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub driver: String,
    pub reason: String,
    pub directories: u64,
    pub files: u64,
    pub answers: u64,
    /// How leaves are opened.
    pub opens_with: String,
    /// Objects still alive when the last holder was gone: 0.
    pub left: usize,
    pub leaked_descriptors: Option<i64>,
}

const NUMBER: u8 = b'n';
const FOUND: u8 = b'f';
const FOUND_ITSELF: u8 = b'F';
const LATENCY: u8 = b'l';
const LISTED: u8 = b'L';
const MET: u8 = b'm';
const TROUBLE: u8 = b't';
const WALKED: u8 = b'W';
const SERVED: u8 = b'S';

/// The longest sentence a record of trouble carries.
const SENTENCE_BYTES_MAX: usize = 2_048;

impl Record<'_> {
    /// Appends the record to a packet.
    pub fn encode(&self, packet: &mut Vec<u8>) {
        let start = packet.len();
        packet.extend_from_slice(&[0; 4]);
        match self {
            Record::Number { number, parent, name } => {
                packet.push(NUMBER);
                packet.extend_from_slice(&number.to_le_bytes());
                packet.extend_from_slice(&parent.to_le_bytes());
                packet.extend_from_slice(name.bytes());
            }
            Record::Found { directory, name: Some(name), fact } => {
                packet.push(FOUND);
                packet.extend_from_slice(&directory.to_le_bytes());
                let length = u16::try_from(name.bytes().len()).unwrap_or(u16::MAX);
                packet.extend_from_slice(&length.to_le_bytes());
                packet.extend_from_slice(name.bytes());
                encode_fact(fact, packet);
            }
            Record::Found { directory, name: None, fact } => {
                packet.push(FOUND_ITSELF);
                packet.extend_from_slice(&directory.to_le_bytes());
                encode_fact(fact, packet);
            }
            Record::Latency { way, latency_ns, calls } => {
                packet.push(LATENCY);
                packet.push(match way {
                    Way::Session => 0,
                    Way::Plain => 1,
                });
                packet.extend_from_slice(&latency_ns.to_le_bytes());
                packet.extend_from_slice(&calls.to_le_bytes());
            }
            Record::Listed { locator } => {
                packet.push(LISTED);
                packet.extend_from_slice(locator.as_bytes());
            }
            Record::Met(met) => encode_words(MET, met, packet),
            Record::Trouble { sentence } => {
                packet.push(TROUBLE);
                packet.extend_from_slice(cut(sentence).as_bytes());
            }
            Record::Walked(walked) => encode_words(WALKED, walked, packet),
            Record::Served(served) => encode_words(SERVED, served, packet),
        }
        let length = u32::try_from(packet.len() - start - 4).unwrap_or(u32::MAX);
        packet[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// As much of the beginning of `sentence` as a record carries, whole characters only.
fn cut(sentence: &str) -> &str {
    let longest = sentence.len().min(SENTENCE_BYTES_MAX);
    let end = (0..=longest).rev().find(|&end| sentence.is_char_boundary(end)).unwrap_or(0);
    &sentence[..end]
}

fn encode_words<T: Serialize>(kind: u8, words: &T, packet: &mut Vec<u8>) {
    packet.push(kind);
    // Plain structs of numbers and strings: writing them into memory cannot fail.
    packet.extend_from_slice(&serde_json::to_vec(words).unwrap_or_default());
}

fn encode_fact(fact: &Fact, packet: &mut Vec<u8>) {
    match fact {
        Fact::Directory => packet.push(b'd'),
        Fact::File { bytes, sha256 } => {
            packet.push(b'f');
            packet.extend_from_slice(&bytes.to_le_bytes());
            packet.extend_from_slice(sha256);
        }
        Fact::Endless { bytes } => {
            packet.push(b'e');
            packet.extend_from_slice(&bytes.to_le_bytes());
        }
        Fact::Link { target } => {
            packet.push(b'l');
            packet.extend_from_slice(target);
        }
        Fact::Other(kind) => packet.extend_from_slice(&[b'o', kind.byte()]),
        Fact::Unreadable { errno } => {
            packet.push(b'u');
            packet.extend_from_slice(&errno.to_le_bytes());
        }
        Fact::Vanished => packet.push(b'v'),
    }
}

/// The records of a packet, until the first that is none.
pub fn records(packet: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Nonsense>> {
    let mut left = packet;
    std::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let (record, rest) = match split_record(left) {
            Some((body, rest)) => (parse(body).ok_or(Nonsense), rest),
            None => (Err(Nonsense), &[][..]),
        };
        left = if record.is_ok() { rest } else { &[] };
        Some(record)
    })
}

/// A report that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense;

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

fn parse(body: &[u8]) -> Option<Record<'_>> {
    let (&kind, rest) = body.split_first()?;
    match kind {
        NUMBER => {
            let (number, rest) = split_u32(rest)?;
            let (parent, name) = split_u32(rest)?;
            Some(Record::Number { number, parent, name: Leaf::new(name).ok()? })
        }
        FOUND => {
            let (directory, rest) = split_u32(rest)?;
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            Some(Record::Found { directory, name: Some(Leaf::new(name).ok()?), fact: parse_fact(rest)? })
        }
        FOUND_ITSELF => {
            let (directory, rest) = split_u32(rest)?;
            Some(Record::Found { directory, name: None, fact: parse_fact(rest)? })
        }
        LATENCY => {
            let (&way, rest) = rest.split_first()?;
            let way = match way {
                0 => Way::Session,
                1 => Way::Plain,
                _ => return None,
            };
            let (latency_ns, rest) = split_u64(rest)?;
            let (calls, rest) = split_u64(rest)?;
            rest.is_empty().then_some(Record::Latency { way, latency_ns, calls })
        }
        LISTED => Some(Record::Listed { locator: String::from_utf8(rest.to_vec()).ok()? }),
        MET => Some(Record::Met(serde_json::from_slice(rest).ok()?)),
        TROUBLE => Some(Record::Trouble { sentence: String::from_utf8(rest.to_vec()).ok()? }),
        WALKED => Some(Record::Walked(serde_json::from_slice(rest).ok()?)),
        SERVED => Some(Record::Served(serde_json::from_slice(rest).ok()?)),
        _ => None,
    }
}

fn parse_fact(bytes: &[u8]) -> Option<Fact> {
    let (&kind, rest) = bytes.split_first()?;
    match kind {
        b'd' => rest.is_empty().then_some(Fact::Directory),
        b'f' => {
            let (bytes, rest) = split_u64(rest)?;
            Some(Fact::File { bytes, sha256: rest.try_into().ok()? })
        }
        b'e' => {
            let (bytes, rest) = split_u64(rest)?;
            rest.is_empty().then_some(Fact::Endless { bytes })
        }
        b'l' => Some(Fact::Link { target: rest.to_vec() }),
        b'o' => match rest {
            [kind] => Some(Fact::Other(Kind::from_byte(*kind).ok()?)),
            _ => None,
        },
        b'u' => {
            let (errno, rest) = split_u32(rest)?;
            rest.is_empty().then_some(Fact::Unreadable { errno })
        }
        b'v' => rest.is_empty().then_some(Fact::Vanished),
        _ => None,
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn examples() -> Vec<Record<'static>> {
        let name = Leaf::new(b"\xff name\n").unwrap();
        let found = |fact| Record::Found { directory: 3, name: Some(name), fact };
        let sandbox = Sandboxed {
            landlock_abi: Some(6),
            detail: "all of it".into(),
            direct_open: "Permission denied".into(),
            refused: true,
        };
        vec![
            Record::Number { number: 1, parent: ROOT, name },
            found(Fact::Directory),
            found(Fact::File { bytes: 9, sha256: [7; 32] }),
            found(Fact::Endless { bytes: 1 << 25 }),
            found(Fact::Link { target: b"../\xfe".to_vec() }),
            found(Fact::Link { target: Vec::new() }),
            found(Fact::Other(Kind::Fifo)),
            found(Fact::Unreadable { errno: 13 }),
            found(Fact::Vanished),
            Record::Found { directory: 3, name: None, fact: Fact::Directory },
            Record::Latency { way: Way::Plain, latency_ns: 12_345, calls: 67 },
            Record::Listed { locator: "ocapn://somebody".into() },
            Record::Met(Met { key: "us".into(), other: "them".into(), proved: true }),
            Record::Trouble { sentence: "out of luck".into() },
            Record::Walked(Walked {
                driver: "epoll".into(),
                reason: "asked for".into(),
                sandbox,
                descriptors_passed: 5,
                leaked_descriptors: Some(-1),
                in_flight_max: 32,
                complete: true,
            }),
            Record::Served(Served {
                driver: "uring".into(),
                reason: "works".into(),
                directories: 1,
                files: 2,
                answers: 3,
                opens_with: "openat2".into(),
                left: 0,
                leaked_descriptors: None,
            }),
        ]
    }

    #[test]
    fn records_of_one_packet_are_read_as_they_were_written() {
        let mut packet = Vec::new();
        for record in examples() {
            record.encode(&mut packet);
        }
        let back: Vec<_> = records(&packet).map(Result::unwrap).collect();
        assert_eq!(back, examples());
    }

    #[test]
    fn nonsense_ends_the_packet() {
        let mut packet = Vec::new();
        Record::Trouble { sentence: "first".into() }.encode(&mut packet);
        packet.extend_from_slice(&[1, 0, 0, 0, b'?']);
        Record::Trouble { sentence: "never reached".into() }.encode(&mut packet);
        let back: Vec<_> = records(&packet).collect();
        assert_eq!(back.len(), 2);
        assert_eq!(back[1], Err(Nonsense));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let mut packet = Vec::new();
        Record::Trouble { sentence: "\u{20ac}".repeat(SENTENCE_BYTES_MAX) }.encode(&mut packet);
        assert!(packet.len() <= SENTENCE_BYTES_MAX + 5);
        assert!(records(&packet).next().unwrap().is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = records(&bytes).count();
        }

        #[test]
        fn no_damage_makes_it_panic(place in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut packet = Vec::new();
            for record in examples() {
                record.encode(&mut packet);
            }
            let place = place.index(packet.len());
            packet[place] = value;
            let _ = records(&packet).count();
        }
    }
}
