//! A million plain calls between two spinning processes, and not one lost answer.
//!
//! A plain call's answerer sends and closes at once, and a receive that looks just then can be told "end of
//! file" although the answer is queued. Whoever believes that loses an answer now and then, and only where
//! both sides spin. So this is where to look: each call has a number, which is to be seen once by the server
//! and answered once, with the right payload.
//!
//! With two CPUs each process has one for itself and never sleeps; with one they take turns. It is not a
//! benchmark. The exit status says whether every call was answered exactly once.
//!
//! ```text
//! cargo run --release -p sendright-examples --example million_calls [CALLS [DEPTH]]
//! ```

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::{Executor, Reactor};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};
use seqpacket::{PlainMailbox, PlainObject, plain_data};

type Failure = Box<dyn Error>;

const CALLS_DEFAULT: u64 = 1_000_000;

/// How many calls are under way at a time, unless said otherwise.
const DEPTH_DEFAULT: u64 = 1;

/// The number under which the server finds its mailbox.
const MAILBOX: i32 = 3;

/// How long nothing may happen before what is missing counts as lost. An answer takes microseconds.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How many of the numbers that went wrong are printed.
const SHOWN_MAX: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["serve", calls] => number(calls).and_then(serve),
        [] => call(CALLS_DEFAULT, DEPTH_DEFAULT),
        [calls] => number(calls).and_then(|calls| call(calls, DEPTH_DEFAULT)),
        [calls, depth] => number(calls).and_then(|calls| call(calls, number(depth)?)),
        _ => Err("usage: million_calls [CALLS [DEPTH]]".into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("million_calls: {error}");
            ExitCode::from(2)
        }
    }
}

/// At least 1; digits may be grouped by commas or underscores.
fn number(text: &str) -> Result<u64, Failure> {
    match text.replace([',', '_'], "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is not a number of at least 1").into()),
    }
}

// -- what is said ------------------------------------------------------------------------------------------

/// A call: its number, and that number once more in other bits.
type Question = [u64; 2];

/// An answer, which nobody gives by accident: the number, and what can only be computed from it.
type Reply = [u64; 2];

fn question(number: u64) -> Question {
    [number, !number]
}

/// The number of a question, if it is one.
fn read(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_ne_bytes(*bytes.first_chunk()?);
    (bytes == question(number).map(u64::to_ne_bytes).as_flattened()).then_some(number)
}

fn reply(number: u64) -> Reply {
    // Odd, so that no two numbers give the same product.
    [number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)]
}

/// How often each number was seen.
struct Tally(Vec<u8>);

impl Tally {
    fn new(calls: u64) -> Result<Tally, Failure> {
        Ok(Tally(vec![0; usize::try_from(calls)?]))
    }

    /// False for a number that nobody used.
    fn count(&mut self, number: u64) -> bool {
        let seen = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number));
        seen.map(|times| *times = times.saturating_add(1)).is_some()
    }

    fn never(&self) -> Vec<usize> {
        self.numbers(|times| times == 0)
    }

    fn repeatedly(&self) -> Vec<usize> {
        self.numbers(|times| times > 1)
    }

    fn numbers(&self, which: impl Fn(u8) -> bool) -> Vec<usize> {
        self.0.iter().enumerate().filter(|(_, times)| which(**times)).map(|(number, _)| number).collect()
    }
}

fn show(numbers: &[usize]) -> String {
    let shown: Vec<_> = numbers.iter().take(SHOWN_MAX).map(usize::to_string).collect();
    match shown.len() {
        0 => grouped(0),
        _ if numbers.len() > SHOWN_MAX => format!("{} (numbers {}, ...)", numbers.len(), shown.join(", ")),
        _ => format!("{} (numbers {})", numbers.len(), shown.join(", ")),
    }
}

/// 1,000,000 rather than 1000000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

// -- spinning ----------------------------------------------------------------------------------------------

/// Which of the two processes this is.
#[derive(Clone, Copy)]
enum Side {
    Caller,
    Server,
}

/// Takes a CPU for this side alone, if there are two: its number.
fn pin(side: Side) -> Result<Option<usize>, Failure> {
    let allowed = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
    let [first, second] = cpus[..] else { return Ok(None) };
    let cpu = match side {
        Side::Caller => first,
        Side::Server => second,
    };
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(Some(cpu))
}

/// Turns the reactor without ever sleeping until its tasks have ended. False if `progress` does not change
/// for so long that it never will.
fn spin(executor: &Executor, yields: bool, progress: &Cell<u64>) -> bool {
    let (mut seen, mut since) = (progress.get(), Instant::now());
    // Runs what can run, looks once whether anything has happened, and comes back.
    while executor.settle().tasks_left {
        if progress.get() != seen {
            (seen, since) = (progress.get(), Instant::now());
        } else if since.elapsed() > SILENCE_MAX {
            return false;
        }
        if yields {
            sched_yield();
        }
    }
    true
}

// -- the caller --------------------------------------------------------------------------------------------

/// What became of the calls.
struct Results {
    next: Cell<u64>,
    ended: Cell<u64>,
    answers: RefCell<Tally>,
    wrong: Cell<u64>,
    failed: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

fn call(calls: u64, depth: u64) -> Result<bool, Failure> {
    let (object, mailbox) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Before pinning, which the child would inherit.
    let mut server = start_server(mailbox, calls)?;
    let cpu = pin(Side::Caller)?;

    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let object = PlainObject::from_fd(&reactor, object)?;
    println!("{} plain calls, {depth} at a time, on {}", grouped(calls), reactor.driver());
    match cpu {
        Some(_) => println!("two processes, both spinning, on a CPU each"),
        None => println!("two processes, taking turns on the only CPU"),
    }

    let results = Rc::new(Results {
        next: Cell::new(0),
        ended: Cell::new(0),
        answers: RefCell::new(Tally::new(calls)?),
        wrong: Cell::new(0),
        failed: Cell::new(0),
        first_error: RefCell::new(None),
    });
    for _ in 0..depth.min(calls) {
        executor.spawn(call_one_after_another(object.clone(), calls, Rc::clone(&results)));
    }
    // The tasks hold the object now, and let it go when they have ended.
    drop(object);
    let start = Instant::now();
    let all_ended = spin(&executor, cpu.is_none(), &results.ended);
    let time = start.elapsed();
    drop(executor);
    drop(reactor);
    if !all_ended {
        println!("nothing has happened for {SILENCE_MAX:?}");
        // It may be what hangs.
        server.kill()?;
    }
    let server_content = server.wait()?.success();
    Ok(verdict(&results, calls, time) && server_content)
}

fn start_server(mailbox: OwnedFd, calls: u64) -> Result<std::process::Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", &calls.to_string()]);
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok(command.spawn()?)
}

async fn call_one_after_another(object: PlainObject, calls: u64, results: Rc<Results>) {
    while results.next.get() < calls {
        let number = results.next.replace(results.next.get() + 1);
        match object.call(plain_data(&question(number))).await {
            // Counted is the number that came, so that an answer which belongs to another call shows as one
            // lost and one duplicated.
            Ok(answer) => match answer.read::<Reply>() {
                Ok(said) if said == reply(said[0]) && results.answers.borrow_mut().count(said[0]) => {}
                _ => results.wrong.set(results.wrong.get() + 1),
            },
            Err(error) => {
                results.failed.set(results.failed.get() + 1);
                results.first_error.borrow_mut().get_or_insert_with(|| format!("call {number}: {error}"));
            }
        }
        results.ended.set(results.ended.get() + 1);
    }
}

fn verdict(results: &Results, calls: u64, time: Duration) -> bool {
    let answers = results.answers.borrow();
    let (lost, duplicated) = (answers.never(), answers.repeatedly());
    println!("answered: {}", grouped(calls - lost.len() as u64));
    println!("lost: {}", show(&lost));
    println!("duplicated: {}", show(&duplicated));
    println!("wrong: {}", grouped(results.wrong.get()));
    if let Some(error) = results.first_error.borrow().as_ref() {
        println!("{} calls ended with an error, the first: {error}", grouped(results.failed.get()));
    }
    let per_second = results.ended.get() as f64 / time.as_secs_f64();
    println!("in {:.2} s: {} calls per second", time.as_secs_f64(), grouped(per_second as u64));
    lost.is_empty() && duplicated.is_empty() && results.wrong.get() == 0
}

// -- the server --------------------------------------------------------------------------------------------

fn serve(calls: u64) -> Result<bool, Failure> {
    let mailbox = ring::inherit::take(MAILBOX)?;
    let cpu = pin(Side::Server)?;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    let mailbox = Rc::new(PlainMailbox::from_fd(&reactor, mailbox)?);
    let served = Rc::new(Cell::new(0));
    let tally = Rc::new(RefCell::new(Tally::new(calls)?));
    executor.spawn(answer_all(Rc::clone(&mailbox), Rc::clone(&served), Rc::clone(&tally)));
    let all_gone = spin(&executor, cpu.is_none(), &served);

    let tally = tally.borrow();
    let (missed, repeated) = (tally.never(), tally.repeatedly());
    let violations = mailbox.violations();
    let is_clean = violations == Default::default();
    let is_content = all_gone && is_clean && missed.is_empty() && repeated.is_empty();
    if !is_content {
        println!("the server was not called: {}; repeatedly: {}", show(&missed), show(&repeated));
        println!("what was no call, at the server: {violations:?}");
    }
    Ok(is_content)
}

async fn answer_all(mailbox: Rc<PlainMailbox>, served: Rc<Cell<u64>>, tally: Rc<RefCell<Tally>>) {
    // Until nobody holds the object any more.
    while let Some(call) = mailbox.next().await {
        served.set(served.get() + 1);
        // What is not answered shows as lost.
        let Some(number) = read(call.bytes()) else { continue };
        if tally.borrow_mut().count(number) {
            // If the caller has gone, it will say so itself.
            let _ = call.answer(plain_data(&reply(number)));
        }
    }
}
