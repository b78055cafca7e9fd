//! Whoever has nothing to do is not woken and takes no time: counted by the kernel while others are busy.
//!
//! A server with objects, sessions and pairs and a caller that holds them are left alone while a second pair
//! of processes makes thousands of calls. Then the kernel is asked how often the idle ones have run since.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::OwnedFd;

use ring::{Executor, Message, Reactor, Socket};
use seqpacket::{Mailbox, Object, PlainMailbox, PlainObject};
use testing::{helper, on_each_driver, packet_pair, receive_packet, start_helper, wait_until};

const OBJECTS: usize = 50;
const CALLS: usize = 20_000;
const PAYLOAD: [u8; 64] = [7; 64];

helper! {
    /// Serves as many objects as it is given, the first of them plain.
    fn server(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let mut ends = descriptors.into_iter();
        let plain = PlainMailbox::from_fd(&reactor, ends.next().unwrap()).unwrap();
        for bound in ends {
            let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
            executor.spawn(async move {
                while let Some(call) = mailbox.next().await {
                    let answer = Message::from(call.bytes());
                    call.answer(answer).unwrap();
                }
            });
        }
        executor.block_on(async {
            while let Some(call) = plain.next().await {
                let answer = Message::from(call.bytes());
                call.answer(answer).unwrap();
            }
        });
    }

    /// Calls each object it is given once, says so, and waits until it is let go.
    fn caller(descriptors: Vec<OwnedFd>) {
        let mut descriptors = descriptors;
        let reactor = testing::reactor();
        let control = Socket::wrap(&reactor, descriptors.pop().unwrap()).unwrap();
        let mut addresses = descriptors.into_iter();
        let plain = PlainObject::from_fd(&reactor, addresses.next().unwrap()).unwrap();
        let objects: Vec<_> =
            addresses.map(|address| Object::from_fd(&reactor, address).unwrap()).collect();
        let executor = Executor::new(&reactor);
        executor.block_on(async {
            plain.call(&PAYLOAD).await.unwrap();
            for object in &objects {
                object.call(&PAYLOAD).await.unwrap();
            }
            control.send("ready").await.unwrap();
            assert!(matches!(control.receive().await, Err(ring::ReceiveError::Closed)));
        });
        drop((plain, objects, control));
        executor.settle();
    }
}

/// How often a process has been put on a CPU, and for how long together in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ran {
    nanoseconds: u64,
    times: u64,
}

/// `None` on a kernel that does not count.
fn ran(process: i32) -> Option<Ran> {
    let counted = fs::read_to_string(format!("/proc/{process}/schedstat")).ok()?;
    let mut numbers = counted.split_whitespace().map(|number| number.parse().unwrap());
    let (nanoseconds, times) = (numbers.next()?, numbers.nth(1)?);
    Some(Ran { nanoseconds, times })
}

/// Whether it sleeps.
fn sleeps(process: i32) -> bool {
    let said = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    said.rsplit(')').next().unwrap().trim().starts_with('S')
}

on_each_driver! {
    fn who_has_nothing_to_do_is_not_woken(reactor: &Reactor) {
        let (addresses, bound): (Vec<_>, Vec<_>) = (0..OBJECTS).map(|_| packet_pair()).unzip();
        let (control, far) = packet_pair();
        let idle_server = start_helper!(server, bound);
        let idle_caller = start_helper!(caller, addresses.into_iter().chain([far]).collect());
        assert_eq!(receive_packet(&control).unwrap().bytes, b"ready");
        let idle = [idle_caller.pid(), idle_server.pid()];

        let ((plain, plain_bound), (address, bound)) = (packet_pair(), packet_pair());
        let busy_server = start_helper!(server, vec![plain_bound, bound]);
        let object = Object::from_fd(reactor, address).unwrap();
        let calls = async |count| {
            for _ in 0..count {
                object.call(&PAYLOAD).await.unwrap();
            }
        };
        // What is made in idle time, and what ends after milliseconds, has had its time.
        testing::settle(reactor, calls(CALLS));
        wait_until("the idle ones sleep", || idle.into_iter().all(sleeps));
        let before = idle.map(ran);
        testing::settle(reactor, calls(CALLS));
        let after = idle.map(ran);
        if before.contains(&None) {
            println!("skipped: this kernel does not count how often a process has run");
        }
        assert_eq!(after, before, "the caller and the server that have nothing to do");

        drop((control, object, plain));
        testing::turn(reactor);
        idle_caller.succeeded();
        idle_server.succeeded();
        busy_server.succeeded();
    }
}
