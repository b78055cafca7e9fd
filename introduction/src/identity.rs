//! Keys that prove who somebody is, and the file in which a program keeps its own.
//!
//! Owns the private key, which it never shows. It signs challenges that others have made up and statements of
//! this protocol, and sees to it that the one can never be taken for the other. It knows no socket.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::fs::OFlags;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::locator::PublicKey;
use crate::record::{CHALLENGE_BYTES, Challenge, SignatureBytes};
use crate::syrup::Value;

/// The largest file that is read, in bytes.
pub const KEYRING_BYTES_MAX: u64 = 64 * 1024;

/// How many servers a keyring remembers.
pub const KNOWN_SERVERS_MAX: usize = 256;

/// The longest name under which a server is remembered, in bytes.
pub const SERVER_NAME_BYTES_MAX: usize = 128;

const LABEL: &str = "sendright-keyring";

/// A private Ed25519 key. Wiped from memory when dropped. [`Keyring`] keeps one in a file.
///
/// ```
/// use introduction::Identity;
/// assert_ne!(Identity::generate()?.key(), Identity::generate()?.key());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Identity(SigningKey);

impl Identity {
    /// A fresh one.
    ///
    /// # Errors
    /// The kernel has no random numbers to give.
    pub fn generate() -> io::Result<Identity> {
        Ok(Identity::from_seed(&Zeroizing::new(random()?)))
    }

    /// The one that belongs to a seed, which is as secret as the key.
    pub fn from_seed(seed: &[u8; 32]) -> Identity {
        Identity(SigningKey::from_bytes(seed))
    }

    /// What others know it by.
    pub fn key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign_challenge(&self, challenge: &Challenge) -> SignatureBytes {
        self.0.sign(challenge.bytes()).to_bytes()
    }

    pub(crate) fn sign_statement(&self, statement: &[u8]) -> SignatureBytes {
        assert!(statement.len() > CHALLENGE_BYTES, "a statement must not pass for a challenge");
        self.0.sign(statement).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.key())
    }
}

/// Whether the signature under these bytes is this key's. Keys that fit any signature are nobody's.
pub(crate) fn is_signed(key: &PublicKey, bytes: &[u8], signature: &SignatureBytes) -> bool {
    VerifyingKey::from_bytes(&key.0)
        .is_ok_and(|key| key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok())
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// An identity and the servers it knows, in a file that only its owner can read.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keyring");
/// use introduction::Keyring;
/// let keyring = Keyring::open(&path)?;
/// assert_eq!(Keyring::open(&path)?.identity().key(), keyring.identity().key());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    identity: Identity,
    servers: BTreeMap<String, PublicKey>,
}

/// Why a keyring could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// Others than its owner may read or write the file, or its owner is somebody else. The key in it has to
    /// be taken for known.
    #[error("others may read or write the file, or own it")]
    Exposed,
    /// The file is no keyring, or longer than [`KEYRING_BYTES_MAX`]. It was not touched.
    #[error("not a keyring")]
    Malformed,
    /// More servers than [`KNOWN_SERVERS_MAX`], or a name longer than [`SERVER_NAME_BYTES_MAX`]. Nothing was
    /// written.
    #[error("too many servers, or too long a name")]
    Full,
    /// What the kernel said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Keyring {
    /// Reads the file, or makes one with a fresh identity, mode 0600. Of several processes that make it at
    /// the same time one succeeds, and all use what it has made.
    ///
    /// # Errors
    /// See [`KeyringError`]. A symbolic link is not followed.
    pub fn open(path: &Path) -> Result<Keyring, KeyringError> {
        match Keyring::read(path) {
            Err(KeyringError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let identity = Identity::generate()?;
        let fresh = Keyring { path: path.to_owned(), identity, servers: BTreeMap::new() };
        let beside = fresh.write_beside()?;
        // Not `rename`, which would replace the key of whoever was faster.
        let linked = fs::hard_link(&beside, path);
        fs::remove_file(&beside)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => sync_folder(path)?,
        }
        Keyring::read(path)
    }

    fn read(path: &Path) -> Result<Keyring, KeyringError> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > KEYRING_BYTES_MAX {
            return Err(KeyringError::Malformed);
        }
        if metadata.mode() & 0o077 != 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(KeyringError::Exposed);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEYRING_BYTES_MAX as usize));
        file.take(KEYRING_BYTES_MAX).read_to_end(&mut bytes)?;
        let (identity, servers) = read_keyring(&bytes).ok_or(KeyringError::Malformed)?;
        Ok(Keyring { path: path.to_owned(), identity, servers })
    }

    /// The identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The key under which the server of this name was met before.
    pub fn server(&self, name: &str) -> Option<PublicKey> {
        self.servers.get(name).copied()
    }

    /// The servers that are known, and by which names.
    pub fn servers(&self) -> impl Iterator<Item = (&str, PublicKey)> {
        self.servers.iter().map(|(name, key)| (name.as_str(), *key))
    }

    /// Remembers a server's key under a name (the path of its socket, perhaps), in place of what was
    /// remembered, and replaces the file: at any moment it is the old one or the new one.
    ///
    /// # Errors
    /// See [`KeyringError`]. Then nothing is remembered.
    pub fn remember(&mut self, name: &str, key: PublicKey) -> Result<(), KeyringError> {
        let is_new = !self.servers.contains_key(name);
        if name.len() > SERVER_NAME_BYTES_MAX || (is_new && self.servers.len() == KNOWN_SERVERS_MAX) {
            return Err(KeyringError::Full);
        }
        let before = self.servers.insert(name.to_owned(), key);
        let replaced = self.replace();
        if replaced.is_err() {
            match before {
                Some(key) => self.servers.insert(name.to_owned(), key),
                None => self.servers.remove(name),
            };
        }
        replaced
    }

    /// Forgets a server, and replaces the file.
    ///
    /// # Errors
    /// See [`KeyringError`]. Then it is still known.
    pub fn forget(&mut self, name: &str) -> Result<(), KeyringError> {
        let Some(key) = self.servers.remove(name) else { return Ok(()) };
        let replaced = self.replace();
        if replaced.is_err() {
            self.servers.insert(name.to_owned(), key);
        }
        replaced
    }

    fn replace(&self) -> Result<(), KeyringError> {
        let beside = self.write_beside()?;
        if let Err(error) = fs::rename(&beside, &self.path) {
            let _ = fs::remove_file(&beside);
            return Err(error.into());
        }
        Ok(sync_folder(&self.path)?)
    }

    /// Writes it whole, under another name in the same folder.
    fn write_beside(&self) -> io::Result<PathBuf> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}", u64::from_ne_bytes(random()?)));
        let path = self.path.with_file_name(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let bytes = Zeroizing::new(self.to_bytes());
        let written = file
            .set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.write_all(&bytes))
            .and_then(|()| file.sync_all());
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let seed = Zeroizing::new(self.identity.0.to_bytes());
        let servers: Vec<(Value<'_>, Value<'_>)> =
            self.servers.iter().map(|(name, key)| (Value::String(name), Value::Bytes(&key.0))).collect();
        // Room for all of it at once, or what a growing vector leaves behind would hold the seed.
        let mut bytes = Vec::with_capacity(KEYRING_BYTES_MAX as usize);
        bytes.push(b'<');
        Value::Symbol(LABEL).write(&mut bytes);
        Value::Bytes(seed.as_slice()).write(&mut bytes);
        Value::Dictionary(servers).write(&mut bytes);
        bytes.push(b'>');
        bytes
    }
}

fn read_keyring(bytes: &[u8]) -> Option<(Identity, BTreeMap<String, PublicKey>)> {
    let value = Value::read(bytes).ok()?;
    let [seed, Value::Dictionary(known)] = value.record(LABEL)? else { return None };
    let seed = Zeroizing::new(<[u8; 32]>::try_from(seed.bytes()?).ok()?);
    let mut servers = BTreeMap::new();
    for (name, key) in known {
        servers.insert(name.text()?.to_owned(), PublicKey(key.bytes()?.try_into().ok()?));
    }
    Some((Identity::from_seed(&seed), servers))
}

/// A name is safe on disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_identity_is_the_same_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let mut keyring = Keyring::open(&path).unwrap();
        keyring.remember("/run/introduce", PublicKey([7; 32])).unwrap();
        let again = Keyring::open(&path).unwrap();
        assert_eq!(again.identity().key(), keyring.identity().key());
        assert_eq!(again.server("/run/introduce"), Some(PublicKey([7; 32])));
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_forgotten_server_is_not_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let mut keyring = Keyring::open(&path).unwrap();
        keyring.remember("a", PublicKey([1; 32])).unwrap();
        keyring.remember("b", PublicKey([2; 32])).unwrap();
        keyring.forget("a").unwrap();
        let again = Keyring::open(&path).unwrap();
        assert_eq!(again.servers().collect::<Vec<_>>(), [("b", PublicKey([2; 32]))]);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        Keyring::open(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(Keyring::open(&path), Err(KeyringError::Exposed)), "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_keyring_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        for bytes in [&b""[..], b"hello", b"<17'sendright-keyring3:abc{}>", &[b'['; 70_000]] {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Keyring::open(&path), Err(KeyringError::Malformed)));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Keyring::open(&link), Err(KeyringError::Io(_))));
    }

    #[test]
    fn so_many_servers_are_remembered_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let mut keyring = Keyring::open(&path).unwrap();
        let name = |n: usize| format!("{n:0>SERVER_NAME_BYTES_MAX$}");
        // All but one by hand: each one remembered is a file replaced.
        keyring.servers = (1..KNOWN_SERVERS_MAX).map(|n| (name(n), PublicKey([0; 32]))).collect();
        keyring.remember(&name(0), PublicKey([1; 32])).unwrap();
        assert_eq!(Keyring::open(&path).unwrap().servers().count(), KNOWN_SERVERS_MAX);
        assert!(matches!(keyring.remember("x", PublicKey([0; 32])), Err(KeyringError::Full)));
        keyring.remember(&name(0), PublicKey([2; 32])).unwrap();
        keyring.forget(&name(1)).unwrap();
        let long = "x".repeat(SERVER_NAME_BYTES_MAX + 1);
        assert!(matches!(keyring.remember(&long, PublicKey([0; 32])), Err(KeyringError::Full)));
    }

    #[test]
    fn a_keyring_that_cannot_be_written_remembers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyring");
        let mut keyring = Keyring::open(&path).unwrap();
        drop(folder);
        assert!(matches!(keyring.remember("x", PublicKey([0; 32])), Err(KeyringError::Io(_))));
        assert_eq!(keyring.server("x"), None);
    }

    #[test]
    fn signatures_are_those_of_the_standard() {
        // RFC 8032, section 7.1, test 1: of no bytes at all, which no peer is ever asked to sign.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
            0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let identity = Identity::from_seed(&seed);
        assert_eq!(identity.key().0[..4], [0xd7, 0x5a, 0x98, 0x01]);
        let signature = identity.0.sign(b"").to_bytes();
        assert_eq!(signature[..4], [0xe5, 0x56, 0x43, 0x00]);
        assert!(is_signed(&identity.key(), b"", &signature));
        assert!(!is_signed(&identity.key(), b"x", &signature));
        assert!(!is_signed(&PublicKey([0; 32]), b"", &signature));
    }

    #[test]
    fn a_key_that_fits_any_signature_is_nobodys() {
        // The neutral point, with a signature that is good for every message where this is not looked at.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!is_signed(&PublicKey(neutral), b"anything", &signature));
    }
}
