//! Objects called across processes by descriptor, over `SOCK_SEQPACKET` sockets.
//!
//! Two kinds, declared by whoever makes them and never guessed:
//!
//! - [`Object`]: what travels is the right to attach; calls run on a session, many at a time by number, and
//!   those of one turn share a packet. No socket and no descriptor for each call. For programs that both use
//!   this crate.
//! - [`PlainObject`]: one socket, any holder sends a message and the descriptor to answer on. No header, one
//!   packet each way; twenty lines of any language with `sendmsg` can call one, serve one and pass one on.
//!
//! ```
//! use ring::{Executor, Reactor};
//!
//! let reactor = Reactor::new()?;
//! let executor = Executor::new(&reactor);
//! let (greeter, mailbox) = seqpacket::object(&reactor)?;
//!
//! executor.spawn(async move {
//!     while let Some(call) = mailbox.next().await {
//!         let greeting = format!("hello, {}", String::from_utf8_lossy(call.bytes()));
//!         let _ = call.answer(greeting);
//!     }
//! });
//!
//! let answer = executor.block_on(greeter.call("world"))?;
//! assert_eq!(answer.bytes(), b"hello, world");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Outcomes
//!
//! Each call ends exactly once: with an answer, or with a [`CallError`] that says whether it was sent, whether
//! it may have been seen and whether a retry is safe. Dropping a [`Call`] withdraws it, and the server can
//! [notice](Continuation::cancelled); dropping a [`Continuation`] tells the caller that nobody will answer;
//! the death of a server ends all its calls.
//!
//! # Holders and trust
//!
//! All who hold one address, or one plain object, are one trust domain. To give an object to somebody else,
//! [grant](Object::grant): the server makes a fresh address for that holder, with sessions, windows and limits
//! of its own. [`share`](Object::share) is the duplicate.
//!
//! Every byte on the wire is in the project's `PROTOCOL.md`.
//!
//! It does not know what a message means, does not encode or check types, does not look up names, and does
//! not make a large message of small ones: 65,520 bytes on a session, 65,536 on a plain object.

#![forbid(unsafe_code)]

mod continuation;
pub mod credit;
mod error;
mod mailbox;
mod object;
mod pairs;
mod parcel;
mod plain;
mod session;
pub mod wire;

pub use continuation::Continuation;
pub use imc::WrapError;

pub use error::{AnswerError, CallError, Part};
pub use mailbox::{Incoming, Mailbox, MailboxOptions, Violations};
pub use object::{
    Answer, CALLS_QUEUED_MAX, Call, CallOptions, Object, ObjectOptions, object, object_with, plain_data,
};
pub use pairs::{PAIRS_DEFAULT, Pairs};
pub use plain::{
    PLAIN_ARGUMENTS_DEFAULT, PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX, PlainCall, PlainContinuation,
    PlainIncoming, PlainMailbox, PlainObject, PlainViolations, plain_object,
};
