//! The bytes a directory and a file are called with and answer with.
//!
//! It owns both directions of every request and answer, and the rule for what is a leaf name. It does no
//! input or output, keeps no descriptor, and panics on no input: what is wrong is [`Malformed`].
//!
//! All numbers are little endian. A request on a directory is one operation byte and its argument:
//!
//! | byte | operation | then | answer, after the status byte |
//! |---|---|---|---|
//! | 1 | list | cursor u64 | more u8, cursor u64, entries: kind u8, length u16, name |
//! | 2 | open | leaf name | kind u8; a descriptor: an address (of a directory) or a plain object (a file) |
//! | 3 | read link | leaf name | the target |
//!
//! A file knows one request, the four bytes `open`; its answer is status u8, size u64, and one descriptor
//! opened for reading. A status other than 0 is a [`Refusal`], followed by the kernel's error number as u32,
//! and no descriptor.

use std::fmt;

/// The longest answer to anything here. Any session carries it, and a page of names never needs more.
pub const ANSWER_BYTES_MAX: usize = 32_768;

/// The longest name a request may carry. Linux has 255; a file system of somebody's own may have more.
pub const NAME_BYTES_MAX: usize = 1_024;

/// The one thing a file is asked.
pub const OPEN: &[u8] = b"open";

/// Where a listing begins.
pub const CURSOR_START: u64 = 0;

const LIST: u8 = 1;
const OPEN_LEAF: u8 = 2;
const READ_LINK: u8 = 3;

const DONE: u8 = 0;

/// The bytes of an entry before its name.
const ENTRY_HEADER_BYTES: usize = 3;

/// The bytes of a page before its entries: status, more, cursor.
const PAGE_HEADER_BYTES: usize = 10;

/// What a directory can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// One page of names, from where the page before said to go on.
    List { cursor: u64 },
    /// The object that stands for a leaf.
    Open { name: Leaf<'a> },
    /// Where a symbolic link points.
    ReadLink { name: Leaf<'a> },
}

impl<'a> Request<'a> {
    /// Reads a request. Whether its name may be used has been checked when this returns.
    pub fn parse(bytes: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let (&operation, argument) = bytes.split_first().ok_or(Malformed::Empty)?;
        match operation {
            LIST => {
                let cursor: [u8; 8] = argument.try_into().map_err(|_| Malformed::Length)?;
                Ok(Request::List { cursor: u64::from_le_bytes(cursor) })
            }
            OPEN_LEAF => Ok(Request::Open { name: Leaf::new(argument)? }),
            READ_LINK => Ok(Request::ReadLink { name: Leaf::new(argument)? }),
            _ => Err(Malformed::Operation),
        }
    }

    /// The request as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Request::List { cursor } => {
                bytes.push(LIST);
                bytes.extend_from_slice(&cursor.to_le_bytes());
            }
            Request::Open { name } => {
                bytes.push(OPEN_LEAF);
                bytes.extend_from_slice(name.bytes());
            }
            Request::ReadLink { name } => {
                bytes.push(READ_LINK);
                bytes.extend_from_slice(name.bytes());
            }
        }
        bytes
    }
}

/// The name of something directly inside a directory: not a path, and not a way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<'a>(&'a [u8]);

impl<'a> Leaf<'a> {
    /// Refuses what is empty or too long, `.` and `..`, and whatever holds a slash or a zero byte.
    pub fn new(name: &'a [u8]) -> Result<Leaf<'a>, Malformed> {
        let usable = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name != b"."
            && name != b".."
            && !name.iter().any(|&byte| byte == b'/' || byte == 0);
        if usable { Ok(Leaf(name)) } else { Err(Malformed::Name) }
    }

    /// The name's bytes, of any encoding or none.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    BlockDevice,
    CharacterDevice,
    /// The file system does not say.
    Unknown,
}

impl Kind {
    /// Every kind, for tests and tables.
    pub const ALL: [Kind; 8] = [
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::BlockDevice,
        Kind::CharacterDevice,
        Kind::Unknown,
    ];

    /// The kind as it travels.
    pub fn byte(self) -> u8 {
        match self {
            Kind::File => b'f',
            Kind::Directory => b'd',
            Kind::Symlink => b'l',
            Kind::Fifo => b'p',
            Kind::Socket => b's',
            Kind::BlockDevice => b'b',
            Kind::CharacterDevice => b'c',
            Kind::Unknown => b'?',
        }
    }

    /// The kind a byte stands for.
    pub fn from_byte(byte: u8) -> Result<Kind, Malformed> {
        Kind::ALL.into_iter().find(|kind| kind.byte() == byte).ok_or(Malformed::Kind)
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request made no sense, or its name is not a leaf name.
    BadRequest,
    /// There is nothing of that name, or not any more.
    NotFound,
    /// The service itself may not.
    Denied,
    /// It is there, and of a kind this service does not hand out.
    WrongKind,
    /// The service holds as many objects as it has descriptors for. Later is a good time.
    Busy,
    /// The name stands for something else than when the object was made.
    Changed,
    /// Whatever else the kernel said.
    Failed,
}

impl Refusal {
    const ALL: [Refusal; 7] = [
        Refusal::BadRequest,
        Refusal::NotFound,
        Refusal::Denied,
        Refusal::WrongKind,
        Refusal::Busy,
        Refusal::Changed,
        Refusal::Failed,
    ];

    fn byte(self) -> u8 {
        match self {
            Refusal::BadRequest => 1,
            Refusal::NotFound => 2,
            Refusal::Denied => 3,
            Refusal::WrongKind => 4,
            Refusal::Busy => 5,
            Refusal::Changed => 6,
            Refusal::Failed => 7,
        }
    }
}

/// A refusal with the kernel's word for it; 0 where the kernel was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    pub errno: u32,
}

impl Refused {
    /// A refusal the kernel had no part in.
    pub fn plainly(refusal: Refusal) -> Refused {
        Refused { refusal, errno: 0 }
    }

    /// The answer as it is sent, for a directory and a file alike.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.refusal.byte()];
        bytes.extend_from_slice(&self.errno.to_le_bytes());
        bytes
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.refusal {
            Refusal::BadRequest => "the request is not one",
            Refusal::NotFound => "nothing of that name",
            Refusal::Denied => "permission denied",
            Refusal::WrongKind => "not a kind that is handed out",
            Refusal::Busy => "the service has no descriptors to spare",
            Refusal::Changed => "replaced since the object was made",
            Refusal::Failed => "failed",
        };
        f.write_str(words)?;
        match self.errno {
            0 => Ok(()),
            number => write!(f, " (error {number})"),
        }
    }
}

/// Splits an answer into what follows a good status and what a bad one says.
fn status(bytes: &[u8]) -> Result<Result<&[u8], Refused>, Malformed> {
    let (&status, rest) = bytes.split_first().ok_or(Malformed::Empty)?;
    if status == DONE {
        return Ok(Ok(rest));
    }
    let refusal =
        Refusal::ALL.into_iter().find(|refusal| refusal.byte() == status).ok_or(Malformed::Status)?;
    let errno: [u8; 4] = rest.try_into().map_err(|_| Malformed::Length)?;
    Ok(Err(Refused { refusal, errno: u32::from_le_bytes(errno) }))
}

/// A page of names while it is being filled.
#[derive(Debug)]
pub struct PageWriter {
    bytes: Vec<u8>,
    cursor: u64,
}

impl PageWriter {
    /// An empty page that goes on at `cursor`.
    pub fn new(cursor: u64) -> PageWriter {
        let mut bytes = Vec::with_capacity(ANSWER_BYTES_MAX);
        bytes.resize(PAGE_HEADER_BYTES, 0);
        PageWriter { bytes, cursor }
    }

    /// Adds an entry, after which the listing goes on at `cursor`. `false` when the page is full and it was
    /// not added.
    pub fn push(&mut self, kind: Kind, name: &[u8], cursor: u64) -> bool {
        let fits = self.bytes.len() + ENTRY_HEADER_BYTES + name.len() <= ANSWER_BYTES_MAX;
        let Ok(length) = u16::try_from(name.len()) else { return false };
        if !fits {
            return false;
        }
        self.bytes.push(kind.byte());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.cursor = cursor;
        true
    }

    /// The answer as it is sent. `more` says that there is another page.
    pub fn finish(mut self, more: More) -> Vec<u8> {
        self.bytes[0] = DONE;
        self.bytes[1] = match more {
            More::Yes => 1,
            More::No => 0,
        };
        self.bytes[2..PAGE_HEADER_BYTES].copy_from_slice(&self.cursor.to_le_bytes());
        self.bytes
    }
}

/// Whether a listing goes on after this page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Yes,
    No,
}

/// A page of names as it arrived, checked from end to end.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    more: More,
    cursor: u64,
    entries: &'a [u8],
}

impl<'a> Page<'a> {
    /// Reads the answer to [`Request::List`]. Each entry has been checked when this returns.
    pub fn parse(bytes: &'a [u8]) -> Result<Result<Page<'a>, Refused>, Malformed> {
        let rest = match status(bytes)? {
            Ok(rest) => rest,
            Err(refused) => return Ok(Err(refused)),
        };
        let (&more, rest) = rest.split_first().ok_or(Malformed::Length)?;
        let more = match more {
            0 => More::No,
            1 => More::Yes,
            _ => return Err(Malformed::Flag),
        };
        let (cursor, entries) = rest.split_first_chunk::<8>().ok_or(Malformed::Length)?;
        let mut left = entries;
        while !left.is_empty() {
            (_, left) = split_entry(left)?;
        }
        Ok(Ok(Page { more, cursor: u64::from_le_bytes(*cursor), entries }))
    }

    /// Where the next page begins, if there is one.
    pub fn next_cursor(&self) -> Option<u64> {
        match self.more {
            More::Yes => Some(self.cursor),
            More::No => None,
        }
    }

    /// The entries, in the order the directory gave them.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut left = self.entries;
        std::iter::from_fn(move || {
            // Checked by `parse`: an error here is the end.
            let (entry, rest) = split_entry(left).ok()?;
            left = rest;
            Some(entry)
        })
    }
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub kind: Kind,
    pub name: Leaf<'a>,
}

fn split_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), Malformed> {
    let (header, rest) = bytes.split_first_chunk::<ENTRY_HEADER_BYTES>().ok_or(Malformed::Length)?;
    let kind = Kind::from_byte(header[0])?;
    let length = usize::from(u16::from_le_bytes([header[1], header[2]]));
    let (name, rest) = rest.split_at_checked(length).ok_or(Malformed::Length)?;
    Ok((Entry { kind, name: Leaf::new(name)? }, rest))
}

/// The good answer to [`Request::Open`]; the descriptor travels beside it.
pub fn opened(kind: Kind) -> Vec<u8> {
    vec![DONE, kind.byte()]
}

/// Reads the answer to [`Request::Open`].
pub fn parse_opened(bytes: &[u8]) -> Result<Result<Kind, Refused>, Malformed> {
    match status(bytes)? {
        Ok(&[kind]) => Ok(Ok(Kind::from_byte(kind)?)),
        Ok(_) => Err(Malformed::Length),
        Err(refused) => Ok(Err(refused)),
    }
}

/// The good answer to [`Request::ReadLink`].
pub fn target(target: &[u8]) -> Vec<u8> {
    let mut bytes = vec![DONE];
    bytes.extend_from_slice(target);
    bytes
}

/// Reads the answer to [`Request::ReadLink`].
pub fn parse_target(bytes: &[u8]) -> Result<Result<&[u8], Refused>, Malformed> {
    status(bytes)
}

/// The good answer to [`OPEN`]; the descriptor travels beside it.
pub fn content(size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![DONE];
    bytes.extend_from_slice(&size_bytes.to_le_bytes());
    bytes
}

/// Reads the answer to [`OPEN`]: the size in bytes when it was opened.
pub fn parse_content(bytes: &[u8]) -> Result<Result<u64, Refused>, Malformed> {
    match status(bytes)? {
        Ok(rest) => {
            let size: [u8; 8] = rest.try_into().map_err(|_| Malformed::Length)?;
            Ok(Ok(u64::from_le_bytes(size)))
        }
        Err(refused) => Ok(Err(refused)),
    }
}

/// What is wrong with bytes that came from the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing at all.
    Empty,
    /// Shorter or longer than what it claims to be.
    Length,
    /// An operation nobody defined.
    Operation,
    /// Not a leaf name.
    Name,
    /// A kind nobody defined.
    Kind,
    /// A status nobody defined.
    Status,
    /// A flag that is neither 0 nor 1.
    Flag,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Empty => "an empty message",
            Malformed::Length => "a message of the wrong length",
            Malformed::Operation => "an unknown operation",
            Malformed::Name => "a name that is not a leaf name",
            Malformed::Kind => "an unknown kind of file",
            Malformed::Status => "an unknown status",
            Malformed::Flag => "a flag that is neither yes nor no",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let requests = [
            Request::List { cursor: u64::MAX },
            Request::Open { name: Leaf::new(b"\xff\n -").unwrap() },
            Request::ReadLink { name: Leaf::new(b"-rf").unwrap() },
        ];
        for request in requests {
            assert_eq!(Request::parse(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let long = vec![b'x'; NAME_BYTES_MAX + 1];
        for name in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"a\0b", &long] {
            assert_eq!(Leaf::new(name), Err(Malformed::Name), "{name:?}");
        }
        for name in [&b"..."[..], b".a", b"..a", b"a.", b"\xff", b"\n", &long[1..]] {
            assert!(Leaf::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_page_takes_names_until_it_is_full() {
        let mut page = PageWriter::new(7);
        let name = [b'n'; 255];
        let mut taken = 0;
        while page.push(Kind::File, &name, 100 + taken) {
            taken += 1;
        }
        let bytes = page.finish(More::Yes);
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
        assert!(bytes.len() + ENTRY_HEADER_BYTES + name.len() > ANSWER_BYTES_MAX);
        let page = Page::parse(&bytes).unwrap().unwrap();
        assert_eq!(page.entries().count() as u64, taken);
        assert_eq!(page.next_cursor(), Some(100 + taken - 1));
    }

    #[test]
    fn an_empty_last_page_is_a_page() {
        let bytes = PageWriter::new(7).finish(More::No);
        let page = Page::parse(&bytes).unwrap().unwrap();
        assert_eq!(page.entries().count(), 0);
        assert_eq!(page.next_cursor(), None);
    }

    #[test]
    fn every_refusal_survives_the_way() {
        for refusal in Refusal::ALL {
            let refused = Refused { refusal, errno: 13 };
            assert_eq!(parse_opened(&refused.encode()), Ok(Err(refused)));
            assert_eq!(parse_content(&refused.encode()), Ok(Err(refused)));
            assert_eq!(parse_target(&refused.encode()), Ok(Err(refused)));
            assert_eq!(Page::parse(&refused.encode()).unwrap().unwrap_err(), refused);
        }
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        for kind in Kind::ALL {
            assert_eq!(parse_opened(&opened(kind)), Ok(Ok(kind)));
        }
        assert_eq!(parse_target(&target(b"../\xfe")), Ok(Ok(&b"../\xfe"[..])));
        assert_eq!(parse_content(&content(u64::MAX)), Ok(Ok(u64::MAX)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(&bytes);
            let _ = parse_opened(&bytes);
            let _ = parse_target(&bytes);
            let _ = parse_content(&bytes);
            if let Ok(Ok(page)) = Page::parse(&bytes) {
                for entry in page.entries() {
                    prop_assert!(Leaf::new(entry.name.bytes()).is_ok());
                }
            }
        }

        #[test]
        fn what_is_parsed_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.encode(), bytes);
            }
        }

        #[test]
        fn a_page_gives_back_its_names(
            names in proptest::collection::vec(proptest::collection::vec(1..=255_u8, 1..40), 0..40),
        ) {
            let names: Vec<_> = names.into_iter().filter(|name| Leaf::new(name).is_ok()).collect();
            let mut page = PageWriter::new(0);
            for (name, cursor) in names.iter().zip(1..) {
                prop_assert!(page.push(Kind::Symlink, name, cursor));
            }
            let bytes = page.finish(More::No);
            let page = Page::parse(&bytes).unwrap().unwrap();
            let back: Vec<_> = page.entries().map(|entry| entry.name.bytes().to_vec()).collect();
            prop_assert_eq!(back, names);
        }
    }
}
