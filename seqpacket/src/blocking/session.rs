//! The client's side of a session without a reactor: numbers, windows, parts and outcomes.
//!
//! A caller owns what is known of each call, and the session if there is one. Whoever waits for one call
//! reads for all of them. Each number ends once: with its final frame, or with the session. It never knows
//! what a message means.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use imc::blocking::SocketAddress;
use imc::{ConnectError, WrapError};
use ring::blocking::{Inbox, Lent, NO_DESCRIPTORS, ReceiveError, Received, Socket};
use ring::fork::{self, Generation};
use ring::{Bytes, HUGE_ROOM_BYTES_MIN, SendError, WaitPolicy};
use slab::Slab;

use crate::blocking::Answer;
use crate::blocking::plain::answer_from;
use crate::credit::{Account, Cost, Short};
use crate::error::{CallError, Part};
use crate::object::ObjectOptions;
use crate::parts::expect_part;
use crate::wire::{
    self, Arrived, Body, FromServer, HEADER_BYTES, Header, Hello, Kind, Malformed, Opening, PACKET_BYTES_MAX,
    PAYLOAD_BYTES_MAX, RefusedReason, Size,
};

/// An answer in parts is given memory as it arrives, and ahead of that no more than so much at a time: the
/// server only says how much it is going to be.
const AHEAD_MAX: usize = 1 << 20;

/// So many packets are read of a server that takes nothing more: several times what a queue holds (278, at
/// the usual SO_SNDBUF). It may be talking still.
const LAST_WORDS_MAX: usize = 1_024;

/// What is asked of a server.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    Call { message: Size, room: Size },
    Grant,
}

impl Asked {
    fn opening(self, number: u32, hello: &Hello, deadline: Option<Instant>) -> Opening {
        match self {
            Asked::Call { message, room } => {
                let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                // Room for more than a message of this session holds would only take it from other calls.
                hello.call(number, message, room.at_most_bytes(hello.message_bytes_max), left)
            }
            Asked::Grant => Header::grant(number).into(),
        }
    }
}

/// How long a call may wait to be sent, and whether for other calls to go with it.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) deadline: Option<Instant>,
    pub(super) company: bool,
}

pub(super) struct Caller {
    options: ObjectOptions,
    inbox: Inbox,
    calls: Slab<Stage>,
    session: Option<Session>,
    /// How many there were.
    sessions: u64,
    /// The process whose session it is.
    generation: Generation,
}

struct Session {
    /// It is the caller's first, second …
    number: u64,
    socket: Socket,
    hello: Hello,
    account: Account,
    /// What has not been sent yet; the last one may still be added to.
    packets: VecDeque<Packet>,
    /// The memory of a packet that was sent, for the next.
    spare: Packet,
    under_way: usize,
    /// Descriptors reserved for answers under way.
    awaited: usize,
    /// How many large answers have begun and are not complete.
    arriving: usize,
    /// When the server last said something, if it is in the middle of one.
    heard: Option<Instant>,
    /// The server takes no more calls.
    leaving: bool,
}

/// Frames that wait to be sent together. One with descriptors is alone.
#[derive(Default)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Calls that are opened here.
    opens: Vec<usize>,
}

enum Stage {
    UnderWay(UnderWay),
    /// Somebody else will answer.
    Elsewhere(Elsewhere),
    Done(Result<Answer, CallError>),
}

/// Where a call is answered that the server has handed on.
struct Elsewhere {
    near: Socket,
    room: Size,
    /// Of the session that it was made on.
    session: u64,
}

struct UnderWay {
    opening: Opening,
    cost: Cost,
    /// The frame that opens it has entered the socket.
    sent: bool,
    /// Parts of it are still to be sent.
    incomplete: bool,
    /// The caller is gone; the number is not free before its final frame.
    withdrawn: bool,
    answer: Option<Assembly>,
}

/// A large answer as far as it has arrived.
struct Assembly {
    total: usize,
    arrived: usize,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Why there will be no answer when all of it has arrived.
    spoilt: Option<CallError>,
}

/// Why a session is over.
#[derive(Clone, Copy)]
enum End {
    Gone,
    Malformed,
    /// A large answer stood still.
    Stalled,
    /// The kernel passes no more descriptors of this user, or says so.
    OutOfDescriptors,
    /// The kernel's number for it.
    Io(i32),
}

impl End {
    /// For a call that may have been seen.
    fn sent(self) -> CallError {
        match self {
            End::Gone | End::OutOfDescriptors => CallError::Dropped,
            End::Malformed => CallError::Malformed("the server has broken the protocol"),
            End::Stalled => CallError::Malformed("the server has stopped in the middle of an answer"),
            End::Io(errno) => CallError::Io(std::io::Error::from_raw_os_error(errno)),
        }
    }

    fn of_kernel(error: &std::io::Error) -> End {
        error.raw_os_error().map_or(End::Gone, End::Io)
    }
}

impl From<Malformed> for End {
    fn from(_: Malformed) -> End {
        End::Malformed
    }
}

/// Why something did not come to its end.
enum Stopped {
    /// The session is over, and the calls have been told.
    Over,
    Deadline,
}

impl Caller {
    pub(super) fn new(options: ObjectOptions) -> Caller {
        Caller {
            options,
            inbox: Inbox::new(WaitPolicy::Sleep),
            calls: Slab::new(),
            session: None,
            sessions: 0,
            generation: fork::generation(),
        }
    }

    pub(super) fn set_wait_policy(&mut self, wait: WaitPolicy) {
        self.inbox = Inbox::new(wait);
    }

    pub(super) fn is_attached(&self) -> bool {
        let session = self.session.as_ref().filter(|session| !session.leaving);
        session.is_some() && self.generation == fork::generation()
    }

    // -- calling ----------------------------------------------------------------------------------------

    /// Begins a call and waits for its end.
    pub(super) fn call(
        &mut self,
        address: &SocketAddress,
        asked: Asked,
        bytes: &[u8],
        descriptors: &mut Vec<Lent<'_>>,
        deadline: Option<Instant>,
    ) -> Result<Answer, CallError> {
        if let Some(result) = self.call_alone(asked, bytes, descriptors, deadline) {
            return result;
        }
        let key = self.begin(address, asked, bytes, descriptors, Patience { deadline, company: false })?;
        self.finish(key, deadline)
    }

    /// A small call on a session where nothing else is under way, which is what most callers do and nothing
    /// else: the frame, the packet with the answer, and no table in between. `None` if it is another
    /// situation, and then nothing was sent. What happens here is what `begin` and `finish` do with it.
    fn call_alone(
        &mut self,
        asked: Asked,
        bytes: &[u8],
        descriptors: &mut Vec<Lent<'_>>,
        deadline: Option<Instant>,
    ) -> Option<Result<Answer, CallError>> {
        let Asked::Call { message, room } = asked else { return None };
        self.notice_fork();
        let session = self.session.as_mut()?;
        if session.leaving || !self.calls.is_empty() || !session.packets.is_empty() {
            return None;
        }
        let key = self.calls.vacant_key();
        let number = u32::try_from(key).ok()?;
        let straight = deadline.is_none().then(|| session.small_call(message, room, number)).flatten();
        let opening = match straight {
            Some(header) if descriptors.is_empty() => {
                session.socket.try_send_bytes(&header, bytes).ok()?;
                None
            }
            Some(header) => {
                session.socket.try_send(&[&header, bytes], descriptors).ok()?;
                None
            }
            None => {
                let opening = asked.opening(number, &session.hello, deadline);
                session.send_alone(&opening, bytes, descriptors)?;
                Some(opening)
            }
        };
        descriptors.clear();
        let mut heard = self.inbox.receive(&session.socket, deadline);
        if let Ok(packet) = &mut heard
            && packet.descriptors() <= room.descriptors()
            && let Some(payload) = wire::only_answer(packet.bytes(), packet.descriptors(), number)
            && payload.len() <= room.at_most_bytes(session.hello.message_bytes_max).bytes()
            && session.hello.packet_bytes_max as usize >= packet.bytes().len()
        {
            let payload = Bytes::from(payload);
            return Some(Ok(Answer::new(payload, packet.take_list())));
        }
        // Something else was said, or nothing: from here on it is a call among others.
        let opening = opening.unwrap_or_else(|| asked.opening(number, &session.hello, None));
        let cost = Cost::of_call(&opening, &session.hello);
        session.account.try_reserve(cost).expect("there was room for it");
        session.awaited += opening.answer().descriptors();
        session.under_way += 1;
        let under_way =
            UnderWay { opening, cost, sent: true, incomplete: false, withdrawn: false, answer: None };
        let taken = self.calls.insert(Stage::UnderWay(under_way));
        assert_eq!(taken, key, "the key that was vacant");
        let filed = session.file_result(heard, &mut self.calls);
        let stopped = self.settle(filed).and_then(|()| in_time(deadline));
        if let Err(Stopped::Deadline) = stopped
            && let Stage::UnderWay(_) = self.calls[key]
        {
            self.withdraw(key);
            return Some(Err(CallError::Deadline));
        }
        Some(self.finish(key, deadline))
    }

    /// Begins a call, under the key that is also its number. The descriptors are gone from the list when they
    /// are on their way.
    pub(super) fn begin(
        &mut self,
        address: &SocketAddress,
        asked: Asked,
        bytes: &[u8],
        descriptors: &mut Vec<Lent<'_>>,
        patience: Patience,
    ) -> Result<usize, CallError> {
        let deadline = patience.deadline;
        self.attach(address, deadline)?;
        // The place is the number, and so is kept from here on.
        let key = self.calls.insert(Stage::Done(Err(CallError::WouldBlock)));
        let number = u32::try_from(key).expect("fewer than 2^32 calls under way");
        let (opening, cost) = match self.reserve(asked, number, deadline) {
            Ok(reserved) => reserved,
            Err(error) => {
                self.calls.remove(key);
                return Err(error);
            }
        };
        let incomplete = opening.total().is_some();
        let under_way = UnderWay { opening, cost, sent: false, incomplete, withdrawn: false, answer: None };
        self.calls[key] = Stage::UnderWay(under_way);
        let payload = if incomplete { &[] } else { bytes };
        let sent = match self.open(key, &opening, payload, descriptors, patience) {
            Ok(()) if incomplete => self.send_parts(key, number, bytes, deadline),
            result => result,
        };
        match sent {
            // What became of the call stands in its place.
            Ok(()) | Err(Stopped::Over) => Ok(key),
            Err(Stopped::Deadline) => {
                self.withdraw(key);
                Err(CallError::Deadline)
            }
        }
    }

    /// Waits until the windows have room for a call, and takes it.
    fn reserve(
        &mut self,
        asked: Asked,
        number: u32,
        deadline: Option<Instant>,
    ) -> Result<(Opening, Cost), CallError> {
        loop {
            let Some(session) = &mut self.session else { return Err(CallError::Gone) };
            if session.leaving {
                return Err(CallError::Gone);
            }
            let opening = asked.opening(number, &session.hello, deadline);
            if opening.time_left() == Some(Duration::ZERO) {
                return Err(CallError::Deadline);
            }
            if session.hello.admits(&opening).is_err() {
                return Err(CallError::TooLarge(Part::Call));
            }
            let cost = Cost::of_call(&opening, &session.hello);
            let together = session.awaited + opening.answer().descriptors();
            let fits = session.awaited == 0 || together <= self.options.answer_descriptors_together;
            match session.account.room_for(cost) {
                Err(Short::Never(_)) => return Err(CallError::TooLarge(Part::Call)),
                Ok(()) if fits => {
                    session.account.try_reserve(cost).expect("asked just now");
                    session.awaited += opening.answer().descriptors();
                    session.under_way += 1;
                    return Ok((opening, cost));
                }
                // Answers to others make room.
                _ => match self.hear(deadline) {
                    Ok(()) | Err(Stopped::Over) => {}
                    Err(Stopped::Deadline) => return Err(CallError::Deadline),
                },
            }
        }
    }

    /// Waits for the end of a call and takes it out.
    pub(super) fn finish(&mut self, key: usize, deadline: Option<Instant>) -> Result<Answer, CallError> {
        self.notice_fork();
        loop {
            match &mut self.calls[key] {
                Stage::Done(_) => {
                    let Stage::Done(result) = self.calls.remove(key) else { unreachable!("looked at") };
                    return result.map_err(|error| error.by_the_clock(|| in_time(deadline).is_err()));
                }
                Stage::Elsewhere(Elsewhere { near, room, session }) => {
                    let answer = answer_from(self.inbox.receive(near, deadline));
                    if let Err(CallError::DescriptorsLost(_)) = answer
                        && let Some(current) = &mut self.session
                        && current.number == *session
                    {
                        // Whoever has answered cannot be told, and whoever let it answer can.
                        current.say_lost(key as u32);
                    }
                    let fits = |answer: &Answer| answer.bytes().len() <= room.bytes();
                    let answer = match answer {
                        // Whoever answers need not be the server, and so breaks nobody's session.
                        Ok(answer) if !fits(&answer) => Err(CallError::TooLarge(Part::Answer)),
                        answer => answer,
                    };
                    // Withdraws the call if there was no answer.
                    self.calls.remove(key);
                    return answer;
                }
                Stage::UnderWay(_) => {}
            }
            if let Err(Stopped::Deadline) = self.hear(deadline)
                && let Stage::UnderWay(_) = self.calls[key]
            {
                self.withdraw(key);
                return Err(CallError::Deadline);
            }
        }
    }

    /// The caller is gone: the server is told, without waiting.
    pub(super) fn withdraw(&mut self, key: usize) {
        self.notice_fork();
        match &mut self.calls[key] {
            // A call that went elsewhere is withdrawn by closing its end.
            Stage::Done(_) | Stage::Elsewhere(..) => drop(self.calls.remove(key)),
            Stage::UnderWay(under_way) => {
                under_way.withdrawn = true;
                under_way.incomplete = false;
                // Its parts may come for a long time yet, or never.
                under_way.answer.as_mut().map(Assembly::give_up);
                self.say_cancel(key as u32);
            }
        }
    }

    /// Sends all that waits to be sent.
    pub(super) fn flush(&mut self) -> Result<(), CallError> {
        self.notice_fork();
        match self.send_waiting(None) {
            Ok(()) => Ok(()),
            Err(Stopped::Deadline) => unreachable!("there was none"),
            Err(Stopped::Over) => Err(CallError::Gone),
        }
    }

    /// Files what has arrived meanwhile, if no call is under way that would do so: the server may have left.
    pub(super) fn look_around(&mut self) {
        self.notice_fork();
        let Some(session) = &mut self.session else { return };
        if session.under_way == 0 && session.packets.is_empty() {
            let heard = self.inbox.try_receive(&session.socket);
            let filed = session.file_result(heard, &mut self.calls);
            let _ = self.settle(filed);
        }
    }

    // -- the session ------------------------------------------------------------------------------------

    /// In a forked child: the session is the parent's. Its copy is closed, which ends nothing, and its calls
    /// are not this process's any more.
    fn notice_fork(&mut self) {
        let generation = fork::generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        self.session = None;
        self.end_calls(|_| CallError::Dropped);
        for (_, stage) in &mut self.calls {
            if let Stage::Elsewhere(..) = stage {
                *stage = Stage::Done(Err(CallError::Dropped));
            }
        }
    }

    /// Sees to it that there is a session that takes calls.
    pub(super) fn attach(
        &mut self,
        address: &SocketAddress,
        deadline: Option<Instant>,
    ) -> Result<(), CallError> {
        self.notice_fork();
        // A server that leaves still answers what it has.
        while self.session.as_ref().is_some_and(|session| session.leaving) {
            if !self.is_awaiting() {
                self.end(End::Gone);
                break;
            }
            match self.hear(deadline) {
                Ok(()) | Err(Stopped::Over) => {}
                Err(Stopped::Deadline) => return Err(CallError::Deadline),
            }
        }
        if self.session.is_some() {
            return Ok(());
        }
        let connected = address.connect_until(deadline).map_err(|error| match error {
            ConnectError::OutOfDescriptors => CallError::OutOfDescriptors(Part::Call),
            ConnectError::WouldBlock => CallError::Deadline,
            ConnectError::Io(error) => CallError::Io(error),
            _ => CallError::Gone,
        })?;
        let socket = connected.into_socket();
        // There is one server at the other end, and nobody looks at who says what.
        socket.forgo_credentials();
        // One at least, for a grant or an answer from elsewhere.
        socket.set_descriptors_max(self.options.answer_descriptors.max(1));
        let session = match self.inbox.receive(&socket, deadline) {
            Ok(packet) => opened(&packet),
            Err(ReceiveError::Truncated(_) | ReceiveError::DescriptorsLost(_)) => Err(Malformed::Empty),
            Err(ReceiveError::Deadline) => return Err(CallError::Deadline),
            Err(ReceiveError::Io(error)) => return Err(CallError::Io(error)),
            Err(_) => return Err(CallError::Gone),
        };
        let (hello, account, leaving) =
            session.map_err(|_| CallError::Malformed("not a session of this protocol"))?;
        self.sessions += 1;
        self.session = Some(Session {
            number: self.sessions,
            socket,
            hello,
            account,
            packets: VecDeque::new(),
            spare: Packet::default(),
            under_way: 0,
            awaited: 0,
            arriving: 0,
            heard: None,
            leaving,
        });
        // One that says goodbye with its hello takes nothing.
        if leaving {
            self.end(End::Gone);
            return Err(CallError::Gone);
        }
        Ok(())
    }

    /// Whether there is a call under way that has not been withdrawn.
    fn is_awaiting(&self) -> bool {
        let awaited = |stage: &Stage| matches!(stage, Stage::UnderWay(under_way) if !under_way.withdrawn);
        self.calls.iter().any(|(_, stage)| awaited(stage))
    }

    /// Sends what waits, then receives one packet and files what it says.
    fn hear(&mut self, deadline: Option<Instant>) -> Result<(), Stopped> {
        self.send_waiting(deadline)?;
        let Some(session) = &mut self.session else { return Err(Stopped::Over) };
        // In the middle of a large answer nobody waits for longer than it may stand still.
        let stalled = session.heard.and_then(|heard| heard.checked_add(self.options.large_stall));
        let until = deadline.into_iter().chain(stalled).min();
        let heard = self.inbox.receive(&session.socket, until);
        if let Err(ReceiveError::Deadline) = heard
            && in_time(deadline).is_ok()
        {
            self.end(End::Stalled);
            return Err(Stopped::Over);
        }
        let filed = session.file_result(heard, &mut self.calls);
        self.settle(filed)?;
        in_time(deadline)
    }

    /// Acts on what filing a packet has come to.
    fn settle(&mut self, filed: Result<(), Ended>) -> Result<(), Stopped> {
        match filed {
            Ok(()) => {}
            Err(Ended::Deadline) => return Err(Stopped::Deadline),
            Err(Ended::Session(end)) => {
                self.end(end);
                return Err(Stopped::Over);
            }
        }
        let has_left = self.session.as_ref().is_some_and(|session| session.leaving && session.under_way == 0);
        if has_left {
            // Closed from here, so that a server that leaves need not wait for long.
            self.end(End::Gone);
            return Err(Stopped::Over);
        }
        Ok(())
    }

    /// The session is over: each call under way is told, once.
    fn end(&mut self, end: End) {
        let Some(session) = self.session.take() else { return };
        if let End::Malformed | End::Stalled = end {
            session.socket.shut_down();
        }
        drop(session);
        // What was never sent another session may send.
        self.end_calls(|under_way| if under_way.sent { end.sent() } else { CallError::Gone });
    }

    fn end_calls(&mut self, error: impl Fn(&UnderWay) -> CallError) {
        self.calls.retain(|_, stage| {
            let Stage::UnderWay(under_way) = stage else { return true };
            if under_way.withdrawn {
                return false;
            }
            *stage = Stage::Done(Err(error(under_way)));
            true
        });
    }

    // -- sending ----------------------------------------------------------------------------------------

    /// Sends the frame that opens a call, now or with others.
    fn open(
        &mut self,
        key: usize,
        opening: &Opening,
        payload: &[u8],
        descriptors: &mut Vec<Lent<'_>>,
        patience: Patience,
    ) -> Result<(), Stopped> {
        let header = opening.encode();
        let Some(session) = &mut self.session else { return Err(Stopped::Over) };
        let large = opening.total().is_some();
        if session.packets.is_empty() && (large || !patience.company || !descriptors.is_empty()) {
            match session.socket.try_send(&[&header, payload], descriptors) {
                Ok(()) => {
                    descriptors.clear();
                    self.mark_sent(key);
                    return Ok(());
                }
                Err(SendError::WouldBlock) => {}
                Err(error) => return self.not_sent(&[key], error, !descriptors.is_empty()),
            }
        }
        if let Err(error) = session.add(&[&header, payload], descriptors, Some(key)) {
            return self.not_sent(&[key], error, true);
        }
        if large || !patience.company || session.packets.len() > 1 {
            self.send_waiting(patience.deadline)?;
        }
        Ok(())
    }

    /// Sends a large call's bytes, from where they lie. Stops where the call has ended meanwhile.
    fn send_parts(
        &mut self,
        key: usize,
        number: u32,
        bytes: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), Stopped> {
        let Some(session) = &self.session else { return Err(Stopped::Over) };
        let part_bytes = session.hello.part_bytes_max() as usize;
        for part in bytes.chunks(part_bytes) {
            let header = Header::part(number, part.len() as u32).encode();
            // It may have been refused. A server that reads as fast as this is sent would be sent all of it.
            self.look()?;
            loop {
                let Some(session) = &mut self.session else { return Err(Stopped::Over) };
                if !matches!(self.calls[key], Stage::UnderWay(_)) {
                    // Refused before it was complete. The server must know where the parts end.
                    self.say_cancel(number);
                    return Ok(());
                }
                match session.socket.try_send(&[&header, part], NO_DESCRIPTORS) {
                    Ok(()) => break,
                    Err(SendError::WouldBlock) => self.wait(deadline)?,
                    Err(error) => return self.not_sent(&[], error, false),
                }
            }
        }
        if let Stage::UnderWay(under_way) = &mut self.calls[key] {
            under_way.incomplete = false;
        }
        Ok(())
    }

    /// Sends what waits to be sent, in order, and meanwhile files what comes: a side never stops receiving
    /// because it cannot send.
    fn send_waiting(&mut self, deadline: Option<Instant>) -> Result<(), Stopped> {
        while !self.try_send_waiting()? {
            self.wait(deadline)?;
        }
        Ok(())
    }

    /// Sends what can be sent at once. Says whether that was all.
    fn try_send_waiting(&mut self) -> Result<bool, Stopped> {
        loop {
            let Some(session) = &mut self.session else { return Err(Stopped::Over) };
            let Some(packet) = session.packets.front() else { return Ok(true) };
            let result = session.socket.try_send(&[&packet.bytes], &packet.descriptors);
            if let Err(SendError::WouldBlock) = result {
                return Ok(false);
            }
            let mut packet = session.packets.pop_front().expect("looked at");
            let own_fault = !packet.descriptors.is_empty();
            packet.descriptors.drain(..).for_each(ring::discard);
            match result {
                Ok(()) => {
                    packet.opens.iter().for_each(|key| self.mark_sent(*key));
                    self.reuse(packet);
                }
                Err(error) => self.not_sent(&packet.opens, error, own_fault)?,
            }
        }
    }

    /// Keeps the memory of a packet that was sent.
    fn reuse(&mut self, mut packet: Packet) {
        if let Some(session) = &mut self.session {
            packet.bytes.clear();
            packet.opens.clear();
            session.spare = packet;
        }
    }

    /// Until the socket takes more, or something was filed.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Stopped> {
        let Some(session) = &mut self.session else { return Err(Stopped::Over) };
        let ready = match session.socket.wait(deadline) {
            Ok(ready) => ready,
            Err(error) => {
                self.end(End::of_kernel(&error));
                return Err(Stopped::Over);
            }
        };
        if ready.readable {
            self.look()?;
            in_time(deadline)
        } else if ready.writable {
            Ok(())
        } else {
            Err(Stopped::Deadline)
        }
    }

    /// Files a packet if there is one.
    fn look(&mut self) -> Result<(), Stopped> {
        let Some(session) = &mut self.session else { return Err(Stopped::Over) };
        let heard = self.inbox.try_receive(&session.socket);
        match session.file_result(heard, &mut self.calls) {
            // That nothing is there is nobody's deadline.
            Err(Ended::Deadline) => Ok(()),
            filed => self.settle(filed),
        }
    }

    fn mark_sent(&mut self, key: usize) {
        if let Some(Stage::UnderWay(under_way)) = self.calls.get_mut(key) {
            under_way.sent = true;
        }
    }

    /// A packet could not be sent. If that is for what was in it, that call ends; otherwise the session does.
    fn not_sent(&mut self, opens: &[usize], error: SendError, own_fault: bool) -> Result<(), Stopped> {
        match error {
            SendError::Gone => {
                // What the server had said before it went is still there.
                let _ = (0..LAST_WORDS_MAX).all(|_| self.hear_last());
                self.end(End::Gone);
                Err(Stopped::Over)
            }
            error if own_fault && opens.len() == 1 => {
                let Some(session) = &mut self.session else { return Err(Stopped::Over) };
                session.forget(opens[0], CallError::from_send(error), &mut self.calls);
                Ok(())
            }
            SendError::Io(error) => {
                self.end(End::of_kernel(&error));
                Err(Stopped::Over)
            }
            SendError::OutOfDescriptors => {
                self.end(End::OutOfDescriptors);
                Err(Stopped::Over)
            }
            _ => {
                self.end(End::Malformed);
                Err(Stopped::Over)
            }
        }
    }

    /// Files one packet more of a server that is gone, if there is one. Nothing is waited for: an end that
    /// only takes nothing would never say another word.
    fn hear_last(&mut self) -> bool {
        let Some(session) = &mut self.session else { return false };
        let heard = self.inbox.try_receive(&session.socket);
        let filed = session.file_result(heard, &mut self.calls);
        self.settle(filed).is_ok()
    }

    fn say_cancel(&mut self, number: u32) {
        let Some(session) = &mut self.session else { return };
        let cancel = Header::cancel(number).encode();
        if session.packets.is_empty() && session.socket.try_send(&[&cancel], NO_DESCRIPTORS).is_ok() {
            return;
        }
        // Behind what waits. A server that is gone is noticed by whoever receives next.
        let _ = session.add(&[&cancel], &mut Vec::new(), None);
        let _ = self.try_send_waiting();
    }
}

/// What one packet, or none, has come to.
enum Ended {
    Deadline,
    Session(End),
}

impl From<Malformed> for Ended {
    fn from(malformed: Malformed) -> Ended {
        Ended::Session(malformed.into())
    }
}

impl Session {
    // -- towards the server -----------------------------------------------------------------------------

    /// The header of a call as most are, of bytes that fit a packet and with no more room for the answer, if
    /// the windows have room for it. `None` says nothing: what [`Session::send_alone`] does is asked of any
    /// call.
    #[inline]
    fn small_call(&self, message: Size, room: Size, number: u32) -> Option<[u8; HEADER_BYTES]> {
        let fits = self.hello.packet_bytes_max as usize == PACKET_BYTES_MAX
            && message.bytes() <= PAYLOAD_BYTES_MAX
            && message.descriptors() <= self.hello.call_descriptors_max as usize
            && room.bytes() <= PAYLOAD_BYTES_MAX
            && self.account.has_room_for_small_call(message, room);
        fits.then(|| wire::small_call_header(number, message, room))
    }

    /// Sends a call that fits a packet, if there is room for it and its time is not over. `None` if it was
    /// not sent.
    #[inline(never)]
    fn send_alone(&self, opening: &Opening, bytes: &[u8], descriptors: &[Lent<'_>]) -> Option<()> {
        let expired = opening.time_left() == Some(Duration::ZERO);
        let cost = Cost::of_call(opening, &self.hello);
        let fits = self.hello.admits(opening).is_ok() && self.account.room_for(cost).is_ok();
        if expired || !fits || opening.total().is_some() {
            return None;
        }
        self.socket.try_send(&[&opening.encode(), bytes], descriptors).ok()
    }

    /// Adds a frame to what waits to be sent.
    fn add(
        &mut self,
        parts: &[&[u8]],
        descriptors: &mut Vec<Lent<'_>>,
        opens: Option<usize>,
    ) -> Result<(), SendError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let room = self.hello.packet_bytes_max as usize;
        let joins = descriptors.is_empty()
            && self
                .packets
                .back()
                .is_some_and(|last| last.descriptors.is_empty() && last.bytes.len() + bytes <= room);
        if !joins {
            let mut packet = std::mem::take(&mut self.spare);
            for fd in descriptors.drain(..) {
                let owned = match fd {
                    Lent::Given(fd) => fd.try_into_owned().or_else(|fd| fd.as_fd().try_clone_to_owned()),
                    Lent::Lent(fd) => fd.try_clone_to_owned(),
                };
                // No room for a duplicate: the caller's call, which is the last thing added, cannot be sent.
                packet.descriptors.push(owned.map_err(|_| SendError::OutOfDescriptors)?);
            }
            self.packets.push_back(packet);
        }
        let last = self.packets.back_mut().expect("there is one");
        parts.iter().for_each(|part| last.bytes.extend_from_slice(part));
        last.opens.extend(opens);
        Ok(())
    }

    /// The server shall know of descriptors that did not arrive, before this number is used again.
    fn say_lost(&mut self, number: u32) {
        let lost = Header::lost(number).encode();
        if self.packets.is_empty() && self.socket.try_send(&[&lost], NO_DESCRIPTORS).is_ok() {
            return;
        }
        // Behind what waits, and sent with that. A server that is gone is noticed by whoever receives next.
        let _ = self.add(&[&lost], &mut Vec::new(), None);
    }

    // -- from the server --------------------------------------------------------------------------------

    fn file_result(
        &mut self,
        heard: Result<Received<'_>, ReceiveError>,
        calls: &mut Slab<Stage>,
    ) -> Result<(), Ended> {
        match heard {
            Ok(packet) => Ok(self.file(packet, false, calls)?),
            Err(ReceiveError::DescriptorsLost(packet)) => Ok(self.file(packet, true, calls)?),
            Err(ReceiveError::Deadline) => Err(Ended::Deadline),
            Err(ReceiveError::Truncated(_)) => Err(Ended::Session(End::Malformed)),
            Err(ReceiveError::Io(error)) => Err(Ended::Session(End::of_kernel(&error))),
            Err(_) => Err(Ended::Session(End::Gone)),
        }
    }

    /// Files what a packet says.
    fn file(
        &mut self,
        mut packet: Received<'_>,
        cut: bool,
        calls: &mut Slab<Stage>,
    ) -> Result<(), Malformed> {
        // In an answer, so that they are closed as its are if nobody takes them.
        let mut descriptors = Answer::new(Vec::new(), packet.take_descriptors());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        for frame in wire::frames(packet.bytes(), arrived) {
            let frame = frame?;
            self.hello.admits(&frame.opening())?;
            self.frame(frame.from_server()?, &mut descriptors, calls)?;
        }
        self.heard = (self.arriving > 0).then(Instant::now);
        Ok(())
    }

    fn frame(
        &mut self,
        frame: FromServer<'_>,
        descriptors: &mut Answer,
        calls: &mut Slab<Stage>,
    ) -> Result<(), Malformed> {
        match frame {
            FromServer::Answer { number, body, descriptors: declared, missing } => {
                let under_way = under_way(calls, number, Kind::Answer)?;
                under_way.may_end(Kind::Answer, number)?;
                let bytes = match body {
                    Body::Whole(payload) => payload.len(),
                    Body::Large { total } => total as usize,
                };
                let size = Size::of_bytes(bytes).and_then(|size| size.with_descriptors(declared.into()));
                let fits = size.is_ok_and(|size| under_way.opening.answer().holds(size));
                let granted = under_way.opening.header.kind != Kind::Grant || declared == 1;
                if !fits || !granted {
                    return Err(Malformed::Answer {
                        kind: Kind::Answer,
                        answer_bytes: bytes as u32,
                        answer_descriptors: declared,
                    });
                }
                if missing > 0 {
                    self.say_lost(number);
                }
                let taken = if declared > 0 { descriptors.take_descriptors() } else { Vec::new() };
                let lost = (missing > 0).then_some(CallError::DescriptorsLost(Part::Answer));
                match body {
                    Body::Whole(payload) => {
                        let answer = Answer::new(payload.to_vec(), taken);
                        self.over(number, lost.map_or(Ok(answer), Err), calls);
                    }
                    Body::Large { total } => {
                        self.arriving += 1;
                        under_way.answer = Some(Assembly {
                            total: total as usize,
                            arrived: 0,
                            bytes: Vec::new(),
                            descriptors: taken,
                            spoilt: lost,
                        });
                    }
                }
            }
            FromServer::Part { number, payload } => {
                let under_way = under_way(calls, number, Kind::Part)?;
                let Some(assembly) = &mut under_way.answer else {
                    return Err(Malformed::Number { kind: Kind::Part, number });
                };
                let wanted = !under_way.withdrawn;
                if assembly.add(payload, self.hello.part_bytes_max() as usize, wanted)? {
                    let assembly = under_way.answer.take().expect("just added to");
                    self.arriving -= 1;
                    self.over(number, assembly.whole(), calls);
                }
            }
            FromServer::Dropped { number } => {
                let under_way = under_way(calls, number, Kind::Dropped)?;
                under_way.may_end(Kind::Dropped, number)?;
                self.over(number, Err(CallError::Dropped), calls);
            }
            FromServer::Refused { number, reason } => {
                let under_way = under_way(calls, number, Kind::Refused)?;
                let midway = under_way.answer.is_some();
                if midway && !(under_way.withdrawn && reason == RefusedReason::Cancelled) {
                    return Err(Malformed::Midway { kind: Kind::Refused, number });
                }
                self.over(number, Err(CallError::from_refusal(reason)), calls);
            }
            FromServer::Elsewhere { number, missing } => {
                let under_way = under_way(calls, number, Kind::Elsewhere)?;
                under_way.may_end(Kind::Elsewhere, number)?;
                if under_way.opening.header.kind == Kind::Grant {
                    return Err(Malformed::WrongSide(Kind::Elsewhere));
                }
                if missing > 0 {
                    self.say_lost(number);
                    self.over(number, Err(CallError::DescriptorsLost(Part::Answer)), calls);
                    return Ok(());
                }
                let near = descriptors.take_descriptor().ok_or(Malformed::Elsewhere)?;
                let near = connected(near).map_err(|_| Malformed::Elsewhere)?;
                let room = under_way.opening.answer();
                let withdrawn = under_way.withdrawn;
                near.set_private(true);
                near.set_descriptors_max(room.descriptors());
                // For the session this is the end; for the caller it is not.
                self.over(number, Err(CallError::Dropped), calls);
                if !withdrawn {
                    let elsewhere = Elsewhere { near, room, session: self.number };
                    calls[number as usize] = Stage::Elsewhere(elsewhere);
                }
            }
            FromServer::Credit(windows) => self.account.grow(windows)?,
            FromServer::Goodbye if self.leaving => return Err(Malformed::AfterGoodbye(Kind::Goodbye)),
            FromServer::Goodbye => self.leaving = true,
            FromServer::Hello(_) => return Err(Malformed::WrongSide(Kind::Hello)),
        }
        Ok(())
    }

    /// A call has ended: its share is free, and its number when the caller has looked.
    fn over(&mut self, number: u32, result: Result<Answer, CallError>, calls: &mut Slab<Stage>) {
        let key = number as usize;
        let Stage::UnderWay(under_way) = &calls[key] else { unreachable!("found before") };
        self.under_way -= 1;
        self.arriving -= usize::from(under_way.answer.is_some());
        self.awaited -= under_way.opening.answer().descriptors();
        self.account.release(under_way.cost);
        if under_way.withdrawn {
            // Nobody wants it any more.
            calls.remove(key);
        } else {
            calls[key] = Stage::Done(result);
        }
    }

    /// A call that was never sent has ended.
    fn forget(&mut self, key: usize, error: CallError, calls: &mut Slab<Stage>) {
        if let Some(Stage::UnderWay(_)) = calls.get(key) {
            self.over(key as u32, Err(error), calls);
        }
    }
}

/// A call that awaits its final frame.
fn under_way(calls: &mut Slab<Stage>, number: u32, kind: Kind) -> Result<&mut UnderWay, Malformed> {
    match calls.get_mut(number as usize) {
        // Of what has not been sent nothing can be said.
        Some(Stage::UnderWay(under_way)) if under_way.sent => Ok(under_way),
        _ => Err(Malformed::Number { kind, number }),
    }
}

impl UnderWay {
    /// A large call that is not complete, or answer, is not ended in its middle by this.
    fn may_end(&self, kind: Kind, number: u32) -> Result<(), Malformed> {
        if self.incomplete || self.answer.is_some() {
            return Err(Malformed::Midway { kind, number });
        }
        Ok(())
    }
}

impl Assembly {
    /// Adds a part. Says whether it was the last.
    fn add(&mut self, part: &[u8], part_bytes_max: usize, wanted: bool) -> Result<bool, Malformed> {
        expect_part(part.len(), self.total - self.arrived, part_bytes_max)?;
        self.arrived += part.len();
        if !wanted || self.spoilt.is_some() {
            // Still to be heard to its end, but not to be kept.
            self.bytes = Vec::new();
        } else if self.make_room(part.len()) {
            self.bytes.extend_from_slice(part);
        } else {
            self.bytes = Vec::new();
            self.spoilt = Some(CallError::OutOfMemory(Part::Answer));
        }
        Ok(self.arrived == self.total)
    }

    /// Nobody wants it any more.
    fn give_up(&mut self) {
        self.bytes = Vec::new();
        self.descriptors.drain(..).for_each(ring::discard);
    }

    fn make_room(&mut self, bytes: usize) -> bool {
        let free = self.bytes.capacity() - self.bytes.len();
        if bytes <= free {
            return true;
        }
        if self.bytes.is_empty() && self.total >= HUGE_ROOM_BYTES_MIN {
            // Nothing but addresses before something is written there; grown by and by it would have small
            // pages only, each of which the kernel clears by itself.
            return ring::room_for(self.total).map(|room| self.bytes = room).is_ok();
        }
        // Twice what has arrived, and a megabyte at first, but never more than is to come.
        let ahead = self.bytes.len().max(AHEAD_MAX).min(self.total - self.bytes.len());
        self.bytes.try_reserve_exact(ahead).is_ok()
    }

    fn whole(mut self) -> Result<Answer, CallError> {
        let answer = Answer::new(std::mem::take(&mut self.bytes), std::mem::take(&mut self.descriptors));
        self.spoilt.take().map_or(Ok(answer), Err)
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// After each packet: a server that says one thing after the other, none of them a final frame, could keep us
/// listening for ever, since what is there is received whatever the time is.
fn in_time(deadline: Option<Instant>) -> Result<(), Stopped> {
    let passed = deadline.is_some_and(|deadline| deadline <= Instant::now());
    if passed { Err(Stopped::Deadline) } else { Ok(()) }
}

/// The first packet must begin with HELLO.
fn opened(packet: &Received<'_>) -> Result<(Hello, Account, bool), Malformed> {
    let mut frames = wire::frames(packet.bytes(), Arrived::Whole(packet.descriptors()));
    let first = frames.next().expect("a packet has a frame or an error")?;
    let FromServer::Hello(hello) = first.from_server()? else {
        return Err(Malformed::WrongSide(first.header.kind));
    };
    let mut account = Account::new(hello.windows);
    let mut leaving = false;
    for frame in frames {
        // A server may say more in the packet of its HELLO: larger windows, or that it is leaving.
        let frame = frame?;
        match frame.from_server()? {
            FromServer::Goodbye if !leaving => leaving = true,
            FromServer::Credit(windows) => account.grow(windows)?,
            _ => return Err(Malformed::WrongSide(frame.header.kind)),
        }
    }
    Ok((hello, account, leaving))
}

/// An AF_UNIX socket of type SEQPACKET that is connected, or was.
pub(super) fn connected(fd: OwnedFd) -> Result<Socket, WrapError> {
    imc::blocking::ConnectedSocket::from_fd(fd).map(imc::blocking::ConnectedSocket::into_socket)
}
