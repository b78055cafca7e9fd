//! A descriptor that runs a callback here for each message somebody sends into it.
//!
//! For whoever holds the descriptor there is nothing to know but `sendmsg`: no header, no continuation, no
//! connecting, and no thread of ours that waits. This file owns the end at which messages arrive and the
//! callback. It never knows what a message means, and never answers.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

use ring::{Companion, DESCRIPTORS_MAX, Kind, Reactor, ReceiveError, Received, Socket};

use crate::waiting::{Place, Waiting, wake};

/// Makes a pair of sockets, and runs the callback for each message that arrives at this end. The other end is
/// the descriptor given back, to be passed to whoever is to send: a process that has only `sendmsg`.
///
/// This is `plugin.make_socket(callback) -> fd` as it was once proposed for Native Client, where a process
/// could tell JavaScript something only through a thread call, which took five messages back and forth (seven
/// with a result). Here it takes the one message. It gives back nothing: where an answer is wanted there is
/// [`plain_object`](crate::plain_object), or the callback has a descriptor to answer on.
///
/// The callback runs in the reactor's turns, as part of no task, with nothing borrowed: it may call objects,
/// spawn, send into the descriptor's other copies, or drop the [`Listening`]. While it runs nothing else
/// does. It is given the bytes (1 to 102,080), the descriptors (16 at most unless
/// [told otherwise](Listening::set_descriptors_max)), and who sent the message, as the kernel tells; what it
/// does not take of the descriptors is closed. It is dropped at the end: when all copies of the descriptor
/// are closed and all messages are read, or with the `Listening`.
///
/// ```
/// use std::cell::RefCell;
/// use std::io::Write;
/// use std::rc::Rc;
///
/// use ring::{Executor, Message, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let told = Rc::new(RefCell::new(Vec::new()));
/// let tells = Rc::clone(&told);
/// let (fd, listening) = seqpacket::make_socket(&reactor, move |message| {
///     tells.borrow_mut().push(message.bytes().to_vec());
/// })?;
///
/// // Usually in another process, which was given the descriptor.
/// let sender = Socket::wrap(&reactor, fd)?;
/// Executor::new(&reactor).block_on(async {
///     sender.send(Message::from("the page is loaded")).await?;
///     drop(sender);
///     listening.ended().await;
///     Ok::<(), ring::SendError>(())
/// })?;
/// assert_eq!(*told.borrow(), [b"the page is loaded"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn make_socket(
    reactor: &Reactor,
    callback: impl FnMut(Received) + 'static,
) -> io::Result<(OwnedFd, Listening)> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
    // From now on, so that the kernel tells who sent the very first message.
    near.stream();
    let shared = Rc::new(Shared {
        socket: near,
        dropped: Cell::new(false),
        ended: Cell::new(false),
        violations: Cell::new(ListeningViolations::default()),
        waiting: RefCell::default(),
    });
    let companion = reactor.companion(listen(Rc::clone(&shared), callback));
    Ok((far, Listening { shared, _companion: companion }))
}

/// Keeps a [callback](make_socket) listening. Dropping it ends that: messages not seen yet are lost, and
/// whoever sends more finds the other end gone.
pub struct Listening {
    shared: Rc<Shared>,
    _companion: Companion,
}

struct Shared {
    socket: Socket,
    /// There is no `Listening` any more; the callback may be running.
    dropped: Cell<bool>,
    ended: Cell<bool>,
    violations: Cell<ListeningViolations>,
    waiting: RefCell<Waiting>,
}

/// What was sent to a [callback](make_socket) and not given to it. Each was dropped, with its descriptors.
/// (Empty packets are counted by the [reactor](ring::Stats::empty_packets).)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListeningViolations {
    /// Longer than 102,080 bytes.
    pub truncated: u64,
    /// Descriptors were lost: more than are taken, or than this process has room for. (Not always the
    /// sender's fault.)
    pub descriptors_lost: u64,
}

impl Listening {
    /// How many descriptors a message may bring: 16 unless told otherwise, at most 253. One that brings more
    /// is dropped whole, and [counted](Listening::violations).
    pub fn set_descriptors_max(&self, count: usize) {
        self.shared.socket.set_descriptors_max(count.min(DESCRIPTORS_MAX));
    }

    /// What was dropped so far.
    pub fn violations(&self) -> ListeningViolations {
        self.shared.violations.get()
    }

    /// Whether nobody holds the descriptor any more and all messages were given to the callback, which is
    /// gone.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.get()
    }

    /// Ends when [that](Listening::has_ended) is so.
    pub async fn ended(&self) {
        let mut seat = Seat { shared: &self.shared, place: Place::default() };
        poll_fn(|context| {
            if self.shared.ended.get() {
                return Poll::Ready(());
            }
            let old = self.shared.waiting.borrow_mut().keep(&mut seat.place, context.waker());
            drop(old);
            Poll::Pending
        })
        .await;
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listening").field(&self.shared.socket).finish()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // From within the callback, which then must not be run once more, whatever has arrived.
        self.shared.dropped.set(true);
    }
}

/// The place of one who waits for the end, given up with the wait.
struct Seat<'a> {
    shared: &'a Shared,
    place: Place,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let waker = self.shared.waiting.borrow_mut().leave(&self.place);
        drop(waker);
    }
}

/// The companion of the reactor that runs the callback.
async fn listen(shared: Rc<Shared>, mut callback: impl FnMut(Received)) {
    while !shared.dropped.get() {
        match shared.socket.receive().await {
            Ok(message) => callback(message),
            Err(ReceiveError::Truncated(_)) => shared.count(|violations| violations.truncated += 1),
            Err(ReceiveError::DescriptorsLost(_)) => {
                shared.count(|violations| violations.descriptors_lost += 1);
            }
            // Nobody holds the other end; or the kernel has ended this one.
            Err(_) => break,
        }
    }
    // It may hold what whoever waits for the end wants to have back.
    drop(callback);
    shared.ended.set(true);
    let woken = shared.waiting.borrow_mut().take_all();
    wake(woken);
}

impl Shared {
    fn count(&self, count: impl FnOnce(&mut ListeningViolations)) {
        let mut violations = self.violations.get();
        count(&mut violations);
        self.violations.set(violations);
    }
}
