//! A test body in a process of its own.
//!
//! The test that `cargo test` runs starts the same program again, asking for that one test and saying in the
//! environment that it is the body now; it collects what the body prints and how it ends. Around the body, in
//! its process, descriptors are counted. This file owns that process and its time limit; it knows drivers
//! only as a word handed on to the body, and nothing of what bodies do.

use std::env;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ring::{Config, Reactor};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::census::Census;
use crate::role::{self, without_crate};
use crate::wait::poll_until;

/// How long a body may run before it is killed and reported as hung. Generous: most take milliseconds, none
/// should take ten seconds, and a slow shared machine must not fail one.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(120);

/// How many worlds a body is tried in.
#[cfg(feature = "script")]
const SEEDS: u64 = 40;

/// How much of what a body prints is kept.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// How long output is still read after the body and all it started are killed.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// When a body whose parent is gone ends itself: so much later than the parent would kill it.
const ORPHAN_TIME_MAX: Duration = Duration::from_secs(30);

/// What a body may take that was asked for many simulated worlds.
const LONG_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// Printed by a body that came to its end. Without it a success could be that of a program which found no
/// test of that name, or of a body that called `exit`.
const FINISHED: &str = "body finished: ";
/// Printed by a body that cannot run on this machine, with the reason.
const SKIPPED: &str = "skipped: ";

/// Expands each body into a module of its name with the tests `uring` and `epoll`, each of which runs the
/// body in a process of its own on a fresh reactor with exactly that driver.
///
/// Descriptors are counted before that reactor is made and after it is dropped, and must be the same. Where
/// the machine refuses io_uring, the `uring` test prints `skipped: uring: ...` and passes, unless the
/// environment has `SENDRIGHT_REQUIRE_URING`. Attributes and comments may stand before each `fn`.
///
/// ```no_run
/// use ring::Reactor;
///
/// testing::on_each_driver! {
///     /// One can be had at all.
///     fn a_reactor_says_why_it_runs_what_it_runs(reactor: &Reactor) {
///         assert!(!reactor.driver().reason().is_empty());
///     }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! on_each_driver {
    ($($(#[$meta:meta])* fn $name:ident($reactor:ident: $kind:ty $(,)?) $body:block)+) => {$(
        $(#[$meta])*
        fn $name($reactor: $kind) $body

        $(#[$meta])*
        mod $name {
            $crate::test_on_real_drivers!(super::$name);
        }
    )+};
}

/// The tests of a body on what the kernel has, in the module of its name.
#[doc(hidden)]
#[macro_export]
macro_rules! test_on_real_drivers {
    ($body:path) => {
        #[test]
        fn uring() {
            $crate::body::on_driver(concat!(module_path!(), "::uring"), "uring", $body);
        }

        #[test]
        fn epoll() {
            $crate::body::on_driver(concat!(module_path!(), "::epoll"), "epoll", $body);
        }
    };
}

/// As [`on_each_driver!`](crate::on_each_driver), and with a third test, `script`: the same body in one
/// simulated world after the other, whose seeds decide what the kernel leaves open. For bodies that need
/// nobody outside their thread; needs the feature `script`.
///
/// ```no_run
/// use ring::{Kind, Reactor, Socket};
///
/// testing::on_each_driver_and_seed! {
///     fn whatever_the_kernel_does_a_message_arrives(reactor: &Reactor) {
///         let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
///         testing::send_packet(&far, b"hello", &[]).unwrap();
///         assert_eq!(testing::settle(reactor, near.receive()).unwrap().bytes(), b"hello");
///     }
/// }
/// # fn main() {}
/// ```
#[cfg(feature = "script")]
#[macro_export]
macro_rules! on_each_driver_and_seed {
    ($($(#[$meta:meta])* fn $name:ident($reactor:ident: $kind:ty $(,)?) $body:block)+) => {$(
        $(#[$meta])*
        fn $name($reactor: $kind) $body

        $(#[$meta])*
        mod $name {
            $crate::test_on_real_drivers!(super::$name);

            #[test]
            fn script() {
                $crate::body::on_seeds(concat!(module_path!(), "::script"), super::$name);
            }
        }
    )+};
}

/// Makes each body a test that runs in a process of its own, with its descriptors counted, and no reactor.
/// Attributes and comments may stand before each `fn`.
///
/// ```no_run
/// testing::in_own_process! {
///     fn without_io_uring_there_is_epoll() {
///         testing::refuse_io_uring(testing::Errno::PERM);
///         assert!(ring::Reactor::new().is_ok());
///     }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! in_own_process {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)+) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            fn body() $body
            $crate::body::in_own_process(concat!(module_path!(), "::", stringify!($name)), body);
        }
    )+};
}

/// Bodies that only run when a test asks for one with [`outcome_of!`](crate::outcome_of): those that
/// must fail.
///
/// ```no_run
/// use testing::{End, fixture, outcome_of};
///
/// fixture! {
///     fn aborts() {
///         std::process::abort();
///     }
/// }
///
/// #[test]
/// fn an_abort_is_seen() {
///     assert!(matches!(outcome_of!(aborts).end, End::Failed(_)));
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! fixture {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)+) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            fn body() $body
            $crate::body::when_asked(concat!(module_path!(), "::", stringify!($name)), body);
        }
    )+};
}

/// Runs a [`fixture!`](crate::fixture) in a process of its own and gives back its [`Outcome`].
#[macro_export]
macro_rules! outcome_of {
    ($name:path) => {
        $crate::body::run($crate::path_of(&$name), None, $crate::BODY_TIME_MAX)
    };
    ($name:path, time_max: $time_max:expr) => {
        $crate::body::run($crate::path_of(&$name), None, $time_max)
    };
}

/// How a body ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum End {
    /// It came to its end and left the descriptors as they were.
    Finished,
    /// It cannot run on this machine, for this reason.
    Skipped(String),
    /// Its process ended well, but not at the end of the body.
    Unfinished,
    /// It panicked, left descriptors, or died.
    Failed(ExitStatus),
    /// It was killed after this long.
    Hung(Duration),
}

/// What there is to say about a body that ran.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What it and its helpers printed, to either stream.
    pub output: String,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Finished => write!(f, "finished"),
            End::Skipped(reason) => write!(f, "skipped: {reason}"),
            End::Unfinished => write!(f, "its process ended well, but not at the end of the body"),
            End::Failed(status) => write!(f, "failed: {status}"),
            End::Hung(time) => write!(f, "hung: killed after {time:?}"),
        }
    }
}

/// What a test of [`on_each_driver!`](crate::on_each_driver) does, in the parent and in the body's process.
#[doc(hidden)]
#[track_caller]
pub fn on_driver(path: &str, driver: &str, body: fn(&Reactor)) {
    let path = without_crate(path);
    if is_asked(path) {
        be_body(path, || on_fresh_reactor(driver, body));
    } else {
        report(path, run(path, Some(driver), time_max()));
    }
}

/// What the third test of [`on_each_driver_and_seed!`](crate::on_each_driver_and_seed) does, in the parent
/// and in the body's process.
#[cfg(feature = "script")]
#[doc(hidden)]
#[track_caller]
pub fn on_seeds(path: &str, body: fn(&Reactor)) {
    let path = without_crate(path);
    if is_asked(path) {
        be_body(path, || {
            for seed in 0..SEEDS {
                println!("seed {seed}");
                let world = ring::script::World::new(seed, ring::script::Faults::SOON);
                body(&world.reactor_with(&Config::default()).unwrap());
            }
            Ok(())
        });
    } else {
        report(path, run(path, None, time_max()));
    }
}

/// What a test of [`in_own_process!`](crate::in_own_process) does, in the parent and in the body's process.
#[doc(hidden)]
#[track_caller]
pub fn in_own_process(path: &str, body: fn()) {
    let path = without_crate(path);
    if is_asked(path) {
        be_body(path, || always(body));
    } else {
        report(path, run(path, None, time_max()));
    }
}

/// What a [`fixture!`](crate::fixture) does: nothing, except in the process started for it.
#[doc(hidden)]
pub fn when_asked(path: &str, body: fn()) {
    let path = without_crate(path);
    if is_asked(path) {
        be_body(path, || always(body));
    }
}

/// How long the bodies of this run may take.
fn time_max() -> Duration {
    if env::var_os(role::SEEDS).is_some() { LONG_TIME_MAX } else { BODY_TIME_MAX }
}

fn is_asked(path: &str) -> bool {
    env::var(role::BODY).is_ok_and(|asked| asked == path)
}

#[track_caller]
fn report(path: &str, outcome: Outcome) {
    // The test program shows this when the test fails, or when it was asked not to capture.
    print!("{}", outcome.output);
    match outcome.end {
        End::Finished | End::Skipped(_) => {}
        end => panic!("{path}: {end}"),
    }
}

// In the body's process.

fn be_body(path: &str, body: impl FnOnce() -> Result<(), String>) {
    end_when_orphaned();
    let census = Census::take();
    let skipped = body().err();
    census.unchanged();
    match skipped {
        Some(reason) => println!("{SKIPPED}{reason}"),
        None => println!("{FINISHED}{path}"),
    }
}

/// `Err` is the reason why the body did not run.
fn on_fresh_reactor(driver: &str, body: fn(&Reactor)) -> Result<(), String> {
    match Reactor::with_config(Config { driver: role::driver(), ..Config::default() }) {
        Ok(reactor) => body(&reactor),
        Err(reason) if driver == "uring" && env::var_os(role::REQUIRE_URING).is_none() => {
            return Err(format!("{driver}: {reason}"));
        }
        Err(reason) => panic!("no reactor on {driver}: {reason}"),
    }
    Ok(())
}

fn always(body: fn()) -> Result<(), String> {
    body();
    Ok(())
}

/// A body or helper that hangs must not outlive an interrupted test run for long.
pub(crate) fn end_when_orphaned() {
    thread::spawn(|| {
        thread::sleep(time_max() + ORPHAN_TIME_MAX);
        std::process::abort();
    });
}

// In the parent.

/// Runs one body in a process of its own, on `driver` if it wants one, for `time_max` at most.
#[doc(hidden)]
#[track_caller]
pub fn run(path: &str, driver: Option<&str>, time_max: Duration) -> Outcome {
    let started = start(path, driver).unwrap_or_else(|error| panic!("{path}: no process for it: {error}"));
    started.finish(time_max).unwrap_or_else(|error| panic!("{path}: lost its process: {error}"))
}

/// A body that runs, and what it has printed so far.
struct Running {
    process: Child,
    pipe: io::PipeReader,
    output: Vec<u8>,
    dropped: usize,
}

fn start(path: &str, driver: Option<&str>) -> io::Result<Running> {
    let (pipe, writer) = io::pipe()?;
    let mut command = Command::new(env::current_exe()?);
    command.args([path, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(role::BODY, path).env_remove(role::HELPER).env_remove(role::HELPER_ARGUMENT);
    match driver {
        Some(driver) => command.env(role::DRIVER, driver),
        None => command.env_remove(role::DRIVER),
    };
    // One pipe for both streams, so that the report has them in order.
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // A group of its own, so that its helpers can be killed with it.
    let process = command.process_group(0).spawn()?;
    Ok(Running { process, pipe, output: Vec::new(), dropped: 0 })
}

impl Running {
    fn finish(mut self, time_max: Duration) -> io::Result<Outcome> {
        let exited = self.follow(Instant::now() + time_max)?;
        // In both cases: a body that ended may have left helpers behind, and they hold the pipe. The process
        // is not reaped yet, so that the group's number is still its own.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let status = self.process.wait()?;
        let drained = Instant::now() + DRAIN_TIME_MAX;
        while poll_until(&mut [PollFd::new(&self.pipe, PollFlags::IN)], drained)? && self.collect()? {}

        let mut output = String::from_utf8_lossy(&self.output).into_owned();
        if self.dropped > 0 {
            output.push_str(&format!("\n... and {} bytes more\n", self.dropped));
        }
        let end = match status {
            _ if !exited => End::Hung(time_max),
            status if !status.success() => End::Failed(status),
            _ => end_in_words(&output),
        };
        Ok(Outcome { end, output })
    }

    /// Collects output until the process exits. False means that the deadline came first.
    fn follow(&mut self, deadline: Instant) -> io::Result<bool> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let mut is_open = true;
        loop {
            let exit = PollFd::new(&process, PollFlags::IN);
            let output = PollFd::new(&self.pipe, PollFlags::IN);
            let mut waits = [exit, output];
            let waited_for = if is_open { &mut waits[..] } else { &mut waits[..1] };
            if !poll_until(waited_for, deadline)? {
                return Ok(false);
            }
            if !waits[0].revents().is_empty() {
                return Ok(true);
            }
            is_open = self.collect()?;
        }
    }

    /// Takes what is in the pipe. False at its end.
    fn collect(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let read = self.pipe.read(&mut chunk)?;
        let kept = read.min(OUTPUT_BYTES_MAX - self.output.len());
        self.output.extend_from_slice(&chunk[..kept]);
        self.dropped += read - kept;
        Ok(read > 0)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
}

/// What the body itself said about its end.
fn end_in_words(output: &str) -> End {
    // Not at the start of a line: the test program has written "test ... " in front of it.
    if output.contains(FINISHED) {
        return End::Finished;
    }
    match output.split_once(SKIPPED).and_then(|(_, reason)| reason.lines().next()) {
        Some(reason) => End::Skipped(reason.to_owned()),
        None => End::Unfinished,
    }
}
