//! The clock leaps hours ahead, at every step of a world in turn: what has a deadline may be over, and
//! nothing else is. It knows nothing of machines whose clocks do so; ours read the one that nobody sets.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ring::Executor;
use ring::script::{Faults, World};
use seqpacket::{CallError, CallOptions, Mailbox, Object};
use support::{echo, message_of, null};
use testing::in_own_process;

const LEAP: Duration = Duration::from_secs(5 * 3600);

/// Less than the leap, and more than anything takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Each of them a task: one that waits as long as it takes, one that does not, one that waits for a moment.
const TASKS: u32 = 3;

/// Runs a world in which the clock leaps before that step. False if it was over before.
fn leaps_before(step: u64) -> bool {
    let world = World::new(9_100_000 + step, Faults::UNNOTICED);
    let [here, there] = [(); 2].map(|()| Executor::new(&world.reactor().unwrap()));
    let (bound, address) = testing::packet_pair();
    there.spawn(echo(Mailbox::from_fd(there.reactor(), bound).unwrap()));
    let object = Object::from_fd(here.reactor(), address).unwrap();
    let done = Rc::new(Cell::new(0));

    let (patient, ended) = (object.clone(), Rc::clone(&done));
    here.spawn(async move {
        for _ in 0..3 {
            let answer = patient.call(message_of(b"patient".to_vec(), vec![null()])).await.unwrap();
            assert_eq!((answer.bytes(), answer.descriptors()), (&b"patient"[..], 1));
        }
        ended.set(ended.get() + 1);
    });
    let (hurried, ended) = (object, Rc::clone(&done));
    here.spawn(async move {
        let options = CallOptions { within: Some(DEADLINE), ..CallOptions::default() };
        match hurried.call_with("hurried", options).await {
            Ok(answer) => assert_eq!(answer.bytes(), b"hurried"),
            Err(CallError::Deadline | CallError::Expired) => {}
            Err(error) => panic!("{error:?}"),
        }
        // The next one has all its time.
        assert_eq!(hurried.call("not any more").await.unwrap().bytes(), b"not any more");
        ended.set(ended.get() + 1);
    });
    let (reactor, ended) = (here.reactor().clone(), Rc::clone(&done));
    here.spawn(async move {
        let begun = reactor.now();
        reactor.sleep(DEADLINE).await;
        assert!(reactor.now() - begun >= DEADLINE);
        ended.set(ended.get() + 1);
    });

    let mut steps = 0;
    let all = world.run(&[&here, &there], || {
        if steps == step {
            world.leap(LEAP);
        }
        steps += 1;
        done.get() == TASKS
    });
    all.unwrap_or_else(|stuck| panic!("{stuck}"));
    steps > step + 1
}

in_own_process! {
    fn a_clock_that_leaps_at_any_step_ends_nothing_but_what_has_a_deadline() {
        let worlds = (0..).take_while(|step| leaps_before(*step)).count();
        assert!(worlds > 20, "{worlds} steps");
    }
}
