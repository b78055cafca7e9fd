//! What each error means: what happened, what was sent, who may have seen it, and what to do.
//!
//! Nothing but the guide, which a test of the workspace keeps complete. It knows no error itself.
#![doc = include_str!("failures.md")]
