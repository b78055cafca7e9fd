//! How a call can end: one test for each outcome, on sessions and on plain objects, and what each says about
//! whether the call may be made again.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::wire::{Hello, MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX, RefusedReason};
use seqpacket::{
    AnswerError, CALLS_QUEUED_MAX, CallError, CallOptions, MailboxOptions, Object, ObjectOptions,
    PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX, Part, object, object_with, plain_object,
};
use support::*;
use testing::{Census, helper, leave_descriptors, on_each_driver, settle, start_helper};

const SOON: Duration = Duration::from_millis(20);

/// What the error says of itself: was it sent, may it have been seen, may it be tried again?
fn says(error: &CallError) -> (Option<bool>, bool, bool) {
    (error.was_sent(), error.may_have_been_seen(), error.is_retry_safe())
}

/// A server whose messages end with their packets.
fn nothing_large() -> MailboxOptions {
    MailboxOptions { message_bytes: 0, ..MailboxOptions::default() }
}

const NOT_SENT: (Option<bool>, bool, bool) = (Some(false), false, true);
const SENT_AND_PERHAPS_SEEN: (Option<bool>, bool, bool) = (Some(true), true, false);
const SENT_BUT_NOT_SEEN: (Option<bool>, bool, bool) = (Some(true), false, true);
const PERHAPS: (Option<bool>, bool, bool) = (None, true, false);

on_each_driver! {
    fn a_call_that_is_answered_brings_the_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let answer = executor.block_on(object.call("hello")).unwrap();
        assert_eq!(answer.bytes(), b"hello");
        assert_eq!(answer.descriptors(), 0);
    }

    /// A session can carry what a plain object cannot.
    fn an_empty_call_has_an_empty_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        assert!(executor.block_on(object.call("")).unwrap().bytes().is_empty());
    }

    fn gone_is_the_object_of_a_dropped_mailbox(reactor: &Reactor) {
        let (object, mailbox) = object(reactor).unwrap();
        drop(mailbox);
        let error = settle(reactor, object.call("anyone?")).unwrap_err();
        assert!(matches!(error, CallError::Gone));
        assert_eq!(says(&error), NOT_SENT);
    }

    fn gone_is_a_plain_object_whose_mailbox_was_dropped(reactor: &Reactor) {
        let (object, mailbox) = plain_object(reactor).unwrap();
        drop(mailbox);
        let error = settle(reactor, object.call("anyone?")).unwrap_err();
        assert!(matches!(error, CallError::Gone), "{error}");
    }

    /// Unread by the server: refused with its goodbye, or found in the queue when it was gone.
    fn a_call_unread_by_a_dying_server_has_one_end(reactor: &Reactor) {
        let census = Census::take();
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let object = attached(&executor, object);
        let call = object.call("anyone?");
        drop(mailbox);
        let result = executor.block_on(call);
        assert!(matches!(result, Err(CallError::Dropped | CallError::Gone)), "{result:?}");
        drop(object);
        executor.settle();
        census.unchanged();
    }

    fn dropped_is_a_call_whose_continuation_was_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                drop(call)
            }
        });
        let error = executor.block_on(object.call("and?")).unwrap_err();
        assert!(matches!(error, CallError::Dropped));
        assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
    }

    fn dropped_is_a_plain_call_whose_continuation_was_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                drop(call)
            }
        });
        assert!(matches!(executor.block_on(object.call("and?")), Err(CallError::Dropped)));
    }

    fn dropped_is_a_plain_call_in_the_queue_of_a_mailbox_that_was_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let mut call = object.call("anyone?");
        assert!(poll_once(&mut call).is_pending());
        executor.settle();
        drop(mailbox);
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
    }

    fn cancelled_is_what_the_server_says_is(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call("hello");
        let session = server.attach(&executor, Hello::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        assert!(session.say(&RefusedReason::Cancelled.frame(number), &[]));
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Cancelled));
        assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
    }

    fn deadline_is_a_call_that_nobody_answers_in_time(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let error = executor.block_on(object.call("patience").within(SOON)).unwrap_err();
        assert!(matches!(error, CallError::Deadline));
        assert_eq!(says(&error), PERHAPS);
        let options = CallOptions { within: Some(SOON), ..CallOptions::default() };
        let result = executor.block_on(object.call_with("patience", options));
        assert!(matches!(result, Err(CallError::Deadline)));
        // And it has been withdrawn: nobody will be bothered with it.
        executor.settle();
        assert!(poll_once(&mut mailbox.next()).is_pending());
    }

    fn deadline_is_a_plain_call_that_nobody_answers_in_time(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let result = executor.block_on(object.call("patience").within(SOON));
        assert!(matches!(result, Err(CallError::Deadline)));
        let call = executor.block_on(mailbox.next()).unwrap();
        assert!(call.into_continuation().is_cancelled());
    }

    /// Attaching is waiting too.
    fn deadline_is_a_call_to_a_server_that_does_not_even_say_hello(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let result = settle(reactor, object.call("patience").within(SOON));
        assert!(matches!(result, Err(CallError::Deadline)));
        drop(server);
    }

    fn no_clock_goes_far_enough_for_the_longest_deadline(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        assert!(executor.block_on(object.call("hello").within(Duration::MAX)).is_ok());
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer("hello");
            }
        });
        assert!(executor.block_on(object.call("hello").within(Duration::MAX)).is_ok());
    }

    fn refused_is_a_matter_of_policy(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                call.refuse()
            }
        });
        let error = executor.block_on(object.call("please")).unwrap_err();
        assert!(matches!(error, CallError::Refused));
        assert_eq!(says(&error), SENT_BUT_NOT_SEEN);
    }

    fn too_large_is_a_call_that_does_not_fit_a_packet_where_nothing_is_large(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), nothing_large()).unwrap();
        executor.spawn(echo(mailbox));
        let largest = vec![7; PAYLOAD_BYTES_MAX];
        let enough = CallOptions { answer_bytes: Some(PAYLOAD_BYTES_MAX), ..CallOptions::default() };
        let answer = executor.block_on(object.call_with(largest.clone(), enough));
        assert_eq!(answer.unwrap().bytes(), largest);
        let error = executor.block_on(object.call(vec![7; PAYLOAD_BYTES_MAX + 1])).unwrap_err();
        assert!(matches!(error, CallError::TooLarge(Part::Call)));
        assert_eq!((error.was_sent(), error.may_have_been_seen()), (Some(false), false));
        assert_eq!(executor.block_on(object.call("still here")).unwrap().bytes(), b"still here");
    }

    fn too_large_is_a_plain_call_that_does_not_fit_a_packet(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let bytes = call.bytes().to_vec();
                let _ = call.answer(bytes);
            }
        });
        let largest = vec![7; PLAIN_BYTES_MAX];
        assert_eq!(executor.block_on(object.call(largest.clone())).unwrap().bytes(), largest);
        let result = executor.block_on(object.call(vec![7; PLAIN_BYTES_MAX + 1]));
        assert!(matches!(result, Err(CallError::TooLarge(Part::Call))));
        let fd = Fd::from(null());
        let result = executor.block_on(object.call(with_many("many", &fd, PLAIN_ARGUMENTS_MAX + 1)));
        assert!(matches!(result, Err(CallError::TooLarge(Part::Call))));
    }

    fn too_large_is_asking_for_more_room_than_there_can_be(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let rooms = [
            CallOptions { answer_bytes: Some(MESSAGE_BYTES_MAX + 1), ..CallOptions::default() },
            CallOptions { answer_descriptors: Some(17), ..CallOptions::default() },
        ];
        for options in rooms {
            let error = executor.block_on(object.call_with("much", options)).unwrap_err();
            assert!(matches!(error, CallError::TooLarge(Part::Call)));
        }
    }

    fn too_large_is_an_answer_that_does_not_fit_its_room(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let tells = Rc::clone(&told);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                assert_eq!(call.continuation().room(), (3, 0));
                let message = match call.bytes() {
                    b"bytes" => Message::from("four"),
                    _ => Message::from("one").with_descriptor(null()),
                };
                tells.borrow_mut().push(call.answer(message));
            }
        });
        for what in ["bytes", "descriptors"] {
            let options = CallOptions {
                answer_bytes: Some(3),
                answer_descriptors: Some(0),
                ..CallOptions::default()
            };
            let error = executor.block_on(object.call_with(what, options)).unwrap_err();
            assert!(matches!(error, CallError::TooLarge(Part::Answer)));
            assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
        }
        assert_eq!(*told.borrow(), [Err(AnswerError::TooLarge), Err(AnswerError::TooLarge)]);
    }

    fn what_a_plain_answer_cannot_be_the_answerer_learns(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        for (message, wrong) in [
            (Message::default(), AnswerError::Empty),
            (Message::new(vec![0; PLAIN_BYTES_MAX + 1]), AnswerError::TooLarge),
        ] {
            let call = object.call("please");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            assert_eq!(incoming.answer(message), Err(wrong));
            assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        }
    }

    fn truncated_is_a_plain_answer_longer_than_a_packet(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call("please");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let continuation = incoming.into_continuation().into_fd().unwrap();
        let fd = null();
        testing::send_packet(&continuation, &[1; PLAIN_BYTES_MAX + 1], &[fd.as_fd()]).unwrap();
        drop(continuation);
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Truncated));
        assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
    }

    fn descriptors_lost_is_an_answer_that_brings_more_than_there_is_room_for(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            let fd = Fd::from(null());
            while let Some(call) = mailbox.next().await {
                let count = usize::from(call.bytes()[0]);
                let _ = call.answer(with_many("here", &fd, count));
            }
        });
        for (room, sent) in [(16, 17), (3, 4), (0, 1), (252, 253)] {
            object.set_answer_descriptors(room);
            assert_eq!(executor.block_on(object.call(vec![room as u8])).unwrap().descriptors(), room);
            let error = executor.block_on(object.call(vec![sent])).unwrap_err();
            assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
            assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
        }
        object.set_answer_descriptors(253);
        assert_eq!(executor.block_on(object.call(vec![253])).unwrap().descriptors(), 253);
    }

    fn descriptors_lost_is_an_answer_this_process_has_no_room_for(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let fd = Fd::from(null());
        let answered = fd.clone();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer(with_many("here", &answered, 10));
            }
        });
        assert_eq!(executor.block_on(object.call("ten")).unwrap().descriptors(), 10);
        let limit = leave_descriptors(3);
        let error = executor.block_on(object.call("ten")).unwrap_err();
        assert!(matches!(error, CallError::DescriptorsLost(Part::Answer)), "{error}");
        drop(limit);
        assert_eq!(executor.block_on(object.call("ten")).unwrap().descriptors(), 10);
    }

    fn descriptors_lost_is_a_call_the_server_has_no_room_for(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let (purse, far) = testing::packet_pair();
        let helper = start_helper!(counter, vec![bound, far]);
        let object = Object::from_fd(reactor, address).unwrap();
        let fd = Fd::from(null());
        let ask = |message: Message| executor.block_on(object.call(message));
        assert_eq!(ask(with_many("count", &fd, 10)).unwrap().bytes(), b"10 in call 1");
        assert_eq!(ask("be poor".into()).unwrap().bytes(), b"0 in call 2");
        // Where the server looks before it takes, it waits a second for descriptors to come free.
        let error = ask(with_many("count", &fd, 16)).unwrap_err();
        assert!(matches!(error, CallError::DescriptorsLost(Part::Call)), "{error}");
        assert_eq!(says(&error), SENT_BUT_NOT_SEEN);
        // The handler has not seen it, and goes on.
        testing::send_packet(&purse, b"be rich", &[]).unwrap();
        assert_eq!(ask(with_many("count", &fd, 10)).unwrap().bytes(), b"10 in call 3");
        drop((object, purse));
        helper.succeeded();
    }

    fn out_of_descriptors_is_a_call_that_has_none_for_a_continuation(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let limit = leave_descriptors(1);
        let error = executor.block_on(object.call("hello")).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        assert_eq!(says(&error), NOT_SENT);
        drop((limit, mailbox));
    }

    fn out_of_descriptors_is_a_call_that_has_none_to_attach_with(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let limit = leave_descriptors(1);
        let error = executor.block_on(object.call("hello")).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        assert_eq!(says(&error), NOT_SENT);
        drop(limit);
        assert!(executor.block_on(object.call("hello")).is_ok());
    }

    fn out_of_descriptors_is_a_server_that_has_none_to_grant_with(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let object = attached(&executor, object);
        let limit = leave_descriptors(1);
        let error = executor.block_on(object.grant()).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Answer)), "{error}");
        assert_eq!(says(&error), SENT_AND_PERHAPS_SEEN);
        drop(limit);
        assert!(executor.block_on(object.grant()).is_ok());
    }

    /// The kernel bounds what all processes of a user together have sent and nobody has received.
    fn out_of_descriptors_is_a_user_with_too_many_in_flight(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let fd = Fd::from(null());
        let answered = fd.clone();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = match call.bytes() {
                    b"give" => call.answer(Message::from("here").with_descriptor(answered.clone())),
                    _ => call.answer("thanks"),
                };
            }
        });
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        let object = attached(&executor, object);
        let crowd = testing::too_many_in_flight();
        let take = |message| executor.block_on(object.call(message));
        let error = take(Message::from("take").with_descriptor(fd.clone())).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        assert_eq!(says(&error), NOT_SENT);
        let error = take("give".into()).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Answer)), "{error}");
        let error = executor.block_on(plain.call("hello")).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        // What needs none goes on.
        assert_eq!(take("thank".into()).unwrap().bytes(), b"thanks");
        drop((crowd, plain_mailbox));
    }

    fn would_block_is_a_call_that_has_to_wait(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = seqpacket::MailboxOptions { calls: 2, ..Default::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let error = object.try_call("not attached").unwrap_err();
        assert!(matches!(error, CallError::WouldBlock));
        assert_eq!(says(&error), NOT_SENT);
        let object = attached(&executor, object);
        let first = object.try_call("one").unwrap();
        let second = object.try_call("two").unwrap();
        assert!(matches!(object.try_call("three"), Err(CallError::WouldBlock)));
        let waits = object.call("three");
        executor.spawn(echo(mailbox));
        assert_eq!(executor.block_on(first).unwrap().bytes(), b"one");
        assert_eq!(executor.block_on(second).unwrap().bytes(), b"two");
        assert_eq!(executor.block_on(waits).unwrap().bytes(), b"three");
        assert_eq!(executor.block_on(object.try_call("four").unwrap()).unwrap().bytes(), b"four");
    }

    /// Waiting would be in vain.
    fn what_can_never_be_sent_would_not_block(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), nothing_large()).unwrap();
        let object = attached(&executor, object);
        let fd = Fd::from(null());
        let call = object.try_call(with_many("many", &fd, 17)).unwrap();
        assert!(matches!(executor.block_on(call), Err(CallError::TooLarge(Part::Call))));
        let call = object.try_call(vec![0; PAYLOAD_BYTES_MAX + 1]).unwrap();
        assert!(matches!(executor.block_on(call), Err(CallError::TooLarge(Part::Call))));
        drop(mailbox);
    }

    /// One alone may ask for more than all together.
    fn a_call_that_asks_for_many_descriptors_is_sent_alone(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options =
            ObjectOptions { answer_descriptors: 20, answer_descriptors_together: 10, ..Default::default() };
        let (object, mailbox) = object_with(reactor, options, Default::default()).unwrap();
        let object = attached(&executor, object);
        let first = object.try_call("one").unwrap();
        assert!(matches!(object.try_call("two"), Err(CallError::WouldBlock)));
        let second = object.call("two");
        executor.spawn(echo(mailbox));
        assert!(executor.block_on(first).is_ok());
        assert!(executor.block_on(second).is_ok());
    }

    fn would_block_is_one_call_more_than_may_be_queued(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let mut calls: Vec<_> = (0..CALLS_QUEUED_MAX).map(|_| object.call("")).collect();
        assert!(matches!(executor.block_on(object.call("")), Err(CallError::WouldBlock)));
        // Whoever gives up makes room.
        calls.truncate(CALLS_QUEUED_MAX - 1);
        calls.push(object.call(""));
        assert!(matches!(executor.block_on(object.call("")), Err(CallError::WouldBlock)));
        drop(server);
        assert!(executor.block_on(all(calls)).iter().all(|result| matches!(result, Err(CallError::Gone))));
    }

    fn malformed_is_a_server_that_speaks_something_else(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call("hello");
        let session = server.accept(&executor);
        assert!(session.say(b"HTTP/1.1 400 Bad Request\r\n\r\n", &[]));
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Malformed(_)));
        assert_eq!(says(&error), PERHAPS);
        session.hear_the_end(&executor);
    }

    fn malformed_is_an_answer_of_another_shape(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let answer = executor.block_on(object.call("seven..")).unwrap();
        assert!(matches!(answer.read::<u64>(), Err(CallError::Malformed(_))));
        assert_eq!(answer.read::<[u8; 7]>().unwrap(), *b"seven..");
    }

    fn malformed_is_an_empty_plain_call(reactor: &Reactor) {
        let (object, mailbox) = plain_object(reactor).unwrap();
        assert!(matches!(settle(reactor, object.call("")), Err(CallError::Malformed(_))));
        drop(mailbox);
    }

    /// There is one descriptor that the kernel does not pass.
    fn io_is_what_else_the_kernel_says(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let Some(unsendable) = ring_descriptor() else {
            println!("no io_uring here, and so nothing that cannot be sent");
            return;
        };
        let unsendable = Fd::from(unsendable);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        let message = Message::from("take this").with_descriptor(unsendable);
        let error = executor.block_on(object.call(message.clone())).unwrap_err();
        assert!(matches!(error, CallError::Io(_)), "{error}");
        assert_eq!(says(&error), PERHAPS);
        let error = executor.block_on(plain.call(message)).unwrap_err();
        assert!(matches!(error, CallError::Io(_)), "{error}");
        assert_eq!(executor.block_on(object.call("still here")).unwrap().bytes(), b"still here");
        drop(plain_mailbox);
    }

    fn what_is_read_of_a_call_that_was_refused_is_closed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let seen = Rc::new(Cell::new(0));
        let sees = Rc::clone(&seen);
        executor.spawn(async move {
            while let Some(mut call) = mailbox.next().await {
                sees.set(call.descriptors());
                let first = call.take_descriptor();
                call.refuse();
                drop(first);
            }
        });
        let fd = Fd::from(null());
        let object = attached(&executor, object);
        let census = Census::take();
        let result = executor.block_on(object.call(with_many("three", &fd, 3)));
        assert!(matches!(result, Err(CallError::Refused)));
        assert_eq!(seen.get(), 3);
        census.unchanged();
    }
}

helper! {
    /// Counts the descriptors of calls; becomes poor when told by a call, and rich when told on its second
    /// descriptor.
    fn counter(descriptors: Vec<OwnedFd>) {
        let [bound, purse] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = seqpacket::Mailbox::from_fd(&reactor, bound).unwrap();
        let mut purse = Some(purse);
        let mut waiting = None;
        let mut calls = 0;
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                calls += 1;
                let answer = format!("{} in call {calls}", call.descriptors());
                if call.bytes() == b"be poor" {
                    let (limit, purse) = (leave_descriptors(8), purse.take().unwrap());
                    waiting = Some(std::thread::spawn(move || {
                        assert_eq!(testing::receive_packet(&purse).unwrap().bytes, b"be rich");
                        drop(limit);
                    }));
                }
                let _ = call.answer(answer);
            }
        });
        waiting.unwrap().join().unwrap();
    }
}
