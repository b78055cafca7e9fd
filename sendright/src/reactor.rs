//! The reactor of a command, and the limits it has to live with.
//!
//! It owns how a driver is chosen from an option and the environment, and how a failure to have one is told.
//! It must never know what the reactor is for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ring::{Config, DriverChoice, Executor, Reactor, StartError};

use crate::output::Failure;

/// A reactor on the driver that was asked for, or, without one, on what the environment asks for or the best.
pub fn start(driver: Option<&str>) -> Result<(Reactor, Executor), Failure> {
    let reactor = match driver {
        None => Reactor::new(),
        Some(name) => {
            let driver: DriverChoice = name.parse().map_err(Failure::usage)?;
            Reactor::with_config(Config { driver, ..Config::default() })
        }
    };
    let reactor = reactor.map_err(|error| refused(driver, &error))?;
    let executor = Executor::new(&reactor);
    Ok((reactor, executor))
}

/// A driver nobody knows is a mistake in what was asked; one that cannot be had here is a failure.
fn refused(driver: Option<&str>, error: &StartError) -> Failure {
    match (driver, error) {
        (_, StartError::UnknownDriver(_)) => Failure::usage(error),
        (Some(name @ ("uring" | "epoll")), _) => Failure::new(format_args!("--driver {name}: {error}")),
        _ => Failure::new(error),
    }
}

/// What `future` comes to, or `None` when `time` has passed first.
pub async fn within<F: Future>(reactor: &Reactor, time: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timeout = pin!(reactor.sleep(time));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => timeout.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// The soft limit of descriptors.
pub fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
