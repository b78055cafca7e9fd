//! Helper processes: exec'd, with exactly the descriptors they are given.
//!
//! A helper is a function in the test program that only runs in a process started for it. This file owns that
//! process until it is waited for, and kills it otherwise. It never forks without exec: a forked test program
//! would hold copies of every far end in it, and nobody would ever see an end of file.

use std::any::type_name;
use std::env;
use std::fmt;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::body::end_when_orphaned;
use crate::census::Census;
use crate::role::{self, without_crate};
use crate::wait::exits_before;

/// How long [`Helper::wait`] waits. Less than a body has, so that the report names the helper.
pub const HELPER_TIME_MAX: Duration = Duration::from_secs(60);

/// The first number a helper's descriptors have; the others follow.
const FIRST_NUMBER: i32 = 3;

/// The descriptor of a helper that was given one and no more.
///
/// # Panics
/// If there are more, or none.
#[track_caller]
pub fn only(descriptors: Vec<OwnedFd>) -> OwnedFd {
    let [fd] = <[OwnedFd; 1]>::try_from(descriptors)
        .unwrap_or_else(|descriptors| panic!("given {} descriptors", descriptors.len()));
    fd
}

/// Makes each function a helper: a process that [`start_helper!`](crate::start_helper) starts, with the given
/// descriptors as its own.
///
/// It looks like a test to the test program, where it passes without doing anything. Its descriptors are
/// counted like those of a body: when it returns, those it was given and those it opened must be closed. Use
/// [`reactor()`](crate::reactor) for a reactor on the same driver as the test's, and
/// [`helper_argument()`](crate::helper_argument) for what it was told. One in another module needs a
/// `pub(super)` or wider before its `fn`, as any function would.
///
/// ```no_run
/// testing::helper! {
///     fn holds_what_it_got(descriptors: Vec<std::os::fd::OwnedFd>) {
///         let _ = testing::receive_packet(&descriptors[0]);
///     }
/// }
///
/// #[test]
/// fn a_helper_can_be_killed() {
///     let (near, far) = testing::packet_pair();
///     let mut helper = testing::start_helper!(holds_what_it_got, vec![far]);
///     helper.kill();
///     assert!(testing::receive_packet(&near).unwrap().bytes.is_empty());
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! helper {
    ($($(#[$meta:meta])* $seen:vis fn $name:ident($descriptors:ident: $kind:ty $(,)?) $body:block)+) => {$(
        $(#[$meta])*
        // A plain function where there is no test program to list it: in a documentation example.
        #[cfg_attr(test, test)]
        $seen fn $name() {
            fn body($descriptors: $kind) $body
            $crate::be_helper(concat!(module_path!(), "::", stringify!($name)), body);
        }
    )+};
}

/// Starts a [`helper!`](crate::helper): its name, the descriptors to give away, and optionally a string that
/// it finds in [`helper_argument()`](crate::helper_argument). Gives back a [`Helper`].
#[macro_export]
macro_rules! start_helper {
    ($name:path) => {
        $crate::start_helper!($name, ::std::vec::Vec::new(), "")
    };
    ($name:path, $descriptors:expr $(,)?) => {
        $crate::start_helper!($name, $descriptors, "")
    };
    ($name:path, $descriptors:expr, $argument:expr $(,)?) => {
        $crate::Helper::start(
            $crate::path_of(&$name),
            $descriptors,
            ::std::convert::AsRef::as_ref(&$argument),
        )
    };
}

/// A helper process. Dropping it kills it.
pub struct Helper {
    name: String,
    process: Child,
    status: Option<ExitStatus>,
}

impl Helper {
    /// Starts the helper of this full path (as the test program lists it) with these descriptors, which are
    /// closed here, and this argument. [`start_helper!`](crate::start_helper) is easier and finds the path.
    ///
    /// # Panics
    /// If no process can be started.
    #[track_caller]
    pub fn start(path: &str, descriptors: Vec<OwnedFd>, argument: &str) -> Helper {
        Helper::start_as(Command::new(env::current_exe().unwrap()), path, descriptors, argument)
    }

    /// The same in a time namespace of its own, whose monotonic clock is eleven days ahead of everybody
    /// else's. `None` where that is not to be had: not allowed, or without util-linux.
    ///
    /// # Panics
    /// If no process can be started.
    #[track_caller]
    pub fn start_ahead(path: &str, descriptors: Vec<OwnedFd>, argument: &str) -> Option<Helper> {
        let ahead = || {
            let mut command = Command::new("unshare");
            command.args(["--time", "--monotonic=1000000", "--fork", "--kill-child"]);
            command
        };
        let tried = ahead().arg("true").stderr(Stdio::null()).status();
        if !tried.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no time namespace can be had here");
            return None;
        }
        let mut command = ahead();
        command.arg(env::current_exe().unwrap());
        Some(Helper::start_as(command, path, descriptors, argument))
    }

    #[track_caller]
    fn start_as(mut command: Command, path: &str, descriptors: Vec<OwnedFd>, argument: &str) -> Helper {
        command.args([path, "--exact", "--nocapture", "--test-threads=1"]);
        command.env_remove(role::BODY).env(role::HELPER, path);
        command.env(role::HELPER_DESCRIPTORS, descriptors.len().to_string());
        command.env(role::HELPER_ARGUMENT, argument).stdin(Stdio::null());
        let numbered = descriptors.into_iter().zip(FIRST_NUMBER..).collect();
        let process = ring::inherit::give(&mut command, numbered)
            .spawn()
            .unwrap_or_else(|error| panic!("helper {path}: {error}"));
        Helper { name: path.to_owned(), process, status: None }
    }

    /// The number of its process, as `Credentials` have it.
    pub fn pid(&self) -> i32 {
        Pid::from_child(&self.process).as_raw_nonzero().get()
    }

    /// Waits until it exits.
    ///
    /// # Panics
    /// After [`HELPER_TIME_MAX`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let exited = exits_before(Pid::from_child(&self.process), Instant::now() + HELPER_TIME_MAX).unwrap();
        assert!(exited, "helper {}: did not exit within {HELPER_TIME_MAX:?}", self.name);
        let status = self.process.wait().unwrap();
        self.status = Some(status);
        status
    }

    /// Kills it with SIGKILL and waits until it is gone. Nothing happens if it has already been waited for.
    #[track_caller]
    pub fn kill(&mut self) {
        if self.status.is_none() {
            self.process.kill().unwrap();
            self.wait();
        }
    }

    /// Stops it with SIGSTOP and waits until each of its threads stands still. It goes on at
    /// [`resume`](Helper::resume), and can be killed before.
    ///
    /// ```no_run
    /// # use testing::Helper;
    /// # fn example(helper: &Helper) {
    /// helper.stop();
    /// // Whatever is sent to it now waits in a queue of the kernel's.
    /// helper.resume();
    /// # }
    /// ```
    ///
    /// # Panics
    /// If it is not there any more.
    #[track_caller]
    pub fn stop(&self) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::STOP).unwrap();
        let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
        assert!(stopped.is_some_and(|status| status.stopped()), "helper {}: did not stop", self.name);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// If it is not there any more.
    #[track_caller]
    pub fn resume(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }

    /// Waits until it exits, and insists that it came to its end without a complaint.
    ///
    /// # Panics
    /// If it did not, or after [`HELPER_TIME_MAX`].
    #[track_caller]
    pub fn succeeded(mut self) {
        let status = self.wait();
        assert!(status.success(), "helper {}: {status}", self.name);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Nothing to report to: the test that drops it has seen what it wanted, or is failing already.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper").field("name", &self.name).field("pid", &self.pid()).finish()
    }
}

/// What a [`helper!`](crate::helper) does: nothing, except in the process started for it.
#[doc(hidden)]
pub fn be_helper(path: &str, body: fn(Vec<OwnedFd>)) {
    let path = without_crate(path);
    if !env::var(role::HELPER).is_ok_and(|asked| asked == path) {
        return;
    }
    end_when_orphaned();
    let given: i32 = env::var(role::HELPER_DESCRIPTORS).unwrap().parse().unwrap();
    let numbers = FIRST_NUMBER..FIRST_NUMBER + given;
    let census = Census::take().without(numbers.clone());
    let descriptors = numbers
        .map(|number| {
            ring::inherit::take(number).unwrap_or_else(|error| panic!("helper {path}: {number}: {error}"))
        })
        .collect();
    body(descriptors);
    census.unchanged();
}

/// The path of a helper or fixture as the test program lists it, from the function that bears its name. So a
/// misspelt one does not compile, and one from another module is found.
#[doc(hidden)]
pub fn path_of<F: Fn()>(_: &F) -> &'static str {
    without_crate(type_name::<F>())
}
