//! Peers that do not keep to the protocol: clients that go beyond their windows or do not read, servers that
//! say what they must not, anybody who sends anything. Each is disconnected (or what it sent dropped) and
//! counted; all others notice nothing; and no descriptor stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ring::{Executor, Reactor};
use seqpacket::wire::{Header, Hello, Kind, RefusedReason, Size, Windows};
use seqpacket::{
    CallError, Mailbox, MailboxOptions, Object, ObjectOptions, PlainMailbox, PlainObject, object,
    object_with, plain_object,
};
use support::*;
use testing::{Census, on_each_driver};

/// A packet and its descriptors.
type Say<'a> = (Vec<u8>, Vec<BorrowedFd<'a>>);

/// A mailbox with small windows, and somebody who means well.
fn strict(reactor: &Reactor) -> (Object, Mailbox) {
    let options = MailboxOptions {
        calls: 4,
        bytes: 204_160,
        descriptors: 3,
        call_descriptors: 2,
        ..MailboxOptions::default()
    };
    object_with(reactor, ObjectOptions::default(), options).unwrap()
}

/// The friend is still served.
#[track_caller]
fn is_served(executor: &Executor, friend: &Object, mailbox: &Mailbox) {
    let call = friend.call("still there?");
    let answer = executor.block_on(async {
        let incoming = loop {
            let incoming = mailbox.next().await.unwrap();
            if incoming.bytes() == b"still there?" {
                break incoming;
            }
        };
        incoming.answer("yes").unwrap();
        call.await
    });
    assert_eq!(answer.unwrap().bytes(), b"yes");
}

/// Everything a client must not say in one packet, with the number of descriptors it comes with.
fn malformed_by_clients() -> Vec<(&'static str, Vec<u8>, usize)> {
    let spoilt = |change: fn(&mut Vec<u8>)| {
        let mut packet = call(7, b"add", 64);
        change(&mut packet);
        packet
    };
    let goodbye = bare(Header::goodbye());
    vec![
        ("half a header", call(7, b"", 0)[..9].to_vec(), 0),
        ("half a payload", call(7, b"add", 64)[..18].to_vec(), 0),
        ("a cut frame behind a good one", [call(7, b"add", 64), vec![0; 5]].concat(), 0),
        ("no such kind", spoilt(|packet| packet[8] = 0), 0),
        ("another such kind", spoilt(|packet| packet[8] = 12), 0),
        ("a flag without its extension", spoilt(|packet| packet[11] = 1), 0),
        ("a flag that nobody knows", spoilt(|packet| packet[11] = 4), 0),
        ("too much room", spoilt(|packet| packet[12..16].fill(0xff)), 0),
        ("an answer from elsewhere", bare(Header::elsewhere(7)), 1),
        ("254 descriptors in the answer", spoilt(|packet| packet[10] = 254), 0),
        ("a descriptor that did not come", spoilt(|packet| packet[9] = 1), 0),
        ("two descriptors where one is declared", call_with(7, b"", 1, 0), 2),
        ("a stowaway", call(7, b"add", 64), 1),
        ("descriptors for two", [call_with(7, b"", 1, 0), call_with(8, b"", 1, 0)].concat(), 2),
        ("more descriptors than a call may carry", call_with(7, b"", 3, 0), 3),
        ("a number in use", [call(7, b"", 0), call(7, b"", 0)].concat(), 0),
        ("a grant under a number in use", [call(7, b"", 0), bare(Header::grant(7))].concat(), 0),
        ("an answer", answer(7, b"", 0), 0),
        ("a refusal", RefusedReason::Refused.frame(7).to_vec(), 0),
        ("a dropped", bare(Header::dropped(7)), 0),
        ("a hello", Hello::default().frame().to_vec(), 0),
        ("a credit", Windows::default().frame().to_vec(), 0),
        ("two goodbyes", [goodbye.clone(), goodbye.clone()].concat(), 0),
        ("a call after goodbye", [goodbye.clone(), call(7, b"", 0)].concat(), 0),
        ("a grant after goodbye", [goodbye, bare(Header::grant(7))].concat(), 0),
        ("longer than a packet", vec![0; 102_081], 0),
        ("longer than a packet, and with descriptors", vec![0; 102_081], 2),
    ]
}

/// Everything a server must not say in one packet after HELLO, while number 0 is a call with room for 8 bytes
/// and 1 descriptor.
fn malformed_by_servers() -> Vec<(&'static str, Vec<u8>, usize)> {
    let goodbye = bare(Header::goodbye());
    let smaller = Windows { calls: 1, ..Windows::default() };
    vec![
        ("half a header", answer(0, b"", 0)[..7].to_vec(), 0),
        ("an answer to nobody", answer(9, b"", 0), 0),
        ("a dropped for nobody", bare(Header::dropped(9)), 0),
        ("a refusal for nobody", RefusedReason::Refused.frame(9).to_vec(), 0),
        ("two answers", [answer(0, b"", 0), answer(0, b"", 0)].concat(), 0),
        ("an answer longer than its room", answer(0, b"nine byte", 0), 0),
        ("more descriptors than it has room for", answer(0, b"", 2), 2),
        ("a descriptor that did not come", answer(0, b"", 1), 0),
        ("a stowaway", answer(0, b"", 0), 1),
        ("a stowaway beside a goodbye", goodbye.clone(), 1),
        ("no such reason", frame(Header { length: 1, ..refusal(0) }, &[9]), 0),
        ("a second hello", Hello::default().frame().to_vec(), 0),
        ("a credit that shrinks", smaller.frame().to_vec(), 0),
        ("two goodbyes", [goodbye.clone(), goodbye].concat(), 0),
        ("elsewhere, which is no socket", bare(Header::elsewhere(0)), 1),
        ("elsewhere for nobody", bare(Header::elsewhere(9)), 1),
        ("a call", call(0, b"", 0), 0),
        ("a cancel", bare(Header::cancel(0)), 0),
        ("a grant", bare(Header::grant(0)), 0),
        ("longer than a packet", vec![0; 102_081], 1),
    ]
}

fn refusal(number: u32) -> Header {
    let bytes = RefusedReason::Refused.frame(number);
    Header::parse(bytes[..16].try_into().unwrap()).unwrap()
}

on_each_driver! {
    // Clients.

    fn whatever_is_malformed_ends_its_session_and_is_counted(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = strict(reactor);
        let friend = attached(&executor, friend);
        let address = friend.share().unwrap();
        let fd = null();
        let census = Census::take();
        for (count, (what, packet, descriptors)) in malformed_by_clients().into_iter().enumerate() {
            let client = RawClient::attach(&executor, &address);
            assert!(client.say(&packet, &vec![fd.as_fd(); descriptors]), "{what}");
            client.hear_the_end(&executor);
            assert_eq!(mailbox.violations().malformed, count as u64 + 1, "{what}");
            is_served(&executor, &friend, &mailbox);
        }
        assert_eq!(mailbox.sessions(), 1);
        census.unchanged();
    }

    /// As if they had come in a packet of their own.
    fn frames_before_a_bad_one_are_acted_upon(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = strict(reactor);
        let client = RawClient::attach(&executor, friend.share().unwrap());
        client.say_all(&[call(7, b"first", 8)]);
        let incoming = executor.block_on(mailbox.next()).unwrap();
        client.say_all(&[bare(Header::cancel(7)), vec![1, 2, 3]]);
        client.hear_the_end(&executor);
        assert!(incoming.continuation().is_cancelled());
        assert!(incoming.answer("nobody there").is_err());
    }

    fn empty_packets_are_dropped_and_do_no_harm(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let client = RawClient::attach(&executor, object.share().unwrap());
        let fd = null();
        let census = Census::take();
        for n in 0..200 {
            let descriptors: &[BorrowedFd<'_>] = if n % 2 == 0 { &[] } else { &[fd.as_fd()] };
            assert!(client.say(&[], descriptors));
            executor.settle();
        }
        assert!(client.say(&call(7, b"hello", 8), &[]));
        assert_eq!(said_by_server(&client.hear_from(&executor)), [(Kind::Answer, 7, b"hello".to_vec())]);
        census.unchanged();
    }

    fn a_client_that_goes_beyond_a_window_is_disconnected(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = strict(reactor);
        let friend = attached(&executor, friend);
        let address = friend.share().unwrap();
        let fd = null();
        let with_two = || (call_with(9, b"", 2, 0), vec![fd.as_fd(), fd.as_fd()]);
        let beyond: Vec<(&str, Vec<Say<'_>>)> = vec![
            ("calls", (0..5).map(|n| (call(n, b"", 0), vec![])).collect()),
            (
                "calls in one packet",
                vec![((0..5).map(|n| call(n, b"", 0)).collect::<Vec<_>>().concat(), vec![])],
            ),
            ("bytes sent", (0..3).map(|n| (call(n, &[0; 80_000], 0), vec![])).collect()),
            ("bytes reserved", (0..3).map(|n| (call(n, b"", 80_000), vec![])).collect()),
            ("descriptors", vec![with_two(), (call_with(8, b"", 2, 0), vec![fd.as_fd(), fd.as_fd()])]),
        ];
        let census = Census::take();
        for (count, (what, packets)) in beyond.into_iter().enumerate() {
            let client = RawClient::attach(&executor, &address);
            for (packet, descriptors) in packets {
                assert!(client.say(&packet, &descriptors), "{what}");
            }
            client.hear_the_end(&executor);
            assert_eq!(mailbox.violations().beyond_window, count as u64 + 1, "{what}");
            is_served(&executor, &friend, &mailbox);
        }
        assert_eq!(mailbox.violations().malformed, 0);
        census.unchanged();
    }

    fn a_client_that_fills_its_windows_to_the_brim_is_served(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = strict(reactor);
        executor.spawn(echo(mailbox));
        let client = RawClient::attach(&executor, friend.share().unwrap());
        let fd = null();
        for round in 0..20 {
            // All bytes: the largest call and the largest answer.
            assert!(client.say(&call(round, &[0; 102_064], 102_064), &[]));
            assert_eq!(said_by_server(&client.hear_from(&executor))[0].2.len(), 102_064);
            // All calls and all descriptors. The last two have no room for theirs in the answer.
            client.say_all(&[call(0, b"", 0), call(1, b"", 0)]);
            assert!(client.say(&call_with(2, b"", 2, 0), &[fd.as_fd(), fd.as_fd()]));
            assert!(client.say(&call_with(3, b"", 1, 0), &[fd.as_fd()]));
            let mut finals = Vec::new();
            until(&executor, "all four have ended", || {
                while let Some(packet) = client.hear() {
                    finals.extend(said_by_server(&packet).into_iter().map(|(kind, ..)| kind));
                }
                finals.len() == 4
            });
            assert_eq!(finals, [Kind::Answer, Kind::Answer, Kind::Refused, Kind::Refused]);
        }
    }

    /// It gets so many answers as its window has, in bytes, calls and descriptors, and that is all.
    fn a_client_that_calls_and_never_reads_is_disconnected(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let answered = Rc::new(Cell::new(0));
        let answers = Rc::clone(&answered);
        let violations = Rc::new(RefCell::new(Vec::new()));
        let tells = Rc::clone(&violations);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                if call.bytes() == b"violations" {
                    tells.borrow_mut().push(mailbox.violations());
                    let _ = call.answer("there");
                } else {
                    answers.set(answers.get() + 1);
                    let _ = call.answer(message_of(vec![7], vec![null()]));
                }
            }
        });
        let friend = attached(&executor, friend);
        let census = Census::take();
        let client = RawClient::attach(&executor, friend.share().unwrap());
        let mut said: u32 = 0;
        // Numbers again and again: that is allowed once they have ended, which the client does not look at.
        while client.say(&with_room_for_one(said), &[]) {
            said += 1;
            executor.settle();
            assert!(said < 5_000, "nobody stops it");
        }
        executor.block_on(friend.call("violations")).unwrap();
        assert_eq!(violations.borrow()[0].unread, 1);
        assert_eq!(violations.borrow()[0].beyond_window, 0);
        // What the kernel's queue holds, and a window of calls.
        assert!(answered.get() <= 278 + 256, "{}", answered.get());
        drop(client);
        executor.settle();
        census.unchanged();
    }

    /// Between them the list of turns is not to grow, nor this client to get more turns than others.
    fn calling_and_cancelling_brings_no_more_turns(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let friend = attached(&executor, friend);
        let client = RawClient::attach(&executor, friend.share().unwrap());
        for _ in 0..100 {
            // In two packets, so that the first finds its way onto the list.
            client.say_all(&[call(7, b"flood", 0)]);
            executor.settle();
            client.say_all(&[bare(Header::cancel(7))]);
            let said = said_by_server(&client.hear_from(&executor));
            assert_eq!(said, [(Kind::Refused, 7, vec![5])]);
        }
        client.say_all(&(0..200).map(|n| call(n, b"flood", 0)).collect::<Vec<_>>());
        executor.settle();
        let hello = friend.call("hello");
        executor.settle();
        let mut before = 0;
        executor.block_on(async {
            loop {
                let call = mailbox.next().await.unwrap();
                if call.bytes() == b"hello" {
                    return call.answer("hello").unwrap();
                }
                before += 1;
            }
        });
        assert!(before <= 1, "{before}");
        assert!(executor.block_on(hello).is_ok());
    }

    fn cancelling_what_is_not_under_way_is_nothing(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&vec![bare(Header::cancel(7)); 4_000]);
        client.say_all(&[call(7, b"hello", 8), bare(Header::cancel(8)), bare(Header::cancel(8))]);
        assert_eq!(said_by_server(&client.hear_from(&executor)), [(Kind::Answer, 7, b"hello".to_vec())]);
        // The second of two is nothing either.
        client.say_all(&[call(7, b"hello", 8), bare(Header::cancel(7)), bare(Header::cancel(7))]);
        assert_eq!(said_by_server(&client.hear_from(&executor)), [(Kind::Refused, 7, vec![5])]);
    }

    fn a_client_that_says_goodbye_still_gets_its_answers(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[call(7, b"hello", 8), bare(Header::goodbye()), bare(Header::cancel(8))]);
        assert_eq!(said_by_server(&client.hear_from(&executor)), [(Kind::Answer, 7, b"hello".to_vec())]);
    }

    fn what_is_no_attach_is_counted_and_the_next_is_served(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let address = friend.share().unwrap();
        let fd = null();
        testing::send_packet(&address, b"hello?", &[]).unwrap();
        testing::send_packet(&address, b"c", &[]).unwrap();
        testing::send_packet(&address, b"c", &[fd.as_fd()]).unwrap();
        testing::send_packet(&address, b"c", &[fd.as_fd(), fd.as_fd()]).unwrap();
        let friend = attached(&executor, friend);
        assert_eq!(mailbox.violations().not_attaching, 4);
        assert_eq!((mailbox.sessions(), mailbox.attached_ever()), (1, 1));
        is_served(&executor, &friend, &mailbox);
    }

    // Servers.

    fn a_server_that_breaks_the_protocol_ends_the_session_and_its_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let fd = null();
        let census = Census::take();
        for (what, packet, descriptors) in malformed_by_servers() {
            let (server, object) = RawServer::new(reactor);
            let room = seqpacket::CallOptions {
                answer_bytes: Some(8),
                answer_descriptors: Some(1),
                ..Default::default()
            };
            let first = object.call_with("first", room);
            let session = server.attach(
                &executor,
                Hello { windows: Windows { calls: 2, ..Windows::default() }, ..Hello::default() },
            );
            assert_eq!(said_by_client(&session.hear_from(&executor))[0].1, 0, "{what}");
            let unsent = (object.call("second"), object.call("third"));
            executor.settle();
            assert!(session.say(&packet, &vec![fd.as_fd(); descriptors]), "{what}");
            session.hear_the_end(&executor);
            let ends = executor.block_on(all(vec![first, unsent.0, unsent.1]));
            // The first may have been answered by a frame before the bad one.
            assert!(matches!(ends[0], Err(CallError::Malformed(_)) | Ok(_)), "{what}: {:?}", ends[0]);
            assert!(matches!(ends[1], Err(CallError::Malformed(_))), "{what}: {:?}", ends[1]);
            assert!(
                matches!(ends[2], Err(CallError::Gone | CallError::Malformed(_))),
                "{what}: {:?}",
                ends[2]
            );
            // Another server may do better.
            let next = object.call("again");
            let session = server.attach(&executor, Hello::default());
            let number = said_by_client(&session.hear_from(&executor))[0].1;
            assert!(session.say(&answer(number, b"welcome", 0), &[]));
            assert_eq!(executor.block_on(next).unwrap().bytes(), b"welcome", "{what}");
        }
        executor.settle();
        census.unchanged();
    }

    fn a_grant_answered_without_its_descriptor_ends_the_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let granting = object.clone();
        let result = Rc::new(RefCell::new(None));
        let tells = Rc::clone(&result);
        executor.spawn(async move { *tells.borrow_mut() = Some(granting.grant().await) });
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        let said = said_by_client(&session.hear_from(&executor));
        assert_eq!(said[0].0, Kind::Grant);
        assert!(session.say(&answer(said[0].1, b"", 0), &[]));
        session.hear_the_end(&executor);
        assert!(matches!(result.borrow_mut().take(), Some(Err(CallError::Malformed(_)))));
    }

    fn whatever_comes_instead_of_hello_is_malformed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let fd = null();
        let mut magic = Hello::default().frame().to_vec();
        magic[16] = b'X';
        let mut version = Hello::default().frame().to_vec();
        version[20] = 2;
        let shrinks =
            [Hello::default().frame().as_slice(), &Windows { calls: 1, ..Windows::default() }.frame()]
                .concat();
        let twice = [Hello::default().frame(), Hello::default().frame()].concat();
        let firsts = [
            (answer(0, b"", 0), 0),
            (magic, 0),
            (version, 0),
            (shrinks, 0),
            (twice, 0),
            (Hello::default().frame().to_vec(), 1),
            (vec![0; 102_081], 0),
            (b"a".to_vec(), 0),
        ];
        let census = Census::take();
        for (packet, descriptors) in firsts {
            let (server, object) = RawServer::new(reactor);
            let call = object.call("hello");
            let session = server.accept(&executor);
            assert!(session.say(&packet, &vec![fd.as_fd(); descriptors]));
            assert!(matches!(executor.block_on(call), Err(CallError::Malformed(_))));
            session.hear_the_end(&executor);
        }
        executor.settle();
        census.unchanged();
    }

    fn larger_windows_beside_hello_and_later_are_used(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let calls: Vec<_> = (0..10).map(|_| object.call("hello")).collect();
        let session = server.accept(&executor);
        let windows = |calls| Windows { calls, ..Windows::default() };
        let hello = Hello { windows: windows(2), ..Hello::default() };
        assert!(session.say(&[hello.frame().as_slice(), &windows(5).frame()].concat(), &[]));
        assert_eq!(said_by_client(&session.hear_from(&executor)).len(), 5);
        assert!(session.say(&windows(8).frame(), &[]));
        assert_eq!(said_by_client(&session.hear_from(&executor)).len(), 3);
        session.say_all(&[bare(Header::dropped(0)), bare(Header::dropped(1)), bare(Header::dropped(2))]);
        assert_eq!(said_by_client(&session.hear_from(&executor)).len(), 2);
        drop(calls);
    }

    /// The server says how long a packet may be, and how much room an answer can use at all.
    fn packets_keep_to_what_the_server_takes(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let hello = Hello { packet_bytes_max: 4_096, message_bytes_max: 4_080, ..Hello::default() };
        let mut calls: Vec<_> = (0..20).map(|n| object.call(vec![n; 1_000])).collect();
        calls.push(object.call(vec![20; 4_080]));
        let too_large = object.call(vec![21; 4_081]);
        let session = server.attach(&executor, hello);
        assert!(matches!(executor.block_on(too_large), Err(CallError::TooLarge(_))));
        let mut heard = Vec::new();
        until(&executor, "all calls came", || {
            while let Some(packet) = session.hear() {
                assert!(packet.bytes.len() <= 4_096);
                for frame in seqpacket::wire::frames(&packet.bytes, seqpacket::wire::Arrived::Whole(0)) {
                    hello.admits(&frame.unwrap().opening()).unwrap();
                }
                heard.extend(said_by_client(&packet));
            }
            heard.len() == 21
        });
        drop(calls);
        let mut cancelled = 0;
        until(&executor, "all are cancelled", || {
            while let Some(packet) = session.hear() {
                cancelled += said_by_client(&packet).iter().filter(|said| said.0 == Kind::Cancel).count();
            }
            cancelled == 21
        });
    }

    /// Nothing that was on its way to an ended call finds the next of its number.
    fn a_server_that_ends_calls_it_has_not_seen_ends_no_others(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        executor.spawn({
            let object = object.clone();
            async move { drop(object.attach().await) }
        });
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        executor.settle();
        let fd = ring::Fd::from(null());
        let calls: Vec<_> = (0..60).map(|_| object.call(with_many("x", &fd, 1))).collect();
        session.say_all(&(0..60).map(|n| bare(Header::dropped(n))).collect::<Vec<_>>());
        let ends = executor.block_on(all(calls));
        assert!(ends.iter().all(|end| matches!(end, Err(CallError::Dropped))));
        let next = object.call("next");
        let mut number = None;
        until(&executor, "the next call came", || {
            while let Some(packet) = session.hear() {
                number =
                    said_by_client(&packet).into_iter().find(|said| said.2 == b"next").map(|said| said.1);
            }
            number.is_some()
        });
        assert!(session.say(&answer(number.unwrap(), b"here", 0), &[]));
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"here");
    }

    /// The first waits to be sent, cannot be, and has been ended before that by a server that never saw it.
    fn a_call_that_cannot_be_sent_any_more_does_not_end_the_next_of_its_number(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let Some(unsendable) = ring_descriptor() else { return };
        let (server, object) = RawServer::new(reactor);
        let large: Vec<_> = (0..10).map(|_| object.call(vec![0; 60_000])).collect();
        let session = server.attach(&executor, Hello::default());
        executor.settle();
        let first = object.call(ring::Message::from("first").with_descriptor(unsendable));
        executor.settle();
        session.say_all(&[bare(Header::dropped(10))]);
        assert!(matches!(executor.block_on(first), Err(CallError::Dropped)));
        let mut next = object.call("next");
        let mut heard = Vec::new();
        until(&executor, "the next call came", || {
            assert!(poll_once(&mut next).is_pending());
            while let Some(packet) = session.hear() {
                heard.extend(said_by_client(&packet));
            }
            heard.iter().any(|said| said.2 == b"next")
        });
        assert_eq!((heard.len(), heard.last().unwrap().1), (11, 10));
        assert!(session.say(&answer(10, b"here", 0), &[]));
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"here");
        drop(large);
    }

    // Plain objects.

    fn what_is_no_plain_call_is_dropped_and_counted(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let socket = object.share().unwrap();
        let fd = null();
        let (near, far) = testing::packet_pair();
        let (stream, _other) = testing::stream_pair();
        let census = Census::take();
        testing::send_packet(&socket, b"no descriptor", &[]).unwrap();
        testing::send_packet(&socket, b"no socket", &[far.as_fd(), fd.as_fd()]).unwrap();
        testing::send_packet(&socket, b"no packets", &[stream.as_fd()]).unwrap();
        testing::send_packet(&socket, &[1; 102_081], &[far.as_fd()]).unwrap();
        testing::send_packet(&socket, b"too many", &[far.as_fd(); 17]).unwrap();
        testing::send_packet(&socket, b"a call", &[far.as_fd(); 16]).unwrap();
        let call = executor.block_on(mailbox.next()).unwrap();
        assert_eq!((call.bytes(), call.descriptors()), (&b"a call"[..], 15));
        let violations = mailbox.violations();
        assert_eq!((violations.without_continuation, violations.not_a_continuation), (1, 2));
        assert_eq!((violations.truncated, violations.descriptors_lost), (1, 1));
        call.answer("an answer").unwrap();
        executor.settle();
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"an answer");
        until(&executor, "the continuation is closed", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            Census::take().len() == census.len()
        });
        census.unchanged();
    }

    fn a_thousand_empty_packets_are_no_end_of_a_plain_object(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let socket = object.share().unwrap();
        let fd = null();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer("yes");
            }
        });
        let census = Census::take();
        for n in 0..1_000 {
            let descriptors: &[BorrowedFd<'_>] = if n % 2 == 0 { &[] } else { &[fd.as_fd(), fd.as_fd()] };
            push(&executor, &socket, b"", descriptors);
        }
        until(&executor, "all have come", || reactor.stats().empty_packets == 1_000);
        census.unchanged();
        assert_eq!(executor.block_on(object.call("still there?")).unwrap().bytes(), b"yes");
    }

    fn a_thousand_empty_packets_are_no_end_of_an_address(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let address = object.share().unwrap();
        for _ in 0..1_000 {
            push(&executor, &address, b"", &[]);
        }
        assert_eq!(executor.block_on(object.call("still there?")).unwrap().bytes(), b"still there?");
    }

    /// As an argument, as the continuation, in an answer, and beside an attach.
    fn a_lingering_descriptor_keeps_nobody_waiting(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let socket = object.share().unwrap();
        let (friend, sessions) = seqpacket::object(reactor).unwrap();
        let lingering: Vec<_> = (0..4).map(|_| testing::lingering_tcp()).collect();
        let began = std::time::Instant::now();
        let (_near, far) = testing::packet_pair();
        testing::send_packet(&socket, b"argument", &[lingering[0].near.as_fd(), far.as_fd()]).unwrap();
        testing::send_packet(&socket, b"continuation", &[lingering[1].near.as_fd()]).unwrap();
        testing::send_packet(friend.share().unwrap(), b"c", &[lingering[2].near.as_fd()]).unwrap();
        let (nears, fars): (Vec<OwnedFd>, Vec<OwnedFd>) =
            lingering.into_iter().map(|l| (l.near, l.far)).unzip();
        let mut nears = nears.into_iter();
        // The copies in the queues are the last but one.
        nears.by_ref().take(3).for_each(ring::discard);
        let argument = executor.block_on(mailbox.next()).unwrap();
        drop(argument);
        let call = object.call("answer me");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        incoming.answer(message_of(vec![1], nears.collect())).unwrap();
        drop(executor.block_on(call).unwrap());
        assert_eq!(mailbox.violations().not_a_continuation, 1);
        executor.spawn(echo(sessions));
        assert!(executor.block_on(friend.call("hello")).is_ok());
        assert!(began.elapsed() < testing::LINGER_TIME, "some close was waited for");
        drop(fars);
    }

    fn more_than_one_answer_is_one(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call("hello");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let continuation = incoming.into_continuation().into_fd().unwrap();
        let fd = null();
        let census = Census::take();
        for text in [&b"first"[..], b"second", b"third"] {
            testing::send_packet(&continuation, text, &[fd.as_fd()]).unwrap();
        }
        let answer = executor.block_on(call).unwrap();
        assert_eq!((answer.bytes(), answer.descriptors()), (&b"first"[..], 1));
        drop(answer);
        until(&executor, "the near end is closed", || {
            testing::send_packet(&continuation, b"fourth", &[]).is_err()
        });
        drop(census);
    }

    fn an_empty_answer_is_not_the_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let fd = null();
        for then in [true, false] {
            let call = object.call("hello");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            let continuation = incoming.into_continuation().into_fd().unwrap();
            testing::send_packet(&continuation, b"", &[fd.as_fd()]).unwrap();
            testing::send_packet(&continuation, b"", &[]).unwrap();
            if then {
                testing::send_packet(&continuation, b"at last", &[]).unwrap();
            }
            drop(continuation);
            match executor.block_on(call) {
                Ok(answer) => assert!(then && answer.bytes() == b"at last"),
                Err(error) => assert!(!then && matches!(error, CallError::Dropped)),
            }
        }
    }

    /// A call that was sent before this process had the mailbox was sent by nobody it could tell.
    fn credentials_that_the_kernel_does_not_tell_are_none(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, object) = testing::packet_pair();
        let (_near, far) = testing::packet_pair();
        testing::send_packet(&object, b"early", &[far.as_fd()]).unwrap();
        let mailbox = PlainMailbox::from_fd(reactor, bound).unwrap();
        testing::send_packet(&object, b"late", &[far.as_fd()]).unwrap();
        assert!(executor.block_on(mailbox.next()).unwrap().credentials().is_none());
        let late = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(late.credentials().unwrap().pid, std::process::id() as i32);
    }

    // Anything from anybody.

    fn no_packet_harms_a_mailbox(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = strict(reactor);
        let friend = attached(&executor, friend);
        let address = friend.share().unwrap();
        let pool = Pool::new();
        let census = Census::take();
        fuzz(packets(), |packets| {
            let client = RawClient::attach(&executor, &address);
            for (bytes, descriptors) in &packets {
                client.say(bytes, &pool.borrow(*descriptors));
                executor.settle();
                while let Some(packet) = client.hear().filter(|packet| !packet.bytes.is_empty()) {
                    said_by_server(&packet);
                }
            }
            drop(client);
            is_served(&executor, &friend, &mailbox);
        });
        // The addresses that were granted are closed when they have arrived nowhere.
        until(&executor, "only the friend is left", || {
            mailbox.sessions() == 1 && Census::take().len() == census.len()
        });
        census.unchanged();
    }

    fn no_packet_harms_an_address(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let friend = attached(&executor, friend);
        let address = friend.share().unwrap();
        let pool = Pool::new();
        let census = Census::take();
        fuzz(packets(), |packets| {
            for (bytes, descriptors) in &packets {
                push(&executor, &address, bytes, &pool.borrow(*descriptors));
            }
            is_served(&executor, &friend, &mailbox);
        });
        // The addresses that were granted are closed when they have arrived nowhere.
        until(&executor, "only the friend is left", || {
            mailbox.sessions() == 1 && Census::take().len() == census.len()
        });
        census.unchanged();
    }

    fn no_packet_harms_a_client(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let pool = Pool::new();
        let census = Census::take();
        fuzz((any::<bool>(), packets()), |(hello, packets)| {
            let (server, object) = RawServer::new(reactor);
            let mut calls: Vec<_> = (0..6).map(|n| object.call(vec![n; 3])).collect();
            let session = server.accept(&executor);
            if hello {
                session.say(&Hello::default().frame(), &[]);
                executor.settle();
            }
            for (bytes, descriptors) in &packets {
                session.say(bytes, &pool.borrow(*descriptors));
                executor.settle();
                calls.retain_mut(|call| poll_once(call).is_pending());
            }
            // However it went, whoever still waits is told when the server is gone. (Perhaps by an answer
            // that waited for descriptors to come free.)
            drop((session, server));
            drop(executor.block_on(all(calls)));
        });
        executor.settle();
        census.unchanged();
    }

    fn no_packet_harms_a_plain_mailbox(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let socket = object.share().unwrap();
        let pool = Pool::new();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer("yes");
            }
        });
        assert!(executor.block_on(object.call("there?")).is_ok());
        fuzz(packets(), |packets| {
            for (bytes, descriptors) in &packets {
                push(&executor, &socket, bytes, &pool.borrow(*descriptors));
            }
            assert_eq!(executor.block_on(object.call("still there?")).unwrap().bytes(), b"yes");
        });
    }

    fn no_packet_harms_a_plain_caller(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let returning = object.clone().with_returned_pairs(seqpacket::ReturnTrust::FirstToAnswer);
        let pool = Pool::new();
        fuzz((packets(), 0..3), |(packets, way)| {
            let mut call = match way {
                0 => object.call("please"),
                1 => returning.call("please"),
                _ => object.call_large("please"),
            };
            assert!(poll_once(&mut call).is_pending());
            executor.settle();
            let mut received = testing::receive_packet(&mailbox).unwrap();
            let continuation = received.descriptors.remove(0);
            testing::set_nonblocking(&continuation);
            for (bytes, descriptors) in &packets {
                let _ = testing::send_packet(&continuation, bytes, &pool.borrow(*descriptors));
            }
            drop(continuation);
            match executor.block_on(call) {
                Ok(answer) if way == 2 => assert!(answer.bytes().len() < 6 * 102_080),
                Ok(answer) => assert!(packets.iter().any(|(bytes, _)| bytes == answer.bytes())),
                Err(CallError::Dropped | CallError::Truncated | CallError::DescriptorsLost(_)) => {}
                Err(CallError::Malformed(_) | CallError::TooLarge(_)) if way == 2 => {}
                Err(error) => panic!("{error}"),
            }
        });
    }
}

fn with_room_for_one(number: u32) -> Vec<u8> {
    let room = Size::of_bytes(8).unwrap().with_descriptors(1).unwrap();
    frame(Header::call(number, Size::NONE, room), &[])
}

/// Sends when there is room. While descriptors wait to be closed there may be none for a while.
fn push(executor: &Executor, socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    testing::set_nonblocking(socket);
    until(executor, "the queue takes one more", || testing::send_packet(socket, packet, descriptors).is_ok());
}

// What anybody might send.

const CASES: u32 = 150;

fn fuzz<S: Strategy>(strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Descriptors of several kinds, as strangers have them.
struct Pool {
    kinds: Vec<OwnedFd>,
}

impl Pool {
    fn new() -> Pool {
        let (near, far) = testing::packet_pair();
        let (stream, other) = testing::stream_pair();
        let (reader, writer) = std::io::pipe().unwrap();
        Pool { kinds: vec![null(), near, stream, reader.into(), far, writer.into(), other] }
    }

    fn borrow(&self, count: usize) -> Vec<BorrowedFd<'_>> {
        self.kinds.iter().cycle().take(count).map(AsFd::as_fd).collect()
    }
}

/// Packets with a number of descriptors each.
fn packets() -> impl Strategy<Value = Vec<(Vec<u8>, usize)>> {
    let bytes = prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..100),
        1 => (102_070_usize..102_140).prop_map(|length| vec![0; length]),
        1 => Just(b"c".to_vec()),
        8 => prop::collection::vec(any_frame(), 1..6).prop_map(|frames| frames.concat()),
        4 => (prop::collection::vec(any_frame(), 1..4), any::<(prop::sample::Index, u8)>()).prop_map(
            |(frames, (place, byte))| {
                let mut packet = frames.concat();
                let place = place.index(packet.len());
                packet[place] = byte;
                packet
            }
        ),
    ];
    let descriptors = prop_oneof![6 => Just(0_usize), 4 => 1_usize..4, 1 => 4_usize..40, 1 => 250_usize..254];
    prop::collection::vec((bytes, descriptors), 1..6)
}

/// A frame of any kind, well formed by itself, about one of few numbers.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let size =
        (0_usize..30, prop_oneof![5 => Just(0_usize), 2 => 1_usize..3]).prop_map(|(bytes, descriptors)| {
            Size::of_bytes(bytes).unwrap().with_descriptors(descriptors).unwrap()
        });
    (0_u32..8, size.clone(), size, any::<[u8; 30]>(), 0_u32..6, 0_usize..10).prop_map(
        |(number, message, room, bytes, some, kind)| {
            let payload = &bytes[..message.bytes()];
            let windows = Windows { calls: 254 + some, ..Windows::default() };
            match kind {
                0..=1 => frame(Header::call(number, message, room), payload),
                2..=3 => frame(Header::answer_to(number, message), payload),
                4 => bare(Header::dropped(number)),
                5 => bare(Header::cancel(number)),
                6 => bare(Header::grant(number)),
                7 => RefusedReason::parse(&[1 + some as u8]).unwrap().frame(number).to_vec(),
                8 if some == 0 => bare(Header::goodbye()),
                8 => windows.frame().to_vec(),
                _ => Hello { windows, ..Hello::default() }.frame().to_vec(),
            }
        },
    )
}
