//! Native Client's IMC on Linux: whoever holds an address may connect, and an address is a descriptor.
//!
//! A [`BoundSocket`] and a [`SocketAddress`] are the two ends of one `SOCK_SEQPACKET` pair. There is no name
//! in any file system, no port and no backlog. To connect is to make a second pair and to pass its far end,
//! with the byte `c`, over the address; to accept is to receive it. What both sides then hold is a
//! [`ConnectedSocket`], which carries messages and descriptors, other addresses among them.
//!
//! ```
//! use imc::{SocketAddress, bound_socket};
//! use ring::{Executor, Message, Reactor};
//!
//! let reactor = Reactor::new()?;
//! let (bound, address) = bound_socket(&reactor)?;
//!
//! // A duplicate of the address for another holder, usually sent in a message to another process.
//! let address = SocketAddress::from_fd(&reactor, address.share()?)?;
//!
//! let executor = Executor::new(&reactor);
//! executor.block_on(async {
//!     let client = address.connect().await?;
//!     // Said before anybody has accepted: it waits in the connection.
//!     client.send(Message::from("hello")).await?;
//!
//!     let arrival = bound.accept().await?;
//!     assert_eq!(arrival.who.credentials.map(|who| who.pid), Some(std::process::id() as i32));
//!     assert_eq!(arrival.socket.receive().await?.bytes(), b"hello");
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Three ways to connect
//!
//! | way | needs | what is wrong with it |
//! |---|---|---|
//! | [`bound_socket`] | a descriptor | success without acceptance, unless confirmed |
//! | [`older::stream`] | a name, and `socket`, `bind`, `connect` | who reads the name connects; a backlog |
//! | [`older::datagram`] | a name, and a socket to send from | who reads the name sends anything; 11 wait |
//!
//! The first is the one to use. The [older] ones are what it replaced, for peers that speak them.
//!
//! # What travels on a connection
//!
//! Messages with descriptors, whatever they are ([`ConnectedSocket`]); or [typed](TypedSocket) ones, in which
//! each descriptor is declared to be what it is: a [`SocketAddress`], a [`DataOnlySocket`], [`SharedMemory`]
//! or [`FrozenMemory`], or a [`PlainFile`]. Then Native Client's rule is kept by type: a connected socket
//! either travels or carries descriptors, never both.
//!
//! # What connecting means
//!
//! [`SocketAddress::connect`] ends well when the request is *queued*. A full queue is awaited, and
//! [`try_connect`](SocketAddress::try_connect) says that it is full; how many fit is the kernel's business
//! (278 with the usual buffer). If nobody ever accepts, or the acceptor dies with the request unread, the
//! connection ends: [`receive`](ConnectedSocket::receive) says `Closed`, and sending `Gone`. A client that
//! wants to know more than that asks an acceptor that [confirms](BoundSocket::set_confirming) with
//! [`connect_confirmed`](SocketAddress::connect_confirmed).
//!
//! # What an acceptor can expect of strangers
//!
//! Anything. What it hands out is an AF_UNIX socket of type `SOCK_SEQPACKET` that is, or was, connected.
//! Whatever else a holder of the address sends is closed, counted ([`BoundSocket::violations`]) and not
//! answered; it neither ends the acceptor nor makes it wait. Who connected is in [`Arrival::who`], to be
//! judged by the program.
//!
//! # What is not defended
//!
//! - All holders of one address are one trust domain. Each can keep its queue full, send rubbish as fast as
//!   it is read, or shut the pair down for all, after which [`accept`](BoundSocket::accept) says that
//!   everybody is gone. Give holders that do not trust each other an address each.
//! - The descriptor of an honest-looking request may be anybody's: a socket that others read too, the address
//!   itself, or an end of somebody else's connection. Dropping a [`ConnectedSocket`] shuts it down, which the
//!   sender could have done as well. What is sent on it carries *our* credentials: a program that can be
//!   talked into sending a lone `c` with a descriptor can be made to connect in its own name.
//! - The other end need not be held by a process. A client can leave it in the queue of the connection
//!   itself, so that no hang-up is seen until what it sent is received. Connections that must not stay for
//!   ever need a time limit; a [pidfd](BoundSocket::ask_for_pidfds) tells when the
//!   process has ended.
//! - Descriptors that are slow to close are closed on a thread of their own. While very many of them wait
//!   there, the reactor receives nothing that might bring more, honest requests included. Out of room in the
//!   descriptor table the kernel closes on *our* thread what a request brings too many.
//! - Requests are read in order and without regard to who sent them: a quota for each sender is the
//!   program's.
//!
//! It does not listen on paths, nor on names but in [`older`], does not say what messages mean, does not
//! confirm unless told to, and does not decide who may connect.
#![forbid(unsafe_code)]

mod address;
pub mod blocking;
mod bound;
mod connected;
mod data_only;
mod error;
mod fitness;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod memory;
pub mod older;
mod typed;
mod wire;

use std::io;

use ring::{Kind, Reactor, Socket};

pub use address::SocketAddress;
pub use bound::{Arrival, BoundSocket, Violations, Who};
pub use connected::ConnectedSocket;
pub use data_only::DataOnlySocket;
pub use error::{AcceptError, ConfirmError, ConnectError, WrapError};
pub use memory::{FrozenMemory, MEMORY_BYTES_MAX, MEMORY_UNIT_BYTES, MemoryError, SharedMemory};
pub use ring::shared_memory::{FrozenMapping, Mapping, WritableMapping};
pub use typed::{
    Capability, DATA_TRUNCATED, DESC_TRUNCATED, NACL_BYTES_MAX, NACL_DESCRIPTORS_MAX, NACL_PARTS_MAX,
    PlainFile, Room, Truncated, TypedMessage, TypedReceiveError, TypedReceived, TypedSendError, TypedSocket,
    TypedViolations,
};

/// The bytes of a request to connect, which come with exactly one descriptor.
pub(crate) const CONNECT: &[u8; 1] = b"c";

/// The bytes of a confirmation, which comes without descriptors.
pub(crate) const CONFIRM: &[u8; 1] = b"a";

/// A fresh pair: the right to accept, and the right to connect.
///
/// The acceptor learns that everybody is gone when every copy of the address is closed; so one that holds an
/// address itself, if only to give it away later, never does.
///
/// # Errors
/// The kernel's: out of descriptors.
pub fn bound_socket(reactor: &Reactor) -> io::Result<(BoundSocket, SocketAddress)> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
    let bound = BoundSocket::new(near).with_address(&far);
    let address = SocketAddress::from_fd(reactor, far).map_err(io::Error::other)?;
    Ok((bound, address))
}
