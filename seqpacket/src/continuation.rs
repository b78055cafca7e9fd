//! Where to answer a call of a session.
//!
//! A continuation owns the duty to end one number, once: by an answer, by a refusal, or, dropped, by saying
//! that nobody will answer.

use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use ring::Message;

use crate::error::AnswerError;
use crate::served::{Served, Session};
use crate::trace::{CallSpan, end_of_answer};
use crate::wire::{RefusedReason, Size};

/// The right, and the duty, to answer one call. Dropping it tells the caller that nobody will
/// ([`CallError::Dropped`](crate::CallError::Dropped)).
#[must_use = "dropping a continuation tells the caller that nobody will answer"]
pub struct Continuation {
    served: Rc<Served>,
    number: u32,
    room: Size,
    deadline: Option<Instant>,
    span: CallSpan,
    over: bool,
}

impl Continuation {
    pub(crate) fn new(
        served: Rc<Served>,
        number: u32,
        room: Size,
        deadline: Option<Instant>,
        span: CallSpan,
    ) -> Continuation {
        Continuation { served, number, room, deadline, span, over: false }
    }

    pub(crate) fn session(&self) -> &Session {
        self.served.session()
    }

    /// Answers, with at most as many bytes and descriptors as the caller has [room](Continuation::room) for.
    /// All answers of one turn to one client travel together. The descriptors are closed here once they have
    /// been sent; if they cannot be (too many of this user in flight), the caller is told
    /// [`CallError::OutOfDescriptors`](crate::CallError::OutOfDescriptors).
    ///
    /// Nobody waits here until the answer has arrived. If its descriptors find no room at the caller, that is
    /// counted: [`Stats::answers_lost`](crate::Stats::answers_lost), of the mailbox and of the session.
    ///
    /// # Errors
    /// See [`AnswerError`]: the answer did not leave, and the caller has been told why, if it is there.
    #[inline]
    pub fn answer(mut self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.answer_in_place(&mut message.into())
    }

    pub(crate) fn answer_in_place(&mut self, message: &mut Message) -> Result<(), AnswerError> {
        self.over = true;
        let result = self.session().answer(self.number, self.room, message);
        self.span.ended(end_of_answer(&result, "answered"));
        result
    }

    /// Refuses as a matter of policy: the caller is told that its call was not handled.
    pub fn refuse(mut self) {
        self.over = true;
        self.session().refuse(self.number, RefusedReason::Refused);
        self.span.ended("refused");
    }

    /// The continuation as a descriptor, to hand to another process, which answers in this one's place: there
    /// it is a [`PlainContinuation`](crate::PlainContinuation).
    ///
    /// The caller is sent the other end of the pair and waits there, with the same room, the same deadline
    /// and the same right to withdraw, which whoever holds the descriptor can notice. For this session the
    /// call has ended: its share of the windows is free, and the death of this process changes nothing.
    /// The answer is one packet, 1 to 102,080 bytes and not more than the caller has
    /// [room](Continuation::room) for; beyond that the caller is told
    /// [`CallError::TooLarge`](crate::CallError::TooLarge), and whoever answered is not. Closing the
    /// descriptor says that nobody will answer; a second answer is not looked at.
    ///
    /// Whoever has the descriptor answers in this server's name, and can pass it on. A copy kept hides the
    /// death of whoever should answer. The [deadline](Continuation::deadline) does not travel with it.
    ///
    /// ```
    /// # use ring::Message;
    /// # use seqpacket::{AnswerError, Incoming, Object};
    /// /// Lets the worker answer.
    /// async fn hand_on(call: Incoming, worker: &Object) -> Result<(), AnswerError> {
    ///     let (bytes, _descriptors, continuation) = call.into_parts();
    ///     let errand = Message::new(bytes).with_descriptor(continuation.into_fd()?);
    ///     // The worker says only that it has understood.
    ///     let _ = worker.call(errand).await;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`AnswerError::OutOfDescriptors`]: there are none for a pair, and the caller is told
    /// [`CallError::OutOfDescriptors`](crate::CallError::OutOfDescriptors). (Where too many of this user are
    /// in flight the caller is told the same, later, and the descriptor is one whose caller has withdrawn.)
    /// [`AnswerError::Gone`] and [`AnswerError::Withdrawn`] as in [`answer`](Continuation::answer).
    pub fn into_fd(mut self) -> Result<OwnedFd, AnswerError> {
        self.over = true;
        let result = self.session().hand_on(self.number);
        self.span.ended(end_of_answer(&result, "handed on"));
        result
    }

    /// Whether the caller has withdrawn the call, or is gone, or its [deadline](Continuation::deadline) has
    /// passed.
    pub fn is_cancelled(&self) -> bool {
        self.session().is_withdrawn(self.number) || self.is_late()
    }

    /// Ends when the caller withdraws the call, or is gone, or its [deadline](Continuation::deadline) has
    /// passed, even if the caller is not there to say so.
    ///
    /// ```
    /// # use std::future::{Future, poll_fn};
    /// # use std::pin::pin;
    /// # use std::task::Poll;
    /// # use seqpacket::Incoming;
    /// # async fn work() -> Vec<u8> { Vec::new() }
    /// /// Works for as long as somebody waits for it.
    /// async fn handle(call: Incoming) {
    ///     let answer = {
    ///         let (mut work, mut cancelled) = (pin!(work()), pin!(call.continuation().cancelled()));
    ///         poll_fn(|context| match work.as_mut().poll(context) {
    ///             Poll::Ready(answer) => Poll::Ready(Some(answer)),
    ///             Poll::Pending => cancelled.as_mut().poll(context).map(|()| None),
    ///         })
    ///         .await
    ///     };
    ///     if let Some(answer) = answer {
    ///         let _ = call.answer(answer);
    ///     }
    /// }
    /// ```
    pub async fn cancelled(&self) {
        let reactor = self.session().reactor();
        let mut deadline = self.deadline.map(|deadline| reactor.sleep_until(deadline));
        poll_fn(|context| {
            let passed =
                deadline.as_mut().is_some_and(|deadline| Pin::new(deadline).poll(context).is_ready());
            if passed { Poll::Ready(()) } else { self.session().poll_withdrawn(self.number, context) }
        })
        .await;
    }

    /// As [`cancelled`](Continuation::cancelled), for futures written by hand. One waker is kept, and not
    /// woken at the deadline: who waits for that as well sleeps [until then](ring::Reactor::sleep_until).
    pub fn poll_cancelled(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_late() { Poll::Ready(()) } else { self.session().poll_withdrawn(self.number, context) }
    }

    /// When the caller gives up, if it has said. An answer after that still goes out: whether it is in time
    /// is for the caller to say. See [`Incoming::deadline`](crate::Incoming::deadline).
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= self.session().reactor().now())
    }

    /// Nobody will answer.
    #[inline(never)]
    fn is_dropped(&mut self) {
        let withdrawn = self.session().is_withdrawn(self.number);
        self.session().drop_call(self.number);
        self.span.ended(if withdrawn { "withdrawn" } else { "dropped" });
    }

    /// Bytes and descriptors the caller has room for.
    pub fn room(&self) -> (usize, usize) {
        (self.room.bytes(), self.room.descriptors())
    }
}

impl Drop for Continuation {
    #[inline]
    fn drop(&mut self) {
        if !self.over {
            self.is_dropped();
        }
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuation").field("number", &self.number).finish_non_exhaustive()
    }
}
