//! What a call costs, beside what the bare system calls cost in the same run: the table in the README.
//!
//! Two processes on one CPU, sleeping, 64 bytes each way, one call at a time; and 32 at a time for sessions.
//! The ways take turns in short rounds, so that whatever the machine does meanwhile it does to all of them.
//! It is a sketch to be repeated anywhere, not a benchmark suite.
//!
//! ```text
//! cargo run --release -p sendright-examples --example round_trip
//! ```

use std::error::Error;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Instant;

use hdrhistogram::Histogram;
use ring::{Executor, Message, Reactor};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::CpuSet;

type Failure = Box<dyn Error>;

/// Calls of one round, rounds of one way.
const CALLS: usize = 500;
const ROUNDS: usize = 40;
const DEPTH: usize = 32;
const PAYLOAD: [u8; 64] = [7; 64];

fn main() -> Result<(), Failure> {
    pin_to_one_cpu()?;
    match std::env::args().nth(1).as_deref() {
        Some("raw") => serve_raw(ring::inherit::take(3)?),
        Some("five-steps") => serve_five_steps(ring::inherit::take(3)?),
        Some("object") => serve_object(ring::inherit::take(3)?),
        Some("plain") => serve_plain(ring::inherit::take(3)?),
        _ => measure(),
    }
}

fn measure() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let (raw, mut raw_server) = start("raw")?;
    let (five, mut five_server) = start("five-steps")?;
    let (object, mut object_server) = start("object")?;
    let (plain, mut plain_server) = start("plain")?;
    let object = seqpacket::Object::from_fd(&reactor, object)?;
    let plain = seqpacket::PlainObject::from_fd(&reactor, plain)?;
    executor.block_on(object.attach())?;

    let mut rows = ["raw ping-pong", "raw five steps", "session call", "plain call", "session call, 32 deep"]
        .map(|name| (name, Histogram::<u64>::new(3).expect("three digits are allowed")));
    for _ in 0..ROUNDS {
        record(&mut rows[0].1, 1, || Ok(call_raw(raw.as_fd())?))?;
        record(&mut rows[1].1, 1, || Ok(call_five_steps(five.as_fd())?))?;
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
    drop((raw, five, object, plain));
    // The objects' descriptors close in the next turn at the latest.
    executor.settle();
    for server in [&mut raw_server, &mut five_server, &mut object_server, &mut plain_server] {
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
    let (near, far) = packet_pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    ring::inherit::give(&mut command, vec![(far, 3)]);
    Ok((near, command.spawn()?))
}

fn packet_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn pin_to_one_cpu() -> Result<(), Failure> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).ok_or("no CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(first);
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

// -- the floors: nothing but system calls ------------------------------------------------------------------

fn call_raw(socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::net::send(socket, &PAYLOAD, SendFlags::NOSIGNAL)?;
    let mut answer = [0; 128];
    rustix::net::recv(socket, &mut answer[..], RecvFlags::empty()).map(drop)
}

fn serve_raw(socket: OwnedFd) -> Result<(), Failure> {
    let mut message = [0; 128];
    loop {
        match rustix::net::recv(&socket, &mut message[..], RecvFlags::empty())?.0 {
            0 => return Ok(()),
            length => rustix::net::send(&socket, &message[..length], SendFlags::NOSIGNAL)?,
        };
    }
}

/// Pair, send with the far end, close it, receive, close.
fn call_five_steps(object: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let (near, far) = packet_pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let far_end = [far.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&far_end));
    let bytes = [std::io::IoSlice::new(&PAYLOAD)];
    rustix::net::sendmsg(object, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    drop(far);
    let mut answer = [0; 128];
    rustix::net::recv(&near, &mut answer[..], RecvFlags::empty()).map(drop)
}

fn serve_five_steps(mailbox: OwnedFd) -> Result<(), Failure> {
    let mut message = [0; 128];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [std::io::IoSliceMut::new(&mut message)];
        let received = rustix::net::recvmsg(&mailbox, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(());
        }
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                for continuation in descriptors {
                    rustix::net::send(&continuation, &message[..received.bytes], SendFlags::NOSIGNAL)?;
                }
            }
        }
    }
}

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

fn serve_plain(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = seqpacket::PlainMailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let answer = Message::from(call.bytes());
            call.answer(answer)?;
        }
        Ok(())
    })
}
