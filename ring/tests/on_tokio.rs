//! A guest of tokio's: sockets awaited in local tasks of an ordinary runtime, beside its timers and channels.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use ring::{HostError, Kind, OnTokio, Reactor, Socket};
use testing::{guest, helper, on_each_driver, receive_packet, send_packet, start_helper};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local, yield_now};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs this in a runtime of its own, with local tasks and a guest.
fn hosted<F: Future>(body: impl FnOnce(OnTokio) -> F) -> F::Output {
    LocalSet::new().block_on(&runtime(), async { body(guest().on_tokio().unwrap()).await })
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
}

on_each_driver! {
    fn another_process_answers_a_local_task(_reactor: &Reactor) {
        let helper = hosted(|guest| async move {
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            let helper = start_helper!(echoes, vec![far]);
            let calls = spawn_local(async move {
                for number in 0..200_u32 {
                    near.send(number.to_ne_bytes().as_slice()).await.unwrap();
                    assert_eq!(near.receive().await.unwrap().bytes(), number.to_ne_bytes());
                }
            });
            calls.await.unwrap();
            helper
        });
        helper.succeeded();
    }

    fn many_tasks_wait_at_a_time(_reactor: &Reactor) {
        hosted(|guest| async move {
            let mut tasks = Vec::new();
            for _ in 0..20 {
                let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
                let far = Socket::wrap(guest.reactor(), far).unwrap();
                tasks.push(spawn_local(async move {
                    while let Ok(message) = far.receive().await {
                        far.send(message.bytes()).await.unwrap();
                    }
                }));
                tasks.push(spawn_local(async move {
                    for number in 0..50_u8 {
                        near.send([number].as_slice()).await.unwrap();
                        assert_eq!(near.receive().await.unwrap().bytes(), [number]);
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        });
    }

    /// The runtime's own timers and channels go on, and so do those of the reactor.
    fn tokio_goes_on_beside_it(_reactor: &Reactor) {
        hosted(|guest| async move {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            let reactor = guest.reactor().clone();
            spawn_local(async move {
                for number in 0..20 {
                    reactor.sleep(Duration::from_millis(1)).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    sender.send(number).await.unwrap();
                }
            });
            for number in 0..20 {
                assert_eq!(receiver.recv().await, Some(number));
            }
        });
    }

    fn work_for_other_threads_comes_back(_reactor: &Reactor) {
        hosted(|guest| async move {
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            for number in 0..50_u8 {
                let packet = vec![number];
                let far = far.try_clone().unwrap();
                tokio::task::spawn_blocking(move || send_packet(&far, &packet, &[]).unwrap());
                assert_eq!(near.receive().await.unwrap().bytes(), [number]);
            }
        });
    }

    /// The runtime, which is told of such things otherwise, does not run before this ends.
    fn another_thread_wakes_what_blocks_the_runtime(_reactor: &Reactor) {
        hosted(|guest| async move {
            yield_now().await;
            for _ in 0..100 {
                let (done, mut thread) = (Arc::new(AtomicBool::new(false)), None);
                guest.executor().block_on(std::future::poll_fn(|context| {
                    thread.get_or_insert_with(|| {
                        let (done, waker) = (Arc::clone(&done), context.waker().clone());
                        std::thread::spawn(move || {
                            done.store(true, Ordering::SeqCst);
                            waker.wake();
                        })
                    });
                    if done.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
                }));
                thread.unwrap().join().unwrap();
            }
            // And the runtime is told again.
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            tokio::task::spawn_blocking(move || send_packet(&far, b"later", &[]).unwrap());
            assert_eq!(near.receive().await.unwrap().bytes(), b"later");
        });
    }

    fn whoever_asks_again_how_it_ended_is_told_again(_reactor: &Reactor) {
        hosted(|mut guest| async move {
            guest.executor().spawn(async { panic!("one of the guest's own tasks") });
            for _ in 0..2 {
                let error = guest.ended().await;
                assert_eq!(error.kind(), std::io::ErrorKind::Other);
            }
        });
    }

    fn tasks_of_the_guests_own_run_too(_reactor: &Reactor) {
        hosted(|guest| async move {
            let (told, mut hears) = tokio::sync::oneshot::channel();
            guest.executor().spawn(async move { told.send("from the inside").unwrap() });
            assert_eq!((&mut hears).await.unwrap(), "from the inside");
        });
    }

    /// A guest that is never done leaves the runtime its turns.
    fn a_busy_guest_does_not_starve_the_runtime(_reactor: &Reactor) {
        hosted(|guest| async move {
            guest.executor().spawn(std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                std::task::Poll::<()>::Pending
            }));
            for _ in 0..100 {
                yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
    }

    fn a_multi_threaded_runtime_hosts_too(_reactor: &Reactor) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let guest = guest().on_tokio().unwrap();
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            // Sent by a worker thread of the runtime's.
            tokio::spawn(async move { send_packet(&far, b"from a worker", &[]).unwrap() });
            assert_eq!(near.receive().await.unwrap().bytes(), b"from a worker");
        });
    }

    fn a_future_can_be_run_without_local_tasks(_reactor: &Reactor) {
        let guest = guest();
        let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
        let helper = start_helper!(echoes, vec![far]);
        let runtime = runtime();
        // Twice: it is hosted for as long as the future runs, and can be hosted again.
        for round in 0..2_u8 {
            let near = &near;
            let answer = runtime.block_on(guest.run_until(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                near.send([round].as_slice()).await.unwrap();
                near.receive().await.unwrap()
            }));
            assert_eq!(answer.unwrap().bytes(), [round]);
        }
        drop(near);
        guest.turn().unwrap();
        helper.succeeded();
    }

    fn without_a_runtime_there_is_a_clear_error(_reactor: &Reactor) {
        assert!(matches!(guest().on_tokio(), Err(HostError::NoRuntime)));
        let guest = guest();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let run = std::pin::pin!(guest.run_until(async {}));
        assert!(matches!(run.poll(&mut context), std::task::Poll::Ready(Err(HostError::NoRuntime))));
    }

    /// As tokio's own tasks do.
    fn without_local_tasks_it_panics_as_tokio_does(_reactor: &Reactor) {
        let runtime = runtime();
        let unhosted = || runtime.block_on(async { guest().on_tokio().map(drop) });
        let panic = catch_unwind(AssertUnwindSafe(unhosted)).unwrap_err();
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
        assert!(words.contains("spawn_local"), "{words}");
    }

    fn nothing_is_left_when_the_handle_is_dropped(_reactor: &Reactor) {
        let runtime = runtime();
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            let census = testing::Census::take();
            for _ in 0..10 {
                let guest = guest().on_tokio().unwrap();
                let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
                near.stream();
                send_packet(&far, b"unread", &[]).unwrap();
                yield_now().await;
                drop((near, guest));
                // The task ends when the runtime comes to it.
                while testing::Census::take().len() > census.len() + 1 {
                    yield_now().await;
                }
                drop(far);
                census.unchanged();
            }
        });
    }

    fn a_task_that_outlives_its_guest_waits_and_leaks_nothing(_reactor: &Reactor) {
        let polled = Rc::new(Cell::new(false));
        let told = Rc::clone(&polled);
        hosted(|guest| async move {
            let (near, _far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            spawn_local(async move {
                told.set(true);
                let _ = near.receive().await;
            });
            yield_now().await;
            drop(guest);
            yield_now().await;
        });
        assert!(polled.get());
    }

    /// A runtime that is idle with a guest does not turn it.
    fn an_idle_guest_is_not_turned(_reactor: &Reactor) {
        hosted(|guest| async move {
            let (near, _far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            near.stream();
            tokio::time::sleep(Duration::from_millis(5)).await;
            let before = guest.reactor().stats().turns;
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(guest.reactor().stats().turns, before);
        });
    }

    /// A call costs the turns it needs and no more: who asks is a task of the runtime, which tells the guest
    /// without a descriptor.
    fn a_call_takes_few_turns(_reactor: &Reactor) {
        let helper = hosted(|guest| async move {
            let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket).unwrap();
            let helper = start_helper!(echoes, vec![far]);
            near.stream();
            near.send("first").await.unwrap();
            near.receive().await.unwrap();
            let before = guest.reactor().stats().turns;
            for _ in 0..100 {
                near.send("over").await.unwrap();
                near.receive().await.unwrap();
            }
            let turns = guest.reactor().stats().turns - before;
            assert!(turns <= 100 * 8, "{turns} turns for 100 calls");
            helper
        });
        helper.succeeded();
    }
}
