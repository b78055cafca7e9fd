//! Posts that bring descriptors: beside others in one packet, and what becomes of them, and of nobody else,
//! when the descriptors cannot be sent.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use ring::{Kind, Message, Otherwise, PACKET_BYTES_MAX, Reactor, Reader, Reading, SendError, Socket};
use rustix::net::sockopt::set_socket_send_buffer_size;
use testing::{Census, on_each_driver, receive_packet, send_packet, settle, too_many_in_flight, turn};

fn pair(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    testing::set_nonblocking(&far);
    (near, far)
}

struct DoneWithAll;

impl Reader for DoneWithAll {
    fn read(&self, _: Reading<'_>) -> bool {
        true
    }
}

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

fn with_pipe(bytes: &str) -> Message {
    Message::from(bytes).with_descriptor(pipe())
}

/// Bytes and descriptors of each packet that has arrived.
fn packets(far: &OwnedFd) -> Vec<(String, usize)> {
    let arrived = std::iter::from_fn(|| receive_packet(far).ok());
    arrived.map(|packet| (String::from_utf8(packet.bytes).unwrap(), packet.descriptors.len())).collect()
}

fn is_out_of_descriptors(failed: &[(u64, SendError)], numbers: &[u64]) -> bool {
    let all = failed.iter().all(|(_, error)| matches!(error, SendError::OutOfDescriptors));
    all && failed.iter().map(|(number, _)| *number).eq(numbers.iter().copied())
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

on_each_driver! {
    fn a_post_with_descriptors_shares_the_packet_of_those_without(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        near.post_bytes(b"one ", b"");
        near.post_with(b"two ", &mut with_pipe("and a pipe "), Otherwise::Tell(2));
        near.post_bytes(b"three", b"");
        turn(reactor);
        assert_eq!(packets(&far), [("one two and a pipe three".into(), 1)]);
        assert!(near.take_failed().is_empty());
    }

    fn a_message_that_was_posted_has_no_descriptors_any_more(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let census = Census::take();
        let mut message = with_pipe("pipe");
        near.post_with(b"a ", &mut message, Otherwise::Tell(1));
        assert!(message.descriptors().is_empty());
        turn(reactor);
        assert_eq!(packets(&far), [("a pipe".into(), 1)]);
        drop(message);
        census.unchanged();
    }

    fn each_post_with_descriptors_begins_a_packet_if_the_last_has_some(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        near.post_with(b"one ", &mut with_pipe(""), Otherwise::Tell(1));
        near.post_bytes(b"beside", b"");
        near.post_with(b"two", &mut with_pipe(""), Otherwise::Say(b"never"));
        turn(reactor);
        assert_eq!(packets(&far), [("one beside".into(), 1), ("two".into(), 1)]);
    }

    fn a_post_with_descriptors_that_fills_the_packet_is_in_it_and_one_byte_more_is_not(reactor: &Reactor) {
        for (more, count) in [(0, 1), (1, 2)] {
            let (near, far) = pair(reactor);
            near.post_bytes(b"", &[b'x'; PACKET_BYTES_MAX - 4]);
            near.post_with(b"pipe", &mut with_pipe(&"y"[..more]), Otherwise::Tell(1));
            turn(reactor);
            let arrived = packets(&far);
            assert_eq!(arrived.len(), count);
            assert_eq!(arrived.last().unwrap().1, 1);
        }
    }

    fn what_cannot_be_sent_is_said_otherwise_and_the_rest_as_it_is(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let census = Census::take();
        let many = too_many_in_flight();
        near.post_bytes(b"before ", b"");
        near.post_with(b"here is ", &mut with_pipe("a pipe"), Otherwise::Say(b"no pipe"));
        near.post_bytes(b" behind", b"");
        turn(reactor);
        assert_eq!(packets(&far), [("before no pipe behind".into(), 0)]);
        let stats = reactor.stats();
        assert_eq!((stats.posts_lost, stats.posts_replaced), (1, 1));
        drop(many);
        census.unchanged();
        // And nothing of it is left for what comes next.
        near.post_with(b"now ", &mut with_pipe("one"), Otherwise::Say(b"never"));
        turn(reactor);
        assert_eq!(packets(&far), [("now one".into(), 1)]);
    }

    fn who_wants_to_be_told_is_and_the_rest_goes_as_it_is(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let many = too_many_in_flight();
        near.post_bytes(b"before ", b"");
        near.post_with(b"here is ", &mut with_pipe("a pipe"), Otherwise::Tell(7 << 32));
        near.post_bytes(b"behind", b"");
        turn(reactor);
        assert_eq!(packets(&far), [("before behind".into(), 0)]);
        assert!(near.has_failed());
        assert!(is_out_of_descriptors(&near.take_failed(), &[7 << 32]));
        assert!(!near.has_failed());
        assert!(near.take_failed().is_empty());
        assert!(!near.is_broken());
        drop(many);
    }

    fn of_a_post_that_was_alone_nothing_is_sent(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let many = too_many_in_flight();
        for number in [1, 2] {
            near.post_with(b"a ", &mut with_pipe("pipe"), Otherwise::Tell(number));
        }
        turn(reactor);
        turn(reactor);
        assert!(packets(&far).is_empty());
        assert!(is_out_of_descriptors(&near.take_failed(), &[1, 2]));
        near.post_bytes(b"more", b"");
        turn(reactor);
        assert_eq!(packets(&far), [("more".into(), 0)]);
        drop(many);
    }

    fn what_is_said_instead_does_not_make_a_packet_too_long(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let many = too_many_in_flight();
        near.post_with(&[1; 16], &mut with_pipe(""), Otherwise::Say(&[2; 17]));
        near.post_bytes(&[3; 16], &[3; PACKET_BYTES_MAX - 32]);
        near.post_bytes(&[4; 16], &[4; PACKET_BYTES_MAX - 32]);
        near.post_with(&[5; 16], &mut with_pipe(""), Otherwise::Say(&[6; 17]));
        turn(reactor);
        turn(reactor);
        let lengths: Vec<_> = packets(&far).into_iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lengths, [17, PACKET_BYTES_MAX - 16, PACKET_BYTES_MAX - 16, 17]);
        drop(many);
    }

    fn whoever_waits_for_a_message_is_woken_to_look(reactor: &Reactor) {
        let (near, _far) = pair(reactor);
        near.stream();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert!(near.poll_receive(&mut context).is_pending());
        let many = too_many_in_flight();
        near.post_with(b"a ", &mut with_pipe("pipe"), Otherwise::Tell(1));
        turn(reactor);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(is_out_of_descriptors(&near.take_failed(), &[1]));
        assert!(near.poll_receive(&mut context).is_pending());
        drop(many);
    }

    fn nothing_is_read_where_it_arrives_until_somebody_has_looked(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let reader = Rc::new(DoneWithAll);
        near.set_reader(Rc::downgrade(&reader));
        near.stream();
        let many = too_many_in_flight();
        near.post_with(b"a ", &mut with_pipe("pipe"), Otherwise::Tell(1));
        turn(reactor);
        send_packet(&far, b"before", &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"before");
        assert!(is_out_of_descriptors(&near.take_failed(), &[1]));
        let read = reactor.stats().messages_received;
        send_packet(&far, b"behind", &[]).unwrap();
        while reactor.stats().messages_received == read {
            turn(reactor);
        }
        assert!(near.try_receive().is_none());
        drop(many);
    }

    fn each_socket_is_told_of_its_own(reactor: &Reactor) {
        let [(one, _far), (other, _there)] = [pair(reactor), pair(reactor)];
        let many = too_many_in_flight();
        one.post_with(b"one", &mut with_pipe(""), Otherwise::Tell(1));
        other.post_with(b"other", &mut with_pipe(""), Otherwise::Tell(2));
        turn(reactor);
        assert!(is_out_of_descriptors(&other.take_failed(), &[2]));
        // What is not asked for before a socket is dropped is nobody's, nor that of the next in its place.
        drop(one);
        turn(reactor);
        let (third, _there) = pair(reactor);
        assert!(!third.has_failed());
        drop(many);
    }

    fn who_posts_to_nobody_is_told(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        drop(far);
        near.post_with(b"a ", &mut with_pipe("pipe"), Otherwise::Tell(1));
        near.post_with(b"another ", &mut with_pipe("pipe"), Otherwise::Tell(2));
        turn(reactor);
        turn(reactor);
        let failed = near.take_failed();
        assert!(matches!(failed[..], [(1, SendError::Gone), (2, SendError::Gone)]), "{failed:?}");
    }

    fn a_full_queue_is_awaited_with_descriptors_too(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        near.post_with(b"a ", &mut with_pipe("pipe"), Otherwise::Say(b"never"));
        turn(reactor);
        near.post_bytes(b" at last", b"");
        let mut arrived = packets(&far);
        while arrived.last().is_none_or(|(_, descriptors)| *descriptors == 0) {
            turn(reactor);
            arrived.extend(packets(&far));
        }
        assert_eq!(arrived.last(), Some(&("a pipe at last".into(), 1)));
    }

    /// What a stream has taken a part of is on its way, and does not become longer.
    fn a_post_behind_half_of_another_follows_it(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        set_socket_send_buffer_size(&near, 1).unwrap();
        near.post(&[&[b'x'; 60_000]], Vec::new());
        turn(reactor);
        assert_eq!(near.unsent(), 60_000);
        near.post_bytes(b"y", b"");
        testing::settle(reactor, async {
            let mut arrived = Vec::new();
            while arrived.last() != Some(&b'y') {
                arrived.extend_from_slice(far.receive().await.unwrap().bytes());
            }
            assert_eq!(arrived.len(), 60_001);
        });
    }
}
