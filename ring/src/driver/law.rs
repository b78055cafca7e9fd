//! The law of `driver.rs`, tried on each driver: whatever is asked and cancelled, each token comes home once.
//!
//! It asks as the table above the drivers does, one send and one receive of a socket at a time, and knows
//! nothing of who waits.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};

use super::{Driver, DriverChoice, Ground, Sleep, SleepPlace};
use crate::budget::{Budget, COUNTED};
use crate::buffer::Pool;
use crate::clock::Clock;
use crate::driver::faults::Faults;
use crate::driver::script::Fate;
use crate::envelope::{Envelope, Room};
use crate::fd::{Fd, Kind};
use crate::message::Message;
use crate::remote::Bell;
use crate::request::{BURST_MAX, Completion, Outcome, Request, Requests, Token, Want};
use crate::sys::{self, ready};

const ENDS: usize = 6;
const REQUESTS: usize = 60;

fn bell() -> Arc<Bell> {
    Arc::new(Bell::new(SleepPlace::OwnTurn).unwrap())
}

fn want(many: bool, strange: bool, unnamed: bool) -> Want {
    let room = Room { descriptors: 4, pidfd: false };
    let burst = BURST_MAX as u8;
    Want { room, many, burst, strange, unnamed, connected: false, looked: false, packets: true }
}

fn ground(clock: Clock) -> Ground {
    let budget = Rc::new(Budget::new(0, clock.clone()));
    Ground { pool: Pool::new(4), budget, clock, place: SleepPlace::OwnTurn }
}

/// A driver at work, and what is known of its tokens.
struct Trial {
    driver: Driver,
    requests: Requests,
    fate: Rc<Fate>,
    ends: Vec<Fd>,
    /// Of each token that is away, which end and which direction it keeps busy.
    away: BTreeMap<(u32, u32), Option<(usize, bool)>>,
    busy: BTreeSet<(usize, bool)>,
    home: usize,
}

impl Trial {
    fn new(driver: Driver, fate: Rc<Fate>) -> Trial {
        let mut ends = Vec::new();
        for kind in [Kind::SeqPacket, Kind::Stream].into_iter().cycle().take(ENDS / 2) {
            let (near, far) = sys::socketpair(kind).unwrap();
            ends.extend([Fd::ours(near), Fd::ours(far)]);
        }
        let (away, busy) = (BTreeMap::new(), BTreeSet::new());
        Trial { driver, requests: Requests::default(), fate, ends, away, busy, home: 0 }
    }

    fn ask(&mut self) {
        let end = self.fate.below(self.ends.len());
        let fd = self.ends[end].clone();
        let (request, keeps) = match self.fate.below(3) {
            0 => (self.send(fd), Some((end, true))),
            1 => {
                let [many, strange, unnamed] = std::array::from_fn(|_| self.fate.happens(500));
                (Request::receive(fd, want(many, strange, unnamed)), Some((end, false)))
            }
            _ => {
                let interest = if self.fate.happens(500) { ready::READ } else { ready::WRITE };
                (Request::Ready { fd, interest }, None)
            }
        };
        if keeps.is_some_and(|keeps| !self.busy.insert(keeps)) {
            return;
        }
        let token = self.requests.insert(request);
        self.away.insert(key(token), keeps);
        self.driver.submit(token, &mut self.requests);
    }

    fn send(&self, fd: Fd) -> Request {
        let mut message = Message::new(vec![7; 1 + self.fate.below(40_000)]);
        if self.fate.happens(300) {
            message.push_descriptor(std::io::pipe().map(|(reader, _)| OwnedFd::from(reader)).unwrap());
        }
        let mut envelope = Envelope::new(message);
        envelope.seal();
        // A silent send is taken whole or not at all, which a stream does not do.
        let silent = matches!(sys::unix_kind(fd.as_fd()), Ok(Some(Kind::SeqPacket)));
        Request::Send {
            fd,
            envelope,
            silent: silent && self.fate.happens(500),
            prompt: self.fate.happens(500),
        }
    }

    fn cancel_one(&mut self) {
        let tokens = self.requests.tokens();
        if !tokens.is_empty() {
            self.driver.cancel(tokens[self.fate.below(tokens.len())]);
        }
    }

    fn turn(&mut self) {
        let mut home = Vec::new();
        self.driver.turn(&mut self.requests, Sleep::Not, &mut home).unwrap();
        for completion in home {
            self.judge(completion);
        }
    }

    fn judge(&mut self, Completion { token, outcome, last }: Completion) {
        let request = self.requests.find(token).unwrap_or_else(|| panic!("came home twice: {token:?}"));
        let fits = match request {
            Request::Send { .. } => matches!(outcome, Outcome::Sent(_)) && last,
            Request::Receive { want, .. } => matches!(outcome, Outcome::Arrived(_)) && (last || want.many),
            Request::Ready { .. } => matches!(outcome, Outcome::Ready(_)) && last,
            Request::Accept { .. } => false,
        };
        assert!(fits, "an outcome of another kind than was asked for");
        if last {
            self.home += 1;
            // As the table does where a socket is dropped before anybody has looked at this.
            if self.fate.happens(100) {
                self.driver.cancel(token);
            }
            drop(self.requests.remove(token));
            if let Some(keeps) = self.away.remove(&key(token)).unwrap() {
                self.busy.remove(&keeps);
            }
        }
    }

    fn run(mut self) {
        let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..REQUESTS {
            self.ask();
            match self.fate.below(4) {
                0 => self.cancel_one(),
                1 => {}
                _ => self.turn(),
            }
        }
        self.requests.tokens().into_iter().for_each(|token| self.driver.cancel(token));
        for _ in 0..1000 {
            self.turn();
        }
        assert!(self.requests.is_empty(), "{} never came home\n{}", self.away.len(), self.fate);
        assert!(self.home > 0);
        #[cfg(uring)]
        if let Driver::Uring(uring) = &self.driver {
            assert!(uring.is_at_rest(), "something is kept for a token that is home");
        }
        self.ends.iter().for_each(|fd| self.driver.forget(fd));
    }
}

fn key(token: Token) -> (u32, u32) {
    (token.slot, token.generation.get())
}

fn on(choice: DriverChoice) {
    for seed in 0..20 {
        let ground = ground(Clock::Real);
        match Driver::open(choice, ground, &bell()) {
            Ok((driver, _)) => Trial::new(driver, Fate::new(seed, Faults::NONE)).run(),
            Err(refusal) if choice == DriverChoice::Uring => return println!("skipped: {refusal}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn every_token_comes_home_once_from_the_ring() {
    on(DriverChoice::Uring);
}

#[test]
fn every_token_comes_home_once_from_epoll() {
    on(DriverChoice::Epoll);
}

#[test]
fn every_token_comes_home_once_from_a_script() {
    for seed in 0..300 {
        let fate = Fate::new(seed, Faults::ALL);
        let (driver, _) = Driver::script(ground(fate.clock()), Rc::clone(&fate));
        Trial::new(driver, fate).run();
    }
}

/// So many completions that the kernel has no place for more: 4,096, and those of one enter besides.
#[cfg(uring)]
const MORE_THAN_FIT: usize = 5000;

/// There is no place for what the poll of a stream has to say.
#[cfg(uring)]
#[test]
fn a_stream_outlives_a_full_queue_of_completions_and_its_end_is_told() {
    let _alone = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut driver = match Driver::open(DriverChoice::Uring, ground(Clock::Real), &bell()) {
        Ok((driver, _)) => driver,
        Err(refusal) => return println!("skipped: {refusal}"),
    };
    let mut requests = Requests::default();
    let (near, far) = sys::socketpair(Kind::SeqPacket).unwrap();
    sys::set_socket_option(near.as_fd(), sys::SocketOption::PassCredentials, 1).unwrap();
    let (near, mut far) = (Fd::ours(near), Some(Fd::ours(far)));
    let stream = requests.insert(Request::receive(near.clone(), want(true, false, false)));
    driver.submit(stream, &mut requests);
    let mut home = Vec::new();
    driver.turn(&mut requests, Sleep::Not, &mut home).unwrap();

    let mut arrived = Vec::new();
    for round in 0..3 {
        for asked in 0..MORE_THAN_FIT {
            // Writable, and home at once.
            let fd = near.clone();
            let token = requests.insert(Request::Ready { fd, interest: ready::WRITE });
            driver.submit(token, &mut requests);
            // By then no place is left, and the poll of the stream is told.
            if asked == MORE_THAN_FIT - 500 {
                let mut envelope = Envelope::new(Message::new([round]));
                envelope.seal();
                match &far {
                    Some(open) if round < 2 => drop(driver.send_now(open, &envelope).unwrap()),
                    _ => far = None,
                }
            }
        }
        // Twenty of them come home in one turn, or more.
        for _ in 0..MORE_THAN_FIT {
            driver.turn(&mut requests, Sleep::Not, &mut home).unwrap();
            for Completion { token, outcome, last } in home.drain(..) {
                if let Outcome::Arrived(result) = outcome {
                    arrived.push((result.unwrap().message.bytes().to_vec(), last));
                }
                if last {
                    drop(requests.remove(token));
                }
            }
        }
    }
    // The end is told once: the other side had hung up before it was asked for.
    let expected = [(vec![0], false), (vec![1], false), (vec![], true)];
    assert_eq!(arrived, expected);
    assert!(requests.is_empty());
}
