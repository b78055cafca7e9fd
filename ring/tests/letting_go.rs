//! Many sockets that are let go of as soon as they came: their peers know at once, and they are closed
//! together a moment later, when fewer descriptors are in flight.
//!
//! Only where an executor takes the turns, since nobody else sees to it that nothing stays open.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ring::{AbstractName, Datagrams, Executor, Kind, Message, Reactor, Socket};
use rustix::event::{PollFd, PollFlags, Timespec};
use testing::{Census, Lingering, on_each_driver, packet_pair, settle};

/// So many are closed at once between two sleeps: `CLOSED_AT_ONCE_MAX`.
const CLOSED_AT_ONCE_MAX: usize = 4;

/// Before so many sleeps there may be a few after there were many: `FEW_BEFORE_MAX`.
const FEW_BEFORE_MAX: usize = 4;

/// So many may wait: `RETIRED_MAX`.
const WAITING_MAX: usize = 32;

/// So many are given to other threads as they come: `ELSEWHERE_AT_ONCE_MAX`.
const ELSEWHERE_AT_ONCE_MAX: usize = 8;

/// So many of those that follow are given to them together: `ELSEWHERE_TOGETHER_MAX`.
const ELSEWHERE_TOGETHER_MAX: usize = 8;

/// After so many turns a reactor has noticed that there are fewer descriptors: `TURNS_MAX` of its budget, and
/// one.
const TURNS_TO_NOTICE: usize = 65;

/// One that came from somewhere, and what is at its other end.
fn arrived(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (here, there) = packet_pair();
    let socket = Socket::wrap(reactor, here).unwrap();
    socket.set_private(true);
    socket.set_nameless();
    (socket, there)
}

/// One whose maker may have taken back what was asked for on it, so that no look into it tells anything.
fn doubtful(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (socket, there) = arrived(reactor);
    socket.ask_for_credentials();
    (socket, there)
}

fn made_here(reactor: &Reactor) -> (Socket, OwnedFd) {
    Socket::pair(reactor, Kind::SeqPacket).unwrap()
}

/// How one comes by a socket.
type Way = fn(&Reactor) -> (Socket, OwnedFd);
const WAYS: [Way; 2] = [arrived, made_here];

/// What is let go of after this, before the next sleep, is one of many.
fn let_go_of_the_first(reactor: &Reactor) {
    (0..CLOSED_AT_ONCE_MAX).for_each(|_| drop(made_here(reactor)));
}

/// Whether the other end is gone, or shut down.
fn is_over(fd: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(fd, PollFlags::empty())];
    rustix::event::poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    asked[0].revents().contains(PollFlags::HUP)
}

/// Without waiting for those that are being closed, as a census does.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A sleep that ends by itself.
async fn sleep_once(reactor: &Reactor) {
    reactor.sleep(Duration::from_millis(1)).await;
}

/// A turn in which nobody sleeps.
async fn go_on() {
    let mut went_on = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut went_on, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

on_each_driver! {
    fn the_peer_knows_at_once(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            for (socket, there) in [arrived(reactor), made_here(reactor)] {
                socket.try_send("farewell").unwrap();
                drop(socket);
                assert!(is_over(&there));
                assert_eq!(testing::receive_packet(&there).unwrap().bytes, b"farewell");
                assert!(testing::receive_packet(&there).unwrap().bytes.is_empty());
                assert!(testing::send_packet(&there, b"are you there?", &[]).is_err());
            }
        });
    }

    fn it_waits_for_the_reactor_to_sleep(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            for make in WAYS {
                let (socket, _there) = make(reactor);
                let census = Census::take();
                drop(socket);
                assert_eq!(Census::take().len(), census.len(), "closed already");
                sleep_once(reactor).await;
                assert_eq!(Census::take().len(), census.len() - 1);
            }
        });
    }

    /// What it had still to say leaves in the turn that sleeps.
    fn so_does_one_whose_last_letter_has_still_to_leave(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let (socket, there) = arrived(reactor);
            socket.post(&[b"farewell"], Vec::new());
            let census = Census::take();
            drop(socket);
            assert_eq!(Census::take().len(), census.len(), "closed already");
            sleep_once(reactor).await;
            assert_eq!(Census::take().len(), census.len() - 1);
            assert_eq!(testing::receive_packet(&there).unwrap().bytes, b"farewell");
        });
    }

    /// Each time a thread is woken takes longer than what it does then.
    fn those_that_other_threads_close_are_given_to_them_together(reactor: &Reactor) {
        settle(reactor, async {
            (0..ELSEWHERE_AT_ONCE_MAX).for_each(|_| {
                let (end, _other) = doubtful(reactor);
                let census = Census::take();
                drop(end);
                ring::closer_idle();
                assert_eq!(Census::take().len(), census.len() - 1);
            });
            for round in 0..2 {
                let (mut ends, _others): (Vec<_>, Vec<_>) =
                    (0..ELSEWHERE_TOGETHER_MAX).map(|_| doubtful(reactor)).unzip();
                let last = ends.pop();
                let census = Census::take();
                drop(ends);
                ring::closer_idle();
                assert_eq!(Census::take().len(), census.len(), "round {round}: closed one by one");
                drop(last);
                ring::closer_idle();
                assert_eq!(Census::take().len(), census.len() - ELSEWHERE_TOGETHER_MAX, "round {round}");
            }
        });
    }

    fn or_before_the_reactor_sleeps(reactor: &Reactor) {
        settle(reactor, async {
            (0..ELSEWHERE_AT_ONCE_MAX).for_each(|_| drop(doubtful(reactor)));
            ring::closer_idle();
            let (socket, there) = doubtful(reactor);
            let census = Census::take();
            drop(socket);
            assert!(is_over(&there));
            assert_eq!(Census::take().len(), census.len());
            sleep_once(reactor).await;
            ring::closer_idle();
            assert_eq!(Census::take().len(), census.len() - 1);
        });
    }

    fn what_was_given_together_does_not_stand_behind_what_lingers(reactor: &Reactor) {
        settle(reactor, async {
            // Two threads are there, and idle.
            let (nears, readers): (Vec<_>, Vec<_>) = (0..2)
                .map(|_| testing::lingering_tcp())
                .map(|Lingering { near, far }| (near, far))
                .unzip();
            nears.into_iter().for_each(ring::discard);
            drop(readers);
            ring::closer_idle();
            (0..ELSEWHERE_AT_ONCE_MAX).for_each(|_| drop(doubtful(reactor)));
            ring::closer_idle();
            let Lingering { near, far: reader } = testing::lingering_tcp();
            // Instead of the lingering one the other end of the second.
            let before = open_descriptors();
            let ((first, there), (second, _other)) = (doubtful(reactor), doubtful(reactor));
            testing::send_packet(&there, b"close this", &[near.as_fd()]).unwrap();
            drop((near, there, first, second));
            while open_descriptors() > before {
                sleep_once(reactor).await;
            }
            assert!(ring::closer_busy(), "the first has been closed");
            drop(reader);
            ring::closer_idle();
        });
    }

    fn whoever_lets_go_of_none_between_two_sleeps_begins_anew(reactor: &Reactor) {
        settle(reactor, async {
            for _ in 0..2 {
                for _ in 0..ELSEWHERE_AT_ONCE_MAX {
                    let (end, _other) = doubtful(reactor);
                    let census = Census::take();
                    drop(end);
                    ring::closer_idle();
                    assert_eq!(Census::take().len(), census.len() - 1);
                }
                sleep_once(reactor).await;
                sleep_once(reactor).await;
            }
        });
    }

    fn or_at_once_where_nobody_turns(reactor: &Reactor) {
        for _ in 0..=ELSEWHERE_AT_ONCE_MAX {
            let (socket, _there) = doubtful(reactor);
            let census = Census::take();
            drop(socket);
            ring::closer_idle();
            assert_eq!(Census::take().len(), census.len() - 1);
        }
    }

    fn what_has_seen_a_sleep_is_closed_where_it_is_dropped(reactor: &Reactor) {
        settle(reactor, async {
            for (socket, _there) in [arrived(reactor), made_here(reactor)] {
                sleep_once(reactor).await;
                let_go_of_the_first(reactor);
                let census = Census::take();
                drop(socket);
                assert_eq!(Census::take().len(), census.len() - 1);
            }
        });
    }

    /// Whoever accepts takes turns in between, and those who connect send many together.
    fn turns_in_which_nobody_sleeps_do_not_count(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            for (socket, _there) in [arrived(reactor), made_here(reactor)] {
                let (near, far) = made_here(reactor);
                go_on().await;
                let sent = [near.send_in_any_order("one"), near.send_in_any_order("another")];
                for sending in sent {
                    sending.await.unwrap();
                }
                let census = Census::take();
                drop(socket);
                assert_eq!(Census::take().len(), census.len(), "closed already");
                drop((near, far));
            }
        });
    }

    fn where_there_were_many_the_first_wait_too_until_there_were_often_few(reactor: &Reactor) {
        settle(reactor, async {
            (0..=CLOSED_AT_ONCE_MAX).for_each(|_| drop(made_here(reactor)));
            // Nothing was let go of before it, and so it tells nothing.
            sleep_once(reactor).await;
            sleep_once(reactor).await;
            for closed in (0..=FEW_BEFORE_MAX).map(|sleeps| usize::from(sleeps == FEW_BEFORE_MAX)) {
                let (socket, _there) = made_here(reactor);
                let census = Census::take();
                drop(socket);
                assert_eq!(Census::take().len(), census.len() - closed);
                sleep_once(reactor).await;
            }
        });
    }

    fn the_first_between_two_sleeps_are_closed_where_they_are_dropped(reactor: &Reactor) {
        settle(reactor, async {
            for _ in 0..2 {
                let pairs: Vec<_> = (0..CLOSED_AT_ONCE_MAX).map(|_| made_here(reactor)).collect();
                for (socket, _there) in pairs {
                    let census = Census::take();
                    drop(socket);
                    assert_eq!(Census::take().len(), census.len() - 1);
                }
                sleep_once(reactor).await;
            }
        });
    }

    fn a_name_is_free_at_once(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let name = AbstractName::random("letting go ", 12).unwrap();
            for _ in 0..2 {
                drop(Datagrams::bind(reactor, &name).unwrap());
            }
        });
    }

    fn nothing_waits_where_nobody_turns(reactor: &Reactor) {
        for (socket, _there) in [arrived(reactor), made_here(reactor)] {
            let census = Census::take();
            drop(socket);
            assert_eq!(Census::take().len(), census.len() - 1);
        }
    }

    fn nothing_is_left_open_by_an_executor_that_has_ended(reactor: &Reactor) {
        let census = Census::take();
        settle(reactor, async {
            let_go_of_the_first(reactor);
            drop((arrived(reactor), made_here(reactor)));
        });
        census.unchanged();
        let executor = Executor::new(reactor);
        let other = reactor.clone();
        executor.spawn(async move {
            let_go_of_the_first(&other);
            drop((arrived(&other), made_here(&other)));
        });
        executor.settle();
        census.unchanged();
    }

    fn nothing_is_left_open_by_an_executor_in_an_executor(reactor: &Reactor) {
        let census = Census::take();
        settle(reactor, async {
            settle(reactor, async {
                let_go_of_the_first(reactor);
                drop(made_here(reactor));
            });
            census.unchanged();
            let_go_of_the_first(reactor);
            let (socket, there) = made_here(reactor);
            drop(socket);
            assert!(Census::take().len() > census.len() + 1, "closed already");
            drop(there);
        });
        census.unchanged();
    }

    fn no_more_wait_than_there_may(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let pairs: Vec<_> = (0..=WAITING_MAX).map(|_| made_here(reactor)).collect();
            let census = Census::take();
            let mut there = Vec::new();
            for (count, (socket, far)) in pairs.into_iter().enumerate() {
                there.push(far);
                drop(socket);
                let closed = if count < WAITING_MAX { 0 } else { WAITING_MAX };
                assert_eq!(census.len() - Census::take().len(), closed, "the {count}th");
            }
        });
    }

    fn none_waits_for_longer_than_it_may_where_nobody_sleeps(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let pairs = [arrived(reactor), made_here(reactor)];
            let census = Census::take();
            let [_there, _other] = pairs.map(|(socket, there)| {
                drop(socket);
                there
            });
            while Census::take().len() > census.len() - 2 {
                go_on().await;
            }
        });
    }

    fn none_waits_where_few_descriptors_are_left(reactor: &Reactor) {
        settle(reactor, async {
            let pairs = [arrived(reactor), made_here(reactor)];
            // A message can bring 253.
            let _limit = testing::leave_descriptors(253 + WAITING_MAX);
            for _ in 0..TURNS_TO_NOTICE {
                go_on().await;
            }
            let_go_of_the_first(reactor);
            for (socket, _there) in pairs {
                let census = Census::take();
                drop(socket);
                assert_eq!(Census::take().len(), census.len() - 1);
            }
        });
    }

    fn those_that_wait_are_closed_elsewhere_where_few_descriptors_are_left(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let (socket, there) = made_here(reactor);
            let (inner, other) = packet_pair();
            testing::send_packet(&there, b"keep this", &[inner.as_fd()]).unwrap();
            drop((inner, socket));
            // Of what is in it nothing can be taken out.
            let _limit = testing::leave_descriptors(0);
            for _ in 0..TURNS_TO_NOTICE {
                go_on().await;
            }
            testing::wait_until("it is closed", || is_over(&other));
        });
    }

    fn what_a_peer_has_left_in_one_is_closed_with_it(reactor: &Reactor) {
        let census = Census::take();
        settle(reactor, async {
            for make in WAYS {
                let_go_of_the_first(reactor);
                let (socket, there) = make(reactor);
                let (inner, other) = packet_pair();
                testing::send_packet(&there, b"keep this", &[inner.as_fd()]).unwrap();
                drop((inner, socket));
                sleep_once(reactor).await;
                testing::wait_until("it is closed", || is_over(&other));
            }
        });
        census.unchanged();
    }

    fn what_lingers_in_one_does_not_hold_up_the_reactor(reactor: &Reactor) {
        // An empty packet must not pass for the end.
        for (make, bytes) in WAYS.into_iter().zip([&b"close this"[..], b""]) {
            settle(reactor, async {
                let_go_of_the_first(reactor);
                let (socket, there) = make(reactor);
                let Lingering { near, far: reader } = testing::lingering_tcp();
                testing::send_packet(&there, bytes, &[near.as_fd()]).unwrap();
                drop((near, socket));
                sleep_once(reactor).await;
                assert!(ring::closer_busy(), "this thread has closed it");
                drop(reader);
                ring::closer_idle();
            });
        }
    }

    fn what_was_queued_goes_out_before(reactor: &Reactor) {
        settle(reactor, async {
            let_go_of_the_first(reactor);
            let (socket, there) = made_here(reactor);
            socket.post(&[b"one"], Vec::new());
            socket.send(Message::from("two")).let_go();
            drop(socket);
            sleep_once(reactor).await;
            for expected in [&b"one"[..], b"two", b""] {
                assert_eq!(testing::receive_packet(&there).unwrap().bytes, expected);
            }
        });
    }
}
