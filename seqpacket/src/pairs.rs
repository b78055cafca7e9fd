//! Continuation pairs made ahead.
//!
//! Making and closing sockets costs more than a call itself. So pairs are made some at a time before they are
//! needed, and near ends that have served are closed some at a time: at the end of a call, when as many have
//! served as the stock keeps and no other call is under way; or by a companion of the reactor, when that has
//! not happened for a moment. Closing any socket while a descriptor is in flight sets the kernel's garbage
//! collector off, on another CPU, which costs more than the call. A pair of this stock serves one call and is
//! never used again, so that nobody who kept its far end can forge an answer or hide a death. (Those that may
//! come home are taken from here and then go to `returned`.)

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ring::{Companion, Kind, Reactor, Socket};

/// How many pairs are kept at most, unless said otherwise.
pub const PAIRS_DEFAULT: usize = 16;

/// Near ends that have served are closed after this time, if no batch has come together meanwhile. Longer
/// than a tick of the kernel's clock, so that a sleep before it need not program a timer.
const PAUSE: Duration = Duration::from_millis(20);

/// So many batches of near ends are kept for the moment when no call is under way.
const BATCHES_MAX: usize = 4;

/// A stock of pairs that any number of plain objects of one reactor share. A handle.
///
/// The stock grows with use: nothing is made ahead for an object that is called once.
#[derive(Clone)]
pub struct Pairs(Rc<Stock>);

struct Stock {
    inside: Rc<Inside>,
    _companion: Companion,
}

struct Inside {
    reactor: Reactor,
    most: usize,
    ready: RefCell<Vec<(Socket, OwnedFd)>>,
    spent: RefCell<Vec<Socket>>,
    /// Calls under way.
    out: Cell<usize>,
    /// How many were taken since the stock was last filled: what the next filling makes.
    taken: Cell<usize>,
    /// Of the companion.
    waker: RefCell<Option<Waker>>,
    /// The companion waits for a near end to have served, and not for time to pass.
    resting: Cell<bool>,
    /// How often the stock was renewed.
    renewals: Cell<u64>,
}

impl Pairs {
    /// An empty stock that keeps up to `most` pairs: two descriptors each.
    pub fn new(reactor: &Reactor, most: usize) -> Pairs {
        let inside = Rc::new(Inside {
            reactor: reactor.clone(),
            most,
            ready: RefCell::new(Vec::new()),
            spent: RefCell::new(Vec::new()),
            out: Cell::new(0),
            taken: Cell::new(0),
            waker: RefCell::new(None),
            resting: Cell::new(true),
            renewals: Cell::new(0),
        });
        let companion = reactor.companion(keep(Rc::downgrade(&inside), reactor.clone()));
        Pairs(Rc::new(Stock { inside, _companion: companion }))
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.0.inside.ready()
    }

    /// Takes one, or makes one where none is ready.
    pub(crate) fn take(&self) -> io::Result<(Socket, OwnedFd)> {
        let inside = &self.0.inside;
        let ready = inside.ready.borrow_mut().pop();
        let pair = match ready {
            Some(pair) => pair,
            None => Socket::pair(&inside.reactor, Kind::SeqPacket)?,
        };
        inside.taken.set(inside.taken.get() + 1);
        inside.out.set(inside.out.get() + 1);
        Ok(pair)
    }

    /// A call begins that has a pair of its own.
    pub(crate) fn call_begins(&self) {
        let out = &self.0.inside.out;
        out.set(out.get() + 1);
    }

    /// Takes back a near end whose call is over.
    pub(crate) fn spend(&self, near: Socket) {
        self.0.inside.spent.borrow_mut().push(near);
        self.call_over();
    }

    /// A call is over whose near end does not come here: it was closed at once, to withdraw the call, or is
    /// used again.
    pub(crate) fn call_over(&self) {
        let inside = &self.0.inside;
        inside.out.set(inside.out.get() - 1);
        // With others under way a descriptor may be in flight; but not for ever.
        let patience = if inside.out.get() == 0 { 1 } else { BATCHES_MAX };
        if inside.spent.borrow().len() >= inside.most.max(1) * patience {
            inside.renew();
        } else if inside.resting.get() && !inside.spent.borrow().is_empty() {
            let waker = inside.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Inside {
    /// Closes what has served, makes as many as were used.
    fn renew(&self) {
        self.renewals.set(self.renewals.get() + 1);
        let spent = std::mem::take(&mut *self.spent.borrow_mut());
        drop(spent);
        // One call does not make a habit.
        let wanted = match self.taken.replace(0) {
            1 => 0,
            taken => taken.min(self.most),
        };
        let mut made = Vec::new();
        for _ in self.ready().min(wanted)..wanted {
            match Socket::pair(&self.reactor, Kind::SeqPacket) {
                Ok(pair) => made.push(pair),
                // Out of descriptors: whoever needs one will make it, and be told.
                Err(_) => break,
            }
        }
        self.ready.borrow_mut().append(&mut made);
    }

    fn ready(&self) -> usize {
        self.ready.borrow().len()
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").field("ready", &self.ready()).finish_non_exhaustive()
    }
}

/// Renews the stock when no batch comes together.
async fn keep(inside: Weak<Inside>, reactor: Reactor) {
    loop {
        poll_fn(|context| some_have_served(&inside, context.waker())).await;
        let Some(renewals) = inside.upgrade().map(|inside| inside.renewals.get()) else { return };
        reactor.sleep(PAUSE).await;
        let Some(inside) = inside.upgrade() else { return };
        inside.resting.set(true);
        if inside.renewals.get() == renewals {
            inside.renew();
        }
    }
}

/// Until the stock is gone, or there is something to close.
fn some_have_served(inside: &Weak<Inside>, waker: &Waker) -> Poll<()> {
    let Some(inside) = inside.upgrade() else { return Poll::Ready(()) };
    if !inside.spent.borrow().is_empty() {
        inside.resting.set(false);
        return Poll::Ready(());
    }
    let old = inside.waker.borrow_mut().replace(waker.clone());
    drop(old);
    Poll::Pending
}
