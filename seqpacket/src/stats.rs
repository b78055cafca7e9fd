//! Plain counters of what sessions have said and heard, how calls ended, and what peers did wrong.
//!
//! Counting is an addition; a snapshot is a copy. They own nothing and decide nothing.

use std::cell::RefCell;
use std::fmt;

use ring::Credentials;

use crate::error::{CallError, Part};
use crate::wire::{Malformed, RefusedReason, Windows};

/// What sessions have carried and how their calls have ended: all those of an [object](crate::Object::stats)
/// or a [mailbox](crate::Mailbox::stats) so far, or one of them. A snapshot.
///
/// ```
/// # use ring::{Executor, Reactor};
/// # let reactor = Reactor::new()?;
/// # let executor = Executor::new(&reactor);
/// let (object, mailbox) = seqpacket::object(&reactor)?;
/// let call = object.call("hello");
/// executor.block_on(mailbox.next()).ok_or("nobody called")?.answer("hello to you")?;
/// executor.block_on(call)?;
/// let stats = object.stats();
/// assert_eq!((stats.sessions, stats.calls.begun, stats.calls.answered), (1, 1, 1));
/// assert_eq!(mailbox.stats().calls, stats.calls);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sessions that were opened.
    pub sessions: u64,
    /// What this side has handed to its sockets.
    pub sent: Traffic,
    /// What has arrived.
    pub received: Traffic,
    /// Calls, and how they ended.
    pub calls: Outcomes,
    /// Answers, and what else ends a call and brings descriptors, that did not reach their caller with all of
    /// them. To a caller that has not withdrawn these calls are among the
    /// [`descriptors_lost`](Outcomes::descriptors_lost). To a server they were answered or handed on, and it
    /// learns of the loss from the caller, which tells while the session lasts.
    pub answers_lost: u64,
    /// What the other side got wrong, by kind. Each ended its session.
    pub malformed: MalformedCounts,
}

/// What went one way over a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Frames: calls, answers and all that is said besides.
    pub frames: u64,
    /// Bytes, headers included.
    pub bytes: u64,
    /// Descriptors.
    pub descriptors: u64,
}

/// How calls have ended, as the session sees it: each ends in one of these ways, grants included. Those that
/// have begun and ended in none are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcomes {
    /// Calls that were sent, or that arrived.
    pub begun: u64,
    /// Answered.
    pub answered: u64,
    /// Handed on: answered, or not, by [somebody else](crate::Continuation::into_fd).
    pub handed_on: u64,
    /// Nobody answered.
    pub dropped: u64,
    /// Refused as a matter of policy.
    pub refused: u64,
    /// The answer did not fit the room that was reserved for it.
    pub too_large: u64,
    /// Descriptors of the call or of the answer were lost.
    pub descriptors_lost: u64,
    /// There were no descriptors left to answer with.
    pub out_of_descriptors: u64,
    /// There was no memory left for a call, or an answer, as large.
    pub out_of_memory: u64,
    /// Withdrawn by the caller before anybody answered.
    pub cancelled: u64,
    /// Refused because the server was leaving.
    pub leaving: u64,
    /// Refused because the caller's deadline had passed before anybody took the call.
    pub expired: u64,
    /// Ended with the session.
    pub cut_off: u64,
    /// Could not be sent in the end. They count as begun, on the caller's side.
    pub unsent: u64,
}

impl Outcomes {
    /// Calls under way.
    pub fn under_way(&self) -> u64 {
        let Outcomes {
            begun,
            answered,
            handed_on,
            dropped,
            refused,
            too_large,
            descriptors_lost,
            out_of_descriptors,
            out_of_memory,
            cancelled,
            leaving,
            expired,
            cut_off,
            unsent,
        } = self;
        let refusals = refused + too_large + descriptors_lost + out_of_descriptors + out_of_memory;
        let given_up = cancelled + leaving + expired + cut_off + unsent;
        begun.saturating_sub(answered + handed_on + dropped + refusals + given_up)
    }

    pub(crate) fn count_refusal(&mut self, reason: RefusedReason) {
        let counter = match reason {
            RefusedReason::Refused => &mut self.refused,
            RefusedReason::TooLarge => &mut self.too_large,
            RefusedReason::DescriptorsLost => &mut self.descriptors_lost,
            RefusedReason::OutOfDescriptors => &mut self.out_of_descriptors,
            RefusedReason::Cancelled => &mut self.cancelled,
            RefusedReason::Leaving => &mut self.leaving,
            RefusedReason::Expired => &mut self.expired,
            RefusedReason::OutOfMemory => &mut self.out_of_memory,
        };
        *counter += 1;
    }

    /// A call that was sent has ended for its caller without an answer.
    fn count_error(&mut self, error: &CallError) {
        let counter = match error {
            CallError::Dropped => &mut self.dropped,
            CallError::Cancelled => &mut self.cancelled,
            CallError::Expired => &mut self.expired,
            CallError::Refused => &mut self.refused,
            CallError::Gone => &mut self.leaving,
            CallError::TooLarge(Part::Answer) => &mut self.too_large,
            CallError::DescriptorsLost(_) => &mut self.descriptors_lost,
            CallError::OutOfDescriptors(Part::Answer) => &mut self.out_of_descriptors,
            CallError::OutOfMemory(_) => &mut self.out_of_memory,
            _ => &mut self.unsent,
        };
        *counter += 1;
    }
}

/// One session of a mailbox, at one moment. Given by [`Mailbox::each_session`](crate::Mailbox::each_session).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// Who attached.
    pub credentials: Credentials,
    /// What it has carried.
    pub stats: Stats,
    /// How much may be under way at a time.
    pub windows: Windows,
    /// How much of that is free at this moment.
    pub free: Windows,
}

/// How often peers have sent what is malformed, for each kind of it.
///
/// ```
/// use seqpacket::wire::Malformed;
/// # let reactor = ring::Reactor::new()?;
/// let (object, _mailbox) = seqpacket::object(&reactor)?;
/// let malformed = object.stats().malformed;
/// assert_eq!(malformed.of(&Malformed::Empty), 0);
/// for (kind, count) in malformed.each() {
///     println!("{kind}: {count}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MalformedCounts([u64; KINDS.len()]);

/// The variants of [`Malformed`], in their order.
const KINDS: [&str; 30] = [
    "Empty",
    "PacketTooLong",
    "HeaderCut",
    "PayloadCut",
    "Kind",
    "UnknownFlags",
    "FrameFlags",
    "Total",
    "TimeLeft",
    "Midway",
    "Elsewhere",
    "WrongSide",
    "Length",
    "Number",
    "Descriptors",
    "TooManyDescriptors",
    "Answer",
    "SecondDescriptors",
    "DescriptorsDiffer",
    "DescriptorsUnclaimed",
    "Magic",
    "Version",
    "Flags",
    "PacketBytes",
    "CallDescriptors",
    "MessageBytes",
    "WindowTooSmall",
    "WindowShrunk",
    "Reason",
    "AfterGoodbye",
];

fn place(malformed: &Malformed) -> usize {
    match malformed {
        Malformed::Empty => 0,
        Malformed::PacketTooLong { .. } => 1,
        Malformed::HeaderCut { .. } => 2,
        Malformed::PayloadCut { .. } => 3,
        Malformed::Kind(_) => 4,
        Malformed::UnknownFlags(_) => 5,
        Malformed::FrameFlags { .. } => 6,
        Malformed::Total(_) => 7,
        Malformed::TimeLeft(_) => 8,
        Malformed::Midway { .. } => 9,
        Malformed::Elsewhere => 10,
        Malformed::WrongSide(_) => 11,
        Malformed::Length { .. } => 12,
        Malformed::Number { .. } => 13,
        Malformed::Descriptors { .. } => 14,
        Malformed::TooManyDescriptors(_) => 15,
        Malformed::Answer { .. } => 16,
        Malformed::SecondDescriptors => 17,
        Malformed::DescriptorsDiffer { .. } => 18,
        Malformed::DescriptorsUnclaimed { .. } => 19,
        Malformed::Magic(_) => 20,
        Malformed::Version(_) => 21,
        Malformed::Flags(_) => 22,
        Malformed::PacketBytes(_) => 23,
        Malformed::CallDescriptors(_) => 24,
        Malformed::MessageBytes(_) => 25,
        Malformed::WindowTooSmall(_) => 26,
        Malformed::WindowShrunk(_) => 27,
        Malformed::Reason(_) => 28,
        Malformed::AfterGoodbye(_) => 29,
    }
}

impl MalformedCounts {
    /// How often something of this kind came, whatever its numbers.
    pub fn of(&self, kind: &Malformed) -> u64 {
        self.0[place(kind)]
    }

    /// The kinds that came, by the name of the variant of [`Malformed`], and how often.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        KINDS.iter().copied().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn count(&mut self, malformed: &Malformed) {
        self.0[place(malformed)] += 1;
    }
}

impl Default for MalformedCounts {
    fn default() -> MalformedCounts {
        MalformedCounts([0; KINDS.len()])
    }
}

impl fmt::Debug for MalformedCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.each()).finish()
    }
}

/// Where a session counts.
#[derive(Default)]
pub(crate) struct Counters(RefCell<Counted>);

#[derive(Default)]
struct Counted {
    sessions: u64,
    sent: Traffic,
    received: Traffic,
    begun: u64,
    answered: u64,
    rest: Option<Box<Rest>>,
}

/// What most sessions never have anything to count of: a server may have ten thousand of them.
#[derive(Default)]
struct Rest {
    /// Without those begun and answered.
    calls: Outcomes,
    answers_lost: u64,
    malformed: MalformedCounts,
}

impl Counters {
    pub(crate) fn stats(&self) -> Stats {
        let Counted { sessions, sent, received, begun, answered, rest } = &*self.0.borrow();
        let (others, answers_lost, malformed) = rest
            .as_ref()
            .map_or_else(Default::default, |rest| (rest.calls, rest.answers_lost, rest.malformed));
        let calls = Outcomes { begun: *begun, answered: *answered, ..others };
        let (sessions, sent, received) = (*sessions, *sent, *received);
        Stats { sessions, sent, received, calls, answers_lost, malformed }
    }

    /// A session was opened.
    pub(crate) fn opened(&self) {
        self.0.borrow_mut().sessions += 1;
    }

    pub(crate) fn malformed(&self, malformed: &Malformed) {
        self.rest(|rest| rest.malformed.count(malformed));
    }

    /// A call was sent, or has arrived.
    pub(crate) fn begun(&self) {
        self.0.borrow_mut().begun += 1;
    }

    /// A call was sent.
    #[inline]
    pub(crate) fn called(&self, bytes: usize, descriptors: usize) {
        let mut counted = self.0.borrow_mut();
        counted.begun += 1;
        counted.sent.count(1, bytes, descriptors);
    }

    pub(crate) fn answered(&self) {
        self.answers(1);
    }

    /// So many calls were answered.
    #[inline]
    pub(crate) fn answers(&self, count: usize) {
        self.0.borrow_mut().answered += count as u64;
    }

    /// How a call that was sent has ended for its caller.
    pub(crate) fn ended<T>(&self, end: &Result<T, CallError>) {
        match end {
            Ok(_) => self.answered(),
            Err(error) => self.otherwise(|calls| calls.count_error(error)),
        }
    }

    /// Calls that have ended in another way than by being answered.
    pub(crate) fn otherwise(&self, count: impl FnOnce(&mut Outcomes)) {
        self.rest(|rest| count(&mut rest.calls));
    }

    /// Not all descriptors of an answer have arrived.
    pub(crate) fn answer_lost(&self) {
        self.rest(|rest| rest.answers_lost += 1);
    }

    /// So many calls, or none, have ended with their session.
    pub(crate) fn cut_off(&self, count: u64) {
        if count > 0 {
            self.otherwise(|calls| calls.cut_off += count);
        }
    }

    fn rest(&self, count: impl FnOnce(&mut Rest)) {
        count(self.0.borrow_mut().rest.get_or_insert_default());
    }

    pub(crate) fn sent(&self, bytes: usize, descriptors: usize) {
        self.0.borrow_mut().sent.count(1, bytes, descriptors);
    }

    /// Parts of large messages.
    pub(crate) fn parts_sent(&self, parts: u64, bytes: u64) {
        let sent = &mut self.0.borrow_mut().sent;
        sent.frames += parts;
        sent.bytes += bytes;
    }

    /// Calls have arrived in so many bytes.
    #[inline]
    pub(crate) fn calls_arrived(&self, calls: usize, bytes: usize, descriptors: usize) {
        let counted = &mut *self.0.borrow_mut();
        counted.begun += calls as u64;
        counted.received.count(calls, bytes, descriptors);
    }

    /// Answers have arrived in so many bytes.
    #[inline]
    pub(crate) fn answers_arrived(&self, answers: usize, bytes: usize, descriptors: usize) {
        let counted = &mut *self.0.borrow_mut();
        counted.answered += answers as u64;
        counted.received.count(answers, bytes, descriptors);
    }

    /// A call was answered in so many bytes.
    #[inline]
    pub(crate) fn answered_in(&self, bytes: usize, descriptors: usize) {
        let counted = &mut *self.0.borrow_mut();
        counted.answered += 1;
        counted.sent.count(1, bytes, descriptors);
    }

    pub(crate) fn received(&self, frames: usize, bytes: usize, descriptors: usize) {
        self.0.borrow_mut().received.count(frames, bytes, descriptors);
    }

    pub(crate) fn add(&self, other: &Counters) {
        let mine = &mut *self.0.borrow_mut();
        let other = other.0.borrow();
        mine.sessions += other.sessions;
        mine.sent.add(&other.sent);
        mine.received.add(&other.received);
        mine.begun += other.begun;
        mine.answered += other.answered;
        if let Some(others) = &other.rest {
            let mine = mine.rest.get_or_insert_default();
            mine.calls.add(&others.calls);
            mine.answers_lost += others.answers_lost;
            for (mine, other) in mine.malformed.0.iter_mut().zip(others.malformed.0) {
                *mine += other;
            }
        }
    }
}

impl Traffic {
    fn count(&mut self, frames: usize, bytes: usize, descriptors: usize) {
        self.frames += frames as u64;
        self.bytes += bytes as u64;
        self.descriptors += descriptors as u64;
    }

    fn add(&mut self, other: &Traffic) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.descriptors += other.descriptors;
    }
}

impl Outcomes {
    fn add(&mut self, other: &Outcomes) {
        self.begun += other.begun;
        self.answered += other.answered;
        self.handed_on += other.handed_on;
        self.dropped += other.dropped;
        self.refused += other.refused;
        self.too_large += other.too_large;
        self.descriptors_lost += other.descriptors_lost;
        self.out_of_descriptors += other.out_of_descriptors;
        self.out_of_memory += other.out_of_memory;
        self.cancelled += other.cancelled;
        self.leaving += other.leaving;
        self.expired += other.expired;
        self.cut_off += other.cut_off;
        self.unsent += other.unsent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Kind, Resource};

    #[test]
    fn each_kind_has_its_own_name_and_place() {
        let some = [
            Malformed::Empty,
            Malformed::PayloadCut { length: 1, left: 0 },
            Malformed::TimeLeft(7),
            Malformed::Number { kind: Kind::Answer, number: 7 },
            Malformed::DescriptorsUnclaimed { arrived: 1 },
            Malformed::WindowShrunk(Resource::Calls),
            Malformed::AfterGoodbye(Kind::Call),
        ];
        for kind in some {
            assert!(format!("{kind:?}").starts_with(KINDS[place(&kind)]), "{kind:?}");
        }
        let mut counts = MalformedCounts::default();
        counts.count(&Malformed::TimeLeft(1));
        counts.count(&Malformed::TimeLeft(2));
        counts.count(&Malformed::Empty);
        assert_eq!((counts.of(&Malformed::TimeLeft(3)), counts.total()), (2, 3));
        assert_eq!(counts.each().collect::<Vec<_>>(), [("Empty", 1), ("TimeLeft", 2)]);
        assert_eq!(format!("{counts:?}"), r#"{"Empty": 1, "TimeLeft": 2}"#);
    }

    /// The names in the order of the source.
    #[test]
    fn the_names_are_those_of_the_variants() {
        let (_, variants) = include_str!("wire.rs").split_once("pub enum Malformed {").unwrap_or_default();
        let (variants, _) = variants.split_once("\n}").unwrap_or_default();
        let names = variants.lines().filter_map(|line| line.strip_prefix("    "));
        let names = names.filter(|line| line.starts_with(char::is_uppercase));
        let names: Vec<&str> = names.filter_map(|line| line.split(['(', ' ', ',']).next()).collect();
        assert_eq!(names, KINDS);
    }

    #[test]
    fn each_call_ends_in_one_way_or_is_under_way() {
        let counters = Counters::default();
        (0..20).for_each(|_| counters.begun());
        for number in 1..=8 {
            let reason = RefusedReason::parse(&[number]).unwrap_or(RefusedReason::Refused);
            counters.otherwise(|calls| calls.count_refusal(reason));
        }
        counters.ended(&Ok(()));
        counters.ended::<()>(&Err(CallError::Dropped));
        assert_eq!(counters.stats().calls.under_way(), 10);
        let twice = Counters::default();
        twice.add(&counters);
        twice.add(&counters);
        assert_eq!(twice.stats().calls.under_way(), 20);
    }
}
