//! Grants taken back: by whom, with what came of them, and what everybody else notices, which is nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use ring::{Executor, Reactor};
use seqpacket::{CallError, Mailbox, Object, object};
use support::*;
use testing::{helper, on_each_driver, settle, start_helper};

helper! {
    /// Calls what it was given, passes a grant of it on, and calls until it may not any more.
    fn guest(descriptors: Vec<OwnedFd>) {
        let [granted, pass_to] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let granted = Object::from_fd(&reactor, granted).unwrap();
        let pass_to = Object::from_fd(&reactor, pass_to).unwrap();
        settle(&reactor, async {
            let passed = granted.pass_in("for you").await.unwrap();
            pass_to.call(passed).await.unwrap();
            // Answered when it is too late.
            assert!(matches!(granted.call("one more").await, Err(CallError::Dropped)));
            assert!(matches!(granted.call("and another").await, Err(CallError::Gone)));
        });
    }
}

fn may_call(executor: &Executor, object: &Object) -> bool {
    match executor.block_on(object.call("hello")) {
        Ok(_) => true,
        Err(CallError::Gone | CallError::Dropped) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A grant that `object`'s holder has asked for.
fn granted_by(executor: &Executor, object: &Object) -> Object {
    Object::from_fd(object.reactor(), executor.block_on(object.grant()).unwrap()).unwrap()
}

/// Answers every call, while the test keeps the mailbox.
fn serve(executor: &Executor, mailbox: &Rc<Mailbox>) {
    let mailbox = Rc::clone(mailbox);
    executor.spawn(async move {
        while let Some(call) = mailbox.next().await {
            let _ = call.answer("hello");
        }
    });
}

on_each_driver! {
    fn what_came_of_a_grant_is_taken_back_with_it(reactor: &Reactor) {
        let (friend, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let executor = Executor::new(reactor);
        serve(&executor, &mailbox);
        let (fd, grant) = mailbox.grant_revocable().unwrap();
        let guest = Object::from_fd(reactor, fd).unwrap();
        let guests_guest = granted_by(&executor, &guest);
        let and_theirs = granted_by(&executor, &guests_guest);
        let other = granted_by(&executor, &friend);
        for object in [&friend, &guest, &guests_guest, &and_theirs, &other] {
            assert!(may_call(&executor, object));
        }
        grant.revoke();
        assert_eq!((mailbox.sessions(), mailbox.grants().len()), (2, 1));
        for object in [&guest, &guests_guest, &and_theirs] {
            assert!(!may_call(&executor, object));
        }
        for object in [&friend, &other] {
            assert!(may_call(&executor, object));
        }
    }

    /// Its holder has closed it and gone; what it has passed on is still in the world.
    fn a_grant_without_holders_can_be_taken_back_with_what_came_of_it(reactor: &Reactor) {
        let (_friend, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let executor = Executor::new(reactor);
        serve(&executor, &mailbox);
        let (fd, grant) = mailbox.grant_revocable().unwrap();
        let guest = Object::from_fd(reactor, fd).unwrap();
        let middle = granted_by(&executor, &guest);
        let last = granted_by(&executor, &middle);
        assert!(may_call(&executor, &last));
        drop((guest, middle));
        until(&executor, "only the last is open", || {
            mailbox.grants().len() == 1 && mailbox.sessions() == 1
        });
        assert!(grant.is_closed());
        grant.revoke();
        assert!(!may_call(&executor, &last));
        assert!(mailbox.grants().is_empty());
    }

    /// Grant through grant through grant: nothing is left of those that are closed.
    fn a_long_line_of_grants_is_shortened_as_it_goes(reactor: &Reactor) {
        let (friend, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let executor = Executor::new(reactor);
        serve(&executor, &mailbox);
        let mut last = granted_by(&executor, &friend);
        for _ in 0..100 {
            last = granted_by(&executor, &last);
        }
        until(&executor, "one is left", || mailbox.grants().len() == 1);
        assert!(may_call(&executor, &last));
        mailbox.revoke_all();
        assert!(!may_call(&executor, &last));
        assert!(may_call(&executor, &friend));
    }

    fn all_grants_are_taken_back_and_the_first_address_stays(reactor: &Reactor) {
        let (friend, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let executor = Executor::new(reactor);
        serve(&executor, &mailbox);
        let ours = Object::from_fd(reactor, mailbox.grant().unwrap()).unwrap();
        let theirs = granted_by(&executor, &friend);
        assert!(may_call(&executor, &ours) && may_call(&executor, &theirs));
        assert_eq!(mailbox.grants().len(), 2);
        mailbox.revoke_all();
        assert!(!may_call(&executor, &ours) && !may_call(&executor, &theirs));
        assert!(may_call(&executor, &friend));
        assert!(mailbox.grants().is_empty());
        // There is nothing against another.
        assert!(may_call(&executor, &granted_by(&executor, &friend)));
    }

    fn the_server_finds_what_clients_have_asked_for_and_who(reactor: &Reactor) {
        let (friend, mailbox) = object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let executor = Executor::new(reactor);
        serve(&executor, &mailbox);
        let ours = mailbox.grant().unwrap();
        let theirs = granted_by(&executor, &friend);
        let asked: Vec<_> = mailbox.grants().iter().map(|grant| grant.asked_by()).collect();
        assert_eq!(asked.len(), 2);
        assert!(asked[0].is_none());
        assert_eq!(asked[1].unwrap().pid, std::process::id() as i32);
        mailbox.grants()[1].revoke();
        assert!(!may_call(&executor, &theirs));
        drop(ours);
        until(&executor, "the other is closed", || mailbox.grants().is_empty());
    }

    fn a_handler_takes_back_the_grant_of_whoever_calls(reactor: &Reactor) {
        let (friend, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let guest = Object::from_fd(reactor, mailbox.grant().unwrap()).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                match call.grant() {
                    Some(grant) => {
                        assert!(call.came_through(&grant) && !grant.is_closed());
                        grant.revoke();
                        assert!(grant.is_closed() && call.continuation().is_cancelled());
                    }
                    None => call.answer("hello").unwrap(),
                }
            }
        });
        assert!(may_call(&executor, &friend));
        assert!(matches!(executor.block_on(guest.call("hello")), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(guest.call("hello")), Err(CallError::Gone)));
        assert!(may_call(&executor, &friend));
    }

    fn a_grant_is_closed_when_nobody_holds_it_and_when_the_mailbox_is_gone(reactor: &Reactor) {
        let (_friend, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let (fd, forgotten) = mailbox.grant_revocable().unwrap();
        let (_kept, orphaned) = mailbox.grant_revocable().unwrap();
        drop(fd);
        until(&executor, "it is closed", || forgotten.is_closed());
        assert!(!orphaned.is_closed());
        drop(mailbox);
        assert!(orphaned.is_closed());
        orphaned.revoke();
    }

    /// The guest's process, and the one it has passed its right on to, in one stroke.
    fn processes_that_lose_a_grant_are_told_so(reactor: &Reactor) {
        let (_friend, mailbox) = object(reactor).unwrap();
        let (catch, caught) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let (fd, grant) = mailbox.grant_revocable().unwrap();
        let guest = start_helper!(guest, vec![fd, catch.share().unwrap()]);
        let mut passed = executor.block_on(caught.next()).unwrap();
        let received = passed.take_object(reactor).unwrap();
        passed.answer("thanks").unwrap();
        let call = received.call("hello");
        let mut calls = vec![executor.block_on(mailbox.next()).unwrap()];
        calls.push(executor.block_on(mailbox.next()).unwrap());
        grant.revoke();
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(received.call("hello")), Err(CallError::Gone)));
        for call in calls {
            assert!(call.answer("too late").is_err());
        }
        executor.settle();
        guest.succeeded();
    }
}
