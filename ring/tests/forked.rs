//! A reactor in a forked child: each verb is refused by name, and the parent's goes on as if there had been
//! no child. It knows nothing of how a fork is noticed; that is in `fork.rs`.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use ring::fork::{ForkedChild, Notice, fork_and_go_on_for_tests, notice};
use ring::{
    AbstractName, Config, Datagrams, Executor, Fd, Guest, Kind, Message, Reactor, ReceiveError, SendError,
    Socket, Wait,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
use testing::{
    Census, ends, fork, in_own_process, on_each_driver, poll_once, receive_packet, refuse_wiping_on_fork,
    send_packet, settle, turn,
};

/// The reading end of a pipe.
fn pipe() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

#[track_caller]
fn is_forked<T>(result: io::Result<T>) {
    assert!(ForkedChild::is(&result.err().expect("refused in a child")));
}

/// The next packet, if it is there: this one and no other.
#[track_caller]
fn receive_packet_now(far: &OwnedFd, expected: &[u8]) -> Option<()> {
    let found = poll(&mut [PollFd::new(far, PollFlags::IN)], Some(&Timespec::default())).unwrap();
    (found > 0).then(|| assert_eq!(receive_packet(far).unwrap().bytes, expected))
}

/// A message each way, on a pair that a child has had in its hands.
#[track_caller]
fn still_serves(reactor: &Reactor, near: &Socket, far: &OwnedFd) {
    send_packet(far, b"there", &[pipe().as_fd()]).unwrap();
    let mut received = settle(reactor, near.receive()).unwrap();
    assert_eq!(received.bytes(), b"there");
    assert!(received.take_descriptor().is_some());
    settle(reactor, near.send("back")).unwrap();
    assert_eq!(receive_packet(far).unwrap().bytes, b"back");
}

/// All that can be asked of a connected socket.
fn each_verb_of_a_socket_is_refused(reactor: &Reactor, near: &Socket) {
    let message = || Message::from("not for you").with_descriptor(pipe());
    assert!(matches!(settle(reactor, near.send(message())), Err(SendError::Forked)));
    assert!(matches!(settle(reactor, near.send_quietly(message())), Err(SendError::Forked)));
    assert!(matches!(settle(reactor, near.send_at_once(message())), Err(SendError::Forked)));
    assert!(matches!(near.try_send(message()), Err(SendError::Forked)));
    near.post(&[b"nor this"], vec![Fd::from(pipe())]);
    near.post_or(&[b"nor this"], vec![Fd::from(pipe())], b"or that".to_vec());
    let whole = Arc::new(b"nor a piece".to_vec());
    assert!(matches!(settle(reactor, near.send_piece(b"", &whole, 0..3)), Err(SendError::Forked)));
    for _ in 0..2 {
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Forked)));
        assert!(matches!(settle(reactor, near.take_one()), Err(ReceiveError::Forked)));
        assert!(matches!(settle(reactor, near.receive_large(&mut [0; 64])), Err(ReceiveError::Forked)));
        assert!(matches!(near.try_receive(), Some(Err(ReceiveError::Forked))));
    }
    is_forked(settle(reactor, near.readable()));
    is_forked(settle(reactor, near.hung_up()));
    is_forked(settle(reactor, near.accept()));
    is_forked(near.ask_for_pidfds());
    is_forked(near.refuse_descriptors());
    near.stream();
    near.set_descriptors_max(3);
    near.ask_for_credentials();
    assert!(!near.is_quiet());
}

/// All that makes a socket.
fn each_way_to_a_new_socket_is_refused(reactor: &Reactor) {
    let name = AbstractName::random("sendright-test-", 27).unwrap();
    let nowhere = std::path::Path::new("/nowhere");
    is_forked(Socket::pair(reactor, Kind::SeqPacket));
    is_forked(Socket::listen(reactor, nowhere, Kind::Stream));
    is_forked(Socket::listen_abstract(reactor, &name, Kind::Stream, 5));
    is_forked(Socket::try_connect_abstract(reactor, &name, Kind::Stream));
    is_forked(settle(reactor, Socket::connect(reactor, nowhere, Kind::Stream)));
    is_forked(settle(reactor, Socket::connect_abstract(reactor, &name, Kind::Stream)));
    is_forked(Datagrams::unbound(reactor));
    is_forked(Datagrams::bind(reactor, &name));
}

/// One at rest.
fn guest() -> Guest {
    let config = Config { driver: testing::driver(), ..Config::default() };
    let guest = Guest::with_config(config).unwrap();
    guest.turn().unwrap();
    guest
}

fn is_readable(guest: &Guest) -> bool {
    poll(&mut [PollFd::new(guest, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
}

fn everything_is_refused_and_the_parent_goes_on(reactor: &Reactor) {
    let (near, far) = ends(reactor, true);
    still_serves(reactor, &near, &far);
    fork(|| {
        assert!(reactor.is_forked());
        is_forked(reactor.turn(Wait::Not));
        is_forked(reactor.turn(Wait::Forever));
        each_verb_of_a_socket_is_refused(reactor, &near);
        each_way_to_a_new_socket_is_refused(reactor);
    })
    .succeeded();
    assert!(!reactor.is_forked());
    still_serves(reactor, &near, &far);
    // Nothing of the child's came out on the other side.
    drop(near);
    turn(reactor);
    assert!(receive_packet(&far).unwrap().bytes.is_empty());
}

on_each_driver! {
    fn each_verb_is_refused_by_name(reactor: &Reactor) {
        everything_is_refused_and_the_parent_goes_on(reactor);
    }

    fn what_is_away_in_the_parent_comes_home_there_and_refused_in_the_child(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let (listens, _far) = ends(reactor, false);
        let mut receiving = Box::pin(near.receive());
        poll_once(receiving.as_mut());
        let mut waiting = Box::pin(listens.readable());
        poll_once(waiting.as_mut());
        turn(reactor);
        fork(|| {
            assert!(matches!(settle(reactor, receiving.as_mut()), Err(ReceiveError::Forked)));
            is_forked(settle(reactor, waiting.as_mut()));
        })
        .succeeded();
        send_packet(&far, b"for the parent", &[pipe().as_fd()]).unwrap();
        let received = settle(reactor, receiving).unwrap();
        assert_eq!(received.bytes(), b"for the parent");
        assert_eq!(received.descriptors(), 1);
    }

    fn what_has_arrived_is_delivered_to_the_parent_alone(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        send_packet(&far, b"once", &[pipe().as_fd()]).unwrap();
        turn(reactor);
        assert!(near.has_arrived());
        fork(|| {
            assert!(matches!(near.try_receive(), Some(Err(ReceiveError::Forked))));
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Forked)));
        })
        .succeeded();
        let received = near.try_receive().unwrap().unwrap();
        assert_eq!((received.bytes(), received.descriptors()), (&b"once"[..], 1));
        assert!(near.try_receive().is_none());
    }

    fn a_message_taken_by_the_kernel_is_not_taken_by_a_child(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        send_packet(&far, b"in the queue", &[]).unwrap();
        fork(|| {
            assert!(matches!(settle(reactor, near.take_one()), Err(ReceiveError::Forked)));
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Forked)));
        })
        .succeeded();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"in the queue");
    }

    /// Queued before the fork, and so in both memories.
    fn what_is_queued_is_sent_by_the_parent_alone(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let mut near = Some(near);
        near.as_ref().unwrap().post(&[b"queued"], vec![Fd::from(pipe())]);
        let mut sending = Some(near.as_ref().unwrap().send("after it"));
        fork(|| {
            assert!(matches!(settle(reactor, sending.take().unwrap()), Err(SendError::Forked)));
            drop(near.take());
        })
        .succeeded();
        settle(reactor, sending.unwrap()).unwrap();
        let first = receive_packet(&far).unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (&b"queued"[..], 1));
        assert_eq!(receive_packet(&far).unwrap().bytes, b"after it");
        drop(near);
        turn(reactor);
        assert!(receive_packet(&far).unwrap().bytes.is_empty());
    }

    fn what_waits_for_a_full_queue_is_sent_by_the_parent_alone(reactor: &Reactor) {
        let (near, far) = ends(reactor, false);
        let mut sent = 0;
        while near.try_send(sent.to_string()).is_ok() {
            sent += 1;
        }
        let mut sending = Some(near.send("the last"));
        turn(reactor);
        fork(|| {
            assert!(matches!(settle(reactor, sending.take().unwrap()), Err(SendError::Forked)));
            drop(near.try_send("another"));
        })
        .succeeded();
        for n in 0..sent {
            assert_eq!(receive_packet(&far).unwrap().bytes, n.to_string().into_bytes());
        }
        settle(reactor, sending.unwrap()).unwrap();
        assert_eq!(receive_packet(&far).unwrap().bytes, b"the last");
    }

    fn dropping_all_of_it_in_a_child_ends_nothing(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let (idle, idle_far) = ends(reactor, false);
        let mut inherited = Some((near, idle, reactor.clone()));
        fork(|| {
            let (near, idle, reactor) = inherited.take().unwrap();
            let before = Census::take().len();
            drop((near, idle));
            drop(reactor);
            // The two near ends, and what the driver slept in; the rest is held by the test, further up.
            assert!(Census::take().len() <= before - 2);
        })
        .succeeded();
        let (near, idle, _) = inherited.unwrap();
        assert!(!near.is_hung_up());
        still_serves(reactor, &near, &far);
        still_serves(reactor, &idle, &idle_far);
    }

    /// With what it needs to sleep: the ring, the epoll, the bell.
    fn a_reactor_dropped_in_a_child_closes_its_copies(_reactor: &Reactor) {
        let census = Census::take();
        let mut own = Some(testing::reactor());
        let (near, far) = ends(own.as_ref().unwrap(), true);
        let mut near = Some(near);
        fork(|| {
            drop(near.take());
            drop(own.take());
            drop(far.try_clone().unwrap());
            // What is left is the far end, which the test holds.
            assert_eq!(Census::take().len(), census.len() + 1);
        })
        .succeeded();
        still_serves(own.as_ref().unwrap(), near.as_ref().unwrap(), &far);
    }

    fn a_child_takes_a_descriptor_out_and_uses_it_on_a_reactor_of_its_own(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let mut near = Some(near);
        fork(|| {
            let fd = near.take().unwrap().into_fd().unwrap();
            let here = testing::reactor();
            assert!(!here.is_forked());
            let near = Socket::wrap(&here, fd).unwrap();
            settle(&here, near.send("from the child")).unwrap();
        })
        .succeeded();
        assert_eq!(receive_packet(&far).unwrap().bytes, b"from the child");
        still_serves(reactor, near.as_ref().unwrap(), &far);
    }

    fn a_grandchild_is_refused_as_its_parent_is(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        fork(|| {
            let here = testing::reactor();
            let (mine, other) = ends(&here, true);
            fork(|| {
                assert!(matches!(settle(&here, mine.receive()), Err(ReceiveError::Forked)));
                assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Forked)));
            })
            .succeeded();
            still_serves(&here, &mine, &other);
            assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Forked)));
        })
        .succeeded();
        still_serves(reactor, &near, &far);
    }

    fn a_task_of_the_parents_runs_in_a_child_only_to_be_refused(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let executor = Executor::new(reactor);
        let told = Rc::new(Cell::new(0));
        let tells = Rc::clone(&told);
        executor.spawn(async move {
            while near.receive().await.is_ok() {
                tells.set(tells.get() + 1);
            }
            tells.set(tells.get() + 100);
        });
        executor.settle();
        fork(|| {
            executor.settle();
            assert_eq!(told.get(), 100);
        })
        .succeeded();
        send_packet(&far, b"one", &[]).unwrap();
        executor.settle();
        assert_eq!(told.get(), 1);
    }

    fn waiting_for_what_never_comes_in_a_child_is_a_panic_that_says_so(reactor: &Reactor) {
        fork(|| {
            let sleeping = AssertUnwindSafe(|| settle(reactor, reactor.sleep(Duration::from_secs(3600))));
            let panic = catch_unwind(sleeping).unwrap_err();
            let said = panic.downcast_ref::<String>().unwrap();
            assert!(said.contains(&ForkedChild.to_string()), "{said}");
        })
        .succeeded();
        settle(reactor, reactor.sleep(Duration::from_millis(1)));
    }

    fn a_child_does_not_wake_its_parents_host(_reactor: &Reactor) {
        let guest = guest();
        assert!(!is_readable(&guest));
        let remote = guest.reactor().remote();
        fork(|| remote.wake()).succeeded();
        assert!(!is_readable(&guest));
        remote.wake();
        assert!(is_readable(&guest));
    }

    fn a_guest_says_so_and_its_host_goes_on(_reactor: &Reactor) {
        let guest = guest();
        let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
        let heard = Rc::new(Cell::new(false));
        let tells = Rc::clone(&heard);
        guest.executor().spawn(async move { tells.set(near.receive().await.is_ok()) });
        guest.turn().unwrap();
        let mut inherited = Some(guest);
        fork(|| {
            is_forked(inherited.as_ref().unwrap().turn());
            drop(inherited.take());
        })
        .succeeded();
        let guest = inherited.unwrap();
        send_packet(&far, b"hello", &[]).unwrap();
        while !heard.get() {
            poll(&mut [PollFd::new(&guest, PollFlags::IN)], None).unwrap();
            guest.turn().unwrap();
        }
    }

    /// The child comes back from the task into the middle of a turn that its parent began.
    fn a_task_that_forks_amid_a_guests_turn_ends_that_in_the_child(_reactor: &Reactor) {
        for tries_in_there in [false, true] {
            fork(|| {
                let guest = guest();
                let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
                let near = Rc::new(near);
                let (forked, uses) = (Rc::new(Cell::new(None)), Rc::clone(&near));
                let tells = Rc::clone(&forked);
                guest.executor().spawn(async move {
                    let child = fork_and_go_on_for_tests().unwrap();
                    tells.set(Some(child));
                    if child == 0 && tries_in_there {
                        assert!(matches!(uses.try_send("from the child"), Err(SendError::Forked)));
                    }
                });
                near.post(&[b"once"], Vec::new());
                let turned = guest.turn();
                let Some(child) = Pid::from_raw(forked.get().unwrap()) else {
                    return is_forked(turned);
                };
                turned.unwrap();
                let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
                assert_eq!(status.exit_status(), Some(0));
                near.post(&[b"twice"], Vec::new());
                while receive_packet_now(&far, b"once").is_none() {
                    guest.turn().unwrap();
                }
                while receive_packet_now(&far, b"twice").is_none() {
                    guest.turn().unwrap();
                }
            })
            .succeeded();
        }
    }

    fn datagrams_are_refused_too(reactor: &Reactor) {
        let name = AbstractName::random("sendright-test-", 27).unwrap();
        let bound = Datagrams::bind(reactor, &name).unwrap();
        let sender = Datagrams::unbound(reactor).unwrap();
        settle(reactor, sender.send_to(&name, "for the parent")).unwrap();
        fork(|| {
            assert!(matches!(sender.try_send_to(&name, "no"), Err(SendError::Forked)));
            assert!(matches!(settle(reactor, sender.send_to(&name, "no")), Err(SendError::Forked)));
            assert!(matches!(settle(reactor, bound.receive()), Err(ReceiveError::Forked)));
        })
        .succeeded();
        assert_eq!(settle(reactor, bound.receive()).unwrap().bytes(), b"for the parent");
    }

    /// Threads of the parent that hold a lock at the moment of the fork are not there to let go of it.
    fn children_forked_amid_wake_ups_come_to_an_end(reactor: &Reactor) {
        let (near, far) = ends(reactor, true);
        let executor = Executor::new(reactor);
        let woken = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&woken));
        let kept: Arc<std::sync::Mutex<Option<Waker>>> = Arc::default();
        let keeps = Arc::clone(&kept);
        executor.spawn(std::future::poll_fn(move |context| {
            *keeps.lock().unwrap() = Some(context.waker().clone());
            std::task::Poll::Pending
        }));
        executor.settle();
        let task = kept.lock().unwrap().take().unwrap();
        let (stop, remote) = (AtomicBool::new(false), reactor.remote());
        let mut inherited = Some((near, executor, task.clone(), remote.clone()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        task.wake_by_ref();
                        remote.wake();
                        waker.wake_by_ref();
                    }
                });
            }
            for _ in 0..40 {
                fork(|| {
                    let (near, executor, task, remote) = inherited.take().unwrap();
                    executor.settle();
                    drop((near, executor));
                    task.wake();
                    remote.wake();
                })
                .succeeded();
                turn(reactor);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(woken.0.load(Ordering::Relaxed) > 0);
        still_serves(reactor, &inherited.as_ref().unwrap().0, &far);
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Flag(AtomicU64);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// KiB of this process that the kernel empties in a child.
fn wiped_kib() -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut size = 0;
    let mut wiped = 0;
    for line in maps.lines() {
        if let Some(rest) = line.strip_prefix("Size:") {
            size = rest.trim().trim_end_matches(" kB").parse().unwrap();
        } else if line.strip_prefix("VmFlags:").is_some_and(|flags| flags.split(' ').any(|flag| flag == "wf"))
        {
            wiped += size;
        }
    }
    wiped
}

in_own_process! {
    fn without_the_page_each_verb_is_refused_all_the_same() {
        refuse_wiping_on_fork();
        assert_eq!(notice(), Notice::ProcessNumber);
        everything_is_refused_and_the_parent_goes_on(&testing::reactor());
    }

    fn a_reactor_leaves_no_page_behind() {
        drop(testing::reactor());
        let before = wiped_kib();
        for _ in 0..10 {
            drop(testing::reactor());
        }
        assert_eq!(wiped_kib(), before);
    }
}
