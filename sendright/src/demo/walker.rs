//! A process that has no file system and walks a tree all the same, through objects.
//!
//! It owns what it inherits: an address to attach to, or the socket over which one comes; and the socket on
//! which it reports. It must never open anything by name, and first of all gives up being able to.

mod walk;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use ring::{Executor, Message, Reactor, Socket};
use seqpacket::Pairs;

use super::report::{Record, Sandboxed, Walked};
use super::{ADDRESS_FD, GUEST_FD, REPORT_FD, inherited, sandbox, send_last_words};
use crate::census::Census;
use crate::files::client::{Directory, Meter, Opened};
use crate::files::wire::Leaf;
use crate::latency::Way;
use crate::options::DemoWalker;
use crate::output::{Failure, Outcome};
use crate::reactor;

/// What the client says when it hands a directory over.
const HERE_IS_A_DIRECTORY: &[u8] = b"directory";

/// Walks, reports, and says at the end how it went.
pub fn run(options: &DemoWalker) -> Result<Outcome, Failure> {
    super::die_with_parent();
    let report = inherited(REPORT_FD)?;
    let own = match options.guest {
        true => Own::Guest(inherited(GUEST_FD)?),
        false => Own::Client { address: inherited(ADDRESS_FD)?, guest: inherited(GUEST_FD)? },
    };
    let consumed = match own {
        Own::Guest(_) => 1,
        Own::Client { .. } => 2,
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
    send_last_words(&report, &records)?;
    Ok(outcome)
}

/// What a walking process was started with.
enum Own {
    /// The address of the root, and the socket to the guest.
    Client { address: OwnedFd, guest: OwnedFd },
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
    let report = report.try_clone().map_err(|error| Failure::new(format_args!("report socket: {error}")))?;
    let report = Socket::wrap(&reactor, report).map_err(Failure::new)?;
    let meter = Meter::new();
    let limits = walk::Limits::within(reactor::descriptors_max());

    let pairs = Pairs::new(&reactor, limits.pairs_max);

    let complete = executor.block_on(async {
        let root = find_root(options, own, &pairs, &reactor, &meter).await?;
        walk::walk(&executor, root, report, limits).await
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
) -> Result<Directory, Failure> {
    match own {
        Own::Client { address, guest } => {
            let root = Directory::from_fd(pairs, reactor, address, meter).map_err(Failure::new)?;
            let granted = grant(&root, options).await?;
            let guest = Socket::wrap(reactor, guest).map_err(Failure::new)?;
            let message = Message::from(HERE_IS_A_DIRECTORY).with_descriptor(granted);
            guest
                .send(message)
                .await
                .map_err(|error| failed("handing a directory to the third process", error))?;
            meter.count_descriptor();
            Ok(root)
        }
        Own::Guest(socket) => {
            let socket = Socket::wrap(reactor, socket).map_err(Failure::new)?;
            let received = socket.receive().await;
            let mut received = received.map_err(|error| failed("waiting for a directory", error))?;
            let address = match received.bytes() {
                HERE_IS_A_DIRECTORY => received.take_descriptor(),
                _ => None,
            };
            // Counted by the client, which sent it.
            let address =
                address.ok_or_else(|| Failure::new("waiting for a directory: something else came"))?;
            Directory::from_fd(pairs, reactor, address, meter).map_err(Failure::new)
        }
    }
}

async fn grant(root: &Directory, options: &DemoWalker) -> Result<OwnedFd, Failure> {
    let granted = match &options.grant {
        None => root.grant().await,
        Some(name) => {
            let name = Leaf::new(name.as_bytes()).map_err(|malformed| failed("--grant", malformed))?;
            match root.open(name).await.map_err(|trouble| failed("opening what is to be granted", trouble))? {
                Opened::Directory(directory) => directory.grant().await,
                Opened::File(_) => return Err(Failure::new("what is to be granted is a file")),
            }
        }
    };
    granted.map_err(|trouble| failed("granting a directory", trouble))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("{what}: {error}"))
}
