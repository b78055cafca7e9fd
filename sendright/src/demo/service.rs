//! The process that has the files: it serves one directory on one inherited mailbox, and ends with its last
//! holder.
//!
//! It owns what it inherits: the mailbox end, the directory, and the socket on which it reports when it is
//! done. It must never know who holds its objects.

use std::os::fd::OwnedFd;

use seqpacket::Mailbox;

use super::report::{Record, Served};
use super::{MAILBOX_FD, REPORT_FD, ROOT_FD, inherited, send_last_words};
use crate::census::Census;
use crate::files::server::Service;
use crate::options::DemoService;
use crate::output::{Failure, Outcome};
use crate::reactor;

/// Inherited descriptors that are gone when the work is done: mailbox and directory.
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
    let mailbox = inherited(MAILBOX_FD)?;
    let root = inherited(ROOT_FD)?;
    let mut census = Census::open();
    let before = super::count(&mut census)?;

    let mut served = serve(options, mailbox, root)?;

    ring::closer_idle();
    let after = super::count(&mut census)?;
    served.leaked_descriptors = before.zip(after).map(|(before, after)| after - (before - CONSUMED));
    let outcome = if served.left == 0 { Outcome::Good } else { Outcome::Failed };
    send_last_words(&report, &[Record::Served(served)])?;
    Ok(outcome)
}

fn serve(options: &DemoService, mailbox: OwnedFd, root: OwnedFd) -> Result<Served, Failure> {
    let (reactor, executor) = reactor::start(options.driver.as_deref())?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox).map_err(Failure::new)?;
    let room = reactor::descriptors_max().saturating_sub(DESCRIPTORS_RESERVE) / DESCRIPTORS_PER_OBJECT;
    let service = Service::new(&executor, &root, room.max(OBJECTS_MIN));
    service.serve(mailbox, root);
    executor.block_on(service.idle());
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
