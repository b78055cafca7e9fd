//! Small steps that many bodies take: a few turns, a first poll, a pair to send on.
//!
//! They own nothing and assert nothing but that the step was possible.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Waker};

use ring::{Kind, Reactor, Socket, Wait};

/// A few turns that do not sleep: enough for what is asked for to be submitted, and for what is there to come
/// home.
///
/// # Panics
/// If the kernel refuses a turn.
#[track_caller]
pub fn turn(reactor: &Reactor) {
    for _ in 0..4 {
        reactor.turn(Wait::Not).unwrap_or_else(|error| panic!("no turn: {error}"));
    }
}

/// A SEQPACKET pair: the near end on the reactor, receiving already where it `streams`, and the bare far end.
///
/// # Panics
/// If there is none to be had.
#[track_caller]
pub fn ends(reactor: &Reactor, streams: bool) -> (Socket, OwnedFd) {
    let (near, far) =
        Socket::pair(reactor, Kind::SeqPacket).unwrap_or_else(|error| panic!("no pair: {error}"));
    if streams {
        near.stream();
        turn(reactor);
    }
    (near, far)
}

/// Polls a future once, and drops it.
///
/// # Panics
/// If it is ready.
#[track_caller]
pub fn poll_once(future: impl Future) {
    let mut future = pin!(future);
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}
