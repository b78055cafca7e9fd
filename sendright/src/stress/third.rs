//! A third party of a stress run: calls that it was not asked are handed on to it, and it answers them.
//!
//! It owns nothing but the object on which they arrive, which outlives it. It must never know who has called.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use ring::Executor;
use seqpacket::PlainContinuation;

use super::deed;
use super::journal::{Direction, Event};
use super::party::{self, Party, Reply};
use crate::options::StressParty;
use crate::output::{Failure, Outcome};

/// What is said when an errand was understood.
const UNDERSTOOD: &str = "understood";

/// Lives one life of a third party.
pub fn run(options: &StressParty) -> Result<Outcome, Failure> {
    let (party, own) = Party::take(options, 1)?;
    let party = live(party, own)?;
    party.rest(None);
    Ok(Outcome::Good)
}

fn live(party: Party, own: Vec<OwnedFd>) -> Result<Party, Failure> {
    let executor = Executor::new(&party.reactor);
    let mailbox = own.into_iter().next().ok_or_else(|| Failure::usage("no object"))?;
    let inbox = party.inbox(mailbox)?;
    let party = Rc::new(party);
    let (third, spawner) = (Rc::clone(&party), executor.spawner());
    executor.spawn(async move {
        while let Some((bytes, fds, reply)) = inbox.next().await {
            spawner.spawn(answer(Rc::clone(&third), bytes, fds, reply));
        }
    });
    executor.block_on(party.until_rest());
    drop(executor);
    Rc::into_inner(party).ok_or_else(|| Failure::new("a task is left"))
}

/// Answers the call in the server's place.
async fn answer(party: Rc<Party>, errand: Vec<u8>, mut fds: Vec<OwnedFd>, reply: Reply) {
    let call = deed::number(&errand).unwrap_or(u64::MAX);
    let right = errand.len() == size_of::<u64>() && !fds.is_empty();
    let continuation = right.then(|| fds.remove(0));
    party.note(Event::HandTaken { call, seen: party::seen(&fds), right });
    drop(fds);
    // Whoever handed it on may be dead by now.
    let _ = reply.answer(UNDERSTOOD.into(), false).await;
    let continuation = continuation.and_then(|fd| PlainContinuation::from_fd(&party.reactor, fd).ok());
    let Some(continuation) = continuation else {
        return party.note(Event::NotAnswered { call });
    };
    if let Some(pause) = party.deed(call).pause {
        party.reactor.sleep(pause).await;
    }
    let Ok(fds) = party.tagged(call, Direction::Answer) else {
        return party.note(Event::LettingGo { call });
    };
    party.note(Event::Answering { call });
    if continuation.answer(party::answer(&party, call, fds)).is_err() {
        party.note(Event::NotAnswered { call });
    }
}
