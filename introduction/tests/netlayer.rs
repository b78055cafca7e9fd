//! A program's side: several servers, ours and others', what becomes of connections, and what the extension
//! adds where both sides speak it.
#![allow(clippy::unwrap_used)]

mod raw;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join as both;
use introduction::{
    AddServerError, ConnectError, Connection, Expect, Identity, Locator, Netlayer, NetlayerOptions, Peer,
    Policy, Proof, PublicKey, SERVERS_MAX, Server, ServerOptions, Servers, Welcome,
};
use raw::{RawPeer, RawServer, Stream, introduction, is_quiet, locator_with};
use ring::{Fd, Kind, Reactor, ReceiveError, Socket};
use testing::{helper, on_each_driver, settle, start_helper};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);

fn server(reactor: &Reactor, seed: u8) -> Server {
    Server::new(reactor, Identity::from_seed(&[seed; 32]), ServerOptions::default())
}

fn netlayer(reactor: &Reactor, seed: u8, change: impl FnOnce(&mut NetlayerOptions)) -> Netlayer {
    let mut options = NetlayerOptions::default();
    change(&mut options);
    Netlayer::with_options(reactor, Identity::from_seed(&[seed; 32]), options)
}

fn plain(reactor: &Reactor, seed: u8) -> Netlayer {
    netlayer(reactor, seed, |_| {})
}

/// Our end of a connection to the server.
fn line_to(reactor: &Reactor, server: &Server) -> OwnedFd {
    let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
    server.admit(far).unwrap();
    near.into_fd().unwrap()
}

async fn join(netlayer: &Netlayer, reactor: &Reactor, server: &Server) -> introduction::Disconnected {
    let before = server.stats().registrations;
    let line = line_to(reactor, server);
    let joined = netlayer.add_server(line, Expect::key(server.key())).await.unwrap();
    until(reactor, || server.stats().registrations > before).await;
    joined
}

async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

/// Whether what one says on a connection the other hears.
async fn are_connected(one: &Connection, other: &Connection) {
    match (one, other) {
        (Connection::Stream(one), Connection::Stream(other)) => {
            one.send("to").await.unwrap();
            assert_eq!(other.receive().await.unwrap().bytes(), b"to");
            other.send("fro").await.unwrap();
            assert_eq!(one.receive().await.unwrap().bytes(), b"fro");
        }
        (Connection::SeqPacket(one), Connection::SeqPacket(other)) => {
            one.send("to").await.unwrap();
            assert_eq!(other.receive().await.unwrap().bytes(), b"to");
            other.send("fro").await.unwrap();
            assert_eq!(one.receive().await.unwrap().bytes(), b"fro");
        }
        kinds => panic!("of different kinds: {kinds:?}"),
    }
}

async fn is_closed(connection: &Connection) {
    let received = match connection {
        Connection::Stream(socket) => socket.receive().await,
        Connection::SeqPacket(socket) => socket.receive().await,
        _ => panic!("of a new kind"),
    };
    assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
}

/// Anne asks, Bert accepts, and they hear each other.
async fn meet(anne: &Netlayer, bert: &Netlayer) -> (Connection, Connection) {
    let location = bert.our_location();
    let asking = anne.connect(&location);
    let answering = async {
        let incoming = bert.incoming().await;
        assert_eq!(incoming.from().key, anne.key());
        incoming.accept()
    };
    let (ours, theirs) = both(asking, answering).await;
    let ours = ours.unwrap();
    are_connected(&ours, &theirs).await;
    (ours, theirs)
}

/// Everybody may know what became of what they asked for.
struct Candid {
    may_reach: bool,
}

impl Policy for Candid {
    fn may_reach(&self, _from: &Peer, _to: &Peer) -> bool {
        self.may_reach
    }

    fn may_know(&self, _from: &Peer) -> bool {
        true
    }
}

fn candid(reactor: &Reactor, may_reach: bool) -> Server {
    let identity = Identity::from_seed(&[100; 32]);
    Server::with_policy(reactor, identity, ServerOptions::default(), Candid { may_reach })
}

fn nobody(server: PublicKey) -> Locator {
    let mut locator = Locator::new(Identity::from_seed(&[99; 32]).key());
    locator.hints.servers.insert(server);
    locator
}

helper! {
    /// Is given a line to the server, finds the one it was told of, and says hello.
    fn finds_and_greets(descriptors: Vec<OwnedFd>) {
        let [line] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let reactor = testing::reactor();
        settle(&reactor, async {
            let anne = plain(&reactor, 1);
            let locator: Locator = testing::helper_argument().parse().unwrap();
            let server = *locator.hints.servers.first().unwrap();
            let _joined = anne.add_server(line, Expect::key(server).bound()).await.unwrap();
            let connection = anne.connect_confirmed(&locator).await.unwrap().into_seqpacket().unwrap();
            connection.send("hello").await.unwrap();
            assert!(matches!(connection.receive().await, Err(ReceiveError::Closed)));
        });
    }
}

on_each_driver! {
    fn two_programs_meet_and_need_the_server_no_longer(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let (ours, theirs) = meet(&anne, &bert).await;
            meet(&bert, &anne).await;
            drop((server, anne, bert));
            are_connected(&ours, &theirs).await;
            drop(theirs);
            is_closed(&ours).await;
        });
    }

    fn programs_in_two_processes_meet(reactor: &Reactor) {
        for proof in [Proof::None, Proof::Required] {
            let server = server(reactor, 100);
            settle(reactor, async {
                let bert = netlayer(reactor, 2, |options| options.proof = proof);
                let _joined = join(&bert, reactor, &server).await;
                let line = line_to(reactor, &server);
                let helper = start_helper!(finds_and_greets, vec![line], bert.our_location().to_string());
                let incoming = bert.incoming().await;
                assert_eq!(incoming.from().key, Identity::from_seed(&[1; 32]).key());
                assert_eq!(incoming.is_proved(), proof == Proof::Required);
                let connection = incoming.accept().into_seqpacket().unwrap();
                assert_eq!(connection.receive().await.unwrap().bytes(), b"hello");
                drop(connection);
                helper.succeeded();
            });
        }
    }

    fn losing_one_server_leaves_the_others(reactor: &Reactor) {
        let (one, two) = (server(reactor, 100), server(reactor, 101));
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let gone = (join(&anne, reactor, &one).await, join(&bert, reactor, &one).await);
            let _stay = (join(&anne, reactor, &two).await, join(&bert, reactor, &two).await);
            assert_eq!(bert.our_location().hints.servers.len(), 2);
            let kept = meet(&anne, &bert).await;
            let key = one.key();
            drop(one);
            gone.0.await;
            gone.1.await;
            assert_eq!(bert.our_location().hints.servers.len(), 1);
            are_connected(&kept.0, &kept.1).await;
            meet(&anne, &bert).await;
            // And back again.
            let one = server(reactor, 100);
            assert_eq!(one.key(), key);
            let _back = (join(&anne, reactor, &one).await, join(&bert, reactor, &one).await);
            assert_eq!(bert.our_location().hints.servers.len(), 2);
            meet(&anne, &bert).await;
        });
    }

    fn a_server_that_is_added_again_takes_the_place_of_itself(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = join(&anne, reactor, &server).await;
            let first = join(&bert, reactor, &server).await;
            let _second = join(&bert, reactor, &server).await;
            first.await;
            assert_eq!(bert.our_location().hints.servers.len(), 1);
            meet(&anne, &bert).await;
        });
    }

    fn a_server_can_be_left(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let joined = join(&anne, reactor, &server).await;
            anne.remove_server(&server.key());
            joined.await;
            assert!(anne.our_location().hints.servers.is_empty());
            until(reactor, || server.connections() == 0).await;
            assert!(matches!(anne.connect(&nobody(server.key())).await, Err(ConnectError::NoServer)));
        });
    }

    fn without_a_server_in_common_there_is_no_connection(reactor: &Reactor) {
        let (one, two) = (server(reactor, 100), server(reactor, 101));
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &one).await, join(&bert, reactor, &two).await);
            let refused = anne.connect(&bert.our_location()).await;
            assert!(matches!(refused, Err(ConnectError::NoServer)));
        });
    }

    fn of_several_servers_the_first_that_both_know_is_asked(reactor: &Reactor) {
        let servers = [server(reactor, 100), server(reactor, 101)];
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let mut _joined = Vec::new();
            for (netlayer, server) in [(&anne, 0), (&anne, 1), (&bert, 0), (&bert, 1)] {
                _joined.push(join(netlayer, reactor, &servers[server]).await);
            }
            let stranger = PublicKey([0; 32]);
            for first in [0, 1] {
                let mut location = bert.our_location();
                let [own, other] = [&servers[first], &servers[1 - first]].map(Server::key);
                location.hints.servers = Servers::from([stranger, own, other]);
                let before = servers[first].stats().introductions;
                let _near = anne.connect(&location).await.unwrap();
                assert_eq!(bert.incoming().await.server(), own);
                assert_eq!(servers[first].stats().introductions, before + 1);
            }
        });
    }

    fn a_locator_with_too_many_servers_is_not_sent(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let mut location = bert.our_location();
            location.hints.servers.extend((1..SERVERS_MAX).map(|n| PublicKey([n as u8; 32])));
            anne.connect(&location).await.unwrap();
            location.hints.servers.insert(PublicKey([200; 32]));
            let outcome = anne.connect(&location).await;
            assert!(matches!(outcome, Err(ConnectError::TooManyServers)), "{outcome:?}");
        });
    }

    fn another_server_than_expected_gets_no_signature(reactor: &Reactor) {
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (mallory, anne) = (RawServer::new(66), plain(reactor, 1));
            let expected = Identity::from_seed(&[100; 32]).key();
            let adding = anne.add_server(line, Expect::key(expected));
            let answering = async {
                let (_, challenge) = mallory.registration(&stream).await;
                stream.say(mallory.response(&challenge, &[7; 64])).await;
                stream.rest().await
            };
            let (added, said) = both(adding, answering).await;
            let Err(AddServerError::Unexpected(found)) = added else { panic!("{added:?}") };
            assert_eq!(found.to_string(), mallory.designator());
            assert_eq!(said, b"");
        });
    }

    fn a_server_that_cannot_sign_gets_no_signature(reactor: &Reactor) {
        settle(reactor, async {
            for challenge in [&[7; 64][..], &[7; 65], &[7; 31]] {
                let (stream, line) = Stream::pair(reactor);
                let (mallory, anne) = (RawServer::new(66), plain(reactor, 1));
                let adding = anne.add_server(line, Expect::default());
                let answering = async {
                    let (_, theirs) = mallory.registration(&stream).await;
                    let signed = if challenge.len() == 64 { &[0; 64][..] } else { &theirs };
                    stream.say(mallory.response(signed, challenge)).await;
                    stream.rest().await
                };
                let (added, said) = both(adding, answering).await;
                assert!(matches!(added, Err(AddServerError::Malformed)), "{added:?}");
                assert_eq!(said, b"");
            }
        });
    }

    /// Mallory passes the honest server's challenge on as her own.
    fn a_bound_registration_cannot_be_relayed(reactor: &Reactor) {
        let honest = server(reactor, 100);
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (mallory, anne) = (RawServer::new(66), plain(reactor, 1));
            let adding = anne.add_server(line, Expect::default().bound());
            let (relay, far) = RawPeer::new(reactor, 77);
            honest.admit(far).unwrap();
            let relaying = async {
                let (designator, challenge) = mallory.registration(&stream).await;
                let claim = format!("<12'uds:register{}64:", raw::locator(&designator));
                relay.stream.say([claim.as_bytes(), &[b'c'; 64], b">"].concat()).await;
                let (_, theirs) = relay.response().await;
                stream.say(mallory.response(&challenge, &theirs)).await;
                stream.rest().await
            };
            let (added, said) = both(adding, relaying).await;
            assert!(matches!(added, Err(AddServerError::NotBound)), "{added:?}");
            assert_eq!(said, b"");
            assert_eq!(honest.registered(), 0);
        });
    }

    /// Mallory says that she speaks the extension, and gets a signature that is good for her only.
    fn a_signature_that_is_bound_is_of_no_use_elsewhere(reactor: &Reactor) {
        let honest = server(reactor, 100);
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (mallory, anne) = (RawServer::new(66), plain(reactor, 1));
            let adding = anne.add_server(line, Expect::default().bound());
            let (relay, far) = RawPeer::new(reactor, 77);
            honest.admit(far).unwrap();
            let relaying = async {
                let (designator, challenge) = mallory.registration(&stream).await;
                let hints = "{9\"sendright1\"1}";
                let claim = format!("<12'uds:register{}64:", raw::locator_with(&designator, hints));
                relay.stream.say([claim.as_bytes(), &[b'c'; 64], b">"].concat()).await;
                let (_, theirs) = relay.response().await;
                assert_eq!(relay.stream.take(3).await, b"1+>");
                let mut response = mallory.response(&challenge, &theirs);
                response.truncate(response.len() - 1);
                stream.say([response.as_slice(), b"1+>"].concat()).await;
                // The signature, as it is.
                let signature = stream.take(20 + 64 + 3 + 64 + 1).await;
                relay.stream.say(signature).await;
                assert_eq!(relay.stream.rest().await, b"");
            };
            let _joined = both(adding, relaying).await.0.unwrap();
            assert_eq!((honest.registered(), honest.stats().violations), (0, 1));
        });
    }

    fn a_server_may_insist_on_bound_registrations(reactor: &Reactor) {
        let mut options = ServerOptions::default();
        options.bound_registration_only = true;
        let server = Server::new(reactor, Identity::from_seed(&[100; 32]), options);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let _joined = join(&anne, reactor, &server).await;
            let (old, far) = RawPeer::new(reactor, 2);
            server.admit(far).unwrap();
            old.stream.say(old.registration()).await;
            assert_eq!(old.stream.rest().await, b"");
        });
    }

    fn a_server_of_goblins_is_spoken_to_as_goblins_does(reactor: &Reactor) {
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (goblins, anne) = (RawServer::new(66), plain(reactor, 1));
            let (joined, ours) =
                both(anne.add_server(line, Expect::default()), goblins.register(&stream)).await;
            let joined = joined.unwrap();
            assert!(!joined.is_extended());
            assert_eq!(ours, anne.key().to_string());

            // It asks: a record, and apart from it four bytes and the descriptor.
            let theirs = raw::base32(&[9; 32]);
            let mut locator = Locator::new(theirs.parse().unwrap());
            locator.hints.servers.insert(joined.server());
            let near = anne.connect(&locator).await.unwrap();
            let server = goblins.designator();
            let expected = format!(
                "<18'uds:new-connection{}{}>",
                locator_with(&ours, &format!("{{52\"{server}1\"t9\"seqpacket1\"t}}")),
                locator_with(&theirs, &format!("{{52\"{server}1\"t}}")),
            );
            assert_eq!(stream.take(expected.len()).await, expected.as_bytes());
            let far = Socket::wrap(reactor, stream.take_descriptor().await).unwrap();
            are_connected(&near, &Connection::Stream(far)).await;

            // It is asked for.
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            stream.say(introduction(&theirs, &ours)).await;
            stream.pass(raw::DUMMY, Fd::made_here(far)).await;
            let incoming = anne.incoming().await;
            assert!(incoming.is_from(&locator));
            assert!(!incoming.is_from(&anne.our_location()));
            are_connected(&Connection::Stream(near), &incoming.accept()).await;

            // Nobody is told, and nobody can be asked.
            let unconfirmed = anne.connect_confirmed(&locator).await;
            assert!(matches!(unconfirmed, Err(ConnectError::Unconfirmed(_))), "{unconfirmed:?}");
            drop(stream);
            joined.await;
        });
    }

    fn a_server_of_the_draft_is_answered_as_the_draft_has_it(reactor: &Reactor) {
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (draft, anne) = (RawServer::new(66), plain(reactor, 1));
            let answering = async {
                let (_, challenge) = draft.registration(&stream).await;
                let bare = draft.response(&challenge, &[7; 32]);
                let list = raw::signature_list(&[0; 64]).len() + 1;
                let (start, list) = bare.split_at(bare.len() - list);
                let wrapped = [b"<13'uds:signature64:".as_slice(), &challenge, list, b">"].concat();
                stream.say([start, &wrapped].concat()).await;
                let before = [b"<13'uds:signature32:".as_slice(), &[7; 32], b"[7'sig-val"].concat();
                assert_eq!(stream.take(before.len()).await, before);
            };
            let (joined, ()) = both(anne.add_server(line, Expect::default()), answering).await;
            assert!(!joined.unwrap().is_extended());
        });
    }

    fn peers_of_goblins_meet_ours(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let _joined = join(&anne, reactor, &server).await;
            let (goblins, far) = RawPeer::new(reactor, 2);
            server.admit(far).unwrap();
            goblins.register().await;
            let near = goblins.ask_for(&anne.key().to_string()).await;
            let incoming = anne.incoming().await;
            assert_eq!(incoming.from().key.to_string(), goblins.designator());
            are_connected(&Connection::Stream(near), &incoming.accept()).await;

            let mut locator = Locator::new(goblins.designator().parse().unwrap());
            locator.hints.servers.insert(server.key());
            let near = anne.connect(&locator).await.unwrap();
            let (from, to) = (anne.our_location(), locator);
            let hints = format!("{{52\"{}1\"t9\"seqpacket1\"t}}", server.key());
            let expected = format!(
                "<18'uds:new-connection{}{}>",
                locator_with(&from.key.to_string(), &hints),
                locator_with(&to.key.to_string(), &format!("{{52\"{}1\"t}}", server.key())),
            );
            assert_eq!(goblins.stream.take(expected.len()).await, expected.as_bytes());
            let far = Socket::wrap(reactor, goblins.stream.take_descriptor().await).unwrap();
            are_connected(&near, &Connection::Stream(far)).await;
        });
    }

    fn an_accepted_connection_is_confirmed(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            for _ in 0..3 {
                let location = bert.our_location();
                let asking = anne.connect_confirmed(&location);
                let (ours, theirs) = both(asking, async { bert.incoming().await.accept() }).await;
                are_connected(&ours.unwrap(), &theirs).await;
            }
            until(reactor, || server.introductions() == 0).await;
        });
    }

    fn where_policy_lets_them_know_those_who_ask_are_told_at_once(reactor: &Reactor) {
        let server = candid(reactor, true);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let unknown = anne.connect_confirmed(&nobody(server.key())).await;
            assert!(matches!(unknown, Err(ConnectError::Unknown)), "{unknown:?}");
            let location = bert.our_location();
            let asking = anne.connect_confirmed(&location);
            let (refused, ()) = both(asking, async { bert.incoming().await.refuse() }).await;
            assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
        });
    }

    fn who_may_not_be_reached_refuses_where_policy_lets_them_know(reactor: &Reactor) {
        let server = candid(reactor, false);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let refused = anne.connect_confirmed(&bert.our_location()).await;
            assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
        });
    }

    fn unknown_refusing_and_silent_peers_look_the_same(reactor: &Reactor) {
        let mut options = ServerOptions::default();
        options.introduction_time = SHORT;
        let server = Server::new(reactor, Identity::from_seed(&[100; 32]), options);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let bert = netlayer(reactor, 2, |options| options.incoming_time = SHORT);
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let location = bert.our_location();
            let unknown = anne.connect_confirmed(&nobody(server.key())).await;
            let refusing = async { bert.incoming().await.refuse() };
            let (refused, ()) = both(anne.connect_confirmed(&location), refusing).await;
            let silent = anne.connect_confirmed(&location).await;
            for outcome in [unknown, refused, silent] {
                assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            }
            assert_eq!(server.stats().expired, 3);
        });
    }

    fn a_refused_connection_is_closed_when_its_time_is_over_and_not_before(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let short = netlayer(reactor, 3, |options| options.incoming_time = SHORT);
            let mut _joined = Vec::new();
            for netlayer in [&anne, &bert, &short] {
                _joined.push(join(netlayer, reactor, &server).await);
            }
            let open = anne.connect(&bert.our_location()).await.unwrap().into_seqpacket().unwrap();
            bert.incoming().await.refuse();
            let closed = anne.connect(&short.our_location()).await.unwrap();
            short.incoming().await.refuse();
            is_closed(&closed).await;
            assert!(is_quiet(&open));
        });
    }

    fn what_nobody_takes_is_closed(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let bert = netlayer(reactor, 2, |options| options.incoming_time = SHORT);
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let near = anne.connect(&bert.our_location()).await.unwrap();
            is_closed(&near).await;
            meet(&anne, &bert).await;
        });
    }

    fn so_many_of_one_key_may_wait_and_no_more(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let (anne, other) = (plain(reactor, 1), plain(reactor, 3));
            let bert = netlayer(reactor, 2, |options| {
                options.incoming_of_key_max = 2;
                options.incoming_max = 3;
                options.incoming_time = LONG;
            });
            let mut _joined = Vec::new();
            for netlayer in [&anne, &bert, &other] {
                _joined.push(join(netlayer, reactor, &server).await);
            }
            let location = bert.our_location();
            let mut _kept = Vec::new();
            for (netlayer, passed_on) in [(&anne, 1), (&anne, 2), (&anne, 3), (&other, 4), (&other, 5)] {
                _kept.push(netlayer.connect(&location).await.unwrap());
                until(reactor, || server.stats().passed_on == passed_on).await;
            }
            let mut from = Vec::new();
            for _ in 0..3 {
                from.push(bert.incoming().await.from().key);
            }
            assert_eq!(from, [anne.key(), anne.key(), other.key()]);
            testing::poll_once(bert.incoming());
        });
    }

    fn streams_are_for_those_who_want_no_packets(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let bert = netlayer(reactor, 2, |options| options.seqpacket = false);
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let (ours, _) = meet(&anne, &bert).await;
            assert!(matches!(ours, Connection::Stream(_)));
        });
    }

    fn a_server_that_goes_leaves_nobody_waiting(reactor: &Reactor) {
        let server = Rc::new(std::cell::RefCell::new(Some(server(reactor, 100))));
        settle(reactor, async {
            let anne = plain(reactor, 1);
            let key = server.borrow().as_ref().unwrap().key();
            let joined = {
                let line = line_to(reactor, server.borrow().as_ref().unwrap());
                anne.add_server(line, Expect::key(key)).await.unwrap()
            };
            let locator = nobody(key);
            let asking = anne.connect_confirmed(&locator);
            let leaving = async {
                until(reactor, || server.borrow().as_ref().unwrap().introductions() == 1).await;
                drop(server.take());
            };
            let (outcome, ()) = both(asking, leaving).await;
            assert!(matches!(outcome, Err(ConnectError::Disconnected)), "{outcome:?}");
            joined.await;
        });
    }

    fn what_cannot_leave_while_too_many_descriptors_are_in_flight_leaves_later(reactor: &Reactor) {
        let mut options = ServerOptions::default();
        options.record_time = LONG;
        let server = Server::new(reactor, Identity::from_seed(&[100; 32]), options);
        settle(reactor, async {
            let (anne, bert) = (plain(reactor, 1), plain(reactor, 2));
            let _joined = (join(&anne, reactor, &server).await, join(&bert, reactor, &server).await);
            let crowd = testing::too_many_in_flight();
            let ours = anne.connect(&bert.our_location()).await.unwrap();
            // In the turns that this takes it is tried, and cannot.
            let carl = plain(reactor, 3);
            let _carls = join(&carl, reactor, &server).await;
            assert_eq!((server.registered(), server.introductions()), (3, 0));
            drop(crowd);
            are_connected(&ours, &bert.incoming().await.accept()).await;
            assert_eq!(server.registered(), 3);
        });
    }

    fn who_is_not_welcome_finds_nobody(reactor: &Reactor) {
        let server = candid(reactor, true);
        settle(reactor, async {
            let (anne, carl) = (plain(reactor, 1), plain(reactor, 3));
            let welcome = Welcome::Keys([carl.key()].into());
            let bert = netlayer(reactor, 2, |options| options.welcome = welcome);
            let mut _joined = Vec::new();
            for netlayer in [&anne, &bert, &carl] {
                _joined.push(join(netlayer, reactor, &server).await);
            }
            let refused = anne.connect_confirmed(&bert.our_location()).await;
            assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
            meet(&carl, &bert).await;
            bert.set_welcome(Welcome::Everybody);
            meet(&anne, &bert).await;
        });
    }

    fn a_full_outbox_says_so(reactor: &Reactor) {
        let server = server(reactor, 100);
        settle(reactor, async {
            let anne = netlayer(reactor, 1, |options| options.asking_max = 2);
            let _joined = join(&anne, reactor, &server).await;
            let locator = nobody(server.key());
            let _kept = (anne.connect(&locator).await.unwrap(), anne.connect(&locator).await.unwrap());
            assert!(matches!(anne.connect(&locator).await, Err(ConnectError::Busy)));
            until(reactor, || server.introductions() == 2).await;
            anne.connect(&locator).await.unwrap();
        });
    }

    fn there_are_so_many_servers_and_no_more(reactor: &Reactor) {
        let (one, two) = (server(reactor, 100), server(reactor, 101));
        settle(reactor, async {
            let anne = netlayer(reactor, 1, |options| options.servers_max = 1);
            let _joined = join(&anne, reactor, &one).await;
            let refused = anne.add_server(line_to(reactor, &two), Expect::default()).await;
            assert!(matches!(refused, Err(AddServerError::Full)));
        });
    }

    fn there_are_never_more_servers_than_a_locator_names(reactor: &Reactor) {
        let servers: Vec<Server> = (0..=SERVERS_MAX).map(|n| server(reactor, 100 + n as u8)).collect();
        settle(reactor, async {
            let anne = netlayer(reactor, 1, |options| options.servers_max = 100);
            let mut joined = Vec::new();
            for server in &servers[1..] {
                joined.push(join(&anne, reactor, server).await);
            }
            let refused = anne.add_server(line_to(reactor, &servers[0]), Expect::default()).await;
            assert!(matches!(refused, Err(AddServerError::Full)), "{refused:?}");
            let location = anne.our_location();
            assert_eq!(location.to_string().parse(), Ok(location));
        });
    }

    fn a_silent_server_is_given_up(reactor: &Reactor) {
        settle(reactor, async {
            let anne = netlayer(reactor, 1, |options| options.handshake_time = SHORT);
            let (_silent, line) = Stream::pair(reactor);
            let late = anne.add_server(line, Expect::default()).await;
            assert!(matches!(late, Err(AddServerError::Late)));
            let (gone, line) = Stream::pair(reactor);
            drop(gone);
            let closed = anne.add_server(line, Expect::default()).await;
            assert!(matches!(closed, Err(AddServerError::Closed)));
            let no_stream = anne.add_server(testing::packet_pair().0, Expect::default()).await;
            assert!(matches!(no_stream, Err(AddServerError::NotAStream)));
        });
    }

    fn a_connection_meant_for_somebody_else_ends_the_server(reactor: &Reactor) {
        settle(reactor, async {
            let (stream, line) = Stream::pair(reactor);
            let (mallory, anne) = (RawServer::new(66), plain(reactor, 1));
            let (joined, _) =
                both(anne.add_server(line, Expect::default()), mallory.register(&stream)).await;
            let (_near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            let someone = raw::base32(&[9; 32]);
            stream.say(introduction(&someone, &someone)).await;
            stream.pass(raw::DUMMY, Fd::made_here(far)).await;
            joined.unwrap().await;
            assert_eq!(stream.rest().await, b"");
        });
    }
}
