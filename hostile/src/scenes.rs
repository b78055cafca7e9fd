//! Who is thrown at, and what must be so afterwards.
//!
//! A closed list. Each scene sets a hostile peer on something that is served on a live reactor (or, where the
//! client blocks, on a thread of its own), lets both go on by turns, and then has somebody honest served.
//! This file owns what is so for all of them: the descriptors are those that were open before.

mod acceptor;
mod blocking;
mod client;
mod introductions;
mod mailbox;
mod plain;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ring::{Executor, Message, Reactor};
use testing::Census;

use crate::packet::Tongue;
use crate::peer::{Peer, Turn};
use crate::script::Script;

/// Something live that anything can be thrown at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scene {
    /// The mailbox of a plain object, alone, shared with other processes, or of a callback.
    PlainMailbox,
    /// Whoever calls a plain object that a hostile server answers.
    PlainCaller,
    /// The mailbox of an object with sessions.
    SessionServer,
    /// Whoever calls an object that a hostile server holds.
    SessionClient,
    /// Whoever accepts connections, and receives on them, typed messages too.
    Acceptor,
    /// Whoever calls an object that a hostile server holds, and blocks.
    BlockingClient,
    /// Whoever calls a plain object that a hostile server answers, and blocks.
    BlockingPlainCaller,
    /// A server that introduces strangers.
    IntroductionServer,
    /// A program that is registered with a hostile introduction server.
    Netlayer,
}

/// How long anything honest may take. Only ever reached by what fails.
pub(crate) const HONEST_TIME_MAX: Duration = Duration::from_secs(60);

/// How long it may take until nothing is open that was not before: a closed socket holds its last messages
/// back for up to ten seconds. Only ever reached by what fails.
const SETTLING_TIME_MAX: Duration = Duration::from_secs(20);

/// What honest callers say, and are answered.
const HONEST: &[u8] = b"honest";

/// How many calls, messages or connections whoever is served keeps, as programs do.
const KEPT_MAX: usize = 4;

impl Scene {
    /// All there are.
    pub const ALL: [Scene; 9] = [
        Scene::PlainMailbox,
        Scene::PlainCaller,
        Scene::SessionServer,
        Scene::SessionClient,
        Scene::Acceptor,
        Scene::BlockingClient,
        Scene::BlockingPlainCaller,
        Scene::IntroductionServer,
        Scene::Netlayer,
    ];

    /// What its target and its corpus are called.
    pub fn name(self) -> &'static str {
        match self {
            Scene::PlainMailbox => "plain_mailbox",
            Scene::PlainCaller => "plain_caller",
            Scene::SessionServer => "session_server",
            Scene::SessionClient => "session_client",
            Scene::Acceptor => "acceptor",
            Scene::BlockingClient => "blocking_client",
            Scene::BlockingPlainCaller => "blocking_plain_caller",
            Scene::IntroductionServer => "introduction_server",
            Scene::Netlayer => "netlayer",
        }
    }

    /// Plays a script on this reactor, which can be used again.
    ///
    /// # Panics
    /// If somebody honest is not served, or descriptors stay open that were not before.
    #[track_caller]
    pub fn play(self, reactor: &Reactor, script: &[u8]) {
        let census = Census::take();
        let script = Script::new(script);
        match self {
            Scene::PlainMailbox => plain::mailbox(reactor, script),
            Scene::PlainCaller => plain::caller(reactor, script),
            Scene::SessionServer => mailbox::play(reactor, script),
            Scene::SessionClient => client::play(reactor, script),
            Scene::Acceptor => acceptor::play(reactor, script),
            Scene::BlockingClient => blocking::session(script),
            Scene::BlockingPlainCaller => blocking::plain(script),
            Scene::IntroductionServer => introductions::server(reactor, script),
            Scene::Netlayer => introductions::netlayer(reactor, script),
        }
        // A closed socket holds its last messages back for a while; the kernel finds circles in its own time.
        let patience = Instant::now() + SETTLING_TIME_MAX;
        while !census.is_unchanged() && Instant::now() < patience {
            testing::turn(reactor);
        }
        census.unchanged();
    }
}

/// Plays a script to its end, with turns for whoever it is set on.
fn act(peer: &mut Peer<'_>, tongue: Tongue, executor: &Executor) {
    while let Some(turn) = peer.step(tongue) {
        if turn == Turn::Theirs {
            executor.settle();
        }
    }
    executor.settle();
}

fn message(bytes: impl Into<Vec<u8>>, descriptors: Vec<OwnedFd>) -> Message {
    descriptors.into_iter().fold(Message::new(bytes.into()), Message::with_descriptor)
}
