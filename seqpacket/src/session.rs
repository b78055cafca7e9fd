//! The client's side of a session: numbers, windows and outcomes.
//!
//! It owns the socket of the session and what is known of each call under way. A companion of the reactor
//! attaches, receives and files outcomes, whoever polls which call; the calls' futures only look here. Each
//! number ends once: with the final frame, or with the session. It never knows what a message means.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use imc::{ConnectError, ConnectedSocket, SocketAddress};
use ring::{
    Companion, Descriptors, Message, Otherwise, Queue, Reactor, Reader, Reading, ReceiveError, Received,
    SendError, Sending, Socket,
};

use crate::credit::{Account, Cost, Short};
use crate::error::{CallError, Part};
use crate::object::{CALLS_QUEUED_MAX, ObjectOptions};
use crate::parcel::{Packet, Parcel};
use crate::parts::{Assembly, Left, OutOfMemory, Outbox, Watch};
use crate::rooms::Piece;
use crate::slots::{Asked, Elsewhere, Outgoing, Slots, Stage, UnderWay};
use crate::stats::Counters;
use crate::waiting::{Place, Waiting, Woken, wake};
use crate::wire::{
    self, Arrived, Body, FromServer, HEADER_BYTES, Header, Hello, Kind, Malformed, Opening, PACKET_BYTES_MAX,
    PAYLOAD_BYTES_MAX, RefusedReason, Resource, Size, Windows,
};

/// Voids in the queue are swept out when they are so many, and more than half of it.
const VOIDS_KEPT_MAX: usize = 32;

/// A session and the companion that serves it: held by the object and by every call.
pub(crate) struct Attached {
    session: Rc<Session>,
    reactor: Reactor,
    _companion: Companion,
}

impl Attached {
    pub(crate) fn begin(
        reactor: &Reactor,
        address: Rc<SocketAddress>,
        options: ObjectOptions,
        counters: Rc<Counters>,
    ) -> Rc<Attached> {
        let state = RefCell::new(State { counters, ..State::default() });
        let session = Rc::new(Session { options, state });
        let companion = reactor.companion(Serving::new(Rc::clone(&session), address));
        Rc::new(Attached { session, reactor: reactor.clone(), _companion: companion })
    }

    pub(crate) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }
}

pub(crate) struct Session {
    options: ObjectOptions,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Those of all sessions of the object.
    counters: Rc<Counters>,
    phase: Phase,
    calls: Slots,
    /// Calls that have not been sent, in order, and voids.
    queued: Queue<usize>,
    /// How many of the queued are void.
    voids: usize,
    /// How many large answers have begun and are not complete.
    arriving: usize,
    /// While something large is under way.
    large: Option<Box<Large>>,
    /// How many calls are sent or withdrawn, and so await a final frame.
    under_way: usize,
    /// Descriptors reserved for answers under way.
    awaited: usize,
    /// The server takes no more calls.
    leaving: bool,
    /// Sends whose failure somebody may have to hear of, and of which call: those in packets of their own.
    sendings: Vec<(Option<usize>, Sending)>,
    /// How many calls with descriptors were posted. Begins anew after the last number.
    posted: u32,
    /// Of the companion.
    waker: Option<Waker>,
    /// Of the packet that the companion receives next.
    filed: Straight,
    /// Those who wait for the attachment only.
    attaching: Waiting,
}

/// What only large messages need.
#[derive(Default)]
struct Large {
    /// Calls that only wait for room for large messages, in order. The small ones behind them do not.
    queued: VecDeque<usize>,
    /// Calls on their way.
    outbox: Outbox,
    /// For answers that are arriving.
    watch: Watch,
    /// Which of them began last, or has had the last part.
    latest: u32,
}

#[derive(Default)]
enum Phase {
    /// Connecting, or waiting for HELLO.
    #[default]
    Attaching,
    Open {
        socket: Rc<Socket>,
        hello: Hello,
        account: Account,
    },
    /// Why nothing can be called any more.
    Over(End),
}

#[derive(Clone, Copy)]
enum End {
    Gone,
    Malformed,
    OutOfDescriptors,
    /// A large answer stood still.
    Stalled,
    /// This is a forked child of the process whose session it is.
    Forked,
    /// The kernel's number for it.
    Io(i32),
}

impl End {
    /// For a call that has not been sent.
    fn unsent(self) -> CallError {
        match self {
            End::Gone | End::Stalled => CallError::Gone,
            End::Malformed => CallError::Malformed("not a session of this protocol"),
            End::OutOfDescriptors => CallError::OutOfDescriptors(Part::Call),
            End::Forked => CallError::Forked,
            End::Io(errno) => CallError::Io(std::io::Error::from_raw_os_error(errno)),
        }
    }

    /// For a call that may have been seen.
    fn sent(self) -> CallError {
        match self {
            End::Gone | End::OutOfDescriptors => CallError::Dropped,
            End::Malformed => CallError::Malformed("the server has broken the protocol"),
            End::Stalled => CallError::Malformed("the server has stopped in the middle of an answer"),
            End::Forked | End::Io(_) => self.unsent(),
        }
    }

    fn of_kernel(error: &std::io::Error) -> End {
        error.raw_os_error().map_or(End::Gone, End::Io)
    }
}

impl Asked {
    /// The frame that asks, on the session of this HELLO; `None` when its time is over.
    #[inline]
    fn opening(self, number: u32, hello: &Hello, reactor: &Reactor) -> Option<Opening> {
        match self {
            Asked::Call { message, room, deadline } => {
                let left = deadline.map(|deadline| deadline.saturating_duration_since(reactor.now()));
                let opening = hello.call(number, message, room, left);
                (left != Some(Duration::ZERO)).then_some(opening)
            }
            Asked::Grant => Some(Header::grant(number).into()),
        }
    }
}

/// How much of a packet was filed at once.
#[derive(Clone, Copy, Default)]
struct Straight {
    frames: usize,
    bytes: usize,
    /// Those of the packet, if one of the frames has them.
    descriptors: usize,
}

impl Straight {
    /// Where to go on in a packet with which these came besides those that have been filed.
    fn end(self, arrived: Arrived) -> wire::Place {
        if self.descriptors > 0 {
            wire::Place::behind_descriptors(self.bytes)
        } else {
            wire::Place::after(self.bytes, arrived)
        }
    }
}

/// What there is to be told of a call at once.
pub(crate) enum Glance {
    /// It has ended with an answer, which nobody has taken.
    Answered,
    /// Nothing has come, and the waker is kept.
    Waits,
    /// Ask [further](Session::poll_unanswered).
    Otherwise,
}

/// Whether a call can be sent.
enum Verdict {
    /// So.
    Now(Opening, Cost),
    Later,
    /// Only room for large messages is missing.
    LaterLarge,
    Never(CallError),
}

impl Session {
    // -- calling ----------------------------------------------------------------------------------------

    /// A call without a deadline, if it goes [straight](State::send_straight).
    #[inline]
    pub(crate) fn call_straight(&self, message: &mut Message, room: Size) -> Option<usize> {
        self.state.borrow_mut().send_straight(message, room, &self.options)
    }

    /// Any call. Takes the message only if it has to wait, or has more than bytes.
    pub(crate) fn call(
        &self,
        message: &mut Message,
        room: Size,
        deadline: Option<Instant>,
    ) -> Result<usize, CallError> {
        let asked = call_of(message, room, deadline)?;
        self.enqueue(asked, message)
    }

    pub(crate) fn grant(&self) -> Result<usize, CallError> {
        self.enqueue(Asked::Grant, &mut Message::default())
    }

    fn enqueue(&self, asked: Asked, message: &mut Message) -> Result<usize, CallError> {
        let mut state = self.state.borrow_mut();
        if let Phase::Over(end) = &state.phase {
            return Err(end.unsent());
        }
        if state.leaving {
            return Err(CallError::Gone);
        }
        if state.queued.len() - state.voids + state.queued_large() >= CALLS_QUEUED_MAX {
            return Err(CallError::WouldBlock);
        }
        let key = state.calls.vacant_key();
        let number = u32::try_from(key).expect("fewer than 2^32 calls under way");
        let mut woken = Woken::default();
        if state.queued.is_empty() && state.queued_large() == 0 {
            // Nothing waits before it, so mostly it goes now.
            if let Verdict::Now(opening, cost) = state.judge(number, asked, &self.options) {
                state.calls.insert(Stage::Sent(UnderWay::new(&opening, cost)));
                state.send(key, &opening, cost, message, &mut woken);
                drop(state);
                wake(woken);
                return Ok(key);
            }
        }
        let outgoing = Outgoing { message: std::mem::take(message), number, asked };
        state.calls.insert(Stage::Queued(Box::new(outgoing)));
        state.queued.with_memory().push_back(key);
        let woken = state.advance(&self.options);
        drop(state);
        wake(woken);
        Ok(key)
    }

    /// Whether a call would have to wait. What can never be sent need not: the call itself says so.
    pub(crate) fn would_wait(&self, message: &Message, room: Size) -> bool {
        let state = self.state.borrow();
        let Ok(asked) = call_of(message, room, None) else { return false };
        if state.queued.len() > state.voids {
            return true;
        }
        match state.judge(0, asked, &self.options) {
            Verdict::Later | Verdict::LaterLarge => true,
            // Large calls do not overtake one another.
            Verdict::Now(_, cost) => cost.large_bytes() > 0 && state.queued_large() > 0,
            Verdict::Never(_) => false,
        }
    }

    /// Looks at a call, of which mostly nothing is to be told but whether the answer is here.
    #[inline]
    pub(crate) fn glance(&self, key: usize, waker: &Waker) -> Glance {
        let slot = &mut self.state.borrow_mut().calls[key];
        match (&slot.stage, &slot.waker) {
            (Stage::Answered, _) => Glance::Answered,
            (Stage::Sent(_), None) => {
                slot.waker = Some(waker.clone());
                Glance::Waits
            }
            (Stage::Sent(_), Some(known)) if known.will_wake(waker) => Glance::Waits,
            _ => Glance::Otherwise,
        }
    }

    /// Takes the answer, with which the number is free.
    #[inline]
    pub(crate) fn take_answer(&self, key: usize) -> Parcel {
        // Whoever waited was woken by the answer; there is no waker in the slot.
        self.state.borrow_mut().calls.take_answer(key)
    }

    /// How a call ends of which a [glance](Session::glance) does not tell.
    pub(crate) fn poll_unanswered(
        &self,
        key: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Parcel, CallError>> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.calls[key];
        if let Stage::Elsewhere(elsewhere) = &slot.stage {
            let elsewhere = elsewhere.clone();
            drop(state);
            return self.poll_elsewhere(key, &elsewhere, context);
        }
        if let Stage::Failed(under_way, _) = slot.stage {
            let waker = slot.waker.take();
            let stage = std::mem::replace(&mut slot.stage, Stage::Withdrawn(under_way));
            drop(state);
            drop(waker);
            let Stage::Failed(_, error) = stage else { unreachable!("looked at above") };
            return Poll::Ready(Err(*error));
        }
        if let Stage::Ended(_) = slot.stage {
            let waker = slot.waker.take();
            let stage = state.calls.remove(key);
            drop(state);
            drop(waker);
            let Stage::Ended(error) = stage else { unreachable!("looked at above") };
            return Poll::Ready(Err(*error));
        }
        let known = slot.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        let old = if known { None } else { slot.waker.replace(context.waker().clone()) };
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// As a call of a plain object from here on: one packet, or the end of file.
    fn poll_elsewhere(
        &self,
        key: usize,
        elsewhere: &Elsewhere,
        context: &mut Context<'_>,
    ) -> Poll<Result<Parcel, CallError>> {
        elsewhere.near.poll_receive(context).map(|received| {
            let mut state = self.state.borrow_mut();
            if let Err(ReceiveError::DescriptorsLost(_)) = received {
                // Whoever has answered cannot be told, and whoever let it answer can.
                state.say_lost(key as u32);
            }
            let waker = state.calls[key].waker.take();
            let stage = state.calls.remove(key);
            state.awaited -= elsewhere.room.descriptors();
            let woken = state.advance(&self.options);
            drop(state);
            drop((waker, stage));
            wake(woken);
            match received {
                Ok(packet) if packet.bytes().len() > elsewhere.room.bytes() => {
                    Err(CallError::TooLarge(Part::Answer))
                }
                Ok(packet) => Ok(Parcel::whole(packet)),
                // Longer than a packet, and so than any room.
                Err(ReceiveError::Truncated(_)) => Err(CallError::TooLarge(Part::Answer)),
                Err(ReceiveError::DescriptorsLost(_)) => Err(CallError::DescriptorsLost(Part::Answer)),
                Err(ReceiveError::Forked) => Err(CallError::Forked),
                Err(ReceiveError::Io(error)) => Err(CallError::Io(error)),
                Err(_) => Err(CallError::Dropped),
            }
        })
    }

    pub(crate) fn withdraw(&self, key: usize) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let slot = &mut state.calls[key];
        let waker = slot.waker.take();
        let (mut removed, mut answer, mut given_up) = (None, None, None);
        match slot.stage {
            Stage::Queued(_) => {
                if state.large.as_mut().is_some_and(|large| large.forget_queued(key)) {
                    removed = Some(state.calls.remove(key));
                } else {
                    removed = Some(std::mem::replace(&mut slot.stage, Stage::Void));
                    state.voids += 1;
                    state.sweep();
                }
            }
            Stage::Answered => {
                answer = Some(state.calls.take_answer(key));
            }
            Stage::Ended(_) => removed = Some(state.calls.remove(key)),
            // The near end is private: whoever has the far end sees at once that it is dropped.
            Stage::Elsewhere(Elsewhere { room, .. }) => {
                removed = Some(state.calls.remove(key));
                state.awaited -= room.descriptors();
            }
            Stage::Sent(under_way) => {
                slot.stage = Stage::Withdrawn(under_way);
                let number = under_way.number;
                given_up = slot.arriving.as_mut().map(|assembly| assembly.give_up());
                state.large.as_mut().map(|large| large.outbox.stop(number));
                state.cancel(number);
            }
            Stage::Failed(under_way, _) => {
                removed = Some(std::mem::replace(&mut slot.stage, Stage::Withdrawn(under_way)));
            }
            Stage::Free(_) | Stage::Void | Stage::Withdrawn(_) => unreachable!("withdrawn once"),
        }
        // It may have been the one that kept the others waiting.
        let woken = state.advance(&self.options);
        drop(borrowed);
        drop((waker, removed, answer, given_up));
        wake(woken);
    }

    /// The other side breaks the protocol.
    fn blame(&self, malformed: &Malformed) -> End {
        self.state.borrow().counters.malformed(malformed);
        End::Malformed
    }

    /// How much may be under way, and how much of that is free.
    pub(crate) fn windows(&self) -> Option<(Windows, Windows)> {
        match &self.state.borrow().phase {
            Phase::Open { account, .. } => Some((account.windows(), account.free())),
            _ => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Open { .. })
    }

    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.leaving || matches!(state.phase, Phase::Over(_))
    }

    fn poll_attached(&self, place: &mut Place, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let mut state = self.state.borrow_mut();
        let old = match &state.phase {
            Phase::Open { .. } => return Poll::Ready(Ok(())),
            Phase::Over(end) => return Poll::Ready(Err(end.unsent())),
            Phase::Attaching => state.attaching.keep(place, context.waker()),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    // -- what the companion does ------------------------------------------------------------------------

    /// The first packet must begin with HELLO.
    fn open(&self, socket: &Rc<Socket>, packet: Received) -> Result<(), Malformed> {
        let mut state = self.state.borrow_mut();
        let mut frames = wire::frames(packet.bytes(), Arrived::Whole(packet.descriptors()));
        let first = frames.next().expect("a packet has a frame or an error")?;
        let FromServer::Hello(hello) = first.from_server()? else {
            return Err(Malformed::WrongSide(first.header.kind));
        };
        let mut account = Account::new(hello.windows);
        for frame in frames {
            // A server may say more in the packet of its HELLO: larger windows, or that it is leaving.
            let frame = frame?;
            match frame.from_server()? {
                FromServer::Goodbye if !state.leaving => state.leaving = true,
                FromServer::Credit(windows) => account.grow(windows)?,
                _ => return Err(Malformed::WrongSide(frame.header.kind)),
            }
        }
        state.counters.opened();
        state.counters.received(1, packet.bytes().len(), 0);
        state.phase = Phase::Open { socket: Rc::clone(socket), hello, account };
        let mut woken = Woken::default();
        woken.extend(state.attaching.take_all());
        woken.extend(state.advance(&self.options));
        drop(state);
        wake(woken);
        Ok(())
    }

    /// Files what a packet says, of which so much is filed already, then sends what there is room for now.
    /// Says whether all there is to do after that is to receive.
    fn file(&self, mut packet: Received, cut: bool, filed: Straight) -> Result<bool, Malformed> {
        let mut woken = Woken::default();
        let mut state = self.state.borrow_mut();
        let straight = match filed.frames {
            0 if cut => Straight::default(),
            0 => {
                let (bytes, descriptors) = packet.lying();
                state.file_straight(bytes, descriptors, |waker| woken.push(waker))
            }
            _ => filed,
        };
        if straight.bytes < packet.bytes().len() || packet.descriptors() > 0 || straight.frames == 0 {
            drop(state);
            return self.file_rest(packet, cut, straight, woken);
        }
        state.counters.answers_arrived(straight.frames, straight.bytes, straight.descriptors);
        self.send_after(Ok(()), state, woken)
    }

    /// Files a packet from where something else begins than the answers that most packets hold.
    fn file_rest(
        &self,
        mut packet: Received,
        cut: bool,
        straight: Straight,
        mut woken: Woken,
    ) -> Result<bool, Malformed> {
        if packet.landed() > 0 {
            return self.file_landed(&packet);
        }
        let mut descriptors = Parcel::of_descriptors(packet.take_list());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        let packet = Packet::new(packet);
        let mut state = self.state.borrow_mut();
        let mut result = Ok(());
        let mut frames = straight.frames;
        state.counters.answers(frames);
        let came = straight.descriptors + descriptors.descriptors();
        for frame in wire::frames_from(packet.bytes(), straight.end(arrived)) {
            frames += 1;
            result = frame.and_then(|frame| {
                state.admits(&frame.opening())?;
                state.frame(frame.from_server()?, &packet, &mut descriptors, &mut woken)
            });
            if result.is_err() {
                break;
            }
        }
        state.counters.received(frames, packet.bytes().len(), came);
        self.send_after(result, state, woken)
    }

    /// Sends what there is room for, now that a packet is filed. Says whether all there is to do after that
    /// is to receive.
    fn send_after(
        &self,
        filed: Result<(), Malformed>,
        mut state: RefMut<'_, State>,
        mut woken: Woken,
    ) -> Result<bool, Malformed> {
        // Whoever breaks the protocol is not sent anything more.
        if filed.is_ok() {
            woken.extend(state.advance(&self.options));
        }
        let quiet = state.is_quiet();
        drop(state);
        wake(woken);
        filed.map(|()| quiet)
    }

    /// Files the parts of a large answer that are in the queue.
    fn take_parts(&self) {
        let mut woken = Woken::default();
        self.state.borrow_mut().take_parts(&mut woken);
        wake(woken);
    }

    /// Files a packet that is a part and nothing else, and has been received where it belongs.
    fn file_landed(&self, packet: &Received) -> Result<bool, Malformed> {
        let mut woken = Woken::default();
        let mut state = self.state.borrow_mut();
        let number = wire::part_landed(packet.bytes());
        state.counters.received(1, packet.bytes().len() + packet.landed(), 0);
        let result = state.part(number, Piece::Landed(packet.landed()), &mut woken);
        self.send_after(result, state, woken)
    }

    /// The session is over: everybody is told, once.
    fn end(&self, end: End) {
        let mut state = self.state.borrow_mut();
        if let Phase::Over(_) = state.phase {
            return;
        }
        let phase = std::mem::replace(&mut state.phase, Phase::Over(end));
        // What this session could not send another may.
        let unsent = match (&phase, end) {
            (_, End::Forked) => end,
            (Phase::Open { .. }, _) => End::Gone,
            _ => end,
        };
        let mut woken = Woken::default();
        woken.extend(state.attaching.take_all());
        let sendings = std::mem::take(&mut state.sendings);
        state.queued = Queue::new();
        state.voids = 0;
        let cut_off = std::mem::take(&mut state.under_way) as u64;
        state.counters.cut_off(cut_off);
        state.arriving = 0;
        let large = state.large.take();
        let holds = |number| large.as_ref().is_some_and(|large| large.outbox.holds(number));
        let mut removed = Vec::new();
        let mut given_up = Vec::new();
        for key in state.calls.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let slot = &mut state.calls[key];
            given_up.extend(slot.arriving.take());
            let error = match &slot.stage {
                // Whoever answers elsewhere does so without this session.
                Stage::Answered | Stage::Ended(_) | Stage::Elsewhere(_) => continue,
                Stage::Failed(under_way, _) => {
                    let withdrawn = Stage::Withdrawn(*under_way);
                    let Stage::Failed(_, error) = std::mem::replace(&mut slot.stage, withdrawn) else {
                        unreachable!("looked at above")
                    };
                    error
                }
                Stage::Queued(_) => Box::new(unsent.unsent()),
                // Nobody sees a call before it is whole.
                Stage::Sent(_) if holds(key as u32) => Box::new(unsent.unsent()),
                Stage::Sent(_) => Box::new(end.sent()),
                Stage::Void | Stage::Withdrawn(_) => {
                    removed.push(state.calls.remove(key));
                    continue;
                }
                Stage::Free(_) => unreachable!("those are left out"),
            };
            removed.push(std::mem::replace(&mut slot.stage, Stage::Ended(error)));
            woken.extend(slot.waker.take());
        }
        drop(state);
        drop((phase, sendings, removed, large, given_up));
        wake(woken);
    }

    /// Sees to it that the companion is woken. `None` if nothing is left to wait for: the server has said
    /// goodbye, and the last call it had has ended. Otherwise says whether all there is to do is to receive.
    #[inline]
    fn look(&self, waker: &Waker) -> Option<bool> {
        let mut state = self.state.borrow_mut();
        if state.leaving && state.under_way == 0 {
            return None;
        }
        let quiet = state.is_quiet();
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            let old = state.waker.replace(waker.clone());
            drop(state);
            drop(old);
        }
        Some(quiet)
    }

    /// Looks after sends that may fail for their descriptors, and sends the next part of a large call. Calls
    /// that wait may have been given room by one that could not be sent.
    #[inline(never)]
    fn look_after_sends(&self, socket: &Socket, context: &mut Context<'_>) {
        let mut sendings = std::mem::take(&mut self.state.borrow_mut().sendings);
        let mut failed = Vec::new();
        sendings.retain_mut(|(key, sending)| match Pin::new(sending).poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                failed.extend(key.map(|key| (key, error)));
                false
            }
        });
        let posts = socket.take_failed();
        let mut state = self.state.borrow_mut();
        sendings.append(&mut state.sendings);
        state.sendings = sendings;
        let mut woken = Woken::default();
        for (key, error) in failed {
            state.not_sent(key, error, &mut woken);
        }
        for (post, error) in posts {
            state.not_posted(post, error, &mut woken);
        }
        woken.extend(state.advance(&self.options));
        if state.send_parts(socket, context, &mut woken) {
            // What could not be sent has made room.
            context.waker().wake_by_ref();
        }
        drop(state);
        wake(woken);
    }
}

impl State {
    // -- towards the server -----------------------------------------------------------------------------

    /// Whether no call waits, no send may still fail, nothing large is under way and nobody is leaving.
    #[inline]
    fn is_quiet(&self) -> bool {
        self.queued.is_empty() && self.sendings.is_empty() && self.large.is_none() && !self.leaving
    }

    /// Sends what is queued, in order, as far as there is room. Returns whom to wake.
    fn advance(&mut self, options: &ObjectOptions) -> Woken {
        let mut woken = Woken::default();
        if self.queued.is_empty() && self.large.is_none() {
            return woken;
        }
        while let Some(key) = self.large.as_ref().and_then(|large| large.queued.front().copied()) {
            let Stage::Queued(outgoing) = &self.calls[key].stage else {
                unreachable!("what is withdrawn is taken out")
            };
            match self.judge(outgoing.number, outgoing.asked, options) {
                Verdict::Later | Verdict::LaterLarge => break,
                Verdict::Now(opening, cost) => self.send_queued(key, &opening, cost, &mut woken),
                Verdict::Never(error) => self.never(key, error, &mut woken),
            }
            self.large.as_mut().and_then(|large| large.queued.pop_front());
        }
        while let Some(&key) = self.queued.front() {
            let verdict = match &self.calls[key].stage {
                Stage::Queued(outgoing) => self.judge(outgoing.number, outgoing.asked, options),
                Stage::Void => {
                    self.voids -= 1;
                    self.queued.pop_front();
                    self.calls.remove(key);
                    continue;
                }
                _ => unreachable!("what is queued has not been sent"),
            };
            match verdict {
                Verdict::Later => break,
                Verdict::LaterLarge => self.large().queued.push_back(key),
                // Large calls do not overtake one another.
                Verdict::Now(_, cost) if cost.large_bytes() > 0 && self.queued_large() > 0 => {
                    self.large().queued.push_back(key);
                }
                Verdict::Now(opening, cost) => self.send_queued(key, &opening, cost, &mut woken),
                Verdict::Never(error) => self.never(key, error, &mut woken),
            }
            self.queued.pop_front();
        }
        woken
    }

    fn large(&mut self) -> &mut Large {
        self.large.get_or_insert_default()
    }

    /// How many calls wait for room for large messages.
    fn queued_large(&self) -> usize {
        self.large.as_ref().map_or(0, |large| large.queued.len())
    }

    fn never(&mut self, key: usize, error: CallError, woken: &mut Woken) {
        let slot = &mut self.calls[key];
        slot.stage = Stage::Ended(Box::new(error));
        woken.extend(slot.waker.take());
    }

    /// Sends a call as most are, on a session where nothing waits: bytes that fit a packet, and no more room
    /// for the answer. What `judge` and `send` do for any call, in one go. Gives its key, and the message has
    /// lost its descriptors; `None` if it is another call, or another situation, or it has to wait. Then
    /// nothing has been done.
    #[inline]
    fn send_straight(&mut self, message: &mut Message, room: Size, options: &ObjectOptions) -> Option<usize> {
        let Phase::Open { socket, hello, account } = &mut self.phase else { return None };
        let awaited = self.awaited + room.descriptors();
        let (bytes, descriptors) = (message.bytes().len(), message.descriptors().len());
        if self.leaving
            || self.large.is_some()
            || !self.queued.is_empty()
            || hello.packet_bytes_max as usize != PACKET_BYTES_MAX
            || awaited > options.answer_descriptors_together && self.awaited > 0
            || bytes > PAYLOAD_BYTES_MAX
            || descriptors > hello.call_descriptors_max as usize
            || room.bytes() > PAYLOAD_BYTES_MAX
        {
            return None;
        }
        let key = self.calls.vacant_key();
        let number = u32::try_from(key).ok()?;
        let size = Size::of_bytes(bytes).and_then(|size| size.with_descriptors(descriptors)).ok()?;
        let cost = account.reserve_small_call(size, room)?;
        self.awaited = awaited;
        self.under_way += 1;
        self.counters.called(HEADER_BYTES + bytes, descriptors);
        let header = wire::small_call_header(number, size, room);
        let posted = if descriptors == 0 {
            socket.post_bytes(&header, message.bytes());
            0
        } else {
            self.posted = self.posted.wrapping_add(1);
            socket.post_with(&header, message, told_of(number, self.posted));
            self.posted
        };
        self.calls.insert(Stage::Sent(UnderWay { number, answer: room, is_grant: false, posted, cost }));
        Some(key)
    }

    #[inline]
    fn judge(&self, number: u32, mut asked: Asked, options: &ObjectOptions) -> Verdict {
        let (hello, account, reactor) = match &self.phase {
            Phase::Open { hello, account, socket, .. } => (hello, account, socket.reactor()),
            Phase::Attaching => return Verdict::Later,
            Phase::Over(end) => return Verdict::Never(end.unsent()),
        };
        if self.leaving {
            return Verdict::Never(CallError::Gone);
        }
        // Room for more than a message of this session holds would only take it from other calls.
        if let Asked::Call { room, .. } = &mut asked {
            *room = room.at_most_bytes(hello.message_bytes_max);
        }
        let Some(opening) = asked.opening(number, hello, reactor) else {
            return Verdict::Never(CallError::Deadline);
        };
        if hello.admits(&opening).is_err() {
            return Verdict::Never(CallError::TooLarge(Part::Call));
        }
        let cost = Cost::of_call(&opening, hello);
        let together = self.awaited + opening.answer().descriptors();
        if self.awaited > 0 && together > options.answer_descriptors_together {
            return Verdict::Later;
        }
        match account.room_for(cost) {
            Ok(()) => Verdict::Now(opening, cost),
            Err(Short::Now(Resource::LargeBytes)) => Verdict::LaterLarge,
            Err(Short::Now(_)) => Verdict::Later,
            Err(Short::Never(_)) => Verdict::Never(CallError::TooLarge(Part::Call)),
        }
    }

    fn send_queued(&mut self, key: usize, opening: &Opening, cost: Cost, woken: &mut Woken) {
        let sent = Stage::Sent(UnderWay::new(opening, cost));
        let stage = std::mem::replace(&mut self.calls[key].stage, sent);
        let Stage::Queued(mut outgoing) = stage else { unreachable!("looked at before") };
        self.send(key, opening, cost, &mut outgoing.message, woken);
    }

    #[inline]
    fn send(&mut self, key: usize, opening: &Opening, cost: Cost, message: &mut Message, woken: &mut Woken) {
        let Phase::Open { account, .. } = &mut self.phase else { unreachable!("judged before") };
        account.reserve(cost);
        self.awaited += opening.answer().descriptors();
        self.under_way += 1;
        self.counters.begun();
        if opening.total().is_none() {
            return self.say_whole(key, &opening.encode(), message);
        }
        let (bytes, descriptors) = std::mem::take(message).into_bytes_and_descriptors();
        // No part goes before it is known that the opening frame has gone; without descriptors it always
        // does.
        let Phase::Open { socket, .. } = &self.phase else { unreachable!("judged before") };
        let opened = if descriptors.is_empty() {
            self.say(&opening.encode());
            None
        } else {
            let mut message = Message::new(&*opening.encode());
            descriptors.into_iter().for_each(|fd| message.push_descriptor(fd));
            self.counters.sent(message.bytes().len(), message.descriptors().len());
            Some(socket.send(message))
        };
        self.large().outbox.push(opening.header.number, bytes, opened);
        // The companion sends the parts.
        woken.extend(self.waker.clone());
    }

    /// Sends the next part of the large calls. Says whether a call has come to its end by that.
    fn send_parts(&mut self, socket: &Socket, context: &mut Context<'_>, woken: &mut Woken) -> bool {
        let Phase::Open { hello, .. } = &self.phase else { return false };
        let Some(Large { outbox, .. }) = self.large.as_deref_mut() else { return false };
        let alone = self.under_way == 1;
        let left = outbox.poll(socket, hello.part_bytes_max() as usize, alone, context);
        let (parts, bytes) = outbox.take_said();
        self.counters.parts_sent(parts, bytes);
        let mut ended = false;
        for left in left {
            if let Left::NotOpened(number, error) = left {
                self.not_sent(number as usize, error, woken);
                ended = true;
            }
        }
        ended
    }

    /// Ready when a large answer has stood still for too long.
    fn poll_watch(&mut self, socket: &Socket, stall: Duration, context: &mut Context<'_>) -> Poll<()> {
        let State { large: Some(large), calls, arriving, .. } = self else { return Poll::Pending };
        if *arriving == 0 {
            large.watch.rest();
            if large.queued.is_empty() && large.outbox.is_empty() {
                self.large = None;
                socket.expect_no_piece();
            }
            return Poll::Pending;
        }
        let stands_since = || {
            let arriving = calls.iter().filter_map(|(_, slot)| slot.arriving.as_ref());
            arriving.map(|assembly| assembly.moved()).min()
        };
        // What has arrived and is not received, for want of descriptors say, is not the server's fault.
        large.watch.poll(socket.reactor(), stall, stands_since, || !socket.is_quiet(), context)
    }

    /// Takes the parts of a large answer that are in the queue, and has the next one received where it
    /// belongs. Of several answers that arrive at once nobody knows whose part is the next.
    fn take_parts(&mut self, woken: &mut Woken) {
        let State {
            phase: Phase::Open { socket, hello, .. }, calls, arriving: 1, large: Some(large), ..
        } = self
        else {
            return;
        };
        let number = large.latest;
        let Some(slot) = calls.find_mut(number as usize) else { return };
        let Some(assembly) = &mut slot.arriving else { return };
        let part_bytes_max = hello.part_bytes_max() as usize;
        let (parts, bytes) = assembly.take_parts(number, part_bytes_max, socket);
        if parts == 0 {
            return;
        }
        self.counters.received(parts, parts * HEADER_BYTES + bytes, 0);
        if assembly.missing() == 0
            && let Some(under_way) = self.sent(number as usize)
        {
            self.has_arrived(under_way, woken);
        }
    }

    /// The last part of a large answer has arrived.
    fn has_arrived(&mut self, under_way: UnderWay, woken: &mut Woken) {
        let arrived = self.calls[under_way.number as usize].arriving.take();
        let Some(assembly) = arrived else { unreachable!("looked at before") };
        self.arriving -= 1;
        self.finish(under_way, Ok(assembly.into_parcel()), woken);
    }

    /// The server shall know too, and before this number is used again.
    fn say_lost(&mut self, number: u32) {
        self.counters.answer_lost();
        if let Phase::Open { .. } = self.phase {
            self.say(&Header::lost(number).encode());
        }
    }

    fn cancel(&mut self, number: u32) {
        self.say(&Header::cancel(number).encode());
    }

    /// Sends a frame that is its header: in the packet of this turn where that is possible.
    fn say(&mut self, header: &[u8]) {
        let Phase::Open { socket, hello, .. } = &self.phase else { unreachable!("frames need a session") };
        self.counters.sent(header.len(), 0);
        if hello.packet_bytes_max as usize == PACKET_BYTES_MAX {
            return socket.post(&[header], Vec::new());
        }
        self.say_apart(None, Message::from(header));
    }

    /// Sends the frame of a call that is whole: in the packet of this turn where that is possible.
    fn say_whole(&mut self, key: usize, opening: &[u8], message: &mut Message) {
        let Phase::Open { socket, hello, .. } = &self.phase else { unreachable!("frames need a session") };
        self.counters.sent(opening.len() + message.bytes().len(), message.descriptors().len());
        if hello.packet_bytes_max as usize != PACKET_BYTES_MAX {
            let (bytes, descriptors) = std::mem::take(message).into_bytes_and_descriptors();
            let mut frame = Message::new([opening, &bytes].concat());
            descriptors.into_iter().for_each(|fd| frame.push_descriptor(fd));
            return self.say_apart(Some(key), frame);
        }
        if message.descriptors().is_empty() {
            return socket.post(&[opening, message.bytes()], Vec::new());
        }
        self.posted = self.posted.wrapping_add(1);
        socket.post_with(opening, message, told_of(key as u32, self.posted));
        if let Stage::Sent(under_way) = &mut self.calls[key].stage {
            under_way.posted = self.posted;
        }
    }

    /// Sends a frame in a packet of its own. The socket fills packets up to the protocol's limit; where the
    /// server's is lower frames go one by one.
    fn say_apart(&mut self, key: Option<usize>, frame: Message) {
        let Phase::Open { socket, .. } = &self.phase else { unreachable!("frames need a session") };
        let mut sending = socket.send_quietly(frame);
        // Polled once so that the companion hears of a failure; before its first poll it has no waker
        // and will look anyway.
        if let Some(waker) = &self.waker {
            let _ = Pin::new(&mut sending).poll(&mut Context::from_waker(waker));
        }
        self.sendings.push((key, sending));
    }

    /// Forgets voids when they are many. Otherwise a caller that gives up over and over behind a queue that
    /// does not move would lengthen it without end.
    fn sweep(&mut self) {
        if self.voids <= VOIDS_KEPT_MAX || self.voids * 2 <= self.queued.len() {
            return;
        }
        let State { queued, calls, .. } = self;
        queued.with_memory().retain(|&key| match calls[key].stage {
            Stage::Void => {
                calls.remove(key);
                false
            }
            _ => true,
        });
        self.voids = 0;
    }

    /// A call with descriptors could not be posted, if it is still under way.
    fn not_posted(&mut self, post: u64, error: SendError, woken: &mut Woken) {
        let (number, posted) = (post as u32, (post >> 32) as u32);
        if let Some(under_way) = self.sent(number as usize)
            && under_way.posted == posted
        {
            self.finish(under_way, Err(CallError::from_send(error)), woken);
        }
    }

    /// A call with descriptors could not be sent.
    fn not_sent(&mut self, key: usize, error: SendError, woken: &mut Woken) {
        if let Some(under_way) = self.sent(key) {
            self.finish(under_way, Err(CallError::from_send(error)), woken);
        }
    }

    // -- from the server --------------------------------------------------------------------------------

    /// Files the answers a packet begins with that are as most are: small, to calls whose callers wait, with
    /// nothing large under way and no send that may still fail. What `frame` does with any answer, for all of
    /// them in one go; how far it has come says where `frame` is to go on.
    #[inline]
    fn file_straight(
        &mut self,
        packet: &[u8],
        descriptors: &mut Descriptors,
        mut wake: impl FnMut(Waker),
    ) -> Straight {
        let mut straight = Straight::default();
        let Phase::Open { account, .. } = &mut self.phase else { return straight };
        if self.large.is_some() || !self.sendings.is_empty() {
            return straight;
        }
        let (mut cost, mut awaited) = (Cost::NOTHING, 0);
        while let Some(answer) = wire::small_answer(&packet[straight.bytes..]) {
            let Some(slot) = self.calls.find_mut(answer.number as usize) else { break };
            let Stage::Sent(under_way) = &slot.stage else { break };
            // A grant is answered with a descriptor, whatever it has room for.
            let (payload, declared) = (answer.payload, usize::from(answer.descriptors));
            if payload.len() > under_way.answer.bytes()
                || under_way.is_grant
                || declared > 0 && declared != descriptors.len()
                || declared > under_way.answer.descriptors()
            {
                break;
            }
            cost = cost.and(under_way.cost);
            awaited += under_way.answer.descriptors();
            let parcel = slot.be_answered();
            parcel.copy(payload);
            if declared > 0 {
                parcel.hold(std::mem::take(descriptors));
                straight.descriptors = declared;
            }
            if let Some(waker) = slot.waker.take() {
                wake(waker);
            }
            straight.frames += 1;
            straight.bytes += HEADER_BYTES + payload.len();
        }
        account.release(cost);
        self.awaited -= awaited;
        self.under_way -= straight.frames;
        straight
    }

    fn frame(
        &mut self,
        frame: FromServer<'_>,
        packet: &Packet,
        descriptors: &mut Parcel,
        woken: &mut Woken,
    ) -> Result<(), Malformed> {
        match frame {
            FromServer::Answer { number, body, descriptors: declared, missing } => {
                let under_way = self.awaiting_all(number, Kind::Answer)?;
                let length = match body {
                    Body::Whole(payload) => payload.len(),
                    Body::Large { total } => total as usize,
                };
                let size = Size::of_bytes(length).and_then(|size| size.with_descriptors(declared.into()));
                let fits = size.is_ok_and(|size| under_way.answer.holds(size));
                let granted = !under_way.is_grant || declared == 1;
                if !fits || !granted {
                    return Err(Malformed::Answer {
                        kind: Kind::Answer,
                        answer_bytes: length as u32,
                        answer_descriptors: declared,
                    });
                }
                if missing > 0 {
                    self.say_lost(number);
                }
                match body {
                    Body::Large { total } => {
                        let theirs =
                            if declared > 0 { std::mem::take(descriptors) } else { Parcel::default() };
                        self.begin_answer(under_way, total, theirs, missing > 0, woken);
                    }
                    Body::Whole(_) if missing > 0 => {
                        drop(std::mem::take(descriptors));
                        self.finish(under_way, Err(CallError::DescriptorsLost(Part::Answer)), woken);
                    }
                    Body::Whole(payload) => {
                        let theirs = (declared > 0).then(|| std::mem::take(descriptors));
                        self.counters.answered();
                        // If nobody wants it any more its descriptors are closed here.
                        if let Some(key) = self.conclude(under_way, woken) {
                            let answer = self.calls[key].be_answered();
                            answer.fill(packet, payload);
                            if let Some(mut theirs) = theirs {
                                answer.take_from(&mut theirs);
                            }
                        }
                    }
                }
            }
            FromServer::Dropped { number } => {
                let under_way = self.awaiting_all(number, Kind::Dropped)?;
                self.finish(under_way, Err(CallError::Dropped), woken);
            }
            FromServer::Refused { number, reason } => {
                let under_way = self.under_way(number, Kind::Refused)?;
                let error = self.refused(number, reason)?;
                self.finish(under_way, Err(error), woken);
            }
            FromServer::Credit(windows) => {
                let Phase::Open { account, .. } = &mut self.phase else { unreachable!("frames come later") };
                account.grow(windows)?;
            }
            FromServer::Goodbye if self.leaving => return Err(Malformed::AfterGoodbye(Kind::Goodbye)),
            FromServer::Goodbye => self.leaving = true,
            FromServer::Part { number, payload } => self.part(number, Piece::Here(payload), woken)?,
            FromServer::Elsewhere { number, missing } => {
                let under_way = self.awaiting_all(number, Kind::Elsewhere)?;
                let near = self.near_end(under_way, missing, descriptors)?;
                self.go_elsewhere(under_way, near, woken);
            }
            FromServer::Hello(_) => return Err(Malformed::WrongSide(Kind::Hello)),
        }
        Ok(())
    }

    /// The socket that came with an ELSEWHERE; `None` if it was lost on the way.
    fn near_end(
        &self,
        under_way: UnderWay,
        missing: u8,
        descriptors: &mut Parcel,
    ) -> Result<Option<Socket>, Malformed> {
        if under_way.is_grant {
            return Err(Malformed::Elsewhere);
        }
        let Some(fd) = descriptors.take_descriptor().filter(|_| missing == 0) else { return Ok(None) };
        let Phase::Open { socket, .. } = &self.phase else { unreachable!("frames come later") };
        let near = ConnectedSocket::from_fd(socket.reactor(), fd).map_err(|_| Malformed::Elsewhere)?;
        Ok(Some(near.into_socket()))
    }

    /// The end of a call for the session, and not for its caller.
    fn go_elsewhere(&mut self, under_way: UnderWay, near: Option<Socket>, woken: &mut Woken) {
        let number = under_way.number;
        let Some(near) = near else {
            self.say_lost(number);
            return self.finish(under_way, Err(CallError::DescriptorsLost(Part::Answer)), woken);
        };
        // Dropped if nobody wants it any more, which whoever would answer sees at once.
        near.set_private(true);
        self.counters.otherwise(|calls| calls.handed_on += 1);
        let Some(key) = self.conclude(under_way, woken) else { return };
        let room = under_way.answer;
        near.set_descriptors_max(room.descriptors());
        // What it may bring is still to come.
        self.awaited += room.descriptors();
        self.calls[key].stage = Stage::Elsewhere(Elsewhere { near: Rc::new(near), room });
    }

    fn admits(&self, opening: &Opening) -> Result<(), Malformed> {
        let Phase::Open { hello, .. } = &self.phase else { unreachable!("frames come later") };
        hello.admits(opening)
    }

    /// A large answer begins.
    fn begin_answer(
        &mut self,
        under_way: UnderWay,
        total: u32,
        descriptors: Parcel,
        lost: bool,
        woken: &mut Woken,
    ) {
        let number = under_way.number;
        let Phase::Open { socket, .. } = &self.phase else { unreachable!("frames come later") };
        let now = socket.reactor().now();
        let slot = &mut self.calls[number as usize];
        let of_no_use = Assembly::of_no_use(total, now);
        let (assembly, error) = if let Stage::Withdrawn(_) = slot.stage {
            (of_no_use, None)
        } else if lost {
            (of_no_use, Some(CallError::DescriptorsLost(Part::Answer)))
        } else {
            match Assembly::begin(total, descriptors, now) {
                Ok(assembly) => (assembly, None),
                Err(OutOfMemory) => (of_no_use, Some(CallError::OutOfMemory(Part::Answer))),
            }
        };
        slot.arriving = Some(Box::new(assembly));
        self.arriving += 1;
        self.large.get_or_insert_default().latest = number;
        if let Some(error) = error {
            slot.stage = Stage::Failed(under_way, Box::new(error));
            woken.extend(slot.waker.take());
            self.cancel(number);
        }
    }

    fn part(&mut self, number: u32, payload: Piece<'_>, woken: &mut Woken) -> Result<(), Malformed> {
        let under_way = self.under_way(number, Kind::Part)?;
        let Phase::Open { socket, hello, .. } = &self.phase else { unreachable!("frames come later") };
        let slot = &mut self.calls[number as usize];
        let Some(arriving) = &mut slot.arriving else {
            return Err(Malformed::Number { kind: Kind::Part, number });
        };
        let part_bytes_max = hello.part_bytes_max() as usize;
        self.large.get_or_insert_default().latest = number;
        if !arriving.add(payload, part_bytes_max, socket.reactor().now())? {
            return Ok(());
        }
        self.has_arrived(under_way, woken);
        Ok(())
    }

    /// What a refusal means for a call of which something may still be on its way, here or there.
    fn refused(&mut self, number: u32, reason: RefusedReason) -> Result<CallError, Malformed> {
        let slot = &mut self.calls[number as usize];
        if slot.arriving.take().is_some() {
            self.arriving -= 1;
            // In the middle of an answer only whoever was told to may stop.
            let asked = matches!(slot.stage, Stage::Withdrawn(_) | Stage::Failed(..));
            if reason != RefusedReason::Cancelled || !asked {
                return Err(Malformed::Midway { kind: Kind::Refused, number });
            }
            return Ok(CallError::Cancelled);
        }
        // The server must know where our parts end.
        if self.large.as_mut().is_some_and(|large| large.outbox.forget(number)) {
            self.cancel(number);
        }
        Ok(CallError::from_refusal(reason))
    }

    /// A call that awaits its final frame, all of which has been said and nothing answered.
    fn awaiting_all(&self, number: u32, kind: Kind) -> Result<UnderWay, Malformed> {
        let under_way = self.under_way(number, kind)?;
        let leaving = self.large.as_ref().is_some_and(|large| large.outbox.holds(number));
        if leaving || self.calls[number as usize].arriving.is_some() {
            return Err(Malformed::Midway { kind, number });
        }
        Ok(under_way)
    }

    /// A call that awaits its final frame.
    fn under_way(&self, number: u32, kind: Kind) -> Result<UnderWay, Malformed> {
        self.sent(number as usize).ok_or(Malformed::Number { kind, number })
    }

    fn sent(&self, key: usize) -> Option<UnderWay> {
        match self.calls.find(key).map(|slot| &slot.stage) {
            Some(Stage::Sent(under_way) | Stage::Withdrawn(under_way) | Stage::Failed(under_way, _)) => {
                Some(*under_way)
            }
            _ => None,
        }
    }

    /// The end of a call under way: its number is free again when the caller, if there is one, has looked.
    fn finish(&mut self, under_way: UnderWay, result: Result<Parcel, CallError>, woken: &mut Woken) {
        self.counters.ended(&result);
        let Some(key) = self.conclude(under_way, woken) else { return };
        let slot = &mut self.calls[key];
        match result {
            Ok(parcel) => *slot.be_answered() = parcel,
            Err(error) => slot.stage = Stage::Ended(Box::new(error)),
        }
    }

    /// Ends a call under way for the session, and wakes its caller. Gives the key of its slot if the caller
    /// is to be told how it ended.
    #[inline]
    fn conclude(&mut self, under_way: UnderWay, woken: &mut Woken) -> Option<usize> {
        let UnderWay { number, answer, cost, .. } = under_way;
        let key = number as usize;
        // Whatever is still to be learned of its sending is not about the next call of this number.
        if !self.sendings.is_empty() {
            self.sendings.retain(|(sender, _)| *sender != Some(key));
        }
        if let Some(large) = &mut self.large {
            large.outbox.forget(number);
        }
        self.under_way -= 1;
        self.awaited -= answer.descriptors();
        if let Phase::Open { account, .. } = &mut self.phase {
            account.release(cost);
        }
        let slot = &mut self.calls[key];
        match slot.stage {
            Stage::Withdrawn(_) => {
                // Nobody wants it any more.
                self.calls.remove(key);
                return None;
            }
            Stage::Failed(..) => {
                if let Stage::Failed(_, error) = std::mem::replace(&mut slot.stage, Stage::Void) {
                    slot.stage = Stage::Ended(error);
                }
                woken.extend(slot.waker.take());
                return None;
            }
            _ => {}
        }
        woken.extend(slot.waker.take());
        Some(key)
    }
}

impl Large {
    /// Says whether the call was queued here.
    fn forget_queued(&mut self, key: usize) -> bool {
        let place = self.queued.iter().position(|queued| *queued == key);
        place.and_then(|place| self.queued.remove(place)).is_some()
    }
}

/// Waits until a session is attached.
pub(crate) struct Attachment {
    attached: Rc<Attached>,
    place: Place,
}

impl Attachment {
    pub(crate) fn new(attached: Rc<Attached>) -> Attachment {
        Attachment { attached, place: Place::default() }
    }
}

impl Future for Attachment {
    type Output = Result<(), CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let Attachment { attached, place } = &mut *self;
        attached.session().poll_attached(place, context)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let waker = self.attached.session().state.borrow_mut().attaching.leave(&self.place);
        drop(waker);
    }
}

/// The companion of a session: attaches, receives, and files, until the session ends. A future by hand, since
/// one that awaits keeps room for each of its steps.
struct Serving {
    session: Rc<Session>,
    step: Step,
}

type Connecting = Pin<Box<dyn Future<Output = Result<ConnectedSocket, ConnectError>>>>;

enum Step {
    Connecting(Connecting),
    AwaitingHello(Rc<Socket>),
    Attached(Rc<Socket>),
}

impl Serving {
    fn new(session: Rc<Session>, address: Rc<SocketAddress>) -> Serving {
        let connecting = Box::pin(async move { address.connect().await });
        Serving { session, step: Step::Connecting(connecting) }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let Serving { session, step } = self;
        loop {
            match step {
                Step::Connecting(connecting) => match ready!(connecting.as_mut().poll(context)) {
                    Ok(connected) => {
                        let socket = connected.into_socket();
                        // One at least, for a grant.
                        socket.set_descriptors_max(session.options.answer_descriptors.max(1));
                        socket.forgo_credentials();
                        socket.stream();
                        *step = Step::AwaitingHello(Rc::new(socket));
                    }
                    Err(ConnectError::OutOfDescriptors) => return Poll::Ready(End::OutOfDescriptors),
                    Err(ConnectError::Forked) => return Poll::Ready(End::Forked),
                    Err(ConnectError::Io(error)) => return Poll::Ready(End::of_kernel(&error)),
                    Err(_) => return Poll::Ready(End::Gone),
                },
                Step::AwaitingHello(socket) => {
                    match ready!(socket.poll_receive(context)) {
                        Ok(packet) => {
                            if let Err(malformed) = session.open(socket, packet) {
                                return Poll::Ready(session.blame(&malformed));
                            }
                        }
                        Err(ReceiveError::Truncated(_) | ReceiveError::DescriptorsLost(_)) => {
                            return Poll::Ready(End::Malformed);
                        }
                        Err(ReceiveError::Forked) => return Poll::Ready(End::Forked),
                        Err(ReceiveError::Io(error)) => return Poll::Ready(End::of_kernel(&error)),
                        Err(_) => return Poll::Ready(End::Gone),
                    }
                    socket.set_reader(Rc::downgrade(session));
                    *step = Step::Attached(Rc::clone(socket));
                }
                Step::Attached(socket) => return session.poll_end(socket, context),
            }
        }
    }
}

impl Future for Serving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let end = ready!(self.poll_end(context));
        if let (End::Malformed | End::Stalled, Step::AwaitingHello(socket) | Step::Attached(socket)) =
            (end, &self.step)
        {
            socket.shut_down();
        }
        self.session.end(end);
        Poll::Ready(())
    }
}

impl Reader for Session {
    /// Straight through, where nothing is to be done but to receive, and the packet holds what most do.
    /// Otherwise the companion does it, from where this has come to.
    fn read(&self, reading: Reading<'_>) -> bool {
        let Reading { bytes, descriptors, mut wakes, .. } = reading;
        let state = &mut *self.state.borrow_mut();
        if !state.is_quiet() {
            return false;
        }
        let straight = state.file_straight(bytes, descriptors, |waker| wakes.wake(waker));
        let whole = straight.bytes == bytes.len() && descriptors.is_empty();
        match whole {
            true => state.counters.answers_arrived(straight.frames, straight.bytes, straight.descriptors),
            false => state.filed = straight,
        }
        whole
    }
}

impl Session {
    /// Receives and files until the session ends.
    fn poll_end(&self, socket: &Socket, context: &mut Context<'_>) -> Poll<End> {
        let mut filed = std::mem::take(&mut self.state.borrow_mut().filed);
        // Closed from here when nothing is left to wait for, so that a server that leaves need not wait for
        // long.
        loop {
            let quiet = match self.look(context.waker()) {
                Some(quiet) => quiet,
                // Of a packet that is filed in part the rest counts, too, whatever its beginning has ended.
                None if filed.frames > 0 => true,
                None => return Poll::Ready(End::Gone),
            };
            if !quiet {
                self.take_parts();
            }
            if !quiet || socket.has_failed() {
                self.look_after_sends(socket, context);
                // What was just taken, or could not be sent, may have been the last there was.
                if filed.frames == 0 && self.look(context.waker()).is_none() {
                    return Poll::Ready(End::Gone);
                }
            }
            // What has arrived counts before what has not.
            let (received, more) = match socket.poll_receive_of_many(context) {
                Poll::Ready(received) => received,
                Poll::Pending if quiet => return Poll::Pending,
                Poll::Pending => return self.poll_stall(socket, context).map(|()| End::Stalled),
            };
            let filed = std::mem::take(&mut filed);
            let result = match received {
                Ok(packet) => self.file(packet, false, filed),
                Err(ReceiveError::DescriptorsLost(packet)) => self.file(packet, true, filed),
                Err(ReceiveError::Truncated(_)) => Err(Malformed::LONGER_THAN_A_PACKET),
                Err(ReceiveError::Forked) => return Poll::Ready(End::Forked),
                Err(ReceiveError::Io(error)) => return Poll::Ready(End::of_kernel(&error)),
                Err(_) => return Poll::Ready(End::Gone),
            };
            match result {
                // Mostly nothing else is here, and nothing is to be done.
                Ok(true) if !more => return Poll::Pending,
                Ok(_) => {}
                Err(malformed) => return Poll::Ready(self.blame(&malformed)),
            }
        }
    }

    /// Ready when a large answer has stood still for too long.
    fn poll_stall(&self, socket: &Socket, context: &mut Context<'_>) -> Poll<()> {
        self.state.borrow_mut().poll_watch(socket, self.options.large_stall, context)
    }
}

/// Who is told when a call cannot be posted with its descriptors: the call that has this number now, and not
/// whichever has it then.
#[inline]
fn told_of(number: u32, posted: u32) -> Otherwise<'static> {
    Otherwise::Tell(u64::from(posted) << 32 | u64::from(number))
}

fn call_of(message: &Message, room: Size, deadline: Option<Instant>) -> Result<Asked, CallError> {
    let size = Size::of_bytes(message.bytes().len());
    let size = size.and_then(|size| size.with_descriptors(message.descriptors().len()));
    size.map(|message| Asked::Call { message, room, deadline }).map_err(|_| CallError::TooLarge(Part::Call))
}
