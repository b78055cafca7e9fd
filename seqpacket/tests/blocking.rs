//! Objects called without a reactor, served by another process on each driver: every outcome, windows,
//! deadlines, the death of the server, and several calls at a time. It knows nothing of packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Message, Reactor, WaitPolicy};
use seqpacket::blocking::{Object, Outgoing, PlainObject};
use seqpacket::{
    ANSWER_BYTES_DEFAULT, CallError, CallOptions, Incoming, Mailbox, MailboxOptions, ObjectOptions, Part,
    PlainMailbox, plain_data,
};
use support::{message_of, null};
use testing::{Census, Helper, helper, on_each_driver, only, start_helper};

const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(60);

/// The options a test asks its server for: calls at a time, bytes under way.
fn served_with(calls: u32, call_descriptors: u32) -> (Helper, Object) {
    let (address, bound) = testing::packet_pair();
    let argument = format!("{calls} {call_descriptors}");
    (start_helper!(server, vec![bound], argument), Object::from_fd(address).unwrap())
}

fn served() -> (Helper, Object) {
    served_with(256, 16)
}

fn plainly_served() -> (Helper, PlainObject) {
    let (address, mailbox) = testing::packet_pair();
    (start_helper!(plain_server, vec![mailbox]), PlainObject::from_fd(address).unwrap())
}

/// Both ways to say how long.
fn within(time: Duration) -> CallOptions {
    CallOptions { within: Some(time), ..CallOptions::default() }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

/// How the calls end at last when nobody is there any more. The kernel closes what a dead process had in its
/// ring in its own time, and until then calls are only dropped.
fn until_gone<T>(mut call: impl FnMut() -> Result<T, CallError>) -> CallError {
    loop {
        match call().map(drop) {
            Err(CallError::Dropped) => {}
            result => return result.unwrap_err(),
        }
    }
}

/// By this side's clock, or before that by the server's.
#[track_caller]
fn is_too_late(result: Result<seqpacket::blocking::Answer, CallError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, CallError::Deadline | CallError::Expired), "{error:?}");
}

#[track_caller]
fn echoes(object: &Object) {
    assert_eq!(object.call("still there?").unwrap().bytes(), b"still there?");
}

on_each_driver! {
    // Sessions: outcomes.

    fn a_call_is_answered(_reactor: &Reactor) {
        let (server, object) = served();
        assert!(!object.is_attached());
        assert_eq!(object.call("hello").unwrap().bytes(), b"hello");
        assert!(object.is_attached());
        assert_eq!(object.call("").unwrap().bytes(), b"");
        let number: u64 = object.call(plain_data(&42_u64)).unwrap().read().unwrap();
        assert_eq!(number, 42);
        assert!(matches!(object.call("three").unwrap().read::<u64>(), Err(CallError::Malformed(_))));
        drop(object);
        server.succeeded();
    }

    fn thousands_of_calls_leave_nothing_behind(_reactor: &Reactor) {
        let (_server, object) = served();
        object.attach().unwrap();
        let census = Census::take();
        for n in 0..3_000_u32 {
            assert_eq!(object.call(&n.to_le_bytes()).unwrap().bytes(), n.to_le_bytes());
        }
        census.unchanged();
    }

    fn a_spinning_caller_is_answered_like_a_sleeping_one(_reactor: &Reactor) {
        let (_server, object) = served();
        object.set_wait_policy(WaitPolicy::spin());
        for n in 0..500_u32 {
            assert_eq!(object.call(&n.to_le_bytes()).unwrap().bytes(), n.to_le_bytes());
        }
    }

    fn descriptors_travel_both_ways_and_nothing_is_left(_reactor: &Reactor) {
        let (_server, object) = served();
        object.attach().unwrap();
        let (reader, writer) = pipe();
        let census = Census::take();
        for _ in 0..20 {
            let message = Outgoing::from("two").lend(reader.as_fd()).lend(writer.as_fd());
            let mut answer = object.call(message).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&b"two"[..], 2));
            assert!(answer.take_descriptor().is_some());
        }
        census.unchanged();
        // What was given is closed here: the end of the pipe is seen although nobody else dropped it.
        drop(object.call(Outgoing::from("given").with_descriptor(writer)).unwrap());
        assert_eq!(std::fs::File::from(reader).read(&mut [0]).unwrap(), 0);
    }

    fn sixteen_descriptors_are_answered_and_seventeen_are_refused_here(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        let with = |count| (0..count).fold(Outgoing::from("many"), |message, _| message.lend(fd.as_fd()));
        assert_eq!(object.call(with(16)).unwrap().descriptors(), 16);
        assert!(matches!(object.call(with(17)), Err(CallError::TooLarge(Part::Call))));
        echoes(&object);
    }

    fn each_outcome_has_its_name(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        assert!(matches!(object.call("drop"), Err(CallError::Dropped)));
        assert!(matches!(object.call("refuse"), Err(CallError::Refused)));
        let little = CallOptions { answer_bytes: Some(3), ..CallOptions::default() };
        assert!(matches!(object.call_with("four", little), Err(CallError::TooLarge(Part::Answer))));
        assert_eq!(object.call_with("two", little).unwrap().bytes(), b"two");
        let none = CallOptions { answer_descriptors: Some(0), ..CallOptions::default() };
        let message = Outgoing::from("one").lend(fd.as_fd());
        assert!(matches!(object.call_with(message, none), Err(CallError::TooLarge(Part::Answer))));
        let more = CallOptions { answer_descriptors: Some(17), ..CallOptions::default() };
        assert!(matches!(object.call_with("one", more), Err(CallError::TooLarge(Part::Call))));
        echoes(&object);
    }

    fn a_grant_is_an_object_of_its_own(_reactor: &Reactor) {
        let (server, object) = served();
        let other = Object::from_fd(object.grant().unwrap()).unwrap();
        drop(object);
        echoes(&other);
        drop(other);
        server.succeeded();
    }

    fn an_object_is_passed_in_a_call_and_taken_from_an_answer(_reactor: &Reactor) {
        let (_server, object) = served();
        let mut answer = object.call(object.pass_in("this").unwrap()).unwrap();
        assert_eq!(answer.bytes(), b"this");
        let same = answer.take_object().unwrap();
        echoes(&same);
        echoes(&object);
    }

    fn a_server_that_has_gone_is_gone_and_a_silent_one_is_waited_for_in_vain(_reactor: &Reactor) {
        let (address, bound) = testing::packet_pair();
        let object = Object::from_fd(address).unwrap();
        assert!(matches!(object.attach_within(SHORT), Err(CallError::Deadline)));
        assert!(matches!(object.call_with("anyone?", within(SHORT)), Err(CallError::Deadline)));
        drop(bound);
        assert!(matches!(object.attach(), Err(CallError::Gone)));
        assert!(matches!(object.call("anyone?"), Err(CallError::Gone)));
    }

    // Deadlines.

    fn a_call_that_takes_too_long_is_withdrawn_and_its_number_is_not_confused(_reactor: &Reactor) {
        let (_server, object) = served();
        for _ in 0..5 {
            is_too_late(object.call_with("hold", within(SHORT)));
            echoes(&object);
        }
        assert!(matches!(object.call_with("late", within(Duration::ZERO)), Err(CallError::Deadline)));
        echoes(&object);
    }

    fn a_deadline_that_is_not_reached_changes_nothing(_reactor: &Reactor) {
        let (_server, object) = served();
        for time in [LONG, Duration::from_millis(90_000), Duration::MAX] {
            assert_eq!(object.call_with("in time", within(time)).unwrap().bytes(), b"in time");
        }
    }

    fn the_server_is_told_how_long_the_caller_waits(_reactor: &Reactor) {
        let (_server, object) = served();
        assert_eq!(object.call("patience").unwrap().read::<u64>().unwrap(), 0);
        let told: u64 = object.call_with("patience", within(LONG)).unwrap().read().unwrap();
        assert!((1..=60_000).contains(&told), "{told}");
    }

    fn an_answer_that_comes_after_its_deadline_is_swallowed(_reactor: &Reactor) {
        let (_server, object) = served();
        let (fd, other) = pipe();
        object.attach().unwrap();
        let census = Census::take();
        let message = Outgoing::from("after the next").lend(fd.as_fd());
        is_too_late(object.call_with(message, within(SHORT)));
        for _ in 0..3 {
            echoes(&object);
        }
        census.unchanged();
        drop((fd, other));
    }

    // Several at a time.

    fn many_calls_are_answered_in_the_order_they_were_made(_reactor: &Reactor) {
        let (_server, object) = served();
        let numbers: Vec<[u8; 4]> = (0..1_000_u32).map(u32::to_le_bytes).collect();
        let answers = object.call_many(&numbers);
        assert_eq!(answers.len(), numbers.len());
        for (answer, number) in answers.into_iter().zip(numbers) {
            assert_eq!(answer.unwrap().bytes(), number);
        }
    }

    fn calls_of_every_kind_mix_in_one_batch(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        let messages = vec![
            Outgoing::from("first"),
            Outgoing::from("second").lend(fd.as_fd()),
            Outgoing::from("drop"),
            Outgoing::from(vec![7; ANSWER_BYTES_DEFAULT]),
            Outgoing::from(vec![8; ANSWER_BYTES_DEFAULT]),
            Outgoing::from("third").lend(fd.as_fd()),
            Outgoing::from("refuse"),
            Outgoing::from("last"),
        ];
        let answers = object.call_many(messages);
        let told: Vec<_> = answers
            .iter()
            .map(|answer| match answer {
                Ok(answer) => format!("{} and {}", answer.bytes().len(), answer.descriptors()),
                Err(error) => format!("{error:?}"),
            })
            .collect();
        let expected =
            ["5 and 0", "6 and 1", "Dropped", "65536 and 0", "65536 and 0", "5 and 1", "Refused", "4 and 0"];
        assert_eq!(told, expected);
        echoes(&object);
    }

    fn begun_calls_are_finished_in_any_order(_reactor: &Reactor) {
        let (_server, object) = served();
        let first = object.begin("first").unwrap();
        let second = object.begin("second").unwrap();
        let third = object.begin("third").unwrap();
        assert_eq!(third.finish().unwrap().bytes(), b"third");
        echoes(&object);
        assert_eq!(first.finish().unwrap().bytes(), b"first");
        assert_eq!(second.finish().unwrap().bytes(), b"second");
    }

    fn a_begun_call_that_is_dropped_is_withdrawn(_reactor: &Reactor) {
        let (_server, object) = served();
        drop(object.begin("never sent").unwrap());
        let held = object.begin("hold").unwrap();
        object.flush().unwrap();
        drop(held);
        assert_eq!(object.call("withdrawn").unwrap().read::<u64>().unwrap(), 2 - 1);
        echoes(&object);
    }

    fn begun_calls_that_are_dropped_one_after_the_other_need_no_more_room(_reactor: &Reactor) {
        let (_server, object) = served_with(4, 16);
        for _ in 0..200 {
            drop(object.begin("again").unwrap());
        }
        echoes(&object);
    }

    // Windows.

    fn with_a_window_of_one_call_many_go_one_after_the_other(_reactor: &Reactor) {
        let (_server, object) = served_with(1, 16);
        let answers = object.call_many((0..50_u32).map(|n| n.to_le_bytes().to_vec()));
        for (n, answer) in (0..50_u32).zip(answers) {
            assert_eq!(answer.unwrap().bytes(), n.to_le_bytes());
        }
    }

    fn a_full_window_is_waited_for_until_the_deadline(_reactor: &Reactor) {
        let (_server, object) = served_with(1, 16);
        let held = object.begin("hold").unwrap();
        assert!(matches!(object.begin_with("no room", within(SHORT)), Err(CallError::Deadline)));
        drop(held);
        echoes(&object);
    }

    fn a_call_with_more_descriptors_than_the_server_takes_is_refused_here(_reactor: &Reactor) {
        let (_server, object) = served_with(4, 1);
        let fd = null();
        let two = Outgoing::from("two").lend(fd.as_fd()).lend(fd.as_fd());
        assert!(matches!(object.call(two), Err(CallError::TooLarge(Part::Call))));
        assert_eq!(object.call(Outgoing::from("one").lend(fd.as_fd())).unwrap().descriptors(), 1);
    }

    fn descriptors_of_answers_are_bounded_together(_reactor: &Reactor) {
        let (address, bound) = testing::packet_pair();
        let _server = start_helper!(server, vec![bound], "256 16");
        let options = ObjectOptions { answer_descriptors_together: 20, ..ObjectOptions::default() };
        let object = Object::from_fd_with(address, options).unwrap();
        for answer in object.call_many((0..20).map(|_| "sixteen at most")) {
            assert_eq!(answer.unwrap().bytes(), b"sixteen at most");
        }
    }

    /// Both directions full of the largest messages there is room for: nobody stops reading because it cannot
    /// write.
    fn full_queues_both_ways_stop_nobody(_reactor: &Reactor) {
        let (_server, object) = served();
        let largest = vec![7; ANSWER_BYTES_DEFAULT];
        let answers = object.call_many((0..200).map(|_| &largest));
        assert!(answers.into_iter().all(|answer| answer.unwrap().bytes() == largest));
    }

    // Large messages.

    fn large_messages_go_both_ways_with_their_descriptors(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        for bytes in [102_064, 102_065, 102_016 * 2, 102_016 * 2 + 1, 3 << 20, 33 << 20] {
            let large: Vec<u8> = (0..bytes).map(|n| (n / 5) as u8).collect();
            let options = CallOptions { answer_bytes: Some(bytes), ..CallOptions::default() };
            let answer = object.call_with(Outgoing::from(&large).lend(fd.as_fd()), options).unwrap();
            assert_eq!(answer.descriptors(), 1);
            assert!(answer.bytes() == large, "{bytes}");
        }
        echoes(&object);
    }

    fn a_large_answer_without_room_is_too_large(_reactor: &Reactor) {
        let (_server, object) = served();
        let large = vec![7; 150_000];
        assert!(matches!(object.call(&large), Err(CallError::TooLarge(Part::Answer))));
        let less = CallOptions { answer_bytes: Some(149_999), ..CallOptions::default() };
        assert!(matches!(object.call_with(&large, less), Err(CallError::TooLarge(Part::Answer))));
        let enough = CallOptions { answer_bytes: Some(150_000), ..CallOptions::default() };
        assert_eq!(object.call_with(&large, enough).unwrap().bytes().len(), 150_000);
    }

    fn large_calls_with_a_deadline_are_answered_in_time_or_withdrawn(_reactor: &Reactor) {
        let (_server, object) = served();
        let large = vec![7; 1 << 20];
        let options = CallOptions { answer_bytes: Some(1 << 20), ..within(LONG) };
        assert_eq!(object.call_with(&large, options).unwrap().bytes().len(), 1 << 20);
        for _ in 0..10 {
            let hasty = CallOptions { within: Some(Duration::from_micros(300)), ..options };
            let _ = object.call_with(&large, hasty);
            echoes(&object);
        }
    }

    fn large_and_small_calls_mix_in_one_batch(_reactor: &Reactor) {
        let (_server, object) = served();
        let large = vec![7; 300_000];
        let options = CallOptions { answer_bytes: Some(300_000), ..CallOptions::default() };
        let begun: Vec<_> = (0..12)
            .map(|n| if n % 3 == 0 { object.begin_with(&large, options) } else { object.begin("small") })
            .collect();
        for (n, pending) in begun.into_iter().enumerate() {
            let bytes = if n % 3 == 0 { 300_000 } else { 5 };
            assert_eq!(pending.unwrap().finish().unwrap().bytes().len(), bytes, "{n}");
        }
    }

    fn a_server_that_dies_in_the_middle_of_large_messages_drops_them(_reactor: &Reactor) {
        let (mut server, object) = served();
        echoes(&object);
        let large = vec![7; 8 << 20];
        let options = CallOptions { answer_bytes: Some(8 << 20), ..CallOptions::default() };
        let held = object.begin_with(&large, options).unwrap();
        server.kill();
        assert!(matches!(held.finish(), Err(CallError::Dropped)));
        assert!(matches!(until_gone(|| object.call(&large)), CallError::Gone));
    }

    // Ends.

    fn a_server_that_dies_drops_its_calls_and_the_next_call_says_gone(_reactor: &Reactor) {
        let (mut server, object) = served();
        let held = object.begin("hold").unwrap();
        echoes(&object);
        server.kill();
        assert!(matches!(held.finish(), Err(CallError::Dropped)));
        assert!(matches!(object.call("anyone?"), Err(CallError::Gone)));
        assert!(!object.is_attached());
    }

    fn after_the_death_of_one_server_the_next_takes_over_without_a_word(_reactor: &Reactor) {
        let (address, bound) = testing::packet_pair();
        let spare = bound.try_clone().unwrap();
        let mut first = start_helper!(server, vec![bound], "256 16");
        let object = Object::from_fd(address).unwrap();
        let before: u64 = object.call("pid").unwrap().read().unwrap();
        assert_eq!(before, first.pid() as u64);
        first.kill();
        let second = start_helper!(server, vec![spare], "256 16");
        // The kernel closes what a dead process had in its ring in its own time.
        let answer = loop {
            match object.call("pid") {
                Err(CallError::Dropped) => {}
                result => break result,
            }
        };
        assert_eq!(answer.unwrap().read::<u64>().unwrap(), second.pid() as u64);
        drop(second);
    }

    fn a_server_that_leaves_answers_what_it_has_and_takes_no_more(_reactor: &Reactor) {
        let (server, object) = served();
        let held = object.begin("answer when you leave").unwrap();
        echoes(&object);
        let held_too = object.begin("answer when you leave").unwrap();
        object.flush().unwrap();
        assert_eq!(object.call("leave").unwrap().bytes(), b"leaving");
        assert_eq!(held.finish().unwrap().bytes(), b"answer when you leave");
        assert_eq!(held_too.finish().unwrap().bytes(), b"answer when you leave");
        assert!(matches!(object.call("one more"), Err(CallError::Gone)));
        drop(object);
        server.succeeded();
    }

    fn a_server_that_leaves_while_nobody_calls_is_noticed_by_the_next_call(_reactor: &Reactor) {
        let (server, object) = served();
        object.attach().unwrap();
        let other = object.try_clone().unwrap();
        assert_eq!(other.call("leave").unwrap().bytes(), b"leaving");
        assert!(matches!(object.call("one more"), Err(CallError::Gone)));
        assert!(other.call_many(["a", "b"]).iter().all(|end| matches!(end, Err(CallError::Gone))));
        drop((object, other));
        server.succeeded();
    }

    fn dropping_the_object_ends_the_session(_reactor: &Reactor) {
        let (server, object) = served();
        drop(object.begin("hold").unwrap());
        let clone = object.try_clone().unwrap();
        echoes(&clone);
        drop(object);
        echoes(&clone);
        drop(clone);
        server.succeeded();
    }

    fn without_descriptors_for_a_session_nothing_is_sent(_reactor: &Reactor) {
        let (_server, object) = served();
        let limit = testing::leave_descriptors(1);
        assert!(matches!(object.call("hello"), Err(CallError::OutOfDescriptors(Part::Call))));
        drop(limit);
        echoes(&object);
    }

    fn descriptors_of_an_answer_that_find_no_room_are_lost_with_a_name(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        object.attach().unwrap();
        let limit = testing::leave_descriptors(1);
        let two = Outgoing::from("two").lend(fd.as_fd()).lend(fd.as_fd());
        assert!(matches!(object.call(two), Err(CallError::DescriptorsLost(Part::Answer))));
        drop(limit);
        echoes(&object);
    }

    fn a_call_whose_descriptors_cannot_be_sent_is_none_and_the_next_is(_reactor: &Reactor) {
        let (_server, object) = served();
        object.attach().unwrap();
        let fd = null();
        let crowd = testing::too_many_in_flight();
        let error = object.call(Outgoing::from("one").lend(fd.as_fd())).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        echoes(&object);
        drop(crowd);
    }

    // Plain objects.

    fn a_plain_call_is_answered(_reactor: &Reactor) {
        let (server, object) = plainly_served();
        for wait in [WaitPolicy::Sleep, WaitPolicy::spin()] {
            object.set_wait_policy(wait);
            for n in 0..200_u32 {
                assert_eq!(object.call(&n.to_le_bytes()).unwrap().bytes(), n.to_le_bytes());
            }
        }
        let largest = vec![7; 102_080];
        assert_eq!(object.call(&largest).unwrap().bytes(), largest);
        drop(object);
        server.succeeded();
    }

    fn plain_arguments_come_back_in_order_and_nothing_is_left(_reactor: &Reactor) {
        let (_server, object) = plainly_served();
        let (reader, writer) = pipe();
        object.call("first").unwrap();
        let census = Census::take();
        for _ in 0..20 {
            let message = Outgoing::from("two").lend(reader.as_fd()).lend(writer.as_fd());
            assert_eq!(object.call(message).unwrap().descriptors(), 2);
        }
        // But for the near end of the last call, which takes the place of the one before.
        assert_eq!(Census::take().len(), census.len());
    }

    fn each_plain_outcome_has_its_name(_reactor: &Reactor) {
        let (mut server, object) = plainly_served();
        let fd = null();
        assert!(matches!(object.call("drop"), Err(CallError::Dropped)));
        assert!(matches!(object.call(""), Err(CallError::Malformed(_))));
        assert!(matches!(object.call(vec![7; 102_081]), Err(CallError::TooLarge(Part::Call))));
        let with = |count| (0..count).fold(Outgoing::from("many"), |message, _| message.lend(fd.as_fd()));
        assert!(matches!(object.call(with(253)), Err(CallError::TooLarge(Part::Call))));
        assert!(matches!(object.call_within("hold", SHORT), Err(CallError::Deadline)));
        object.set_answer_descriptors(1);
        assert!(matches!(object.call(with(2)), Err(CallError::DescriptorsLost(Part::Answer))));
        assert_eq!(object.call_within(with(1), LONG).unwrap().descriptors(), 1);
        let held = object.begin("hold").unwrap();
        server.kill();
        assert!(matches!(held.finish(), Err(CallError::Dropped)));
        assert!(matches!(until_gone(|| object.call("anyone?")), CallError::Gone));
    }

    fn a_large_plain_answer_is_put_together(_reactor: &Reactor) {
        let (_server, object) = plainly_served();
        for bytes in [0_u64, 102_064, 102_065, 1 << 20] {
            let mut answer = object.call_large(plain_data(&bytes)).unwrap();
            assert_eq!((answer.bytes().len() as u64, answer.descriptors()), (bytes, 1));
            drop(answer.take_descriptor());
        }
        object.set_large_answer_bytes(150_000);
        assert_eq!(object.call_large(plain_data(&150_000_u64)).unwrap().bytes().len(), 150_000);
        let error = object.call_large(plain_data(&150_001_u64)).unwrap_err();
        assert!(matches!(error, CallError::TooLarge(Part::Answer)), "{error:?}");
        assert!(matches!(object.call_large("no large one"), Err(CallError::Malformed(_))));
        assert!(matches!(object.call_large("drop"), Err(CallError::Dropped)));
        assert!(matches!(object.call_large_within("hold", SHORT), Err(CallError::Deadline)));
    }

    fn a_plain_call_that_is_dropped_is_withdrawn(_reactor: &Reactor) {
        let (_server, object) = plainly_served();
        drop(object.begin("tell me when I go").unwrap());
        assert!(matches!(object.call_within("tell me when I go", SHORT), Err(CallError::Deadline)));
        assert_eq!(object.call_within("both gone?", LONG).unwrap().bytes(), b"both gone");
    }

    fn plain_calls_are_finished_in_any_order(_reactor: &Reactor) {
        let (_server, object) = plainly_served();
        let other = object.try_clone().unwrap();
        let begun: Vec<_> =
            (0..50_u32).map(|n| (n, object.begin(n.to_le_bytes().to_vec()).unwrap())).collect();
        assert_eq!(other.call("meanwhile").unwrap().bytes(), b"meanwhile");
        for (n, pending) in begun.into_iter().rev() {
            assert_eq!(pending.finish().unwrap().bytes(), n.to_le_bytes());
        }
    }
}

fn echo(call: Incoming) {
    let (bytes, descriptors, continuation) = call.into_parts();
    let _ = continuation.answer(message_of(bytes, descriptors));
}

helper! {
    /// Does what each call says, and echoes those that say nothing else.
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let argument = testing::helper_argument();
        let (calls, call_descriptors) = argument.split_once(' ').unwrap();
        let options = MailboxOptions {
            calls: calls.parse().unwrap(),
            call_descriptors: call_descriptors.parse().unwrap(),
            ..MailboxOptions::default()
        };
        let mailbox = Mailbox::from_fd_with(&reactor, only(descriptors), options).unwrap();
        let executor = Executor::new(&reactor);
        let spawner = executor.spawner();
        let (holding, withdrawn) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
        let mut later: Vec<Incoming> = Vec::new();
        executor.block_on(async {
            while let Some(call) = mailbox.next().await {
                if !call.bytes().starts_with(b"answer") {
                    later.drain(..).for_each(echo);
                }
                match call.bytes() {
                    b"drop" => drop(call),
                    b"refuse" => call.refuse(),
                    b"hold" => {
                        holding.set(holding.get() + 1);
                        let (holding, withdrawn) = (Rc::clone(&holding), Rc::clone(&withdrawn));
                        spawner.spawn(async move {
                            call.continuation().cancelled().await;
                            holding.set(holding.get() - 1);
                            withdrawn.set(withdrawn.get() + 1);
                        });
                    }
                    b"answer when you leave" | b"after the next" => later.push(call),
                    b"pid" => drop(call.answer(plain_data(&u64::from(std::process::id())))),
                    b"patience" => {
                        let left = call.deadline().map(|moment| moment - reactor.now());
                        let left = left.map_or(0, |left| left.as_millis() as u64);
                        let _ = call.answer(plain_data(&left));
                    }
                    b"withdrawn" => {
                        while holding.get() > 0 {
                            reactor.sleep(SHORT).await;
                        }
                        let _ = call.answer(plain_data(&withdrawn.get()));
                    }
                    b"leave" => {
                        let _ = call.answer("leaving");
                        later.drain(..).for_each(echo);
                        return mailbox.leave(LONG).await;
                    }
                    _ => echo(call),
                }
            }
        });
    }

    /// The same for plain calls.
    fn plain_server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut held = Vec::new();
        Executor::new(&reactor).block_on(async move {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"drop" => drop(call),
                    b"hold" | b"tell me when I go" => held.push(call.into_continuation()),
                    [_, _, _, _, _, _, _, _] => {
                        let bytes: u64 = call.read().unwrap();
                        let answer = Message::new(vec![7; bytes as usize]).with_descriptor(null());
                        let _ = call.into_continuation().answer_large(answer).await;
                    }
                    b"both gone?" => {
                        for continuation in &held {
                            continuation.cancelled().await;
                        }
                        let _ = call.answer("both gone");
                    }
                    _ => {
                        let (bytes, descriptors, continuation) = call.into_parts();
                        let answer: Message = message_of(bytes, descriptors);
                        let _ = continuation.answer(answer);
                    }
                }
            }
        });
    }
}
