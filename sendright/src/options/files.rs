//! What can be asked of the file service and of those who use it.
//!
//! Names, defaults and help, as in the module above. It must never know how anything is done.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};

/// What all commands say that ask a file service for something.
#[derive(Debug, Args)]
pub struct Source {
    /// The socket of an introduction server; may be given several times [default: what SENDRIGHT_VIA says]
    #[arg(long, value_name = "PATH")]
    pub via: Vec<PathBuf>,

    /// The directory is this inherited descriptor; then no LOCATOR is given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,

    /// Give up on a server or service that does not answer, each time it is asked, in so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub timeout: u64,
}

/// How a program is to read what is printed.
#[derive(Debug, Args)]
pub struct Form {
    /// Print one JSON object for each
    #[arg(long, conflicts_with = "tsv")]
    pub json: bool,

    /// Print fields with a tab between; tabs, line feeds, backslashes and odd bytes in names are escaped
    #[arg(long)]
    pub tsv: bool,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// The directory to export
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// The socket of an introduction server; may be given several times [default: what SENDRIGHT_VIA says]
    #[arg(long, value_name = "PATH")]
    pub via: Vec<PathBuf>,

    /// Let holders change what is there
    #[arg(long)]
    pub writable: bool,

    /// A grant with a locator of its own, for all of DIR or what is at SUBDIR; may be given several times
    ///
    /// Each can be taken back by its name. `ro` may not change anything; `rw`, the default of a writable
    /// service, may.
    #[arg(long, value_name = "NAME[:ro|:rw][=SUBDIR]", value_parser = NonEmptyStringValueParser::new())]
    pub name: Vec<String>,

    /// Keep the identity in this file, and the grants beside it, so that the locators are the same next time
    ///
    /// Made if it is not there. FILE.grants has the secrets; FILE.control is where `sendright grants` asks,
    /// and FILE.lock keeps a second service from using the same.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Print one JSON object for each grant
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Grants {
    /// The file that `serve` was given
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    #[command(subcommand)]
    pub action: GrantsAction,
}

#[derive(Debug, Subcommand)]
pub enum GrantsAction {
    /// Say what is granted, and how much of it is in use
    List {
        /// Print one JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// Grant something more, and print its locator
    Add {
        /// As for `serve --name`
        #[arg(value_name = "NAME[:ro|:rw][=SUBDIR]", value_parser = NonEmptyStringValueParser::new())]
        grant: String,
    },
    /// Take a grant back, with all that came of it
    ///
    /// Who knows its locator is refused from now on; all directories and files that were reached through it
    /// are gone at once. What was opened before stays open: a descriptor cannot be taken back.
    Revoke {
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright ls [OPTIONS] LOCATOR [PATH]...\n       \
                      sendright ls [OPTIONS] --fd N [PATH]...")]
pub struct Ls {
    #[command(flatten)]
    pub source: Source,

    #[command(flatten)]
    pub form: Form,

    /// Names that begin with a dot as well
    #[arg(short, long, short_alias = 'A')]
    pub all: bool,

    /// A line for each, with kind, permissions, owner, size and time
    #[arg(short, long)]
    pub long: bool,

    /// One name on each line, as when the output is no terminal
    #[arg(short = '1')]
    pub one: bool,

    /// The directory itself and not what is in it
    #[arg(short, long)]
    pub directory: bool,

    /// LOCATOR (or @FILE that contains it), then paths
    #[arg(value_name = "LOCATOR|PATH")]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright cat [OPTIONS] LOCATOR PATH...\n       \
                      sendright cat [OPTIONS] --fd N PATH...")]
pub struct Cat {
    #[command(flatten)]
    pub source: Source,

    /// Control characters as they are, also to a terminal
    #[arg(long)]
    pub raw: bool,

    /// LOCATOR (or @FILE that contains it), then paths
    #[arg(value_name = "LOCATOR|PATH", required = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright put [OPTIONS] LOCAL|- LOCATOR PATH\n       \
                      sendright put [OPTIONS] --fd N LOCAL|- PATH")]
pub struct Put {
    #[command(flatten)]
    pub source: Source,

    #[command(flatten)]
    pub form: Form,

    /// Permissions of the new file, in octal [default: those of LOCAL or 666, less the umask]
    #[arg(long, value_name = "OCTAL")]
    pub mode: Option<String>,

    /// Fail if there is something of that name, instead of replacing it
    #[arg(short, long)]
    pub no_replace: bool,

    /// No progress
    #[arg(short, long)]
    pub quiet: bool,

    /// A file here or - for standard input, then LOCATOR (or @FILE that contains it), then the path there
    #[arg(value_name = "LOCAL|LOCATOR|PATH", required = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright stat [OPTIONS] LOCATOR [PATH]...\n       \
                      sendright stat [OPTIONS] --fd N [PATH]...")]
pub struct Stat {
    #[command(flatten)]
    pub source: Source,

    #[command(flatten)]
    pub form: Form,

    /// LOCATOR (or @FILE that contains it), then paths
    #[arg(value_name = "LOCATOR|PATH")]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright find [OPTIONS] LOCATOR [PATH]...\n       \
                      sendright find [OPTIONS] --fd N [PATH]...")]
pub struct Find {
    #[command(flatten)]
    pub source: Source,

    #[command(flatten)]
    pub form: Form,

    /// Only what has a name like this: * ? [abc] [!a-z], and \ before what is meant literally
    #[arg(long, value_name = "PATTERN")]
    pub name: Option<OsString>,

    /// Only what is of this kind
    #[arg(long = "type", value_name = "KIND", value_enum)]
    pub kind: Option<FoundKind>,

    /// Go down so many levels and no further
    #[arg(long, value_name = "LEVELS")]
    pub maxdepth: Option<usize>,

    /// Print nothing of the first levels
    #[arg(long, value_name = "LEVELS", default_value_t = 0)]
    pub mindepth: usize,

    /// End each path with a zero byte
    #[arg(long, conflicts_with_all = ["json", "tsv"])]
    pub print0: bool,

    /// LOCATOR (or @FILE that contains it), then where to begin
    #[arg(value_name = "LOCATOR|PATH")]
    pub words: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FoundKind {
    /// A file
    F,
    /// A directory
    D,
    /// A symbolic link
    L,
    /// A named pipe
    P,
    /// A socket
    S,
    /// A block device
    B,
    /// A character device
    C,
}

#[derive(Debug, Args)]
#[command(override_usage = "sendright forward [OPTIONS] LOCATOR -- PROGRAM [ARGUMENT]...\n       \
                      \
                      sendright forward [OPTIONS] --fd N -- PROGRAM [ARGUMENT]...")]
pub struct Forward {
    #[command(flatten)]
    pub source: Source,

    /// The directory at this path and not all of it
    #[arg(long, value_name = "PATH", default_value = "")]
    pub path: OsString,

    /// The program may not change anything
    #[arg(long)]
    pub read_only: bool,

    /// Take everything back when the program has ended, also from those to whom it has handed it on
    #[arg(long)]
    pub until_exit: bool,

    /// LOCATOR, or @FILE that contains it
    #[arg(value_name = "LOCATOR")]
    pub locator: Option<OsString>,

    /// The program, which finds the directory under the number that SENDRIGHT_FD says
    #[arg(value_name = "PROGRAM", last = true, required = true)]
    pub program: Vec<OsString>,
}

/// Commands that change one thing.
#[derive(Debug, Args)]
pub struct Change {
    #[command(flatten)]
    pub source: Source,

    /// LOCATOR (or @FILE that contains it), then paths
    #[arg(value_name = "LOCATOR|PATH", required = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Mkdir {
    #[command(flatten)]
    pub change: Change,

    /// Permissions, in octal [default: 777 less the umask]
    #[arg(short, long, value_name = "OCTAL")]
    pub mode: Option<String>,
}

#[derive(Debug, Args)]
pub struct Ln {
    #[command(flatten)]
    pub change: Change,

    /// A symbolic link that says TARGET, whatever that is
    #[arg(short, long)]
    pub symbolic: bool,
}

#[derive(Debug, Args)]
pub struct Chmod {
    #[command(flatten)]
    pub source: Source,

    /// OCTAL, then LOCATOR (or @FILE that contains it), then paths
    #[arg(value_name = "OCTAL|LOCATOR|PATH", required = true)]
    pub words: Vec<OsString>,
}
