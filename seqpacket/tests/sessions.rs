//! Sessions between two sides that mean well: packets, descriptors, objects in messages, withdrawing,
//! leaving, and what is left when everything is dropped. It knows nothing of strangers.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::wire::{Kind, PAYLOAD_BYTES_MAX};
use seqpacket::{
    AnswerError, CallError, CallOptions, Mailbox, MailboxOptions, Object, ObjectOptions, object, object_with,
    plain_data, plain_object,
};
use support::*;
use testing::{Census, on_each_driver};

/// Long enough for what must not take that long.
const LATE: Duration = Duration::from_secs(60);

/// What a reactor has sent: packets and descriptors.
fn sent(reactor: &Reactor) -> (u64, u64) {
    let stats = reactor.stats();
    (stats.messages_sent, stats.descriptors_sent)
}

on_each_driver! {
    fn calls_of_one_turn_travel_in_one_packet_each_way(reactor: &Reactor) {
        let (client, server) = (Executor::new(reactor), Executor::new(&testing::reactor()));
        let (bound, address) = testing::packet_pair();
        let object = Object::from_fd(client.reactor(), address).unwrap();
        let mailbox = Mailbox::from_fd(server.reactor(), bound).unwrap();
        server.spawn(echo(mailbox));
        let first = Rc::new(Cell::new(false));
        let (calls, done) = (object.clone(), Rc::clone(&first));
        client.spawn(async move { done.set(calls.call("first").await.is_ok()) });
        until(&client, "the session is attached", || {
            server.settle();
            first.get()
        });

        let before = (sent(client.reactor()), sent(server.reactor()));
        let calls: Vec<_> = (0..32_u64).map(|n| object.call(plain_data(&n))).collect();
        let done = Rc::new(RefCell::new(Vec::new()));
        let results = Rc::clone(&done);
        client.spawn(async move { *results.borrow_mut() = all(calls).await });
        until(&client, "all are answered", || {
            server.settle();
            done.borrow().len() == 32
        });
        for (n, result) in done.borrow().iter().enumerate() {
            assert_eq!(result.as_ref().unwrap(), &(n as u64).to_ne_bytes());
        }
        let after = (sent(client.reactor()), sent(server.reactor()));
        assert_eq!((after.0.0 - before.0.0, after.0.1 - before.0.1), (1, 0), "by the client");
        assert_eq!((after.1.0 - before.1.0, after.1.1 - before.1.1), (1, 0), "by the server");
    }

    /// A session: one socket on each side, whatever is called.
    fn a_call_takes_no_descriptor(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let object = attached(&executor, object);
        let census = Census::take();
        let calls: Vec<_> = (0..100).map(|_| object.call("hello")).collect();
        executor.settle();
        census.unchanged();
        executor.spawn(echo(mailbox));
        assert!(executor.block_on(all(calls)).iter().all(Result::is_ok));
        census.unchanged();
    }

    fn answers_go_to_their_calls_in_any_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let calls: Vec<_> = (0..50_u64).map(|n| object.call(plain_data(&n))).collect();
        executor.spawn(async move {
            let mut taken = Vec::new();
            for _ in 0..50 {
                taken.push(mailbox.next().await.unwrap());
            }
            while let Some(call) = taken.pop() {
                let n: u64 = call.read().unwrap();
                call.answer(plain_data(&(n * n))).unwrap();
            }
        });
        for (n, result) in executor.block_on(all(calls)).into_iter().enumerate() {
            assert_eq!(result.unwrap(), ((n * n) as u64).to_ne_bytes());
        }
    }

    fn messages_of_all_sizes_come_back_whole(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let sizes = [0, 1, 15, 16, 17, 1023, 1024, 1025, 4096, 30_000, 102_063, 102_064];
        let room = |size| CallOptions { answer_bytes: Some(size), ..CallOptions::default() };
        let call = |size: &usize| object.call_with(vec![*size as u8; *size], room(*size));
        let calls: Vec<_> = sizes.iter().map(call).collect();
        for (size, result) in sizes.iter().zip(executor.block_on(all(calls))) {
            assert_eq!(result.unwrap(), vec![*size as u8; *size]);
        }
    }

    /// More than the window takes: the rest waits, and no answer is lost.
    fn many_more_calls_than_fit_the_windows_are_all_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let calls: Vec<_> = (0..5_000_u64).map(|n| object.call(plain_data(&n))).collect();
        for (n, result) in executor.block_on(all(calls)).into_iter().enumerate() {
            assert_eq!(result.unwrap(), (n as u64).to_ne_bytes());
        }
    }

    fn descriptors_travel_in_calls_and_answers_in_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = ObjectOptions { answer_descriptors: 253, ..ObjectOptions::default() };
        let windows = MailboxOptions { call_descriptors: 253, descriptors: 600, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, options, windows).unwrap();
        executor.spawn(echo(mailbox));
        let object = attached(&executor, object);
        let census = Census::take();
        for count in [0, 1, 15, 16, 17, 252, 253] {
            let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().unwrap()).collect();
            let (mut readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
            let writers = writers.into_iter().map(OwnedFd::from).collect();
            let mut answer = executor.block_on(object.call(message_of(vec![1], writers))).unwrap();
            assert_eq!(answer.descriptors(), count);
            for (place, (fd, reader)) in answer.take_descriptors().into_iter().zip(&mut readers).enumerate() {
                assert!(is_close_on_exec(&fd), "{place} of {count}");
                std::fs::File::from(fd).write_all(&[place as u8]).unwrap();
                let mut came = Vec::new();
                reader.read_to_end(&mut came).unwrap();
                assert_eq!(came, [place as u8], "{place} of {count}");
            }
        }
        let fd = Fd::from(null());
        let result = executor.block_on(object.call(with_many("too many", &fd, 254)));
        assert!(matches!(result, Err(CallError::TooLarge(_))));
        drop(fd);
        executor.settle();
        census.unchanged();
    }

    fn descriptors_that_nobody_takes_are_closed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(mut call) = mailbox.next().await {
                // Every second one; what it keeps goes with it.
                while call.descriptors() > 0 {
                    drop(call.take_descriptor());
                    if call.descriptors() == 2 {
                        break;
                    }
                }
                let _ = call.answer(message_of(b"here".to_vec(), (0..4).map(|_| null()).collect()));
            }
        });
        let object = attached(&executor, object);
        let census = Census::take();
        let mut answer =
            executor.block_on(object.call(message_of(vec![1], vec![null(), null(), null()]))).unwrap();
        drop(answer.take_descriptor());
        drop(answer);
        census.unchanged();
    }

    /// Closing it takes a minute, on whatever thread that happens.
    fn a_lingering_descriptor_does_not_keep_others_waiting(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.answer("thanks");
            }
        });
        let testing::Lingering { near, far } = testing::lingering_tcp();
        let call = object.call(Message::from("take it").with_descriptor(near));
        assert_eq!(executor.block_on(call.within(testing::LINGER_TIME / 2)).unwrap().bytes(), b"thanks");
        drop(far);
    }

    // Objects in messages.

    fn an_object_is_passed_in_a_call_and_called_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (callee, mailbox) = object(reactor).unwrap();
        let (caller, own_mailbox) = object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(mut call) = mailbox.next().await {
                let back = call.take_object(mailbox.reactor()).unwrap();
                // From within a handler, on the same reactor, to whoever is waiting for our answer.
                let word = back.call("what is the word?").await.unwrap();
                let _ = call.answer(word.bytes());
            }
        });
        executor.spawn(async move {
            while let Some(call) = own_mailbox.next().await {
                let _ = call.answer("swordfish");
            }
        });
        let answer = executor.block_on(async { callee.call(caller.pass_in("ask me").await.unwrap()).await });
        assert_eq!(answer.unwrap().bytes(), b"swordfish");
    }

    fn an_object_is_passed_in_an_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (door, mailbox) = object(reactor).unwrap();
        let spawner = executor.spawner();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let (room, room_mailbox) = object(mailbox.reactor()).unwrap();
                spawner.spawn(echo(room_mailbox));
                let _ = call.answer(Message::from("enter").with_descriptor(room.share().unwrap()));
            }
        });
        let mut answer = executor.block_on(door.call("open")).unwrap();
        let room = answer.take_object(reactor).unwrap();
        assert_eq!(executor.block_on(room.call("hello")).unwrap().bytes(), b"hello");
        assert!(answer.take_object(reactor).is_none());
    }

    fn what_is_no_object_is_not_taken_for_one(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let mut answer =
            executor.block_on(object.call(Message::from("this").with_descriptor(null()))).unwrap();
        assert!(answer.take_object(reactor).is_none());
        assert_eq!(answer.descriptors(), 0);
    }

    /// The server of one object calls another that the same process serves, and that one calls the first.
    fn nested_calls_within_one_reactor_come_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (first, first_mailbox) = object(reactor).unwrap();
        let (second, second_mailbox) = object(reactor).unwrap();
        for (mailbox, other) in [(first_mailbox, second.clone()), (second_mailbox, first.clone())] {
            let spawner = executor.spawner();
            executor.spawn(async move {
                while let Some(call) = mailbox.next().await {
                    let other = other.clone();
                    spawner.spawn(async move {
                        let depth: u32 = call.read().unwrap();
                        if depth == 0 {
                            let _ = call.answer("the end");
                        } else {
                            let answer = other.call(plain_data(&(depth - 1))).await.unwrap();
                            let _ = call.answer(answer.bytes());
                        }
                    });
                }
            });
        }
        let answer = executor.block_on(first.call(plain_data(&100_u32))).unwrap();
        assert_eq!(answer.bytes(), b"the end");
    }

    fn a_grant_is_an_address_of_its_own(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (fd, grant) = mailbox.grant_revocable().unwrap();
        let guest = Object::from_fd(reactor, fd).unwrap();
        let through = Rc::new(RefCell::new(Vec::new()));
        let (came, known) = (Rc::clone(&through), grant.clone());
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                came.borrow_mut().push(call.came_through(&known));
                let _ = call.answer("hello");
            }
        });
        let friend = Object::from_fd(reactor, executor.block_on(object.grant()).unwrap()).unwrap();
        let shared = Object::from_fd(reactor, object.share().unwrap()).unwrap();
        for caller in [&object, &guest, &friend, &shared] {
            assert!(executor.block_on(caller.call("hello")).is_ok());
        }
        assert_eq!(*through.borrow(), [false, true, false, false]);
        assert_eq!(grant.sessions(), 1);

        grant.revoke();
        assert_eq!(grant.sessions(), 0);
        assert!(matches!(executor.block_on(guest.call("hello")), Err(CallError::Gone | CallError::Dropped)));
        assert!(matches!(executor.block_on(guest.call("hello")), Err(CallError::Gone)));
        for caller in [&object, &friend, &shared] {
            assert!(executor.block_on(caller.call("hello")).is_ok());
        }
    }

    fn a_call_under_way_through_a_revoked_grant_is_withdrawn(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_object, mailbox) = object(reactor).unwrap();
        let (fd, grant) = mailbox.grant_revocable().unwrap();
        let guest = Object::from_fd(reactor, fd).unwrap();
        let (taken, untaken) = (guest.call("taken"), guest.call("untaken"));
        let call = executor.block_on(mailbox.next()).unwrap();
        grant.revoke();
        executor.block_on(call.continuation().cancelled());
        assert_eq!(call.answer("too late"), Err(AnswerError::Gone));
        assert!(matches!(executor.block_on(taken), Err(CallError::Dropped)));
        assert!(matches!(executor.block_on(untaken), Err(CallError::Dropped)));
        assert_eq!(mailbox.sessions(), 0);
        grant.revoke();
    }

    fn holders_of_a_grant_do_not_take_all_sessions(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { sessions: 4, granted_sessions: 2, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let fd = mailbox.grant().unwrap();
        let greedy: Vec<_> = (0..6)
            .map(|_| Object::from_fd(reactor, fd.try_clone().unwrap()).unwrap())
            .map(|object| (object.call("mine"), object))
            .collect();
        executor.settle();
        assert_eq!(mailbox.sessions(), 2);
        let own = attached(&executor, object);
        let others: Vec<_> = (0..3)
            .map(|_| Object::from_fd(reactor, own.share().unwrap()).unwrap())
            .map(|object| (object.call("mine"), object))
            .collect();
        executor.settle();
        assert_eq!(mailbox.sessions(), 4);
        // Whoever leaves makes room, until everybody was served.
        executor.spawn(echo(mailbox));
        for (call, object) in others.into_iter().chain(greedy) {
            drop(own.call("on we go"));
            assert!(executor.block_on(call).is_ok());
            drop(object);
        }
    }

    fn a_client_is_refused_more_grants_than_there_are(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { grants: 2, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let first = executor.block_on(object.grant()).unwrap();
        let second = executor.block_on(object.grant()).unwrap();
        assert!(matches!(executor.block_on(object.grant()), Err(CallError::Refused)));
        drop(first);
        until(&executor, "the mailbox has seen the end of the first", || {
            executor.block_on(object.grant()).is_ok()
        });
        drop((second, mailbox));
    }

    fn the_mailbox_ends_when_nobody_holds_an_address(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let granted = mailbox.grant().unwrap();
        let object = attached(&executor, object);
        let mut next = mailbox.next();
        assert!(poll_once(&mut next).is_pending());
        drop(object);
        executor.settle();
        assert!(poll_once(&mut next).is_pending());
        drop(granted);
        assert!(executor.block_on(next).is_none());
        assert!(executor.block_on(mailbox.next()).is_none());
    }

    // Withdrawing.

    fn a_call_dropped_before_it_was_sent_is_not_sent(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let (kept, dropped) = (object.call("kept"), object.call("dropped"));
        drop(dropped);
        let session = server.attach(&executor, Default::default());
        let said = said_by_client(&session.hear_from(&executor));
        assert_eq!(
            said.iter().map(|(kind, _, bytes)| (*kind, bytes.as_slice())).collect::<Vec<_>>(),
            [(Kind::Call, &b"kept"[..])]
        );
        drop(kept);
    }

    fn a_call_dropped_before_it_was_taken_is_not_shown(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let object = attached(&executor, object);
        let (first, second, third) = (object.call("first"), object.call("second"), object.call("third"));
        executor.settle();
        drop(second);
        executor.settle();
        let shown = Rc::new(RefCell::new(Vec::new()));
        let shows = Rc::clone(&shown);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                shows.borrow_mut().push(call.bytes().to_vec());
                let _ = call.answer("ok");
            }
        });
        assert!(executor.block_on(first).is_ok() && executor.block_on(third).is_ok());
        assert_eq!(*shown.borrow(), [b"first".to_vec(), b"third".to_vec()]);
    }

    fn a_call_dropped_while_it_is_handled_is_noticed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let call = object.call("hello");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        assert!(!incoming.continuation().is_cancelled());
        let counts = Counts::default();
        let noticed = Rc::new(Cell::new(None));
        let notices = Rc::clone(&noticed);
        let watched = counts.clone();
        executor.spawn(async move {
            Watched::new(Box::pin(incoming.continuation().cancelled()), &watched).await;
            notices.set(Some(incoming.answer("too late")));
        });
        executor.settle();
        assert!(noticed.get().is_none());
        drop(call);
        executor.settle();
        assert_eq!(noticed.get(), Some(Err(AnswerError::Withdrawn)));
        assert_eq!((counts.polls.get(), counts.wakes()), (2, 1));
        assert!(object.is_attached());
    }

    fn a_call_dropped_when_it_is_answered_closes_the_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let object = attached(&executor, object);
        let census = Census::take();
        let call = object.call(Message::from("there and back").with_descriptor(null()));
        executor.settle();
        drop(call);
        census.unchanged();
    }

    /// The answer and the withdrawal cross: the number is free when the answer has come.
    fn a_number_is_not_used_again_before_its_final_frame(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let first = object.call("first");
        let session = server.attach(&executor, Default::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        drop(first);
        let second = object.call("second");
        let said = said_by_client(&session.hear_from(&executor));
        assert_eq!((said[0].0, said[0].1), (Kind::Cancel, number));
        assert_eq!(said[1].0, Kind::Call);
        assert_ne!(said[1].1, number);
        // As it would be if the answer had been on its way.
        assert!(session.say(&answer(number, b"for the first", 0), &[]));
        executor.settle();
        let third = object.call("third");
        let again = said_by_client(&session.hear_from(&executor));
        assert_eq!((again[0].0, again[0].1), (Kind::Call, number));
        session.say_all(&[answer(number, b"for the third", 0), answer(said[1].1, b"for the second", 0)]);
        assert_eq!(executor.block_on(third).unwrap().bytes(), b"for the third");
        assert_eq!(executor.block_on(second).unwrap().bytes(), b"for the second");
    }

    fn giving_up_behind_a_full_window_lets_the_next_go(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        // Room for one answer of the largest size beside a small call.
        let options = MailboxOptions { bytes: 204_160, ..MailboxOptions::default() };
        let largest = ObjectOptions { answer_bytes: PAYLOAD_BYTES_MAX, ..ObjectOptions::default() };
        let (object, mailbox) = object_with(reactor, largest, options).unwrap();
        let object = attached(&executor, object);
        let held = object.call("held");
        let large = object.call(vec![0; 10_000]);
        let small =
            object.call_with("small", CallOptions { answer_bytes: Some(8), ..Default::default() });
        executor.settle();
        let first = executor.block_on(mailbox.next()).unwrap();
        assert!(poll_once(&mut mailbox.next()).is_pending());
        drop(large);
        let second = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(second.bytes(), b"small");
        first.answer("first").unwrap();
        second.answer("second").unwrap();
        assert_eq!(executor.block_on(small).unwrap().bytes(), b"second");
        assert_eq!(executor.block_on(held).unwrap().bytes(), b"first");
    }

    fn withdrawing_ten_thousand_queued_calls_in_any_order_leaves_the_others(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let mut calls: Vec<_> = (0..20_000_u64).map(|n| Some(object.call(plain_data(&n)))).collect();
        for n in (0..20_000).filter(|n| n % 2 == 0).rev() {
            calls[n] = None;
        }
        executor.spawn(echo(mailbox));
        let results = executor.block_on(all(calls.into_iter().flatten().collect()));
        assert_eq!(results.len(), 10_000);
        for (n, result) in results.into_iter().enumerate() {
            assert_eq!(result.unwrap(), (2 * n as u64 + 1).to_ne_bytes());
        }
    }

    // Leaving.

    fn a_mailbox_that_leaves_answers_what_it_has_taken_and_refuses_the_rest(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (taken, untaken) = (object.call("taken"), object.call("untaken"));
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let left = Rc::new(Cell::new(false));
        let leaves = Rc::clone(&left);
        executor.spawn(async move {
            mailbox.leave(LATE).await;
            leaves.set(true);
        });
        assert!(matches!(executor.block_on(untaken), Err(CallError::Gone)));
        executor.settle();
        assert!(!left.get());
        // There is nobody to attach to any more.
        assert!(matches!(executor.block_on(object.call("late")), Err(CallError::Gone)));
        assert!(!incoming.continuation().is_cancelled());
        incoming.answer("before I go").unwrap();
        assert_eq!(executor.block_on(taken).unwrap().bytes(), b"before I go");
        until(&executor, "the mailbox has left", || left.get());
    }

    /// Sent before the goodbye was read: refused, so that calling elsewhere is safe.
    fn a_call_that_crosses_a_goodbye_is_refused_unseen(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        executor.spawn(mailbox.leave(LATE));
        executor.settle();
        session.say_all(&[call(7, b"crossing", 8), bare(seqpacket::wire::Header::grant(8))]);
        let said = said_by_server(&session.hear_from(&executor));
        assert_eq!(said, [(Kind::Goodbye, 0, vec![])]);
        let said = said_by_server(&session.hear_from(&executor));
        assert_eq!(said, [(Kind::Refused, 7, vec![6]), (Kind::Refused, 8, vec![6])]);
    }

    fn a_mailbox_does_not_wait_for_ever_for_clients_to_leave(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let session = RawClient::attach(&executor, object.share().unwrap());
        executor.block_on(mailbox.leave(Duration::from_millis(20)));
        session.hear_the_end(&executor);
    }

    fn a_client_leaves_when_it_was_told_goodbye_and_has_nothing_under_way(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let call = object.call("last");
        let session = server.attach(&executor, Default::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        assert!(session.say(&bare(seqpacket::wire::Header::goodbye()), &[]));
        executor.settle();
        assert!(session.hear().is_none(), "the call is still under way");
        assert!(session.say(&answer(number, b"bye", 0), &[]));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"bye");
        session.hear_the_end(&executor);
        // The next call attaches anew.
        let next = object.call("again");
        let session = server.attach(&executor, Default::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        assert!(session.say(&answer(number, b"welcome", 0), &[]));
        assert_eq!(executor.block_on(next).unwrap().bytes(), b"welcome");
    }

    fn what_was_taken_can_be_answered_when_the_mailbox_is_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (taken, untaken) = (object.call("taken"), object.call("untaken"));
        let incoming = executor.block_on(mailbox.next()).unwrap();
        drop(mailbox);
        assert!(matches!(executor.block_on(untaken), Err(CallError::Gone)));
        incoming.answer("all the same").unwrap();
        assert_eq!(executor.block_on(taken).unwrap().bytes(), b"all the same");
    }

    fn a_caller_that_goes_when_the_mailbox_is_dropped_is_noticed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let (first, second) = (object.call("first"), object.call("second"));
        let one = executor.block_on(mailbox.next()).unwrap();
        let other = executor.block_on(mailbox.next()).unwrap();
        drop(mailbox);
        drop(first);
        executor.block_on(one.continuation().cancelled());
        assert!(!other.continuation().is_cancelled());
        drop((second, object));
        executor.block_on(other.continuation().cancelled());
        // Its call was withdrawn, and then its session ended.
        assert!(other.answer("nobody there").is_err());
        assert!(one.answer("nor here").is_err());
    }

    // Dropping everything.

    fn an_object_dropped_with_calls_under_way_leaves_them_their_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object(reactor).unwrap();
        let call = object.call("hello");
        drop(object);
        executor.spawn(echo(mailbox));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"hello");
    }

    /// Nothing of the client's waits to be sent, and nobody else holds its end: the server sees it at once.
    fn a_dropped_object_is_seen_without_another_turn(reactor: &Reactor) {
        let server = Executor::new(&testing::reactor());
        let (bound, address) = testing::packet_pair();
        let client = Executor::new(reactor);
        let mailbox = Mailbox::from_fd(server.reactor(), bound).unwrap();
        let object = Object::from_fd(reactor, address).unwrap();
        let attaching = object.clone();
        client.spawn(async move { attaching.attach().await.unwrap() });
        until(&client, "the session is attached", || {
            server.settle();
            object.is_attached()
        });
        client.settle();
        drop(object);
        drop(client);
        assert!(settle_on(&server, mailbox.next()).is_none());
    }

    fn everything_dropped_in_the_middle_leaves_nothing_behind(reactor: &Reactor) {
        let census = Census::take();
        for turns in 0..6 {
            let other = testing::reactor();
            let executor = Executor::new(&other);
            let (object, mailbox) = object(&other).unwrap();
            let (plain, plain_mailbox) = plain_object(&other).unwrap();
            let fd = Fd::from(null());
            let calls: Vec<_> = (0..300).map(|_| object.call(with_many("call", &fd, 1))).collect();
            let plain_calls: Vec<_> = (0..300).map(|_| plain.call(with_many("call", &fd, 1))).collect();
            let taken = Rc::new(RefCell::new(Vec::new()));
            let takes = Rc::clone(&taken);
            executor.spawn(async move {
                while let Some(call) = mailbox.next().await {
                    takes.borrow_mut().push(call);
                }
            });
            executor.spawn(async move { while plain_mailbox.next().await.is_some() {} });
            for call in calls {
                executor.spawn(async move { drop(call.await) });
            }
            for call in plain_calls {
                executor.spawn(async move { drop(call.await) });
            }
            for _ in 0..turns {
                let mut once = false;
                executor.block_on(std::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    if std::mem::replace(&mut once, true) {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                }));
            }
            drop(object);
            drop(executor);
            drop(taken);
            drop(plain);
            drop(other);
        }
        census.unchanged();
        let _ = reactor;
    }

    /// Waiting with a time limit, over and over, with another waker each time.
    fn waiting_in_vain_again_and_again_leaves_no_waker_behind(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_object, mailbox) = object(reactor).unwrap();
        let (server, unattached) = RawServer::new(reactor);
        let counts: Vec<_> = (0..100).map(|_| Counts::default()).collect();
        for counts in &counts {
            let mut next = Box::pin(Watched::new(mailbox.next(), counts));
            assert!(poll_once(&mut next).is_pending());
            let mut attaching = Box::pin(Watched::new(Box::pin(unattached.attach()), counts));
            assert!(poll_once(&mut attaching).is_pending());
        }
        drop(_object);
        drop(server.attach(&executor, Default::default()));
        executor.settle();
        assert_eq!(counts.iter().map(Counts::wakes).sum::<usize>(), 0);
    }
}

fn is_close_on_exec(fd: impl AsFd) -> bool {
    rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
}

fn settle_on<F: std::future::Future>(executor: &Executor, future: F) -> F::Output {
    executor.block_on(future)
}
