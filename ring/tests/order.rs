//! What is sent arrives once, whole and in the order in which it was asked for, whatever the queue says.
//!
//! Knows the verbs that send; the far end is read without a reactor.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use ring::{Fd, Kind, Message, PACKET_BYTES_MAX, PIECES_SENT_AT_ONCE_MAX, Reactor, SendError, Socket, Wait};
use testing::{on_each_driver, on_each_driver_and_seed, settle, turn};

/// Sends until the queue is full; says how many it took.
fn fill(socket: &Socket) -> usize {
    let count = (0..).take_while(|_| socket.try_send("filler").is_ok()).count();
    assert!(matches!(socket.try_send("filler"), Err(SendError::WouldBlock)));
    count
}

/// Bytes that are not the same anywhere.
fn bytes(length: u8) -> Vec<u8> {
    (0..length).collect()
}

/// Everything in the queue, read without a reactor.
fn drain(far: &OwnedFd) -> Vec<Vec<u8>> {
    drain_packets(far).into_iter().map(|packet| packet.bytes).collect()
}

fn drain_packets(far: &OwnedFd) -> Vec<testing::Packet> {
    testing::set_nonblocking(far);
    std::iter::from_fn(|| testing::receive_packet(far).ok().filter(|packet| !packet.bytes.is_empty()))
        .collect()
}

fn shared(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (near, far) = testing::packet_pair();
    (Socket::wrap(reactor, near).unwrap(), far)
}

fn inode(fd: impl AsFd) -> u64 {
    File::from(fd.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
}

fn four_sends_on_a_full_queue(reactor: &Reactor, near: &Socket, far: &OwnedFd) {
    let filled = fill(near);
    let sends: Vec<_> = (0..4_u8).map(|number| near.send(vec![number; 3])).collect();
    turn(reactor);
    assert_eq!(drain(far).len(), filled);
    settle(reactor, async {
        for send in sends {
            send.await.unwrap();
        }
    });
    let expected: Vec<_> = (0..4_u8).map(|number| vec![number; 3]).collect();
    assert_eq!(drain(far), expected);
}

on_each_driver_and_seed! {
    fn four_sends_on_a_full_queue_arrive_in_order(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        four_sends_on_a_full_queue(reactor, &near, &far);
        // Full once is not full for ever.
        four_sends_on_a_full_queue(reactor, &near, &far);
    }

    fn four_sends_on_a_full_queue_of_a_shared_end_arrive_in_order(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        four_sends_on_a_full_queue(reactor, &near, &far);
        four_sends_on_a_full_queue(reactor, &near, &far);
    }

    /// The kernel says "writable" when three quarters are free, and a shared end's other holders may never
    /// let it come to that.
    fn a_full_queue_of_a_shared_end_is_tried_again_by_the_clock(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        let filled = fill(&near);
        let send = near.send("at last");
        turn(reactor);
        for _ in 0..4 {
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"filler");
        }
        // Far from writable; only the clock can end this.
        settle(reactor, send).unwrap();
        let rest = drain(&far);
        assert_eq!(rest.len(), filled - 4 + 1);
        assert_eq!(rest.last().unwrap(), b"at last");
    }

    fn a_shared_end_whose_last_message_the_clock_has_sent_is_closed(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        fill(&near);
        near.finish("last").unwrap();
        turn(reactor);
        for _ in 0..4 {
            testing::receive_packet(&far).unwrap();
        }
        let sent = reactor.stats().messages_sent;
        while reactor.stats().messages_sent == sent {
            reactor.turn(Wait::Forever).unwrap();
        }
        turn(reactor);
        // Of this the queue, far from empty, says nothing.
        let far = Socket::wrap(reactor, far).unwrap();
        assert!(far.is_hung_up());
    }

    fn a_thousand_sends_pass_a_slow_reader_in_order(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        let sends: Vec<_> =
            (0..1000_u32).map(|number| near.send([&number.to_ne_bytes()[..], &[0; 2000]].concat())).collect();
        settle(reactor, async {
            for number in 0..1000_u32 {
                let received = far.receive().await.unwrap();
                assert_eq!(received.bytes()[..4], number.to_ne_bytes());
            }
            for send in sends {
                send.await.unwrap();
            }
        });
    }

    fn posts_of_one_turn_share_a_packet(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post(&[b"one ", b"two "], Vec::new());
        near.post(&[b"three"], Vec::new());
        assert_eq!(near.unsent(), 13);
        turn(reactor);
        assert_eq!(near.unsent(), 0);
        assert_eq!(reactor.stats().posts_joined, 1);
        assert_eq!(drain(&far), [b"one two three".to_vec()]);
    }

    fn posts_of_bytes_share_a_packet_with_all_others(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post_bytes(b"one ", b"");
        near.post(&[b"two "], Vec::new());
        near.post_bytes(b"three ", b"four");
        assert_eq!(reactor.stats().posts_joined, 2);
        let send = near.send("five");
        near.post_bytes(b"six", b"");
        settle(reactor, send).unwrap();
        turn(reactor);
        let heard = ["one two three four", "five", "six"];
        assert_eq!(drain(&far), heard.map(|text| text.as_bytes().to_vec()));
    }

    fn posts_of_bytes_fill_a_packet_and_then_the_next(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post_bytes(&[1], &[2; PACKET_BYTES_MAX - 2]);
        near.post_bytes(&[3], &[]);
        near.post_bytes(&[4], &[]);
        let mut heard = Vec::new();
        while heard.len() < 2 {
            turn(reactor);
            heard.extend(drain(&far));
        }
        assert_eq!(heard.iter().map(Vec::len).collect::<Vec<_>>(), [PACKET_BYTES_MAX, 1]);
    }

    fn a_post_stays_behind_the_send_before_it(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post(&[b"first"], Vec::new());
        let send = near.send("second");
        near.post(&[b"third"], Vec::new());
        settle(reactor, send).unwrap();
        turn(reactor);
        assert_eq!(drain(&far), [b"first".to_vec(), b"second".to_vec(), b"third".to_vec()]);
    }

    fn posts_join_a_packet_that_waits_for_a_full_queue(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        fill(&near);
        near.post(&[b"early "], Vec::new());
        turn(reactor);
        near.post(&[b"late"], Vec::new());
        drain(&far);
        settle(reactor, near.send("end")).unwrap();
        assert_eq!(drain(&far), [b"early late".to_vec(), b"end".to_vec()]);
    }

    fn an_empty_or_oversized_post_is_a_mistake_of_ours(reactor: &Reactor) {
        let (near, _far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let panics = |post: &dyn Fn()| catch_unwind(AssertUnwindSafe(post)).is_err();
        assert!(panics(&|| near.post(&[], Vec::new())));
        assert!(panics(&|| near.post(&[&[0; PACKET_BYTES_MAX + 1]], Vec::new())));
        assert!(panics(&|| near.post_or(&[b"x"], Vec::new(), Vec::new())));
        assert!(panics(&|| near.post_bytes(&[], &[])));
        assert!(panics(&|| near.post_bytes(&[7], &[7; PACKET_BYTES_MAX])));
    }

    fn pieces_of_one_whole_arrive_in_order_behind_their_own_bytes(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let whole = Arc::new(b"onetwothree".to_vec());
        let send = |piece: std::ops::Range<usize>| {
            near.send_piece(format!("{piece:?} ").as_bytes(), &whole, piece)
        };
        let sends = [0..3, 3..6, 6..11, 11..11].map(send);
        turn(reactor);
        settle(reactor, async {
            for send in sends {
                send.await.unwrap();
            }
        });
        let expected = ["0..3 one", "3..6 two", "6..11 three", "11..11 "];
        assert_eq!(drain(&far), expected.map(|text| text.as_bytes().to_vec()));
        assert_eq!(Arc::strong_count(&whole), 1, "what was lent has been given back");
    }

    fn a_piece_that_waits_for_a_full_queue_keeps_its_bytes(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        fill(&near);
        let whole = Arc::new(vec![7; PACKET_BYTES_MAX]);
        let send = near.send_piece(&[1], &whole, 1..PACKET_BYTES_MAX);
        drop(whole);
        turn(reactor);
        drain(&far);
        settle(reactor, send).unwrap();
        let mut expected = vec![7; PACKET_BYTES_MAX];
        expected[0] = 1;
        assert_eq!(drain(&far), [expected]);
    }

    fn a_dropped_piece_that_has_not_left_is_taken_back(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let whole = Arc::new(b"never".to_vec());
        near.post(&[b"first"], Vec::new());
        drop(near.send_piece(&[], &whole, 0..5));
        assert_eq!(Arc::strong_count(&whole), 1);
        near.post(&[b"instead"], Vec::new());
        turn(reactor);
        assert_eq!(drain(&far), [b"firstinstead".to_vec()]);
    }

    fn a_piece_is_not_sent_before_what_waits(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        let whole = Arc::new(b"piece".to_vec());
        near.post(&[b"before"], Vec::new());
        settle(reactor, near.send_piece(b"", &whole, 0..5)).unwrap();
        assert_eq!(drain(&far), [b"before".to_vec(), b"piece".to_vec()]);
    }

    fn a_piece_for_nobody_is_gone(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        drop(far);
        let sending = near.send_piece(b"", &Arc::new(b"piece".to_vec()), 0..5);
        assert!(matches!(settle(reactor, sending), Err(SendError::Gone)));
        assert!(near.is_broken());
    }

    fn what_is_let_go_leaves_although_its_socket_is_dropped(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        let filled = fill(&near);
        let whole = Arc::new(b"onetwo".to_vec());
        let piece = |piece| near.send_piece(b"", &whole, piece);
        let sends = [near.send("opening"), piece(0..3), piece(3..6)];
        // The first is away by now, and finds the queue full.
        turn(reactor);
        sends.into_iter().for_each(ring::Sending::let_go);
        drop(near);
        assert_eq!(drain(&far).len(), filled);
        let mut heard = Vec::new();
        testing::wait_until("all has left", || {
            turn(reactor);
            heard.extend(drain(&far));
            heard.len() == 3
        });
        assert_eq!(heard, [b"opening".to_vec(), b"one".to_vec(), b"two".to_vec()]);
    }

    fn what_was_sent_already_is_let_go_without_a_trace(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let sent = near.send("sent");
        turn(reactor);
        sent.let_go();
        assert_eq!(drain(&far), [b"sent".to_vec()]);
        assert!(near.into_fd().is_ok(), "nothing of it is left");
    }

    fn a_piece_that_is_none_or_too_long_is_a_mistake_of_ours(reactor: &Reactor) {
        let (near, _far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let (stream, _end) = Socket::pair(reactor, Kind::Stream).unwrap();
        let whole = Arc::new(vec![7; PACKET_BYTES_MAX]);
        let fails = |socket: &Socket, bytes: &[u8], piece| {
            catch_unwind(AssertUnwindSafe(|| drop(socket.send_piece(bytes, &whole, piece)))).is_err()
        };
        assert!(!fails(&near, &[], 0..PACKET_BYTES_MAX));
        assert!(fails(&near, &[1], 0..PACKET_BYTES_MAX));
        assert!(fails(&near, &[], 5..5));
        assert!(fails(&near, &[], 0..PACKET_BYTES_MAX + 1));
        assert!(fails(&stream, &[], 0..5));
    }

    fn pieces_that_are_sent_together_arrive_in_order(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        let whole = Arc::new(bytes(9));
        let all: Vec<_> = (0..9).map(|at| at..at + 1).collect();
        let mut sent = 0;
        while sent < all.len() {
            let next: Vec<_> = all[sent..].iter().map(|piece| (b"of ".as_slice(), piece.clone())).collect();
            let (gone, waits) = near.send_pieces(&whole, &next);
            sent += gone + usize::from(waits.is_some());
            if let Some(sending) = waits {
                settle(reactor, sending).unwrap();
            }
        }
        let expected: Vec<_> = (0..9).map(|at| [b"of ", &bytes(9)[at..=at]].concat()).collect();
        assert_eq!(drain(&far), expected);
        assert_eq!(Arc::strong_count(&whole), 1, "what was lent has been given back");
    }

    fn pieces_are_not_sent_before_what_waits(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        near.post(&[b"before"], Vec::new());
        let (gone, waits) = near.send_pieces(&Arc::new(b"piece".to_vec()), &[(b"a ", 0..5), (b"b ", 0..5)]);
        assert_eq!(gone, 0);
        settle(reactor, waits.unwrap()).unwrap();
        assert_eq!(drain(&far), [b"before".to_vec(), b"a piece".to_vec()]);
    }

    fn pieces_for_nobody_are_gone(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        drop(far);
        let (gone, waits) = near.send_pieces(&Arc::new(b"piece".to_vec()), &[(b"", 0..5), (b"", 0..5)]);
        assert_eq!(gone, 0);
        assert!(matches!(settle(reactor, waits.unwrap()), Err(SendError::Gone)));
        assert!(near.is_broken());
    }

    fn an_empty_message_is_refused(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        assert!(matches!(settle(reactor, near.send("")), Err(SendError::Empty)));
        assert!(matches!(near.try_send(""), Err(SendError::Empty)));
        assert!(matches!(near.finish(""), Err(SendError::Empty)));
        assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
    }

    fn a_try_send_does_not_overtake(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let send = near.send("first");
        assert!(matches!(near.try_send("second"), Err(SendError::WouldBlock)));
        settle(reactor, send).unwrap();
        near.try_send("second").unwrap();
        assert_eq!(drain(&far), [b"first".to_vec(), b"second".to_vec()]);
    }

    fn a_dropped_send_that_has_not_left_is_taken_back(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let _first = near.send("first");
        drop(near.send("never"));
        let last = near.send("last");
        settle(reactor, last).unwrap();
        assert_eq!(drain(&far), [b"first".to_vec(), b"last".to_vec()]);
    }

    fn a_dropped_send_that_waits_for_a_full_queue_is_taken_back(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        fill(&near);
        let never = near.send("never");
        turn(reactor);
        drop(never);
        drain(&far);
        settle(reactor, near.send("last")).unwrap();
        assert_eq!(drain(&far), [b"last".to_vec()]);
    }

    /// All in one turn, and more than the completion queue holds.
    fn more_completions_than_fit_the_queue_all_come_home(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        testing::send_packet(&far, b"!", &[]).unwrap();
        let waits: Vec<_> = (0..5000).map(|_| near.readable()).collect();
        near.post(&[b"beside them"], Vec::new());
        settle(reactor, async {
            for wait in waits {
                wait.await.unwrap();
            }
        });
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"beside them");
    }

    /// And not with each part of it.
    fn descriptors_come_with_the_first_byte_of_a_stream(reactor: &Reactor) {
        const BYTES: usize = 1 << 20;
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let inode = inode(&reader);
        let send = near.send(Message::new(vec![9; BYTES]).with_descriptor(OwnedFd::from(reader)));
        settle(reactor, async {
            let mut first = far.receive().await.unwrap();
            assert_eq!(self::inode(first.take_descriptor().unwrap()), inode);
            let mut length = first.bytes().len();
            while length < BYTES {
                let more = far.receive().await.unwrap();
                assert_eq!(more.descriptors(), 0);
                length += more.bytes().len();
            }
            assert_eq!(length, BYTES);
            send.await.unwrap();
        });
    }
}

// What needs other threads, real processes, or turns that can be counted.
on_each_driver! {
    fn so_many_pieces_go_at_once_of_all_sockets_and_the_next_in_its_turn(reactor: &Reactor) {
        let (first, second) = (shared(reactor), shared(reactor));
        turn(reactor);
        let whole = Arc::new(bytes(PIECES_SENT_AT_ONCE_MAX as u8 + 1));
        let pieces: Vec<_> = (0..whole.len()).map(|at| (b"".as_slice(), at..at + 1)).collect();
        let (gone, waits) = first.0.send_pieces(&whole, &pieces[..PIECES_SENT_AT_ONCE_MAX]);
        assert!(gone == PIECES_SENT_AT_ONCE_MAX && waits.is_none());
        let (gone, waits) = second.0.send_pieces(&whole, &pieces[..1]);
        assert_eq!((gone, drain(&second.1).len()), (0, 0));
        settle(reactor, waits.unwrap()).unwrap();
        assert_eq!((drain(&first.1).len(), drain(&second.1).len()), (PIECES_SENT_AT_ONCE_MAX, 1));
        turn(reactor);
        let (gone, waits) = second.0.send_pieces(&whole, &pieces);
        assert_eq!((gone, drain(&second.1).len()), (PIECES_SENT_AT_ONCE_MAX, PIECES_SENT_AT_ONCE_MAX));
        drop(waits);
    }

    fn a_piece_behind_those_that_filled_the_queue_waits_for_room(reactor: &Reactor) {
        let (near, far) = shared(reactor);
        // Room for some of them and not for all.
        let whole = Arc::new(vec![7; PACKET_BYTES_MAX]);
        while near.try_send(vec![1; PACKET_BYTES_MAX]).is_ok() {}
        testing::receive_packet(&far).unwrap();
        testing::receive_packet(&far).unwrap();
        turn(reactor);
        let piece = (b"".as_slice(), 0..PACKET_BYTES_MAX);
        let pieces: [_; PIECES_SENT_AT_ONCE_MAX] = std::array::from_fn(|_| piece.clone());
        let (gone, waits) = near.send_pieces(&whole, &pieces);
        assert!((1..PIECES_SENT_AT_ONCE_MAX).contains(&gone), "{gone}");
        let mut waits = pin!(waits.unwrap());
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let heard = drain(&far).into_iter().filter(|packet| *packet == *whole).count();
        settle(reactor, waits).unwrap();
        assert_eq!((heard, drain(&far)), (gone, vec![whole.to_vec()]));
    }

    /// A large answer stood still behind a small one until something else happened.
    fn what_waits_behind_a_silent_send_is_not_slept_over(reactor: &Reactor) {
        let (near, far) = testing::ends(reactor, false);
        near.post_or(&[b"one"], Vec::new(), b"never".to_vec());
        near.post_or(&[b"two"], Vec::new(), b"never".to_vec());
        // The first has gone, and the second is with the driver.
        reactor.turn(ring::Wait::Not).unwrap();
        testing::settle(reactor, near.send("three")).unwrap();
        for expected in ["one", "two", "three"] {
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, expected.as_bytes());
        }
    }

    /// A post is silent, and a stream may take a part of it: the rest must follow.
    fn posts_on_a_stream_arrive_whole(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        for number in 0..40_u8 {
            near.post(&[&[number; PACKET_BYTES_MAX]], Vec::new());
        }
        turn(reactor);
        let reader = read_all(far);
        near.finish("end").unwrap();
        settle(reactor, until_all_is_closed(reactor, &reader));
        let arrived = reader.join().unwrap();
        assert_eq!(arrived.len(), 40 * PACKET_BYTES_MAX + 3);
        for (number, part) in arrived.chunks_exact(PACKET_BYTES_MAX).enumerate() {
            assert!(part.iter().all(|byte| usize::from(*byte) == number));
        }
    }

    fn the_last_words_leave_when_the_reactor_is_dropped(_reactor: &Reactor) {
        let another = testing::reactor();
        let (near, far) = Socket::pair(&another, Kind::SeqPacket).unwrap();
        let (one, two) = std::io::pipe().unwrap();
        near.post(&[b"one"], vec![Fd::from(OwnedFd::from(one))]);
        near.post(&[b"two"], vec![Fd::from(OwnedFd::from(two))]);
        near.finish("bye").unwrap();
        drop(another);
        assert_eq!(drain(&far), [b"one".to_vec(), b"two".to_vec(), b"bye".to_vec()]);
        assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
    }

    fn posts_share_a_packet_up_to_its_limit(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post(&[&[1; PACKET_BYTES_MAX - 10]], Vec::new());
        near.post(&[&[2; 10]], Vec::new());
        near.post(&[&[3; 1]], Vec::new());
        near.post(&[&[4; PACKET_BYTES_MAX]], Vec::new());
        turn(reactor);
        let lengths: Vec<_> = drain(&far).iter().map(Vec::len).collect();
        assert_eq!(lengths, [PACKET_BYTES_MAX, 1, PACKET_BYTES_MAX]);
    }

    fn descriptors_of_two_posts_do_not_share_a_packet(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let (one, two) = std::io::pipe().unwrap();
        let inodes = [inode(&one), inode(&two)];
        near.post(&[b"plain "], Vec::new());
        near.post(&[b"one "], vec![Fd::from(OwnedFd::from(one))]);
        near.post(&[b"more"], Vec::new());
        near.post(&[b"two"], vec![Fd::from(OwnedFd::from(two))]);
        turn(reactor);
        let packets = drain_packets(&far);
        assert_eq!(packets.len(), 2);
        assert_eq!(packets[0].bytes, b"plain one more");
        assert_eq!(packets[1].bytes, b"two");
        assert_eq!(packets[0].descriptors.len(), 1);
        assert_eq!([inode(&packets[0].descriptors[0]), inode(&packets[1].descriptors[0])], inodes);
    }

    /// A socket sends one message in a turn; the end of `block_on` must not come between them.
    fn all_that_was_posted_leaves_when_block_on_ends(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        settle(reactor, async {
            for number in 0..5_u8 {
                let (reader, _) = std::io::pipe().unwrap();
                near.post(&[&[number]], vec![Fd::from(OwnedFd::from(reader))]);
            }
        });
        let arrived: Vec<_> = drain_packets(&far);
        assert_eq!(arrived.iter().map(|packet| packet.bytes[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(arrived.iter().all(|packet| packet.descriptors.len() == 1));
    }

    // Streams.

    fn a_big_stream_arrives_whole(reactor: &Reactor) {
        const BYTES: usize = 8 << 20;
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        let reader = read_all(far);
        let bytes: Vec<u8> = (0..BYTES).map(|place| (place % 251) as u8).collect();
        settle(reactor, near.send(bytes.clone())).unwrap();
        settle(reactor, near.send("end")).unwrap();
        drop(near);
        turn(reactor);
        let arrived = reader.join().unwrap();
        assert_eq!(arrived.len(), BYTES + 3);
        assert!(arrived[..BYTES] == bytes[..]);
        assert_eq!(&arrived[BYTES..], b"end");
    }

    fn a_try_send_on_a_stream_arrives_whole(reactor: &Reactor) {
        const BYTES: usize = 1 << 20;
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        near.try_send(vec![7; BYTES]).unwrap();
        assert!(matches!(near.try_send("no overtaking"), Err(SendError::WouldBlock)));
        let reader = read_all(far);
        settle(reactor, near.send("end")).unwrap();
        drop(near);
        turn(reactor);
        assert_eq!(reader.join().unwrap().len(), BYTES + 3);
    }

    /// Part of it has been seen: the rest must follow, or what comes after it would be taken for it.
    fn a_send_dropped_half_way_does_not_corrupt_a_stream(reactor: &Reactor) {
        const BYTES: usize = 4 << 20;
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        {
            let mut big = pin!(near.send(vec![1; BYTES]));
            assert!(big.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            turn(reactor);
        }
        let reader = read_all(far);
        settle(reactor, near.send(vec![2; 3])).unwrap();
        drop(near);
        turn(reactor);
        let arrived = reader.join().unwrap();
        assert_eq!(arrived.len(), BYTES + 3);
        assert!(arrived[..BYTES].iter().all(|byte| *byte == 1));
        assert_eq!(arrived[BYTES..], [2; 3]);
    }
}

fn read_all(far: OwnedFd) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        UnixStream::from(far).read_to_end(&mut bytes).unwrap();
        bytes
    })
}

async fn until_all_is_closed<T>(reactor: &Reactor, reader: &std::thread::JoinHandle<T>) {
    while !reader.is_finished() {
        reactor.sleep(std::time::Duration::from_millis(1)).await;
    }
}
