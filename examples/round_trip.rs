//! What a call costs, beside what the bare system calls cost in the same run: the table in the README.
//!
//! Two processes on one CPU, sleeping, 64 bytes each way, one call at a time; and 32 at a time for sessions.
//! The ways take turns in short rounds, so that whatever the machine does meanwhile it does to all of them.
//! It is a sketch to be repeated anywhere, not a benchmark suite.
//!
//! ```text
//! cargo run --release -p sendright-examples --example round_trip
//! cargo run --release -p sendright-examples --example round_trip pairs
//! ```
//!
//! With `pairs` it is another table: what each way to come by a continuation pair makes of a plain call, on
//! each driver, and once more while a descriptor of somebody else is in flight, when the kernel looks for
//! garbage whenever a socket is closed. With `pairs WAY [CALLS]` it makes calls of one way only, 1,000 unless
//! told otherwise, for `strace -c -f` to count: `raw`, `fresh`, `ahead` or `returned`.

#[path = "measuring/floor.rs"]
mod floor;

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Instant;

use hdrhistogram::Histogram;
use ring::{Config, DRIVER_VARIABLE, DriverChoice, Executor, Message, Reactor};
use rustix::thread::CpuSet;

use floor::{
    PAYLOAD, asleep, call_five_steps, call_raw, packet_pair, receive_with, send_with, serve_five_steps,
    serve_raw,
};

type Failure = Box<dyn Error>;

/// Calls of one round, rounds of one way.
const CALLS: usize = 500;
const ROUNDS: usize = 40;
const DEPTH: usize = 32;

fn main() -> Result<(), Failure> {
    pin_to_one_cpu()?;
    match std::env::args().nth(1).as_deref() {
        Some("raw") => Ok(serve_raw(ring::inherit::take(3)?, asleep)?),
        Some("five-steps") => Ok(serve_five_steps(ring::inherit::take(3)?)?),
        Some("object") => serve_object(ring::inherit::take(3)?),
        Some("plain") => serve_plain(ring::inherit::take(3)?, Continuations::Close),
        Some("raw-returned") => serve_raw_returned(ring::inherit::take(3)?),
        Some("plain-returned") => serve_plain(ring::inherit::take(3)?, Continuations::Return),
        Some("pairs") => measure_pairs(),
        None => measure(),
        Some(_) => Err("usage: round_trip [pairs [raw|fresh|ahead|returned [CALLS]]]".into()),
    }
}

fn measure() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let (raw, mut raw_server) = start("raw")?;
    let (five, mut five_server) = start("five-steps")?;
    let (object, mut object_server) = start("object")?;
    let (plain, mut plain_server) = start("plain")?;
    let (home, mut home_server) = start("plain-returned")?;
    let object = seqpacket::Object::from_fd(&reactor, object)?;
    let plain = seqpacket::PlainObject::from_fd(&reactor, plain)?;
    let home = seqpacket::PlainObject::from_fd(&reactor, home)?
        .with_returned_pairs(seqpacket::ReturnTrust::FirstToAnswer);
    executor.block_on(object.attach())?;

    let ways = [
        "raw ping-pong",
        "raw five steps",
        "session call",
        "plain call",
        "session call, 32 deep",
        "plain call, returned",
    ];
    let mut rows = ways.map(|name| (name, histogram()));
    for _ in 0..ROUNDS {
        record(&mut rows[0].1, 1, || Ok(call_raw(raw.as_fd(), asleep)?))?;
        record(&mut rows[1].1, 1, || Ok(call_five_steps(five.as_fd(), asleep)?))?;
        // One `block_on` for a whole round: how a program that lives on the reactor spends its time.
        executor.block_on(async {
            for _ in 0..CALLS {
                let start = Instant::now();
                object.call(&PAYLOAD).await?;
                rows[2].1.record(nanoseconds(start))?;
            }
            for _ in 0..CALLS {
                let start = Instant::now();
                plain.call(&PAYLOAD).await?;
                rows[3].1.record(nanoseconds(start))?;
            }
            for _ in 0..CALLS / DEPTH {
                let start = Instant::now();
                let calls: Vec<_> = (0..DEPTH).map(|_| object.call(&PAYLOAD)).collect();
                for call in calls {
                    call.await?;
                }
                rows[4].1.record(nanoseconds(start) / DEPTH as u64)?;
            }
            for _ in 0..CALLS {
                let start = Instant::now();
                home.call(&PAYLOAD).await?;
                rows[5].1.record(nanoseconds(start))?;
            }
            Ok::<(), Failure>(())
        })?;
    }

    println!("driver {}", reactor.driver());
    println!(
        "{:24} {:>8} {:>8} {:>8} {:>14}",
        "64 bytes, one CPU", "p50 µs", "p99 µs", "p99.9 µs", "× raw ping-pong"
    );
    let floor = rows[0].1.value_at_quantile(0.5) as f64;
    for (name, histogram) in &rows {
        let [p50, p99, p999] =
            [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile) as f64);
        println!("{name:24} {:8.2} {:8.2} {:8.2} {:14.2}", p50 / 1e3, p99 / 1e3, p999 / 1e3, p50 / floor);
    }
    drop((raw, five, object, plain, home));
    // The objects' descriptors close in the next turn at the latest.
    executor.settle();
    let servers =
        [&mut raw_server, &mut five_server, &mut object_server, &mut plain_server, &mut home_server];
    for server in servers {
        if !server.wait()?.success() {
            return Err("a server did not end well".into());
        }
    }
    Ok(())
}

fn record(
    histogram: &mut Histogram<u64>,
    per: u64,
    mut call: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for _ in 0..CALLS {
        let start = Instant::now();
        call()?;
        histogram.record(nanoseconds(start) / per)?;
    }
    Ok(())
}

fn nanoseconds(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}

/// Starts this program once more with the far end of a pair.
fn start(role: &str) -> Result<(OwnedFd, Child), Failure> {
    start_on(None, role)
}

/// On a certain driver.
fn start_on(driver: Option<DriverChoice>, role: &str) -> Result<(OwnedFd, Child), Failure> {
    let (near, far) = packet_pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    if let Some(driver) = driver {
        command.env(DRIVER_VARIABLE, driver.to_string());
    }
    ring::inherit::give(&mut command, vec![(far, 3)]);
    Ok((near, command.spawn()?))
}

fn pin_to_one_cpu() -> Result<(), Failure> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).ok_or("no CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(first);
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

// -- the floors: nothing but system calls ------------------------------------------------------------------

// -- ours --------------------------------------------------------------------------------------------------

fn serve_object(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = seqpacket::Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}

/// What becomes of a continuation when its call is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Continuations {
    Close,
    Return,
}

fn serve_plain(mailbox: OwnedFd, continuations: Continuations) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = seqpacket::PlainMailbox::from_fd(&reactor, mailbox)?;
    if continuations == Continuations::Return {
        mailbox.return_continuations();
    }
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}

// -- continuation pairs ------------------------------------------------------------------------------------

/// One way to call a plain object on one driver: a caller, its server, and what it took.
struct Way {
    name: String,
    executor: Executor,
    object: seqpacket::PlainObject,
    server: Child,
    histogram: Histogram<u64>,
}

/// How a plain object comes by its pairs.
const WAYS: [&str; 3] = ["fresh", "ahead", "returned"];

impl Way {
    fn start(driver: DriverChoice, way: &str) -> Result<Way, Failure> {
        let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
        let role = if way == "returned" { "plain-returned" } else { "plain" };
        let chosen = (driver != DriverChoice::Auto).then_some(driver);
        let (object, server) = start_on(chosen, role)?;
        let ahead = if way == "fresh" { 0 } else { seqpacket::PAIRS_DEFAULT };
        let pairs = seqpacket::Pairs::new(&reactor, ahead);
        let mut object = seqpacket::PlainObject::from_fd_with(&pairs, &reactor, object)?;
        if way == "returned" {
            object = object.with_returned_pairs(seqpacket::ReturnTrust::FirstToAnswer);
        }
        let name = format!("{way}, {}", reactor.driver().kind());
        Ok(Way { name, executor: Executor::new(&reactor), object, server, histogram: histogram() })
    }

    fn call(&mut self, calls: usize) -> Result<(), Failure> {
        let Way { executor, object, histogram, .. } = self;
        executor.block_on(async {
            for _ in 0..calls {
                let start = Instant::now();
                object.call(&PAYLOAD).await?;
                histogram.record(nanoseconds(start))?;
            }
            Ok(())
        })
    }

    fn end(self) -> Result<(), Failure> {
        let Way { executor, object, mut server, .. } = self;
        drop(object);
        executor.settle();
        if server.wait()?.success() { Ok(()) } else { Err("a server did not end well".into()) }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

fn measure_pairs() -> Result<(), Failure> {
    // Both drivers, unless somebody wants one.
    let drivers = match std::env::var_os(DRIVER_VARIABLE) {
        Some(_) => vec![DriverChoice::Auto],
        None => vec![DriverChoice::Uring, DriverChoice::Epoll],
    };
    if let Some(way) = std::env::args().nth(2) {
        let calls = std::env::args().nth(3).map_or(Ok(1_000), |calls| calls.parse())?;
        return only(drivers[0], &way, calls);
    }
    for driver in &drivers {
        println!(
            "driver {}",
            Reactor::with_config(Config { driver: *driver, ..Config::default() })?.driver()
        );
    }
    table("pairs of a plain call", &drivers)?;
    // In nobody's way, and never read.
    let (near, far) = packet_pair()?;
    send_with(near.as_fd(), b"parked", near.as_fd())?;
    table("… a descriptor in flight", &drivers)?;
    drop(far);
    Ok(())
}

fn table(title: &str, drivers: &[DriverChoice]) -> Result<(), Failure> {
    let (five, mut five_server) = start("five-steps")?;
    let (home, mut home_server) = start("raw-returned")?;
    let mut floors = ["raw five steps", "raw returned"].map(|name| (name, histogram()));
    let (near, mut far) = packet_pair()?;
    let mut ways = Vec::new();
    for driver in drivers {
        for way in WAYS {
            ways.push(Way::start(*driver, way)?);
        }
    }
    for _ in 0..ROUNDS {
        record(&mut floors[0].1, 1, || Ok(call_five_steps(five.as_fd(), asleep)?))?;
        for _ in 0..CALLS {
            let start = Instant::now();
            far = call_raw_returned(home.as_fd(), near.as_fd(), far)?;
            floors[1].1.record(nanoseconds(start))?;
        }
        for way in &mut ways {
            way.call(CALLS)?;
        }
    }
    println!("{title:24} {:>8} {:>8} {:>8} {:>16}", "p50 µs", "p99 µs", "p99.9 µs", "× raw five steps");
    let floor = floors[0].1.value_at_quantile(0.5) as f64;
    let rows = floors.iter().map(|(name, histogram)| (*name, histogram));
    for (name, histogram) in rows.chain(ways.iter().map(|way| (way.name.as_str(), &way.histogram))) {
        let [p50, p99, p999] =
            [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile) as f64);
        println!("{name:24} {:8.2} {:8.2} {:8.2} {:16.2}", p50 / 1e3, p99 / 1e3, p999 / 1e3, p50 / floor);
    }
    drop((five, home, near, far));
    for way in ways {
        way.end()?;
    }
    for server in [&mut five_server, &mut home_server] {
        if !server.wait()?.success() {
            return Err("a server did not end well".into());
        }
    }
    Ok(())
}

/// One way alone, to be counted by `strace -c -f`.
fn only(driver: DriverChoice, way: &str, calls: usize) -> Result<(), Failure> {
    if way == "raw" {
        let (five, mut server) = start("five-steps")?;
        for _ in 0..calls {
            call_five_steps(five.as_fd(), asleep)?;
        }
        drop(five);
        server.wait()?;
        return Ok(());
    }
    let way = WAYS.into_iter().find(|known| *known == way).ok_or("raw, fresh, ahead or returned")?;
    let mut way = Way::start(driver, way)?;
    way.call(calls)?;
    println!("{}: {calls} calls", way.name);
    way.end()
}

/// Send with the far end, close it, receive with the far end.
fn call_raw_returned(object: BorrowedFd<'_>, near: BorrowedFd<'_>, far: OwnedFd) -> Result<OwnedFd, Failure> {
    send_with(object, &PAYLOAD, far.as_fd())?;
    drop(far);
    let mut answer = [0; 128];
    let (_, far) = receive_with(near, &mut answer)?.ok_or("the far end did not come home")?;
    Ok(far)
}

fn serve_raw_returned(mailbox: OwnedFd) -> Result<(), Failure> {
    let mut message = [0; 128];
    while let Some((length, continuation)) = receive_with(mailbox.as_fd(), &mut message)? {
        send_with(continuation.as_fd(), &message[..length], continuation.as_fd())?;
    }
    Ok(())
}
