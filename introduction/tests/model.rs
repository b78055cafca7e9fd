//! The server against a model of a few lines: peers come, go, come again before they have gone, ask for each
//! other, die half way and talk nonsense, in any order, and each step must end as the model says.
//!
//! The peers are raw; the model knows no bytes. Failing sequences are made shorter by `proptest`.
#![allow(clippy::unwrap_used)]

mod raw;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use introduction::{Identity, Server, ServerOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use raw::{RawPeer, are_connected, introduction, is_closed, is_quiet};
use ring::{Reactor, Socket};
use testing::{Census, on_each_driver, settle};

/// How long the server may take to agree: microseconds, on a machine that does nothing else.
const AGREEMENT_TIME_MAX: Duration = testing::WAIT_TIME_MAX;

/// So many peers there are, or could be.
const PEERS: u8 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Connects and registers, whether it was registered before or not.
    Come(u8),
    Go(u8),
    /// The first asks for the second, who may be itself or nobody.
    Ask(u8, u8),
    Die(u8, HalfWay),
    /// Connects without saying who it is, and says this much of something.
    Lurk(u8, usize),
}

#[derive(Clone, Copy, Debug)]
enum HalfWay {
    Nonsense,
    HalfRecord,
    /// It has asked for this one, and its descriptor does not follow.
    Descriptorless(u8),
    /// In the name of this one.
    InAnothersName(u8),
}

fn steps() -> impl Strategy<Value = Step> {
    let peer = 0..PEERS;
    let half_way = prop_oneof![
        Just(HalfWay::Nonsense),
        Just(HalfWay::HalfRecord),
        peer.clone().prop_map(HalfWay::Descriptorless),
        peer.clone().prop_map(HalfWay::InAnothersName),
    ];
    prop_oneof![
        4 => peer.clone().prop_map(Step::Come),
        2 => peer.clone().prop_map(Step::Go),
        8 => (peer.clone(), peer.clone()).prop_map(|(from, to)| Step::Ask(from, to)),
        2 => (peer.clone(), half_way).prop_map(|(peer, how)| Step::Die(peer, how)),
        1 => (peer, 0_usize..176).prop_map(|(peer, length)| Step::Lurk(peer, length)),
    ]
}

/// All that there is to know: who is there, and who waits for whom.
#[derive(Default)]
struct Model {
    here: BTreeMap<u8, RawPeer>,
    waiting: Vec<Waiting>,
    violations: u64,
}

struct Waiting {
    from: u8,
    to: u8,
    near: Socket,
}

fn designator(peer: u8) -> String {
    Identity::from_seed(&[peer + 1; 32]).key().to_string()
}

/// A step that never ends is a failure like any other, and the sequence that led there is made shorter.
async fn in_time(reactor: &Reactor, step: impl Future<Output = ()>) {
    let mut step = std::pin::pin!(step);
    let mut sleep = std::pin::pin!(reactor.sleep(AGREEMENT_TIME_MAX));
    std::future::poll_fn(|context| {
        if step.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(());
        }
        assert!(sleep.as_mut().poll(context).is_pending(), "a step does not end");
        std::task::Poll::Pending
    })
    .await;
}

/// Waits until the server agrees with the model.
async fn agreed(reactor: &Reactor, server: &Server, model: &Model) {
    let deadline = Instant::now() + AGREEMENT_TIME_MAX;
    loop {
        let seen = (server.registered(), server.connections(), server.introductions());
        let expected = (model.here.len(), model.here.len(), model.waiting.len());
        if seen == expected && server.stats().violations == model.violations {
            return;
        }
        assert!(Instant::now() < deadline, "the server has {seen:?}, and should have {expected:?}");
        reactor.sleep(Duration::from_micros(100)).await;
    }
}

impl Model {
    /// With a connection goes what was asked for over it.
    async fn is_gone(&mut self, peer: u8) {
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting {
            if waiting.from == peer {
                is_closed(&waiting.near).await;
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    async fn step(&mut self, reactor: &Reactor, server: &Server, step: Step) {
        match step {
            Step::Come(name) => {
                let (peer, far) = RawPeer::new(reactor, name + 1);
                server.admit(far).unwrap();
                peer.register().await;
                if let Some(before) = self.here.insert(name, peer) {
                    assert_eq!(before.stream.rest().await, b"");
                    self.is_gone(name).await;
                }
                let peer = &self.here[&name];
                for waiting in self.waiting.extract_if(.., |waiting| waiting.to == name) {
                    are_connected(waiting.near, peer.introduced_by(&designator(waiting.from)).await).await;
                }
            }
            Step::Go(name) => {
                if self.here.remove(&name).is_some() {
                    self.is_gone(name).await;
                }
            }
            Step::Ask(from, to) => {
                let Some(peer) = self.here.get(&from) else { return };
                let near = peer.ask_for(&designator(to)).await;
                match self.here.get(&to) {
                    Some(other) => are_connected(near, other.introduced_by(&designator(from)).await).await,
                    None => self.waiting.push(Waiting { from, to, near }),
                }
            }
            Step::Die(name, how) => {
                let Some(peer) = self.here.remove(&name) else { return };
                match how {
                    HalfWay::Nonsense => {
                        peer.stream.say(b"nonsense").await;
                        self.violations += 1;
                        assert_eq!(peer.stream.rest().await, b"");
                    }
                    HalfWay::HalfRecord => peer.stream.say(b"<18'uds:new-con").await,
                    HalfWay::Descriptorless(to) => {
                        peer.stream.say(introduction(&designator(name), &designator(to))).await;
                    }
                    HalfWay::InAnothersName(other) => {
                        // Its own name is nobody else's.
                        let other = if other == name { PEERS } else { other };
                        peer.stream.say(introduction(&designator(other), &designator(name))).await;
                        peer.stream.pass(raw::DUMMY, testing::stream_pair().0).await;
                        self.violations += 1;
                        assert_eq!(peer.stream.rest().await, b"");
                    }
                }
                drop(peer);
                self.is_gone(name).await;
            }
            Step::Lurk(name, length) => {
                let (peer, far) = RawPeer::new(reactor, name + 1);
                server.admit(far).unwrap();
                let registration = peer.registration();
                if length > 0 {
                    peer.stream.say(&registration[..length]).await;
                }
            }
        }
    }
}

on_each_driver! {
    fn each_sequence_of_steps_ends_as_the_model_says(reactor: &Reactor) {
        let mut config = Config { cases: 128, failure_persistence: None, ..Config::default() };
        config.max_shrink_time = 30_000;
        let sequences = prop::collection::vec(steps(), 1..40);
        let census = Census::take();
        TestRunner::new(config).run(&sequences, |sequence| {
            let mut options = ServerOptions::default();
            // Quotas have tests of their own; here nobody is to be held up by one.
            options.held_max = 64;
            let server = Server::new(reactor, Identity::from_seed(&[100; 32]), options);
            let mut model = Model::default();
            settle(reactor, async {
                for step in sequence {
                    in_time(reactor, model.step(reactor, &server, step)).await;
                    agreed(reactor, &server, &model).await;
                    assert!(model.waiting.iter().all(|waiting| is_quiet(&waiting.near)));
                }
                drop(server);
                for peer in model.here.values() {
                    assert_eq!(peer.stream.rest().await, b"");
                }
                for waiting in &model.waiting {
                    is_closed(&waiting.near).await;
                }
            });
            Ok(())
        })
        .unwrap();
        testing::turn(reactor);
        census.unchanged();
    }
}
