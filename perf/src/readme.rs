//! The tables of the README, made from the newest records, so that no figure stands there that was not
//! recorded.
//!
//! It owns which rows are shown, and the two lines between which they stand. It must never change a number.

use std::fmt::Write;

use crate::attack::{Misdeed, SESSIONS};
use crate::bars;
use crate::fds;
use crate::record::{Record, Records};
use crate::row::Row;

/// The line before the tables.
pub const BEGIN: &str = "<!-- measured: made from perf/record by `sendright-perf readme-table` -->";
/// The line after them.
pub const END: &str = "<!-- end of measured -->";

/// What of a suite is shown: on one CPU or on two, under which heading, and which rows.
struct Shown {
    suite: &'static str,
    is_apart: bool,
    heading: &'static str,
    is_shown: fn(&Row) -> bool,
}

const SHOWN: &[Shown] = &[
    Shown {
        suite: "quick",
        is_apart: false,
        heading: "64 bytes each way, both processes on one CPU and sleeping",
        is_shown: |_| true,
    },
    Shown {
        suite: "quick",
        is_apart: true,
        heading: "64 bytes each way, one CPU for each process, spinning",
        is_shown: |row| row.fds == 0,
    },
    Shown {
        suite: "pairs",
        is_apart: false,
        heading: "How a plain call comes by its pair, quiet and while one descriptor of somebody else is in \
                  flight somewhere (the kernel then looks for circles whenever an AF_UNIX socket is closed)",
        is_shown: |_| true,
    },
    Shown {
        suite: "connect",
        is_apart: false,
        heading: "Connect, accept and close, beside what two programs do that know no better: listen, \
                  connect and accept by a name",
        is_shown: |_| true,
    },
    Shown {
        suite: "large",
        is_apart: false,
        heading: "Large messages, until the other side has looked at each cache line, and a small call \
                  during one",
        is_shown: |row| row.client == "async" || row.is_floor(),
    },
    Shown {
        suite: "scale",
        is_apart: false,
        heading: "One among many, called in turn",
        is_shown: |row| row.name.ends_with("in turn") || row.is_floor(),
    },
    Shown {
        suite: "peers",
        is_apart: false,
        heading: "Beside others: 64 bytes each way, both processes on one CPU and sleeping",
        is_shown: is_shown_beside_peers,
    },
    Shown {
        suite: "peers",
        is_apart: true,
        heading: "Beside others: 64 bytes each way, one CPU for each process, spinning where they can",
        is_shown: is_shown_beside_peers,
    },
];

/// Ours on io_uring, one at a time and 32 together: what the bars are about.
fn is_shown_beside_peers(row: &Row) -> bool {
    row.driver != "epoll" && row.fds == 0 && row.depth != 8
}

/// Everything between the two lines; empty without a record.
pub fn section(records: &Records) -> String {
    let mut section = String::new();
    let bars = bars::table(records);
    if !bars.is_empty() {
        let _ =
            write!(section, "The bars this project has set itself, and what was measured last:\n\n{bars}\n");
    }
    for shown in SHOWN {
        let Some(record) = records.find(shown.suite, shown.is_apart) else { continue };
        let rows: Vec<&Row> = record.rows.iter().filter(|row| (shown.is_shown)(row)).collect();
        let _ = write!(section, "{}.\n{}:\n\n{}\n", shown.heading, record.surroundings, table(&rows));
    }
    for is_apart in [false, true] {
        if let Some(record) = records.find("isolation", is_apart) {
            section.push_str(&isolation(record, is_apart));
        }
    }
    if let Some(record) = records.find("fds", false) {
        section.push_str(&transfers(record));
    }
    section
}

/// The README with this section; `None` if it has no place for it.
pub fn with_section(readme: &str, section: &str) -> Option<String> {
    let (before, rest) = readme.split_once(&format!("{BEGIN}\n"))?;
    let (_, after) = rest.split_once(END)?;
    let section = if section.is_empty() { String::new() } else { format!("\n{section}") };
    Some(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

/// A line for each thing that was measured, with both drivers beside each other.
fn table(rows: &[&Row]) -> String {
    let has_epoll = rows.iter().any(|row| row.driver == "epoll");
    let mut table = String::from("| | p50 µs | p99 | p99.9 | per second | × floor |");
    table.push_str(if has_epoll { " epoll: p50 µs | p99 | × floor |\n" } else { "\n" });
    table.push_str(if has_epoll {
        "|---|---|---|---|---|---|---|---|---|\n"
    } else {
        "|---|---|---|---|---|---|\n"
    });
    let mut said: Vec<String> = Vec::new();
    for row in rows {
        let label = label(row);
        if said.contains(&label) {
            continue;
        }
        let first = rows.iter().find(|other| other.driver != "epoll" && self::label(other) == label);
        let epoll = rows.iter().find(|other| other.driver == "epoll" && self::label(other) == label);
        let _ = write!(table, "| {label} |");
        match first {
            Some(row) => {
                let [p50, p99, p999] = [row.p50_ns, row.p99_ns, row.p999_ns].map(micros);
                let rate = per_second(row.calls_per_s);
                let _ = write!(table, " {p50} | {p99} | {p999} | {rate} | {:.2} |", row.ratio);
            }
            None => table.push_str(" | | | | |"),
        }
        match epoll {
            Some(row) => {
                let _ =
                    write!(table, " {} | {} | {:.2} |", micros(row.p50_ns), micros(row.p99_ns), row.ratio);
            }
            None if has_epoll => table.push_str(" | | |"),
            None => {}
        }
        table.push('\n');
        said.push(label);
    }
    table
}

/// A line for each misdeed: what stands in it is about what comes once in a hundred calls.
fn isolation(record: &Record, is_apart: bool) -> String {
    let place = match is_apart {
        false => "all processes on one CPU",
        true => "the server on one CPU, its clients on another",
    };
    let mut table = format!(
        "A small call while {SESSIONS} other sessions of its server misbehave, beside a raw pair whose \
         server, a loop of `poll`, `recv` and `send`, answers the same; {place} (in bold: more than {:.0} \
         times as long; kept: the same loop where it keeps the parts it is sent, as whoever could ever \
         answer has to).\n{}:\n\n",
        bars::ISOLATION_MAX,
        record.surroundings
    );
    table.push_str(
        "| beside | raw: p50 µs | p99 | kept: p99 | ours: p50 | p99 | × raw p99 \
         | epoll: p50 | p99 | × raw p99 |\n",
    );
    table.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    for misdeed in Misdeed::ALL {
        let ending = |driver: &str, end: &str| {
            let is_it = |row: &&Row| row.driver == driver && row.name.ends_with(end);
            record.rows.iter().find(is_it)
        };
        let of = |driver: &str| ending(driver, &bars::beside(misdeed));
        let Some(raw) = of("none") else { continue };
        let kept = ending("none", &bars::keeping(misdeed)).map_or(String::new(), |row| micros(row.p99_ns));
        let (p50, p99) = (micros(raw.p50_ns), micros(raw.p99_ns));
        let _ = write!(table, "| {} | {p50} | {p99} | {kept} |", misdeed.name());
        for driver in ["uring", "epoll"] {
            let row = of(driver).zip(bars::isolation(&record.rows, misdeed, driver));
            let _ = match row {
                Some((row, ratio)) => {
                    let bold = if ratio > bars::ISOLATION_MAX { "**" } else { "" };
                    let (p50, p99) = (micros(row.p50_ns), micros(row.p99_ns));
                    write!(table, " {p50} | {p99} | {bold}{ratio:.2}{bold} |")
                }
                None => write!(table, " | | |"),
            };
        }
        table.push('\n');
    }
    table.push('\n');
    table
}

/// The Native Client paper's Table 3, with ours.
fn transfers(record: &Record) -> String {
    let mut rows: Vec<(String, Vec<f64>)> = vec![("the paper, 2009".to_owned(), fds::PAPER_US.to_vec())];
    let mut said: Vec<(&str, &str)> = Vec::new();
    for row in &record.rows {
        if said.contains(&(&row.way, &row.driver)) {
            continue;
        }
        said.push((&row.way, &row.driver));
        let of = |count| {
            let is_it =
                |other: &&Row| (&other.way, &other.driver, other.fds) == (&row.way, &row.driver, count);
            record.rows.iter().find(is_it).map(|row| row.p50_ns as f64 / 1e3)
        };
        let Some(costs) = (1..=fds::PAPER_US.len()).map(of).collect::<Option<Vec<_>>>() else { continue };
        let name = if row.is_floor() { row.way.clone() } else { format!("{}, {}", row.way, row.driver) };
        rows.push((name, costs));
    }
    let mut table = format!(
        "Descriptors passed one way, without data: µs for 1 to 8, and what one more costs.\n{}:\n\n",
        record.surroundings
    );
    table.push_str(
        "| | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | each more |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, costs) in rows {
        let _ = write!(table, "| {name} |");
        costs.iter().for_each(|cost| table.push_str(&format!(" {cost:.2} |")));
        let _ = writeln!(table, " {:.2} |", fds::slope(&costs));
    }
    table
}

/// What a row is, without its driver.
fn label(row: &Row) -> String {
    let mut label = row.name.clone();
    // Beside peers the names of rows say who waits how.
    if row.client == "blocking" && !row.is_floor() && row.suite != "peers" {
        label.push_str(", blocking");
    }
    if row.depth > 1 && !label.contains(&row.depth.to_string()) {
        let _ = write!(label, ", {} together", row.depth);
    }
    match row.fds {
        0 => {}
        1 => label.push_str(", 1 descriptor"),
        fds => {
            let _ = write!(label, ", {fds} descriptors");
        }
    }
    match row.payload {
        payload if payload >= 1 << 20 => {
            let _ = write!(label, ", {} MiB", payload >> 20);
        }
        payload if payload >= 1 << 10 => {
            let _ = write!(label, ", {} KiB", payload >> 10);
        }
        _ => {}
    }
    label
}

/// Three digits, which is what there are.
fn micros(time_ns: u64) -> String {
    let time_us = time_ns as f64 / 1e3;
    match time_us {
        time if time < 10.0 => format!("{time:.2}"),
        time if time < 100.0 => format!("{time:.1}"),
        time => format!("{time:.0}"),
    }
}

fn per_second(rate: f64) -> String {
    match rate {
        rate if rate >= 999_500.0 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 1_000.0 => format!("{:.0} k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::record::tests::record;

    #[test]
    fn both_drivers_stand_in_one_line_beside_the_floor() {
        let section = section(&Records::of(vec![record("2026-11-21T12:00:00Z", 12_000)]));
        assert!(
            section.contains("| raw ping-pong | 10.0 | 20.0 | 30.0 | 100 k | 1.00 | | | |\n"),
            "{section}"
        );
        let ours = "| session call | 12.0 | 24.0 | 36.0 | 83 k | 1.20 | 13.0 | 26.0 | 1.30 |\n";
        assert!(section.contains(ours), "{section}");
        assert!(section.contains("commit 0123456789, 2026-11-21:"), "{section}");
    }

    #[test]
    fn the_section_goes_between_its_lines_and_nothing_else_changes() {
        let readme = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let new = with_section(&readme, "new\n").unwrap();
        assert_eq!(new, format!("above\n{BEGIN}\n\nnew\n{END}\nbelow\n"));
        assert_eq!(with_section(&new, "new\n").unwrap(), new, "once is enough");
        assert_eq!(with_section(&new, "").unwrap(), format!("above\n{BEGIN}\n{END}\nbelow\n"));
        assert_eq!(with_section("no place\n", "new\n"), None);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([6_104, 17_700, 225_000].map(micros), ["6.10", "17.7", "225"]);
        assert_eq!([812.0, 73_500.0, 1_512_000.0].map(per_second), ["812", "74 k", "1.51 M"]);
    }
}
