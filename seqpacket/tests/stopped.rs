//! Peers that are stopped (SIGSTOP) and go on (SIGCONT): what is asked of them waits, time limits hold,
//! others are served meanwhile, and afterwards everything arrives once. It knows nothing of peers that die;
//! that is in `deaths.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::{
    CallError, CallOptions, Mailbox, Object, PlainContinuation, PlainMailbox, PlainObject, blocking, object,
};
use support::{attached, echo, message_of, null, plain_echo, until};
use testing::{Helper, helper, on_each_driver, only, settle, start_helper};

/// More calls than a session has under way at a time.
const MANY: u32 = 600;

/// What a test that fails would wait for.
const SOON: Duration = Duration::from_millis(20);

helper! {
    /// Answers each call with its own bytes and descriptors.
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, echo(mailbox));
    }

    /// As that one, of a plain object.
    fn plain_server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, plain_echo(mailbox));
    }

    /// Makes many calls at once, and insists on the answer of each.
    fn client(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let object = Object::from_fd(&reactor, only(descriptors)).unwrap();
        for round in 0..5 {
            all_are_answered(&executor, many_calls(&object, round));
        }
    }

    /// Answers for others, whose continuations it is sent.
    fn deputy(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            while let Some(mut errand) = mailbox.next().await {
                let fd = errand.take_descriptor().unwrap();
                let _ = PlainContinuation::from_fd(&reactor, fd).unwrap().answer("says the deputy");
                let _ = errand.answer("done");
            }
        });
    }
}

fn served(reactor: &Reactor) -> (Object, Helper) {
    let (bound, address) = testing::packet_pair();
    (Object::from_fd(reactor, address).unwrap(), start_helper!(server, vec![bound]))
}

fn plainly_served(reactor: &Reactor) -> (PlainObject, Helper) {
    let (bound, address) = testing::packet_pair();
    (PlainObject::from_fd(reactor, address).unwrap(), start_helper!(plain_server, vec![bound]))
}

/// Each with a number of its own, and some with a descriptor.
fn many_calls(object: &Object, round: u32) -> Vec<(u32, seqpacket::Call)> {
    let call = |n: u32| {
        let message = Message::new((round * MANY + n).to_le_bytes());
        object.call(if n.is_multiple_of(10) { message.with_descriptor(null()) } else { message })
    };
    (0..MANY).map(|n| (n, call(n))).map(|(n, call)| (round * MANY + n, call)).collect()
}

#[track_caller]
fn all_are_answered(executor: &Executor, calls: Vec<(u32, seqpacket::Call)>) {
    for (n, call) in calls {
        let answer = executor.block_on(call).unwrap();
        assert_eq!(answer.bytes(), n.to_le_bytes());
        assert_eq!(answer.descriptors(), usize::from(n.is_multiple_of(10)));
    }
}

#[track_caller]
fn echoes(executor: &Executor, object: &Object) {
    let mut answer = executor.block_on(object.call(Message::from("still?").with_descriptor(null()))).unwrap();
    assert_eq!(answer.bytes(), b"still?");
    assert!(answer.take_descriptor().is_some());
}

#[track_caller]
fn ends(executor: &Executor, server: Helper) {
    executor.settle();
    server.succeeded();
}

fn within(time: Duration) -> CallOptions {
    CallOptions { within: Some(time), ..CallOptions::default() }
}

on_each_driver! {
    fn calls_to_a_stopped_server_wait_and_are_answered_once_when_it_goes_on(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = served(reactor);
        echoes(&executor, &object);
        server.stop();
        let calls = many_calls(&object, 0);
        executor.settle();
        assert_eq!(object.stats().calls.answered, 1);
        server.resume();
        all_are_answered(&executor, calls);
        let calls = object.stats().calls;
        assert_eq!((calls.begun, calls.answered), (u64::from(MANY) + 1, u64::from(MANY) + 1));
        drop(object);
        ends(&executor, server);
    }

    /// And nothing of what was asked for is repeated, skipped or answered for another.
    fn a_server_that_is_stopped_again_and_again_answers_each_call_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = served(reactor);
        for round in 0..5 {
            let calls = many_calls(&object, round);
            executor.settle();
            server.stop();
            executor.settle();
            server.resume();
            executor.settle();
            server.stop();
            server.resume();
            all_are_answered(&executor, calls);
        }
        drop(object);
        ends(&executor, server);
    }

    fn a_time_limit_holds_although_the_server_is_stopped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = served(reactor);
        echoes(&executor, &object);
        server.stop();
        let late = object.call_with(Message::from("late").with_descriptor(null()), within(SOON));
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        assert!(object.is_attached());
        server.resume();
        echoes(&executor, &object);
        drop(object);
        ends(&executor, server);
    }

    fn a_stopped_server_is_attached_to_when_it_goes_on(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = served(reactor);
        server.stop();
        let late = object.call_with("late", within(SOON));
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        let waits = object.call("waits");
        executor.settle();
        assert!(!object.is_attached());
        server.resume();
        assert_eq!(executor.block_on(waits).unwrap().bytes(), b"waits");
        drop(object);
        ends(&executor, server);
    }

    fn others_are_called_while_one_is_stopped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (stopped, stopped_server) = served(reactor);
        let (other, other_server) = served(reactor);
        echoes(&executor, &stopped);
        stopped_server.stop();
        let waiting = many_calls(&stopped, 0);
        all_are_answered(&executor, many_calls(&other, 1));
        assert_eq!(stopped.stats().calls.answered, 1);
        stopped_server.resume();
        all_are_answered(&executor, waiting);
        drop((stopped, other));
        ends(&executor, stopped_server);
        other_server.succeeded();
    }

    /// Each session has its windows, and what is beyond them has not left.
    fn no_more_than_a_window_is_sent_to_a_server_that_is_stopped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = served(reactor);
        echoes(&executor, &object);
        let (window, _) = object.windows().unwrap();
        server.stop();
        let calls = many_calls(&object, 0);
        executor.settle();
        assert_eq!(object.stats().calls.begun - 1, u64::from(window.calls));
        assert!(matches!(object.try_call("now?"), Err(CallError::WouldBlock)));
        server.resume();
        all_are_answered(&executor, calls);
        drop(object);
        ends(&executor, server);
    }

    fn others_are_served_while_a_client_is_stopped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let served = Rc::new(Cell::new(0_u64));
        let (serves, counts) = (Rc::clone(&mailbox), Rc::clone(&served));
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                counts.set(counts.get() + 1);
                let (bytes, descriptors, continuation) = call.into_parts();
                let _ = continuation.answer(message_of(bytes, descriptors));
            }
        });
        let stranger = start_helper!(client, vec![object.share().unwrap()]);
        until(&executor, "some of its calls are served", || served.get() > 10);
        stranger.stop();
        let object = attached(&executor, object);
        all_are_answered(&executor, many_calls(&object, 7));
        stranger.resume();
        until(&executor, "its session is over", || mailbox.sessions() == 1);
        stranger.succeeded();
        assert_eq!(mailbox.violations(), Default::default());
        assert_eq!(served.get(), u64::from(MANY) * 6);
        drop(object);
    }

    fn a_call_that_a_stopped_third_process_has_keeps_to_its_time(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (deputy_bound, deputy_address) = testing::packet_pair();
        let helper = start_helper!(deputy, vec![deputy_bound]);
        let deputy = Object::from_fd(reactor, deputy_address).unwrap();
        let (object, mailbox) = object(reactor).unwrap();
        let errands = deputy.clone();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                if call.bytes() == b"yourself" {
                    let _ = call.answer("here");
                    continue;
                }
                let continuation = call.into_parts().2.into_fd().unwrap();
                // Whether it has understood is of no interest here.
                drop(errands.call(Message::from("for me").with_descriptor(continuation)).await);
            }
        });
        assert_eq!(executor.block_on(object.call("first")).unwrap().bytes(), b"says the deputy");
        helper.stop();
        let late = object.call_with("late", within(SOON));
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        helper.resume();
        assert_eq!(executor.block_on(object.call("again")).unwrap().bytes(), b"says the deputy");
        assert_eq!(executor.block_on(object.call("yourself")).unwrap().bytes(), b"here");
        drop((object, deputy));
        ends(&executor, helper);
    }

    fn plain_calls_to_a_stopped_server_wait_and_are_answered_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = plainly_served(reactor);
        assert_eq!(executor.block_on(object.call("there?")).unwrap().bytes(), b"there?");
        server.stop();
        let calls: Vec<_> = (0..MANY).map(|n| (n, object.call(Message::new(n.to_le_bytes())))).collect();
        let late = object.call("late").within(SOON);
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        server.resume();
        for (n, call) in calls {
            assert_eq!(executor.block_on(call).unwrap().bytes(), n.to_le_bytes());
        }
        drop(object);
        ends(&executor, server);
    }

    fn a_blocking_client_keeps_to_its_time_and_is_answered_afterwards(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let server = start_helper!(server, vec![bound]);
        let object = blocking::Object::from_fd(address).unwrap();
        assert_eq!(object.call("there?").unwrap().bytes(), b"there?");
        server.stop();
        let late = object.call_with("late", within(SOON));
        assert!(matches!(late, Err(CallError::Deadline)));
        let begun = object.begin("waits").unwrap();
        object.flush().unwrap();
        server.resume();
        assert_eq!(begun.finish().unwrap().bytes(), b"waits");
        assert_eq!(object.call("there?").unwrap().bytes(), b"there?");
        drop(object);
        ends(&executor, server);
    }
}
