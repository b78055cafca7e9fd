//! The two older ways to connect, for peers that speak nothing else and for comparison.
//!
//! Native Client connected by *name* before it connected by descriptor. Both ways are here whole, with the
//! verbs of [the one that replaced them](crate::bound_socket), and neither should be used for anything new:
//!
//! | | needs | waiting requests | what is wrong with it |
//! |---|---|---|---|
//! | [`stream`] | `bind`, `listen`, `accept`, `connect` | backlog + 1 | a name; the backlog |
//! | [`datagram`] | `bind`, a socket to send from | 11, of all | a name; silent success; anything comes |
//! | [replacement](crate::bound_socket) | a descriptor | 278, of holders | silent success, unless confirmed |
//!
//! - *The backlog.* Whoever binds chooses how many connections may wait, and each number is wrong: Native
//!   Client's 5 "exposes an arbitrary limit". Nobody is told when there is room again.
//! - *Silent success.* The request is queued, and that is all that is known: "we don't know if our connection
//!   request was received". So it is with the replacement, whose acceptor can
//!   [confirm](crate::BoundSocket::set_confirming); with a name one does not even know whose queue it is in.
//! - *Anything comes.* A name for datagrams takes bytes and descriptors from everybody. Eleven of them, with
//!   253 descriptors each, keep everybody else waiting (`net.unix.max_dgram_qlen`).
//!
//! # What is wrong with names
//!
//! A name is a right that everybody has who knows it, and everybody can know it: all abstract names of a
//! network namespace are in `/proc/net/unix`, so that 27 random characters keep nobody out. A name cannot be
//! counted (an acceptor never learns that nobody will connect any more) and cannot be taken back. It outlives
//! who had it: whoever binds it next gets the connections. And a process that can use one name can try all.
//! A [network namespace](https://man7.org/linux/man-pages/man7/network_namespaces.7.html) of its own, or
//! Landlock's scope for abstract sockets, is all that separates strangers here.
//!
//! ```
//! use imc::older;
//! use ring::{Executor, Reactor};
//!
//! let reactor = Reactor::new()?;
//! let (bound, address) = older::datagram::bound_socket(&reactor)?;
//! let service = older::datagram::ServiceSocket::new(&reactor)?;
//!
//! Executor::new(&reactor).block_on(async {
//!     // An address is a name; this is all that another process must be told.
//!     let told = address.token().characters().to_owned();
//!     let address = older::datagram::SocketAddress::from(older::Token::new(told)?);
//!
//!     let client = address.connect(&service).await?;
//!     client.send("hello").await?;
//!     assert_eq!(bound.accept().await?.socket.receive().await?.bytes(), b"hello");
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod datagram;
pub mod stream;

use std::fmt;
use std::io;

use ring::{AbstractName, NAME_BYTES_MAX};

/// What Native Client put in front of the random part, behind the zero that makes a name abstract.
const PREFIX: &str = "google-nacl-";

/// How long the random part is: 27 characters, and a zero in Native Client's buffer of 28.
pub const TOKEN_CHARACTERS: usize = 27;

/// The random part of a name: all that an older address is.
///
/// It is no secret: see [the module](self).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// A token that nobody else has: 27 letters and digits from the kernel's randomness.
    ///
    /// # Errors
    /// The kernel has no randomness.
    pub fn random() -> io::Result<Token> {
        let name = AbstractName::random("", TOKEN_CHARACTERS)?;
        Ok(Token(name.bytes().iter().copied().map(char::from).collect()))
    }

    /// One that somebody has told us: 1 to 27 printable ASCII characters, the first a letter or digit.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn new(characters: impl Into<String>) -> io::Result<Token> {
        let characters = characters.into();
        let fits = (1..=TOKEN_CHARACTERS).contains(&characters.len());
        let begins = characters.starts_with(|first: char| first.is_ascii_alphanumeric());
        if fits && begins && characters.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Token(characters))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a token (1 to 27 printable characters)"))
        }
    }

    /// The characters.
    pub fn characters(&self) -> &str {
        &self.0
    }

    /// The name the token stands for. Native Client gave `bind` the whole of its structure, so that the
    /// zeroes behind the token belong to the name: a shorter name of the same characters is another one.
    fn name(&self) -> AbstractName {
        let mut name = [PREFIX, &self.0].concat().into_bytes();
        name.resize(NAME_BYTES_MAX, 0);
        AbstractName::new(name).expect("a token fits into a name")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.0).finish()
    }
}
