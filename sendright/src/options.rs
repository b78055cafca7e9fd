//! The command line: what can be asked of the program, and how it explains itself.
//!
//! It owns names, defaults and help. It must never know how anything is done. A mistake in it is told on
//! standard error with status 2; help and version are answers like any other and go where answers go.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Args, Parser, Subcommand};

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
    /// Three processes share nothing but descriptors. A service holds DIR. A client that has dropped its
    /// access to the file system holds one inherited address; it walks the whole tree through directory and
    /// file objects, opens every file by a call, and hashes what it reads through the descriptor that came
    /// back. It grants one directory to a third process, which does the same with that. This process reads
    /// everything directly and compares.
    Demo(Demo),

    /// Say what this machine can do, which driver runs and why, and which limits will bite
    Probe(Probe),

    /// Serve an inherited descriptor, sending back whatever arrives
    ///
    /// Something to talk to from another language: start it with one end of an AF_UNIX SOCK_SEQPACKET socket
    /// pair and speak the protocol on the other. It ends with status 0 when nobody holds the other end any
    /// more.
    #[command(subcommand)]
    Echo(Echo),

    /// The file service of `demo`, in a process of its own
    #[command(name = "__service", hide = true)]
    DemoService(DemoService),

    /// A walking process of `demo`
    #[command(name = "__walker", hide = true)]
    DemoWalker(DemoWalker),
}

#[derive(Debug, Args)]
pub struct Demo {
    /// The directory to export [default: the checkout the current directory is in, or the current directory]
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// The driver of every process [default: what SENDRIGHT_DRIVER says, or the best one that works]
    #[arg(long, value_name = "DRIVER", value_parser = ["auto", "uring", "epoll"])]
    pub driver: Option<String>,

    /// Print one JSON object and no progress
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Probe {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
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

#[derive(Debug, Args)]
pub struct DemoService {
    #[arg(long)]
    pub driver: Option<String>,
}

#[derive(Debug, Args)]
pub struct DemoWalker {
    #[arg(long)]
    pub driver: Option<String>,

    /// The exported directory, only to show that it cannot be opened.
    #[arg(long)]
    pub forbidden: OsString,

    /// The directory whose object comes over the inherited socket instead of an inherited address.
    #[arg(long)]
    pub guest: bool,

    /// What to grant to the guest: a name in the root; without it the root itself.
    #[arg(long)]
    pub grant: Option<OsString>,
}

/// Reads the command line. `Err` is the status to end with: help was given, or a mistake told.
pub fn read() -> Result<Options, Outcome> {
    Options::try_parse().map_err(|error| answer(&error).unwrap_or_else(|failure| failure.tell()))
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
}
