//! The comparison that the SEQPACKET page left open: what does one socket for each object cost, beside one
//! stream for everything, which was Plash's way?
//!
//! The same echo and the same file open by Plash's own protocol, by sessions and by plain calls, beside bare
//! packets that bring the same: two processes on one CPU. Plash's caller waits where it calls, so the fair
//! comparison is with the blocking clients; the others are there to be seen. An open that asks nobody is
//! beside them, too.
//!
//! ```text
//! cargo bench --bench plash
//! ```

use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use benches::service::{Client, Protocol, Request, serve};
use benches::subject::Served;
use benches::suite::{Subject, Suite, drivers, run, timed};
use criterion::Throughput;
use perf::Cpus;
use perf::process::{Failure, Part, Server, serve_if_asked_as};
use ring::{Config, DriverChoice, Reactor};

const PARTS: [Part; 1] = [("service", serve)];

fn main() {
    serve_if_asked_as(&PARTS);
    run("plash", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    let cpus = Cpus::one()?;
    cpus.pin_client()?;
    let drivers = drivers();
    // A file that is there, wherever this runs.
    let path = std::env::current_exe()?.into_os_string().into_vec();
    for (name, request, each) in [
        ("echo", Request::Echo(1), 1),
        ("echo, 32 deep", Request::Echo(32), 32),
        ("open", Request::Open(path.clone()), 1),
    ] {
        let mut group = suite.group(name, Throughput::Elements(each));
        let start = |protocol, driver| client(protocol, driver, request.clone(), &cpus);
        group.floor("raw", || start(Protocol::Raw, DriverChoice::Auto));
        if let Request::Open(path) = &request {
            group.beside("asking nobody", || Ok(Box::new(Local { path: path.clone() })));
        }
        group.beside("plash", || start(Protocol::Plash, DriverChoice::Auto));
        for protocol in Protocol::ALL.into_iter().filter(|protocol| protocol.has_reactor()) {
            for driver in &drivers {
                group.beside(&format!("{}, {driver}", protocol.name()), || start(protocol, *driver));
            }
        }
        group.finish();
    }
    Ok(())
}

fn client(
    protocol: Protocol,
    driver: DriverChoice,
    request: Request,
    cpus: &Cpus,
) -> Result<Box<dyn Subject>, Failure> {
    let (near, far) = protocol.ends()?;
    let server = Server::start("service", protocol.name(), driver, cpus, vec![far])?;
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let client = Client::new(&reactor, protocol, near, request)?;
    Ok(Box::new(Served { client, server, call: Client::requests, end: Client::end }))
}

/// Opens the file itself.
struct Local {
    path: Vec<u8>,
}

impl Subject for Local {
    fn calls(&mut self, count: u64) -> Result<Duration, Failure> {
        timed(count, || Ok(benches::open_for_reading(&self.path).map(drop)?))
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}
