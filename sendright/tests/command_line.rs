//! The program as a command-line tool: help, mistakes, exit codes, and an output that goes nowhere.
#![allow(clippy::unwrap_used)]

mod program;

use std::fs::OpenOptions;
use std::process::Stdio;

use program::{run, sendright, status, stderr, stdout};

#[test]
fn help_and_version_are_answers() {
    for arguments in [
        &["--help"][..],
        &["help"],
        &["--version"],
        &["help", "probe"],
        &["demo", "--help"],
        &["help", "echo", "imc"],
        &["introduce", "--help"],
    ] {
        let output = run(arguments);
        assert_eq!(status(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
    assert!(stdout(&run(["--version"])).starts_with("sendright "));
    assert!(stdout(&run(["help", "probe"])).contains("--json"));
}

#[test]
fn what_only_the_demonstration_uses_is_not_in_the_help() {
    assert!(!stdout(&run(["--help"])).contains("demo-"));
}

#[test]
fn a_mistake_is_told_with_status_2() {
    let mistakes = [
        &["demo", "--jsno"][..],
        &["demo", "--driver", "kqueue"],
        &["demo", "one", "two"],
        &["probe", "extra"],
        &["echo"],
        &["echo", "imc"],
        &["echo", "imc", "--fd", "many"],
        &["echo", "object", "--fd", "-1"],
        &["echo", "imc", "--fd", "99999999999"],
        &["ehco"],
        &[],
    ];
    for arguments in mistakes {
        let output = run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    assert!(stderr(&run(["demo", "--jsno"])).contains("--json"), "it suggests what was meant");
}

#[test]
fn an_inherited_descriptor_that_is_not_there_is_told() {
    let output = run(["echo", "imc", "--fd", "77"]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("descriptor 77 is not open"), "{}", stderr(&output));
}

#[test]
fn an_inherited_descriptor_of_the_wrong_kind_is_told() {
    for arguments in [
        &["echo", "imc", "--fd", "0"][..],
        &["echo", "object", "--fd", "0"],
        &["echo", "object", "--plain", "--fd", "0"],
    ] {
        let output = sendright().args(arguments).stdin(Stdio::null()).output().unwrap();
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains("SEQPACKET"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_driver_of_the_environment_that_does_not_exist_is_told() {
    for arguments in [&["probe"][..], &["demo"]] {
        let output = sendright().args(arguments).env("SENDRIGHT_DRIVER", "kqueue").output().unwrap();
        assert_eq!(status(&output), 2, "{arguments:?}");
        let told = stderr(&output);
        assert!(told.contains("SENDRIGHT_DRIVER") && told.contains("kqueue"), "{told}");
        assert!(told.contains("epoll"), "it says what there is: {told}");
        assert_eq!(told.lines().count(), 1, "once is enough: {told}");
    }
}

#[test]
fn a_directory_that_does_not_exist_is_told() {
    let output = run(["demo", "/nowhere/at/all"]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("/nowhere/at/all: No such file"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for arguments in [&["probe"][..], &["probe", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sendright().args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(status(&output), 0, "{arguments:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    for arguments in [&["probe"][..], &["probe", "--json"], &["--help"], &["--version"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = sendright().args(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(status(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains("standard output"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn complaints_that_cannot_be_written_are_no_panic() {
    for arguments in [&["demo", "--jsno"][..], &["echo", "imc", "--fd", "77"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = sendright().args(arguments).stderr(full).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_part_of_the_demonstration_started_by_hand_says_what_it_is() {
    for arguments in [&["__service"][..], &["__walker", "--forbidden", "/"]] {
        let output = run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains("sendright demo"), "{}", stderr(&output));
    }
}
