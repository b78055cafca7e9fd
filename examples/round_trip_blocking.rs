//! What a call costs without a reactor, beside the bare system calls of the same run: 64 bytes each way, one
//! call at a time; and 32 at a time for sessions.
//!
//! Twice: both processes on one CPU, where everybody sleeps, and, where there are two CPUs, one for each.
//! There the client looks for a while before it sleeps, and so do the floor and the server: what is compared
//! is the price of waking nobody. The ways take turns in short rounds, so that whatever the machine does
//! meanwhile it does to all of them. It is a sketch to be repeated anywhere, not a benchmark suite.
//!
//! ```text
//! cargo run --release -p sendright-examples --example round_trip_blocking
//! cargo run --release -p sendright-examples --example round_trip_blocking calls session 1000
//! ```
//!
//! The second makes calls of one kind only (`session`, `deadline` or `plain`), for `strace -c` to count.

#[path = "measuring/floor.rs"]
mod floor;

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ring::{Config, Executor, Message, Reactor, WaitPolicy};
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::CpuSet;
use seqpacket::CallOptions;
use seqpacket::blocking::{Object, PlainObject};
use seqpacket::wire::{HEADER_BYTES, Header, Hello, Size, Windows};

use floor::{PAYLOAD, asleep, call_five_steps, call_raw, packet_pair, serve_five_steps, serve_raw};

type Failure = Box<dyn Error>;

/// Calls of one round, rounds of one way.
const CALLS: usize = 500;
const ROUNDS: usize = 40;
const DEPTH: usize = 32;

/// How a floor receives.
type Receive = fn(BorrowedFd<'_>, &mut [u8]) -> rustix::io::Result<usize>;

/// How both sides of a table wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Asleep,
    Looking,
}

impl Waits {
    fn policy(self) -> WaitPolicy {
        match self {
            Waits::Asleep => WaitPolicy::Sleep,
            Waits::Looking => WaitPolicy::spin(),
        }
    }

    fn receive(self) -> Receive {
        match self {
            Waits::Asleep => asleep,
            Waits::Looking => looking,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Waits::Asleep => "asleep",
            Waits::Looking => "looking",
        }
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => {
            println!("the servers' driver: {}", Reactor::new()?.driver());
            let cpus = allowed_cpus()?;
            measure(Waits::Asleep, &cpus, [cpus[0]; 2])?;
            match cpus.as_slice() {
                [first, second, ..] => measure(Waits::Looking, &cpus, [*first, *second]),
                _ => {
                    println!("skipped: there is one CPU only, where nobody looks");
                    Ok(())
                }
            }
        }
        ["calls", kind, count] => call_only(kind, count.parse()?),
        [role, waits, cpu] => {
            let waits = if *waits == "looking" { Waits::Looking } else { Waits::Asleep };
            // CPUs are counted when the reactor is made, and so before it is told to keep to one.
            let config = Config { wait: waits.policy(), ..Config::default() };
            let reactor = Reactor::with_config(config)?;
            pin_to(&[cpu.parse()?])?;
            serve(role, waits, &reactor, ring::inherit::take(3)?)
        }
        _ => Err("usage: round_trip_blocking [calls session|deadline|plain COUNT]".into()),
    }
}

fn measure(waits: Waits, allowed: &[usize], [here, there]: [usize; 2]) -> Result<(), Failure> {
    let (raw, raw_server) = start("raw", waits, there)?;
    let (five, five_server) = start("five-steps", waits, there)?;
    let (object, object_server) = start("object", waits, there)?;
    let (plain, plain_server) = start("plain", waits, there)?;
    let (bare, bare_server) = start("frames", waits, there)?;
    let bare = Object::from_fd(bare)?;
    bare.set_wait_policy(waits.policy());
    let (object, plain) = (Object::from_fd(object)?, PlainObject::from_fd(plain)?);
    object.set_wait_policy(waits.policy());
    plain.set_wait_policy(waits.policy());
    pin_to(&[here])?;
    object.attach()?;
    bare.attach()?;

    let within = CallOptions { within: Some(Duration::from_secs(10)), ..CallOptions::default() };
    let many = [PAYLOAD; DEPTH];
    let names = [
        "raw ping-pong",
        "raw five steps",
        "session call",
        "… with a deadline",
        "plain call",
        "session call, 32",
        "session, bare server",
    ];
    let mut rows = names.map(|name| (name, Histogram::<u64>::new(3).expect("three digits are allowed")));
    for _ in 0..ROUNDS {
        record(&mut rows[0].1, 1, || Ok(call_raw(raw.as_fd(), waits.receive())?))?;
        record(&mut rows[1].1, 1, || Ok(call_five_steps(five.as_fd(), waits.receive())?))?;
        record(&mut rows[2].1, 1, || Ok(object.call(&PAYLOAD).map(drop)?))?;
        record(&mut rows[3].1, 1, || Ok(object.call_with(&PAYLOAD, within).map(drop)?))?;
        record(&mut rows[4].1, 1, || Ok(plain.call(&PAYLOAD).map(drop)?))?;
        record(&mut rows[5].1, DEPTH as u64, || {
            object.call_many(&many).into_iter().try_for_each(|answer| Ok(answer.map(drop)?))
        })?;
        record(&mut rows[6].1, 1, || Ok(bare.call(&PAYLOAD).map(drop)?))?;
    }

    let cpus = if here == there { "one CPU" } else { "a CPU each" };
    println!("64 bytes, {cpus}, {}", waits.name());
    println!("{:24} {:>8} {:>8} {:>8} {:>14}", "", "p50 µs", "p99 µs", "p99.9 µs", "× raw ping-pong");
    let floor = rows[0].1.value_at_quantile(0.5) as f64;
    for (name, histogram) in &rows {
        let [p50, p99, p999] =
            [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile) as f64);
        println!("{name:24} {:8.2} {:8.2} {:8.2} {:14.2}", p50 / 1e3, p99 / 1e3, p999 / 1e3, p50 / floor);
    }
    drop((raw, five, object, plain, bare));
    for mut server in [raw_server, five_server, object_server, plain_server, bare_server] {
        if !server.wait()?.success() {
            return Err("a server did not end well".into());
        }
    }
    pin_to(allowed)
}

/// Calls and nothing else.
fn call_only(kind: &str, count: usize) -> Result<(), Failure> {
    let cpu = allowed_cpus()?[0];
    let within = CallOptions { within: Some(Duration::from_secs(10)), ..CallOptions::default() };
    let (fd, mut server) = start(if kind == "plain" { "plain" } else { "object" }, Waits::Asleep, cpu)?;
    match kind {
        "session" => {
            let object = Object::from_fd(fd)?;
            (0..count).try_for_each(|_| object.call(&PAYLOAD).map(drop))?;
        }
        "deadline" => {
            let object = Object::from_fd(fd)?;
            (0..count).try_for_each(|_| object.call_with(&PAYLOAD, within).map(drop))?;
        }
        "plain" => {
            let object = PlainObject::from_fd(fd)?;
            (0..count).try_for_each(|_| object.call(&PAYLOAD).map(drop))?;
        }
        _ => return Err("calls of which kind: session, deadline or plain?".into()),
    }
    println!("{count} calls answered");
    if server.wait()?.success() { Ok(()) } else { Err("the server did not end well".into()) }
}

fn record(
    histogram: &mut Histogram<u64>,
    per: u64,
    mut call: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for _ in 0..CALLS / per as usize {
        let start = Instant::now();
        call()?;
        histogram.record(start.elapsed().as_nanos() as u64 / per)?;
    }
    Ok(())
}

/// Starts this program once more with the far end of a pair.
fn start(role: &str, waits: Waits, cpu: usize) -> Result<(OwnedFd, Child), Failure> {
    let (near, far) = packet_pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([role, waits.name(), &cpu.to_string()]);
    ring::inherit::give(&mut command, vec![(far, 3)]);
    Ok((near, command.spawn()?))
}

fn allowed_cpus() -> Result<Vec<usize>, Failure> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    if cpus.is_empty() { Err("no CPU to run on".into()) } else { Ok(cpus) }
}

fn pin_to(cpus: &[usize]) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

// -- the floors: nothing but system calls ------------------------------------------------------------------

/// Receives without sleeping for a while. Who looked on for ever in the server of one way would keep the CPU
/// from those of the others.
fn looking(socket: BorrowedFd<'_>, into: &mut [u8]) -> rustix::io::Result<usize> {
    let start = Instant::now();
    while start.elapsed() < ring::SPIN_DEFAULT {
        match rustix::net::recv(socket, &mut *into, RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN) => std::hint::spin_loop(),
            result => return result.map(|(length, _)| length),
        }
    }
    asleep(socket, into)
}

// -- the servers -------------------------------------------------------------------------------------------

fn serve(role: &str, waits: Waits, reactor: &Reactor, fd: OwnedFd) -> Result<(), Failure> {
    match role {
        "raw" => Ok(serve_raw(fd, waits.receive())?),
        "five-steps" => Ok(serve_five_steps(fd)?),
        "object" => serve_object(reactor, fd),
        "plain" => serve_plain(reactor, fd),
        "frames" => serve_frames(fd, waits.receive()),
        _ => Err("no such server".into()),
    }
}

fn serve_object(reactor: &Reactor, mailbox: OwnedFd) -> Result<(), Failure> {
    let mailbox = seqpacket::Mailbox::from_fd(reactor, mailbox)?;
    Executor::new(reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}

/// Sessions served by nothing but system calls, one call at a time: what is left above the floor is what the
/// client adds.
fn serve_frames(bound: OwnedFd, receive: Receive) -> Result<(), Failure> {
    let mut connect = [0; 1];
    let (_, session) = floor::receive_with(bound.as_fd(), &mut connect)?.ok_or("nobody has connected")?;
    let hello = Hello {
        windows: Windows::default(),
        call_descriptors_max: 0,
        packet_bytes_max: 65_536,
        message_bytes_max: 65_520,
    };
    rustix::net::send(&session, &hello.frame(), SendFlags::NOSIGNAL)?;
    let mut message = [0; HEADER_BYTES + 128];
    loop {
        let length = receive(session.as_fd(), &mut message)?;
        let Some((header, _)) = message[..length].split_first_chunk::<HEADER_BYTES>() else { return Ok(()) };
        let number = Header::parse(header)?.number;
        let answer = Header::answer_to(number, Size::of_bytes(length - HEADER_BYTES)?).encode();
        message[..HEADER_BYTES].copy_from_slice(&answer);
        rustix::net::send(&session, &message[..length], SendFlags::NOSIGNAL)?;
    }
}

fn serve_plain(reactor: &Reactor, mailbox: OwnedFd) -> Result<(), Failure> {
    let mailbox = seqpacket::PlainMailbox::from_fd(reactor, mailbox)?;
    Executor::new(reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}
