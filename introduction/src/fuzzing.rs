//! Each decoder of this crate, called with bytes of anybody's, and what must hold whatever they are.
//!
//! Behind the feature `fuzzing`, for the package `hostile` and the targets in `fuzz/`: nothing here is part
//! of the library. A `read_…` does what the library does with such bytes and no more, so that its memory
//! can be measured; a `check_…` panics where a rule is broken. It must never know keys that are anybody's.

use crate::inlet::{Carried, Come, Inlet, StreamError};
use crate::locator::{LocatorError, PublicKey, SturdyRef, URI_BYTES_MAX};
use crate::proof;
use crate::record::{self, Form, RECORD_BYTES_MAX, Record};
use crate::syrup::{Scanner, Value};
use crate::{Locator, Proof};

/// Reads a value, as what came whole and as what comes byte by byte.
pub fn read_syrup(bytes: &[u8]) {
    let _ = Scanner::new(RECORD_BYTES_MAX).scan(bytes);
    let _ = Value::read(&bytes[..bytes.len().min(RECORD_BYTES_MAX)]);
}

/// A value ends where it ends in whatever pieces it comes, both readers agree on what it is, and what is read
/// is written in a form that is read as the same.
pub fn check_syrup(bytes: &[u8]) {
    let end = Scanner::new(RECORD_BYTES_MAX).scan(bytes);
    for piece_bytes in [1, 2, 3, 7, 64] {
        assert_eq!(scan_in_pieces(bytes, piece_bytes), end, "in pieces of {piece_bytes}");
    }
    if let Ok(Some(end)) = end {
        assert!(end <= bytes.len().min(RECORD_BYTES_MAX));
        let exactly = Scanner::new(end).scan(bytes);
        assert_eq!(exactly, Ok(Some(end)), "a value of as many bytes as it may have");
        assert!(!matches!(Scanner::new(end - 1).scan(bytes), Ok(Some(_))), "and of one more");
    }
    let bytes = &bytes[..bytes.len().min(RECORD_BYTES_MAX)];
    let Ok(value) = Value::read(bytes) else { return };
    assert_eq!(Scanner::new(RECORD_BYTES_MAX).scan(bytes), Ok(Some(bytes.len())), "the readers disagree");
    let written = value.to_bytes();
    assert_eq!(written.len(), bytes.len(), "only the order may be another");
    let again = Value::read(&written).expect("what is written is read");
    assert_eq!(again.to_bytes(), written, "the canonical form has one form");
}

fn scan_in_pieces(bytes: &[u8], piece_bytes: usize) -> Result<Option<usize>, crate::syrup::Malformed> {
    let mut scanner = Scanner::new(RECORD_BYTES_MAX);
    let mut before = 0;
    for piece in bytes.chunks(piece_bytes) {
        if let Some(end) = scanner.scan(piece)? {
            return Ok(Some(before + end));
        }
        assert!(scanner.is_within());
        before += piece.len();
    }
    Ok(None)
}

/// Reads a record.
pub fn read_record(bytes: &[u8]) {
    let _ = Record::read(&bytes[..bytes.len().min(RECORD_BYTES_MAX)]);
}

/// A record that is read is written, in either form, as one that is read as the same and is as long as a
/// record may be.
pub fn check_record(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(RECORD_BYTES_MAX)];
    let Ok(record) = Record::read(bytes) else { return };
    for form in [Form::Goblins, Form::Draft] {
        let written = record.to_bytes(form);
        let again = Record::read(&written).expect("what is written is read");
        // Of which form a response was is told by nothing else in it.
        match (again, record.clone()) {
            (
                Record::ServerResponse { key, challenge, signature, version, .. },
                Record::ServerResponse { key: k, challenge: c, signature: s, version: v, form },
            ) => {
                assert_eq!((key, &challenge, signature, version), (k, &c, s, v));
                if form == Form::Draft {
                    let draft = Record::draft_response(&k, &c, &c, &s, v);
                    assert_eq!(Record::read(&draft).as_ref(), Ok(&record));
                }
            }
            (again, record) => assert_eq!(again, record),
        }
    }
    if let Record::NewConnection { from, number, .. } = &record {
        // What the server does with it: read the asker's words as they stand, and put a number behind.
        let asker = Value::read(record::asker(bytes)).expect("it was read before");
        assert_eq!(Locator::from_value(&asker).as_ref(), Ok(from));
        if number.is_none() {
            let numbered = Record::read(&record::with_number(bytes, u64::MAX));
            assert!(matches!(numbered, Ok(Record::NewConnection { number: Some(u64::MAX), .. })));
        }
    }
}

/// What a stream is made of here: for each read two bytes that say how long it is and what it carried, and
/// its bytes.
fn reads(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], Carried)> {
    std::iter::from_fn(move || {
        let [length, carried, rest @ ..] = bytes else { return None };
        let (read, rest) = rest.split_at(rest.len().min(16 * usize::from(*length)));
        bytes = rest;
        let carried = match carried % 8 {
            0 => Carried::Descriptor,
            1 => Carried::Lost,
            _ => Carried::Nothing,
        };
        Some((read, carried))
    })
}

/// Takes a stream apart.
pub fn read_stream(bytes: &[u8]) {
    let mut inlet = Inlet::new();
    for (read, carried) in reads(bytes) {
        if take(&mut inlet, read, carried, &mut Vec::new()).is_err() {
            return;
        }
    }
}

/// Records come out of a stream in whatever pieces it is read, and each with the bytes that it had.
pub fn check_stream(bytes: &[u8]) {
    let mut inlet = Inlet::new();
    let mut come = Vec::new();
    let mut read_bytes = 0;
    for (read, carried) in reads(bytes) {
        read_bytes += read.len();
        if take(&mut inlet, read, carried, &mut come).is_err() {
            break;
        }
    }
    let cut_bytes: usize = come.iter().map(check_come).sum();
    assert!(cut_bytes <= read_bytes, "more came out than went in");

    // The same without descriptors, in one read and in others.
    let stream = &bytes[..bytes.len().min(ring::PACKET_BYTES_MAX)];
    let at_once = in_reads(stream, stream.len().max(1));
    for piece_bytes in [1, 3, 64] {
        assert_eq!(in_reads(stream, piece_bytes), at_once, "in reads of {piece_bytes}");
    }
}

fn take(inlet: &mut Inlet, read: &[u8], carried: Carried, come: &mut Vec<Come>) -> Result<(), StreamError> {
    inlet.take(read, carried)?;
    while let Some(next) = inlet.cut()? {
        come.push(next);
    }
    assert!(inlet.is_used_up(), "what was read has been looked at");
    Ok(())
}

fn in_reads(stream: &[u8], piece_bytes: usize) -> (Vec<Come>, Option<StreamError>, bool) {
    let (mut inlet, mut come) = (Inlet::new(), Vec::new());
    for piece in stream.chunks(piece_bytes) {
        if let Err(error) = take(&mut inlet, piece, Carried::Nothing, &mut come) {
            return (come, Some(error), false);
        }
    }
    (come, None, inlet.is_within())
}

/// How many bytes of the stream it is known to have had.
fn check_come(come: &Come) -> usize {
    match come {
        Come::Record { record, bytes } => {
            assert_eq!(Record::read(bytes).as_ref(), Ok(record));
            bytes.len()
        }
        Come::Lost(record) => {
            assert!(matches!(record, Record::NewConnection { .. }));
            0
        }
    }
}

/// Reads a locator, a sturdy reference and a key, as people pass them on.
pub fn read_uri(bytes: &[u8]) {
    let Ok(uri) = std::str::from_utf8(bytes) else { return };
    let _ = (uri.parse::<Locator>(), uri.parse::<SturdyRef>(), uri.parse::<PublicKey>());
}

/// What is read is printed in a form that is read as the same, and is one thing only.
pub fn check_uri(bytes: &[u8]) {
    let Ok(uri) = std::str::from_utf8(bytes) else { return };
    let locator: Result<Locator, LocatorError> = uri.parse();
    let reference: Result<SturdyRef, LocatorError> = uri.parse();
    let key: Result<PublicKey, LocatorError> = uri.parse();
    assert!(usize::from(locator.is_ok()) + usize::from(reference.is_ok()) + usize::from(key.is_ok()) <= 1);
    if let Ok(locator) = &locator {
        let printed = locator.to_string();
        assert!(printed.len() <= URI_BYTES_MAX);
        assert_eq!(printed.parse().as_ref(), Ok(locator));
        // And as a record, where a demand that is not known here stays one that is not.
        let mut written = Vec::new();
        locator.write(&mut written);
        let value = Value::read(&written).expect("what is written is read");
        let again = Locator::from_value(&value).expect("what is written is read");
        assert_eq!(&again, locator);
        assert_eq!(again.hints.proof == Proof::None, locator.hints.proof == Proof::None);
    }
    if let Ok(reference) = &reference {
        let printed = reference.to_string();
        assert!(printed.len() <= URI_BYTES_MAX);
        assert_eq!(printed.parse().as_ref(), Ok(reference));
    }
    if let Ok(key) = key {
        assert_eq!(key.to_string(), uri, "a key has one form");
    }
}

/// Takes a message of a proof apart.
pub fn read_proof(bytes: &[u8]) {
    let _ = (proof::parts_of(bytes, proof::HELLO), proof::parts_of(bytes, proof::ANSWER));
}

/// A message of a proof is its word, 32 bytes and 64, and nothing else.
pub fn check_proof(bytes: &[u8]) {
    for word in [proof::HELLO, proof::ANSWER] {
        match proof::parts_of(bytes, word) {
            Some((nonce, signature)) => assert_eq!([&word[..], &nonce, &signature].concat(), bytes),
            None => assert!(bytes.len() != word.len() + 96 || !bytes.starts_with(word)),
        }
    }
}
