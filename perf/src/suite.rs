//! Which tasks stand beside each other, and which groups of them make a suite.
//!
//! It owns the lists. It does not run anything.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ring::DriverChoice;
use thiserror::Error;

use crate::attack::Misdeed;
use crate::bare_many::Sleeps;
use crate::connect;
use crate::fds;
use crate::floor::{Floor, FloorOptions};
use crate::large;
use crate::place::{Cpus, Wait};
use crate::scale;
use crate::task::{Side, Task};
use crate::workload::{Client, Options, Pairs, Way};

/// Bytes of a call in `full`: 8 to 65,536.
pub const PAYLOADS: [usize; 6] = [8, 64, 1024, 4096, 16_384, 65_536];

/// Calls begun together in `full`.
pub const DEPTHS: [usize; 4] = [1, 8, 32, 256];

/// Descriptors of a call, and of its answer, in `full`.
pub const FDS: [usize; 5] = [0, 1, 4, 8, 16];

/// A list of groups with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Suite {
    /// Every way, client and driver, one at a time and 32 together, with and without a descriptor.
    Quick,
    /// The same for every payload, depth and number of descriptors.
    Full,
    /// Bare system calls alone.
    Floor,
    /// How a plain call comes by its pair, quiet and with a descriptor in flight elsewhere.
    Pairs,
    /// What a deadline adds to a call.
    Deadlines,
    /// Connecting, accepting and closing.
    Connect,
    /// 256 KiB to 64 MiB, and small calls beside them.
    Large,
    /// 1 to 8 descriptors one way, without data.
    Fds,
    /// One among up to 10,000 objects, and among up to 1,000 sessions.
    Scale,
    /// Calls beside sessions that misbehave.
    Isolation,
}

/// Nobody has heard of such a suite.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no suite {0:?}: choose {list}", list = Suite::ALL.map(Suite::name).join(", "))]
pub struct UnknownSuite(String);

/// What takes turns. The first task is the floor of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What they have in common, in words.
    pub title: String,
    /// The floor, and the others.
    pub tasks: Vec<Task>,
    /// Whether somebody else has a descriptor in flight meanwhile.
    pub parked: bool,
}

impl Group {
    /// Whether somebody misbehaves meanwhile.
    pub fn is_attacked(&self) -> bool {
        self.tasks.iter().any(|task| matches!(task, Task::Attacked(..)))
    }
}

impl Suite {
    /// All of them.
    pub const ALL: [Suite; 10] = [
        Suite::Quick,
        Suite::Full,
        Suite::Floor,
        Suite::Pairs,
        Suite::Deadlines,
        Suite::Connect,
        Suite::Large,
        Suite::Fds,
        Suite::Scale,
        Suite::Isolation,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Quick => "quick",
            Suite::Full => "full",
            Suite::Floor => "floor",
            Suite::Pairs => "pairs",
            Suite::Deadlines => "deadlines",
            Suite::Connect => "connect",
            Suite::Large => "large",
            Suite::Fds => "fds",
            Suite::Scale => "scale",
            Suite::Isolation => "isolation",
        }
    }

    /// For how long each task runs unless somebody says otherwise: `quick` ends within a minute, and `full`
    /// before one has forgotten what it was for.
    pub fn time_per_row(self) -> Duration {
        Duration::from_millis(match self {
            Suite::Quick => 800,
            Suite::Full => 200,
            Suite::Floor | Suite::Pairs | Suite::Deadlines | Suite::Connect | Suite::Large => 1_000,
            Suite::Fds | Suite::Scale => 500,
            // It is about what comes once in a hundred calls, some of which take milliseconds.
            Suite::Isolation => 2_000,
        })
    }

    /// Its groups, on these CPUs, for each of these drivers.
    pub fn groups(self, cpus: &Cpus, drivers: &[DriverChoice]) -> Vec<Group> {
        match self {
            Suite::Quick => calls(cpus, drivers, &[64], &[1, 32], &[0, 1]),
            Suite::Full => calls(cpus, drivers, &PAYLOADS, &DEPTHS, &FDS),
            Suite::Floor => floors(cpus),
            Suite::Pairs => [false, true].map(|parked| pairs(cpus, drivers, parked)).into(),
            Suite::Deadlines => vec![deadlines(cpus, drivers)],
            Suite::Connect => [1, 32].map(|depth| connections(cpus, drivers, depth)).into(),
            Suite::Large => sizes(cpus, drivers),
            Suite::Fds => (1..=fds::PAPER_US.len()).map(|count| transfers(cpus, drivers, count)).collect(),
            Suite::Scale => many(cpus, drivers),
            Suite::Isolation => Misdeed::ALL.map(|misdeed| attacked(cpus, drivers, misdeed)).into(),
        }
    }

    /// Whether its calls can be due at a rate.
    pub fn has_rate(self) -> bool {
        matches!(self, Suite::Quick | Suite::Full | Suite::Floor | Suite::Pairs | Suite::Deadlines)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(text: &str) -> Result<Suite, UnknownSuite> {
        let named = Suite::ALL.into_iter().find(|suite| suite.name() == text);
        named.ok_or_else(|| UnknownSuite(text.to_owned()))
    }
}

fn calls(
    cpus: &Cpus,
    drivers: &[DriverChoice],
    payloads: &[usize],
    depths: &[usize],
    fds: &[usize],
) -> Vec<Group> {
    let mut groups = Vec::new();
    for payload in payloads {
        for depth in depths {
            for fds in fds {
                let on = Options { payload: *payload, depth: *depth, fds: *fds, ..Options::on(cpus) };
                groups.push(sessions(&on, drivers));
                groups.push(plain(&on, drivers));
            }
        }
    }
    groups
}

fn sessions(on: &Options, drivers: &[DriverChoice]) -> Group {
    let floor = on.floor();
    let mut tasks = vec![Task::Floor(floor.clone())];
    if floor.floor == Floor::Coalesced {
        tasks.push(Task::Floor(FloorOptions { floor: Floor::PingPong, ..floor.clone() }));
    }
    if floor.depth == 1 {
        // What is within reach of whoever has more than one socket to wait for.
        let loops = [Floor::LoopServed, Floor::Loops];
        tasks.extend(loops.map(|bare| Task::Floor(FloorOptions { floor: bare, ..floor.clone() })));
    }
    for client in [Client::Async, Client::Blocking] {
        tasks.extend(
            drivers.iter().map(|driver| Task::Call(Options { client, driver: *driver, ..on.clone() })),
        );
    }
    Group { title: title(on), tasks, parked: false }
}

fn plain(on: &Options, drivers: &[DriverChoice]) -> Group {
    let on = Options { way: Way::Plain(Pairs::Ahead), ..on.clone() };
    let mut tasks = vec![Task::Floor(on.floor())];
    let ways = [
        (Way::Plain(Pairs::Ahead), Client::Async),
        (Way::Returned, Client::Async),
        (Way::Plain(Pairs::Fresh), Client::Blocking),
        (Way::Returned, Client::Blocking),
    ];
    for (way, client) in ways {
        let each = drivers.iter().map(|driver| Options { way, client, driver: *driver, ..on.clone() });
        tasks.extend(each.map(Task::Call));
    }
    Group { title: title(&on), tasks, parked: false }
}

fn floors(cpus: &Cpus) -> Vec<Group> {
    let on = |floor, depth, fds| Task::Floor(FloorOptions { depth, fds, ..FloorOptions::on(floor, cpus) });
    let tasks = |parked| {
        let mut tasks = vec![
            on(Floor::PingPong, 1, 0),
            on(Floor::FiveSteps, 1, 0),
            on(Floor::Returned, 1, 0),
            on(Floor::PingPong, 32, 0),
            on(Floor::Coalesced, 32, 0),
        ];
        tasks.extend([1, 4, 8, 16].map(|fds| on(Floor::PingPong, 1, fds)));
        let title = match parked {
            false => "64 bytes, bare system calls".to_owned(),
            true => "… with a descriptor in flight elsewhere".to_owned(),
        };
        Group { title, tasks, parked }
    };
    vec![tasks(false), tasks(true)]
}

fn pairs(cpus: &Cpus, drivers: &[DriverChoice], parked: bool) -> Group {
    let floors =
        [Floor::FiveSteps, Floor::Returned, Floor::ReturnedAsked, Floor::ReturnedLoops, Floor::PingPong];
    let mut tasks = floors.map(|floor| Task::Floor(FloorOptions::on(floor, cpus))).to_vec();
    let ways = [Way::Plain(Pairs::Fresh), Way::Plain(Pairs::Ahead), Way::Returned, Way::Session];
    for driver in drivers {
        let on = |way, client| Options { way, client, driver: *driver, ..Options::on(cpus) };
        tasks.extend(ways.map(|way| Task::Call(on(way, Client::Async))));
        let waiting = [Way::Plain(Pairs::Fresh), Way::Returned];
        tasks.extend(waiting.map(|way| Task::Call(on(way, Client::Blocking))));
    }
    let title = match parked {
        false => "64 bytes, 1 at a time".to_owned(),
        true => "64 bytes, 1 at a time, with a descriptor in flight elsewhere".to_owned(),
    };
    Group { title, tasks, parked }
}

fn deadlines(cpus: &Cpus, drivers: &[DriverChoice]) -> Group {
    let mut tasks = vec![Task::Floor(FloorOptions::on(Floor::PingPong, cpus))];
    for client in [Client::Async, Client::Blocking] {
        for within in [None, Some(Duration::from_secs(10))] {
            let on = |driver: &DriverChoice| Options { client, driver: *driver, within, ..Options::on(cpus) };
            tasks.extend(drivers.iter().map(on).map(Task::Call));
        }
    }
    Group {
        title: "64 bytes, 1 at a time, without and with 10 s to be answered".to_owned(),
        tasks,
        parked: false,
    }
}

/// The floor is how two programs connect that know no better: by a name.
fn connections(cpus: &Cpus, drivers: &[DriverChoice], depth: usize) -> Group {
    let mut ways = connect::Way::ALL.to_vec();
    ways.sort_by_key(|way| *way != connect::Way::Stream);
    let mut tasks: Vec<Task> =
        ways.into_iter().map(|way| Task::Connect(Side::raw(cpus), way, depth)).collect();
    // What is within reach of whoever trusts nobody.
    let strict = [connect::Way::Replacement, connect::Way::Confirmed];
    tasks.extend(strict.map(|way| Task::ConnectAsking(Side::raw(cpus), way, depth)));
    for way in connect::Way::ALL {
        let ours = |driver: &DriverChoice| Side::ours(cpus, *driver, Client::Async);
        tasks.extend(drivers.iter().map(|driver| Task::Connect(ours(driver), way, depth)));
    }
    let title = match depth {
        1 => "connect, accept and close, 1 at a time".to_owned(),
        depth => format!("connect, accept and close, {depth} together"),
    };
    Group { title, tasks, parked: false }
}

const SIZES: [(&str, usize); 5] = [
    ("256 KiB", 256 << 10),
    ("1 MiB", 1 << 20),
    ("4 MiB", 4 << 20),
    ("16 MiB", 16 << 20),
    ("64 MiB", 64 << 20),
];

fn sizes(cpus: &Cpus, drivers: &[DriverChoice]) -> Vec<Group> {
    let mut groups = Vec::new();
    for (name, bytes) in SIZES {
        let packets = |length| Task::LargePackets(Side::raw(cpus), bytes, length);
        let mut tasks = vec![packets(large::PACKET), packets(large::PART)];
        for way in large::Way::ALL {
            for client in [Client::Async, Client::Blocking] {
                let ours = |driver: &DriverChoice| Side::ours(cpus, *driver, client);
                tasks.extend(drivers.iter().map(|driver| Task::Large(ours(driver), way, bytes)));
            }
        }
        let title = format!("{name}, until the other side has looked at each cache line");
        groups.push(Group { title, tasks, parked: false });
    }
    let (name, bytes) = SIZES[SIZES.len() - 1];
    let mut tasks = vec![Task::Beside(Side::raw(cpus), bytes)];
    let ours = |driver: &DriverChoice| Side::ours(cpus, *driver, Client::Async);
    tasks.extend(drivers.iter().map(|driver| Task::Beside(ours(driver), bytes)));
    groups.push(Group {
        title: format!("{} bytes while {name} are under way", large::SMALL.len()),
        tasks,
        parked: false,
    });
    groups
}

fn transfers(cpus: &Cpus, drivers: &[DriverChoice], count: usize) -> Group {
    let mut tasks = vec![Task::Transfer(Side::raw(cpus), fds::Way::Raw, count)];
    for way in [fds::Way::Blocking, fds::Way::Connected, fds::Way::Typed] {
        let client = if way == fds::Way::Blocking { Client::Blocking } else { Client::Async };
        let ours = |driver: &DriverChoice| Side::ours(cpus, *driver, client);
        tasks.extend(drivers.iter().map(|driver| Task::Transfer(ours(driver), way, count)));
    }
    let paper_us = fds::PAPER_US[count - 1];
    let title = match count {
        1 => format!("1 descriptor, one way, no data (2009: {paper_us} µs)"),
        count => format!("{count} descriptors, one way, no data (2009: {paper_us} µs)"),
    };
    Group { title, tasks, parked: false }
}

/// One group for each question: whoever held the objects of two at once would need twice the descriptors.
fn many(cpus: &Cpus, drivers: &[DriverChoice]) -> Vec<Group> {
    const OBJECTS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
    const COUNTS: [(scale::Kind, &[usize]); 2] =
        [(scale::Kind::Objects, &OBJECTS), (scale::Kind::Sessions, &[1, 10, 100, 1_000])];
    let mut groups = Vec::new();
    for sleeps in [Sleeps::InTheSocket, Sleeps::InALoop] {
        let floor = FloorOptions { wait: Wait::Sleep, ..FloorOptions::on(Floor::PingPong, cpus) };
        let mut tasks = vec![Task::Floor(floor)];
        tasks.extend(OBJECTS.map(|count| Task::Pairs(cpus.clone(), sleeps, count)));
        let title = match sleeps {
            Sleeps::InTheSocket => "64 bytes, 1 at a time, bare pairs, asleep in the one that was called",
            Sleeps::InALoop => "64 bytes, 1 at a time, bare pairs, between event loops over all of them",
        };
        groups.push(Group { title: title.to_owned(), tasks, parked: false });
    }
    for (kind, counts) in COUNTS {
        for driver in drivers {
            for called in [scale::Called::Each, scale::Called::One] {
                let mut tasks = vec![Task::Floor(FloorOptions {
                    wait: Wait::Sleep,
                    ..FloorOptions::on(Floor::PingPong, cpus)
                })];
                let side = || Side::ours(cpus, *driver, Client::Async);
                tasks.extend(counts.iter().map(|count| Task::Scale(side(), kind, called, *count)));
                let how = called.name();
                let title = format!("64 bytes, 1 at a time, {}, {how}, {driver}", kind.name());
                groups.push(Group { title, tasks, parked: false });
            }
        }
    }
    groups
}

fn attacked(cpus: &Cpus, drivers: &[DriverChoice], misdeed: Misdeed) -> Group {
    let mut tasks = vec![Task::Attacked(Side::raw(cpus), misdeed)];
    let ours = |driver: &DriverChoice| Side::ours(cpus, *driver, Client::Async);
    tasks.extend(drivers.iter().map(|driver| Task::Attacked(ours(driver), misdeed)));
    if misdeed.sends_parts() {
        tasks.push(Task::AttackedKeeper(Side::raw(cpus), misdeed));
    }
    Group { title: format!("a small call beside {}", misdeed.name()), tasks, parked: false }
}

/// What the tasks of a group have in common.
fn title(options: &Options) -> String {
    let way = match options.way {
        Way::Session => "sessions",
        Way::Plain(_) | Way::Returned => "plain objects",
    };
    let together = match options.depth {
        0 | 1 => "1 at a time".to_owned(),
        depth => format!("{depth} together"),
    };
    let fds = match options.fds {
        0 => String::new(),
        1 => ", 1 descriptor each way".to_owned(),
        fds => format!(", {fds} descriptors each way"),
    };
    format!("{way}, {} bytes, {together}{fds}", options.payload)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const DRIVERS: [DriverChoice; 2] = [DriverChoice::Uring, DriverChoice::Epoll];

    #[test]
    fn each_suite_is_found_by_its_name() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
        }
        let told = "quik".parse::<Suite>().unwrap_err().to_string();
        assert!(told.contains("\"quik\"") && told.contains("quick, full"), "{told}");
    }

    #[test]
    fn each_group_begins_with_its_floor() {
        for suite in Suite::ALL {
            for group in suite.groups(&Cpus::one().unwrap(), &DRIVERS) {
                assert_eq!(group.tasks[0].driver(), None, "{suite}: {}", group.title);
                assert!(group.tasks.len() > 1, "{suite}: {}", group.title);
            }
        }
    }

    #[test]
    fn quick_holds_every_way_client_and_driver_at_both_depths_with_and_without_a_descriptor() {
        let groups = Suite::Quick.groups(&Cpus::one().unwrap(), &DRIVERS);
        let tasks: Vec<Task> = groups.into_iter().flat_map(|group| group.tasks).collect();
        let ways = ["session", "plain", "returned"];
        let clients = ways.into_iter().flat_map(|way| [(way, "async"), (way, "blocking")]);
        for (way, client) in clients {
            for driver in ["uring", "epoll"] {
                for (depth, fds) in [(1, 0), (1, 1), (32, 0), (32, 1)] {
                    let is_there = tasks.iter().map(Task::head).any(|head| {
                        (head.way.as_str(), head.client.as_str()) == (way, client)
                            && (head.driver.as_str(), head.depth, head.fds) == (driver, depth, fds)
                    });
                    assert!(is_there, "{way}, {client}, {driver}, {depth} deep, {fds} descriptors");
                }
            }
        }
    }

    #[test]
    fn quick_ends_within_a_minute() {
        let groups = Suite::Quick.groups(&Cpus::one().unwrap(), &DRIVERS);
        let rows = groups.iter().map(|group| group.tasks.len()).sum::<usize>();
        let time = crate::run::estimate(&groups, Suite::Quick.time_per_row());
        assert!(time < Duration::from_secs(60), "{rows} rows take {time:?}");
    }

    #[test]
    fn no_task_stands_twice_in_a_group() {
        for suite in Suite::ALL {
            for group in suite.groups(&Cpus::one().unwrap(), &DRIVERS) {
                for (index, task) in group.tasks.iter().enumerate() {
                    assert!(!group.tasks[..index].contains(task), "{suite}: {}: {task:?}", group.title);
                }
            }
        }
    }
}
