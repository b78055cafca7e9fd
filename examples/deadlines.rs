//! Three processes, one deadline: the caller says how long it waits, the front passes that on with the call
//! it makes itself, and the worker stops working when nobody waits any more.
//!
//! ```text
//! cargo run --release -p sendright-examples --example deadlines
//! ```

use std::error::Error;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::{Child, Command};
use std::task::Poll;
use std::time::{Duration, Instant};

use ring::{Executor, Reactor};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use seqpacket::{CallError, CallOptions, Incoming, Mailbox, Object};

type Failure = Box<dyn Error>;

/// The numbers under which the children find their descriptors.
const MAILBOX: i32 = 3;
const WORKER: i32 = 4;

/// How long the caller waits.
const PATIENCE: Duration = Duration::from_millis(200);

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("front") => front(ring::inherit::take(MAILBOX)?, ring::inherit::take(WORKER)?),
        Some("worker") => worker(ring::inherit::take(MAILBOX)?),
        _ => caller(),
    }
}

// -- the caller, which also sets the stage -----------------------------------------------------------------

fn caller() -> Result<(), Failure> {
    let (front, front_mailbox) = packet_pair()?;
    let (worker, worker_mailbox) = packet_pair()?;
    let mut processes = [
        start("front", vec![(front_mailbox, MAILBOX), (worker, WORKER)])?,
        start("worker", vec![(worker_mailbox, MAILBOX)])?,
    ];
    let reactor = Reactor::new()?;
    println!("the caller runs on {}", reactor.driver());
    let front = Object::from_fd(&reactor, front)?;
    let executor = Executor::new(&reactor);
    executor.block_on(async {
        let hurry = CallOptions { within: Some(PATIENCE), ..CallOptions::default() };
        let answer = front.call_with("something quick", hurry).await?;
        println!("caller: {}", String::from_utf8_lossy(answer.bytes()));
        match front.call_with("something endless", hurry).await {
            // The front's time is over in the same moment, and it may be the first to say so.
            Err(error @ (CallError::Deadline | CallError::Expired | CallError::Dropped)) => {
                println!("caller: no answer in time: {error}");
            }
            other => return Err(format!("expected that time runs out, got {other:?}").into()),
        }
        Ok::<(), Failure>(())
    })?;
    drop(front);
    executor.settle();
    for process in &mut processes {
        if !process.wait()?.success() {
            return Err("a process did not end well".into());
        }
    }
    Ok(())
}

// -- the front: has no time of its own ---------------------------------------------------------------------

fn front(mailbox: OwnedFd, worker: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    let worker = Object::from_fd(&reactor, worker)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            // What it asks of others it asks until then, and not longer.
            let answer = worker.call_with(call.bytes(), CallOptions::until(call.deadline())).await;
            match answer {
                Ok(answer) => drop(call.answer(answer.into_bytes())),
                Err(error) => println!("front: {error}"),
            }
        }
        Ok(())
    })
}

// -- the worker: works for as long as somebody waits -------------------------------------------------------

fn worker(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let left = call.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let known = left.is_some_and(|left| left <= PATIENCE);
            println!("worker: the time that is left is {}", if known { "known" } else { "not known" });
            match while_awaited(&call, work(&reactor, call.bytes())).await {
                Some(answer) => drop(call.answer(answer)),
                None => println!("worker: nobody waits any more, stopped"),
            }
        }
        Ok(())
    })
}

/// Some things take no time, and some take for ever.
async fn work(reactor: &Reactor, what: &[u8]) -> String {
    if what == b"something endless" {
        loop {
            reactor.sleep(Duration::from_millis(10)).await;
        }
    }
    format!("{}: done in time", String::from_utf8_lossy(what))
}

/// The work's result; `None` if the caller stops waiting for it.
async fn while_awaited<T>(call: &Incoming, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut cancelled) = (pin!(work), pin!(call.continuation().cancelled()));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => cancelled.as_mut().poll(context).map(|()| None),
    })
    .await
}

fn packet_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Starts this program once more, with these descriptors and no others.
fn start(role: &str, descriptors: Vec<(OwnedFd, i32)>) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    ring::inherit::give(&mut command, descriptors);
    Ok(command.spawn()?)
}
