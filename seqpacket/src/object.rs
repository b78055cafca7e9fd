//! The caller's side of an object with sessions: the right to attach, and calls.
//!
//! An object owns an address and, once it was used, a session. It never knows what a message means.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytemuck::{AnyBitPattern, NoUninit};
use imc::{SocketAddress, WrapError};
use ring::{Message, Reactor, Sleep};

use crate::error::{CallError, Part};
use crate::mailbox::{Mailbox, MailboxOptions};
use crate::parcel::Parcel;
use crate::parts::LARGE_STALL_MAX;
use crate::session::{Attached, Attachment, Glance, Session};
use crate::stats::{Counters, Stats};
use crate::trace::{CallSpan, end_of_call};
use crate::wire::{CALL_DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, Size, Windows};

/// How many calls of one object may wait for room before more are turned away with
/// [`CallError::WouldBlock`].
pub const CALLS_QUEUED_MAX: usize = 65_536;

/// A new object: the right to call it, and the mailbox in which its calls arrive.
///
/// ```
/// use ring::{Executor, Message, Reactor};
///
/// let reactor = Reactor::new()?;
/// let executor = Executor::new(&reactor);
/// let (adder, mailbox) = seqpacket::object(&reactor)?;
///
/// executor.spawn(async move {
///     while let Some(call) = mailbox.next().await {
///         let sum: u64 = call.read::<[u64; 2]>().map_or(0, |[a, b]| a + b);
///         let _ = call.answer(seqpacket::plain_data(&sum));
///     }
/// });
/// let numbers = seqpacket::plain_data(&[2_u64, 40]);
/// let sum: u64 = executor.block_on(async { adder.call(numbers).await?.read() })?;
/// assert_eq!(sum, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn object(reactor: &Reactor) -> io::Result<(Object, Mailbox)> {
    object_with(reactor, ObjectOptions::default(), MailboxOptions::default())
}

/// As [`object`], with options for both sides.
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn object_with(
    reactor: &Reactor,
    object: ObjectOptions,
    mailbox: MailboxOptions,
) -> io::Result<(Object, Mailbox)> {
    let (bound, address) = imc::bound_socket(reactor)?;
    Ok((Object::new(reactor, address, object), Mailbox::new(reactor, bound, mailbox)))
}

/// Bytes of answer a call has room for unless somebody says otherwise: 64 KiB. As many calls as a session may
/// have under way by default fit its window of bytes with that.
pub const ANSWER_BYTES_DEFAULT: usize = 65_536;

/// What a caller keeps for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectOptions {
    /// Bytes of answer a call has room for, unless it [says otherwise](CallOptions). Default
    /// [`ANSWER_BYTES_DEFAULT`]. Less lets more calls into the server's window of bytes at a time. More than
    /// 102,064, which is the most that comes in one packet, is room for a large answer, which the server
    /// counts apart: by default up to 64 MiB, and as many calls with so much room as fit 128 MiB. What is
    /// beyond the server's largest message is not asked for.
    pub answer_bytes: usize,
    /// Descriptors of answer a call has room for, unless it says otherwise, and the most that any may say.
    /// Default 16, at most 253. Where descriptors are short, receives wait for so many to be free.
    pub answer_descriptors: usize,
    /// Descriptors that all answers under way may bring together. Further calls wait. Default 4,096: the
    /// reactor's budget of descriptors is kept in any case, this only says how much of it one object may ask
    /// for.
    pub answer_descriptors_together: usize,
    /// How long a large answer may stand still before all of it has arrived. Then the session is ended, and
    /// its calls with it. Default 10 seconds. With a [blocking](crate::blocking) object by whoever waits.
    pub large_stall: Duration,
}

impl Default for ObjectOptions {
    fn default() -> ObjectOptions {
        ObjectOptions {
            answer_bytes: ANSWER_BYTES_DEFAULT,
            answer_descriptors: CALL_DESCRIPTORS_DEFAULT as usize,
            answer_descriptors_together: 4096,
            large_stall: LARGE_STALL_MAX,
        }
    }
}

impl ObjectOptions {
    /// With what is beyond the protocol's limits brought down to them.
    pub(crate) fn within_limits(self) -> ObjectOptions {
        ObjectOptions {
            answer_bytes: self.answer_bytes.min(MESSAGE_BYTES_MAX),
            answer_descriptors: self.answer_descriptors.min(DESCRIPTORS_MAX),
            ..self
        }
    }

    /// Of an answer, unless a call says otherwise.
    fn room(&self) -> Size {
        let room = Size::of_bytes(self.answer_bytes);
        room.and_then(|room| room.with_descriptors(self.answer_descriptors)).expect("within limits")
    }
}

/// What one call asks for beyond the object's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Bytes of answer to have room for: up to the server's largest message, by default 64 MiB. A call that
    /// may get more than 65,536 bytes has to say so here or in [`ObjectOptions::answer_bytes`].
    pub answer_bytes: Option<usize>,
    /// Descriptors of answer to have room for: at most what the object has.
    pub answer_descriptors: Option<usize>,
    /// Withdraw the call when this much time has passed without an answer. The server is told, and does not
    /// begin with what it can only finish too late ([`Incoming::deadline`](crate::Incoming::deadline)). Costs
    /// 16 bytes of the call. ([`Call::within`] is for this side only.)
    pub within: Option<Duration>,
    /// Withdraw the call when this moment comes, and tell the server: for a handler that passes on the
    /// deadline of the call it handles. With `within` as well the earlier of the two counts.
    pub until: Option<Instant>,
}

impl CallOptions {
    /// Until this moment, if there is one: `CallOptions::until(call.deadline())` in a handler gives the calls
    /// it makes the time that it has itself.
    pub fn until(moment: Option<Instant>) -> CallOptions {
        CallOptions { until: moment, ..CallOptions::default() }
    }

    /// When the call is to be withdrawn. A time that no clock can tell is none.
    #[inline]
    fn deadline(self, reactor: &Reactor) -> Option<Instant> {
        match (self.within, self.until) {
            (None, until) => until,
            (Some(time), until) => reactor.now().checked_add(time).into_iter().chain(until).min(),
        }
    }
}

/// The right to call an object. A handle on one thread; clones share a session, in which many calls are under
/// way at a time without a socket or a descriptor each.
///
/// The first call attaches. After the death of the server process the next call attaches anew, which succeeds
/// if another process serves the same mailbox.
#[derive(Clone)]
pub struct Object(Rc<Shared>);

struct Shared {
    reactor: Reactor,
    address: Rc<SocketAddress>,
    options: ObjectOptions,
    /// Of an answer, unless a call says otherwise.
    room: Size,
    attached: RefCell<Option<Rc<Attached>>>,
    counters: Rc<Counters>,
}

impl Object {
    pub(crate) fn new(reactor: &Reactor, address: SocketAddress, options: ObjectOptions) -> Object {
        let options = options.within_limits();
        Object(Rc::new(Shared {
            reactor: reactor.clone(),
            address: Rc::new(address),
            options,
            room: options.room(),
            attached: RefCell::new(None),
            counters: Rc::default(),
        }))
    }

    /// From the descriptor that was received: the address of an object with sessions. That it is one, and not
    /// a plain object, is the sender's word; nothing about a descriptor tells.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<Object, WrapError> {
        Object::from_fd_with(reactor, fd, ObjectOptions::default())
    }

    /// As [`from_fd`](Object::from_fd), with options.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd_with(reactor: &Reactor, fd: OwnedFd, options: ObjectOptions) -> Result<Object, WrapError> {
        Ok(Object::new(reactor, SocketAddress::from_fd(reactor, fd)?, options))
    }

    /// Calls. What is asked for in one turn travels in one packet; beyond the server's windows calls wait
    /// here, in order.
    ///
    /// The descriptors of the message are closed here once they are sent. The call is under way whether or
    /// not the future is polled; dropping the future withdraws it.
    #[inline]
    pub fn call(&self, message: impl Into<Message>) -> Call {
        self.call_in(&mut message.into(), self.0.room, None)
    }

    /// As [`call`](Object::call), with options.
    #[inline]
    pub fn call_with(&self, message: impl Into<Message>, options: CallOptions) -> Call {
        let room = match self.room(options) {
            Ok(room) => room,
            Err(error) => return Call::failed(error),
        };
        self.call_in(&mut message.into(), room, options.deadline(&self.0.reactor))
    }

    /// Calls with this room for the answer. Takes the message unless it goes
    /// [straight](Session::call_straight).
    fn call_in(&self, message: &mut Message, room: Size, deadline: Option<Instant>) -> Call {
        if deadline.is_none()
            && let Some(attached) = self.0.attached.borrow().clone()
            && let Some(key) = attached.session().call_straight(message, room)
        {
            return Call::new(attached, key);
        }
        self.begin(deadline, |session| session.call(message, room, deadline))
    }

    /// Calls now or not at all.
    ///
    /// # Errors
    /// [`CallError::WouldBlock`] before the object is [attached](Object::attach) (which this begins), while
    /// the server's windows are full, or while other calls wait. What else is wrong the call itself says.
    pub fn try_call(&self, message: impl Into<Message>) -> Result<Call, CallError> {
        let room = self.0.room;
        // It would have to wait for ever: there is no attaching here.
        if self.0.reactor.is_forked() {
            return Err(CallError::Forked);
        }
        let mut message = message.into();
        let attached = self.attached();
        if attached.session().would_wait(&message, room) {
            return Err(CallError::WouldBlock);
        }
        let key = attached.session().call(&mut message, room, None)?;
        Ok(Call::new(attached, key))
    }

    /// Attaches without calling, so that the first call is as fast as the others.
    ///
    /// # Errors
    /// [`CallError::Gone`] if nobody serves the object; [`CallError::Malformed`] if whoever does speaks
    /// something else.
    pub async fn attach(&self) -> Result<(), CallError> {
        Attachment::new(self.attached()).await
    }

    /// Asks the server for a fresh address, for somebody else: what is to be passed to a holder whom this
    /// one need not trust. It can be counted and limited apart from all others.
    ///
    /// Comes as a descriptor, which is `Send` and can go into a [`Message`].
    ///
    /// # Errors
    /// As a call; [`CallError::Refused`] if the server grants nothing.
    pub async fn grant(&self) -> Result<OwnedFd, CallError> {
        let mut answer = self.begin(None, Session::grant).await?;
        answer.take_descriptor().ok_or(CallError::Malformed("a grant without a descriptor"))
    }

    /// The message with this object as its next descriptor: a [grant](Object::grant), so that whoever gets it
    /// need not be trusted. The receiver [takes it](crate::Incoming::take_object) and calls it, on a session
    /// of its own.
    ///
    /// ```
    /// # use ring::{Executor, Reactor};
    /// # let reactor = Reactor::new()?;
    /// # let executor = Executor::new(&reactor);
    /// # let (clock, clock_mailbox) = seqpacket::object(&reactor)?;
    /// # let (worker, mailbox) = seqpacket::object(&reactor)?;
    /// # executor.spawn(async move {
    /// #     while let Some(call) = clock_mailbox.next().await {
    /// #         let _ = call.answer("noon");
    /// #     }
    /// # });
    /// # executor.spawn(async move {
    /// #     while let Some(mut call) = mailbox.next().await {
    /// #         let Some(clock) = call.take_object(mailbox.reactor()) else { continue };
    /// #         let Ok(time) = clock.call("what time is it?").await else { continue };
    /// #         let _ = call.answer(time.bytes());
    /// #     }
    /// # });
    /// # executor.block_on(async {
    /// let answer = worker.call(clock.pass_in("ask this one").await?).await?;
    /// # assert_eq!(answer.bytes(), b"noon");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`grant`](Object::grant). The message, and its descriptors, are dropped.
    pub async fn pass_in(&self, message: impl Into<Message>) -> Result<Message, CallError> {
        let fd = self.grant().await?;
        Ok(message.into().with_descriptor(fd))
    }

    /// A duplicate of this very address. All its holders are one trust domain: each can flood it, or shut it
    /// down for all. To somebody else give a [grant](Object::grant).
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.address.share()
    }

    /// Whether a session is open.
    pub fn is_attached(&self) -> bool {
        self.0.attached.borrow().as_ref().is_some_and(|attached| attached.session().is_open())
    }

    /// What this object and its clones have said and heard so far, on all their sessions, and how their calls
    /// have ended.
    pub fn stats(&self) -> Stats {
        self.0.counters.stats()
    }

    /// The windows of the session, and how much of them is free; `None` while none is open.
    pub fn windows(&self) -> Option<(Windows, Windows)> {
        self.0.attached.borrow().as_ref().and_then(|attached| attached.session().windows())
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    fn room(&self, options: CallOptions) -> Result<Size, CallError> {
        if let CallOptions { answer_bytes: None, answer_descriptors: None, .. } = options {
            return Ok(self.0.room);
        }
        let bytes = options.answer_bytes.unwrap_or(self.0.options.answer_bytes);
        let descriptors = options.answer_descriptors.unwrap_or(self.0.options.answer_descriptors);
        // The call is too large by what it asks for: nothing is sent.
        if descriptors > self.0.options.answer_descriptors {
            return Err(CallError::TooLarge(Part::Call));
        }
        let room = Size::of_bytes(bytes).and_then(|room| room.with_descriptors(descriptors));
        room.map_err(|_| CallError::TooLarge(Part::Call))
    }

    fn begin(
        &self,
        deadline: Option<Instant>,
        begin: impl FnOnce(&Session) -> Result<usize, CallError>,
    ) -> Call {
        let attached = self.attached();
        match begin(attached.session()) {
            Ok(key) => {
                let mut call = Call::new(attached, key);
                call.deadline = deadline.map(|deadline| self.0.reactor.sleep_until(deadline));
                call
            }
            Err(error) => Call::failed(error),
        }
    }

    /// The session, or a new one in place of one that has ended.
    fn attached(&self) -> Rc<Attached> {
        let mut attached = self.0.attached.borrow_mut();
        if let Some(attached) = attached.as_ref().filter(|attached| !attached.session().is_over()) {
            return Rc::clone(attached);
        }
        let address = Rc::clone(&self.0.address);
        let counters = Rc::clone(&self.0.counters);
        let new = Attached::begin(&self.0.reactor, address, self.0.options, counters);
        let old = attached.replace(Rc::clone(&new));
        // Dropping the old one may close its socket, and run whatever that runs.
        drop(attached);
        drop(old);
        new
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("attached", &self.is_attached()).finish_non_exhaustive()
    }
}

/// A call under way. Ends once, with an answer or with the reason why there is none; dropping it withdraws
/// the call, which the server can notice.
#[must_use = "dropping a call withdraws it"]
pub struct Call {
    state: CallState,
    deadline: Option<Sleep>,
}

enum CallState {
    Failed(Option<CallError>),
    UnderWay(Rc<Attached>, usize, CallSpan),
    Over,
}

impl Call {
    #[inline]
    fn new(attached: Rc<Attached>, key: usize) -> Call {
        Call { state: CallState::UnderWay(attached, key, CallSpan::called(key)), deadline: None }
    }

    /// Withdraws the call, with [`CallError::Deadline`], when so much time has passed from now without an
    /// answer. The last such limit counts. The server is not told; [`CallOptions::within`] does that.
    pub fn within(mut self, time: Duration) -> Call {
        if let CallState::UnderWay(attached, ..) = &self.state {
            self.deadline = deadline(attached.reactor(), time);
        }
        self
    }

    fn failed(error: CallError) -> Call {
        Call { state: CallState::Failed(Some(error)), deadline: None }
    }
}

impl Future for Call {
    type Output = Result<Answer, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Answer, CallError>> {
        let glance = match &self.state {
            CallState::UnderWay(attached, key, _) => attached.session().glance(*key, context.waker()),
            _ => Glance::Otherwise,
        };
        match glance {
            Glance::Answered => {
                let state = std::mem::replace(&mut self.state, CallState::Over);
                let CallState::UnderWay(attached, key, span) = state else { unreachable!("looked at above") };
                span.ended("answered");
                Poll::Ready(Ok(Answer(attached.session().take_answer(key))))
            }
            Glance::Waits if self.deadline.is_none() => Poll::Pending,
            Glance::Waits | Glance::Otherwise => self.poll_further(context),
        }
    }
}

impl Call {
    /// Where a glance does not tell.
    #[inline(never)]
    fn poll_further(&mut self, context: &mut Context<'_>) -> Poll<Result<Answer, CallError>> {
        let this = self;
        let poll = match &mut this.state {
            CallState::UnderWay(attached, key, span) => {
                let poll = attached.session().poll_unanswered(*key, context);
                let deadline = &mut this.deadline;
                let poll = poll.map_err(|error| error.by_the_clock(|| has_passed(deadline, context)));
                if let Poll::Ready(result) = &poll {
                    span.ended(result.as_ref().map_or_else(end_of_call, |_| "answered"));
                }
                poll
            }
            CallState::Failed(error) => Poll::Ready(Err(error.take().expect("polled after its end"))),
            CallState::Over => panic!("polled after its end"),
        };
        if let Poll::Ready(result) = poll {
            this.state = CallState::Over;
            return Poll::Ready(result.map(Answer));
        }
        if has_passed(&mut this.deadline, context) {
            this.withdraw("deadline");
            return Poll::Ready(Err(CallError::Deadline));
        }
        Poll::Pending
    }

    fn withdraw(&mut self, why: &'static str) {
        let state = std::mem::replace(&mut self.state, CallState::Over);
        if let CallState::UnderWay(attached, key, span) = state {
            attached.session().withdraw(key);
            span.ended(why);
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if let CallState::UnderWay(..) = self.state {
            self.withdraw("withdrawn");
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call")
    }
}

fn has_passed(deadline: &mut Option<Sleep>, context: &mut Context<'_>) -> bool {
    deadline.as_mut().is_some_and(|deadline| Pin::new(deadline).poll(context).is_ready())
}

/// A moment so far away that no clock can say it is none.
pub(crate) fn deadline(reactor: &Reactor, time: Duration) -> Option<Sleep> {
    reactor.now().checked_add(time).map(|moment| reactor.sleep_until(moment))
}

/// An answer: bytes, and descriptors to take. Those not taken are closed when it is dropped.
#[derive(Debug)]
pub struct Answer(pub(crate) Parcel);

impl Answer {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to keep.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    /// The bytes as plain data.
    ///
    /// # Errors
    /// [`CallError::Malformed`] if there are more or fewer bytes than `T` has.
    pub fn read<T: AnyBitPattern>(&self) -> Result<T, CallError> {
        self.0.read().ok_or(CallError::Malformed("the answer has another length"))
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.0.descriptors()
    }

    /// Takes the first descriptor that has not been taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.0.take_descriptor()
    }

    /// Takes all descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.0.take_descriptors()
    }

    /// Takes the first descriptor that has not been taken yet as an object with sessions, which it is if
    /// whoever answered says so. `None` if there is none, or if it cannot be one; then it is closed.
    pub fn take_object(&mut self, reactor: &Reactor) -> Option<Object> {
        self.0.take_descriptor().and_then(|fd| Object::from_fd(reactor, fd).ok())
    }
}

/// A message that is the bytes of some plain data, as they lie in memory: for programs on one machine, built
/// with the same types.
pub fn plain_data<T: NoUninit>(value: &T) -> Message {
    Message::new(bytemuck::bytes_of(value))
}
