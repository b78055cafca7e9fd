//! What a server keeps of continuations that went home with its answers: copies, to close them together; and
//! that none of them hides from a caller that a later call of it will not be answered. It knows nothing of
//! what the caller does with a pair.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::{
    ANSWERED_MAX, CallError, PlainCall, PlainIncoming, PlainMailbox, PlainObject, ReturnTrust,
    SharedPlainMailbox,
};
use testing::{Census, on_each_driver};

/// Longer than any of this takes. Whoever does not see the end waits for as long.
const LONG: Duration = Duration::from_secs(20);

/// A server on a reactor of its own, which takes a turn only when it is told to: no time passes there.
struct Server {
    executor: Executor,
    mailbox: PlainMailbox,
}

impl Server {
    fn takes(&self) -> PlainIncoming {
        self.executor.block_on(self.mailbox.next()).unwrap()
    }
}

fn served(reactor: &Reactor) -> (PlainObject, Server) {
    let there = testing::reactor();
    let (bound, address) = testing::packet_pair();
    let mailbox = PlainMailbox::from_fd(&there, bound).unwrap();
    mailbox.return_continuations();
    let object = PlainObject::from_fd(reactor, address).unwrap();
    let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
    (object, Server { executor: Executor::new(&there), mailbox })
}

/// The same, where one call was answered. The next is made with the same pair.
fn served_once(here: &Executor) -> (PlainObject, Server) {
    let (object, server) = served(here.reactor());
    let call = object.call("one");
    server.takes().answer("one").unwrap();
    assert_eq!(here.block_on(call).unwrap().bytes(), b"one");
    (object, server)
}

#[track_caller]
fn is_dropped(here: &Executor, object: &PlainObject, call: PlainCall) {
    let ended = here.block_on(call);
    assert!(matches!(ended, Err(CallError::Dropped)), "{ended:?}");
    assert_eq!(object.returns().reused, 1);
}

fn open() -> usize {
    ring::closer_idle();
    Census::take().len()
}

on_each_driver! {
    fn sixteen_are_closed_together(reactor: &Reactor) {
        let (object, server) = served(reactor);
        let calls: Vec<PlainCall> = (0..ANSWERED_MAX).map(|_| object.call("hello")).collect();
        let taken: Vec<PlainIncoming> = calls.iter().map(|_| server.takes()).collect();
        let before = open();
        for (answered, call) in taken.into_iter().enumerate() {
            assert_eq!(open(), before, "{answered} answered");
            call.answer("hello").unwrap();
        }
        assert_eq!(open(), before - ANSWERED_MAX);
    }

    fn a_call_that_is_let_go_of_ends(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let call = object.call("two").within(LONG);
        drop(server.takes());
        is_dropped(&here, &object, call);
    }

    fn a_call_that_is_handed_on_and_let_go_of_ends(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let call = object.call("two").within(LONG);
        drop(server.takes().into_continuation().into_fd().unwrap());
        is_dropped(&here, &object, call);
    }

    fn a_call_whose_answer_cannot_be_sent_ends(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let call = object.call("two").within(LONG);
        assert!(server.takes().answer("").is_err());
        is_dropped(&here, &object, call);
    }

    fn a_call_in_the_queue_of_a_mailbox_that_is_dropped_ends(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let call = object.call("two").within(LONG);
        drop(server.mailbox);
        // The receive that is away comes home, and no more.
        server.executor.settle();
        is_dropped(&here, &object, call);
    }

    fn a_call_in_the_queue_ends_with_the_mailbox_while_another_is_not_answered_yet(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let first = object.call("two").within(LONG);
        let kept = server.takes();
        kept.answer("two").unwrap();
        here.block_on(first).unwrap();
        let (answered, waits) = (object.call("three"), object.call("four").within(LONG));
        let not_yet = server.takes();
        drop(server.mailbox);
        assert!(matches!(here.block_on(waits), Err(CallError::Dropped)));
        not_yet.answer("three").unwrap();
        assert_eq!(here.block_on(answered).unwrap().bytes(), b"three");
    }

    fn a_call_that_has_lost_descriptors_ends(reactor: &Reactor) {
        let here = Executor::new(reactor);
        let (object, server) = served_once(&here);
        let Server { executor, mailbox } = server;
        mailbox.set_arguments_max(0);
        let (given, _) = testing::packet_pair();
        let call = object.call(Message::from("two").with_descriptor(given)).within(LONG);
        executor.spawn(async move { assert!(mailbox.next().await.is_none()) });
        executor.settle();
        is_dropped(&here, &object, call);
    }

    /// What one of them kept would hide the death of another.
    fn nothing_is_kept_beside_other_servers(reactor: &Reactor) {
        let there = testing::reactor();
        let (bound, address) = testing::packet_pair();
        let mailbox = SharedPlainMailbox::from_fd(&there, bound).unwrap();
        mailbox.return_continuations();
        let object = PlainObject::from_fd(reactor, address).unwrap();
        let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
        let _call = object.call("hello");
        let taken = Executor::new(&there).block_on(mailbox.next()).unwrap();
        let before = open();
        taken.answer("hello").unwrap();
        assert_eq!(open(), before - 1);
    }
}
