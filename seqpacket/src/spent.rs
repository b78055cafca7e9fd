//! Sockets that have served, closed some at a time.
//!
//! Closing a socket costs more than a message, and more still while a descriptor is in flight anywhere: the
//! kernel then looks for garbage, on another CPU. So near ends whose call is over, and continuations that are
//! answered, are kept until whoever owns them says that it suits, or until 20 ms have passed. What a socket
//! is, and when it suits, is for the owner to know.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ring::{Companion, Reactor, Socket};

/// What has served is closed after this time, if its owner has not closed anything meanwhile. Longer than a
/// tick of the kernel's clock, so that a sleep before it need not program a timer.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Spent {
    kept: Rc<Kept>,
    _companion: Companion,
}

struct Kept {
    sockets: RefCell<Vec<Socket>>,
    /// What else is done on the occasion.
    afterwards: Box<dyn Fn()>,
    /// How often they were closed.
    rounds: Cell<u64>,
    /// Of the companion, while it waits for a socket to have served, and not for time to pass.
    waker: RefCell<Option<Waker>>,
}

impl Spent {
    /// None yet. Each time some were closed, `afterwards` runs.
    pub(crate) fn new(reactor: &Reactor, afterwards: impl Fn() + 'static) -> Spent {
        let kept = Rc::new(Kept {
            sockets: RefCell::default(),
            afterwards: Box::new(afterwards),
            rounds: Cell::new(0),
            waker: RefCell::default(),
        });
        let companion = reactor.companion(close_what_stays(Rc::downgrade(&kept), reactor.clone()));
        Spent { kept, _companion: companion }
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.sockets.borrow().len()
    }

    /// One more, to be closed by [`close`](Spent::close) or when time has passed.
    pub(crate) fn add(&self, socket: Socket) {
        self.kept.sockets.borrow_mut().push(socket);
        let waker = self.kept.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Closes them all.
    pub(crate) fn close(&self) {
        self.kept.close();
    }
}

impl Kept {
    fn close(&self) {
        self.rounds.set(self.rounds.get() + 1);
        let mut sockets = std::mem::take(&mut *self.sockets.borrow_mut());
        sockets.clear();
        // Their memory is for the next.
        let others = std::mem::replace(&mut *self.sockets.borrow_mut(), sockets);
        self.sockets.borrow_mut().extend(others);
        (self.afterwards)();
    }
}

impl fmt::Debug for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spent").field("sockets", &self.len()).finish_non_exhaustive()
    }
}

/// Closes what nobody else has closed for a while.
async fn close_what_stays(kept: Weak<Kept>, reactor: Reactor) {
    loop {
        poll_fn(|context| some_have_served(&kept, context.waker())).await;
        let Some(rounds) = kept.upgrade().map(|kept| kept.rounds.get()) else { return };
        reactor.sleep(PAUSE).await;
        let Some(kept) = kept.upgrade() else { return };
        if kept.rounds.get() == rounds {
            kept.close();
        }
    }
}

/// Until they are gone, or there is something to close.
fn some_have_served(kept: &Weak<Kept>, waker: &Waker) -> Poll<()> {
    let Some(kept) = kept.upgrade() else { return Poll::Ready(()) };
    if !kept.sockets.borrow().is_empty() {
        return Poll::Ready(());
    }
    let old = kept.waker.borrow_mut().replace(waker.clone());
    drop(old);
    Poll::Pending
}
