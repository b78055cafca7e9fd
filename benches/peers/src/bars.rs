//! What the project promises beside its peers, with what this run says.
//!
//! It knows names of rows and a number for each promise. It measures nothing.

use perf::Row;

/// One promise about rows of one table.
struct Bar {
    ours: &'static str,
    theirs: &'static str,
    /// Of the peer: the best of these depths.
    depths: &'static [usize],
    /// Where ours is looked at.
    depth: usize,
    kind: Kind,
}

enum Kind {
    /// The time of ours is at most so many times theirs.
    TimeAtMost(f64),
    /// Ours makes at least so many times as many calls in a second.
    CallsAtLeast(f64),
}

const BARS: [Bar; 7] = [
    time("session, async, uring", "tokio-seqpacket", 0.75),
    time("session, blocking, uring", "ipc-channel, duplex", 1.0),
    time("session, blocking, uring", "std UnixStream", 1.0),
    time("plain, returned, async, uring", "ipc-channel, reply sender", 0.5),
    time("plain, ahead, async, uring", "raw five steps", 1.0),
    calls("tarpc", &[32], 6.0),
    calls("tokio-seqpacket", &[1, 8, 32], 10.0),
];

const fn time(ours: &'static str, theirs: &'static str, most: f64) -> Bar {
    Bar { ours, theirs, depths: &[1], depth: 1, kind: Kind::TimeAtMost(most) }
}

const fn calls(theirs: &'static str, depths: &'static [usize], least: f64) -> Bar {
    Bar { ours: "session, async, uring", theirs, depths, depth: 32, kind: Kind::CallsAtLeast(least) }
}

/// Those bars of which both rows were measured on one CPU.
pub fn print(rows: &[Row]) {
    let lines: Vec<String> = BARS.iter().filter_map(|bar| line(bar, rows)).collect();
    if !lines.is_empty() {
        println!("\nbeside each other on one CPU\n{}", lines.join("\n"));
    }
}

fn line(bar: &Bar, rows: &[Row]) -> Option<String> {
    let on_one = || rows.iter().filter(|row| row.fds == 0 && !row.cpus.contains(','));
    let ours = on_one().find(|row| row.name == bar.ours && row.depth == bar.depth)?;
    let theirs = on_one().filter(|row| row.name == bar.theirs && bar.depths.contains(&row.depth));
    let theirs = theirs.max_by(|one, other| one.calls_per_s.total_cmp(&other.calls_per_s))?;
    let (ratio, wanted, is_met, unit) = match bar.kind {
        Kind::TimeAtMost(most) => {
            let ratio = ours.p50_ns as f64 / theirs.p50_ns.max(1) as f64;
            (ratio, format!("≤ {most:.2}"), ratio <= most, "× its p50")
        }
        Kind::CallsAtLeast(least) => {
            let ratio = ours.calls_per_s / theirs.calls_per_s.max(1.0);
            (ratio, format!("≥ {least:.2}"), ratio >= least, "× its calls/s")
        }
    };
    let pair = format!("{} ({}) / {} ({})", ours.name, ours.depth, theirs.name, theirs.depth);
    let verdict = if is_met { "met" } else { "missed" };
    Some(format!("{pair:68} {ratio:5.2} {unit:13} {wanted:>7}  {verdict}"))
}
