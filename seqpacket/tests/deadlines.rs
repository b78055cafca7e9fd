//! Deadlines that travel with a call: the handler knows them and passes them on, what is too late is not
//! begun, and a caller that cannot say so any more is not waited for.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::{Executor, Reactor};
use rustix::process::{Pid, Signal, kill_process};
use seqpacket::wire::{Hello, Kind, RefusedReason, Size, Windows};
use seqpacket::{CallError, CallOptions, Object};
use support::*;
use testing::{Helper, helper, on_each_driver, settle, start_helper};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// So short that it has passed soon, and long enough to be sent before that.
const SHORT: Duration = Duration::from_millis(500);

helper! {
    /// Calls once with a deadline, and waits.
    fn hasty_caller(descriptors: Vec<OwnedFd>) {
        let [object] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, object).unwrap();
        settle(&reactor, async {
            object.attach().await.unwrap();
            let _ = object.call_with("quickly", within(SHORT)).await;
        });
    }

    /// Calls with much time and with little, with a reactor and without.
    fn caller_of_another_time(descriptors: Vec<OwnedFd>) {
        let [object, other] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let object = Object::from_fd(&reactor, object).unwrap();
        settle(&reactor, async {
            reactor.sleep(Duration::from_millis(1)).await;
            assert_eq!(object.call_with("patient", within(LONG)).await.unwrap().bytes(), b"in time");
            let hasty = object.call_with("hasty", within(SHORT)).await;
            assert!(matches!(hasty, Err(CallError::Deadline | CallError::Expired)), "{hasty:?}");
        });
        let object = seqpacket::blocking::Object::from_fd(other).unwrap();
        assert_eq!(object.call_with("patient", within(LONG)).unwrap().bytes(), b"in time");
        let hasty = object.call_with("hasty", within(SHORT));
        assert!(matches!(hasty, Err(CallError::Deadline | CallError::Expired)), "{hasty:?}");
    }

    /// Answers each call with the time it is given, after asking another with what is left of it.
    fn relay(descriptors: Vec<OwnedFd>) {
        let [mailbox, next] = descriptors.try_into().unwrap();
        let reactor = testing::reactor();
        let mailbox = seqpacket::Mailbox::from_fd(&reactor, mailbox).unwrap();
        let next = Object::from_fd(&reactor, next).unwrap();
        settle(&reactor, async {
            while let Some(call) = mailbox.next().await {
                let answer = next.call_with(call.bytes(), CallOptions::until(call.deadline())).await;
                let _ = call.answer(answer.unwrap().into_bytes());
            }
        });
    }
}

fn within(time: Duration) -> CallOptions {
    CallOptions { within: Some(time), ..CallOptions::default() }
}

/// A CALL whose caller waits for so long.
fn call_within(number: u32, payload: &[u8], time: Duration) -> Vec<u8> {
    let size = Size::of_bytes(payload.len()).unwrap();
    let opening = Hello::default().call(number, size, Size::of_bytes(64).unwrap(), Some(time));
    [&opening.encode(), payload].concat()
}

on_each_driver! {
    /// A moment of one clock means nothing on another: what travels is how much time is left.
    fn deadlines_keep_between_processes_whose_clocks_are_days_apart(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let addresses = [(); 2].map(|()| object.share().unwrap().try_clone().unwrap());
        let path = testing::path_of(&caller_of_another_time);
        let Some(caller) = Helper::start_ahead(path, addresses.into(), "") else { return };
        drop(object);
        settle(reactor, async {
            while let Some(call) = mailbox.next().await {
                let left = call.deadline().unwrap().saturating_duration_since(reactor.now());
                if call.bytes() == b"hasty" {
                    assert!(left <= SHORT, "{left:?}");
                    call.continuation().cancelled().await;
                } else {
                    assert!(SHORT < left && left <= LONG, "{left:?}");
                    call.answer("in time").unwrap();
                }
            }
        });
        caller.succeeded();
    }

    fn the_handler_knows_how_long_the_caller_waits(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let before = Instant::now();
        let _waiting = object.call_with("hurry", within(LONG));
        let call = executor.block_on(mailbox.next()).unwrap();
        let deadline = call.deadline().unwrap();
        assert!(deadline >= before + LONG - Duration::from_secs(60));
        assert!(deadline <= Instant::now() + LONG);
        assert_eq!(call.bytes(), b"hurry");
        assert!(!call.continuation().is_cancelled());
    }

    fn who_says_nothing_waits_for_ever(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let _waiting = object.call("at leisure");
        let _here_only = object.call("at leisure too").within(LONG);
        for _ in 0..2 {
            assert_eq!(executor.block_on(mailbox.next()).unwrap().deadline(), None);
        }
    }

    fn of_two_limits_the_earlier_counts(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let soon = Instant::now() + LONG;
        for (time, moment) in [(LONG * 9, soon), (LONG, soon + LONG * 8)] {
            let options = CallOptions { until: Some(moment), ..within(time) };
            let _waiting = object.call_with("hurry", options);
            let call = executor.block_on(mailbox.next()).unwrap();
            assert!(call.deadline().unwrap() <= Instant::now() + LONG);
        }
    }

    /// Three processes: the time goes on running while the second waits for the third.
    fn a_deadline_is_passed_on_to_nested_calls(reactor: &Reactor) {
        let (last, mailbox) = seqpacket::object(reactor).unwrap();
        let (bound, address) = testing::packet_pair();
        let object = Object::from_fd(reactor, address).unwrap();
        let relay = start_helper!(relay, vec![bound, last.share().unwrap()]);
        let executor = Executor::new(reactor);
        let limit = Instant::now() + LONG;
        let options = CallOptions::until(Some(limit));
        let asked = object.call_with("how long?", options);
        let call = executor.block_on(mailbox.next()).unwrap();
        // Each hop reckons from its own receipt: the way there is not subtracted, but the time before is.
        assert!(call.deadline().unwrap() <= Instant::now() + LONG);
        assert!(call.deadline().unwrap() >= limit - Duration::from_millis(1));
        call.answer("long enough").unwrap();
        assert_eq!(executor.block_on(asked).unwrap().bytes(), b"long enough");
        drop((object, last));
        executor.settle();
        relay.succeeded();
    }

    fn what_is_too_late_is_not_handed_out(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let taken = Rc::new(Cell::new(0));
        let counted = Rc::clone(&taken);
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                counted.set(counted.get() + 1);
                let (bytes, _, continuation) = call.into_parts();
                continuation.answer(bytes).unwrap();
            }
        });
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[
            call_within(1, b"too late", Duration::ZERO),
            call_within(2, b"in time", LONG),
            call_within(3, b"too late as well", Duration::ZERO),
            call(4, b"whenever", 64),
        ]);
        let mut said = Vec::new();
        until(&executor, "all have ended", || {
            said.extend(client.hear().iter().flat_map(said_by_server));
            said.len() == 4
        });
        said.sort_by_key(|(_, number, _)| *number);
        let expired = vec![RefusedReason::Expired as u8];
        assert_eq!(said[0], (Kind::Refused, 1, expired.clone()));
        assert_eq!(said[1], (Kind::Answer, 2, b"in time".to_vec()));
        assert_eq!(said[2], (Kind::Refused, 3, expired));
        assert_eq!(said[3], (Kind::Answer, 4, b"whenever".to_vec()));
        assert_eq!(taken.get(), 2);
    }

    /// Descriptors and all.
    fn what_came_too_late_is_closed(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let client = RawClient::attach(&executor, object.share().unwrap());
        let (near, far) = testing::packet_pair();
        let size = Size::of_bytes(4).unwrap().with_descriptors(1).unwrap();
        let opening = Hello::default().call(1, size, Size::NONE, Some(Duration::ZERO));
        assert!(client.say(&[&opening.encode(), &b"late"[..]].concat(), &[far.as_fd()]));
        drop(far);
        client.say_all(&[call(2, b"next", 64)]);
        assert_eq!(executor.block_on(mailbox.next()).unwrap().bytes(), b"next");
        until(&executor, "its descriptor is closed", || {
            testing::receive_packet(&near).is_ok_and(|packet| packet.bytes.is_empty())
        });
    }

    fn an_expired_call_has_not_been_seen(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let call = object.call_with("hurry", within(LONG));
        let session = server.attach(&executor, Hello::default());
        let heard = said_by_client(&session.hear_from(&executor));
        assert_eq!((heard[0].0, heard[0].2.as_slice()), (Kind::Call, &b"hurry"[..]));
        assert!(session.say(&RefusedReason::Expired.frame(heard[0].1), &[]));
        let error = executor.block_on(call).unwrap_err();
        assert!(matches!(error, CallError::Expired), "{error:?}");
        assert!(error.is_retry_safe());
    }

    fn a_call_that_is_too_late_already_is_not_sent(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let first = object.call("the first");
        let session = server.attach(&executor, Hello::default());
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        let late = object.call_with("too late", CallOptions::until(Some(Instant::now())));
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        let _next = object.call("the next");
        assert_eq!(said_by_client(&session.hear_from(&executor))[0].2, b"the next");
        assert!(session.say(&answer(number, b"done", 0), &[]));
        assert_eq!(executor.block_on(first).unwrap().bytes(), b"done");
    }

    fn a_call_that_waited_too_long_for_room_is_not_sent(reactor: &Reactor) {
        let (server, object) = RawServer::new(reactor);
        let executor = Executor::new(reactor);
        let first = object.call("the first");
        let windows = Windows { calls: 1, ..Windows::default() };
        let session = server.attach(&executor, Hello { windows, ..Hello::default() });
        let number = said_by_client(&session.hear_from(&executor))[0].1;
        let late = object.call_with("too late", within(Duration::from_millis(1)));
        let next = object.call("the next");
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        assert!(session.say(&answer(number, b"done", 0), &[]));
        executor.block_on(first).unwrap();
        executor.settle();
        let heard = said_by_client(&session.hear_from(&executor));
        assert_eq!(heard.iter().map(|(_, _, payload)| payload.as_slice()).collect::<Vec<_>>(), [b"the next"]);
        drop(next);
    }

    fn at_the_deadline_the_handler_notices_even_if_nobody_says_so(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let client = RawClient::attach(&executor, object.share().unwrap());
        client.say_all(&[call_within(1, b"quickly", SHORT)]);
        let call = executor.block_on(mailbox.next()).unwrap();
        executor.block_on(call.continuation().cancelled());
        assert!(call.continuation().is_cancelled());
        assert!(call.deadline().unwrap() <= Instant::now());
        // Whether it is in time is for the caller to say.
        call.answer("all the same").unwrap();
        let said = said_by_server(&client.hear_from(&executor));
        assert_eq!(said, [(Kind::Answer, 1, b"all the same".to_vec())]);
    }

    fn the_handler_notices_the_deadline_of_a_process_that_is_stopped(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let mut caller = start_helper!(hasty_caller, vec![object.share().unwrap()]);
        let executor = Executor::new(reactor);
        let call = executor.block_on(mailbox.next()).unwrap();
        kill_process(Pid::from_raw(caller.pid()).unwrap(), Signal::STOP).unwrap();
        executor.block_on(call.continuation().cancelled());
        caller.kill();
    }

    fn who_waits_longer_than_the_caller_is_told_of_its_withdrawal(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let waiting = object.call_with("hurry", within(LONG));
        let call = executor.block_on(mailbox.next()).unwrap();
        drop(waiting);
        executor.block_on(call.continuation().cancelled());
        assert!(call.deadline().unwrap() > Instant::now());
        assert!(call.answer("too late").is_err());
    }

    /// The handler gives up at the deadline, and says so before the caller has looked at its own clock.
    fn a_handler_that_gives_up_at_the_deadline_makes_no_dropped_call_of_it(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let call = object.call_with("hello", within(SHORT));
        let taken = executor.block_on(mailbox.next()).unwrap().into_continuation();
        executor.block_on(taken.cancelled());
        drop(taken);
        executor.settle();
        assert!(matches!(executor.block_on(call), Err(CallError::Deadline)));
        // In time it is a dropped call.
        let call = object.call_with("hello", within(LONG));
        drop(executor.block_on(mailbox.next()));
        assert!(matches!(executor.block_on(call), Err(CallError::Dropped)));
    }

    /// The caller's clock and the server's ways agree in the end: one outcome, and the session goes on.
    fn a_deadline_that_passes_ends_the_call_once(reactor: &Reactor) {
        let (object, mailbox) = seqpacket::object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let object = attached(&executor, object);
        for _ in 0..20 {
            let call = object.call_with("quickly", within(Duration::from_millis(1)));
            let error = executor.block_on(call).unwrap_err();
            assert!(matches!(error, CallError::Deadline | CallError::Expired), "{error:?}");
        }
        let last = object.call("take your time");
        let taken = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(taken.bytes(), b"take your time");
        taken.answer("done").unwrap();
        assert_eq!(executor.block_on(last).unwrap().bytes(), b"done");
    }
}
