//! `sendright bench`: each suite runs here, says what its options promise, and leaves nobody behind.
#![allow(clippy::unwrap_used)]

mod program;

use std::fs;
use std::process::{Child, Output, Stdio};

use program::{run, sendright, status, stderr, stdout};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CpuSet;
use serde_json::Value;

/// A row is measured for so long, in seconds: enough to go through everything.
const MOMENT: &str = "0.003";

/// How long anything may take to end that should.
const ENDING_SECONDS_MAX: u64 = 60;

#[test]
fn quick_has_a_row_for_every_way_client_and_driver() {
    let rows = rows(&run(["bench", "--seconds", MOMENT, "--json"]));
    let drivers = if has_uring() { &["uring", "epoll"][..] } else { &["epoll"] };
    let ways = ["session", "plain", "returned"];
    for (way, client) in ways.into_iter().flat_map(|way| [(way, "async"), (way, "blocking")]) {
        for driver in drivers {
            for (depth, fds) in [(1, 0), (1, 1), (32, 0), (32, 1)] {
                let is_it = |row: &&Value| {
                    (&row["way"], &row["client"], &row["driver"])
                        == (&way.into(), &client.into(), &(*driver).into())
                        && (&row["depth"], &row["fds"]) == (&depth.into(), &fds.into())
                };
                assert_eq!(
                    rows.iter().filter(is_it).count(),
                    1,
                    "{way}, {client}, {driver}, {depth} deep, {fds} descriptors"
                );
            }
        }
    }
}

#[test]
fn each_row_has_its_fields_in_their_units() {
    for row in rows(&run(["bench", "--suite", "floor", "--seconds", MOMENT, "--json"])) {
        let texts = ["suite", "name", "driver", "way", "client", "wait", "cpus"];
        for field in texts {
            assert!(row[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {row}");
        }
        let times = ["p50_ns", "p99_ns", "p999_ns", "p9999_ns", "max_ns", "floor_p50_ns"];
        for field in times {
            assert!(row[field].as_u64().is_some_and(|time| time > 0), "{field}: {row}");
        }
        for field in ["depth", "payload", "fds"] {
            assert!(row[field].is_u64(), "{field}: {row}");
        }
        for field in ["calls_per_s", "ratio"] {
            assert!(row[field].as_f64().is_some_and(|number| number > 0.0), "{field}: {row}");
        }
        assert_eq!(row.as_object().unwrap().len(), texts.len() + times.len() + 5, "{row}");
        let ordered = ["p50_ns", "p99_ns", "p999_ns", "p9999_ns", "max_ns"].map(|field| row[field].as_u64());
        assert!(ordered.is_sorted(), "{row}");
    }
}

#[test]
fn a_table_says_what_each_row_is_and_how_it_compares() {
    let output = run(["bench", "--suite", "pairs", "--seconds", MOMENT]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let shown = stdout(&output);
    for words in
        ["p50", "p99.99", "max", "calls/s", "x floor", "raw five steps", "with a descriptor in flight"]
    {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    for way in ["fresh pairs", "pairs made ahead", "pairs returned"] {
        assert!(shown.contains(way), "{way}:\n{shown}");
    }
}

#[test]
fn two_cpus_spin_and_one_is_refused_for_two() {
    let first = cpus()[0];
    if let [first, second, ..] = cpus()[..] {
        let named = format!("{first},{second}");
        let rows = rows(&run(["bench", "--suite", "floor", "--cpus", &named, "--seconds", MOMENT, "--json"]));
        assert!(rows.iter().all(|row| row["wait"] == "spin" && row["cpus"] == named.as_str()), "{rows:?}");
    }
    let mut one = CpuSet::new();
    one.set(first);
    // Of this thread alone; what it starts inherits it.
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let output = run(["bench", "--cpus", &format!("{first},{}", first + 1)]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("one CPU only"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_measured_is_told() {
    let mistakes = [
        (&["bench", "--suite", "quik"][..], "quick, full"),
        (&["bench", "--seconds", "0"], "more than 0"),
        (&["bench", "--seconds", "-1"], "--seconds"),
        (&["bench", "--seconds", "nan"], "more than 0"),
        (&["bench", "--seconds", "3601"], "at most 3600"),
        (&["bench", "--suite", "isolation", "--titled", "gentle"], "nothing in isolation"),
        (&["bench", "--rate", "0"], "more than 0"),
        (&["bench", "--rate", "inf"], "at most"),
        (&["bench", "--suite", "large", "--rate", "5"], "only calls have"),
        (&["bench", "--cpus", "0,0"], "two different ones"),
        (&["bench", "--cpus", "zero"], "names no CPUs"),
        (&["bench", "--driver", "kqueue"], "epoll"),
        (&["bench", "only", "--calls", "0"], "0"),
        (&["bench", "only", "--fds", "17"], "16"),
        (&["bench", "only", "--way", "plain", "--within", "5"], "only session calls have a deadline"),
    ];
    for (arguments, words) in mistakes {
        let output = run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    let output = run(["bench", "--cpus", "1023"]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("may not run on CPU 1023, only on"), "{}", stderr(&output));
}

#[test]
fn a_driver_can_be_chosen_by_option_and_by_environment() {
    let arguments = ["bench", "--suite", "pairs", "--seconds", MOMENT, "--json"];
    let by_option = run(arguments.iter().copied().chain(["--driver", "epoll"]));
    let by_environment = sendright().args(arguments).env(ring::DRIVER_VARIABLE, "epoll").output().unwrap();
    for output in [by_option, by_environment] {
        let rows = rows(&output);
        assert!(rows.iter().all(|row| row["driver"] != "uring"), "{rows:?}");
        assert!(rows.iter().any(|row| row["driver"] == "epoll"), "{rows:?}");
    }
}

#[test]
fn groups_can_be_chosen_by_what_their_titles_say() {
    let output = run(["bench", "--suite", "pairs", "--titled", "in flight", "--seconds", MOMENT, "--json"]);
    let rows = rows(&output);
    let named = |row: &serde_json::Value| row["name"].as_str().unwrap().contains("in flight");
    assert!(!rows.is_empty() && rows.iter().all(named), "{rows:?}");
}

#[test]
fn at_a_rate_there_are_no_more_calls_than_that() {
    let output = run(["bench", "--suite", "floor", "--seconds", "0.05", "--rate", "2000", "--json"]);
    for row in rows(&output) {
        assert!(row["calls_per_s"].as_f64().unwrap() < 2_500.0, "{row}");
    }
}

#[test]
fn each_small_suite_has_rows_of_ours_beside_bare_ones() {
    for (suite, ours) in [("connect", "replacement"), ("fds", "typed"), ("deadlines", "session")] {
        let rows = rows(&run(["bench", "--suite", suite, "--seconds", MOMENT, "--json"]));
        let of = |way: &str| rows.iter().filter(|row| row["way"] == way).count();
        assert!(of("raw") > 0 && of(ours) > 0, "{suite}: {rows:?}");
        assert!(rows.iter().all(|row| row["ratio"].as_f64().unwrap() > 0.0), "{suite}: {rows:?}");
    }
}

#[test]
fn calls_alone_are_made_for_whoever_counts() {
    for way in ["session", "plain", "fresh", "returned"] {
        for driver in ["uring", "epoll"] {
            if driver == "epoll" || has_uring() {
                says(
                    &["bench", "only", "--way", way, "--driver", driver, "--calls", "64", "--depth", "32"],
                    "64 calls",
                );
            }
        }
    }
    for way in ["raw", "raw-coalesced", "raw-five-steps", "raw-returned", "raw-returned-asked"] {
        says(&["bench", "only", "--way", way, "--calls", "10", "--payload", "8"], "10 calls");
    }
    for way in ["session", "plain"] {
        says(
            &["bench", "only", "--way", way, "--client", "blocking", "--calls", "10", "--fds", "2"],
            "10 calls",
        );
    }
    for client in ["async", "blocking"] {
        says(&["bench", "only", "--client", client, "--calls", "10", "--within", "5"], "10 calls");
    }
}

#[test]
fn a_page_holds_everything_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bench.html");
    let output = sendright()
        .args(["bench", "--suite", "floor", "--seconds", MOMENT, "--html"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert_eq!(page.matches("<svg").count(), 4, "two groups, two pictures each");
    for foreign in ["http", "src=", "href=", "<script"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for words in ["raw ping-pong", "Kernel", "Commit", "99.99 %", "calls per second"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn a_page_that_cannot_be_kept_is_told_before_anything_is_measured() {
    let output = run(["bench", "--seconds", "100", "--html", "/nowhere/at/all.html"]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("/nowhere/at/all.html: No such file"), "{}", stderr(&output));
}

#[test]
fn a_server_that_dies_ends_the_run_with_a_reason() {
    let bench = begin();
    let server = *children(&bench).last().unwrap();
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    let output = bench.wait_with_output().unwrap();
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains(") has ended with signal: 9"), "{}", stderr(&output));
}

#[test]
fn killed_itself_it_leaves_no_server_behind() {
    let mut bench = begin();
    let servers = children(&bench)
        .into_iter()
        .filter_map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let servers: Vec<_> = servers.collect();
    assert!(!servers.is_empty());
    bench.kill().unwrap();
    bench.wait().unwrap();
    let limit = Timespec { tv_sec: ENDING_SECONDS_MAX as i64, tv_nsec: 0 };
    for server in servers {
        let mut ended = [PollFd::new(&server, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut ended, Some(&limit)).unwrap(), 1, "it lives on");
    }
}

/// A run that takes long enough to be disturbed, with at least one server started.
fn begin() -> Child {
    let mut command = sendright();
    command.args(["bench", "--suite", "floor", "--seconds", "100"]);
    let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    testing::wait_until("it has started servers", || !children(&bench).is_empty());
    bench
}

fn children(of: &Child) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", of.id())).unwrap();
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

fn has_uring() -> bool {
    let config = ring::Config { driver: ring::DriverChoice::Uring, ..ring::Config::default() };
    ring::Reactor::with_config(config).is_ok()
}

#[track_caller]
fn says(arguments: &[&str], words: &str) {
    let output = run(arguments);
    assert_eq!(status(&output), 0, "{arguments:?}: {}", stderr(&output));
    assert!(stdout(&output).contains(words), "{arguments:?}: {}", stdout(&output));
}

#[track_caller]
fn rows(output: &Output) -> Vec<Value> {
    assert_eq!(status(output), 0, "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap()
}
