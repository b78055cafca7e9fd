//! How names, kinds, permissions and times are printed: as GNU's tools print them, to a terminal with quotes
//! around whatever is odd.
//!
//! It owns the rule that nothing a stranger has named reaches a terminal as a control character. It knows
//! nothing of where names come from.

use std::io::IsTerminal;

use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use crate::files::wire::{Attributes, Kind, Moment};
use crate::output::{is_printable, printable};

/// A name for people or for programs: quoted like a shell's word if `stream` is a terminal, and as it is if
/// it is not.
pub fn shown(name: &[u8], stream: &impl IsTerminal) -> Vec<u8> {
    if stream.is_terminal() { quoted(name).into_bytes() } else { name.to_vec() }
}

/// A name as one word of a shell, in printable characters, as `ls` quotes it.
pub fn quoted(name: &[u8]) -> String {
    let is_odd = |chunk: &std::str::Utf8Chunk<'_>| {
        !chunk.invalid().is_empty() || chunk.valid().chars().any(|character| !is_printable(character))
    };
    let special = |byte: &u8| b" !\"#$&'()*;<=>?[\\]^`{|}~".contains(byte);
    if name.utf8_chunks().any(|chunk| is_odd(&chunk)) {
        return quoted_in_parts(name);
    }
    let text = String::from_utf8_lossy(name).into_owned();
    // Some are special only where a word begins.
    let begins = |byte: &u8| b"#~".contains(byte);
    let inside = |byte: &u8| special(byte) && !begins(byte);
    let is_special = name.is_empty() || name.iter().any(inside) || name.first().is_some_and(begins);
    match (is_special, text.contains('\'')) {
        (false, _) => text,
        (true, false) => format!("'{text}'"),
        (true, true) if !text.contains(['"', '$', '`', '\\', '!']) => format!("\"{text}\""),
        (true, true) => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// `'plain'$'\n''plain'`
fn quoted_in_parts(name: &[u8]) -> String {
    let mut text = String::from("'");
    let mut is_escaping = false;
    let mut add = |escaped: bool, piece: &str| {
        match (is_escaping, escaped) {
            (false, true) => text.push_str("'$'"),
            (true, false) => text.push_str("''"),
            _ => {}
        }
        is_escaping = escaped;
        text.push_str(piece);
    };
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' => add(false, "'\\''"),
                '\n' => add(true, "\\n"),
                '\t' => add(true, "\\t"),
                '\r' => add(true, "\\r"),
                plain if is_printable(plain) => add(false, plain.encode_utf8(&mut [0; 4])),
                odd => {
                    for byte in odd.encode_utf8(&mut [0; 4]).bytes() {
                        add(true, &format!("\\{byte:03o}"));
                    }
                }
            }
        }
        for byte in chunk.invalid() {
            add(true, &format!("\\{byte:03o}"));
        }
    }
    text.push('\'');
    text
}

/// A name as a field of tab-separated values.
pub fn field(name: &[u8]) -> String {
    printable(name)
}

/// A name in JSON, which knows no odd bytes: those names come a second time, in base64.
pub fn put_name(object: &mut Map<String, Value>, key: &str, name: &[u8]) {
    object.insert(key.into(), String::from_utf8_lossy(name).into());
    if std::str::from_utf8(name).is_err() {
        object.insert(format!("{key}_base64"), BASE64.encode(name).into());
    }
}

/// An object as one line, in which every character is printable: JSON itself asks for no more than that the
/// first 32 are escaped, and lets those through that command a terminal in one byte less.
pub fn json_line(object: &Map<String, Value>) -> String {
    let text = serde_json::to_string(object).expect("plain data");
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        if is_printable(character) {
            line.push(character);
            continue;
        }
        // Outside of strings there is none of these.
        for unit in character.encode_utf16(&mut [0; 2]) {
            line.push_str(&format!("\\u{unit:04x}"));
        }
    }
    line.push('\n');
    line
}

/// A kind in words, as `stat` has them.
pub fn kind_in_words(kind: Kind, size_bytes: u64) -> &'static str {
    match kind {
        Kind::File if size_bytes == 0 => "regular empty file",
        Kind::File => "regular file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::BlockDevice => "block special file",
        Kind::CharacterDevice => "character special file",
        Kind::Unknown => "weird file",
    }
}

/// A kind as a letter, as `find -type` has them.
pub fn kind_letter(kind: Kind) -> char {
    match kind {
        Kind::Unknown => 'U',
        kind => char::from(kind.byte()),
    }
}

/// `drwxr-xr-x`
pub fn permissions(kind: Kind, mode: u32) -> String {
    let mut text = String::from(match kind {
        Kind::File => "-",
        Kind::Directory => "d",
        Kind::Symlink => "l",
        Kind::Fifo => "p",
        Kind::Socket => "s",
        Kind::BlockDevice => "b",
        Kind::CharacterDevice => "c",
        Kind::Unknown => "?",
    });
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    for (shift, (bit, with, without)) in [6, 3, 0].into_iter().zip(special) {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & bit != 0) {
            (true, true) => with,
            (false, true) => without,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Half a year in seconds: what is further away is printed with its year, as `ls` does.
const HALF_A_YEAR: i64 = 31_556_952 / 2;

/// A time as `ls -l` has it.
pub fn brief_time(moment: Moment) -> String {
    let Some(zoned) = zoned(moment) else { return moment.seconds.to_string() };
    let age = jiff::Timestamp::now().as_second() - moment.seconds;
    let format = if (0..HALF_A_YEAR).contains(&age) { "%b %e %H:%M" } else { "%b %e  %Y" };
    zoned.strftime(format).to_string()
}

/// A time as `stat` has it.
pub fn full_time(moment: Moment) -> String {
    match zoned(moment) {
        Some(zoned) => zoned.strftime("%Y-%m-%d %H:%M:%S.%9f %z").to_string(),
        None => moment.seconds.to_string(),
    }
}

fn zoned(moment: Moment) -> Option<jiff::Zoned> {
    let nanoseconds = i32::try_from(moment.nanoseconds).ok()?;
    // Before 1970 both parts must not be of different signs.
    let second = jiff::Timestamp::new(moment.seconds, 0).ok()?;
    let timestamp = second.checked_add(jiff::SignedDuration::new(0, nanoseconds)).ok()?;
    Some(timestamp.to_zoned(jiff::tz::TimeZone::system()))
}

/// Everything about a file, for programs.
pub fn put_attributes(object: &mut Map<String, Value>, attributes: &Attributes) {
    let seconds = |moment: Moment| json!({ "s": moment.seconds, "ns": moment.nanoseconds });
    let fields = [
        ("kind", json!(kind_letter(attributes.kind).to_string())),
        ("mode", json!(format!("{:04o}", attributes.mode))),
        ("links", json!(attributes.links)),
        ("uid", json!(attributes.uid)),
        ("gid", json!(attributes.gid)),
        ("size_bytes", json!(attributes.size_bytes)),
        ("blocks", json!(attributes.blocks)),
        ("block_bytes", json!(attributes.block_bytes)),
        ("device", json!(attributes.device)),
        ("inode", json!(attributes.inode)),
        ("accessed", seconds(attributes.accessed)),
        ("modified", seconds(attributes.modified)),
        ("changed", seconds(attributes.changed)),
    ];
    object.extend(fields.map(|(key, value)| (key.to_owned(), value)));
}

/// The same as fields: kind, mode, links, uid, gid, size, accessed, modified, changed (seconds since 1970).
pub fn attribute_fields(attributes: &Attributes) -> String {
    let Attributes { kind, mode, links, uid, gid, size_bytes, accessed, modified, changed, .. } = attributes;
    let kind = kind_letter(*kind);
    let (accessed, modified, changed) = (accessed.seconds, modified.seconds, changed.seconds);
    format!("{kind}\t{mode:04o}\t{links}\t{uid}\t{gid}\t{size_bytes}\t{accessed}\t{modified}\t{changed}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    const ODD: [&[u8]; 22] = [
        b"plain",
        b"with space",
        b"it's",
        b"it's \"it\"",
        b"a$b",
        b"back\\slash",
        b"tab\there",
        b"line\nfeed",
        b"\x1b[31mred",
        b"\xff\xfe",
        b"h\xc3\xa9",
        b"a\xc2\x9bb",
        b"-rf",
        b"a*b",
        b"#a",
        b"a#b",
        b"~",
        b"a~b",
        b"a'b\nc",
        b"(x)",
        b"a=b",
        b"x:y,z@%+",
    ];

    #[test]
    fn names_are_quoted_as_ls_quotes_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in ODD {
            let path = folder.path().join(std::ffi::OsStr::from_bytes(name));
            std::fs::write(&path, "").unwrap();
            let output = Command::new("ls")
                .args(["--quoting-style=shell-escape", "-A"])
                .env("LC_ALL", "C.UTF-8")
                .current_dir(folder.path())
                .output();
            let Ok(output) = output else { return };
            let told = String::from_utf8(output.stdout).unwrap();
            assert_eq!(quoted(name), told.trim_end_matches('\n'), "{name:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn whatever_is_quoted_is_printable_and_means_the_name_to_a_shell() {
        for name in ODD.into_iter().chain(["right\u{202e}left".as_bytes(), "zero\u{200b}width".as_bytes()]) {
            let quoted = quoted(name);
            assert!(quoted.chars().all(is_printable), "{quoted:?}");
            let script = format!("printf %s {quoted}");
            let Ok(output) = Command::new("bash").args(["-c", &script]).output() else { return };
            assert_eq!(output.stdout, name, "{quoted}");
        }
    }

    #[test]
    fn json_has_no_character_that_commands_a_terminal() {
        for name in ODD.into_iter().chain([&b"del\x7f"[..], "right\u{202e}left".as_bytes()]) {
            let mut object = Map::new();
            put_name(&mut object, "name", name);
            let line = json_line(&object);
            let line = line.strip_suffix('\n').unwrap();
            assert!(line.chars().all(is_printable), "{line:?}");
            assert_eq!(serde_json::from_str::<Map<String, Value>>(line).unwrap(), object);
        }
    }

    #[test]
    fn permissions_look_as_usual() {
        assert_eq!(permissions(Kind::Directory, 0o755), "drwxr-xr-x");
        assert_eq!(permissions(Kind::File, 0o4644), "-rwSr--r--");
        assert_eq!(permissions(Kind::File, 0o6755), "-rwsr-sr-x");
        assert_eq!(permissions(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(permissions(Kind::Directory, 0o1770), "drwxrwx--T");
    }

    #[test]
    fn times_before_1970_are_times() {
        let at = |seconds, nanoseconds| full_time(Moment::new(seconds, nanoseconds));
        assert!(at(-1, 500_000_000).contains(":59.500000000"), "{}", at(-1, 500_000_000));
        assert_eq!(at(i64::MAX, 0), i64::MAX.to_string(), "beyond any calendar");
    }
}
