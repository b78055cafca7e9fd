//! What a table of rows says, as people read it.
//!
//! It does not know how anything was measured.

use crate::contest::{Outcome, Setting};

pub fn print(setting: &Setting, outcomes: &[Outcome]) {
    let cpus = if setting.cpus.are_apart() { "a CPU each" } else { "one CPU" };
    let depth =
        if setting.depth == 1 { "one at a time".into() } else { format!("{} at a time", setting.depth) };
    let fds = if setting.fds == 0 { "" } else { ", a descriptor each way" };
    println!("\n64 bytes, {cpus}, {depth}{fds}");
    println!(
        "{:32} {:>6} {:>9} {:>9} {:>9} {:>9} {:>12} {:>7}",
        "", "wait", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "calls/s", "× raw"
    );
    for outcome in outcomes {
        let row = match outcome {
            Outcome::Measured(row) => row,
            Outcome::Failed { name, why } => {
                println!("{name:32} failed: {why}");
                continue;
            }
        };
        let [p50, p99, p999, max] =
            [row.p50_ns, row.p99_ns, row.p999_ns, row.max_ns].map(|ns| ns as f64 / 1_000.0);
        println!(
            "{:32} {:>6} {p50:9.2} {p99:9.2} {p999:9.2} {max:9.0} {:12.0} {:7.2}",
            row.name, row.wait, row.calls_per_s, row.ratio
        );
    }
}
