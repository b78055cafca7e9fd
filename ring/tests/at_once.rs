//! What is done now, and not with the next turn: a message that leaves with a call of its own, a look into
//! the queue before anything is waited for. Neither may change the order of anything.
#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ring::{Fd, Kind, Message, Reactor, ReceiveError, Received, SendError, Sending, Socket, Wait};
use testing::{on_each_driver, on_each_driver_and_seed, receive_packet, send_packet, settle, turn};

fn pair(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    testing::set_nonblocking(&far);
    (near, far)
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a look finds.
fn look(socket: &Socket) -> Option<Vec<u8>> {
    found(socket.poll_receive_here(&mut Context::from_waker(Waker::noop())))
}

/// And the look of one who waits together with others.
fn look_together(socket: &Socket) -> Option<Vec<u8>> {
    found(socket.poll_receive_together(&mut Context::from_waker(Waker::noop())))
}

fn found(poll: Poll<Result<Received, ReceiveError>>) -> Option<Vec<u8>> {
    match poll {
        Poll::Ready(received) => Some(received.unwrap().into_bytes()),
        Poll::Pending => None,
    }
}

fn bytes(far: &OwnedFd) -> Option<Vec<u8>> {
    receive_packet(far).ok().map(|packet| packet.bytes)
}

fn three_in_any_order(near: &Socket) -> Vec<Sending> {
    (0..3_u8).map(|number| near.send_in_any_order(vec![number])).collect()
}

on_each_driver! {
    fn what_is_sent_at_once_has_left_before_the_next_turn(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let sending = near.send_at_once("now");
        assert!(sending.has_gone());
        assert_eq!(bytes(&far).unwrap(), b"now");
        settle(reactor, sending).unwrap();
    }

    fn what_it_carried_is_closed_by_then(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let (other, carried) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        drop(near.send_at_once(Message::from("take it").with_descriptor(Fd::made_here(carried))));
        drop(receive_packet(&far).unwrap());
        // Nobody has a copy: not the message, and not whoever it was sent to.
        assert!(other.is_hung_up());
    }

    fn it_does_not_overtake(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let first = near.send("first");
        let second = near.send_at_once("second");
        assert!(!second.has_gone());
        settle(reactor, first).unwrap();
        settle(reactor, second).unwrap();
        assert_eq!(bytes(&far).unwrap(), b"first");
        assert_eq!(bytes(&far).unwrap(), b"second");
    }

    fn of_those_that_may_overtake_the_first_goes_at_once_and_the_others_together(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        for _ in 0..2 {
            let sendings: Vec<_> = (0..40_u8).map(|number| near.send_in_any_order(vec![number])).collect();
            assert_eq!(bytes(&far).unwrap(), [0]);
            let mut arrived: Vec<_> = std::iter::from_fn(|| bytes(&far)).collect();
            assert!(arrived.is_empty());
            turn(reactor);
            arrived.extend(std::iter::from_fn(|| bytes(&far)));
            arrived.sort();
            assert!(arrived.into_iter().eq((1..40).map(|number| vec![number])));
            sendings.into_iter().for_each(|sending| settle(reactor, sending).unwrap());
        }
    }

    /// However many they are. A server with room for a few of its clients took the last of them first, while
    /// those waited for the others to be served.
    fn where_there_is_room_they_arrive_in_their_order(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let sendings: Vec<_> = (0..100_u8).map(|number| near.send_in_any_order(vec![number])).collect();
        sendings.into_iter().for_each(|sending| settle(reactor, sending).unwrap());
        assert!(std::iter::from_fn(|| bytes(&far)).flatten().eq(0..100));
    }

    fn where_only_some_of_them_have_room_the_rest_follow_in_their_order(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        (0..5).for_each(|_| drop(receive_packet(&far).unwrap()));
        let sendings: Vec<_> = (0..33_u8).map(|number| near.send_in_any_order(vec![number])).collect();
        turn(reactor);
        let arrived = || std::iter::from_fn(|| bytes(&far)).filter(|bytes| bytes != b"filler");
        let mut numbers: Vec<_> = arrived().flatten().collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        while numbers.len() < 33 {
            turn(reactor);
            numbers.extend(arrived().flatten());
        }
        assert!(numbers.into_iter().eq(0..33));
        sendings.into_iter().for_each(|sending| settle(reactor, sending).unwrap());
        assert!(bytes(&far).is_none());
    }

    fn what_they_carried_is_closed_when_they_have_gone(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let (others, sendings): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (other, carried) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
                let message = Message::from("take it").with_descriptor(Fd::made_here(carried));
                (other, near.send_in_any_order(message))
            })
            .unzip();
        sendings.into_iter().for_each(|sending| settle(reactor, sending).unwrap());
        while receive_packet(&far).is_ok() {}
        assert!(others.iter().all(Socket::is_hung_up));
    }

    fn those_for_which_a_queue_has_no_room_wait_for_it(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        let sendings = three_in_any_order(&near);
        turn(reactor);
        let mut arrived = Vec::new();
        let all = std::future::poll_fn(|_| {
            arrived.extend(std::iter::from_fn(|| bytes(&far)).filter(|bytes| bytes != b"filler"));
            if arrived.len() == 3 { Poll::Ready(()) } else { Poll::Pending }
        });
        let mut all = std::pin::pin!(all);
        while all.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            turn(reactor);
        }
        sendings.into_iter().for_each(|sending| settle(reactor, sending).unwrap());
    }

    fn those_that_are_let_go_of_leave_all_the_same(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        for full in [false, true] {
            while full && near.try_send("filler").is_ok() {}
            for turns in 0..3 {
                let sendings = three_in_any_order(&near);
                (0..turns).for_each(|_| turn(reactor));
                sendings.into_iter().for_each(Sending::let_go);
                turn(reactor);
            }
            let mut arrived = Vec::new();
            while arrived.len() < 9 {
                arrived.extend(std::iter::from_fn(|| bytes(&far)).filter(|bytes| bytes != b"filler"));
                turn(reactor);
            }
            arrived.sort();
            assert!(arrived.into_iter().eq((0..9).map(|number| vec![number / 3])));
        }
        turn(reactor);
        assert!(near.into_fd().is_ok(), "something is still away");
    }

    fn those_that_are_dropped_leave_nothing_behind(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        for full in [false, true] {
            while full && near.try_send("filler").is_ok() {}
            for turns in 0..3 {
                let sendings = three_in_any_order(&near);
                (0..turns).for_each(|_| turn(reactor));
                drop(sendings);
                turn(reactor);
            }
            while bytes(&far).is_some() {}
        }
        settle(reactor, near.send("after them")).unwrap();
        assert_eq!(std::iter::from_fn(|| bytes(&far)).last().unwrap(), b"after them");
        assert!(near.into_fd().is_ok(), "something is still away");
    }

    fn each_of_them_is_told_that_nobody_is_there(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        drop(far);
        let sendings = three_in_any_order(&near);
        for sending in sendings {
            assert!(matches!(settle(reactor, sending), Err(SendError::Gone)));
        }
    }

    fn it_waits_for_a_full_queue(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        let sending = near.send_at_once("last");
        assert!(!sending.has_gone());
        turn(reactor);
        while bytes(&far).is_some() {}
        turn(reactor);
        turn(reactor);
        assert_eq!(bytes(&far).unwrap(), b"last");
        settle(reactor, sending).unwrap();
    }

    fn it_is_taken_back_by_whoever_drops_it_before_there_is_room(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        drop(near.send_at_once("never"));
        turn(reactor);
        while bytes(&far).is_some_and(|bytes| bytes == b"filler") {}
        settle(reactor, near.send("after it")).unwrap();
        assert_eq!(bytes(&far).unwrap(), b"after it");
    }

    fn it_says_that_nobody_is_there(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        drop(far);
        assert!(matches!(settle(reactor, near.send_at_once("anyone?")), Err(SendError::Gone)));
        assert!(matches!(settle(reactor, near.send_at_once("")), Err(SendError::Empty)));
    }

    fn a_last_message_leaves_before_the_next_turn_too(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        near.finish("bye").unwrap();
        assert_eq!(bytes(&far).unwrap(), b"bye");
        assert_eq!(bytes(&far).unwrap(), b"");
    }

    fn a_socket_kept_after_its_last_message_ends_when_it_is_dropped(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        let kept = near.finish_and_keep("bye").unwrap().unwrap();
        assert_eq!(bytes(&far).unwrap(), b"bye");
        assert!(bytes(&far).is_none());
        drop(kept);
        assert_eq!(bytes(&far).unwrap(), b"");
    }

    fn a_socket_whose_last_message_waits_is_not_given_back(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        while near.try_send("filler").is_ok() {}
        assert!(near.finish_and_keep("bye").unwrap().is_none());
        while bytes(&far).is_some_and(|bytes| bytes == b"filler") {}
        turn(reactor);
        turn(reactor);
        assert_eq!(bytes(&far).unwrap(), b"bye");
    }

    /// With plain calls, sixteen of one socket.
    fn a_turn_sends_sixteen_letters_of_a_socket_and_the_next_the_rest(reactor: &Reactor) {
        for (letters, first) in [(16, 16), (17, 16)] {
            let (near, far) = pair(reactor);
            let sends: Vec<_> = (0..letters).map(|number| near.send(&[number])).collect();
            reactor.turn(Wait::Not).unwrap();
            assert!((0..first).all(|number| bytes(&far).unwrap() == [number]));
            assert!(bytes(&far).is_none());
            // Also if it may sleep.
            settle(reactor, async {
                for send in sends {
                    send.await.unwrap();
                }
            });
            assert!((first..letters).all(|number| bytes(&far).unwrap() == [number]));
        }
    }

    /// Of more than eight sockets all that goes out in one turn goes with one call: a letter of each.
    fn a_turn_sends_all_of_eight_sockets_and_a_letter_of_each_of_nine(reactor: &Reactor) {
        for (sockets, second_too) in [(8, true), (9, false)] {
            let pairs: Vec<_> = (0..sockets).map(|_| pair(reactor)).collect();
            let sends: Vec<_> = pairs.iter().flat_map(|(near, _)| [near.send("1"), near.send("2")]).collect();
            reactor.turn(Wait::Not).unwrap();
            for (_, far) in &pairs {
                assert_eq!(bytes(far).unwrap(), b"1");
                assert_eq!(bytes(far).is_some(), second_too);
            }
            settle(reactor, async {
                for send in sends {
                    send.await.unwrap();
                }
            });
            assert!(second_too || pairs.iter().all(|(_, far)| bytes(far).unwrap() == b"2"));
        }
    }

    fn a_look_finds_what_is_there_without_a_turn(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        send_packet(&far, b"here", &[far.as_fd()]).unwrap();
        let turns = reactor.stats().turns;
        assert_eq!(look(&near).unwrap(), b"here");
        assert_eq!(reactor.stats().turns, turns);
    }

    fn looks_are_for_others_too_after_sixteen(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        for number in 0..20 {
            send_packet(&far, &[number], &[]).unwrap();
        }
        assert!((0..16).all(|number| look(&near).unwrap() == [number]));
        assert!(look(&near).is_none());
        turn(reactor);
        assert_eq!(look(&near).unwrap(), [16]);
    }

    fn where_one_of_those_who_wait_together_looked_in_vain_the_others_wait_for_the_turn(reactor: &Reactor) {
        let [(first, _first_far), (second, far), (third, far_third)] = [(); 3].map(|()| pair(reactor));
        assert!(look_together(&first).is_none());
        send_packet(&far, b"one", &[]).unwrap();
        send_packet(&far, b"another", &[]).unwrap();
        assert!(look_together(&second).is_none());
        turn(reactor);
        assert_eq!(look_together(&second).unwrap(), b"one");
        assert_eq!(look_together(&second).unwrap(), b"another");
        send_packet(&far_third, b"here", &[]).unwrap();
        assert_eq!(look_together(&third).unwrap(), b"here");
    }

    /// Also where it came from somewhere, and nothing is known of it without a look.
    fn who_waits_together_with_others_and_does_not_look_is_told_of_what_was_there(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        for (near, far) in [pair(reactor), (Socket::wrap(reactor, near).unwrap(), far)] {
            let (in_vain, _its_far) = pair(reactor);
            send_packet(&far, b"here", &[]).unwrap();
            assert!(look_together(&in_vain).is_none());
            assert!(look_together(&near).is_none());
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"here");
        }
    }

    fn one_look_in_vain_is_nothing_to_those_who_do_not_wait_together(reactor: &Reactor) {
        for in_vain in [look, look_together] {
            let (empty, _empty_far) = pair(reactor);
            let pairs: Vec<_> = (0..17).map(|_| pair(reactor)).collect();
            pairs.iter().for_each(|(_, far)| send_packet(far, b"here", &[]).unwrap());
            assert!(in_vain(&empty).is_none());
            assert_eq!(pairs.iter().filter(|(near, _)| look(near).is_some()).count(), 16);
            turn(reactor);
        }
    }

    fn nor_is_theirs_to_those_who_do(reactor: &Reactor) {
        let [(empty, _empty_far), (near, far)] = [(); 2].map(|()| pair(reactor));
        send_packet(&far, b"here", &[]).unwrap();
        assert!(look(&empty).is_none());
        assert_eq!(look_together(&near).unwrap(), b"here");
    }

    fn as_many_answers_as_are_asked_for_together_are_found_without_a_turn(reactor: &Reactor) {
        let pairs: Vec<_> = (0..33).map(|_| pair(reactor)).collect();
        pairs.iter().for_each(|(_, far)| send_packet(far, b"here", &[]).unwrap());
        let turns = reactor.stats().turns;
        let found = pairs.iter().filter(|(near, _)| look_together(near).is_some()).count();
        assert_eq!((found, reactor.stats().turns), (32, turns));
        let (last, _) = pairs.last().unwrap();
        assert_eq!(settle(reactor, last.receive()).unwrap().bytes(), b"here");
    }

    fn the_end_is_told_to_who_looks(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        send_packet(&far, b"bye", &[]).unwrap();
        drop(far);
        assert_eq!(look(&near).unwrap(), b"bye");
        let end = settle(reactor, poll_fn(|context| near.poll_receive_here(context)));
        assert!(matches!(end, Err(ReceiveError::Closed)));
    }

    fn who_takes_one_of_many_is_told_of_the_next(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        near.stream();
        [b"1", b"2"].iter().for_each(|packet| send_packet(&far, *packet, &[]).unwrap());
        drop(far);
        turn(reactor);
        turn(reactor);
        let mut context = Context::from_waker(Waker::noop());
        let mut take = || match near.poll_receive_of_many(&mut context) {
            Poll::Ready((received, more)) => (received.ok().map(Received::into_bytes), more),
            Poll::Pending => panic!("nothing came"),
        };
        // The end is one more.
        assert_eq!(take(), (Some(b"1".to_vec()), true));
        assert_eq!(take(), (Some(b"2".to_vec()), true));
        assert_eq!(take(), (None, true));
    }

    fn who_took_the_only_one_is_woken_by_the_next(reactor: &Reactor) {
        let (near, far) = pair(reactor);
        near.stream();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert!(near.poll_receive_of_many(&mut context).is_pending());
        for round in 1..=3 {
            send_packet(&far, b"one", &[]).unwrap();
            turn(reactor);
            // Each time, though it was polled only for what had come.
            assert_eq!(woken.0.load(Ordering::Relaxed), round);
            let polled = near.poll_receive_of_many(&mut context);
            assert!(matches!(polled, Poll::Ready((Ok(_), false))));
        }
    }

    fn a_socket_is_quiet_until_something_is_on_its_way(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = pair(reactor);
            if streams {
                near.stream();
                turn(reactor);
            }
            assert!(near.is_quiet());
            send_packet(&far, b"hello", &[]).unwrap();
            assert!(!near.is_quiet());
            turn(reactor);
            assert!(!near.is_quiet() || !streams);
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"hello");
            assert!(near.is_quiet());
            drop(far);
            assert!(!near.is_quiet());
        }
    }
}

on_each_driver_and_seed! {
    /// A stream in the kernel's hands takes what it likes, when it likes.
    fn looks_and_turns_bring_what_was_sent_in_order(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = pair(reactor);
            if streams {
                near.stream();
            }
            let mut seen = Vec::new();
            for round in 0..60_u8 {
                for part in 0..3 {
                    send_packet(&far, &[round, part], &[]).unwrap();
                }
                if round % 4 != 0 {
                    turn(reactor);
                }
                let looks = usize::from(round % 5);
                seen.extend(std::iter::from_fn(|| look(&near)).take(looks));
            }
            while seen.len() < 180 {
                seen.push(settle(reactor, near.receive()).unwrap().into_bytes());
            }
            let sent = (0..60_u8).flat_map(|round| (0..3).map(move |part| vec![round, part]));
            assert!(seen.into_iter().eq(sent));
        }
    }
}
