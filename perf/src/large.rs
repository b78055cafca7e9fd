//! Large messages between two processes: in parts, as sealed memory, and as bare packets.
//!
//! The clock runs from a buffer here until the other side has looked at each cache line of it and said so;
//! for an answer, the other way round. It does not know how large is large.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use imc::FrozenMemory;
use ring::{Executor, Message, Reactor};
use rustix::net::{RecvFlags, SendFlags};
use seqpacket::{CallOptions, Mailbox, Object, blocking, plain_data};

use crate::aligned::Aligned;
use crate::floor::{self, packet_pair};
use crate::process::{Failure, Order};

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One large call.
    Call,
    /// One large answer.
    Answer,
    /// Memory that is made, filled, sealed, passed, mapped and looked at.
    Memory,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 3] = [Way::Call, Way::Answer, Way::Memory];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Way::Call => "call",
            Way::Answer => "answer",
            Way::Memory => "sealed memory",
        }
    }
}

/// What a bare packet of the floor has.
pub const PACKET: usize = 65_536;

/// What ours have: a part of a large message.
pub const PART: usize = seqpacket::wire::PART_BYTES_MAX;

/// Who looks at what it is given: see [`serve`].
pub const LOOKER: &str = "looker";
/// Who looks at what comes in bare packets: see [`serve_raw`].
pub const RAW_LOOKER: &str = "raw looker";
/// Who makes large calls: see [`serve_load`].
pub const LOAD: &str = "load";

/// In a call of two numbers: have an answer of so many bytes ready.
const PREPARE: u64 = 1;

/// A call that is looked at by nobody.
pub const SMALL: &[u8; 5] = b"small";

/// What a looker is told that is not to look at calls: it would keep its only thread from small ones for as
/// long as that takes, which is not what is measured beside a transfer.
pub const UNSEEN: &str = "unseen";

/// Bytes that differ from cache line to cache line.
pub fn source(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 64) as u8).collect()
}

/// One byte of each cache line.
pub fn look_at(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum()
}

// -- ours --------------------------------------------------------------------------------------------------

/// Looks at what it is called with, and answers what it was told to prepare.
///
/// # Errors
/// The first of anything.
pub fn serve(mut order: Order) -> Result<(), Failure> {
    let [bound] = order.take()?;
    let reactor = order.reactor()?;
    let mailbox = Mailbox::from_fd(&reactor, bound)?;
    Executor::new(&reactor).block_on(async {
        // Sent over and over, from where it lies.
        let mut prepared = Arc::new(Vec::new());
        while let Some(mut call) = mailbox.next().await {
            if let Some(fd) = call.take_descriptor() {
                let seen = look_at(&FrozenMemory::from_fd(fd)?.map()?);
                call.answer(seen.to_ne_bytes().as_slice())?;
            } else if let Some(size) = call.read::<u64>() {
                if prepared.len() as u64 != size {
                    return Err("an answer of a size that was not prepared".into());
                }
                call.answer(Arc::clone(&prepared))?;
            } else if let Some([size, PREPARE]) = call.read::<[u64; 2]>() {
                if prepared.len() as u64 != size {
                    prepared = Arc::new(source(usize::try_from(size)?));
                }
                call.answer("prepared")?;
            } else if call.bytes() == SMALL {
                call.answer(SMALL)?;
            } else if order.told == UNSEEN {
                call.answer(UNSEEN)?;
            } else {
                let seen = look_at(call.bytes());
                call.answer(seen.to_ne_bytes().as_slice())?;
            }
        }
        Ok(())
    })
}

/// The client of [`serve`].
pub struct Mover {
    client: Client,
    way: Way,
    /// Sent over and over, from where it lies.
    source: Arc<Vec<u8>>,
    expected: u64,
}

enum Client {
    Async(Executor, Object),
    Blocking(Box<blocking::Object>),
}

impl Mover {
    /// One that calls from a task.
    ///
    /// # Errors
    /// The first of anything.
    pub fn new(reactor: &Reactor, address: OwnedFd, way: Way, bytes: usize) -> Result<Mover, Failure> {
        let executor = Executor::new(reactor);
        let object = Object::from_fd(reactor, address)?;
        Ok(Mover::with(Client::Async(executor, object), way, bytes))
    }

    /// One that waits where it calls.
    ///
    /// # Errors
    /// The first of anything.
    pub fn blocking(address: OwnedFd, way: Way, bytes: usize) -> Result<Mover, Failure> {
        Ok(Mover::with(Client::Blocking(Box::new(blocking::Object::from_fd(address)?)), way, bytes))
    }

    fn with(client: Client, way: Way, bytes: usize) -> Mover {
        let source = source(bytes);
        let expected = look_at(&source);
        Mover { client, way, source: Arc::new(source), expected }
    }

    /// Moves the bytes so many times.
    ///
    /// # Errors
    /// The first of anything; bytes were lost.
    pub fn moves(&mut self, count: u64) -> Result<Duration, Failure> {
        let mut taken = Duration::ZERO;
        for _ in 0..count {
            let (time, seen) = match self.way {
                Way::Call => self.call()?,
                Way::Answer => self.answer()?,
                Way::Memory => self.memory()?,
            };
            if seen != self.expected {
                return Err(format!("a {} has lost bytes", self.way.name()).into());
            }
            taken += time;
        }
        Ok(taken)
    }

    fn call(&self) -> Result<(Duration, u64), Failure> {
        match &self.client {
            Client::Async(executor, object) => {
                let start = Instant::now();
                let seen = executor.block_on(object.call(Arc::clone(&self.source)))?.read()?;
                Ok((start.elapsed(), seen))
            }
            Client::Blocking(object) => {
                let start = Instant::now();
                let seen = object.call(self.source.as_slice())?.read()?;
                Ok((start.elapsed(), seen))
            }
        }
    }

    fn answer(&self) -> Result<(Duration, u64), Failure> {
        let size = self.source.len();
        let prepare = plain_data(&[size as u64, PREPARE]);
        let room = CallOptions { answer_bytes: Some(size), ..CallOptions::default() };
        let ask = Message::new((size as u64).to_ne_bytes());
        match &self.client {
            Client::Async(executor, object) => {
                executor.block_on(object.call(prepare))?;
                let start = Instant::now();
                let answer = executor.block_on(object.call_with(ask, room))?;
                let seen = look_at(answer.bytes());
                Ok((start.elapsed(), seen))
            }
            Client::Blocking(object) => {
                object.call(prepare)?;
                let start = Instant::now();
                let answer = object.call_with(ask, room)?;
                let seen = look_at(answer.bytes());
                Ok((start.elapsed(), seen))
            }
        }
    }

    fn memory(&self) -> Result<(Duration, u64), Failure> {
        let start = Instant::now();
        let memory = FrozenMemory::of(&[&self.source])?;
        let message = Message::from("look here").with_descriptor(memory.into_fd());
        let seen = match &self.client {
            Client::Async(executor, object) => executor.block_on(object.call(message))?.read()?,
            Client::Blocking(object) => object.call(message)?.read()?,
        };
        Ok((start.elapsed(), seen))
    }

    /// Lets go of everything.
    pub fn end(self) {
        match self.client {
            Client::Async(executor, object) => {
                drop(object);
                executor.settle();
            }
            Client::Blocking(object) => drop(object),
        }
    }
}

// -- bare packets ------------------------------------------------------------------------------------------

/// Receives a length and so many bytes, in packets of as many as it was told, looks at them and says what it
/// saw, until the other side closes.
///
/// # Errors
/// The kernel's.
pub fn serve_raw(mut order: Order) -> Result<(), Failure> {
    let [socket] = order.take()?;
    let packet_bytes: usize = order.told.parse()?;
    let mut whole = Aligned::new(0);
    loop {
        let mut length = [0; 8];
        if rustix::net::recv(&socket, &mut length[..], RecvFlags::empty())?.0 == 0 {
            return Ok(());
        }
        let length = usize::try_from(u64::from_ne_bytes(length))?;
        if whole.len() != length {
            whole = Aligned::new(length);
        }
        for packet in whole.chunks_mut(packet_bytes) {
            rustix::net::recv(&socket, packet, RecvFlags::empty())?;
        }
        rustix::net::send(&socket, &look_at(&whole).to_ne_bytes(), SendFlags::NOSIGNAL)?;
    }
}

/// The client of [`serve_raw`].
pub struct RawMover {
    socket: OwnedFd,
    source: Aligned,
    packet_bytes: usize,
    expected: u64,
}

impl RawMover {
    /// A client that sends packets of so many bytes, and the end of its server, which is told as many.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(bytes: usize, packet_bytes: usize) -> Result<(RawMover, OwnedFd), Failure> {
        let (socket, far) = packet_pair()?;
        let source = Aligned::copy_of(&source(bytes));
        let expected = look_at(&source);
        Ok((RawMover { socket, source, packet_bytes, expected }, far))
    }

    /// Moves the bytes so many times.
    ///
    /// # Errors
    /// The kernel's; bytes were lost.
    pub fn moves(&mut self, count: u64) -> Result<Duration, Failure> {
        let start = Instant::now();
        for _ in 0..count {
            let length = (self.source.len() as u64).to_ne_bytes();
            rustix::net::send(&self.socket, &length, SendFlags::NOSIGNAL)?;
            for packet in self.source.chunks(self.packet_bytes) {
                rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL)?;
            }
            let mut seen = [0; 8];
            rustix::net::recv(&self.socket, &mut seen[..], RecvFlags::empty())?;
            if u64::from_ne_bytes(seen) != self.expected {
                return Err("bare packets have lost bytes, or nobody looks at them any more".into());
            }
        }
        Ok(start.elapsed())
    }
}

// -- small calls beside large ones -------------------------------------------------------------------------

/// Calls with so many bytes, each when it is told to: the load under which a raw pair is measured. On the
/// first descriptor it hears `go`, says `gone` with the call under way, and `done` when that has ended. The
/// second is the object's address.
///
/// # Errors
/// The first of anything.
pub fn serve_load(mut order: Order) -> Result<(), Failure> {
    let [control, address] = order.take()?;
    let bytes: usize = order.told.parse()?;
    let reactor = order.reactor()?;
    let executor = Executor::new(&reactor);
    let object = Object::from_fd(&reactor, address)?;
    executor.block_on(object.attach())?;
    let mut word = [0; 8];
    while rustix::net::recv(&control, &mut word[..], RecvFlags::empty())?.0 > 0 {
        let call = object.call(vec![0; bytes]);
        rustix::net::send(&control, b"gone", SendFlags::NOSIGNAL)?;
        executor.block_on(call)?;
        rustix::net::send(&control, b"done", SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Small calls on the very session that moves a large one.
pub struct Beside {
    executor: Executor,
    object: Object,
    bytes: usize,
}

impl Beside {
    /// On an object of [`serve`]'s.
    ///
    /// # Errors
    /// The first of anything.
    pub fn new(reactor: &Reactor, address: OwnedFd, bytes: usize) -> Result<Beside, Failure> {
        let executor = Executor::new(reactor);
        let object = Object::from_fd(reactor, address)?;
        executor.block_on(object.attach())?;
        Ok(Beside { executor, object, bytes })
    }

    /// Makes small calls from the beginning of a large one to its end, and tells what each took; and again
    /// until they are at least so many. What so many took, on average.
    ///
    /// Never fewer than fit: a large call takes longer at its beginning, and with few small calls in each the
    /// row was one of beginnings, 500 µs instead of 80.
    ///
    /// # Errors
    /// The first of anything.
    pub fn calls(&mut self, count: u64, mut tell: impl FnMut(Duration)) -> Result<Duration, Failure> {
        let Beside { executor, object, bytes } = self;
        executor.block_on(async {
            let mut sum = Sum::default();
            while sum.calls < count {
                // Not touched before it is sent, so that nobody waits here for 64 MiB to be written.
                let mut large = object.call(vec![0; *bytes]);
                let answer = loop {
                    if let Poll::Ready(answer) = futures_util::poll!(&mut large) {
                        break answer;
                    }
                    let start = Instant::now();
                    object.call(SMALL).await?;
                    let time = start.elapsed();
                    tell(time);
                    sum.add(time);
                };
                answer?;
            }
            Ok(sum.of(count))
        })
    }

    /// Lets go of everything.
    pub fn end(self) {
        let Beside { executor, object, .. } = self;
        drop(object);
        executor.settle();
    }
}

/// A raw pair on which small packets go there and back while others move large calls.
pub struct RawBeside {
    socket: OwnedFd,
    control: OwnedFd,
}

impl RawBeside {
    /// On a socket whose other end sends everything back, and the control socket of a [`serve_load`].
    pub fn new(socket: OwnedFd, control: OwnedFd) -> RawBeside {
        RawBeside { socket, control }
    }

    /// Makes small round trips from the beginning of a large call to its end, and tells what each took; and
    /// again until they are at least so many. What so many took, on average.
    ///
    /// # Errors
    /// The kernel's.
    pub fn calls(&mut self, count: u64, mut tell: impl FnMut(Duration)) -> Result<Duration, Failure> {
        let mut sum = Sum::default();
        while sum.calls < count {
            floor::send(self.control.as_fd(), b"go")?;
            self.hears(RecvFlags::empty())?;
            while !self.hears(RecvFlags::DONTWAIT)? {
                let time = floor::round_trip(self.socket.as_fd(), SMALL)?;
                tell(time);
                sum.add(time);
            }
        }
        Ok(sum.of(count))
    }

    /// Whether there is a word of the load's.
    fn hears(&self, flags: RecvFlags) -> Result<bool, Failure> {
        match rustix::net::recv(&self.control, &mut [0; 8], flags) {
            Ok((0, _)) => Err("nobody makes a load any more".into()),
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What some calls took together.
#[derive(Default)]
struct Sum {
    calls: u64,
    time: Duration,
}

impl Sum {
    fn add(&mut self, time: Duration) {
        self.calls += 1;
        self.time += time;
    }

    /// Of so many, on average.
    fn of(&self, calls: u64) -> Duration {
        self.time.mul_f64(calls as f64 / self.calls.max(1) as f64)
    }
}
