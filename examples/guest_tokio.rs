//! Objects in a program that runs on tokio: one line makes the reactor a guest of the runtime.
//!
//! From there on calls are awaited in local tasks like anything else, beside the runtime's own timers,
//! channels and sockets. The object lives in a second process, which knows nothing of tokio.
//!
//! ```text
//! cargo run --release -p sendright-examples --example guest_tokio
//! ```

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Guest, Reactor};
use seqpacket::{Mailbox, Object};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

type Failure = Box<dyn Error>;

/// The number under which the child finds its descriptor.
const MAILBOX: i32 = 3;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(ring::inherit::take(MAILBOX)?),
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, call())
        }
    }
}

// -- on tokio ----------------------------------------------------------------------------------------------

async fn call() -> Result<(), Failure> {
    // The one line. What is made on its reactor works in every local task, until it is dropped.
    let guest = Guest::new()?.on_tokio()?;
    println!("the guest runs on {}", guest.reactor().driver());
    let (object, mut server) = start_server(guest.reactor())?;
    let object = Rc::new(object);

    // Ten tasks, whose calls of one turn travel in one packet.
    let tasks: Vec<_> = (0..10_u32)
        .map(|number| {
            let object = Rc::clone(&object);
            spawn_local(async move {
                let answer = object.call(format!("task {number}").as_str()).await?;
                Ok::<_, seqpacket::CallError>(String::from_utf8_lossy(answer.bytes()).into_owned())
            })
        })
        .collect();
    let mut told = Vec::new();
    for task in tasks {
        told.push(task.await??);
    }
    println!("ten tasks were told: {}", told.join(", "));

    // What tokio has works on calls as on anything: here its clock. The call is withdrawn, and the server
    // sees that nobody waits for the answer any more.
    match timeout(Duration::from_millis(20), object.call("slow")).await {
        Err(_elapsed) => println!("a slow call was given up by tokio's clock"),
        Ok(answer) => return Err(format!("a call that nobody answers was answered: {answer:?}").into()),
    }
    sleep(Duration::from_millis(1)).await;

    drop(object);
    // The object is closed in the guest's next turn; waiting blocks, so it is for another thread.
    let status = tokio::task::spawn_blocking(move || server.wait()).await??;
    if status.success() { Ok(()) } else { Err(format!("the server did not end well: {status}").into()) }
}

// -- the server --------------------------------------------------------------------------------------------

fn start_server(reactor: &Reactor) -> Result<(Object, Child), Failure> {
    let (bound, address) = imc::bound_socket(reactor)?;
    let mailbox = bound.into_fd().map_err(|_| "a fresh socket is idle")?;
    let address = address.into_fd().map_err(|_| "a fresh socket is idle")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve");
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok((Object::from_fd(reactor, address)?, command.spawn()?))
}

fn serve(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        let mut unanswered = Vec::new();
        while let Some(call) = mailbox.next().await {
            if call.bytes() == b"slow" {
                unanswered.push(call);
                continue;
            }
            let answer = [b"hello ".as_slice(), call.bytes()].concat();
            // A caller that went away meanwhile is not an error of the server.
            let _ = call.answer(answer);
        }
    });
    Ok(())
}
