//! A forked child is told from its parent, and its children from both; with the page, and without it.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use ring::fork::{Notice, generation, notice};
use ring::{Executor, Kind, Reactor, Socket};
use testing::{fork, in_own_process, lingering_tcp, refuse_wiping_on_fork, send_packet};

/// Three generations: each differs from those before, and stays what it is.
fn three_generations_differ() {
    let first = generation();
    fork(|| {
        let second = generation();
        assert_ne!(second, first);
        assert_eq!(generation(), second);
        fork(|| assert!(![first, second].contains(&generation()))).succeeded();
        assert_eq!(generation(), second);
    })
    .succeeded();
    assert_eq!(generation(), first);
}

in_own_process! {
    fn a_child_is_another_generation() {
        assert_eq!(notice(), Notice::WipedPage);
        three_generations_differ();
    }

    fn without_the_page_a_child_is_another_generation_all_the_same() {
        refuse_wiping_on_fork();
        assert_eq!(notice(), Notice::ProcessNumber);
        three_generations_differ();
    }

    fn a_child_forked_by_another_thread_is_noticed_by_a_handle_of_this_one() {
        let first = generation();
        let seen = std::thread::spawn(move || assert_eq!(generation(), first));
        seen.join().unwrap();
        std::thread::spawn(move || fork(|| assert_ne!(generation(), first)).succeeded()).join().unwrap();
    }

    /// The closer threads of the parent, and its lock, are not there in the child.
    fn a_child_forked_amid_closing_closes_what_it_is_given() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let (one, other) = testing::packet_pair();
                        ring::discard(one);
                        ring::discard(other);
                        ring::closer_idle();
                    }
                });
            }
            for _ in 0..50 {
                fork(|| {
                    let (one, other) = testing::packet_pair();
                    ring::discard(one);
                    assert!(testing::receive_packet(&other).unwrap().bytes.is_empty());
                    ring::closer_idle();
                })
                .succeeded();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// What waits there keeps the parent from receiving, and is no affair of the child's.
    fn a_child_forked_while_much_waits_to_be_closed_receives() {
        // All closers there can be are busy for seconds, and the queue is full.
        let lingering: Vec<_> = (0..8).map(|_| lingering_tcp()).collect();
        let (slow, peers): (Vec<_>, Vec<_>) = lingering.into_iter().map(|one| (one.near, one.far)).unzip();
        slow.into_iter().for_each(ring::discard);
        let queued: Vec<_> = (0..300).map(|_| testing::packet_pair()).collect();
        queued.into_iter().for_each(|(one, _)| ring::discard(one));
        fork(|| {
            let reactor = Reactor::new().unwrap();
            let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
            send_packet(&far, b"for the child", &[]).unwrap();
            let message = Executor::new(&reactor).block_on(near.receive()).unwrap();
            assert_eq!(message.bytes(), b"for the child");
        })
        .succeeded();
        drop(peers);
        ring::closer_idle();
    }

    fn threads_of_a_child_agree_on_its_generation() {
        let first = generation();
        fork(|| {
            let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(generation)).collect();
            let told: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert!(told.iter().all(|generation| *generation == told[0] && *generation != first));
        })
        .succeeded();
    }
}
