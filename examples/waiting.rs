//! What waiting costs: a call on a session, one at a time, for each way to wait for its answer.
//!
//! Asleep in the reactor; looking for a short while first (on both sides); as a guest of a plain epoll loop;
//! as a guest of tokio. Two processes, on whatever CPUs the machine gives them: being woken on another one is
//! what looking first is for. It is a sketch to be repeated anywhere, not a benchmark suite.
//!
//! ```text
//! cargo run --release -p sendright-examples --example waiting
//! cargo run --release -p sendright-examples --example waiting epoll 1000
//! ```
//!
//! With a way (`sleep`, `spin`, `epoll`, `tokio`) and a number of calls it makes these and says nothing, for
//! `strace -c -f` to count.

use std::cell::Cell;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Instant;

use hdrhistogram::Histogram;
use ring::{Config, Executor, Guest, Message, Reactor, WaitPolicy};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use seqpacket::{Mailbox, Object};

type Failure = Box<dyn Error>;

/// Calls of one round, rounds of one way.
const CALLS: usize = 500;
const ROUNDS: usize = 40;
const PAYLOAD: [u8; 64] = [7; 64];
const WAYS: [&str; 4] = ["sleep", "spin", "epoll", "tokio"];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure(),
        ["serve", policy] => serve(policy_of(policy), ring::inherit::take(3)?),
        [way] => Way::start(way)?.only(1_000),
        [way, calls] => Way::start(way)?.only(calls.parse()?),
        _ => Err("a way and a number of calls, or nothing".into()),
    }
}

fn measure() -> Result<(), Failure> {
    let mut ways = WAYS.map(Way::start).into_iter().collect::<Result<Vec<_>, _>>()?;
    // They take turns in short rounds, so that whatever the machine does meanwhile it does to all of them.
    for _ in 0..ROUNDS {
        for way in &mut ways {
            way.call(CALLS)?;
        }
    }
    println!("driver {}", ways[0].host.reactor().driver());
    println!("{:24} {:>8} {:>8} {:>8}", "64 bytes, one at a time", "p50 µs", "p99 µs", "p99.9 µs");
    for Way { name, histogram, .. } in &ways {
        let [p50, p99, p999] =
            [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile) as f64);
        println!("{name:24} {:8.2} {:8.2} {:8.2}", p50 / 1e3, p99 / 1e3, p999 / 1e3);
    }
    let stats = ways[1].host.reactor().stats();
    println!("looks {}, of which in time {}", stats.spins, stats.spins_hit);
    ways.into_iter().try_for_each(Way::end)
}

/// One caller, and its server.
struct Way {
    name: String,
    host: Host,
    object: Object,
    server: Child,
    histogram: Histogram<u64>,
}

/// Who sleeps while the caller waits.
enum Host {
    Reactor(Executor),
    Epoll(Guest, OwnedFd),
    Tokio(Guest, tokio::runtime::Runtime),
}

impl Way {
    fn start(way: &str) -> Result<Way, Failure> {
        let policy = policy_of(way);
        let host = match way {
            "sleep" | "spin" => Host::Reactor(Executor::new(&reactor(policy)?)),
            "epoll" => {
                let (guest, epoll) = (Guest::new()?, epoll::create(epoll::CreateFlags::CLOEXEC)?);
                epoll::add(&epoll, &guest, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                Host::Epoll(guest, epoll)
            }
            "tokio" => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Host::Tokio(Guest::new()?, runtime)
            }
            _ => return Err(format!("{way} is none of {WAYS:?}").into()),
        };
        let (object, server) = start_server(way)?;
        let object = Object::from_fd(host.reactor(), object)?;
        Ok(Way { name: way.to_owned(), host, object, server, histogram: Histogram::new(3)? })
    }

    fn call(&mut self, calls: usize) -> Result<(), Failure> {
        let object = self.object.clone();
        let mut histogram = std::mem::replace(&mut self.histogram, Histogram::new(3)?);
        self.histogram = self.host.run(async move {
            for _ in 0..calls {
                let start = Instant::now();
                object.call(&PAYLOAD).await?;
                histogram.record(start.elapsed().as_nanos() as u64)?;
            }
            Ok::<_, Failure>(histogram)
        })??;
        Ok(())
    }

    fn only(mut self, calls: usize) -> Result<(), Failure> {
        self.call(calls)?;
        self.end()
    }

    fn end(self) -> Result<(), Failure> {
        let Way { host, object, mut server, .. } = self;
        drop(object);
        Executor::new(host.reactor()).settle();
        if server.wait()?.success() { Ok(()) } else { Err("a server did not end well".into()) }
    }
}

impl Host {
    fn reactor(&self) -> &Reactor {
        match self {
            Host::Reactor(executor) => executor.reactor(),
            Host::Epoll(guest, _) | Host::Tokio(guest, _) => guest.reactor(),
        }
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Result<T, Failure> {
        match self {
            Host::Reactor(executor) => Ok(executor.block_on(future)),
            Host::Tokio(guest, runtime) => Ok(runtime.block_on(guest.run_until(future))?),
            Host::Epoll(guest, epoll) => {
                let result = Rc::new(Cell::new(None));
                let told = Rc::clone(&result);
                guest.executor().spawn(async move { told.set(Some(future.await)) });
                loop {
                    if let Some(result) = result.take() {
                        return Ok(result);
                    }
                    let mut events = Vec::with_capacity(1);
                    epoll::wait(epoll, spare_capacity(&mut events), None)?;
                    guest.turn()?;
                }
            }
        }
    }
}

fn policy_of(way: &str) -> WaitPolicy {
    if way == "spin" { WaitPolicy::spin() } else { WaitPolicy::Sleep }
}

fn reactor(wait: WaitPolicy) -> Result<Reactor, Failure> {
    Ok(Reactor::with_config(Config { wait, ..Config::default() })?)
}

/// Starts this program once more with the far end of a pair. Its server waits as its caller does, if it can.
fn start_server(way: &str) -> Result<(OwnedFd, Child), Failure> {
    let flags = SocketFlags::CLOEXEC;
    let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", way]);
    ring::inherit::give(&mut command, vec![(far, 3)]);
    Ok((near, command.spawn()?))
}

fn serve(wait: WaitPolicy, mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = reactor(wait)?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}
