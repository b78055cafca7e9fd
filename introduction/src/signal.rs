//! Waiting for each other within one thread, and for no longer than until a moment.
//!
//! Knows nothing of what is waited for.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Instant;

use ring::Reactor;

/// One waits, others ring. A ring that nobody waited for is kept, once.
#[derive(Default)]
pub(crate) struct Signal {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Not to be called while anything is borrowed: it wakes.
    pub(crate) fn ring(&self) {
        self.rung.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends when it has been rung since the last time.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.rung.take() {
                return Poll::Ready(());
            }
            let before = self.waker.borrow_mut().replace(context.waker().clone());
            drop(before);
            Poll::Pending
        })
        .await;
    }
}

/// Ends when whoever else is ready in this turn has had it.
pub(crate) async fn next_turn() {
    let mut is_over = false;
    poll_fn(|context| {
        if is_over {
            return Poll::Ready(());
        }
        is_over = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What the future ends with, or nothing if the moment comes first. With both at once it is the future's:
/// what has been done must not be lost.
pub(crate) async fn before<T>(
    reactor: &Reactor,
    moment: Instant,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(reactor.sleep_until(moment));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => sleep.as_mut().poll(context).map(|()| None),
    })
    .await
}
