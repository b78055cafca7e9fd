//! Peers that mean harm, many at a time: whatever they do, those who mean none meet each other, and nobody
//! gets more than a share of a turn.
#![allow(clippy::unwrap_used)]

mod attack;
mod raw;

use std::cell::Cell;
use std::fs::{Permissions, set_permissions};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use introduction::{Identity, Server, ServerOptions};
use raw::{RawPeer, are_connected, introduction};
use ring::{Executor, Fd, Kind, Reactor, Socket, Wait};
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use testing::{Census, helper, on_each_driver, settle, start_helper};

fn server(reactor: &Reactor, change: impl FnOnce(&mut ServerOptions)) -> Server {
    let mut options = ServerOptions::default();
    change(&mut options);
    Server::new(reactor, Identity::from_seed(&[100; 32]), options)
}

async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(Duration::from_micros(100)).await;
    }
}

async fn registered(reactor: &Reactor, server: &Server, seed: u8) -> RawPeer {
    let (peer, far) = RawPeer::new(reactor, seed);
    let before = server.stats().registrations;
    server.admit(far).unwrap();
    peer.register().await;
    until(reactor, || server.stats().registrations > before).await;
    peer
}

/// Asks for nobody, again and again, as much as its queue takes.
fn flood(peer: &RawPeer) -> usize {
    let record = introduction(&peer.designator(), &raw::base32(&[9; 32]));
    let mut asked = 0;
    while peer.stream.socket.try_send(record.as_slice()).is_ok() {
        let (near, _far) = testing::stream_pair();
        let message = ring::Message::from(raw::DUMMY).with_descriptor(near);
        if peer.stream.socket.try_send(message).is_err() {
            break;
        }
        asked += 1;
    }
    asked
}

helper! {
    /// A peer as Goblins is one: blocking, a byte at a time with `read`, and `recvmsg` with room for four
    /// bytes and one descriptor where one is due. Registers, waits to be asked for, and says hello.
    fn reads_byte_by_byte(descriptors: Vec<OwnedFd>) {
        let [line] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        let mut line = UnixStream::from(line);
        let key = SigningKey::from_bytes(&[2; 32]);
        let own = raw::base32(key.verifying_key().as_bytes());
        let registration = format!("<12'uds:register{}64:{}>", raw::locator(&own), "c".repeat(64));
        std::io::Write::write_all(&mut line, registration.as_bytes()).unwrap();
        let take = |line: &mut UnixStream, count: usize| -> Vec<u8> {
            (0..count)
                .map(|_| {
                    let mut byte = [0];
                    line.read_exact(&mut byte).unwrap();
                    byte[0]
                })
                .collect()
        };
        let before = b"<19'uds:server-response".len() + raw::public_key(&[0; 32]).len() + b"64:".len();
        let after = raw::signature_list(&[0; 64]).len() + b">".len();
        let response = take(&mut line, before + 64 + after);
        let challenge = &response[before..][..64];
        let signature = key.sign(challenge).to_bytes();
        let record = [b"<13'uds:signature64:".as_slice(), challenge, b"64:", &signature, b">"].concat();
        std::io::Write::write_all(&mut line, &record).unwrap();

        let other = raw::base32(SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes());
        let expected = introduction(&other, &own);
        assert_eq!(take(&mut line, expected.len()), expected);
        let mut dummy = [0; 4];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut into = [IoSliceMut::new(&mut dummy)];
        let received = recvmsg(&line, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        assert_eq!(received.bytes, 4);
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        assert_eq!(dummy, raw::DUMMY);
        let mut far = UnixStream::from(rights.unwrap());
        std::io::Write::write_all(&mut far, b"hello").unwrap();
    }
}

/// Hostile connections in one test.
const HOSTILE: usize = 10_000;

helper! {
    /// Attacks the server at this path, until the descriptor it is given may be closed.
    fn attacks(descriptors: Vec<OwnedFd>) {
        let argument = testing::helper_argument();
        let [path, victim, user] = <[&str; 3]>::try_from(argument.split(' ').collect::<Vec<_>>()).unwrap();
        if user == "nobody" {
            testing::become_nobody();
        }
        let registered = attack::attack(Path::new(path), HOSTILE, victim).unwrap();
        assert!(registered > 0, "nothing that a registered peer can do was tried");
        drop(descriptors);
    }
}

/// A server that listens, honest peers to meet each other, and whoever attacks meanwhile.
struct Siege {
    server: Rc<Server>,
    executor: Executor,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Siege {
    fn begin(reactor: &Reactor, change: impl FnOnce(&mut ServerOptions)) -> Siege {
        let server = Rc::new(server(reactor, change));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = Socket::listen(reactor, &path, Kind::Stream).unwrap();
        // Whoever it is.
        set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let executor = Executor::new(reactor);
        let serving = Rc::clone(&server);
        executor.spawn(async move { serving.serve(&listener).await.unwrap() });
        Siege { server, executor, path, _folder: folder }
    }

    /// Runs `honest` again and again as long as the attack goes on, and says how often that was.
    fn withstand(&self, reactor: &Reactor, user: &str, mut honest: impl AsyncFnMut()) -> u64 {
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        let victim = raw::base32(SigningKey::from_bytes(&[202; 32]).verifying_key().as_bytes());
        let argument = format!("{} {victim} {user}", self.path.display());
        let attacker = start_helper!(attacks, vec![far], argument);
        let is_over = Rc::new(Cell::new(false));
        let seen = Rc::clone(&is_over);
        self.executor.spawn(async move {
            raw::is_closed(&near).await;
            seen.set(true);
        });
        let mut rounds = 0;
        self.executor.block_on(async {
            while !is_over.get() {
                honest().await;
                rounds += 1;
            }
        });
        attacker.succeeded();
        rounds
    }

    /// Nobody got more than a share of a turn, and of the attackers nothing is left.
    fn is_over(&self, reactor: &Reactor, honest: usize) {
        let stats = self.server.stats();
        assert!(stats.admitted + stats.turned_away >= HOSTILE as u64, "{stats:?}");
        assert_eq!(stats.most_reads_in_a_turn, 1);
        // And those who had more to say were cut short.
        assert_eq!(stats.most_records_in_a_turn, ServerOptions::default().turn_records_max as u64);
        assert!(stats.violations > 0 && stats.evicted > 0 && stats.turned_away > 0, "{stats:?}");
        self.executor.block_on(until(reactor, || self.server.connections() == honest));
    }
}

on_each_driver! {
    fn honest_peers_meet_among_ten_thousand_hostile_connections_of_their_own_user(reactor: &Reactor) {
        let siege = Siege::begin(reactor, |_| {});
        let (anne, bert) = siege.executor.block_on(async {
            (registered(reactor, &siege.server, 201).await, registered(reactor, &siege.server, 202).await)
        });
        let met = siege.withstand(reactor, "root", async || {
            let near = anne.ask_for(&bert.designator()).await;
            // The attackers have asked for Bert as well.
            loop {
                let (from, far) = bert.introduced().await;
                if from == anne.designator() {
                    break are_connected(near, far).await;
                }
            }
        });
        assert!(met > 100, "{met}");
        siege.is_over(reactor, 2);
    }

    /// Those who come meanwhile register as well, since one user does not take another's places.
    fn honest_peers_come_and_meet_among_ten_thousand_hostile_connections_of_another_user(reactor: &Reactor) {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can be somebody else");
            return;
        }
        let siege = Siege::begin(reactor, |_| {});
        let met = siege.withstand(reactor, "nobody", async || {
            let comes = async |seed| {
                let (mut peer, _) = RawPeer::new(reactor, seed);
                let line = Socket::connect(reactor, &siege.path, Kind::Stream).await.unwrap();
                peer.stream = raw::Stream::new(line);
                peer.register().await;
                peer
            };
            let (anne, bert) = (comes(201).await, comes(202).await);
            let near = anne.ask_for(&bert.designator()).await;
            loop {
                let (from, far) = bert.introduced().await;
                if from == anne.designator() {
                    break are_connected(near, far).await;
                }
            }
        });
        assert!(met > 100, "{met}");
        siege.is_over(reactor, 0);
    }

    fn a_peer_that_reads_byte_by_byte_gets_its_descriptor(reactor: &Reactor) {
        let server = server(reactor, |_| {});
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            server.admit(far).unwrap();
            let helper = start_helper!(reads_byte_by_byte, vec![near.into_fd().unwrap()]);
            let bert = raw::base32(SigningKey::from_bytes(&[2; 32]).verifying_key().as_bytes());
            let near = anne.ask_for(&bert).await;
            assert_eq!(near.receive().await.unwrap().bytes(), b"hello");
            raw::is_closed(&near).await;
            helper.succeeded();
        });
    }

    fn so_many_records_of_one_connection_are_looked_at_in_a_turn_and_no_more(reactor: &Reactor) {
        const SAID: usize = 100;
        // With none nothing would ever be looked at.
        for (allowed, given) in [(0, 1..=1), (1, 1..=1), (7, 7..=7), (2 * SAID, SAID..=SAID + 1)] {
            let server = server(reactor, |options| options.turn_records_max = allowed);
            settle(reactor, async {
                let (peer, far) = RawPeer::new(reactor, 1);
                server.admit(far).unwrap();
                peer.register_bound().await;
                let near = peer.ask_for(&peer.designator()).await;
                let record = introduction(&peer.designator(), &peer.designator()).len() + b"0+".len();
                peer.stream.take(record).await;
                drop((near, peer.stream.take_descriptor().await));
                peer.stream.socket.try_send(b"<17'sendright:verdict0+t>".repeat(SAID)).unwrap();
                // What is said after it is heard after it.
                let other = peer.ask_for(&peer.designator()).await;
                peer.stream.take(b"<17'sendright:outcome0+8'accepted>".len() + record).await;
                drop((other, peer.stream.take_descriptor().await));
            });
            let stats = server.stats();
            assert!(given.contains(&(stats.most_records_in_a_turn as usize)), "{allowed}: {stats:?}");
            assert_eq!(stats.violations, 0);
        }
    }

    fn a_flood_gets_one_introduction_a_turn(reactor: &Reactor) {
        const FLOODERS: u8 = 3;
        let server = server(reactor, |options| options.held_max = 200);
        let flooders = settle(reactor, async {
            let mut flooders = Vec::new();
            for seed in 1..=FLOODERS {
                flooders.push(registered(reactor, &server, seed).await);
            }
            flooders
        });
        let asked: usize = flooders.iter().map(flood).sum();
        assert!(asked > 30 * usize::from(FLOODERS), "{asked}");
        let mut turns = 0;
        while server.stats().introductions < asked as u64 {
            let before = server.stats().introductions;
            reactor.turn(Wait::Not).unwrap();
            turns += 1;
            let more = server.stats().introductions - before;
            assert!(more <= u64::from(FLOODERS), "{more} in one turn");
        }
        assert!(turns >= asked / usize::from(FLOODERS));
    }

    fn honest_peers_meet_while_others_flood(reactor: &Reactor) {
        let server = server(reactor, |options| options.introductions_max = 32);
        settle(reactor, async {
            let anne = registered(reactor, &server, 201).await;
            let bert = registered(reactor, &server, 202).await;
            let mut flooders = Vec::new();
            for seed in 1..=8 {
                flooders.push(registered(reactor, &server, seed).await);
            }
            for _ in 0..20 {
                flooders.iter().map(flood).for_each(drop);
                let near = anne.ask_for(&bert.designator()).await;
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
            }
            // They have pushed out each other.
            assert!(server.stats().evicted > 0);
            assert!(server.introductions() <= 32);
        });
    }

    fn honest_peers_meet_among_hundreds_that_are_not(reactor: &Reactor) {
        let server = server(reactor, |_| {});
        let (_anne, _bert, census) = settle(reactor, async {
            let anne = registered(reactor, &server, 201).await;
            let bert = registered(reactor, &server, 202).await;
            let census = Census::take();
            for round in 0..300_usize {
                let (peer, far) = RawPeer::new(reactor, (round % 99) as u8 + 1);
                server.admit(far).unwrap();
                match round % 6 {
                    0 => peer.stream.say(b"nonsense").await,
                    1 => peer.stream.say(b"<300000000:").await,
                    2 => peer.stream.say(&peer.registration()[..1 + round % 175]).await,
                    3 => peer.stream.say(peer.registration()).await,
                    4 => peer.register().await,
                    _ => {
                        peer.register().await;
                        let (_near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
                        peer.stream.say(introduction(&anne.designator(), &bert.designator())).await;
                        peer.stream.pass(raw::DUMMY, Fd::made_here(far)).await;
                    }
                }
                if round % 10 == 0 {
                    let near = anne.ask_for(&bert.designator()).await;
                    are_connected(near, bert.introduced_by(&anne.designator()).await).await;
                }
            }
            until(reactor, || server.connections() == 2).await;
            (anne, bert, census)
        });
        // What was let go of may wait for the next sleep, and is closed when no more turns are taken.
        census.unchanged();
    }

    fn with_few_descriptors_left_honest_peers_still_meet(reactor: &Reactor) {
        let server = server(reactor, |options| options.introductions_max = 8);
        settle(reactor, async {
            let anne = registered(reactor, &server, 201).await;
            let bert = registered(reactor, &server, 202).await;
            let greedy = registered(reactor, &server, 1).await;
            let limit = testing::leave_descriptors(64);
            for _ in 0..100 {
                let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
                greedy.stream.say(introduction(&greedy.designator(), &raw::base32(&[9; 32]))).await;
                greedy.stream.pass(raw::DUMMY, Fd::made_here(far)).await;
                drop(near);
                if server.introductions() == 8 {
                    break;
                }
                reactor.sleep(Duration::ZERO).await;
            }
            for _ in 0..5 {
                let near = anne.ask_for(&bert.designator()).await;
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
            }
            drop(limit);
        });
    }
}
