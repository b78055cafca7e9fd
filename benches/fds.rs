//! What it costs to pass 1 to 8 descriptors one way, without data: the Native Client paper's Table 3, again.
//!
//! Two processes on one CPU. A cost is that of sending, receiving and closing, in batches of 32 transfers
//! that are acknowledged together. At the end there is the table: ours beside bare system calls and beside
//! what the paper had in 2009, and what one more descriptor costs in each row.
//!
//! ```text
//! cargo bench --bench fds
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use benches::subject::Served;
use benches::suite::{Subject, Suite, drivers, run};
use criterion::Throughput;
use perf::Cpus;
use perf::fds::{BATCH, PAPER_US, RECEIVER, Sender, Way, slope};
use perf::process::{Failure, Server, serve_if_asked};
use ring::{Config, DriverChoice, Reactor};

fn main() {
    serve_if_asked();
    run("fds", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    let cpus = Cpus::one()?;
    cpus.pin_client()?;
    let drivers = drivers();
    let mut rows: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for count in 1..=PAPER_US.len() {
        let name = if count == 1 { "1 descriptor".to_owned() } else { format!("{count} descriptors") };
        let mut group = suite.group(&name, Throughput::Elements(BATCH as u64));
        group.floor("raw", || sender(Way::Raw, count, DriverChoice::Auto, &cpus));
        for driver in &drivers {
            for way in [Way::Blocking, Way::Connected, Way::Typed] {
                group.beside(&format!("{}, {driver}", way.name()), || sender(way, count, *driver, &cpus));
            }
        }
        for (row, median) in group.finish() {
            rows.entry(row).or_default().push(median.as_nanos() as f64 / 1e3 / BATCH as f64);
        }
    }
    // With a filter there may be less than a table.
    if rows.values().any(|costs| costs.len() == PAPER_US.len()) {
        print_table(&rows);
    }
    Ok(())
}

fn sender(way: Way, count: usize, driver: DriverChoice, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let (client, far) = Sender::new(way, count, &reactor)?;
    let server = Server::start(RECEIVER, way.name(), driver, cpus, vec![far])?;
    Ok(Box::new(Served { client, server, call: batches, end: Sender::end }))
}

fn batches(sender: &mut Sender, count: u64) -> Result<Duration, Failure> {
    let mut taken = Duration::ZERO;
    for _ in 0..count {
        let prepared = sender.prepare()?;
        let start = Instant::now();
        sender.batch(prepared)?;
        taken += start.elapsed();
    }
    Ok(taken)
}

fn print_table(rows: &BTreeMap<String, Vec<f64>>) {
    print!("{:24}", "us for a transfer of");
    (1..=PAPER_US.len()).for_each(|count| print!("{count:>7}"));
    println!("{:>14}{:>10}", "each more us", "x raw");
    let raw = rows.get("raw").map(|costs| slope(costs));
    let paper = ("the paper, 2009".to_owned(), PAPER_US.to_vec());
    for (name, costs) in std::iter::once((&paper.0, &paper.1)).chain(rows) {
        if costs.len() != PAPER_US.len() {
            continue;
        }
        print!("{name:24}");
        costs.iter().for_each(|cost| print!("{cost:7.2}"));
        print!("{:14.2}", slope(costs));
        match raw {
            Some(raw) if *name != paper.0 => println!("{:10.2}", slope(costs) / raw),
            _ => println!(),
        }
    }
}
