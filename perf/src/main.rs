//! The program of this package: the servers of whoever measures, and the tables made from what was recorded.
//!
//! It owns its few words. It must never know how anything is measured.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    perf::serve_if_asked();
    eprintln!("usage: sendright-perf readme-table [--check]");
    ExitCode::from(2)
}
