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

use ring::script::{Fault, Faults, Happened, Sabotage, World};
use ring::{AbstractName, DriverKind, Executor, Kind, Message, ReceiveError, SendError, Socket};
use testing::worlds::{Party, at_most, identified, identity};
use testing::{Census, End, fixture, in_own_process, outcome_of};

const HOUR: Duration = Duration::from_secs(3600);

/// What a receiver has seen of so many numbered messages with a descriptor each.
#[derive(Default)]
struct Seen {
    numbers: Vec<u32>,
    whole: usize,
    cut: usize,
}

/// How the numbers are received.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the driver.
    Stream,
    /// Past the driver and its buffers.
    Beside,
}

/// One world in which numbers are sent and received. Gives back its print.
fn numbers(seed: u64, faults: Faults, count: u32, seen: &Rc<RefCell<Seen>>) -> u64 {
    let world = World::new(seed, Faults::NONE);
    numbers_in(&world, faults, count, seen, Way::Stream);
    world.print()
}

fn numbers_in(world: &World, faults: Faults, count: u32, seen: &Rc<RefCell<Seen>>, way: Way) {
    let (here, there) = (Party::join(world), Party::join(world));
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
    if way == Way::Stream {
        near.stream();
    }
    here.0.spawn(async move {
        let mut scratch = [0; 100];
        loop {
            let received = match way {
                Way::Stream => near.receive().await,
                Way::Beside => near.receive_large(&mut scratch).await,
            };
            let (message, whole) = match received {
                Ok(message) => (message, true),
                Err(ReceiveError::DescriptorsLost(message)) => (message, false),
                Err(ReceiveError::Closed) => break,
                Err(error) => panic!("{error}"),
            };
            let mut seen = files.borrow_mut();
            seen.numbers.push(u32::from_ne_bytes(message.bytes().try_into().unwrap()));
            assert_eq!(message.descriptors() == 1, whole, "what is whole has what was sent");
            *(if whole { &mut seen.whole } else { &mut seen.cut }) += 1;
        }
        ends.set(true);
    });
    world.run(&[&here.0, &there.0], || ended.get()).unwrap();
}

/// One world of streams: connected by name, some of them withdrawn, and one side killed. Says what happened.
fn streams(seed: u64) -> Happened {
    const BYTES: usize = 20_000;
    let world = World::new(seed, Faults::NONE);
    let (here, there) = (Party::join(&world), Party::join(&world));
    let name = Rc::new(AbstractName::random("streams", 20).unwrap());
    let listener = Socket::listen_abstract(there.reactor(), &name, Kind::Stream, 1).unwrap();
    world.set_faults(Faults::ALL);
    let spawner = there.0.spawner();
    there.0.spawn(async move {
        loop {
            // Without memory whoever connects waits in the backlog.
            let Ok(socket) = listener.accept().await else { continue };
            socket.set_descriptors_max(0);
            spawner.spawn(async move {
                let mut count = 0;
                loop {
                    match socket.receive().await {
                        Ok(message) => {
                            assert!(message.bytes().iter().all(|byte| *byte == 7));
                            count += message.bytes().len();
                        }
                        Err(ReceiveError::Closed) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(count <= BYTES, "a stream grows on its way");
            });
        }
    });
    let left = Rc::new(Cell::new(4));
    for _ in 0..left.get() {
        let (reactor, name, left) = (here.reactor().clone(), Rc::clone(&name), Rc::clone(&left));
        here.0.spawn(async move {
            if let Ok(socket) = Socket::connect_abstract(&reactor, &name, Kind::Stream).await {
                // Some are withdrawn on their way.
                let sending = Box::pin(socket.send(vec![7; BYTES]));
                let _ = at_most(&reactor, Duration::from_millis(1), sending).await;
            }
            left.set(left.get() - 1);
        });
    }
    let executors = [&here.0, &there.0];
    world.run(&executors, || left.get() < 2 && world.happens(20) || left.get() == 0).unwrap();
    there.die(&world);
    world.run(&[&here.0], || left.get() == 0).unwrap();
    world.happened()
}

/// What numbers come to under sabotage: somebody must notice.
fn sabotaged(sabotage: Sabotage) {
    let census = Census::take();
    let delivered = Rc::<RefCell<Seen>>::default();
    let world = World::new(0, Faults::NONE);
    world.sabotage(sabotage);
    numbers_in(&world, Faults::NONE, 50, &delivered, Way::Beside);
    numbers_in(&world, Faults::NONE, 50, &delivered, Way::Stream);
    drop(world);
    census.unchanged();
}

fixture! {
    fn a_driver_that_loses_silently() {
        sabotaged(Sabotage::LosesSilently);
    }

    fn a_driver_that_leaks() {
        sabotaged(Sabotage::Leaks);
    }

    fn a_driver_that_stalls() {
        sabotaged(Sabotage::Stalls);
    }
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

    /// Typed messages and datagrams are received so.
    fn what_is_received_beside_the_driver_arrives_once_and_in_order_too() {
        let (whole, any) = (Rc::<RefCell<Seen>>::default(), Rc::<RefCell<Seen>>::default());
        let mut happened = Happened::default();
        for seed in 0..50 {
            let world = World::new(seed, Faults::NONE);
            numbers_in(&world, Faults::UNNOTICED, 50, &whole, Way::Beside);
            let numbers = std::mem::take(&mut whole.borrow_mut().numbers);
            assert_eq!(numbers, (0..50).collect::<Vec<_>>(), "seed {seed}");
            numbers_in(&world, Faults::ALL, 50, &any, Way::Beside);
            let numbers = std::mem::take(&mut any.borrow_mut().numbers);
            assert!(numbers.is_sorted_by(|one, next| one < next), "seed {seed}: {numbers:?}");
            happened.add(&world.happened());
        }
        assert_eq!(whole.borrow().cut, 0);
        assert!(any.borrow().cut > 0 && any.borrow().whole > 0);
        for fault in [Fault::Storm, Fault::Reset, Fault::FalseEnd, Fault::DescriptorsLost] {
            assert!(happened.count(fault) > 0, "{fault:?}: {happened}");
        }
    }

    /// Streams and packets together know them all.
    fn each_kind_of_fault_happens() {
        let mut happened = Happened::default();
        for seed in 0..100 {
            happened.add(&streams(seed));
            let world = World::new(seed, Faults::NONE);
            numbers_in(&world, Faults::ALL, 50, &Rc::default(), Way::Stream);
            world.set_faults(Faults { out_of_descriptors: 0, ..Faults::ALL });
            let (near, _far) = Socket::pair(Party::join(&world).reactor(), Kind::SeqPacket).unwrap();
            (0..20).for_each(|_| drop(near.try_send("now")));
            happened.add(&world.happened());
        }
        println!("{happened}");
        for fault in Fault::EACH {
            assert!(happened.count(fault) > 0, "{fault:?} never happens: {happened}");
        }
    }

    fn nothing_happens_in_a_world_without_faults() {
        let world = World::new(0, Faults::NONE);
        numbers_in(&world, Faults::NONE, 50, &Rc::default(), Way::Stream);
        assert_eq!(world.happened(), Happened::default());
    }

    /// All that is tried finds nothing for a while, and then all of it is there.
    fn a_storm_is_outlived() {
        let storm = Faults { storm: 1000, storm_attempts_max: 20, ..Faults::NONE };
        let world = World::new(0, Faults::NONE);
        let (here, there) = (Party::join(&world), Party::join(&world));
        let (near, far) = Socket::pair(here.reactor(), Kind::SeqPacket).unwrap();
        let far = Socket::wrap(there.reactor(), far).unwrap();
        world.set_faults(storm);
        let heard = Rc::new(Cell::new(false));
        let said = Rc::clone(&heard);
        there.0.spawn(async move { said.set(far.receive().await.is_ok()) });
        here.0.spawn(async move { near.send("after the storm").await.unwrap() });
        for _ in 0..1000 {
            world.step(&[&here.0, &there.0]).unwrap();
        }
        assert!(!heard.get() && world.happened().count(Fault::Storm) > 100);
        world.set_faults(Faults::NONE);
        world.run(&[&here.0, &there.0], || heard.get()).unwrap();
    }

    /// As many completions as there is room for; then a stream ends, is begun anew, and nothing is lost.
    fn what_there_is_no_room_for_comes_later() {
        let seen = Rc::<RefCell<Seen>>::default();
        let world = World::new(0, Faults::NONE);
        let faults = Faults { completions_max: 1, untold: 500, ..Faults::NONE };
        numbers_in(&world, faults, 200, &seen, Way::Stream);
        assert_eq!(seen.borrow().numbers, (0..200).collect::<Vec<_>>());
        assert!(world.happened().count(Fault::Overflow) > 10, "{}", world.happened());
    }

    fn sabotage_is_noticed() {
        let cases = [
            (outcome_of!(a_driver_that_loses_silently), "what is whole"),
            (outcome_of!(a_driver_that_leaks), "left open"),
            (outcome_of!(a_driver_that_stalls), "everybody waits"),
        ];
        for (outcome, word) in cases {
            assert!(matches!(outcome.end, End::Failed(_)), "{}", outcome.end);
            assert!(outcome.output.contains(word), "{word}: {}", outcome.output);
        }
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
