//! Everything a table can have a line for: a closed list, and how each is started.
//!
//! A task says what it is before it runs. It does not know beside what it stands, or for how long it runs.

use ring::DriverChoice;

use crate::floor::FloorOptions;
use crate::recorder::Recorder;
use crate::row::Head;
use crate::server::Program;
use crate::workload::{Client, MeasureError, Options, Pairs, Way, Workload};

/// Something to measure.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Task {
    /// Bare system calls.
    Floor(FloorOptions),
    /// Calls of one way.
    Call(Options),
}

/// A task that was started.
#[derive(Debug)]
pub enum Running {
    /// Calls, or bare system calls.
    Calls(Workload),
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
        }
    }

    /// The driver it needs, if it needs one.
    pub fn driver(&self) -> Option<DriverChoice> {
        match self {
            Task::Floor(_) => None,
            Task::Call(call) => Some(call.driver),
        }
    }

    /// Starts its processes.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn start(&self, program: &Program) -> Result<Running, MeasureError> {
        match self {
            Task::Floor(floor) => Workload::floor_with(program, floor).map(Running::Calls),
            Task::Call(call) => Workload::start_with(program, call).map(Running::Calls),
        }
    }
}

impl Running {
    /// So many calls, rounded up to whole batches; what they took goes to the recorder.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn round(&mut self, calls: usize, recorder: &mut Recorder) -> Result<(), MeasureError> {
        match self {
            Running::Calls(workload) => workload.round(calls, recorder),
        }
    }

    /// Ends its processes and sees them end well.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn end(self) -> Result<(), MeasureError> {
        match self {
            Running::Calls(workload) => workload.end(),
        }
    }
}
