//! What the simulated worlds of all packages share: seeds to run them from, descriptors with an identity, and
//! processes that can be killed.
//!
//! It knows neither protocols nor models.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs::{self, File};
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ring::script::{Fault, Happened, World};
use ring::{Executor, Reactor};
use stats_alloc::INSTRUMENTED_SYSTEM;

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
            println!("to repeat: {}", command(seed));
            resume_unwind(panic);
        }
    }
}

/// What runs this one seed of this one test again.
fn command(seed: u64) -> String {
    let package = env::var("CARGO_PKG_NAME").unwrap_or_else(|_| "PACKAGE".to_owned());
    let program = env::current_exe().unwrap_or_default();
    let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Cargo adds a hash.
    let target = program.rsplit_once('-').map_or(program.as_str(), |(target, _)| target);
    let test = env::var(role::BODY).unwrap_or_default();
    format!("{SEED}={seed} cargo test -p {package} --test {target} -- --exact {test}")
}

/// What a world may hold at a moment, on top of what there was before it.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory, in bytes.
    pub bytes: usize,
}

/// So much memory may be kept from one world to the next: what tests count, and what is made once.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// What there was before a world, to hold against what it has at each step. The test program must have
/// `stats_alloc`'s allocator.
#[derive(Debug)]
pub struct Quota {
    before: Holdings,
}

impl Quota {
    /// From here on it is counted.
    ///
    /// # Panics
    /// If the test program's allocator does not count.
    pub fn begin() -> Quota {
        let before = held();
        assert!(before.bytes > 0, "no allocator that counts: see stats_alloc");
        Quota { before }
    }

    /// # Panics
    /// If there is more.
    pub fn holds(&self, allowed: Holdings) {
        let (Holdings { descriptors, bytes }, before) = (held(), self.before);
        let descriptors = descriptors.saturating_sub(before.descriptors);
        let bytes = bytes.saturating_sub(before.bytes);
        assert!(descriptors <= allowed.descriptors, "beyond quota: {descriptors} descriptors, {allowed:?}");
        assert!(bytes <= allowed.bytes, "beyond quota: {bytes} bytes, {allowed:?}");
    }

    /// # Panics
    /// If what the world had is not given back.
    pub fn is_given_back(&self) {
        self.holds(Holdings { descriptors: 0, bytes: KEPT_BYTES_MAX });
    }
}

/// What this process has now. Cheap enough to be asked at each step.
fn held() -> Holdings {
    const DESCRIPTORS: &str = "/proc/self/fd";
    let descriptors = match fs::metadata(DESCRIPTORS).map(|folder| folder.len()) {
        // Its length is their number since Linux 6.2.
        Ok(count @ 1..) => count as usize,
        _ => fs::read_dir(DESCRIPTORS).map_or(0, Iterator::count),
    };
    let memory = INSTRUMENTED_SYSTEM.stats();
    Holdings { descriptors, bytes: memory.bytes_allocated.saturating_sub(memory.bytes_deallocated) }
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

/// Work in a place from which it can be taken away.
#[derive(Clone, Default)]
pub struct Place(Rc<RefCell<(Option<Work>, Option<Waker>)>>);

type Work = Pin<Box<dyn Future<Output = ()>>>;

impl Place {
    /// Puts it there.
    pub fn of(work: impl Future<Output = ()> + 'static) -> Place {
        Place(Rc::new(RefCell::new((Some(Box::pin(work)), None))))
    }

    /// Does it, until it has ended or is taken away.
    pub async fn ends(self) {
        poll_fn(|context| {
            let (work, waker) = &mut *self.0.borrow_mut();
            *waker = Some(context.waker().clone());
            let poll = work.as_mut().map_or(Poll::Ready(()), |work| work.as_mut().poll(context));
            if poll.is_ready() {
                *work = None;
            }
            poll
        })
        .await;
    }

    /// Drops it where it stands.
    pub fn withdraw(&self) {
        let (work, waker) = std::mem::take(&mut *self.0.borrow_mut());
        drop(work);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
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

/// How often each end came about in all worlds of a test, and each fault: a world in which nothing happens
/// finds nothing.
#[derive(Debug)]
pub struct Tally<E> {
    ends: BTreeMap<E, u64>,
    happened: Happened,
    worlds: u64,
}

impl<E> Default for Tally<E> {
    fn default() -> Tally<E> {
        Tally { ends: BTreeMap::new(), happened: Happened::default(), worlds: 0 }
    }
}

impl<E: Ord + fmt::Debug> Tally<E> {
    /// What came of one world: ends, and how often each.
    pub fn add(&mut self, ends: impl IntoIterator<Item = (E, u64)>, world: &World) {
        ends.into_iter().for_each(|(end, count)| *self.ends.entry(end).or_default() += count);
        self.happened.add(&world.happened());
        self.worlds += 1;
    }

    /// Prints them all, and insists on some ends and on some faults, but where one seed is run alone.
    ///
    /// # Panics
    /// If one of them never came about.
    pub fn has(&self, ends: &[E], faults: impl IntoIterator<Item = Fault>) {
        let Tally { ends: came, happened, worlds } = self;
        println!("{worlds} worlds; {came:?}\n{happened}");
        if is_one_seed() {
            return;
        }
        ends.iter().for_each(|end| assert!(came.contains_key(end), "none was {end:?}: {came:?}"));
        for fault in faults {
            assert!(happened.count(fault) > 0, "{fault:?} never happened: {happened}");
        }
    }
}

/// Whether one seed is run alone: then not everything happens that happens in many.
pub fn is_one_seed() -> bool {
    env::var_os(SEED).is_some()
}
