//! A process that has no file system and walks a tree all the same, through objects.
//!
//! It owns what it inherits: an address to attach to, the line to a server that introduces it to whoever has
//! one, or the socket over which one comes; and the socket on which it reports. It must never open anything
//! by name, and first of all gives up being able to.

mod walk;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use introduction::{Expect, Identity, Locator, Netlayer, PublicKey};
use ring::{Executor, Message, Reactor, Received, Socket};
use seqpacket::Pairs;

use super::report::{Met, Record, Sandboxed, Walked};
use super::{GUEST_FD, HERE_IS_A_DIRECTORY, LINE_FD, REPORT_FD, inherited, sandbox, send_records};
use crate::census::Census;
use crate::files::client::{Directory, Meter, Opened};
use crate::files::wire::Leaf;
use crate::latency::Way;
use crate::options::DemoWalker;
use crate::output::{Failure, Outcome};
use crate::reactor;

/// Walks, reports, and says at the end how it went.
pub fn run(options: &DemoWalker) -> Result<Outcome, Failure> {
    super::die_with_parent();
    let report = inherited(REPORT_FD)?;
    let own = match (options.guest, options.server, &options.locator) {
        (true, ..) => Own::Guest(inherited(GUEST_FD)?),
        (false, Some(server), Some(service)) => Own::Stranger {
            line: inherited(LINE_FD)?,
            server,
            service: Box::new(service.clone()),
            guest: inherited(GUEST_FD)?,
        },
        (false, ..) => Own::Client { address: inherited(LINE_FD)?, guest: inherited(GUEST_FD)? },
    };
    let consumed = match own {
        Own::Guest(_) => 1,
        Own::Client { .. } | Own::Stranger { .. } => 2,
    };
    let mut census = Census::open();
    let before = super::count(&mut census)?;
    // Before any thread is started: a thread made later is inside as well.
    let sandbox = sandbox::enter(Path::new(&options.forbidden));

    let (mut walked, latencies) = walk_all(options, own, &report, sandbox)?;

    ring::closer_idle();
    let after = super::count(&mut census)?;
    walked.leaked_descriptors = before.zip(after).map(|(before, after)| after - (before - consumed));
    let outcome = if walked.complete { Outcome::Good } else { Outcome::Failed };
    let mut records = latencies;
    records.push(Record::Walked(walked));
    send_records(&report, &records)?;
    Ok(outcome)
}

/// What a walking process was started with.
enum Own {
    /// The address of the root, and the socket to the guest.
    Client { address: OwnedFd, guest: OwnedFd },
    /// A line to a server, who to ask it for, and the socket to the guest.
    Stranger { line: OwnedFd, server: PublicKey, service: Box<Locator>, guest: OwnedFd },
    /// The socket from the client.
    Guest(OwnedFd),
}

fn walk_all(
    options: &DemoWalker,
    own: Own,
    report: &OwnedFd,
    sandbox: Sandboxed,
) -> Result<(Walked, Vec<Record<'static>>), Failure> {
    let (reactor, executor) = reactor::start(options.driver.as_deref())?;
    let duplicate = report.try_clone();
    let duplicate = duplicate.map_err(|error| Failure::new(format_args!("report socket: {error}")))?;
    let reports = Socket::wrap(&reactor, duplicate).map_err(Failure::new)?;
    let meter = Meter::new();
    let limits = walk::Limits::within(reactor::descriptors_max());

    let pairs = Pairs::new(&reactor, limits.pairs_max);

    let complete = executor.block_on(async {
        let root = find_root(options, own, &pairs, &reactor, &meter, report).await?;
        walk::walk(&executor, root, reports, limits).await
    })?;

    let driver = reactor.driver();
    let latencies = [Way::Session, Way::Plain].into_iter().flat_map(|way| {
        let recorded = meter.latencies(way).borrow().recorded();
        recorded.into_iter().map(move |(latency_ns, calls)| Record::Latency { way, latency_ns, calls })
    });
    let walked = Walked {
        driver: driver.kind().to_string(),
        reason: driver.reason().to_string(),
        sandbox,
        descriptors_passed: meter.descriptors(),
        leaked_descriptors: None,
        in_flight_max: limits.in_flight_max,
        complete,
    };
    let latencies = latencies.collect();
    // What is still queued for closing belongs to the reactor.
    drop::<Executor>(executor);
    Ok((walked, latencies))
}

/// The directory to walk: the client attaches to its address and first of all hands on what the guest is to
/// have.
async fn find_root(
    options: &DemoWalker,
    own: Own,
    pairs: &Pairs,
    reactor: &Reactor,
    meter: &Rc<Meter>,
    report: &OwnedFd,
) -> Result<Directory, Failure> {
    let (address, guest) = match own {
        Own::Client { address, guest } => (address, guest),
        Own::Stranger { line, server, service, guest } => {
            let address = find_service(reactor, line, server, &service, report).await?;
            meter.count_descriptor();
            (address, guest)
        }
        Own::Guest(socket) => {
            let socket = Socket::wrap(reactor, socket).map_err(Failure::new)?;
            let received = socket.receive().await;
            // Counted by the client, which sent it.
            let address = directory_in(received.map_err(|error| failed("waiting for a directory", error))?)?;
            return Directory::from_fd(pairs, reactor, address, meter).map_err(Failure::new);
        }
    };
    let root = Directory::from_fd(pairs, reactor, address, meter).map_err(Failure::new)?;
    let granted = grant(&root, options).await?;
    let guest = Socket::wrap(reactor, guest).map_err(Failure::new)?;
    let message = Message::from(HERE_IS_A_DIRECTORY).with_descriptor(granted);
    let sent = guest.send(message).await;
    sent.map_err(|error| failed("handing a directory to the third process", error))?;
    meter.count_descriptor();
    Ok(root)
}

/// Has itself introduced to the service, is given a directory, and waits until the server is no more: all
/// that follows goes without it.
async fn find_service(
    reactor: &Reactor,
    line: OwnedFd,
    server: PublicKey,
    service: &Locator,
    report: &OwnedFd,
) -> Result<OwnedFd, Failure> {
    let identity = Identity::generate().map_err(|error| failed("a key", error))?;
    let netlayer = Netlayer::new(reactor, identity);
    let registered = netlayer.add_server(line, Expect::key(server).bound()).await;
    let gone = registered.map_err(|error| failed("registering", error))?;
    let connection = netlayer.connect(service).await;
    let connection = connection.map_err(|error| failed("looking for the service", error))?;
    let Some(connection) = connection.into_seqpacket() else {
        return Err(Failure::new("looking for the service: a stream, which nobody has proved to be of"));
    };
    let received = connection.receive().await;
    let address = directory_in(received.map_err(|error| failed("waiting for a directory", error))?)?;
    // The locator demands a proof, and without one there would be no connection.
    let met = Met { key: netlayer.key().to_string(), other: service.key.to_string(), proved: true };
    send_records(report, &[Record::Met(met)])?;
    gone.await;
    Ok(address)
}

/// What came when a directory was to come.
fn directory_in(mut received: Received) -> Result<OwnedFd, Failure> {
    let address = match received.bytes() {
        HERE_IS_A_DIRECTORY => received.take_descriptor(),
        _ => None,
    };
    address.ok_or_else(|| Failure::new("waiting for a directory: something else came"))
}

async fn grant(root: &Directory, options: &DemoWalker) -> Result<OwnedFd, Failure> {
    let granted = match &options.grant {
        None => root.grant().await,
        Some(name) => {
            let name = Leaf::new(name.as_bytes()).map_err(|malformed| failed("--grant", malformed))?;
            match root.open(name).await.map_err(|trouble| failed("opening what is to be granted", trouble))? {
                Opened::Directory(directory) => directory.grant().await,
                Opened::File(_) | Opened::Link => {
                    return Err(Failure::new("what is to be granted is no directory"));
                }
            }
        }
    };
    granted.map_err(|trouble| failed("granting a directory", trouble))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("{what}: {error}"))
}
