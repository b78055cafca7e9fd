//! Each workload calls, is answered, and leaves neither a process nor a descriptor behind.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use perf::attack::Misdeed;
use perf::bare_many::Sleeps;
use perf::process::Program;
use perf::{
    Client, Cpus, Floor, FloorOptions, MeasureError, Options, Pairs, Recorder, Side, Task, Wait, Way,
    Workload,
};
use perf::{connect, fds, large, scale};
use ring::Reactor;
use rustix::process::{Pid, Signal};
use testing::{in_own_process, on_each_driver};

/// A program whose `main` asks whether it is a server; that of a test does not.
fn program() -> Program {
    Program::at(env!("CARGO_BIN_EXE_sendright-perf"))
}

fn options() -> Options {
    Options { driver: testing::driver(), ..Options::on(&Cpus::one().unwrap()) }
}

#[track_caller]
fn answers(options: &Options, calls: usize) {
    let mut workload = Workload::start_with(&program(), options).unwrap();
    let mut recorder = Recorder::closed();
    workload.round(calls, &mut recorder).unwrap();
    workload.end().unwrap();
    let expected = calls.div_ceil(options.depth) * options.depth;
    assert_eq!(recorder.calls(), expected as u64, "{options:?}");
    assert!(recorder.quantile_ns(0.5) > 0, "{options:?}");
}

#[track_caller]
fn floor_answers(options: &FloorOptions, calls: usize) {
    let mut workload = Workload::floor_with(&program(), options).unwrap();
    let mut recorder = Recorder::closed();
    workload.round(calls, &mut recorder).unwrap();
    workload.round(calls, &mut recorder).unwrap();
    workload.end().unwrap();
    assert!(recorder.calls() >= 2 * calls as u64, "{options:?}");
}

const WAYS: [Way; 4] = [Way::Session, Way::Plain(Pairs::Fresh), Way::Plain(Pairs::Ahead), Way::Returned];

on_each_driver! {
    fn each_way_is_answered_to_each_client(_reactor: &Reactor) {
        for way in WAYS {
            for client in [Client::Async, Client::Blocking] {
                let options = Options { way, client, ..options() };
                match options.exists() {
                    true => answers(&options, 20),
                    false => assert!(matches!(Workload::start(&options), Err(MeasureError::NoSuchClient))),
                }
            }
        }
    }

    fn calls_with_a_deadline_are_answered_in_time(_reactor: &Reactor) {
        for client in [Client::Async, Client::Blocking] {
            for depth in [1, 8] {
                let within = Some(Duration::from_secs(30));
                answers(&Options { client, depth, within, ..options() }, 16);
            }
        }
        let within = Some(Duration::MAX);
        let plain = Options { way: Way::Plain(Pairs::Ahead), within, ..options() };
        assert!(matches!(Workload::start(&plain), Err(MeasureError::NoSuchClient)));
    }

    fn descriptors_go_there_and_come_back(_reactor: &Reactor) {
        for way in WAYS {
            for fds in [1, 16] {
                answers(&Options { way, fds, ..options() }, 5);
                answers(&Options { way, fds, depth: 32, ..options() }, 64);
            }
        }
        for way in [Way::Session, Way::Plain(Pairs::Fresh)] {
            for depth in [1, 32] {
                answers(&Options { way, fds: 16, depth, client: Client::Blocking, ..options() }, 64);
            }
        }
    }

    fn the_deepest_and_the_largest_are_answered(_reactor: &Reactor) {
        for way in WAYS {
            for client in [Client::Async, Client::Blocking] {
                for (depth, payload) in [(256, 8), (1, 65_536), (32, 65_536)] {
                    let options = Options { way, client, depth, payload, ..options() };
                    if options.exists() {
                        answers(&options, depth);
                    }
                }
            }
        }
    }

    fn a_rate_is_kept(_reactor: &Reactor) {
        for client in [Client::Async, Client::Blocking] {
            let mut workload = Workload::start_with(&program(), &Options { client, ..options() }).unwrap();
            let mut recorder = Recorder::open(1_000.0);
            workload.round(20, &mut recorder).unwrap();
            workload.end().unwrap();
            assert!(recorder.calls_per_s() < 1_100.0, "{}", recorder.calls_per_s());
        }
    }

    /// What takes long is made small: the suites have more of each.
    fn each_other_task_runs_and_ends(_reactor: &Reactor) {
        let cpus = Cpus::one().unwrap();
        let ours = |client| Side::ours(&cpus, testing::driver(), client);
        let mut tasks = Vec::new();
        for way in large::Way::ALL {
            let clients = [Client::Async, Client::Blocking];
            tasks.extend(clients.map(|client| Task::Large(ours(client), way, 300_000)));
        }
        for way in connect::Way::ALL {
            tasks.push(Task::Connect(ours(Client::Async), way, 4));
            tasks.push(Task::Connect(Side::raw(&cpus), way, 4));
        }
        for way in [connect::Way::Replacement, connect::Way::Confirmed] {
            tasks.push(Task::ConnectAsking(Side::raw(&cpus), way, 4));
        }
        tasks.extend(fds::Way::ALL.map(|way| Task::Transfer(ours(Client::Async), way, 8)));
        for kind in [scale::Kind::Objects, scale::Kind::Sessions] {
            for called in [scale::Called::One, scale::Called::Each] {
                tasks.push(Task::Scale(ours(Client::Async), kind, called, 40));
            }
        }
        for sleeps in [Sleeps::InTheSocket, Sleeps::InALoop] {
            tasks.push(Task::Pairs(cpus.clone(), sleeps, 40));
        }
        for packet_bytes in [large::PACKET, large::PART] {
            tasks.push(Task::LargePackets(Side::raw(&cpus), 300_000, packet_bytes));
        }
        tasks.push(Task::Beside(ours(Client::Async), 4 << 20));
        tasks.push(Task::Beside(Side::raw(&cpus), 4 << 20));
        tasks.extend(Misdeed::ALL.map(|misdeed| Task::Attacked(ours(Client::Async), misdeed)));
        tasks.push(Task::Attacked(Side::raw(&cpus), Misdeed::SmallCalls));
        tasks.push(Task::AttackedKeeper(Side::raw(&cpus), Misdeed::LargeCalls));
        for task in tasks {
            let head = task.head();
            let mut running = task.start(&program()).unwrap();
            let mut recorder = Recorder::closed();
            running.round(2, &mut recorder).unwrap();
            running.end().unwrap();
            assert!(recorder.calls() >= 2, "{head:?}");
        }
    }

    fn a_server_that_is_killed_is_told(_reactor: &Reactor) {
        for way in WAYS {
            for client in [Client::Async, Client::Blocking] {
                let options = Options { way, client, ..options() };
                if !options.exists() {
                    continue;
                }
                let mut workload = Workload::start_with(&program(), &options).unwrap();
                workload.round(10, &mut Recorder::off()).unwrap();
                kill(&workload);
                let error = workload.round(10, &mut Recorder::off()).unwrap_err();
                assert!(error.to_string().contains("the server ("), "{way:?}: {error}");
                assert!(error.to_string().contains("signal: 9"), "{way:?}: {error}");
            }
        }
    }
}

const FLOORS: [Floor; 8] = [
    Floor::PingPong,
    Floor::LoopServed,
    Floor::Loops,
    Floor::Coalesced,
    Floor::FiveSteps,
    Floor::Returned,
    Floor::ReturnedLoops,
    Floor::ReturnedAsked,
];

in_own_process! {
    fn each_floor_is_answered() {
        for floor in FLOORS {
            let each = [(1, 64, 0), (32, 64, 0), (256, 8, 0), (256, 65_536, 0), (1, 64, 16), (32, 64, 1)];
            for (depth, payload, fds) in each {
                let on = FloorOptions::on(floor, &Cpus::one().unwrap());
                floor_answers(&FloorOptions { depth, payload, fds, ..on }, depth);
            }
        }
    }

    fn a_floor_whose_server_is_killed_is_told() {
        for floor in FLOORS {
            let on = FloorOptions::on(floor, &Cpus::one().unwrap());
            let mut workload = Workload::floor_with(&program(), &on).unwrap();
            workload.round(10, &mut Recorder::off()).unwrap();
            kill(&workload);
            let error = workload.round(10, &mut Recorder::off()).unwrap_err();
            assert!(error.to_string().contains("signal: 9"), "{floor}: {error}");
        }
    }

    fn with_two_cpus_both_sides_look() {
        let Ok(cpus) = Cpus::apart() else { return };
        assert_eq!(cpus.wait(), Wait::Spin);
        for client in [Client::Async, Client::Blocking] {
            answers(&Options { client, ..Options::on(&cpus) }, 200);
        }
        floor_answers(&FloorOptions::on(Floor::PingPong, &cpus), 200);
    }

    fn a_workload_that_is_dropped_leaves_no_process() {
        let workload = Workload::start_with(&program(), &Options::on(&Cpus::one().unwrap())).unwrap();
        let id = workload.server_id();
        drop(workload);
        assert!(rustix::process::test_kill_process(Pid::from_raw(id as i32).unwrap()).is_err());
    }

    fn a_program_that_cannot_be_started_is_told() {
        let nowhere = Program::at("/nowhere/at/all");
        let error = Workload::start_with(&nowhere, &Options::on(&Cpus::one().unwrap())).unwrap_err();
        assert!(matches!(error, MeasureError::Start(_)), "{error}");
    }
}

#[track_caller]
fn kill(workload: &Workload) {
    let id = workload.server_id();
    rustix::process::kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL).unwrap();
}
