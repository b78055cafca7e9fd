//! Answers whose descriptors find no room at their caller: whoever answered learns of it, once for each, and
//! before the number is used again. What callers are told is in `outcomes.rs`; real processes without room
//! are in `edge.rs`, and callers that block in `blocking_strangers.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::wire::{Header, Hello, Kind, Malformed, Size};
use seqpacket::{
    CallError, CallOptions, Continuation, Incoming, Mailbox, Object, Part, PlainContinuation, object,
    shared_object,
};
use support::*;
use testing::{leave_descriptors, on_each_driver};

/// More than a packet holds.
const LARGE_BYTES: usize = 150_000;

/// More than a socket's queue does.
const LONG_BYTES: usize = 1 << 20;

/// Answers with ten descriptors, and more than a packet if asked to.
async fn serve(mailbox: Rc<Mailbox>) {
    // Made now: later there may be no room.
    let fd = Fd::from(null());
    while let Some(call) = mailbox.next().await {
        match call.bytes() {
            b"large" => drop(call.answer(ten(vec![7; LARGE_BYTES], &fd))),
            _ => drop(call.answer(ten(b"ten".to_vec(), &fd))),
        }
    }
}

fn served(reactor: &Reactor, executor: &Executor) -> (Object, Rc<Mailbox>) {
    let (object, mailbox) = object(reactor).unwrap();
    let mailbox = Rc::new(mailbox);
    executor.spawn(serve(Rc::clone(&mailbox)));
    (attached(executor, object), mailbox)
}

fn large_room() -> CallOptions {
    CallOptions { answer_bytes: Some(LARGE_BYTES), ..CallOptions::default() }
}

/// So many that some are lost even if one or the other comes free meanwhile.
const TEN: usize = 10;

fn ten(bytes: Vec<u8>, fd: &Fd) -> Message {
    (0..TEN).fold(Message::new(bytes), |message, _| message.with_descriptor(fd.clone()))
}

/// What comes of it when no descriptor finds room here.
fn without_room<F: Future>(executor: &Executor, future: F) -> F::Output {
    ring::closer_idle();
    let limit = leave_descriptors(0);
    let output = executor.block_on(future);
    drop(limit);
    output
}

#[track_caller]
fn is_lost<T>(result: Result<T, CallError>) {
    let error = result.err().unwrap();
    assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
}

#[track_caller]
fn hears_of(executor: &Executor, mailbox: &Mailbox, count: u64) {
    until(executor, "the server hears of it", || mailbox.stats().answers_lost >= count);
    assert_eq!(mailbox.stats().answers_lost, count);
}

/// What a server sends that ends a call and brings descriptors, and how many.
fn endings(number: u32) -> Vec<(&'static str, Vec<u8>, usize)> {
    let large = Hello::default().answer_to(number, size(LARGE_BYTES, TEN)).encode().to_vec();
    vec![
        ("an answer", answer(number, b"ten", TEN), TEN),
        ("a large answer", large, TEN),
        ("a way elsewhere", bare(Header::elsewhere(number)), 1),
    ]
}

fn size(bytes: usize, descriptors: usize) -> Size {
    Size::of_bytes(bytes).unwrap().with_descriptors(descriptors).unwrap()
}

/// Kinds and numbers of what a client says until it has said so many frames.
#[track_caller]
fn says(session: &RawClient, executor: &Executor, frames: usize) -> Vec<(Kind, u32)> {
    let mut said = Vec::new();
    while said.len() < frames {
        said.extend(said_by_client(&session.hear_from(executor)).iter().map(|said| (said.0, said.1)));
    }
    said
}

/// A server by hand, and its client with one call under way, whose number is 0.
fn asked(reactor: &Reactor, executor: &Executor) -> (RawClient, Object, seqpacket::Call) {
    let (server, object) = RawServer::new(reactor);
    let call = object.call_with("ten", large_room());
    let session = server.attach(executor, Hello::default());
    assert_eq!(says(&session, executor, 1), [(Kind::Call, 0)]);
    (session, object, call)
}

/// A client by hand, and the server's side of it.
struct ByHand {
    client: RawClient,
    mailbox: Mailbox,
    _object: Object,
}

impl ByHand {
    fn new(reactor: &Reactor, executor: &Executor) -> ByHand {
        let (object, mailbox) = object(reactor).unwrap();
        let client = RawClient::attach(executor, object.share().unwrap());
        ByHand { client, mailbox, _object: object }
    }

    /// Calls under this number, with room for a long answer and ten descriptors.
    fn calls(&self, executor: &Executor, number: u32) -> Incoming {
        assert!(self.client.say(&bare(Header::call(number, Size::NONE, size(LONG_BYTES, TEN))), &[]));
        executor.block_on(self.mailbox.next()).unwrap()
    }

    /// Calls, and hears the answer.
    fn is_answered(&self, executor: &Executor, number: u32, message: impl Into<Message>) {
        self.calls(executor, number).answer(message).unwrap();
        self.client.hear_from(executor);
    }

    fn says_lost(&self, number: u32) {
        assert!(self.client.say(&bare(Header::lost(number)), &[]));
    }

    /// The session goes on, and what it said so far is heard: also what is refused is counted before this.
    #[track_caller]
    fn goes_on(&self, executor: &Executor, lost: u64) {
        self.is_answered(executor, 1_000, "still here");
        assert_eq!(self.mailbox.stats().answers_lost, lost);
        assert_eq!(self.mailbox.stats().malformed.total(), 0);
    }

    /// It has said what is not so.
    #[track_caller]
    fn is_sent_away(&self, executor: &Executor, number: u32) {
        self.client.hear_the_end(executor);
        until(executor, "the session is over", || self.mailbox.sessions() == 0);
        let malformed = self.mailbox.stats().malformed;
        assert_eq!(malformed.of(&Malformed::Number { kind: Kind::Lost, number }), 1, "{malformed:?}");
        assert_eq!(malformed.total(), 1);
    }
}

fn ten_new() -> Message {
    ten(b"ten".to_vec(), &Fd::from(null()))
}

on_each_driver! {
    fn both_sides_count_an_answer_that_was_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = served(reactor, &executor);
        assert_eq!(executor.block_on(object.call("ten")).unwrap().descriptors(), TEN);
        is_lost(without_room(&executor, object.call("ten")));
        hears_of(&executor, &mailbox, 1);
        let (client, server) = (object.stats(), mailbox.stats());
        assert_eq!(client.answers_lost, 1);
        assert_eq!((client.calls.answered, client.calls.descriptors_lost), (1, 1));
        // For the server that call had ended before.
        assert_eq!((server.calls.answered, server.calls.descriptors_lost), (2, 0));
        assert_eq!((client.calls.under_way(), server.calls.under_way()), (0, 0));
        assert_eq!(client.sent, server.received);
        assert_eq!(mailbox.each_session()[0].stats.answers_lost, 1);
        assert_eq!(executor.block_on(object.call("ten")).unwrap().descriptors(), TEN);
        assert_eq!(mailbox.stats().answers_lost, 1);
    }

    fn what_was_lost_is_still_known_when_its_session_has_ended(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = served(reactor, &executor);
        is_lost(without_room(&executor, object.call("ten")));
        drop(object);
        until(&executor, "the session has ended", || mailbox.sessions() == 0);
        assert_eq!(mailbox.stats().answers_lost, 1);
    }

    fn one_of_several_workers_learns_of_its_answers(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = shared_object(reactor).unwrap();
        let fd = Fd::from(null());
        let call = object.call("ten");
        executor.block_on(mailbox.next()).unwrap().answer(ten(b"ten".to_vec(), &fd)).unwrap();
        is_lost(without_room(&executor, call));
        until(&executor, "the worker hears of it", || mailbox.stats().answers_lost == 1);
    }

    /// Its parts are not waited for, and the number is free again all the same.
    fn the_descriptors_of_a_large_answer_are_told_at_its_beginning(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = served(reactor, &executor);
        is_lost(without_room(&executor, object.call_with("large", large_room())));
        hears_of(&executor, &mailbox, 1);
        let answer = executor.block_on(object.call_with("large", large_room())).unwrap();
        assert_eq!((answer.bytes().len(), answer.descriptors()), (LARGE_BYTES, TEN));
        until(&executor, "everything has ended", || mailbox.stats().calls.under_way() == 0);
        assert_eq!((object.stats().answers_lost, mailbox.stats().answers_lost), (1, 1));
    }

    /// Nobody is there any more who could be told; the server is.
    fn an_answer_that_crosses_its_withdrawal_is_told_too(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object, call) = asked(reactor, &executor);
        let fd = null();
        assert!(session.say(&answer(0, b"ten", TEN), &[fd.as_fd(); TEN]));
        drop(call);
        let limit = leave_descriptors(0);
        until(&executor, "it is lost", || object.stats().answers_lost == 1);
        drop(limit);
        assert_eq!(says(&session, &executor, 2), [(Kind::Cancel, 0), (Kind::Lost, 0)]);
    }

    fn a_server_is_told_before_the_number_is_used_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (what, ending, descriptors) in endings(0) {
            let (session, object, call) = asked(reactor, &executor);
            let (one, _other) = testing::packet_pair();
            assert!(session.say(&ending, &vec![one.as_fd(); descriptors]), "{what}");
            is_lost(without_room(&executor, call));
            let again = object.call("again");
            executor.settle();
            match what {
                // Its parts are still to come.
                "a large answer" => {
                    let said = [(Kind::Lost, 0), (Kind::Cancel, 0), (Kind::Call, 1)];
                    assert_eq!(says(&session, &executor, 3), said);
                }
                _ => assert_eq!(says(&session, &executor, 2), [(Kind::Lost, 0), (Kind::Call, 0)], "{what}"),
            }
            drop(again);
        }
    }

    fn an_address_that_was_granted_and_lost_is_told(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let mut grant = Box::pin(object.grant());
        assert!(poll_once(&mut grant).is_pending());
        let session = server.attach(&executor, Hello::default());
        assert_eq!(says(&session, &executor, 1), [(Kind::Grant, 0)]);
        let fd = null();
        assert!(session.say(&answer(0, b"", 1), &[fd.as_fd()]));
        is_lost(without_room(&executor, grant));
        assert_eq!(says(&session, &executor, 1), [(Kind::Lost, 0)]);
    }

    fn a_server_that_leaves_is_told_of_the_last_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object, call) = asked(reactor, &executor);
        assert!(session.say(&bare(Header::goodbye()), &[]));
        let fd = null();
        assert!(session.say(&answer(0, b"ten", TEN), &[fd.as_fd(); TEN]));
        is_lost(without_room(&executor, call));
        assert_eq!(says(&session, &executor, 1), [(Kind::Lost, 0)]);
        session.hear_the_end(&executor);
        drop(object);
    }

    /// Whoever has answered is told nothing, and whoever let it answer is.
    fn what_somebody_else_answers_is_told_to_whoever_handed_the_call_on(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let fd = Fd::from(null());
        let call = object.call("ten");
        let taken = executor.block_on(mailbox.next()).unwrap();
        let far = Continuation::into_fd(taken.into_continuation()).unwrap();
        until(&executor, "it has gone elsewhere", || object.stats().calls.handed_on == 1);
        PlainContinuation::from_fd(reactor, far).unwrap().answer(ten(b"ten".to_vec(), &fd)).unwrap();
        is_lost(without_room(&executor, call));
        hears_of(&executor, &mailbox, 1);
        assert_eq!((object.stats().answers_lost, mailbox.stats().calls.handed_on), (1, 1));
    }

    fn a_server_counts_what_a_client_has_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        for number in [7, 7, u32::MAX, 0] {
            peer.is_answered(&executor, number, ten_new());
            peer.says_lost(number);
        }
        peer.goes_on(&executor, 4);
    }

    fn a_large_answer_can_be_lost_while_it_is_on_its_way(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.calls(&executor, 7).answer(ten(vec![7; LONG_BYTES], &Fd::from(null()))).unwrap();
        assert_eq!(peer.client.hear_from(&executor).descriptors.len(), TEN);
        peer.says_lost(7);
        until(&executor, "it is counted", || peer.mailbox.stats().answers_lost == 1);
        assert_eq!(peer.mailbox.stats().calls.under_way(), 1);
        until(&executor, "the answer is complete", || {
            drop(peer.client.hear());
            peer.mailbox.stats().calls.under_way() == 0
        });
        peer.goes_on(&executor, 1);
    }

    fn a_way_elsewhere_and_a_grant_can_be_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        let far = peer.calls(&executor, 7).into_continuation().into_fd().unwrap();
        peer.client.hear_from(&executor);
        peer.says_lost(7);
        assert!(peer.client.say(&bare(Header::grant(7)), &[]));
        peer.client.hear_from(&executor);
        peer.says_lost(7);
        peer.goes_on(&executor, 2);
        drop(far);
    }

    fn a_client_that_takes_its_leave_can_still_say_what_it_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.is_answered(&executor, 7, ten_new());
        assert!(peer.client.say(&bare(Header::goodbye()), &[]));
        peer.says_lost(7);
        until(&executor, "it is counted", || peer.mailbox.stats().answers_lost == 1);
        assert_eq!(peer.mailbox.stats().malformed.total(), 0);
    }

    fn nobody_loses_what_was_not_sent(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.says_lost(7);
        peer.is_sent_away(&executor, 7);
    }

    fn nobody_loses_descriptors_of_an_answer_without(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.is_answered(&executor, 7, "none");
        peer.says_lost(7);
        peer.is_sent_away(&executor, 7);
    }

    fn nobody_loses_an_answer_twice(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.is_answered(&executor, 7, ten_new());
        peer.says_lost(7);
        peer.goes_on(&executor, 1);
        peer.says_lost(7);
        peer.is_sent_away(&executor, 7);
        assert_eq!(peer.mailbox.stats().answers_lost, 1);
    }

    /// However many frames a packet has: what is beyond what was sent ends the session.
    fn a_flood_of_losses_ends_with_the_last_that_can_be(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        for number in 0..3 {
            peer.is_answered(&executor, number, ten_new());
        }
        let flood: Vec<Vec<u8>> = (0..4_096).map(|number| bare(Header::lost(number))).collect();
        peer.client.say_all(&flood);
        peer.is_sent_away(&executor, 3);
        assert_eq!(peer.mailbox.stats().answers_lost, 3);
    }

    fn nobody_loses_the_answer_to_a_call_that_has_none_yet(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.is_answered(&executor, 8, ten_new());
        let taken = peer.calls(&executor, 7);
        peer.says_lost(7);
        peer.is_sent_away(&executor, 7);
        drop(taken);
    }

    /// How many answers had descriptors is remembered, and not which.
    fn an_answer_of_another_number_is_taken_for_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let peer = ByHand::new(reactor, &executor);
        peer.is_answered(&executor, 7, ten_new());
        peer.says_lost(8);
        peer.goes_on(&executor, 1);
    }

    fn a_server_that_says_so_breaks_the_protocol(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (session, object, call) = asked(reactor, &executor);
        assert!(session.say(&bare(Header::lost(0)), &[]));
        assert!(matches!(executor.block_on(call), Err(CallError::Malformed(_))));
        assert_eq!(object.stats().malformed.of(&Malformed::WrongSide(Kind::Lost)), 1);
    }
}
