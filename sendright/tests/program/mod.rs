//! Running the program under test, for every test of it.
//!
//! It owns how the program is found and started. It knows nothing of what is asked of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program, with nothing in the environment that would change what it does.
pub fn sendright() -> Command {
    at(Path::new(env!("CARGO_BIN_EXE_sendright")))
}

/// The same program at another path.
pub fn at(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_remove(ring::DRIVER_VARIABLE).env_remove("RUST_LOG").env_remove("NO_COLOR");
    command
}

/// Runs it to its end.
pub fn run<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Output {
    sendright().args(arguments).output().unwrap()
}

/// Its exit status.
#[track_caller]
pub fn status(output: &Output) -> i32 {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    output.status.code().unwrap_or_else(|| panic!("it was killed: {:?}: {stderr}", output.status))
}

/// What it said, which must be one line with one JSON object.
#[track_caller]
pub fn json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}\n{}", stderr(output));
    serde_json::from_str(&text).unwrap()
}

/// What it said, for people.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained of.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
