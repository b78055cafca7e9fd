//! Tasks, timers, companions and the bell: everything is polled when it should be, and nothing is lost.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ring::{Executor, Kind, Reactor, Socket, Wait};
use testing::{on_each_driver, poll_once, settle};

/// Says so when it is dropped.
struct Bell(Rc<Cell<u32>>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

on_each_driver! {
    fn a_sleep_longer_than_the_clock_can_say_is_a_long_sleep(reactor: &Reactor) {
        poll_once(reactor.sleep(Duration::MAX));
        settle(reactor, reactor.sleep(Duration::ZERO));
    }

    fn what_has_taken_a_turn_and_left_nothing_behind_ends_without_another(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        testing::send_packet(&far, b"here", &[]).unwrap();
        let turns = || reactor.stats().turns;
        let before = turns();
        assert_eq!(executor.block_on(near.receive()).unwrap().bytes(), b"here");
        assert_eq!(turns() - before, 1);
        // What is queued at the end leaves all the same.
        let before = turns();
        executor.block_on(async {
            testing::send_packet(&far, b"again", &[]).unwrap();
            near.receive().await.unwrap();
            near.post(&[b"farewell"], Vec::new());
        });
        assert!(turns() - before > 1);
        assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"farewell");
    }

    /// Or nothing would ever come of what is polled like that.
    fn what_ends_at_once_takes_a_turn(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let before = reactor.stats().turns;
        executor.block_on(async {});
        assert_eq!(reactor.stats().turns - before, 1);
    }

    fn timers_fire_in_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let order = Rc::new(RefCell::new(Vec::new()));
        // Late enough for all of them to be asked for before one is over, on a busy machine too.
        let start = Instant::now() + Duration::from_millis(100);
        for (name, milliseconds) in [("third", 9), ("first", 1), ("second", 5), ("second again", 5)] {
            let (order, reactor) = (Rc::clone(&order), reactor.clone());
            let moment = start + Duration::from_millis(milliseconds);
            executor.spawn(async move {
                reactor.sleep_until(moment).await;
                assert!(Instant::now() >= moment, "{name} is early");
                order.borrow_mut().push(name);
            });
        }
        executor.block_on(reactor.sleep_until(start + Duration::from_millis(10)));
        executor.settle();
        assert_eq!(*order.borrow(), ["first", "second", "second again", "third"]);
    }

    fn a_dropped_sleep_wakes_nobody(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let mut sleep = Box::pin(reactor.sleep(Duration::from_secs(3600)));
        executor.block_on(poll_fn(|context| {
            assert!(sleep.as_mut().poll(context).is_pending());
            Poll::Ready(())
        }));
        assert!(executor.settle().next_timer.is_some());
        drop(sleep);
        assert_eq!(executor.settle().next_timer, None);
    }

    fn a_sleep_that_moves_to_another_task_wakes_that_one(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let mut sleep = Box::pin(reactor.sleep(Duration::from_millis(2)));
        executor.block_on(poll_fn(|context| {
            assert!(sleep.as_mut().poll(context).is_pending());
            Poll::Ready(())
        }));
        let done = Rc::new(Cell::new(false));
        let told = Rc::clone(&done);
        executor.spawn(async move {
            sleep.await;
            told.set(true);
        });
        executor.block_on(async {
            while !done.get() {
                reactor.sleep(Duration::from_millis(1)).await;
            }
        });
    }

    fn a_turn_until_a_moment_ends(reactor: &Reactor) {
        let moment = Instant::now() + Duration::from_millis(2);
        while Instant::now() < moment {
            reactor.turn(Wait::Until(moment)).unwrap();
        }
    }

    fn tasks_spawn_tasks(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let count = Rc::new(Cell::new(0));
        let (spawner, counted) = (executor.spawner(), Rc::clone(&count));
        executor.spawn(async move {
            for _ in 0..10 {
                let count = Rc::clone(&counted);
                assert!(spawner.spawn(async move { count.set(count.get() + 1) }));
            }
        });
        let settled = executor.settle();
        assert!(!settled.tasks_left);
        assert_eq!(count.get(), 10);
    }

    fn a_spawner_outlives_its_executor_in_vain(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let spawner = executor.spawner();
        drop(executor);
        let dropped = Rc::new(Cell::new(0));
        let bell = Bell(Rc::clone(&dropped));
        assert!(!spawner.spawn(async move { drop(bell) }));
        assert_eq!(dropped.get(), 1);
    }

    fn tasks_are_dropped_with_their_executor(reactor: &Reactor) {
        let dropped = Rc::new(Cell::new(0));
        let executor = Executor::new(reactor);
        for _ in 0..3 {
            let bell = Bell(Rc::clone(&dropped));
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            let reactor = reactor.clone();
            executor.spawn(async move {
                let _held = (bell, far, reactor);
                let _ = near.receive().await;
                pending::<()>().await;
            });
        }
        assert!(executor.settle().tasks_left);
        drop(executor);
        assert_eq!(dropped.get(), 3);
    }

    fn settle_runs_what_can_run_and_never_sleeps(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        executor.spawn(async move {
            while let Ok(call) = far.receive().await {
                far.send(call.bytes()).await.unwrap();
            }
        });
        let rounds = Rc::new(Cell::new(0));
        let counted = Rc::clone(&rounds);
        executor.spawn(async move {
            for _ in 0..50 {
                near.send("ping").await.unwrap();
                near.receive().await.unwrap();
                counted.set(counted.get() + 1);
            }
            pending::<()>().await;
        });
        while rounds.get() < 50 {
            let settled = executor.settle();
            assert!(settled.tasks_left);
            assert_eq!(settled.next_timer, None);
        }
    }

    fn another_thread_wakes_the_reactor(reactor: &Reactor) {
        let remote = reactor.remote();
        let done = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&done);
        let waker = thread::spawn(move || {
            told.store(true, Ordering::Release);
            remote.wake();
        });
        while !done.load(Ordering::Acquire) {
            reactor.turn(Wait::Forever).unwrap();
        }
        waker.join().unwrap();
        // And once more, in case that was seen without a sleep.
        let remote = reactor.remote();
        let waker = thread::spawn(move || remote.wake());
        reactor.turn(Wait::Forever).unwrap();
        waker.join().unwrap();
    }

    fn a_wake_before_the_sleep_ends_it(reactor: &Reactor) {
        reactor.turn(Wait::Not).unwrap();
        reactor.remote().wake();
        reactor.turn(Wait::Forever).unwrap();
    }

    fn a_remote_outlives_its_reactor(_reactor: &Reactor) {
        let reactor = testing::reactor();
        let remote = reactor.remote();
        drop(reactor);
        remote.wake();
        drop(remote);
    }

    /// A hundred thousand races between falling asleep and being woken.
    fn no_wake_up_is_lost(reactor: &Reactor) {
        const ROUNDS: u32 = 50_000;
        let turn = Arc::new(AtomicU32::new(0));
        let slot: Arc<Mutex<Option<Waker>>> = Arc::default();
        let (other_turn, other_slot) = (Arc::clone(&turn), Arc::clone(&slot));
        let other = thread::spawn(move || {
            for round in 0..ROUNDS {
                while other_turn.load(Ordering::Acquire) != 2 * round + 1 {
                    std::hint::spin_loop();
                    if round % 16 == 0 {
                        thread::yield_now();
                    }
                }
                other_turn.store(2 * round + 2, Ordering::Release);
                if let Some(waker) = other_slot.lock().unwrap().take() {
                    waker.wake();
                }
            }
        });
        settle(reactor, async {
            for round in 0..ROUNDS {
                turn.store(2 * round + 1, Ordering::Release);
                poll_fn(|context| {
                    *slot.lock().unwrap() = Some(context.waker().clone());
                    match turn.load(Ordering::Acquire) == 2 * round + 2 {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
            }
        });
        other.join().unwrap();
    }

    /// The same for a task that is not the one `block_on` runs.
    fn tasks_woken_by_other_threads_run(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let finished = Rc::new(Cell::new(0));
        let mut threads = Vec::new();
        for _ in 0..20 {
            let flag = Arc::new((AtomicBool::new(false), Mutex::new(None::<Waker>)));
            let set = Arc::clone(&flag);
            threads.push(thread::spawn(move || {
                set.0.store(true, Ordering::Release);
                if let Some(waker) = set.1.lock().unwrap().take() {
                    waker.wake();
                }
            }));
            let finished = Rc::clone(&finished);
            executor.spawn(async move {
                poll_fn(|context| {
                    *flag.1.lock().unwrap() = Some(context.waker().clone());
                    if flag.0.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                finished.set(finished.get() + 1);
            });
        }
        while finished.get() < 20 {
            executor.settle();
            if finished.get() < 20 {
                reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(10))).unwrap();
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }

    fn a_companion_runs_whoever_polls_what(reactor: &Reactor) {
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let echo = reactor.companion(async move {
            let far = far;
            loop {
                testing::set_nonblocking(&far);
                if let Ok(packet) = testing::receive_packet(&far) {
                    testing::send_packet(&far, &packet.bytes, &[]).unwrap();
                }
                let mut yielded = false;
                poll_fn(|context| {
                    context.waker().wake_by_ref();
                    if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        });
        settle(reactor, async {
            for number in 0..10_u8 {
                near.send([number].as_slice()).await.unwrap();
                assert_eq!(near.receive().await.unwrap().bytes(), [number]);
            }
        });
        drop(echo);
        near.try_send("nobody").unwrap_err();
    }

    fn a_companion_may_end_itself(reactor: &Reactor) {
        let dropped = Rc::new(Cell::new(0));
        let handle: Rc<RefCell<Option<ring::Companion>>> = Rc::default();
        let (own, bell) = (Rc::clone(&handle), Bell(Rc::clone(&dropped)));
        let companion = reactor.companion(async move {
            let _bell = bell;
            drop(own.borrow_mut().take());
            pending::<()>().await;
        });
        *handle.borrow_mut() = Some(companion);
        reactor.turn(Wait::Not).unwrap();
        assert_eq!(dropped.get(), 1);
    }

    fn a_companion_outlives_its_reactor_in_vain(_reactor: &Reactor) {
        let reactor = testing::reactor();
        let dropped = Rc::new(Cell::new(0));
        let bell = Bell(Rc::clone(&dropped));
        let companion = reactor.companion(async move {
            let _bell = bell;
            pending::<()>().await;
        });
        drop(reactor);
        assert_eq!(dropped.get(), 1);
        drop(companion);
    }

    /// Woken with its socket's message, it drops the socket instead.
    fn a_task_may_drop_its_socket_while_it_is_woken(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let mut fars = Vec::new();
        let sockets: Rc<RefCell<Vec<Socket>>> = Rc::default();
        for _ in 0..10 {
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            near.stream();
            sockets.borrow_mut().push(near);
            fars.push(far);
        }
        for place in 0..10 {
            let sockets = Rc::clone(&sockets);
            executor.spawn(poll_fn(move |context| {
                let mut all = sockets.borrow_mut();
                match all.get(place).map(|socket| socket.poll_receive(context)) {
                    Some(Poll::Ready(_)) => {
                        // Everybody's, its own included.
                        all.clear();
                        Poll::Ready(())
                    }
                    Some(Poll::Pending) => Poll::Pending,
                    None => Poll::Ready(()),
                }
            }));
        }
        executor.settle();
        for far in &fars {
            testing::send_packet(far, b"go", &[]).unwrap();
        }
        while !sockets.borrow().is_empty() {
            executor.settle();
        }
        executor.settle();
        for far in &fars {
            assert!(testing::send_packet(far, b"gone", &[]).is_err());
        }
    }

    /// The other was ready in the same round, and has not been polled yet.
    fn a_task_that_takes_turns_itself_hears_of_another_of_its_round(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let done = Rc::new(Cell::new(false));
        let (inner, seen) = (executor.clone(), Rc::clone(&done));
        executor.spawn(async move {
            inner.block_on(poll_fn(|context| {
                context.waker().wake_by_ref();
                if seen.get() { Poll::Ready(()) } else { Poll::Pending }
            }));
        });
        let does = Rc::clone(&done);
        executor.spawn(async move { does.set(true) });
        executor.settle();
        assert!(done.get());
    }

    /// It is being polled when its turn comes, and cannot be polled once more then.
    fn a_task_that_is_woken_while_it_takes_turns_is_polled_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let polls = Rc::new(Cell::new(0));
        let (inner, counts) = (executor.clone(), Rc::clone(&polls));
        executor.spawn(poll_fn(move |context| {
            counts.set(counts.get() + 1);
            if counts.get() == 2 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            inner.settle();
            Poll::Pending
        }));
        executor.settle();
        assert_eq!(polls.get(), 2);
    }

    fn a_task_that_panics_takes_only_itself_down(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        executor.spawn(async { panic!("as the test wants it") });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| executor.settle()));
        assert!(panicked.is_err());
        assert_eq!(executor.block_on(async { 6 * 7 }), 42);
        executor.settle();
    }

    fn an_idle_reactor_sleeps(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        executor.settle();
        let before = reactor.stats().turns;
        executor.block_on(reactor.sleep(Duration::from_millis(30)));
        // Not a loop that looks again and again.
        assert!(reactor.stats().turns - before < 30);
    }
}
