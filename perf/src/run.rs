//! Running what stands beside each other: in short rounds that take turns, so that whatever the machine does
//! meanwhile it does to all.
//!
//! It owns how long a round is and how many there are. It does not know what runs, and prints nothing.

use std::time::{Duration, Instant};

use ring::DriverChoice;

use crate::floor;
use crate::process::Program;
use crate::recorder::Recorder;
use crate::row::{Head, Row};
use crate::suite::Group;
use crate::task::{Running, Task};
use crate::workload::MeasureError;

/// How long a round is, where there is time for [`ROUNDS_MIN`] of them: long beside what switching costs,
/// and short beside what a machine is busy with.
pub const ROUND_TIME: Duration = Duration::from_millis(10);

/// How long it is where calls are due at a rate: a stall is counted for whoever came during it, as far as it
/// is shorter than a round.
pub const ROUND_TIME_AT_RATE: Duration = Duration::from_millis(100);

/// How long it is beside an attack: each round begins with one that finds every queue empty, which is one
/// call in a hundred of a shorter round.
pub const ROUND_TIME_ATTACKED: Duration = Duration::from_millis(100);

/// For how long calls are made beside an attack before any of them counts: until every session has used all
/// the memory that it may. What the first use of a page takes is the machine's (13 ms for 2 MiB that a host
/// has to provide, 0.2 ms for those it has provided before), and each round has as many calls as fit by then.
pub const WARM_UP_TIME_ATTACKED: Duration = Duration::from_secs(1);

/// The fewest rounds.
pub const ROUNDS_MIN: u32 = 3;

/// The most calls in a round.
const CALLS_MAX: usize = 1_000_000_000;

/// What is said of a row behind its name, where somebody else had a descriptor in flight.
pub const PARKED: &str = ", one in flight";

/// How much longer than its rows a group takes, in hundredths: calls that warm up, and the last batch of each
/// round.
const EXTRA: u32 = 12;

/// What starting and ending the processes of a task takes, about.
const START_TIME: Duration = Duration::from_millis(20);

/// How to run a group.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the rows belong to.
    pub suite: String,
    /// For how long each task runs.
    pub time_per_row: Duration,
    /// Calls per second, where they are to be due at a rate instead of one after the other.
    pub rate: Option<f64>,
    /// Drivers that this machine refuses, and why: tasks on them are not tried.
    pub refused: Vec<(DriverChoice, String)>,
    /// What servers are.
    pub program: Program,
}

impl Settings {
    fn refusal(&self, task: &Task) -> Option<&str> {
        let driver = task.driver()?;
        self.refused.iter().find(|(refused, _)| *refused == driver).map(|(_, why)| why.as_str())
    }
}

/// What became of a task.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It was measured.
    Measured(Box<Measured>),
    /// It cannot be had here: which it was, and why.
    Refused(Head, String),
}

/// A row, and everything that was recorded for it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// Each latency.
    pub recorder: Recorder,
}

/// How long these groups will take, about.
pub fn estimate(groups: &[Group], time_per_row: Duration) -> Duration {
    let of_row = time_per_row * (100 + EXTRA) / 100 + START_TIME;
    let of_group = |group: &Group| {
        let warm_up = if group.is_attacked() { WARM_UP_TIME_ATTACKED } else { Duration::ZERO };
        (of_row + warm_up) * u32::try_from(group.tasks.len()).unwrap_or(u32::MAX)
    };
    groups.iter().map(of_group).sum()
}

/// Runs the tasks of one group. `turn` is told after each round of each task how much of the group's time has
/// been used, from 0 to 1.
///
/// A task that does not start, or whose first calls fail while its server lives, is refused; then the others
/// run.
///
/// # Errors
/// The floor is refused, a call of a task that has run fails, or a server dies.
pub fn run(
    group: &Group,
    settings: &Settings,
    turn: &mut dyn FnMut(f64),
) -> Result<Vec<Outcome>, MeasureError> {
    let parked = if group.parked { Some(floor::park_one_in_flight()?) } else { None };
    let wanted = match settings.rate {
        Some(_) => ROUND_TIME_AT_RATE,
        None if group.is_attacked() => ROUND_TIME_ATTACKED,
        None => ROUND_TIME,
    };
    let rounds = rounds(settings.time_per_row, wanted);
    let round_time = settings.time_per_row / rounds;
    let mut tasks = Vec::new();
    for (index, task) in group.tasks.iter().enumerate() {
        if let Some(why) = settings.refusal(task) {
            tasks.push(Err((task.head(), why.to_owned())));
            continue;
        }
        let warm_up_time = if group.is_attacked() { WARM_UP_TIME_ATTACKED } else { round_time };
        match Turns::start(task, settings, Times { round_time, warm_up_time }) {
            Ok(turns) => tasks.push(Ok(turns)),
            Err(error @ MeasureError::Died(_)) => return Err(error),
            Err(error) if index == 0 => return Err(error),
            Err(error) => tasks.push(Err((task.head(), error.to_string()))),
        }
    }
    for round in 0..rounds {
        for turns in tasks.iter_mut().flatten() {
            turns.round()?;
            turn(f64::from(round + 1) / f64::from(rounds));
        }
    }
    drop(parked);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut beside: Option<Recorder> = None;
    for task in tasks {
        outcomes.push(match task {
            Ok(Turns { mut head, running, recorder, .. }) => {
                running.end()?;
                if group.parked {
                    head.name.push_str(PARKED);
                }
                let floor = beside.get_or_insert_with(|| recorder.clone());
                let row = Row::new(&settings.suite, head, &recorder, floor);
                Outcome::Measured(Box::new(Measured { row, recorder }))
            }
            Err((head, why)) => Outcome::Refused(head, why),
        });
    }
    Ok(outcomes)
}

/// A task whose turn comes again and again.
struct Turns {
    head: Head,
    running: Running,
    recorder: Recorder,
    /// In the next round.
    calls: usize,
    /// How long a round is to be; `None` where calls are due at a rate, and so are as many in each.
    round_time: Option<Duration>,
}

struct Times {
    round_time: Duration,
    warm_up_time: Duration,
}

impl Turns {
    fn start(task: &Task, settings: &Settings, times: Times) -> Result<Turns, MeasureError> {
        let Times { round_time, warm_up_time } = times;
        let head = task.head();
        let mut running = task.start(&settings.program)?;
        let each = warm_up(&mut running, head.depth, warm_up_time)?;
        let (calls, recorder, round_time) = match settings.rate {
            None => (round_time.as_secs_f64() / each.as_secs_f64(), Recorder::closed(), Some(round_time)),
            Some(rate) => (round_time.as_secs_f64() * rate, Recorder::open(rate), None),
        };
        Ok(Turns { calls: calls.clamp(1.0, CALLS_MAX as f64) as usize, head, running, recorder, round_time })
    }

    fn round(&mut self) -> Result<(), MeasureError> {
        let start = Instant::now();
        self.running.round(self.calls, &mut self.recorder)?;
        if let Some(round_time) = self.round_time {
            self.calls = next(self.calls, start.elapsed(), round_time);
        }
        Ok(())
    }
}

/// How many calls the next round has. Twice as many after one that was over in less than half its time: where
/// the machine was busy while it was asked what a call takes, a row had one call in each round, each of which
/// found the caches of somebody else, and took three times as long as those beside it.
fn next(calls: usize, took: Duration, round_time: Duration) -> usize {
    if took < round_time / 2 { (calls * 2).min(CALLS_MAX) } else { calls }
}

/// Calls until this time is over, which the first calls need that fault memory in and fill pools. What a
/// call takes.
fn warm_up(running: &mut Running, depth: usize, time: Duration) -> Result<Duration, MeasureError> {
    let mut calls = depth.max(1);
    // The first waits until its server is there, which is no part of what a call takes.
    running.round(calls, &mut Recorder::off())?;
    let began = Instant::now();
    loop {
        let start = Instant::now();
        running.round(calls, &mut Recorder::off())?;
        let took = start.elapsed();
        if began.elapsed() >= time {
            return Ok((took / u32::try_from(calls).unwrap_or(u32::MAX)).max(Duration::from_nanos(1)));
        }
        calls *= 2;
    }
}

fn rounds(time_per_row: Duration, round_time: Duration) -> u32 {
    let rounds = time_per_row.as_nanos() / round_time.as_nanos();
    u32::try_from(rounds).unwrap_or(u32::MAX).max(ROUNDS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_rounds_as_fit_and_never_too_few() {
        let rounds_in = |time_per_row| rounds(time_per_row, ROUND_TIME);
        assert_eq!(rounds_in(Duration::from_secs(1)), 100);
        assert_eq!(rounds_in(ROUND_TIME * ROUNDS_MIN), ROUNDS_MIN);
        assert_eq!(rounds_in(ROUND_TIME * (ROUNDS_MIN + 1)), ROUNDS_MIN + 1);
        assert_eq!(rounds_in(Duration::from_millis(1)), ROUNDS_MIN);
    }

    #[test]
    fn a_round_that_was_over_soon_has_more_calls_next_time() {
        let half = ROUND_TIME / 2;
        assert_eq!(next(1, half - Duration::from_nanos(1), ROUND_TIME), 2);
        assert_eq!(next(1, half, ROUND_TIME), 1);
        assert_eq!(next(700, ROUND_TIME * 9, ROUND_TIME), 700);
        assert_eq!(next(CALLS_MAX, Duration::ZERO, ROUND_TIME), CALLS_MAX);
    }
}
