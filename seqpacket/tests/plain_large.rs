//! Large answers of plain objects: whole or not at all, within limits, whoever dies or stops in the middle.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::script::{Faults, World};
use ring::{Executor, Fd, Message, Reactor};
use seqpacket::{
    AnswerError, CallError, LARGE_ANSWER_PAUSE_MAX, Part, PlainMailbox, PlainObject, plain_object,
};
use support::*;
use testing::{helper, in_own_process, on_each_driver, start_helper};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// An object whose server speaks bytes, a call under way, and the continuation of it.
fn called(reactor: &Reactor, executor: &Executor) -> (seqpacket::PlainCall, OwnedFd) {
    let (mailbox, object) = testing::packet_pair();
    let object = PlainObject::from_fd(reactor, object).unwrap();
    let call = object.call_large("much, please");
    executor.settle();
    let continuation = testing::receive_packet(&mailbox).unwrap().descriptors.pop().unwrap();
    (call, continuation)
}

fn header(total: u64) -> Vec<u8> {
    [total.to_le_bytes(), [0; 8]].concat()
}

helper! {
    /// Answers each call with as many bytes as it says, and all its descriptors.
    fn serves_much(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, descriptors.into_iter().next().unwrap()).unwrap();
        let executor = Executor::new(&reactor);
        let spawner = executor.spawner();
        executor.block_on(async {
            while let Some(call) = mailbox.next().await {
                let (bytes, descriptors, continuation) = call.into_parts();
                let length = u64::from_le_bytes(bytes.try_into().unwrap());
                let answer = message_of(pattern(length as usize), descriptors);
                spawner.spawn(async move {
                    let _ = continuation.answer_large(answer).await;
                });
            }
        });
    }
}

on_each_driver! {
    fn an_answer_of_any_size_arrives_whole(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let server = start_helper!(serves_much, vec![mailbox]);
        let object = PlainObject::from_fd(reactor, object).unwrap();
        object.set_answer_descriptors(3);
        let fd = Fd::from(null());
        for length in [0_usize, 1, 102_063, 102_064, 102_065, 204_144, 204_145, 5_000_000] {
            for count in [0, 3] {
                let message = with_many("", &fd, count);
                let mut said = message;
                said.bytes_mut().extend((length as u64).to_le_bytes());
                let mut answer = executor.block_on(object.call_large(said)).unwrap();
                assert_eq!(answer.descriptors(), count);
                drop(answer.take_descriptors());
                assert!(answer.bytes() == pattern(length), "{length}");
            }
        }
        drop(object);
        executor.settle();
        server.succeeded();
    }

    /// Each over its own pair.
    fn several_large_answers_at_a_time_do_not_mix(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let server = start_helper!(serves_much, vec![mailbox]);
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let lengths: Vec<u64> = (0..10).map(|n| 300_000 + n).collect();
        let calls: Vec<_> =
            lengths.iter().map(|length| object.call_large(length.to_le_bytes().to_vec())).collect();
        executor.block_on(async {
            for (call, length) in calls.into_iter().zip(lengths) {
                assert!(call.await.unwrap().bytes() == pattern(length as usize));
            }
        });
        drop(object);
        executor.settle();
        server.succeeded();
    }

    fn an_answer_may_have_as_many_bytes_as_were_said(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = call.into_continuation().answer_large(pattern(200_000)).await;
            }
        });
        object.set_large_answer_bytes(200_000);
        assert_eq!(executor.block_on(object.call_large("give")).unwrap().bytes().len(), 200_000);
        object.set_large_answer_bytes(199_999);
        let error = executor.block_on(object.call_large("give")).unwrap_err();
        assert!(matches!(error, CallError::TooLarge(Part::Answer)), "{error}");
        object.set_large_answer_bytes(usize::MAX);
        assert!(executor.block_on(object.call_large("give")).is_ok());
    }

    /// 64 MiB and not one byte more: said by the header alone, and believed before anything is kept.
    fn the_usual_limit_is_sixty_four_mebibytes(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for (total, is_taken) in [(64 << 20, true), ((64 << 20) + 1, false), (u64::MAX, false)] {
            let (mut call, continuation) = called(reactor, &executor);
            testing::send_packet(&continuation, &header(total), &[]).unwrap();
            executor.settle();
            if is_taken {
                assert!(poll_once(&mut call).is_pending());
                drop(continuation);
                assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
            } else {
                let error = executor.block_on(call).unwrap_err();
                assert!(matches!(error, CallError::TooLarge(Part::Answer)), "{error}");
            }
        }
    }

    /// The bytes of the document.
    fn the_first_packet_begins_with_the_length_of_all(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let socket = object.share().unwrap();
        let (near, far) = testing::packet_pair();
        testing::send_packet(&socket, b"hello", &[far.as_fd()]).unwrap();
        drop(far);
        let call = executor.block_on(mailbox.next()).unwrap();
        let fd = null();
        let answer = Message::from(pattern(102_065)).with_descriptor(fd);
        executor.block_on(call.into_continuation().answer_large(answer)).unwrap();
        let first = testing::receive_packet(&near).unwrap();
        assert_eq!((first.bytes.len(), first.descriptors.len()), (102_080, 1));
        assert_eq!(first.bytes[..20], [0xb1, 0x8e, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        let second = testing::receive_packet(&near).unwrap();
        assert_eq!((second.bytes.len(), second.descriptors.len()), (1, 0));
        assert!(testing::receive_packet(&near).unwrap().bytes.is_empty());
    }

    fn what_is_no_large_answer_is_malformed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let fd = null();
        let of_ten = || [header(10), vec![1; 5]].concat();
        let cases: Vec<Vec<(Vec<u8>, usize)>> = vec![
            vec![(b"yes".to_vec(), 1)],
            vec![(vec![1; 16], 0)],
            vec![([header(4), vec![1; 5]].concat(), 1)],
            vec![(of_ten(), 1), (vec![1; 6], 0)],
            vec![(of_ten(), 1), (vec![1; 5], 1)],
        ];
        for packets in cases {
            let (call, continuation) = called(reactor, &executor);
            for (bytes, count) in packets {
                testing::send_packet(&continuation, &bytes, &vec![fd.as_fd(); count]).unwrap();
            }
            let error = executor.block_on(call).unwrap_err();
            assert!(matches!(error, CallError::Malformed(_)), "{error}");
            // The answerer sees that nobody wants the rest.
            executor.settle();
            assert!(testing::send_packet(&continuation, b"more", &[]).is_err());
        }
    }

    /// Empty packets are not the end, and not a part.
    fn an_empty_packet_within_a_large_answer_is_none(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (call, continuation) = called(reactor, &executor);
        testing::send_packet(&continuation, &header(3), &[]).unwrap();
        testing::send_packet(&continuation, b"", &[]).unwrap();
        testing::send_packet(&continuation, b"yes", &[]).unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), b"yes");
    }

    fn an_answer_that_breaks_off_is_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let fd = null();
        for parts in 0..3 {
            let (call, continuation) = called(reactor, &executor);
            if parts > 0 {
                testing::send_packet(&continuation, &header(200_000), &[fd.as_fd()]).unwrap();
            }
            if parts > 1 {
                testing::send_packet(&continuation, &[1; 102_080], &[]).unwrap();
            }
            drop(continuation);
            assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
        }
    }

    fn a_server_that_dies_in_the_middle_drops_the_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (mailbox, object) = testing::packet_pair();
        let mut server = start_helper!(serves_much, vec![mailbox]);
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let mut call = object.call_large((50_000_000_u64).to_le_bytes().to_vec());
        // Nobody has taken more than the socket brings by itself.
        until(&executor, "some of it is here", || reactor.stats().messages_received > 10);
        assert!(poll_once(&mut call).is_pending());
        server.kill();
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
    }

    fn a_caller_that_withdraws_in_the_middle_is_noticed(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call_large("much, please");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let told = Rc::new(Cell::new(None));
        let tells = Rc::clone(&told);
        executor.spawn(async move {
            tells.set(Some(incoming.into_continuation().answer_large(pattern(40_000_000)).await));
        });
        // Until the near end has enough of what nobody takes.
        executor.settle();
        assert_eq!(told.get(), None);
        drop(call);
        until(&executor, "the answerer is told", || told.get().is_some());
        assert_eq!(told.get(), Some(Err(AnswerError::Gone)));
    }

    /// And breaking it off tells the caller.
    fn an_answer_dropped_in_the_middle_is_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call_large("much, please");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let mut answer = Box::pin(incoming.into_continuation().answer_large(pattern(40_000_000)));
        for _ in 0..10 {
            assert!(poll_once(&mut answer).is_pending());
            executor.settle();
        }
        drop(answer);
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
    }

    fn a_deadline_ends_a_large_answer_too(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (call, continuation) = called(reactor, &executor);
        testing::send_packet(&continuation, &header(10), &[]).unwrap();
        let call = call.within(Duration::from_millis(1));
        assert!(matches!(executor.block_on(call), Err(CallError::Deadline)));
    }

    /// What one side declares and the other does not is noticed by the other.
    fn a_large_answer_to_a_plain_call_is_its_first_packet(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        let call = object.call("hello");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        executor.block_on(incoming.into_continuation().answer_large("short")).unwrap();
        assert_eq!(executor.block_on(call).unwrap().bytes(), [&header(5)[..], b"short"].concat());
        let call = object.call_large("hello");
        executor.block_on(mailbox.next()).unwrap().answer("short").unwrap();
        assert!(matches!(executor.block_on(call), Err(CallError::Malformed(_))));
    }

    /// The pair of a large answer serves once, whatever the object and its mailbox do otherwise.
    fn a_large_answer_does_not_return(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        mailbox.return_continuations();
        let object = object.with_returned_pairs(seqpacket::ReturnTrust::FirstToAnswer);
        let call = object.call_large("hello");
        let incoming = executor.block_on(mailbox.next()).unwrap();
        executor.block_on(incoming.into_continuation().answer_large("large")).unwrap();
        let answer = executor.block_on(call).unwrap();
        assert_eq!((answer.bytes(), answer.descriptors()), (&b"large"[..], 0));
        assert_eq!(object.returns(), seqpacket::Returns::default());
    }

    fn too_many_descriptors_are_too_many_for_a_large_answer(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) = plain_object(reactor).unwrap();
        object.set_answer_descriptors(253);
        let fd = Fd::from(null());
        for count in [253, 254] {
            let call = object.call_large("hello");
            let incoming = executor.block_on(mailbox.next()).unwrap();
            let answer = incoming.into_continuation().answer_large(with_many("x", &fd, count));
            match executor.block_on(answer) {
                Ok(()) => assert_eq!(executor.block_on(call).unwrap().descriptors(), 253),
                Err(error) => {
                    assert_eq!((error, count), (AnswerError::TooLarge, 254));
                    assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
                }
            }
        }
    }
}

// A caller that takes its time, by a clock that nobody waits for.

/// Answers a million bytes to somebody who takes a packet after each pause. What the answerer is told, and
/// how many bytes came.
fn to_a_reader_that_pauses(pause: Duration) -> (Result<(), AnswerError>, usize) {
    let world = World::new(1, Faults::NONE);
    let server = Executor::new(&world.reactor().unwrap());
    let reader = Executor::new(&world.reactor().unwrap());
    let (object, mailbox) = plain_object(server.reactor()).unwrap();
    let (near, far) = testing::packet_pair();
    testing::send_packet(object.share().unwrap(), b"hello", &[far.as_fd()]).unwrap();
    drop((object, far));
    let told = Rc::new(Cell::new(None));
    let tells = Rc::clone(&told);
    server.spawn(async move {
        let call = mailbox.next().await.unwrap();
        tells.set(Some(call.into_continuation().answer_large(pattern(1_000_000)).await));
    });
    let came = Rc::new(Cell::new(None));
    let comes = Rc::clone(&came);
    let clock = reader.reactor().clone();
    reader.spawn(async move {
        let mut count = 0;
        loop {
            clock.sleep(pause).await;
            let length = testing::receive_packet(&near).unwrap().bytes.len();
            count += length;
            if length == 0 {
                return comes.set(Some(count));
            }
        }
    });
    world.run(&[&server, &reader], || told.get().is_some() && came.get().is_some()).unwrap();
    (told.get().unwrap(), came.get().unwrap())
}

in_own_process! {
    /// Ten seconds for the queue to be empty enough, and not for all there is to say.
    fn a_caller_that_reads_slowly_is_waited_for() {
        assert_eq!(to_a_reader_that_pauses(LARGE_ANSWER_PAUSE_MAX / 5), (Ok(()), 1_000_016));
    }

    /// What was sent by then is there, and behind it the end.
    fn a_caller_that_does_not_read_is_given_up() {
        let (told, came) = to_a_reader_that_pauses(LARGE_ANSWER_PAUSE_MAX + Duration::from_millis(10));
        assert_eq!(told, Err(AnswerError::Unread));
        assert!((102_080..1_000_000).contains(&came), "{came}");
    }
}
