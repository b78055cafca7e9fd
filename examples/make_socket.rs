//! A descriptor that runs a callback: what `plugin.make_socket(callback) -> fd` was to be.
//!
//! The program makes the descriptor and starts itself a second time with it. The child knows nothing of
//! objects, reactors or who listens: it has `sendmsg`, and each message it sends runs the callback once,
//! where the browser's thread call took five messages. When the child ends nobody holds the descriptor any
//! more, and the program is told.
//!
//! ```text
//! cargo run --release -p sendright-examples --example make_socket
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use ring::{Executor, Reactor, Received};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

type Failure = Box<dyn Error>;

/// The number under which the child finds its descriptor.
const EVENTS: i32 = 3;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("child") => tell(ring::inherit::take(EVENTS)?),
        _ => listen(),
    }
}

// -- the one who listens -----------------------------------------------------------------------------------

fn listen() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    println!("the callback runs on {}", reactor.driver());
    let (events, listening) = seqpacket::make_socket(&reactor, show)?;

    let mut command = Command::new(std::env::current_exe()?);
    command.arg("child");
    // The last copy here closes with the command: when the child ends nobody can send any more.
    ring::inherit::give(&mut command, vec![(events, EVENTS)]);
    let mut child = command.spawn()?;
    drop(command);

    Executor::new(&reactor).block_on(listening.ended());
    println!("nobody can tell us anything any more: {}", child.wait()?);
    Ok(())
}

/// Runs in the reactor's turns, whatever the rest of the program waits for.
fn show(mut message: Received) {
    let said = String::from_utf8_lossy(message.bytes()).into_owned();
    let sender = message.credentials().map_or(0, |who| who.pid);
    match message.take_descriptor() {
        Some(pipe) => {
            // Where an answer is wanted, the sender brings something to answer on.
            let answered = File::from(pipe).write_all(b"noted").is_ok();
            println!("process {sender} says: {said} (and was answered: {answered})");
        }
        None => println!("process {sender} says: {said}"),
    }
}

// -- the one who only has sendmsg --------------------------------------------------------------------------

fn tell(events: OwnedFd) -> Result<(), Failure> {
    send(&events, b"loading", None)?;
    send(&events, b"loaded", None)?;
    let (mut reader, writer) = std::io::pipe()?;
    send(&events, b"may I go?", Some(writer.as_fd()))?;
    drop(writer);
    let mut answer = String::new();
    reader.read_to_string(&mut answer)?;
    println!("the child was told: {answer}");
    Ok(())
}

fn send(events: &OwnedFd, said: &[u8], with: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = with.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(events, &[IoSlice::new(said)], &mut control, SendFlags::NOSIGNAL).map(drop)
}
