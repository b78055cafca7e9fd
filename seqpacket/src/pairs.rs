//! Continuation pairs made ahead.
//!
//! Making and closing sockets costs more than a call itself. So pairs are made some at a time before they are
//! needed, and near ends that have served are closed some at a time (`spent`): at the end of a call, when as
//! many have served as the stock keeps and no other call is under way; or when that has not happened for a
//! moment. A pair of this stock serves one call and is never used again, so that nobody who kept its far end
//! can forge an answer or hide a death. (Those that may come home are taken from here and then go to
//! `returned`.)

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ring::{Kind, Reactor, Socket};

use crate::spent::Spent;

/// How many pairs are kept at most, unless said otherwise.
pub const PAIRS_DEFAULT: usize = 16;

/// So many batches of near ends are kept for the moment when no call is under way.
const BATCHES_MAX: usize = 4;

/// A stock of pairs that any number of plain objects of one reactor share. A handle.
///
/// The stock grows with use: nothing is made ahead for an object that is called once.
#[derive(Clone)]
pub struct Pairs(Rc<Inside>);

struct Inside {
    stock: Rc<Stock>,
    spent: Spent,
    /// Calls under way.
    out: Cell<usize>,
}

struct Stock {
    reactor: Reactor,
    most: usize,
    ready: RefCell<Vec<(Socket, OwnedFd)>>,
    /// How many were taken since the stock was last filled: what the next filling makes.
    taken: Cell<usize>,
}

impl Pairs {
    /// An empty stock that keeps up to `most` pairs: two descriptors each.
    pub fn new(reactor: &Reactor, most: usize) -> Pairs {
        let (reactor, ready, taken) = (reactor.clone(), RefCell::default(), Cell::new(0));
        let stock = Rc::new(Stock { reactor, most, ready, taken });
        let filled = Rc::downgrade(&stock);
        let spent = Spent::new(&stock.reactor, move || {
            if let Some(stock) = filled.upgrade() {
                stock.fill();
            }
        });
        Pairs(Rc::new(Inside { stock, spent, out: Cell::new(0) }))
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.0.stock.ready()
    }

    /// Takes one, or makes one where none is ready.
    pub(crate) fn take(&self) -> io::Result<(Socket, OwnedFd)> {
        let pair = self.0.stock.take()?;
        self.call_begins();
        Ok(pair)
    }

    /// A call begins that has a pair of its own.
    pub(crate) fn call_begins(&self) {
        let out = &self.0.out;
        out.set(out.get() + 1);
    }

    /// Takes back a near end whose call is over.
    pub(crate) fn spend(&self, near: Socket) {
        self.0.spent.add(near);
        self.call_over();
    }

    /// A call is over whose near end does not come here: it was closed at once, to withdraw the call, or is
    /// used again.
    pub(crate) fn call_over(&self) {
        let Inside { stock, spent, out } = &*self.0;
        out.set(out.get() - 1);
        // With others under way a descriptor may be in flight; but not for ever.
        let patience = if out.get() == 0 { 1 } else { BATCHES_MAX };
        if spent.len() >= stock.most.max(1) * patience {
            spent.close();
        }
    }
}

impl Stock {
    fn take(&self) -> io::Result<(Socket, OwnedFd)> {
        let ready = self.ready.borrow_mut().pop();
        let pair = match ready {
            Some(pair) => pair,
            None => Socket::pair(&self.reactor, Kind::SeqPacket)?,
        };
        self.taken.set(self.taken.get() + 1);
        Ok(pair)
    }

    /// Makes as many as were used.
    fn fill(&self) {
        // One call does not make a habit.
        let wanted = match self.taken.replace(0) {
            1 => 0,
            taken => taken.min(self.most),
        };
        for _ in self.ready().min(wanted)..wanted {
            match Socket::pair(&self.reactor, Kind::SeqPacket) {
                Ok(pair) => self.ready.borrow_mut().push(pair),
                // Out of descriptors: whoever needs one will make it, and be told.
                Err(_) => break,
            }
        }
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
