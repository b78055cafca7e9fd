//! A client of a stress run: it calls two objects, one that it was born with and one that it finds through
//! the introduction server, as often as it may.
//!
//! It owns its calls from the first word in the journal to the last. It must never call again under the same
//! number, nor decide whether what came is good.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use introduction::{Connection, Identity, Locator, Netlayer, Proof};
use ring::Executor;
use seqpacket::CallError;

use super::deed;
use super::journal::{Direction, Event};
use super::judge::call_number;
use super::party::{self, Callee, LOOK_EVERY, Order, Party};
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
    may_call: Cell<u64>,
    called: Cell<u32>,
    is_over: Cell<bool>,
    callers: Cell<usize>,
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
        may_call: Cell::new(0),
        called: Cell::new(0),
        is_over: Cell::new(false),
        callers: Cell::new(0),
    });
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
            client.may_call.set(client.may_call.get() + calls);
        }
        client.is_over.set(true);
        while client.callers.get() > 0 {
            client.party.reactor.sleep(LOOK_EVERY).await;
        }
    });
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
        while !self.is_over.get() {
            if self.may_call.get() > 0 {
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
        let call = call_number(self.party.life, self.called.get());
        // Without descriptors there is nothing to say yet.
        let Ok(fds) = self.party.tagged(call, Direction::Argument) else {
            return self.party.reactor.sleep(LOOK_EVERY).await;
        };
        self.called.set(self.called.get() + 1);
        self.may_call.set(self.may_call.get() - 1);
        let deed = self.party.deed(call);
        self.party.note(Event::Begun { call, object });
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
