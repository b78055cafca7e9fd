//! Sockets without a reactor: what arrives, what is lost with a name, when the end is believed, how long is
//! waited, and what is left behind. No driver runs here, so each body runs once.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ring::blocking::{Inbox, NO_DESCRIPTORS, ReceiveError, Socket};
use ring::{PACKET_BYTES_MAX, SendError, WaitPolicy};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, socket_passcred, socket_timeout};
use testing::{Census, fork, helper, in_own_process, lingering_tcp, packet_pair, send_packet, start_helper};

/// Long enough never to be what ends a test that works.
const LONG: Duration = Duration::from_secs(60);

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(5))
}

fn inbox() -> Inbox {
    Inbox::new(WaitPolicy::Sleep)
}

/// A private end, and the other one bare.
fn ends() -> (Socket, OwnedFd) {
    Socket::pair().unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

#[track_caller]
fn hears(inbox: &mut Inbox, socket: &Socket, expected: &[u8]) {
    assert_eq!(inbox.receive(socket, None).unwrap().bytes(), expected);
}

/// Sends as much as the queue takes.
fn fill(socket: &Socket) -> usize {
    (0..).take_while(|_| socket.try_send(&[b"x"], NO_DESCRIPTORS).is_ok()).count()
}

in_own_process! {
    // Messages.

    fn a_message_of_parts_arrives_whole_with_its_descriptors() {
        let (near, far) = ends();
        let far = Socket::from_fd(far).unwrap();
        let (reader, writer) = pipe();
        far.send(&[b"one ", b"", b"message"], &[reader.as_fd(), writer.as_fd()], None).unwrap();
        let mut inbox = inbox();
        let mut received = inbox.receive(&near, None).unwrap();
        assert_eq!((received.bytes(), received.descriptors()), (&b"one message"[..], 2));
        assert_eq!(received.credentials().unwrap().pid, std::process::id() as i32);
        let there: Vec<std::fs::File> = received.take_descriptors().into_iter().map(Into::into).collect();
        drop((reader, writer));
        std::io::Write::write_all(&mut &there[1], b"through").unwrap();
        let mut through = [0; 7];
        (&there[0]).read_exact(&mut through).unwrap();
        assert_eq!(&through, b"through");
    }

    fn the_largest_message_arrives_and_a_larger_one_is_truncated() {
        let (near, far) = ends();
        let far = Socket::from_fd(far).unwrap();
        let mut inbox = inbox();
        far.send(&[&vec![7; PACKET_BYTES_MAX]], NO_DESCRIPTORS, None).unwrap();
        assert_eq!(inbox.receive(&near, None).unwrap().bytes().len(), PACKET_BYTES_MAX);
        let (reader, _writer) = pipe();
        far.send(&[&vec![7; PACKET_BYTES_MAX + 1]], &[&reader], None).unwrap();
        let error = inbox.receive(&near, None).unwrap_err();
        let ReceiveError::Truncated(received) = error else { panic!("{error}") };
        assert_eq!((received.bytes().len(), received.descriptors()), (PACKET_BYTES_MAX, 1));
    }

    fn as_many_descriptors_as_a_message_carries_arrive_in_order() {
        let (near, far) = ends();
        near.set_descriptors_max(253);
        let far = Socket::from_fd(far).unwrap();
        let (reader, writer) = pipe();
        let many: Vec<BorrowedFd<'_>> = (0..253).map(|_| reader.as_fd()).collect();
        far.send(&[b"many"], &many, None).unwrap();
        let mut inbox = inbox();
        assert_eq!(inbox.receive(&near, None).unwrap().take_descriptors().len(), 253);
        let one_more: Vec<_> = many.iter().copied().chain([writer.as_fd()]).collect();
        assert!(matches!(far.send(&[b"more"], &one_more, None), Err(SendError::TooLarge)));
    }

    fn descriptors_beyond_the_limit_are_lost_with_a_name() {
        let (near, far) = ends();
        near.set_descriptors_max(2);
        let (reader, _writer) = pipe();
        let census = Census::take();
        for count in [2, 3] {
            send_packet(&far, b"some", &vec![reader.as_fd(); count]).unwrap();
        }
        let mut inbox = inbox();
        assert_eq!(inbox.receive(&near, None).unwrap().descriptors(), 2);
        let error = inbox.receive(&near, None).unwrap_err();
        let ReceiveError::DescriptorsLost(received) = error else { panic!("{error}") };
        assert_eq!((received.bytes(), received.descriptors()), (&b"some"[..], 2));
        drop(received);
        census.unchanged();
    }

    fn without_room_in_the_table_descriptors_are_lost_with_a_name() {
        let (near, far) = ends();
        let (reader, _writer) = pipe();
        send_packet(&far, b"three", &[reader.as_fd(); 3]).unwrap();
        let limit = testing::leave_descriptors(2);
        let mut inbox = inbox();
        let error = inbox.receive(&near, None).unwrap_err();
        let ReceiveError::DescriptorsLost(received) = error else { panic!("{error}") };
        assert_eq!((received.bytes(), received.descriptors()), (&b"three"[..], 2));
        drop(limit);
    }

    fn an_empty_message_is_refused() {
        let (near, _far) = ends();
        assert!(matches!(near.send(&[], NO_DESCRIPTORS, None), Err(SendError::Empty)));
        assert!(matches!(near.send(&[b"", b""], NO_DESCRIPTORS, None), Err(SendError::Empty)));
    }

    fn a_buffer_that_another_holder_has_shrunk_is_restored() {
        let (near, far) = ends();
        set_socket_send_buffer_size(&near, 1).unwrap();
        near.send(&[&[7; 60_000]], NO_DESCRIPTORS, None).unwrap();
        drop(far);
    }

    // The end.

    fn the_end_is_told_when_all_is_read() {
        let (near, far) = ends();
        send_packet(&far, b"last", &[]).unwrap();
        drop(far);
        let mut inbox = inbox();
        hears(&mut inbox, &near, b"last");
        for _ in 0..3 {
            assert!(matches!(inbox.receive(&near, None), Err(ReceiveError::Closed)));
        }
    }

    fn empty_packets_are_dropped_and_counted_and_are_not_the_end() {
        let (near, far) = ends();
        let (reader, _writer) = pipe();
        let census = Census::take();
        for n in 0..200 {
            send_packet(&far, b"", &vec![reader.as_fd(); n % 2]).unwrap();
        }
        send_packet(&far, b"after all that", &[]).unwrap();
        let mut inbox = inbox();
        hears(&mut inbox, &near, b"after all that");
        assert_eq!(near.empty_packets(), 200);
        census.unchanged();
    }

    fn a_reset_does_not_lose_what_was_said_before() {
        let (near, far) = ends();
        near.send(&[b"never read"], NO_DESCRIPTORS, None).unwrap();
        send_packet(&far, b"goodbye", &[]).unwrap();
        drop(far);
        let mut inbox = inbox();
        hears(&mut inbox, &near, b"goodbye");
        assert!(matches!(inbox.receive(&near, None), Err(ReceiveError::Closed)));
        assert!(matches!(near.send(&[b"hello?"], NO_DESCRIPTORS, None), Err(SendError::Gone)));
    }

    /// A receive that races with the peer's last word and its close sees both, in this order, always.
    fn no_last_word_is_lost_to_a_false_end_of_file() {
        let mut inbox = Inbox::new(WaitPolicy::spin());
        for n in 0..2_000_u32 {
            let (near, far) = ends();
            let peer = thread::spawn(move || send_packet(&far, &n.to_le_bytes(), &[]).unwrap());
            assert_eq!(inbox.receive(&near, None).unwrap().bytes(), n.to_le_bytes());
            assert!(matches!(inbox.receive(&near, None), Err(ReceiveError::Closed)));
            peer.join().unwrap();
        }
    }

    fn the_death_of_the_peer_ends_a_receive() {
        let (near, far) = ends();
        let mut helper = start_helper!(says_hello_and_waits, vec![far]);
        let mut inbox = inbox();
        hears(&mut inbox, &near, b"hello");
        helper.kill();
        assert!(matches!(inbox.receive(&near, None), Err(ReceiveError::Closed)));
    }

    // Waiting.

    fn a_receive_ends_at_its_deadline() {
        let (near, far) = ends();
        let mut inbox = inbox();
        assert!(matches!(inbox.receive(&near, soon()), Err(ReceiveError::Deadline)));
        assert!(matches!(inbox.receive(&near, Some(Instant::now())), Err(ReceiveError::Deadline)));
        assert!(matches!(inbox.try_receive(&near), Err(ReceiveError::Deadline)));
        send_packet(&far, b"late", &[]).unwrap();
        // What is there is received, however late it is.
        assert_eq!(inbox.receive(&near, Some(Instant::now())).unwrap().bytes(), b"late");
    }

    /// Whoever keeps the queue full of empty packets keeps nobody beyond the deadline.
    fn empty_packets_do_not_outlast_the_deadline() {
        let (near, far) = ends();
        let mut inbox = inbox();
        let fill = |count: usize| (0..count).for_each(|_| send_packet(&far, b"", &[]).unwrap());
        fill(100);
        assert!(matches!(inbox.receive(&near, Some(Instant::now())), Err(ReceiveError::Deadline)));
        assert!(matches!(inbox.try_receive(&near), Err(ReceiveError::Deadline)));
        assert!((2..100).contains(&near.empty_packets()), "{}", near.empty_packets());
        // With time left all of them are taken.
        send_packet(&far, b"behind all", &[]).unwrap();
        assert_eq!(inbox.receive(&near, None).unwrap().bytes(), b"behind all");
        assert_eq!(near.empty_packets(), 100);
        // Behind a few there is a message.
        fill(15);
        send_packet(&far, b"a message", &[]).unwrap();
        assert_eq!(inbox.receive(&near, Some(Instant::now())).unwrap().bytes(), b"a message");
        fill(15);
        send_packet(&far, b"another", &[]).unwrap();
        assert_eq!(inbox.try_receive(&near).unwrap().bytes(), b"another");
    }

    fn a_descriptor_given_back_is_as_it_came() {
        let (near, far) = packet_pair();
        let near = Socket::from_fd(near).unwrap();
        near.set_private(true);
        send_packet(&far, b"far", &[]).unwrap();
        inbox().receive(&near, Some(Instant::now() + LONG)).unwrap();
        let near = near.into_fd();
        assert_eq!(socket_timeout(&near, Timeout::Recv).unwrap(), None);
        assert!(!socket_passcred(&near).unwrap());
        // What another holder may count on stays.
        let near = Socket::from_fd(near).unwrap();
        let copy = near.try_clone_fd().unwrap();
        assert!(socket_passcred(near.into_fd()).unwrap());
        assert!(socket_passcred(Socket::from_fd(copy).unwrap().into_fd()).unwrap());
    }

    fn a_duplicate_is_not_waited_on_with_the_limit_of_another_wait() {
        let (near, far) = ends();
        send_packet(&far, b"far", &[]).unwrap();
        inbox().receive(&near, Some(Instant::now() + LONG)).unwrap();
        assert_eq!(socket_timeout(near.try_clone_fd().unwrap(), Timeout::Recv).unwrap(), None);
    }

    fn a_far_deadline_is_left_to_the_sockets_own_limit() {
        let (near, far) = ends();
        let limit = || socket_timeout(&near, Timeout::Recv).unwrap();
        let mut inbox = inbox();
        send_packet(&far, b"near", &[]).unwrap();
        inbox.receive(&near, Some(Instant::now() + Duration::from_millis(90))).unwrap();
        assert_eq!(limit(), None);
        send_packet(&far, b"far", &[]).unwrap();
        inbox.receive(&near, Some(Instant::now() + LONG)).unwrap();
        let set = limit().unwrap();
        assert!(set <= LONG && set > LONG / 2, "{set:?}");
        // The next call with the same patience changes nothing.
        send_packet(&far, b"far", &[]).unwrap();
        inbox.receive(&near, Some(Instant::now() + LONG)).unwrap();
        assert_eq!(limit(), Some(set));
        assert!(matches!(
            inbox.receive(&near, Some(Instant::now() + Duration::from_millis(120))),
            Err(ReceiveError::Deadline)
        ));
    }

    fn a_limit_left_by_one_wait_does_not_end_the_next() {
        let (near, far) = ends();
        let mut inbox = inbox();
        let near_deadline = Some(Instant::now() + Duration::from_millis(120));
        assert!(matches!(inbox.receive(&near, near_deadline), Err(ReceiveError::Deadline)));
        let peer = thread::spawn(move || {
            // Longer than the limit that was left behind: the waiter has come back from it by then.
            testing::wait_until("the limit has passed", {
                let start = Instant::now();
                move || start.elapsed() > Duration::from_millis(250)
            });
            send_packet(&far, b"much later", &[]).unwrap();
        });
        hears(&mut inbox, &near, b"much later");
        peer.join().unwrap();
    }

    fn a_description_that_somebody_made_non_blocking_is_waited_for_all_the_same() {
        let (near, far) = ends();
        testing::set_nonblocking(&near);
        let peer = start_helper!(says_hello_and_waits, vec![far]);
        let mut inbox = inbox();
        hears(&mut inbox, &near, b"hello");
        assert!(matches!(inbox.receive(&near, soon()), Err(ReceiveError::Deadline)));
        let far_off = Some(Instant::now() + Duration::from_millis(120));
        assert!(matches!(inbox.receive(&near, far_off), Err(ReceiveError::Deadline)));
        drop(peer);
    }

    fn a_send_waits_for_room_and_for_its_deadline() {
        let (near, far) = ends();
        let queued = fill(&near);
        assert!(matches!(near.send(&[b"y"], NO_DESCRIPTORS, soon()), Err(SendError::WouldBlock)));
        let reader = thread::spawn(move || {
            let (mut inbox, far) = (inbox(), Socket::from_fd(far).unwrap());
            (0..).map(|_| inbox.receive(&far, None).unwrap().into_bytes()).position(|m| m == b"y").unwrap()
        });
        near.send(&[b"y"], NO_DESCRIPTORS, None).unwrap();
        assert_eq!(reader.join().unwrap(), queued);
    }

    /// The kernel says "writable" of an end that others fill only when most of it is free.
    fn a_send_on_a_shared_end_finds_one_free_place() {
        let (near, far) = ends();
        near.set_private(false);
        fill(&near);
        let taken = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                testing::receive_packet(&far).unwrap();
                taken.store(true, Ordering::Release);
            });
            near.send(&[b"y"], NO_DESCRIPTORS, Some(Instant::now() + LONG)).unwrap();
        });
        assert!(taken.load(Ordering::Acquire));
    }

    fn either_readiness_ends_a_wait() {
        let (near, far) = ends();
        let ready = near.wait(None).unwrap();
        assert!(ready.writable && !ready.readable);
        fill(&near);
        assert_eq!(near.wait(soon()).unwrap(), Default::default());
        send_packet(&far, b"hello", &[]).unwrap();
        let ready = near.wait(None).unwrap();
        assert!(ready.readable && !ready.writable);
    }

    fn a_spinning_inbox_hears_what_a_sleeping_one_does() {
        for wait in [WaitPolicy::Sleep, WaitPolicy::spin()] {
            let (near, far) = ends();
            let mut inbox = Inbox::new(wait);
            let peer = thread::spawn(move || {
                let (far, mut inbox) = (Socket::from_fd(far).unwrap(), Inbox::new(wait));
                while let Ok(received) = inbox.receive(&far, None) {
                    let bytes = received.into_bytes();
                    far.send(&[&bytes], NO_DESCRIPTORS, None).unwrap();
                }
            });
            for n in 0..500_u32 {
                near.send(&[&n.to_le_bytes()], NO_DESCRIPTORS, None).unwrap();
                assert_eq!(inbox.receive(&near, None).unwrap().bytes(), n.to_le_bytes());
            }
            assert!(matches!(inbox.receive(&near, soon()), Err(ReceiveError::Deadline)));
            drop(near);
            peer.join().unwrap();
        }
    }

    // What is left behind.

    fn what_is_no_such_socket_is_refused_and_closed() {
        let census = Census::take();
        let (stream, other) = testing::stream_pair();
        assert!(Socket::from_fd(stream).is_err());
        assert!(Socket::from_fd(std::fs::File::open("/dev/null").unwrap().into()).is_err());
        drop(other);
        census.unchanged();
    }

    fn a_strangers_descriptor_that_lingers_keeps_nobody_waiting() {
        let (near, far) = ends();
        let lingering = lingering_tcp();
        for _ in 0..2 {
            send_packet(&far, b"take this", &[lingering.near.as_fd()]).unwrap();
        }
        drop(lingering.near);
        let mut inbox = inbox();
        // One that is received and not taken, and one that is in the queue when the end is closed.
        hears(&mut inbox, &near, b"take this");
        drop(near);
        assert!(ring::closer_busy());
        drop(lingering.far);
    }

    fn dropping_a_private_end_ends_the_connection_for_a_forked_copy_too() {
        let (near, far) = ends();
        let (gone, waiting) = std::io::pipe().unwrap();
        // The child holds copies of everything until it is told to go.
        let child = fork(|| {
            drop(waiting);
            let _ = (&gone).read(&mut [0]);
        });
        drop(near);
        assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
        child.kill();
    }

    fn a_forked_child_that_drops_its_copy_ends_nothing() {
        let (near, far) = ends();
        let mut near = Some(near);
        fork(|| {
            assert!(!near.as_ref().unwrap().is_of_this_process());
            near = None;
        })
        .succeeded();
        send_packet(&far, b"still there", &[]).unwrap();
        hears(&mut inbox(), near.as_ref().unwrap(), b"still there");
    }

    fn an_end_and_an_inbox_may_go_to_another_thread() {
        let (near, far) = ends();
        let mut inbox = inbox();
        let there = thread::spawn(move || inbox.receive(&near, None).unwrap().into_bytes());
        send_packet(&far, b"over there", &[]).unwrap();
        assert_eq!(there.join().unwrap(), b"over there");
    }
}

helper! {
    fn says_hello_and_waits(descriptors: Vec<OwnedFd>) {
        send_packet(&descriptors[0], b"hello", &[]).unwrap();
        let _ = testing::receive_packet(&descriptors[0]);
    }
}
