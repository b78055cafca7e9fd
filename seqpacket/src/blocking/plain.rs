//! Plain objects without a reactor: five system calls and what their rules add.
//!
//! It owns the object's end, pairs that have come home, and one near end that is still to be closed. It never
//! knows what a message means.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use imc::WrapError;
use ring::blocking::{Inbox, Outgoing, ReceiveError, Socket};
use ring::{SendError, WaitPolicy};

use crate::blocking::Answer;
use crate::error::{CallError, Part};
use crate::large::{Assembly, LARGE_ANSWER_BYTES_DEFAULT};
use crate::parcel::{self, Parcel};
use crate::plain::{PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX};
use crate::returned::{Look, Pair, ReturnTrust, Returned, Returns};

/// The right to call a plain object, for programs without a reactor: see
/// [`seqpacket::PlainObject`](crate::PlainObject).
///
/// ```
/// use std::os::fd::OwnedFd;
/// use seqpacket::blocking::PlainObject;
///
/// fn shout(object: OwnedFd) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
///     let shouter = PlainObject::from_fd(object)?;
///     Ok(shouter.call("hello")?.into_bytes())
/// }
/// # use ring::{Executor, Reactor};
/// # let (bound, address) = imc::blocking::bound_socket()?;
/// # let (bound, address) = (bound.into_fd(), address.into_fd());
/// # let server = std::thread::spawn(move || {
/// #     let reactor = Reactor::new().unwrap();
/// #     let mailbox = seqpacket::PlainMailbox::from_fd(&reactor, bound).unwrap();
/// #     Executor::new(&reactor).block_on(async {
/// #         while let Some(call) = mailbox.next().await {
/// #             let louder = call.bytes().to_ascii_uppercase();
/// #             let _ = call.answer(louder);
/// #         }
/// #     });
/// # });
/// # assert_eq!(shout(address)?, b"HELLO");
/// # server.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Each call makes a pair and gives its far end away. Its near end is closed at the beginning of the next
/// call, when no descriptor of ours is in flight and the answerer has mostly closed the other one: closing it
/// then is cheap. Where both sides have agreed on it a pair
/// [comes home and serves again](PlainObject::with_returned_pairs), which is cheaper still.
///
/// `Send`, and for one thread at a time; others use a [duplicate](PlainObject::try_clone).
pub struct PlainObject {
    socket: Socket,
    inbox: RefCell<Inbox>,
    /// Of the last call.
    spent: RefCell<Option<Socket>>,
    returned: Option<Returned<Socket>>,
    answer_descriptors: Cell<usize>,
    large_answer_bytes: Cell<usize>,
}

/// What the near end of a call is to bring, which both sides know beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    OnePacket,
    /// With the far end, of this cookie, at its end.
    PacketAndPair(u64),
    /// An answer of so many bytes at most.
    Packets(usize),
}

impl PlainObject {
    /// From the descriptor that was received, or inherited.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(fd: OwnedFd) -> Result<PlainObject, WrapError> {
        let socket = super::session::connected(fd)?;
        // Others may hold this end too.
        socket.set_private(false);
        Ok(PlainObject {
            socket,
            inbox: RefCell::new(Inbox::new(WaitPolicy::Sleep)),
            spent: RefCell::new(None),
            returned: None,
            answer_descriptors: Cell::new(ring::DESCRIPTORS_DEFAULT),
            large_answer_bytes: Cell::new(LARGE_ANSWER_BYTES_DEFAULT),
        })
    }

    /// From now on expects each answer to bring the far end of its pair home, and makes a later call with the
    /// same pair: see [`PlainObject::with_returned_pairs`](crate::PlainObject::with_returned_pairs), also for
    /// whom to trust with it. As many pairs as were under way together are kept, up to
    /// [`RETURNED_PAIRS_MAX`](crate::RETURNED_PAIRS_MAX), for this handle; a
    /// [duplicate](PlainObject::try_clone) keeps its own.
    ///
    /// A forked child makes pairs of its own. But it has copies of those that were at home when it was
    /// forked: while it lives and has not called here or dropped this, a call of its parent with one of them
    /// does not see its answerer die ([`call_within`](PlainObject::call_within) ends it).
    ///
    /// ```
    /// use std::os::fd::OwnedFd;
    /// use seqpacket::ReturnTrust;
    /// use seqpacket::blocking::PlainObject;
    ///
    /// fn ask(object: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    ///     let object = PlainObject::from_fd(object)?.with_returned_pairs(ReturnTrust::FirstToAnswer);
    ///     for _ in 0..10 {
    ///         assert_eq!(object.call("still there?")?.bytes(), b"yes");
    ///     }
    ///     assert_eq!((object.returns().returned, object.returns().reused), (10, 9));
    ///     Ok(())
    /// }
    /// # use ring::{Executor, Reactor};
    /// # let (bound, address) = imc::blocking::bound_socket()?;
    /// # let (bound, address) = (bound.into_fd(), address.into_fd());
    /// # let server = std::thread::spawn(move || {
    /// #     let reactor = Reactor::new().unwrap();
    /// #     let mailbox = seqpacket::PlainMailbox::from_fd(&reactor, bound).unwrap();
    /// #     mailbox.return_continuations();
    /// #     Executor::new(&reactor).block_on(async {
    /// #         while let Some(call) = mailbox.next().await {
    /// #             let _ = call.answer("yes");
    /// #         }
    /// #     });
    /// # });
    /// # ask(address)?;
    /// # server.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_returned_pairs(mut self, trust: ReturnTrust) -> PlainObject {
        self.returned = Some(Returned::new(trust));
        self
    }

    /// What has become of the pairs that were to come home to this handle.
    pub fn returns(&self) -> Returns {
        self.returned.as_ref().map_or_else(Returns::default, Returned::counts)
    }

    /// How to wait for answers: asleep, unless told otherwise.
    pub fn set_wait_policy(&self, wait: WaitPolicy) {
        *self.inbox.borrow_mut() = Inbox::new(wait);
    }

    /// How many descriptors an answer may bring: 16 unless told otherwise, at most 253. A larger one ends the
    /// call with [`CallError::DescriptorsLost`]. For calls from now on.
    pub fn set_answer_descriptors(&self, count: usize) {
        self.answer_descriptors.set(count.min(ring::DESCRIPTORS_MAX));
    }

    /// How many bytes a [large](PlainObject::call_large) answer may have:
    /// [`LARGE_ANSWER_BYTES_DEFAULT`](crate::LARGE_ANSWER_BYTES_DEFAULT) unless told otherwise. For calls
    /// from now on.
    pub fn set_large_answer_bytes(&self, bytes: usize) {
        self.large_answer_bytes.set(bytes);
    }

    /// Calls, and waits for the answer. From 1 to 102,080 bytes, and up to 252 argument descriptors; those
    /// given are closed here once they are sent.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<Answer, CallError> {
        self.begin_until(message.into(), None, Expected::OnePacket)?.finish()
    }

    /// As [`call`](PlainObject::call); withdraws the call when so much time has passed without an answer.
    ///
    /// # Errors
    /// See [`CallError`]; [`Deadline`](CallError::Deadline) when the time is over.
    pub fn call_within<'a>(
        &self,
        message: impl Into<Outgoing<'a>>,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let deadline = Instant::now().checked_add(within);
        self.begin_until(message.into(), deadline, Expected::OnePacket)?.finish()
    }

    /// As [`call`](PlainObject::call), where the answer is a
    /// [large](crate::PlainContinuation::answer_large) one: of any number of bytes up to
    /// [a limit](PlainObject::set_large_answer_bytes), in several packets over the call's own pair. That it
    /// is one both sides know beforehand; nothing in the answer says so.
    ///
    /// # Errors
    /// See [`CallError`]; [`TooLarge`](CallError::TooLarge) for an answer beyond the limit,
    /// [`Dropped`](CallError::Dropped) for one that breaks off, [`Malformed`](CallError::Malformed) for one
    /// that is no large one.
    pub fn call_large<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<Answer, CallError> {
        self.begin_until(message.into(), None, Expected::Packets(self.large_answer_bytes.get()))?.finish()
    }

    /// As [`call_large`](PlainObject::call_large); withdraws the call when so much time has passed and the
    /// answer is not whole.
    ///
    /// # Errors
    /// As `call_large`; [`Deadline`](CallError::Deadline) when the time is over.
    pub fn call_large_within<'a>(
        &self,
        message: impl Into<Outgoing<'a>>,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let deadline = Instant::now().checked_add(within);
        let expected = Expected::Packets(self.large_answer_bytes.get());
        self.begin_until(message.into(), deadline, expected)?.finish()
    }

    /// Sends a call without waiting for its answer. A full queue is waited for.
    ///
    /// # Errors
    /// As [`call`](PlainObject::call), as far as it is known by now.
    pub fn begin<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<PlainPending<'_>, CallError> {
        self.begin_until(message.into(), None, Expected::OnePacket)
    }

    fn begin_until(
        &self,
        message: Outgoing<'_>,
        deadline: Option<Instant>,
        expected: Expected,
    ) -> Result<PlainPending<'_>, CallError> {
        if message.bytes().is_empty() {
            return Err(CallError::Malformed("an empty message cannot be told from the end of file"));
        }
        let arguments = message.descriptors().len();
        if message.bytes().len() > PLAIN_BYTES_MAX || arguments > PLAIN_ARGUMENTS_MAX {
            return Err(CallError::TooLarge(Part::Call));
        }
        drop(self.spent.take());
        let (near, far, expected) = self.pair(expected).map_err(CallError::from_pair)?;
        // One more for the far end, if it is to come home.
        let returning = usize::from(matches!(expected, Expected::PacketAndPair(_)));
        near.set_descriptors_max(self.answer_descriptors.get() + returning);
        let sent = if arguments == 0 {
            self.socket.send(&[message.bytes()], &[&far], deadline)
        } else {
            let given = message.descriptors().iter().map(AsFd::as_fd);
            let all: Vec<BorrowedFd<'_>> = given.chain([far.as_fd()]).collect();
            self.socket.send(&[message.bytes()], &all, deadline)
        };
        sent.map_err(|error| match error {
            SendError::WouldBlock => CallError::Deadline,
            error => CallError::from_send(error),
        })?;
        // `far` and what was given close here: a copy kept would hide the answerer's death.
        Ok(PlainPending { object: self, near: Some(near), deadline, expected })
    }

    /// A pair for a call that expects one packet, or several, and what is to come in at its near end: one
    /// that has come home, where that is agreed on, or a fresh one.
    fn pair(&self, expected: Expected) -> io::Result<(Socket, OwnedFd, Expected)> {
        let returned = self.returned.as_ref().filter(|_| expected == Expected::OnePacket);
        if let Some(Pair { near, far, cookie }) = returned.and_then(|returned| returned.take(look)) {
            return Ok((near, far, Expected::PacketAndPair(cookie)));
        }
        let (near, far) = match (Socket::pair(), &self.returned) {
            // Those at home serve no large answer, and each has what a fresh one needs.
            (Err(_), Some(home)) if home.give_up() => Socket::pair()?,
            (pair, _) => pair?,
        };
        let cookie = returned.and_then(|_| ring::socket_cookie(&far).ok());
        Ok((near, far, cookie.map_or(expected, Expected::PacketAndPair)))
    }

    /// A duplicate of the descriptor, for another holder.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone_fd()
    }

    /// Another handle on the same object, for another thread.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn try_clone(&self) -> io::Result<PlainObject> {
        let mut clone = PlainObject::from_fd(self.share()?).map_err(io::Error::other)?;
        clone.returned = self.returned.as_ref().map(|returned| Returned::new(returned.trust()));
        clone.answer_descriptors.set(self.answer_descriptors.get());
        clone.large_answer_bytes.set(self.large_answer_bytes.get());
        Ok(clone)
    }
}

impl fmt::Debug for PlainObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainObject").field(&self.socket.as_fd()).finish()
    }
}

/// A call of a plain object that was sent. Dropping it withdraws the call, which the answerer can notice.
#[must_use = "dropping a call withdraws it"]
pub struct PlainPending<'a> {
    object: &'a PlainObject,
    near: Option<Socket>,
    deadline: Option<Instant>,
    expected: Expected,
}

impl PlainPending<'_> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn finish(mut self) -> Result<Answer, CallError> {
        let near = self.near.take().expect("held until the call is over");
        if !near.is_of_this_process() {
            // Begun by our parent, who has the answer.
            return Err(CallError::Dropped);
        }
        let mut inbox = self.object.inbox.borrow_mut();
        let (answer, spent) = match (self.expected, &self.object.returned) {
            (Expected::Packets(bytes_max), _) => {
                (large_answer(&mut inbox, &near, bytes_max, self.deadline)?, Some(near))
            }
            (Expected::PacketAndPair(cookie), Some(returned)) => {
                let mut received = inbox.receive(&near, self.deadline).map_err(failed)?;
                let who = received.credentials().filter(parcel::is_somebody);
                let mut descriptors = received.take_list();
                let spent = returned.bring_home(near, cookie, &mut descriptors, who);
                (Answer::new(received.bytes().to_vec(), descriptors.take_all()), spent)
            }
            _ => (answer_from(inbox.receive(&near, self.deadline))?, Some(near)),
        };
        drop(inbox);
        if let Some(near) = spent {
            *self.object.spent.borrow_mut() = Some(near);
        }
        Ok(answer)
    }
}

impl fmt::Debug for PlainPending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainPending")
    }
}

fn look(near: &Socket) -> Look {
    match near.is_of_this_process() {
        true if near.is_quiet() => Look::Quiet,
        true => Look::Unclean,
        false => Look::OfAnotherProcess,
    }
}

/// All packets of a large answer.
fn large_answer(
    inbox: &mut Inbox,
    near: &Socket,
    bytes_max: usize,
    deadline: Option<Instant>,
) -> Result<Answer, CallError> {
    let mut assembly = Assembly::new(bytes_max);
    loop {
        let mut packet = inbox.receive(near, deadline).map_err(failed)?;
        let descriptors = Parcel::of_descriptors(packet.take_descriptors().into());
        if let Some(mut whole) = assembly.add(packet.bytes(), descriptors)? {
            let descriptors = whole.take_descriptors();
            return Ok(Answer::new(whole.into_bytes(), descriptors));
        }
    }
}

/// What came over a near end.
pub(super) fn answer_from(
    received: Result<ring::blocking::Received<'_>, ReceiveError>,
) -> Result<Answer, CallError> {
    match received {
        Ok(mut received) => {
            let descriptors = received.take_descriptors();
            Ok(Answer::new(received.bytes().to_vec(), descriptors))
        }
        Err(error) => Err(failed(error)),
    }
}

fn failed(error: ReceiveError) -> CallError {
    match error {
        ReceiveError::Deadline => CallError::Deadline,
        ReceiveError::Truncated(_) => CallError::Truncated,
        ReceiveError::DescriptorsLost(_) => CallError::DescriptorsLost(Part::Answer),
        ReceiveError::Io(error) => CallError::Io(error),
        _ => CallError::Dropped,
    }
}
