//! Results are kept, shown in the README, and told apart from what the README shows.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use perf::readme::{BEGIN, END};

const ROWS: &str = r#"[
{"suite":"quick","name":"raw ping-pong","driver":"none","way":"raw","client":"blocking","wait":"sleep",
"cpus":"0","depth":1,"payload":64,"fds":0,"p50_ns":8000,"p99_ns":9000,"p999_ns":9500,"p9999_ns":9900,
"max_ns":10000,"calls_per_s":120000.0,"floor_p50_ns":8000,"ratio":1.0}
]
"#;

/// What the README of this checkout shows is what was recorded last.
#[test]
fn the_readme_shows_the_newest_record() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let checked = run(root, &["readme-table", "--check"], "");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn what_is_recorded_is_shown_and_the_difference_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::write(root.join("README.md"), format!("above\n{BEGIN}\n{END}\nbelow\n")).unwrap();
    succeeds(root, &["readme-table", "--check"], "");

    succeeds(root, &["record"], ROWS);
    let kept: Vec<_> = fs::read_dir(root.join("perf/record")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].file_name().to_str().unwrap().ends_with("-quick-one-cpu.json"));

    let checked = run(root, &["readme-table", "--check"], "");
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("does not show the newest records"));

    succeeds(root, &["readme-table"], "");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.starts_with("above\n") && readme.ends_with("\nbelow\n"), "{readme}");
    assert!(readme.contains("| raw ping-pong | 8.00 | 9.00 | 9.50 | 120 k | 1.00 |"), "{readme}");
    succeeds(root, &["readme-table", "--check"], "");
}

#[test]
fn what_is_no_result_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    for nonsense in ["", "[]", "{}", "[{\"suite\":\"quick\"}]"] {
        let output = run(directory.path(), &["record"], nonsense);
        assert_eq!(output.status.code(), Some(1), "{nonsense:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("sendright-perf: "), "{nonsense:?}");
    }
    assert!(!directory.path().join("perf").exists());
}

#[test]
fn words_that_are_not_known_are_answered_with_those_that_are() {
    for words in [&[][..], &["recrod"], &["readme-table", "--chekc"]] {
        let output = run(Path::new("/"), words, "");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("readme-table --check"), "{words:?}");
    }
}

#[track_caller]
fn succeeds(root: &Path, words: &[&str], input: &str) {
    let output = run(root, words, input);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn run(root: &Path, words: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendright-perf"));
    command.args(words).current_dir(root).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who reads nothing may have ended by now.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}
