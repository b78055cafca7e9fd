//! `sendright stress`: each way on each driver with kills, the verdict of a run in which something was done
//! wrong on purpose, and an end that comes early.
#![allow(clippy::unwrap_used)]

mod program;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use program::{json, run, sendright, status, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Enough that somebody is killed many times, and few enough to be over soon.
const CALLS: u64 = 2_000;

const OUTCOMES: [&str; 6] = ["answered", "dropped", "gone", "withdrawn", "cut_off", "reported_lost"];
const NOTHING: [&str; 5] = ["lost", "duplicated", "misdelivered", "unexplained", "leaked_descriptors"];

fn stress(arguments: &[&str]) -> Output {
    run(["stress", "--json"].iter().chain(arguments))
}

/// Every call has exactly one outcome, and nothing is lost, doubled, elsewhere, unexplained or left open.
#[track_caller]
fn passed(output: &Output) -> Value {
    assert_eq!(status(output), 0, "{}\n{}", stdout(output), stderr(output));
    let report = json(output);
    assert_eq!(report["verdict"], "pass", "{report}");
    for nothing in NOTHING {
        assert_eq!(report[nothing], 0, "{nothing}: {report}");
    }
    let outcomes: u64 = OUTCOMES.iter().map(|outcome| report[outcome].as_u64().unwrap()).sum();
    assert_eq!(report["calls"].as_u64().unwrap(), outcomes, "{report}");
    assert!(report["max_rss_kib"].as_u64().unwrap() > 0, "{report}");
    report
}

/// A run in which somebody is killed every few milliseconds.
fn with_kills(way: &str, driver: &str, fds: &str) {
    let calls = CALLS.to_string();
    let arguments = ["--way", way, "--driver", driver, "--calls", &calls, "--kill-every", "10", "--fds", fds];
    let output = stress(&arguments);
    if driver == "uring" && status(&output) == 1 && stderr(&output).contains("cannot be had") {
        println!("skipped: uring: {}", stderr(&output));
        assert!(std::env::var_os("SENDRIGHT_REQUIRE_URING").is_none());
        return;
    }
    let report = passed(&output);
    assert_eq!(report["calls"], CALLS, "{report}");
    assert_eq!(report["driver"], driver, "{report}");
    assert!(report["killed"].as_u64().unwrap() > 0, "{report}");
    assert!(report["answered"].as_u64().unwrap() > 0, "{report}");
    assert!(report["handed_on"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["ways"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["ways"][0]["way"], way, "{report}");
}

#[test]
fn sessions_lose_nothing_on_io_uring_whoever_is_killed() {
    with_kills("session", "uring", "2");
}

#[test]
fn sessions_lose_nothing_on_epoll_whoever_is_killed() {
    with_kills("session", "epoll", "2");
}

#[test]
fn plain_calls_lose_nothing_on_io_uring_whoever_is_killed() {
    with_kills("plain", "uring", "2");
}

#[test]
fn plain_calls_lose_nothing_on_epoll_whoever_is_killed() {
    with_kills("plain", "epoll", "2");
}

#[test]
fn returned_pairs_lose_nothing_on_io_uring_whoever_is_killed() {
    with_kills("returned", "uring", "2");
}

#[test]
fn returned_pairs_lose_nothing_on_epoll_whoever_is_killed() {
    with_kills("returned", "epoll", "2");
}

#[test]
fn as_many_descriptors_as_there_may_be_are_accounted_for() {
    with_kills("session", "epoll", "12");
    with_kills("plain", "epoll", "12");
}

#[test]
fn without_descriptors_none_is_passed() {
    let output = stress(&["--way", "session", "--calls", "500", "--kill-every", "10", "--fds", "0"]);
    assert_eq!(passed(&output)["descriptors_passed"], 0);
}

#[test]
fn with_nobody_killed_nobody_is_gone() {
    let output = stress(&["--way", "plain", "--calls", "1000", "--kill-every", "0"]);
    let report = passed(&output);
    for nothing in ["killed", "gone", "cut_off"] {
        assert_eq!(report[nothing], 0, "{nothing}: {report}");
    }
    // Some are let go of by whoever took them, and the callers are told.
    assert!(report["dropped"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn all_ways_are_run_unless_one_is_named_and_sums_are_sums() {
    let report = passed(&stress(&["--calls", "300", "--seed", "7", "--cpus", &first_cpu()]));
    let ways = report["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 3, "{report}");
    assert_eq!((report["calls"].as_u64(), report["seed"].as_u64()), (Some(900), Some(7)), "{report}");
    let answered: u64 = ways.iter().map(|way| way["answered"].as_u64().unwrap()).sum();
    assert_eq!(report["answered"], answered, "{report}");
    let most = ways.iter().map(|way| way["max_rss_kib"].as_u64().unwrap()).max();
    assert_eq!(report["max_rss_kib"].as_u64(), most, "{report}");
}

fn first_cpu() -> String {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..).find(|cpu| allowed.is_set(*cpu)).unwrap().to_string()
}

#[test]
fn the_table_ends_with_the_verdict() {
    let output = run(["stress", "--way", "session", "--calls", "200", "--kill-every", "0"]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("calls                          200"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("PASS"), "{text}");
}

// -- the judge is not blind ---------------------------------------------------------------------------------

/// A run in which the servers do something wrong now and then. Gives what was counted.
#[track_caller]
fn sabotaged(sabotage: &str, counted: &str) {
    for way in ["session", "plain"] {
        let mut command = sendright();
        command.env("SENDRIGHT_STRESS_SABOTAGE", sabotage);
        command.args([
            "stress",
            "--json",
            "--calls",
            "600",
            "--kill-every",
            "0",
            "--seed",
            "1",
            "--way",
            way,
        ]);
        let output = command.output().unwrap();
        assert_eq!(status(&output), 1, "{sabotage}: {}\n{}", stdout(&output), stderr(&output));
        let report = json(&output);
        assert_eq!(report["verdict"], "fail", "{report}");
        assert!(report[counted].as_u64().unwrap() > 0, "{sabotage}: {report}");
        let said = report["trouble"].as_array().unwrap().len() + report["leaks"].as_array().unwrap().len();
        assert!(said > 0, "{report}");
    }
}

#[test]
fn a_server_that_answers_twice_is_noticed() {
    sabotaged("answer-twice", "duplicated");
}

#[test]
fn a_call_that_is_handled_twice_is_noticed() {
    sabotaged("take-twice", "duplicated");
}

#[test]
fn a_server_that_drops_a_descriptor_is_noticed() {
    sabotaged("drop-descriptor", "lost");
}

#[test]
fn a_server_that_answers_with_the_descriptor_of_another_call_is_noticed() {
    sabotaged("swap-descriptor", "misdelivered");
}

#[test]
fn a_server_that_answers_with_the_bytes_of_another_call_is_noticed() {
    sabotaged("swap-bytes", "misdelivered");
}

#[test]
fn a_server_that_keeps_a_descriptor_is_noticed() {
    sabotaged("keep-descriptor", "leaked_descriptors");
}

#[test]
fn a_call_that_is_let_go_of_without_a_word_is_noticed() {
    sabotaged("drop-call", "lost");
}

// -- ends that come early -----------------------------------------------------------------------------------

/// Started with a place of its own for what a run that is killed leaves behind.
fn started(place: &Path, arguments: &[&str]) -> Child {
    let mut command = sendright();
    command.env("TMPDIR", place);
    command.args(["stress", "--json", "--calls", "1000000000"]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the journal says that a call was answered.
fn until_answered(path: &Path) {
    testing::wait_until("a call is answered", || {
        let Ok(journal) = fs::File::open(path) else { return false };
        BufReader::new(journal).lines().map_while(Result::ok).any(|line| line.contains("Answered"))
    });
}

#[test]
fn an_interrupt_ends_it_with_the_verdict_so_far() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("journal");
    let child = started(place.path(), &["--way", "session", "--journal", path.to_str().unwrap()]);
    until_answered(&path);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let report = passed(&child.wait_with_output().unwrap());
    assert_eq!(report["interrupted"], true, "{report}");
    assert!(report["answered"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_run_has_the_time_it_is_given() {
    let output = stress(&["--way", "plain", "--seconds", "1"]);
    let report = passed(&output);
    assert_eq!(report["interrupted"], false, "{report}");
    assert!(report["calls"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn nobody_outlives_a_run_that_is_killed() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("journal");
    let mut child = started(place.path(), &["--kill-every", "0", "--journal", path.to_str().unwrap()]);
    until_answered(&path);
    let parties = children(child.id());
    assert!(!parties.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    testing::wait_until("every party has ended", || parties.iter().all(has_ended));
}

/// The processes that this one has started, each with the moment at which it began.
fn children(parent: u32) -> Vec<(String, String)> {
    let own = |pid: String| {
        let stat = stat(&pid)?;
        (stat[1] == parent.to_string()).then(|| (pid, stat[19].clone()))
    };
    let names = fs::read_dir("/proc").unwrap().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter_map(own).collect()
}

fn has_ended((pid, began): &(String, String)) -> bool {
    stat(pid).is_none_or(|stat| stat[0] == "Z" || stat[19] != *began)
}

/// What stands behind the name: the state, the parent, …
fn stat(pid: &str) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

// -- mistakes -----------------------------------------------------------------------------------------------

#[test]
fn what_cannot_be_asked_for_is_told() {
    let mistakes = [
        (&["--way", "pigeon"][..], "session"),
        (&["--calls", "0"], "--calls"),
        (&["--fds", "13"], "--fds"),
        (&["--kill-every", "often"], "--kill-every"),
        (&["--seconds", "0"], "--seconds"),
        (&["--driver", "none"], "--driver"),
        (&["--cpus", "0-1"], "--cpus 0-1"),
        (&["--cpu", "0"], "--cpus"),
    ];
    for (arguments, told) in mistakes {
        let output = stress(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn what_this_machine_does_not_have_is_told() {
    for (arguments, told) in [
        (&["--cpus", "100000"][..], "may not run on CPU 100000"),
        (&["--journal", "/nowhere/journal"], "--journal /nowhere/journal"),
    ] {
        let output = stress(arguments);
        assert_eq!(status(&output), 1, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn with_too_few_descriptors_it_does_not_begin() {
    for (fds, limit) in [("0", 79), ("2", 127), ("12", 287)] {
        let output = with_descriptors(limit, &["--fds", fds]);
        assert_eq!(status(&output), 1, "{}", stderr(&output));
        let told = format!("RLIMIT_NOFILE is {limit}, and {} are needed", limit + 1);
        assert!(stderr(&output).contains(&told), "{}", stderr(&output));
    }
}

#[test]
fn with_just_enough_descriptors_what_is_lost_is_told() {
    let output = with_descriptors(288, &["--way", "session", "--fds", "12", "--calls", "600"]);
    assert_eq!(passed(&output)["calls"], 600);
}

/// The same with fewer descriptors for each process; the introduction server has as many as ever.
fn with_descriptors(limit: u32, arguments: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -n $1; shift; exec \"$@\"", "sh", &limit.to_string()]);
    shell.arg(sendright().get_program()).args(["stress", "--json"]).args(arguments);
    shell.env_remove(ring::DRIVER_VARIABLE).output().unwrap()
}

#[test]
fn a_party_is_for_nobody_else() {
    let server = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
    let arguments = ["__stress", "--role", "client", "--index", "0", "--life", "1", "--way", "session"];
    let others = ["--fds", "1", "--seed", "1", "--server", server, "--via", "/nowhere"];
    let output = run(arguments.iter().chain(&others));
    assert_eq!(status(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("part of `sendright stress`"), "{}", stderr(&output));
}
