//! A client of a stress run: it calls two objects, one that it was born with and one that it finds through
//! the introduction server, as often as it may; the first one also on a thread that waits for each answer.
//!
//! It owns its calls from the first word in the journal to the last. It must never call again under the same
//! number, nor decide whether what came is good.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use introduction::{Connection, Identity, Locator, Netlayer, Proof};
use ring::Executor;
use seqpacket::CallError;
use seqpacket::blocking::Outgoing;

use super::deed;
use super::journal::{Direction, Event};
use super::judge::call_number;
use super::party::{self, BlockingCallee, Callee, LOOK_EVERY, Order, Party, Pen};
use crate::options::StressParty;
use crate::output::{Failure, Outcome};
use crate::reactor::within;

/// Calls of one object under way at a time.
pub const DEPTH: usize = 8;

/// After so many calls the second object is looked for anew.
const STAY_CALLS: u32 = 400;

struct Client {
    party: Party,
    /// The object it was born with.
    known: Callee,
    /// The one that was found, and how often it was called.
    found: RefCell<Option<(Callee, u32)>>,
    book: Arc<Book>,
    callers: Cell<usize>,
}

/// What the calls of all threads are counted in.
#[derive(Default)]
struct Book {
    counts: Mutex<Counts>,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Counts {
    may_call: u64,
    called: u32,
}

impl Book {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many calls more.
    fn allow(&self, calls: u64) {
        self.counts().may_call += calls;
    }

    fn may_call(&self) -> bool {
        self.counts().may_call > 0
    }

    /// Writes down the next call as begun, and gives its number and its descriptors: in the journal the
    /// numbers of a life have their order, whichever thread calls. `None` if none may be made now, or there
    /// are no descriptors for it.
    fn begin(&self, pen: &Pen, object: u8, waits: bool) -> Option<(u64, Vec<OwnedFd>)> {
        let mut counts = self.counts();
        let may_call = counts.may_call.checked_sub(1)?;
        let call = call_number(pen.life, counts.called);
        let fds = pen.tagged(call, Direction::Argument).ok()?;
        *counts = Counts { may_call, called: counts.called + 1 };
        pen.note(Event::Begun { call, object, waits });
        Some((call, fds))
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Lives one life of a client.
pub fn run(options: &StressParty) -> Result<Outcome, Failure> {
    let (party, own) = Party::take(options, 1)?;
    let party = live(party, own, options)?;
    party.rest(None);
    Ok(Outcome::Good)
}

fn live(party: Party, own: Vec<OwnedFd>, options: &StressParty) -> Result<Party, Failure> {
    let executor = Executor::new(&party.reactor);
    let known = own.into_iter().next().ok_or_else(|| Failure::usage("no object"))?;
    let known = party.callee(known)?;
    let client = Rc::new(Client {
        party,
        known,
        found: RefCell::new(None),
        book: Arc::default(),
        callers: Cell::new(0),
    });
    let (pen, book) = (client.party.pen(), Arc::clone(&client.book));
    let object = client.known.share().map_err(Failure::new)?;
    let object = BlockingCallee::new(object, pen.way).map_err(Failure::new)?;
    let waiting = thread::spawn(move || call_and_wait(&pen, &book, &object));
    let identity = Identity::generate().map_err(Failure::new)?;
    let netlayer = Rc::new(client.party.netlayer(identity));
    let locator = locator(&client.party, options);
    let (registering, finding) = (Rc::clone(&netlayer), Rc::clone(&netlayer));
    let owner = Rc::clone(&client);
    executor.spawn(async move { owner.party.stay_registered(&registering).await });
    let owner = Rc::clone(&client);
    executor.spawn(async move { owner.find(&finding, &locator).await });
    for _ in 0..DEPTH {
        for object in [0, 1] {
            client.callers.set(client.callers.get() + 1);
            executor.spawn(Rc::clone(&client).call_one_after_another(object));
        }
    }
    executor.block_on(async {
        while let Order::Call(calls) = client.party.order().await {
            client.book.allow(calls);
        }
        client.book.end();
        while client.callers.get() > 0 {
            client.party.reactor.sleep(LOOK_EVERY).await;
        }
    });
    waiting.join().map_err(|_| Failure::new("the thread that waits for answers has panicked"))?;
    // The two tasks that never end hold the client.
    drop(executor);
    drop(netlayer);
    let client = Rc::into_inner(client).ok_or_else(|| Failure::new("a task is left"))?;
    Ok(client.party)
}

/// Where the second object is to be found.
fn locator(party: &Party, options: &StressParty) -> Locator {
    let mut locator = Locator::new(super::server::identity(options.seed).key());
    locator.hints.servers.insert(party.introducer());
    locator.hints.seqpacket = true;
    locator.hints.proof = Proof::Required;
    locator
}

impl Client {
    /// Has the second object found whenever there is none. Never ends.
    async fn find(&self, netlayer: &Netlayer, locator: &Locator) {
        loop {
            if self.found.borrow().is_none()
                && let Some(callee) = self.ask(netlayer, locator).await
            {
                *self.found.borrow_mut() = Some((callee, 0));
            }
            self.party.reactor.sleep(LOOK_EVERY).await;
        }
    }

    async fn ask(&self, netlayer: &Netlayer, locator: &Locator) -> Option<Callee> {
        let connection = netlayer.connect_confirmed(locator).await.ok()?;
        let Connection::SeqPacket(socket) = connection else { return None };
        let received =
            within(&self.party.reactor, super::server::HANDING_OVER_TIME_MAX, socket.receive()).await;
        let fd = received?.ok()?.take_descriptor()?;
        self.party.callee(fd).ok()
    }

    async fn call_one_after_another(self: Rc<Self>, object: u8) {
        while let Some(callee) = self.callee(object).await {
            self.call(object, &callee).await;
        }
        self.callers.set(self.callers.get() - 1);
    }

    /// Something to call and the right to; `None` when it is over.
    async fn callee(&self, object: u8) -> Option<Callee> {
        while !self.book.is_over() {
            if self.book.may_call() {
                if object == 0 {
                    return Some(self.known.clone());
                }
                let mut found = self.found.borrow_mut();
                if let Some((callee, calls)) = found.as_mut() {
                    let callee = callee.clone();
                    *calls += 1;
                    if *calls >= STAY_CALLS {
                        *found = None;
                    }
                    return Some(callee);
                }
            }
            self.party.reactor.sleep(LOOK_EVERY).await;
        }
        None
    }

    async fn call(&self, object: u8, callee: &Callee) {
        // Others have made the last call that may be made; or without descriptors there is nothing to say
        // yet.
        let Some((call, fds)) = self.book.begin(&self.party, object, false) else {
            return self.party.reactor.sleep(LOOK_EVERY).await;
        };
        let deed = self.party.deed(call);
        let message = party::message(deed::call_bytes(call, &deed), fds);
        let calling = callee.call(message, &deed);
        let outcome = match deed.withdrawn {
            None => calling.await,
            Some(time) => match within(&self.party.reactor, time, self.withdrawing(call, calling)).await {
                Some(outcome) => outcome,
                // Written down by the guard.
                None => return,
            },
        };
        match outcome {
            Ok(mut answer) => {
                let fds = answer.take_descriptors();
                let right = answer.bytes() == deed::answer_bytes(call, &deed);
                self.party.note(Event::Answered { call, seen: party::seen(&fds), right });
            }
            Err(error) => {
                self.party.note(party::failed(call, &error));
                self.lose(object, &error);
            }
        }
    }

    /// The call, which is written down as withdrawn if it is dropped before it has ended.
    async fn withdrawing<T>(&self, call: u64, calling: impl Future<Output = T>) -> T {
        let guard = Withdrawing { party: &self.party, call, is_armed: Cell::new(true) };
        let outcome = calling.await;
        guard.is_armed.set(false);
        outcome
    }

    /// Whoever served the second object is dead: there is another, of its next life.
    fn lose(&self, object: u8, error: &CallError) {
        if object == 1 && matches!(error, CallError::Gone) {
            let lost = self.found.borrow_mut().take();
            drop(lost);
        }
    }
}

/// Calls one after the other, each when the one before has ended, until it is over. With a deadline where a
/// task would withdraw.
fn call_and_wait(pen: &Pen, book: &Book, object: &BlockingCallee) {
    while !book.is_over() {
        let Some((call, fds)) = book.begin(pen, 0, true) else {
            thread::sleep(LOOK_EVERY);
            continue;
        };
        let deed = pen.deed(call);
        let message = Outgoing::from(deed::call_bytes(call, &deed));
        let message = fds.into_iter().fold(message, Outgoing::with_descriptor);
        pen.note(match object.call(message, &deed) {
            Ok(mut answer) => {
                let right = answer.bytes() == deed::answer_bytes(call, &deed);
                Event::Answered { call, seen: party::seen(&answer.take_descriptors()), right }
            }
            Err(CallError::Deadline | CallError::Expired) if deed.withdrawn.is_some() => {
                Event::Withdrawing { call }
            }
            Err(error) => party::failed(call, &error),
        });
    }
}

/// Writes down that a call is withdrawn, unless it has ended.
struct Withdrawing<'a> {
    party: &'a Party,
    call: u64,
    is_armed: Cell<bool>,
}

impl Drop for Withdrawing<'_> {
    fn drop(&mut self) {
        if self.is_armed.get() {
            self.party.note(Event::Withdrawing { call: self.call });
        }
    }
}
