//! Whoever calls an object of which a hostile server holds the other side.
//!
//! It owns the object, its calls, and an honest server beside it on the same reactor. It does not know what
//! the server says.

use ring::{Executor, Reactor};
use seqpacket::{Call, CallOptions, Object};

use super::{HONEST, HONEST_TIME_MAX, act, message};
use crate::packet::Tongue;
use crate::peer::Peer;
use crate::script::Script;

/// Calls at a time.
const CALLS_MAX: usize = 6;

pub(super) fn play(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let (bound, address) = testing::packet_pair();
    let object = Object::from_fd(reactor, address).unwrap();
    let mut calls: Vec<Call> =
        (0..1 + script.below(CALLS_MAX)).map(|number| call(&object, number, &mut script)).collect();
    executor.spawn(async move {
        for call in calls.drain(..) {
            // Any outcome will do.
            if let Ok(mut answer) = call.await {
                let _ = answer.take_object(object.reactor());
            }
        }
        let _ = (object.stats(), object.windows());
        // And once more, which attaches anew where the session has ended.
        let _ = object.call("again").await;
        let _ = object.grant().await;
    });
    executor.settle();

    let mut peer = Peer::new(script);
    peer.holds(bound);
    peer.accept_on_newest();
    executor.settle();
    act(&mut peer, Tongue::Session, &executor);

    let (friend, mailbox) = seqpacket::object(reactor).unwrap();
    executor.spawn(async move {
        while let Some(call) = mailbox.next().await {
            let bytes = call.bytes().to_vec();
            let _ = call.answer(bytes);
        }
    });
    let answer = executor.block_on(friend.call(HONEST.to_vec()).within(HONEST_TIME_MAX));
    assert_eq!(answer.unwrap().bytes(), HONEST);
    drop(peer);
    executor.settle();
}

fn call(object: &Object, number: usize, script: &mut Script<'_>) -> Call {
    let room = script.one_of(&[None, Some(0), Some(64), Some(1 << 20)]);
    let options = CallOptions {
        answer_bytes: room,
        answer_descriptors: script.one_of(&[None, Some(0), Some(253)]),
        ..CallOptions::default()
    };
    let bytes = vec![number as u8; script.one_of(&[0, 1, 64, 102_064, 102_065, 200_000])];
    let descriptors = match script.below(4) {
        3 => vec![testing::packet_pair().0],
        _ => Vec::new(),
    };
    object.call_with(message(bytes, descriptors), options)
}
