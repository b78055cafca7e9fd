//! System calls that the kernel refuses for a while, amid whatever is under way.
//!
//! Owns the thread on which they are made, and the one that says which of them fail. A filter of system calls
//! (seccomp) asks that one each time, so what is refused can change at any moment, which a filter by itself
//! cannot. It knows nothing of what is tested under it.

use std::collections::HashMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use ring::script::{CallGate, SystemCall};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::set_no_new_privs;

/// Says which calls the kernel refuses from now on. Clones say it for the same thread.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Orders>>);

#[derive(Debug, Default)]
struct Orders {
    orders: HashMap<SystemCall, Order>,
    refused: u64,
    seen: HashMap<SystemCall, u64>,
    /// So many calls more are let through, of whatever kind, before the process is killed.
    left_to_live: Option<u64>,
}

/// What becomes of the next calls of a kind.
#[derive(Clone, Copy, Debug)]
struct Order {
    errno: Errno,
    /// So many are let through, and the next one is refused.
    period: u64,
    passed: u64,
    left: u64,
}

impl Refusals {
    /// The next so many calls of this kind fail.
    pub fn next(&self, call: SystemCall, errno: Errno, times: u64) {
        self.order(call, Order { errno, period: 0, passed: 0, left: times });
    }

    /// Each fails, until [`none`](Refusals::none).
    pub fn each(&self, call: SystemCall, errno: Errno) {
        self.next(call, errno, u64::MAX);
    }

    /// After so many that are let through one fails, again and again, until [`none`](Refusals::none).
    pub fn now_and_then(&self, call: SystemCall, errno: Errno, period: u64) {
        self.order(call, Order { errno, period, passed: 0, left: u64::MAX });
    }

    /// Kills this process (SIGKILL) when it has made so many calls more, of whatever kind, and wants to make
    /// another: nothing of it is done.
    pub fn die_after(&self, calls: u64) {
        self.orders().left_to_live = Some(calls);
    }

    /// Nothing is refused any more.
    pub fn none(&self) {
        self.orders().orders.clear();
    }

    /// How many calls were refused so far.
    pub fn refused(&self) -> u64 {
        self.orders().refused
    }

    /// How many calls of this kind were made so far, refused or not.
    pub fn seen(&self, call: SystemCall) -> u64 {
        self.orders().seen.get(&call).copied().unwrap_or(0)
    }

    fn order(&self, call: SystemCall, order: Order) {
        self.orders().orders.insert(call, order);
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, call: SystemCall) -> Option<i32> {
        let orders = &mut *self.orders();
        *orders.seen.entry(call).or_default() += 1;
        match &mut orders.left_to_live {
            Some(0) => kill_process(getpid(), Signal::KILL).unwrap(),
            Some(left) => *left -= 1,
            None => {}
        }
        let order = orders.orders.get_mut(&call).filter(|order| order.left > 0)?;
        if order.passed < order.period {
            order.passed += 1;
            return None;
        }
        (order.passed, order.left) = (0, order.left - 1);
        orders.refused += 1;
        Some(order.errno.raw_os_error())
    }
}

/// Runs `body` on a thread of its own, whose calls of these kinds (and those of what it starts) fail as the
/// [`Refusals`] it is given say. Whatever it uses it makes there, or takes along. Where the machine lets no
/// such filter be installed it says so and does not run.
///
/// ```no_run
/// use ring::script::SystemCall;
/// use testing::Errno;
///
/// testing::gated(&[SystemCall::Pair], |refusals| {
///     refusals.next(SystemCall::Pair, Errno::NOBUFS, 1);
///     assert!(std::os::unix::net::UnixStream::pair().is_err());
///     assert!(std::os::unix::net::UnixStream::pair().is_ok());
/// });
/// ```
///
/// # Panics
/// If the body does.
#[track_caller]
pub fn gated(calls: &'static [SystemCall], body: impl FnOnce(&Refusals) + Send + 'static) {
    let refusals = Refusals::default();
    let (installed, install) = mpsc::channel();
    let (ended, end) = io::pipe().unwrap();
    let told = refusals.clone();
    let thread = thread::spawn(move || {
        // Kept by this thread to its end: what it makes is closed before the gate is.
        let _end = end;
        set_no_new_privs(true).unwrap();
        let gate = CallGate::install(calls);
        let refused = gate.as_ref().err().map(io::Error::to_string);
        installed.send(gate).unwrap();
        match refused {
            Some(error) => eprintln!("skipped: no system call can be watched here: {error}"),
            None => body(&told),
        }
    });
    if let Ok(gate) = install.recv().unwrap() {
        loop {
            let mut waits = [PollFd::new(&gate, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut waits, None) {
                Err(Errno::INTR) => continue,
                polled => polled.unwrap(),
            };
            if waits[0].revents().contains(PollFlags::IN) {
                // Whoever asked may have been interrupted meanwhile, and asks again.
                let _ = gate.answer(|call| refusals.judge(call));
            } else if !waits[1].revents().is_empty() {
                break;
            }
        }
    }
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}
