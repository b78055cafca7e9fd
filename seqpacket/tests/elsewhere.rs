//! Calls of a session that somebody else answers: the continuation as a descriptor, in whichever process it
//! ends up, and what each side notices of the others' deaths.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::wire::{Header, Hello, Windows};
use seqpacket::{
    AnswerError, CallError, CallOptions, Incoming, Mailbox, MailboxOptions, Object, ObjectOptions, Part,
    PlainContinuation, object, object_with,
};
use support::*;
use testing::{Helper, helper, leave_descriptors, on_each_driver, settle, start_helper};

const LONG: Duration = Duration::from_secs(3600);

helper! {
    /// Hands each call on to another object, and has nothing more to do with it.
    fn front(descriptors: Vec<OwnedFd>) {
        let [mailbox, worker] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, mailbox).unwrap();
        let worker = Object::from_fd(&reactor, worker).unwrap();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let (bytes, _, continuation) = call.into_parts();
                let errand = Message::new(bytes).with_descriptor(continuation.into_fd().unwrap());
                let _ = worker.call(errand).await;
            }
        });
    }

    /// Answers what was asked of somebody else.
    fn worker(descriptors: Vec<OwnedFd>) {
        let [mailbox] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, mailbox).unwrap();
        settle(&reactor, async {
            while let Some(mut errand) = mailbox.next().await {
                let continuation = continuation_in(&reactor, &mut errand);
                let wanted = errand.bytes() != b"nobody";
                let _ = errand.answer("understood");
                if wanted {
                    continuation.answer(std::process::id().to_string()).unwrap();
                }
            }
        });
    }

    /// Keeps every continuation but those of calls that ask whether it is there.
    fn keeper(descriptors: Vec<OwnedFd>) {
        let [mailbox] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, mailbox).unwrap();
        let mut kept = Vec::new();
        settle(&reactor, async {
            while let Some(mut errand) = mailbox.next().await {
                let continuation = continuation_in(&reactor, &mut errand);
                match errand.bytes() {
                    b"are you there?" => continuation.answer("yes").unwrap(),
                    _ => kept.push(continuation),
                }
                errand.answer("understood").unwrap();
            }
        });
    }

    /// Calls, and is never satisfied.
    fn caller(descriptors: Vec<OwnedFd>) {
        let [object] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, object).unwrap();
        let _ = settle(&reactor, object.call("are you there?"));
    }
}

fn continuation_in(reactor: &Reactor, errand: &mut Incoming) -> PlainContinuation {
    PlainContinuation::from_fd(reactor, errand.take_descriptor().unwrap()).unwrap()
}

/// An object whose calls a front hands on to the other, which is given back as well.
fn fronted(reactor: &Reactor, start: impl Fn(OwnedFd) -> Helper) -> (Object, Helper, Helper) {
    let (worker_bound, worker_address) = testing::packet_pair();
    let (bound, address) = testing::packet_pair();
    let worker = start(worker_bound);
    let front = start_helper!(front, vec![bound, worker_address]);
    (Object::from_fd(reactor, address).unwrap(), front, worker)
}

/// A front that hands calls on to a mailbox of this process.
fn fronted_here(reactor: &Reactor) -> (Object, Helper, Mailbox) {
    let (worker, mailbox) = object(reactor).unwrap();
    let (bound, address) = testing::packet_pair();
    let front = start_helper!(front, vec![bound, worker.share().unwrap()]);
    (Object::from_fd(reactor, address).unwrap(), front, mailbox)
}

/// The next call of the mailbox, handed on to the test itself.
async fn handed_on(reactor: &Reactor, mailbox: &Mailbox) -> PlainContinuation {
    let continuation = mailbox.next().await.unwrap().into_continuation();
    PlainContinuation::from_fd(reactor, continuation.into_fd().unwrap()).unwrap()
}

on_each_driver! {
    fn a_third_process_answers_a_call_of_a_session(reactor: &Reactor) {
        let (object, front, worker) = fronted(reactor, |fd| start_helper!(worker, vec![fd]));
        let executor = Executor::new(reactor);
        for _ in 0..20 {
            let answer = executor.block_on(object.call("who?")).unwrap();
            assert_eq!(answer.bytes(), worker.pid().to_string().as_bytes());
        }
        assert!(matches!(executor.block_on(object.call("nobody")), Err(CallError::Dropped)));
        drop(object);
        executor.settle();
        front.succeeded();
        worker.succeeded();
    }

    fn the_answer_comes_although_the_front_has_died(reactor: &Reactor) {
        let (object, mut front, mailbox) = fronted_here(reactor);
        let executor = Executor::new(reactor);
        let call = object.call("who?");
        let mut errand = executor.block_on(mailbox.next()).unwrap();
        let continuation = continuation_in(reactor, &mut errand);
        errand.answer("understood").unwrap();
        front.kill();
        until(&executor, "its end was noticed", || !object.is_attached());
        assert!(!continuation.is_cancelled());
        continuation.answer("all the same").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"all the same");
        assert!(matches!(executor.block_on(object.call("who?")), Err(CallError::Gone)));
    }

    fn the_death_of_who_should_answer_is_noticed(reactor: &Reactor) {
        let (object, mut front, mut keeper) = fronted(reactor, |fd| start_helper!(keeper, vec![fd]));
        let executor = Executor::new(reactor);
        let call = object.call("keep this");
        // One after the other: when this is answered that is kept.
        assert_eq!(executor.block_on(object.call("are you there?")).unwrap().bytes(), b"yes");
        keeper.kill();
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        front.kill();
    }

    fn a_withdrawal_is_seen_by_the_third_process(reactor: &Reactor) {
        let (object, mut front, mailbox) = fronted_here(reactor);
        let executor = Executor::new(reactor);
        let call = object.call("never mind");
        let mut errand = executor.block_on(mailbox.next()).unwrap();
        let continuation = continuation_in(reactor, &mut errand);
        executor.settle();
        drop(call);
        executor.block_on(continuation.cancelled());
        assert!(continuation.is_cancelled());
        front.kill();
    }

    fn the_death_of_the_caller_is_seen_by_the_third_process(reactor: &Reactor) {
        let (worker, mailbox) = object(reactor).unwrap();
        let (bound, address) = testing::packet_pair();
        let mut front = start_helper!(front, vec![bound, worker.share().unwrap()]);
        let mut caller = start_helper!(caller, vec![address]);
        let executor = Executor::new(reactor);
        let mut errand = executor.block_on(mailbox.next()).unwrap();
        let continuation = continuation_in(reactor, &mut errand);
        assert!(!continuation.is_cancelled());
        caller.kill();
        executor.block_on(continuation.cancelled());
        front.kill();
    }

    fn of_two_answers_the_first_counts(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let far = executor.block_on(mailbox.next()).unwrap().into_continuation().into_fd().unwrap();
        testing::send_packet(&far, b"the first", &[]).unwrap();
        testing::send_packet(&far, b"the second", &[]).unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"the first");
        let next = object.call("next");
        executor.block_on(mailbox.next()).unwrap().answer("the next").unwrap();
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"the next");
    }

    fn an_answer_from_elsewhere_may_bring_descriptors(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("open");
        let continuation = executor.block_on(handed_on(reactor, &mailbox));
        let message = Message::from("here").with_descriptor(null()).with_descriptor(null());
        continuation.answer(message).unwrap();
        let mut answer = executor.block_on(call).unwrap();
        assert_eq!(answer.bytes(), b"here");
        assert_eq!(answer.take_descriptors().len(), 2);
    }

    fn an_answer_from_elsewhere_fits_the_room(reactor: &Reactor) {
        let room = ObjectOptions { answer_descriptors: 2, ..ObjectOptions::default() };
        let (object, mailbox) = object_with(reactor, room, MailboxOptions::default()).unwrap();
        let executor = Executor::new(reactor);
        let options = CallOptions { answer_bytes: Some(4), ..CallOptions::default() };
        for (length, descriptors) in [(4, 0), (5, 0), (102_080, 0), (1, 2), (1, 3)] {
            let call = object.call_with("hello", options);
            let continuation = executor.block_on(handed_on(reactor, &mailbox));
            let fds = (0..descriptors).map(|_| null()).collect();
            continuation.answer(message_of(vec![7; length], fds)).unwrap();
            match executor.block_on(call) {
                Ok(answer) => assert_eq!((answer.bytes().len(), answer.descriptors()), (length, descriptors)),
                Err(CallError::TooLarge(Part::Answer)) => assert!(length > 4),
                Err(CallError::DescriptorsLost(Part::Answer)) => assert!(descriptors > 2),
                Err(error) => panic!("{length}, {descriptors}: {error}"),
            }
            assert!(object.is_attached());
        }
    }

    fn more_than_a_packet_from_elsewhere_is_too_large(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let far = executor.block_on(mailbox.next()).unwrap().into_continuation().into_fd().unwrap();
        testing::send_packet(&far, &vec![0; 102_081], &[]).unwrap();
        assert!(matches!(executor.block_on(call), Err(CallError::TooLarge(Part::Answer))));
    }

    /// The session has room for one call, and the second goes although the first is not answered.
    fn what_was_handed_on_takes_no_room_in_the_session(reactor: &Reactor) {
        let mailbox = MailboxOptions { calls: 1, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), mailbox).unwrap();
        let executor = Executor::new(reactor);
        let mut calls = Vec::new();
        let mut continuations = Vec::new();
        for _ in 0..10 {
            calls.push(object.call("hello"));
            continuations.push(executor.block_on(handed_on(reactor, &mailbox)));
        }
        for (number, continuation) in continuations.into_iter().enumerate().rev() {
            continuation.answer(number.to_string()).unwrap();
        }
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(executor.block_on(call).unwrap().bytes(), number.to_string().as_bytes());
        }
    }

    /// What the answers may bring is still to come, wherever from.
    fn what_was_handed_on_still_awaits_its_descriptors(reactor: &Reactor) {
        let room = ObjectOptions {
            answer_descriptors: 2,
            answer_descriptors_together: 2,
            ..ObjectOptions::default()
        };
        let (object, mailbox) = object_with(reactor, room, MailboxOptions::default()).unwrap();
        let executor = Executor::new(reactor);
        let first = object.call("first");
        let continuation = executor.block_on(handed_on(reactor, &mailbox));
        executor.settle();
        assert!(matches!(object.try_call("second"), Err(CallError::WouldBlock)));
        continuation.answer("done").unwrap();
        executor.block_on(first).unwrap();
        let second = object.try_call("second").unwrap();
        let continuation = executor.block_on(handed_on(reactor, &mailbox));
        executor.settle();
        drop(second);
        executor.block_on(continuation.cancelled());
        assert!(object.try_call("third").is_ok());
    }

    fn the_callers_deadline_goes_with_the_call(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let options = CallOptions { within: Some(Duration::from_millis(500)), ..CallOptions::default() };
        let call = object.call_with("quickly", options);
        let continuation = executor.block_on(handed_on(reactor, &mailbox));
        assert!(matches!(executor.block_on(call), Err(CallError::Deadline)));
        executor.block_on(continuation.cancelled());
    }

    fn the_end_of_the_session_is_not_the_end_of_the_call(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let continuation = executor.block_on(handed_on(reactor, &mailbox));
        executor.block_on(mailbox.leave(LONG));
        until(&executor, "the session has ended", || !object.is_attached());
        drop(object);
        continuation.answer("all the same").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"all the same");
    }

    fn who_closes_it_has_said_that_nobody_will_answer(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        drop(executor.block_on(mailbox.next()).unwrap().into_continuation().into_fd().unwrap());
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
    }

    fn what_was_withdrawn_is_not_handed_on(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("never mind");
        let taken = executor.block_on(mailbox.next()).unwrap().into_continuation();
        drop(call);
        executor.block_on(taken.cancelled());
        assert_eq!(taken.into_fd().unwrap_err(), AnswerError::Withdrawn);
        let call = object.call("still there?");
        let taken = executor.block_on(mailbox.next()).unwrap().into_continuation();
        drop((call, object));
        until(&executor, "the session has ended", || mailbox.sessions() == 0);
        assert_eq!(taken.into_fd().unwrap_err(), AnswerError::Gone);
    }

    /// The withdrawal and the handing on have crossed.
    fn a_call_withdrawn_while_it_was_handed_on_is_cancelled_there(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let call = object.call("never mind");
        let session = server.attach(&executor, Hello::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        drop(call);
        executor.settle();
        let (near, far) = testing::packet_pair();
        assert!(session.say(&bare(Header::elsewhere(number)), &[near.as_fd()]));
        drop(near);
        let far = PlainContinuation::from_fd(reactor, far).unwrap();
        executor.block_on(far.cancelled());
        assert!(object.is_attached());
    }

    fn a_grant_is_not_answered_elsewhere(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let mut grant = Box::pin(object.grant());
        assert!(poll_once(&mut grant).is_pending());
        let session = server.attach(&executor, Hello::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        let (near, _far) = testing::packet_pair();
        assert!(session.say(&bare(Header::elsewhere(number)), &[near.as_fd()]));
        assert!(matches!(executor.block_on(grant), Err(CallError::Malformed(_))));
    }

    fn a_server_without_descriptors_says_so(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let taken = executor.block_on(mailbox.next()).unwrap().into_continuation();
        let limit = leave_descriptors(1);
        assert_eq!(taken.into_fd().unwrap_err(), AnswerError::OutOfDescriptors);
        drop(limit);
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Answer)), "{error}");
        let next = object.call("next");
        executor.block_on(mailbox.next()).unwrap().answer("done").unwrap();
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"done");
    }

    /// The near end cannot be sent, and whoever has the far end sees that nobody waits.
    fn a_user_with_too_many_in_flight_hands_nothing_on(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("hello");
        let taken = executor.block_on(mailbox.next()).unwrap().into_continuation();
        let crowd = testing::too_many_in_flight();
        let far = PlainContinuation::from_fd(reactor, taken.into_fd().unwrap()).unwrap();
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Answer)), "{error}");
        executor.block_on(far.cancelled());
        // What needs none goes on.
        let next = object.call("next");
        executor.block_on(mailbox.next()).unwrap().answer("done").unwrap();
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"done");
        drop(crowd);
    }

    /// Its near end is lost on the way, and whoever has the far end sees that nobody waits.
    fn a_caller_without_descriptors_is_told(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let windows = Windows::default();
        let call = object.call("hello");
        let session = server.attach(&executor, Hello { windows, ..Hello::default() });
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        let (near, far) = testing::packet_pair();
        let frame = bare(Header::elsewhere(number));
        assert!(session.say(&frame, &[near.as_fd()]));
        drop(near);
        let limit = leave_descriptors(0);
        let result = executor.block_on(call);
        drop(limit);
        let error = result.unwrap_err();
        assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
        let far = PlainContinuation::from_fd(reactor, far).unwrap();
        executor.block_on(far.cancelled());
        assert!(object.is_attached());
    }
}
