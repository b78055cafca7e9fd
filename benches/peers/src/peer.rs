//! The peers: what each is called, what it can do, and where its two sides are.
//!
//! Each is used as its own documentation says one uses it, in the fastest way that is documented there, and
//! where that was a choice the file of the peer says so. It does not know what is compared with what.

mod channel;
mod dbus;
mod rpc;
mod samples;
mod seqpacket;
mod stream;

use std::fmt;
use std::os::fd::OwnedFd;

use perf::{Recorder, Wait};
use rustix::net::SocketType;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::child::Child;

/// What is said, both ways.
pub const PAYLOAD: usize = 64;

/// So many batches of calls; what they took goes to the recorder.
pub type Calls = Box<dyn FnMut(usize, &mut Recorder) -> Result<(), Failure>>;

/// Somebody else's way to make the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// The standard library's stream socket, blocking.
    UnixStream,
    /// ipc-channel with a channel for calls and one for answers.
    IpcChannel,
    /// ipc-channel where each call brings the sender for its answer.
    IpcChannelReply,
    TokioSeqpacket,
    Tarpc,
    Zbus,
    Iceoryx2,
}

impl Peer {
    pub const ALL: [Peer; 7] = [
        Peer::UnixStream,
        Peer::IpcChannel,
        Peer::IpcChannelReply,
        Peer::TokioSeqpacket,
        Peer::Tarpc,
        Peer::Zbus,
        Peer::Iceoryx2,
    ];

    /// Of the crate, as in the lock file. The standard library has none.
    pub fn package(self) -> Option<&'static str> {
        match self {
            Peer::UnixStream => None,
            Peer::IpcChannel | Peer::IpcChannelReply => Some("ipc-channel"),
            Peer::TokioSeqpacket => Some("tokio-seqpacket"),
            Peer::Tarpc => Some("tarpc"),
            Peer::Zbus => Some("zbus"),
            Peer::Iceoryx2 => Some("iceoryx2"),
        }
    }

    /// Whether it takes a descriptor along, as its users would send one.
    pub fn carries_descriptors(self) -> bool {
        match self {
            Peer::IpcChannel | Peer::TokioSeqpacket | Peer::Zbus => true,
            // That one carries a descriptor with each call as it is; it is measured without another.
            Peer::IpcChannelReply => false,
            Peer::UnixStream | Peer::Tarpc | Peer::Iceoryx2 => false,
        }
    }

    /// Who calls: a task, or a thread that waits where it calls.
    pub fn client(self) -> &'static str {
        match self {
            Peer::UnixStream | Peer::IpcChannel | Peer::IpcChannelReply | Peer::Iceoryx2 => "blocking",
            Peer::TokioSeqpacket | Peer::Tarpc | Peer::Zbus => "async",
        }
    }

    /// How it waits where looking would pay: as it can. What lives on tokio sleeps in `epoll_wait`.
    pub fn wait(self, wanted: Wait) -> Wait {
        match self {
            Peer::UnixStream | Peer::IpcChannel | Peer::IpcChannelReply | Peer::Iceoryx2 => wanted,
            Peer::TokioSeqpacket | Peer::Tarpc | Peer::Zbus => Wait::Sleep,
        }
    }

    /// Of the pair between the two processes: what calls travel on, or what tells that the other has gone.
    pub fn socket_type(self) -> SocketType {
        match self {
            Peer::UnixStream | Peer::Tarpc | Peer::Zbus => SocketType::STREAM,
            Peer::IpcChannel | Peer::IpcChannelReply | Peer::TokioSeqpacket | Peer::Iceoryx2 => {
                SocketType::SEQPACKET
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::UnixStream => "std UnixStream",
            Peer::IpcChannel => "ipc-channel, duplex",
            Peer::IpcChannelReply => "ipc-channel, reply sender",
            Peer::TokioSeqpacket => "tokio-seqpacket",
            Peer::Tarpc => "tarpc",
            Peer::Zbus => "zbus, peer to peer",
            Peer::Iceoryx2 => "iceoryx2",
        })
    }
}

/// What both sides must agree on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// Calls that are begun together.
    pub depth: usize,
    /// Whether each call and each answer brings a descriptor.
    pub has_descriptor: bool,
    /// Whether both sides look instead of sleeping.
    pub looks: bool,
}

/// The calling side, with a server that has just been started.
pub fn call(peer: Peer, terms: Terms, end: OwnedFd, server: &Child) -> Result<Calls, Failure> {
    match peer {
        Peer::UnixStream => stream::call(terms, end),
        Peer::IpcChannel => channel::call(terms, end),
        Peer::IpcChannelReply => channel::call_with_reply_sender(terms, end),
        Peer::TokioSeqpacket => seqpacket::call(terms, end),
        Peer::Tarpc => rpc::call(terms, end),
        Peer::Zbus => dbus::call(terms, end),
        Peer::Iceoryx2 => samples::call(terms, end, server.id()),
    }
}

/// The answering side, until the caller has gone.
pub fn serve(peer: Peer, terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    match peer {
        Peer::UnixStream => stream::serve(terms, end),
        Peer::IpcChannel => channel::serve(terms, end),
        Peer::IpcChannelReply => channel::serve_reply_senders(terms, end),
        Peer::TokioSeqpacket => seqpacket::serve(terms, end),
        Peer::Tarpc => rpc::serve(end),
        Peer::Zbus => dbus::serve(end),
        Peer::Iceoryx2 => samples::serve(terms, end),
    }
}

/// Batches one after the other, by a thread that waits where it calls.
fn batches(
    count: usize,
    depth: usize,
    recorder: &mut Recorder,
    mut batch: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    recorder.begin_round(depth);
    let result = (0..count).try_for_each(|_| {
        let began = recorder.begin();
        batch()?;
        recorder.end(began);
        Ok(())
    });
    recorder.end_round();
    result
}

/// The runtime of the peers that live on tokio: of one thread, since there is one CPU for each side, and
/// whatever is handed to another thread is handed over through the kernel.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn whole(length: usize) -> Result<(), Failure> {
    match length {
        PAYLOAD => Ok(()),
        _ => Err(format!("an answer of {length} bytes").into()),
    }
}
