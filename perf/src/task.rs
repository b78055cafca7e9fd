//! Everything a table can have a line for: a closed list, and how each is started.
//!
//! A task says what it is before it runs. It does not know beside what it stands, or for how long it runs.

use std::fmt;
use std::time::{Duration, Instant};

use ring::{Config, DriverChoice, Reactor};

use crate::attack;
use crate::bare_many;
use crate::bars;
use crate::connect;
use crate::fds;
use crate::floor::{self, FloorOptions};
use crate::large;
use crate::place::{Cpus, Wait};
use crate::process::{self, Failure, Posting, Program, Server};
use crate::recorder::Recorder;
use crate::row::Head;
use crate::scale;
use crate::serving;
use crate::workload::{Client, MeasureError, Options, Pairs, Way, Workload};

/// Something to measure.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Task {
    /// Bare system calls.
    Floor(FloorOptions),
    /// Calls of one way.
    Call(Options),
    /// Connecting, accepting and closing, so many at a time.
    Connect(Side, connect::Way, usize),
    /// The same by bare system calls that ask and close as ours must.
    ConnectAsking(Side, connect::Way, usize),
    /// Passing so many descriptors one way, without data.
    Transfer(Side, fds::Way, usize),
    /// Moving so many bytes.
    Large(Side, large::Way, usize),
    /// The same by bare packets of as many bytes as the last number says.
    LargePackets(Side, usize, usize),
    /// A small call while one of so many bytes is under way.
    Beside(Side, usize),
    /// A call while others misbehave.
    Attacked(Side, attack::Misdeed),
    /// The same of a raw pair, whose server keeps what parts it is sent.
    AttackedKeeper(Side, attack::Misdeed),
    /// A call of one among so many.
    Scale(Side, scale::Kind, scale::Called, usize),
    /// Bare system calls on as many pairs as so many objects have sessions here, each in turn.
    Pairs(Cpus, bare_many::Sleeps, usize),
}

/// Who does it, and where. Both sides sleep, whatever the CPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// With a driver it is ours; without, bare system calls.
    pub driver: Option<DriverChoice>,
    /// Where it has a choice.
    pub client: Client,
    /// Where.
    pub cpus: Cpus,
}

impl Task {
    /// What it is.
    pub fn head(&self) -> Head {
        match self {
            Task::Floor(floor) => Head {
                name: match (floor.depth, floor.calls_per_packet()) {
                    (0 | 1, _) => floor.floor.to_string(),
                    (depth, 1) => format!("{}, {depth} deep", floor.floor),
                    (_, calls) => format!("{}, {calls} in a packet", floor.floor),
                },
                driver: "none".to_owned(),
                way: "raw".to_owned(),
                client: Client::Blocking.to_string(),
                wait: floor.wait.to_string(),
                cpus: floor.cpus.to_string(),
                depth: floor.depth,
                payload: floor.payload,
                fds: floor.fds,
            },
            Task::Call(call) => Head {
                name: match call.way {
                    Way::Session if call.within.is_some() => "session call with a deadline",
                    Way::Session => "session call",
                    Way::Plain(Pairs::Fresh) => "plain call, fresh pairs",
                    Way::Plain(Pairs::Ahead) => "plain call, pairs made ahead",
                    Way::Returned => "plain call, pairs returned",
                }
                .to_owned(),
                driver: call.driver.to_string(),
                way: call.way.to_string(),
                client: call.client.to_string(),
                wait: call.wait.to_string(),
                cpus: call.cpus.to_string(),
                depth: call.depth,
                payload: call.payload,
                fds: call.fds,
            },
            Task::Connect(side, way, depth) => {
                Head { depth: *depth, ..side.head(&format!("connect, {}", way.name()), way.name()) }
            }
            Task::ConnectAsking(side, way, depth) => {
                let name = format!("connect, {}{}", way.name(), bars::ASKING);
                Head { depth: *depth, ..side.head(&name, way.name()) }
            }
            Task::Transfer(side, way, fds) => {
                let name = format!("transfer, {}", way.name());
                Head { depth: fds::BATCH, fds: *fds, ..side.head(&name, way.name()) }
            }
            Task::Large(side, way, bytes) => {
                Head { payload: *bytes, ..side.head(&format!("large {}", way.name()), way.name()) }
            }
            Task::LargePackets(side, bytes, packet_bytes) => {
                let name = match *packet_bytes {
                    large::PACKET => "packets".to_owned(),
                    _ => format!("packets{}", bars::AS_PARTS),
                };
                Head { payload: *bytes, ..side.head(&name, "call") }
            }
            Task::Beside(side, _) => {
                let name = match side.driver {
                    None => "pair, same load",
                    Some(_) => "small call on that session",
                };
                Head { payload: large::SMALL.len(), ..side.head(name, "session") }
            }
            Task::Attacked(side, misdeed) => {
                let what = match side.driver {
                    None => "pair beside",
                    Some(_) => "call beside",
                };
                let name = format!("{what} {}", misdeed.name());
                Head { payload: attack::SMALL.len(), ..side.head(&name, "session") }
            }
            Task::AttackedKeeper(side, misdeed) => {
                let name = format!("pair{}", bars::keeping(*misdeed));
                Head { payload: attack::SMALL.len(), ..side.head(&name, "session") }
            }
            Task::Scale(side, kind, called, count) => {
                let all = match attachable(*count) {
                    Some(attached) if attached < *count => format!(" ({attached} attached)"),
                    _ => String::new(),
                };
                let name = format!("{count} {}{all}, {}", kind.name(), called.name());
                Head { payload: scale::PAYLOAD.len(), ..side.head(&name, "session") }
            }
            Task::Pairs(cpus, sleeps, count) => {
                let all = match attachable(*count) {
                    Some(attached) if attached < *count => format!(" ({attached} of them)"),
                    _ => String::new(),
                };
                let name = format!("{count} pairs{all}, {}, in turn", sleeps.name());
                Head { payload: scale::PAYLOAD.len(), ..Side::raw(cpus).head(&name, "raw") }
            }
        }
    }

    /// The driver it needs, if it needs one.
    pub fn driver(&self) -> Option<DriverChoice> {
        match self {
            Task::Floor(_) | Task::Pairs(..) => None,
            Task::Call(call) => Some(call.driver),
            Task::Connect(side, ..)
            | Task::ConnectAsking(side, ..)
            | Task::Transfer(side, ..)
            | Task::Large(side, ..)
            | Task::LargePackets(side, ..)
            | Task::Beside(side, ..)
            | Task::Attacked(side, ..)
            | Task::AttackedKeeper(side, ..)
            | Task::Scale(side, ..) => side.driver,
        }
    }

    /// Whether calls of it can be due at a rate.
    pub fn has_rate(&self) -> bool {
        matches!(self, Task::Floor(_) | Task::Call(_))
    }

    /// Starts its processes.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn start(&self, program: &Program) -> Result<Running, MeasureError> {
        let starting = match self {
            Task::Floor(floor) => return Workload::floor_with(program, floor).map(Running::calls),
            Task::Call(call) => return Workload::start_with(program, call).map(Running::calls),
            Task::Connect(side, way, depth) => match side.driver {
                None => Start::new(program, side)?.connect_raw(*way, *depth, connect::Manner::Trusting),
                Some(_) => Start::new(program, side)?.connect(*way, *depth),
            },
            Task::ConnectAsking(side, way, depth) => {
                Start::new(program, side)?.connect_raw(*way, *depth, connect::Manner::Asking)
            }
            Task::Transfer(side, way, fds) => Start::new(program, side)?.transfer(*way, *fds),
            Task::Large(side, way, bytes) => Start::new(program, side)?.large(*way, *bytes),
            Task::LargePackets(side, bytes, packet_bytes) => {
                Start::new(program, side)?.large_packets(*bytes, *packet_bytes)
            }
            Task::Beside(side, bytes) => Start::new(program, side)?.beside(*bytes),
            Task::Attacked(side, misdeed) => Start::new(program, side)?.attacked(*misdeed, ""),
            Task::AttackedKeeper(side, misdeed) => {
                Start::new(program, side)?.attacked(*misdeed, attack::KEEPS_PARTS)
            }
            Task::Scale(side, kind, called, count) => {
                Start::new(program, side)?.scale(*kind, *called, *count)
            }
            Task::Pairs(cpus, sleeps, count) => Start::new(program, &Side::raw(cpus))?.pairs(*sleeps, *count),
        };
        starting.map_err(MeasureError::Other)
    }
}

impl Side {
    /// Bare system calls.
    pub fn raw(cpus: &Cpus) -> Side {
        Side { driver: None, client: Client::Blocking, cpus: cpus.clone() }
    }

    /// Ours.
    pub fn ours(cpus: &Cpus, driver: DriverChoice, client: Client) -> Side {
        Side { driver: Some(driver), client, cpus: cpus.clone() }
    }

    fn head(&self, name: &str, way: &str) -> Head {
        let (name, way, driver) = match self.driver {
            None => (format!("raw {name}"), "raw".to_owned(), "none".to_owned()),
            Some(driver) => (name.to_owned(), way.to_owned(), driver.to_string()),
        };
        let client = self.client.to_string();
        let (wait, cpus) = (Wait::Sleep.to_string(), self.cpus.to_string());
        Head { name, driver, way, client, wait, cpus, depth: 1, payload: 0, fds: 0 }
    }
}

/// A task that was started.
pub enum Running {
    /// Calls, or bare system calls.
    Calls(Box<Workload>),
    /// A client with what it calls, and its servers.
    Other(Caller, Vec<Server>),
}

/// A client.
pub enum Caller {
    /// See [`connect`].
    Connect(Box<connect::Client>, usize),
    /// See [`connect`].
    RawConnect(Box<connect::RawClient>, usize),
    /// See [`fds`].
    Transfer(Box<fds::Sender>),
    /// See [`large`].
    Large(large::Mover),
    /// See [`large`].
    RawLarge(large::RawMover),
    /// See [`large`].
    Beside(large::Beside),
    /// See [`large`].
    RawBeside(large::RawBeside),
    /// See [`attack`].
    Attacked(attack::Caller),
    /// See [`attack`].
    RawAttacked(attack::RawCaller),
    /// See [`scale`].
    Scale(scale::Holder, scale::Called),
    /// See [`bare_many`].
    Pairs(bare_many::Caller),
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Running::Calls(workload) => f.debug_tuple("Calls").field(workload).finish(),
            Running::Other(_, servers) => f.debug_tuple("Other").field(servers).finish(),
        }
    }
}

impl Running {
    fn calls(workload: Workload) -> Running {
        Running::Calls(Box::new(workload))
    }

    /// So many calls, rounded up to whole batches; what they took goes to the recorder.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn round(&mut self, calls: usize, recorder: &mut Recorder) -> Result<(), MeasureError> {
        match self {
            Running::Calls(workload) => workload.round(calls, recorder),
            Running::Other(caller, servers) => caller.round(calls, recorder).map_err(|error| {
                match servers.iter_mut().find_map(Server::death) {
                    Some(death) => MeasureError::Died(death),
                    None => MeasureError::Other(error),
                }
            }),
        }
    }

    /// Ends its processes and sees them end well.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn end(self) -> Result<(), MeasureError> {
        match self {
            Running::Calls(workload) => workload.end(),
            Running::Other(caller, servers) => {
                caller.end();
                servers.into_iter().try_for_each(|server| Ok(server.end()?))
            }
        }
    }
}

impl Caller {
    fn round(&mut self, calls: usize, recorder: &mut Recorder) -> Result<(), Failure> {
        let mut left = calls.max(1);
        while left > 0 {
            let (took, made) = match self {
                Caller::Connect(client, depth) => (timed(|| client.batches(1))?, *depth),
                Caller::RawConnect(client, depth) => (timed(|| client.batches(1))?, *depth),
                Caller::Transfer(sender) => {
                    let prepared = sender.prepare()?;
                    (timed(|| sender.batch(prepared))?, fds::BATCH)
                }
                Caller::Large(mover) => (mover.moves(1)?, 1),
                Caller::RawLarge(mover) => (mover.moves(1)?, 1),
                Caller::Scale(holder, called) => (holder.calls(*called, 1)?, 1),
                Caller::Pairs(caller) => (caller.call()?, 1),
                // These begin and end a load beside them, and so are not made one by one.
                Caller::Beside(beside) => {
                    return beside.calls(calls as u64, |took| recorder.record(took, 1)).map(drop);
                }
                Caller::RawBeside(beside) => {
                    return beside.calls(calls as u64, |took| recorder.record(took, 1)).map(drop);
                }
                Caller::Attacked(caller) => {
                    return caller.calls(calls as u64, |took| recorder.record(took, 1));
                }
                Caller::RawAttacked(caller) => {
                    return caller.calls(calls as u64, |took| recorder.record(took, 1));
                }
            };
            recorder.record(took, made);
            left = left.saturating_sub(made);
        }
        Ok(())
    }

    fn end(self) {
        match self {
            Caller::Connect(client, _) => client.end(),
            Caller::RawConnect(client, _) => client.end(),
            Caller::Transfer(sender) => sender.end(),
            Caller::Large(mover) => mover.end(),
            Caller::RawLarge(mover) => drop(mover),
            Caller::Beside(beside) => beside.end(),
            Caller::RawBeside(beside) => drop(beside),
            Caller::Attacked(caller) => caller.end(),
            Caller::RawAttacked(caller) => drop(caller),
            Caller::Scale(holder, _) => holder.end(),
            Caller::Pairs(caller) => drop(caller),
        }
    }
}

fn timed(call: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed())
}

/// How many of so many can be attached here.
fn attachable(count: usize) -> Option<usize> {
    scale::attachable(count, process::descriptors_allowed(scale::descriptors_needed(count)))
}

/// What starting takes.
struct Start<'a> {
    program: &'a Program,
    at: Posting,
    side: &'a Side,
}

impl<'a> Start<'a> {
    fn new(program: &'a Program, side: &'a Side) -> Result<Start<'a>, MeasureError> {
        side.cpus.pin_client()?;
        let driver = side.driver.unwrap_or_default();
        Ok(Start { program, at: Posting { driver, wait: Wait::Sleep, cpu: side.cpus.server }, side })
    }

    fn server(
        &self,
        part: &'static str,
        told: &str,
        given: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Server, Failure> {
        Ok(Server::start_with(self.program, part, told, self.at, given)?)
    }

    fn reactor(&self) -> Result<Reactor, Failure> {
        Ok(Reactor::with_config(Config { driver: self.at.driver, ..Config::default() })?)
    }

    fn connect(&self, way: connect::Way, depth: usize) -> Result<Running, Failure> {
        let (here, there) = connect::ends(way)?;
        let mut server = self.server(connect::ACCEPTOR, &connect::told(way, depth), there)?;
        let client = connect::Client::new(&self.reactor()?, way, depth, here);
        let client = client.map_err(|error| server.blame(error))?;
        Ok(Running::Other(Caller::Connect(Box::new(client), depth), vec![server]))
    }

    fn connect_raw(
        &self,
        way: connect::Way,
        depth: usize,
        manner: connect::Manner,
    ) -> Result<Running, Failure> {
        let (client, there) = connect::RawClient::new(way, depth, manner)?;
        let server = self.server(connect::RAW_ACCEPTOR, &connect::told_raw(way, depth, manner), there)?;
        Ok(Running::Other(Caller::RawConnect(Box::new(client), depth), vec![server]))
    }

    fn transfer(&self, way: fds::Way, count: usize) -> Result<Running, Failure> {
        let (sender, far) = fds::Sender::new(way, count, &self.reactor()?)?;
        let server = self.server(fds::RECEIVER, way.name(), vec![far])?;
        Ok(Running::Other(Caller::Transfer(Box::new(sender)), vec![server]))
    }

    fn large(&self, way: large::Way, bytes: usize) -> Result<Running, Failure> {
        let (address, bound) = floor::packet_pair()?;
        let server = self.server(large::LOOKER, "", vec![bound])?;
        let mover = match self.side.client {
            Client::Async => large::Mover::new(&self.reactor()?, address, way, bytes)?,
            Client::Blocking => large::Mover::blocking(address, way, bytes)?,
        };
        Ok(Running::Other(Caller::Large(mover), vec![server]))
    }

    fn large_packets(&self, bytes: usize, packet_bytes: usize) -> Result<Running, Failure> {
        let (mover, far) = large::RawMover::new(bytes, packet_bytes)?;
        let server = self.server(large::RAW_LOOKER, &packet_bytes.to_string(), vec![far])?;
        Ok(Running::Other(Caller::RawLarge(mover), vec![server]))
    }

    fn beside(&self, bytes: usize) -> Result<Running, Failure> {
        let (address, bound) = floor::packet_pair()?;
        let mut looker = self.server(large::LOOKER, large::UNSEEN, vec![bound])?;
        if self.side.driver.is_some() {
            let beside = large::Beside::new(&self.reactor()?, address, bytes);
            let beside = beside.map_err(|error| looker.blame(error))?;
            return Ok(Running::Other(Caller::Beside(beside), vec![looker]));
        }
        let (socket, echo) = floor::packet_pair()?;
        let (control, far) = floor::packet_pair()?;
        let echo = self.server(serving::ECHO, "", vec![echo])?;
        let load = self.server(large::LOAD, &bytes.to_string(), vec![far, address])?;
        let beside = large::RawBeside::new(socket, control);
        Ok(Running::Other(Caller::RawBeside(beside), vec![looker, echo, load]))
    }

    /// The attacker is a client, and runs where clients do.
    fn attacked(&self, misdeed: attack::Misdeed, told: &str) -> Result<Running, Failure> {
        let (address, bound) = floor::packet_pair()?;
        let (plain, plain_bound) = floor::packet_pair()?;
        let (control, far) = floor::packet_pair()?;
        let (socket, end) = floor::packet_pair()?;
        let is_ours = self.side.driver.is_some();
        let mut victim = match is_ours {
            true => self.server(attack::VICTIM, "", vec![bound, plain_bound])?,
            false => self.server(attack::POLLED, told, vec![bound, plain_bound, end])?,
        };
        let given = vec![far, address.try_clone()?, plain];
        let at = Posting { cpu: self.side.cpus.client, ..self.at };
        let attacker = Server::start_with(self.program, attack::ATTACKER, misdeed.name(), at, given)?;
        let attack = attack::Attack::new(control);
        let caller = if is_ours {
            let caller = attack::Caller::new(&self.reactor()?, address, attack);
            Caller::Attacked(caller.map_err(|error| victim.blame(error))?)
        } else {
            Caller::RawAttacked(attack::RawCaller::new(socket, attack))
        };
        Ok(Running::Other(caller, vec![attacker, victim]))
    }

    fn scale(&self, kind: scale::Kind, called: scale::Called, count: usize) -> Result<Running, Failure> {
        let attached = attachable(count).ok_or("more descriptors than this process may have")?;
        let (control, far) = scale::Control::new()?;
        let mut server = self.server(scale::MANY, "", vec![far])?;
        let holder = scale::Holder::new(&self.reactor()?, control, kind, count);
        let mut holder = holder.map_err(|error| server.blame(error))?;
        holder.attach(attached).map_err(|error| server.blame(error))?;
        Ok(Running::Other(Caller::Scale(holder, called), vec![server]))
    }

    fn pairs(&self, sleeps: bare_many::Sleeps, count: usize) -> Result<Running, Failure> {
        let count = attachable(count).ok_or("more descriptors than this process may have")?;
        let (control, far) = floor::packet_pair()?;
        let mut server = self.server(bare_many::SERVER, "", vec![far])?;
        let caller = bare_many::Caller::new(&control, count, sleeps);
        let caller = caller.map_err(|error| server.blame(error))?;
        Ok(Running::Other(Caller::Pairs(caller), vec![server]))
    }
}
