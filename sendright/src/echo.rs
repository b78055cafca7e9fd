//! Serving an inherited descriptor by sending back what arrives: the wire, for people with other languages.
//!
//! It owns the loops of three servers, one for each protocol, and how much they hold at a time. It must never
//! know what the bytes mean. Nothing a peer does ends a loop but the last holder letting go.

use std::os::fd::OwnedFd;
use std::time::Duration;

use imc::{AcceptError, BoundSocket, ConnectedSocket};
use ring::{DESCRIPTORS_MAX, Fd, Message, ReceiveError, Received, SendError};
use seqpacket::{AnswerError, Mailbox, MailboxOptions, PLAIN_ARGUMENTS_MAX, PlainMailbox};

use crate::options::{EchoImc, EchoObject};
use crate::output::{Failure, Outcome, remark};
use crate::permits::{Permit, Permits};
use crate::reactor;

/// Descriptors that belong to no connection: standard streams, the reactor and its reserve, the served one.
const DESCRIPTORS_RESERVE: usize = 48;

/// Connections served whatever the limit.
const CONNECTIONS_MIN: usize = 2;

/// How long a peer that does not read may keep the descriptors it is to have back.
const SEND_TIME_MAX: Duration = Duration::from_secs(10);

/// How long to leave the kernel alone that has too many descriptors of ours in flight.
const IN_FLIGHT_WAIT: Duration = Duration::from_millis(5);

/// Serves the bound end of an imc address until no address and no connection is left.
pub fn imc(options: &EchoImc) -> Result<Outcome, Failure> {
    let fd = inherited(options.fd)?;
    let (reactor, executor) = reactor::start(None)?;
    let bound = BoundSocket::from_fd(&reactor, fd).map_err(|error| unfit(options.fd, error))?;
    let limits = Limits::within(reactor::descriptors_max());
    let connections = Permits::new(limits.connections);
    let spawner = executor.spawner();
    executor.block_on(async {
        loop {
            let permit = connections.take().await;
            match bound.accept().await {
                Ok(arrival) => {
                    arrival.socket.set_descriptors_max(limits.message_descriptors);
                    spawner.spawn(echo_connection(arrival.socket, permit));
                }
                Err(AcceptError::Gone) => break,
                Err(error) => return Err(Failure::new(format_args!("accepting: {error}"))),
            }
        }
        connections.all_back().await;
        Ok(Outcome::Good)
    })
}

/// What is held at a time, within so many descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Descriptors of one message. Asking for more than there can be room for would make each receive wait
    /// for it.
    message_descriptors: usize,
    /// Connections, or sessions. Who comes beyond that waits in the queue, and is served when another goes.
    connections: usize,
}

impl Limits {
    /// Room for a message with as many descriptors as a packet takes, or half of what there is; connections
    /// have the rest.
    fn within(descriptors_max: usize) -> Limits {
        let room = descriptors_max.saturating_sub(DESCRIPTORS_RESERVE).max(2 * CONNECTIONS_MIN);
        let message_descriptors = DESCRIPTORS_MAX.min(room / 2);
        Limits { message_descriptors, connections: room - message_descriptors }
    }
}

async fn echo_connection(connection: ConnectedSocket, permit: Permit) {
    loop {
        let message = match connection.receive().await {
            Ok(received) => message_of(received),
            Err(ReceiveError::DescriptorsLost(received)) => {
                // Those that did arrive go back: the sender can count.
                remark("descriptors of a message were lost on their way: this process has no room for them");
                message_of(received)
            }
            Err(ReceiveError::Truncated(_)) => {
                remark("a message was longer than a packet may be; its connection is closed");
                break;
            }
            Err(ReceiveError::Closed) => break,
            Err(error) => {
                remark(format_args!("receiving: {error}"));
                break;
            }
        };
        if let Err(error) = send_back(&connection, message).await {
            remark(format_args!("sending back: {error}"));
            break;
        }
    }
    drop((connection, permit));
}

fn message_of(mut received: Received) -> Message {
    let descriptors = received.take_descriptors();
    message(received.into_bytes(), descriptors)
}

fn message(bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> Message {
    descriptors.into_iter().map(Fd::from).fold(Message::new(bytes), Message::with_descriptor)
}

/// Sends, and tries again while too many descriptors of this user are in flight, for so long and no longer.
async fn send_back(connection: &ConnectedSocket, message: Message) -> Result<(), String> {
    let reactor = connection.reactor();
    let sending = async {
        loop {
            match connection.send(message.clone()).await {
                Err(SendError::OutOfDescriptors) => reactor.sleep(IN_FLIGHT_WAIT).await,
                // The peer has gone, which the next receive will say.
                Err(SendError::Gone) | Ok(()) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    if message.descriptors().is_empty() {
        return sending.await;
    }
    match reactor::within(reactor, SEND_TIME_MAX, sending).await {
        Some(result) => result,
        None => Err("the peer does not read, and its descriptors are needed".to_string()),
    }
}

/// Serves the mailbox end of an object until nobody holds the object any more.
pub fn object(options: &EchoObject) -> Result<Outcome, Failure> {
    let fd = inherited(options.fd)?;
    let (reactor, executor) = reactor::start(None)?;
    let limits = Limits::within(reactor::descriptors_max());
    match options.plain {
        true => {
            let mailbox = PlainMailbox::from_fd(&reactor, fd).map_err(|error| unfit(options.fd, error))?;
            // One more is the continuation.
            mailbox.set_arguments_max(limits.message_descriptors.min(PLAIN_ARGUMENTS_MAX));
            executor.block_on(echo_plain_calls(mailbox));
        }
        false => {
            let descriptors = u32::try_from(limits.message_descriptors).unwrap_or(u32::MAX);
            let options_of_mailbox = MailboxOptions {
                call_descriptors: descriptors,
                descriptors: 2 * descriptors,
                sessions: limits.connections,
                ..MailboxOptions::default()
            };
            let mailbox = Mailbox::from_fd_with(&reactor, fd, options_of_mailbox);
            executor.block_on(echo_calls(mailbox.map_err(|error| unfit(options.fd, error))?));
        }
    }
    Ok(Outcome::Good)
}

async fn echo_calls(mailbox: Mailbox) {
    while let Some(incoming) = mailbox.next().await {
        let (bytes, descriptors, continuation) = incoming.into_parts();
        tell(continuation.answer(message(bytes, descriptors)));
    }
}

async fn echo_plain_calls(mailbox: PlainMailbox) {
    while let Some(incoming) = mailbox.next().await {
        let (bytes, descriptors, continuation) = incoming.into_parts();
        tell(continuation.answer(message(bytes, descriptors)));
    }
}

/// A caller that has gone is nothing to talk about; one that cannot be answered may want to know why.
fn tell(answered: Result<(), AnswerError>) {
    match answered {
        Ok(()) | Err(AnswerError::Gone | AnswerError::Withdrawn) => {}
        Err(error) => remark(format_args!("answering: {error}")),
    }
}

fn inherited(number: i32) -> Result<OwnedFd, Failure> {
    ring::inherit::take(number).map_err(|error| Failure::usage(format_args!("--fd {number}: {error}")))
}

fn unfit(number: i32, error: impl std::fmt::Display) -> Failure {
    Failure::usage(format_args!(
        "--fd {number}: {error} (an end of an AF_UNIX SOCK_SEQPACKET pair is wanted)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_a_message() {
        let many = Limits { message_descriptors: 253, connections: 1_024 - 48 - 253 };
        assert_eq!(Limits::within(1_024), many);
        assert_eq!(Limits::within(64), Limits { message_descriptors: 8, connections: 8 });
        assert_eq!(Limits::within(8), Limits { message_descriptors: 2, connections: CONNECTIONS_MIN });
    }
}
