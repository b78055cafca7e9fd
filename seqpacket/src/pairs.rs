//! Continuation pairs made ahead.
//!
//! Making and closing sockets costs more than a call itself. So pairs are made some at a time before they are
//! needed, and near ends that have served are closed some at a time, by a companion of the reactor, when no
//! call is under way: closing any socket while a descriptor is in flight sets the kernel's garbage collector
//! off. A pair serves one call and is never used again, so that nobody who kept its far end can forge an
//! answer or hide a death.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use ring::{Companion, Kind, Reactor, Socket};

/// How many pairs are kept at most, unless said otherwise.
pub const PAIRS_DEFAULT: usize = 16;

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
    waker: RefCell<Option<Waker>>,
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
        });
        let weak = Rc::downgrade(&inside);
        let companion =
            reactor.companion(async move { poll_fn(|context| keep(&weak, context.waker())).await });
        Pairs(Rc::new(Stock { inside, _companion: companion }))
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.0.inside.ready.borrow().len()
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

    /// Takes back a near end whose call is over.
    pub(crate) fn spend(&self, near: Socket) {
        self.0.inside.spent.borrow_mut().push(near);
        self.call_over();
    }

    /// A call is over whose near end was closed at once, to withdraw it.
    pub(crate) fn lost(&self) {
        self.call_over();
    }

    fn call_over(&self) {
        let inside = &self.0.inside;
        inside.out.set(inside.out.get() - 1);
        let idle = inside.out.get() == 0 && inside.ready.borrow().is_empty();
        let many = inside.spent.borrow().len() >= inside.most.max(1);
        if idle || many {
            let waker = inside.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").field("ready", &self.ready()).finish_non_exhaustive()
    }
}

/// Closes what has served, makes as many as were used.
fn keep(inside: &Weak<Inside>, waker: &Waker) -> Poll<()> {
    let Some(inside) = inside.upgrade() else { return Poll::Ready(()) };
    let old = inside.waker.borrow_mut().replace(waker.clone());
    drop(old);
    let spent = std::mem::take(&mut *inside.spent.borrow_mut());
    drop(spent);
    // One call does not make a habit: the first pair made ahead is for whoever calls again.
    let wanted = inside.taken.replace(0).saturating_sub(1).min(inside.most);
    let mut made = Vec::new();
    for _ in inside.ready.borrow().len()..wanted.max(inside.ready.borrow().len()) {
        match Socket::pair(&inside.reactor, Kind::SeqPacket) {
            Ok(pair) => made.push(pair),
            // Out of descriptors: whoever needs one will make it, and be told.
            Err(_) => break,
        }
    }
    inside.ready.borrow_mut().append(&mut made);
    Poll::Pending
}
