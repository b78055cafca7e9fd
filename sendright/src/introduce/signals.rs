//! Signals as something to wait for: each is a byte on a socket of the reactor.
//!
//! It owns the sockets that the signal handlers write to. It must never know what a signal is to do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ring::{Reactor, Socket};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::Signal;

/// Takes what has come, past the reactor: its receives wait while the process has no room for descriptors
/// that might come along, and a process in that state must still take a signal. Nothing comes along here.
pub fn read_now(socket: &Socket) -> Result<usize, Errno> {
    let mut buffer = [0; 256];
    rustix::net::recv(socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT).map(|(length, _)| length)
}

/// Signals that have been asked for, before there is a reactor to wait for them on.
#[derive(Debug)]
pub struct Asked {
    socket: UnixStream,
}

/// From now on these signals do not end the process, and are kept until somebody waits for them.
pub fn ask_for(signals: &[Signal]) -> io::Result<Asked> {
    let (socket, writing) = UnixStream::pair()?;
    for signal in signals {
        // Never taken back: the handlers stay, with their copies of the writing end, as long as the process.
        signal_hook::low_level::pipe::register(signal.as_raw(), writing.try_clone()?)?;
    }
    Ok(Asked { socket })
}

impl Asked {
    /// The same on a reactor.
    pub fn on(self, reactor: &Reactor) -> io::Result<Signals> {
        let socket = Socket::wrap(reactor, OwnedFd::from(self.socket)).map_err(io::Error::other)?;
        Ok(Signals { socket })
    }
}

/// Signals to wait for.
#[derive(Debug)]
pub struct Signals {
    socket: Socket,
}

impl Signals {
    /// Waits until one has come since the last time. Several at once are one.
    pub async fn come(&self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            match read_now(&self.socket) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
