//! One client's session, as the server sees it.
//!
//! It owns the client's socket, the calls that nobody has taken and the account of what is under way. A
//! companion of the reactor receives and files; it goes on when the mailbox is gone, for as long as somebody
//! has a call to answer. Whose turn it is, and how many sessions there may be, is the mailbox's business. It
//! never knows what a message means.

use std::cell::{OnceCell, RefCell, RefMut};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use ring::{
    Bytes, Companion, Credentials, Descriptors, Fd, Line, Message, Otherwise, Queue, Reactor, Reader,
    Reading, ReceiveError, Received, Socket, Spare,
};

use crate::brought::{Brought, SpareBoxes};
use crate::credit::{Account, Cost};
use crate::error::AnswerError;
use crate::mailbox::Shared;
use crate::parcel::{Packet, Parcel};
use crate::parts::{Assembly, Caller, Claim, Left, Memory, Outbox, Watch, expect_part};
use crate::rooms::{Kept, Piece, Room, Ticket};
use crate::stats::{Counters, SessionStats};
use crate::table::{SpareRows, Table};
use crate::trace;
use crate::waiting::{wake, wake_each, wake_if_any};
use crate::wire::{
    self, Arrived, Body, FromClient, HEADER_BYTES, Header, Hello, Kind, Malformed, Opening, PACKET_BYTES_MAX,
    Place, REFUSED_FRAME_BYTES, RefusedReason, Size,
};

/// How many packets of one session are looked at in one turn, before the others have theirs: at most 102,080
/// bytes.
pub const SESSION_PACKETS_A_TURN_MAX: usize = 1;

/// How many frames of one session are looked at in one turn: as many as a session may have calls under way
/// unless its server says otherwise. A packet has room for 6,380, which take a hundred times as long to read
/// as to send; what is left of it is read in the next turns, and nothing more is taken before.
pub const SESSION_FRAMES_A_TURN_MAX: usize = 256;

/// A session and the companion that serves it: held by the mailbox and by every call taken from it.
pub(crate) struct Served {
    session: Rc<Session>,
    _companion: Companion,
}

impl Served {
    /// Says HELLO, and receives from now on.
    pub(crate) fn begin(
        reactor: &Reactor,
        mailbox: Weak<Shared>,
        socket: Socket,
        terms: Rc<Terms>,
        client: Client,
    ) -> Rc<Served> {
        let hello = terms.hello;
        socket.set_private(true);
        socket.set_descriptors_max(hello.call_descriptors_max as usize);
        socket.forgo_credentials();
        socket.stream();
        let account = Account::new(hello.windows);
        let state = RefCell::new(State {
            account,
            calls: Table::default(),
            queue: Line::new(),
            in_turn: false,
            leaving: false,
            client_leaving: false,
            over: false,
            said: 0,
            emptied: 0,
            losable: 0,
            unsettled: Unsettled::default(),
            arriving: 0,
            large: None,
            unread: None,
            waker: None,
            begun: Begun::default(),
            read_in: 0,
        });
        let counters = Counters::default();
        counters.opened();
        let session = Rc::new(Session { client, socket, terms, mailbox, counters, state });
        session.say(&hello.frame());
        session.socket.set_reader(Rc::downgrade(&session));
        let companion = reactor.companion(Serving(Rc::clone(&session)));
        Rc::new(Served { session, _companion: companion })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }
}

/// What the mailbox knows of whoever attached.
pub(crate) struct Client {
    /// Of the session in the mailbox.
    pub(crate) key: usize,
    /// Through which address it came.
    pub(crate) address: u64,
    pub(crate) credentials: Credentials,
}

/// What all sessions of a mailbox have in common.
pub(crate) struct Terms {
    pub(crate) hello: Hello,
    /// How long a large message may stand still.
    pub(crate) stall: Duration,
    /// For large calls of all sessions together.
    large_bytes: usize,
    memory: OnceCell<Rc<Memory>>,
    spares: Rc<RefCell<Spares>>,
}

impl Terms {
    pub(crate) fn new(
        reactor: &Reactor,
        hello: Hello,
        stall: Duration,
        large_bytes_together: usize,
    ) -> Rc<Terms> {
        let (memory, spares) = (OnceCell::new(), reactor.in_common());
        Rc::new(Terms { hello, stall, large_bytes: large_bytes_together, memory, spares })
    }

    fn memory(&self) -> &Rc<Memory> {
        self.memory.get_or_init(|| Memory::new(self.large_bytes))
    }

    fn spares(&self) -> RefMut<'_, Spares> {
        self.spares.borrow_mut()
    }
}

/// Memory for the queues of those sessions that are in use. All mailboxes of a reactor have it in common: it
/// goes from call to call, whoever is called, and is in the processor's caches therefore. When each mailbox
/// had its own, a call to one of thousands fetched twice as many cache lines for its sake.
#[derive(Default)]
struct Spares {
    calls: SpareRows<Entry>,
    boxes: SpareBoxes,
    queue: Spare<Box<Brought>>,
    unsettled: Spare<(u64, Cost)>,
}

pub(crate) struct Session {
    client: Client,
    socket: Socket,
    terms: Rc<Terms>,
    mailbox: Weak<Shared>,
    counters: Counters,
    state: RefCell<State>,
}

struct State {
    account: Account,
    /// Those under way. They are at most as many as the window has.
    calls: Table<Entry>,
    /// Calls that nobody has taken, in order.
    queue: Line<Box<Brought>>,
    /// The mailbox has this session on its list of those whose turn it will be.
    in_turn: bool,
    /// We have said GOODBYE.
    leaving: bool,
    /// The client has.
    client_leaving: bool,
    over: bool,
    /// Bytes given to the socket since it had nothing left to send.
    said: u64,
    /// How many times nothing was left to send, and `said` began anew.
    emptied: u64,
    /// Answers with descriptors, and ways elsewhere, of which the client has not said that they were lost.
    losable: u32,
    unsettled: Unsettled,
    /// How many large calls have begun and are not complete.
    arriving: u32,
    /// While something large is under way.
    large: Option<Box<Large>>,
    /// A packet with more frames than one turn has for it.
    unread: Option<Box<Unread>>,
    /// Of the companion.
    waker: Option<Waker>,
    /// Of the packet that the companion receives next.
    begun: Begun,
    /// The turn, by the lower half of its number, in which a packet was read where it arrived.
    read_in: u32,
}

/// A large call that begins.
struct Beginning {
    total: u32,
    /// Room for its answer.
    answer: Size,
    deadline: Option<Instant>,
    descriptors: Parcel,
    /// How many of its descriptors were lost.
    missing: u8,
    /// What an earlier one has left.
    kept: Option<(Room, Claim)>,
}

/// A packet, and how far it has been read.
struct Unread {
    packet: Packet,
    /// Of which no frame has been read yet that declares them.
    descriptors: Parcel,
    place: Place,
}

/// What only large messages need.
#[derive(Default)]
struct Large {
    /// Answers on their way.
    outbox: Outbox,
    /// Where the last part of them ends in what was said.
    part_end: u64,
    /// For calls that are arriving.
    reading: Watch,
    /// For answers that nobody reads.
    writing: Watch,
    /// Rooms that withdrawn calls have left for the next.
    kept: Kept,
    /// While a part waits until it may begin a huge page.
    ticket: Ticket,
    /// Which call began last, or has had the last part.
    latest: u32,
}

/// One call under way.
struct Entry {
    cost: Cost,
    withdrawn: bool,
    waker: Option<Waker>,
    stage: Stage,
    /// Of a large call.
    claim: Option<Box<Claim>>,
}

impl Entry {
    #[inline]
    fn new(cost: Cost) -> Entry {
        Entry { cost, withdrawn: false, waker: None, stage: Stage::Here, claim: None }
    }

    /// Whether its answer is awaited, and nothing has to be let go of but itself.
    #[inline]
    fn is_small_and_wanted(&self) -> bool {
        let alone = self.waker.is_none() && self.claim.is_none();
        alone && !self.withdrawn && matches!(self.stage, Stage::Here)
    }
}

/// How far a call has come.
enum Stage {
    /// It is large, and not all of it is here. What it brings goes into this box.
    Arriving { assembly: Box<Assembly>, brought: Box<Brought> },
    /// It waits, or somebody has it.
    Here,
    /// Its answer is large and on its way.
    Answering,
    /// It was refused before all of it was here. Parts may still come, and the client says where they end.
    Refused { missing: usize, said: u64, emptied: u64 },
}

/// What has been filed at once of the packet that is next.
#[derive(Default)]
struct Begun {
    bytes: u32,
    calls: u16,
    /// One of them has the descriptors of the packet.
    descriptors: bool,
    /// The session had no calls before, and the mailbox does not know of these.
    asks_for_turn: bool,
}

/// How much of a packet has been read.
enum Filed {
    All,
    /// As many frames as one turn has time for.
    Some,
    /// What has to wait until it may begin a huge page comes next.
    UpToHugePage,
}

/// What ended a session.
pub(crate) enum Over {
    Closed,
    Malformed,
    BeyondWindow,
    Unread,
    Stalled,
}

/// The companion of a session. A future by hand, since one that awaits keeps room for each of its steps.
struct Serving(Rc<Session>);

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let session = &self.0;
        let over = ready!(session.poll_over(context));
        let mailbox = session.mailbox.upgrade();
        if let Some(mailbox) = &mailbox {
            mailbox.count(&over);
        }
        session.end();
        if let Some(mailbox) = &mailbox {
            mailbox.detach(session);
        }
        Poll::Ready(())
    }
}

impl Reader for Session {
    /// Straight through, where nothing large is under way and no packet was left half read, as far as this
    /// one begins with small calls. They are nearly always all of it; otherwise the companion goes on.
    fn read(&self, reading: Reading<'_>) -> bool {
        let Reading { bytes, descriptors, turn, unsent, mut wakes, .. } = reading;
        let turn = turn as u32;
        let mut state = self.state.borrow_mut();
        // One packet in a turn: `SESSION_PACKETS_A_TURN_MAX`.
        if state.large.is_some() || state.unread.is_some() || state.read_in == turn {
            return false;
        }
        if !state.unsettled.is_empty() {
            state.settle(unsent, &self.terms);
        }
        let begun = self.file_small_calls(&mut state, bytes, descriptors);
        let whole = begun.bytes as usize == bytes.len() && descriptors.is_empty();
        let asks_for_turn = begun.asks_for_turn;
        // Of what nothing could be filed the companion reads in this turn.
        if begun.calls > 0 {
            state.read_in = turn;
        }
        if !whole {
            state.begun = begun;
        }
        drop(state);
        if asks_for_turn && let Some(mailbox) = self.mailbox.upgrade() {
            wake_each(mailbox.take_turn(self.client.key), |waker| wakes.wake(waker));
        }
        whole
    }
}

impl Session {
    pub(crate) fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The mailbox it belongs to, while there is one.
    pub(crate) fn mailbox(&self) -> &Weak<Shared> {
        &self.mailbox
    }

    pub(crate) fn is_of(&self, mailbox: &Weak<Shared>) -> bool {
        Weak::ptr_eq(&self.mailbox, mailbox)
    }

    // -- what the client says ---------------------------------------------------------------------------

    /// Receives and files until the session ends.
    fn poll_over(&self, context: &mut Context<'_>) -> Poll<Over> {
        self.look_after_answers(context);
        let (begun, unread, read_in) = self.state.borrow_mut().take_begun();
        // One packet in a turn, wherever it was read: `SESSION_PACKETS_A_TURN_MAX`.
        if begun.bytes == 0
            && unread.is_none()
            && read_in == self.reactor().turns() as u32
            && self.socket.has_arrived()
        {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let unread = match unread {
            Some(unread) => Ok(*unread),
            None => self.unread_of(ready!(self.poll_next(context))),
        };
        match unread {
            Ok(mut unread) => {
                unread.place.read = unread.place.read.max(begun.bytes as usize);
                if begun.descriptors {
                    unread.place = Place::behind_descriptors(begun.bytes as usize);
                }
                self.file_and_go_on(unread, begun.calls.into(), context)
            }
            Err(over) => Poll::Ready(over),
        }
    }

    /// Files the rest of a packet of which so many frames have been filed in this turn.
    fn file_and_go_on(&self, unread: Unread, filed: usize, context: &mut Context<'_>) -> Poll<Over> {
        match self.file(unread, filed, context) {
            Err(over) => return Poll::Ready(over),
            // It is woken when that may be read.
            Ok(Filed::UpToHugePage) => return Poll::Pending,
            Ok(Filed::All | Filed::Some) => {}
        }
        // One packet or a part of it, then the others have theirs: `SESSION_PACKETS_A_TURN_MAX`. With nothing
        // here this only waits for the next.
        if self.state.borrow().unread.is_some() || self.socket.has_arrived() && !self.goes_on_with_parts() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.poll_over(context)
    }

    /// Whether what has arrived is the next part of a large call and nothing else, and may be filed in this
    /// turn too.
    fn goes_on_with_parts(&self) -> bool {
        self.state.borrow().arriving == 1 && self.socket.goes_on_with_piece(wire::is_one_part)
    }

    fn unread_of(&self, received: Option<Result<Received, ReceiveError>>) -> Result<Unread, Over> {
        let (mut packet, cut) = match received {
            Some(Ok(packet)) => (packet, false),
            Some(Err(ReceiveError::DescriptorsLost(packet))) => (packet, true),
            Some(Err(ReceiveError::Truncated(_))) => {
                return Err(self.blame(&Malformed::LONGER_THAN_A_PACKET));
            }
            Some(Err(_)) => return Err(Over::Closed),
            None => return Err(Over::Stalled),
        };
        let descriptors = Parcel::of_descriptors(packet.take_list());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        Ok(Unread { packet: Packet::new(packet), descriptors, place: Place::beginning(arrived) })
    }

    /// Sends the next part of a large answer, and gives back what answers took that have left.
    fn look_after_answers(&self, context: &mut Context<'_>) {
        let mut state = self.state.borrow_mut();
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            let old = state.waker.replace(context.waker().clone());
            drop(state);
            drop(old);
            state = self.state.borrow_mut();
        }
        // With each packet, or a session that rests would remember as many answers as its window has.
        if !state.unsettled.is_empty() {
            state.settle(self.socket.unsent(), &self.terms);
        }
        if state.large.is_some() {
            drop(state);
            self.send_parts(context);
            self.settle();
        }
    }

    /// Receives the next packet; `None` if a large message stands still.
    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Received, ReceiveError>>> {
        if self.take_parts() {
            // It found something else, which is for the next turn: the answer to what was filed in this one
            // has not left yet.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // What has arrived counts before what has not.
        if let Poll::Ready(received) = self.socket.poll_receive(context) {
            return Poll::Ready(Some(received));
        }
        let state = &mut *self.state.borrow_mut();
        let State { calls, arriving, large: Some(large), .. } = state else { return Poll::Pending };
        if *arriving == 0 && large.outbox.is_empty() && large.kept.is_empty() {
            state.large = None;
            self.socket.expect_no_piece();
            return Poll::Pending;
        }
        let Large { outbox, reading, writing, .. } = &mut **large;
        if *arriving == 0 {
            reading.rest();
        } else {
            let stands_since = || {
                let arriving = calls.iter().filter_map(|(_, entry)| match &entry.stage {
                    Stage::Arriving { assembly, .. } => Some(assembly.moved()),
                    _ => None,
                });
                arriving.min()
            };
            // What has come and is not received, for want of descriptors say, is not the client's fault.
            let excused = || !self.socket.is_quiet();
            let stall = self.terms.stall;
            let stalled = reading.poll(self.socket.reactor(), stall, stands_since, excused, context);
            if stalled.is_ready() {
                return Poll::Ready(None);
            }
        }
        if outbox.is_empty() {
            writing.rest();
            return Poll::Pending;
        }
        let stands_since = || outbox.stands_since();
        // What it has read, and nobody here has noticed while a handler kept the thread, is to its credit.
        let excused = || self.socket.takes_more();
        writing.poll(self.socket.reactor(), self.terms.stall, stands_since, excused, context).map(|()| None)
    }

    /// Takes the parts of a large call that are in the queue, and has the next one received where it belongs.
    /// Of several calls that arrive at once nobody knows whose part is the next. Says whether something else
    /// has come.
    fn take_parts(&self) -> bool {
        let mut borrowed = self.state.borrow_mut();
        let State { calls, arriving: 1, large: Some(large), .. } = &mut *borrowed else { return false };
        let number = large.latest;
        let Some(entry) = calls.find_mut(number) else { return false };
        let Stage::Arriving { assembly, .. } = &mut entry.stage else { return false };
        let had_arrived = self.socket.has_arrived();
        let part_bytes_max = self.terms.hello.part_bytes_max() as usize;
        let (parts, bytes) = assembly.take_parts(number, part_bytes_max, &self.socket);
        if parts > 0 {
            self.counters.received(parts, parts * HEADER_BYTES + bytes, 0);
            if assembly.missing() == 0 {
                self.has_arrived(&mut borrowed, number);
            }
            drop(borrowed);
            self.ask_for_turn();
        }
        !had_arrived && self.socket.has_arrived()
    }

    /// The last part of a large call has arrived.
    fn has_arrived(&self, state: &mut State, number: u32) {
        let Some(entry) = state.calls.find_mut(number) else { return };
        if let Stage::Arriving { assembly, mut brought } = std::mem::replace(&mut entry.stage, Stage::Here) {
            state.arriving -= 1;
            entry.claim.iter_mut().for_each(|claim| claim.is_whole());
            brought.parcel = assembly.into_parcel();
            self.terms.spares().queue.push_back(&mut state.queue, brought);
        }
    }

    fn send_parts(&self, context: &mut Context<'_>) {
        let mut state = self.state.borrow_mut();
        let State { large, said, calls, .. } = &mut *state;
        let Some(Large { outbox, part_end, kept, .. }) = large.as_deref_mut() else { return };
        kept.poll(self.reactor(), context);
        let part_bytes_max = self.terms.hello.part_bytes_max() as usize;
        let left = outbox.poll(&self.socket, part_bytes_max, calls.len() == 1, context);
        let (parts, bytes) = outbox.take_said();
        if parts > 0 {
            *said += bytes;
            *part_end = *said;
        }
        self.counters.parts_sent(parts, bytes);
        drop(state);
        for left in left {
            match left {
                Left::Whole(number) => {
                    self.counters.answered();
                    self.finish(number);
                }
                Left::NotOpened(number, _) if self.is_answering(number) => {
                    self.refuse(number, RefusedReason::OutOfDescriptors);
                }
                // It was withdrawn, and has been refused already.
                Left::NotOpened(..) => {}
            }
        }
    }

    /// Files the small calls that a packet begins with, for as long as there is nothing to be said against
    /// them. What follows was not looked at.
    #[inline]
    fn file_small_calls(&self, state: &mut State, packet: &[u8], descriptors: &mut Descriptors) -> Begun {
        if state.over || state.leaving || state.client_leaving || packet.len() > PACKET_BYTES_MAX {
            return Begun::default();
        }
        let hello = &self.terms.hello;
        let Spares { calls, boxes, queue, .. } = &mut *self.terms.spares();
        let (mut rest, mut count, mut came) = (packet, 0, 0);
        while count < SESSION_FRAMES_A_TURN_MAX
            && let Some(call) = wire::small_call(rest, hello)
        {
            // What is wrong, and whether room is left when answers have been settled, is found out by whoever
            // files frames of any kind.
            let declared = usize::from(call.descriptors);
            if declared > 0 && declared != descriptors.len() {
                break;
            }
            let size = Size::of_bytes(call.payload.len()).and_then(|size| size.with_descriptors(declared));
            let Ok(size) = size else { break };
            let Some(cost) = state.account.reserve_small_call(size, call.answer) else { break };
            if !state.calls.try_insert(calls, call.number, Entry::new(cost)) {
                state.account.release(cost);
                break;
            }
            let mut brought = boxes.lend(call.number, call.answer, None);
            brought.parcel.copy(call.payload);
            if declared > 0 {
                brought.parcel.hold(std::mem::take(descriptors));
                came = declared;
            }
            queue.push_back(&mut state.queue, brought);
            (rest, count) = (call.rest, count + 1);
        }
        let bytes = packet.len() - rest.len();
        self.counters.calls_arrived(count, bytes, came);
        let asks_for_turn = count > 0 && !state.in_turn;
        state.in_turn |= asks_for_turn;
        // Of one packet, and of no more calls than a turn has time for.
        Begun { bytes: bytes as u32, calls: count as u16, descriptors: came > 0, asks_for_turn }
    }

    /// Files what a packet says, or as much of it as one turn has time for, in which so many of its frames
    /// have been filed already.
    fn file(&self, unread: Unread, filed: usize, context: &mut Context<'_>) -> Result<Filed, Over> {
        if unread.packet.landed() > 0 {
            return self.file_landed(&unread.packet);
        }
        let Unread { packet, mut descriptors, place } = unread;
        let (begin, came) = (place.read, descriptors.descriptors());
        let mut left = Some(place);
        let mut frames = wire::frames_from(packet.bytes(), place);
        let mut count = 0;
        let result = loop {
            if filed + count >= SESSION_FRAMES_A_TURN_MAX && left.is_some() {
                break Ok(Filed::Some);
            }
            let Some(frame) = frames.next() else { break Ok(Filed::All) };
            let said = frame.and_then(|frame| {
                let opening = frame.opening();
                self.terms.hello.admits(&opening)?;
                Ok((frame.from_client()?, opening))
            });
            if let Ok((said, _)) = &said
                && self.waits_for_huge_page(said, context)
            {
                break Ok(Filed::UpToHugePage);
            }
            count += 1;
            left = frames.place_in(packet.bytes());
            let said = said.map_err(|malformed| self.blame(&malformed));
            let framed =
                said.and_then(|(said, opening)| self.frame(said, &opening, &packet, &mut descriptors));
            if let Err(over) = framed {
                break Err(over);
            }
        };
        let left = left.filter(|_| result.is_ok());
        let end = left.map_or(packet.bytes().len(), |left| left.read);
        // With the first frame that is filed here of a packet.
        let came = if (begin == 0 || filed > 0) && count > 0 { came } else { 0 };
        self.counters.received(count, end - begin, came);
        if let Some(place) = left {
            self.state.borrow_mut().unread = Some(Box::new(Unread { packet, descriptors, place }));
        }
        self.ask_for_turn();
        result
    }

    /// Files a packet that is a part and nothing else, and has been received where it belongs.
    fn file_landed(&self, packet: &Packet) -> Result<Filed, Over> {
        let number = wire::part_landed(packet.bytes());
        self.counters.received(1, packet.bytes().len() + packet.landed(), 0);
        self.part(number, Piece::Landed(packet.landed()))?;
        self.ask_for_turn();
        Ok(Filed::All)
    }

    /// Whether this is a part that would begin a huge page, and has to wait for the turn in which it may.
    fn waits_for_huge_page(&self, said: &FromClient<'_>, context: &mut Context<'_>) -> bool {
        let FromClient::Part { number, payload } = said else { return false };
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let Some(large) = state.large.as_deref_mut() else { return false };
        let begins = match state.calls.find(*number).map(|entry| &entry.stage) {
            Some(Stage::Arriving { assembly, .. }) => assembly.begins_huge_page(payload.len()),
            _ => false,
        };
        let mut huge_pages = self.terms.memory().huge_pages();
        let (waits, woken) = if begins {
            let (poll, woken) = huge_pages.poll(&mut large.ticket, self.reactor().turns(), context);
            (poll.is_pending(), woken)
        } else {
            // Its call may have been refused while it waited.
            (false, huge_pages.leave(&mut large.ticket))
        };
        drop(huge_pages);
        drop(borrowed);
        wake(woken);
        waits
    }

    fn frame(
        &self,
        said: FromClient<'_>,
        opening: &Opening,
        packet: &Packet,
        descriptors: &mut Parcel,
    ) -> Result<(), Over> {
        match said {
            FromClient::Call { number, body, descriptors: declared, missing, answer, time_left } => {
                let cost = Cost::of_call(opening, &self.terms.hello);
                self.begin(number, cost)?;
                // As of now. A time that no clock here can tell is none.
                let deadline = time_left.and_then(|time_left| self.reactor().now().checked_add(time_left));
                let kept = match cost.large_bytes() {
                    0 => None,
                    _ => self.kept_room(number, opening.total().unwrap_or(0) as usize),
                };
                let theirs = (declared > 0).then(|| std::mem::take(descriptors));
                let payload = match body {
                    Body::Whole(payload) => payload,
                    Body::Large { total } => {
                        let descriptors = theirs.unwrap_or_default();
                        let beginning = Beginning { total, answer, deadline, descriptors, missing, kept };
                        self.begin_large(number, beginning);
                        return Ok(());
                    }
                };
                if missing > 0 {
                    drop(theirs);
                    self.refuse(number, RefusedReason::DescriptorsLost);
                } else if self.is_leaving() {
                    self.refuse(number, RefusedReason::Leaving);
                } else {
                    let spares = &mut *self.terms.spares();
                    let mut brought = spares.boxes.lend(number, answer, deadline);
                    brought.parcel.fill(packet, payload);
                    if let Some(mut theirs) = theirs {
                        brought.parcel.take_from(&mut theirs);
                    }
                    spares.queue.push_back(&mut self.state.borrow_mut().queue, brought);
                }
            }
            FromClient::Grant { number } => {
                self.begin(number, Cost::of_grant())?;
                self.grant(number, opening.answer());
            }
            FromClient::Part { number, payload } => self.part(number, Piece::Here(payload))?,
            FromClient::Cancel { number } => self.cancel(number),
            FromClient::Lost { number } => self.lost(number)?,
            FromClient::Goodbye => {
                let again = std::mem::replace(&mut self.state.borrow_mut().client_leaving, true);
                let malformed = Malformed::AfterGoodbye(Kind::Goodbye);
                return if again { Err(self.blame(&malformed)) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// The client breaks the protocol.
    fn blame(&self, malformed: &Malformed) -> Over {
        self.counters.malformed(malformed);
        Over::Malformed
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What it has counted, and how much may be under way.
    pub(crate) fn stats(&self) -> SessionStats {
        self.settle();
        let state = self.state.borrow();
        let (windows, free) = (state.account.windows(), state.account.free());
        SessionStats { credentials: self.client.credentials, stats: self.counters.stats(), windows, free }
    }

    fn is_over(&self) -> bool {
        self.state.borrow().over
    }

    fn is_leaving(&self) -> bool {
        self.state.borrow().leaving
    }

    /// A call is under way from here to its final frame.
    fn begin(&self, number: u32, cost: Cost) -> Result<(), Over> {
        let mut state = self.state.borrow_mut();
        if state.over {
            return Err(Over::Closed);
        }
        if state.client_leaving {
            return Err(self.blame(&Malformed::AfterGoodbye(Kind::Call)));
        }
        if state.calls.contains(number) {
            return Err(self.blame(&Malformed::Number { kind: Kind::Call, number }));
        }
        if state.account.try_reserve(cost).is_err() {
            drop(state);
            self.settle();
            state = self.state.borrow_mut();
            if state.account.try_reserve(cost).is_err() {
                // Either way it has sent more than it may. If answers wait, that is because it does not read
                // them.
                return Err(if state.unsettled.is_empty() { Over::BeyondWindow } else { Over::Unread });
            }
        }
        self.counters.begun();
        state.calls.insert(&mut self.terms.spares().calls, number, Entry::new(cost));
        Ok(())
    }

    /// A large call begins. Whatever becomes of it, the client says where its parts end.
    fn begin_large(&self, number: u32, beginning: Beginning) {
        let Beginning { total, answer: room, deadline, descriptors, missing, kept } = beginning;
        let now = self.reactor().now();
        let begun = if missing > 0 {
            Err(RefusedReason::DescriptorsLost)
        } else if self.is_leaving() {
            Err(RefusedReason::Leaving)
        } else {
            let (kept, claim) = kept.unzip();
            let fresh = || Room::new(total as usize).ok();
            let claimed = claim.or_else(|| self.claim(number, total as usize, now));
            let begun = claimed.and_then(|claim| Some((kept.or_else(fresh)?, claim)));
            let begun =
                begun.map(|(in_room, claim)| (Assembly::begin_in(in_room, total, descriptors, now), claim));
            begun.ok_or(RefusedReason::OutOfMemory)
        };
        let mut state = self.state.borrow_mut();
        state.arriving += 1;
        state.large.get_or_insert_default().latest = number;
        let Some(entry) = state.calls.find_mut(number) else { unreachable!("just begun") };
        let (assembly, refused) = match begun {
            Ok((assembly, claim)) => {
                entry.claim = Some(Box::new(claim));
                (assembly, None)
            }
            Err(reason) => (Assembly::of_no_use(total, now), Some(reason)),
        };
        let brought = self.terms.spares().boxes.lend(number, room, deadline);
        entry.stage = Stage::Arriving { assembly: Box::new(assembly), brought };
        drop(state);
        if let Some(reason) = refused {
            self.refuse(number, reason);
        }
    }

    /// What an earlier call has left that one of so many bytes can use. Of the rest no more stays than the
    /// windows have room for.
    fn kept_room(&self, number: u32, bytes: usize) -> Option<(Room, Claim)> {
        let state = &mut *self.state.borrow_mut();
        let kept = &mut state.large.as_deref_mut()?.kept;
        if kept.is_empty() {
            return None;
        }
        let used = kept.take(number, bytes, self.reactor().now());
        let under_way: usize = state.calls.iter().map(|(_, entry)| entry.cost.large_bytes() as usize).sum();
        let windows = state.account.windows();
        kept.shrink_to((windows.large_bytes as usize).saturating_sub(under_way));
        used
    }

    /// The call was withdrawn, and the next may need as much.
    fn keep_room(&self, stage: Stage, claim: Option<Box<Claim>>) {
        let (Stage::Arriving { mut assembly, .. }, Some(claim)) = (stage, claim) else { return };
        let (room, descriptors) = assembly.give_up();
        let now = self.reactor().now();
        claim.is_taken_back(now);
        let mut state = self.state.borrow_mut();
        if !state.over
            && let Some(room) = room
        {
            state.large.get_or_insert_default().kept.push(room, *claim, now);
        }
        drop(state);
        drop(descriptors);
    }

    /// Gives back what it keeps for calls to come. Says whether there was anything.
    fn give_up_kept_rooms(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let kept = state.large.as_deref_mut().map(|large| std::mem::take(&mut large.kept));
        kept.is_some_and(|kept| !kept.is_empty())
    }

    /// Memory for a large call: what is left, what sessions keep for calls to come, what is given up of calls
    /// that should be here by now, or by a session that has more of it for calls which have not arrived
    /// whole. Otherwise whoever comes first could keep all there is, a part every ten seconds, and nobody
    /// else would have a large message taken.
    fn claim(&self, number: u32, bytes: usize, now: Instant) -> Option<Claim> {
        let memory = self.terms.memory();
        let caller = Caller { session: self.client.key, number };
        loop {
            if let Some(claim) = Memory::claim(memory, caller, bytes, now) {
                return Some(claim);
            }
            if self.give_up_kept_rooms() {
                continue;
            }
            if let Some(keeper) = memory.who_keeps_one() {
                let keeper = self.mailbox.upgrade()?.session(keeper)?;
                if !keeper.session().give_up_kept_rooms() {
                    return None;
                }
                continue;
            }
            if memory.is_late_before_it_begins(caller.session, bytes, now) {
                return None;
            }
            if let Some(late) = memory.who_are_late(bytes, now) {
                for late in late {
                    let holder = self.mailbox.upgrade()?.session(late.session)?;
                    if !holder.session().give_up_late(late.number, now) {
                        return None;
                    }
                }
                continue;
            }
            let enough = memory.held_by(caller.session).checked_add(bytes)?;
            let holder = memory.who_holds_more_than(enough)?;
            let holder = self.mailbox.upgrade()?.session(holder)?;
            if !holder.session().give_up_the_largest() {
                return None;
            }
        }
    }

    /// Refuses a call that should be here by now, to make room for somebody else's. Says whether there was
    /// one. That it has kept others waiting is held against its session.
    fn give_up_late(&self, number: u32, now: Instant) -> bool {
        let state = self.state.borrow();
        let Some(claim) = state.calls.find(number).and_then(|entry| entry.claim.as_ref()) else {
            return false;
        };
        claim.is_taken_back(now);
        drop(state);
        self.refuse(number, RefusedReason::OutOfMemory);
        true
    }

    /// Refuses the largest of the calls that have not arrived whole, to make room for somebody else's. Says
    /// whether there was one.
    fn give_up_the_largest(&self) -> bool {
        let state = self.state.borrow();
        let arriving = state.calls.iter().filter(|(_, entry)| matches!(entry.stage, Stage::Arriving { .. }));
        let largest = arriving.max_by_key(|(_, entry)| entry.claim.as_ref().map_or(0, |claim| claim.bytes()));
        let Some(number) = largest.filter(|(_, entry)| entry.claim.is_some()).map(|(number, _)| number)
        else {
            return false;
        };
        drop(state);
        self.refuse(number, RefusedReason::OutOfMemory);
        true
    }

    fn part(&self, number: u32, payload: Piece<'_>) -> Result<(), Over> {
        let part_bytes_max = self.terms.hello.part_bytes_max() as usize;
        let state = &mut *self.state.borrow_mut();
        let unexpected = Malformed::Number { kind: Kind::Part, number };
        let Some(entry) = state.calls.find_mut(number) else { return Err(self.blame(&unexpected)) };
        match &mut entry.stage {
            Stage::Arriving { assembly, .. } => {
                state.large.get_or_insert_default().latest = number;
                let added = assembly.add(payload, part_bytes_max, self.socket.reactor().now());
                if added.map_err(|malformed| self.blame(&malformed))? {
                    self.has_arrived(state, number);
                }
                Ok(())
            }
            Stage::Refused { missing, .. } => {
                expect_part(payload.len(), *missing, part_bytes_max)
                    .map_err(|malformed| self.blame(&malformed))?;
                *missing -= payload.len();
                if *missing == 0 {
                    state.parts_have_ended(&mut self.terms.spares().calls, number);
                }
                Ok(())
            }
            Stage::Here | Stage::Answering => Err(self.blame(&unexpected)),
        }
    }

    fn grant(&self, number: u32, room: Size) {
        if self.is_leaving() {
            return self.refuse(number, RefusedReason::Leaving);
        }
        let granted = match self.mailbox.upgrade() {
            Some(mailbox) => mailbox.grant_to_client(&self.client),
            None => Err(RefusedReason::Leaving),
        };
        match granted {
            // That the answer leaves is up to the client from here on.
            Ok(fd) => drop(self.answer(number, room, &mut Message::default().with_descriptor(fd))),
            Err(reason) => self.refuse(number, reason),
        }
    }

    fn cancel(&self, number: u32) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        // A number that is not under way has crossed its final frame.
        let Some(entry) = state.calls.find_mut(number) else { return };
        entry.withdrawn = true;
        let waker = entry.waker.take();
        let (mut unfinished, mut claim) = (None, None);
        match &entry.stage {
            // That was the client's word for where its parts end.
            Stage::Refused { .. } => return state.parts_have_ended(&mut self.terms.spares().calls, number),
            Stage::Arriving { .. } => {
                unfinished = Some(std::mem::replace(&mut entry.stage, Stage::Here));
                claim = entry.claim.take();
                state.arriving -= 1;
            }
            Stage::Answering => {
                let stopped = state.stop_answer(number, &self.socket);
                unfinished = stopped.then_some(Stage::Answering);
            }
            Stage::Here => {}
        }
        let queued = state.queue.iter().position(|brought| brought.number == number);
        let untaken = queued.and_then(|place| state.queue.with_memory().remove(place));
        drop(borrowed);
        if untaken.is_some() || unfinished.is_some() {
            self.refuse(number, RefusedReason::Cancelled);
        }
        drop(untaken);
        unfinished.into_iter().for_each(|stage| self.keep_room(stage, claim.take()));
        wake(waker);
    }

    /// Descriptors of an answer have not arrived. Which answers had any is not remembered, only how many: so
    /// a client can say it of the wrong one, and never more often than there were.
    fn lost(&self, number: u32) -> Result<(), Over> {
        let mut state = self.state.borrow_mut();
        let is_answered =
            state.calls.find(number).is_none_or(|entry| matches!(entry.stage, Stage::Answering));
        let Some(left) = state.losable.checked_sub(1).filter(|_| is_answered) else {
            drop(state);
            return Err(self.blame(&Malformed::Number { kind: Kind::Lost, number }));
        };
        state.losable = left;
        drop(state);
        self.counters.answer_lost();
        trace::answer_lost(number, self.client.credentials.pid);
        Ok(())
    }

    // -- taking -----------------------------------------------------------------------------------------

    fn ask_for_turn(&self) {
        let mut state = self.state.borrow_mut();
        if state.over || state.queue.is_empty() || state.in_turn {
            return;
        }
        let Some(mailbox) = self.mailbox.upgrade() else { return };
        state.in_turn = true;
        drop(state);
        wake_if_any(mailbox.take_turn(self.client.key));
    }

    /// The oldest call that nobody has taken. Those whose callers have given up by now are not worth
    /// handling.
    #[inline]
    pub(crate) fn take_next(&self) -> Option<Next> {
        loop {
            let mut state = self.state.borrow_mut();
            let next = self.terms.spares().queue.pop_front_of(&mut state.queue);
            state.in_turn = !state.queue.is_empty();
            let (brought, more) = (next?, state.in_turn);
            drop(state);
            if brought.deadline.is_none_or(|deadline| deadline > self.reactor().now()) {
                return Some(Next { brought, more });
            }
            let number = brought.number;
            self.take_back(brought);
            self.refuse(number, RefusedReason::Expired);
        }
    }

    /// Whoever had the call is done with what it brought.
    #[inline]
    pub(crate) fn take_back(&self, mut brought: Box<Brought>) {
        brought.parcel.empty();
        self.terms.spares().boxes.keep(brought);
    }

    // -- final frames -----------------------------------------------------------------------------------

    /// Ends a call here that nobody waits for any more.
    fn expect_wanted(&self, number: u32) -> Result<(), AnswerError> {
        if self.reactor().is_forked() {
            self.finish(number);
            return Err(AnswerError::Forked);
        }
        if self.state.borrow().over {
            self.finish(number);
            return Err(AnswerError::Gone);
        }
        if self.is_withdrawn(number) {
            self.refuse(number, RefusedReason::Cancelled);
            return Err(AnswerError::Withdrawn);
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn answer(&self, number: u32, room: Size, message: &mut Message) -> Result<(), AnswerError> {
        if self.answer_in_a_frame(number, room, message) {
            return Ok(());
        }
        self.answer_in_any_way(number, room, message)
    }

    /// Straight through, for an answer that fits a frame and the room, to a small call that is still wanted.
    /// The message has lost its descriptors then. If anything is otherwise it says so, and has done nothing.
    #[inline]
    fn answer_in_a_frame(&self, number: u32, room: Size, message: &mut Message) -> bool {
        let (bytes, descriptors) = (message.bytes().len(), message.descriptors().len());
        let size = Size::of_bytes(bytes).and_then(|size| size.with_descriptors(descriptors));
        let Ok(size) = size else { return false };
        let fits = room.holds(size) && bytes <= self.terms.hello.payload_bytes_max() as usize;
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        if !fits || state.over || self.reactor().is_forked() {
            return false;
        }
        let mut spares = self.terms.spares();
        let Spares { calls, unsettled, .. } = &mut *spares;
        // With nothing in it that is to be dropped.
        let cost = |entry: &Entry| entry.is_small_and_wanted().then_some(entry.cost);
        let Some(cost) = state.calls.forget_if(calls, number, cost) else { return false };
        let header = wire::small_answer_header(number, size);
        let length = header.len() + bytes;
        state.said += if descriptors == 0 { length } else { length.max(REFUSED_FRAME_BYTES) } as u64;
        state.losable = state.losable.saturating_add(u32::from(descriptors > 0));
        state.unsettled.push(unsettled, state.said, cost);
        // To post may wake a host, whose waker is its own code.
        drop(spares);
        drop(borrowed);
        self.counters.answered_in(length, descriptors);
        if descriptors == 0 {
            self.socket.post_bytes(&header, message.bytes());
        } else {
            let instead = RefusedReason::OutOfDescriptors.frame(number);
            self.socket.post_with(&header, message, Otherwise::Say(&instead));
        }
        true
    }

    #[inline(never)]
    fn answer_in_any_way(&self, number: u32, room: Size, message: &mut Message) -> Result<(), AnswerError> {
        self.expect_wanted(number)?;
        let size = Size::of_bytes(message.bytes().len())
            .and_then(|size| size.with_descriptors(message.descriptors().len()));
        let Some(size) = size.ok().filter(|size| room.holds(*size)) else {
            self.refuse(number, RefusedReason::TooLarge);
            return Err(AnswerError::TooLarge);
        };
        let opening = self.terms.hello.answer_to(number, size);
        if opening.total().is_some() {
            let (bytes, descriptors) = std::mem::take(message).into_bytes_and_descriptors();
            self.answer_in_parts(&opening, bytes, descriptors);
            return Ok(());
        }
        self.counters.answered();
        self.say_or_refuse(number, &opening.encode(), message);
        self.finish(number);
        Ok(())
    }

    /// Somebody else will answer, who has the far end that this gives back.
    pub(crate) fn hand_on(&self, number: u32) -> Result<OwnedFd, AnswerError> {
        self.expect_wanted(number)?;
        let Ok((near, far)) = pair(self.reactor()) else {
            self.refuse(number, RefusedReason::OutOfDescriptors);
            return Err(AnswerError::OutOfDescriptors);
        };
        // If the near end cannot be sent it is closed, and so is the far end for whoever has it.
        let mut message = Message::default().with_descriptor(Fd::made_here(near));
        self.say_or_refuse(number, &Header::elsewhere(number).encode(), &mut message);
        self.counters.otherwise(|calls| calls.handed_on += 1);
        self.mailbox.upgrade().iter().for_each(|mailbox| mailbox.is_handed_on());
        self.finish(number);
        Ok(far)
    }

    /// The companion sends the parts, and the call has ended with the last of them.
    fn answer_in_parts(&self, opening: &Opening, bytes: Bytes, descriptors: Vec<Fd>) {
        let number = opening.header.number;
        let frame = opening.encode();
        // No part goes before it is known that the opening frame has gone; without descriptors it always
        // does.
        let opened = if descriptors.is_empty() {
            self.say(&frame);
            None
        } else {
            let mut message = Message::new(&*frame);
            descriptors.into_iter().for_each(|fd| message.push_descriptor(fd));
            let mut state = self.state.borrow_mut();
            state.said += frame.len() as u64;
            state.losable = state.losable.saturating_add(1);
            drop(state);
            self.counters.sent(frame.len(), message.descriptors().len());
            Some(self.socket.send(message))
        };
        let mut state = self.state.borrow_mut();
        state.large.get_or_insert_default().outbox.push(number, bytes, opened);
        if let Some(entry) = state.calls.find_mut(number) {
            entry.stage = Stage::Answering;
        }
        let companion = state.waker.clone();
        drop(state);
        wake(companion);
    }

    fn is_answering(&self, number: u32) -> bool {
        let state = self.state.borrow();
        state.calls.find(number).is_some_and(|entry| matches!(entry.stage, Stage::Answering))
    }

    /// Nobody will answer.
    pub(crate) fn drop_call(&self, number: u32) {
        if self.is_withdrawn(number) {
            return self.refuse(number, RefusedReason::Cancelled);
        }
        if !self.is_over() {
            self.counters.otherwise(|calls| calls.dropped += 1);
        }
        self.say(&Header::dropped(number).encode());
        self.finish(number);
    }

    pub(crate) fn refuse(&self, number: u32, reason: RefusedReason) {
        if !self.is_over() {
            self.counters.otherwise(|calls| calls.count_refusal(reason));
        }
        self.say(&reason.frame(number));
        self.finish(number);
    }

    /// Says a whole frame.
    fn say(&self, frame: &[u8]) {
        self.say_whole(frame, &[]);
    }

    fn say_whole(&self, header: &[u8], payload: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.over {
            return;
        }
        let bytes = header.len() + payload.len();
        state.said += bytes as u64;
        drop(state);
        self.counters.sent(bytes, 0);
        self.socket.post(&[header, payload], Vec::new());
    }

    /// Says a final frame, in whose place the call is refused if its descriptors cannot be sent.
    fn say_or_refuse(&self, number: u32, header: &[u8], message: &mut Message) {
        if message.descriptors().is_empty() {
            return self.say_whole(header, message.bytes());
        }
        let mut state = self.state.borrow_mut();
        if state.over {
            return;
        }
        let bytes = header.len() + message.bytes().len();
        // As much as may wait in its place: a refusal is a byte longer than an ELSEWHERE or an empty answer,
        // and with that byte not counted the frame before it would seem not to have left. Its caller, who has
        // read it and calls again, was disconnected for not reading.
        state.said += bytes.max(REFUSED_FRAME_BYTES) as u64;
        state.losable = state.losable.saturating_add(1);
        drop(state);
        self.counters.sent(bytes, message.descriptors().len());
        let instead = RefusedReason::OutOfDescriptors.frame(number);
        self.socket.post_with(header, message, Otherwise::Say(&instead));
    }

    /// The final frame has been said. What the call took is given back when the frame has left, not now: a
    /// client that calls and never reads could otherwise make us keep as many answers, and descriptors in
    /// them, as it likes.
    fn finish(&self, number: u32) {
        let left = self.state.borrow_mut().finish(number, &self.terms);
        // Of whoever asked to hear of a withdrawal, and the share of the memory for large calls.
        drop(left);
    }

    /// Gives back what calls took whose final frames have left.
    fn settle(&self) {
        let mut state = self.state.borrow_mut();
        if !state.unsettled.is_empty() {
            state.settle(self.socket.unsent(), &self.terms);
        }
    }

    // -- withdrawal -------------------------------------------------------------------------------------

    pub(crate) fn is_withdrawn(&self, number: u32) -> bool {
        let state = self.state.borrow();
        state.over || state.calls.find(number).is_none_or(|entry| entry.withdrawn)
    }

    pub(crate) fn poll_withdrawn(&self, number: u32, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.over {
            return Poll::Ready(());
        }
        let old = match state.calls.find_mut(number) {
            Some(entry) if !entry.withdrawn => entry.waker.replace(context.waker().clone()),
            _ => return Poll::Ready(()),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    // -- the end ----------------------------------------------------------------------------------------

    /// The client is gone, or shall be: handlers notice, and nothing is sent any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        let cut_off = state.calls.len() as u64;
        self.counters.cut_off(cut_off);
        let queue = std::mem::take(&mut state.queue);
        let (mut large, unread) = (state.large.take(), state.unread.take());
        let next = large.as_mut().and_then(|large| self.terms.memory().huge_pages().leave(&mut large.ticket));
        state.arriving = 0;
        let woken: Vec<Waker> = state.calls.values_mut().filter_map(|entry| entry.waker.take()).collect();
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        self.socket.shut_down();
        drop((queue, large, unread, calls));
        if let Some(memory) = self.terms.memory.get() {
            memory.forget(self.client.key);
        }
        wake(woken.into_iter().chain(next));
    }

    /// No more calls are taken: what nobody has taken is refused, what was taken can still be answered.
    pub(crate) fn leave(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.leaving, true) {
            return;
        }
        let mut queue = std::mem::take(&mut state.queue);
        let arriving =
            |(number, entry): (u32, &Entry)| matches!(entry.stage, Stage::Arriving { .. }).then_some(number);
        let arriving: Vec<u32> = state.calls.iter().filter_map(arriving).collect();
        drop(state);
        while let Some(brought) = queue.pop_front() {
            let number = brought.number;
            drop(brought);
            self.refuse(number, RefusedReason::Leaving);
        }
        arriving.into_iter().for_each(|number| self.refuse(number, RefusedReason::Leaving));
        self.say(&Header::goodbye().encode());
    }
}

impl Drop for Session {
    /// Nobody has a call to answer any more. What has been answered still goes out.
    fn drop(&mut self) {
        let part_bytes_max = self.terms.hello.part_bytes_max() as usize;
        if let Some(large) = &mut self.state.get_mut().large {
            large.outbox.hand_over(&self.socket, part_bytes_max);
            // Those behind it in line are of sessions that go on.
            let next = self.terms.memory().huge_pages().leave(&mut large.ticket);
            wake(next);
        }
    }
}

impl State {
    /// What is begun and not done, and when a packet was last read where it arrived.
    fn take_begun(&mut self) -> (Begun, Option<Box<Unread>>, u32) {
        (std::mem::take(&mut self.begun), self.unread.take(), self.read_in)
    }

    /// Gives back what calls took whose final frames have left, with so many bytes that still wait.
    fn settle(&mut self, unsent: usize, terms: &Terms) {
        let unsent = unsent as u64;
        if unsent == 0 {
            // Of an answer and the refusal sent in its place the longer is counted, so that more may seem to
            // have left than has. Where nothing waits the count is right again.
            self.said = 0;
            self.emptied += 1;
            self.account.release(self.unsettled.take_until(u64::MAX, terms));
        } else {
            let left = self.said.saturating_sub(unsent);
            self.account.release(self.unsettled.take_until(left, terms));
        }
    }

    /// A final frame ends here in what was said. Gives what is to be dropped when nothing is borrowed.
    #[inline]
    fn finish(&mut self, number: u32, terms: &Terms) -> Option<(Option<Waker>, Option<Box<Claim>>)> {
        let entry = self.calls.find_mut(number)?;
        let said = self.said;
        if let Stage::Arriving { assembly, .. } = &entry.stage {
            let refused = Stage::Refused { missing: assembly.missing(), said, emptied: self.emptied };
            entry.stage = refused;
            self.arriving -= 1;
            return Some((None, entry.claim.take()));
        }
        let (cost, waker, claim) = (entry.cost, entry.waker.take(), entry.claim.take());
        let mut spares = terms.spares();
        self.calls.forget(&mut spares.calls, number);
        self.unsettled.push(&mut spares.unsettled, said, cost);
        Some((waker, claim))
    }

    /// No more parts of this answer. One that waits is taken back, and was not said: otherwise it would seem
    /// to have left, and as much with it of what waits. A client that withdraws one answer after the other
    /// could have any number of others kept for it, unread. Says whether parts were still to come.
    fn stop_answer(&mut self, number: u32, socket: &Socket) -> bool {
        let unsent = socket.unsent();
        let stopped = self.large.as_mut().is_some_and(|large| large.outbox.stop(number));
        let taken_back = (unsent - socket.unsent()) as u64;
        if taken_back == 0 {
            return stopped;
        }
        // A part that was with the driver when all that had been said was given back counts as gone already.
        self.said = self.said.saturating_sub(taken_back);
        let part_end = self.large.as_ref().map_or(0, |large| large.part_end);
        let behind = self.unsettled.ends_mut();
        let refused = self.calls.values_mut().filter_map(|entry| match &mut entry.stage {
            Stage::Refused { said, emptied, .. } if *emptied == self.emptied => Some(said),
            _ => None,
        });
        for end in behind.chain(refused).filter(|end| **end >= part_end) {
            *end = end.saturating_sub(taken_back);
        }
        stopped
    }

    /// The client has said where the parts of a refused call end, and with that the number is free. The
    /// call's share is given back when its refusal, said before this, has left.
    fn parts_have_ended(&mut self, spare: &mut SpareRows<Entry>, number: u32) {
        let Some(Entry { cost, stage: Stage::Refused { said, emptied, .. }, .. }) =
            self.calls.remove(spare, number)
        else {
            unreachable!("asked of refused calls only")
        };
        let said = if emptied == self.emptied { said } else { 0 };
        self.unsettled.insert(said, cost);
    }
}

/// Final frames that may not have left, in order: where they end in what was said, and what they give back.
///
/// Mostly there is one, which stands here: a session that rests remembers its last answer until the next call
/// comes, and would have a queue for it all that time.
#[derive(Default)]
struct Unsettled {
    first: Option<(u64, Cost)>,
    /// What came after it.
    later: Queue<(u64, Cost)>,
}

impl Unsettled {
    #[inline]
    fn is_empty(&self) -> bool {
        self.first.is_none() && self.later.is_empty()
    }

    /// One that ends behind all others.
    #[inline]
    fn push(&mut self, spare: &mut Spare<(u64, Cost)>, end: u64, cost: Cost) {
        if self.is_empty() {
            self.first = Some((end, cost));
        } else {
            spare.lend(&mut self.later).push_back((end, cost));
        }
    }

    /// One that ends anywhere.
    fn insert(&mut self, end: u64, cost: Cost) {
        let later = self.later.with_memory();
        self.first.take().into_iter().for_each(|first| later.push_front(first));
        let place = later.partition_point(|(other, _)| *other <= end);
        later.insert(place, (end, cost));
    }

    /// What is given back by those that end here or before.
    #[inline]
    fn take_until(&mut self, left: u64, terms: &Terms) -> Cost {
        let first = self.first.take_if(|(end, _)| *end <= left);
        let cost = first.map_or(Cost::NOTHING, |(_, cost)| cost);
        match self.later.memory() {
            Some(_) if self.first.is_none() => cost.and(self.take_later_until(left, terms)),
            _ => cost,
        }
    }

    fn take_later_until(&mut self, left: u64, terms: &Terms) -> Cost {
        let mut all = Cost::NOTHING;
        while let Some(&(end, cost)) = self.later.front()
            && end <= left
        {
            self.later.pop_front();
            all = all.and(cost);
        }
        terms.spares().unsettled.keep(&mut self.later);
        all
    }

    fn ends_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.first.iter_mut().chain(self.later.iter_mut()).map(|(end, _)| end)
    }
}

/// A call whose turn it is.
pub(crate) struct Next {
    pub(crate) brought: Box<Brought>,
    /// There are others behind it: then this session's turn comes again.
    pub(crate) more: bool,
}

/// Two ends to give away.
fn pair(reactor: &Reactor) -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = Socket::pair(reactor, ring::Kind::SeqPacket)?;
    let near = near.into_fd().map_err(|_| io::Error::other("a fresh socket is in use"))?;
    Ok((near, far))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn terms(reactor: &Reactor) -> Rc<Terms> {
        Terms::new(reactor, Hello::default(), Duration::MAX, 0)
    }

    fn cost(of_so_many: u64) -> Cost {
        (0..of_so_many).fold(Cost::NOTHING, |all, _| all.and(Cost::of_grant()))
    }

    #[test]
    fn mailboxes_of_one_reactor_have_their_spares_in_common() {
        let (reactor, other) = (Reactor::new().unwrap(), Reactor::new().unwrap());
        let (first, second) = (terms(&reactor), terms(&reactor));
        assert!(Rc::ptr_eq(&first.spares, &second.spares));
        assert!(!Rc::ptr_eq(&first.spares, &terms(&other).spares));
    }

    #[test]
    fn what_answers_took_is_given_back_by_where_they_end() {
        let terms = terms(&Reactor::new().unwrap());
        let mut unsettled = Unsettled::default();
        for end in [10, 20, 40] {
            unsettled.push(&mut terms.spares().unsettled, end, cost(end));
        }
        unsettled.insert(30, cost(30));
        unsettled.insert(5, cost(5));
        assert_eq!(unsettled.ends_mut().map(|end| *end).collect::<Vec<_>>(), [5, 10, 20, 30, 40]);
        assert_eq!(unsettled.take_until(4, &terms), Cost::NOTHING);
        assert_eq!(unsettled.take_until(29, &terms), cost(5).and(cost(10)).and(cost(20)));
        assert!(!unsettled.is_empty());
        unsettled.push(&mut terms.spares().unsettled, 50, cost(50));
        assert_eq!(unsettled.take_until(u64::MAX, &terms), cost(30).and(cost(40)).and(cost(50)));
        assert!(unsettled.is_empty());
    }

    /// One that rests remembers its last answer, and has no queue for it.
    #[test]
    fn a_single_answer_takes_no_memory_and_a_queue_goes_back() {
        let terms = terms(&Reactor::new().unwrap());
        let mut unsettled = Unsettled::default();
        unsettled.push(&mut terms.spares().unsettled, 10, cost(1));
        assert!(unsettled.later.memory().is_none());
        unsettled.push(&mut terms.spares().unsettled, 20, cost(1));
        assert!(unsettled.later.memory().is_some());
        unsettled.take_until(20, &terms);
        assert!(unsettled.is_empty() && unsettled.later.memory().is_none());
    }
}
