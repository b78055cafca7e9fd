//! Datagrams to abstract names, streams to abstract names, and packets larger than the drivers' buffers.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};

use ring::{
    AbstractName, Config, Datagrams, Kind, LARGE_PACKET_BYTES_MAX, Message, NAME_BYTES_MAX, PACKET_BYTES_MAX,
    Reactor, ReceiveError, SendError, Socket, WrapError,
};
use rustix::net::{Shutdown, shutdown};
use testing::{Census, on_each_driver, packet_pair, poll_once, send_packet, settle, turn};

fn name() -> AbstractName {
    AbstractName::random("sendright-test-", 27).unwrap()
}

fn pipe_end() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

/// Sends until the queue is full and says how many fitted.
fn fill(sender: &Datagrams, name: &AbstractName) -> usize {
    for count in 0..10_000 {
        match sender.try_send_to(name, "full?") {
            Ok(()) => {}
            Err(SendError::WouldBlock) => return count,
            Err(error) => panic!("after {count}: {error}"),
        }
    }
    panic!("the queue has no end");
}

#[test]
fn random_names_differ() {
    let (one, another) = (name(), name());
    assert_ne!(one, another);
    for name in [one, another] {
        let token = name.bytes().strip_prefix(b"sendright-test-").unwrap();
        assert_eq!(token.len(), 27);
        assert!(token.iter().all(u8::is_ascii_alphanumeric), "{name:?}");
    }
}

#[test]
fn a_name_has_1_to_107_bytes() {
    assert!(AbstractName::new("").is_err());
    assert!(AbstractName::new("x").is_ok());
    assert!(AbstractName::new(vec![0; NAME_BYTES_MAX]).is_ok());
    assert!(AbstractName::new(vec![b'x'; NAME_BYTES_MAX + 1]).is_err());
    assert!(AbstractName::random("prefix", NAME_BYTES_MAX).is_err());
}

on_each_driver! {
    fn an_empty_datagram_with_a_descriptor_arrives(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        settle(reactor, async {
            sender.send_to(&name, Message::new("").with_descriptor(pipe_end())).await.unwrap();
            let received = bound.receive().await.unwrap();
            assert_eq!(received.bytes(), b"");
            assert_eq!(received.descriptors(), 1);
            assert_eq!(received.credentials().unwrap().pid, std::process::id() as i32);
        });
    }

    fn an_empty_datagram_without_anything_arrives_too(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        settle(reactor, async {
            sender.try_send_to(&name, "").unwrap();
            sender.try_send_to(&name, "after it").unwrap();
            assert_eq!(bound.receive().await.unwrap().bytes(), b"");
            assert_eq!(bound.receive().await.unwrap().bytes(), b"after it");
        });
    }

    fn a_datagram_is_awaited(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        settle(reactor, async {
            let mut receiving = std::pin::pin!(bound.receive());
            poll_once(receiving.as_mut());
            sender.send_to(&name, vec![7; 65_536]).await.unwrap();
            assert_eq!(receiving.await.unwrap().bytes(), vec![7; 65_536]);
        });
    }

    fn a_receive_that_is_dropped_loses_no_datagram(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        settle(reactor, async {
            for _ in 0..10 {
                poll_once(std::pin::pin!(bound.receive()));
                sender.try_send_to(&name, "kept").unwrap();
                assert_eq!(bound.receive().await.unwrap().bytes(), b"kept");
            }
        });
    }

    fn a_name_nobody_has_is_gone(reactor: &Reactor) {
        let sender = Datagrams::unbound(reactor).unwrap();
        assert!(matches!(sender.try_send_to(&name(), "anyone?"), Err(SendError::Gone)));
        let taken = name();
        drop(Datagrams::bind(reactor, &taken).unwrap());
        settle(reactor, async {
            assert!(matches!(sender.send_to(&taken, "anyone?").await, Err(SendError::Gone)));
        });
    }

    fn a_name_is_had_once(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let refused = Datagrams::bind(reactor, &name).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
        drop(bound);
        drop(Datagrams::bind(reactor, &name).unwrap());
    }

    fn a_full_queue_is_said_at_once_and_awaited_by_send(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        let count = fill(&sender, &name);
        assert!(count >= 1);
        settle(reactor, async {
            let mut sending = std::pin::pin!(sender.send_to(&name, "one more"));
            poll_once(sending.as_mut());
            assert_eq!(bound.receive().await.unwrap().bytes(), b"full?");
            sending.await.unwrap();
            for _ in 1..count {
                assert_eq!(bound.receive().await.unwrap().bytes(), b"full?");
            }
            assert_eq!(bound.receive().await.unwrap().bytes(), b"one more");
        });
    }

    fn a_datagram_with_too_many_descriptors_is_known_by_it(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        bound.set_descriptors_max(2);
        let sender = Datagrams::unbound(reactor).unwrap();
        let census = Census::take();
        settle(reactor, async {
            let message = |count| (0..count).fold(Message::new(""), |m, _| m.with_descriptor(pipe_end()));
            sender.send_to(&name, message(2)).await.unwrap();
            sender.send_to(&name, message(3)).await.unwrap();
            assert_eq!(bound.receive().await.unwrap().descriptors(), 2);
            let Err(ReceiveError::DescriptorsLost(rest)) = bound.receive().await else { panic!("lost") };
            assert_eq!(rest.descriptors(), 2);
            assert!(matches!(sender.send_to(&name, message(254)).await, Err(SendError::TooLarge)));
        });
        census.unchanged();
    }

    fn what_is_left_in_a_datagram_socket_is_closed_with_it(reactor: &Reactor) {
        let census = Census::take();
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        sender.try_send_to(&name, Message::new("").with_descriptor(pipe_end())).unwrap();
        drop((bound, sender));
        census.unchanged();
    }

    fn without_descriptors_a_datagram_waits(_reactor: &Reactor) {
        let limit = testing::limit_descriptors(64);
        let config = Config { driver: testing::driver(), descriptors_reserve: 0, ..Config::default() };
        let reactor = &Reactor::with_config(config).unwrap();
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        bound.set_descriptors_max(1);
        let sender = Datagrams::unbound(reactor).unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let datagram = || Message::new("").with_descriptor(OwnedFd::from(pipe.try_clone().unwrap()));
        sender.try_send_to(&name, datagram()).unwrap();
        let mut kept: Vec<OwnedFd> = Vec::new();
        while let Ok(copy) = pipe.try_clone() {
            kept.push(copy.into());
        }
        turn(reactor);
        settle(reactor, async {
            let mut receiving = std::pin::pin!(bound.receive());
            poll_once(receiving.as_mut());
            kept.clear();
            assert_eq!(receiving.await.unwrap().descriptors(), 1);
        });
        drop(limit);
    }

    fn a_datagram_socket_is_given_away_and_taken(reactor: &Reactor) {
        let name = name();
        let fd = Datagrams::bind(reactor, &name).unwrap().into_fd().unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        sender.try_send_to(&name, "queued meanwhile").unwrap();
        let bound = Datagrams::from_fd(reactor, fd).unwrap();
        settle(reactor, async {
            assert_eq!(bound.receive().await.unwrap().bytes(), b"queued meanwhile");
        });
        let refused = Datagrams::from_fd(reactor, packet_pair().0).unwrap_err();
        assert_eq!(refused, WrapError::NotUnix);
    }

    /// Anybody who holds such a socket can do that to all.
    fn a_datagram_socket_that_another_holder_shuts_down_is_closed(reactor: &Reactor) {
        let name = name();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        sender.try_send_to(&name, "before").unwrap();
        shutdown(&bound, Shutdown::Both).unwrap();
        settle(reactor, async {
            assert_eq!(bound.receive().await.unwrap().bytes(), b"before");
            assert!(matches!(bound.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn a_listener_is_connected_to_by_an_abstract_name(reactor: &Reactor) {
        let name = name();
        let listener = Socket::listen_abstract(reactor, &name, Kind::Stream, 5).unwrap();
        settle(reactor, async {
            let near = Socket::connect_abstract(reactor, &name, Kind::Stream).await.unwrap();
            let far = listener.accept().await.unwrap();
            near.send("hello").await.unwrap();
            assert_eq!(far.receive().await.unwrap().bytes(), b"hello");
        });
        drop(listener);
        let refused = Socket::try_connect_abstract(reactor, &name, Kind::Stream).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }

    fn a_stream_knows_who_connected(reactor: &Reactor) {
        let name = name();
        let listener = Socket::listen_abstract(reactor, &name, Kind::Stream, 5).unwrap();
        settle(reactor, async {
            let near = Socket::connect_abstract(reactor, &name, Kind::Stream).await.unwrap();
            let far = listener.accept().await.unwrap();
            for end in [&near, &far] {
                let who = end.peer_credentials().unwrap();
                assert_eq!(who.pid, std::process::id() as i32);
                assert_eq!(who.uid, rustix::process::geteuid().as_raw());
            }
        });
    }

    fn a_large_packet_is_received_whole(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        settle(reactor, async {
            let mut scratch = vec![0; LARGE_PACKET_BYTES_MAX];
            for length in [1, PACKET_BYTES_MAX, PACKET_BYTES_MAX + 1, LARGE_PACKET_BYTES_MAX] {
                near.send(Message::new(vec![7; length]).with_descriptor(pipe_end())).await.unwrap();
                let received = far.receive_large(&mut scratch).await.unwrap();
                assert_eq!(received.bytes(), vec![7; length]);
                assert_eq!(received.descriptors(), 1);
            }
            near.send(vec![7; 100]).await.unwrap();
            let Err(ReceiveError::Truncated(cut)) = far.receive_large(&mut scratch[..99]).await else {
                panic!("it was longer")
            };
            assert_eq!(cut.bytes(), vec![7; 99]);
        });
    }

    fn a_large_packet_is_sent_although_somebody_shrank_the_buffer(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&near, 1).unwrap();
        settle(reactor, async {
            let mut scratch = vec![0; LARGE_PACKET_BYTES_MAX];
            near.try_send(vec![7; LARGE_PACKET_BYTES_MAX]).unwrap();
            assert_eq!(far.receive_large(&mut scratch).await.unwrap().bytes().len(), scratch.len());
            rustix::net::sockopt::set_socket_send_buffer_size(&near, 1).unwrap();
            near.send(vec![7; LARGE_PACKET_BYTES_MAX]).await.unwrap();
            assert_eq!(far.receive_large(&mut scratch).await.unwrap().bytes().len(), scratch.len());
        });
    }

    fn empty_packets_are_not_the_end_of_large_ones(reactor: &Reactor) {
        let (near, far) = packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        near.ask_for_credentials();
        let pipe = pipe_end();
        for _ in 0..10 {
            send_packet(&far, b"", &[]).unwrap();
            send_packet(&far, b"", &[pipe.as_fd()]).unwrap();
        }
        send_packet(&far, b"the last", &[]).unwrap();
        drop(far);
        settle(reactor, async {
            let mut scratch = vec![0; 100];
            assert_eq!(near.receive_large(&mut scratch).await.unwrap().bytes(), b"the last");
            assert!(matches!(near.receive_large(&mut scratch).await, Err(ReceiveError::Closed)));
        });
        assert_eq!(reactor.stats().empty_packets, 20);
    }

    fn what_was_sent_before_a_reset_is_received(reactor: &Reactor) {
        let (near, far) = packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        near.try_send("left unread").unwrap();
        send_packet(&far, b"the last", &[]).unwrap();
        drop(far);
        settle(reactor, async {
            let mut scratch = vec![0; 100];
            assert_eq!(near.receive_large(&mut scratch).await.unwrap().bytes(), b"the last");
            assert!(matches!(near.receive_large(&mut scratch).await, Err(ReceiveError::Closed)));
        });
    }

    fn descriptors_are_refused_by_the_kernel_where_it_can(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        if near.refuse_descriptors().is_err() {
            println!("Linux before 6.16");
            return;
        }
        let pipe = pipe_end();
        let refused = send_packet(&far, b"x", &[pipe.as_fd()]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        send_packet(&far, b"only bytes", &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"only bytes");
    }
}
