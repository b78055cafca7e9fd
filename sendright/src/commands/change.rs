//! Commands that change one thing after the other: `mkdir`, `rmdir`, `rm`, `mv`, `ln`, `chmod`, `touch`.
//!
//! Each is one call for each path.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::{complain_of, less_the_umask, octal};
use crate::files::client::{Directory, Trouble};
use crate::files::wire::{NewTime, NewTimes, Onto, Path, Place, Refusal, Target};
use crate::options::files::{Change, Chmod, Ln, Mkdir, Source};
use crate::output::{Failure, Outcome};
use crate::reach::{self, Reached};

/// What a new directory may be for whoever has no umask.
const DIRECTORY_MODE_DEFAULT: u32 = 0o777;

/// New directories.
pub fn mkdir(options: &Mkdir) -> Result<Outcome, Failure> {
    let mode = match &options.mode {
        Some(text) => octal(text)?,
        None => less_the_umask(DIRECTORY_MODE_DEFAULT),
    };
    each_place(&options.change, async |directory, place| directory.make_directory(place, mode).await)
}

/// Fewer directories.
pub fn rmdir(options: &Change) -> Result<Outcome, Failure> {
    each_place(options, async |directory, place| directory.remove_directory(place).await)
}

/// Fewer files.
pub fn rm(options: &Change) -> Result<Outcome, Failure> {
    each_place(options, async |directory, place| directory.unlink(place).await)
}

/// Another name.
pub fn mv(options: &Change) -> Result<Outcome, Failure> {
    two_places(options, async |directory, from, to| directory.rename(from, to).await)
}

/// One more name, or a symbolic link.
pub fn ln(options: &Ln) -> Result<Outcome, Failure> {
    if !options.symbolic {
        return two_places(&options.change, async |directory, from, to| directory.link(from, to).await);
    }
    let (reached, words) = reach(&options.change)?;
    let [target, path] = &words[..] else { return Err(Failure::usage("say TARGET and PATH")) };
    let target = Target::new(target.as_bytes()).map_err(Failure::usage)?;
    let place = reach::place(path)?;
    Ok(told(path, reached.executor.block_on(reached.directory.make_symlink(place, target))))
}

/// Other permissions.
pub fn chmod(options: &Chmod) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let mode = octal(&words.remove(0).to_string_lossy())?;
    each_path(&options.source, words, async |directory, path| directory.set_mode(path, mode).await)
}

/// Another time, and a file if there was none.
pub fn touch(options: &Change) -> Result<Outcome, Failure> {
    each_place(options, async |directory, place| {
        let times = NewTimes { accessed: NewTime::Now, modified: NewTime::Now };
        match directory.set_times(place.path(), times).await {
            Err(Trouble::Refused(refused)) if refused.refusal == Refusal::NotFound => {
                let mode = less_the_umask(0o666);
                directory.create(place, mode, Onto::Nothing).await?.keep().await
            }
            result => result,
        }
    })
}

fn reach(options: &Change) -> Result<(Reached, Vec<OsString>), Failure> {
    let mut words = options.words.clone();
    let reached = reach::directory(&options.source, &mut words)?;
    Ok((reached, words))
}

fn each_path(
    source: &Source,
    words: Vec<OsString>,
    change: impl AsyncFn(&Directory, Path<'_>) -> Result<(), Trouble>,
) -> Result<Outcome, Failure> {
    each(source, words, async |directory, word| Ok(change(directory, reach::path(word)?).await))
}

fn each_place(
    options: &Change,
    change: impl AsyncFn(&Directory, Place<'_>) -> Result<(), Trouble>,
) -> Result<Outcome, Failure> {
    let words = options.words.clone();
    each(&options.source, words, async |directory, word| Ok(change(directory, reach::place(word)?).await))
}

fn each(
    source: &Source,
    mut words: Vec<OsString>,
    change: impl AsyncFn(&Directory, &OsString) -> Result<Result<(), Trouble>, Failure>,
) -> Result<Outcome, Failure> {
    let reached = reach::directory(source, &mut words)?;
    if words.is_empty() {
        return Err(Failure::usage("of what? Say a PATH"));
    }
    let mut outcome = Outcome::Good;
    for word in &words {
        let changed = reached.executor.block_on(change(&reached.directory, word))?;
        if told(word, changed) == Outcome::Failed {
            outcome = Outcome::Failed;
        }
    }
    Ok(outcome)
}

fn two_places(
    options: &Change,
    change: impl AsyncFn(&Directory, Place<'_>, Place<'_>) -> Result<(), Trouble>,
) -> Result<Outcome, Failure> {
    let (reached, words) = reach(options)?;
    let [from, to] = &words[..] else { return Err(Failure::usage("say two paths, FROM and TO")) };
    let (old, new) = (reach::place(from)?, reach::place(to)?);
    Ok(told(from, reached.executor.block_on(change(&reached.directory, old, new))))
}

fn told(word: &OsString, changed: Result<(), Trouble>) -> Outcome {
    match changed {
        Ok(()) => Outcome::Good,
        Err(trouble) => complain_of(word.as_bytes(), trouble),
    }
}
