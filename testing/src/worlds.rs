//! What the simulated worlds of all packages share: seeds to run them from, descriptors with an identity, and
//! processes that can be killed.
//!
//! It knows neither protocols nor models.

use std::env;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use ring::script::World;
use ring::{Executor, Reactor};

use crate::role;

/// The environment variable that names one seed to be run alone.
pub const SEED: &str = "SENDRIGHT_SEED";
/// The environment variable that says how many seeds each test runs, instead of its own number.
pub const SEEDS: &str = role::SEEDS;

/// Runs a world for each of `count` seeds from `first` on, so that those of different tests are different.
/// Says which seed failed.
///
/// # Panics
/// As the body does; and if one of the two variables is no number.
pub fn for_seeds(first: u64, count: u64, mut body: impl FnMut(u64)) {
    let one: Option<u64> = env::var(SEED).ok().map(|seed| seed.parse().expect("a seed is a number"));
    let count = env::var(SEEDS).map_or(count, |seeds| seeds.parse().expect("a number of seeds"));
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => first..first + count,
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(seed))) {
            println!("to repeat: {SEED}={seed}");
            resume_unwind(panic);
        }
    }
}

/// A descriptor unlike any other, and what it is known by.
pub fn identified() -> (OwnedFd, u64) {
    let (reader, _writer) = std::io::pipe().unwrap();
    let identity = identity(&reader);
    (reader.into(), identity)
}

/// What a descriptor made by [`identified`] is known by, whatever its number.
pub fn identity(fd: impl AsFd) -> u64 {
    File::from(fd.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
}

/// Those of several, in order.
pub fn identities(descriptors: &[OwnedFd]) -> Vec<u64> {
    descriptors.iter().map(identity).collect()
}

/// Awaits a future for so long. `None` when it has not ended by then; it is dropped.
pub async fn at_most<F: Future + Unpin>(
    reactor: &Reactor,
    time: Duration,
    mut future: F,
) -> Option<F::Output> {
    let mut clock = pin!(reactor.sleep(time));
    poll_fn(|context| {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(context) {
            return Poll::Ready(Some(output));
        }
        clock.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// One process of a world: what runs on its executor, and nothing else of it.
#[derive(Debug)]
pub struct Party(pub Executor);

impl Party {
    /// A new one.
    pub fn join(world: &World) -> Party {
        Party(Executor::new(&world.reactor().unwrap()))
    }

    /// Its reactor.
    pub fn reactor(&self) -> &Reactor {
        self.0.reactor()
    }

    /// As with `kill -9`: nothing of it happens any more, and all its descriptors are closed.
    pub fn die(self, world: &World) {
        world.kill(self.reactor());
    }
}

/// Whether one seed is run alone: then not everything happens that happens in many.
pub fn is_one_seed() -> bool {
    env::var_os(SEED).is_some()
}
