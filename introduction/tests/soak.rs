//! Two thousand introductions among peers that come and go: each connects the right two, there are never more
//! descriptors than there may be, and none is left. `examples/soak.rs` does it for long.
#![allow(clippy::unwrap_used)]

mod crowd;

use crowd::{Crowd, descriptors, descriptors_max};
use introduction::Proof;
use ring::Reactor;
use testing::{on_each_driver, settle};

const INTRODUCTIONS: usize = 2000;
const PEERS: usize = 40;

fn soak(reactor: &Reactor, proof: Proof) {
    let before = descriptors().unwrap();
    settle(reactor, async {
        let server = crowd::server(reactor, PEERS).unwrap();
        let mut crowd = Crowd::gather(reactor, &server, PEERS, proof).await.unwrap();
        for _ in 0..INTRODUCTIONS {
            crowd.meet().await.unwrap();
        }
        let most = crowd.descriptors_most;
        assert!(most <= descriptors_max(before, PEERS), "{most} open at a time");
        assert!(crowd.returns > INTRODUCTIONS / 20, "{} have come back", crowd.returns);
        assert!(crowd.to_the_absent > 0);
        drop(crowd);
        let stats = server.stats();
        assert_eq!((stats.introductions, stats.passed_on), (INTRODUCTIONS as u64, INTRODUCTIONS as u64));
        assert_eq!((stats.violations, stats.late, stats.lost, stats.evicted), (0, 0, 0, 0));
    });
    testing::turn(reactor);
    ring::closer_idle();
    assert_eq!(descriptors().unwrap(), before);
}

on_each_driver! {
    fn two_thousand_introductions_leave_nothing(reactor: &Reactor) {
        soak(reactor, Proof::None);
    }

    fn two_thousand_proved_introductions_leave_nothing(reactor: &Reactor) {
        soak(reactor, Proof::Required);
    }
}
