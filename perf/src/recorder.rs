//! What calls took, and when the next ones are due.
//!
//! It owns the histogram and the schedule. It must never know what is called.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Longer is recorded as this.
const LATENCY_NS_MAX: u64 = 600 * 1_000_000_000;

/// Three significant digits: a ratio of two medians is good to a thousandth.
const DIGITS: u8 = 3;

/// Records batches of calls that are begun together.
///
/// **Closed loop**: a batch begins when the one before has ended, and what is recorded is its time divided by
/// its calls: the price of a call.
///
/// **Open loop**: batches are due at a rate, whatever became of those before, and what is recorded is the
/// time from when a batch was due until its last answer: what somebody would have waited who came at that
/// moment. A server that stops for a while delays all who come meanwhile, and each of them is counted, which
/// a closed loop would omit. (Where nothing was under way when the batch came due, the clock starts with the
/// batch: that a timer was late is not the callee's fault.)
///
/// ```
/// let mut recorder = perf::Recorder::closed();
/// recorder.begin_round(1);
/// let start = recorder.begin();
/// recorder.end(start);
/// recorder.end_round();
/// assert_eq!(recorder.calls(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Recorder {
    /// None where nothing is recorded.
    histogram: Option<Histogram<u64>>,
    pace: Pace,
    depth: u64,
    calls: u64,
    /// The time all rounds took together.
    busy: Duration,
    round_began: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Pace {
    Closed,
    Open {
        /// Calls per second.
        rate: f64,
        /// Between two batches of this round.
        interval: Duration,
        /// Of the next batch.
        due: Option<Instant>,
        /// Whether the batch before ended after the next was due.
        late: bool,
    },
}

impl Recorder {
    /// One batch after the other.
    pub fn closed() -> Recorder {
        Recorder::with(histogram(), Pace::Closed)
    }

    /// So many calls per second, come what may.
    ///
    /// # Panics
    /// If the rate is not a positive number.
    pub fn open(rate: f64) -> Recorder {
        assert!(rate.is_finite() && rate > 0.0, "calls per second are a positive number");
        Recorder::with(histogram(), Pace::Open { rate, interval: Duration::ZERO, due: None, late: false })
    }

    /// Looks at no clock and keeps nothing, for whoever counts instructions or system calls.
    pub fn off() -> Recorder {
        Recorder::with(None, Pace::Closed)
    }

    fn with(histogram: Option<Histogram<u64>>, pace: Pace) -> Recorder {
        Recorder { histogram, pace, depth: 1, calls: 0, busy: Duration::ZERO, round_began: None }
    }

    /// A round begins, of batches of so many calls. The first batch is due now.
    pub fn begin_round(&mut self, depth: usize) {
        self.depth = depth.max(1) as u64;
        if self.histogram.is_none() {
            return;
        }
        let now = Instant::now();
        if let Pace::Open { rate, interval, due, late } = &mut self.pace {
            *interval = Duration::from_secs_f64(self.depth as f64 / *rate);
            (*due, *late) = (Some(now), false);
        }
        self.round_began = Some(now);
    }

    /// Whether a round of so many batches goes on after so many of them: until all were made. At a rate it
    /// goes on for those that came due meanwhile, too, or a stall would be counted only for those who came
    /// before the round was to end; and it ends when twice its time has passed, made or not, or a rate that
    /// nobody can keep up with would be measured for as long as its calls take.
    pub fn goes_on(&self, made: usize, batches: usize) -> bool {
        let Pace::Open { interval, due: Some(due), .. } = &self.pace else { return made < batches };
        let Some(began) = self.round_began else { return made < batches };
        let is_in_time = || began.elapsed().as_secs_f64() < interval.as_secs_f64() * batches as f64 * 2.0;
        made == 0 || (is_in_time() && (made < batches || *due <= Instant::now()))
    }

    /// Until when to wait before the next batch, if it is not due yet.
    pub fn pause(&mut self) -> Option<Instant> {
        match &mut self.pace {
            Pace::Closed => None,
            Pace::Open { due, late, .. } => {
                let due = (*due)?;
                *late = due <= Instant::now();
                (!*late).then_some(due)
            }
        }
    }

    /// A batch begins: what to give to [`end`](Recorder::end).
    #[inline]
    pub fn begin(&mut self) -> Option<Instant> {
        self.histogram.as_ref()?;
        let now = Instant::now();
        match &mut self.pace {
            Pace::Closed => Some(now),
            Pace::Open { interval, due, late, .. } => {
                let was_due = (*due)?;
                *due = was_due.checked_add(*interval);
                Some(if *late { was_due } else { now })
            }
        }
    }

    /// All calls of the batch have been answered.
    #[inline]
    pub fn end(&mut self, began: Option<Instant>) {
        self.calls += self.depth;
        let (Some(histogram), Some(began)) = (&mut self.histogram, began) else { return };
        let took_ns = began.elapsed().as_nanos() as u64;
        let each_ns = match self.pace {
            Pace::Closed => took_ns / self.depth,
            Pace::Open { .. } => took_ns,
        };
        histogram.saturating_record_n(each_ns.clamp(1, LATENCY_NS_MAX), self.depth);
    }

    /// The round is over: now, or at a rate when the next batch would be due.
    pub fn end_round(&mut self) {
        let Some(began) = self.round_began.take() else { return };
        let now = Instant::now();
        let ended = match &self.pace {
            Pace::Open { due: Some(due), .. } => now.max(*due),
            _ => now,
        };
        self.busy += ended.duration_since(began);
    }

    /// One measurement made elsewhere: what so many calls took together.
    pub fn record(&mut self, took: Duration, calls: usize) {
        let calls = calls.max(1) as u64;
        self.busy += took;
        self.record_many(took.as_nanos() as u64 / calls, calls);
    }

    /// So many calls that took so long each, as another recorder [tells](Recorder::recorded) them.
    pub fn record_many(&mut self, latency_ns: u64, calls: u64) {
        self.calls += calls;
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record_n(latency_ns.clamp(1, LATENCY_NS_MAX), calls);
        }
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// In nanoseconds, at 0 to 1; 1 is the longest. 0 if nothing was recorded.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        match &self.histogram {
            Some(histogram) if !histogram.is_empty() => histogram.value_at_quantile(quantile),
            _ => 0,
        }
    }

    /// Over the time of all rounds.
    pub fn calls_per_s(&self) -> f64 {
        let busy = self.busy.as_secs_f64();
        if busy > 0.0 { self.calls as f64 / busy } else { 0.0 }
    }

    /// Each latency that was recorded, in nanoseconds, and how many calls took it.
    pub fn recorded(&self) -> Vec<(u64, u64)> {
        let Some(histogram) = &self.histogram else { return Vec::new() };
        let values = histogram.iter_recorded();
        values.map(|value| (value.value_iterated_to(), value.count_since_last_iteration())).collect()
    }

    /// What the other has recorded, too.
    pub fn add(&mut self, other: &Recorder) {
        self.calls += other.calls;
        self.busy += other.busy;
        if let (Some(histogram), Some(other)) = (&mut self.histogram, &other.histogram) {
            // All have the same bounds, and so what one holds fits another.
            let _ = histogram.add(other);
        }
    }
}

fn histogram() -> Option<Histogram<u64>> {
    // The bounds are constants that satisfy the histogram's conditions.
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn a_batch_is_recorded_as_its_share_for_each_call() {
        let mut recorder = Recorder::closed();
        recorder.record(micros(320), 32);
        assert_eq!(recorder.calls(), 32);
        let median_ns = recorder.quantile_ns(0.5);
        assert!((9_990..=10_010).contains(&median_ns), "{median_ns}");
        assert_eq!(recorder.calls_per_s().round(), 100_000.0);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut recorder = Recorder::closed();
        for count in 1..=1_000 {
            recorder.record(micros(count), 1);
        }
        for (quantile, expected) in [(0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let value = recorder.quantile_ns(quantile);
            assert!(value.abs_diff(expected) <= expected / 1_000, "{quantile}: {value}");
        }
        assert_eq!(recorder.recorded().iter().map(|(_, calls)| calls).sum::<u64>(), 1_000);
    }

    #[test]
    fn nothing_recorded_is_nothing() {
        let recorder = Recorder::closed();
        assert_eq!((recorder.calls(), recorder.quantile_ns(0.99), recorder.calls_per_s()), (0, 0, 0.0));
    }

    #[test]
    fn turned_off_it_counts_and_looks_at_no_clock() {
        let mut recorder = Recorder::off();
        recorder.begin_round(4);
        let start = recorder.begin();
        assert!(start.is_none() && recorder.pause().is_none());
        recorder.end(start);
        recorder.end_round();
        assert_eq!((recorder.calls(), recorder.quantile_ns(1.0)), (4, 0));
    }

    #[test]
    fn a_closed_loop_never_pauses() {
        let mut recorder = Recorder::closed();
        recorder.begin_round(1);
        assert_eq!(recorder.pause(), None);
    }

    #[test]
    fn an_open_loop_has_its_first_batch_at_once_and_the_next_when_it_is_due() {
        let mut recorder = Recorder::open(1.0);
        recorder.begin_round(10);
        assert_eq!(recorder.pause(), None, "the first is due now");
        let start = recorder.begin();
        recorder.end(start);
        let due = recorder.pause().unwrap();
        recorder.end_round();
        assert_eq!(recorder.calls_per_s().round(), 1.0);
        let wait = due - start.unwrap();
        assert!(wait <= Duration::from_secs(10), "ten calls at one per second: {wait:?}");
        assert!(wait > Duration::from_secs(5), "{wait:?}");
    }

    /// Coordinated omission: a stall must be counted for all who came during it.
    #[test]
    fn who_was_due_during_a_stall_has_waited_since_then() {
        let mut recorder = Recorder::open(1_000.0);
        recorder.begin_round(1);
        assert_eq!(recorder.pause(), None);
        let start = recorder.begin().unwrap();
        // A hundred intervals pass before the first answer comes.
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        recorder.end(Some(start));
        for _ in 0..50 {
            assert_eq!(recorder.pause(), None, "it is long due");
            let start = recorder.begin();
            recorder.end(start);
        }
        // The fiftieth was due 50 ms after the first, and so it has waited for about as long.
        assert!(recorder.quantile_ns(0.02) > 40_000_000, "{}", recorder.quantile_ns(0.02));
    }

    #[test]
    fn a_round_at_a_rate_goes_on_for_who_came_due_meanwhile() {
        let mut recorder = Recorder::open(0.001);
        recorder.begin_round(1);
        assert!(recorder.goes_on(9, 10), "the tenth is not made");
        assert!(recorder.goes_on(10, 10), "the next is due");
        let start = recorder.begin();
        recorder.end(start);
        assert!(!recorder.goes_on(10, 10), "the next is due in a quarter of an hour");
    }

    #[test]
    fn a_round_at_a_rate_that_nobody_keeps_up_with_ends() {
        let mut recorder = Recorder::open(1e9);
        recorder.begin_round(1);
        let start = Instant::now();
        while start.elapsed() < micros(1) {
            std::hint::spin_loop();
        }
        assert!(recorder.goes_on(0, 10), "one at least");
        assert!(!recorder.goes_on(1, 10), "20 ns are over");
    }

    #[test]
    fn a_round_one_after_the_other_ends_with_its_last() {
        let mut closed = Recorder::closed();
        closed.begin_round(1);
        assert!(closed.goes_on(0, 1) && !closed.goes_on(1, 1));
    }

    #[test]
    fn recorders_can_be_put_together() {
        let (mut one, mut other) = (Recorder::closed(), Recorder::closed());
        one.record(micros(1), 1);
        other.record(micros(900), 1);
        one.add(&other);
        assert_eq!(one.calls(), 2);
        assert!(one.quantile_ns(1.0) >= 899_000);
    }
}
