//! What one socket may deliver in one turn, and that nobody waits longer for it than for one turn of each
//! other.
//!
//! Counted in messages and turns. The far ends are written to without a reactor, as fast as they take it.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::task::{Context, Waker};

use ring::{BURST_BYTES_MAX, BURST_MAX, PACKET_BYTES_MAX, Reactor, Socket, UNSEEN_TURNS_MAX, Wait};
use testing::{on_each_driver, turn};

/// A socket that receives as a stream, and the end that nobody reads from here.
fn streaming(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (near, far) = testing::packet_pair();
    testing::set_nonblocking(&far);
    let near = Socket::wrap(reactor, near).unwrap();
    near.stream();
    turn(reactor);
    (near, far)
}

/// Sends packets of so many bytes until the queue is full.
fn fill(far: &OwnedFd, bytes: usize) -> usize {
    let packet = vec![7; bytes];
    (0..).take_while(|_| testing::send_packet(far, &packet, &[]).is_ok()).count()
}

/// How many messages one turn has brought.
fn brought(reactor: &Reactor) -> u64 {
    let before = reactor.stats().messages_received;
    reactor.turn(Wait::Not).unwrap();
    reactor.stats().messages_received - before
}

fn take_all(socket: &Socket) -> usize {
    std::iter::from_fn(|| socket.try_receive()).map(Result::unwrap).count()
}

on_each_driver! {
    fn a_turn_brings_so_many_messages_of_one_socket(reactor: &Reactor) {
        let (near, far) = streaming(reactor);
        let filled = fill(&far, 1);
        assert!(filled > 3 * BURST_MAX);
        let mut left = filled;
        for _ in 0..3 {
            assert_eq!(brought(reactor), BURST_MAX as u64);
            left -= take_all(&near);
        }
        while left > 0 {
            assert!(brought(reactor) <= BURST_MAX as u64);
            left -= take_all(&near);
        }
        assert_eq!(brought(reactor), 0);
    }

    /// One that is emptied and filled again within a turn is looked at twice in it, and has one share.
    fn a_queue_that_is_refilled_brings_no_more(reactor: &Reactor) {
        let (near, far) = streaming(reactor);
        for round in 0..100_usize {
            let most = 1 + round % (BURST_MAX + 2);
            (0..most).for_each(|_| testing::send_packet(&far, b"more", &[]).unwrap());
            assert!(brought(reactor) <= BURST_MAX as u64);
            take_all(&near);
        }
    }

    fn a_turn_brings_so_many_bytes_of_one_socket(reactor: &Reactor) {
        let (near, far) = streaming(reactor);
        assert!(fill(&far, PACKET_BYTES_MAX) >= 2);
        assert_eq!(brought(reactor), 1, "the first is a share by itself");
        while take_all(&near) > 0 {
            brought(reactor);
        }
        assert!(fill(&far, BURST_BYTES_MAX / 2) >= 3);
        assert_eq!(brought(reactor), 2, "two are one share");
        while take_all(&near) > 0 {
            brought(reactor);
        }
        assert!(fill(&far, BURST_BYTES_MAX / 2 - 1) >= 3);
        assert_eq!(brought(reactor), 3, "two of these are less, and what goes beyond is the last");
    }

    /// As it was told before it began, or while it waits for more.
    fn a_turn_brings_as_many_messages_as_a_socket_was_told(reactor: &Reactor) {
        for (told, burst) in [(1, 1), (2, 2), (0, 1), (BURST_MAX, BURST_MAX), (BURST_MAX + 1, BURST_MAX)] {
            let (near, far) = streaming(reactor);
            near.set_burst(told);
            let mut left = fill(&far, 1);
            while left > 0 {
                assert_eq!(brought(reactor), burst.min(left) as u64, "told {told}");
                left -= take_all(&near);
            }
        }
        let (near, far) = testing::packet_pair();
        testing::set_nonblocking(&far);
        let near = Socket::wrap(reactor, near).unwrap();
        near.set_burst(3);
        near.stream();
        fill(&far, 1);
        assert_eq!(brought(reactor), 3);
    }

    /// The busy ones stand before it in every list there is.
    fn a_quiet_socket_is_heard_among_many_busy_ones(reactor: &Reactor) {
        let busy: Vec<_> = (0..150).map(|_| streaming(reactor)).collect();
        let (quiet, voice) = streaming(reactor);
        for round in 0..30_u32 {
            for _ in 0..round % 5 {
                busy.iter().for_each(|(_, far)| _ = fill(far, 4_000));
                brought(reactor);
                busy.iter().for_each(|(near, _)| _ = take_all(near));
            }
            testing::send_packet(&voice, b"here", &[]).unwrap();
            let mut turns = 0;
            while quiet.try_receive().is_none() {
                busy.iter().for_each(|(_, far)| _ = fill(far, 4_000));
                assert!(brought(reactor) <= (busy.len() * BURST_MAX) as u64 + 1);
                busy.iter().for_each(|(near, _)| _ = take_all(near));
                turns += 1;
            }
            assert!(turns <= 2, "heard after {turns} turns");
        }
    }

    /// Or a call that is answered at once would wait until everything else has been copied.
    fn a_busy_socket_waits_for_those_who_were_quiet_but_never_twice_in_a_row(reactor: &Reactor) {
        let (busy, far) = streaming(reactor);
        let (quiet, voice) = streaming(reactor);
        assert!(fill(&far, 1) > 5 * BURST_MAX);
        assert_eq!(brought(reactor), BURST_MAX as u64);
        for _ in 0..3 {
            for (of_the_busy, of_all) in [(0, 1), (BURST_MAX, BURST_MAX + 1)] {
                testing::send_packet(&voice, b"here", &[]).unwrap();
                take_all(&busy);
                assert_eq!(brought(reactor), of_all as u64);
                assert_eq!((take_all(&quiet), take_all(&busy)), (1, of_the_busy));
            }
        }
    }

    /// One packet of such a size is a share, and is told of anew each time.
    fn so_does_one_that_brings_full_packets(reactor: &Reactor) {
        let (busy, far) = streaming(reactor);
        let (quiet, voice) = streaming(reactor);
        assert!(fill(&far, PACKET_BYTES_MAX) >= 2);
        assert_eq!((brought(reactor), take_all(&busy)), (1, 1));
        // More often than a look in vain keeps from looking at it again.
        for _ in 0..40 {
            for of_the_busy in [0, 1] {
                fill(&far, PACKET_BYTES_MAX);
                testing::send_packet(&voice, b"here", &[]).unwrap();
                assert_eq!(brought(reactor), 1 + of_the_busy as u64);
                assert_eq!((take_all(&quiet), take_all(&busy)), (1, of_the_busy));
            }
        }
        // With nobody beside it nothing is put off.
        for _ in 0..3 {
            fill(&far, PACKET_BYTES_MAX);
            assert_eq!((brought(reactor), take_all(&busy)), (1, 1));
        }
    }

    /// What a busy socket brings keeps the reactor from looking further, but not for long.
    fn a_quiet_socket_is_heard_beside_one_that_brings_a_little_in_each_turn(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let busy = Socket::wrap(reactor, near).unwrap();
        let (quiet, voice) = streaming(reactor);
        for _ in 0..30 {
            testing::send_packet(&voice, b"here", &[]).unwrap();
            let mut turns = 0;
            while quiet.try_receive().is_none() {
                testing::send_packet(&far, b"a little", &[]).unwrap();
                let context = &mut Context::from_waker(Waker::noop());
                assert!(busy.poll_receive(context).is_pending(), "it is looked for in the turn");
                assert!(brought(reactor) > 0);
                assert!(busy.poll_receive(context).is_ready());
                turns += 1;
            }
            assert!(turns <= UNSEEN_TURNS_MAX, "heard after {turns} turns");
        }
    }

    /// To look is little beside copying that much, and whoever is quiet would wait for all of it.
    fn a_quiet_socket_is_heard_in_the_same_turn_as_one_that_brings_much(reactor: &Reactor) {
        let (busy, far) = streaming(reactor);
        let (quiet, voice) = streaming(reactor);
        // Behind one that is alone nobody looks for another for a while.
        testing::send_packet(&far, b"little", &[]).unwrap();
        brought(reactor);
        take_all(&busy);
        for _ in 0..30 {
            testing::send_packet(&voice, b"here", &[]).unwrap();
            fill(&far, PACKET_BYTES_MAX);
            brought(reactor);
            take_all(&busy);
            assert!(quiet.try_receive().is_some(), "heard later");
        }
    }

    fn a_busy_socket_that_is_dropped_is_missed_by_nobody(reactor: &Reactor) {
        let (quiet, voice) = streaming(reactor);
        for _ in 0..20 {
            let (busy, far) = streaming(reactor);
            fill(&far, 1);
            brought(reactor);
            drop(busy);
            testing::send_packet(&voice, b"here", &[]).unwrap();
            testing::wait_until("it is heard", || {
                reactor.turn(Wait::Not).unwrap();
                quiet.try_receive().is_some()
            });
        }
    }
}
