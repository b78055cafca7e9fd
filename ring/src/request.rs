//! Everything a driver can be asked to do, and everything it can answer: closed sets.
//!
//! A request owns all that the kernel may touch while it is away. It stays in its slot from submission until
//! its last completion has been reaped.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

use slab::Slab;

use crate::envelope::{Envelope, Room};
use crate::fd::Fd;
use crate::message::{PACKET_BYTES_MAX, Received};

/// One operation. What it needs, it owns.
pub(crate) enum Request {
    /// Send a sealed envelope now; `WouldBlock` when the queue is full. A silent one reports success only as
    /// a made-up completion, once the kernel has let go of the memory. A prompt one is not to be slept over:
    /// something is closed when it is home, and somebody may wait to see that.
    Send { fd: Fd, envelope: Box<Envelope>, silent: bool, prompt: bool },
    /// Receive: one message, or with `many` until told to stop.
    Receive { fd: Fd, want: Want, share: Share },
    /// Wait until `poll` would show one of these.
    Ready { fd: Fd, interest: u32 },
    /// Take one connection from a listener.
    Accept { fd: Fd },
}

impl Request {
    /// A receive that has had nothing yet.
    pub(crate) fn receive(fd: Fd, want: Want) -> Request {
        Request::Receive { fd, want, share: Share::default() }
    }

    /// The descriptor it is about.
    pub(crate) fn fd(&self) -> &Fd {
        match self {
            Request::Send { fd, .. }
            | Request::Receive { fd, .. }
            | Request::Ready { fd, .. }
            | Request::Accept { fd } => fd,
        }
    }

    /// What its token comes home with if nothing came of it but this.
    pub(crate) fn failed(&self, error: io::Error) -> Outcome {
        match self {
            Request::Send { .. } => Outcome::Sent(Err(error)),
            Request::Receive { .. } => Outcome::Arrived(Err(error)),
            Request::Ready { .. } => Outcome::Ready(Err(error)),
            Request::Accept { .. } => Outcome::Accepted(Err(error)),
        }
    }
}

/// What a receive is for.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    pub(crate) room: Room,
    pub(crate) many: bool,
    /// How many messages of a stream are its share of a turn.
    pub(crate) burst: u8,
    /// Of what may be no connected socket at all readiness says nothing: it is asked before it is waited for.
    /// And whoever made it may have changed what was set on it.
    pub(crate) strange: bool,
    /// Nobody has had the kernel name senders. What may be the end is asked again with their names, unless
    /// the peer had hung up: then nobody is there any more who could have meant what is behind it.
    pub(crate) unnamed: bool,
    /// One end of a connection, whose readiness says all.
    pub(crate) connected: bool,
    /// A look has just found it empty, so that it is connected: it is waited for without another look.
    pub(crate) looked: bool,
    /// It brings packets, and no stream of bytes: there a holder may ask for more bytes than have come
    /// (SO_RCVLOWAT), which a receive that sleeps waits for, and readiness does not.
    pub(crate) packets: bool,
}

/// How many messages one socket may deliver in one turn of a reactor before others have theirs; fewer where
/// [it is told so](crate::Socket::set_burst).
pub const BURST_MAX: usize = 16;

/// After so many bytes a socket delivers no more in this turn: 102,016, one packet that is full, or short of
/// it by a cache line at most, as pieces of something larger are. To copy three of them takes as long as ten
/// small calls with their answers, and who receives them mostly looks at one in a turn.
pub const BURST_BYTES_MAX: usize = PACKET_BYTES_MAX - 64;

/// What a stream has had of a turn, where it waits for its next share, and whether a look for more has been
/// worth it lately: the driver's own notes. They stand here so that thousands of streams that wait are not
/// searched for one.
#[derive(Default)]
pub(crate) struct Share {
    bytes: u32,
    /// Of the turn's number the lower half. Where that is the same by chance, the stream waits for a turn.
    turn: u16,
    messages: u8,
    /// Whether another message stands right behind one that is taken. Not one that fills a packet: that is
    /// better taken in a turn of its own, since whoever is sent such has often a place for it by then, which
    /// it knows from what came before (see [`Landing`](crate::Landing)).
    pub(crate) behind: Glance,
    /// Whether one comes while what was taken is answered.
    #[cfg(uring)]
    pub(crate) soon: Glance,
    /// It has more, or may have, and goes on in the next turn.
    #[cfg(uring)]
    pub(crate) hot: bool,
    /// It waits for descriptors.
    #[cfg(uring)]
    pub(crate) starved: bool,
    /// Nothing in the ring tells of it: its poll has come home.
    #[cfg(uring)]
    pub(crate) unwatched: bool,
}

impl Share {
    /// Whether something is left of what it may deliver in this turn.
    pub(crate) fn is_left(&mut self, turn: u32, want: Want) -> bool {
        let turn = turn as u16;
        if self.turn != turn {
            (self.turn, self.bytes, self.messages) = (turn, 0, 0);
        }
        self.messages < want.burst && !self.was_full()
    }

    /// Whether it has delivered as many bytes as it may, in the last turn in which it delivered anything.
    pub(crate) fn was_full(&self) -> bool {
        self.bytes as usize >= BURST_BYTES_MAX
    }

    /// It has delivered a message of so many bytes.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.messages += 1;
        // Two packets at most.
        self.bytes += bytes as u32;
    }
}

/// After a look in vain so many chances to look are let pass: a look costs a system call, and what it would
/// have found is found a little later all the same.
const GLANCES_SPARED: u8 = 15;

/// Whether to look, by how it went the last time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Glance(u8);

impl Glance {
    /// A chance to look. Whether to take it.
    pub(crate) fn is_due(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(left) => self.0 = left,
            None => return true,
        }
        false
    }

    /// What a look has found.
    pub(crate) fn found(&mut self, something: bool) {
        self.0 = if something { 0 } else { GLANCES_SPARED };
    }
}

/// Which request a completion belongs to. A number is used again only with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    pub(crate) slot: u32,
    /// Never zero, so that whoever has no token needs no word to say so: a socket has three places for one.
    pub(crate) generation: NonZeroU32,
}

impl Token {
    #[cfg(uring)]
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.slot)
    }

    #[cfg(uring)]
    pub(crate) fn from_bits(bits: u64) -> Token {
        let generation = NonZeroU32::new((bits >> 32) as u32).expect("the generation of a token");
        Token { slot: bits as u32, generation }
    }
}

/// A token come home. `last` is true exactly once for each token.
pub(crate) struct Completion {
    pub(crate) token: Token,
    pub(crate) outcome: Outcome,
    pub(crate) last: bool,
}

pub(crate) enum Outcome {
    Sent(io::Result<usize>),
    Arrived(io::Result<Arrival>),
    Ready(io::Result<u32>),
    Accepted(io::Result<OwnedFd>),
}

/// What a receive brought: maybe a message, maybe the end of file.
pub(crate) struct Arrival {
    pub(crate) message: Received,
    pub(crate) bytes_lost: bool,
    pub(crate) control_lost: bool,
    /// Zero bytes and no control data.
    pub(crate) nothing: bool,
    /// It was asked for when the other end was known to be closed, so that nothing is the end.
    pub(crate) hung_up: bool,
}

impl Arrival {
    /// A message with bytes in it, all of which have come: neither the end nor anything that looks like it.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        !self.nothing && !self.bytes_lost && !self.control_lost && !self.message.bytes().is_empty()
    }
}

/// The requests that are away: each in a slot that keeps what the kernel may touch until the token is home.
#[derive(Default)]
pub(crate) struct Requests {
    slots: Slab<(NonZeroU32, Request)>,
    generation: u32,
}

impl Requests {
    /// Fills a slot.
    pub(crate) fn insert(&mut self, request: Request) -> Token {
        // The highest generation is the drivers' own: see their reserved numbers.
        self.generation = if self.generation >= u32::MAX - 1 { 0 } else { self.generation };
        let generation = NonZeroU32::MIN.saturating_add(self.generation);
        self.generation = generation.get();
        let slot = self.slots.insert((generation, request));
        Token { slot: u32::try_from(slot).expect("fewer than 2^32 requests"), generation }
    }

    /// The request of a token that is still away.
    pub(crate) fn find(&mut self, token: Token) -> Option<&mut Request> {
        match self.slots.get_mut(token.slot as usize) {
            Some((generation, request)) if *generation == token.generation => Some(request),
            _ => None,
        }
    }

    /// What is sent with a token that is still away, if it sends, and from where.
    pub(crate) fn sending(&self, token: Token) -> Option<(&Fd, &Envelope)> {
        match self.slots.get(token.slot as usize) {
            Some((generation, Request::Send { fd, envelope, .. })) if *generation == token.generation => {
                Some((fd, envelope))
            }
            _ => None,
        }
    }

    /// What a receive that is still away has had of this turn.
    #[cfg(uring)]
    pub(crate) fn share(&mut self, token: Token) -> Option<&mut Share> {
        match self.find(token) {
            Some(Request::Receive { share, .. }) => Some(share),
            _ => None,
        }
    }

    /// Frees the slot of a token that has come home.
    pub(crate) fn remove(&mut self, token: Token) -> Request {
        assert!(self.find(token).is_some(), "a token comes home once");
        self.slots.remove(token.slot as usize).1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Drops what waits for readiness, with its descriptor, and leaks what the kernel may still read.
    pub(crate) fn forget_all_but_waits(&mut self) {
        for (_, request) in self.slots.drain() {
            if let Request::Send { .. } = request {
                std::mem::forget(request);
            }
        }
    }

    /// All that are away.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let token = |(slot, (generation, _)): (usize, &(NonZeroU32, Request))| Token {
            slot: slot as u32,
            generation: *generation,
        };
        self.slots.iter().map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_look_in_vain_some_chances_pass_and_then_one_is_taken() {
        let mut glance = Glance::default();
        for _ in 0..3 {
            assert!(glance.is_due());
            glance.found(true);
        }
        for _ in 0..3 {
            glance.found(false);
            (0..GLANCES_SPARED).for_each(|_| assert!(!glance.is_due()));
            assert!(glance.is_due());
        }
    }

    /// Each idle session has one.
    #[test]
    fn what_is_noted_of_a_stream_is_small() {
        assert!(size_of::<Share>() <= 12);
    }
}
