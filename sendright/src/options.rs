//! The command line: what can be asked of the program, and how it explains itself.
//!
//! It owns names, defaults and help. It must never know how anything is done. A mistake in it is told on
//! standard error with status 2; help and version are answers like any other and go where answers go.

pub mod files;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::builder::{RangedI64ValueParser, RangedU64ValueParser};
use clap::{Args, Parser, Subcommand};
use introduction::{Locator, PublicKey};
use perf::suite::Suite;

use crate::output::{self, Failure, Outcome};

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default())
    .error(AnsiColor::Red.on_default().bold());

/// Objects and files handed from process to process as descriptors.
#[derive(Debug, Parser)]
#[command(
    name = "sendright",
    version,
    styles = STYLES,
    max_term_width = 100,
    disable_help_subcommand = false,
    after_help = "Environment:\n  \
        SENDRIGHT_DRIVER  auto, uring or epoll: the driver where no option says otherwise [default: auto]\n  \
        SENDRIGHT_VIA     the sockets of introduction servers, with a colon between\n  \
        NO_COLOR          no colours\n  \
        RUST_LOG          log lines of the libraries on standard error, for example ring=debug\n\n\
        Exit status: 0 done and good, 1 failed or not good, 2 the command line cannot be carried out."
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Export a directory to processes that have no file system, and check what they read
    ///
    /// Three processes share nothing but descriptors. A service holds DIR and registers with an introduction
    /// server. A client that has dropped its access to the file system knows the service's locator and
    /// nothing else; it is introduced, both prove who they are, and the server is ended. Then the client
    /// walks the whole tree through directory and file objects, opens every file by a call, and hashes what
    /// it reads through the descriptor that came back. It grants one directory to a third process, which does
    /// the same with that. This process reads everything directly and compares.
    Demo(Demo),

    /// Say what this machine can do, which driver runs and why, and which limits will bite
    Probe(Probe),

    /// Measure what calls cost here, beside the bare system calls of the same run
    ///
    /// Two processes on one CPU, or one CPU each; what is measured and its floor take turns in short rounds,
    /// so that whatever the machine does meanwhile it does to both. Read the ratios: they are what another
    /// machine will see, too.
    ///
    /// The times of rows at a depth above 1 are those of calls begun together, divided by their number. With
    /// --rate they are what each of those calls would have waited, counted from when it was due.
    Bench(Bench),

    /// Kill whoever takes part, over and over, and account for every call and every descriptor
    ///
    /// Clients call two servers with descriptors and without, with large messages and small, from tasks and
    /// from a thread that waits for each answer; some calls are handed on to third parties, some are
    /// withdrawn, some let go of. One server's object outlives it and is connected to anew; the other's is
    /// found through an introduction server. All are processes, and any of them is killed at any moment and
    /// started again. Each call has a number and each descriptor says which it is; what happens is written
    /// down in a journal that no death can touch, and worked out from that.
    ///
    /// Exit status: 0 if nothing was lost without a word, doubled, delivered to somebody else, unexplained or
    /// left open, and no process had more memory than it may; 1 if anything was, or the run could not be had;
    /// 2 for a mistake in the command line. Ctrl-C ends it early, with the verdict so far; twice, at once.
    Stress(Stress),

    /// Serve an inherited descriptor, sending back whatever arrives
    ///
    /// Something to talk to from another language: start it with one end of an AF_UNIX SOCK_SEQPACKET socket
    /// pair and speak the protocol on the other. It ends with status 0 when nobody holds the other end any
    /// more.
    #[command(subcommand)]
    Echo(Echo),

    /// Run an introduction server: programs that know each other by key get a socket of their own
    ///
    /// Whoever can open the socket may connect, so its mode and directory are the first lock; --allow-uid and
    /// --allow-gid are the second. When it is ready the server prints its key, one line of 52 characters, on
    /// standard output; everything else goes to standard error.
    ///
    /// It listens on PATH, or on the sockets that systemd hands over (LISTEN_FDS; one that is named `metrics`
    /// is for the counters, another one for peers). It says when it is ready, reloads and stops
    /// (NOTIFY_SOCKET). SIGTERM and SIGINT end it, with status 0; SIGHUP reads --config again.
    ///
    /// Once started it can open nothing and connect to nothing (Landlock, no-new-privs): it may remove what
    /// stands in the directory of its socket and read what stands in the directory of --config, so give each
    /// a directory of its own.
    Introduce(Box<Introduce>),
    /// Export a directory to whoever knows a locator that this prints
    ///
    /// Registers with introduction servers and stays so, whatever becomes of them. Each grant has a locator
    /// with a secret in it: knowing it is the right to use it. Nothing outside DIR can be reached, no
    /// symbolic link is followed, and nothing can be changed unless --writable is said.
    Serve(files::Serve),

    /// Say what a service grants, grant more, or take a grant back
    Grants(files::Grants),

    /// List what is in a directory that is served elsewhere
    Ls(files::Ls),

    /// Copy files that are served elsewhere to standard output
    Cat(files::Cat),

    /// Put a file where a directory is served, whole or not at all
    Put(files::Put),

    /// Say all there is to say about files that are served elsewhere
    Stat(files::Stat),

    /// Go through a tree that is served elsewhere
    ///
    /// The options can be written with one hyphen, as find has them: -name, -type, -maxdepth, -mindepth,
    /// -print0.
    Find(files::Find),

    /// Make directories where one is served
    Mkdir(files::Mkdir),

    /// Remove empty directories where one is served
    Rmdir(files::Change),

    /// Remove files where a directory is served
    Rm(files::Change),

    /// Give something another name where a directory is served
    #[command(override_usage = "sendright mv [OPTIONS] LOCATOR FROM TO")]
    Mv(files::Change),

    /// Give a file one more name where a directory is served, or make a symbolic link
    #[command(override_usage = "sendright ln [OPTIONS] LOCATOR FROM TO\n       \
                          sendright ln -s [OPTIONS] LOCATOR TARGET PATH")]
    Ln(files::Ln),

    /// Change permissions where a directory is served
    #[command(override_usage = "sendright chmod [OPTIONS] OCTAL LOCATOR PATH...")]
    Chmod(files::Chmod),

    /// Set the times of files to now where a directory is served, and make those that are missing
    Touch(files::Change),

    /// Start a program with a directory that is served elsewhere among its descriptors
    ///
    /// The program finds the address of the directory under the number that SENDRIGHT_FD says, and can speak
    /// to it itself, or through `sendright ls --fd $SENDRIGHT_FD` and the like.
    Forward(files::Forward),

    /// The file service of `demo`, in a process of its own
    #[command(name = "__service", hide = true)]
    DemoService(DemoService),

    /// A walking process of `demo`
    #[command(name = "__walker", hide = true)]
    DemoWalker(DemoWalker),

    /// A party of `stress`
    #[command(name = "__stress", hide = true)]
    StressParty(StressParty),
}

#[derive(Debug, Args)]
pub struct Demo {
    /// The directory to export [default: the checkout the current directory is in, or the current directory]
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// The driver of every process [default: what SENDRIGHT_DRIVER says, or the best one that works]
    #[arg(long, value_name = "DRIVER", value_parser = ["auto", "uring", "epoll"])]
    pub driver: Option<String>,

    /// Do without an introduction: the client starts with the address of the directory
    #[arg(long)]
    pub inherited: bool,

    /// Print one JSON object and no progress
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Stress {
    /// How calls travel; all: one way after the other
    #[arg(long, value_name = "WAY", default_value = "all", value_parser = [
        "all", "session", "plain", "returned",
    ])]
    pub way: String,

    /// How many calls there are of each way [default: 20000, or as many as the time allows]
    #[arg(long, value_name = "N", value_parser = count(1..=1_000_000_000))]
    pub calls: Option<u64>,

    /// For how long calls are made of each way, at most
    #[arg(long, value_name = "S", value_parser = count(1..=1_000_000))]
    pub seconds: Option<u64>,

    /// Descriptors in each call, and in each answer, that say which they are; with any there is one more, a
    /// pipe's, by which the last of all is noticed to be gone
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = fds())]
    pub fds: u8,

    /// Somebody is killed every so many milliseconds, give or take half of it; 0: nobody
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = count(0..=1_000_000))]
    pub kill_every: u64,

    /// The CPUs among which the parties are divided [default: wherever the kernel puts them]
    #[arg(long, value_name = "N[,M...]")]
    pub cpus: Option<String>,

    /// The driver of every process [default: what SENDRIGHT_DRIVER says, or the best one that works]
    #[arg(long, value_name = "DRIVER", value_parser = ["auto", "uring", "epoll"])]
    pub driver: Option<String>,

    /// What the choices are made from: who is killed, and what becomes of each call. When exactly is up to
    /// the machine [default: drawn, and told]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Keep what everybody has written down, a JSON object in each line: added to the end of FILE
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,

    /// Print one JSON object and no progress
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StressParty {
    #[arg(long, value_parser = ["client", "server", "third"])]
    pub role: String,

    /// Which of its kind.
    #[arg(long)]
    pub index: u8,

    #[arg(long)]
    pub life: u32,

    #[arg(long)]
    pub way: String,

    #[arg(long)]
    pub fds: u8,

    #[arg(long)]
    pub seed: u64,

    /// The key of the introduction server.
    #[arg(long)]
    pub server: PublicKey,

    /// Where it listens.
    #[arg(long)]
    pub via: PathBuf,

    #[arg(long)]
    pub cpu: Option<usize>,

    #[arg(long)]
    pub driver: Option<String>,
}

#[derive(Debug, Args)]
pub struct Probe {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    pub only: Option<BenchOnly>,

    /// What to measure
    ///
    /// quick: every way, client and driver, one call at a time and 32 together, without and with a
    /// descriptor. full: the same for 8 bytes to 64 KiB, 1 to 256 calls together and 0 to 16 descriptors. The
    /// others measure one thing each.
    #[arg(long, value_name = "NAME", default_value = "quick")]
    pub suite: Suite,

    /// The CPU of both processes, which then sleep; or two, one for each, and then they spin [default: the
    /// first that is allowed]
    #[arg(long, value_name = "N[,M]")]
    pub cpus: Option<String>,

    /// For how long each row runs [default: what lets quick end within a minute]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<f64>,

    /// Have so many calls due in each second, instead of one after the other
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub rate: Option<f64>,

    /// One driver alone [default: what SENDRIGHT_DRIVER says, or both]
    #[arg(long, value_name = "DRIVER", value_parser = ["uring", "epoll"])]
    pub driver: Option<String>,

    /// Only the groups of rows with this in their titles, such as `clients` of isolation
    #[arg(long, value_name = "TEXT")]
    pub titled: Option<String>,

    /// Print a JSON array with an object for each row
    #[arg(long)]
    pub json: bool,

    /// Write a page with plots, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum BenchOnly {
    /// Make calls of one kind and nothing else, looking at no clock
    ///
    /// For `strace -c -f`, `perf record`, callgrind and their like, which count what a call does.
    Only(Only),
}

#[derive(Debug, Args)]
pub struct Only {
    /// How calls travel; raw and raw-… are bare system calls
    #[arg(long, value_name = "WAY", default_value = "session", value_parser = [
        "session", "plain", "fresh", "returned", "raw", "raw-loop-served", "raw-loops", "raw-coalesced",
        "raw-five-steps", "raw-returned", "raw-returned-asked",
    ])]
    pub way: String,

    /// Who calls: a task of a reactor, or a thread that waits where it calls
    #[arg(long, value_name = "CLIENT", default_value = "async", value_parser = ["async", "blocking"])]
    pub client: String,

    /// The driver of every reactor [default: what SENDRIGHT_DRIVER says, or the best one that works]
    #[arg(long, value_name = "DRIVER", value_parser = ["auto", "uring", "epoll"])]
    pub driver: Option<String>,

    /// How many calls
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = count(1..=u64::MAX))]
    pub calls: u64,

    /// How many are begun together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(1..=65_536))]
    pub depth: u64,

    /// Bytes of a call, and of its answer
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = count(1..=65_536))]
    pub payload: u64,

    /// Descriptors of a call, and of its answer
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count(0..=16))]
    pub fds: u64,

    /// How many seconds a session call may take
    #[arg(long, value_name = "S", value_parser = count(1..=1_000_000))]
    pub within: Option<u64>,

    /// As for `bench`
    #[arg(long, value_name = "N[,M]")]
    pub cpus: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Echo {
    /// Serve the bound end of an imc address
    ///
    /// Accepts every connection (one packet: the byte `c` and one descriptor) and sends back each message
    /// that arrives on one, bytes and up to 253 descriptors.
    Imc(EchoImc),

    /// Serve the mailbox end of an object
    ///
    /// Without --plain the other end is an address to attach to, and calls run on sessions. With --plain
    /// every packet is a call: up to 252 descriptors and, last, the one to answer on.
    Object(EchoObject),
}

#[derive(Debug, Args)]
pub struct EchoImc {
    /// The number of the inherited descriptor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: i32,
}

#[derive(Debug, Args)]
pub struct EchoObject {
    /// The number of the inherited descriptor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: i32,

    /// The object is a plain one
    #[arg(long)]
    pub plain: bool,
}

fn fds() -> RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=i64::from(crate::stress::FDS_MAX))
}

fn count(range: RangeInclusive<u64>) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(range)
}

#[derive(Debug, Args)]
pub struct Introduce {
    /// Where to listen. A socket that nobody listens on any more is replaced, and nothing else is
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Who can open the socket: permission bits in octal
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = mode)]
    pub mode: u32,

    /// A user who may connect, by number; may be repeated [default: everybody who can open the socket]
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,

    /// A group whose members may connect, by number; may be repeated. What counts is the group a process runs
    /// as, not those it belongs to besides
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,

    /// Tell whoever asks for a peer that is not there, or that refuses, at once, instead of leaving all of
    /// them waiting until the time is over
    #[arg(long)]
    pub candid: bool,

    /// Let only those register whose signature is good for this server alone. Keeps out relayed
    /// registrations, and Goblins
    #[arg(long)]
    pub bound_only: bool,

    /// The form of the server's signature: `goblins` or `draft`
    #[arg(long, value_name = "FORM", default_value = "goblins", value_parser = ["goblins", "draft"])]
    pub form: String,

    /// More settings, in TOML: `log`, `allow-uid`, `allow-gid`. SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The file of the private key, made with mode 0600 where there is none [default: introduce.key in
    /// $STATE_DIRECTORY, else in sendright/ in $XDG_STATE_HOME, ~/.local/state or, for root, /var/lib]
    #[arg(long, value_name = "FILE", conflicts_with = "fresh_key")]
    pub key: Option<PathBuf>,

    /// Use a key that nobody has seen before, and forget it in the end
    #[arg(long)]
    pub fresh_key: bool,

    /// Where to show the counters, to whoever connects: text in Prometheus' form
    #[arg(long, value_name = "PATH")]
    pub metrics: Option<PathBuf>,

    /// Who can open the socket of the counters: permission bits in octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub metrics_mode: u32,

    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,

    /// Which log lines are written, as for RUST_LOG [default: what RUST_LOG says, or info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// The driver [default: what SENDRIGHT_DRIVER says, or the best one that works]
    #[arg(long, value_name = "DRIVER", value_parser = ["auto", "uring", "epoll"])]
    pub driver: Option<String>,

    /// End at once where this kernel has no Landlock, instead of going on with a warning
    #[arg(long)]
    pub require_sandbox: bool,

    /// End with the process that has started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,

    #[command(flatten)]
    pub limits: IntroduceLimits,
}

/// Without a value each is as in [`introduction::ServerOptions`], which has the reasons.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct IntroduceLimits {
    /// Connections in all [default: 256]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_connections: Option<usize>,

    /// Connections of one user [default: half of all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_connections_per_user: Option<usize>,

    /// Connections that have not proved who they are [default: 32]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_newcomers: Option<usize>,

    /// Introductions under way in all [default: 256]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_introductions: Option<usize>,

    /// Introductions under way that one peer has asked for [default: 16]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_introductions_per_peer: Option<usize>,

    /// How long an introduction is kept, in seconds [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub introduction_time: Option<Duration>,

    /// How long a newcomer may take to prove who it is, in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub handshake_time: Option<Duration>,

    /// How long a record that has begun may take, in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub record_time: Option<Duration>,

    /// How long a peer may leave its queue full, in seconds [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub write_time: Option<Duration>,
}

/// Permission bits in octal, as `chmod` takes them.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits are octal, from 0 to 0777".to_string()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one".to_string()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

/// A time that is not nothing, and short enough to be added to any moment.
fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds, more than 0 and at most 86400".to_string()),
    }
}

#[derive(Debug, Args)]
pub struct DemoService {
    #[arg(long)]
    pub driver: Option<String>,

    /// The key of the introduction server at the other end of the inherited stream. Without it the mailbox is
    /// inherited.
    #[arg(long)]
    pub server: Option<PublicKey>,
}

#[derive(Debug, Args)]
pub struct DemoWalker {
    #[arg(long)]
    pub driver: Option<String>,

    /// The exported directory, only to show that it cannot be opened.
    #[arg(long)]
    pub forbidden: OsString,

    /// The key of the introduction server at the other end of the inherited stream. Without it the address is
    /// inherited.
    #[arg(long, requires = "locator")]
    pub server: Option<PublicKey>,

    /// Where the service is to be found.
    #[arg(long)]
    pub locator: Option<Locator>,

    /// The directory whose object comes over the inherited socket instead of an inherited address.
    #[arg(long)]
    pub guest: bool,

    /// What to grant to the guest: a name in the root; without it the root itself.
    #[arg(long)]
    pub grant: Option<OsString>,
}

/// Reads the command line. `Err` is the status to end with: help was given, or a mistake told.
pub fn read() -> Result<Options, Outcome> {
    let words = std::env::args_os().collect();
    Options::try_parse_from(as_find_has_them(words))
        .map_err(|error| answer(&error).unwrap_or_else(|failure| failure.tell()))
}

/// The words after `find`, with two hyphens where `find` has one.
fn as_find_has_them(mut words: Vec<OsString>) -> Vec<OsString> {
    const OPTIONS: [&str; 5] = ["-name", "-type", "-maxdepth", "-mindepth", "-print0"];
    if words.get(1).is_some_and(|word| word == "find") {
        let mut is_value = false;
        for word in words.iter_mut().skip(2) {
            let is_option = !is_value && OPTIONS.iter().any(|option| word == option);
            is_value = is_option && word != "-print0";
            if is_option {
                let mut longer = OsString::from("-");
                longer.push(&*word);
                *word = longer;
            }
        }
    }
    words
}

fn answer(error: &clap::Error) -> Result<Outcome, Failure> {
    let rendered = error.render();
    if error.use_stderr() {
        let text = match output::is_colourful(&std::io::stderr()) {
            true => rendered.ansi().to_string(),
            false => rendered.to_string(),
        };
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes());
        return Ok(Outcome::Usage);
    }
    let text = match output::is_colourful(&std::io::stdout()) {
        true => rendered.ansi().to_string(),
        false => rendered.to_string(),
    };
    output::say(&text)?;
    Ok(Outcome::Good)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn modes_are_octal_permission_bits() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("777"), Ok(0o777));
        for wrong in ["1000", "4755", "-1", "rw", "8", ""] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_seconds_within_a_day() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for wrong in ["0", "-1", "86401", "inf", "NaN", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(at_least_one("1"), Ok(1));
        assert!(at_least_one("0").is_err());
    }
}
