//! io_uring refused half-way: to a process that has a ring already a filter of system calls is given. A
//! second reactor falls back or says why there is none; the first says what the kernel says, and lets go of
//! everything. It knows nothing of refusals from the beginning; that is in `driver.rs`.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::AsFd;

use ring::{Config, DriverChoice, DriverKind, Kind, Reactor, Socket, StartError, Wait};
use testing::{Errno, ends, on_each_driver, receive_packet, refuse_io_uring, send_packet, settle};

fn asked_for(driver: DriverChoice) -> Result<Reactor, StartError> {
    Reactor::with_config(Config { driver, ..Config::default() })
}

fn exchange(reactor: &Reactor) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    send_packet(&far, b"hello", &[reader.as_fd()]).unwrap();
    let received = settle(reactor, near.receive()).unwrap();
    assert_eq!((received.bytes(), received.descriptors()), (&b"hello"[..], 1));
}

/// What the first reactor says once its ring is refused: the filter's own word, each time.
#[track_caller]
fn says(result: io::Result<bool>, errno: Errno) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
}

on_each_driver! {
    fn a_second_reactor_falls_back(_reactor: &Reactor) {
        refuse_io_uring(Errno::PERM);
        let second = asked_for(DriverChoice::Auto).unwrap();
        assert_eq!(second.driver().kind(), DriverKind::Epoll);
        assert!(second.driver().reason().contains("io_uring_setup"), "{}", second.driver());
        exchange(&second);
    }

    fn a_second_reactor_that_must_have_a_ring_says_why_there_is_none(_reactor: &Reactor) {
        refuse_io_uring(Errno::PERM);
        let asked = asked_for(DriverChoice::Uring);
        assert!(matches!(asked, Err(StartError::UringRefused { .. })), "{asked:?}");
    }

    /// What was under way is closed, though nothing can be asked of the ring any more.
    fn the_first_goes_on_or_says_what_the_kernel_says(reactor: &Reactor) {
        let first = testing::reactor();
        let (near, far) = ends(&first, true);
        let (waiting, waiting_far) = ends(&first, false);
        let mut readable = Box::pin(waiting.readable());
        testing::poll_once(readable.as_mut());
        testing::turn(&first);
        refuse_io_uring(Errno::PERM);
        send_packet(&far, b"while it is refused", &[]).unwrap();
        if reactor.driver().kind() == DriverKind::Epoll {
            assert_eq!(settle(&first, near.receive()).unwrap().bytes(), b"while it is refused");
        } else {
            says(first.turn(Wait::Not).and_then(|_| first.turn(Wait::Forever)), Errno::PERM);
            says(first.turn(Wait::Forever), Errno::PERM);
        }
        drop(readable);
        drop((near, waiting));
        drop(first);
        assert!(receive_packet(&waiting_far).unwrap().bytes.is_empty());
        drop(receive_packet(&far));
        assert!(receive_packet(&far).unwrap().bytes.is_empty());
    }

    /// More than the ring's queue has places.
    fn hundreds_that_wait_are_let_go_of(reactor: &Reactor) {
        let first = testing::reactor();
        let pairs: Vec<_> = (0..300).map(|_| ends(&first, false)).collect();
        let (nears, fars): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        nears.iter().for_each(Socket::stream);
        testing::turn(&first);
        refuse_io_uring(Errno::PERM);
        drop(nears);
        let turned = first.turn(Wait::Not);
        assert_eq!(turned.is_err(), reactor.driver().kind() == DriverKind::Uring);
        drop(first);
        for far in fars {
            assert!(receive_packet(&far).unwrap().bytes.is_empty());
        }
    }

    fn a_second_reactor_serves_beside_a_first_that_is_refused(reactor: &Reactor) {
        let (_near, _far) = ends(reactor, true);
        refuse_io_uring(Errno::NOSYS);
        let second = asked_for(DriverChoice::Auto).unwrap();
        exchange(&second);
        exchange(&second);
    }
}
