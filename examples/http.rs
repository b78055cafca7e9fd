//! An HTTP server that calls objects from its handlers: hyper on tokio in front, a worker process behind.
//!
//! The front speaks HTTP with strangers and owns nothing else but the right to call the worker. The worker
//! has no network, hears of no request but what it is asked, and could be confined to that. Calls of requests
//! that are served at the same time share packets, and a worker that dies is a 502, not a hang.
//!
//! ```text
//! cargo run --release -p sendright-examples --example http                    # asks itself a few things
//! cargo run --release -p sendright-examples --example http 127.0.0.1:8080     # serves until it is killed
//! curl http://127.0.0.1:8080/sum/2/40
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::{Executor, Guest, Reactor};
use seqpacket::{CallError, Mailbox, Object};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};

type Failure = Box<dyn Error>;

/// The number under which the worker finds its descriptor.
const MAILBOX: i32 = 3;

fn main() -> Result<(), Failure> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("work") {
        return work(ring::inherit::take(MAILBOX)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        match argument {
            Some(address) => serve(address.parse()?).await,
            None => show().await,
        }
    })
}

// -- the front ---------------------------------------------------------------------------------------------

/// Serves until the process is killed; the worker ends when nobody holds its object any more.
async fn serve(address: SocketAddr) -> Result<(), Failure> {
    let guest = Guest::new()?.on_tokio()?;
    println!("the front runs on {}", guest.reactor().driver());
    let (object, _worker) = start_worker(guest.reactor())?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    accept(listener, object).await
}

/// Serves on a port of its own, asks itself three things, and ends.
async fn show() -> Result<(), Failure> {
    let guest = Guest::new()?.on_tokio()?;
    println!("the front runs on {}", guest.reactor().driver());
    let (object, mut worker) = start_worker(guest.reactor())?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let server =
        spawn_local(async move { accept(listener, object).await.map_err(|error| error.to_string()) });
    for path in ["/sum/2/40", "/sum/two/forty", "/elsewhere"] {
        let answer = spawn_blocking(move || get(address, path)).await??;
        println!("GET {path}: {answer}");
    }
    server.abort();
    // Its object goes with it, in one of the guest's next turns, and the worker notices.
    let status = spawn_blocking(move || worker.wait()).await??;
    if status.success() { Ok(()) } else { Err(format!("the worker did not end well: {status}").into()) }
}

async fn accept(listener: TcpListener, object: Object) -> Result<(), Failure> {
    // One session for all requests: its calls are told apart by number.
    let object = Rc::new(object);
    loop {
        let (stream, _) = listener.accept().await?;
        let object = Rc::clone(&object);
        let service = service_fn(move |request| {
            let object = Rc::clone(&object);
            async move { Ok::<_, Infallible>(answer(&object, &request).await) }
        });
        // What is wrong with one connection is that connection's affair.
        spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(object: &Object, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return told(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match object.call(request.uri().path()).await {
        Ok(answer) => told(StatusCode::OK, answer.bytes().to_vec()),
        // The worker says no, and has its reasons.
        Err(CallError::Refused) => told(StatusCode::BAD_REQUEST, "that makes no sense\n"),
        // It knows of nothing like that, and drops the call.
        Err(CallError::Dropped) => told(StatusCode::NOT_FOUND, "there is no such thing\n"),
        // It is gone, or something is wrong between us and it.
        Err(error) => told(StatusCode::BAD_GATEWAY, format!("{error}\n")),
    }
}

fn told(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

// -- the worker --------------------------------------------------------------------------------------------

fn start_worker(reactor: &Reactor) -> Result<(Object, Child), Failure> {
    let (bound, address) = imc::bound_socket(reactor)?;
    let mailbox = bound.into_fd().map_err(|_| "a fresh socket is idle")?;
    let address = address.into_fd().map_err(|_| "a fresh socket is idle")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("work");
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok((Object::from_fd(reactor, address)?, command.spawn()?))
}

fn work(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let path = String::from_utf8_lossy(call.bytes()).into_owned();
            // Dropping a call answers, too.
            let Some(numbers) = path.strip_prefix("/sum/") else { continue };
            let sum = numbers
                .split('/')
                .map(|number| number.parse::<u64>().ok())
                .try_fold(0_u64, |sum, number| sum.checked_add(number?));
            match sum {
                // A front that went away meanwhile is not an error of the worker.
                Some(sum) => {
                    let _ = call.answer(format!("{sum}\n").into_bytes());
                }
                None => call.refuse(),
            }
        }
    });
    Ok(())
}

// -- a client ----------------------------------------------------------------------------------------------

/// The status and the body, as one line.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let status = response.lines().next().unwrap_or_default();
    let body = response.lines().last().unwrap_or_default();
    Ok(format!("{status}: {body}"))
}
