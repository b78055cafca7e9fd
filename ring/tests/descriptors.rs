//! Every descriptor that arrives is an `OwnedFd` of somebody, in order and close-on-exec, or is closed; what
//! was cut off is said by name; and receive buffers come back.
//!
//! Each body ends with the descriptors it began with, which the harness checks.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::pin::pin;
use std::task::{Context, Waker};

use ring::{
    Config, DESCRIPTORS_MAX, Executor, Fd, Kind, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, Received,
    SendError, Socket,
};
use testing::{ends, helper, on_each_driver, settle, start_helper, turn};

/// So many descriptors that can be told apart.
fn distinct(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| OwnedFd::from(std::io::pipe().unwrap().0)).collect()
}

fn inode(fd: impl AsFd) -> u64 {
    File::from(fd.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
}

fn inodes(fds: &[OwnedFd]) -> Vec<u64> {
    fds.iter().map(inode).collect()
}

fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

fn is_close_on_exec(fd: &OwnedFd) -> bool {
    const CLOEXEC: u32 = 0o2_000_000;
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & CLOEXEC != 0
}

fn with_few_buffers(buffers: u16) -> Reactor {
    Reactor::with_config(Config { driver: testing::driver(), buffers, ..Config::default() }).unwrap()
}

on_each_driver! {
    fn many_descriptors_arrive_in_order(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            near.set_descriptors_max(DESCRIPTORS_MAX);
            let far = Socket::wrap(reactor, far).unwrap();
            for count in [1, 2, 3, 16, 17, DESCRIPTORS_MAX] {
                let fds = distinct(count);
                let expected = inodes(&fds);
                let mut message = Message::from("many");
                fds.into_iter().for_each(|fd| message.push_descriptor(fd));
                let mut received = settle(reactor, async {
                    far.send(message).await.unwrap();
                    near.receive().await.unwrap()
                });
                assert_eq!(received.bytes(), b"many");
                let fds = received.take_descriptors();
                assert_eq!(inodes(&fds), expected);
                assert!(fds.iter().all(is_close_on_exec));
            }
        }
    }

    fn one_more_than_a_message_carries_is_refused(reactor: &Reactor) {
        let (near, _far) = ends(reactor, false);
        let fd = Fd::from(distinct(1).remove(0));
        let mut message = Message::from("too many");
        (0..=DESCRIPTORS_MAX).for_each(|_| message.push_descriptor(fd.clone()));
        assert!(matches!(near.try_send(message.clone()), Err(SendError::TooLarge)));
        assert!(matches!(settle(reactor, near.send(message)), Err(SendError::TooLarge)));
    }

    fn more_than_the_socket_takes_is_an_error_with_the_first_of_them(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let fds = distinct(40);
            testing::send_packet(&far, b"17", &borrowed(&fds[..17])).unwrap();
            testing::send_packet(&far, b"16", &borrowed(&fds[..16])).unwrap();
            let lost = settle(reactor, near.receive());
            let Err(ReceiveError::DescriptorsLost(mut received)) = lost else { panic!("{lost:?}") };
            assert_eq!(received.bytes(), b"17");
            assert_eq!(inodes(&received.take_descriptors()), inodes(&fds[..16]));
            assert_eq!(settle(reactor, near.receive()).unwrap().descriptors(), 16);

            near.set_descriptors_max(1);
            testing::send_packet(&far, b"2", &borrowed(&fds[..2])).unwrap();
            let lost = settle(reactor, near.receive());
            let Err(ReceiveError::DescriptorsLost(mut received)) = lost else { panic!("{lost:?}") };
            assert_eq!(inodes(&received.take_descriptors()), inodes(&fds[..1]));

            near.set_descriptors_max(0);
            testing::send_packet(&far, b"1", &borrowed(&fds[..1])).unwrap();
            let lost = settle(reactor, near.receive());
            let Err(ReceiveError::DescriptorsLost(received)) = lost else { panic!("{lost:?}") };
            assert_eq!(received.descriptors(), 0);
            testing::send_packet(&far, b"0", &[]).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"0");
        }
        assert_eq!(reactor.stats().descriptors_lost, 6);
    }

    fn more_bytes_than_a_packet_is_an_error_with_the_first_of_them(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let fds = distinct(2);
            let bytes: Vec<u8> = (0..=PACKET_BYTES_MAX).map(|place| (place % 251) as u8).collect();
            testing::send_packet(&far, &bytes, &borrowed(&fds)).unwrap();
            testing::send_packet(&far, &bytes[1..], &borrowed(&fds)).unwrap();
            let lost = settle(reactor, near.receive());
            let Err(ReceiveError::Truncated(received)) = lost else { panic!("{lost:?}") };
            assert!(received.bytes() == &bytes[..PACKET_BYTES_MAX]);
            assert_eq!(received.descriptors(), 2);
            let whole = settle(reactor, near.receive()).unwrap();
            assert!(whole.bytes() == &bytes[1..]);
        }
    }

    /// Sent, posted, received, streamed, exchanged; finished, cancelled, truncated, abandoned and never read.
    fn every_verb_gives_back_what_it_took(reactor: &Reactor) {
        let message = || {
            let mut message = Message::from("with two");
            distinct(2).into_iter().for_each(|fd| message.push_descriptor(fd));
            message
        };
        let fds = || distinct(2).into_iter().map(Fd::from).collect::<Vec<_>>();
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let far = Socket::wrap(reactor, far).unwrap();
            let Received { .. } = settle(reactor, async {
                far.send(message()).await.unwrap();
                near.receive().await.unwrap()
            });
            far.try_send(message()).unwrap();
            far.post(&[b"posted"], fds());
            far.post_or(&[b"posted or not"], fds(), b"not".to_vec());
            drop(far.send(message()));
            for _ in 0..3 {
                assert_eq!(settle(reactor, near.receive()).unwrap().descriptors(), 2);
            }
            // Answered by hand: an exchange, and one that is given up.
            let answer = settle(reactor, async {
                let mut exchange = pin!(near.exchange(message(), &near));
                assert!(exchange.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                drop(far.receive().await.unwrap());
                far.send(message()).await.unwrap();
                exchange.await.unwrap()
            });
            assert_eq!(answer.descriptors(), 2);
            {
                let mut exchange = pin!(near.exchange(message(), &near));
                assert!(exchange.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                turn(reactor);
            }
            drop(settle(reactor, far.receive()).unwrap());
            // Truncated, and with more descriptors than wanted.
            let mut large = Message::new(vec![0; PACKET_BYTES_MAX + 1]);
            distinct(3).into_iter().for_each(|fd| large.push_descriptor(fd));
            settle(reactor, far.send(large)).unwrap();
            assert!(settle(reactor, near.receive()).is_err());
            // Read by nobody; and a last one that nobody takes.
            far.try_send(message()).unwrap();
            far.finish(message()).unwrap();
            turn(reactor);
            drop(near);
            turn(reactor);
        }
    }

    fn a_message_for_a_receive_that_was_dropped_is_kept(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            {
                let mut receive = pin!(near.receive());
                assert!(receive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                turn(reactor);
            }
            let fds = distinct(1);
            testing::send_packet(&far, b"late", &borrowed(&fds)).unwrap();
            turn(reactor);
            assert_eq!(near.try_receive().unwrap().unwrap().bytes(), b"late");
        }
    }

    fn a_message_for_a_socket_that_was_dropped_is_closed(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            {
                let mut receive = pin!(near.receive());
                assert!(receive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                turn(reactor);
            }
            let fds = distinct(2);
            testing::send_packet(&far, b"too late", &borrowed(&fds)).unwrap();
            drop(near);
            turn(reactor);
        }
    }

    fn a_reactor_dropped_with_everything_in_flight_leaks_nothing(_reactor: &Reactor) {
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let mut fars = Vec::new();
        let fds = distinct(3);
        for streams in [false, true] {
            let (near, far) = ends(&reactor, streams);
            let (full, full_far) = ends(&reactor, false);
            while full.try_send(Message::from("filler")).is_ok() {}
            executor.spawn(async move {
                let waits = full.hung_up();
                let mut message = Message::from("never");
                message.push_descriptor(distinct(1).remove(0));
                let send = full.send(message);
                let _ = near.receive().await;
                let _ = send.await;
                let _ = waits.await;
                unreachable!("nobody answers");
            });
            fars.push((far, full_far));
        }
        executor.settle();
        for (far, _) in &fars {
            testing::send_packet(far, b"unreaped", &borrowed(&fds)).unwrap();
        }
        drop(executor);
        drop(reactor);
    }

    /// Lent ones too: whoever keeps messages keeps nobody else from receiving.
    fn buffers_come_back(_reactor: &Reactor) {
        for buffers in [1, 2, 3] {
            let reactor = with_few_buffers(buffers);
            for streams in [false, true] {
                let (near, far) = ends(&reactor, streams);
                let mut kept = Vec::new();
                for round in 0..20_u8 {
                    // More than there are buffers, before anybody looks.
                    for number in 0..5 {
                        testing::send_packet(&far, &[round, number], &[]).unwrap();
                    }
                    for number in 0..5 {
                        let received = settle(&reactor, near.receive()).unwrap();
                        assert_eq!(received.bytes(), [round, number]);
                        kept.push(received);
                    }
                }
                for (place, received) in kept.iter().enumerate() {
                    assert_eq!(usize::from(received.bytes()[0]), place / 5);
                }
            }
        }
    }

    fn messages_flow_while_hundreds_are_kept(reactor: &Reactor) {
        let (keeping, keeping_far) = ends(reactor, true);
        let (other, other_far) = ends(reactor, true);
        let mut kept = Vec::new();
        for number in 0..200_u8 {
            testing::send_packet(&keeping_far, &[number; 5000], &[]).unwrap();
            testing::send_packet(&other_far, &[number], &[]).unwrap();
            kept.push(settle(reactor, keeping.receive()).unwrap());
            assert_eq!(settle(reactor, other.receive()).unwrap().bytes(), [number]);
        }
        for (number, received) in kept.iter().enumerate() {
            assert_eq!(received.bytes(), [number as u8; 5000]);
        }
    }

    fn received_messages_outlive_their_reactor(_reactor: &Reactor) {
        let reactor = testing::reactor();
        let (near, far) = ends(&reactor, true);
        testing::send_packet(&far, b"kept", &borrowed(&distinct(1))).unwrap();
        let mut received = settle(&reactor, near.receive()).unwrap();
        drop(near);
        drop(reactor);
        assert_eq!(received.bytes(), b"kept");
        assert!(received.take_descriptor().is_some());
        assert_eq!(received.into_bytes(), b"kept");
    }

    fn descriptors_are_taken_from_both_sides(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let fds = distinct(4);
        testing::send_packet(&far, b"four", &borrowed(&fds)).unwrap();
        let mut received = settle(reactor, near.receive()).unwrap();
        assert_eq!(inode(received.take_descriptor().unwrap()), inode(&fds[0]));
        assert_eq!(inode(received.take_last_descriptor().unwrap()), inode(&fds[3]));
        assert_eq!(received.descriptors(), 2);
    }

    fn a_pidfd_names_the_sender(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            near.ask_for_pidfds().unwrap();
            if streams {
                near.stream();
            }
            // Credentials are asked for with the first receive.
            {
                let mut receive = pin!(near.receive());
                assert!(receive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                turn(reactor);
            }
            let sender = start_helper!(says_hello, vec![far]);
            let mut received = settle(reactor, near.receive()).unwrap();
            let pidfd = received.take_pidfd().unwrap();
            let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
            let pid = told.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().to_owned();
            assert_eq!(pid, sender.pid().to_string());
            assert_eq!(received.descriptors(), 1);
            let credentials = received.credentials().unwrap();
            assert_eq!(credentials.pid, sender.pid());
            assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
            assert_eq!(credentials.gid, rustix::process::getegid().as_raw());
            drop(near);
            sender.succeeded();
        }
    }

    /// A pidfd that nobody takes is closed, and one too many among full messages is not lost.
    fn pidfds_come_beside_as_many_descriptors_as_there_can_be(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            near.ask_for_pidfds().unwrap();
            near.set_descriptors_max(DESCRIPTORS_MAX);
            if streams {
                near.stream();
                turn(reactor);
            }
            let fds = distinct(DESCRIPTORS_MAX);
            testing::send_packet(&far, b"all", &borrowed(&fds)).unwrap();
            testing::send_packet(&far, b"one", &borrowed(&fds[..1])).unwrap();
            let mut all = settle(reactor, near.receive()).unwrap();
            assert_eq!(inodes(&all.take_descriptors()), inodes(&fds));
            assert!(all.take_pidfd().is_some());
            assert_eq!(settle(reactor, near.receive()).unwrap().descriptors(), 1);
        }
    }
}

helper! {
    fn says_hello(descriptors: Vec<OwnedFd>) {
        let fds = distinct(1);
        testing::send_packet(&descriptors[0], b"hello", &borrowed(&fds)).unwrap();
        // Stays until it has been looked at.
        assert!(testing::receive_packet(&descriptors[0]).unwrap().bytes.is_empty());
    }
}
