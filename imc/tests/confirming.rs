//! Confirmations: those that come, those that come late, and what comes instead.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use imc::{ConfirmError, ConnectError, bound_socket};
use ring::{Executor, Message, Reactor, ReceiveError, Socket};
use testing::{Census, on_each_driver, receive_packet, send_packet, settle};

/// For what is expected to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// For what is expected not to come.
const HASTE: Duration = Duration::from_millis(20);

on_each_driver! {
    fn a_confirming_acceptor_confirms(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        let executor = Executor::new(reactor);
        executor.spawn(async move {
            let server = bound.accept().await.unwrap().socket;
            server.send("welcome").await.unwrap();
            assert_eq!(server.receive().await.unwrap().bytes(), b"thanks");
        });
        executor.block_on(async {
            let client = address.connect_confirmed(PATIENCE).await.unwrap();
            assert!(!client.is_confirmation_due());
            assert_eq!(client.receive().await.unwrap().bytes(), b"welcome");
            client.send("thanks").await.unwrap();
        });
        assert!(!executor.settle().tasks_left);
    }

    fn a_plain_connect_finds_the_confirmation_as_the_first_message(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            server.send("welcome").await.unwrap();
            assert_eq!(client.receive().await.unwrap().bytes(), b"a");
            assert_eq!(client.receive().await.unwrap().bytes(), b"welcome");
        });
    }

    fn an_unconfirmed_connection_comes_back_usable(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let started = Instant::now();
            let Err(ConfirmError::Unconfirmed(client)) = address.connect_confirmed(HASTE).await else {
                panic!("nobody has accepted");
            };
            assert!(started.elapsed() >= HASTE);
            assert!(client.is_confirmation_due());
            client.send("all the same").await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"all the same");
            // This one does not confirm after all: what it says is heard.
            server.send("indeed").await.unwrap();
            assert_eq!(client.receive().await.unwrap().bytes(), b"indeed");
            assert!(!client.is_confirmation_due());
        });
    }

    fn a_late_confirmation_is_swallowed(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        settle(reactor, async {
            let Err(ConfirmError::Unconfirmed(client)) = address.connect_confirmed(HASTE).await else {
                panic!("nobody has accepted");
            };
            let server = bound.accept().await.unwrap().socket;
            server.send("a").await.unwrap();
            server.send("welcome").await.unwrap();
            // One only: an application may say `a` whenever it likes.
            assert_eq!(client.receive().await.unwrap().bytes(), b"a");
            assert_eq!(client.receive().await.unwrap().bytes(), b"welcome");
        });
    }

    fn a_late_confirmation_is_swallowed_by_those_who_only_look(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        settle(reactor, async {
            let Err(ConfirmError::Unconfirmed(client)) = address.connect_confirmed(HASTE).await else {
                panic!("nobody has accepted");
            };
            let server = bound.accept().await.unwrap().socket;
            client.socket().stream();
            reactor.sleep(HASTE).await;
            assert!(client.try_receive().is_none());
            assert!(!client.is_confirmation_due());
            server.send("welcome").await.unwrap();
            let message = loop {
                match client.try_receive() {
                    Some(message) => break message.unwrap(),
                    None => reactor.sleep(Duration::from_millis(1)).await,
                }
            };
            assert_eq!(message.bytes(), b"welcome");
        });
    }

    fn an_unconfirmed_connection_that_nobody_accepts_ends(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let Err(ConfirmError::Unconfirmed(client)) = address.connect_confirmed(HASTE).await else {
                panic!("nobody has accepted");
            };
            drop(bound);
            assert!(matches!(client.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn an_acceptor_that_dies_instead_of_confirming_is_gone(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let executor = Executor::new(reactor);
        let sleep = reactor.sleep(HASTE);
        executor.spawn(async move {
            sleep.await;
            drop(bound);
        });
        executor.block_on(async {
            let error = address.connect_confirmed(PATIENCE).await.unwrap_err();
            assert!(matches!(error, ConfirmError::Gone), "{error:?}");
            let error = address.connect_confirmed(PATIENCE).await.unwrap_err();
            assert!(matches!(error, ConfirmError::Connect(ConnectError::Gone)), "{error:?}");
        });
    }

    fn something_else_instead_of_a_confirmation_is_malformed(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let address = imc::SocketAddress::from_fd(reactor, far).unwrap();
        let executor = Executor::new(reactor);
        let acceptor = Socket::wrap(reactor, near.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let census = Census::take();
        for (bytes, count) in [(&b"b"[..], 0), (b"aa", 0), (b"a", 1), (b"a", 20), (&[b'a'; 110_000], 0)] {
            executor.block_on(async {
                let mut connecting = std::pin::pin!(address.connect_confirmed(PATIENCE));
                let mut accepting = std::pin::pin!(acceptor.receive());
                let error = std::future::poll_fn(|context| {
                    use std::future::Future;
                    if let std::task::Poll::Ready(request) = accepting.as_mut().poll(context) {
                        let far = request.unwrap().take_descriptor().unwrap();
                        send_packet(&far, bytes, &vec![far.as_fd(); count]).unwrap();
                        accepting.set(acceptor.receive());
                    }
                    connecting.as_mut().poll(context)
                })
                .await
                .unwrap_err();
                assert!(matches!(error, ConfirmError::Malformed), "{error:?}");
            });
        }
        census.unchanged();
        drop(near);
    }

    fn a_queue_that_stays_full_is_said_when_the_time_is_over(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let mut clients = Vec::new();
        while let Ok(client) = address.try_connect() {
            clients.push(client);
        }
        let census = Census::take();
        settle(reactor, async {
            let error = address.connect_confirmed(HASTE).await.unwrap_err();
            assert!(matches!(error, ConfirmError::Connect(ConnectError::WouldBlock)), "{error:?}");
        });
        census.unchanged();
        drop(bound);
    }

    fn no_time_at_all_still_sends_the_request(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let error = address.connect_confirmed(Duration::ZERO).await.unwrap_err();
            assert!(matches!(error, ConfirmError::Unconfirmed(_)), "{error:?}");
            bound.accept().await.unwrap();
        });
    }

    fn errors_say_what_happened(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let unconfirmed = address.connect_confirmed(HASTE).await.unwrap_err();
            assert_eq!(unconfirmed.to_string(), "the acceptor has not confirmed in time");
            drop(bound);
            let gone = address.connect_confirmed(HASTE).await.unwrap_err();
            assert_eq!(gone.to_string(), "no request was sent: the bound socket is gone");
            assert!(std::error::Error::source(&gone).is_some());
        });
    }

    /// The confirmation as anybody would write it who has only read the protocol.
    fn the_bytes_are_those_of_the_protocol(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let address = imc::SocketAddress::from_fd(reactor, far).unwrap();
        let client = address.try_connect().unwrap();
        let request = receive_packet(&near).unwrap();
        assert_eq!((request.bytes.as_slice(), request.descriptors.len()), (&[0x63][..], 1));
        drop((client, request, address));

        let bound = imc::BoundSocket::from_fd(reactor, near).unwrap();
        drop(bound);
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        let (near, far) = testing::packet_pair();
        send_packet(&address, &[0x63], &[far.as_fd()]).unwrap();
        drop(far);
        let server = settle(reactor, bound.accept()).unwrap().socket;
        let confirmation = receive_packet(&near).unwrap();
        assert_eq!((confirmation.bytes.as_slice(), confirmation.descriptors.len()), (&[0x61][..], 0));
        settle(reactor, server.send(Message::from("welcome"))).unwrap();
        assert_eq!(receive_packet(&near).unwrap().bytes, b"welcome");
    }
}
