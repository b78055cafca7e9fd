//! How a suite runs: on criterion, with what is measured and its floor taking turns.
//!
//! Criterion measures one thing after the other, and a machine that is shared is another machine a minute
//! later. So each sample is made of short rounds, and between them the floor has rounds of its own, which do
//! not count for criterion; after each group there is a table with both medians and their ratio. It does not
//! know what is called.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use perf::process::Failure;
use ring::{Config, DriverChoice, Reactor};

/// How many rounds a sample is made of, if it has that many calls.
const ROUNDS: u64 = 8;

/// Something to measure: a side that calls, with all it needs.
pub trait Subject {
    /// Makes so many calls, or batches of them: what they took, without what was prepared for them.
    ///
    /// # Errors
    /// A call has failed, or the server has died.
    fn calls(&mut self, count: u64) -> Result<Duration, Failure>;

    /// The last call was made: lets go of everything and sees the servers end.
    ///
    /// # Errors
    /// One of them did not end well.
    fn end(self: Box<Self>) -> Result<(), Failure>;
}

/// How a subject is started, when it is known that it will be measured.
pub type Start<'a> = Box<dyn FnMut() -> Result<Box<dyn Subject>, Failure> + 'a>;

/// Runs one call after the other on the clock.
///
/// # Errors
/// The first that failed.
pub fn timed(count: u64, mut call: impl FnMut() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let start = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(start.elapsed())
}

/// Runs a suite: short samples, many of them, as suits calls of microseconds. The usual options of criterion
/// say otherwise, and a filter says which are run.
pub fn run(name: &'static str, measure: impl FnOnce(&mut Suite) -> Result<(), Failure>) {
    let criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000)
        .configure_from_args();
    let mut suite = Suite { name, criterion };
    let measured = measure(&mut suite);
    suite.criterion.final_summary();
    if let Err(error) = measured {
        give_up(name, error);
    }
}

/// Whether a filter among the arguments has this word in it.
pub fn asked_for(word: &str) -> bool {
    filters().iter().any(|filter| filter.contains(word))
}

/// Whether what is named so is to be measured where criterion does not decide: not if a filter asks for
/// something else, or if names are to be listed only.
pub fn is_wanted(name: &str) -> bool {
    let filters = filters();
    !has_option("--list")
        && (filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
}

fn has_option(option: &str) -> bool {
    std::env::args().any(|argument| argument == option)
}

/// The arguments that are neither options nor their values.
fn filters() -> Vec<String> {
    const WITH_VALUE: [&str; 16] = [
        "-b",
        "-c",
        "-s",
        "--baseline",
        "--baseline-lenient",
        "--color",
        "--colour",
        "--confidence-level",
        "--load-baseline",
        "--measurement-time",
        "--noise-threshold",
        "--nresamples",
        "--profile-time",
        "--sample-size",
        "--save-baseline",
        "--warm-up-time",
    ];
    let mut filters = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if WITH_VALUE.contains(&argument.as_str()) {
            arguments.next();
        } else if !argument.starts_with('-') {
            filters.push(argument);
        }
    }
    filters
}

/// The drivers this machine has. One that it refuses is named.
pub fn drivers() -> Vec<DriverChoice> {
    let both = [DriverChoice::Uring, DriverChoice::Epoll];
    let usable = both.into_iter().filter(|driver| {
        let config = Config { driver: *driver, ..Config::default() };
        match Reactor::with_config(config) {
            Ok(_) => true,
            Err(refused) => {
                println!("skipped: {driver}: {refused}");
                false
            }
        }
    });
    usable.collect()
}

/// A suite cannot go on after a call has failed: whoever was measured is not there any more.
fn give_up(what: &str, error: Failure) -> ! {
    eprintln!("{what}: {error}");
    std::process::exit(1)
}

/// A suite that runs.
pub struct Suite {
    name: &'static str,
    criterion: Criterion,
}

impl Suite {
    /// What is compared with one floor: a group of criterion's, and one table. A call of the group is so many
    /// elements, or bytes.
    pub fn group<'a>(&'a mut self, name: &str, throughput: Throughput) -> Group<'a> {
        let full = format!("{}/{name}", self.name);
        let mut group = self.criterion.benchmark_group(full.clone());
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(throughput.clone());
        Group { name: full, group, throughput, floor: None, rows: Vec::new() }
    }
}

/// See [`Suite::group`].
pub struct Group<'a> {
    name: String,
    group: BenchmarkGroup<'a, WallTime>,
    throughput: Throughput,
    floor: Option<Running<'a>>,
    rows: Vec<Row>,
}

/// Something that is started with its first call.
struct Running<'a> {
    name: String,
    start: Start<'a>,
    started: Option<Box<dyn Subject>>,
}

impl Running<'_> {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        let subject = match &mut self.started {
            Some(subject) => subject,
            None => {
                let subject = self.started.insert((self.start)()?);
                // The first call waits for its server to be there, which is no part of any.
                subject.calls(1)?;
                subject
            }
        };
        subject.calls(count)
    }

    fn end(self) -> Result<(), Failure> {
        self.started.map_or(Ok(()), Subject::end)
    }
}

/// What one line of the table says: nanoseconds for each call, of each round.
struct Row {
    name: String,
    taken: Vec<f64>,
    beside: Vec<f64>,
}

impl<'a> Group<'a> {
    /// Measures the floor, and from then on has it take turns with everything that follows.
    pub fn floor(
        &mut self,
        name: &str,
        start: impl FnMut() -> Result<Box<dyn Subject>, Failure> + 'a,
    ) -> &mut Self {
        let mut floor = Running { name: name.to_owned(), start: Box::new(start), started: None };
        self.measure(name, &mut floor, None);
        self.floor = Some(floor);
        self
    }

    /// Measures something beside the floor.
    pub fn beside(
        &mut self,
        name: &str,
        start: impl FnMut() -> Result<Box<dyn Subject>, Failure>,
    ) -> &mut Self {
        let mut subject = Running { name: name.to_owned(), start: Box::new(start), started: None };
        let mut floor = self.floor.take();
        self.measure(name, &mut subject, floor.as_mut());
        self.floor = floor;
        if let Err(error) = subject.end() {
            give_up(name, error);
        }
        self
    }

    fn measure(&mut self, name: &str, subject: &mut Running<'_>, mut floor: Option<&mut Running<'a>>) {
        let mut row = Row { name: name.to_owned(), taken: Vec::new(), beside: Vec::new() };
        self.group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                sample(subject, floor.as_deref_mut(), count, &mut row)
                    .unwrap_or_else(|error| give_up(&subject.name, error))
            });
        });
        // A filter may have passed over it.
        if !row.taken.is_empty() {
            self.rows.push(row);
        }
    }

    /// Ends the floor, prints the table, and says the median of each that was measured.
    pub fn finish(self) -> Vec<(String, Duration)> {
        self.group.finish();
        if let Some(floor) = self.floor {
            let name = floor.name.clone();
            if let Err(error) = floor.end() {
                give_up(&name, error);
            }
        }
        let mut medians = Vec::new();
        // Whoever only tests that all of it runs makes one call of each, which is no measurement.
        if self.rows.is_empty() || has_option("--test") {
            return medians;
        }
        let (unit, per) = match self.throughput {
            Throughput::Elements(count) => ("calls/s", count as f64),
            Throughput::Bytes(count) => ("MB/s", count as f64 / 1e6),
            _ => ("/s", 1.0),
        };
        println!("\n{:46} {:>11} {:>11} {:>11} {:>7}", self.name, "p50 us", unit, "floor us", "ratio");
        for row in self.rows {
            let taken_ns = median(row.taken);
            print!("{:46} {:11.3} {:11.0}", row.name, taken_ns / 1e3, per * 1e9 / taken_ns);
            match median(row.beside) {
                floor_ns if floor_ns > 0.0 => {
                    println!(" {:11.3} {:7.2}", floor_ns / 1e3, taken_ns / floor_ns)
                }
                _ => println!(),
            }
            medians.push((row.name, Duration::from_secs_f64(taken_ns / 1e9)));
        }
        println!();
        medians
    }
}

/// Calls of the subject on the clock, in rounds, with rounds of the floor between them.
fn sample(
    subject: &mut Running<'_>,
    mut floor: Option<&mut Running<'_>>,
    count: u64,
    row: &mut Row,
) -> Result<Duration, Failure> {
    let round = count.div_ceil(ROUNDS).max(1);
    let mut left = count;
    let mut all = Duration::ZERO;
    while left > 0 {
        let now = round.min(left);
        left -= now;
        if let Some(floor) = &mut floor {
            row.beside.push(floor.calls(now)?.as_nanos() as f64 / now as f64);
        }
        let taken = subject.calls(now)?;
        row.taken.push(taken.as_nanos() as f64 / now as f64);
        all += taken;
    }
    Ok(all)
}

/// 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_nothing_has_none() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
