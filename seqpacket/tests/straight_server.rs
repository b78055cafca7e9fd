//! The straight way of small calls into their session, and of answers out of it: whatever does not go that
//! way goes the other, in its place between those that do, and nobody can tell which way it was.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Waker};
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::wire::{Header, Hello, Kind, PART_BYTES_MAX, PAYLOAD_BYTES_MAX, Size};
use seqpacket::{AnswerError, Incoming, Mailbox, MailboxOptions, Object, ObjectOptions, object, object_with};
use support::*;
use testing::{Census, on_each_driver};

/// Payloads up to this size are copied out of the packet that they share with others.
const COPIED_MAX: usize = 1024;

/// What may stand between two small calls, and how it ends, if it does.
fn between() -> Vec<(&'static str, Vec<u8>, usize, Option<Kind>)> {
    let (one, hello) = (Size::of_bytes(1).unwrap(), Hello::default());
    let with_one = one.with_descriptors(1).unwrap();
    let late = hello.call(7, one, one, Some(Duration::ZERO)).encode();
    let patient = hello.call(7, one, one, Some(Duration::from_secs(1000))).encode();
    vec![
        ("the largest small call", call(7, &[1; COPIED_MAX], COPIED_MAX), 0, Some(Kind::Answer)),
        ("one byte more", call(7, &[1; COPIED_MAX + 1], COPIED_MAX + 1), 0, Some(Kind::Answer)),
        ("room for the largest small answer", call(7, b"", PAYLOAD_BYTES_MAX), 0, Some(Kind::Answer)),
        ("room for one byte more", call(7, b"", PAYLOAD_BYTES_MAX + 1), 0, Some(Kind::Answer)),
        ("a number that has no place in the row", call(u32::MAX, b"x", 1), 0, Some(Kind::Answer)),
        ("a time limit", [&patient[..], b"x"].concat(), 0, Some(Kind::Answer)),
        ("a time that is over", [&late[..], b"x"].concat(), 0, Some(Kind::Refused)),
        ("no room for its answer", call(7, b"x", 0), 0, Some(Kind::Refused)),
        ("a grant", bare(Header::grant(7)), 0, Some(Kind::Answer)),
        ("descriptors without room for those of the answer", call_with(7, b"", 1, 0), 1, Some(Kind::Refused)),
        ("a descriptor", frame(Header::call(7, with_one, with_one), b"x"), 1, Some(Kind::Answer)),
        ("a cancel of nothing", bare(Header::cancel(7)), 0, None),
        ("nothing", Vec::new(), 0, None),
    ]
}

/// What the server says until so many calls have ended, in order: by number.
#[track_caller]
fn finals(executor: &Executor, client: &RawClient, count: usize) -> Vec<(u32, Kind)> {
    let mut finals = Vec::new();
    while finals.len() < count {
        let said = said_by_server(&client.hear_from(executor));
        finals.extend(said.into_iter().map(|(kind, number, _)| (number, kind)));
    }
    finals.sort_unstable_by_key(|(number, _)| *number);
    finals
}

/// A call and its server's side of it.
fn one_call(executor: &Executor, object: &Object, mailbox: &Mailbox) -> (seqpacket::Call, Incoming) {
    let call = object.call("what?");
    (call, executor.block_on(mailbox.next()).unwrap())
}

on_each_driver! {
    // In.

    fn what_stands_between_small_calls_is_heard_and_so_are_they(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let (object, null) = (attached(&executor, object), null());
        let census = Census::take();
        let client = RawClient::attach(&executor, object.share().unwrap());
        for (what, frames, descriptors, end) in between() {
            let packet = [call(1, b"before", 6), frames, call(2, b"behind", 6)].concat();
            let fds: Vec<BorrowedFd<'_>> = (0..descriptors).map(|_| null.as_fd()).collect();
            assert!(client.say(&packet, &fds));
            let heard = finals(&executor, &client, 2 + usize::from(end.is_some()));
            let mut others = heard.iter().filter(|(number, _)| ![1, 2].contains(number));
            assert_eq!(others.next().map(|(_, kind)| *kind), end, "{what}");
            assert_eq!(heard[..2], [(1, Kind::Answer), (2, Kind::Answer)], "{what}");
        }
        drop(client);
        until(&executor, "nothing is left", || census.is_unchanged());
    }

    /// What answers took is given back for several of them together, or as soon as it is needed.
    fn a_window_of_one_call_serves_one_after_the_other(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { calls: 1, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        executor.spawn(echo(mailbox));
        for number in 0..10 {
            client.say_all(&[call(number, b"x", 1)]);
            assert_eq!(finals(&executor, &client, 1), [(number, Kind::Answer)]);
        }
        client.say_all(&[call(0, b"x", 1), call(1, b"x", 1)]);
        client.hear_the_end(&executor);
    }

    fn what_answers_took_is_free_when_somebody_asks(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        for number in 0..3 {
            client.say_all(&[call(number, b"x", 1)]);
            executor.block_on(mailbox.next()).unwrap().answer("x").unwrap();
            assert_eq!(finals(&executor, &client, 1), [(number, Kind::Answer)]);
            let session = mailbox.each_session()[0];
            assert_eq!(session.free, session.windows);
        }
    }

    fn small_calls_beside_a_large_one_are_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        executor.spawn(echo(mailbox));
        let (total, none) = (PAYLOAD_BYTES_MAX + 1, Size::of_bytes(0).unwrap());
        let large = Hello::default().call(7, Size::of_bytes(total).unwrap(), none, None).encode();
        client.say_all(&[call(1, b"before", 6), large.to_vec(), call(2, b"behind", 6)]);
        assert_eq!(finals(&executor, &client, 2), [(1, Kind::Answer), (2, Kind::Answer)]);
        client.say_all(&[call(3, b"meanwhile", 9)]);
        assert_eq!(finals(&executor, &client, 1), [(3, Kind::Answer)]);
        client.say_all(&[frame(Header::part(7, PART_BYTES_MAX as u32), &[1; PART_BYTES_MAX])]);
        let rest = &[1; PAYLOAD_BYTES_MAX + 1 - PART_BYTES_MAX];
        client.say_all(&[frame(Header::part(7, rest.len() as u32), rest), call(4, b"at last", 7)]);
        let ends = finals(&executor, &client, 2);
        assert_eq!(ends, [(4, Kind::Answer), (7, Kind::Refused)]);
    }

    fn small_calls_to_a_server_that_leaves_are_refused(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[call(1, b"taken", 1)]);
        let taken = executor.block_on(mailbox.next()).unwrap();
        drop(mailbox);
        client.say_all(&[call(2, b"late", 4), call(3, b"late", 4)]);
        executor.settle();
        taken.answer("x").unwrap();
        let ends = finals(&executor, &client, 4);
        let refused = [(2, Kind::Refused), (3, Kind::Refused)];
        assert_eq!(ends, [&[(0, Kind::Goodbye), (1, Kind::Answer)][..], &refused[..]].concat());
    }

    // Out.

    fn an_answer_whose_withdrawal_somebody_awaits_is_an_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (call, incoming) = one_call(&executor, &object, &mailbox);
        let mut context = Context::from_waker(Waker::noop());
        assert!(incoming.continuation().poll_cancelled(&mut context).is_pending());
        incoming.answer("this").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"this");
    }

    fn an_answer_that_fills_its_room_is_an_answer_and_one_byte_more_is_none(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        for (room, bytes, end) in [(5, 5, Kind::Answer), (5, 6, Kind::Refused), (0, 0, Kind::Answer)] {
            client.say_all(&[call(1, b"x", room)]);
            let answered = executor.block_on(mailbox.next()).unwrap().answer(vec![1; bytes]);
            assert_eq!(answered.is_ok(), end == Kind::Answer);
            assert_eq!(finals(&executor, &client, 1), [(1, end)]);
        }
    }

    fn an_answer_with_descriptors_shares_its_packet_with_those_without(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let room = Size::of_bytes(9).unwrap().with_descriptors(1).unwrap();
        client.say_all(&[0, 1, 2].map(|number| bare(Header::call(number, Size::NONE, room))));
        let incoming = [(); 3].map(|()| executor.block_on(mailbox.next()).unwrap());
        for (number, incoming) in incoming.into_iter().enumerate() {
            match number {
                1 => incoming.answer(Message::from("with one").with_descriptor(null())).unwrap(),
                _ => incoming.answer("bare").unwrap(),
            }
        }
        let heard = client.hear_from(&executor);
        assert_eq!((said_by_server(&heard).len(), heard.descriptors.len()), (3, 1));
    }

    fn an_answer_whose_descriptors_cannot_be_sent_is_refused_and_those_beside_it_are_answers(
        reactor: &Reactor,
    ) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let room = Size::of_bytes(9).unwrap().with_descriptors(1).unwrap();
        client.say_all(&[0, 1, 2].map(|number| bare(Header::call(number, Size::NONE, room))));
        let incoming = [(); 3].map(|()| executor.block_on(mailbox.next()).unwrap());
        let crowd = testing::too_many_in_flight();
        for (number, incoming) in incoming.into_iter().enumerate() {
            match number {
                1 => incoming.answer(Message::default().with_descriptor(null())).unwrap(),
                _ => incoming.answer("bare").unwrap(),
            }
        }
        let ends = [(0, Kind::Answer), (1, Kind::Refused), (2, Kind::Answer)];
        assert_eq!(finals(&executor, &client, 3), ends);
        drop(crowd);
        // Nothing of the windows is missing by it.
        client.say_all(&[call(0, b"", 9), call(1, b"", 9)]);
        for _ in 0..2 {
            executor.block_on(mailbox.next()).unwrap().answer("bare").unwrap();
        }
        assert_eq!(finals(&executor, &client, 2).len(), 2);
        let stats = mailbox.stats();
        assert_eq!((stats.calls.begun, stats.calls.answered), (5, 5));
    }

    fn a_call_takes_its_descriptors_along_and_they_are_counted(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let (reader, _writer) = std::io::pipe().unwrap();
        for frames in [
            vec![call_with(0, b"two", 2, 9)],
            vec![call(0, b"", 9), call_with(1, b"two", 2, 9)],
            // Of which the first goes straight in, and what is behind it does not.
            vec![call(0, b"", 9), bare(Header::cancel(7)), call_with(1, b"two", 2, 9)],
        ] {
            let before = mailbox.stats().received.descriptors;
            let calls = frames.iter().filter(|frame| frame[8] == Kind::Call as u8).count();
            assert!(client.say(&frames.concat(), &[reader.as_fd(); 2]));
            for number in 0..calls {
                let incoming = executor.block_on(mailbox.next()).unwrap();
                assert_eq!(incoming.descriptors(), if number + 1 == calls { 2 } else { 0 });
                incoming.answer("thanks").unwrap();
            }
            assert_eq!(finals(&executor, &client, calls).len(), calls);
            assert_eq!(mailbox.stats().received.descriptors - before, 2);
        }
    }

    fn answers_of_all_kinds_leave_in_the_order_in_which_they_were_given(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let room = Size::of_bytes(9).unwrap().with_descriptors(1).unwrap();
        let calls = (0..5).map(|number| bare(Header::call(number, Size::NONE, room)));
        client.say_all(&calls.collect::<Vec<_>>());
        for number in 0..5 {
            let incoming = executor.block_on(mailbox.next()).unwrap();
            match number {
                1 => drop(incoming),
                2 => incoming.refuse(),
                3 => incoming.answer(Message::from("with one").with_descriptor(null())).unwrap(),
                _ => incoming.answer("bare").unwrap(),
            }
        }
        let mut said = Vec::new();
        while said.len() < 5 {
            let frames = said_by_server(&client.hear_from(&executor));
            said.extend(frames.into_iter().map(|(kind, number, _)| (number, kind)));
        }
        let ends = [Kind::Answer, Kind::Dropped, Kind::Refused, Kind::Answer, Kind::Answer];
        assert_eq!(said, (0..).zip(ends).collect::<Vec<_>>());
    }

    fn an_answer_to_a_call_that_was_withdrawn_is_none(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[call(1, b"x", 9), call(2, b"x", 9)]);
        let (first, second) = (executor.block_on(mailbox.next()), executor.block_on(mailbox.next()));
        client.say_all(&[bare(Header::cancel(1))]);
        until(&executor, "the server has heard", || first.as_ref().unwrap().continuation().is_cancelled());
        assert!(matches!(first.unwrap().answer("late"), Err(AnswerError::Withdrawn)));
        second.unwrap().answer("in time").unwrap();
        assert_eq!(finals(&executor, &client, 2), [(1, Kind::Refused), (2, Kind::Answer)]);
        drop(client);
        until(&executor, "the session has ended", || mailbox.sessions() == 0);
    }

    fn an_answer_to_nobody_is_none(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[call(1, b"x", 9)]);
        let incoming = executor.block_on(mailbox.next()).unwrap();
        drop(client);
        until(&executor, "the session has ended", || mailbox.sessions() == 0);
        assert!(matches!(incoming.answer("gone"), Err(AnswerError::Gone)));
    }
}
