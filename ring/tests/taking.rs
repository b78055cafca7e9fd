//! One message at a time, for several processes that receive on one socket: nobody takes what nobody there
//! awaits.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ring::{Config, Executor, Reactor, ReceiveError, Socket};
use testing::{helper, on_each_driver, packet_pair, poll_once, send_packet, settle, start_helper, turn};

helper! {
    /// Takes three messages, and says so for each on its second descriptor.
    fn taker(descriptors: Vec<OwnedFd>) {
        let [shared, told] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let shared = Socket::wrap(&reactor, shared).unwrap();
        for _ in 0..3 {
            let received = settle(&reactor, shared.take_one()).unwrap();
            send_packet(&told, received.bytes(), &[]).unwrap();
        }
    }
}

/// Two workers on one socket, and the end to send on.
fn workers(reactor: &Reactor) -> (Socket, Socket, OwnedFd) {
    let (shared, far) = packet_pair();
    let one = Socket::wrap(reactor, shared.try_clone().unwrap()).unwrap();
    let other = Socket::wrap(reactor, shared).unwrap();
    (one, other, far)
}

on_each_driver! {
    fn messages_are_taken_one_by_one_by_whoever_asks(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        for number in 0..4_u8 {
            send_packet(&far, &[number], &[]).unwrap();
        }
        assert_eq!(settle(reactor, one.take_one()).unwrap().bytes(), [0]);
        assert_eq!(settle(reactor, other.take_one()).unwrap().bytes(), [1]);
        assert_eq!(settle(reactor, other.take_one()).unwrap().bytes(), [2]);
        assert_eq!(settle(reactor, one.take_one()).unwrap().bytes(), [3]);
    }

    fn who_does_not_await_takes_nothing(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        let idle = pin!(one.take_one());
        send_packet(&far, b"for whoever asks", &[]).unwrap();
        turn(reactor);
        assert_eq!(settle(reactor, other.take_one()).unwrap().bytes(), b"for whoever asks");
        send_packet(&far, b"for the first", &[]).unwrap();
        assert_eq!(settle(reactor, idle).unwrap().bytes(), b"for the first");
    }

    /// Even if it was found readable for it.
    fn who_has_given_up_has_taken_nothing(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        {
            let mut given_up = pin!(one.take_one());
            assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            send_packet(&far, b"still here", &[]).unwrap();
            turn(reactor);
        }
        poll_once(one.take_one());
        turn(reactor);
        assert_eq!(settle(reactor, other.take_one()).unwrap().bytes(), b"still here");
    }

    fn who_comes_too_late_waits_for_the_next(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        let executor = Executor::new(reactor);
        let (first, second) = (Socket::take_one(&one), Socket::take_one(&other));
        let both = async {
            let taken = first.await.unwrap();
            send_packet(&far, b"the next", &[]).unwrap();
            taken
        };
        let (mut both, mut second) = (pin!(both), pin!(second));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(both.as_mut().poll(context).is_pending());
        assert!(second.as_mut().poll(context).is_pending());
        send_packet(&far, b"the only one", &[]).unwrap();
        turn(reactor);
        assert_eq!(executor.block_on(both).bytes(), b"the only one");
        assert_eq!(executor.block_on(second).unwrap().bytes(), b"the next");
    }

    fn the_end_is_told_to_each(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        send_packet(&far, b"the last", &[]).unwrap();
        drop(far);
        assert_eq!(settle(reactor, one.take_one()).unwrap().bytes(), b"the last");
        assert!(matches!(settle(reactor, other.take_one()), Err(ReceiveError::Closed)));
        assert!(matches!(settle(reactor, one.take_one()), Err(ReceiveError::Closed)));
        assert!(matches!(settle(reactor, one.take_one()), Err(ReceiveError::Closed)));
    }

    /// What the peer left unread makes the next receive fail once, whoever does it.
    fn a_reset_hides_nothing(reactor: &Reactor) {
        let (one, _other, far) = workers(reactor);
        send_packet(&far, b"the last", &[]).unwrap();
        settle(reactor, one.send("never read")).unwrap();
        drop(far);
        assert_eq!(settle(reactor, one.take_one()).unwrap().bytes(), b"the last");
        assert!(matches!(settle(reactor, one.take_one()), Err(ReceiveError::Closed)));
        assert_eq!(reactor.stats().resets, 1);
    }

    fn empty_packets_are_counted_and_are_not_the_end(reactor: &Reactor) {
        let (one, other, far) = workers(reactor);
        poll_once(one.take_one());
        turn(reactor);
        for _ in 0..50 {
            send_packet(&far, b"", &[]).unwrap();
        }
        send_packet(&far, b"a message", &[]).unwrap();
        assert_eq!(settle(reactor, other.take_one()).unwrap().bytes(), b"a message");
        assert_eq!(reactor.stats().empty_packets, 50);
    }

    fn descriptors_come_with_it_and_no_more_than_asked_for(reactor: &Reactor) {
        let (one, _other, far) = workers(reactor);
        one.set_descriptors_max(2);
        let fds = [far.as_fd(); 3];
        send_packet(&far, b"two", &fds[..2]).unwrap();
        send_packet(&far, b"three", &fds).unwrap();
        let mut received = settle(reactor, one.take_one()).unwrap();
        assert_eq!(received.take_descriptors().len(), 2);
        assert!(received.credentials().is_some());
        let Err(ReceiveError::DescriptorsLost(cut)) = settle(reactor, one.take_one()) else {
            panic!("three were taken");
        };
        assert_eq!((cut.bytes(), cut.descriptors()), (&b"three"[..], 2));
    }

    /// It stays in the queue, where a worker with room may take it.
    fn without_descriptors_it_is_left_where_it_is(_reactor: &Reactor) {
        let _limit = testing::limit_descriptors(64);
        let config = Config { driver: testing::driver(), descriptors_reserve: 0, ..Config::default() };
        let reactor = Reactor::with_config(config).unwrap();
        let executor = Executor::new(&reactor);
        let (one, _other, far) = workers(&reactor);
        one.set_descriptors_max(1);
        let mut kept = Vec::new();
        let mut taking = loop {
            send_packet(&far, b"with one", &[far.as_fd()]).unwrap();
            let mut taking = Box::pin(one.take_one());
            let _ = taking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            turn(&reactor);
            match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(received) => kept.push(received.unwrap()),
                Poll::Pending => break taking,
            }
        };
        assert!(kept.iter().all(|received| received.descriptors() == 1));
        turn(&reactor);
        assert!(taking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(reactor.stats().receives_starved > 0);
        drop(kept.pop());
        assert_eq!(executor.block_on(taking).unwrap().descriptors(), 1);
    }

    /// Dropping one worker's end is not the end for the others.
    fn several_processes_take_and_each_message_is_taken_once(reactor: &Reactor) {
        let (shared, far) = packet_pair();
        let (told, tell) = packet_pair();
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let fds = vec![shared.try_clone().unwrap(), tell.try_clone().unwrap()];
                start_helper!(taker, fds)
            })
            .collect();
        drop((shared, tell));
        let executor = Executor::new(reactor);
        let far = Socket::wrap(reactor, far).unwrap();
        let told = Socket::wrap(reactor, told).unwrap();
        let mut taken = executor.block_on(async {
            let mut taken = Vec::new();
            for number in 0..9_u8 {
                far.send([number].to_vec()).await.unwrap();
                taken.extend_from_slice(told.receive().await.unwrap().bytes());
            }
            taken
        });
        taken.sort_unstable();
        assert_eq!(taken, (0..9).collect::<Vec<_>>());
        takers.into_iter().for_each(testing::Helper::succeeded);
    }
}
