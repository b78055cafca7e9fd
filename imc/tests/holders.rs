//! Clients that keep a copy of the end they gave to the acceptor, and workers that share a bound socket:
//! whatever they set, shut or take there, others connect and are served, with a reactor and without.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use imc::{AcceptError, BoundSocket, blocking, bound_socket};
use ring::blocking::ReceiveError;
use ring::{PACKET_BYTES_MAX, Reactor};
use rustix::net::{Shutdown, shutdown};
use testing::meddling::{SO_RCVTIMEO, set_option};
use testing::{in_own_process, meddle, on_each_driver, packet_pair, receive_packet, send_packet, settle};

on_each_driver! {
    fn whatever_a_client_sets_on_the_acceptors_end_messages_go_both_ways(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (near, far) = packet_pair();
        send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        let server = settle(reactor, bound.accept()).unwrap().socket;
        let file = std::fs::File::open("/dev/null").unwrap();
        meddle(&far, |what| {
            send_packet(&near, &[7; PACKET_BYTES_MAX], &[file.as_fd(); 16]).unwrap();
            let received = settle(reactor, server.receive());
            let received = received.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((received.bytes().len(), received.descriptors()), (PACKET_BYTES_MAX, 16), "{what}");
            let sent = settle(reactor, server.send(vec![7; PACKET_BYTES_MAX]));
            sent.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(receive_packet(&near).unwrap().bytes.len(), PACKET_BYTES_MAX, "{what}");
        });
    }

    fn whatever_a_worker_sets_on_a_shared_bound_socket_others_accept(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_shared(true);
        let worker = BoundSocket::from_fd(reactor, bound.share().unwrap()).unwrap();
        worker.set_shared(true);
        let copy = bound.share().unwrap();
        meddle(&copy, |what| {
            for bound in [&bound, &worker] {
                let client = settle(reactor, address.connect()).unwrap();
                let arrival = settle(reactor, bound.accept_one());
                let arrival = arrival.unwrap_or_else(|error| panic!("{what}: {error}"));
                settle(reactor, client.send("hello")).unwrap();
                assert_eq!(settle(reactor, arrival.socket.receive()).unwrap().bytes(), b"hello", "{what}");
            }
        });
    }

    fn a_worker_that_leaves_takes_nothing_from_the_others(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_shared(true);
        let worker = BoundSocket::from_fd(reactor, bound.share().unwrap()).unwrap();
        worker.set_shared(true);
        drop(bound.into_fd().unwrap());
        let _client = settle(reactor, address.connect()).unwrap();
        let who = settle(reactor, worker.accept_one()).unwrap().who;
        assert_eq!(who.credentials.unwrap().pid, std::process::id() as i32);
    }

    fn a_bound_socket_that_a_worker_shuts_down_is_at_its_end_and_connections_are_not(reactor: &Reactor) {
        for half in [Shutdown::Read, Shutdown::Both] {
            let (bound, address) = bound_socket(reactor).unwrap();
            let client = settle(reactor, address.connect()).unwrap();
            let server = settle(reactor, bound.accept()).unwrap().socket;
            shutdown(bound.share().unwrap(), half).unwrap();
            assert!(matches!(settle(reactor, bound.accept()), Err(AcceptError::Gone)));
            assert!(settle(reactor, address.connect()).is_err());
            settle(reactor, client.send("still there?")).unwrap();
            assert_eq!(settle(reactor, server.receive()).unwrap().bytes(), b"still there?");
        }
    }
}

in_own_process! {
    fn whatever_a_client_sets_a_blocking_acceptor_hears_it() {
        let (mut bound, address) = blocking::bound_socket().unwrap();
        let (near, far) = packet_pair();
        send_packet(address.share().unwrap(), b"c", &[far.as_fd()]).unwrap();
        let mut server = bound.accept().unwrap().socket;
        let late = || Some(Instant::now() + Duration::from_secs(60));
        meddle(&far, |what| {
            send_packet(&near, &[7; PACKET_BYTES_MAX], &[]).unwrap();
            let received = server.receive_until(late()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(received.bytes().len(), PACKET_BYTES_MAX, "{what}");
            let sent = server.send_until(&[7; PACKET_BYTES_MAX], late());
            sent.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(receive_packet(&near).unwrap().bytes.len(), PACKET_BYTES_MAX, "{what}");
        });
    }

    /// A client that kept the end which the server has lifted the time limit that the server had set there,
    /// and the server slept for as long as the client liked.
    fn a_client_does_not_keep_a_blocking_server_beyond_its_deadline() {
        let (mut bound, address) = blocking::bound_socket().unwrap();
        let (near, far) = packet_pair();
        send_packet(address.share().unwrap(), b"c", &[far.as_fd()]).unwrap();
        let mut server = bound.accept().unwrap().socket;
        let soon = || Some(Instant::now() + Duration::from_millis(150));
        send_packet(&near, b"in time", &[]).unwrap();
        assert_eq!(server.receive_until(soon()).unwrap().bytes(), b"in time");
        assert!(set_option(far.as_fd(), SO_RCVTIMEO, &[0; 16]));
        assert!(matches!(server.receive_until(soon()), Err(ReceiveError::Deadline)));
    }

    fn an_address_given_to_a_blocking_acceptor_as_a_connection_is_counted() {
        let (mut bound, address) = blocking::bound_socket().unwrap();
        let copy = address.share().unwrap();
        send_packet(&copy, b"c", &[copy.as_fd()]).unwrap();
        let _client = address.connect().unwrap();
        drop(bound.accept().unwrap());
        assert_eq!(bound.violations().own_address, 1);
        assert_eq!(bound.violations().total(), 1);
    }
}
