//! The driver of simulated worlds: every freedom the kernel has is decided by one seed.
//!
//! It makes the same system calls as the others, on real sockets, and never waits in one: so descriptors,
//! full queues, ends of file and leaks are the kernel's own. What it makes up is what a kernel may do but
//! seldom does: operations that run turns after they were asked for, completions in any order and few at a
//! time, streams that end early, queues that are full for no reason, descriptors that did not fit, an end of
//! file that is none. It owns what has happened and has not been told yet. It does not know what is sent.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use slab::Slab;

use super::epoll::{Now, out_of_descriptors, receive_at_most};
use super::faults::{Fault, Faults, Happened, Sabotage};
use super::{Ground, STARVED_RETRY, Sleep};
use crate::clock::Clock;
use crate::envelope::{self, Control, Envelope, Room, Taken};
use crate::fd::{Descriptors, Fd, Kind};
use crate::message::{PACKET_BYTES_MAX, Received};
use crate::request::{Arrival, BURST_MAX, Completion, Outcome, Request, Requests, Token, Want};
use crate::sys::{self, Half, UnixAddress, errno, ready};

/// How many decisions a world remembers, to be printed when it fails.
const REMEMBERED_MAX: usize = 200;

/// In so many of a thousand cases something happens to a receive for which there is nothing.
const IN_VAIN: u32 = 50;

/// A stream is cut where a buffer of the kernel's ends, and with the smallest SO_SNDBUF (4,608) these are so
/// long.
const WHOLE_BYTES_MAX: usize = 2240;

/// The most that a receive of a stream brings when it is short.
const SHORT_BYTES_MAX: usize = 200;

/// What all reactors of one world share: the seed, the clock, and what was decided.
pub(crate) struct Fate {
    seed: u64,
    state: Cell<u64>,
    started: Instant,
    now: Rc<Cell<Instant>>,
    faults: Cell<Faults>,
    happened: Cell<Happened>,
    sabotage: Cell<Option<Sabotage>>,
    pub(crate) parties: RefCell<Vec<Standing>>,
    /// Somebody else decides when time passes; otherwise the turn that would sleep does.
    pub(crate) conducted: Cell<bool>,
    decisions: RefCell<VecDeque<Decision>>,
    /// Of all decisions so far: two worlds of one seed have the same.
    print: Cell<u64>,
}

/// Where one reactor of a world stands.
#[derive(Clone, Copy, Default)]
pub(crate) struct Standing {
    /// Nothing will happen to it before somebody else does something, or time passes.
    pub(crate) idle: bool,
    /// When it would wake up by itself.
    pub(crate) due: Option<Instant>,
    /// Its process has died: nothing of it happens any more.
    pub(crate) dead: bool,
}

/// One thing that was decided, or that happened because of it.
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    /// Whose, by the order in which they joined the world.
    pub(crate) party: usize,
    pub(crate) what: &'static str,
    /// Of which request; none for what is done at once.
    pub(crate) slot: Option<u32>,
    /// Bytes, an error, a number of descriptors, milliseconds.
    pub(crate) number: i64,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { party, what, slot, number } = *self;
        match slot {
            Some(slot) => write!(f, "party {party}, slot {slot}: {what} {number}"),
            None => write!(f, "party {party}: {what} {number}"),
        }
    }
}

impl Fate {
    pub(crate) fn new(seed: u64, faults: Faults) -> Rc<Fate> {
        let started = Instant::now();
        Rc::new(Fate {
            seed,
            state: Cell::new(seed),
            started,
            now: Rc::new(Cell::new(started)),
            faults: Cell::new(faults),
            happened: Cell::default(),
            sabotage: Cell::new(None),
            parties: RefCell::new(Vec::new()),
            conducted: Cell::new(false),
            decisions: RefCell::new(VecDeque::new()),
            print: Cell::new(0),
        })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock::Scripted(Rc::clone(&self.now))
    }

    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.faults.set(faults);
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.get()
    }

    pub(crate) fn happened(&self) -> Happened {
        self.happened.get()
    }

    pub(crate) fn count(&self, fault: Fault) {
        let mut happened = self.happened.get();
        happened.note(fault);
        self.happened.set(happened);
    }

    /// From here on a driver does what none of ours does.
    pub(crate) fn set_sabotage(&self, sabotage: Sabotage) {
        self.sabotage.set(Some(sabotage));
    }

    /// Whether it does so this time. Without sabotage the seed is not asked.
    fn sabotages(&self, sabotage: Sabotage) -> bool {
        self.sabotage.get() == Some(sabotage) && self.happens(250)
    }

    /// The next number of the seed: splitmix64, which is short and good enough.
    fn next(&self) -> u64 {
        self.state.set(self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut number = self.state.get();
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// A number below `count`.
    pub(crate) fn below(&self, count: usize) -> usize {
        assert!(count > 0, "there is no number below zero");
        (self.next() % count as u64) as usize
    }

    /// Whether it happens this time.
    pub(crate) fn happens(&self, per_mille: u32) -> bool {
        per_mille > 0 && self.next() % 1000 < u64::from(per_mille)
    }

    /// Whether this fault happens this time, which is counted.
    fn strikes(&self, per_mille: u32, fault: Fault) -> bool {
        let happens = self.happens(per_mille);
        if happens {
            self.count(fault);
        }
        happens
    }

    /// Time passes until this moment.
    pub(crate) fn pass_until(&self, moment: Instant) {
        let passed = moment.saturating_duration_since(self.now.get());
        let number = passed.as_millis() as i64;
        self.remember(Decision { party: 0, what: "milliseconds pass:", slot: None, number });
        self.now.set(self.now.get() + passed);
        self.stir();
    }

    /// Something was done that anybody may notice.
    pub(crate) fn stir(&self) {
        self.parties.borrow_mut().iter_mut().for_each(|standing| standing.idle = false);
    }

    pub(crate) fn print(&self) -> u64 {
        self.print.get() ^ self.state.get()
    }

    pub(crate) fn remember(&self, decision: Decision) {
        let Decision { party, what, slot, number } = decision;
        for part in [party as u64, what.len() as u64, u64::from(slot.unwrap_or(u32::MAX)), number as u64] {
            self.print.set((self.print.get() ^ part).wrapping_mul(0x0100_0000_01b3).rotate_left(5));
        }
        let mut decisions = self.decisions.borrow_mut();
        if decisions.len() == REMEMBERED_MAX {
            decisions.pop_front();
        }
        decisions.push_back(decision);
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.now.get().saturating_duration_since(self.started);
        writeln!(f, "seed {}, after {passed:?}; the last decisions:", self.seed)?;
        self.decisions.borrow().iter().try_for_each(|decision| writeln!(f, "  {decision}"))
    }
}

pub(crate) struct Script {
    ground: Ground,
    fate: Rc<Fate>,
    party: usize,
    away: Vec<Away>,
    /// What has happened and has not been told, in the order in which it happened.
    untold: Vec<Completion>,
    /// What is remembered of each descriptor.
    known: Slab<Known>,
    /// So many attempts more find nothing, and no room.
    storm: u32,
    /// What a saboteur keeps.
    hoard: Hoard,
}

#[derive(Default)]
struct Hoard {
    descriptors: Vec<OwnedFd>,
    memory: Vec<Vec<u8>>,
}

/// A token that has not come home.
#[derive(Clone, Copy)]
struct Away {
    token: Token,
    /// Turns before it is tried.
    held: u32,
    /// Turns before a cancellation is looked at.
    cancelled: Option<u32>,
}

struct Known {
    /// It has said once that it has ended when it had not.
    lied: bool,
}

enum Attempt {
    Home(Outcome),
    /// There may be more.
    More,
    /// Not yet.
    Later,
    /// Not in this turn, for no reason: asked again in the next.
    Again,
    /// Not before there are descriptors.
    Starve,
}

impl Script {
    pub(crate) fn new(ground: Ground, fate: Rc<Fate>) -> Script {
        let mut parties = fate.parties.borrow_mut();
        let party = parties.len();
        parties.push(Standing::default());
        drop(parties);
        let (away, untold, known) = (Vec::new(), Vec::new(), Slab::new());
        Script { ground, fate, party, away, untold, known, storm: 0, hoard: Hoard::default() }
    }

    pub(crate) fn submit(&mut self, token: Token) {
        let faults = self.fate.faults();
        let held = match self.fate.strikes(faults.held, Fault::Held) {
            true => self.fate.below(faults.turns_held_max as usize + 1) as u32,
            false => 0,
        };
        self.away.push(Away { token, held, cancelled: None });
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        let turns = self.fate.below(3) as u32;
        // What has happened already, and what was cancelled already, comes home as it would have.
        if let Some(away) = self.away.iter_mut().find(|away| away.token == token) {
            away.cancelled.get_or_insert(turns);
            self.fate.count(Fault::Cancelled);
        }
    }

    /// Whether something is under way.
    pub(crate) fn is_at_work(&self) -> bool {
        !self.away.is_empty() || !self.untold.is_empty()
    }

    /// Whether this attempt falls into a storm, in which nothing is found and nothing has room.
    fn is_stormy(&mut self) -> bool {
        let faults = self.fate.faults();
        if self.storm == 0 && self.fate.happens(faults.storm) {
            self.storm = 1 + self.fate.below(faults.storm_attempts_max as usize) as u32;
        }
        if self.storm == 0 {
            return false;
        }
        self.storm -= 1;
        self.fate.count(Fault::Storm);
        true
    }

    fn is_out_of_memory(&self) -> bool {
        self.fate.strikes(self.fate.faults().out_of_memory, Fault::OutOfMemory)
    }

    fn is_out_of_descriptors(&self) -> bool {
        self.fate.strikes(self.fate.faults().out_of_descriptors, Fault::OutOfDescriptors)
    }

    pub(crate) fn forget(&mut self, fd: &Fd) {
        if let Some(number) = fd.watch().take() {
            self.known.remove(number as usize);
        }
    }

    pub(crate) fn pair(&mut self, kind: Kind) -> io::Result<(OwnedFd, OwnedFd)> {
        if self.is_out_of_descriptors() {
            self.note("no pair", None, 0);
            return Err(error(errno::EMFILE));
        }
        sys::socketpair(kind)
    }

    pub(crate) fn socket(&mut self, kind: Kind) -> io::Result<OwnedFd> {
        if self.is_out_of_descriptors() {
            self.note("no socket", None, 0);
            return Err(error(errno::EMFILE));
        }
        sys::socket(kind)
    }

    pub(crate) fn connect(&mut self, fd: BorrowedFd<'_>, address: &UnixAddress) -> io::Result<()> {
        if self.is_dead() || self.is_stormy() || self.fate.strikes(self.fate.faults().full, Fault::Full) {
            self.note("full backlog", None, 0);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.note("connects", None, 0);
        self.fate.stir();
        sys::connect(fd, address)
    }

    /// Both ways to send are the drivers' own, and the same world has to hold with either.
    pub(crate) fn sends_now(&self) -> bool {
        !self.is_dead() && self.fate.happens(500)
    }

    pub(crate) fn send_now(&mut self, fd: &Fd, envelope: &Envelope) -> io::Result<usize> {
        let full = self.fate.faults().full_now;
        if self.is_dead() || self.is_stormy() || self.fate.strikes(full, Fault::FullNow) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.fate.stir();
        envelope.send(fd.as_fd())
    }

    /// The third: bytes alone, where they lie.
    pub(crate) fn send_bytes_now(&mut self, fd: &Fd, bytes: &[u8]) -> io::Result<usize> {
        let full = self.fate.faults().full_now;
        if !self.sends_now() || self.is_stormy() || self.fate.strikes(full, Fault::FullNow) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.fate.stir();
        envelope::send_bytes(fd.as_fd(), bytes)
    }

    pub(crate) fn take_now(&mut self, fd: &Fd, room: Room) -> Now {
        let faults = self.fate.faults();
        // Another process may always be faster.
        if self.is_dead() || self.is_stormy() || self.fate.strikes(faults.full, Fault::Full) {
            return Now::Empty;
        }
        if self.fate.strikes(faults.reset, Fault::Reset) {
            return Now::Failed(error(errno::ECONNRESET));
        }
        if self.lies(fd, faults) {
            self.note("says falsely that this is the end", None, 0);
            return Now::Arrived(nothing());
        }
        self.fate.stir();
        match receive_at_most(&self.ground, fd, room, PACKET_BYTES_MAX) {
            Now::Arrived(arrival) => Now::Arrived(self.cut(None, arrival, faults)),
            other => other,
        }
    }

    pub(crate) fn fill_random(&mut self, into: &mut [u8]) {
        into.iter_mut().for_each(|byte| *byte = self.fate.next() as u8);
    }

    /// A receive into memory of the caller's, past the pool.
    pub(crate) fn receive_beside(&mut self, fd: &Fd, bytes: &mut [u8], room: Room) -> io::Result<Taken> {
        let faults = self.fate.faults();
        if self.is_dead() || self.is_stormy() || self.fate.strikes(faults.full, Fault::Full) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(number) = self.interruption(faults) {
            // There are no buffers that could be missing.
            return Err(error(if number == errno::ENOBUFS { errno::EINTR } else { number }));
        }
        if self.lies(fd, faults) {
            self.note("says falsely that this is the end", None, 0);
            return Ok(Taken {
                length: 0,
                landed: 0,
                control: Control::default(),
                bytes_lost: false,
                control_lost: false,
            });
        }
        self.fate.stir();
        let mut taken = envelope::receive(fd.as_fd(), bytes, room)?;
        self.note("arrived beside", None, taken.length);
        taken.control_lost |= self.lose_some(None, &mut taken.control.descriptors, faults);
        self.sabotage(&mut taken.control.descriptors);
        Ok(taken)
    }

    pub(crate) fn shut_down(&mut self, fd: &Fd) {
        if !self.is_dead() {
            self.note("shuts down", None, 0);
            self.fate.stir();
            let _ = sys::shutdown(fd.as_fd(), Half::Both);
        }
    }

    /// Its process is dead: what is away comes home no more.
    pub(crate) fn is_dead(&self) -> bool {
        self.fate.parties.borrow()[self.party].dead
    }

    fn note(&self, what: &'static str, token: Option<Token>, number: usize) {
        let slot = token.map(|token| token.slot);
        self.fate.remember(Decision { party: self.party, what, slot, number: number as i64 });
    }

    fn note_error(&self, what: &'static str, token: Token, error: &io::Error) {
        let number = i64::from(error.raw_os_error().unwrap_or_default());
        self.fate.remember(Decision { party: self.party, what, slot: Some(token.slot), number });
    }

    pub(crate) fn party_of(&self, fate: &Rc<Fate>) -> Option<usize> {
        Rc::ptr_eq(&self.fate, fate).then_some(self.party)
    }

    pub(crate) fn turn(
        &mut self,
        requests: &mut Requests,
        sleep: Sleep,
        home: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.is_dead() {
            return Ok(());
        }
        self.ground.budget.turn();
        let told = home.len();
        let mut sleep = sleep;
        let moved = self.act(requests, &mut sleep);
        self.tell(home);
        if moved || home.len() > told || !self.untold.is_empty() {
            self.fate.stir();
            return Ok(());
        }
        self.rest(sleep);
        Ok(())
    }

    /// Begins, tries and cancels, in any order. Says whether anything has moved.
    fn act(&mut self, requests: &mut Requests, sleep: &mut Sleep) -> bool {
        let mut moved = false;
        if self.is_full() {
            self.fate.count(Fault::Overflow);
            return true;
        }
        let mut away = std::mem::take(&mut self.away);
        for last in (1..away.len()).rev() {
            away.swap(last, self.fate.below(last + 1));
        }
        for mut one in away {
            if let Some(turns @ 1..) = &mut one.cancelled {
                *turns -= 1;
                moved = true;
            } else if one.cancelled.is_some() {
                moved = true;
                self.come_home_cancelled(one.token, requests);
                continue;
            }
            if one.held > 0 {
                one.held -= 1;
                moved = true;
                self.away.push(one);
                continue;
            }
            match self.attempt(one.token, requests) {
                Attempt::Home(_) if self.fate.sabotages(Sabotage::Stalls) => moved = true,
                Attempt::Home(outcome) => {
                    moved = true;
                    self.untold.push(Completion { token: one.token, outcome, last: true });
                }
                Attempt::More | Attempt::Again => {
                    moved = true;
                    self.away.push(one);
                }
                Attempt::Later => self.away.push(one),
                Attempt::Starve => {
                    *sleep = sleep.at_most(STARVED_RETRY);
                    self.away.push(one);
                }
            }
        }
        moved
    }

    /// Whether there is no room for one more completion.
    fn is_full(&self) -> bool {
        let most = self.fate.faults().completions_max as usize;
        most > 0 && self.untold.len() >= most
    }

    /// A cancellation races with what it cancels: what could still happen does, in half of all cases.
    fn come_home_cancelled(&mut self, token: Token, requests: &mut Requests) {
        if self.fate.happens(500)
            && let Attempt::Home(outcome) = self.attempt(token, requests)
        {
            self.untold.push(Completion { token, outcome, last: true });
            return;
        }
        let Some(request) = requests.find(token) else { return };
        let outcome = request.failed(error(errno::ECANCELED));
        self.note("cancelled", Some(token), 0);
        self.untold.push(Completion { token, outcome, last: true });
    }

    fn attempt(&mut self, token: Token, requests: &mut Requests) -> Attempt {
        let Some(request) = requests.find(token) else { return Attempt::Later };
        match request {
            Request::Send { .. } => Attempt::Home(Outcome::Sent(self.send(token, request))),
            Request::Receive { fd, want, .. } => {
                let (fd, want) = (fd.clone(), *want);
                self.receive(token, &fd, want)
            }
            Request::Ready { fd, interest } if is_ready(fd, *interest) && self.is_stormy() => Attempt::Again,
            Request::Accept { fd } if !is_ready(fd, ready::READ) => Attempt::Later,
            Request::Accept { .. } if self.is_stormy() => Attempt::Again,
            Request::Ready { fd, interest } => match sys::poll_now(fd.as_fd(), *interest) {
                Ok(0) => Attempt::Later,
                result => {
                    self.note("ready", Some(token), 0);
                    Attempt::Home(Outcome::Ready(result))
                }
            },
            Request::Accept { .. } if self.is_out_of_descriptors() => Attempt::Starve,
            Request::Accept { .. } if self.is_out_of_memory() => {
                self.note("not accepted", Some(token), 0);
                Attempt::Home(Outcome::Accepted(Err(error(errno::ENOMEM))))
            }
            Request::Accept { fd } => match sys::accept(fd.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Attempt::Later,
                Err(error) if out_of_descriptors(&error) => Attempt::Starve,
                result => {
                    self.note("accepted", Some(token), 0);
                    Attempt::Home(Outcome::Accepted(result))
                }
            },
        }
    }

    fn send(&mut self, token: Token, request: &mut Request) -> io::Result<usize> {
        let Request::Send { fd, envelope, .. } = request else { unreachable!("looked at before") };
        let faults = self.fate.faults();
        let with_descriptors = !envelope.descriptors().is_empty() && !envelope.is_under_way();
        let made_up = if self.is_stormy() || self.fate.strikes(faults.full, Fault::Full) {
            Some(io::Error::from(io::ErrorKind::WouldBlock))
        } else if with_descriptors && self.fate.strikes(faults.too_many_in_flight, Fault::TooManyInFlight) {
            Some(error(errno::ETOOMANYREFS))
        } else if self.is_out_of_memory() {
            Some(error(errno::ENOMEM))
        } else {
            None
        };
        let result = match made_up {
            Some(error) => Err(error),
            None => {
                // What brings a descriptor and is short the kernel takes whole.
                let whole = with_descriptors && envelope.length() <= WHOLE_BYTES_MAX;
                if self.fate.happens(faults.short) && !whole && is_of(fd, Kind::Stream) {
                    self.fate.count(Fault::ShortSend);
                    envelope.seal_at_most(1 + self.fate.below(envelope.length()));
                }
                envelope.send(fd.as_fd())
            }
        };
        match &result {
            Ok(count) => self.note("sent", Some(token), *count),
            Err(error) => self.note_error("not sent", token, error),
        }
        result
    }

    fn receive(&mut self, token: Token, fd: &Fd, want: Want) -> Attempt {
        let faults = self.fate.faults();
        // Whoever waits for nothing is seldom disturbed: each time all others would have to look whether it
        // has done something, and time would hardly pass.
        let in_vain = !is_ready(fd, ready::READ | ready::HUNG_UP);
        let disturbed = !in_vain || self.fate.happens(IN_VAIN);
        // Of what may be no connected socket readiness says nothing.
        if !disturbed && !want.strange {
            return Attempt::Later;
        }
        if !in_vain && self.is_stormy() {
            return Attempt::Again;
        }
        if disturbed && let Some(number) = self.interruption(faults) {
            self.note_error("receive ends", token, &error(number));
            return Attempt::Home(Outcome::Arrived(Err(error(number))));
        }
        if self.lies(fd, faults) {
            self.note("says falsely that this is the end", Some(token), 0);
            return Attempt::Home(Outcome::Arrived(Ok(nothing())));
        }
        let mut any = false;
        for _ in 0..1 + self.fate.below(BURST_MAX) {
            // A read that brings a descriptor ends where the bytes end that were sent with it, not before.
            let short = want.room.descriptors == 0 && is_of(fd, Kind::Stream);
            let bytes_max = match short && self.fate.happens(faults.short_receive) {
                true => 1 + self.fate.below(SHORT_BYTES_MAX),
                false => PACKET_BYTES_MAX,
            };
            let arrival = match receive_at_most(&self.ground, fd, want.room, bytes_max) {
                Now::Arrived(arrival) => {
                    if arrival.message.bytes().len() == bytes_max {
                        self.fate.count(Fault::ShortReceive);
                    }
                    self.cut(Some(token), arrival, faults)
                }
                Now::Starved => return Attempt::Starve,
                Now::Empty if any => return Attempt::More,
                Now::Empty => return Attempt::Later,
                Now::Failed(error) => {
                    self.note_error("receive fails", token, &error);
                    return Attempt::Home(Outcome::Arrived(Err(error)));
                }
            };
            if !want.many || arrival.nothing {
                return Attempt::Home(Outcome::Arrived(Ok(arrival)));
            }
            let full = self.is_full();
            if full || self.fate.strikes(faults.ended_early, Fault::EndedEarly) {
                if full {
                    self.fate.count(Fault::Overflow);
                }
                self.note("stream ends early", Some(token), 0);
                return Attempt::Home(Outcome::Arrived(Ok(arrival)));
            }
            any = true;
            self.untold.push(Completion { token, outcome: Outcome::Arrived(Ok(arrival)), last: false });
        }
        Attempt::More
    }

    /// Why a receive ends without having looked.
    fn interruption(&self, faults: Faults) -> Option<i32> {
        if self.fate.happens(faults.interrupted) {
            let (fault, number) = match self.fate.happens(500) {
                true => (Fault::NoBuffers, errno::ENOBUFS),
                false => (Fault::Interrupted, errno::EINTR),
            };
            self.fate.count(fault);
            return Some(number);
        }
        self.fate.strikes(faults.reset, Fault::Reset).then_some(errno::ECONNRESET)
    }

    /// Whether this receive says zero before its time. The kernel does so when a message and the end came
    /// between its look at the queue and its look for the end.
    fn lies(&mut self, fd: &Fd, faults: Faults) -> bool {
        if faults.false_end == 0 || !has_ended(fd) || !is_of(fd, Kind::SeqPacket) {
            return false;
        }
        let number = fd.watch().get().map_or_else(
            || {
                let number = self.known.insert(Known { lied: false });
                fd.watch().set(u32::try_from(number).ok());
                number
            },
            |number| number as usize,
        );
        if self.known[number].lied || !self.fate.happens(faults.false_end) {
            return false;
        }
        self.known[number].lied = true;
        self.fate.count(Fault::FalseEnd);
        true
    }

    /// The kernel had no room for all descriptors of this message, in some cases.
    fn cut(&mut self, token: Option<Token>, mut arrival: Arrival, faults: Faults) -> Arrival {
        let length = arrival.message.bytes().len();
        self.note("arrived", token, length);
        let descriptors = arrival.message.descriptors_mut();
        arrival.control_lost |= self.lose_some(token, descriptors, faults);
        self.sabotage(descriptors);
        arrival
    }

    fn lose_some(&self, token: Option<Token>, descriptors: &mut Descriptors, faults: Faults) -> bool {
        let count = descriptors.len();
        if count == 0 || !self.fate.strikes(faults.descriptors_lost, Fault::DescriptorsLost) {
            return false;
        }
        let kept = self.fate.below(count);
        self.note("descriptors lost", token, count - kept);
        descriptors.truncate(kept);
        true
    }

    /// Does what no driver does, if a test wants it.
    fn sabotage(&mut self, descriptors: &mut Descriptors) {
        if self.fate.sabotages(Sabotage::HoardsMemory) {
            self.hoard.memory.push(vec![1; 1 << 20]);
        }
        if descriptors.is_empty() {
            return;
        }
        let Some(sabotage) = self.fate.sabotage.get().filter(|sabotage| self.fate.sabotages(*sabotage))
        else {
            return;
        };
        let mut all = descriptors.take_all();
        match sabotage {
            Sabotage::DeliversTwice => {
                let copy = copy_of(&all[0]);
                if let Some(before) = self.hoard.descriptors.pop() {
                    all[0] = before;
                }
                self.hoard.descriptors.push(copy);
            }
            Sabotage::Misdelivers => {
                let stranger = || sys::eventfd().expect("a saboteur has room");
                let before = self.hoard.descriptors.pop().unwrap_or_else(stranger);
                self.hoard.descriptors.push(std::mem::replace(&mut all[0], before));
            }
            Sabotage::LosesSilently => drop(all.pop()),
            Sabotage::Leaks => drop(copy_of(&all[0]).into_raw_fd()),
            Sabotage::HoardsDescriptors => {
                let copies: Vec<OwnedFd> = (0..100).map(|_| copy_of(&all[0])).collect();
                self.hoard.descriptors.extend(copies);
            }
            Sabotage::Stalls | Sabotage::HoardsMemory => {}
        }
        all.into_iter().for_each(|fd| descriptors.push(fd));
    }

    /// Tells some of what has happened: of different tokens in any order, of one token in the order in which
    /// it happened.
    fn tell(&mut self, home: &mut Vec<Completion>) {
        let faults = self.fate.faults();
        let mut count = self.untold.len();
        if count > 0 && self.fate.strikes(faults.untold, Fault::Untold) {
            count = self.fate.below(count + 1);
        }
        for _ in 0..count {
            let chosen = match faults.untold {
                0 => 0,
                _ => self.fate.below(self.untold.len()),
            };
            let token = self.untold[chosen].token;
            let first = self.untold.iter().position(|completion| completion.token == token);
            let first = first.expect("the chosen one at least");
            if first > 0 {
                self.fate.count(Fault::Reordered);
            }
            home.push(self.untold.remove(first));
        }
    }

    /// Nothing happens any more without somebody else, or without time.
    fn rest(&mut self, sleep: Sleep) {
        let due = match sleep {
            // Nobody has asked for how long; and there will be another turn.
            Sleep::Not => return,
            Sleep::For(time) => Some(self.fate.now() + time),
            Sleep::Forever => None,
        };
        if self.fate.conducted.get() {
            self.fate.parties.borrow_mut()[self.party] = Standing { idle: true, due, dead: false };
            return;
        }
        match due {
            Some(moment) => self.fate.pass_until(moment),
            None => panic!("asleep for ever, and nobody else is there\n{}", self.fate),
        }
    }
}

fn has_ended(fd: &Fd) -> bool {
    sys::poll_now(fd.as_fd(), ready::HUNG_UP).is_ok_and(|mask| mask & ready::HUNG_UP != 0)
}

fn is_ready(fd: &Fd, interest: u32) -> bool {
    !matches!(sys::poll_now(fd.as_fd(), interest), Ok(0))
}

fn copy_of(fd: &OwnedFd) -> OwnedFd {
    fd.try_clone().expect("a saboteur has room")
}

fn is_of(fd: &Fd, kind: Kind) -> bool {
    matches!(sys::unix_kind(fd.as_fd()), Ok(Some(found)) if found == kind)
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn nothing() -> Arrival {
    let message = Received::owned(Vec::new(), Control::default());
    Arrival { message, bytes_lost: false, control_lost: false, nothing: true, hung_up: false }
}
