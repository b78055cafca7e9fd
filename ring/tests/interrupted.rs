//! Signals that interrupt whatever waits: with SA_RESTART and without, a reactor serves, timers are not
//! early, and blocking sockets go on waiting. It knows nothing of where signals come from.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::blocking::{self, Inbox};
use ring::{Executor, Guest, Kind, Message, Reactor, ReceiveError, Socket, Wait, WaitPolicy};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use testing::{helper, on_each_driver, start_helper, storm};

helper! {
    /// Sends back what it gets, descriptors and all, until nobody sends any more.
    fn echo(descriptors: Vec<OwnedFd>) {
        let [fd] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let socket = Socket::wrap(&reactor, fd).unwrap();
        Executor::new(&reactor).block_on(async {
            loop {
                let mut received = match socket.receive().await {
                    Ok(received) => received,
                    Err(ReceiveError::Closed) => return,
                    Err(error) => panic!("{error}"),
                };
                let descriptors = received.take_descriptors();
                let answer = Message::from(received.bytes());
                let answer = descriptors.into_iter().fold(answer, Message::with_descriptor);
                socket.send(answer).await.unwrap();
            }
        });
    }
}

fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

/// A pair whose far end is with somebody who echoes.
fn echoed() -> (OwnedFd, testing::Helper) {
    let (near, far) = testing::packet_pair();
    let helper = start_helper!(echo, vec![far]);
    (near, helper)
}

on_each_driver! {
    fn a_reactor_serves_under_a_storm_of_signals(_reactor: &Reactor) {
        let (near, helper) = echoed();
        let mut near = Some(near);
        let mut here = None;
        let mut count = 0_u32;
        storm(|| {
            // Made in there, by the process that uses it.
            let (executor, near) = here.get_or_insert_with(|| {
                let reactor = testing::reactor();
                let near = Socket::wrap(&reactor, near.take().unwrap()).unwrap();
                (Executor::new(&reactor), near)
            });
            count += 1;
            let message = Message::new(count.to_le_bytes()).with_descriptor(pipe());
            let mut answer = executor.block_on(async {
                near.send(message).await.unwrap();
                near.receive().await.unwrap()
            });
            assert_eq!(answer.bytes(), count.to_le_bytes());
            assert!(answer.take_descriptor().is_some());
        });
        drop(near);
        helper.succeeded();
    }

    fn sleeps_are_not_shorter_for_signals(_reactor: &Reactor) {
        const TIME: Duration = Duration::from_millis(3);
        let mut here = None;
        storm(|| {
            let reactor = here.get_or_insert_with(testing::reactor);
            let start = Instant::now();
            testing::settle(reactor, reactor.sleep(TIME));
            assert!(start.elapsed() >= TIME);
            // A turn may end with nothing.
            reactor.turn(Wait::Until(Instant::now() + TIME)).unwrap();
        });
    }

    fn a_guest_is_turned_under_a_storm_of_signals(_reactor: &Reactor) {
        let mut here = None;
        storm(|| {
            let guest = here.get_or_insert_with(|| {
                Guest::with_config(ring::Config { driver: testing::driver(), ..Default::default() }).unwrap()
            });
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            let heard = std::rc::Rc::new(std::cell::Cell::new(false));
            let hears = std::rc::Rc::clone(&heard);
            guest.executor().spawn(async move { hears.set(near.receive().await.is_ok()) });
            testing::send_packet(&far, b"hello", &[pipe().as_fd()]).unwrap();
            while !heard.get() {
                guest.turn().unwrap();
                if !heard.get() {
                    let waited = poll(&mut [PollFd::new(&*guest, PollFlags::IN)], None);
                    assert!(matches!(waited, Ok(_) | Err(Errno::INTR)), "{waited:?}");
                }
            }
        });
    }

    fn blocking_sockets_go_on_waiting(_reactor: &Reactor) {
        let (near, helper) = echoed();
        let mut near = Some(near);
        let mut here = None;
        let mut count = 0_u32;
        storm(|| {
            let (near, inbox) = here.get_or_insert_with(|| {
                let near = blocking::Socket::from_fd(near.take().unwrap()).unwrap();
                (near, Inbox::new(WaitPolicy::Sleep))
            });
            count += 1;
            near.send(&[&count.to_le_bytes()], &[pipe()], None).unwrap();
            // With a time limit and without: they wait in different ways.
            let limit = count.is_multiple_of(2).then(|| Instant::now() + Duration::from_secs(60));
            let received = inbox.receive(near, limit).unwrap();
            assert_eq!(received.bytes(), count.to_le_bytes());
            assert_eq!(received.descriptors(), 1);
        });
        drop(near);
        helper.succeeded();
    }

    fn a_time_limit_of_a_blocking_receive_is_kept_over_signals(_reactor: &Reactor) {
        const TIME: Duration = Duration::from_millis(3);
        let (near, _far) = blocking::Socket::pair().unwrap();
        let mut inbox = Inbox::new(WaitPolicy::Sleep);
        storm(|| {
            let start = Instant::now();
            let received = inbox.receive(&near, Some(start + TIME));
            assert!(matches!(received, Err(blocking::ReceiveError::Deadline)));
            assert!(start.elapsed() >= TIME);
        });
    }
}
