//! The same call on sendright and on what else a program could use for it: 64 bytes there and back between
//! two processes, each peer as its own documentation says one uses it.
//!
//! What is compared takes turns in short rounds of one run, so that whatever the machine does meanwhile it
//! does to all of them; read the ratios. Rows that share CPUs, depth and descriptors are one table, whose
//! floor is the bare ping-pong of the same depth and descriptors.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --seconds 2 tarpc 'session, async, uring'
//! ```

#![forbid(unsafe_code)]

mod bars;
mod child;
mod contest;
mod note;
mod peer;
mod table;
mod versions;

use std::process::ExitCode;

use clap::Parser;
use perf::{Cpus, Row};

use contest::{Contest, Outcome, Setting};

type Failure = perf::process::Failure;

/// The same 64-byte call on sendright and on its peers, taking turns in one run.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Only rows whose name contains one of these words. The floors are always there.
    names: Vec<String>,
    /// Measure each row for so long.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = seconds)]
    seconds: f64,
    /// One CPU for both sides, asleep (0), or one each, where whoever can looks (0,1). Both unless told.
    #[arg(long, value_name = "CPUS")]
    cpus: Option<String>,
    /// Calls that are begun together: 1, 8 and 32 unless told.
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Descriptors of each call and each answer, 0 or 1. Both unless told.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1))]
    fds: Option<u8>,
    /// An array of rows instead of tables.
    #[arg(long)]
    json: bool,
    /// Which versions of the peers this program was built with, and nothing else.
    #[arg(long)]
    versions: bool,
}

/// How many descriptors this process would have.
const DESCRIPTORS: u64 = 20_480;

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("a number of seconds, above 0 and up to 3600".into()),
    }
}

fn main() -> ExitCode {
    perf::process::serve_if_asked_as(&[child::PART]);
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sendright-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if options.versions {
        println!("{}", versions::all().join("\n"));
        return Ok(());
    }
    // As `sendright bench`: how much a receive may take depends on it.
    perf::process::descriptors_allowed(DESCRIPTORS);
    let mut rows = Vec::new();
    for setting in settings(options)? {
        let contest = Contest::start(&setting, &options.names)?;
        let here = contest.run(options.seconds)?;
        if !options.json {
            table::print(&setting, &here);
        }
        rows.extend(here.into_iter().filter_map(measured));
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        bars::print(&rows);
        println!("\nbuilt with {}", versions::all().join(", "));
    }
    Ok(())
}

/// Its row. Who has none is named on standard error as well, where nobody reads a table.
fn measured(outcome: Outcome) -> Option<Row> {
    match outcome {
        Outcome::Measured(row) => Some(*row),
        Outcome::Failed { name, why } => {
            eprintln!("{name} failed: {why}");
            None
        }
    }
}

/// Each is a table: one at a time, with one descriptor each way, 8 and 32 at a time.
fn settings(options: &Options) -> Result<Vec<Setting>, Failure> {
    let cpus = match &options.cpus {
        Some(cpus) => vec![Cpus::named(cpus)?],
        None => std::iter::once(Cpus::one()).chain([Cpus::apart()]).filter_map(Result::ok).collect(),
    };
    let shapes = [(1, 0), (1, 1), (8, 0), (32, 0)];
    let mut settings = Vec::new();
    for cpus in cpus {
        for (depth, fds) in shapes {
            let is_wanted = options.depth.is_none_or(|wanted| wanted == depth)
                && options.fds.is_none_or(|wanted| usize::from(wanted) == fds);
            if is_wanted {
                settings.push(Setting { cpus: cpus.clone(), depth, fds });
            }
        }
    }
    if settings.is_empty() {
        return Err("there is no such table: depth 1 with 0 or 1 descriptors, depth 8 or 32 with none".into());
    }
    Ok(settings)
}
