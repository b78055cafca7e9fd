//! What the simulated worlds of strangers share: the setting, and the simplest account of who asked for whom
//! and what came of it.
//!
//! The account knows names and marks: who wanted a connection to whom, who was given one by whom, and how it
//! ended. It does not know records, servers' tables or drivers.
#![allow(dead_code, clippy::unwrap_used)]

pub mod cast;
pub mod rogues;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use introduction::PublicKey;
use ring::script::{Faults, STEPS_MAX, World};
pub use testing::worlds::{Holdings, Party, Quota, at_most, for_seeds, identified, identity};

/// What may go wrong in a world besides what its parties decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// Descriptors may be lost or run out, and memory.
    pub shortages: bool,
    /// Somebody may die.
    pub deaths: bool,
    /// Some are not honest, a server among them.
    pub rogues: bool,
    /// Quotas are so small that the honest hit them too.
    pub crowded: bool,
}

impl Allowed {
    /// Whether whatever does not come about was decided by somebody.
    fn is_clean(self) -> bool {
        !self.shortages && !self.deaths && !self.rogues && !self.crowded
    }
}

/// How an attempt to reach somebody ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Connected, and what was said came back.
    Answered,
    /// The connection has ended before that.
    Closed,
    Unanswered,
    Refused,
    Unknown,
    NotProved,
    Disconnected,
    NoServer,
    Busy,
    Kernel,
    /// Nobody waits for it any more.
    Withdrawn,
    /// The asker has died.
    Forgotten,
}

/// What is known of one attempt.
#[derive(Debug)]
struct Story {
    from: usize,
    to: usize,
    descriptor: u64,
    proof: bool,
    arrived: bool,
    /// The asker was told that the peer has taken the connection.
    confirmed: bool,
    end: Option<End>,
}

/// What two had to do with each other, from the one to the other.
#[derive(Clone, Copy, Debug, Default)]
struct Between {
    accepted: u64,
    declined: u64,
    /// Answered, or said to be taken.
    told_accepted: u64,
    /// Ended without a connection.
    told_nothing: u64,
}

/// The simplest account of all attempts of a world.
#[derive(Default)]
pub struct Model {
    pub allowed: Cell<Allowed>,
    stories: RefCell<BTreeMap<u64, Story>>,
    between: RefCell<BTreeMap<(usize, usize), Between>>,
    delivered: RefCell<BTreeSet<u64>>,
    /// Strangers that were not honest and were let in.
    pub strangers: Cell<u64>,
}

impl Model {
    /// Somebody asks for somebody. Gives back the mark it is known by.
    pub fn begins(&self, from: usize, to: usize, descriptor: u64, proof: bool) -> u64 {
        let mut stories = self.stories.borrow_mut();
        let mark = stories.len() as u64;
        let (arrived, confirmed, end) = (false, false, None);
        stories.insert(mark, Story { from, to, descriptor, proof, arrived, confirmed, end });
        mark
    }

    fn with_between(&self, from: usize, to: usize, change: impl FnOnce(&mut Between)) {
        change(self.between.borrow_mut().entry((from, to)).or_default());
    }

    /// `to` has taken a connection that is said to be from `from`.
    pub fn accepts(&self, from: usize, to: usize) {
        self.with_between(from, to, |between| between.accepted += 1);
    }

    /// … or has refused it, or let it lie.
    pub fn declines(&self, from: usize, to: usize) {
        self.with_between(from, to, |between| between.declined += 1);
    }

    /// `to` reads a mark from a connection that is said to be from `from`. `vouched` if nobody else can have
    /// been between them.
    pub fn arrives(&self, mark: u64, from: usize, to: usize, vouched: bool, descriptor: Option<u64>) {
        let allowed = self.allowed.get();
        let mut stories = self.stories.borrow_mut();
        let story = stories.get_mut(&mark).expect("nobody has asked with this mark");
        assert!(!story.arrived, "attempt {mark} arrives twice");
        story.arrived = true;
        assert!(!story.proof || vouched, "attempt {mark} was to be proved: {story:?}");
        if vouched {
            assert_eq!((story.from, story.to), (from, to), "attempt {mark} arrives at somebody else's");
        }
        match descriptor {
            Some(descriptor) => {
                assert_eq!(story.descriptor, descriptor, "attempt {mark} brings another's descriptor");
                let first = self.delivered.borrow_mut().insert(descriptor);
                assert!(first, "descriptor {descriptor} is delivered twice");
            }
            None => assert!(allowed.shortages, "the descriptor of attempt {mark} is lost: {story:?}"),
        }
    }

    /// The asker is told that the peer has taken the connection.
    pub fn is_confirmed(&self, mark: u64) {
        let (from, to) = {
            let mut stories = self.stories.borrow_mut();
            let story = stories.get_mut(&mark).unwrap();
            assert!(!std::mem::replace(&mut story.confirmed, true), "attempt {mark} is confirmed twice");
            (story.from, story.to)
        };
        self.tells_accepted(mark, from, to);
    }

    fn tells_accepted(&self, mark: u64, from: usize, to: usize) {
        self.with_between(from, to, |between| between.told_accepted += 1);
        let between = self.between.borrow()[&(from, to)];
        let rogue = self.allowed.get().rogues && !self.stories.borrow()[&mark].proof;
        assert!(
            rogue || between.told_accepted <= between.accepted,
            "attempt {mark} is said to be taken, and nobody has: {between:?}"
        );
    }

    /// The asker knows the end.
    pub fn ends(&self, mark: u64, end: End) {
        let allowed = self.allowed.get();
        let (from, to, confirmed) = {
            let mut stories = self.stories.borrow_mut();
            let story = stories.get_mut(&mark).unwrap();
            assert!(story.end.replace(end).is_none(), "attempt {mark} ends twice");
            assert!(end != End::Answered || story.arrived, "nobody can have answered: {story:?}");
            (story.from, story.to, story.confirmed)
        };
        match end {
            End::Answered if !confirmed => self.tells_accepted(mark, from, to),
            End::Answered | End::Withdrawn | End::Forgotten | End::NoServer | End::Unknown => {}
            End::Closed | End::Unanswered | End::Refused => {
                self.with_between(from, to, |between| between.told_nothing += 1);
                let between = self.between.borrow()[&(from, to)];
                let decided = between.told_nothing <= between.declined;
                assert!(decided || !allowed.is_clean(), "attempt {mark}: {end:?}, of {between:?}");
            }
            End::NotProved => assert!(allowed.rogues, "attempt {mark} could not be proved"),
            End::Disconnected => assert!(!allowed.is_clean(), "attempt {mark} lost its server"),
            End::Busy => assert!(allowed.crowded, "attempt {mark} found no room"),
            End::Kernel => assert!(allowed.shortages, "attempt {mark}: the kernel"),
        }
    }

    /// The world is over: every attempt has ended.
    pub fn over(&self) {
        for (mark, story) in &*self.stories.borrow() {
            assert!(story.end.is_some(), "attempt {mark} never ended: {story:?}");
        }
    }

    /// How many have not ended.
    pub fn under_way(&self) -> usize {
        self.stories.borrow().values().filter(|story| story.end.is_none()).count()
    }
}

/// An attempt. Dropped without an end, nobody waits for it any more.
pub struct Attempt {
    model: Rc<Model>,
    pub mark: u64,
    over: bool,
}

impl Attempt {
    pub fn new(model: &Rc<Model>, from: usize, to: usize, descriptor: u64, proof: bool) -> Attempt {
        let mark = model.begins(from, to, descriptor, proof);
        Attempt { model: Rc::clone(model), mark, over: false }
    }

    pub fn ends(mut self, end: End) {
        self.over = true;
        self.model.ends(self.mark, end);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.over {
            self.model.ends(self.mark, End::Forgotten);
        }
    }
}

/// What all parties of one world share.
pub struct Setting {
    pub world: World,
    pub model: Rc<Model>,
    /// Small quotas.
    pub tiny: bool,
    /// Servers tell the askers what has become of them.
    pub candid: bool,
    /// Tasks of askers that have not ended.
    pub busy: Cell<usize>,
    /// Where everybody of the netlayers is, by number.
    pub keys: RefCell<Vec<PublicKey>>,
    steps: Cell<u64>,
}

impl Setting {
    /// A third of all worlds have small quotas, half have candid servers.
    pub fn new(seed: u64, allowed: Allowed) -> Rc<Setting> {
        let world = World::new(seed, Faults::NONE);
        let (tiny, candid) = (world.happens(333), world.happens(500));
        let model = Rc::new(Model::default());
        model.allowed.set(Allowed { crowded: tiny, ..allowed });
        let (busy, keys, steps) = (Cell::new(0), RefCell::default(), Cell::new(0));
        Rc::new(Setting { world, model, tiny, candid, busy, keys, steps })
    }

    pub fn milliseconds(&self, below: usize) -> Duration {
        Duration::from_millis(1 + self.world.below(below) as u64)
    }

    /// Who has this key, if it is an honest one.
    pub fn number_of(&self, key: &PublicKey) -> Option<usize> {
        self.keys.borrow().iter().position(|known| known == key)
    }

    /// How each attempt ended.
    pub fn ends(&self) -> Vec<(End, u64)> {
        self.model.stories.borrow().values().map(|story| (story.end.unwrap(), 1)).collect()
    }

    /// # Panics
    /// If there were too many.
    pub fn count_step(&self) {
        self.steps.set(self.steps.get() + 1);
        assert!(self.steps.get() < STEPS_MAX, "it goes round in circles: {:?}", self.world);
    }
}

/// An asker's task that has not ended; its death ends it too.
pub struct Busy(pub Rc<Setting>);

impl Busy {
    pub fn new(setting: &Rc<Setting>) -> Busy {
        setting.busy.set(setting.busy.get() + 1);
        Busy(Rc::clone(setting))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

/// How often each end came about.
pub type Tally = testing::worlds::Tally<End>;
