//! A server that introduces strangers, with hostile peers; and a program whose server is hostile.
//!
//! It owns the server or the netlayer, and friends who meet all the same. It does not know what the hostile
//! say.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use introduction::{Connection, Expect, Identity, Locator, Netlayer, PublicKey, Server, ServerOptions};
use ring::{Executor, Reactor};

use super::{HONEST, HONEST_TIME_MAX, act};
use crate::packet::{Tongue, receive, say};
use crate::peer::Peer;
use crate::records;
use crate::script::Script;

/// How many hostile connections there are when the script begins.
const LINES_MAX: usize = 3;

pub(super) fn server(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let server = Server::new(reactor, Identity::from_seed(&[1; 32]), ServerOptions::default());
    let mut lines: Vec<OwnedFd> = Vec::new();
    for number in 0..1 + script.below(LINES_MAX) {
        let line = admitted(&server);
        if script.below(4) != 3 {
            register(&executor, &line, number as u8);
        }
        lines.push(line);
    }
    let mut peer = Peer::new(script);
    lines.into_iter().for_each(|line| peer.holds(line));
    act(&mut peer, Tongue::Introduction, &executor);

    friends_meet(reactor, &executor, &server);
    drop(peer);
    executor.settle();
    let _ = (server.stats(), server.introductions());
    assert!(server.connections() >= server.registered());
}

/// The peer's end of a connection to the server.
fn admitted(server: &Server) -> OwnedFd {
    let (near, far) = testing::stream_pair();
    server.admit(far).unwrap();
    near
}

/// As everybody does it, under a key of its own.
#[track_caller]
fn register(executor: &Executor, line: &OwnedFd, number: u8) {
    let key = records::key(number);
    let hints = if number == 1 { "{9\"seqpacket1\"t}" } else { "f" };
    say(line, &records::registration(&key, hints));
    executor.settle();
    let (response, _) = receive(line).unwrap();
    say(line, &records::signature(&key, &response).unwrap());
    executor.settle();
}

/// Anne asks for Bert, and they talk.
#[track_caller]
fn friends_meet(reactor: &Reactor, executor: &Executor, server: &Server) {
    let anne = Netlayer::new(reactor, Identity::from_seed(&[2; 32]));
    let bert = Netlayer::new(reactor, Identity::from_seed(&[3; 32]));
    let meeting = async {
        let expect = || Expect::key(server.key());
        let _annes = anne.add_server(admitted(server), expect()).await.unwrap();
        let _berts = bert.add_server(admitted(server), expect()).await.unwrap();
        let connection = anne.connect(&bert.our_location()).await.unwrap();
        let incoming = bert.incoming().await;
        assert_eq!(incoming.from().key, anne.key());
        let (Connection::SeqPacket(ours), Connection::SeqPacket(theirs)) = (connection, incoming.accept())
        else {
            panic!("both speak in packets");
        };
        ours.send(HONEST).await.unwrap();
        assert_eq!(theirs.receive().await.unwrap().bytes(), HONEST);
    };
    in_time(reactor, executor, meeting);
}

#[track_caller]
fn in_time(reactor: &Reactor, executor: &Executor, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    let mut clock = std::pin::pin!(reactor.sleep(HONEST_TIME_MAX));
    executor.block_on(std::future::poll_fn(|context| {
        assert!(clock.as_mut().poll(context).is_pending(), "friends do not meet");
        work.as_mut().poll(context)
    }));
}

pub(super) fn netlayer(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let (line, far) = testing::stream_pair();
    let netlayer = Rc::new(Netlayer::new(reactor, Identity::from_seed(&[4; 32])));
    let key = records::key(0);
    let registering = Rc::clone(&netlayer);
    let expected = PublicKey(key.verifying_key().to_bytes());
    let proves = script.flag();
    executor.spawn(async move {
        if let Ok(disconnected) = registering.add_server(far, Expect::key(expected)).await {
            disconnected.await;
        }
    });
    executor.settle();
    let (registration, _) = receive(&line).unwrap();
    if script.below(4) != 3 {
        say(&line, &records::response(&key, &registration).unwrap());
        executor.settle();
    }
    let taking = Rc::clone(&netlayer);
    executor.spawn(async move {
        loop {
            let incoming = taking.incoming().await;
            if incoming.is_proved() { drop(incoming.accept()) } else { incoming.refuse() }
        }
    });
    let asking = Rc::clone(&netlayer);
    executor.spawn(async move {
        let mut stranger = Locator::new(PublicKey([9; 32]));
        stranger.hints.servers.insert(expected);
        stranger.hints.seqpacket = true;
        if proves {
            stranger.hints.proof = introduction::Proof::Required;
        }
        let _ = asking.connect(&stranger).await;
        let _ = asking.connect_confirmed(&stranger).await;
    });
    executor.settle();

    let mut peer = Peer::new(script);
    peer.holds(line);
    act(&mut peer, Tongue::Introduction, &executor);

    let server = Server::new(reactor, Identity::from_seed(&[1; 32]), ServerOptions::default());
    friends_meet(reactor, &executor, &server);
    drop(peer);
    executor.settle();
    drop(netlayer.our_location());
}
