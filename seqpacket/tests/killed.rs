//! Processes killed with descriptors on their way: whoever survives is told, its other calls go on, and every
//! descriptor that was with the dead is closed. It knows nothing of how waiters are woken; that is in
//! `deaths.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ring::{Executor, Message, Reactor};
use seqpacket::{CallError, Incoming, Mailbox, Object, PlainMailbox, PlainObject, object, plain_object};
use support::{attached, echo, null, until};
use testing::{Helper, helper, on_each_driver, only, settle, start_helper};

helper! {
    /// Keeps what it is called with, descriptors and all; "how many?" is answered.
    fn keeper(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut kept = Vec::new();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"how many?" => drop(call.answer(kept.len().to_string())),
                    _ => kept.push(call),
                }
            }
        });
    }

    /// As that one, of a plain object.
    fn plain_keeper(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        let mut kept = Vec::new();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"how many?" => drop(call.answer(kept.len().to_string())),
                    _ => kept.push(call),
                }
            }
        });
    }

    /// Serves nobody: what comes stays in the kernel's queues.
    fn holder(descriptors: Vec<OwnedFd>) {
        settle(&testing::reactor(), std::future::pending::<()>());
        drop(descriptors);
    }

    /// Calls with a descriptor of its own, and waits for an answer that does not come.
    fn caller(descriptors: Vec<OwnedFd>) {
        let [object, writer] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, object).unwrap();
        let _ = settle(&reactor, object.call(Message::from("hold this").with_descriptor(writer)));
    }

    /// As that one, of a plain object.
    fn plain_caller(descriptors: Vec<OwnedFd>) {
        let [object, writer] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = PlainObject::from_fd(&reactor, object).unwrap();
        let _ = settle(&reactor, object.call(Message::from("hold this").with_descriptor(writer)));
    }

    /// Attaches through what it is given, and stays.
    fn stays_attached(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, only(descriptors)).unwrap();
        settle(&reactor, object.attach()).unwrap();
        settle(&reactor, std::future::pending::<()>());
    }
}

/// A pipe whose reader sees the end when the last copy of the writer is closed, wherever it is.
fn pipe() -> (PipeReader, OwnedFd) {
    let (reader, writer): (_, PipeWriter) = std::io::pipe().unwrap();
    (reader, writer.into())
}

/// Nobody has the other end any more, dead or alive.
#[track_caller]
fn is_closed_everywhere(mut reader: PipeReader) {
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

fn of(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (Object, Helper) {
    let (bound, address) = testing::packet_pair();
    (Object::from_fd(reactor, address).unwrap(), start(vec![bound]))
}

fn plain_of(reactor: &Reactor, start: impl FnOnce(Vec<OwnedFd>) -> Helper) -> (PlainObject, Helper) {
    let (bound, address) = testing::packet_pair();
    (PlainObject::from_fd(reactor, address).unwrap(), start(vec![bound]))
}

fn echoed(executor: &Executor, reactor: &Reactor) -> Object {
    let (object, mailbox) = object(reactor).unwrap();
    executor.spawn(echo(mailbox));
    attached(executor, object)
}

on_each_driver! {
    fn a_killed_server_lets_go_of_what_it_was_called_with(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = of(reactor, |end| start_helper!(keeper, end));
        let (reader, writer) = pipe();
        let call = object.call(Message::from("keep this").with_descriptor(writer));
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"1");
        server.kill();
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        is_closed_everywhere(reader);
    }

    fn a_killed_server_lets_go_of_what_it_has_not_received(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = of(reactor, |end| start_helper!(keeper, end));
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"0");
        let (reader, writer) = pipe();
        server.stop();
        let call = object.call(Message::from("keep this").with_descriptor(writer));
        executor.settle();
        server.kill();
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        is_closed_everywhere(reader);
    }

    /// What could not be sent yet has not been seen.
    fn what_waits_for_a_window_of_a_killed_server_is_closed_here(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = of(reactor, |end| start_helper!(keeper, end));
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"0");
        let (window, _) = object.windows().unwrap();
        let mut calls = Vec::new();
        let mut readers = Vec::new();
        for _ in 0..window.descriptors + 8 {
            let (reader, writer) = pipe();
            calls.push(object.call(Message::from("keep this").with_descriptor(writer)));
            readers.push(reader);
        }
        until(&executor, "the window is full", || {
            reactor.stats().descriptors_sent >= u64::from(window.descriptors)
        });
        server.kill();
        let ends: Vec<_> = calls.into_iter().map(|call| executor.block_on(call).unwrap_err()).collect();
        let sent = window.descriptors as usize;
        assert!(ends[..sent].iter().all(|error| matches!(error, CallError::Dropped)), "{ends:?}");
        assert!(ends[sent..].iter().all(|error| matches!(error, CallError::Gone)), "{ends:?}");
        readers.into_iter().for_each(is_closed_everywhere);
    }

    fn a_request_to_attach_that_nobody_took_ends_with_its_holder(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = of(reactor, |end| start_helper!(holder, end));
        let (reader, writer) = pipe();
        let call = object.call(Message::from("anyone?").with_descriptor(writer));
        executor.settle();
        server.kill();
        assert!(matches!(executor.block_on(call), Err(CallError::Gone)));
        is_closed_everywhere(reader);
    }

    fn a_killed_plain_server_lets_go_of_everything(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mut server) = plain_of(reactor, |end| start_helper!(plain_keeper, end));
        let (held, held_writer) = pipe();
        let first = object.call(Message::from("keep this").with_descriptor(held_writer));
        assert_eq!(executor.block_on(object.call("how many?")).unwrap().bytes(), b"1");
        server.stop();
        let (queued, queued_writer) = pipe();
        let second = object.call(Message::from("and this").with_descriptor(queued_writer));
        executor.settle();
        server.kill();
        assert!(matches!(executor.block_on(first), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(second), Err(CallError::Dropped)));
        is_closed_everywhere(held);
        is_closed_everywhere(queued);
    }

    /// The call goes on, since nobody took it back, and its descriptors are the server's.
    fn what_a_killed_client_has_sent_is_here_until_it_is_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (reader, writer) = pipe();
        let mut client = start_helper!(caller, vec![object.share().unwrap(), writer]);
        let held: Rc<RefCell<Option<Incoming>>> = Rc::default();
        let (mailbox, holds) = (Rc::new(mailbox), Rc::clone(&held));
        let serves = Rc::clone(&mailbox);
        executor.spawn(async move {
            *holds.borrow_mut() = serves.next().await;
        });
        until(&executor, "it has called", || held.borrow().is_some());
        client.kill();
        until(&executor, "its session is over", || mailbox.sessions() == 0);
        let mut call = held.take().unwrap();
        assert!(call.continuation().is_cancelled());
        let fd = call.take_descriptor().unwrap();
        assert!(call.answer(Message::from("too late").with_descriptor(null())).is_err());
        drop(fd);
        is_closed_everywhere(reader);
        drop(object);
    }

    fn what_a_killed_plain_client_has_sent_can_be_answered_into_the_void(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let (reader, writer) = pipe();
        let mut client = start_helper!(plain_caller, vec![object.share().unwrap(), writer]);
        let mut call = executor.block_on(mailbox.next()).unwrap();
        client.kill();
        drop(call.take_descriptor());
        is_closed_everywhere(reader);
        // Whether its caller is there nobody asks before answering.
        let (reader, writer) = pipe();
        let _ = call.answer(Message::from("too late").with_descriptor(writer));
        executor.settle();
        is_closed_everywhere(reader);
        drop(object);
    }

    fn the_death_of_a_holder_concerns_no_other(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let serves = Rc::clone(&mailbox);
        executor.spawn(async move {
            while let Some(call) = serves.next().await {
                let answer = call.bytes().to_vec();
                let _ = call.answer(answer);
            }
        });
        let object = attached(&executor, object);
        let grant = mailbox.grant().unwrap();
        let mut shares = start_helper!(stays_attached, vec![object.share().unwrap()]);
        let mut granted = start_helper!(stays_attached, vec![grant.try_clone().unwrap()]);
        until(&executor, "both are attached", || mailbox.sessions() == 3);
        let under_way = object.call("under way");
        shares.kill();
        granted.kill();
        until(&executor, "their sessions are over", || mailbox.sessions() == 1);
        assert_eq!(executor.block_on(under_way).unwrap().bytes(), b"under way");
        // Whoever has another copy of the grant can still use it.
        let heir = Object::from_fd(reactor, grant).unwrap();
        assert_eq!(executor.block_on(heir.call("mine now")).unwrap().bytes(), b"mine now");
        assert_eq!(mailbox.violations(), Default::default());
    }

    fn a_survivor_calls_others_as_before(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let others = echoed(&executor, reactor);
        for _ in 0..5 {
            let (object, mut server) = of(reactor, |end| start_helper!(keeper, end));
            let (reader, writer) = pipe();
            let lost = object.call(Message::from("keep this").with_descriptor(writer));
            let kept = others.call(Message::from("mine").with_descriptor(null()));
            executor.settle();
            server.kill();
            assert!(executor.block_on(lost).is_err());
            assert_eq!(executor.block_on(kept).unwrap().descriptors(), 1);
            is_closed_everywhere(reader);
        }
    }
}
