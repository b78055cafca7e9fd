//! `sendright probe`: what it says, and that it says the truth about a machine without io_uring.
#![allow(clippy::unwrap_used)]

mod program;

use program::{json, run, sendright, status, stdout};
use serde_json::Value;
use testing::Errno;

#[test]
fn it_says_which_driver_and_why() {
    let output = run(["probe"]);
    assert_eq!(status(&output), 0);
    let text = stdout(&output);
    for wanted in
        ["driver", "kernel", "limits", "RLIMIT_NOFILE", "openat2", "Landlock", "kernel.io_uring_disabled"]
    {
        assert!(text.contains(wanted), "{wanted} is missing: {text}");
    }
}

#[test]
fn as_json_it_is_one_object() {
    let output = run(["probe", "--json"]);
    assert_eq!(status(&output), 0);
    let report = json(&output);
    assert!(["uring", "epoll"].contains(&report["driver"].as_str().unwrap()));
    assert!(!report["driver_reason"].as_str().unwrap().is_empty());
    for limit in report["limits"].as_array().unwrap() {
        assert!(limit["advice"].is_string(), "{limit}");
    }
    for feature in report["features"].as_array().unwrap() {
        assert!(feature["works"].is_boolean(), "{feature}");
    }
}

#[test]
fn the_environment_chooses_the_driver() {
    let output = sendright().args(["probe", "--json"]).env("SENDRIGHT_DRIVER", "epoll").output().unwrap();
    assert_eq!(json(&output)["driver"], "epoll");
}

testing::in_own_process! {
    fn io_uring_refused_by_a_container_leaves_epoll_and_is_told() {
        testing::refuse_io_uring(Errno::PERM);
        epoll_is_left_and_uring_is_explained();
    }

    fn a_kernel_without_io_uring_leaves_epoll_and_is_told() {
        testing::refuse_io_uring(Errno::NOSYS);
        epoll_is_left_and_uring_is_explained();
    }

    fn a_low_descriptor_limit_comes_with_advice() {
        let _limit = testing::limit_descriptors(64);
        let report = json(&run(["probe", "--json"]));
        let limits = report["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["name"] == "RLIMIT_NOFILE").unwrap();
        assert!(limit["value"].as_str().unwrap().starts_with("64 soft"), "{limit}");
        assert!(limit["advice"].as_str().unwrap().contains("raise"), "{limit}");
    }
}

fn epoll_is_left_and_uring_is_explained() {
    let output = run(["probe", "--json"]);
    assert_eq!(status(&output), 0);
    let report = json(&output);
    assert_eq!(report["driver"], "epoll");
    let uring: &Value =
        report["drivers"].as_array().unwrap().iter().find(|one| one["name"] == "uring").unwrap();
    assert_eq!(uring["works"], false);
    assert!(uring["detail"].as_str().unwrap().len() > 20, "{uring}");
}
