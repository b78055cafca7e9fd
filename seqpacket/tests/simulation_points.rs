//! One small story, stopped at every one of its steps: there a call is withdrawn, a process dies, or somebody
//! takes his leave. Whatever the moment, every call ends once and everybody comes to an end.
//!
//! It knows the steps of a world by their number only.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::alloc::System;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ring::script::{Fault, Faults};
use seqpacket::Object;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::worlds::Place;
use testing::{Census, in_own_process};
use worlds::cast::{Busy, Cast, Setting, call_as_model};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// One of the calls is withdrawn.
    Withdrawn(usize),
    /// The client lets go of the objects; its calls stay under way.
    LetGo,
    ClientDies,
    /// … and another takes over.
    ServerDies(usize),
    /// … for good.
    ServerEnds(usize),
    MailboxDropped(usize),
    Leaves(usize),
}

const CALLS: usize = 7;

fn events() -> Vec<Event> {
    let mut events = vec![Event::LetGo, Event::ClientDies];
    events.extend((0..CALLS).map(Event::Withdrawn));
    for server in 0..2 {
        events.extend([Event::ServerDies(server), Event::ServerEnds(server)]);
        events.extend([Event::MailboxDropped(server), Event::Leaves(server)]);
    }
    events
}

/// One of each: with descriptors both ways, late, unanswered, never answered, and passed on.
async fn call(busy: Busy, object: Rc<RefCell<Option<[Object; 2]>>>, number: usize) {
    let setting = &busy.0;
    let verbs = [Verb::Echo, Verb::Make, Verb::Later, Verb::Drop, Verb::Never, Verb::Forward, Verb::HandOn];
    let Some([object, third]) = object.borrow().clone() else { return };
    let mut descriptors = Vec::new();
    match verbs[number] {
        Verb::Echo => descriptors.extend([identified().0, identified().0]),
        Verb::Forward | Verb::HandOn => match third.grant().await {
            Ok(granted) => descriptors.push(granted),
            Err(_) => return,
        },
        _ => {}
    }
    drop(third);
    let _ = call_as_model(setting, &object, verbs[number], descriptors, None).await;
}

/// The story with this event at this step. Says whether it lasted so long.
fn tell(seed: u64, faults: Faults, event: Event, at: u64, tally: &mut Tally) -> bool {
    let forceful = !matches!(event, Event::Withdrawn(_) | Event::LetGo);
    let allowed = Allowed {
        gone: forceful,
        dropped: forceful && !matches!(event, Event::Leaves(_)),
        ..Allowed::default()
    };
    let setting = Setting::new(seed, allowed);
    let mut cast = Cast::new(&setting);
    let party = Party::join(&setting.world);
    let objects = Rc::new(RefCell::new(Some(cast.objects(&setting, party.reactor()))));
    let places: Vec<Place> =
        (0..CALLS).map(|number| Place::of(call(Busy::new(&setting), Rc::clone(&objects), number))).collect();
    places.iter().for_each(|place| party.0.spawn(place.clone().ends()));
    cast.clients.push(Some(party));
    setting.world.set_faults(faults);
    let mut step = 0;
    while setting.busy.get() > 0 {
        if step == at {
            happens(event, &setting, &mut cast, &places, &objects);
            setting.world.stir();
        }
        step += 1;
        cast.step(&setting);
    }
    drop((places, objects));
    cast.finish(&setting);
    tally.add(setting.model.ends(), &setting.world);
    setting.is_given_back();
    step > at
}

fn happens(
    event: Event,
    setting: &Rc<Setting>,
    cast: &mut Cast,
    places: &[Place],
    objects: &Rc<RefCell<Option<[Object; 2]>>>,
) {
    match event {
        Event::Withdrawn(number) => places[number].withdraw(),
        Event::LetGo => drop(objects.take()),
        Event::ClientDies => {
            let party = cast.clients.pop().unwrap().unwrap();
            setting.world.kill(party.reactor());
            objects.take();
            places.iter().for_each(Place::withdraw);
        }
        Event::ServerDies(which) => cast.servers[which].die(&setting.world),
        Event::ServerEnds(which) => {
            cast.servers[which].die(&setting.world);
            cast.servers[which].bound = None;
        }
        Event::MailboxDropped(which) => cast.servers[which].farewell(setting, None),
        Event::Leaves(which) => cast.servers[which].farewell(setting, Some(Duration::from_secs(3600))),
    }
}

/// Each event at each step of the stories of some seeds.
fn at_every_step(first: u64, stories: u64, faults: Faults, chosen: impl Fn(Event) -> bool) {
    let census = Census::take();
    let (mut tally, mut told) = (Tally::default(), 0);
    for_seeds(first, stories, |seed| {
        for event in events().into_iter().filter(|event| chosen(*event)) {
            let mut at = 0;
            while tell(seed, faults, event, at, &mut tally) {
                at += 1;
                told += 1;
            }
        }
    });
    println!("{told} stories");
    tally.has(&["answered", "dropped", "late"], [Fault::Cancelled]);
    census.unchanged();
}

fn is_withdrawal(event: Event) -> bool {
    matches!(event, Event::Withdrawn(_) | Event::LetGo)
}

in_own_process! {
    fn a_call_can_be_withdrawn_at_every_step() {
        at_every_step(0, 2, Faults::NONE, is_withdrawal);
    }

    fn a_call_can_be_withdrawn_at_every_step_of_a_world_with_faults() {
        at_every_step(100, 1, Faults::UNNOTICED, is_withdrawal);
    }

    fn everybody_can_go_at_every_step() {
        at_every_step(200, 1, Faults::NONE, |event| !is_withdrawal(event));
    }

    fn everybody_can_go_at_every_step_of_a_world_with_faults() {
        at_every_step(300, 1, Faults::UNNOTICED, |event| !is_withdrawal(event));
    }
}
