//! Fairness, counted in calls: a session that keeps its window full does not keep the others waiting.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use ring::{Executor, Reactor};
use seqpacket::{Mailbox, Object, object};
use support::*;
use testing::on_each_driver;

/// A second session of the same object.
fn another(reactor: &Reactor, executor: &Executor, object: &Object) -> Object {
    attached(executor, Object::from_fd(reactor, object.share().unwrap()).unwrap())
}

/// Calls again and again, as many at a time as the window has, until told to stop.
fn flood(executor: &Executor, object: &Object, calls_at_a_time: usize) {
    for _ in 0..calls_at_a_time {
        let object = object.clone();
        executor.spawn(async move { while object.call("flood").await.is_ok() {} });
    }
}

/// Takes one call in each turn, so that the flood is always ahead, and writes down whose it was.
fn serve_slowly(executor: &Executor, mailbox: Mailbox) -> Rc<RefCell<Vec<Vec<u8>>>> {
    let order = Rc::new(RefCell::new(Vec::new()));
    let writes = Rc::clone(&order);
    executor.spawn(async move {
        while let Some(call) = mailbox.next().await {
            writes.borrow_mut().push(call.bytes().to_vec());
            let bytes = call.bytes().to_vec();
            let _ = call.answer(bytes);
            pause().await;
        }
    });
    order
}

/// Lets everybody else have a turn.
async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

on_each_driver! {
    fn a_single_call_waits_for_one_of_a_flooding_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (flooder, mailbox) = object(reactor).unwrap();
        let single = another(reactor, &executor, &flooder);
        let flooder = attached(&executor, flooder);
        let calls: Vec<_> = (0..2_000).map(|_| flooder.call("flood")).collect();
        executor.settle();
        for _ in 0..10 {
            let call = single.call("single");
            executor.settle();
            // It is in the mailbox; from here on it is about turns.
            let mut before = 0;
            executor.block_on(async {
                loop {
                    let incoming = mailbox.next().await.unwrap();
                    let found = incoming.bytes() == b"single";
                    incoming.answer("ok").unwrap();
                    if found {
                        break;
                    }
                    before += 1;
                }
            });
            assert!(before <= 1, "{before} calls of the other session came first");
            assert!(executor.block_on(call).is_ok());
        }
        drop(calls);
    }

    fn each_of_many_sessions_has_its_turn(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (flooder, mailbox) = object(reactor).unwrap();
        let quiet: Vec<_> = (0..10).map(|_| another(reactor, &executor, &flooder)).collect();
        let flooder = attached(&executor, flooder);
        let mut calls: Vec<_> = (0..500).map(|_| flooder.call("flood")).collect();
        calls.extend(quiet.iter().flat_map(|object| (0..3).map(|_| object.call("quiet"))));
        executor.settle();
        let mut first = Vec::new();
        executor.block_on(async {
            for _ in 0..33 {
                first.push(mailbox.next().await.unwrap());
            }
        });
        // Three rounds of eleven.
        assert_eq!(first.iter().filter(|call| call.bytes() == b"quiet").count(), 30);
        drop(calls);
    }

    /// End to end, the kernel's queues included.
    fn a_call_beside_a_flood_is_answered_after_few_of_its_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (flooder, mailbox) = object(reactor).unwrap();
        let single = another(reactor, &executor, &flooder);
        let flooder = attached(&executor, flooder);
        let order = serve_slowly(&executor, mailbox);
        flood(&executor, &flooder, 300);
        executor.block_on(async {
            while order.borrow().len() < 600 {
                pause().await;
            }
        });
        for _ in 0..20 {
            let before = order.borrow().len();
            assert!(executor.block_on(single.call("single")).is_ok());
            let meanwhile = order.borrow().len() - before;
            assert!(meanwhile <= 32, "{meanwhile} calls of the flood were answered first");
        }
    }
}
