//! Plain objects between this program and Python, with nothing of ours on the other side.
//!
//! The Python process uses `plain.py`, twenty lines of standard library, and is given one descriptor: the
//! right to call an object of ours. It calls it; it passes on an object of its own as an argument of a call;
//! it serves that object to us; and gets one of ours passed on, which it calls before it answers.
//!
//! Without a `python3` the program says so and ends well.
//!
//! ```text
//! cargo run --release -p sendright-examples --example python_peer
//! ```

use std::error::Error;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use ring::{Executor, Message, Reactor};
use seqpacket::{PlainMailbox, PlainObject, plain_object};

type Failure = Box<dyn Error>;

/// The whole Python program. Descriptor 3 is the right to call us.
const PEER: &str = r#"
import socket
from plain import call, serve

ours = socket.socket(fileno=3)
print("python calls:", call(ours, b"hello from python")[0].decode(), flush=True)

thing, mailbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
with thing, ours:
    print("python passes an object on:", call(ours, b"call me", thing.fileno())[0].decode(), flush=True)

def reverse(message, arguments):
    for argument in arguments:
        with socket.fromfd(argument, socket.AF_UNIX, socket.SOCK_SEQPACKET) as passed_on:
            message = call(passed_on, message)[0]
    return [message[::-1]], []

serve(mailbox, reverse)
print("python notices that nobody can call it any more", flush=True)
"#;

/// Where `plain.py` is.
const MODULES: &str = env!("CARGO_MANIFEST_DIR");

fn main() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    println!("this side runs on {}", reactor.driver());
    let (shouter, mailbox) = plain_object(&reactor)?;
    let Some(mut python) = start_python(shouter.share()?)? else {
        println!("skipped: there is no python3 on this machine");
        return Ok(());
    };
    // Python is now the only holder, so that we notice if it goes.
    drop(shouter);
    let executor = Executor::new(&reactor);
    executor.block_on(talk(&mailbox))?;

    // What the conversation held is closed in the reactor's next turn, and Python comes to its end.
    executor.settle();
    let status = python.wait()?;
    if status.success() { Ok(()) } else { Err(format!("python3: {status}").into()) }
}

/// `None` if the machine has no Python.
fn start_python(shouter: OwnedFd) -> Result<Option<Child>, Failure> {
    let mut command = Command::new("python3");
    command.args(["-c", PEER]).env("PYTHONPATH", MODULES).env("PYTHONDONTWRITEBYTECODE", "1");
    ring::inherit::give(&mut command, vec![(shouter, 3)]);
    match command.spawn() {
        Ok(python) => Ok(Some(python)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn talk(mailbox: &PlainMailbox) -> Result<(), Failure> {
    let reactor = mailbox.reactor();

    // Python calls us.
    shout(mailbox).await?;

    // Python passes an object on to us, and from now on we call it.
    let mut call = mailbox.next().await.ok_or("python has gone")?;
    let thing = call.take_descriptor().ok_or("no object was passed on")?;
    let reverser = PlainObject::from_fd(reactor, thing)?;
    call.answer("thank you")?;
    expect("served by python", reverser.call("stressed").await?.bytes(), b"desserts")?;

    // We pass one of ours on to Python, which calls it before it answers. Our call is under way meanwhile,
    // whether or not anybody waits for it.
    let (another, mailbox) = plain_object(reactor)?;
    let call = reverser.call(Message::from("drawer").with_descriptor(another.share()?));
    drop(another);
    shout(&mailbox).await?;
    expect("served by python with our help", call.await?.bytes(), b"REWARD")
}

/// Serves one call.
async fn shout(mailbox: &PlainMailbox) -> Result<(), Failure> {
    let call = mailbox.next().await.ok_or("python has gone")?;
    let louder = call.bytes().to_ascii_uppercase();
    Ok(call.answer(louder)?)
}

fn expect(what: &str, answer: &[u8], expected: &[u8]) -> Result<(), Failure> {
    println!("{what}: {}", String::from_utf8_lossy(answer));
    if answer == expected { Ok(()) } else { Err("that is not what was asked for".into()) }
}
