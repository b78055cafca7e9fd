//! The soak that a user can run: clients, servers, third parties and an introduction server, killed at any
//! moment and started again, and not one call or descriptor unaccounted for.
//!
//! It owns the order of the ways and the verdict's form. It must never make a call: the parties are this
//! program started again, and what became of their calls is worked out from the journal that outlives them.

pub mod client;
mod deed;
mod journal;
mod judge;
mod party;
pub mod server;
mod stage;
mod summary;
pub mod third;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::options::{Stress, StressParty};
use crate::output::{self, Failure, Outcome};
use deed::Way;
use summary::Summary;

/// How many there are of each.
const CLIENTS: usize = 3;
const SERVERS: usize = 2;
const THIRDS: usize = 2;

/// The most tagged descriptors in a message. With the canary, the call that is handed on and the far end of a
/// plain call there are fifteen: one less than anybody takes unless told otherwise.
pub const FDS_MAX: u8 = 12;

/// The most memory that a party may have: what all calls under way come to, four times over (a call and its
/// answer, made and read), and 64 MiB for a process with its code, its buffers and its allocator.
const MEMORY_MAX_KIB: u64 = (4 * stage::UNDER_WAY_MAX * deed::LARGE_BYTES_MAX) as u64 / 1_024 + 65_536;

/// Descriptors that a party needs beside those of its calls: its own, what the reactor leaves for others, and
/// room for an answer.
const DESCRIPTORS_NEEDED: usize = 80;

/// Calls of each way unless told otherwise.
const CALLS_DEFAULT: u64 = 20_000;

/// What is asked for.
pub struct Settings {
    calls: u64,
    time: Option<Duration>,
    fds: u8,
    kill_every: Option<Duration>,
    cpus: Vec<usize>,
    driver: Option<String>,
    seed: u64,
    journal: Option<PathBuf>,
}

/// Runs each way that was asked for, and says what became of everything.
pub fn run(options: &Stress) -> Result<Outcome, Failure> {
    let settings = settings(options)?;
    enough_descriptors(&settings)?;
    let driver = {
        let (reactor, _) = crate::reactor::start(options.driver.as_deref())?;
        reactor.driver().kind().to_string()
    };
    let ways: Vec<Way> = match options.way.as_str() {
        "all" => Way::ALL.into(),
        name => Way::named(name).into_iter().collect(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second time it ends at once; the parties end with it.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::new(format_args!("signals cannot be asked for: {error}")))?;
    }
    let bar = progress(options, &settings);
    let mut ended = Vec::new();
    for way in ways {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        bar.reset();
        ended.push(stage::run(&settings, way, &stop, &bar)?);
    }
    bar.finish_and_clear();
    let summary = Summary::new(&settings, driver, &ended);
    output::say(&if options.json { summary.json() } else { summary.text() })?;
    Ok(if summary.is_good() { Outcome::Good } else { Outcome::Failed })
}

/// Lives one life of a party.
pub fn live(options: &StressParty) -> Result<Outcome, Failure> {
    match options.role.as_str() {
        "client" => client::run(options),
        "server" => server::run(options),
        _ => third::run(options),
    }
}

fn settings(options: &Stress) -> Result<Settings, Failure> {
    let time = options.seconds.map(Duration::from_secs);
    // With a time and no number there is no end to the calls but that.
    let calls = options.calls.unwrap_or(if time.is_some() { u64::MAX } else { CALLS_DEFAULT });
    let seed = match options.seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(|error| Failure::new(format_args!("a seed: {error}")))? >> 1,
    };
    Ok(Settings {
        calls,
        time,
        fds: options.fds,
        kill_every: (options.kill_every > 0).then(|| Duration::from_millis(options.kill_every)),
        cpus: cpus(options.cpus.as_deref())?,
        driver: options.driver.clone(),
        seed,
        journal: options.journal.clone(),
    })
}

/// A client whose waiting calls have all its descriptors would wait for an answer that has no room.
fn enough_descriptors(settings: &Settings) -> Result<(), Failure> {
    let in_each = if settings.fds > 0 { usize::from(settings.fds) + 1 } else { 0 };
    let needed = DESCRIPTORS_NEEDED + 2 * client::DEPTH * in_each;
    match crate::reactor::descriptors_max() {
        limit if limit < needed => Err(Failure::new(format_args!(
            "RLIMIT_NOFILE is {limit}, and {needed} are needed: raise it with `ulimit -n`, or pass \
             fewer with --fds"
        ))),
        _ => Ok(()),
    }
}

/// The CPUs that are named, which this process may run on.
fn cpus(named: Option<&str>) -> Result<Vec<usize>, Failure> {
    let Some(named) = named else { return Ok(Vec::new()) };
    let numbers = named.split(',').map(|number| number.trim().parse::<usize>());
    let numbers: Vec<usize> = numbers.collect::<Result<_, _>>().map_err(|_| {
        Failure::usage(format_args!("--cpus {named}: numbers of CPUs with commas between, as in 0,1"))
    })?;
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|error| Failure::new(format_args!("--cpus {named}: {error}")))?;
    let is_there = |cpu: &usize| *cpu < rustix::thread::CpuSet::MAX_CPU && allowed.is_set(*cpu);
    match numbers.iter().find(|cpu| !is_there(cpu)) {
        Some(cpu) => Err(Failure::new(format_args!("--cpus {named}: this process may not run on CPU {cpu}"))),
        None => Ok(numbers),
    }
}

fn progress(options: &Stress, settings: &Settings) -> ProgressBar {
    if options.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = Some(settings.calls).filter(|calls| *calls < u64::MAX);
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    let template = match length {
        Some(_) => "{bar:24} {human_pos} of {human_len} calls, {msg} [{elapsed}]",
        None => "{spinner} {human_pos} calls, {msg} [{elapsed}]",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
