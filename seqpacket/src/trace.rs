//! A span for each call, and an event for each answer that lost descriptors on its way, for programs that are
//! built with the feature `trace-calls`.
//!
//! Without the feature there is nothing here: a span of no size, whose end nobody writes down. With it a
//! subscriber is called only where nothing of ours is borrowed, for it may be anybody's code. It never knows
//! sessions.

#[cfg(feature = "trace-calls")]
use tracing::{Span, debug, field::Empty, trace_span};

use crate::error::{AnswerError, CallError};

/// One call, on one of its two sides: from its beginning here to its end here.
pub(crate) struct CallSpan {
    #[cfg(feature = "trace-calls")]
    span: Span,
}

#[cfg(feature = "trace-calls")]
impl CallSpan {
    /// On the caller's side.
    pub(crate) fn called(number: usize) -> CallSpan {
        CallSpan { span: trace_span!(target: "seqpacket", "call", number, outcome = Empty) }
    }

    /// On the side of whoever handles it.
    pub(crate) fn served(number: u32, bytes: usize, pid: i32) -> CallSpan {
        CallSpan { span: trace_span!(target: "seqpacket", "serve", number, bytes, pid, outcome = Empty) }
    }

    pub(crate) fn ended(&self, outcome: &'static str) {
        self.span.record("outcome", outcome);
    }
}

#[cfg(not(feature = "trace-calls"))]
impl CallSpan {
    pub(crate) fn called(_: usize) -> CallSpan {
        CallSpan {}
    }

    pub(crate) fn served(_: u32, _: usize, _: i32) -> CallSpan {
        CallSpan {}
    }

    pub(crate) fn ended(&self, _: &'static str) {}
}

/// The span of that call has ended long before.
#[cfg(feature = "trace-calls")]
pub(crate) fn answer_lost(number: u32, pid: i32) {
    debug!(target: "seqpacket", number, pid, "descriptors of an answer were lost at its caller");
}

#[cfg(not(feature = "trace-calls"))]
pub(crate) fn answer_lost(_: u32, _: i32) {}

/// How a call failed, in a word.
pub(crate) fn end_of_call(error: &CallError) -> &'static str {
    match error {
        CallError::Gone => "gone",
        CallError::Dropped => "dropped",
        CallError::Cancelled => "cancelled",
        CallError::Deadline => "deadline",
        CallError::Expired => "expired",
        CallError::Refused => "refused",
        CallError::TooLarge(_) => "too large",
        CallError::Truncated => "truncated",
        CallError::DescriptorsLost(_) => "descriptors lost",
        CallError::OutOfDescriptors(_) => "out of descriptors",
        CallError::OutOfMemory(_) => "out of memory",
        CallError::WouldBlock => "would block",
        CallError::Malformed(_) => "malformed",
        CallError::Forked => "forked",
        CallError::Io(_) => "io",
    }
}

/// What answering, or handing on, came to.
pub(crate) fn end_of_answer<T>(result: &Result<T, AnswerError>, good: &'static str) -> &'static str {
    match result {
        Ok(_) => good,
        Err(AnswerError::Gone) => "gone",
        Err(AnswerError::Withdrawn) => "withdrawn",
        Err(AnswerError::TooLarge) => "too large",
        Err(AnswerError::OutOfDescriptors) => "out of descriptors",
        Err(AnswerError::WouldBlock) => "would block",
        Err(AnswerError::Unread) => "unread",
        Err(AnswerError::Empty) => "empty",
        Err(AnswerError::Forked) => "forked",
    }
}

#[cfg(all(test, not(feature = "trace-calls")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_takes_no_room_and_no_time() {
        assert_eq!(size_of::<CallSpan>(), 0);
        assert!(!std::mem::needs_drop::<CallSpan>());
    }
}
