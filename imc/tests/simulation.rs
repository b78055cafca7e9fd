//! Worlds of connections: those who connect, those who accept, and whatever happens to either.
//!
//! Each connection carries a mark from the one who made it and counts what goes each way. It knows no bytes
//! of the protocol.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use imc::{AcceptError, BoundSocket, ConfirmError, ConnectError, ConnectedSocket, SocketAddress};
use ring::script::{Fault, Faults, World};
use ring::{Executor, Message, ReceiveError, Spawner};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::worlds::{Holdings, Party, Quota, Tally, at_most, for_seeds, identified, identities};
use testing::{Census, in_own_process};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What one connection has come to.
#[derive(Debug, Default)]
struct Story {
    /// Descriptors that were sent along with the mark.
    sent: Vec<u64>,
    accepted: bool,
    /// Told that it could not be made.
    refused: bool,
}

struct Setting {
    world: World,
    stories: RefCell<BTreeMap<u64, Story>>,
    delivered: RefCell<BTreeSet<u64>>,
    busy: Cell<usize>,
    confirming: bool,
    shortages: bool,
    deaths: bool,
    ends: RefCell<BTreeMap<&'static str, u64>>,
}

impl Setting {
    fn milliseconds(&self, below: usize) -> Duration {
        Duration::from_millis(1 + self.world.below(below) as u64)
    }

    fn tell(&self, end: &'static str) {
        *self.ends.borrow_mut().entry(end).or_default() += 1;
    }

    /// The acceptor reads a mark: once, with the descriptors that came with it.
    fn accepted(&self, mark: u64, descriptors: &[OwnedFd], whole: bool) {
        let found = identities(descriptors);
        let mut stories = self.stories.borrow_mut();
        let story = stories.get_mut(&mark).expect("nobody has made this connection");
        assert!(!std::mem::replace(&mut story.accepted, true), "connection {mark} arrived twice");
        assert!(!story.refused, "connection {mark} was said not to have been made");
        match whole {
            true => assert_eq!(story.sent, found),
            false => assert!(self.shortages && story.sent.starts_with(&found)),
        }
        let mut delivered = self.delivered.borrow_mut();
        found.iter().for_each(|identity| assert!(delivered.insert(*identity), "delivered twice"));
    }
}

/// Something that has not ended; the death of its process ends it too.
struct Busy(Rc<Setting>);

impl Busy {
    fn new(setting: &Rc<Setting>) -> Busy {
        setting.busy.set(setting.busy.get() + 1);
        Busy(Rc::clone(setting))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

// Who accepts.

async fn accept(setting: Rc<Setting>, bound: BoundSocket, spawner: Spawner) {
    bound.set_confirming(setting.confirming);
    loop {
        match bound.accept().await {
            Ok(arrival) => drop(spawner.spawn(answer(Rc::clone(&setting), arrival.socket))),
            Err(AcceptError::Gone) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let violations = bound.violations();
    assert_eq!(violations.total(), violations.lost, "only descriptors may be lost: {violations:?}");
    assert!(setting.shortages || violations.lost == 0);
}

/// Says each number back, from the mark on, which counts as the first.
async fn answer(setting: Rc<Setting>, socket: ConnectedSocket) {
    let mut expected = 0;
    loop {
        let (mut message, whole) = match socket.receive().await {
            Ok(message) => (message, true),
            Err(ReceiveError::DescriptorsLost(message)) => (message, false),
            Err(ReceiveError::Closed) => return,
            Err(error) => panic!("{error}"),
        };
        let (mark, number) = parts(message.bytes());
        assert_eq!(number, expected, "a message of connection {mark} is lost, or comes twice");
        if number == 0 {
            let descriptors = message.take_descriptors();
            setting.accepted(mark, &descriptors, whole);
        }
        expected += 1;
        if setting.world.happens(100) {
            socket.reactor().sleep(setting.milliseconds(10)).await;
        }
        if socket.send(message_of(mark, number)).await.is_err() {
            return;
        }
    }
}

fn message_of(mark: u64, number: u64) -> Message {
    Message::new([mark.to_ne_bytes(), number.to_ne_bytes()].concat())
}

fn parts(bytes: &[u8]) -> (u64, u64) {
    let number = |range: std::ops::Range<usize>| u64::from_ne_bytes(bytes[range].try_into().unwrap());
    (number(0..8), number(8..16))
}

// Who connects.

async fn connect(busy: Busy, address: Rc<SocketAddress>) {
    let setting = &busy.0;
    for _ in 0..1 + setting.world.below(5) {
        let (descriptors, sent): (Vec<OwnedFd>, Vec<u64>) =
            (0..setting.world.below(3)).map(|_| identified()).unzip();
        let mark = setting.stories.borrow().len() as u64;
        setting.stories.borrow_mut().insert(mark, Story { sent, ..Story::default() });
        let patience = if setting.world.happens(200) { setting.milliseconds(5) } else { Duration::MAX / 4 };
        let whole = pin!(talk(setting, &address, mark, descriptors));
        match at_most(address.reactor(), patience, whole).await {
            Some(end) => setting.tell(end),
            None => setting.tell("withdrawn"),
        }
    }
}

async fn connected(
    setting: &Setting,
    address: &SocketAddress,
) -> Result<ConnectedSocket, Option<ConnectError>> {
    if !setting.confirming {
        return address.connect().await.map_err(Some);
    }
    match address.connect_confirmed(setting.milliseconds(10)).await {
        Ok(socket) | Err(ConfirmError::Unconfirmed(socket)) => Ok(socket),
        Err(ConfirmError::Gone) => Err(None),
        Err(ConfirmError::Connect(error)) => Err(Some(error)),
        Err(error) => panic!("{error}"),
    }
}

/// Connects, and sends numbers that are to come back.
async fn talk(
    setting: &Setting,
    address: &SocketAddress,
    mark: u64,
    descriptors: Vec<OwnedFd>,
) -> &'static str {
    let socket = match connected(setting, address).await {
        Ok(socket) => socket,
        Err(error) => return refused(setting, mark, error),
    };
    let count = 1 + setting.world.below(4) as u64;
    let mut first = Some(descriptors);
    for number in 0..count {
        let with = first.take().unwrap_or_default();
        let message = with.into_iter().fold(message_of(mark, number), Message::with_descriptor);
        if let Err(error) = socket.send(message).await {
            assert!(setting.deaths || setting.shortages, "{error}");
            return "not sent";
        }
    }
    for number in 0..count {
        match socket.receive().await {
            Ok(message) => assert_eq!(parts(message.bytes()), (mark, number), "another's, or out of order"),
            Err(ReceiveError::Closed) => {
                assert!(setting.deaths || setting.shortages, "connection {mark} ended by itself");
                return "ended";
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(setting.stories.borrow()[&mark].accepted);
    "answered"
}

fn refused(setting: &Setting, mark: u64, error: Option<ConnectError>) -> &'static str {
    if error.is_some() {
        setting.stories.borrow_mut().get_mut(&mark).unwrap().refused = true;
    }
    match error {
        None => {
            assert!(setting.deaths || setting.shortages);
            "not confirmed"
        }
        Some(ConnectError::Gone) => {
            assert!(setting.deaths || setting.shortages);
            "gone"
        }
        Some(ConnectError::OutOfDescriptors | ConnectError::Io(_)) => {
            assert!(setting.shortages);
            "no descriptors"
        }
        // Only the time limit of a confirmed connect says so.
        Some(ConnectError::WouldBlock) => "late",
        Some(error) => panic!("{error}"),
    }
}

// The world.

fn acceptor(setting: &Rc<Setting>, bound: &OwnedFd) -> Party {
    let party = Party::join(&setting.world);
    let bound = BoundSocket::from_fd(party.reactor(), bound.try_clone().unwrap()).unwrap();
    party.0.spawn(accept(Rc::clone(setting), bound, party.0.spawner()));
    party
}

/// What the parties of one world may hold: their reactors' own, connections and pairs, and what is passed.
const PARTY: Holdings = Holdings { descriptors: 40, bytes: 2 << 20 };

fn live(seed: u64, faults: Faults, deaths: bool, tally: &mut Tally<&'static str>) {
    let (census, quota) = (Census::take(), Quota::begin());
    let world = World::new(seed, Faults::NONE);
    let confirming = world.happens(500);
    let setting = Rc::new(Setting {
        world,
        stories: RefCell::default(),
        delivered: RefCell::default(),
        busy: Cell::new(0),
        confirming,
        shortages: faults.out_of_descriptors > 0,
        deaths,
        ends: RefCell::default(),
    });
    let world = &setting.world;
    let (bound, address) = testing::packet_pair();
    let mut accepting = acceptor(&setting, &bound);
    let mut clients = Vec::new();
    for _ in 0..1 + world.below(4) {
        let party = Party::join(world);
        let address = SocketAddress::from_fd(party.reactor(), address.try_clone().unwrap()).unwrap();
        let address = Rc::new(address);
        for _ in 0..1 + world.below(3) {
            party.0.spawn(connect(Busy::new(&setting), Rc::clone(&address)));
        }
        clients.push(party);
    }
    world.set_faults(faults);
    while setting.busy.get() > 0 {
        if deaths && world.happens(10) {
            if world.happens(500) && clients.len() > 1 {
                clients.swap_remove(world.below(clients.len())).die(world);
            } else {
                let heir = acceptor(&setting, &bound);
                std::mem::replace(&mut accepting, heir).die(world);
            }
            world.stir();
        }
        let mut parties: Vec<&Executor> = clients.iter().map(|party| &party.0).collect();
        parties.push(&accepting.0);
        world.step(&parties).unwrap();
        let Holdings { descriptors, bytes } = PARTY;
        quota
            .holds(Holdings { descriptors: descriptors * parties.len(), bytes: bytes * (1 + parties.len()) });
    }
    // When nobody can connect any more the acceptor comes to its end.
    drop((clients, address, bound));
    let left = || accepting.0.settle().tasks_left;
    while left() {
        world.step(&[&accepting.0]).unwrap();
    }
    drop(accepting);
    tally.add(setting.ends.take(), &setting.world);
    drop(setting);
    quota.is_given_back();
    census.unchanged();
}

fn worlds(first: u64, faults: Faults, deaths: bool, ends: &[&'static str]) {
    let mut tally = Tally::default();
    for_seeds(first, 200, |seed| live(seed, faults, deaths, &mut tally));
    // There are no streams here, and each message is asked for.
    let never = [Fault::ShortSend, Fault::ShortReceive, Fault::EndedEarly, Fault::FullNow];
    let kinds = faults.kinds().into_iter().filter(|fault| !never.contains(fault));
    tally.has(ends, kinds.chain(deaths.then_some(Fault::KilledAtWork)));
}

in_own_process! {
    fn without_faults_every_connection_is_answered() {
        worlds(0, Faults::NONE, false, &["answered", "withdrawn"]);
    }

    fn what_no_program_should_notice_no_connection_notices() {
        worlds(1_000_000, Faults::UNNOTICED, false, &["answered", "withdrawn"]);
    }

    fn whatever_runs_out_nobody_is_told_what_is_not() {
        worlds(2_000_000, Faults::ALL, false, &["answered", "no descriptors", "ended"]);
    }

    fn whoever_dies_the_others_go_on() {
        worlds(3_000_000, Faults::UNNOTICED, true, &["answered", "ended"]);
    }
}
