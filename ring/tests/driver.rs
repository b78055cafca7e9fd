//! Which driver runs, who chose it, and what is said when it cannot be had.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use ring::{Config, DRIVER_VARIABLE, DriverChoice, DriverKind, Kind, Message, Reactor, Socket, StartError};
use testing::{Errno, in_own_process, on_each_driver, settle};

fn with(driver: DriverChoice) -> Result<Reactor, StartError> {
    Reactor::with_config(Config { driver, ..Config::default() })
}

/// What the driver is for: a message and a descriptor, there and back.
fn assert_works(reactor: &Reactor) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    let far = Socket::wrap(reactor, far).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    settle(reactor, async {
        far.send(Message::from("pipe").with_descriptor(std::os::fd::OwnedFd::from(reader))).await.unwrap();
        let mut received = near.receive().await.unwrap();
        near.send(Message::from("back").with_descriptor(received.take_descriptor().unwrap())).await.unwrap();
        assert_eq!(far.receive().await.unwrap().descriptors(), 1);
    });
}

/// Whoever runs the tests has set the variable, for all of them.
fn is_decided_from_outside() -> bool {
    std::env::var_os(DRIVER_VARIABLE).is_some()
}

/// Whether the machine itself has io_uring; without it half of this file has nothing to say.
fn has_uring() -> bool {
    let has = with(DriverChoice::Uring).is_ok();
    assert!(has || std::env::var_os("SENDRIGHT_REQUIRE_URING").is_none());
    has
}

on_each_driver! {
    fn each_driver_can_be_forced(reactor: &Reactor) {
        let report = reactor.driver();
        assert_eq!(report.kind().to_string(), testing::driver().to_string());
        assert!(report.reason().starts_with("asked for by configuration"), "{report}");
        assert_eq!(report.to_string(), format!("{}: {}", report.kind(), report.reason()));
        assert_works(reactor);
    }

    /// A client is tested against its server like that.
    fn two_reactors_live_in_one_thread(reactor: &Reactor) {
        let other = testing::reactor();
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let far = Socket::wrap(&other, far).unwrap();
        near.stream();
        far.stream();
        for number in 0..100_u8 {
            near.post(&[&[number]], Vec::new());
            let mut asked = None;
            while asked.is_none() {
                reactor.turn(ring::Wait::Not).unwrap();
                other.turn(ring::Wait::Not).unwrap();
                asked = far.try_receive();
            }
            far.try_send(asked.unwrap().unwrap().bytes()).unwrap();
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), [number]);
        }
    }

    fn a_socket_can_change_its_reactor(reactor: &Reactor) {
        let other = with(DriverChoice::Epoll).unwrap();
        let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
        let near = Socket::wrap(&other, near.into_fd().unwrap()).unwrap();
        testing::send_packet(&far, b"moved", &[]).unwrap();
        assert_eq!(settle(&other, near.receive()).unwrap().bytes(), b"moved");
    }
}

in_own_process! {
    fn the_machine_decides_when_nobody_does() {
        if is_decided_from_outside() {
            return;
        }
        let reactor = with(DriverChoice::Auto).unwrap();
        let expected = if has_uring() { DriverKind::Uring } else { DriverKind::Epoll };
        assert_eq!(reactor.driver().kind(), expected);
        if expected == DriverKind::Uring {
            assert!(reactor.driver().reason().contains("passed a descriptor"), "{}", reactor.driver());
        }
        assert_works(&reactor);
    }

    #[cfg(uring)]
    fn in_a_container_it_is_epoll_and_says_why() {
        if is_decided_from_outside() {
            return;
        }
        testing::refuse_io_uring(Errno::PERM);
        let reactor = Reactor::new().unwrap();
        assert_eq!(reactor.driver().kind(), DriverKind::Epoll);
        assert!(reactor.driver().reason().contains("io_uring_setup"), "{}", reactor.driver());
        assert!(reactor.driver().reason().contains("seccomp"), "{}", reactor.driver());
        assert_works(&reactor);
    }

    #[cfg(uring)]
    fn on_a_kernel_without_it_it_is_epoll_and_says_why() {
        if is_decided_from_outside() {
            return;
        }
        testing::refuse_io_uring(Errno::NOSYS);
        let reactor = Reactor::new().unwrap();
        assert_eq!(reactor.driver().kind(), DriverKind::Epoll);
        assert!(reactor.driver().reason().contains("the kernel has no io_uring"), "{}", reactor.driver());
        assert_works(&reactor);
    }

    #[cfg(uring)]
    fn whoever_insists_on_what_is_refused_is_told_what_to_do() {
        for errno in [Errno::PERM, Errno::NOSYS] {
            let refused = std::thread::spawn(move || {
                testing::refuse_io_uring(errno);
                with(DriverChoice::Uring).map(drop)
            })
            .join()
            .unwrap();
            let Err(error @ StartError::UringRefused { .. }) = refused else { panic!("{refused:?}") };
            let text = error.to_string();
            for words in ["configuration", "io_uring_setup", "seccomp", "ask for auto or epoll"] {
                assert!(text.contains(words), "{words}: {text}");
            }
        }
    }

    #[cfg(not(uring))]
    fn built_without_it_it_is_epoll_and_says_why() {
        let reactor = with(DriverChoice::Auto).unwrap();
        assert_eq!(reactor.driver().kind(), DriverKind::Epoll);
        let refused = with(DriverChoice::Uring).unwrap_err().to_string();
        assert!(refused.contains("built without the feature `uring`"), "{refused}");
    }

    fn the_environment_insists_as_well() {
        for (value, words) in [
            ("uring", "SENDRIGHT_DRIVER"),
            ("urnig", "there is no driver \"urnig\": choose auto, uring or epoll"),
            ("", "there is no driver \"\""),
        ] {
            let output = started_with(value, "refused");
            assert!(output.contains(words), "{value}: {output}");
        }
    }

    fn the_environment_chooses_where_the_program_does_not() {
        assert!(started_with("epoll", "open").contains("epoll: asked for by SENDRIGHT_DRIVER"));
        assert!(started_with("epoll", "insisting on epoll").contains("epoll: asked for by configuration"));
        // A mistake in the environment does not matter to whoever has decided.
        assert!(started_with("bogus", "insisting on epoll").contains("epoll: asked for by configuration"));
        if has_uring() {
            assert!(started_with("uring", "open").contains("uring: asked for by SENDRIGHT_DRIVER"));
            assert!(started_with("auto", "open").contains("uring: io_uring passed a descriptor"));
        }
    }

    fn names_are_read_and_written() {
        for choice in [DriverChoice::Auto, DriverChoice::Uring, DriverChoice::Epoll] {
            assert_eq!(choice.to_string().parse::<DriverChoice>().unwrap(), choice);
        }
        assert!("URING".parse::<DriverChoice>().is_err());
    }

    fn without_descriptors_there_is_no_reactor_and_nothing_leaks() {
        for free in 0..6 {
            let limit = testing::leave_descriptors(free);
            for driver in [DriverChoice::Auto, DriverChoice::Uring, DriverChoice::Epoll] {
                let _ = with(driver);
            }
            drop(limit);
        }
    }
}

/// What a process says that is started with this in its environment.
fn started_with(value: &str, way: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["reports", "--exact", "--nocapture"]).env(DRIVER_VARIABLE, value).env("REPORTS", way);
    let output = command.output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The process of `started_with`; a test that passes by itself otherwise.
#[test]
fn reports() {
    match std::env::var("REPORTS").as_deref() {
        Ok("open") => println!("{}", Reactor::new().unwrap().driver()),
        Ok("insisting on epoll") => println!("{}", with(DriverChoice::Epoll).unwrap().driver()),
        Ok("refused") => {
            testing::refuse_io_uring(Errno::PERM);
            println!("{}", Reactor::new().unwrap_err());
        }
        _ => {}
    }
}
