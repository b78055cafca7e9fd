//! So many at a time: permits that tasks of one thread wait for.
//!
//! It owns the number of free permits and who waits, first come first served. It must never know what a
//! permit is for.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A number of permits, shared by cloning.
#[derive(Clone, Debug)]
pub struct Permits(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    free: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Permits {
    /// `total` permits, all free.
    pub fn new(total: usize) -> Permits {
        assert!(total > 0);
        Permits(Rc::new(Shared { total, free: Cell::new(total), waiting: RefCell::default() }))
    }

    /// One permit, as soon as there is one.
    pub async fn take(&self) -> Permit {
        self.wait_for(1).await;
        self.0.free.set(self.0.free.get() - 1);
        Permit(self.clone())
    }

    /// One permit, if one is free.
    pub fn try_take(&self) -> Option<Permit> {
        let left = self.0.free.get().checked_sub(1)?;
        self.0.free.set(left);
        Some(Permit(self.clone()))
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.0.total
    }

    /// How many are out.
    pub fn out(&self) -> usize {
        self.0.total - self.0.free.get()
    }

    /// When every permit is back.
    pub async fn all_back(&self) {
        self.wait_for(self.0.total).await;
    }

    async fn wait_for(&self, count: usize) {
        poll_fn(|context| {
            if self.0.free.get() >= count {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// One permit; dropping it gives it back.
#[derive(Debug)]
pub struct Permit(Permits);

impl Drop for Permit {
    fn drop(&mut self) {
        let shared = &self.0.0;
        shared.free.set(shared.free.get() + 1);
        assert!(shared.free.get() <= shared.total);
        // Everybody looks again: one may wait for one permit and another for all of them.
        let waiting = shared.waiting.take();
        for waker in waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn is_ready<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn one_too_many_waits_until_one_is_back() {
        let permits = Permits::new(1);
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(permits.take()).poll(&mut context) else { panic!("one is free") };
        let mut second = pin!(permits.take());
        let mut all = pin!(permits.all_back());
        assert!(!is_ready(second.as_mut()));
        assert!(!is_ready(all.as_mut()));
        drop(first);
        assert!(is_ready(all.as_mut()));
        assert!(is_ready(second.as_mut()));
    }

    #[test]
    fn what_is_not_free_is_not_taken() {
        let permits = Permits::new(1);
        let first = permits.try_take();
        assert!(first.is_some());
        assert!(permits.try_take().is_none());
        assert_eq!(permits.out(), 1);
        drop(first);
        assert_eq!(permits.out(), 0);
    }
}
