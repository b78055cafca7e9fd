//! What was measured, as a table for people and as JSON for programs.
//!
//! It owns columns and units. It must never know how anything was measured.

use std::fmt::Write;

use perf::Head;
use perf::run::Measured;

use crate::output::{Failure, Ink, grouped, paint};

/// A table for each group.
pub fn text(groups: &[(String, Vec<Measured>)], refused: &[(Head, String)], rate: Option<f64>) -> String {
    let mut text = String::new();
    for (title, measured) in groups {
        let Some(first) = measured.first() else { continue };
        let cpus = if first.row.cpus.contains(',') { "CPUs" } else { "CPU" };
        let wait = if first.row.wait == "spin" { "spinning" } else { "asleep" };
        let cpus = format!("{cpus} {}, {wait}", first.row.cpus);
        let paced = rate.map(|rate| format!(", {rate} calls/s due")).unwrap_or_default();
        let title = paint(&format!("{title} ({cpus}{paced})"), Ink::Heading, &std::io::stdout());
        let _ = writeln!(text, "{title}");
        let names = names(measured);
        let name_width = names.iter().map(|name| name.chars().count()).fold(32, usize::max);
        let _ = writeln!(
            text,
            "{:name_width$} {:6} {:8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>7}",
            "", "driver", "client", "p50 µs", "p99", "p99.9", "p99.99", "max", "calls/s", "x floor"
        );
        for (name, Measured { row, .. }) in names.iter().zip(measured) {
            let micros = |time_ns: u64| format!("{:.2}", time_ns as f64 / 1e3);
            let (driver, client) = match row.is_floor() {
                true => ("", ""),
                false => (row.driver.as_str(), row.client.as_str()),
            };
            let _ = writeln!(
                text,
                "{:name_width$} {driver:6} {client:8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:7.2}",
                name,
                micros(row.p50_ns),
                micros(row.p99_ns),
                micros(row.p999_ns),
                micros(row.p9999_ns),
                micros(row.max_ns),
                grouped(row.calls_per_s as u64),
                row.ratio,
            );
        }
        text.push('\n');
    }
    // The same refusal for each row of a driver is said once.
    let mut said: Vec<&str> = Vec::new();
    for (head, why) in refused {
        match said.contains(&why.as_str()) {
            true => continue,
            false => said.push(why),
        }
        let rows = refused.iter().filter(|(_, other)| other == why).count();
        let others = match rows {
            1 => String::new(),
            rows => format!(" and {} more", rows - 1),
        };
        let _ = writeln!(text, "not measured: {}{others}: {why}", described(head));
    }
    text
}

/// What the rows of a group are called beside each other: where some bring descriptors and others none, that
/// is said, too.
pub fn names(measured: &[Measured]) -> Vec<String> {
    let differ = measured.windows(2).any(|two| two[0].row.fds != two[1].row.fds);
    let name = |one: &Measured| match (differ, one.row.fds) {
        (false, _) | (true, 0) => one.row.name.clone(),
        (true, 1) => format!("{}, 1 descriptor", one.row.name),
        (true, fds) => format!("{}, {fds} descriptors", one.row.name),
    };
    measured.iter().map(name).collect()
}

/// A row in a few words.
pub fn described(head: &Head) -> String {
    let Head { name, driver, client, depth, payload, fds, .. } = head;
    format!("{name} ({driver}, {client}, {depth} at a time, {payload} bytes, {fds} descriptors)")
}

/// An array with a line for each row, so that records of it can be compared line by line.
pub fn json(groups: &[(String, Vec<Measured>)]) -> Result<String, Failure> {
    let rows = groups.iter().flat_map(|(_, measured)| measured);
    let lines = rows.map(|measured| serde_json::to_string(&measured.row));
    let lines = lines.collect::<Result<Vec<_>, _>>().map_err(Failure::new)?;
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}
