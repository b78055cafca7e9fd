//! Calls of one way between this process and a server, or the bare system calls that stand beside them.
//!
//! A workload owns its server, its client and what is said. It does not know how often it is called, what it
//! is compared with, or who prints it.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::blocking::Outgoing;
use ring::{Config, DriverChoice, DriverKind, Executor, Fd, Message, Reactor, StartError};
use seqpacket::{
    Answer, Call, CallError, CallOptions, ObjectOptions, PlainCall, ReturnTrust, WrapError, blocking,
};
use thiserror::Error;

use crate::floor::{self, Floor, FloorOptions, RawCaller};
use crate::place::{Cpus, CpusError, Wait};
use crate::process::{Death, Failure, Posting, Program, Server};
use crate::recorder::Recorder;
use crate::serving;

/// How a call travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// On a session, with a number.
    Session,
    /// On a plain object, with a continuation of its own.
    Plain(Pairs),
    /// On a plain object, with a continuation that comes home and serves again.
    Returned,
}

/// How a plain call comes by its continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Made for the call, as a blocking client does where none has come home.
    Fresh,
    /// Made ahead, as a reactor does by default.
    Ahead,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// A task on a reactor.
    Async,
    /// A thread that waits where it calls.
    Blocking,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Session => "session",
            Way::Plain(_) => "plain",
            Way::Returned => "returned",
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Client::Async => "async",
            Client::Blocking => "blocking",
        })
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// How calls travel.
    pub way: Way,
    /// Who calls.
    pub client: Client,
    /// The driver of every reactor.
    pub driver: DriverChoice,
    /// Where.
    pub cpus: Cpus,
    /// How both sides wait.
    pub wait: Wait,
    /// Calls that are begun together. At least 1.
    pub depth: usize,
    /// Bytes of a call, and of its answer. At least 1.
    pub payload: usize,
    /// Descriptors of a call, and of its answer: 16 at most.
    pub fds: usize,
    /// How long a session call may take. It is answered long before, but somebody looks at the clock.
    pub within: Option<Duration>,
}

impl Options {
    /// Session calls of 64 bytes each way from a task, one at a time, on the driver this machine chooses,
    /// waiting as these CPUs suggest.
    pub fn on(cpus: &Cpus) -> Options {
        Options {
            way: Way::Session,
            client: Client::Async,
            driver: DriverChoice::Auto,
            cpus: cpus.clone(),
            wait: cpus.wait(),
            depth: 1,
            payload: 64,
            fds: 0,
            within: None,
        }
    }

    /// Whether there is such a client: a blocking one makes no pairs ahead, and only session calls bring
    /// their deadline along.
    pub fn exists(&self) -> bool {
        if self.within.is_some() && self.way != Way::Session {
            return false;
        }
        (self.client, self.way) != (Client::Blocking, Way::Plain(Pairs::Ahead))
    }

    /// What stands beside it: the same bytes and descriptors in the same packets.
    pub fn floor(&self) -> FloorOptions {
        let floor = match (self.way, self.depth, self.fds) {
            (Way::Session, 0 | 1, _) => Floor::PingPong,
            // A packet holds the descriptors of one call only.
            (Way::Session, _, 1..) => Floor::PingPong,
            (Way::Session, _, 0) => Floor::Coalesced,
            (Way::Plain(_) | Way::Returned, _, _) => Floor::FiveSteps,
        };
        let Options { cpus, wait, depth, payload, fds, .. } = self.clone();
        FloorOptions { floor, cpus, wait, depth, payload, fds }
    }
}

/// Why something could not be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The CPUs that were asked for cannot be had.
    #[error(transparent)]
    Cpus(#[from] CpusError),
    /// The driver that was asked for cannot be had.
    #[error(transparent)]
    Driver(#[from] StartError),
    /// There is no such client.
    #[error(
        "there is no such client: a blocking one makes its pairs as it calls, and never ahead; only session \
         calls have a deadline"
    )]
    NoSuchClient,
    /// The server process cannot be started.
    #[error("a server cannot be started: {0}")]
    Start(#[source] io::Error),
    /// The server process has died.
    #[error(transparent)]
    Died(#[from] Death),
    /// A call has failed, with the server alive.
    #[error("a call has failed: {0}")]
    Call(#[from] CallError),
    /// An answer was not what was sent.
    #[error("an answer brought {bytes} bytes and {fds} descriptors, and the call had others")]
    Answer {
        /// Its bytes.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// The kernel's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Anything else, with the servers alive.
    #[error("{0}")]
    Other(Failure),
}

impl From<rustix::io::Errno> for MeasureError {
    fn from(error: rustix::io::Errno) -> MeasureError {
        MeasureError::Io(error.into())
    }
}

impl From<WrapError> for MeasureError {
    fn from(error: WrapError) -> MeasureError {
        MeasureError::Io(io::Error::other(error))
    }
}

/// A client here and its server process, ready for calls.
pub struct Workload {
    side: Side,
    server: Server,
    cpus: Cpus,
    depth: usize,
}

/// This process's part.
enum Side {
    Raw(RawCaller),
    Session { executor: Executor, object: seqpacket::Object, said: Said, calls: Vec<Call> },
    Plain { executor: Executor, object: seqpacket::PlainObject, said: Said, calls: Vec<PlainCall> },
    BlockingSession { object: Box<blocking::Object>, said: Said },
    BlockingPlain { object: Box<blocking::PlainObject>, said: Said },
}

/// What each call says.
struct Said {
    bytes: Vec<u8>,
    passed: Fd,
    fds: usize,
    options: CallOptions,
}

impl Workload {
    /// A server that is this program once more, and a client attached to it. This thread keeps to the
    /// client's CPU from then on.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn start(options: &Options) -> Result<Workload, MeasureError> {
        Workload::start_with(&Program::this()?, options)
    }

    /// As [`start`](Workload::start), with another program for a server.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn start_with(program: &Program, options: &Options) -> Result<Workload, MeasureError> {
        if !options.exists() {
            return Err(MeasureError::NoSuchClient);
        }
        let part = match options.way {
            Way::Session => serving::SESSION,
            Way::Plain(_) => serving::PLAIN,
            Way::Returned => serving::PLAIN_RETURNED,
        };
        // Before the client's reactor is made, which counts the CPUs it may look on.
        options.cpus.unpin()?;
        let (near, far) = floor::packet_pair()?;
        let at = Posting { driver: options.driver, wait: options.wait, cpu: options.cpus.server };
        let side = Side::calling(options, near)?;
        let told = options.fds.to_string();
        let server = Server::start_with(program, part, &told, at, vec![far]).map_err(MeasureError::Start)?;
        let (cpus, depth) = (options.cpus.clone(), options.depth.max(1));
        let mut workload = Workload { side, server, cpus, depth };
        workload.cpus.pin_client()?;
        workload.attach().map_err(|error| workload.explained(error))?;
        Ok(workload)
    }

    /// Nothing but system calls on both sides.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn floor(options: &FloorOptions) -> Result<Workload, MeasureError> {
        Workload::floor_with(&Program::this()?, options)
    }

    /// As [`floor`](Workload::floor), with another program for a server.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn floor_with(program: &Program, options: &FloorOptions) -> Result<Workload, MeasureError> {
        let part = match options.floor {
            Floor::LoopServed | Floor::Loops => serving::ECHO_IN_LOOP,
            Floor::PingPong | Floor::Coalesced => serving::ECHO,
            Floor::FiveSteps => serving::CONTINUATIONS,
            Floor::Returned => serving::CONTINUATIONS_RETURNED,
            Floor::ReturnedLoops => serving::CONTINUATIONS_RETURNED_IN_LOOP,
            Floor::ReturnedAsked => serving::CONTINUATIONS_RETURNED_ASKED,
        };
        let (near, far) = floor::packet_pair()?;
        let at = Posting { driver: DriverChoice::Auto, wait: options.wait, cpu: options.cpus.server };
        let side = Side::Raw(RawCaller::new(near, options.clone())?);
        let told = if options.depth <= 1 { serving::ONE_AT_A_TIME } else { "" };
        let server = Server::start_with(program, part, told, at, vec![far]).map_err(MeasureError::Start)?;
        options.cpus.pin_client()?;
        Ok(Workload { side, server, cpus: options.cpus.clone(), depth: options.depth.max(1) })
    }

    /// So many calls, rounded up to whole batches; what they took goes to the recorder.
    ///
    /// # Errors
    /// [`MeasureError::Died`] if the server has; see the others.
    pub fn round(&mut self, calls: usize, recorder: &mut Recorder) -> Result<(), MeasureError> {
        let batches = calls.max(1).div_ceil(self.depth);
        recorder.begin_round(self.depth);
        let result = self.side.round(batches, self.depth, recorder);
        recorder.end_round();
        result.map_err(|error| self.explained(error))
    }

    /// The process of the server, for those who look at it from outside.
    pub fn server_id(&self) -> u32 {
        self.server.id()
    }

    /// Gives the object up and waits for the server, which ends then.
    ///
    /// # Errors
    /// [`MeasureError::Died`] if it did not end well.
    pub fn end(self) -> Result<(), MeasureError> {
        let Workload { side, server, .. } = self;
        side.end();
        Ok(server.end()?)
    }

    fn attach(&mut self) -> Result<(), MeasureError> {
        match &self.side {
            Side::Session { executor, object, .. } => Ok(executor.block_on(object.attach())?),
            Side::BlockingSession { object, .. } => Ok(object.attach()?),
            Side::Raw(_) | Side::Plain { .. } | Side::BlockingPlain { .. } => Ok(()),
        }
    }

    /// A call fails when the server dies, but not only then.
    fn explained(&mut self, error: MeasureError) -> MeasureError {
        match error {
            MeasureError::Call(_) | MeasureError::Io(_) => {
                self.server.death().map_or(error, MeasureError::Died)
            }
            error => error,
        }
    }
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("server", &self.server).field("depth", &self.depth).finish()
    }
}

impl Side {
    fn calling(options: &Options, near: OwnedFd) -> Result<Side, MeasureError> {
        let said = Said {
            bytes: vec![7; options.payload.max(1)],
            passed: Fd::made_here(floor::something_to_pass()?),
            fds: options.fds,
            options: CallOptions { within: options.within, ..CallOptions::default() },
        };
        let config = Config { driver: options.driver, wait: options.wait.policy(), ..Config::default() };
        let mut object_options = ObjectOptions::default();
        // The room that a call has for its answer: what does not fit a packet has to be asked for.
        object_options.answer_bytes = object_options.answer_bytes.max(said.bytes.len());
        match (options.client, options.way) {
            (Client::Async, Way::Session) => {
                let reactor = Reactor::with_config(config)?;
                let object = seqpacket::Object::from_fd_with(&reactor, near, object_options)?;
                Ok(Side::Session { executor: Executor::new(&reactor), object, said, calls: Vec::new() })
            }
            (Client::Async, way) => {
                let reactor = Reactor::with_config(config)?;
                let ahead = match way {
                    Way::Plain(Pairs::Fresh) => 0,
                    _ => seqpacket::PAIRS_DEFAULT,
                };
                let pairs = seqpacket::Pairs::new(&reactor, ahead);
                let mut object = seqpacket::PlainObject::from_fd_with(&pairs, &reactor, near)?;
                object.set_answer_descriptors(ring::DESCRIPTORS_DEFAULT.max(said.fds + 1));
                if way == Way::Returned {
                    object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
                }
                Ok(Side::Plain { executor: Executor::new(&reactor), object, said, calls: Vec::new() })
            }
            (Client::Blocking, Way::Session) => {
                let object = blocking::Object::from_fd_with(near, object_options)?;
                object.set_wait_policy(options.wait.policy());
                Ok(Side::BlockingSession { object: Box::new(object), said })
            }
            (Client::Blocking, way) => {
                let mut object = blocking::PlainObject::from_fd(near)?;
                object.set_wait_policy(options.wait.policy());
                if way == Way::Returned {
                    object = object.with_returned_pairs(ReturnTrust::FirstToAnswer);
                }
                Ok(Side::BlockingPlain { object: Box::new(object), said })
            }
        }
    }

    fn round(&mut self, batches: usize, depth: usize, recorder: &mut Recorder) -> Result<(), MeasureError> {
        match self {
            Side::Raw(caller) => wait_for_batches(batches, recorder, || Ok(caller.batch()?)),
            Side::Session { executor, object, said, calls } => {
                let begin = || object.call_with(said.message(), said.options);
                let all = await_batches(executor.reactor(), batches, depth, recorder, said, begin, calls);
                executor.block_on(all)
            }
            Side::Plain { executor, object, said, calls } => {
                let begin = || object.call(said.message());
                let all = await_batches(executor.reactor(), batches, depth, recorder, said, begin, calls);
                executor.block_on(all)
            }
            Side::BlockingSession { object, said } if depth == 1 => {
                wait_for_batches(batches, recorder, || {
                    said.answered(object.call_with(said.outgoing(), said.options)?)
                })
            }
            Side::BlockingSession { object, said } => wait_for_batches(batches, recorder, || {
                let begun = (0..depth).map(|_| object.begin_with(said.outgoing(), said.options));
                // As `call_many` does, which knows no deadlines.
                let begun: Vec<_> = begun.collect();
                begun.into_iter().try_for_each(|pending| said.answered(pending?.finish()?))
            }),
            Side::BlockingPlain { object, said } if depth == 1 => {
                wait_for_batches(batches, recorder, || said.answered(object.call(said.outgoing())?))
            }
            Side::BlockingPlain { object, said } => wait_for_batches(batches, recorder, || {
                let begun = (0..depth).map(|_| object.begin(said.outgoing()));
                let begun = begun.collect::<Result<Vec<_>, _>>()?;
                begun.into_iter().try_for_each(|pending| said.answered(pending.finish()?))
            }),
        }
    }

    fn end(self) {
        match self {
            Side::Raw(_) | Side::BlockingSession { .. } | Side::BlockingPlain { .. } => {}
            // An object's descriptors close in the next turn at the latest.
            Side::Session { executor, object, .. } => {
                drop(object);
                executor.settle();
            }
            Side::Plain { executor, object, .. } => {
                drop(object);
                executor.settle();
            }
        }
    }
}

impl Said {
    fn message(&self) -> Message {
        let mut message = Message::from(&self.bytes[..]);
        for _ in 0..self.fds {
            message.push_descriptor(self.passed.clone());
        }
        message
    }

    fn outgoing(&self) -> Outgoing<'_> {
        let mut message = Outgoing::from(&self.bytes[..]);
        for _ in 0..self.fds {
            message = message.lend(self.passed.as_fd());
        }
        message
    }

    /// Takes what an answer brought, as its caller would.
    fn answered(&self, mut answer: blocking::Answer) -> Result<(), MeasureError> {
        self.whole(answer.bytes().len(), drain(|| answer.take_descriptor()))
    }

    fn awaited(&self, mut answer: Answer) -> Result<(), MeasureError> {
        self.whole(answer.bytes().len(), drain(|| answer.take_descriptor()))
    }

    fn whole(&self, bytes: usize, fds: usize) -> Result<(), MeasureError> {
        match bytes == self.bytes.len() && fds == self.fds {
            true => Ok(()),
            false => Err(MeasureError::Answer { bytes, fds }),
        }
    }
}

/// Closes them one by one, as they are taken. How many there were.
fn drain(mut take: impl FnMut() -> Option<OwnedFd>) -> usize {
    let mut count = 0;
    while take().is_some() {
        count += 1;
    }
    count
}

fn wait_for_batches(
    batches: usize,
    recorder: &mut Recorder,
    mut batch: impl FnMut() -> Result<(), MeasureError>,
) -> Result<(), MeasureError> {
    let mut made = 0;
    while recorder.goes_on(made, batches) {
        made += 1;
        if let Some(due) = recorder.pause() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let began = recorder.begin();
        batch()?;
        recorder.end(began);
    }
    Ok(())
}

/// Until a batch is due, with nothing under way. On epoll a timer is late by up to a millisecond, which is
/// no part of what a call takes: at 5,000 calls a second half of them were due before the timer. What is left
/// of the time is waited for where it stands.
async fn pause(reactor: &Reactor, due: Instant) {
    const LATE_MAX: Duration = Duration::from_millis(1);
    if reactor.driver().kind() == DriverKind::Epoll {
        if let Some(soon) = due.checked_sub(LATE_MAX) {
            reactor.sleep_until(soon).await;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    } else {
        reactor.sleep_until(due).await;
    }
}

/// One future for a whole round: how a program that lives on the reactor spends its time.
async fn await_batches<C: Future<Output = Result<Answer, CallError>>>(
    reactor: &Reactor,
    batches: usize,
    depth: usize,
    recorder: &mut Recorder,
    said: &Said,
    begin: impl Fn() -> C,
    calls: &mut Vec<C>,
) -> Result<(), MeasureError> {
    let mut made = 0;
    while recorder.goes_on(made, batches) {
        made += 1;
        if let Some(due) = recorder.pause() {
            pause(reactor, due).await;
        }
        let began = recorder.begin();
        if depth == 1 {
            said.awaited(begin().await?)?;
        } else {
            calls.extend((0..depth).map(|_| begin()));
            for call in calls.drain(..) {
                said.awaited(call.await?)?;
            }
        }
        recorder.end(began);
    }
    Ok(())
}
