//! Signals, one after the other, for what must not mind being interrupted.
//!
//! Owns the process that sends them. It knows nothing of what is interrupted.

use std::thread;

use ring::script::{catch_signal, signals_caught};
use rustix::process::{Signal, getpid, getppid, kill_process};

use crate::fork::fork;

/// So many signals come before a storm is over.
pub const STORM_SIGNALS_MIN: u64 = 100;

/// Runs `step` again and again in a fork of this process, to which SIGALRM (after which system calls fail
/// with EINTR) and SIGUSR1 (after which the kernel begins them again where it can) are sent without a pause,
/// until [`STORM_SIGNALS_MIN`] have come. In a fork, because there every signal hits the one thread there is.
///
/// ```no_run
/// testing::storm(|| assert_eq!(std::fs::read("/dev/null").unwrap(), b""));
/// ```
///
/// # Panics
/// If a step does.
#[track_caller]
pub fn storm(mut step: impl FnMut()) {
    fork(|| {
        catch_signal(Signal::ALARM.as_raw(), false).unwrap();
        catch_signal(Signal::USR1.as_raw(), true).unwrap();
        let hit = getpid();
        let sender = fork(|| {
            // Whoever is hit may be gone, and its number somebody else's.
            while getppid() == Some(hit) {
                let _ = kill_process(hit, Signal::ALARM);
                let _ = kill_process(hit, Signal::USR1);
                thread::yield_now();
            }
        });
        while signals_caught() < STORM_SIGNALS_MIN {
            step();
        }
        sender.kill();
    })
    .succeeded();
}
