//! Objects called across processes by descriptor, over `SOCK_SEQPACKET` sockets.
//!
//! Two kinds, declared by whoever makes them and never guessed:
//!
//! - [`Object`]: what travels is the right to attach; calls run on a session, many at a time by number, and
//!   those of one turn share a packet. No socket and no descriptor for each call. For programs that both use
//!   this crate.
//! - [`PlainObject`]: one socket, any holder sends a message and the descriptor to answer on. No header, one
//!   packet each way; twenty lines of any language with `sendmsg` can call one, serve one and pass one on.
//!   Sides that have agreed on it use a pair [again](PlainObject::with_returned_pairs), or answer with
//!   [as many packets](PlainObject::call_large) as it takes.
//!
//! And for whoever is only to be told something, [`make_socket`]: a descriptor that runs a callback.
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
//! Each call ends exactly once: with an answer, or with a [`CallError`] that says whether it was sent,
//! whether it may have been seen and whether a retry is safe. Dropping a [`Call`] withdraws it, and the
//! server can
//! [notice](Continuation::cancelled); dropping a [`Continuation`] tells the caller that nobody will answer;
//! the death of a server ends all its calls. A server that [leaves](Mailbox::leave) leaves none in doubt.
//!
//! # Passing objects on
//!
//! An object travels as a descriptor, in a call or in an answer. All who hold one address, or one plain
//! object, are one trust domain: each of them can flood it, or shut it down for all. So what is passed on is
//! a *grant*, a fresh address that the server makes for that holder, with sessions and limits of its own:
//!
//! - [`Object::pass_in`] puts a grant of an object one holds into a message; [`Object::grant`] is the
//!   descriptor alone.
//! - [`Mailbox::grant`] is a server's way to give out its own object, in an answer say;
//!   [`Mailbox::grant_revocable`] also knows the holder's calls, and takes the grant back.
//! - [`Incoming::take_object`], [`Answer::take_object`] and [`Object::from_fd`] make an object of what was
//!   received.
//! - [`Object::share`] is the duplicate of one's own right, to be asked for by name. A plain object has only
//!   [that](PlainObject::share).
//!
//! ```
//! use ring::{Executor, Message, Reactor};
//! use seqpacket::{Mailbox, Object};
//!
//! # let reactor = Reactor::new()?;
//! # let executor = Executor::new(&reactor);
//! # let (logger, logger_mailbox) = seqpacket::object(&reactor)?;
//! # let (worker, mailbox) = seqpacket::object(&reactor)?;
//! /// Calls back on the object that came with the call, and answers with another.
//! async fn work(mailbox: Mailbox, results: Mailbox) -> Option<()> {
//!     let mut call = mailbox.next().await?;
//!     let logger = call.take_object(mailbox.reactor())?;
//!     logger.call("started").await.ok()?;
//!     call.answer(Message::from("ask here").with_descriptor(results.grant().ok()?)).ok()
//! }
//! # let (_, results) = seqpacket::object(&reactor)?;
//! # executor.spawn(async move { assert_eq!(work(mailbox, results).await, Some(())) });
//! # executor.spawn(async move {
//! #     while let Some(call) = logger_mailbox.next().await {
//! #         assert_eq!(call.bytes(), b"started");
//! #         let _ = call.answer("noted");
//! #     }
//! # });
//!
//! executor.block_on(async {
//!     let mut answer = worker.call(logger.pass_in("work, and tell this one about it").await?).await?;
//!     let results: Object = answer.take_object(&reactor).ok_or("no object")?;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # When something goes wrong
//!
//! [`failures`] says of each error what happened, who may have seen it and what to do. What peers do wrong
//! and what is dropped is counted: [`Object::stats`], [`Mailbox::stats`], [`Mailbox::each_session`],
//! [`Mailbox::violations`], [`PlainMailbox::violations`], [`ring::Reactor::stats`]. With the feature
//! `trace-calls` each call is a `tracing` span on both sides (`call` and `serve`, target `seqpacket`, level
//! TRACE) that ends with its `outcome`, and an answer whose descriptors found no room at its caller is an
//! event (level DEBUG) of the server; without it, which is the default, there is no code for that.
//!
//! Every byte on the wire is in the project's `PROTOCOL.md`.
//!
//! # Large messages
//!
//! On a session a call may have 64 MiB, or what the server's [`MailboxOptions::message_bytes`] says. What
//! does not fit a packet is sent in parts, between which small calls and answers pass. So may an answer, if
//! its caller has asked for the room ([`ObjectOptions::answer_bytes`], [`CallOptions::answer_bytes`]):
//!
//! ```
//! # use ring::{Executor, Reactor};
//! use seqpacket::CallOptions;
//!
//! # let reactor = Reactor::new()?;
//! # let executor = Executor::new(&reactor);
//! let (mirror, mailbox) = seqpacket::object(&reactor)?;
//! executor.spawn(async move {
//!     while let Some(call) = mailbox.next().await {
//!         let mut bytes = call.bytes().to_vec();
//!         bytes.reverse();
//!         let _ = call.answer(bytes);
//!     }
//! });
//! let picture = vec![7; 1 << 20];
//! let room = CallOptions { answer_bytes: Some(picture.len()), ..CallOptions::default() };
//! let mirrored = executor.block_on(mirror.call_with(picture, room))?;
//! assert_eq!(mirrored.bytes().len(), 1 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A message on a plain object ends with its packet, at 102,080 bytes: other holders' packets may come
//! between, and nobody could put the pieces together.
//!
//! It does not know what a message means, does not encode or check types, and does not look up names.

#![forbid(unsafe_code)]

pub mod blocking;
mod brought;
mod continuation;
pub mod credit;
mod error;
pub mod failures;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod incoming;
mod large;
mod mailbox;
mod make_socket;
mod numbered;
mod object;
mod pairs;
mod parcel;
mod parts;
mod plain;
mod returned;
mod rooms;
mod served;
mod session;
mod shared;
mod slots;
mod spent;
mod stats;
mod table;
mod trace;
mod waiting;
pub mod wire;

pub use continuation::Continuation;
pub use imc::WrapError;

pub use error::{AnswerError, CallError, Part};
pub use incoming::Incoming;
pub use large::LARGE_ANSWER_BYTES_DEFAULT;
pub use mailbox::{
    ATTACHES_A_TURN_MAX, CALLS_A_TURN_MAX, DISPATCH_TURNS_MAX, Grant, HANDED_ON_A_TURN_MAX, Mailbox,
    MailboxOptions, Next, Violations,
};
pub use make_socket::{Listening, ListeningViolations, make_socket};
pub use object::{
    ANSWER_BYTES_DEFAULT, Answer, CALLS_QUEUED_MAX, Call, CallOptions, Object, ObjectOptions, object,
    object_with, plain_data,
};
pub use pairs::{PAIRS_DEFAULT, Pairs};
pub use parts::{
    DRAINED_LOOKS_MAX, LARGE_AT_ONCE_BYTES_MAX, LARGE_PACE, LARGE_STALL_MAX, LARGE_START,
    LARGE_TOGETHER_DEFAULT, PARTS_AHEAD_MAX, PARTS_QUEUED_MAX,
};
pub use plain::{
    ANSWERED_MAX, LARGE_ANSWER_PAUSE_MAX, PLAIN_ARGUMENTS_DEFAULT, PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX,
    PLAIN_CALLS_A_TURN_MAX, PlainCall, PlainContinuation, PlainIncoming, PlainMailbox, PlainNext,
    PlainObject, PlainViolations, plain_object,
};
pub use returned::{RETURNED_PAIRS_IDLE_MAX, RETURNED_PAIRS_MAX, ReturnTrust, Returns};
pub use rooms::{HUGE_PAGES_A_TURN_MAX, ROOM_KEPT_BYTES_MIN, ROOM_KEPT_MAX};
pub use served::{SESSION_FRAMES_A_TURN_MAX, SESSION_PACKETS_A_TURN_MAX};
pub use shared::{SharedMailbox, SharedPlainMailbox, shared_object, shared_plain_object};
pub use stats::{MalformedCounts, Outcomes, SessionStats, Stats, Traffic};
