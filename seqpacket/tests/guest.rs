//! Objects on a guest: called from, and served in, a program whose loop is its own. The other side is another
//! process, with a reactor that sleeps by itself.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::{
    CALLS_A_TURN_MAX, CallError, CallOptions, Mailbox, MailboxOptions, Object, PlainMailbox, PlainObject,
    object, plain_data, plain_object,
};
use testing::{Host, TRIGGERS, Trigger, helper, on_each_driver, start_helper};

helper! {
    /// Echoes calls until nobody can call any more; those that say `wait` are kept, unanswered.
    fn serves(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [bound] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
        testing::settle(&reactor, async {
            let mut kept = Vec::new();
            while let Some(call) = mailbox.next().await {
                if call.bytes() == b"wait" {
                    kept.push(call);
                    continue;
                }
                let answer = Message::new(call.bytes());
                let _ = call.answer(answer);
            }
        });
    }

    /// The same for plain calls.
    fn serves_plainly(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [bound] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let mailbox = PlainMailbox::from_fd(&reactor, bound).unwrap();
        testing::settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let answer = Message::new(call.bytes());
                let _ = call.answer(answer);
            }
        });
    }

    /// Calls many times, some at a time, and checks each answer.
    fn calls(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [address] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let object = Object::from_fd(&reactor, address).unwrap();
        testing::settle(&reactor, async {
            for round in 0..50_u64 {
                let calls: Vec<_> = (0..8).map(|n| object.call(plain_data(&(round * 8 + n)))).collect();
                for (n, call) in (0..).zip(calls) {
                    assert_eq!(call.await.unwrap().read::<u64>().unwrap(), round * 8 + n);
                }
            }
        });
    }
}

/// An object of the host's guest, served by another process.
fn served(host: &Host) -> (Object, testing::Helper) {
    let (bound, address) = testing::packet_pair();
    let helper = start_helper!(serves, vec![bound]);
    (Object::from_fd(host.reactor(), address).unwrap(), helper)
}

on_each_driver! {
    fn a_guest_calls_another_process(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (object, helper) = served(&host);
            host.runs(async move {
                for number in 0..100_u64 {
                    let answer = object.call(plain_data(&number)).await.unwrap();
                    assert_eq!(answer.read::<u64>().unwrap(), number);
                }
                let calls: Vec<_> = (0..100_u64).map(|n| object.call(plain_data(&n))).collect();
                for (n, call) in (0..).zip(calls) {
                    assert_eq!(call.await.unwrap().read::<u64>().unwrap(), n);
                }
            });
            host.calm();
            helper.succeeded();
        }
    }

    fn a_guest_calls_a_plain_object(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (bound, address) = testing::packet_pair();
            let helper = start_helper!(serves_plainly, vec![bound]);
            let object = PlainObject::from_fd(host.reactor(), address).unwrap();
            host.runs(async move {
                for number in 0..50_u64 {
                    let answer = object.call(plain_data(&number)).await.unwrap();
                    assert_eq!(answer.read::<u64>().unwrap(), number);
                }
            });
            host.calm();
            helper.succeeded();
        }
    }

    fn a_guest_serves_another_process(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (bound, address) = testing::packet_pair();
            let mailbox = Mailbox::from_fd(host.reactor(), bound).unwrap();
            let helper = start_helper!(calls, vec![address]);
            host.runs(async move {
                while let Some(call) = mailbox.next().await {
                    let answer = Message::new(call.bytes());
                    let _ = call.answer(answer);
                }
            });
            helper.succeeded();
        }
    }

    fn the_death_of_the_server_ends_the_calls_of_a_guest(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (object, mut helper) = served(&host);
            let first = object.clone();
            host.runs(async move { first.call("are you there?").await.unwrap() });
            let waiting = Rc::new(RefCell::new(None));
            let (told, second) = (Rc::clone(&waiting), object.clone());
            host.guest().executor().spawn(async move {
                *told.borrow_mut() = Some(second.call("wait").await.unwrap_err());
            });
            host.calm();
            helper.kill();
            host.sleep_until(|| waiting.borrow().is_some());
            let error = waiting.borrow_mut().take().unwrap();
            assert!(matches!(error, CallError::Gone | CallError::Dropped), "{error:?}");
            drop(object);
            host.calm();
        }
    }

    /// The deadline is a timer, and the host sleeps no longer than that.
    fn a_call_that_nobody_answers_ends_in_time(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (object, helper) = served(&host);
            let options = || CallOptions { within: Some(Duration::from_millis(5)), ..CallOptions::default() };
            let error = host.runs(async move {
                object.call("attach first").await.unwrap();
                object.call_with("wait", options()).await.unwrap_err()
            });
            assert!(matches!(error, CallError::Deadline), "{error:?}");
            host.calm();
            helper.succeeded();
        }
    }

    /// As code of the host's own may: no task, a future that it polls when it is woken.
    fn a_call_can_be_polled_by_the_host_itself(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (object, helper) = served(&host);
            for round in 0..20_u64 {
                host.calm();
                let mut call = Box::pin(object.call(plain_data(&round)));
                let answer = loop {
                    match support::poll_once(&mut call) {
                        Poll::Ready(answer) => break answer,
                        Poll::Pending => host.sleep(),
                    }
                };
                assert_eq!(answer.unwrap().read::<u64>().unwrap(), round);
            }
            drop(object);
            host.calm();
            helper.succeeded();
        }
    }

    fn a_session_that_is_idle_does_not_call_the_host(_reactor: &Reactor) {
        let mut host = Host::new(Trigger::Level);
        let (object, helper) = served(&host);
        let calls = object.clone();
        host.runs(async move { calls.call("once").await.unwrap() });
        while host.sleep_at_most(Duration::from_millis(50)) {}
        let before = host.calls();
        assert!(!host.sleep_at_most(Duration::from_millis(50)), "there was nothing to do");
        assert_eq!(host.calls(), before);
        drop(object);
        host.calm();
        helper.succeeded();
    }

    fn both_sides_can_live_on_one_guest(_reactor: &Reactor) {
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (object, mailbox) = object(host.reactor()).unwrap();
            let (plain, plain_mailbox) = plain_object(host.reactor()).unwrap();
            let served = Rc::new(Cell::new(0));
            let (counted, counted_too) = (Rc::clone(&served), Rc::clone(&served));
            host.guest().executor().spawn(async move {
                while let Some(call) = mailbox.next().await {
                    counted.set(counted.get() + 1);
                    let _ = call.answer("here");
                }
            });
            host.guest().executor().spawn(async move {
                while let Some(call) = plain_mailbox.next().await {
                    counted_too.set(counted_too.get() + 1);
                    let _ = call.answer("here");
                }
            });
            host.runs(async move {
                for _ in 0..50 {
                    assert_eq!(object.call("where?").await.unwrap().bytes(), b"here");
                    assert_eq!(plain.call("where?").await.unwrap().bytes(), b"here");
                }
            });
            assert_eq!(served.get(), 100);
            host.calm();
        }
    }

    /// More calls than one turn hands out, taken by the host's own code, which answers none of them yet.
    fn a_mailbox_that_keeps_calls_for_the_next_turn_calls_the_host(reactor: &Reactor) {
        const CALLS: usize = CALLS_A_TURN_MAX as usize + 10;
        for trigger in TRIGGERS {
            let mut host = Host::new(trigger);
            let (bound, address) = testing::packet_pair();
            let (calls, bytes) = (2 * CALLS_A_TURN_MAX, 1 << 26);
            let options = MailboxOptions { calls, bytes, ..MailboxOptions::default() };
            let mailbox = Mailbox::from_fd_with(host.reactor(), bound, options).unwrap();
            let client = Executor::new(reactor);
            let object = Object::from_fd(reactor, address).unwrap();
            let bare = || CallOptions { answer_descriptors: Some(0), ..CallOptions::default() };
            let calls: Vec<_> = (0..CALLS).map(|_| object.call_with("keep this", bare())).collect();
            let mut kept = Vec::new();
            let next = || support::poll_once(&mut poll_fn(|context| mailbox.poll_next(context)));
            assert!(next().is_pending(), "there was no call yet");
            testing::wait_until("all have come", || {
                client.settle();
                host.calm();
                mailbox.stats().calls.begun == CALLS as u64
            });
            while kept.len() < CALLS {
                match next() {
                    Poll::Ready(call) => kept.push(call.unwrap()),
                    Poll::Pending => host.sleep(),
                }
            }
            drop((calls, object, kept, mailbox));
            client.settle();
            host.calm();
        }
    }
}
