//! An event loop with nothing in it: one socket behind epoll, plain receives with room for descriptors, plain
//! sends.
//!
//! It is what is left of a call for whoever may have to wait for more than one socket, and takes whatever
//! comes. It does not know what is measured.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, Result};

use crate::floor;
use crate::place::Wait;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A socket, and the epoll that tells of it at each arrival.
#[derive(Debug)]
pub struct BareLoop {
    epoll: OwnedFd,
    socket: OwnedFd,
    wait: Wait,
    /// No packet comes before the last one was answered.
    one_at_a_time: bool,
    /// More may have come than was told of.
    may_have_more: bool,
}

impl BareLoop {
    /// Where packets do not come one at a time there is one look more after each, which mostly finds nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: OwnedFd, wait: Wait, one_at_a_time: bool) -> Result<BareLoop> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(0), flags)?;
        // What came before that is not told of again.
        Ok(BareLoop { epoll, socket, wait, one_at_a_time, may_have_more: true })
    }

    /// Has the kernel say who sent, as whoever serves plain calls must.
    ///
    /// # Errors
    /// The kernel's.
    pub fn naming_senders(self) -> Result<BareLoop> {
        rustix::net::sockopt::set_socket_passcred(&self.socket, true)?;
        Ok(self)
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// One packet: its length, with its descriptors appended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive(&mut self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize> {
        loop {
            if !std::mem::replace(&mut self.may_have_more, false) {
                self.wait_for_news()?;
            }
            match floor::receive_now(self.socket.as_fd(), into, descriptors) {
                Err(Errno::AGAIN) => {}
                received => {
                    self.may_have_more = !self.one_at_a_time;
                    return received;
                }
            }
        }
    }

    fn wait_for_news(&self) -> Result<()> {
        let mut events = [MaybeUninit::uninit(); 1];
        if self.wait == Wait::Spin {
            let start = Instant::now();
            while start.elapsed() < ring::SPIN_DEFAULT {
                if !epoll::wait(&self.epoll, &mut events, Some(&NOW))?.0.is_empty() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        epoll::wait(&self.epoll, &mut events, None).map(drop)
    }
}
