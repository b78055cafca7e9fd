//! Messages whose descriptors say what they are, and the rules of what may be sent.
//!
//! A [`TypedSocket`] owns a connection and counts what its peer does wrong; [`wire`](crate::wire) owns the
//! bytes. What is sent is right by its type; what is received is looked at as far as the kernel can tell.
//! What the capabilities are then used for is for the program.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::fork::ForkedChild;
use ring::{Credentials, Fd, Message, Reactor, ReceiveError, Received, SendError, Socket, discard};
use thiserror::Error;

use crate::bound::known;
use crate::wire::{self, HEADER_BYTES, Header, Kind};
use crate::{ConnectedSocket, DataOnlySocket, FrozenMemory, SharedMemory, SocketAddress, WrapError};

/// Native Client's limit, and ours: so many descriptors, or places left free, in one message.
pub const NACL_DESCRIPTORS_MAX: usize = wire::PLACES_MAX;

/// Native Client's limit, and ours: so many parts [gathered](TypedMessage::gather) into one message.
pub const NACL_PARTS_MAX: usize = 256;

/// Native Client's limit, and ours: so many bytes of data in one message.
///
/// It is more than [`ring::PACKET_BYTES_MAX`], and with its header still one packet: sockets send up to
/// 212,960 bytes with the usual buffer. Typed messages are received beside the reactor's buffers for that.
pub const NACL_BYTES_MAX: usize = wire::DATA_BYTES_MAX;

/// The flag with which Native Client said that data did not fit: see [`Truncated`].
pub const DATA_TRUNCATED: u32 = 1;

/// The flag with which Native Client said that descriptors did not fit: see [`Truncated`].
pub const DESC_TRUNCATED: u32 = 2;

/// What may be sent.
///
/// A [`BoundSocket`](crate::BoundSocket) and a [`ConnectedSocket`] may not, and so are not among these: a
/// connected socket either travels or carries descriptors, never both.
///
/// ```compile_fail
/// # fn refused(bound: imc::BoundSocket) -> imc::Capability {
/// bound.into()
/// # }
/// ```
///
/// ```compile_fail
/// # fn refused(connected: imc::ConnectedSocket) -> imc::Capability {
/// connected.into()
/// # }
/// ```
///
/// ```
/// # fn taken(address: imc::SocketAddress, data_only: imc::DataOnlySocket) -> [imc::Capability; 2] {
/// [address.into(), data_only.into()]
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Capability {
    /// A place that is left free, Native Client's descriptor number -1.
    Nothing,
    /// The right to connect.
    SocketAddress(SocketAddress),
    /// A connection for bytes only.
    DataOnlySocket(DataOnlySocket),
    /// Memory that all holders may write to.
    SharedMemory(SharedMemory),
    /// Memory that nobody can change.
    FrozenMemory(FrozenMemory),
    /// Anything else the kernel has descriptors for, but no socket of AF_UNIX.
    File(PlainFile),
}

impl Capability {
    fn kind(&self) -> Kind {
        match self {
            Capability::Nothing => Kind::Nothing,
            Capability::SocketAddress(_) => Kind::SocketAddress,
            Capability::DataOnlySocket(_) => Kind::DataOnlySocket,
            Capability::SharedMemory(_) => Kind::SharedMemory,
            Capability::FrozenMemory(_) => Kind::FrozenMemory,
            Capability::File(_) => Kind::File,
        }
    }

    /// The descriptor, to be sent. A socket that is still busy here sends a duplicate.
    fn into_fd(self) -> io::Result<Option<Fd>> {
        let fd = match self {
            Capability::Nothing => return Ok(None),
            Capability::SocketAddress(address) => match address.into_fd() {
                Ok(fd) => fd,
                Err(address) => address.share()?,
            },
            Capability::DataOnlySocket(socket) => match socket.into_fd() {
                Ok(fd) => fd,
                Err(socket) => socket.share()?,
            },
            Capability::SharedMemory(memory) => memory.into_fd(),
            Capability::FrozenMemory(memory) => memory.into_fd(),
            Capability::File(file) => file.into_fd(),
        };
        Ok(Some(Fd::from(fd)))
    }

    /// The descriptor as what it is declared to be, if it can be that.
    fn of(kind: Kind, fd: OwnedFd, reactor: &Reactor) -> Result<Capability, Unlike> {
        Ok(match kind {
            Kind::Nothing => unreachable!("no descriptor is taken for a place that is left free"),
            Kind::SocketAddress => SocketAddress::from_fd(reactor, fd).map_err(|_| Unlike)?.into(),
            Kind::DataOnlySocket => DataOnlySocket::from_fd(reactor, fd).map_err(|_| Unlike)?.into(),
            Kind::SharedMemory => SharedMemory::from_fd(fd).map_err(|_| Unlike)?.into(),
            Kind::FrozenMemory => FrozenMemory::from_fd(fd).map_err(|_| Unlike)?.into(),
            Kind::File => PlainFile::new(fd).map_err(|_| Unlike)?.into(),
        })
    }
}

/// A descriptor is not what it is declared to be. It has been closed.
struct Unlike;

impl From<SocketAddress> for Capability {
    fn from(address: SocketAddress) -> Capability {
        Capability::SocketAddress(address)
    }
}

impl From<DataOnlySocket> for Capability {
    fn from(socket: DataOnlySocket) -> Capability {
        Capability::DataOnlySocket(socket)
    }
}

impl From<SharedMemory> for Capability {
    fn from(memory: SharedMemory) -> Capability {
        Capability::SharedMemory(memory)
    }
}

impl From<FrozenMemory> for Capability {
    fn from(memory: FrozenMemory) -> Capability {
        Capability::FrozenMemory(memory)
    }
}

impl From<PlainFile> for Capability {
    fn from(file: PlainFile) -> Capability {
        Capability::File(file)
    }
}

/// A descriptor that is no AF_UNIX socket: a file, a pipe, a terminal, a TCP connection.
///
/// What nobody takes out of it is closed without making this thread wait.
pub struct PlainFile(Option<OwnedFd>);

impl PlainFile {
    /// Takes a descriptor that may be sent as a file.
    ///
    /// ```
    /// use std::os::fd::OwnedFd;
    /// use imc::{PlainFile, WrapError};
    ///
    /// let (reader, _writer) = std::io::pipe()?;
    /// assert!(PlainFile::new(OwnedFd::from(reader)).is_ok());
    /// let (socket, _peer) = std::os::unix::net::UnixStream::pair()?;
    /// assert_eq!(PlainFile::new(OwnedFd::from(socket)).unwrap_err(), WrapError::WrongKind);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// An AF_UNIX socket is refused and closed, whatever it is for: it could be a connection that carries
    /// descriptors. Addresses and data-only sockets have kinds of their own.
    pub fn new(fd: OwnedFd) -> Result<PlainFile, WrapError> {
        if ring::is_unix_socket(&fd) {
            discard(fd);
            return Err(WrapError::WrongKind);
        }
        Ok(PlainFile(Some(fd)))
    }

    /// The descriptor. Closing one that a stranger made may take time: [`ring::discard`] leaves that to
    /// another thread.
    pub fn into_fd(mut self) -> OwnedFd {
        self.0.take().expect("present until dropped")
    }
}

impl AsFd for PlainFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("present until dropped").as_fd()
    }
}

impl fmt::Debug for PlainFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainFile").field(&self.as_fd()).finish()
    }
}

impl Drop for PlainFile {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(discard);
    }
}

/// A message to send: data, and capabilities in order.
///
/// ```
/// use imc::{Capability, SharedMemory, TypedMessage};
///
/// let message = TypedMessage::new(b"the second place is left free")
///     .with(SharedMemory::create(65_536)?)
///     .with(Capability::Nothing);
/// assert_eq!(message.capabilities().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TypedMessage {
    /// The data, behind room for the header.
    packet: Vec<u8>,
    capabilities: Vec<Capability>,
}

impl TypedMessage {
    /// A message of this data, which may be none, and no capabilities.
    pub fn new(data: impl AsRef<[u8]>) -> TypedMessage {
        TypedMessage { packet: [&[0; HEADER_BYTES], data.as_ref()].concat(), capabilities: Vec::new() }
    }

    /// A message of these parts, one after the other.
    ///
    /// # Errors
    /// [`TypedSendError::TooManyParts`] for more than 256 ([`NACL_PARTS_MAX`]).
    pub fn gather(parts: &[IoSlice<'_>]) -> Result<TypedMessage, TypedSendError> {
        if parts.len() > NACL_PARTS_MAX {
            return Err(TypedSendError::TooManyParts);
        }
        let mut message = TypedMessage::new([]);
        parts.iter().for_each(|part| message.packet.extend_from_slice(part));
        Ok(message)
    }

    /// The message with one more capability at its end.
    #[must_use]
    pub fn with(mut self, capability: impl Into<Capability>) -> TypedMessage {
        self.push(capability);
        self
    }

    /// Adds one more capability at the end.
    pub fn push(&mut self, capability: impl Into<Capability>) {
        self.capabilities.push(capability.into());
    }

    /// The data.
    pub fn data(&self) -> &[u8] {
        &self.packet[HEADER_BYTES..]
    }

    /// The capabilities, in the order in which they will arrive.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// As it travels. Nothing has been sent when this fails, and everything is closed.
    fn into_message(self) -> Result<Message, TypedSendError> {
        if self.capabilities.len() > NACL_DESCRIPTORS_MAX {
            return Err(TypedSendError::TooManyDescriptors);
        }
        let TypedMessage { mut packet, capabilities } = self;
        let data_bytes = packet.len() - HEADER_BYTES;
        if data_bytes > NACL_BYTES_MAX {
            return Err(TypedSendError::TooLarge);
        }
        let kinds: Vec<Kind> = capabilities.iter().map(Capability::kind).collect();
        packet[..HEADER_BYTES].copy_from_slice(&Header::new(&kinds, data_bytes).encode());
        let mut message = Message::from(packet);
        for capability in capabilities {
            let fd = capability.into_fd().map_err(|error| TypedSendError::Send(SendError::Io(error)))?;
            fd.into_iter().for_each(|fd| message.push_descriptor(fd));
        }
        Ok(message)
    }
}

/// A typed message was not sent. Nothing of it has been seen by anybody; its capabilities are closed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TypedSendError {
    /// More than 8 capabilities, places left free included ([`NACL_DESCRIPTORS_MAX`]).
    #[error("more than 8 capabilities in one message")]
    TooManyDescriptors,
    /// More than 256 parts ([`NACL_PARTS_MAX`]).
    #[error("more than 256 parts in one message")]
    TooManyParts,
    /// More than 131,072 bytes of data ([`NACL_BYTES_MAX`]).
    #[error("more than 131,072 bytes of data in one message")]
    TooLarge,
    /// It could not be sent: see there.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// How much of a message to take. What is beyond it is closed or forgotten, and said so ([`Truncated`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// For so many bytes of data; [`NACL_BYTES_MAX`] unless told otherwise.
    pub bytes: usize,
    /// For so many capabilities, places left free included; [`NACL_DESCRIPTORS_MAX`] unless told otherwise.
    pub descriptors: usize,
}

impl Default for Room {
    fn default() -> Room {
        Room { bytes: NACL_BYTES_MAX, descriptors: NACL_DESCRIPTORS_MAX }
    }
}

/// What of a message did not fit into the [`Room`] that was offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truncated {
    /// The end of the data is missing.
    pub data: bool,
    /// The last capabilities are missing; they are closed.
    pub descriptors: bool,
}

impl Truncated {
    /// Native Client's flags: [`DATA_TRUNCATED`], [`DESC_TRUNCATED`], both, or zero.
    pub fn flags(self) -> u32 {
        u32::from(self.data) * DATA_TRUNCATED + u32::from(self.descriptors) * DESC_TRUNCATED
    }
}

/// A message that arrived. What is not taken out of it is closed when it is dropped, without making the
/// thread wait.
#[derive(Debug)]
#[non_exhaustive]
pub struct TypedReceived {
    /// The data.
    pub data: Vec<u8>,
    /// The capabilities, in the order they were sent.
    pub capabilities: Vec<Capability>,
    /// What did not fit.
    pub truncated: Truncated,
    /// Who sent it, as the kernel tells it. `None` for a message that was queued before the kernel was asked
    /// to tell: before there was this end's [`TypedSocket`].
    pub credentials: Option<Credentials>,
}

/// No typed message was received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TypedReceiveError {
    /// Nobody holds the other end any more, and all they sent has been received.
    #[error("nobody holds the other end any more")]
    Closed,
    /// Descriptors were lost on their way because this process had no room for them, or because a security
    /// module kept them back. The data is whole; the descriptors that did arrive are closed. Receiving goes
    /// on.
    #[error("descriptors of the message are lost")]
    DescriptorsLost(Vec<u8>),
    /// The reactor is that of the process this one was forked from; see [`ring::fork::ForkedChild`].
    #[error("{ForkedChild}")]
    Forked,
    /// The kernel said something else. The socket receives no more.
    #[error(transparent)]
    Io(io::Error),
}

/// What the peer did wrong, by kind. In each case the message was dropped whole, all its descriptors were
/// closed, nothing was answered, and the next was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypedViolations {
    /// Not a typed message, or longer than one.
    pub malformed: u64,
    /// More or fewer descriptors than declared.
    pub miscounted: u64,
    /// A descriptor that is not what it is declared to be: memory that could shrink, a "file" that is an
    /// AF_UNIX socket, an "address" that is none.
    pub misdeclared: u64,
}

impl TypedViolations {
    /// All of them together.
    pub fn total(&self) -> u64 {
        let TypedViolations { malformed, miscounted, misdeclared } = self;
        malformed + miscounted + misdeclared
    }
}

/// A connection over which typed messages go, both ways.
///
/// ```
/// use imc::{Capability, ConnectedSocket, SharedMemory, TypedMessage, TypedSocket};
///
/// let reactor = ring::Reactor::new()?;
/// let (near, far) = ConnectedSocket::pair(&reactor)?;
/// let far = ConnectedSocket::from_fd(&reactor, far)?;
/// let near = TypedSocket::new(near).map_err(|_| "it is receiving")?;
/// let far = TypedSocket::new(far).map_err(|_| "it is receiving")?;
///
/// ring::Executor::new(&reactor).block_on(async {
///     let memory = SharedMemory::create(65_536)?;
///     memory.map_writable()?.write_at(0, b"inside")?;
///     near.send(TypedMessage::new(b"look").with(memory)).await?;
///
///     let message = far.receive().await?;
///     assert_eq!(message.data, b"look");
///     let [Capability::SharedMemory(memory)] = &message.capabilities[..] else { panic!("no memory") };
///     let mut inside = [0; 6];
///     memory.map()?.read_at(0, &mut inside)?;
///     assert_eq!(&inside, b"inside");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What can be relied on
///
/// What is sent follows the rules: what may not travel cannot be put into a message. What is received from a
/// peer that uses this library does too. A hostile peer writes its own bytes and attaches what it likes, and
/// so each descriptor is looked at: memory is memory, sealed as declared; an address or a data-only socket is
/// a connected socket of the right type; a file is no AF_UNIX socket. Which of the two such a socket is, and
/// that it is not rather some connection that carries descriptors, the kernel cannot tell, and so between
/// strangers the rules are advice. What follows from a lie is an error on the wrong object, or a circle of
/// sockets that the kernel has to clean up.
pub struct TypedSocket {
    socket: Socket,
    /// Where packets are received to; made when the first is awaited, and away while one is.
    scratch: RefCell<Vec<u8>>,
    violations: Cell<TypedViolations>,
}

impl TypedSocket {
    /// Typed messages over this connection, from now on.
    ///
    /// # Errors
    /// Gives the connection back while something of it is away or has arrived: see
    /// [`ConnectedSocket::into_fd`].
    pub fn new(connection: ConnectedSocket) -> Result<TypedSocket, ConnectedSocket> {
        let socket = connection.into_idle_socket()?;
        socket.set_descriptors_max(NACL_DESCRIPTORS_MAX);
        // At once: what is sent before carries none, and could not be told from the end if it is empty.
        socket.ask_for_credentials();
        Ok(TypedSocket { socket, scratch: RefCell::default(), violations: Cell::default() })
    }

    /// Sends a message, whole or not at all, and waits for room in the queue. Dropping the future takes it
    /// back if it has not left yet.
    ///
    /// # Errors
    /// See [`TypedSendError`]. In all cases nothing was sent, and the capabilities are closed.
    pub async fn send(&self, message: TypedMessage) -> Result<(), TypedSendError> {
        Ok(self.socket.send(message.into_message()?).await?)
    }

    /// Sends now or says why not.
    ///
    /// # Errors
    /// [`SendError::WouldBlock`] if the queue is full or something waits before it; and as
    /// [`send`](TypedSocket::send).
    pub fn try_send(&self, message: TypedMessage) -> Result<(), TypedSendError> {
        Ok(self.socket.try_send(message.into_message()?)?)
    }

    /// The next message, whole. Dropping the future loses none.
    ///
    /// # Errors
    /// See [`TypedReceiveError`]. What the peer does wrong is none of them: it is
    /// [counted](TypedSocket::violations).
    pub async fn receive(&self) -> Result<TypedReceived, TypedReceiveError> {
        self.receive_into(Room::default()).await
    }

    /// The next message, as much of it as there is room for.
    ///
    /// ```
    /// # use imc::{Room, TypedReceiveError, TypedSocket};
    /// async fn without_descriptors(socket: &TypedSocket) -> Result<Vec<u8>, TypedReceiveError> {
    ///     let message = socket.receive_into(Room { descriptors: 0, ..Room::default() }).await?;
    ///     if message.truncated.descriptors {
    ///         println!("it brought something; that is closed");
    ///     }
    ///     Ok(message.data)
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`receive`](TypedSocket::receive).
    pub async fn receive_into(&self, room: Room) -> Result<TypedReceived, TypedReceiveError> {
        loop {
            let mut scratch = self.scratch.take();
            scratch.resize(HEADER_BYTES + NACL_BYTES_MAX, 0);
            let result = self.socket.receive_large(&mut scratch).await;
            self.scratch.replace(scratch);
            match self.judge(result, room) {
                Ok(result) => return result,
                Err(violation) => self.count(violation),
            }
        }
    }

    /// What is to be told, or what is wrong with it.
    fn judge(
        &self,
        result: Result<Received, ReceiveError>,
        room: Room,
    ) -> Result<Result<TypedReceived, TypedReceiveError>, Violation> {
        let (mut message, lost) = match result {
            Ok(message) => (message, false),
            Err(ReceiveError::DescriptorsLost(message)) => (message, true),
            Err(ReceiveError::Closed) => return Ok(Err(TypedReceiveError::Closed)),
            Err(ReceiveError::Forked) => return Ok(Err(TypedReceiveError::Forked)),
            Err(ReceiveError::Io(error)) => return Ok(Err(TypedReceiveError::Io(error))),
            // Longer than the longest.
            Err(_) => return Err(Violation::Malformed),
        };
        let mut descriptors = Descriptors(message.take_descriptors().into_iter());
        let (header, data) = Header::decode(message.bytes()).map_err(|_| Violation::Malformed)?;
        if lost && descriptors.0.len() < header.descriptors() {
            return Ok(Err(TypedReceiveError::DescriptorsLost(data.to_vec())));
        }
        if lost || descriptors.0.len() != header.descriptors() {
            return Err(Violation::Miscounted);
        }
        let mut capabilities = Vec::with_capacity(header.kinds().len());
        for kind in header.kinds() {
            let fd = if kind.has_descriptor() { descriptors.0.next() } else { None };
            capabilities.push(match fd {
                None => Capability::Nothing,
                Some(fd) => Capability::of(*kind, fd, self.reactor()).map_err(|_| Violation::Misdeclared)?,
            });
        }
        let truncated =
            Truncated { data: data.len() > room.bytes, descriptors: capabilities.len() > room.descriptors };
        capabilities.truncate(room.descriptors);
        let data = data[..data.len().min(room.bytes)].to_vec();
        Ok(Ok(TypedReceived { data, capabilities, truncated, credentials: known(message.credentials()) }))
    }

    fn count(&self, violation: Violation) {
        let mut violations = self.violations.get();
        match violation {
            Violation::Malformed => violations.malformed += 1,
            Violation::Miscounted => violations.miscounted += 1,
            Violation::Misdeclared => violations.misdeclared += 1,
        }
        self.violations.set(violations);
    }

    /// What the peer did wrong so far.
    pub fn violations(&self) -> TypedViolations {
        self.violations.get()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }
}

impl AsFd for TypedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for TypedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedSocket")
            .field("fd", &self.as_fd())
            .field("violations", &self.violations.get())
            .finish_non_exhaustive()
    }
}

enum Violation {
    Malformed,
    Miscounted,
    Misdeclared,
}

/// Descriptors of a stranger, until they are taken: those that are not are closed elsewhere.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.0.by_ref().for_each(discard);
    }
}
