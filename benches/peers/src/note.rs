//! A few bytes from a server to its caller, before calls begin: under which name it can be met, or only that
//! it is there. A server that dies before it has said so is an error here, and nothing to wait for.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::Failure;

/// How long a server may take to start.
const STARTING_TIME_MAX: Duration = Duration::from_secs(10);

pub fn write(end: &OwnedFd, text: &[u8]) -> Result<(), Failure> {
    rustix::net::send(end, text, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub fn read(end: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let time = Timespec::try_from(STARTING_TIME_MAX)?;
    if rustix::event::poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&time))? == 0 {
        return Err("its server does not start".into());
    }
    let mut text = vec![0; 4096];
    let (_, length) = rustix::net::recv(end, text.as_mut_slice(), RecvFlags::empty())?;
    if length == 0 {
        return Err("its server has died".into());
    }
    text.truncate(length);
    Ok(text)
}

/// Whether whoever holds the other end has gone.
pub fn is_alone(end: &OwnedFd) -> bool {
    let received = rustix::net::recv(end, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK);
    !matches!(received, Err(Errno::AGAIN) | Ok((1.., _)))
}
