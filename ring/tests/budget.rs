//! Descriptors run out: receives wait, nothing is lost, and service resumes when some come free.
//!
//! Each body lowers its own process's limit.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Waker};

use ring::{Config, Executor, Kind, Reactor, ReceiveError, Received, Socket};
use testing::{Census, ends, on_each_driver, poll_once, settle, turn};

/// A reactor that was made under the limit, without a reserve.
fn under(limit: u64, descriptors_reserve: usize) -> (testing::DescriptorLimit, Reactor) {
    // What a round before has let go of is closed by another thread, and would make room.
    ring::closer_idle();
    let limit = testing::limit_descriptors(limit);
    let config = Config { driver: testing::driver(), descriptors_reserve, ..Config::default() };
    (limit, Reactor::with_config(config).unwrap())
}

on_each_driver! {
    // A silent send came home only if nothing was queued anew while its enter was reaped; and receives were
    // queued anew for each message where the budget is small.
    fn posts_go_back_and_forth_where_descriptors_are_few(_reactor: &Reactor) {
        let (_limit, reactor) = under(128, 32);
        let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(&reactor, far).unwrap();
        near.stream();
        far.stream();
        let executor = Executor::new(&reactor);
        executor.spawn(async move {
            while let Ok(message) = far.receive().await {
                far.post(&[message.bytes()], Vec::new());
            }
        });
        executor.block_on(async {
            for round in 0..20_u8 {
                near.post(&[&[round]], Vec::new());
                assert_eq!(near.receive().await.unwrap().bytes(), [round]);
            }
        });
    }

    fn a_receive_waits_when_descriptors_run_out(_reactor: &Reactor) {
        for streams in [false, true] {
            let (_limit, reactor) = under(64, 0);
            let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
            near.set_descriptors_max(1);
            if streams {
                near.stream();
            }
            let (pipe, _writer) = std::io::pipe().unwrap();
            let mut taken = Vec::new();
            let mut sent = 0_u8;
            // One message at a time, until one does not come.
            while taken.len() == usize::from(sent) {
                testing::send_packet(&far, &[sent], &[pipe.as_fd()]).unwrap();
                sent += 1;
                take_if_it_comes(&reactor, &near, &mut taken);
            }
            let waiting = taken.len();
            assert!(waiting >= 16, "{waiting}");
            // More are sent, none is received: they wait where they are.
            for _ in 0..10 {
                testing::send_packet(&far, &[sent], &[pipe.as_fd()]).unwrap();
                sent += 1;
            }
            take_if_it_comes(&reactor, &near, &mut taken);
            assert_eq!(taken.len(), waiting);
            // One is closed, one comes; and so on.
            let executor = Executor::new(&reactor);
            for number in waiting..usize::from(sent) {
                drop(taken.remove(0));
                let received = executor.block_on(near.receive()).unwrap();
                assert_eq!(received.bytes(), [number as u8]);
                assert_eq!(received.descriptors(), 1);
                taken.push(received);
            }
        }
    }

    fn a_receive_waits_for_as_many_as_the_socket_takes(_reactor: &Reactor) {
        for streams in [false, true] {
            let (_limit, reactor) = under(96, 0);
            let (near, far) = ends(&reactor, streams);
            let (pipe, _writer) = std::io::pipe().unwrap();
            let fds: Vec<BorrowedFd<'_>> = vec![pipe.as_fd(); 15];
            for number in 0..20_u8 {
                testing::send_packet(&far, &[number], &fds).unwrap();
            }
            let mut taken = std::collections::VecDeque::new();
            let executor = Executor::new(&reactor);
            for number in 0..20_u8 {
                // All that are kept, and one more, would be too many.
                if taken.len() == 4 {
                    taken.pop_front();
                    taken.pop_front();
                }
                let received = executor.block_on(near.receive()).unwrap();
                assert_eq!(received.bytes(), [number]);
                assert_eq!(received.descriptors(), 15);
                taken.push_back(received);
            }
        }
    }

    /// Somebody in the process keeps most of them for good: that slows us, it does not stop us.
    fn a_lasting_shortage_does_not_end_service(_reactor: &Reactor) {
        let (_limit, reactor) = under(64, 0);
        let (near, far) = ends(&reactor, false);
        let (pipe, _writer) = std::io::pipe().unwrap();
        let room = 64 - Census::take().len();
        let kept: Vec<_> = (0..room - 5).map(|_| pipe.try_clone().unwrap()).collect();
        for number in 0..3_u8 {
            testing::send_packet(&far, &[number], &[pipe.as_fd(); 2]).unwrap();
            let received = settle(&reactor, near.receive()).unwrap();
            assert_eq!((received.bytes(), received.descriptors()), (&[number][..], 2));
        }
        drop(kept);
    }

    /// A limit that is lowered closes nothing. What is open above it takes no number below it; while that was
    /// counted, a receive waited for ever although a number below the limit was free.
    fn what_is_open_above_a_lowered_limit_takes_no_room(_reactor: &Reactor) {
        for streams in [false, true] {
            let (_limit, reactor) = under(200, 0);
            let (near, far) = ends(&reactor, streams);
            near.set_descriptors_max(1);
            let (pipe, _writer) = std::io::pipe().unwrap();
            let last_below = pipe.try_clone().unwrap();
            let above: Vec<_> = (0..50).map(|_| pipe.try_clone().unwrap()).collect();
            let lowered = testing::limit_descriptors(last_below.as_raw_fd() as u64 + 1);
            let mut taken = Vec::new();
            testing::send_packet(&far, b"one", &[pipe.as_fd()]).unwrap();
            take_if_it_comes(&reactor, &near, &mut taken);
            assert!(taken.is_empty());
            // One is closed below the limit, one comes, and no more.
            drop(last_below);
            let received = settle(&reactor, near.receive()).unwrap();
            assert_eq!((received.bytes(), received.descriptors()), (&b"one"[..], 1));
            testing::send_packet(&far, b"two", &[pipe.as_fd()]).unwrap();
            take_if_it_comes(&reactor, &near, &mut taken);
            assert!(taken.is_empty());
            drop(received);
            assert_eq!(settle(&reactor, near.receive()).unwrap().bytes(), b"two");
            drop((lowered, above));
        }
    }

    fn messages_with_fewer_than_there_is_room_for_lose_nothing(_reactor: &Reactor) {
        for streams in [false, true] {
            let (_limit, reactor) = under(1024, 32);
            let (near, far) = ends(&reactor, streams);
            near.set_descriptors_max(200);
            let (pipe, _writer) = std::io::pipe().unwrap();
            let fds: Vec<BorrowedFd<'_>> = vec![pipe.as_fd(); 200];
            for number in 0..20_u8 {
                testing::send_packet(&far, &[number], &fds).unwrap();
            }
            for number in 0..20_u8 {
                let received = settle(&reactor, near.receive()).unwrap();
                assert_eq!(received.bytes(), [number]);
                assert_eq!(received.descriptors(), 200);
            }
        }
    }

    /// A flood of descriptors leaves the reserve alone.
    fn the_reserve_is_kept(_reactor: &Reactor) {
        const LIMIT: u64 = 512;
        const RESERVE: usize = 100;
        for streams in [false, true] {
            let (_limit, reactor) = under(LIMIT, RESERVE);
            let (near, far) = ends(&reactor, streams);
            let far = Socket::wrap(&reactor, far).unwrap();
            let pipe = ring::Fd::from(OwnedFd::from(std::io::pipe().unwrap().0));
            for _ in 0..60 {
                far.post(&[b"flood"], vec![pipe.clone(); 16]);
            }
            let mut taken = Vec::new();
            let executor = Executor::new(&reactor);
            for _ in 0..100 {
                executor.settle();
                take_if_it_comes(&reactor, &near, &mut taken);
            }
            assert!(Census::take().len() + RESERVE <= LIMIT as usize);
            assert!(Census::take().len() + RESERVE + 100 > LIMIT as usize);
        }
    }

    /// The application opens what it likes, without telling anybody.
    fn descriptors_opened_by_others_are_noticed(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let (pipe, _writer) = std::io::pipe().unwrap();
        let fds: Vec<BorrowedFd<'_>> = vec![pipe.as_fd(); 8];
        let limit = testing::leave_descriptors(20);
        let mut taken = Vec::new();
        let mut lost = 0;
        for number in 0..10_u8 {
            testing::send_packet(&far, &[number], &fds).unwrap();
            poll_once(near.receive());
            turn(reactor);
            match near.try_receive() {
                Some(Ok(received)) => taken.push(received),
                Some(Err(ReceiveError::DescriptorsLost(received))) => {
                    lost += 1;
                    taken.push(received);
                }
                Some(Err(error)) => panic!("{error}"),
                None => break,
            }
        }
        // Said by name, and not again and again.
        assert!(lost <= 1, "{lost}");
        assert!(taken.len() <= 3, "{}", taken.len());
        drop(taken);
        drop(limit);
    }

    /// Many reactors of one process share its limit, and each can receive.
    fn many_reactors_do_not_starve_each_other(_reactor: &Reactor) {
        let (_limit, _one_of_them) = under(1024, 32);
        let reactors: Vec<_> = (0..8).map(|_| testing::reactor()).collect();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let ends: Vec<_> = reactors.iter().map(|reactor| ends(reactor, true)).collect();
        for round in 0..20_u8 {
            for (near, far) in &ends {
                testing::send_packet(far, &[round], &[pipe.as_fd(); 4]).unwrap();
                let received = settle(near.reactor(), near.receive()).unwrap();
                assert_eq!((received.bytes(), received.descriptors()), (&[round][..], 4));
            }
        }
    }

    fn a_socket_that_takes_no_descriptors_needs_no_room(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, false);
            near.set_descriptors_max(0);
            let limit = testing::leave_descriptors(0);
            if streams {
                near.stream();
            }
            for number in 0..100_u8 {
                testing::send_packet(&far, &[number], &[]).unwrap();
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
            }
            drop(limit);
        }
    }

    fn a_connection_waits_until_there_is_a_descriptor_for_it(reactor: &Reactor) {
        let path = std::env::temp_dir().join(format!("sendright-budget-{}", std::process::id()));
        let listener = Socket::listen(reactor, &path, Kind::SeqPacket).unwrap();
        let connected = settle(reactor, Socket::connect(reactor, &path, Kind::SeqPacket)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut accept = pin!(listener.accept());
        let limit = testing::leave_descriptors(0);
        assert!(accept.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        turn(reactor);
        assert!(accept.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(limit);
        let accepted = settle(reactor, accept).unwrap();
        settle(reactor, accepted.send("hello")).unwrap();
        assert_eq!(settle(reactor, connected.receive()).unwrap().bytes(), b"hello");
    }

    fn a_socket_can_be_closed_without_a_free_descriptor(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let (pipe, _writer) = std::io::pipe().unwrap();
        testing::send_packet(&far, b"unread", &[pipe.as_fd(); 16]).unwrap();
        let limit = testing::leave_descriptors(0);
        drop(near);
        turn(reactor);
        drop(limit);
        ring::closer_idle();
        assert!(testing::send_packet(&far, b"gone", &[]).is_err());
    }
}

/// Asks for a message and takes it if it comes without waiting.
fn take_if_it_comes(reactor: &Reactor, near: &Socket, taken: &mut Vec<Received>) {
    if near
        .poll_receive(&mut Context::from_waker(Waker::noop()))
        .map(|received| taken.push(received.unwrap()))
        .is_ready()
    {
        return;
    }
    turn(reactor);
    if let Some(received) = near.try_receive() {
        taken.push(received.unwrap());
    }
}
