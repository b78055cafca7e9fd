//! Objects, mailboxes and continuations in a forked child: each verb is refused by name, nothing is said to
//! anybody, and the parent's calls and sessions notice nothing. It knows nothing of blocking handles, which a
//! child may use (`blocking_forks.rs`).
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;

use ring::{Executor, Message, Reactor};
use seqpacket::{
    AnswerError, CallError, CallOptions, Mailbox, Object, Pairs, PlainMailbox, PlainObject, object,
};
use support::{attached, echo, message_of, null, until};
use testing::{Helper, fork, helper, on_each_driver, only, settle, start_helper};

helper! {
    /// Answers each call with its own bytes and descriptors; those that say "later" after the next one.
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            let mut later = None;
            while let Some(call) = mailbox.next().await {
                let put_off = call.bytes() == b"later";
                let (bytes, descriptors, continuation) = call.into_parts();
                if put_off {
                    later = Some((message_of(bytes, descriptors), continuation));
                    continue;
                }
                if let Some((message, continuation)) = later.take() {
                    let _ = continuation.answer(message);
                }
                let _ = continuation.answer(message_of(bytes, descriptors));
            }
            // A child that kept a copy of a session would keep this from coming.
        });
    }

    /// As that one, of a plain object.
    fn plain_server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            let mut later = None;
            while let Some(call) = mailbox.next().await {
                let put_off = call.bytes() == b"later";
                let (bytes, descriptors, continuation) = call.into_parts();
                if put_off {
                    later = Some((message_of(bytes, descriptors), continuation));
                    continue;
                }
                if let Some((message, continuation)) = later.take() {
                    let _ = continuation.answer(message);
                }
                let _ = continuation.answer(message_of(bytes, descriptors));
            }
        });
    }

    /// Forks with each call in hand. The child answers it, drops it and leaves; then the parent answers.
    fn forks_with_each_call(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut mailbox = Some(mailbox);
        settle(&reactor, async {
            while let Some(call) = mailbox.as_ref().unwrap().next().await {
                let (bytes, descriptors, continuation) = call.into_parts();
                let mut continuation = Some(continuation);
                fork(|| {
                    assert!(matches!(continuation.take().unwrap().answer("child"), Err(AnswerError::Forked)));
                    drop(mailbox.take());
                })
                .succeeded();
                fork(|| drop((continuation.take(), mailbox.take()))).succeeded();
                fork(|| {
                    let handed_on = continuation.take().unwrap().into_fd();
                    assert!(matches!(handed_on, Err(AnswerError::Forked)));
                })
                .succeeded();
                let _ = continuation.unwrap().answer(message_of(bytes, descriptors));
            }
        });
    }

    /// As that one, of a plain object.
    fn plainly_forks_with_each_call(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut mailbox = Some(mailbox);
        settle(&reactor, async {
            while let Some(call) = mailbox.as_ref().unwrap().next().await {
                let (bytes, descriptors, continuation) = call.into_parts();
                let mut continuation = Some(continuation);
                fork(|| {
                    assert!(matches!(continuation.take().unwrap().answer("child"), Err(AnswerError::Forked)));
                })
                .succeeded();
                fork(|| {
                    let tried = continuation.take().unwrap().try_answer("child");
                    assert!(matches!(tried, Err((AnswerError::Forked, _))));
                })
                .succeeded();
                fork(|| {
                    let returned = continuation.take().unwrap().answer_and_return("child");
                    assert!(matches!(returned, Err(AnswerError::Forked)));
                })
                .succeeded();
                fork(|| drop((continuation.take(), mailbox.take()))).succeeded();
                let _ = continuation.unwrap().answer(message_of(bytes, descriptors));
            }
        });
    }
}

fn served(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (Object, Helper) {
    let (bound, address) = testing::packet_pair();
    (Object::from_fd(reactor, address).unwrap(), start(vec![bound]))
}

fn plainly_served(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (PlainObject, Helper) {
    let (bound, address) = testing::packet_pair();
    (PlainObject::from_fd(reactor, address).unwrap(), start(vec![bound]))
}

#[track_caller]
fn echoes(executor: &Executor, object: &Object) {
    for n in 0..10_u32 {
        let call = object.call(Message::new(n.to_le_bytes()).with_descriptor(null()));
        let mut answer = executor.block_on(call).unwrap();
        assert_eq!(answer.bytes(), n.to_le_bytes());
        assert!(answer.take_descriptor().is_some());
    }
}

#[track_caller]
fn plainly_echoes(executor: &Executor, object: &PlainObject) {
    for n in 0..10_u32 {
        let call = object.call(Message::new(n.to_le_bytes()).with_descriptor(null()));
        let mut answer = executor.block_on(call).unwrap();
        assert_eq!(answer.bytes(), n.to_le_bytes());
        assert!(answer.take_descriptor().is_some());
    }
}

on_each_driver! {
    fn a_child_that_calls_is_refused_and_the_parents_session_goes_on(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(server, end));
        let executor = Executor::new(reactor);
        echoes(&executor, &object);
        fork(|| {
            for _ in 0..3 {
                let call = object.call(Message::from("not for you").with_descriptor(null()));
                assert!(matches!(executor.block_on(call), Err(CallError::Forked)));
                assert!(matches!(executor.block_on(object.grant()), Err(CallError::Forked)));
                let large = object.call(vec![0; 300_000]);
                assert!(matches!(executor.block_on(large), Err(CallError::Forked)));
                let now = object.try_call("now").map(|call| executor.block_on(call));
                assert!(matches!(now, Err(CallError::Forked) | Ok(Err(CallError::Forked))));
            }
        })
        .succeeded();
        assert!(object.is_attached());
        echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn a_child_cannot_attach_either(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(server, end));
        let executor = Executor::new(reactor);
        fork(|| {
            assert!(matches!(executor.block_on(object.attach()), Err(CallError::Forked)));
            assert!(matches!(executor.block_on(object.call("hello")), Err(CallError::Forked)));
        })
        .succeeded();
        echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    /// On its way, unsent, or waited for by nobody yet.
    fn calls_under_way_are_the_parents(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(server, end));
        let executor = Executor::new(reactor);
        echoes(&executor, &object);
        // Nothing of it is answered before the fork.
        server.stop();
        let roomy = CallOptions { answer_bytes: Some(200_000), ..CallOptions::default() };
        let mut calls = Some((
            object.call(Message::from("later").with_descriptor(null())),
            object.call_with(vec![7; 200_000], roomy),
        ));
        executor.settle();
        let mut unsent = Some(object.call("unsent"));
        fork(|| {
            let (later, large) = calls.take().unwrap();
            assert!(matches!(executor.block_on(unsent.take().unwrap()), Err(CallError::Forked)));
            assert!(matches!(executor.block_on(large), Err(CallError::Forked)));
            drop(later);
        })
        .succeeded();
        fork(|| drop((calls.take(), unsent.take()))).succeeded();
        server.resume();
        let (later, large) = calls.unwrap();
        assert_eq!(executor.block_on(large).unwrap().bytes(), vec![7; 200_000]);
        assert_eq!(executor.block_on(unsent.unwrap()).unwrap().bytes(), b"unsent");
        let mut later = executor.block_on(later).unwrap();
        assert_eq!(later.bytes(), b"later");
        assert!(later.take_descriptor().is_some());
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn a_child_drops_an_object_without_a_word(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(server, end));
        let executor = Executor::new(reactor);
        echoes(&executor, &object);
        let mut inherited = Some(object);
        fork(|| drop(inherited.take())).succeeded();
        let object = inherited.unwrap();
        assert!(object.is_attached());
        echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn a_child_shares_an_address_with_a_reactor_of_its_own(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(server, end));
        let executor = Executor::new(reactor);
        echoes(&executor, &object);
        fork(|| {
            let here = testing::reactor();
            let own = Object::from_fd(&here, object.share().unwrap()).unwrap();
            echoes(&Executor::new(&here), &own);
            assert!(matches!(executor.block_on(object.call("hello")), Err(CallError::Forked)));
        })
        .succeeded();
        echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn a_server_that_forks_with_a_call_in_hand_answers_it(reactor: &Reactor) {
        let (object, server) = served(reactor, |end| start_helper!(forks_with_each_call, end));
        let executor = Executor::new(reactor);
        echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn a_mailbox_says_in_a_child_that_nobody_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let object = attached(&executor, object);
        fork(|| {
            assert!(executor.block_on(mailbox.next()).is_none());
            assert!(mailbox.grant().is_err());
        })
        .succeeded();
        executor.spawn(echo(mailbox));
        echoes(&executor, &object);
    }

    fn plain_calls_in_a_child_are_refused_and_the_parents_go_on(reactor: &Reactor) {
        let (object, server) = plainly_served(reactor, |end| start_helper!(plain_server, end));
        let executor = Executor::new(reactor);
        plainly_echoes(&executor, &object);
        let mut later = Some(object.call(Message::from("later").with_descriptor(null())));
        executor.settle();
        fork(|| {
            for _ in 0..3 {
                let call = object.call(Message::from("not for you").with_descriptor(null()));
                assert!(matches!(executor.block_on(call), Err(CallError::Forked)));
            }
            assert!(matches!(executor.block_on(later.take().unwrap()), Err(CallError::Forked)));
        })
        .succeeded();
        fork(|| drop(later.take())).succeeded();
        plainly_echoes(&executor, &object);
        let mut answer = executor.block_on(later.unwrap()).unwrap();
        assert_eq!(answer.bytes(), b"later");
        assert!(answer.take_descriptor().is_some());
        drop(object);
        executor.settle();
        server.succeeded();
    }

    /// A stock of pairs is copied with everything else, and a pair that serves twice can forge an answer.
    fn pairs_made_ahead_are_not_used_by_a_child(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, bound) = testing::packet_pair();
        let pairs = Pairs::new(reactor, 8);
        let object = PlainObject::from_fd_with(&pairs, reactor, address).unwrap();
        let mailbox = PlainMailbox::from_fd(reactor, bound).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let (bytes, descriptors, continuation) = call.into_parts();
                let _ = continuation.answer(message_of(bytes, descriptors));
            }
        });
        for _ in 0..10 {
            plainly_echoes(&executor, &object);
        }
        until(&executor, "pairs are made ahead", || pairs.ready() > 0);
        fork(|| {
            let call = object.call("hello");
            assert!(matches!(executor.block_on(call), Err(CallError::Forked)));
        })
        .succeeded();
        plainly_echoes(&executor, &object);
    }

    fn a_plain_server_that_forks_with_a_call_in_hand_answers_it(reactor: &Reactor) {
        let start = |end| start_helper!(plainly_forks_with_each_call, end);
        let (object, server) = plainly_served(reactor, start);
        let executor = Executor::new(reactor);
        plainly_echoes(&executor, &object);
        drop(object);
        executor.settle();
        server.succeeded();
    }
}
