//! Who reads messages where they have arrived, before anybody is woken for them.
//!
//! A protocol reads most of its messages once, files what they say, and lets them go. It need not be woken
//! for that, and the message need not be kept until it is. This file says what such a reader is shown, and
//! what it may do; it never knows what a message means, nor who waits for it.

use std::fmt;
use std::task::Waker;

use crate::fd::Descriptors;
use crate::task::Sleeper;

/// Reads messages of a [stream](crate::Socket::stream) where they have arrived.
///
/// It is called in the middle of a turn, while the reactor's table is borrowed: it must not use the reactor,
/// nor anything on it, and runs nobody's code. Whom it would wake it [names](Wakes::wake), and they are woken
/// when nothing is borrowed any more. See [`Socket::set_reader`](crate::Socket::set_reader).
pub trait Reader {
    /// Reads a message, and takes descriptors that came with it. True if it is done with it: then the message
    /// is let go of with what was not taken, and nobody is woken for it. Otherwise what is left of it can be
    /// [received](crate::Socket::receive), and whoever waits for that is woken.
    fn read(&self, reading: Reading<'_>) -> bool;
}

/// A message that has arrived, and what its reader would ask.
#[non_exhaustive]
pub struct Reading<'a> {
    /// What came, all of it.
    pub bytes: &'a [u8],
    /// What came with it, all of them.
    pub descriptors: &'a mut Descriptors,
    /// The number of this turn, as [`Reactor::turns`](crate::Reactor::turns) says it until the next.
    pub turn: u64,
    /// As [`Socket::unsent`](crate::Socket::unsent), of the socket it has arrived at.
    pub unsent: usize,
    /// Whom to wake.
    pub wakes: Wakes<'a>,
}

/// Those who are to be woken as soon as nothing is borrowed.
pub struct Wakes<'a>(pub(crate) &'a mut Vec<Sleeper>);

impl Wakes<'_> {
    /// One more.
    #[inline]
    pub fn wake(&mut self, waker: Waker) {
        self.0.push(Sleeper::Other(waker));
    }
}

impl fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Wakes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wakes").field(&self.0.len()).finish()
    }
}
