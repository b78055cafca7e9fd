//! Plain objects between two sides that mean well: arguments and answers, pairs made ahead, full queues,
//! withdrawing, and what is left when everything is dropped. It knows nothing of strangers.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Fd, Message, Reactor};
use seqpacket::{
    ANSWERED_MAX, AnswerError, CallError, Object, PAIRS_DEFAULT, Pairs, PlainContinuation, PlainMailbox,
    PlainObject, plain_object,
};
use support::*;
use testing::{Census, on_each_driver};

on_each_driver! {
    fn arguments_and_answers_keep_their_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        object.set_answer_descriptors(253);
        mailbox.set_arguments_max(252);
        executor.spawn(plain_echo(mailbox));
        for count in [0, 1, 14, 15, 16, 17, 251, 252] {
            let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().unwrap()).collect();
            let (mut readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
            let writers = writers.into_iter().map(OwnedFd::from).collect();
            let mut answer = executor.block_on(object.call(message_of(vec![1], writers))).unwrap();
            assert_eq!(answer.descriptors(), count);
            for (place, (fd, reader)) in answer.take_descriptors().into_iter().zip(&mut readers).enumerate() {
                let flags = rustix::io::fcntl_getfd(&fd).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                std::fs::File::from(fd).write_all(&[place as u8]).unwrap();
                let mut came = Vec::new();
                reader.read_to_end(&mut came).unwrap();
                assert_eq!(came, [place as u8], "{place} of {count}");
            }
        }
    }

    /// The wire, to the letter: the bytes, the arguments, and last the continuation.
    fn a_call_is_one_packet_without_a_header(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let call = object.call(Message::from("write to it").with_descriptor(OwnedFd::from(writer)));
        executor.settle();
        let mut packet = testing::receive_packet(&mailbox).unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"write to it"[..], 2));
        let continuation = packet.descriptors.pop().unwrap();
        std::fs::File::from(packet.descriptors.pop().unwrap()).write_all(b"so I do").unwrap();
        let fd = null();
        testing::send_packet(&continuation, b"done", &[fd.as_fd()]).unwrap();
        drop(continuation);
        let answer = executor.block_on(call).unwrap();
        assert_eq!((answer.bytes(), answer.descriptors()), (&b"done"[..], 1));
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "so I do");
    }

    fn an_answer_is_one_packet_and_then_the_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(plain_echo(mailbox));
        let socket = object.share().unwrap();
        let (near, far) = testing::packet_pair();
        let fd = null();
        testing::send_packet(&socket, b"hello", &[fd.as_fd(), far.as_fd()]).unwrap();
        drop(far);
        executor.settle();
        let packet = testing::receive_packet(&near).unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"hello"[..], 1));
        testing::set_nonblocking(&near);
        until(&executor, "the continuation is closed", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            testing::receive_packet(&near).is_ok_and(|packet| packet.bytes.is_empty())
        });
    }

    fn a_batch_of_answered_continuations_is_closed_at_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let mailbox = PlainMailbox::from_fd(reactor, mailbox).unwrap();
        let callers: Vec<OwnedFd> = (0..ANSWERED_MAX)
            .map(|_| {
                let (near, far) = testing::packet_pair();
                testing::send_packet(&object, b"hello", &[far.as_fd()]).unwrap();
                testing::set_nonblocking(&near);
                near
            })
            .collect();
        let is_over =
            |near: &OwnedFd| testing::receive_packet(near).is_ok_and(|packet| packet.bytes.is_empty());
        let calls: Vec<_> = callers.iter().map(|_| executor.block_on(mailbox.next()).unwrap()).collect();
        for ((answered, near), call) in callers.iter().enumerate().zip(calls) {
            // No turn is taken from the first answer to the last look: it is the number that closes, not the
            // time.
            call.answer("hello").unwrap();
            assert_eq!(testing::receive_packet(near).unwrap().bytes, b"hello");
            assert!(answered + 1 == ANSWERED_MAX || !is_over(near));
        }
        assert!(callers.iter().all(is_over));
    }

    fn without_an_answer_a_continuation_is_closed_at_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let mailbox = PlainMailbox::from_fd(reactor, mailbox).unwrap();
        let (near, far) = testing::packet_pair();
        testing::send_packet(&object, b"hello", &[far.as_fd()]).unwrap();
        drop(far);
        drop(executor.block_on(mailbox.next()).unwrap());
        testing::set_nonblocking(&near);
        assert!(testing::receive_packet(&near).unwrap().bytes.is_empty());
    }

    fn where_descriptors_are_short_a_continuation_is_closed_with_its_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let mailbox = PlainMailbox::from_fd(reactor, mailbox).unwrap();
        let (near, far) = testing::packet_pair();
        testing::send_packet(&object, b"hello", &[far.as_fd()]).unwrap();
        drop(far);
        let call = executor.block_on(mailbox.next()).unwrap();
        let _few = testing::leave_descriptors(100);
        // What is open is counted again now and then.
        for _ in 0..100 {
            executor.settle();
        }
        call.answer("hello").unwrap();
        // By a thread: to see that it is empty takes room for what may be in it.
        ring::closer_idle();
        testing::set_nonblocking(&near);
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"hello");
        assert!(testing::receive_packet(&near).unwrap().bytes.is_empty());
    }

    fn pairs_are_made_ahead_and_closed_off_the_path(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = testing::packet_pair();
        let census = Census::take();
        let pairs = Pairs::new(reactor, 4);
        let object = PlainObject::from_fd_with(&pairs, reactor, object).unwrap();
        executor.spawn(plain_echo(PlainMailbox::from_fd(reactor, mailbox).unwrap()));
        let begun = Census::take().len();
        assert!(executor.block_on(object.call("once")).is_ok());
        let mut most = 0;
        for _ in 0..200 {
            assert!(executor.block_on(object.call("again")).is_ok());
            most = most.max(Census::take().len());
        }
        // At most four pairs ready, the near ends of a batch that has served, and what is answered.
        assert!(most <= begun + 4 * 2 + 4 + 1 + ANSWERED_MAX, "{most} with {begun} to begin with");
        until(&executor, "the stock is at rest", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            pairs.ready() > 0 && Census::take().len() == begun + 2 * pairs.ready()
        });
        assert!(pairs.ready() <= 4);
        drop((object, pairs));
        executor.settle();
        assert_eq!(Census::take().len(), census.len() - 2);
    }

    /// Someone who keeps the far end of a call can neither answer the next one nor hide a death.
    fn a_pair_serves_one_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let mut kept = Vec::new();
        for n in 0..50_u8 {
            let call = object.call(vec![1, n]);
            executor.settle();
            let mut packet = testing::receive_packet(&mailbox).unwrap();
            let continuation = packet.descriptors.pop().unwrap();
            for old in &kept {
                let _ = testing::send_packet(old, b"forged", &[]);
            }
            testing::send_packet(&continuation, &[2, n], &[]).unwrap();
            testing::set_nonblocking(&continuation);
            kept.push(continuation);
            assert_eq!(executor.block_on(call).unwrap().bytes(), [2, n]);
        }
    }

    /// The kernel's queue holds some hundred packets.
    fn a_full_queue_is_waited_for_in_order(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let calls: Vec<_> = (0..1_000_u32).map(|n| object.call(seqpacket::plain_data(&n))).collect();
        executor.settle();
        let order = Rc::new(RefCell::new(Vec::new()));
        let sees = Rc::clone(&order);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                sees.borrow_mut().push(u32::from_ne_bytes(call.bytes().try_into().unwrap()));
                let bytes = call.bytes().to_vec();
                let _ = call.answer(bytes);
            }
        });
        executor.block_on(async {
            for (n, call) in calls.into_iter().enumerate() {
                assert_eq!(call.await.unwrap().read::<u32>().unwrap(), n as u32);
            }
        });
        assert!(order.borrow().iter().copied().eq(0..1_000));
    }

    fn several_holders_call_one_object(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(plain_echo(mailbox));
        let holders: Vec<_> = (0..5)
            .map(|_| PlainObject::from_fd(reactor, object.share().unwrap()).unwrap())
            .chain([object.clone(), object.clone()])
            .collect();
        let calls: Vec<_> =
            (0..70_u8).map(|n| holders[usize::from(n) % holders.len()].call(vec![n])).collect();
        executor.block_on(async {
            for (n, call) in calls.into_iter().enumerate() {
                assert_eq!(call.await.unwrap().bytes(), [n as u8]);
            }
        });
    }

    fn an_object_travels_in_a_plain_call_and_is_called_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        executor.spawn(async move {
            while let Some(mut call) = plain_mailbox.next().await {
                let object: Object = call.take_object(plain_mailbox.reactor()).unwrap();
                let answer = object.call("from the plain one").await.unwrap();
                let _ = call.answer(answer.bytes());
            }
        });
        let answer =
            executor.block_on(async { plain.call(object.pass_in("call back").await.unwrap()).await });
        assert_eq!(answer.unwrap().bytes(), b"from the plain one");
    }

    fn a_plain_object_travels_in_a_plain_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (door, mailbox) = plain_object(reactor).unwrap();
        let spawner = executor.spawner();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let (room, room_mailbox) = plain_object(mailbox.reactor()).unwrap();
                spawner.spawn(plain_echo(room_mailbox));
                let _ = call.answer(Message::from("enter").with_descriptor(room.share().unwrap()));
            }
        });
        let mut answer = executor.block_on(door.call("open")).unwrap();
        let room = PlainObject::from_fd(reactor, answer.take_descriptor().unwrap()).unwrap();
        assert_eq!(executor.block_on(room.call("hello")).unwrap().bytes(), b"hello");
    }

    /// Even when the question whether the caller is still there has been asked and dropped.
    fn a_continuation_becomes_a_descriptor_and_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        for asked in [false, true] {
            let call = object.call("hello");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            let continuation = incoming.into_continuation();
            if asked {
                let mut cancelled = Box::pin(continuation.cancelled());
                assert!(poll_once(&mut cancelled).is_pending());
                executor.settle();
                assert!(poll_once(&mut cancelled).is_pending());
            }
            let fd = continuation.into_fd().unwrap();
            executor.settle();
            let again = PlainContinuation::from_fd(reactor, fd).unwrap();
            assert!(!again.is_cancelled());
            again.answer("there and back").unwrap();
            assert_eq!(executor.block_on(call).unwrap().bytes(), b"there and back");
        }
    }

    fn a_call_dropped_before_it_was_sent_is_not_sent(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        drop(object.call("dropped"));
        let kept = object.call("kept");
        executor.spawn(plain_echo(mailbox));
        assert_eq!(executor.block_on(kept).unwrap().bytes(), b"kept");
    }

    fn a_call_dropped_in_the_queue_is_found_cancelled(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let mut call = object.call("never mind");
        assert!(poll_once(&mut call).is_pending());
        executor.settle();
        drop(call);
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let continuation = incoming.into_continuation();
        assert!(continuation.is_cancelled());
        executor.block_on(continuation.cancelled());
        // To answer all the same is no error, only in vain.
        assert_eq!(continuation.answer("nobody there"), Ok(()));
    }

    fn a_call_dropped_while_it_is_handled_is_noticed_at_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let mut call = object.call("hello");
        assert!(poll_once(&mut call).is_pending());
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let continuation = incoming.into_continuation();
        assert!(!continuation.is_cancelled());
        drop(call);
        // Without another turn.
        assert!(continuation.is_cancelled());
    }

    fn an_object_dropped_with_a_call_under_way_leaves_it_its_way(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call("hello");
        drop(object);
        executor.spawn(plain_echo(mailbox));
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"hello");
    }

    fn the_mailbox_ends_when_nobody_holds_the_object(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let copy = object.share().unwrap();
        testing::send_packet(&copy, b"no call", &[]).unwrap();
        drop((object, copy));
        assert!(executor.block_on(mailbox.next()).is_none());
        assert!(executor.block_on(mailbox.next()).is_none());
        assert_eq!(mailbox.violations().without_continuation, 1);
    }

    fn calls_that_nobody_takes_are_answered_by_nobody(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let mut calls: Vec<_> = (0..300_u32).map(|n| object.call(seqpacket::plain_data(&n))).collect();
        calls.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
        executor.settle();
        drop(mailbox);
        executor.block_on(async {
            for call in calls {
                assert!(matches!(call.await, Err(CallError::Dropped | CallError::Gone)));
            }
        });
    }

    fn waiting_in_vain_does_not_lose_the_call_that_comes(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        for n in 0..20_u8 {
            let mut next = Box::pin(mailbox.next());
            assert!(poll_once(&mut next).is_pending());
            let call = object.call(vec![n]);
            executor.settle();
            drop(next);
            let incoming = executor.block_on(mailbox.next()).unwrap();
            assert_eq!(incoming.bytes(), [n]);
            incoming.answer("ok").unwrap();
            assert!(executor.block_on(call).is_ok());
        }
    }

    fn an_argument_that_nobody_takes_is_closed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let taken = Rc::new(Cell::new(0));
        let takes = Rc::clone(&taken);
        executor.spawn(async move {
            while let Some(mut call) = mailbox.next().await {
                takes.set(takes.get() + usize::from(call.take_descriptor().is_some()));
                let _ = call.answer("thanks");
            }
        });
        let fd = Fd::from(null());
        let count = || Census::take().len();
        assert!(executor.block_on(object.call(with_many("three", &fd, 3))).is_ok());
        until(&executor, "its pair is closed", || {
            executor.block_on(reactor.sleep(Duration::from_millis(2)));
            true
        });
        let before = count();
        for _ in 0..PAIRS_DEFAULT * 4 {
            assert!(executor.block_on(object.call(with_many("three", &fd, 3))).is_ok());
        }
        // Whatever the stock holds by now, it is not three for each call.
        assert!(count() <= before + 3 * PAIRS_DEFAULT);
        assert_eq!(taken.get(), 1 + PAIRS_DEFAULT * 4);
    }

    // Several who wait.

    fn each_of_several_tasks_that_wait_is_given_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let mailbox = Rc::new(mailbox);
        let served: Rc<RefCell<[u32; 4]>> = Rc::default();
        for task in 0..4 {
            let (mailbox, served) = (Rc::clone(&mailbox), Rc::clone(&served));
            executor.spawn(async move {
                while let Some(call) = mailbox.next().await {
                    served.borrow_mut()[task] += 1;
                    let _ = call.answer("yes");
                }
            });
        }
        drop(mailbox);
        executor.settle();
        // One at a time, and many together.
        executor.block_on(async {
            for _ in 0..20 {
                object.call("one").await.unwrap();
            }
            let calls: Vec<_> = (0..100).map(|_| object.call("one of many")).collect();
            for call in calls {
                call.await.unwrap();
            }
        });
        assert_eq!(served.borrow().iter().sum::<u32>(), 120);
        drop(object);
        assert!(!executor.settle().tasks_left, "all are told of the end");
    }

    /// Whichever of them the socket would have woken.
    fn a_task_that_waits_no_longer_keeps_nobody_waiting(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        for dropped in 0..3 {
            for woken in [false, true] {
                let mut waiting: Vec<_> = (0..3).map(|_| Some(Box::pin(mailbox.next()))).collect();
                let counts: Vec<_> = (0..3).map(|_| Counts::default()).collect();
                let mut watched: Vec<_> = waiting
                    .iter_mut()
                    .zip(&counts)
                    .map(|(next, counts)| Some(Watched::new(next.take().unwrap(), counts)))
                    .collect();
                for next in watched.iter_mut().flatten() {
                    assert!(poll_once(next).is_pending());
                }
                let call = object.call("hello");
                if woken {
                    executor.settle();
                }
                watched[dropped] = None;
                // Polls those that were woken, until one has the call.
                let mut polls: Vec<usize> = vec![0; 3];
                let incoming = loop {
                    executor.settle();
                    let next = (0..3).find(|n| watched[*n].is_some() && counts[*n].wakes() > polls[*n]);
                    let next = next.expect("somebody who waits is woken");
                    polls[next] = counts[next].wakes();
                    if let std::task::Poll::Ready(incoming) = poll_once(watched[next].as_mut().unwrap()) {
                        break incoming.unwrap();
                    }
                };
                incoming.answer("yes").unwrap();
                assert!(executor.block_on(call).is_ok());
            }
        }
    }

    fn who_waits_alone_is_woken_once_for_a_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let counts = Counts::default();
        for _ in 0..10 {
            let mut next = Watched::new(Box::pin(mailbox.next()), &counts);
            assert!(poll_once(&mut next).is_pending());
            let call = object.call("hello");
            executor.settle();
            let std::task::Poll::Ready(incoming) = poll_once(&mut next) else { panic!("woken in vain") };
            incoming.unwrap().answer("yes").unwrap();
            assert!(executor.block_on(call).is_ok());
        }
        assert_eq!(counts.wakes(), 10);
    }

    // Answering now.

    fn an_answer_tried_is_there_at_once(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call("hello");
        let continuation = executor.block_on(mailbox.next()).unwrap().into_continuation();
        let large = vec![0; seqpacket::PLAIN_BYTES_MAX + 1];
        let (error, continuation) = continuation.try_answer(large).unwrap_err();
        assert_eq!(error, AnswerError::TooLarge);
        let (error, continuation) = continuation.try_answer("").unwrap_err();
        assert_eq!(error, AnswerError::Empty);
        continuation.try_answer("now").unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"now");
        let call = object.call("hello");
        let continuation = executor.block_on(mailbox.next()).unwrap().into_continuation();
        drop(call);
        assert_eq!(continuation.try_answer("too late").unwrap_err().0, AnswerError::Gone);
    }

    /// The descriptors cannot go; something can be said all the same.
    fn an_answer_that_cannot_leave_can_be_replaced(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let fd = Fd::from(null());
        let tried = object.call("give");
        let continuation = executor.block_on(mailbox.next()).unwrap().into_continuation();
        let answered = object.call("give");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let crowd = testing::too_many_in_flight();
        let with_one = || Message::from("here").with_descriptor(fd.clone());
        let (error, continuation) = continuation.try_answer(with_one()).unwrap_err();
        assert_eq!(error, AnswerError::OutOfDescriptors);
        continuation.try_answer("none to spare").unwrap();
        assert_eq!(executor.block_on(tried).unwrap().bytes(), b"none to spare");
        // Where nobody looks how it went, the caller is told that nobody answers.
        incoming.answer(with_one()).unwrap();
        assert!(matches!(executor.block_on(answered), Err(CallError::Dropped)));
        drop(crowd);
    }
}
