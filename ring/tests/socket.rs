//! Sockets as such: what is one, listeners, readiness, limits of the kernel, and the errors that name them.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Waker};

use ring::{Fd, Kind, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, SendError, Socket, WrapError};
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};
use testing::{helper, on_each_driver, settle, start_helper, turn};

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sendright-socket-{name}-{}", std::process::id()))
}

fn is_pending(future: impl Future) -> bool {
    pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// A listener that is gone when the body ends, with its file.
struct Listening(Socket, PathBuf);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

fn listen(reactor: &Reactor, name: &str, kind: Kind) -> Listening {
    let path = path(name);
    Listening(Socket::listen(reactor, &path, kind).unwrap(), path)
}

on_each_driver! {
    fn what_is_not_an_af_unix_socket_is_refused(reactor: &Reactor) {
        const O_PATH: i32 = 0o10_000_000;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets: Vec<(&str, OwnedFd)> = vec![
            ("tcp listener", listener.into()),
            ("udp", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
            ("datagrams", UnixDatagram::unbound().unwrap().into()),
        ];
        for (name, fd) in sockets {
            assert!(matches!(Socket::wrap(reactor, fd), Err(WrapError::NotUnix)), "{name}");
        }
        let others: Vec<(&str, OwnedFd)> = vec![
            ("file", File::open("/proc/self/exe").unwrap().into()),
            ("directory", File::open("/").unwrap().into()),
            ("device", File::open("/dev/null").unwrap().into()),
            ("pipe", std::io::pipe().unwrap().0.into()),
            ("eventfd", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()),
            ("epoll", rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap()),
            ("O_PATH", File::options().read(true).custom_flags(O_PATH).open("/dev/null").unwrap().into()),
        ];
        for (name, fd) in others {
            assert!(matches!(Socket::wrap(reactor, fd), Err(WrapError::NotASocket)), "{name}");
        }
        // Not even if it leads to one.
        let name = path("o-path");
        let listener = UnixListener::bind(&name).unwrap();
        let file = File::options().read(true).custom_flags(O_PATH).open(&name).unwrap();
        std::fs::remove_file(&name).unwrap();
        assert!(matches!(Socket::wrap(reactor, OwnedFd::from(file)), Err(WrapError::NotASocket)));
        drop(listener);
    }

    fn what_is_an_af_unix_socket_is_taken(reactor: &Reactor) {
        let (near, _far) = UnixStream::pair().unwrap();
        assert_eq!(Socket::wrap(reactor, near).unwrap().kind(), Kind::Stream);
        assert_eq!(Socket::wrap(reactor, testing::packet_pair().0).unwrap().kind(), Kind::SeqPacket);
        assert_eq!(Socket::pair(reactor, Kind::Stream).unwrap().0.kind(), Kind::Stream);
    }

    /// Through every descriptor of it, and no other socket by the same.
    fn a_socket_is_known_by_its_cookie(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let cookie = ring::socket_cookie(&far).unwrap();
        assert_ne!(ring::socket_cookie(&near).unwrap(), cookie);
        let far = Socket::wrap(reactor, far).unwrap();
        let copy = far.as_fd().try_clone_to_owned().unwrap();
        settle(reactor, far.send(Message::from("me").with_descriptor(copy))).unwrap();
        let came = settle(reactor, near.receive()).unwrap().take_descriptor().unwrap();
        assert_eq!(ring::socket_cookie(&came).unwrap(), cookie);
        assert!(ring::socket_cookie(std::io::pipe().unwrap().0).is_err());
    }

    fn what_was_taken_once_is_taken_again_unasked(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap_again(reactor, far, Kind::SeqPacket);
        settle(reactor, far.send("hello")).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"hello");
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        let none = Socket::wrap_again(reactor, pipe, Kind::SeqPacket);
        assert!(matches!(settle(reactor, none.send("hello")), Err(SendError::Io(_))));
    }

    fn a_socket_takes_more_until_its_queue_is_full_and_again_when_that_is_read(reactor: &Reactor) {
        let (near, far) = testing::ends(reactor, false);
        assert!(near.takes_more());
        let mut queued = 0;
        while near.try_send(vec![7; 60_000]).is_ok() {
            queued += 1;
        }
        assert!(!near.takes_more());
        for _ in 0..queued {
            testing::receive_packet(&far).unwrap();
        }
        assert!(near.takes_more());
    }

    fn a_queue_is_drained_when_it_has_been_read(reactor: &Reactor) {
        let (near, far) = testing::ends(reactor, false);
        settle(reactor, near.drained()).unwrap();
        let mut queued = 0;
        while near.try_send(vec![7; 60_000]).is_ok() {
            queued += 1;
        }
        let mut drained = near.drained();
        assert!(is_pending(&mut drained));
        drop(near.drained());
        (0..queued).for_each(|_| drop(testing::receive_packet(&far).unwrap()));
        settle(reactor, drained).unwrap();
        // Told by the other end's going, too.
        while near.try_send(vec![7; 60_000]).is_ok() {}
        let drained = near.drained();
        drop(far);
        settle(reactor, drained).unwrap();
    }

    fn readiness_outlives_a_socket_of_one_holder_only_until_that_is_shut_down(reactor: &Reactor) {
        let (near, _far) = testing::ends(reactor, false);
        while near.try_send(vec![7; 60_000]).is_ok() {}
        let waits = [near.readable(), near.hung_up(), near.drained()];
        drop(near);
        for mut readiness in waits {
            testing::wait_until("it ends", || {
                turn(reactor);
                !is_pending(&mut readiness)
            });
        }
    }

    fn readiness_keeps_open_what_others_may_hold(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        let mut waits = near.readable();
        drop(near);
        turn(reactor);
        assert!(is_pending(&mut waits) && !far.is_hung_up());
        drop(waits);
        testing::wait_until("it is closed", || {
            turn(reactor);
            far.is_hung_up()
        });
    }

    fn a_descriptor_is_given_back_when_nobody_waits_for_its_readiness(reactor: &Reactor) {
        let (near, _far) = testing::ends(reactor, false);
        let waits = near.readable();
        let near = near.into_fd().unwrap_err();
        turn(reactor);
        let mut near = Some(near.into_fd().unwrap_err());
        drop(waits);
        testing::wait_until("it is given back", || {
            turn(reactor);
            near = near.take().and_then(|near| near.into_fd().err());
            near.is_none()
        });
    }

    fn a_socket_is_quiet_until_something_comes(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = testing::ends(reactor, streams);
            assert!(near.is_quiet());
            testing::send_packet(&far, b"one", &[]).unwrap();
            assert!(!near.is_quiet());
            turn(reactor);
            // With a stream it is here by now, without one it is not.
            assert!(!near.is_quiet());
            drop(settle(reactor, near.receive()).unwrap());
            assert!(near.is_quiet());
            drop(far);
            assert!(!near.is_quiet());
        }
    }

    fn connectedness_is_told(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        assert!(near.is_connected());
        assert!(!near.is_listening());
        drop(far);
        let listener = listen(reactor, "connectedness", Kind::SeqPacket);
        assert!(listener.0.is_listening());
        assert!(!listener.0.is_connected());
    }

    fn a_listener_is_connected_to_by_path(reactor: &Reactor) {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let listener = listen(reactor, "by-path", kind);
            let accept = listener.0.accept();
            let near = settle(reactor, Socket::connect(reactor, &listener.1, kind)).unwrap();
            let far = settle(reactor, accept).unwrap();
            assert_eq!((near.kind(), far.kind()), (kind, kind));
            for streams in [false, true] {
                if streams {
                    near.stream();
                    far.stream();
                }
                settle(reactor, async {
                    near.send("there").await.unwrap();
                    assert_eq!(far.receive().await.unwrap().bytes(), b"there");
                    far.send("and back").await.unwrap();
                    assert_eq!(near.receive().await.unwrap().bytes(), b"and back");
                });
            }
            drop(near);
            assert!(matches!(settle(reactor, far.receive()), Err(ReceiveError::Closed)));
        }
    }

    fn an_accept_waits_for_a_connection(reactor: &Reactor) {
        let listener = listen(reactor, "waits", Kind::SeqPacket);
        let mut accept = pin!(listener.0.accept());
        assert!(is_pending(accept.as_mut()));
        turn(reactor);
        assert!(is_pending(accept.as_mut()));
        let mut connections = Vec::new();
        for _ in 0..3 {
            let connect = Socket::connect(reactor, &listener.1, Kind::SeqPacket);
            connections.push(settle(reactor, connect).unwrap());
        }
        settle(reactor, accept).unwrap();
        settle(reactor, listener.0.accept()).unwrap();
        settle(reactor, listener.0.accept()).unwrap();
    }

    fn a_connect_to_nobody_is_an_error(reactor: &Reactor) {
        let connect = |path: &Path| {
            settle(reactor, Socket::connect(reactor, path, Kind::SeqPacket)).unwrap_err()
        };
        assert_eq!(connect(&path("nobody")).kind(), std::io::ErrorKind::NotFound);
        assert_eq!(connect(Path::new("")).kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(connect(Path::new(&"x".repeat(108))).kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(connect(Path::new(&"x".repeat(107))).kind(), std::io::ErrorKind::NotFound);
        let listener = listen(reactor, "stream-only", Kind::Stream);
        assert!(settle(reactor, Socket::connect(reactor, &listener.1, Kind::SeqPacket)).is_err());
        assert!(Socket::listen(reactor, &listener.1, Kind::Stream).is_err());
    }

    fn an_accept_on_what_does_not_listen_is_an_error(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        testing::send_packet(&far, b"x", &[]).unwrap();
        assert!(settle(reactor, near.accept()).is_err());
    }

    fn readiness_is_awaited(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let mut readable = pin!(near.readable());
        let mut hung_up = pin!(near.hung_up());
        assert!(is_pending(readable.as_mut()));
        turn(reactor);
        assert!(is_pending(readable.as_mut()));
        testing::send_packet(&far, b"here", &[]).unwrap();
        settle(reactor, readable).unwrap();
        assert!(is_pending(hung_up.as_mut()));
        assert!(!near.is_hung_up());
        drop(far);
        settle(reactor, hung_up).unwrap();
        assert!(near.is_hung_up());
        // It has not been received by that.
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"here");
    }

    fn a_hang_up_is_seen_while_messages_come_and_go(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.stream();
        let mut hung_up = pin!(near.hung_up());
        for number in 0..50_u8 {
            testing::send_packet(&far, &[number], &[]).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
            assert!(is_pending(hung_up.as_mut()));
        }
        drop(far);
        settle(reactor, hung_up).unwrap();
    }

    fn several_wait_for_the_same(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let waits: Vec<_> = (0..5).map(|_| near.readable()).collect();
        turn(reactor);
        testing::send_packet(&far, b"x", &[]).unwrap();
        settle(reactor, async {
            for wait in waits {
                wait.await.unwrap();
            }
        });
    }

    fn a_send_to_nobody_is_gone(reactor: &Reactor) {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let (near, far) = Socket::pair(reactor, kind).unwrap();
            drop(far);
            assert!(matches!(near.try_send("x"), Err(SendError::Gone)));
            let sends = [near.send("x"), near.send("y")];
            settle(reactor, async {
                for send in sends {
                    assert!(matches!(send.await, Err(SendError::Gone)));
                }
            });
            assert!(near.is_broken());
            assert!(matches!(settle(reactor, near.send("z")), Err(SendError::Gone)));
            near.post(&[b"lost"], Vec::new());
            turn(reactor);
            assert_eq!(near.unsent(), 0);
        }
    }

    /// The peer dies with a message of ours unread: the send learns it as ECONNRESET.
    fn a_send_after_a_reset_is_gone(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.try_send("unread").unwrap();
        drop(far);
        assert!(matches!(settle(reactor, near.send("x")), Err(SendError::Gone)));
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
    }

    fn a_message_larger_than_the_socket_takes_is_too_large(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let max = socket_send_buffer_size(&near).unwrap() - 32;
        assert!(matches!(near.try_send(vec![0; max + 1]), Err(SendError::TooLarge)));
        assert!(matches!(settle(reactor, near.send(vec![0; max + 1])), Err(SendError::TooLarge)));
        // Only that one: it can be told.
        assert!(!near.is_broken());
        settle(reactor, near.send(vec![0; max])).unwrap();
        assert_eq!(testing::receive_packet(&far).unwrap().bytes.len(), max);
    }

    /// Whoever holds the same end can shrink its buffer, again and again.
    fn a_buffer_somebody_shrank_is_raised(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let other = near.try_clone().unwrap();
        let near = Socket::wrap(reactor, near).unwrap();
        let packet = || vec![7; PACKET_BYTES_MAX];
        for _ in 0..3 {
            set_socket_send_buffer_size(&other, 1).unwrap();
            settle(reactor, near.send(packet())).unwrap();
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, packet());
            set_socket_send_buffer_size(&other, 1).unwrap();
            near.try_send(packet()).unwrap();
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, packet());
            set_socket_send_buffer_size(&other, 1).unwrap();
            near.post(&[&packet()], Vec::new());
            turn(reactor);
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, packet());
        }
    }

    fn a_post_with_an_alternative_is_alone_in_its_packet(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.post(&[b"before"], Vec::new());
        near.post_or(&[b"this"], Vec::new(), b"that".to_vec());
        near.post(&[b"after"], Vec::new());
        turn(reactor);
        for expected in ["before", "this", "after"] {
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, expected.as_bytes());
        }
    }

    /// As an ordinary user; root may have as many in flight as it likes.
    fn too_many_descriptors_in_flight_are_an_error_by_name(reactor: &Reactor) {
        const LIMIT: u64 = 200;
        testing::become_a_user_of_its_own();
        let (parked, _parked_far) = testing::packet_pair();
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        let fd = Fd::from(OwnedFd::from(std::io::pipe().unwrap().0));
        // Somebody of the same user, with a higher limit, parks more than ours in a pair of theirs.
        let park: Vec<_> = vec![fd.as_fd(); 64];
        for _ in 0..4 {
            testing::send_packet(&parked, b"parked", &park).unwrap();
        }
        let limit = testing::limit_descriptors(LIMIT);
        let message = || Message::from("with one").with_descriptor(fd.clone());
        assert!(matches!(near.try_send(message()), Err(SendError::OutOfDescriptors)));
        assert!(matches!(settle(reactor, near.send(message())), Err(SendError::OutOfDescriptors)));
        assert!(!near.is_broken());
        // Who posts cannot be told, but can say something else.
        near.post_or(&[b"with one"], vec![fd.clone()], b"without".to_vec());
        near.post(&[b"and on"], Vec::new());
        turn(reactor);
        assert_eq!(settle(reactor, far.receive()).unwrap().bytes(), b"without");
        assert_eq!(settle(reactor, far.receive()).unwrap().bytes(), b"and on");
        let stats = reactor.stats();
        assert_eq!((stats.posts_lost, stats.posts_replaced), (1, 1));
        // Who has nothing else to say is cut off, so that both sides know.
        near.post(&[b"with one"], vec![fd.clone()]);
        turn(reactor);
        assert!(near.is_broken());
        assert!(matches!(settle(reactor, far.receive()), Err(ReceiveError::Closed)));
        let stats = reactor.stats();
        assert_eq!((stats.posts_lost, stats.posts_lost_refused), (2, 1));
        drop(limit);
    }

    fn credentials_name_the_process_that_sent(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        assert!(is_pending(near.receive()));
        turn(reactor);
        testing::send_packet(&far, b"me", &[]).unwrap();
        let own = settle(reactor, near.receive()).unwrap().credentials().unwrap();
        assert_eq!(own.pid.unsigned_abs(), std::process::id());
        let sender = start_helper!(says_hello, vec![far]);
        let received = settle(reactor, near.receive()).unwrap();
        assert_eq!(received.credentials().unwrap().pid, sender.pid());
        sender.succeeded();
    }

    /// Asked for before it is sent, they come with what nobody has received yet.
    fn credentials_can_be_asked_for_before_the_first_receive(reactor: &Reactor) {
        for asked in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if asked {
                near.ask_for_credentials();
            }
            testing::send_packet(&far, b"early", &[]).unwrap();
            let pid = settle(reactor, near.receive()).unwrap().credentials().unwrap().pid;
            assert_eq!(pid.unsigned_abs(), if asked { std::process::id() } else { 0 });
        }
    }

    fn two_processes_talk(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let helper = start_helper!(echoes, vec![far]);
        near.stream();
        settle(reactor, async {
            for number in 0..200_u8 {
                let (pipe, _writer) = std::io::pipe().unwrap();
                near.post(&[&[number]], vec![Fd::from(OwnedFd::from(pipe))]);
                let mut back = near.receive().await.unwrap();
                assert_eq!(back.bytes(), [number]);
                assert!(back.take_descriptor().is_some());
            }
        });
        drop(near);
        turn(reactor);
        helper.succeeded();
    }

    fn a_connection_is_shut_down_for_both(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        far.try_send("last").unwrap();
        near.shut_down();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"last");
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
        assert!(matches!(settle(reactor, far.receive()), Err(ReceiveError::Closed)));
        assert!(matches!(settle(reactor, far.send("x")), Err(SendError::Gone)));
    }

    fn what_cannot_receive_says_so_once_and_then_is_at_its_end(reactor: &Reactor) {
        let listener = listen(reactor, "receives-not", Kind::SeqPacket);
        assert!(matches!(settle(reactor, listener.0.receive()), Err(ReceiveError::Io(_))));
        assert!(matches!(settle(reactor, listener.0.receive()), Err(ReceiveError::Closed)));
    }

    fn a_quiet_send_tells_bad_news_only(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let mut send = pin!(near.send_quietly("heard"));
        assert!(is_pending(send.as_mut()));
        turn(reactor);
        assert!(!is_pending(send.as_mut()));
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"heard");
        drop(far);
        assert!(matches!(settle(reactor, near.send_quietly("unheard")), Err(SendError::Gone)));
    }
}

helper! {
    fn says_hello(descriptors: Vec<OwnedFd>) {
        testing::send_packet(&descriptors[0], b"hello", &[]).unwrap();
    }

    fn echoes(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let far = Socket::wrap(&reactor, descriptors.into_iter().next().unwrap()).unwrap();
        far.stream();
        settle(&reactor, async {
            loop {
                match far.receive().await {
                    Ok(mut call) => {
                        let fds = call.take_descriptors().into_iter().map(Fd::from).collect();
                        far.post(&[call.bytes()], fds);
                    }
                    Err(ReceiveError::Closed) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
}
