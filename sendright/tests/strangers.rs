//! Strangers written in Python, as Goblins is one and as the draft has them, meet ours and each other through
//! `sendright introduce`, a process of its own; and it steps out.
#![allow(clippy::unwrap_used)]

mod daemon;
mod program;
#[path = "../../introduction/tests/python/mod.rs"]
mod python;

use daemon::{Daemon, folder};
use introduction::{Connection, Expect, Identity, Locator, Netlayer, PublicKey};
use python::{FORMS, Stranger};
use ring::{Reactor, Socket};
use testing::{on_each_driver, settle};

const OURS: u8 = 1;

fn key_of(seed: u8) -> PublicKey {
    Identity::from_seed(&[seed; 32]).key()
}

/// A peer in Python that the daemon has registered.
async fn registered(reactor: &Reactor, daemon: &Daemon, form: &str, seed: u8) -> Stranger {
    let stranger = Stranger::peer_at(reactor, form, seed, &daemon.socket());
    assert_eq!(stranger.told("register").await, daemon.key.to_string());
    stranger
}

/// What ours and a stranger say to each other.
async fn meet(ours: Connection, theirs: &Stranger) {
    let ours: Socket = ours.into_stream().unwrap();
    ours.send("hello from rust").await.unwrap();
    assert_eq!(theirs.told("greet").await, "ok");
    assert_eq!(ours.receive().await.unwrap().bytes(), b"hello from python");
    drop(ours);
    theirs.told("ended").await;
}

on_each_driver! {
    fn strangers_and_ours_meet_through_the_daemon(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let folder = folder();
        let daemon = Daemon::start(folder.path());
        settle(reactor, async {
            let ours = Netlayer::new(reactor, Identity::from_seed(&[OURS; 32]));
            let line = daemon.line(reactor).await;
            let _gone = ours.add_server(line, Expect::key(daemon.key).bound()).await.unwrap();
            for (form, seed) in FORMS.into_iter().zip(2..) {
                let stranger = registered(reactor, &daemon, form, seed).await;
                let location = format!("ocapn://{}.unix-domain-socket?{}=t", key_of(seed), daemon.key);
                let location: Locator = location.parse().unwrap();
                // Whether it is registered already or only soon.
                let near = ours.connect(&location).await.unwrap();
                stranger.told(format!("answer {}", ours.key())).await;
                meet(near, &stranger).await;

                stranger.told(format!("ask {}", ours.our_location())).await;
                let incoming = ours.incoming().await;
                assert_eq!(incoming.from().key, key_of(seed));
                meet(incoming.accept(), &stranger).await;
            }
        });
    }

    fn strangers_need_the_daemon_no_longer_once_they_have_met(reactor: &Reactor) {
        if !python::is_here() {
            return;
        }
        let folder = folder();
        let daemon = Daemon::start(folder.path());
        settle(reactor, async {
            let anne = registered(reactor, &daemon, "goblins", 1).await;
            let bert = registered(reactor, &daemon, "draft", 2).await;
            anne.told(format!("ask_with {} f", key_of(2))).await;
            bert.told(format!("answer {}", key_of(1))).await;
            drop(daemon);
            for peer in [&anne, &bert] {
                peer.told("say").await;
            }
            for peer in [&anne, &bert] {
                peer.told("hear").await;
            }
        });
    }
}
