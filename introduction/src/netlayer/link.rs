//! The connection to one server: the registration, what is to be said to it, and who waits for what it says.
//!
//! Owns the descriptors that have not left. It does not read: whoever does calls in.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ring::{Fd, Socket};

use super::{AddServerError, Expect};
use crate::identity::{Identity, is_signed, random};
use crate::inlet::Come;
use crate::locator::{Locator, PublicKey};
use crate::passing::pass;
use crate::reading::{Ended, Reading};
use crate::record::{CHALLENGE_BYTES, Challenge, Form, Outcome, Record};
use crate::server::DUMMY;
use crate::signal::{Signal, before};
use crate::statement;

/// The most introductions that may wait to be sent.
pub(super) const ASKING_MAX: usize = 512;

/// With so much unsent, a server that introduces further peers is left. Twice what a program may ask for.
const UNSENT_MAX: usize = 1024;

pub(super) struct Link {
    pub(super) server: PublicKey,
    pub(super) is_extended: bool,
    pub(super) socket: Socket,
    outbox: RefCell<VecDeque<Letter>>,
    outgoing: Signal,
    /// Introductions asked for so far.
    asked: Cell<u64>,
    /// Those who still wait.
    answers: RefCell<BTreeMap<u64, Weak<Answer>>>,
    is_over: Cell<bool>,
    over: Signal,
}

enum Letter {
    Introduction { record: Vec<u8>, fd: Fd },
    Verdict(Vec<u8>),
}

/// What one introduction comes to, for whoever waits for that.
#[derive(Default)]
pub(super) struct Answer {
    outcome: Cell<Option<Outcome>>,
    is_over: Cell<bool>,
    signal: Signal,
}

impl Answer {
    /// The outcome, or nothing if the server is gone before it was told.
    pub(super) async fn wait(&self) -> Option<Outcome> {
        while self.outcome.get().is_none() && !self.is_over.get() {
            self.signal.wait().await;
        }
        self.outcome.get()
    }
}

/// What comes of shaking hands with a server.
pub(super) struct Greeted {
    pub(super) server: PublicKey,
    is_extended: bool,
}

impl Link {
    pub(super) fn new(socket: Socket, greeted: &Greeted) -> Link {
        Link {
            server: greeted.server,
            is_extended: greeted.is_extended,
            socket,
            outbox: RefCell::default(),
            outgoing: Signal::default(),
            asked: Cell::new(0),
            answers: RefCell::default(),
            is_over: Cell::new(false),
            over: Signal::default(),
        }
    }

    /// How much waits to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.outbox.borrow().len()
    }

    /// Asks for an introduction. It goes out whoever waits for what.
    pub(super) fn ask(&self, record: Vec<u8>, fd: Fd, answer: Option<&Rc<Answer>>) {
        let number = self.asked.get();
        self.asked.set(number + 1);
        if let Some(answer) = answer {
            answer.is_over.set(self.is_over.get());
            let mut answers = self.answers.borrow_mut();
            answers.retain(|_, answer| answer.strong_count() > 0);
            answers.insert(number, Rc::downgrade(answer));
        }
        self.post(Letter::Introduction { record, fd });
    }

    /// Says whether a connection was taken, if the server wants to know.
    pub(super) fn judge(&self, number: Option<u64>, accepted: bool) {
        if self.unsent() >= UNSENT_MAX {
            // It goes on introducing and does not read what becomes of it.
            self.socket.shut_down();
        } else if let Some(number) = number {
            self.post(Letter::Verdict(Record::Verdict { number, accepted }.to_bytes(Form::Goblins)));
        }
    }

    fn post(&self, letter: Letter) {
        if !self.is_over.get() {
            self.outbox.borrow_mut().push_back(letter);
            self.outgoing.ring();
        }
    }

    pub(super) fn answered(&self, number: u64, outcome: Outcome) {
        let answer = self.answers.borrow_mut().remove(&number);
        if let Some(answer) = answer.and_then(|answer| answer.upgrade()) {
            answer.outcome.set(Some(outcome));
            answer.signal.ring();
        }
    }

    /// The server is gone, or is left.
    pub(super) fn end(&self) {
        self.is_over.set(true);
        self.socket.shut_down();
        let unsent = self.outbox.take();
        let answers = self.answers.take();
        drop(unsent);
        for answer in answers.into_values().filter_map(|answer| answer.upgrade()) {
            answer.is_over.set(true);
            answer.signal.ring();
        }
        self.over.ring();
    }

    /// Ends when [`end`](Link::end) has been called.
    pub(super) async fn ended(&self) {
        while !self.is_over.get() {
            self.over.wait().await;
        }
    }
}

/// All that is said to a server after the registration.
pub(super) async fn write_to(link: Rc<Link>) {
    loop {
        let letter = link.outbox.borrow_mut().pop_front();
        let sent = match letter {
            None => {
                link.outgoing.wait().await;
                continue;
            }
            Some(Letter::Verdict(record)) => link.socket.send(record).await,
            Some(Letter::Introduction { record, fd }) => {
                // Two messages: who reads byte by byte would lose a descriptor that came with the record.
                match link.socket.send(record).await {
                    Ok(()) => pass(&link.socket, DUMMY, fd).await,
                    error => error,
                }
            }
        };
        if sent.is_err() {
            // Whoever reads sees the end, now or soon.
            return link.socket.shut_down();
        }
    }
}

/// Registers: finds out who the server is, and proves who we are.
pub(super) async fn shake_hands(
    identity: &Identity,
    socket: &Socket,
    reading: &mut Reading,
    expect: Expect,
    time: Duration,
) -> Result<Greeted, AddServerError> {
    let deadline = socket.reactor().now() + time;
    let ours: [u8; CHALLENGE_BYTES] = random()?;
    let mut locator = Locator::new(identity.key());
    locator.hints.extension = true;
    let challenge = Challenge::new(&ours).expect("as long as a challenge is");
    say(socket, Record::Register { locator, challenge: challenge.clone() }.to_bytes(Form::Goblins), deadline)
        .await?;

    let come = reading.next(socket, Some(deadline)).await.map_err(|ended| match ended {
        Ended::Closed => AddServerError::Closed,
        Ended::Late => AddServerError::Late,
        Ended::Ours(error) => AddServerError::Io(error),
        Ended::Violation | Ended::Refused => AddServerError::Malformed,
    })?;
    let (Come::Record { record, .. }, None) = come else { return Err(AddServerError::Malformed) };
    let Record::ServerResponse { key, challenge: theirs, signature, form, version } = record else {
        return Err(AddServerError::Malformed);
    };
    if !is_signed(&key, challenge.bytes(), &signature) {
        return Err(AddServerError::Malformed);
    }
    if expect.key.is_some_and(|expected| expected != key) {
        return Err(AddServerError::Unexpected(key));
    }
    let signature = match version {
        0 if expect.bound => return Err(AddServerError::NotBound),
        0 => identity.sign_challenge(&theirs),
        1 => {
            let theirs = theirs.bytes().try_into().map_err(|_| AddServerError::Malformed)?;
            identity.sign_statement(&statement::registration(&key, &identity.key(), &ours, &theirs))
        }
        _ => return Err(AddServerError::Malformed),
    };
    say(socket, Record::Signature { payload: theirs, signature }.to_bytes(form), deadline).await?;
    Ok(Greeted { server: key, is_extended: version == 1 })
}

async fn say(socket: &Socket, bytes: Vec<u8>, deadline: Instant) -> Result<(), AddServerError> {
    match before(socket.reactor(), deadline, socket.send(bytes)).await {
        Some(sent) => sent.map_err(|_| AddServerError::Closed),
        None => Err(AddServerError::Late),
    }
}
