//! Whole worlds from one seed each: clients, a server and a third party, with and without faults, deaths and
//! farewells, against a model that only knows what was asked and what was done.
//!
//! `SENDRIGHT_SEED` runs one seed, `SENDRIGHT_SEEDS` another number of them than the tests' own.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::alloc::System;
use std::rc::Rc;
use std::time::Duration;

use ring::Spawner;
use ring::script::{Fault, Faults, Sabotage};
use seqpacket::{CallError, Object};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::{Census, End, Outcome, fixture, in_own_process, outcome_of};
use worlds::cast::{Betrayal, Busy, Cast, Setting, call_as_model};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Everything but what ends sessions.
const SHORTAGES: Faults = Faults { out_of_memory: 0, ..Faults::ALL };

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
    live_with(seed, faults, events, tally, |_| {})
}

/// One in which something is prepared before anybody calls.
fn live_with(
    seed: u64,
    faults: Faults,
    events: Events,
    tally: &mut Tally,
    prepare: impl Fn(&Setting),
) -> u64 {
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
    prepare(&setting);
    let mut left = 1 + world.below(3);
    while setting.busy.get() > 0 {
        if left > 0 && world.happens(10) {
            left -= 1;
            happens(events, &setting, &mut cast);
        }
        cast.step(&setting);
    }
    cast.finish(&setting);
    tally.add(setting.model.ends(), world);
    let print = world.print();
    setting.is_given_back();
    census.unchanged();
    print
}

// The tests.

fn worlds(first: u64, faults: Faults, events: Events, ends: &[&str]) {
    let mut tally = Tally::default();
    for_seeds(first, 250, |seed| {
        live(seed, faults, events, &mut tally);
    });
    let deeds = [Fault::Cancelled, Fault::Killed, Fault::KilledAtWork];
    let deeds = deeds.into_iter().filter(|fault| *fault == Fault::Cancelled || events == Events::Deaths);
    tally.has(ends, all_but_streams(faults).chain(deeds));
}

// Sabotage: somebody must notice.

/// Worlds without a fault and without a death, in which a driver does what none does.
fn with_driver(sabotage: Sabotage) {
    for_seeds(7_000_000, 40, |seed| {
        let prepare = |setting: &Setting| setting.world.sabotage(sabotage);
        live_with(seed, Faults::NONE, Events::None, &mut Tally::default(), prepare);
    });
}

/// … or a server does what none should.
fn with_server(betrayal: Betrayal) {
    for_seeds(7_000_000, 40, |seed| {
        let prepare = |setting: &Setting| setting.betrayal.set(Some(betrayal));
        live_with(seed, Faults::NONE, Events::None, &mut Tally::default(), prepare);
    });
}

/// … which shows only where descriptors are lost.
fn with_server_of_shortages(betrayal: Betrayal) {
    for_seeds(7_000_000, 40, |seed| {
        let prepare = |setting: &Setting| setting.betrayal.set(Some(betrayal));
        live_with(seed, SHORTAGES, Events::None, &mut Tally::default(), prepare);
    });
}

/// The words with which a body that must fail does.
#[track_caller]
fn is_noticed(outcome: &Outcome, words: &[&str]) {
    assert!(matches!(outcome.end, End::Failed(_)), "not noticed: {}\n{}", outcome.end, outcome.output);
    let told = words.iter().any(|word| outcome.output.contains(word));
    assert!(told, "noticed as something else than {words:?}: {}", outcome.output);
    let repeats = "to repeat: SENDRIGHT_SEED=70000";
    assert!(outcome.output.contains(repeats), "it does not say how to repeat it: {}", outcome.output);
}

fixture! {
    fn a_driver_delivers_twice() {
        with_driver(Sabotage::DeliversTwice);
    }

    fn a_driver_misdelivers() {
        with_driver(Sabotage::Misdelivers);
    }

    fn a_driver_loses_silently() {
        with_driver(Sabotage::LosesSilently);
    }

    fn a_driver_leaks() {
        with_driver(Sabotage::Leaks);
    }

    fn a_driver_stalls() {
        with_driver(Sabotage::Stalls);
    }

    fn a_driver_hoards_descriptors() {
        with_driver(Sabotage::HoardsDescriptors);
    }

    fn a_driver_hoards_memory() {
        with_driver(Sabotage::HoardsMemory);
    }

    fn a_server_swaps_answers() {
        with_server(Betrayal::SwapsAnswers);
    }

    fn a_server_swaps_descriptors() {
        with_server(Betrayal::SwapsDescriptors);
    }

    fn a_server_sees_a_call_twice() {
        with_server(Betrayal::SeesTwice);
    }

    fn a_server_keeps_memory() {
        with_server(Betrayal::KeepsMemory);
    }

    fn a_server_keeps_descriptors() {
        with_server(Betrayal::KeepsDescriptors);
    }

    fn a_server_hears_of_no_loss() {
        with_server_of_shortages(Betrayal::HearsNoLoss);
    }

    fn a_call_that_ends_twice() {
        let model = Model::new(Allowed { gone: true, ..Allowed::default() });
        let mark = model.begins(Verb::Echo, Vec::new(), None);
        model.ended(mark, Err(&CallError::Gone));
        model.ended(mark, Err(&CallError::Gone));
    }

    fn a_call_that_never_ends() {
        let model = Model::new(Allowed::default());
        model.begins(Verb::Echo, Vec::new(), None);
        model.over();
    }

    fn an_answer_nobody_gave() {
        let model = Model::new(Allowed::default());
        let mark = model.begins(Verb::Echo, Vec::new(), None);
        model.ended(mark, Ok((mark, &[])));
    }

    fn a_call_said_not_to_have_been_seen_and_seen() {
        let model = Model::new(Allowed { gone: true, ..Allowed::default() });
        let mark = model.begins(Verb::Echo, Vec::new(), None);
        model.ended(mark, Err(&CallError::Gone));
        model.seen(mark, Verb::Echo, &[]);
        model.over();
    }

    fn a_seed_that_fails() {
        for_seeds(100, 10, |seed| assert_ne!(seed, 107, "the eighth fails"));
    }
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
        worlds(2_000_000, SHORTAGES, Events::None, &ends);
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

    fn descriptors_that_come_twice_or_to_others_or_not_at_all_are_noticed() {
        // What is noticed first depends on what the descriptor was: an argument, an answer, an end at which
        // somebody waits for ever, or one that somebody else shuts down.
        let astray = [
            "delivered twice",
            "has other descriptors than were sent",
            "answered: Some",
            "everybody waits for somebody else",
            "told Err(",
            "alformed",
        ];
        is_noticed(&outcome_of!(a_driver_delivers_twice), &astray);
        is_noticed(&outcome_of!(a_driver_misdelivers), &astray);
        is_noticed(&outcome_of!(a_server_swaps_descriptors), &["answered: Some"]);
        is_noticed(&outcome_of!(a_driver_loses_silently), &astray);
    }

    fn a_loss_that_one_side_does_not_hear_of_is_noticed() {
        is_noticed(&outcome_of!(a_server_hears_of_no_loss), &["servers know of 0 answers that were lost"]);
    }

    fn a_wrong_answer_is_noticed() {
        is_noticed(&outcome_of!(a_server_swaps_answers), &["an answer to another call"]);
        is_noticed(&outcome_of!(a_server_sees_a_call_twice), &["is seen twice"]);
        let notices = |outcome: Outcome, word: &str| {
            assert!(matches!(outcome.end, End::Failed(_)) && outcome.output.contains(word), "{outcome:?}");
        };
        notices(outcome_of!(a_call_that_ends_twice), "ends twice");
        notices(outcome_of!(a_call_that_never_ends), "never ended");
        notices(outcome_of!(an_answer_nobody_gave), "answered: None");
        notices(outcome_of!(a_call_said_not_to_have_been_seen_and_seen), "seen: true");
    }

    fn whatever_is_kept_is_noticed() {
        // A copy of the wrong socket is an end that nobody sees.
        let words = ["left open", "beyond quota", "does not see that everybody is gone"];
        is_noticed(&outcome_of!(a_driver_leaks), &words);
        is_noticed(&outcome_of!(a_driver_hoards_descriptors), &["beyond quota"]);
        is_noticed(&outcome_of!(a_driver_hoards_memory), &["beyond quota"]);
        is_noticed(&outcome_of!(a_server_keeps_memory), &["beyond quota"]);
        is_noticed(&outcome_of!(a_server_keeps_descriptors), &["beyond quota"]);
    }

    fn a_world_that_does_not_go_on_is_noticed() {
        let words = ["everybody waits", "nothing is told", "round in circles"];
        is_noticed(&outcome_of!(a_driver_stalls), &words);
    }

    /// As it stands there, it repeats this one seed of this one test.
    fn a_seed_that_fails_says_how_it_is_repeated() {
        let output = outcome_of!(a_seed_that_fails).output;
        let command = "SENDRIGHT_SEED=107 cargo test -p sendright-seqpacket --test simulation -- --exact";
        assert!(output.contains(&format!("to repeat: {command} a_seed_that_fails")), "{output}");
    }

    fn two_worlds_of_one_seed_are_the_same() {
        for_seeds(6_000_000, 20, |seed| {
            let print = || live(seed, Faults::ALL, Events::Deaths, &mut Tally::default());
            assert_eq!(print(), print(), "seed {seed} does not decide everything");
        });
    }
}
