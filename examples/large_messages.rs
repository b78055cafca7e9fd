//! What it costs to give another process 256 KiB to 64 MiB: as one large message of a session, as sealed
//! memory whose descriptor goes into a small one, and as bare packets over a socket pair.
//!
//! The bytes are in a buffer of this process when the clock starts; it stops when the other has looked at
//! each cache line of them and said so. The ways take turns, so that whatever the machine does meanwhile it
//! does to all of them. Two processes on one CPU; with `apart` wherever the kernel puts them.
//!
//! ```text
//! cargo run --release -p sendright-examples --example large_messages [apart] [MIB]
//! ```
//!
//! MIB is how much each way moves of each size, 512 unless told otherwise.

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Instant;

use hdrhistogram::Histogram;
use imc::FrozenMemory;
use ring::{Executor, Message, Reactor};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::CpuSet;
use seqpacket::{CallOptions, Mailbox, Object, plain_data};

type Failure = Box<dyn Error>;

const SIZES: [usize; 5] = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const PACKET: usize = 65_536;
const PAGE: usize = 4096;

/// In a call of two numbers: have an answer of so many bytes ready.
const PREPARE: u64 = 1;

const WAYS: [&str; 4] = ["bare packets", "large call", "large answer", "sealed memory"];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("serve-packets") => return serve_packets(ring::inherit::take(3)?),
        Some("serve-object") => return serve_object(ring::inherit::take(3)?),
        Some("apart") => drop(arguments.next()),
        _ => pin_to_one_cpu()?,
    }
    let volume = arguments.next().map_or(Ok(512), |mib| mib.parse::<usize>())? << 20;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let (packets, mut packets_server) = start("serve-packets")?;
    let (address, mut object_server) = start("serve-object")?;
    let object = Object::from_fd(&reactor, address)?;
    executor.block_on(object.attach())?;
    println!("driver {}", reactor.driver());
    println!("{:>9} {:16} {:>10} {:>10} {:>7} {:>8}", "bytes", "way", "p50 µs", "p90 µs", "GB/s", "× bare");
    for size in SIZES {
        let source: Vec<u8> = (0..size).map(|at| (at / 64) as u8).collect();
        let expected = look_at(&source);
        let mut times = WAYS.map(|_| Histogram::<u64>::new(3));
        // The first rounds fault memory in; they are not counted.
        for round in 0..(volume / size).max(1) + 2 {
            for (way, times) in times.iter_mut().enumerate() {
                let time = move_once(&executor, &object, packets.as_fd(), way, &source, expected)?;
                if round >= 2 {
                    times.as_mut().map_err(|error| error.to_string())?.record(time)?;
                }
            }
        }
        let times = times.into_iter().collect::<Result<Vec<_>, _>>()?;
        let bare = times[0].value_at_quantile(0.5) as f64;
        for (way, times) in WAYS.iter().zip(&times) {
            let [p50, p90] = [0.5, 0.9].map(|quantile| times.value_at_quantile(quantile) as f64);
            let (speed, ratio) = (size as f64 / p50, p50 / bare);
            println!("{size:9} {way:16} {:10.1} {:10.1} {speed:7.2} {ratio:8.2}", p50 / 1e3, p90 / 1e3);
        }
    }
    drop((packets, object));
    executor.settle();
    for server in [&mut packets_server, &mut object_server] {
        if !server.wait()?.success() {
            return Err("a server did not end well".into());
        }
    }
    Ok(())
}

/// Nanoseconds from a buffer here to whoever has looked at it there; of an answer the other way round.
fn move_once(
    executor: &Executor,
    object: &Object,
    packets: BorrowedFd<'_>,
    way: usize,
    source: &[u8],
    expected: u64,
) -> Result<u64, Failure> {
    // A message is given away with its buffer, so that one is made before the clock starts.
    let given = if way == 1 { source.to_vec() } else { Vec::new() };
    if way == 2 {
        executor.block_on(object.call(plain_data(&[source.len() as u64, PREPARE])))?;
    }
    let start = Instant::now();
    let seen = match way {
        0 => send_packets(packets, source)?,
        1 => executor.block_on(object.call(given))?.read()?,
        2 => {
            let room = CallOptions { answer_bytes: Some(source.len()), ..CallOptions::default() };
            let size = source.len().to_le_bytes();
            look_at(executor.block_on(object.call_with(Message::new(size), room))?.bytes())
        }
        _ => {
            let memory = FrozenMemory::of(&[source])?;
            let message = Message::new("look here").with_descriptor(memory.into_fd());
            executor.block_on(object.call(message))?.read()?
        }
    };
    let time = start.elapsed().as_nanos() as u64;
    if seen == expected { Ok(time) } else { Err(format!("{} has lost bytes", WAYS[way]).into()) }
}

/// One byte of each cache line.
fn look_at(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum()
}

fn serve_object(bound: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let mailbox = Mailbox::from_fd(&reactor, bound)?;
    executor.block_on(async {
        let mut source = Vec::new();
        while let Some(mut call) = mailbox.next().await {
            if let Some(fd) = call.take_descriptor() {
                let seen = look_at(&FrozenMemory::from_fd(fd)?.map()?);
                call.answer(seen.to_le_bytes().as_slice())?;
            } else if let Some(size) = call.read::<u64>() {
                if source.len() as u64 != size {
                    return Err("an answer of a size that was not prepared".into());
                }
                call.answer(std::mem::take(&mut source))?;
            } else if let Some([size, PREPARE]) = call.read::<[u64; 2]>() {
                source = ring::room_for(size as usize)?;
                source.extend((0..size).map(|at| (at / 64) as u8));
                call.answer("prepared")?;
            } else {
                let seen = look_at(call.bytes());
                call.answer(seen.to_le_bytes().as_slice())?;
            }
        }
        Ok(())
    })
}

/// Its length, and then nothing but packets.
fn send_packets(socket: BorrowedFd<'_>, source: &[u8]) -> Result<u64, Failure> {
    rustix::net::send(socket, &(source.len() as u64).to_le_bytes(), SendFlags::NOSIGNAL)?;
    for packet in source.chunks(PACKET) {
        rustix::net::send(socket, packet, SendFlags::NOSIGNAL)?;
    }
    let mut seen = [0; 8];
    rustix::net::recv(socket, &mut seen[..], RecvFlags::empty())?;
    Ok(u64::from_le_bytes(seen))
}

fn serve_packets(socket: OwnedFd) -> Result<(), Failure> {
    let mut room = Vec::new();
    loop {
        let mut length = [0; 8];
        if rustix::net::recv(&socket, &mut length[..], RecvFlags::empty())?.0 == 0 {
            return Ok(());
        }
        let length = u64::from_le_bytes(length) as usize;
        room.resize(length + PAGE, 0);
        // From the beginning of a page on: `perf/src/aligned.rs` says why.
        let start = room.as_ptr().addr().wrapping_neg() % PAGE;
        let whole = &mut room[start..][..length];
        for packet in whole.chunks_mut(PACKET) {
            rustix::net::recv(&socket, packet, RecvFlags::empty())?;
        }
        rustix::net::send(&socket, &look_at(whole).to_le_bytes(), SendFlags::NOSIGNAL)?;
    }
}

/// Starts this program once more with the far end of a pair.
fn start(role: &str) -> Result<(OwnedFd, Child), Failure> {
    let (near, far) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
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
