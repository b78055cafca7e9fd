//! What this machine can do: which driver runs and why, what the kernel has, and which limits will bite.
//!
//! It owns the questions and the advice. Everything the kernel might have is found by using it, not by its
//! version: a container may refuse what the kernel has, and a vendor may have what the version does not
//! promise.

mod features;
mod limits;

use std::io;

use ring::{Config, DriverChoice, Reactor};
use serde::Serialize;

use crate::options;
use crate::output::{self, Failure, Ink, Outcome, paint};
use features::Feature;
use limits::Limit;

/// Everything `sendright probe` says. The fields are the JSON object's.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    driver: String,
    driver_reason: String,
    drivers: Vec<Driver>,
    kernel: String,
    machine: String,
    features: Vec<Feature>,
    limits: Vec<Limit>,
}

/// What came of asking for one driver by name.
#[derive(Debug, Serialize)]
struct Driver {
    name: String,
    works: bool,
    detail: String,
}

/// Asks everything and says it.
pub fn run(options: &options::Probe) -> Result<Outcome, Failure> {
    let (reactor, _) = crate::reactor::start(None)?;
    let chosen = reactor.driver();
    let uname = rustix::system::uname();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        driver: chosen.kind().to_string(),
        driver_reason: chosen.reason().to_string(),
        drivers: [DriverChoice::Uring, DriverChoice::Epoll].map(try_driver).into(),
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        features: features::all(&reactor),
        limits: limits::all(),
    };
    let text = match options.json {
        true => report.json(),
        false => report.text(),
    };
    output::say(&text)?;
    Ok(Outcome::Good)
}

fn try_driver(driver: DriverChoice) -> Driver {
    let reactor = Reactor::with_config(Config { driver, ..Config::default() });
    let (works, detail) = match reactor {
        Ok(_) => (true, "works".to_string()),
        Err(error) => (false, error.to_string()),
    };
    Driver { name: driver.to_string(), works, detail }
}

impl Report {
    fn json(&self) -> String {
        output::json_line(self)
    }

    fn text(&self) -> String {
        let stdout = io::stdout();
        let heading = |text: &str| paint(text, Ink::Heading, &stdout);
        let faint = |text: &str| paint(text, Ink::Faint, &stdout);
        let mark = |good: bool| match good {
            true => paint("yes", Ink::Good, &stdout),
            false => paint("no ", Ink::Bad, &stdout),
        };
        let mut text = format!("{} {}: {}\n", heading("driver"), self.driver, self.driver_reason);
        for driver in &self.drivers {
            text.push_str(&format!("  {} {:<22} {}\n", mark(driver.works), driver.name, driver.detail));
        }
        text.push_str(&format!("\n{} Linux {} on {}\n", heading("kernel"), self.kernel, self.machine));
        for feature in &self.features {
            let works = mark(feature.works);
            text.push_str(&format!("  {works} {:<22} {}\n", feature.name, feature.detail));
        }
        text.push_str(&format!("\n{}\n", heading("limits")));
        for limit in &self.limits {
            let value = limit.value.as_deref().unwrap_or("unknown");
            text.push_str(&format!("  {:<26} {value}\n", limit.name));
            text.push_str(&format!("      {}\n", limit.meaning));
            text.push_str(&format!("      {}\n", faint(&format!("-> {}", limit.advice))));
        }
        text
    }
}
