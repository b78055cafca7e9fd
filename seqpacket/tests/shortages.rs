//! A kernel that is short of something while calls are under way, in the server's process or in the client's:
//! each call is answered or ends with an error by name, and when the kernel has what it takes again the next
//! call goes well. It knows nothing of drivers; what they make of each shortage is in the ring's
//! `shortages.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;
use std::time::Duration;

use ring::script::SystemCall;
use ring::{Executor, Reactor};
use seqpacket::blocking::Outgoing;
use seqpacket::{
    CallError, CallOptions, Mailbox, Object, ObjectOptions, PlainMailbox, PlainObject, ReturnTrust, blocking,
};
use support::{message_of, null};
use testing::{Errno, Helper, Refusals, gated, helper, on_each_driver, start_helper};

/// What a kernel may be short of.
const SHORTAGES: [(SystemCall, Errno); 13] = [
    (SystemCall::Send, Errno::NOBUFS),
    (SystemCall::Send, Errno::NOMEM),
    (SystemCall::Send, Errno::TOOMANYREFS),
    (SystemCall::Receive, Errno::NOBUFS),
    (SystemCall::Receive, Errno::NOMEM),
    (SystemCall::Receive, Errno::MFILE),
    (SystemCall::Pair, Errno::NOBUFS),
    (SystemCall::Pair, Errno::NOMEM),
    (SystemCall::Pair, Errno::MFILE),
    (SystemCall::EnterRing, Errno::AGAIN),
    (SystemCall::EnterRing, Errno::BUSY),
    (SystemCall::EnterRing, Errno::NOMEM),
    (SystemCall::Watch, Errno::NOMEM),
];

/// So many calls are let through, and one is refused.
const PERIOD: u64 = 2;

/// Calls made amid each shortage.
const CALLS: u8 = 12;

/// For a call that would otherwise wait for ever. Nothing is expected to come near it.
const LONG: Duration = Duration::from_secs(20);

/// Tells a server to be short of something.
const SHORT: u8 = b's';
/// … and not to be any more.
const ENOUGH: u8 = b'e';
/// To be echoed.
const ECHO: u8 = b'c';

/// The bytes of an answer, and the number of its descriptors.
type Answered = Result<(Vec<u8>, usize), CallError>;

/// Makes a call.
type Ask<'a> = &'a dyn Fn(Vec<u8>, Vec<OwnedFd>) -> Answered;

/// The largest call: in parts, or in one packet.
const LARGE: usize = 200_000;
const PACKET: usize = 60_000;

/// What a server does that can be told to be short of something.
fn obey(refusals: &Refusals, asked: &[u8]) {
    match asked {
        [SHORT, number] => {
            let (call, errno) = SHORTAGES[usize::from(*number)];
            refusals.now_and_then(call, errno, PERIOD);
        }
        [ENOUGH] => refusals.none(),
        _ => {}
    }
}

helper! {
    fn server(descriptors: Vec<OwnedFd>) {
        let bound = testing::only(descriptors);
        gated(&SystemCall::EACH, move |refusals| {
            let reactor = testing::reactor();
            let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
            testing::settle(&reactor, async {
                while let Some(call) = mailbox.next().await {
                    obey(refusals, call.bytes());
                    let (bytes, descriptors, continuation) = call.into_parts();
                    let _ = continuation.answer(message_of(bytes, descriptors));
                }
            });
        });
    }

    fn plain_server(descriptors: Vec<OwnedFd>) {
        let bound = testing::only(descriptors);
        gated(&SystemCall::EACH, move |refusals| {
            let reactor = testing::reactor();
            let mailbox = PlainMailbox::from_fd(&reactor, bound).unwrap();
            testing::settle(&reactor, async {
                while let Some(call) = mailbox.next().await {
                    obey(refusals, call.bytes());
                    let (bytes, descriptors, continuation) = call.into_parts();
                    let _ = continuation.answer(message_of(bytes, descriptors));
                }
            });
        });
    }
}

/// An address, and the process that serves there.
fn served() -> (OwnedFd, Helper) {
    let (bound, address) = testing::packet_pair();
    (address, start_helper!(server, vec![bound]))
}

fn plainly_served() -> (OwnedFd, Helper) {
    let (bound, address) = testing::packet_pair();
    (address, start_helper!(plain_server, vec![bound]))
}

/// Calls until one is answered. A session that has ended is attached anew by the next call.
#[track_caller]
fn insist(ask: Ask<'_>, bytes: &[u8]) {
    testing::wait_until("a call is answered", || ask(bytes.to_vec(), vec![]).is_ok());
}

/// Calls amid a shortage. Says how many were answered.
#[track_caller]
fn calls(ask: Ask<'_>, largest: usize) -> u32 {
    let mut answered = 0;
    for number in 0..CALLS {
        let (bytes, descriptors) = match number % 3 {
            0 => (vec![ECHO, number], vec![]),
            1 => (vec![ECHO, number], vec![null(), null()]),
            _ => (vec![ECHO; largest], vec![null()]),
        };
        let sent = (bytes.clone(), descriptors.len());
        match ask(bytes, descriptors) {
            Ok(answer) => {
                assert!(answer == sent, "the answer to another call");
                answered += 1;
            }
            // It was sent and is lost, or cannot be sent: by name, and not because nobody ever says so.
            Err(error @ (CallError::Deadline | CallError::Malformed(_))) => {
                panic!("call {number}: {error:?}")
            }
            Err(_) => {}
        }
    }
    answered
}

#[track_caller]
fn through_each_shortage_of_the_server(ask: Ask<'_>, largest: usize) {
    for (number, shortage) in SHORTAGES.iter().enumerate() {
        // The answer to this may be what is refused first.
        let _ = ask(vec![SHORT, number as u8], vec![]);
        calls(ask, largest);
        insist(ask, &[ENOUGH]);
        assert_eq!(calls(ask, largest), CALLS.into(), "after {shortage:?}");
    }
}

#[track_caller]
fn through_each_shortage_of_the_client(refusals: &Refusals, ask: Ask<'_>, largest: usize) {
    for (call, errno) in SHORTAGES {
        refusals.now_and_then(call, errno, PERIOD);
        calls(ask, largest);
        refusals.none();
        insist(ask, &[ENOUGH]);
        assert_eq!(calls(ask, largest), CALLS.into(), "after {:?}", (call, errno));
    }
}

/// With room for an answer as long as the call.
fn options(bytes: &[u8]) -> CallOptions {
    let room = bytes.len().max(ObjectOptions::default().answer_bytes);
    CallOptions { within: Some(LONG), answer_bytes: Some(room), ..CallOptions::default() }
}

fn asks(executor: &Executor, object: Object) -> impl Fn(Vec<u8>, Vec<OwnedFd>) -> Answered {
    let executor = executor.clone();
    move |bytes, descriptors| {
        let options = options(&bytes);
        let answer = executor.block_on(object.call_with(message_of(bytes, descriptors), options))?;
        Ok((answer.bytes().to_vec(), answer.descriptors()))
    }
}

fn plainly_asks(executor: &Executor, object: PlainObject) -> impl Fn(Vec<u8>, Vec<OwnedFd>) -> Answered {
    let executor = executor.clone();
    move |bytes, descriptors| {
        let answer = executor.block_on(object.call(message_of(bytes, descriptors)).within(LONG))?;
        Ok((answer.bytes().to_vec(), answer.descriptors()))
    }
}

fn outgoing(bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> Outgoing<'static> {
    descriptors.into_iter().fold(Outgoing::from(bytes), Outgoing::with_descriptor)
}

fn blockingly_asks(object: blocking::Object) -> impl Fn(Vec<u8>, Vec<OwnedFd>) -> Answered {
    move |bytes, descriptors| {
        let options = options(&bytes);
        let answer = object.call_with(outgoing(bytes, descriptors), options)?;
        Ok((answer.bytes().to_vec(), answer.descriptors()))
    }
}

fn plainly_and_blockingly_asks(object: blocking::PlainObject) -> impl Fn(Vec<u8>, Vec<OwnedFd>) -> Answered {
    move |bytes, descriptors| {
        let answer = object.call_within(outgoing(bytes, descriptors), LONG)?;
        Ok((answer.bytes().to_vec(), answer.descriptors()))
    }
}

on_each_driver! {
    fn sessions_of_a_server_that_is_short(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let ask = asks(&executor, Object::from_fd(reactor, address).unwrap());
        through_each_shortage_of_the_server(&ask, LARGE);
        drop(ask);
        executor.settle();
        server.succeeded();
    }

    fn sessions_of_a_client_that_is_short(_reactor: &Reactor) {
        let (address, server) = served();
        gated(&SystemCall::EACH, |refusals| {
            let reactor = testing::reactor();
            let executor = Executor::new(&reactor);
            let ask = asks(&executor, Object::from_fd(&reactor, address).unwrap());
            through_each_shortage_of_the_client(refusals, &ask, LARGE);
            drop(ask);
            executor.settle();
        });
        server.succeeded();
    }

    fn plain_calls_to_a_server_that_is_short(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = plainly_served();
        let ask = plainly_asks(&executor, PlainObject::from_fd(reactor, address).unwrap());
        through_each_shortage_of_the_server(&ask, PACKET);
        drop(ask);
        executor.settle();
        server.succeeded();
    }

    fn plain_calls_of_a_client_that_is_short(_reactor: &Reactor) {
        let (address, server) = plainly_served();
        gated(&SystemCall::EACH, |refusals| {
            let reactor = testing::reactor();
            let executor = Executor::new(&reactor);
            let ask = plainly_asks(&executor, PlainObject::from_fd(&reactor, address).unwrap());
            through_each_shortage_of_the_client(refusals, &ask, PACKET);
            drop(ask);
            executor.settle();
        });
        server.succeeded();
    }

    fn pairs_that_come_home_to_a_client_that_is_short(_reactor: &Reactor) {
        let (address, server) = plainly_served();
        gated(&SystemCall::EACH, |refusals| {
            let reactor = testing::reactor();
            let executor = Executor::new(&reactor);
            let object = PlainObject::from_fd(&reactor, address).unwrap();
            let ask = plainly_asks(&executor, object.with_returned_pairs(ReturnTrust::FirstToAnswer));
            through_each_shortage_of_the_client(refusals, &ask, PACKET);
            drop(ask);
            executor.settle();
        });
        server.succeeded();
    }

    fn blocking_calls_to_a_server_that_is_short(_reactor: &Reactor) {
        let (address, server) = served();
        let ask = blockingly_asks(blocking::Object::from_fd(address).unwrap());
        through_each_shortage_of_the_server(&ask, LARGE);
        drop(ask);
        server.succeeded();
    }

    fn blocking_calls_of_a_client_that_is_short(_reactor: &Reactor) {
        let (address, server) = served();
        gated(&SystemCall::EACH, |refusals| {
            let ask = blockingly_asks(blocking::Object::from_fd(address).unwrap());
            through_each_shortage_of_the_client(refusals, &ask, LARGE);
        });
        server.succeeded();
    }

    fn plain_blocking_calls_of_a_client_that_is_short(_reactor: &Reactor) {
        let (address, server) = plainly_served();
        gated(&SystemCall::EACH, |refusals| {
            let ask = plainly_and_blockingly_asks(blocking::PlainObject::from_fd(address).unwrap());
            through_each_shortage_of_the_client(refusals, &ask, PACKET);
        });
        server.succeeded();
    }
}
