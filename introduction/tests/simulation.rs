//! Whole worlds of strangers from one seed each: introduction servers behind a path, programs that ask for
//! each other and answer, rogues among them, faults and deaths, against an account that only knows who wanted
//! whom and who took whom.
//!
//! `SENDRIGHT_SEED` runs one seed, `SENDRIGHT_SEEDS` another number of them than the tests' own.
#![allow(clippy::unwrap_used)]

mod raw;
mod worlds;

use std::alloc::System;
use std::rc::Rc;

use ring::script::{Fault, Faults};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::{Census, in_own_process};
use worlds::cast::{Cast, Wish, ask};
use worlds::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What happens in a world besides attempts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    None,
    /// A server or a program dies, and servers come back.
    Deaths,
    /// There are rogues, and nobody dies.
    Rogues,
    /// Both.
    RoguesAndDeaths,
}

impl Events {
    fn has_deaths(self) -> bool {
        matches!(self, Events::Deaths | Events::RoguesAndDeaths)
    }

    fn has_rogues(self) -> bool {
        matches!(self, Events::Rogues | Events::RoguesAndDeaths)
    }
}

/// What one program wants of others: some attempts, one after the other.
async fn want(busy: Busy, cast: Wants) {
    let setting = &busy.0;
    for _ in 0..1 + setting.world.below(3) {
        cast.reactor.sleep(setting.milliseconds(400)).await;
        let (to, locator) = &cast.locators[setting.world.below(cast.locators.len())];
        let patience = setting.world.happens(150).then(|| setting.milliseconds(50));
        let confirmed = setting.world.happens(600);
        let wish = Wish { to: *to, locator: locator.clone(), confirmed, patience };
        let asking = Busy::new(setting);
        ask(asking, Rc::clone(&cast.netlayer), cast.reactor.clone(), cast.own, wish).await;
    }
}

/// What a program has to ask with.
#[derive(Clone)]
struct Wants {
    netlayer: Rc<introduction::Netlayer>,
    reactor: ring::Reactor,
    own: usize,
    locators: Rc<Vec<(usize, introduction::Locator)>>,
}

fn somebody_dies(setting: &Setting, cast: &mut Cast) {
    if setting.world.happens(600) {
        let server = setting.world.below(cast.servers.len());
        cast.servers[server].die(setting);
    } else {
        let program = setting.world.below(cast.programs.len());
        cast.programs[program].die(setting);
    }
    setting.world.stir();
}

/// One world from its beginning to its end. Gives back what another of the same seed has in common with it.
fn live(seed: u64, faults: Faults, events: Events, tally: &mut Tally) -> u64 {
    let census = Census::take();
    let quota = Quota::begin();
    let allowed = Allowed {
        shortages: faults.out_of_descriptors > 0,
        deaths: events.has_deaths(),
        rogues: events.has_rogues(),
        crowded: false,
    };
    let setting = Setting::new(seed, allowed);
    let (servers, programs) = (1 + setting.world.below(2), 2 + setting.world.below(2));
    let mut cast = Cast::new(&setting, quota, servers as u8, programs);
    if events.has_rogues() {
        worlds::rogues::move_in(&setting, &mut cast);
    }
    let mut servers = cast.server_keys();
    if events.has_rogues() && setting.world.happens(500) {
        servers.push(worlds::rogues::rogue_key());
    }
    let locators: Rc<Vec<_>> =
        Rc::new(cast.programs.iter().map(|program| (program.number, program.locator(&servers))).collect());
    for program in &cast.programs {
        let (Some(party), Some(netlayer)) = (&program.party, &program.netlayer) else { continue };
        let wants = Wants {
            netlayer: Rc::clone(netlayer),
            reactor: party.reactor().clone(),
            own: program.number,
            locators: Rc::clone(&locators),
        };
        for _ in 0..1 + setting.world.below(2) {
            party.0.spawn(want(Busy::new(&setting), wants.clone()));
        }
    }
    setting.world.set_faults(faults);
    let mut left = 1 + setting.world.below(3);
    while setting.busy.get() > 0 {
        if events.has_deaths() && left > 0 && setting.world.happens(4) {
            left -= 1;
            somebody_dies(&setting, &mut cast);
        }
        cast.step(&setting);
    }
    cast.finish(&setting);
    tally.add(setting.ends(), &setting.world);
    let print = setting.world.print();
    drop(setting);
    census.unchanged();
    print
}

/// Each connection is read once in a turn, so that a queue that overflows must be short.
const UNNOTICED: Faults = Faults { completions_max: 1, ..Faults::UNNOTICED };
const ALL: Faults = Faults { completions_max: 1, ..Faults::ALL };

/// How many of each kind of world are run by `cargo test`.
const WORLDS: u64 = 100;

fn worlds(first: u64, faults: Faults, events: Events, ends: &[End]) {
    let mut tally = Tally::default();
    for_seeds(first, WORLDS, |seed| {
        live(seed, faults, events, &mut tally);
    });
    let deeds = [Fault::Cancelled, Fault::Killed, Fault::KilledAtWork];
    let deeds = deeds.into_iter().filter(|fault| *fault == Fault::Cancelled || events.has_deaths());
    // Each read is asked for, and may bring a descriptor.
    let never = [Fault::EndedEarly, Fault::ShortReceive];
    let kinds = faults.kinds().into_iter().filter(|fault| !never.contains(fault));
    tally.has(ends, kinds.chain(deeds));
}

in_own_process! {
    fn without_faults_everybody_reaches_whom_he_wants() {
        worlds(0, Faults::NONE, Events::None, &[End::Answered, End::Unanswered, End::Closed]);
    }

    fn what_no_program_should_notice_no_stranger_notices() {
        worlds(1_000_000, UNNOTICED, Events::None, &[End::Answered, End::Refused, End::Withdrawn]);
    }

    fn whatever_runs_out_every_attempt_ends_once() {
        worlds(2_000_000, ALL, Events::None, &[End::Answered, End::Kernel, End::Disconnected]);
    }

    fn whoever_dies_every_attempt_ends_once() {
        worlds(3_000_000, UNNOTICED, Events::Deaths, &[End::Answered, End::Forgotten]);
    }

    fn among_rogues_the_honest_reach_each_other() {
        worlds(4_000_000, Faults::NONE, Events::Rogues, &[End::Answered, End::Withdrawn]);
    }

    fn among_rogues_and_in_want_every_attempt_ends_once() {
        worlds(5_000_000, ALL, Events::RoguesAndDeaths, &[End::Answered, End::Kernel]);
    }

    fn two_worlds_of_one_seed_are_the_same() {
        for_seeds(6_000_000, 10, |seed| {
            let print = || live(seed, ALL, Events::RoguesAndDeaths, &mut Tally::default());
            assert_eq!(print(), print(), "seed {seed} does not decide everything");
        });
    }
}
