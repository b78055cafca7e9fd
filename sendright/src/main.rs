//! The program `sendright`: it reads what is asked, has it done and ends with a status that says how it went.
//!
//! It owns the list of commands. It must never know how one is carried out, nor print with `println!`, which
//! turns a reader who has left into a panic.

#![forbid(unsafe_code)]

mod bench;
mod census;
mod commands;
mod demo;
mod echo;
mod files;
mod introduce;
mod latency;
mod log;
mod options;
mod output;
mod permits;
mod probe;
mod reach;
mod reactor;
mod sandbox;
mod serve;
mod stress;
mod together;
mod transfer;

use std::process::ExitCode;

use options::Command;
use output::{Failure, Outcome};

fn main() -> ExitCode {
    // A server of `bench` is this program once more.
    perf::serve_if_asked();
    let outcome = match options::read() {
        Ok(options) => run(options.command).unwrap_or_else(|failure| failure.tell()),
        Err(outcome) => outcome,
    };
    ExitCode::from(outcome.status())
}

fn run(command: Command) -> Result<Outcome, Failure> {
    // A server has its own idea of which lines it writes and how.
    if !matches!(command, Command::Introduce(_)) {
        log::if_asked();
    }
    match command {
        Command::Bench(bench) => bench::run(&bench),
        Command::Demo(demo) => demo::run(&demo),
        Command::Stress(stress) => stress::run(&stress),
        Command::Probe(probe) => probe::run(&probe),
        Command::Echo(options::Echo::Imc(echo)) => echo::imc(&echo),
        Command::Echo(options::Echo::Object(echo)) => echo::object(&echo),
        Command::Introduce(introduce) => introduce::run(&introduce),
        Command::Serve(serve) => serve::run(&serve),
        Command::Grants(grants) => serve::grants(&grants),
        Command::Ls(ls) => commands::ls(&ls),
        Command::Cat(cat) => commands::cat(&cat),
        Command::Put(put) => commands::put(&put),
        Command::Stat(stat) => commands::stat(&stat),
        Command::Find(find) => commands::find(&find),
        Command::Mkdir(mkdir) => commands::mkdir(&mkdir),
        Command::Rmdir(rmdir) => commands::rmdir(&rmdir),
        Command::Rm(rm) => commands::rm(&rm),
        Command::Mv(mv) => commands::mv(&mv),
        Command::Ln(ln) => commands::ln(&ln),
        Command::Chmod(chmod) => commands::chmod(&chmod),
        Command::Touch(touch) => commands::touch(&touch),
        Command::Forward(forward) => commands::forward(&forward),
        Command::DemoService(service) => demo::service::run(&service),
        Command::DemoWalker(walker) => demo::walker::run(&walker),
        Command::StressParty(party) => stress::live(&party),
    }
}
