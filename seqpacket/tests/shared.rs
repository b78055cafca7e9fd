//! Several processes serve one object: each gets its share, nobody keeps what a sibling could serve, and the
//! death of one is the end of nothing but its own calls.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ring::{Executor, Kind, Message, Reactor, ReceiveError, Socket};
use seqpacket::{
    CallError, MailboxOptions, Object, PlainObject, SharedMailbox, SharedPlainMailbox, shared_object,
    shared_plain_object,
};
use support::*;
use testing::{Helper, helper, on_each_driver, packet_pair, settle, start_helper};

const WORKERS: usize = 3;

helper! {
    /// Answers each call with its process's number, when the gate that came with it is closed. Meanwhile it
    /// awaits no other.
    fn worker(descriptors: Vec<OwnedFd>) {
        let [shared] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = SharedMailbox::from_fd(&reactor, shared).unwrap();
        settle(&reactor, async {
            while let Some(mut call) = mailbox.next().await {
                pass(&reactor, call.take_descriptor()).await;
                let _ = call.answer(std::process::id().to_string());
            }
        });
    }

    /// The same for a plain object.
    fn plain_worker(descriptors: Vec<OwnedFd>) {
        let [shared] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = SharedPlainMailbox::from_fd(&reactor, shared).unwrap();
        settle(&reactor, async {
            while let Some(mut call) = mailbox.next().await {
                pass(&reactor, call.take_descriptor()).await;
                let _ = call.answer(std::process::id().to_string());
            }
        });
    }
}

/// Says that the call was taken, and waits for the gate to be closed.
async fn pass(reactor: &Reactor, gate: Option<OwnedFd>) {
    let Some(gate) = gate else { return };
    let gate = Socket::wrap(reactor, gate).unwrap();
    gate.send("taken").await.unwrap();
    assert!(matches!(gate.receive().await, Err(ReceiveError::Closed)));
}

/// What keeps a worker busy with a call until it is dropped, and the message that brings it there.
fn gate(reactor: &Reactor) -> (Socket, Message) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    (near, Message::from("please").with_descriptor(far))
}

fn workers(start: impl Fn(OwnedFd) -> Helper) -> (OwnedFd, Vec<Helper>) {
    let (bound, address) = packet_pair();
    (address, (0..WORKERS).map(|_| start(bound.try_clone().unwrap())).collect())
}

/// So many clients of one object, each with a session of its own.
fn clients(reactor: &Reactor, address: &OwnedFd, count: usize) -> Vec<Object> {
    (0..count).map(|_| Object::from_fd(reactor, address.try_clone().unwrap()).unwrap()).collect()
}

fn process(answer: Result<seqpacket::Answer, CallError>) -> i32 {
    std::str::from_utf8(answer.unwrap().bytes()).unwrap().parse().unwrap()
}

/// One more worker in this process.
fn sibling(mailbox: &SharedMailbox) -> SharedMailbox {
    sibling_with(mailbox.reactor(), mailbox, MailboxOptions::default())
}

fn sibling_with(reactor: &Reactor, mailbox: &SharedMailbox, options: MailboxOptions) -> SharedMailbox {
    SharedMailbox::from_fd_with(reactor, mailbox.share().unwrap(), options).unwrap()
}

/// Serves until nobody calls any more, saying who it is.
async fn serve_as(name: &'static str, mailbox: SharedMailbox) {
    while let Some(call) = mailbox.next().await {
        let _ = call.answer(name);
    }
}

on_each_driver! {
    fn each_worker_serves_one_while_the_others_are_busy(reactor: &Reactor) {
        let (address, workers) = workers(|fd| start_helper!(worker, vec![fd]));
        let clients = clients(reactor, &address, WORKERS);
        let executor = Executor::new(reactor);
        let mut served = executor.block_on(async {
            let mut under_way = Vec::new();
            for client in &clients {
                let (gate, message) = gate(reactor);
                let call = client.call(message);
                assert_eq!(gate.receive().await.unwrap().bytes(), b"taken");
                under_way.push((gate, call));
            }
            let mut served = Vec::new();
            for (gate, call) in under_way {
                drop(gate);
                served.push(process(call.await));
            }
            served
        });
        let mut pids: Vec<_> = workers.iter().map(Helper::pid).collect();
        served.sort_unstable();
        pids.sort_unstable();
        assert_eq!(served, pids);
        drop((clients, address));
        executor.settle();
        workers.into_iter().for_each(Helper::succeeded);
    }

    fn a_busy_worker_keeps_nothing_from_the_others(reactor: &Reactor) {
        let (bound, address) = packet_pair();
        let mut busy = start_helper!(worker, vec![bound.try_clone().unwrap()]);
        let clients = clients(reactor, &address, 20);
        let executor = Executor::new(reactor);
        let (held, message) = gate(reactor);
        let first = clients[0].call(message);
        executor.block_on(async { assert_eq!(held.receive().await.unwrap().bytes(), b"taken") });
        let other = start_helper!(worker, vec![bound]);
        for client in &clients[1..] {
            assert_eq!(process(executor.block_on(client.call("who?"))), other.pid());
        }
        drop(held);
        assert_eq!(process(executor.block_on(first)), busy.pid());
        busy.kill();
    }

    fn the_death_of_a_worker_ends_its_calls_and_its_clients_find_another(reactor: &Reactor) {
        let (address, mut workers) = workers(|fd| start_helper!(worker, vec![fd]));
        let clients = clients(reactor, &address, WORKERS);
        let executor = Executor::new(reactor);
        executor.block_on(async {
            let mut under_way = Vec::new();
            for client in &clients {
                let (gate, message) = gate(reactor);
                let call = client.call(message);
                assert_eq!(gate.receive().await.unwrap().bytes(), b"taken");
                under_way.push((gate, call));
            }
            workers[1].kill();
            let mut dropped = Vec::new();
            let mut served = Vec::new();
            for (number, (gate, call)) in under_way.into_iter().enumerate() {
                drop(gate);
                match call.await {
                    Err(CallError::Dropped) => dropped.push(number),
                    answer => served.push(process(answer)),
                }
            }
            assert_eq!((dropped.len(), served.len()), (1, WORKERS - 1));
            assert!(!served.contains(&workers[1].pid()));
            let again = process(clients[dropped[0]].call("who?").await);
            assert!(again == workers[0].pid() || again == workers[2].pid());
        });
    }

    fn when_the_last_worker_has_died_the_object_is_gone(reactor: &Reactor) {
        let (address, mut workers) = workers(|fd| start_helper!(worker, vec![fd]));
        let [client] = clients(reactor, &address, 1).try_into().unwrap();
        let executor = Executor::new(reactor);
        for left in (0..WORKERS).rev() {
            let now = process(executor.block_on(client.call("who?")));
            let place = workers.iter().position(|worker| worker.pid() == now).unwrap();
            workers.remove(place).kill();
            until(&executor, "its end was noticed", || !client.is_attached());
            assert_eq!(workers.len(), left);
        }
        // The kernel takes its time to close what a ring has held.
        until(&executor, "the object is gone", || {
            matches!(executor.block_on(client.call("anyone?")), Err(CallError::Gone))
        });
    }

    fn who_awaits_no_call_attaches_nobody(reactor: &Reactor) {
        let (object, idle) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call("who?");
        executor.settle();
        assert_eq!(idle.sessions(), 0);
        executor.spawn(serve_as("the other", sibling(&idle)));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"the other");
        assert_eq!(idle.attached_ever(), 0);
    }

    fn who_has_given_up_attaches_nobody(reactor: &Reactor) {
        let (object, idle) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        {
            let mut next = pin!(idle.next());
            assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            executor.settle();
        }
        let call = object.call("who?");
        executor.settle();
        assert_eq!(idle.sessions(), 0);
        executor.spawn(serve_as("the other", sibling(&idle)));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"the other");
    }

    /// Even if it runs first, and for as long as there is something to do.
    fn whoever_runs_first_leaves_some_to_the_others(reactor: &Reactor) {
        let config = ring::Config { driver: testing::driver(), ..ring::Config::default() };
        let other_reactor = Reactor::with_config(config).unwrap();
        let (object, first) = shared_object(reactor).unwrap();
        let second = sibling_with(&other_reactor, &first, MailboxOptions::default());
        let (executor, other) = (Executor::new(reactor), Executor::new(&other_reactor));
        let address = object.share().unwrap();
        let clients = clients(reactor, &address, 40);
        let context = &mut Context::from_waker(Waker::noop());
        let mut attaching: Vec<_> = clients.iter().map(|client| Box::pin(client.attach())).collect();
        for attaching in &mut attaching {
            assert!(attaching.as_mut().poll(context).is_pending());
        }
        let (mut next, mut other_next) = (pin!(first.next()), pin!(second.next()));
        assert!(next.as_mut().poll(context).is_pending());
        assert!(other_next.as_mut().poll(context).is_pending());
        executor.settle();
        other.settle();
        assert!(first.sessions() > 0, "{}", first.sessions());
        assert!(second.sessions() > 0, "{}", first.sessions());
        until(&executor, "all are attached", || {
            other.settle();
            first.sessions() + second.sessions() == 40
        });
        executor.settle();
        assert!(attaching.iter_mut().all(|attaching| attaching.as_mut().poll(context).is_ready()));
    }

    fn a_full_worker_leaves_the_rest_to_the_others(reactor: &Reactor) {
        let (bound, address) = packet_pair();
        let options = MailboxOptions { sessions: 1, ..MailboxOptions::default() };
        let small = SharedMailbox::from_fd_with(reactor, bound, options).unwrap();
        let executor = Executor::new(reactor);
        let large = sibling(&small);
        executor.spawn(serve_as("small", small));
        let clients = clients(reactor, &address, 3);
        assert_eq!(executor.block_on(clients[0].call("who?")).unwrap().bytes(), b"small");
        let waiting = clients[1].call("who?");
        executor.settle();
        executor.spawn(serve_as("large", large));
        assert_eq!(executor.block_on(waiting).unwrap().bytes(), b"large");
        assert_eq!(executor.block_on(clients[2].call("who?")).unwrap().bytes(), b"large");
        assert_eq!(executor.block_on(clients[0].call("who?")).unwrap().bytes(), b"small");
    }

    fn dropping_one_workers_mailbox_is_not_the_end(reactor: &Reactor) {
        let (object, first) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let second = sibling(&first);
        let call = object.call("keep this");
        let taken = executor.block_on(first.next()).unwrap();
        drop(first);
        executor.spawn(serve_as("second", second));
        // What was taken can still be answered; what comes after goes to the other.
        taken.answer("kept").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"kept");
        until(&executor, "its end was noticed", || !object.is_attached());
        assert_eq!(executor.block_on(object.call("who?")).unwrap().bytes(), b"second");
    }

    fn a_worker_that_leaves_leaves_no_call_in_doubt(reactor: &Reactor) {
        let (object, first) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let second = sibling(&first);
        let call = object.call("keep this");
        let taken = executor.block_on(first.next()).unwrap();
        let mut leaving = Box::pin(first.leave(Duration::from_secs(60)));
        assert!(poll_once(&mut leaving).is_pending());
        taken.answer("kept").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"kept");
        executor.block_on(leaving);
        executor.spawn(serve_as("second", second));
        assert_eq!(executor.block_on(object.call("who?")).unwrap().bytes(), b"second");
    }

    fn with_all_callers_gone_each_worker_ends(reactor: &Reactor) {
        let (object, first) = shared_object(reactor).unwrap();
        let second = sibling(&first);
        drop(object);
        let executor = Executor::new(reactor);
        assert!(executor.block_on(first.next()).is_none());
        assert!(executor.block_on(second.next()).is_none());
        assert_eq!(second.share().unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    }

    fn what_a_worker_grants_it_serves_itself(reactor: &Reactor) {
        let (_object, first) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        executor.spawn(serve_as("second", sibling(&first)));
        let granted = Object::from_fd(reactor, first.grant().unwrap()).unwrap();
        executor.spawn(async move {
            let call = first.next().await.unwrap();
            call.answer("first").unwrap();
        });
        assert_eq!(executor.block_on(granted.call("who?")).unwrap().bytes(), b"first");
        until(&executor, "it has ended with its worker", || {
            matches!(executor.block_on(granted.call("who?")), Err(CallError::Gone))
        });
    }

    fn what_is_no_request_is_counted_where_it_was_taken(reactor: &Reactor) {
        let (object, mailbox) = shared_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        testing::send_packet(object.share().unwrap(), b"not c", &[]).unwrap();
        let call = object.call("hello");
        let taken = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(taken.bytes(), b"hello");
        taken.answer("hello").unwrap();
        executor.block_on(call).unwrap();
        assert_eq!(mailbox.violations().not_attaching, 1);
    }

    // -- plain objects ----------------------------------------------------------------------------------

    fn each_plain_worker_serves_one_while_the_others_are_busy(reactor: &Reactor) {
        let (object, workers) = workers(|fd| start_helper!(plain_worker, vec![fd]));
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let executor = Executor::new(reactor);
        let mut served = executor.block_on(async {
            let mut under_way = Vec::new();
            for _ in 0..WORKERS {
                let (gate, message) = gate(reactor);
                let call = object.call(message);
                assert_eq!(gate.receive().await.unwrap().bytes(), b"taken");
                under_way.push((gate, call));
            }
            let mut served = Vec::new();
            for (gate, call) in under_way {
                drop(gate);
                served.push(process(call.await));
            }
            served
        });
        let mut pids: Vec<_> = workers.iter().map(Helper::pid).collect();
        served.sort_unstable();
        pids.sort_unstable();
        assert_eq!(served, pids);
        drop(object);
        executor.settle();
        workers.into_iter().for_each(Helper::succeeded);
    }

    /// Forty calls in the queue, and one that is busy with the first of them.
    fn a_busy_plain_worker_keeps_nothing_from_the_others(reactor: &Reactor) {
        let (object, busy) = shared_plain_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let calls: Vec<_> = (0..40).map(|_| object.call("who?")).collect();
        executor.settle();
        let held = executor.block_on(busy.next()).unwrap();
        let other = SharedPlainMailbox::from_fd(reactor, busy.share().unwrap()).unwrap();
        executor.spawn(async move {
            while let Some(call) = other.next().await {
                let _ = call.answer("the other");
            }
        });
        let mut calls = calls.into_iter();
        let first = calls.next().unwrap();
        for call in calls {
            assert_eq!(executor.block_on(call).unwrap().bytes(), b"the other");
        }
        held.answer("the busy one").unwrap();
        assert_eq!(executor.block_on(first).unwrap().bytes(), b"the busy one");
    }

    fn the_death_of_a_plain_worker_ends_what_it_has_taken(reactor: &Reactor) {
        let (bound, object) = packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let mut first = start_helper!(plain_worker, vec![bound.try_clone().unwrap()]);
        let executor = Executor::new(reactor);
        let (held, message) = gate(reactor);
        let taken = object.call(message);
        executor.block_on(async { assert_eq!(held.receive().await.unwrap().bytes(), b"taken") });
        let waiting = object.call("who?");
        executor.settle();
        let mut second = start_helper!(plain_worker, vec![bound]);
        first.kill();
        assert!(matches!(executor.block_on(taken), Err(CallError::Dropped)));
        assert_eq!(process(executor.block_on(waiting)), second.pid());
        second.kill();
        until(&executor, "the object is gone", || {
            matches!(executor.block_on(object.call("anyone?")), Err(CallError::Gone))
        });
    }

    fn several_tasks_of_a_plain_worker_share_its_calls(reactor: &Reactor) {
        let (object, mailbox) = shared_plain_object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let calls: Vec<_> = (0..3).map(|_| object.call("hello")).collect();
        let context = &mut Context::from_waker(Waker::noop());
        let mut tasks: Vec<_> = (0..3).map(|_| Box::pin(mailbox.next())).collect();
        let mut taken = Vec::new();
        for task in &mut tasks {
            assert!(task.as_mut().poll(context).is_pending());
        }
        until(&executor, "each task has one", || {
            tasks.retain_mut(|task| match task.as_mut().poll(context) {
                Poll::Ready(call) => {
                    taken.extend(call);
                    false
                }
                Poll::Pending => true,
            });
            tasks.is_empty()
        });
        assert_eq!(taken.len(), 3);
        taken.into_iter().for_each(|call| call.answer("hello").unwrap());
        for call in calls {
            executor.block_on(call).unwrap();
        }
    }

    fn what_is_no_plain_call_is_counted_where_it_was_taken(reactor: &Reactor) {
        let (object, mailbox) = shared_plain_object(reactor).unwrap();
        mailbox.set_arguments_max(1);
        let executor = Executor::new(reactor);
        testing::send_packet(object.share().unwrap(), b"no continuation", &[]).unwrap();
        let call = object.call("hello");
        let taken = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(taken.credentials().unwrap().pid, std::process::id() as i32);
        taken.answer("hello").unwrap();
        executor.block_on(call).unwrap();
        assert_eq!(mailbox.violations().without_continuation, 1);
    }
}
