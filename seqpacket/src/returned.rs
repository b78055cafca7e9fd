//! Continuation pairs that come home: the far end returns inside the answer and serves the same object again.
//!
//! Owns the pairs of one object that are at home, and what has been counted about those that were to come.
//! Whoever answers must be trusted not to keep a copy of a far end; what can be checked is checked: that what
//! came is the very socket that was sent, that it came from where it should, and that nothing else lies in
//! the near end. What fails is not used again, and the next call has a fresh pair. It knows neither calls nor
//! what a near end is: one on a reactor, or one that is waited on.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use ring::{Credentials, Descriptors};

/// How many pairs of one object are kept at home: two descriptors each. What comes home beyond them is
/// closed. So many as that only if so many were under way together, and for as long as they are: see
/// [`RETURNED_PAIRS_IDLE_MAX`].
pub const RETURNED_PAIRS_MAX: usize = 64;

/// How many pairs of one object stay at home although no call has needed them lately. Of those beyond, which
/// none of the last 256 calls has needed, one is closed with each call.
pub const RETURNED_PAIRS_IDLE_MAX: usize = 16;

/// In so many calls it shows how many pairs are needed.
const LATELY_CALLS: u32 = 256;

/// From whom a plain object takes a far end back. What others return is not used again.
///
/// A process that has passed the continuation on could have kept a copy, and so could each that it went
/// through: so the answer must come from where the call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReturnTrust {
    /// The process whose returning answer comes first, from then on only that one. For an object with one
    /// server; when another takes its place no pair is used again.
    FirstToAnswer,
    /// The process of this number: for whoever started the server itself. (A number may be taken over by
    /// another process when this one has died; but only a holder of the mailbox is sent far ends.)
    Process(i32),
    /// Any process of this user: for several servers of one object.
    User(u32),
}

/// What has become of the pairs of a plain object that were to come home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Returns {
    /// Calls made with a pair that had served before.
    pub reused: u64,
    /// Far ends that came home.
    pub returned: u64,
    /// Answers that brought no descriptor: whoever answered does not return continuations.
    pub not_returned: u64,
    /// Answers whose last descriptor was something else, which stayed in the answer.
    pub another: u64,
    /// Far ends that came from somebody who is [not trusted](ReturnTrust) with them, or of whom the kernel
    /// does not tell. Closed.
    pub not_trusted: u64,
    /// Far ends that came more than once, the others among the answer's own descriptors. The last was
    /// closed.
    pub duplicated: u64,
    /// Pairs with something in the near end that nobody had asked for. Closed.
    pub unclean: u64,
}

/// A pair that is at home.
pub(crate) struct Pair<Near> {
    /// Closed first: then the near end sees that nobody is there, and is closed without a doubt.
    pub(crate) far: OwnedFd,
    pub(crate) near: Near,
    /// Of the far end.
    pub(crate) cookie: u64,
}

/// What is seen of a pair that is to serve again.
pub(crate) enum Look {
    Quiet,
    /// Something lies in its near end.
    Unclean,
    /// It is that of the process this one was forked from, and in use there.
    OfAnotherProcess,
}

pub(crate) struct Returned<Near> {
    trust: ReturnTrust,
    first: Cell<Option<Credentials>>,
    /// The last that came home is the next to be used, so that those nobody needs are the first.
    home: RefCell<Vec<Pair<Near>>>,
    idle: Cell<Idle>,
    counts: Cell<Returns>,
}

/// How many pairs nobody has needed.
#[derive(Clone, Copy, Default)]
struct Idle {
    /// Calls since this was reckoned last.
    calls: u32,
    /// The fewest that were left at home by one of them.
    fewest: usize,
    /// Of those reckoned last, how many are still to be closed.
    to_close: usize,
}

impl Idle {
    /// A call has left so many at home. Whether one of them is to be closed.
    fn left(&mut self, count: usize) -> bool {
        self.fewest = if self.calls == 0 { count } else { self.fewest.min(count) };
        self.calls += 1;
        if self.calls == LATELY_CALLS {
            *self = Idle { to_close: self.fewest.saturating_sub(RETURNED_PAIRS_IDLE_MAX), ..Idle::default() };
        }
        let one = self.to_close > 0 && count > RETURNED_PAIRS_IDLE_MAX;
        self.to_close -= usize::from(one);
        one
    }
}

impl<Near> Returned<Near> {
    pub(crate) fn new(trust: ReturnTrust) -> Returned<Near> {
        Returned {
            trust,
            first: Cell::new(None),
            home: RefCell::default(),
            idle: Cell::default(),
            counts: Cell::new(Returns::default()),
        }
    }

    /// Of another handle on the same object, which keeps pairs of its own.
    pub(crate) fn trust(&self) -> ReturnTrust {
        self.trust
    }

    pub(crate) fn counts(&self) -> Returns {
        self.counts.get()
    }

    /// A pair that has served, if one is at home whose near end looks as it should.
    pub(crate) fn take(&self, look: impl Fn(&Near) -> Look) -> Option<Pair<Near>> {
        loop {
            let last = self.home.borrow_mut().pop();
            let Some(pair) = last else {
                // All are needed, and one more.
                self.idle.set(Idle { calls: 1, ..Idle::default() });
                return None;
            };
            match look(&pair.near) {
                Look::Quiet => {
                    self.count(|counts| counts.reused += 1);
                    drop(self.take_idle());
                    return Some(pair);
                }
                // Somebody has kept a copy, and used it. Of what is said from now on nobody can tell; see
                // SECURITY.md.
                Look::Unclean => self.count(|counts| counts.unclean += 1),
                Look::OfAnotherProcess => {}
            }
        }
    }

    /// Closes all that are at home. Says whether there were any.
    pub(crate) fn give_up(&self) -> bool {
        let all = self.home.take();
        !all.is_empty()
    }

    /// One that nobody has needed lately, to be closed before anything is sent.
    fn take_idle(&self) -> Option<Pair<Near>> {
        let (mut home, mut idle) = (self.home.borrow_mut(), self.idle.get());
        let one = idle.left(home.len());
        self.idle.set(idle);
        one.then(|| home.remove(0))
    }

    /// An answer with these descriptors has come in at the near end: takes the far end out of them. Gives the
    /// near end back if the pair does not serve again.
    pub(crate) fn bring_home(
        &self,
        near: Near,
        cookie: u64,
        answer: &mut Descriptors,
        who: Option<Credentials>,
    ) -> Option<Near> {
        let Some(last) = answer.take_last() else {
            self.count(|counts| counts.not_returned += 1);
            return Some(near);
        };
        if ring::socket_cookie(&last).ok() != Some(cookie) {
            // Whatever it is, it is part of the answer.
            answer.push(last);
            self.count(|counts| counts.another += 1);
            return Some(near);
        }
        if answer.iter().any(|fd| ring::socket_cookie(fd).ok() == Some(cookie)) {
            self.count(|counts| counts.duplicated += 1);
            return Some(near);
        }
        if !self.trusts(who) {
            self.count(|counts| counts.not_trusted += 1);
            return Some(near);
        }
        self.count(|counts| counts.returned += 1);
        let mut home = self.home.borrow_mut();
        if home.len() >= RETURNED_PAIRS_MAX {
            return Some(near);
        }
        home.push(Pair { far: last, near, cookie });
        None
    }

    fn trusts(&self, who: Option<Credentials>) -> bool {
        let Some(who) = who else { return false };
        match self.trust {
            // Of processes that are not visible from here the kernel says that they are number 0, all of
            // them.
            ReturnTrust::FirstToAnswer if who.pid == 0 => false,
            ReturnTrust::FirstToAnswer => {
                let first = self.first.get().unwrap_or(who);
                self.first.set(Some(first));
                first == who
            }
            ReturnTrust::Process(pid) => pid != 0 && who.pid == pid,
            ReturnTrust::User(uid) => who.uid == uid,
        }
    }

    fn count(&self, count: impl FnOnce(&mut Returns)) {
        let mut counts = self.counts.get();
        count(&mut counts);
        self.counts.set(counts);
    }
}

/// How many far ends an answerer remembers to have seen: what four callers have under way with as many pairs
/// as are kept.
const KNOWN_MAX: usize = 4 * RETURNED_PAIRS_MAX;

/// Far ends that have come before, and need not be asked again what they are: one question instead of three.
///
/// Each has one place, by its cookie, and the next that has the same place takes it: nobody searches. The
/// kernel counts cookies up, on each processor from a multiple of 4,096 that is its own. The memory is asked
/// for when the first one comes.
#[derive(Default)]
pub(crate) struct Known(RefCell<Vec<u64>>);

impl Known {
    pub(crate) fn has(&self, cookie: u64) -> bool {
        self.0.borrow().get(Known::place(cookie)).is_some_and(|seen| *seen == cookie)
    }

    pub(crate) fn add(&self, cookie: u64) {
        let mut known = self.0.borrow_mut();
        if known.is_empty() {
            // No socket has the cookie 0: it says that none was given yet.
            known.resize(KNOWN_MAX, 0);
        }
        known[Known::place(cookie)] = cookie;
    }

    fn place(cookie: u64) -> usize {
        ((cookie ^ cookie >> 12) % KNOWN_MAX as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Credentials = Credentials { pid: 0, uid: 65_533, gid: 0 };

    fn process(pid: i32, uid: u32) -> Option<Credentials> {
        Some(Credentials { pid, uid, gid: 0 })
    }

    #[test]
    fn the_first_to_answer_is_trusted_alone() {
        let returned = Returned::<()>::new(ReturnTrust::FirstToAnswer);
        assert!(!returned.trusts(None));
        assert!(!returned.trusts(Some(NOBODY)));
        assert!(returned.trusts(process(7, 1)));
        assert!(returned.trusts(process(7, 1)));
        assert!(!returned.trusts(process(8, 1)));
        // The number was taken over by somebody else's process.
        assert!(!returned.trusts(process(7, 2)));
    }

    #[test]
    fn a_process_or_a_user_is_trusted_as_said() {
        let returned = Returned::<()>::new(ReturnTrust::Process(7));
        assert!(returned.trusts(process(7, 1)));
        assert!(!returned.trusts(process(8, 1)));
        assert!(!Returned::<()>::new(ReturnTrust::Process(0)).trusts(Some(NOBODY)));
        let returned = Returned::<()>::new(ReturnTrust::User(1));
        assert!(returned.trusts(process(7, 1)));
        assert!(returned.trusts(process(8, 1)));
        assert!(!returned.trusts(process(7, 2)));
        assert!(!returned.trusts(None));
    }

    #[test]
    fn the_last_two_hundred_and_fifty_six_are_known() {
        let known = Known::default();
        assert!((1..=257).all(|cookie| !known.has(cookie)));
        (1..=257).for_each(|cookie| known.add(cookie));
        assert!(!known.has(1));
        assert!((2..=257).all(|cookie| known.has(cookie)));
    }

    #[test]
    fn what_lately_nobody_has_needed_is_closed_one_by_one_but_for_sixteen() {
        let mut idle = Idle::default();
        // Forty are needed at some time, so twenty-four never.
        let mut home = 64;
        for call in 0..LATELY_CALLS - 1 {
            assert!(!idle.left(if call == 100 { 24 } else { home }));
        }
        for _ in 0..8 {
            assert!(idle.left(home));
            home -= 1;
        }
        (8..LATELY_CALLS - 1).for_each(|_| assert!(!idle.left(home)));
        // Now nobody needs any: the rest goes, but for those that always stay.
        let closed = (0..LATELY_CALLS - 1).filter(|_| {
            let one = idle.left(home);
            home -= usize::from(one);
            one
        });
        assert_eq!((closed.count(), home), (40, RETURNED_PAIRS_IDLE_MAX));
    }
}
