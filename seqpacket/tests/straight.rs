//! Most calls go straight to the wire and most answers straight to their callers, past what is there for all
//! the others. Nobody can tell: whatever makes one of them give way, the same is said, heard and counted, and
//! in the same order.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::wire::{Header, Hello, Kind, Malformed, PART_BYTES_MAX, RefusedReason, Size, Windows};
use seqpacket::{Call, CallError, CallOptions, Object, ObjectOptions, Part};
use support::*;
use testing::{leave_descriptors, on_each_driver};

/// What is copied out of a packet, whatever else is in it.
const SMALL_BYTES_MAX: usize = 1024;

/// What fits a packet beside its header.
const WHOLE_BYTES_MAX: usize = 102_064;

/// A server by hand that has said HELLO, and its client.
fn by_hand(reactor: &Reactor, executor: &Executor, hello: Hello) -> (RawClient, Object) {
    let (server, object) = RawServer::new(reactor);
    let attaching = object.call("attach");
    let session = server.attach(executor, hello);
    assert!(said_by_client(&session.hear_from(executor)).iter().any(|said| said.0 == Kind::Call));
    assert!(session.say(&answer(0, b"", 0), &[]));
    executor.block_on(attaching).unwrap();
    (session, object)
}

fn with_windows(windows: Windows) -> Hello {
    Hello { windows, ..Hello::default() }
}

fn room(answer_bytes: usize) -> CallOptions {
    CallOptions { answer_bytes: Some(answer_bytes), ..CallOptions::default() }
}

/// Kinds and numbers of what is said next.
#[track_caller]
fn says(session: &RawClient, executor: &Executor) -> Vec<(Kind, u32)> {
    let said = said_by_client(&session.hear_from(executor));
    said.into_iter().map(|(kind, number, _)| (kind, number)).collect()
}

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Says nothing so far.
#[track_caller]
fn says_nothing(session: &RawClient, executor: &Executor) {
    executor.settle();
    assert!(session.hear().is_none());
}

/// Three calls, numbered from 0.
fn three(object: &Object, session: &RawClient, executor: &Executor) -> Vec<Call> {
    let calls: Vec<Call> = (0..3).map(|_| object.call_with("call", room(4_096))).collect();
    assert_eq!(says(session, executor), [(Kind::Call, 0), (Kind::Call, 1), (Kind::Call, 2)]);
    calls
}

/// How the three end when these frames come in one packet.
fn ends(reactor: &Reactor, frames: &[Vec<u8>], descriptors: usize) -> Vec<Result<Vec<u8>, CallError>> {
    let executor = Executor::new(reactor);
    let (session, object) = by_hand(reactor, &executor, Hello::default());
    let before = object.stats();
    let calls = three(&object, &session, &executor);
    let fd = null();
    assert!(session.say(&frames.concat(), &vec![fd.as_fd(); descriptors]));
    let ends = executor.block_on(all(calls));
    let stats = object.stats();
    if stats.malformed.total() == 0 {
        assert_eq!(stats.received.frames - before.received.frames, frames.len() as u64);
        assert_eq!(stats.received.bytes - before.received.bytes, frames.concat().len() as u64);
        assert_eq!(stats.received.descriptors - before.received.descriptors, descriptors as u64);
        assert_eq!(stats.calls.under_way(), 0);
        let (windows, free) = object.windows().unwrap();
        assert_eq!(windows, free);
    }
    ends
}

/// The first and the third are answered beside something else that ends the second.
#[track_caller]
fn beside(reactor: &Reactor, other: Vec<u8>, descriptors: usize) -> Result<Vec<u8>, CallError> {
    let mut ends = ends(reactor, &[answer(0, b"first", 0), other, answer(2, b"third", 0)], descriptors);
    assert_eq!(ends[0].as_deref().unwrap(), b"first");
    assert_eq!(ends[2].as_deref().unwrap(), b"third");
    ends.remove(1)
}

on_each_driver! {
    // What a call says.

    fn a_call_is_the_same_bytes_whichever_way_it_goes(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        for bytes in [0, 1, 64, SMALL_BYTES_MAX + 1, WHOLE_BYTES_MAX] {
            for answer_bytes in [0, 1, 64, WHOLE_BYTES_MAX] {
                let payload = vec![7; bytes];
                let before = object.stats().sent;
                let call = object.call_with(payload.clone(), room(answer_bytes));
                let heard = session.hear_from(&executor);
                let answer_room = Size::of_bytes(answer_bytes).unwrap().with_descriptors(16).unwrap();
                let header = Header::call(0, Size::of_bytes(bytes).unwrap(), answer_room);
                assert_eq!(heard.bytes, frame(header, &payload));
                let sent = object.stats().sent;
                assert_eq!(sent.frames - before.frames, 1);
                assert_eq!(sent.bytes - before.bytes, heard.bytes.len() as u64);
                assert!(session.say(&answer(0, b"", 0), &[]));
                executor.block_on(call).unwrap();
            }
        }
    }

    fn a_call_that_needs_more_is_sent_as_what_it_is(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let within = CallOptions { within: Some(Duration::from_secs(1000)), ..CallOptions::default() };
        let deadline = object.call_with("deadline", within);
        let heard = session.hear_from(&executor);
        assert_eq!(heard.bytes.len(), 16 + 16 + 8);
        let descriptor = object.call(Message::from("descriptor").with_descriptor(null()));
        let heard = session.hear_from(&executor);
        assert_eq!((heard.bytes.len(), heard.descriptors.len()), (16 + 10, 1));
        let large = object.call(vec![7; WHOLE_BYTES_MAX + 1]);
        let mut kinds = Vec::new();
        while kinds.len() < 3 {
            kinds.extend(said_by_client(&session.hear_from(&executor)).iter().map(|said| said.0));
        }
        assert_eq!(kinds, [Kind::Call, Kind::Part, Kind::Part]);
        assert!(session.say(&[0, 1, 2].map(|number| answer(number, b"", 0)).concat(), &[]));
        let ends = executor.block_on(all(vec![deadline, descriptor, large]));
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    }

    fn room_for_a_large_answer_comes_out_of_its_own_window(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let call = object.call_with("call", room(WHOLE_BYTES_MAX + 1));
        let (windows, free) = object.windows().unwrap();
        assert_eq!(windows.large_bytes - free.large_bytes, WHOLE_BYTES_MAX as u32 + 1);
        assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
        assert!(session.say(&answer(0, b"small after all", 0), &[]));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"small after all");
        assert_eq!(object.windows().unwrap().1, windows);
    }

    fn a_call_with_descriptors_shares_its_packet_with_those_without(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let with_one = || object.call(Message::from("with one").with_descriptor(null()));
        let calls = vec![object.call("first"), with_one(), object.call("third"), with_one()];
        let heard = session.hear_from(&executor);
        assert_eq!(heard.descriptors.len(), 1);
        let said: Vec<_> = said_by_client(&heard).into_iter().map(|(_, number, _)| number).collect();
        assert_eq!(said, [0, 1, 2]);
        let heard = session.hear_from(&executor);
        assert_eq!((heard.descriptors.len(), said_by_client(&heard).len()), (1, 1));
        assert_eq!(object.stats().sent.descriptors, 2);
        drop(calls);
    }

    fn a_call_whose_descriptors_cannot_be_sent_is_none_and_those_beside_it_are(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let crowd = testing::too_many_in_flight();
        let (first, third) = (object.call("first"), object.call("third"));
        let second = object.call(Message::from("second").with_descriptor(Fd::from(pipe())));
        assert_eq!(says(&session, &executor), [(Kind::Call, 0), (Kind::Call, 1)]);
        let end = executor.block_on(second);
        assert!(matches!(end, Err(CallError::OutOfDescriptors(Part::Call))), "{end:?}");
        assert!(session.say(&[answer(0, b"", 0), answer(1, b"", 0)].concat(), &[]));
        assert!(executor.block_on(all(vec![first, third])).iter().all(Result::is_ok));
        assert_eq!(object.windows().unwrap().0, object.windows().unwrap().1);
        drop(crowd);
    }

    /// A server that answers what it has not been asked yet; by the time it is known that the call cannot be
    /// sent, another has its number.
    fn a_call_that_could_not_be_sent_is_not_the_next_one_of_its_number(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        // Nothing more enters the socket.
        const FILLS: u32 = 8;
        let fills: Vec<Call> = (0..FILLS).map(|_| object.call(vec![7; WHOLE_BYTES_MAX])).collect();
        executor.settle();
        let waits = object.call(Message::from("waits").with_descriptor(Fd::from(pipe())));
        executor.settle();
        assert!(session.say(&answer(FILLS, b"foreseen", 0), &[]));
        assert_eq!(executor.block_on(waits).unwrap().bytes(), b"foreseen");
        let next = object.call("next");
        let crowd = testing::too_many_in_flight();
        let mut said = Vec::new();
        while said.len() <= FILLS as usize {
            said.extend(says(&session, &executor));
        }
        assert!(said.into_iter().eq((0..=FILLS).map(|number| (Kind::Call, number))));
        says_nothing(&session, &executor);
        drop(crowd);
        assert!(session.say(&answer(FILLS, b"asked", 0), &[]));
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"asked");
        drop(fills);
    }

    // What makes a call wait.

    fn a_call_without_a_place_in_the_window_goes_when_one_is_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let hello = with_windows(Windows { calls: 1, ..Windows::default() });
        let (session, object) = by_hand(reactor, &executor, hello);
        let calls = vec![object.call("first"), object.call("second"), object.call("third")];
        assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
        says_nothing(&session, &executor);
        for number in 0..3 {
            assert!(session.say(&answer(number, b"", 0), &[]));
            if number < 2 {
                assert_eq!(says(&session, &executor), [(Kind::Call, number + 1)]);
            }
        }
        assert!(executor.block_on(all(calls)).iter().all(Result::is_ok));
    }

    fn a_call_without_bytes_in_the_window_goes_when_one_is_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let hello = with_windows(Windows { bytes: 204_160, ..Windows::default() });
        let (session, object) = by_hand(reactor, &executor, hello);
        // Two fit to the byte, and a third does not.
        let calls: Vec<Call> = (0..3).map(|_| object.call_with(&[7; 4], room(102_044))).collect();
        assert_eq!(says(&session, &executor), [(Kind::Call, 0), (Kind::Call, 1)]);
        says_nothing(&session, &executor);
        assert_eq!(object.windows().unwrap().1.bytes, 0);
        assert!(session.say(&[answer(1, b"", 0), answer(0, b"", 0)].concat(), &[]));
        assert_eq!(says(&session, &executor), [(Kind::Call, 2)]);
        assert!(session.say(&answer(2, b"", 0), &[]));
        assert!(executor.block_on(all(calls)).iter().all(Result::is_ok));
    }

    fn a_call_waits_while_the_others_may_bring_as_many_descriptors_as_are_welcome(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        testing::set_nonblocking(&bound);
        let options = ObjectOptions { answer_descriptors_together: 32, ..ObjectOptions::default() };
        let object = Object::from_fd_with(reactor, address, options).unwrap();
        let calls: Vec<Call> = (0..3).map(|_| object.call("sixteen each")).collect();
        let session = RawServer { bound }.attach(&executor, Hello::default());
        assert_eq!(says(&session, &executor), [(Kind::Call, 0), (Kind::Call, 1)]);
        let another = object.call("and one more");
        says_nothing(&session, &executor);
        assert!(session.say(&[answer(0, b"", 0), answer(1, b"", 0)].concat(), &[]));
        assert_eq!(says(&session, &executor), [(Kind::Call, 2), (Kind::Call, 3)]);
        assert!(session.say(&[answer(2, b"", 0), answer(3, b"", 0)].concat(), &[]));
        assert!(executor.block_on(all(calls)).iter().all(Result::is_ok));
        executor.block_on(another).unwrap();
    }

    fn a_call_does_not_overtake_those_that_wait(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let hello = with_windows(Windows { bytes: 204_160, ..Windows::default() });
        let (session, object) = by_hand(reactor, &executor, hello);
        let first = object.call_with("first", room(102_064));
        let second = object.call_with("waits for room", room(102_064));
        let third = object.call_with("would have room", room(0));
        assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
        says_nothing(&session, &executor);
        assert!(session.say(&answer(0, b"", 0), &[]));
        assert_eq!(says(&session, &executor), [(Kind::Call, 1), (Kind::Call, 2)]);
        assert!(session.say(&[answer(1, b"", 0), answer(2, b"", 0)].concat(), &[]));
        assert!(executor.block_on(all(vec![first, second, third])).iter().all(Result::is_ok));
    }

    fn a_server_that_is_leaving_is_not_called(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let under_way = object.call("under way");
        assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
        assert!(session.say(&bare(Header::goodbye()), &[]));
        says_nothing(&session, &executor);
        // Elsewhere, where nobody listens any more.
        assert!(matches!(executor.block_on(object.call("next")), Err(CallError::Gone)));
        assert!(session.say(&answer(0, b"last", 0), &[]));
        assert_eq!(executor.block_on(under_way).unwrap().bytes(), b"last");
    }

    // What an answer gives way to.

    fn what_else_ends_a_call_may_stand_between_answers(reactor: &Reactor) {
        let dropped = beside(reactor, bare(Header::dropped(1)), 0);
        assert!(matches!(dropped, Err(CallError::Dropped)), "{dropped:?}");
        let refused = beside(reactor, RefusedReason::Refused.frame(1).to_vec(), 0);
        assert!(matches!(refused, Err(CallError::Refused)), "{refused:?}");
        for bytes in [0, 1, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 4_096] {
            let payload = vec![bytes as u8; bytes];
            assert_eq!(beside(reactor, answer(1, &payload, 0), 0).unwrap(), payload);
        }
    }

    fn an_answer_with_descriptors_may_stand_between_others(reactor: &Reactor) {
        assert_eq!(beside(reactor, answer(1, b"two", 2), 2).unwrap(), b"two");
        assert_eq!(beside(reactor, answer(1, b"sixteen", 16), 16).unwrap(), b"sixteen");
        assert_eq!(beside(reactor, answer(1, &[7; 4_096], 1), 1).unwrap(), [7; 4_096]);
    }

    fn descriptors_reach_the_call_that_they_answer_in_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let mut calls = three(&object, &session, &executor);
        let pipes = [pipe(), pipe()];
        let frames = [answer(0, b"none", 0), answer(1, b"both", 2), answer(2, b"none", 0)];
        assert!(session.say(&frames.concat(), &[pipes[0].as_fd(), pipes[1].as_fd()]));
        for (number, count) in [(2, 0), (1, 2), (0, 0)] {
            let mut answer = executor.block_on(calls.remove(number)).unwrap();
            let taken = std::iter::from_fn(|| answer.take_descriptor()).map(inode);
            assert!(taken.eq(pipes[..count].iter().map(inode)), "{number}");
        }
    }

    fn more_descriptors_than_a_call_has_room_for_end_the_session(reactor: &Reactor) {
        for (descriptors, fits) in [(2, true), (3, false)] {
            let executor = Executor::new(reactor);
            let (session, object) = by_hand(reactor, &executor, Hello::default());
            let options = CallOptions { answer_descriptors: Some(2), ..CallOptions::default() };
            let call = object.call_with("two at most", options);
            assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
            let fd = null();
            assert!(session.say(&answer(0, b"", descriptors), &vec![fd.as_fd(); descriptors]));
            let end = executor.block_on(call);
            assert_eq!(end.is_ok(), fits, "{end:?}");
        }
    }

    fn descriptors_that_two_answers_declare_end_the_session_after_the_first(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let calls = three(&object, &session, &executor);
        let fd = null();
        let packet = [answer(0, b"yes", 1), answer(1, b"no", 1)].concat();
        assert!(session.say(&packet, &[fd.as_fd()]));
        let ends = executor.block_on(all(calls));
        assert_eq!(ends[0].as_deref().unwrap(), b"yes");
        assert!(matches!(ends[1], Err(CallError::Malformed(_))), "{ends:?}");
        assert_eq!(object.stats().malformed.of(&Malformed::SecondDescriptors), 1);
    }

    fn fewer_descriptors_than_an_answer_declares_end_the_session(reactor: &Reactor) {
        let ends = ends(reactor, &[answer(0, b"yes", 0), answer(1, b"two", 2)], 1);
        assert_eq!(ends[0].as_deref().unwrap(), b"yes");
        assert!(matches!(ends[1], Err(CallError::Malformed(_))), "{ends:?}");
    }

    fn larger_windows_may_stand_between_answers(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let hello = with_windows(Windows { calls: 3, ..Windows::default() });
        let (session, object) = by_hand(reactor, &executor, hello);
        let calls = three(&object, &session, &executor);
        let waiting: Vec<Call> = (0..5).map(|_| object.call("waits")).collect();
        let larger = Windows { calls: 6, ..Windows::default() }.frame().to_vec();
        session.say_all(&[answer(0, b"", 0), larger, answer(1, b"", 0), answer(2, b"", 0)]);
        assert!(executor.block_on(all(calls)).iter().all(Result::is_ok));
        assert_eq!(says(&session, &executor).len(), 5);
        assert_eq!(object.windows().unwrap().0.calls, 6);
        drop(waiting);
    }

    fn the_answer_to_a_call_that_was_withdrawn_is_nobodys(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let mut calls = three(&object, &session, &executor);
        drop(calls.remove(1));
        assert_eq!(says(&session, &executor), [(Kind::Cancel, 1)]);
        session.say_all(&[answer(0, b"first", 0), answer(1, b"late", 0), answer(2, b"third", 0)]);
        let ends = executor.block_on(all(calls));
        assert_eq!(ends[0].as_deref().unwrap(), b"first");
        assert_eq!(ends[1].as_deref().unwrap(), b"third");
        // The number is free by it.
        let next: Vec<Call> = (0..3).map(|_| object.call("next")).collect();
        assert_eq!(says(&session, &executor).len(), 3);
        drop(next);
    }

    fn answers_come_while_something_large_does(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let large = object.call_with("large", room(150_000));
        let small = object.call("small");
        assert_eq!(says(&session, &executor), [(Kind::Call, 0), (Kind::Call, 1)]);
        let size = Size::of_bytes(150_000).unwrap();
        let opening = Hello::default().answer_to(0, size).encode().to_vec();
        session.say_all(&[opening, answer(1, b"small", 0)]);
        assert_eq!(executor.block_on(small).unwrap().bytes(), b"small");
        let part = |bytes: usize| frame(Header::part(0, bytes as u32), &vec![7; bytes]);
        let another = object.call("another");
        assert_eq!(says(&session, &executor), [(Kind::Call, 1)]);
        assert!(session.say(&part(PART_BYTES_MAX), &[]));
        session.say_all(&[answer(1, b"another", 0), part(150_000 - PART_BYTES_MAX)]);
        assert_eq!(executor.block_on(another).unwrap().bytes(), b"another");
        assert_eq!(executor.block_on(large).unwrap().bytes().len(), 150_000);
    }

    /// While it is not known that the descriptors of a call have left, each end is looked at for that call.
    fn answers_come_while_a_send_may_still_fail(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let fd = Fd::from(null());
        let calls: Vec<Call> = (0..8)
            .map(|number| match number % 2 {
                0 => object.call("plain"),
                _ => object.call(Message::from("with").with_descriptor(fd.clone())),
            })
            .collect();
        let mut heard = 0;
        while heard < 8 {
            let said = says(&session, &executor);
            heard += said.len();
            let answers: Vec<_> = said.iter().map(|(_, number)| answer(*number, b"yes", 0)).collect();
            session.say_all(&answers);
        }
        let ends = executor.block_on(all(calls));
        assert!(ends.iter().all(|end| end.as_deref().is_ok_and(|bytes| bytes == b"yes")), "{ends:?}");
    }

    // What no answer may be.

    fn an_answer_may_fill_its_room_and_not_exceed_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (bytes, fits) in [(4, true), (5, false)] {
            let (session, object) = by_hand(reactor, &executor, Hello::default());
            let call = object.call_with("call", room(4));
            assert_eq!(says(&session, &executor), [(Kind::Call, 0)]);
            assert!(session.say(&answer(0, &vec![7; bytes], 0), &[]));
            let end = executor.block_on(call);
            assert_eq!(end.is_ok(), fits, "{end:?}");
            let kind =
                Malformed::Answer { kind: Kind::Answer, answer_bytes: 5, answer_descriptors: 0 };
            assert_eq!(object.stats().malformed.of(&kind), u64::from(!fits));
        }
    }

    fn a_second_answer_to_a_call_ends_the_session_after_the_first(reactor: &Reactor) {
        let ends = ends(reactor, &[answer(0, b"first", 0), answer(0, b"again", 0), answer(1, b"", 0)], 0);
        assert_eq!(ends[0].as_deref().unwrap(), b"first");
        assert!(ends[1..].iter().all(|end| matches!(end, Err(CallError::Malformed(_)))), "{ends:?}");
    }

    fn an_answer_to_no_call_ends_the_session_after_those_before_it(reactor: &Reactor) {
        for nobody in [3, u32::MAX] {
            let ends = ends(reactor, &[answer(1, b"yes", 0), answer(nobody, b"", 0), answer(2, b"", 0)], 0);
            assert_eq!(ends[1].as_deref().unwrap(), b"yes");
            assert!(matches!(ends[0], Err(CallError::Malformed(_))), "{ends:?}");
            assert!(matches!(ends[2], Err(CallError::Malformed(_))), "{ends:?}");
        }
    }

    fn a_frame_that_is_cut_ends_the_session_after_those_before_it(reactor: &Reactor) {
        let cut = |frame: Vec<u8>, bytes: usize| frame[..frame.len() - bytes].to_vec();
        for last in [cut(answer(1, b"cut", 0), 1), cut(answer(1, b"cut", 0), 3 + 1)] {
            let ends = ends(reactor, &[answer(0, b"yes", 0), last], 0);
            assert_eq!(ends[0].as_deref().unwrap(), b"yes");
            assert!(matches!(ends[1], Err(CallError::Malformed(_))), "{ends:?}");
        }
    }

    fn descriptors_that_no_answer_declares_end_the_session_after_the_answers(reactor: &Reactor) {
        let ends = ends(reactor, &[answer(0, b"yes", 0), answer(1, b"yes", 0)], 1);
        assert_eq!(ends[0].as_deref().unwrap(), b"yes");
        assert_eq!(ends[1].as_deref().unwrap(), b"yes");
        assert!(matches!(ends[2], Err(CallError::Malformed(_))), "{ends:?}");
    }

    fn answers_beside_one_whose_descriptors_are_lost_are_answers(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object) = by_hand(reactor, &executor, Hello::default());
        let calls: Vec<Call> = (0..3).map(|_| object.call("call")).collect();
        assert_eq!(says(&session, &executor).len(), 3);
        let fd = null();
        let frames = [answer(0, b"first", 0), answer(1, b"ten", 10), answer(2, b"third", 0)];
        assert!(session.say(&frames.concat(), &[fd.as_fd(); 10]));
        ring::closer_idle();
        let limit = leave_descriptors(3);
        let ends = executor.block_on(all(calls));
        drop(limit);
        assert_eq!(ends[0].as_deref().unwrap(), b"first");
        assert!(matches!(ends[1], Err(CallError::DescriptorsLost(Part::Answer))), "{ends:?}");
        assert_eq!(ends[2].as_deref().unwrap(), b"third");
        assert_eq!(says(&session, &executor), [(Kind::Lost, 1)]);
    }
}
