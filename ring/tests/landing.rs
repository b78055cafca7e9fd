//! Pieces of a message that are received where they belong: what lands, what does not, and that nothing is
//! lost or shown too early.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};

use ring::{
    Kind, LANDING_HEAD_BYTES, Landing, Message, PACKET_BYTES_MAX, PIECES_AT_ONCE_MAX, Reactor, ReceiveError,
    Socket,
};
use testing::{on_each_driver, packet_pair, send_packet, settle, turn};

const HEAD: &[u8; LANDING_HEAD_BYTES] = b"the next of many";

/// A socket with a landing that has room for so many bytes, and the end to send on.
fn landing(reactor: &Reactor, bytes: usize) -> (Socket, Landing, OwnedFd) {
    let (near, far) = packet_pair();
    let near = Socket::wrap(reactor, near).unwrap();
    near.stream();
    let landing = Landing::new(Vec::with_capacity(bytes));
    (near, landing, far)
}

fn piece(bytes: &[u8]) -> Vec<u8> {
    [HEAD, bytes].concat()
}

/// Bytes that are not the same anywhere.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8)) as u8).collect()
}

on_each_driver! {
    fn pieces_of_every_length_land_one_behind_the_other(reactor: &Reactor) {
        let longest = PACKET_BYTES_MAX - LANDING_HEAD_BYTES;
        let all = bytes(3 + 1 + longest);
        let (near, landing, far) = landing(reactor, all.len());
        let mut rest = all.as_slice();
        for length in [3, 1, longest] {
            let (next, others) = rest.split_at(length);
            assert!(near.expect_piece(&landing, HEAD, length));
            send_packet(&far, &piece(next), &[]).unwrap();
            let message = settle(reactor, near.receive()).unwrap();
            assert_eq!((message.bytes(), message.landed()), (HEAD.as_slice(), length));
            assert!(message.credentials().is_some());
            assert_eq!(landing.take_landed(), length);
            rest = others;
        }
        assert!(landing.take_bytes() == all);
    }

    fn one_lands_and_the_next_is_received_as_ever(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        assert!(near.expect_piece(&landing, HEAD, 3));
        for _ in 0..2 {
            send_packet(&far, &piece(b"one"), &[]).unwrap();
        }
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 3);
        let second = settle(reactor, near.receive()).unwrap();
        assert_eq!((second.bytes(), second.landed()), (piece(b"one").as_slice(), 0));
        assert_eq!((landing.take_landed(), landing.take_bytes()), (3, b"one".to_vec()));
    }

    /// Whoever looks at that may expect something else then.
    fn what_comes_behind_something_else_does_not_land(reactor: &Reactor) {
        let others = [bytes(1), bytes(LANDING_HEAD_BYTES), piece(&bytes(39_999)), piece(&bytes(40_001))];
        for other in others {
            // What is left of the last socket comes home.
            turn(reactor);
            let (near, landing, far) = landing(reactor, 40_000);
            assert!(near.expect_piece(&landing, HEAD, 40_000));
            for message in [other, piece(&bytes(40_000))] {
                send_packet(&far, &message, &[]).unwrap();
                let arrived = settle(reactor, near.receive()).unwrap();
                assert!(arrived.bytes() == message && arrived.landed() == 0);
            }
            assert_eq!((landing.take_landed(), landing.len()), (0, 0));
        }
    }

    fn nothing_is_expected_behind_what_nobody_has_received(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        send_packet(&far, b"another", &[]).unwrap();
        while !near.has_arrived() {
            turn(reactor);
        }
        assert!(!near.expect_piece(&landing, HEAD, 3));
        settle(reactor, near.receive()).unwrap();
        assert!(near.expect_piece(&landing, HEAD, 3));
    }

    /// Word for word what is expected, and somebody's pipe with it.
    fn what_brings_descriptors_does_not_land(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        assert!(near.expect_piece(&landing, HEAD, 3));
        let (reader, _writer) = std::io::pipe().unwrap();
        send_packet(&far, &piece(b"one"), &[reader.as_fd()]).unwrap();
        let mut message = settle(reactor, near.receive()).unwrap();
        assert_eq!((message.bytes(), message.landed()), (piece(b"one").as_slice(), 0));
        assert!(message.take_descriptor().is_some());
        assert_eq!((landing.take_landed(), landing.len()), (0, 0));
    }

    fn what_landed_for_nobody_is_not_shown_and_its_memory_is_free(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        assert!(near.expect_piece(&landing, HEAD, 3));
        send_packet(&far, &piece(b"one"), &[]).unwrap();
        while !near.has_arrived() {
            turn(reactor);
        }
        assert!(landing.take_bytes().is_empty());
        assert_eq!(landing.capacity(), 0);
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 3);
        assert_eq!(landing.take_landed(), 0);
    }

    fn a_landing_that_is_expected_no_longer_outlives_its_socket(reactor: &Reactor) {
        let (near, first, far) = landing(reactor, 100);
        assert!(near.expect_piece(&first, HEAD, 3));
        near.expect_no_piece();
        send_packet(&far, &piece(b"one"), &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 0);
        assert!(near.expect_piece(&first, HEAD, 3));
        send_packet(&far, &piece(b"two"), &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 3);
        drop(near);
        assert_eq!((first.take_landed(), first.take_bytes()), (3, b"two".to_vec()));
    }

    fn pieces_are_taken_without_a_turn_as_many_as_may_be(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        turn(reactor);
        let count = PIECES_AT_ONCE_MAX + 1;
        (0..count).for_each(|_| send_packet(&far, &piece(b"one"), &[]).unwrap());
        for _ in 0..PIECES_AT_ONCE_MAX {
            assert!(near.take_piece(&landing, HEAD, 3));
            assert_eq!(landing.take_landed(), 3);
        }
        assert!(!near.take_piece(&landing, HEAD, 3), "one more");
        // The next is expected all the same.
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 3);
        assert_eq!(landing.take_landed(), 3);
        assert!(landing.take_bytes() == b"one".repeat(count));
    }

    fn what_is_found_instead_of_a_piece_is_received_next(reactor: &Reactor) {
        let (near, landing, far) = landing(reactor, 100);
        turn(reactor);
        assert!(!near.take_piece(&landing, HEAD, 3), "there is nothing");
        let (reader, _writer) = std::io::pipe().unwrap();
        send_packet(&far, b"another", &[reader.as_fd()]).unwrap();
        send_packet(&far, &piece(b"one"), &[]).unwrap();
        assert!(!near.take_piece(&landing, HEAD, 3));
        assert!(near.has_arrived());
        assert!(!near.take_piece(&landing, HEAD, 3), "that would be in front of it");
        let mut message = settle(reactor, near.receive()).unwrap();
        assert_eq!((message.bytes(), message.descriptors()), (b"another".as_slice(), 1));
        assert!(message.take_descriptor().is_some());
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes().len(), LANDING_HEAD_BYTES + 3);
        drop(far);
        assert!(!near.take_piece(&landing, HEAD, 3));
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
    }

    fn whoever_goes_on_with_a_piece_leaves_what_looks_like_none(reactor: &Reactor) {
        let (near, _landing, far) = landing(reactor, 100);
        assert!(!near.goes_on_with_piece(|_, _| true), "there is nothing");
        send_packet(&far, b"something", &[]).unwrap();
        testing::wait_until("it is here", || {
            turn(reactor);
            near.has_arrived()
        });
        assert!(!near.goes_on_with_piece(|bytes, _| bytes != b"something"));
        let goes_on =
            (0..9).filter(|_| near.goes_on_with_piece(|bytes, length| bytes == b"something" && length == 9));
        assert_eq!(goes_on.count(), PIECES_AT_ONCE_MAX);
    }

    fn a_receive_that_is_made_later_lands_too(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        let landing = Landing::new(Vec::with_capacity(100));
        assert!(near.expect_piece(&landing, HEAD, 3));
        let sending = far.send(Message::new(piece(b"one")));
        assert_eq!(settle(reactor, near.receive()).unwrap().landed(), 3);
        settle(reactor, sending).unwrap();
        assert_eq!(landing.take_landed(), 3);
    }
}
