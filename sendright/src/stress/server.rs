//! A server of a stress run: it answers calls, hands some on to third parties, and lets go of some.
//!
//! It owns one object: the first server's is born before it and outlives it, the second makes its own and is
//! found through the introduction server. On request it does something wrong, so that it can be seen that
//! this is noticed.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use introduction::{Connection, Identity, Netlayer};
use ring::{Executor, Message, Reactor, Spawner};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use seqpacket::PlainContinuation;

use super::deed::{self, Deed, Fate};
use super::journal::{Direction, Event, Tag};
use super::party::{self, Callee, Inbox, Party, Reply};
use crate::options::StressParty;
use crate::output::{Failure, Outcome};
use crate::reactor::within;

/// What is said when an object is handed over.
const HERE_IS_AN_OBJECT: &[u8] = b"object";

/// How long handing one over may take.
pub const HANDING_OVER_TIME_MAX: Duration = Duration::from_secs(2);

/// Where somebody who wants to see the judge at work says what is to go wrong.
const SABOTAGE_VARIABLE: &str = "SENDRIGHT_STRESS_SABOTAGE";

/// Every so many calls it does.
const SABOTAGE_EVERY: u64 = 64;

/// What a server can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    /// Two answers to one call.
    AnswerTwice,
    /// One call is handled twice.
    TakeTwice,
    /// An answer with a descriptor less.
    DropDescriptor,
    /// An answer with the descriptor of another.
    SwapDescriptor,
    /// An answer with the bytes of another.
    SwapBytes,
    /// An argument that is never closed.
    KeepDescriptor,
    /// A call that is let go of without a word.
    DropCall,
}

impl Sabotage {
    fn asked_for() -> Option<Sabotage> {
        match std::env::var(SABOTAGE_VARIABLE).ok()?.as_str() {
            "answer-twice" => Some(Sabotage::AnswerTwice),
            "take-twice" => Some(Sabotage::TakeTwice),
            "drop-descriptor" => Some(Sabotage::DropDescriptor),
            "swap-descriptor" => Some(Sabotage::SwapDescriptor),
            "swap-bytes" => Some(Sabotage::SwapBytes),
            "keep-descriptor" => Some(Sabotage::KeepDescriptor),
            "drop-call" => Some(Sabotage::DropCall),
            _ => None,
        }
    }
}

struct Server {
    party: Party,
    thirds: Vec<Callee>,
    object: u8,
    sabotage: Option<Sabotage>,
}

/// The key of the second server, the same in all its lives.
pub fn identity(seed: u64) -> Identity {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    Identity::from_seed(&bytes)
}

/// Lives one life of a server.
pub fn run(options: &StressParty) -> Result<Outcome, Failure> {
    let is_known = options.index == 0;
    let own = super::THIRDS as i32 + i32::from(is_known);
    let (party, own) = Party::take(options, own)?;
    let (party, answers_lost) = live(party, own, options)?;
    party.rest(answers_lost);
    Ok(Outcome::Good)
}

fn live(party: Party, mut own: Vec<OwnedFd>, options: &StressParty) -> Result<(Party, Option<u64>), Failure> {
    let executor = Executor::new(&party.reactor);
    let born_with = (own.len() > super::THIRDS).then(|| own.pop()).flatten();
    let thirds: Vec<Callee> = own.into_iter().map(|fd| party.callee(fd)).collect::<Result<_, _>>()?;
    let (inbox, address) = match born_with {
        Some(mailbox) => (party.inbox(mailbox)?, None),
        None => {
            let (mailbox, address) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(Failure::new)?;
            (party.inbox(mailbox)?, Some(address))
        }
    };
    let (inbox, spawner) = (Rc::new(inbox), executor.spawner());
    let (object, sabotage) = (options.index, Sabotage::asked_for());
    let server = Rc::new(Server { party, thirds, object, sabotage });
    let netlayer = address.map(|address| {
        let netlayer = Rc::new(server.party.netlayer(identity(options.seed)));
        let (registering, party) = (Rc::clone(&netlayer), Rc::clone(&server));
        executor.spawn(async move { party.party.stay_registered(&registering).await });
        let (meeting, door) = (Rc::clone(&netlayer), Rc::clone(&inbox));
        let (reactor, asked) = (server.party.reactor.clone(), executor.spawner());
        executor.spawn(async move { hand_out(&reactor, &meeting, &door, &address, &asked).await });
        netlayer
    });
    let (serving, calls) = (Rc::clone(&server), Rc::clone(&inbox));
    executor.spawn(async move {
        while let Some((bytes, fds, reply)) = calls.next().await {
            spawner.spawn(Rc::clone(&serving).handle(bytes, fds, reply));
        }
    });
    let answers_lost = executor.block_on(async {
        server.party.until_rest().await;
        inbox.answers_lost(&server.party.reactor).await
    });
    drop((executor, netlayer, inbox));
    let server = Rc::into_inner(server).ok_or_else(|| Failure::new("a task is left"))?;
    Ok((server.party, answers_lost))
}

/// Gives the object to everybody who is introduced: an address for that holder alone, or a copy of the
/// descriptor where an object has only one. Never ends.
async fn hand_out(
    reactor: &Reactor,
    netlayer: &Netlayer,
    inbox: &Inbox,
    address: &OwnedFd,
    spawner: &Spawner,
) {
    loop {
        let Connection::SeqPacket(client) = netlayer.incoming().await.accept() else { continue };
        let object = match inbox {
            Inbox::Session(mailbox) => mailbox.grant(),
            Inbox::Plain(_) => address.try_clone(),
        };
        let Ok(object) = object else { continue };
        let reactor = reactor.clone();
        spawner.spawn(async move {
            let here = Message::from(HERE_IS_AN_OBJECT).with_descriptor(object);
            // Whoever is not there any more asks again in its next life.
            let _ = within(&reactor, HANDING_OVER_TIME_MAX, client.send(here)).await;
        });
    }
}

impl Server {
    async fn handle(self: Rc<Self>, bytes: Vec<u8>, fds: Vec<OwnedFd>, reply: Reply) {
        let call = deed::number(&bytes).unwrap_or(u64::MAX);
        let deed = self.party.deed(call);
        let right = bytes == deed::call_bytes(call, &deed);
        self.note_taken(call, &fds, right);
        if let Some(pause) = deed.pause {
            self.party.reactor.sleep(pause).await;
        }
        if call % SABOTAGE_EVERY == 5
            && let Some(sabotage) = self.sabotage
        {
            return self.spoil(sabotage, call, fds, reply).await;
        }
        match deed.fate {
            Fate::Answered => {
                drop(fds);
                self.answer(call, &deed, reply).await;
            }
            Fate::HandedOn(third) => self.hand_on(call, third, fds, reply).await,
            Fate::LetGo => self.party.note(Event::LettingGo { call }),
        }
    }

    fn note_taken(&self, call: u64, fds: &[OwnedFd], right: bool) {
        let (object, seen) = (self.object, party::seen(fds));
        self.party.note(Event::Taken { call, object, seen, right });
    }

    async fn answer(&self, call: u64, deed: &Deed, reply: Reply) {
        let Ok(fds) = self.party.tagged(call, Direction::Answer) else {
            return self.party.note(Event::LettingGo { call });
        };
        let message = party::answer(&self.party, call, fds);
        self.say(call, deed, message, reply).await;
    }

    async fn say(&self, call: u64, deed: &Deed, message: Message, reply: Reply) {
        self.party.note(Event::Answering { call });
        if reply.answer(message, deed.has_large_answer()).await.is_err() {
            self.party.note(Event::NotAnswered { call });
        }
    }

    /// Has a third party answer, which gets what came with the call.
    async fn hand_on(&self, call: u64, third: usize, mut fds: Vec<OwnedFd>, reply: Reply) {
        self.party.note(Event::HandingOn { call });
        let Some(reply) = reply.into_fd() else {
            return self.party.note(Event::NotAnswered { call });
        };
        fds.insert(0, reply);
        let errand = party::message(call.to_le_bytes().to_vec(), fds);
        if self.thirds[third].hand_on(errand).await.is_err() {
            self.party.note(Event::ErrandFailed { call });
        }
    }

    /// What no server should do.
    async fn spoil(&self, sabotage: Sabotage, call: u64, mut fds: Vec<OwnedFd>, reply: Reply) {
        let deed = Deed { fate: Fate::Answered, ..self.party.deed(call) };
        match sabotage {
            Sabotage::TakeTwice => {
                self.note_taken(call, &fds, true);
                self.answer(call, &deed, reply).await;
            }
            Sabotage::DropCall => {}
            Sabotage::KeepDescriptor => {
                // A tagged one; without, there is nothing to keep.
                std::mem::forget((!fds.is_empty()).then(|| fds.remove(0)));
                self.answer(call, &deed, reply).await;
            }
            Sabotage::SwapBytes => {
                let Ok(fds) = self.party.tagged(call, Direction::Answer) else { return };
                let message = party::message(deed::answer_bytes(call ^ 1, &deed), fds);
                self.say(call, &deed, message, reply).await;
            }
            Sabotage::DropDescriptor | Sabotage::SwapDescriptor => {
                let Ok(mut fds) = self.party.tagged(call, Direction::Answer) else { return };
                let dropped = (!fds.is_empty()).then(|| fds.remove(0));
                let other = Tag { call: call ^ 1, direction: Direction::Answer, index: 0 };
                if sabotage == Sabotage::SwapDescriptor
                    && let Ok(other) = party::tagged(other)
                {
                    fds.insert(0, other);
                }
                drop(dropped);
                let message = party::answer(&self.party, call, fds);
                self.say(call, &deed, message, reply).await;
            }
            // A plain answer has one packet.
            Sabotage::AnswerTwice if deed.has_large_answer() => self.answer(call, &deed, reply).await,
            Sabotage::AnswerTwice => {
                let Some(first) = reply.into_fd() else { return };
                let Ok(second) = first.as_fd().try_clone_to_owned() else { return };
                for fd in [first, second] {
                    let reply = PlainContinuation::from_fd(&self.party.reactor, fd).map(Reply::Plain);
                    let Ok(reply) = reply else { return };
                    self.answer(call, &deed, reply).await;
                }
            }
        }
    }
}
