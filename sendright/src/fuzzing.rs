//! Each decoder of the program's file service, called with bytes of anybody's, and what must hold whatever
//! they are.
//!
//! Behind the feature `fuzzing`, for the package `hostile` and the targets in `fuzz/`: the program has no
//! library, and these files are compiled once more here. It must never know what is done with a request.

use crate::files::wire::{
    self, Access, Admission, Attributes, CURSOR_START, Entrance, FileRequest, Kind, LinkRequest, Malformed,
    Moment, More, NewTime, NewTimes, NotAdmitted, Onto, Page, PageWriter, Path, Refusal, Refused, Request,
    Target, View,
};

/// Reads what a service hears: the first byte says from whom.
pub fn read_request(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => drop(Request::parse(bytes)),
        1 => drop(FileRequest::parse(bytes)),
        2 => drop(LinkRequest::parse(bytes)),
        _ => drop(Entrance::parse(bytes)),
    }
}

/// A request that is read is written as it came, and leads nowhere but down.
pub fn check_request(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => {
            let Ok(request) = Request::parse(bytes) else { return };
            assert_eq!(request.encode(), bytes);
            for path in paths(&request) {
                assert!(path.bytes().len() <= wire::PATH_BYTES_MAX);
                assert!(!path.bytes().starts_with(b"/"), "from the root");
                for leaf in path.leaves() {
                    assert!(leaf.bytes() != b".." && leaf.bytes() != b".", "not down");
                    assert!(!leaf.bytes().is_empty() && !leaf.bytes().contains(&0));
                }
            }
        }
        1 => {
            let Ok(request) = FileRequest::parse(bytes) else { return };
            // What is opened for reading may say so, or nothing.
            assert!(request.encode() == bytes || bytes == b"open\0");
        }
        2 => drop(LinkRequest::parse(bytes)),
        _ => {
            let Ok(entrance) = Entrance::parse(bytes) else { return };
            assert_eq!(entrance.encode(), bytes);
            assert!(!format!("{entrance:?}").contains(char::is_numeric), "a secret is not shown");
        }
    }
}

fn paths<'a>(request: &Request<'a>) -> Vec<Path<'a>> {
    match *request {
        Request::List { path, .. }
        | Request::Open { path }
        | Request::Stat { path }
        | Request::SetMode { path, .. }
        | Request::SetTimes { path, .. }
        | Request::View { path, .. } => vec![path],
        Request::ReadLink { path }
        | Request::Content { path, .. }
        | Request::Create { path, .. }
        | Request::MakeDirectory { path, .. }
        | Request::MakeSymlink { path, .. }
        | Request::Unlink { path }
        | Request::RemoveDirectory { path } => vec![path.path()],
        Request::Rename { from, to } | Request::Link { from, to } => vec![from.path(), to.path()],
    }
}

/// What clients say and services answer, as the program writes it: to begin with.
pub fn samples() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let path = Path::new(b"a/b c").expect("two leaves");
    let place = path.place().expect("not the directory itself");
    let target = Target::new(b"../elsewhere").expect("anything");
    let moment = Moment::new(1_234_567_890, 5);
    let times = NewTimes { accessed: NewTime::Now, modified: NewTime::At(moment) };
    let view = View { read_only: true, leashed: true };
    let mode = 0o644;
    let directory = [
        Request::List { cursor: CURSOR_START, path: Path::HERE },
        Request::Open { path },
        Request::ReadLink { path: place },
        Request::Stat { path },
        Request::Content { access: Access::ReadWrite, path: place },
        Request::Create { mode, onto: Onto::Anything, path: place },
        Request::MakeDirectory { mode, path: place },
        Request::MakeSymlink { path: place, target },
        Request::Rename { from: place, to: place },
        Request::Link { from: place, to: place },
        Request::Unlink { path: place },
        Request::RemoveDirectory { path: place },
        Request::SetMode { mode, path },
        Request::SetTimes { times, path },
        Request::View { view, path },
    ];
    let file = [
        FileRequest::Open(Access::Write),
        FileRequest::Stat,
        FileRequest::SetMode(mode),
        FileRequest::SetTimes(times),
    ];
    let entrance = Entrance { swiss: b"a secret of somebody's" };
    let mut requests: Vec<Vec<u8>> = directory.iter().map(|request| marked(0, request.encode())).collect();
    requests.extend(file.iter().map(|request| marked(1, request.encode())));
    requests.extend([marked(2, b"read".to_vec()), marked(2, b"stat".to_vec()), marked(3, entrance.encode())]);

    let mut page = PageWriter::new(CURSOR_START);
    page.push(Kind::Directory, b"a", 1);
    page.push(Kind::File, b"b c", 2);
    let attributes = Attributes {
        kind: Kind::File,
        mode,
        links: 1,
        uid: 1000,
        gid: 1000,
        size_bytes: 3,
        blocks: 8,
        block_bytes: 4_096,
        device: 1,
        inode: 2,
        special: 0,
        accessed: moment,
        modified: moment,
        changed: moment,
    };
    let answers = vec![
        marked(0, page.finish(More::Yes)),
        marked(1, wire::opened(Kind::Directory)),
        marked(2, wire::done()),
        marked(2, Refused::plainly(Refusal::NotFound).encode()),
        marked(3, wire::attributes(&attributes)),
        marked(4, wire::target(b"../elsewhere")),
        marked(5, wire::content(3)),
        marked(6, Admission::Directory { writable: true }.encode()),
        marked(6, Admission::No(NotAdmitted::Busy).encode()),
    ];
    (requests, answers)
}

fn marked(which: u8, bytes: Vec<u8>) -> Vec<u8> {
    [vec![which], bytes].concat()
}

/// Reads what a service says: the first byte says to what.
pub fn read_answer(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 7 {
        0 => drop(Page::parse(bytes).map(|page| page.map(|page| page.entries().count()))),
        1 => drop(wire::parse_opened(bytes)),
        2 => drop(wire::parse_done(bytes)),
        3 => drop(wire::parse_attributes(bytes)),
        4 => drop(wire::parse_target(bytes)),
        5 => drop(wire::parse_content(bytes)),
        _ => drop(Admission::parse(bytes)),
    }
}

/// An answer that is read is written as it came.
pub fn check_answer(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let written = match which % 7 {
        0 => return check_page(bytes),
        1 => rewritten(wire::parse_opened(bytes), wire::opened),
        2 => rewritten(wire::parse_done(bytes), |()| wire::done()),
        3 => rewritten(wire::parse_attributes(bytes), |attributes| wire::attributes(&attributes)),
        4 => rewritten(wire::parse_target(bytes), wire::target),
        5 => rewritten(wire::parse_content(bytes), wire::content),
        _ => Admission::parse(bytes).ok().map(|admission| admission.encode()),
    };
    if let Some(written) = written {
        assert_eq!(written, bytes);
    }
}

fn rewritten<T>(
    parsed: Result<Result<T, Refused>, Malformed>,
    write: impl Fn(T) -> Vec<u8>,
) -> Option<Vec<u8>> {
    match parsed {
        Ok(Ok(answer)) => Some(write(answer)),
        Ok(Err(refused)) => Some(refused.encode()),
        Err(_) => None,
    }
}

/// A page is its entries, in order, and where the next begins; what the last says there is not told.
fn check_page(bytes: &[u8]) {
    let Ok(Ok(page)) = Page::parse(bytes) else { return };
    let (more, cursor) = page.next_cursor().map_or((More::No, CURSOR_START), |cursor| (More::Yes, cursor));
    let mut writer = PageWriter::new(cursor);
    // A page may be longer than those that are written here.
    if page.entries().all(|entry| writer.push(entry.kind, entry.name.bytes(), cursor)) {
        let written = writer.finish(more);
        assert_eq!(written.len(), bytes.len());
        let again = Page::parse(&written).expect("what is written is read").expect("and is a page");
        assert_eq!(again.next_cursor(), page.next_cursor());
        assert!(again.entries().eq(page.entries()));
    }
}
