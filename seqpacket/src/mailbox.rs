//! The server's side of an object with sessions: who attached, whose turn it is, and the calls.
//!
//! A mailbox owns its bound sockets and, through companions of the reactor, its sessions: they accept, receive
//! and file calls whatever the server's own tasks do. Each session has its own queue, and they are served in
//! turn. It never knows what a message means.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytemuck::AnyBitPattern;
use imc::{AcceptError, BoundSocket, Who, WrapError};
use ring::{Companion, Credentials, Fd, Message, Reactor, ReceiveError, Received, Socket};
use slab::Slab;

use crate::continuation::Continuation;
use crate::credit::{Account, Cost};
use crate::error::AnswerError;
use crate::parcel::Parcel;
use crate::wire::{
    self, Arrived, CALL_DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, FromClient, Header, Hello, PACKET_BYTES_MAX,
    RefusedReason, Size, Windows,
};

/// What a server promises its clients, and how many it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxOptions {
    /// Calls one session may have under way. Default 256.
    pub calls: u32,
    /// Bytes one session may have under way, calls and room for answers together. Default 18 MiB; at least
    /// two packets (131,072). A session that does not read its answers is disconnected when so many bytes of
    /// them wait.
    pub bytes: u32,
    /// Descriptors of calls under way of one session. Default 64, at least `call_descriptors`.
    pub descriptors: u32,
    /// Descriptors one call may carry. Default 16, at most 253; with more than 16 every packet costs a system
    /// call more.
    pub call_descriptors: u32,
    /// Sessions at a time; further clients wait in the kernel's queue until one ends. Default 1,024.
    pub sessions: usize,
    /// Grants that may be open at a time, those made by [`Mailbox::grant`] not counted; beyond, a client that
    /// asks for one is refused. Default 1,024; 0 refuses all.
    pub grants: usize,
}

impl Default for MailboxOptions {
    fn default() -> MailboxOptions {
        let windows = Windows::default();
        MailboxOptions {
            calls: windows.calls,
            bytes: windows.bytes,
            descriptors: windows.descriptors,
            call_descriptors: CALL_DESCRIPTORS_DEFAULT,
            sessions: 1024,
            grants: 1024,
        }
    }
}

impl MailboxOptions {
    /// As a HELLO that a client accepts: what is too small is made large enough.
    fn hello(self) -> Hello {
        let call_descriptors_max = self.call_descriptors.min(DESCRIPTORS_MAX as u32);
        let windows = Windows {
            calls: self.calls.max(1),
            bytes: self.bytes.max(2 * PACKET_BYTES_MAX as u32),
            descriptors: self.descriptors.max(call_descriptors_max),
        };
        Hello { windows, call_descriptors_max, packet_bytes_max: PACKET_BYTES_MAX as u32 }
    }
}

/// What peers have done that the protocol does not allow. Each cost its session, nobody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violations {
    /// Sessions ended for a malformed packet.
    pub malformed: u64,
    /// Sessions ended for going beyond their windows.
    pub beyond_window: u64,
    /// Sessions ended because their answers were not read.
    pub unread: u64,
}

/// Where an object's calls arrive.
///
/// Dropping it ends the object: calls that nobody has taken are answered by nobody, those that were taken can
/// still be answered.
pub struct Mailbox {
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    reactor: Reactor,
    options: MailboxOptions,
    hello: Hello,
    state: RefCell<State>,
    violations: Cell<Violations>,
    attached_ever: Cell<u64>,
}

#[derive(Default)]
struct State {
    acceptors: Slab<Companion>,
    /// Acceptors that have not come to their end.
    accepting: usize,
    /// Of those, grants asked for by clients.
    granted: usize,
    sessions: Slab<(Rc<Session>, Option<Companion>)>,
    /// Sessions that have calls, in the order in which they are served.
    turn: VecDeque<usize>,
    waiting: Vec<Waker>,
    /// Acceptors that wait for a session to end.
    crowd: Vec<Waker>,
    closed: bool,
}

/// One client's session.
pub(crate) struct Session {
    key: Cell<usize>,
    socket: Socket,
    who: Credentials,
    mailbox: Weak<Shared>,
    state: RefCell<SessionState>,
}

struct SessionState {
    account: Account,
    calls: HashMap<u32, Entry>,
    queue: VecDeque<(u32, Size, Parcel)>,
    over: bool,
}

/// One call under way.
struct Entry {
    cost: Cost,
    withdrawn: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    pub(crate) fn new(reactor: &Reactor, bound: BoundSocket, options: MailboxOptions) -> Mailbox {
        let shared = Rc::new(Shared {
            reactor: reactor.clone(),
            options,
            hello: options.hello(),
            state: RefCell::new(State::default()),
            violations: Cell::new(Violations::default()),
            attached_ever: Cell::new(0),
        });
        shared.accept_from(bound, false);
        Mailbox { shared }
    }

    /// From an inherited or received descriptor: the bound end of an object with sessions.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<Mailbox, WrapError> {
        Mailbox::from_fd_with(reactor, fd, MailboxOptions::default())
    }

    /// As [`from_fd`](Mailbox::from_fd), with options.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd_with(
        reactor: &Reactor,
        fd: OwnedFd,
        options: MailboxOptions,
    ) -> Result<Mailbox, WrapError> {
        Ok(Mailbox::new(reactor, BoundSocket::from_fd(reactor, fd)?, options))
    }

    /// The next call, of the sessions in turn; `None` when nobody holds an address or a session any more.
    pub async fn next(&self) -> Option<Incoming> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`next`](Mailbox::next), for futures written by hand.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut state = self.shared.state.borrow_mut();
        while let Some(key) = state.turn.pop_front() {
            let Some((session, _)) = state.sessions.get(key) else { continue };
            let session = Rc::clone(session);
            let Some((call, more)) = session.take() else { continue };
            if more {
                state.turn.push_back(key);
            }
            return Poll::Ready(Some(call));
        }
        if state.accepting == 0 && state.sessions.is_empty() {
            return Poll::Ready(None);
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// A fresh address of this object, for one holder: its sessions are apart from all others'.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn grant(&self) -> io::Result<OwnedFd> {
        self.shared.grant(false)
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        self.shared.state.borrow().sessions.len()
    }

    /// How many clients have attached so far.
    pub fn attached_ever(&self) -> u64 {
        self.shared.attached_ever.get()
    }

    /// What peers have done that the protocol does not allow.
    pub fn violations(&self) -> Violations {
        self.shared.violations.get()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.shared.reactor
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        state.closed = true;
        let acceptors = std::mem::take(&mut state.acceptors);
        let sessions = std::mem::take(&mut state.sessions);
        let waiting = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.crowd));
        state.turn.clear();
        drop(state);
        // The companions hold the mailbox's inside; with them goes what they hold.
        drop(acceptors);
        for (_, (session, companion)) in sessions {
            drop(companion);
            session.leave();
        }
        drop(waiting);
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Accepts from one bound socket until all of its addresses are closed.
    fn accept_from(self: &Rc<Shared>, bound: BoundSocket, granted: bool) {
        let mut state = self.state.borrow_mut();
        state.accepting += 1;
        state.granted += usize::from(granted);
        let entry = state.acceptors.vacant_entry();
        let key = entry.key();
        let shared = Rc::clone(self);
        entry.insert(self.reactor.companion(async move {
            accept_all(&shared, bound).await;
            shared.acceptor_ended(key, granted);
        }));
    }

    fn acceptor_ended(&self, key: usize, granted: bool) {
        let mut state = self.state.borrow_mut();
        state.accepting -= 1;
        state.granted -= usize::from(granted);
        let woken = std::mem::take(&mut state.waiting);
        let companion = state.acceptors.try_remove(key);
        drop(state);
        drop(companion);
        wake(woken);
    }

    fn grant(self: &Rc<Shared>, by_client: bool) -> io::Result<OwnedFd> {
        let (bound, address) = imc::bound_socket(&self.reactor)?;
        let fd = address.share()?;
        self.accept_from(bound, by_client);
        Ok(fd)
    }

    fn grant_to_client(self: &Rc<Shared>) -> Result<OwnedFd, RefusedReason> {
        if self.state.borrow().granted >= self.options.grants {
            return Err(RefusedReason::Refused);
        }
        self.grant(true).map_err(|_| RefusedReason::OutOfDescriptors)
    }

    fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.sessions.len() < self.options.sessions {
            return Poll::Ready(());
        }
        state.crowd.push(context.waker().clone());
        Poll::Pending
    }

    fn attach(self: &Rc<Shared>, socket: Socket, who: &Who) {
        let hello = self.hello;
        socket.set_private(true);
        socket.set_descriptors_max(hello.call_descriptors_max as usize);
        socket.stream();
        socket.post(&[&hello.frame()], Vec::new());
        self.attached_ever.set(self.attached_ever.get() + 1);
        let nobody = Credentials { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let session = Rc::new(Session {
            key: Cell::new(0),
            socket,
            who: who.credentials.unwrap_or(nobody),
            mailbox: Rc::downgrade(self),
            state: RefCell::new(SessionState {
                account: Account::new(hello.windows),
                calls: HashMap::new(),
                queue: VecDeque::new(),
                over: false,
            }),
        });
        let key = self.state.borrow_mut().sessions.insert((Rc::clone(&session), None));
        session.key.set(key);
        let served = Rc::clone(&session);
        let companion = self.reactor.companion(async move { serve(&served).await });
        self.state.borrow_mut().sessions[key].1 = Some(companion);
    }

    /// A session is over. Its calls that nobody has taken go with it.
    fn detach(&self, key: usize) {
        let mut state = self.state.borrow_mut();
        let removed = state.sessions.try_remove(key);
        let mut woken = std::mem::take(&mut state.crowd);
        if state.accepting == 0 && state.sessions.is_empty() {
            woken.append(&mut state.waiting);
        }
        drop(state);
        drop(removed);
        wake(woken);
    }

    /// A session that had no calls has some.
    fn take_turn(&self, key: usize) {
        let mut state = self.state.borrow_mut();
        state.turn.push_back(key);
        let woken = std::mem::take(&mut state.waiting);
        drop(state);
        wake(woken);
    }

    fn count(&self, count: impl FnOnce(&mut Violations)) {
        let mut violations = self.violations.get();
        count(&mut violations);
        self.violations.set(violations);
    }
}

async fn accept_all(shared: &Rc<Shared>, bound: BoundSocket) {
    loop {
        poll_fn(|context| shared.poll_room(context)).await;
        match bound.accept().await {
            Ok(arrival) => shared.attach(arrival.socket.into_socket(), &arrival.who),
            Err(AcceptError::Gone) => return,
            // What the kernel refused once it may grant later: out of memory, say. The address still stands.
            Err(_) => return,
        }
    }
}

/// What ended a session.
enum Over {
    Closed,
    Malformed,
    BeyondWindow,
    Unread,
}

async fn serve(session: &Rc<Session>) {
    let over = session.receive_all().await;
    let Some(mailbox) = session.mailbox.upgrade() else { return };
    match over {
        Over::Closed => {}
        Over::Malformed => mailbox.count(|violations| violations.malformed += 1),
        Over::BeyondWindow => mailbox.count(|violations| violations.beyond_window += 1),
        Over::Unread => mailbox.count(|violations| violations.unread += 1),
    }
    session.end();
    mailbox.detach(session.key.get());
}

impl Session {
    async fn receive_all(&self) -> Over {
        loop {
            // One packet, then the others have theirs. With nothing waiting there is nothing to yield for, and
            // the answer leaves in the enter that sleeps.
            let received = match self.socket.try_receive() {
                Some(received) => {
                    yield_once().await;
                    received
                }
                None => self.socket.receive().await,
            };
            let (packet, cut) = match received {
                Ok(packet) => (packet, false),
                Err(ReceiveError::DescriptorsLost(packet)) => (packet, true),
                Err(ReceiveError::Truncated(_)) => return Over::Malformed,
                Err(_) => return Over::Closed,
            };
            if let Err(over) = self.file(packet, cut) {
                return over;
            }
            // A client that reads has never more than its window of answers waiting.
            if self.socket.unsent() > self.state.borrow().account.windows().bytes as usize {
                return Over::Unread;
            }
        }
    }

    /// Files what a packet says.
    fn file(&self, mut packet: Received, cut: bool) -> Result<(), Over> {
        let mut descriptors = Parcel::of_descriptors(packet.take_descriptors());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        let packet = Rc::new(packet);
        let had_none = self.state.borrow().queue.is_empty();
        let mut result = Ok(());
        for frame in wire::frames(packet.bytes(), arrived) {
            result = frame.map_err(|_| Over::Malformed).and_then(|frame| {
                self.admits(&frame.header)?;
                let said = frame.from_client().map_err(|_| Over::Malformed)?;
                self.frame(said, frame.header, &packet, &mut descriptors)
            });
            if result.is_err() {
                break;
            }
        }
        if had_none
            && !self.state.borrow().queue.is_empty()
            && let Some(mailbox) = self.mailbox.upgrade()
        {
            mailbox.take_turn(self.key.get());
        }
        result
    }

    fn admits(&self, header: &Header) -> Result<(), Over> {
        let Some(mailbox) = self.mailbox.upgrade() else { return Err(Over::Closed) };
        mailbox.hello.admits(header).map_err(|_| Over::Malformed)
    }

    fn frame(
        &self,
        said: FromClient<'_>,
        header: Header,
        packet: &Rc<Received>,
        descriptors: &mut Parcel,
    ) -> Result<(), Over> {
        match said {
            FromClient::Call { number, payload, descriptors: declared, missing, answer } => {
                self.begin(number, Cost::of_call(header.message(), answer))?;
                if missing > 0 {
                    drop(std::mem::take(descriptors));
                    self.refuse(number, RefusedReason::DescriptorsLost);
                    return Ok(());
                }
                let start = payload.as_ptr() as usize - packet.bytes().as_ptr() as usize;
                let mut parcel = Parcel::part(packet, start..start + payload.len());
                if declared > 0 {
                    parcel.take_from(descriptors);
                }
                self.state.borrow_mut().queue.push_back((number, answer, parcel));
            }
            FromClient::Grant { number } => {
                self.begin(number, Cost::of_grant())?;
                let Some(mailbox) = self.mailbox.upgrade() else { return Err(Over::Closed) };
                match mailbox.grant_to_client() {
                    Ok(fd) => {
                        let message = Message::default().with_descriptor(Fd::made_here(fd));
                        let _ = self.answer(
                            number,
                            Size::NONE.with_descriptors(1).unwrap_or(Size::NONE),
                            message,
                        );
                    }
                    Err(reason) => self.refuse(number, reason),
                }
            }
            FromClient::Cancel { number } => self.cancel(number),
            FromClient::Goodbye => {}
        }
        Ok(())
    }

    /// A call is under way from here to its final frame.
    fn begin(&self, number: u32, cost: Cost) -> Result<(), Over> {
        let mut state = self.state.borrow_mut();
        if state.calls.contains_key(&number) {
            return Err(Over::Malformed);
        }
        state.account.try_reserve(cost).map_err(|_| Over::BeyondWindow)?;
        state.calls.insert(number, Entry { cost, withdrawn: false, waker: None });
        Ok(())
    }

    fn cancel(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        let queued = state.queue.iter().position(|(queued, _, _)| *queued == number);
        let taken = queued.and_then(|place| state.queue.remove(place));
        // A number that is not under way has crossed its final frame.
        let waker = state.calls.get_mut(&number).and_then(|entry| {
            entry.withdrawn = true;
            entry.waker.take()
        });
        drop(state);
        if taken.is_some() {
            self.refuse(number, RefusedReason::Cancelled);
        }
        drop(taken);
        wake(waker);
    }

    /// The oldest call that nobody has taken, and whether there are more.
    fn take(self: &Rc<Session>) -> Option<(Incoming, bool)> {
        let mut state = self.state.borrow_mut();
        let (number, room, parcel) = state.queue.pop_front()?;
        let more = !state.queue.is_empty();
        drop(state);
        let continuation = Continuation::new(Rc::clone(self), number, room);
        Some((Incoming { parcel, who: self.who, continuation }, more))
    }

    // -- final frames -----------------------------------------------------------------------------------

    pub(crate) fn answer(&self, number: u32, room: Size, message: Message) -> Result<(), AnswerError> {
        if self.state.borrow().over {
            self.finish(number);
            return Err(AnswerError::Gone);
        }
        if self.is_withdrawn(number) {
            self.refuse(number, RefusedReason::Cancelled);
            return Err(AnswerError::Withdrawn);
        }
        let (bytes, descriptors) = message.into_parts();
        let size = Size::of_bytes(bytes.len()).and_then(|size| size.with_descriptors(descriptors.len()));
        let Some(size) = size.ok().filter(|size| room.holds(*size)) else {
            self.refuse(number, RefusedReason::TooLarge);
            return Err(AnswerError::TooLarge);
        };
        let header = Header::answer_to(number, size).encode();
        if descriptors.is_empty() {
            self.socket.post(&[&header, &bytes], descriptors);
        } else {
            let instead = RefusedReason::OutOfDescriptors.frame(number);
            self.socket.post_or(&[&header, &bytes], descriptors, instead.to_vec());
        }
        self.finish(number);
        Ok(())
    }

    /// Nobody will answer.
    pub(crate) fn drop_call(&self, number: u32) {
        if self.is_withdrawn(number) {
            return self.refuse(number, RefusedReason::Cancelled);
        }
        if !self.state.borrow().over {
            self.socket.post(&[&Header::dropped(number).encode()], Vec::new());
        }
        self.finish(number);
    }

    pub(crate) fn refuse(&self, number: u32, reason: RefusedReason) {
        if !self.state.borrow().over {
            self.socket.post(&[&reason.frame(number)], Vec::new());
        }
        self.finish(number);
    }

    fn finish(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        let Some(entry) = state.calls.remove(&number) else { return };
        state.account.release(entry.cost);
        drop(state);
        drop(entry.waker);
    }

    // -- withdrawal -------------------------------------------------------------------------------------

    pub(crate) fn is_withdrawn(&self, number: u32) -> bool {
        let state = self.state.borrow();
        state.over || state.calls.get(&number).is_none_or(|entry| entry.withdrawn)
    }

    pub(crate) fn poll_withdrawn(&self, number: u32, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.over {
            return Poll::Ready(());
        }
        let old = match state.calls.get_mut(&number) {
            Some(entry) if !entry.withdrawn => entry.waker.replace(context.waker().clone()),
            _ => return Poll::Ready(()),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    // -- the end ----------------------------------------------------------------------------------------

    /// The client is gone, or shall be: handlers notice, and nothing is sent any more.
    fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.over = true;
        let queue = std::mem::take(&mut state.queue);
        let woken: Vec<Waker> = state.calls.values_mut().filter_map(|entry| entry.waker.take()).collect();
        drop(state);
        self.socket.shut_down();
        drop(queue);
        wake(woken);
    }

    /// The mailbox is gone: what nobody has taken nobody will answer; what was taken still can be.
    fn leave(&self) {
        let queue = std::mem::take(&mut self.state.borrow_mut().queue);
        for (number, _, parcel) in queue {
            drop(parcel);
            self.refuse(number, RefusedReason::Leaving);
        }
        self.socket.post(&[&Header::goodbye().encode()], Vec::new());
    }
}

/// A call that arrived: a message, who sent it, and where to answer.
#[derive(Debug)]
pub struct Incoming {
    parcel: Parcel,
    who: Credentials,
    continuation: Continuation,
}

impl Incoming {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.parcel.bytes()
    }

    /// The bytes as plain data, if there are exactly as many as `T` has.
    pub fn read<T: AnyBitPattern>(&self) -> Option<T> {
        self.parcel.read()
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.parcel.descriptors()
    }

    /// Takes the first descriptor that has not been taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.parcel.take_descriptor()
    }

    /// Takes all descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.parcel.take_descriptors()
    }

    /// Who attached the session this came on, as the kernel told at that moment. Every holder of the session
    /// may have sent the call.
    pub fn credentials(&self) -> Credentials {
        self.who
    }

    /// Answers. See [`Continuation::answer`].
    ///
    /// # Errors
    /// See [`AnswerError`].
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.continuation.answer(message)
    }

    /// Refuses as a matter of policy: the caller is told that its call was not handled.
    pub fn refuse(self) {
        self.continuation.refuse();
    }

    /// Where to answer, apart from the message.
    pub fn into_continuation(self) -> Continuation {
        self.continuation
    }

    /// Bytes, descriptors and where to answer, apart.
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<OwnedFd>, Continuation) {
        let descriptors = self.parcel.take_descriptors();
        (self.parcel.into_bytes(), descriptors, self.continuation)
    }

    /// The continuation, to look at.
    pub fn continuation(&self) -> &Continuation {
        &self.continuation
    }
}

fn wake(woken: impl IntoIterator<Item = Waker>) {
    woken.into_iter().for_each(Waker::wake);
}

/// Lets everybody else have a turn.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
