//! Looking before sleeping: what is sent arrives under each policy, a look in vain is bounded, and with one
//! CPU nobody looks.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ring::{Config, Executor, Kind, Reactor, SPIN_MAX, Socket, Stats, Wait, WaitPolicy};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use testing::{helper, on_each_driver, packet_pair, receive_packet, send_packet, start_helper};

/// The longest there is: so that a look is likely to see an answer, on a busy machine too.
const LONG: WaitPolicy = WaitPolicy::Spin { at_most: SPIN_MAX };

const POLICIES: [WaitPolicy; 4] =
    [WaitPolicy::Sleep, WaitPolicy::spin(), WaitPolicy::Spin { at_most: Duration::ZERO }, LONG];

fn reactor(wait: WaitPolicy) -> Reactor {
    Reactor::with_config(Config { driver: testing::driver(), wait, ..Config::default() }).unwrap()
}

fn cpus() -> usize {
    thread::available_parallelism().unwrap().get()
}

/// What is counted while a receive waits for nothing, for so many timers in a row.
fn waits(reactor: &Reactor, count: u32) -> Stats {
    let before = reactor.stats();
    let executor = Executor::new(reactor);
    for _ in 0..count {
        // Much longer than any look, or it would say nothing.
        executor.block_on(reactor.sleep(SPIN_MAX * 20));
    }
    let mut stats = reactor.stats();
    stats.spins -= before.spins;
    stats.spins_hit -= before.spins_hit;
    stats
}

helper! {
    /// Echoes until nobody is left.
    fn echoes(descriptors: Vec<std::os::fd::OwnedFd>) {
        while let Ok(packet) = receive_packet(&descriptors[0])
            && !packet.bytes.is_empty()
        {
            send_packet(&descriptors[0], &packet.bytes, &[]).unwrap();
        }
    }
}

on_each_driver! {
    fn what_is_sent_arrives_under_each_policy(_reactor: &Reactor) {
        for policy in POLICIES {
            for streams in [false, true] {
                let reactor = reactor(policy);
                let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
                if streams {
                    near.stream();
                }
                let helper = start_helper!(echoes, vec![far]);
                Executor::new(&reactor).block_on(async {
                    for number in 0..500_u32 {
                        near.send(number.to_ne_bytes().as_slice()).await.unwrap();
                        assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
                    }
                });
                drop(near);
                Executor::new(&reactor).settle();
                helper.succeeded();
            }
        }
    }

    fn a_look_that_sees_an_answer_saves_a_sleep(_reactor: &Reactor) {
        if cpus() == 1 {
            return;
        }
        let reactor = reactor(LONG);
        let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(&reactor, far).unwrap();
        let _helper = start_helper!(echoes, vec![far.into_fd().unwrap()]);
        Executor::new(&reactor).block_on(async {
            // As many as it takes: another program may have the second CPU for a while.
            while reactor.stats().spins_hit == 0 {
                near.send("over").await.unwrap();
                near.receive().await.unwrap();
            }
        });
        let stats = reactor.stats();
        assert!(stats.spins_hit <= stats.spins);
    }

    fn looks_in_vain_are_given_up_and_tried_again_now_and_then(_reactor: &Reactor) {
        if cpus() == 1 {
            return;
        }
        let reactor = reactor(WaitPolicy::spin());
        // Three, then sixteen waits of rest, one, and a longer rest. A look that a busy machine has cut short
        // counts for nothing, and is made good.
        let stats = waits(&reactor, 40);
        assert_eq!(stats.spins_hit, 0);
        assert!((4..20).contains(&stats.spins), "{} looks", stats.spins);
    }

    fn sleeping_is_the_default(reactor: &Reactor) {
        assert_eq!(waits(reactor, 5).spins, 0);
    }

    /// Whoever is to answer needs the CPU.
    fn with_one_cpu_for_us_nobody_spins(_reactor: &Reactor) {
        let allowed = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
        let mut one = CpuSet::new();
        one.set(first);
        sched_setaffinity(None, &one).unwrap();
        assert_eq!(cpus(), 1, "the machine's CPUs are counted, not those we may use");
        let reactor = reactor(LONG);
        assert_eq!(waits(&reactor, 5).spins, 0);
    }

    fn a_turn_that_may_not_sleep_does_not_look(_reactor: &Reactor) {
        let reactor = reactor(LONG);
        for _ in 0..100 {
            reactor.turn(Wait::Not).unwrap();
        }
        assert_eq!(reactor.stats().spins, 0);
    }

    /// The moment comes during the look, which ends with it and proves nothing.
    fn a_look_ends_when_the_time_is_up(_reactor: &Reactor) {
        if cpus() == 1 {
            return;
        }
        let reactor = reactor(LONG);
        let before = reactor.stats().spins;
        for round in 1..=20 {
            let moment = Instant::now() + Duration::from_micros(100);
            loop {
                reactor.turn(Wait::Until(moment)).unwrap();
                if Instant::now() >= moment {
                    break;
                }
            }
            assert!(reactor.stats().spins - before >= round, "it gave up");
        }
    }

    fn another_thread_ends_a_look(_reactor: &Reactor) {
        let reactor = reactor(LONG);
        for _ in 0..200 {
            let done = Arc::new(AtomicBool::new(false));
            let (told, remote) = (Arc::clone(&done), reactor.remote());
            let wakes = thread::spawn(move || {
                told.store(true, Ordering::Release);
                remote.wake();
            });
            while !done.load(Ordering::Acquire) {
                reactor.turn(Wait::Forever).unwrap();
            }
            wakes.join().unwrap();
        }
    }

    /// Of the one that a spinner looks at nothing else tells; of the others the kernel does.
    fn others_are_heard_while_one_is_looked_at(_reactor: &Reactor) {
        let reactor = reactor(LONG);
        let pairs = [(); 3].map(|()| Socket::pair(&reactor, Kind::SeqPacket).unwrap());
        pairs.iter().for_each(|(near, _)| near.stream());
        for round in 0..100_u8 {
            for (near, far) in &pairs {
                let far = far.try_clone().unwrap();
                let sends = thread::spawn(move || send_packet(&far, &[round], &[]).unwrap());
                assert_eq!(testing::settle(&reactor, near.receive()).unwrap().bytes(), [round]);
                sends.join().unwrap();
            }
        }
        for (near, far) in pairs {
            send_packet(&far, b"last", &[]).unwrap();
            assert_eq!(testing::settle(&reactor, near.receive()).unwrap().bytes(), b"last");
            drop(far);
            assert!(testing::settle(&reactor, near.receive()).is_err());
        }
    }

    /// A look is spared where none has found anything lately. What it would have found comes all the same.
    fn what_comes_one_at_a_time_and_then_many_at_once_arrives_in_order(_reactor: &Reactor) {
        for policy in POLICIES {
            let reactor = reactor(policy);
            let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
            near.stream();
            let mut sent = 0..;
            let mut received = 0..;
            for together in [1, 1, 40, 2, 1, 3].into_iter().cycle().take(120) {
                for number in sent.by_ref().take(together) {
                    send_packet(&far, &u32::to_ne_bytes(number), &[]).unwrap();
                }
                for number in received.by_ref().take(together) {
                    let received = testing::settle(&reactor, near.receive()).unwrap();
                    assert_eq!(received.bytes(), u32::to_ne_bytes(number));
                }
            }
        }
    }

    fn a_look_sees_what_a_silent_end_says(_reactor: &Reactor) {
        let reactor = reactor(LONG);
        let (near, far) = packet_pair();
        let near = Socket::wrap(&reactor, near).unwrap();
        let closes = thread::spawn(move || drop(far));
        assert!(testing::settle(&reactor, near.receive()).is_err());
        closes.join().unwrap();
    }
}
