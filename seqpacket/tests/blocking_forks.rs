//! Blocking objects in processes that fork, and in several threads: a child has a session of its own,
//! the parent's calls notice nothing, and whoever holds a copy of a session does not keep it alive. It knows
//! nothing of packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ring::fork::{Notice, notice};
use ring::{Executor, Reactor};
use seqpacket::blocking::{Object, Outgoing, PlainObject};
use seqpacket::{CallError, Incoming, Mailbox, PlainMailbox, plain_data};
use support::{message_of, null};
use testing::{Census, Helper, fork, helper, in_own_process, on_each_driver, start_helper};

fn served() -> (Helper, Object) {
    let (address, bound) = testing::packet_pair();
    (start_helper!(server, vec![bound]), Object::from_fd(address).unwrap())
}

fn plainly_served() -> (Helper, PlainObject) {
    let (address, mailbox) = testing::packet_pair();
    (start_helper!(plain_server, vec![mailbox]), PlainObject::from_fd(address).unwrap())
}

/// How many sessions the server has or had.
#[track_caller]
fn told(object: &Object, question: &str) -> u64 {
    object.call(question).unwrap().read().unwrap()
}

#[track_caller]
fn echoes(object: &Object, count: u32) {
    for n in 0..count {
        assert_eq!(object.call(&n.to_le_bytes()).unwrap().bytes(), n.to_le_bytes());
    }
}

fn a_child_attaches_anew_and_ends_nothing() {
    let (_server, object) = served();
    let mut object = Some(object);
    let held = object.as_ref().unwrap();
    assert_eq!(told(held, "attached ever"), 1);
    fork(|| {
        let here = object.as_ref().unwrap();
        assert!(!here.is_attached());
        assert_eq!(told(here, "attached ever"), 2);
        echoes(here, 50);
        object = None;
    })
    .succeeded();
    let object = object.unwrap();
    assert!(object.is_attached());
    echoes(&object, 50);
    assert_eq!(told(&object, "attached ever"), 2);
}

on_each_driver! {
    fn a_child_has_a_session_of_its_own(_reactor: &Reactor) {
        a_child_attaches_anew_and_ends_nothing();
    }

    fn what_the_parent_has_begun_is_answered_to_the_parent(_reactor: &Reactor) {
        let (_server, object) = served();
        let unsent = object.begin("not sent yet").unwrap();
        let later = object.begin("after the next").unwrap();
        object.flush().unwrap();
        let mut begun = vec![unsent, later];
        fork(|| {
            // Dropped in the child: neither cancelled nor answered there.
            for pending in begun.drain(..) {
                assert!(matches!(pending.finish(), Err(CallError::Dropped)));
            }
            echoes(&object, 3);
        })
        .succeeded();
        fork(|| {
            drop(std::mem::take(&mut begun));
            echoes(&object, 3);
        })
        .succeeded();
        echoes(&object, 1);
        let answers: Vec<_> = begun.drain(..).map(|pending| pending.finish().unwrap().into_bytes()).collect();
        assert_eq!(answers, [&b"not sent yet"[..], b"after the next"]);
    }

    fn children_of_children_call_too(_reactor: &Reactor) {
        let (_server, object) = served();
        echoes(&object, 1);
        fork(|| {
            echoes(&object, 1);
            fork(|| {
                echoes(&object, 1);
                assert_eq!(told(&object, "attached ever"), 3);
            })
            .succeeded();
            echoes(&object, 1);
        })
        .succeeded();
        echoes(&object, 1);
        assert_eq!(told(&object, "attached ever"), 3);
    }

    fn a_child_leaves_no_descriptor_of_the_parents_session(_reactor: &Reactor) {
        let (_server, object) = served();
        let fd = null();
        echoes(&object, 1);
        fork(|| {
            echoes(&object, 1);
            let census = Census::take();
            for _ in 0..10 {
                drop(object.call(Outgoing::from("one").lend(fd.as_fd())).unwrap());
            }
            census.unchanged();
        })
        .succeeded();
        // One copy was closed and one session opened: as many as here.
        let here = Census::take().len();
        fork(|| {
            echoes(&object, 1);
            assert_eq!(Census::take().len(), here);
        })
        .succeeded();
    }

    fn a_session_ends_with_its_owner_although_a_child_has_a_copy(_reactor: &Reactor) {
        let (_server, object) = served();
        let other = object.try_clone().unwrap();
        echoes(&object, 1);
        echoes(&other, 1);
        let (gone, waiting) = std::io::pipe().unwrap();
        let child = fork(|| {
            drop(waiting);
            let _ = (&gone).read(&mut [0]);
        });
        assert_eq!(told(&other, "sessions"), 2);
        drop(object);
        testing::wait_until("the session has ended", || told(&other, "sessions") == 1);
        child.kill();
    }

    fn threads_call_at_a_time_and_none_hears_anothers_answer(_reactor: &Reactor) {
        let (_server, object) = served();
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let object = object.try_clone().unwrap();
                scope.spawn(move || {
                    for n in 0..300_u64 {
                        let answer = object.call(plain_data(&[thread, n])).unwrap();
                        assert_eq!(answer.read::<[u64; 2]>().unwrap(), [thread, n]);
                    }
                });
            }
        });
    }

    /// What a library does that does not own its process.
    fn children_call_while_threads_of_the_parent_do(_reactor: &Reactor) {
        let (_server, object) = served();
        let (_plain_server, plain) = plainly_served();
        echoes(&object, 1);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                let (object, plain, stop) = (object.try_clone().unwrap(), plain.try_clone().unwrap(), &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        echoes(&object, 10);
                        assert_eq!(plain.call("plain").unwrap().bytes(), b"plain");
                    }
                });
            }
            for _ in 0..10 {
                let child = fork(|| {
                    echoes(&object, 20);
                    assert_eq!(plain.call("child").unwrap().bytes(), b"child");
                });
                echoes(&object, 20);
                child.succeeded();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    fn a_child_calls_a_plain_object_and_leaves_the_parents_answer_alone(_reactor: &Reactor) {
        let (_server, object) = plainly_served();
        object.call("first").unwrap();
        let mut begun = Some(object.begin("after the next").unwrap());
        fork(|| {
            assert!(matches!(begun.take().unwrap().finish(), Err(CallError::Dropped)));
        })
        .succeeded();
        fork(|| {
            drop(begun.take());
            assert_eq!(object.call("child").unwrap().bytes(), b"child");
        })
        .succeeded();
        assert_eq!(begun.unwrap().finish().unwrap().bytes(), b"after the next");
    }
}

in_own_process! {
    fn handles_go_to_other_threads_with_what_they_answer() {
        fn is_send<T: Send>() {}
        is_send::<Object>();
        is_send::<PlainObject>();
        is_send::<seqpacket::blocking::Answer>();
        is_send::<CallError>();
    }

    fn without_a_page_that_is_wiped_a_child_attaches_anew_all_the_same() {
        testing::refuse_wiping_on_fork();
        a_child_attaches_anew_and_ends_nothing();
        assert_eq!(notice(), Notice::ProcessNumber);
    }
}

fn echo(call: Incoming) {
    let (bytes, descriptors, continuation) = call.into_parts();
    let _ = continuation.answer(message_of(bytes, descriptors));
}

helper! {
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [bound] = descriptors.try_into().unwrap();
        let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
        Executor::new(&reactor).block_on(async {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"attached ever" => drop(call.answer(plain_data(&mailbox.attached_ever()))),
                    b"sessions" => drop(call.answer(plain_data(&(mailbox.sessions() as u64)))),
                    b"after the next" => {
                        if let Some(next) = mailbox.next().await {
                            echo(next);
                        }
                        echo(call);
                    }
                    _ => echo(call),
                }
            }
        });
    }

    fn plain_server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let [mailbox] = descriptors.try_into().unwrap();
        let mailbox = PlainMailbox::from_fd(&reactor, mailbox).unwrap();
        Executor::new(&reactor).block_on(async {
            while let Some(call) = mailbox.next().await {
                let (bytes, descriptors, continuation) = call.into_parts();
                if bytes == b"after the next" {
                    let next = mailbox.next().await.unwrap();
                    let (bytes, descriptors, continuation) = next.into_parts();
                    let _ = continuation.answer(message_of(bytes, descriptors));
                }
                let _ = continuation.answer(message_of(bytes, descriptors));
            }
        });
    }
}
