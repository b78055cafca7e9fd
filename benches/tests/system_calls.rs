//! How many system calls a session call takes on either side, counted by `strace` on each driver.
//!
//! Caller and server are processes of their own. `strace` is attached when both are warm and let go before
//! either ends, so that nothing else is counted. Where it is missing, or may not look, that is said and
//! nothing is tested.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ring::{Executor, Message, Reactor};
use rustix::process::{PTracer, Pid, Signal, kill_process, set_ptracer};
use seqpacket::{Mailbox, Object, blocking};
use testing::{
    Helper, helper, helper_argument, on_each_driver, packet_pair, receive_packet, send_packet, start_helper,
};

const WARM: usize = 500;
const COUNTED: usize = 1_600;
const PAYLOAD: [u8; 64] = [7; 64];

/// What is not for each call: the call that `strace` interrupted is made again, a word is received and one is
/// sent.
const SLACK: u64 = 16;

helper! {
    fn server(descriptors: Vec<OwnedFd>) {
        let [bound] = descriptors.try_into().unwrap();
        let _ = set_ptracer(PTracer::Any);
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, bound).unwrap();
        Executor::new(&reactor).block_on(async {
            while let Some(call) = mailbox.next().await {
                let answer = Message::from(call.bytes());
                call.answer(answer).unwrap();
            }
        });
    }

    fn caller(descriptors: Vec<OwnedFd>) {
        let [address, control] = descriptors.try_into().unwrap();
        let _ = set_ptracer(PTracer::Any);
        let depth: usize = helper_argument().parse().unwrap();
        let reactor = testing::reactor();
        let executor = Executor::new(&reactor);
        let object = Object::from_fd(&reactor, address).unwrap();
        executor.block_on(batches(&object, depth, WARM / depth));
        wait_for_word(&control);
        executor.block_on(batches(&object, depth, COUNTED / depth));
        send_packet(&control, b"done", &[]).unwrap();
        wait_for_end(&control);
        drop(object);
        executor.settle();
    }

    fn blocking_caller(descriptors: Vec<OwnedFd>) {
        let [address, control] = descriptors.try_into().unwrap();
        let _ = set_ptracer(PTracer::Any);
        let depth: usize = helper_argument().parse().unwrap();
        let object = blocking::Object::from_fd(address).unwrap();
        let many = vec![PAYLOAD; depth];
        let batch = || match depth {
            1 => drop(object.call(&PAYLOAD).unwrap()),
            _ => object.call_many(&many).into_iter().for_each(|answer| drop(answer.unwrap())),
        };
        (0..WARM / depth).for_each(|_| batch());
        wait_for_word(&control);
        (0..COUNTED / depth).for_each(|_| batch());
        send_packet(&control, b"done", &[]).unwrap();
        wait_for_end(&control);
    }
}

async fn batches(object: &Object, depth: usize, count: usize) {
    let mut calls = Vec::with_capacity(depth);
    for _ in 0..count {
        calls.extend((0..depth).map(|_| object.call(&PAYLOAD)));
        for call in calls.drain(..) {
            call.await.unwrap();
        }
    }
}

fn wait_for_word(control: &OwnedFd) {
    send_packet(control, b"ready", &[]).unwrap();
    assert_eq!(receive_packet(control).unwrap().bytes, b"go");
}

fn wait_for_end(control: &OwnedFd) {
    assert!(receive_packet(control).unwrap().bytes.is_empty());
}

/// System calls at the caller and at the server, of all calls together.
#[derive(Clone, Copy, Debug)]
struct Counted {
    caller: u64,
    server: u64,
}

impl Counted {
    /// Fails if there were more than so many for each call.
    #[track_caller]
    fn at_most(self, caller: f64, server: f64) {
        let calls = COUNTED as f64;
        println!(
            "{COUNTED} calls: {} system calls at the caller ({:.3} each), {} at the server ({:.3} each)",
            self.caller,
            self.caller as f64 / calls,
            self.server,
            self.server as f64 / calls,
        );
        let allowed = |each: f64| (each * calls) as u64 + SLACK;
        assert!(self.caller <= allowed(caller), "{self:?} of {COUNTED}: more than {caller} at the caller");
        assert!(self.server <= allowed(server), "{self:?} of {COUNTED}: more than {server} at the server");
    }
}

/// `None` where nobody can count.
fn count(caller: fn(Vec<OwnedFd>, &str) -> Helper, depth: usize) -> Option<Counted> {
    let folder = tempfile::tempdir().unwrap();
    let (address, bound) = packet_pair();
    let (control, far) = packet_pair();
    let server = start_helper!(server, vec![bound]);
    let caller = caller(vec![address, far], &depth.to_string());
    assert_eq!(receive_packet(&control).unwrap().bytes, b"ready");
    let counters = [&caller, &server].map(|helper| Counter::attach(helper, folder.path()));
    send_packet(control.as_fd(), b"go", &[]).unwrap();
    assert_eq!(receive_packet(&control).unwrap().bytes, b"done");
    let counted = counters.map(|counter| counter.and_then(Counter::total));
    drop(control);
    caller.succeeded();
    server.succeeded();
    match counted {
        [Ok(caller), Ok(server)] => Some(Counted { caller, server }),
        [caller, server] => {
            let reasons = [caller, server].map(|counted| counted.err().unwrap_or_default());
            println!("skipped: nobody counts system calls here: {}", reasons.join(" "));
            None
        }
    }
}

/// A `strace` that counts the calls of one process.
struct Counter {
    strace: Child,
    /// Kept, or it would be killed for writing to nobody.
    said: BufReader<std::process::ChildStderr>,
    table: PathBuf,
}

impl Counter {
    fn attach(helper: &Helper, folder: &Path) -> Result<Counter, String> {
        let table = folder.join(helper.pid().to_string());
        let mut command = Command::new("strace");
        // All its threads: a test is not run by the first.
        command.args(["-f", "-c", "-p", &helper.pid().to_string(), "-o"]).arg(&table);
        command.stderr(Stdio::piped()).stdin(Stdio::null());
        let mut strace = command.spawn().map_err(|error| format!("strace: {error}"))?;
        let mut said = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let counter = Counter { strace, said, table };
        if line.contains("attached") { Ok(counter) } else { Err(line) }
    }

    /// Lets go of the process: how many calls it made.
    fn total(mut self) -> Result<u64, String> {
        kill_process(Pid::from_child(&self.strace), Signal::INT).map_err(|error| error.to_string())?;
        // To its end, so that it is not blocked by what it has to say.
        std::io::copy(&mut self.said, &mut std::io::sink()).map_err(|error| error.to_string())?;
        self.strace.wait().map_err(|error| error.to_string())?;
        let table = fs::read_to_string(&self.table).map_err(|error| error.to_string())?;
        total(&table).ok_or(table)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The calls of the last line: its columns are time, seconds, microseconds for each, calls.
fn total(table: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[test]
fn the_table_of_strace_is_read() {
    let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
100.00    0.001234           1      1002        12 io_uring_enter
------ ----------- ----------- --------- --------- ----------------
100.00    0.001234           1      1002        12 total
";
    assert_eq!(total(table), Some(1002));
    assert_eq!(total("strace: could not attach"), None);
}

fn task(descriptors: Vec<OwnedFd>, depth: &str) -> Helper {
    start_helper!(caller, descriptors, depth)
}

fn thread(descriptors: Vec<OwnedFd>, depth: &str) -> Helper {
    start_helper!(blocking_caller, descriptors, depth)
}

// What is allowed, to be lowered by whoever finds a way, and raised only by whoever can show what it buys.
// One at a time these are: wait, receive, look whether there is more, send. (Received inside the ring there
// would be one, and each call would take longer.) Beyond them a reactor asks each 64 turns how many
// descriptors it may have and has (`prlimit64` and `newfstatat`).
on_each_driver! {
    fn one_call_at_a_time(_reactor: &Reactor) {
        let Some(counted) = count(task, 1) else { return };
        counted.at_most(4.04, 4.04);
    }

    fn thirty_two_calls_at_a_time(_reactor: &Reactor) {
        let Some(counted) = count(task, 32) else { return };
        counted.at_most(0.13, 0.13);
    }

    fn one_call_at_a_time_of_a_thread_that_waits(_reactor: &Reactor) {
        let Some(counted) = count(thread, 1) else { return };
        counted.at_most(2.0, 4.04);
    }

    fn thirty_two_calls_at_a_time_of_a_thread_that_waits(_reactor: &Reactor) {
        let Some(counted) = count(thread, 32) else { return };
        counted.at_most(0.1, 0.13);
    }
}
