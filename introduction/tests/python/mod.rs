//! A peer or a server written in Python, in a process of its own, and told what to do line by line.
//!
//! Owns that process, which is killed with it. It knows no bytes of the protocol: those are in `stranger.py`.
#![allow(dead_code)]

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use ring::{Kind, Reactor, Socket};

/// As `stranger.py` knows the two dialects.
pub const FORMS: [&str; 2] = ["goblins", "draft"];

/// Where what is told is read, and where a line to a server is.
const CONTROL: i32 = 3;
const LINE: i32 = 4;

pub fn fixtures() -> PathBuf {
    beside("fixtures")
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../introduction/tests").join(name)
}

/// Whether there is Python at all. Where there is none, a test says so and is skipped.
pub fn is_here() -> bool {
    let version = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    let is_here = version.is_ok_and(|status| status.success());
    if !is_here {
        println!("skipped: no python3 here");
    }
    is_here
}

fn command() -> Command {
    let mut command = Command::new("python3");
    // No files with compiled code beside the sources.
    command.arg("-B").arg(beside("python/stranger.py")).stdin(Stdio::null());
    command
}

/// Whether its own parts agree with the standard's vectors and with the fixtures.
pub fn checks_itself() -> ExitStatus {
    command().arg("check").arg(fixtures()).status().unwrap()
}

/// A process that is a peer or a server.
pub struct Stranger {
    process: Child,
    control: Socket,
}

impl Stranger {
    /// A peer with this key, on this line to a server.
    pub fn peer(reactor: &Reactor, form: &str, seed: u8, line: OwnedFd) -> Stranger {
        let mut command = command();
        command.args(["peer", form, &seed.to_string(), &format!("fd:{LINE}")]);
        Stranger::start(reactor, command, vec![(line, LINE)])
    }

    /// A peer with this key that connects to a server by itself.
    pub fn peer_at(reactor: &Reactor, form: &str, seed: u8, path: &Path) -> Stranger {
        let mut command = command();
        command.args(["peer", form, &seed.to_string()]).arg(path);
        Stranger::start(reactor, command, Vec::new())
    }

    /// A server with this key, listening here.
    pub fn server(reactor: &Reactor, form: &str, seed: u8, path: &Path) -> Stranger {
        let mut command = command();
        command.args(["server", form, &seed.to_string()]).arg(path);
        Stranger::start(reactor, command, Vec::new())
    }

    fn start(reactor: &Reactor, mut command: Command, mut given: Vec<(OwnedFd, i32)>) -> Stranger {
        let (control, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        given.push((far, CONTROL));
        let process = ring::inherit::give(&mut command, given).spawn().unwrap();
        Stranger { process, control }
    }

    /// Tells it to do something, and gives what it answers once that is done.
    pub async fn told(&self, what: impl Display) -> String {
        self.control.send(format!("{what}\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let received = self.control.receive().await.unwrap();
            answer.extend_from_slice(received.bytes());
        }
        let answer = String::from_utf8(answer).unwrap();
        let answer = answer.trim_end();
        assert!(!answer.starts_with("failed"), "{what}: {}", answer.replace(" | ", "\n"));
        answer.to_owned()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Whatever it was told is done; a test that fails has no more use for it either.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
