//! Rights you can send: inter-process communication on Linux where the address *is* a descriptor.
//!
//! This crate owns nothing. It puts the four libraries of the project under one name, each whole and under
//! the name it has everywhere else in the project:
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | a single-threaded reactor for messages and descriptors, on io_uring or epoll |
//! | [`imc`] | connecting by passing one end of a socket pair; nothing has a name in any file system |
//! | [`seqpacket`] | objects that are called: whoever holds the descriptor may call, and nobody else |
//! | [`introduction`] | strangers find each other by key through a server, which then steps out |
//!
//! There is no prelude: import what you use, from the module that says where it belongs.
//!
//! ```
//! use sendright::ring::{Executor, Reactor};
//! use sendright::seqpacket;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reactor = Reactor::new()?;
//! let executor = Executor::new(&reactor);
//! let (object, mailbox) = seqpacket::object(&reactor)?;
//!
//! executor.spawn(async move {
//!     while let Some(incoming) = mailbox.next().await {
//!         let loud = incoming.bytes().to_ascii_uppercase();
//!         // A caller that went away is not an error of the server.
//!         let _ = incoming.answer(loud);
//!     }
//! });
//!
//! let answer = executor.block_on(async { object.call("hello").await })?;
//! assert_eq!(answer.bytes(), b"HELLO");
//! # Ok(())
//! # }
//! ```
//!
//! The package also builds a program of the same name (feature `program`): `sendright demo` shows a file
//! service whose client has no file system, `sendright introduce` runs an introduction server, `sendright
//! serve` exports a directory to strangers (`ls`, `cat`, `put` and others use it), `sendright bench`
//! measures, `sendright probe` says what this machine can do and which limits will bite, and `sendright
//! echo` is something to talk to from another language. Who wants the library alone turns the default
//! features off and asks for `uring` and `tracing` as needed, and for `tokio` to be a guest of a runtime
//! (`ring::Guest::on_tokio`).
//!
//! It does not add anything to the libraries, wrap them or choose for you: no global reactor, no threads, no
//! background work of its own.

#![forbid(unsafe_code)]

pub use {imc, introduction, ring, seqpacket};

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

/// What the program's file service says and hears, for [`fuzzing`] alone: the program has it to itself.
#[cfg(feature = "fuzzing")]
#[allow(missing_docs, dead_code)]
mod files {
    pub mod wire;
}

/// The README's lines, compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
