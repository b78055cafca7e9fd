//! Connecting, accepting and closing both ends, by each of the three ways and with a confirmation: ours
//! beside the same by bare system calls.
//!
//! Two processes on one CPU. The ratios of both groups are to `socket`, `connect`, `accept` and `close`: what
//! everybody else does. One at a time the client waits for the acceptor after each connection; 32 deep it
//! connects 32 times and then waits.
//!
//! ```text
//! cargo bench --bench connect
//! ```

use std::os::fd::OwnedFd;

use benches::subject::Served;
use benches::suite::{Subject, Suite, drivers, run, timed};
use criterion::Throughput;
use perf::Cpus;
use perf::connect::{ACCEPTOR, Client, Manner, RAW_ACCEPTOR, RawClient, Way, ends, told, told_raw};
use perf::process::{Failure, Server, serve_if_asked};
use ring::{Config, DriverChoice, Reactor};

fn main() {
    serve_if_asked();
    run("connect", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    let cpus = Cpus::one()?;
    cpus.pin_client()?;
    let drivers = drivers();
    for (name, depth) in [("one at a time", 1), ("32 deep", 32)] {
        let mut group = suite.group(name, Throughput::Elements(depth as u64));
        group.floor("raw stream", || raw(Way::Stream, depth, Manner::Trusting, &cpus));
        for way in [Way::Replacement, Way::Confirmed, Way::Datagram] {
            group.beside(&format!("raw {}", way.name()), || raw(way, depth, Manner::Trusting, &cpus));
        }
        for way in [Way::Replacement, Way::Confirmed] {
            let name = format!("raw {}, everything asked", way.name());
            group.beside(&name, || raw(way, depth, Manner::Asking, &cpus));
        }
        for driver in &drivers {
            for way in Way::ALL {
                group.beside(&format!("{}, {driver}", way.name()), || ours(way, depth, *driver, &cpus));
            }
        }
        group.finish();
    }
    Ok(())
}

fn raw(way: Way, depth: usize, manner: Manner, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let (client, descriptors) = RawClient::new(way, depth, manner)?;
    let told = told_raw(way, depth, manner);
    let server = Server::start(RAW_ACCEPTOR, &told, DriverChoice::Auto, cpus, descriptors)?;
    Ok(Box::new(Served {
        client,
        server,
        call: |client, count| timed(1, || client.batches(count)),
        end: RawClient::end,
    }))
}

fn ours(way: Way, depth: usize, driver: DriverChoice, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
    let (here, there): (Vec<OwnedFd>, Vec<OwnedFd>) = ends(way)?;
    let mut server = Server::start(ACCEPTOR, &told(way, depth), driver, cpus, there)?;
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let client = Client::new(&reactor, way, depth, here).map_err(|error| server.blame(error))?;
    Ok(Box::new(Served {
        client,
        server,
        call: |client, count| timed(1, || client.batches(count)),
        end: Client::end,
    }))
}
