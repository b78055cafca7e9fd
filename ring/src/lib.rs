//! A single-threaded reactor for AF_UNIX messages and the descriptors in them, on io_uring or on epoll.
//!
//! ```
//! use ring::{Executor, Kind, Message, Reactor, Socket};
//!
//! let reactor = Reactor::new()?;
//! println!("{}", reactor.driver());
//!
//! // A pair: one end here, the other for whoever is to hold it.
//! let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
//! let far = Socket::wrap(&reactor, far)?;
//!
//! Executor::new(&reactor).block_on(async {
//!     let (reader, _writer) = std::io::pipe()?;
//!     far.send(Message::from("a pipe").with_descriptor(std::os::fd::OwnedFd::from(reader))).await?;
//!     let mut received = near.receive().await?;
//!     assert_eq!(received.bytes(), b"a pipe");
//!     assert!(received.take_descriptor().is_some());
//!     Ok(())
//! })
//! # as Result<(), Box<dyn std::error::Error>>
//! # ;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it takes care of
//!
//! - Every descriptor received is an `OwnedFd`, close-on-exec, before any other code runs; what nobody takes
//!   is closed, and closing a stranger's descriptor never makes this thread wait.
//! - Bytes or descriptors that were cut off are errors with names, and the budget of descriptors is kept:
//!   with none left, receives wait.
//! - End of file is believed when it is said twice, without credentials; empty packets are not the end.
//! - Sends and receives keep their order; futures can be dropped at any moment and lose nothing.
//! - The driver is chosen by trying: io_uring if it passes a descriptor, epoll if not. [`Reactor::driver`]
//!   says which and why; `SENDRIGHT_DRIVER=uring|epoll` or the [`Config`] forces one.
//! - The thread may have a loop already: a [`Guest`] is a reactor that sleeps in somebody else's, and shows
//!   it one descriptor. With the feature `tokio`, `Guest::on_tokio` makes it a guest of that runtime in one
//!   line.
//! - Waiting is sleeping, unless the [`Config`] says to look for a short while first ([`WaitPolicy`]).
//!
//! # Limits
//!
//! 102,080 bytes ([`PACKET_BYTES_MAX`]) and 253 descriptors ([`DESCRIPTORS_MAX`], a kernel limit; 16 unless a
//! socket asks for more) in one message; 64 receive buffers unless configured. Packets of up to
//! [`LARGE_PACKET_BYTES_MAX`] can be sent, and are received with a
//! [verb of their own](Socket::receive_large).
//!
//! It does not know any protocol, does not use threads (but for a few that close what may be slow to close),
//! does not open files, and is not `Send`: other threads hold a [`Remote`]. A reactor stays in the process
//! that made it: in a forked child each verb is refused by name ([`fork::ForkedChild`]) and touches nothing.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Without the uring driver there are things that nobody asks of the modules below it.
#![cfg_attr(not(uring), allow(dead_code, unused_variables))]

mod beside;
pub mod blocking;
mod budget;
mod buffer;
mod clock;
mod closer;
mod crew;
mod datagram;
mod driver;
mod envelope;
mod error;
mod executor;
mod fd;
pub mod fork;
mod generation;
mod guest;
pub mod inherit;
mod message;
mod name;
#[cfg(feature = "tokio")]
mod on_tokio;
mod op;
mod reactor;
mod reader;
mod remote;
mod request;
mod room;
#[cfg(feature = "script")]
#[doc(hidden)]
pub mod script;
pub mod shared_memory;
mod socket;
mod spare;
mod stats;
mod sync;
mod sys;
mod task;
mod timer;
mod wait;

pub use beside::LARGE_PACKET_BYTES_MAX;
pub use buffer::{LANDING_HEAD_BYTES, Landing};
#[doc(hidden)]
pub use closer::{closer_busy, closer_idle};
pub use datagram::Datagrams;
pub use driver::{
    DRIVER_VARIABLE, DriverChoice, DriverKind, DriverReport, StartError, UNSEEN_TURNS_MAX, UnknownDriver,
};
pub use envelope::{Otherwise, PIECES_SENT_AT_ONCE_MAX};
pub use error::{ReceiveError, SendError, WrapError};
pub use executor::{Executor, Settled, Spawner};
pub use fd::{DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, Descriptors, Fd, Kind, discard, is_unix_socket};
pub use guest::{AfterTurn, Guest, ROUNDS_MAX};
pub use message::{BYTES_INSIDE_MAX, Bytes, Credentials, Message, PACKET_BYTES_MAX, Received};
pub use name::{AbstractName, NAME_BYTES_MAX};
#[cfg(feature = "tokio")]
pub use on_tokio::{HostError, OnTokio};
pub use op::{PIECES_AT_ONCE_MAX, WAITING_BYTES_MAX};
pub use reactor::{BUFFERS_MAX, Companion, Config, Reactor, SLEEP_MAX, Sleep, Wait};
pub use reader::{Reader, Reading, Wakes};
pub use remote::Remote;
pub use request::{BURST_BYTES_MAX, BURST_MAX};
pub use room::{HUGE_PAGE_BYTES, HUGE_ROOM_BYTES_MIN, room_for};
pub use socket::{
    Accepting, Exchange, ExchangeError, Look, Readiness, Receive, Sending, Socket, TakeOne, socket_cookie,
};
pub use spare::{Line, Queue, Spare};
pub use stats::Stats;
pub use wait::{SPIN_DEFAULT, SPIN_MAX, WaitPolicy};
