//! The right to attach, and calls that wait where they are made.
//!
//! An object owns an address and, once it was used, a session. It never knows what a message means.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use imc::WrapError;
use imc::blocking::SocketAddress;
use ring::WaitPolicy;
use ring::blocking::Outgoing;

use crate::blocking::Answer;
use crate::blocking::session::{Asked, Caller, Patience};
use crate::error::{CallError, Part};
use crate::object::{CallOptions, ObjectOptions};
use crate::wire::Size;

/// The right to call an object, for programs without a reactor: see [`seqpacket::Object`](crate::Object).
///
/// `Send`, and for one thread at a time. The first call attaches; after the death of the server process the
/// next call attaches anew, which succeeds if another process serves the same mailbox.
///
/// ```
/// use std::time::Duration;
/// use seqpacket::{CallError, CallOptions};
/// use seqpacket::blocking::Object;
///
/// /// The sum, or nothing if it takes too long.
/// fn add(adder: &Object, a: u64, b: u64) -> Result<Option<u64>, CallError> {
///     let options = CallOptions { within: Some(Duration::from_secs(1)), ..CallOptions::default() };
///     match adder.call_with(seqpacket::plain_data(&[a, b]), options) {
///         Ok(answer) => answer.read().map(Some),
///         Err(CallError::Deadline) => Ok(None),
///         Err(error) => Err(error),
///     }
/// }
/// ```
pub struct Object {
    address: SocketAddress,
    options: ObjectOptions,
    caller: RefCell<Caller>,
}

impl Object {
    /// From the descriptor that was received: the address of an object with sessions. That it is one, and not
    /// a plain object, is the sender's word; nothing about a descriptor tells.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(fd: OwnedFd) -> Result<Object, WrapError> {
        Object::from_fd_with(fd, ObjectOptions::default())
    }

    /// As [`from_fd`](Object::from_fd), with options.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd_with(fd: OwnedFd, options: ObjectOptions) -> Result<Object, WrapError> {
        let address = SocketAddress::from_fd(fd)?;
        let options = options.within_limits();
        Ok(Object { address, options, caller: RefCell::new(Caller::new(options)) })
    }

    /// How to wait for answers: asleep, unless told otherwise.
    pub fn set_wait_policy(&self, wait: WaitPolicy) {
        self.caller.borrow_mut().set_wait_policy(wait);
    }

    /// Calls, and waits for the answer: two system calls, `sendmsg` and `recvmsg`.
    ///
    /// Descriptors that are given with the message are closed here once they are sent.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<Answer, CallError> {
        self.call_with(message, CallOptions::default())
    }

    /// As [`call`](Object::call), with options.
    ///
    /// # Errors
    /// See [`CallError`]; [`Deadline`](CallError::Deadline) when the time is over, and then the call has been
    /// withdrawn.
    pub fn call_with<'a>(
        &self,
        message: impl Into<Outgoing<'a>>,
        options: CallOptions,
    ) -> Result<Answer, CallError> {
        let (bytes, mut descriptors) = message.into().into_parts();
        let (asked, deadline) = self.asked(bytes.len(), descriptors.len(), options)?;
        let caller = &mut *self.caller.borrow_mut();
        let was_attached = caller.is_attached();
        let may_repeat = descriptors.is_empty();
        let mut result = caller.call(&self.address, asked, &bytes, &mut descriptors, deadline);
        // The server had left, or died, since anybody looked, and nobody has seen the call.
        if was_attached && may_repeat && matches!(result, Err(CallError::Gone)) {
            result = caller.call(&self.address, asked, &bytes, &mut descriptors, deadline);
        }
        result
    }

    /// Calls with each of several messages, and waits for all answers, which come in the order of the calls.
    /// Calls travel together, as many as fit a packet (one with descriptors alone), and so do answers.
    ///
    /// Beyond the server's windows calls wait for answers to others.
    pub fn call_many<'a, M: Into<Outgoing<'a>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Vec<Result<Answer, CallError>> {
        let begun: Vec<_> = messages.into_iter().map(|message| self.begin(message)).collect();
        begun.into_iter().map(|pending| pending.and_then(Pending::finish)).collect()
    }

    /// Begins a call, to be finished later. It is sent with others when one of them is
    /// [finished](Pending::finish), when a packet is full, or by [`flush`](Object::flush). A large call is
    /// sent at once.
    ///
    /// This waits only to attach, and for room in the server's windows.
    ///
    /// # Errors
    /// As [`call`](Object::call), as far as it is known by now.
    pub fn begin<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<Pending<'_>, CallError> {
        self.begin_with(message, CallOptions::default())
    }

    /// As [`begin`](Object::begin), with options. The time within which the call is to be answered begins
    /// now, and when it is over the call is withdrawn by whoever waits for it.
    ///
    /// # Errors
    /// As [`call`](Object::call), as far as it is known by now.
    pub fn begin_with<'a>(
        &self,
        message: impl Into<Outgoing<'a>>,
        options: CallOptions,
    ) -> Result<Pending<'_>, CallError> {
        let (bytes, mut descriptors) = message.into().into_parts();
        let (asked, deadline) = self.asked(bytes.len(), descriptors.len(), options)?;
        let mut caller = self.caller.borrow_mut();
        caller.look_around();
        let patience = Patience { deadline, company: true };
        let key = caller.begin(&self.address, asked, &bytes, &mut descriptors, patience)?;
        Ok(Pending { object: self, key: Some(key), deadline })
    }

    /// Sends what was [begun](Object::begin) and has not been sent. A full queue is waited for.
    ///
    /// # Errors
    /// None that is not told by the calls themselves, but [`CallError::Gone`] if the session has ended.
    pub fn flush(&self) -> Result<(), CallError> {
        self.caller.borrow_mut().flush()
    }

    fn asked(
        &self,
        bytes: usize,
        descriptors: usize,
        options: CallOptions,
    ) -> Result<(Asked, Option<Instant>), CallError> {
        let room_descriptors = options.answer_descriptors.unwrap_or(self.options.answer_descriptors);
        // The call is too large by what it asks for: nothing is sent.
        if room_descriptors > self.options.answer_descriptors {
            return Err(CallError::TooLarge(Part::Call));
        }
        let size = |bytes, descriptors| {
            let size = Size::of_bytes(bytes).and_then(|size| size.with_descriptors(descriptors));
            size.map_err(|_| CallError::TooLarge(Part::Call))
        };
        let room = size(options.answer_bytes.unwrap_or(self.options.answer_bytes), room_descriptors)?;
        let within = options.within.and_then(|time| Instant::now().checked_add(time));
        let deadline = within.into_iter().chain(options.until).min();
        Ok((Asked::Call { message: size(bytes, descriptors)?, room }, deadline))
    }

    /// Attaches without calling, so that the first call is as fast as the others.
    ///
    /// # Errors
    /// [`CallError::Gone`] if nobody serves the object; [`CallError::Malformed`] if whoever does speaks
    /// something else.
    pub fn attach(&self) -> Result<(), CallError> {
        self.caller.borrow_mut().attach(&self.address, None)
    }

    /// As [`attach`](Object::attach), for so long at most.
    ///
    /// # Errors
    /// As `attach`; [`CallError::Deadline`] when the time is over.
    pub fn attach_within(&self, within: Duration) -> Result<(), CallError> {
        self.caller.borrow_mut().attach(&self.address, Instant::now().checked_add(within))
    }

    /// Asks the server for a fresh address, for somebody else: what is to be passed to a holder whom this
    /// one need not trust. It can be counted and limited apart from all others.
    ///
    /// # Errors
    /// As a call; [`CallError::Refused`] if the server grants nothing.
    pub fn grant(&self) -> Result<OwnedFd, CallError> {
        let caller = &mut *self.caller.borrow_mut();
        let was_attached = caller.is_attached();
        let mut result = caller.call(&self.address, Asked::Grant, &[], &mut Vec::new(), None);
        if was_attached && matches!(result, Err(CallError::Gone)) {
            result = caller.call(&self.address, Asked::Grant, &[], &mut Vec::new(), None);
        }
        result?.take_descriptor().ok_or(CallError::Malformed("a grant without a descriptor"))
    }

    /// The message with this object as its next descriptor: a [grant](Object::grant), so that whoever gets it
    /// need not be trusted.
    ///
    /// # Errors
    /// As [`grant`](Object::grant). The message, and the descriptors given with it, are dropped.
    pub fn pass_in<'a>(&self, message: impl Into<Outgoing<'a>>) -> Result<Outgoing<'a>, CallError> {
        let fd = self.grant()?;
        Ok(message.into().with_descriptor(fd))
    }

    /// A duplicate of this very address. All its holders are one trust domain: each can flood it, or shut it
    /// down for all. To somebody else give a [grant](Object::grant).
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.address.share()
    }

    /// Another handle on the same object, with a session of its own: for another thread.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn try_clone(&self) -> io::Result<Object> {
        Object::from_fd_with(self.share()?, self.options).map_err(io::Error::other)
    }

    /// The address, as it came. The session ends.
    pub fn into_fd(self) -> OwnedFd {
        let Object { address, .. } = self;
        address.into_fd()
    }

    /// Whether a session is open, as far as is known: the server may have gone since anybody looked.
    pub fn is_attached(&self) -> bool {
        self.caller.borrow().is_attached()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("address", &self.address.as_fd()).finish_non_exhaustive()
    }
}

/// A call that was begun. Dropping it withdraws the call, which the server can notice.
#[must_use = "dropping a call withdraws it"]
pub struct Pending<'a> {
    object: &'a Object,
    key: Option<usize>,
    deadline: Option<Instant>,
}

impl Pending<'_> {
    /// Sends what was begun, if it has not been sent yet, and waits for the answer to this call. Answers to
    /// others that come first are kept for them.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn finish(mut self) -> Result<Answer, CallError> {
        let key = self.key.take().expect("finished once");
        self.object.caller.borrow_mut().finish(key, self.deadline)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.object.caller.borrow_mut().withdraw(key);
        }
    }
}

impl fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("number", &self.key).finish_non_exhaustive()
    }
}
