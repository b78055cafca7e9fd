//! What may go wrong in a simulated world: how often each kind of fault happens, and how often it has.
//!
//! Rates, counts and names, and nothing else: it decides nothing and knows neither driver nor seed. It also
//! names what no kernel and no driver of ours ever does, so that those who say they would notice can be put
//! to the test.

use std::fmt;

/// What a script may do, each in so many of a thousand chances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// An operation is not begun in the turn in which it was asked for.
    pub held: u32,
    /// … but so many turns later, at most.
    pub turns_held_max: u32,
    /// What has happened is not told in this turn, or not in the order in which it happened.
    pub untold: u32,
    /// A send finds the queue full that is not (EAGAIN).
    pub full: u32,
    /// So does an attempt that does not wait.
    pub full_now: u32,
    /// A storm begins: whatever this party tries finds nothing, and no room (EAGAIN).
    pub storm: u32,
    /// … for so many attempts, at most.
    pub storm_attempts_max: u32,
    /// A stream takes less than there is room for.
    pub short: u32,
    /// A stream that takes no descriptors gives less than there is.
    pub short_receive: u32,
    /// A receive ends for want of a buffer (ENOBUFS), or is interrupted (EINTR).
    pub interrupted: u32,
    /// A stream ends with a message, as if it had been asked for one.
    pub ended_early: u32,
    /// A receive reports a reset in front of what is queued (ECONNRESET).
    pub reset: u32,
    /// A receive says zero although a message is queued: once for each socket, and only when its peer has
    /// closed.
    pub false_end: u32,
    /// A send finds too many descriptors of its user in flight (ETOOMANYREFS).
    pub too_many_in_flight: u32,
    /// A send or an accept finds no memory (ENOMEM), which nobody can mend.
    pub out_of_memory: u32,
    /// The receiver has no room for all descriptors of a message: the first few arrive.
    pub descriptors_lost: u32,
    /// No descriptors for a pair, a socket or a connection (EMFILE).
    pub out_of_descriptors: u32,
    /// There is room for so many completions that were not told. With none left streams end and nothing is
    /// begun, as with a full completion queue. 0: as many as there are. Not a rate.
    pub completions_max: u32,
}

impl Faults {
    /// Everything in order, at once, and without a fault.
    pub const NONE: Faults = Faults {
        held: 0,
        turns_held_max: 0,
        untold: 0,
        full: 0,
        full_now: 0,
        storm: 0,
        storm_attempts_max: 0,
        short: 0,
        short_receive: 0,
        interrupted: 0,
        ended_early: 0,
        reset: 0,
        false_end: 0,
        too_many_in_flight: 0,
        out_of_memory: 0,
        descriptors_lost: 0,
        out_of_descriptors: 0,
        completions_max: 0,
    };

    /// What even a test that counts turns should not notice: all is done within four.
    pub const SOON: Faults = Faults {
        held: 300,
        turns_held_max: 1,
        full: 50,
        short: 300,
        interrupted: 20,
        ended_early: 200,
        reset: 20,
        false_end: 500,
        ..Faults::NONE
    };

    /// What no program should notice but by the order of things.
    pub const UNNOTICED: Faults = Faults {
        held: 300,
        turns_held_max: 4,
        untold: 300,
        full: 100,
        full_now: 100,
        storm: 10,
        storm_attempts_max: 20,
        short: 300,
        short_receive: 300,
        interrupted: 50,
        ended_early: 100,
        reset: 30,
        false_end: 500,
        completions_max: 4,
        ..Faults::NONE
    };

    /// All there is.
    pub const ALL: Faults = Faults {
        too_many_in_flight: 60,
        out_of_memory: 5,
        descriptors_lost: 100,
        out_of_descriptors: 40,
        ..Faults::UNNOTICED
    };

    /// The kinds that may happen. Withdrawals and deaths are the doing of those who live there.
    pub fn kinds(&self) -> Vec<Fault> {
        let rate = |fault: &Fault| match fault {
            Fault::Held => self.held,
            Fault::Untold | Fault::Reordered => self.untold,
            Fault::Full => self.full,
            Fault::FullNow => self.full_now,
            Fault::Storm => self.storm,
            Fault::ShortSend => self.short,
            Fault::ShortReceive => self.short_receive,
            Fault::NoBuffers | Fault::Interrupted => self.interrupted,
            Fault::EndedEarly => self.ended_early,
            Fault::Reset => self.reset,
            Fault::FalseEnd => self.false_end,
            Fault::TooManyInFlight => self.too_many_in_flight,
            Fault::OutOfMemory => self.out_of_memory,
            Fault::DescriptorsLost => self.descriptors_lost,
            Fault::OutOfDescriptors => self.out_of_descriptors,
            Fault::Overflow => self.completions_max,
            Fault::Cancelled | Fault::Killed | Fault::KilledAtWork => 0,
        };
        Fault::EACH.into_iter().filter(|fault| rate(fault) > 0).collect()
    }
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// An operation was begun turns after it was asked for.
    Held,
    /// Something had happened and was told a turn later.
    Untold,
    /// Of two things that had happened the later was told first.
    Reordered,
    /// A send found a queue full that was not.
    Full,
    /// An attempt that does not wait did.
    FullNow,
    /// An attempt fell into a storm of EAGAIN.
    Storm,
    /// A stream took a part of what it was given.
    ShortSend,
    /// A stream gave a part of what there was room for.
    ShortReceive,
    /// A receive ended for want of a buffer.
    NoBuffers,
    /// A receive was interrupted.
    Interrupted,
    /// A stream of messages ended before it was told to.
    EndedEarly,
    /// A receive reported a reset.
    Reset,
    /// An end of file that was none.
    FalseEnd,
    /// ETOOMANYREFS.
    TooManyInFlight,
    /// ENOMEM.
    OutOfMemory,
    /// A message arrived without some of its descriptors.
    DescriptorsLost,
    /// EMFILE.
    OutOfDescriptors,
    /// There was no room for what had happened.
    Overflow,
    /// An operation under way was cancelled.
    Cancelled,
    /// A process was killed …
    Killed,
    /// … with operations under way.
    KilledAtWork,
}

impl Fault {
    /// All of them.
    pub const EACH: [Fault; 21] = [
        Fault::Held,
        Fault::Untold,
        Fault::Reordered,
        Fault::Full,
        Fault::FullNow,
        Fault::Storm,
        Fault::ShortSend,
        Fault::ShortReceive,
        Fault::NoBuffers,
        Fault::Interrupted,
        Fault::EndedEarly,
        Fault::Reset,
        Fault::FalseEnd,
        Fault::TooManyInFlight,
        Fault::OutOfMemory,
        Fault::DescriptorsLost,
        Fault::OutOfDescriptors,
        Fault::Overflow,
        Fault::Cancelled,
        Fault::Killed,
        Fault::KilledAtWork,
    ];
}

/// How often each kind of fault has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened([u64; Fault::EACH.len()]);

impl Happened {
    /// How often this one has.
    pub fn count(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds what has happened in another world.
    pub fn add(&mut self, other: &Happened) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    pub(crate) fn note(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Fault::EACH.iter().try_for_each(|fault| write!(f, "{fault:?} {}; ", self.count(*fault)))
    }
}

/// What a broken driver might do, and none of ours does: for tests of those who are to notice it. Each in one
/// of four cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sabotage {
    /// A message's first descriptor comes a second time, in the place of the next message's first.
    DeliversTwice,
    /// A message's first descriptor comes with the next message that has one, and so on.
    Misdelivers,
    /// A message's last descriptor is closed, and nobody is told.
    LosesSilently,
    /// A descriptor is opened that nobody closes.
    Leaks,
    /// A request never comes home.
    Stalls,
    /// Descriptors are kept open as long as there is the driver.
    HoardsDescriptors,
    /// Memory is.
    HoardsMemory,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_place_of_its_own() {
        for (place, fault) in Fault::EACH.into_iter().enumerate() {
            assert_eq!(fault as usize, place);
        }
    }

    #[test]
    fn without_rates_there_are_no_kinds_and_with_all_only_deeds_are_missing() {
        assert!(Faults::NONE.kinds().is_empty());
        let deeds = [Fault::Cancelled, Fault::Killed, Fault::KilledAtWork];
        let others: Vec<Fault> = Fault::EACH.into_iter().filter(|fault| !deeds.contains(fault)).collect();
        assert_eq!(Faults::ALL.kinds(), others);
    }
}
