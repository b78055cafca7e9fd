//! `sendright cat`: what is in files.
//!
//! The file comes as a descriptor and is read here, so that nothing is copied through the service. To a
//! terminal nothing goes that could command it.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write, stdout};
use std::os::unix::ffi::OsStrExt;

use super::complain_of;
use crate::files::wire::Access;
use crate::options::files::Cat;
use crate::output::{Failure, Outcome};
use crate::reach;
use crate::transfer::{Copied, Progress, copy};

/// How much is looked through at a time on its way to a terminal.
const CHUNK_BYTES: usize = 64 * 1024;

/// Copies one file after the other to standard output.
pub fn cat(options: &Cat) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let reached = reach::directory(&options.source, &mut words)?;
    if words.is_empty() {
        return Err(Failure::usage("which file? Say a PATH"));
    }
    let mut outcome = Outcome::Good;
    for word in &words {
        let opened = reached.executor.block_on(reached.directory.content(reach::place(word)?, Access::Read));
        let (file, size_bytes) = match opened {
            Ok((fd, size_bytes)) => (File::from(fd), size_bytes),
            Err(trouble) => {
                outcome = complain_of(word.as_bytes(), trouble);
                continue;
            }
        };
        let copied = match stdout().is_terminal() && !options.raw {
            true => harmlessly(file),
            false => {
                // A bar on the same terminal as the text would be in its way.
                let bar = if stdout().is_terminal() { Progress::none() } else { Progress::of(size_bytes) };
                copy(file, &mut stdout().lock(), &bar)
            }
        };
        match copied {
            Ok(_) => {}
            Err(Copied::Reading(error)) => outcome = complain_of(word.as_bytes(), error),
            // Whoever reads has seen enough.
            Err(Copied::Writing(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(Copied::Writing(error)) => {
                return Err(Failure::new(format_args!("cannot write to standard output: {error}")));
            }
        }
    }
    Ok(outcome)
}

/// Copies text to a terminal as `cat -v` does.
fn harmlessly(mut file: File) -> Result<u64, Copied> {
    let (mut chunk, mut copied) = (vec![0; CHUNK_BYTES], 0);
    let mut rest = Vec::new();
    loop {
        let read = file.read(&mut chunk).map_err(Copied::Reading)?;
        rest.extend_from_slice(&chunk[..read]);
        let (text, kept) = visible(&rest, read == 0);
        rest = kept;
        stdout().lock().write_all(text.as_bytes()).map_err(Copied::Writing)?;
        copied += read as u64;
        if read == 0 {
            return stdout().lock().flush().map(|()| copied).map_err(Copied::Writing);
        }
    }
}

/// Text with its control characters made visible, and the beginning of a character whose rest is still to
/// come, unless this is the end.
fn visible(bytes: &[u8], is_end: bool) -> (String, Vec<u8>) {
    let mut text = String::with_capacity(bytes.len());
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => text.push(character),
                '\x7f' => text.push_str("^?"),
                '\0'..='\x1f' => text.extend(['^', char::from(character as u8 + b'@')]),
                odd if odd.is_control() => text.extend(odd.escape_default()),
                plain => text.push(plain),
            }
        }
        // Of three bytes or fewer: the whole of it might be one character.
        if chunks.peek().is_none() && !is_end && !chunk.invalid().is_empty() {
            return (text, chunk.invalid().to_vec());
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    (text, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_commands_a_terminal_reaches_it() {
        let (text, rest) = visible(b"a\tb\n\x1b[31m\r\x7f\xff\xc2\x9b", true);
        assert_eq!(text, "a\tb\n^[[31m^M^?\\xff\\u{9b}");
        assert!(rest.is_empty());
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        let (text, rest) = visible(b"h\xc3", false);
        assert_eq!((text.as_str(), &rest[..]), ("h", &b"\xc3"[..]));
        assert_eq!(visible(&[&rest[..], b"\xa9"].concat(), false).0, "\u{e9}");
        assert_eq!(visible(b"h\xc3", true).0, "h\\xc3");
    }
}
