//! Several server processes on one object: each has a mailbox of its own on a copy of the bound end.
//!
//! A mailbox here takes from the common queue only what somebody in its process awaits, one at a time, and
//! its end is not the object's. What is taken is served as anywhere else. It knows nothing of its siblings.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use imc::{BoundSocket, ConnectedSocket, WrapError};
use ring::{Kind, Reactor, Socket};

use crate::incoming::Incoming;
use crate::mailbox::{Grant, Mailbox, MailboxOptions, Next, Violations};
use crate::object::{Object, ObjectOptions};
use crate::plain::{PlainIncoming, PlainMailbox, PlainObject, PlainViolations};
use crate::stats::{SessionStats, Stats};

/// A new object that several processes are to serve: the right to call it, and the first of the mailboxes.
///
/// ```
/// use ring::{Executor, Reactor};
/// use seqpacket::SharedMailbox;
///
/// let reactor = Reactor::new()?;
/// let executor = Executor::new(&reactor);
/// let (object, first) = seqpacket::shared_object(&reactor)?;
/// // Usually given to a child: one more worker for the same object.
/// let second = SharedMailbox::from_fd(&reactor, first.share()?)?;
///
/// for (name, mailbox) in [("first", first), ("second", second)] {
///     executor.spawn(async move {
///         while let Some(call) = mailbox.next().await {
///             let _ = call.answer(format!("this is the {name}"));
///         }
///     });
/// }
/// let answer = executor.block_on(object.call("who is there?"))?;
/// assert!(answer.bytes().starts_with(b"this is the "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn shared_object(reactor: &Reactor) -> io::Result<(Object, SharedMailbox)> {
    let (bound, address) = imc::bound_socket(reactor)?;
    let object = Object::new(reactor, address, ObjectOptions::default());
    Ok((object, SharedMailbox::new(reactor, bound, MailboxOptions::default())))
}

/// Where calls of an object arrive that several processes serve, each with a `SharedMailbox` on a
/// [copy](SharedMailbox::share) of one bound end.
///
/// - A client attaches to one of them, and its calls go there until that process ends. The next call attaches
///   anew, to any that is left; the calls that were under way end with
///   [`CallError::Dropped`](crate::CallError::Dropped), and no other client notices.
/// - A client is attached only while somebody awaits [`next`](SharedMailbox::next) here and there is room
///   ([`MailboxOptions::sessions`]), one at a time, and after each the next is left to the siblings until a
///   call was taken here, or for ten milliseconds. So a worker that is busy, stopped or full keeps nobody
///   from the others; but those attached to it wait.
/// - Dropping one, or [leaving](SharedMailbox::leave), ends what is attached to it and not the object.
///   [`CallError::Gone`](crate::CallError::Gone) is said when the last copy of the bound end is closed: by
///   whoever keeps one and serves nothing, the callers wait for a worker to come.
/// - What a worker [grants](SharedMailbox::grant) is served by that worker alone, and ends with it.
///
/// A plain object has [`SharedPlainMailbox`], where each single call goes to whoever is free.
pub struct SharedMailbox {
    mailbox: Mailbox,
    bound: Weak<BoundSocket>,
}

impl SharedMailbox {
    fn new(reactor: &Reactor, bound: BoundSocket, options: MailboxOptions) -> SharedMailbox {
        bound.set_shared(true);
        let bound = Rc::new(bound);
        let mailbox = Mailbox::beside_others(reactor, &bound, options);
        SharedMailbox { mailbox, bound: Rc::downgrade(&bound) }
    }

    /// From an inherited or received descriptor: a copy of the bound end of an object with sessions. All who
    /// serve it make a `SharedMailbox` of their copy; a [`Mailbox`] among them would take all that comes, and
    /// end the object when it is dropped.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<SharedMailbox, WrapError> {
        SharedMailbox::from_fd_with(reactor, fd, MailboxOptions::default())
    }

    /// As [`from_fd`](SharedMailbox::from_fd), with options.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd_with(
        reactor: &Reactor,
        fd: OwnedFd,
        options: MailboxOptions,
    ) -> Result<SharedMailbox, WrapError> {
        Ok(SharedMailbox::new(reactor, BoundSocket::from_fd(reactor, fd)?, options))
    }

    /// A copy of the bound end, for one more process that serves the object.
    ///
    /// # Errors
    /// The kernel's (out of descriptors); `NotConnected` when nobody holds the object any more.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match self.bound.upgrade() {
            Some(bound) => bound.share(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The next call of those who are attached here; while this is awaited more may attach. `None` when
    /// nobody holds the object any more. See [`Mailbox::next`].
    pub fn next(&self) -> Next<'_> {
        self.mailbox.next()
    }

    /// As [`next`](SharedMailbox::next), for futures written by hand. One waker is kept for all of these, and
    /// until it was woken this counts as awaited.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.mailbox.poll_next(context)
    }

    /// A fresh address for one holder. It is served by this worker alone. See [`Mailbox::grant`].
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn grant(&self) -> io::Result<OwnedFd> {
        self.mailbox.grant()
    }

    /// As [`grant`](SharedMailbox::grant), with a handle to know that holder's calls by, and to take the
    /// grant back.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn grant_revocable(&self) -> io::Result<(OwnedFd, Grant)> {
        self.mailbox.grant_revocable()
    }

    /// The grants of this worker that are open. See [`Mailbox::grants`].
    pub fn grants(&self) -> Vec<Grant> {
        self.mailbox.grants()
    }

    /// Takes all grants of this worker back. See [`Mailbox::revoke_all`].
    pub fn revoke_all(&self) {
        self.mailbox.revoke_all();
    }

    /// Ends this worker's part so that no call is in doubt: its clients attach to others with their next
    /// call. See [`Mailbox::leave`].
    pub async fn leave(self, within: Duration) {
        self.mailbox.leave(within).await;
    }

    /// How many sessions are open here.
    pub fn sessions(&self) -> usize {
        self.mailbox.sessions()
    }

    /// How many clients have attached here so far.
    pub fn attached_ever(&self) -> u64 {
        self.mailbox.attached_ever()
    }

    /// What the sessions of this worker have carried. See [`Mailbox::stats`].
    pub fn stats(&self) -> Stats {
        self.mailbox.stats()
    }

    /// The sessions that are open here. See [`Mailbox::each_session`].
    pub fn each_session(&self) -> Vec<SessionStats> {
        self.mailbox.each_session()
    }

    /// What peers have done here that the protocol does not allow.
    pub fn violations(&self) -> Violations {
        self.mailbox.violations()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.mailbox.reactor()
    }
}

impl fmt::Debug for SharedMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMailbox").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

/// A new plain object that several processes are to serve: the right to call it, and the first of the
/// mailboxes.
///
/// ```
/// use ring::{Executor, Reactor};
/// use seqpacket::SharedPlainMailbox;
///
/// let reactor = Reactor::new()?;
/// let executor = Executor::new(&reactor);
/// let (object, first) = seqpacket::shared_plain_object(&reactor)?;
/// // Usually given to a child: one more worker for the same object.
/// let second = SharedPlainMailbox::from_fd(&reactor, first.share()?)?;
///
/// for mailbox in [first, second] {
///     executor.spawn(async move {
///         // One call each: the second call finds the first worker away.
///         let Some(call) = mailbox.next().await else { return };
///         let _ = call.answer("done");
///     });
/// }
/// executor.block_on(async {
///     assert_eq!(object.call("one").await?.bytes(), b"done");
///     assert_eq!(object.call("two").await?.bytes(), b"done");
///     Ok::<(), seqpacket::CallError>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The kernel's (out of descriptors).
pub fn shared_plain_object(reactor: &Reactor) -> io::Result<(PlainObject, SharedPlainMailbox)> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
    let mailbox = PlainMailbox::beside_others(near);
    mailbox.is_called_by(&far);
    let object =
        PlainObject::from_fd(reactor, far).map_err(|_| io::Error::other("a fresh socket is refused"))?;
    Ok((object, SharedPlainMailbox { mailbox }))
}

/// Where calls of a plain object arrive that several processes serve, each with a `SharedPlainMailbox` on a
/// [copy](SharedPlainMailbox::share) of one end.
///
/// Each call is taken from the common queue by one of them, and only while somebody there awaits
/// [`next`](SharedPlainMailbox::next): a worker that is busy or stopped keeps no call from the others.
/// When one dies, the calls that it has taken end with [`CallError::Dropped`](crate::CallError::Dropped),
/// and those in the queue go to the others; when the last one does, those too are dropped.
pub struct SharedPlainMailbox {
    mailbox: PlainMailbox,
}

impl SharedPlainMailbox {
    /// From an inherited or received descriptor: a copy of the end of the pair that no caller holds. All who
    /// serve the object make a `SharedPlainMailbox` of their copy; a [`PlainMailbox`] among them would take
    /// all that comes.
    ///
    /// # Errors
    /// Not a connected SEQPACKET socket. It has been closed.
    pub fn from_fd(reactor: &Reactor, fd: OwnedFd) -> Result<SharedPlainMailbox, WrapError> {
        let socket = ConnectedSocket::from_fd(reactor, fd)?.into_socket();
        Ok(SharedPlainMailbox { mailbox: PlainMailbox::beside_others(socket) })
    }

    /// A copy of the end, for one more process that serves the object.
    ///
    /// # Errors
    /// The kernel's (out of descriptors).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.mailbox.share()
    }

    /// How many argument descriptors a call may carry. See [`PlainMailbox::set_arguments_max`]; all who serve
    /// the object should say the same.
    pub fn set_arguments_max(&self, count: usize) {
        self.mailbox.set_arguments_max(count);
    }

    /// Answers of calls taken here from now on give the continuation back. See
    /// [`PlainMailbox::return_continuations`]; callers of several servers trust
    /// [their user](crate::ReturnTrust::User).
    pub fn return_continuations(&self) {
        self.mailbox.return_continuations();
    }

    /// The next call, taken only while this is awaited; `None` when nobody holds the object any more. What is
    /// no call is dropped and [counted](SharedPlainMailbox::violations). Any number of tasks may wait; each
    /// call goes to one of them. Dropping the future takes no call.
    pub async fn next(&self) -> Option<PlainIncoming> {
        self.mailbox.next_beside_others().await
    }

    /// What was dropped here so far.
    pub fn violations(&self) -> PlainViolations {
        self.mailbox.violations()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Reactor {
        self.mailbox.reactor()
    }
}

impl fmt::Debug for SharedPlainMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedPlainMailbox").field(&self.mailbox).finish()
    }
}
