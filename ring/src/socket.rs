//! The verbs: send, finish, post, receive, stream, exchange, readable, accept and connect, as futures.
//!
//! A socket owns its descriptor, the order of what is sent on it and what has arrived for it. It has no word
//! of protocol.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::Weak;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::beside::Glance;
use crate::buffer::{LANDING_HEAD_BYTES, Landing};
use crate::driver::STARVED_RETRY;
use crate::envelope::Otherwise;
use crate::error::{ReceiveError, SendError, WrapError};
use crate::fd::{DESCRIPTORS_MAX, Fd, Kind, discard};
use crate::message::{Credentials, Fds, Message, PACKET_BYTES_MAX, Received};
use crate::name::AbstractName;
use crate::op::{AtOnce, Done, OneTaken, Waits};
use crate::reactor::{Reactor, Sleep};
use crate::reader::Reader;
use crate::request::{Arrival, BURST_MAX, Request};
use crate::sys::{self, SocketOption, UnixAddress, ready};

/// An AF_UNIX socket on a reactor.
///
/// Sends go out in the order in which they were asked for, and messages come in in the order in which they
/// were sent, whatever the driver does in between. Dropping the socket sends what is still queued (for up to
/// ten seconds, if the peer does not receive), then closes.
pub struct Socket {
    reactor: Reactor,
    channel: usize,
    /// Present until dropped.
    fd: Option<Fd>,
    kind: Kind,
}

impl Socket {
    /// Takes a descriptor that must be an AF_UNIX socket of type SEQPACKET or STREAM, connected or listening.
    ///
    /// Others may hold the same socket; unless [told otherwise](Socket::set_private), it is never shut down.
    ///
    /// # Errors
    /// Anything else is refused, and closed without making this thread wait.
    pub fn wrap(reactor: &Reactor, fd: impl Into<OwnedFd>) -> Result<Socket, WrapError> {
        let fd = fd.into();
        let refused = match sys::unix_kind(fd.as_fd()) {
            Ok(Some(kind)) => return Ok(Socket::new(reactor, fd, kind, false)),
            Ok(None) => WrapError::NotUnix,
            Err(_) => WrapError::NotASocket,
        };
        discard(fd);
        Err(refused)
    }

    /// Takes a descriptor of which it is known that [`wrap`](Socket::wrap) would take it as a socket of this
    /// kind: because it has, and the descriptor has the same [cookie](socket_cookie). Asks nothing.
    ///
    /// On anything else the verbs fail, each with the kernel's error.
    pub fn wrap_again(reactor: &Reactor, fd: impl Into<OwnedFd>, kind: Kind) -> Socket {
        Socket::new(reactor, fd.into(), kind, false)
    }

    /// A connected pair: the near end as a private socket here, the far end to be given away.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn pair(reactor: &Reactor, kind: Kind) -> io::Result<(Socket, OwnedFd)> {
        let (near, far) = reactor.with(|core, _| core.driver.pair(kind))?;
        let near = Socket::new(reactor, near, kind, true);
        reactor.with(|core, _| core.set_made_here(near.channel));
        Ok((near, far))
    }

    /// Connects to a listener of the file system. A full backlog is awaited.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for a path that does not fit a socket address (107 bytes).
    pub async fn connect(reactor: &Reactor, path: &Path, kind: Kind) -> io::Result<Socket> {
        Socket::connect_to(reactor, UnixAddress::of_path(path)?, kind).await
    }

    /// Connects to a listener with an abstract name. A full backlog is awaited.
    ///
    /// # Errors
    /// The kernel's: `ConnectionRefused` if nobody listens under that name.
    pub async fn connect_abstract(reactor: &Reactor, name: &AbstractName, kind: Kind) -> io::Result<Socket> {
        Socket::connect_to(reactor, name.address(), kind).await
    }

    async fn connect_to(reactor: &Reactor, address: UnixAddress, kind: Kind) -> io::Result<Socket> {
        reactor.is_ours()?;
        let fd = reactor.with(|core, _| core.driver.socket(kind))?;
        // AF_UNIX tells nobody when a backlog has room again.
        const RETRY: Duration = Duration::from_millis(1);
        loop {
            match reactor.with(|core, _| core.driver.connect(fd.as_fd(), &address)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => reactor.sleep(RETRY).await,
                Err(error) => return Err(error),
                Ok(()) => return Ok(Socket::new(reactor, fd, kind, true)),
            }
        }
    }

    /// Binds to a path, which must not exist, and listens with the kernel's largest backlog. The file is the
    /// caller's to remove.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for a path that does not fit a socket address (107 bytes).
    pub fn listen(reactor: &Reactor, path: &Path, kind: Kind) -> io::Result<Socket> {
        Socket::listen_at(reactor, UnixAddress::of_path(path)?, kind, i32::MAX)
    }

    /// Binds to an abstract name, which nobody else may have, and listens. The kernel keeps one connection
    /// more than `backlog` waiting, and no more than `net.core.somaxconn` allows.
    ///
    /// Whoever can guess or read the name (`/proc/net/unix`) in the same network namespace can connect.
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` if somebody has the name.
    pub fn listen_abstract(
        reactor: &Reactor,
        name: &AbstractName,
        kind: Kind,
        backlog: u16,
    ) -> io::Result<Socket> {
        Socket::listen_at(reactor, name.address(), kind, i32::from(backlog))
    }

    fn listen_at(reactor: &Reactor, address: UnixAddress, kind: Kind, backlog: i32) -> io::Result<Socket> {
        reactor.is_ours()?;
        let fd = reactor.with(|core, _| core.driver.socket(kind))?;
        sys::bind(fd.as_fd(), &address)?;
        sys::listen(fd.as_fd(), backlog)?;
        Ok(Socket::new(reactor, fd, kind, true))
    }

    /// One connection attempt to an abstract name, now.
    ///
    /// # Errors
    /// The kernel's: `WouldBlock` if the backlog is full, `ConnectionRefused` if nobody listens.
    pub fn try_connect_abstract(reactor: &Reactor, name: &AbstractName, kind: Kind) -> io::Result<Socket> {
        reactor.is_ours()?;
        let fd = reactor.with(|core, _| core.driver.socket(kind))?;
        reactor.with(|core, _| core.driver.connect(fd.as_fd(), &name.address()))?;
        Ok(Socket::new(reactor, fd, kind, true))
    }

    pub(crate) fn new(reactor: &Reactor, fd: OwnedFd, kind: Kind, private: bool) -> Socket {
        let (fd, channel) = reactor.with(|core, _| {
            let fd = core.hold(fd);
            (fd.clone(), core.open(fd, kind, private))
        });
        Socket { reactor: reactor.clone(), channel, fd: Some(fd), kind }
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// SEQPACKET or STREAM.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the socket is connected to a peer, or was.
    pub fn is_connected(&self) -> bool {
        sys::is_connected(self.as_fd())
    }

    /// Whether the socket listens.
    pub fn is_listening(&self) -> bool {
        sys::socket_option(self.as_fd(), SocketOption::Listening).is_ok_and(|listening| listening != 0)
    }

    /// Who was at the other end when this one was connected: of a connection that was accepted who called
    /// `connect`, of the other end who called `listen`, of a pair who made it. Who sends *now* may be
    /// somebody else.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peer_credentials(&self) -> io::Result<Credentials> {
        sys::peer_credentials(self.as_fd())
    }

    /// How many descriptors one message may bring: at most 253, 16 until told otherwise. What more a message
    /// carries is closed, and the message arrives as [`ReceiveError::DescriptorsLost`].
    pub fn set_descriptors_max(&self, count: usize) {
        self.reactor.with(|core, _| core.set_descriptors_max(self.channel, count));
    }

    /// How many messages a [stream](Socket::stream) may bring in one turn of the reactor: [`BURST_MAX`] until
    /// told otherwise, which is also the most; at least 1. For messages each of which takes its receiver
    /// long, so that others need not wait for all of them.
    ///
    /// ```
    /// # use ring::{Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// near.set_burst(2);
    /// near.stream();
    /// # drop(far);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_burst(&self, messages: usize) {
        self.reactor.with(|core, _| core.set_burst(self.channel, messages.clamp(1, BURST_MAX) as u8));
    }

    /// Says that nobody else holds this end: when the socket is dropped it may be shut down, which peers see
    /// at once even while a receive is away.
    pub fn set_private(&self, private: bool) {
        self.reactor.with(|core, _| core.set_private(self.channel, private));
    }

    /// Says that this is one end of a connection, so that nobody waits for its name: where many private ones
    /// are dropped as soon as they came, they are shut down at once and closed together a moment later, when
    /// that costs less: after 20 ms or with the next turn, and before the [executor](crate::Executor) ends.
    /// Known of those that were made [in pairs](Socket::pair). And its first message is waited for without a
    /// look whether it is there, which only a socket that is not connected would need.
    pub fn set_nameless(&self) {
        self.reactor.with(|core, _| core.set_nameless(self.channel));
    }

    /// Asks for the credentials of whoever sends, from now on. A SEQPACKET socket does so itself with its
    /// first receive; but what is sent before anybody has asked carries none.
    pub fn ask_for_credentials(&self) {
        self.reactor.with(|core, _| core.ask_for_credentials(self.channel));
    }

    /// Has the kernel name no senders, where nobody wants to know them: a fortieth less work for each message
    /// that goes there and back. What may be the end of file is then asked again with their names, so that an
    /// empty packet is not taken for it; that packet itself is dropped and not counted. The last words of a
    /// peer that has hung up count only as far as its first empty packet.
    ///
    /// Not where others count on credentials: whoever [shares](Socket::share) this end finds none. What
    /// somebody else had asked for before stays so only if this was told after a first receive, and not
    /// beyond the first doubt: then it is undone when the descriptor is given back.
    ///
    /// ```
    /// # use ring::{Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// # let (_near, received) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let session = Socket::wrap(&reactor, received)?;
    /// session.forgo_credentials();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forgo_credentials(&self) {
        self.reactor.with(|core, _| core.forgo_credentials(self.channel));
    }

    /// A duplicate of the descriptor, for another holder. What was asked for here
    /// ([credentials](Socket::ask_for_credentials)) stays asked for when this one is given back: the other
    /// may count on it. Whether this end is [private](Socket::set_private) is not changed.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let worker = Socket::wrap(&reactor, near.share()?)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// # Executor::new(&reactor).block_on(async {
    /// far.send("for one of them").await?;
    /// assert!(worker.take_one().await?.credentials().is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        let copy = self.as_fd().try_clone_to_owned()?;
        self.reactor.with(|core, _| core.set_shared(self.channel));
        Ok(copy)
    }

    pub(crate) fn ask_for_credentials_again(&self) {
        self.reactor.with(|core, _| core.ask_for_credentials_again(self.channel));
    }

    /// Asks for a pidfd of the sender with every message (Linux 6.5; 43 % more work for each).
    ///
    /// # Errors
    /// The kernel does not know them.
    pub fn ask_for_pidfds(&self) -> io::Result<()> {
        self.reactor.is_ours()?;
        sys::set_socket_option(self.as_fd(), SocketOption::PassPidfd, 1)?;
        self.reactor.with(|core, _| core.set_pidfd(self.channel));
        Ok(())
    }

    /// Asks the kernel to let nobody send descriptors to this end any more (Linux 6.16): who tries is refused
    /// (EPERM). Those that are queued already arrive. Every holder of this end can undo it.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub fn refuse_descriptors(&self) -> io::Result<()> {
        self.reactor.is_ours()?;
        sys::set_socket_option(self.as_fd(), SocketOption::PassRights, 0)
    }

    // -- sending ----------------------------------------------------------------------------------------

    /// Sends a message, after those asked for before it, and waits for room in the queue.
    ///
    /// Dropping the future takes the message back if it has not left yet.
    pub fn send(&self, message: impl Into<Message>) -> Sending {
        self.sending(message.into(), false)
    }

    fn sending(&self, message: Message, silent: bool) -> Sending {
        let state = match refuse(&message) {
            Some(error) => SendingState::Refused(Some(error)),
            None => {
                let waiter = self.reactor.with(|core, _| core.send(self.channel, message, silent, true));
                SendingState::Waiting(waiter.expect("a waiter was asked for"))
            }
        };
        Sending { reactor: self.reactor.clone(), state }
    }

    /// Sends a message that may overtake others, and be overtaken. The first of a turn goes at once, and all
    /// that follow before the next turn go together: on io_uring with one system call for all of them, on
    /// epoll with one for 32. What they carry stays open until then: whoever begins N connections in
    /// one turn has 2 N descriptors open.
    ///
    /// For many short messages to one receiver, each of which is complete by itself. A full queue is awaited.
    /// Dropping the future may take the message back, or not; dropping the socket before a turn refuses it.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// # Executor::new(&reactor).block_on(async {
    /// let (one, other) = (near.send_in_any_order("one"), near.send_in_any_order("other"));
    /// one.await?;
    /// other.await?;
    /// assert_eq!(far.receive().await?.bytes().len() + far.receive().await?.bytes().len(), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_in_any_order(&self, message: impl Into<Message>) -> Sending {
        let message = message.into();
        let state = match refuse(&message) {
            Some(error) => SendingState::Refused(Some(error)),
            None => {
                SendingState::from(self.reactor.with(|core, _| core.send_in_any_order(self.channel, message)))
            }
        };
        Sending { reactor: self.reactor.clone(), state }
    }

    /// Sends now or says why not, without waiting.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if the queue is full or something waits before it.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        match refuse(&message) {
            Some(error) => Err(error),
            None => self.reactor.with(|core, _| core.try_send(self.channel, message)),
        }
    }

    /// Sends self-delimiting data, silently: all posts of one turn share packets of up to
    /// [`PACKET_BYTES_MAX`](crate::PACKET_BYTES_MAX) bytes, with the descriptors of one post at most in each.
    ///
    /// Nobody is told whether it was sent. It must not be empty. If it cannot be, for another reason than a
    /// full queue, the socket is broken: a private one is shut down, so that both sides see the end.
    ///
    /// # Panics
    /// If the parts are empty or longer than a packet, or more than 253 descriptors are given.
    #[inline]
    pub fn post(&self, parts: &[&[u8]], descriptors: Vec<Fd>) {
        assert!(descriptors.len() <= DESCRIPTORS_MAX, "whoever posts keeps to the packet");
        self.reactor.with_core(|core| core.post(self.channel, parts, Fds::from_vec(descriptors)));
    }

    /// As [`post`](Socket::post), without descriptors: a head whose length is known, and what follows it.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// for word in [b"one".as_slice(), b"three"] {
    ///     near.post_bytes(&[word.len() as u8], word);
    /// }
    /// # Executor::new(&reactor).block_on(async {
    /// assert_eq!(far.receive().await?.bytes(), b"\x03one\x05three");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If both together are empty or longer than a packet.
    #[inline]
    pub fn post_bytes<const HEAD: usize>(&self, head: &[u8; HEAD], rest: &[u8]) {
        self.reactor.with_core(|core| core.post_bytes(self.channel, head, rest));
    }

    /// As [`post`](Socket::post), in a packet of its own; and if it cannot be sent with its descriptors (too
    /// many in flight), `instead` is sent in its place, without any.
    ///
    /// # Panics
    /// As `post`.
    pub fn post_or(&self, parts: &[&[u8]], descriptors: Vec<Fd>, instead: Vec<u8>) {
        assert!(descriptors.len() <= DESCRIPTORS_MAX, "whoever posts keeps to the packet");
        assert!((1..=PACKET_BYTES_MAX).contains(&instead.len()), "whoever posts keeps to the packet");
        self.reactor.with(|core, _| core.post_or(self.channel, parts, Fds::from_vec(descriptors), &instead));
    }

    /// As [`post_bytes`](Socket::post_bytes), a head and the bytes of a message, with its descriptors, which
    /// are taken out of it; and what becomes of this post, and of no other, if they cannot be sent (too many
    /// in flight).
    ///
    /// ```
    /// # use std::os::fd::OwnedFd;
    /// # use ring::{Executor, Kind, Message, Otherwise, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// let (reader, _writer) = std::io::pipe()?;
    /// let mut message = Message::from("a pipe").with_descriptor(OwnedFd::from(reader));
    /// near.post_with(b"7 ", &mut message, Otherwise::Tell(7));
    /// near.post_bytes(b"8 ", b"nothing");
    /// # Executor::new(&reactor).block_on(async {
    /// let received = far.receive().await?;
    /// assert_eq!((received.bytes(), received.descriptors()), (b"7 a pipe8 nothing".as_slice(), 1));
    /// assert!(near.take_failed().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If head and bytes together are empty or longer than a packet, if there is no descriptor or more than
    /// 253 of them, or if what is to be said otherwise is empty or longer than a packet.
    #[inline]
    pub fn post_with(&self, head: &[u8], message: &mut Message, otherwise: Otherwise<'_>) {
        let count = message.descriptors().len();
        assert!((1..=DESCRIPTORS_MAX).contains(&count), "whoever posts descriptors has some");
        if let Otherwise::Say(instead) = otherwise {
            assert!((1..=PACKET_BYTES_MAX).contains(&instead.len()), "whoever posts keeps to the packet");
        }
        self.reactor.with_core(|core| core.post_with(self.channel, head, message, otherwise));
    }

    /// The posts that could not be sent and of which [somebody is to be told](Otherwise::Tell), in order: the
    /// number of each, and why. Whoever waits for a message is woken by them, and
    /// a [reader](Socket::set_reader) is shown nothing until they are taken. When the socket is dropped they
    /// are forgotten.
    pub fn take_failed(&self) -> Vec<(u64, SendError)> {
        self.reactor.with(|core, _| core.take_failed(self.channel))
    }

    /// Whether there are [such posts](Socket::take_failed).
    pub fn has_failed(&self) -> bool {
        self.reactor.with_core(|core| core.has_failed(self.channel))
    }

    /// As [`send`](Socket::send), a message of `bytes` and a piece of something larger, which is shared and
    /// not copied for it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let whole = Arc::new(b"one two three".to_vec());
    /// let sending = near.send_piece(b"second: ", &whole, 4..7);
    /// # let far = Socket::wrap(&reactor, far)?;
    /// # let executor = Executor::new(&reactor);
    /// # executor.block_on(async {
    /// sending.await?;
    /// assert_eq!(far.receive().await?.bytes(), b"second: two");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If both together are empty or longer than a packet, if the piece ends beyond the whole, or on a
    /// stream.
    pub fn send_piece(&self, bytes: &[u8], whole: &Arc<Vec<u8>>, piece: Range<usize>) -> Sending {
        self.expect_packet(bytes, &piece);
        let whole = Arc::clone(whole);
        let waiter = self.reactor.with(|core, _| core.send_piece(self.channel, bytes, whole, piece));
        Sending { reactor: self.reactor.clone(), state: SendingState::Waiting(waiter) }
    }

    /// Sends pieces of one whole, each behind bytes of its own: as many as go now with one system call, and
    /// the next one [as ever](Socket::send_piece). Those behind it are not sent. Nothing goes now while
    /// something waits before it, nor more than [`PIECES_SENT_AT_ONCE_MAX`](crate::PIECES_SENT_AT_ONCE_MAX)
    /// of all sockets of the reactor since its last turn.
    ///
    /// Says how many have gone, and gives what becomes of the one that waits, if all did not go.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// let whole = Arc::new(b"one two three".to_vec());
    /// let (gone, waits) = near.send_pieces(&whole, &[(b"first: ", 0..3), (b"second: ", 4..7)]);
    /// assert!(gone == 2 && waits.is_none());
    /// # Executor::new(&reactor).block_on(async {
    /// assert_eq!(far.receive().await?.bytes(), b"first: one");
    /// assert_eq!(far.receive().await?.bytes(), b"second: two");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As `send_piece`.
    pub fn send_pieces(
        &self,
        whole: &Arc<Vec<u8>>,
        pieces: &[(&[u8], Range<usize>)],
    ) -> (usize, Option<Sending>) {
        pieces.iter().for_each(|(bytes, piece)| self.expect_packet(bytes, piece));
        let (gone, waiter) = self.reactor.with_core(|core| core.send_pieces(self.channel, whole, pieces));
        let sending =
            |waiter| Sending { reactor: self.reactor.clone(), state: SendingState::Waiting(waiter) };
        (gone, waiter.map(sending))
    }

    fn expect_packet(&self, bytes: &[u8], piece: &Range<usize>) {
        assert_eq!(self.kind, Kind::SeqPacket, "a stream might take half of it");
        let length = bytes.len() + piece.len();
        assert!((1..=PACKET_BYTES_MAX).contains(&length), "whoever sends pieces keeps to the packet");
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.reactor.with_core(|core| core.unsent(self.channel))
    }

    /// As [`send`](Socket::send), but the future is only for bad news: it does not end a sleep when the
    /// message has gone, so that whoever waits for an answer anyway is woken once. It ends with success when
    /// next polled after that.
    pub fn send_quietly(&self, message: impl Into<Message>) -> Sending {
        self.sending(message.into(), true)
    }

    /// As [`send_quietly`](Socket::send_quietly), but where nothing waits before it the message goes now,
    /// with a system call of its own, and what it carried is closed when this returns. The rest waits for its
    /// turn as ever. Not for many small messages: those of one turn share the reactor's call.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Message, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let far = Socket::wrap(&reactor, far)?;
    /// let sending = near.send_at_once(Message::from("now"));
    /// assert!(sending.has_gone());
    /// # Executor::new(&reactor).block_on(async {
    /// assert_eq!(far.receive().await?.bytes(), b"now");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_at_once(&self, message: impl Into<Message>) -> Sending {
        self.send_at_once_from(&mut message.into())
    }

    /// As [`send_at_once`](Socket::send_at_once), a message that is taken out of where it stands, which is
    /// empty then: to move one from hand to hand takes longer than much else that is done for it.
    ///
    /// ```
    /// # use ring::{Kind, Message, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// # let (near, _far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let mut message = Message::from("now");
    /// assert!(near.send_at_once_from(&mut message).has_gone());
    /// assert!(message.bytes().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_at_once_from(&self, message: &mut Message) -> Sending {
        let state = match refuse(message) {
            Some(error) => SendingState::Refused(Some(error)),
            None => SendingState::from(
                self.reactor.with(|core, _| core.send_at_once(self.channel, message, true)),
            ),
        };
        Sending { reactor: self.reactor.clone(), state }
    }

    /// Ends the connection for everybody who holds either end, at once. What has arrived can still be
    /// received.
    pub fn shut_down(&self) {
        self.reactor.with(|core, _| core.shut_down(self.channel));
    }

    /// Whether a send has found the other end gone.
    pub fn is_broken(&self) -> bool {
        self.reactor.with(|core, _| core.is_broken(self.channel))
    }

    /// Sends a last message, now if nothing waits before it, and closes the socket when it has gone.
    ///
    /// # Errors
    /// What is wrong with the message itself (empty, too large), or [`SendError::Forked`]: the socket is
    /// closed without it.
    pub fn finish(self, message: impl Into<Message>) -> Result<(), SendError> {
        self.finish_and_keep(message).map(drop)
    }

    /// As [`finish`](Socket::finish), but where the last message has gone already, and descriptors are not
    /// short, the socket comes back: for whoever closes many, some at a time. Until it is dropped the other
    /// end does not see the end.
    ///
    /// # Errors
    /// As [`finish`](Socket::finish).
    pub fn finish_and_keep(self, message: impl Into<Message>) -> Result<Option<Socket>, SendError> {
        let mut message = message.into();
        if let Some(error) = self.refuse_last(&message) {
            return Err(error);
        }
        let kept = self.reactor.with(|core, _| {
            let sent = core.send_at_once(self.channel, &mut message, false);
            matches!(sent, AtOnce::Gone) && core.budget().covers(DESCRIPTORS_MAX)
        });
        Ok(kept.then_some(self))
    }

    /// As [`finish`](Socket::finish), with this very socket as the last descriptor of the message: whoever
    /// receives it, at the other end, goes on with the socket.
    ///
    /// If too many descriptors are in flight for it, and the message has no others, it is sent without the
    /// socket. If it cannot be sent at all the socket is closed like any other.
    ///
    /// # Errors
    /// What is wrong with the message itself (empty, too large, 253 descriptors besides this one), or
    /// [`SendError::Forked`]: the socket is closed without it.
    pub fn finish_inside(self, message: impl Into<Message>) -> Result<(), SendError> {
        let mut message = message.into();
        message.push_descriptor(self.fd.as_ref().expect("present until dropped").clone());
        if let Some(error) = self.refuse_last(&message) {
            return Err(error);
        }
        self.reactor.with(|core, _| core.send_inside(self.channel, &mut message));
        Ok(())
    }

    /// As [`wrap_again`](Socket::wrap_again), [`set_private`](Socket::set_private) and
    /// [`finish_inside`](Socket::finish_inside) of one packet socket, in one step: where the message goes at
    /// once, as nearly all do, the reactor need not know the socket at all. The message is taken out of where
    /// it stands, also if nothing is sent.
    ///
    /// ```
    /// # use std::os::fd::AsFd;
    /// # use ring::{Executor, Kind, Message, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let cookie = ring::socket_cookie(&far)?;
    /// Socket::finish_inside_again(&reactor, far, &mut Message::from("with it"))?;
    /// let mut last = Executor::new(&reactor).block_on(near.receive())?;
    /// assert_eq!(ring::socket_cookie(last.take_descriptor().unwrap())?, cookie);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`finish_inside`](Socket::finish_inside).
    pub fn finish_inside_again(
        reactor: &Reactor,
        fd: OwnedFd,
        message: &mut Message,
    ) -> Result<(), SendError> {
        // One place is its own.
        let refused = match message.descriptors().len() >= DESCRIPTORS_MAX {
            true => Some(SendError::TooLarge),
            false if reactor.is_forked() => Some(SendError::Forked),
            false => refuse(message),
        };
        if let Some(error) = refused {
            let socket = Socket::wrap_again(reactor, fd, Kind::SeqPacket);
            socket.set_private(true);
            *message = Message::default();
            return Err(error);
        }
        reactor.with(|core, woken| core.send_inside_alone(fd, message, woken));
        Ok(())
    }

    /// What can be said against a last message, of which nobody is told any more how it goes.
    fn refuse_last(&self, message: &Message) -> Option<SendError> {
        if self.reactor.is_forked() { Some(SendError::Forked) } else { refuse(message) }
    }

    // -- receiving --------------------------------------------------------------------------------------

    /// The next message. The receive belongs to the socket: when the future is dropped no message is lost.
    pub fn receive(&self) -> Receive<'_> {
        Receive { socket: self }
    }

    /// As `receive`, for futures written by hand: if there is no message yet, the waker (one for each socket)
    /// is woken when there is.
    pub fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let asker = self.reactor.asker(context);
        self.reactor.with(|core, woken| core.poll_receive(self.channel, asker, woken))
    }

    /// As [`poll_receive`](Socket::poll_receive), for whoever takes one message of many and leaves the next
    /// for later: says whether more (or the end) is here already. If not, the waker is woken when it is, and
    /// nothing need be polled only to wait for it.
    ///
    /// ```
    /// # use std::task::{Context, Poll, Waker};
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let far = Socket::wrap(&reactor, far)?;
    /// near.stream();
    /// # Executor::new(&reactor).block_on(async {
    /// far.send("one of many").await?;
    /// # Ok::<(), ring::SendError>(())
    /// # })?;
    /// # while !near.has_arrived() {
    /// #     reactor.turn(ring::Wait::Not)?;
    /// # }
    /// let mut context = Context::from_waker(Waker::noop());
    /// let Poll::Ready((message, more)) = near.poll_receive_of_many(&mut context) else { panic!() };
    /// assert_eq!((message?.bytes(), more), (b"one of many".as_slice(), false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll_receive_of_many(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<(Result<Received, ReceiveError>, bool)> {
        let asker = self.reactor.asker(context);
        self.reactor.with(|core, woken| core.poll_receive_of_many(self.channel, asker, woken))
    }

    /// As [`poll_receive`](Socket::poll_receive), where an answer may be there before anything is waited
    /// for: looks into the queue first, unless it is known to be empty, and then leaves it to the reactor. So
    /// up to 16 messages are taken without a turn; the next one waits for it.
    pub fn poll_receive_here(&self, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let asker = self.reactor.asker(context);
        self.reactor.with(|core, woken| core.poll_receive_here(self.channel, Waits::Alone, asker, woken))
    }

    /// As [`poll_receive_here`](Socket::poll_receive_here), for whoever waits beside others for answers to
    /// what [left together](Socket::send_in_any_order): mostly they are all there, or none is. So up to 32
    /// are taken without a turn, and where one look is in vain, none who waits like this looks before the
    /// next turn.
    ///
    /// ```
    /// # use std::task::{Context, Poll, Waker};
    /// # use ring::{Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let pairs = [Socket::pair(&reactor, Kind::SeqPacket)?, Socket::pair(&reactor, Kind::SeqPacket)?];
    /// let mut context = Context::from_waker(Waker::noop());
    /// let [(first, _), (second, far)] = pairs;
    /// Socket::wrap(&reactor, far)?.try_send("here")?;
    /// assert!(first.poll_receive_together(&mut context).is_pending());
    /// // The other look was in vain: this one is left to the turn.
    /// assert!(second.poll_receive_together(&mut context).is_pending());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll_receive_together(&self, context: &mut Context<'_>) -> Poll<Result<Received, ReceiveError>> {
        let asker = self.reactor.asker(context);
        self.reactor.with(|core, woken| core.poll_receive_here(self.channel, Waits::Together, asker, woken))
    }

    /// Whether whoever has received a piece may go on with what has arrived behind it, and leave everybody
    /// else waiting: if that is there, and is another one by its first bytes and its length, those that have
    /// landed included, and not more than [`PIECES_AT_ONCE_MAX`](crate::PIECES_AT_ONCE_MAX) go on since the
    /// last turn.
    pub fn goes_on_with_piece(&self, is_piece: impl FnOnce(&[u8], usize) -> bool) -> bool {
        self.reactor.with_core(|core| core.goes_on_with_piece(self.channel, is_piece))
    }

    /// Looks into the queue for the next piece. If there is one, as it was to be
    /// [expected](Socket::expect_piece), it has landed and is not received any more. Whatever else there is
    /// has arrived then, and nobody is woken for it: whoever looks here polls a receive before anything is
    /// waited for. All sockets of the reactor look no more than
    /// [`PIECES_AT_ONCE_MAX`](crate::PIECES_AT_ONCE_MAX) times between two turns.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Landing, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let far = Socket::wrap(&reactor, far)?;
    /// let landing = Landing::new(ring::room_for(1 << 20)?);
    /// near.try_send(b"piece 7 of many:and")?;
    /// assert!(far.take_piece(&landing, b"piece 7 of many:", 3));
    /// assert_eq!((landing.take_landed(), landing.take_bytes()), (3, b"and".to_vec()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As `expect_piece`.
    pub fn take_piece(&self, landing: &Landing, head: &[u8; LANDING_HEAD_BYTES], length: usize) -> bool {
        self.expect_piece(landing, head, length)
            && self.reactor.with(|core, woken| core.take_piece(self.channel, woken))
    }

    /// The next message, if it has arrived already.
    pub fn try_receive(&self) -> Option<Result<Received, ReceiveError>> {
        self.reactor.with(|core, _| core.take_arrived(self.channel))
    }

    /// Whether there is nothing to receive, no message and no end: neither here nor, as far as the kernel
    /// tells at this moment, on its way here.
    pub fn is_quiet(&self) -> bool {
        self.reactor.with(|core, _| core.is_quiet(self.channel))
    }

    /// Whether a message (or the end) has come that nobody has taken yet: the next receive does not wait.
    pub fn has_arrived(&self) -> bool {
        self.reactor.with(|core, _| core.has_arrived(self.channel))
    }

    /// Whether the kernel takes more at this moment, or has something to say of the other end. A send that
    /// waits has gone then, or goes with the next turn, and is not kept waiting by the other end.
    pub fn takes_more(&self) -> bool {
        sys::poll_now(self.as_fd(), ready::WRITE).is_ok_and(|mask| mask != 0)
    }

    /// The next message of a socket on which other processes receive too: it is taken out of the queue only
    /// while this is awaited, and only this one. [`receive`](Socket::receive), which may take a message that
    /// nobody here wants yet, and `stream`, which takes all it finds, would keep from the others what they
    /// could have had.
    ///
    /// ```
    /// use ring::{Executor, Kind, Reactor, Socket};
    ///
    /// let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// // Two workers, in one process here.
    /// let workers = [Socket::wrap(&reactor, far.try_clone()?)?, Socket::wrap(&reactor, far)?];
    /// Executor::new(&reactor).block_on(async {
    ///     near.send("first").await?;
    ///     near.send("second").await?;
    ///     assert_eq!(workers[0].take_one().await?.bytes(), b"first");
    ///     assert_eq!(workers[1].take_one().await?.bytes(), b"second");
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// It is not for a socket that also receives in another way. One message is taken for each time the
    /// socket was found readable. With no descriptors left for what a message may bring it waits.
    pub fn take_one(&self) -> TakeOne<'_> {
        TakeOne { socket: self, look: Look::default() }
    }

    /// As [`take_one`](Socket::take_one), for futures written by hand. Whoever drops the [`Look`] stops
    /// waiting.
    pub fn poll_take_one(
        &self,
        look: &mut Look,
        context: &mut Context<'_>,
    ) -> Poll<Result<Received, ReceiveError>> {
        loop {
            if let Some(pause) = &mut look.pause {
                std::task::ready!(Pin::new(pause).poll(context));
                look.pause = None;
            }
            let Some((reactor, waiter)) = &look.asked else {
                // Readiness first, also for the second message: between two of them others have their chance.
                let ready = |fd| Request::Ready { fd, interest: ready::READ };
                let waiter = self.reactor.with(|core, _| core.ask(self.channel, ready));
                look.asked = Some((self.reactor.clone(), waiter));
                continue;
            };
            let asker = reactor.asker(context);
            let told = reactor.with(|core, woken| core.poll_waiter(*waiter, asker, woken));
            let told = std::task::ready!(told);
            look.asked = None;
            if let Done::Ready(Err(error)) = told {
                return Poll::Ready(Err(ReceiveError::from_kernel(error)));
            }
            match self.reactor.with(|core, woken| core.take_one(self.channel, woken)) {
                OneTaken::Here(result) => return Poll::Ready(result),
                // Somebody else was faster.
                OneTaken::Nothing => {}
                OneTaken::Starved => look.pause = Some(self.reactor.sleep(STARVED_RETRY)),
            }
        }
    }

    pub(crate) fn glance(&self, scratch: &mut [u8]) -> Glance {
        self.reactor.with(|core, _| {
            let glance = core.glance(self.channel, scratch);
            core.count_glance(self.channel, matches!(glance, Glance::Arrived(_)));
            glance
        })
    }

    pub(crate) fn has_glanced(&self, most: u8) -> bool {
        self.reactor.with(|core, _| core.has_glanced(self.channel, most))
    }

    pub(crate) fn judge(&self, arrival: Arrival) -> Result<Received, ReceiveError> {
        self.reactor.with(|core, _| core.judge(self.channel, arrival))
    }

    /// From now on receives without being asked: one request brings messages until the socket is dropped.
    /// With 64 messages or 1 MiB waiting for [`receive`](Socket::receive) it pauses.
    pub fn stream(&self) {
        self.reactor.with(|core, _| {
            core.set_many(self.channel);
            core.arm(self.channel);
        });
    }

    /// If the next message begins with this head, has so many bytes behind it, no descriptors and nothing
    /// else, those bytes are received into the [landing](Landing), behind what is there: it arrives as its
    /// head, and says how many have [landed](Received::landed). Any other arrives as ever, and then nothing
    /// is expected any more. What has landed before and was not taken is forgotten.
    ///
    /// Says whether it is expected: not while a message is here already that nobody has received, since what
    /// comes behind that is not the next. The socket keeps the landing until it is told of another or
    /// [none](Socket::expect_no_piece). See there for an example.
    ///
    /// # Panics
    /// If the landing has no room for so many bytes, if there are none, or if they are more than a packet
    /// with its head has.
    pub fn expect_piece(&self, landing: &Landing, head: &[u8; LANDING_HEAD_BYTES], length: usize) -> bool {
        let is_next = self.reactor.with(|core, _| core.is_drained(self.channel));
        if is_next {
            landing.expect(head, length);
            self.fd.as_ref().expect("present until dropped").set_landing(Some(landing.clone()));
        }
        is_next
    }

    /// The next message arrives as ever, and no landing is kept.
    pub fn expect_no_piece(&self) {
        self.fd.as_ref().expect("present until dropped").set_landing(None);
    }

    /// From now on shows messages of the [stream](Socket::stream) to this reader, where they have arrived and
    /// before anybody is woken for them. It is shown what is next to be received and came whole: not what was
    /// cut off or has lost descriptors, not the end, and nothing while something that came before has not
    /// been received, or [posts have failed](Socket::take_failed). Once the reader is gone all is as before.
    ///
    /// ```
    /// # use std::cell::Cell;
    /// # use std::rc::Rc;
    /// # use ring::{Executor, Kind, Message, Reactor, Reader, Reading, Socket};
    /// struct Sum(Cell<usize>);
    ///
    /// impl Reader for Sum {
    ///     fn read(&self, reading: Reading<'_>) -> bool {
    ///         let Ok([digit]) = <[u8; 1]>::try_from(reading.bytes) else { return false };
    ///         self.0.set(self.0.get() + usize::from(digit));
    ///         true
    ///     }
    /// }
    ///
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let far = Socket::wrap(&reactor, far)?;
    /// let sum = Rc::new(Sum(Cell::new(0)));
    /// near.set_reader(Rc::downgrade(&sum));
    /// near.stream();
    /// # Executor::new(&reactor).block_on(async {
    /// for message in [b"\x03".as_slice(), b"\x04", b"more than a digit"] {
    ///     far.send(Message::from(message)).await?;
    /// }
    /// assert_eq!(near.receive().await?.bytes(), b"more than a digit");
    /// assert_eq!(sum.0.get(), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_reader(&self, reader: Weak<impl Reader + 'static>) {
        let before = self.reactor.with_core(|core| core.set_reader(self.channel, reader));
        drop(before);
    }

    /// Sends here and receives the one message that answers there, both submitted together. Dropping the
    /// future withdraws nothing by itself: drop the near socket for that.
    pub fn exchange<'a>(&'a self, message: impl Into<Message>, near: &'a Socket) -> Exchange<'a> {
        assert!(self.reactor.is(&near.reactor), "both sockets are on one reactor");
        Exchange { sending: Some(self.sending(message.into(), true)), near }
    }

    // -- readiness --------------------------------------------------------------------------------------

    /// Ends when a receive would not have to wait. Does not receive.
    pub fn readable(&self) -> Readiness {
        self.readiness(ready::READ)
    }

    /// Ends when the peer is gone, or has shut down its sending half.
    pub fn hung_up(&self) -> Readiness {
        self.readiness(ready::HUNG_UP)
    }

    /// Whether the peer is gone, or has shut down its sending half.
    pub fn is_hung_up(&self) -> bool {
        sys::poll_now(self.as_fd(), ready::HUNG_UP).is_ok_and(|mask| mask & ready::HUNG_UP != 0)
    }

    /// Ends when [the kernel takes more](Socket::takes_more), or the peer is gone. A queue of packets is that
    /// far when no more than a quarter of SO_SNDBUF is left in it, though a send may succeed sooner.
    ///
    /// ```
    /// # use ring::{Executor, Kind, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// # let far = Socket::wrap(&reactor, far)?;
    /// while near.try_send(vec![7; 10_000]).is_ok() {}
    /// # Executor::new(&reactor).block_on(async {
    /// while !near.takes_more() {
    ///     far.receive().await?;
    /// }
    /// near.drained().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Of the future: the kernel's, where readiness cannot be asked for.
    pub fn drained(&self) -> Readiness {
        self.readiness(ready::WRITE)
    }

    fn readiness(&self, interest: u32) -> Readiness {
        let waiter =
            self.reactor.with(|core, _| core.ask(self.channel, |fd| Request::Ready { fd, interest }));
        Readiness { reactor: self.reactor.clone(), waiter: Some(waiter) }
    }

    /// Takes one connection from a listening socket. The listener is made non-blocking, which everybody who
    /// holds it shares.
    pub fn accept(&self) -> Accepting<'_> {
        let refused = self.reactor.is_ours().and_then(|()| sys::set_nonblocking(self.as_fd())).err();
        let waiter = match refused {
            Some(_) => None,
            None => Some(self.reactor.with(|core, _| core.ask_for_connection(self.channel))),
        };
        Accepting { socket: self, refused, waiter }
    }

    /// The descriptor itself, as it was before: credentials are asked for no longer, if that was our doing.
    ///
    /// # Errors
    /// Gives the socket back while something of it is away (a receive, a send, a [`Readiness`] that somebody
    /// has) or has arrived and has not been taken. A receive that nobody awaits is asked home by that:
    /// another attempt after a turn succeeds, unless it has brought a message.
    pub fn into_fd(mut self) -> Result<OwnedFd, Socket> {
        let idle = self.reactor.with(|core, _| core.is_idle(self.channel));
        if !idle {
            self.reactor.with(|core, _| core.withdraw(self.channel));
            return Err(self);
        }
        drop(self.fd.take());
        let fd = self.reactor.with(|core, woken| core.take_apart(self.channel, woken));
        Ok(fd.try_into_owned().expect("an idle socket's descriptor has one owner"))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("present until dropped").as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("fd", &self.fd).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Taken by `into_fd`.
        let Some(fd) = self.fd.take() else { return };
        drop(fd);
        let hurry = self.reactor.with(|core, woken| core.close(self.channel, woken));
        if hurry {
            // Others hold this end, so it cannot be shut down; the cancellation must not wait for a turn that
            // may never come.
            self.reactor.with(|core, _| core.hurry());
        }
    }
}

/// What can be said against a message before anybody is asked.
fn refuse(message: &Message) -> Option<SendError> {
    if message.descriptors().len() > DESCRIPTORS_MAX {
        return Some(SendError::TooLarge);
    }
    // A stream loses the descriptors of a send without bytes, without a word.
    if message.bytes().is_empty() { Some(SendError::Empty) } else { None }
}

/// The number by which the kernel knows a socket: another for each socket since the machine was started, and
/// the same through each descriptor of it, in each process. So it tells whether a descriptor that arrived is
/// one that was sent.
///
/// ```
/// use std::os::fd::AsFd;
/// let (near, far) = ring::Socket::pair(&ring::Reactor::new()?, ring::Kind::SeqPacket)?;
/// let copy = far.try_clone()?;
/// assert_eq!(ring::socket_cookie(&copy)?, ring::socket_cookie(&far)?);
/// assert_ne!(ring::socket_cookie(&near)?, ring::socket_cookie(&far)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Not a socket.
pub fn socket_cookie(fd: impl AsFd) -> io::Result<u64> {
    sys::socket_cookie(fd.as_fd())
}

/// A message on its way. Made by [`Socket::send`]; and by [`Socket::send_in_any_order`], whose messages may
/// have gone already when this is dropped.
#[must_use = "a send is queued already, but only awaiting it tells how it went; dropping takes it back"]
pub struct Sending {
    reactor: Reactor,
    state: SendingState,
}

enum SendingState {
    Refused(Option<SendError>),
    Gone,
    Waiting(usize),
    Over,
}

impl From<AtOnce> for SendingState {
    fn from(sent: AtOnce) -> SendingState {
        match sent {
            AtOnce::Gone => SendingState::Gone,
            AtOnce::Queued(waiter) => SendingState::Waiting(waiter.expect("a waiter was asked for")),
        }
    }
}

impl Sending {
    /// Whether the message has gone already, as [`Socket::send_at_once`] has it where it can.
    pub fn has_gone(&self) -> bool {
        matches!(self.state, SendingState::Gone)
    }

    /// Stops waiting and lets the message go out all the same, as a [post](Socket::post) would: if it cannot
    /// be sent, the socket is broken.
    pub fn let_go(mut self) {
        if let SendingState::Waiting(waiter) = std::mem::replace(&mut self.state, SendingState::Over) {
            self.reactor.with(|core, woken| core.let_go(waiter, woken));
        }
    }
}

impl Future for Sending {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let waiter = match &mut self.state {
            SendingState::Refused(error) => {
                return Poll::Ready(Err(error.take().expect("polled after its end")));
            }
            SendingState::Gone => {
                self.state = SendingState::Over;
                return Poll::Ready(Ok(()));
            }
            SendingState::Waiting(waiter) => *waiter,
            SendingState::Over => panic!("polled after its end"),
        };
        let asker = self.reactor.asker(context);
        let poll = self.reactor.with(|core, woken| core.poll_waiter(waiter, asker, woken));
        poll.map(|done| {
            self.state = SendingState::Over;
            match done {
                Done::Sent(result) => result,
                Done::Ready(_) | Done::Accepted(_) => unreachable!("a send was asked for"),
            }
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let SendingState::Waiting(waiter) = self.state {
            self.reactor.with(|core, woken| core.abandon(waiter, woken));
        }
    }
}

/// The next message of a socket. Made by [`Socket::receive`].
#[must_use = "a receive does nothing until awaited"]
pub struct Receive<'a> {
    socket: &'a Socket,
}

impl Future for Receive<'_> {
    type Output = Result<Received, ReceiveError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.socket.poll_receive(context)
    }
}

/// The next message, taken only while this is awaited. Made by [`Socket::take_one`].
#[must_use = "a message is taken only when this is awaited"]
pub struct TakeOne<'a> {
    socket: &'a Socket,
    look: Look,
}

impl Future for TakeOne<'_> {
    type Output = Result<Received, ReceiveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let socket = self.socket;
        socket.poll_take_one(&mut self.look, context)
    }
}

/// What somebody who [takes one message at a time](Socket::poll_take_one) waits for.
#[derive(Default)]
pub struct Look {
    asked: Option<(Reactor, usize)>,
    /// Without descriptors there is no use in looking for a while.
    pause: Option<Sleep>,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("asked", &self.asked.is_some()).finish_non_exhaustive()
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if let Some((reactor, waiter)) = self.asked.take() {
            reactor.with(|core, woken| core.abandon(waiter, woken));
        }
    }
}

/// A message and its answer. Made by [`Socket::exchange`].
#[must_use = "an exchange tells its answer only when awaited"]
pub struct Exchange<'a> {
    /// Until it is known how it went.
    sending: Option<Sending>,
    near: &'a Socket,
}

/// How an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The message was not sent.
    #[error(transparent)]
    Send(SendError),
    /// No answer was received.
    #[error(transparent)]
    Receive(ReceiveError),
}

impl Future for Exchange<'_> {
    type Output = Result<Received, ExchangeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let sent = self.sending.as_mut().map(|sending| Pin::new(sending).poll(context));
        match sent {
            Some(Poll::Ready(Err(error))) => {
                self.sending = None;
                return Poll::Ready(Err(ExchangeError::Send(error)));
            }
            Some(Poll::Ready(Ok(()))) => self.sending = None,
            Some(Poll::Pending) | None => {}
        }
        self.near.poll_receive(context).map_err(ExchangeError::Receive)
    }
}

/// Waits for readiness. Made by [`Socket::readable`], [`Socket::hung_up`] and [`Socket::drained`].
///
/// It may outlive its socket. What that is to know it keeps open: a connection one of whose ends is nobody's
/// but this socket's is shut down when the socket is dropped, which ends the wait, too; of any other (see
/// [`Socket::wrap`]) the descriptor stays until this has ended or is dropped.
#[must_use = "readiness is told only when awaited"]
#[derive(Debug)]
pub struct Readiness {
    reactor: Reactor,
    waiter: Option<usize>,
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiter = self.waiter.expect("polled after its end");
        let asker = self.reactor.asker(context);
        let poll = self.reactor.with(|core, woken| core.poll_waiter(waiter, asker, woken));
        poll.map(|done| {
            self.waiter = None;
            match done {
                Done::Ready(result) => result.map(drop),
                Done::Sent(_) | Done::Accepted(_) => unreachable!("readiness was asked for"),
            }
        })
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.reactor.with(|core, woken| core.abandon(waiter, woken));
        }
    }
}

/// Waits for a connection. Made by [`Socket::accept`].
#[must_use = "a connection is told only when awaited"]
pub struct Accepting<'a> {
    socket: &'a Socket,
    refused: Option<io::Error>,
    waiter: Option<usize>,
}

impl Future for Accepting<'_> {
    type Output = io::Result<Socket>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        if let Some(error) = self.refused.take() {
            return Poll::Ready(Err(error));
        }
        let waiter = self.waiter.expect("polled after its end");
        let reactor = &self.socket.reactor;
        let asker = reactor.asker(context);
        let poll = reactor.with(|core, woken| core.poll_waiter(waiter, asker, woken));
        poll.map(|done| {
            self.waiter = None;
            match done {
                Done::Accepted(result) => {
                    result.map(|fd| Socket::new(&self.socket.reactor, fd, self.socket.kind, true))
                }
                Done::Sent(_) | Done::Ready(_) => unreachable!("a connection was asked for"),
            }
        })
    }
}

impl Drop for Accepting<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.socket.reactor.with(|core, woken| core.abandon(waiter, woken));
        }
    }
}
