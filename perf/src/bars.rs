//! What calls may cost: the bars this project has set itself, each beside what was measured last.
//!
//! It owns the list. It does not measure anything, and a bar that is missed is shown like any other.

use std::fmt::Write;

use crate::attack::Misdeed;
use crate::bare_many::Sleeps;
use crate::fds;
use crate::floor::Floor;
use crate::record::Records;
use crate::row::Row;

/// How many times the p99 of a raw pair that of a call beside misbehaving sessions may be.
pub(crate) const ISOLATION_MAX: f64 = 2.0;

/// A bar: what it is for, how high it is, and where in the records its figure is.
struct Bar {
    what: &'static str,
    limit: Limit,
    measured: fn(&Records) -> Option<f64>,
    /// What bare system calls reach that do as much as they must: nobody's library is better.
    bare: fn(&Records) -> Option<f64>,
}

/// Which side of it is good.
#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

const BARS: &[Bar] = &[
    Bar {
        what: "session call, 1 at a time, one CPU: × raw ping-pong",
        limit: Limit::AtMost(1.30),
        measured: |records| ratio(records, "quick", false, |row| is(row, "session", "async", "uring", 1, 0)),
        bare: |records| bare_loops(records, false, Floor::Loops, 0),
    },
    Bar {
        what: "the same with the blocking client",
        limit: Limit::AtMost(1.10),
        measured: |records| {
            ratio(records, "quick", false, |row| is(row, "session", "blocking", "uring", 1, 0))
        },
        bare: |records| bare_loops(records, false, Floor::LoopServed, 0),
    },
    Bar {
        what: "session call, 1 at a time, two CPUs: × raw spinning ping-pong",
        limit: Limit::AtMost(1.30),
        measured: |records| ratio(records, "quick", true, |row| is(row, "session", "async", "uring", 1, 0)),
        bare: |records| bare_loops(records, true, Floor::Loops, 0),
    },
    Bar {
        what: "the same with the blocking client",
        limit: Limit::AtMost(1.15),
        measured: |records| {
            ratio(records, "quick", true, |row| is(row, "session", "blocking", "uring", 1, 0))
        },
        bare: |records| bare_loops(records, true, Floor::LoopServed, 0),
    },
    Bar {
        // How many those are depends on the machine's mood, the share does not.
        what: "session calls a second, 32 together, one CPU: × raw coalesced (1.5 M where that is 3.3 M)",
        limit: Limit::AtLeast(1.5 / 3.3),
        measured: |records| {
            let row = find(records, "quick", false, |row| is(row, "session", "async", "uring", 32, 0))?;
            let name = Floor::Coalesced.to_string();
            let floor = find(records, "quick", false, |row| row.name.starts_with(&name))?;
            Some(row.calls_per_s / floor.calls_per_s)
        },
        bare: |_| None,
    },
    Bar {
        what: "plain call, pairs made ahead: × raw five steps",
        limit: Limit::AtMost(1.0),
        measured: |records| ratio(records, "quick", false, |row| is(row, "plain", "async", "uring", 1, 0)),
        bare: |_| None,
    },
    Bar {
        what: "plain call, pairs returned: × raw five steps",
        limit: Limit::AtMost(0.75),
        measured: |records| ratio(records, "quick", false, |row| is(row, "returned", "async", "uring", 1, 0)),
        bare: |records| {
            let bare = |floor: Floor| ratio(records, "pairs", false, |row| row.name == floor.to_string());
            let asked = bare(Floor::ReturnedAsked).or_else(|| bare(Floor::ReturnedLoops));
            asked.or_else(|| bare(Floor::Returned))
        },
    },
    Bar {
        what: "session call with 1 descriptor each way: × raw descriptor ping-pong",
        limit: Limit::AtMost(1.25),
        measured: |records| ratio(records, "quick", false, |row| is(row, "session", "async", "uring", 1, 1)),
        bare: |records| bare_loops(records, false, Floor::Loops, 1),
    },
    Bar {
        what: "one more descriptor in a transfer, 1 to 8: × raw",
        limit: Limit::AtMost(1.10),
        measured: |records| Some(slope(records, "connected", "uring")? / slope(records, "raw", "none")?),
        bare: |_| None,
    },
    Bar {
        what: "connect, accept and close by replacement, 32 together: × as many per second as raw \
               listen, connect and accept",
        limit: Limit::AtLeast(1.0),
        measured: |records| {
            ratio(records, "connect", false, |row| is(row, "replacement", "async", "uring", 32, 0))
                .map(f64::recip)
        },
        bare: |records| bare_connect(records, "replacement"),
    },
    Bar {
        what: "the same, confirmed",
        limit: Limit::AtLeast(0.8),
        measured: |records| {
            ratio(records, "connect", false, |row| is(row, "confirmed", "async", "uring", 32, 0))
                .map(f64::recip)
        },
        bare: |records| bare_connect(records, "confirmed"),
    },
    Bar {
        what: "a descriptor in flight elsewhere: pairs made ahead, × raw five steps in that state",
        limit: Limit::AtMost(0.8),
        measured: |records| {
            ratio(records, "pairs", false, |row| {
                is_parked(row) && row.name.contains("made ahead") && is_uring(row)
            })
        },
        bare: |_| None,
    },
    Bar {
        what: "… pairs returned, × without it",
        limit: Limit::AtMost(1.05),
        measured: |records| parked(records, "returned"),
        bare: |_| None,
    },
    Bar {
        what: "… session call, × without it",
        limit: Limit::AtMost(1.05),
        measured: |records| parked(records, "session"),
        bare: |_| None,
    },
    Bar {
        what: "a call of 1 MiB: × the raw copy rate",
        limit: Limit::AtLeast(0.8),
        measured: |records| copy_rate(records, 1 << 20),
        bare: |records| bare_copy_rate(records, 1 << 20),
    },
    Bar {
        what: "a call of 64 MiB: × the raw copy rate",
        limit: Limit::AtLeast(0.9),
        measured: |records| copy_rate(records, 64 << 20),
        bare: |records| bare_copy_rate(records, 64 << 20),
    },
    Bar {
        what: "a small call during a transfer of 64 MiB: its p99, × that of a raw pair under the same load",
        limit: Limit::AtMost(2.0),
        measured: |records| {
            let ours =
                find(records, "large", false, |row| row.name.starts_with("small call") && is_uring(row))?;
            let raw = find(records, "large", false, |row| row.name == "raw pair, same load")?;
            Some(ours.p99_ns as f64 / raw.p99_ns as f64)
        },
        bare: |_| None,
    },
    Bar {
        what: "a call beside sessions that misbehave, one CPU, the worst of ten ways: its p99, × that of \
               a raw pair whose server answers the same",
        limit: Limit::AtMost(ISOLATION_MAX),
        measured: |records| worst_isolation(records, false),
        bare: |records| worst_of_keepers(records, false),
    },
    Bar {
        what: "the same on two CPUs",
        limit: Limit::AtMost(ISOLATION_MAX),
        measured: |records| worst_isolation(records, true),
        bare: |records| worst_of_keepers(records, true),
    },
    Bar {
        what: "a call to one of 10,000 objects, the same again and again: × that to the only one",
        limit: Limit::AtMost(1.3),
        measured: |records| among_objects(records, "the same"),
        bare: |_| None,
    },
    Bar {
        what: "the same, each of them in turn, where no socket can be slept in",
        limit: Limit::AtMost(1.3),
        measured: |records| among_objects(records, "in turn"),
        // Whoever waits for the only one can sleep in it, and whoever waits for many cannot.
        bare: |records| {
            let many = bare_pair(records, "10000", Sleeps::InALoop)?;
            Some(many / bare_pair(records, "1", Sleeps::InTheSocket)?)
        },
    },
    Bar {
        what: "epoll: session call, 1 at a time, one CPU: × raw ping-pong",
        limit: Limit::AtMost(1.45),
        measured: |records| ratio(records, "quick", false, |row| is(row, "session", "async", "epoll", 1, 0)),
        bare: |records| bare_loops(records, false, Floor::Loops, 0),
    },
    Bar {
        what: "epoll: session calls, 32 together: × io_uring",
        limit: Limit::AtMost(1.5),
        measured: |records| {
            let of = |driver| {
                let row = find(records, "quick", false, |row| is(row, "session", "async", driver, 32, 0));
                row.map(|row| row.p50_ns as f64)
            };
            Some(of("epoll")? / of("uring")?)
        },
        bare: |_| None,
    },
    Bar {
        what: "beside others: session call, × tokio-seqpacket",
        limit: Limit::AtMost(0.75),
        measured: |records| beside_peer(records, SESSION, "tokio-seqpacket"),
        bare: |_| None,
    },
    Bar {
        what: "session call with the blocking client, × ipc-channel duplex",
        limit: Limit::AtMost(1.0),
        measured: |records| beside_peer(records, BLOCKING, "ipc-channel, duplex"),
        bare: |_| None,
    },
    Bar {
        what: "session call with the blocking client, × `std` UnixStream",
        limit: Limit::AtMost(1.0),
        measured: |records| beside_peer(records, BLOCKING, "std UnixStream"),
        bare: |_| None,
    },
    Bar {
        what: "plain call, pairs returned, × ipc-channel with a reply sender",
        limit: Limit::AtMost(0.5),
        measured: |records| {
            beside_peer(records, "plain, returned, async, uring", "ipc-channel, reply sender")
        },
        bare: |_| None,
    },
    Bar {
        what: "session calls a second, 32 together, × tarpc",
        limit: Limit::AtLeast(6.0),
        measured: |records| more_than_peer(records, "tarpc", &[32]),
        bare: |_| None,
    },
    Bar {
        what: "the same, × tokio-seqpacket at its best depth",
        limit: Limit::AtLeast(10.0),
        measured: |records| more_than_peer(records, "tokio-seqpacket", &[1, 8, 32]),
        bare: |_| None,
    },
];

/// The bars whose figures were recorded, as a table; empty if there are none.
pub fn table(records: &Records) -> String {
    let mut lines = String::new();
    for bar in BARS {
        let Some(measured) = (bar.measured)(records) else { continue };
        let limit = match bar.limit {
            Limit::AtMost(limit) => format!("≤ {limit:.2}"),
            Limit::AtLeast(limit) => format!("≥ {limit:.2}"),
        };
        let shown =
            if bar.limit.holds(measured) { format!("{measured:.2}") } else { format!("**{measured:.2}**") };
        let bare = (bar.bare)(records).map(|bare| format!("{bare:.2}")).unwrap_or_default();
        let _ = writeln!(lines, "| {} | {limit} | {shown} | {bare} |", bar.what);
    }
    match lines.is_empty() {
        true => lines,
        false => format!(
            "| what (in bold: missed) | bar | measured | bare system calls that do as much |\n\
             |---|---|---|---|\n{lines}"
        ),
    }
}

impl Limit {
    fn holds(self, measured: f64) -> bool {
        match self {
            // What is shown is what counts.
            Limit::AtMost(limit) => (measured * 100.0).round() <= (limit * 100.0).round(),
            Limit::AtLeast(limit) => (measured * 100.0).round() >= (limit * 100.0).round(),
        }
    }
}

fn find<'a>(
    records: &'a Records,
    suite: &str,
    is_apart: bool,
    is_it: impl Fn(&Row) -> bool,
) -> Option<&'a Row> {
    records.find(suite, is_apart)?.rows.iter().find(|row| is_it(row))
}

fn ratio(records: &Records, suite: &str, is_apart: bool, is_it: impl Fn(&Row) -> bool) -> Option<f64> {
    find(records, suite, is_apart, is_it).map(|row| row.ratio).filter(|ratio| *ratio > 0.0)
}

fn is(row: &Row, way: &str, client: &str, driver: &str, depth: usize, fds: usize) -> bool {
    row.way == way && row.client == client && row.driver == driver && row.depth == depth && row.fds == fds
}

/// What a call costs among 10,000 objects, as a multiple of what it costs where there is one.
fn among_objects(records: &Records, called: &str) -> Option<f64> {
    let of = |count: &str| {
        let row = find(records, "scale", false, |row| {
            is_uring(row) && row.name.starts_with(&format!("{count} objects")) && row.name.ends_with(called)
        });
        row.map(|row| row.p50_ns as f64)
    };
    Some(of("10000")? / of("1")?)
}

/// What a call on one of so many bare pairs costs, × a ping-pong of the same rounds.
fn bare_pair(records: &Records, count: &str, sleeps: Sleeps) -> Option<f64> {
    ratio(records, "scale", false, |row| {
        row.name.starts_with(&format!("raw {count} pairs")) && row.name.contains(sleeps.name())
    })
}

/// An event loop with nothing in it, one at a time.
fn bare_loops(records: &Records, is_apart: bool, floor: Floor, fds: usize) -> Option<f64> {
    let name = floor.to_string();
    ratio(records, "quick", is_apart, |row| row.name.starts_with(&name) && row.fds == fds)
}

/// How the name of a row ends of bare system calls that ask and close as ours must.
pub(crate) const ASKING: &str = ", everything asked";

/// The same steps, questions and looks by nothing but system calls, 32 together.
fn bare_connect(records: &Records, way: &str) -> Option<f64> {
    let name = format!("raw connect, {way}{ASKING}");
    ratio(records, "connect", false, |row| row.name.starts_with(&name) && row.depth == 32).map(f64::recip)
}

fn is_uring(row: &Row) -> bool {
    row.driver == "uring"
}

fn is_parked(row: &Row) -> bool {
    row.name.ends_with(crate::run::PARKED)
}

fn parked(records: &Records, way: &str) -> Option<f64> {
    let of = |state: bool| {
        let is_it = |row: &Row| is(row, way, "async", "uring", 1, 0) && is_parked(row) == state;
        find(records, "pairs", false, is_it).map(|row| row.p50_ns as f64)
    };
    Some(of(true)? / of(false)?)
}

/// A call beside this misdeed: its p99, and how many times that of the raw pair it is.
pub(crate) fn isolation(rows: &[Row], misdeed: Misdeed, driver: &str) -> Option<f64> {
    let of =
        |driver: &str| rows.iter().find(|row| row.driver == driver && row.name.ends_with(&beside(misdeed)));
    Some(of(driver)?.p99_ns as f64 / of("none")?.p99_ns as f64)
}

/// How the name of a row ends that is about it.
pub(crate) fn beside(misdeed: Misdeed) -> String {
    format!(" beside {}", misdeed.name())
}

/// How the name of the row of a raw loop ends that keeps the parts it is sent.
pub(crate) fn keeping(misdeed: Misdeed) -> String {
    format!("{}, parts kept", beside(misdeed))
}

fn worst_isolation(records: &Records, is_apart: bool) -> Option<f64> {
    let record = records.find("isolation", is_apart)?;
    let misdeeds = Misdeed::ALL.into_iter().filter(|misdeed| *misdeed != Misdeed::Nothing);
    misdeeds.filter_map(|misdeed| isolation(&record.rows, misdeed, "uring")).max_by(f64::total_cmp)
}

/// Of raw loops that keep the parts they are sent, as whoever could ever answer has to.
fn worst_of_keepers(records: &Records, is_apart: bool) -> Option<f64> {
    let rows = &records.find("isolation", is_apart)?.rows;
    let ratio = |misdeed| {
        let raw = |end: &str| rows.iter().find(|row| row.driver == "none" && row.name.ends_with(end));
        let keeper = raw(&keeping(misdeed))?;
        Some(keeper.p99_ns as f64 / raw(&beside(misdeed))?.p99_ns as f64)
    };
    Misdeed::ALL.into_iter().filter_map(ratio).max_by(f64::total_cmp)
}

fn copy_rate(records: &Records, bytes: usize) -> Option<f64> {
    let is_it = |row: &Row| is(row, "call", "async", "uring", 1, 0) && row.payload == bytes;
    ratio(records, "large", false, is_it).map(f64::recip)
}

/// What rows of bare packets that are as large as parts of ours are called, behind how the others are.
pub(crate) const AS_PARTS: &str = " as large as parts";

fn bare_copy_rate(records: &Records, bytes: usize) -> Option<f64> {
    let is_it = |row: &Row| row.name.ends_with(AS_PARTS) && row.payload == bytes;
    ratio(records, "large", false, is_it).map(f64::recip)
}

/// What one more descriptor costs.
fn slope(records: &Records, way: &str, driver: &str) -> Option<f64> {
    let costs = (1..=fds::PAPER_US.len()).map(|count| {
        find(records, "fds", false, |row| row.way == way && row.driver == driver && row.fds == count)
            .map(|row| row.p50_ns as f64)
    });
    costs.collect::<Option<Vec<_>>>().map(|costs| fds::slope(&costs))
}

/// Rows of ours as `benches/peers` names them.
const SESSION: &str = "session, async, uring";
const BLOCKING: &str = "session, blocking, uring";

fn peer<'a>(records: &'a Records, name: &str, depth: usize) -> Option<&'a Row> {
    find(records, "peers", false, |row| row.name == name && row.depth == depth && row.fds == 0)
}

/// One at a time: how many times as long as theirs ours takes.
fn beside_peer(records: &Records, ours: &str, theirs: &str) -> Option<f64> {
    Some(peer(records, ours, 1)?.p50_ns as f64 / peer(records, theirs, 1)?.p50_ns as f64)
}

/// 32 session calls together: how many times as many in a second as theirs at the best of these depths.
fn more_than_peer(records: &Records, theirs: &str, depths: &[usize]) -> Option<f64> {
    let rates = depths.iter().map(|depth| peer(records, theirs, *depth).map(|row| row.calls_per_s));
    let best = rates.collect::<Option<Vec<_>>>()?.into_iter().max_by(f64::total_cmp)?;
    Some(peer(records, SESSION, 32)?.calls_per_s / best)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::record::tests::{record, row, surroundings};
    use crate::record::{Record, Records};

    #[test]
    fn a_bar_stands_beside_what_was_measured_and_says_if_it_was_missed() {
        let table = |p50_ns| table(&Records::of(vec![record("2026-11-21T12:00:00Z", p50_ns)]));
        assert!(table(13_000).contains("one CPU: × raw ping-pong | ≤ 1.30 | 1.30 |"), "{}", table(13_000));
        assert!(
            table(13_100).contains("one CPU: × raw ping-pong | ≤ 1.30 | **1.31** |"),
            "{}",
            table(13_100)
        );
    }

    #[test]
    fn without_records_there_are_no_bars() {
        assert_eq!(table(&Records::default()), "");
    }

    #[test]
    fn one_more_descriptor_is_compared_with_one_more_raw_one() {
        let mut rows = Vec::new();
        for count in 1..=8_u64 {
            let raw =
                Row { fds: count as usize, ..row("fds", "raw transfer", "raw", "none", 1_000 + count * 500) };
            let ours = row("fds", "transfer", "connected", "uring", 2_000 + count * 600);
            rows.extend([raw, Row { fds: count as usize, ..ours }]);
        }
        let records = Records::of(vec![Record::of(rows, surroundings("2026-11-21T12:00:00Z")).unwrap()]);
        assert!(table(&records).contains("1 to 8: × raw | ≤ 1.10 | **1.20** |"), "{}", table(&records));
    }

    #[test]
    fn calls_of_a_second_are_those_that_were_made_and_not_those_the_median_promises() {
        let ours = row("quick", "session call", "session", "uring", 600);
        let ours = Row { depth: 32, calls_per_s: 1_364_000.0, ..ours };
        let raw = row("quick", "raw coalesced, 32 in a packet", "raw", "none", 290);
        let raw = Row { depth: 32, calls_per_s: 3_100_000.0, ..raw };
        let record = Record::of(vec![raw, ours], surroundings("2026-11-21T12:00:00Z")).unwrap();
        let table = table(&Records::of(vec![record]));
        assert!(table.contains("3.3 M) | ≥ 0.45 | **0.44** |"), "{table}");
    }

    #[test]
    fn peers_are_compared_at_their_best_and_only_if_each_depth_was_measured() {
        let row = |name: &str, depth, p50_ns| Row { depth, ..row("peers", name, "peer", "none", p50_ns) };
        let mut rows = vec![
            row(SESSION, 1, 12_000),
            row(SESSION, 32, 1_000),
            row("tokio-seqpacket", 1, 15_000),
            row("tokio-seqpacket", 8, 5_000),
        ];
        let text = |rows: &[Row]| {
            let record = Record::of(rows.to_vec(), surroundings("2026-11-21T12:00:00Z")).unwrap();
            table(&Records::of(vec![record]))
        };
        assert!(
            text(&rows).contains("session call, × tokio-seqpacket | ≤ 0.75 | **0.80** |"),
            "{}",
            text(&rows)
        );
        assert!(!text(&rows).contains("best depth"), "{}", text(&rows));
        rows.push(row("tokio-seqpacket", 32, 6_000));
        assert!(text(&rows).contains("best depth | ≥ 10.00 | **5.00** |"), "{}", text(&rows));
    }
}
