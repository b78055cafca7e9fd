//! Descriptors given to a child process: nothing else is shared, and nothing is inherited by accident.
//!
//! Everything this crate opens is close-on-exec. What a child is to have is named here, with the number it
//! will find it under; the child claims it once.

use std::os::fd::OwnedFd;
use std::process::Command;

use thiserror::Error;

use crate::sys;

/// Lets the child find each descriptor under its number. The copies in this process close when the `Command`
/// is dropped; until then a `Command` started twice gives the same descriptors twice.
///
/// Numbers below 3 replace standard input, output and error, after `Command` has set those up.
///
/// ```
/// use std::io::Read;
/// use std::os::fd::OwnedFd;
/// use std::process::Command;
///
/// let (mut reader, writer) = std::io::pipe()?;
/// let mut command = Command::new("sh");
/// command.args(["-c", "echo hello >&7"]);
/// ring::inherit::give(&mut command, vec![(OwnedFd::from(writer), 7)]);
/// let status = command.status()?;
/// drop(command);
/// let mut said = String::new();
/// reader.read_to_string(&mut said)?;
/// assert!(status.success());
/// assert_eq!(said, "hello\n");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// If a number is negative or named twice.
pub fn give(command: &mut Command, descriptors: Vec<(OwnedFd, i32)>) -> &mut Command {
    let mut numbers: Vec<i32> = descriptors.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert!(numbers.first().is_none_or(|number| *number >= 0), "a descriptor's number is not negative");
    assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]), "one number for one descriptor");
    sys::inherit(command, descriptors);
    command
}

/// Claims a descriptor this process was started with. It is close-on-exec from here on.
///
/// What this process opened itself cannot be claimed: that is close-on-exec already, and has an owner.
///
/// # Errors
/// See [`InheritError`].
pub fn take(number: i32) -> Result<OwnedFd, InheritError> {
    match sys::close_on_exec(number) {
        None => Err(InheritError::NotOpen(number)),
        Some(true) => Err(InheritError::NotInherited(number)),
        Some(false) => sys::claim(number).map_err(|_| InheritError::NotOpen(number)),
    }
}

/// There is no such inherited descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InheritError {
    /// Nothing is open under this number.
    #[error("descriptor {0} is not open")]
    NotOpen(i32),
    /// What is open under this number was opened by this process, or has been claimed already.
    #[error("descriptor {0} was not inherited, or has been claimed already")]
    NotInherited(i32),
}
