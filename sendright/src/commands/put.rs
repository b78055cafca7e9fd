//! `sendright put`: a file from here to there, whole or not at all.
//!
//! It is written into a file that has no name, through a descriptor that the service has passed; then the
//! service is asked to give it its name. Whatever happens before that leaves nothing behind.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Map;

use super::names::{field, json_line, put_name};
use super::{less_the_umask, octal};
use crate::files::wire::{Onto, Place};
use crate::options::files::Put;
use crate::output::{Failure, Outcome, printable, say};
use crate::reach;
use crate::transfer::{Copied, Progress, copy};

/// What a new file may be for whoever has no umask.
const MODE_DEFAULT: u32 = 0o666;

/// Puts.
pub fn put(options: &Put) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let local = words.remove(0);
    let shown = printable(local.as_bytes());
    let file = open(&local).map_err(|error| Failure::new(format_args!("{shown}: {error}")))?;
    let metadata = file.metadata().map_err(|error| Failure::new(format_args!("{shown}: {error}")))?;
    if metadata.is_dir() {
        return Err(Failure::usage(format_args!("{shown}: a directory")));
    }
    let mode = match &options.mode {
        Some(text) => octal(text)?,
        None if local != "-" && metadata.is_file() => less_the_umask(metadata.mode() & 0o777),
        None => less_the_umask(MODE_DEFAULT),
    };
    let reached = reach::directory(&options.source, &mut words)?;
    let [path] = &words[..] else { return Err(Failure::usage("where to? Say one PATH")) };
    let path = destination(path, &local);
    let place = reach::place(&path)?;
    let onto = if options.no_replace { Onto::Nothing } else { Onto::Anything };
    let there = printable(place.path().bytes());
    let told = |trouble: &dyn std::fmt::Display| Failure::new(format_args!("{there}: {trouble}"));

    let draft = reached.executor.block_on(reached.directory.create(place, mode, onto));
    let draft = draft.map_err(|trouble| told(&trouble))?;
    let progress = match (options.quiet, metadata.is_file()) {
        (true, _) => Progress::none(),
        (false, true) => Progress::of(metadata.len()),
        (false, false) => Progress::unbounded(),
    };
    let target = draft.file.as_fd().try_clone_to_owned().map_err(|error| told(&error))?;
    let mut target = File::from(target);
    let bytes = copy(file, &mut target, &progress).map_err(|copied| match copied {
        Copied::Reading(error) => Failure::new(format_args!("{shown}: {error}")),
        Copied::Writing(error) => told(&error),
    })?;
    drop(progress);
    // Its bytes are on the disk before its name is, or a name could outlive a crash that its bytes do not.
    target.sync_all().map_err(|error| told(&error))?;
    reached.executor.block_on(draft.keep()).map_err(|trouble| told(&trouble))?;
    tell(options, place, bytes)?;
    Ok(Outcome::Good)
}

fn tell(options: &Put, place: Place<'_>, bytes: u64) -> Result<(), Failure> {
    let name = place.path().bytes();
    if options.form.json {
        let mut object = Map::new();
        put_name(&mut object, "path", name);
        object.insert("size_bytes".into(), bytes.into());
        return say(&json_line(&object));
    }
    if options.form.tsv {
        return say(&format!("{}\t{bytes}\n", field(name)));
    }
    Ok(())
}

fn open(local: &OsString) -> io::Result<File> {
    match local.as_bytes() {
        b"-" => Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?)),
        _ => File::open(local),
    }
}

/// With a slash behind it, the path is where a file of the same name goes.
fn destination(path: &OsString, local: &OsString) -> OsString {
    let is_folder = path.is_empty() || path == "." || path.as_bytes().ends_with(b"/");
    match Path::new(local).file_name() {
        Some(name) if is_folder && local != "-" => {
            let folder = if path == "." { b"" } else { path.as_bytes() };
            OsString::from_vec([folder, name.as_bytes()].concat())
        }
        _ => path.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gets_a_file_of_the_same_name() {
        let goes = |path: &str, local: &str| destination(&path.into(), &local.into());
        assert_eq!(goes("sub/", "/etc/passwd"), "sub/passwd");
        assert_eq!(goes("", "x"), "x");
        assert_eq!(goes(".", "a/x"), "x");
        assert_eq!(goes("sub/y", "x"), "sub/y");
        assert_eq!(goes("sub/", "-"), "sub/");
    }
}
