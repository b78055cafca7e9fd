//! What a call costs: each way, client and driver, over depth, payload and descriptors, beside the bare
//! system calls that carry the same.
//!
//! Two processes on one CPU, sleeping; the usual calls once more with a CPU each, where both look before they
//! sleep. Session calls stand beside a ping-pong (many at a time: beside packets that hold as many calls as
//! fit; with descriptors: beside one that passes them), plain calls beside the five system calls that they
//! are made of. Without a filter it goes along each axis from the usual call (one at a time, 64 bytes, no
//! descriptors): 19 combinations, about ten minutes. All 100 are there for a filter that has the word `every`
//! in it:
//!
//! ```text
//! cargo bench --bench call
//! cargo bench --bench call -- 'session, 32 deep, 64 bytes, 0 fds'
//! cargo bench --bench call -- 'every.*plain, 8 deep, 4096 bytes, 4 fds/async, ahead, uring'
//! ```

use benches::subject::Calls;
use benches::suite::{Suite, asked_for, drivers, run};
use criterion::Throughput;
use perf::process::{Failure, descriptors_allowed};
use perf::{Client, Cpus, Options, Pairs, Way};
use ring::DriverChoice;

const DEPTHS: [usize; 4] = [1, 8, 32, 256];
const PAYLOADS: [usize; 5] = [8, 64, 1024, 4096, 65_536];
const FDS: [usize; 5] = [0, 1, 4, 8, 16];

/// Who calls, and how a plain call comes by its pair.
const PLAIN: [(&str, Client, Way); 5] = [
    ("async, ahead", Client::Async, Way::Plain(Pairs::Ahead)),
    ("async, fresh", Client::Async, Way::Plain(Pairs::Fresh)),
    ("async, returned", Client::Async, Way::Returned),
    ("blocking", Client::Blocking, Way::Plain(Pairs::Fresh)),
    ("blocking, returned", Client::Blocking, Way::Returned),
];

const SESSION: [(&str, Client, Way); 2] =
    [("async", Client::Async, Way::Session), ("blocking", Client::Blocking, Way::Session)];

/// One combination of the axes.
#[derive(Clone, Copy)]
struct Cell {
    depth: usize,
    payload: usize,
    fds: usize,
}

/// Where the axes meet.
const USUAL: Cell = Cell { depth: 1, payload: 64, fds: 0 };

fn main() {
    perf::serve_if_asked();
    run("call", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    // A plain call has a descriptor here and one there for as long as it is under way, and may pass 16.
    descriptors_allowed(16_384);
    // Both before the first measurement, which keeps this process to one CPU.
    let (one, apart) = (Cpus::one()?, Cpus::apart());
    let drivers = drivers();
    if asked_for("every") {
        return every_cell()
            .into_iter()
            .try_for_each(|cell| measure_cell(suite, "every ", cell, &one, &drivers));
    }
    for cell in along_the_axes() {
        measure_cell(suite, "", cell, &one, &drivers)?;
    }
    match apart {
        Ok(apart) => [1, 32].into_iter().try_for_each(|depth| {
            measure_cell(suite, "a CPU each, ", Cell { depth, ..USUAL }, &apart, &drivers)
        }),
        Err(reason) => {
            println!("skipped: a CPU each: {reason}");
            Ok(())
        }
    }
}

fn measure_cell(
    suite: &mut Suite,
    prefix: &str,
    Cell { depth, payload, fds }: Cell,
    cpus: &Cpus,
    drivers: &[DriverChoice],
) -> Result<(), Failure> {
    for (kind, clients) in [("session", &SESSION[..]), ("plain", &PLAIN)] {
        let usual = Options { way: clients[0].2, depth, payload, fds, ..Options::on(cpus) };
        let floor = usual.floor();
        let name = format!("{prefix}{kind}, {depth} deep, {payload} bytes, {fds} fds");
        let mut group = suite.group(&name, Throughput::Elements(depth as u64));
        group.floor(&floor.floor.to_string(), || Calls::raw(&floor));
        for (name, client, way) in clients {
            for driver in drivers {
                let options = Options { client: *client, way: *way, driver: *driver, ..usual.clone() };
                group.beside(&format!("{name}, {driver}"), move || Calls::of(&options));
            }
        }
        group.finish();
    }
    Ok(())
}

fn along_the_axes() -> Vec<Cell> {
    let many = Cell { depth: 32, ..USUAL };
    let mut cells: Vec<Cell> = DEPTHS.map(|depth| Cell { depth, ..USUAL }).into();
    for payload in PAYLOADS.into_iter().filter(|payload| *payload != USUAL.payload) {
        cells.extend([Cell { payload, ..USUAL }, Cell { payload, ..many }]);
    }
    cells.extend(FDS[1..].iter().map(|fds| Cell { fds: *fds, ..USUAL }));
    cells.push(Cell { fds: 1, ..many });
    cells
}

fn every_cell() -> Vec<Cell> {
    let mut cells = Vec::new();
    for depth in DEPTHS {
        for payload in PAYLOADS {
            cells.extend(FDS.map(|fds| Cell { depth, payload, fds }));
        }
    }
    cells
}
