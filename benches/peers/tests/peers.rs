//! Each peer answers wherever it says it can, and nothing is left when the run is over.
//!
//! What anything takes is not looked at here.

use std::fs;
use std::process::{Command, Output, Stdio};

use perf::{Cpus, Row};
use rustix::process::{Pid, Signal};

/// As they are called in the tables, and whether they take a descriptor along.
const PEERS: [(&str, bool); 7] = [
    ("std UnixStream", false),
    ("ipc-channel, duplex", true),
    ("ipc-channel, reply sender", false),
    ("tokio-seqpacket", true),
    ("tarpc", false),
    ("zbus, peer to peer", true),
    ("iceoryx2", false),
];

#[test]
fn each_peer_answers_at_each_depth() {
    for depth in ["1", "8", "32"] {
        let rows = rows(&["--depth", depth, "--fds", "0"]);
        for (name, _) in PEERS {
            let row = rows.iter().find(|row| row.name == name);
            let row = row.unwrap_or_else(|| panic!("{name} is not in the table of depth {depth}"));
            assert_eq!((row.suite.as_str(), row.depth.to_string().as_str()), ("peers", depth));
            assert!(row.p50_ns > 0 && row.calls_per_s > 0.0, "{row:?}");
        }
    }
}

#[test]
fn who_can_take_a_descriptor_along_does() {
    let rows = rows(&["--depth", "1", "--fds", "1"]);
    for (name, does) in PEERS {
        assert_eq!(rows.iter().any(|row| row.name == name && row.fds == 1), does, "{name}");
    }
}

#[test]
fn all_are_beside_the_same_floor() {
    let rows = rows(&["--depth", "1", "--fds", "0"]);
    assert!(rows[0].is_floor());
    assert!(rows.iter().all(|row| row.floor_p50_ns == rows[0].p50_ns));
}

#[test]
fn a_word_chooses_rows() {
    let rows = rows(&["--depth", "1", "--fds", "0", "ipc-channel"]);
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["raw ping-pong", "ipc-channel, duplex", "ipc-channel, reply sender"]);
}

/// The servers of a table are its processes in the order of its rows.
#[test]
fn who_fails_costs_nobody_else_a_row() {
    let mut command = command(&["--depth", "1", "--fds", "0", "--seconds", "0.5", "ipc-channel"]);
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program is there");
    let id = run.id();
    let last = loop {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        if let [_, _, last] = children.split_whitespace().collect::<Vec<_>>()[..] {
            break last.parse().ok().and_then(Pid::from_raw).expect("the number of a process");
        }
        std::thread::yield_now();
    };
    rustix::process::kill_process(last, Signal::KILL).expect("it is there until it is waited for");
    let ended = run.wait_with_output().expect("it is ours");
    let rows: Vec<Row> = serde_json::from_slice(&ended.stdout).expect("an array of rows");
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["raw ping-pong", "ipc-channel, duplex"]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.starts_with("ipc-channel, reply sender failed: "), "{said}");
    assert!(ended.status.success(), "{said}");
}

#[test]
fn a_table_that_is_not_there_is_told() {
    let ended = run(&["--depth", "3"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("there is no such table"));
}

/// The program waits for its servers and says so if one does not end well: success is that none is left.
fn rows(words: &[&str]) -> Vec<Row> {
    let ended = run(words);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    assert!(said.is_empty(), "{said}");
    serde_json::from_slice(&ended.stdout).expect("an array of rows")
}

fn run(words: &[&str]) -> Output {
    command(&[&["--seconds", "0.02"], words].concat()).output().expect("the program is there")
}

fn command(words: &[&str]) -> Command {
    let cpu = Cpus::one().expect("a CPU").to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendright-peers"));
    command.args(["--json", "--cpus", &cpu]).args(words);
    command
}
