//! Continuation pairs that come home and serve again: when they do, when they must not, and what is left of
//! the price of a call. It knows nothing of pairs that serve once.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::{
    CallError, Part, PlainContinuation, PlainMailbox, PlainObject, RETURNED_PAIRS_IDLE_MAX,
    RETURNED_PAIRS_MAX, ReturnTrust, SharedPlainMailbox, plain_object,
};
use support::*;
use testing::{Census, Packet, helper, on_each_driver, settle, start_helper};

/// Answers each call with its own bytes and descriptors, and its continuation.
async fn returning_echo(mailbox: PlainMailbox) {
    mailbox.return_continuations();
    plain_echo(mailbox).await;
}

fn returning(reactor: &Reactor) -> (PlainObject, PlainMailbox) {
    let (object, mailbox) = plain_object(reactor).unwrap();
    mailbox.return_continuations();
    (object.with_returned_pairs(ReturnTrust::FirstToAnswer), mailbox)
}

/// An object whose server speaks bytes.
fn by_hand(reactor: &Reactor) -> (PlainObject, OwnedFd) {
    let (mailbox, object) = testing::packet_pair();
    let object = PlainObject::from_fd(reactor, object).unwrap();
    (object.with_returned_pairs(ReturnTrust::FirstToAnswer), mailbox)
}

/// The next call at a server that speaks bytes, and its continuation apart.
#[track_caller]
fn taken(executor: &Executor, mailbox: &OwnedFd) -> (Packet, OwnedFd) {
    executor.settle();
    let mut packet = testing::receive_packet(mailbox).unwrap();
    let continuation = packet.descriptors.pop().unwrap();
    (packet, continuation)
}

helper! {
    /// Serves until nobody holds the object.
    fn serves(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, descriptors.into_iter().next().unwrap()).unwrap();
        Executor::new(&reactor).block_on(returning_echo(mailbox));
    }

    /// As one of several.
    fn serves_beside_others(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let fd = descriptors.into_iter().next().unwrap();
        let mailbox = SharedPlainMailbox::from_fd(&reactor, fd).unwrap();
        mailbox.return_continuations();
        Executor::new(&reactor).block_on(async {
            while let Some(call) = mailbox.next().await {
                let bytes = call.bytes().to_vec();
                let _ = call.answer(bytes);
            }
        });
    }

    /// Takes one call, says so, and does nothing more.
    fn takes_one_call(descriptors: Vec<OwnedFd>) {
        let _call = testing::receive_packet(&descriptors[0]).unwrap();
        testing::send_packet(&descriptors[1], b"taken", &[]).unwrap();
        let _ = testing::receive_packet(&descriptors[1]);
    }

    /// Answers the one call whose continuation it is passed, and returns that.
    fn answers_for_another(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mut packet = testing::receive_packet(&descriptors[0]).unwrap();
        let continuation =
            PlainContinuation::from_fd(&reactor, packet.descriptors.pop().unwrap()).unwrap();
        continuation.answer_and_return("from the third").unwrap();
        Executor::new(&reactor).settle();
    }

    /// Calls, and never looks at the answer.
    fn calls_and_waits_to_be_killed(descriptors: Vec<OwnedFd>) {
        let mut descriptors = descriptors;
        let near = descriptors.pop().unwrap();
        let reactor = testing::reactor();
        let object = PlainObject::from_fd(&reactor, descriptors.pop().unwrap()).unwrap();
        let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
        let _call = object.call("hello");
        Executor::new(&reactor).settle();
        testing::send_packet(&near, b"called", &[]).unwrap();
        let _ = testing::receive_packet(&near);
    }
}

on_each_driver! {
    /// The same socket, as the kernel knows it, and not one descriptor more than after the first call.
    fn one_pair_serves_call_after_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let mut cookies = Vec::new();
        let mut open = Vec::new();
        for n in 0..100_u8 {
            let call = object.call(vec![1, n]);
            let (packet, continuation) = taken(&executor, &mailbox);
            assert_eq!(packet.bytes, [1, n]);
            cookies.push(ring::socket_cookie(&continuation).unwrap());
            testing::send_packet(&continuation, &[2, n], &[continuation.as_fd()]).unwrap();
            drop(continuation);
            let answer = executor.block_on(call).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&[2, n][..], 0));
            open.push(Census::take().len());
        }
        assert!(cookies.iter().all(|cookie| *cookie == cookies[0]));
        assert!(open.iter().all(|count| *count == open[0]), "{open:?}");
        assert_eq!((object.returns().returned, object.returns().reused), (100, 99));
    }

    fn pairs_come_home_from_another_process(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let server = start_helper!(serves, vec![mailbox]);
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let object = object.with_returned_pairs(ReturnTrust::Process(server.pid()));
        executor.block_on(async {
            for n in 0..500_u32 {
                let answer = object.call(seqpacket::plain_data(&n)).await.unwrap();
                assert_eq!(answer.read::<u32>().unwrap(), n);
            }
        });
        let returns = object.returns();
        assert_eq!((returns.returned, returns.reused), (500, 499));
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn arguments_and_answers_keep_their_order_around_the_far_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        object.set_answer_descriptors(253);
        mailbox.set_arguments_max(252);
        executor.spawn(returning_echo(mailbox));
        for count in [0, 1, 2, 16, 252] {
            let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().unwrap()).collect();
            let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
            let writers = writers.into_iter().map(OwnedFd::from).collect();
            let mut answer = executor.block_on(object.call(message_of(vec![1], writers))).unwrap();
            assert_eq!(answer.descriptors(), count);
            for (mut reader, fd) in readers.into_iter().zip(answer.take_descriptors()) {
                testing::set_nonblocking(&reader);
                rustix::io::write(&fd, b"!").unwrap();
                assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
            }
        }
        assert_eq!((object.returns().returned, object.returns().reused), (5, 4));
    }

    /// Beside 253 descriptors there is no room for one more, and the answer is the point.
    fn an_answer_of_253_descriptors_comes_without_the_far_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        object.set_answer_descriptors(253);
        let fd = Fd::from(null());
        for count in [252, 253] {
            let call = object.call("give");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            incoming.answer(with_many("here", &fd, count)).unwrap();
            assert_eq!(executor.block_on(call).unwrap().descriptors(), count);
        }
        assert_eq!((object.returns().returned, object.returns().another), (1, 1));
    }

    /// The room for the far end is not taken from the answer's own.
    fn a_far_end_is_not_one_of_the_descriptors_an_answer_may_bring(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        object.set_answer_descriptors(2);
        let fd = Fd::from(null());
        for count in [2, 3] {
            let call = object.call("give");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            incoming.answer(with_many("here", &fd, count)).unwrap();
            match executor.block_on(call) {
                Ok(answer) => assert_eq!((answer.descriptors(), count), (2, 2)),
                Err(CallError::DescriptorsLost(Part::Answer)) => assert_eq!(count, 3),
                Err(error) => panic!("{error}"),
            }
        }
        // The next call does not suffer.
        executor.spawn(returning_echo(mailbox));
        assert!(executor.block_on(object.call("hello")).is_ok());
    }

    fn many_calls_at_a_time_bring_many_pairs_home_and_so_many_stay(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        executor.spawn(returning_echo(mailbox));
        let before = Census::take().len();
        for _ in 0..3 {
            let calls: Vec<_> = (0..100_u32).map(|n| object.call(seqpacket::plain_data(&n))).collect();
            executor.block_on(async {
                for (n, call) in calls.into_iter().enumerate() {
                    assert_eq!(call.await.unwrap().read::<u32>().unwrap(), n as u32);
                }
            });
        }
        let returns = object.returns();
        assert_eq!((returns.returned, returns.reused), (300, 2 * RETURNED_PAIRS_MAX as u64));
        until(&executor, "what is too many is closed", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            // And what is made ahead.
            Census::take().len() <= before + 2 * RETURNED_PAIRS_MAX + 2 * seqpacket::PAIRS_DEFAULT
        });
    }

    fn pairs_that_nobody_needs_any_more_are_closed_but_for_sixteen(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        executor.spawn(returning_echo(mailbox));
        let calls: Vec<_> = (0..40_u32).map(|n| object.call(seqpacket::plain_data(&n))).collect();
        executor.block_on(async {
            for call in calls {
                call.await.unwrap();
            }
        });
        let most = Census::take().len();
        executor.block_on(async {
            for n in 0..1_000_u32 {
                object.call(seqpacket::plain_data(&n)).await.unwrap();
            }
        });
        // The one that serves, and those that stay beside it.
        let closed = 2 * (40 - (RETURNED_PAIRS_IDLE_MAX + 1));
        until(&executor, "what is too many is closed", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            Census::take().len() <= most - closed
        });
        assert_eq!((object.returns().returned, object.returns().reused), (1_040, 1_000));
    }

    /// The answer is the point; with descriptors of its own it could not do without them.
    fn with_too_many_descriptors_in_flight_an_answer_goes_without_the_far_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        let fd = Fd::from(null());
        let bare = object.call("say");
        let to_say = executor.block_on(mailbox.next()).unwrap();
        let laden = object.call("give");
        let to_give = executor.block_on(mailbox.next()).unwrap();
        let crowd = testing::too_many_in_flight();
        to_say.answer("yes").unwrap();
        to_give.answer(Message::from("here").with_descriptor(fd.clone())).unwrap();
        assert_eq!(executor.block_on(bare).unwrap().bytes(), b"yes");
        assert!(matches!(executor.block_on(laden), Err(CallError::Dropped)));
        assert_eq!(object.returns().not_returned, 1);
        drop(crowd);
    }

    // What does not come home as it should.

    fn an_answer_without_the_far_end_is_an_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let fd = null();
        for descriptors in [vec![], vec![fd.as_fd()]] {
            let call = object.call("hello");
            let (_, continuation) = taken(&executor, &mailbox);
            testing::send_packet(&continuation, b"yes", &descriptors).unwrap();
            drop(continuation);
            assert_eq!(executor.block_on(call).unwrap().descriptors(), descriptors.len());
        }
        assert_eq!((object.returns().not_returned, object.returns().another), (1, 1));
        assert_eq!(object.returns().reused, 0);
    }

    /// The far end of an older call, or anything that looks like one.
    fn another_far_end_is_part_of_the_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let first = object.call("first");
        let (_, older) = taken(&executor, &mailbox);
        let second = object.call("second");
        let (_, newer) = taken(&executor, &mailbox);
        testing::send_packet(&newer, b"yes", &[newer.as_fd(), older.as_fd()]).unwrap();
        assert_eq!(executor.block_on(second).unwrap().descriptors(), 2);
        assert_eq!((object.returns().another, object.returns().returned), (1, 0));
        testing::send_packet(&older, b"yes", &[older.as_fd()]).unwrap();
        assert_eq!(executor.block_on(first).unwrap().descriptors(), 0);
    }

    fn a_far_end_that_comes_twice_does_not_serve_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let call = object.call("hello");
        let (_, continuation) = taken(&executor, &mailbox);
        let twice = [continuation.as_fd(), continuation.as_fd()];
        testing::send_packet(&continuation, b"yes", &twice).unwrap();
        let cookie = ring::socket_cookie(&continuation).unwrap();
        drop(continuation);
        assert_eq!(executor.block_on(call).unwrap().descriptors(), 1);
        assert_eq!((object.returns().duplicated, object.returns().returned), (1, 0));
        let _call = object.call("again");
        let (_, continuation) = taken(&executor, &mailbox);
        assert_ne!(ring::socket_cookie(&continuation).unwrap(), cookie);
    }

    /// Two packets, of which the second would be the answer to the next call.
    fn a_pair_with_something_left_in_it_does_not_serve_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        for early in [true, false] {
            let call = object.call("hello");
            let (_, kept) = taken(&executor, &mailbox);
            testing::send_packet(&kept, b"yes", &[kept.as_fd()]).unwrap();
            if early {
                testing::send_packet(&kept, b"forged", &[]).unwrap();
            }
            assert_eq!(executor.block_on(call).unwrap().bytes(), b"yes");
            if !early {
                testing::send_packet(&kept, b"forged", &[]).unwrap();
            }
            let call = object.call("again");
            let (_, continuation) = taken(&executor, &mailbox);
            testing::send_packet(&continuation, b"true", &[]).unwrap();
            drop(continuation);
            assert_eq!(executor.block_on(call).unwrap().bytes(), b"true");
        }
        assert_eq!(object.returns().unclean, 2);
    }

    /// Whoever it was passed through could have kept a copy.
    fn a_far_end_that_a_third_process_returns_does_not_serve_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        let (near, far) = testing::packet_pair();
        let third = start_helper!(answers_for_another, vec![far]);
        let call = object.call("first");
        executor.block_on(mailbox.next()).unwrap().answer("from the second").unwrap();
        executor.block_on(call).unwrap();
        let call = object.call("who?");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let continuation = incoming.into_continuation().into_fd().unwrap();
        testing::send_packet(&near, b"answer this", &[continuation.as_fd()]).unwrap();
        drop(continuation);
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"from the third");
        assert_eq!((object.returns().not_trusted, object.returns().returned), (1, 1));
        for _ in 0..2 {
            let call = object.call("and again");
            executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
            assert!(executor.block_on(call).is_ok());
        }
        // The second call had the pair of the first, the third a fresh one, the fourth that of the third.
        assert_eq!((object.returns().reused, object.returns().returned), (2, 3));
        third.succeeded();
    }

    /// The process that takes it does not know the mailbox, and just answers.
    /// Each answer would be the next call, and nobody would have to be there for it.
    fn a_server_whose_own_object_is_passed_as_continuation_does_not_call_itself_for_ever(reactor: &Reactor) {
        let (object, mailbox) = returning(reactor);
        let far = object.share().unwrap();
        testing::send_packet(&far, b"again", &[far.as_fd()]).unwrap();
        drop(far);
        settle(reactor, async {
            let friend = object.call("friend");
            let call = mailbox.next().await.unwrap();
            assert_eq!(call.bytes(), b"friend");
            call.answer("hello").unwrap();
            assert_eq!(friend.await.unwrap().bytes(), b"hello");
        });
        assert_eq!(mailbox.violations().not_a_continuation, 1);
    }

    fn a_continuation_that_was_handed_on_does_not_go_home(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        let call = object.call("hello");
        let fd = executor.block_on(mailbox.next()).unwrap().into_continuation().into_fd().unwrap();
        PlainContinuation::from_fd(reactor, fd).unwrap().answer("yes").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"yes");
        assert_eq!(object.returns().not_returned, 1);
    }

    /// The answerer knows it again, and does with it whatever it would do with a new one.
    fn a_far_end_that_has_come_before_is_a_continuation_like_any_other(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        for way in 0..6 {
            for _ in 0..2 {
                let call = object.call("hello");
                executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
                assert_eq!(executor.block_on(call).unwrap().bytes(), b"yes");
            }
            let call = object.call("and now?");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            assert!(format!("{incoming:?}").contains("PlainContinuation"));
            let continuation = incoming.into_continuation();
            let answered = match way {
                0 => continuation.try_answer("yes").is_ok(),
                1 => continuation.answer_and_return("yes").is_ok(),
                2 => PlainContinuation::from_fd(reactor, continuation.into_fd().unwrap())
                    .unwrap()
                    .answer("yes")
                    .is_ok(),
                3 => continuation.answer("").is_ok(),
                4 => {
                    drop(continuation);
                    false
                }
                // There is no room for it, and the answer goes without.
                _ => {
                    let crowd = testing::too_many_in_flight();
                    let is_answered = continuation.answer("yes").is_ok();
                    executor.settle();
                    drop(crowd);
                    is_answered
                }
            };
            let outcome = executor.block_on(call);
            match answered {
                true => assert_eq!(outcome.unwrap().bytes(), b"yes", "{way}"),
                false => assert!(matches!(outcome, Err(CallError::Dropped)), "{way}: {outcome:?}"),
            }
            // The pair of the second way has come home.
            assert_eq!(object.returns().reused, 2 * (way + 1) + u64::from(way > 1), "{way}");
        }
    }

    fn to_a_caller_that_does_not_expect_it_the_far_end_is_one_more_descriptor(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(returning_echo(mailbox));
        for n in 0..50_u8 {
            let answer = executor.block_on(object.call(vec![1, n])).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&[1, n][..], 1));
        }
        object.set_answer_descriptors(0);
        let error = executor.block_on(object.call("hello")).unwrap_err();
        assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
        assert_eq!(object.returns(), seqpacket::Returns::default());
    }

    // Ends.

    fn a_withdrawn_call_takes_its_pair_with_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        let answered = || {
            let call = object.call("hello");
            executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
            executor.block_on(call).unwrap();
        };
        answered();
        // At once; while it is in the queue; while it is handled; and when it is answered.
        drop(object.call("not wanted"));
        assert!(executor.block_on(mailbox.next()).unwrap().into_continuation().is_cancelled());
        answered();
        let mut call = object.call("never read");
        assert!(poll_once(&mut call).is_pending());
        executor.settle();
        drop(call);
        assert!(executor.block_on(mailbox.next()).unwrap().into_continuation().is_cancelled());
        answered();
        let mut call = object.call("never answered");
        assert!(poll_once(&mut call).is_pending());
        let continuation = executor.block_on(mailbox.next()).unwrap().into_continuation();
        assert!(!continuation.is_cancelled());
        drop(call);
        assert!(continuation.is_cancelled());
        continuation.answer("in vain").unwrap();
        answered();
        let call = object.call("never taken");
        executor.block_on(mailbox.next()).unwrap().answer("in vain").unwrap();
        executor.settle();
        drop(call);
        answered();
        // None of the five had a pair that had served a call before which was withdrawn.
        let returns = object.returns();
        assert_eq!((returns.returned, returns.unclean, returns.not_trusted), (5, 0, 0));
    }

    fn a_server_that_dies_with_the_call_ends_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let (near, far) = testing::packet_pair();
        // With a pair that has come home once.
        let call = object.call("hello");
        let (_, continuation) = taken(&executor, &mailbox);
        testing::send_packet(&continuation, b"yes", &[continuation.as_fd()]).unwrap();
        drop(continuation);
        executor.block_on(call).unwrap();
        let mut server = start_helper!(takes_one_call, vec![mailbox, far]);
        let taken = object.call("taken");
        let queued = object.call("queued");
        executor.settle();
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"taken");
        server.kill();
        assert!(matches!(executor.block_on(taken), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(queued), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(object.call("late")), Err(CallError::Gone)));
        assert_eq!(object.returns().reused, 1);
    }

    /// What no check can see: the answerer dies, and somebody else has a copy. A deadline is the only cure.
    fn a_copy_that_was_kept_hides_a_death_and_a_deadline_helps(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = by_hand(reactor);
        let call = object.call("hello");
        let (_, kept) = taken(&executor, &mailbox);
        testing::send_packet(&kept, b"yes", &[kept.as_fd()]).unwrap();
        executor.block_on(call).unwrap();
        let mut call = object.call("anyone?");
        executor.settle();
        drop(mailbox);
        executor.settle();
        assert!(poll_once(&mut call).is_pending());
        let call = call.within(Duration::from_millis(1));
        assert!(matches!(executor.block_on(call), Err(CallError::Deadline)));
        drop(kept);
    }

    /// One that only the first is trusted with stays without pairs, one that trusts the user does not.
    fn another_server_of_the_same_user_may_be_trusted_too(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let uid = rustix::process::getuid().as_raw();
        for (trust, served) in [(ReturnTrust::FirstToAnswer, 1), (ReturnTrust::User(uid), 2)] {
            let (mailbox, object) = testing::packet_pair();
            let copy = mailbox.try_clone().unwrap();
            let object = PlainObject::from_fd(reactor, object).unwrap().with_returned_pairs(trust);
            for mailbox in [mailbox, copy] {
                let mut server = start_helper!(serves, vec![mailbox]);
                assert!(executor.block_on(object.call("hello")).is_ok());
                server.kill();
            }
            assert_eq!(object.returns().returned, served, "{trust:?}");
            assert_eq!(object.returns().not_trusted, 2 - served, "{trust:?}");
        }
    }

    /// Each call goes to whoever is free, and comes home from there.
    fn pairs_come_home_from_several_servers(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let uid = rustix::process::getuid().as_raw();
        let (mailbox, object) = testing::packet_pair();
        let helpers: Vec<_> = (0..2)
            .map(|_| start_helper!(serves_beside_others, vec![mailbox.try_clone().unwrap()]))
            .collect();
        drop(mailbox);
        let object =
            PlainObject::from_fd(reactor, object).unwrap().with_returned_pairs(ReturnTrust::User(uid));
        executor.block_on(async {
            for _ in 0..20 {
                let calls: Vec<_> = (0..10_u32).map(|n| object.call(seqpacket::plain_data(&n))).collect();
                for (n, call) in calls.into_iter().enumerate() {
                    assert_eq!(call.await.unwrap().read::<u32>().unwrap(), n as u32);
                }
            }
        });
        let returns = object.returns();
        assert_eq!((returns.returned, returns.not_trusted, returns.unclean), (200, 0, 0));
        assert!(returns.reused >= 190, "{returns:?}");
        drop(object);
        executor.settle();
        helpers.into_iter().for_each(testing::Helper::succeeded);
    }

    /// The far end then lies in the queue of its own near end, which closes with the process.
    fn a_caller_that_dies_with_the_answer_unread_leaves_nothing(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let (near, far) = testing::packet_pair();
        let mailbox = PlainMailbox::from_fd(reactor, mailbox).unwrap();
        mailbox.return_continuations();
        let mut caller = start_helper!(calls_and_waits_to_be_killed, vec![object, far]);
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"called");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        incoming.answer(Message::from("with it").with_descriptor(OwnedFd::from(writer))).unwrap();
        executor.settle();
        caller.kill();
        // The end comes when the last copy of the writer is gone: the one in the queue.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert!(executor.block_on(mailbox.next()).is_none());
    }

    fn a_server_may_leave_with_pairs_at_home(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        let call = object.call("hello");
        executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
        executor.block_on(call).unwrap();
        drop(mailbox);
        assert!(matches!(executor.block_on(object.call("anyone?")), Err(CallError::Gone)));
        assert!(matches!(executor.block_on(object.call("anyone?")), Err(CallError::Gone)));
    }

    fn a_clone_shares_the_pairs(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = returning(reactor);
        executor.spawn(returning_echo(mailbox));
        let clone = object.clone();
        executor.block_on(object.call("one")).unwrap();
        executor.block_on(clone.call("two")).unwrap();
        assert_eq!((object.returns().reused, clone.returns().returned), (1, 2));
    }
}
