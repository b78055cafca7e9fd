//! Calls under a storm of signals, with SA_RESTART and without: of sessions, plain objects and their blocking
//! handles, and of a server that is hit. Each is answered once. It knows nothing of where signals come from.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::blocking::{self, Outgoing};
use seqpacket::{CallOptions, Mailbox, Object, PlainMailbox, PlainObject};
use support::{echo, message_of, null, plain_echo};
use testing::{Helper, helper, on_each_driver, only, settle, start_helper, storm};

const LARGE: usize = 300_000;

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

    /// Calls until it is killed, and insists on each answer.
    fn caller(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let object = Object::from_fd(&reactor, only(descriptors)).unwrap();
        for n in 0_u32.. {
            let call = object.call(Message::new(n.to_le_bytes()).with_descriptor(null()));
            let Ok(answer) = executor.block_on(call) else { return };
            assert_eq!((answer.bytes(), answer.descriptors()), (&n.to_le_bytes()[..], 1));
        }
    }
}

fn served() -> (OwnedFd, Helper) {
    let (bound, address) = testing::packet_pair();
    (address, start_helper!(server, vec![bound]))
}

fn plainly_served() -> (OwnedFd, Helper) {
    let (bound, address) = testing::packet_pair();
    (address, start_helper!(plain_server, vec![bound]))
}

fn roomy() -> CallOptions {
    CallOptions { answer_bytes: Some(LARGE), within: Some(Duration::from_secs(60)), ..CallOptions::default() }
}

on_each_driver! {
    fn calls_of_a_session_are_answered_under_a_storm(_reactor: &Reactor) {
        let (address, server) = served();
        let mut address = Some(address);
        let mut here = None;
        let mut count = 0_u32;
        storm(|| {
            let (executor, object) = here.get_or_insert_with(|| {
                let reactor = testing::reactor();
                let object = Object::from_fd(&reactor, address.take().unwrap()).unwrap();
                (Executor::new(&reactor), object)
            });
            count += 1;
            let message = Message::new(count.to_le_bytes()).with_descriptor(null());
            let answer = executor.block_on(object.call_with(message, roomy())).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&count.to_le_bytes()[..], 1));
            if count.is_multiple_of(8) {
                let answer = executor.block_on(object.call_with(vec![count as u8; LARGE], roomy())).unwrap();
                assert_eq!(answer.bytes(), vec![count as u8; LARGE]);
            }
        });
        drop(address);
        server.succeeded();
    }

    fn plain_calls_are_answered_under_a_storm(_reactor: &Reactor) {
        let (address, server) = plainly_served();
        let mut address = Some(address);
        let mut here = None;
        let mut count = 0_u32;
        storm(|| {
            let (executor, object) = here.get_or_insert_with(|| {
                let reactor = testing::reactor();
                let object = PlainObject::from_fd(&reactor, address.take().unwrap()).unwrap();
                (Executor::new(&reactor), object)
            });
            count += 1;
            let message = Message::new(count.to_le_bytes()).with_descriptor(null());
            let answer = executor.block_on(object.call(message)).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&count.to_le_bytes()[..], 1));
        });
        drop(address);
        server.succeeded();
    }

    fn blocking_calls_are_answered_under_a_storm(_reactor: &Reactor) {
        let (address, server) = served();
        let object = blocking::Object::from_fd(address).unwrap();
        let (fd, mut count) = (null(), 0_u32);
        storm(|| {
            count += 1;
            let bytes = count.to_le_bytes();
            let call = || Outgoing::from(&bytes).lend(fd.as_fd());
            let answer = object.call(call()).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&bytes[..], 1));
            let answer = object.call_with(call(), roomy()).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&bytes[..], 1));
            if count.is_multiple_of(8) {
                let large = vec![count as u8; LARGE];
                assert_eq!(object.call_with(&large, roomy()).unwrap().bytes(), large);
            }
        });
        drop(object);
        server.succeeded();
    }

    fn blocking_plain_calls_are_answered_under_a_storm(_reactor: &Reactor) {
        let (address, server) = plainly_served();
        let object = blocking::PlainObject::from_fd(address).unwrap();
        let (fd, mut count) = (null(), 0_u32);
        storm(|| {
            count += 1;
            let bytes = count.to_le_bytes();
            let answer = object.call(Outgoing::from(&bytes).lend(fd.as_fd())).unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&bytes[..], 1));
        });
        drop(object);
        server.succeeded();
    }

    fn a_server_answers_under_a_storm(_reactor: &Reactor) {
        let (bound, address) = testing::packet_pair();
        let caller = start_helper!(caller, vec![address]);
        let mut bound = Some(bound);
        let mut here = None;
        storm(|| {
            let (executor, mailbox) = here.get_or_insert_with(|| {
                let reactor = testing::reactor();
                let mailbox = Mailbox::from_fd(&reactor, bound.take().unwrap()).unwrap();
                (Executor::new(&reactor), mailbox)
            });
            let (bytes, descriptors, continuation) = executor.block_on(mailbox.next()).unwrap().into_parts();
            continuation.answer(message_of(bytes, descriptors)).unwrap();
            executor.settle();
        });
        drop(bound);
        caller.succeeded();
    }
}
