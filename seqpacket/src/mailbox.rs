//! The server's side of an object with sessions: its addresses, who may attach, and whose turn it is.
//!
//! A mailbox owns its bound sockets and, through companions of the reactor, its sessions: they accept,
//! receive and file calls whatever the server's own tasks do. Each session has its own queue, and they are
//! served in turn. It never knows what a message means.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use imc::{AcceptError, Arrival, BoundSocket, WrapError};
use ring::{Companion, Credentials, Look, Queue, Reactor, Sleep, Socket};
use slab::Slab;

use crate::incoming::Incoming;
use crate::numbered::Numbered;
use crate::object::deadline;
use crate::parts::{LARGE_STALL_MAX, LARGE_TOGETHER_DEFAULT};
use crate::served::{Client, Over, Served, Session, Terms};
use crate::stats::{Counters, SessionStats, Stats};
use crate::waiting::{Place, Waiting, Woken, wake};
use crate::wire::{
    CALL_DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, Hello, MESSAGE_BYTES_DEFAULT, MESSAGE_BYTES_MAX,
    PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX, RefusedReason, Windows,
};

/// Where several processes serve an object: so long one that has just attached a client leaves the next to
/// the others, if no call comes. A client mostly calls at once, and then this one is busy; without the pause
/// whoever runs first would attach all that wait.
pub(crate) const FRESH_MAX: Duration = Duration::from_millis(10);

/// How many calls a mailbox hands out between two turns of the reactor, of all its sessions together. Whoever
/// serves them in a row would otherwise go on for as long as there are any, and a session whose call has come
/// meanwhile would wait for all those of all others.
pub const CALLS_A_TURN_MAX: u32 = 256;

/// How many clients an address attaches in one turn: 4. Each costs as much as some ten calls, and as much
/// again when it hangs up.
pub const ATTACHES_A_TURN_MAX: usize = 4;

/// How many calls are handed on ([`Continuation::into_fd`](crate::Continuation::into_fd)) between two turns,
/// if each is when it has been handed out: 8. For each a pair is made and a descriptor sent, which takes as
/// long as some thirty calls, and so they are counted as many of [`CALLS_A_TURN_MAX`].
pub const HANDED_ON_A_TURN_MAX: u32 = 8;

/// For how many turns of the reactor a call may wait, from its arrival in the kernel's queue until it is
/// handed out, where somebody awaits calls all the time: 4. What each other session can have done in so many
/// turns ([`SESSION_PACKETS_A_TURN_MAX`](crate::SESSION_PACKETS_A_TURN_MAX),
/// [`SESSION_FRAMES_A_TURN_MAX`](crate::SESSION_FRAMES_A_TURN_MAX)) is all that comes before it, however it
/// behaves. For each 256 sessions that have something to say at once there is one turn more, and for each 8
/// whose calls are handed on ([`HANDED_ON_A_TURN_MAX`]).
pub const DISPATCH_TURNS_MAX: usize = ring::UNSEEN_TURNS_MAX as usize + 2;

/// What a call under way takes besides its bytes, at most: what is remembered of it, and where its
/// descriptors stand.
const CALL_MEMORY_MAX: usize = 1024;

/// What a session takes at most besides its calls and what waits in its socket.
const SESSION_MEMORY: usize = 4096;

/// What a server promises its clients, and how many it takes.
///
/// The first three are windows: each counts a call from its arrival until its answer has been handed to the
/// kernel. So they also bound what waits for a client that does not read: it is disconnected when it goes on
/// calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxOptions {
    /// Calls one session may have under way. Default 256, at least 1.
    pub calls: u32,
    /// Bytes one session may have under way, calls and room for answers together. Default 18 MiB; at least
    /// two packets (204,160).
    pub bytes: u32,
    /// Descriptors of calls under way of one session. Default 64, at least `call_descriptors`. (Descriptors
    /// of answers are the answerer's own; those of answers a client does not read stay open here, for as many
    /// calls as `calls` allows.)
    pub descriptors: u32,
    /// The largest call, and the largest answer. Default 64 MiB, at most 2,147,483,647 bytes. With 102,064 or
    /// less nothing is sent in parts, and no session holds more than `bytes`.
    pub message_bytes: u32,
    /// Bytes of large messages one session may have under way, calls and room for answers together: those
    /// that do not fit a packet. Default 128 MiB, at least twice `message_bytes`.
    pub large_bytes: u32,
    /// Bytes of large calls under way in all sessions together. Beyond, a call that does not fit a packet is
    /// refused ([`CallError::OutOfMemory`](crate::CallError::OutOfMemory)): this one, or one that should have
    /// arrived by now ([`LARGE_PACE`](crate::LARGE_PACE)), or one that has not arrived whole, of a session
    /// that holds more. Default 1 GiB.
    pub large_bytes_together: usize,
    /// How long a large call may stand still before all of it has arrived, and a large answer because its
    /// caller does not read, before the session is ended. Default 10 seconds.
    pub large_stall: Duration,
    /// Descriptors one call may carry. Default 16, at most 253. Where descriptors are short, receives wait
    /// for so many to be free.
    pub call_descriptors: u32,
    /// Sessions at a time; further clients wait in the kernel's queue until one ends. Default 1,024.
    pub sessions: usize,
    /// Sessions at a time through one granted address, so that its holders cannot take all of them. Default
    /// 64.
    pub granted_sessions: usize,
    /// Grants that may be open at a time, those made by [`Mailbox::grant`] not counted; beyond, a client that
    /// asks for one is refused. A descriptor each. Default 1,024; 0 refuses all.
    pub grants: usize,
}

impl Default for MailboxOptions {
    fn default() -> MailboxOptions {
        let windows = Windows::default();
        MailboxOptions {
            calls: windows.calls,
            bytes: windows.bytes,
            descriptors: windows.descriptors,
            message_bytes: MESSAGE_BYTES_DEFAULT,
            large_bytes: windows.large_bytes,
            large_bytes_together: LARGE_TOGETHER_DEFAULT,
            large_stall: LARGE_STALL_MAX,
            call_descriptors: CALL_DESCRIPTORS_DEFAULT,
            sessions: 1024,
            granted_sessions: 64,
            grants: 1024,
        }
    }
}

impl MailboxOptions {
    /// The most memory, in bytes, that one session can make the server hold, whatever its client does: the
    /// calls that nobody has taken and the answers that it does not read, each in up to twice as much memory
    /// as is counted; large messages; and what waits in its socket ([`ring::WAITING_BYTES_MAX`]). Not what
    /// the server's own handlers keep, and not the buffers that all sessions of a reactor share.
    ///
    /// ```
    /// use seqpacket::MailboxOptions;
    ///
    /// let strict = MailboxOptions {
    ///     calls: 16,
    ///     bytes: 204_160,
    ///     message_bytes: 102_064,
    ///     large_bytes: 0,
    ///     ..MailboxOptions::default()
    /// };
    /// assert!(strict.session_memory_max() < 2 << 20);
    /// ```
    pub fn session_memory_max(&self) -> usize {
        let windows = self.hello().windows;
        let large = if self.takes_large() { windows.large_bytes as usize } else { 0 };
        2 * windows.bytes as usize
            + large
            + windows.calls as usize * CALL_MEMORY_MAX
            + ring::WAITING_BYTES_MAX
            + PACKET_BYTES_MAX
            + SESSION_MEMORY
    }

    /// The same for all sessions together. With the defaults that is more than any machine has: where
    /// strangers attach, say less. (Of large *calls* all sessions together hold no more than
    /// [`large_bytes_together`](MailboxOptions::large_bytes_together); large answers are the server's own
    /// doing.)
    pub fn memory_max(&self) -> usize {
        self.session_memory_max().saturating_mul(self.sessions)
    }

    fn takes_large(&self) -> bool {
        self.hello().message_bytes_max as usize > PAYLOAD_BYTES_MAX
    }

    /// As a HELLO that a client accepts: what is too small is made large enough.
    fn hello(self) -> Hello {
        let call_descriptors_max = self.call_descriptors.min(DESCRIPTORS_MAX as u32);
        let message_bytes_max = self.message_bytes.clamp(PAYLOAD_BYTES_MAX as u32, MESSAGE_BYTES_MAX as u32);
        let windows = Windows {
            calls: self.calls.max(1),
            bytes: self.bytes.max(2 * PACKET_BYTES_MAX as u32),
            descriptors: self.descriptors.max(call_descriptors_max),
            large_bytes: self.large_bytes.max(2 * message_bytes_max),
        };
        let packet_bytes_max = PACKET_BYTES_MAX as u32;
        Hello { windows, call_descriptors_max, packet_bytes_max, message_bytes_max }
    }
}

/// What peers have done that the protocol does not allow. Each but the first cost its session, nobody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violations {
    /// Packets over an address that were no request to attach. They were dropped, with their descriptors.
    /// (Descriptors that were lost for want of room here are counted too, though nobody is to blame.)
    pub not_attaching: u64,
    /// Sessions ended for a malformed packet.
    pub malformed: u64,
    /// Sessions ended for going beyond their windows.
    pub beyond_window: u64,
    /// Sessions ended for calling on and on without reading the answers.
    pub unread: u64,
    /// Sessions ended because a large message stood still: no more of the call came, or none of the answer
    /// was read.
    pub stalled: u64,
}

/// Where an object's calls arrive.
///
/// Dropping it ends the object: calls that nobody has taken are refused ([`CallError::Gone`]), those that
/// were taken can still be answered. What arrives in the moment of the end may be lost, and its caller told
/// [`CallError::Dropped`]; [`leave`](Mailbox::leave) loses nothing.
///
/// [`CallError::Gone`]: crate::CallError::Gone
/// [`CallError::Dropped`]: crate::CallError::Dropped
pub struct Mailbox {
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    reactor: Reactor,
    room: Room,
    terms: Rc<Terms>,
    state: RefCell<State>,
    attached_ever: Cell<u64>,
    past: OnceCell<Box<Past>>,
}

/// How many of what there may be: see [`MailboxOptions`].
struct Room {
    sessions: usize,
    granted_sessions: usize,
    grants: usize,
}

/// Of what has ended, once something has.
#[derive(Default)]
struct Past {
    /// Of sessions.
    counters: Counters,
    violations: Cell<Violations>,
}

#[derive(Default)]
struct State {
    /// Addresses that somebody may hold, by number. No number is given twice.
    addresses: Numbered<u64, Address>,
    addresses_ever: u64,
    /// How many of them clients have asked for.
    asked_for: usize,
    /// What is remembered of each grant, so that what came of it can be taken back with it.
    lineage: BTreeMap<u64, Descent>,
    sessions: Slab<Rc<Served>>,
    /// Sessions that have calls, in the order in which they are served.
    turn: Queue<usize>,
    /// Those who wait for a call, or for the last session to end.
    waiting: Waiting,
    /// Who waits through `poll_next`.
    by_hand: Place,
    /// Acceptors that wait for a session to end.
    crowd: Waiting,
    /// Of the acceptor that takes what others could take only while somebody here awaits calls.
    acceptor: Option<Waker>,
    /// A client has attached, and nobody has taken a call since: the next is left to others for a moment.
    fresh: bool,
    handed_out: HandedOut,
}

/// How many calls have been handed out since a turn of the reactor.
#[derive(Clone, Copy, Default)]
pub(crate) struct HandedOut {
    turn: u64,
    calls: u32,
}

impl HandedOut {
    /// Whether one more of so many is left for this turn.
    pub(crate) fn is_left(&mut self, turn: u64, most: u32) -> bool {
        if self.turn != turn {
            *self = HandedOut { turn, calls: 0 };
        }
        self.calls < most
    }

    /// One more.
    pub(crate) fn add(&mut self) {
        self.calls += 1;
    }

    /// One that has been handed out was handed on.
    fn is_handed_on(&mut self) {
        self.calls = self.calls.saturating_add(CALLS_A_TURN_MAX / HANDED_ON_A_TURN_MAX - 1);
    }
}

/// One bound socket and the companion that accepts from it.
struct Address {
    bound: Rc<BoundSocket>,
    made_for: MadeFor,
    sessions: usize,
    _companion: Companion,
}

/// Why there is an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MadeFor {
    /// It came with the mailbox.
    Everybody,
    /// The server has granted it.
    Holder,
    /// A client has asked for it, on a session through this address.
    Client { through: u64, who: Credentials },
}

/// Where a grant comes from.
struct Descent {
    /// The grant through which it was asked for.
    parent: Option<u64>,
    /// The server has made it, and may take it back even if it has no holder any more.
    ours: bool,
}

impl MadeFor {
    fn is_for_client(self) -> bool {
        matches!(self, MadeFor::Client { .. })
    }
}

impl Mailbox {
    pub(crate) fn new(reactor: &Reactor, bound: BoundSocket, options: MailboxOptions) -> Mailbox {
        let mailbox = Mailbox::empty(reactor, options);
        mailbox.shared.accept_from(bound, MadeFor::Everybody);
        mailbox
    }

    /// One that attaches clients only while somebody awaits calls, since other processes could.
    pub(crate) fn beside_others(
        reactor: &Reactor,
        bound: &Rc<BoundSocket>,
        options: MailboxOptions,
    ) -> Mailbox {
        let mailbox = Mailbox::empty(reactor, options);
        mailbox.shared.accept_beside_others(bound);
        mailbox
    }

    fn empty(reactor: &Reactor, options: MailboxOptions) -> Mailbox {
        let shared = Shared {
            reactor: reactor.clone(),
            room: Room {
                sessions: options.sessions,
                granted_sessions: options.granted_sessions,
                grants: options.grants,
            },
            terms: Terms::new(reactor, options.hello(), options.large_stall, options.large_bytes_together),
            state: RefCell::new(State::default()),
            attached_ever: Cell::new(0),
            past: OnceCell::new(),
        };
        Mailbox { shared: Rc::new(shared) }
    }

    /// From an inherited or received descriptor: the bound end of an object with sessions.
    ///
    /// Another process may hold a copy, to serve the object when this one has died. While this one serves it,
    /// nobody else may; and when the mailbox is dropped the object ends for all. Where several are to serve,
    /// each has a [`SharedMailbox`](crate::SharedMailbox).
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
    ///
    /// Any number of tasks may wait; each call goes to one of them. Dropping the future loses no call.
    pub fn next(&self) -> Next<'_> {
        Next { mailbox: self, place: Place::default() }
    }

    /// As [`next`](Mailbox::next), for futures written by hand. One waker is kept for all of these.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut place = std::mem::take(&mut self.shared.state.borrow_mut().by_hand);
        let poll = self.poll_next_at(&mut place, context);
        self.shared.state.borrow_mut().by_hand = place;
        poll
    }

    fn poll_next_at(&self, place: &mut Place, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut state = self.shared.state.borrow_mut();
        if !state.turn.is_empty() && !state.handed_out.is_left(self.shared.reactor.turns(), CALLS_A_TURN_MAX)
        {
            drop(state);
            // What has come for others meanwhile is seen first.
            context.waker().wake_by_ref();
            self.shared.reactor.ask_for_turn();
            return Poll::Pending;
        }
        while let Some(key) = state.turn.pop_front() {
            let Some(served) = state.sessions.get(key) else { continue };
            let Some(next) = served.session().take_next() else { continue };
            let served = Rc::clone(served);
            if next.more {
                state.turn.with_memory().push_back(key);
            }
            state.fresh = false;
            state.handed_out.add();
            // Whoever was woken for it need not look again what became of its place when it is dropped.
            let left = state.waiting.leave(place);
            *place = Place::default();
            // What traces calls may be anybody's code, and so may wakers.
            drop(state);
            drop(left);
            return Poll::Ready(Some(Incoming::new(served, next.brought)));
        }
        // The sessions first: of the addresses is only known elsewhere that there are some.
        if state.sessions.is_empty() && state.addresses.is_empty() {
            return Poll::Ready(None);
        }
        let old = state.waiting.keep(place, context.waker());
        let acceptor = state.acceptor.take();
        drop(state);
        drop(old);
        // Somebody awaits calls now.
        wake(acceptor);
        Poll::Pending
    }

    /// A fresh address of this object, for one holder: its sessions are apart from all others', and not more
    /// than [`granted_sessions`](MailboxOptions::granted_sessions).
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn grant(&self) -> io::Result<OwnedFd> {
        self.shared.grant(MadeFor::Holder).map(|(fd, _)| fd)
    }

    /// As [`grant`](Mailbox::grant), with a handle to know that holder's calls by, and to take the grant
    /// back.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn grant_revocable(&self) -> io::Result<(OwnedFd, Grant)> {
        let (fd, address) = self.shared.grant(MadeFor::Holder)?;
        Ok((fd, Grant { mailbox: Rc::downgrade(&self.shared), address }))
    }

    /// The grants that are open: those that the server has made, and those that clients have asked for.
    pub fn grants(&self) -> Vec<Grant> {
        let state = self.shared.state.borrow();
        let grants = state.addresses.iter().filter(|(_, address)| address.made_for != MadeFor::Everybody);
        let handle = |address| Grant { mailbox: Rc::downgrade(&self.shared), address };
        grants.map(|(address, _)| handle(address)).collect()
    }

    /// Takes all grants back, as [`Grant::revoke`] does with one. Only those who have attached through the
    /// object's first address keep their sessions, and who holds a copy of that can attach.
    pub fn revoke_all(&self) {
        let grants: Vec<u64> = self.shared.state.borrow().lineage.keys().copied().collect();
        grants.into_iter().for_each(|grant| self.shared.revoke(grant));
    }

    /// Ends the object so that no call is in doubt: says goodbye to all clients, refuses what comes after
    /// that (the callers are told [`CallError::Gone`](crate::CallError::Gone), and can safely call
    /// elsewhere), and waits until the last call that was taken is answered and all clients have left; but no
    /// longer than `within`.
    ///
    /// Dropping the future drops the mailbox.
    pub async fn leave(self, within: Duration) {
        let (addresses, sessions) = {
            let mut state = self.shared.state.borrow_mut();
            state.turn = Queue::new();
            let sessions: Vec<_> = state.sessions.iter().map(|(_, served)| Rc::clone(served)).collect();
            (std::mem::take(&mut state.addresses), sessions)
        };
        drop(addresses);
        sessions.iter().for_each(|served| served.session().leave());
        drop(sessions);
        let mut place = Place::default();
        let mut deadline = deadline(self.reactor(), within);
        poll_fn(|context| {
            let mut state = self.shared.state.borrow_mut();
            if state.sessions.is_empty() {
                return Poll::Ready(());
            }
            let old = state.waiting.keep(&mut place, context.waker());
            drop(state);
            drop(old);
            match &mut deadline {
                Some(deadline) => Pin::new(deadline).poll(context),
                None => Poll::Pending,
            }
        })
        .await;
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        self.shared.state.borrow().sessions.len()
    }

    /// How many clients have attached so far.
    pub fn attached_ever(&self) -> u64 {
        self.shared.attached_ever.get()
    }

    /// What all sessions have carried so far, and how their calls have ended. (A session is counted in for
    /// the last time when it ends: of a call that is answered after that nothing is sent.)
    pub fn stats(&self) -> Stats {
        let total = Counters::default();
        self.shared.past.get().into_iter().for_each(|past| total.add(&past.counters));
        let state = self.shared.state.borrow();
        state.sessions.iter().for_each(|(_, served)| total.add(served.session().counters()));
        total.stats()
    }

    /// The sessions that are open, in no particular order: who attached, what each has carried, and how full
    /// its windows are.
    ///
    /// ```
    /// # let reactor = ring::Reactor::new()?;
    /// let (_, mailbox) = seqpacket::object(&reactor)?;
    /// for session in mailbox.each_session() {
    ///     let (who, calls) = (session.credentials.pid, session.stats.calls.under_way());
    ///     println!("process {who}: {calls} calls, {} bytes free", session.free.bytes);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn each_session(&self) -> Vec<SessionStats> {
        let state = self.shared.state.borrow();
        state.sessions.iter().map(|(_, served)| served.session().stats()).collect()
    }

    /// What peers have done that the protocol does not allow.
    pub fn violations(&self) -> Violations {
        let state = self.shared.state.borrow();
        let there: u64 = state.addresses.iter().map(|(_, address)| address.bound.violations().total()).sum();
        let mut violations =
            self.shared.past.get().map_or_else(Default::default, |past| past.violations.get());
        violations.not_attaching += there;
        violations
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.shared.reactor
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        let addresses = std::mem::take(&mut state.addresses);
        let sessions = std::mem::take(&mut state.sessions);
        let waiting = (state.waiting.take_all(), state.crowd.take_all(), state.acceptor.take());
        state.turn = Queue::new();
        drop(state);
        // Their companions hold the mailbox's inside; with them goes what they hold.
        drop(addresses);
        for (_, served) in sessions {
            // Those of which calls are still to be answered go on until they are.
            served.session().leave();
        }
        drop(waiting);
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

/// The next call. Made by [`Mailbox::next`].
#[must_use = "a call is taken only when this is awaited"]
pub struct Next<'a> {
    mailbox: &'a Mailbox,
    place: Place,
}

impl Future for Next<'_> {
    type Output = Option<Incoming>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mailbox = self.mailbox;
        mailbox.poll_next_at(&mut self.place, context)
    }
}

impl Drop for Next<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.place.was_given() {
            let waker = self.mailbox.shared.state.borrow_mut().waiting.leave(&self.place);
            drop(waker);
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Next")
    }
}

/// One holder's address of an object, as the server sees it. Made by [`Mailbox::grant_revocable`].
///
/// ```
/// # use ring::{Executor, Reactor};
/// use seqpacket::{CallError, Object};
///
/// # let reactor = Reactor::new()?;
/// # let executor = Executor::new(&reactor);
/// let (_, mailbox) = seqpacket::object(&reactor)?;
/// let (fd, grant) = mailbox.grant_revocable()?;
/// let guest = Object::from_fd(&reactor, fd)?;
///
/// executor.spawn(async move {
///     while let Some(call) = mailbox.next().await {
///         if call.bytes() == b"bye" {
///             grant.revoke();
///         } else {
///             let greeting = if call.came_through(&grant) { "hello, guest" } else { "hello" };
///             let _ = call.answer(greeting);
///         }
///     }
/// });
/// executor.block_on(async {
///     assert_eq!(guest.call("it's me").await?.bytes(), b"hello, guest");
///     assert!(matches!(guest.call("bye").await, Err(CallError::Dropped)));
///     assert!(matches!(guest.call("me again").await, Err(CallError::Gone)));
///     Ok::<(), CallError>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping it changes nothing.
#[derive(Clone)]
pub struct Grant {
    pub(crate) mailbox: Weak<Shared>,
    pub(crate) address: u64,
}

impl Grant {
    /// Takes the grant back, and with it all that was granted to those who have attached through it: nobody
    /// attaches through them any more, and the sessions that were are ended at once, with their calls and
    /// with answers that have not left. All other sessions notice nothing.
    ///
    /// It can be done from any task of this thread, also from a handler of the call of whoever loses it. To
    /// let another process do it, serve an object whose handler does.
    pub fn revoke(&self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.revoke(self.address);
        }
    }

    /// Whether nobody can attach through it any more: it was revoked, or all copies of its address are
    /// closed, or the mailbox is gone.
    pub fn is_closed(&self) -> bool {
        let open = |mailbox: Rc<Shared>| mailbox.state.borrow().addresses.contains(self.address);
        !self.mailbox.upgrade().is_some_and(open)
    }

    /// Which client has asked for it; `None` if the server made it itself, or it is closed.
    pub fn asked_by(&self) -> Option<Credentials> {
        let mailbox = self.mailbox.upgrade()?;
        let state = mailbox.state.borrow();
        match state.addresses.find(self.address)?.made_for {
            MadeFor::Client { who, .. } => Some(who),
            MadeFor::Everybody | MadeFor::Holder => None,
        }
    }

    /// How many sessions there are through it.
    pub fn sessions(&self) -> usize {
        let through = |mailbox: Rc<Shared>| mailbox.sessions_through(self.address).len();
        self.mailbox.upgrade().map_or(0, through)
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

impl Shared {
    // -- addresses --------------------------------------------------------------------------------------

    /// Accepts from one bound socket until all copies of its address are closed. Gives back its number.
    fn accept_from(self: &Rc<Shared>, bound: BoundSocket, made_for: MadeFor) -> u64 {
        bound.set_burst(ATTACHES_A_TURN_MAX);
        let bound = Rc::new(bound);
        let number = self.number_address();
        // Now, and not when the companion first runs: the kernel tells who sent a request only of those sent
        // after it was asked to.
        let first = bound.poll_accept(&mut Context::from_waker(Waker::noop()));
        let held = match first {
            Poll::Ready(accepted) => Some(Box::new(accepted)),
            Poll::Pending => None,
        };
        let (shared, accepting) = (Rc::clone(self), Rc::clone(&bound));
        let place = Place::default();
        let companion =
            self.reactor.companion(AcceptingAll { shared, bound: accepting, number, held, place });
        self.add_address(number, bound, made_for, companion);
        number
    }

    /// Accepts from a bound socket that other processes accept from too.
    fn accept_beside_others(self: &Rc<Shared>, bound: &Rc<BoundSocket>) {
        let number = self.number_address();
        let (shared, accepting) = (Rc::clone(self), Rc::clone(bound));
        let companion = self.reactor.companion(async move {
            accept_while_awaited(&shared, &accepting, number).await;
            drop(shared.close_address(number));
        });
        self.add_address(number, Rc::clone(bound), MadeFor::Everybody, companion);
    }

    fn number_address(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.addresses_ever += 1;
        state.addresses_ever
    }

    fn add_address(&self, number: u64, bound: Rc<BoundSocket>, made_for: MadeFor, companion: Companion) {
        let mut state = self.state.borrow_mut();
        state.asked_for += usize::from(made_for.is_for_client());
        let descent = match made_for {
            MadeFor::Everybody => None,
            MadeFor::Holder => Some(Descent { parent: None, ours: true }),
            // What was asked for through the object's own address came of no grant.
            MadeFor::Client { through, .. } => {
                let parent = Some(through).filter(|through| state.lineage.contains_key(through));
                Some(Descent { parent, ours: false })
            }
        };
        if let Some(descent) = descent {
            state.lineage.insert(number, descent);
        }
        let address = Address { bound, made_for, sessions: 0, _companion: companion };
        state.addresses.insert(number, address);
    }

    fn close_address(&self, number: u64) -> Option<Address> {
        let mut state = self.state.borrow_mut();
        let address = state.addresses.remove(number)?;
        state.asked_for -= usize::from(address.made_for.is_for_client());
        state.forget_grant(number);
        let mut woken = Woken::default();
        if state.addresses.is_empty() {
            woken = state.waiting.take_all();
        }
        drop(state);
        self.count_not_attaching(address.bound.violations().total());
        wake(woken);
        Some(address)
    }

    fn grant(self: &Rc<Shared>, made_for: MadeFor) -> io::Result<(OwnedFd, u64)> {
        let (bound, address) = imc::bound_socket(&self.reactor)?;
        let fd = match address.into_fd() {
            Ok(fd) => fd,
            Err(address) => address.share()?,
        };
        Ok((fd, self.accept_from(bound, made_for)))
    }

    pub(crate) fn grant_to_client(self: &Rc<Shared>, client: &Client) -> Result<OwnedFd, RefusedReason> {
        if self.state.borrow().asked_for >= self.room.grants {
            return Err(RefusedReason::Refused);
        }
        let made_for = MadeFor::Client { through: client.address, who: client.credentials };
        self.grant(made_for).map(|(fd, _)| fd).map_err(|_| RefusedReason::OutOfDescriptors)
    }

    pub(crate) fn is_grant(&self, number: u64) -> bool {
        self.state.borrow().lineage.contains_key(&number)
    }

    /// Closes a grant with all that came of it, and ends their sessions.
    fn revoke(&self, number: u64) {
        let revoked = self.state.borrow().came_of(number);
        for number in revoked {
            drop(self.close_address(number));
            for served in self.sessions_through(number) {
                served.session().end();
                self.detach(served.session());
            }
        }
    }

    fn sessions_through(&self, number: u64) -> Vec<Rc<Served>> {
        let state = self.state.borrow();
        let sessions = state.sessions.iter().map(|(_, served)| served);
        sessions.filter(|served| served.session().client().address == number).map(Rc::clone).collect()
    }

    // -- sessions ---------------------------------------------------------------------------------------

    pub(crate) fn session(&self, key: usize) -> Option<Rc<Served>> {
        self.state.borrow().sessions.get(key).map(Rc::clone)
    }

    /// Ready when there is room for one more session through this address.
    fn poll_room(&self, number: u64, place: &mut Place, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let Some(address) = state.addresses.find(number) else { return Poll::Ready(()) };
        let most = match address.made_for {
            MadeFor::Everybody => self.room.sessions,
            MadeFor::Holder | MadeFor::Client { .. } => self.room.granted_sessions,
        };
        if address.sessions < most && state.sessions.len() < self.room.sessions {
            return Poll::Ready(());
        }
        // Acceptors run as companions: nobody's code is dropped with their wakers.
        state.crowd.keep(place, context.waker());
        Poll::Pending
    }

    /// Ready while somebody awaits calls.
    fn poll_awaited(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.acceptor = Some(context.waker().clone());
        Poll::Pending
    }

    fn attach(self: &Rc<Shared>, arrival: Arrival, number: u64) {
        let nobody = Credentials { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let credentials = arrival.who.credentials.unwrap_or(nobody);
        let socket = arrival.socket.into_socket();
        if self.is_own_address(&socket) {
            // Others hold it too, and it is not to be shut down for them.
            socket.set_private(false);
            return self.count_not_attaching(1);
        }
        let state = &mut *self.state.borrow_mut();
        let Some(address) = state.addresses.find_mut(number) else { return };
        address.sessions += 1;
        self.attached_ever.set(self.attached_ever.get() + 1);
        state.fresh = true;
        let entry = state.sessions.vacant_entry();
        let client = Client { key: entry.key(), address: number, credentials };
        let terms = Rc::clone(&self.terms);
        entry.insert(Served::begin(&self.reactor, Rc::downgrade(self), socket, terms, client));
    }

    /// Whether it is one of the addresses of this object. A session with it would never end: this mailbox is
    /// its other side.
    fn is_own_address(&self, socket: &Socket) -> bool {
        let Ok(cookie) = ring::socket_cookie(socket) else { return false };
        let state = self.state.borrow();
        state.addresses.iter().any(|(_, address)| address.bound.address_cookie() == Some(cookie))
    }

    /// A session is over. Its calls that nobody has taken go with it.
    pub(crate) fn detach(&self, session: &Session) {
        let key = session.client().key;
        let mut state = self.state.borrow_mut();
        // Revoked before its end was seen; another may have its key by now.
        if !state.sessions.get(key).is_some_and(|served| std::ptr::eq(served.session(), session)) {
            return;
        }
        let served = state.sessions.remove(key);
        self.past().counters.add(served.session().counters());
        if !state.turn.is_empty() {
            state.turn.with_memory().retain(|turn| *turn != key);
        }
        if let Some(address) = state.addresses.find_mut(served.session().client().address) {
            address.sessions -= 1;
        }
        state.forget_grant(served.session().client().address);
        let mut woken = state.crowd.take_all();
        if state.sessions.is_empty() {
            woken.extend(state.waiting.take_all());
        }
        drop(state);
        drop(served);
        wake(woken);
    }

    /// A session that had no calls has some. Gives whom to wake.
    #[inline]
    pub(crate) fn take_turn(&self, key: usize) -> Woken {
        let mut state = self.state.borrow_mut();
        state.turn.with_memory().push_back(key);
        state.waiting.take_all()
    }

    /// A call that was handed out is answered elsewhere.
    pub(crate) fn is_handed_on(&self) {
        self.state.borrow_mut().handed_out.is_handed_on();
    }

    // -- counting ---------------------------------------------------------------------------------------

    fn past(&self) -> &Past {
        self.past.get_or_init(Box::default)
    }

    pub(crate) fn count(&self, over: &Over) {
        let past = self.past();
        let mut violations = past.violations.get();
        match over {
            Over::Closed => {}
            Over::Malformed => violations.malformed += 1,
            Over::BeyondWindow => violations.beyond_window += 1,
            Over::Unread => violations.unread += 1,
            Over::Stalled => violations.stalled += 1,
        }
        past.violations.set(violations);
    }

    fn count_not_attaching(&self, count: u64) {
        if count > 0 {
            let past = self.past();
            let mut violations = past.violations.get();
            violations.not_attaching += count;
            past.violations.set(violations);
        }
    }
}

impl State {
    /// A grant and all that were asked for through it.
    fn came_of(&self, number: u64) -> Vec<u64> {
        let mut all = vec![number];
        // A grant has a higher number than the one that it came of.
        for (grant, descent) in &self.lineage {
            if descent.parent.is_some_and(|parent| all.contains(&parent)) {
                all.push(*grant);
            }
        }
        all
    }

    /// Forgets a grant that is closed and has no session; what came of it then came of its own parent.
    /// Otherwise a client could lengthen the line without end: a grant through a grant through a grant.
    fn forget_grant(&mut self, number: u64) {
        let Some(descent) = self.lineage.get(&number) else { return };
        let (parent, ours) = (descent.parent, descent.ours);
        let attached = |served: &Rc<Served>| served.session().client().address == number;
        let in_use =
            self.addresses.contains(number) || self.sessions.iter().any(|(_, served)| attached(served));
        let mut children =
            self.lineage.values_mut().filter(|descent| descent.parent == Some(number)).peekable();
        // One that the server has made it may still take back.
        if in_use || (ours && children.peek().is_some()) {
            return;
        }
        children.for_each(|child| child.parent = parent);
        self.lineage.remove(&number);
        // That may have been all that came of it.
        if let Some(parent) = parent {
            self.forget_grant(parent);
        }
    }
}

type Accepted = Result<Arrival, AcceptError>;

/// Accepts from one bound socket until all copies of its address are closed. A future by hand, since one that
/// awaits keeps room for each of its steps, and a program may have ten thousand objects.
struct AcceptingAll {
    shared: Rc<Shared>,
    bound: Rc<BoundSocket>,
    number: u64,
    /// What has come while there was no room for it.
    held: Option<Box<Accepted>>,
    place: Place,
}

impl Future for AcceptingAll {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let AcceptingAll { shared, bound, number, held, place } = &mut *self;
        let mut attached = 0;
        loop {
            if attached == ATTACHES_A_TURN_MAX {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Until there is room clients wait in the kernel's queue.
            ready!(shared.poll_room(*number, place, context));
            let accepted = match held.take() {
                Some(held) => *held,
                None => ready!(bound.poll_accept(context)),
            };
            match accepted {
                // Somebody may have attached through another address in the meantime.
                Ok(arrival) if shared.poll_room(*number, place, context).is_pending() => {
                    *held = Some(Box::new(Ok(arrival)));
                    return Poll::Pending;
                }
                Ok(arrival) => {
                    shared.attach(arrival, *number);
                    attached += 1;
                }
                // Nobody holds the address; or the kernel has ended the bound socket.
                Err(_) => break,
            }
        }
        drop(shared.close_address(*number));
        Poll::Ready(())
    }
}

/// Beside other processes that accept too: a request is taken only while somebody here awaits calls and there
/// is room, one at a time, and what is not awaited here stays in the queue for the others.
async fn accept_while_awaited(shared: &Rc<Shared>, bound: &BoundSocket, number: u64) {
    let (mut look, mut place) = (Look::default(), Place::default());
    let mut pause: Option<Sleep> = None;
    loop {
        let accepted = poll_fn(|context| {
            ready!(shared.poll_awaited(context));
            ready!(shared.poll_room(number, &mut place, context));
            if shared.state.borrow().fresh {
                let pause = pause.get_or_insert_with(|| shared.reactor.sleep(FRESH_MAX));
                ready!(Pin::new(pause).poll(context));
            }
            bound.poll_accept_one(&mut look, context)
        })
        .await;
        pause = None;
        match accepted {
            Ok(arrival) => shared.attach(arrival, number),
            Err(_) => return,
        }
    }
}
