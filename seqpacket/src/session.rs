//! The client's side of a session: numbers, windows and outcomes.
//!
//! It owns the socket of the session and what is known of each call under way. A companion of the reactor
//! attaches, receives and files outcomes, whoever polls which call; the calls' futures only look here. Each
//! number ends once: with the final frame, or with the session.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use imc::{ConnectError, SocketAddress};
use ring::{Companion, Fd, Message, Reactor, ReceiveError, Received, SendError, Sending, Socket};
use slab::Slab;

use crate::credit::{Account, Cost, Short};
use crate::error::{CallError, Part};
use crate::object::{CALLS_QUEUED_MAX, ObjectOptions};
use crate::parcel::Parcel;
use crate::wire::{self, Arrived, FromServer, HEADER_BYTES, Header, Hello, Malformed, Size};

/// A session and the companion that serves it: held by the object and by every call.
pub(crate) struct Attached {
    session: Rc<Session>,
    _companion: Companion,
}

impl Attached {
    pub(crate) fn begin(
        reactor: &Reactor,
        address: Rc<SocketAddress>,
        options: ObjectOptions,
    ) -> Rc<Attached> {
        let session = Rc::new(Session { options, state: RefCell::new(State::default()) });
        let companion = reactor.companion(serve(Rc::clone(&session), address));
        Rc::new(Attached { session, _companion: companion })
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
    phase: Phase,
    calls: Slab<Slot>,
    /// Calls that have not been sent, in order.
    queued: VecDeque<usize>,
    /// Descriptors reserved for answers under way.
    awaited: usize,
    /// The server takes no more calls.
    leaving: bool,
    /// Sends whose failure somebody must hear of: those with descriptors.
    sendings: Vec<(usize, Sending)>,
    /// Of the companion.
    waker: Option<Waker>,
    /// Of those who wait for the attachment only.
    attaching: Vec<Waker>,
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
}

impl End {
    fn error(self) -> CallError {
        match self {
            End::Gone => CallError::Gone,
            End::Malformed => CallError::Malformed("not a session of this protocol"),
            End::OutOfDescriptors => CallError::OutOfDescriptors(Part::Call),
        }
    }
}

struct Slot {
    stage: Stage,
    waker: Option<Waker>,
}

enum Stage {
    Queued(Outgoing),
    Sent {
        cost: Cost,
        room: Size,
    },
    /// The caller is gone; the number is not free before its final frame.
    Withdrawn {
        cost: Cost,
        room: Size,
    },
    Done(Result<Parcel, CallError>),
}

/// A call that has not been sent.
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<Fd>,
    header: Header,
}

impl Session {
    // -- calling ----------------------------------------------------------------------------------------

    pub(crate) fn call(&self, message: Message, room: Size) -> Result<usize, CallError> {
        let (bytes, descriptors) = message.into_parts();
        let size = Size::of_bytes(bytes.len()).and_then(|size| size.with_descriptors(descriptors.len()));
        let size = size.map_err(|_| CallError::TooLarge(Part::Call))?;
        self.enqueue(Outgoing { bytes, descriptors, header: Header::call(0, size, room) })
    }

    pub(crate) fn grant(&self) -> Result<usize, CallError> {
        self.enqueue(Outgoing { bytes: Vec::new(), descriptors: Vec::new(), header: Header::grant(0) })
    }

    fn enqueue(&self, mut outgoing: Outgoing) -> Result<usize, CallError> {
        let mut state = self.state.borrow_mut();
        if let Phase::Over(end) = &state.phase {
            return Err(end.error());
        }
        if state.leaving {
            return Err(CallError::Gone);
        }
        if state.queued.len() >= CALLS_QUEUED_MAX {
            return Err(CallError::WouldBlock);
        }
        let entry = state.calls.vacant_entry();
        let key = entry.key();
        // The slot's key is the number: free again when the slot is, which is after the final frame.
        outgoing.header.number = u32::try_from(key).expect("fewer than 2^32 calls under way");
        entry.insert(Slot { stage: Stage::Queued(outgoing), waker: None });
        state.queued.push_back(key);
        let woken = state.advance(&self.options);
        drop(state);
        wake(woken);
        Ok(key)
    }

    /// Whether a call would leave at once.
    pub(crate) fn could_send(&self, message: &Message, room: Size) -> bool {
        let state = self.state.borrow();
        let Phase::Open { account, .. } = &state.phase else { return false };
        let size = Size::of_bytes(message.bytes().len());
        let size = size.and_then(|size| size.with_descriptors(message.descriptors().len()));
        let together = self.options.answer_descriptors_together;
        let free = state.queued.is_empty() && state.awaited + room.descriptors() <= together;
        // What can never be sent is not worth waiting for either: the call itself says so.
        size.map_or(true, |size| free && account.room_for(Cost::of_call(size, room)).is_ok())
    }

    pub(crate) fn poll_call(&self, key: usize, context: &mut Context<'_>) -> Poll<Result<Parcel, CallError>> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.calls[key];
        if let Stage::Done(_) = slot.stage {
            let slot = state.calls.remove(key);
            drop(state);
            let Stage::Done(result) = slot.stage else { unreachable!("looked at above") };
            return Poll::Ready(result);
        }
        let known = slot.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        let old = if known { None } else { slot.waker.replace(context.waker().clone()) };
        drop(state);
        drop(old);
        Poll::Pending
    }

    pub(crate) fn withdraw(&self, key: usize) {
        let mut state = self.state.borrow_mut();
        let waker = state.calls[key].waker.take();
        let mut removed = None;
        match state.calls[key].stage {
            Stage::Queued(_) => {
                removed = Some(state.calls.remove(key));
                state.queued.retain(|queued| *queued != key);
            }
            Stage::Done(_) => removed = Some(state.calls.remove(key)),
            Stage::Sent { cost, room } => {
                state.calls[key].stage = Stage::Withdrawn { cost, room };
                if let Phase::Open { socket, .. } = &state.phase {
                    socket.post(&[&Header::cancel(key as u32).encode()], Vec::new());
                }
            }
            Stage::Withdrawn { .. } => unreachable!("withdrawn once"),
        }
        drop(state);
        drop(waker);
        drop(removed);
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Open { .. })
    }

    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.leaving || matches!(state.phase, Phase::Over(_))
    }

    pub(crate) fn poll_attached(&self, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let mut state = self.state.borrow_mut();
        match &state.phase {
            Phase::Open { .. } => Poll::Ready(Ok(())),
            Phase::Over(end) => Poll::Ready(Err(end.error())),
            Phase::Attaching => {
                if !state.attaching.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.attaching.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
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
        for frame in frames {
            // A server may say more in the packet of its HELLO: larger windows, or that it is leaving.
            match frame?.from_server()? {
                FromServer::Goodbye => state.leaving = true,
                FromServer::Credit(_) => {}
                _ => return Err(Malformed::WrongSide(first.header.kind)),
            }
        }
        let account = Account::new(hello.windows);
        state.phase = Phase::Open { socket: Rc::clone(socket), hello, account };
        let mut woken = std::mem::take(&mut state.attaching);
        woken.extend(state.advance(&self.options));
        drop(state);
        wake(woken);
        Ok(())
    }

    /// Files what a packet says, then sends what there is room for now.
    fn file(&self, mut packet: Received, cut: bool) -> Result<(), Malformed> {
        let mut descriptors = Parcel::of_descriptors(packet.take_descriptors());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        let packet = Rc::new(packet);
        let mut state = self.state.borrow_mut();
        let mut woken = Vec::new();
        let mut result = Ok(());
        for frame in wire::frames(packet.bytes(), arrived) {
            result = frame
                .and_then(|frame| state.frame(frame.from_server()?, &packet, &mut descriptors, &mut woken));
            if result.is_err() {
                break;
            }
        }
        woken.extend(state.advance(&self.options));
        drop(state);
        wake(woken);
        result
    }

    /// The session is over: everybody is told, once.
    fn end(&self, end: End) {
        let mut state = self.state.borrow_mut();
        if let Phase::Over(_) = state.phase {
            return;
        }
        let phase = std::mem::replace(&mut state.phase, Phase::Over(end));
        let mut woken = std::mem::take(&mut state.attaching);
        let sendings = std::mem::take(&mut state.sendings);
        state.queued.clear();
        let mut removed = Vec::new();
        for key in state.calls.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let slot = &mut state.calls[key];
            let error = match &slot.stage {
                Stage::Done(_) => continue,
                Stage::Queued(_) => end.error(),
                Stage::Sent { .. } => match end {
                    End::Malformed => end.error(),
                    End::Gone | End::OutOfDescriptors => CallError::Dropped,
                },
                Stage::Withdrawn { .. } => {
                    removed.push(state.calls.remove(key));
                    continue;
                }
            };
            slot.stage = Stage::Done(Err(error));
            woken.extend(slot.waker.take());
        }
        drop(state);
        drop((phase, sendings, removed));
        wake(woken);
    }

    /// Looks after sends that may fail for their descriptors, and receives the next packet.
    fn poll_next(&self, socket: &Socket, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let mut state = self.state.borrow_mut();
        state.waker = Some(context.waker().clone());
        let mut sendings = std::mem::take(&mut state.sendings);
        drop(state);
        let mut failed = Vec::new();
        sendings.retain_mut(|(key, sending)| match poll_sending(sending, context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                failed.push((*key, error));
                false
            }
        });
        let mut state = self.state.borrow_mut();
        sendings.append(&mut state.sendings);
        state.sendings = sendings;
        let mut woken = Vec::new();
        for (key, error) in failed {
            state.not_sent(key, error, &mut woken);
        }
        woken.extend(state.advance(&self.options));
        drop(state);
        wake(woken);
        socket.poll_receive(context)
    }
}

impl State {
    /// Sends what is queued, in order, as far as there is room. Returns whom to wake.
    fn advance(&mut self, options: &ObjectOptions) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(&key) = self.queued.front() {
            let State { phase, calls, awaited, leaving, sendings, waker, .. } = self;
            let slot = &mut calls[key];
            let Stage::Queued(outgoing) = &mut slot.stage else { unreachable!("queued calls are queued") };
            let Phase::Open { socket, hello, account } = phase else { break };
            let header = outgoing.header;
            let cost = Cost::of_call(header.message(), header.answer());
            let room = header.answer();
            let refused = if *leaving {
                Some(CallError::Gone)
            } else if hello.admits(&header).is_err() {
                Some(CallError::TooLarge(Part::Call))
            } else if *awaited > 0 && *awaited + room.descriptors() > options.answer_descriptors_together {
                break;
            } else {
                match account.try_reserve(cost) {
                    Ok(()) => None,
                    Err(Short::Now(_)) => break,
                    Err(Short::Never(_)) => Some(CallError::TooLarge(Part::Call)),
                }
            };
            self.queued.pop_front();
            if let Some(error) = refused {
                slot.stage = Stage::Done(Err(error));
                woken.extend(slot.waker.take());
                continue;
            }
            *awaited += room.descriptors();
            let bytes = std::mem::take(&mut outgoing.bytes);
            let descriptors = std::mem::take(&mut outgoing.descriptors);
            slot.stage = Stage::Sent { cost, room };
            if descriptors.is_empty() {
                socket.post(&[&header.encode(), &bytes], Vec::new());
            } else {
                let mut message = Message::new([header.encode().as_slice(), &bytes].concat());
                descriptors.into_iter().for_each(|fd| message.push_descriptor(fd));
                let mut sending = socket.send_quietly(message);
                // Polled once so that the companion hears of a failure; before its first poll it has no waker
                // and will look anyway.
                if let Some(waker) = waker {
                    let _ = poll_sending(&mut sending, &mut Context::from_waker(waker));
                }
                sendings.push((key, sending));
            }
        }
        woken
    }

    fn frame(
        &mut self,
        frame: FromServer<'_>,
        packet: &Rc<Received>,
        descriptors: &mut Parcel,
        woken: &mut Vec<Waker>,
    ) -> Result<(), Malformed> {
        match frame {
            FromServer::Answer { number, payload, descriptors: declared, missing } => {
                let size =
                    Size::of_bytes(payload.len()).and_then(|size| size.with_descriptors(declared.into()));
                let room = self.room(number)?;
                if size.map_or(true, |size| !room.holds(size)) {
                    return Err(Malformed::Answer {
                        kind: wire::Kind::Answer,
                        answer_bytes: payload.len() as u32,
                        answer_descriptors: declared,
                    });
                }
                let start = payload.as_ptr() as usize - packet.bytes().as_ptr() as usize;
                let mut parcel = Parcel::part(packet, start..start + payload.len());
                if declared > 0 {
                    parcel.take_from(descriptors);
                }
                let result =
                    if missing > 0 { Err(CallError::DescriptorsLost(Part::Answer)) } else { Ok(parcel) };
                self.finish(number, result, woken)
            }
            FromServer::Dropped { number } => self.finish(number, Err(CallError::Dropped), woken),
            FromServer::Refused { number, reason } => {
                self.finish(number, Err(CallError::from_refusal(reason)), woken)
            }
            FromServer::Credit(windows) => match &mut self.phase {
                Phase::Open { account, .. } => account.grow(windows),
                Phase::Attaching | Phase::Over(_) => Ok(()),
            },
            FromServer::Goodbye => {
                self.leaving = true;
                Ok(())
            }
            FromServer::Hello(_) => Err(Malformed::WrongSide(wire::Kind::Hello)),
        }
    }

    /// The room that was reserved for the answer to a call under way.
    fn room(&self, number: u32) -> Result<Size, Malformed> {
        match self.calls.get(number as usize).map(|slot| &slot.stage) {
            Some(Stage::Sent { room, .. } | Stage::Withdrawn { room, .. }) => Ok(*room),
            _ => Err(Malformed::Number { kind: wire::Kind::Answer, number }),
        }
    }

    /// A final frame.
    fn finish(
        &mut self,
        number: u32,
        result: Result<Parcel, CallError>,
        woken: &mut Vec<Waker>,
    ) -> Result<(), Malformed> {
        let key = number as usize;
        let Some(slot) = self.calls.get_mut(key) else {
            return Err(Malformed::Number { kind: wire::Kind::Answer, number });
        };
        let (cost, room) = match slot.stage {
            Stage::Sent { cost, room } => {
                slot.stage = Stage::Done(result);
                woken.extend(slot.waker.take());
                (cost, room)
            }
            Stage::Withdrawn { cost, room } => {
                // Nobody wants it any more; the parcel closes its descriptors.
                self.calls.remove(key);
                (cost, room)
            }
            Stage::Queued(_) | Stage::Done(_) => {
                return Err(Malformed::Number { kind: wire::Kind::Answer, number });
            }
        };
        self.release(cost, room);
        Ok(())
    }

    /// A call with descriptors could not be sent.
    fn not_sent(&mut self, key: usize, error: SendError, woken: &mut Vec<Waker>) {
        let Some(slot) = self.calls.get_mut(key) else { return };
        let (cost, room) = match slot.stage {
            Stage::Sent { cost, room } => {
                slot.stage = Stage::Done(Err(CallError::from_send(error)));
                woken.extend(slot.waker.take());
                (cost, room)
            }
            Stage::Withdrawn { cost, room } => {
                self.calls.remove(key);
                (cost, room)
            }
            Stage::Queued(_) | Stage::Done(_) => return,
        };
        self.release(cost, room);
    }

    fn release(&mut self, cost: Cost, room: Size) {
        self.awaited -= room.descriptors();
        if let Phase::Open { account, .. } = &mut self.phase {
            account.release(cost);
        }
    }
}

/// Attaches, receives, and files, until the session ends.
async fn serve(session: Rc<Session>, address: Rc<SocketAddress>) {
    let socket = match address.connect().await {
        Ok(connected) => Rc::new(connected.into_socket()),
        Err(error) => {
            return session.end(match error {
                ConnectError::OutOfDescriptors => End::OutOfDescriptors,
                _ => End::Gone,
            });
        }
    };
    drop(address);
    socket.set_descriptors_max(session.options.answer_descriptors);
    socket.stream();
    let end = match attached(&session, &socket).await {
        Ok(()) => receive_all(&session, &socket).await,
        Err(end) => end,
    };
    if let End::Malformed = end {
        socket.shut_down();
    }
    session.end(end);
}

/// Waits for HELLO.
async fn attached(session: &Session, socket: &Rc<Socket>) -> Result<(), End> {
    match socket.receive().await {
        Ok(packet) => session.open(socket, packet).map_err(|_| End::Malformed),
        Err(ReceiveError::Truncated(_) | ReceiveError::DescriptorsLost(_)) => Err(End::Malformed),
        Err(_) => Err(End::Gone),
    }
}

async fn receive_all(session: &Session, socket: &Socket) -> End {
    loop {
        let filed = match poll_fn(|context| session.poll_next(socket, context)).await {
            Ok(packet) => session.file(packet, false),
            Err(ReceiveError::DescriptorsLost(packet)) => session.file(packet, true),
            Err(ReceiveError::Truncated(_)) => return End::Malformed,
            Err(_) => return End::Gone,
        };
        if filed.is_err() {
            return End::Malformed;
        }
    }
}

fn poll_sending(sending: &mut Sending, context: &mut Context<'_>) -> Poll<Result<(), SendError>> {
    std::pin::Pin::new(sending).poll(context)
}

fn wake(woken: Vec<Waker>) {
    woken.into_iter().for_each(Waker::wake);
}

// What `Header` says of a frame's size is what `Cost` counts.
const _: () = assert!(HEADER_BYTES == 16);
