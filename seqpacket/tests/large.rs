//! Messages that do not fit a packet: every size there and back, with their descriptors; what overtakes them;
//! and what becomes of one that is withdrawn, refused, too much, or left half way. It speaks frames where the
//! other side must do what the library does not.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::{Executor, Fd, Message, PIECES_SENT_AT_ONCE_MAX, Reactor, Wait};
use seqpacket::wire::{
    EXTENSION_BYTES, HEADER_BYTES, Header, Hello, Kind, PART_BYTES_MAX, PAYLOAD_BYTES_MAX, RefusedReason,
    Size, Windows,
};
use seqpacket::{
    AnswerError, Call, CallError, CallOptions, DRAINED_LOOKS_MAX, LARGE_AT_ONCE_BYTES_MAX, Mailbox,
    MailboxOptions, Object, ObjectOptions, PARTS_AHEAD_MAX, PARTS_QUEUED_MAX, Part, object, object_with,
};
use support::*;
use testing::{Packet, helper, leave_descriptors, on_each_driver, only, settle, start_helper};

const MIB: usize = 1 << 20;

/// What the kernel's queue takes of full packets at the usual SO_SNDBUF.
const PACKETS_IN_A_QUEUE: usize = 3;

/// Time for a large message to stand still in a test about that.
const SOON: Duration = Duration::from_millis(20);

/// Bytes that are not the same anywhere.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Room for answers of so many bytes.
fn room(answer_bytes: usize) -> CallOptions {
    CallOptions { answer_bytes: Some(answer_bytes), ..CallOptions::default() }
}

/// Messages of a mebibyte at most, and so many bytes of them in a window.
fn mebibytes(large_bytes: usize) -> MailboxOptions {
    let large_bytes = large_bytes as u32;
    MailboxOptions { message_bytes: MIB as u32, large_bytes, ..MailboxOptions::default() }
}

/// As the library cuts it.
fn parts_of(number: u32, bytes: &[u8]) -> Vec<Vec<u8>> {
    let part = |part: &[u8]| frame(Header::part(number, part.len() as u32), part);
    bytes.chunks(PART_BYTES_MAX).map(part).collect()
}

/// A large CALL that declares descriptors, its extension included.
fn large_call(number: u32, total: usize, descriptors: usize, answer_bytes: usize) -> Vec<u8> {
    let message = Size::of_bytes(total).unwrap().with_descriptors(descriptors).unwrap();
    let opening = Hello::default().call(number, message, Size::of_bytes(answer_bytes).unwrap(), None);
    assert!(opening.total().is_some());
    opening.encode().to_vec()
}

fn large_answer(number: u32, total: usize) -> Vec<u8> {
    let opening = Hello::default().answer_to(number, Size::of_bytes(total).unwrap());
    assert!(opening.total().is_some());
    opening.encode().to_vec()
}

fn refused(number: u32, reason: RefusedReason) -> Vec<u8> {
    reason.frame(number).to_vec()
}

/// The kinds and numbers of a packet.
fn kinds(said: Vec<(Kind, u32, Vec<u8>)>) -> Vec<(Kind, u32)> {
    said.into_iter().map(|(kind, number, _)| (kind, number)).collect()
}

/// A session whose first call, unless somebody answers it, is under way beside everything else: its server,
/// who calls, that call, and the server's end.
fn beside_a_call(reactor: &Reactor, executor: &Executor) -> (RawServer, Object, Call, RawClient) {
    let (server, object) = RawServer::new(reactor);
    let first = object.call("first");
    executor.settle();
    let session = server.attach(executor, Hello::default());
    (server, object, first, session)
}

/// The next packet from a client of the library.
fn kinds_of_next(session: &RawClient, executor: &Executor) -> Vec<(Kind, u32)> {
    kinds(said_by_client(&session.hear_from(executor)))
}

/// Reads packets of the client until this kind, and says what came before it.
fn kinds_until(session: &RawClient, executor: &Executor, kind: Kind) -> Vec<(Kind, u32)> {
    let mut heard = Vec::new();
    while !heard.iter().any(|(heard, _)| *heard == kind) {
        heard.extend(kinds_of_next(session, executor));
    }
    heard
}

fn count_of(kind: Kind, heard: &[(Kind, u32)]) -> usize {
    heard.iter().filter(|(heard, _)| *heard == kind).count()
}

helper! {
    /// Answers each call with what it brought.
    fn mirror(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, echo(mailbox));
    }

    /// Calls with a mebibyte over and over.
    fn large_caller(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            while object.call_with(bytes(MIB), room(MIB)).await.is_ok() {}
        });
    }
}

on_each_driver! {
    fn every_size_around_the_limits_goes_there_and_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(0)).unwrap();
        executor.spawn(echo(mailbox));
        let around = |size: usize| [size - 1, size, size + 1];
        let packets = [1, 2, 5].map(|count| count * PART_BYTES_MAX);
        let packets = packets.into_iter().chain([PAYLOAD_BYTES_MAX, 102_080]);
        let sizes = packets.flat_map(around).chain([MIB - 1, MIB]);
        for size in sizes {
            let sent = bytes(size);
            let answer = executor.block_on(object.call_with(sent.clone(), room(MIB))).unwrap();
            assert!(answer.bytes() == sent, "{size} bytes");
        }
        let error = executor.block_on(object.call(bytes(MIB + 1))).unwrap_err();
        assert!(matches!(error, CallError::TooLarge(Part::Call)));
        assert_eq!((error.was_sent(), error.may_have_been_seen()), (Some(false), false));
    }

    /// Sent and answered with the same bytes, which nobody has copied for that.
    fn shared_bytes_are_sent_from_where_they_lie_and_given_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let shared = Arc::new(bytes(MIB));
        let answers = Arc::clone(&shared);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                assert!(call.bytes() == answers.as_slice());
                let _ = call.answer(Arc::clone(&answers));
            }
        });
        let calls = [(); 3].map(|()| object.call_with(Arc::clone(&shared), room(MIB)));
        for call in calls {
            assert!(executor.block_on(call).unwrap().bytes() == shared.as_slice());
        }
        drop(object);
        until(&executor, "the server has ended", || Arc::strong_count(&shared) == 1);
    }

    fn the_largest_message_is_64_mib_unless_the_server_says_otherwise(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo_lengths(mailbox));
        let largest = 64 << 20;
        assert_eq!(executor.block_on(object.call(vec![7; largest])).unwrap().bytes(), number(largest));
        let error = executor.block_on(object.call(vec![7; largest + 1])).unwrap_err();
        assert!(matches!(error, CallError::TooLarge(Part::Call)));
    }

    fn a_deadline_goes_with_calls_of_every_size(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let said = format!("{} {}", call.bytes().len(), call.deadline().is_some());
                let _ = call.answer(said);
            }
        });
        let patient = CallOptions { within: Some(Duration::from_secs(60)), ..CallOptions::default() };
        for size in [1, 102_015, 102_016, 102_017, 102_047, 102_048, 102_049, 102_064, 102_065, MIB] {
            let answer = executor.block_on(object.call_with(bytes(size), patient)).unwrap();
            assert_eq!(answer.bytes(), format!("{size} true").into_bytes());
        }
    }

    fn a_large_call_whose_time_is_over_before_it_is_whole_stops(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        // Time enough for it to be begun, on a busy machine too.
        let hasty = CallOptions { within: Some(10 * SOON), ..CallOptions::default() };
        let attaching = object.call("first");
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor).len(), 1);
        let call = object.call_with(bytes(MIB), hasty);
        assert!(matches!(executor.block_on(call), Err(CallError::Deadline)));
        let heard = kinds_until(&session, &executor, Kind::Cancel);
        assert!(count_of(Kind::Part, &heard) <= PACKETS_IN_A_QUEUE + PARTS_QUEUED_MAX);
        drop(attaching);
    }

    fn another_process_answers_large_calls_with_their_descriptors(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let helper = start_helper!(mirror, vec![bound]);
        let object = Object::from_fd(reactor, address).unwrap();
        for size in [102_065, MIB, 5 * MIB + 1] {
            let message = Message::new(bytes(size)).with_descriptor(null()).with_descriptor(null());
            let mut answer = executor.block_on(object.call_with(message, room(6 * MIB))).unwrap();
            assert!(answer.bytes() == bytes(size), "{size} bytes");
            assert_eq!(answer.take_descriptors().len(), 2);
        }
        drop(object);
        helper.succeeded();
    }

    fn a_large_answer_needs_room_that_was_asked_for(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let tells = Rc::clone(&told);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                tells.borrow_mut().push(call.answer(bytes(150_000)));
            }
        });
        for (options, fits) in [
            (CallOptions::default(), false),
            (room(149_999), false),
            (room(150_000), true),
            // More than the server's largest message is not asked for.
            (room(1 << 30), true),
        ] {
            let result = executor.block_on(object.call_with("how much?", options));
            match result {
                Ok(answer) => assert!(fits && answer.bytes() == bytes(150_000)),
                Err(error) => assert!(!fits && matches!(error, CallError::TooLarge(Part::Answer))),
            }
            let expected = if fits { Ok(()) } else { Err(AnswerError::TooLarge) };
            assert_eq!(told.borrow_mut().pop().unwrap(), expected);
        }
    }

    fn small_calls_overtake_a_large_one(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let object = attached(&executor, object);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sees = Rc::clone(&seen);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                sees.borrow_mut().push(call.bytes().len());
                let _ = call.answer("seen");
            }
        });
        let large = object.call(bytes(8 * MIB));
        let small: Vec<_> = (0..10).map(|_| object.call("small")).collect();
        for result in executor.block_on(all(small)) {
            assert_eq!(result.unwrap(), b"seen");
        }
        assert_eq!(*seen.borrow(), [5; 10]);
        assert_eq!(executor.block_on(large).unwrap().bytes(), b"seen");
        assert_eq!(seen.borrow()[10], 8 * MIB);
    }

    /// Of a message that was alone before, as many as the queue takes and one more; and else no more than may
    /// go ahead, since all of them were given while calls were under way.
    fn a_small_frame_waits_for_a_few_parts(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (beside, count, most) in [
            (false, 1, PACKETS_IN_A_QUEUE + PARTS_QUEUED_MAX),
            (true, 1, PARTS_AHEAD_MAX),
            (true, 3, PARTS_AHEAD_MAX),
        ] {
            let (_server, object, first, session) = beside_a_call(reactor, &executor);
            let (_, number, _) = said_by_client(&session.hear_from(&executor))[0];
            if !beside {
                assert!(session.say(&answer(number, b"done", 0), &[]));
                executor.settle();
            }
            // Nobody reads: the queue fills, and the session's own does not grow.
            let large: Vec<_> = (0..count).map(|_| object.call(bytes(4 * MIB))).collect();
            executor.settle();
            let mut small = object.call("small");
            executor.settle();
            let (mut bytes, mut parts, mut overtaken) = (0, 0, None);
            while bytes < count * 4 * MIB {
                for (kind, number, payload) in said_by_client(&session.hear_from(&executor)) {
                    match kind {
                        Kind::Part => (bytes, parts) = (bytes + payload.len(), parts + 1),
                        _ if payload == b"small" => {
                            overtaken = Some(parts);
                            assert!(session.say(&answer(number, b"soon", 0), &[]));
                        }
                        _ => {}
                    }
                }
            }
            let overtaken = overtaken.unwrap();
            assert!((1..=most).contains(&overtaken), "{overtaken} parts of {count} came first, {beside}");
            assert_eq!(executor.block_on(&mut small).unwrap().bytes(), b"soon");
            drop((first, large));
        }
    }

    /// Whoever reads is slower than they are sent, and of three quarters that are free is never told.
    fn a_large_call_goes_on_while_others_keep_the_queue_filled(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_server, object, first, session) = beside_a_call(reactor, &executor);
        let large = object.call(bytes(MIB));
        let (mut parts, mut looks) = (0, 0);
        let mut others = Vec::new();
        while parts < MIB.div_ceil(PART_BYTES_MAX) {
            // There is no room for it beside two parts.
            if parts > 0 {
                others.push(object.call(vec![7; 60_000]));
            }
            executor.settle();
            for (kind, number, _) in said_by_client(&session.hear_from(&executor)) {
                match kind {
                    Kind::Part => (parts, looks) = (parts + 1, 0),
                    _ if others.is_empty() => {}
                    _ => assert!(session.say(&answer(number, b"done", 0), &[])),
                }
            }
            looks += 1;
            assert!(looks <= DRAINED_LOOKS_MAX + 2, "{parts} parts, and nothing more");
        }
        drop((first, large, others));
    }

    /// What waits for the queue to be emptied is let go of with the call.
    fn a_large_call_beside_another_is_withdrawn_while_its_parts_wait(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_server, object, first, session) = beside_a_call(reactor, &executor);
        let large = object.call(bytes(4 * MIB));
        executor.settle();
        drop(large);
        let heard = kinds_until(&session, &executor, Kind::Cancel);
        assert!((1..=PARTS_AHEAD_MAX).contains(&count_of(Kind::Part, &heard)));
        // And nobody waits for it in vain afterwards.
        let next = object.call(bytes(MIB));
        let mut parts = 0;
        while parts < MIB.div_ceil(PART_BYTES_MAX) {
            parts += count_of(Kind::Part, &kinds_of_next(&session, &executor));
        }
        drop((first, next));
    }

    /// Alone on its session, and up to the limit: with one byte more, or a small call beside it, a part goes
    /// in each turn.
    fn a_message_that_is_not_too_large_is_given_to_the_kernel_at_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (beside, length, at_once) in [
            (false, LARGE_AT_ONCE_BYTES_MAX, true),
            (false, LARGE_AT_ONCE_BYTES_MAX + 1, false),
            (true, LARGE_AT_ONCE_BYTES_MAX, false),
        ] {
            let (_server, object, first, session) = beside_a_call(reactor, &executor);
            let said = said_by_client(&session.hear_from(&executor));
            if !beside {
                assert!(session.say(&answer(said[0].1, b"done", 0), &[]));
                executor.settle();
            }
            let large = object.call(bytes(length));
            let mut most = 0;
            // Counted by what each turn has sent: the opening goes in the first.
            for _ in 0..PIECES_SENT_AT_ONCE_MAX {
                let before = reactor.stats().messages_sent;
                reactor.turn(Wait::Not).unwrap();
                most = most.max(reactor.stats().messages_sent - before);
            }
            let expected = if at_once { PIECES_SENT_AT_ONCE_MAX } else { 1 };
            assert!(most as usize >= expected && (at_once || most == 1), "{most} of {length}, {beside}");
            drop((first, large));
        }
    }

    fn large_messages_take_turns(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let calls: Vec<_> = (0..3).map(|_| object.call(bytes(4 * PART_BYTES_MAX))).collect();
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        let mut order = Vec::new();
        while order.len() < 12 {
            let heard = kinds_of_next(&session, &executor);
            order.extend(heard.into_iter().filter(|(kind, _)| *kind == Kind::Part).map(|(_, number)| number));
        }
        assert_eq!(order, [0, 1, 2].repeat(4));
        drop(calls);
    }

    fn a_large_call_that_waits_for_its_window_lets_small_ones_pass(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(2 * MIB)).unwrap();
        let object = attached(&executor, object);
        let large: Vec<_> = (0..4).map(|count| object.call(bytes(MIB - count))).collect();
        let small = object.call("small");
        let (mut calls, mut seen) = (Vec::new(), Vec::new());
        executor.block_on(async {
            while seen.len() < 3 {
                let call = mailbox.next().await.unwrap();
                seen.push(call.bytes().len());
                calls.push(call);
            }
        });
        seen.sort_unstable();
        assert_eq!(seen, [5, MIB - 1, MIB], "the others wait for the window");
        executor.spawn(echo_lengths(mailbox));
        calls.into_iter().for_each(|call| call.answer("done").unwrap());
        assert_eq!(executor.block_on(small).unwrap().bytes(), b"done");
        let ends: Vec<_> = executor.block_on(all(large)).into_iter().map(Result::unwrap).collect();
        assert_eq!(ends, [b"done".to_vec(), b"done".to_vec(), number(MIB - 2), number(MIB - 3)]);
    }

    fn a_large_call_that_would_wait_behind_another_is_not_made_where_it_may_not_wait(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(2 * MIB)).unwrap();
        let object = attached(&executor, object);
        let first = object.call(bytes(MIB));
        assert!(object.try_call(bytes(MIB / 4)).is_ok(), "there is room");
        let waits = object.call_with(bytes(MIB), room(MIB));
        assert!(matches!(object.try_call(bytes(MIB / 4)), Err(CallError::WouldBlock)));
        assert!(object.try_call("small").is_ok());
        drop((first, waits, mailbox));
    }

    fn a_withdrawn_large_call_that_waits_is_gone(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(2 * MIB)).unwrap();
        let object = attached(&executor, object);
        let mut large: Vec<_> = (0..4).map(|count| object.call(bytes(MIB - count))).collect();
        executor.settle();
        drop(large.remove(2));
        assert!(matches!(object.try_call(bytes(MIB)), Err(CallError::WouldBlock)));
        executor.spawn(echo_lengths(mailbox));
        let ends: Vec<_> = executor.block_on(all(large)).into_iter().map(Result::unwrap).collect();
        assert_eq!(ends, [number(MIB), number(MIB - 1), number(MIB - 3)]);
        assert!(object.try_call(bytes(MIB)).is_ok());
    }

    fn a_large_call_withdrawn_after_any_part_says_where_its_parts_end(reactor: &Reactor) {
        const PARTS: usize = 8;
        for heard_parts in 0..=PARTS {
            let executor = Executor::new(reactor);
            let (server, object) = RawServer::new(reactor);
            let call = object.call(bytes(PARTS * PART_BYTES_MAX));
            executor.settle();
            let session = server.attach(&executor, Hello::default());
            let mut heard = kinds_of_next(&session, &executor);
            while count_of(Kind::Part, &heard) < heard_parts {
                heard.extend(kinds_of_next(&session, &executor));
            }
            drop(call);
            heard.extend(kinds_until(&session, &executor, Kind::Cancel));
            let parts = count_of(Kind::Part, &heard);
            assert!(parts <= PARTS && parts <= heard_parts + PACKETS_IN_A_QUEUE + PARTS_QUEUED_MAX);
            executor.settle();
            assert!(session.hear().is_none(), "nothing follows the withdrawal");
            assert!(session.say(&refused(0, RefusedReason::Cancelled), &[]));
            executor.settle();
            // The number is free.
            let again = object.call("again");
            assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
            assert!(session.say(&answer(0, b"yes", 0), &[]));
            assert_eq!(executor.block_on(again).unwrap().bytes(), b"yes");
        }
    }

    fn a_large_call_refused_in_its_middle_says_where_its_parts_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call(bytes(8 * PART_BYTES_MAX));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor)[0], (Kind::Call, 0));
        assert!(session.say(&refused(0, RefusedReason::OutOfMemory), &[]));
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::OutOfMemory(Part::Call)));
        assert!(error.is_retry_safe());
        let again = object.call("again");
        let heard = kinds_until(&session, &executor, Kind::Call);
        let (parts, rest) = heard.split_at(count_of(Kind::Part, &heard));
        assert!(parts.iter().all(|(kind, _)| *kind == Kind::Part));
        assert_eq!(rest, [(Kind::Cancel, 0), (Kind::Call, 0)]);
        assert!(session.say(&answer(0, b"yes", 0), &[]));
        assert_eq!(executor.block_on(again).unwrap().bytes(), b"yes");
    }

    fn a_large_call_whose_server_dies_half_way_has_not_been_seen(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call(Message::new(bytes(MIB)).with_descriptor(null()));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        while count_of(Kind::Part, &kinds_of_next(&session, &executor)) == 0 {}
        drop(session);
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Gone), "{error:?}");
        assert!(error.is_retry_safe());
    }

    fn a_client_that_dies_in_the_middle_of_a_large_call_gives_its_memory_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let object = attached(&executor, object);
        let dying = RawClient::attach(&executor, object.share().unwrap());
        assert!(dying.say(&large_call(1, MIB, 0, 64), &[]));
        assert!(dying.say(&parts_of(1, &bytes(MIB))[0], &[]));
        until(&executor, "the call has begun", || mailbox.sessions() == 2);
        executor.settle();
        let mailbox = Rc::new(mailbox);
        executor.spawn(serve_lengths(Rc::clone(&mailbox)));
        let result = executor.block_on(object.call(bytes(MIB)));
        assert!(matches!(result, Err(CallError::OutOfMemory(Part::Call))));
        drop(dying);
        until(&executor, "the session is over", || mailbox.sessions() == 1);
        assert_eq!(executor.block_on(object.call(bytes(MIB))).unwrap().bytes(), number(MIB));
        assert_eq!(mailbox.violations(), Default::default());
        drop(object);
    }

    fn a_killed_process_ends_its_large_calls_and_nothing_else(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let served = Rc::new(Cell::new(0));
        let (serves, counts) = (Rc::clone(&mailbox), Rc::clone(&served));
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                counts.set(counts.get() + 1);
                let answer = call.bytes().to_vec();
                let _ = call.answer(answer);
            }
        });
        let mut helper = start_helper!(large_caller, vec![object.share().unwrap()]);
        until(&executor, "some calls are served", || served.get() > 3);
        helper.kill();
        until(&executor, "its session is over", || mailbox.sessions() == 0);
        let answer = executor.block_on(object.call_with(bytes(MIB), room(MIB))).unwrap();
        assert!(answer.bytes() == bytes(MIB));
        drop(object);
    }

    fn a_large_answer_leaves_although_its_mailbox_is_gone(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let call = object.call_with("one?", room(MIB));
        executor.block_on(async {
            let incoming = mailbox.next().await.unwrap();
            drop(mailbox);
            incoming.answer(Message::new(bytes(MIB)).with_descriptor(null())).unwrap();
        });
        let mut answer = executor.block_on(call).unwrap();
        assert!(answer.bytes() == bytes(MIB));
        assert!(answer.take_descriptor().is_some());
    }

    fn a_reactor_that_goes_in_the_middle_of_a_large_answer_takes_everything_with_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        assert!(session.say(&call(1, b"one?", MIB), &[]));
        executor.block_on(async {
            let incoming = mailbox.next().await.unwrap();
            incoming.answer(bytes(MIB)).unwrap();
        });
        // Nobody reads, so that it is still on its way when everything is dropped.
        executor.settle();
        drop(mailbox);
    }

    fn a_leaving_mailbox_finishes_its_large_answers_and_refuses_half_a_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let asked = object.call_with("one?", room(MIB));
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        assert!(session.say(&large_call(1, MIB, 0, 64), &[]));
        executor.settle();
        incoming.answer(bytes(MIB)).unwrap();
        executor.spawn(mailbox.leave(Duration::from_secs(20)));
        let said = said_by_server(&session.hear_from(&executor));
        assert_eq!(said[0], (Kind::Refused, 1, vec![RefusedReason::Leaving as u8]));
        assert_eq!(said[1].0, Kind::Goodbye);
        // Parts that crossed it are ignored.
        assert!(session.say(&parts_of(1, &bytes(MIB))[0], &[]));
        assert!(executor.block_on(asked).unwrap().bytes() == bytes(MIB));
        assert!(session.hear().is_none());
    }

    /// The last ones were taken out of the queue past the companion's receive.
    fn a_client_closes_when_the_last_parts_have_come_after_the_farewell(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call_with("much?", room(MIB));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
        let whole = bytes(2 * PART_BYTES_MAX + 1);
        assert!(session.say(&bare(Header::goodbye()), &[]));
        executor.settle();
        assert!(session.say(&large_answer(0, whole.len()), &[]));
        for part in parts_of(0, &whole) {
            assert!(session.say(&part, &[]));
        }
        assert!(executor.block_on(call).unwrap().bytes() == whole);
        session.hear_the_end(&executor);
        drop(object);
    }

    /// The object is kept, and not used again.
    fn a_client_closes_when_its_last_answer_has_come_in_parts_after_the_farewell(reactor: &Reactor) {
        const NEVER: Duration = Duration::from_secs(3600);
        let executor = Executor::new(reactor);
        for parts in 1..=8 {
            let (object, mailbox) = object(reactor).unwrap();
            let asked = object.call_with("one?", room(MIB));
            let incoming = executor.block_on(mailbox.next()).unwrap();
            let left = Rc::new(Cell::new(false));
            let has_left = Rc::clone(&left);
            executor.spawn(async move {
                let _ = mailbox.leave(NEVER).await;
                has_left.set(true);
            });
            executor.settle();
            incoming.answer(bytes(parts * PART_BYTES_MAX)).unwrap();
            assert_eq!(executor.block_on(asked).unwrap().bytes().len(), parts * PART_BYTES_MAX);
            testing::wait_until("it has left", || {
                testing::turn(reactor);
                executor.settle();
                left.get()
            });
            drop(object);
        }
    }

    fn a_call_of_which_the_server_has_no_memory_is_refused_and_its_parts_are_ignored(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 0, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let mailbox = Rc::new(mailbox);
        executor.spawn(serve_lengths(Rc::clone(&mailbox)));
        let fd = null();
        let session = RawClient::attach(&executor, object.share().unwrap());
        let parts = parts_of(1, &bytes(3 * PART_BYTES_MAX));
        // Once all parts come all the same, once some and then a CANCEL.
        for said in [parts.clone(), vec![parts[0].clone(), bare(Header::cancel(1))]] {
            assert!(session.say(&large_call(1, 3 * PART_BYTES_MAX, 1, 64), &[fd.as_fd()]));
            let refusal = said_by_server(&session.hear_from(&executor));
            assert_eq!(refusal, [(Kind::Refused, 1, vec![RefusedReason::OutOfMemory as u8])]);
            for packet in said {
                assert!(session.say(&packet, &[]));
                executor.settle();
            }
            assert!(session.hear().is_none());
            // The number is free.
            assert!(session.say(&call(1, b"small", 64), &[]));
            assert_eq!(said_by_server(&session.hear_from(&executor)), [(Kind::Answer, 1, number(5))]);
        }
        assert_eq!(mailbox.violations(), Default::default());
        drop(object);
    }

    fn a_number_is_not_free_before_its_parts_have_ended(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 0, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        assert!(session.say(&large_call(1, MIB, 0, 64), &[]));
        session.hear_from(&executor);
        assert!(session.say(&call(1, b"too soon", 64), &[]));
        session.hear_the_end(&executor);
        assert_eq!(mailbox.violations().malformed, 1);
        drop(object);
    }

    fn a_large_answer_withdrawn_after_any_part_ends_with_a_refusal(reactor: &Reactor) {
        const PARTS: usize = 8;
        for heard_parts in 0..=PARTS {
            let executor = Executor::new(reactor);
            let (object, mailbox) = object(reactor).unwrap();
            executor.spawn(async move {
                while let Some(call) = mailbox.next().await {
                    let _ = call.answer(bytes(PARTS * PART_BYTES_MAX));
                }
            });
            let session = RawClient::attach(&executor, object.share().unwrap());
            assert!(session.say(&call(1, b"much", PARTS * PART_BYTES_MAX), &[]));
            let hear = || kinds(said_by_server(&session.hear_from(&executor)));
            let mut heard = hear();
            while count_of(Kind::Part, &heard) < heard_parts {
                heard.extend(hear());
            }
            assert!(session.say(&bare(Header::cancel(1)), &[]));
            while count_of(Kind::Part, &heard) < PARTS && count_of(Kind::Refused, &heard) == 0 {
                heard.extend(hear());
            }
            let parts = count_of(Kind::Part, &heard);
            assert_eq!(parts == PARTS, count_of(Kind::Refused, &heard) == 0, "whole, or refused");
            assert!(parts <= heard_parts + PACKETS_IN_A_QUEUE + PARTS_QUEUED_MAX);
            executor.settle();
            assert!(session.hear().is_none());
            assert!(session.say(&call(1, b"again", PARTS * PART_BYTES_MAX), &[]));
            assert_eq!(hear(), [(Kind::Answer, 1)], "the number is free");
            drop(object);
        }
    }

    fn a_caller_that_goes_in_the_middle_of_its_answer_stops_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call_with("much?", room(MIB));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
        let parts = parts_of(0, &bytes(MIB));
        assert!(session.say(&large_answer(0, MIB), &[]));
        assert!(session.say(&parts[0], &[]));
        executor.settle();
        drop(call);
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Cancel, 0)]);
        // One that was on its way, and the end.
        assert!(session.say(&parts[1], &[]));
        assert!(session.say(&refused(0, RefusedReason::Cancelled), &[]));
        executor.settle();
        let again = object.call("again");
        assert_eq!(kinds_of_next(&session, &executor).len(), 1);
        // Its number was free again.
        assert!(session.say(&answer(0, b"yes", 0), &[]));
        assert_eq!(executor.block_on(again).unwrap().bytes(), b"yes");
    }

    fn a_call_that_stands_still_ends_its_session(reactor: &Reactor) {
        for parts in [0, 1] {
            let executor = Executor::new(reactor);
            let options = MailboxOptions { large_stall: SOON, ..MailboxOptions::default() };
            let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
            let session = RawClient::attach(&executor, object.share().unwrap());
            assert!(session.say(&large_call(1, MIB, 1, 64), &[null().as_fd()]));
            for part in &parts_of(1, &bytes(MIB))[..parts] {
                assert!(session.say(part, &[]));
            }
            session.hear_the_end(&executor);
            until(&executor, "the session is counted", || mailbox.violations().stalled == 1);
            drop(object);
        }
    }

    fn a_large_answer_that_nobody_reads_ends_its_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_stall: SOON, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let mailbox = Rc::new(mailbox);
        let serves = Rc::clone(&mailbox);
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                let _ = call.answer(bytes(MIB));
            }
        });
        let session = RawClient::attach(&executor, object.share().unwrap());
        assert!(session.say(&call(1, b"much", MIB), &[]));
        until(&executor, "the session is counted", || mailbox.violations().stalled == 1);
        drop(object);
    }

    /// Of a withdrawn answer the part that waited was taken for one that had left, and as many bytes of what
    /// waited with it. So a client could have the server keep any number of answers, and their descriptors.
    fn withdrawing_large_answers_makes_no_room_for_others_that_are_not_read(reactor: &Reactor) {
        const CALLS: u32 = 12;
        let executor = Executor::new(reactor);
        let options = MailboxOptions { calls: CALLS, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let mailbox = Rc::new(mailbox);
        let (serves, answered) = (Rc::clone(&mailbox), Rc::new(Cell::new(0)));
        let answers = Rc::clone(&answered);
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                answers.set(answers.get() + 1);
                let _ = match call.continuation().room() {
                    (length, 0) => call.answer(bytes(length)),
                    _ => call.answer(Message::default().with_descriptor(null())),
                };
            }
        });
        let session = RawClient::attach(&executor, object.share().unwrap());
        let says = |packet: Vec<u8>| {
            let said = session.say(&packet, &[]);
            executor.settle();
            said
        };
        let room = Size::NONE.with_descriptors(1).unwrap();
        // The kernel's queue is full from here on, and what is answered waits.
        let full = PACKETS_IN_A_QUEUE as u32 + 1;
        assert!((0..full).all(|number| says(call(number, b"a packet", PAYLOAD_BYTES_MAX))));
        let mut number = full;
        while number < 1_000
            && (0..3).all(|one| says(bare(Header::call(number + one, Size::NONE, room))))
            && says(call(number + 3, b"large", 2 * PART_BYTES_MAX))
            && says(bare(Header::cancel(number + 3)))
        {
            number += 4;
        }
        until(&executor, "the session is counted", || mailbox.violations().unread == 1);
        assert!(answered.get() <= full + CALLS, "{}", answered.get());
        drop(object);
    }

    /// What the kernel had taken meanwhile was not known yet when the clock was looked at.
    fn a_handler_that_keeps_the_thread_for_long_ends_no_session_that_reads(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        // Long enough for a client that reads whatever there is, on a busy machine too.
        let stall = 25 * SOON;
        let options = MailboxOptions { large_stall: stall, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let mailbox = Rc::new(mailbox);
        let serves = Rc::clone(&mailbox);
        let session = Rc::new(RawClient::attach(&executor, object.share().unwrap()));
        let reads = Rc::clone(&session);
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                if call.bytes() == b"work" {
                    // The client reads all there is, and then the thread is kept.
                    while reads.hear().is_some() {}
                    let done = Instant::now() + 2 * stall;
                    testing::wait_until("the work is done", || done < Instant::now());
                }
                let _ = call.answer(bytes(MIB));
            }
        });
        assert!(session.say(&call(1, b"much", MIB), &[]));
        executor.settle();
        assert!(session.say(&call(2, b"work", MIB), &[]));
        let mut parts = 0;
        while parts < 2 * MIB.div_ceil(PART_BYTES_MAX) - PACKETS_IN_A_QUEUE - 1 {
            let packet = session.hear_from(&executor);
            parts += count_of(Kind::Part, &kinds(said_by_server(&packet)));
        }
        assert_eq!(mailbox.violations().stalled, 0);
        drop(object);
    }

    fn a_large_answer_that_stands_still_ends_its_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        testing::set_nonblocking(&bound);
        let server = RawServer { bound };
        let options = ObjectOptions { large_stall: SOON, ..ObjectOptions::default() };
        let object = Object::from_fd_with(reactor, address, options).unwrap();
        let call = object.call_with("much?", room(MIB));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
        assert!(session.say(&large_answer(0, MIB), &[]));
        assert!(session.say(&parts_of(0, &bytes(MIB))[0], &[]));
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Malformed(_)), "{error:?}");
        session.hear_the_end(&executor);
    }

    fn clients_that_break_the_rules_of_large_messages_are_disconnected(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(0)).unwrap();
        let mailbox = Rc::new(mailbox);
        executor.spawn(serve_lengths(Rc::clone(&mailbox)));
        let open = large_call(1, 2 * PART_BYTES_MAX, 0, 64);
        let part = |number, length| frame(Header::part(number, length), &vec![0; length as usize]);
        let full = PART_BYTES_MAX as u32;
        let total = |total: u64| {
            let mut packet = large_call(1, MIB, 0, 64);
            packet[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&total.to_le_bytes());
            vec![packet]
        };
        let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
            ("a part of nothing", vec![part(1, full)]),
            ("a part of a call that is whole", vec![call(1, b"small", 64), part(1, full)]),
            ("a part that is not full", vec![open.clone(), part(1, full - 1)]),
            ("a last part that is too long", vec![large_call(1, 102_065, 0, 64), part(1, full), part(1, 50)]),
            ("a part after the last", vec![open.clone(), part(1, full), part(1, full), part(1, 1)]),
            ("a second opening", vec![open.clone(), open.clone()]),
            ("a small call of the same number", vec![open.clone(), call(1, b"small", 64)]),
            ("a part after CANCEL", vec![open.clone(), bare(Header::cancel(1)), part(1, full)]),
            ("a total that fits a packet", total(102_064)),
            ("a total of nothing", total(0)),
            ("a total beyond the largest", total(MIB as u64 + 1)),
            ("a total beyond everything", total(u64::MAX)),
            ("half an extension", vec![open[..HEADER_BYTES + EXTENSION_BYTES - 1].to_vec()]),
            ("room beyond the largest", vec![call(1, b"small", MIB + 1)]),
            ("more than the window", (1..4).map(|number| large_call(number, MIB, 0, 64)).collect()),
        ];
        for (before, (what, packets)) in (0..).zip(cases) {
            let session = RawClient::attach(&executor, object.share().unwrap());
            for packet in packets {
                session.say(&packet, &[]);
            }
            session.hear_the_end(&executor);
            let violations = mailbox.violations();
            assert_eq!(violations.malformed + violations.beyond_window, before + 1, "{what}");
        }
        assert_eq!(mailbox.violations().beyond_window, 1);
        // Somebody who means well is still served.
        assert_eq!(executor.block_on(object.call(bytes(MIB))).unwrap().bytes(), number(MIB));
        drop(object);
    }

    /// Parts are received where they belong if nothing else comes first, and put there if it does.
    fn a_large_call_is_the_same_whatever_stands_between_its_parts(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(0)).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        let large = bytes(3 * PART_BYTES_MAX + 5);
        let parts = parts_of(1, &large);
        let opening = large_call(1, large.len(), 0, 64);
        let packets = [
            // What comes with the opening is in the packet already.
            [opening, call(2, b"with the opening", 64)].concat(),
            parts[0].clone(),
            parts[1].clone(),
            call(3, b"looks like no part", 64),
            parts[2].clone(),
            [call(4, b"before the last", 64), parts[3].clone(), call(5, b"behind it", 64)].concat(),
        ];
        for packet in packets {
            session.say(&packet, &[]);
            executor.settle();
        }
        let taken = |mailbox: &Mailbox| executor.block_on(mailbox.next()).unwrap();
        for small in ["with the opening", "looks like no part", "before the last"] {
            assert_eq!(taken(&mailbox).bytes(), small.as_bytes());
        }
        assert!(taken(&mailbox).bytes() == large);
        assert_eq!(taken(&mailbox).bytes(), b"behind it");
    }

    /// The second begins with the same header as the rest of the first would have.
    fn a_part_of_a_second_call_of_the_same_number_is_not_taken_for_one_of_the_first(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mebibytes(0)).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        let (first, second) = (vec![1; 3 * PART_BYTES_MAX], bytes(2 * PART_BYTES_MAX));
        session.say(&large_call(1, first.len(), 0, 64), &[]);
        session.say(&parts_of(1, &first)[0], &[]);
        executor.settle();
        session.say(&bare(Header::cancel(1)), &[]);
        session.say(&large_call(1, second.len(), 0, 64), &[]);
        for part in parts_of(1, &second) {
            session.say(&part, &[]);
        }
        assert!(executor.block_on(mailbox.next()).unwrap().bytes() == second);
    }

    /// It is in its place already, and nobody has looked at it.
    fn a_part_of_a_call_that_gives_way_is_counted_and_not_kept(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 3 * MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let attach = || RawClient::attach(&executor, object.share().unwrap());
        let (modest, greedy) = (attach(), attach());
        let large = vec![1; 3 * MIB];
        let parts = parts_of(1, &large);
        assert!(greedy.say(&large_call(1, large.len(), 0, 64), &[]));
        assert!(greedy.say(&parts[0], &[]));
        executor.settle();
        assert!(modest.say(&large_call(1, MIB, 0, 64), &[]));
        assert!(greedy.say(&parts[1], &[]));
        testing::turn(reactor);
        executor.settle();
        assert_eq!(greedy.hear_from(&executor).bytes, refused(1, RefusedReason::OutOfMemory));
        // The next call in the same memory, if it is kept.
        let next = bytes(MIB);
        greedy.say_all(&[bare(Header::cancel(1)), large_call(1, next.len(), 0, 64)]);
        for part in parts_of(1, &next) {
            until(&executor, "there is room", || greedy.say(&part, &[]));
        }
        assert!(executor.block_on(mailbox.next()).unwrap().bytes() == next);
        assert_eq!(mailbox.violations(), Default::default());
    }

    /// It is in its place already.
    fn a_part_of_an_answer_that_is_withdrawn_is_counted_and_not_kept(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call_with("much?", room(MIB));
        executor.settle();
        let session = server.attach(&executor, Hello::default());
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
        let parts = parts_of(0, &bytes(MIB));
        assert!(session.say(&large_answer(0, MIB), &[]));
        assert!(session.say(&parts[0], &[]));
        executor.settle();
        let received = reactor.stats().bytes_received;
        assert!(session.say(&parts[1], &[]));
        testing::wait_until("it has landed", || {
            testing::turn(reactor);
            reactor.stats().bytes_received > received
        });
        drop(call);
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Cancel, 0)]);
        assert!(session.say(&refused(0, RefusedReason::Cancelled), &[]));
        executor.settle();
        let again = object.call_with("again", room(MIB));
        assert_eq!(kinds_of_next(&session, &executor), [(Kind::Call, 0)]);
        let small = bytes(PAYLOAD_BYTES_MAX + 1);
        assert!(session.say(&large_answer(0, small.len()), &[]));
        for part in parts_of(0, &small) {
            assert!(session.say(&part, &[]));
        }
        assert!(executor.block_on(again).unwrap().bytes() == small);
    }

    fn servers_that_break_the_rules_of_large_messages_are_left(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let full = PART_BYTES_MAX as u32;
        let part = |length| frame(Header::part(0, length), &vec![0; length as usize]);
        let open = || large_answer(0, 2 * PART_BYTES_MAX);
        let cases: Vec<(&str, usize, Vec<Vec<u8>>)> = vec![
            ("a part of nothing", 5, vec![part(full)]),
            ("a part that is not full", 5, vec![open(), part(1)]),
            ("a part after the last", 5, vec![open(), part(full), part(full), part(1)]),
            ("a second answer", 5, vec![open(), answer(0, b"small", 0)]),
            ("a second opening", 5, vec![open(), open()]),
            ("nobody will answer, in the middle", 5, vec![open(), bare(Header::dropped(0))]),
            ("a refusal in the middle", 5, vec![open(), refused(0, RefusedReason::Refused)]),
            ("a withdrawal that nobody asked for", 5, vec![open(), refused(0, RefusedReason::Cancelled)]),
            ("more than there is room for", 5, vec![large_answer(0, 3 * PART_BYTES_MAX)]),
            ("an answer to half a call", MIB, vec![answer(0, b"small", 0)]),
            ("nobody will answer half a call", MIB, vec![bare(Header::dropped(0))]),
        ];
        for (what, length, packets) in cases {
            let (server, object) = RawServer::new(reactor);
            let call = object.call_with(bytes(length), room(2 * PART_BYTES_MAX));
            executor.settle();
            let session = server.attach(&executor, Hello::default());
            assert_eq!(kinds_of_next(&session, &executor)[0], (Kind::Call, 0));
            for packet in packets {
                session.say(&packet, &[]);
            }
            session.hear_the_end(&executor);
            match executor.block_on(call) {
                // Answered before the packet that was wrong, or not seen at all.
                Ok(_) => assert_eq!(what, "a part after the last"),
                Err(CallError::Gone) => assert_eq!(length, MIB, "{what}"),
                Err(error) => assert!(matches!(error, CallError::Malformed(_)), "{what}: {error:?}"),
            }
        }
    }

    fn a_session_of_small_packets_cuts_its_messages_to_size(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call_with(Message::new(bytes(10_000)).with_descriptor(null()), room(10_000));
        executor.settle();
        let windows = Windows { bytes: 2 * 4_096, ..Windows::default() };
        let hello = Hello { packet_bytes_max: 4_096, windows, ..Hello::default() };
        let session = server.attach(&executor, hello);
        let (mut heard, mut descriptors) = (Vec::new(), 0);
        while heard.len() < 10_000 {
            let packet: Packet = session.hear_from(&executor);
            assert!(packet.bytes.len() <= 4_096);
            descriptors += packet.descriptors.len();
            for (kind, _, payload) in said_by_client(&packet) {
                assert!(matches!(kind, Kind::Call | Kind::Part));
                heard.extend(payload);
            }
        }
        assert!(heard == bytes(10_000) && descriptors == 1);
        let opening = hello.answer_to(0, Size::of_bytes(10_000).unwrap());
        assert!(session.say(&opening.encode(), &[]));
        for part in bytes(10_000).chunks(hello.part_bytes_max() as usize) {
            assert!(session.say(&frame(Header::part(0, part.len() as u32), part), &[]));
        }
        assert!(executor.block_on(call).unwrap().bytes() == bytes(10_000));
    }

    fn the_descriptors_of_a_large_message_that_did_not_arrive_cost_only_its_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let fd = Fd::from(null());
        let answered = fd.clone();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let count = if call.bytes() == b"ten" { 10 } else { 0 };
                let answer = (0..count).fold(Message::new(bytes(110_000)), |message, _| {
                    message.with_descriptor(answered.clone())
                });
                let _ = call.answer(answer);
            }
        });
        let object = attached(&executor, object);
        let ten = || {
            let message = Message::new(bytes(110_000));
            (0..10).fold(message, |message, _| message.with_descriptor(fd.clone()))
        };
        // Nothing else arrives either before there is room again: what is to be lost is under way by then.
        let losing = |call: seqpacket::Call, count| {
            let limit = leave_descriptors(3);
            until(&executor, "descriptors are lost", || reactor.stats().descriptors_lost == count);
            drop(limit);
            executor.block_on(call).unwrap_err()
        };
        let error = losing(object.call_with(ten(), room(MIB)), 1);
        assert!(matches!(error, CallError::DescriptorsLost(Part::Call)), "{error}");
        let error = losing(object.call_with("ten", room(MIB)), 2);
        assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
        assert!(executor.block_on(object.call_with(ten(), room(MIB))).unwrap().bytes() == bytes(110_000));
        let answer = executor.block_on(object.call_with("ten", room(MIB))).unwrap();
        assert_eq!((answer.bytes().len(), answer.descriptors()), (110_000, 10));
    }
}

fn number(length: usize) -> Vec<u8> {
    length.to_string().into_bytes()
}

/// Answers each call with how long it was.
async fn echo_lengths(mailbox: Mailbox) {
    serve_lengths(Rc::new(mailbox)).await;
}

async fn serve_lengths(mailbox: Rc<Mailbox>) {
    while let Some(call) = mailbox.next().await {
        let length = number(call.bytes().len());
        let _ = call.answer(length);
    }
}
