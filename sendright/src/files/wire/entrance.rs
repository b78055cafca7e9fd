//! The two packets by which a connection between strangers becomes a directory: a secret, and an answer.
//!
//! Bytes only. It does not know which secrets open what, and tells nobody whether one was nearly right.

use super::Malformed;

/// The first bytes on a connection, so that a program of another protocol is not taken for one that guesses.
const MAGIC: &[u8; 4] = b"SRF1";

/// The longest secret, as a locator has it.
const SWISS_BYTES_MAX: usize = 64;

const ADMITTED: u8 = 0;
const READ_ONLY: u8 = 0;
const WRITABLE: u8 = 1;

/// What whoever has connected says first: the secret of its locator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entrance<'a> {
    pub swiss: &'a [u8],
}

impl<'a> Entrance<'a> {
    /// Reads the first packet of a connection.
    pub fn parse(bytes: &'a [u8]) -> Result<Entrance<'a>, Malformed> {
        match bytes.strip_prefix(MAGIC) {
            Some(swiss) if (1..=SWISS_BYTES_MAX).contains(&swiss.len()) => Ok(Entrance { swiss }),
            Some(_) => Err(Malformed::Length),
            None => Err(Malformed::Operation),
        }
    }

    /// The packet as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        [&MAGIC[..], self.swiss].concat()
    }
}

/// Never prints the secret.
impl std::fmt::Debug for Entrance<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entrance(…)")
    }
}

/// The answer: with it comes the address of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The directory, and whether anything can be changed through it.
    Directory { writable: bool },
    /// No directory, and no descriptor.
    No(NotAdmitted),
}

/// Why there is no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// The secret opens nothing: it is wrong, or was taken back.
    Unknown,
    /// The service has no room. Later is a good time.
    Busy,
    /// What it opens is not there now.
    NotThere,
}

impl Admission {
    /// Reads the answer.
    pub fn parse(bytes: &[u8]) -> Result<Admission, Malformed> {
        match bytes {
            [ADMITTED, READ_ONLY] => Ok(Admission::Directory { writable: false }),
            [ADMITTED, WRITABLE] => Ok(Admission::Directory { writable: true }),
            [1] => Ok(Admission::No(NotAdmitted::Unknown)),
            [2] => Ok(Admission::No(NotAdmitted::Busy)),
            [3] => Ok(Admission::No(NotAdmitted::NotThere)),
            [] => Err(Malformed::Empty),
            [ADMITTED, ..] => Err(Malformed::Flag),
            _ => Err(Malformed::Status),
        }
    }

    /// The answer as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Admission::Directory { writable: false } => vec![ADMITTED, READ_ONLY],
            Admission::Directory { writable: true } => vec![ADMITTED, WRITABLE],
            Admission::No(NotAdmitted::Unknown) => vec![1],
            Admission::No(NotAdmitted::Busy) => vec![2],
            Admission::No(NotAdmitted::NotThere) => vec![3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_its_length() {
        let longest = [7; SWISS_BYTES_MAX];
        for swiss in [&b"x"[..], &longest] {
            assert_eq!(Entrance::parse(&Entrance { swiss }.encode()), Ok(Entrance { swiss }));
        }
        assert_eq!(Entrance::parse(MAGIC), Err(Malformed::Length));
        assert_eq!(Entrance::parse(&[&MAGIC[..], &longest, b"x"].concat()), Err(Malformed::Length));
        assert_eq!(Entrance::parse(b"GET / HTTP/1.1"), Err(Malformed::Operation));
    }

    #[test]
    fn an_admission_is_read_as_it_was_written() {
        let reasons = [NotAdmitted::Unknown, NotAdmitted::Busy, NotAdmitted::NotThere].map(Admission::No);
        let directories = [false, true].map(|writable| Admission::Directory { writable });
        for admission in reasons.into_iter().chain(directories) {
            assert_eq!(Admission::parse(&admission.encode()), Ok(admission));
        }
        for wrong in [&b""[..], &[0], &[0, 2], &[0, 0, 0], &[4], &[1, 1]] {
            assert!(Admission::parse(wrong).is_err());
        }
    }
}
