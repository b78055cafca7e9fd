//! What the suites measure, as the suites want it: something that makes calls and is ended.
//!
//! It owns a client and the server it belongs to. It does not know what stands beside it.

use std::time::Duration;

use perf::process::{Failure, Server};
use perf::{FloorOptions, Options, Recorder, Workload};

use crate::suite::{Subject, timed};

/// Calls, or floors, that the measuring library knows.
pub struct Calls {
    workload: Workload,
    depth: u64,
}

impl Calls {
    /// Bare system calls.
    ///
    /// # Errors
    /// They cannot be had on this machine.
    pub fn raw(options: &FloorOptions) -> Result<Box<dyn Subject>, Failure> {
        Ok(Box::new(Calls { workload: Workload::floor(options)?, depth: options.depth as u64 }))
    }

    /// Calls of the libraries.
    ///
    /// # Errors
    /// They cannot be had on this machine.
    pub fn of(options: &Options) -> Result<Box<dyn Subject>, Failure> {
        Ok(Box::new(Calls { workload: Workload::start(options)?, depth: options.depth as u64 }))
    }
}

impl Subject for Calls {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        let calls = usize::try_from(count * self.depth)?;
        let mut nothing = Recorder::off();
        timed(1, || Ok(self.workload.round(calls, &mut nothing)?))
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.workload.end()?)
    }
}

/// A client and its server. `call` makes so many calls and says what they took, `end` lets go of the client,
/// after which the server ends.
pub struct Served<C> {
    /// What calls.
    pub client: C,
    /// What answers.
    pub server: Server,
    /// Makes so many calls.
    pub call: fn(&mut C, u64) -> Result<Duration, Failure>,
    /// Lets go of the client.
    pub end: fn(C),
}

impl<C> Subject for Served<C> {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        (self.call)(&mut self.client, count).map_err(|error| self.server.blame(error))
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        (self.end)(self.client);
        Ok(self.server.end()?)
    }
}
