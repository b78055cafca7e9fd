//! A command line that calls an object and has no loop: calls that wait where they are made, from one thread
//! and from another.
//!
//! The server is the same program, started a second time, on a reactor. The client never makes one. A reactor
//! is worth its while where many calls are under way; who waits for one answer is served faster without.
//!
//! ```text
//! cargo run --release -p sendright-examples --example blocking_client
//! ```

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use ring::{Executor, Reactor, WaitPolicy};
use seqpacket::blocking::{Object, Outgoing};
use seqpacket::{CallError, CallOptions, Mailbox};

type Failure = Box<dyn Error + Send + Sync>;

/// The number under which the child finds its descriptor.
const MAILBOX: i32 = 3;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(ring::inherit::take(MAILBOX)?),
        _ => call(),
    }
}

// -- the client --------------------------------------------------------------------------------------------

fn call() -> Result<(), Failure> {
    // The two ends of one pair: the child gets one, the other is the right to call.
    let (bound, address) = imc::blocking::bound_socket()?;
    let mut server = start_server(bound.into_fd())?;
    let words = Object::from_fd(address.into_fd())?;

    // One call, one answer: two system calls.
    println!("{}", text(&words.call("driver")?));
    println!("one answer: {}", text(&words.call("hello there")?));

    // Several that travel in one packet.
    let lines = ["one", "two words", "now three words"];
    let counts: Result<Vec<_>, CallError> = words.call_many(lines).into_iter().collect();
    println!("several: {}", counts?.iter().map(text).collect::<Vec<_>>().join(", "));

    // A descriptor goes with a message, and stays ours if it is lent.
    let (reader, mut writer) = std::io::pipe()?;
    std::io::Write::write_all(&mut writer, b"four words in a pipe, or five")?;
    drop(writer);
    println!(
        "of a pipe: {}",
        text(&words.call(Outgoing::from("read").with_descriptor(OwnedFd::from(reader)))?)
    );

    // No answer in time: the call is withdrawn, and the handle is as good as before.
    let patience = CallOptions { within: Some(Duration::from_millis(20)), ..CallOptions::default() };
    match words.call_with("sleep", patience) {
        Err(error @ (CallError::Deadline | CallError::Expired)) => println!("too late: {error}"),
        other => return Err(format!("an answer that never comes came: {other:?}").into()),
    }

    // Another thread has a session of its own. It would rather look for a while than be woken.
    let other = words.try_clone()?;
    other.set_wait_policy(WaitPolicy::spin());
    let there = thread::spawn(move || other.call("from another thread").map(|answer| text(&answer)));
    println!("meanwhile here: {}", text(&words.call("from this one")?));
    println!("and there: {}", there.join().map_err(|_| "the other thread is lost")??);

    drop(words);
    let status = server.wait()?;
    println!("the server has noticed that nobody can call it any more: {status}");
    if status.success() { Ok(()) } else { Err("the server did not end well".into()) }
}

fn text(answer: &seqpacket::blocking::Answer) -> String {
    String::from_utf8_lossy(answer.bytes()).into_owned()
}

fn start_server(mailbox: OwnedFd) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve");
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok(command.spawn()?)
}

// -- the server --------------------------------------------------------------------------------------------

fn serve(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    let executor = Executor::new(&reactor);
    let spawner = executor.spawner();
    executor.block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let pipe = call.take_descriptor();
            let answer = match (call.bytes(), pipe) {
                (b"driver", _) => format!("the server runs on {}", reactor.driver()),
                (b"sleep", _) => {
                    spawner.spawn(async move { call.continuation().cancelled().await });
                    continue;
                }
                (_, Some(fd)) => count(&std::io::read_to_string(std::fs::File::from(fd)).unwrap_or_default()),
                (bytes, None) => count(&String::from_utf8_lossy(bytes)),
            };
            // A caller that went away meanwhile is not an error of the server.
            let _ = call.answer(answer);
        }
    });
    Ok(())
}

fn count(text: &str) -> String {
    match text.split_whitespace().count() {
        1 => "1 word".to_owned(),
        words => format!("{words} words"),
    }
}
