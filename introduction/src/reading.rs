//! One record after the other from a connection, with its descriptor, within time, and so many in a turn.
//!
//! Owns what has arrived and has not been asked for. It does not know which records make sense when.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::fork::ForkedChild;
use ring::{Fd, Kind, Reactor, ReceiveError, Received, Socket, discard};

use crate::inlet::{Carried, Come, Inlet};
use crate::record::Record;
use crate::signal::{before, next_turn};

/// Records of one connection that are looked at in one turn, unless it is said otherwise. What makes a turn
/// long is paid for by all the others: a read can bring 2,600 of the shortest records.
pub(crate) const TURN_RECORDS_MAX: usize = 16;

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

/// The most that any one of some connections was given in one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Most {
    pub(crate) reads: u64,
    pub(crate) records: u64,
}

/// What a connection was given in this turn, and may be given in one.
struct Share {
    records_max: u64,
    turn: u64,
    given: Most,
    most: Rc<Cell<Most>>,
}

pub(crate) struct Reading {
    inlet: Inlet,
    /// What came with the read that the inlet has. An [`Fd`], because whoever drops it must not wait for
    /// whatever a stranger has passed to be closed.
    descriptor: Option<Fd>,
    share: Share,
    /// How long what has begun may take.
    record_time: Duration,
    /// When the record that has begun must be whole.
    whole_by: Option<Instant>,
}

impl Reading {
    /// `most` is shared by those it is to speak of.
    pub(crate) fn new(
        socket: &Socket,
        record_time: Duration,
        turn_records_max: usize,
        most: Rc<Cell<Most>>,
    ) -> Reading {
        socket.set_descriptors_max(DESCRIPTORS_MAX);
        let share = Share {
            // With none nothing would ever be read.
            records_max: turn_records_max.max(1) as u64,
            turn: 0,
            given: Most::default(),
            most,
        };
        Reading { inlet: Inlet::new(), descriptor: None, share, record_time, whole_by: None }
    }

    /// The next record, with the descriptor that belongs to it.
    pub(crate) async fn next(
        &mut self,
        socket: &Socket,
        deadline: Option<Instant>,
    ) -> Result<(Come, Option<Fd>), Ended> {
        loop {
            if !self.inlet.is_used_up() {
                self.share.wait_for_more(socket.reactor()).await;
            }
            if let Some(come) = self.cut(socket.reactor().now())? {
                self.share.count_record(socket.reactor());
                // What came with a read belongs to the introduction that it ends with.
                let descriptor = match come {
                    Come::Record { record: Record::NewConnection { .. }, .. } => self.descriptor.take(),
                    _ => None,
                };
                return Ok((come, descriptor));
            }
            let received = match [deadline, self.whole_by].into_iter().flatten().min() {
                Some(moment) => match before(socket.reactor(), moment, socket.receive()).await {
                    Some(received) => received,
                    None => return Err(Ended::Late),
                },
                None => socket.receive().await,
            };
            self.share.count_read(socket.reactor());
            self.take(received)?;
        }
    }

    fn cut(&mut self, now: Instant) -> Result<Option<Come>, Ended> {
        let come = self.inlet.cut().map_err(|_| Ended::Violation)?;
        self.whole_by = match (self.inlet.is_within(), self.whole_by) {
            (false, _) => None,
            (true, Some(moment)) if come.is_none() => Some(moment),
            (true, _) => Some(now + self.record_time),
        };
        Ok(come)
    }

    fn take(&mut self, received: Result<Received, ReceiveError>) -> Result<(), Ended> {
        let (mut received, is_lost) = match received {
            Ok(received) => (received, false),
            Err(ReceiveError::DescriptorsLost(received)) => (received, true),
            Err(ReceiveError::Closed) => return Err(Ended::Closed),
            Err(ReceiveError::Forked) => return Err(Ended::Ours(ForkedChild.into())),
            Err(ReceiveError::Io(error)) => return Err(Ended::Ours(error)),
            Err(_) => return Err(Ended::Violation),
        };
        self.descriptor = received.take_descriptor().map(Fd::from);
        if received.descriptors() > 0 {
            return Err(Ended::Violation);
        }
        let carried = match (&self.descriptor, is_lost) {
            (_, true) => Carried::Lost,
            (Some(_), false) => Carried::Descriptor,
            (None, false) => Carried::Nothing,
        };
        self.inlet.take(received.bytes(), carried).map_err(|_| Ended::Violation)
    }
}

impl Share {
    /// Where the share of this turn is used up, waits for the next.
    async fn wait_for_more(&mut self, reactor: &Reactor) {
        while self.now(reactor).records >= self.records_max {
            next_turn().await;
        }
    }

    fn count_record(&mut self, reactor: &Reactor) {
        self.now(reactor).records += 1;
        self.tell();
    }

    fn count_read(&mut self, reactor: &Reactor) {
        self.now(reactor).reads += 1;
        self.tell();
    }

    fn tell(&self) {
        let Most { reads, records } = self.most.get();
        self.most.set(Most { reads: reads.max(self.given.reads), records: records.max(self.given.records) });
    }

    /// What was given in this turn.
    fn now(&mut self, reactor: &Reactor) -> &mut Most {
        let turn = reactor.stats().turns;
        if self.turn != turn {
            (self.turn, self.given) = (turn, Most::default());
        }
        &mut self.given
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
