//! A descriptor that runs a callback: for whoever sends into it, whatever they send, whatever the callback
//! does, and until which end.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use ring::{Executor, Reactor, SendError, Socket};
use seqpacket::{Listening, make_socket, plain_object};
use support::*;
use testing::{Census, helper, on_each_driver, start_helper};

/// What the callback was given: bytes, and how many descriptors.
type Told = Rc<RefCell<Vec<(Vec<u8>, usize)>>>;

fn told(reactor: &Reactor) -> (OwnedFd, Listening, Told) {
    let told = Told::default();
    let tells = Rc::clone(&told);
    let (fd, listening) = make_socket(reactor, move |message| {
        tells.borrow_mut().push((message.bytes().to_vec(), message.descriptors()));
    })
    .unwrap();
    (fd, listening, told)
}

helper! {
    /// Knows `sendmsg`, and nothing of who listens.
    fn says_three_things(descriptors: Vec<OwnedFd>) {
        let fd = null();
        testing::send_packet(&descriptors[0], b"one", &[]).unwrap();
        testing::send_packet(&descriptors[0], b"two", &[fd.as_fd()]).unwrap();
        testing::send_packet(&descriptors[0], b"three", &[]).unwrap();
    }

    /// Says more than any queue holds.
    fn says_two_thousand_things(descriptors: Vec<OwnedFd>) {
        for n in 0..2_000_u32 {
            testing::send_packet(&descriptors[0], &n.to_ne_bytes(), &[]).unwrap();
        }
    }
}

on_each_driver! {
    /// One message for each message, where the browser needed five.
    fn another_process_runs_the_callback(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let senders = Rc::new(RefCell::new(Vec::new()));
        let told = Told::default();
        let (tells, seen) = (Rc::clone(&told), Rc::clone(&senders));
        let before = reactor.stats();
        let (fd, listening) = make_socket(reactor, move |message| {
            seen.borrow_mut().push(message.credentials().unwrap().pid);
            tells.borrow_mut().push((message.bytes().to_vec(), message.descriptors()));
        })
        .unwrap();
        let helper = start_helper!(says_three_things, vec![fd]);
        let pid = helper.pid();
        executor.block_on(listening.ended());
        let said = [(b"one".to_vec(), 0), (b"two".to_vec(), 1), (b"three".to_vec(), 0)];
        assert_eq!(*told.borrow(), said);
        assert_eq!(*senders.borrow(), [pid; 3]);
        let after = reactor.stats();
        assert_eq!(after.messages_received - before.messages_received, 3);
        assert_eq!(after.messages_sent - before.messages_sent, 0);
        helper.succeeded();
    }

    fn a_flood_arrives_in_order_and_whole(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, listening, told) = told(reactor);
        let helper = start_helper!(says_two_thousand_things, vec![fd]);
        executor.block_on(listening.ended());
        let said = told.borrow();
        assert!(said.iter().map(|(bytes, _)| bytes.as_slice()).eq((0..2_000_u32).map(|n| n.to_ne_bytes())));
        helper.succeeded();
    }

    /// As whoever inherits a descriptor does.
    fn several_holders_run_one_callback(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, listening, told) = told(reactor);
        let helpers: Vec<_> = (0..3)
            .map(|_| start_helper!(says_three_things, vec![fd.try_clone().unwrap()]))
            .collect();
        helpers.into_iter().for_each(testing::Helper::succeeded);
        assert!(!listening.has_ended());
        drop(fd);
        executor.block_on(listening.ended());
        assert_eq!(told.borrow().len(), 9);
    }

    fn it_runs_whatever_the_tasks_do(reactor: &Reactor) {
        let (fd, _listening, told) = told(reactor);
        testing::send_packet(&fd, b"now", &[]).unwrap();
        // Without an executor.
        testing::wait_until("the callback has run", || {
            testing::turn(reactor);
            told.borrow().len() == 1
        });
    }

    // What is no message.

    fn what_is_no_message_is_dropped_and_counted(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, listening, told) = told(reactor);
        let null = null();
        let census = Census::take();
        testing::send_packet(&fd, b"", &[null.as_fd()]).unwrap();
        testing::send_packet(&fd, &[1; 102_081], &[null.as_fd()]).unwrap();
        testing::send_packet(&fd, b"too many", &[null.as_fd(); 17]).unwrap();
        testing::send_packet(&fd, &[1; 102_080], &[null.as_fd(); 16]).unwrap();
        executor.settle();
        assert_eq!(*told.borrow(), [(vec![1; 102_080], 16)]);
        let violations = listening.violations();
        assert_eq!((violations.truncated, violations.descriptors_lost), (1, 1));
        assert_eq!(reactor.stats().empty_packets, 1);
        census.unchanged();
        listening.set_descriptors_max(253);
        testing::send_packet(&fd, b"many", &[null.as_fd(); 253]).unwrap();
        until(&executor, "they have come", || told.borrow().len() == 2);
        assert_eq!(told.borrow()[1], (b"many".to_vec(), 253));
        census.unchanged();
    }

    /// The callback takes nothing, and whoever sent it is not waited for.
    fn a_lingering_descriptor_keeps_nobody_waiting(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, _listening, told) = told(reactor);
        let testing::Lingering { near, far } = testing::lingering_tcp();
        testing::send_packet(&fd, b"close this", &[near.as_fd()]).unwrap();
        ring::discard(near);
        executor.settle();
        assert_eq!(told.borrow().len(), 1);
        assert!(ring::closer_busy());
        drop(far);
    }

    // What a callback may do.

    fn a_callback_may_end_the_listening(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let slot: Rc<RefCell<Option<Listening>>> = Rc::default();
        let count = Rc::new(Cell::new(0));
        let (taken, counts) = (Rc::clone(&slot), Rc::clone(&count));
        let (fd, listening) = make_socket(reactor, move |_| {
            counts.set(counts.get() + 1);
            let listening = taken.borrow_mut().take();
            drop(listening);
        })
        .unwrap();
        *slot.borrow_mut() = Some(listening);
        for _ in 0..3 {
            testing::send_packet(&fd, b"enough", &[]).unwrap();
        }
        executor.settle();
        assert_eq!(count.get(), 1, "not once more, whatever has arrived");
        assert_eq!(Rc::strong_count(&count), 1, "the callback is gone");
        assert!(testing::send_packet(&fd, b"anyone?", &[]).is_err());
    }

    fn a_callback_may_call_objects_and_wait_for_them(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let bytes = call.bytes().to_vec();
                let _ = call.answer(bytes);
            }
        });
        let answers = Rc::new(RefCell::new(Vec::new()));
        let (keeps, calls, runs) = (Rc::clone(&answers), object.clone(), executor.clone());
        let (fd, listening) = make_socket(reactor, move |message| {
            // A turn within a turn: other messages of this very descriptor arrive meanwhile.
            let answer = runs.block_on(calls.call(message.bytes())).unwrap();
            keeps.borrow_mut().push(answer.into_bytes());
        })
        .unwrap();
        for n in 0..20_u8 {
            testing::send_packet(&fd, &[n + 1], &[]).unwrap();
        }
        drop(fd);
        executor.block_on(listening.ended());
        assert!(answers.borrow().iter().map(|bytes| bytes[0]).eq(1..=20));
        drop((listening, object));
        executor.settle();
    }

    fn a_callback_may_send_to_itself(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let sender: Rc<RefCell<Option<OwnedFd>>> = Rc::default();
        let (sends, count) = (Rc::clone(&sender), Rc::new(Cell::new(0)));
        let counts = Rc::clone(&count);
        let (fd, listening) = make_socket(reactor, move |message| {
            counts.set(counts.get() + 1);
            if counts.get() < 10 {
                testing::send_packet(sends.borrow().as_ref().unwrap(), message.bytes(), &[]).unwrap();
            } else {
                // The last copy: this is the end.
                let last = sends.borrow_mut().take();
                drop(last);
            }
        })
        .unwrap();
        testing::send_packet(&fd, b"again", &[]).unwrap();
        *sender.borrow_mut() = Some(fd);
        executor.block_on(listening.ended());
        assert_eq!(count.get(), 10);
    }

    fn a_callback_may_make_another(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let made: Rc<RefCell<Vec<(OwnedFd, Listening)>>> = Rc::default();
        let (makes, count, in_reactor) = (Rc::clone(&made), Rc::new(Cell::new(0)), reactor.clone());
        let counts = Rc::clone(&count);
        let (fd, listening) = make_socket(reactor, move |_| {
            let counts = Rc::clone(&counts);
            let another = make_socket(&in_reactor, move |_| counts.set(counts.get() + 1)).unwrap();
            makes.borrow_mut().push(another);
        })
        .unwrap();
        testing::send_packet(&fd, b"make one", &[]).unwrap();
        testing::send_packet(&fd, b"make another", &[]).unwrap();
        executor.settle();
        for (fd, _) in made.borrow().iter() {
            testing::send_packet(fd, b"hello", &[]).unwrap();
        }
        executor.settle();
        assert_eq!(count.get(), 2);
        drop((listening, made));
    }

    /// What is left in the queue is lost, and nobody waits for what is in it.
    fn dropping_the_listening_ends_it_for_the_senders(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, listening, told) = told(reactor);
        let socket = Socket::wrap(reactor, fd).unwrap();
        assert!(fill(&socket) > 10);
        drop(listening);
        assert!(matches!(executor.block_on(socket.send("anyone?")), Err(SendError::Gone)));
        assert!(told.borrow().is_empty());
    }

    fn the_callback_is_gone_before_the_end_is_told(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let held = Rc::new(());
        let holds = Rc::clone(&held);
        let (fd, listening) = make_socket(reactor, move |_| {
            let _ = &holds;
        })
        .unwrap();
        assert!(poll_once(&mut Box::pin(listening.ended())).is_pending());
        drop(fd);
        executor.block_on(listening.ended());
        assert!(listening.has_ended());
        assert_eq!(Rc::strong_count(&held), 1);
        executor.block_on(listening.ended());
    }

    /// And each of those who wait for it is told.
    fn all_who_wait_for_the_end_are_told(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (fd, listening, _told) = told(reactor);
        let mut first = Box::pin(listening.ended());
        let mut second = Box::pin(listening.ended());
        let counts = Counts::default();
        let mut watched = Watched::new(&mut second, &counts);
        assert!(poll_once(&mut first).is_pending());
        assert!(poll_once(&mut watched).is_pending());
        drop(fd);
        executor.block_on(first.as_mut());
        assert_eq!(counts.wakes(), 1);
        assert!(poll_once(&mut watched).is_ready());
    }

    /// A program that looks at other things meanwhile waits for the end again and again.
    fn waiting_for_the_end_and_giving_up_leaves_nothing_behind(reactor: &Reactor) {
        let (_fd, listening, _told) = told(reactor);
        let counts = Counts::default();
        for _ in 0..100 {
            let mut ended = Box::pin(listening.ended());
            assert!(poll_once(&mut Watched::new(&mut ended, &counts)).is_pending());
        }
        assert_eq!(counts.wakers(), 0);
    }
}
