//! A directory that is served, an introduction server to find it by, and people who use it from other
//! processes.
//!
//! It owns the processes and the folder in which everything lies. It knows nothing of what is asked.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{self, Daemon};
use crate::program::{self, sendright};

/// The folder of a test: `tree` is what is served, beside it lie `secret` and what the processes need.
pub struct World {
    pub folder: TempDir,
    pub introducer: Option<Daemon>,
}

/// `sendright serve`, running; killed when dropped.
pub struct Service {
    pub child: Child,
    pub locators: Vec<(String, String)>,
    stdout: BufReader<ChildStdout>,
    errors: PathBuf,
}

impl World {
    pub fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("sub/deep")).unwrap();
        fs::write(tree.join("one"), "first\n").unwrap();
        fs::write(tree.join("sub/two"), "second\n").unwrap();
        fs::write(tree.join(".hidden"), "seen only by who asks\n").unwrap();
        fs::write(folder.path().join("secret"), "not yours\n").unwrap();
        let mut world = World { folder, introducer: None };
        world.start_introducer();
        world
    }

    /// The same server as before, as far as its key says.
    pub fn start_introducer(&mut self) {
        let folder = self.folder.path();
        let mut command = sendright();
        command.args(["introduce", "--key"]).arg(folder.join("introduce.key"));
        command.arg("--socket").arg(folder.join("socket"));
        daemon::told(&mut command, folder);
        self.introducer = Some(Daemon::start_as(command, folder));
    }

    pub fn kill_introducer(&mut self) {
        self.introducer.take().unwrap().kill();
    }

    pub fn tree(&self, path: impl AsRef<OsStr>) -> PathBuf {
        self.folder.path().join("tree").join(path.as_ref())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command with everything it needs to find the introduction server.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        self.surround(sendright(), arguments)
    }

    /// The same with so many descriptors.
    pub fn command_with_descriptors<I: AsRef<OsStr>>(
        &self,
        descriptors: usize,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(limited).arg(env!("CARGO_BIN_EXE_sendright"));
        self.surround(command, arguments)
    }

    fn surround<I: AsRef<OsStr>>(
        &self,
        mut command: Command,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        command.args(arguments).env("SENDRIGHT_VIA", self.file("socket"));
        command.env_remove("RUST_LOG").env_remove("NO_COLOR").stdin(Stdio::null());
        command.env(ring::DRIVER_VARIABLE, testing::driver().to_string());
        command
    }

    /// Serves the tree with these further arguments.
    #[track_caller]
    pub fn serve(&self, arguments: &[&str]) -> Service {
        let grants = arguments.iter().filter(|argument| **argument == "--name").count().max(1);
        self.serve_as(self.command(["serve"]), arguments, grants)
    }

    #[track_caller]
    pub fn serve_as(&self, mut command: Command, arguments: &[&str], grants: usize) -> Service {
        let errors = self.file("errors");
        let log = File::options().create(true).append(true).open(&errors).unwrap();
        command.args(arguments).arg("--json").arg(self.file("tree")).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut service = Service { child, locators: Vec::new(), stdout, errors };
        service.locators = (0..grants).map(|_| service.next_locator()).collect();
        service
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, if it goes well.
    #[track_caller]
    pub fn says<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        let output = self.run(arguments);
        assert_eq!(program::status(&output), 0, "{}", program::stderr(&output));
        assert_eq!(program::stderr(&output), "");
        program::stdout(&output)
    }

    /// What it complains of, if it fails with this status.
    #[track_caller]
    pub fn fails<I: AsRef<OsStr>>(&self, status: i32, arguments: impl IntoIterator<Item = I>) -> String {
        let output = self.run(arguments);
        assert_eq!(program::status(&output), status, "{}", program::stderr(&output));
        assert_ne!(program::stderr(&output), "");
        program::stderr(&output)
    }

    /// What lies in the tree, everything below it included.
    pub fn everything(&self) -> Vec<OsString> {
        fn below(folder: &Path, found: &mut Vec<OsString>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.clone().into());
                if path.is_dir() && !path.is_symlink() {
                    below(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        below(&self.tree(""), &mut found);
        found.sort();
        found
    }
}

impl Service {
    /// The locator of the first grant.
    pub fn locator(&self) -> &str {
        &self.locators[0].1
    }

    /// The locator of a grant.
    pub fn locator_of(&self, name: &str) -> &str {
        &self.locators.iter().find(|(of, _)| of == name).unwrap().1
    }

    /// The next line it prints.
    #[track_caller]
    pub fn next_locator(&mut self) -> (String, String) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line:?}: {}", fs::read_to_string(&self.errors).unwrap()));
        (told["name"].as_str().unwrap().into(), told["locator"].as_str().unwrap().into())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Whether it has a file open in this directory that has no name.
    pub fn has_draft_in(&self, directory: &Path) -> bool {
        let links = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().flatten();
        let mut links = links.filter_map(|link| fs::read_link(link.path()).ok());
        links.any(|link| link.starts_with(directory) && link.to_string_lossy().ends_with("(deleted)"))
    }

    /// What it has complained of.
    pub fn complaints(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
