//! The replacement protocol without a reactor: against itself, against acceptors and clients on a reactor,
//! and across processes.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use imc::blocking::{BoundSocket, ConfirmError, ConnectedSocket, SocketAddress, bound_socket};
use imc::{AcceptError, ConnectError};
use ring::WaitPolicy;
use ring::blocking::{Outgoing, ReceiveError};
use testing::{
    Census, helper, in_own_process, on_each_driver, send_packet, settle, start_helper, stream_pair,
};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(5);

/// Both sides of one connection.
fn both() -> (ConnectedSocket, ConnectedSocket) {
    let (mut bound, address) = bound_socket().unwrap();
    let near = address.connect().unwrap();
    (near, bound.accept().unwrap().socket)
}

on_each_driver! {
    fn a_client_without_a_reactor_is_accepted_on_one(reactor: &ring::Reactor) {
        let (bound, address) = imc::bound_socket(reactor).unwrap();
        let address = SocketAddress::from_fd(address.share().unwrap()).unwrap();
        let client = thread::spawn(move || {
            let mut connection = address.connect().unwrap();
            connection.send("hello").unwrap();
            connection.receive().unwrap().into_bytes()
        });
        settle(reactor, async {
            let arrival = bound.accept().await.unwrap();
            assert_eq!(arrival.who.credentials.unwrap().pid, std::process::id() as i32);
            assert_eq!(arrival.socket.receive().await.unwrap().bytes(), b"hello");
            arrival.socket.send("and good day").await.unwrap();
        });
        assert_eq!(client.join().unwrap(), b"and good day");
    }

    fn an_acceptor_without_a_reactor_serves_clients_on_one(reactor: &ring::Reactor) {
        let (mut bound, address) = bound_socket().unwrap();
        let server = thread::spawn(move || {
            let mut arrival = bound.accept().unwrap();
            let heard = arrival.socket.receive().unwrap().into_bytes();
            arrival.socket.send(heard).unwrap();
            assert!(matches!(bound.accept(), Err(AcceptError::Gone)));
        });
        let address = imc::SocketAddress::from_fd(reactor, address.into_fd()).unwrap();
        settle(reactor, async {
            let connection = address.connect().await.unwrap();
            connection.send("hello").await.unwrap();
            assert_eq!(connection.receive().await.unwrap().bytes(), b"hello");
        });
        drop(address);
        testing::turn(reactor);
        server.join().unwrap();
    }
}

in_own_process! {
    fn messages_and_descriptors_go_both_ways_between_processes() {
        let (address, bound) = testing::packet_pair();
        let server = start_helper!(echo_once, vec![bound]);
        let mut connection = SocketAddress::from_fd(address).unwrap().connect().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        connection.send(Outgoing::from("take this").lend(reader.as_fd())).unwrap();
        let received = connection.receive().unwrap();
        assert_eq!((received.bytes(), received.descriptors()), (&b"take this"[..], 1));
        drop(received);
        server.succeeded();
        assert!(matches!(connection.receive(), Err(ReceiveError::Closed)));
    }

    fn what_is_said_before_anybody_accepts_waits() {
        let (mut bound, address) = bound_socket().unwrap();
        let connection = address.connect().unwrap();
        connection.send("early").unwrap();
        assert_eq!(bound.accept().unwrap().socket.receive().unwrap().bytes(), b"early");
    }

    fn an_acceptor_that_goes_ends_what_it_has_not_accepted() {
        let (bound, address) = bound_socket().unwrap();
        let mut connection = address.connect().unwrap();
        drop(bound);
        assert!(matches!(connection.receive(), Err(ReceiveError::Closed)));
        assert!(matches!(address.connect(), Err(ConnectError::Gone)));
    }

    fn a_full_queue_is_waited_for_until_the_deadline() {
        let (mut bound, address) = bound_socket().unwrap();
        let mut waiting: Vec<ConnectedSocket> = Vec::new();
        let error = loop {
            match address.try_connect() {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectError::WouldBlock), "{error}");
        let soon = Some(Instant::now() + SHORT);
        assert!(matches!(address.connect_until(soon), Err(ConnectError::WouldBlock)));
        let accepting = thread::spawn(move || {
            for _ in 0..waiting.len() {
                bound.accept().unwrap();
            }
        });
        address.connect().unwrap();
        accepting.join().unwrap();
    }

    fn a_confirmation_is_waited_for() {
        let (mut bound, address) = bound_socket().unwrap();
        bound.set_confirming(true);
        let server = thread::spawn(move || {
            let mut arrival = bound.accept().unwrap();
            arrival.socket.receive().unwrap().into_bytes()
        });
        let connection = address.connect_confirmed(LONG).unwrap();
        connection.send("confirmed").unwrap();
        assert_eq!(server.join().unwrap(), b"confirmed");
    }

    fn a_confirmation_that_comes_late_is_swallowed() {
        let (mut bound, address) = bound_socket().unwrap();
        bound.set_confirming(true);
        let error = address.connect_confirmed(SHORT).unwrap_err();
        let ConfirmError::Unconfirmed(mut connection) = error else { panic!("{error}") };
        assert!(matches!(
            connection.receive_until(Some(Instant::now() + SHORT)),
            Err(ReceiveError::Deadline)
        ));
        let arrival = bound.accept().unwrap();
        arrival.socket.send("the first message").unwrap();
        assert_eq!(connection.receive().unwrap().bytes(), b"the first message");
        arrival.socket.send("a").unwrap();
        assert_eq!(connection.receive().unwrap().bytes(), b"a");
    }

    fn an_acceptor_that_does_not_confirm_is_told_from_one_that_does() {
        let (mut bound, address) = bound_socket().unwrap();
        let server = thread::spawn(move || {
            bound.accept().unwrap().socket.send("something else").unwrap();
            drop(bound.accept().unwrap());
        });
        assert!(matches!(address.connect_confirmed(LONG), Err(ConfirmError::Malformed)));
        assert!(matches!(address.connect_confirmed(LONG), Err(ConfirmError::Gone)));
        server.join().unwrap();
        let error = address.connect_confirmed(LONG).unwrap_err();
        assert!(matches!(error, ConfirmError::Connect(ConnectError::Gone)), "{error}");
    }

    fn what_is_no_request_is_counted_closed_and_read_past() {
        let (mut bound, address) = bound_socket().unwrap();
        let (one, other) = testing::packet_pair();
        let (stream, stream_peer) = stream_pair();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let census = Census::take();
        let say = |bytes: &[u8], descriptors: &[_]| send_packet(&address, bytes, descriptors).unwrap();
        say(b"x", &[one.as_fd()]);
        say(b"c", &[]);
        say(b"c", &[one.as_fd(), other.as_fd()]);
        say(b"c", &[null.as_fd()]);
        say(b"c", &[stream.as_fd()]);
        say(&[b'c'; 110_000], &[one.as_fd()]);
        testing::wait_until("all six are read", || {
            assert!(bound.accept_until(Some(Instant::now())).unwrap().is_none());
            bound.violations().total() == 6
        });
        let seen = bound.violations();
        assert_eq!((seen.wrong_message, seen.none, seen.several), (2, 1, 1));
        assert_eq!((seen.not_a_socket, seen.wrong_kind, seen.total()), (1, 1, 6));
        census.unchanged();
        let _connection = address.connect().unwrap();
        assert!(bound.accept().is_ok());
        drop((one, other, stream, stream_peer, null));
    }

    fn who_connected_is_told() {
        let (address, bound) = testing::packet_pair();
        let mut bound = BoundSocket::from_fd(bound).unwrap();
        let client = start_helper!(connects, vec![address]);
        let arrival = bound.accept().unwrap();
        assert_eq!(arrival.who.credentials.unwrap().pid, client.pid());
        drop(arrival);
        client.succeeded();
    }

    fn a_spinning_connection_hears_what_a_sleeping_one_does() {
        let (mut near, mut far) = both();
        near.set_wait_policy(WaitPolicy::spin());
        let echo = thread::spawn(move || {
            while let Ok(received) = far.receive() {
                let bytes = received.into_bytes();
                far.send(bytes).unwrap();
            }
        });
        for n in 0..200_u32 {
            near.send(&n.to_le_bytes()).unwrap();
            assert_eq!(near.receive().unwrap().bytes(), n.to_le_bytes());
        }
        drop(near);
        echo.join().unwrap();
    }

    fn ends_may_go_to_other_threads() {
        fn is_send<T: Send>() {}
        is_send::<SocketAddress>();
        is_send::<ConnectedSocket>();
        is_send::<BoundSocket>();
    }
}

helper! {
    fn echo_once(descriptors: Vec<OwnedFd>) {
        let [bound] = descriptors.try_into().unwrap();
        let mut bound = BoundSocket::from_fd(bound).unwrap();
        let mut socket = bound.accept().unwrap().socket;
        let mut received = socket.receive().unwrap();
        let mut answer = Outgoing::from(received.bytes().to_vec());
        received.take_descriptors().into_iter().for_each(|fd| answer.push_descriptor(fd));
        drop(received);
        socket.send(answer).unwrap();
    }

    fn connects(descriptors: Vec<OwnedFd>) {
        let [address] = descriptors.try_into().unwrap();
        let mut connection = SocketAddress::from_fd(address).unwrap().connect().unwrap();
        assert!(matches!(connection.receive(), Err(ReceiveError::Closed)));
    }
}
