//! One small story of strangers, stopped at every one of its steps: there an attempt is withdrawn, or
//! somebody dies. Whatever the moment, every attempt ends once and nothing is left. And worlds whose drivers
//! do what none does, which must be noticed.
//!
//! It knows the steps of a world by their number only.
#![allow(clippy::unwrap_used)]

mod raw;
mod worlds;

use std::alloc::System;
use std::rc::Rc;

use ring::script::{Fault, Faults, Sabotage};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::worlds::Place;
use testing::{Census, End as BodyEnd, Outcome, fixture, in_own_process, outcome_of};
use worlds::cast::{Cast, Wish, ask};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    /// One of the attempts is withdrawn.
    Withdrawn(usize),
    AskerDies,
    AskedDies,
    /// And another takes over.
    ServerDies,
    /// For good.
    ServerEnds,
}

/// Who asks, and whether a confirmation is waited for.
const ATTEMPTS: [(usize, bool); 3] = [(0, true), (0, false), (1, true)];

/// The story with this event at this step. Says whether it lasted so long.
fn tell(seed: u64, faults: Faults, event: Event, at: u64, prepare: &Prepare, tally: &mut Tally) -> bool {
    let census = Census::take();
    let quota = Quota::begin();
    let deaths = !matches!(event, Event::Nothing | Event::Withdrawn(_));
    let setting = Setting::new(seed, Allowed { deaths, ..Allowed::default() });
    let mut cast = Cast::new(&setting, quota, 1, 2);
    let servers = cast.server_keys();
    let locators = [0, 1].map(|number| cast.programs[number].locator(&servers));
    let attempt = |(from, confirmed): (usize, bool)| {
        let program = &cast.programs[from];
        let netlayer = Rc::clone(program.netlayer.as_ref().unwrap());
        let reactor = program.party.as_ref().unwrap().reactor().clone();
        let wish = Wish { to: 1 - from, locator: locators[1 - from].clone(), confirmed, patience: None };
        let (busy, setting) = (Busy::new(&setting), Rc::clone(&setting));
        Place::of(async move {
            // When it is registered.
            reactor.sleep(setting.milliseconds(300)).await;
            ask(busy, netlayer, reactor, from, wish).await;
        })
    };
    let places = ATTEMPTS.map(attempt);
    for (place, (from, _)) in places.iter().zip(ATTEMPTS) {
        cast.programs[from].party.as_ref().unwrap().0.spawn(place.clone().ends());
    }
    setting.world.set_faults(faults);
    prepare(&setting);
    let mut step = 0;
    while setting.busy.get() > 0 {
        if step == at {
            happens(event, &setting, &mut cast, &places);
            setting.world.stir();
        }
        step += 1;
        cast.step(&setting);
    }
    drop(places);
    cast.finish(&setting);
    tally.add(setting.ends(), &setting.world);
    drop(setting);
    census.unchanged();
    step > at
}

type Prepare = dyn Fn(&Setting);

fn happens(event: Event, setting: &Setting, cast: &mut Cast, places: &[Place]) {
    let dies = |cast: &mut Cast, number: usize| {
        cast.programs[number].die(setting);
        let own = places.iter().zip(ATTEMPTS).filter(|(_, (from, _))| *from == number);
        own.for_each(|(place, _)| place.withdraw());
    };
    match event {
        Event::Nothing => {}
        Event::Withdrawn(number) => places[number].withdraw(),
        Event::AskerDies => dies(cast, 0),
        Event::AskedDies => dies(cast, 1),
        Event::ServerDies => cast.servers[0].die(setting),
        Event::ServerEnds => {
            cast.servers[0].comes_back = false;
            cast.servers[0].die(setting);
        }
    }
}

/// So many steps of the story are stopped at: it is long over its handshakes by then.
const STEPS: u64 = 400;

fn at_every_step(first: u64, faults: Faults, events: &[Event]) {
    let mut tally = Tally::default();
    for_seeds(first, 1, |seed| {
        for event in events {
            let told = |at: &u64| tell(seed, faults, *event, *at, &|_| {}, &mut tally);
            let _ = (0..STEPS).take_while(told).count();
        }
    });
    tally.has(&[End::Answered, End::Forgotten], [Fault::Cancelled]);
}

fn sabotaged(sabotage: Sabotage) {
    for_seeds(9_000_000, 60, |seed| {
        let prepare = move |setting: &Setting| setting.world.sabotage(sabotage);
        tell(seed, Faults::NONE, Event::Nothing, 0, &prepare, &mut Tally::default());
    });
}

fixture! {
    fn a_driver_delivers_twice() {
        sabotaged(Sabotage::DeliversTwice);
    }

    fn a_driver_misdelivers() {
        sabotaged(Sabotage::Misdelivers);
    }

    fn a_driver_loses_silently() {
        sabotaged(Sabotage::LosesSilently);
    }

    fn a_driver_leaks() {
        sabotaged(Sabotage::Leaks);
    }

    fn a_driver_stalls() {
        sabotaged(Sabotage::Stalls);
    }

    fn a_driver_hoards_descriptors() {
        sabotaged(Sabotage::HoardsDescriptors);
    }

    fn a_driver_hoards_memory() {
        sabotaged(Sabotage::HoardsMemory);
    }
}

/// The world said which seed it was, and failed.
#[track_caller]
fn is_noticed(outcome: &Outcome) {
    assert!(matches!(outcome.end, BodyEnd::Failed(_)), "not noticed: {}\n{}", outcome.end, outcome.output);
    assert!(outcome.output.contains("to repeat: SENDRIGHT_SEED=90000"), "{}", outcome.output);
}

in_own_process! {
    fn an_attempt_can_be_withdrawn_at_every_step() {
        let events: Vec<Event> = (0..ATTEMPTS.len()).map(Event::Withdrawn).collect();
        at_every_step(7_000_000, Faults::UNNOTICED, &events);
    }

    fn everybody_can_die_at_every_step() {
        let events = [Event::AskerDies, Event::AskedDies, Event::ServerDies, Event::ServerEnds];
        at_every_step(8_000_000, Faults::UNNOTICED, &events);
    }

    fn what_no_driver_does_is_noticed() {
        is_noticed(&outcome_of!(a_driver_delivers_twice));
        is_noticed(&outcome_of!(a_driver_misdelivers));
        is_noticed(&outcome_of!(a_driver_loses_silently));
        is_noticed(&outcome_of!(a_driver_leaks));
        is_noticed(&outcome_of!(a_driver_stalls));
        is_noticed(&outcome_of!(a_driver_hoards_descriptors));
        is_noticed(&outcome_of!(a_driver_hoards_memory));
    }
}
