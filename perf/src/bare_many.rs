//! Very many bare pairs, each called in turn: what one call among so many costs without a line of ours.
//!
//! A socket that was used thousands of calls ago has left the processor's caches, whoever asks for it. The
//! server is an event loop over all of them, as it has to be; the client sleeps in the socket it has just
//! called, or is such a loop too. It does not know what is measured.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::{Errno, Result};

use crate::floor::{FDS_MAX, packet_pair, receive_now, receive_with, send, send_with, whole};
use crate::place::Wait;
use crate::process::{Failure, Order};
use crate::scale::PAYLOAD;

/// Who echoes on all of them: see [`serve`].
pub const SERVER: &str = "raw echo on many pairs";

/// Ends that travel in one message.
const TOGETHER: usize = 16;

/// Sends back each packet of as many pairs as it is given, until nobody holds the other ends.
///
/// # Errors
/// The first of anything.
pub fn serve(mut order: Order) -> std::result::Result<(), Failure> {
    let [control] = order.take()?;
    let mut ends = Vec::new();
    // What comes without a descriptor says that there are no more.
    let mut before = usize::MAX;
    while before != ends.len() {
        before = ends.len();
        receive_with(control.as_fd(), &mut [0; 1], &mut ends, Wait::Sleep)?;
    }
    let watch = Watch::over(ends.iter())?;
    let (mut room, mut none) = ([0; PAYLOAD.len()], Vec::new());
    let mut left = ends.len();
    while left > 0 {
        let end = ends[watch.wait()?].as_fd();
        match receive_now(end, &mut room, &mut none) {
            Err(Errno::AGAIN) => {}
            Ok(0) | Err(Errno::CONNRESET) => left -= 1,
            length => send(end, &room[..length?])?,
        }
    }
    Ok(())
}

/// Where the caller waits for what it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleeps {
    /// In a receive on the pair that it has just called.
    InTheSocket,
    /// In an event loop over all of them.
    InALoop,
}

impl Sleeps {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Sleeps::InTheSocket => "asleep in the socket",
            Sleeps::InALoop => "asleep in a loop",
        }
    }
}

/// Who calls them.
pub struct Caller {
    near: Vec<OwnedFd>,
    watch: Option<Watch>,
    next: usize,
}

impl Caller {
    /// With so many pairs of its own, whose other ends go to a [server](serve) over this wire.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(control: &OwnedFd, count: usize, sleeps: Sleeps) -> Result<Caller> {
        let mut near = Vec::with_capacity(count);
        while near.len() < count {
            let mut far = Vec::with_capacity(TOGETHER);
            for _ in near.len()..count.min(near.len() + TOGETHER) {
                let pair = packet_pair()?;
                near.push(pair.0);
                far.push(pair.1);
            }
            let far: Vec<BorrowedFd<'_>> = far.iter().map(OwnedFd::as_fd).collect();
            send_with(control.as_fd(), b"p", &far, rustix::net::SendFlags::empty())?;
        }
        send(control.as_fd(), b".")?;
        let watch = match sleeps {
            Sleeps::InTheSocket => None,
            Sleeps::InALoop => Some(Watch::over(near.iter())?),
        };
        Ok(Caller { near, watch, next: 0 })
    }

    /// One call, of the next in turn.
    ///
    /// # Errors
    /// The kernel's; `ECONNRESET` if the server has gone.
    pub fn call(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let near = self.near[self.next].as_fd();
        send(near, &PAYLOAD)?;
        let (mut room, mut none) = ([0; PAYLOAD.len()], Vec::with_capacity(FDS_MAX));
        let length = match &self.watch {
            None => receive_with(near, &mut room, &mut none, Wait::Sleep)?,
            Some(watch) => receive_now(self.near[watch.wait()?].as_fd(), &mut room, &mut none)?,
        };
        whole(length, PAYLOAD.len())?;
        self.next = (self.next + 1) % self.near.len();
        Ok(start.elapsed())
    }
}

/// An epoll that tells of each arrival on any of them, once.
struct Watch(OwnedFd);

impl Watch {
    fn over<'a>(ends: impl Iterator<Item = &'a OwnedFd>) -> Result<Watch> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for (index, end) in ends.enumerate() {
            epoll::add(&watch, end, epoll::EventData::new_u64(index as u64), flags)?;
        }
        Ok(Watch(watch))
    }

    /// Which of them has something.
    #[inline]
    fn wait(&self) -> Result<usize> {
        let mut events = [MaybeUninit::uninit(); 1];
        let (told, _) = epoll::wait(&self.0, &mut events, None)?;
        // It was asked to wait for as long as it takes.
        told.first().map(|event| event.data.u64() as usize).ok_or(Errno::AGAIN)
    }
}
