//! Peers that send anything: bytes, descriptors of every sort, at any moment.
//!
//! Two kinds of things are thrown, each a string of bytes that a fuzzer makes up or a test draws:
//!
//! - at a [`Decoder`]: the bytes themselves. It must keep to its rules whatever they are, and take no more
//!   memory than it says;
//! - at a [`Scene`]: a script. It is read as what a hostile peer does, step by step, to something that is
//!   served at that moment: a mailbox, an acceptor, a client, an introduction server. Afterwards somebody
//!   honest is served as if nothing had been; and when all is dropped, descriptors and memory are as before.
//!
//! The same entry points serve `cargo test`, which draws from seeds on any Rust, and the targets in `fuzz/`,
//! which a fuzzer leads to what they have not done yet.
//!
//! It does not decide what is right: the decoders' rules are stated in each crate's `fuzzing`, and those of
//! live sockets are that others do not notice. It does not send to other processes, and what it has in flight
//! at a time is bounded, because the kernel counts that for each user and other tests have the same.
#![forbid(unsafe_code)]
// A harness reports what the machine refuses it by failing the test.
#![allow(clippy::unwrap_used)]

mod corpus;
mod decoders;
mod descriptors;
mod memory;
mod packet;
mod peer;
mod records;
mod scenes;
mod script;

pub use corpus::{CORPUS_BYTES_MAX, seeds};
pub use decoders::Decoder;
pub use memory::{Memory, RESIDENT_BYTES_MAX};
pub use scenes::Scene;
pub use script::{SCRIPT_BYTES_MAX, STEPS_MAX};
