//! Connecting and accepting between two sides that mean well, in one process: what Native Client's own tests
//! asserted of the same calls, the queue, and the end. It knows nothing of strangers.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use imc::{AcceptError, BoundSocket, ConnectError, ConnectedSocket, SocketAddress, WrapError, bound_socket};
use ring::{Executor, Message, Reactor, ReceiveError, SendError, Wait};
use testing::{Census, on_each_driver, settle};

/// More requests than any queue of the usual size holds: 278 fit.
const QUEUE_MAX: usize = 1000;

/// Connects until the queue is full, and gives back what could be connected.
fn fill(address: &SocketAddress) -> Vec<ConnectedSocket> {
    let mut connections = Vec::new();
    loop {
        match address.try_connect() {
            Ok(socket) => connections.push(socket),
            Err(ConnectError::WouldBlock) => return connections,
            Err(error) => panic!("after {}: {error}", connections.len()),
        }
        assert!(connections.len() < QUEUE_MAX, "the queue has no end");
    }
}

/// Accepts the next one and checks that `client` is its other end.
async fn meet(bound: &BoundSocket, client: &ConnectedSocket) -> ConnectedSocket {
    let server = bound.accept().await.unwrap().socket;
    client.send("to the server").await.unwrap();
    assert_eq!(server.receive().await.unwrap().bytes(), b"to the server");
    server.send("to the client").await.unwrap();
    assert_eq!(client.receive().await.unwrap().bytes(), b"to the client");
    server
}

on_each_driver! {
    fn data_goes_both_ways_in_exact_lengths(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            for length in [1, 2, 100, 4096, 65_536] {
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let sent = vec![length as u8; length];
                    from.send(sent.clone()).await.unwrap();
                    let received = to.receive().await.unwrap();
                    assert_eq!(received.bytes(), sent);
                    assert_eq!(received.descriptors(), 0);
                }
            }
        });
    }

    fn descriptors_go_both_ways(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (mut reader, writer) = std::io::pipe().unwrap();
                from.send(Message::from("a pipe").with_descriptor(OwnedFd::from(writer))).await.unwrap();
                let mut received = to.receive().await.unwrap();
                let writer = received.take_descriptor().unwrap();
                assert_eq!(received.descriptors(), 0);
                std::fs::File::from(writer).write_all(b"through it").unwrap();
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                assert_eq!(text, "through it");
            }
        });
    }

    fn a_connection_is_used_before_it_is_accepted(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            client.send("one").await.unwrap();
            client.send("two").await.unwrap();
            drop(client);
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"one");
            assert_eq!(server.receive().await.unwrap().bytes(), b"two");
            assert!(matches!(server.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn connections_are_accepted_in_the_order_they_were_asked_for(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut clients = Vec::new();
            for number in 0_u8..50 {
                let client = address.connect().await.unwrap();
                client.send(vec![number]).await.unwrap();
                clients.push(client);
            }
            for number in 0_u8..50 {
                let server = bound.accept().await.unwrap().socket;
                assert_eq!(server.receive().await.unwrap().bytes(), [number]);
            }
        });
    }

    fn an_address_travels_as_one_descriptor_and_connects(reactor: &Reactor) {
        let (first_bound, first_address) = bound_socket(reactor).unwrap();
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = first_address.connect().await.unwrap();
            let server = first_bound.accept().await.unwrap().socket;
            let fd = address.into_fd().unwrap();
            client.send(Message::from("an address").with_descriptor(fd)).await.unwrap();

            let mut received = server.receive().await.unwrap();
            assert_eq!(received.descriptors(), 1);
            let address = SocketAddress::from_fd(reactor, received.take_descriptor().unwrap()).unwrap();
            let client = address.connect().await.unwrap();
            meet(&bound, &client).await;
        });
    }

    fn eight_copies_of_one_address_are_each_connected_and_used(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let far = ConnectedSocket::from_fd(reactor, far).unwrap();
        settle(reactor, async {
            let mut message = Message::from("eight");
            for _ in 0..8 {
                message.push_descriptor(address.share().unwrap());
            }
            near.send(message).await.unwrap();
            let mut received = far.receive().await.unwrap();
            assert_eq!(received.descriptors(), 8);
            let mut connections = Vec::new();
            for fd in received.take_descriptors() {
                let copy = SocketAddress::from_fd(reactor, fd).unwrap();
                let client = copy.connect().await.unwrap();
                let server = meet(&bound, &client).await;
                connections.push((client, server));
            }
            // All of them at the same time, too.
            for (client, server) in &connections {
                client.send("still here").await.unwrap();
                assert_eq!(server.receive().await.unwrap().bytes(), b"still here");
            }
        });
    }

    fn dropping_one_copy_of_an_address_leaves_the_others(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            for _ in 0..3 {
                let copy = SocketAddress::from_fd(reactor, address.share().unwrap()).unwrap();
                let client = copy.connect().await.unwrap();
                drop(copy);
                meet(&bound, &client).await;
            }
        });
    }

    fn accepting_fails_when_every_address_is_dropped(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let copy = address.share().unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            drop(address);
            drop(copy);
            // What was asked for before is still served.
            meet(&bound, &client).await;
            assert!(matches!(bound.accept().await, Err(AcceptError::Gone)));
            assert!(matches!(bound.accept().await, Err(AcceptError::Gone)), "and it stays so");
        });
    }

    fn an_acceptor_that_waits_is_told_when_the_last_address_goes(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut accepting = pin!(bound.accept());
            assert!(poll_once(accepting.as_mut()).await.is_none());
            reactor.sleep(Duration::from_millis(20)).await;
            drop(address);
            assert!(matches!(accepting.await, Err(AcceptError::Gone)));
        });
    }

    fn connecting_fails_when_the_acceptor_is_dropped(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        drop(bound);
        settle(reactor, async {
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
            assert!(matches!(address.try_connect(), Err(ConnectError::Gone)));
        });
    }

    fn connecting_fails_when_the_acceptor_is_dropped_while_it_waits(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            assert!(poll_once(pin!(bound.accept())).await.is_none());
            // The receive is with the driver now.
            reactor.sleep(Duration::from_millis(5)).await;
            drop(bound);
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
        });
    }

    fn a_queued_connection_of_a_dying_acceptor_is_seen_to_end(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let receiving = address.connect().await.unwrap();
            let sending = address.connect().await.unwrap();
            drop(bound);
            assert!(matches!(receiving.receive().await, Err(ReceiveError::Closed)));
            sending.socket().hung_up().await.unwrap();
            assert!(matches!(sending.send("anyone?").await, Err(SendError::Gone)));
        });
    }

    fn a_full_queue_is_said_at_once_and_awaited_by_connect(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut clients = fill(&address);
        assert!(clients.len() >= 100, "{} fit", clients.len());
        assert!(matches!(address.try_connect(), Err(ConnectError::WouldBlock)));

        let accepted = Rc::new(Cell::new(0));
        let count = Rc::clone(&accepted);
        let executor = Executor::new(reactor);
        executor.spawn(async move {
            let mut servers = Vec::new();
            while let Ok(arrival) = bound.accept().await {
                count.set(count.get() + 1);
                servers.push(arrival.socket);
            }
        });
        executor.block_on(async {
            // The queue has no end for those who wait.
            for _ in 0..50 {
                clients.push(address.connect().await.unwrap());
            }
        });
        drop(address);
        executor.settle();
        assert_eq!(accepted.get(), clients.len());
    }

    fn one_free_place_is_enough_for_one_who_waits(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let clients = fill(&address);
        settle(reactor, async {
            let mut waiting = pin!(address.connect());
            assert!(poll_once(waiting.as_mut()).await.is_none());
            let first = bound.accept().await.unwrap().socket;
            // The kernel does not call this writable before most of the queue is read.
            let client = waiting.await.unwrap();
            drop(client);
            drop(first);
        });
        drop(clients);
    }

    fn a_full_queue_ends_the_wait_when_the_acceptor_goes(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let clients = fill(&address);
        settle(reactor, async {
            let mut waiting = pin!(address.connect());
            assert!(poll_once(waiting.as_mut()).await.is_none());
            drop(bound);
            assert!(matches!(waiting.await, Err(ConnectError::Gone)));
            for client in &clients {
                assert!(matches!(client.receive().await, Err(ReceiveError::Closed)));
            }
        });
    }

    fn a_connect_withdrawn_while_the_queue_is_full_leaves_nothing(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let clients = fill(&address);
        let census = Census::take();
        settle(reactor, async {
            for pause in [0, 5] {
                let mut waiting = pin!(address.connect());
                assert!(poll_once(waiting.as_mut()).await.is_none());
                reactor.sleep(Duration::from_millis(pause)).await;
            }
            for _ in 0..clients.len() {
                bound.accept().await.unwrap();
            }
            // Whatever of it was with the driver arrives as a connection that has ended, or not at all.
            drop(address);
            while let Ok(arrival) = bound.accept().await {
                assert!(matches!(arrival.socket.receive().await, Err(ReceiveError::Closed)));
            }
        });
        drop(clients);
        drop(bound);
        let left = Census::take();
        assert!(left.len() < census.len(), "{} descriptors, then {}", census.len(), left.len());
    }

    fn an_accept_that_is_dropped_loses_no_connection(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            for _ in 0..10 {
                assert!(poll_once(pin!(bound.accept())).await.is_none());
                let client = address.connect().await.unwrap();
                // It arrives while nobody asks.
                reactor.sleep(Duration::from_millis(1)).await;
                meet(&bound, &client).await;
            }
        });
    }

    fn sixteen_that_wait_are_accepted_without_a_turn_and_the_next_with_one(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let _clients: Vec<_> = (0..17).map(|_| address.try_connect().unwrap()).collect();
        settle(reactor, async {
            let before = reactor.stats().turns;
            for _ in 0..16 {
                bound.accept().await.unwrap();
            }
            assert_eq!(reactor.stats().turns, before);
            bound.accept().await.unwrap();
            assert!(reactor.stats().turns > before);
        });
    }

    fn an_acceptor_that_does_much_for_each_has_a_turn_after_a_few(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_burst(8);
        let _clients: Vec<_> = (0..3).map(|_| address.try_connect().unwrap()).collect();
        settle(reactor, async {
            let before = reactor.stats().turns;
            bound.accept().await.unwrap();
            bound.accept().await.unwrap();
            assert_eq!(reactor.stats().turns, before);
        });
        bound.set_burst(1);
        settle(reactor, async {
            let before = reactor.stats().turns;
            bound.accept().await.unwrap();
            let _client = address.try_connect().unwrap();
            bound.accept().await.unwrap();
            assert!(reactor.stats().turns > before);
        });
    }

    fn accepting_works_for_futures_written_by_hand(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        assert!(bound.poll_accept(&mut context).is_pending());
        let client = address.try_connect().unwrap();
        let server = loop {
            match bound.poll_accept(&mut context) {
                Poll::Ready(arrival) => break arrival.unwrap().socket,
                Poll::Pending => drop(reactor.turn(Wait::Forever).unwrap()),
            }
        };
        client.try_send("hello").unwrap();
        assert_eq!(settle(reactor, server.receive()).unwrap().bytes(), b"hello");
    }

    fn sending_to_a_closed_connection_says_so_and_kills_nobody(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            drop(bound.accept().await.unwrap());
            // An error and no signal. Not that one would be noticed here, where Rust's runtime ignores
            // SIGPIPE; but the kernel raises none on SEQPACKET.
            assert!(matches!(client.send("anyone?").await, Err(SendError::Gone)));
            assert!(matches!(client.try_send("anyone?"), Err(SendError::Gone)));
        });
    }

    fn a_last_message_is_sent_before_the_end(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            address.connect().await.unwrap().finish("farewell").unwrap();
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"farewell");
            assert!(matches!(server.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn more_descriptors_arrive_when_asked_for(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            server.set_descriptors_max(253);
            let (_, writer) = std::io::pipe().unwrap();
            let mut message = Message::from("many");
            for _ in 0..253 {
                message.push_descriptor(OwnedFd::from(writer.try_clone().unwrap()));
            }
            client.send(message).await.unwrap();
            assert_eq!(server.receive().await.unwrap().descriptors(), 253);
        });
    }

    fn both_ends_can_be_taken_apart_and_put_together_again(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        // Queued over the change of hands.
        let early = address.try_connect().unwrap();
        let address = SocketAddress::from_fd(reactor, address.into_fd().unwrap()).unwrap();
        let bound = BoundSocket::from_fd(reactor, bound.into_fd().unwrap()).unwrap();
        settle(reactor, async {
            meet(&bound, &early).await;
            let client = address.connect().await.unwrap();
            let server = meet(&bound, &client).await;
            let (near, far) = ConnectedSocket::pair(reactor).unwrap();
            let near = ConnectedSocket::from_fd(reactor, near.into_fd().unwrap()).unwrap();
            let far = ConnectedSocket::from_fd(reactor, far).unwrap();
            near.send("hello").await.unwrap();
            assert_eq!(far.receive().await.unwrap().bytes(), b"hello");
            drop(server);
        });
    }

    fn what_is_no_connected_seqpacket_socket_is_refused(reactor: &Reactor) {
        let census = Census::take();
        let (stream, other) = testing::stream_pair();
        let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
        let refused = SocketAddress::from_fd(reactor, stream).unwrap_err();
        assert_eq!(refused, WrapError::WrongKind);
        assert_eq!(SocketAddress::from_fd(reactor, pipe()).unwrap_err(), WrapError::NotASocket);
        assert_eq!(BoundSocket::from_fd(reactor, pipe()).unwrap_err(), WrapError::NotASocket);
        assert_eq!(ConnectedSocket::from_fd(reactor, pipe()).unwrap_err(), WrapError::NotASocket);
        drop(other);
        census.unchanged();
    }

    fn everything_works_on_one_future_for_each_side(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let executor = Executor::new(reactor);
        let spawner = executor.spawner();
        executor.spawn(async move {
            while let Ok(arrival) = bound.accept().await {
                spawner.spawn(async move {
                    while let Ok(message) = arrival.socket.receive().await {
                        arrival.socket.send(message.into_bytes()).await.unwrap();
                    }
                });
            }
        });
        executor.block_on(async {
            for round in 0_u32..100 {
                let client = address.connect().await.unwrap();
                client.send(round.to_le_bytes().as_slice()).await.unwrap();
                assert_eq!(client.receive().await.unwrap().bytes(), round.to_le_bytes());
            }
        });
        drop(address);
        assert!(!executor.settle().tasks_left, "all of them have ended");
    }

    fn without_descriptors_a_connect_says_so(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let limit = testing::leave_descriptors(1);
        assert!(matches!(address.try_connect(), Err(ConnectError::OutOfDescriptors)));
        drop(limit);
        let client = address.try_connect().unwrap();
        settle(reactor, async { meet(&bound, &client).await });
    }

    /// More than half of the usual limit: what receives may bring must not be kept free for ever.
    fn many_connections_are_held_at_the_usual_limit(_reactor: &Reactor) {
        let limit = testing::limit_descriptors(1024);
        let reactor = &testing::reactor();
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut held = Vec::new();
            for _ in 0..450 {
                let client = address.connect().await.unwrap();
                let server = meet(&bound, &client).await;
                held.push((client, server));
            }
            for (client, server) in &held {
                client.send("still here").await.unwrap();
                assert_eq!(server.receive().await.unwrap().bytes(), b"still here");
            }
        });
        drop(limit);
    }

    fn acceptors_that_share_a_bound_socket_take_one_each(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let sibling = BoundSocket::from_fd(reactor, bound.share().unwrap()).unwrap();
        bound.set_shared(true);
        sibling.set_shared(true);
        settle(reactor, async {
            let clients = [address.connect().await.unwrap(), address.connect().await.unwrap()];
            let servers = [bound.accept_one().await.unwrap(), sibling.accept_one().await.unwrap()];
            for (client, server) in clients.iter().zip(&servers) {
                client.send("hello").await.unwrap();
                assert_eq!(server.socket.receive().await.unwrap().bytes(), b"hello");
                assert_eq!(server.who.credentials.unwrap().pid, std::process::id() as i32);
            }
        });
        drop(bound);
        let client = settle(reactor, address.connect()).unwrap();
        settle(reactor, async {
            client.send("still here").await.unwrap();
            let server = sibling.accept_one().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"still here");
        });
        drop(address);
        assert!(matches!(settle(reactor, sibling.accept_one()), Err(AcceptError::Gone)));
    }

    fn a_full_queue_keeps_no_descriptor_here(reactor: &Reactor) {
        let (_bound, address) = bound_socket(reactor).unwrap();
        let census = Census::take();
        let clients = fill(&address);
        // One for each: the far ends are in the queue, and nowhere else.
        assert_eq!(Census::take().len(), census.len() + clients.len());
        assert!(address.as_fd().try_clone_to_owned().is_ok());
        drop(clients);
        census.unchanged();
    }
}

/// Polls the future once, with the task's own waker.
async fn poll_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}
