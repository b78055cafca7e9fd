//! What a holder of an address can send that is no request: each is closed, counted by its kind, and in the
//! way of nobody. All of it is sent raw, past this crate's own manners.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::rc::Rc;
use std::time::Duration;

use imc::{AcceptError, BoundSocket, ConnectError, SocketAddress, Violations, bound_socket};
use ring::{Executor, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, Socket};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use testing::{Census, lingering_tcp, on_each_driver, packet_pair, send_packet, settle};

/// An honest client is served, and meets nobody else's leavings.
async fn serves(bound: &BoundSocket, address: &SocketAddress) {
    let client = address.connect().await.unwrap();
    client.send("honest").await.unwrap();
    let server = bound.accept().await.unwrap().socket;
    assert_eq!(server.receive().await.unwrap().bytes(), b"honest");
    server.send("served").await.unwrap();
    assert_eq!(client.receive().await.unwrap().bytes(), b"served");
}

/// Says "served" to everybody who connects.
async fn greet(bound: Rc<BoundSocket>) {
    while let Ok(arrival) = bound.accept().await {
        arrival.socket.send("served").await.unwrap();
    }
}

/// Sends `bytes` with `descriptors` to a fresh acceptor, before it accepts and while it does, and checks that
/// both times nothing of it is left, the next client is served, and what `counter` points at has been
/// counted.
#[track_caller]
fn is_counted(
    reactor: &Reactor,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    counter: fn(&Violations) -> u64,
) {
    let (bound, address) = bound_socket(reactor).unwrap();
    settle(reactor, async {
        serves(&bound, &address).await;
        let census = Census::take();
        for times in 1..=3 {
            send_packet(&address, bytes, descriptors).unwrap();
            serves(&bound, &address).await;
            assert_eq!(counter(&bound.violations()), times);
            assert_eq!(bound.violations().total(), times);
        }
        census.unchanged();
    });
}

/// As `is_counted`, for a request with one descriptor that nobody else holds.
#[track_caller]
fn is_counted_alone(reactor: &Reactor, make: fn() -> OwnedFd, counter: fn(&Violations) -> u64) {
    let kept = make();
    is_counted(reactor, b"c", &[kept.as_fd()], counter);
    drop(kept);

    let (bound, address) = bound_socket(reactor).unwrap();
    let census = Census::take();
    let only = make();
    send_packet(&address, b"c", &[only.as_fd()]).unwrap();
    drop(only);
    settle(reactor, serves(&bound, &address));
    assert_eq!(counter(&bound.violations()), 1);
    census.unchanged();
}

fn seqpacket_socket() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn o_path() -> OwnedFd {
    rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A path for a socket that nobody else uses.
fn socket_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("sendright-imc-{}-{name}", std::process::id()))
}

fn seqpacket_listener() -> OwnedFd {
    let path = socket_path("listener");
    let name = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let socket = seqpacket_socket();
    rustix::net::bind(&socket, &name).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    std::fs::remove_file(path).unwrap();
    socket
}

fn stream_listener() -> OwnedFd {
    let path = socket_path("stream-listener");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    listener.into()
}

fn bound_seqpacket() -> OwnedFd {
    let path = socket_path("bound");
    let socket = seqpacket_socket();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
    socket
}

on_each_driver! {
    fn what_is_no_socket_is_closed_and_counted(reactor: &Reactor) {
        let counter = |violations: &Violations| violations.not_a_socket;
        is_counted_alone(reactor, || File::open("/dev/null").unwrap().into(), counter);
        is_counted_alone(reactor, || std::io::pipe().unwrap().0.into(), counter);
        is_counted_alone(reactor, || File::open("/proc/self/status").unwrap().into(), counter);
        is_counted_alone(reactor, || File::open("/").unwrap().into(), counter);
        is_counted_alone(reactor, o_path, counter);
    }

    fn a_socket_of_another_family_or_type_is_closed_and_counted(reactor: &Reactor) {
        let counter = |violations: &Violations| violations.wrong_kind;
        is_counted_alone(reactor, || testing::stream_pair().0, counter);
        is_counted_alone(reactor, || UnixDatagram::pair().unwrap().0.into(), counter);
        is_counted_alone(reactor, || UdpSocket::bind("127.0.0.1:0").unwrap().into(), counter);
        is_counted_alone(reactor, || TcpListener::bind("127.0.0.1:0").unwrap().into(), counter);
        is_counted_alone(reactor, stream_listener, counter);
    }

    fn an_unconnected_socket_is_closed_and_counted(reactor: &Reactor) {
        let counter = |violations: &Violations| violations.unconnected;
        is_counted_alone(reactor, seqpacket_socket, counter);
        is_counted_alone(reactor, bound_seqpacket, counter);
    }

    fn a_listening_socket_is_closed_and_counted(reactor: &Reactor) {
        is_counted_alone(reactor, seqpacket_listener, |violations| violations.listening);
    }

    fn a_request_without_a_descriptor_is_counted(reactor: &Reactor) {
        is_counted(reactor, b"c", &[], |violations| violations.none);
    }

    fn a_request_with_several_descriptors_closes_them_all(reactor: &Reactor) {
        let (_near, far) = packet_pair();
        for count in [2, 3, 8, 16, 17, 100, 253] {
            is_counted(reactor, b"c", &vec![far.as_fd(); count], |violations| violations.several);
        }
    }

    fn another_message_is_counted_and_its_descriptors_closed(reactor: &Reactor) {
        let (_near, far) = packet_pair();
        let large = [&[b'c'; PACKET_BYTES_MAX][..], &[b'c'; 110_000]];
        for bytes in [&b"C"[..], b"a", b"cc", b"\0", b"connect please", large[0], large[1]] {
            for count in [0, 1, 2, 253] {
                is_counted(reactor, bytes, &vec![far.as_fd(); count], |violations| violations.wrong_message);
            }
        }
    }

    fn an_empty_packet_does_not_pass_for_the_end(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (_near, far) = packet_pair();
        settle(reactor, async {
            let census = Census::take();
            for descriptors in [&[][..], &[far.as_fd()], &[far.as_fd(); 253]] {
                for _ in 0..3 {
                    send_packet(&address, b"", descriptors).unwrap();
                }
                serves(&bound, &address).await;
            }
            census.unchanged();
        });
        assert_eq!(bound.violations(), Violations::default());
        assert_eq!(reactor.stats().empty_packets, 9);
    }

    fn a_socket_that_lingers_keeps_nobody_waiting(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let stuck = lingering_tcp();
        send_packet(&address, b"c", &[stuck.near.as_fd()]).unwrap();
        drop(stuck.near);
        settle(reactor, serves(&bound, &address));
        assert_eq!(bound.violations().wrong_kind, 1);
        assert!(ring::closer_busy(), "somebody else is still closing it");
        drop(stuck.far);
    }

    /// With room for fewer than came the kernel would close the rest, and wait, before the receive returns.
    fn a_lingering_socket_behind_many_others_keeps_nobody_waiting(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (_near, far) = packet_pair();
        let stuck = lingering_tcp();
        for count in [1, 16, 17, 100, 252] {
            let mut descriptors = vec![far.as_fd(); count];
            descriptors.push(stuck.near.as_fd());
            send_packet(&address, b"c", &descriptors).unwrap();
        }
        drop(stuck.near);
        settle(reactor, serves(&bound, &address));
        assert_eq!(bound.violations().several, 5);
        assert!(ring::closer_busy(), "somebody else is still closing it");
        drop(stuck.far);
    }

    fn a_lingering_socket_left_in_the_queue_keeps_nobody_waiting(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let stuck = lingering_tcp();
        send_packet(&address, b"c", &[stuck.near.as_fd()]).unwrap();
        // Nor one left unread in a connection that is dropped.
        let client = settle(reactor, address.connect()).unwrap();
        send_packet(&client, b"here", &[stuck.near.as_fd()]).unwrap();
        drop(stuck.near);
        drop(bound);
        drop(client);
        drop(address);
        assert!(ring::closer_busy(), "somebody else is still closing it");
        drop(stuck.far);
    }

    fn a_connection_that_has_ended_is_handed_out_as_it_is(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (near, far) = packet_pair();
        send_packet(&near, b"last words", &[]).unwrap();
        drop(near);
        send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        drop(far);
        settle(reactor, async {
            let socket = bound.accept().await.unwrap().socket;
            assert_eq!(socket.receive().await.unwrap().bytes(), b"last words");
            assert!(matches!(socket.receive().await, Err(ReceiveError::Closed)));
            serves(&bound, &address).await;
        });
        assert_eq!(bound.violations().total(), 0);
    }

    /// The address itself as the far end would be a connection to oneself, which nobody else can end.
    fn an_address_given_as_a_connection_is_counted(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        send_packet(&address, b"c", &[address.as_fd()]).unwrap();
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            client.send("honest").await.unwrap();
            assert_eq!(server.receive().await.unwrap().bytes(), b"honest");
            assert_eq!(bound.violations().own_address, 1);
            assert_eq!(bound.violations().total(), 1);
        });
    }

    /// Where it is not known which the address is, what is sent on that "connection" comes back to the
    /// acceptor, is counted, and does not go round in a circle.
    fn an_address_given_as_a_connection_does_not_go_round(reactor: &Reactor) {
        let (bound, address) = packet_pair();
        let bound = BoundSocket::from_fd(reactor, bound).unwrap();
        let address = SocketAddress::from_fd(reactor, address).unwrap();
        bound.set_confirming(true);
        send_packet(&address, b"c", &[address.as_fd()]).unwrap();
        settle(reactor, async {
            let arrival = bound.accept().await.unwrap();
            arrival.socket.send("who is there?").await.unwrap();
            let client = address.connect().await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            client.send("honest").await.unwrap();
            assert_eq!(server.receive().await.unwrap().bytes(), b"honest");
            // `a` and the question.
            assert_eq!(bound.violations().wrong_message, 2);
        });
    }

    /// Nobody but its own queue holds the other end, so that no hang-up comes; but dropping it ends it.
    fn a_connection_in_its_own_queue_is_closed_with_everything_in_it(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let census = Census::take();
        settle(reactor, async {
            for _ in 0..10 {
                let (near, far) = packet_pair();
                send_packet(&near, b"me", &[near.as_fd()]).unwrap();
                drop(near);
                send_packet(&address, b"c", &[far.as_fd()]).unwrap();
                drop(far);
                drop(bound.accept().await.unwrap());
            }
            serves(&bound, &address).await;
        });
        census.unchanged();
        assert_eq!(bound.violations().total(), 0);
    }

    /// Not defended: all holders of one address are one trust domain.
    fn a_holder_that_shuts_the_address_down_ends_it_for_all(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        rustix::net::shutdown(address.share().unwrap(), rustix::net::Shutdown::Both).unwrap();
        settle(reactor, async {
            assert!(matches!(bound.accept().await, Err(AcceptError::Gone)));
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
        });
    }

    /// Without room for its descriptor a request is lost, whoever sent it; but the acceptor goes on, and an
    /// honest client that tries again is served.
    fn with_few_descriptors_left_the_acceptor_goes_on(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let bound = Rc::new(bound);
        let (_near, far) = packet_pair();
        let executor = Executor::new(reactor);
        executor.spawn(greet(Rc::clone(&bound)));
        executor.settle();
        let limit = testing::leave_descriptors(40);
        executor.block_on(async {
            for _ in 0..20 {
                send_packet(&address, b"c", &[far.as_fd(); 253]).unwrap();
                loop {
                    // This process is short of descriptors as a client, too.
                    let client = match address.connect().await {
                        Ok(client) => client,
                        Err(ConnectError::OutOfDescriptors) => {
                            reactor.sleep(Duration::from_millis(1)).await;
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    match client.receive().await {
                        Ok(message) => break assert_eq!(message.bytes(), b"served"),
                        Err(error) => assert!(matches!(error, ReceiveError::Closed)),
                    }
                }
            }
        });
        assert!(bound.violations().total() >= 20);
        drop(limit);
    }

    fn everything_at_once_is_told_apart(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (_near, far) = packet_pair();
        let (stream, _other) = testing::stream_pair();
        let (unconnected, listener) = (seqpacket_socket(), seqpacket_listener());
        let null = File::open("/dev/null").unwrap();
        let census = Census::take();
        let rounds = 20;
        for _ in 0..rounds {
            send_packet(&address, b"x", &[]).unwrap();
            send_packet(&address, b"c", &[]).unwrap();
            send_packet(&address, b"c", &[far.as_fd(), null.as_fd()]).unwrap();
            send_packet(&address, b"c", &[null.as_fd()]).unwrap();
            send_packet(&address, b"c", &[stream.as_fd()]).unwrap();
            send_packet(&address, b"c", &[listener.as_fd()]).unwrap();
            send_packet(&address, b"c", &[unconnected.as_fd()]).unwrap();
        }
        settle(reactor, serves(&bound, &address));
        census.unchanged();
        let violations = bound.violations();
        let told = [
            violations.wrong_message,
            violations.none,
            violations.several,
            violations.not_a_socket,
            violations.wrong_kind,
            violations.listening,
            violations.unconnected,
        ];
        assert_eq!(told, [rounds; 7]);
        assert_eq!(violations.total(), 7 * rounds);
        // Not ours to touch: the strangers' sockets are as they were.
        testing::send_packet(&stream, b"still open", &[]).unwrap();
    }

    fn what_lies_in_a_refused_socket_is_left_alone(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (stream, other) = testing::stream_pair();
        send_packet(&other, b"for somebody else", &[]).unwrap();
        send_packet(&address, b"c", &[stream.as_fd()]).unwrap();
        settle(reactor, serves(&bound, &address));
        assert_eq!(bound.violations().wrong_kind, 1);
        ring::closer_idle();
        assert_eq!(testing::receive_packet(&stream).unwrap().bytes, b"for somebody else");
    }

    fn a_stranger_that_fills_the_connection_does_not_keep_the_acceptor_from_confirming(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        let (near, far) = packet_pair();
        testing::set_nonblocking(&far);
        let mut filled = 0;
        while send_packet(&far, b"full", &[]).is_ok() {
            filled += 1;
        }
        testing::set_blocking(&far);
        send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        drop(far);
        settle(reactor, async {
            let client = address.connect().await.unwrap();
            let full = bound.accept().await.unwrap().socket;
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(client.receive().await.unwrap().bytes(), b"a");
            // It waits behind what is there, alone in its packet, and before what is sent afterwards.
            let near = Socket::wrap(reactor, near).unwrap();
            for _ in 0..filled {
                assert_eq!(near.receive().await.unwrap().bytes(), b"full");
            }
            full.send(Message::from("hello")).await.unwrap();
            assert_eq!(near.receive().await.unwrap().bytes(), b"a");
            assert_eq!(near.receive().await.unwrap().bytes(), b"hello");
            drop(server);
        });
    }

    fn a_flood_of_strangers_delays_but_does_not_stop(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let bound = Rc::new(bound);
        let executor = Executor::new(reactor);
        let flooding = Socket::wrap(reactor, address.share().unwrap()).unwrap();
        executor.spawn(async move { while flooding.send("rubbish").await.is_ok() {} });
        executor.spawn(greet(Rc::clone(&bound)));
        executor.block_on(async {
            let mut served = 0;
            // The flood has one message in each turn, and a connection may take no more than that.
            while served < 20 || bound.violations().wrong_message <= 20 {
                let client = address.connect().await.unwrap();
                assert_eq!(client.receive().await.unwrap().bytes(), b"served");
                served += 1;
            }
        });
        // The tasks hold the ends of each other.
        drop(executor);
    }
}
