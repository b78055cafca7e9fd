//! `sendright ls`: what is in a directory.
//!
//! It owns the layout. What is long asks about each name, all at once.

use std::io::{IsTerminal, stdout};
use std::os::unix::ffi::OsStrExt;

use serde_json::Map;

use super::names::{
    attribute_fields, brief_time, field, json_line, kind_letter, permissions, put_attributes, put_name,
    quoted, shown,
};
use super::{Listed, complain_of, join, list, paths_or_here};
use crate::files::client::{self, Directory, Trouble};
use crate::files::wire::{Attributes, Kind, Path, Place};
use crate::options::files::Ls;
use crate::output::{Failure, Outcome, say_bytes};
use crate::reach;
use crate::together::all_of;

/// How many questions are asked at a time.
const ASKED_MAX: usize = 64;

/// What is known about a name.
struct Row {
    name: Vec<u8>,
    kind: Kind,
    attributes: Option<Attributes>,
    target: Option<Vec<u8>>,
}

/// What is to be printed about one path.
struct Listing {
    rows: Vec<Row>,
    troubles: Vec<(Vec<u8>, Trouble)>,
    /// The rows are what is in a directory, and not something itself.
    is_inside: bool,
}

/// Lists.
pub fn ls(options: &Ls) -> Result<Outcome, Failure> {
    let mut words = options.words.clone();
    let reached = reach::directory(&options.source, &mut words)?;
    let words = paths_or_here(words);
    let is_asked_about = options.long || options.form.json || options.form.tsv;
    let mut outcome = Outcome::Good;
    for (index, word) in words.iter().enumerate() {
        let path = reach::path(word)?;
        let asked = listing(&reached.directory, path, options, is_asked_about);
        let listing = match reached.executor.block_on(asked) {
            Ok(listing) => listing,
            Err(trouble) => {
                outcome = complain_of(word.as_bytes(), trouble);
                continue;
            }
        };
        for (name, trouble) in &listing.troubles {
            outcome = complain_of(name, trouble);
        }
        let mut text = Vec::new();
        if words.len() > 1 && !options.directory && !options.form.json && !options.form.tsv {
            if index > 0 {
                text.push(b'\n');
            }
            text.extend_from_slice(&shown(word.as_bytes(), &stdout()));
            text.extend_from_slice(b":\n");
        }
        text.extend(laid_out(&listing, options));
        say_bytes(&text)?;
    }
    Ok(outcome)
}

async fn listing(
    directory: &Directory,
    path: Path<'_>,
    options: &Ls,
    is_asked_about: bool,
) -> Result<Listing, Trouble> {
    let itself = |row| Listing { rows: vec![row], troubles: Vec::new(), is_inside: false };
    let name_or_dot = |path: Path<'_>| if path.is_here() { b".".to_vec() } else { path.bytes().to_vec() };
    if options.directory {
        let row = row_of(directory, name_or_dot(path), path).await?;
        return Ok(itself(row));
    }
    let listed = match list(directory, path).await {
        // No directory: then it is itself what is listed.
        Err(trouble) if !path.is_here() => match row_of(directory, name_or_dot(path), path).await {
            Ok(row) if row.kind != Kind::Directory => return Ok(itself(row)),
            _ => return Err(trouble),
        },
        listed => listed?,
    };
    let listed: Vec<Listed> =
        listed.into_iter().filter(|listed| options.all || !listed.name.starts_with(b".")).collect();
    if !is_asked_about {
        let plain =
            |listed: Listed| Row { name: listed.name, kind: listed.kind, attributes: None, target: None };
        let rows = listed.into_iter().map(plain).collect();
        return Ok(Listing { rows, troubles: Vec::new(), is_inside: true });
    }
    let (mut rows, mut troubles) = (Vec::new(), Vec::new());
    for some in listed.chunks(ASKED_MAX) {
        let paths: Vec<Vec<u8>> = some.iter().map(|listed| join(path.bytes(), &listed.name)).collect();
        let ask =
            async |path: &[u8], name: &[u8]| row_of(directory, name.to_vec(), client::path(path)?).await;
        let asked: Vec<_> = paths.iter().zip(some).map(|(path, listed)| ask(path, &listed.name)).collect();
        for (row, listed) in all_of(asked).await.into_iter().zip(some) {
            match row {
                Ok(row) => rows.push(row),
                Err(trouble) => troubles.push((listed.name.clone(), trouble)),
            }
        }
    }
    Ok(Listing { rows, troubles, is_inside: true })
}

async fn row_of(directory: &Directory, name: Vec<u8>, path: Path<'_>) -> Result<Row, Trouble> {
    let attributes = directory.stat(path).await?;
    let target = match path.place() {
        Some(place) if attributes.kind == Kind::Symlink => target_of(directory, place).await,
        _ => None,
    };
    Ok(Row { name, kind: attributes.kind, attributes: Some(attributes), target })
}

/// A link that has gone meanwhile points nowhere.
pub(super) async fn target_of(directory: &Directory, place: Place<'_>) -> Option<Vec<u8>> {
    directory.read_link(place).await.ok()
}

fn laid_out(listing: &Listing, options: &Ls) -> Vec<u8> {
    let rows = &listing.rows;
    if options.form.json {
        return rows.iter().flat_map(|row| json(row).into_bytes()).collect();
    }
    if options.form.tsv {
        return rows.iter().flat_map(|row| tsv(row).into_bytes()).collect();
    }
    if options.long {
        let total = if listing.is_inside { format!("total {}\n", total(rows)) } else { String::new() };
        return [total.into_bytes(), long(rows)].concat();
    }
    if stdout().is_terminal() && !options.one {
        let width = rustix::termios::tcgetwinsize(stdout()).map_or(0, |size| usize::from(size.ws_col));
        let names: Vec<String> = rows.iter().map(|row| quoted(&row.name)).collect();
        return in_columns(&names, if width == 0 { 80 } else { width }).into_bytes();
    }
    let mut text = Vec::new();
    for row in rows {
        text.extend(shown(&row.name, &stdout()));
        text.push(b'\n');
    }
    text
}

/// In 1,024 bytes each, as always. What a service says can add up to more than there are numbers.
fn total(rows: &[Row]) -> u64 {
    let blocks = rows.iter().filter_map(|row| row.attributes).map(|attributes| attributes.blocks);
    blocks.fold(0, u64::saturating_add).div_ceil(2)
}

fn json(row: &Row) -> String {
    let mut object = Map::new();
    put_name(&mut object, "name", &row.name);
    if let Some(attributes) = &row.attributes {
        put_attributes(&mut object, attributes);
    }
    if let Some(target) = &row.target {
        put_name(&mut object, "target", target);
    }
    json_line(&object)
}

fn tsv(row: &Row) -> String {
    let target = row.target.as_deref().map(field).unwrap_or_default();
    match &row.attributes {
        Some(attributes) => format!("{}\t{}\t{target}\n", field(&row.name), attribute_fields(attributes)),
        None => format!("{}\t{}\n", field(&row.name), kind_letter(row.kind)),
    }
}

fn long(rows: &[Row]) -> Vec<u8> {
    let columns = |row: &Row| {
        row.attributes.as_ref().map(|it| {
            let size = match it.kind {
                Kind::BlockDevice | Kind::CharacterDevice => {
                    let (major, minor) = (rustix::fs::major(it.special), rustix::fs::minor(it.special));
                    format!("{major}, {minor}")
                }
                _ => it.size_bytes.to_string(),
            };
            [it.links.to_string(), it.uid.to_string(), it.gid.to_string(), size]
        })
    };
    let mut widths = [0; 4];
    for cells in rows.iter().filter_map(columns) {
        for (width, cell) in widths.iter_mut().zip(&cells) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = Vec::new();
    for row in rows {
        let (Some([links, uid, gid, size]), Some(attributes)) = (columns(row), &row.attributes) else {
            continue;
        };
        let [l, u, g, s] = widths;
        let permissions = permissions(row.kind, attributes.mode);
        let time = brief_time(attributes.modified);
        text.extend(format!("{permissions} {links:>l$} {uid:<u$} {gid:<g$} {size:>s$} {time} ").into_bytes());
        text.extend(shown(&row.name, &stdout()));
        if let Some(target) = &row.target {
            text.extend_from_slice(b" -> ");
            text.extend(shown(target, &stdout()));
        }
        text.push(b'\n');
    }
    text
}

/// As many columns as fit, filled from top to bottom, with two spaces between.
fn in_columns(names: &[String], width: usize) -> String {
    let lengths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
    let layout = |columns: usize| {
        let rows = names.len().div_ceil(columns);
        let widths: Vec<usize> =
            lengths.chunks(rows.max(1)).map(|column| column.iter().max().map_or(0, |max| max + 2)).collect();
        (rows, widths)
    };
    let fits = |columns: &usize| layout(*columns).1.iter().sum::<usize>() <= width + 2;
    let columns = (1..=names.len().max(1)).rev().find(fits).unwrap_or(1);
    let (rows, widths) = layout(columns);
    let mut text = String::new();
    for row in 0..rows {
        for (column, width) in widths.iter().enumerate() {
            let index = column * rows + row;
            let Some(name) = names.get(index) else { break };
            text.push_str(name);
            if names.get(index + rows).is_some() {
                text.extend(std::iter::repeat_n(' ', width - lengths[index]));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::wire::Moment;

    #[test]
    fn a_service_that_lies_about_sizes_stops_nobody() {
        let never = Moment::new(i64::MIN, 0);
        let (kind, mode, links, uid, gid) = (Kind::File, 0o644, u64::MAX, u32::MAX, u32::MAX);
        let (size_bytes, blocks, block_bytes) = (u64::MAX, u64::MAX, u32::MAX);
        let (device, inode, special) = (u64::MAX, u64::MAX, u64::MAX);
        let (accessed, modified, changed) = (never, never, never);
        let attributes = Attributes {
            kind,
            mode,
            links,
            uid,
            gid,
            size_bytes,
            blocks,
            block_bytes,
            device,
            inode,
            special,
            accessed,
            modified,
            changed,
        };
        let row = || Row { name: b"x".to_vec(), kind, attributes: Some(attributes), target: None };
        let rows = [row(), row()];
        assert_eq!(total(&rows), u64::MAX.div_ceil(2));
        assert!(!long(&rows).is_empty());
        assert!(!json(&rows[0]).is_empty());
    }

    #[test]
    fn columns_are_filled_from_top_to_bottom() {
        let names = ["a", "bb", "ccc", "d", "e"].map(String::from);
        assert_eq!(in_columns(&names, 80), "a  bb  ccc  d  e\n");
        assert_eq!(in_columns(&names, 9), "a    d\nbb   e\nccc\n");
        assert_eq!(in_columns(&names, 1), "a\nbb\nccc\nd\ne\n");
        assert_eq!(in_columns(&[], 80), "");
    }
}
