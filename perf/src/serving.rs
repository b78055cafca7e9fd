//! What answers the calls of a [workload](crate::Workload): objects as any program would serve them, and bare
//! system calls.
//!
//! Each answer has as many descriptors as its call had: the server's own, as a file that it has opened would
//! be, and those of the call are closed as they are taken, which is what the bare system calls do. One that
//! is a caller's and goes back would be asked what it is before it is closed, in two system calls more.
//!
//! It does not know what is called, or how often.

use ring::{Executor, Fd, Message};
use seqpacket::{Mailbox, PlainMailbox};

use crate::floor;
use crate::process::{Failure, Order};

/// Bare system calls: each packet is sent back, with its descriptors.
pub const ECHO: &str = "raw echo";
/// The same in an event loop with nothing else in it. It is told whether packets come one at a time.
pub const ECHO_IN_LOOP: &str = "raw echo in a loop";
/// Bare system calls: each packet is sent back over the last of its descriptors.
pub const CONTINUATIONS: &str = "raw continuations";
/// The same, and that descriptor with it.
pub const CONTINUATIONS_RETURNED: &str = "raw returned continuations";
/// The same in an event loop with nothing else in it, told as [`ECHO_IN_LOOP`] is.
pub const CONTINUATIONS_RETURNED_IN_LOOP: &str = "raw returned continuations in a loop";
/// As [`CONTINUATIONS_RETURNED`], and everything asked that has to be known of such a descriptor.
pub const CONTINUATIONS_RETURNED_ASKED: &str = "raw returned continuations, asked";
/// What [`ECHO_IN_LOOP`] is told if no packet is sent before the last one was answered.
pub const ONE_AT_A_TIME: &str = "1";
/// The mailbox of an object with sessions.
pub const SESSION: &str = "session";
/// The mailbox of a plain object. It is told how many descriptors a call has.
pub const PLAIN: &str = "plain";
/// The same, and continuations go home with answers.
pub const PLAIN_RETURNED: &str = "plain, returned";

pub(crate) fn echo(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::serve_echo(end, order.wait)?)
}

pub(crate) fn echo_in_loop(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::serve_echo_in_loop(end, order.told == ONE_AT_A_TIME, order.wait)?)
}

pub(crate) fn continuations(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::serve_continuations(end, false, order.wait)?)
}

pub(crate) fn continuations_returned(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::serve_continuations(end, true, order.wait)?)
}

pub(crate) fn continuations_returned_in_loop(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::return_continuations_in_loop(end, order.told == ONE_AT_A_TIME, order.wait)?)
}

pub(crate) fn continuations_returned_asked(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    Ok(floor::return_continuations_asked(end, order.wait)?)
}

pub(crate) fn session(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    let reactor = order.reactor()?;
    let mailbox = Mailbox::from_fd(&reactor, end)?;
    let passed = Fd::made_here(floor::something_to_pass()?);
    Executor::new(&reactor).block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let mut answer = Message::from(call.bytes());
            while call.take_descriptor().is_some() {
                answer.push_descriptor(passed.clone());
            }
            call.answer(answer)?;
        }
        Ok(())
    })
}

pub(crate) fn plain(order: Order) -> Result<(), Failure> {
    serve_plain(order, |_| {})
}

pub(crate) fn plain_returned(order: Order) -> Result<(), Failure> {
    serve_plain(order, PlainMailbox::return_continuations)
}

fn serve_plain(mut order: Order, prepare: fn(&PlainMailbox)) -> Result<(), Failure> {
    let [end] = order.take()?;
    let reactor = order.reactor()?;
    let mailbox = PlainMailbox::from_fd(&reactor, end)?;
    let fds: usize = order.told.parse()?;
    if fds > seqpacket::PLAIN_ARGUMENTS_DEFAULT {
        mailbox.set_arguments_max(fds);
    }
    prepare(&mailbox);
    let passed = Fd::made_here(floor::something_to_pass()?);
    Executor::new(&reactor).block_on(async {
        while let Some(mut call) = mailbox.next().await {
            let mut answer = Message::from(call.bytes());
            while call.take_descriptor().is_some() {
                answer.push_descriptor(passed.clone());
            }
            call.answer(answer)?;
        }
        Ok(())
    })
}
