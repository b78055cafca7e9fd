//! From what was written on a command line to a directory that can be asked: a locator and an introduction
//! server, or an inherited descriptor.
//!
//! It owns the way there and what is said when it leads nowhere. It must never know what is asked of the
//! directory afterwards.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use introduction::{ConnectError, Expect, Identity, Locator, LocatorError, Netlayer, Proof, SturdyRef};
use ring::{Executor, Kind, Reactor, Socket};
use seqpacket::Pairs;

use crate::files::client::{Directory, Meter};
use crate::files::wire::{self, Admission, Entrance, NotAdmitted};
use crate::options::files::Source;
use crate::output::{Failure, printable, remark};
use crate::reactor::{self, within};

/// Where introduction servers are, with a colon between, if no option says so.
pub const VIA_VARIABLE: &str = "SENDRIGHT_VIA";

/// How long a service may take to let somebody in who has been introduced.
const ENTRANCE_TIME_MAX: Duration = Duration::from_secs(10);

/// The largest file that may contain a locator, in bytes.
const LOCATOR_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A directory that can be asked.
pub struct Reached {
    pub executor: Executor,
    pub directory: Directory,
}

/// The address of a directory that nobody has asked anything yet.
pub struct Address {
    pub reactor: Reactor,
    pub executor: Executor,
    pub fd: OwnedFd,
}

/// Where introduction servers are: what was said, or what the environment says.
pub fn vias(said: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    if !said.is_empty() {
        return Ok(said.to_vec());
    }
    let listed = env::var_os(VIA_VARIABLE).unwrap_or_default();
    let paths = env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty());
    match paths.collect::<Vec<_>>() {
        paths if paths.is_empty() => Err(Failure::usage(format_args!(
            "which introduction server? Say --via PATH, or set {VIA_VARIABLE} to the path of its socket"
        ))),
        paths => Ok(paths),
    }
}

/// Takes what leads to a directory off the front of `words`, and goes there.
pub fn directory(source: &Source, words: &mut Vec<OsString>) -> Result<Reached, Failure> {
    let Address { reactor, executor, fd } = address(source, words)?;
    // A stock of pairs is for those who open many files, one object each.
    let directory = Directory::from_fd(&Pairs::new(&reactor, 0), &reactor, fd, &Meter::new());
    let directory = directory.map_err(|trouble| unfit(source, trouble))?;
    let directory = directory.within(Duration::from_secs(source.timeout));
    Ok(Reached { executor, directory })
}

/// The same, without asking anything of it.
pub fn address(source: &Source, words: &mut Vec<OsString>) -> Result<Address, Failure> {
    if let Some(number) = source.fd {
        let fd = ring::inherit::take(number);
        let fd = fd.map_err(|error| Failure::usage(format_args!("--fd {number}: {error}")))?;
        let (reactor, executor) = reactor::start(None)?;
        return Ok(Address { reactor, executor, fd });
    }
    if words.is_empty() {
        return Err(Failure::usage("which directory? Say a LOCATOR, or --fd N for an inherited one"));
    }
    let reference = read_locator(&words.remove(0))?;
    let vias = vias(&source.via)?;
    let (reactor, executor) = reactor::start(None)?;
    let time = Duration::from_secs(source.timeout);
    let fd = executor.block_on(enter(&reactor, &reference, &vias, time))?;
    Ok(Address { reactor, executor, fd })
}

fn unfit(source: &Source, trouble: impl std::fmt::Display) -> Failure {
    match source.fd {
        Some(number) => Failure::usage(format_args!("--fd {number}: {trouble}")),
        None => Failure::new(trouble),
    }
}

/// A locator, or `@FILE`: what stands on a command line everybody can see, and the secret with it.
fn read_locator(word: &OsString) -> Result<SturdyRef, Failure> {
    let text = match word.as_bytes().strip_prefix(b"@") {
        Some(path) => {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            let shown = printable(path.as_os_str().as_bytes());
            let mut text = String::new();
            // What a pipe or a device has nobody knows before.
            let file = fs::File::open(path).map(|file| file.take(LOCATOR_FILE_BYTES_MAX + 1));
            let read = file.and_then(|mut file| file.read_to_string(&mut text));
            match read.map_err(|error| Failure::new(format_args!("{shown}: {error}")))? {
                length if length as u64 > LOCATOR_FILE_BYTES_MAX => {
                    return Err(Failure::usage(format_args!("{shown}: too long for a locator")));
                }
                _ => text,
            }
        }
        None => word.to_string_lossy().into_owned(),
    };
    let text = text.trim();
    text.parse::<SturdyRef>().map_err(|error| {
        // Not the text itself: it may be a secret with a slip of the pen.
        let sentence = match error {
            LocatorError::Swiss if text.parse::<Locator>().is_ok() => {
                "the locator has no secret (/s/…): it says who, and not what".to_owned()
            }
            LocatorError::Form if !text.starts_with("ocapn://") => {
                "not a locator: those begin with ocapn://, or are in @FILE".to_owned()
            }
            error => error.to_string(),
        };
        Failure::usage(sentence)
    })
}

/// Is introduced, presents the secret, and is given the address.
async fn enter(
    reactor: &Reactor,
    reference: &SturdyRef,
    vias: &[PathBuf],
    time: Duration,
) -> Result<OwnedFd, Failure> {
    if reference.locator.hints.proof != Proof::Required {
        // Services always demand it. Somebody has taken it out, to be told the secret in the service's place.
        return Err(Failure::usage(
            "the locator demands no proof of who the service is: its secret could go to anybody",
        ));
    }
    let netlayer = Netlayer::new(reactor, Identity::generate().map_err(Failure::new)?);
    register(reactor, &netlayer, &reference.locator, vias, time).await?;
    let connected = within(reactor, time, netlayer.connect(&reference.locator)).await;
    let connection = connected.unwrap_or(Err(ConnectError::Unanswered)).map_err(|error| match error {
        ConnectError::Unanswered => Failure::new("the service is not there, or does not answer"),
        ConnectError::NoServer => Failure::new("the service is not registered with this introduction server"),
        error => Failure::new(error),
    })?;
    let Some(socket) = connection.into_seqpacket() else {
        return Err(Failure::new("the locator is that of another kind of service"));
    };
    let conversation = async {
        let sent = socket.send(Entrance { swiss: reference.swiss.bytes() }.encode()).await;
        sent.map_err(|error| Failure::new(format_args!("presenting the secret: {error}")))?;
        let answer = socket.receive().await;
        answer.map_err(|error| Failure::new(format_args!("waiting to be let in: {error}")))
    };
    let answer = within(reactor, ENTRANCE_TIME_MAX.min(time), conversation).await;
    let mut answer = answer.unwrap_or_else(|| Err(Failure::new("the service does not let anybody in")))?;
    match Admission::parse(answer.bytes()) {
        Ok(Admission::Directory { .. }) => {
            answer.take_descriptor().ok_or_else(|| Failure::new("the service answered without a descriptor"))
        }
        Ok(Admission::No(reason)) => Err(Failure::new(match reason {
            NotAdmitted::Unknown => "the locator's secret opens nothing here: it is wrong, or was taken back",
            NotAdmitted::Busy => "the service has no room; try again later",
            NotAdmitted::NotThere => "what the locator stands for is not there now",
        })),
        Err(malformed) => Err(Failure::new(format_args!("the service answered with {malformed}"))),
    }
}

/// Registers with the first server that the locator names.
async fn register(
    reactor: &Reactor,
    netlayer: &Netlayer,
    locator: &Locator,
    vias: &[PathBuf],
    time: Duration,
) -> Result<(), Failure> {
    let named = &locator.hints.servers;
    if named.is_empty() {
        return Err(Failure::usage("the locator names no introduction server"));
    }
    // With one that is named, another server gets nothing signed.
    let expect = match (named.len(), named.first()) {
        (1, Some(key)) => Expect::key(*key),
        _ => Expect::default(),
    };
    let mut complaints = Vec::new();
    for via in vias {
        let shown = printable(via.as_os_str().as_bytes());
        let added = async {
            let fd = connect(reactor, via, time).await.map_err(|error| error.to_string())?;
            netlayer.add_server(fd, expect).await.map_err(|error| error.to_string())
        };
        match added.await {
            Ok(disconnected) if named.contains(&disconnected.server()) => {
                complaints.iter().for_each(remark);
                return Ok(());
            }
            Ok(disconnected) => {
                netlayer.remove_server(&disconnected.server());
                complaints.push(format!("{shown}: not a server that the locator names"));
            }
            Err(error) => complaints.push(format!("{shown}: {error}")),
        }
    }
    Err(Failure::new(complaints.join("; ")))
}

/// A connection to an introduction server. One that takes none while others wait before it, because it is
/// stopped or overrun, is given up after this time.
pub async fn connect(reactor: &Reactor, via: &Path, time: Duration) -> io::Result<OwnedFd> {
    let connected = within(reactor, time, Socket::connect(reactor, via, Kind::Stream)).await;
    let socket = connected.unwrap_or_else(|| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not take the connection"))
    })?;
    socket.into_fd().map_err(|_| io::Error::other("the connection is busy"))
}

/// A path beneath a directory, as it is written: `/` and `.` in front, and slashes behind, say nothing.
pub fn path(word: &OsString) -> Result<wire::Path<'_>, Failure> {
    let mut bytes = word.as_bytes();
    while let Some(rest) = bytes.strip_suffix(b"/") {
        bytes = rest;
    }
    loop {
        bytes = match bytes {
            b"." => b"",
            [b'.', b'/', rest @ ..] | [b'/', rest @ ..] => rest,
            _ => break,
        };
    }
    wire::Path::new(bytes).map_err(|_| {
        let shown = printable(word.as_bytes());
        Failure::usage(format_args!("{shown}: not a path beneath the directory (.., // or too long)"))
    })
}

/// The same, for what has to have a name.
pub fn place(word: &OsString) -> Result<wire::Place<'_>, Failure> {
    let shown = printable(word.as_bytes());
    path(word)?.place().ok_or_else(|| Failure::usage(format_args!("{shown:?}: that is the directory itself")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_path_may_be_written_in_several_ways() {
        for (written, is) in
            [("a/b", "a/b"), ("/a/b", "a/b"), ("./a/b/", "a/b"), (".", ""), ("/", ""), ("", "")]
        {
            assert_eq!(path(&written.into()).unwrap().bytes(), is.as_bytes(), "{written:?}");
        }
        for wrong in ["..", "a/../b", "/../a", "a//b", "a/./b"] {
            assert!(path(&wrong.into()).is_err(), "{wrong:?}");
        }
        assert!(place(&"/".into()).is_err());
    }

    #[test]
    fn a_mistake_in_a_locator_does_not_print_its_secret() {
        let key = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
        let good = format!("ocapn://{key}.unix-domain-socket/s/c2VjcmV0?{key}=t");
        assert!(read_locator(&OsString::from(&good)).is_ok());
        let without = format!("ocapn://{key}.unix-domain-socket?{key}=t");
        let told = read_locator(&OsString::from(&without)).unwrap_err().to_string();
        assert!(told.contains("no secret"), "{told}");
        for wrong in
            [good.replace("c2VjcmV0", "c2VjcmV0!"), good.replace("unix", "c2VjcmV0"), "c2VjcmV0".into()]
        {
            let told = read_locator(&OsString::from(&wrong)).unwrap_err().to_string();
            assert!(!told.contains("c2VjcmV0"), "{told}");
        }
    }
}
