//! What a session can make its server hold, in bytes that were asked for and not given back: never more than
//! `MailboxOptions::session_memory_max` says, whatever the client does.
//!
//! The allocator of this program counts. The clients are bare sockets of the same process, and what they say
//! is made before anything is counted.
#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::System;
use std::future::poll_fn;
use std::task::Poll;

use ring::{Executor, PACKET_BYTES_MAX, Reactor, WAITING_BYTES_MAX};
use seqpacket::wire::{Header, Hello, RefusedReason, Size};
use seqpacket::{Mailbox, MailboxOptions, Object, ObjectOptions, object_with};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::*;
use testing::on_each_driver;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ATTACKERS: usize = 8;

/// So many turns are taken, and before each of them the attackers say something.
const ROUNDS: usize = 300;

fn in_use() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Small windows, and nothing large.
fn strict() -> MailboxOptions {
    let (calls, bytes, message_bytes, large_bytes) = (16, 204_160, 0, 0);
    MailboxOptions { calls, bytes, message_bytes, large_bytes, ..MailboxOptions::default() }
}

async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Sessions that have said nothing yet.
struct Trial {
    executor: Executor,
    _object: Object,
    mailbox: Mailbox,
    clients: Vec<RawClient>,
    options: MailboxOptions,
}

impl Trial {
    fn new(reactor: &Reactor, options: MailboxOptions) -> Trial {
        let executor = Executor::new(reactor);
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let attach = |_| RawClient::attach(&executor, object.share().unwrap());
        // One more than are counted: what the first of all costs is not each one's.
        let mut clients: Vec<_> = (0..=ATTACKERS).map(attach).collect();
        let first = clients.remove(0);
        assert!(first.say(&call(0, b"warm", 64), &[]));
        executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
        drop(first);
        until(&executor, "the first is gone", || mailbox.sessions() == ATTACKERS);
        Trial { executor, _object: object, mailbox, clients, options }
    }

    /// The most that was in use for each attacker, which is not more than it may be.
    #[track_caller]
    fn most(&self, mut misbehave: impl FnMut(&RawClient, usize), mut serve: impl FnMut(&Mailbox)) -> usize {
        let before = in_use();
        let mut most = 0;
        self.executor.block_on(async {
            for round in 0..ROUNDS {
                self.clients.iter().for_each(|client| misbehave(client, round));
                serve(&self.mailbox);
                pause().await;
                most = most.max(in_use().saturating_sub(before));
            }
        });
        let (each, allowed) = (most / ATTACKERS, self.options.session_memory_max());
        println!("{each} bytes for each session, at most {allowed}");
        assert!(each <= allowed, "{each} bytes for each session, and not {allowed}");
        assert_eq!(self.mailbox.sessions(), ATTACKERS, "{:?}", self.mailbox.violations());
        each
    }
}

fn large_call(number: u32, total: usize, message_bytes_max: u32) -> Vec<u8> {
    let hello = Hello { message_bytes_max, ..Hello::default() };
    let (total, room) = (Size::of_bytes(total).unwrap(), Size::of_bytes(64).unwrap());
    hello.call(number, total, room, None).encode().to_vec()
}

fn cancels(bytes: usize) -> Vec<u8> {
    Header::cancel(u32::MAX).encode().repeat(bytes / 16)
}

on_each_driver! {
    /// Each comes in a packet that is full of other things, which must not be kept with it.
    fn calls_that_nobody_takes(reactor: &Reactor) {
        let trial = Trial::new(reactor, strict());
        let packet = |number| {
            let call = call(number, &[7; 8_000], 64);
            [cancels(PACKET_BYTES_MAX - call.len()), call].concat()
        };
        // A packet each ten turns and more, since each has frames for sixteen.
        let packets: Vec<_> = (0..16).map(packet).collect();
        let most = trial.most(
            |client, round| {
                if let Some(packet) = packets.get(round / 17).filter(|_| round % 17 == 0) {
                    assert!(client.say(packet, &[]));
                }
            },
            |_| {},
        );
        assert!((100_000..500_000).contains(&most), "{most}: not what is around the calls");
    }

    fn packets_that_nobody_has_read_yet(reactor: &Reactor) {
        let trial = Trial::new(reactor, strict());
        let packet = cancels(PACKET_BYTES_MAX);
        let most = trial.most(|client, _| while client.say(&packet, &[]) {}, |_| {});
        assert!(most > 400_000, "{most}: some of it is in buffers that all share");
        assert!(most <= WAITING_BYTES_MAX + PACKET_BYTES_MAX, "{most}");
    }

    fn answers_that_are_not_read(reactor: &Reactor) {
        let trial = Trial::new(reactor, MailboxOptions { bytes: 1 << 20, ..strict() });
        let calls: Vec<_> = (0..16).map(|number| call(number, b"", 60_000)).collect();
        let calls = calls.concat();
        let most = trial.most(
            |client, round| assert!(round > 0 || client.say(&calls, &[])),
            |mailbox| {
                while let Poll::Ready(Some(call)) = poll_once(&mut mailbox.next()) {
                    let _ = call.answer(vec![7; 60_000]);
                }
            },
        );
        assert!(most > 500_000, "{most}: what is not in the kernel's queue");
    }

    fn large_calls_that_never_end(reactor: &Reactor) {
        let options = MailboxOptions { message_bytes: 1 << 20, large_bytes: 2 << 20, ..strict() };
        let trial = Trial::new(reactor, options);
        let openings = [1, 2].map(|number| large_call(number, 1 << 20, 1 << 20)).concat();
        let packet = cancels(PACKET_BYTES_MAX);
        let most = trial.most(
            |client, round| {
                assert!(round > 0 || client.say(&openings, &[]));
                while client.say(&packet, &[]) {}
            },
            |_| {},
        );
        assert!(most > (2 << 20) + 400_000, "{most}: two large calls, and what waits");
    }

    /// Large calls of all sizes, two at a time, each withdrawn after a while: what they leave is used again,
    /// and whatever is kept of it there is no more than may be under way.
    fn large_calls_that_are_withdrawn(reactor: &Reactor) {
        let (message_bytes, large_bytes) = (8 << 20, 16 << 20);
        let options = MailboxOptions { message_bytes, large_bytes, ..strict() };
        let trial = Trial::new(reactor, options);
        let opening = |number, total| large_call(number, total, message_bytes);
        let totals = [8 << 20, 1 << 20, 5 << 20, 7 << 20, 110_000, 3 << 20, 8 << 20, 8 << 20, 2 << 20];
        let most = trial.most(
            |client, round| {
                let [number, other] = [round as u32 % 2, (round as u32 + 1) % 2];
                assert!(client.say(&opening(number, totals[round % totals.len()]), &[]));
                assert!(round == 0 || client.say(&bare(Header::cancel(other)), &[]));
                while client.hear().is_some() {}
            },
            |_| {},
        );
        assert!(most > 8 << 20, "{most}: one of the largest at least");
    }

    fn the_room_of_a_withdrawn_call_is_used_again(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let before = in_use();
        let withdraw_one = || {
            client.say_all(&[large_call(1, 64 << 20, 64 << 20), bare(Header::cancel(1))]);
            assert_eq!(client.hear_from(&executor).bytes, RefusedReason::Cancelled.frame(1));
        };
        withdraw_one();
        assert!(in_use() - before > 64 << 20, "it is kept");
        let asked_for = ALLOCATOR.stats().bytes_allocated;
        (0..20).for_each(|_| withdraw_one());
        let asked_for = ALLOCATOR.stats().bytes_allocated - asked_for;
        assert!(asked_for < 64 << 20, "{asked_for} bytes were asked for anew");
        until(&executor, "what nobody uses is given back", || in_use() - before < 1 << 20);
        drop((client, mailbox));
    }
}
