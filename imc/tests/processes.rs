//! Where processes matter: who connected, what is left when one is killed, and what an address is worth in
//! the hands of a program that was started with nothing else.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use imc::{BoundSocket, ConfirmError, ConnectError, ConnectedSocket, SocketAddress, bound_socket};
use ring::{Message, Reactor, ReceiveError, SendError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testing::{helper, on_each_driver, only, packet_pair, receive_packet, send_packet, settle, start_helper};

/// Long enough for everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The one descriptor a helper was given.
fn is_readable(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() > 0
}

helper! {
    /// Is given an address, connects, and echoes until the other side has had enough.
    fn connects_and_echoes(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let address = SocketAddress::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            let socket = address.connect().await.unwrap();
            while let Ok(mut message) = socket.receive().await {
                let mut answer = Message::new(message.bytes());
                while let Some(fd) = message.take_descriptor() {
                    answer.push_descriptor(fd);
                }
                socket.send(answer).await.unwrap();
            }
        });
    }

    /// Is given a connection, over which an address comes; connects to that and says hello.
    fn receives_an_address_and_says_hello(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let channel = ConnectedSocket::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            let mut message = channel.receive().await.unwrap();
            assert_eq!(message.descriptors(), 1);
            let address = SocketAddress::from_fd(&reactor, message.take_descriptor().unwrap()).unwrap();
            let socket = address.connect().await.unwrap();
            socket.send("hello").await.unwrap();
            // Not before it has been judged.
            assert!(matches!(socket.receive().await, Err(ReceiveError::Closed)));
        });
    }

    /// Is given the bound end; greets everybody until nobody is left.
    fn accepts_and_greets(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let bound = BoundSocket::from_fd(&reactor, only(descriptors)).unwrap();
        bound.set_confirming(testing::helper_argument() == "confirming");
        settle(&reactor, async {
            while let Ok(arrival) = bound.accept().await {
                arrival.socket.send("welcome").await.unwrap();
            }
        });
        assert_eq!(bound.violations().total(), 0);
    }

    /// Is given the bound end; accepts one and then only waits.
    fn accepts_one_and_waits(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let bound = BoundSocket::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            let arrival = bound.accept().await.unwrap();
            arrival.socket.send("welcome").await.unwrap();
            std::future::pending::<()>().await;
        });
    }

    /// Is given a bound end and does nothing with it.
    fn only_holds(descriptors: Vec<OwnedFd>) {
        let _ = descriptors;
        loop {
            std::thread::park();
        }
    }

    /// Is given the address of an acceptor that confirms, in its own time.
    fn waits_to_be_confirmed(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let address = SocketAddress::from_fd(&reactor, only(descriptors)).unwrap();
        let _ = settle(&reactor, address.connect_confirmed(PATIENCE));
    }

    /// Is given a connection whose peer is gone and an address whose acceptor is.
    fn sends_to_nobody(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [connection, address] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        let socket = ConnectedSocket::from_fd(&reactor, connection).unwrap();
        let address = SocketAddress::from_fd(&reactor, address).unwrap();
        settle(&reactor, async {
            assert!(matches!(socket.send("anyone?").await, Err(SendError::Gone)));
            assert!(matches!(socket.try_send("anyone?"), Err(SendError::Gone)));
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
            assert!(matches!(address.try_connect(), Err(ConnectError::Gone)));
        });
    }

    /// Is given an address and leaves a request there, raw.
    fn asks_and_leaves(descriptors: Vec<OwnedFd>) {
        let (near, far) = packet_pair();
        send_packet(&near, b"farewell", &[]).unwrap();
        send_packet(only(descriptors), b"c", &[far.as_fd()]).unwrap();
    }
}

on_each_driver! {
    fn two_processes_exchange_data_and_descriptors(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let helper = start_helper!(connects_and_echoes, vec![address.into_fd().unwrap()]);
        settle(reactor, async {
            let socket = bound.accept().await.unwrap().socket;
            for length in [1, 100, 65_536] {
                socket.send(vec![7; length]).await.unwrap();
                assert_eq!(socket.receive().await.unwrap().bytes(), vec![7; length]);
            }
            let (near, far) = packet_pair();
            let message = Message::from("three").with_descriptor(far.try_clone().unwrap());
            let message = message.with_descriptor(far.try_clone().unwrap()).with_descriptor(far);
            socket.send(message).await.unwrap();
            let mut answer = socket.receive().await.unwrap();
            assert_eq!(answer.descriptors(), 3);
            send_packet(answer.take_last_descriptor().unwrap(), b"it is the same", &[]).unwrap();
            assert_eq!(receive_packet(&near).unwrap().bytes, b"it is the same");
        });
        helper.succeeded();
    }

    fn who_got_the_address_by_passing_is_named_by_the_kernel(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.ask_for_pidfds().unwrap();
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let helper = start_helper!(receives_an_address_and_says_hello, vec![far]);
        settle(reactor, async {
            near.send(Message::from("an address").with_descriptor(address.share().unwrap())).await.unwrap();
            let arrival = bound.accept().await.unwrap();
            let credentials = arrival.who.credentials.unwrap();
            assert_eq!(credentials.pid, helper.pid());
            assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
            assert_eq!(credentials.gid, rustix::process::getegid().as_raw());
            let pidfd = arrival.who.pidfd.expect("Linux 6.5 or later");
            assert!(!is_readable(&pidfd), "it is still there");
            assert_eq!(arrival.socket.receive().await.unwrap().bytes(), b"hello");
            drop(arrival.socket);
            helper.succeeded();
            assert!(is_readable(&pidfd), "it is gone");
        });
    }

    fn who_asked_is_known_although_it_asked_before_anybody_accepted_and_is_gone(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.ask_for_pidfds().unwrap();
        let helper = start_helper!(asks_and_leaves, vec![address.share().unwrap()]);
        let pid = helper.pid();
        helper.succeeded();
        settle(reactor, async {
            let arrival = bound.accept().await.unwrap();
            assert_eq!(arrival.who.credentials.unwrap().pid, pid);
            assert!(arrival.who.pidfd.is_none_or(is_readable), "none, or of one that has ended");
            assert_eq!(arrival.socket.receive().await.unwrap().bytes(), b"farewell");
            assert!(matches!(arrival.socket.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn who_asked_of_nobody_is_not_known(reactor: &Reactor) {
        // A pair of which nobody has asked for credentials yet.
        let (near, far) = packet_pair();
        let address = SocketAddress::from_fd(reactor, far).unwrap();
        let _early = address.try_connect().unwrap();
        let bound = BoundSocket::from_fd(reactor, near).unwrap();
        bound.ask_for_pidfds().unwrap();
        let _late = address.try_connect().unwrap();
        settle(reactor, async {
            let early = bound.accept().await.unwrap().who;
            assert_eq!(early.credentials, None);
            assert!(early.pidfd.is_none());
            let late = bound.accept().await.unwrap().who;
            assert_eq!(late.credentials.unwrap().pid, i32::try_from(std::process::id()).unwrap());
            assert!(late.pidfd.is_some());
        });
    }

    fn a_process_comes_only_where_it_is_asked_for(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let _first = address.connect().await.unwrap();
            let first = bound.accept().await.unwrap().who;
            assert!(first.credentials.is_some() && first.pidfd.is_none());
            // Also of one who connected before.
            let _second = address.connect().await.unwrap();
            bound.ask_for_pidfds().unwrap();
            assert!(bound.accept().await.unwrap().who.pidfd.is_some());
        });
    }

    fn messages_on_the_connection_bring_no_pidfd(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.ask_for_pidfds().unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            client.send("hello").await.unwrap();
            assert!(server.receive().await.unwrap().take_pidfd().is_none());
        });
    }

    fn the_bound_end_is_given_to_a_child_that_accepts(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        // Asked for before there was a child.
        let early = address.try_connect().unwrap();
        let helper = start_helper!(accepts_and_greets, vec![bound.into_fd().unwrap()]);
        settle(reactor, async {
            let late = address.connect().await.unwrap();
            for client in [&early, &late] {
                assert_eq!(client.receive().await.unwrap().bytes(), b"welcome");
                assert!(matches!(client.receive().await, Err(ReceiveError::Closed)));
            }
        });
        drop(address);
        helper.succeeded();
    }

    fn a_child_confirms(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let bound = bound.into_fd().unwrap();
        let helper = start_helper!(accepts_and_greets, vec![bound], "confirming");
        settle(reactor, async {
            let client = address.connect_confirmed(testing::WAIT_TIME_MAX).await.unwrap();
            assert_eq!(client.receive().await.unwrap().bytes(), b"welcome");
        });
        drop(address);
        helper.succeeded();
    }

    fn a_killed_acceptor_is_seen_by_all_its_clients(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut helper = start_helper!(accepts_one_and_waits, vec![bound.into_fd().unwrap()]);
        settle(reactor, async {
            let accepted = address.connect().await.unwrap();
            assert_eq!(accepted.receive().await.unwrap().bytes(), b"welcome");
            let queued = address.connect().await.unwrap();
            helper.kill();
            assert!(matches!(accepted.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(queued.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
        });
    }

    fn a_killed_acceptor_ends_the_wait_for_its_full_queue(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut helper = start_helper!(only_holds, vec![bound.into_fd().unwrap()]);
        let mut clients = Vec::new();
        let error = loop {
            match address.try_connect() {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectError::WouldBlock), "{error:?}");
        let executor = ring::Executor::new(reactor);
        let sleep = reactor.sleep(std::time::Duration::from_millis(20));
        executor.spawn(async move {
            sleep.await;
            helper.kill();
        });
        executor.block_on(async {
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
            for client in &clients {
                assert!(matches!(client.receive().await, Err(ReceiveError::Closed)));
            }
        });
    }

    fn a_killed_client_is_seen_by_the_acceptor(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut helper = start_helper!(connects_and_echoes, vec![address.into_fd().unwrap()]);
        settle(reactor, async {
            let socket = bound.accept().await.unwrap().socket;
            helper.kill();
            assert!(matches!(socket.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(bound.accept().await, Err(imc::AcceptError::Gone)));
        });
    }

    fn an_acceptor_killed_before_it_confirms_is_gone(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut helper = start_helper!(only_holds, vec![bound.into_fd().unwrap()]);
        let executor = ring::Executor::new(reactor);
        let mut connecting = Box::pin(address.connect_confirmed(PATIENCE));
        testing::poll_once(connecting.as_mut());
        executor.settle();
        helper.kill();
        assert!(matches!(executor.block_on(connecting), Err(ConfirmError::Gone)));
        let error = executor.block_on(address.connect_confirmed(PATIENCE)).unwrap_err();
        assert!(matches!(error, ConfirmError::Connect(ConnectError::Gone)), "{error:?}");
    }

    /// Its connection comes, and ends.
    fn a_client_killed_while_it_waits_to_be_confirmed_concerns_nobody_else(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        let mut helper = start_helper!(waits_to_be_confirmed, vec![address.share().unwrap()]);
        settle(reactor, async {
            // Looked at through another descriptor, so that nothing is accepted before it is dead.
            let asked = ring::Socket::wrap(reactor, bound.share().unwrap()).unwrap();
            asked.readable().await.unwrap();
            helper.kill();
            let dead = bound.accept().await.unwrap().socket;
            assert!(matches!(dead.receive().await, Err(ReceiveError::Closed)));
        });
        let executor = ring::Executor::new(reactor);
        let mut connecting = Box::pin(address.connect_confirmed(PATIENCE));
        testing::poll_once(connecting.as_mut());
        let accepted = executor.block_on(bound.accept()).unwrap().socket;
        let confirmed = executor.block_on(connecting).unwrap();
        executor.block_on(confirmed.send("alive")).unwrap();
        assert_eq!(executor.block_on(accepted.receive()).unwrap().bytes(), b"alive");
        assert_eq!(bound.violations().total(), 0);
    }

    fn nobody_dies_of_sending_to_nobody(reactor: &Reactor) {
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let (bound, address) = bound_socket(reactor).unwrap();
        drop(near);
        drop(bound);
        let helper = start_helper!(sends_to_nobody, vec![far, address.into_fd().unwrap()]);
        helper.succeeded();
    }
}
