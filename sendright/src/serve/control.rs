//! Asking a running service what it grants, and taking it back: an object of its own, behind a path that only
//! the service's user can reach.
//!
//! Whoever connects to the path holds the address of the control object: a listening socket hands out ends of
//! pairs, which is what an address is. It owns the words that are spoken there, as JSON. It must never know
//! how a grant is carried out.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ring::{Kind, Reactor, Socket, Spawner};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use seqpacket::{Mailbox, blocking};
use serde::{Deserialize, Serialize};

use crate::output::remark;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    List,
    Add { grant: String },
    Revoke { name: String },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What was asked about, or done.
    Grants(Vec<Told>),
    /// Why not, for people.
    No(String),
}

/// One grant, as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub name: String,
    pub writable: bool,
    /// Beneath the exported directory.
    pub directory: String,
    /// While it is in force, and it is known where the service is to be found.
    pub locator: Option<String>,
    /// How many have come by it and still hold something.
    pub holders: usize,
    pub objects: usize,
}

/// Answers whoever connects to `path`. Nobody else may be listening there: whoever holds the book has made
/// sure of that.
pub fn listen(
    path: &Path,
    reactor: &Reactor,
    spawner: &Spawner,
    answer: impl Fn(Ask) -> Answer + Clone + 'static,
) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path)?,
        // Whatever else it is, it is not ours to remove.
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let listening = Socket::listen(reactor, path, Kind::SeqPacket);
    rustix::process::umask(before);
    let (listening, reactor, handlers) = (listening?, reactor.clone(), spawner.clone());
    spawner.spawn(async move {
        loop {
            match listening.accept().await {
                Ok(connection) => {
                    let (reactor, answer) = (reactor.clone(), answer.clone());
                    if is_ours(&connection) {
                        handlers.spawn(async move { serve(connection, &reactor, answer).await });
                    }
                }
                // No descriptors left, most likely: nobody tells when there are some.
                Err(_) => reactor.sleep(PAUSE).await,
            }
        }
    });
    Ok(())
}

const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// The path's permissions say so already, on file systems that have them.
fn is_ours(connection: &Socket) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    connection.peer_credentials().is_ok_and(|peer| peer.uid == ours || peer.uid == 0)
}

async fn serve(connection: Socket, reactor: &Reactor, answer: impl Fn(Ask) -> Answer) {
    let Ok(fd) = connection.into_fd() else { return };
    let Ok(mailbox) = Mailbox::from_fd(reactor, fd) else { return };
    while let Some(incoming) = mailbox.next().await {
        let said = match serde_json::from_slice(incoming.bytes()) {
            Ok(ask) => answer(ask),
            Err(error) => Answer::No(error.to_string()),
        };
        let said = serde_json::to_vec(&said).expect("plain data");
        if let Err(error) = incoming.answer(said) {
            remark(format_args!("answering on the control socket: {error}"));
        }
    }
}

/// Asks the service that listens at `path`.
pub fn ask(path: &Path, ask: &Ask) -> Result<Answer, String> {
    let connected = connect(path).map_err(|error| error.to_string())?;
    let object = blocking::Object::from_fd(connected).map_err(|error| error.to_string())?;
    let ask = serde_json::to_vec(ask).expect("plain data");
    let answer = object.call(&ask[..]).map_err(|error| error.to_string())?;
    serde_json::from_slice(answer.bytes()).map_err(|error| error.to_string())
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
