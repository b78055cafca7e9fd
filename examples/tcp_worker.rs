//! A TCP connection, accepted here and served by another process.
//!
//! The acceptor passes each connection to the worker in a call, as a descriptor. From then on the worker
//! alone holds it: it reads the request, writes the response and closes, and no byte of the connection goes
//! through the acceptor. The answer to the call says only that it was done. The worker needs no right to open
//! sockets, and could be replaced without refusing a single client.
//!
//! The clients are threads of this program, on the loopback interface, so that it shows something and ends.
//!
//! ```text
//! cargo run --release -p sendright-examples --example tcp_worker
//! ```

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use seqpacket::{Mailbox, Object};

type Failure = Box<dyn Error>;

/// The number under which the worker finds its mailbox.
const MAILBOX: i32 = 3;

/// How many clients come.
const CLIENTS: usize = 3;

/// How long anybody here waits for a TCP peer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest request line the worker reads.
const REQUEST_BYTES_MAX: u64 = 1024;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => work(ring::inherit::take(MAILBOX)?),
        _ => accept(),
    }
}

// -- the acceptor ------------------------------------------------------------------------------------------

fn accept() -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    println!("the acceptor runs on {}", reactor.driver());
    let (bound, address) = imc::bound_socket(&reactor)?;
    let mut process = start_worker(bound.into_fd().map_err(|_| "a fresh socket is idle")?)?;
    let worker = Object::from_fd(&reactor, address.into_fd().map_err(|_| "a fresh socket is idle")?)?;
    let executor = Executor::new(&reactor);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let here = listener.local_addr()?;
    let pids = [std::process::id(), process.id()];
    println!("acceptor: process {}, listening on {here}; worker: process {}", pids[0], pids[1]);
    let clients: Vec<_> =
        (1..=CLIENTS).map(|number| thread::spawn(move || be_client(here, number))).collect();

    for _ in 0..CLIENTS {
        let (connection, from) = listener.accept()?;
        // The connection is an argument like any other. It is closed here once it has been sent, so when the
        // worker closes it the client sees the end.
        let call = Message::from(from.to_string()).with_descriptor(OwnedFd::from(connection));
        let report = executor.block_on(worker.call(call))?;
        println!("passed on {from}: {}", String::from_utf8_lossy(report.bytes()));
    }

    let expected = format!("process {}", process.id());
    for client in clients {
        let response = client.join().map_err(|_| "a client panicked")??;
        let said = response.lines().last().unwrap_or_default();
        println!("a client was told: {said}");
        if !said.ends_with(&expected) {
            return Err("the response is not the worker's".into());
        }
    }

    // Without a holder the worker ends. The descriptor is closed in the reactor's next turn.
    drop(worker);
    executor.settle();
    if !process.wait()?.success() {
        return Err("the worker did not end well".into());
    }
    println!("the worker has ended");
    Ok(())
}

fn start_worker(mailbox: OwnedFd) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker");
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok(command.spawn()?)
}

fn be_client(server: SocketAddr, number: usize) -> io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&server, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET /{number} HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    Ok(response)
}

// -- the worker --------------------------------------------------------------------------------------------

fn work(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let Some(connection) = call.take_descriptor() else { continue };
            // Serving blocks this thread, which has nothing else to do: the acceptor sends the next one when
            // this one is done.
            let report = match respond(TcpStream::from(connection)) {
                Ok(request) => format!("served {request:?}"),
                Err(error) => format!("not served: {error}"),
            };
            let _ = call.answer(report);
        }
    });
    Ok(())
}

/// Reads one request, responds, and closes the connection.
fn respond(connection: TcpStream) -> io::Result<String> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new((&connection).take(REQUEST_BYTES_MAX)).lines();
    let request = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    // What is left unread when the connection closes would reset it under the client's eyes.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let body = format!("{request} was served by process {}\n", std::process::id());
    write!(&connection, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(request)
}
