//! The program `sendright`: it reads what is asked, has it done and ends with a status that says how it went.
//!
//! It owns the list of commands. It must never know how one is carried out, nor print with `println!`, which
//! turns a reader who has left into a panic.

#![forbid(unsafe_code)]

mod demo;
mod echo;
mod files;
mod latency;
mod options;
mod output;
mod permits;
mod probe;
mod reactor;

use std::process::ExitCode;

use options::Command;
use output::{Failure, Outcome};

fn main() -> ExitCode {
    let outcome = match options::read() {
        Ok(options) => {
            log_if_asked();
            run(options.command).unwrap_or_else(|failure| failure.tell())
        }
        Err(outcome) => outcome,
    };
    ExitCode::from(outcome.status())
}

fn run(command: Command) -> Result<Outcome, Failure> {
    match command {
        Command::Demo(demo) => demo::run(&demo),
        Command::Probe(probe) => probe::run(&probe),
        Command::Echo(options::Echo::Imc(echo)) => echo::imc(&echo),
        Command::Echo(options::Echo::Object(echo)) => echo::object(&echo),
        Command::DemoService(service) => demo::service::run(&service),
        Command::DemoWalker(walker) => demo::walker::run(&walker),
    }
}

/// Log lines of the libraries on standard error, if the environment asks for them.
#[cfg(feature = "tracing")]
fn log_if_asked() {
    use tracing_subscriber::EnvFilter;

    let Ok(filter) = EnvFilter::try_from_default_env() else { return };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A standard error that cannot be written to is nobody's reason to panic.
        .log_internal_errors(false)
        .init();
}

#[cfg(not(feature = "tracing"))]
fn log_if_asked() {}
