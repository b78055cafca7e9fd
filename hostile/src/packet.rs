//! The bytes that are sent: what the protocols have, nearly that, and anything.
//!
//! Written by hand, because the library writes nothing that is wrong. It does not know who hears it, and
//! sends nothing.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, UCred, recvmsg, sendmsg,
};
use rustix::process::{getgid, getpid, getuid};

use crate::records;
use crate::script::Script;

/// Which protocol is nearly spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tongue {
    /// A plain call or answer: any bytes.
    Plain,
    /// A large answer of a plain object.
    LargeAnswer,
    /// What clients and servers of a session say.
    Session,
    /// A typed message.
    Typed,
    /// Records of an introduction.
    Introduction,
}

/// Lengths on each side of what is a limit somewhere.
const LENGTHS: [usize; 12] = [0, 1, 2, 8, 16, 17, 52, 1_000, 4_096, 102_048, 102_064, 102_080];

impl Tongue {
    /// A packet that comes with so many descriptors.
    pub(crate) fn packet(self, script: &mut Script<'_>, descriptors: usize) -> Vec<u8> {
        match script.below(8) {
            0 => {
                let length = script.below(256);
                script.take(length).to_vec()
            }
            1 => vec![script.byte(); script.one_of(&LENGTHS) + script.below(3)],
            2 => b"c".to_vec(),
            _ => match self {
                Tongue::Plain => vec![script.byte(); 1 + script.below(40)],
                Tongue::LargeAnswer => large_answer(script),
                Tongue::Session => frames(script, descriptors),
                Tongue::Typed => typed(script, descriptors),
                Tongue::Introduction => records::stream(script),
            },
        }
    }
}

fn large_answer(script: &mut Script<'_>) -> Vec<u8> {
    let total = script.one_of(&[0, 1, 16, 100, 102_064, 102_065, 1 << 20, 64 << 20, u64::MAX]);
    let mut bytes = total.to_le_bytes().to_vec();
    bytes.extend([if script.below(8) == 7 { 1 } else { 0 }; 8]);
    bytes.resize(16 + script.one_of(&LENGTHS).min(102_064), 7);
    bytes
}

fn typed(script: &mut Script<'_>, descriptors: usize) -> Vec<u8> {
    let places = if script.below(8) == 7 { script.below(10) } else { descriptors.min(8) };
    let length = script.one_of(&[0, 1, 100, 4_096, 102_080, 204_160, 131_073]);
    let said = if script.below(8) == 7 { script.number() } else { length as u32 };
    let mut bytes = vec![1, places as u8, 0, 0];
    bytes.extend(said.to_le_bytes());
    bytes.extend((0..8).map(|place| if place < places { script.byte() % 7 } else { 0 }));
    bytes.resize(16 + length, 7);
    bytes
}

/// Up to four frames back to back, most of them as they may be.
fn frames(script: &mut Script<'_>, descriptors: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..1 + script.below(4) {
        let here = if index == 0 { descriptors } else { 0 };
        frame(script, here, &mut bytes);
    }
    bytes
}

const KIND_HELLO: u8 = 1;
const KIND_CALL: u8 = 2;
const KIND_ANSWER: u8 = 3;
const KIND_CREDIT: u8 = 6;
const KIND_REFUSED: u8 = 7;
const KIND_GRANT: u8 = 8;
const KIND_GOODBYE: u8 = 9;
const KIND_PART: u8 = 10;
const KIND_ELSEWHERE: u8 = 11;

fn frame(script: &mut Script<'_>, descriptors: usize, bytes: &mut Vec<u8>) {
    // None is 0, and 12 is the last.
    let kind = script.byte() % 13;
    let number = match script.below(8) {
        7 => script.number(),
        small => small as u32,
    };
    let number = if matches!(kind, KIND_HELLO | KIND_CREDIT | KIND_GOODBYE) { 0 } else { number };
    let flags = match kind {
        KIND_CALL => script.one_of(&[0, 0, 1, 2, 3]),
        KIND_ANSWER => script.one_of(&[0, 0, 1]),
        _ => 0,
    };
    let payload = match kind {
        KIND_HELLO => hello(script),
        KIND_CALL | KIND_ANSWER => {
            let mut payload = extension(script, flags);
            if flags & 1 == 0 {
                payload.resize(payload.len() + script.one_of(&LENGTHS[..10]), 7);
            }
            payload
        }
        KIND_CREDIT => windows(script),
        KIND_REFUSED => vec![script.byte() % 8],
        KIND_PART => vec![7; script.one_of(&[1, 2, 16, 4_032, 102_016, 102_064])],
        _ => Vec::new(),
    };
    let declared = match kind {
        KIND_ELSEWHERE => 1,
        _ => descriptors as u8,
    };
    let (answer_descriptors, answer_bytes): (u8, u32) = match kind {
        KIND_CALL => (
            script.one_of(&[0, 0, 1, 16, 253]),
            script.one_of(&[0, 64, 102_064, 102_065, 1 << 20, 64 << 20, u32::MAX / 2]),
        ),
        KIND_GRANT => (1, 0),
        _ => (0, 0),
    };
    let begin = bytes.len();
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend([kind, declared, answer_descriptors, flags]);
    bytes.extend(answer_bytes.to_le_bytes());
    // One in eight is spoilt.
    if script.below(8) == 7 {
        let place = begin + script.below(16);
        bytes[place] = script.byte();
    }
    bytes.extend(payload);
}

fn extension(script: &mut Script<'_>, flags: u8) -> Vec<u8> {
    if flags == 0 {
        return Vec::new();
    }
    let total: u64 = match flags & 1 {
        0 => 0,
        _ => script.one_of(&[
            102_049,
            102_065,
            102_066,
            204_128,
            204_129,
            1 << 20,
            64 << 20,
            1 << 31,
            u64::MAX,
        ]),
    };
    let time_left_us: u64 = match flags & 2 {
        0 => 0,
        _ => script.one_of(&[1, 1_000, 1_000_000, 3_600_000_000, u64::MAX]),
    };
    [total.to_le_bytes(), time_left_us.to_le_bytes()].concat()
}

/// What a server promises, or nearly.
fn hello(script: &mut Script<'_>) -> Vec<u8> {
    let mut bytes = b"SRT1\x01\0\0\0".to_vec();
    bytes.extend(windows(script));
    let call_descriptors: u32 = script.one_of(&[16, 0, 1, 253, 254]);
    let packet_bytes: u32 = script.one_of(&[102_080, 4_096, 4_095, 102_081]);
    let message_bytes: u32 = script.one_of(&[64 << 20, 102_064, 4_080, u32::MAX / 2, u32::MAX]);
    for promise in [call_descriptors, packet_bytes, message_bytes] {
        bytes.extend(promise.to_le_bytes());
    }
    bytes
}

fn windows(script: &mut Script<'_>) -> Vec<u8> {
    let calls: u32 = script.one_of(&[256, 1, 0, 257, u32::MAX]);
    let bytes: u32 = script.one_of(&[18 << 20, 204_160, 8_192, 204_159, u32::MAX]);
    let descriptors: u32 = script.one_of(&[64, 16, 0, 253, u32::MAX]);
    let large_bytes: u32 = script.one_of(&[128 << 20, 0, 1 << 20, u32::MAX]);
    [calls, bytes, descriptors, large_bytes].map(u32::to_le_bytes).concat()
}

/// A HELLO that every client accepts.
pub(crate) fn honest_hello() -> Vec<u8> {
    seqpacket::wire::Hello::default().frame().to_vec()
}

/// What goes with a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside<'a> {
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// Whether it says who sends it, truthfully: the kernel refuses anything else.
    pub(crate) credentials: bool,
    pub(crate) urgent: bool,
}

/// Sends once, and does not wait.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], beside: Beside<'_>) -> Result<usize> {
    let rights = SendAncillaryMessage::ScmRights(beside.descriptors);
    let who = UCred { pid: getpid(), uid: getuid(), gid: getgid() };
    let credentials = SendAncillaryMessage::ScmCredentials(who);
    let mut room = vec![MaybeUninit::uninit(); rights.size() + credentials.size()];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !beside.descriptors.is_empty() {
        assert!(control.push(rights), "there is room for them");
    }
    if beside.credentials {
        assert!(control.push(credentials), "there is room for both");
    }
    let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    flags.set(SendFlags::OOB, beside.urgent);
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

/// Sends bytes alone. That the kernel refuses them is nobody's trouble.
pub(crate) fn say(socket: impl AsFd, bytes: &[u8]) {
    let _ = send(socket, bytes, Beside { descriptors: &[], credentials: false, urgent: false });
}

/// Receives once, and does not wait.
pub(crate) fn receive(socket: impl AsFd) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 110_000];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((bytes, descriptors))
}
