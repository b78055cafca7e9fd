//! Who may connect: what the command line says and what a file says, which can be read again.
//!
//! It owns the lists. A user or group is allowed who is named in either place; where neither names anybody,
//! the mode of the socket is the only lock. It must never know who is connected.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use introduction::{Peer, Policy};
use ring::Credentials;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::options::Introduce;

/// The largest file of settings that is read, in bytes.
pub const SETTINGS_BYTES_MAX: u64 = 64 * 1024;

/// What the file may say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Which log lines are written.
    pub log: Option<String>,
    #[serde(default)]
    pub allow_uid: BTreeSet<u32>,
    #[serde(default)]
    pub allow_gid: BTreeSet<u32>,
}

/// The file, found again wherever its directory has moved to.
#[derive(Debug)]
pub struct SettingsFile {
    directory: OwnedFd,
    name: PathBuf,
}

impl SettingsFile {
    /// Looks where it is, and does not read it.
    pub fn at(path: &Path) -> Result<SettingsFile, String> {
        let Some(name) = path.file_name() else { return Err("no name of a file".to_string()) };
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(above, flags, Mode::empty());
        let directory = directory.map_err(|errno| std::io::Error::from(errno).to_string())?;
        Ok(SettingsFile { directory, name: PathBuf::from(name) })
    }

    /// The directory in which there is something to read.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Reads it whole, or says what is wrong with it.
    pub fn read(&self) -> Result<Settings, String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty());
        let file = fs::File::from(file.map_err(|errno| std::io::Error::from(errno).to_string())?);
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Err("not a regular file".to_string());
        }
        let mut text = String::new();
        let read = file.take(SETTINGS_BYTES_MAX + 1).read_to_string(&mut text);
        read.map_err(|error| error.to_string())?;
        if text.len() as u64 > SETTINGS_BYTES_MAX {
            return Err(format!("longer than {SETTINGS_BYTES_MAX} bytes"));
        }
        toml::from_str(&text).map_err(|error| error.to_string().trim_end().to_owned())
    }
}

/// The lists in force, shared by whoever asks them and whoever changes them.
#[derive(Clone, Debug)]
pub struct Allowed(Rc<Lists>);

#[derive(Debug)]
struct Lists {
    /// Of the command line.
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
    /// Of the file.
    settings: RefCell<Settings>,
    candid: bool,
}

impl Allowed {
    /// As the command line and the file have it.
    pub fn new(options: &Introduce, settings: Settings) -> Allowed {
        Allowed(Rc::new(Lists {
            uids: options.allow_uid.iter().copied().collect(),
            gids: options.allow_gid.iter().copied().collect(),
            settings: RefCell::new(settings),
            candid: options.candid,
        }))
    }

    /// As the file has it now.
    pub fn change(&self, settings: Settings) {
        self.0.settings.replace(settings);
    }

    /// Whether anybody is named at all.
    pub fn names_somebody(&self) -> bool {
        let Lists { uids, gids, settings, .. } = &*self.0;
        let Settings { allow_uid, allow_gid, .. } = &*settings.borrow();
        [uids, gids, allow_uid, allow_gid].into_iter().any(|list| !list.is_empty())
    }

    fn allows(&self, uid: u32, gid: u32) -> bool {
        let Lists { uids, gids, settings, .. } = &*self.0;
        let Settings { allow_uid, allow_gid, .. } = &*settings.borrow();
        !self.names_somebody()
            || uids.contains(&uid)
            || gids.contains(&gid)
            || allow_uid.contains(&uid)
            || allow_gid.contains(&gid)
    }
}

impl Policy for Allowed {
    fn may_connect(&self, credentials: &Credentials) -> bool {
        let Credentials { pid, uid, gid, .. } = *credentials;
        let allowed = self.allows(uid, gid);
        match allowed {
            true => tracing::debug!(pid, uid, gid, "connected"),
            false => tracing::info!(pid, uid, gid, "turned away: on no list of those who may connect"),
        }
        allowed
    }

    fn may_register(&self, peer: &Peer) -> bool {
        let Credentials { pid, uid, gid, .. } = peer.credentials;
        tracing::debug!(key = %peer.key, pid, uid, gid, "registers");
        true
    }

    fn may_reach(&self, from: &Peer, to: &Peer) -> bool {
        tracing::debug!(from = %from.key, to = %to.key, "asks for");
        true
    }

    fn may_know(&self, _from: &Peer) -> bool {
        self.0.candid
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &[u8]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("introduce.toml");
        fs::write(&path, text).unwrap();
        SettingsFile::at(&path).unwrap().read()
    }

    fn allowed(uids: &[u32], gids: &[u32], settings: &str) -> Allowed {
        Allowed(Rc::new(Lists {
            uids: uids.iter().copied().collect(),
            gids: gids.iter().copied().collect(),
            settings: RefCell::new(read(settings.as_bytes()).unwrap()),
            candid: false,
        }))
    }

    #[test]
    fn where_nobody_is_named_everybody_may() {
        assert!(allowed(&[], &[], "").allows(1, 2));
        assert!(!allowed(&[], &[], "").names_somebody());
    }

    #[test]
    fn who_is_named_in_either_place_may_and_nobody_else() {
        for (allowed, place) in [
            (allowed(&[1], &[], ""), "--allow-uid"),
            (allowed(&[], &[2], ""), "--allow-gid"),
            (allowed(&[], &[], "allow-uid = [7, 1]"), "allow-uid"),
            (allowed(&[], &[], "allow-gid = [2]"), "allow-gid"),
            (allowed(&[9], &[9], "allow-gid = [2]"), "both"),
        ] {
            assert!(allowed.allows(1, 2), "{place}");
            assert!(!allowed.allows(3, 3), "{place}");
            // Root is a user like any other.
            assert!(!allowed.allows(0, 0), "{place}");
        }
    }

    #[test]
    fn a_file_that_is_changed_counts_from_then_on() {
        let allowed = allowed(&[], &[], "allow-uid = [1]");
        allowed.change(read(b"allow-uid = [3]").unwrap());
        assert!(!allowed.allows(1, 1));
        assert!(allowed.allows(3, 3));
    }

    #[test]
    fn what_is_misspelt_is_not_ignored() {
        assert!(read(b"allow_uid = [1]").unwrap_err().contains("allow_uid"));
        assert!(read(b"allow-uid = [-1]").is_err());
        assert!(read(b"allow-uid = 1").is_err());
        assert!(read(b"\xff").is_err());
    }

    #[test]
    fn so_much_is_read_and_no_more() {
        let comment = |length: usize| ["#".repeat(length - 1).as_bytes(), b"\n"].concat();
        let most = usize::try_from(SETTINGS_BYTES_MAX).unwrap();
        assert_eq!(read(&comment(most)), Ok(Settings::default()));
        assert!(read(&comment(most + 1)).unwrap_err().contains("longer"));
    }

    #[test]
    fn a_pipe_in_its_place_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(SettingsFile::at(&path).unwrap().read().unwrap_err(), "not a regular file");
    }
}
