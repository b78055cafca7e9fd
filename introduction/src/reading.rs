//! One record after the other from a connection, with its descriptor, within time.
//!
//! Owns what has arrived and has not been asked for. It does not know which records make sense when.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ring::{Fd, Kind, Reactor, ReceiveError, Received, Socket, discard};

use crate::inlet::{Carried, Come, Inlet};
use crate::signal::before;

/// More than one, so that a message with several is told from one that lost its only descriptor here.
const DESCRIPTORS_MAX: usize = 2;

/// Why no further record came.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The other side is gone.
    Closed,
    /// It did not say in time what it had begun to say, or was asked for.
    Late,
    /// It said something else than it may.
    Violation,
    /// What was needed here could not be had.
    Ours(io::Error),
    /// Policy is against it.
    Refused,
}

pub(crate) struct Reading {
    inlet: Inlet,
    /// Each with the descriptor that belongs to it. An [`Fd`], because whoever drops it must not wait for
    /// whatever a stranger has passed to be closed.
    arrived: VecDeque<(Come, Option<Fd>)>,
    /// How long what has begun may take.
    record_time: Duration,
    /// When the record that has begun must be whole.
    whole_by: Option<Instant>,
}

impl Reading {
    pub(crate) fn new(socket: &Socket, record_time: Duration) -> Reading {
        socket.set_descriptors_max(DESCRIPTORS_MAX);
        Reading { inlet: Inlet::new(), arrived: VecDeque::new(), record_time, whole_by: None }
    }

    /// The next record, with the descriptor that belongs to it.
    pub(crate) async fn next(
        &mut self,
        socket: &Socket,
        deadline: Option<Instant>,
    ) -> Result<(Come, Option<Fd>), Ended> {
        loop {
            if let Some(arrived) = self.arrived.pop_front() {
                return Ok(arrived);
            }
            let received = match [deadline, self.whole_by].into_iter().flatten().min() {
                Some(moment) => match before(socket.reactor(), moment, socket.receive()).await {
                    Some(received) => received,
                    None => return Err(Ended::Late),
                },
                None => socket.receive().await,
            };
            self.take(received)?;
        }
    }

    fn take(&mut self, received: Result<Received, ReceiveError>) -> Result<(), Ended> {
        let (mut received, is_lost) = match received {
            Ok(received) => (received, false),
            Err(ReceiveError::DescriptorsLost(received)) => (received, true),
            Err(ReceiveError::Closed) => return Err(Ended::Closed),
            Err(ReceiveError::Io(error)) => return Err(Ended::Ours(error)),
            Err(_) => return Err(Ended::Violation),
        };
        let mut descriptor = received.take_descriptor().map(Fd::from);
        if received.descriptors() > 0 {
            return Err(Ended::Violation);
        }
        let carried = match (&descriptor, is_lost) {
            (_, true) => Carried::Lost,
            (Some(_), false) => Carried::Descriptor,
            (None, false) => Carried::Nothing,
        };
        let come = self.inlet.take(received.bytes(), carried);
        let come = come.map_err(|_| Ended::Violation)?;
        let count = come.len();
        for (index, come) in come.into_iter().enumerate() {
            // The descriptor is that of the last: the kernel ends a read with it.
            let its = if index + 1 == count { descriptor.take() } else { None };
            self.arrived.push_back((come, its));
        }
        self.whole_by = match (self.inlet.is_within(), self.whole_by) {
            (false, _) => None,
            (true, Some(moment)) if count == 0 => Some(moment),
            (true, _) => Some(Instant::now() + self.record_time),
        };
        Ok(())
    }
}

/// A connected AF_UNIX socket of type STREAM or SEQPACKET, which is all that is ever passed on. Anything else
/// is closed, without waiting for it.
pub(crate) fn connected(reactor: &Reactor, fd: Fd) -> Option<(OwnedFd, Kind)> {
    let fd = fd.try_into_owned().expect("nobody else was given it");
    let socket = Socket::wrap(reactor, fd).ok()?;
    let kind = socket.kind();
    let is_fit = !socket.is_listening() && socket.is_connected();
    // Not simply dropped: what looks empty would be closed on this thread, and a stranger can put something
    // slow to close into it after the look.
    let fd = socket.into_fd().ok()?;
    if is_fit {
        Some((fd, kind))
    } else {
        discard(fd);
        None
    }
}
