//! Names that are in no file system: AF_UNIX's abstract names.
//!
//! A name is bytes. It does not know who has it, and it is no secret: everybody in the same network namespace
//! can read all of them.

use std::fmt;
use std::io;

use crate::sys::{self, UnixAddress};

/// The longest abstract name, in bytes, the zero in front not counted.
pub const NAME_BYTES_MAX: usize = 107;

/// A name of an AF_UNIX socket that is in no file system, and gone when its socket is.
///
/// ```
/// use ring::AbstractName;
/// let name = AbstractName::random("my-service-", 27)?;
/// assert!(name.bytes().starts_with(b"my-service-"));
/// assert_eq!(name.bytes().len(), 38);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Names are different if their lengths are: `x` and `x` with a zero behind it are two names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AbstractName(Vec<u8>);

impl AbstractName {
    /// A name of 1 to 107 bytes ([`NAME_BYTES_MAX`]), which may be any; the zero that the kernel wants in
    /// front is not among them.
    ///
    /// # Errors
    /// `InvalidInput` for a name of another length.
    pub fn new(bytes: impl Into<Vec<u8>>) -> io::Result<AbstractName> {
        let bytes = bytes.into();
        if (1..=NAME_BYTES_MAX).contains(&bytes.len()) {
            Ok(AbstractName(bytes))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "an abstract name has 1 to 107 bytes"))
        }
    }

    /// A name of this prefix and so many letters and digits that nobody can guess (22 of them are 128 bits).
    ///
    /// # Errors
    /// As [`new`](AbstractName::new), and the kernel's if it has no randomness.
    pub fn random(prefix: &str, characters: usize) -> io::Result<AbstractName> {
        const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        // A byte above this would make the first letters of the alphabet likelier than the last.
        const FAIR: u8 = 62 * 4;
        let mut name = prefix.as_bytes().to_vec();
        let length = name.len() + characters.min(NAME_BYTES_MAX + 1);
        while name.len() < length {
            let mut bytes = [0; 64];
            sys::random(&mut bytes)?;
            let fair = bytes.into_iter().filter(|byte| *byte < FAIR);
            name.extend(fair.map(|byte| ALPHABET[usize::from(byte % 62)]).take(length - name.len()));
        }
        AbstractName::new(name)
    }

    /// The bytes, without the zero in front.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn address(&self) -> UnixAddress {
        UnixAddress::of_abstract_name(&self.0)
    }
}

impl fmt::Debug for AbstractName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AbstractName(@{})", self.0.escape_ascii())
    }
}
