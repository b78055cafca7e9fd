//! Forks that go on without exec, for what must notice them.
//!
//! Owns the child until it is waited for, and kills it otherwise. What runs in the child has one thread and
//! copies of every descriptor of the test; it knows nothing of what is tested there.

use std::fmt;
use std::time::Instant;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::helper::HELPER_TIME_MAX;
use crate::wait::exits_before;

/// A child of this process that was forked, not exec'd. Dropping it kills it.
pub struct Forked {
    pid: Option<Pid>,
}

/// Runs `child` in a fork of this process, in which only the calling thread exists. A panic there is printed
/// and makes [`Forked::succeeded`] fail. Nothing else of the test runs in the child: it ends without dropping
/// anything but what `child` drops.
///
/// ```
/// let value = 41;
/// testing::fork(|| assert_eq!(value + 1, 42)).succeeded();
/// ```
///
/// # Panics
/// If there is no process to be had.
#[track_caller]
pub fn fork(child: impl FnOnce()) -> Forked {
    let number = ring::fork::fork_for_tests(|| {
        child();
        0
    });
    Forked { pid: Pid::from_raw(number.unwrap_or_else(|error| panic!("no fork: {error}"))) }
}

impl Forked {
    /// Waits until it exits, and insists that it came to its end without a complaint.
    ///
    /// # Panics
    /// If it did not, or after [`HELPER_TIME_MAX`].
    #[track_caller]
    pub fn succeeded(mut self) {
        let pid = self.pid.expect("waited for once");
        let exited = exits_before(pid, Instant::now() + HELPER_TIME_MAX).unwrap();
        assert!(exited, "a forked child did not exit within {HELPER_TIME_MAX:?}");
        self.pid = None;
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0), "a forked child: {status:?}");
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            // Nothing to report to: the test that drops it has seen what it wanted, or is failing already.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

impl fmt::Debug for Forked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forked").field("pid", &self.pid).finish()
    }
}
