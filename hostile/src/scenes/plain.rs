//! Plain objects: a mailbox with hostile callers, and callers with a hostile answerer.
//!
//! It owns both sides that are ours. It does not know what the others send.

use std::rc::Rc;

use ring::{Executor, Reactor, Spawner};
use seqpacket::{
    PlainCall, PlainIncoming, PlainObject, ReturnTrust, make_socket, plain_object, shared_plain_object,
};

use super::{HONEST, HONEST_TIME_MAX, KEPT_MAX, act, message};
use crate::packet::Tongue;
use crate::peer::Peer;
use crate::script::Script;

pub(super) fn mailbox(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    // Whoever holds a plain object can shut it down for all others, who are then served elsewhere.
    let ruthless = script.flag();
    let spawner = executor.spawner();
    let (friend, own_end) = match script.below(4) {
        0 => {
            let (friend, mailbox) = shared_plain_object(reactor).unwrap();
            mailbox.set_arguments_max(script.one_of(&[0, 16, 252]));
            let own_end = mailbox.share().unwrap();
            executor.spawn(async move {
                let mut kept = Vec::new();
                while let Some(call) = mailbox.next().await {
                    serve(call, &mut kept, &spawner);
                }
            });
            (friend, ruthless.then_some(own_end))
        }
        which => {
            let (friend, mailbox) = plain_object(reactor).unwrap();
            mailbox.set_arguments_max(script.one_of(&[16, 0, 252]));
            if which == 1 {
                mailbox.return_continuations();
            }
            executor.spawn(async move {
                let mut kept = Vec::new();
                while let Some(call) = mailbox.next().await {
                    serve(call, &mut kept, &spawner);
                }
            });
            (friend, None)
        }
    };
    let far = friend.share().unwrap();
    let (callback, listening) = make_socket(reactor, drop).unwrap();
    listening.set_descriptors_max(script.one_of(&[16, 0, 253]));

    let mut peer = Peer::new(script);
    peer.holds(callback);
    own_end.into_iter().for_each(|near| peer.holds(near));
    if ruthless {
        peer.holds(far)
    } else {
        peer.shares(far)
    }
    act(&mut peer, Tongue::Plain, &executor);

    if !ruthless {
        is_served(&executor, &friend);
    }
    let (other, other_mailbox) = plain_object(reactor).unwrap();
    let spawner = executor.spawner();
    executor.spawn(async move {
        while let Some(call) = other_mailbox.next().await {
            serve(call, &mut Vec::new(), &spawner);
        }
    });
    is_served(&executor, &other);
    drop(peer);
    is_served(&executor, &other);
    let _ = listening.violations();
}

/// Does with a call what programs do: by what it begins with.
fn serve(mut call: PlainIncoming, kept: &mut Vec<PlainIncoming>, spawner: &Spawner) {
    let begins = call.bytes().first().copied().unwrap_or_default();
    let _ = call.credentials();
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
        3 => drop(call.take_descriptors()),
        4 => drop(call.into_continuation().into_fd()),
        5 => {
            // It waits for room, for ten seconds if nobody reads, and others are served meanwhile.
            let continuation = call.into_continuation();
            spawner.spawn(async move {
                let _ = continuation.answer_large(vec![7; 200_000]).await;
            });
        }
        6 => {
            let (bytes, _, continuation) = call.into_parts();
            let _ = continuation.answer_and_return(bytes);
        }
        _ => {
            kept.truncate(KEPT_MAX);
            kept.insert(0, call);
        }
    }
}

#[track_caller]
fn is_served(executor: &Executor, friend: &PlainObject) {
    let answer = executor.block_on(friend.call(HONEST.to_vec()).within(HONEST_TIME_MAX));
    assert_eq!(answer.unwrap().bytes(), HONEST);
}

/// Calls at a time.
const CALLS_MAX: usize = 6;

pub(super) fn caller(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let (bound, far) = testing::packet_pair();
    let mut object = PlainObject::from_fd(reactor, far).unwrap();
    if script.flag() {
        object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
    }
    object.set_answer_descriptors(script.one_of(&[16, 0, 253]));
    object.set_large_answer_bytes(script.one_of(&[1 << 20, 100, 64 << 20]));
    let object = Rc::new(object);
    let calls: Vec<(PlainCall, bool)> = (0..1 + script.below(CALLS_MAX))
        .map(|number| {
            let (descriptors, large) = match script.below(4) {
                3 => (vec![testing::packet_pair().0], false),
                2 => (Vec::new(), true),
                _ => (Vec::new(), false),
            };
            let asked = message(vec![1 + number as u8; 16], descriptors);
            (if large { object.call_large(asked) } else { object.call(asked) }, large)
        })
        .collect();
    for (call, _) in calls {
        let object = Rc::clone(&object);
        executor.spawn(async move {
            if let Ok(mut answer) = call.await {
                let _ = answer.take_object(object.reactor());
            }
            // Pairs that came home are used again.
            let _ = object.call("again").await;
        });
    }
    executor.settle();

    let mut peer = Peer::new(script);
    peer.holds(bound);
    peer.hears_all();
    act(&mut peer, Tongue::LargeAnswer, &executor);

    let (friend, mailbox) = plain_object(reactor).unwrap();
    let spawner = executor.spawner();
    executor.spawn(async move {
        while let Some(call) = mailbox.next().await {
            serve(call, &mut Vec::new(), &spawner);
        }
    });
    is_served(&executor, &friend);
    drop(peer);
    executor.settle();
    is_served(&executor, &friend);
    let _ = object.returns();
}
