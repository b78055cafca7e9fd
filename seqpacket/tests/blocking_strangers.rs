//! Blocking objects against servers written by hand, one packet after the other: large messages both ways,
//! answers from elsewhere, frames that cross, and servers that break the protocol. No driver runs here.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use seqpacket::blocking::{Object, Outgoing};
use seqpacket::wire::{
    self, Arrived, Body, FromClient, Header, Hello, Kind, PART_BYTES_MAX, RefusedReason, Size, Windows,
};
use seqpacket::{CallError, CallOptions, ObjectOptions, Part};
use support::{answer, bare, frame, null};
use testing::{Census, Packet, in_own_process, receive_packet, send_packet};

/// Long enough for the call to be on its way by then, however busy the machine is.
const SHORT: Duration = Duration::from_millis(150);

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// What one side tells the other beside the session. Each body has a process of its own.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);
static SHUT: AtomicBool = AtomicBool::new(false);

/// The server's side of one session.
struct Peer {
    near: OwnedFd,
    /// Frames of the last packet that were not looked at: kind, number, and what the message in it is.
    heard: RefCell<VecDeque<(Kind, u32, Vec<u8>)>>,
}

impl Peer {
    /// Accepts from the bound end, and says HELLO.
    #[track_caller]
    fn accept(bound: &OwnedFd, hello: Hello) -> Peer {
        let peer = Peer::accept_silently(bound);
        peer.say(&hello.frame());
        peer
    }

    #[track_caller]
    fn accept_silently(bound: &OwnedFd) -> Peer {
        let mut packet = receive_packet(bound).unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"c"[..], 1));
        Peer { near: packet.descriptors.remove(0), heard: RefCell::default() }
    }

    #[track_caller]
    fn say(&self, packet: &[u8]) {
        send_packet(&self.near, packet, &[]).unwrap();
    }

    #[track_caller]
    fn say_with(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send_packet(&self.near, packet, descriptors).unwrap();
    }

    /// The next packet.
    #[track_caller]
    fn hear(&self) -> Packet {
        receive_packet(&self.near).unwrap()
    }

    /// The next frame: its kind, its number, and what the message in it is (the total of a large call).
    #[track_caller]
    fn hear_frame(&self) -> (Kind, u32, Vec<u8>) {
        let mut heard = self.heard.borrow_mut();
        while heard.is_empty() {
            let packet = self.hear();
            let frames = wire::frames(&packet.bytes, Arrived::Whole(packet.descriptors.len()));
            heard.extend(frames.map(|frame| {
                let frame = frame.unwrap();
                let bytes = match frame.from_client().unwrap() {
                    FromClient::Call { body: Body::Large { total }, .. } => total.to_string().into_bytes(),
                    FromClient::Call { body: Body::Whole(payload), .. } => payload.to_vec(),
                    FromClient::Part { payload, .. } => payload.to_vec(),
                    _ => Vec::new(),
                };
                (frame.header.kind, frame.header.number, bytes)
            }));
        }
        heard.pop_front().unwrap()
    }

    #[track_caller]
    fn hear_call(&self) -> (u32, Vec<u8>) {
        let (kind, number, bytes) = self.hear_frame();
        assert_eq!(kind, Kind::Call);
        (number, bytes)
    }

    /// All of a large call.
    #[track_caller]
    fn hear_large(&self) -> (u32, Vec<u8>) {
        let (number, total) = self.hear_call();
        let total: usize = String::from_utf8(total).unwrap().parse().unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < total {
            let (kind, part_of, part) = self.hear_frame();
            assert_eq!((kind, part_of), (Kind::Part, number));
            bytes.extend(part);
        }
        (number, bytes)
    }

    /// All of a large answer.
    #[track_caller]
    fn answer_large(&self, number: u32, bytes: &[u8]) {
        self.say(&large_answer(number, bytes.len(), 0));
        for part in bytes.chunks(PART_BYTES_MAX) {
            self.say(&frame(Header::part(number, part.len() as u32), part));
        }
    }

    #[track_caller]
    fn hear_the_end(&self) {
        while !self.hear().bytes.is_empty() {}
    }
}

fn large_answer(number: u32, total: usize, descriptors: usize) -> Vec<u8> {
    let size = Size::of_bytes(total).unwrap().with_descriptors(descriptors).unwrap();
    Hello::default().answer_to(number, size).encode().to_vec()
}

fn part(number: u32, bytes: &[u8]) -> Vec<u8> {
    frame(Header::part(number, bytes.len() as u32), bytes)
}

/// An object, and a thread that serves it as the test says.
fn served_by(serve: impl FnOnce(OwnedFd) + Send + 'static) -> (Object, JoinHandle<()>) {
    let (address, bound) = testing::packet_pair();
    let options = ObjectOptions { answer_descriptors: 16, ..ObjectOptions::default() };
    (Object::from_fd_with(address, options).unwrap(), thread::spawn(move || serve(bound)))
}

fn large_room() -> CallOptions {
    CallOptions { answer_bytes: Some(1 << 20), ..CallOptions::default() }
}

fn patterned(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 7) as u8).collect()
}

in_own_process! {
    // Large messages.

    fn a_call_that_does_not_fit_a_packet_goes_in_parts() {
        for bytes in [102_065, PART_BYTES_MAX * 3, PART_BYTES_MAX * 3 + 1, 5 << 20] {
            let (object, server) = served_by(move |bound| {
                let peer = Peer::accept(&bound, Hello::default());
                let (number, heard) = peer.hear_large();
                assert_eq!(heard, patterned(bytes));
                peer.say(&answer(number, b"all of it", 0));
                let (number, heard) = peer.hear_call();
                peer.say(&answer(number, &heard, 0));
            });
            assert_eq!(object.call(patterned(bytes)).unwrap().bytes(), b"all of it");
            assert_eq!(object.call("small").unwrap().bytes(), b"small");
            server.join().unwrap();
        }
    }

    fn the_largest_call_that_is_not_large_goes_in_one_packet() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, heard) = peer.hear_call();
            peer.say(&answer(number, &heard, 0));
        });
        let enough = CallOptions { answer_bytes: Some(102_064), ..CallOptions::default() };
        let answer = object.call_with(patterned(102_064), enough);
        assert_eq!(answer.unwrap().bytes(), patterned(102_064));
        server.join().unwrap();
    }

    fn descriptors_of_a_large_call_come_with_its_opening() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let opening = peer.hear();
            assert_eq!(opening.descriptors.len(), 2);
            for _ in 0..2 {
                assert_eq!(peer.hear().descriptors.len(), 0);
            }
            peer.say(&answer(0, b"two", 0));
        });
        let fd = null();
        let bytes = patterned(150_000);
        let message = Outgoing::from(&bytes).lend(fd.as_fd()).lend(fd.as_fd());
        assert_eq!(object.call(message).unwrap().bytes(), b"two");
        server.join().unwrap();
    }

    fn a_call_larger_than_the_server_takes_is_refused_here() {
        let hello = Hello { message_bytes_max: 150_000, ..Hello::default() };
        let small = Hello { message_bytes_max: 102_064, ..Hello::default() };
        for (hello, largest) in [(hello, 150_000), (small, 102_064)] {
            let (object, server) = served_by(move |bound| {
                let peer = Peer::accept(&bound, hello);
                let (number, heard) =
                    if largest > 102_064 { peer.hear_large() } else { peer.hear_call() };
                assert_eq!(heard.len(), largest);
                peer.say(&answer(number, b"", 0));
                peer.hear_the_end();
            });
            let error = object.call(patterned(largest + 1)).unwrap_err();
            assert!(matches!(error, CallError::TooLarge(Part::Call)), "{error:?}");
            object.call(patterned(largest)).unwrap();
            drop(object);
            server.join().unwrap();
        }
    }

    fn a_large_answer_is_put_together() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            for bytes in [102_065, 200_000, 1 << 20] {
                let (number, _) = peer.hear_call();
                peer.answer_large(number, &patterned(bytes));
            }
        });
        for bytes in [102_065, 200_000, 1 << 20] {
            let answer = object.call_with("large", large_room()).unwrap();
            assert_eq!(answer.into_bytes(), patterned(bytes));
        }
        server.join().unwrap();
    }

    fn a_large_answer_that_stands_still_ends_the_session() {
        let (address, bound) = testing::packet_pair();
        let server = thread::spawn(move || {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            peer.say(&large_answer(number, 110_000, 0));
            peer.say(&part(number, &[7; PART_BYTES_MAX]));
            peer.hear_the_end();
        });
        let options = ObjectOptions { large_stall: SHORT, ..ObjectOptions::default() };
        let object = Object::from_fd_with(address, options).unwrap();
        let error = object.call_with("large", large_room()).unwrap_err();
        assert!(matches!(error, CallError::Malformed(_)), "{error:?}");
        server.join().unwrap();
    }

    fn a_large_answer_that_goes_on_slowly_does_not() {
        let (address, bound) = testing::packet_pair();
        let server = thread::spawn(move || {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            peer.answer_large(number, &patterned(200_000));
        });
        let options = ObjectOptions { large_stall: LONG, ..ObjectOptions::default() };
        let object = Object::from_fd_with(address, options).unwrap();
        let answer = object.call_with("large", large_room()).unwrap();
        assert_eq!(answer.into_bytes(), patterned(200_000));
        server.join().unwrap();
    }

    fn small_answers_come_between_the_parts_of_large_ones() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let calls = peer.hear();
            assert_eq!(support::said_by_client(&calls).len(), 3);
            let (one, two) = (patterned(110_000), vec![9; 120_000]);
            peer.say(&large_answer(0, one.len(), 0));
            peer.say(&large_answer(2, two.len(), 0));
            peer.say(&part(2, &two[..PART_BYTES_MAX]));
            peer.say(&part(0, &one[..PART_BYTES_MAX]));
            peer.say(&[part(2, &two[PART_BYTES_MAX..]), answer(1, b"small", 0)].concat());
            peer.say(&part(0, &one[PART_BYTES_MAX..]));
        });
        let begun: Vec<_> = (0..3).map(|_| object.begin_with("?", large_room()).unwrap()).collect();
        let answers: Vec<_> = begun.into_iter().map(|begun| begun.finish().unwrap().into_bytes()).collect();
        assert_eq!(answers, [patterned(110_000), b"small".to_vec(), vec![9; 120_000]]);
        server.join().unwrap();
    }

    fn descriptors_of_a_large_answer_are_kept_until_it_is_whole() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let fd = null();
            for whole in [true, false] {
                let (number, _) = peer.hear_call();
                peer.say_with(&large_answer(number, 110_000, 2), &[fd.as_fd(), fd.as_fd()]);
                peer.say(&part(number, &[7; PART_BYTES_MAX]));
                if whole {
                    peer.say(&part(number, &[7; 110_000 - PART_BYTES_MAX]));
                }
            }
        });
        object.attach().unwrap();
        let answer = object.call_with("?", large_room()).unwrap();
        assert_eq!((answer.bytes().len(), answer.descriptors()), (110_000, 2));
        drop(answer);
        let error = object.call_with("?", large_room()).unwrap_err();
        assert!(matches!(error, CallError::Dropped), "{error:?}");
        server.join().unwrap();
    }

    fn a_large_call_refused_in_its_middle_is_ended_with_a_cancel() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            peer.say(&RefusedReason::OutOfMemory.frame(number));
            // Some parts were on their way; where they end the client says before it says anything else.
            let mut parts = 0;
            let kind = loop {
                match peer.hear_frame().0 {
                    Kind::Part => parts += 1,
                    kind => break kind,
                }
            };
            assert_eq!(kind, Kind::Cancel);
            assert!(parts < 320, "{parts}");
            let (number, heard) = peer.hear_call();
            assert_eq!(heard, b"and now?");
            peer.say(&answer(number, b"fine", 0));
        });
        let error = object.call(patterned(20 << 20)).unwrap_err();
        assert!(matches!(error, CallError::OutOfMemory(_)), "{error:?}");
        assert_eq!(object.call("and now?").unwrap().bytes(), b"fine");
        server.join().unwrap();
    }

    fn a_large_call_that_takes_too_long_is_withdrawn_in_its_middle() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            assert_eq!(peer.hear_frame().0, Kind::Part);
            // Until the client gives up nothing more is read. Its cancel comes behind what fits the queue.
            testing::wait_until("the client has given up", || GIVEN_UP.load(Ordering::Acquire));
            while peer.hear_frame().0 == Kind::Part {}
            peer.say(&RefusedReason::Cancelled.frame(number));
            let (number, _) = peer.hear_call();
            peer.say(&answer(number, b"fine", 0));
        });
        object.attach().unwrap();
        let options = CallOptions { within: Some(SHORT), ..CallOptions::default() };
        let error = object.call_with(patterned(20 << 20), options).unwrap_err();
        assert!(matches!(error, CallError::Deadline), "{error:?}");
        GIVEN_UP.store(true, Ordering::Release);
        assert_eq!(object.call("and now?").unwrap().bytes(), b"fine");
        server.join().unwrap();
    }

    fn a_large_answer_withdrawn_in_its_middle_is_swallowed_or_refused() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            for refused in [false, true] {
                let (number, _) = peer.hear_call();
                peer.say(&large_answer(number, 110_000, 0));
                peer.say(&part(number, &[7; PART_BYTES_MAX]));
                assert_eq!(peer.hear_frame(), (Kind::Cancel, number, Vec::new()));
                match refused {
                    false => peer.say(&part(number, &[7; 110_000 - PART_BYTES_MAX])),
                    true => peer.say(&RefusedReason::Cancelled.frame(number)),
                }
                let (number, _) = peer.hear_call();
                peer.say(&answer(number, b"fine", 0));
            }
        });
        object.attach().unwrap();
        for _ in 0..2 {
            let options = CallOptions { within: Some(SHORT), ..large_room() };
            let error = object.call_with("?", options).unwrap_err();
            assert!(matches!(error, CallError::Deadline), "{error:?}");
            assert_eq!(object.call("and now?").unwrap().bytes(), b"fine");
        }
        server.join().unwrap();
    }

    fn descriptors_of_a_large_answer_that_is_withdrawn_are_closed_at_once() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            peer.say_with(&large_answer(number, 110_000, 1), &[null().as_fd()]);
            // No part of it comes, and no other end.
            assert_eq!(peer.hear_frame().0, Kind::Cancel);
            testing::wait_until("the test has looked", || GIVEN_UP.load(Ordering::Acquire));
        });
        object.attach().unwrap();
        let census = Census::take();
        let options = CallOptions { within: Some(SHORT), ..large_room() };
        let options = CallOptions { answer_descriptors: Some(1), ..options };
        assert!(matches!(object.call_with("?", options), Err(CallError::Deadline)));
        census.unchanged();
        GIVEN_UP.store(true, Ordering::Release);
        server.join().unwrap();
    }

    // Answers from elsewhere.

    fn an_answer_comes_from_elsewhere() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            let (near, far) = testing::packet_pair();
            peer.say_with(&bare(Header::elsewhere(number)), &[near.as_fd()]);
            drop(near);
            // For the session the call is over: another may have its number.
            let (number, _) = peer.hear_call();
            peer.say(&answer(number, b"here", 0));
            send_packet(&far, b"from elsewhere", &[null().as_fd()]).unwrap();
        });
        let first = object.begin("first").unwrap();
        object.flush().unwrap();
        assert_eq!(object.call("second").unwrap().bytes(), b"here");
        let mut answer = first.finish().unwrap();
        assert_eq!((answer.bytes(), answer.descriptors()), (&b"from elsewhere"[..], 1));
        drop(answer.take_descriptor());
        server.join().unwrap();
    }

    fn nobody_elsewhere_answers() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            let (near, _far) = testing::packet_pair();
            peer.say_with(&bare(Header::elsewhere(number)), &[near.as_fd()]);
        });
        assert!(matches!(object.call("?"), Err(CallError::Dropped)));
        server.join().unwrap();
    }

    fn a_call_that_went_elsewhere_is_withdrawn_by_its_deadline_and_by_dropping() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            for _ in 0..2 {
                let (number, _) = peer.hear_call();
                let (near, far) = testing::packet_pair();
                peer.say_with(&bare(Header::elsewhere(number)), &[near.as_fd()]);
                drop(near);
                // Seen elsewhere, and nothing is said on the session.
                assert!(receive_packet(&far).unwrap().bytes.is_empty());
                // A cancel has crossed, where the caller had not heard yet that it went elsewhere.
                let (number, heard) = loop {
                    match peer.hear_frame() {
                        (Kind::Cancel, ..) => {}
                        (_, number, heard) => break (number, heard),
                    }
                };
                assert_eq!(heard, b"and now?");
                peer.say(&answer(number, b"fine", 0));
            }
        });
        object.attach().unwrap();
        let options = CallOptions { within: Some(SHORT), ..CallOptions::default() };
        assert!(matches!(object.call_with("?", options), Err(CallError::Deadline)));
        assert_eq!(object.call("and now?").unwrap().bytes(), b"fine");
        let second = object.begin("?").unwrap();
        object.flush().unwrap();
        // Files what has come, whether that is here by now or only when the call is withdrawn.
        drop(second);
        assert_eq!(object.call("and now?").unwrap().bytes(), b"fine");
        drop(object);
        server.join().unwrap();
    }

    fn an_answer_from_elsewhere_that_is_too_large_breaks_nothing() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let fd = null();
            for descriptors in [0, 2] {
                let (number, _) = peer.hear_call();
                let (near, far) = testing::packet_pair();
                peer.say_with(&bare(Header::elsewhere(number)), &[near.as_fd()]);
                send_packet(&far, b"four", &vec![fd.as_fd(); descriptors]).unwrap();
            }
            // Whoever has answered is told nothing, and whoever let it answer is.
            assert_eq!(peer.hear_frame().0, Kind::Lost);
            let (number, _) = peer.hear_call();
            peer.say(&answer(number, b"", 0));
        });
        object.attach().unwrap();
        let census = Census::take();
        let three = CallOptions { answer_bytes: Some(3), ..CallOptions::default() };
        let one = CallOptions { answer_descriptors: Some(1), ..CallOptions::default() };
        assert!(matches!(object.call_with("?", three), Err(CallError::TooLarge(Part::Answer))));
        assert!(matches!(object.call_with("?", one), Err(CallError::DescriptorsLost(Part::Answer))));
        object.call("still there?").unwrap();
        server.join().unwrap();
        // But for the server's: the bound end, its end of the session, and one more.
        assert!(Census::take().len() <= census.len());
    }

    // Descriptors that find no room.

    fn a_server_is_told_what_was_lost_before_the_number_is_used_again() {
        let (object, server) = served_by(|bound| {
            let (one, other) = testing::packet_pair();
            let peer = Peer::accept(&bound, Hello::default());
            let both = [one.as_fd(), other.as_fd()];
            let (number, _) = peer.hear_call();
            peer.say_with(&answer(number, b"two", 2), &both);
            assert_eq!(peer.hear_frame(), (Kind::Lost, number, Vec::new()));
            assert_eq!(peer.hear_call().0, number);
            peer.say_with(&bare(Header::elsewhere(number)), &both[..1]);
            assert_eq!(peer.hear_frame(), (Kind::Lost, number, Vec::new()));
            assert_eq!(peer.hear_call().0, number);
            peer.say_with(&large_answer(number, 150_000, 2), &both);
            // Its parts are still to come, and are heard to the end.
            assert_eq!(peer.hear_frame(), (Kind::Lost, number, Vec::new()));
            peer.say(&part(number, &[7; PART_BYTES_MAX]));
            peer.say(&part(number, &[7; 150_000 - PART_BYTES_MAX]));
            assert_eq!(peer.hear_frame(), (Kind::Grant, number, Vec::new()));
            peer.say_with(&answer(number, b"", 1), &both[..1]);
            assert_eq!(peer.hear_frame(), (Kind::Lost, number, Vec::new()));
            let (number, _) = peer.hear_call();
            peer.say_with(&answer(number, b"two", 2), &both);
        });
        object.attach().unwrap();
        let limit = testing::leave_descriptors(0);
        for _ in 0..3 {
            let lost = object.call_with("?", large_room());
            assert!(matches!(lost, Err(CallError::DescriptorsLost(Part::Answer))), "{lost:?}");
        }
        assert!(matches!(object.grant(), Err(CallError::DescriptorsLost(Part::Answer))));
        drop(limit);
        assert_eq!(object.call("?").unwrap().descriptors(), 2);
        server.join().unwrap();
    }

    fn what_was_lost_behind_other_calls_is_told_before_the_next() {
        let (object, server) = served_by(|bound| {
            let (one, other) = testing::packet_pair();
            let peer = Peer::accept(&bound, Hello::default());
            let (first, _) = peer.hear_call();
            let (second, _) = peer.hear_call();
            peer.say_with(&answer(second, b"two", 2), &[one.as_fd(), other.as_fd()]);
            peer.say(&answer(first, b"none", 0));
            assert_eq!(peer.hear_frame(), (Kind::Lost, second, Vec::new()));
            let (number, _) = peer.hear_call();
            peer.say(&answer(number, b"none", 0));
        });
        let (first, second) = (object.begin("none").unwrap(), object.begin("two").unwrap());
        let limit = testing::leave_descriptors(0);
        assert_eq!(first.finish().unwrap().bytes(), b"none");
        assert!(matches!(second.finish(), Err(CallError::DescriptorsLost(Part::Answer))));
        drop(limit);
        assert_eq!(object.call("none").unwrap().bytes(), b"none");
        server.join().unwrap();
    }

    /// The next session has heard of no such call.
    fn what_is_lost_elsewhere_after_its_session_is_told_to_nobody() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            let (near, far) = testing::packet_pair();
            peer.say_with(&bare(Header::elsewhere(number)), &[near.as_fd()]);
            let (number, _) = peer.hear_call();
            peer.say(&[bare(Header::goodbye()), RefusedReason::Leaving.frame(number).to_vec()].concat());
            peer.hear_the_end();
            let peer = Peer::accept(&bound, Hello::default());
            let (number, _) = peer.hear_call();
            peer.say(&answer(number, b"done", 0));
            let fd = null();
            send_packet(&far, b"two", &[fd.as_fd(), fd.as_fd()]).unwrap();
            let (number, heard) = peer.hear_call();
            assert_eq!(heard, b"last");
            peer.say(&answer(number, b"done", 0));
        });
        let one = CallOptions { answer_descriptors: Some(1), ..CallOptions::default() };
        let handed_on = object.begin_with("elsewhere", one).unwrap();
        object.flush().unwrap();
        assert_eq!(object.call("and now?").unwrap().bytes(), b"done");
        assert!(matches!(handed_on.finish(), Err(CallError::DescriptorsLost(Part::Answer))));
        assert_eq!(object.call("last").unwrap().bytes(), b"done");
        server.join().unwrap();
    }

    // Frames that cross.

    fn larger_windows_are_used() {
        let windows = Windows { calls: 1, ..Windows::default() };
        let (object, server) = served_by(move |bound| {
            let peer = Peer::accept(&bound, Hello { windows, ..Hello::default() });
            let (first, _) = peer.hear_call();
            peer.say(&Windows { calls: 2, ..windows }.frame());
            let (second, _) = peer.hear_call();
            peer.say(&[answer(second, b"2", 0), answer(first, b"1", 0)].concat());
        });
        let answers = object.call_many(["1", "2"]);
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().into_bytes()).collect();
        assert_eq!(answers, [b"1", b"2"]);
        server.join().unwrap();
    }

    fn a_call_that_crosses_a_goodbye_is_made_again_elsewhere() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let (number, heard) = peer.hear_call();
            assert_eq!(heard, b"hello");
            peer.say(&[bare(Header::goodbye()), RefusedReason::Leaving.frame(number).to_vec()].concat());
            peer.hear_the_end();
            let peer = Peer::accept(&bound, Hello::default());
            let (number, heard) = peer.hear_call();
            peer.say(&answer(number, &heard, 0));
        });
        object.attach().unwrap();
        assert_eq!(object.call("hello").unwrap().bytes(), b"hello");
        server.join().unwrap();
    }

    /// It waited for the final frame of the call that it had given up itself.
    fn a_server_that_leaves_with_nothing_but_a_withdrawn_call_is_not_waited_for() {
        let (object, server) = served_by(|bound| {
            let leaving = Peer::accept(&bound, Hello::default());
            leaving.hear_call();
            assert_eq!(leaving.hear_frame().0, Kind::Cancel);
            let (number, _) = leaving.hear_call();
            let refused = RefusedReason::Leaving.frame(number).to_vec();
            leaving.say(&[bare(Header::goodbye()), refused].concat());
            // The handler of the first call is still at it.
            let peer = Peer::accept(&bound, Hello::default());
            let (number, heard) = peer.hear_call();
            peer.say(&answer(number, &heard, 0));
        });
        object.attach().unwrap();
        let options = CallOptions { within: Some(SHORT), ..CallOptions::default() };
        assert!(matches!(object.call_with("too long", options), Err(CallError::Deadline)));
        let options = CallOptions { within: Some(LONG), ..CallOptions::default() };
        assert_eq!(object.call_with("and now?", options).unwrap().bytes(), b"and now?");
        server.join().unwrap();
    }

    fn a_call_with_descriptors_that_crosses_a_goodbye_is_not_made_again() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let call = peer.hear();
            assert_eq!(call.descriptors.len(), 1);
            peer.say(&[bare(Header::goodbye()), RefusedReason::Leaving.frame(0).to_vec()].concat());
            peer.hear_the_end();
        });
        object.attach().unwrap();
        let message = Outgoing::from("hello").with_descriptor(null());
        assert!(matches!(object.call(message), Err(CallError::Gone)));
        server.join().unwrap();
    }

    fn a_server_gone_with_calls_unread_drops_those_that_were_sent() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            // Closed with the first call unread: its last words are still heard.
            peer.say(&Windows::default().frame());
            testing::wait_until("a call is there", || GIVEN_UP.load(Ordering::Acquire));
        });
        object.attach().unwrap();
        let pending = object.begin("never read").unwrap();
        object.flush().unwrap();
        GIVEN_UP.store(true, Ordering::Release);
        server.join().unwrap();
        assert!(matches!(pending.finish(), Err(CallError::Dropped)));
        assert!(matches!(object.call("anyone?"), Err(CallError::Gone)));
    }

    // Servers that break the protocol.

    fn whatever_is_malformed_ends_the_session_with_an_error() {
        for (what, packet, descriptors) in malformed() {
            let (object, server) = served_by(move |bound| {
                let peer = Peer::accept(&bound, Hello::default());
                let (number, _) = peer.hear_call();
                assert_eq!(number, 0);
                let fd = null();
                peer.say_with(&packet, &vec![fd.as_fd(); descriptors]);
                peer.hear_the_end();
                drop(peer);
                // The next call attaches anew.
                let peer = Peer::accept(&bound, Hello::default());
                let (number, heard) = peer.hear_call();
                peer.say(&answer(number, &heard, 0));
            });
            object.attach().unwrap();
            let room = CallOptions {
                answer_bytes: Some(8),
                answer_descriptors: Some(1),
                ..CallOptions::default()
            };
            let result = object.call_with("?", room);
            assert!(matches!(result, Err(CallError::Malformed(_))), "{what}: {result:?}");
            assert!(!object.is_attached(), "{what}");
            assert_eq!(object.call("again").unwrap().bytes(), b"again", "{what}");
            server.join().unwrap();
        }
    }

    fn a_grant_answered_without_its_descriptor_ends_the_session() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let asked = Header::parse(peer.hear().bytes[..16].try_into().unwrap()).unwrap();
            assert_eq!(asked.kind, Kind::Grant);
            peer.say(&answer(asked.number, b"", 0));
            peer.hear_the_end();
        });
        object.attach().unwrap();
        let result = object.grant();
        assert!(matches!(result, Err(CallError::Malformed(_))), "{result:?}");
        assert!(!object.is_attached());
        drop(object);
        server.join().unwrap();
    }

    fn what_does_not_begin_with_hello_is_no_session() {
        let hello = Hello::default().frame();
        let spoilt = |place: usize| {
            let mut hello = hello;
            hello[place] ^= 0x40;
            hello.to_vec()
        };
        let late = [answer(0, b"", 0), hello.to_vec()].concat();
        for packet in [b"a".to_vec(), late, spoilt(16), spoilt(20), vec![0; 102_081]] {
            let (object, server) = served_by(move |bound| {
                let peer = Peer::accept_silently(&bound);
                peer.say(&packet);
                peer.hear_the_end();
            });
            assert!(matches!(object.call("?"), Err(CallError::Malformed(_))));
            server.join().unwrap();
        }
    }

    fn empty_packets_do_no_harm() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept_silently(&bound);
            peer.say(b"");
            peer.say(&Hello::default().frame());
            let (number, _) = peer.hear_call();
            peer.say_with(b"", &[null().as_fd()]);
            peer.say(&answer(number, b"fine", 0));
        });
        assert_eq!(object.call("?").unwrap().bytes(), b"fine");
        server.join().unwrap();
    }

    /// As long as there was something to receive nobody looked at the clock, and a server can see to it that
    /// there always is.
    fn a_server_that_never_stops_talking_does_not_outlast_the_deadline() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            peer.hear_call();
            testing::set_nonblocking(&peer.near);
            let talks = || send_packet(&peer.near, &nothing_new(), &[]).is_ok();
            let first = (0..1_000).take_while(|_| talks()).count();
            SHUT.store(true, Ordering::Release);
            testing::wait_until("the client has given up", || GIVEN_UP.load(Ordering::Acquire));
            let more = (0..1_000).take_while(|_| talks()).count();
            assert!(first > 2 && more < first, "{more} of {first} packets were read");
        });
        object.attach().unwrap();
        let options = CallOptions { within: Some(SHORT), ..CallOptions::default() };
        let pending = object.begin_with("?", options).unwrap();
        let late = Instant::now() + SHORT;
        object.flush().unwrap();
        testing::wait_until("the queue is full", || SHUT.load(Ordering::Acquire));
        testing::wait_until("the time is over", || late < Instant::now());
        assert!(matches!(pending.finish(), Err(CallError::Deadline)));
        GIVEN_UP.store(true, Ordering::Release);
        server.join().unwrap();
    }

    fn a_server_that_takes_nothing_and_never_stops_talking_is_gone() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let stream = std::os::unix::net::UnixStream::from(peer.near);
            stream.shutdown(std::net::Shutdown::Read).unwrap();
            let near = OwnedFd::from(stream);
            drop(bound);
            SHUT.store(true, Ordering::Release);
            while send_packet(&near, &nothing_new(), &[]).is_ok() {}
        });
        object.attach().unwrap();
        testing::wait_until("it takes nothing", || SHUT.load(Ordering::Acquire));
        assert!(matches!(object.call("?"), Err(CallError::Gone)));
        server.join().unwrap();
    }

    fn an_end_that_takes_nothing_more_is_gone() {
        let (object, server) = served_by(|bound| {
            let peer = Peer::accept(&bound, Hello::default());
            let stream = std::os::unix::net::UnixStream::from(peer.near);
            // No end of file follows, and yet nobody will answer.
            stream.shutdown(std::net::Shutdown::Read).unwrap();
            drop(bound);
            SHUT.store(true, Ordering::Release);
            testing::wait_until("the client has given up", || GIVEN_UP.load(Ordering::Acquire));
        });
        object.attach().unwrap();
        testing::wait_until("it takes nothing", || SHUT.load(Ordering::Acquire));
        assert!(matches!(object.call("?"), Err(CallError::Gone)));
        GIVEN_UP.store(true, Ordering::Release);
        server.join().unwrap();
    }
}

/// It takes longer to read than to send.
fn nothing_new() -> Vec<u8> {
    Windows::default().frame().repeat(2_048)
}

/// Everything a server must not say while number 0 is a call with room for 8 bytes and 1 descriptor.
fn malformed() -> Vec<(&'static str, Vec<u8>, usize)> {
    let goodbye = bare(Header::goodbye());
    let smaller = Windows { calls: 1, ..Windows::default() };
    vec![
        ("half a header", answer(0, b"", 0)[..7].to_vec(), 0),
        ("an answer to nobody", answer(9, b"", 0), 0),
        ("a dropped for nobody", bare(Header::dropped(9)), 0),
        ("a part for nobody", part(9, b"x"), 0),
        ("a part of nothing that was opened", part(0, b"x"), 0),
        ("fifteen bytes", vec![0; 15], 0),
        ("an answer longer than its room", answer(0, b"nine byte", 0), 0),
        ("a large answer longer than its room", large_answer(0, 150_000, 0), 0),
        ("more descriptors than it has room for", answer(0, b"", 2), 2),
        ("a descriptor that did not come", answer(0, b"", 1), 0),
        ("a stowaway", bare(Header::goodbye()), 1),
        ("a second hello", Hello::default().frame().to_vec(), 0),
        ("a credit that shrinks", smaller.frame().to_vec(), 0),
        ("two goodbyes", [goodbye.clone(), goodbye].concat(), 0),
        ("a cancel", bare(Header::cancel(0)), 0),
        ("elsewhere over no socket", bare(Header::elsewhere(0)), 1),
        ("elsewhere for nobody", bare(Header::elsewhere(9)), 1),
        ("longer than a packet", vec![0; 102_081], 1),
    ]
}
