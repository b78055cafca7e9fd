//! Who may register and who may reach whom: questions that a server asks its owner.
//!
//! Owns nothing. It is asked with nothing borrowed, so an answer may look at the server itself.

use std::fmt;

use ring::Credentials;

use crate::locator::PublicKey;

/// A peer as the server knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The key it has proved to hold.
    pub key: PublicKey,
    /// The process, user and group that made the connection, as the kernel tells it (`SO_PEERCRED`): of a
    /// socket that was passed to the peer, those of whoever connected it.
    pub credentials: Credentials,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("key", &self.key).field("credentials", &self.credentials).finish()
    }
}

/// What a server's owner decides. What is not said is allowed, except to know.
///
/// ```
/// use introduction::{Peer, Policy};
///
/// /// Users meet their own programs only.
/// struct OwnPrograms;
///
/// impl Policy for OwnPrograms {
///     fn may_reach(&self, from: &Peer, to: &Peer) -> bool {
///         from.credentials.uid == to.credentials.uid
///     }
/// }
/// ```
pub trait Policy {
    /// Whether whoever made this connection may say anything at all. If not, it is closed before it is read
    /// from, and takes nobody's place.
    fn may_connect(&self, credentials: &Credentials) -> bool {
        let _ = credentials;
        true
    }

    /// Whether a peer that has proved its key may register. If not, the connection is closed.
    fn may_register(&self, peer: &Peer) -> bool {
        let _ = peer;
        true
    }

    /// Whether `from` may be introduced to `to`. If not, it is to `from` as if `to` were not there.
    fn may_reach(&self, from: &Peer, to: &Peer) -> bool {
        let _ = (from, to);
        true
    }

    /// Whether `from` is told at once that it was refused, or that nobody of that key is there. Otherwise all
    /// of these look the same to it: nothing happens until the time is over.
    fn may_know(&self, from: &Peer) -> bool {
        let _ = from;
        false
    }
}

/// Everybody may register and reach everybody, and nobody is told who is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open;

impl Policy for Open {}
