//! An object in another process: it adds.
//!
//! The program starts itself a second time and gives the child one descriptor, the end of a pair at which
//! calls arrive. The other end is the right to call, and stays here. Nothing has a name, nothing listens, and
//! when the last holder lets go the child notices and ends.
//!
//! ```text
//! cargo run --release -p sendright-examples --example adder
//! ```

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use ring::{Executor, Reactor};
use seqpacket::{CallError, Mailbox, Object, plain_data};

type Failure = Box<dyn Error>;

/// The number under which the child finds its descriptor.
const MAILBOX: i32 = 3;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(ring::inherit::take(MAILBOX)?),
        _ => call(),
    }
}

// -- the caller --------------------------------------------------------------------------------------------

fn call() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    println!("the caller runs on {}", reactor.driver());

    // The two ends of one pair: the right to accept, which the child gets, and the right to connect.
    let (bound, address) = imc::bound_socket(&reactor)?;
    let mut server = start_server(bound.into_fd().map_err(|_| "a fresh socket is idle")?)?;
    let address = address.into_fd().map_err(|_| "a fresh socket is idle")?;

    // From here on the address is all there is. It could as well have come in a message from somebody else.
    let adder = Object::from_fd(&reactor, address)?;
    let executor = Executor::new(&reactor);
    executor.block_on(ask(&adder))?;

    // The server ends when nobody holds the object any more. The descriptor is closed in the reactor's next
    // turn, so let there be one.
    drop(adder);
    executor.settle();
    let status = server.wait()?;
    println!("the server has noticed that nobody can call it any more: {status}");
    if status.success() { Ok(()) } else { Err("the server did not end well".into()) }
}

fn start_server(mailbox: OwnedFd) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve");
    // The child gets this descriptor and no other; ours closes with the command.
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok(command.spawn()?)
}

async fn ask(adder: &Object) -> Result<(), Failure> {
    // The first call attaches. What is said both sides agree on: here two numbers as they lie in memory.
    let sum: u64 = adder.call(plain_data(&[2_u64, 40])).await?.read()?;
    println!("2 + 40 = {sum}");

    // Calls of one turn travel together: these ten are one packet, and so are their answers.
    let calls: Vec<_> = (1..=10_u64).map(|n| adder.call(plain_data(&[n, n]))).collect();
    let mut doubles = Vec::new();
    for call in calls {
        doubles.push(call.await?.read::<u64>()?.to_string());
    }
    println!("1..10 doubled: {}", doubles.join(" "));

    // A call that gets no answer says why, and whether calling again could do harm.
    match adder.call(plain_data(&[u64::MAX, 1])).await {
        Err(error @ CallError::Refused) => println!("{} + 1: {error}", u64::MAX),
        other => return Err(format!("a sum that does not fit was not refused: {other:?}").into()),
    }
    match adder.call("two and forty").await {
        Err(error @ CallError::Dropped) => println!("\"two and forty\": {error}"),
        other => return Err(format!("words were not dropped: {other:?}").into()),
    }
    Ok(())
}

// -- the server --------------------------------------------------------------------------------------------

fn serve(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        // Until no address and no session is left.
        while let Some(call) = mailbox.next().await {
            // Dropping a call answers, too: it tells the caller that nobody will.
            let Some([a, b]) = call.read::<[u64; 2]>() else { continue };
            match a.checked_add(b) {
                // A caller that went away meanwhile is not an error of the server.
                Some(sum) => drop(call.answer(plain_data(&sum))),
                None => call.refuse(),
            }
        }
    });
    Ok(())
}
