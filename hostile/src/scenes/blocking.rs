//! Clients that block, on a thread of their own, with a hostile server.
//!
//! The server's script begins when the client has said its first word, and ends with everything closed, so
//! that the client ends too. It owns that thread; what the client is answered it does not care.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use seqpacket::{CallOptions, blocking};

use crate::packet::Tongue;
use crate::peer::{Peer, Turn};
use crate::script::Script;

/// How long a call may take. Only one waits as long: that of which the server has put the other end where
/// nobody closes it.
const CALL_TIME_MAX: Duration = Duration::from_millis(250);

pub(super) fn session(script: Script<'_>) {
    against(script, Tongue::Session, |address, choice| {
        let object = blocking::Object::from_fd(address).unwrap();
        let options = CallOptions {
            within: Some(CALL_TIME_MAX),
            answer_bytes: [None, Some(64), Some(1 << 20)][usize::from(choice) % 3],
            answer_descriptors: [None, Some(0), Some(253)][usize::from(choice / 3) % 3],
            ..CallOptions::default()
        };
        if object.attach_within(CALL_TIME_MAX).is_err() {
            return;
        }
        let large = if choice & 0x80 == 0 { 64 } else { 150_000 };
        let _ = object.call_with(vec![7; large], options).map(|mut answer| answer.take_object());
        if let (Ok(one), Ok(other)) = (object.begin_with("one", options), object.begin_with("other", options))
        {
            let _ = (other.finish(), one.finish());
        }
        let _ = object.call_with("again", options);
    });
}

pub(super) fn plain(script: Script<'_>) {
    against(script, Tongue::LargeAnswer, |far, choice| {
        let object = blocking::PlainObject::from_fd(far).unwrap();
        object.set_answer_descriptors([16, 0, 253][usize::from(choice) % 3]);
        object.set_large_answer_bytes([1 << 20, 100, 64 << 20][usize::from(choice / 3) % 3]);
        for _ in 0..2 {
            let _ = object.call_within("one", CALL_TIME_MAX).map(|mut answer| answer.take_descriptors());
            let _ = object.call_large_within("large", CALL_TIME_MAX);
        }
    });
}

/// Runs a client against the script. The byte is its choice.
fn against(mut script: Script<'_>, tongue: Tongue, client: fn(OwnedFd, u8)) {
    let choice = script.byte();
    let (bound, far) = testing::packet_pair();
    let client = thread::spawn(move || client(far, choice));
    let first = poll(&mut [PollFd::new(&bound, PollFlags::IN)], None);
    assert!(first.is_ok_and(|ready| ready == 1), "the client says something, or is gone");
    let mut peer = Peer::new(script);
    peer.holds(bound);
    peer.accept_on_newest();
    while let Some(turn) = peer.step(tongue) {
        if turn == Turn::Theirs
            && let Some(end) = peer.newest()
        {
            wait_a_little(end.as_fd());
        }
    }
    drop(peer);
    if let Err(panicked) = client.join() {
        std::panic::resume_unwind(panicked);
    }
}

/// Until the client has said something more, if it does soon: it may wait for us.
fn wait_a_little(end: impl AsFd) {
    const SOON: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000 };
    let _ = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&SOON));
}
