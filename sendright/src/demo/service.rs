//! The process that has the files: it serves one directory, to whoever holds the other end of an inherited
//! mailbox or is introduced to it, and ends with its last holder.
//!
//! It owns what it inherits: the mailbox end or the line to an introduction server, the directory, and the
//! socket on which it reports. It must never know what its objects are used for.

use std::os::fd::OwnedFd;

use introduction::{Expect, Identity, Netlayer, NetlayerOptions, Proof, PublicKey};
use ring::{Fd, Message, Reactor};
use seqpacket::Mailbox;

use super::report::{Met, Record, Served};
use super::{HERE_IS_A_DIRECTORY, LINE_FD, REPORT_FD, ROOT_FD, inherited, send_records};
use crate::census::Census;
use crate::files::server::Service;
use crate::options::DemoService;
use crate::output::{Failure, Outcome};
use crate::reactor;

/// Inherited descriptors that are gone when the work is done: mailbox or line, and directory.
const CONSUMED: i64 = 2;

/// Descriptors that belong to no object: standard streams, reactor, report, one directory while it is listed.
const DESCRIPTORS_RESERVE: usize = 40;

/// What an object costs at most: mailbox, directory, a session for each of two holders.
const DESCRIPTORS_PER_OBJECT: usize = 4;

/// Fewer would not let two walkers go forward.
const OBJECTS_MIN: usize = 8;

/// Serves until nobody holds an object any more.
pub fn run(options: &DemoService) -> Result<Outcome, Failure> {
    super::die_with_parent();
    let report = inherited(REPORT_FD)?;
    let line = inherited(LINE_FD)?;
    let root = inherited(ROOT_FD)?;
    let mut census = Census::open();
    let before = super::count(&mut census)?;

    let mut served = serve(options, line, root, &report)?;

    ring::closer_idle();
    let after = super::count(&mut census)?;
    served.leaked_descriptors = before.zip(after).map(|(before, after)| after - (before - CONSUMED));
    let outcome = if served.left == 0 { Outcome::Good } else { Outcome::Failed };
    send_records(&report, &[Record::Served(served)])?;
    Ok(outcome)
}

fn serve(options: &DemoService, line: OwnedFd, root: OwnedFd, report: &OwnedFd) -> Result<Served, Failure> {
    let (reactor, executor) = reactor::start(options.driver.as_deref())?;
    let (mailbox, netlayer) = match options.server {
        None => (line, None),
        Some(server) => {
            let meeting = be_found(&reactor, line, server, report);
            let (mailbox, netlayer) = executor.block_on(meeting)?;
            (mailbox, Some(netlayer))
        }
    };
    let mailbox = Mailbox::from_fd(&reactor, mailbox).map_err(Failure::new)?;
    let room = reactor::descriptors_max().saturating_sub(DESCRIPTORS_RESERVE) / DESCRIPTORS_PER_OBJECT;
    let service = Service::new(&executor, &root, room.max(OBJECTS_MIN));
    service.serve(mailbox, root);
    executor.block_on(service.idle());
    // Its server is long gone.
    drop(netlayer);
    let driver = reactor.driver();
    let done = service.done();
    Ok(Served {
        driver: driver.kind().to_string(),
        reason: driver.reason().to_string(),
        directories: done.directories,
        files: done.files,
        answers: done.answers,
        opens_with: service.opens_with().to_string(),
        left: done.objects,
        leaked_descriptors: None,
    })
}

/// Registers, says under which locator, and gives the address of the root to the one who asks for that:
/// whoever knows the locator.
async fn be_found(
    reactor: &Reactor,
    line: OwnedFd,
    server: PublicKey,
    report: &OwnedFd,
) -> Result<(OwnedFd, Netlayer), Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Failure::new(format_args!("{what}: {error}"));
    let identity = Identity::generate().map_err(|error| failed("a key", &error))?;
    let mut options = NetlayerOptions::default();
    options.proof = Proof::Required;
    let netlayer = Netlayer::with_options(reactor, identity, options);
    let registered = netlayer.add_server(line, Expect::key(server).bound()).await;
    // That the server is gone is nothing to wait for: what has been introduced stays.
    drop(registered.map_err(|error| failed("registering", &error))?);
    let locator = netlayer.our_location().to_string();
    send_records(report, &[Record::Listed { locator }])?;

    let incoming = netlayer.incoming().await;
    let key = netlayer.key().to_string();
    let met = Met { key, other: incoming.from().key.to_string(), proved: incoming.is_proved() };
    let Some(client) = incoming.accept().into_seqpacket() else {
        return Err(Failure::new("the client came over a stream"));
    };
    let (mailbox, address) = super::pair().map_err(|error| failed("a mailbox", &error))?;
    let message = Message::from(HERE_IS_A_DIRECTORY).with_descriptor(Fd::from(address));
    client.send(message).await.map_err(|error| failed("handing the directory over", &error))?;
    send_records(report, &[Record::Met(met)])?;
    Ok((mailbox, netlayer))
}
