//! How long calls took, by the way they went.
//!
//! It owns the histograms and their precision. It must never know what a call was for.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Two significant digits: enough for a quantile anybody acts on, and small enough to send whole.
const DIGITS: u8 = 2;

/// Longer is recorded as this.
const LATENCY_NS_MAX: u64 = 600 * 1_000_000_000;

/// How a call travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On a session, with a number.
    Session,
    /// On a plain object, with a continuation of its own.
    Plain,
}

/// Latencies of one way.
#[derive(Debug)]
pub struct Latencies(Option<Histogram<u64>>);

impl Latencies {
    /// Nothing recorded yet.
    pub fn new() -> Latencies {
        // The bounds are constants that satisfy the histogram's conditions.
        Latencies(Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).ok())
    }

    /// One call.
    pub fn record(&mut self, latency: Duration) {
        self.record_many(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), 1);
    }

    /// So many calls of one latency.
    pub fn record_many(&mut self, latency_ns: u64, calls: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record_n(latency_ns.clamp(1, LATENCY_NS_MAX), calls);
        }
    }

    /// How many calls were recorded.
    pub fn calls(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The quantiles people ask for.
    pub fn quantiles(&self) -> Quantiles {
        let micros = |quantile| match &self.0 {
            Some(histogram) if !histogram.is_empty() => {
                let latency_us = histogram.value_at_quantile(quantile) as f64 / 1_000.0;
                // A tenth of a microsecond is below what the histogram resolves.
                (latency_us * 10.0).round() / 10.0
            }
            _ => 0.0,
        };
        Quantiles { p50_us: micros(0.5), p99_us: micros(0.99), p99_9_us: micros(0.999), max_us: micros(1.0) }
    }

    /// Each latency that was recorded, in nanoseconds, and how many calls took it.
    pub fn recorded(&self) -> Vec<(u64, u64)> {
        let Some(histogram) = &self.0 else { return Vec::new() };
        let values = histogram.iter_recorded();
        values.map(|value| (value.value_iterated_to(), value.count_since_last_iteration())).collect()
    }
}

/// Quantiles of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quantiles {
    pub p50_us: f64,
    pub p99_us: f64,
    #[serde(rename = "p99.9_us")]
    pub p99_9_us: f64,
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_survive_being_copied() {
        let mut here = Latencies::new();
        for micros in 1..=1_000 {
            here.record(Duration::from_micros(micros));
        }
        let mut there = Latencies::new();
        for (latency_ns, calls) in here.recorded() {
            there.record_many(latency_ns, calls);
        }
        assert_eq!(there.calls(), 1_000);
        assert_eq!(there.quantiles(), here.quantiles());
        let median_us = there.quantiles().p50_us;
        assert!((495.0..=510.0).contains(&median_us), "{median_us}");
    }

    #[test]
    fn no_calls_have_no_latency() {
        assert_eq!(Latencies::new().quantiles().max_us, 0.0);
    }
}
