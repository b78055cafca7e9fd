//! `sendright find`: what is in a tree, and is like this.
//!
//! It goes down one directory after the other, each by its path from the directory it was given, so that a
//! tree of any width or depth costs the service no objects.

use std::io::stdout;
use std::os::unix::ffi::OsStrExt;

use serde_json::Map;

use super::glob::is_like;
use super::names::{field, json_line, kind_letter, put_name, shown};
use super::{Listed, complain_of, join, list, paths_or_here};
use crate::files::client::{self, Trouble};
use crate::files::wire::Kind;
use crate::options::files::{Find, FoundKind};
use crate::output::{Failure, Outcome, say_bytes};
use crate::reach::{self, Reached};

/// How much is collected before it is printed.
const PRINTED_BYTES: usize = 16 * 1024;

/// Something to be looked at: what is printed of its path, where it is, how deep.
struct Found {
    printed: Vec<u8>,
    path: Vec<u8>,
    kind: Kind,
    depth: usize,
}

/// Finds.
pub fn find(options: &Find) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let reached = reach::directory(&options.source, &mut words)?;
    let mut outcome = Outcome::Good;
    for word in paths_or_here(words) {
        let path = reach::path(&word)?;
        let printed = if word.is_empty() { b".".to_vec() } else { word.as_bytes().to_vec() };
        let root = match reached.executor.block_on(reached.directory.stat(path)) {
            Ok(attributes) => attributes,
            Err(trouble) => {
                outcome = complain_of(&printed, trouble);
                continue;
            }
        };
        let begin = Found { printed, path: path.bytes().to_vec(), kind: root.kind, depth: 0 };
        if go_down(&reached, begin, options)? == Outcome::Failed {
            outcome = Outcome::Failed;
        }
    }
    Ok(outcome)
}

fn go_down(reached: &Reached, begin: Found, options: &Find) -> Result<Outcome, Failure> {
    let (mut outcome, mut text) = (Outcome::Good, Vec::new());
    let mut left = vec![begin];
    while let Some(found) = left.pop() {
        if is_wanted(&found, options) {
            print(&found, options, &mut text);
        }
        if text.len() > PRINTED_BYTES {
            say_bytes(&std::mem::take(&mut text))?;
        }
        let is_deep_enough = options.maxdepth.is_some_and(|maxdepth| found.depth >= maxdepth);
        if found.kind != Kind::Directory || is_deep_enough {
            continue;
        }
        match names_in(reached, &found) {
            Ok(names) => {
                // The last is taken first: so they come out in order.
                left.extend(names.into_iter().rev().map(|Listed { name, kind }| Found {
                    printed: match found.printed.ends_with(b"/") {
                        true => [&found.printed[..], &name].concat(),
                        false => join(&found.printed, &name),
                    },
                    path: join(&found.path, &name),
                    kind,
                    depth: found.depth + 1,
                }));
            }
            Err(trouble) => {
                say_bytes(&std::mem::take(&mut text))?;
                outcome = complain_of(&found.printed, trouble);
            }
        }
    }
    say_bytes(&text)?;
    Ok(outcome)
}

fn names_in(reached: &Reached, found: &Found) -> Result<Vec<Listed>, Trouble> {
    reached.executor.block_on(list(&reached.directory, client::path(&found.path)?))
}

fn is_wanted(found: &Found, options: &Find) -> bool {
    let name = found.printed.rsplit(|&byte| byte == b'/').find(|part| !part.is_empty()).unwrap_or(b"/");
    let of_kind = options.kind.is_none_or(|kind| kind_of(kind) == found.kind);
    let is_named = options.name.as_ref().is_none_or(|pattern| is_like(name, pattern.as_bytes()));
    of_kind && is_named && found.depth >= options.mindepth
}

fn kind_of(kind: FoundKind) -> Kind {
    match kind {
        FoundKind::F => Kind::File,
        FoundKind::D => Kind::Directory,
        FoundKind::L => Kind::Symlink,
        FoundKind::P => Kind::Fifo,
        FoundKind::S => Kind::Socket,
        FoundKind::B => Kind::BlockDevice,
        FoundKind::C => Kind::CharacterDevice,
    }
}

fn print(found: &Found, options: &Find, text: &mut Vec<u8>) {
    if options.form.json {
        let mut object = Map::new();
        put_name(&mut object, "path", &found.printed);
        object.insert("kind".into(), kind_letter(found.kind).to_string().into());
        text.extend(json_line(&object).into_bytes());
    } else if options.form.tsv {
        text.extend(format!("{}\t{}\n", field(&found.printed), kind_letter(found.kind)).into_bytes());
    } else {
        text.extend(shown(&found.printed, &stdout()));
        text.push(if options.print0 { 0 } else { b'\n' });
    }
}
