//! Closing: a stranger's descriptor that takes seconds to close never holds up the reactor, and what a closed
//! socket still had to say is said.
//!
//! No clocks are read here: where the reactor's thread might have closed something slow, it shows in that the
//! closer is still busy with it when the thread comes by.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::{DESCRIPTORS_MAX, Fd, Kind, Message, Reactor, ReceiveError, SendError, Socket, Wait};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use testing::{Lingering, ends, on_each_driver, poll_once, settle, turn};

/// Sends a descriptor that lingers and keeps no copy of it: its last reference is in the queue.
fn send_lingering(far: &OwnedFd, beside: &[BorrowedFd<'_>]) -> OwnedFd {
    let Lingering { near, far: reader } = testing::lingering_tcp();
    let fds: Vec<_> = beside.iter().copied().chain([near.as_fd()]).collect();
    testing::send_packet(far, b"close this", &fds).unwrap();
    reader
}

/// It is the closer that waits, not this thread; then lets it go.
#[track_caller]
fn assert_closer_waits<T>(reader: T) {
    assert!(ring::closer_busy(), "nothing is left for the closer: this thread has closed it");
    // A thread gives itself its name a moment after its start.
    testing::wait_until("there is a thread for it", closer_exists);
    drop(reader);
    ring::closer_idle();
}

fn closer_exists() -> bool {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let mut names = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    // Linux keeps 15 characters.
    names.any(|name| "sendright-closer".starts_with(name.trim()))
}

/// How often threads that close have gone to sleep.
fn switches_of_closers() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let closers = threads.filter(|thread| {
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        !name.trim().is_empty() && "sendright-closer".starts_with(name.trim())
    });
    let switches = closers.map(|thread| {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    });
    switches.sum()
}

on_each_driver! {
    fn a_lingering_socket_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let reader = send_lingering(&far, &[]);
            drop(settle(reactor, near.receive()).unwrap());
            assert_closer_waits(reader);
        }
    }

    /// One that lingers does not keep another open, and threads without work do nothing.
    fn a_lingering_socket_does_not_keep_others_open(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let first = send_lingering(&far, &[]);
        let second = send_lingering(&far, &[]);
        let (inner_near, inner_far) = testing::packet_pair();
        testing::send_packet(&far, b"another", &[inner_near.as_fd()]).unwrap();
        drop(inner_near);
        for _ in 0..3 {
            drop(settle(reactor, near.receive()).unwrap());
        }
        // Its end is closed while two closers still wait.
        assert!(testing::receive_packet(&inner_far).unwrap().bytes.is_empty());
        assert_closer_waits((first, second));
        let before = switches_of_closers();
        settle(reactor, reactor.sleep(std::time::Duration::from_millis(50)));
        assert!(switches_of_closers() - before < 50, "idle closers keep each other awake");
    }

    fn a_lingering_socket_that_nobody_received_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let reader = send_lingering(&far, &[]);
            drop(near);
            turn(reactor);
            assert_closer_waits(reader);
        }
    }

    fn a_lingering_socket_in_the_queue_of_a_shared_end_does_not_block(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        let reader = send_lingering(&far, &[]);
        drop(near);
        turn(reactor);
        assert_closer_waits(reader);
    }

    /// The look at the queue must not mistake it for the end of file.
    fn a_lingering_socket_in_an_empty_packet_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let Lingering { near: lingering, far: reader } = testing::lingering_tcp();
            testing::send_packet(&far, b"", &[lingering.as_fd()]).unwrap();
            drop(lingering);
            drop(far);
            turn(reactor);
            drop(near);
            turn(reactor);
            assert_closer_waits(reader);
        }
    }

    fn a_lingering_socket_on_an_abandoned_receive_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            poll_once(near.receive());
            turn(reactor);
            let reader = send_lingering(&far, &[]);
            drop(near);
            turn(reactor);
            assert_closer_waits(reader);
        }
    }

    fn a_lingering_socket_queued_in_a_socket_that_was_passed_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let (inner_near, inner_far) = testing::packet_pair();
            let reader = send_lingering(&inner_far, &[]);
            testing::send_packet(&far, b"a socket", &[inner_near.as_fd()]).unwrap();
            drop((inner_near, inner_far));
            drop(settle(reactor, near.receive()).unwrap());
            assert_closer_waits(reader);
        }
    }

    /// The kernel closes what there is no control room for inside the receive, on our thread.
    fn a_lingering_socket_beyond_descriptors_max_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            for descriptors_max in [0, 1, 16] {
                let (near, far) = ends(reactor, streams);
                near.set_descriptors_max(descriptors_max);
                let (pipe, _writer) = std::io::pipe().unwrap();
                let reader = send_lingering(&far, &vec![pipe.as_fd(); descriptors_max]);
                let lost = settle(reactor, near.receive());
                let Err(ReceiveError::DescriptorsLost(received)) = lost else { panic!("{lost:?}") };
                assert_eq!(received.descriptors(), descriptors_max);
                assert_closer_waits(reader);
            }
        }
    }

    fn a_lingering_socket_last_of_all_that_fit_does_not_block(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = ends(reactor, streams);
            let (pipe, _writer) = std::io::pipe().unwrap();
            let reader = send_lingering(&far, &vec![pipe.as_fd(); DESCRIPTORS_MAX - 1]);
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::DescriptorsLost(_))));
            assert_closer_waits(reader);
        }
    }

    /// Ours to send, a stranger's to close.
    fn a_lingering_socket_that_could_not_be_sent_does_not_block(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        drop(far);
        let Lingering { near: lingering, far: reader } = testing::lingering_tcp();
        let send = near.send(Message::from("forwarded").with_descriptor(lingering));
        assert!(matches!(settle(reactor, send), Err(SendError::Gone)));
        assert_closer_waits(reader);
    }

    fn a_lingering_socket_that_is_refused_does_not_block(reactor: &Reactor) {
        let Lingering { near, far } = testing::lingering_tcp();
        assert!(Socket::wrap(reactor, near).is_err());
        assert_closer_waits(far);
    }

    fn a_lingering_socket_in_a_connection_nobody_accepted_does_not_block(reactor: &Reactor) {
        for taken in [false, true] {
            let path = std::env::temp_dir().join(format!("sendright-closing-{}", std::process::id()));
            let listener = Socket::listen(reactor, &path, Kind::SeqPacket).unwrap();
            let connected = settle(reactor, Socket::connect(reactor, &path, Kind::SeqPacket)).unwrap();
            fs::remove_file(&path).unwrap();
            let connected = connected.into_fd().unwrap();
            if taken {
                // Accepted for somebody who has gone meanwhile.
                poll_once(listener.accept());
            }
            let reader = send_lingering(&connected, &[]);
            turn(reactor);
            drop(listener);
            turn(reactor);
            assert_closer_waits(reader);
        }
    }

    fn a_lingering_socket_does_not_block_the_end_of_the_reactor(_reactor: &Reactor) {
        for streams in [false, true] {
            let reactor = testing::reactor();
            let (near, far) = ends(&reactor, streams);
            poll_once(near.receive());
            turn(&reactor);
            let reader = send_lingering(&far, &[]);
            let second = send_lingering(&far, &[]);
            drop(near);
            drop(reactor);
            assert_closer_waits((reader, second));
        }
    }

    /// Pipes and files in memory need no thread.
    fn what_closes_at_once_is_closed_here(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let (reader, writer) = std::io::pipe().unwrap();
        testing::send_packet(&far, b"a pipe", &[reader.as_fd()]).unwrap();
        drop((reader, settle(reactor, near.receive()).unwrap()));
        // Nobody reads any more: it has been closed.
        assert!(std::io::Write::write(&mut &writer, b"x").is_err());
        drop(Fd::made_here(far));
        turn(reactor);
        assert!(!closer_exists());
    }

    /// Its pages are freed by whoever closes it last; and a named pipe may be the last of its file system.
    fn what_may_take_long_is_not_closed_here(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let small = memfd_create("small", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&small, 1 << 30).unwrap();
        testing::send_packet(&far, b"small, if long", &[small.as_fd()]).unwrap();
        drop((small, settle(reactor, near.receive()).unwrap()));
        assert!(!closer_exists());

        let large = memfd_create("large", MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(large.try_clone().unwrap());
        std::io::Write::write_all(&mut file, &vec![1; 4 << 20]).unwrap();
        testing::send_packet(&far, b"large", &[large.as_fd()]).unwrap();
        drop((large, file, settle(reactor, near.receive()).unwrap()));
        testing::wait_until("there is a thread for it", closer_exists);
    }

    /// A message taken for a look would be missing where others wait for it.
    fn closing_a_shared_end_takes_nothing_from_the_others(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let other = near.try_clone().unwrap();
        testing::send_packet(&far, b"for the others", &[]).unwrap();
        drop(Socket::wrap(reactor, near).unwrap());
        turn(reactor);
        assert_eq!(testing::receive_packet(&other).unwrap().bytes, b"for the others");
        testing::send_packet(&far, b"still open", &[]).unwrap();
        assert_eq!(testing::receive_packet(&other).unwrap().bytes, b"still open");
    }

    fn a_receive_of_a_dropped_shared_end_takes_nothing_from_the_others(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = testing::packet_pair();
            let other = near.try_clone().unwrap();
            let near = Socket::wrap(reactor, near).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            turn(reactor);
            drop(near);
            // No turn: there may never be one.
            testing::send_packet(&far, b"for the others", &[]).unwrap();
            turn(reactor);
            assert_eq!(testing::receive_packet(&other).unwrap().bytes, b"for the others");
        }
    }

    /// While its last message waits for a full queue.
    fn a_shared_end_on_its_way_out_takes_nothing_from_the_others(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let other = near.try_clone().unwrap();
        let near = Socket::wrap(reactor, near).unwrap();
        near.stream();
        turn(reactor);
        while near.try_send("filler").is_ok() {}
        near.finish("last").unwrap();
        turn(reactor);
        testing::send_packet(&far, b"for the others", &[]).unwrap();
        turn(reactor);
        assert_eq!(testing::receive_packet(&other).unwrap().bytes, b"for the others");
        testing::set_nonblocking(&far);
        while testing::receive_packet(&far).is_ok() {}
        let mut last = Vec::new();
        while last != b"last" {
            reactor.turn(Wait::Forever).unwrap();
            while let Ok(packet) = testing::receive_packet(&far) {
                last = packet.bytes;
            }
        }
    }

    fn a_finish_on_a_full_queue_waits_and_arrives(reactor: &Reactor) {
        for private in [false, true] {
            let (near, far) = testing::packet_pair();
            let near = Socket::wrap(reactor, near).unwrap();
            near.set_private(private);
            while near.try_send("filler").is_ok() {}
            near.finish("last").unwrap();
            turn(reactor);
            let reader = std::thread::spawn(move || {
                let mut packets = Vec::new();
                loop {
                    let packet = testing::receive_packet(&far).unwrap();
                    if packet.bytes.is_empty() {
                        return packets;
                    }
                    packets.push(packet.bytes);
                }
            });
            settle(reactor, async {
                while !reader.is_finished() {
                    reactor.sleep(std::time::Duration::from_millis(1)).await;
                }
            });
            assert_eq!(reader.join().unwrap().last().unwrap(), b"last");
        }
    }

    /// Ten seconds, which the test has to wait out.
    fn a_finish_that_nobody_receives_is_given_up_in_the_end(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        while near.try_send("filler").is_ok() {}
        near.finish("never").unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        settle(reactor, far.hung_up()).unwrap();
        let stats = reactor.stats();
        assert_eq!((stats.posts_lost, stats.posts_lost_late), (1, 1));
        assert!(stats.sends_blocked > 0);
        settle(reactor, async {
            loop {
                match far.receive().await {
                    Ok(received) => assert_eq!(received.bytes(), b"filler"),
                    Err(ReceiveError::Closed) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }

    /// What is still to be sent to nobody keeps nothing open.
    fn a_finish_to_a_peer_that_is_gone_closes_at_once(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        drop(far);
        assert!(matches!(settle(reactor, near.send("gone?")), Err(SendError::Gone)));
        assert!(near.is_broken());
        let census = testing::Census::take();
        near.finish("nobody").unwrap();
        turn(reactor);
        assert_eq!(testing::Census::take().len(), census.len() - 1);
        let stats = reactor.stats();
        assert_eq!((stats.posts_lost, stats.posts_lost_gone), (1, 1));
    }

    /// The kernel says first that something was left unread, and only then that nobody is there. Bytes alone
    /// are tried where they lie, and then as everything else is.
    fn a_post_to_a_peer_that_left_something_unread_is_lost_once(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.try_send("unread").unwrap();
        drop(far);
        near.post_bytes(b"post", b"");
        turn(reactor);
        assert!(near.is_broken());
        let stats = reactor.stats();
        assert_eq!((stats.messages_sent, stats.posts_lost, stats.posts_lost_gone), (1, 1, 1));
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
    }

    /// It goes on at the other end, and is shut down by nobody.
    fn a_socket_travels_inside_its_last_message(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let cookie = ring::socket_cookie(&far).unwrap();
        let mut far = far;
        for n in 0..3_u8 {
            let (reader, _writer) = std::io::pipe().unwrap();
            let message = Message::from(vec![n]).with_descriptor(OwnedFd::from(reader));
            Socket::wrap(reactor, far).unwrap().finish_inside(message).unwrap();
            let mut came = settle(reactor, near.receive()).unwrap();
            assert_eq!((came.bytes(), came.descriptors()), (&[n][..], 2));
            far = came.take_last_descriptor().unwrap();
            assert_eq!(ring::socket_cookie(&far).unwrap(), cookie);
            assert!(near.is_quiet());
        }
        drop(far);
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
    }

    /// Without ever being a socket of the reactor's. What cannot go now goes when there is room, and what
    /// cannot go at all is the end.
    fn a_socket_that_has_travelled_travels_again(reactor: &Reactor) {
        let (near, mut far) = ends(reactor, true);
        let cookie = ring::socket_cookie(&far).unwrap();
        let census = testing::Census::take();
        for is_full in [false, true, false] {
            let mut before = 0;
            if is_full {
                let copy = Socket::wrap(reactor, far.try_clone().unwrap()).unwrap();
                while copy.try_send("much").is_ok() {
                    before += 1;
                }
            }
            let reader = OwnedFd::from(std::io::pipe().unwrap().0);
            let mut message = Message::from("again").with_descriptor(reader);
            Socket::finish_inside_again(reactor, far, &mut message).unwrap();
            assert_eq!((message.bytes().len(), message.descriptors().len()), (0, 0));
            for _ in 0..before {
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"much");
            }
            let mut came = settle(reactor, near.receive()).unwrap();
            assert_eq!((came.bytes(), came.descriptors()), (&b"again"[..], 2));
            far = came.take_last_descriptor().unwrap();
            assert_eq!(ring::socket_cookie(&far).unwrap(), cookie);
            drop(came);
            turn(reactor);
            census.unchanged();
        }
        let refused = Socket::finish_inside_again(reactor, far, &mut Message::default());
        assert!(matches!(refused, Err(SendError::Empty)));
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
    }

    /// Even when somebody has just asked whether the peer is still there, and the question is still away.
    fn a_private_socket_that_travels_is_not_shut_down(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let far = Socket::wrap(reactor, far).unwrap();
        far.set_private(true);
        let mut asked = Box::pin(far.hung_up());
        assert!(std::future::Future::poll(
            asked.as_mut(),
            &mut std::task::Context::from_waker(std::task::Waker::noop())
        )
        .is_pending());
        turn(reactor);
        drop(asked);
        far.finish_inside("here I am").unwrap();
        let far = settle(reactor, near.receive()).unwrap().take_descriptor().unwrap();
        turn(reactor);
        assert!(near.is_quiet());
        testing::send_packet(&far, b"and again", &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"and again");
    }

    /// With one of its own there is no room for more than 252 others.
    fn a_socket_that_cannot_travel_is_closed(reactor: &Reactor) {
        let fd = Fd::from(OwnedFd::from(std::io::pipe().unwrap().0));
        let counts = [DESCRIPTORS_MAX - 1, DESCRIPTORS_MAX];
        for (count, is_known) in counts.into_iter().flat_map(|count| [(count, false), (count, true)]) {
            let (near, far) = ends(reactor, false);
            near.set_descriptors_max(DESCRIPTORS_MAX);
            let message = (0..count).fold(Message::from("x"), |m, _| m.with_descriptor(fd.clone()));
            let sent = match is_known {
                true => Socket::finish_inside_again(reactor, far, &mut { message }),
                false => Socket::wrap(reactor, far).unwrap().finish_inside(message),
            };
            let received = settle(reactor, near.receive());
            if count < DESCRIPTORS_MAX {
                assert_eq!((sent.is_ok(), received.unwrap().descriptors()), (true, DESCRIPTORS_MAX));
            } else {
                assert!(matches!(sent, Err(SendError::TooLarge)));
                assert!(matches!(received, Err(ReceiveError::Closed)));
            }
        }
    }

    fn a_socket_that_travels_to_nobody_is_closed_without_waiting(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let Lingering { near: lingering, far: reader } = testing::lingering_tcp();
        let near = near.into_fd().unwrap();
        testing::send_packet(&near, b"close this", &[lingering.as_fd()]).unwrap();
        drop((near, lingering));
        let far = Socket::wrap(reactor, far).unwrap();
        far.set_private(true);
        far.finish_inside("nobody").unwrap();
        turn(reactor);
        assert_closer_waits(reader);
    }

    /// It stays open for those who go on with it, and what it leaves behind here makes nobody wait.
    fn what_is_queued_in_a_socket_that_travels_is_not_closed_here(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let Lingering { near: lingering, far: reader } = testing::lingering_tcp();
        testing::send_packet(&near, b"keep this", &[lingering.as_fd()]).unwrap();
        drop(lingering);
        Socket::wrap(reactor, far).unwrap().finish_inside("with it").unwrap();
        let far = settle(reactor, near.receive()).unwrap().take_descriptor().unwrap();
        turn(reactor);
        let packet = testing::receive_packet(&far).unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"keep this"[..], 1));
        // It may be closed without waiting from here on.
        drop(reader);
    }
}
