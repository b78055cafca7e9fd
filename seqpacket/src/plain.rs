//! Plain objects: one socket for each object, and a call is a message with the descriptor to answer on.
//!
//! What Plash's page on SOCK_SEQPACKET describes, to the letter: no header, one packet each way. Whoever
//! passes such an object on says that it is one; nothing about a descriptor tells.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytemuck::AnyBitPattern;
use imc::{ConnectedSocket, WrapError};
use ring::{
    Credentials, DESCRIPTORS_MAX, Fd, Kind, Message, PACKET_BYTES_MAX, Reactor, ReceiveError, Received,
    SendError, Sending, Sleep, Socket,
};

use crate::error::{AnswerError, CallError, Part};
use crate::object::{Answer, Object, deadline};
use crate::pairs::{PAIRS_DEFAULT, Pairs};
use crate::parcel::Parcel;

/// The largest message to or answer from a plain object, in bytes.
pub const PLAIN_BYTES_MAX: usize = PACKET_BYTES_MAX;

/// How many descriptors a call of a plain object may carry besides its continuation.
pub const PLAIN_ARGUMENTS_MAX: usize = DESCRIPTORS_MAX - 1;

/// How many argument descriptors a mailbox accepts unless told otherwise.
pub const PLAIN_ARGUMENTS_DEFAULT: usize = 15;

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
    let object =
        PlainObject::from_fd(reactor, far).map_err(|_| io::Error::other("a fresh socket is refused"))?;
    Ok((object, PlainMailbox::from_socket(near)))
}

/// The right to call a plain object. Any number of processes may hold the same one, and call it without
/// locks; they are one trust domain, since each of them can flood the socket or shut it down for all.
///
/// A handle on one thread; clones are the same. With use it keeps up to [`PAIRS_DEFAULT`] pairs of sockets,
/// two descriptors each, made ahead for its next calls; many objects can [share](PlainObject::from_fd_with)
/// one stock.
#[derive(Clone)]
pub struct PlainObject {
    socket: Rc<Socket>,
    pairs: Pairs,
    answer_descriptors: Cell<usize>,
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
        let answer_descriptors = Cell::new(ring::DESCRIPTORS_DEFAULT);
        Ok(PlainObject { socket: Rc::new(socket), pairs: pairs.clone(), answer_descriptors })
    }

    /// How many descriptors an answer may bring: 16 unless told otherwise, at most 253. Of a larger one the
    /// excess is closed, and the call ends with [`CallError::DescriptorsLost`]. For calls from now on.
    pub fn set_answer_descriptors(&self, count: usize) {
        self.answer_descriptors.set(count.min(DESCRIPTORS_MAX));
    }

    /// Calls. The descriptors of the message, 252 at most, are the arguments; the continuation is added to
    /// them, and all are closed here once they are sent. From 1 to 65,536 bytes. A full queue is awaited.
    ///
    /// The call is under way whether or not the future is polled; dropping the future withdraws it, which the
    /// answerer can notice.
    pub fn call(&self, message: impl Into<Message>) -> PlainCall {
        match self.begin(message.into()) {
            Ok(call) => call,
            Err(error) => PlainCall { state: State::Failed(Some(error)), deadline: None },
        }
    }

    fn begin(&self, mut message: Message) -> Result<PlainCall, CallError> {
        if message.bytes().is_empty() {
            return Err(CallError::Malformed("an empty message cannot be told from the end of file"));
        }
        // Refused before anything is sent: of a message in two packets other holders' calls might stand in
        // the middle.
        if message.bytes().len() > PLAIN_BYTES_MAX || message.descriptors().len() > PLAIN_ARGUMENTS_MAX {
            return Err(CallError::TooLarge(Part::Call));
        }
        let (near, far) = self.pairs.take().map_err(CallError::from_pair)?;
        near.set_descriptors_max(self.answer_descriptors.get());
        message.push_descriptor(Fd::made_here(far));
        // The far end is ours no longer once it is sent: a copy kept would hide the answerer's death.
        let sending = Some(self.socket.send_quietly(message));
        let way =
            Way { near: Some(near), sending, pairs: self.pairs.clone(), object: Rc::clone(&self.socket) };
        Ok(PlainCall { state: State::UnderWay(way), deadline: None })
    }

    /// A duplicate of the descriptor, for another holder.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
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

/// A call of a plain object. Ends once; dropping it withdraws the call.
#[must_use = "dropping a call withdraws it"]
pub struct PlainCall {
    state: State,
    deadline: Option<Sleep>,
}

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
    pairs: Pairs,
    /// Not closed before its last message has left.
    object: Rc<Socket>,
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
        let near = self.near.as_ref().expect("held until the call is over");
        near.poll_receive(context).map(|received| {
            let received = match received {
                Ok(received) => received,
                Err(ReceiveError::Closed) => return Err(CallError::Dropped),
                Err(ReceiveError::Truncated(_)) => return Err(CallError::Truncated),
                Err(ReceiveError::DescriptorsLost(_)) => {
                    return Err(CallError::DescriptorsLost(Part::Answer));
                }
                Err(ReceiveError::Io(error)) => return Err(CallError::Io(error)),
                Err(_) => return Err(CallError::Dropped),
            };
            // Answered: the near end is closed with others, off the path.
            if let Some(near) = self.near.take() {
                self.pairs.spend(near);
            }
            Ok(Answer(Parcel::whole(received)))
        })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Taken back if it has not left. Otherwise the near end, which is private, is shut down now, so that
        // the answerer sees it at once.
        self.sending = None;
        if let Some(near) = self.near.take() {
            drop(near);
            self.pairs.lost();
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
    /// The last descriptor is not a connected AF_UNIX SEQPACKET socket.
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
    violations: Cell<PlainViolations>,
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
        PlainMailbox { socket, violations: Cell::new(PlainViolations::default()) }
    }

    /// A copy of the end, for another process that takes calls from it.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    fn from_socket(socket: Socket) -> PlainMailbox {
        socket.set_descriptors_max(PLAIN_ARGUMENTS_DEFAULT + 1);
        // From now on, and not when the first call is awaited: the kernel tells who sent a call only of those
        // sent after it was asked to.
        socket.stream();
        PlainMailbox { socket, violations: Cell::new(PlainViolations::default()) }
    }

    /// How many argument descriptors a call may carry: 15 unless told otherwise, at most 252. Where
    /// descriptors are short, receives wait for so many (and one) to be free.
    pub fn set_arguments_max(&self, count: usize) {
        self.socket.set_descriptors_max(count.min(PLAIN_ARGUMENTS_MAX) + 1);
    }

    /// The next call; `None` when nobody holds the object any more. What is no call is dropped and
    /// [counted](PlainMailbox::violations). Dropping the future loses no call.
    ///
    /// One task at a time: of several that wait only the last is woken.
    pub async fn next(&self) -> Option<PlainIncoming> {
        loop {
            if let Some(end) = self.admit(self.socket.receive().await) {
                return end;
            }
        }
    }

    /// As [`next`](PlainMailbox::next), on a socket from which others take calls too.
    pub(crate) async fn next_beside_others(&self) -> Option<PlainIncoming> {
        loop {
            if let Some(end) = self.admit(self.socket.take_one().await) {
                return end;
            }
        }
    }

    /// What came, if it is a call or the end; anything else is counted.
    fn admit(&self, received: Result<Received, ReceiveError>) -> Option<Option<PlainIncoming>> {
        match received {
            Ok(received) => return self.open(Parcel::whole_of(received)).map(Some),
            Err(ReceiveError::Truncated(_)) => self.count(|violations| violations.truncated += 1),
            Err(ReceiveError::DescriptorsLost(_)) => {
                self.count(|violations| violations.descriptors_lost += 1);
            }
            Err(_) => return Some(None),
        }
        None
    }

    fn open(&self, (mut parcel, who): (Parcel, Option<Credentials>)) -> Option<PlainIncoming> {
        let Some(last) = parcel.take_last_descriptor() else {
            self.count(|violations| violations.without_continuation += 1);
            return None;
        };
        let Ok(continuation) = PlainContinuation::from_fd(self.socket.reactor(), last) else {
            self.count(|violations| violations.not_a_continuation += 1);
            return None;
        };
        Some(PlainIncoming { parcel, who, continuation })
    }

    /// What was dropped so far.
    pub fn violations(&self) -> PlainViolations {
        self.violations.get()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    fn count(&self, count: impl FnOnce(&mut PlainViolations)) {
        let mut violations = self.violations.get();
        count(&mut violations);
        self.violations.set(violations);
    }
}

impl fmt::Debug for PlainMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainMailbox").field(&self.socket.as_fd()).finish()
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
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.continuation.answer(message)
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
    socket: Socket,
}

impl PlainContinuation {
    /// From the descriptor that was received.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<PlainContinuation, WrapError> {
        let socket = ConnectedSocket::from_fd(reactor, fd)?.into_socket();
        // By the protocol nobody else holds it; who keeps a copy loses it.
        socket.set_private(true);
        Ok(PlainContinuation { socket })
    }

    /// Answers with one packet of 1 to 65,536 bytes and up to 253 descriptors, and closes. The answer leaves
    /// in the reactor's next turn, and waits for a caller whose queue is full for ten seconds at most.
    /// Whether the caller is still there is not asked. If the descriptors cannot be sent (too many of this
    /// user in flight) the caller is told that nobody will answer.
    ///
    /// # Errors
    /// [`AnswerError::Empty`] and [`AnswerError::TooLarge`] for messages that cannot be sent: the caller is
    /// told that nobody will answer.
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        let message = message.into();
        if message.bytes().len() > PLAIN_BYTES_MAX {
            return Err(AnswerError::TooLarge);
        }
        self.socket.finish(message).map_err(|error| match error {
            SendError::Empty => AnswerError::Empty,
            SendError::TooLarge => AnswerError::TooLarge,
            _ => AnswerError::Gone,
        })
    }

    /// Whether the caller has withdrawn the call, or is gone.
    pub fn is_cancelled(&self) -> bool {
        self.socket.is_hung_up()
    }

    /// Ends when the caller withdraws the call, or is gone.
    pub async fn cancelled(&self) {
        let _ = self.socket.hung_up().await;
    }

    /// The descriptor, to hand to another process, which answers in this one's place.
    ///
    /// # Errors
    /// The kernel's (out of descriptors), and only if a future of [`cancelled`](PlainContinuation::cancelled)
    /// was dropped just now.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self.socket.into_fd() {
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
