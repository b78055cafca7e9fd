//! `sendright introduce`: how it takes its place and leaves it, who may connect, what it is told and what it
//! tells, and that nothing a peer does concerns anybody else.
#![allow(clippy::unwrap_used)]

mod daemon;
mod program;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use daemon::{Daemon, command, folder, introduces, line, meet, told};
use introduction::{AddServerError, ConnectError, Expect, Identity, Locator, Netlayer, PublicKey};
use program::{at, run, sendright, status, stderr, stdout};
use ring::{Reactor, Socket};
use rustix::process::Signal;
use testing::{Errno, helper, in_own_process, on_each_driver, settle, start_helper};

/// Whoever tries to register sees the end instead.
async fn is_turned_away(reactor: &Reactor, daemon: &Daemon) {
    let netlayer = Netlayer::new(reactor, Identity::from_seed(&[77; 32]));
    let line = daemon.line(reactor).await;
    let refused = netlayer.add_server(line, Expect::key(daemon.key)).await;
    assert!(matches!(refused, Err(AddServerError::Closed)), "{refused:?}");
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Somebody of that key who has never been there.
fn nobody(server: PublicKey) -> Locator {
    let mut locator = Locator::new(Identity::from_seed(&[99; 32]).key());
    locator.hints.servers.insert(server);
    locator.hints.seqpacket = true;
    locator
}

/// Whether the machine can confine anybody.
fn has_landlock(daemon: &Daemon) -> bool {
    let confined = daemon.log().contains("confined landlock=");
    if !confined {
        println!("skipped: landlock: {}", daemon.log());
    }
    confined
}

/// As a supervisor starts a service: with sockets, and with its own process id in the environment.
fn handed_over(folder: &Path, sockets: Vec<OwnedFd>, names: &str, arguments: &[&str]) -> Command {
    let mut shell = at("sh".as_ref());
    told(&mut shell, folder);
    shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sendright")]);
    shell.args(["introduce", "--fresh-key"]).args(arguments);
    shell.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    let numbered = sockets.into_iter().zip(3..).collect();
    ring::inherit::give(&mut shell, numbered);
    shell
}

fn listener(path: &Path) -> OwnedFd {
    UnixListener::bind(path).unwrap().into()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

/// The names in a folder, but for the log.
fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "log").collect();
    names.sort();
    names
}

helper! {
    /// Says what became of its attempt to register, as somebody who owns nothing.
    fn registers_as_nobody(descriptors: Vec<OwnedFd>) {
        testing::become_nobody();
        let reactor = testing::reactor();
        let path = testing::helper_argument();
        let said = settle(&reactor, async {
            let netlayer = Netlayer::new(&reactor, Identity::from_seed(&[51; 32]));
            let line = line(&reactor, Path::new(&path)).await;
            match netlayer.add_server(line, Expect::default().bound()).await {
                Ok(_) => "registered",
                Err(AddServerError::Closed) => "turned away",
                Err(error) => panic!("{error}"),
            }
        });
        testing::send_packet(&descriptors[0], said.as_bytes(), &[]).unwrap();
    }

    fn stays_until_it_is_killed(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let path = testing::helper_argument();
        settle(&reactor, async {
            let netlayer = Netlayer::new(&reactor, Identity::from_seed(&[50; 32]));
            let line = line(&reactor, Path::new(&path)).await;
            let _gone = netlayer.add_server(line, Expect::default()).await.unwrap();
            // Half of something.
            let half = Socket::wrap(&reactor, daemon::line(&reactor, Path::new(&path)).await).unwrap();
            half.send("<12'uds:reg").await.unwrap();
            testing::send_packet(&descriptors[0], b"registered", &[]).unwrap();
            netlayer.incoming().await;
        });
    }
}

on_each_driver! {
    fn two_programs_meet_and_keep_what_they_have_when_it_ends(reactor: &Reactor) {
        let folder = folder();
        let daemon = Daemon::start(folder.path());
        settle(reactor, async {
            let (anne, annes) = daemon.netlayer(reactor, 1).await;
            let (bert, berts) = daemon.netlayer(reactor, 2).await;
            let near = anne.connect(&bert.our_location()).await.unwrap().into_seqpacket().unwrap();
            let far = bert.incoming().await.accept().into_seqpacket().unwrap();
            daemon.ends_well(Signal::TERM);
            annes.await;
            berts.await;
            near.send("still here").await.unwrap();
            assert_eq!(far.receive().await.unwrap().bytes(), b"still here");
        });
        assert_eq!(names(folder.path()), Vec::<String>::new(), "it leaves nothing behind");
    }

    fn it_ends_well_in_the_midst_of_an_introduction(reactor: &Reactor) {
        for signal in [Signal::TERM, Signal::INT] {
            let folder = folder();
            let daemon = Daemon::start_with(folder.path(), ["--introduction-time", "1000"]);
            settle(reactor, async {
                let (anne, gone) = daemon.netlayer(reactor, 1).await;
                let waiting = anne.connect(&nobody(daemon.key)).await.unwrap().into_seqpacket().unwrap();
                daemon.ends_well(signal);
                gone.await;
                assert!(waiting.receive().await.is_err(), "nobody keeps the other end");
            });
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }

    fn what_a_killed_one_left_behind_is_replaced(reactor: &Reactor) {
        let folder = folder();
        let first = Daemon::start(folder.path());
        first.kill();
        assert!(folder.path().join("socket").exists());
        let second = Daemon::start(folder.path());
        settle(reactor, introduces(reactor, &second));
        second.ends_well(Signal::TERM);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    /// Whoever had met goes on; whoever is being introduced is told; and the next one serves both, by the
    /// same path.
    fn those_who_were_there_when_it_was_killed_go_to_the_next(reactor: &Reactor) {
        let folder = folder();
        let first = Daemon::start(folder.path());
        settle(reactor, async {
            let (anne, annes) = first.netlayer(reactor, 1).await;
            let (bert, berts) = first.netlayer(reactor, 2).await;
            let near = anne.connect(&bert.our_location()).await.unwrap().into_seqpacket().unwrap();
            let far = bert.incoming().await.accept().into_seqpacket().unwrap();
            let waiting = anne.connect(&nobody(first.key)).await.unwrap().into_seqpacket().unwrap();
            first.kill();
            annes.await;
            berts.await;
            assert!(waiting.receive().await.is_err(), "nobody keeps the other end");
            assert!(matches!(anne.connect(&nobody(PublicKey([0; 32]))).await, Err(ConnectError::NoServer)));
            let second = Daemon::start(folder.path());
            for netlayer in [&anne, &bert] {
                let line = second.line(reactor).await;
                let _gone = netlayer.add_server(line, Expect::key(second.key)).await.unwrap();
            }
            let anew = anne.connect(&bert.our_location()).await.unwrap().into_seqpacket().unwrap();
            let taken = bert.incoming().await.accept().into_seqpacket().unwrap();
            for (near, far) in [(near, far), (anew, taken)] {
                near.send("still here").await.unwrap();
                assert_eq!(far.receive().await.unwrap().bytes(), b"still here");
            }
            second.ends_well(Signal::TERM);
        });
    }

    fn one_that_serves_is_left_alone(reactor: &Reactor) {
        let folder = folder();
        let daemon = Daemon::start(folder.path());
        let second = Daemon::try_start(command(folder.path()), folder.path());
        assert_eq!(second.err().unwrap().code(), Some(1));
        daemon.logs("another server has it");
        settle(reactor, introduces(reactor, &daemon));
    }

    fn of_several_started_at_once_one_serves(reactor: &Reactor) {
        for round in 0..5 {
            let folder = folder();
            // Each other time there is something to replace.
            if round % 2 == 1 {
                drop(UnixListener::bind(folder.path().join("socket")).unwrap());
            }
            let start = |_| {
                let (command, path) = (command(folder.path()), folder.path().to_owned());
                std::thread::spawn(move || Daemon::try_start(command, &path))
            };
            let starting: Vec<_> = (0..4).map(start).collect();
            let started: Vec<_> = starting.into_iter().map(|thread| thread.join().unwrap()).collect();
            let (served, refused): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
            assert_eq!(served.len(), 1);
            assert!(refused.iter().all(|it| it.as_ref().err().unwrap().code() == Some(1)));
            let daemon = served.into_iter().next().unwrap().ok().unwrap();
            settle(reactor, introduces(reactor, &daemon));
            daemon.ends_well(Signal::TERM);
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }

    fn its_driver_is_the_one_asked_for(_reactor: &Reactor) {
        let folder = folder();
        let driver = testing::driver().to_string();
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        assert!(daemon.metrics().contains(&format!("driver=\"{driver}\"")), "{}", daemon.metrics());
    }

    fn a_socket_that_is_handed_over_is_served_and_stays(reactor: &Reactor) {
        let folder = folder();
        let (peers, counters) = (folder.path().join("socket"), folder.path().join("metrics"));
        let sockets = vec![listener(&counters), listener(&peers)];
        let command = handed_over(folder.path(), sockets, "metrics:introduce", &[]);
        let daemon = Daemon::start_as(command, folder.path());
        settle(reactor, introduces(reactor, &daemon));
        daemon.counts("passed_on_total", 1);
        daemon.ends_well(Signal::TERM);
        assert_eq!(names(folder.path()), ["metrics", "socket"], "they belong to whoever made them");
    }

    fn a_supervisor_is_told_how_it_goes(_reactor: &Reactor) {
        let folder = folder();
        let path = folder.path().join("notify");
        let by_path = (UnixDatagram::bind(&path).unwrap(), path.into_os_string().into_string().unwrap());
        let name = format!("sendright-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"));
        for (supervisor, name) in [by_path, by_name] {
            supervisor.set_read_timeout(Some(testing::WAIT_TIME_MAX)).unwrap();
            let told = || {
                let mut buffer = [0; 1024];
                let length = supervisor.recv(&mut buffer).unwrap();
                String::from_utf8(buffer[..length].to_vec()).unwrap()
            };
            let mut command = command(folder.path());
            command.env("NOTIFY_SOCKET", name);
            let daemon = Daemon::start_as(command, folder.path());
            assert!(told().starts_with("READY=1\n"));
            daemon.signal(Signal::HUP);
            let reloading = told();
            let moment = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(moment.trim_end().parse::<u64>().unwrap() > 0);
            assert!(told().starts_with("READY=1\n"));
            daemon.ends_well(Signal::TERM);
            assert_eq!(told(), "STOPPING=1\n");
        }
    }

    fn who_is_on_no_list_is_turned_away(reactor: &Reactor) {
        let (ours, others) = (own_uid().to_string(), (own_uid() + 1).to_string());
        let group = rustix::process::getegid().as_raw().to_string();
        for (arguments, may) in [
            (["--allow-uid", ours.as_str()], true),
            (["--allow-gid", group.as_str()], true),
            (["--allow-uid", others.as_str()], false),
            (["--allow-gid", "4000000000"], false),
        ] {
            let folder = folder();
            let metrics = folder.path().join("metrics");
            let mut command = command(folder.path());
            command.args(arguments).arg("--metrics").arg(metrics);
            let daemon = Daemon::start_as(command, folder.path());
            match may {
                true => settle(reactor, introduces(reactor, &daemon)),
                false => settle(reactor, is_turned_away(reactor, &daemon)),
            }
            assert_eq!(daemon.metric("refused_total"), u64::from(!may));
        }
    }

    fn another_user_is_known_as_another_user(reactor: &Reactor) {
        if own_uid() != 0 {
            println!("skipped: root: nobody else can be had");
            return;
        }
        for (allowed, said) in [(testing::NOBODY, "registered"), (0, "turned away")] {
            let folder = folder();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let allowed = allowed.to_string();
            let daemon = Daemon::start_with(folder.path(), ["--mode", "0666", "--allow-uid", &allowed]);
            let (near, far) = testing::packet_pair();
            let path = daemon.socket();
            let helper = start_helper!(registers_as_nobody, vec![far], path.to_str().unwrap());
            assert_eq!(testing::receive_packet(&near).unwrap().bytes, said.as_bytes());
            helper.succeeded();
            if said == "registered" {
                settle(reactor, is_turned_away(reactor, &daemon));
            }
        }
    }

    fn it_runs_as_a_user_that_owns_nothing(reactor: &Reactor) {
        if own_uid() != 0 {
            println!("skipped: root: nobody else can be had");
            return;
        }
        let folder = folder();
        let program = folder.path().join("program");
        fs::copy(env!("CARGO_BIN_EXE_sendright"), &program).unwrap();
        let place = folder.path().join("place");
        fs::create_dir(&place).unwrap();
        std::os::unix::fs::chown(&place, Some(testing::NOBODY), Some(testing::NOBODY)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = at(&program);
        told(&mut command, &place);
        command.uid(testing::NOBODY).gid(testing::NOBODY);
        command.args(["introduce", "--key"]).arg(place.join("key"));
        command.arg("--socket").arg(place.join("socket"));
        let daemon = Daemon::start_as(command, &place);
        settle(reactor, introduces(reactor, &daemon));
        assert!(!daemon.log().contains("running as root"));
        daemon.ends_well(Signal::TERM);
        assert_eq!(names(&place), ["key"]);
    }

    fn settings_are_read_again_when_it_is_told_to(reactor: &Reactor) {
        let folder = folder();
        let settings = folder.path().join("settings.toml");
        // As an editor does: a new file in the place of the old one.
        let say = |text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), &settings).unwrap();
        };
        say(&format!("allow-uid = [{}]", own_uid()));
        let daemon = Daemon::start_with(folder.path(), ["--config".as_ref(), settings.as_os_str()]);
        settle(reactor, async {
            let (anne, gone) = daemon.netlayer(reactor, 1).await;
            let (bert, _berts) = daemon.netlayer(reactor, 2).await;
            meet(&anne, &bert).await;

            say("allow-uid = nonsense");
            daemon.signal(Signal::HUP);
            daemon.logs("the settings stay as they were");
            meet(&anne, &bert).await;

            say(&format!("allow-uid = [{}]\nlog = \"info\"", own_uid() + 1));
            daemon.signal(Signal::HUP);
            // Who is no longer allowed is disconnected; what peers have of each other is theirs.
            gone.await;
            is_turned_away(reactor, &daemon).await;

            say("");
            daemon.signal(Signal::HUP);
            testing::wait_until("it was read", || daemon.log().matches("settings read again").count() == 2);
            introduces(reactor, &daemon).await;
        });
        daemon.ends_well(Signal::TERM);
    }

    fn counters_are_shown_while_peers_come_and_go(reactor: &Reactor) {
        let folder = folder();
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        settle(reactor, async {
            let before = daemon.metric("open_descriptors");
            for round in 1..=5 {
                let (anne, annes) = daemon.netlayer(reactor, 1).await;
                let (bert, berts) = daemon.netlayer(reactor, 2).await;
                meet(&anne, &bert).await;
                assert_eq!(daemon.metric("registrations_total"), 2 * round);
                assert_eq!(daemon.metric("registered"), 2);
                assert_eq!(daemon.metric("connections"), 2);
                drop((anne, bert));
                annes.await;
                berts.await;
                daemon.counts("registered", 0);
            }
            assert_eq!(daemon.metric("passed_on_total"), 5);
            testing::wait_until("no descriptor is left", || daemon.metric("open_descriptors") == before);
            // Every counter of the library, with what it means.
            for counter in introduction::ServerStats::default().counters() {
                let name = format!("sendright_introduce_{}_total", counter.name);
                assert!(daemon.metrics().contains(&format!("# HELP {name} {}", counter.meaning)));
                assert!(daemon.metrics().contains(&format!("# TYPE {name} counter")));
            }
            // A name that comes twice is an error to whoever collects them.
            let text = daemon.metrics();
            let mut known = BTreeSet::new();
            let mut types = text.lines().filter(|line| line.starts_with("# TYPE"));
            let twice = types.find(|line| !known.insert(*line));
            assert_eq!(twice, None);
        });
        daemon.ends_well(Signal::TERM);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    fn slow_readers_of_the_counters_hold_nothing_up(reactor: &Reactor) {
        let folder = folder();
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        // More than are served at a time, none of whom reads or goes.
        let slow: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&metrics).unwrap()).collect();
        settle(reactor, introduces(reactor, &daemon));
        // An HTTP client that says what it wants first, and another reader after all of them.
        let mut client = UnixStream::connect(&metrics).unwrap();
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        drop(slow);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.contains("sendright_introduce_passed_on_total 1"), "{text}");
        daemon.ends_well(Signal::TERM);
    }

    fn a_reader_of_the_counters_that_never_goes_makes_room(_reactor: &Reactor) {
        let folder = folder();
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        let stuck: Vec<UnixStream> = (0..4).map(|_| UnixStream::connect(&metrics).unwrap()).collect();
        // As soon as those have had their time.
        assert_eq!(daemon.metric("connections"), 0);
        drop(stuck);
        daemon.ends_well(Signal::TERM);
    }

    fn a_client_that_is_killed_concerns_nobody(reactor: &Reactor) {
        let folder = folder();
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        let (near, far) = testing::packet_pair();
        let socket = daemon.socket();
        let mut client = start_helper!(stays_until_it_is_killed, vec![far], socket.to_str().unwrap());
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"registered");
        daemon.counts("registered", 1);
        client.kill();
        daemon.counts("connections", 0);
        settle(reactor, introduces(reactor, &daemon));
        daemon.ends_well(Signal::TERM);
    }

    fn without_descriptors_newcomers_wait_and_nobody_is_lost(reactor: &Reactor) {
        let folder = folder();
        // A limit that is enough by the numbers, and descriptors nobody has counted, so that it is not.
        let mut shell = at("sh".as_ref());
        told(&mut shell, folder.path());
        let junk = (20..60).map(|number| (fs::File::open("/dev/null").unwrap().into(), number)).collect();
        shell.args(["-c", "ulimit -n 100 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sendright")]);
        shell.args(["introduce", "--fresh-key", "--max-connections", "32", "--max-introductions", "4"]);
        shell.args(["--max-connections-per-user", "32", "--handshake-time", "1000"]);
        shell.arg("--metrics").arg(folder.path().join("metrics"));
        shell.arg("--socket").arg(folder.path().join("socket"));
        ring::inherit::give(&mut shell, junk);
        let daemon = Daemon::start_as(shell, folder.path());
        settle(reactor, async {
            let mut others = Vec::new();
            for _ in 0..30 {
                others.push(daemon.line(reactor).await);
            }
            testing::wait_until("some are connected", || daemon.metric("connections") > 0);
            // Those who come first go, and those who have waited are served.
            others.truncate(2);
            introduces(reactor, &daemon).await;
            assert!(daemon.metric("open_descriptors") < 100);
        });
        daemon.ends_well(Signal::TERM);
    }

    fn there_are_so_many_connections_and_no_more(reactor: &Reactor) {
        let folder = folder();
        let metrics = folder.path().join("metrics");
        let mut command = command(folder.path());
        command.args(["--max-connections", "2", "--max-connections-per-user", "2", "--metrics"]).arg(metrics);
        let daemon = Daemon::start_as(command, folder.path());
        settle(reactor, async {
            let (_anne, _annes) = daemon.netlayer(reactor, 1).await;
            let (_bert, _berts) = daemon.netlayer(reactor, 2).await;
            is_turned_away(reactor, &daemon).await;
            assert_eq!(daemon.metric("turned_away_total"), 1);
        });
    }

    fn who_asks_for_nobody_is_told_where_that_is_wanted(reactor: &Reactor) {
        let folder = folder();
        let daemon = Daemon::start_with(folder.path(), ["--candid", "--introduction-time", "1000"]);
        settle(reactor, async {
            let (anne, _annes) = daemon.netlayer(reactor, 1).await;
            let asked = anne.connect_confirmed(&nobody(daemon.key)).await;
            assert!(matches!(asked, Err(introduction::ConnectError::Unknown)), "{asked:?}");
        });
    }

    fn only_bound_registrations_may_be_wanted(reactor: &Reactor) {
        let folder = folder();
        let daemon = Daemon::start_with(folder.path(), ["--bound-only", "--form", "draft"]);
        settle(reactor, introduces(reactor, &daemon));
    }
}

in_own_process! {
    fn the_mode_is_right_from_the_first_moment_on() {
        for (wanted, umask) in [("0660", 0o000), ("0600", 0o000), ("0666", 0o077), ("0777", 0o777)] {
            let folder = folder();
            let path = folder.path().join("socket");
            let mut command = Command::new("sh");
            told(&mut command, folder.path());
            let script = format!("umask {umask:03o} && exec \"$0\" \"$@\"");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_sendright")]);
            command.args(["introduce", "--fresh-key", "--mode", wanted, "--socket"]).arg(&path);
            let (at_first, log) = (path.clone(), folder.path().to_owned());
            // Whoever looks all the time sees no other mode, and connects only when it is there.
            let looking = std::thread::spawn(move || loop {
                let connected = UnixStream::connect(&at_first).is_ok();
                if let Ok(metadata) = fs::symlink_metadata(&at_first) {
                    assert!(metadata.file_type().is_socket());
                    let mode = metadata.permissions().mode() & 0o777;
                    if connected {
                        return mode;
                    }
                }
            });
            let daemon = Daemon::start_as(command, &log);
            let wanted = u32::from_str_radix(wanted, 8).unwrap();
            assert_eq!(looking.join().unwrap(), wanted);
            assert_eq!(mode(&path), wanted);
            daemon.ends_well(Signal::TERM);
        }
    }

    fn what_is_no_socket_is_refused_and_stays() {
        let folder = folder();
        let path = folder.path().join("socket");
        for make in [
            |path: &Path| fs::write(path, "precious").unwrap(),
            |path: &Path| fs::create_dir(path).unwrap(),
            |path: &Path| symlink("elsewhere", path).unwrap(),
        ] {
            make(&path);
            let before = fs::symlink_metadata(&path).unwrap().file_type();
            let refused = Daemon::try_start(command(folder.path()), folder.path());
            assert_eq!(refused.err().unwrap().code(), Some(2));
            assert_eq!(fs::symlink_metadata(&path).unwrap().file_type(), before);
            assert_eq!(names(folder.path()), ["socket"], "nothing else was made");
            if before.is_dir() { fs::remove_dir(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
        assert!(fs::read_to_string(folder.path().join("log")).unwrap().contains("is no socket"));
    }

    fn what_cannot_be_handed_over_is_told() {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let listening = listener(&path("listening"));
        let (stream, _far) = testing::stream_pair();
        let datagram = OwnedFd::from(UnixDatagram::bind(path("datagram")).unwrap());
        let inet = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let copy = || listening.try_clone().unwrap();
        let socket = path("socket").into_os_string().into_string().unwrap();
        for (sockets, arguments) in [
            (vec![stream], &[][..]),
            (vec![datagram], &[]),
            (vec![inet], &[]),
            (vec![file], &[]),
            (vec![], &[]),
            (vec![copy(), copy()], &[]),
            (vec![copy()], &["--socket", &socket]),
        ] {
            let command = handed_over(folder.path(), sockets, "introduce", arguments);
            let refused = Daemon::try_start(command, folder.path());
            assert_eq!(refused.err().unwrap().code(), Some(2));
        }
        let log = fs::read_to_string(path("log")).unwrap();
        assert!(log.contains("not listening") && log.contains("of another type"), "{log}");
        assert!(log.contains("of another family") && log.contains("no socket"), "{log}");
    }

    fn what_was_handed_to_somebody_else_is_not_touched() {
        let folder = folder();
        let mut command = command(folder.path());
        command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
        Daemon::start_as(command, folder.path()).ends_well(Signal::TERM);
    }

    fn it_can_open_nothing_once_it_serves() {
        let folder = folder();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let settings = inside.join("settings.toml");
        fs::write(&settings, "").unwrap();
        fs::write(folder.path().join("outside"), "").unwrap();
        let daemon = Daemon::start_with(folder.path(), ["--config".as_ref(), settings.as_os_str()]);
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        if !has_landlock(&daemon) {
            return;
        }
        // What it is to read again is a link out of its directory now.
        fs::remove_file(&settings).unwrap();
        symlink("../outside", &settings).unwrap();
        daemon.signal(Signal::HUP);
        daemon.logs("Permission denied");
        daemon.ends_well(Signal::TERM);
    }

    fn without_landlock_it_says_so_or_does_not_serve() {
        testing::refuse_landlock();
        let folder = folder();
        let daemon = Daemon::start(folder.path());
        assert!(daemon.log().contains("not confined"), "{}", daemon.log());
        daemon.ends_well(Signal::TERM);
        let mut command = command(folder.path());
        command.arg("--require-sandbox");
        assert_eq!(Daemon::try_start(command, folder.path()).err().unwrap().code(), Some(1));
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    fn who_misbehaves_is_named_to_those_who_want_to_know() {
        let folder = folder();
        let daemon = Daemon::start_with(folder.path(), ["--log", "introduction=debug"]);
        let mut peer = UnixStream::connect(daemon.socket()).unwrap();
        peer.write_all(b"nonsense").unwrap();
        let mut said = Vec::new();
        let _ = peer.read_to_end(&mut said);
        assert_eq!(said, b"");
        daemon.logs("a peer said what may not be said");
        assert!(daemon.log().contains(&format!("pid={}", std::process::id())), "{}", daemon.log());
        daemon.ends_well(Signal::TERM);
    }

    fn its_key_is_the_same_after_a_restart() {
        let folder = folder();
        let kept = folder.path().join("key");
        let with_key = || {
            let mut command = sendright();
            told(&mut command, folder.path());
            command.arg("introduce").arg("--socket").arg(folder.path().join("socket"));
            command
        };
        let mut command = with_key();
        command.arg("--key").arg(&kept);
        let first = Daemon::start_as(command, folder.path());
        let key = first.key;
        first.ends_well(Signal::TERM);
        assert_eq!(mode(&kept), 0o600);
        let mut command = with_key();
        command.arg("--key").arg(&kept);
        assert_eq!(Daemon::start_as(command, folder.path()).key, key);

        // A key that others can read is nobody's.
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = with_key();
        command.arg("--key").arg(&kept);
        assert_eq!(Daemon::try_start(command, folder.path()).err().unwrap().code(), Some(1));

        // Where nobody says where: as the environment has it.
        for (variable, place) in [("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", "sendright")] {
            let state = folder.path().join(variable);
            let keys = [(), ()].map(|()| {
                let mut command = with_key();
                command.env(variable, &state);
                Daemon::start_as(command, folder.path()).key
            });
            assert_eq!(keys[0], keys[1]);
            assert_eq!(mode(&state.join(place)), 0o700);
            assert_eq!(mode(&state.join(place).join("introduce.key")), 0o600);
        }
    }

    fn log_lines_are_objects_where_that_is_wanted() {
        let folder = folder();
        let daemon = Daemon::start_with(folder.path(), ["--log-format", "json", "--log", "debug"]);
        daemon.signal(Signal::HUP);
        daemon.logs("settings read again");
        daemon.ends_well(Signal::TERM);
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().any(|line| line["message"] == "ready" && line["level"] == "INFO"), "{log}");
        assert!(lines.iter().any(|line| line["message"] == "ended" && line["registrations"] == 0), "{log}");
    }

    fn without_io_uring_it_serves_all_the_same() {
        let folder = folder();
        testing::refuse_io_uring(Errno::PERM);
        let metrics = folder.path().join("metrics");
        let daemon = Daemon::start_with(folder.path(), ["--metrics".as_ref(), metrics.as_os_str()]);
        assert!(daemon.metrics().contains("driver=\"epoll\""));
        let reactor = Reactor::new().unwrap();
        settle(&reactor, introduces(&reactor, &daemon));
        drop(reactor);
        daemon.ends_well(Signal::TERM);
        let mut command = command(folder.path());
        command.args(["--driver", "uring"]);
        assert_eq!(Daemon::try_start(command, folder.path()).err().unwrap().code(), Some(1));
        assert!(!folder.path().join("socket").exists(), "nothing is left of an attempt");
    }

    fn limits_that_do_not_fit_into_the_descriptors_are_told() {
        let folder = folder();
        let limited = |descriptors: usize| {
            let mut shell = at("sh".as_ref());
            told(&mut shell, folder.path());
            let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_sendright"), "introduce", "--fresh-key"]);
            shell.args(["--max-connections", "20", "--max-introductions", "16", "--socket"]);
            shell.arg(folder.path().join("socket"));
            shell
        };
        Daemon::start_as(limited(100), folder.path()).ends_well(Signal::TERM);
        let refused = Daemon::try_start(limited(99), folder.path());
        assert_eq!(refused.err().unwrap().code(), Some(2));
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(log.contains("100 descriptors may be needed"), "{log}");
    }

    fn it_raises_its_limit_of_descriptors() {
        let folder = folder();
        let mut shell = at("sh".as_ref());
        told(&mut shell, folder.path());
        let script = "ulimit -Sn 64 && ulimit -Hn 1000 && exec \"$0\" \"$@\"";
        shell.args(["-c", script, env!("CARGO_BIN_EXE_sendright"), "introduce", "--fresh-key"]);
        shell.arg("--metrics").arg(folder.path().join("metrics"));
        shell.arg("--socket").arg(folder.path().join("socket"));
        assert_eq!(Daemon::start_as(shell, folder.path()).metric("descriptors_max"), 1000);
    }

    fn an_output_that_nobody_reads_stops_nothing() {
        let folder = folder();
        let mut command = command(folder.path());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(Stdio::from(OwnedFd::from(writer)));
        let mut child = command.spawn().unwrap();
        testing::wait_until("it is ready", || UnixStream::connect(folder.path().join("socket")).is_ok());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    fn a_key_that_cannot_be_told_is_a_failure() {
        let folder = folder();
        let mut command = command(folder.path());
        command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(command.status().unwrap().code(), Some(1));
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    fn a_lock_that_is_not_ours_to_take_is_told() {
        let folder = folder();
        let path = folder.path().join("socket.lock");
        let _pipe = fs::DirBuilder::new().create(&path);
        let refused = Daemon::try_start(command(folder.path()), folder.path());
        assert_eq!(refused.err().unwrap().code(), Some(1));
        assert!(fs::read_to_string(folder.path().join("log")).unwrap().contains("cannot lock"));
    }

    fn settings_that_make_no_sense_are_told() {
        let folder = folder();
        let settings = folder.path().join("settings.toml");
        fs::write(&settings, "allow-users = [1]").unwrap();
        for arguments in [
            vec!["--config".to_string(), settings.to_str().unwrap().to_string()],
            vec!["--config".to_string(), "/nowhere/settings".to_string()],
            vec!["--log".to_string(), "ring=loudly".to_string()],
        ] {
            let mut command = command(folder.path());
            command.args(&arguments);
            let refused = Daemon::try_start(command, folder.path());
            assert_eq!(refused.err().unwrap().code(), Some(2), "{arguments:?}");
        }
        assert!(fs::read_to_string(folder.path().join("log")).unwrap().contains("allow-users"));
    }
}

#[test]
fn the_units_and_settings_that_come_with_it_are_understood() {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    let unit = fs::read_to_string(contrib.join("sendright-introduce.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/sendright ")).unwrap();
    let output = run(start.split(' ').chain(["--help"]));
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let folder = folder();
    let settings = contrib.join("introduce.toml");
    Daemon::start_with(folder.path(), ["--config".as_ref(), settings.as_os_str()]).ends_well(Signal::TERM);
}

#[test]
fn mistakes_are_told_with_status_2() {
    for arguments in [
        &["introduce", "--fresh-key"][..],
        &["introduce", "--socket", "/tmp/x", "--mode", "0888"],
        &["introduce", "--socket", "/tmp/x", "--mode", "4755"],
        &["introduce", "--socket", "/tmp/x", "--allow-uid", "me"],
        &["introduce", "--socket", "/tmp/x", "--max-connections", "0"],
        &["introduce", "--socket", "/tmp/x", "--introduction-time", "0"],
        &["introduce", "--socket", "/tmp/x", "--key", "k", "--fresh-key"],
        &["introduce", "--socket", "/tmp/x", "--log-format", "xml"],
        &["introduce", "--socket", "/tmp/x/..", "--fresh-key"],
        &["introduce", "--socket", "", "--fresh-key"],
    ] {
        let output = run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}
