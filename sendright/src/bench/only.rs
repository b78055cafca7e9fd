//! `sendright bench only`: calls of one kind, for whoever counts what they do.
//!
//! It must never do anything beside the calls that grows with their number, nor look at a clock.

use std::time::Duration;

use perf::{Client, Floor, FloorOptions, MeasureError, Options, Pairs, Recorder, Way, Workload};

use crate::bench::{cpus, driver};
use crate::options::Only;
use crate::output::{self, Failure, Outcome};

/// Makes the calls and says what they were.
pub fn run(only: &Only) -> Result<Outcome, Failure> {
    let cpus = cpus(only.cpus.as_deref())?;
    let driver = driver(only.driver.as_deref())?;
    let _ = perf::process::descriptors_allowed(crate::bench::DESCRIPTORS_WANTED);
    // The ranges of the options are within what a pointer has anywhere.
    let [depth, payload, fds] = [only.depth, only.payload, only.fds].map(|number| number as usize);
    let way = match only.way.as_str() {
        "session" => Ok(Way::Session),
        // What each client does by itself.
        "plain" if only.client == "blocking" => Ok(Way::Plain(Pairs::Fresh)),
        "plain" => Ok(Way::Plain(Pairs::Ahead)),
        "fresh" => Ok(Way::Plain(Pairs::Fresh)),
        "returned" => Ok(Way::Returned),
        "raw-loop-served" => Err(Floor::LoopServed),
        "raw-loops" => Err(Floor::Loops),
        "raw-coalesced" => Err(Floor::Coalesced),
        "raw-five-steps" => Err(Floor::FiveSteps),
        "raw-returned" => Err(Floor::Returned),
        "raw-returned-asked" => Err(Floor::ReturnedAsked),
        _ => Err(Floor::PingPong),
    };
    let workload = match way {
        Ok(way) => {
            let client = if only.client == "blocking" { Client::Blocking } else { Client::Async };
            let within = only.within.map(Duration::from_secs);
            let options = Options { way, client, driver, depth, payload, fds, within, ..Options::on(&cpus) };
            Workload::start(&options)
        }
        Err(floor) => {
            Workload::floor(&FloorOptions { depth, payload, fds, ..FloorOptions::on(floor, &cpus) })
        }
    };
    let calls = workload.and_then(|workload| call(workload, only.calls)).map_err(|error| match error {
        MeasureError::NoSuchClient => Failure::usage(&error),
        error => Failure::new(&error),
    })?;
    output::say(&format!("{}: {calls} calls\n", only.way))?;
    Ok(Outcome::Good)
}

fn call(mut workload: Workload, calls: u64) -> Result<u64, MeasureError> {
    let mut recorder = Recorder::off();
    workload.round(usize::try_from(calls).unwrap_or(usize::MAX), &mut recorder)?;
    workload.end()?;
    Ok(recorder.calls())
}
