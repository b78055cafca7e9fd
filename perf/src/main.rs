//! The program of this package: keeps results, and makes the tables of the README from them.
//!
//! It owns its few words. It must never know how anything is measured.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use perf::readme;
use perf::record::{DIRECTORY, Record, Records};

const USAGE: &str = "usage, from the root of a checkout:
  sendright bench --json | sendright-perf record  keep these results, with machine, commit and date
  sendright-perf readme-table                     write the newest of them into README.md
  sendright-perf readme-table --check             say whether README.md shows the newest of them
";

fn main() -> ExitCode {
    perf::serve_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["record"] => keep(),
        ["readme-table"] => write(),
        ["readme-table", "--check"] => check(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sendright-perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep() -> Result<(), Box<dyn Error>> {
    let mut json = String::new();
    io::stdin().read_to_string(&mut json)?;
    let path = Record::here(&json)?.keep_in(Path::new(DIRECTORY))?;
    eprintln!("kept in {}", path.display());
    Ok(())
}

fn write() -> Result<(), Box<dyn Error>> {
    let (old, new) = readmes()?;
    if old != new {
        fs::write("README.md", new)?;
    }
    Ok(())
}

fn check() -> Result<(), Box<dyn Error>> {
    let (old, new) = readmes()?;
    match old == new {
        true => Ok(()),
        false => Err("README.md does not show the newest records: run `sendright-perf readme-table`".into()),
    }
}

/// As it is, and as it should be.
fn readmes() -> Result<(String, String), Box<dyn Error>> {
    let readme = fs::read_to_string("README.md").map_err(|error| format!("README.md: {error}"))?;
    let section = readme::section(&Records::read(Path::new(DIRECTORY))?);
    let new = readme::with_section(&readme, &section).ok_or("README.md has no place for measurements")?;
    Ok((readme, new))
}
