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

/// All names in a directory, sorted by their bytes.
async fn list(directory: &Directory, path: Path<'_>) -> Result<Vec<Listed>, Trouble> {
    let (mut all, mut cursor) = (Vec::new(), CURSOR_START);
    loop {
        let names = directory.page(path, cursor).await?;
        let Some(page) = names.page() else { break };
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
