//! Isolation, counted: whatever other sessions do, a call is handed out after no more of their frames and
//! bytes than their named budgets; and memory for large calls is not kept by whoever came first.
//!
//! The attackers say as much as their queues take before every single turn, they came before whoever means
//! well, and keep their windows, since otherwise they would be disconnected. Nothing here looks at a
//! clock but the test of those who are late.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use ring::{BURST_BYTES_MAX, Executor, Message, PACKET_BYTES_MAX, PIECES_AT_ONCE_MAX, Reactor, Wait};
use seqpacket::wire::{Header, Hello, Kind, PART_BYTES_MAX, RefusedReason, Size};
use seqpacket::{
    ATTACHES_A_TURN_MAX, CALLS_A_TURN_MAX, CallError, DISPATCH_TURNS_MAX, HANDED_ON_A_TURN_MAX,
    HUGE_PAGES_A_TURN_MAX, Incoming, LARGE_START, Mailbox, MailboxOptions, Object, ObjectOptions,
    PLAIN_CALLS_A_TURN_MAX, Part, PlainMailbox, SESSION_FRAMES_A_TURN_MAX, SESSION_PACKETS_A_TURN_MAX,
    object_with,
};
use support::*;
use testing::on_each_driver;

const MIB: usize = 1 << 20;

/// So many sessions misbehave at once, where it does not say otherwise.
const ATTACKERS: usize = 3;

/// So many calls are made beside them.
const HONEST_CALLS: u32 = 40;

const HONEST: &[u8] = b"honest";

/// What an attacker does.
#[derive(Clone, Copy, PartialEq)]
enum Misdeed {
    /// Packets of 4,096 frames that mean nothing.
    Cancels,
    /// Small calls, as many as the window has.
    SmallCalls,
    /// The same, and the server hands each of them on.
    HandedOn,
    /// Calls with descriptors, as many as the window has.
    Descriptors,
    /// Calls of a mebibyte.
    LargeCalls,
    /// Calls of 64 MiB that are withdrawn before their last part, over and over.
    EndlessParts,
    /// Calls with large answers, none of which is ever read.
    Unread,
    /// Everything that a session may have under way: bytes of large calls that stand still, descriptors, and
    /// small calls for the rest.
    Quotas,
}

/// One session that misbehaves.
struct Attacker {
    client: RawClient,
    misdeed: Misdeed,
    number: u32,
    under_way: u32,
    /// Bytes sent of the large call under way.
    sent: Option<usize>,
    began: bool,
    passed: OwnedFd,
    cancels: Vec<u8>,
    part: Vec<u8>,
}

impl Attacker {
    fn new(client: RawClient, misdeed: Misdeed) -> Attacker {
        let cancels = Header::cancel(u32::MAX).encode().repeat(PACKET_BYTES_MAX / 16);
        let part = frame(Header::part(0, PART_BYTES_MAX as u32), &vec![7; PART_BYTES_MAX]);
        let (number, under_way, sent, began) = (0, 0, None, false);
        Attacker { client, misdeed, number, under_way, sent, began, passed: null(), cancels, part }
    }

    /// Says as much as the queue takes.
    fn misbehave(&mut self) {
        match self.misdeed {
            Misdeed::Cancels => while self.client.say(&self.cancels, &[]) {},
            Misdeed::SmallCalls => self.call_on_and_on(b"flood", 0, 256),
            // Their near ends are in flight until they are read, which the kernel counts for the user.
            Misdeed::HandedOn => self.call_on_and_on(b"hand on", 0, 16),
            Misdeed::Descriptors => self.call_on_and_on(b"flood", 16, 4),
            Misdeed::LargeCalls => self.send_parts(MIB, MIB),
            Misdeed::EndlessParts => self.send_parts(64 * MIB, 64 * MIB - 1),
            Misdeed::Unread => {
                while self.under_way < 256 && self.client.say(&call(self.number, b"large", 60_000), &[]) {
                    self.number += 1;
                    self.under_way += 1;
                }
            }
            Misdeed::Quotas => {
                if !std::mem::replace(&mut self.began, true) {
                    for number in [1 << 20, (1 << 20) + 1] {
                        assert!(self.client.say(&large_call(number, 64 * MIB - 64, 64), &[]));
                    }
                }
                self.call_on_and_on(b"flood", 16, 4);
            }
        }
    }

    /// Hears what was answered, and calls anew for it.
    fn call_on_and_on(&mut self, payload: &[u8], descriptors: usize, most: u32) {
        while let Some(packet) = self.client.hear() {
            self.under_way -= said_by_server(&packet).len() as u32;
        }
        while self.under_way < most {
            // One packet holds the descriptors of one call only.
            let together = if descriptors > 0 { 1 } else { most - self.under_way };
            let calls: Vec<_> =
                (0..together).map(|one| call_with(self.number + one, payload, descriptors, 64)).collect();
            let passed: Vec<BorrowedFd<'_>> = vec![self.passed.as_fd(); descriptors];
            if !self.client.say(&calls.concat(), &passed) {
                return;
            }
            self.number += together;
            self.under_way += together;
        }
    }

    /// Large calls one after the other, each of them withdrawn after so many bytes if there are more.
    fn send_parts(&mut self, total: usize, most: usize) {
        while self.client.hear().is_some() {}
        loop {
            let Some(sent) = self.sent else {
                self.number = (self.number + 1) % 1000;
                if !self.client.say(&large_call(self.number, total, 64), &[]) {
                    return;
                }
                self.sent = Some(0);
                continue;
            };
            let length = PART_BYTES_MAX.min(total - sent);
            if sent + length > most {
                if !self.client.say(&bare(Header::cancel(self.number)), &[]) {
                    return;
                }
                self.sent = None;
                continue;
            }
            let header = Header::part(self.number, length as u32).encode();
            self.part[..header.len()].copy_from_slice(&header);
            if !self.client.say(&self.part[..header.len() + length], &[]) {
                return;
            }
            self.sent = Some(sent + length).filter(|sent| *sent < total);
        }
    }
}

fn large_call(number: u32, total: usize, answer_bytes: usize) -> Vec<u8> {
    let (message, answer) = (Size::of_bytes(total).unwrap(), Size::of_bytes(answer_bytes).unwrap());
    Hello::default().call(number, message, answer, None).encode().to_vec()
}

/// What a server has done so far, for everybody.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    turns: u64,
    frames: u64,
    bytes: u64,
    calls: u64,
    attached: u64,
    plain_calls: u64,
    /// Bytes that the reactor has taken out of the kernel's queues.
    taken_bytes: u64,
}

impl Done {
    fn with(self, other: Done, join: fn(u64, u64) -> u64) -> Done {
        Done {
            turns: join(self.turns, other.turns),
            frames: join(self.frames, other.frames),
            bytes: join(self.bytes, other.bytes),
            calls: join(self.calls, other.calls),
            attached: join(self.attached, other.attached),
            plain_calls: join(self.plain_calls, other.plain_calls),
            taken_bytes: join(self.taken_bytes, other.taken_bytes),
        }
    }

    fn since(self, before: Done) -> Done {
        self.with(before, |now, before| now - before)
    }
}

/// A server that answers at once, and counts.
struct Server {
    executor: Executor,
    counts: Rc<Counted>,
}

struct Counted {
    reactor: Reactor,
    mailbox: Mailbox,
    calls: Cell<u64>,
    plain_calls: Cell<u64>,
    /// What had been done when the honest call under way came.
    came: Cell<Option<Done>>,
    /// The most that was done between the arrival of such a call and its being handed out.
    most: Cell<Done>,
}

impl Counted {
    fn serve(&self, call: Incoming) {
        if call.bytes() == HONEST
            && let Some(came) = self.came.take()
        {
            self.most.set(self.most.get().with(self.done().since(came), u64::max));
        }
        self.calls.set(self.calls.get() + 1);
        let (bytes, _, continuation) = call.into_parts();
        match bytes.as_slice() {
            b"hand on" => drop(continuation.into_fd()),
            b"large" => drop(continuation.answer(vec![7; 60_000])),
            _ => drop(continuation.answer("yes")),
        }
    }

    fn done(&self) -> Done {
        let (received, reactor) = (self.mailbox.stats().received, self.reactor.stats());
        Done {
            turns: reactor.turns,
            frames: received.frames,
            bytes: received.bytes,
            calls: self.calls.get(),
            attached: self.mailbox.attached_ever(),
            plain_calls: self.plain_calls.get(),
            taken_bytes: reactor.bytes_received,
        }
    }
}

impl Server {
    fn new(reactor: &Reactor) -> (Server, Object) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let counts = Rc::new(Counted {
            reactor: reactor.clone(),
            mailbox,
            calls: Cell::new(0),
            plain_calls: Cell::new(0),
            came: Cell::new(None),
            most: Cell::default(),
        });
        let serving = Rc::clone(&counts);
        executor.spawn(async move {
            while let Some(call) = serving.mailbox.next().await {
                serving.serve(call);
            }
        });
        (Server { executor, counts }, object)
    }

    /// Calls while somebody misbehaves before each turn. Says what has come before a call at most, and what
    /// was done in all.
    fn under_attack(&self, honest: &RawClient, mut misbehave: impl FnMut()) -> (Done, Done) {
        let begin = self.counts.done();
        self.executor.block_on(async {
            for number in 0..HONEST_CALLS {
                for _ in 0..3 + number % 11 {
                    misbehave();
                    pause().await;
                }
                self.counts.came.set(Some(self.counts.done()));
                assert!(honest.say(&call(number, HONEST, 64), &[]));
                while honest.hear().is_none() {
                    misbehave();
                    pause().await;
                }
            }
        });
        assert!(self.counts.came.get().is_none(), "each was handed out");
        (self.counts.most.get(), self.counts.done().since(begin))
    }

    fn when_all_have_left(self) {
        until(&self.executor, "all are gone", || self.counts.mailbox.sessions() == 0);
    }
}

/// Lets everybody else have a turn.
async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What so many sessions may have done before a call is handed out, besides the call itself.
#[track_caller]
fn assert_within_budgets(most: Done, attackers: usize) {
    let turns = DISPATCH_TURNS_MAX * attackers;
    let frames = (turns * SESSION_FRAMES_A_TURN_MAX) as u64 + 1;
    // Parts of large calls, in all.
    let parts = DISPATCH_TURNS_MAX * PIECES_AT_ONCE_MAX * PACKET_BYTES_MAX;
    let bytes = (turns * SESSION_PACKETS_A_TURN_MAX * PACKET_BYTES_MAX + parts) as u64 + 64;
    let calls = DISPATCH_TURNS_MAX as u64 * u64::from(CALLS_A_TURN_MAX) + attackers as u64;
    // What has no place in a turn's share any more is noticed with the message that goes beyond.
    let taken_bytes = (turns * (BURST_BYTES_MAX + PACKET_BYTES_MAX) + parts) as u64 + 64;
    println!("{most:?}, at most {frames} frames, {bytes} bytes, {calls} calls, {taken_bytes} bytes taken");
    assert!(most.turns <= DISPATCH_TURNS_MAX as u64, "{most:?}");
    assert!(most.frames <= frames, "{most:?}, and not {frames} frames");
    assert!(most.bytes <= bytes, "{most:?}, and not {bytes} bytes");
    assert!(most.calls <= calls, "{most:?}, and not {calls} calls");
    assert!(most.taken_bytes <= taken_bytes, "{most:?}, and not {taken_bytes} bytes");
}

/// Calls beside so many sessions of this kind. Says what was done in all.
#[track_caller]
fn beside(reactor: &Reactor, attackers: usize, misdeed: Misdeed) -> Done {
    let (server, object) = Server::new(reactor);
    let attach = || RawClient::attach(&server.executor, object.share().unwrap());
    let mut all: Vec<_> = (0..attackers).map(|_| Attacker::new(attach(), misdeed)).collect();
    let honest = attach();
    let (most, done) = server.under_attack(&honest, || all.iter_mut().for_each(Attacker::misbehave));
    assert_within_budgets(most, attackers);
    let violations = server.counts.mailbox.violations();
    assert_eq!(server.counts.mailbox.sessions(), attackers + 1, "{violations:?}");
    drop((all, honest, object));
    server.when_all_have_left();
    done
}

/// Sessions of a mailbox, each with a large call whose first part has just come: it begins a huge page.
fn with_first_parts(reactor: &Reactor, count: usize) -> (Mailbox, Vec<RawClient>) {
    let executor = Executor::new(reactor);
    let (object, mailbox) =
        object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
    let clients: Vec<_> = (0..count).map(|_| RawClient::attach(&executor, object.share().unwrap())).collect();
    begin_large_calls(reactor, &mailbox, &clients);
    say_first_parts(&clients);
    (mailbox, clients)
}

fn begin_large_calls(reactor: &Reactor, mailbox: &Mailbox, clients: &[RawClient]) {
    let before = mailbox.stats().received.frames;
    clients.iter().for_each(|client| assert!(client.say(&large_call(1, 32 * MIB, 64), &[])));
    let begun = || mailbox.stats().received.frames - before == clients.len() as u64;
    testing::wait_until("all have begun", || {
        reactor.turn(Wait::Not).unwrap();
        begun()
    });
}

fn say_first_parts(clients: &[RawClient]) {
    let part = frame(Header::part(1, PART_BYTES_MAX as u32), &vec![7; PART_BYTES_MAX]);
    clients.iter().for_each(|client| assert!(client.say(&part, &[])));
}

fn filed_in_one_turn(reactor: &Reactor, mailbox: &Mailbox) -> u64 {
    let before = mailbox.stats().received.frames;
    reactor.turn(Wait::Not).unwrap();
    mailbox.stats().received.frames - before
}

/// Serves so many calls one after the other, each like that. How many have been served when it has to wait.
fn counts_of<Served: Future<Output = ()>>(
    executor: &Executor,
    calls: usize,
    mut serve: impl FnMut() -> Served,
) -> Vec<usize> {
    let served = Cell::new(0);
    let mut counts = Vec::new();
    let mut serving = std::pin::pin!(async {
        while served.get() < calls {
            serve().await;
            served.set(served.get() + 1);
        }
    });
    executor.block_on(poll_fn(|context| {
        let poll = serving.as_mut().poll(context);
        counts.push(served.get());
        poll
    }));
    counts.dedup();
    counts
}

on_each_driver! {
    fn a_call_beside_floods_of_small_frames(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::Cancels);
        assert!(done.frames > 50_000, "{done:?}");
    }

    fn a_call_beside_floods_of_small_calls(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::SmallCalls);
        assert!(done.calls > 10_000, "{done:?}");
    }

    fn a_call_beside_floods_of_calls_that_are_handed_on(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::HandedOn);
        assert!(done.calls > 1_000, "{done:?}");
    }

    fn a_call_beside_floods_of_descriptors(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::Descriptors);
        assert!(done.calls > 500, "{done:?}");
    }

    fn a_call_beside_floods_of_large_calls(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::LargeCalls);
        assert!(done.bytes > 20 * MIB as u64, "{done:?}");
    }

    fn a_call_beside_parts_that_never_end(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::EndlessParts);
        assert!(done.bytes > 20 * MIB as u64, "{done:?}");
        assert!(done.calls < 100, "{done:?}: none of them was whole");
    }

    fn a_call_beside_sessions_that_never_read(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::Unread);
        assert!(done.calls >= 256 * ATTACKERS as u64, "{done:?}");
    }

    fn a_call_beside_sessions_that_fill_every_quota(reactor: &Reactor) {
        let done = beside(reactor, ATTACKERS, Misdeed::Quotas);
        assert!(done.calls > 500, "{done:?}");
    }

    fn a_call_beside_many_sessions_that_flood(reactor: &Reactor) {
        let done = beside(reactor, 40, Misdeed::Cancels);
        assert!(done.frames > 500_000, "{done:?}");
    }

    fn a_call_beside_many_sessions_that_call(reactor: &Reactor) {
        let done = beside(reactor, 40, Misdeed::SmallCalls);
        assert!(done.calls > 50_000, "{done:?}");
    }

    fn a_call_beside_a_flood_of_clients(reactor: &Reactor) {
        let (server, object) = Server::new(reactor);
        let honest = RawClient::attach(&server.executor, object.share().unwrap());
        let asking = object.share().unwrap();
        testing::set_nonblocking(&asking);
        let (most, done) = server.under_attack(&honest, || {
            // They hang up at once. No more than these are in flight, which the kernel counts for the user.
            for _ in 0..2 * ATTACHES_A_TURN_MAX {
                let (_, far) = testing::packet_pair();
                if testing::send_packet(&asking, b"c", &[far.as_fd()]).is_err() {
                    break;
                }
            }
        });
        let attached = (DISPATCH_TURNS_MAX * ATTACHES_A_TURN_MAX) as u64;
        assert!(most.attached <= attached, "{most:?}, and not {attached} attached");
        assert_within_budgets(most, 1);
        assert!(done.attached > 200, "{done:?}");
        drop((honest, asking, object));
        server.when_all_have_left();
    }

    fn a_call_beside_a_flooded_plain_object(reactor: &Reactor) {
        let (server, object) = Server::new(reactor);
        let honest = RawClient::attach(&server.executor, object.share().unwrap());
        let (plain, flood) = testing::packet_pair();
        testing::set_nonblocking(&flood);
        let plain = PlainMailbox::from_fd(reactor, plain).unwrap();
        let counts = Rc::clone(&server.counts);
        server.executor.spawn(async move {
            while let Some(call) = plain.next().await {
                counts.plain_calls.set(counts.plain_calls.get() + 1);
                let _ = call.answer("yes");
            }
        });
        let (near, far) = testing::packet_pair();
        let (most, done) = server.under_attack(&honest, || {
            for _ in 0..32 {
                // Every other one has nothing to answer on.
                let sent = testing::send_packet(&flood, b"flood", &[far.as_fd()])
                    .and_then(|()| testing::send_packet(&flood, b"flood", &[]));
                if sent.is_err() {
                    break;
                }
            }
        });
        let plain_calls = DISPATCH_TURNS_MAX as u64 * u64::from(PLAIN_CALLS_A_TURN_MAX);
        assert!(most.plain_calls <= plain_calls, "{most:?}, and not {plain_calls} plain calls");
        assert_within_budgets(most, 1);
        assert!(done.plain_calls > 500, "{done:?}");
        drop((near, far, flood, honest, object));
        server.when_all_have_left();
    }

    /// A packet of 4,096 frames takes sixteen turns; what stands at its end is done all the same.
    fn a_packet_of_many_frames_is_read_to_its_end(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let share = SESSION_FRAMES_A_TURN_MAX;
        for count in [1, share - 2, share - 1, share, 3 * share - 1, 3 * share] {
            let cancels = Header::cancel(u32::MAX).encode().repeat(count);
            let with_descriptor = call_with(9, b"last", 1, 64);
            assert!(client.say(&[cancels, with_descriptor].concat(), &[null().as_fd()]));
            let incoming = executor.block_on(mailbox.next()).unwrap();
            assert_eq!((incoming.bytes(), incoming.descriptors()), (&b"last"[..], 1), "behind {count}");
            incoming.answer("yes").unwrap();
            assert_eq!(said_by_server(&client.hear_from(&executor)).len(), 1);
        }
        // Malformed at the end, beyond one turn's share: that ends the session too.
        let cancels = Header::cancel(u32::MAX).encode().repeat(2 * share);
        assert!(client.say(&[cancels, vec![0; 5]].concat(), &[]));
        client.hear_the_end(&executor);
        assert_eq!(mailbox.violations().malformed, 1);
    }

    fn a_stowaway_behind_the_last_frame_of_a_turn_is_found(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        for count in [SESSION_FRAMES_A_TURN_MAX, SESSION_FRAMES_A_TURN_MAX + 1] {
            let client = RawClient::attach(&executor, object.share().unwrap());
            let cancels = Header::cancel(u32::MAX).encode().repeat(count);
            assert!(client.say(&cancels, &[null().as_fd()]));
            client.hear_the_end(&executor);
        }
        assert_eq!(mailbox.violations().malformed, 2);
    }

    /// What is left of a packet goes with its session, descriptors and all.
    fn a_grant_is_revoked_in_the_middle_of_a_packet(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let (address, grant) = mailbox.grant_revocable().unwrap();
        let client = RawClient::attach(&executor, &address);
        let cancels = Header::cancel(u32::MAX).encode().repeat(4_000);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let packet = [call(1, b"revoke", 64), cancels, call_with(2, b"last", 1, 64)].concat();
        assert!(client.say(&packet, &[writer.as_fd()]));
        drop(writer);
        let incoming = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(incoming.bytes(), b"revoke");
        grant.revoke();
        drop(incoming);
        client.hear_the_end(&executor);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "the writer is closed");
    }

    /// Whoever takes them one after the other is woken once more, for the next turn.
    fn so_many_calls_are_handed_out_between_two_turns(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let attach = |_| RawClient::attach(&executor, object.share().unwrap());
        let clients: Vec<_> = (0..2).map(attach).collect();
        for client in &clients {
            client.say_all(&(0..CALLS_A_TURN_MAX).map(|number| call(number, b"", 64)).collect::<Vec<_>>());
        }
        executor.settle();
        let taken = RefCell::new(Vec::new());
        let mut counts = Vec::new();
        let mut take_all = std::pin::pin!(async {
            while taken.borrow().len() < 2 * CALLS_A_TURN_MAX as usize {
                let incoming = mailbox.next().await.unwrap();
                taken.borrow_mut().push(incoming);
            }
        });
        executor.block_on(poll_fn(|context| {
            let poll = take_all.as_mut().poll(context);
            counts.push(taken.borrow().len());
            poll
        }));
        assert_eq!(counts, [CALLS_A_TURN_MAX as usize, 2 * CALLS_A_TURN_MAX as usize]);
    }

    fn so_many_calls_are_handed_on_between_two_turns(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let client = RawClient::attach(&executor, object.share().unwrap());
        let calls = (0..3 * HANDED_ON_A_TURN_MAX).map(|number| call(number, b"", 64));
        client.say_all(&calls.collect::<Vec<_>>());
        executor.settle();
        let counts = counts_of(&executor, 3 * HANDED_ON_A_TURN_MAX as usize, || async {
            let (_, _, continuation) = mailbox.next().await.unwrap().into_parts();
            drop(continuation.into_fd().unwrap());
        });
        assert_eq!(counts, [1, 2, 3].map(|turns| turns * HANDED_ON_A_TURN_MAX as usize));
    }

    fn so_many_plain_calls_are_handed_out_between_two_turns(reactor: &Reactor) {
        const CALLS: usize = 3 * PLAIN_CALLS_A_TURN_MAX as usize;
        let executor = Executor::new(reactor);
        let (plain, callers) = testing::packet_pair();
        let mailbox = PlainMailbox::from_fd(reactor, plain).unwrap();
        let (near, far) = testing::packet_pair();
        (0..CALLS).for_each(|_| testing::send_packet(&callers, b"call", &[far.as_fd()]).unwrap());
        // However much has been brought before anybody asks.
        executor.settle();
        let counts = counts_of(&executor, CALLS, || async {
            mailbox.next().await.unwrap().answer("yes").unwrap();
        });
        assert_eq!(counts, [1, 2, 3].map(|turns| turns * PLAIN_CALLS_A_TURN_MAX as usize));
        drop(near);
    }

    // Memory for large calls.

    fn so_many_huge_pages_are_begun_in_a_turn(reactor: &Reactor) {
        let (mailbox, clients) = with_first_parts(reactor, 6);
        let mut filed = 0;
        while filed < clients.len() as u64 {
            let more = filed_in_one_turn(reactor, &mailbox);
            assert!(more <= HUGE_PAGES_A_TURN_MAX as u64, "{more} in one turn");
            filed += more;
        }
        assert_eq!(mailbox.violations(), Default::default());
    }

    /// A call is no part, and waits for none.
    fn a_call_is_handed_out_while_parts_wait_for_their_huge_pages(reactor: &Reactor) {
        let (mailbox, clients) = with_first_parts(reactor, 6);
        assert!(clients[0].say(&bare(Header::cancel(u32::MAX)), &[]));
        let executor = Executor::new(reactor);
        let honest = RawClient::attach(&executor, mailbox.grant().unwrap());
        assert!(honest.say(&call(1, HONEST, 64), &[]));
        assert_eq!(executor.block_on(mailbox.next()).unwrap().bytes(), HONEST);
    }

    /// Whoever is next in line, and all behind it, would otherwise wait for it for ever.
    fn whoever_goes_while_it_waits_for_a_huge_page_is_waited_for_by_nobody(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (_object, mailbox) =
            object_with(reactor, ObjectOptions::default(), MailboxOptions::default()).unwrap();
        let grants: Vec<_> = (0..4).map(|_| mailbox.grant_revocable().unwrap()).collect();
        let clients: Vec<_> =
            grants.iter().map(|(address, _)| RawClient::attach(&executor, address)).collect();
        begin_large_calls(reactor, &mailbox, &clients);
        say_first_parts(&clients);
        testing::wait_until("one is filed", || filed_in_one_turn(reactor, &mailbox) > 0);
        grants[..3].iter().for_each(|(_, grant)| grant.revoke());
        assert!(clients[3].say(&call(9, HONEST, 64), &[]));
        assert_eq!(executor.block_on(mailbox.next()).unwrap().bytes(), HONEST);
    }

    fn what_is_kept_for_calls_to_come_is_given_to_whoever_needs_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 4 * MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let attach = |_| RawClient::attach(&executor, object.share().unwrap());
        let keepers: Vec<_> = (0..2).map(attach).collect();
        for keeper in &keepers {
            keeper.say_all(&[large_call(1, 2 * MIB, 64), bare(Header::cancel(1))]);
            assert_eq!(keeper.hear_from(&executor).bytes, RefusedReason::Cancelled.frame(1));
        }
        let other = attach(2);
        other.say_all(&[large_call(1, 4 * MIB, 64), call(2, HONEST, 64)]);
        assert_eq!(executor.block_on(mailbox.next()).unwrap().bytes(), HONEST);
        assert!(other.hear().is_none(), "it has been let in");
    }

    fn a_large_call_is_taken_at_the_cost_of_whoever_holds_more(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 4 * MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let greedy = RawClient::attach(&executor, object.share().unwrap());
        let modest = RawClient::attach(&executor, object.share().unwrap());
        greedy.say_all(&[large_call(1, 3 * MIB, 64), large_call(2, MIB, 64)]);
        executor.settle();
        modest.say_all(&[large_call(1, MIB, 64)]);
        // Of theirs the largest goes, and no more than it takes.
        assert_eq!(greedy.hear_from(&executor).bytes, RefusedReason::OutOfMemory.frame(1));
        for chunk in vec![7; MIB].chunks(PART_BYTES_MAX) {
            let part = frame(Header::part(1, chunk.len() as u32), chunk);
            until(&executor, "there is room", || modest.say(&part, &[]));
        }
        let incoming = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(incoming.bytes().len(), MIB);
        incoming.answer("yes").unwrap();
        assert_eq!(said_by_server(&modest.hear_from(&executor))[0].0, Kind::Answer);
        // Who was refused says where its parts end, and goes on as anybody else.
        greedy.say_all(&[bare(Header::cancel(1)), call(3, b"small", 64)]);
        let incoming = executor.block_on(mailbox.next()).unwrap();
        assert_eq!(incoming.bytes(), b"small");
        incoming.answer("yes").unwrap();
        assert_eq!(mailbox.violations(), Default::default());
    }

    fn a_large_call_is_refused_where_nobody_holds_more(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 4 * MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let first = RawClient::attach(&executor, object.share().unwrap());
        let second = RawClient::attach(&executor, object.share().unwrap());
        first.say_all(&[large_call(1, 2 * MIB, 64), large_call(2, MIB, 64)]);
        executor.settle();
        // With what it has already it would have as much as the other, and that is not less.
        second.say_all(&[large_call(1, MIB, 64), large_call(2, 2 * MIB, 64)]);
        assert_eq!(second.hear_from(&executor).bytes, RefusedReason::OutOfMemory.frame(2));
        assert!(first.hear().is_none());
        drop(mailbox);
    }

    /// Each holds less than is asked for. Half of them send nothing, and half take back what they began and
    /// begin anew, before whoever asks has asked again.
    fn a_large_call_is_not_kept_out_by_many_that_hold_a_little_each(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: 4 * MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let attach = |_| RawClient::attach(&executor, object.share().unwrap());
        let many: Vec<_> = (0..4).map(attach).collect();
        let honest = attach(4);
        let begin_anew = |session: &RawClient| {
            session.say_all(&[bare(Header::cancel(1)), large_call(1, MIB, 64)]);
            executor.settle();
            while session.hear().is_some() {}
        };
        let begun = Instant::now();
        many.iter().for_each(begin_anew);
        let is_let_in = || {
            many[..2].iter().for_each(begin_anew);
            honest.say_all(&[large_call(1, 4 * MIB, 64), call(2, HONEST, 64)]);
            executor.block_on(mailbox.next()).unwrap().answer("yes").unwrap();
            let mut heard = said_by_server(&honest.hear_from(&executor));
            let refused = heard[0].0 == Kind::Refused;
            while heard.iter().all(|(kind, ..)| *kind != Kind::Answer) {
                heard = said_by_server(&honest.hear_from(&executor));
            }
            if refused {
                honest.say_all(&[bare(Header::cancel(1))]);
            }
            !refused
        };
        testing::wait_until("there is room", is_let_in);
        assert!(begun.elapsed() >= LARGE_START, "nobody was late");
        // All of them have given way. That it holds more than they ask for is no reason to give way to them.
        many.iter().for_each(begin_anew);
        for chunk in vec![7; 4 * MIB].chunks(PART_BYTES_MAX) {
            let part = frame(Header::part(1, chunk.len() as u32), chunk);
            until(&executor, "there is room", || honest.say(&part, &[]));
        }
        assert_eq!(executor.block_on(mailbox.next()).unwrap().bytes().len(), 4 * MIB);
        assert_eq!(mailbox.violations(), Default::default());
    }

    fn what_has_arrived_whole_is_not_taken_back(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let options = MailboxOptions { large_bytes_together: MIB, ..MailboxOptions::default() };
        let (object, mailbox) = object_with(reactor, ObjectOptions::default(), options).unwrap();
        let object = attached(&executor, object);
        let other = Object::from_fd(reactor, object.share().unwrap()).unwrap();
        let first = object.call(Message::new(vec![7; MIB]));
        let incoming = executor.block_on(mailbox.next()).unwrap();
        let second = executor.block_on(other.call(Message::new(vec![7; 150_000])));
        assert!(matches!(second, Err(CallError::OutOfMemory(Part::Call))), "{second:?}");
        incoming.answer("yes").unwrap();
        assert_eq!(executor.block_on(first).unwrap().bytes(), b"yes");
    }
}
