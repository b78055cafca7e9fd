//! The introduction server killed (SIGKILL) at every point of an introduction: before each of its system
//! calls in turn, from the first word of a registration until it has nothing left to say. Survivors keep the
//! connections they have, are told by name of those they do not get, and meet again with a new server. It
//! knows nothing of servers that end by themselves, or lie.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, join, select};
use introduction::{
    AddServerError, ConnectError, Connection, Disconnected, Expect, Identity, Netlayer, NetlayerOptions,
    Proof, PublicKey, Server, ServerOptions,
};
use ring::script::SystemCall;
use ring::{Reactor, ReceiveError, Wait};
use testing::{Helper, gated, helper, on_each_driver, settle, start_helper};

/// By what others can tell how far a server has come. Between two of these it only thinks.
const WORK: [SystemCall; 2] = [SystemCall::Send, SystemCall::Receive];

/// A server that is not killed.
const NEVER: u64 = u64::MAX;

/// So often in a row all has to go well before it is believed that the server has nothing left to do for
/// them.
const WELL: usize = 6;

/// For whatever ends sooner. No test waits so long.
const LONG: Duration = Duration::from_secs(60);

const SEED: u8 = 7;

helper! {
    /// Serves those whose ends it is given, until the last is gone, or it is killed.
    fn server(descriptors: Vec<OwnedFd>) {
        gated(&WORK, |refusals| {
            let reactor = testing::reactor();
            let server = Server::new(&reactor, Identity::from_seed(&[SEED; 32]), ServerOptions::default());
            descriptors.into_iter().for_each(|fd| server.admit(fd).unwrap());
            refusals.die_after(testing::helper_argument().parse().unwrap());
            while server.connections() > 0 {
                reactor.turn(Wait::Forever).unwrap();
            }
        });
    }
}

/// A server that is killed when it has made so many calls, and the lines of two peers to it.
fn served(calls: u64) -> (Helper, [OwnedFd; 2]) {
    let (anne, annes) = testing::stream_pair();
    let (bert, berts) = testing::stream_pair();
    (start_helper!(server, vec![annes, berts], calls.to_string()), [anne, bert])
}

fn server_key() -> PublicKey {
    Identity::from_seed(&[SEED; 32]).key()
}

fn netlayer(reactor: &Reactor, seed: u8, proof: Proof) -> Netlayer {
    let mut options = NetlayerOptions::default();
    options.proof = proof;
    (options.handshake_time, options.connect_time) = (LONG, LONG);
    Netlayer::with_options(reactor, Identity::from_seed(&[seed; 32]), options)
}

/// Registered, or told that the server is gone.
async fn added(netlayer: &Netlayer, line: OwnedFd) -> Option<Disconnected> {
    match netlayer.add_server(line, Expect::key(server_key())).await {
        Ok(registered) => Some(registered),
        Err(AddServerError::Closed) => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Whether what one says the other hears.
async fn are_connected(one: &Connection, other: &Connection) {
    let (Connection::SeqPacket(one), Connection::SeqPacket(other)) = (one, other) else {
        panic!("of another kind");
    };
    one.send("to").await.unwrap();
    assert_eq!(other.receive().await.unwrap().bytes(), b"to");
    other.send("fro").await.unwrap();
    assert_eq!(one.receive().await.unwrap().bytes(), b"fro");
}

async fn is_closed(connection: &Connection) {
    let Connection::SeqPacket(socket) = connection else { panic!("of another kind") };
    let received = socket.receive().await;
    assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
}

/// What has arrived, or nothing if the server is gone.
async fn taken(netlayer: &Netlayer, disconnected: &mut Disconnected) -> Option<Connection> {
    let incoming = match select(Box::pin(netlayer.incoming()), disconnected).await {
        Either::Left((incoming, _)) => Some(incoming),
        // It may have come with the last words.
        Either::Right(_) => netlayer.incoming().now_or_never(),
    };
    incoming.map(|incoming| incoming.accept())
}

/// How far two have come with a server that may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// One of them is not registered, as far as it knows.
    NotIn,
    /// They have no connection, and the one who asked knows.
    NoConnection,
    /// They have one.
    Connected,
}

/// How one asks for the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Unconfirmed,
    Confirmed,
    Proved,
}

/// Two who know nothing but each other's place.
struct Two {
    way: Way,
    anne: Netlayer,
    bert: Netlayer,
}

impl Two {
    fn new(reactor: &Reactor, way: Way) -> Two {
        let proof = if way == Way::Proved { Proof::Required } else { Proof::None };
        Two { way, anne: netlayer(reactor, 1, Proof::None), bert: netlayer(reactor, 2, proof) }
    }

    async fn ask(&self) -> Result<Connection, ConnectError> {
        let location = self.bert.our_location();
        match self.way {
            Way::Confirmed => self.anne.connect_confirmed(&location).await,
            Way::Unconfirmed | Way::Proved => self.anne.connect(&location).await,
        }
    }

    /// They register and meet, as far as the server lives to see it.
    async fn meet(&self, mut server: Helper, [annes, berts]: [OwnedFd; 2]) -> Came {
        let added = join(added(&self.anne, annes), added(&self.bert, berts));
        let (Some(at_annes), Some(mut at_berts)) = added.await else { return Came::NotIn };
        let (asked, taken) = join(self.ask(), taken(&self.bert, &mut at_berts)).await;
        match (asked, taken) {
            (Ok(ours), Some(theirs)) => {
                are_connected(&ours, &theirs).await;
                server.kill();
                join(at_annes, at_berts).await;
                // And so they stay.
                are_connected(&ours, &theirs).await;
                Came::Connected
            }
            (Ok(ours), None) => {
                assert!(self.way == Way::Unconfirmed, "told that somebody has taken it");
                is_closed(&ours).await;
                Came::NoConnection
            }
            (Err(error), theirs) => {
                let told = match self.way {
                    Way::Unconfirmed => matches!(error, ConnectError::NoServer),
                    Way::Confirmed => matches!(error, ConnectError::NoServer | ConnectError::Disconnected),
                    // Nobody answers any more, for whatever reason.
                    Way::Proved => matches!(error, ConnectError::NoServer | ConnectError::Unanswered),
                };
                assert!(told, "{error:?}");
                if let Some(theirs) = theirs {
                    is_closed(&theirs).await;
                }
                Came::NoConnection
            }
        }
    }
}

/// Kills the server after no call, after one, after two, until all goes well.
#[track_caller]
fn at_every_point(reactor: &Reactor, way: Way) {
    let two = Two::new(reactor, way);
    let mut came = Vec::new();
    let mut calls = 0;
    while !came.ends_with(&[Came::Connected; WELL]) {
        let (server, lines) = served(calls);
        came.push(settle(reactor, two.meet(server, lines)));
        let (server, lines) = served(NEVER);
        assert_eq!(settle(reactor, two.meet(server, lines)), Came::Connected, "after {calls} calls");
        calls += 1;
    }
    // Each of it has happened.
    for each in [Came::NotIn, Came::NoConnection] {
        assert!(came.contains(&each), "{came:?}");
    }
}

on_each_driver! {
    fn killed_at_every_point_of_an_introduction(reactor: &Reactor) {
        at_every_point(reactor, Way::Unconfirmed);
    }

    fn killed_at_every_point_of_a_confirmed_introduction(reactor: &Reactor) {
        at_every_point(reactor, Way::Confirmed);
    }

    fn killed_at_every_point_of_a_proof(reactor: &Reactor) {
        at_every_point(reactor, Way::Proved);
    }
}
