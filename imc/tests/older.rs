//! The two older ways to connect: what Native Client asserted of them, what they cannot do, and what
//! strangers can.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;

use imc::older::{TOKEN_CHARACTERS, Token, datagram, stream};
use imc::{AcceptError, ConnectError, ConnectedSocket, Violations};
use ring::{Message, Reactor, ReceiveError, SendError};
use rustix::io::IoSlice;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, bind, sendmsg_addr, socket_with,
};
use testing::{Census, helper, on_each_driver, packet_pair, poll_once, settle, start_helper};

/// The name as Native Client's own code has it: the whole of `sockaddr_un`, with zeroes behind the token.
fn native_name(token: &Token) -> SocketAddrUnix {
    let mut name = b"google-nacl-".to_vec();
    name.extend(token.characters().bytes());
    name.resize(107, 0);
    SocketAddrUnix::new_abstract_name(&name).unwrap()
}

fn datagram_socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap()
}

/// Sends to a token as a stranger would.
fn send_raw(token: &Token, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let message = SendAncillaryMessage::ScmRights(descriptors);
    let mut room = vec![std::mem::MaybeUninit::uninit(); message.size()];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        assert!(control.push(message));
    }
    let parts = [IoSlice::new(bytes)];
    sendmsg_addr(datagram_socket(), &native_name(token), &parts, &mut control, SendFlags::empty()).unwrap();
}

type Counter = fn(&Violations) -> u64;

fn token_of(text: &str) -> Token {
    Token::new(text).unwrap()
}

async fn exactly(socket: &stream::ConnectedSocket, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        bytes.extend(socket.receive().await.unwrap().bytes());
    }
    assert_eq!(bytes.len(), length);
    bytes
}

async fn meet(server: &ConnectedSocket, client: &ConnectedSocket) {
    client.send("to the server").await.unwrap();
    assert_eq!(server.receive().await.unwrap().bytes(), b"to the server");
    server.send("to the client").await.unwrap();
    assert_eq!(client.receive().await.unwrap().bytes(), b"to the client");
}

helper! {
    /// Is told a token, connects by a stream, and echoes.
    fn connects_by_stream_and_echoes(_descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let address = stream::SocketAddress::from(token_of(&testing::helper_argument()));
        settle(&reactor, async {
            let socket = address.connect(&reactor).await.unwrap();
            while let Ok(mut message) = socket.receive().await {
                let mut answer = Message::new(message.bytes());
                message.take_descriptors().into_iter().for_each(|fd| answer.push_descriptor(fd));
                socket.send(answer).await.unwrap();
            }
        });
    }

    /// Is told a token and given a socket to send from; connects by a datagram, and echoes.
    fn connects_by_datagram_and_echoes(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [service] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let service = datagram::ServiceSocket::from_fd(&reactor, service).unwrap();
        let address = datagram::SocketAddress::from(token_of(&testing::helper_argument()));
        settle(&reactor, async {
            let socket = address.connect(&service).await.unwrap();
            while let Ok(mut message) = socket.receive().await {
                let mut answer = Message::new(message.bytes());
                message.take_descriptors().into_iter().for_each(|fd| answer.push_descriptor(fd));
                socket.send(answer).await.unwrap();
            }
        });
    }
}

#[test]
fn a_token_is_27_letters_and_digits() {
    let token = Token::random().unwrap();
    assert_eq!(token.characters().len(), TOKEN_CHARACTERS);
    assert!(token.characters().bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_ne!(token, Token::random().unwrap());
    assert_eq!(Token::new(token.characters()).unwrap(), token);
}

#[test]
fn what_is_no_token_is_refused() {
    for text in ["", "-begins with a dash", "has a space", "ends\0", "eine Stra\u{df}e", &"x".repeat(28)] {
        assert!(Token::new(text).is_err(), "{text:?}");
    }
    for text in ["x", "0", "a-b.c_d", &"x".repeat(27)] {
        assert!(Token::new(text).is_ok(), "{text:?}");
    }
}

on_each_driver! {
    // Streams.

    fn bytes_go_both_ways_through_a_stream(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        settle(reactor, async {
            let client = address.connect(reactor).await.unwrap();
            let server = bound.accept().await.unwrap();
            for length in [1, 100, 65_536] {
                for (from, to) in [(&client, &server), (&server, &client)] {
                    from.send(vec![7; length]).await.unwrap();
                    assert_eq!(exactly(to, length).await, vec![7; length]);
                }
            }
        });
    }

    fn a_stream_has_no_boundaries(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        settle(reactor, async {
            let client = address.connect(reactor).await.unwrap();
            let server = bound.accept().await.unwrap();
            client.send("one").await.unwrap();
            client.send("two").await.unwrap();
            assert_eq!(exactly(&server, 6).await, b"onetwo");
        });
    }

    fn two_processes_exchange_bytes_and_descriptors_by_stream(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        let helper = start_helper!(connects_by_stream_and_echoes, vec![], address.token().characters());
        settle(reactor, async {
            let socket = bound.accept().await.unwrap();
            assert_eq!(socket.peer().unwrap().pid, helper.pid());
            socket.send("hello").await.unwrap();
            assert_eq!(exactly(&socket, 5).await, b"hello");
            let (mut reader, writer) = std::io::pipe().unwrap();
            socket.send(Message::from("x").with_descriptor(OwnedFd::from(writer))).await.unwrap();
            let mut back = socket.receive().await.unwrap();
            File::from(back.take_descriptor().unwrap()).write_all(b"through it").unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "through it");
        });
        helper.succeeded();
    }

    fn a_listener_lets_one_more_than_its_backlog_wait(reactor: &Reactor) {
        for backlog in [0, 1, stream::BACKLOG] {
            let (bound, address) = stream::bound_socket(reactor, backlog).unwrap();
            let waiting: Vec<_> = (0..=backlog).map(|_| address.try_connect(reactor).unwrap()).collect();
            assert!(matches!(address.try_connect(reactor), Err(ConnectError::WouldBlock)));
            settle(reactor, async {
                let mut connecting = pin!(address.connect(reactor));
                poll_once(connecting.as_mut());
                let _first = bound.accept().await.unwrap();
                connecting.await.unwrap();
            });
            drop(waiting);
        }
    }

    fn connecting_by_stream_fails_when_the_acceptor_is_dropped(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        let waiting = address.try_connect(reactor).unwrap();
        drop(bound);
        settle(reactor, async {
            assert!(matches!(address.connect(reactor).await, Err(ConnectError::Gone)));
            assert!(matches!(address.try_connect(reactor), Err(ConnectError::Gone)));
            assert!(matches!(waiting.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(waiting.send("anyone?").await, Err(SendError::Gone)));
        });
    }

    /// The right to connect is nobody's to take back: there is nothing to drop.
    fn an_acceptor_is_never_told_that_every_address_is_gone(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        let told = address.token().clone();
        drop(address);
        settle(reactor, async {
            let mut accepting = pin!(bound.accept());
            poll_once(accepting.as_mut());
            let _client = stream::SocketAddress::from(told).try_connect(reactor).unwrap();
            accepting.await.unwrap();
        });
    }

    fn an_accept_of_a_stream_that_is_dropped_loses_no_connection(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        settle(reactor, async {
            for _ in 0..10 {
                poll_once(pin!(bound.accept()));
                let client = address.connect(reactor).await.unwrap();
                client.send("kept").await.unwrap();
                let server = bound.accept().await.unwrap();
                assert_eq!(exactly(&server, 4).await, b"kept");
            }
        });
    }

    // Datagrams.

    fn data_goes_both_ways_in_exact_lengths_after_a_datagram(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        settle(reactor, async {
            let client = address.connect(&service).await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            for length in [1, 100, 65_536] {
                for (from, to) in [(&client, &server), (&server, &client)] {
                    from.send(vec![7; length]).await.unwrap();
                    let received = to.receive().await.unwrap();
                    assert_eq!((received.bytes(), received.descriptors()), (&vec![7; length][..], 0));
                }
            }
        });
    }

    fn two_processes_exchange_data_and_descriptors_after_a_datagram(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        bound.ask_for_pidfds().unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap().share().unwrap();
        let token = address.token().characters();
        let helper = start_helper!(connects_by_datagram_and_echoes, vec![service], token);
        settle(reactor, async {
            let arrival = bound.accept().await.unwrap();
            assert_eq!(arrival.who.credentials.unwrap().pid, helper.pid());
            assert!(arrival.who.pidfd.is_some());
            let socket = arrival.socket;
            let (_reader, writer) = std::io::pipe().unwrap();
            socket.send(Message::from("hello").with_descriptor(OwnedFd::from(writer))).await.unwrap();
            let back = socket.receive().await.unwrap();
            assert_eq!((back.bytes(), back.descriptors()), (&b"hello"[..], 1));
        });
        helper.succeeded();
    }

    fn a_datagram_connects_at_once_and_is_used_before_it_is_accepted(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let client = address.try_connect(&service).unwrap();
        settle(reactor, async {
            client.send("early").await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"early");
            meet(&server, &client).await;
        });
    }

    fn eight_connections_by_datagram_are_each_used(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        settle(reactor, async {
            let mut connections = Vec::new();
            for _ in 0..8 {
                let client = address.connect(&service).await.unwrap();
                let server = bound.accept().await.unwrap().socket;
                connections.push((server, client));
            }
            for (server, client) in &connections {
                meet(server, client).await;
            }
        });
    }

    fn connecting_by_datagram_fails_when_the_acceptor_is_dropped(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let waiting = address.try_connect(&service).unwrap();
        drop(bound);
        settle(reactor, async {
            assert!(matches!(address.connect(&service).await, Err(ConnectError::Gone)));
            assert!(matches!(address.try_connect(&service), Err(ConnectError::Gone)));
            // It was told that it is connected.
            assert!(matches!(waiting.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(waiting.send("anyone?").await, Err(SendError::Gone)));
        });
    }

    /// Whoever has the name now.
    fn a_request_goes_to_the_next_who_takes_the_name(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        drop(bound);
        let thief = datagram_socket();
        bind(&thief, &native_name(address.token())).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let client = address.try_connect(&service).unwrap();
        client.try_send("a secret").unwrap();
        let mut packet = testing::receive_packet(&thief).unwrap();
        assert_eq!((packet.bytes.len(), packet.descriptors.len()), (0, 1));
        let told = testing::receive_packet(packet.descriptors.remove(0)).unwrap();
        assert_eq!(told.bytes, b"a secret");
    }

    fn a_full_queue_of_datagrams_is_said_at_once_and_awaited_by_connect(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let mut clients = Vec::new();
        let error = loop {
            match address.try_connect(&service) {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectError::WouldBlock), "{error:?}");
        assert!(!clients.is_empty());
        settle(reactor, async {
            let mut connecting = pin!(address.connect(&service));
            poll_once(connecting.as_mut());
            for client in &clients {
                let server = bound.accept().await.unwrap().socket;
                meet(&server, client).await;
            }
            let client = connecting.await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            meet(&server, &client).await;
        });
    }

    fn a_connect_by_datagram_that_is_dropped_leaves_nothing(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let census = Census::take();
        let mut clients = Vec::new();
        while let Ok(client) = address.try_connect(&service) {
            clients.push(client);
        }
        poll_once(pin!(address.connect(&service)));
        settle(reactor, async {
            for _ in &clients {
                bound.accept().await.unwrap();
            }
            poll_once(pin!(bound.accept()));
        });
        drop(clients);
        testing::turn(reactor);
        census.unchanged();
    }

    fn an_accept_of_datagrams_that_is_dropped_loses_no_connection(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        settle(reactor, async {
            for _ in 0..10 {
                poll_once(pin!(bound.accept()));
                let client = address.connect(&service).await.unwrap();
                let server = bound.accept().await.unwrap().socket;
                meet(&server, &client).await;
            }
        });
    }

    fn without_descriptors_connecting_says_so(reactor: &Reactor) {
        let (_bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let (_listener, streamed) = stream::bound_socket(reactor, 1).unwrap();
        let limit = testing::leave_descriptors(1);
        assert!(matches!(address.try_connect(&service), Err(ConnectError::OutOfDescriptors)));
        drop(limit);
        let limit = testing::leave_descriptors(0);
        assert!(matches!(streamed.try_connect(reactor), Err(ConnectError::OutOfDescriptors)));
        drop(limit);
    }

    /// A child that has inherited the socket can do that, and accepting must not go round in circles then.
    fn accepting_datagrams_ends_when_another_holder_shuts_the_socket_down(reactor: &Reactor) {
        let (bound, _address) = datagram::bound_socket(reactor).unwrap();
        rustix::net::shutdown(&bound, rustix::net::Shutdown::Both).unwrap();
        assert!(matches!(settle(reactor, bound.accept()), Err(AcceptError::Gone)));
    }

    fn only_a_datagram_socket_is_a_service_socket(reactor: &Reactor) {
        let census = Census::take();
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        assert!(datagram::ServiceSocket::from_fd(reactor, pipe).is_err());
        assert!(datagram::ServiceSocket::from_fd(reactor, packet_pair().0).is_err());
        assert!(datagram::ServiceSocket::from_fd(reactor, datagram_socket()).is_ok());
        census.unchanged();
    }

    // Strangers.

    fn a_request_of_native_clients_own_code_is_accepted(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let (near, far) = packet_pair();
        send_raw(address.token(), b"", &[far.as_fd()]);
        drop(far);
        settle(reactor, async {
            let server = bound.accept().await.unwrap().socket;
            testing::send_packet(&near, b"an old peer", &[]).unwrap();
            assert_eq!(server.receive().await.unwrap().bytes(), b"an old peer");
        });
    }

    /// As the other side of it: what we send is what `ReceiveDatagram` there expected.
    fn native_clients_own_code_accepts_a_request(reactor: &Reactor) {
        let token = Token::random().unwrap();
        let old = datagram_socket();
        bind(&old, &native_name(&token)).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let client = datagram::SocketAddress::from(token).try_connect(&service).unwrap();
        let mut packet = testing::receive_packet(&old).unwrap();
        assert_eq!((packet.bytes.len(), packet.descriptors.len()), (0, 1));
        testing::send_packet(packet.descriptors.remove(0), b"welcome", &[]).unwrap();
        assert_eq!(settle(reactor, client.receive()).unwrap().bytes(), b"welcome");
    }

    fn what_is_no_request_is_closed_and_counted(reactor: &Reactor) {
        let (socket, _peer) = packet_pair();
        let (stream, _other) = testing::stream_pair();
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        let lonely =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let eight = [socket.as_fd(); 8];
        let cases: [(&[u8], &[BorrowedFd<'_>], Counter); 8] = [
            (b"c", &[socket.as_fd()], |violations| violations.wrong_message),
            (b"", &[], |violations| violations.none),
            (b"", &eight, |violations| violations.several),
            (b"", &eight[..2], |violations| violations.several),
            (b"", &[pipe.as_fd()], |violations| violations.not_a_socket),
            (b"", &[stream.as_fd()], |violations| violations.wrong_kind),
            (b"", &[lonely.as_fd()], |violations| violations.unconnected),
            (&[7; 110_000], &[socket.as_fd()], |violations| violations.wrong_message),
        ];
        for (bytes, descriptors, counter) in cases {
            let (bound, address) = datagram::bound_socket(reactor).unwrap();
            let service = datagram::ServiceSocket::new(reactor).unwrap();
            let census = Census::take();
            for times in 1..=3 {
                send_raw(address.token(), bytes, descriptors);
                let client = address.try_connect(&service).unwrap();
                settle(reactor, async {
                    let server = bound.accept().await.unwrap().socket;
                    meet(&server, &client).await;
                });
                assert_eq!(counter(&bound.violations()), times);
                assert_eq!(bound.violations().total(), times);
            }
            census.unchanged();
        }
    }

    fn too_many_descriptors_in_a_datagram_are_closed_and_counted(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let service = datagram::ServiceSocket::new(reactor).unwrap();
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        let census = Census::take();
        send_raw(address.token(), b"", &[pipe.as_fd(); 253]);
        let client = address.try_connect(&service).unwrap();
        settle(reactor, async {
            let server = bound.accept().await.unwrap().socket;
            meet(&server, &client).await;
        });
        assert_eq!(bound.violations().several, 1);
        drop(client);
        census.unchanged();
    }

    fn nothing_a_stranger_sends_is_an_error_of_accept(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut accepting = pin!(bound.accept());
            for _ in 0..5 {
                send_raw(address.token(), b"rubbish", &[]);
            }
            poll_once(accepting.as_mut());
            let (near, far) = packet_pair();
            send_raw(address.token(), b"", &[far.as_fd()]);
            let arrival: Result<_, AcceptError> = accepting.await;
            drop((near, arrival.unwrap()));
        });
        assert_eq!(bound.violations().wrong_message, 5);
    }
}
