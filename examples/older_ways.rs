//! Native Client's three ways to connect, side by side: what each needs, and what a stranger can do with it.
//!
//! Without arguments a child connects to us in each way and says hello, and then we are the stranger: we look
//! for the names in `/proc/net/unix` and find those of the two older ways. With `table` it measures what
//! connecting costs in each way, and what a typed message costs that brings 0 to 8 descriptors to another
//! process on the same CPU: the figures of Native Client's paper of 2009 (Table 3), taken again.
//!
//! ```text
//! cargo run --release -p sendright-examples --example older_ways
//! cargo run --release -p sendright-examples --example older_ways table
//! ```

use std::error::Error;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use imc::older::{Token, datagram, stream};
use imc::{Capability, ConnectedSocket, PlainFile, SocketAddress, TypedMessage, TypedSocket, bound_socket};
use ring::{Executor, Reactor};
use rustix::thread::CpuSet;

type Failure = Box<dyn Error>;

/// Connections and messages of one round, rounds of one row.
const COUNT: usize = 200;
const ROUNDS: usize = 50;

/// What the paper has for 1 to 8 descriptors on Linux, in microseconds.
const PAPER: [f64; 8] = [3.3, 5.3, 6.6, 8.2, 9.7, 11.1, 12.6, 14.2];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        ["client", by_stream, by_datagram] => be_client(by_stream, by_datagram),
        ["table"] => measure(),
        ["table", "receiver"] => receive_and_answer(),
        _ => Err("older_ways [table]".into()),
    }
}

// What each needs, and what a stranger can do.

fn show() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    println!("on {}", reactor.driver());
    let (listener, by_stream) = stream::bound_socket(&reactor, stream::BACKLOG)?;
    let (names, by_datagram) = datagram::bound_socket(&reactor)?;
    let (bound, address) = bound_socket(&reactor)?;
    let service = datagram::ServiceSocket::new(&reactor)?;

    let mut command = Command::new(std::env::current_exe()?);
    command.args(["client", by_stream.token().characters(), by_datagram.token().characters()]);
    let given = vec![(address.share()?, 3), (service.share()?, 4)];
    let mut client = ring::inherit::give(&mut command, given).spawn()?;

    Executor::new(&reactor).block_on(async {
        let connection = listener.accept().await?;
        println!("stream:      {}", String::from_utf8_lossy(connection.receive().await?.bytes()));
        let connection = names.accept().await?.socket;
        println!("datagram:    {}", String::from_utf8_lossy(connection.receive().await?.bytes()));
        let connection = bound.accept().await?.socket;
        println!("replacement: {}", String::from_utf8_lossy(connection.receive().await?.bytes()));
        Ok::<(), Failure>(())
    })?;
    assert!(client.wait()?.success());

    println!("\nA stranger in the same network namespace looks into /proc/net/unix:");
    let known = fs::read_to_string("/proc/net/unix")?;
    for (way, token) in [("stream", by_stream.token()), ("datagram", by_datagram.token())] {
        let found = known.contains(token.characters());
        println!("  {way}: {}", if found { "there is its name, and that is all it takes" } else { "?" });
    }
    let (rubbish, stolen) = datagram::bound_socket(&reactor)?;
    drop(rubbish);
    match stolen.try_connect(&service) {
        Ok(_) => println!("  a name whose owner is gone: somebody else has taken it"),
        Err(told) => println!("  a name whose owner is gone, until somebody takes it: {told}"),
    }
    println!("  replacement: it has no name; who was not given the descriptor has nothing to try");
    Ok(())
}

fn be_client(by_stream: &str, by_datagram: &str) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let address = SocketAddress::from_fd(&reactor, ring::inherit::take(3)?)?;
    let service = datagram::ServiceSocket::from_fd(&reactor, ring::inherit::take(4)?)?;
    Executor::new(&reactor).block_on(async {
        let by_stream = stream::SocketAddress::from(Token::new(by_stream)?);
        by_stream.connect(&reactor).await?.send("hello, from who was told a name").await?;
        let by_datagram = datagram::SocketAddress::from(Token::new(by_datagram)?);
        let connection = by_datagram.connect(&service).await?;
        connection.send("hello, from who was told a name and given a socket").await?;
        let connection = address.connect().await?;
        connection.send("hello, from who was given a descriptor").await?;
        Ok(())
    })
}

// What each costs.

fn measure() -> Result<(), Failure> {
    pin_to_one_cpu()?;
    let reactor = Reactor::new()?;
    println!("on {}\n", reactor.driver());
    measure_connecting(&reactor)?;
    measure_descriptors(&reactor)
}

/// Connect, accept, and close both ends: one process, one reactor.
fn measure_connecting(reactor: &Reactor) -> Result<(), Failure> {
    let executor = Executor::new(reactor);
    let (listener, by_stream) = stream::bound_socket(reactor, stream::BACKLOG)?;
    let (names, by_datagram) = datagram::bound_socket(reactor)?;
    let (bound, address) = bound_socket(reactor)?;
    let service = datagram::ServiceSocket::new(reactor)?;
    let mut times = [row()?, row()?, row()?];
    for _ in 0..ROUNDS {
        executor.block_on(async {
            for _ in 0..COUNT {
                let start = Instant::now();
                let ends = (by_stream.connect(reactor).await?, listener.accept().await?);
                drop(ends);
                times[0].record(nanoseconds(start.elapsed()))?;
            }
            for _ in 0..COUNT {
                let start = Instant::now();
                let ends = (by_datagram.connect(&service).await?, names.accept().await?);
                drop(ends);
                times[1].record(nanoseconds(start.elapsed()))?;
            }
            for _ in 0..COUNT {
                let start = Instant::now();
                let ends = (address.connect().await?, bound.accept().await?);
                drop(ends);
                times[2].record(nanoseconds(start.elapsed()))?;
            }
            Ok::<(), Failure>(())
        })?;
    }
    println!("| connect, accept, close, in one process | p50 us | p99 us |\n|---|---|---|");
    for (way, times) in ["stream", "datagram", "replacement"].iter().zip(&times) {
        println!("| {way} | {:.1} | {:.1} |", quantile(times, 0.5), quantile(times, 0.99));
    }
    Ok(())
}

/// A typed message without data that brings so many pipes; an empty one comes back.
fn measure_descriptors(reactor: &Reactor) -> Result<(), Failure> {
    let (near, far) = ConnectedSocket::pair(reactor)?;
    let near = TypedSocket::new(near).map_err(|_| "a fresh connection is idle")?;
    let mut receiver = start_receiver(far)?;
    let executor = Executor::new(reactor);
    let (pipe, _writer) = std::io::pipe()?;
    let mut times = Vec::new();
    for _ in 0..=PAPER.len() {
        times.push(row()?);
    }
    for _ in 0..ROUNDS {
        for (count, times) in times.iter_mut().enumerate() {
            executor.block_on(async {
                for _ in 0..COUNT {
                    let mut message = TypedMessage::new([]);
                    for _ in 0..count {
                        message.push(PlainFile::new(OwnedFd::from(pipe.try_clone()?))?);
                    }
                    let start = Instant::now();
                    near.send(message).await?;
                    near.receive().await?;
                    times.record(nanoseconds(start.elapsed()))?;
                }
                Ok::<(), Failure>(())
            })?;
        }
    }
    drop(near);
    assert!(receiver.wait()?.success());
    let empty = quantile(&times[0], 0.5);
    println!("\n| descriptors | there and back, p50 us | more than with none | the paper, 2009 |");
    println!("|---|---|---|---|\n| 0 | {empty:.1} | | |");
    for (count, (times, paper)) in times[1..].iter().zip(PAPER).enumerate() {
        let p50 = quantile(times, 0.5);
        println!("| {} | {p50:.1} | {:.1} | {paper} |", count + 1, p50 - empty);
    }
    Ok(())
}

fn start_receiver(far: OwnedFd) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["table", "receiver"]);
    Ok(ring::inherit::give(&mut command, vec![(far, 3)]).spawn()?)
}

fn receive_and_answer() -> Result<(), Failure> {
    pin_to_one_cpu()?;
    let reactor = Reactor::new()?;
    let connection = ConnectedSocket::from_fd(&reactor, ring::inherit::take(3)?)?;
    let socket = TypedSocket::new(connection).map_err(|_| "a fresh connection is idle")?;
    Executor::new(&reactor).block_on(async {
        while let Ok(message) = socket.receive().await {
            assert!(message.capabilities.iter().all(|one| matches!(one, Capability::File(_))));
            // Answered before they are closed: that is not what the paper measured.
            socket.send(TypedMessage::new([])).await?;
        }
        Ok(())
    })
}

fn row() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 1_000_000_000, 3)?)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, 1_000_000_000)
}

fn quantile(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1000.0
}

fn pin_to_one_cpu() -> Result<(), Failure> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).ok_or("no CPU to run on")?;
    one.set(first);
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}
