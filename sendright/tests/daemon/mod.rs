//! An introduction server in a process of its own, for every test that needs one.
//!
//! It owns the process, the directory with its sockets and what it writes. It knows nothing of what peers say
//! to each other.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use introduction::{Expect, Identity, Netlayer, PublicKey};
use ring::{Kind, Reactor, Socket};
use rustix::process::{Pid, Signal, kill_process};

use crate::program::sendright;

/// The process, serving; killed when dropped.
pub struct Daemon {
    child: Child,
    /// What it prints when it is ready.
    pub key: PublicKey,
    stdout: BufReader<std::process::ChildStdout>,
    folder: PathBuf,
}

/// A directory for sockets, logs and settings.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The command, with a key of its own and socket and log lines in `folder`, on the driver of the test.
pub fn command(folder: &Path) -> Command {
    let mut command = sendright();
    command.args(["introduce", "--fresh-key", "--socket"]).arg(folder.join("socket"));
    told(&mut command, folder);
    command
}

/// As a daemon is to be started: its words to where they are looked for.
pub fn told(command: &mut Command, folder: &Path) {
    command.env(ring::DRIVER_VARIABLE, testing::driver().to_string());
    for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "STATE_DIRECTORY"] {
        command.env_remove(variable);
    }
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
}

impl Daemon {
    /// Serves in `folder`.
    #[track_caller]
    pub fn start(folder: &Path) -> Daemon {
        Daemon::start_as(command(folder), folder)
    }

    /// Serves in `folder` with these further arguments.
    #[track_caller]
    pub fn start_with<I: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = I>) -> Daemon {
        let mut command = command(folder);
        command.args(arguments);
        Daemon::start_as(command, folder)
    }

    /// Starts this command and waits until it is ready.
    #[track_caller]
    pub fn start_as(command: Command, folder: &Path) -> Daemon {
        Daemon::try_start(command, folder).unwrap_or_else(|status| {
            panic!("not ready: {status}: {}", fs::read_to_string(folder.join("log")).unwrap())
        })
    }

    /// The same, or how it ended.
    pub fn try_start(mut command: Command, folder: &Path) -> Result<Daemon, ExitStatus> {
        let mut child = command.spawn().unwrap();
        // What it is given it has now, and nobody else.
        drop(command);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        match line.strip_suffix('\n') {
            Some(key) => Ok(Daemon { child, key: key.parse().unwrap(), stdout, folder: folder.to_owned() }),
            None => Err(child.wait().unwrap()),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Waits until it has logged this.
    #[track_caller]
    pub fn logs(&self, what: &str) {
        testing::wait_until(&format!("it has logged {what:?}"), || self.log().contains(what));
    }

    /// Ends it with this signal, which it must take well.
    #[track_caller]
    pub fn ends_well(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}: {}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
        let mut more = String::new();
        self.stdout.read_to_string(&mut more).unwrap();
        assert_eq!(more, "", "the key is all it prints");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        testing::wait_until("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Gives it no chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The counters, from its socket in the folder.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        UnixStream::connect(self.folder.join("metrics")).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// One of them.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let name = format!("sendright_introduce_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until one of them has this value.
    #[track_caller]
    pub fn counts(&self, name: &str, value: u64) {
        testing::wait_until(&format!("{name} is {value}"), || self.metric(name) == value);
    }

    /// A connection to it.
    pub async fn line(&self, reactor: &Reactor) -> OwnedFd {
        line(reactor, &self.socket()).await
    }

    /// A netlayer that is registered with it.
    pub async fn netlayer(&self, reactor: &Reactor, seed: u8) -> (Netlayer, introduction::Disconnected) {
        let netlayer = Netlayer::new(reactor, Identity::from_seed(&[seed; 32]));
        let line = self.line(reactor).await;
        let gone = netlayer.add_server(line, Expect::key(self.key).bound()).await.unwrap();
        (netlayer, gone)
    }
}

/// A connection to whoever listens there.
pub async fn line(reactor: &Reactor, path: &Path) -> OwnedFd {
    Socket::connect(reactor, path, Kind::Stream).await.unwrap().into_fd().unwrap()
}

/// Introduces two fresh peers to each other and has them say something.
pub async fn introduces(reactor: &Reactor, daemon: &Daemon) {
    let (anne, _annes) = daemon.netlayer(reactor, 101).await;
    let (bert, _berts) = daemon.netlayer(reactor, 102).await;
    meet(&anne, &bert).await;
}

/// One finds the other and is understood.
pub async fn meet(anne: &Netlayer, bert: &Netlayer) {
    let near = anne.connect(&bert.our_location()).await.unwrap().into_seqpacket().unwrap();
    let incoming = bert.incoming().await;
    assert_eq!(incoming.from().key, anne.key());
    let far = incoming.accept().into_seqpacket().unwrap();
    near.send("hello").await.unwrap();
    assert_eq!(far.receive().await.unwrap().bytes(), b"hello");
    far.send("and to you").await.unwrap();
    assert_eq!(near.receive().await.unwrap().bytes(), b"and to you");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
