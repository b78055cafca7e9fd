//! Worlds of plain objects: shared ends, continuations that travel to a third party or home, answers of many
//! packets, withdrawals and deaths.
//!
//! The model is that of the worlds with sessions; what a loss of descriptors leads to is another matter here,
//! since a call that has lost some is dropped whole.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::alloc::System;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ring::script::{Fault, Faults, World};
use ring::{Executor, Message, Reactor, Spawner};
use seqpacket::{PlainContinuation, PlainIncoming, PlainMailbox, PlainObject, ReturnTrust};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::worlds::Place;
use testing::{Census, in_own_process};
use worlds::cast::{Busy, Serving, Setting};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

// Servers.

/// Which of the two a server is.
#[derive(Clone)]
enum Role {
    /// Does as it is asked; what is to be forwarded, this one answers.
    Asked(PlainObject),
    /// Answers for others, on what it is given.
    Answers,
}

async fn serve(serving: Serving, mailbox: PlainMailbox, role: Role, spawner: Spawner) {
    while let Some(call) = mailbox.next().await {
        let (setting, reactor) = (Rc::clone(&serving.0), mailbox.reactor().clone());
        match role.clone() {
            Role::Asked(other) => spawner.spawn(handle(setting, reactor, other, call)),
            Role::Answers => spawner.spawn(answer_for_another(setting, reactor, call)),
        };
    }
}

/// So much is behind the mark of a large answer: four packets.
const LARGE: usize = 400_000;

/// Whether an answer of many packets is expected.
fn is_large(bytes: &[u8]) -> bool {
    bytes[9] == 1
}

fn mark_and_verb(bytes: &[u8]) -> (u64, Verb) {
    (u64::from_ne_bytes(bytes[..8].try_into().unwrap()), Verb::of_byte(bytes[8]))
}

fn answer(setting: &Setting, mark: u64, descriptors: Vec<OwnedFd>) -> Message {
    setting.model.answered(mark, identities(&descriptors));
    descriptors.into_iter().fold(Message::new(mark.to_ne_bytes()), Message::with_descriptor)
}

async fn handle(setting: Rc<Setting>, reactor: Reactor, other: PlainObject, call: PlainIncoming) {
    let (bytes, descriptors, continuation) = call.into_parts();
    let (mark, verb) = mark_and_verb(&bytes);
    setting.model.seen(mark, verb, &descriptors);
    if is_large(&bytes) {
        let mut answer = answer(&setting, mark, descriptors);
        answer.bytes_mut().resize(LARGE, 7);
        // The caller may be gone, or want nothing any more.
        let _ = continuation.answer_large(answer).await;
        return;
    }
    match verb {
        Verb::Echo => continuation.answer(answer(&setting, mark, descriptors)).unwrap(),
        Verb::Make => continuation.answer(answer(&setting, mark, vec![identified().0])).unwrap(),
        Verb::Later => {
            reactor.sleep(setting.milliseconds(10)).await;
            if !continuation.is_cancelled() {
                continuation.answer(answer(&setting, mark, descriptors)).unwrap();
            }
        }
        Verb::Never => continuation.cancelled().await,
        Verb::Forward => {
            let Ok(fd) = continuation.into_fd() else { return };
            let message = Message::new(bytes).with_descriptor(fd);
            // Of how this call ends nobody is told: whoever made the other is.
            let _ = other.call(message).await;
        }
        Verb::Drop | Verb::Refuse | Verb::HandOn | Verb::Errand => drop(continuation),
    }
}

/// The argument is the continuation of somebody else's call.
async fn answer_for_another(setting: Rc<Setting>, reactor: Reactor, mut call: PlainIncoming) {
    let (mark, _) = mark_and_verb(call.bytes());
    let continuation = PlainContinuation::from_fd(&reactor, call.take_descriptor().unwrap()).unwrap();
    if setting.world.happens(300) {
        reactor.sleep(setting.milliseconds(5)).await;
    }
    continuation.answer(answer(&setting, mark, vec![identified().0])).unwrap();
    let _ = call.answer("done");
}

/// A server's process, its mailbox, and the object.
struct Server {
    party: Option<Party>,
    bound: Option<OwnedFd>,
    object: OwnedFd,
    pairs: Pairs,
}

/// How often a continuation pair serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    Once,
    /// Again and again: it comes home in the answer, where whoever answers is who was asked.
    Again,
}

impl Server {
    fn new(pairs: Pairs) -> Server {
        let (bound, object) = testing::packet_pair();
        Server { party: None, bound: Some(bound), object, pairs }
    }

    fn object(&self, reactor: &Reactor) -> PlainObject {
        let object = PlainObject::from_fd(reactor, self.object.try_clone().unwrap()).unwrap();
        match self.pairs {
            Pairs::Once => object,
            Pairs::Again => object.with_returned_pairs(ReturnTrust::FirstToAnswer),
        }
    }

    fn take_over(&mut self, setting: &Rc<Setting>, other: Option<&OwnedFd>) {
        let Some(bound) = &self.bound else { return };
        let party = Party::join(&setting.world);
        let mailbox = PlainMailbox::from_fd(party.reactor(), bound.try_clone().unwrap()).unwrap();
        if self.pairs == Pairs::Again {
            mailbox.return_continuations();
        }
        let role = match other {
            Some(fd) => Role::Asked(PlainObject::from_fd(party.reactor(), fd.try_clone().unwrap()).unwrap()),
            None => Role::Answers,
        };
        party.0.spawn(serve(Serving::new(setting), mailbox, role, party.0.spawner()));
        self.party = Some(party);
    }
}

// Clients.

async fn client(busy: Busy, object: PlainObject) {
    for _ in 0..1 + busy.0.world.below(6) {
        some_call(Busy::new(&busy.0), object.clone()).await;
    }
}

async fn some_call(busy: Busy, object: PlainObject) {
    let world = &busy.0.world;
    let verbs = [Verb::Echo, Verb::Make, Verb::Later, Verb::Drop, Verb::Never, Verb::Forward];
    let verb = verbs[world.below(verbs.len())];
    let large = verb == Verb::Echo && world.happens(400);
    call_as_model(&busy.0, &object, verb, large).await;
}

/// Makes a call and tells the model how it ended.
async fn call_as_model(setting: &Rc<Setting>, object: &PlainObject, verb: Verb, large: bool) {
    let world = &setting.world;
    let descriptors: Vec<OwnedFd> = match verb {
        Verb::Forward => Vec::new(),
        _ => (0..world.below(3)).map(|_| identified().0).collect(),
    };
    let within = (verb == Verb::Never || world.happens(200)).then(|| setting.milliseconds(20));
    let made = Made::new(&setting.model, verb, identities(&descriptors), within);
    let bytes = [&made.mark.to_ne_bytes()[..], &[verb.byte(), u8::from(large)]].concat();
    let message = descriptors.into_iter().fold(Message::new(bytes), Message::with_descriptor);
    let call = if large { object.call_large(message) } else { object.call(message) };
    let call = match within {
        Some(time) => call.within(time),
        None => call,
    };
    let result = match world.happens(200) {
        true => at_most(object.reactor(), setting.milliseconds(6), call).await,
        false => Some(call.await),
    };
    let Some(result) = result else { return };
    if let Ok(answer) = &result {
        let rest = &answer.bytes()[8..];
        assert_eq!(rest.len(), if large { LARGE - 8 } else { 0 });
        assert!(rest.iter().all(|byte| *byte == 7));
    }
    let _ = made.ended(result);
}

// The world.

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deaths {
    None,
    /// Somebody's, and servers come back or not.
    Some,
}

struct Cast {
    servers: [Server; 2],
    clients: Vec<Option<Party>>,
}

impl Cast {
    fn revive(&mut self, setting: &Rc<Setting>) {
        let [asked, answers] = &mut self.servers;
        if asked.party.is_none() {
            asked.take_over(setting, Some(&answers.object));
        }
        if answers.party.is_none() {
            answers.take_over(setting, None);
        }
    }

    fn executors(&self) -> Vec<&Executor> {
        let servers = self.servers.iter().filter_map(|server| server.party.as_ref());
        servers.chain(self.clients.iter().flatten()).map(|party| &party.0).collect()
    }

    fn step(&mut self, setting: &Rc<Setting>) {
        let waits = self.servers.iter().any(|server| server.party.is_none() && server.bound.is_some());
        if waits && setting.world.happens(50) {
            self.revive(setting);
        }
        if let Err(stuck) = setting.world.step(&self.executors()) {
            assert!(waits, "{stuck}");
            self.revive(setting);
        }
        setting.look(self.executors().len(), true);
    }

    /// Everybody goes, and the servers notice.
    fn finish(mut self, setting: &Rc<Setting>) {
        self.clients.clear();
        let parties = self.servers.map(|server| server.party);
        let executors: Vec<&Executor> = parties.iter().flatten().map(|party| &party.0).collect();
        // The first sees that its callers are gone; then nobody can ask the second any more.
        let served = setting.world.run(&executors, || setting.serving.get() == 0);
        served.unwrap_or_else(|stuck| panic!("a server does not see that everybody is gone: {stuck}"));
    }

    fn somebody_dies(&mut self, world: &World) {
        if world.happens(600) {
            let server = &mut self.servers[world.below(2)];
            if let Some(party) = server.party.take() {
                party.die(world);
            }
            if world.happens(300) {
                server.bound = None;
            }
        } else {
            let client = world.below(self.clients.len());
            if let Some(party) = self.clients[client].take() {
                party.die(world);
            }
        }
        world.stir();
    }
}

fn live(seed: u64, faults: Faults, deaths: Deaths, tally: &mut Tally) {
    let census = Census::take();
    let shortages = faults.out_of_descriptors > 0;
    let gone = deaths == Deaths::Some;
    let setting =
        Setting::new(seed, Allowed { gone, dropped: gone || shortages, shortages, comes_home: false });
    let world = &setting.world;
    let pairs = if world.happens(500) { Pairs::Again } else { Pairs::Once };
    let allowed = setting.model.allowed.get();
    setting.model.allowed.set(Allowed { comes_home: pairs == Pairs::Again, ..allowed });
    // What is forwarded to the second is answered without going home.
    let mut cast = Cast { servers: [Server::new(pairs), Server::new(Pairs::Once)], clients: Vec::new() };
    cast.revive(&setting);
    for _ in 0..1 + world.below(3) {
        let party = Party::join(world);
        // The tasks of a client share the object; the clients share the socket.
        let object = cast.servers[0].object(party.reactor());
        for _ in 0..1 + world.below(4) {
            party.0.spawn(client(Busy::new(&setting), object.clone()));
        }
        cast.clients.push(Some(party));
    }
    world.set_faults(faults);
    let mut left = if deaths == Deaths::Some { 1 + world.below(3) } else { 0 };
    while setting.busy.get() > 0 {
        if left > 0 && world.happens(10) {
            left -= 1;
            cast.somebody_dies(world);
        }
        cast.step(&setting);
    }
    cast.finish(&setting);
    tally.add(setting.model.ends(), world);
    setting.is_given_back();
    census.unchanged();
}

// One small story, and something that happens at each of its steps.

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Withdrawn(usize),
    ClientDies,
    /// And another takes over.
    ServerDies(usize),
    /// For good.
    ServerEnds(usize),
}

const TOLD: [(Verb, bool); 6] = [
    (Verb::Echo, false),
    (Verb::Echo, true),
    (Verb::Make, false),
    (Verb::Later, false),
    (Verb::Never, false),
    (Verb::Forward, false),
];

/// The story with this event at this step. Says whether it lasted so long.
fn tell(seed: u64, pairs: Pairs, event: Event, at: u64, tally: &mut Tally) -> bool {
    let forceful = !matches!(event, Event::Withdrawn(_));
    let comes_home = pairs == Pairs::Again;
    let allowed = Allowed { gone: forceful, dropped: forceful, shortages: false, comes_home };
    let setting = Setting::new(seed, allowed);
    let mut cast = Cast { servers: [Server::new(pairs), Server::new(Pairs::Once)], clients: Vec::new() };
    cast.revive(&setting);
    let party = Party::join(&setting.world);
    let object = cast.servers[0].object(party.reactor());
    let call = |(verb, large)| {
        let (busy, object) = (Busy::new(&setting), object.clone());
        Place::of(async move { call_as_model(&busy.0, &object, verb, large).await })
    };
    let places = TOLD.map(call);
    places.iter().for_each(|place| party.0.spawn(place.clone().ends()));
    drop(object);
    cast.clients.push(Some(party));
    setting.world.set_faults(Faults::UNNOTICED);
    let mut step = 0;
    while setting.busy.get() > 0 {
        if step == at {
            match event {
                Event::Withdrawn(number) => places[number].withdraw(),
                Event::ClientDies => {
                    let party = cast.clients.pop().flatten().unwrap();
                    setting.world.kill(party.reactor());
                    places.iter().for_each(Place::withdraw);
                }
                Event::ServerDies(which) | Event::ServerEnds(which) => {
                    let server = &mut cast.servers[which];
                    if event == Event::ServerEnds(which) {
                        server.bound = None;
                    }
                    if let Some(party) = server.party.take() {
                        party.die(&setting.world);
                    }
                }
            }
            setting.world.stir();
        }
        step += 1;
        cast.step(&setting);
    }
    drop(places);
    cast.finish(&setting);
    tally.add(setting.model.ends(), &setting.world);
    setting.is_given_back();
    step > at
}

fn at_every_step(first: u64, pairs: Pairs, events: &[Event]) {
    let census = Census::take();
    let mut tally = Tally::default();
    for_seeds(first, 1, |seed| {
        for event in events {
            let mut at = 0;
            while tell(seed, pairs, *event, at, &mut tally) {
                at += 1;
            }
        }
    });
    tally.has(&["answered", "forgotten"], [Fault::Cancelled]);
    census.unchanged();
}

fn worlds(first: u64, faults: Faults, deaths: Deaths, ends: &[&str]) {
    let mut tally = Tally::default();
    for_seeds(first, 200, |seed| live(seed, faults, deaths, &mut tally));
    let deeds = [Fault::Cancelled, Fault::Killed, Fault::KilledAtWork];
    let deeds = deeds.into_iter().filter(|fault| *fault == Fault::Cancelled || deaths == Deaths::Some);
    tally.has(ends, all_but_streams(faults).chain(deeds));
}

in_own_process! {
    fn without_faults_every_plain_call_has_its_answer() {
        worlds(0, Faults::NONE, Deaths::None, &["answered", "dropped", "late", "forgotten"]);
    }

    /// An answer and the end right behind it is what every plain call sees.
    fn what_no_program_should_notice_is_not_noticed_by_plain_calls() {
        worlds(1_000_000, Faults::UNNOTICED, Deaths::None, &["answered", "dropped", "late"]);
    }

    fn whatever_runs_out_every_plain_call_ends_once() {
        worlds(2_000_000, Faults::ALL, Deaths::None, &["answered", "dropped", "answer lost descriptors"]);
    }

    fn whoever_dies_every_plain_call_ends_once() {
        worlds(3_000_000, Faults::UNNOTICED, Deaths::Some, &["answered", "dropped", "gone"]);
    }

    fn a_plain_call_can_be_withdrawn_at_every_step() {
        let events: Vec<Event> = (0..TOLD.len()).map(Event::Withdrawn).collect();
        at_every_step(5_000_000, Pairs::Once, &events);
        at_every_step(5_000_001, Pairs::Again, &events);
    }

    fn everybody_can_die_at_every_step_of_plain_calls() {
        let deaths = [Event::ClientDies, Event::ServerDies(0), Event::ServerDies(1), Event::ServerEnds(0)];
        at_every_step(6_000_000, Pairs::Once, &deaths);
        at_every_step(6_000_001, Pairs::Again, &deaths);
    }

    fn whoever_dies_in_a_world_of_shortages_every_plain_call_ends_once() {
        worlds(4_000_000, Faults::ALL, Deaths::Some, &["answered", "dropped", "gone"]);
    }
}
