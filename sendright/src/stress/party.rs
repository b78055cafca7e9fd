//! What every party of a stress run is made of: what it inherits, its descriptors with a name in them, its
//! objects, and how it comes to rest.
//!
//! It owns the line to the judging process, whose orders it takes, and the journal's end of this life. It
//! must never remember anything that the judge needs: what is not in the journal has not happened.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use introduction::{Expect, Identity, Netlayer, NetlayerOptions, Proof, PublicKey};
use ring::{Executor, Message, Reactor, Socket};
use rustix::fs::{FileType, MemfdFlags};
use seqpacket::blocking::{self, Outgoing};
use seqpacket::{
    Answer, AnswerError, CallError, CallOptions, Continuation, Incoming, Mailbox, Object, Part,
    PlainContinuation, PlainIncoming, PlainMailbox, PlainObject, ReturnTrust, WrapError,
};

use super::deed::{self, Deed, Way};
use super::journal::{Direction, Ending, Event, Journal, Seen, Tag};
use crate::options::StressParty;
use crate::output::Failure;
use crate::reach;
use crate::reactor::within;

/// Under which numbers a party finds what it inherits; what belongs to its role follows.
pub const JOURNAL_FD: i32 = 3;
pub const CANARY_FD: i32 = JOURNAL_FD + 1;
pub const CONTROL_FD: i32 = CANARY_FD + 1;
pub const FIRST_FD: i32 = CONTROL_FD + 1;

/// How long a party waits for its last sockets to close. A closed socket keeps what its peer does not read
/// for ten seconds.
const REST_TIME_MAX: Duration = Duration::from_secs(15);

/// How often it looks whether they are closed, and how often a task looks whether there is work for it.
pub const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The pause before an introduction server is tried again.
const AWAY_TIME: Duration = Duration::from_millis(5);

/// How long an introduction server may take to let a connection in.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// What a tagged descriptor begins with, so that nothing else is taken for one.
const TAGGED: &[u8; 6] = b"tagged";

/// What the judging process can say to a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// So many calls more.
    Call(u64),
    /// Begin nothing more, end what is under way, let go of everything and say what is left.
    Rest,
    /// End.
    End,
}

impl Order {
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Order::Call(calls) => [b"C", calls.to_le_bytes().as_slice()].concat(),
            Order::Rest => b"R".to_vec(),
            Order::End => b"E".to_vec(),
        }
    }

    fn read(bytes: &[u8]) -> Option<Order> {
        match bytes {
            [b'C', calls @ ..] => Some(Order::Call(u64::from_le_bytes(calls.try_into().ok()?))),
            b"R" => Some(Order::Rest),
            b"E" => Some(Order::End),
            _ => None,
        }
    }
}

/// One life of a party.
pub struct Party {
    pub reactor: Reactor,
    pen: Arc<Pen>,
    via: PathBuf,
    server: PublicKey,
    control: Socket,
    /// What the party will have open when it has let go of everything.
    at_rest: usize,
}

/// What each thread of a party can say of calls and put into them.
pub struct Pen {
    pub life: u32,
    pub way: Way,
    seed: u64,
    fds: u8,
    journal: Journal,
    canary: OwnedFd,
}

impl Deref for Party {
    type Target = Pen;

    fn deref(&self) -> &Pen {
        &self.pen
    }
}

impl Party {
    /// For a thread beside the reactor's.
    pub fn pen(&self) -> Arc<Pen> {
        Arc::clone(&self.pen)
    }

    /// Takes what this life inherits: the party, and what belongs to its role.
    pub fn take(options: &StressParty, own: i32) -> Result<(Party, Vec<OwnedFd>), Failure> {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let inherited = |number| {
            let what = "this is a part of `sendright stress`, which starts it";
            ring::inherit::take(number).map_err(|error| Failure::usage(format_args!("{what}: {error}")))
        };
        let (journal, canary, control) =
            (inherited(JOURNAL_FD)?, inherited(CANARY_FD)?, inherited(CONTROL_FD)?);
        let own: Vec<OwnedFd> = (FIRST_FD..FIRST_FD + own).map(inherited).collect::<Result<_, _>>()?;
        pin(options.cpu)?;
        let way = Way::named(&options.way).ok_or_else(|| Failure::usage("no such way"))?;
        let (reactor, _) = crate::reactor::start(options.driver.as_deref())?;
        let control = Socket::wrap(&reactor, control).map_err(Failure::new)?;
        let at_rest = open().values().sum::<u32>() as usize - own.len();
        let journal = Journal::new(journal);
        let pen = Pen { life: options.life, way, seed: options.seed, fds: options.fds, journal, canary };
        let (pen, via) = (Arc::new(pen), options.via.clone());
        let party = Party { reactor, pen, via, server: options.server, control, at_rest };
        Ok((party, own))
    }

    /// The next order; without the judging process, to end.
    pub async fn order(&self) -> Order {
        loop {
            match self.control.receive().await {
                Ok(packet) => match Order::read(packet.bytes()) {
                    Some(order) => return order,
                    None => continue,
                },
                Err(_) => return Order::End,
            }
        }
    }

    /// Waits for the order to rest, with work that is done meanwhile.
    pub async fn until_rest(&self) {
        while matches!(self.order().await, Order::Call(_)) {}
    }

    /// The party has let go of everything: waits until that is closed, says what is open all the same, and
    /// stays as it is until it is told to end.
    pub fn rest(self, answers_lost: Option<u64>) {
        let executor = Executor::new(&self.reactor);
        executor.block_on(async {
            let since = self.reactor.now();
            let open = loop {
                ring::closer_idle();
                let open = open();
                let is_late = self.reactor.now().saturating_duration_since(since) > REST_TIME_MAX;
                if open.values().sum::<u32>() as usize <= self.at_rest || is_late {
                    break open;
                }
                self.reactor.sleep(LOOK_EVERY).await;
            };
            let refused = self.reactor.stats().posts_lost_refused;
            let peak_kib = peak_kib("self").unwrap_or(0);
            self.note(Event::AtRest { kinds: open, peak_kib, refused, answers_lost });
            while self.order().await != Order::End {}
        });
    }

    // -- objects ------------------------------------------------------------------------------------------

    /// The right to call, of a descriptor.
    pub fn callee(&self, fd: OwnedFd) -> Result<Callee, Failure> {
        Ok(match self.way {
            Way::Session => Callee::Session(Object::from_fd(&self.reactor, fd).map_err(Failure::new)?),
            Way::Plain => Callee::Plain(PlainObject::from_fd(&self.reactor, fd).map_err(Failure::new)?),
            Way::Returned => {
                let object = PlainObject::from_fd(&self.reactor, fd).map_err(Failure::new)?;
                Callee::Plain(object.with_returned_pairs(trust()))
            }
        })
    }

    /// Where calls arrive, of a descriptor.
    pub fn inbox(&self, fd: OwnedFd) -> Result<Inbox, Failure> {
        Ok(match self.way {
            Way::Session => Inbox::Session(Mailbox::from_fd(&self.reactor, fd).map_err(Failure::new)?),
            Way::Plain | Way::Returned => {
                let mailbox = PlainMailbox::from_fd(&self.reactor, fd).map_err(Failure::new)?;
                if self.way == Way::Returned {
                    mailbox.return_continuations();
                }
                Inbox::Plain(mailbox)
            }
        })
    }

    // -- strangers ----------------------------------------------------------------------------------------

    /// This party among strangers.
    pub fn netlayer(&self, identity: Identity) -> Netlayer {
        let mut options = NetlayerOptions::default();
        options.proof = Proof::Required;
        Netlayer::with_options(&self.reactor, identity, options)
    }

    /// Stays registered with the introduction server, in whichever life that is. Never ends.
    pub async fn stay_registered(&self, netlayer: &Netlayer) {
        loop {
            if let Ok(line) = reach::connect(&self.reactor, &self.via, CONNECT_TIME_MAX).await
                && let Ok(disconnected) = netlayer.add_server(line, Expect::key(self.server).bound()).await
            {
                disconnected.await;
            }
            self.reactor.sleep(AWAY_TIME).await;
        }
    }

    /// The key of the introduction server.
    pub fn introducer(&self) -> PublicKey {
        self.server
    }
}

impl Pen {
    /// Writes down what happens. Without a reader there is nothing left to do.
    pub fn note(&self, event: Event) {
        if self.journal.write(self.life, event).is_err() {
            std::process::exit(1);
        }
    }

    /// What is done with a call.
    pub fn deed(&self, call: u64) -> Deed {
        Deed::of(call, self.way, self.seed)
    }

    /// The descriptors of a message: as many files in memory as were asked for, each with its own name in it,
    /// and a copy of the canary.
    pub fn tagged(&self, call: u64, direction: Direction) -> io::Result<Vec<OwnedFd>> {
        let mut made = Vec::with_capacity(usize::from(self.fds) + 1);
        for index in 0..self.fds {
            made.push(tagged(Tag { call, direction, index })?);
        }
        if self.fds > 0 {
            made.push(self.canary.try_clone()?);
        }
        Ok(made)
    }
}

/// From whom pairs are taken back: whoever serves is killed, and another takes its place.
fn trust() -> ReturnTrust {
    ReturnTrust::User(rustix::process::getuid().as_raw())
}

/// The right to call, of either kind.
#[derive(Clone)]
pub enum Callee {
    Session(Object),
    Plain(PlainObject),
}

impl Callee {
    /// The same right, for whoever waits for answers on a thread of its own.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match self {
            Callee::Session(object) => object.share(),
            Callee::Plain(object) => object.share(),
        }
    }

    /// Calls. An answer may be large where the deed says so.
    pub async fn call(&self, message: Message, deed: &Deed) -> Result<Answer, CallError> {
        match self {
            Callee::Session(object) => {
                let room = CallOptions { answer_bytes: Some(deed.answer_bytes), ..CallOptions::default() };
                object.call_with(message, room).await
            }
            Callee::Plain(object) if deed.has_large_answer() => object.call_large(message).await,
            Callee::Plain(object) => object.call(message).await,
        }
    }

    /// Has a call handed on, and learns that this was understood.
    pub async fn hand_on(&self, message: Message) -> Result<(), CallError> {
        match self {
            Callee::Session(object) => object.call(message).await.map(drop),
            Callee::Plain(object) => object.call(message).await.map(drop),
        }
    }
}

/// The right to call on a thread that waits.
pub enum BlockingCallee {
    Session(Box<blocking::Object>),
    Plain(Box<blocking::PlainObject>),
}

impl BlockingCallee {
    /// The right to call, of a descriptor.
    pub fn new(fd: OwnedFd, way: Way) -> Result<BlockingCallee, WrapError> {
        Ok(match way {
            Way::Session => BlockingCallee::Session(Box::new(blocking::Object::from_fd(fd)?)),
            Way::Plain => BlockingCallee::Plain(Box::new(blocking::PlainObject::from_fd(fd)?)),
            Way::Returned => {
                let object = blocking::PlainObject::from_fd(fd)?;
                BlockingCallee::Plain(Box::new(object.with_returned_pairs(trust())))
            }
        })
    }

    /// Calls, and waits for the answer, or as long as the deed says.
    pub fn call(&self, message: Outgoing<'_>, deed: &Deed) -> Result<blocking::Answer, CallError> {
        match (self, deed.withdrawn) {
            (BlockingCallee::Session(object), within) => {
                let answer_bytes = Some(deed.answer_bytes);
                object.call_with(message, CallOptions { answer_bytes, within, ..CallOptions::default() })
            }
            (BlockingCallee::Plain(object), None) if deed.has_large_answer() => object.call_large(message),
            (BlockingCallee::Plain(object), None) => object.call(message),
            (BlockingCallee::Plain(object), Some(within)) if deed.has_large_answer() => {
                object.call_large_within(message, within)
            }
            (BlockingCallee::Plain(object), Some(within)) => object.call_within(message, within),
        }
    }
}

/// Where calls arrive, of either kind.
pub enum Inbox {
    Session(Mailbox),
    Plain(PlainMailbox),
}

impl Inbox {
    /// The next call: its bytes, its descriptors and where to answer.
    pub async fn next(&self) -> Option<(Vec<u8>, Vec<OwnedFd>, Reply)> {
        match self {
            Inbox::Session(mailbox) => mailbox.next().await.map(Incoming::into_parts).map(session),
            Inbox::Plain(mailbox) => mailbox.next().await.map(PlainIncoming::into_parts).map(plain),
        }
    }

    /// How many answers have lost descriptors, as their callers have said, when all callers are gone: of
    /// sessions.
    pub async fn answers_lost(&self, reactor: &Reactor) -> Option<u64> {
        let Inbox::Session(mailbox) = self else { return None };
        let gone = async {
            while mailbox.sessions() > 0 {
                reactor.sleep(LOOK_EVERY).await;
            }
        };
        let _ = within(reactor, REST_TIME_MAX, gone).await;
        Some(mailbox.stats().answers_lost)
    }
}

fn session((bytes, fds, reply): (Vec<u8>, Vec<OwnedFd>, Continuation)) -> (Vec<u8>, Vec<OwnedFd>, Reply) {
    (bytes, fds, Reply::Session(reply))
}

fn plain((bytes, fds, reply): (Vec<u8>, Vec<OwnedFd>, PlainContinuation)) -> (Vec<u8>, Vec<OwnedFd>, Reply) {
    (bytes, fds, Reply::Plain(reply))
}

/// Where to answer, of either kind.
pub enum Reply {
    Session(Continuation),
    Plain(PlainContinuation),
}

impl Reply {
    /// Answers, in as many packets as it takes where the deed says so.
    pub async fn answer(self, message: Message, is_large: bool) -> Result<(), AnswerError> {
        match self {
            Reply::Session(reply) => reply.answer(message),
            Reply::Plain(reply) if is_large => reply.answer_large(message).await,
            Reply::Plain(reply) => reply.answer(message),
        }
    }

    /// As a descriptor, for a third party.
    pub fn into_fd(self) -> Option<OwnedFd> {
        match self {
            Reply::Session(reply) => reply.into_fd().ok(),
            Reply::Plain(reply) => reply.into_fd().ok(),
        }
    }
}

/// A message of these bytes and descriptors.
pub fn message(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
    fds.into_iter().fold(Message::new(bytes), Message::with_descriptor)
}

/// The bytes of the answer to a call.
pub fn answer(party: &Party, call: u64, fds: Vec<OwnedFd>) -> Message {
    message(deed::answer_bytes(call, &party.deed(call)), fds)
}

/// As what the end of a call is written down.
pub fn failed(call: u64, error: &CallError) -> Event {
    let ending = match error {
        CallError::Dropped => Ending::Dropped,
        CallError::Gone => Ending::Gone,
        CallError::DescriptorsLost(Part::Answer) => Ending::AnswerLost,
        CallError::DescriptorsLost(_) | CallError::OutOfDescriptors(_) | CallError::OutOfMemory(_) => {
            Ending::Lost
        }
        _ => Ending::Other,
    };
    let may_have_been_seen = error.may_have_been_seen();
    Event::Failed { call, ending, may_have_been_seen, error: format!("{error:?}") }
}

/// A file in memory with a name in it.
pub fn tagged(tag: Tag) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("tagged", MemfdFlags::CLOEXEC)?;
    let direction = match tag.direction {
        Direction::Argument => 0,
        Direction::Answer => 1,
    };
    let bytes = [TAGGED.as_slice(), &tag.call.to_le_bytes(), &[direction, tag.index]].concat();
    match rustix::io::write(&file, &bytes)? {
        written if written == bytes.len() => Ok(file),
        _ => Err(io::Error::other("a file in memory is full")),
    }
}

/// Who the descriptors that arrived are.
pub fn seen(fds: &[OwnedFd]) -> Vec<Seen> {
    fds.iter().map(|fd| look(fd).unwrap_or(Seen::Strange)).collect()
}

fn look(fd: &OwnedFd) -> Option<Seen> {
    let kind = rustix::fs::fstat(fd).ok()?;
    if FileType::from_raw_mode(kind.st_mode) == FileType::Fifo {
        return Some(Seen::Canary);
    }
    let mut bytes = [0; TAGGED.len() + 11];
    // Where it stands in the file belongs to all who have it.
    let length = rustix::io::pread(fd.as_fd(), &mut bytes, 0).ok()?;
    let [call @ .., direction, index] = bytes[..length].strip_prefix(TAGGED)? else { return None };
    let direction = match direction {
        0 => Direction::Argument,
        1 => Direction::Answer,
        _ => return None,
    };
    Some(Seen::Tagged(Tag { call: u64::from_le_bytes(call.try_into().ok()?), direction, index: *index }))
}

/// What this process has open, by kind: what the kernel calls it, without numbers.
pub fn open() -> BTreeMap<String, u32> {
    kinds("self")
}

/// What a process has open beyond its standard streams. Nothing is known of one that has ended.
pub fn kinds(process: &str) -> BTreeMap<String, u32> {
    let mut kinds = BTreeMap::new();
    let Ok(numbers) = fs::read_dir(format!("/proc/{process}/fd")) else { return kinds };
    let is_standard = |number: &fs::DirEntry| ["0", "1", "2"].iter().any(|it| number.file_name() == *it);
    for number in numbers.flatten().filter(|number| !is_standard(number)) {
        // The list itself is closed when its number is looked up, or somebody else's.
        let Ok(target) = fs::read_link(number.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let is_list = target.ends_with("/fd");
        let kind = target.split([':', '[']).next().unwrap_or_default();
        let kind = if kind == "anon_inode" { target.as_str() } else { kind };
        if !is_list {
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
    }
    kinds
}

/// The most memory a process has had so far.
pub fn peak_kib(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn pin(cpu: Option<usize>) -> Result<(), Failure> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| Failure::new(format_args!("this process may not run on CPU {cpu}: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_tagged_descriptor_tells_who_it_is_as_often_as_it_is_asked() {
        let tag = Tag { call: 7 << 32 | 5, direction: Direction::Answer, index: 9 };
        let fds = vec![tagged(tag).unwrap(), std::io::pipe().unwrap().1.into()];
        for _ in 0..2 {
            assert_eq!(seen(&fds), [Seen::Tagged(tag), Seen::Canary]);
        }
        let empty = rustix::fs::memfd_create("empty", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(seen(&[empty]), [Seen::Strange]);
    }

    #[test]
    fn orders_are_read_as_they_are_written() {
        for order in [Order::Call(1 << 40), Order::Rest, Order::End] {
            assert_eq!(Order::read(&order.bytes()), Some(order));
        }
        assert_eq!(Order::read(b"C1"), None);
    }

    #[test]
    fn what_is_open_is_counted_by_kind() {
        // Of its own: the tests beside this one may have nothing open, and did not, once.
        let _both_ends = std::io::pipe().unwrap();
        assert!(kinds("self").get("pipe").is_some_and(|pipes| *pipes >= 2));
        assert!(kinds("0").is_empty());
        assert!(peak_kib("self").unwrap() > 0);
    }
}
