//! Pairs that come home to a caller without a reactor, served by another process on each driver or by hand:
//! when they serve again, when they must not, and what a fork leaves of them. It knows nothing of packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{Executor, Reactor, WaitPolicy};
use seqpacket::blocking::{Outgoing, PlainObject};
use seqpacket::{
    CallError, Part, PlainContinuation, PlainMailbox, RETURNED_PAIRS_IDLE_MAX, RETURNED_PAIRS_MAX,
    ReturnTrust, Returns, plain_data,
};
use support::{message_of, null};
use testing::{Census, Helper, Packet, fork, helper, in_own_process, on_each_driver, only, start_helper};

const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(60);

/// Served by another process.
fn served() -> (Helper, PlainObject) {
    let (object, mailbox) = testing::packet_pair();
    let server = start_helper!(serves, vec![mailbox]);
    let trust = ReturnTrust::Process(server.pid());
    (server, PlainObject::from_fd(object).unwrap().with_returned_pairs(trust))
}

/// Served here, a packet at a time.
fn by_hand() -> (PlainObject, OwnedFd) {
    let (object, mailbox) = testing::packet_pair();
    (PlainObject::from_fd(object).unwrap().with_returned_pairs(ReturnTrust::FirstToAnswer), mailbox)
}

/// The next call at a server that speaks bytes, and its continuation apart.
#[track_caller]
fn taken(mailbox: &OwnedFd) -> (Packet, OwnedFd) {
    let mut packet = testing::receive_packet(mailbox).unwrap();
    let continuation = packet.descriptors.pop().unwrap();
    (packet, continuation)
}

/// Answers the next call as it should be answered.
#[track_caller]
fn answer(mailbox: &OwnedFd) -> u64 {
    let (packet, continuation) = taken(mailbox);
    testing::send_packet(&continuation, &packet.bytes, &[continuation.as_fd()]).unwrap();
    ring::socket_cookie(&continuation).unwrap()
}

#[track_caller]
fn echoes(object: &PlainObject, count: u32) {
    for n in 0..count {
        let answer = object.call(&n.to_le_bytes()).unwrap();
        assert_eq!((answer.bytes(), answer.descriptors()), (&n.to_le_bytes()[..], 0));
    }
}

on_each_driver! {
    fn pairs_come_home_from_another_process(_reactor: &Reactor) {
        let (server, object) = served();
        for wait in [WaitPolicy::Sleep, WaitPolicy::spin()] {
            object.set_wait_policy(wait);
            echoes(&object, 250);
        }
        let returns = object.returns();
        assert_eq!((returns.returned, returns.reused), (500, 499));
        drop(object);
        server.succeeded();
    }

    fn without_descriptors_a_large_call_is_made_with_those_of_a_pair_at_home(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 1);
        let limit = testing::leave_descriptors(0);
        let answer = object.call_large(&150_000_u64.to_le_bytes()).unwrap();
        assert!(answer.bytes() == [7; 150_000]);
        // What is left of that call serves nobody else, and there is no pair at home any more.
        drop(limit);
        echoes(&object, 2);
        assert_eq!(object.returns().reused, 1);
    }

    fn thousands_of_calls_leave_nothing_behind(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 1);
        let census = Census::take();
        echoes(&object, 3_000);
        census.unchanged();
    }

    fn arguments_and_answers_keep_their_order_around_the_far_end(_reactor: &Reactor) {
        let (_server, object) = served();
        object.set_answer_descriptors(253);
        for count in [0, 1, 2, 16, 252] {
            let fds: Vec<OwnedFd> = (0..count).map(|_| testing::packet_pair().0).collect();
            let message = fds.iter().fold(Outgoing::from("!"), |message, fd| message.lend(fd.as_fd()));
            let mut answer = object.call(message).unwrap();
            let cookie = |fd: &OwnedFd| ring::socket_cookie(fd).unwrap();
            let (sent, came): (Vec<_>, Vec<_>) =
                (fds.iter().map(cookie).collect(), answer.take_descriptors().iter().map(cookie).collect());
            assert_eq!(sent, came);
        }
        assert_eq!((object.returns().returned, object.returns().reused), (5, 4));
    }

    /// The room for the far end is not taken from the answer's own.
    fn a_far_end_is_not_one_of_the_descriptors_an_answer_may_bring(_reactor: &Reactor) {
        let (_server, object) = served();
        object.set_answer_descriptors(2);
        let fd = null();
        let with = |count| (0..count).fold(Outgoing::from("give"), |message, _| message.lend(fd.as_fd()));
        assert_eq!(object.call(with(2)).unwrap().descriptors(), 2);
        assert!(matches!(object.call(with(3)), Err(CallError::DescriptorsLost(Part::Answer))));
        // The next call does not suffer.
        echoes(&object, 1);
        assert_eq!(object.returns().returned, 2);
    }

    fn many_calls_at_a_time_bring_many_pairs_home_and_so_many_stay(_reactor: &Reactor) {
        let (_server, object) = served();
        let before = Census::take().len();
        let many = RETURNED_PAIRS_MAX + 10;
        for _ in 0..3 {
            let calls: Vec<_> = (0..many).map(|n| object.begin(vec![n as u8]).unwrap()).collect();
            for (n, call) in calls.into_iter().enumerate().rev() {
                assert_eq!(call.finish().unwrap().bytes(), [n as u8]);
            }
        }
        let returns = object.returns();
        assert_eq!((returns.returned, returns.reused), (3 * many as u64, 2 * RETURNED_PAIRS_MAX as u64));
        // And the near end of the last call whose pair was one too many.
        ring::closer_idle();
        assert_eq!(Census::take().len(), before + 2 * RETURNED_PAIRS_MAX + 1);
        drop(object);
        ring::closer_idle();
        assert_eq!(Census::take().len(), before - 1);
    }

    fn pairs_that_nobody_needs_any_more_are_closed_but_for_sixteen(_reactor: &Reactor) {
        let (_server, object) = served();
        let before = Census::take().len();
        let calls: Vec<_> = (0..40_u8).map(|n| object.begin(vec![n]).unwrap()).collect();
        calls.into_iter().for_each(|call| drop(call.finish().unwrap()));
        assert_eq!(Census::take().len(), before + 2 * 40);
        echoes(&object, 1_000);
        ring::closer_idle();
        // The one that serves, and those that stay beside it.
        assert_eq!(Census::take().len(), before + 2 * (RETURNED_PAIRS_IDLE_MAX + 1));
        assert_eq!(object.returns().reused, 1_000);
    }

    fn a_large_answer_has_a_pair_that_serves_once(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 2);
        for bytes in [0_u64, 150_000] {
            let large = object.call_large(plain_data(&bytes)).unwrap();
            assert_eq!((large.bytes().len() as u64, large.descriptors()), (bytes, 0));
            echoes(&object, 2);
        }
        assert_eq!((object.returns().returned, object.returns().reused), (6, 5));
    }

    // Ends.

    fn a_call_that_takes_too_long_takes_its_pair_with_it(_reactor: &Reactor) {
        let (_server, object) = served();
        for _ in 0..3 {
            echoes(&object, 2);
            assert!(matches!(object.call_within("hold", SHORT), Err(CallError::Deadline)));
        }
        assert_eq!(object.call_within("in time", LONG).unwrap().bytes(), b"in time");
        assert_eq!((object.returns().returned, object.returns().reused), (7, 6));
        assert_eq!(object.returns().unclean, 0);
    }

    fn a_call_that_is_dropped_is_withdrawn_with_its_pair(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 1);
        drop(object.begin("hold").unwrap());
        assert!(matches!(object.call_within("hold", SHORT), Err(CallError::Deadline)));
        assert_eq!(object.call_within("all gone?", LONG).unwrap().bytes(), b"all gone");
    }

    fn nobody_answers_and_the_next_call_has_a_fresh_pair(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 1);
        assert!(matches!(object.call("drop"), Err(CallError::Dropped)));
        echoes(&object, 2);
        assert_eq!((object.returns().returned, object.returns().reused), (3, 2));
    }

    fn a_server_that_dies_ends_the_call_it_has_and_the_one_it_has_not_read(_reactor: &Reactor) {
        let (mut server, object) = served();
        // Two pairs that have served.
        let calls = ["one", "two"].map(|call| object.begin(call).unwrap());
        calls.into_iter().for_each(|call| drop(call.finish().unwrap()));
        let held = object.begin("hold").unwrap();
        let queued = object.begin("never read").unwrap();
        server.kill();
        assert!(matches!(held.finish(), Err(CallError::Dropped)));
        // Unless it was read and answered before.
        assert!(matches!(queued.finish(), Err(CallError::Dropped) | Ok(_)));
        loop {
            // The kernel closes what a dead process had in its ring in its own time.
            match object.call("anyone?") {
                Err(CallError::Dropped) => {}
                Err(CallError::Gone) => break,
                other => panic!("{other:?}"),
            }
        }
    }

    /// One that only the first is trusted with stays without pairs, one that trusts the user does not.
    fn another_server_of_the_same_user_may_be_trusted_too(_reactor: &Reactor) {
        let uid = rustix::process::getuid().as_raw();
        for (trust, served) in [(ReturnTrust::FirstToAnswer, 1), (ReturnTrust::User(uid), 2)] {
            let (object, mailbox) = testing::packet_pair();
            let copy = mailbox.try_clone().unwrap();
            let object = PlainObject::from_fd(object).unwrap().with_returned_pairs(trust);
            for mailbox in [mailbox, copy] {
                let mut server = start_helper!(serves, vec![mailbox]);
                echoes(&object, 1);
                server.kill();
            }
            assert_eq!(object.returns().returned, served, "{trust:?}");
            assert_eq!(object.returns().not_trusted, 2 - served, "{trust:?}");
        }
    }

    /// Whoever it was passed through could have kept a copy.
    fn a_far_end_that_a_third_process_returns_does_not_serve_again(_reactor: &Reactor) {
        let (object, mailbox) = by_hand();
        let call = object.begin("first").unwrap();
        let first = answer(&mailbox);
        call.finish().unwrap();
        let (near, far) = testing::packet_pair();
        let third = start_helper!(answers_for_another, vec![far]);
        let call = object.begin("who?").unwrap();
        let (_, continuation) = taken(&mailbox);
        assert_eq!(ring::socket_cookie(&continuation).unwrap(), first);
        testing::send_packet(&near, b"answer this", &[continuation.as_fd()]).unwrap();
        drop(continuation);
        assert_eq!(call.finish().unwrap().bytes(), b"from the third");
        assert_eq!((object.returns().not_trusted, object.returns().returned), (1, 1));
        let call = object.begin("again").unwrap();
        assert_ne!(answer(&mailbox), first);
        call.finish().unwrap();
        third.succeeded();
    }

    // Forks, and threads.

    fn a_child_has_pairs_of_its_own_and_leaves_those_of_its_parent_alone(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 2);
        for _ in 0..3 {
            let child = fork(|| {
                echoes(&object, 50);
                let returns = object.returns();
                assert_eq!((returns.unclean, returns.not_trusted, returns.another), (0, 0, 0));
            });
            echoes(&object, 50);
            child.succeeded();
        }
        assert_eq!((object.returns().returned, object.returns().reused), (152, 151));
        assert_eq!(object.returns().unclean, 0);
    }

    fn what_the_parent_has_begun_is_answered_to_the_parent(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 2);
        let mut begun = Some(object.begin("parent").unwrap());
        fork(|| assert!(matches!(begun.take().unwrap().finish(), Err(CallError::Dropped)))).succeeded();
        assert_eq!(begun.take().unwrap().finish().unwrap().bytes(), b"parent");
        echoes(&object, 2);
        assert_eq!(object.returns().unclean, 0);
    }

    /// A child that calls, or drops what it has inherited, has no copy any more that could.
    fn a_child_that_called_does_not_hide_the_death_of_the_server(_reactor: &Reactor) {
        let (mut server, object) = served();
        echoes(&object, 1);
        let (near, far) = testing::packet_pair();
        let child = fork(|| {
            echoes(&object, 1);
            testing::send_packet(&far, b"called", &[]).unwrap();
            let _ = testing::receive_packet(&far);
        });
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"called");
        let held = object.begin("hold").unwrap();
        assert_eq!(object.returns().reused, 1);
        server.kill();
        assert!(matches!(held.finish(), Err(CallError::Dropped)));
        child.kill();
    }

    fn each_thread_has_pairs_of_its_own(_reactor: &Reactor) {
        let (_server, object) = served();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let object = object.try_clone().unwrap();
                scope.spawn(move || {
                    echoes(&object, 200);
                    assert_eq!((object.returns().returned, object.returns().reused), (200, 199));
                });
            }
        });
        assert_eq!(object.returns(), Returns::default());
    }
}

in_own_process! {
    /// The same socket, as the kernel knows it, and not one descriptor more than after the first call.
    fn one_pair_serves_call_after_call() {
        let (object, mailbox) = by_hand();
        let (mut cookies, mut open) = (Vec::new(), Vec::new());
        for n in 0..100_u8 {
            let call = object.begin(vec![1, n]).unwrap();
            cookies.push(answer(&mailbox));
            assert_eq!(call.finish().unwrap().bytes(), [1, n]);
            open.push(Census::take().len());
        }
        assert!(cookies.iter().all(|cookie| *cookie == cookies[0]));
        assert!(open.iter().all(|count| *count == open[0]), "{open:?}");
        assert_eq!((object.returns().returned, object.returns().reused), (100, 99));
    }

    fn an_answer_without_the_far_end_is_an_answer() {
        let (object, mailbox) = by_hand();
        let fd = null();
        for descriptors in [vec![], vec![fd.as_fd()]] {
            let call = object.begin("hello").unwrap();
            let (_, continuation) = taken(&mailbox);
            testing::send_packet(&continuation, b"yes", &descriptors).unwrap();
            drop(continuation);
            assert_eq!(call.finish().unwrap().descriptors(), descriptors.len());
        }
        assert_eq!((object.returns().not_returned, object.returns().another), (1, 1));
        assert_eq!(object.returns().reused, 0);
    }

    /// The far end of an older call, or anything that looks like one.
    fn another_far_end_is_part_of_the_answer() {
        let (object, mailbox) = by_hand();
        let first = object.begin("first").unwrap();
        let (_, older) = taken(&mailbox);
        let second = object.begin("second").unwrap();
        let (_, newer) = taken(&mailbox);
        testing::send_packet(&newer, b"yes", &[newer.as_fd(), older.as_fd()]).unwrap();
        assert_eq!(second.finish().unwrap().descriptors(), 2);
        assert_eq!((object.returns().another, object.returns().returned), (1, 0));
        testing::send_packet(&older, b"yes", &[older.as_fd()]).unwrap();
        assert_eq!(first.finish().unwrap().descriptors(), 0);
    }

    fn a_far_end_that_comes_twice_does_not_serve_again() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        let (_, continuation) = taken(&mailbox);
        let twice = [continuation.as_fd(), continuation.as_fd()];
        testing::send_packet(&continuation, b"yes", &twice).unwrap();
        let cookie = ring::socket_cookie(&continuation).unwrap();
        drop(continuation);
        assert_eq!(call.finish().unwrap().descriptors(), 1);
        assert_eq!((object.returns().duplicated, object.returns().returned), (1, 0));
        let call = object.begin("again").unwrap();
        assert_ne!(answer(&mailbox), cookie);
        call.finish().unwrap();
    }

    /// Two packets, of which the second would be the answer to the next call.
    fn a_pair_with_something_left_in_it_does_not_serve_again() {
        let (object, mailbox) = by_hand();
        for early in [true, false] {
            let call = object.begin("hello").unwrap();
            let (_, kept) = taken(&mailbox);
            testing::send_packet(&kept, b"yes", &[kept.as_fd()]).unwrap();
            if early {
                testing::send_packet(&kept, b"forged", &[]).unwrap();
            }
            assert_eq!(call.finish().unwrap().bytes(), b"yes");
            if !early {
                testing::send_packet(&kept, b"forged", &[]).unwrap();
            }
            let call = object.begin("again").unwrap();
            let (_, continuation) = taken(&mailbox);
            testing::send_packet(&continuation, b"true", &[]).unwrap();
            drop(continuation);
            assert_eq!(call.finish().unwrap().bytes(), b"true");
        }
        assert_eq!(object.returns().unclean, 2);
    }

    /// Nothing lies in it, but whoever has a copy has ended it.
    fn a_pair_that_was_shut_down_does_not_serve_again() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        let (_, kept) = taken(&mailbox);
        testing::send_packet(&kept, b"yes", &[kept.as_fd()]).unwrap();
        call.finish().unwrap();
        rustix::net::shutdown(&kept, rustix::net::Shutdown::Both).unwrap();
        let call = object.begin("again").unwrap();
        answer(&mailbox);
        assert_eq!(call.finish().unwrap().bytes(), b"again");
        assert_eq!((object.returns().unclean, object.returns().reused), (1, 0));
    }

    /// What no check can see: the answerer dies, and somebody else has a copy. A deadline is the only cure.
    fn a_copy_that_was_kept_hides_a_death_and_a_deadline_helps() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        let (_, kept) = taken(&mailbox);
        testing::send_packet(&kept, b"yes", &[kept.as_fd()]).unwrap();
        call.finish().unwrap();
        let server = std::thread::spawn(move || drop(taken(&mailbox)));
        assert!(matches!(object.call_within("anyone?", SHORT), Err(CallError::Deadline)));
        server.join().unwrap();
        assert_eq!(object.returns().reused, 1);
    }

    fn a_child_that_never_calls_hides_a_death_and_a_deadline_helps() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        answer(&mailbox);
        call.finish().unwrap();
        let (near, far) = testing::packet_pair();
        let child = fork(|| drop(testing::receive_packet(&far)));
        let server = std::thread::spawn(move || drop(taken(&mailbox)));
        assert!(matches!(object.call_within("anyone?", SHORT), Err(CallError::Deadline)));
        server.join().unwrap();
        assert_eq!(object.returns().reused, 1);
        child.kill();
        drop(near);
    }

    /// Nobody can tell that the far end is all that was lost.
    fn without_descriptors_an_answer_is_lost_with_a_name_and_its_pair_with_it() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        answer(&mailbox);
        let limit = testing::leave_descriptors(0);
        assert!(matches!(call.finish(), Err(CallError::DescriptorsLost(Part::Answer))));
        drop(limit);
        let call = object.begin("hello").unwrap();
        answer(&mailbox);
        call.finish().unwrap();
        assert_eq!((object.returns().returned, object.returns().reused), (1, 0));
    }

    /// What is made of it is used: no descriptor is free, and none is needed.
    fn with_a_pair_at_home_a_call_needs_no_descriptor_but_the_one_that_comes_home() {
        let (object, mailbox) = by_hand();
        let call = object.begin("hello").unwrap();
        answer(&mailbox);
        call.finish().unwrap();
        let limit = testing::leave_descriptors(0);
        let call = object.begin("again").unwrap();
        answer(&mailbox);
        assert_eq!(call.finish().unwrap().bytes(), b"again");
        drop(limit);
    }

    fn to_a_caller_that_does_not_expect_it_the_far_end_is_one_more_descriptor() {
        let (object, mailbox) = testing::packet_pair();
        let object = PlainObject::from_fd(object).unwrap();
        for _ in 0..3 {
            let call = object.begin("hello").unwrap();
            answer(&mailbox);
            assert_eq!(call.finish().unwrap().descriptors(), 1);
        }
        assert_eq!(object.returns(), Returns::default());
    }
}

helper! {
    /// Serves until nobody holds the object.
    fn serves(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        mailbox.return_continuations();
        mailbox.set_arguments_max(252);
        let mut held = Vec::new();
        Executor::new(&reactor).block_on(async move {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"drop" => drop(call),
                    b"hold" => held.push(call.into_continuation()),
                    b"all gone?" => {
                        for continuation in &held {
                            continuation.cancelled().await;
                        }
                        let _ = call.answer("all gone");
                    }
                    [_, _, _, _, _, _, _, _] => {
                        let bytes: u64 = call.read().unwrap();
                        let _ = call.into_continuation().answer_large(vec![7; bytes as usize]).await;
                    }
                    _ => {
                        let (bytes, descriptors, continuation) = call.into_parts();
                        let _ = continuation.answer(message_of(bytes, descriptors));
                    }
                }
            }
        });
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
}
