//! Whether a call among 10,000 objects costs what a call to the only one does, and what memory they take
//! while nobody calls.
//!
//! 1 to 10,000 objects of one server process, and 1 to 1,000 sessions of one object, called in turn and
//! always the same. Two processes on one CPU, beside a raw ping-pong. At the end, what an idle object and an
//! idle session take of memory on either side (a client and a server that do nothing else, before and after).
//! Descriptors are asked for up to what this process may have. Where they do not suffice for all, fewer are
//! attached, and where they do not suffice for holding them, that is skipped: both are said.
//!
//! ```text
//! cargo bench --bench scale
//! cargo bench --bench scale -- memory
//! ```

use benches::subject::{Calls, Served};
use benches::suite::{Subject, Suite, drivers, is_wanted, run};
use criterion::Throughput;
use perf::floor::packet_pair;
use perf::process::{Failure, Server, descriptors_allowed, serve_if_asked};
use perf::scale::{Called, Control, Holder, Kind, MANY, Memory, SCALES, attachable, descriptors_needed};
use perf::{Cpus, Floor, FloorOptions};
use ring::{Config, DriverChoice, Reactor};

const OBJECTS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const SESSIONS: [usize; 4] = [1, 10, 100, 1_000];

fn main() {
    serve_if_asked();
    run("scale", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    let cpus = Cpus::one()?;
    cpus.pin_client()?;
    let allowed = descriptors_allowed(descriptors_needed(OBJECTS[OBJECTS.len() - 1]));
    for driver in drivers() {
        let kinds = [(Kind::Objects, &OBJECTS[..]), (Kind::Sessions, &SESSIONS)];
        for (kind, counts) in kinds {
            let name = format!("{}, {driver}", kind.name());
            let mut group = suite.group(&name, Throughput::Elements(1));
            group.floor("raw ping-pong", || Calls::raw(&FloorOptions::on(Floor::PingPong, &cpus)));
            for count in counts.iter().copied() {
                let Some(attached) = attachable(count, allowed) else {
                    println!("skipped: {count} {name}: only {allowed} descriptors are allowed");
                    continue;
                };
                let all = match attached == count {
                    true => format!("{count} {}", kind.name()),
                    false => format!("{count} {} ({attached} attached)", kind.name()),
                };
                let many = Many { kind, count, attached };
                for (called, name) in [(Called::Each, "in turn"), (Called::One, "the same")] {
                    group.beside(&format!("{all}, {name}"), || many.hold(called, driver, &cpus));
                }
            }
            group.finish();
        }
        memory(driver, allowed, &cpus)?;
    }
    Ok(())
}

/// What there are many of.
#[derive(Clone, Copy)]
struct Many {
    kind: Kind,
    count: usize,
    attached: usize,
}

impl Many {
    fn hold(self, called: Called, driver: DriverChoice, cpus: &Cpus) -> Result<Box<dyn Subject>, Failure> {
        let (control, far) = Control::new()?;
        let mut server = Server::start(MANY, "", driver, cpus, vec![far])?;
        let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
        let mut client =
            Holder::new(&reactor, control, self.kind, self.count).map_err(|error| server.blame(error))?;
        client.attach(self.attached).map_err(|error| server.blame(error))?;
        let call = match called {
            Called::One => |holder: &mut Holder, count| holder.calls(Called::One, count),
            Called::Each => |holder: &mut Holder, count| holder.calls(Called::Each, count),
        };
        Ok(Box::new(Served { client, server, call, end: Holder::end }))
    }
}

fn memory(driver: DriverChoice, allowed: u64, cpus: &Cpus) -> Result<(), Failure> {
    let name = format!("memory, {driver}");
    if !is_wanted(&format!("scale/{name}")) {
        return Ok(());
    }
    println!(
        "{:30} {:>10} {:>10} {:>10} {:>10}",
        "scale/memory, bytes for each", "held:", "", "attached:", ""
    );
    println!("{driver:30} {:>10} {:>10} {:>10} {:>10}", "client", "server", "client", "server");
    for (kind, counts) in [(Kind::Objects, &OBJECTS[3..]), (Kind::Sessions, &SESSIONS[3..])] {
        for count in counts {
            // As many as can all be attached.
            let count = (*count).min((allowed.saturating_sub(descriptors_needed(0)) / 2) as usize).max(1);
            let (wire, far) = packet_pair()?;
            let (near, report) = packet_pair()?;
            let mut server = Server::start(MANY, "", driver, cpus, vec![far])?;
            let told = format!("{} {count}", kind.name());
            let mut scales = Server::start(SCALES, &told, driver, cpus, vec![wire, report])?;
            let memory = Memory::reported(&near).map_err(|error| scales.blame(server.blame(error)))?;
            scales.end()?;
            server.end()?;
            let Memory { idle_here, idle_there, attached_here, attached_there } = memory;
            print!("{:30}", format!("{count} {}", kind.name()));
            for bytes in [idle_here, idle_there, attached_here, attached_there] {
                print!(" {:10}", bytes / count as u64);
            }
            println!();
        }
    }
    println!();
    Ok(())
}
