//! Taking back: futures dropped at any moment, sockets dropped while something of theirs is away, descriptors
//! given back.
//!
//! Nothing is lost, nothing is corrupted, and the peer sees what it is to see at once.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ring::{Config, ExchangeError, Executor, Kind, Message, Reactor, ReceiveError, SendError, Socket, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_passcred, socket_passcred};
use testing::{on_each_driver, on_each_driver_and_seed, poll_once, settle, turn};

fn is_hung_up(fd: &OwnedFd) -> bool {
    let mut wait = [PollFd::new(fd, PollFlags::RDHUP)];
    poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    wait[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

fn into_fd_soon(reactor: &Reactor, mut socket: Socket) -> OwnedFd {
    for _ in 0..10 {
        match socket.into_fd() {
            Ok(fd) => return fd,
            Err(back) => socket = back,
        }
        turn(reactor);
    }
    panic!("it never comes home");
}

on_each_driver_and_seed! {
    /// At once: without another turn of ours, which may never come.
    fn a_dropped_call_is_seen_by_the_answerer(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            turn(reactor);
            assert!(!is_hung_up(&far));
            drop(near);
            assert!(is_hung_up(&far));
            turn(reactor);
            assert!(testing::send_packet(&far, b"nobody", &[]).is_err());
        }
    }

    fn an_idle_call_is_closed_at_once(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        drop(near);
        assert!(is_hung_up(&far));
        assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
    }

    /// Another holder goes on with it.
    fn a_dropped_shared_end_is_not_shut_down(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let other = near.try_clone().unwrap();
        let near = Socket::wrap(reactor, near).unwrap();
        poll_once(near.receive());
        turn(reactor);
        drop(near);
        turn(reactor);
        assert!(!is_hung_up(&far));
        testing::send_packet(&other, b"still here", &[]).unwrap();
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"still here");
    }

    /// The drop of the other end has turned the driver, which has found the message meanwhile.
    fn a_socket_dropped_before_its_message_was_looked_at_is_closed(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let (shared, _other) = testing::packet_pair();
        let shared = Socket::wrap(reactor, shared).unwrap();
        poll_once(shared.receive());
        turn(reactor);
        testing::send_packet(&far, b"too late", &[]).unwrap();
        poll_once(near.receive());
        drop(shared);
        drop(near);
        turn(reactor);
        turn(reactor);
        assert!(is_hung_up(&far));
    }

    /// What the kernel may write to stays where it is; what arrives belongs to the socket.
    fn a_dropped_future_leaves_its_slot(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if streams {
                near.stream();
            }
            for number in 0..100_u8 {
                poll_once(near.receive());
                drop(near.readable());
                poll_once(near.hung_up());
                if number % 3 == 0 {
                    turn(reactor);
                }
                testing::send_packet(&far, &[number; 100], &[]).unwrap();
                if number % 2 == 0 {
                    turn(reactor);
                }
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number; 100]);
            }
        }
    }

    /// A receive raced against a clock, as `select!` does it.
    fn a_receive_that_loses_a_race_loses_no_message(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let sender = std::thread::spawn(move || {
            for number in 0..500_u32 {
                testing::send_packet(&far, &number.to_ne_bytes(), &[]).unwrap();
            }
        });
        settle(reactor, async {
            for number in 0..500_u32 {
                let received = loop {
                    let mut receive = pin!(near.receive());
                    let mut clock = pin!(reactor.sleep(Duration::from_micros(u64::from(number % 7))));
                    let mut polled = false;
                    let first = std::future::poll_fn(|context| {
                        // Once the receive is armed the clock has precedence, so that it wins when it can.
                        if polled && clock.as_mut().poll(context).is_ready() {
                            return Poll::Ready(None);
                        }
                        polled = true;
                        let result = receive.as_mut().poll(context).map(Some);
                        if result.is_pending() && clock.as_mut().poll(context).is_ready() {
                            return Poll::Ready(None);
                        }
                        result
                    });
                    if let Some(result) = first.await {
                        break result.unwrap();
                    }
                    reactor.turn(Wait::Not).unwrap();
                };
                assert_eq!(received.bytes(), number.to_ne_bytes());
            }
        });
        sender.join().unwrap();
    }

    fn an_exchange_brings_the_answer(reactor: &Reactor) {
        let (object, server) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let server = Socket::wrap(reactor, server).unwrap();
        let executor = Executor::new(reactor);
        let own = reactor.clone();
        executor.spawn(async move {
            while let Ok(mut call) = server.receive().await {
                let answer = Socket::wrap(&own, call.take_descriptor().unwrap()).unwrap();
                answer.finish(call.bytes()).unwrap();
            }
        });
        executor.block_on(async {
            for number in 0..100_u8 {
                let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
                let call = Message::from(&[number]).with_descriptor(far);
                assert_eq!(object.exchange(call, &near).await.unwrap().bytes(), [number]);
            }
        });
    }

    fn an_exchange_says_what_failed(reactor: &Reactor) {
        let (object, server) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let call = Message::from("call").with_descriptor(far);
        let dropped = settle(reactor, async {
            let mut exchange = pin!(object.exchange(call, &near));
            std::future::poll_fn(|context| {
                assert!(exchange.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            turn(reactor);
            // Never read: the far end dies with the queue.
            drop(server);
            exchange.await
        });
        assert!(matches!(dropped, Err(ExchangeError::Receive(ReceiveError::Closed))), "{dropped:?}");

        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let gone = settle(reactor, object.exchange(Message::from("call").with_descriptor(far), &near));
        assert!(matches!(gone, Err(ExchangeError::Send(SendError::Gone))), "{gone:?}");
    }

    fn the_descriptor_of_an_idle_socket_is_given_back(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        settle(reactor, async {
            near.send("there").await.unwrap();
            far.receive().await.unwrap();
        });
        let (near, far) = (near.into_fd().unwrap(), far.into_fd().unwrap());
        assert!(!socket_passcred(&far).unwrap());
        testing::send_packet(&near, b"and on", &[]).unwrap();
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"and on");
        // It can be wrapped again, under another or the same number.
        let far = Socket::wrap(reactor, far).unwrap();
        testing::send_packet(&near, b"again", &[]).unwrap();
        assert_eq!(settle(reactor, far.receive()).unwrap().bytes(), b"again");
    }

    fn credentials_somebody_asked_for_before_are_asked_for_after(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        set_socket_passcred(&near, true).unwrap();
        let near = Socket::wrap(reactor, near).unwrap();
        testing::send_packet(&far, b"x", &[]).unwrap();
        settle(reactor, near.receive()).unwrap();
        assert!(socket_passcred(near.into_fd().unwrap()).unwrap());
    }

    fn a_busy_socket_keeps_its_descriptor(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let send = near.send("on its way");
        let near = near.into_fd().unwrap_err();
        settle(reactor, send).unwrap();
        drop(near.into_fd().unwrap());
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"on its way");
    }

    /// The receive is asked home and the socket goes; with a turn or two in between.
    fn a_receive_that_nobody_awaits_does_not_keep_the_descriptor(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            turn(reactor);
            let near = into_fd_soon(reactor, near);
            testing::send_packet(&far, b"for the next", &[]).unwrap();
            assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"for the next");
        }
    }

    fn a_message_that_nobody_has_taken_keeps_the_descriptor(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            turn(reactor);
            testing::send_packet(&far, b"not to be lost", &[]).unwrap();
            turn(reactor);
            let mut near = near.into_fd().unwrap_err();
            turn(reactor);
            near = near.into_fd().unwrap_err();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"not to be lost");
            drop(into_fd_soon(reactor, near));
        }
    }

    /// A socket that was asked for its descriptor in vain serves on.
    fn a_socket_that_stayed_receives_on(reactor: &Reactor) {
        for streams in [false, true] {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            turn(reactor);
            let near = near.into_fd().unwrap_err();
            for number in 0..10_u8 {
                testing::send_packet(&far, &[number], &[]).unwrap();
                assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
            }
        }
    }

    fn a_full_queue_that_emptied_does_not_keep_the_descriptor(reactor: &Reactor) {
        let (near, far) = testing::packet_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        while near.try_send("filler").is_ok() {}
        let send = near.send("after a wait");
        turn(reactor);
        for _ in 0..3 {
            testing::receive_packet(&far).unwrap();
        }
        // By the clock: the kernel still says "not writable".
        settle(reactor, send).unwrap();
        drop(into_fd_soon(reactor, near));
    }

    /// A connection taken for somebody who has gone meanwhile is the next one's.
    fn a_dropped_accept_loses_no_connection(reactor: &Reactor) {
        let path = std::env::temp_dir().join(format!("sendright-withdrawal-{}", std::process::id()));
        let listener = Socket::listen(reactor, &path, Kind::SeqPacket).unwrap();
        poll_once(listener.accept());
        let mut accept = Box::pin(listener.accept());
        assert!(accept.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let connected = settle(reactor, Socket::connect(reactor, &path, Kind::SeqPacket)).unwrap();
        std::fs::remove_file(&path).unwrap();
        turn(reactor);
        drop(accept);
        turn(reactor);
        let accepted = settle(reactor, listener.accept()).unwrap();
        settle(reactor, connected.send("hello")).unwrap();
        assert_eq!(settle(reactor, accepted.receive()).unwrap().bytes(), b"hello");
    }

    fn a_send_may_outlive_its_socket(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let (first, second) = (near.send("first"), near.send("second"));
        drop(near);
        settle(reactor, first).unwrap();
        turn(reactor);
        drop(second);
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"first");
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"second");
        assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
    }

    fn a_send_taken_back_after_its_socket_lets_the_socket_close(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        while near.try_send("filler").is_ok() {}
        let send = near.send("never");
        turn(reactor);
        drop(near);
        turn(reactor);
        drop(send);
        turn(reactor);
        testing::set_nonblocking(&far);
        loop {
            let packet = testing::receive_packet(&far).unwrap();
            if packet.bytes.is_empty() {
                break;
            }
            assert_eq!(packet.bytes, b"filler");
        }
    }

    /// A waker is user code, and so is its end.
    fn a_waker_whose_end_drops_a_socket_is_no_trouble(reactor: &Reactor) {
        // A kernel that is slow with everything needs more of them than most.
        const TURNS_MAX: usize = 100;
        struct Holding(RefCell<Option<Socket>>);
        impl Drop for Holding {
            fn drop(&mut self) {
                // Not borrowed: both of these want the reactor's table.
                if let Some(socket) = self.0.take() {
                    socket.post(&[b"dropped with a waker"], Vec::new());
                }
            }
        }
        // A waker must be `Send`; this one never leaves its thread, as the socket in it must not.
        let holding = |socket| waker::local(Rc::new(Holding(RefCell::new(Some(socket)))));
        for way in 0..4 {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            let (held, held_far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            let waker = holding(held);
            let mut context = Context::from_waker(&waker);
            assert!(near.poll_receive(&mut context).is_pending());
            drop(waker);
            match way {
                0 => drop(near),
                1 => assert!(near.poll_receive(&mut Context::from_waker(Waker::noop())).is_pending()),
                2 => {
                    testing::send_packet(&far, b"wake", &[]).unwrap();
                    turn(reactor);
                }
                _ => {
                    drop(far);
                    turn(reactor);
                }
            }
            testing::set_nonblocking(&held_far);
            let told = (0..TURNS_MAX).find_map(|_| {
                turn(reactor);
                testing::receive_packet(&held_far).ok()
            });
            assert_eq!(told.unwrap().bytes, b"dropped with a waker");
        }
    }
}

// What needs other threads, real processes, or turns that can be counted.
on_each_driver! {
    /// A message that came while we had asked for one, and that we have not taken, is theirs.
    fn a_dropped_shared_end_leaves_to_others_what_has_come(reactor: &Reactor) {
        for (streams, armed) in [(false, false), (false, true), (true, false), (true, true)] {
            let (near, far) = testing::packet_pair();
            let other = near.try_clone().unwrap();
            testing::set_nonblocking(&other);
            let near = Socket::wrap(reactor, near).unwrap();
            if streams {
                near.stream();
            }
            poll_once(near.receive());
            if armed {
                turn(reactor);
            }
            testing::send_packet(&far, b"for whoever takes it", &[]).unwrap();
            drop(near);
            turn(reactor);
            assert_eq!(testing::receive_packet(&other).unwrap().bytes, b"for whoever takes it");
        }
    }

    /// Nobody takes what a stream brings: it pauses, and later goes on where it was.
    fn a_backlog_pauses_the_stream_and_loses_nothing(reactor: &Reactor) {
        const MESSAGES: u32 = 1000;
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.stream();
        let far = Socket::wrap(reactor, far).unwrap();
        let sends: Vec<_> = (0..MESSAGES).map(|number| far.send(number.to_ne_bytes().as_slice())).collect();
        let executor = Executor::new(reactor);
        executor.settle();
        // Somewhere on the way: some have arrived, some fill the queue, most wait here.
        let arrived = reactor.stats().messages_received;
        assert!((64..=192).contains(&arrived), "{arrived}");
        assert!(far.unsent() > 0);
        executor.block_on(async {
            for number in 0..MESSAGES {
                assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
            }
            for send in sends {
                send.await.unwrap();
            }
        });
    }

    /// With no buffer of the pool left a message is received into memory of its own, as large as a packet may
    /// be. Six thousand sockets with three bytes each in their backlogs held more than a gigabyte.
    fn a_short_message_that_waits_keeps_no_long_memory(_reactor: &Reactor) {
        let config = Config { driver: testing::driver(), buffers: 1, ..Config::default() };
        let reactor = Reactor::with_config(config).unwrap();
        let (near, far) = Socket::pair(&reactor, Kind::SeqPacket).unwrap();
        near.stream();
        for number in 0..10_u8 {
            testing::send_packet(&far, &[number], &[]).unwrap();
        }
        turn(&reactor);
        for number in 0..10_u8 {
            let bytes = near.try_receive().unwrap().unwrap().into_bytes();
            assert_eq!(bytes, [number]);
            assert!(bytes.capacity() < 1024, "{}", bytes.capacity());
        }
    }

    fn a_backlog_of_large_messages_pauses_sooner(reactor: &Reactor) {
        const MESSAGES: u8 = 100;
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        near.stream();
        let far = Socket::wrap(reactor, far).unwrap();
        let sends: Vec<_> = (0..MESSAGES).map(|number| far.send(vec![number; 60_000])).collect();
        let executor = Executor::new(reactor);
        executor.settle();
        let arrived = reactor.stats().messages_received;
        assert!((17..=60).contains(&arrived), "{arrived}");
        executor.block_on(async {
            for number in 0..MESSAGES {
                assert_eq!(near.receive().await.unwrap().bytes(), vec![number; 60_000]);
            }
            for send in sends {
                send.await.unwrap();
            }
        });
    }
}

mod waker {
    //! A waker around an `Rc`, which only a test that stays on one thread may have. Built on `Wake` with a
    //! guard instead of by hand, so that no unsafe is needed.

    use std::rc::Rc;
    use std::sync::{Arc, Mutex};
    use std::task::{Wake, Waker};
    use std::thread::ThreadId;
    use std::{any::Any, cell::RefCell, collections::HashMap};

    thread_local! {
        static KEPT: RefCell<HashMap<usize, Rc<dyn Any>>> = RefCell::default();
    }

    struct Guard {
        number: usize,
        home: ThreadId,
    }

    impl Wake for Guard {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            assert_eq!(self.home, std::thread::current().id());
            drop(KEPT.with(|kept| kept.borrow_mut().remove(&self.number)));
        }
    }

    pub fn local(value: Rc<dyn Any>) -> Waker {
        static NUMBERS: Mutex<usize> = Mutex::new(0);
        let mut number = NUMBERS.lock().unwrap();
        *number += 1;
        KEPT.with(|kept| kept.borrow_mut().insert(*number, value));
        Waker::from(Arc::new(Guard { number: *number, home: std::thread::current().id() }))
    }
}
