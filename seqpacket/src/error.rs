//! How a call can end without an answer, and how an answer can fail to leave.
//!
//! Each variant says three things: was the call sent, may it have been seen, is it safe to call again.

use std::io;

use ring::SendError;
use ring::fork::ForkedChild;
use thiserror::Error;

use crate::wire::RefusedReason;

/// Which of the two messages of a call an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What the caller said.
    Call,
    /// What was said to it.
    Answer,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Call => "call",
            Part::Answer => "answer",
        })
    }
}

/// A call ended without an answer.
///
/// | variant | was it sent? | may it have been seen? | is a retry safe? |
/// |---|---|---|---|
/// | `Gone` | no (or into a queue nobody will read) | no | yes, elsewhere |
/// | `Dropped` | yes | yes | only if seeing it twice does no harm |
/// | `Cancelled` | yes | yes | only if seeing it twice does no harm |
/// | `Deadline` | perhaps | perhaps | only if seeing it twice does no harm |
/// | `Expired` | yes | no | yes, with more time |
/// | `Refused` | yes | not by the handler | yes, though it will be refused again |
/// | `TooLarge(Call)` | no | no | not before it is smaller |
/// | `TooLarge(Answer)` | yes | yes, and answered | with more room, if seeing it twice does no harm |
/// | `Truncated` | yes | yes, and answered | only if seeing it twice does no harm |
/// | `DescriptorsLost(Call)` | yes | not by the handler | yes, when the server has descriptors again |
/// | `DescriptorsLost(Answer)` | yes | yes, and answered | only if seeing it twice does no harm |
/// | `OutOfDescriptors(Call)` | no | no | yes, later |
/// | `OutOfDescriptors(Answer)` | yes | perhaps | only if seeing it twice does no harm |
/// | `OutOfMemory(Call)` | yes | not by the handler | yes, later |
/// | `OutOfMemory(Answer)` | yes | yes, and answered | only if seeing it twice does no harm |
/// | `WouldBlock` | no | no | yes, later |
/// | `Malformed` | perhaps | perhaps | no: the other side does not speak this protocol |
/// | `Forked` | perhaps | perhaps | not here: the parent may have the answer, or be waiting for it |
/// | `Io` | perhaps | perhaps | only if seeing it twice does no harm |
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody holds the other side of the object any more, or it is leaving. The call has not been seen.
    #[error("the object is gone; the call has not been seen")]
    Gone,
    /// Nobody will answer. The call may have been seen.
    #[error("nobody will answer; the call may have been seen")]
    Dropped,
    /// The server says that this call was withdrawn.
    #[error("the call was withdrawn")]
    Cancelled,
    /// The caller's own deadline has passed, and the call has been withdrawn. It may have been seen.
    #[error("the deadline has passed; the call may have been seen")]
    Deadline,
    /// The caller's own deadline had passed before anybody took the call, says the server. It has not been
    /// seen.
    #[error("the deadline had passed before the call was taken")]
    Expired,
    /// The server refuses as a matter of policy. The handler has not seen the call.
    #[error("refused by the server's policy; the call has not been handled")]
    Refused,
    /// One of the two messages does not fit: the call, or the room it asks for, into a packet, the server's
    /// windows or a limit on descriptors (nothing was sent); or the answer into what was reserved for it (the
    /// call has been seen).
    #[error("the {0} is too large")]
    TooLarge(Part),
    /// The bytes of the answer were cut off. Only a plain object's answerer can do that.
    #[error("the answer was longer than a packet may be, and its end is lost")]
    Truncated,
    /// Not all descriptors arrived: of the call at the server (its handler has not seen it), or of the answer
    /// here.
    #[error("descriptors of the {0} are lost")]
    DescriptorsLost(Part),
    /// No descriptors left: for the call (this process has none for a continuation or a session, or too many
    /// of this user are in flight; nothing was sent), or for the server to answer with.
    #[error("out of descriptors for the {0}")]
    OutOfDescriptors(Part),
    /// No memory left for a message as large: at the server for the call (its handler has not seen it), or
    /// here for the answer.
    #[error("out of memory for the {0}")]
    OutOfMemory(Part),
    /// It would have to wait. Only [`Object::try_call`](crate::Object::try_call) says so, and a call when
    /// [`CALLS_QUEUED_MAX`](crate::CALLS_QUEUED_MAX) others wait already.
    #[error("the call would have to wait")]
    WouldBlock,
    /// Something is not what it should be: the other side breaks the protocol (and the session has ended), or
    /// the answer does not have the shape it was [read](crate::Answer::read) as, or an empty message was
    /// given to a plain object (and not sent), where it could not be told from the end of file.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The reactor is that of the process this one was forked from; see [`ring::fork::ForkedChild`]. A call
    /// made here has not been sent; one that was under way at the fork is the parent's, and goes on there.
    #[error("{ForkedChild}")]
    Forked,
    /// The kernel said something else.
    #[error(transparent)]
    Io(io::Error),
}

impl CallError {
    /// Whether the call left this process: `None` if that is not known.
    pub fn was_sent(&self) -> Option<bool> {
        match self {
            CallError::Gone
            | CallError::WouldBlock
            | CallError::TooLarge(Part::Call)
            | CallError::OutOfDescriptors(Part::Call) => Some(false),
            CallError::Deadline | CallError::Malformed(_) | CallError::Forked | CallError::Io(_) => None,
            _ => Some(true),
        }
    }

    /// Whether a handler may have seen the call.
    pub fn may_have_been_seen(&self) -> bool {
        match self {
            CallError::Gone
            | CallError::WouldBlock
            | CallError::Refused
            | CallError::Expired
            | CallError::OutOfMemory(Part::Call)
            | CallError::TooLarge(Part::Call)
            | CallError::DescriptorsLost(Part::Call)
            | CallError::OutOfDescriptors(Part::Call) => false,
            CallError::Dropped
            | CallError::Cancelled
            | CallError::Deadline
            | CallError::TooLarge(Part::Answer)
            | CallError::Truncated
            | CallError::DescriptorsLost(Part::Answer)
            | CallError::OutOfDescriptors(Part::Answer)
            | CallError::OutOfMemory(Part::Answer)
            | CallError::Malformed(_)
            | CallError::Forked
            | CallError::Io(_) => true,
        }
    }

    /// Whether calling again cannot make anything happen twice.
    pub fn is_retry_safe(&self) -> bool {
        !self.may_have_been_seen()
    }

    /// As the caller is told it, whose deadline may have `passed`. A handler sees the deadline too, and gives
    /// up in that very moment: a call that ends without an answer, and too late, has ended because it was too
    /// late.
    pub(crate) fn by_the_clock(self, passed: impl FnOnce() -> bool) -> CallError {
        let without_answer = matches!(self, CallError::Dropped | CallError::Cancelled);
        if without_answer && passed() { CallError::Deadline } else { self }
    }

    /// No pair of sockets could be made.
    pub(crate) fn from_pair(error: io::Error) -> CallError {
        // The same numbers on every architecture.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        match error.raw_os_error() {
            Some(ENFILE | EMFILE) => CallError::OutOfDescriptors(Part::Call),
            _ if ForkedChild::is(&error) => CallError::Forked,
            _ => CallError::Io(error),
        }
    }

    pub(crate) fn from_send(error: SendError) -> CallError {
        match error {
            SendError::Gone => CallError::Gone,
            SendError::WouldBlock => CallError::WouldBlock,
            SendError::TooLarge => CallError::TooLarge(Part::Call),
            SendError::Empty => CallError::Malformed("an empty message cannot be told from the end of file"),
            SendError::OutOfDescriptors => CallError::OutOfDescriptors(Part::Call),
            SendError::Forked => CallError::Forked,
            SendError::Io(error) => CallError::Io(error),
            _ => CallError::Io(io::Error::other("not sent")),
        }
    }

    pub(crate) fn from_refusal(reason: RefusedReason) -> CallError {
        match reason {
            RefusedReason::Refused => CallError::Refused,
            RefusedReason::TooLarge => CallError::TooLarge(Part::Answer),
            RefusedReason::DescriptorsLost => CallError::DescriptorsLost(Part::Call),
            RefusedReason::OutOfDescriptors => CallError::OutOfDescriptors(Part::Answer),
            RefusedReason::Cancelled => CallError::Cancelled,
            RefusedReason::Leaving => CallError::Gone,
            RefusedReason::Expired => CallError::Expired,
            RefusedReason::OutOfMemory => CallError::OutOfMemory(Part::Call),
        }
    }
}

/// An answer did not leave. The call has ended all the same: the caller is told as each variant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The caller's whole session is gone. (Whether the caller of a plain object is still there nobody asks
    /// before answering; [`is_cancelled`](crate::PlainContinuation::is_cancelled) does.)
    #[error("the caller is gone")]
    Gone,
    /// The caller has withdrawn the call.
    #[error("the caller has withdrawn the call")]
    Withdrawn,
    /// More than the caller has reserved, or than a packet holds. The caller is told
    /// [`CallError::TooLarge`], or of a plain object [`CallError::Dropped`].
    #[error("the answer is larger than the caller has room for")]
    TooLarge,
    /// Too many descriptors of this user are in flight for those of the answer: said by
    /// [`try_answer`](crate::PlainContinuation::try_answer) and
    /// [`answer_large`](crate::PlainContinuation::answer_large). Or there are none left for the pair over
    /// which somebody else would [answer](crate::Continuation::into_fd); then the caller is told
    /// [`CallError::OutOfDescriptors`].
    #[error("out of descriptors for the answer")]
    OutOfDescriptors,
    /// The caller's queue is full. Only [`try_answer`](crate::PlainContinuation::try_answer) says so.
    #[error("the answer would have to wait")]
    WouldBlock,
    /// The caller of a plain object has not read of a large answer for
    /// [`LARGE_ANSWER_PAUSE_MAX`](crate::LARGE_ANSWER_PAUSE_MAX).
    #[error("the caller does not read the answer")]
    Unread,
    /// An empty answer on a plain object, which could not be told from nobody answering; the caller is told
    /// [`CallError::Dropped`].
    #[error("an empty answer cannot be told from the end of file")]
    Empty,
    /// The reactor is that of the process this one was forked from; see [`ring::fork::ForkedChild`]. The call
    /// is the parent's to answer, and the caller is told nothing.
    #[error("{ForkedChild}")]
    Forked,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> [CallError; 19] {
        [
            CallError::Gone,
            CallError::Dropped,
            CallError::Cancelled,
            CallError::Deadline,
            CallError::Expired,
            CallError::Refused,
            CallError::TooLarge(Part::Call),
            CallError::TooLarge(Part::Answer),
            CallError::Truncated,
            CallError::DescriptorsLost(Part::Call),
            CallError::DescriptorsLost(Part::Answer),
            CallError::OutOfDescriptors(Part::Call),
            CallError::OutOfDescriptors(Part::Answer),
            CallError::OutOfMemory(Part::Call),
            CallError::OutOfMemory(Part::Answer),
            CallError::WouldBlock,
            CallError::Malformed("malformed"),
            CallError::Forked,
            CallError::Io(io::Error::other("something else")),
        ]
    }

    #[test]
    fn what_was_not_sent_has_not_been_seen() {
        for error in one_of_each() {
            assert!(error.was_sent() != Some(false) || !error.may_have_been_seen(), "{error}");
            assert_eq!(error.is_retry_safe(), !error.may_have_been_seen(), "{error}");
        }
    }

    /// The table in the documentation, line by line.
    #[test]
    fn each_error_says_what_the_table_says() {
        let lines = include_str!("error.rs").lines().filter_map(|line| line.strip_prefix("/// | `"));
        let lines: Vec<Vec<&str>> = lines.map(|line| line.split(" | ").collect()).collect();
        assert_eq!(lines.len(), one_of_each().len());
        for (line, error) in lines.iter().zip(one_of_each()) {
            let name = line[0].trim_end_matches('`');
            assert!(format!("{error:?}").starts_with(name.trim_end_matches(')')), "{name}: {error:?}");
            let sent =
                if line[1].starts_with("no") { Some(false) } else { (line[1] == "yes").then_some(true) };
            assert_eq!(error.was_sent(), sent, "{name}");
            assert_eq!(error.may_have_been_seen(), !line[2].starts_with("no"), "{name}");
        }
    }
}
