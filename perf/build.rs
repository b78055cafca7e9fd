//! Tells the library which commit it was built from, where there is one to tell.
//!
//! A record of numbers without their commit is worth nothing. A package from a registry has none, and then it
//! is its version that says.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A commit, a checkout and a rebase all leave a line here.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) {
        println!("cargo::rustc-env=SENDRIGHT_PERF_COMMIT={commit}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !said.trim().is_empty()).then(|| said.trim().to_owned())
}
