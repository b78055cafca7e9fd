//! Others who hold the same open description: whatever they set on it, this thread never waits, what was sent
//! arrives, and the end is the end. What they can do all the same is told in SECURITY.md.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::blocking::{self, Inbox, NO_DESCRIPTORS};
use ring::{
    DESCRIPTORS_MAX, Kind, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, SendError, Socket, WaitPolicy,
};
use rustix::net::sockopt::{set_socket_passcred, socket_passcred};
use testing::meddling::{SO_PASSRIGHTS, SO_RCVTIMEO, set_option};
use testing::{
    Lingering, helper, in_own_process, lingering_tcp, meddle, on_each_driver, packet_pair, receive_packet,
    send_packet, settle, start_helper, turn,
};

/// A socket whose end somebody else holds too, that end, and the peer's.
fn held(reactor: &Reactor, streams: bool) -> (Socket, OwnedFd, OwnedFd) {
    let (near, far) = packet_pair();
    let copy = near.try_clone().unwrap();
    let near = Socket::wrap(reactor, near).unwrap();
    near.set_descriptors_max(DESCRIPTORS_MAX);
    if streams {
        near.stream();
    }
    turn(reactor);
    (near, copy, far)
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// A descriptor that takes long to close, in the queue of whoever is at the other end and nowhere else.
fn send_lingering(far: &OwnedFd) -> OwnedFd {
    let Lingering { near, far: reader } = lingering_tcp();
    send_packet(far, b"", &[near.as_fd()]).unwrap();
    reader
}

/// Somebody else waits for it.
#[track_caller]
fn assert_closer_waits(reader: OwnedFd) {
    assert!(ring::closer_busy(), "nothing is left for the closer: this thread has closed it");
    drop(reader);
    ring::closer_idle();
}

on_each_driver! {
    fn no_option_keeps_a_message_from_arriving(reactor: &Reactor) {
        let fd = null();
        let many: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); DESCRIPTORS_MAX];
        for streams in [false, true] {
            let (near, copy, far) = held(reactor, streams);
            meddle(&copy, |what| {
                for (bytes, count) in [(&b"bare"[..], 0), (b"one", 1), (b"all", DESCRIPTORS_MAX)] {
                    let descriptors = &many[..count];
                    send_packet(&far, bytes, descriptors).unwrap();
                    let received = settle(reactor, near.receive());
                    let received = received.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!((received.bytes(), received.descriptors()), (bytes, count), "{what}");
                }
            });
        }
    }

    fn no_option_keeps_a_message_from_leaving(reactor: &Reactor) {
        let (near, copy, far) = held(reactor, true);
        let pipe = null();
        meddle(&copy, |what| {
            settle(reactor, async {
                for bytes in [1, PACKET_BYTES_MAX] {
                    let message = Message::new(vec![7; bytes]).with_descriptor(pipe.try_clone().unwrap());
                    near.send(message).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                    near.post(&[&vec![7; bytes]], Vec::new());
                }
            });
            turn(reactor);
            for bytes in [1, 1, PACKET_BYTES_MAX, PACKET_BYTES_MAX] {
                assert_eq!(receive_packet(&far).unwrap().bytes.len(), bytes, "{what}");
            }
        });
    }

    /// Whoever had asked before counts on them; what was asked for here is taken back.
    fn what_others_have_asked_for_is_not_forgone(reactor: &Reactor) {
        for (before, left) in [(false, false), (true, true)] {
            let (near, _far) = testing::packet_pair();
            set_socket_passcred(&near, before).unwrap();
            let near = Socket::wrap(reactor, near).unwrap();
            near.ask_for_credentials();
            assert!(socket_passcred(&near).unwrap());
            near.forgo_credentials();
            assert_eq!(socket_passcred(&near).unwrap(), left);
            assert_eq!(socket_passcred(near.into_fd().unwrap()).unwrap(), left);
        }
    }

    /// Two empty packets, of anybody, were the end for all who received.
    fn an_empty_packet_is_not_the_end_when_the_kernel_names_no_senders_any_more(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, copy, far) = held(reactor, streams);
            send_packet(&far, b"first", &[]).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"first");
            for _ in 0..20 {
                set_socket_passcred(&copy, false).unwrap();
                for packet in [&b""[..], b"", b"", b"still here"] {
                    send_packet(&far, packet, &[]).unwrap();
                }
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"still here");
            }
            drop(far);
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
        }
    }

    /// That nothing comes behind the end of a peer that has hung up is no use where this is not the end.
    fn nor_is_that_of_a_peer_that_hangs_up(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, copy, far) = held(reactor, streams);
            send_packet(&far, b"first", &[]).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"first");
            set_socket_passcred(&copy, false).unwrap();
            send_packet(&far, b"", &[]).unwrap();
            send_packet(&far, b"last", &[]).unwrap();
            drop(far);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"last");
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
        }
    }

    fn nor_for_those_who_take_one_at_a_time(reactor: &Reactor) {
        let (near, copy, far) = held(reactor, false);
        let mut scratch = vec![0; 64];
        send_packet(&far, b"first", &[]).unwrap();
        assert_eq!(settle(reactor, near.take_one()).unwrap().bytes(), b"first");
        for large in [false, true] {
            set_socket_passcred(&copy, false).unwrap();
            for packet in [&b""[..], b"", b"", b"still here"] {
                send_packet(&far, packet, &[]).unwrap();
            }
            let received = match large {
                false => settle(reactor, near.take_one()),
                true => settle(reactor, near.receive_large(&mut scratch)),
            };
            assert_eq!(received.unwrap().bytes(), b"still here");
        }
    }

    /// Whoever made the socket had taken back what was asked for: an empty packet looked like the end, and
    /// what lay behind it was closed by the reactor's thread.
    fn what_is_slow_to_close_does_not_hide_behind_an_empty_packet(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, copy, far) = held(reactor, streams);
            near.set_private(true);
            send_packet(&far, b"first", &[]).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"first");
            set_socket_passcred(&copy, false).unwrap();
            send_packet(&far, b"", &[]).unwrap();
            send_packet(&far, b"", &[]).unwrap();
            let reader = send_lingering(&far);
            drop((copy, near));
            turn(reactor);
            assert_closer_waits(reader);
            // The peer is told at once, whoever does the closing.
            assert!(send_packet(&far, b"anybody?", &[]).is_err());
        }
    }

    /// The same on an end that was never received on, as that of a continuation.
    fn nor_on_an_end_that_only_sends(reactor: &Reactor) {
        let (near, copy, far) = held(reactor, false);
        near.set_private(true);
        set_socket_passcred(&copy, false).unwrap();
        send_packet(&far, b"", &[]).unwrap();
        let reader = send_lingering(&far);
        drop((copy, near));
        turn(reactor);
        assert_closer_waits(reader);
    }

    /// `accept` has no flag for not waiting, and O_NONBLOCK is everybody's.
    fn a_listener_that_others_have_made_wait_does_not_stop_the_thread(reactor: &Reactor) {
        let path = std::env::temp_dir().join(format!("sendright-held-{}", std::process::id()));
        let listener = Socket::listen(reactor, &path, Kind::Stream).unwrap();
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        for _ in 0..3 {
            let accept = listener.accept();
            testing::set_blocking(&copy);
            turn(reactor);
            testing::set_blocking(&copy);
            let client = settle(reactor, Socket::connect(reactor, &path, Kind::Stream)).unwrap();
            let server = settle(reactor, accept).unwrap();
            settle(reactor, client.send("served")).unwrap();
            assert_eq!(settle(reactor, server.receive()).unwrap().bytes(), b"served");
        }
        std::fs::remove_file(path).unwrap();
    }

    /// One who receives beside others, and then gives the descriptor away, undid for all of them what it had
    /// asked for: nobody was told any more who sends.
    fn who_leaves_a_shared_end_takes_nothing_from_the_others(reactor: &Reactor) {
        let (first, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        first.set_private(false);
        first.ask_for_credentials();
        let second = Socket::wrap(reactor, first.share().unwrap()).unwrap();
        drop(first.into_fd().unwrap());
        send_packet(&far, b"", &[]).unwrap();
        send_packet(&far, b"", &[]).unwrap();
        send_packet(&far, b"who?", &[]).unwrap();
        let received = settle(reactor, second.take_one()).unwrap();
        assert_eq!(received.bytes(), b"who?");
        assert_eq!(received.credentials().unwrap().pid, std::process::id() as i32);
    }

    /// An end that is shared on, but had asked for nothing yet, is as any other.
    fn a_duplicate_that_asked_for_nothing_counts_on_nothing(reactor: &Reactor) {
        let (near, _far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        drop(near.share().unwrap());
        assert!(!socket_passcred(near.into_fd().unwrap()).unwrap());
    }

    /// The kernel refuses descriptors to whoever does not take any (Linux 6.16): an error of this message,
    /// and of nothing else.
    fn a_peer_that_takes_no_descriptors_is_an_error_of_that_message(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        if !set_option(far.as_fd(), SO_PASSRIGHTS, &0_i32.to_ne_bytes()) {
            eprintln!("skipped: this kernel has no SO_PASSRIGHTS");
            return;
        }
        settle(reactor, async {
            let refused = near.send(Message::from("with one").with_descriptor(null())).await;
            assert!(matches!(refused, Err(SendError::Io(error)) if error.raw_os_error() == Some(1)));
            near.send("without").await.unwrap();
        });
        assert_eq!(receive_packet(&far).unwrap().bytes, b"without");
    }

    /// What another holder receives is gone, and nobody can know it; what it leaves arrives.
    fn what_another_holder_receives_is_gone_and_the_rest_arrives(reactor: &Reactor) {
        let (near, copy, far) = held(reactor, false);
        let receive = near.receive();
        turn(reactor);
        for n in 0..100_u8 {
            send_packet(&far, &[n], &[]).unwrap();
        }
        let stolen: Vec<u8> = (0..40).map(|_| receive_packet(&copy).unwrap().bytes[0]).collect();
        assert_eq!(stolen, (0..40).collect::<Vec<u8>>());
        assert_eq!(settle(reactor, receive).unwrap().bytes(), &[40]);
        for n in 41..100 {
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), &[n]);
        }
    }

    /// Each direction, at each moment: the end, or nobody there; never a wait.
    fn a_shut_down_end_is_an_end(reactor: &Reactor) {
        use rustix::net::{Shutdown, shutdown};
        for streams in [false, true] {
            for half in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
                let (near, copy, far) = held(reactor, streams);
                send_packet(&far, b"before", &[]).unwrap();
                let receive = near.receive();
                shutdown(&copy, half).unwrap();
                assert_eq!(settle(reactor, receive).unwrap().bytes(), b"before");
                if matches!(half, Shutdown::Read | Shutdown::Both) {
                    assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
                    assert!(send_packet(&far, b"to nobody", &[]).is_err());
                }
                match settle(reactor, near.send("out")) {
                    Ok(()) => assert!(half == Shutdown::Read),
                    Err(error) => assert!(half != Shutdown::Read && matches!(error, SendError::Gone)),
                }
            }
        }
    }

    /// Not defended: a process of the same user may be signalled by whoever holds what it holds.
    fn a_holder_of_the_same_user_can_have_us_signalled(_reactor: &Reactor) {
        let (near, far) = packet_pair();
        let (told, tell) = packet_pair();
        let copy = near.try_clone().unwrap();
        let mut victim = start_helper!(receives_for_ever, vec![near, tell]);
        assert_eq!(receive_packet(&told).unwrap().bytes, b"ready");
        ring::script::signal_when_ready(&copy, victim.pid()).unwrap();
        send_packet(&far, b"x", &[]).unwrap();
        let status = victim.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(29), "SIGIO: {status}");
    }
}

helper! {
    fn receives_for_ever(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mut descriptors = descriptors.into_iter();
        let near = Socket::wrap(&reactor, descriptors.next().unwrap()).unwrap();
        near.stream();
        turn(&reactor);
        send_packet(descriptors.next().unwrap(), b"ready", &[]).unwrap();
        loop {
            settle(&reactor, near.receive()).unwrap();
        }
    }
}

in_own_process! {
    fn a_limit_that_another_holder_has_lifted_is_kept_all_the_same() {
        let (near, far) = packet_pair();
        let copy = near.try_clone().unwrap();
        let near = blocking::Socket::from_fd(near).unwrap();
        near.set_private(true);
        let mut inbox = Inbox::new(WaitPolicy::Sleep);
        let soon = || Some(Instant::now() + Duration::from_millis(150));
        for forever in [0_u64, 1] {
            send_packet(&far, b"in time", &[]).unwrap();
            assert_eq!(inbox.receive(&near, soon()).unwrap().bytes(), b"in time");
            let limit = [0_u64.to_ne_bytes(), forever.to_ne_bytes()].concat();
            assert!(set_option(copy.as_fd(), SO_RCVTIMEO, &limit));
            assert!(matches!(inbox.receive(&near, soon()), Err(blocking::ReceiveError::Deadline)));
        }
    }

    fn no_option_keeps_a_message_from_a_blocking_receiver() {
        let (near, far) = packet_pair();
        let copy = near.try_clone().unwrap();
        let near = blocking::Socket::from_fd(near).unwrap();
        near.set_descriptors_max(DESCRIPTORS_MAX);
        let mut inbox = Inbox::new(WaitPolicy::Sleep);
        let fd = null();
        let soon = || Some(Instant::now() + Duration::from_secs(60));
        meddle(&copy, |what| {
            send_packet(&far, b"all", &[fd.as_fd(); DESCRIPTORS_MAX]).unwrap();
            let received = inbox.receive(&near, soon()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((received.bytes(), received.descriptors()), (&b"all"[..], DESCRIPTORS_MAX), "{what}");
            let sent = near.send(&[&[7; PACKET_BYTES_MAX]], NO_DESCRIPTORS, soon());
            sent.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(receive_packet(&far).unwrap().bytes.len(), PACKET_BYTES_MAX, "{what}");
        });
    }

    fn an_empty_packet_is_not_the_end_for_a_blocking_receiver() {
        let (near, far) = packet_pair();
        let copy = near.try_clone().unwrap();
        let near = blocking::Socket::from_fd(near).unwrap();
        let mut inbox = Inbox::new(WaitPolicy::Sleep);
        for _ in 0..20 {
            set_socket_passcred(&copy, false).unwrap();
            for packet in [&b""[..], b"", b"", b"still here"] {
                send_packet(&far, packet, &[]).unwrap();
            }
            assert_eq!(inbox.receive(&near, None).unwrap().bytes(), b"still here");
        }
    }

    fn what_is_slow_to_close_does_not_hide_from_a_blocking_socket() {
        for private in [false, true] {
            let (near, far) = packet_pair();
            let copy = near.try_clone().unwrap();
            let near = blocking::Socket::from_fd(near).unwrap();
            near.set_private(private);
            set_socket_passcred(&copy, false).unwrap();
            for _ in 0..3 {
                send_packet(&far, b"", &[]).unwrap();
            }
            let reader = send_lingering(&far);
            drop((copy, near));
            assert_closer_waits(reader);
        }
    }
}
