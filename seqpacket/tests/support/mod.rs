//! What the tests of this package share: peers that speak the protocol by hand, and futures that count how
//! often they are woken. It does not assert anything about the library by itself.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::Cell;
use std::future::Future;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ring::{Executor, Fd, Message, Reactor, SendError, Socket};
use seqpacket::wire::{self, Arrived, FromClient, Header, Hello, Kind, Size};
use seqpacket::{Call, Mailbox, Object, PlainMailbox};
use testing::Packet;

/// Answers each call with its own bytes and descriptors, until nobody calls any more.
pub async fn echo(mailbox: Mailbox) {
    while let Some(call) = mailbox.next().await {
        let (bytes, descriptors, continuation) = call.into_parts();
        let _ = continuation.answer(message_of(bytes, descriptors));
    }
}

/// As that one, of a plain object.
pub async fn plain_echo(mailbox: PlainMailbox) {
    while let Some(call) = mailbox.next().await {
        let (bytes, descriptors, continuation) = call.into_parts();
        let _ = continuation.answer(message_of(bytes, descriptors));
    }
}

pub fn message_of(bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> Message {
    descriptors.into_iter().fold(Message::new(bytes), Message::with_descriptor)
}

/// A descriptor that is nobody's but the test's.
pub fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// A message with so many descriptors that are all the same one.
pub fn with_many(bytes: &str, fd: &Fd, count: usize) -> Message {
    (0..count).fold(Message::from(bytes), |message, _| message.with_descriptor(fd.clone()))
}

/// Runs what can run until this holds. What other threads and processes do takes its own time.
#[track_caller]
pub fn until(executor: &Executor, what: &str, mut condition: impl FnMut() -> bool) {
    testing::wait_until(what, || {
        executor.settle();
        condition()
    });
}

/// Attaches and gives the object back: what follows is about calls only.
#[track_caller]
pub fn attached(executor: &Executor, object: Object) -> Object {
    executor.block_on(object.attach()).unwrap();
    object
}

/// Polls a call once, as a task that then does something else.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

// Waiting under observation.

/// How often a future was woken and polled.
#[derive(Clone, Default)]
pub struct Counts {
    pub polls: Rc<Cell<usize>>,
    wakes: Arc<AtomicUsize>,
}

impl Counts {
    pub fn wakes(&self) -> usize {
        self.wakes.load(Ordering::Relaxed)
    }

    /// How many wakers somebody has, besides futures that are still watched.
    pub fn wakers(&self) -> usize {
        Arc::strong_count(&self.wakes) - 1
    }
}

/// A future that counts.
pub struct Watched<F> {
    future: F,
    counts: Counts,
    waker: Option<Waker>,
}

impl<F> Watched<F> {
    pub fn new(future: F, counts: &Counts) -> Watched<F> {
        Watched { future, counts: counts.clone(), waker: None }
    }
}

struct Counting {
    wakes: Arc<AtomicUsize>,
    next: Waker,
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
        self.next.wake_by_ref();
    }
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.counts.polls.set(self.counts.polls.get() + 1);
        let wakes = Arc::clone(&self.counts.wakes);
        let next = context.waker().clone();
        let waker = self.waker.get_or_insert_with(|| Waker::from(Arc::new(Counting { wakes, next }))).clone();
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }
}

// Peers by hand.

/// A client that speaks bytes.
pub struct RawClient {
    pub near: OwnedFd,
}

impl RawClient {
    /// Asks to attach.
    pub fn connect(address: impl AsFd) -> RawClient {
        let (near, far) = testing::packet_pair();
        testing::send_packet(address, b"c", &[far.as_fd()]).unwrap();
        testing::set_nonblocking(&near);
        RawClient { near }
    }

    /// Asks to attach, and waits for HELLO.
    #[track_caller]
    pub fn attach(executor: &Executor, address: impl AsFd) -> RawClient {
        let client = RawClient::connect(address);
        let hello = client.hear_from(executor);
        assert_eq!(hello.bytes.len(), wire::HELLO_FRAME_BYTES);
        client
    }

    /// Says whether the packet went out. It does not when the server has ended the session, or does not read.
    pub fn say(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        testing::send_packet(&self.near, packet, descriptors).is_ok()
    }

    #[track_caller]
    pub fn say_all(&self, frames: &[Vec<u8>]) {
        assert!(self.say(&frames.concat(), &[]));
    }

    /// The next packet that is there: an empty one at the end. `None` if there is none yet.
    #[track_caller]
    pub fn hear(&self) -> Option<Packet> {
        loop {
            match testing::receive_packet(&self.near) {
                Ok(packet) => return Some(packet),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                // The server has closed without reading everything; what it said is still there.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[track_caller]
    pub fn hear_from(&self, executor: &Executor) -> Packet {
        let mut packet = None;
        until(executor, "the server says something", || {
            packet = self.hear();
            packet.is_some()
        });
        packet.unwrap()
    }

    /// Hears everything to the end: the server has ended the session.
    #[track_caller]
    pub fn hear_the_end(&self, executor: &Executor) {
        until(executor, "the server ends the session", || {
            std::iter::from_fn(|| self.hear()).any(|packet| packet.bytes.is_empty())
        });
    }
}

/// A CALL without descriptors, with room for an answer of so many bytes.
pub fn call(number: u32, payload: &[u8], answer_bytes: usize) -> Vec<u8> {
    call_with(number, payload, 0, answer_bytes)
}

/// A CALL that declares descriptors.
pub fn call_with(number: u32, payload: &[u8], descriptors: usize, answer_bytes: usize) -> Vec<u8> {
    let size = Size::of_bytes(payload.len()).unwrap().with_descriptors(descriptors).unwrap();
    frame(Header::call(number, size, Size::of_bytes(answer_bytes).unwrap()), payload)
}

/// An ANSWER.
pub fn answer(number: u32, payload: &[u8], descriptors: usize) -> Vec<u8> {
    let size = Size::of_bytes(payload.len()).unwrap().with_descriptors(descriptors).unwrap();
    frame(Header::answer_to(number, size), payload)
}

pub fn bare(header: Header) -> Vec<u8> {
    frame(header, &[])
}

pub fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    [header.encode().as_slice(), payload].concat()
}

/// A server that speaks bytes: the bound end, and the session of its one client.
pub struct RawServer {
    pub bound: OwnedFd,
}

impl RawServer {
    /// And the object that calls it.
    pub fn new(reactor: &Reactor) -> (RawServer, Object) {
        let (bound, address) = testing::packet_pair();
        testing::set_nonblocking(&bound);
        (RawServer { bound }, Object::from_fd(reactor, address).unwrap())
    }

    /// The near end of whoever connects next.
    #[track_caller]
    pub fn accept(&self, executor: &Executor) -> RawClient {
        let mut arrival = None;
        until(executor, "the client connects", || {
            arrival = testing::receive_packet(&self.bound).ok();
            arrival.is_some()
        });
        let mut packet = arrival.unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"c"[..], 1));
        let near = packet.descriptors.remove(0);
        testing::set_nonblocking(&near);
        RawClient { near }
    }

    /// Accepts, and says HELLO.
    #[track_caller]
    pub fn attach(&self, executor: &Executor, hello: Hello) -> RawClient {
        let session = self.accept(executor);
        assert!(session.say(&hello.frame(), &[]));
        session
    }
}

/// The frames of a packet, as a server reads them: kind, number and payload.
#[track_caller]
pub fn said_by_client(packet: &Packet) -> Vec<(Kind, u32, Vec<u8>)> {
    wire::frames(&packet.bytes, Arrived::Whole(packet.descriptors.len()))
        .map(|frame| {
            let frame = frame.unwrap();
            let _: FromClient<'_> = frame.from_client().unwrap();
            (frame.header.kind, frame.header.number, frame.payload.to_vec())
        })
        .collect()
}

/// The frames of a packet, as a client reads them: kind, number and payload.
#[track_caller]
pub fn said_by_server(packet: &Packet) -> Vec<(Kind, u32, Vec<u8>)> {
    wire::frames(&packet.bytes, Arrived::Whole(packet.descriptors.len()))
        .map(|frame| {
            let frame = frame.unwrap();
            frame.from_server().unwrap();
            (frame.header.kind, frame.header.number, frame.payload.to_vec())
        })
        .collect()
}

/// Sends as much as a socket's queue takes, so that the next one finds it full.
pub fn fill(socket: &Socket) -> usize {
    (0..).take_while(|_| !matches!(socket.try_send("x"), Err(SendError::WouldBlock))).count()
}

/// The calls of a list, as one future after the other.
pub async fn all(calls: Vec<Call>) -> Vec<Result<Vec<u8>, seqpacket::CallError>> {
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.map(seqpacket::Answer::into_bytes));
    }
    results
}

/// A descriptor of an io_uring, which no socket carries.
pub fn ring_descriptor() -> Option<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let config = ring::Config { driver: ring::DriverChoice::Uring, ..ring::Config::default() };
    let ring = Reactor::with_config(config).ok()?;
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let found = std::fs::read_dir("/proc/self/fd").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).ok()?;
        let is_ring = target.to_string_lossy().contains("[io_uring]");
        is_ring.then(|| entry.file_name().to_string_lossy().parse().unwrap())
    });
    let fd = pidfd_getfd(&this, found.unwrap(), PidfdGetfdFlags::empty()).unwrap();
    drop(ring);
    Some(fd)
}
