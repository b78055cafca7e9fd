//! The end is told once, when it is the end, and not before: facts about SEQPACKET that cost others replies.
//!
//! The far end is somebody who does not use this crate: it closes when it likes and sends empty packets.
#![allow(clippy::unwrap_used)]

use std::hint;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use ring::{Config, Executor, Kind, Reactor, ReceiveError, Socket};
use testing::{ends, helper, on_each_driver, on_each_driver_and_seed, settle, start_helper, turn};

fn assert_closed(reactor: &Reactor, near: &Socket) {
    let end = settle(reactor, near.receive());
    assert!(matches!(end, Err(ReceiveError::Closed)), "{end:?}");
}

on_each_driver_and_seed! {
    /// Also those that were sent before anybody received, when nobody had asked for credentials.
    fn empty_packets_from_before_the_first_receive_are_not_the_end(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            for _ in 0..3 {
                testing::send_packet(&far, b"", &[]).unwrap();
            }
            testing::send_packet(&far, b"after all", &[]).unwrap();
            if streams {
                near.stream();
            }
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"after all");
        }
    }

    /// The peer closed with messages of ours unread: an error first, then its messages, then the end.
    fn a_reset_means_read_on(reactor: &Reactor) {
        for streams in [false, true] {
            for armed_before in [false, true] {
                let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
                if streams && armed_before {
                    near.stream();
                    turn(reactor);
                }
                near.try_send("never read").unwrap();
                for number in 0..5_u8 {
                    testing::send_packet(&far, &[number], &[]).unwrap();
                }
                drop(far);
                if streams {
                    near.stream();
                }
                for number in 0..5_u8 {
                    assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
                }
                assert_closed(reactor, &near);
            }
        }
    }

    /// One wake-up, one `Closed`: not one for each time the kernel says zero.
    fn the_end_arrives_once(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            testing::send_packet(&far, b"one", &[]).unwrap();
            testing::send_packet(&far, b"two", &[]).unwrap();
            drop(far);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"one");
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"two");
            assert_closed(reactor, &near);
            // Nothing is armed any more: the descriptor can be given away.
            near.into_fd().unwrap();
        }
    }

    /// Where nobody wants to know who sends, an empty packet without anything beside it is asked about.
    fn without_names_empty_packets_are_not_the_end(reactor: &Reactor) {
        for streams in [false, true] {
            for empty in 1..4 {
                let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
                near.forgo_credentials();
                if streams {
                    near.stream();
                }
                testing::send_packet(&far, b"first", &[]).unwrap();
                let first = settle(reactor, near.receive()).unwrap();
                assert_eq!((first.bytes(), first.credentials()), (&b"first"[..], None));
                for _ in 0..empty {
                    testing::send_packet(&far, b"", &[]).unwrap();
                }
                testing::send_packet(&far, b"after all", &[]).unwrap();
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"after all");
                let is_named = |fd: BorrowedFd<'_>| rustix::net::sockopt::socket_passcred(fd).unwrap();
                assert!(is_named(near.as_fd()));
                drop(far);
                assert_closed(reactor, &near);
                // Whoever has it next finds it as it was.
                assert!(!is_named(near.into_fd().unwrap().as_fd()));
            }
        }
    }

    /// Nor where somebody receives already.
    fn without_names_from_now_on_empty_packets_are_not_the_end(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            near.forgo_credentials();
            for words in [&b""[..], b"", b"after all"] {
                testing::send_packet(&far, words, &[]).unwrap();
            }
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"after all");
            near.forgo_credentials();
            near.ask_for_credentials();
            testing::send_packet(&far, b"who", &[]).unwrap();
            assert!(settle(reactor, near.receive()).unwrap().credentials().is_some());
        }
    }

    /// Nobody goes on asking what it was, turn after turn, when a turn has room for one answer alone.
    fn the_end_of_one_message_a_turn_is_the_end(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        near.set_burst(1);
        for number in 0..3_u8 {
            testing::send_packet(&far, &[number], &[]).unwrap();
        }
        drop(far);
        for number in 0..3_u8 {
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
        }
        assert_closed(reactor, &near);
        Executor::new(reactor).settle();
    }

    /// Nor is one with descriptors, which are closed.
    fn without_names_an_empty_packet_with_descriptors_is_none(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            near.forgo_credentials();
            let (reader, writer) = std::io::pipe().unwrap();
            testing::send_packet(&far, b"", &[reader.as_fd()]).unwrap();
            testing::send_packet(&far, b"after all", &[]).unwrap();
            drop(reader);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"after all");
            assert_eq!(rustix::io::write(&writer, b"x").unwrap_err(), rustix::io::Errno::PIPE);
        }
    }

    /// What it has said before is heard, and it ends once, whatever it has left behind an empty packet.
    fn without_names_the_end_of_a_peer_that_hangs_up_is_told_once(reactor: &Reactor) {
        for streams in [false, true] {
            for last_words in [&[][..], &[&b""[..], b"nobody's"]] {
                let (near, far) = ends(reactor, streams);
                near.forgo_credentials();
                testing::send_packet(&far, b"one", &[]).unwrap();
                for words in last_words {
                    testing::send_packet(&far, words, &[]).unwrap();
                }
                drop(far);
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"one");
                match settle(reactor, near.receive()) {
                    Err(ReceiveError::Closed) => {}
                    left => {
                        assert_eq!(left.unwrap().bytes(), b"nobody's");
                        assert_closed(reactor, &near);
                    }
                }
                near.into_fd().unwrap();
            }
        }
    }

    fn the_end_waits_for_its_turn_in_the_queue(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        for number in 0..3_u8 {
            testing::send_packet(&far, &[number], &[]).unwrap();
        }
        drop(far);
        while !near.is_hung_up() {
            turn(reactor);
        }
        turn(reactor);
        for number in 0..3_u8 {
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
        }
        assert_closed(reactor, &near);
    }

    fn a_streams_end_is_told(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            if streams {
                near.stream();
            }
            testing::send_packet(&far, b"bytes", &[]).unwrap();
            drop(far);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"bytes");
            assert_closed(reactor, &near);
        }
    }

    /// Another holder asked for credentials, which then come with the end as well.
    fn a_streams_end_is_told_with_credentials_too(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            rustix::net::sockopt::set_socket_passcred(&near, true).unwrap();
            if streams {
                near.stream();
            }
            testing::send_packet(&far, b"bytes", &[]).unwrap();
            drop(far);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"bytes");
            assert_closed(reactor, &near);
        }
    }
}

// What needs other threads, real processes, or turns that can be counted.
on_each_driver! {
    fn very_many_that_end_together_are_told_within_a_few_turns(_reactor: &Reactor) {
        const SOCKETS: usize = 300;
        // Far fewer buffers than there are ends to be told, as with 64 buffers and 10,000 objects.
        let config = Config { driver: testing::driver(), buffers: 2, ..Config::default() };
        let reactor = Reactor::with_config(config).unwrap();
        let (sockets, others): (Vec<_>, Vec<_>) = (0..SOCKETS).map(|_| testing::ends(&reactor, true)).unzip();
        drop(others);
        let before = reactor.stats().turns;
        settle(&reactor, async {
            for socket in &sockets {
                assert!(matches!(socket.receive().await, Err(ReceiveError::Closed)));
            }
        });
        let turns = reactor.stats().turns - before;
        assert!(turns < SOCKETS as u64 / 4, "{SOCKETS} ends took {turns} turns");
    }

    /// They look like the end of file, and any holder of the far end can send them.
    fn a_thousand_empty_packets_then_a_message(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let sender = thread::spawn(move || {
                let (reader, _writer) = std::io::pipe().unwrap();
                for number in 0..1000 {
                    let with = [reader.as_fd()];
                    testing::send_packet(&far, b"", &with[..number % 2]).unwrap();
                }
                testing::send_packet(&far, b"after all", &[]).unwrap();
            });
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"after all");
            assert_closed(reactor, &near);
            sender.join().unwrap();
        }
        assert_eq!(reactor.stats().empty_packets, 2000);
    }

    /// A receive that finds the queue empty, and looks for the end after the peer has sent and closed, says
    /// zero. Without a second look one reply in tens of thousands is lost: mostly this test sees it, and
    /// always does that of `op.rs`.
    fn no_reply_is_lost_to_a_false_end_of_file(reactor: &Reactor) {
        const PAIRS: u32 = 20_000;
        for streams in [false, true] {
            let (fars, taken) = mpsc::sync_channel::<OwnedFd>(1);
            let answerer = thread::spawn(move || {
                // Spinning, so as to be as quick as the receive; but a machine may have only one CPU.
                for spins in 0_u64.. {
                    match taken.try_recv() {
                        Ok(far) => testing::send_packet(&far, b"answer", &[]).unwrap(),
                        Err(mpsc::TryRecvError::Empty) if spins % 256 == 0 => thread::yield_now(),
                        Err(mpsc::TryRecvError::Empty) => hint::spin_loop(),
                        Err(mpsc::TryRecvError::Disconnected) => return,
                    }
                }
            });
            let executor = ring::Executor::new(reactor);
            executor.block_on(async {
                for number in 0..PAIRS {
                    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
                    if streams {
                        near.stream();
                    }
                    fars.send(far).unwrap();
                    match near.receive().await {
                        Ok(answer) => assert_eq!(answer.bytes(), b"answer"),
                        Err(error) => panic!("pair {number}: {error}"),
                    }
                }
            });
            drop(fars);
            answerer.join().unwrap();
        }
    }

    fn the_end_of_a_dead_process_is_told(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let mut helper = start_helper!(sends_and_dies, vec![far]);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"last words");
            assert_closed(reactor, &near);
            assert_closed(reactor, &near);
            helper.kill();
        }
    }

    /// O_NONBLOCK belongs to the open description, and so to strangers.
    fn a_stranger_may_make_the_socket_non_blocking(reactor: &Reactor) {
        for streams in [false, true] {
            for before in [false, true] {
                let (near, far) = testing::packet_pair();
                let copy = near.try_clone().unwrap();
                if before {
                    testing::set_nonblocking(&copy);
                }
                let near = Socket::wrap(reactor, near).unwrap();
                if streams {
                    near.stream();
                }
                turn(reactor);
                testing::set_nonblocking(&copy);
                let receive = near.receive();
                turn(reactor);
                let sender = thread::spawn(move || {
                    testing::send_packet(&far, b"late", &[]).unwrap();
                });
                assert_eq!(settle(reactor, receive).unwrap().bytes(), b"late");
                sender.join().unwrap();
                assert_closed(reactor, &near);
            }
        }
    }
}

helper! {
    fn sends_and_dies(descriptors: Vec<OwnedFd>) {
        testing::send_packet(&descriptors[0], b"last words", &[]).unwrap();
        std::process::abort();
    }
}
