//! A line of a table, as JSON has it, and what it was made from.
//!
//! The fields and their units are for programs and stay as they are. It does not know how anything was
//! measured, or how it is shown.

use serde::{Deserialize, Serialize};

use crate::recorder::Recorder;

/// What was measured, and what it took. Times are nanoseconds for each call; at a depth above 1, of calls
/// that were begun together, the time of all divided by their number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The suite it belongs to.
    pub suite: String,
    /// What was done, in words.
    pub name: String,
    /// `uring` or `epoll`: of each side that has a reactor; `none` for bare system calls.
    pub driver: String,
    /// `session`, `plain` or `returned`; `raw` for bare system calls; elsewhere a word of the suite's own.
    pub way: String,
    /// `async` or `blocking`.
    pub client: String,
    /// `sleep` or `spin`.
    pub wait: String,
    /// `0`: both sides on CPU 0. `0,1`: the client on CPU 0 and the server on CPU 1.
    pub cpus: String,
    /// How many calls were begun together.
    pub depth: usize,
    /// Bytes of a call, and of its answer.
    pub payload: usize,
    /// Descriptors of a call, and of its answer.
    pub fds: usize,
    /// The median.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1,000 took no longer.
    pub p999_ns: u64,
    /// 9,999 of 10,000 took no longer.
    pub p9999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// How many there were in a second.
    pub calls_per_s: f64,
    /// The median of the floor that took turns with it.
    pub floor_p50_ns: u64,
    /// `p50_ns` divided by `floor_p50_ns`.
    pub ratio: f64,
}

/// What is measured, without what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// As in a [`Row`].
    pub name: String,
    /// As in a [`Row`].
    pub driver: String,
    /// As in a [`Row`].
    pub way: String,
    /// As in a [`Row`].
    pub client: String,
    /// As in a [`Row`].
    pub wait: String,
    /// As in a [`Row`].
    pub cpus: String,
    /// As in a [`Row`].
    pub depth: usize,
    /// As in a [`Row`].
    pub payload: usize,
    /// As in a [`Row`].
    pub fds: usize,
}

impl Row {
    /// What this took, beside what the floor took.
    pub fn new(suite: &str, head: Head, recorder: &Recorder, floor: &Recorder) -> Row {
        let (p50_ns, floor_p50_ns) = (recorder.quantile_ns(0.5), floor.quantile_ns(0.5));
        let ratio = if floor_p50_ns == 0 { 0.0 } else { p50_ns as f64 / floor_p50_ns as f64 };
        Row {
            suite: suite.to_owned(),
            name: head.name,
            driver: head.driver,
            way: head.way,
            client: head.client,
            wait: head.wait,
            cpus: head.cpus,
            depth: head.depth,
            payload: head.payload,
            fds: head.fds,
            p50_ns,
            p99_ns: recorder.quantile_ns(0.99),
            p999_ns: recorder.quantile_ns(0.999),
            p9999_ns: recorder.quantile_ns(0.9999),
            max_ns: recorder.quantile_ns(1.0),
            // Beyond these digits there is nothing but noise.
            calls_per_s: recorder.calls_per_s().round(),
            floor_p50_ns,
            ratio: (ratio * 1_000.0).round() / 1_000.0,
        }
    }

    /// Whether it is bare system calls.
    pub fn is_floor(&self) -> bool {
        self.way == "raw"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn head() -> Head {
        let text = |text: &str| text.to_owned();
        Head {
            name: text("session call"),
            driver: text("uring"),
            way: text("session"),
            client: text("async"),
            wait: text("sleep"),
            cpus: text("0"),
            depth: 1,
            payload: 64,
            fds: 0,
        }
    }

    #[test]
    fn json_has_these_fields_and_no_others() {
        let (mut recorder, mut floor) = (Recorder::closed(), Recorder::closed());
        recorder.record(Duration::from_micros(13), 1);
        floor.record(Duration::from_micros(10), 1);
        let row = Row::new("quick", head(), &recorder, &floor);
        let json = serde_json::to_value(&row).unwrap();
        let fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = vec![
            "suite",
            "name",
            "driver",
            "way",
            "client",
            "wait",
            "cpus",
            "depth",
            "payload",
            "fds",
            "p50_ns",
            "p99_ns",
            "p999_ns",
            "p9999_ns",
            "max_ns",
            "calls_per_s",
            "floor_p50_ns",
            "ratio",
        ];
        let mut sorted = fields.clone();
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected);
        assert!((json["ratio"].as_f64().unwrap() - 1.3).abs() < 0.01, "{json}");
        assert_eq!(serde_json::from_value::<Row>(json).unwrap(), row);
    }

    #[test]
    fn without_a_floor_there_is_no_ratio() {
        let row = Row::new("quick", head(), &Recorder::closed(), &Recorder::closed());
        assert_eq!((row.ratio, row.floor_p50_ns), (0.0, 0));
    }
}
