//! `sendright forward`: a program that finds a directory among its descriptors.
//!
//! It owns the number and the environment variable by which the program finds it. It must never know what
//! the program does with it.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use crate::files::wire::View;
use crate::options::files::Forward;
use crate::output::{Failure, Outcome, printable};
use crate::reach;

/// The number under which the program finds the address of the directory.
pub const NUMBER: i32 = 3;

/// Where the program learns it.
pub const VARIABLE: &str = "SENDRIGHT_FD";

/// Becomes the program; or, if everything is to be taken back with its end, starts it and waits.
pub fn forward(options: &Forward) -> Result<Outcome, Failure> {
    let (address, leash) = directory(options)?;
    let [program, arguments @ ..] = &options.program[..] else {
        return Err(Failure::usage("which program?"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, NUMBER.to_string());
    ring::inherit::give(&mut command, vec![(address, NUMBER)]);
    let Some(leash) = leash else { return Err(not_started(program, &command.exec())) };
    let started = command.spawn();
    // The program's copy is its own; with ours the directory would never be let go.
    drop(command);
    let ended = started.and_then(|mut child| child.wait());
    drop(leash);
    match ended {
        Ok(status) if status.success() => Ok(Outcome::Good),
        // As a shell tells it.
        Ok(status) => {
            let signal = status.signal().map(|signal| 128 + signal);
            std::process::exit(status.code().or(signal).unwrap_or(1))
        }
        Err(error) => Err(not_started(program, &error)),
    }
}

fn not_started(program: &OsString, error: &io::Error) -> Failure {
    Failure::new(format_args!("{}: {error}", printable(program.as_bytes())))
}

/// The address to give away, and what takes it back when it is closed.
fn directory(options: &Forward) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
    let mut words: Vec<OsString> = options.locator.iter().cloned().collect();
    let path = reach::path(&options.path)?;
    let view = View { read_only: options.read_only, leashed: options.until_exit };
    if path.is_here() && view == View::default() {
        let address = reach::address(&options.source, &mut words)?;
        one_locator(&words)?;
        return Ok((address.fd, None));
    }
    let reached = reach::directory(&options.source, &mut words)?;
    one_locator(&words)?;
    let told = |trouble: &dyn Display| Failure::new(format_args!("{}: {trouble}", printable(path.bytes())));
    let (address, leash) =
        reached.executor.block_on(reached.directory.view(path, view)).map_err(|trouble| told(&trouble))?;
    // Not this process's own way to more than the program may have.
    drop(reached);
    Ok((address, leash))
}

fn one_locator(words: &[OsString]) -> Result<(), Failure> {
    match words {
        [] => Ok(()),
        _ => Err(Failure::usage("with --fd there is no LOCATOR")),
    }
}
