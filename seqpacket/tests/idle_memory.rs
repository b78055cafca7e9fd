//! What an object and a session cost while nobody uses them: memory of this process, counted as pages that
//! are in use, over as many as make a page more or less of no account. Kernel memory is not counted.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};

use ring::{DriverKind, Executor, Reactor};
use seqpacket::{Mailbox, MailboxOptions, Object, PlainObject, ReturnTrust};
use support::*;
use testing::{helper, on_each_driver, start_helper};

/// The bound, in bytes, for each idle object and each idle session.
const IDLE_BYTES_MAX: usize = 1024;

/// So much more is allowed with epoll, whose driver has a place of its own for each descriptor it watches.
const WATCH_BYTES_MAX: usize = 128;

/// So many are made before counting begins, so that what all share is there: buffers, tables, stacks.
const BEFORE: usize = 200;

/// So many are counted.
const COUNTED: usize = 2_000;

/// Bytes of memory of its own that this process has in use.
fn in_use() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// What an idle thing may cost.
fn most(reactor: &Reactor) -> usize {
    let watch = if reactor.driver().kind() == DriverKind::Epoll { WATCH_BYTES_MAX } else { 0 };
    IDLE_BYTES_MAX + watch
}

/// Makes many, each of which may cost as much as so many idle things.
#[track_caller]
fn each<T>(reactor: &Reactor, idle_things: usize, mut make: impl FnMut() -> T) -> Vec<T> {
    let most = idle_things * most(reactor);
    let mut all = Vec::with_capacity(BEFORE + COUNTED);
    all.extend((0..BEFORE).map(|_| make()));
    let before = in_use();
    all.extend((0..COUNTED).map(|_| make()));
    let bytes = in_use().saturating_sub(before) / COUNTED;
    println!("{bytes} bytes for each");
    assert!(bytes <= most, "{bytes} bytes for each, and not {most}");
    all
}

helper! {
    fn server(descriptors: Vec<OwnedFd>) {
        let executor = Executor::new(&testing::reactor());
        let options = MailboxOptions { sessions: 4_096, ..MailboxOptions::default() };
        let bound = descriptors.into_iter().next().unwrap();
        let mailbox = Mailbox::from_fd_with(executor.reactor(), bound, options).unwrap();
        executor.block_on(echo(mailbox));
    }
}

on_each_driver! {
    fn a_mailbox_that_nobody_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let mut addresses = Vec::with_capacity(BEFORE + COUNTED);
        let mailboxes = each(reactor, 1, || {
            let (bound, address) = testing::packet_pair();
            addresses.push(address);
            let mailbox = Mailbox::from_fd(reactor, bound).unwrap();
            executor.settle();
            mailbox
        });
        drop(mailboxes);
    }

    fn an_object_that_was_never_called(reactor: &Reactor) {
        let mut bound_ends = Vec::with_capacity(BEFORE + COUNTED);
        let objects = each(reactor, 1, || {
            let (bound, address) = testing::packet_pair();
            bound_ends.push(bound);
            Object::from_fd(reactor, address).unwrap()
        });
        drop(objects);
    }

    fn a_session_that_rests_on_the_servers_side(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let options = MailboxOptions { sessions: 4_096, ..MailboxOptions::default() };
        executor.spawn(echo(Mailbox::from_fd_with(reactor, bound, options).unwrap()));
        let clients = each(reactor, 1, || {
            let client = RawClient::attach(&executor, address.as_fd());
            client.say_all(&[call(0, b"once", 100)]);
            assert_eq!(said_by_server(&client.hear_from(&executor)).len(), 1);
            client
        });
        drop(clients);
    }

    /// With what its object costs: forty each.
    fn a_pair_that_is_at_home(reactor: &Reactor) {
        const PAIRS: usize = 40;
        let executor = Executor::new(reactor);
        let mut mailboxes = Vec::new();
        let mut make = |objects: usize| -> Vec<PlainObject> {
            let mut make = || {
                let (object, mailbox) = testing::packet_pair();
                let object = PlainObject::from_fd(reactor, object).unwrap();
                let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
                let calls: Vec<_> = (0..PAIRS).map(|_| object.call("hello")).collect();
                executor.settle();
                for _ in 0..PAIRS {
                    let far = testing::receive_packet(&mailbox).unwrap().descriptors.pop().unwrap();
                    testing::send_packet(&far, b"yes", &[far.as_fd()]).unwrap();
                }
                calls.into_iter().for_each(|call| drop(executor.block_on(call).unwrap()));
                assert_eq!(object.returns().returned, PAIRS as u64);
                mailboxes.push(mailbox);
                object
            };
            (0..objects).map(|_| make()).collect()
        };
        let first = make(BEFORE / PAIRS);
        let before = in_use();
        let counted = make(COUNTED / PAIRS);
        let bytes = in_use().saturating_sub(before) / COUNTED;
        println!("{bytes} bytes for each");
        assert!(bytes <= most(reactor), "{bytes} bytes for each, and not {}", most(reactor));
        drop((first, counted));
    }

    fn an_object_whose_session_rests(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let server = start_helper!(server, vec![bound]);
        let objects = each(reactor, 2, || {
            let object = Object::from_fd(reactor, address.try_clone().unwrap()).unwrap();
            assert_eq!(executor.block_on(object.call("once")).unwrap().bytes(), b"once");
            object
        });
        drop((objects, address));
        executor.settle();
        server.succeeded();
    }
}
