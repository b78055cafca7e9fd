//! Worlds with rogues in them: clients whose large calls have parts that do not fit, and a server whose large
//! answers have. The honest go on as if they were not there.
//!
//! The rogues speak bytes, put together by hand from the protocol's tables. Of what happens to them nothing
//! is expected.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::alloc::System;
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use ring::script::{Fault, Faults};
use ring::{Kind, Message, Reactor, ReceiveError, Received, Socket, Spawner};
use seqpacket::Object;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::{Census, in_own_process};
use worlds::cast::{Busy, Cast, ROGUES_MARK, Setting, call_as_model};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes of a part that is not the last.
const PART_BYTES: usize = 102_016;

/// How long a rogue waits for an answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// The example of the protocol's description.
const HELLO: [u8; 52] = [
    0x24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'S', b'R', b'T', b'1', 1, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    0x20, 1, 0x40, 0, 0, 0, 0, 0, 0, 8, 0x10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 4,
];

// Frames.

const CALL: u8 = 2;
const ANSWER: u8 = 3;
const CANCEL: u8 = 5;
const PART: u8 = 10;
const LOST: u8 = 12;

fn frame(kind: u8, number: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_le_bytes()[..], &number.to_le_bytes(), &[kind, 0, 0, flags], &[0; 4], payload].concat()
}

/// Opens a call or an answer of so many bytes in all.
fn large(kind: u8, number: u32, total: u64) -> Vec<u8> {
    frame(kind, number, 1, &[total.to_le_bytes(), [0; 8]].concat())
}

/// A part that begins as calls of rogues do.
fn part(number: u32, bytes: usize) -> Vec<u8> {
    let mut payload = ROGUES_MARK.to_ne_bytes().to_vec();
    payload.resize(bytes, 7);
    frame(PART, number, 0, &payload)
}

/// What is wrong with the parts of one large message.
#[derive(Clone, Copy, Debug)]
enum Malice {
    /// Nobody has announced them.
    OutOfNothing,
    TooShort,
    TooLong,
    /// One more than there are.
    OneMore,
    /// The rest never comes.
    NeverEnds,
    /// The message is announced again in between.
    OpensTwice,
    /// Of two messages at a time, each in the other's place.
    Exchanged,
    TotalTooLarge,
    Empty,
    /// With a descriptor.
    Laden,
    /// It is withdrawn, and goes on.
    WithdrawnAndGoesOn,
    /// As it should be, but that descriptors are said to be lost which never were.
    MissesSomething,
    /// As it should be.
    Nothing,
}

const MALICE: [Malice; 13] = [
    Malice::OutOfNothing,
    Malice::TooShort,
    Malice::TooLong,
    Malice::OneMore,
    Malice::NeverEnds,
    Malice::OpensTwice,
    Malice::Exchanged,
    Malice::TotalTooLarge,
    Malice::Empty,
    Malice::Laden,
    Malice::WithdrawnAndGoesOn,
    Malice::MissesSomething,
    Malice::Nothing,
];

/// The packets of a message of this kind and number.
fn packets(malice: Malice, kind: u8, number: u32) -> Vec<Vec<u8>> {
    const REST: usize = 10_000;
    let open = || large(kind, number, (PART_BYTES + REST) as u64);
    let (first, rest) = (part(number, PART_BYTES), part(number, REST));
    match malice {
        Malice::OutOfNothing => vec![first],
        Malice::TooShort => vec![open(), part(number, 10)],
        Malice::TooLong => vec![open(), first, part(number, REST + 1)],
        Malice::OneMore => vec![open(), first, rest.clone(), rest],
        Malice::NeverEnds => vec![open(), first],
        Malice::OpensTwice => vec![open(), first, open(), rest],
        Malice::Exchanged => {
            let other = large(kind, number + 1, (PART_BYTES + 100) as u64);
            vec![
                open(),
                other,
                first,
                part(number + 1, PART_BYTES),
                part(number + 1, REST),
                part(number, 100),
            ]
        }
        Malice::TotalTooLarge => vec![large(kind, number, u64::MAX), first],
        Malice::Empty => vec![open(), first, frame(PART, number, 0, &[])],
        Malice::Laden | Malice::Nothing => vec![open(), first, rest],
        Malice::MissesSomething => vec![open(), first, rest, frame(LOST, number, 0, &[])],
        Malice::WithdrawnAndGoesOn => vec![open(), first, frame(CANCEL, number, 0, &[]), rest],
    }
}

async fn say(socket: &Socket, packet: Vec<u8>, descriptor: Option<OwnedFd>) -> Option<()> {
    let message = descriptor.into_iter().fold(Message::new(packet), Message::with_descriptor);
    let sending = Box::pin(socket.send(message));
    at_most(socket.reactor(), PATIENCE, sending).await?.ok()
}

async fn say_all(socket: &Socket, malice: Malice, kind: u8, number: u32) -> Option<()> {
    for (place, packet) in packets(malice, kind, number).into_iter().enumerate() {
        let laden = matches!(malice, Malice::Laden) && place > 0;
        say(socket, packet, laden.then(|| identified().0)).await?;
    }
    Some(())
}

async fn hear(socket: &Socket) -> Option<Received> {
    let receiving = Box::pin(socket.receive());
    match at_most(socket.reactor(), PATIENCE, receiving).await? {
        Ok(packet) | Err(ReceiveError::DescriptorsLost(packet)) => Some(packet),
        Err(_) => None,
    }
}

// Clients.

async fn be_a_nuisance(setting: Rc<Setting>, reactor: Reactor, address: OwnedFd) {
    let address = Socket::wrap(&reactor, address).unwrap();
    for _ in 0..1 + setting.world.below(4) {
        let _ = attach_and_misbehave(&setting, &reactor, &address).await;
        reactor.sleep(setting.milliseconds(10)).await;
    }
}

async fn attach_and_misbehave(setting: &Setting, reactor: &Reactor, address: &Socket) -> Option<()> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).ok()?;
    say(address, b"c".to_vec(), Some(far)).await?;
    hear(&near).await?;
    for number in 0..1 + setting.world.below(3) as u32 {
        let malice = MALICE[setting.world.below(MALICE.len())];
        say_all(&near, malice, CALL, 2 * number).await?;
        hear(&near).await;
    }
    Some(())
}

// The server.

async fn answer_badly(setting: Rc<Setting>, reactor: Reactor, bound: OwnedFd, spawner: Spawner) {
    let bound = Socket::wrap(&reactor, bound).unwrap();
    loop {
        let mut arrival = match bound.receive().await {
            Ok(arrival) => arrival,
            Err(ReceiveError::Closed) => return,
            Err(_) => continue,
        };
        let Some(near) = arrival.take_descriptor() else { continue };
        let (setting, near) = (Rc::clone(&setting), Socket::wrap(&reactor, near).unwrap());
        spawner.spawn(async move {
            let _ = answer_one(&setting, &near).await;
        });
    }
}

async fn answer_one(setting: &Setting, near: &Socket) -> Option<()> {
    say(near, HELLO.to_vec(), None).await?;
    loop {
        let packet = near.receive().await.ok()?;
        // The first frame's kind and number; what follows it is of no interest.
        let bytes = packet.bytes();
        if bytes.len() < 16 || bytes[8] != CALL {
            continue;
        }
        let number = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        say_all(near, MALICE[setting.world.below(MALICE.len())], ANSWER, number).await?;
    }
}

/// Calls to a server that answers badly: each ends, once, and whatever it is told.
async fn call_the_rogue(busy: Busy, object: Object, ended: Rc<Cell<u64>>) {
    let setting = &busy.0;
    for _ in 0..1 + setting.world.below(4) {
        let answer_bytes = Some(PART_BYTES + 10_000);
        let options = seqpacket::CallOptions { answer_bytes, ..Default::default() };
        let call = object.call_with("anything", options);
        let time = Duration::from_millis(200);
        if at_most(object.reactor(), time, call).await.is_some() {
            ended.set(ended.get() + 1);
        }
    }
}

// The world.

async fn call_the_honest(busy: Busy, object: Object) {
    let setting = &busy.0;
    for _ in 0..1 + setting.world.below(5) {
        let verb = [Verb::Echo, Verb::Make, Verb::Later, Verb::Drop][setting.world.below(4)];
        let descriptors = (0..setting.world.below(3)).map(|_| identified().0).collect();
        let _ = call_as_model(setting, &object, verb, descriptors, None).await;
    }
}

/// What the rogues came to in all worlds of a test.
#[derive(Default)]
struct Rogues {
    found_out: u64,
    told: u64,
}

fn live(seed: u64, faults: Faults, tally: &mut Tally, rogues: &mut Rogues) {
    let census = Census::take();
    let allowed = Allowed { dropped: false, ..Allowed::default() };
    let setting = Setting::new(seed, allowed);
    setting.rogues.set(true);
    let world = &setting.world;
    let mut cast = Cast::new(&setting);
    let (bound, bad) = testing::packet_pair();
    let server = Party::join(world);
    let (reactor, spawner) = (server.reactor().clone(), server.0.spawner());
    server.0.spawn(answer_badly(Rc::clone(&setting), reactor, bound, spawner));
    cast.clients.push(Some(server));
    let ended = Rc::new(Cell::new(0));
    for _ in 0..1 + world.below(2) {
        let party = Party::join(world);
        let [object, _] = cast.objects(&setting, party.reactor());
        party.0.spawn(call_the_honest(Busy::new(&setting), object));
        let bad = Object::from_fd(party.reactor(), bad.try_clone().unwrap()).unwrap();
        party.0.spawn(call_the_rogue(Busy::new(&setting), bad, Rc::clone(&ended)));
        cast.clients.push(Some(party));
    }
    for _ in 0..1 + world.below(2) {
        let party = Party::join(world);
        let address = cast.servers[0].address.as_fd().try_clone_to_owned().unwrap();
        party.0.spawn(be_a_nuisance(Rc::clone(&setting), party.reactor().clone(), address));
        cast.clients.push(Some(party));
    }
    world.set_faults(faults);
    while setting.busy.get() > 0 {
        cast.step(&setting);
    }
    rogues.found_out += cast.violations();
    rogues.told += ended.get();
    drop(bad);
    cast.finish(&setting);
    tally.add(setting.model.ends(), world);
    setting.is_given_back();
    census.unchanged();
}

fn worlds(first: u64, faults: Faults) {
    let (mut tally, mut rogues) = (Tally::default(), Rogues::default());
    for_seeds(first, 150, |seed| live(seed, faults, &mut tally, &mut rogues));
    tally.has(&["answered", "dropped"], all_but_streams(faults).chain([Fault::Cancelled]));
    let Rogues { found_out, told } = rogues;
    println!("{found_out} found out, {told} calls ended by a bad server");
    assert!(testing::worlds::is_one_seed() || found_out > 0 && told > 0, "the rogues did nothing");
}

in_own_process! {
    fn among_rogues_every_honest_call_has_its_answer() {
        worlds(0, Faults::NONE);
    }

    fn among_rogues_what_is_not_to_be_noticed_is_not() {
        worlds(1_000_000, Faults::UNNOTICED);
    }
}
