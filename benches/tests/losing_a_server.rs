//! A suite whose server dies says so, with the status it died with, and ends.
//!
//! This program is three: the test, the suite that it starts, and the server of that suite.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use benches::subject::Served;
use benches::suite::{Subject, run, timed};
use criterion::Throughput;
use perf::floor::{packet_pair, receive_with, send};
use perf::process::{Failure, Order, Server, serve_if_asked_as};
use perf::{Cpus, Wait};
use ring::DriverChoice;

/// Whoever finds it is the suite.
const SUITE: &str = "SENDRIGHT_BENCHES_TRIAL";

fn main() {
    serve_if_asked_as(&[("who dies", answer_once_and_die)]);
    if env::var_os(SUITE).is_some() {
        run("trial", |suite| {
            let mut group = suite.group("a server that dies", Throughput::Elements(1));
            group.floor("calls", start);
            group.finish();
            Ok(())
        });
        return;
    }
    let this = env::current_exe().expect("a program knows where it is");
    let ended = Command::new(this).arg("--test").env(SUITE, "1").output().expect("it can be started again");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("calls: no answer: the server (who dies) has ended with exit status: 3"), "{said}");
}

fn start() -> Result<Box<dyn Subject>, Failure> {
    let (client, far) = packet_pair()?;
    let server = Server::start("who dies", "", DriverChoice::Auto, &Cpus::one()?, vec![far])?;
    let call = |client: &mut OwnedFd, count| timed(count, || ask(client));
    Ok(Box::new(Served { client, server, call, end: drop }))
}

fn ask(client: &OwnedFd) -> Result<(), Failure> {
    send(client.as_fd(), b"anyone?").map_err(|_| "no answer")?;
    match receive_with(client.as_fd(), &mut [0; 16], &mut Vec::new(), Wait::Sleep) {
        Ok(1..) => Ok(()),
        _ => Err("no answer".into()),
    }
}

fn answer_once_and_die(mut order: Order) -> Result<(), Failure> {
    let [end] = order.take()?;
    receive_with(end.as_fd(), &mut [0; 16], &mut Vec::new(), Wait::Sleep)?;
    send(end.as_fd(), b"yes")?;
    std::process::exit(3)
}
