//! Strangers meet: two programs that know each other only by their keys get a private socket from a server
//! they both trust, and the server steps out.
//!
//! This is the Unix domain socket netlayer of OCapN, server and client, on the wire compatible with Spritely
//! Goblins 0.17 and 0.18 and with the draft specification. There is no name in any file system: who may
//! connect is decided by who holds a connection to a server, and whom they find there by key.
//!
//! - A [`Server`] takes connections, has each peer prove its key, and passes on one end of a pair that one
//!   peer has made to the other. What it may is said by a [`Policy`], and how much by [`ServerOptions`].
//! - A [`Netlayer`] is a program's side: registered with one server or several, it asks for others by their
//!   [`Locator`] and is asked for by its own.
//! - An [`Identity`] is a private key, and a [`Keyring`] the file it is kept in, with the keys of servers.
//! - [`syrup`] is how all of that is written.
//!
//! ```
//! use introduction::{Expect, Identity, Netlayer, Server, ServerOptions};
//! use ring::{Executor, Kind, Reactor, Socket};
//!
//! let reactor = Reactor::new()?;
//! let server = Server::new(&reactor, Identity::generate()?, ServerOptions::default());
//!
//! // A connection to the server: from its listener usually, or inherited.
//! let (line, far) = Socket::pair(&reactor, Kind::Stream)?;
//! server.admit(far)?;
//! let line = line.into_fd().map_err(|_| "fresh sockets are idle")?;
//!
//! let netlayer = Netlayer::new(&reactor, Identity::generate()?);
//! Executor::new(&reactor).block_on(async {
//!     let gone = netlayer.add_server(line, Expect::key(server.key()).bound()).await?;
//!     println!("find me at {}", netlayer.our_location());
//!     drop(server);
//!     gone.await;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a server has to be trusted with
//!
//! It sees who asks for whom, and can refuse. Unless a locator demands a proof
//! ([`NetlayerOptions::proof`]), it can also put itself between the two, and its word is all there is for who
//! is at the other end. With a proof it can do none of that; PROTOCOL.md, "Introductions", says how.
//!
//! # Limits
//!
//! Records of 4,096 bytes, 16 of one connection in a turn; 256 connections, 16 introductions of each peer and
//! 256 in all, each for 10 s and up to a tenth more. See [`ServerOptions`] and [`NetlayerOptions`].
//!
//! It does not connect to servers by name, does not relay what is said, does not speak CapTP over the
//! connections it makes, does not encrypt (nobody but the kernel is between the two), and does not hide from
//! a server who asks for whom.
#![forbid(unsafe_code)]

mod blur;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod inlet;
mod locator;
mod netlayer;
mod passing;
mod policy;
mod proof;
mod reading;
mod record;
mod server;
mod signal;
mod statement;
pub mod syrup;

pub use identity::{
    Identity, KEYRING_BYTES_MAX, KNOWN_SERVERS_MAX, Keyring, KeyringError, SERVER_NAME_BYTES_MAX,
};
pub use inlet::DUMMY_BYTES_MAX;
pub use locator::{
    DESIGNATOR_CHARACTERS, Hints, Locator, LocatorError, Proof, PublicKey, SERVERS_MAX, SWISS_BYTES_MAX,
    Servers, SturdyRef, Swiss, URI_BYTES_MAX,
};
pub use netlayer::{
    AddServerError, ConnectError, Connection, Disconnected, Expect, Incoming, Netlayer, NetlayerOptions,
    Welcome,
};
pub use policy::{Open, Peer, Policy};
pub use record::{CHALLENGE_BYTES, CHALLENGE_BYTES_MIN, Form, RECORD_BYTES_MAX};
pub use server::{AdmitError, Counter, Server, ServerOptions, ServerStats};
