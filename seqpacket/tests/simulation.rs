//! Whole worlds from one seed each: clients, a server and a third party, with and without faults, deaths and
//! farewells, against a model that only knows what was asked and what was done.
//!
//! `SENDRIGHT_SEED` runs one seed, `SENDRIGHT_SEEDS` another number of them than the tests' own.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::rc::Rc;
use std::time::Duration;

use ring::Spawner;
use ring::script::Faults;
use seqpacket::Object;
use testing::{Census, in_own_process};
use worlds::cast::{Busy, Cast, Setting, call_as_model};
use worlds::*;

/// What happens in a world besides calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    None,
    /// The server, a client or the third party dies, and servers come back.
    Deaths,
    /// A server drops its mailbox, leaves in a hurry, or takes all grants back.
    Farewells,
    /// A server leaves, and takes the time it needs.
    Leaves,
}

// The clients.

/// One task of a client: some calls, one after the other or several at a time.
async fn client(busy: Busy, object: Object, third: Object, spawner: Spawner) {
    let setting = Rc::clone(&busy.0);
    for _ in 0..1 + setting.world.below(5) {
        if setting.world.happens(200) {
            for _ in 0..1 + setting.world.below(6) {
                spawner.spawn(some_call(Busy::new(&setting), object.clone(), third.clone()));
            }
        } else {
            some_call(Busy::new(&setting), object.clone(), third.clone()).await;
        }
        if setting.world.happens(200) {
            object.reactor().sleep(setting.milliseconds(5)).await;
        }
    }
}

async fn some_call(busy: Busy, object: Object, third: Object) {
    let setting = &busy.0;
    let verb = Verb::ASKED[setting.world.below(Verb::ASKED.len())];
    let patience = setting.world.happens(150).then(|| setting.milliseconds(8));
    let mut descriptors = Vec::new();
    if matches!(verb, Verb::Forward | Verb::HandOn) {
        // Granted, so that the server need not be trusted; or there is nobody to go to.
        match third.grant().await {
            Ok(granted) => descriptors.push(granted),
            Err(_) => return,
        }
    } else {
        descriptors.extend((0..setting.world.below(3)).map(|_| identified().0));
    }
    let _ = call_as_model(setting, &object, verb, descriptors, patience).await;
}

// The world.

/// Something happens to somebody.
fn happens(events: Events, setting: &Rc<Setting>, cast: &mut Cast) {
    let world = &setting.world;
    let which = world.below(2);
    match events {
        Events::None => {}
        Events::Farewells if world.happens(300) => cast.servers[which].revoke_all(),
        Events::Farewells => {
            let within = world.happens(500).then(|| setting.milliseconds(20));
            cast.servers[which].farewell(setting, within);
        }
        Events::Leaves => cast.servers[which].farewell(setting, Some(Duration::from_secs(3600))),
        Events::Deaths if world.happens(600) => {
            cast.servers[which].die(world);
            if world.happens(300) {
                cast.servers[which].bound = None;
            }
        }
        Events::Deaths => {
            let client = world.below(cast.clients.len());
            if let Some(party) = cast.clients[client].take() {
                party.die(world);
            }
        }
    }
    world.stir();
}

/// One world from its beginning to its end. Gives back what another of the same seed has in common with it.
fn live(seed: u64, faults: Faults, events: Events, tally: &mut Tally) -> u64 {
    let census = Census::take();
    let allowed = Allowed {
        gone: events != Events::None || faults.out_of_descriptors > 0,
        dropped: matches!(events, Events::Deaths | Events::Farewells) || faults.out_of_memory > 0,
        shortages: faults.out_of_descriptors > 0,
        comes_home: false,
    };
    let setting = Setting::new(seed, allowed);
    let world = &setting.world;
    let mut cast = Cast::new(&setting);
    for _ in 0..1 + world.below(3) {
        let party = Party::join(world);
        let [object, third] = cast.objects(&setting, party.reactor());
        for _ in 0..1 + world.below(3) {
            party.0.spawn(client(Busy::new(&setting), object.clone(), third.clone(), party.0.spawner()));
        }
        cast.clients.push(Some(party));
    }
    world.set_faults(faults);
    let mut left = 1 + world.below(3);
    while setting.busy.get() > 0 {
        if left > 0 && world.happens(10) {
            left -= 1;
            happens(events, &setting, &mut cast);
        }
        cast.step(&setting);
    }
    cast.finish(&setting);
    tally.add(&setting.model);
    let print = world.print();
    drop(setting);
    census.unchanged();
    print
}

// The tests.

fn worlds(first: u64, faults: Faults, events: Events, ends: &[&str]) {
    let mut tally = Tally::default();
    for_seeds(first, 250, |seed| {
        live(seed, faults, events, &mut tally);
    });
    tally.has(ends);
}

in_own_process! {
    fn without_faults_every_call_has_its_answer() {
        worlds(0, Faults::NONE, Events::None, &["answered", "refused", "dropped", "forgotten", "late"]);
    }

    fn what_no_program_should_notice_is_not_noticed() {
        worlds(1_000_000, Faults::UNNOTICED, Events::None, &["answered", "refused", "dropped", "late"]);
    }

    fn every_shortage_of_descriptors_is_told() {
        let ends = ["call lost descriptors", "answer lost descriptors", "no descriptors to call with"];
        worlds(2_000_000, Faults { out_of_memory: 0, ..Faults::ALL }, Events::None, &ends);
    }

    fn without_memory_every_call_ends_once() {
        worlds(2_500_000, Faults::ALL, Events::None, &["answered", "kernel"]);
    }

    fn whoever_dies_every_call_ends_once() {
        worlds(3_000_000, Faults::UNNOTICED, Events::Deaths, &["answered", "gone", "dropped"]);
    }

    fn whoever_dies_in_a_world_of_shortages_every_call_ends_once() {
        worlds(4_000_000, Faults::ALL, Events::Deaths, &["answered", "gone", "dropped"]);
    }

    fn after_a_farewell_every_call_ends_once() {
        worlds(5_000_000, Faults::UNNOTICED, Events::Farewells, &["answered", "gone", "dropped"]);
    }

    fn a_server_that_leaves_leaves_no_call_in_doubt() {
        worlds(5_500_000, Faults::UNNOTICED, Events::Leaves, &["answered", "gone", "dropped"]);
    }

    /// A refusal that takes an answer's place can be longer by a byte. Found by these seeds.
    fn a_caller_that_reads_is_not_disconnected_for_not_reading() {
        let faults = Faults { out_of_memory: 0, ..Faults::ALL };
        live(2_002_280, faults, Events::None, &mut Tally::default());
        live(2_501_403, Faults::ALL, Events::None, &mut Tally::default());
    }

    fn two_worlds_of_one_seed_are_the_same() {
        for_seeds(6_000_000, 20, |seed| {
            let print = || live(seed, Faults::ALL, Events::Deaths, &mut Tally::default());
            assert_eq!(print(), print(), "seed {seed} does not decide everything");
        });
    }
}
