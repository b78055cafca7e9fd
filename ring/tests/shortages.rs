//! A kernel that is short of something amid traffic: calls fail with ENOBUFS, ENOMEM, EMFILE, ETOOMANYREFS or
//! EAGAIN for a while, and then they do not. There is an error by that name, or it goes well later; nothing
//! panics, waits for ever, or tries as fast as it can. It knows nothing of refusals for good; those are in
//! `refused.rs`.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::script::SystemCall;
use ring::{
    Config, DriverChoice, DriverKind, Executor, Kind, Message, Reactor, ReceiveError, SendError, Socket,
    StartError, Wait,
};
use testing::{Errno, Host, Trigger, ends, gated, on_each_driver, receive_packet, send_packet, settle, turn};

/// What the kernel says of an enter that it puts off.
const PUT_OFF: [Errno; 3] = [Errno::AGAIN, Errno::BUSY, Errno::NOMEM];

/// What it says of a receive for which it is short of something.
const SHORT: [Errno; 4] = [Errno::NOBUFS, Errno::NOMEM, Errno::MFILE, Errno::NFILE];

/// More sockets than the ring's queue has places.
const MANY: usize = 300;

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

/// There and back again, with a descriptor each way.
fn exchange(reactor: &Reactor) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    let far = Socket::wrap(reactor, far).unwrap();
    settle(reactor, async {
        near.send(Message::from("there").with_descriptor(pipe())).await.unwrap();
        let there = far.receive().await.unwrap();
        assert_eq!((there.bytes(), there.descriptors()), (&b"there"[..], 1));
        far.send(Message::from("and back").with_descriptor(pipe())).await.unwrap();
        let back = near.receive().await.unwrap();
        assert_eq!((back.bytes(), back.descriptors()), (&b"and back"[..], 1));
    });
}

/// How many turns it takes until this time is over, in each of which the reactor may sleep so long.
fn turns_in(reactor: &Reactor, time: Duration) -> u64 {
    let end = Instant::now() + time;
    (0..)
        .take_while(|_| {
            let _ = reactor.turn(Wait::Until(end));
            Instant::now() < end
        })
        .count() as u64
}

fn many(reactor: &Reactor) -> (Vec<Socket>, Vec<OwnedFd>) {
    (0..MANY).map(|_| ends(reactor, false)).unzip()
}

/// Runs until no task is left.
fn run(executor: &Executor) {
    while executor.settle().tasks_left {
        executor.reactor().turn(Wait::Forever).unwrap();
    }
}

fn on_a_ring(reactor: &Reactor) -> bool {
    reactor.driver().kind() == DriverKind::Uring
}

on_each_driver! {
    fn an_enter_that_is_put_off_for_a_while_is_made_up_for(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            for errno in PUT_OFF {
                let before = refusals.refused();
                refusals.next(SystemCall::EnterRing, errno, 20);
                exchange(&reactor);
                reactor.turn(Wait::Not).unwrap();
                let refused = if on_a_ring(&reactor) { 20 } else { 0 };
                while refusals.refused() - before < refused {
                    exchange(&reactor);
                }
            }
        });
    }

    fn traffic_goes_on_while_every_other_enter_is_put_off(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            for errno in PUT_OFF {
                refusals.now_and_then(SystemCall::EnterRing, errno, 1);
                (0..20).for_each(|_| exchange(&reactor));
            }
        });
    }

    /// A queue that cannot be emptied is not tried for every entry anew: they are put back.
    fn what_does_not_fit_into_a_queue_that_is_put_off_waits_behind_it(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            let (nears, fars) = many(&reactor);
            turn(&reactor);
            refusals.each(SystemCall::EnterRing, Errno::AGAIN);
            let before = refusals.seen(SystemCall::EnterRing);
            nears.iter().for_each(Socket::stream);
            reactor.turn(Wait::Not).unwrap();
            let enters = refusals.seen(SystemCall::EnterRing) - before;
            assert!(enters <= 8, "{enters} enters for {MANY} entries");
            refusals.none();
            for (near, far) in nears.iter().zip(&fars) {
                send_packet(far, b"still there", &[pipe().as_fd()]).unwrap();
                assert_eq!(settle(&reactor, near.receive()).unwrap().descriptors(), 1);
            }
        });
    }

    fn what_was_cancelled_meanwhile_comes_home(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            let (nears, fars) = many(&reactor);
            turn(&reactor);
            refusals.each(SystemCall::EnterRing, Errno::AGAIN);
            nears.iter().for_each(Socket::stream);
            reactor.turn(Wait::Not).unwrap();
            drop(nears);
            reactor.turn(Wait::Not).unwrap();
            refusals.none();
            for far in fars {
                testing::wait_until("each socket is closed", || {
                    reactor.turn(Wait::Not).unwrap();
                    testing::set_nonblocking(&far);
                    receive_packet(&far).is_ok_and(|packet| packet.bytes.is_empty())
                });
            }
        });
    }

    /// Of those that were only put back nobody is told that they were sent.
    fn sends_that_are_put_off_end_when_they_have_been_made(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            let (nears, fars) = many(&reactor);
            turn(&reactor);
            refusals.each(SystemCall::EnterRing, Errno::AGAIN);
            let executor = Executor::new(&reactor);
            for (near, far) in nears.into_iter().zip(fars) {
                executor.spawn(async move {
                    near.send(Message::from("sent").with_descriptor(pipe())).await.unwrap();
                    testing::set_nonblocking(&far);
                    assert_eq!(receive_packet(&far).unwrap().bytes, b"sent");
                });
            }
            assert_eq!(executor.settle().tasks_left, on_a_ring(&reactor));
            refusals.none();
            run(&executor);
        });
    }

    /// The ring is asked a thousand times, with pauses; then each turn says so, and timers go off all the
    /// same.
    fn a_turn_says_that_the_kernel_puts_it_off_for_ever(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            if !on_a_ring(&reactor) {
                return;
            }
            let (near, far) = ends(&reactor, true);
            refusals.each(SystemCall::EnterRing, Errno::NOMEM);
            let before = refusals.seen(SystemCall::EnterRing);
            let error = loop {
                if let Err(error) = reactor.turn(Wait::Forever) {
                    break error;
                }
            };
            assert_eq!(error.raw_os_error(), Some(Errno::NOMEM.raw_os_error()));
            assert!((900..=1_100).contains(&(refusals.seen(SystemCall::EnterRing) - before)));
            settle(&reactor, reactor.sleep(Duration::from_millis(5)));
            refusals.none();
            send_packet(&far, b"at last", &[]).unwrap();
            assert_eq!(settle(&reactor, near.receive()).unwrap().bytes(), b"at last");
        });
    }

    fn who_waits_while_enters_are_put_off_does_not_spin(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let reactor = testing::reactor();
            let _waits = ends(&reactor, true);
            refusals.each(SystemCall::EnterRing, Errno::AGAIN);
            let turns = turns_in(&reactor, Duration::from_millis(50));
            assert!(turns <= 60, "{turns} turns in 50 ms");
        });
    }

    fn a_guest_goes_on_when_enters_are_not_put_off_any_more(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            for trigger in [Trigger::Level, Trigger::Edge] {
                let mut host = Host::new(trigger);
                let reactor = host.reactor().clone();
                refusals.next(SystemCall::EnterRing, Errno::AGAIN, 20);
                host.runs(async move {
                    let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
                    let far = Socket::wrap(&reactor, far).unwrap();
                    for _ in 0..20 {
                        near.send(Message::from("to a guest")).await.unwrap();
                        assert_eq!(far.receive().await.unwrap().bytes(), b"to a guest");
                        reactor.sleep(Duration::from_millis(1)).await;
                    }
                });
            }
        });
    }

    fn a_ring_that_is_put_off_from_the_beginning_is_refused(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let asked_for = |driver| Reactor::with_config(Config { driver, ..Config::default() });
            let before = testing::Census::take();
            refusals.each(SystemCall::EnterRing, Errno::AGAIN);
            let auto = asked_for(DriverChoice::Auto).unwrap();
            assert_eq!(auto.driver().kind(), DriverKind::Epoll);
            exchange(&auto);
            let uring = asked_for(DriverChoice::Uring);
            assert!(matches!(uring, Err(StartError::UringRefused { .. })), "{uring:?}");
            drop((auto, uring));
            before.unchanged();
        });
    }

    fn a_ring_that_is_put_off_at_first_is_used(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            refusals.next(SystemCall::EnterRing, Errno::AGAIN, 5);
            // By the name of the driver, so that another one would be an error.
            exchange(&testing::reactor());
        });
    }

    /// Nothing is lost: it stays in the queue until the kernel has what it takes.
    fn a_receive_for_which_the_kernel_is_short_is_tried_again(_reactor: &Reactor) {
        gated(&[SystemCall::Receive], |refusals| {
            let reactor = testing::reactor();
            for errno in SHORT {
                for streams in [false, true] {
                    let (near, far) = ends(&reactor, streams);
                    for message in 0..10_u8 {
                        refusals.next(SystemCall::Receive, errno, 2);
                        send_packet(&far, &[message], &[pipe().as_fd()]).unwrap();
                        let received = settle(&reactor, near.receive()).unwrap();
                        assert_eq!((received.bytes(), received.descriptors()), (&[message][..], 1));
                    }
                }
            }
        });
    }

    fn who_waits_for_memory_to_receive_with_does_not_spin(_reactor: &Reactor) {
        gated(&[SystemCall::Receive], |refusals| {
            let reactor = testing::reactor();
            for errno in SHORT {
                let (near, far) = ends(&reactor, true);
                refusals.each(SystemCall::Receive, errno);
                send_packet(&far, b"waits", &[]).unwrap();
                let turns = turns_in(&reactor, Duration::from_millis(50));
                assert!(turns <= 20, "{turns} turns in 50 ms with {errno:?}");
                refusals.none();
                assert_eq!(settle(&reactor, near.receive()).unwrap().bytes(), b"waits");
            }
        });
    }

    fn a_socket_is_dropped_while_its_receive_waits_for_memory(_reactor: &Reactor) {
        gated(&[SystemCall::Receive], |refusals| {
            let reactor = testing::reactor();
            for streams in [false, true] {
                refusals.none();
                let (near, far) = ends(&reactor, streams);
                refusals.each(SystemCall::Receive, Errno::NOMEM);
                send_packet(&far, b"nobody reads it", &[pipe().as_fd()]).unwrap();
                testing::poll_once(near.receive());
                turn(&reactor);
                drop(near);
                turn(&reactor);
                refusals.none();
                // It was not read, and so the kernel may say that first.
                assert!(receive_packet(&far).map_or(true, |packet| packet.bytes.is_empty()));
            }
        });
    }

    fn a_send_for_which_the_kernel_is_short_says_of_what(_reactor: &Reactor) {
        gated(&[SystemCall::Send], |refusals| {
            let reactor = testing::reactor();
            let (near, far) = ends(&reactor, true);
            for errno in [Errno::NOBUFS, Errno::NOMEM, Errno::TOOMANYREFS] {
                let before = refusals.refused();
                refusals.next(SystemCall::Send, errno, 1);
                let sent = settle(&reactor, near.send(Message::from("refused").with_descriptor(pipe())));
                match sent {
                    Err(SendError::OutOfDescriptors) => assert_eq!(errno, Errno::TOOMANYREFS),
                    Err(SendError::Io(error)) => {
                        assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
                    }
                    // The ring's own sends pass no filter.
                    Ok(()) => assert_eq!(refusals.refused(), before),
                    other => panic!("{other:?}"),
                }
                refusals.none();
                settle(&reactor, near.send(Message::from("and on"))).unwrap();
                while receive_packet(&far).unwrap().bytes != b"and on" {}
            }
        });
    }

    fn a_pair_for_which_the_kernel_is_short_says_of_what(_reactor: &Reactor) {
        gated(&[SystemCall::Pair], |refusals| {
            let reactor = testing::reactor();
            for errno in SHORT {
                refusals.next(SystemCall::Pair, errno, 1);
                let pair = Socket::pair(&reactor, Kind::SeqPacket);
                assert_eq!(pair.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
                exchange(&reactor);
            }
        });
    }

    fn a_socket_that_cannot_be_watched_says_why(_reactor: &Reactor) {
        gated(&[SystemCall::Watch], |refusals| {
            let reactor = testing::reactor();
            if on_a_ring(&reactor) {
                return;
            }
            for errno in [Errno::NOMEM, Errno::NOSPC] {
                let (near, _far) = ends(&reactor, false);
                refusals.next(SystemCall::Watch, errno, 1);
                let Err(ReceiveError::Io(error)) = settle(&reactor, near.receive()) else { panic!() };
                assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
                exchange(&reactor);
            }
        });
    }
}
