//! A hostile peer: what it holds, and what it does with it, one step of its script after the other.
//!
//! It owns sockets that lead to whoever it is set on, and what it keeps of what it has made and got. It never
//! waits. It does not know what is at the other end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::ftruncate;
use rustix::net::{Shutdown, shutdown, sockopt};

use crate::descriptors::{Made, Sort, steal};
use crate::packet::{Beside, Tongue, honest_hello, receive, say, send};
use crate::script::Script;

/// Sockets that it speaks on at a time.
const ENDS_MAX: usize = 12;

/// What it keeps besides.
const KEPT_MAX: usize = 64;

/// Descriptors of different sorts in one packet. The others are the same again.
const SORTS_MAX: usize = 6;

/// How many descriptors one script passes: the kernel counts what is in flight for each user, and refuses
/// *everybody* of that user from its RLIMIT_NOFILE on, other tests too. 600 are two full packets and more,
/// and less than the usual 1,024; so whoever plays scripts in several processes plays one at a time.
const PASSED_MAX: usize = 600;

/// A socket that it speaks on.
pub(crate) struct End {
    fd: OwnedFd,
    held: Held,
}

/// Who else has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Nobody honest.
    Alone,
    /// Honest holders, who would not be served if it were shut down.
    WithOthers,
}

pub(crate) struct Peer<'a> {
    pub(crate) script: Script<'a>,
    ends: Vec<End>,
    kept: Vec<OwnedFd>,
    passed: usize,
}

impl<'a> Peer<'a> {
    pub(crate) fn new(script: Script<'a>) -> Peer<'a> {
        Peer { script, ends: Vec::new(), kept: Vec::new(), passed: 0 }
    }

    /// A socket that nobody honest needs.
    pub(crate) fn holds(&mut self, fd: OwnedFd) {
        self.push(fd, Held::Alone);
    }

    /// One that honest holders have too.
    pub(crate) fn shares(&mut self, fd: OwnedFd) {
        self.push(fd, Held::WithOthers);
    }

    fn push(&mut self, fd: OwnedFd, held: Held) {
        if self.ends.len() == ENDS_MAX {
            self.ends.remove(ENDS_MAX / 2);
        }
        self.ends.push(End { fd, held });
    }

    fn keep(&mut self, fd: OwnedFd) {
        if self.kept.len() == KEPT_MAX {
            self.kept.remove(0);
        }
        self.kept.push(fd);
    }

    /// The socket it got last.
    pub(crate) fn newest(&self) -> Option<BorrowedFd<'_>> {
        self.ends.last().map(|end| end.fd.as_fd())
    }

    /// Does the next thing. `None` when the script is at its end; otherwise whether those it is set on are to
    /// have their turn now, or only after the next.
    pub(crate) fn step(&mut self, tongue: Tongue) -> Option<Turn> {
        let step = self.script.step()?;
        if !self.ends.is_empty() {
            match step % 16 {
                0..=5 => self.speak(tongue),
                6 => self.connect(),
                7 => self.shut_down(),
                8 => self.close(),
                9 | 10 => self.hear(),
                11 => self.shrink_queue(),
                12 => self.share(),
                13 => self.lie(),
                14 => drop(self.chosen().map(|end| steal(&end.fd))),
                _ => self.speak(Tongue::Plain),
            }
        }
        Some(if step & 0x40 == 0 { Turn::Theirs } else { Turn::Ours })
    }

    fn chosen(&mut self) -> Option<&End> {
        if self.ends.is_empty() {
            return None;
        }
        let place = self.script.below(self.ends.len());
        // The newest first: it is what most scripts speak on.
        let place = self.ends.len() - 1 - place;
        self.ends.get(place)
    }

    /// Sends a packet, with descriptors or without.
    fn speak(&mut self, tongue: Tongue) {
        let count = match self.script.below(8) {
            0..=2 => 0,
            3 | 4 => 1,
            5 => self.script.below(20),
            6 => self.script.one_of(&[2, 16, 17, 64]),
            _ => self.script.one_of(&[252, 253]),
        };
        let count = count.min(PASSED_MAX - self.passed);
        self.passed += count;
        let made: Vec<OwnedFd> = (0..count.min(SORTS_MAX)).filter_map(|_| self.descriptor()).collect();
        let descriptors: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).cycle().take(count).collect();
        let count = descriptors.len();
        let how = self.script.byte();
        let bytes = if how % 32 == 31 { Vec::new() } else { tongue.packet(&mut self.script, count) };
        let beside =
            Beside { descriptors: &descriptors, credentials: how & 0x20 != 0, urgent: how & 0xc0 == 0xc0 };
        if let Some(end) = self.chosen() {
            // Refused by the kernel is as good as sent.
            let _ = send(&end.fd, &bytes, beside);
        }
    }

    /// One descriptor to pass: of any sort, or a duplicate of what it speaks on or has kept.
    fn descriptor(&mut self) -> Option<OwnedFd> {
        let choice = self.script.byte();
        match choice % 64 {
            // A fresh end, whose other end it then speaks on.
            0..=3 => {
                let (near, far) = testing::packet_pair();
                self.holds(near);
                Some(far)
            }
            4..=7 => self.chosen()?.fd.try_clone().ok(),
            8..=10 if !self.kept.is_empty() => {
                let place = self.script.below(self.kept.len());
                self.kept[place].try_clone().ok()
            }
            11 => Sort::Ring.make().map(|made| made.fd),
            other => {
                let Made { fd, kept } = Sort::ALL[usize::from(other) % Sort::ALL.len()].make()?;
                kept.into_iter().for_each(|kept| self.keep(kept));
                Some(fd)
            }
        }
    }

    /// Asks whoever is at the other end of the newest end to connect.
    pub(crate) fn connect_on_newest(&mut self) {
        let (near, far) = testing::packet_pair();
        if let Some(end) = self.newest() {
            let beside = Beside { descriptors: &[far.as_fd()], credentials: false, urgent: false };
            let _ = send(end, b"c", beside);
        }
        self.holds(near);
    }

    /// Takes what was asked for on the newest end, as an honest server would: one end, and HELLO said on it.
    pub(crate) fn accept_on_newest(&mut self) {
        self.hears_all();
        if self.script.below(8) != 7
            && let Some(end) = self.newest()
        {
            say(end, &honest_hello());
        }
    }

    /// Takes all that waits on the newest end.
    pub(crate) fn hears_all(&mut self) {
        let Some(end) = self.newest().and_then(|end| end.try_clone_to_owned().ok()) else { return };
        while let Ok((_, descriptors)) = receive(&end)
            && !descriptors.is_empty()
        {
            descriptors.into_iter().for_each(|fd| self.holds(fd));
        }
    }

    /// Passes a fresh end with the byte of a request to connect, and speaks on the other.
    fn connect(&mut self) {
        if self.passed == PASSED_MAX {
            return;
        }
        self.passed += 1;
        let (near, far) = testing::packet_pair();
        let beside = Beside { descriptors: &[far.as_fd()], credentials: false, urgent: false };
        if let Some(end) = self.chosen() {
            let _ = send(&end.fd, b"c", beside);
        }
        self.holds(near);
    }

    fn shut_down(&mut self) {
        let how = self.script.one_of(&[Shutdown::Both, Shutdown::Write, Shutdown::Read]);
        if let Some(End { fd, held: Held::Alone }) = self.chosen() {
            let _ = shutdown(fd, how);
        }
    }

    fn close(&mut self) {
        let place = self.script.below(self.ends.len());
        drop(self.ends.remove(self.ends.len() - 1 - place));
    }

    /// Receives what it is sent. Sockets among it are spoken on from now on.
    fn hear(&mut self) {
        let Some(end) = self.chosen() else { return };
        // What the library receives on, of which this is a copy: with each message comes a pidfd, since it
        // has asked for one, and who does not know of those leaves them open. So only the bytes are taken.
        if sockopt::socket_passcred(&end.fd) == Ok(true) {
            steal(&end.fd);
            return;
        }
        let Ok((_, descriptors)) = receive(&end.fd) else { return };
        for fd in descriptors {
            if self.script.below(8) == 7 { self.keep(fd) } else { self.holds(fd) }
        }
    }

    /// All who hold this end can send less from now on, or more.
    fn shrink_queue(&mut self) {
        let bytes = self.script.one_of(&[1, 4_096, 1 << 20]);
        if let Some(End { fd, held: Held::Alone }) = self.chosen() {
            let _ = sockopt::set_socket_send_buffer_size(fd, bytes);
        }
    }

    /// Holds an end twice: closing one of them ends nothing.
    fn share(&mut self) {
        let copy = self.chosen().and_then(|end| Some((end.fd.try_clone().ok()?, end.held)));
        if let Some((fd, held)) = copy {
            self.push(fd, held);
        }
    }

    /// Takes away the memory that it has passed, where that was not sealed.
    fn lie(&mut self) {
        let bytes = self.script.one_of(&[0, 1, 1 << 30]);
        for fd in &self.kept {
            let _ = ftruncate(fd, bytes);
        }
    }
}

/// Who goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Theirs,
    Ours,
}
