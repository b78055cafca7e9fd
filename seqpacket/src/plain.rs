//! Plain objects: one socket for each object, and a call is a message with the descriptor to answer on.
//!
//! What Plash's page on SOCK_SEQPACKET describes, to the letter: no header, one packet each way. Whoever
//! passes such an object on says that it is one; nothing about a descriptor tells.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytemuck::AnyBitPattern;
use imc::{ConnectedSocket, WrapError};
use ring::{
    Credentials, DESCRIPTORS_MAX, Kind, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, Received,
    SendError, Sending, Sleep, Socket,
};

use crate::error::{AnswerError, CallError, Part};
use crate::large::{self, Assembly, LARGE_ANSWER_BYTES_DEFAULT};
use crate::mailbox::HandedOut;
use crate::object::{Answer, Object, deadline};
use crate::pairs::{PAIRS_DEFAULT, Pairs};
use crate::parcel::Parcel;
use crate::returned::{Known, Look, Pair, ReturnTrust, Returned, Returns};
use crate::spent::Spent;
use crate::waiting::{Place, Waiting, wake};

/// The largest message to or answer from a plain object, in bytes.
pub const PLAIN_BYTES_MAX: usize = PACKET_BYTES_MAX;

/// How many descriptors a call of a plain object may carry besides its continuation.
pub const PLAIN_ARGUMENTS_MAX: usize = DESCRIPTORS_MAX - 1;

/// How many argument descriptors a mailbox accepts unless told otherwise.
pub const PLAIN_ARGUMENTS_DEFAULT: usize = 15;

/// How long a [large answer](PlainContinuation::answer_large) waits for its caller to make room for one more
/// packet. A caller that goes on reading, however slowly, is waited for; but the kernel says that there is
/// room when three quarters of the queue are free, so it must take three full packets in this time.
pub const LARGE_ANSWER_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How many continuations that have been answered a mailbox keeps, to close them together: what costs most of
/// a call is the closing of its socket, and no caller is to wait for that. They are closed 20 ms after the
/// first of them at the latest, and at once where descriptors are short.
pub const ANSWERED_MAX: usize = 16;

/// How many calls a plain object hands out between two turns of the reactor: 4. To take one of them out of
/// the kernel, ask what its descriptor is, answer and close it takes as long as some ten calls of a session,
/// which all others would wait for.
pub const PLAIN_CALLS_A_TURN_MAX: u32 = 4;

/// A new plain object: the right to call it, and the mailbox in which its calls arrive.
///
/// ```
/// use ring::{Executor, Reactor};
///
/// let reactor = Reactor::new()?;
/// let executor = Executor::new(&reactor);
/// let (shouter, mailbox) = seqpacket::plain_object(&reactor)?;
///
/// executor.spawn(async move {
///     while let Some(call) = mailbox.next().await {
///         let louder = call.bytes().to_ascii_uppercase();
///         let _ = call.answer(louder);
///     }
/// });
/// let answer = executor.block_on(shouter.call("hello"))?;
/// assert_eq!(answer.bytes(), b"HELLO");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn plain_object(reactor: &Reactor) -> io::Result<(PlainObject, PlainMailbox)> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
    let mailbox = PlainMailbox::from_socket(near);
    mailbox.is_called_by(&far);
    let object =
        PlainObject::from_fd(reactor, far).map_err(|_| io::Error::other("a fresh socket is refused"))?;
    Ok((object, mailbox))
}

/// The right to call a plain object. Any number of processes may hold the same one, and call it without
/// locks; they are one trust domain, since each of them can flood the socket or shut it down for all.
///
/// A handle on one thread; clones are the same object, and begin with the same limits, which each can change
/// for itself. With use it keeps up to [`PAIRS_DEFAULT`] pairs of sockets, two descriptors each, made ahead
/// for its next calls; many objects can [share](PlainObject::from_fd_with) one stock.
#[derive(Clone)]
pub struct PlainObject {
    socket: Rc<Socket>,
    pairs: Pairs,
    returned: Option<Rc<Returned<Socket>>>,
    answer_descriptors: Cell<usize>,
    large_answer_bytes: Cell<usize>,
}

impl PlainObject {
    /// From the descriptor that was received, or inherited.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<PlainObject, WrapError> {
        PlainObject::from_fd_with(&Pairs::new(reactor, PAIRS_DEFAULT), reactor, fd)
    }

    /// As [`from_fd`](PlainObject::from_fd), with a stock of pairs shared with other objects.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd_with(pairs: &Pairs, reactor: &Reactor, fd: OwnedFd) -> Result<PlainObject, WrapError> {
        let socket = ConnectedSocket::from_fd(reactor, fd)?.into_socket();
        // Others may hold this end too.
        socket.set_private(false);
        Ok(PlainObject {
            socket: Rc::new(socket),
            pairs: pairs.clone(),
            returned: None,
            answer_descriptors: Cell::new(ring::DESCRIPTORS_DEFAULT),
            large_answer_bytes: Cell::new(LARGE_ANSWER_BYTES_DEFAULT),
        })
    }

    /// From now on expects each answer to bring the far end of its pair home, as its last descriptor, and
    /// makes a later call of this object with the same pair: nothing is made and nothing is torn down for a
    /// call. As many pairs as were under way together are kept, up to
    /// [`RETURNED_PAIRS_MAX`](crate::RETURNED_PAIRS_MAX), and fewer again when
    /// [fewer](crate::RETURNED_PAIRS_IDLE_MAX) are needed.
    ///
    /// Both sides must have agreed on it: the mailbox
    /// [returns continuations](PlainMailbox::return_continuations). Where one does not come home, or not as
    /// it should, the answer is an answer all the same, what happened is [counted](PlainObject::returns), and
    /// the next call has a pair that was made ahead. But where this process is out of descriptors an answer
    /// without any of its own may be [`CallError::DescriptorsLost`]: nobody can tell that the far end is all
    /// that was lost.
    ///
    /// Only for an answerer that is trusted not to keep a copy of what it returns. Whoever has one can answer
    /// the next call with that pair in another's place, and while it exists nobody sees the answerer die: the
    /// call does not end, unless with [`within`](PlainCall::within). `trust` says from whom a far end is
    /// taken back, as the kernel tells who sent the answer.
    ///
    /// ```
    /// use ring::{Executor, Reactor};
    /// use seqpacket::ReturnTrust;
    ///
    /// let reactor = Reactor::new()?;
    /// let executor = Executor::new(&reactor);
    /// let (object, mailbox) = seqpacket::plain_object(&reactor)?;
    /// mailbox.return_continuations();
    /// let object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
    ///
    /// executor.spawn(async move {
    ///     while let Some(call) = mailbox.next().await {
    ///         let _ = call.answer("yes");
    ///     }
    /// });
    /// executor.block_on(async {
    ///     for _ in 0..10 {
    ///         assert_eq!(object.call("still there?").await?.bytes(), b"yes");
    ///     }
    ///     assert_eq!((object.returns().returned, object.returns().reused), (10, 9));
    ///     Ok::<(), seqpacket::CallError>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_returned_pairs(mut self, trust: ReturnTrust) -> PlainObject {
        self.returned = Some(Rc::new(Returned::new(trust)));
        self
    }

    /// What has become of the pairs that were to come home, of this handle and its clones.
    pub fn returns(&self) -> Returns {
        self.returned.as_ref().map_or_else(Returns::default, |returned| returned.counts())
    }

    /// How many descriptors an answer may bring: 16 unless told otherwise, at most 253. Of a larger one the
    /// excess is closed, and the call ends with [`CallError::DescriptorsLost`]. For calls from now on.
    pub fn set_answer_descriptors(&self, count: usize) {
        self.answer_descriptors.set(count.min(DESCRIPTORS_MAX));
    }

    /// How many bytes a [large](PlainObject::call_large) answer may have:
    /// [`LARGE_ANSWER_BYTES_DEFAULT`](crate::LARGE_ANSWER_BYTES_DEFAULT) unless told otherwise. A call whose
    /// answer has more ends with [`CallError::TooLarge`] before memory is taken for it. For calls from now
    /// on.
    pub fn set_large_answer_bytes(&self, bytes: usize) {
        self.large_answer_bytes.set(bytes);
    }

    /// Calls. The descriptors of the message, 252 at most, are the arguments; the continuation is added to
    /// them, and all are closed here once they are sent. From 1 to 102,080 bytes. A full queue is awaited.
    ///
    /// The call is under way whether or not the future is polled; dropping the future withdraws it, which the
    /// answerer can notice.
    pub fn call(&self, message: impl Into<Message>) -> PlainCall {
        self.begin(&mut message.into(), |object| object.pair())
    }

    /// As [`call`](PlainObject::call), where the answer is a [large](PlainContinuation::answer_large) one: of
    /// any number of bytes up to [a limit](PlainObject::set_large_answer_bytes), in several packets over the
    /// continuation. The call itself is one packet, as ever.
    ///
    /// Both sides must have agreed on it, as on what the call means: no byte says so. Another answer than a
    /// large one is [`CallError::Malformed`]; of one that breaks off the call is told [`CallError::Dropped`].
    /// The pair of a large answer serves once.
    ///
    /// ```
    /// # use ring::{Executor, Reactor};
    /// # let reactor = Reactor::new()?;
    /// # let executor = Executor::new(&reactor);
    /// let (library, mailbox) = seqpacket::plain_object(&reactor)?;
    /// let spawner = executor.spawner();
    /// executor.spawn(async move {
    ///     while let Some(call) = mailbox.next().await {
    ///         // In a task of its own: a caller that reads slowly keeps only this one waiting.
    ///         spawner.spawn(async move {
    ///             let _ = call.into_continuation().answer_large(vec![7; 1_000_000]).await;
    ///         });
    ///     }
    /// });
    /// let book = executor.block_on(library.call_large("the whole book, please"))?;
    /// assert_eq!(book.bytes().len(), 1_000_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call_large(&self, message: impl Into<Message>) -> PlainCall {
        self.begin(&mut message.into(), |object| {
            let (near, far) = object.pairs.take()?;
            // Packet after packet, without asking for each.
            near.stream();
            let assembly = Assembly::new(object.large_answer_bytes.get());
            Ok((near, far, Expected::Packets(Box::new(assembly))))
        })
    }

    fn begin(
        &self,
        message: &mut Message,
        pair: impl FnOnce(&PlainObject) -> io::Result<(Socket, OwnedFd, Expected)>,
    ) -> PlainCall {
        let state = match self.way(message, pair) {
            Ok(way) => State::UnderWay(way),
            Err(error) => State::Failed(Some(error)),
        };
        PlainCall { state, deadline: None }
    }

    fn way(
        &self,
        message: &mut Message,
        pair: impl FnOnce(&PlainObject) -> io::Result<(Socket, OwnedFd, Expected)>,
    ) -> Result<Way, CallError> {
        if message.bytes().is_empty() {
            return Err(CallError::Malformed("an empty message cannot be told from the end of file"));
        }
        // Refused before anything is sent: of a message in two packets other holders' calls might stand in
        // the middle.
        if message.bytes().len() > PLAIN_BYTES_MAX || message.descriptors().len() > PLAIN_ARGUMENTS_MAX {
            return Err(CallError::TooLarge(Part::Call));
        }
        let (near, far, expected) = pair(self).map_err(CallError::from_pair)?;
        // One more for the far end, if it is to come home.
        let returning = usize::from(matches!(expected, Expected::PacketAndPair(..)));
        near.set_descriptors_max(self.answer_descriptors.get() + returning);
        message.push_descriptor(self.reactor().made_here(far));
        // The far end is ours no longer once it is sent: a copy kept would hide the answerer's death.
        // It goes now: two enters of the ring, one to send and one to sleep, cost more than a call of its own
        // and one enter.
        let sending = Some(self.socket.send_at_once_from(message)).filter(|sending| !sending.has_gone());
        let (pairs, object) = (self.pairs.clone(), Rc::clone(&self.socket));
        Ok(Way { near: Some(near), sending, expected, pairs, object })
    }

    /// A pair that has come home, or a fresh one.
    fn pair(&self) -> io::Result<(Socket, OwnedFd, Expected)> {
        let Some(returned) = &self.returned else {
            let (near, far) = self.pairs.take()?;
            return Ok((near, far, Expected::Packet));
        };
        if let Some(Pair { near, far, cookie }) = returned.take(look) {
            self.pairs.call_begins();
            return Ok((near, far, Expected::PacketAndPair(Rc::clone(returned), cookie)));
        }
        let (near, far) = self.pairs.take()?;
        // Armed once for all the calls it will serve. And before the first of them: the kernel tells who sent
        // an answer only of those sent after it was asked to.
        near.stream();
        let expected = match ring::socket_cookie(&far) {
            Ok(cookie) => Expected::PacketAndPair(Rc::clone(returned), cookie),
            Err(_) => Expected::Packet,
        };
        Ok((near, far, expected))
    }

    /// A duplicate of the descriptor, for another holder.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.share()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }
}

impl fmt::Debug for PlainObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainObject").field(&self.socket.as_fd()).finish()
    }
}

/// A forked child's reactor refuses what is called with it, whichever pair that has.
fn look(near: &Socket) -> Look {
    if near.is_quiet() { Look::Quiet } else { Look::Unclean }
}

/// A call of a plain object. Ends once; dropping it withdraws the call.
#[must_use = "dropping a call withdraws it"]
pub struct PlainCall {
    state: State,
    deadline: Option<Sleep>,
}

// Mostly it is the large one, and a box would be an allocation for each call.
#[allow(clippy::large_enum_variant)]
enum State {
    Failed(Option<CallError>),
    UnderWay(Way),
    Over,
}

/// What a call under way consists of.
struct Way {
    near: Option<Socket>,
    /// Until it is known how it went.
    sending: Option<Sending>,
    expected: Expected,
    pairs: Pairs,
    /// Not closed before its last message has left.
    object: Rc<Socket>,
}

/// What is to come in at the near end.
enum Expected {
    Packet,
    /// With the far end, of this cookie, at its end.
    PacketAndPair(Rc<Returned<Socket>>, u64),
    /// In a box, which is an allocation for a large answer and less to move for any other.
    Packets(Box<Assembly>),
}

impl PlainCall {
    /// Withdraws the call, with [`CallError::Deadline`], when so much time has passed from now without an
    /// answer. The last such limit counts.
    pub fn within(mut self, time: Duration) -> PlainCall {
        if let State::UnderWay(way) = &self.state {
            self.deadline = deadline(way.object.reactor(), time);
        }
        self
    }
}

impl Future for PlainCall {
    type Output = Result<Answer, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Answer, CallError>> {
        let this = &mut *self;
        let poll = match &mut this.state {
            State::Failed(error) => Poll::Ready(Err(error.take().expect("polled after its end"))),
            State::UnderWay(way) => way.poll(context),
            State::Over => panic!("polled after its end"),
        };
        if poll.is_ready() {
            this.state = State::Over;
            return poll;
        }
        if let Some(deadline) = &mut this.deadline
            && Pin::new(deadline).poll(context).is_ready()
        {
            this.state = State::Over;
            return Poll::Ready(Err(CallError::Deadline));
        }
        Poll::Pending
    }
}

impl Way {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Answer, CallError>> {
        if let Some(sending) = &mut self.sending
            && let Poll::Ready(sent) = Pin::new(sending).poll(context)
        {
            self.sending = None;
            if let Err(error) = sent {
                return Poll::Ready(Err(CallError::from_send(error)));
            }
        }
        loop {
            let near = self.near.as_ref().expect("held until the call is over");
            let received = ready!(near.poll_receive_here(context)).map_err(failed)?;
            if let Some(answer) = self.arrived(received)? {
                return Poll::Ready(Ok(Answer(answer)));
            }
        }
    }

    /// What came is the answer, or a part of it.
    fn arrived(&mut self, received: Received) -> Result<Option<Parcel>, CallError> {
        let mut near = None;
        let answer = match &mut self.expected {
            Expected::Packet => Parcel::whole(received),
            Expected::PacketAndPair(returned, cookie) => {
                let (mut answer, who) = Parcel::whole_of(received);
                let spent = self
                    .near
                    .take()
                    .and_then(|near| returned.bring_home(near, *cookie, answer.descriptor_list(), who));
                if spent.is_none() {
                    self.pairs.call_over();
                }
                near = spent;
                answer
            }
            Expected::Packets(assembly) => {
                let mut received = received;
                let descriptors = Parcel::of_descriptors(received.take_list());
                let Some(answer) = assembly.add(received.bytes(), descriptors)? else { return Ok(None) };
                answer
            }
        };
        // Answered: the near end is closed with others, off the path.
        if let Some(near) = near.or_else(|| self.near.take()) {
            self.pairs.spend(near);
        }
        Ok(Some(answer))
    }
}

fn failed(error: ReceiveError) -> CallError {
    match error {
        ReceiveError::Truncated(_) => CallError::Truncated,
        ReceiveError::DescriptorsLost(_) => CallError::DescriptorsLost(Part::Answer),
        ReceiveError::Forked => CallError::Forked,
        ReceiveError::Io(error) => CallError::Io(error),
        _ => CallError::Dropped,
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Taken back if it has not left. Otherwise the near end, which is private, is shut down now, so that
        // the answerer sees it at once.
        self.sending = None;
        if let Some(near) = self.near.take() {
            drop(near);
            self.pairs.call_over();
        }
    }
}

impl fmt::Debug for PlainCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainCall")
    }
}

/// What holders of a plain object have sent that is no call. Each was dropped, with its descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlainViolations {
    /// No descriptor to answer on.
    pub without_continuation: u64,
    /// The last descriptor is not a connected AF_UNIX SEQPACKET socket; or it is the object itself, as far as
    /// that is known (it was made here, by [`plain_object`]): the answer would be the next call.
    pub not_a_continuation: u64,
    /// Longer than a packet.
    pub truncated: u64,
    /// Descriptors were lost, more than the mailbox takes or has room for: which of those that came is the
    /// continuation nobody can say. (Not always the sender's fault.)
    pub descriptors_lost: u64,
}

/// Where a plain object's calls arrive.
pub struct PlainMailbox {
    socket: Socket,
    reception: Reception,
    /// Those who wait for a call. The socket wakes the one that asked last, and each passes it on.
    waiting: RefCell<Waiting>,
    handed_out: Cell<HandedOut>,
}

impl PlainMailbox {
    /// From an inherited or received descriptor: the end of the pair that no caller holds.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<PlainMailbox, WrapError> {
        let socket = ConnectedSocket::from_fd(reactor, fd)?.into_socket();
        socket.set_private(true);
        Ok(PlainMailbox::from_socket(socket))
    }

    /// On a socket from which other processes take calls too: nothing is received before somebody asks.
    pub(crate) fn beside_others(socket: Socket) -> PlainMailbox {
        socket.set_private(false);
        socket.set_descriptors_max(PLAIN_ARGUMENTS_DEFAULT + 1);
        socket.ask_for_credentials();
        PlainMailbox::on(socket)
    }

    /// A copy of the end, for another process that takes calls from it.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.share()
    }

    fn from_socket(socket: Socket) -> PlainMailbox {
        socket.set_descriptors_max(PLAIN_ARGUMENTS_DEFAULT + 1);
        socket.set_burst(PLAIN_CALLS_A_TURN_MAX as usize);
        // From now on, and not when the first call is awaited: the kernel tells who sent a call only of those
        // sent after it was asked to.
        socket.stream();
        PlainMailbox::on(socket)
    }

    fn on(socket: Socket) -> PlainMailbox {
        let (reception, waiting, handed_out) = Default::default();
        PlainMailbox { socket, reception, waiting, handed_out }
    }

    /// The next message, if one is left for this turn.
    fn poll_message(&self, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let mut handed_out = self.handed_out.get();
        if handed_out.is_left(self.reactor().turns(), PLAIN_CALLS_A_TURN_MAX) {
            let message = ready!(self.socket.poll_receive_here(context));
            handed_out.add();
            self.handed_out.set(handed_out);
            return Poll::Ready(message);
        }
        if !self.socket.has_arrived() {
            return self.socket.poll_receive(context);
        }
        // What has come for others meanwhile is seen first.
        context.waker().wake_by_ref();
        self.reactor().ask_for_turn();
        Poll::Pending
    }

    /// Says which end it is called by, so that this is not taken for a continuation.
    pub(crate) fn is_called_by(&self, object: impl AsFd) {
        self.reception.object.set(ring::socket_cookie(object).ok());
    }

    /// How many argument descriptors a call may carry: 15 unless told otherwise, at most 252. Where
    /// descriptors are short, receives wait for so many (and one) to be free.
    pub fn set_arguments_max(&self, count: usize) {
        self.socket.set_descriptors_max(count.min(PLAIN_ARGUMENTS_MAX) + 1);
    }

    /// Answers of calls taken from now on give the continuation back: the far end goes home inside the
    /// answer, as its last descriptor, and the caller
    /// [uses the pair again](PlainObject::with_returned_pairs).
    ///
    /// For callers that expect it: to any other it is one more descriptor of the answer. A continuation that
    /// is handed on ([`into_fd`](PlainContinuation::into_fd)) does not go home; whoever answers then just
    /// answers.
    pub fn return_continuations(&self) {
        self.reception.returning.set(true);
    }

    /// The next call; `None` when nobody holds the object any more. What is no call is dropped and
    /// [counted](PlainMailbox::violations).
    ///
    /// Any number of tasks may wait; each call goes to one of them. Dropping the future loses no call.
    pub fn next(&self) -> PlainNext<'_> {
        PlainNext { mailbox: self, place: Place::default() }
    }

    /// As [`next`](PlainMailbox::next), on a socket from which others take calls too.
    pub(crate) async fn next_beside_others(&self) -> Option<PlainIncoming> {
        loop {
            match self.reception.open(self.reactor(), self.socket.take_one().await) {
                Opened::Call(call) => return Some(call),
                Opened::NoCall => {}
                Opened::End => return None,
            }
        }
    }

    /// What was dropped so far.
    pub fn violations(&self) -> PlainViolations {
        self.reception.violations.get()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }
}

impl fmt::Debug for PlainMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainMailbox").field(&self.socket.as_fd()).finish()
    }
}

/// The next call. Made by [`PlainMailbox::next`].
#[must_use = "a call is taken only when this is awaited"]
pub struct PlainNext<'a> {
    mailbox: &'a PlainMailbox,
    place: Place,
}

impl Future for PlainNext<'_> {
    type Output = Option<PlainIncoming>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<PlainIncoming>> {
        let mailbox = self.mailbox;
        loop {
            let Poll::Ready(received) = mailbox.poll_message(context) else {
                let old = mailbox.waiting.borrow_mut().keep(&mut self.place, context.waker());
                drop(old);
                return Poll::Pending;
            };
            match mailbox.reception.open(mailbox.reactor(), received) {
                Opened::Call(call) => {
                    self.leave();
                    return Poll::Ready(Some(call));
                }
                Opened::NoCall => {}
                Opened::End => {
                    self.leave();
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl PlainNext<'_> {
    /// Somebody else is to look: there may be another call, and the socket may have woken only this one, or
    /// have only this one to wake.
    fn leave(&mut self) {
        let place = std::mem::take(&mut self.place);
        let mut waiting = self.mailbox.waiting.borrow_mut();
        let own = waiting.leave(&place);
        let next = waiting.take_first();
        drop(waiting);
        drop(own);
        wake(next);
    }
}

impl Drop for PlainNext<'_> {
    fn drop(&mut self) {
        if self.place.was_given() {
            self.leave();
        }
    }
}

impl fmt::Debug for PlainNext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainNext")
    }
}

/// Tells calls from what is none, and counts the latter.
#[derive(Default)]
pub(crate) struct Reception {
    violations: Cell<PlainViolations>,
    /// Continuations go home with the answer.
    returning: Cell<bool>,
    /// The cookie of the end by which the object is called, where that was made here. Answered there, the
    /// answer would be a call in this process's own name; and with a socket at its end, such as one that goes
    /// home, be answered again: a server that calls itself for ever, also when whoever began it is gone.
    object: Cell<Option<u64>>,
    /// Those that have come before.
    known: Known,
    /// Those that are answered, once there was one.
    answered: OnceCell<Rc<Spent>>,
}

/// What was received is …
// As above: mostly it is a call.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Opened {
    Call(PlainIncoming),
    /// … and has been dropped and counted.
    NoCall,
    /// … that nobody holds the object any more.
    End,
}

impl Reception {
    pub(crate) fn open(&self, reactor: &Reactor, received: Result<Received, ReceiveError>) -> Opened {
        let received = match received {
            Ok(received) => received,
            Err(ReceiveError::Truncated(_)) => return self.no_call(|violations| violations.truncated += 1),
            Err(ReceiveError::DescriptorsLost(_)) => {
                return self.no_call(|violations| violations.descriptors_lost += 1);
            }
            Err(_) => return Opened::End,
        };
        let (mut parcel, who) = Parcel::whole_of(received);
        let Some(last) = parcel.take_last_descriptor() else {
            return self.no_call(|violations| violations.without_continuation += 1);
        };
        match self.continuation(reactor, last) {
            Some(continuation) => Opened::Call(PlainIncoming { parcel, who, continuation }),
            None => self.no_call(|violations| violations.not_a_continuation += 1),
        }
    }

    fn continuation(&self, reactor: &Reactor, fd: OwnedFd) -> Option<PlainContinuation> {
        let (object, returning) = (self.object.get(), self.returning.get());
        let cookie = (object.is_some() || returning).then(|| ring::socket_cookie(&fd).ok()).flatten();
        if cookie.is_some() && cookie == object {
            ring::discard(fd);
            return None;
        }
        if !returning {
            let mut continuation = PlainContinuation::from_fd(reactor, fd).ok()?;
            let answered = self.answered.get_or_init(|| Rc::new(Spent::new(reactor, || ())));
            continuation.answered = Some(Rc::clone(answered));
            return Some(continuation);
        }
        let mut continuation = match cookie {
            Some(cookie) if self.known.has(cookie) => {
                PlainContinuation::from_far(FarEnd::of_known(reactor, fd))
            }
            _ => PlainContinuation::from_fd(reactor, fd).ok()?,
        };
        if let Some(cookie) = cookie {
            self.known.add(cookie);
        }
        continuation.returning = true;
        Some(continuation)
    }

    fn no_call(&self, count: impl FnOnce(&mut PlainViolations)) -> Opened {
        let mut violations = self.violations.get();
        count(&mut violations);
        self.violations.set(violations);
        Opened::NoCall
    }
}

/// A call of a plain object that arrived.
#[derive(Debug)]
pub struct PlainIncoming {
    parcel: Parcel,
    who: Option<Credentials>,
    continuation: PlainContinuation,
}

impl PlainIncoming {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.parcel.bytes()
    }

    /// The bytes as plain data, if there are exactly as many as `T` has.
    pub fn read<T: AnyBitPattern>(&self) -> Option<T> {
        self.parcel.read()
    }

    /// How many argument descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.parcel.descriptors()
    }

    /// Takes the first argument descriptor that has not been taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.parcel.take_descriptor()
    }

    /// Takes all argument descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.parcel.take_descriptors()
    }

    /// Takes the first argument descriptor that has not been taken yet as an object with sessions, which it
    /// is if the caller says so. `None` if there is none, or if it cannot be one; then it is closed.
    pub fn take_object(&mut self, reactor: &Reactor) -> Option<Object> {
        self.parcel.take_descriptor().and_then(|fd| Object::from_fd(reactor, fd).ok())
    }

    /// Who sent this call, as the kernel tells. `None` for a call that was sent before this process made its
    /// mailbox of an inherited descriptor.
    pub fn credentials(&self) -> Option<Credentials> {
        self.who
    }

    /// Answers. See [`PlainContinuation::answer`].
    ///
    /// # Errors
    /// See [`AnswerError`].
    #[inline]
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.continuation.answer_from(&mut message.into())
    }

    /// Where to answer, apart from the message.
    pub fn into_continuation(self) -> PlainContinuation {
        self.continuation
    }

    /// Bytes, argument descriptors and where to answer, apart.
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<OwnedFd>, PlainContinuation) {
        let descriptors = self.parcel.take_descriptors();
        (self.parcel.into_bytes(), descriptors, self.continuation)
    }
}

/// The right to answer one call of a plain object: a socket, which can be handed to another process that
/// answers instead. Dropping it tells the caller that nobody will answer.
#[must_use = "dropping a continuation tells the caller that nobody will answer"]
#[derive(Debug)]
pub struct PlainContinuation {
    far: FarEnd,
    /// The mailbox says that it goes home with the answer.
    returning: bool,
    /// Where the mailbox has it closed, with others, when it is answered.
    answered: Option<Rc<Spent>>,
}

impl PlainContinuation {
    /// From the descriptor that was received.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<PlainContinuation, WrapError> {
        let socket = ConnectedSocket::from_fd(reactor, fd)?.into_socket();
        Ok(PlainContinuation::from_far(FarEnd::of_socket(socket)))
    }

    fn from_far(far: FarEnd) -> PlainContinuation {
        PlainContinuation { far, returning: false, answered: None }
    }

    /// Answers with one packet of 1 to 102,080 bytes and up to 253 descriptors, and closes: at once, or some
    /// time after with [others](ANSWERED_MAX) of its mailbox. The answer leaves now; or, if the caller's
    /// queue is full, when there is room, for ten seconds at most.
    /// Whether the caller is still there is not asked. If the descriptors cannot be sent (too many of this
    /// user in flight) the caller is told that nobody will answer;
    /// [`try_answer`](PlainContinuation::try_answer) leaves it to the answerer what to say then.
    ///
    /// From a mailbox that [returns continuations](PlainMailbox::return_continuations) it goes home with the
    /// answer.
    ///
    /// # Errors
    /// [`AnswerError::Empty`] and [`AnswerError::TooLarge`] for messages that cannot be sent: the caller is
    /// told that nobody will answer.
    #[inline]
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.answer_from(&mut message.into())
    }

    fn answer_from(self, message: &mut Message) -> Result<(), AnswerError> {
        if self.returning {
            return self.answer_and_return_from(message);
        }
        fits_one_packet(message)?;
        let socket = self.far.into_socket();
        let kept = socket.finish_and_keep(std::mem::take(message)).map_err(unanswered)?;
        if let (Some(socket), Some(answered)) = (kept, self.answered) {
            answered.add(socket);
            if answered.len() >= ANSWERED_MAX {
                answered.close();
            }
        }
        Ok(())
    }

    /// Answers, with this continuation itself as the last descriptor of the answer: for a caller that
    /// [uses the pair again](PlainObject::with_returned_pairs). Beside 253 descriptors there is no room for
    /// it, and the answer goes without; as does one without descriptors when too many are in flight.
    ///
    /// # Errors
    /// As [`answer`](PlainContinuation::answer).
    #[inline]
    pub fn answer_and_return(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.answer_and_return_from(&mut message.into())
    }

    fn answer_and_return_from(mut self, message: &mut Message) -> Result<(), AnswerError> {
        fits_one_packet(message)?;
        let has_room = message.descriptors().len() < DESCRIPTORS_MAX;
        if has_room && let Some((reactor, fd)) = self.far.take_known() {
            return Socket::finish_inside_again(&reactor, fd, message).map_err(unanswered);
        }
        let (socket, message) = (self.far.into_socket(), std::mem::take(message));
        let sent = if has_room { socket.finish_inside(message) } else { socket.finish(message) };
        sent.map_err(unanswered)
    }

    /// Answers now, or says why not and gives the continuation back, so that something else can be answered
    /// in words that the caller understands: above all when there are too many descriptors in flight for
    /// those of the answer. It does not go home.
    ///
    /// # Errors
    /// [`AnswerError::Empty`], [`AnswerError::TooLarge`] or [`AnswerError::Gone`]; and
    /// [`AnswerError::OutOfDescriptors`] or [`AnswerError::WouldBlock`] if it may succeed later. The
    /// descriptors of the message are closed.
    pub fn try_answer(self, message: impl Into<Message>) -> Result<(), (AnswerError, PlainContinuation)> {
        let message = message.into();
        let sent =
            fits_one_packet(&message).and_then(|()| self.far.socket().try_send(message).map_err(unanswered));
        sent.map_err(|error| (error, self))
    }

    /// Answers with any number of bytes and up to 253 descriptors, in as many packets as it takes, and
    /// closes: for a caller that [expects](PlainObject::call_large) an answer like this. It may be empty.
    ///
    /// Waits for the caller to read, so it is best awaited in a task of its own; but not longer than
    /// [`LARGE_ANSWER_PAUSE_MAX`] for any one packet. Dropping the future breaks the answer off, and the
    /// caller is told that nobody will answer.
    ///
    /// # Errors
    /// [`AnswerError::Gone`] if the caller is, or has withdrawn the call; [`AnswerError::Unread`] if it did
    /// not read for so long; [`AnswerError::TooLarge`] for more than 253 descriptors;
    /// [`AnswerError::OutOfDescriptors`] if they cannot be sent. In each case the caller is told that nobody
    /// will answer.
    pub async fn answer_large(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        let (bytes, descriptors) = message.into().into_parts();
        let mut descriptors = Some(descriptors);
        for packet in large::packets(&bytes) {
            let with = descriptors.take().unwrap_or_default();
            let packet = with.into_iter().fold(Message::new(packet), Message::with_descriptor);
            self.send_within(packet, LARGE_ANSWER_PAUSE_MAX).await?;
        }
        Ok(())
    }

    async fn send_within(&self, packet: Message, time: Duration) -> Result<(), AnswerError> {
        let socket = self.far.socket();
        let mut sending = socket.send(packet);
        let mut pause = socket.reactor().sleep(time);
        poll_fn(|context| {
            if let Poll::Ready(sent) = Pin::new(&mut sending).poll(context) {
                return Poll::Ready(sent.map_err(unanswered));
            }
            Pin::new(&mut pause).poll(context).map(|()| Err(AnswerError::Unread))
        })
        .await
    }

    /// Whether the caller has withdrawn the call, or is gone.
    pub fn is_cancelled(&self) -> bool {
        self.far.socket().is_hung_up()
    }

    /// Ends when the caller withdraws the call, or is gone.
    pub async fn cancelled(&self) {
        let _ = self.far.socket().hung_up().await;
    }

    /// The descriptor, to hand to another process, which answers in this one's place.
    ///
    /// # Errors
    /// The kernel's (out of descriptors), and only if a future of [`cancelled`](PlainContinuation::cancelled)
    /// was dropped just now.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self.far.into_socket().into_fd() {
            Ok(fd) => Ok(fd),
            // A question asked by `cancelled` is not home yet: the duplicate goes, and this end, which is not
            // to be shut down now, closes when it is.
            Err(socket) => {
                socket.set_private(false);
                socket.as_fd().try_clone_to_owned()
            }
        }
    }
}

/// The far end of a pair that is a caller's. One that has come before is known by its number and mostly only
/// answered on: it is a descriptor until somebody asks for more, and never a socket of the reactor's.
struct FarEnd {
    /// Where it is to be one, and it, until it is.
    known: Cell<Option<(Reactor, OwnedFd)>>,
    socket: OnceCell<Socket>,
}

impl FarEnd {
    fn of_known(reactor: &Reactor, fd: OwnedFd) -> FarEnd {
        FarEnd { known: Cell::new(Some((reactor.clone(), fd))), socket: OnceCell::new() }
    }

    fn of_socket(socket: Socket) -> FarEnd {
        // By the protocol nobody else holds it; who keeps a copy loses it.
        socket.set_private(true);
        FarEnd { known: Cell::new(None), socket: OnceCell::from(socket) }
    }

    fn take_known(&mut self) -> Option<(Reactor, OwnedFd)> {
        self.known.take()
    }

    fn socket(&self) -> &Socket {
        self.socket.get_or_init(|| {
            let (reactor, fd) = self.known.take().expect("it is the one or the other");
            let socket = Socket::wrap_again(&reactor, fd, Kind::SeqPacket);
            socket.set_private(true);
            socket
        })
    }

    fn into_socket(mut self) -> Socket {
        self.socket();
        self.socket.take().expect("made just now")
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        // Its caller is to hear of it, and what strangers have left in it is closed as in any other.
        if self.known.get_mut().is_some() {
            self.socket();
        }
    }
}

impl fmt::Debug for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FarEnd")
    }
}

fn fits_one_packet(message: &Message) -> Result<(), AnswerError> {
    if message.bytes().len() > PLAIN_BYTES_MAX { Err(AnswerError::TooLarge) } else { Ok(()) }
}

fn unanswered(error: SendError) -> AnswerError {
    match error {
        SendError::Empty => AnswerError::Empty,
        SendError::TooLarge => AnswerError::TooLarge,
        SendError::OutOfDescriptors => AnswerError::OutOfDescriptors,
        SendError::WouldBlock => AnswerError::WouldBlock,
        SendError::Forked => AnswerError::Forked,
        _ => AnswerError::Gone,
    }
}
