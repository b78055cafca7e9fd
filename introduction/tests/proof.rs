//! The proof of identity against a dishonest server: Mallory is what both sides are registered with, and
//! strips, relays, replays and makes things up. Either both are connected to each other and to nobody else,
//! or there is no connection.
#![allow(clippy::unwrap_used)]

mod raw;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ed25519_dalek::Signer;
use futures_util::future::join as both;
use introduction::{
    ConnectError, Connection, Expect, Identity, Locator, Netlayer, NetlayerOptions, Proof, Server,
    ServerOptions, Welcome,
};
use raw::{RawPeer, RawServer, Stream, is_closed, is_quiet, locator_with};
use ring::{Fd, Kind, Message, Reactor, ReceiveError, Socket};
use testing::{Census, on_each_driver, poll_once, settle};

const SHORT: Duration = Duration::from_millis(100);

/// Anne wants to talk to Bert, and Mallory is between them.
struct Scene {
    anne: Netlayer,
    bert: Netlayer,
    mallory: RawServer,
    annes: Stream,
    berts: Stream,
}

impl Scene {
    async fn new(reactor: &Reactor) -> Scene {
        let netlayer = |seed, proof| {
            let mut options = NetlayerOptions::default();
            options.proof = proof;
            options.incoming_time = SHORT;
            options.connect_time = 10 * SHORT;
            Netlayer::with_options(reactor, Identity::from_seed(&[seed; 32]), options)
        };
        let (anne, bert) = (netlayer(1, Proof::None), netlayer(2, Proof::Required));
        let mallory = RawServer::new(66);
        let mut streams = Vec::new();
        for netlayer in [&anne, &bert] {
            let (stream, line) = Stream::pair(reactor);
            let adding = netlayer.add_server(line, Expect::default());
            let _joined = both(adding, mallory.register(&stream)).await.0.unwrap();
            streams.push(stream);
        }
        let berts = streams.pop().unwrap();
        let annes = streams.pop().unwrap();
        Scene { anne, bert, mallory, annes, berts }
    }

    /// What Anne says of herself, and of Bert.
    fn record(&self) -> Vec<u8> {
        self.record_by(&self.mallory, &self.anne.key().to_string())
    }

    fn record_by(&self, server: &RawServer, from: &str) -> Vec<u8> {
        let server = server.designator();
        let from = locator_with(from, &format!("{{52\"{server}1\"t9\"seqpacket1\"t}}"));
        let hints = format!("{{5\"proof1\"152\"{server}1\"t9\"seqpacket1\"t}}");
        let to = locator_with(&self.bert.key().to_string(), &hints);
        format!("<18'uds:new-connection{from}{to}>").into_bytes()
    }

    /// What Anne has passed to Mallory.
    async fn asked(&self) -> OwnedFd {
        let expected = self.record();
        assert_eq!(self.annes.take(expected.len()).await, expected);
        self.annes.take_descriptor().await
    }

    async fn pass_on(&self, fd: OwnedFd) {
        self.berts.say(self.record()).await;
        self.berts.pass(raw::DUMMY, Fd::made_here(fd)).await;
    }

    /// Nobody has arrived at Bert's.
    fn nobody_came(&self) {
        poll_once(self.bert.incoming());
    }
}

fn packet_pair(reactor: &Reactor) -> (Socket, OwnedFd) {
    Socket::pair(reactor, Kind::SeqPacket).unwrap()
}

async fn are_connected(ours: Connection, theirs: Connection) {
    let (ours, theirs) = (ours.into_seqpacket().unwrap(), theirs.into_seqpacket().unwrap());
    ours.send("to").await.unwrap();
    assert_eq!(theirs.receive().await.unwrap().bytes(), b"to");
    theirs.send("fro").await.unwrap();
    assert_eq!(ours.receive().await.unwrap().bytes(), b"fro");
    drop(theirs);
    assert!(matches!(ours.receive().await, Err(ReceiveError::Closed)));
}

on_each_driver! {
    fn behind_an_honest_server_both_prove_who_they_are(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let census = Census::take();
            let passing = async {
                scene.pass_on(scene.asked().await).await;
                let incoming = scene.bert.incoming().await;
                assert!(incoming.is_proved());
                assert_eq!(incoming.from().key, scene.anne.key());
                incoming.accept()
            };
            let (ours, theirs) = both(scene.anne.connect(&location), passing).await;
            are_connected(ours.unwrap(), theirs).await;
            reactor.sleep(Duration::ZERO).await;
            census.unchanged();
        });
    }

    /// The kernel gives no way to see that somebody else holds the same end.
    fn whoever_keeps_a_duplicate_reads_nothing_and_says_nothing(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let passing = async {
                let far = scene.asked().await;
                let kept = far.try_clone().unwrap();
                scene.pass_on(far).await;
                (scene.bert.incoming().await.accept(), kept)
            };
            let (ours, (theirs, kept)) = both(scene.anne.connect(&location), passing).await;
            // The pair it was is gone already, and is not the one they talk over.
            let kept = Socket::wrap(reactor, kept).unwrap();
            kept.set_private(false);
            assert!(matches!(kept.receive().await, Err(ReceiveError::Closed)));
            assert!(kept.send("I am Bert").await.is_err());
            are_connected(ours.unwrap(), theirs).await;
        });
    }

    fn a_pair_of_mallorys_own_is_noticed(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let between = async {
                let annes = Socket::wrap(reactor, scene.asked().await).unwrap();
                let (berts, far) = packet_pair(reactor);
                scene.pass_on(far).await;
                berts.send(annes.receive().await.unwrap().bytes()).await.unwrap();
                // No answer is there to be relayed.
                is_closed(&berts).await;
                annes.shut_down();
            };
            let (outcome, ()) = both(scene.anne.connect(&location), between).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            scene.nobody_came();
        });
    }

    fn what_was_said_on_one_connection_is_of_no_use_on_another(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            // Anne asks for Bert; Mallory takes what she says, and what comes of it.
            let overhear = async {
                let far = scene.asked().await;
                let kept = far.try_clone().unwrap();
                let hello = testing::receive_packet(&far).unwrap().bytes;
                drop((far, kept));
                hello
            };
            let (outcome, hello) = both(scene.anne.connect(&location), overhear).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            let (berts, far) = packet_pair(reactor);
            scene.pass_on(far).await;
            berts.send(hello).await.unwrap();
            is_closed(&berts).await;
            scene.nobody_came();
        });
    }

    fn nobody_answers_in_berts_place(reactor: &Reactor) {
        settle(reactor, async {
            for is_signed in [false, true] {
                let scene = Scene::new(reactor).await;
                let location = scene.bert.our_location();
                let answering = async {
                    let annes = Socket::wrap(reactor, scene.asked().await).unwrap();
                    annes.receive().await.unwrap();
                    let (kept, fresh) = packet_pair(reactor);
                    let mut answer = [b"srp1\x02".as_slice(), &[7; 32]].concat();
                    let signature = match is_signed {
                        true => scene.mallory.key.sign(&answer).to_bytes(),
                        false => [0; 64],
                    };
                    answer.extend(signature);
                    annes.send(Message::from(answer).with_descriptor(Fd::made_here(fresh))).await.unwrap();
                    // Anne says nothing over what she was given.
                    is_closed(&kept).await;
                };
                let (outcome, ()) = both(scene.anne.connect(&location), answering).await;
                assert!(matches!(outcome, Err(ConnectError::NotProved)), "{outcome:?}");
            }
        });
    }

    /// Bert's answer is genuine; the descriptor beside it is not.
    fn the_end_that_bert_sends_cannot_be_exchanged(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let exchanging = async {
                // Anne's pair is Mallory's to read if she keeps its far end from Bert; then she has no
                // answer. With an answer for another connection she has one that does not fit.
                let far = scene.asked().await;
                let annes = far.try_clone().unwrap();
                scene.pass_on(far).await;
                let (kept, fresh) = packet_pair(reactor);
                let made_up = [b"srp1\x02".as_slice(), &[7; 96]].concat();
                let annes = Socket::wrap(reactor, annes).unwrap();
                // She may be faster than Bert, or not; Anne looks at the first answer only.
                let _ = annes.try_send(Message::from(made_up).with_descriptor(Fd::made_here(fresh)));
                annes.set_private(false);
                drop(annes);
                is_closed(&kept).await;
            };
            let (outcome, ()) = both(scene.anne.connect(&location), exchanging).await;
            match outcome {
                Err(ConnectError::NotProved) => scene.nobody_came(),
                Ok(ours) => are_connected(ours, scene.bert.incoming().await.accept()).await,
                other => panic!("{other:?}"),
            }
        });
    }

    fn nobody_comes_in_anothers_name(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let renaming = async {
                let far = scene.asked().await;
                // Anne's connection, as if Carl had made it.
                let carl = raw::base32(&[9; 32]);
                scene.berts.say(scene.record_by(&scene.mallory, &carl)).await;
                scene.berts.pass(raw::DUMMY, Fd::made_here(far)).await;
            };
            let (outcome, ()) = both(scene.anne.connect(&location), renaming).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            scene.nobody_came();
        });
    }

    fn both_must_have_been_introduced_by_the_same_server(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            // Another server of Mallory's, or one that was told by her to introduce.
            let other = RawServer::new(67);
            let (stream, line) = Stream::pair(reactor);
            let adding = scene.bert.add_server(line, Expect::default());
            let _joined = both(adding, other.register(&stream)).await.0.unwrap();
            let relaying = async {
                let far = scene.asked().await;
                stream.say(scene.record()).await;
                stream.pass(raw::DUMMY, Fd::made_here(far)).await;
            };
            let (outcome, ()) = both(scene.anne.connect(&location), relaying).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            scene.nobody_came();
        });
    }

    fn a_stream_instead_is_not_taken(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            scene.pass_on(far).await;
            assert!(is_quiet(&near));
            is_closed(&near).await;
            scene.nobody_came();
        });
    }

    fn who_says_nothing_is_not_taken(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let (near, far) = packet_pair(reactor);
            scene.pass_on(far).await;
            is_closed(&near).await;
            scene.nobody_came();
        });
    }

    /// An answer would show that somebody is here, and so would a HELLO that has been taken.
    fn who_is_not_welcome_is_not_listened_to(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            scene.bert.set_welcome(Welcome::Keys(BTreeSet::new()));
            let passing = async {
                let far = scene.asked().await;
                let kept = far.try_clone().unwrap();
                scene.pass_on(far).await;
                kept
            };
            let (outcome, kept) = both(scene.anne.connect(&location), passing).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            let unread = testing::receive_packet(&kept).unwrap().bytes;
            assert!(unread.starts_with(b"srp1\x01"), "{}", unread.escape_ascii());
            scene.nobody_came();
        });
    }

    /// Locator and demand reach Anne by another way than the server, which can only leave it out towards
    /// Bert.
    fn what_is_stripped_from_the_record_changes_nothing(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let stripping = async {
                let far = scene.asked().await;
                let record = String::from_utf8(scene.record()).unwrap();
                let start = record.rfind("<10'ocapn-peer").unwrap();
                let to = raw::locator(&scene.bert.key().to_string());
                scene.berts.say(format!("{}{to}>", &record[..start])).await;
                scene.berts.pass(raw::DUMMY, Fd::made_here(far)).await;
                scene.bert.incoming().await
            };
            let (ours, incoming) = both(scene.anne.connect(&location), stripping).await;
            assert!(incoming.is_proved());
            are_connected(ours.unwrap(), incoming.accept()).await;
        });
    }

    /// If Bert believed it, he would go to Anne without a proof later, and find Mallory.
    fn what_the_asker_says_of_herself_cannot_be_changed(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let location = scene.bert.our_location();
            let stripping = async {
                let far = scene.asked().await;
                let (anne, bert) = (scene.anne.key().to_string(), scene.bert.key().to_string());
                scene.berts.say(raw::introduction(&anne, &bert)).await;
                scene.berts.pass(raw::DUMMY, Fd::made_here(far)).await;
            };
            let (outcome, ()) = both(scene.anne.connect(&location), stripping).await;
            assert!(matches!(outcome, Err(ConnectError::Unanswered)), "{outcome:?}");
            scene.nobody_came();
        });
    }

    fn who_does_not_know_the_proof_gets_no_connection(reactor: &Reactor) {
        let server = Server::new(reactor, Identity::from_seed(&[100; 32]), ServerOptions::default());
        settle(reactor, async {
            let mut options = NetlayerOptions::default();
            options.proof = Proof::Required;
            options.incoming_time = SHORT;
            let bert = Netlayer::with_options(reactor, Identity::from_seed(&[2; 32]), options);
            let (line, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            server.admit(far).unwrap();
            let _joined =
                bert.add_server(line.into_fd().unwrap(), Expect::key(server.key())).await.unwrap();
            let (goblins, far) = RawPeer::new(reactor, 1);
            server.admit(far).unwrap();
            goblins.register().await;
            let near = goblins.ask_for(&bert.key().to_string()).await;
            is_closed(&near).await;
            poll_once(bert.incoming());
        });
    }

    fn a_proof_of_an_unknown_kind_is_not_taken_for_none(reactor: &Reactor) {
        settle(reactor, async {
            let scene = Scene::new(reactor).await;
            let uri = scene.bert.our_location().to_string().replace("proof=1", "proof=2");
            let location: Locator = uri.parse().unwrap();
            let outcome = scene.anne.connect(&location).await;
            assert!(matches!(outcome, Err(ConnectError::UnknownProof)), "{outcome:?}");
            assert!(is_quiet(&scene.annes.socket));
        });
    }
}
