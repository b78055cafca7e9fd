//! `sendright demo` on trees of all sorts, on each driver, with little to live on, and with a process killed.
#![allow(clippy::unwrap_used)]

mod program;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};

use program::{at, json, run, sendright, status, stderr, stdout};
use serde_json::Value;
use testing::Errno;

/// Enough names for several pages of a listing.
const MANY: usize = 300;

/// A tree with everything in it that a tree may have.
fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path();
    for name in [
        &b"plain"[..],
        b"-rf",
        b" spaces ",
        b"two\nlines",
        b"\xff\xfe not utf-8",
        b"...",
        b"quote\"'",
        b"\x01",
    ] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("large"), vec![7; 1_000_000]).unwrap();
    fs::create_dir_all(root.join("-dash/deeper/deepest")).unwrap();
    fs::write(root.join("-dash/deeper/deepest/file"), b"deep").unwrap();
    fs::create_dir(root.join(OsStr::from_bytes(b"\xc3\x28 directory"))).unwrap();
    fs::create_dir(root.join("no files here")).unwrap();
    // Long names, so that so many do not fit into one page.
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..MANY {
        fs::write(many.join(format!("{number:0>200}")), number.to_string()).unwrap();
    }
    symlink("plain", root.join("link to a file")).unwrap();
    symlink("many", root.join("link to a directory")).unwrap();
    symlink("/etc/passwd", root.join("link out")).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), root.join("link to nothing")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    tree
}

/// Regular files in [`tree`].
const FILES: u64 = 8 + 2 + 1 + MANY as u64;

fn demo(arguments: &[&str], directory: &Path) -> Output {
    sendright().arg("demo").args(arguments).arg(directory).output().unwrap()
}

#[track_caller]
fn passed(output: &Output) -> Value {
    assert_eq!(status(output), 0, "{}\n{}", stdout(output), stderr(output));
    let report = json(output);
    assert_eq!(report["verdict"], "pass", "{report}");
    assert_eq!(report["mismatches"], 0, "{report}");
    assert_eq!(report["leaked_descriptors"], 0, "{report}");
    report
}

#[track_caller]
fn everything_was_read(report: &Value) {
    assert_eq!(report["files"], FILES, "{report}");
    assert_eq!(report["links"], 4, "{report}");
    assert_eq!(report["skipped"], 1, "{report}");
    assert_eq!(report["changed"], 0, "{report}");
    assert_eq!(report["directories"], 7, "{report}");
    assert!(report["bytes"].as_u64().unwrap() > 1_000_000, "{report}");
    // Each file is opened by a call on a directory and a call on itself, and brings two descriptors.
    assert!(report["calls"].as_u64().unwrap() >= 2 * FILES, "{report}");
    assert!(report["descriptors_passed"].as_u64().unwrap() >= 2 * FILES, "{report}");
    assert_eq!(
        report["session"]["calls"].as_u64().unwrap() + report["plain"]["calls"].as_u64().unwrap(),
        report["calls"]
    );
    assert!(report["session"]["p99.9_us"].as_f64().unwrap() >= report["session"]["p50_us"].as_f64().unwrap());
}

#[test]
fn on_io_uring_every_file_is_read_and_nothing_is_left() {
    let tree = tree();
    let output = demo(&["--json", "--driver", "uring"], tree.path());
    if output.status.code() == Some(1) && stderr(&output).contains("cannot be had") {
        println!("skipped: uring: {}", stderr(&output));
        assert!(std::env::var_os("SENDRIGHT_REQUIRE_URING").is_none());
        return;
    }
    let report = passed(&output);
    assert_eq!(report["driver"], "uring");
    everything_was_read(&report);
}

#[test]
fn on_epoll_every_file_is_read_and_nothing_is_left() {
    let tree = tree();
    let report = passed(&demo(&["--json", "--driver", "epoll"], tree.path()));
    assert_eq!(report["driver"], "epoll");
    everything_was_read(&report);
}

#[test]
fn who_met_whom_is_told_and_that_the_server_was_not_needed_any_more() {
    let tree = tree();
    for driver in ["auto", "epoll"] {
        let report = passed(&demo(&["--json", "--driver", driver], tree.path()));
        let introduction = &report["introduction"];
        assert_eq!(introduction["proved"], true, "{report}");
        assert_eq!(introduction["stepped_out"], true, "{report}");
        let key = |who: &str| introduction[who].as_str().unwrap().to_string();
        let keys = ["server", "client", "service"].map(key);
        assert!(keys.iter().all(|key| key.len() == 52), "{report}");
        assert!(key("locator").starts_with(&format!("ocapn://{}.unix-domain-socket", key("service"))));
        assert!(key("locator").contains(&key("server")), "{report}");
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{report}");
    }
}

#[test]
fn an_inherited_address_does_without_an_introduction() {
    let tree = tree();
    for driver in ["auto", "epoll"] {
        let report = passed(&demo(&["--json", "--inherited", "--driver", driver], tree.path()));
        assert_eq!(report["introduction"], Value::Null);
        everything_was_read(&report);
    }
}

#[test]
fn nothing_is_left_of_the_servers_place() {
    let (tree, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = sendright();
    let output = command.env("TMPDIR", place.path()).args(["demo", "--json"]).arg(tree.path()).output();
    passed(&output.unwrap());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_place_that_cannot_be_made_is_told() {
    let tree = tempfile::tempdir().unwrap();
    let mut command = sendright();
    let output =
        command.env("TMPDIR", "/nowhere").args(["demo", "--json"]).arg(tree.path()).output().unwrap();
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("TMPDIR"), "{}", stderr(&output));
}

#[test]
fn a_file_without_an_end_is_not_read_for_ever() {
    // Of 0 bytes, it says, and of hundreds of gigabytes to whoever reads them.
    let endless = Path::new("/proc/self/pagemap");
    if fs::File::open(endless).is_err() {
        println!("skipped: {} cannot be opened", endless.display());
        return;
    }
    let output = demo(&["--json"], Path::new("/proc/self"));
    let report = json(&output);
    // What is there changes while it is looked at: which verdict there is does not matter, but that there is.
    assert!(["pass", "fail"].contains(&report["verdict"].as_str().unwrap()), "{report}");
    assert!(report["endless"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["trouble"], Value::Array(Vec::new()), "{report}");
    assert_eq!(report["leaked_descriptors"], 0, "{report}");
}

#[test]
fn the_environment_chooses_the_driver() {
    let tree = tree();
    let mut command = sendright();
    let output =
        command.env("SENDRIGHT_DRIVER", "epoll").args(["demo", "--json"]).arg(tree.path()).output().unwrap();
    assert_eq!(passed(&output)["driver"], "epoll");
}

#[test]
fn the_third_process_reads_what_it_was_granted() {
    let tree = tree();
    let report = passed(&demo(&["--json"], tree.path()));
    // The first directory that is not hidden.
    assert_eq!(report["granted"]["directory"], "-dash");
    assert_eq!(report["granted"]["files"], 1);
    assert_eq!(report["granted"]["directories"], 3);
    assert_eq!(report["granted"]["mismatches"], 0);
}

#[test]
fn where_there_is_landlock_the_client_cannot_open_the_directory() {
    let tree = tree();
    let report = passed(&demo(&["--json"], tree.path()));
    let has_landlock = report["client"]["sandbox"]["landlock_abi"].is_number();
    assert_eq!(report["sandboxed"], has_landlock, "{report}");
    if has_landlock {
        assert!(report["direct_open"].as_str().unwrap().contains("denied"), "{report}");
        assert_eq!(report["third"]["sandbox"]["refused"], true, "{report}");
    }
}

#[test]
fn for_people_it_ends_with_a_verdict() {
    let tree = tree();
    let output = demo(&[], tree.path());
    assert_eq!(status(&output), 0);
    let text = stdout(&output);
    for wanted in ["driver", "sandbox", "by session", "by plain object", "p99.9", "0 leaked"] {
        assert!(text.contains(wanted), "{wanted} is missing: {text}");
    }
    assert!(text.lines().last().unwrap().starts_with("PASS"), "{text}");
    assert_eq!(stderr(&output), "", "no progress where nobody looks");
}

#[test]
fn an_empty_directory_is_a_tree() {
    let tree = tempfile::tempdir().unwrap();
    let report = passed(&demo(&["--json"], tree.path()));
    assert_eq!((&report["files"], &report["directories"]), (&Value::from(0), &Value::from(1)));
}

#[test]
fn ten_files_without_a_directory_are_granted_all_the_same() {
    let tree = tempfile::tempdir().unwrap();
    for number in 0..10 {
        fs::write(tree.path().join(number.to_string()), vec![number; 1_000]).unwrap();
    }
    let report = passed(&demo(&["--json"], tree.path()));
    assert_eq!(report["files"], 10);
    assert_eq!(report["granted"]["directory"], ".");
    assert_eq!(report["granted"]["files"], 10);
}

#[test]
fn a_tree_deeper_than_what_is_kept_open_is_read() {
    let tree = tempfile::tempdir().unwrap();
    let mut directory = tree.path().to_path_buf();
    for depth in 0..40 {
        directory.push(format!("level {depth}"));
        fs::create_dir(&directory).unwrap();
        // Gone through after what is deeper: the way back has to be opened again.
        fs::create_dir(directory.with_file_name("a side")).unwrap();
        fs::write(directory.with_file_name("a side").join("file"), depth.to_string()).unwrap();
        fs::write(directory.join("file"), depth.to_string()).unwrap();
    }
    let report = passed(&demo(&["--json"], tree.path()));
    assert_eq!(report["files"], 80);
    assert_eq!(report["directories"], 81);
}

#[test]
fn what_neither_may_read_is_counted_and_agreed_about() {
    let tree = tempfile::tempdir().unwrap();
    // Nobody must reach both the tree and the program, wherever the checkout is.
    let program = tree.path().join("program");
    let files = tree.path().join("files");
    fs::copy(env!("CARGO_BIN_EXE_sendright"), &program).unwrap();
    fs::create_dir_all(files.join("closed")).unwrap();
    fs::create_dir_all(files.join("listed only")).unwrap();
    for name in ["open", "secret", "closed/inside", "listed only/inside"] {
        fs::write(files.join(name), name).unwrap();
    }
    for (name, mode) in
        [("..", 0o755), ("", 0o755), ("open", 0o644), ("secret", 0), ("closed", 0), ("listed only", 0o444)]
    {
        fs::set_permissions(files.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = at(&program);
    if rustix::process::geteuid().is_root() {
        command.uid(testing::NOBODY).gid(testing::NOBODY);
    }
    let output = command.args(["demo", "--json"]).arg(&files).output().unwrap();
    // So that the directory can be removed.
    fs::set_permissions(files.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(files.join("listed only"), fs::Permissions::from_mode(0o755)).unwrap();
    let report = passed(&output);
    assert_eq!(report["files"], 1, "{report}");
    assert_eq!(report["unreadable"], 3, "{report}");
}

testing::in_own_process! {
    fn io_uring_refused_by_a_container_is_no_obstacle() {
        testing::refuse_io_uring(Errno::PERM);
        let tree = tree();
        let report = passed(&demo(&["--json"], tree.path()));
        assert_eq!(report["driver"], "epoll");
        everything_was_read(&report);
    }

    fn a_kernel_without_io_uring_is_no_obstacle() {
        testing::refuse_io_uring(Errno::NOSYS);
        let tree = tree();
        let report = passed(&demo(&["--json"], tree.path()));
        assert_eq!(report["driver"], "epoll");
        everything_was_read(&report);
    }

    fn io_uring_asked_for_and_refused_is_an_error() {
        testing::refuse_io_uring(Errno::PERM);
        let output = run(["demo", "--driver", "uring"]);
        assert_eq!(status(&output), 1);
        assert!(stderr(&output).contains("--driver uring"), "{}", stderr(&output));
    }

    fn too_few_descriptors_are_told_and_not_waited_for() {
        let _limit = testing::limit_descriptors(24);
        let output = run(["demo"]);
        assert_eq!(status(&output), 1);
        assert!(stderr(&output).contains("RLIMIT_NOFILE is 24"), "{}", stderr(&output));
    }

    fn too_few_for_an_introduction_server_are_told_and_enough_without() {
        let tree = tree();
        let limited = |arguments: &str| {
            let mut shell = at("sh".as_ref());
            let script = format!("ulimit -n 67 && exec \"$0\" demo --json {arguments} \"$1\"");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_sendright")]).arg(tree.path()).output().unwrap()
        };
        let refused = limited("");
        assert_eq!(status(&refused), 1);
        assert!(stderr(&refused).contains("--inherited"), "{}", stderr(&refused));
        everything_was_read(&passed(&limited("--inherited")));
    }

    fn sixty_four_descriptors_are_enough_for_a_slow_walk() {
        let _limit = testing::limit_descriptors(64);
        let tree = tree();
        for driver in ["auto", "epoll"] {
            everything_was_read(&passed(&demo(&["--json", "--driver", driver], tree.path())));
        }
    }

    fn two_hundred_and_fifty_six_descriptors_are_enough() {
        let _limit = testing::limit_descriptors(256);
        let tree = tree();
        for driver in ["auto", "epoll"] {
            everything_was_read(&passed(&demo(&["--json", "--driver", driver], tree.path())));
        }
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let tree = tempfile::tempdir().unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        sendright().arg("demo").arg(tree.path()).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("standard output"));
}

#[test]
fn a_process_that_dies_is_named_and_the_rest_does_not_hang() {
    for part in ["__service", "__walker"] {
        let tree = tempfile::tempdir().unwrap();
        // Far more than can be hashed before the process is gone, and more files than are held at a time: as
        // long as some are still to be opened the service is needed.
        for number in 0..100 {
            let endless = fs::File::create(tree.path().join(format!("endless {number}"))).unwrap();
            endless.set_len(1 << 40).unwrap();
        }
        let mut child = sendright()
            .args(["demo", "--json"])
            .arg(tree.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut victim = None;
        // The client is started when the service has registered: from then on there will be a report.
        testing::wait_until("the process is there", || {
            victim = child_named(child.id(), part);
            victim.is_some() && child_named(child.id(), "__walker").is_some()
        });
        rustix::process::kill_process(victim.unwrap(), rustix::process::Signal::KILL).unwrap();
        testing::wait_until("the rest has ended", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(1), "{part}");
        let mut told = String::new();
        child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        let report: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(report["verdict"], "fail", "{report}");
        assert!(report["trouble"].to_string().contains("killed by signal 9"), "{report}");
    }
}

/// A child of `parent` that was started as `part`.
fn child_named(parent: u32, part: &str) -> Option<rustix::process::Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program, in parentheses, may hold anything.
        let ppid = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_part = command.split(|&byte| byte == 0).nth(1) == Some(part.as_bytes());
        (ppid == parent && is_part).then(|| rustix::process::Pid::from_raw(pid)).flatten()
    })
}
