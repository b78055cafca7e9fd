//! Waiting for what is outside our control, always with a limit and always for something that has a name.
//!
//! Knows clocks and process descriptors, and nothing of tests.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long [`wait_until`] waits. Generous: two cores may be shared by a dozen tests, and it is only ever
/// reached by a test that fails.
pub const WAIT_TIME_MAX: Duration = Duration::from_secs(30);

/// Between two looks at the condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Returns once `condition` holds. For what other processes and the kernel do in their own time (an exit seen
/// through `/proc`, a queue drained by a thread), never for "probably long enough".
///
/// ```
/// let thread = std::thread::spawn(|| ());
/// testing::wait_until("the thread is done", || thread.is_finished());
/// ```
///
/// # Panics
/// After [`WAIT_TIME_MAX`], naming `what`.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(WAIT_TIME_MAX, condition), "waited {WAIT_TIME_MAX:?} in vain until {what}");
}

/// Whether the condition holds at some look before the time is over, or at the last one.
fn holds_within(time_max: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time_max;
    loop {
        // The clock first: after a long interruption the condition still has its chance.
        let last = Instant::now() >= deadline;
        if condition() {
            return true;
        }
        if last {
            return false;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Whether the child (not yet reaped) exits before the deadline.
pub(crate) fn exits_before(pid: Pid, deadline: Instant) -> io::Result<bool> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    poll_until(&mut [PollFd::new(&process, PollFlags::IN)], deadline)
}

/// `poll` that counts down to a deadline over interruptions. False means that the deadline passed.
pub(crate) fn poll_until(waits: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(waits, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_may_come_true_late() {
        let mut looks = 0;
        wait_until("it was looked at three times", || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    fn even_without_time_there_is_one_look() {
        assert!(holds_within(Duration::ZERO, || true));
    }

    #[test]
    fn a_condition_that_never_holds_ends_the_wait() {
        assert!(!holds_within(Duration::from_millis(5), || false));
    }
}
