//! Peers that mean harm, many at a time: whatever they do, those who mean none meet each other, and nobody
//! gets more than a share of a turn.
#![allow(clippy::unwrap_used)]

mod raw;

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use introduction::{Identity, Server, ServerOptions};
use raw::{RawPeer, are_connected, introduction};
use ring::{Fd, Kind, Reactor, Socket, Wait};
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

on_each_driver! {
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
        settle(reactor, async {
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
            census.unchanged();
        });
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
