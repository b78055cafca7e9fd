//! A mailbox with sessions, and hostile clients of it.
//!
//! It owns the mailbox, a friend who was there before and one who comes through a grant. It does not know
//! what clients say.

use std::rc::Rc;

use ring::{Executor, Reactor};
use seqpacket::{Incoming, Mailbox, MailboxOptions, Object};

use super::{HONEST, HONEST_TIME_MAX, KEPT_MAX, act, message};
use crate::packet::Tongue;
use crate::peer::Peer;
use crate::script::Script;

pub(super) fn play(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let (bound, address) = testing::packet_pair();
    // Whoever has the address can end it for all who have it. Then only those with one of their own are safe.
    let ruthless = script.flag();
    let own_end = ruthless.then(|| bound.try_clone().unwrap());
    let mailbox = Mailbox::from_fd_with(reactor, bound, options(&mut script)).unwrap();
    let friend = Object::from_fd(reactor, address.try_clone().unwrap()).unwrap();
    let granted = Object::from_fd(reactor, mailbox.grant().unwrap()).unwrap();
    let newcomer = Object::from_fd(reactor, address.try_clone().unwrap()).unwrap();
    let mailbox = Rc::new(mailbox);
    let serving = Rc::clone(&mailbox);
    executor.spawn(async move {
        let mut kept = Vec::new();
        while let Some(call) = serving.next().await {
            serve(call, &mut kept);
        }
    });
    is_served(&executor, &friend);

    let mut peer = Peer::new(script);
    match own_end {
        Some(bound) => {
            peer.holds(bound);
            peer.holds(address);
        }
        None => peer.shares(address),
    }
    peer.connect_on_newest();
    executor.settle();
    act(&mut peer, Tongue::Session, &executor);

    is_served(&executor, &friend);
    is_served(&executor, &granted);
    if !ruthless {
        is_served(&executor, &newcomer);
    }
    drop(peer);
    is_served(&executor, &friend);
    // What the library counts is read without harm.
    let _ = (mailbox.violations(), mailbox.stats(), mailbox.each_session());
}

/// The usual, or so little that limits are met.
fn options(script: &mut Script<'_>) -> MailboxOptions {
    let usual = MailboxOptions::default();
    match script.below(4) {
        0 => MailboxOptions { call_descriptors: 253, descriptors: 253, ..usual },
        1 => MailboxOptions {
            calls: 4,
            bytes: 204_160,
            descriptors: 3,
            call_descriptors: 2,
            message_bytes: 200_000,
            large_bytes: 400_000,
            large_bytes_together: 400_000,
            grants: 2,
            ..usual
        },
        _ => usual,
    }
}

/// Does with a call what programs do: by what it begins with.
fn serve(call: Incoming, kept: &mut Vec<Incoming>) {
    let begins = call.bytes().first().copied().unwrap_or_default();
    match begins % 8 {
        // `honest`.
        0 => {
            let bytes = call.bytes().to_vec();
            let _ = call.answer(bytes);
        }
        1 => {
            let (bytes, descriptors, continuation) = call.into_parts();
            let _ = continuation.answer(message(bytes, descriptors));
        }
        2 => drop(call),
        3 => call.refuse(),
        4 => drop(call.into_continuation().into_fd()),
        5 => {
            if let Some(grant) = call.grant() {
                grant.revoke();
            }
            let _ = call.answer(vec![7; 110_000]);
        }
        6 => {
            let _ = (call.credentials(), call.deadline());
            let _ = call.answer("");
        }
        _ => {
            kept.truncate(KEPT_MAX);
            kept.insert(0, call);
        }
    }
}

#[track_caller]
fn is_served(executor: &Executor, friend: &Object) {
    let answer = executor.block_on(friend.call(HONEST.to_vec()).within(HONEST_TIME_MAX));
    assert_eq!(answer.unwrap().bytes(), HONEST);
}
