//! Memory for large calls: rooms that are used again, and whose turn it is to use pages that nobody has used.
//!
//! A room owns the memory of one message that is put together from parts, and knows how much of it has ever
//! been written. What a withdrawn call leaves is kept for a while by its session. This file decides nothing
//! about windows, and never knows what a message says.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ring::{HUGE_PAGE_BYTES, HUGE_ROOM_BYTES_MIN, Landing, Reactor};

use crate::numbered::Numbered;
use crate::parts::{Claim, OutOfMemory, Watch};

/// For how long a session keeps the room of a large call that was withdrawn for the next one: 1 second. Its
/// pages are there already. Fresh ones the kernel has to clear, which takes as long as some ten packets for
/// each 2 MiB, and on a virtual machine that has to ask its host for them as long as a thousand.
///
/// What is kept and what is under way are together no more than
/// [`large_bytes`](crate::MailboxOptions::large_bytes), and it is given back at once when anybody else needs
/// some of [`large_bytes_together`](crate::MailboxOptions::large_bytes_together).
pub const ROOM_KEPT_MAX: Duration = Duration::from_secs(1);

/// The smallest room that is kept: 1 MiB. What is smaller allocators keep themselves.
pub const ROOM_KEPT_BYTES_MIN: usize = 1 << 20;

/// How many huge pages (of 2 MiB) all sessions of a mailbox begin to use in one turn of the reactor: 1.
/// Otherwise forty sessions that send large calls in step would have the kernel clear 80 MiB in one turn,
/// while everybody else waits. Whose part would begin one more is read in a later turn, in the order of
/// asking.
pub const HUGE_PAGES_A_TURN_MAX: usize = 1;

/// Memory for one large message.
#[derive(Debug)]
pub(crate) struct Room {
    place: Landing,
    /// How much of it has ever been written: its pages are there.
    used: usize,
}

impl Room {
    /// For so many bytes, none of which is used before something is written there.
    pub(crate) fn new(bytes: usize) -> Result<Room, OutOfMemory> {
        let bytes = ring::room_for(bytes).map_err(|_| OutOfMemory)?;
        Ok(Room { place: Landing::new(bytes), used: 0 })
    }

    /// Where parts can be received.
    pub(crate) fn place(&self) -> &Landing {
        &self.place
    }

    pub(crate) fn push(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Here(part) => self.place.push(part),
            Piece::Landed(length) => {
                let landed = self.place.take_landed();
                assert_eq!(landed, length, "a part lands in the room of its own message");
            }
        }
        self.used = self.used.max(self.place.len());
    }

    /// Whether a part of so many bytes would begin a huge page.
    pub(crate) fn begins_huge_page(&self, more: usize) -> bool {
        let end = self.place.len() + more;
        if self.place.capacity() < HUGE_ROOM_BYTES_MIN || end <= self.used {
            return false;
        }
        let page_of = |offset: usize| (self.place.address() + offset) / HUGE_PAGE_BYTES;
        self.used == 0 || page_of(end - 1) != page_of(self.used - 1)
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.place.take_bytes()
    }

    /// As new, for so many bytes, which is no more than it has.
    fn empty(&mut self, bytes: usize) {
        self.place.clear(bytes);
        self.used = self.used.min(self.place.capacity());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The socket may keep the landing for longer, and must not keep the memory.
        drop(self.place.take_bytes());
    }
}

/// The bytes of one part.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// In the packet they came in.
    Here(&'a [u8]),
    /// So many, in the room of their message.
    Landed(usize),
}

impl Piece<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Piece::Here(part) => part.len(),
            Piece::Landed(length) => length,
        }
    }
}

/// What withdrawn calls of one session have left.
#[derive(Default)]
pub(crate) struct Kept {
    rooms: Vec<Left>,
    watch: Watch,
}

struct Left {
    room: Room,
    claim: Claim,
    since: Instant,
}

impl Kept {
    pub(crate) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rooms.iter().map(|left| left.claim.bytes()).sum()
    }

    /// Keeps a room, if it is worth it.
    pub(crate) fn push(&mut self, room: Room, mut claim: Claim, now: Instant) {
        if claim.bytes() >= ROOM_KEPT_BYTES_MIN {
            claim.is_kept();
            self.rooms.push(Left { room, claim, since: now });
        }
    }

    /// One for a call of so many bytes: the smallest that has room for it, and not twice as much, which
    /// would be cut off and have to be cleared anew for the next.
    pub(crate) fn take(&mut self, number: u32, bytes: usize, now: Instant) -> Option<(Room, Claim)> {
        let fits = |left: &&Left| left.claim.bytes() >= bytes && left.claim.bytes() / 2 < bytes;
        let best = self.rooms.iter().filter(fits).map(|left| left.claim.bytes()).min()?;
        let place = self.rooms.iter().position(|left| left.claim.bytes() == best)?;
        let Left { mut room, mut claim, .. } = self.rooms.swap_remove(place);
        room.empty(bytes);
        claim.is_used_again(number, bytes, now);
        Some((room, claim))
    }

    /// Gives back the oldest until no more than so many bytes are kept.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let mut kept = self.bytes();
        self.rooms.sort_by_key(|left| left.since);
        self.rooms.retain(|left| {
            let stays = kept <= bytes;
            kept -= if stays { 0 } else { left.claim.bytes() };
            stays
        });
    }

    /// Gives back what has been kept for long enough, and sees to it that the rest is.
    pub(crate) fn poll(&mut self, reactor: &Reactor, context: &mut Context<'_>) {
        if self.rooms.is_empty() {
            return self.watch.rest();
        }
        let Kept { rooms, watch } = self;
        let oldest = || rooms.iter().map(|left| left.since).min();
        if watch.poll(reactor, ROOM_KEPT_MAX, oldest, || false, context).is_ready() {
            let now = reactor.now();
            rooms.retain(|left| now.saturating_duration_since(left.since) < ROOM_KEPT_MAX);
            self.poll(reactor, context);
        }
    }
}

/// Whose turn it is to begin a huge page.
#[derive(Default)]
pub(crate) struct HugePages {
    /// In which some were begun last, and how many.
    turn: u64,
    begun: usize,
    /// Those who wait, by the number they have drawn. The first of them has been woken, or is about to be.
    waiting: Numbered<u64, Waker>,
    drawn: u64,
}

/// The number that a session has drawn, while it waits.
#[derive(Default)]
pub(crate) struct Ticket(Option<u64>);

impl HugePages {
    /// Ready if whoever has this ticket may begin one in this turn. Otherwise it waits in line, and is woken
    /// for the turn in which it may. Gives back who is to be woken when nothing is borrowed.
    pub(crate) fn poll(
        &mut self,
        ticket: &mut Ticket,
        turn: u64,
        context: &mut Context<'_>,
    ) -> (Poll<()>, Option<Waker>) {
        if self.turn != turn {
            (self.turn, self.begun) = (turn, 0);
        }
        let is_first = |waiting: &Numbered<u64, Waker>, ticket: &Ticket| {
            waiting.iter().next().is_none_or(|(first, _)| ticket.0 == Some(first))
        };
        if self.begun < HUGE_PAGES_A_TURN_MAX && is_first(&self.waiting, ticket) {
            self.begun += 1;
            return (Poll::Ready(()), self.leave(ticket));
        }
        let number = *ticket.0.get_or_insert_with(|| {
            self.drawn += 1;
            self.drawn
        });
        self.waiting.insert(number, context.waker().clone());
        // What it waits for is the next turn, or somebody who is before it and will wake it.
        let woken = is_first(&self.waiting, ticket).then(|| context.waker().clone());
        (Poll::Pending, woken)
    }

    /// Waits no longer. Gives back who is the first in line now, to be woken when nothing is borrowed.
    pub(crate) fn leave(&mut self, ticket: &mut Ticket) -> Option<Waker> {
        self.waiting.remove(ticket.0.take()?);
        self.waiting.iter().next().map(|(_, waker)| waker.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::parts::{Caller, Memory};
    use crate::wire::PART_BYTES_MAX;

    const MIB: usize = 1 << 20;

    /// How many huge pages a message of so many bytes begins, in parts.
    fn begun(room: &mut Room, bytes: usize) -> usize {
        let part = [7; PART_BYTES_MAX];
        let mut begun = 0;
        for at in (0..bytes).step_by(part.len()) {
            let part = &part[..part.len().min(bytes - at)];
            begun += usize::from(room.begins_huge_page(part.len()));
            room.push(Piece::Here(part));
        }
        assert_eq!(room.place.len(), bytes);
        begun
    }

    #[test]
    fn a_room_begins_each_huge_page_once() {
        let pages = HUGE_ROOM_BYTES_MIN / HUGE_PAGE_BYTES;
        let mut room = Room::new(HUGE_ROOM_BYTES_MIN).unwrap();
        // One more if it does not begin with a page.
        assert!((pages..=pages + 1).contains(&begun(&mut room, HUGE_ROOM_BYTES_MIN)));
        room.empty(HUGE_ROOM_BYTES_MIN);
        assert_eq!(begun(&mut room, HUGE_ROOM_BYTES_MIN), 0, "its pages are there");
    }

    #[test]
    fn a_room_of_which_a_part_was_used_begins_the_rest() {
        let mut room = Room::new(HUGE_ROOM_BYTES_MIN).unwrap();
        let half = begun(&mut room, HUGE_ROOM_BYTES_MIN / 2);
        room.empty(HUGE_ROOM_BYTES_MIN);
        let rest = begun(&mut room, HUGE_ROOM_BYTES_MIN);
        let pages = HUGE_ROOM_BYTES_MIN / HUGE_PAGE_BYTES;
        assert!(half >= pages / 2 && rest >= pages / 2, "{half} and {rest}");
        assert!(half + rest <= pages + 1, "{half} and {rest}");
    }

    #[test]
    fn a_smaller_room_has_no_huge_pages() {
        let mut room = Room::new(HUGE_ROOM_BYTES_MIN - 1).unwrap();
        assert_eq!(begun(&mut room, HUGE_ROOM_BYTES_MIN - 1), 0);
    }

    fn claim(memory: &Rc<Memory>, session: usize, bytes: usize) -> Option<Claim> {
        Memory::claim(memory, Caller { session, number: 1 }, bytes, Instant::now())
    }

    fn take(kept: &mut Kept, bytes: usize) -> Option<(Room, Claim)> {
        kept.take(2, bytes, Instant::now())
    }

    fn keep(kept: &mut Kept, memory: &Rc<Memory>, bytes: usize) {
        let claim = claim(memory, 1, bytes).unwrap();
        kept.push(Room::new(bytes).unwrap(), claim, Instant::now());
    }

    #[test]
    fn the_smallest_room_that_is_not_twice_as_large_is_used_again() {
        let memory = Memory::new(100 * MIB);
        let mut kept = Kept::default();
        for bytes in [6 * MIB, 4 * MIB, 5 * MIB] {
            keep(&mut kept, &memory, bytes);
        }
        assert!(take(&mut kept, 6 * MIB + 1).is_none());
        assert!(take(&mut kept, 2 * MIB).is_none(), "half of it would be given back");
        let (room, claim) = take(&mut kept, 3 * MIB).unwrap();
        assert!((3 * MIB..4 * MIB).contains(&room.place.capacity()), "{}", room.place.capacity());
        assert_eq!((claim.bytes(), kept.bytes()), (3 * MIB, 11 * MIB));
        assert_eq!(memory.held_by(1), 3 * MIB, "what is kept is nobody's");
        assert_eq!(take(&mut kept, 5 * MIB).unwrap().1.bytes(), 5 * MIB);
    }

    #[test]
    fn what_is_kept_is_counted_until_it_is_given_back() {
        let memory = Memory::new(10 * MIB);
        let mut kept = Kept::default();
        keep(&mut kept, &memory, 4 * MIB);
        keep(&mut kept, &memory, 4 * MIB);
        assert!(claim(&memory, 2, 4 * MIB).is_none());
        assert_eq!((memory.who_keeps_one(), memory.who_holds_more_than(0)), (Some(1), None));
        kept.shrink_to(8 * MIB);
        assert_eq!(kept.bytes(), 8 * MIB);
        kept.shrink_to(8 * MIB - 1);
        assert_eq!((kept.bytes(), memory.who_keeps_one()), (4 * MIB, Some(1)));
        assert!(claim(&memory, 2, 6 * MIB).is_some());
        drop(kept);
        assert_eq!(memory.who_keeps_one(), None);
        assert!(claim(&memory, 2, 10 * MIB).is_some());
    }

    #[test]
    fn what_is_small_is_not_kept() {
        let memory = Memory::new(10 * MIB);
        let mut kept = Kept::default();
        keep(&mut kept, &memory, ROOM_KEPT_BYTES_MIN - 1);
        assert!(kept.is_empty());
        keep(&mut kept, &memory, ROOM_KEPT_BYTES_MIN);
        assert_eq!(kept.bytes(), ROOM_KEPT_BYTES_MIN);
    }

    /// A session that waits in line, and counts how often it is woken.
    #[derive(Default)]
    struct Session {
        ticket: Ticket,
        woken: Arc<Count>,
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Session {
        fn may_begin(&mut self, line: &mut HugePages, turn: u64) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            let (poll, woken) = line.poll(&mut self.ticket, turn, &mut Context::from_waker(&waker));
            woken.into_iter().for_each(Waker::wake);
            poll.is_ready()
        }

        fn was_woken(&self) -> bool {
            self.woken.0.swap(0, Ordering::Relaxed) > 0
        }
    }

    #[test]
    fn so_many_huge_pages_are_begun_in_a_turn_and_in_the_order_of_asking() {
        let mut line = HugePages::default();
        let mut all: [Session; 4] = Default::default();
        for session in &mut all[..HUGE_PAGES_A_TURN_MAX] {
            assert!(session.may_begin(&mut line, 1));
        }
        let (_, rest) = all.split_at_mut(HUGE_PAGES_A_TURN_MAX);
        for session in &mut *rest {
            assert!(!session.may_begin(&mut line, 1));
        }
        assert!(rest[0].was_woken() && !rest[1].was_woken(), "for the next turn the first, and nobody else");
        assert!(!rest[1].may_begin(&mut line, 2), "whoever asks first is not always the first");
        assert!(rest[0].may_begin(&mut line, 2));
        assert!(rest[1].was_woken());
        assert!(!rest[0].may_begin(&mut line, 2), "there is one in line");
        assert!(rest[1].may_begin(&mut line, 3));
    }

    #[test]
    fn whoever_leaves_the_line_lets_the_next_one_go_on() {
        let mut line = HugePages::default();
        let mut all: [Session; 4] = Default::default();
        assert_eq!(
            all.each_mut().map(|session| session.may_begin(&mut line, 1)),
            [true, false, false, false]
        );
        assert!(all[1].was_woken());
        // Not the first: nobody hears of it but who has been woken anyway.
        line.leave(&mut all[2].ticket);
        line.leave(&mut all[1].ticket).into_iter().for_each(Waker::wake);
        assert!(all[3].was_woken());
        assert!(all[3].may_begin(&mut line, 2));
        assert!(line.leave(&mut all[3].ticket).is_none());
    }
}
