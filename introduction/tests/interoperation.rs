//! Strangers written in Python, as Goblins is one and as the draft has them, meet ours: through our server
//! and through theirs, in both directions; and each record that is said, byte for byte as it is written down.
//!
//! The Python side and the fixtures share nothing with the library: no codec, no keys, no base32.
#![allow(clippy::unwrap_used)]

mod python;
mod raw;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};
use futures_util::future::join as both;
use introduction::{
    Connection, Disconnected, Expect, Form, Identity, Locator, Netlayer, PublicKey, Server, ServerOptions,
};
use python::{FORMS, Stranger};
use raw::{Stream, is_quiet};
use ring::{Fd, Kind, Reactor, ReceiveError, Socket};
use testing::{in_own_process, on_each_driver, settle};

/// Anne and Bert are the first peers of each test, and this is the server. The fixtures have the same.
const ANNE: u8 = 1;
const BERT: u8 = 2;
const SERVER: u8 = 100;

fn key_of(seed: u8) -> PublicKey {
    Identity::from_seed(&[seed; 32]).key()
}

fn server(reactor: &Reactor, form: &str) -> Server {
    let mut options = ServerOptions::default();
    options.form = if form == "draft" { Form::Draft } else { Form::Goblins };
    Server::new(reactor, Identity::from_seed(&[SERVER; 32]), options)
}

fn netlayer(reactor: &Reactor, seed: u8) -> Netlayer {
    Netlayer::new(reactor, Identity::from_seed(&[seed; 32]))
}

async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// A peer in Python that is connected to our server and says nothing yet.
fn stranger(reactor: &Reactor, server: &Server, form: &str, seed: u8) -> Stranger {
    let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
    server.admit(far).unwrap();
    Stranger::peer(reactor, form, seed, near.into_fd().unwrap())
}

/// The same, registered.
async fn registered(reactor: &Reactor, server: &Server, form: &str, seed: u8) -> Stranger {
    let peer = stranger(reactor, server, form, seed);
    register(reactor, server, &peer, "register").await;
    peer
}

/// Has it register in whichever way, and waits until it is.
async fn register(reactor: &Reactor, server: &Server, peer: &Stranger, how: &str) {
    let before = server.stats().registrations;
    assert_eq!(peer.told(how).await, server.key().to_string());
    until(reactor, || server.stats().registrations > before).await;
}

/// Ours, registered with our server.
async fn joined(reactor: &Reactor, server: &Server, seed: u8) -> (Netlayer, Disconnected) {
    let netlayer = netlayer(reactor, seed);
    let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
    server.admit(far).unwrap();
    let before = server.stats().registrations;
    let line = near.into_fd().unwrap();
    let gone = netlayer.add_server(line, Expect::key(server.key()).bound()).await.unwrap();
    until(reactor, || server.stats().registrations > before).await;
    (netlayer, gone)
}

/// Where a peer is to be found that is not ours: as it would print it itself.
fn uri(peer: u8, server: u8) -> String {
    format!("ocapn://{}.unix-domain-socket?{}=t", key_of(peer), key_of(server))
}

async fn say(connection: &Connection, bytes: &str) {
    match connection {
        Connection::Stream(socket) => socket.send(bytes).await.unwrap(),
        Connection::SeqPacket(socket) => socket.send(bytes).await.unwrap(),
        other => panic!("of a new kind: {other:?}"),
    }
}

async fn hear(connection: &Connection) -> Result<Vec<u8>, ReceiveError> {
    let received = match connection {
        Connection::Stream(socket) => socket.receive().await,
        Connection::SeqPacket(socket) => socket.receive().await,
        other => panic!("of a new kind: {other:?}"),
    };
    received.map(|received| received.bytes().to_vec())
}

/// What ours and a stranger say to each other; and that nobody else holds an end of what they say it over.
async fn meet(ours: Connection, theirs: &Stranger) {
    let greeting = async {
        say(&ours, "hello from rust").await;
        assert_eq!(hear(&ours).await.unwrap(), b"hello from python");
    };
    let (answer, ()) = both(theirs.told("greet"), greeting).await;
    assert_eq!(answer, "ok");
    drop(ours);
    theirs.told("ended").await;
}

/// Ours takes what a stranger has asked for.
async fn accept(ours: &Netlayer, from: u8) -> Connection {
    let incoming = ours.incoming().await;
    assert_eq!(incoming.from().key, key_of(from));
    incoming.accept()
}

/// A server in Python, once it listens.
async fn strange_server(reactor: &Reactor, form: &str, path: &Path) -> (Stranger, PublicKey) {
    let server = Stranger::server(reactor, form, SERVER, path);
    let key = server.told("key").await;
    (server, key.parse().unwrap())
}

/// Ours, registered with a server in Python. It is not asked for the extension, which that does not speak.
async fn join_strange(
    reactor: &Reactor,
    server: &Stranger,
    path: &Path,
    seed: u8,
) -> (Netlayer, Disconnected) {
    let netlayer = netlayer(reactor, seed);
    let line = Socket::connect(reactor, path, Kind::Stream).await.unwrap().into_fd().unwrap();
    let gone = netlayer.add_server(line, Expect::key(key_of(SERVER))).await.unwrap();
    assert!(!gone.is_extended());
    until_registered(reactor, server, seed).await;
    (netlayer, gone)
}

async fn until_registered(reactor: &Reactor, server: &Stranger, seed: u8) {
    while server.told(format!("registered {}", key_of(seed))).await != "true" {
        reactor.sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// A place for a server to listen at, which goes with it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    (folder, path)
}

/// The bytes of a fixture, `None` for one that is new each time.
fn fixture(name: &str) -> Vec<Option<u8>> {
    let text = std::fs::read_to_string(python::fixtures().join(format!("{name}.hex"))).unwrap();
    let lines = text.lines().map(|line| line.split('#').next().unwrap());
    let token = |token| (token != "??").then(|| u8::from_str_radix(token, 16).unwrap());
    lines.flat_map(str::split_whitespace).map(token).collect()
}

/// The bytes of a fixture in which none is new.
fn fixed(name: &str) -> Vec<u8> {
    fixture(name).into_iter().map(Option::unwrap).collect()
}

/// Takes what the fixture says, and gives the bytes that are new.
async fn take(stream: &Stream, name: &str) -> Vec<u8> {
    let expected = fixture(name);
    let said = stream.take(expected.len()).await;
    let mut new = Vec::new();
    for (index, (expected, said)) in expected.iter().zip(said).enumerate() {
        match expected {
            None => new.push(said),
            Some(expected) => assert_eq!(*expected, said, "{name}, byte {index}"),
        }
    }
    new
}

/// A line to our server, spoken to by hand.
fn line(reactor: &Reactor, server: &Server) -> Stream {
    let (stream, far) = Stream::pair(reactor);
    server.admit(far).unwrap();
    stream
}

/// The descriptor that follows a record, with the bytes that are written down.
async fn take_descriptor(stream: &Stream) -> OwnedFd {
    assert_eq!(fixed("dummy"), raw::DUMMY);
    stream.take_descriptor().await
}

/// Registers by what the fixtures say, but for the signature under a challenge that is new.
async fn register_by_hand(reactor: &Reactor, server: &Server, form: &str, stream: &Stream, seed: u8) {
    let anne = key_of(ANNE).to_string();
    let mut record = fixed("register");
    let at = record.windows(anne.len()).position(|window| window == anne.as_bytes()).unwrap();
    record[at..][..anne.len()].copy_from_slice(key_of(seed).to_string().as_bytes());
    stream.say(record).await;
    let challenge = take(stream, &format!("server-response-{form}")).await;
    let signature = SigningKey::from_bytes(&[seed; 32]).sign(&challenge).to_bytes();
    let signature = match form {
        "draft" => raw::signature_list(&signature),
        _ => [b"64:".as_slice(), &signature].concat(),
    };
    let record = [b"<13'uds:signature64:".as_slice(), &challenge, &signature, b">"].concat();
    // What is fixed of it is as long and begins as the fixture says.
    let written = fixed(&format!("signature-{form}"));
    assert_eq!((record.len(), &record[..20]), (written.len(), &written[..20]));
    let before = server.registered();
    stream.say(record).await;
    until(reactor, || server.registered() > before).await;
}

/// What a server answers by the fixtures, but for the signature under a challenge that is new.
fn response(form: &str, challenge: &[u8]) -> Vec<u8> {
    let mut ours = 192..=255;
    let written = fixture(&format!("server-response-{form}")).into_iter();
    let mut written: Vec<u8> = written.map(|byte| byte.or_else(|| ours.next()).unwrap()).collect();
    let signature = SigningKey::from_bytes(&[SERVER; 32]).sign(challenge).to_bytes();
    let list = raw::signature_list(&signature);
    let after = if form == "draft" { b">>".len() } else { b">".len() };
    let start = written.len() - after - list.len();
    written[start..][..list.len()].copy_from_slice(&list);
    if form == "draft" {
        written[start - challenge.len()..start].copy_from_slice(challenge);
    }
    written
}

in_own_process! {
    fn the_strangers_parts_are_those_of_the_standard_and_of_the_fixtures() {
        if python::is_here() {
            assert!(python::checks_itself().success());
        }
    }
}

on_each_driver! {
    fn our_server_says_what_is_written_down(reactor: &Reactor) {
        for form in FORMS {
            let server = server(reactor, form);
            settle(reactor, async {
                let (anne, bert) = (line(reactor, &server), line(reactor, &server));
                register_by_hand(reactor, &server, form, &anne, ANNE).await;
                register_by_hand(reactor, &server, form, &bert, BERT).await;
                for name in ["new-connection", "new-connection-with-any-hints"] {
                    let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
                    anne.say(fixed(name)).await;
                    anne.pass(&fixed("dummy"), Fd::made_here(far)).await;
                    take(&bert, name).await;
                    raw::are_connected(near, take_descriptor(&bert).await).await;
                }
            });
        }
    }

    fn our_netlayer_says_what_is_written_down(reactor: &Reactor) {
        for form in FORMS {
            settle(reactor, async {
                let (server, far) = Stream::pair(reactor);
                let anne = netlayer(reactor, ANNE);
                let answering = async {
                    let challenge = take(&server, "register-of-ours").await;
                    server.say(response(form, &challenge)).await;
                    take(&server, &format!("signature-{form}")).await;
                };
                let expect = Expect::key(key_of(SERVER));
                let (joined, ()) = both(anne.add_server(far, expect), answering).await;
                let _gone = joined.unwrap();

                let locator: Locator = uri(BERT, SERVER).parse().unwrap();
                let near = anne.connect(&locator).await.unwrap();
                take(&server, "new-connection-of-ours").await;
                let far = Socket::wrap(reactor, take_descriptor(&server).await).unwrap();
                say(&near, "to").await;
                assert_eq!(far.receive().await.unwrap().bytes(), b"to");
            });
        }
    }

    fn a_stranger_asks_for_ours_through_our_server(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        for form in FORMS {
            for servers_form in FORMS {
                let server = server(reactor, servers_form);
                settle(reactor, async {
                    let (bert, _gone) = joined(reactor, &server, BERT).await;
                    let anne = registered(reactor, &server, form, ANNE).await;
                    // What the server said is what the description says, every byte of it.
                    anne.told(format!("expect_response_of {servers_form} {SERVER}")).await;
                    anne.told(format!("ask {}", bert.our_location())).await;
                    meet(accept(&bert, ANNE).await, &anne).await;
                });
            }
        }
    }

    fn ours_asks_for_a_stranger_through_our_server(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        for form in FORMS {
            let server = server(reactor, form);
            settle(reactor, async {
                let (anne, _gone) = joined(reactor, &server, ANNE).await;
                let bert = registered(reactor, &server, form, BERT).await;
                let near = anne.connect(&uri(BERT, SERVER).parse().unwrap()).await.unwrap();
                assert!(matches!(near, Connection::Stream(_)));
                let record = bert.told(format!("answer {}", key_of(ANNE))).await;
                assert_eq!(record.as_bytes(), fixed("new-connection-of-ours"));
                meet(near, &bert).await;
            });
        }
    }

    fn a_stranger_who_takes_packets_gets_packets(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "draft");
        settle(reactor, async {
            let (anne, _gone) = joined(reactor, &server, ANNE).await;
            let bert = registered(reactor, &server, "draft", BERT).await;
            let locator = format!("{}&seqpacket=t", uri(BERT, SERVER));
            let near = anne.connect(&locator.parse().unwrap()).await.unwrap();
            assert!(matches!(near, Connection::SeqPacket(_)));
            bert.told(format!("answer {}", key_of(ANNE))).await;
            meet(near, &bert).await;
            // And in the other direction.
            bert.told("set_kind packets").await;
            bert.told(format!("ask {}", anne.our_location())).await;
            meet(accept(&anne, BERT).await, &bert).await;
        });
    }

    fn strangers_meet_each_other_through_our_server(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            for (one, other) in [("goblins", "goblins"), ("goblins", "draft"), ("draft", "goblins")] {
                let anne = registered(reactor, &server, one, ANNE).await;
                let bert = registered(reactor, &server, other, BERT).await;
                let hints = [("f", "f"), ("{}", "{4'zero0+}"), ("{1\"a[1+2-<1'x1:y>]}", "f")];
                for (own, theirs) in hints {
                    anne.told(format!("set_hints {own}")).await;
                    anne.told(format!("ask_with {} {theirs}", key_of(BERT))).await;
                    let record = bert.told(format!("answer {}", key_of(ANNE))).await;
                    // As it was said, whatever it means.
                    let (from, to) = (key_of(ANNE).to_string(), key_of(BERT).to_string());
                    let (from, to) = (raw::locator_with(&from, own), raw::locator_with(&to, theirs));
                    assert_eq!(record, format!("<18'uds:new-connection{from}{to}>"));
                    for peer in [&anne, &bert] {
                        peer.told("say").await;
                    }
                    for peer in [&anne, &bert] {
                        peer.told("hear").await;
                    }
                }
            }
        });
    }

    fn who_registers_late_is_still_met_by_strangers(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            for form in FORMS {
                let (anne, _gone) = joined(reactor, &server, ANNE).await;
                let near = anne.connect(&uri(BERT, SERVER).parse().unwrap()).await.unwrap();
                until(reactor, || server.introductions() == 1).await;
                let bert = registered(reactor, &server, form, BERT).await;
                bert.told(format!("answer {}", key_of(ANNE))).await;
                meet(near, &bert).await;
            }
        });
    }

    fn records_of_strangers_may_come_in_pieces(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            let (bert, _gone) = joined(reactor, &server, BERT).await;
            for form in FORMS {
                for piece in [1, 7, 100] {
                    let anne = stranger(reactor, &server, form, ANNE);
                    anne.told(format!("set_piece {piece}")).await;
                    register(reactor, &server, &anne, "register").await;
                    anne.told(format!("ask {}", bert.our_location())).await;
                    meet(accept(&bert, ANNE).await, &anne).await;
                }
            }
        });
    }

    fn strangers_may_send_any_bytes_beside_a_descriptor(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            let (bert, _gone) = joined(reactor, &server, BERT).await;
            let anne = registered(reactor, &server, "draft", ANNE).await;
            for how in ["apart", "together"] {
                for count in [1, 2, 3, 4, 5, 1000, introduction::DUMMY_BYTES_MAX] {
                    anne.told(format!("set_dummy {count} {how}")).await;
                    anne.told(format!("ask {}", bert.our_location())).await;
                    meet(accept(&bert, ANNE).await, &anne).await;
                }
            }
            assert_eq!(server.stats().violations, 0);
        });
    }

    fn a_stranger_may_register_and_ask_in_one_piece(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            let (bert, _gone) = joined(reactor, &server, BERT).await;
            for form in FORMS {
                for how in ["apart", "together"] {
                    let anne = stranger(reactor, &server, form, ANNE);
                    anne.told(format!("set_dummy 4 {how}")).await;
                    let asking = format!("register_and_ask {}", bert.our_location());
                    register(reactor, &server, &anne, &asking).await;
                    meet(accept(&bert, ANNE).await, &anne).await;
                }
            }
        });
    }

    fn a_stranger_that_reconnects_is_served_again(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            let (bert, _gone) = joined(reactor, &server, BERT).await;
            for form in ["goblins", "draft", "goblins"] {
                // The one before is still connected.
                let anne = registered(reactor, &server, form, ANNE).await;
                anne.told(format!("ask {}", bert.our_location())).await;
                meet(accept(&bert, ANNE).await, &anne).await;
            }
        });
    }

    fn ours_meet_strangers_through_a_strange_server(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        for form in FORMS {
            let (_folder, path) = place();
            settle(reactor, async {
                let (server, key) = strange_server(reactor, form, &path).await;
                assert_eq!(key, key_of(SERVER));
                let (ours, gone) = join_strange(reactor, &server, &path, ANNE).await;
                let theirs = Stranger::peer_at(reactor, form, BERT, &path);
                assert_eq!(theirs.told("register").await, key.to_string());
                until_registered(reactor, &server, BERT).await;
                theirs.told(format!("ask {}", ours.our_location())).await;
                meet(accept(&ours, BERT).await, &theirs).await;

                let near = ours.connect(&uri(BERT, SERVER).parse().unwrap()).await.unwrap();
                theirs.told(format!("answer {}", ours.key())).await;
                meet(near, &theirs).await;
                server.told("disconnect").await;
                gone.await;
            });
        }
    }

    fn ours_meet_each_other_through_a_strange_server(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        for form in FORMS {
            let (_folder, path) = place();
            settle(reactor, async {
                let (server, _) = strange_server(reactor, form, &path).await;
                let (anne, _gone) = join_strange(reactor, &server, &path, ANNE).await;
                let (bert, _gone) = join_strange(reactor, &server, &path, BERT).await;
                let location = bert.our_location();
                let (near, far) = both(anne.connect(&location), accept(&bert, ANNE)).await;
                let near = near.unwrap();
                assert!(matches!(near, Connection::SeqPacket(_)));
                say(&near, "to").await;
                assert_eq!(hear(&far).await.unwrap(), b"to");
                drop(server);
                say(&far, "fro, with the server gone").await;
                assert_eq!(hear(&near).await.unwrap(), b"fro, with the server gone");
            });
        }
    }

    /// What a server that is not ours may do: send in pieces, and the descriptor on the record itself, with
    /// any bytes beside.
    fn a_strange_server_may_send_as_it_likes(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let (_folder, path) = place();
        settle(reactor, async {
            let (server, _) = strange_server(reactor, "draft", &path).await;
            let ways = ["1 apart", "4 together", "4096 together", "4096 apart", "1 together"];
            for (index, way) in ways.into_iter().enumerate() {
                server.told(format!("set_piece {}", [1, 7, 100][index % 3])).await;
                server.told(format!("set_dummy {way}")).await;
                let (anne, _gone) = join_strange(reactor, &server, &path, ANNE).await;
                let bert = Stranger::peer_at(reactor, "draft", BERT, &path);
                bert.told("register").await;
                until_registered(reactor, &server, BERT).await;
                bert.told(format!("ask {}", anne.our_location())).await;
                meet(accept(&anne, BERT).await, &bert).await;
                bert.told("leave").await;
                server.told("disconnect").await;
            }
        });
    }

    fn a_stranger_leaves_and_whoever_asked_for_it_waits_for_its_return(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let server = server(reactor, "goblins");
        settle(reactor, async {
            let (anne, _gone) = joined(reactor, &server, ANNE).await;
            let bert = registered(reactor, &server, "goblins", BERT).await;
            bert.told("leave").await;
            until(reactor, || server.registered() == 1).await;
            let near = anne.connect(&uri(BERT, SERVER).parse().unwrap()).await.unwrap();
            until(reactor, || server.introductions() == 1).await;
            let Connection::Stream(socket) = &near else { panic!("packets for nobody") };
            assert!(is_quiet(socket));
            let back = registered(reactor, &server, "draft", BERT).await;
            back.told(format!("answer {}", key_of(ANNE))).await;
            meet(near, &back).await;
        });
    }
}
