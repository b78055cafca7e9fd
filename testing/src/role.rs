//! What this process was started to be: nothing of ours, the body of a test, or a helper.
//!
//! Owns the names of the environment variables that say so. Knows nothing of how the processes are started.

use std::env;
use std::future::Future;

use ring::{Config, DriverChoice, Executor, Reactor};

/// The full path of the test whose body this process is to run.
pub(crate) const BODY: &str = "SENDRIGHT_TESTING_BODY";
/// The full path of the helper that this process is.
pub(crate) const HELPER: &str = "SENDRIGHT_TESTING_HELPER";
/// How many descriptors a helper was given.
pub(crate) const HELPER_DESCRIPTORS: &str = "SENDRIGHT_TESTING_HELPER_DESCRIPTORS";
/// What a helper was told.
pub(crate) const HELPER_ARGUMENT: &str = "SENDRIGHT_TESTING_HELPER_ARGUMENT";
/// The driver a body or a helper is to use.
pub(crate) const DRIVER: &str = "SENDRIGHT_TESTING_DRIVER";
/// Set by whoever wants more simulated worlds than the tests have by themselves: then bodies may take long.
pub(crate) const SEEDS: &str = "SENDRIGHT_SEEDS";
/// Set by whoever knows that the machine has io_uring: a refusal is then a failure, not a skipped test.
pub(crate) const REQUIRE_URING: &str = "SENDRIGHT_REQUIRE_URING";

/// The driver this body or helper is to use; helpers use the one of the test that started them.
///
/// `Auto` where nothing was said, as in the bodies of [`in_own_process!`](crate::in_own_process).
pub fn driver() -> DriverChoice {
    match env::var(DRIVER).ok().as_deref() {
        None => DriverChoice::Auto,
        Some("uring") => DriverChoice::Uring,
        Some("epoll") => DriverChoice::Epoll,
        Some(unknown) => panic!("{DRIVER}={unknown}: neither uring nor epoll"),
    }
}

/// A reactor on [`driver()`]: a second one for a body, or the one of a helper.
///
/// # Panics
/// If the driver cannot be had. A body on io_uring does not come this far when the machine refuses it.
#[track_caller]
pub fn reactor() -> Reactor {
    Reactor::with_config(Config { driver: driver(), ..Config::default() })
        .unwrap_or_else(|error| panic!("no reactor: {error}"))
}

/// Runs one future to its end, on an executor that lives as long as the call.
pub fn settle<F: Future>(reactor: &Reactor, future: F) -> F::Output {
    Executor::new(reactor).block_on(future)
}

/// What [`start_helper!`](crate::start_helper) told this helper; empty when it told nothing.
pub fn helper_argument() -> String {
    env::var(HELPER_ARGUMENT).unwrap_or_default()
}

/// A path as the test program knows it: without the name of the crate.
pub(crate) fn without_crate(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_crate, rest)| rest)
}
