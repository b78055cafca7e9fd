//! A directory that is served to strangers, used with the program's own commands: by locator, past an
//! introduction server, in processes that share nothing.
#![allow(clippy::unwrap_used)]

mod daemon;
mod program;
mod served;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use introduction::{Expect, Identity, Netlayer};
use ring::{Reactor, ReceiveError};
use rustix::fs::{CWD, FileType, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use serde_json::Value;
use testing::{on_each_driver, wait_until};

use daemon::Daemon;
use program::{status, stderr, stdout};
use served::World;

/// Lines of JSON.
fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a tool of this machine prints in this folder, unless there is no such tool.
fn told_by(tool: &str, arguments: &[&str], folder: &std::path::Path) -> Option<String> {
    let output = Command::new(tool).args(arguments).current_dir(folder).env("LC_ALL", "C").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program that holds a directory by `forward` and waits for a line before it goes on.
struct Holder {
    child: Child,
}

impl Holder {
    /// `script` is run by a shell, after it has said that it is there and was told to go on.
    fn start(world: &World, options: &[&str], locator: &str, script: &str) -> Holder {
        let mut command = world.command(["forward"]);
        let script = format!("echo there; read line; {script}");
        command.args(options).arg(locator).args(["--", "sh", "-c", &script]);
        command.env("PROGRAM", env!("CARGO_BIN_EXE_sendright"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut there = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut there).unwrap();
        assert_eq!(&there, b"there\n");
        Holder { child }
    }

    fn goes_on(mut self) -> std::process::Output {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        self.child.wait_with_output().unwrap()
    }
}

on_each_driver! {
    fn a_directory_is_listed(_reactor: &Reactor) {
        let world = World::new();
        symlink("one", world.tree("link")).unwrap();
        let service = world.serve(&[]);
        let locator = service.locator();
        assert_eq!(world.says(["ls", locator]), "link\none\nsub\n");
        assert_eq!(world.says(["ls", "-a", locator]), ".hidden\nlink\none\nsub\n");
        assert_eq!(world.says(["ls", locator, "sub"]), "deep\ntwo\n");
        assert_eq!(world.says(["ls", locator, "/sub/"]), "deep\ntwo\n");
        assert_eq!(world.says(["ls", locator, "one"]), "one\n");
        assert_eq!(world.says(["ls", locator, "sub/deep"]), "");
        assert_eq!(world.says(["ls", "-d", locator, "sub"]), "sub\n");
        assert_eq!(world.says(["ls", locator, "sub", "."]), "sub:\ndeep\ntwo\n\n.:\nlink\none\nsub\n");
        let long = world.says(["ls", "-l", locator]);
        assert!(long.starts_with("total ") && long.contains("\nlrwxrwxrwx 1 "), "{long}");
        assert!(long.contains(" link -> one\n") && long.contains("-rw-r--r-- 1 "), "{long}");
        let rows = rows(&world.says(["ls", "--json", locator]));
        assert_eq!((&rows[0]["target"], &rows[1]["size_bytes"]), (&"one".into(), &6.into()));
        let tsv = world.says(["ls", "--tsv", locator]);
        assert!(tsv.lines().nth(2).unwrap().starts_with("sub\td\t0755\t"), "{tsv}");
    }

    fn a_long_listing_is_what_ls_prints(_reactor: &Reactor) {
        let world = World::new();
        symlink("nowhere", world.tree("link")).unwrap();
        fs::write(world.tree("big"), vec![0; 12_345]).unwrap();
        fs::set_permissions(world.tree("big"), fs::Permissions::from_mode(0o4751)).unwrap();
        let service = world.serve(&[]);
        let Some(theirs) = told_by("ls", &["-lAn"], &world.tree("")) else { return };
        assert_eq!(world.says(["ls", "-lA", service.locator()]), theirs);
    }

    fn files_are_read(_reactor: &Reactor) {
        let world = World::new();
        let large: Vec<u8> = (0..5_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        fs::write(world.tree("large"), &large).unwrap();
        let service = world.serve(&[]);
        let locator = service.locator();
        assert_eq!(world.says(["cat", locator, "one", "sub/two"]), "first\nsecond\n");
        assert!(world.run(["cat", locator, "large"]).stdout == large);
        // One that fails leaves the others.
        let output = world.run(["cat", locator, "one", "no", "sub", "sub/two"]);
        assert_eq!((status(&output), stdout(&output).as_str()), (1, "first\nsecond\n"));
        let told = stderr(&output);
        assert!(told.contains("no: nothing of that name") && told.contains("sub: of a kind"), "{told}");
    }

    fn a_reader_who_has_seen_enough_is_no_error(_reactor: &Reactor) {
        let world = World::new();
        fs::write(world.tree("large"), vec![b'x'; 10_000_000]).unwrap();
        let service = world.serve(&[]);
        let words: [&[&str]; 4] = [&["cat"], &["ls", "-l"], &["find"], &["stat"]];
        for words in words {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut command = world.command(words);
            command.arg(service.locator()).arg("large").stdout(writer).stderr(Stdio::piped());
            let output = command.output().unwrap();
            assert_eq!((status(&output), stderr(&output).as_str()), (0, ""), "{words:?}");
        }
    }

    fn a_tree_is_gone_through_as_find_does(_reactor: &Reactor) {
        let world = World::new();
        for name in [&b"\xff\xfe"[..], b"new\nline", b"\x1b[31m", b"it's", b"a b"] {
            fs::create_dir(world.tree(OsStr::from_bytes(name))).unwrap();
            fs::write(world.tree(OsStr::from_bytes(name)).join("x.rs"), "").unwrap();
        }
        symlink("..", world.tree("up")).unwrap();
        rustix::fs::mknodat(CWD, world.tree("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let service = world.serve(&[]);
        let searches: [&[&str]; 7] = [
            &[],
            &["-type", "f"],
            &["-type", "l"],
            &["-type", "p"],
            &["-name", "*.rs"],
            &["-mindepth", "1", "-maxdepth", "1"],
            &["-maxdepth", "0"],
        ];
        for search in searches {
            let Ok(theirs) = Command::new("find")
                .arg(".").args(search).arg("-print0").current_dir(world.tree("")).output() else { return };
            let ours = world.run([&["find", service.locator(), "."], search, &["-print0"]].concat());
            let sorted = |bytes: &[u8]| {
                let mut paths: Vec<Vec<u8>> = bytes.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
                paths.sort();
                paths
            };
            assert_eq!(status(&ours), 0, "{}", stderr(&ours));
            assert_eq!(sorted(&ours.stdout), sorted(&theirs.stdout), "{search:?}");
        }
        let rows = rows(&world.says(["find", "--json", "--type", "d", service.locator(), "sub"]));
        assert_eq!(rows[1]["path"], "sub/deep");
        let tsv = world.says(["find", "--tsv", service.locator()]);
        assert!(tsv.contains("./new\\nline\td\n") && tsv.contains("./\\xff\\xfe\td\n"), "{tsv}");
    }

    fn what_is_said_about_a_file_is_what_stat_says(_reactor: &Reactor) {
        let world = World::new();
        symlink("x", world.tree("link")).unwrap();
        let service = world.serve(&[]);
        for name in ["one", "sub", "link", "."] {
            // Reading a link is an access, the first of which is noted.
            world.says(["stat", service.locator(), name]);
            let tsv = world.says(["stat", "--tsv", service.locator(), name]);
            let format = "%n\t%a\t%h\t%u\t%g\t%s\t%X\t%Y\t%Z";
            let Some(theirs) = told_by("stat", &["-c", format, name], &world.tree("")) else { return };
            let ours: Vec<&str> = tsv.trim_end_matches('\n').split('\t').collect();
            let theirs: Vec<&str> = theirs.trim_end().split('\t').collect();
            assert_eq!(ours[0], theirs[0]);
            assert_eq!(ours[2].trim_start_matches('0'), theirs[1]);
            assert_eq!(ours[3..10], theirs[2..], "{name}");
        }
        // The whole text, but for what an older file system cannot tell.
        let Some(theirs) = told_by("stat", &["one"], &world.tree("")) else { return };
        let ours = world.says(["stat", service.locator(), "one"]);
        assert_eq!(ours.lines().next(), theirs.lines().next());
        assert_eq!(ours.lines().nth(1), theirs.lines().nth(1));
        let times = |text: &str| text.lines().filter(|line| line.starts_with("Modify")).collect::<String>();
        assert_eq!(times(&ours), times(&theirs));
        let json = &rows(&world.says(["stat", "--json", service.locator(), "one"]))[0];
        assert_eq!(json["inode"], fs::metadata(world.tree("one")).unwrap().ino());
    }

    fn a_file_is_put_whole(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&["--writable"]);
        let locator = service.locator();
        let local = world.file("secret");
        let local = local.to_str().unwrap();
        world.says(["put", local, locator, "sub/new"]);
        assert_eq!(fs::read_to_string(world.tree("sub/new")).unwrap(), "not yours\n");
        world.says(["put", "--mode", "600", local, locator, "one"]);
        assert_eq!(fs::read_to_string(world.tree("one")).unwrap(), "not yours\n");
        assert_eq!(fs::metadata(world.tree("one")).unwrap().mode() & 0o7777, 0o600);
        world.says(["put", local, locator, "sub/"]);
        assert!(world.tree("sub/secret").exists());
        assert_eq!(world.says(["put", "--tsv", local, locator, "t"]), "t\t10\n");
        let mut careful = Command::new("sh");
        careful.args(["-c", "umask 077; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sendright"), "put", local]);
        careful.args([locator, "careful"]).env("SENDRIGHT_VIA", world.file("socket"));
        assert!(careful.status().unwrap().success());
        assert_eq!(fs::metadata(world.tree("careful")).unwrap().mode() & 0o7777, 0o600);
        let mut command = world.command(["put", "-", locator, "piped"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through a pipe").unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(world.tree("piped")).unwrap(), "through a pipe");

        let everything = world.everything();
        assert!(world.fails(1, ["put", "-n", local, locator, "one"]).contains("there is something"));
        assert!(world.fails(1, ["put", local, locator, "no/where"]).contains("nothing of that name"));
        assert!(world.fails(1, ["put", "--mode", "4755", local, locator, "x"]).contains("set-user-id"));
        assert!(world.fails(1, ["put", "/nowhere/at/all", locator, "x"]).contains("No such file"));
        assert!(world.fails(2, ["put", "--mode", "rw", local, locator, "x"]).contains("octal"));
        assert!(world.fails(2, ["put", local, locator, "../x"]).contains("not a path beneath"));
        assert_eq!(world.everything(), everything);
    }

    fn who_is_killed_while_putting_leaves_nothing(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&["--writable"]);
        world.says(["ls", service.locator()]);
        let (everything, descriptors) = (world.everything(), service.descriptors());
        let mut command = world.command(["put", "-", service.locator(), "one"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(&[b'x'; 400_000]).unwrap();
        // Not by their number: who listed before may still be on the way out. A file system without files
        // that have no names shows it by its name.
        wait_until("the service has made a draft", || {
            service.has_draft_in(&world.tree("")) || world.everything() != everything
        });
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the service has let go", || {
            service.descriptors() <= descriptors && !service.has_draft_in(&world.tree(""))
        });
        assert_eq!(world.everything(), everything);
        assert_eq!(fs::read_to_string(world.tree("one")).unwrap(), "first\n");
    }

    fn things_are_changed_by_commands_of_their_own(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&["--writable"]);
        let locator = service.locator();
        world.says(["mkdir", "--mode", "750", locator, "new"]);
        world.says(["mv", locator, "one", "new/uno"]);
        world.says(["ln", locator, "sub/two", "new/due"]);
        world.says(["ln", "-s", locator, "../sub", "new/link"]);
        world.says(["chmod", "600", locator, "new/uno"]);
        world.says(["touch", locator, "new/fresh", "new/uno"]);
        assert_eq!(world.says(["ls", locator, "new"]), "due\nfresh\nlink\nuno\n");
        assert_eq!(fs::metadata(world.tree("new")).unwrap().mode() & 0o777, 0o750);
        assert_eq!(fs::metadata(world.tree("new/uno")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_link(world.tree("new/link")).unwrap(), std::path::Path::new("../sub"));
        assert!(world.fails(2, ["rm", locator, "."]).contains("the directory itself"));
        world.says(["rm", locator, "new/due", "new/fresh", "new/link", "new/uno"]);
        world.says(["rmdir", locator, "new"]);
        assert!(world.fails(1, ["rmdir", locator, "sub"]).contains("not empty"));
        assert!(world.fails(1, ["rm", locator, "sub"]).contains("of a kind"));
        assert!(world.fails(1, ["chmod", "4755", locator, "sub/two"]).contains("set-user-id"));
    }

    fn what_is_read_only_stays_as_it_is(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        let locator = service.locator();
        let everything = world.everything();
        let local = world.file("secret");
        let changes: [&[&str]; 7] = [
            &["put", local.to_str().unwrap(), locator, "one"],
            &["mkdir", locator, "new"],
            &["rm", locator, "one"],
            &["rmdir", locator, "sub/deep"],
            &["mv", locator, "one", "two"],
            &["chmod", "777", locator, "one"],
            &["touch", locator, "one"],
        ];
        for change in changes {
            assert!(world.fails(1, change).contains("read-only"), "{change:?}");
        }
        assert_eq!(world.everything(), everything);
        assert_eq!(fs::read_to_string(world.tree("one")).unwrap(), "first\n");
        assert_eq!(fs::metadata(world.tree("one")).unwrap().mode() & 0o777, 0o644);
    }

    fn no_link_leads_out(_reactor: &Reactor) {
        let world = World::new();
        symlink("../secret", world.tree("out")).unwrap();
        symlink("..", world.tree("up")).unwrap();
        let service = world.serve(&["--writable"]);
        let locator = service.locator();
        for path in ["out", "up/secret", "up/tree/one"] {
            assert!(world.fails(1, ["cat", locator, path]).contains("symbolic link"), "{path}");
        }
        assert_eq!(world.says(["ls", locator, "up"]), "up\n", "the link and not where it leads");
        for path in ["..", "../secret", "sub/../../secret"] {
            assert!(world.fails(2, ["cat", locator, path]).contains("not a path beneath"), "{path}");
        }
        let written = world.fails(1, ["put", world.file("socket").to_str().unwrap(), locator, "up/x"]);
        assert!(!written.is_empty());
        // A link itself is replaced, and what it points to is not touched.
        world.says(["put", world.tree("one").to_str().unwrap(), locator, "out"]);
        assert_eq!(fs::read_to_string(world.file("secret")).unwrap(), "not yours\n");
        assert_eq!(fs::read_to_string(world.tree("out")).unwrap(), "first\n");
    }

    fn a_pipe_in_the_tree_holds_up_nobody(_reactor: &Reactor) {
        let world = World::new();
        rustix::fs::mknodat(CWD, world.tree("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let service = world.serve(&[]);
        assert!(world.fails(1, ["cat", service.locator(), "pipe"]).contains("of a kind"));
        assert!(world.says(["stat", service.locator(), "pipe"]).contains("fifo"));
        assert_eq!(world.says(["cat", service.locator(), "one"]), "first\n");
    }

    fn a_large_directory_and_a_deep_one(_reactor: &Reactor) {
        let world = World::new();
        for number in 0..3_000 {
            File::create(world.tree(format!("sub/deep/{number:0>60}"))).unwrap();
        }
        let mut deep = world.tree("down");
        for _ in 0..200 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let service = world.serve(&[]);
        assert_eq!(world.says(["ls", service.locator(), "sub/deep"]).lines().count(), 3_000);
        // And the line with the total.
        assert_eq!(world.says(["ls", "-l", service.locator(), "sub/deep"]).lines().count(), 3_001);
        assert_eq!(world.says(["find", service.locator(), "down"]).lines().count(), 201);
    }

    fn with_few_descriptors_everything_goes_on(_reactor: &Reactor) {
        let world = World::new();
        for number in 0..300 {
            fs::create_dir(world.tree(format!("sub/{number}"))).unwrap();
            fs::write(world.tree(format!("sub/{number}/file")), number.to_string()).unwrap();
        }
        let command = world.command_with_descriptors(256, ["serve"]);
        let service = world.serve_as(command, &[], 1);
        let paths: Vec<String> = (0..300).map(|number| format!("sub/{number}/file")).collect();
        let mut cat = world.command_with_descriptors(80, ["cat", service.locator()]);
        let output = cat.args(&paths).output().unwrap();
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        assert_eq!(stdout(&output), (0..300).map(|number| number.to_string()).collect::<String>());
        assert_eq!(world.says(["find", "-type", "f", service.locator()]).lines().count(), 303);
        // Several holders at a time, and none is left out for good.
        let holders: Vec<Holder> = (0..6)
            .map(|_| Holder::start(&world, &[], service.locator(), "$PROGRAM cat --fd $SENDRIGHT_FD one"))
            .collect();
        for holder in holders {
            let output = holder.goes_on();
            assert_eq!(stdout(&output), "first\n", "{}", stderr(&output));
        }
    }

    fn who_does_not_read_answers_leaves_descriptors_to_others(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve_as(world.command_with_descriptors(256, ["serve"]), &[], 1);
        let script = world.file("flood.py");
        fs::write(&script, FLOOD).unwrap();
        let mut command = world.command(["forward", service.locator(), "--", "python3"]);
        command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut greedy = command.spawn().unwrap();
        let mut told = String::new();
        BufReader::new(greedy.stdout.as_mut().unwrap()).read_line(&mut told).unwrap();
        if told.is_empty() && greedy.wait().unwrap().code() == Some(1) {
            println!("skipped: there is no python3");
            return;
        }
        assert_eq!(told, "asked\n");
        assert_eq!(world.says(["cat", service.locator(), "one"]), "first\n");
        drop(greedy.stdin.take());
        greedy.wait().unwrap();
    }

    fn a_wrong_secret_looks_like_one_that_was_taken_back(_reactor: &Reactor) {
        let world = World::new();
        let key = world.file("key");
        let service = world.serve(&["--key", key.to_str().unwrap(), "--name", "anne", "--name", "bert"]);
        let (anne, bert) = (service.locator_of("anne"), service.locator_of("bert"));
        let secret = |locator: &str| locator.split("/s/").nth(1).unwrap()[..43].to_owned();
        let other = if secret(anne).starts_with('x') { "y" } else { "x" };
        let flipped = other.to_owned() + &secret(anne)[1..];
        let wrong = world.fails(1, ["ls", &anne.replace(&secret(anne), &flipped)]);
        let short = world.fails(1, ["ls", &anne.replace(&secret(anne), "YQ")]);
        world.says(["grants", "--key", key.to_str().unwrap(), "revoke", "bert"]);
        let revoked = world.fails(1, ["ls", bert]);
        assert_eq!(wrong, short);
        assert_eq!(wrong, revoked);
        assert!(wrong.contains("opens nothing"), "{wrong}");
        assert!(!wrong.contains(&flipped), "a secret is not printed");
        world.says(["ls", anne]);
    }

    /// Four of one key may stand at the door. They are sent away in the end, and keep nobody else out.
    fn strangers_who_say_nothing_keep_nobody_out(reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        let reference: introduction::SturdyRef = service.locator().parse().unwrap();
        testing::settle(reactor, async {
            let netlayer = Netlayer::new(reactor, Identity::generate().unwrap());
            let line = daemon::line(reactor, &world.file("socket")).await;
            let _gone = netlayer.add_server(line, Expect::default()).await.unwrap();
            let mut silent = Vec::new();
            for _ in 0..6 {
                let connection = netlayer.connect(&reference.locator).await.unwrap();
                silent.push(connection.into_seqpacket().unwrap());
            }
            assert_eq!(world.says(["ls", service.locator()]), "one\nsub\n");
            for connection in &silent {
                assert!(matches!(connection.receive().await, Err(ReceiveError::Closed)));
            }
            // Nonsense is answered as a wrong secret is.
            for nonsense in [&b"GET / HTTP/1.1"[..], b"SRF1", b"SRF1wrong", &[b'x'; 60_000]] {
                let connection = netlayer.connect(&reference.locator).await.unwrap();
                let connection = connection.into_seqpacket().unwrap();
                connection.send(nonsense).await.unwrap();
                assert_eq!(connection.receive().await.unwrap().bytes(), [1]);
                assert!(matches!(connection.receive().await, Err(ReceiveError::Closed)));
            }
        });
        assert_eq!(world.says(["ls", service.locator()]), "one\nsub\n");
    }

    fn a_mistake_in_a_locator_is_told(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        let locator = service.locator();
        let (without, _) = locator.split_once("/s/").unwrap();
        let hints = locator.split_once('?').unwrap().1;
        assert!(world.fails(2, ["ls", &format!("{without}?{hints}")]).contains("no secret"));
        assert!(world.fails(2, ["ls", "sub"]).contains("ocapn://"));
        assert!(world.fails(2, ["ls", &locator.replace("unix-domain-socket", "tcp")]).contains("transport"));
        assert!(world.fails(2, ["ls"]).contains("LOCATOR"));
        let unhinted = locator.split_once('?').unwrap().0.to_owned();
        let told = world.fails(2, ["ls", &(unhinted.clone() + "?proof=1")]);
        assert!(told.contains("no introduction server"), "{told}");
        let unproved = locator.replace("&proof=1", "");
        assert_ne!(unproved, locator);
        assert!(world.fails(2, ["ls", &unproved]).contains("demands no proof"));
        let other = locator.split_once('?').unwrap().0.to_owned()
            + "?beeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeq=t&proof=1&seqpacket=t";
        let told = world.fails(1, ["ls", &other]);
        assert!(told.contains("not the server that was expected"), "{told}");
        assert!(world.fails(1, ["ls", "--via", "/nowhere", locator]).contains("/nowhere: No such file"));
        let output = world.command(["ls", locator]).env_remove("SENDRIGHT_VIA").output().unwrap();
        assert_eq!(status(&output), 2);
        assert!(stderr(&output).contains("SENDRIGHT_VIA"), "{}", stderr(&output));
        // From a file, which others cannot see as they can see a command line.
        let file = world.file("locator");
        fs::write(&file, format!("{locator}\n")).unwrap();
        assert_eq!(world.says(["ls", &format!("@{}", file.display())]), "one\nsub\n");
    }

    fn a_service_that_is_started_again_has_the_same_locators(_reactor: &Reactor) {
        let world = World::new();
        let key = world.file("key");
        let arguments =
            ["--writable", "--key", key.to_str().unwrap(), "--name", "anne:ro", "--name", "bert=sub"];
        let service = world.serve(&arguments);
        let before = service.locators.clone();
        service.kill();
        let service = world.serve(&arguments);
        assert_eq!(service.locators, before);
        assert_eq!(world.says(["ls", service.locator_of("bert")]), "deep\ntwo\n");
        assert!(world.fails(1, ["rm", service.locator_of("anne"), "one"]).contains("read-only"));
        world.says(["rm", service.locator_of("bert"), "two"]);
        for name in ["key", "key.grants", "key.lock", "key.control"] {
            assert_eq!(fs::metadata(world.file(name)).unwrap().mode() & 0o077, 0, "{name}");
        }
        // A second one with the same key is refused; one without a key is somebody else.
        assert!(world
            .fails(1, ["serve", "--key", key.to_str().unwrap(), world.tree("").to_str().unwrap()])
            .contains("another process"));
        let other = world.serve(&[]);
        assert_ne!(other.locator()[..60], before[0].1[..60]);
    }

    fn a_grant_is_taken_back_with_all_that_came_of_it(_reactor: &Reactor) {
        let world = World::new();
        let key = world.file("key");
        let key = key.to_str().unwrap();
        let arguments = ["--key", key, "--name", "anne", "--name", "bert"];
        let service = world.serve(&arguments);
        // A program holds a directory that was opened from what was granted; another one holds a file.
        let annes = service.locator_of("anne");
        let script = "$PROGRAM ls --fd $SENDRIGHT_FD";
        let held = Holder::start(&world, &["--path", "sub"], annes, script);
        let lent = Holder::start(&world, &["--read-only", "--until-exit"], annes, script);
        let berts = Holder::start(&world, &[], service.locator_of("bert"), script);
        let listed = world.says(["grants", "--key", key, "list"]);
        let of_anne: Vec<&str> = listed.lines().next().unwrap().split('\t').collect();
        assert_eq!(of_anne[..4], ["anne", "ro", "", "2"], "{listed}");

        world.says(["grants", "--key", key, "revoke", "anne"]);

        for holder in [held, lent] {
            let output = holder.goes_on();
            assert_ne!(status(&output), 0, "{}", stdout(&output));
            assert_eq!(stdout(&output), "");
        }
        assert_eq!(stdout(&berts.goes_on()), "one\nsub\n");
        assert!(world.fails(1, ["ls", annes]).contains("opens nothing"));
        world.says(["ls", service.locator_of("bert")]);
        assert!(world.fails(1, ["grants", "--key", key, "revoke", "anne"]).contains("nothing is granted"));

        // Also after a restart: the old locator stays dead, and a grant of the same name is another.
        let before = annes.to_owned();
        service.kill();
        let service = world.serve(&arguments);
        assert_ne!(service.locator_of("anne"), before);
        assert!(world.fails(1, ["ls", &before]).contains("opens nothing"));
    }

    fn a_grant_is_taken_back_while_nobody_serves(_reactor: &Reactor) {
        let world = World::new();
        let key = world.file("key");
        let key = key.to_str().unwrap();
        let service = world.serve(&["--key", key, "--name", "anne", "--name", "bert"]);
        let annes = service.locator_of("anne").to_owned();
        service.kill();
        world.says(["grants", "--key", key, "revoke", "anne"]);
        assert!(world.fails(1, ["grants", "--key", key, "revoke", "anne"]).contains("nothing is granted"));
        let service = world.serve(&["--key", key]);
        assert_eq!(service.locators[0].0, "bert");
        assert!(world.fails(1, ["ls", &annes]).contains("opens nothing"));
    }

    fn a_slip_of_the_pen_makes_and_removes_nothing(_reactor: &Reactor) {
        let world = World::new();
        let (key, tree) = (world.file("key"), world.tree(""));
        let (key, tree) = (key.to_str().unwrap(), tree.to_str().unwrap());
        assert!(world.fails(1, ["grants", "--key", key, "list"]).contains("No such file"));
        assert!(!world.file("key.lock").exists());
        world.serve(&["--key", key, "--writable", "--name", "anne"]).kill();
        let told = world.fails(2, ["serve", "--key", key, "--name", "bert", tree]);
        assert!(told.contains("--name anne:ro"), "{told}");
        assert!(!world.says(["grants", "--key", key, "list"]).contains("bert"));
        let precious = world.file("key.control");
        fs::remove_file(&precious).unwrap();
        fs::write(&precious, "precious").unwrap();
        assert!(world.fails(1, ["serve", "--key", key, "--writable", tree]).contains("is no socket"));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    fn something_more_is_granted_while_it_serves(_reactor: &Reactor) {
        let world = World::new();
        let key = world.file("key");
        let key = key.to_str().unwrap();
        let service = world.serve(&["--key", key, "--writable"]);
        let more = world.says(["grants", "--key", key, "add", "carl:ro=sub"]);
        assert_eq!(world.says(["ls", more.trim()]), "deep\ntwo\n");
        assert!(world.fails(1, ["rm", more.trim(), "two"]).contains("read-only"));
        assert!(world.fails(1, ["grants", "--key", key, "add", "x=nowhere"]).contains("no directory"));
        assert!(world.fails(1, ["grants", "--key", key, "add", "x=../.."]).contains("not a path"));
        let rows = rows(&world.says(["grants", "--key", key, "list", "--json"]));
        assert_eq!((&rows[1]["name"], &rows[1]["locator"]), (&"carl".into(), &more.trim().into()));
        drop(service);
        assert!(world.fails(1, ["grants", "--key", key, "add", "dora"]).contains("no service runs"));
    }

    fn a_connection_outlives_the_introduction_server(_reactor: &Reactor) {
        let mut world = World::new();
        fs::write(world.tree("large"), vec![b'x'; 30_000_000]).unwrap();
        let service = world.serve(&["--writable"]);
        let script = "$PROGRAM cat --fd $SENDRIGHT_FD large | wc -c";
        let holder = Holder::start(&world, &[], service.locator(), script);
        // In the midst of a transfer, in the other direction.
        let mut put = world.command(["put", "-", service.locator(), "put"]);
        let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
        put.stdin.as_mut().unwrap().write_all(&[b'y'; 1_000_000]).unwrap();
        let descriptors = service.descriptors();
        wait_until("it has a draft", || service.descriptors() >= descriptors);

        world.kill_introducer();

        put.stdin.as_mut().unwrap().write_all(&[b'y'; 1_000_000]).unwrap();
        drop(put.stdin.take());
        assert!(put.wait().unwrap().success());
        assert_eq!(fs::metadata(world.tree("put")).unwrap().len(), 2_000_000);
        assert_eq!(stdout(&holder.goes_on()).trim(), "30000000");
        assert!(!world.fails(1, ["ls", service.locator()]).is_empty());

        world.start_introducer();
        wait_until("the service is found again", || status(&world.run(["ls", service.locator()])) == 0);
        assert!(service.complaints().contains("the server is gone"), "{}", service.complaints());
    }

    fn a_server_that_takes_no_connection_is_given_up(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        let stopped = world.file("stopped");
        let address = SocketAddrUnix::new(&stopped).unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let listener = socket();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = socket();
        rustix::net::connect(&waiting, &address).unwrap();
        let stopped = stopped.to_str().unwrap();
        let told = world.fails(1, ["ls", "--via", stopped, "--timeout", "1", service.locator()]);
        assert!(told.contains("does not take the connection"), "{told}");
        // And a service that knows another one is to be found there all the same.
        let other = world.serve(&["--via", stopped, "--via", world.file("socket").to_str().unwrap()]);
        assert_eq!(world.says(["ls", other.locator()]), "one\nsub\n");
    }

    fn a_service_of_two_servers_names_them_as_they_were_said(_reactor: &Reactor) {
        let world = World::new();
        let folder = daemon::folder();
        let other = Daemon::start(folder.path());
        let known = world.introducer.as_ref().unwrap();
        for servers in [[known, &other], [&other, known]] {
            let [first, second] = servers.map(|server| server.socket().to_str().unwrap().to_owned());
            let service = world.serve(&["--via", &first, "--via", &second]);
            let hints = format!("?{}=t&{}=t&", servers[0].key, servers[1].key);
            assert!(service.locator().contains(&hints), "{}", service.locator());
            for via in [first, second] {
                assert_eq!(world.says(["ls", "--via", &via, service.locator()]), "one\nsub\n");
            }
        }
    }

    fn a_service_that_does_not_answer_is_given_up_when_that_was_said(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        rustix::process::kill_process(service.pid(), Signal::STOP).unwrap();
        let mut patient = world.command(["ls", "--timeout", "60", service.locator()]);
        let mut patient = patient.stderr(Stdio::null()).spawn().unwrap();
        let told = world.fails(1, ["ls", "--timeout", "1", service.locator()]);
        assert!(told.contains("does not answer"), "{told}");
        assert!(patient.try_wait().unwrap().is_none(), "it waits longer");
        rustix::process::kill_process(service.pid(), Signal::CONT).unwrap();
        assert!(patient.wait().unwrap().success(), "and is answered");
    }

    fn a_service_that_is_started_first_waits_for_the_server(_reactor: &Reactor) {
        let mut world = World::new();
        world.kill_introducer();
        let key = world.file("key");
        let mut command = world.command(["serve", "--key", key.to_str().unwrap()]);
        command.arg(world.tree("")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut told = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut told).unwrap();
        // Or it found the listener of the one that was killed, which its ring holds for a moment longer.
        assert!(told.contains("trying again"), "{told}");
        world.start_introducer();
        let mut locator = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut locator).unwrap();
        assert_eq!(world.says(["ls", locator.trim()]), "one\nsub\n");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn a_program_finds_the_directory_among_its_descriptors(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&["--writable"]);
        let run = |options: &[&str], script: &str| {
            let mut command = world.command(["forward"]);
            command.args(options).arg(service.locator()).args(["--", "sh", "-c", script]);
            command.env("PROGRAM", env!("CARGO_BIN_EXE_sendright")).env_remove("SENDRIGHT_VIA");
            command.env("SENDRIGHT_VIA", world.file("socket")).output().unwrap()
        };
        let output = run(&[], "echo $SENDRIGHT_FD; $PROGRAM cat --fd 3 sub/two");
        assert_eq!(stdout(&output), "3\nsecond\n", "{}", stderr(&output));
        // It has that one and what it would have had anyway.
        let count = |output: &std::process::Output| stdout(output).trim().parse::<usize>().unwrap();
        let script = "ls /proc/self/fd | wc -l";
        let without = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output();
        let with = run(&[], script);
        assert_eq!(count(&with), count(&without.unwrap()) + 1, "{}", stderr(&with));
        let output = run(&["--path", "sub"], "$PROGRAM ls --fd 3; $PROGRAM cat --fd 3 ../one");
        assert_eq!(stdout(&output), "deep\ntwo\n");
        let output = run(&["--read-only"], "$PROGRAM rm --fd 3 one");
        assert!(stderr(&output).contains("read-only"), "{}", stderr(&output));
        let output = run(&["--read-only", "--until-exit"], "$PROGRAM cat --fd 3 one; exit 7");
        assert_eq!((status(&output), stdout(&output).as_str()), (7, "first\n"), "{}", stderr(&output));
        assert_eq!(status(&run(&[], "exit 9")), 9);
        assert_eq!(run(&["--until-exit"], "kill -9 $$").status.code(), Some(137));
        let output = world.run(["forward", service.locator(), "--", "/nowhere/at/all"]);
        assert_eq!(status(&output), 1);
        assert!(stderr(&output).contains("/nowhere/at/all: No such file"), "{}", stderr(&output));
        assert!(world.tree("one").exists());
    }

    fn what_was_lent_until_exit_is_gone_with_the_program(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        // It leaves behind a child that holds on to the directory.
        let out = world.file("out");
        let mut command = world.command(["forward", "--until-exit", service.locator()]);
        command.args(["--", "sh", "-c", "mkfifo \"$OUT.go\"; (read line < \"$OUT.go\"; \
            $PROGRAM cat --fd 3 one) > \"$OUT\" 2>&1 & exit 0"]);
        command.env("PROGRAM", env!("CARGO_BIN_EXE_sendright")).env("OUT", &out);
        assert!(command.status().unwrap().success());
        fs::write(world.file("out.go"), "\n").unwrap();
        wait_until("it has tried", || fs::read_to_string(&out).is_ok_and(|text| text.contains("sendright")));
        assert!(!fs::read_to_string(&out).unwrap().contains("first"));
    }

    fn a_program_in_another_language_speaks_to_the_directory(_reactor: &Reactor) {
        let world = World::new();
        let service = world.serve(&[]);
        let script = world.file("peer.py");
        fs::write(&script, PYTHON).unwrap();
        let mut command = world.command(["forward", service.locator(), "--", "python3"]);
        let output = command.arg(&script).output().unwrap();
        if stderr(&output).contains("python3: No such file") {
            println!("skipped: there is no python3");
            return;
        }
        assert_eq!(stdout(&output), ".hidden\none\nsub\nsecond\n", "{}", stderr(&output));
    }

    fn nothing_commands_a_terminal(_reactor: &Reactor) {
        let world = World::new();
        let name = OsStr::from_bytes(b"\x1b]0;title\x07\xff");
        fs::write(world.tree(name), "\x1b[2Jcleared\n").unwrap();
        symlink(OsStr::from_bytes(b"\x1b[31m"), world.tree("link")).unwrap();
        let service = world.serve(&[]);
        let program = env!("CARGO_BIN_EXE_sendright");
        // On a terminal of its own, which `script` makes.
        let Ok(there) = Command::new("script").arg("--version").output() else { return };
        if !there.status.success() {
            return;
        }
        let commands = [
            "ls", "ls -l", "find", "stat", "cat",
        ];
        for words in commands {
            let path = if words == "cat" || words == "stat" { "\"$NAME\" link" } else { "" };
            let line = format!("{program} {words} '{}' {path}", service.locator());
            let mut command = Command::new("script");
            command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null());
            command.env("SENDRIGHT_VIA", world.file("socket")).env("NAME", name).env("NO_COLOR", "1");
            command.env("SHELL", "/bin/sh").env("TERM", "dumb");
            let output = command.output().unwrap();
            let is_odd = |byte: &u8| *byte < 32 && !b"\r\n\t".contains(byte);
            let odd: Vec<u8> = output.stdout.iter().copied().filter(is_odd).collect();
            assert!(!output.stdout.is_empty());
            assert!(odd.is_empty(), "{words}: {:?}", String::from_utf8_lossy(&output.stdout));
        }
    }

    fn each_command_explains_itself(_reactor: &Reactor) {
        let world = World::new();
        let commands = [
            "serve", "grants", "ls", "cat", "put", "stat", "find", "mkdir", "rmdir", "rm", "mv", "ln",
            "chmod", "touch", "forward",
        ];
        for command in commands {
            assert!(world.says([command, "--help"]).contains("Usage:"), "{command}");
        }
        let tree = world.tree("");
        let tree = tree.to_str().unwrap();
        assert!(world.fails(1, ["serve", "/nowhere/at/all"]).contains("/nowhere/at/all: No such file"));
        assert!(world.fails(2, ["serve", "--name", "a:rw", tree]).contains("--writable"));
        assert!(world.fails(2, ["serve", "--name", "a b", tree]).contains("--name"));
        assert!(world.fails(2, ["ls", "--fd", "77"]).contains("descriptor 77 is not open"));
        assert!(world.fails(1, ["grants", "--key", "/nowhere/key", "list"]).contains("/nowhere"));
    }

    /// Counted, since the documentation has a table of it.
    fn a_file_is_opened_with_few_system_calls(_reactor: &Reactor) {
        if Command::new("strace").arg("-V").output().is_err() {
            println!("skipped: there is no strace");
            return;
        }
        const FEW: usize = 50;
        const MANY: usize = 250;
        let world = World::new();
        let counted = |files: usize| {
            let (of_service, of_client) = (world.file("service.count"), world.file("client.count"));
            let mut command = Command::new("strace");
            command.args(["-f", "-c", "-o"]).arg(&of_service).arg(env!("CARGO_BIN_EXE_sendright"));
            command.arg("serve").env("SENDRIGHT_VIA", world.file("socket"));
            command.env(ring::DRIVER_VARIABLE, testing::driver().to_string());
            let service = world.serve_as(command, &[], 1);
            let mut command = Command::new("strace");
            command.args(["-f", "-c", "-o"]).arg(&of_client).arg(env!("CARGO_BIN_EXE_sendright"));
            command.args(["cat", service.locator()]).args(vec!["sub/two"; files]);
            command.env("SENDRIGHT_VIA", world.file("socket")).stdout(Stdio::null());
            command.env(ring::DRIVER_VARIABLE, testing::driver().to_string());
            assert!(command.status().unwrap().success());
            // strace writes its count when what it watches has ended.
            let children = format!("/proc/{0}/task/{0}/children", service.child.id());
            let watched = fs::read_to_string(children).unwrap();
            let watched = rustix::process::Pid::from_raw(watched.trim().parse().unwrap()).unwrap();
            rustix::process::kill_process(watched, rustix::process::Signal::TERM).unwrap();
            wait_until("strace has counted", || {
                fs::read_to_string(&of_service).is_ok_and(|text| text.contains("total"))
            });
            drop(service);
            let of_service = calls(&of_service);
            (of_service, calls(&of_client))
        };
        let (few, many) = (counted(FEW), counted(MANY));
        let each = |few: &[(String, usize)], many: &[(String, usize)]| -> Vec<(String, f64)> {
            let before = |name: &str| few.iter().find(|(of, _)| of == name).map_or(0, |(_, count)| *count);
            let rise = |(name, count): &(String, usize)| {
                (name.clone(), (*count as f64 - before(name) as f64) / (MANY - FEW) as f64)
            };
            many.iter().map(rise).filter(|(_, rise)| *rise > 0.04).collect()
        };
        let (service, client) = (each(&few.0, &many.0), each(&few.1, &many.1));
        println!("the service, for each open: {service:?}");
        println!("the client, for each open, read and closed: {client:?}");
        let of = |counts: &[(String, f64)], names: &[&str]| -> f64 {
            counts.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, rise)| rise).sum()
        };
        let talking = [
            "io_uring_enter", "sendto", "sendmsg", "recvmsg", "epoll_wait", "epoll_pwait", "epoll_pwait2",
            "epoll_ctl",
        ];
        let looking = ["openat2", "fstat", "newfstatat", "close"];
        assert!(of(&service, &looking) <= 3.2, "{service:?}");
        // A send, a wait, a receive, and a receive that finds nothing more; on epoll a client waits twice.
        let is_uring = testing::driver().to_string() == "uring";
        let (of_service, of_client) = (4.2, if is_uring { 4.2 } else { 5.2 });
        assert!(of(&service, &talking) <= of_service, "{service:?}");
        assert!(of(&client, &talking) <= of_client, "{client:?}");
        // Nothing else: no thread is woken to close what was opened.
        // (A debugging build asks before each close whether the descriptor is open.)
        let all: f64 = service.iter().filter(|(name, _)| name != "fcntl").map(|(_, rise)| rise).sum();
        assert!(all <= of_service + 3.2, "{service:?}");
    }
}

/// Names and counts of a table of strace's.
fn calls(table: &std::path::Path) -> Vec<(String, usize)> {
    let text = fs::read_to_string(table).unwrap();
    let rows = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    rows.filter_map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        Some(((*words.last()?).to_owned(), words.get(3)?.parse().ok()?))
    })
    .filter(|(name, _)| name != "total")
    .collect()
}

/// Attaches to the directory, lists it and reads a file, with nothing but what Python brings.
const PYTHON: &str = r#"
import array, os, socket, struct, sys

address = socket.socket(fileno=int(os.environ["SENDRIGHT_FD"]))
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
socket.send_fds(address, [b"c"], [far.fileno()])
far.close()
near.recv(65536)  # HELLO

def call(number, request):
    # CALL: no descriptors, room for one in the answer, no flags, room for 32 KiB.
    near.send(struct.pack("<IIBBBBI", len(request), number, 2, 0, 1, 0, 32768) + request)
    while True:
        data, fds, flags, _ = socket.recv_fds(near, 65536, 16)
        while data:
            length, about, kind = struct.unpack_from("<IIB", data)
            payload, data = data[16 : 16 + length], data[16 + length :]
            if about == number and kind == 3:  # ANSWER
                assert payload[0] == 0, "refused"
                return payload[1:], fds

page, _ = call(1, struct.pack("<BQ", 1, 0))  # list, from the beginning
entries, names = page[9:], []
while entries:
    kind, length = struct.unpack_from("<BH", entries)
    names.append(entries[3 : 3 + length])
    entries = entries[3 + length :]
for name in sorted(names):
    print(name.decode())
size, fds = call(2, b"\x05\x00sub/two")  # content, to read
assert struct.unpack("<Q", size) == (7,)
print(os.read(fds[0], 100).decode(), end="")
"#;

/// Asks for a file as often as a packet can be sent, and takes none of them.
const FLOOD: &str = r#"
import os, socket, struct, sys, time

address = socket.socket(fileno=int(os.environ["SENDRIGHT_FD"]))
sessions = []
for _ in range(4):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(address, [b"c"], [far.fileno()])
    far.close()
    near.recv(65536)  # HELLO
    near.setblocking(False)
    sessions.append(near)
    request = b"\x05\x00one"  # content, to read
    sent, patience = 0, 100
    # The answers that fit into the socket, and then some more, but few enough not to be turned out.
    while sent < 338 and patience:
        try:
            near.send(struct.pack("<IIBBBBI", len(request), sent, 2, 0, 1, 0, 32768) + request)
            sent += 1
        except BlockingIOError:
            time.sleep(0.01)
            patience -= 1
        except OSError:
            break
print("asked", flush=True)
sys.stdin.read()
"#;
