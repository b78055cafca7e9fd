//! The reactor asleep in a foreign loop: a plain epoll loop, level and edge triggered, that owns the thread.
//! Whatever there is to do makes the descriptor readable, and nothing else does: the host here turns its
//! guest once for each time it is told to, and any other host of the descriptor is told the same.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ring::{Config, Executor, Guest, Kind, ROUNDS_MAX, Reactor, ReceiveError, Socket, Wait, WaitPolicy};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use testing::{
    Host, TRIGGERS, Trigger, WAIT_TIME_MAX, guest, helper, limit_descriptors, on_each_driver, packet_pair,
    receive_packet, send_packet, start_helper,
};

fn is_readable(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() > 0
}

/// A socket of the guest's, and the bare other end.
fn ends(reactor: &Reactor) -> (Socket, OwnedFd) {
    Socket::pair(reactor, Kind::SeqPacket).unwrap()
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

helper! {
    /// Echoes until nobody is left.
    fn echoes(descriptors: Vec<OwnedFd>) {
        while let Ok(packet) = receive_packet(&descriptors[0])
            && !packet.bytes.is_empty()
        {
            send_packet(&descriptors[0], &packet.bytes, &[]).unwrap();
        }
    }

    /// Sends as many numbered messages as it is told.
    fn sends_many(descriptors: Vec<OwnedFd>) {
        let count: u32 = testing::helper_argument().parse().unwrap();
        for number in 0..count {
            send_packet(&descriptors[0], &number.to_ne_bytes(), &[]).unwrap();
        }
    }

    /// For each word on the second, a message on the first while the other side waits for the second, and
    /// then one there.
    fn speaks_while_the_host_listens_elsewhere(descriptors: Vec<OwnedFd>) {
        let [guest, host] = [&descriptors[0], &descriptors[1]];
        while let Ok(packet) = receive_packet(host)
            && !packet.bytes.is_empty()
        {
            for _ in 0..3 {
                send_packet(guest, b"for the guest", &[]).unwrap();
            }
            send_packet(host, b"for the host", &[]).unwrap();
        }
    }
}

on_each_driver! {
    fn another_process_wakes_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            let helper = start_helper!(echoes, vec![far]);
            host.runs(async move {
                for number in 0..200_u32 {
                    near.send(number.to_ne_bytes().as_slice()).await.unwrap();
                    assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
                }
            });
            // The socket is closed in a turn, which the host is told to take.
            host.calm();
            helper.succeeded();
        }
    }

    fn the_death_of_the_other_side_wakes_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            let mut helper = start_helper!(echoes, vec![far]);
            let ended = Rc::new(Cell::new(false));
            let told = Rc::clone(&ended);
            host.guest().executor().spawn(async move {
                told.set(matches!(near.receive().await, Err(ReceiveError::Closed)));
            });
            host.calm();
            helper.kill();
            host.sleep_until(|| ended.get());
        }
    }

    fn nothing_is_lost_while_the_host_sleeps(_reactor: &Reactor) {
        const COUNT: u32 = 5_000;
        for trigger in TRIGGERS {
            for streams in [false, true] {
                let mut host = Host::new(trigger);
                let (near, far) = ends(host.reactor());
                if streams {
                    near.stream();
                }
                let helper = start_helper!(sends_many, vec![far], COUNT.to_string());
                host.runs(async move {
                    for number in 0..COUNT {
                        assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
                    }
                    assert!(matches!(near.receive().await, Err(ReceiveError::Closed)));
                });
                helper.succeeded();
            }
        }
    }

    /// All of them are there when the host looks for the first time, and it is told once if edges are all it
    /// hears of.
    fn what_came_before_the_host_looked_is_not_lost(_reactor: &Reactor) {
        const COUNT: u32 = 200;
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            let taken = Rc::new(Cell::new(0));
            let counted = Rc::clone(&taken);
            host.guest().executor().spawn(async move {
                while near.receive().await.is_ok() {
                    counted.set(counted.get() + 1);
                }
            });
            host.calm();
            for number in 0..COUNT {
                send_packet(&far, &number.to_ne_bytes(), &[]).unwrap();
            }
            host.sleep_until(|| taken.get() == COUNT);
        }
    }

    /// Sockets on which nobody receives make as much noise as one look at the kernel brings, and more.
    fn a_message_behind_many_that_nobody_wants_is_not_lost(_reactor: &Reactor) {
        const NOISY: usize = 300;
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (noisy, others): (Vec<_>, Vec<_>) = (0..NOISY).map(|_| ends(host.reactor())).unzip();
            let (near, far) = ends(host.reactor());
            let noisy = Rc::new(noisy);
            let (heard, done) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
            for place in 0..NOISY {
                let (noisy, heard) = (Rc::clone(&noisy), Rc::clone(&heard));
                host.guest().executor().spawn(async move {
                    noisy[place].receive().await.unwrap();
                    heard.set(heard.get() + 1);
                });
            }
            let told = Rc::clone(&done);
            host.guest().executor().spawn(async move {
                assert_eq!(near.receive().await.unwrap().bytes(), b"wanted");
                told.set(true);
            });
            // All of them are waited for before anything comes.
            host.calm();
            others.iter().for_each(|other| send_packet(other, b"wanted once", &[]).unwrap());
            host.sleep_until(|| heard.get() == NOISY);
            host.calm();
            others.iter().for_each(|other| send_packet(other, b"not wanted", &[]).unwrap());
            send_packet(&far, b"wanted", &[]).unwrap();
            host.sleep_until(|| done.get());
        }
    }

    fn a_timer_wakes_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let start = Instant::now();
            let fired = Rc::new(Cell::new(0));
            for milliseconds in [9, 1, 5] {
                let (fired, reactor) = (Rc::clone(&fired), host.reactor().clone());
                let moment = start + Duration::from_millis(milliseconds);
                host.guest().executor().spawn(async move {
                    reactor.sleep_until(moment).await;
                    assert!(Instant::now() >= moment, "early");
                    fired.set(fired.get() + 1);
                });
            }
            host.sleep_until(|| fired.get() == 3);
        }
    }

    fn an_earlier_timer_wakes_the_host_earlier(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        let reactor = host.reactor().clone();
        let late = reactor.clone();
        host.guest().executor().spawn(async move { late.sleep(Duration::from_secs(3600)).await });
        host.calm();
        host.runs(async move { reactor.sleep(Duration::from_millis(1)).await });
        let reactor = host.reactor().clone();
        host.runs(async move { reactor.sleep(Duration::from_millis(1)).await });
    }

    /// The host's own code may hold a future of ours and poll it itself.
    fn a_timer_set_between_two_turns_wakes_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            host.calm();
            let woken = Arc::new(Flag(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&woken));
            let mut sleep = Box::pin(host.reactor().sleep(Duration::from_millis(2)));
            // On a busy machine it may be over already.
            if sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                host.sleep_until(|| woken.0.load(Ordering::Acquire));
            }
        }
    }

    fn a_timer_that_was_unset_wakes_the_host_at_most_once(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        for _ in 0..50 {
            let sleep = host.reactor().sleep(Duration::from_millis(1));
            host.runs(async move {
                let mut sleep = Box::pin(sleep);
                poll_fn(|context| {
                    // On a busy machine it may be over already.
                    let _ = sleep.as_mut().poll(context);
                    Poll::Ready(())
                })
                .await;
            });
        }
        let before = host.calls();
        while host.sleep_at_most(Duration::from_millis(20)) {}
        assert!(host.calls() - before <= 1, "{} calls for nothing", host.calls() - before);
    }

    fn a_task_spawned_between_two_turns_runs(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            for _ in 0..20 {
                host.calm();
                let ran = Rc::new(Cell::new(false));
                let told = Rc::clone(&ran);
                host.guest().executor().spawn(async move { told.set(true) });
                host.sleep_until(|| ran.get());
            }
        }
    }

    fn a_task_woken_between_two_turns_runs(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let stop = Rc::new(Cell::new(false));
            let polls = Rc::new(Cell::new(0));
            let slot: Rc<RefCell<Option<Waker>>> = Rc::default();
            let (stops, counted, kept) = (Rc::clone(&stop), Rc::clone(&polls), Rc::clone(&slot));
            host.guest().executor().spawn(poll_fn(move |context| {
                counted.set(counted.get() + 1);
                *kept.borrow_mut() = Some(context.waker().clone());
                if stops.get() { Poll::Ready(()) } else { Poll::Pending }
            }));
            for round in 1..20 {
                host.sleep_until(|| polls.get() == round);
                host.calm();
                slot.borrow_mut().take().unwrap().wake();
            }
            stop.set(true);
            host.calm();
        }
    }

    /// As a callback of the host's might: nothing but a future, polled by hand.
    fn what_is_sent_between_two_turns_goes_out(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            host.calm();
            let mut sending = Box::pin(near.send("between"));
            assert!(poll_once(sending.as_mut()).is_pending());
            assert!(is_readable(host.guest()));
            host.calm();
            assert_eq!(receive_packet(&far).unwrap().bytes, b"between");
            assert!(matches!(poll_once(sending.as_mut()), Poll::Ready(Ok(()))));
        }
    }

    fn what_is_received_between_two_turns_arrives(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            host.calm();
            let woken = Arc::new(Flag(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&woken));
            let mut receiving = Box::pin(near.receive());
            assert!(receiving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            host.calm();
            send_packet(&far, b"at last", &[]).unwrap();
            host.sleep_until(|| woken.0.load(Ordering::Acquire));
            let Poll::Ready(Ok(message)) = poll_once(receiving.as_mut()) else { panic!("nothing arrived") };
            assert_eq!(message.bytes(), b"at last");
        }
    }

    fn a_socket_dropped_between_two_turns_is_closed(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            near.stream();
            host.calm();
            drop(near);
            host.calm();
            assert_eq!(receive_packet(&far).unwrap().bytes, b"");
        }
    }

    /// Closing ends that others hold too takes looks at the kernel at once, which must not swallow what the
    /// host was to be told.
    fn a_wake_up_is_not_lost_over_the_closing_of_shared_sockets(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let woken = Arc::new(Mutex::new(None::<Waker>));
            let (slot, polls) = (Arc::clone(&woken), Rc::new(Cell::new(0)));
            let counted = Rc::clone(&polls);
            host.guest().executor().spawn(poll_fn(move |context| {
                counted.set(counted.get() + 1);
                *slot.lock().unwrap() = Some(context.waker().clone());
                Poll::<()>::Pending
            }));
            for round in 1..20 {
                let pairs: Vec<(OwnedFd, OwnedFd)> = (0..12).map(|_| packet_pair()).collect();
                let (shared, _fars): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                let shared: Vec<Socket> =
                    shared.into_iter().map(|near| Socket::wrap(host.reactor(), near).unwrap()).collect();
                shared.iter().for_each(Socket::stream);
                host.calm();
                assert_eq!(polls.get(), round);
                let waker = woken.lock().unwrap().take().unwrap();
                thread::spawn(move || waker.wake()).join().unwrap();
                drop(shared);
                host.sleep_until(|| polls.get() > round);
            }
        }
    }

    fn a_companion_made_between_two_turns_runs(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Edge);
        host.calm();
        let ran = Rc::new(Cell::new(false));
        let told = Rc::clone(&ran);
        let _companion = host.reactor().companion(async move { told.set(true) });
        host.sleep_until(|| ran.get());
    }

    fn another_thread_wakes_a_task(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let slot: Arc<(AtomicBool, Mutex<Option<Waker>>)> = Arc::default();
            let other = Arc::clone(&slot);
            let wakes = thread::spawn(move || {
                for _ in 0..3_000 {
                    while other.0.swap(true, Ordering::AcqRel) {
                        thread::yield_now();
                    }
                    if let Some(waker) = other.1.lock().unwrap().take() {
                        waker.wake();
                    }
                }
            });
            host.runs(async move {
                for _ in 0..3_000 {
                    poll_fn(|context| {
                        *slot.1.lock().unwrap() = Some(context.waker().clone());
                        if slot.0.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
            });
            wakes.join().unwrap();
        }
    }

    fn a_remote_wakes_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            for _ in 0..100 {
                host.calm();
                let remote = host.reactor().remote();
                let wakes = thread::spawn(move || remote.wake());
                host.sleep();
                wakes.join().unwrap();
            }
        }
    }

    /// Beside a ring of another kind each completion interrupts the host's thread.
    fn the_hosts_sleep_is_never_interrupted(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        let (near, far) = ends(host.reactor());
        let (here, there) = packet_pair();
        let helper = start_helper!(speaks_while_the_host_listens_elsewhere, vec![far, there]);
        near.stream();
        host.calm();
        let taken = Rc::new(Cell::new(0));
        let counted = Rc::clone(&taken);
        host.guest().executor().spawn(async move {
            while near.receive().await.is_ok() {
                counted.set(counted.get() + 1);
            }
        });
        for round in 1..=200 {
            send_packet(&here, b"speak", &[]).unwrap();
            // `sleep` fails on any error, the interruption included.
            host.sleep_until(|| taken.get() == 3 * round);
            assert_eq!(receive_packet(&here).unwrap().bytes, b"for the host");
        }
        drop(here);
        helper.succeeded();
    }

    /// An ordinary receive of the host's, with a time limit, which a signal or a notification would cut off.
    fn the_hosts_own_system_calls_are_never_interrupted(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        let (near, far) = ends(host.reactor());
        let (here, there) = packet_pair();
        set_socket_timeout(&here, Timeout::Recv, Some(WAIT_TIME_MAX)).unwrap();
        let helper = start_helper!(speaks_while_the_host_listens_elsewhere, vec![far, there]);
        near.stream();
        let taken = Rc::new(Cell::new(0));
        let counted = Rc::clone(&taken);
        host.guest().executor().spawn(async move {
            while near.receive().await.is_ok() {
                counted.set(counted.get() + 1);
            }
        });
        host.calm();
        for round in 1..=200 {
            send_packet(&here, b"speak", &[]).unwrap();
            // Three messages arrive for the guest during this.
            assert_eq!(receive_packet(&here).unwrap().bytes, b"for the host");
            host.sleep_until(|| taken.get() == 3 * round);
        }
        drop(here);
        helper.succeeded();
    }

    /// With everything at hand that could wake it: sockets that receive, a timer, tasks that wait.
    fn an_idle_guest_does_not_call(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            let (other, _quiet) = ends(host.reactor());
            other.stream();
            let (echo, later) = (Rc::new(near), host.reactor().clone());
            host.guest().executor().spawn(async move { later.sleep(Duration::from_secs(3600)).await });
            let echoes = Rc::clone(&echo);
            host.guest().executor().spawn(async move {
                while let Ok(message) = echoes.receive().await {
                    echoes.send(message.bytes()).await.unwrap();
                }
            });
            host.calm();
            send_packet(&far, b"once", &[]).unwrap();
            host.sleep();
            assert_eq!(receive_packet(&far).unwrap().bytes, b"once");
            host.calm();
            // A timer of the host's own says when it has waited long enough.
            let before = host.calls();
            assert!(!host.sleep_at_most(Duration::from_millis(50)), "there was nothing to do");
            assert_eq!(host.calls(), before);
            for _ in 0..100 {
                host.guest().turn().unwrap();
                assert!(!is_readable(host.guest()), "a turn with nothing to do leaves nothing to do");
            }
        }
    }

    /// One message is one call of the host, not one and another for good measure.
    fn a_message_calls_once(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = ends(host.reactor());
            near.stream();
            let echo = Rc::new(near);
            host.guest().executor().spawn(async move {
                while let Ok(message) = echo.receive().await {
                    echo.send(message.bytes()).await.unwrap();
                }
            });
            host.calm();
            let before = host.calls();
            for _ in 0..100 {
                send_packet(&far, b"one", &[]).unwrap();
                host.sleep();
                assert_eq!(receive_packet(&far).unwrap().bytes, b"one");
            }
            host.calm();
            let calls = host.calls() - before;
            assert!(calls <= 101, "{calls} calls for 100 messages");
        }
    }

    fn two_guests_share_a_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let other = guest();
            epoll::add(host.epoll(), &other, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
            let (near, far) = ends(host.reactor());
            let far = Socket::wrap(other.reactor(), far).unwrap();
            let rounds = Rc::new(Cell::new(0));
            let counted = Rc::clone(&rounds);
            other.executor().spawn(async move {
                while let Ok(message) = far.receive().await {
                    far.send(message.bytes()).await.unwrap();
                }
            });
            host.guest().executor().spawn(async move {
                for _ in 0..100 {
                    near.send("over").await.unwrap();
                    near.receive().await.unwrap();
                    counted.set(counted.get() + 1);
                }
            });
            while rounds.get() < 100 {
                let mut events = Vec::with_capacity(8);
                epoll::wait(host.epoll(), spare_capacity(&mut events), None).unwrap();
                for event in &events {
                    let turned = if event.data.u64() == 0 { host.guest() } else { &other };
                    turned.turn().unwrap();
                }
            }
            epoll::delete(host.epoll(), &other).unwrap();
            host.calm();
        }
    }

    /// In an ordinary loop the guest is one of many.
    fn the_hosts_other_descriptors_are_served_beside_a_busy_guest(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let host = Host::new(trigger);
            let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            epoll::add(host.epoll(), &bell, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
            let polls = Rc::new(Cell::new(0_usize));
            let counted = Rc::clone(&polls);
            // Never done, and always ready.
            host.guest().executor().spawn(poll_fn(move |context| {
                counted.set(counted.get() + 1);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            }));
            for round in 1..=20 {
                assert!(host.guest().turn().unwrap().more);
                assert_eq!(polls.get(), round * ROUNDS_MAX);
                assert!(is_readable(host.guest()));
            }
            let before = polls.get();
            rustix::io::write(&bell, &1_u64.to_ne_bytes()).unwrap();
            let mut events: Vec<epoll::Event> = Vec::with_capacity(8);
            epoll::wait(host.epoll(), spare_capacity(&mut events), None).unwrap();
            assert!(events.iter().any(|event| event.data.u64() == 1), "the host's own is not starved");
            assert!(events.iter().any(|event| event.data.u64() == 0), "and the guest is not forgotten");
            host.guest().turn().unwrap();
            assert!(polls.get() > before);
        }
    }

    fn a_turn_of_few_rounds_has_no_more_to_do(_reactor: &Reactor) {
        let guest = guest();
        let left = Rc::new(Cell::new(ROUNDS_MAX - 2));
        let counted = Rc::clone(&left);
        guest.executor().spawn(poll_fn(move |context| {
            if counted.get() == 0 {
                return Poll::Ready(());
            }
            counted.set(counted.get() - 1);
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        let after = guest.turn().unwrap();
        assert!(!after.more);
        assert!(!after.tasks_left);
        assert_eq!(left.get(), 0);
    }

    fn a_task_that_panics_leaves_the_rest_to_the_next_turn(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let ran = Rc::new(Cell::new(false));
            let told = Rc::clone(&ran);
            host.guest().executor().spawn(async { panic!("expected by the test") });
            host.guest().executor().spawn(async move { told.set(true) });
            assert!(catch_unwind(AssertUnwindSafe(|| host.guest().turn())).is_err());
            assert!(!ran.get());
            host.sleep_until(|| ran.get());
        }
    }

    fn a_guest_can_be_its_own_host(_reactor: &Reactor) {
        let guest = guest();
        let (near, far) = ends(guest.reactor());
        let helper = start_helper!(echoes, vec![far]);
        let reactor = guest.reactor().clone();
        guest.executor().block_on(async move {
            for number in 0..100_u32 {
                near.send(number.to_ne_bytes().as_slice()).await.unwrap();
                assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
            }
            reactor.sleep(Duration::from_millis(1)).await;
        });
        guest.executor().settle();
        helper.succeeded();
        // And bare turns, asleep until another thread says otherwise.
        let done = Arc::new(AtomicBool::new(false));
        let (told, remote) = (Arc::clone(&done), guest.reactor().remote());
        let wakes = thread::spawn(move || {
            told.store(true, Ordering::Release);
            remote.wake();
        });
        while !done.load(Ordering::Acquire) {
            guest.reactor().turn(Wait::Forever).unwrap();
        }
        wakes.join().unwrap();
        let moment = Instant::now() + Duration::from_millis(2);
        while Instant::now() < moment {
            guest.reactor().turn(Wait::Until(moment)).unwrap();
        }
    }

    fn what_block_on_leaves_to_do_calls_the_host(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            host.calm();
            let ran = Rc::new(Cell::new(0));
            let told = Rc::clone(&ran);
            let spawner = host.guest().executor().spawner();
            host.guest().executor().block_on(async move {
                spawner.spawn(poll_fn(move |context| {
                    told.set(told.get() + 1);
                    if told.get() < 10 {
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                }));
            });
            host.sleep_until(|| ran.get() == 10);
        }
    }

    fn tasks_of_another_executor_are_its_owners_affair(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        let other = Executor::new(host.reactor());
        let ran = Rc::new(Cell::new(false));
        let told = Rc::clone(&ran);
        other.spawn(async move { told.set(true) });
        host.calm();
        assert!(!ran.get());
        other.settle();
        assert!(ran.get());
        host.calm();
    }

    /// The kernel says "writable" only when three quarters of the queue are free; a timer of the reactor's
    /// own tries before that.
    fn a_full_queue_that_others_hold_too_is_tried_again(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (near, far) = packet_pair();
            let near = Socket::wrap(host.reactor(), near).unwrap();
            while near.try_send("fill").is_ok() {}
            let sent = Rc::new(Cell::new(false));
            let told = Rc::clone(&sent);
            host.guest().executor().spawn(async move {
                near.send("one more").await.unwrap();
                told.set(true);
            });
            host.calm();
            assert!(!sent.get());
            receive_packet(&far).unwrap();
            host.sleep_until(|| sent.get());
        }
    }

    /// Nothing announces that a descriptor was closed; the receive asks again on a timer of the driver's.
    fn a_receive_that_waits_for_descriptors_goes_on(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            // What the round before has let go of is closed by others, who may be slow.
            ring::closer_idle();
            let _limit = limit_descriptors(64);
            let config = Config { driver: testing::driver(), descriptors_reserve: 0, ..Config::default() };
            let mut host = Host::with(Guest::with_config(config).unwrap(), trigger);
            let (near, far) = ends(host.reactor());
            near.set_descriptors_max(1);
            let taken = Rc::new(RefCell::new(Vec::new()));
            let kept = Rc::clone(&taken);
            host.guest().executor().spawn(async move {
                while let Ok(message) = near.receive().await {
                    assert_eq!(message.descriptors(), 1);
                    kept.borrow_mut().push(message);
                }
            });
            let mut sent = 0;
            // One message at a time, until one does not come.
            while taken.borrow().len() == sent {
                send_packet(&far, b"with one", &[far.as_fd()]).unwrap();
                sent += 1;
                host.calm();
            }
            for _ in 0..3 {
                drop(taken.borrow_mut().pop());
                sent -= 1;
                host.sleep_until(|| taken.borrow().len() == sent);
                send_packet(&far, b"with one", &[far.as_fd()]).unwrap();
                sent += 1;
            }
            drop(taken);
        }
    }

    /// With all it can have under way.
    fn a_dropped_guest_leaves_nothing(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Edge);
        let (near, far) = ends(host.reactor());
        near.stream();
        let reactor = host.reactor().clone();
        host.guest().executor().spawn(async move {
            let _held = far;
            reactor.sleep(Duration::from_secs(3600)).await;
        });
        host.guest().executor().spawn(async move {
            let _ = near.receive().await;
            pending::<()>().await;
        });
        host.calm();
        drop(host.into_guest());
    }

    fn sockets_outlive_their_guest(_reactor: &Reactor) {
        let guest = guest();
        let (near, far) = ends(guest.reactor());
        drop(guest);
        near.try_send("still here").unwrap();
        assert_eq!(receive_packet(&far).unwrap().bytes, b"still here");
        drop(near);
        assert_eq!(receive_packet(&far).unwrap().bytes, b"");
    }

    fn a_guest_never_spins(_reactor: &Reactor) {
        let config = Config { driver: testing::driver(), wait: WaitPolicy::spin(), ..Config::default() };
        let mut host = Host::with(Guest::with_config(config).unwrap(), Trigger::Level);
        let (near, far) = ends(host.reactor());
        let helper = start_helper!(echoes, vec![far]);
        host.runs(async move {
            for _ in 0..20 {
                near.send("over").await.unwrap();
                near.receive().await.unwrap();
            }
        });
        host.calm();
        helper.succeeded();
        assert_eq!(host.reactor().stats().spins, 0);
    }
}

/// Remembers that it was woken.
struct Flag(AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
