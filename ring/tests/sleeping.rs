//! Sleeps in the receive of one socket: whatever else happens ends them too, and nothing is told late or
//! lost. Says nothing of what such a sleep costs.
#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ring::script::SystemCall;
use ring::{DriverKind, Executor, LANDING_HEAD_BYTES, Landing, Message, Reactor, ReceiveError, Socket, Wait};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::gettid;
use testing::{Errno, gated, on_each_driver, packet_pair, receive_packet, send_packet, wait_until};

/// Enough for a reactor to have found that nothing but these ends its sleeps.
const ROUNDS: u32 = 40;

/// Answers so many times, and once more after it was told to.
struct Answerer {
    thread: JoinHandle<()>,
    told: Arc<AtomicBool>,
}

impl Answerer {
    /// `before_last` runs when the last call has come and whoever calls is asleep.
    fn start(far: OwnedFd, before_last: impl FnOnce(&OwnedFd) + Send + 'static) -> Answerer {
        let told = Arc::new(AtomicBool::new(false));
        let (is_told, caller) = (Arc::clone(&told), gettid().as_raw_nonzero().get());
        let thread = thread::spawn(move || {
            for _ in 0..ROUNDS {
                let call = receive_packet(&far).unwrap().bytes;
                wait_until("the caller is asleep", || is_asleep(caller));
                send_packet(&far, &call, &[]).unwrap();
            }
            let call = receive_packet(&far).unwrap().bytes;
            wait_until("the caller is asleep", || is_asleep(caller));
            before_last(&far);
            wait_until("the caller has been told", || is_told.load(Ordering::SeqCst));
            let _ = send_packet(&far, &call, &[]);
        });
        Answerer { thread, told }
    }

    /// Of which nothing else is to be seen.
    fn to_the_end(far: OwnedFd) -> Answerer {
        let answerer = Answerer::start(far, |_| {});
        answerer.go_on();
        answerer
    }

    fn go_on(&self) {
        self.told.store(true, Ordering::SeqCst);
    }
}

fn is_asleep(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
}

async fn call(near: &Socket, number: u32) -> Result<(), ReceiveError> {
    near.send(Message::from(number.to_ne_bytes().as_slice())).await.unwrap();
    assert_eq!(near.receive().await?.bytes(), number.to_ne_bytes());
    Ok(())
}

const HEAD: &[u8; LANDING_HEAD_BYTES] = b"what is expected";

/// The answer is a piece that lands.
async fn call_for_piece(near: &Socket, landing: &Landing, number: u32) -> Result<(), ReceiveError> {
    assert!(near.expect_piece(landing, HEAD, 4));
    near.send(Message::from([HEAD.as_slice(), &number.to_ne_bytes()].concat())).await.unwrap();
    let answer = near.receive().await?;
    assert_eq!((answer.bytes(), answer.landed(), landing.take_landed()), (HEAD.as_slice(), 4, 4));
    Ok(())
}

fn room_for_pieces() -> Landing {
    Landing::new(ring::room_for(4 * (ROUNDS as usize + 1)).unwrap())
}

fn pieces(count: u32) -> Vec<u8> {
    (0..count).flat_map(u32::to_ne_bytes).collect()
}

/// Calls until its sleeps are slept in a receive, where they ever are.
async fn call_often(near: &Socket) {
    for number in 0..ROUNDS {
        call(near, number).await.unwrap();
    }
}

/// Makes all the calls there are, the last of which is answered when the answerer may go on.
fn make_all_calls(executor: &Executor, near: &Socket, answerer: Answerer) {
    executor.block_on(async {
        call_often(near).await;
        call(near, ROUNDS).await.unwrap();
    });
    answerer.thread.join().unwrap();
}

/// The same, and each answer is a piece that lands behind the others.
fn call_for_all_pieces(executor: &Executor, near: &Socket, answerer: Answerer) {
    let landing = room_for_pieces();
    executor.block_on(async {
        for number in 0..=ROUNDS {
            call_for_piece(near, &landing, number).await.unwrap();
        }
    });
    answerer.thread.join().unwrap();
    assert_eq!(landing.take_bytes(), pieces(ROUNDS + 1));
}

/// Whether a reactor like this sleeps in receives.
fn does(reactor: &Reactor) -> bool {
    let descriptors_are_left = getrlimit(Resource::Nofile).current.is_none_or(|limit| limit >= 1000);
    reactor.driver().kind() == DriverKind::Uring && cfg!(target_arch = "x86_64") && descriptors_are_left
}

fn wrap_pair(reactor: &Reactor) -> (Socket, OwnedFd) {
    let (near, far) = packet_pair();
    (Socket::wrap(reactor, near).unwrap(), far)
}

on_each_driver! {
    fn a_message_ends_a_sleep_in_its_socket(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let answerer = Answerer::to_the_end(far);
        make_all_calls(&Executor::new(reactor), &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn a_stream_of_messages_is_slept_in_too(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        near.stream();
        let answerer = Answerer::to_the_end(far);
        make_all_calls(&Executor::new(reactor), &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn a_piece_lands_out_of_a_sleep_in_its_socket(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        near.stream();
        let answerer = Answerer::to_the_end(far);
        call_for_all_pieces(&Executor::new(reactor), &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    /// What was expected still is.
    fn another_socket_ends_a_sleep_for_a_piece_which_lands_later(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        near.stream();
        let (other, others) = wrap_pair(reactor);
        let answerer = Answerer::start(far, move |_| send_packet(&others, b"news", &[]).unwrap());
        let executor = Executor::new(reactor);
        let told = Arc::clone(&answerer.told);
        executor.spawn(async move {
            assert_eq!(other.receive().await.unwrap().bytes(), b"news");
            told.store(true, Ordering::SeqCst);
        });
        call_for_all_pieces(&executor, &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    /// Whoever ends the sleep gives the memory away, and the piece arrives as ever.
    fn memory_that_is_taken_after_a_sleep_for_a_piece_is_written_no_more(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        near.stream();
        let (other, others) = wrap_pair(reactor);
        let answerer = Answerer::start(far, move |_| send_packet(&others, b"news", &[]).unwrap());
        let executor = Executor::new(reactor);
        let (told, landing) = (Arc::clone(&answerer.told), room_for_pieces());
        let place = landing.clone();
        executor.spawn(async move {
            assert_eq!(other.receive().await.unwrap().bytes(), b"news");
            assert_eq!(place.take_bytes(), pieces(ROUNDS));
            told.store(true, Ordering::SeqCst);
        });
        executor.block_on(async {
            for number in 0..ROUNDS {
                call_for_piece(&near, &landing, number).await.unwrap();
            }
            assert!(near.expect_piece(&landing, HEAD, 4));
            let call = [HEAD.as_slice(), b"last"].concat();
            near.send(Message::from(call.clone())).await.unwrap();
            let answer = near.receive().await.unwrap();
            assert_eq!((answer.bytes(), answer.landed()), (call.as_slice(), 0));
        });
        answerer.thread.join().unwrap();
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn another_socket_ends_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let (other, others) = wrap_pair(reactor);
        let answerer = Answerer::start(far, move |_| send_packet(&others, b"news", &[]).unwrap());
        let executor = Executor::new(reactor);
        let told = Arc::clone(&answerer.told);
        executor.spawn(async move {
            assert_eq!(other.receive().await.unwrap().bytes(), b"news");
            told.store(true, Ordering::SeqCst);
        });
        make_all_calls(&executor, &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn another_thread_ends_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let wakes = Arc::clone(&waker);
        let rung = Arc::new(AtomicBool::new(false));
        let rings = Arc::clone(&rung);
        let answerer = Answerer::start(far, move |_| {
            rings.store(true, Ordering::SeqCst);
            wakes.lock().unwrap().take().unwrap().wake();
        });
        let executor = Executor::new(reactor);
        let told = Arc::clone(&answerer.told);
        executor.spawn(async move {
            poll_fn(|context| {
                *waker.lock().unwrap() = Some(context.waker().clone());
                if rung.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            told.store(true, Ordering::SeqCst);
        });
        make_all_calls(&executor, &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn a_timer_ends_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let answerer = Answerer::start(far, |_| {});
        let executor = Executor::new(reactor);
        let told = Arc::clone(&answerer.told);
        let timer = reactor.clone();
        executor.spawn(async move {
            let moment = Instant::now() + Duration::from_millis(300);
            timer.sleep_until(moment).await;
            assert!(Instant::now() >= moment);
            told.store(true, Ordering::SeqCst);
        });
        make_all_calls(&executor, &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn timers_that_come_and_go_keep_nobody_from_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let answerer = Answerer::to_the_end(far);
        Executor::new(reactor).block_on(async {
            for number in 0..=ROUNDS {
                // As a call with a deadline.
                let mut deadline = Box::pin(reactor.sleep(Duration::from_secs(60)));
                let mut answer = Box::pin(call(&near, number));
                poll_fn(|context| {
                    assert!(deadline.as_mut().poll(context).is_pending());
                    answer.as_mut().poll(context)
                })
                .await
                .unwrap();
            }
        });
        answerer.thread.join().unwrap();
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    /// Each by a sleep of its own would be a turn for each.
    fn those_that_come_together_are_found_by_looks(reactor: &Reactor) {
        const MANY: usize = 80;
        let (near, far) = wrap_pair(reactor);
        let other = far.try_clone().unwrap();
        let answerer = Answerer::start(far, |_| {});
        let executor = Executor::new(reactor);
        executor.block_on(async {
            call_often(&near).await;
            (0..MANY).for_each(|_| send_packet(&other, b"one of many", &[]).unwrap());
            let before = reactor.stats().turns;
            for _ in 0..MANY {
                let mut looked = false;
                let received = poll_fn(|context| match std::mem::replace(&mut looked, true) {
                    false => near.poll_receive_here(context),
                    true => near.poll_receive(context),
                });
                assert_eq!(received.await.unwrap().bytes(), b"one of many");
            }
            // The first look comes after 32 sleeps, and 16 come between two turns.
            let turns = reactor.stats().turns - before;
            assert!(turns <= 40, "{turns} turns");
            answerer.go_on();
            call(&near, ROUNDS).await.unwrap();
        });
        answerer.thread.join().unwrap();
    }

    fn a_peer_that_closes_ends_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let answerer = Answerer::start(far, |far| shutdown(far, Shutdown::Both).unwrap());
        answerer.go_on();
        Executor::new(reactor).block_on(async {
            call_often(&near).await;
            assert!(matches!(call(&near, ROUNDS).await, Err(ReceiveError::Closed)));
        });
        answerer.thread.join().unwrap();
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn readiness_ends_it(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let (other, others) = wrap_pair(reactor);
        let answerer = Answerer::start(far, move |_| send_packet(&others, b"news", &[]).unwrap());
        let executor = Executor::new(reactor);
        let told = Arc::clone(&answerer.told);
        executor.spawn(async move {
            other.readable().await.unwrap();
            told.store(true, Ordering::SeqCst);
        });
        make_all_calls(&executor, &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives > 0, does(reactor));
    }

    fn of_two_sockets_that_take_turns_neither_is_slept_in(reactor: &Reactor) {
        let [(near, far), (next, beyond)] = [wrap_pair(reactor), wrap_pair(reactor)];
        let answerers = [far, beyond].map(|far| Answerer::start(far, |_| {}));
        answerers.iter().for_each(Answerer::go_on);
        Executor::new(reactor).block_on(async {
            for number in 0..=ROUNDS {
                call(&near, number).await.unwrap();
                call(&next, number).await.unwrap();
            }
        });
        for answerer in answerers {
            answerer.thread.join().unwrap();
        }
        assert_eq!(reactor.stats().slept_in_receives, 0);
    }

    /// A holder may have a receive wait for more bytes than have come (SO_RCVLOWAT), but not a poll.
    fn a_stream_of_bytes_is_not_slept_in(reactor: &Reactor) {
        let (near, far) = testing::stream_pair();
        let near = Socket::wrap(reactor, near).unwrap();
        let answerer = Answerer::to_the_end(far);
        make_all_calls(&Executor::new(reactor), &near, answerer);
        assert_eq!(reactor.stats().slept_in_receives, 0);
    }

    /// The enter that shows the timer to the kernel, that is. Nobody sleeps without it.
    fn a_timer_that_the_kernel_puts_off_ends_it(_reactor: &Reactor) {
        gated(&[SystemCall::EnterRing], |refusals| {
            let own = testing::reactor();
            let (near, far) = wrap_pair(&own);
            let answerer = Answerer::start(far, |_| {});
            let executor = Executor::new(&own);
            executor.block_on(call_often(&near));
            refusals.next(SystemCall::EnterRing, Errno::AGAIN, 1);
            let told = Arc::clone(&answerer.told);
            let timer = own.clone();
            executor.spawn(async move {
                timer.sleep(Duration::from_millis(50)).await;
                told.store(true, Ordering::SeqCst);
            });
            executor.block_on(call(&near, ROUNDS)).unwrap();
            answerer.thread.join().unwrap();
        });
    }

    /// O_NONBLOCK belongs to the open description, which others may hold.
    fn a_socket_that_others_have_made_non_blocking_is_waited_for(reactor: &Reactor) {
        let (near, far) = packet_pair();
        let held = near.try_clone().unwrap();
        let near = Socket::wrap(reactor, near).unwrap();
        let answerer = Answerer::start(far, |_| {});
        let executor = Executor::new(reactor);
        executor.block_on(call_often(&near));
        fcntl_setfl(&held, fcntl_getfl(&held).unwrap() | OFlags::NONBLOCK).unwrap();
        let before = reactor.stats().turns;
        answerer.go_on();
        executor.block_on(call(&near, ROUNDS)).unwrap();
        assert!(reactor.stats().turns - before < 10, "asleep, and not asking again and again");
        answerer.thread.join().unwrap();
    }

    /// Of a signal, say, whose handler sets a flag and has system calls begin again.
    fn whoever_takes_turns_one_by_one_hears_of_everything(reactor: &Reactor) {
        let (near, far) = wrap_pair(reactor);
        let answerer = Answerer::to_the_end(far);
        for number in 0..=ROUNDS {
            let mut answer = Box::pin(call(&near, number));
            let mut context = Context::from_waker(Waker::noop());
            while answer.as_mut().poll(&mut context).is_pending() {
                reactor.turn(Wait::Forever).unwrap();
            }
        }
        answerer.thread.join().unwrap();
        assert_eq!(reactor.stats().slept_in_receives, 0);
    }

    /// What arrives while others open the last ones would be lost.
    fn with_few_descriptors_left_nobody_sleeps_like_this(_reactor: &Reactor) {
        let limit = getrlimit(Resource::Nofile);
        let few = limit.maximum.unwrap_or(700).min(700);
        setrlimit(Resource::Nofile, Rlimit { current: Some(few), ..limit }).unwrap();
        let own = testing::reactor();
        let (near, far) = wrap_pair(&own);
        let answerer = Answerer::to_the_end(far);
        make_all_calls(&Executor::new(&own), &near, answerer);
        assert_eq!(own.stats().slept_in_receives, 0);
        setrlimit(Resource::Nofile, limit).unwrap();
    }

    fn what_is_armed_is_taken_back(reactor: &Reactor) {
        for _ in 0..20 {
            let own = testing::reactor();
            let (near, far) = wrap_pair(&own);
            let answerer = Answerer::to_the_end(far);
            make_all_calls(&Executor::new(&own), &near, answerer);
            assert_eq!(own.stats().slept_in_receives > 0, does(reactor));
        }
    }
}
