//! Messages that do not fit a packet: how they leave in parts, how they are put together, and how long
//! somebody may keep us waiting for the rest.
//!
//! An outbox owns what is still to be sent of large messages and gives the socket one part at a time, so that
//! small frames go between. An assembly owns what has arrived of one. It does not know which side it is on,
//! what a number stands for, or windows.

use std::array;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ring::{
    Bytes, LANDING_HEAD_BYTES, PIECES_SENT_AT_ONCE_MAX, Reactor, Readiness, SendError, Sending, Sleep, Socket,
};

use crate::parcel::Parcel;
use crate::rooms::{HugePages, Piece, Room};
use crate::wire::{HEADER_BYTES, Header, Kind, Malformed};

/// How many packets with a part of a large message wait in a session's own queue. A small call or answer
/// beside a message that was alone until then waits for so many, and for those that the kernel's queue has
/// taken already (three of 102,080 bytes with the usual SO_SNDBUF of 212,992).
pub const PARTS_QUEUED_MAX: usize = 1;

/// While other calls are under way on the session so many parts are given to the kernel before it is waited
/// until [its queue is drained](ring::Socket::drained): to a quarter of SO_SNDBUF, which of the usual 212,992
/// bytes is less than one full part. With one the receiver would wait while the next is copied.
pub const PARTS_AHEAD_MAX: usize = 2;

/// How often a large message that waits for that is looked after before one part goes all the same. Other
/// calls' packets do not wait, and where they keep the queue filled it would stand still, be [taken for
/// one that has been left](LARGE_STALL_MAX), and end its session.
pub const DRAINED_LOOKS_MAX: usize = 64;

/// Up to so many bytes a large message is given to the kernel as fast as that takes it, while nothing else is
/// under way on its session: 2 MiB. Otherwise a part goes in each turn of the reactor, and beside other calls
/// no more than [so many](PARTS_AHEAD_MAX) before the kernel's queue is drained.
pub const LARGE_AT_ONCE_BYTES_MAX: usize = 2 << 20;

/// How long a large message that has begun may stand still before its session is ended: 10 seconds. It holds
/// memory, and whoever sends it is expected to have it at hand.
pub const LARGE_STALL_MAX: Duration = Duration::from_secs(10);

/// Bytes of large calls that all sessions of a mailbox may have under way unless it says otherwise: 1 GiB.
/// Each session may fill its own window, and a thousand of them must not fill the machine.
pub const LARGE_TOGETHER_DEFAULT: usize = 1 << 30;

/// How long a large call has to begin to arrive, while others need its room: 1 second. See [`LARGE_PACE`].
pub const LARGE_START: Duration = Duration::from_secs(1);

/// At what pace a large call has to arrive to keep its room while others need it, in bytes a second: 8 MiB.
/// Through a socket it is a hundred times that. Otherwise many sessions that hold a little each, none of them
/// more than somebody asks for, and send a part now and then, would keep all the room there is for ever.
///
/// How long a session has held what it then took back, or what it had to give up for being late, is reckoned
/// to the calls it begins afterwards, until it has sent as much as takes that long. A call that is late
/// before it begins has room that is free, and nobody gives way for it.
pub const LARGE_PACE: usize = 8 << 20;

/// Large messages on their way out of one session, in turn.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// The part that the kernel has not taken yet. At most one: `PARTS_QUEUED_MAX`.
    away: Option<(u32, Sending)>,
    /// How many parts have been given to the socket since its queue was seen empty: as many as there may be
    /// where nobody counted.
    ahead: usize,
    /// Until that is so, and how often it was not.
    draining: Option<(Readiness, usize)>,
    /// Parts, and their bytes, given to the socket since somebody asked.
    said: (u64, u64),
    /// When the kernel last took something, or there was nothing for it to take.
    moved: Option<Instant>,
    /// Nothing more can be sent: the session is about to end.
    broken: bool,
}

struct Outgoing {
    number: u32,
    bytes: Arc<Vec<u8>>,
    /// How much of it has been given to the socket.
    sent: usize,
    /// What opens it may still fail, and no part goes before it is known that it has not.
    opening: Option<Sending>,
    /// No more parts; it stays only until it is known whether it was opened.
    stopped: bool,
}

/// What has become of a message in the outbox.
#[derive(Debug)]
pub(crate) enum Left {
    /// The last part has been given to the socket.
    Whole(u32),
    /// It could not be opened, and nothing of it has left.
    NotOpened(u32, SendError),
}

impl Outbox {
    /// Takes a message whose opening frame has been given to the socket: for good, or as long as this future
    /// does not say otherwise.
    pub(crate) fn push(&mut self, number: u32, bytes: Bytes, opening: Option<Sending>) {
        let bytes = bytes.into_shared();
        self.waiting.push_back(Outgoing { number, bytes, sent: 0, opening, stopped: false });
    }

    /// Whether parts of this message are still to come.
    pub(crate) fn holds(&self, number: u32) -> bool {
        self.waiting.iter().any(|outgoing| outgoing.number == number && !outgoing.stopped)
    }

    /// Its call has ended: nothing of it is sent any more. Says whether parts were still to come.
    pub(crate) fn forget(&mut self, number: u32) -> bool {
        let stopped = self.stop(number);
        self.waiting.retain(|outgoing| outgoing.number != number);
        stopped
    }

    /// Sends no more parts of this message, not even one that waits for a full queue. Says whether parts were
    /// still to come.
    pub(crate) fn stop(&mut self, number: u32) -> bool {
        let Some(place) = self.waiting.iter().position(|one| one.number == number && !one.stopped) else {
            return false;
        };
        if self.away.as_ref().is_some_and(|(of, _)| *of == number) {
            self.away = None;
        }
        if self.waiting[place].opening.is_some() {
            self.waiting[place].stopped = true;
            self.waiting[place].bytes = Arc::default();
        } else {
            self.waiting.remove(place);
        }
        true
    }

    /// Whether nothing is left to be sent or to be learned.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.away.is_none()
    }

    /// Parts, and their bytes, given to the socket since this was last asked.
    pub(crate) fn take_said(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.said)
    }

    /// Since when the kernel has taken nothing although there was something to take.
    pub(crate) fn stands_since(&self) -> Option<Instant> {
        if self.is_empty() { None } else { self.moved }
    }

    /// Gives the socket the next part when it has got rid of the last one; of a message that is alone on its
    /// session, and not [too long](LARGE_AT_ONCE_BYTES_MAX) for that, as many as go at once; beside other
    /// calls no more than may go [ahead](PARTS_AHEAD_MAX). What is told here is told once.
    pub(crate) fn poll(
        &mut self,
        socket: &Socket,
        part_bytes_max: usize,
        alone: bool,
        context: &mut Context<'_>,
    ) -> Vec<Left> {
        let mut left = Vec::new();
        if self.is_empty() || self.broken {
            self.moved = None;
            return left;
        }
        let now = socket.reactor().now();
        self.moved.get_or_insert(now);
        self.open(now, &mut left, context);
        loop {
            match self.away.as_mut().map(|(_, sending)| Pin::new(sending).poll(context)) {
                Some(Poll::Pending) => return left,
                Some(Poll::Ready(Ok(()))) => self.moved = Some(now),
                // Gone: whoever receives will hear of it. Anything else: the rest of this message would not
                // make sense, and neither would what follows it.
                Some(Poll::Ready(Err(error))) => {
                    if !matches!(error, SendError::Gone) {
                        socket.shut_down();
                    }
                    self.away = None;
                    self.broken = true;
                    return left;
                }
                None => {}
            }
            self.away = None;
            if let Some((draining, looks)) = &mut self.draining {
                // Why it cannot be told is what the send will say.
                let drained = Pin::new(draining).poll(context).is_ready();
                *looks += 1;
                if !drained && *looks < DRAINED_LOOKS_MAX {
                    return left;
                }
                self.draining = None;
                if drained {
                    (self.ahead, self.moved) = (0, Some(now));
                } else {
                    self.ahead = PARTS_AHEAD_MAX - 1;
                }
            }
            let Some(place) = self.waiting.iter().position(|outgoing| outgoing.opening.is_none()) else {
                return left;
            };
            let next = &mut self.waiting[place];
            let before = next.sent;
            if !alone && self.ahead >= PARTS_AHEAD_MAX {
                if !socket.takes_more() {
                    self.draining = Some((socket.drained(), 0));
                    continue;
                }
                self.ahead = 0;
            }
            self.ahead = if alone { PARTS_AHEAD_MAX } else { self.ahead + 1 };
            let (parts, sending) = match alone && next.bytes.len() <= LARGE_AT_ONCE_BYTES_MAX {
                true => next.send_parts(socket, part_bytes_max),
                false => (1, Some(next.send_part(socket, part_bytes_max))),
            };
            self.said.0 += parts as u64;
            self.said.1 += (parts * HEADER_BYTES + next.sent - before) as u64;
            if parts > 1 || sending.is_none() {
                self.moved = Some(now);
            }
            self.away = sending.map(|sending| (next.number, sending));
            if next.sent == next.bytes.len() {
                left.push(Left::Whole(next.number));
                self.waiting.remove(place);
            } else if self.waiting.len() > 1 {
                let next = self.waiting.remove(place);
                self.waiting.extend(next);
            }
        }
    }

    /// Gives the socket everything that is left, for nobody will be there to do it part by part. It is not
    /// copied for that, and waits as long as the last letters of a dropped socket do.
    pub(crate) fn hand_over(&mut self, socket: &Socket, part_bytes_max: usize) {
        if self.broken {
            return;
        }
        self.draining = None;
        self.away.take().into_iter().for_each(|(_, sending)| sending.let_go());
        for mut outgoing in self.waiting.drain(..) {
            outgoing.opening.take().into_iter().for_each(Sending::let_go);
            while outgoing.sent < outgoing.bytes.len() {
                outgoing.send_part(socket, part_bytes_max).let_go();
            }
        }
    }

    /// Looks after the openings that may still fail.
    fn open(&mut self, now: Instant, left: &mut Vec<Left>, context: &mut Context<'_>) {
        let moved = &mut self.moved;
        self.waiting.retain_mut(|outgoing| {
            let Some(opening) = &mut outgoing.opening else { return true };
            match Pin::new(opening).poll(context) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => {
                    outgoing.opening = None;
                    *moved = Some(now);
                    !outgoing.stopped
                }
                Poll::Ready(Err(error)) => {
                    left.push(Left::NotOpened(outgoing.number, error));
                    false
                }
            }
        });
    }
}

impl Outgoing {
    /// Gives the socket the next part.
    fn send_part(&mut self, socket: &Socket, part_bytes_max: usize) -> Sending {
        let (header, part) = self.part_from(self.sent, part_bytes_max);
        self.sent = part.end;
        socket.send_piece(&header, &self.bytes, part)
    }

    /// Gives the socket as many parts as go now, and the one behind them, which waits. Says how many that
    /// were.
    fn send_parts(&mut self, socket: &Socket, part_bytes_max: usize) -> (usize, Option<Sending>) {
        let begin = self.sent;
        let count = (self.bytes.len() - begin).div_ceil(part_bytes_max).min(PIECES_SENT_AT_ONCE_MAX);
        let next: [_; PIECES_SENT_AT_ONCE_MAX] = array::from_fn(|place| match place < count {
            true => self.part_from(begin + place * part_bytes_max, part_bytes_max),
            false => Default::default(),
        });
        let pieces = next.each_ref().map(|(header, part)| (header.as_slice(), part.clone()));
        let (gone, waits) = socket.send_pieces(&self.bytes, &pieces[..count]);
        let given = gone + usize::from(waits.is_some());
        self.sent = next[..given].last().map_or(begin, |(_, part)| part.end);
        (given, waits)
    }

    /// The part that begins there, and its header.
    fn part_from(&self, begin: usize, part_bytes_max: usize) -> ([u8; HEADER_BYTES], Range<usize>) {
        let part = begin..self.bytes.len().min(begin + part_bytes_max);
        (Header::part(self.number, part.len() as u32).encode(), part)
    }
}

const _: () = assert!(HEADER_BYTES == LANDING_HEAD_BYTES);

/// A large message that is arriving.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// `None` if nobody wants it, and its parts are only counted.
    room: Option<Room>,
    missing: usize,
    /// The descriptors that came with what opened it.
    descriptors: Parcel,
    /// When something of it last arrived.
    moved: Instant,
}

/// There is no memory for so large a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory;

impl Assembly {
    /// Keeps room for `total` bytes. Memory is used as they arrive.
    pub(crate) fn begin(total: u32, descriptors: Parcel, now: Instant) -> Result<Assembly, OutOfMemory> {
        Ok(Assembly::begin_in(Room::new(total as usize)?, total, descriptors, now))
    }

    /// In a room that is there already.
    pub(crate) fn begin_in(room: Room, total: u32, descriptors: Parcel, now: Instant) -> Assembly {
        Assembly { room: Some(room), missing: total as usize, descriptors, moved: now }
    }

    /// Counts the parts of a message that nobody wants.
    pub(crate) fn of_no_use(total: u32, now: Instant) -> Assembly {
        Assembly { room: None, missing: total as usize, descriptors: Parcel::default(), moved: now }
    }

    /// Nobody wants it any more. Gives back what has arrived, to be dropped when nothing is borrowed.
    pub(crate) fn give_up(&mut self) -> (Option<Room>, Parcel) {
        (self.room.take(), std::mem::take(&mut self.descriptors))
    }

    /// Whether a part of so many bytes would begin a huge page.
    pub(crate) fn begins_huge_page(&self, more: usize) -> bool {
        self.room.as_ref().is_some_and(|room| room.begins_huge_page(more))
    }

    /// Takes the parts that are in the socket's queue, as far as it lets us without waiting for a turn, and
    /// has it receive the next one in the room. Not what would begin a huge page: that has to wait for its
    /// turn in a packet of its own. Everything before them must have been filed. Says how many it has taken,
    /// and how many bytes of them.
    pub(crate) fn take_parts(
        &mut self,
        number: u32,
        part_bytes_max: usize,
        socket: &Socket,
    ) -> (usize, usize) {
        let (mut parts, missing) = (0, self.missing);
        while let Some(room) = &mut self.room
            && let length = self.missing.min(part_bytes_max)
            && length > 0
            && !room.begins_huge_page(length)
            && socket.take_piece(room.place(), &Header::part(number, length as u32).encode(), length)
        {
            room.push(Piece::Landed(length));
            self.missing -= length;
            parts += 1;
        }
        if parts > 0 {
            self.moved = socket.reactor().now();
        }
        (parts, missing - self.missing)
    }

    /// Adds the next part. Says whether it was the last.
    pub(crate) fn add(
        &mut self,
        part: Piece<'_>,
        part_bytes_max: usize,
        now: Instant,
    ) -> Result<bool, Malformed> {
        expect_part(part.len(), self.missing, part_bytes_max)?;
        if let Some(room) = &mut self.room {
            room.push(part);
        }
        self.missing -= part.len();
        self.moved = now;
        Ok(self.missing == 0)
    }

    /// Bytes that have not arrived.
    pub(crate) fn missing(&self) -> usize {
        self.missing
    }

    /// When something of it last arrived.
    pub(crate) fn moved(&self) -> Instant {
        self.moved
    }

    /// The whole message.
    pub(crate) fn into_parcel(self) -> Parcel {
        assert_eq!(self.missing, 0, "a message is whole when nothing of it is missing");
        let mut parcel = Parcel::of_bytes(self.room.map(Room::into_bytes).unwrap_or_default());
        let mut descriptors = self.descriptors;
        parcel.take_from(&mut descriptors);
        parcel
    }
}

/// Every part but the last is as large as there can be, so that a message has as many as it needs and no
/// more: otherwise one of 64 MiB could be sent a byte at a time, for years.
pub(crate) fn expect_part(length: usize, missing: usize, part_bytes_max: usize) -> Result<(), Malformed> {
    if length != missing.min(part_bytes_max) {
        return Err(Malformed::Length { kind: Kind::Part, length: length as u32 });
    }
    Ok(())
}

/// How much of large calls a mailbox may be holding, all its sessions together, and which of them holds how
/// much for calls that have not arrived whole: those can be refused to make room for somebody else's.
pub(crate) struct Memory {
    left: Cell<usize>,
    arriving: RefCell<Arriving>,
    /// How many rooms a session keeps that hold nothing.
    keepers: RefCell<BTreeMap<usize, usize>>,
    huge_pages: RefCell<HugePages>,
}

/// What sessions hold for calls that have not arrived whole.
#[derive(Default)]
struct Arriving {
    of: BTreeMap<usize, usize>,
    /// The same, least first, so that nobody has to search all sessions for whoever holds most.
    ranked: BTreeSet<(usize, usize)>,
    /// Each call by when it has to be here to keep its room, and in which order they began.
    due: BTreeMap<Due, (Caller, usize)>,
    begun: u64,
    /// For how long sessions have held what they have not sent. Otherwise one could take back what it began
    /// and begin anew for ever, and never be late.
    debts: BTreeMap<usize, Duration>,
}

/// When, and as which of all that have begun.
type Due = (Instant, u64);

/// A call, of all sessions of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) session: usize,
    pub(crate) number: u32,
}

impl Arriving {
    /// Since when a call that begins now has had room.
    fn since(&self, session: usize, now: Instant) -> Instant {
        let debt = self.debts.get(&session).copied().unwrap_or_default();
        now.checked_sub(debt).unwrap_or(now)
    }

    fn begin(&mut self, caller: Caller, bytes: usize, since: Instant) -> Holds {
        self.change(caller.session, |held| held + bytes);
        self.begun += 1;
        let due = (due(since, bytes), self.begun);
        self.due.insert(due, (caller, bytes));
        Holds::Arriving { since, due }
    }

    fn change(&mut self, session: usize, change: impl FnOnce(usize) -> usize) {
        let held = self.of.remove(&session).unwrap_or(0);
        self.ranked.remove(&(held, session));
        let held = change(held);
        if held > 0 {
            self.of.insert(session, held);
            self.ranked.insert((held, session));
        }
    }
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Rc<Memory> {
        let (arriving, keepers, huge_pages) = Default::default();
        Rc::new(Memory { left: Cell::new(bytes), arriving, keepers, huge_pages })
    }

    pub(crate) fn huge_pages(&self) -> RefMut<'_, HugePages> {
        self.huge_pages.borrow_mut()
    }

    /// So many bytes of it for a call that is to arrive, until the claim is dropped.
    pub(crate) fn claim(memory: &Rc<Memory>, caller: Caller, bytes: usize, now: Instant) -> Option<Claim> {
        let left = memory.left.get().checked_sub(bytes)?;
        memory.left.set(left);
        let mut arriving = memory.arriving.borrow_mut();
        let since = arriving.since(caller.session, now);
        let holds = arriving.begin(caller, bytes, since);
        Some(Claim { memory: Rc::clone(memory), session: caller.session, bytes, holds })
    }

    /// Whether a call of this session would be late as soon as it has begun.
    pub(crate) fn is_late_before_it_begins(&self, session: usize, bytes: usize, now: Instant) -> bool {
        due(self.arriving.borrow().since(session, now), bytes) < now
    }

    /// The calls that are late for longest, as many as have so much room together with what is left, if all
    /// that are late have.
    pub(crate) fn who_are_late(&self, bytes: usize, now: Instant) -> Option<Vec<Caller>> {
        let arriving = self.arriving.borrow();
        let mut room = self.left.get();
        let mut enough = Vec::new();
        for (caller, held) in arriving.due.range(..(now, 0)).map(|(_, late)| *late) {
            enough.push(caller);
            room = room.saturating_add(held);
            if room >= bytes {
                return Some(enough);
            }
        }
        None
    }

    /// A session has ended: its number may be another's soon.
    pub(crate) fn forget(&self, session: usize) {
        self.arriving.borrow_mut().debts.remove(&session);
    }

    /// A session that keeps a room for its next call, and has none under way in it.
    pub(crate) fn who_keeps_one(&self) -> Option<usize> {
        self.keepers.borrow().first_key_value().map(|(session, _)| *session)
    }

    /// What a session holds for calls that have not arrived whole.
    pub(crate) fn held_by(&self, session: usize) -> usize {
        self.arriving.borrow().of.get(&session).copied().unwrap_or(0)
    }

    /// The session that holds most for such calls, if that is more than so many bytes.
    pub(crate) fn who_holds_more_than(&self, bytes: usize) -> Option<usize> {
        let arriving = self.arriving.borrow();
        let (held, session) = arriving.ranked.last()?;
        (*held > bytes).then_some(*session)
    }
}

/// When a call of so many bytes has to be here, that has had room since then.
fn due(since: Instant, bytes: usize) -> Instant {
    since.checked_add(LARGE_START + time_for(bytes)).unwrap_or(since)
}

/// How long so many bytes may take.
fn time_for(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / LARGE_PACE as f64)
}

/// Memory that one call may fill.
pub(crate) struct Claim {
    memory: Rc<Memory>,
    session: usize,
    bytes: usize,
    holds: Holds,
}

/// What there is in the memory of a claim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// A call that has not arrived whole.
    Arriving { since: Instant, due: Due },
    /// One that has.
    Whole,
    /// None any more.
    Nothing,
}

impl Claim {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of the call has arrived: from here on it is its answerer's.
    pub(crate) fn is_whole(&mut self) {
        if matches!(self.holds, Holds::Arriving { .. })
            && let debts = &mut self.memory.arriving.borrow_mut().debts
            && let Some(debt) = debts.remove(&self.session)
            && let Some(debt) = debt.checked_sub(time_for(self.bytes))
        {
            debts.insert(self.session, debt);
        }
        self.becomes(Holds::Whole);
    }

    /// The call has ended before it was here.
    pub(crate) fn is_taken_back(&self, now: Instant) {
        let Holds::Arriving { since, .. } = self.holds else { return };
        let held = now.saturating_duration_since(since);
        let debts = &mut self.memory.arriving.borrow_mut().debts;
        let debt = debts.entry(self.session).or_default();
        *debt = held.max(*debt);
    }

    /// The room of a call that has ended is kept for the next.
    pub(crate) fn is_kept(&mut self) {
        self.becomes(Holds::Nothing);
        *self.memory.keepers.borrow_mut().entry(self.session).or_default() += 1;
    }

    /// For a call that is to arrive in a room that was kept, of which it needs so many bytes.
    pub(crate) fn is_used_again(&mut self, number: u32, bytes: usize, now: Instant) {
        self.becomes(Holds::Whole);
        self.memory.left.set(self.memory.left.get() + self.bytes - bytes);
        self.bytes = bytes;
        let mut arriving = self.memory.arriving.borrow_mut();
        let since = arriving.since(self.session, now);
        self.holds = arriving.begin(Caller { session: self.session, number }, bytes, since);
    }

    /// What it has held so far it holds no longer.
    fn becomes(&mut self, holds: Holds) {
        match std::mem::replace(&mut self.holds, holds) {
            Holds::Arriving { due, .. } => {
                let mut arriving = self.memory.arriving.borrow_mut();
                arriving.due.remove(&due);
                arriving.change(self.session, |held| held - self.bytes);
            }
            Holds::Whole => {}
            Holds::Nothing => {
                let mut keepers = self.memory.keepers.borrow_mut();
                let kept = keepers.remove(&self.session).unwrap_or(0);
                if kept > 1 {
                    keepers.insert(self.session, kept - 1);
                }
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.becomes(Holds::Whole);
        self.memory.left.set(self.memory.left.get() + self.bytes);
    }
}

/// Looks at the clock while large messages are under way.
#[derive(Default)]
pub(crate) struct Watch(Option<Sleep>);

impl Watch {
    /// Ready when the one that has stood still for longest has done so for `stall`. It is asked which one
    /// that is when the clock says so and not for each part. Whoever is excused has as much time again.
    pub(crate) fn poll(
        &mut self,
        reactor: &Reactor,
        stall: Duration,
        stands_since: impl Fn() -> Option<Instant>,
        excused: impl Fn() -> bool,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.0.is_none() {
                let Some(since) = stands_since() else { return Poll::Pending };
                let Some(moment) = since.checked_add(stall) else { return Poll::Pending };
                let now = reactor.now();
                if now < moment {
                    self.0 = Some(reactor.sleep_until(moment));
                } else if excused() {
                    // Not at once, were it no time at all: what excuses it changes with a turn.
                    self.0 = Some(reactor.sleep(stall.max(Duration::from_millis(1))));
                } else {
                    return Poll::Ready(());
                }
            }
            if let Some(sleep) = &mut self.0
                && Pin::new(sleep).poll(context).is_pending()
            {
                return Poll::Pending;
            }
            self.0 = None;
        }
    }

    /// Nothing is under way.
    pub(crate) fn rest(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const PART: usize = 100;

    fn now() -> Instant {
        Instant::now()
    }

    fn assembly(total: usize) -> Assembly {
        Assembly::begin(total as u32, Parcel::default(), now()).unwrap()
    }

    fn claim(memory: &Rc<Memory>, session: usize, bytes: usize, now: Instant) -> Option<Claim> {
        Memory::claim(memory, Caller { session, number: 1 }, bytes, now)
    }

    fn sessions(late: Option<Vec<Caller>>) -> Vec<usize> {
        late.unwrap_or_default().iter().map(|caller| caller.session).collect()
    }

    #[test]
    fn a_message_is_whole_with_its_last_byte() {
        for (total, parts) in [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)] {
            let bytes: Vec<u8> = (0..total).map(|at| at as u8).collect();
            let mut assembly = assembly(total);
            let whole: Vec<bool> = bytes
                .chunks(PART)
                .map(|part| assembly.add(Piece::Here(part), PART, now()).unwrap())
                .collect();
            assert_eq!(whole.iter().position(|whole| *whole), Some(parts - 1), "{total}");
            assert_eq!(assembly.into_parcel().into_bytes(), bytes);
        }
    }

    #[test]
    fn a_part_is_full_or_the_last() {
        for (length, missing, allowed) in [
            (100, 101, true),
            (99, 101, false),
            (101, 101, false),
            (100, 100, true),
            (1, 1, true),
            (2, 1, false),
            (99, 100, false),
        ] {
            assert_eq!(expect_part(length, missing, PART).is_ok(), allowed, "{length} of {missing}");
        }
    }

    #[test]
    fn what_nobody_wants_is_counted_and_not_kept() {
        let mut of_no_use = Assembly::of_no_use(150, now());
        assert_eq!(of_no_use.add(Piece::Here(&[7; 100]), PART, now()), Ok(false));
        assert_eq!(of_no_use.add(Piece::Here(&[7; 50]), PART, now()), Ok(true));
        assert!(of_no_use.into_parcel().bytes().is_empty());
        let mut given_up = assembly(150);
        given_up.add(Piece::Here(&[7; 100]), PART, now()).unwrap();
        assert_eq!(given_up.give_up().0.unwrap().into_bytes(), [7; 100]);
        assert_eq!(given_up.missing(), 50);
        assert_eq!(given_up.add(Piece::Here(&[7; 50]), PART, now()), Ok(true));
    }

    #[test]
    fn memory_is_claimed_up_to_its_end_and_given_back() {
        let memory = Memory::new(100);
        let first = claim(&memory, 1, 60, now());
        assert!(first.is_some());
        assert!(claim(&memory, 1, 41, now()).is_none());
        assert!(claim(&memory, 1, 40, now()).is_some(), "dropped again at once");
        drop(first);
        assert!(claim(&memory, 1, 100, now()).is_some());
        assert!(claim(&memory, 1, 101, now()).is_none());
    }

    #[test]
    fn whoever_holds_most_for_calls_that_are_arriving_is_known() {
        let memory = Memory::new(100);
        assert_eq!(memory.who_holds_more_than(0), None);
        let _first = claim(&memory, 1, 30, now()).unwrap();
        let mut second = claim(&memory, 2, 20, now()).unwrap();
        let third = claim(&memory, 2, 15, now()).unwrap();
        assert_eq!((memory.held_by(1), memory.held_by(2), memory.held_by(3)), (30, 35, 0));
        assert_eq!(memory.who_holds_more_than(34), Some(2));
        assert_eq!(memory.who_holds_more_than(35), None, "as much is not more");
        second.is_whole();
        assert_eq!(memory.held_by(2), 15, "what is whole is its answerer's");
        assert_eq!(memory.who_holds_more_than(0), Some(1));
        drop((second, third));
        assert_eq!(memory.held_by(2), 0);
        assert!(claim(&memory, 3, 71, now()).is_none());
        assert!(claim(&memory, 3, 70, now()).is_some());
    }

    #[test]
    fn nobody_is_late_before_the_time_is_over() {
        let (memory, begun) = (Memory::new(LARGE_PACE), now());
        let _claim = claim(&memory, 1, LARGE_PACE, begun);
        let due = begun + LARGE_START + Duration::from_secs(1);
        assert_eq!(memory.who_are_late(1, due), None);
        assert_eq!(sessions(memory.who_are_late(1, due + Duration::from_nanos(1))), [1]);
    }

    #[test]
    fn of_those_who_are_late_as_many_give_way_as_it_takes() {
        let (memory, begun) = (Memory::new(100), now());
        let _late = [1, 2].map(|session| claim(&memory, session, 20, begun));
        let _in_time = claim(&memory, 3, 50, begun + LARGE_START);
        let moment = begun + 2 * LARGE_START;
        for (bytes, who) in [(10, &[1][..]), (30, &[1]), (31, &[1, 2]), (50, &[1, 2]), (51, &[])] {
            assert_eq!(sessions(memory.who_are_late(bytes, moment)), who, "{bytes}");
        }
    }

    #[test]
    fn what_is_here_or_kept_is_not_late() {
        for ends in [Claim::is_whole, Claim::is_kept] {
            let (memory, begun) = (Memory::new(100), now());
            let mut claimed = claim(&memory, 1, 100, begun).unwrap();
            ends(&mut claimed);
            assert_eq!(memory.who_are_late(1, begun + 2 * LARGE_START), None);
        }
    }

    #[test]
    fn who_takes_back_what_it_began_and_begins_anew_is_late_all_the_same() {
        let (memory, begun) = (Memory::new(LARGE_PACE), now());
        let claimed = claim(&memory, 1, 100, begun).unwrap();
        let moment = begun + 2 * LARGE_START;
        claimed.is_taken_back(moment);
        drop(claimed);
        assert!(memory.is_late_before_it_begins(1, 100, moment));
        assert!(!memory.is_late_before_it_begins(1, 2 * LARGE_PACE, moment), "that takes longer");
        assert!(!memory.is_late_before_it_begins(2, 100, moment), "nobody else");
        let _again = claim(&memory, 1, 100, moment);
        assert_eq!(sessions(memory.who_are_late(100, moment)), [1]);
    }

    #[test]
    fn a_room_that_is_used_again_is_no_new_beginning() {
        let (memory, begun) = (Memory::new(100), now());
        let mut claimed = claim(&memory, 1, 100, begun).unwrap();
        let half = begun + LARGE_START / 2;
        claimed.is_taken_back(half);
        claimed.is_kept();
        claimed.is_used_again(2, 50, half);
        let due = half + LARGE_START / 2 + time_for(50);
        assert_eq!(memory.who_are_late(100, due), None);
        let late = memory.who_are_late(100, due + Duration::from_nanos(1));
        assert_eq!(late, Some(vec![Caller { session: 1, number: 2 }]));
    }

    #[test]
    fn what_arrives_makes_up_for_what_was_taken_back() {
        let (memory, begun) = (Memory::new(3 * LARGE_PACE), now());
        let moment = begun + Duration::from_secs(3);
        claim(&memory, 1, 100, begun).unwrap().is_taken_back(moment);
        for still_late in [true, true, false] {
            assert_eq!(memory.is_late_before_it_begins(1, 100, moment), still_late);
            claim(&memory, 1, LARGE_PACE, moment).unwrap().is_whole();
        }
    }

    #[test]
    fn who_ends_takes_its_debts_along() {
        let (memory, begun) = (Memory::new(100), now());
        let moment = begun + 2 * LARGE_START;
        claim(&memory, 1, 100, begun).unwrap().is_taken_back(moment);
        memory.forget(1);
        assert!(!memory.is_late_before_it_begins(1, 100, moment));
    }

    proptest! {
        /// Whatever lengths a peer sends, it gets no further than the message is long, and only by parts that
        /// are full or the last.
        #[test]
        fn an_assembly_agrees_with_a_list(
            total in 1..1_000_usize,
            lengths in prop::collection::vec(prop_oneof![3 => Just(PART), 1 => 1..=PART], 1..20),
        ) {
            let mut assembly = assembly(total);
            let mut list: Vec<u8> = Vec::new();
            for (place, length) in lengths.into_iter().enumerate() {
                let part = vec![place as u8; length];
                let left = total - list.len();
                let fits = length == PART && left > PART || length == left && left <= PART;
                prop_assert_eq!(assembly.add(Piece::Here(&part), PART, now()).is_ok(), fits);
                if !fits {
                    break;
                }
                list.extend(part);
                prop_assert_eq!(assembly.missing(), total - list.len());
                if list.len() == total {
                    prop_assert_eq!(assembly.into_parcel().into_bytes(), list);
                    break;
                }
            }
        }
    }
}
