//! Several processes serve one object, and the death of one of them is the end of nothing.
//!
//! All workers inherit a copy of the same bound end. Each takes a client only while it has nothing else to
//! do, so clients spread over those that are free. When a worker is killed, its clients' calls end as
//! `Dropped`, and their next calls attach to somebody else.
//!
//! ```text
//! cargo run --release -p sendright-examples --example shared_workers
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::Duration;

use ring::{Executor, Reactor};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use seqpacket::{CallError, Object, SharedMailbox};

type Failure = Box<dyn Error>;

const WORKERS: usize = 3;
const CLIENTS: usize = 12;

/// The number under which a worker finds its copy of the bound end.
const SHARED: i32 = 3;

/// What one call takes a worker: long enough for its siblings to be the faster ones.
const WORK: Duration = Duration::from_millis(20);

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker(ring::inherit::take(SHARED)?),
        _ => clients(),
    }
}

// -- the workers -------------------------------------------------------------------------------------------

fn worker(shared: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = SharedMailbox::from_fd(&reactor, shared)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            // While it works here nobody awaits calls, and so nobody is attached.
            reactor.sleep(WORK).await;
            let _ = call.answer(std::process::id().to_string());
        }
        Ok(())
    })
}

// -- the clients, all in one process -----------------------------------------------------------------------

fn clients() -> Result<(), Failure> {
    let (bound, address) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(start(bound.try_clone()?)?);
    }
    // The last copy that serves nothing: with it the object would never be gone.
    drop(bound);

    let reactor = Reactor::new()?;
    println!("the clients run on {}", reactor.driver());
    // Objects of their own, so that each has a session of its own: as if in different processes.
    let clients = (0..CLIENTS)
        .map(|_| Ok(Object::from_fd(&reactor, address.try_clone()?)?))
        .collect::<Result<Vec<Object>, Failure>>()?;
    Executor::new(&reactor).block_on(async {
        let served = ask_all(&clients).await?;
        println!("{CLIENTS} clients were served by {} workers", distinct(&served));

        let dead = workers.remove(0).kill();
        println!("process {dead} was killed");
        let served = ask_all(&clients).await?;
        println!("{CLIENTS} clients were served by {} workers", distinct(&served));
        if served.contains(&dead) {
            return Err("the dead have answered".into());
        }

        drop(workers);
        // A session may have to find out first; then nobody is there to attach to.
        loop {
            match clients[0].call("anyone?").await {
                Err(CallError::Gone) => break,
                Err(CallError::Dropped) => {}
                other => return Err(format!("expected that the object is gone, got {other:?}").into()),
            }
        }
        println!("with the last worker the object is gone");
        Ok(())
    })
}

/// Calls through all of them at once. A call whose worker dies is made again.
async fn ask_all(clients: &[Object]) -> Result<Vec<u32>, Failure> {
    let calls: Vec<_> = clients.iter().map(|client| client.call("who is there?")).collect();
    let mut served = Vec::new();
    for (client, call) in clients.iter().zip(calls) {
        let mut answer = call.await;
        // The question may have been seen; it does no harm twice.
        while let Err(CallError::Dropped | CallError::Gone) = answer {
            answer = client.call("who is there?").await;
        }
        served.push(String::from_utf8_lossy(answer?.bytes()).parse()?);
    }
    Ok(served)
}

fn distinct(served: &[u32]) -> usize {
    served.iter().collect::<BTreeSet<_>>().len()
}

/// One process that serves. It does not outlive this.
struct Worker(Child);

impl Worker {
    /// Says which it was.
    fn kill(self) -> u32 {
        self.0.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have died by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program once more, with a copy of the bound end and nothing else.
fn start(shared: OwnedFd) -> Result<Worker, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker");
    ring::inherit::give(&mut command, vec![(shared, SHARED)]);
    Ok(Worker(command.spawn()?))
}
