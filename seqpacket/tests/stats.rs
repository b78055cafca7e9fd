//! What is counted: the same on both sides, each call once, each violation by its kind.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;

use ring::{Executor, Message, Reactor};
use seqpacket::wire::{Header, Hello, Kind, Malformed, RefusedReason};
use seqpacket::{
    CallError, CallOptions, Mailbox, MailboxOptions, Object, ObjectOptions, object, object_with,
};
use support::*;
use testing::{helper, on_each_driver, settle, start_helper};

helper! {
    /// Calls three times and ends.
    fn caller(descriptors: Vec<OwnedFd>) {
        let [object] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, object).unwrap();
        settle(&reactor, async {
            for _ in 0..3 {
                object.call("hello").await.unwrap();
            }
        });
        assert_eq!(object.stats().calls.answered, 3);
    }
}

/// The next call, answered with what a closure does to it.
async fn next(mailbox: &Mailbox, answer: impl FnOnce(seqpacket::Incoming)) {
    answer(mailbox.next().await.unwrap());
}

on_each_driver! {
    fn both_sides_count_the_same(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call(Message::from("hello").with_descriptor(null()));
        executor.block_on(next(&mailbox, |call| call.answer("hello to you").unwrap()));
        executor.block_on(call).unwrap();
        let (client, server) = (object.stats(), mailbox.stats());
        assert_eq!(client.sent, server.received);
        assert_eq!(client.received, server.sent);
        assert_eq!(client.calls, server.calls);
        assert_eq!((client.sessions, server.sessions), (1, 1));
        // A call of five bytes there; HELLO and an answer of twelve back.
        assert_eq!((client.sent.frames, client.sent.bytes, client.sent.descriptors), (1, 21, 1));
        assert_eq!((server.sent.frames, server.sent.bytes, server.sent.descriptors), (2, 52 + 28, 0));
    }

    /// Part by part, there and back.
    fn both_sides_count_the_same_of_large_messages(reactor: &Reactor) {
        const BYTES: usize = 400_000;
        let room = ObjectOptions { answer_bytes: BYTES, ..ObjectOptions::default() };
        let (object, mailbox) = object_with(reactor, room, MailboxOptions::default()).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call(Message::new(vec![7; BYTES]).with_descriptor(null()));
        executor.block_on(next(&mailbox, |call| call.answer(vec![8; BYTES]).unwrap()));
        assert_eq!(executor.block_on(call).unwrap().bytes().len(), BYTES);
        let (client, server) = (object.stats(), mailbox.stats());
        assert_eq!(client.sent, server.received);
        assert_eq!(client.received, server.sent);
        assert_eq!(client.calls, server.calls);
        // What opens it, and four parts.
        assert_eq!((client.sent.frames, client.sent.descriptors), (5, 1));
    }

    fn each_call_is_counted_once_by_how_it_ended(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let object = attached(&executor, object);
        let small = CallOptions { answer_bytes: Some(1), ..CallOptions::default() };
        let calls = [
            object.call("answered"),
            object.call("dropped"),
            object.call("refused"),
            object.call_with("too large", small),
            object.call("handed on"),
        ];
        executor.block_on(async {
            next(&mailbox, |call| call.answer("done").unwrap()).await;
            next(&mailbox, drop).await;
            next(&mailbox, seqpacket::Incoming::refuse).await;
            next(&mailbox, |call| call.answer("two").unwrap_err().to_string().clear()).await;
            next(&mailbox, |call| drop(call.into_continuation().into_fd().unwrap())).await;
            all(calls.into()).await;
            object.grant().await.unwrap();
        });
        let withdrawn = object.call("withdrawn");
        let taken = executor.block_on(mailbox.next()).unwrap();
        drop(withdrawn);
        executor.block_on(taken.continuation().cancelled());
        drop(taken);
        let _under_way = object.call("under way");
        let _taken = executor.block_on(mailbox.next()).unwrap();
        for calls in [object.stats().calls, mailbox.stats().calls] {
            assert_eq!((calls.begun, calls.under_way()), (8, 1));
            // One of them the grant.
            assert_eq!((calls.answered, calls.dropped, calls.refused), (2, 1, 1));
            assert_eq!((calls.too_large, calls.handed_on, calls.cancelled), (1, 1, 1));
        }
    }

    fn what_ends_with_its_session_is_cut_off(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let (taken, untaken) = (object.call("taken"), object.call("untaken"));
        let kept = executor.block_on(mailbox.next()).unwrap();
        let client = object.clone();
        let session = executor.block_on(async { mailbox.each_session()[0] });
        assert_eq!(session.stats.calls.under_way(), 2);
        assert_eq!(session.credentials.pid, std::process::id() as i32);
        assert_eq!(session.free.calls, session.windows.calls - 2);
        assert_eq!(object.windows().unwrap(), (session.windows, session.free));
        drop((taken, untaken, object));
        drop(client);
        until(&executor, "the session has ended", || mailbox.sessions() == 0);
        drop(kept);
        let calls = mailbox.stats().calls;
        // Withdrawn in time, or cut off with the session: ended in any case.
        assert_eq!((calls.begun, calls.under_way()), (2, 0));
        assert_eq!(calls.cancelled + calls.cut_off, 2);
        assert!(mailbox.each_session().is_empty());
    }

    fn a_dead_server_cuts_calls_off(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let session = server.attach(&executor, Hello::default());
        session.hear_from(&executor);
        drop(session);
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        let calls = object.stats().calls;
        assert_eq!((calls.begun, calls.cut_off, calls.under_way()), (1, 1, 0));
        assert_eq!(object.windows(), None);
    }

    fn refusals_are_counted_by_reason(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let mut calls: Vec<_> = (0..8).map(|_| object.call("hello")).collect();
        let session = server.attach(&executor, Hello::default());
        for (number, reason) in (1..=8).enumerate() {
            let reason = RefusedReason::parse(&[reason]).unwrap();
            assert!(session.say(&reason.frame(number as u32), &[]));
        }
        for call in &mut calls {
            executor.block_on(call).unwrap_err();
        }
        let calls = object.stats().calls;
        assert_eq!((calls.refused, calls.too_large, calls.descriptors_lost), (1, 1, 1));
        assert_eq!((calls.out_of_descriptors, calls.cancelled, calls.leaving), (1, 1, 1));
        assert_eq!((calls.expired, calls.out_of_memory, calls.under_way()), (1, 1, 0));
    }

    fn sessions_that_have_ended_still_count(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let helpers: Vec<_> =
            (0..2).map(|_| start_helper!(caller, vec![object.share().unwrap()])).collect();
        executor.block_on(async {
            for _ in 0..6 {
                next(&mailbox, |call| call.answer("hello").unwrap()).await;
            }
        });
        until(&executor, "both have ended", || mailbox.sessions() == 0);
        helpers.into_iter().for_each(testing::Helper::succeeded);
        let stats = mailbox.stats();
        assert_eq!((stats.sessions, stats.calls.answered), (2, 6));
        assert_eq!(stats.received.bytes, 6 * 21);
    }

    fn an_object_counts_over_all_its_sessions(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        for round in 1..=3 {
            let call = object.call("hello");
            let session = server.attach(&executor, Hello::default());
            session.hear_from(&executor);
            drop(session);
            executor.block_on(call).unwrap_err();
            assert_eq!((object.stats().sessions, object.clone().stats().calls.cut_off), (round, round));
        }
    }

    fn violations_of_clients_are_counted_by_kind(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let address = object.share().unwrap();
        let goodbye = bare(Header::goodbye());
        let packets = [
            (bare(Header::dropped(7)), Malformed::WrongSide(Kind::Dropped)),
            (vec![1; 7], Malformed::HeaderCut { left: 7 }),
            ([goodbye.clone(), goodbye.clone()].concat(), Malformed::AfterGoodbye(Kind::Goodbye)),
            ([goodbye, call(7, b"", 0)].concat(), Malformed::AfterGoodbye(Kind::Call)),
            ([call(7, b"", 0), call(7, b"", 0)].concat(), Malformed::Number { kind: Kind::Call, number: 7 }),
            (vec![0; 102_081], Malformed::PacketTooLong { bytes: 0 }),
        ];
        for (packet, kind) in &packets {
            let before = mailbox.stats().malformed;
            let client = RawClient::attach(&executor, &address);
            assert!(client.say(packet, &[]));
            client.hear_the_end(&executor);
            until(&executor, "it is counted", || mailbox.sessions() == 0);
            let malformed = mailbox.stats().malformed;
            assert_eq!(malformed.of(kind), before.of(kind) + 1, "{kind}: {malformed:?}");
            assert_eq!(malformed.total(), before.total() + 1);
        }
        assert_eq!(mailbox.violations().malformed, packets.len() as u64);
    }

    fn violations_of_servers_are_counted_by_kind(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (packet, kind) in [
            (answer(9, b"", 0), Malformed::Number { kind: Kind::Answer, number: 9 }),
            (call(0, b"", 0), Malformed::WrongSide(Kind::Call)),
            (Hello::default().frame().to_vec(), Malformed::WrongSide(Kind::Hello)),
        ] {
            let (server, object) = RawServer::new(reactor);
            let call = object.call("hello");
            let session = server.attach(&executor, Hello::default());
            session.hear_from(&executor);
            assert!(session.say(&packet, &[]));
            assert!(matches!(executor.block_on(call), Err(CallError::Malformed(_))));
            let malformed = object.stats().malformed;
            assert_eq!((malformed.of(&kind), malformed.total()), (1, 1), "{malformed:?}");
        }
        let (server, object) = RawServer::new(reactor);
        let call = object.call("hello");
        let session = server.accept(&executor);
        assert!(session.say(&Header::goodbye().encode(), &[]));
        assert!(executor.block_on(call).is_err());
        assert_eq!(object.stats().malformed.of(&Malformed::WrongSide(Kind::Goodbye)), 1);
    }

    fn a_session_tells_how_full_its_windows_are(reactor: &Reactor) {
        let windows = MailboxOptions { calls: 3, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), windows).unwrap();
        let executor = Executor::new(reactor);
        let calls: Vec<_> = (0..5).map(|_| object.call("hello")).collect();
        let taken = executor.block_on(mailbox.next()).unwrap();
        let (windows, free) = object.windows().unwrap();
        assert_eq!((windows.calls, free.calls), (3, 0));
        assert_eq!(mailbox.each_session()[0].free.calls, 0);
        drop((taken, calls));
        until(&executor, "all is free again", || object.windows().unwrap().1.calls == 3);
        // To the server it is not only free when the next call needs it.
        assert_eq!(mailbox.each_session()[0].free, mailbox.each_session()[0].windows);
    }
}
