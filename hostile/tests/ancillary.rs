//! Packets of anybody's, with descriptors of every sort, thrown at what is served: on each driver, from the
//! same seed each time unless told otherwise.
//!
//! After each script somebody honest is served, the descriptors are those that were open before, and the
//! memory in use is bounded. Only one is played at a time, however many tests run: the kernel counts what is
//! in flight for each user.
#![allow(clippy::unwrap_used)]

mod drawing;

use std::fs::File;

use drawing::Then;
use hostile::{Memory, Scene};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use ring::Reactor;
use rustix::fs::{FlockOperation, flock};
use testing::on_each_driver;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How many scripts are played in each scene on each driver.
const CASES: u32 = 48;

/// How many are played before memory is counted: queues grow to the size they need, once.
const WARM: usize = 4;

/// What several processes of this program lock in turn: the program, which needs no name of its own.
struct Turns(File);

impl Turns {
    fn new() -> Turns {
        Turns(File::open(std::env::current_exe().unwrap()).unwrap())
    }

    /// Plays a script while no other is played.
    fn play(&self, reactor: &Reactor, scene: Scene, script: &[u8]) {
        flock(&self.0, FlockOperation::LockExclusive).unwrap();
        scene.play(reactor, script);
        flock(&self.0, FlockOperation::Unlock).unwrap();
    }
}

fn others_do_not_notice(reactor: &Reactor, scene: Scene) {
    let turns = Turns::new();
    let corpus = drawing::corpus(scene.name());
    let (first, others) = corpus.split_at(WARM);
    first.iter().for_each(|script| turns.play(reactor, scene, script));
    let memory = Memory::count(&ALLOCATOR);
    for script in others {
        turns.play(reactor, scene, script);
        memory.is_bounded();
    }
    let scripts = prop_oneof![
        2 => proptest::collection::vec(any::<u8>(), 0..600),
        1 => drawing::nearly(corpus),
    ];
    drawing::draw(CASES, scripts, Then::End, |script| {
        turns.play(reactor, scene, script);
        memory.is_bounded();
    });
}

on_each_driver! {
    fn plain_mailbox(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::PlainMailbox);
    }

    fn plain_caller(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::PlainCaller);
    }

    fn session_server(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::SessionServer);
    }

    fn session_client(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::SessionClient);
    }

    fn acceptor(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::Acceptor);
    }

    fn introduction_server(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::IntroductionServer);
    }

    fn netlayer(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::Netlayer);
    }

    // These two have no reactor, and are played beside an idle one.

    fn blocking_client(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::BlockingClient);
    }

    fn blocking_plain_caller(reactor: &Reactor) {
        others_do_not_notice(reactor, Scene::BlockingPlainCaller);
    }
}
