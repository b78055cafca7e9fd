//! What is granted and by which secrets, and the file in which that is kept.
//!
//! A book owns its file as long as it is open: nobody else edits it meanwhile. It knows nothing of who uses
//! a grant, and never prints a secret.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use introduction::Swiss;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::files::server::Rights;
use crate::files::wire;

/// How much can be granted at a time. Every secret that is presented is compared with each.
pub const GRANTS_MAX: usize = 256;

/// The largest file that is read, in bytes: more than so many grants ever take.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The longest name of a grant, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Of chance, in a secret made here.
const SWISS_BYTES: usize = 32;

const VERSION: u32 = 1;

/// What is granted, and to whom it is enough to know the secret.
#[derive(Clone, Debug)]
pub struct Entry {
    pub wish: Wish,
    pub swiss: Swiss,
}

/// What is to be granted, as somebody has written it: `NAME[:ro|:rw][=SUBDIR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub name: String,
    pub rights: Rights,
    /// Beneath the exported directory; empty for all of it.
    pub directory: String,
}

impl Wish {
    /// Reads it. What is not said is as the service is.
    pub fn read(text: &str, service: Rights) -> Result<Wish, String> {
        let (head, directory) = text.split_once('=').unwrap_or((text, ""));
        let (name, rights) = match head.rsplit_once(':') {
            Some((name, "ro")) => (name, Rights::ReadOnly),
            Some((name, "rw")) => (name, Rights::Writable),
            Some((_, other)) => return Err(format!("{other:?} is neither ro nor rw")),
            None => (head, service),
        };
        let plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) {
            let rule = "letters, digits, dots, underscores and hyphens";
            return Err(format!("a name is 1 to {NAME_BYTES_MAX} {rule}, and {name:?} is not"));
        }
        if rights == Rights::Writable && service == Rights::ReadOnly {
            return Err("rw needs a service that was started with --writable".into());
        }
        let directory = directory.trim_end_matches('/');
        wire::Path::new(directory.as_bytes())
            .map_err(|_| format!("{directory:?} is not a path beneath the exported directory"))?;
        Ok(Wish { name: name.into(), rights, directory: directory.into() })
    }
}

/// What is granted.
#[derive(Debug)]
pub struct Book {
    path: Option<PathBuf>,
    entries: Vec<Entry>,
    /// Held until the book is closed.
    _lock: Option<File>,
}

/// Why there is no book, or it could not be written.
#[derive(Debug)]
pub enum BookError {
    /// Another process has it open.
    InUse,
    /// A sentence about the file.
    Unfit(String),
    /// There are as many grants as there may be.
    Full,
}

impl std::fmt::Display for BookError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BookError::InUse => f.write_str("another process serves with this key"),
            BookError::Unfit(sentence) => f.write_str(sentence),
            BookError::Full => write!(f, "there are {GRANTS_MAX} grants already"),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    grants: Vec<WrittenEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    name: String,
    writable: bool,
    directory: String,
    swiss: String,
}

impl Book {
    /// One that is forgotten with the process.
    pub fn in_memory() -> Book {
        Book { path: None, entries: Vec::new(), _lock: None }
    }

    /// The one beside a key, made if it is not there.
    pub fn open(key: &Path) -> Result<Book, BookError> {
        let path = beside(key, "grants");
        let lock = private(OpenOptions::new().create(true).truncate(false), &beside(key, "lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BookError::InUse),
            Err(errno) => return Err(unfit(&beside(key, "lock"), errno)),
        }
        let entries = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            _ => read(&path)?,
        };
        Ok(Book { path: Some(path), entries, _lock: Some(lock) })
    }

    /// What is granted, in the order in which it was.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Grants something under a fresh secret. What has its name already keeps its secret and becomes what is
    /// wished for now.
    pub fn grant(&mut self, wish: Wish) -> Result<Entry, BookError> {
        let known = self.entries.iter().position(|entry| entry.wish.name == wish.name);
        let before = self.entries.clone();
        let place = match known {
            Some(place) => {
                self.entries[place].wish = wish;
                place
            }
            None if self.entries.len() == GRANTS_MAX => return Err(BookError::Full),
            None => {
                let mut chance = vec![0; SWISS_BYTES];
                getrandom::fill(&mut chance).map_err(|error| BookError::Unfit(error.to_string()))?;
                let swiss = Swiss::new(chance).expect("of a length that a secret may have");
                self.entries.push(Entry { wish, swiss });
                self.entries.len() - 1
            }
        };
        self.write().inspect_err(|_| self.entries = before)?;
        Ok(self.entries[place].clone())
    }

    /// Forgets a grant and its secret. `false` if there is none of that name.
    pub fn revoke(&mut self, name: &str) -> Result<bool, BookError> {
        let before = self.entries.clone();
        self.entries.retain(|entry| entry.wish.name != name);
        if self.entries.len() == before.len() {
            return Ok(false);
        }
        self.write().inspect_err(|_| self.entries = before)?;
        Ok(true)
    }

    /// Replaces the file: at any moment it is the old one or the new one.
    fn write(&self) -> Result<(), BookError> {
        let Some(path) = &self.path else { return Ok(()) };
        let grants = self.entries.iter().map(|Entry { wish, swiss }| WrittenEntry {
            name: wish.name.clone(),
            writable: wish.rights == Rights::Writable,
            directory: wish.directory.clone(),
            swiss: BASE64URL_NOPAD.encode(swiss.bytes()),
        });
        let written = Written { version: VERSION, grants: grants.collect() };
        let text = serde_json::to_string_pretty(&written).expect("plain data") + "\n";
        replace(path, text.as_bytes()).map_err(|error| unfit(path, error))
    }
}

/// A file of the service: `FILE.ending` for FILE.
pub fn beside(key: &Path, ending: &str) -> PathBuf {
    let mut name = key.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    key.with_file_name(name)
}

fn read(path: &Path) -> Result<Vec<Entry>, BookError> {
    let file = private(OpenOptions::new().read(true), path)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| unfit(path, error))?;
    let written: Written = serde_json::from_str(&text).map_err(|error| unfit(path, error))?;
    if written.version != VERSION || written.grants.len() > GRANTS_MAX {
        return Err(unfit(path, "of another version, or with too many grants"));
    }
    let mut entries = Vec::new();
    for grant in written.grants {
        let rights = if grant.writable { Rights::Writable } else { Rights::ReadOnly };
        let text = format!("{}={}", grant.name, grant.directory);
        let wish = Wish::read(&text, rights).map_err(|sentence| unfit(path, sentence))?;
        let swiss = BASE64URL_NOPAD.decode(grant.swiss.as_bytes()).ok().map(Swiss::new);
        let Some(Ok(swiss)) = swiss else { return Err(unfit(path, "a secret that is none")) };
        entries.push(Entry { wish, swiss });
    }
    Ok(entries)
}

/// Opens a file that is nobody else's business.
fn private(options: &mut OpenOptions, path: &Path) -> Result<File, BookError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.write(true).mode(0o600).custom_flags(flags.bits() as i32).open(path);
    let file = file.map_err(|error| unfit(path, error))?;
    let metadata = file.metadata().map_err(|error| unfit(path, error))?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    match metadata.is_file() && is_ours && metadata.mode() & 0o077 == 0 {
        true => Ok(file),
        false => Err(unfit(path, "others may read or write it, or own it")),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut chance = [0; 8];
    getrandom::fill(&mut chance).map_err(io::Error::other)?;
    let fresh = beside(path, &HEXLOWER.encode(&chance));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written?;
    // A name is safe on disk when its folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn unfit(path: &Path, error: impl std::fmt::Display) -> BookError {
    BookError::Unfit(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wish(text: &str) -> Wish {
        Wish::read(text, Rights::Writable).unwrap()
    }

    #[test]
    fn a_wish_says_name_rights_and_directory() {
        let all = |name: &str, rights| Wish { name: name.into(), rights, directory: String::new() };
        assert_eq!(wish("anne"), all("anne", Rights::Writable));
        assert_eq!(wish("anne:ro"), all("anne", Rights::ReadOnly));
        assert_eq!(wish("a.b-c_1:rw=x/y/").directory, "x/y");
        assert_eq!(Wish::read("anne", Rights::ReadOnly), Ok(all("anne", Rights::ReadOnly)));
        let wrong =
            ["", ":ro", "a b", "a:rx", "a=/etc", "a=..", "a=x/../y", "a=x//y", "a\n", &"n".repeat(65)];
        for wrong in wrong {
            assert!(Wish::read(wrong, Rights::Writable).is_err(), "{wrong:?}");
        }
        assert!(Wish::read("anne:rw", Rights::ReadOnly).unwrap_err().contains("--writable"));
    }

    #[test]
    fn secrets_are_the_same_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let mut book = Book::open(&key).unwrap();
        let anne = book.grant(wish("anne")).unwrap();
        let bert = book.grant(wish("bert:ro=sub")).unwrap();
        assert_ne!(anne.swiss, bert.swiss);
        drop(book);
        let mut book = Book::open(&key).unwrap();
        let names: Vec<_> = book.entries().iter().map(|entry| entry.wish.clone()).collect();
        assert_eq!(names, [anne.wish, bert.wish]);
        assert_eq!(book.grant(wish("bert:ro")).unwrap().swiss, bert.swiss, "another wish, the same secret");
        let mode = fs::metadata(beside(&key, "grants")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["key.grants", "key.lock"]);
    }

    #[test]
    fn a_name_that_comes_again_has_another_secret() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(&folder.path().join("key")).unwrap();
        let before = book.grant(wish("anne")).unwrap().swiss;
        assert!(book.revoke("anne").unwrap());
        assert!(!book.revoke("anne").unwrap());
        assert_ne!(book.grant(wish("anne")).unwrap().swiss, before);
    }

    #[test]
    fn one_at_a_time_has_the_book() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let book = Book::open(&key).unwrap();
        assert!(matches!(Book::open(&key), Err(BookError::InUse)));
        drop(book);
        assert!(Book::open(&key).is_ok());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        Book::open(&key).unwrap().grant(wish("anne")).unwrap();
        fs::set_permissions(beside(&key, "grants"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Book::open(&key), Err(BookError::Unfit(_))));
    }

    #[test]
    fn what_is_no_book_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let long = format!(r#"{{"version":1,"grants":[{}"#, " ".repeat(FILE_BYTES_MAX as usize));
        for text in ["", "{}", r#"{"version":2,"grants":[]}"#, &long] {
            fs::write(beside(&key, "grants"), text).unwrap();
            fs::set_permissions(beside(&key, "grants"), fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Book::open(&key), Err(BookError::Unfit(_))));
            assert_eq!(fs::read_to_string(beside(&key, "grants")).unwrap(), text);
        }
    }

    #[test]
    fn so_much_is_granted_and_no_more() {
        let mut book = Book::in_memory();
        for number in 0..GRANTS_MAX {
            book.grant(wish(&number.to_string())).unwrap();
        }
        assert!(matches!(book.grant(wish("more")), Err(BookError::Full)));
        assert!(book.grant(wish("0:ro")).is_ok(), "what is there can be changed");
    }
}
