//! How to wait for what is about to come: asleep, or looking for a short while first.
//!
//! Waking a sleeper on another CPU costs more than most answers take (on a virtual machine some 60 µs,
//! against 4 µs for the round trip itself), so looking again and again for a bounded time pays where answers
//! are quick. The spinner owns the history from which that time follows. It has no clock: it is told what
//! happened and says how long to look. It does not know what is looked at.

use std::time::Duration;

/// What to do when nothing is there yet.
///
/// ```
/// use std::time::Duration;
/// use ring::WaitPolicy;
///
/// assert_eq!(WaitPolicy::default(), WaitPolicy::Sleep);
/// // A program that would rather burn a little of its CPU than wait to be woken.
/// let quick = WaitPolicy::spin();
/// // The same with a limit of its own.
/// let shy = WaitPolicy::Spin { at_most: Duration::from_micros(10) };
/// assert_ne!(quick, shy);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Sleep at once. The CPU is free for others, who may be the ones we wait for.
    #[default]
    Sleep,
    /// Look again and again for about twice as long as answers took lately, then sleep.
    ///
    /// It gives up after a few looks in vain, and tries again now and then. Where the thread may use one CPU
    /// only (by its affinity mask, or by the CPU quota of its cgroup; not by what is online) it never looks:
    /// whoever is to answer needs that CPU. CPUs are counted when the reactor or the client is made, for the
    /// thread that makes it.
    Spin {
        /// The longest look: [`SPIN_DEFAULT`] is a good one. More than [`SPIN_MAX`] counts as that, zero is
        /// the same as sleeping.
        at_most: Duration,
    },
}

impl WaitPolicy {
    /// [`Spin`](WaitPolicy::Spin) for [`SPIN_DEFAULT`] at most.
    pub const fn spin() -> WaitPolicy {
        WaitPolicy::Spin { at_most: SPIN_DEFAULT }
    }
}

/// The longest look unless another is asked for. Longer than it takes to wake a sleeper on another CPU (some
/// 60 µs on a virtual machine): whoever looks for less never sees the answer of one who sleeps, and two who
/// had both gone to sleep once, for something that came in between, would never look in time again.
pub const SPIN_DEFAULT: Duration = Duration::from_micros(100);

/// The longest look that can be asked for. Beyond it the machine does better with the CPU.
pub const SPIN_MAX: Duration = Duration::from_millis(1);

/// After so many looks whoever waits for this CPU may have it: the kernel likes to put those who answer each
/// other on one, and then looking on is what keeps the answer from coming.
pub(crate) const LOOKS_PER_YIELD: u32 = 16;

/// The shortest look: less than a few looks tells nothing.
const SPIN_MIN: Duration = Duration::from_micros(2);

/// So many looks in vain in a row, and the spinner gives up for a while …
pub(crate) const MISSES_MAX: u32 = 3;

/// … of so many waits at first, doubled each time the next attempt is in vain too …
pub(crate) const REST_FIRST: u32 = 16;

/// … up to so many. At 100 µs each, what is lost to looking is then less than a thousandth of a wait.
pub(crate) const REST_LAST: u32 = 1024;

/// Says how long to look before sleeping, from how it went so far.
#[derive(Debug)]
pub(crate) struct Spinner {
    /// Zero: never.
    at_most: Duration,
    /// About how long what came in time took to come.
    recent: Option<Duration>,
    misses: u32,
    /// So many waits are slept through at once.
    resting: u32,
    rest: u32,
}

impl Spinner {
    pub(crate) fn new(policy: WaitPolicy) -> Spinner {
        let cpus = match policy {
            WaitPolicy::Sleep => 1,
            // On Linux this is the thread's affinity mask and the quotas of its cgroup and those above it,
            // version 2 or 1, whichever is less. Kept honest by `spinning.rs`'s
            // `with_one_cpu_for_us_nobody_spins`.
            WaitPolicy::Spin { .. } => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Spinner::with_cpus(policy, cpus)
    }

    fn with_cpus(policy: WaitPolicy, cpus: usize) -> Spinner {
        let at_most = match policy {
            WaitPolicy::Spin { at_most } if cpus > 1 => at_most.min(SPIN_MAX),
            _ => Duration::ZERO,
        };
        Spinner { at_most, recent: None, misses: 0, resting: 0, rest: REST_FIRST }
    }

    /// Whether it looks at all.
    pub(crate) fn ever_looks(&self) -> bool {
        !self.at_most.is_zero()
    }

    /// A wait begins: how long to look before sleeping, if at all. To be followed by one of `hit` and `miss`,
    /// or by neither if the look was cut short by something else.
    pub(crate) fn look(&mut self) -> Option<Duration> {
        if !self.ever_looks() {
            return None;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        Some(self.length())
    }

    /// It came while we looked, after so long.
    pub(crate) fn hit(&mut self, after: Duration) {
        self.recent = Some(match self.recent {
            Some(recent) => (recent * 3 + after) / 4,
            None => after,
        });
        self.misses = 0;
        self.rest = REST_FIRST;
    }

    /// It did not come while we looked.
    pub(crate) fn miss(&mut self) {
        // It takes longer than the look did: the next one is twice as long, up to the limit.
        self.recent = Some(self.length());
        self.misses += 1;
        if self.misses >= MISSES_MAX {
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(REST_LAST);
        }
    }

    fn length(&self) -> Duration {
        match self.recent {
            Some(recent) => (recent * 2).max(SPIN_MIN).min(self.at_most),
            None => self.at_most,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    fn spinner() -> Spinner {
        Spinner::with_cpus(WaitPolicy::spin(), 2)
    }

    /// How many waits are slept through from here on.
    fn rest(spinner: &mut Spinner) -> u32 {
        let mut count = 0;
        while spinner.look().is_none() {
            count += 1;
            assert!(count <= REST_LAST, "it never tries again");
        }
        count
    }

    #[test]
    fn sleeping_is_the_default_and_never_looks() {
        let mut spinner = Spinner::with_cpus(WaitPolicy::default(), 64);
        assert_eq!(spinner.look(), None);
    }

    #[test]
    fn with_one_cpu_it_never_looks() {
        let mut spinner = Spinner::with_cpus(WaitPolicy::spin(), 1);
        assert!((0..10_000).all(|_| spinner.look().is_none()));
    }

    #[test]
    fn without_history_it_looks_as_long_as_it_may() {
        assert_eq!(spinner().look(), Some(SPIN_DEFAULT));
    }

    #[test]
    fn it_looks_for_twice_what_answers_took_lately() {
        let mut spinner = spinner();
        for _ in 0..100 {
            spinner.hit(micros(6));
        }
        assert_eq!(spinner.look(), Some(micros(12)));
        for _ in 0..100 {
            spinner.hit(micros(9));
        }
        let look = spinner.look().unwrap();
        assert!(look > micros(17) && look <= micros(18), "{look:?}");
    }

    #[test]
    fn it_never_looks_longer_than_the_limit_nor_too_short() {
        let mut spinner = spinner();
        spinner.hit(micros(60));
        assert_eq!(spinner.look(), Some(SPIN_DEFAULT));
        for _ in 0..100 {
            spinner.hit(Duration::ZERO);
        }
        assert_eq!(spinner.look(), Some(SPIN_MIN));
    }

    #[test]
    fn the_limit_has_a_limit() {
        let policy = |at_most| WaitPolicy::Spin { at_most };
        assert_eq!(Spinner::with_cpus(policy(SPIN_MAX), 2).look(), Some(SPIN_MAX));
        assert_eq!(Spinner::with_cpus(policy(SPIN_MAX * 2), 2).look(), Some(SPIN_MAX));
        assert_eq!(Spinner::with_cpus(policy(micros(1)), 2).look(), Some(micros(1)));
        assert_eq!(Spinner::with_cpus(policy(Duration::ZERO), 2).look(), None);
    }

    #[test]
    fn after_a_look_in_vain_it_looks_longer() {
        let mut spinner = spinner();
        for _ in 0..100 {
            spinner.hit(micros(5));
        }
        assert_eq!(spinner.look(), Some(micros(10)));
        spinner.miss();
        assert_eq!(spinner.look(), Some(micros(20)));
        spinner.miss();
        assert_eq!(spinner.look(), Some(micros(40)));
    }

    #[test]
    fn it_gives_up_after_a_few_in_vain_and_not_before() {
        let mut spinner = spinner();
        for _ in 0..MISSES_MAX {
            assert!(spinner.look().is_some());
            spinner.miss();
        }
        assert_eq!(spinner.look(), None);
    }

    #[test]
    fn a_hit_between_misses_keeps_it_going() {
        let mut spinner = spinner();
        for _ in 0..100 {
            for _ in 1..MISSES_MAX {
                assert!(spinner.look().is_some());
                spinner.miss();
            }
            assert!(spinner.look().is_some());
            spinner.hit(micros(10));
        }
    }

    #[test]
    fn it_tries_again_now_and_then_and_more_and_more_rarely() {
        let mut spinner = spinner();
        for _ in 0..MISSES_MAX {
            spinner.miss();
        }
        let mut expected = REST_FIRST;
        for _ in 0..12 {
            assert_eq!(rest(&mut spinner), expected);
            spinner.miss();
            expected = (expected * 2).min(REST_LAST);
        }
        assert_eq!(expected, REST_LAST);
    }

    #[test]
    fn one_hit_after_giving_up_and_all_is_as_it_was() {
        let mut spinner = spinner();
        for _ in 0..MISSES_MAX + 3 {
            rest(&mut spinner);
            spinner.miss();
        }
        rest(&mut spinner);
        spinner.hit(micros(4));
        for _ in 0..MISSES_MAX {
            assert!(spinner.look().is_some());
            spinner.miss();
        }
        assert_eq!(rest(&mut spinner), REST_FIRST);
    }
}
