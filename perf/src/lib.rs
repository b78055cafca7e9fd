//! What measures the libraries: calls of each way, the bare system calls beside them, and what they took.
//!
//! A program that measures calls [`serve_if_asked`] before anything else, since its servers are that same
//! program once more. Then it [starts a workload](Workload::start) and the [floor](Floor) beside it, lets
//! them take turns in short [rounds](Workload::round), and compares what their recorders say. Only ratios
//! between what took turns in one run mean anything elsewhere.
//!
//! ```no_run
//! use perf::{Cpus, Floor, FloorOptions, Options, Recorder, Workload};
//!
//! fn main() -> Result<(), perf::MeasureError> {
//!     perf::serve_if_asked();
//!     let cpus = Cpus::one()?;
//!     let mut call = Workload::start(&Options::on(&cpus))?;
//!     let mut raw = Workload::floor(&FloorOptions::on(Floor::PingPong, &cpus))?;
//!     let (mut calls, mut bare) = (Recorder::closed(), Recorder::closed());
//!     for _ in 0..40 {
//!         raw.round(500, &mut bare)?;
//!         call.round(500, &mut calls)?;
//!     }
//!     println!("{:.2} x raw", calls.quantile_ns(0.5) as f64 / bare.quantile_ns(0.5) as f64);
//!     call.end()?;
//!     raw.end()
//! }
//! ```
//!
//! Every server and every client has the configuration that the libraries have by themselves: nothing but the
//! driver, the CPU and the public [wait policy](ring::WaitPolicy) is chosen. (Limits are raised where a call
//! would be refused without.)
//!
//! It does not print, decide what is worth measuring, or retry; and it is no part of what the libraries need.

#![forbid(unsafe_code)]

pub mod aligned;
pub mod attack;
pub mod bare_loop;
pub mod bare_many;
mod bars;
pub mod connect;
pub mod fds;
pub mod floor;
pub mod large;
mod place;
pub mod process;
pub mod readme;
pub mod record;
mod recorder;
mod row;
pub mod run;
pub mod scale;
pub mod serving;
pub mod suite;
mod surroundings;
mod task;
mod workload;

pub use floor::{Floor, FloorOptions};
pub use place::{Cpus, CpusError, Wait};
pub use process::serve_if_asked;
pub use recorder::Recorder;
pub use row::{Head, Row};
pub use surroundings::Surroundings;
pub use task::{Caller, Running, Side, Task};
pub use workload::{Client, MeasureError, Options, Pairs, Way, Workload};

/// Everything that servers of this library play.
const PARTS: &[process::Part] = &[
    (serving::ECHO, serving::echo),
    (serving::ECHO_IN_LOOP, serving::echo_in_loop),
    (serving::CONTINUATIONS, serving::continuations),
    (serving::CONTINUATIONS_RETURNED, serving::continuations_returned),
    (serving::CONTINUATIONS_RETURNED_IN_LOOP, serving::continuations_returned_in_loop),
    (serving::CONTINUATIONS_RETURNED_ASKED, serving::continuations_returned_asked),
    (serving::SESSION, serving::session),
    (serving::PLAIN, serving::plain),
    (serving::PLAIN_RETURNED, serving::plain_returned),
    (connect::ACCEPTOR, connect::serve),
    (connect::RAW_ACCEPTOR, connect::serve_raw),
    (fds::RECEIVER, fds::serve),
    (large::LOOKER, large::serve),
    (large::RAW_LOOKER, large::serve_raw),
    (large::LOAD, large::serve_load),
    (attack::VICTIM, attack::serve_victim),
    (attack::ATTACKER, attack::serve_attacker),
    (attack::POLLED, attack::serve_polled),
    (bare_many::SERVER, bare_many::serve),
    (scale::MANY, scale::serve),
    (scale::SCALES, scale::weigh),
];
