//! Sockets without a reactor: plain system calls that wait where they are called.
//!
//! For programs that have no loop, and the fastest way there is to wait for one answer: a message out is one
//! system call, a message in is one. A [`Socket`] owns a descriptor and the rules by which it is closed; an
//! [`Inbox`] owns a buffer, and the history from which follows how long to look before sleeping. Neither
//! starts a thread, installs a signal handler or keeps anything global, and both are `Send`. They know no
//! protocol.
//!
//! ```
//! use ring::WaitPolicy;
//! use ring::blocking::{Inbox, Socket};
//!
//! let (near, far) = Socket::pair()?;
//! let far = Socket::from_fd(far)?;
//! let (reader, _writer) = std::io::pipe()?;
//! far.send(&[b"a ", b"pipe"], &[&reader], None)?;
//!
//! let mut inbox = Inbox::new(WaitPolicy::Sleep);
//! let mut received = inbox.receive(&near, None)?;
//! assert_eq!(received.bytes(), b"a pipe");
//! assert!(received.take_descriptor().is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is as with the reactor
//!
//! - Every descriptor received is an `OwnedFd`, close-on-exec, before anything else can happen; what nobody
//!   takes is closed by [`discard`], which leaves what may be slow to threads of their own. These
//!   threads are the only ones this module ever starts, and only when a stranger's socket, device or large
//!   file is to be closed: a blocking program, too, wants its time for itself.
//! - The end of file is believed when it is said twice without credentials; empty packets are dropped and
//!   counted.
//! - Bytes or descriptors that were cut off are errors with names.
//!
//! # What is not
//!
//! - There is no budget of descriptors: with none left a message comes as
//!   [`ReceiveError::DescriptorsLost`] and does not wait.
//! - A receive belongs to its caller. It cannot be cut short but by its deadline. Signals do not end it.
//! - O_NONBLOCK does not matter. It belongs to the open description, and whoever else holds that may set it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::closer;
use crate::envelope::{self, Control, Room, Taken};
use crate::error::{SendError, WrapError};
use crate::fd::{DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, Descriptors, Fd, Kind, discard};
use crate::fork::{self, Generation};
use crate::message::{Credentials, Message, PACKET_BYTES_MAX};
use crate::sys::{self, Half, SocketOption, errno, ready};
use crate::wait::{LOOKS_PER_YIELD, Spinner, WaitPolicy};

/// The most parts one message is sent in.
pub const PARTS_MAX: usize = 8;

/// A deadline at least so far away is left to the socket's own time limit, which costs nothing for a wait
/// that ends before; a nearer one is kept by `ppoll`, one more system call, because the kernel keeps the
/// socket's in ticks of some milliseconds.
const FAR: Duration = Duration::from_millis(100);

/// By so much a limit that is set already may be beyond the deadline.
const LATE_MAX: Duration = Duration::from_millis(1);

/// So many packets that are no message are taken at once. Behind them there may be a message, but whoever
/// sends them without end must not keep anybody beyond a deadline.
const EMPTY_PACKETS_AT_ONCE_MAX: usize = 16;

/// So many bytes of a header and what belongs to it are put together before they are sent: 256. The kernel
/// takes one piece of memory sooner than two by more than the copy takes.
const PUT_TOGETHER_BYTES_MAX: usize = 256;

/// For messages without descriptors: `send(&[bytes], NO_DESCRIPTORS, None)`.
pub const NO_DESCRIPTORS: &[BorrowedFd<'static>] = &[];

/// A full queue on an end that others hold too is tried again after this long, at first: the kernel says
/// "writable" only when three quarters are free, and newcomers can take every slot before that.
const RETRY_FIRST: Duration = Duration::from_millis(1);

/// The longest pause between two such attempts.
const RETRY_LAST: Duration = Duration::from_millis(32);

/// One end of a connection of whole messages (AF_UNIX, SEQPACKET), on plain system calls.
///
/// `Send`, and not to be shared: give each thread an end of its own, or a [duplicate](Socket::try_clone_fd).
///
/// Dropping it closes the descriptor. If it is [private](Socket::set_private), which it is not at first, the
/// connection is shut down before, so that the peer sees the end although a forked child may still hold a
/// copy; and what the peer left in it is closed elsewhere. In a forked child dropping only closes.
pub struct Socket {
    fd: Option<OwnedFd>,
    private: Cell<bool>,
    /// Nobody else has ever held this end, and so nobody can have changed what was set on it.
    made_here: Cell<bool>,
    /// SO_PASSCRED is set: only then is an empty packet told from the end for certain.
    credentials_asked: Cell<bool>,
    /// It is set for us alone: to be undone when the descriptor is given back.
    asked_here: Cell<bool>,
    descriptors_max: Cell<usize>,
    pidfd: Cell<bool>,
    /// The socket's own time limit, as it was set last.
    timeout: Cell<Duration>,
    empty_packets: Cell<u64>,
    made_in: Generation,
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A message, an error or the end can be received.
    pub readable: bool,
    /// A message can be sent, or the peer is gone.
    pub writable: bool,
}

impl Socket {
    /// A pair: the near end, private, and the descriptor of the far one, for whoever is to have it.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn pair() -> io::Result<(Socket, OwnedFd)> {
        let (near, far) = sys::socketpair(Kind::SeqPacket)?;
        let near = Socket::new(near);
        near.private.set(true);
        near.made_here.set(true);
        near.ask_for_credentials();
        near.asked_here.set(true);
        Ok((near, far))
    }

    /// Takes a descriptor that came from somewhere.
    ///
    /// # Errors
    /// Anything but an AF_UNIX socket of type SEQPACKET is refused, and closed without waiting. (That it is
    /// connected is not asked; see [`is_connected`](Socket::is_connected).)
    pub fn from_fd(fd: OwnedFd) -> Result<Socket, WrapError> {
        let why = match sys::unix_kind(fd.as_fd()) {
            Ok(Some(Kind::SeqPacket)) => return Ok(Socket::new(fd).with_credentials()),
            Ok(_) => WrapError::NotUnix,
            Err(_) => WrapError::NotASocket,
        };
        discard(fd);
        Err(why)
    }

    fn new(fd: OwnedFd) -> Socket {
        Socket {
            fd: Some(fd),
            private: Cell::new(false),
            made_here: Cell::new(false),
            credentials_asked: Cell::new(false),
            asked_here: Cell::new(false),
            descriptors_max: Cell::new(DESCRIPTORS_DEFAULT),
            pidfd: Cell::new(false),
            timeout: Cell::new(Duration::ZERO),
            empty_packets: Cell::new(0),
            made_in: fork::generation(),
        }
    }

    fn with_credentials(self) -> Socket {
        let before = sys::socket_option(self.as_fd(), SocketOption::PassCredentials);
        self.ask_for_credentials();
        self.asked_here.set(before.is_ok_and(|asked| asked == 0));
        self
    }

    fn ask_for_credentials(&self) {
        let asked = sys::set_socket_option(self.as_fd(), SocketOption::PassCredentials, 1);
        self.credentials_asked.set(asked.is_ok());
    }

    /// Has the kernel name no senders any more, where nobody needs to know them: a fiftieth less work for
    /// each message. Of an empty packet and the end of file it is then asked which of the two it is. For an
    /// end that is [private](Socket::set_private) and stays here.
    pub fn forgo_credentials(&self) {
        if self.asked_here.take()
            && sys::set_socket_option(self.as_fd(), SocketOption::PassCredentials, 0).is_ok()
        {
            self.credentials_asked.set(false);
        }
    }

    /// Asks for a pidfd of the sender with every message (Linux 6.5; 43 % more work for each).
    ///
    /// # Errors
    /// The kernel does not know them.
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        sys::set_socket_option(self.as_fd(), SocketOption::PassPidfd, 1)?;
        self.pidfd.set(true);
        Ok(())
    }

    /// Whether nobody else holds this end, so that it may be shut down when it is dropped here.
    pub fn set_private(&self, private: bool) {
        self.private.set(private);
    }

    /// How many descriptors one message may bring: 16 until told otherwise, at most 253. The excess is
    /// closed, and the message is [`ReceiveError::DescriptorsLost`].
    pub fn set_descriptors_max(&self, count: usize) {
        self.descriptors_max.set(count.min(DESCRIPTORS_MAX));
    }

    /// Whether the socket has, or had, a peer.
    pub fn is_connected(&self) -> bool {
        sys::is_connected(self.as_fd())
    }

    /// Whether it listens for connections.
    pub fn is_listening(&self) -> bool {
        sys::socket_option(self.as_fd(), SocketOption::Listening).is_ok_and(|listens| listens != 0)
    }

    /// Whether this is the process that made this handle, and not a forked child of it.
    pub fn is_of_this_process(&self) -> bool {
        self.made_in == fork::generation()
    }

    /// Whether nothing has come, neither a message nor the end: what is received next is sent from now on.
    pub fn is_quiet(&self) -> bool {
        sys::poll_now(self.as_fd(), ready::READ | ready::HUNG_UP).is_ok_and(|mask| mask == 0)
    }

    /// Whether the peer is gone, or has shut down its sending half.
    pub fn is_hung_up(&self) -> bool {
        sys::poll_now(self.as_fd(), ready::HUNG_UP).is_ok_and(|mask| mask & ready::HUNG_UP != 0)
    }

    /// Empty packets that came here, and were dropped: a violation, since they look like the end of file.
    pub fn empty_packets(&self) -> u64 {
        self.empty_packets.get()
    }

    /// A duplicate of the descriptor, for another holder. The connection is not
    /// [private](Socket::set_private) any more, unless that is said again.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.private.set(false);
        self.made_here.set(false);
        self.wait_without_limit();
        let copy = self.as_fd().try_clone_to_owned()?;
        // Whoever gets it may be one of ours, and count on them.
        self.asked_here.set(false);
        Ok(copy)
    }

    /// The descriptor itself, as it came: nothing is shut down, and a time limit or credentials that were
    /// asked for here are not any more. (They are if the descriptor was [duplicated](Socket::try_clone_fd):
    /// the other holder may count on them.)
    pub fn into_fd(mut self) -> OwnedFd {
        self.wait_without_limit();
        if self.asked_here.get() {
            // The next holder may offer control room for descriptors only, and would find credentials in it.
            let _ = sys::set_socket_option(self.as_fd(), SocketOption::PassCredentials, 0);
        }
        self.fd.take().expect("present until dropped")
    }

    /// Others would take the limit of a wait of ours for an error.
    fn wait_without_limit(&self) {
        if !self.timeout.take().is_zero() {
            let _ = sys::set_receive_timeout(self.as_fd(), Duration::ZERO);
        }
    }

    /// Ends the connection for everybody who holds either end, at once. What has arrived can still be
    /// received.
    pub fn shut_down(&self) {
        let _ = sys::shutdown(self.as_fd(), Half::Both);
    }

    // -- sending ----------------------------------------------------------------------------------------

    /// Sends parts as one message, with descriptors that stay with the caller, and waits for room in the
    /// queue until the deadline if there is one.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent. [`WouldBlock`](SendError::WouldBlock) says that the deadline has
    /// passed and the queue was full all the time.
    ///
    /// # Panics
    /// With more than [`PARTS_MAX`] parts.
    pub fn send(
        &self,
        parts: &[&[u8]],
        descriptors: &[impl AsFd],
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        let mut pause = RETRY_FIRST;
        loop {
            match self.try_send(parts, descriptors) {
                Err(SendError::WouldBlock) => {}
                result => return result,
            }
            let Some(left) = left_until(deadline) else { return Err(SendError::WouldBlock) };
            // The kernel reports room on a shared end late, or never.
            let shared = (!self.private.get()).then_some(pause);
            pause = (pause * 2).min(RETRY_LAST);
            let within = [left.within(), shared].into_iter().flatten().min();
            match sys::poll_within(self.as_fd(), ready::WRITE, within) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(SendError::Io(error)),
                _ => {}
            }
        }
    }

    /// Sends now or says why not.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    ///
    /// # Panics
    /// With more than [`PARTS_MAX`] parts.
    pub fn try_send(&self, parts: &[&[u8]], descriptors: &[impl AsFd]) -> Result<(), SendError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes == 0 {
            return Err(SendError::Empty);
        }
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(SendError::TooLarge);
        }
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        for (slice, part) in slices[..parts.len()].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut raised = false;
        loop {
            match envelope::send_parts(self.as_fd(), &slices[..parts.len()], descriptors) {
                Ok(sent) => {
                    assert_eq!(sent, bytes, "a packet is sent whole or not at all");
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another holder of the end may have shrunk its buffer.
                Err(error)
                    if error.raw_os_error() == Some(errno::EMSGSIZE)
                        && bytes <= PACKET_BYTES_MAX
                        && !std::mem::replace(&mut raised, true) =>
                {
                    let room = 2 * PACKET_BYTES_MAX as i32;
                    let _ = sys::set_socket_option(self.as_fd(), SocketOption::SendBuffer, room);
                }
                Err(error) => return Err(SendError::from_kernel(error)),
            }
        }
    }

    /// As [`try_send`](Socket::try_send), of a header and bytes that belong to it and no descriptors: what
    /// most messages are, and so with nothing in it for the others.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    #[inline]
    pub fn try_send_bytes<const HEAD: usize>(&self, head: &[u8; HEAD], rest: &[u8]) -> Result<(), SendError> {
        if HEAD == 0 && rest.is_empty() {
            return Err(SendError::Empty);
        }
        let sent = match HEAD + rest.len() {
            length @ ..=PUT_TOGETHER_BYTES_MAX => {
                let mut together = [0; PUT_TOGETHER_BYTES_MAX];
                together[..HEAD].copy_from_slice(head);
                together[HEAD..length].copy_from_slice(rest);
                envelope::send_bytes(self.as_fd(), &together[..length])
            }
            _ => {
                let slices = [IoSlice::new(head), IoSlice::new(rest)];
                envelope::send_parts(self.as_fd(), &slices, NO_DESCRIPTORS)
            }
        };
        match sent {
            Ok(sent) => {
                assert_eq!(sent, HEAD + rest.len(), "a packet is sent whole or not at all");
                Ok(())
            }
            // Once more, by whoever knows what each of these needs.
            Err(_) => self.try_send(&[head, rest], NO_DESCRIPTORS),
        }
    }

    /// Waits until something can be received, or sent, and says which; neither when the deadline has passed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Readiness> {
        loop {
            let left = left_until(deadline).map_or(Some(Duration::ZERO), Left::within);
            match sys::poll_within(self.as_fd(), ready::READ | ready::WRITE, left) {
                Ok(mask) => {
                    // Whatever else is said, a receive or a send will tell what it means.
                    let other = mask & !(ready::READ | ready::WRITE) != 0;
                    let readable = mask & ready::READ != 0 || other;
                    return Ok(Readiness { readable, writable: mask & ready::WRITE != 0 || other });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    // -- receiving --------------------------------------------------------------------------------------

    fn room(&self) -> Room {
        // As wide as there is: what the kernel throws away for want of room it closes on this thread.
        Room { descriptors: DESCRIPTORS_MAX as u16, pidfd: self.pidfd.get() }
    }

    /// One attempt of a receive that may sleep in the kernel until the deadline. `WouldBlock` when that has
    /// passed, or somebody has made the open description non-blocking.
    fn receive_asleep(&self, into: &mut [u8], deadline: Option<Instant>) -> io::Result<Taken> {
        let Some(left) = left_until(deadline) else {
            return envelope::receive(self.as_fd(), into, self.room());
        };
        match left.within() {
            // An earlier wait may have left its limit. This one comes back here when that is over.
            None => {}
            // Only where nobody else can lift the limit: it would keep us asleep for as long as it liked.
            Some(within) if within >= FAR && self.is_ours_alone() => self.limit_receives(within),
            Some(within) => {
                sys::poll_within(self.as_fd(), ready::READ, Some(within))?;
                return envelope::receive(self.as_fd(), into, self.room());
            }
        }
        envelope::receive_asleep(self.as_fd(), into, self.room())
    }

    fn is_ours_alone(&self) -> bool {
        self.private.get() && self.made_here.get()
    }

    /// Sees to it that a receive sleeps for about so long: the same limit serves many calls with the same
    /// patience, and what it is too short or too long is made good by whoever looks at the clock.
    fn limit_receives(&self, within: Duration) {
        let limit = self.timeout.get();
        let is_near = limit <= within + LATE_MAX && limit >= within - within / 8;
        if !is_near && sys::set_receive_timeout(self.as_fd(), within).is_ok() {
            self.timeout.set(within);
        }
    }

    /// For receives that end in `WouldBlock` although there is time: asleep until there is something to look
    /// at.
    fn sleep(&self, deadline: Option<Instant>) -> io::Result<()> {
        let left = left_until(deadline).map_or(Some(Duration::ZERO), Left::within);
        sys::poll_within(self.as_fd(), ready::READ, left).map(drop)
    }

    /// Shuts down and closes a private end whose peer may be anybody: what the peer left in it is closed with
    /// it, and that may take as long as the peer likes.
    fn retire(&self, fd: OwnedFd) {
        if !self.made_here.get() {
            // Whoever made it may hold it still, and nothing that is asked of it here is certain.
            return closer::end(fd);
        }
        if !self.credentials_asked.get() {
            return closer::retire(fd, false);
        }
        // Mostly the peer has closed already and nothing is there, which is believed when it is said twice.
        let mut byte = [0; 1];
        let mut is_over = || {
            envelope::receive(fd.as_fd(), &mut byte, Room::WIDEST)
                .is_ok_and(|taken| taken.length == 0 && taken.control.is_empty())
        };
        if is_over() && is_over() {
            return drop(fd);
        }
        let _ = sys::shutdown(fd.as_fd(), Half::Both);
        closer::retire(fd, true);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("present until dropped").as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("fd", &self.fd).field("private", &self.private.get()).finish()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if !self.is_of_this_process() {
            // The parent's, and perhaps in use there. This copy goes, and nothing else happens.
            drop(fd);
        } else if self.private.get() {
            self.retire(fd);
        } else {
            closer::retire_shared(fd);
        }
    }
}

/// Receives: a buffer for one message at a time, and how to wait for it.
///
/// One inbox serves any number of sockets, one after the other. The buffer (100 KiB) is allocated by the
/// first receive and used from then on.
pub struct Inbox {
    buffer: Vec<u8>,
    spinner: Spinner,
}

impl Inbox {
    /// An inbox that waits like this. CPUs are counted now, for the calling thread.
    pub fn new(wait: WaitPolicy) -> Inbox {
        Inbox { buffer: Vec::new(), spinner: Spinner::new(wait) }
    }

    /// The next message. Without a deadline this waits for as long as it takes.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn receive(
        &mut self,
        socket: &Socket,
        deadline: Option<Instant>,
    ) -> Result<Received<'_>, ReceiveError> {
        self.receive_by(socket, deadline, |inbox| inbox.take(socket, deadline))
    }

    /// The next message, if it is there already.
    ///
    /// # Errors
    /// See [`ReceiveError`]; [`Deadline`](ReceiveError::Deadline) if there is none.
    pub fn try_receive(&mut self, socket: &Socket) -> Result<Received<'_>, ReceiveError> {
        let now = Some(Instant::now());
        self.receive_by(socket, now, |inbox| {
            envelope::receive(socket.as_fd(), &mut inbox.buffer, socket.room())
        })
    }

    fn receive_by(
        &mut self,
        socket: &Socket,
        deadline: Option<Instant>,
        mut take: impl FnMut(&mut Inbox) -> io::Result<Taken>,
    ) -> Result<Received<'_>, ReceiveError> {
        if self.buffer.is_empty() {
            self.buffer.resize(PACKET_BYTES_MAX, 0);
        }
        let mut end = End::NotSaid;
        let mut no_messages = 0;
        let taken = loop {
            if no_messages >= EMPTY_PACKETS_AT_ONCE_MAX && left_until(deadline).is_none() {
                return Err(ReceiveError::Deadline);
            }
            no_messages += 1;
            match take(self) {
                Ok(taken) if is_bare(&taken) => match end.said_again(socket) {
                    End::Certain => return Err(ReceiveError::Closed),
                    said => end = said,
                },
                Ok(taken) if taken.length == 0 && !taken.bytes_lost => {
                    socket.empty_packets.set(socket.empty_packets.get() + 1);
                    end = End::NotSaid;
                }
                Ok(taken) => break taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Said once, in front of what the peer had sent before it closed.
                Err(error) if error.raw_os_error() == Some(errno::ECONNRESET) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ReceiveError::Deadline);
                }
                Err(error) => return Err(ReceiveError::Io(error)),
            }
        };
        self.judge(socket, taken)
    }

    fn judge(&mut self, socket: &Socket, taken: Taken) -> Result<Received<'_>, ReceiveError> {
        let Taken { length, mut control, bytes_lost, control_lost, .. } = taken;
        let excess = control.descriptors.truncate(socket.descriptors_max.get());
        let received = Received { bytes: Cow::Borrowed(&self.buffer[..length]), control };
        if bytes_lost {
            Err(ReceiveError::Truncated(received.into_owned()))
        } else if control_lost || excess {
            Err(ReceiveError::DescriptorsLost(received.into_owned()))
        } else {
            Ok(received)
        }
    }

    /// Takes one message, waiting for it as the policy says and then asleep.
    fn take(&mut self, socket: &Socket, deadline: Option<Instant>) -> io::Result<Taken> {
        if let Some(look) = self.spinner.look()
            && let Some(taken) = self.spin(socket, look, deadline)
        {
            return taken;
        }
        loop {
            match socket.receive_asleep(&mut self.buffer, deadline) {
                // A deadline that has not passed: somebody has made the description non-blocking, or the
                // socket's time limit was short of it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && left_until(deadline).is_some() => {
                    socket.sleep(deadline)?;
                    match envelope::receive(socket.as_fd(), &mut self.buffer, socket.room()) {
                        Err(error)
                            if error.kind() == io::ErrorKind::WouldBlock
                                && left_until(deadline).is_some() => {}
                        result => return result,
                    }
                }
                result => return result,
            }
        }
    }

    /// Looks again and again for so long.
    fn spin(
        &mut self,
        socket: &Socket,
        look: Duration,
        deadline: Option<Instant>,
    ) -> Option<io::Result<Taken>> {
        let start = Instant::now();
        let until = deadline.map_or(start + look, |deadline| deadline.min(start + look));
        let mut looks = 0_u32;
        loop {
            match envelope::receive(socket.as_fd(), &mut self.buffer, socket.room()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.spinner.hit(start.elapsed());
                    return Some(result);
                }
            }
            if Instant::now() >= until {
                break;
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_YIELD) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        self.spinner.miss();
        None
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("buffer", &self.buffer.len()).finish_non_exhaustive()
    }
}

/// How far the end of file has been said. A receive that finds the queue empty while the peer sends and then
/// closes says it once, falsely.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotSaid,
    /// Once, beside credentials that are asked for; or without them, and then the peer was seen to hang up.
    Said,
    Certain,
}

impl End {
    fn said_again(self, socket: &Socket) -> End {
        match self {
            End::Said => End::Certain,
            _ if socket.credentials_asked.get() => {
                // Another holder may have had the kernel name no senders any more: then this was perhaps an
                // empty packet, and the next is known for what it is.
                if !socket.made_here.get() {
                    socket.ask_for_credentials();
                }
                End::Said
            }
            _ if socket.is_hung_up() => End::Said,
            // Without credentials and with the peer still there it was an empty packet.
            _ => {
                socket.empty_packets.set(socket.empty_packets.get() + 1);
                End::NotSaid
            }
        }
    }
}

/// No bytes, and nothing beside them.
fn is_bare(taken: &Taken) -> bool {
    taken.length == 0 && !taken.bytes_lost && !taken.control_lost && taken.control.is_empty()
}

/// What is left of the time.
#[derive(Clone, Copy)]
enum Left {
    AllTheTime,
    Some(Duration),
}

impl Left {
    fn within(self) -> Option<Duration> {
        match self {
            Left::AllTheTime => None,
            Left::Some(time) => Some(time),
        }
    }
}

/// `None` when the deadline has passed.
fn left_until(deadline: Option<Instant>) -> Option<Left> {
    match deadline {
        None => Some(Left::AllTheTime),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(Left::Some(left))
        }
    }
}

/// A message that arrived, its bytes in the [`Inbox`]. Descriptors that are not taken are closed when it is
/// dropped, without making the thread wait.
pub struct Received<'a> {
    bytes: Cow<'a, [u8]>,
    control: Control,
}

impl Received<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to keep.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_owned()
    }

    /// The message with a copy of its bytes, so that the inbox is free again.
    pub fn into_owned(self) -> Received<'static> {
        Received { bytes: Cow::Owned(self.bytes.into_owned()), control: self.control }
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.control.descriptors.len()
    }

    /// Takes the first descriptor that has not been taken yet. All are close-on-exec.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.control.descriptors.take_first()
    }

    /// Takes all the descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.control.descriptors.take_all()
    }

    /// The same as a list of which one or two need no memory.
    pub fn take_list(&mut self) -> Descriptors {
        std::mem::take(&mut self.control.descriptors)
    }

    /// Who sent it, as the kernel tells.
    pub fn credentials(&self) -> Option<Credentials> {
        self.control.credentials
    }

    /// A pidfd of the sender, if the socket [asks for them](Socket::ask_for_pidfds) and the kernel had one.
    pub fn take_pidfd(&mut self) -> Option<OwnedFd> {
        self.control.pidfd.take()
    }
}

impl fmt::Debug for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("bytes", &self.bytes.len())
            .field("descriptors", &self.descriptors())
            .finish_non_exhaustive()
    }
}

/// No whole message was received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// End of file: nobody holds the other end any more, and all they sent has been received.
    #[error("nobody holds the other end any more")]
    Closed,
    /// The deadline has passed, and nothing came. Nothing is lost.
    #[error("nothing came before the deadline")]
    Deadline,
    /// The message was longer than [`PACKET_BYTES_MAX`]: its first bytes, and such descriptors as arrived.
    #[error("the message was longer than a packet may be, and its end is lost")]
    Truncated(Received<'static>),
    /// Descriptors are missing: more were sent than the socket takes, or than this process has room for, or a
    /// security module kept one back. The bytes are whole; the descriptors inside are the first ones sent, in
    /// order.
    #[error("descriptors of the message are lost")]
    DescriptorsLost(Received<'static>),
    /// The kernel said something else.
    #[error(transparent)]
    Io(io::Error),
}

/// A message on its way out: bytes that need not be copied, and descriptors, lent or given away.
///
/// Made of whatever a [`Message`] is made of, or of one.
///
/// ```
/// use std::os::fd::AsFd;
/// use ring::Message;
/// use ring::blocking::Outgoing;
///
/// let (reader, writer) = std::io::pipe()?;
/// let given = std::os::fd::OwnedFd::from(reader);
/// let message = Outgoing::from("two ends").with_descriptor(given).lend(writer.as_fd());
/// assert_eq!((message.bytes().len(), message.descriptors().len()), (8, 2));
/// assert_eq!(Outgoing::from(Message::from("as well")).bytes(), b"as well");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Outgoing<'a> {
    bytes: Cow<'a, [u8]>,
    descriptors: Vec<Lent<'a>>,
}

/// A descriptor on its way out.
#[derive(Debug)]
pub enum Lent<'a> {
    /// Closed here once it is sent.
    Given(Fd),
    /// Stays with its owner.
    Lent(BorrowedFd<'a>),
}

impl AsFd for Lent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Lent::Given(fd) => fd.as_fd(),
            Lent::Lent(fd) => *fd,
        }
    }
}

impl<'a> Outgoing<'a> {
    /// The message with one more descriptor at its end. It is closed here once it has been sent.
    #[must_use]
    pub fn with_descriptor(mut self, fd: impl Into<Fd>) -> Outgoing<'a> {
        self.push_descriptor(fd);
        self
    }

    /// Adds one more descriptor at the end, which is closed here once it has been sent.
    pub fn push_descriptor(&mut self, fd: impl Into<Fd>) {
        self.descriptors.push(Lent::Given(fd.into()));
    }

    /// The message with one more descriptor at its end, which stays open here.
    #[must_use]
    pub fn lend(mut self, fd: BorrowedFd<'a>) -> Outgoing<'a> {
        self.descriptors.push(Lent::Lent(fd));
        self
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The descriptors, in the order in which they will arrive.
    pub fn descriptors(&self) -> &[Lent<'a>] {
        &self.descriptors
    }

    /// Bytes and descriptors apart.
    pub fn into_parts(self) -> (Cow<'a, [u8]>, Vec<Lent<'a>>) {
        (self.bytes, self.descriptors)
    }
}

impl<'a> From<&'a [u8]> for Outgoing<'a> {
    fn from(bytes: &'a [u8]) -> Outgoing<'a> {
        Outgoing { bytes: Cow::Borrowed(bytes), descriptors: Vec::new() }
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Outgoing<'a> {
    fn from(bytes: &'a [u8; N]) -> Outgoing<'a> {
        Outgoing::from(bytes.as_slice())
    }
}

impl<'a> From<&'a str> for Outgoing<'a> {
    fn from(text: &'a str) -> Outgoing<'a> {
        Outgoing::from(text.as_bytes())
    }
}

impl<'a> From<&'a Vec<u8>> for Outgoing<'a> {
    fn from(bytes: &'a Vec<u8>) -> Outgoing<'a> {
        Outgoing::from(bytes.as_slice())
    }
}

impl From<Vec<u8>> for Outgoing<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Outgoing { bytes: Cow::Owned(bytes), descriptors: Vec::new() }
    }
}

impl From<String> for Outgoing<'_> {
    fn from(text: String) -> Self {
        Outgoing::from(text.into_bytes())
    }
}

impl From<Message> for Outgoing<'_> {
    fn from(message: Message) -> Self {
        let (bytes, descriptors) = message.into_parts();
        let descriptors = descriptors.into_iter().map(Lent::Given).collect();
        Outgoing { bytes: Cow::Owned(bytes), descriptors }
    }
}
