//! Processes that have no memory for a large message (RLIMIT_AS), on either side: that call ends by name, the
//! process goes on, smaller ones are served, and nothing of what was refused is kept. It knows nothing of the
//! limits a mailbox sets itself; those are in `large.rs` and `memory_bound.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::OwnedFd;

use ring::{Executor, Message, Reactor};
use seqpacket::{CallError, CallOptions, Mailbox, Object, Part, PlainMailbox, PlainObject, blocking};
use testing::{Helper, helper, leave_memory, on_each_driver, start_helper};

const MIB: usize = 1 << 20;

/// What is left to a process: enough for `SMALLER`, and not for `LARGE`, which is also more than an allocator
/// sets aside for a thread before it is asked (64 MiB, its own notes included).
const LEFT: u64 = 40 * MIB as u64;
const SMALLER: usize = 8 * MIB;
const LARGE: usize = 64 * MIB;

/// How often it is tried, so that what were kept of one would be missed by the next.
const ROUNDS: usize = 3;

helper! {
    /// Answers with as many bytes as it is asked for, or with the length of what it was given. It can be told
    /// to do with little memory, and then with as much as there is.
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, testing::only(descriptors)).unwrap();
        testing::settle(&reactor, async {
            let mut limit = None;
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"little" => limit = Some(leave_memory(LEFT)),
                    b"all" => drop(limit.take()),
                    _ => {}
                }
                let answer = answer_to(call.bytes());
                let _ = call.answer(answer);
            }
        });
    }

    /// As that one, of a plain object, and each answer is a large one.
    fn plain_server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, testing::only(descriptors)).unwrap();
        testing::settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let (bytes, _, continuation) = call.into_parts();
                let _ = continuation.answer_large(answer_to(&bytes)).await;
            }
        });
    }
}

fn answer_to(asked: &[u8]) -> Vec<u8> {
    match asked.strip_prefix(b"give ") {
        Some(length) => vec![7; str::from_utf8(length).unwrap().parse().unwrap()],
        None => asked.len().to_string().into_bytes(),
    }
}

fn served() -> (OwnedFd, Helper) {
    let (bound, address) = testing::packet_pair();
    (address, start_helper!(server, vec![bound]))
}

fn give(length: usize) -> String {
    format!("give {length}")
}

fn room(bytes: usize) -> CallOptions {
    CallOptions { answer_bytes: Some(bytes), ..CallOptions::default() }
}

#[track_caller]
fn takes(executor: &Executor, object: &Object, length: usize) {
    let answer = executor.block_on(object.call(vec![7; length])).unwrap();
    assert_eq!(answer.bytes(), length.to_string().as_bytes());
}

on_each_driver! {
    fn a_server_without_memory_refuses_that_call_and_serves_smaller_ones(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let object = Object::from_fd(reactor, address).unwrap();
        executor.block_on(object.call("little")).unwrap();
        for _ in 0..ROUNDS {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let call = Message::new(vec![7; LARGE]).with_descriptor(OwnedFd::from(writer));
            let refused = executor.block_on(object.call(call));
            assert!(matches!(refused, Err(CallError::OutOfMemory(Part::Call))), "{refused:?}");
            // What came with it is kept by nobody.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            takes(&executor, &object, SMALLER);
        }
        executor.block_on(object.call("all")).unwrap();
        takes(&executor, &object, LARGE);
        drop(object);
        executor.settle();
        server.succeeded();
    }

    /// Somebody else's is under way at the same time, and is not disturbed.
    fn what_a_server_has_no_memory_for_disturbs_no_other_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let another = Object::from_fd(reactor, address.try_clone().unwrap()).unwrap();
        let object = Object::from_fd(reactor, address).unwrap();
        executor.block_on(object.call("little")).unwrap();
        for _ in 0..ROUNDS {
            let fits = another.call(vec![7; SMALLER]);
            let refused = object.call(vec![7; LARGE]);
            let refused = executor.block_on(refused);
            assert!(matches!(refused, Err(CallError::OutOfMemory(Part::Call))), "{refused:?}");
            assert_eq!(executor.block_on(fits).unwrap().bytes(), SMALLER.to_string().as_bytes());
        }
        drop((object, another));
        executor.settle();
        server.succeeded();
    }

    fn a_client_without_memory_gets_no_answer_as_large_and_then_smaller_ones(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let object = Object::from_fd(reactor, address).unwrap();
        executor.block_on(object.call("hello")).unwrap();
        let limit = leave_memory(LEFT);
        for _ in 0..ROUNDS {
            let lost = executor.block_on(object.call_with(give(LARGE), room(LARGE)));
            assert!(matches!(lost, Err(CallError::OutOfMemory(Part::Answer))), "{lost:?}");
            let answer = executor.block_on(object.call_with(give(SMALLER), room(SMALLER))).unwrap();
            assert_eq!(answer.bytes().len(), SMALLER);
        }
        drop(limit);
        let answer = executor.block_on(object.call_with(give(LARGE), room(LARGE))).unwrap();
        assert_eq!(answer.bytes().len(), LARGE);
        drop((answer, object));
        executor.settle();
        server.succeeded();
    }

    fn a_blocking_client_without_memory_gets_no_answer_as_large(_reactor: &Reactor) {
        let (address, server) = served();
        let object = blocking::Object::from_fd(address).unwrap();
        object.call("hello").unwrap();
        let limit = leave_memory(LEFT);
        for _ in 0..ROUNDS {
            let lost = object.call_with(give(LARGE), room(LARGE));
            assert!(matches!(lost, Err(CallError::OutOfMemory(Part::Answer))), "{lost:?}");
            assert_eq!(object.call_with(give(SMALLER), room(SMALLER)).unwrap().bytes().len(), SMALLER);
        }
        drop(limit);
        assert_eq!(object.call_with(give(LARGE), room(LARGE)).unwrap().bytes().len(), LARGE);
        drop(object);
        server.succeeded();
    }

    fn a_plain_client_without_memory_gets_no_answer_as_large(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let server = start_helper!(plain_server, vec![bound]);
        let object = PlainObject::from_fd(reactor, address).unwrap();
        executor.block_on(object.call_large("hello")).unwrap();
        let limit = leave_memory(LEFT);
        for _ in 0..ROUNDS {
            let lost = executor.block_on(object.call_large(give(LARGE)));
            assert!(matches!(lost, Err(CallError::OutOfMemory(Part::Answer))), "{lost:?}");
            assert_eq!(executor.block_on(object.call_large(give(SMALLER))).unwrap().bytes().len(), SMALLER);
        }
        drop(limit);
        assert_eq!(executor.block_on(object.call_large(give(LARGE))).unwrap().bytes().len(), LARGE);
        drop(object);
        executor.settle();
        server.succeeded();
    }
}
