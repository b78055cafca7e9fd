//! `sendright stat`: what the kernel says about files, over there.

use std::io::stdout;
use std::os::unix::ffi::OsStrExt;

use serde_json::Map;

use super::names::{
    attribute_fields, field, full_time, json_line, kind_in_words, permissions, put_attributes, put_name,
    shown,
};
use super::{complain_of, paths_or_here};
use crate::files::wire::{Attributes, Kind};
use crate::options::files::Stat;
use crate::output::{Failure, Outcome, say_bytes};
use crate::reach;

/// Tells about each.
pub fn stat(options: &Stat) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let reached = reach::directory(&options.source, &mut words)?;
    let mut outcome = Outcome::Good;
    for word in paths_or_here(words) {
        let path = reach::path(&word)?;
        let asked = reached.executor.block_on(async {
            let attributes = reached.directory.stat(path).await?;
            let target = match path.place() {
                Some(place) if attributes.kind == Kind::Symlink => {
                    super::ls::target_of(&reached.directory, place).await
                }
                _ => None,
            };
            Ok::<_, crate::files::client::Trouble>((attributes, target))
        });
        let name = if path.is_here() { b"." } else { path.bytes() };
        match asked {
            Ok((attributes, target)) => say_bytes(&told(name, &attributes, target.as_deref(), options))?,
            Err(trouble) => outcome = complain_of(word.as_bytes(), trouble),
        }
    }
    Ok(outcome)
}

fn told(name: &[u8], attributes: &Attributes, target: Option<&[u8]>, options: &Stat) -> Vec<u8> {
    if options.form.json {
        let mut object = Map::new();
        put_name(&mut object, "path", name);
        put_attributes(&mut object, attributes);
        if let Some(target) = target {
            put_name(&mut object, "target", target);
        }
        return json_line(&object).into_bytes();
    }
    if options.form.tsv {
        let target = target.map(field).unwrap_or_default();
        return format!("{}\t{}\t{target}\n", field(name), attribute_fields(attributes)).into_bytes();
    }
    let Attributes { kind, mode, links, uid, gid, size_bytes, blocks, block_bytes, .. } = *attributes;
    let mut text = b"  File: ".to_vec();
    text.extend(shown(name, &stdout()));
    if let Some(target) = target {
        text.extend_from_slice(b" -> ");
        text.extend(shown(target, &stdout()));
    }
    let (major, minor) = (rustix::fs::major(attributes.device), rustix::fs::minor(attributes.device));
    let in_words = kind_in_words(kind, size_bytes);
    let permissions = permissions(kind, mode);
    let rest = format!(
        "\n  Size: {size_bytes:<10}\tBlocks: {blocks:<10} IO Block: {block_bytes:<6} {in_words}\n\
         Device: {major},{minor}\tInode: {:<11} Links: {links}\n\
         Access: ({mode:04o}/{permissions})  Uid: {uid:>5}   Gid: {gid:>5}\n\
         Access: {}\nModify: {}\nChange: {}\n",
        attributes.inode,
        full_time(attributes.accessed),
        full_time(attributes.modified),
        full_time(attributes.changed),
    );
    text.extend_from_slice(rest.as_bytes());
    text
}
