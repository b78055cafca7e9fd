//! The floors beside which a call is put: the same bytes and descriptors by nothing but system calls.
//!
//! They are `sendmsg` and `recvmsg` also where no descriptor is passed: `send` and `recv` are a tenth faster,
//! and whoever uses those can never be sent one.
//!
//! One piece for all that measure, or a ratio in one table would not be a ratio in another. It does not know
//! what is measured, or how long a table takes.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::aligned::Aligned;
use crate::bare_loop::BareLoop;
use crate::place::{Cpus, Wait};
use crate::process::Failure;

/// The most descriptors a floor sends with one message, a continuation among them.
pub const FDS_MAX: usize = 17;

/// The largest packet of a floor, in bytes: as many as one of the libraries' has.
pub const PACKET_BYTES_MAX: usize = ring::PACKET_BYTES_MAX;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Floor {
    /// One socket pair; each call is a packet and each answer is one. At depth N, N packets are sent before
    /// the first answer is received.
    PingPong,
    /// The ping-pong where the server is an [event loop](BareLoop) with nothing in it.
    LoopServed,
    /// The ping-pong where both sides are.
    Loops,
    /// The same as the first, with as many calls in one packet as are begun together and fit it.
    Coalesced,
    /// The literal call of one socket per object: pair, send with the far end, close it, receive, close.
    FiveSteps,
    /// The same where the far end comes home with the answer and serves the next call.
    Returned,
    /// That where both sides are [event loops](BareLoop), and each asks what socket has come to it.
    ReturnedLoops,
    /// The same with everything asked that has to be known of such a pair, and asleep in the receive itself:
    /// who sent, what socket has come, whether the near end is empty before it serves again, and whether
    /// something lies in what is closed. Nobody who asks that much can be below it.
    ReturnedAsked,
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Floor::PingPong => "raw ping-pong",
            Floor::LoopServed => "raw ping-pong with a bare event loop",
            Floor::Loops => "raw ping-pong between bare event loops",
            Floor::Coalesced => "raw coalesced",
            Floor::FiveSteps => "raw five steps",
            Floor::Returned => "raw returned",
            Floor::ReturnedLoops => "raw returned between bare event loops",
            Floor::ReturnedAsked => "raw returned, everything asked",
        })
    }
}

/// What a floor is measured with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FloorOptions {
    /// What is done.
    pub floor: Floor,
    /// Where.
    pub cpus: Cpus,
    /// How both sides wait.
    pub wait: Wait,
    /// Calls that are begun together. At least 1.
    pub depth: usize,
    /// Bytes of a call, and of an answer. At least 1.
    pub payload: usize,
    /// Descriptors of a call, and of an answer: 16 at most.
    pub fds: usize,
}

impl FloorOptions {
    /// 64 bytes each way, one at a time, waiting as these CPUs suggest.
    pub fn on(floor: Floor, cpus: &Cpus) -> FloorOptions {
        FloorOptions { floor, cpus: cpus.clone(), wait: cpus.wait(), depth: 1, payload: 64, fds: 0 }
    }

    /// How many calls one packet holds.
    pub(crate) fn calls_per_packet(&self) -> usize {
        match self.floor {
            Floor::Coalesced => (PACKET_BYTES_MAX / self.payload.max(1)).clamp(1, self.depth.max(1)),
            _ => 1,
        }
    }
}

/// A connected pair of `SOCK_SEQPACKET` sockets.
///
/// # Errors
/// The kernel's.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Receives as `wait` says: looks first, or sleeps at once.
///
/// # Errors
/// The receive's.
#[inline]
pub fn receive<T>(wait: Wait, mut receive: impl FnMut(RecvFlags) -> Result<T>) -> Result<T> {
    if wait == Wait::Spin {
        let start = Instant::now();
        // Who looked on for ever in the server of one way would keep the CPU from those of the others.
        while start.elapsed() < ring::SPIN_DEFAULT {
            match receive(RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => std::hint::spin_loop(),
                result => return result,
            }
        }
    }
    receive(RecvFlags::empty())
}

/// Bytes alone.
///
/// # Errors
/// The kernel's.
#[inline]
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).map(drop)
}

/// Sends a small packet and sleeps until one comes back: how long that took.
pub(crate) fn round_trip(socket: BorrowedFd<'_>, bytes: &[u8]) -> std::result::Result<Duration, Failure> {
    let mut room = [0; 128];
    let start = Instant::now();
    send(socket, bytes)?;
    match rustix::net::recv(socket, &mut room[..], RecvFlags::empty())?.0 {
        0 => Err("nobody sends back any more".into()),
        _ => Ok(start.elapsed()),
    }
}

/// Bytes with descriptors: [`FDS_MAX`] at most.
///
/// # Errors
/// The kernel's.
#[inline]
pub fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL).map(drop)
}

/// One message: its length, with its descriptors appended to `descriptors`.
///
/// # Errors
/// The kernel's.
#[inline]
pub fn receive_with(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    wait: Wait,
) -> Result<usize> {
    receive(wait, |flags| receive_once(socket, into, descriptors, flags))
}

/// The same, of what is there.
///
/// # Errors
/// The kernel's; `EAGAIN` if nothing is.
#[inline]
pub(crate) fn receive_now(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize> {
    receive_once(socket, into, descriptors, RecvFlags::DONTWAIT)
}

#[inline]
fn receive_once(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(into)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut bytes, &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = part {
            descriptors.extend(arrived);
        }
    }
    Ok(received.bytes)
}

/// The calling side of a floor.
#[derive(Debug)]
pub struct RawCaller {
    options: FloorOptions,
    end: End,
    /// As many payloads as fit a packet, and where answers go.
    message: Aligned,
    room: Aligned,
    /// What is passed, as often as there are descriptors.
    passed: OwnedFd,
    arrived: Vec<OwnedFd>,
    /// Pairs of calls that are under way; those that came home, with their far end.
    near: Vec<End>,
    home: Vec<(End, OwnedFd)>,
}

#[derive(Debug)]
enum End {
    Socket(OwnedFd),
    Loop(BareLoop),
}

impl End {
    #[inline]
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            End::Socket(socket) => socket.as_fd(),
            End::Loop(end) => end.socket(),
        }
    }

    #[inline]
    fn receive(&mut self, into: &mut [u8], arrived: &mut Vec<OwnedFd>, wait: Wait) -> Result<usize> {
        match self {
            End::Socket(socket) => receive_with(socket.as_fd(), into, arrived, wait),
            End::Loop(end) => end.receive(into, arrived),
        }
    }
}

impl RawCaller {
    /// On the near end of a pair whose far end is [served](serve_echo) (or
    /// [that way](serve_continuations)).
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: OwnedFd, options: FloorOptions) -> Result<RawCaller> {
        let bytes = options.payload.max(1) * options.calls_per_packet();
        let end = match options.floor {
            Floor::Loops => End::Loop(BareLoop::new(socket, options.wait, options.depth <= 1)?),
            _ => End::Socket(socket),
        };
        Ok(RawCaller {
            end,
            message: Aligned::copy_of(&vec![7; bytes]),
            room: Aligned::new(bytes),
            passed: something_to_pass()?,
            arrived: Vec::with_capacity(FDS_MAX),
            near: Vec::with_capacity(options.depth),
            home: Vec::with_capacity(options.depth),
            options,
        })
    }

    /// As many calls as are begun together, until all are answered.
    ///
    /// # Errors
    /// The kernel's; `ECONNRESET` if the server has gone.
    #[inline]
    pub fn batch(&mut self) -> Result<()> {
        match (self.options.floor, self.options.depth) {
            (Floor::PingPong | Floor::LoopServed | Floor::Loops, 0 | 1) => {
                self.send_one(SendFlags::empty())?;
                self.receive_one()
            }
            (Floor::PingPong | Floor::LoopServed | Floor::Loops | Floor::Coalesced, _) => {
                self.batch_of_packets()
            }
            (Floor::FiveSteps, _) => self.batch_of_pairs(),
            (Floor::Returned | Floor::ReturnedLoops | Floor::ReturnedAsked, _) => {
                self.batch_of_returning_pairs()
            }
        }
    }

    #[inline]
    fn send_one(&self, flags: SendFlags) -> Result<()> {
        let descriptors = [self.passed.as_fd(); FDS_MAX];
        send_with(self.end.socket(), &self.message, &descriptors[..self.options.fds.min(FDS_MAX)], flags)
    }

    #[inline]
    fn receive_one(&mut self) -> Result<()> {
        let wait = self.options.wait;
        let length = self.end.receive(&mut self.room, &mut self.arrived, wait)?;
        self.arrived.clear();
        whole(length, self.message.len())
    }

    /// Sends until all are under way, or until the queue is full; then receives. Whoever only sent would wait
    /// for a server that waits for room for its answers.
    fn batch_of_packets(&mut self) -> Result<()> {
        let packets = self.options.depth.max(1).div_ceil(self.options.calls_per_packet());
        let (mut sent, mut answered) = (0, 0);
        while answered < packets {
            while sent < packets {
                match self.send_one(SendFlags::DONTWAIT) {
                    Ok(()) => sent += 1,
                    Err(Errno::AGAIN | Errno::TOOMANYREFS) if sent > answered => break,
                    Err(Errno::AGAIN) => {
                        self.send_one(SendFlags::empty())?;
                        sent += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            self.receive_one()?;
            answered += 1;
        }
        Ok(())
    }

    fn batch_of_pairs(&mut self) -> Result<()> {
        for _ in 0..self.options.depth.max(1) {
            let (near, far) = packet_pair()?;
            self.send_with_continuation(far)?;
            self.near.push(End::Socket(near));
        }
        let mut near = std::mem::take(&mut self.near);
        // Each is closed before the next is received from, as one at a time would be.
        for near in near.drain(..) {
            let mut length = self.receive_on(near.socket())?;
            // A look that does not wait may see the end before it sees the answer: the server has sent and
            // closed between the look at the queue and the look for the end. Twice that cannot be.
            if length == 0 {
                length = self.receive_on(near.socket())?;
            }
            self.arrived.clear();
            whole(length, self.message.len())?;
        }
        self.near = near;
        Ok(())
    }

    #[inline]
    fn receive_on(&mut self, near: BorrowedFd<'_>) -> Result<usize> {
        receive_with(near, &mut self.room, &mut self.arrived, self.options.wait)
    }

    fn batch_of_returning_pairs(&mut self) -> Result<()> {
        for _ in 0..self.options.depth.max(1) {
            let (near, far) = match self.home.pop() {
                Some(pair) => pair,
                None => self.returning_pair()?,
            };
            if self.options.floor == Floor::ReturnedAsked && !is_quiet(near.socket())? {
                return Err(Errno::CONNRESET);
            }
            self.send_with_continuation(far)?;
            self.near.push(near);
        }
        while let Some(mut near) = self.near.pop() {
            let length = near.receive(&mut self.room, &mut self.arrived, self.options.wait)?;
            let far = self.arrived.pop().ok_or(Errno::CONNRESET)?;
            if matches!(self.options.floor, Floor::ReturnedLoops | Floor::ReturnedAsked) {
                rustix::net::sockopt::socket_cookie(&far)?;
            }
            self.arrived.clear();
            whole(length, self.message.len())?;
            self.home.push((near, far));
        }
        Ok(())
    }

    fn returning_pair(&self) -> Result<(End, OwnedFd)> {
        let (near, far) = packet_pair()?;
        let near = match self.options.floor {
            Floor::ReturnedLoops => {
                End::Loop(BareLoop::new(near, self.options.wait, true)?.naming_senders()?)
            }
            Floor::ReturnedAsked => {
                rustix::net::sockopt::set_socket_passcred(&near, true)?;
                End::Socket(near)
            }
            _ => End::Socket(near),
        };
        Ok((near, far))
    }

    #[inline]
    fn send_with_continuation(&self, far: OwnedFd) -> Result<()> {
        let fds = self.options.fds.min(FDS_MAX - 1);
        let mut descriptors = [self.passed.as_fd(); FDS_MAX];
        descriptors[fds] = far.as_fd();
        send_with(self.end.socket(), &self.message, &descriptors[..=fds], SendFlags::empty())
    }
}

/// An answer that is shorter than its call means that nobody is there.
#[inline]
pub(crate) fn whole(length: usize, expected: usize) -> Result<()> {
    if length == expected { Ok(()) } else { Err(Errno::CONNRESET) }
}

/// Sends back each packet with its descriptors, until nobody holds the other end.
///
/// # Errors
/// The kernel's.
pub fn serve_echo(socket: OwnedFd, wait: Wait) -> Result<()> {
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    let mut arrived = Vec::with_capacity(FDS_MAX);
    loop {
        match receive_with(socket.as_fd(), &mut room, &mut arrived, wait)? {
            0 => return Ok(()),
            length => send_back(socket.as_fd(), &room[..length], &arrived)?,
        }
        arrived.clear();
    }
}

/// Sends back each packet with its descriptors, in an [event loop](BareLoop), until nobody holds the other
/// end. Where packets come `one_at_a_time` there is no look for a second.
///
/// # Errors
/// The kernel's.
pub fn serve_echo_in_loop(socket: OwnedFd, one_at_a_time: bool, wait: Wait) -> Result<()> {
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    let mut arrived = Vec::with_capacity(FDS_MAX);
    let mut served = BareLoop::new(socket, wait, one_at_a_time)?;
    loop {
        match served.receive(&mut room, &mut arrived)? {
            0 => return Ok(()),
            length => send_back(served.socket(), &room[..length], &arrived)?,
        }
        arrived.clear();
    }
}

/// Sends each packet back over the last of its descriptors, with the others, until nobody holds the other
/// end; that last one with them if it `returns`.
///
/// # Errors
/// The kernel's.
pub fn serve_continuations(mailbox: OwnedFd, returns: bool, wait: Wait) -> Result<()> {
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    let mut arrived = Vec::with_capacity(FDS_MAX);
    loop {
        let length = receive_with(mailbox.as_fd(), &mut room, &mut arrived, wait)?;
        let Some(continuation) = arrived.last() else { return Ok(()) };
        let answered = if returns { arrived.len() } else { arrived.len() - 1 };
        send_back(continuation.as_fd(), &room[..length], &arrived[..answered])?;
        arrived.clear();
    }
}

/// Sends each packet back over the last of its descriptors, with all of them, in an [event loop](BareLoop),
/// until nobody holds the other end. Where packets come `one_at_a_time` there is no look for a second.
///
/// # Errors
/// The kernel's.
pub fn return_continuations_in_loop(mailbox: OwnedFd, one_at_a_time: bool, wait: Wait) -> Result<()> {
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    let mut arrived = Vec::with_capacity(FDS_MAX);
    let mut served = BareLoop::new(mailbox, wait, one_at_a_time)?.naming_senders()?;
    loop {
        let length = served.receive(&mut room, &mut arrived)?;
        let Some(continuation) = arrived.last() else { return Ok(()) };
        rustix::net::sockopt::socket_cookie(continuation)?;
        send_back(continuation.as_fd(), &room[..length], &arrived)?;
        arrived.clear();
    }
}

/// Sends each packet back over the last of its descriptors, with all of them, as whoever asks who sent it,
/// what socket that is and, before it is closed, whether something lies in it; until nobody holds the other
/// end.
///
/// # Errors
/// The kernel's.
pub fn return_continuations_asked(mailbox: OwnedFd, wait: Wait) -> Result<()> {
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    let mut arrived = Vec::with_capacity(FDS_MAX);
    rustix::net::sockopt::set_socket_passcred(&mailbox, true)?;
    loop {
        let length = receive_with(mailbox.as_fd(), &mut room, &mut arrived, wait)?;
        let Some(continuation) = arrived.last() else { return Ok(()) };
        rustix::net::sockopt::socket_cookie(continuation)?;
        send_back(continuation.as_fd(), &room[..length], &arrived)?;
        // At the end the caller is gone already; that is no reason not to close it here.
        let _ = is_quiet(continuation.as_fd())?;
        arrived.clear();
    }
}

/// Whether there is nothing to receive, no packet and no end.
#[inline]
fn is_quiet(socket: BorrowedFd<'_>) -> Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::IN | PollFlags::RDHUP)];
    Ok(rustix::event::poll(&mut asked, Some(&AT_ONCE))? == 0)
}

#[inline]
fn send_back(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
    let Some(first) = descriptors.first() else { return send_with(socket, bytes, &[], SendFlags::empty()) };
    let mut borrowed = [first.as_fd(); FDS_MAX];
    for (place, descriptor) in borrowed.iter_mut().zip(descriptors) {
        *place = descriptor.as_fd();
    }
    send_with(socket, bytes, &borrowed[..descriptors.len().min(FDS_MAX)], SendFlags::empty())
}

/// A descriptor whose passing and closing costs as little as any: memory of one page.
///
/// # Errors
/// The kernel's.
pub fn something_to_pass() -> Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("sendright-perf", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, 4096)?;
    Ok(memory)
}

/// Puts a descriptor in flight and leaves it there, as long as what is returned lives: from now on the kernel
/// looks for circles of sockets whenever one is closed, anywhere on the machine.
///
/// # Errors
/// The kernel's.
pub fn park_one_in_flight() -> Result<(OwnedFd, OwnedFd)> {
    let (near, far) = packet_pair()?;
    send_with(near.as_fd(), b"parked", &[near.as_fd()], SendFlags::empty())?;
    Ok((near, far))
}
