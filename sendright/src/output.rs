//! Where the program's words go: standard output and standard error, either of which may be gone.
//!
//! It owns the rule that a reader who has seen enough (`| head -1`) is no error and a full disk is one, and
//! that neither is ever a panic, which is what `println!` makes of both. It knows nothing of what is being
//! said.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// How a program that did its work, or did not, ends. The numbers are what scripts see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for was done, and the answer is good.
    Good,
    /// Something failed, or the answer is bad.
    Failed,
    /// The command line cannot be carried out as it stands.
    Usage,
}

impl Outcome {
    /// The exit status: 0, 1 and 2, as of any other command-line tool.
    pub fn status(self) -> u8 {
        match self {
            Outcome::Good => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
        }
    }
}

/// A value as one line of JSON, for scripts.
pub fn json_line(value: &impl Serialize) -> String {
    // Plain structs of numbers and strings: writing them into memory cannot fail.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// What ends the program early: a sentence for standard error and the status to end with.
#[derive(Debug)]
pub struct Failure {
    outcome: Outcome,
    sentence: String,
}

impl Failure {
    /// Something went wrong while doing what was asked.
    pub fn new(sentence: impl fmt::Display) -> Failure {
        Failure { outcome: Outcome::Failed, sentence: sentence.to_string() }
    }

    /// What was asked cannot be done as it was written.
    pub fn usage(sentence: impl fmt::Display) -> Failure {
        Failure { outcome: Outcome::Usage, sentence: sentence.to_string() }
    }

    /// The status to end with.
    #[cfg(test)]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Says it on standard error and gives the outcome.
    pub fn tell(&self) -> Outcome {
        complain(&self.sentence);
        self.outcome
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Writes all of `text` to standard output.
///
/// `Ok` also when the reader has gone: it has seen what it wanted. Every other failure (a full disk) is one.
pub fn say(text: &str) -> Result<(), Failure> {
    say_bytes(text.as_bytes())
}

/// The same for what need not be text.
pub fn say_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format_args!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// One line on standard error. There is nobody left to tell when that fails.
pub fn complain(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{}: {sentence}", paint("sendright", Ink::Bad, &io::stderr()));
}

/// One line on standard error that is no complaint.
pub fn remark(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "sendright: {sentence}");
}

/// What a colour stands for here.
#[derive(Clone, Copy, Debug)]
pub enum Ink {
    Good,
    Bad,
    Heading,
    Faint,
}

/// `text` in colour if `stream` is a terminal and nobody asked for none (`NO_COLOR`, `TERM=dumb`).
pub fn paint(text: &str, ink: Ink, stream: &impl IsTerminal) -> String {
    if !is_colourful(stream) {
        return text.to_string();
    }
    let code = match ink {
        Ink::Good => "1;32",
        Ink::Bad => "1;31",
        Ink::Heading => "1",
        Ink::Faint => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Whether `stream` takes colours.
pub fn is_colourful(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    stream.is_terminal() && !refused && !dumb
}

/// Neither a control character nor one that turns the direction of what follows, or hides.
pub fn is_printable(character: char) -> bool {
    let turns =
        matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    !character.is_control() && !turns && character != '\u{feff}'
}

/// A name of any bytes, printable on one line: what is not a whole and printable UTF-8 character is escaped.
pub fn printable(name: &[u8]) -> String {
    let mut line = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => line.push_str("\\\\"),
                other if !is_printable(other) => line.extend(other.escape_default()),
                other => line.push(other),
            }
        }
        for byte in chunk.invalid() {
            line.push_str(&format!("\\x{byte:02x}"));
        }
    }
    line
}

/// A count with its digits in groups of three, for people.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut line = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            line.push(',');
        }
        line.push(digit);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_become_one_printable_line() {
        assert_eq!(printable(b"plain name"), "plain name");
        assert_eq!(printable(b"two\nlines"), "two\\nlines");
        assert_eq!(printable(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(printable("h\u{e9}".as_bytes()), "h\u{e9}");
        assert_eq!(printable(b"back\\slash"), "back\\\\slash");
        assert_eq!(printable(b"\x1b[31m"), "\\u{1b}[31m");
        assert_eq!(printable("right\u{202e}left".as_bytes()), "right\\u{202e}left");
    }

    #[test]
    fn counts_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
