//! Where to answer a call of a session.
//!
//! A continuation owns the duty to end one number, once: by an answer, by a refusal, or, dropped, by saying
//! that nobody will answer.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use ring::Message;

use crate::error::AnswerError;
use crate::served::{Served, Session};
use crate::wire::{RefusedReason, Size};

/// The right, and the duty, to answer one call. Dropping it tells the caller that nobody will
/// ([`CallError::Dropped`](crate::CallError::Dropped)).
#[must_use = "dropping a continuation tells the caller that nobody will answer"]
pub struct Continuation {
    served: Rc<Served>,
    number: u32,
    room: Size,
    over: bool,
}

impl Continuation {
    pub(crate) fn new(served: Rc<Served>, number: u32, room: Size) -> Continuation {
        Continuation { served, number, room, over: false }
    }

    pub(crate) fn session(&self) -> &Session {
        self.served.session()
    }

    /// Answers, with at most as many bytes and descriptors as the caller has [room](Continuation::room) for.
    /// All answers of one turn to one client travel together. The descriptors are closed here once they have
    /// been sent; if they cannot be (too many of this user in flight), the caller is told
    /// [`CallError::OutOfDescriptors`](crate::CallError::OutOfDescriptors).
    ///
    /// # Errors
    /// See [`AnswerError`]: the answer did not leave, and the caller has been told why, if it is there.
    pub fn answer(mut self, message: impl Into<Message>) -> Result<(), AnswerError> {
        self.over = true;
        self.session().answer(self.number, self.room, message.into())
    }

    /// Refuses as a matter of policy: the caller is told that its call was not handled.
    pub fn refuse(mut self) {
        self.over = true;
        self.session().refuse(self.number, RefusedReason::Refused);
    }

    /// Whether the caller has withdrawn the call, or is gone.
    pub fn is_cancelled(&self) -> bool {
        self.session().is_withdrawn(self.number)
    }

    /// Ends when the caller withdraws the call, or is gone.
    pub async fn cancelled(&self) {
        poll_fn(|context| self.poll_cancelled(context)).await;
    }

    /// As [`cancelled`](Continuation::cancelled), for futures written by hand. One waker is kept.
    pub fn poll_cancelled(&self, context: &mut Context<'_>) -> Poll<()> {
        self.session().poll_withdrawn(self.number, context)
    }

    /// Bytes and descriptors the caller has room for.
    pub fn room(&self) -> (usize, usize) {
        (self.room.bytes(), self.room.descriptors())
    }
}

impl Drop for Continuation {
    fn drop(&mut self) {
        if !self.over {
            self.session().drop_call(self.number);
        }
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuation").field("number", &self.number).finish_non_exhaustive()
    }
}
