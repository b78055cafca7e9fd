//! A guest of a tokio runtime: one task, or one future, that turns the guest whenever there is something to
//! do.
//!
//! It owns the runtime's registration of the guest's descriptor and the place where the runtime is told
//! without one. It must never know what the guest is for, and it starts no runtime and no thread.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use ::tokio::task::{JoinHandle, spawn_local};
use thiserror::Error;

use crate::executor::Executor;
use crate::guest::Guest;
use crate::reactor::Reactor;

/// Why tokio cannot host a guest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no tokio runtime here: call this inside of one (`Runtime::block_on`, `Runtime::enter`, a
    /// task).
    #[error("there is no tokio runtime here")]
    NoRuntime,
    /// The kernel refuses: the process is out of descriptors, or the guest cannot go on (which no peer can
    /// cause).
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Guest {
    /// Hosts this guest in the tokio runtime of this thread, until what is given back is dropped: sockets and
    /// objects of the guest's reactor can be awaited in any local task.
    ///
    /// They are not `Send`, so their tasks are local ones: of a [`LocalSet`](::tokio::task::LocalSet), which
    /// any flavour of runtime can run. The guest is turned by one such task, which this spawns.
    ///
    /// ```
    /// use ring::{Guest, Kind, Socket};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    /// let local = tokio::task::LocalSet::new();
    /// local.block_on(&runtime, async {
    ///     let guest = Guest::new()?.on_tokio()?;
    ///
    ///     let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket)?;
    ///     let far = Socket::wrap(guest.reactor(), far)?;
    ///     tokio::task::spawn_local(async move { far.send("from a task of tokio's").await });
    ///     assert_eq!(near.receive().await?.bytes(), b"from a task of tokio's");
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`HostError`].
    ///
    /// # Panics
    /// As tokio's own: outside of a `LocalSet` ("`spawn_local` called from outside"), or on a runtime without
    /// I/O (`enable_io`).
    pub fn on_tokio(self) -> Result<OnTokio, HostError> {
        let guest = Rc::new(self);
        let mut hosting = Hosting::new(Rc::clone(&guest))?;
        let task = spawn_local(poll_fn(move |context| hosting.poll(context)));
        Ok(OnTokio { guest, task, over: false })
    }

    /// Runs a future in a tokio runtime, with this guest turned beside it: for who has no `LocalSet` and
    /// needs none.
    ///
    /// ```
    /// use ring::{Guest, Kind, Socket};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    /// runtime.block_on(async {
    ///     let guest = Guest::new()?;
    ///     let (near, far) = Socket::pair(guest.reactor(), Kind::SeqPacket)?;
    ///     let far = Socket::wrap(guest.reactor(), far)?;
    ///     let message = guest.run_until(async {
    ///         far.send("hello").await?;
    ///         Ok::<_, Box<dyn std::error::Error>>(near.receive().await?)
    ///     });
    ///     assert_eq!(message.await??.bytes(), b"hello");
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`HostError`].
    ///
    /// # Panics
    /// As tokio's own: on a runtime without I/O (`enable_io`).
    pub async fn run_until<F: Future>(&self, future: F) -> Result<F::Output, HostError> {
        let mut future = pin!(future);
        let mut hosting = Hosting::new(self)?;
        poll_fn(move |context| {
            // First the future, so that what it sends goes out in the turn that follows.
            let output = future.as_mut().poll(context);
            match (output, hosting.poll(context)) {
                (Poll::Ready(output), _) => Poll::Ready(Ok(output)),
                (Poll::Pending, Poll::Ready(error)) => Poll::Ready(Err(error.into())),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }
}

/// A guest that a tokio runtime hosts. Made by [`Guest::on_tokio`]; dropping it ends the task that turns the
/// guest, and with it the guest.
#[must_use = "the guest is turned until this is dropped"]
pub struct OnTokio {
    guest: Rc<Guest>,
    task: JoinHandle<io::Error>,
    /// That the task has ended has been told.
    over: bool,
}

impl OnTokio {
    /// The reactor to make sockets and objects on.
    pub fn reactor(&self) -> &Reactor {
        self.guest.reactor()
    }

    /// The guest's own executor, for tasks that need not be tokio's. Its tasks run in the guest's turns.
    pub fn executor(&self) -> &Executor {
        self.guest.executor()
    }

    /// Waits until the guest cannot go on, which happens when the kernel refuses (as in [`Reactor::turn`]; no
    /// peer can cause it), when a task of the guest's own [`executor`](OnTokio::executor) panics, or when the
    /// runtime is shut down: nothing on this reactor will come to an end any more. Who does not want to know
    /// need not ask; who asks again is told so at once.
    pub async fn ended(&mut self) -> io::Error {
        if self.over {
            return io::Error::other("the guest has ended before");
        }
        let ended = (&mut self.task).await;
        self.over = true;
        ended.unwrap_or_else(io::Error::other)
    }
}

impl Drop for OnTokio {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for OnTokio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnTokio").field("guest", &self.guest).finish_non_exhaustive()
    }
}

/// The guest's place in the runtime.
struct Hosting<G: Deref<Target = Guest>> {
    guest: G,
    watched: AsyncFd<OwnedFd>,
}

impl<G: Deref<Target = Guest>> Hosting<G> {
    fn new(guest: G) -> Result<Hosting<G>, HostError> {
        let Ok(_runtime) = Handle::try_current() else { return Err(HostError::NoRuntime) };
        // A copy, so that the registration goes before the descriptor does.
        let watched = guest.as_fd().try_clone_to_owned()?;
        // What replaces it is unsafe, for the sake of types that change their descriptor or close it behind
        // tokio's back. An `OwnedFd` that nobody else can reach does neither.
        #[allow(deprecated)]
        let watched = AsyncFd::with_interest(watched, Interest::READABLE)?;
        Ok(Hosting { guest, watched })
    }

    /// One turn. Ready only with what ends the guest.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        // Who wants a turn is mostly a task of this very runtime, which can be told by waking this one
        // instead of by writing to a descriptor it then waits for.
        drop(self.guest.reactor().bell().attend(Some(context.waker().clone())));
        // Before the turn, so that what it does not see any more wakes us again.
        while let Poll::Ready(ready) = self.watched.poll_read_ready(context) {
            match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return Poll::Ready(error),
            }
        }
        match self.guest.turn() {
            // With more to do, the turn has woken us.
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }
}

impl<G: Deref<Target = Guest>> Drop for Hosting<G> {
    fn drop(&mut self) {
        drop(self.guest.reactor().bell().attend(None));
        // Who hosts the guest next hears what was told to us, and could not be turned to any more.
        self.guest.reactor().bell().strike();
    }
}
