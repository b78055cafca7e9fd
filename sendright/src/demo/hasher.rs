//! A thread that reads descriptors to their end and hashes what it reads, so that the reactor's thread need
//! not.
//!
//! It owns the thread, and the socket on which results come back as packets, where the reactor sees them like
//! any other message. It must never know which file a descriptor is, nor how it came here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use ring::{Kind, Reactor, Socket};
use rustix::io::Errno;
use rustix::net::SendFlags;
use sha2::{Digest, Sha256};

use super::report::BEYOND_BYTES_MAX;

/// Read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// In place of an error number: there was no end to it.
const ENDLESS: u32 = u32::MAX;

/// Ticket, error number, length, hash.
const RESULT_BYTES: usize = 4 + 4 + 8 + 32;

/// The thread, as long as somebody may have work for it. Dropping this waits until what was submitted is
/// done.
#[derive(Debug)]
pub struct Hasher {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Work {
    ticket: u32,
    content: OwnedFd,
}

/// What there was to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Whole { bytes: u64, sha256: [u8; 32] },
    /// More than so much, which was where the reading ended ([`BEYOND_BYTES_MAX`]).
    Endless { bytes: u64 },
    /// Nothing, by the kernel's error number.
    Unreadable { errno: u32 },
}

/// What became of one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    pub ticket: u32,
    pub content: Content,
}

impl Hasher {
    /// Starts the thread; the socket is where results arrive, one to a packet, until the thread has ended.
    pub fn start(reactor: &Reactor) -> io::Result<(Hasher, Socket)> {
        let (results, far) = Socket::pair(reactor, Kind::SeqPacket)?;
        let (sender, receiver) = mpsc::channel();
        let thread =
            std::thread::Builder::new().name("hasher".into()).spawn(move || hash_all(&receiver, &far))?;
        Ok((Hasher { work: Some(sender), thread: Some(thread) }, results))
    }

    /// Has `content` read to its end, and closed. The result carries the ticket.
    ///
    /// The queue has no bound of its own: whoever submits holds a permit for each descriptor.
    pub fn submit(&self, ticket: u32, content: OwnedFd) {
        if let Some(work) = &self.work {
            // The thread ends when its results are not wanted any more; then the work is not wanted either.
            let _ = work.send(Work { ticket, content });
        }
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Hashed {
    /// Reads a result. `None` if it is none.
    pub fn parse(packet: &[u8]) -> Option<Hashed> {
        let packet: &[u8; RESULT_BYTES] = packet.try_into().ok()?;
        let (ticket, rest) = packet.split_first_chunk::<4>()?;
        let (errno, rest) = rest.split_first_chunk::<4>()?;
        let (bytes, sha256) = rest.split_first_chunk::<8>()?;
        let content = match u32::from_le_bytes(*errno) {
            0 => Content::Whole { bytes: u64::from_le_bytes(*bytes), sha256: sha256.try_into().ok()? },
            ENDLESS => Content::Endless { bytes: u64::from_le_bytes(*bytes) },
            errno => Content::Unreadable { errno },
        };
        Some(Hashed { ticket: u32::from_le_bytes(*ticket), content })
    }

    fn encode(&self) -> [u8; RESULT_BYTES] {
        let (errno, bytes, sha256) = match self.content {
            Content::Whole { bytes, sha256 } => (0, bytes, sha256),
            Content::Endless { bytes } => (ENDLESS, bytes, [0; 32]),
            Content::Unreadable { errno } => (errno, 0, [0; 32]),
        };
        let mut packet = [0; RESULT_BYTES];
        packet[..4].copy_from_slice(&self.ticket.to_le_bytes());
        packet[4..8].copy_from_slice(&errno.to_le_bytes());
        packet[8..16].copy_from_slice(&bytes.to_le_bytes());
        packet[16..].copy_from_slice(&sha256);
        packet
    }
}

fn hash_all(work: &Receiver<Work>, results: &OwnedFd) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(Work { ticket, content }) = work.recv() {
        let unreadable = |errno: Errno| Content::Unreadable { errno: errno.raw_os_error().unsigned_abs() };
        let hashed = hash(&content, &mut buffer).unwrap_or_else(unreadable);
        // Closed before the result is told: whoever hears of it may count on the room.
        drop(content);
        let packet = Hashed { ticket, content: hashed }.encode();
        if rustix::io::retry_on_intr(|| rustix::net::send(results, &packet, SendFlags::NOSIGNAL)).is_err() {
            return;
        }
    }
}

fn hash(content: &OwnedFd, buffer: &mut [u8]) -> Result<Content, Errno> {
    let size = u64::try_from(rustix::fs::fstat(content)?.st_size).unwrap_or(0);
    let most = size.saturating_add(BEYOND_BYTES_MAX);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(content, &mut *buffer))?;
        if length == 0 {
            return Ok(Content::Whole { bytes, sha256: hash.finalize().into() });
        }
        hash.update(&buffer[..length]);
        bytes += length as u64;
        if bytes > most {
            return Ok(Content::Endless { bytes: most });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_they_were_written() {
        for content in [
            Content::Whole { bytes: u64::MAX, sha256: [9; 32] },
            Content::Endless { bytes: 7 },
            Content::Unreadable { errno: 5 },
        ] {
            let hashed = Hashed { ticket: 77, content };
            assert_eq!(Hashed::parse(&hashed.encode()), Some(hashed));
        }
        assert_eq!(Hashed::parse(b"short"), None);
    }
}
