//! Each example runs, on each driver, without arguments, and shows what it promises.
//!
//! The programs are those that `cargo test` builds beside this one. What they print is only looked at for the
//! line that says it worked; the exit status is theirs to get right.
#![allow(clippy::unwrap_used)]

use std::env;
use std::path::PathBuf;
use std::process::{Command, Output};

use ring::Reactor;
use testing::on_each_driver;

on_each_driver! {
    fn the_adder_adds_in_another_process(_reactor: &Reactor) {
        let shown = succeeds("adder", &[]);
        assert!(shown.contains("2 + 40 = 42"), "{shown}");
        assert!(shown.contains("1..10 doubled: 2 4 6 8 10 12 14 16 18 20"), "{shown}");
    }

    fn a_worker_answers_what_the_front_was_asked(_reactor: &Reactor) {
        let shown = succeeds("forwarded_answer", &[]);
        assert!(shown.contains("was told: hello Ada"), "{shown}");
        assert!(shown.contains("asked for nobody: nobody will answer"), "{shown}");
    }

    fn a_worker_serves_tcp_connections_it_did_not_accept(_reactor: &Reactor) {
        let shown = succeeds("tcp_worker", &[]);
        assert_eq!(shown.matches("a client was told: GET /").count(), 3, "{shown}");
    }

    fn python_is_a_peer_or_the_example_says_that_there_is_none(_reactor: &Reactor) {
        let shown = succeeds("python_peer", &[]);
        let is_done = shown.contains("served by python with our help: REWARD");
        assert!(is_done || shown.contains("skipped: there is no python3"), "{shown}");
    }

    fn thousands_of_plain_calls_lose_no_answer(_reactor: &Reactor) {
        let shown = succeeds("million_calls", &["5000"]);
        assert!(shown.contains("answered: 5,000\nlost: 0\nduplicated: 0\nwrong: 0\n"), "{shown}");
    }

    fn thousands_of_plain_calls_at_a_time_lose_no_answer(_reactor: &Reactor) {
        let shown = succeeds("million_calls", &["5,000", "16"]);
        assert!(shown.contains("answered: 5,000\nlost: 0\nduplicated: 0\nwrong: 0\n"), "{shown}");
    }

    fn the_table_has_a_row_for_each_way_to_call(_reactor: &Reactor) {
        let shown = succeeds("round_trip", &[]);
        for way in ["raw ping-pong", "raw five steps", "session call ", "plain call", "session call, 32"] {
            assert!(shown.lines().any(|row| row.starts_with(way)), "{way}:\n{shown}");
        }
    }

    fn a_number_of_calls_that_is_none_is_an_error(_reactor: &Reactor) {
        for arguments in [&["0"][..], &["many"], &["1", "2", "3"]] {
            let output = run("million_calls", arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            assert!(String::from_utf8_lossy(&output.stderr).starts_with("million_calls: "), "{arguments:?}");
        }
    }
}

/// Runs an example on this body's driver. What it printed.
#[track_caller]
fn succeeds(example: &str, arguments: &[&str]) -> String {
    let output = run(example, arguments);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {}\n{shown}{complaints}", output.status);
    let driver = format!(" {}: asked for by {}", testing::driver(), ring::DRIVER_VARIABLE);
    assert!(shown.contains(&driver), "{example} does not say \"{driver}\":\n{shown}");
    shown
}

#[track_caller]
fn run(example: &str, arguments: &[&str]) -> Output {
    let program = examples().join(example);
    let mut command = Command::new(&program);
    command.args(arguments).env(ring::DRIVER_VARIABLE, testing::driver().to_string());
    command.output().unwrap_or_else(|error| {
        panic!("{}: {error} (`cargo test --test` alone builds no examples)", program.display())
    })
}

/// This program is in `deps`, and the examples are beside it.
fn examples() -> PathBuf {
    let program = env::current_exe().unwrap();
    program.parent().and_then(|deps| deps.parent()).unwrap().join("examples")
}
