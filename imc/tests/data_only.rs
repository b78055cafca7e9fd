//! Connections for bytes only: that they carry those, that nothing else comes through, and that they travel.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;

use imc::{ConnectedSocket, DataOnlySocket, NACL_BYTES_MAX, WrapError};
use ring::{Message, PACKET_BYTES_MAX, Reactor, ReceiveError, SendError};
use testing::{Census, helper, on_each_driver, packet_pair, poll_once, send_packet, settle, start_helper};

fn pipe_end() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

helper! {
    /// Is given a connection, over which a data-only socket comes; echoes on that.
    fn receives_a_data_only_socket_and_echoes(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [connection] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let connection = ConnectedSocket::from_fd(&reactor, connection).unwrap();
        settle(&reactor, async {
            let fd = connection.receive().await.unwrap().take_descriptor().unwrap();
            let socket = DataOnlySocket::from_fd(&reactor, fd).unwrap();
            while let Ok(message) = socket.receive().await {
                socket.send(message.into_bytes()).await.unwrap();
            }
        });
    }
}

on_each_driver! {
    fn bytes_go_both_ways_in_exact_lengths(reactor: &Reactor) {
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        settle(reactor, async {
            for length in [1, 100, PACKET_BYTES_MAX, PACKET_BYTES_MAX + 1, NACL_BYTES_MAX] {
                for (from, to) in [(&one, &other), (&other, &one)] {
                    from.send(vec![7; length]).await.unwrap();
                    let received = to.receive().await.unwrap();
                    assert_eq!(received.bytes(), vec![7; length]);
                    assert_eq!(received.credentials().unwrap().pid, std::process::id() as i32);
                }
            }
        });
    }

    fn what_is_empty_or_too_large_is_refused(reactor: &Reactor) {
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        settle(reactor, async {
            assert!(matches!(one.send("").await, Err(SendError::Empty)));
            assert!(matches!(one.try_send(""), Err(SendError::Empty)));
            let too_large = vec![7; NACL_BYTES_MAX + 1];
            assert!(matches!(one.send(too_large.clone()).await, Err(SendError::TooLarge)));
            assert!(matches!(one.try_send(too_large), Err(SendError::TooLarge)));
            one.try_send("only this").unwrap();
            assert_eq!(other.receive().await.unwrap().bytes(), b"only this");
        });
    }

    fn the_end_is_told_and_sending_to_nobody_is_an_error(reactor: &Reactor) {
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        other.try_send("farewell").unwrap();
        drop(other);
        settle(reactor, async {
            assert_eq!(one.receive().await.unwrap().bytes(), b"farewell");
            assert!(matches!(one.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(one.send("anyone?").await, Err(SendError::Gone)));
        });
    }

    fn a_receive_that_is_dropped_loses_no_message(reactor: &Reactor) {
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        settle(reactor, async {
            for _ in 0..10 {
                poll_once(pin!(one.receive()));
                other.send("kept").await.unwrap();
                assert_eq!(one.receive().await.unwrap().bytes(), b"kept");
            }
        });
    }

    fn a_message_with_descriptors_is_dropped_whole_and_counted(reactor: &Reactor) {
        let (near, far) = packet_pair();
        let socket = DataOnlySocket::from_fd(reactor, near).unwrap();
        let pipe = pipe_end();
        let census = Census::take();
        settle(reactor, async {
            for count in [1, 2, 8, 253] {
                send_packet(&far, b"forbidden", &vec![pipe.as_fd(); count]).unwrap();
            }
            send_packet(&far, b"", &[pipe.as_fd()]).unwrap();
            send_packet(&far, b"allowed", &[]).unwrap();
            assert_eq!(socket.receive().await.unwrap().bytes(), b"allowed");
        });
        assert_eq!(socket.violations(), 4);
        assert_eq!(reactor.stats().empty_packets, 1);
        census.unchanged();
    }

    /// Its own end in its own queue would never be closed: this is the smallest circle there is.
    fn a_socket_cannot_be_queued_in_itself(reactor: &Reactor) {
        let census = Census::take();
        {
            let (one, other) = DataOnlySocket::pair(reactor).unwrap();
            let own = one.share().unwrap();
            match send_packet(&other, b"a circle", &[own.as_fd()]) {
                Err(refused) => assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied),
                Ok(()) => {
                    // Linux before 6.16: it is queued, and noticed when it is received.
                    settle(reactor, async { poll_once(pin!(one.receive())) });
                    assert_eq!(one.violations(), 1);
                }
            }
        }
        census.unchanged();
    }

    fn a_message_that_is_too_long_is_cut_and_said_so(reactor: &Reactor) {
        let (near, far) = packet_pair();
        let socket = DataOnlySocket::from_fd(reactor, near).unwrap();
        send_packet(&far, &vec![7; NACL_BYTES_MAX + 1], &[]).unwrap();
        send_packet(&far, b"next", &[]).unwrap();
        settle(reactor, async {
            let Err(ReceiveError::Truncated(cut)) = socket.receive().await else { panic!("it is longer") };
            assert_eq!(cut.bytes().len(), NACL_BYTES_MAX);
            assert_eq!(socket.receive().await.unwrap().bytes(), b"next");
        });
    }

    fn a_data_only_socket_travels(reactor: &Reactor) {
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let helper = start_helper!(receives_a_data_only_socket_and_echoes, vec![far]);
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        settle(reactor, async {
            let fd = other.into_fd().unwrap();
            near.send(Message::from("one end").with_descriptor(fd)).await.unwrap();
            for length in [1, NACL_BYTES_MAX] {
                one.send(vec![7; length]).await.unwrap();
                assert_eq!(one.receive().await.unwrap().bytes(), vec![7; length]);
            }
            drop(one);
        });
        helper.succeeded();
    }

    fn dropping_one_copy_leaves_the_others(reactor: &Reactor) {
        let (one, other) = DataOnlySocket::pair(reactor).unwrap();
        let copy = other.try_clone().unwrap();
        settle(reactor, async {
            poll_once(pin!(other.receive()));
            drop(other);
            one.send("still there?").await.unwrap();
            assert_eq!(copy.receive().await.unwrap().bytes(), b"still there?");
            copy.send("yes").await.unwrap();
            assert_eq!(one.receive().await.unwrap().bytes(), b"yes");
        });
    }

    fn what_is_no_connected_seqpacket_socket_is_refused(reactor: &Reactor) {
        let refused = DataOnlySocket::from_fd(reactor, pipe_end()).unwrap_err();
        assert_eq!(refused, WrapError::NotASocket);
        let refused = DataOnlySocket::from_fd(reactor, testing::stream_pair().0).unwrap_err();
        assert_eq!(refused, WrapError::WrongKind);
    }

    fn without_descriptors_a_pair_says_so(reactor: &Reactor) {
        let limit = testing::leave_descriptors(1);
        assert!(DataOnlySocket::pair(reactor).is_err());
        drop(limit);
    }
}
