//! Processes that are out of descriptors but for none, one or two, on either side: what cannot be carried
//! waits or is reported to both, by name, and service goes on afterwards. It knows nothing of how room is
//! reckoned; that is in the ring's `budget.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use ring::{Config, Executor, Message, Reactor};
use seqpacket::{CallError, CallOptions, Mailbox, Object, Part, PlainMailbox, PlainObject, blocking};
use support::{message_of, null};
use testing::{
    Census, DescriptorLimit, Helper, helper, leave_descriptors, limit_descriptors, on_each_driver,
    start_helper,
};

/// For a call that cannot be served: however late, it ends by its deadline.
const SOON: Duration = Duration::from_millis(50);

/// How often a server is brought to the edge.
const ROUNDS: u32 = 4;

/// Nothing is kept in reserve, so that the edge is where it is said to be.
fn reactor_at_the_edge() -> Reactor {
    let config = Config { driver: testing::driver(), descriptors_reserve: 0, ..Config::default() };
    Reactor::with_config(config).unwrap()
}

/// With as few as this to begin with, what is left is asked for before each message. With more, what was left
/// a moment ago is believed for some turns, and the kernel drops what does not fit.
const FEW: u64 = 200;

/// So many, when what was left to the closer threads is closed.
fn leaving(free: usize) -> DescriptorLimit {
    ring::closer_idle();
    leave_descriptors(free)
}

/// What this process counted before its limit was lowered it believes for the rest of that turn: a call that
/// was sent as soon as the limit was lowered lost its descriptors. So the command waits for another turn.
struct Turns {
    reactor: Reactor,
    wakers: Sender<Waker>,
    turned: Sender<()>,
}

/// Another thread's side of it.
struct Turned {
    wakers: Receiver<Waker>,
    turned: Receiver<()>,
}

fn turns_of(reactor: &Reactor) -> (Turns, Turned) {
    let (wakers, woken) = channel();
    let (turned, told) = channel();
    (Turns { reactor: reactor.clone(), wakers, turned }, Turned { wakers: woken, turned: told })
}

impl Turns {
    /// Each time it is woken it tells when the next turn has begun.
    async fn tell(self) {
        loop {
            self.woken().await;
            let now = self.reactor.turns();
            poll_fn(|context| {
                if self.reactor.turns() > now {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                self.reactor.ask_for_turn();
                Poll::Pending
            })
            .await;
            self.turned.send(()).unwrap();
        }
    }

    async fn woken(&self) {
        let mut asked = false;
        poll_fn(|context| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(());
            }
            self.wakers.send(context.waker().clone()).unwrap();
            Poll::Pending
        })
        .await;
    }
}

impl Turned {
    fn another(&self) {
        self.wakers.recv().unwrap().wake();
        self.turned.recv().unwrap();
    }
}

/// Does what the other end of this asks: leaves so many descriptors to this process, or all.
fn at_the_command_of(control: &OwnedFd, turned: &Turned) {
    let mut limit = None;
    loop {
        let asked = testing::receive_packet(control).unwrap().bytes;
        let asked = String::from_utf8(asked).unwrap();
        // Whatever the limit was: it ends first.
        drop(limit.take());
        match asked.as_str() {
            "" => return,
            "all" => {}
            free => {
                limit = Some(leaving(free.parse().unwrap()));
                turned.another();
            }
        }
        testing::send_packet(control, b"done", &[]).unwrap();
    }
}

helper! {
    /// Echoes calls and their descriptors, or answers with how many messages have lost some, here or there.
    fn server(descriptors: Vec<OwnedFd>) {
        let [bound, control] = descriptors.try_into().unwrap();
        let _few = (testing::helper_argument() == "few").then(|| limit_descriptors(FEW));
        let reactor = reactor_at_the_edge();
        let mailbox = Rc::new(Mailbox::from_fd(&reactor, bound).unwrap());
        let (turns, turned) = turns_of(&reactor);
        let commanded = thread::spawn(move || at_the_command_of(&control, &turned));
        let executor = Executor::new(&reactor);
        executor.spawn(turns.tell());
        executor.block_on(async {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"lost?" => drop(call.answer(reactor.stats().descriptors_lost.to_string())),
                    b"lost there?" => drop(call.answer(mailbox.stats().answers_lost.to_string())),
                    b"two" => drop(call.answer(message_of(b"two".to_vec(), vec![null(), null()]))),
                    _ => {
                        let (bytes, descriptors, continuation) = call.into_parts();
                        let _ = continuation.answer(message_of(bytes, descriptors));
                    }
                }
            }
        });
        commanded.join().unwrap();
    }

    /// As that one, of a plain object.
    fn plain_server(descriptors: Vec<OwnedFd>) {
        let [bound, control] = descriptors.try_into().unwrap();
        let _few = (testing::helper_argument() == "few").then(|| limit_descriptors(FEW));
        let reactor = reactor_at_the_edge();
        let mailbox = Rc::new(PlainMailbox::from_fd(&reactor, bound).unwrap());
        let (turns, turned) = turns_of(&reactor);
        let commanded = thread::spawn(move || at_the_command_of(&control, &turned));
        let executor = Executor::new(&reactor);
        executor.spawn(turns.tell());
        executor.block_on(async {
            while let Some(call) = mailbox.next().await {
                match call.bytes() {
                    b"lost?" => drop(call.answer(mailbox.violations().descriptors_lost.to_string())),
                    b"two" => drop(call.answer(message_of(b"two".to_vec(), vec![null(), null()]))),
                    _ => {
                        let (bytes, descriptors, continuation) = call.into_parts();
                        let _ = continuation.answer(message_of(bytes, descriptors));
                    }
                }
            }
        });
        commanded.join().unwrap();
    }
}

/// A server in another process, and the command over its limit.
struct Limited {
    helper: Helper,
    control: OwnedFd,
}

impl Limited {
    fn leaves(&self, free: &str) {
        testing::send_packet(&self.control, free.as_bytes(), &[]).unwrap();
        assert_eq!(testing::receive_packet(&self.control).unwrap().bytes, b"done");
    }

    #[track_caller]
    fn ends(self) {
        drop(self.control);
        self.helper.succeeded();
    }
}

fn served_with(limit: &str) -> (OwnedFd, Limited) {
    let (bound, address) = testing::packet_pair();
    let (control, theirs) = testing::packet_pair();
    (address, Limited { helper: start_helper!(server, vec![bound, theirs], limit), control })
}

fn served() -> (OwnedFd, Limited) {
    served_with("many")
}

fn plainly_served() -> (OwnedFd, Limited) {
    let (bound, address) = testing::packet_pair();
    let (control, theirs) = testing::packet_pair();
    (address, Limited { helper: start_helper!(plain_server, vec![bound, theirs]), control })
}

fn two() -> Message {
    message_of(b"take two".to_vec(), vec![null(), null()])
}

fn within(time: Duration) -> CallOptions {
    CallOptions { within: Some(time), ..CallOptions::default() }
}

#[track_caller]
fn echoes_two(executor: &Executor, object: &Object) {
    let answer = executor.block_on(object.call(two())).unwrap();
    assert_eq!((answer.bytes(), answer.descriptors()), (&b"take two"[..], 2));
}

#[track_caller]
fn plainly_echoes_two(executor: &Executor, object: &PlainObject) {
    let answer = executor.block_on(object.call(two())).unwrap();
    assert_eq!((answer.bytes(), answer.descriptors()), (&b"take two"[..], 2));
}

on_each_driver! {
    fn a_server_without_descriptors_takes_calls_when_it_has_some_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served_with("few");
        let object = Object::from_fd(reactor, address).unwrap();
        echoes_two(&executor, &object);
        // What the server has sent is closed there when this is answered: nothing comes free after.
        executor.block_on(object.call("hello")).unwrap();
        server.leaves("0");
        let waits = object.call(two());
        let late = object.call_with("late", within(SOON));
        assert!(matches!(executor.block_on(late), Err(CallError::Deadline)));
        server.leaves("all");
        let answer = executor.block_on(waits).unwrap();
        assert_eq!(answer.descriptors(), 2);
        assert_eq!(executor.block_on(object.call("lost?")).unwrap().bytes(), b"0");
        drop(object);
        executor.settle();
        server.ends();
    }

    /// Or serves, if something was just about to be closed there: never half, and never in silence.
    fn a_server_with_one_descriptor_left_says_what_it_has_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let object = Object::from_fd(reactor, address).unwrap();
        echoes_two(&executor, &object);
        let mut lost = 0;
        for _ in 0..ROUNDS {
            server.leaves("1");
            match executor.block_on(object.call(two())) {
                Ok(answer) => assert_eq!(answer.descriptors(), 2),
                Err(CallError::DescriptorsLost(Part::Call)) => lost += 1,
                Err(error) => panic!("{error:?}"),
            }
            server.leaves("all");
        }
        assert_eq!(executor.block_on(object.call("lost?")).unwrap().bytes(), lost.to_string().as_bytes());
        echoes_two(&executor, &object);
        drop(object);
        executor.settle();
        server.ends();
    }

    fn a_server_with_just_enough_serves(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = served();
        let object = Object::from_fd(reactor, address).unwrap();
        echoes_two(&executor, &object);
        server.leaves("2");
        echoes_two(&executor, &object);
        server.leaves("all");
        assert_eq!(executor.block_on(object.call("lost?")).unwrap().bytes(), b"0");
        drop(object);
        executor.settle();
        server.ends();
    }

    /// The continuation is a descriptor too, and is lost with the others: then the caller is told that nobody
    /// will answer.
    fn a_plain_server_with_too_few_counts_what_it_has_lost(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (address, server) = plainly_served();
        let object = PlainObject::from_fd(reactor, address).unwrap();
        plainly_echoes_two(&executor, &object);
        let mut lost = 0;
        for round in 0..ROUNDS {
            server.leaves(if round % 2 == 0 { "1" } else { "2" });
            match executor.block_on(object.call(two())) {
                Ok(answer) => assert_eq!(answer.descriptors(), 2),
                Err(CallError::Dropped) => lost += 1,
                Err(error) => panic!("{error:?}"),
            }
            server.leaves("all");
        }
        assert_eq!(executor.block_on(object.call("lost?")).unwrap().bytes(), lost.to_string().as_bytes());
        plainly_echoes_two(&executor, &object);
        drop(object);
        executor.settle();
        server.ends();
    }

    fn a_client_without_descriptors_cannot_attach_and_says_so(_reactor: &Reactor) {
        let here = reactor_at_the_edge();
        let executor = Executor::new(&here);
        let (address, server) = served();
        let object = Object::from_fd(&here, address).unwrap();
        for free in [0, 1] {
            let limit = leaving(free);
            let refused = executor.block_on(object.call("hello"));
            assert!(matches!(refused, Err(CallError::OutOfDescriptors(Part::Call))), "{refused:?}");
            drop(limit);
        }
        let limit = leaving(2);
        assert_eq!(executor.block_on(object.call("hello")).unwrap().bytes(), b"hello");
        drop(limit);
        echoes_two(&executor, &object);
        drop(object);
        executor.settle();
        server.ends();
    }

    fn a_client_without_descriptors_waits_for_an_answer_that_brings_some(_reactor: &Reactor) {
        let _few = limit_descriptors(FEW);
        let here = reactor_at_the_edge();
        let executor = Executor::new(&here);
        let (address, server) = served();
        let object = Object::from_fd(&here, address).unwrap();
        echoes_two(&executor, &object);
        let census = Census::take();
        let limit = leaving(0);
        let late = executor.block_on(object.call_with("two", within(SOON)));
        assert!(matches!(late, Err(CallError::Deadline)), "{late:?}");
        let waits = object.call("two");
        executor.settle();
        drop(limit);
        assert_eq!(executor.block_on(waits).unwrap().descriptors(), 2);
        executor.settle();
        ring::closer_idle();
        census.unchanged();
        drop(object);
        executor.settle();
        server.ends();
    }

    /// Or is served, if something was just about to be closed here.
    fn a_client_with_one_descriptor_left_says_what_it_has_lost(_reactor: &Reactor) {
        let here = reactor_at_the_edge();
        let executor = Executor::new(&here);
        let (address, server) = served();
        let object = Object::from_fd(&here, address).unwrap();
        echoes_two(&executor, &object);
        let limit = leaving(1);
        let lost = match executor.block_on(object.call("two")) {
            Ok(answer) => {
                assert_eq!(answer.descriptors(), 2);
                0
            }
            Err(CallError::DescriptorsLost(Part::Answer)) => 1,
            Err(error) => panic!("{error:?}"),
        };
        drop(limit);
        assert_eq!(here.stats().descriptors_lost, lost);
        // The server has been told before it is asked.
        let told = executor.block_on(object.call("lost there?")).unwrap();
        assert_eq!(told.bytes(), lost.to_string().as_bytes());
        echoes_two(&executor, &object);
        drop(object);
        executor.settle();
        server.ends();
    }

    fn a_plain_client_needs_a_pair(_reactor: &Reactor) {
        let here = reactor_at_the_edge();
        let executor = Executor::new(&here);
        let (address, server) = plainly_served();
        let object = PlainObject::from_fd(&here, address).unwrap();
        for free in [0, 1] {
            let limit = leaving(free);
            let refused = executor.block_on(object.call("hello"));
            assert!(matches!(refused, Err(CallError::OutOfDescriptors(Part::Call))), "{refused:?}");
            drop(limit);
        }
        let limit = leaving(2);
        assert_eq!(executor.block_on(object.call("hello")).unwrap().bytes(), b"hello");
        drop(limit);
        plainly_echoes_two(&executor, &object);
        drop(object);
        executor.settle();
        server.ends();
    }

    fn a_blocking_client_says_each_of_it_too(_reactor: &Reactor) {
        let (address, server) = served();
        let object = blocking::Object::from_fd(address).unwrap();
        for free in [0, 1] {
            let limit = leaving(free);
            let refused = object.call("hello");
            assert!(matches!(refused, Err(CallError::OutOfDescriptors(Part::Call))), "{refused:?}");
            drop(limit);
        }
        assert_eq!(object.call("hello").unwrap().bytes(), b"hello");
        for free in [0, 1] {
            let limit = leaving(free);
            let lost = object.call("two");
            assert!(matches!(lost, Err(CallError::DescriptorsLost(Part::Answer))), "{lost:?}");
            drop(limit);
        }
        assert_eq!(object.call("lost there?").unwrap().bytes(), b"2");
        let limit = leaving(2);
        assert_eq!(object.call("two").unwrap().descriptors(), 2);
        drop(limit);
        let fd = null();
        let lent = blocking::Outgoing::from("one").lend(fd.as_fd());
        assert_eq!(object.call(lent).unwrap().descriptors(), 1);
        drop(object);
        server.ends();
    }
}
