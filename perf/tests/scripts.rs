//! The scripts beside this package: each says what it answers, is in the table of the README, is a program
//! that a shell can read, and says what it misses where nothing is installed.
//!
//! What they find is not looked at here: that takes tools and minutes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What the scripts share. It is not run.
const COMMON: &str = "common.sh";

/// What a script ends with where something is missing, and where it does not understand what it is told.
const MISSING: i32 = 3;
const USAGE: i32 = 2;

#[test]
fn each_script_says_what_it_answers() {
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("#!/usr/bin/env bash"), "{}", script.display());
        assert!(lines.next().unwrap().starts_with("# Answers"), "{}", script.display());
    }
}

#[test]
fn each_script_stops_at_the_first_error() {
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        assert!(text.lines().any(|line| line == "set -euo pipefail"), "{}", script.display());
    }
}

#[test]
fn each_script_has_a_line_in_the_readme() {
    let readme = fs::read_to_string(here().join("README.md")).unwrap();
    for script in scripts_to_run() {
        let row = format!("| `{}` |", name(&script));
        assert!(readme.lines().any(|line| line.starts_with(&row)), "no row of the table starts {row:?}");
    }
}

#[test]
fn a_shell_can_read_each_script() {
    for script in scripts() {
        let read = Command::new(bash()).arg("-n").arg(&script).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    }
}

#[test]
fn where_nothing_is_installed_each_script_says_what_is_missing() {
    for script in scripts_to_run() {
        let ended = run_with_nothing(&script, &["HEAD"]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(MISSING), "{}: {said}", script.display());
        assert!(!said.is_empty(), "{} says nothing", script.display());
        let others: Vec<&str> = said.lines().filter(|line| !line.starts_with("missing: ")).collect();
        assert!(others.is_empty(), "{}: {others:?}", script.display());
    }
}

#[test]
fn each_script_explains_itself_without_any_tool() {
    for script in scripts_to_run() {
        let ended = run_with_nothing(&script, &["--help"]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(said.contains("Answers"), "{}: {said}", script.display());
        assert!(said.contains(&format!("perf/{}", name(&script))), "{}: {said}", script.display());
    }
}

#[test]
fn a_number_of_calls_that_is_none_is_told() {
    for script in scripts_to_run() {
        let ended = run_with_nothing(&script, &["HEAD", "--calls", "many"]);
        assert_eq!(ended.status.code(), Some(USAGE), "{}", script.display());
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains("not a number of calls: many"), "{}: {said}", script.display());
    }
}

fn run_with_nothing(script: &Path, words: &[&str]) -> Output {
    // Some of them take a commit first; the others are told what only `sendright` would not understand.
    Command::new(bash()).arg(script).args(words).env_clear().env("PATH", "/nonexistent").output().unwrap()
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scripts() -> Vec<PathBuf> {
    let files = fs::read_dir(here()).unwrap().map(|entry| entry.unwrap().path());
    let is_script = |file: &PathBuf| file.extension().is_some_and(|end| end == "sh");
    let scripts: Vec<PathBuf> = files.filter(is_script).collect();
    assert!(scripts.len() > 1, "the scripts are not where they were");
    scripts
}

fn scripts_to_run() -> Vec<PathBuf> {
    scripts().into_iter().filter(|script| name(script) != COMMON).collect()
}

fn name(script: &Path) -> String {
    script.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Looked for here, since a child looks where its own environment says.
fn bash() -> PathBuf {
    let places = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&places).map(|place| place.join("bash")).find(|file| file.exists()).unwrap()
}
