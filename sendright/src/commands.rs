//! What people do with a directory that is served elsewhere, as they would with one of their own.
//!
//! Each command owns what it asks and prints. None of them must ever know how the directory was reached, nor
//! print a byte that a stranger has chosen to a terminal as it is.

mod cat;
mod change;
mod find;
mod forward;
mod glob;
mod ls;
mod names;
mod put;
mod stat;

use std::ffi::OsString;

use crate::files::client::{Directory, Trouble};
use crate::files::wire::{CURSOR_START, Kind, Path};
use crate::output::{Failure, Outcome, complain, printable};

pub use cat::cat;
pub use change::{chmod, ln, mkdir, mv, rm, rmdir, touch};
pub use find::find;
pub use forward::forward;
pub use ls::ls;
pub use put::put;
pub use stat::stat;

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub name: Vec<u8>,
    pub kind: Kind,
}

/// How much of one directory is kept, in bytes: some millions of names. A service that never comes to an end
/// must not be able to fill up whoever lists it.
const LISTING_BYTES_MAX: usize = 1 << 30;

/// All names in a directory, sorted by their bytes.
async fn list(directory: &Directory, path: Path<'_>) -> Result<Vec<Listed>, Trouble> {
    list_up_to(LISTING_BYTES_MAX, directory, path).await
}

async fn list_up_to(bytes_max: usize, directory: &Directory, path: Path<'_>) -> Result<Vec<Listed>, Trouble> {
    let (mut all, mut cursor, mut bytes) = (Vec::new(), CURSOR_START, 0);
    loop {
        let names = directory.page(path, cursor).await?;
        let Some(page) = names.page() else { break };
        bytes += page.entries().map(|entry| size_of::<Listed>() + entry.name.bytes().len()).sum::<usize>();
        if bytes > bytes_max {
            return Err(Trouble::TooMany);
        }
        all.extend(
            page.entries().map(|entry| Listed { name: entry.name.bytes().to_vec(), kind: entry.kind }),
        );
        match page.next_cursor() {
            Some(next) if page.entries().next().is_some() => cursor = next,
            _ => break,
        }
    }
    // A name may come twice if the directory changes while it is listed.
    all.sort();
    all.dedup_by(|one, other| one.name == other.name);
    Ok(all)
}

/// What a directory's path and a name in it are together.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, b"/", name].concat(),
    }
}

/// The paths that were said, or the directory itself.
fn paths_or_here(words: Vec<OsString>) -> Vec<OsString> {
    if words.is_empty() { vec![OsString::from("")] } else { words }
}

/// Tells what went wrong with one of several things, and that something did.
fn complain_of(word: &[u8], trouble: impl std::fmt::Display) -> Outcome {
    complain(format_args!("{}: {trouble}", printable(word)));
    Outcome::Failed
}

/// Permissions as people write them.
fn octal(text: &str) -> Result<u32, Failure> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ ..=0o7777) => Ok(mode),
        _ => Err(Failure::usage(format_args!("{text:?} are no permissions in octal"))),
    }
}

/// What is left of permissions in this process.
fn less_the_umask(mode: u32) -> u32 {
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    mode & !umask.as_raw_mode()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use ring::{Executor, Reactor};
    use rustix::fs::{Mode, OFlags};
    use seqpacket::Pairs;
    use testing::on_each_driver;

    use super::*;
    use crate::files::client::Meter;
    use crate::files::server::{Lease, Rights, Service};

    on_each_driver! {
        fn a_directory_without_an_end_fills_up_nobody(reactor: &Reactor) {
            let folder = tempfile::tempdir().unwrap();
            for name in ["one", "two"] {
                fs::write(folder.path().join(name), "").unwrap();
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(folder.path(), flags, Mode::empty()).unwrap();
            let executor = Executor::new(reactor);
            let service = Service::new(&executor, &root, 1);
            let address = service.give(&root, Path::HERE, Rights::ReadOnly, &Lease::new(1)).unwrap();
            let directory = Directory::from_fd(&Pairs::new(reactor, 0), reactor, address, &Meter::new());
            let directory = directory.unwrap();
            let bytes = 2 * (size_of::<Listed>() + 3);
            executor.block_on(async {
                assert_eq!(list_up_to(bytes, &directory, Path::HERE).await.unwrap().len(), 2);
                let refused = list_up_to(bytes - 1, &directory, Path::HERE).await;
                assert!(matches!(refused, Err(Trouble::TooMany)), "{refused:?}");
            });
            drop(directory);
            executor.block_on(service.idle());
        }
    }
}
