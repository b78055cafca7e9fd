//! How long calls took, by the way they went.
//!
//! It owns what is asked of them, in microseconds. It must never know what a call was for.

use std::time::Duration;

use perf::Recorder;

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
pub struct Latencies(Recorder);

impl Latencies {
    /// Nothing recorded yet.
    pub fn new() -> Latencies {
        Latencies(Recorder::closed())
    }

    /// One call.
    pub fn record(&mut self, latency: Duration) {
        self.0.record(latency, 1);
    }

    /// So many calls of one latency.
    pub fn record_many(&mut self, latency_ns: u64, calls: u64) {
        self.0.record_many(latency_ns, calls);
    }

    /// How many calls were recorded.
    pub fn calls(&self) -> u64 {
        self.0.calls()
    }

    /// The quantiles people ask for.
    pub fn quantiles(&self) -> Quantiles {
        let micros = |quantile| {
            let latency_us = self.0.quantile_ns(quantile) as f64 / 1_000.0;
            // Nobody acts on less than a tenth of a microsecond.
            (latency_us * 10.0).round() / 10.0
        };
        Quantiles { p50_us: micros(0.5), p99_us: micros(0.99), p99_9_us: micros(0.999), max_us: micros(1.0) }
    }

    /// Each latency that was recorded, in nanoseconds, and how many calls took it.
    pub fn recorded(&self) -> Vec<(u64, u64)> {
        self.0.recorded()
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
