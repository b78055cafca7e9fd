//! What a supervisor hands over and wants to hear: listening sockets, and how it goes.
//!
//! It owns the meaning of `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES` and `NOTIFY_SOCKET`, in which nothing
//! is specific to systemd but the names. It must never know what the sockets are for.

use std::env;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SocketType, sockopt};
use rustix::time::{ClockId, clock_gettime};

use crate::output::Failure;

/// The number of the first socket that is handed over.
const FIRST: i32 = 3;

/// As many as are claimed. A server has two uses for one.
const HANDED_OVER_MAX: i32 = 16;

/// A socket that was handed over, and how it was named.
#[derive(Debug)]
pub struct HandedOver {
    pub name: String,
    pub socket: OwnedFd,
}

/// Claims what this process was started with. Nothing, if it was meant for another process.
///
/// The variables stay in the environment, since the process starts no others; what they promised is gone.
pub fn handed_over() -> Result<Vec<HandedOver>, Failure> {
    let number = |name: &str| -> Result<Option<i64>, Failure> {
        let Some(text) = env::var_os(name) else { return Ok(None) };
        let number = text.to_str().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| Failure::usage(format_args!("{name} in the environment is no number")))
    };
    if number("LISTEN_PID")? != Some(i64::from(std::process::id())) {
        return Ok(Vec::new());
    }
    let Some(count) = number("LISTEN_FDS")? else { return Ok(Vec::new()) };
    let count = i32::try_from(count).ok().filter(|count| (0..=HANDED_OVER_MAX).contains(count));
    let Some(count) = count else {
        return Err(Failure::usage(format_args!("LISTEN_FDS is from 0 to {HANDED_OVER_MAX}")));
    };
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut all = Vec::new();
    for number in FIRST..FIRST + count {
        let socket = ring::inherit::take(number)
            .map_err(|error| Failure::usage(format_args!("a socket was to be handed over: {error}")))?;
        is_fit(&socket).map_err(|what| {
            Failure::usage(format_args!(
                "descriptor {number} was handed over and is {what} instead of a listening AF_UNIX stream"
            ))
        })?;
        all.push(HandedOver { name: names.next().unwrap_or_default().to_owned(), socket });
    }
    Ok(all)
}

fn is_fit(socket: &OwnedFd) -> Result<(), &'static str> {
    match sockopt::socket_domain(socket) {
        Ok(rustix::net::AddressFamily::UNIX) => {}
        Ok(_) => return Err("a socket of another family"),
        Err(_) => return Err("no socket"),
    }
    if sockopt::socket_type(socket) != Ok(SocketType::STREAM) {
        return Err("of another type");
    }
    match sockopt::socket_acceptconn(socket) {
        Ok(true) => Ok(()),
        _ => Err("not listening"),
    }
}

/// Where the supervisor listens to how it goes, if it does. Connected once: later nothing can be.
#[derive(Debug)]
pub struct Supervisor(Option<UnixDatagram>);

impl Supervisor {
    /// The one the environment names. One that cannot be reached is told to whoever reads the log, and is no
    /// reason to do without the service.
    pub fn from_environment() -> Supervisor {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Supervisor(None);
        };
        match connect(&name) {
            Ok(socket) => Supervisor(Some(socket)),
            Err(error) => {
                tracing::warn!(%error, "the supervisor cannot be told how it goes");
                Supervisor(None)
            }
        }
    }

    /// The service can be used.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=Introducing\n");
    }

    /// It reads its settings again. Followed by [`ready`](Supervisor::ready).
    pub fn reloading(&self) {
        // The moment lets the supervisor tell this answer to its signal from an earlier one.
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}\n"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, text: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::debug!(%error, "the supervisor was not told");
        }
    }
}

fn connect(name: &OsStr) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold anything up.
    socket.set_nonblocking(true)?;
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.connect_addr(&address)?;
    Ok(socket)
}
