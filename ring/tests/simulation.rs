//! The simulated world itself: its clock, its deaths, and that one seed decides everything in it.
//!
//! Knows sockets and messages; what protocols make of them is simulated where they live.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use ring::script::{Faults, World};
use ring::{DriverKind, Executor, Kind, Message, ReceiveError, SendError, Socket};
use testing::worlds::{Party, identified, identity};
use testing::{Census, in_own_process};

const HOUR: Duration = Duration::from_secs(3600);

/// What a receiver has seen of so many numbered messages with a descriptor each.
#[derive(Default)]
struct Seen {
    numbers: Vec<u32>,
    whole: usize,
    cut: usize,
}

/// One world in which numbers are sent and received. Gives back its print.
fn numbers(seed: u64, faults: Faults, count: u32, seen: &Rc<RefCell<Seen>>) -> u64 {
    let world = World::new(seed, Faults::NONE);
    let (here, there) = (Party::join(&world), Party::join(&world));
    let (near, far) = Socket::pair(here.reactor(), Kind::SeqPacket).unwrap();
    let far = Socket::wrap(there.reactor(), far).unwrap();
    world.set_faults(faults);
    there.0.spawn(async move {
        for number in 0..count {
            let message = Message::new(number.to_ne_bytes()).with_descriptor(identified().0);
            match far.send(message).await {
                Ok(()) | Err(SendError::OutOfDescriptors | SendError::Io(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let ended = Rc::new(Cell::new(false));
    let (files, ends) = (Rc::clone(seen), Rc::clone(&ended));
    near.stream();
    here.0.spawn(async move {
        loop {
            let (message, whole) = match near.receive().await {
                Ok(message) => (message, true),
                Err(ReceiveError::DescriptorsLost(message)) => (message, false),
                Err(ReceiveError::Closed) => break,
                Err(error) => panic!("{error}"),
            };
            let mut seen = files.borrow_mut();
            seen.numbers.push(u32::from_ne_bytes(message.bytes().try_into().unwrap()));
            assert_eq!(message.descriptors() == 1, whole);
            *(if whole { &mut seen.whole } else { &mut seen.cut }) += 1;
        }
        ends.set(true);
    });
    world.run(&[&here.0, &there.0], || ended.get()).unwrap();
    world.print()
}

in_own_process! {
    fn the_driver_says_what_it_is() {
        let reactor = World::new(7, Faults::NONE).reactor().unwrap();
        assert_eq!(reactor.driver().kind(), DriverKind::Script);
        assert_eq!(reactor.driver().to_string(), "script: a world made of seed 7");
    }

    fn an_hour_passes_when_everybody_sleeps() {
        let world = World::new(0, Faults::UNNOTICED);
        let parties: Vec<Party> = (0..3).map(|_| Party::join(&world)).collect();
        let awake = Rc::new(RefCell::new(Vec::new()));
        for (hours, party) in [3_u32, 1, 2].into_iter().zip(&parties) {
            let (sleep, awake) = (party.reactor().sleep(HOUR * hours), Rc::clone(&awake));
            party.0.spawn(async move {
                sleep.await;
                awake.borrow_mut().push(hours);
            });
        }
        let executors: Vec<&Executor> = parties.iter().map(|party| &party.0).collect();
        world.run(&executors, || awake.borrow().len() == 3).unwrap();
        assert_eq!(*awake.borrow(), [1, 2, 3]);
        assert_eq!(world.elapsed(), HOUR * 3);
    }

    /// A single reactor moves the clock itself, so that whatever blocks on it comes to an end.
    fn alone_in_the_world_one_sleeps_too() {
        let world = World::new(0, Faults::NONE);
        let executor = Executor::new(&world.reactor().unwrap());
        let before = executor.reactor().now();
        executor.block_on(executor.reactor().sleep(HOUR));
        assert_eq!(executor.reactor().now() - before, HOUR);
    }

    fn a_world_in_which_everybody_waits_says_its_seed() {
        let world = World::new(4711, Faults::UNNOTICED);
        let party = Party::join(&world);
        let (near, _far) = Socket::pair(party.reactor(), Kind::SeqPacket).unwrap();
        party.0.spawn(async move { drop(near.receive().await) });
        let stuck = world.run(&[&party.0], || false).unwrap_err().to_string();
        assert!(stuck.contains("everybody waits") && stuck.contains("seed 4711"), "{stuck}");
    }

    fn one_seed_decides_everything() {
        let print = |seed| numbers(seed, Faults::ALL, 50, &Rc::default());
        let prints: Vec<u64> = (0..20).map(print).collect();
        assert_eq!((0..20).map(print).collect::<Vec<_>>(), prints);
        assert_eq!(prints.into_iter().collect::<BTreeSet<_>>().len(), 20);
    }

    fn what_is_not_to_be_noticed_is_not() {
        for seed in 0..50 {
            let seen = Rc::<RefCell<Seen>>::default();
            numbers(seed, Faults::UNNOTICED, 50, &seen);
            assert_eq!(seen.borrow().numbers, (0..50).collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(seen.borrow().cut, 0);
        }
    }

    fn what_arrives_arrives_once_and_in_order_whatever_runs_out() {
        let seen = Rc::<RefCell<Seen>>::default();
        for seed in 0..50 {
            numbers(seed, Faults::ALL, 50, &seen);
            let numbers = std::mem::take(&mut seen.borrow_mut().numbers);
            assert!(numbers.is_sorted_by(|one, next| one < next), "seed {seed}: {numbers:?}");
        }
        let seen = seen.borrow();
        assert!(seen.cut > 0 && seen.whole > 0, "{} whole, {} cut", seen.whole, seen.cut);
    }

    /// Nothing more is sent, not even politely, and all that was held is closed.
    fn whoever_is_killed_says_nothing_more() {
        for streams in [false, true] {
            let world = World::new(0, Faults::NONE);
            let party = Party::join(&world);
            let census = Census::take();
            let (near, far) = Socket::pair(party.reactor(), Kind::SeqPacket).unwrap();
            let (mut pipe, writer) = std::io::pipe().unwrap();
            if streams {
                near.stream();
            }
            party.0.spawn(async move {
                near.post(&[b"said"], Vec::new());
                near.reactor().sleep(HOUR).await;
                near.post(&[b"never said"], vec![OwnedFd::from(writer).into()]);
                let _ = near.finish("nor this");
            });
            world.run(&[&party.0], || world.elapsed() >= HOUR).unwrap();
            party.die(&world);
            assert_eq!(testing::receive_packet(&far).unwrap().bytes, b"said");
            assert!(testing::receive_packet(&far).unwrap().bytes.is_empty());
            assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
            drop((far, pipe));
            assert!(Census::take().len() < census.len(), "the reactor's own are closed too");
        }
    }

    /// With its last holder the queue of a socket goes, and what lies in it.
    fn what_the_killed_have_not_received_is_closed_with_them() {
        let world = World::new(0, Faults::NONE);
        let party = Party::join(&world);
        let (near, far) = Socket::pair(party.reactor(), Kind::SeqPacket).unwrap();
        party.0.spawn(async move {
            near.reactor().sleep(HOUR).await;
            drop(near);
        });
        world.step(&[&party.0]).unwrap();
        let (mut pipe, writer) = std::io::pipe().unwrap();
        testing::send_packet(&far, b"unread", &[std::os::fd::AsFd::as_fd(&writer)]).unwrap();
        drop(writer);
        party.die(&world);
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    }

    /// Each at its own rate: others are not chosen for it.
    fn a_fault_that_always_happens_is_seen() {
        let always = |change: fn(&mut Faults)| {
            let mut faults = Faults::NONE;
            change(&mut faults);
            World::new(0, faults)
        };
        let world = always(|faults| faults.out_of_descriptors = 1000);
        assert!(Socket::pair(&world.reactor().unwrap(), Kind::SeqPacket).is_err());

        let world = always(|faults| faults.full_now = 1000);
        let (near, _far) = Socket::pair(&world.reactor().unwrap(), Kind::SeqPacket).unwrap();
        assert!(matches!(near.try_send("full"), Err(SendError::WouldBlock)));

        let world = always(|faults| faults.too_many_in_flight = 1000);
        let executor = Executor::new(&world.reactor().unwrap());
        let (near, _far) = Socket::pair(executor.reactor(), Kind::SeqPacket).unwrap();
        let sent = executor.block_on(near.send(Message::from("fd").with_descriptor(identified().0)));
        assert!(matches!(sent, Err(SendError::OutOfDescriptors)), "{sent:?}");
        executor.block_on(near.send("no descriptor")).unwrap();

        let world = always(|faults| faults.descriptors_lost = 1000);
        let executor = Executor::new(&world.reactor().unwrap());
        let (near, far) = Socket::pair(executor.reactor(), Kind::SeqPacket).unwrap();
        let (fd, known) = identified();
        let borrowed = std::os::fd::AsFd::as_fd(&fd);
        testing::send_packet(&far, b"two", &[borrowed, borrowed]).unwrap();
        let Err(ReceiveError::DescriptorsLost(mut message)) = executor.block_on(near.receive()) else {
            panic!("nothing is lost")
        };
        assert!(message.descriptors() < 2);
        assert!(message.take_descriptors().iter().all(|fd| identity(fd) == known));
    }

    /// Said once, and only of a connection that has ended: the second time it would be believed.
    fn an_end_that_is_none_is_said_once() {
        let world = World::new(0, Faults { false_end: 1000, ..Faults::NONE });
        let executor = Executor::new(&world.reactor().unwrap());
        let (near, far) = Socket::pair(executor.reactor(), Kind::SeqPacket).unwrap();
        for number in 0..3_u8 {
            testing::send_packet(&far, &[number], &[]).unwrap();
        }
        drop(far);
        for number in 0..3_u8 {
            assert_eq!(executor.block_on(near.receive()).unwrap().bytes(), [number]);
        }
        assert!(matches!(executor.block_on(near.receive()), Err(ReceiveError::Closed)));
    }
}
