//! `sendright bench`: what calls cost on this machine, beside what bare system calls cost in the same run.
//!
//! It owns what the options mean and the order of things: measure group by group, then say it. It must never
//! know how a call is measured, which is the business of the library `perf`.

mod html;
mod only;
mod plot;
mod table;

use std::fs;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use perf::process::{self, Program};
use perf::run::{self, Measured, Outcome as Measurement, Settings};
use perf::{Cpus, CpusError, Head, MeasureError};
use ring::{Config, DriverChoice, Reactor};

use crate::options::{Bench, BenchOnly};
use crate::output::{self, Failure, Outcome};

/// The steps of the bar for each row.
const STEPS_PER_ROW: f64 = 100.0;

/// Descriptors: two for each of 10,000 objects, and some.
const DESCRIPTORS_WANTED: u64 = 20_480;

/// A row runs no longer.
const SECONDS_MAX: f64 = 3_600.0;

/// Calls in a second, whatever is asked for: no timer is finer.
const RATE_MAX: f64 = 10_000_000.0;

/// Everything that was found out.
struct Findings {
    groups: Vec<(String, Vec<Measured>)>,
    /// What cannot be had here, and why.
    refused: Vec<(Head, String)>,
}

/// Measures and says it.
pub fn run(options: &Bench) -> Result<Outcome, Failure> {
    if let Some(BenchOnly::Only(only)) = &options.only {
        return only::run(only);
    }
    let cpus = cpus(options.cpus.as_deref())?;
    let settings = settings(options)?;
    let drivers = match driver(options.driver.as_deref())? {
        DriverChoice::Auto => vec![DriverChoice::Uring, DriverChoice::Epoll],
        chosen => vec![chosen],
    };
    if let [only] = drivers.as_slice()
        && let Some((_, why)) = settings.refused.iter().find(|(refused, _)| refused == only)
    {
        return Err(Failure::new(why));
    }
    // Hundreds of calls at a time have a descriptor or two each. Where that is not allowed, rows say so.
    let _ = process::descriptors_allowed(DESCRIPTORS_WANTED);
    if let Some(path) = &options.html {
        // Before minutes are spent on what could not be kept.
        let opened = fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| Failure::usage(format_args!("--html {}: {error}", path.display())))?;
    }
    let findings = measure(options, &settings, &cpus, &drivers)?;
    // Or the page would say that this machine has the one CPU that was measured.
    cpus.unpin().map_err(|error| Failure::new(format_args!("the CPUs of this process: {error}")))?;
    if let Some(path) = &options.html {
        let page = html::page(&settings.suite, &findings.groups, &findings.refused, settings.rate)?;
        fs::write(path, page).map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
    }
    if !options.json {
        output::say(&table::text(&findings.groups, &findings.refused, settings.rate))?;
        return Ok(Outcome::Good);
    }
    output::say(&table::json(&findings.groups)?)?;
    for (head, why) in &findings.refused {
        output::remark(format_args!("not measured: {}: {why}", table::described(head)));
    }
    Ok(Outcome::Good)
}

fn measure(
    options: &Bench,
    settings: &Settings,
    cpus: &Cpus,
    drivers: &[DriverChoice],
) -> Result<Findings, Failure> {
    let mut groups = options.suite.groups(cpus, drivers);
    if let Some(text) = &options.titled {
        groups.retain(|group| group.title.contains(text));
        if groups.is_empty() {
            return Err(Failure::usage(format_args!("--titled {text}: nothing in {} is", options.suite)));
        }
    }
    let rows: usize = groups.iter().map(|group| group.tasks.len()).sum();
    let time = run::estimate(&groups, settings.time_per_row);
    if time > Duration::from_secs(60) {
        let minutes = (time.as_secs_f64() / 60.0).ceil();
        output::remark(format_args!("{rows} rows will take about {minutes} minutes"));
    }
    let bar = progress(rows);
    let mut findings = Findings { groups: Vec::new(), refused: Vec::new() };
    for group in groups {
        let (begun, size) = (bar.position(), group.tasks.len() as f64);
        bar.set_message(group.title.clone());
        let mut turn = |part: f64| bar.set_position(begun + (part * size * STEPS_PER_ROW) as u64);
        let outcomes =
            run::run(&group, settings, &mut turn).map_err(|error| failure(&group.title, &error))?;
        let mut measured = Vec::new();
        for outcome in outcomes {
            match outcome {
                Measurement::Measured(row) => measured.push(*row),
                Measurement::Refused(head, why) => findings.refused.push((head, why)),
                _ => {}
            }
        }
        findings.groups.push((group.title, measured));
    }
    bar.finish_and_clear();
    Ok(findings)
}

fn settings(options: &Bench) -> Result<Settings, Failure> {
    let time_per_row = match options.seconds {
        None => options.suite.time_per_row(),
        Some(seconds) if seconds > 0.0 && seconds <= SECONDS_MAX => Duration::from_secs_f64(seconds),
        Some(seconds) => {
            return Err(Failure::usage(format_args!(
                "--seconds {seconds}: a row runs for more than 0 seconds and at most {SECONDS_MAX}"
            )));
        }
    };
    if options.rate.is_some() && !options.suite.has_rate() {
        let told = format!("--rate: what {} measures has none, only calls have", options.suite);
        return Err(Failure::usage(told));
    }
    if let Some(rate) = options.rate.filter(|rate| !(*rate > 0.0 && *rate <= RATE_MAX)) {
        return Err(Failure::usage(format_args!(
            "--rate {rate}: there are more than 0 calls in a second and at most {RATE_MAX}"
        )));
    }
    Ok(Settings {
        suite: options.suite.to_string(),
        time_per_row,
        rate: options.rate,
        refused: refused_drivers(),
        program: program()?,
    })
}

fn program() -> Result<Program, Failure> {
    Program::this().map_err(|error| Failure::new(format_args!("this program cannot find itself: {error}")))
}

/// The CPUs that are named, or the first.
fn cpus(named: Option<&str>) -> Result<Cpus, Failure> {
    match named {
        None => Cpus::one().map_err(Failure::new),
        Some(named) => Cpus::named(named).map_err(|error| match error {
            CpusError::Malformed(_) => Failure::usage(format_args!("--cpus {named}: {error}")),
            _ => Failure::new(format_args!("--cpus {named}: {error}")),
        }),
    }
}

/// What an option says, or the environment; `Auto` if neither does.
fn driver(named: Option<&str>) -> Result<DriverChoice, Failure> {
    let asked = std::env::var(ring::DRIVER_VARIABLE).ok();
    let (name, by) = match (named, &asked) {
        (Some(name), _) => (name, "--driver"),
        (None, Some(name)) => (name.as_str(), ring::DRIVER_VARIABLE),
        (None, None) => return Ok(DriverChoice::Auto),
    };
    name.parse().map_err(|error| Failure::usage(format_args!("{by}: {error}")))
}

/// Those of the two that this machine does not have.
fn refused_drivers() -> Vec<(DriverChoice, String)> {
    let both = [DriverChoice::Uring, DriverChoice::Epoll].into_iter();
    both.filter_map(|driver| {
        let refusal = Reactor::with_config(Config { driver, ..Config::default() }).err()?;
        Some((driver, refusal.to_string()))
    })
    .collect()
}

fn failure(what: &str, error: &MeasureError) -> Failure {
    Failure::new(format_args!("{what}: {error}"))
}

/// Drawn between rounds only: a thread that draws by itself would run on one of the CPUs that are measured.
fn progress(rows: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(rows as u64 * STEPS_PER_ROW as u64),
        ProgressDrawTarget::stderr_with_hz(5),
    );
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3} %  {eta:>4} left  {wide_msg}") {
        bar.set_style(style);
    }
    bar
}
