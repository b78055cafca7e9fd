//! One table's rows, taking turns: who they are, how many calls of each make a round, and what they took.

use std::time::{Duration, Instant};

use perf::{Client, Cpus, Floor, FloorOptions, Head, Options, Pairs, Recorder, Row, Wait, Way, Workload};
use ring::DriverChoice;

use crate::Failure;
use crate::child::{self, Child};
use crate::peer::{self, Calls, PAYLOAD, Peer};

/// In how many rounds the time of a row is spent.
const ROUNDS: u32 = 25;

/// How long the speed of a row is looked at before it counts; its caches are warm then.
const LOOK: Duration = Duration::from_millis(20);

/// What the rows of one table have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    pub cpus: Cpus,
    pub depth: usize,
    pub fds: usize,
}

/// Somebody who makes calls.
struct Contestant {
    name: String,
    driver: &'static str,
    way: &'static str,
    client: &'static str,
    wait: Wait,
    caller: Caller,
    batches: usize,
    recorder: Recorder,
}

enum Caller {
    /// Ours, or bare system calls.
    Ours(Box<Workload>),
    /// The caller before its server, which ends when the caller has gone.
    Peer { calls: Calls, server: Child },
}

/// What a table says of one of its rows.
pub enum Outcome {
    Measured(Box<Row>),
    /// It could not go on, and why.
    Failed {
        name: String,
        why: String,
    },
}

/// All rows of a table, ready to take turns.
pub struct Contest {
    setting: Setting,
    contestants: Vec<Contestant>,
    failed: Vec<Outcome>,
}

impl Contest {
    /// Starts everybody who can do this and is wanted, after the floor that all are compared with. Who else
    /// cannot be started has failed, and costs the others nothing.
    pub fn start(setting: &Setting, names: &[String]) -> Result<Contest, Failure> {
        let mut contest = Contest { setting: setting.clone(), contestants: Vec::new(), failed: Vec::new() };
        let is_wanted = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word));
        contest.contestants.push(contest.floor(Floor::PingPong)?);
        if let Some(floor) = second_floor(setting)
            && is_wanted(&floor.to_string())
        {
            let started = contest.floor(floor);
            contest.add(&floor.to_string(), started);
        }
        for ours in ours(setting) {
            let name = name_of(&ours);
            if is_wanted(&name) {
                let started = contest.ours(&ours);
                contest.add(&name, started);
            }
        }
        for peer in Peer::ALL {
            let name = peer.to_string();
            if is_wanted(&name) && (setting.fds == 0 || peer.carries_descriptors()) {
                let started = contest.peer(peer);
                contest.add(&name, started);
            }
        }
        Ok(contest)
    }

    fn add(&mut self, name: &str, started: Result<Contestant, Failure>) {
        match started {
            Ok(contestant) => self.contestants.push(contestant),
            Err(error) => self.failed.push(failed(name, &error)),
        }
    }

    fn floor(&self, floor: Floor) -> Result<Contestant, Failure> {
        let Setting { cpus, depth, fds } = self.setting.clone();
        let options = FloorOptions { depth, fds, payload: PAYLOAD, ..FloorOptions::on(floor, &cpus) };
        let (way, client, wait) = ("raw", "blocking", options.wait);
        let caller = Caller::Ours(Box::new(Workload::floor(&options)?));
        Ok(contestant(floor.to_string(), "none", way, client, wait, caller))
    }

    fn ours(&self, options: &Options) -> Result<Contestant, Failure> {
        // Of each side that has a reactor: where the client has none, of the server.
        let driver = match options.driver {
            DriverChoice::Uring => "uring",
            _ => "epoll",
        };
        let way = match options.way {
            Way::Session => "session",
            Way::Returned => "returned",
            _ => "plain",
        };
        let client = if options.client == Client::Blocking { "blocking" } else { "async" };
        let caller = Caller::Ours(Box::new(Workload::start(options)?));
        Ok(contestant(name_of(options), driver, way, client, options.wait, caller))
    }

    fn peer(&self, peer: Peer) -> Result<Contestant, Failure> {
        let Setting { cpus, depth, fds } = &self.setting;
        let wait = peer.wait(cpus.wait());
        let terms = child::terms(peer, *depth, *fds, wait);
        let (mut server, end) = Child::start(peer, terms, cpus)?;
        let calls = match peer::call(peer, terms, end, &server) {
            Ok(calls) => calls,
            Err(error) => return Err(server.blame(error)),
        };
        let caller = Caller::Peer { calls, server };
        let mut contestant = contestant(peer.to_string(), "none", "peer", peer.client(), wait, caller);
        contestant.look(self.setting.depth)?;
        contestant.rest()?;
        Ok(contestant)
    }

    /// So many seconds of each, in turns. Who cannot go on is taken out, with all that it has measured.
    pub fn run(mut self, seconds: f64) -> Result<Vec<Outcome>, Failure> {
        let depth = self.setting.depth;
        self.setting.cpus.pin_client()?;
        let round = Duration::from_secs_f64(seconds) / ROUNDS;
        self.each(|contestant| contestant.prepare(round, depth));
        for _ in 0..ROUNDS {
            self.each(|contestant| contestant.round(depth));
        }
        let floor = match self.contestants.first() {
            Some(floor) if floor.name == Floor::PingPong.to_string() => floor.recorder.clone(),
            _ => return Err("there is no floor to compare anybody with".into()),
        };
        let mut outcomes = Vec::new();
        for contestant in self.contestants {
            let (row, name) = (contestant.row(&self.setting, &floor), contestant.name.clone());
            outcomes.push(match contestant.end() {
                Ok(()) => Outcome::Measured(Box::new(row)),
                Err(error) => failed(&name, &error),
            });
        }
        outcomes.extend(self.failed);
        Ok(outcomes)
    }

    fn each(&mut self, mut turn: impl FnMut(&mut Contestant) -> Result<(), Failure>) {
        let all = std::mem::take(&mut self.contestants);
        for mut contestant in all {
            match turn(&mut contestant) {
                Ok(()) => self.contestants.push(contestant),
                Err(error) => self.failed.push(failed(&contestant.name, &error)),
            }
        }
    }
}

fn failed(name: &str, error: &Failure) -> Outcome {
    Outcome::Failed { name: name.to_owned(), why: error.to_string() }
}

/// The bare system calls that are in a table beside the ping-pong.
fn second_floor(setting: &Setting) -> Option<Floor> {
    match (setting.depth, setting.fds) {
        (1, 0) => Some(Floor::FiveSteps),
        (1, _) => None,
        _ => Some(Floor::Coalesced),
    }
}

/// Ours, as the libraries are by themselves: nothing but driver, CPU and wait policy is chosen.
fn ours(setting: &Setting) -> Vec<Options> {
    let Setting { cpus, depth, fds } = setting;
    let base = Options { depth: *depth, fds: *fds, payload: PAYLOAD, ..Options::on(cpus) };
    let mut ours = Vec::new();
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        for way in [Way::Session, Way::Plain(Pairs::Ahead), Way::Returned] {
            ours.push(Options { driver, way, ..base.clone() });
        }
        for way in [Way::Session, Way::Plain(Pairs::Fresh)] {
            ours.push(Options { client: Client::Blocking, driver, way, ..base.clone() });
        }
    }
    ours
}

fn name_of(options: &Options) -> String {
    let way = match options.way {
        Way::Session => "session",
        Way::Plain(Pairs::Fresh) => "plain, fresh",
        Way::Plain(Pairs::Ahead) => "plain, ahead",
        _ => "plain, returned",
    };
    format!("{way}, {}, {}", options.client, options.driver)
}

fn contestant(
    name: String,
    driver: &'static str,
    way: &'static str,
    client: &'static str,
    wait: Wait,
    caller: Caller,
) -> Contestant {
    Contestant { name, driver, way, client, wait, caller, batches: 1, recorder: Recorder::closed() }
}

impl Contestant {
    /// Finds out how many batches make a round.
    fn prepare(&mut self, round: Duration, depth: usize) -> Result<(), Failure> {
        self.wake()?;
        let each = self.look(depth)?;
        self.batches = (round.as_secs_f64() / each.as_secs_f64()).clamp(1.0, 1e7) as usize;
        self.rest()
    }

    /// A little while without counting. What a batch takes.
    fn look(&mut self, depth: usize) -> Result<Duration, Failure> {
        let (start, mut batches) = (Instant::now(), 0);
        while start.elapsed() < LOOK {
            self.calls(10, depth, &mut Recorder::off())?;
            batches += 10;
        }
        Ok((start.elapsed() / batches).max(Duration::from_nanos(1)))
    }

    fn round(&mut self, depth: usize) -> Result<(), Failure> {
        self.wake()?;
        let mut recorder = std::mem::replace(&mut self.recorder, Recorder::off());
        let result = self.calls(self.batches, depth, &mut recorder);
        self.recorder = recorder;
        self.rest()?;
        result
    }

    fn calls(&mut self, batches: usize, depth: usize, recorder: &mut Recorder) -> Result<(), Failure> {
        match &mut self.caller {
            Caller::Ours(workload) => Ok(workload.round(batches * depth, recorder)?),
            Caller::Peer { calls, server } => calls(batches, recorder).map_err(|error| server.blame(error)),
        }
    }

    fn wake(&self) -> Result<(), Failure> {
        if let Caller::Peer { server, .. } = &self.caller { server.wake() } else { Ok(()) }
    }

    fn rest(&self) -> Result<(), Failure> {
        if let Caller::Peer { server, .. } = &self.caller { server.rest() } else { Ok(()) }
    }

    fn row(&self, setting: &Setting, floor: &Recorder) -> Row {
        let head = Head {
            name: self.name.clone(),
            driver: self.driver.into(),
            way: self.way.into(),
            client: self.client.into(),
            wait: self.wait.to_string(),
            cpus: setting.cpus.to_string(),
            depth: setting.depth,
            payload: PAYLOAD,
            fds: setting.fds,
        };
        Row::new("peers", head, &self.recorder, floor)
    }

    /// Gives up the calling side, which the server notices, and waits for the server.
    fn end(self) -> Result<(), Failure> {
        match self.caller {
            Caller::Ours(workload) => Ok(workload.end()?),
            Caller::Peer { calls, server } => {
                drop(calls);
                server.end()
            }
        }
    }
}
