//! What it costs to give another process 256 KiB to 64 MiB, and what that does to small calls meanwhile.
//!
//! As one large call or answer of a session, as sealed memory that is passed and mapped, beside bare packets
//! of 64 KiB and as large as our parts: two processes on one CPU. Then small calls on the very session on
//! which 64 MiB are under way, beside the round trips of a raw pair while the same load keeps the same CPU
//! busy; there it is the tail that counts, which has a table of its own.
//!
//! ```text
//! cargo bench --bench large
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use benches::subject::Served;
use benches::suite::{Subject, Suite, drivers, run};
use criterion::Throughput;
use perf::floor::packet_pair;
use perf::large::{Beside, LOAD, LOOKER, Mover, PACKET, PART, RAW_LOOKER, RawBeside, RawMover, UNSEEN, Way};
use perf::process::{Failure, Server, serve_if_asked};
use perf::{Cpus, Recorder};
use ring::{Config, DriverChoice, Reactor};

const SIZES: [(&str, usize); 5] = [
    ("256 KiB", 256 << 10),
    ("1 MiB", 1 << 20),
    ("4 MiB", 4 << 20),
    ("16 MiB", 16 << 20),
    ("64 MiB", 64 << 20),
];

fn main() {
    serve_if_asked();
    run("large", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    let cpus = Cpus::one()?;
    cpus.pin_client()?;
    let drivers = drivers();
    for (name, bytes) in SIZES {
        let mut group = suite.group(name, Throughput::Bytes(bytes as u64));
        group.floor("raw packets", || raw(bytes, PACKET, &cpus));
        group.beside("raw packets as large as parts", || raw(bytes, PART, &cpus));
        for driver in &drivers {
            for way in Way::ALL {
                let name = way.name();
                group.beside(&format!("{name}, async, {driver}"), || ours(way, bytes, *driver, &cpus));
                group.beside(&format!("{name}, blocking, {driver}"), || blocking(way, bytes, *driver, &cpus));
            }
        }
        group.finish();
    }
    for driver in drivers {
        small_calls(suite, driver, &cpus)?;
    }
    Ok(())
}

fn raw(bytes: usize, packet_bytes: usize, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let (client, far) = RawMover::new(bytes, packet_bytes)?;
    let server = Server::start(RAW_LOOKER, &packet_bytes.to_string(), DriverChoice::Auto, cpus, vec![far])?;
    Ok(Box::new(Served { client, server, call: RawMover::moves, end: drop }))
}

fn ours(way: Way, bytes: usize, driver: DriverChoice, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let (address, bound) = packet_pair()?;
    let server = Server::start(LOOKER, "", driver, cpus, vec![bound])?;
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let client = Mover::new(&reactor, address, way, bytes)?;
    Ok(Box::new(Served { client, server, call: Mover::moves, end: Mover::end }))
}

fn blocking(way: Way, bytes: usize, driver: DriverChoice, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let (address, bound) = packet_pair()?;
    let server = Server::start(LOOKER, "", driver, cpus, vec![bound])?;
    let client = Mover::blocking(address, way, bytes)?;
    Ok(Box::new(Served { client, server, call: Mover::moves, end: Mover::end }))
}

/// So many small calls are made at a time: during a call of 64 MiB there is time for many, and each large one
/// must be waited for.
const TOGETHER: u64 = 200;

/// What each small call took, for quantiles that criterion does not know.
type Taken = Rc<RefCell<Recorder>>;

fn small_calls(suite: &mut Suite, driver: DriverChoice, cpus: &Cpus) -> Result<(), Failure> {
    const BYTES: usize = 64 << 20;
    let name = format!("small calls during 64 MiB, {driver}");
    let [raw, ours] = [(); 2].map(|()| Taken::new(RefCell::new(Recorder::closed())));
    let mut group = suite.group(&name, Throughput::Elements(TOGETHER));
    group.floor("raw pair, same load", || raw_beside(BYTES, driver, cpus, &raw));
    group.beside("on the same session", || beside(BYTES, driver, cpus, &ours));
    if group.finish().is_empty() {
        return Ok(());
    }
    println!("{name:46} {:>9} {:>9} {:>9} {:>9} {:>9}", "calls", "p50 us", "p99 us", "p99.9 us", "max us");
    for (name, taken) in [("raw pair, same load", &raw), ("on the same session", &ours)] {
        let taken = taken.borrow();
        print!("{name:46} {:9}", taken.calls());
        for quantile in [0.5, 0.99, 0.999, 1.0] {
            print!(" {:9.1}", taken.quantile_ns(quantile) as f64 / 1e3);
        }
        println!();
    }
    let p99 = |taken: &Taken| taken.borrow().quantile_ns(0.99) as f64;
    if p99(&raw) > 0.0 {
        println!("{:46} {:29.2} x raw\n", "p99", p99(&ours) / p99(&raw));
    }
    Ok(())
}

/// A raw pair, and two processes that keep the CPU busy as the subject beside it does.
struct UnderLoad {
    client: RawBeside,
    taken: Taken,
    servers: Vec<Server>,
}

fn raw_beside(
    bytes: usize,
    driver: DriverChoice,
    cpus: &Cpus,
    taken: &Taken,
) -> Result<Box<dyn Subject>, Failure> {
    let (socket, echo) = packet_pair()?;
    let (address, bound) = packet_pair()?;
    let (control, far) = packet_pair()?;
    let servers = vec![
        Server::start(perf::serving::ECHO, "", driver, cpus, vec![echo])?,
        Server::start(LOAD, &bytes.to_string(), driver, cpus, vec![far, address])?,
        Server::start(LOOKER, UNSEEN, driver, cpus, vec![bound])?,
    ];
    let client = RawBeside::new(socket, control);
    Ok(Box::new(UnderLoad { client, taken: Rc::clone(taken), servers }))
}

impl Subject for UnderLoad {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        let UnderLoad { client, taken, servers } = self;
        let calls = client.calls(count * TOGETHER, |time| taken.borrow_mut().record(time, 1));
        calls.map_err(|error| servers.iter_mut().fold(error, |error, server| server.blame(error)))
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        drop(self.client);
        self.servers.into_iter().try_for_each(|server| Ok(server.end()?))
    }
}

/// A session that moves large calls and small ones.
struct OnOneSession {
    client: Beside,
    taken: Taken,
    server: Server,
}

fn beside(
    bytes: usize,
    driver: DriverChoice,
    cpus: &Cpus,
    taken: &Taken,
) -> Result<Box<dyn Subject>, Failure> {
    let (address, bound) = packet_pair()?;
    let mut server = Server::start(LOOKER, UNSEEN, driver, cpus, vec![bound])?;
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let client = Beside::new(&reactor, address, bytes).map_err(|error| server.blame(error))?;
    Ok(Box::new(OnOneSession { client, taken: Rc::clone(taken), server }))
}

impl Subject for OnOneSession {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        let OnOneSession { client, taken, server } = self;
        let calls = client.calls(count * TOGETHER, |time| taken.borrow_mut().record(time, 1));
        calls.map_err(|error| server.blame(error))
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        self.client.end();
        Ok(self.server.end()?)
    }
}
