//! Each decoder of this crate, called with bytes of anybody's, and what must hold whatever they are.
//!
//! Behind the feature `fuzzing`, for the package `hostile` and the targets in `fuzz/`: nothing here is part
//! of the library. A `read_…` does what the library does with such bytes and no more, so that its memory
//! can be measured; a `check_…` panics where a rule is broken. It owns no rule of the wire; it knows what
//! follows from them.

use std::time::Instant;

use crate::large;
use crate::parcel::Parcel;
use crate::parts::Assembly;
use crate::rooms::Piece;
use crate::wire::{self, Arrived, Frame, FromServer, Header, Kind};

/// The largest message put together here: enough for every border, and no test of patience.
pub const TOTAL_BYTES_MAX: usize = 1 << 20;

/// What a packet is made of here: whether descriptors were lost, how many came, and its bytes.
fn packet(bytes: &[u8]) -> (Arrived, &[u8]) {
    match bytes {
        [lost, count, packet @ ..] if lost % 2 == 1 => (Arrived::Cut((*count).into()), packet),
        [_, count, packet @ ..] => (Arrived::Whole((*count).into()), packet),
        _ => (Arrived::Whole(0), &[]),
    }
}

/// Reads all frames of a packet, as either side.
pub fn read_packet(bytes: &[u8]) {
    let (arrived, packet) = packet(bytes);
    for frame in wire::frames(packet, arrived).flatten() {
        let _ = (frame.from_client(), frame.from_server());
    }
}

/// A packet is read up to its first fault, each byte of it once, and what was read is written as it came.
pub fn check_packet(bytes: &[u8]) {
    let (arrived, packet) = packet(bytes);
    let mut written = Vec::new();
    let mut declared = 0;
    let mut frames = wire::frames(packet, arrived);
    let mut fault = None;
    for frame in frames.by_ref() {
        match frame {
            Ok(frame) => {
                assert!(fault.is_none(), "nothing is read after a fault");
                declared += usize::from(frame.header.descriptors);
                written.extend_from_slice(&frame.opening().encode());
                written.extend_from_slice(frame.payload);
                check_frame(frame, arrived);
            }
            Err(error) => fault = Some(error),
        }
    }
    assert!(frames.next().is_none(), "what has ended stays ended");
    assert!(packet.starts_with(&written), "what was read is not what came");
    if fault.is_none() {
        assert_eq!(packet, written);
        assert!(!packet.is_empty() && packet.len() <= wire::PACKET_BYTES_MAX);
        match arrived {
            Arrived::Whole(came) => assert_eq!(declared, came),
            Arrived::Cut(came) => assert!(came <= declared),
        }
    }
}

/// A frame is one side's or the other's, and what it says in its payload is written as it came.
fn check_frame(frame: Frame<'_>, arrived: Arrived) {
    let (client, server) = (frame.from_client(), frame.from_server());
    match frame.header.kind {
        Kind::Part | Kind::Goodbye => assert!(client.is_ok() && server.is_ok()),
        _ => assert!(client.is_err() || server.is_err(), "{:?} may be said by both", frame.header.kind),
    }
    match server {
        Ok(FromServer::Hello(hello)) => {
            assert_eq!(hello.check(), Ok(()));
            let written = hello.frame();
            assert_eq!(&written[wire::HEADER_BYTES..], frame.payload);
            let admitted = hello.admits(&Header::goodbye().into());
            assert_eq!(admitted, Ok(()), "every session ends");
        }
        Ok(FromServer::Credit(windows)) => {
            assert_eq!(&windows.frame()[wire::HEADER_BYTES..], frame.payload);
        }
        Ok(FromServer::Refused { number, reason }) => {
            assert_eq!(&reason.frame(number)[wire::HEADER_BYTES..], frame.payload);
        }
        _ => {}
    }
    assert!(frame.missing <= frame.header.descriptors);
    if arrived == Arrived::Whole(usize::from(frame.header.descriptors)) {
        assert_eq!(frame.missing, 0);
    }
}

/// What a large message is made of here: its length, the largest part there may be, and its bytes.
fn message(bytes: &[u8]) -> (usize, usize, &[u8]) {
    match bytes {
        [t0, t1, t2, p0, p1, rest @ ..] => {
            let total = usize::from(*t0) | usize::from(*t1) << 8 | usize::from(*t2) << 16;
            let part = usize::from(*p0) | usize::from(*p1) << 8;
            (1 + total % TOTAL_BYTES_MAX, 1 + part, rest)
        }
        _ => (1, 1, &[]),
    }
}

/// Puts the parts of a large message together, of which the first may be of any length.
pub fn read_parts(bytes: &[u8]) {
    let (total, part_bytes_max, rest) = message(bytes);
    let now = Instant::now();
    let Ok(mut assembly) = Assembly::begin(total as u32, Parcel::default(), now) else { return };
    for part in rest.chunks(part_bytes_max.min(total)) {
        if !matches!(assembly.add(Piece::Here(part), part_bytes_max, now), Ok(false)) {
            return;
        }
    }
}

/// A large message is the bytes of its parts, whole with the last of them, and a part of any other length
/// than there can be is refused, whether somebody wants the message or not.
pub fn check_parts(bytes: &[u8]) {
    let (total, part_bytes_max, rest) = message(bytes);
    let now = Instant::now();
    let wanted = Assembly::begin(total as u32, Parcel::default(), now);
    let Ok(mut wanted) = wanted else { return };
    let mut unwanted = Assembly::of_no_use(total as u32, now);
    let mut arrived = 0;
    for part in rest.chunks(part_bytes_max) {
        let expected = (total - arrived).min(part_bytes_max);
        let whole = wanted.add(Piece::Here(part), part_bytes_max, now);
        assert_eq!(whole, unwanted.add(Piece::Here(part), part_bytes_max, now));
        match whole {
            Err(_) => {
                assert_ne!(part.len(), expected);
                assert_eq!(wanted.missing(), total - arrived, "a refused part counts for nothing");
                return;
            }
            Ok(is_whole) => {
                assert_eq!(part.len(), expected);
                arrived += part.len();
                assert_eq!(wanted.missing(), total - arrived);
                assert_eq!(is_whole, arrived == total);
                if is_whole {
                    assert_eq!(wanted.into_parcel().into_bytes(), &rest[..total]);
                    return;
                }
            }
        }
    }
}

/// What a large answer of a plain object is made of here: how long its packets are, and their bytes.
fn answer(bytes: &[u8]) -> std::slice::Chunks<'_, u8> {
    match bytes {
        [p0, p1, rest @ ..] => rest.chunks(1 + (usize::from(*p0) | usize::from(*p1) << 8)),
        _ => [].chunks(1),
    }
}

/// Puts a large answer of a plain object together.
pub fn read_large_answer(bytes: &[u8]) {
    let mut assembly = large::Assembly::new(TOTAL_BYTES_MAX);
    for packet in answer(bytes) {
        if !matches!(assembly.add(packet, Parcel::default()), Ok(None)) {
            return;
        }
    }
}

/// A large answer is what its packets hold after the header, however they are divided, and none is longer
/// than its caller takes.
pub fn check_large_answer(bytes: &[u8]) {
    let whole = |packets: &mut dyn Iterator<Item = &[u8]>| {
        let mut assembly = large::Assembly::new(TOTAL_BYTES_MAX);
        let mut consumed = 0;
        for packet in packets {
            consumed += packet.len();
            match assembly.add(packet, Parcel::default()) {
                Ok(None) => {}
                Ok(Some(parcel)) => return Some((consumed, parcel.into_bytes())),
                Err(_) => return None,
            }
        }
        None
    };
    let Some((consumed, answer_bytes)) = whole(&mut answer(bytes)) else { return };
    assert!(answer_bytes.len() <= TOTAL_BYTES_MAX);
    let all = &bytes[2..2 + consumed];
    assert_eq!(&all[large::LARGE_HEADER_BYTES..], answer_bytes);
    let again: Vec<Vec<u8>> = large::packets(&answer_bytes).collect();
    assert_eq!(again.concat(), all);
    for bytes_max in [1, 7, 4_096, 102_080] {
        // The first is as long as its header at least.
        let (first, rest) = all.split_at(all.len().min(bytes_max.max(large::LARGE_HEADER_BYTES)));
        let other = whole(&mut std::iter::once(first).chain(rest.chunks(bytes_max)));
        assert_eq!(other, Some((consumed, answer_bytes.clone())), "in packets of {bytes_max}");
    }
}
