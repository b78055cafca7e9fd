//! A file that is being written and has no name yet, so that nobody ever sees half of it.
//!
//! A draft owns the file until it is kept. Dropped before, it leaves nothing behind: where the file system
//! can, the file never had a name at all. It must never know who writes.

use std::os::fd::{AsFd, OwnedFd};

use data_encoding::HEXLOWER;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::{number, refused, stat};
use crate::files::wire::{Leaf, MODE_SET_ID, Onto, Refusal, Refused};

/// How often a name that nobody has is looked for. Each has 64 bits of chance.
const NAMES_MAX: usize = 4;

/// A file without a name, and what name it is to get.
#[derive(Debug)]
pub struct Draft {
    directory: OwnedFd,
    name: Vec<u8>,
    onto: Onto,
    file: OwnedFd,
    /// Where the file system knows no files without names: the name it has meanwhile.
    meanwhile: Option<Vec<u8>>,
}

impl Draft {
    /// An empty file that is to be `name` in `directory`, with these permissions.
    pub fn new(directory: OwnedFd, name: Leaf<'_>, mode: Mode, onto: Onto) -> Result<Draft, Refused> {
        if onto == Onto::Nothing {
            // To say it before everything was written. What comes between is seen when it gets its name.
            match rustix::fs::statat(&directory, name.bytes(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => return Err(refused(Errno::EXIST)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
        match rustix::fs::openat(&directory, ".", flags, mode) {
            Ok(file) => Ok(Draft { directory, name: name.bytes().to_vec(), onto, file, meanwhile: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                Draft::with_a_name(directory, name, mode, onto)
            }
            Err(errno) => Err(refused(errno)),
        }
    }

    /// For file systems that know no files without names.
    fn with_a_name(directory: OwnedFd, name: Leaf<'_>, mode: Mode, onto: Onto) -> Result<Draft, Refused> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let (file, meanwhile) = with_fresh_name(|fresh| rustix::fs::openat(&directory, fresh, flags, mode))?;
        Ok(Draft { directory, name: name.bytes().to_vec(), onto, file, meanwhile: Some(meanwhile) })
    }

    /// The file, for whoever writes it.
    pub fn share(&self) -> Result<OwnedFd, Refused> {
        self.file.try_clone().map_err(|error| refused(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Gives it its name, in one step: at any moment there is what was there before, or all of this.
    pub fn keep(&mut self) -> Result<(), Refused> {
        // Whoever writes may be its owner, and could have asked the kernel for what we refuse.
        if stat(&self.file)?.st_mode & MODE_SET_ID != 0 {
            return Err(Refused::plainly(Refusal::SetId));
        }
        match (&self.meanwhile, self.onto) {
            (None, Onto::Nothing) => self.link(&self.name).map_err(refused),
            (None, Onto::Anything) => {
                // The usual case first: nothing is replaced, and so nothing has two names for a moment.
                match self.link(&self.name) {
                    Err(Errno::EXIST) => {}
                    result => return result.map_err(refused),
                }
                let ((), meanwhile) = with_fresh_name(|fresh| self.link(fresh))?;
                self.meanwhile = Some(meanwhile);
                self.rename()
            }
            (Some(_), _) => self.rename(),
        }
    }

    fn link(&self, name: &[u8]) -> Result<(), Errno> {
        rustix::fs::linkat(CWD, number(&self.file), &self.directory, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn rename(&mut self) -> Result<(), Refused> {
        let Some(meanwhile) = &self.meanwhile else { return Ok(()) };
        let (directory, name) = (self.directory.as_fd(), &self.name[..]);
        match self.onto {
            Onto::Anything => rustix::fs::renameat(directory, &meanwhile[..], directory, name),
            Onto::Nothing => {
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(directory, &meanwhile[..], directory, name, flags)
            }
        }
        .map_err(refused)?;
        self.meanwhile = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.meanwhile {
            // There is nobody to tell if that fails.
            let _ = rustix::fs::unlinkat(&self.directory, &name[..], AtFlags::empty());
        }
    }
}

/// Tries names until there is one that nobody has.
fn with_fresh_name<T>(mut attempt: impl FnMut(&[u8]) -> Result<T, Errno>) -> Result<(T, Vec<u8>), Refused> {
    for _ in 0..NAMES_MAX {
        let mut chance = [0; 8];
        getrandom::fill(&mut chance).map_err(|_| refused(Errno::IO))?;
        let name = format!(".sendright-{}.part", HEXLOWER.encode(&chance)).into_bytes();
        match attempt(&name) {
            Err(Errno::EXIST) => {}
            Ok(made) => return Ok((made, name)),
            Err(errno) => return Err(refused(errno)),
        }
    }
    Err(refused(Errno::EXIST))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{self, File};
    use std::io::Write;

    use super::*;

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn draft(folder: &tempfile::TempDir, onto: Onto) -> Draft {
        let directory = File::open(folder.path()).unwrap().into();
        let draft = Draft::with_a_name(directory, Leaf::new(b"name").unwrap(), Mode::RWXU, onto).unwrap();
        File::from(draft.share().unwrap()).write_all(b"new").unwrap();
        draft
    }

    #[test]
    fn where_there_are_no_files_without_names_a_draft_leaves_nothing_either() {
        let folder = tempfile::tempdir().unwrap();
        let given_up = draft(&folder, Onto::Nothing);
        assert!(names(&folder)[0].starts_with(".sendright-"));
        drop(given_up);
        assert_eq!(names(&folder), [""; 0]);

        draft(&folder, Onto::Nothing).keep().unwrap();
        assert_eq!(names(&folder), ["name"]);

        fs::write(folder.path().join("name"), "old").unwrap();
        let refused = draft(&folder, Onto::Nothing).keep().unwrap_err();
        assert_eq!(refused.refusal, Refusal::Exists);
        assert_eq!(fs::read_to_string(folder.path().join("name")).unwrap(), "old");
        draft(&folder, Onto::Anything).keep().unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("name")).unwrap(), "new");
        assert_eq!(names(&folder), ["name"]);
    }
}
