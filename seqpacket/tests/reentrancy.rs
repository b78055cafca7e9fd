//! Wakers that do something: drop objects, calls and mailboxes, or call, in the middle of whatever woke or
//! dropped them. Nothing of the library is borrowed then, or these would panic.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;

use ring::{Executor, Reactor};
use seqpacket::{Call, Mailbox, Object, PlainCall, object, plain_object};
use testing::{Census, on_each_driver};

type Deed = Box<dyn FnOnce()>;

thread_local! {
    /// What wakers do. They are `Send` and what they drop is not, so that it lies here.
    static DEEDS: RefCell<Vec<Option<Deed>>> = const { RefCell::new(Vec::new()) };
}

/// When a waker does its deed.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Woken,
    Dropped,
}

/// A waker that does one thing, once.
struct Doing {
    deed: usize,
    when: When,
    thread: ThreadId,
}

impl Doing {
    fn waker(when: When, deed: impl FnOnce() + 'static) -> Waker {
        let deed = DEEDS.with_borrow_mut(|deeds| {
            deeds.push(Some(Box::new(deed)));
            deeds.len() - 1
        });
        Waker::from(Arc::new(Doing { deed, when, thread: std::thread::current().id() }))
    }

    fn act(&self) {
        assert_eq!(self.thread, std::thread::current().id());
        let deed = DEEDS.with_borrow_mut(|deeds| deeds[self.deed].take());
        if let Some(deed) = deed {
            deed();
        }
    }
}

impl Wake for Doing {
    fn wake(self: Arc<Self>) {
        if self.when == When::Woken {
            self.act();
        }
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        if self.when == When::Dropped {
            self.act();
        }
    }
}

fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// What was not done is not to be held. Most was.
fn forget_deeds() {
    let deeds = DEEDS.take();
    let undone = deeds.iter().filter(|deed| deed.is_some()).count();
    assert!(undone * 4 <= deeds.len(), "{undone} of {} were not done", deeds.len());
    drop(deeds);
}

/// A cell that a deed empties.
type Held<T> = Rc<RefCell<Option<T>>>;

fn held<T>(value: T) -> Held<T> {
    Rc::new(RefCell::new(Some(value)))
}

fn let_go<T>(held: &Held<T>) {
    let value = held.borrow_mut().take();
    drop(value);
}

/// Everything a program may hold of both sides, and may let go of at any moment.
struct All {
    object: Held<Object>,
    mailbox: Held<Mailbox>,
    calls: Held<Vec<Call>>,
    plain_calls: Held<Vec<PlainCall>>,
}

impl All {
    fn new(reactor: &Reactor) -> All {
        let (object, mailbox) = object(reactor).unwrap();
        let calls = (0..5).map(|n| object.call(vec![n])).collect();
        All {
            object: held(object),
            mailbox: held(mailbox),
            calls: held(calls),
            plain_calls: held(Vec::new()),
        }
    }

    fn share(&self) -> All {
        All {
            object: Rc::clone(&self.object),
            mailbox: Rc::clone(&self.mailbox),
            calls: Rc::clone(&self.calls),
            plain_calls: Rc::clone(&self.plain_calls),
        }
    }

    /// Lets go of one thing, or does something else that reaches far.
    fn harm(&self, what: usize) {
        match what {
            0 => let_go(&self.object),
            1 => let_go(&self.mailbox),
            2 => let_go(&self.calls),
            3 => let_go(&self.plain_calls),
            4 => {
                for n in 0..4 {
                    self.harm(n);
                }
            }
            5 => {
                // More calls, from within.
                let object = self.object.borrow().clone();
                if let (Some(object), Some(calls)) = (object, self.calls.borrow_mut().as_mut()) {
                    calls.extend((0..3).map(|n| object.call(vec![n])));
                }
            }
            _ => {
                // One call less, one call taken and dropped.
                let call = self.calls.borrow_mut().as_mut().and_then(Vec::pop);
                drop(call);
                if let Some(mailbox) = &*self.mailbox.borrow() {
                    let mut next = mailbox.next();
                    drop(poll_with(&mut next, Waker::noop()));
                }
            }
        }
    }
}

const WORST: usize = 7;

on_each_driver! {
    fn wakers_of_calls_may_do_anything(reactor: &Reactor) {
        let census = Census::take();
        for when in [When::Woken, When::Dropped] {
            for what in 0..WORST {
                let other = testing::reactor();
                let executor = Executor::new(&other);
                let all = All::new(&other);
                let first = all.object.borrow().as_ref().unwrap().call("first");
                let mut first = Some(first);
                let shared = all.share();
                let waker = Doing::waker(when, move || shared.harm(what));
                assert!(poll_with(first.as_mut().unwrap(), &waker).is_pending());
                drop(waker);
                let mailbox = Rc::clone(&all.mailbox);
                // Answers what it can while there is a mailbox.
                for _ in 0..50 {
                    executor.settle();
                    let taken = mailbox
                        .borrow()
                        .as_ref()
                        .map(|mailbox| poll_with(&mut mailbox.next(), Waker::noop()));
                    if let Some(Poll::Ready(Some(call))) = taken {
                        let _ = call.answer("ok");
                    }
                }
                // The second waker replaces the first, which is dropped in the middle of that.
                if let Some(call) = &mut first {
                    let _ = poll_with(call, Waker::noop());
                }
                first.take();
                executor.settle();
            }
        }
        forget_deeds();
        census.unchanged();
        let _ = reactor;
    }

    fn wakers_of_those_who_wait_for_calls_may_do_anything(reactor: &Reactor) {
        let census = Census::take();
        for when in [When::Woken, When::Dropped] {
            for what in 0..WORST {
                let other = testing::reactor();
                let executor = Executor::new(&other);
                let all = All::new(&other);
                let shared = all.share();
                let waker = Doing::waker(when, move || shared.harm(what));
                // By hand, so that nothing is borrowed when the mailbox is let go of.
                let mailbox = all.mailbox.borrow_mut().take().unwrap();
                assert!(mailbox.poll_next(&mut Context::from_waker(&waker)).is_pending());
                all.mailbox.replace(Some(mailbox));
                drop(waker);
                executor.settle();
                let taken = all.mailbox.borrow_mut().take();
                if let Some(mailbox) = taken {
                    let _ = mailbox.poll_next(&mut Context::from_waker(Waker::noop()));
                    all.mailbox.replace(Some(mailbox));
                }
                executor.settle();
            }
        }
        forget_deeds();
        census.unchanged();
        let _ = reactor;
    }

    fn wakers_of_those_who_watch_for_withdrawal_may_do_anything(reactor: &Reactor) {
        let census = Census::take();
        for when in [When::Woken, When::Dropped] {
            for what in 0..WORST {
                let other = testing::reactor();
                let executor = Executor::new(&other);
                let all = All::new(&other);
                let withdrawn = all.object.borrow().as_ref().unwrap().call("withdrawn");
                let mut taken = Vec::new();
                executor.settle();
                while let Poll::Ready(Some(call)) =
                    poll_with(&mut all.mailbox.borrow().as_ref().unwrap().next(), Waker::noop())
                {
                    taken.push(call);
                }
                let shared = all.share();
                let waker = Doing::waker(when, move || shared.harm(what));
                for call in &taken {
                    let mut context = Context::from_waker(&waker);
                    assert!(call.continuation().poll_cancelled(&mut context).is_pending());
                }
                drop(waker);
                drop(withdrawn);
                executor.settle();
                let_go(&all.calls);
                executor.settle();
                let_go(&all.object);
                executor.settle();
                drop(taken);
            }
        }
        forget_deeds();
        census.unchanged();
        let _ = reactor;
    }

    fn wakers_of_those_who_attach_may_do_anything(reactor: &Reactor) {
        let census = Census::take();
        for when in [When::Woken, When::Dropped] {
            for what in 0..WORST {
                let other = testing::reactor();
                let executor = Executor::new(&other);
                let all = All::new(&other);
                let object = all.object.borrow().clone().unwrap();
                let mut attaching = Box::pin(async move { object.attach().await });
                let shared = all.share();
                let waker = Doing::waker(when, move || shared.harm(what));
                assert!(poll_with(&mut attaching, &waker).is_pending());
                drop(waker);
                executor.settle();
                drop(attaching);
                executor.settle();
            }
        }
        forget_deeds();
        census.unchanged();
        let _ = reactor;
    }

    fn wakers_of_plain_calls_may_do_anything(reactor: &Reactor) {
        let census = Census::take();
        for when in [When::Woken, When::Dropped] {
            for what in 0..WORST {
                let other = testing::reactor();
                let executor = Executor::new(&other);
                let all = All::new(&other);
                let (plain, mailbox) = plain_object(&other).unwrap();
                all.plain_calls.replace(Some((0..5).map(|n| plain.call(vec![n, n])).collect()));
                let mut first = plain.call("first");
                let shared = all.share();
                let held_object = held(plain);
                let held_mailbox = held(mailbox);
                let (object, plain_mailbox) = (Rc::clone(&held_object), Rc::clone(&held_mailbox));
                let waker = Doing::waker(when, move || {
                    let_go(&object);
                    let_go(&plain_mailbox);
                    shared.harm(what);
                });
                assert!(poll_with(&mut first, &waker).is_pending());
                drop(waker);
                executor.settle();
                let taken = held_mailbox.borrow_mut().take();
                if let Some(mailbox) = taken {
                    // Twice: they are more than are handed out between two turns.
                    for _ in 0..2 {
                        while let Poll::Ready(Some(call)) =
                            poll_with(&mut Box::pin(mailbox.next()), Waker::noop())
                        {
                            let _ = call.answer("ok");
                        }
                        executor.settle();
                    }
                }
                let _ = poll_with(&mut first, Waker::noop());
                drop(first);
                executor.settle();
            }
        }
        forget_deeds();
        census.unchanged();
        let _ = reactor;
    }

    /// A task that holds everything, dropped by its executor while it waits.
    fn what_a_task_holds_goes_with_its_executor(reactor: &Reactor) {
        let census = Census::take();
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            let taken = mailbox.next().await.unwrap();
            let plainly = plain_mailbox.next().await.unwrap();
            let never = object.call("never");
            drop(never.await);
            drop((taken, plainly));
        });
        let spawned = executor.clone();
        let (caller, _other) = seqpacket::object(reactor).unwrap();
        spawned.spawn(async move {
            let call = caller.call("nobody answers");
            let plain_call = plain.call("nor here");
            drop(call.await);
            drop(plain_call.await);
        });
        executor.settle();
        drop((executor, spawned));
        drop(_other);
        Executor::new(reactor).settle();
        census.unchanged();
    }
}
