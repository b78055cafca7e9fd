//! What the kernel alone takes: the bare system calls beside which everything else is put.
//!
//! Two processes on one CPU, sleeping; where there are two CPUs, once more with one each, where both look
//! before they sleep. The ratios in the tables are to the first row of their group, the ping-pong: they say
//! what each thing on the way to a call costs that is not the library's.
//!
//! ```text
//! cargo bench --bench floor
//! ```

use benches::subject::Calls;
use benches::suite::{Group, Suite, run};
use criterion::Throughput;
use perf::process::Failure;
use perf::{Cpus, Floor, FloorOptions};

fn main() {
    perf::serve_if_asked();
    run("floor", measure);
}

fn measure(suite: &mut Suite) -> Result<(), Failure> {
    // Both before the first measurement, which keeps this process to one CPU.
    let (cpus, apart) = (Cpus::one()?, Cpus::apart());
    one_at_a_time(suite.group("one CPU", Throughput::Elements(1)), &cpus);
    descriptors(suite.group("one CPU, descriptors", Throughput::Elements(1)), &cpus);
    many(suite.group("one CPU, 32 deep", Throughput::Elements(32)), &cpus);
    {
        let mut group = suite.group("one CPU, a descriptor in flight elsewhere", Throughput::Elements(1));
        group.floor("ping-pong", || Calls::raw(&FloorOptions::on(Floor::PingPong, &cpus)));
        // Whoever closes a socket has the kernel look for circles, as long as this is there.
        let parked = perf::floor::park_one_in_flight()?;
        for (name, floor) in [("five steps", Floor::FiveSteps), ("returned", Floor::Returned)] {
            group.beside(name, || Calls::raw(&FloorOptions::on(floor, &cpus)));
        }
        group.finish();
        drop(parked);
    }
    match apart {
        Ok(cpus) => {
            one_at_a_time(suite.group("a CPU each", Throughput::Elements(1)), &cpus);
            many(suite.group("a CPU each, 32 deep", Throughput::Elements(32)), &cpus);
        }
        Err(reason) => println!("skipped: a CPU each: {reason}"),
    }
    Ok(())
}

fn one_at_a_time<'a>(mut group: Group<'a>, cpus: &'a Cpus) {
    group.floor("ping-pong", || Calls::raw(&FloorOptions::on(Floor::PingPong, cpus)));
    for (name, floor) in [("five steps", Floor::FiveSteps), ("returned", Floor::Returned)] {
        group.beside(name, move || Calls::raw(&FloorOptions::on(floor, cpus)));
    }
    for payload in [1024, 4096, 16_384, 65_536] {
        let options = FloorOptions { payload, ..FloorOptions::on(Floor::PingPong, cpus) };
        group.beside(&format!("ping-pong, {payload} bytes"), move || Calls::raw(&options));
    }
    group.finish();
}

fn descriptors<'a>(mut group: Group<'a>, cpus: &'a Cpus) {
    group.floor("ping-pong", || Calls::raw(&FloorOptions::on(Floor::PingPong, cpus)));
    for fds in [1, 4, 8, 16] {
        let options = FloorOptions { fds, ..FloorOptions::on(Floor::PingPong, cpus) };
        group.beside(&format!("{fds} each way"), move || Calls::raw(&options));
    }
    group.finish();
}

fn many<'a>(mut group: Group<'a>, cpus: &'a Cpus) {
    let deep = |floor| FloorOptions { depth: 32, ..FloorOptions::on(floor, cpus) };
    group.floor("packets", move || Calls::raw(&deep(Floor::PingPong)));
    group.beside("coalesced", move || Calls::raw(&deep(Floor::Coalesced)));
    group.beside("five steps", move || Calls::raw(&deep(Floor::FiveSteps)));
    group.beside("returned", move || Calls::raw(&deep(Floor::Returned)));
    group.finish();
}
