//! Between processes: kill -9 at every moment, somebody else taking over, continuations that travel, and both
//! sides calling with all they have. It knows nothing of packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use ring::{Executor, Message, Reactor};
use rustix::process::{Pid, Signal, kill_process};
use seqpacket::{
    CallError, Incoming, Mailbox, Object, PlainContinuation, PlainIncoming, PlainMailbox, PlainObject,
    plain_data,
};
use support::*;
use testing::{Helper, helper, on_each_driver, only, settle, start_helper};

const TASKS: usize = 10;
const CALLS_EACH: usize = 10;

/// Calls under observation: how each ended, and how often it was woken.
struct Watch<T> {
    counts: Vec<Counts>,
    ends: Rc<RefCell<Vec<T>>>,
}

impl<T: 'static> Watch<T> {
    /// Spawns tasks that each await several of these at a time.
    fn over<F: Future<Output = T> + Unpin + 'static>(executor: &Executor, futures: Vec<F>) -> Watch<T> {
        let counts: Vec<_> = futures.iter().map(|_| Counts::default()).collect();
        let ends = Rc::new(RefCell::new(Vec::new()));
        let mut watched: Vec<_> =
            futures.into_iter().zip(&counts).map(|(future, counts)| Watched::new(future, counts)).collect();
        while !watched.is_empty() {
            let mut mine = watched.split_off(watched.len().saturating_sub(CALLS_EACH));
            let ends = Rc::clone(&ends);
            executor.spawn(poll_fn(move |context| {
                mine.retain_mut(|future| match Pin::new(future).poll(context) {
                    Poll::Ready(end) => {
                        ends.borrow_mut().push(end);
                        false
                    }
                    Poll::Pending => true,
                });
                if mine.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            }));
        }
        Watch { counts, ends }
    }

    #[track_caller]
    fn all_ended_after_one_wake_each(&self, executor: &Executor) {
        until(executor, "all have ended", || self.ends.borrow().len() == self.counts.len());
        let wakes: Vec<_> = self.counts.iter().map(Counts::wakes).collect();
        assert_eq!(wakes, vec![1; wakes.len()]);
    }
}

helper! {
    /// Keeps every call but those that ask how many it keeps.
    fn keeper(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut kept = Vec::new();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                if call.bytes() == b"how many?" {
                    let _ = call.answer(kept.len().to_string());
                } else {
                    kept.push(call);
                }
            }
        });
    }

    /// Attaches clients, receives calls, and looks at none of them.
    fn sleeper(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let _mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, std::future::pending::<()>());
    }

    /// The same with a plain object.
    fn plain_keeper(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut kept = Vec::new();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                if call.bytes() == b"how many?" {
                    let _ = call.answer(kept.len().to_string());
                } else {
                    kept.push(call);
                }
            }
        });
    }

    /// Answers with what it was told it is.
    fn namer(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer(testing::helper_argument());
            }
        });
    }

    /// Calls so often as it is told, and waits for answers that do not come.
    fn caller(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, only(descriptors)).unwrap();
        let count: usize = testing::helper_argument().parse().unwrap();
        let calls: Vec<_> = (0..count).map(|_| object.call("hello")).collect();
        settle(&reactor, all(calls));
    }

    /// The same with a plain object.
    fn plain_caller(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let object = PlainObject::from_fd(&reactor, only(descriptors)).unwrap();
        let count: usize = testing::helper_argument().parse().unwrap();
        let calls: Vec<_> = (0..count).map(|_| object.call("hello")).collect();
        settle(&reactor, async {
            for call in calls {
                let _ = call.await;
            }
        });
    }

    /// A plain object that takes calls and has each answered by whoever serves its other one.
    fn forwarder(descriptors: Vec<OwnedFd>) {
        let [mailbox, other] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, mailbox).unwrap();
        let other = PlainObject::from_fd(&reactor, other).unwrap();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let (bytes, _, continuation) = call.into_parts();
                let message = Message::new(bytes).with_descriptor(continuation.into_fd().unwrap());
                other.call(message).await.unwrap();
            }
        });
    }

    /// Answers in the place of whoever sends it continuations.
    fn deputy(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, async {
            while let Some(mut call) = mailbox.next().await {
                let fd = call.take_descriptor().unwrap();
                let deputised = PlainContinuation::from_fd(&reactor, fd).unwrap();
                let answer = format!("{}, says the deputy", String::from_utf8_lossy(call.bytes()));
                deputised.answer(answer).unwrap();
                let _ = call.answer("done");
            }
        });
    }

    /// Answers plain calls with their own bytes.
    fn plain_echoer(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, plain_echo(mailbox));
    }

    /// Echoes calls; and for a call with an object it makes as many large calls to that one as it is told.
    fn caller_back(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let spawner = executor.spawner();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        executor.block_on(async {
            while let Some(mut call) = mailbox.next().await {
                match call.take_object(&reactor) {
                    Some(back) => drop(spawner.spawn(call_back(call, back))),
                    None => {
                        let bytes = call.bytes().to_vec();
                        let _ = call.answer(bytes);
                    }
                }
            }
        });
    }
}

async fn call_back(call: Incoming, back: Object) {
    let count: u64 = call.read().unwrap();
    let calls: Vec<_> = (0..count).map(|n| back.call(vec![n as u8; LARGE])).collect();
    let good = all(calls).await.into_iter().enumerate();
    let good = good.filter(|(n, result)| result.as_ref().is_ok_and(|bytes| *bytes == vec![*n as u8; LARGE]));
    let _ = call.answer(plain_data(&(good.count() as u64)));
}

/// A quarter of what a packet holds, so that windows and queues are full soon.
const LARGE: usize = 16_000;

fn object_of(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (Object, Helper) {
    let (bound, address) = testing::packet_pair();
    (Object::from_fd(reactor, address).unwrap(), start(vec![bound]))
}

fn plain_object_of(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (PlainObject, Helper) {
    let (bound, object) = testing::packet_pair();
    (PlainObject::from_fd(reactor, object).unwrap(), start(vec![bound]))
}

on_each_driver! {
    fn a_killed_server_wakes_each_of_a_hundred_waiters_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = object_of(reactor, |fds| start_helper!(keeper, fds));
        let calls = (0..TASKS * CALLS_EACH).map(|_| object.call("keep this")).collect();
        let watch = Watch::over(&executor, calls);
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"100");
        assert!(watch.ends.borrow().is_empty());
        server.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|end| matches!(end, Err(CallError::Dropped))));
        assert!(matches!(executor.block_on(object.call("anyone?")), Err(CallError::Gone)));
    }

    fn a_killed_server_wakes_each_of_a_hundred_plain_waiters_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = plain_object_of(reactor, |fds| start_helper!(plain_keeper, fds));
        let calls = (0..TASKS * CALLS_EACH).map(|_| object.call("keep this")).collect();
        let watch = Watch::over(&executor, calls);
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"100");
        server.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|end| matches!(end, Err(CallError::Dropped))));
        // The kernel takes its time to close what a ring has held.
        until(&executor, "the mailbox is closed", || {
            matches!(executor.block_on(object.call("anyone?")), Err(CallError::Gone))
        });
    }

    /// Received by the server's process, taken by nobody.
    fn a_killed_server_wakes_those_whose_calls_nobody_took(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = object_of(reactor, |fds| start_helper!(sleeper, fds));
        executor.block_on(object.attach()).unwrap();
        // More than the window takes: some are not even sent.
        let watch = Watch::over(&executor, (0..300).map(|_| object.call("anyone?")).collect());
        executor.settle();
        server.kill();
        watch.all_ended_after_one_wake_each(&executor);
        let ends = watch.ends.borrow();
        assert_eq!(ends.iter().filter(|end| matches!(end, Err(CallError::Dropped))).count(), 256);
        assert_eq!(ends.iter().filter(|end| matches!(end, Err(CallError::Gone))).count(), 44);
    }

    /// In the kernel's queue, where the server never looked.
    fn a_killed_server_wakes_those_whose_calls_it_did_not_receive(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = object_of(reactor, |fds| start_helper!(sleeper, fds));
        executor.block_on(object.attach()).unwrap();
        kill_process(Pid::from_raw(server.pid()).unwrap(), Signal::STOP).unwrap();
        let watch = Watch::over(&executor, (0..100).map(|_| object.call("anyone?")).collect());
        executor.settle();
        server.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|end| matches!(end, Err(CallError::Dropped))));
    }

    fn a_server_killed_before_anybody_attached_is_gone(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = object_of(reactor, |fds| start_helper!(sleeper, fds));
        kill_process(Pid::from_raw(server.pid()).unwrap(), Signal::STOP).unwrap();
        let watch = Watch::over(&executor, (0..20).map(|_| object.call("anyone?")).collect());
        executor.settle();
        server.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|end| matches!(end, Err(CallError::Gone))));
    }

    fn a_killed_client_is_noticed_once_by_each_of_its_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let mut client = start_helper!(caller, vec![object.share().unwrap()], "60");
        let calls: Vec<Incoming> = executor.block_on(async {
            let mut calls = Vec::new();
            while calls.len() < 50 {
                calls.push(mailbox.next().await.unwrap());
            }
            calls
        });
        assert!(calls.iter().all(|call| call.credentials().pid == client.pid()));
        let noticed: Vec<_> = calls
            .into_iter()
            .map(|call| {
                Box::pin(async move {
                    call.continuation().cancelled().await;
                    call.answer("too late").is_err()
                })
            })
            .collect();
        let watch = Watch::over(&executor, noticed);
        executor.settle();
        assert!(watch.ends.borrow().is_empty());
        client.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|refused| *refused));
        // What nobody had taken is gone with it, and the mailbox goes on.
        let hello = object.call("is anybody there?");
        let call = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(call.bytes(), b"is anybody there?");
        call.answer("yes").unwrap();
        assert_eq!(executor.block_on(hello).unwrap().bytes(), b"yes");
    }

    fn a_killed_plain_client_is_noticed_once_by_each_of_its_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = seqpacket::plain_object(reactor).unwrap();
        let mut client = start_helper!(plain_caller, vec![object.share().unwrap()], "60");
        let calls: Vec<PlainIncoming> = executor.block_on(async {
            let mut calls = Vec::new();
            while calls.len() < 50 {
                calls.push(mailbox.next().await.unwrap());
            }
            calls
        });
        assert!(calls.iter().all(|call| call.credentials().unwrap().pid == client.pid()));
        let noticed: Vec<_> = calls
            .into_iter()
            .map(|call| {
                Box::pin(async move {
                    let continuation = call.into_continuation();
                    assert!(!continuation.is_cancelled());
                    continuation.cancelled().await;
                    continuation.is_cancelled()
                })
            })
            .collect();
        let watch = Watch::over(&executor, noticed);
        executor.settle();
        assert!(watch.ends.borrow().is_empty());
        client.kill();
        watch.all_ended_after_one_wake_each(&executor);
        assert!(watch.ends.borrow().iter().all(|cancelled| *cancelled));
        let hello = object.call("is anybody there?");
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                // Those left in the queue come, and can be seen to be in vain.
                let is_hers = call.bytes() == b"is anybody there?";
                let continuation = call.into_continuation();
                assert_eq!(continuation.is_cancelled(), !is_hers);
                let _ = continuation.answer("yes");
            }
        });
        assert_eq!(executor.block_on(hello).unwrap().bytes(), b"yes");
    }

    /// The bound end outlives its server in whoever else holds it.
    fn another_process_takes_over_the_object_of_a_killed_one(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = testing::packet_pair();
        let object = Object::from_fd(reactor, address).unwrap();
        let mut first = start_helper!(namer, vec![bound.try_clone().unwrap()], "the first");
        assert_eq!(executor.block_on(object.call("who?")).unwrap().bytes(), b"the first");
        first.kill();
        until(&executor, "its end was noticed", || !object.is_attached());
        // Nobody serves it now, but somebody could.
        let waits = object.call("who?");
        executor.settle();
        let mut second = start_helper!(namer, vec![bound.try_clone().unwrap()], "the second");
        assert_eq!(executor.block_on(waits).unwrap().bytes(), b"the second");
        assert_eq!(executor.block_on(object.call("who?")).unwrap().bytes(), b"the second");
        second.kill();
        drop(bound);
        let result = executor.block_on(object.call("who?"));
        assert!(matches!(result, Err(CallError::Gone | CallError::Dropped)), "{result:?}");
        assert!(matches!(executor.block_on(object.call("who?")), Err(CallError::Gone)));
    }

    fn a_third_process_answers_in_the_place_of_the_second(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (other_mailbox, other) = testing::packet_pair();
        let deputy = start_helper!(deputy, vec![other_mailbox]);
        let (object, forwarder) = plain_object_of(reactor, |mut fds| {
            fds.push(other);
            start_helper!(forwarder, fds)
        });
        for _ in 0..20 {
            let answer = executor.block_on(object.call("yes")).unwrap();
            assert_eq!(answer.bytes(), b"yes, says the deputy");
        }
        drop(object);
        forwarder.succeeded();
        deputy.succeeded();
    }

    /// The second process has handed the call on and died: the answer comes all the same.
    fn a_continuation_outlives_the_process_that_passed_it_on(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (other, mailbox) = seqpacket::plain_object(reactor).unwrap();
        let (object, mut forwarder) = plain_object_of(reactor, |mut fds| {
            fds.push(other.share().unwrap());
            start_helper!(forwarder, fds)
        });
        let call = object.call("yes");
        let mut passed = executor.block_on(mailbox.next()).unwrap();
        let continuation = PlainContinuation::from_fd(reactor, passed.take_descriptor().unwrap()).unwrap();
        forwarder.kill();
        assert!(!continuation.is_cancelled());
        continuation.answer("all the same").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"all the same");
        drop(passed);
    }

    fn a_withdrawn_call_is_noticed_where_its_continuation_has_gone(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (other, mailbox) = seqpacket::plain_object(reactor).unwrap();
        let (object, mut forwarder) = plain_object_of(reactor, |mut fds| {
            fds.push(other.share().unwrap());
            start_helper!(forwarder, fds)
        });
        let call = object.call("never mind");
        let mut passed = executor.block_on(mailbox.next()).unwrap();
        let continuation = PlainContinuation::from_fd(reactor, passed.take_descriptor().unwrap()).unwrap();
        drop(call);
        executor.block_on(continuation.cancelled());
        forwarder.kill();
    }

    /// One after the other and many at a time; none is lost, and each is its own.
    fn thousands_of_plain_calls_to_another_process_are_all_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = plain_object_of(reactor, |fds| start_helper!(plain_echoer, fds));
        executor.block_on(async {
            for n in 0..2_000_u64 {
                let answer = object.call(plain_data(&n)).await.unwrap();
                assert_eq!(answer.read::<u64>().unwrap(), n);
            }
            for batch in 0..60_u64 {
                let calls: Vec<_> = (0..50_u64).map(|n| object.call(plain_data(&(batch * 50 + n)))).collect();
                for (n, call) in calls.into_iter().enumerate() {
                    assert_eq!(call.await.unwrap().read::<u64>().unwrap(), batch * 50 + n as u64);
                }
            }
        });
        drop(object);
        server.succeeded();
    }

    fn thousands_of_calls_to_another_process_are_all_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, server) = object_of(reactor, |fds| start_helper!(caller_back, fds));
        executor.block_on(async {
            for n in 0..2_000_u64 {
                assert_eq!(object.call(plain_data(&n)).await.unwrap().read::<u64>().unwrap(), n);
            }
            let calls = (0..10_000_u64).map(|n| object.call(plain_data(&n))).collect();
            for (n, result) in all(calls).await.into_iter().enumerate() {
                assert_eq!(result.unwrap(), (n as u64).to_ne_bytes());
            }
        });
        drop(object);
        server.succeeded();
    }

    fn two_processes_that_call_each_other_with_full_windows_do_not_stop(reactor: &Reactor) {
        const COUNT: u64 = 600;
        let executor = Executor::new(reactor);
        let (object, server) = object_of(reactor, |fds| start_helper!(caller_back, fds));
        let (own, mailbox) = seqpacket::object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let served = Rc::new(Cell::new(0));
        executor.block_on(async {
            let back = own.pass_in(plain_data(&COUNT)).await.unwrap();
            let called_back = object.call(back);
            let calls = (0..COUNT).map(|n| object.call(vec![n as u8; LARGE])).collect();
            for (n, result) in all(calls).await.into_iter().enumerate() {
                assert_eq!(result.unwrap(), vec![n as u8; LARGE]);
            }
            served.set(called_back.await.unwrap().read::<u64>().unwrap());
        });
        assert_eq!(served.get(), COUNT);
        drop((object, own));
        server.succeeded();
    }
}
