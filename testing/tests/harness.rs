//! The harness under test: does it notice what it is there to notice?
//!
//! Bodies that must fail are fixtures, run through the same machinery as every test and judged by their
//! outcome. Nothing here knows more than the public face of the harness.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use ring::{Config, DriverChoice, DriverKind, Reactor};
use testing::{
    Census, End, Errno, Helper, fixture, helper, in_own_process, on_each_driver, outcome_of, start_helper,
    wait_until,
};

// Bodies and their drivers.

on_each_driver! {
    /// Exactly the one asked for, and a second reactor is of the same kind.
    fn a_body_gets_its_driver(reactor: &Reactor) {
        let asked = match testing::driver() {
            DriverChoice::Uring => DriverKind::Uring,
            _ => DriverKind::Epoll,
        };
        assert_eq!(reactor.driver().kind().to_string(), asked.to_string());
        assert_eq!(testing::reactor().driver().kind().to_string(), asked.to_string());
    }

    #[allow(clippy::ptr_arg)]
    fn a_future_is_settled(reactor: &Reactor) {
        assert_eq!(testing::settle(reactor, async { 6 * 7 }), 42);
    }
}

mod deeper {
    use ring::Reactor;

    testing::on_each_driver! {
        fn a_body_in_a_module_is_found(reactor: &Reactor) {
            assert!(!reactor.driver().reason().is_empty());
        }
    }

    testing::helper! {
        pub(super) fn leaves_at_once(descriptors: Vec<std::os::fd::OwnedFd>) {
            drop(descriptors);
        }
    }
}

static BODIES_HERE: AtomicU32 = AtomicU32::new(0);

in_own_process! {
    fn a_body_has_its_process_to_itself() {
        assert_eq!(BODIES_HERE.fetch_add(1, Ordering::Relaxed), 0);
    }

    fn so_has_the_next_one() {
        assert_eq!(BODIES_HERE.fetch_add(1, Ordering::Relaxed), 0);
    }
}

// Bodies that must not pass.

fixture! {
    fn comes_to_its_end() {
        println!("one line to standard output");
        eprintln!("one line to standard error");
    }

    fn leaks_a_socket() {
        let (near, _far) = testing::packet_pair();
        std::mem::forget(near);
    }

    fn panics() {
        panic!("of the body's own making");
    }

    fn exits_early() {
        std::process::exit(0);
    }

    fn aborts() {
        std::process::abort();
    }

    fn hangs() {
        loop {
            thread::park();
        }
    }

    fn prints_without_end() {
        loop {
            println!("{}", "and on ".repeat(1000));
        }
    }

    fn leaves_a_helper_behind() {
        let helper = start_helper!(waits_forever);
        println!("left behind: {}.", helper.pid());
        std::mem::forget(helper);
    }
}

#[test]
fn a_body_that_comes_to_its_end_finished() {
    let outcome = outcome_of!(comes_to_its_end);
    assert!(matches!(outcome.end, End::Finished), "{outcome:?}");
    assert!(outcome.output.contains("one line to standard output"));
    assert!(outcome.output.contains("one line to standard error"));
}

#[test]
fn a_leaking_body_fails_and_the_leak_is_named() {
    let outcome = outcome_of!(leaks_a_socket);
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
    assert!(outcome.output.contains("left open: "), "{}", outcome.output);
    assert!(outcome.output.contains("-> socket:["), "{}", outcome.output);
}

#[test]
fn a_panic_is_reported_with_its_words() {
    let outcome = outcome_of!(panics);
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
    assert!(outcome.output.contains("of the body's own making"));
}

#[test]
fn leaving_early_is_not_success() {
    assert!(matches!(outcome_of!(exits_early).end, End::Unfinished));
}

#[test]
fn death_by_signal_is_a_failure() {
    assert!(matches!(outcome_of!(aborts).end, End::Failed(_)));
}

#[test]
fn a_body_that_nobody_has_is_not_success() {
    let outcome = testing::body::run("no_such_body", None, testing::BODY_TIME_MAX);
    assert!(matches!(outcome.end, End::Unfinished), "{outcome:?}");
}

#[test]
fn a_hung_body_is_killed_and_reported() {
    let outcome = outcome_of!(hangs, time_max: Duration::from_millis(300));
    assert!(matches!(outcome.end, End::Hung(_)), "{outcome:?}");
}

#[test]
fn endless_output_is_cut_and_does_not_hide_the_end() {
    let outcome = outcome_of!(prints_without_end, time_max: Duration::from_secs(1));
    assert!(matches!(outcome.end, End::Hung(_)), "{}", outcome.end);
    assert!(outcome.output.len() < 2 << 20);
}

#[test]
fn what_a_body_leaves_running_is_killed() {
    let outcome = outcome_of!(leaves_a_helper_behind);
    let pid =
        outcome.output.split_once("left behind: ").and_then(|(_, rest)| rest.split_once('.')).unwrap().0;
    wait_until("the helper left behind is gone", || !is_running(pid));
}

/// Neither gone nor a zombie that nobody reaps.
fn is_running(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

// Helpers.

helper! {
    fn introduces_itself(descriptors: Vec<OwnedFd>) {
        let words = format!("{} on {}", testing::helper_argument(), testing::reactor().driver().kind());
        testing::send_packet(&descriptors[0], words.as_bytes(), &[]).unwrap();
        testing::send_packet(&descriptors[1], b"second", &[]).unwrap();
    }

    fn counts_its_descriptors(descriptors: Vec<OwnedFd>) {
        let count = Census::take().len().to_string();
        testing::send_packet(&descriptors[0], count.as_bytes(), &[]).unwrap();
    }

    fn waits_forever(_descriptors: Vec<OwnedFd>) {
        loop {
            thread::park();
        }
    }

    fn echoes_once(descriptors: Vec<OwnedFd>) {
        let packet = testing::receive_packet(&descriptors[0]).unwrap();
        testing::send_packet(&descriptors[0], &packet.bytes, &[]).unwrap();
    }

    fn forgets_what_it_got(descriptors: Vec<OwnedFd>) {
        let (near, far) = testing::packet_pair();
        std::mem::forget((near, far));
        drop(descriptors);
    }

    fn fails(_descriptors: Vec<OwnedFd>) {
        panic!("as it should");
    }
}

/// What the kernel says a helper does: `T` is stopped.
fn state_of(helper: &testing::Helper) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", helper.pid())).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

on_each_driver! {
    fn a_helper_has_its_descriptors_its_argument_and_the_driver(reactor: &Reactor) {
        let (first, far_first) = testing::packet_pair();
        let (second, far_second) = testing::packet_pair();
        let helper = start_helper!(introduces_itself, vec![far_first, far_second], "hello");
        assert_eq!(text(&first), format!("hello on {}", reactor.driver().kind()));
        assert_eq!(text(&second), "second");
        helper.succeeded();
    }
}

in_own_process! {
    fn a_helper_has_no_other_descriptor_of_ours() {
        let before = Census::take().len();
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(counts_its_descriptors, vec![far]);
        assert_eq!(text(&near), (before + 1).to_string());
        helper.succeeded();
    }

    fn a_killed_helper_lets_go_of_its_descriptors() {
        let (near, far) = testing::packet_pair();
        let mut helper = start_helper!(waits_forever, vec![far]);
        assert!(is_running(&helper.pid().to_string()));
        helper.kill();
        assert_eq!(text(&near), "");
        assert!(!helper.wait().success());
    }

    fn a_stopped_helper_stands_still_and_goes_on() {
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(echoes_once, vec![far]);
        helper.stop();
        testing::send_packet(&near, b"hello", &[]).unwrap();
        assert_eq!(state_of(&helper), 'T');
        helper.resume();
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"hello");
        helper.succeeded();
    }

    fn a_stopped_helper_can_be_killed() {
        let (near, far) = testing::packet_pair();
        let mut helper = start_helper!(echoes_once, vec![far]);
        helper.stop();
        helper.kill();
        assert!(testing::receive_packet(&near).unwrap().bytes.is_empty());
    }

    fn a_dropped_helper_is_killed() {
        let (near, far) = testing::packet_pair();
        drop(start_helper!(waits_forever, vec![far]));
        assert_eq!(text(&near), "");
    }

    fn a_helper_that_leaks_fails() {
        assert!(!start_helper!(forgets_what_it_got).wait().success());
    }

    fn a_helper_that_panics_fails() {
        let helper = start_helper!(fails);
        assert!(catch_unwind(AssertUnwindSafe(|| helper.succeeded())).is_err());
    }

    fn a_helper_of_another_module_is_found() {
        let (near, far) = testing::packet_pair();
        let helper: Helper = start_helper!(deeper::leaves_at_once, vec![far]);
        assert_eq!(text(&near), "");
        helper.succeeded();
    }
}

fn text(socket: &OwnedFd) -> String {
    String::from_utf8(testing::receive_packet(socket).unwrap().bytes).unwrap()
}

// The census inside a body.

in_own_process! {
    fn a_census_names_what_was_lost() {
        let (near, far) = testing::packet_pair();
        let census = Census::take();
        drop(near);
        let complaint = catch_unwind(|| census.unchanged()).unwrap_err();
        let complaint = complaint.downcast_ref::<String>().unwrap();
        assert!(complaint.contains("lost: "), "{complaint}");
        drop(far);
    }

    fn a_descriptor_that_travelled_is_the_same_one() {
        let (near, far) = testing::packet_pair();
        let (one, other) = testing::stream_pair();
        let census = Census::take();
        testing::send_packet(&near, b"yours", &[one.as_fd()]).unwrap();
        // Takes the number that becomes free, so that the traveller comes back under another one.
        drop(one);
        let null = fs::File::open("/dev/null").unwrap();
        let back = testing::receive_packet(&far).unwrap();
        drop(null);
        census.unchanged();
        drop((back, other));
    }
}

// A poorer machine.

in_own_process! {
    fn io_uring_can_be_refused() {
        testing::refuse_io_uring(Errno::PERM);
        let refused = Reactor::with_config(Config { driver: DriverChoice::Uring, ..Config::default() });
        assert!(refused.is_err());
        assert!(Reactor::new().is_ok());
    }

    /// By the same test that runs on other machines, started below the filter.
    fn a_machine_without_io_uring_skips_and_says_so() {
        testing::refuse_io_uring(Errno::NOSYS);
        let output = test_below(&[]);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("skipped: uring: "), "{output:?}");
    }

    fn a_machine_that_must_have_io_uring_fails_without() {
        testing::refuse_io_uring(Errno::PERM);
        assert!(!test_below(&["SENDRIGHT_REQUIRE_URING"]).status.success());
    }

    fn root_becomes_a_user_that_no_other_process_is() {
        let (before, process) = (effective_uid(), std::process::id());
        testing::become_a_user_of_its_own();
        let after = effective_uid();
        assert!(before != 0 && after == before || after == testing::NOBODY || after > process, "{after}");
    }

    fn root_becomes_nobody() {
        let before = effective_uid();
        testing::become_nobody();
        assert_eq!(effective_uid(), if before == 0 { testing::NOBODY } else { before });
    }

    /// Where tests do not run as root all that run at the same time are one user, and crowd each other.
    fn too_many_in_flight_are_too_many_without_those_of_others() {
        testing::become_a_user_of_its_own();
        let (ready, crowded) = std::io::pipe().unwrap();
        let other = testing::fork(|| {
            let _crowd = testing::too_many_in_flight();
            (&crowded).write_all(b"crowded").unwrap();
            thread::park();
        });
        (&ready).read_exact(&mut [0; 7]).unwrap();
        let _crowd = testing::too_many_in_flight();
        other.kill();
        let (near, _far) = testing::packet_pair();
        let refused = testing::send_packet(&near, b"one", &[ready.as_fd()]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::TOOMANYREFS.raw_os_error()));
    }

    fn descriptors_run_out_at_the_limit_and_come_back_after_it() {
        let limit = testing::leave_descriptors(1);
        let last = fs::File::open("/dev/null").unwrap();
        assert!(fs::File::open("/dev/null").is_err());
        drop(limit);
        assert!(fs::File::open("/dev/null").is_ok());
        drop(last);
    }
}

/// Runs a test of this program from its beginning, as `cargo test` would.
fn test_below(variables: &[&str]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_future_is_settled::uring", "--exact", "--nocapture"]);
    command.env_remove("SENDRIGHT_REQUIRE_URING");
    command.envs(variables.iter().map(|variable| (variable, "1")));
    command.output().unwrap()
}

fn effective_uid() -> u32 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

// Sockets.

in_own_process! {
    fn a_packet_carries_as_many_descriptors_as_the_kernel_allows() {
        let (near, far) = testing::packet_pair();
        let most = vec![near.as_fd(); testing::PACKET_DESCRIPTORS_MAX];
        testing::send_packet(&near, b"x", &most).unwrap();
        let packet = testing::receive_packet(&far).unwrap();
        assert_eq!(packet.descriptors.len(), testing::PACKET_DESCRIPTORS_MAX);
        assert!(!packet.truncated);
        let too_many = vec![near.as_fd(); testing::PACKET_DESCRIPTORS_MAX + 1];
        assert!(testing::send_packet(&near, b"x", &too_many).is_err());
    }

    fn descriptors_that_find_no_room_are_reported() {
        let (near, far) = testing::packet_pair();
        testing::send_packet(&near, b"x", &[near.as_fd(); 4]).unwrap();
        let limit = testing::leave_descriptors(2);
        let packet = testing::receive_packet(&far).unwrap();
        assert_eq!(packet.descriptors.len(), 2);
        assert!(packet.truncated);
        drop(limit);
    }

    fn a_nonblocking_socket_does_not_wait() {
        let (near, _far) = testing::packet_pair();
        testing::set_nonblocking(&near);
        let error = testing::receive_packet(&near).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        testing::set_blocking(&near);
    }

    fn closing_a_lingering_socket_waits_for_its_peer() {
        let stuck = testing::lingering_tcp();
        let closing = thread::spawn(|| drop(stuck.near));
        // Not waiting for luck: a close that does not wait could only be missed here, never wrongly seen.
        thread::sleep(Duration::from_millis(200));
        assert!(!closing.is_finished());
        drop(stuck.far);
        closing.join().unwrap();
    }
}
