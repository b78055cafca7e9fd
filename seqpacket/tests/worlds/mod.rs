//! What the simulated worlds of this package share: seeds, descriptors with an identity, and the simplest
//! model of what calls may come to.
//!
//! The model knows what was asked and what the handlers did; it compares that with what the callers are told.
//! It does not know packets, frames, sessions or drivers.
#![allow(dead_code, clippy::unwrap_used)]

pub mod cast;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use ring::script::Fault;
use seqpacket::{Answer, CallError, Part};
pub use testing::worlds::{Holdings, Party, Quota, at_most, for_seeds, identified, identities, identity};

// The model.

/// What a caller asks the handler to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Answer, with the descriptors that came.
    Echo,
    /// Answer, with descriptors made for it.
    Make,
    /// Answer when some time has passed, unless withdrawn.
    Later,
    /// Do not answer.
    Drop,
    /// Refuse.
    Refuse,
    /// Wait for the withdrawal.
    Never,
    /// Call the object that came along, and answer with its answer.
    Forward,
    /// Let the object that came along answer in one's place.
    HandOn,
    /// Answer, on what came along, the call of another: what servers ask of each other.
    Errand,
}

impl Verb {
    /// What clients ask for.
    pub const ASKED: [Verb; 8] = [
        Verb::Echo,
        Verb::Make,
        Verb::Later,
        Verb::Drop,
        Verb::Refuse,
        Verb::Never,
        Verb::Forward,
        Verb::HandOn,
    ];

    pub fn byte(self) -> u8 {
        self as u8
    }

    pub fn of_byte(byte: u8) -> Verb {
        Verb::ASKED.get(usize::from(byte)).copied().unwrap_or(Verb::Errand)
    }
}

/// What is known of one call.
#[derive(Debug, Default)]
struct Story {
    verb: Option<Verb>,
    /// By their identity, in order.
    sent: Vec<u64>,
    within: Option<Duration>,
    seen: bool,
    /// What the handler put into its answer, if it answered.
    answered: Option<Vec<u64>>,
    /// How it ended for the caller, or that nobody waits for its end any more.
    end: Option<&'static str>,
}

/// What may go wrong in a world besides what its parties do to each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// A call may find nobody.
    pub gone: bool,
    /// A call that was sent may find that nobody answers.
    pub dropped: bool,
    /// Descriptors may be lost or run out, and memory.
    pub shortages: bool,
    /// An answer may bring a descriptor that its handler has not put into it: a continuation that comes home.
    pub comes_home: bool,
}

/// The simplest account of all calls of a world.
pub struct Model {
    pub allowed: Cell<Allowed>,
    stories: RefCell<BTreeMap<u64, Story>>,
    received: RefCell<BTreeSet<(u64, bool)>>,
    ends: Cell<u64>,
    /// Calls that ended without an answer: something of them may lie with a server that has not heard yet.
    unanswered: Cell<usize>,
    /// Calls whose caller was told that descriptors of theirs were lost.
    told_lost: Cell<u64>,
    /// … and those that were told so of their answers.
    told_answers_lost: Cell<u64>,
}

impl Model {
    pub fn new(allowed: Allowed) -> Rc<Model> {
        Rc::new(Model {
            allowed: Cell::new(allowed),
            stories: RefCell::default(),
            received: RefCell::default(),
            ends: Cell::new(0),
            unanswered: Cell::new(0),
            told_lost: Cell::new(0),
            told_answers_lost: Cell::new(0),
        })
    }

    /// A call begins. Gives back the mark it carries.
    pub fn begins(&self, verb: Verb, sent: Vec<u64>, within: Option<Duration>) -> u64 {
        let mut stories = self.stories.borrow_mut();
        let mark = stories.len() as u64;
        stories.insert(mark, Story { verb: Some(verb), sent, within, ..Story::default() });
        mark
    }

    /// A handler sees a call: once, with the descriptors that were sent.
    pub fn seen(&self, mark: u64, verb: Verb, descriptors: &[OwnedFd]) {
        let found = identities(descriptors);
        let mut stories = self.stories.borrow_mut();
        let story = stories.get_mut(&mark).expect("nobody has made this call");
        assert!(!story.seen, "call {mark} is seen twice");
        assert_eq!(story.verb, Some(verb), "call {mark} is another than was made");
        assert_eq!(story.sent, found, "call {mark} has other descriptors than were sent");
        story.seen = true;
        drop(stories);
        self.received(&found, true);
    }

    /// A handler answers a call.
    pub fn answered(&self, mark: u64, with: Vec<u64>) {
        let mut stories = self.stories.borrow_mut();
        let story = stories.get_mut(&mark).unwrap();
        assert!(story.answered.replace(with).is_none(), "call {mark} is answered twice");
    }

    fn received(&self, identities: &[u64], by_handler: bool) {
        for identity in identities {
            let first = self.received.borrow_mut().insert((*identity, by_handler));
            assert!(first, "descriptor {identity} is delivered twice");
        }
    }

    /// The caller is told how the call ended.
    pub fn ended(&self, mark: u64, result: Result<(u64, &[OwnedFd]), &CallError>) {
        let allowed = self.allowed.get();
        let found = match &result {
            Ok((_, descriptors)) => identities(descriptors),
            Err(_) => Vec::new(),
        };
        let stories = self.stories.borrow();
        let story = &stories[&mark];
        let context = || format!("call {mark}: {story:?}, told {:?}", result.as_ref().map(|(mark, _)| *mark));
        let end = match &result {
            Ok((answers, _)) => {
                assert_eq!(*answers, mark, "an answer to another call; {}", context());
                assert_eq!(story.answered.as_ref(), Some(&found), "{}", context());
                "answered"
            }
            Err(CallError::Gone) => {
                assert!(allowed.gone, "{}", context());
                assert!(!story.seen, "{}", context());
                "gone"
            }
            Err(CallError::Dropped) => {
                let by_handler = matches!(story.verb, Some(Verb::Drop | Verb::Forward | Verb::HandOn));
                assert!((by_handler && story.seen) || allowed.dropped, "{}", context());
                "dropped"
            }
            Err(CallError::Refused) => {
                assert!(story.verb == Some(Verb::Refuse) && story.seen, "{}", context());
                "refused"
            }
            Err(CallError::Deadline) => {
                assert!(story.within.is_some(), "{}", context());
                "late"
            }
            Err(CallError::Expired) => {
                assert!(story.within.is_some() && !story.seen, "{}", context());
                "expired"
            }
            Err(CallError::DescriptorsLost(Part::Call)) => {
                assert!(allowed.shortages && !story.seen && !story.sent.is_empty(), "{}", context());
                "call lost descriptors"
            }
            Err(CallError::DescriptorsLost(Part::Answer)) => {
                // The way to whoever answers instead is a descriptor too.
                let had = story.verb == Some(Verb::HandOn)
                    || story.answered.as_ref().is_some_and(|answered| !answered.is_empty());
                assert!(allowed.shortages && (had || allowed.comes_home), "{}", context());
                "answer lost descriptors"
            }
            Err(CallError::OutOfDescriptors(Part::Call)) => {
                assert!(allowed.shortages && !story.seen, "{}", context());
                "no descriptors to call with"
            }
            Err(CallError::OutOfDescriptors(Part::Answer)) => {
                assert!(allowed.shortages && story.seen, "{}", context());
                "no descriptors to answer with"
            }
            Err(CallError::Io(_) | CallError::OutOfMemory(_)) => {
                assert!(allowed.shortages, "{}", context());
                "kernel"
            }
            Err(_) => panic!("{}", context()),
        };
        drop(stories);
        self.end(mark, end);
        self.received(&found, false);
    }

    /// Calls of which something may still be kept.
    pub fn open(&self) -> usize {
        self.stories.borrow().len() - self.ends.get() as usize + self.unanswered.get()
    }

    /// Calls whose caller was told that the server had lost their descriptors.
    pub fn told_lost(&self) -> u64 {
        self.told_lost.get()
    }

    /// Calls whose caller was told that descriptors of the answer were lost.
    pub fn told_answers_lost(&self) -> u64 {
        self.told_answers_lost.get()
    }

    fn end(&self, mark: u64, end: &'static str) {
        let mut stories = self.stories.borrow_mut();
        let story = stories.get_mut(&mark).unwrap();
        assert!(story.end.replace(end).is_none(), "call {mark} ends twice");
        self.ends.set(self.ends.get() + 1);
        self.unanswered.set(self.unanswered.get() + usize::from(end != "answered"));
        let lost = |words| u64::from(end == words);
        self.told_lost.set(self.told_lost.get() + lost("call lost descriptors"));
        self.told_answers_lost.set(self.told_answers_lost.get() + lost("answer lost descriptors"));
    }

    /// Whoever was given these in an answer gives them to somebody else.
    pub fn passed_on(&self, identities: &[u64]) {
        let mut received = self.received.borrow_mut();
        identities.iter().for_each(|identity| assert!(received.remove(&(*identity, false))));
    }

    /// The world is over: every call has ended, and what was said not to have been seen was not seen later.
    pub fn over(&self) {
        for (mark, story) in &*self.stories.borrow() {
            assert!(story.end.is_some(), "call {mark} never ended: {story:?}");
            let unseen = ["gone", "expired", "call lost descriptors", "no descriptors to call with"];
            assert!(!story.seen || !unseen.contains(&story.end.unwrap()), "call {mark}: {story:?}");
        }
    }

    /// How each call ended.
    pub fn ends(&self) -> Vec<(&'static str, u64)> {
        self.stories.borrow().values().map(|story| (story.end.unwrap_or("never"), 1)).collect()
    }
}

/// How often each end came about.
pub type Tally = testing::worlds::Tally<&'static str>;

/// Streams of bytes there are none in these worlds, and each kind of fault besides is to happen in them.
pub fn all_but_streams(faults: ring::script::Faults) -> impl Iterator<Item = Fault> {
    let never = [Fault::ShortSend, Fault::ShortReceive];
    faults.kinds().into_iter().filter(move |fault| !never.contains(fault))
}

/// A call that was made. Dropped without having been told its end, nobody is: it was withdrawn, or its caller
/// has died.
pub struct Made {
    model: Rc<Model>,
    pub mark: u64,
    told: bool,
}

impl Made {
    pub fn new(model: &Rc<Model>, verb: Verb, sent: Vec<u64>, within: Option<Duration>) -> Made {
        Made { model: Rc::clone(model), mark: model.begins(verb, sent, within), told: false }
    }

    /// The caller is told.
    pub fn ended(mut self, result: Result<Answer, CallError>) -> Result<Vec<OwnedFd>, CallError> {
        self.told = true;
        match result {
            Ok(mut answer) => {
                let descriptors = answer.take_descriptors();
                let answers = u64::from_ne_bytes(answer.bytes()[..8].try_into().unwrap());
                self.model.ended(self.mark, Ok((answers, &descriptors)));
                Ok(descriptors)
            }
            Err(error) => {
                self.model.ended(self.mark, Err(&error));
                Err(error)
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.told {
            self.model.end(self.mark, "forgotten");
        }
    }
}
