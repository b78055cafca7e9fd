//! Very many objects in one process, and very many sessions on one of them: what a call costs then, and what
//! memory they take while nobody calls.
//!
//! A server makes as many objects as it is asked for and gives their addresses away; a client holds them. It
//! does not know how many are too many: the descriptor limit does.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::{Executor, Message, Reactor, Socket, Spawner};
use seqpacket::{Mailbox, Object};

use crate::floor::{FDS_MAX, packet_pair, receive_with};
use crate::place::Wait;
use crate::process::{Failure, Order};

/// What each call says and is answered.
pub const PAYLOAD: [u8; 64] = [7; 64];

/// Who has many objects: see [`serve`].
pub const MANY: &str = "many objects";
/// Who weighs them: see [`weigh`].
pub const SCALES: &str = "scales";

/// What a process has beside what there are many of: standard streams, rings, a wire, and as many free as
/// keep a reactor from counting them each turn.
const DESCRIPTORS_APART: u64 = 1_024;

/// What the tenth, the hundredth and so on of so many take, which are measured beside them: two for each.
fn descriptors_beside(count: usize) -> u64 {
    count as u64 / 4
}

/// How many descriptors it takes on either side to hold so many, all of them attached.
pub fn descriptors_needed(count: usize) -> u64 {
    2 * count as u64 + descriptors_beside(count) + DESCRIPTORS_APART
}

/// How many of so many can be attached, if a process may have so many descriptors: one is needed for each
/// that is held and one more for each that is attached. `None` if they cannot even be held.
pub fn attachable(count: usize, allowed: u64) -> Option<usize> {
    let left = allowed.checked_sub(count as u64 + descriptors_beside(count) + DESCRIPTORS_APART)?;
    Some(count.min(usize::try_from(left).unwrap_or(usize::MAX))).filter(|attached| *attached > 0)
}

/// Addresses that travel in one message.
const TOGETHER: usize = 16;

const OBJECTS: &[u8] = b"objects";
const MEMORY: &[u8] = b"memory";

/// Makes objects, echoes what they are called with, and tells how much memory it has.
///
/// # Errors
/// The first of anything.
pub fn serve(mut order: Order) -> Result<(), Failure> {
    let [control] = order.take()?;
    let reactor = order.reactor()?;
    let executor = Executor::new(&reactor);
    let control = Socket::wrap(&reactor, control)?;
    executor.block_on(async {
        loop {
            let asked = match control.receive().await {
                Ok(message) => message,
                Err(ring::ReceiveError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if asked.bytes() == MEMORY {
                control.send(memory_bytes()?.to_ne_bytes().as_slice()).await?;
            } else {
                let mut message = Message::from(OBJECTS);
                for _ in 0..asked.bytes().len() {
                    message.push_descriptor(object(&reactor, &executor.spawner())?);
                }
                control.send(message).await?;
            }
        }
    })
}

/// The address of an object that is served from now on.
fn object(reactor: &Reactor, spawner: &Spawner) -> Result<OwnedFd, Failure> {
    let (address, bound) = packet_pair()?;
    let mailbox = Mailbox::from_fd(reactor, bound)?;
    spawner.spawn(async move {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            // Whoever called may have gone.
            let _ = call.answer(answer);
        }
    });
    Ok(address)
}

/// What this process has for itself, in bytes: memory that nobody else has and no file stands behind.
///
/// # Errors
/// The kernel does not tell.
pub fn memory_bytes() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
    let kilobytes = kilobytes.and_then(|number| number.parse::<u64>().ok());
    kilobytes.map(|number| number * 1024).ok_or_else(|| io::Error::other("no line of that name"))
}

/// The wire to a server: what it is asked for off the clock.
pub struct Control(OwnedFd);

impl Control {
    /// The near end, and that of the server.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<(Control, OwnedFd), Failure> {
        let (near, far) = packet_pair()?;
        Ok((Control(near), far))
    }

    /// Addresses of fresh objects.
    ///
    /// # Errors
    /// The kernel's; the server has ended.
    pub fn addresses(&self, count: usize) -> Result<Vec<OwnedFd>, Failure> {
        let mut addresses = Vec::with_capacity(count + FDS_MAX);
        while addresses.len() < count {
            let wanted = TOGETHER.min(count - addresses.len());
            crate::floor::send(self.0.as_fd(), &[b'o'; TOGETHER][..wanted])?;
            let before = addresses.len();
            receive_with(self.0.as_fd(), &mut [0; 16], &mut addresses, Wait::Sleep)?;
            if addresses.len() != before + wanted {
                return Err("the server did not give what was asked for".into());
            }
        }
        Ok(addresses)
    }

    /// What the server has for itself, in bytes.
    ///
    /// # Errors
    /// The kernel's; the server has ended.
    pub fn server_memory_bytes(&self) -> Result<u64, Failure> {
        crate::floor::send(self.0.as_fd(), MEMORY)?;
        let mut said = [0; 8];
        match receive_with(self.0.as_fd(), &mut said, &mut Vec::new(), Wait::Sleep)? {
            8 => Ok(u64::from_ne_bytes(said)),
            _ => Err("the server does not tell what memory it has".into()),
        }
    }
}

/// A client that holds very many.
pub struct Holder {
    executor: Executor,
    objects: Vec<Object>,
    attached: usize,
    next: usize,
    /// Without it the server ends.
    control: Control,
}

/// What there are very many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Objects of one server, with one session each once they are attached.
    Objects,
    /// Sessions of one object.
    Sessions,
}

impl Kind {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Objects => "objects",
            Kind::Sessions => "sessions",
        }
    }
}

/// Which of the objects is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// Always the same.
    One,
    /// Each in turn.
    Each,
}

impl Called {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Called::One => "the same",
            Called::Each => "in turn",
        }
    }
}

impl Holder {
    /// Of so many objects one each; none is attached.
    fn of_objects(reactor: &Reactor, control: Control, count: usize) -> Result<Holder, Failure> {
        let addresses = control.addresses(count)?;
        Holder::of(reactor, control, addresses)
    }

    /// One object so many times: attached, each is a session of its own.
    fn of_sessions(reactor: &Reactor, control: Control, count: usize) -> Result<Holder, Failure> {
        let [address] = control.addresses(1)?.try_into().map_err(|_| "one address")?;
        let addresses = (0..count).map(|_| address.try_clone()).collect::<Result<_, _>>()?;
        Holder::of(reactor, control, addresses)
    }

    /// Holds as many as asked for, of this kind.
    ///
    /// # Errors
    /// The first of anything.
    pub fn new(reactor: &Reactor, control: Control, kind: Kind, count: usize) -> Result<Holder, Failure> {
        match kind {
            Kind::Objects => Holder::of_objects(reactor, control, count),
            Kind::Sessions => Holder::of_sessions(reactor, control, count),
        }
    }

    fn of(reactor: &Reactor, control: Control, addresses: Vec<OwnedFd>) -> Result<Holder, Failure> {
        let object = |address| Object::from_fd(reactor, address);
        let objects = addresses.into_iter().map(object).collect::<Result<_, _>>()?;
        Ok(Holder { executor: Executor::new(reactor), objects, attached: 0, next: 0, control })
    }

    /// Attaches the first so many of them, which are those that are called.
    ///
    /// # Errors
    /// The first of anything.
    pub fn attach(&mut self, count: usize) -> Result<(), Failure> {
        self.attached = count.min(self.objects.len());
        self.executor.block_on(async {
            for object in &self.objects[..self.attached] {
                object.attach().await?;
            }
            Ok(())
        })
    }

    /// Makes so many calls to what is attached, one at a time.
    ///
    /// # Errors
    /// The first of anything.
    pub fn calls(&mut self, called: Called, count: u64) -> Result<Duration, Failure> {
        let Holder { executor, objects, attached, next, .. } = self;
        executor.block_on(async {
            let start = Instant::now();
            for _ in 0..count {
                let object = match called {
                    Called::One => &objects[0],
                    Called::Each => &objects[*next],
                };
                *next = (*next + 1) % (*attached).max(1);
                object.call(&PAYLOAD).await?;
            }
            Ok(start.elapsed())
        })
    }

    /// Lets go of everything.
    pub fn end(self) {
        let Holder { executor, objects, control, .. } = self;
        drop((objects, control));
        executor.settle();
    }
}

/// What so many of a kind take while nobody calls, in bytes, of which each has its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Held, never called: at the client.
    pub idle_here: u64,
    /// … and at the server.
    pub idle_there: u64,
    /// Attached, with nothing under way, on top of that: at the client.
    pub attached_here: u64,
    /// … and at the server.
    pub attached_there: u64,
}

/// A client of its own, so that nothing else is in its memory: holds what it is told to, looks at both
/// processes before, between and after, and says so on the second descriptor. The first is the wire to the
/// server.
///
/// # Errors
/// The first of anything.
pub fn weigh(mut order: Order) -> Result<(), Failure> {
    let [wire, report] = order.take()?;
    let (kind, count) = order.told.split_once(' ').ok_or("a kind and a count")?;
    let kinds = [Kind::Objects, Kind::Sessions];
    let kind = kinds.into_iter().find(|known| known.name() == kind).ok_or("objects or sessions")?;
    let reactor = order.reactor()?;
    // Whatever is made once is made before anything is looked at.
    let control = Control(wire);
    control.addresses(1)?;
    let before = (memory_bytes()?, control.server_memory_bytes()?);
    let count = count.parse()?;
    let mut holder = Holder::new(&reactor, control, kind, count)?;
    let held = (memory_bytes()?, holder.control.server_memory_bytes()?);
    holder.attach(count)?;
    let attached = (memory_bytes()?, holder.control.server_memory_bytes()?);
    let grown = [
        held.0.saturating_sub(before.0),
        held.1.saturating_sub(before.1),
        attached.0.saturating_sub(held.0),
        attached.1.saturating_sub(held.1),
    ];
    crate::floor::send(report.as_fd(), grown.map(u64::to_ne_bytes).as_flattened())?;
    holder.end();
    Ok(())
}

impl Memory {
    /// What [`weigh`] said.
    ///
    /// # Errors
    /// It has ended without a word.
    pub fn reported(report: &OwnedFd) -> Result<Memory, Failure> {
        let mut said = [0; 32];
        if receive_with(report.as_fd(), &mut said, &mut Vec::new(), Wait::Sleep)? != said.len() {
            return Err("nobody reports what memory it has".into());
        }
        let (words, _) = said.as_chunks::<8>();
        let [idle_here, idle_there, attached_here, attached_there] =
            [0, 1, 2, 3].map(|index| u64::from_ne_bytes(words[index]));
        Ok(Memory { idle_here, idle_there, attached_here, attached_there })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_attached_where_there_is_room_for_all() {
        assert_eq!(attachable(10, descriptors_needed(10)), Some(10));
        assert_eq!(attachable(10, descriptors_needed(10) - 1), Some(9));
    }

    #[test]
    fn what_cannot_be_held_is_not_attached() {
        let held = descriptors_needed(10) - 10;
        assert_eq!(attachable(10, held + 1), Some(1));
        assert_eq!(attachable(10, held), None);
        assert_eq!(attachable(10, 3), None);
    }
}
