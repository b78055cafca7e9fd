//! Three processes, one call: a front takes it, a worker answers it, and the caller cannot tell.
//!
//! The front does not answer; it makes a descriptor of the right to, passes that on, as it would pass any
//! other, and has nothing more to do with the call. If the worker died instead of answering, the caller would
//! see it at once, for the worker holds the only copy. (A call of a plain object comes with that descriptor;
//! one of a session makes it when it is asked for.)
//!
//! ```text
//! caller ── call ──> front ── call, with the continuation ──> worker
//!    ^                                                          │
//!    └───────────────────────── answer ─────────────────────────┘
//! ```
//!
//! ```text
//! cargo run --release -p sendright-examples --example forwarded_answer
//! ```

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use ring::{Executor, Message, Reactor};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use seqpacket::{CallError, Mailbox, Object, PlainContinuation};

type Failure = Box<dyn Error>;

/// The numbers under which the children find their descriptors.
const MAILBOX: i32 = 3;
const WORKER: i32 = 4;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("front") => front(ring::inherit::take(MAILBOX)?, ring::inherit::take(WORKER)?),
        Some("worker") => worker(ring::inherit::take(MAILBOX)?),
        _ => caller(),
    }
}

// -- the caller, which also sets the stage -----------------------------------------------------------------

fn caller() -> Result<(), Failure> {
    // Both kinds of object are a pair; what the holders of the ends speak is agreed between them.
    let (front, front_mailbox) = packet_pair()?;
    let (worker, worker_mailbox) = packet_pair()?;
    let mut processes = [
        start("front", vec![(front_mailbox, MAILBOX), (worker, WORKER)])?,
        start("worker", vec![(worker_mailbox, MAILBOX)])?,
    ];
    let [front_pid, worker_pid] = [processes[0].id(), processes[1].id()];
    println!("caller: process {}, front: {front_pid}, worker: {worker_pid}", std::process::id());

    let reactor = Reactor::new()?;
    println!("the caller runs on {}", reactor.driver());
    let front = Object::from_fd(&reactor, front)?;
    let executor = Executor::new(&reactor);
    executor.block_on(async {
        for name in ["Ada", "Grace", "Barbara"] {
            let answer = front.call(name).await?;
            let answer = String::from_utf8_lossy(answer.bytes()).into_owned();
            println!("asked the front, was told: {answer}");
            if answer != greeting(name, worker_pid) {
                return Err("that was not the worker".into());
            }
        }
        // The front answers nobody and so does the worker: the last copy of the continuation is closed, and
        // that is an outcome too.
        match front.call("nobody").await {
            Err(error @ CallError::Dropped) => println!("asked for nobody: {error}"),
            other => return Err(format!("expected that nobody answers, got {other:?}").into()),
        }
        Ok::<(), Failure>(())
    })?;

    // Without a caller the front ends, and without the front the worker. The descriptor is closed in the
    // reactor's next turn.
    drop(front);
    executor.settle();
    for process in &mut processes {
        if !process.wait()?.success() {
            return Err("a process did not end well".into());
        }
    }
    println!("front and worker have ended, in this order");
    Ok(())
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

// -- the front: is called, and calls the worker ------------------------------------------------------------

fn front(mailbox: OwnedFd, worker: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    let worker = Object::from_fd(&reactor, worker)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let (name, _arguments, continuation) = call.into_parts();
            // Whoever holds this descriptor is who answers. It is closed here once it has been sent.
            let errand = Message::new(name).with_descriptor(continuation.into_fd()?);
            worker.call(errand).await?;
        }
        Ok(())
    })
}

// -- the worker: answers calls that were made to somebody else ---------------------------------------------

fn worker(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(mut errand) = mailbox.next().await {
            let Some(continuation) = errand.take_descriptor() else { continue };
            let name = String::from_utf8_lossy(errand.bytes()).into_owned();
            // An empty answer is enough to tell the front that the errand is understood.
            let _ = errand.answer("");
            let continuation = PlainContinuation::from_fd(&reactor, continuation)?;
            if name == "nobody" {
                continue;
            }
            // The caller may have gone; that is no concern of the worker's.
            let _ = continuation.answer(greeting(&name, std::process::id()));
        }
        Ok(())
    })
}

fn greeting(name: &str, answerer: u32) -> String {
    format!("hello {name}, this is process {answerer}")
}
