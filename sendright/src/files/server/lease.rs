//! What was given, so that it can be taken back: a tree in which whatever came of something hangs below it.
//!
//! A lease owns no object. Those that serve one wait for the end of its lease beside waiting for calls. It
//! must never know what was given, nor why it is taken back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use crate::permits::{Permit, Permits};

/// Something that was given and can be taken back, with all that came of it. Clones are the same lease.
#[derive(Clone)]
pub struct Lease(Rc<Shared>);

struct Shared {
    ended: Cell<bool>,
    /// Kept as long as this is: what is above ends this, also when nothing else is left of it.
    above: Option<Lease>,
    /// How many objects may hang on it. A part has no room of its own, but that of the lease above.
    objects: Option<Permits>,
    below: RefCell<Vec<Weak<Shared>>>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
    waited_ever: Cell<u64>,
}

impl Lease {
    /// One that hangs on nothing, for so many objects.
    pub fn new(objects_max: usize) -> Lease {
        Lease::hung_on(None, Some(Permits::new(objects_max)))
    }

    /// One below this, for somebody else: so many objects of its own, which count for this one too.
    pub fn below(&self, objects_max: usize) -> Lease {
        Lease::hung_on(Some(self), Some(Permits::new(objects_max)))
    }

    /// One below this whose objects are this one's.
    pub fn part(&self) -> Lease {
        Lease::hung_on(Some(self), None)
    }

    fn hung_on(above: Option<&Lease>, objects: Option<Permits>) -> Lease {
        let lease = Lease(Rc::new(Shared {
            ended: Cell::new(above.is_some_and(Lease::has_ended)),
            above: above.cloned(),
            objects,
            below: RefCell::default(),
            waiting: RefCell::default(),
            waited_ever: Cell::new(0),
        }));
        if let Some(above) = above {
            let mut below = above.0.below.borrow_mut();
            below.retain(|lease| lease.strong_count() > 0);
            below.push(Rc::downgrade(&lease.0));
        }
        lease
    }

    /// Room for one object more, here and in all above.
    pub fn try_take(&self) -> Option<Taken> {
        if self.has_ended() {
            return None;
        }
        let above = match &self.0.above {
            Some(above) => Some(Box::new(above.try_take()?)),
            None => None,
        };
        let here = match &self.0.objects {
            Some(objects) => Some(objects.try_take()?),
            None => None,
        };
        Some(Taken { _here: here, _above: above })
    }

    /// How many objects hang on it, those of its parts included.
    pub fn objects(&self) -> usize {
        match (&self.0.objects, &self.0.above) {
            (Some(objects), _) => objects.out(),
            (None, above) => above.as_ref().map_or(0, Lease::objects),
        }
    }

    /// How many leases hang directly below it.
    pub fn leases_below(&self) -> usize {
        self.0.below.borrow().iter().filter(|lease| lease.strong_count() > 0).count()
    }

    /// Takes back what was given, and all that came of it.
    pub fn end(&self) {
        if self.0.ended.replace(true) {
            return;
        }
        let (waiting, below) = (self.0.waiting.take(), self.0.below.take());
        for lease in below.into_iter().filter_map(|lease| lease.upgrade()) {
            Lease(lease).end();
        }
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    /// Whether it was taken back.
    pub fn has_ended(&self) -> bool {
        self.0.ended.get()
    }

    /// What `future` comes to, or `None` once the lease has ended, also if both have happened.
    pub async fn unless_ended<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut place = Place { lease: self, number: None };
        poll_fn(|context| {
            if place.poll_ended(context) {
                return Poll::Ready(None);
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }
}

/// The room of one object in a lease and in all above it. Dropping it gives it back.
#[derive(Debug)]
pub struct Taken {
    _here: Option<Permit>,
    _above: Option<Box<Taken>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("ended", &self.has_ended()).field("objects", &self.objects()).finish()
    }
}

/// A task's place among those who wait, for as long as it waits.
struct Place<'a> {
    lease: &'a Lease,
    number: Option<u64>,
}

impl Place<'_> {
    fn poll_ended(&mut self, context: &mut Context<'_>) -> bool {
        let shared = &self.lease.0;
        if shared.ended.get() {
            return true;
        }
        let number = *self.number.get_or_insert_with(|| {
            shared.waited_ever.set(shared.waited_ever.get() + 1);
            shared.waited_ever.get()
        });
        let old = shared.waiting.borrow_mut().insert(number, context.waker().clone());
        drop(old);
        false
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let old = self.lease.0.waiting.borrow_mut().remove(&number);
            drop(old);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_came_of_it_ends_with_it_and_nothing_else_does() {
        let root = Lease::new(9);
        let (anne, bert) = (root.below(3), root.below(3));
        let annes = anne.part().part();
        let mut annes_wait = pin!(annes.unless_ended(pending::<()>()));
        let mut berts_wait = pin!(bert.unless_ended(pending::<()>()));
        assert!(poll(annes_wait.as_mut()).is_pending());
        assert!(poll(berts_wait.as_mut()).is_pending());
        anne.end();
        assert_eq!(poll(annes_wait.as_mut()), Poll::Ready(None));
        assert!(poll(berts_wait.as_mut()).is_pending());
        assert!(!root.has_ended());
        assert!(anne.part().has_ended(), "what is made of it later has ended too");
        assert!(anne.try_take().is_none());
    }

    #[test]
    fn what_is_left_of_something_let_go_ends_with_what_was_above_it() {
        let grant = Lease::new(9);
        let holder = grant.below(3);
        let view = holder.part();
        drop(holder);
        assert_eq!(grant.leases_below(), 1);
        grant.end();
        assert!(view.has_ended());
    }

    #[test]
    fn an_end_comes_before_anything_that_was_ready() {
        let lease = Lease::new(1);
        lease.end();
        assert_eq!(poll(pin!(lease.unless_ended(ready(1)))), Poll::Ready(None));
    }

    #[test]
    fn a_part_shares_the_room_and_others_have_some_of_it() {
        let lease = Lease::new(2);
        let (anne, bert) = (lease.below(1), lease.below(2));
        let part = anne.part();
        let annes = part.try_take();
        assert!(annes.is_some());
        assert!(anne.try_take().is_none(), "it is the same room");
        let berts = bert.try_take();
        assert!(berts.is_some(), "one does not take what is another's");
        assert!(bert.try_take().is_none(), "all together have no more than there is");
        assert_eq!((lease.objects(), bert.objects(), lease.leases_below()), (2, 1, 2));
        drop((annes, part, anne));
        assert_eq!((lease.objects(), lease.leases_below()), (1, 1));
        assert!(bert.try_take().is_some());
    }

    #[test]
    fn who_waits_again_and_again_has_one_place() {
        let lease = Lease::new(1);
        let mut wait = Box::pin(lease.unless_ended(pending::<()>()));
        for _ in 0..3 {
            assert!(poll(wait.as_mut()).is_pending());
        }
        assert_eq!(lease.0.waiting.borrow().len(), 1);
        drop(wait);
        assert_eq!(lease.0.waiting.borrow().len(), 0);
    }
}
