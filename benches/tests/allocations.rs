//! How often memory is asked for while calls run as usual: counted on both sides, on each driver.
//!
//! The caller and the server are processes of their own with an allocator that counts. Both are warmed up
//! first: queues and stocks grow to the size they need, once. What is counted is for calls of 64 bytes that
//! are answered with as many, with everything a caller does: it makes the message, and drops the answer.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::os::fd::OwnedFd;

use ring::{Executor, Message, Reactor};
use seqpacket::{Mailbox, Object, PlainMailbox, PlainObject, ReturnTrust, blocking};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use testing::{Helper, helper, helper_argument, on_each_driver, start_helper};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WARM: u64 = 2_000;
const COUNTED: u64 = 1_000;
const DEPTH: u64 = 32;

const PAYLOAD: [u8; 64] = [7; 64];
const BEGIN: &[u8; 5] = b"begin";
const END: &[u8; 3] = b"end";

/// What is not counted for each call: a packet that several calls share (31 of 32 calls each), a queue that
/// grows once more after all.
const SLACK: u64 = 40;

fn allocations(region: &Region<'_, System>) -> u64 {
    let change = region.change();
    (change.allocations + change.reallocations) as u64
}

/// What a server answers: the same; or, at the end, how often it has asked for memory since the beginning.
fn answer(asked: &[u8], region: &mut Region<'_, System>) -> Message {
    match asked {
        bytes if bytes == BEGIN => {
            region.reset();
            Message::from(BEGIN)
        }
        bytes if bytes == END => {
            let seen = allocations(region);
            Message::new(seen.to_ne_bytes())
        }
        bytes => Message::from(bytes),
    }
}

helper! {
    fn sessions(descriptors: Vec<OwnedFd>) {
        let [bound] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
        Executor::new(&reactor).block_on(async {
            let mut region = Region::new(ALLOCATOR);
            while let Some(call) = mailbox.next().await {
                let answer = answer(call.bytes(), &mut region);
                call.answer(answer).unwrap();
            }
        });
    }

    fn plain_calls(descriptors: Vec<OwnedFd>) {
        let [bound] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, bound).unwrap();
        if helper_argument() == "returned" {
            mailbox.return_continuations();
        }
        Executor::new(&reactor).block_on(async {
            let mut region = Region::new(ALLOCATOR);
            while let Some(call) = mailbox.next().await {
                let answer = answer(call.bytes(), &mut region);
                call.answer(answer).unwrap();
            }
        });
    }
}

/// So many for each call, at the caller and at the server.
#[derive(Debug)]
struct AtMost {
    here: u64,
    there: u64,
}

/// Fails if more was asked for.
#[track_caller]
fn judge(helper: Helper, here: u64, there: u64, at_most: AtMost) {
    helper.succeeded();
    println!("{COUNTED} calls asked {here} times for memory here, and {there} times there");
    assert!(here <= at_most.here * COUNTED + SLACK, "here: {here} of {COUNTED} calls, {at_most:?} for each");
    assert!(there <= at_most.there * COUNTED + SLACK, "there: {there} of {COUNTED} calls, {at_most:?}");
}

on_each_driver! {
    fn memory_for_a_session_call(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(sessions, vec![far]);
        let object = Object::from_fd(reactor, near).unwrap();
        let (here, there) = testing::settle(reactor, async {
            for _ in 0..WARM {
                object.call(&PAYLOAD).await.unwrap();
            }
            object.call(BEGIN).await.unwrap();
            let region = Region::new(ALLOCATOR);
            for _ in 0..COUNTED {
                object.call(&PAYLOAD).await.unwrap();
            }
            let here = allocations(&region);
            (here, object.call(END).await.unwrap().read::<u64>().unwrap())
        });
        drop(object);
        testing::turn(reactor);
        judge(helper, here, there, SESSION);
    }

    fn memory_for_session_calls_that_are_under_way_together(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(sessions, vec![far]);
        let object = Object::from_fd(reactor, near).unwrap();
        let (here, there) = testing::settle(reactor, async {
            let mut calls = Vec::with_capacity(DEPTH as usize);
            for _ in 0..WARM / DEPTH {
                calls.extend((0..DEPTH).map(|_| object.call(&PAYLOAD)));
                for call in calls.drain(..) {
                    call.await.unwrap();
                }
            }
            object.call(BEGIN).await.unwrap();
            let region = Region::new(ALLOCATOR);
            for _ in 0..COUNTED / DEPTH {
                calls.extend((0..DEPTH).map(|_| object.call(&PAYLOAD)));
                for call in calls.drain(..) {
                    call.await.unwrap();
                }
            }
            let here = allocations(&region);
            (here, object.call(END).await.unwrap().read::<u64>().unwrap())
        });
        drop(object);
        testing::turn(reactor);
        judge(helper, here, there, SESSION_DEEP);
    }

    fn memory_for_a_plain_call_with_a_pair_made_ahead(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(plain_calls, vec![far]);
        let object = PlainObject::from_fd(reactor, near).unwrap();
        let (here, there) = plain(reactor, &object);
        drop(object);
        testing::turn(reactor);
        judge(helper, here, there, AHEAD);
    }

    fn memory_for_a_plain_call_whose_pair_comes_home(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(plain_calls, vec![far], "returned");
        let object = PlainObject::from_fd(reactor, near).unwrap();
        let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
        let (here, there) = plain(reactor, &object);
        drop(object);
        testing::turn(reactor);
        judge(helper, here, there, RETURNED);
    }

    fn memory_for_a_blocking_session_call(_reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(sessions, vec![far]);
        let object = blocking::Object::from_fd(near).unwrap();
        for _ in 0..WARM {
            object.call(&PAYLOAD).unwrap();
        }
        object.call(BEGIN).unwrap();
        let region = Region::new(ALLOCATOR);
        for _ in 0..COUNTED {
            object.call(&PAYLOAD).unwrap();
        }
        let here = allocations(&region);
        let there = object.call(END).unwrap().read::<u64>().unwrap();
        drop(object);
        judge(helper, here, there, BLOCKING_SESSION);
    }

    fn memory_for_a_blocking_plain_call(_reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(plain_calls, vec![far]);
        let (here, there) = blocking_plain(blocking::PlainObject::from_fd(near).unwrap());
        judge(helper, here, there, BLOCKING_PLAIN);
    }

    fn memory_for_a_blocking_plain_call_whose_pair_comes_home(_reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(plain_calls, vec![far], "returned");
        let object = blocking::PlainObject::from_fd(near).unwrap();
        let (here, there) = blocking_plain(object.with_returned_pairs(ReturnTrust::FirstToAnswer));
        judge(helper, here, there, BLOCKING_RETURNED);
    }
}

fn blocking_plain(object: blocking::PlainObject) -> (u64, u64) {
    for _ in 0..WARM {
        object.call(&PAYLOAD).unwrap();
    }
    object.call(BEGIN).unwrap();
    let region = Region::new(ALLOCATOR);
    for _ in 0..COUNTED {
        object.call(&PAYLOAD).unwrap();
    }
    let here = allocations(&region);
    (here, object.call(END).unwrap().read::<u64>().unwrap())
}

fn plain(reactor: &Reactor, object: &PlainObject) -> (u64, u64) {
    testing::settle(reactor, async {
        for _ in 0..WARM {
            object.call(&PAYLOAD).await.unwrap();
        }
        object.call(BEGIN).await.unwrap();
        let region = Region::new(ALLOCATOR);
        for _ in 0..COUNTED {
            object.call(&PAYLOAD).await.unwrap();
        }
        let here = allocations(&region);
        (here, object.call(END).await.unwrap().read::<u64>().unwrap())
    })
}

// -- what is allowed: to be lowered by whoever finds a way, and never raised -------------------------------

const SESSION: AtMost = AtMost { here: 0, there: 0 };
const SESSION_DEEP: AtMost = AtMost { here: 0, there: 0 };
const AHEAD: AtMost = AtMost { here: 0, there: 0 };
const RETURNED: AtMost = AtMost { here: 0, there: 0 };
const BLOCKING_SESSION: AtMost = AtMost { here: 1, there: 0 };
const BLOCKING_PLAIN: AtMost = AtMost { here: 1, there: 0 };
const BLOCKING_RETURNED: AtMost = AtMost { here: 1, there: 0 };
