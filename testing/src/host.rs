//! A program with a loop of its own, and a guest in it: plain epoll, level or edge triggered.
//!
//! It owns the epoll and the guest, and turns the guest exactly when it is told to, never for good measure:
//! what is missing then is a wake-up that was lost. Its sleeps have the limit all waits have, and fail when
//! they are interrupted, which a guest must not do to its host.

use std::cell::Cell;
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use ring::{Config, Guest, Reactor};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::role;
use crate::wait::WAIT_TIME_MAX;

/// How a host has the kernel tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as there is something to do.
    Level,
    /// Once, when there is something to do anew.
    Edge,
}

/// Both, for bodies that must not care.
pub const TRIGGERS: [Trigger; 2] = [Trigger::Level, Trigger::Edge];

/// A guest on this body's driver.
///
/// # Panics
/// If there is none to be had.
#[track_caller]
pub fn guest() -> Guest {
    Guest::with_config(Config { driver: role::driver(), ..Config::default() })
        .unwrap_or_else(|error| panic!("no guest: {error}"))
}

/// A loop with a guest in it.
///
/// ```
/// let mut host = testing::Host::new(testing::Trigger::Edge);
/// let reactor = host.reactor().clone();
/// host.runs(async move { reactor.sleep(std::time::Duration::from_millis(1)).await });
/// ```
pub struct Host {
    epoll: OwnedFd,
    guest: Guest,
    calls: u64,
}

impl Host {
    /// A host with a guest on this body's driver.
    #[track_caller]
    pub fn new(trigger: Trigger) -> Host {
        Host::with(guest(), trigger)
    }

    /// A host with this guest.
    #[track_caller]
    pub fn with(guest: Guest, trigger: Trigger) -> Host {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut flags = epoll::EventFlags::IN;
        if trigger == Trigger::Edge {
            flags |= epoll::EventFlags::ET;
        }
        epoll::add(&epoll, &guest, epoll::EventData::new_u64(0), flags).unwrap();
        Host { epoll, guest, calls: 0 }
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest's reactor.
    pub fn reactor(&self) -> &Reactor {
        self.guest.reactor()
    }

    /// The epoll it sleeps in. What else is watched there needs another number than 0, and is not served.
    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// How often the guest has called.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Sleeps until there is word, and serves the guest.
    ///
    /// # Panics
    /// If there is none in [`WAIT_TIME_MAX`].
    #[track_caller]
    pub fn sleep(&mut self) {
        assert!(self.sleep_at_most(WAIT_TIME_MAX), "the host slept for ever");
    }

    /// The same for so long at most; false if there was no word in all this time.
    #[track_caller]
    pub fn sleep_at_most(&mut self, time: Duration) -> bool {
        let mut events = Vec::with_capacity(8);
        let time = Timespec::try_from(time).unwrap();
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&time)).unwrap();
        for event in &events {
            if event.data.u64() == 0 {
                self.calls += 1;
                self.guest.turn().unwrap();
            }
        }
        !events.is_empty()
    }

    /// Sleeps, again and again, until this holds.
    #[track_caller]
    pub fn sleep_until(&mut self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.sleep();
        }
    }

    /// Serves the guest until it has nothing to do.
    #[track_caller]
    pub fn calm(&mut self) {
        while self.sleep_at_most(Duration::ZERO) {}
    }

    /// Runs a future as a task of the guest, and sleeps until it is over.
    #[track_caller]
    pub fn runs<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(Cell::new(None));
        let told = Rc::clone(&result);
        self.guest.executor().spawn(async move { told.set(Some(future.await)) });
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            self.sleep();
        }
    }

    /// The guest alone, in nobody's loop any more.
    #[track_caller]
    pub fn into_guest(self) -> Guest {
        epoll::delete(&self.epoll, &self.guest).unwrap();
        self.guest
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("guest", &self.guest).field("calls", &self.calls).finish()
    }
}
