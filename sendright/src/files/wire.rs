//! The bytes that directories, files, symbolic links and drafts are called with and answer with.
//!
//! It owns both directions of every request and answer, and the rules for what is a leaf name and a path. It
//! does no input or output, keeps no descriptor, and panics on no input: what is wrong is [`Malformed`].
//!
//! All numbers are little endian. PROTOCOL.md, "The file service", has every byte.

mod attributes;
mod entrance;

use std::fmt;

pub use attributes::{Attributes, Moment, NewTime, NewTimes};
pub use entrance::{Admission, Entrance, NotAdmitted};

/// The longest answer to anything here. Any session carries it, and a page of names never needs more.
pub const ANSWER_BYTES_MAX: usize = 32_768;

/// The longest name a request may carry. Linux has 255; a file system of somebody's own may have more.
pub const NAME_BYTES_MAX: usize = 1_024;

/// The longest path, and the longest target of a symbolic link: what the kernel takes, without its zero.
pub const PATH_BYTES_MAX: usize = 4_095;

/// Where a listing begins.
pub const CURSOR_START: u64 = 0;

/// The permission bits that a request may ask for: read, write, execute, and sticky.
const MODE_GIVEN: u32 = 0o1777;

/// The bits that give a file its owner's rights, whoever runs it.
pub const MODE_SET_ID: u32 = 0o6000;

const LIST: u8 = 1;
const OPEN: u8 = 2;
const READ_LINK: u8 = 3;
const STAT: u8 = 4;
const CONTENT: u8 = 5;
const CREATE: u8 = 6;
const MAKE_DIRECTORY: u8 = 7;
const MAKE_SYMLINK: u8 = 8;
const RENAME: u8 = 9;
const LINK: u8 = 10;
const UNLINK: u8 = 11;
const REMOVE_DIRECTORY: u8 = 12;
const SET_MODE: u8 = 13;
const SET_TIMES: u8 = 14;
const VIEW: u8 = 15;

const DONE: u8 = 0;

/// The bytes of an entry before its name.
const ENTRY_HEADER_BYTES: usize = 3;

/// The bytes of a page before its entries: status, more, cursor.
const PAGE_HEADER_BYTES: usize = 10;

/// What a directory can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// One page of names, from where the page before said to go on.
    List { cursor: u64, path: Path<'a> },
    /// The object that stands for what is there: directory, file or symbolic link.
    Open { path: Path<'a> },
    /// Where a symbolic link points.
    ReadLink { path: Place<'a> },
    /// What the kernel says about it.
    Stat { path: Path<'a> },
    /// A file, opened.
    Content { access: Access, path: Place<'a> },
    /// A file without a name, to be written and then kept under this one.
    Create { mode: u32, onto: Onto, path: Place<'a> },
    /// A directory.
    MakeDirectory { mode: u32, path: Place<'a> },
    /// A symbolic link.
    MakeSymlink { path: Place<'a>, target: Target<'a> },
    /// Another name in place of one. With a descriptor, `to` is beneath that directory.
    Rename { from: Place<'a>, to: Place<'a> },
    /// One more name. With a descriptor, `to` is beneath that directory.
    Link { from: Place<'a>, to: Place<'a> },
    /// One name less, of anything but a directory.
    Unlink { path: Place<'a> },
    /// An empty directory.
    RemoveDirectory { path: Place<'a> },
    /// Permission bits.
    SetMode { mode: u32, path: Path<'a> },
    /// When it was read and written last.
    SetTimes { times: NewTimes, path: Path<'a> },
    /// A directory again, as an object that may do less or that can be taken back.
    View { view: View, path: Path<'a> },
}

/// What a directory object is to be, beside the one it is asked of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// It refuses whatever would change anything, and so does all that comes of it.
    pub read_only: bool,
    /// It ends, and all that came of it, when the socket that comes with it is closed.
    pub leashed: bool,
}

/// What an opened file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// What becomes of something that has a name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It is kept, and the newcomer refused.
    Nothing,
    /// It is replaced, at once and whole.
    Anything,
}

impl<'a> Request<'a> {
    /// Reads a request. Whether its names may be used has been checked when this returns.
    pub fn parse(bytes: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let (&operation, rest) = bytes.split_first().ok_or(Malformed::Empty)?;
        let mut reader = Reader(rest);
        Ok(match operation {
            LIST => Request::List { cursor: reader.u64()?, path: reader.path()? },
            OPEN => Request::Open { path: reader.path()? },
            READ_LINK => Request::ReadLink { path: reader.place()? },
            STAT => Request::Stat { path: reader.path()? },
            CONTENT => Request::Content { access: reader.access()?, path: reader.place()? },
            CREATE => {
                let mode = reader.mode()?;
                let onto = if reader.flag()? { Onto::Anything } else { Onto::Nothing };
                Request::Create { mode, onto, path: reader.place()? }
            }
            MAKE_DIRECTORY => Request::MakeDirectory { mode: reader.mode()?, path: reader.place()? },
            MAKE_SYMLINK => {
                Request::MakeSymlink { path: reader.first_place()?, target: Target::new(reader.rest())? }
            }
            RENAME => Request::Rename { from: reader.first_place()?, to: reader.place()? },
            LINK => Request::Link { from: reader.first_place()?, to: reader.place()? },
            UNLINK => Request::Unlink { path: reader.place()? },
            REMOVE_DIRECTORY => Request::RemoveDirectory { path: reader.place()? },
            SET_MODE => Request::SetMode { mode: reader.mode()?, path: reader.path()? },
            SET_TIMES => Request::SetTimes { times: reader.times()?, path: reader.path()? },
            VIEW => Request::View { view: reader.view()?, path: reader.path()? },
            _ => return Err(Malformed::Operation),
        })
    }

    /// The request as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.operation()];
        match self {
            Request::List { cursor, path } => {
                bytes.extend_from_slice(&cursor.to_le_bytes());
                bytes.extend_from_slice(path.0);
            }
            Request::Open { path } | Request::Stat { path } => bytes.extend_from_slice(path.0),
            Request::ReadLink { path } | Request::Unlink { path } | Request::RemoveDirectory { path } => {
                bytes.extend_from_slice(path.0.0);
            }
            Request::Content { access, path } => {
                bytes.push(access.byte());
                bytes.extend_from_slice(path.0.0);
            }
            Request::Create { mode, onto, path } => {
                bytes.extend_from_slice(&mode.to_le_bytes());
                bytes.push(u8::from(*onto == Onto::Anything));
                bytes.extend_from_slice(path.0.0);
            }
            Request::MakeDirectory { mode, path } => {
                bytes.extend_from_slice(&mode.to_le_bytes());
                bytes.extend_from_slice(path.0.0);
            }
            Request::MakeSymlink { path, target } => path.write_before(target.0, &mut bytes),
            Request::Rename { from, to } | Request::Link { from, to } => {
                from.write_before(to.0.0, &mut bytes);
            }
            Request::SetMode { mode, path } => {
                bytes.extend_from_slice(&mode.to_le_bytes());
                bytes.extend_from_slice(path.0);
            }
            Request::SetTimes { times, path } => {
                times.write(&mut bytes);
                bytes.extend_from_slice(path.0);
            }
            Request::View { view, path } => {
                bytes.push(u8::from(view.read_only) | u8::from(view.leashed) << 1);
                bytes.extend_from_slice(path.0);
            }
        }
        bytes
    }

    /// Whether it would change anything, so that a read-only directory refuses it unseen.
    pub fn changes(&self) -> bool {
        match self {
            Request::List { .. }
            | Request::Open { .. }
            | Request::ReadLink { .. }
            | Request::Stat { .. }
            | Request::View { .. } => false,
            Request::Content { access, .. } => access.writes(),
            Request::Create { .. }
            | Request::MakeDirectory { .. }
            | Request::MakeSymlink { .. }
            | Request::Rename { .. }
            | Request::Link { .. }
            | Request::Unlink { .. }
            | Request::RemoveDirectory { .. }
            | Request::SetMode { .. }
            | Request::SetTimes { .. } => true,
        }
    }

    fn operation(&self) -> u8 {
        match self {
            Request::List { .. } => LIST,
            Request::Open { .. } => OPEN,
            Request::ReadLink { .. } => READ_LINK,
            Request::Stat { .. } => STAT,
            Request::Content { .. } => CONTENT,
            Request::Create { .. } => CREATE,
            Request::MakeDirectory { .. } => MAKE_DIRECTORY,
            Request::MakeSymlink { .. } => MAKE_SYMLINK,
            Request::Rename { .. } => RENAME,
            Request::Link { .. } => LINK,
            Request::Unlink { .. } => UNLINK,
            Request::RemoveDirectory { .. } => REMOVE_DIRECTORY,
            Request::SetMode { .. } => SET_MODE,
            Request::SetTimes { .. } => SET_TIMES,
            Request::View { .. } => VIEW,
        }
    }
}

impl Access {
    /// Whether what it opens can be changed through it.
    pub fn writes(self) -> bool {
        match self {
            Access::Read => false,
            Access::Write | Access::ReadWrite => true,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Access::Read => 0,
            Access::Write => 1,
            Access::ReadWrite => 2,
        }
    }
}

/// What a file is asked through an object of its own, a plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRequest {
    /// Itself, opened.
    Open(Access),
    /// What the kernel says about it.
    Stat,
    /// Permission bits.
    SetMode(u32),
    /// When it was read and written last.
    SetTimes(NewTimes),
}

/// What a symbolic link is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRequest {
    /// Where it points.
    Read,
    /// What the kernel says about it.
    Stat,
}

/// The one thing a draft is asked: to get its name.
pub const KEEP: &[u8] = b"keep";

const FILE_OPEN: &[u8; 4] = b"open";
const FILE_STAT: &[u8; 4] = b"stat";
const FILE_MODE: &[u8; 4] = b"mode";
const FILE_TIME: &[u8; 4] = b"time";
const LINK_READ: &[u8; 4] = b"read";

impl FileRequest {
    /// Reads a request.
    pub fn parse(bytes: &[u8]) -> Result<FileRequest, Malformed> {
        let (word, rest) = bytes.split_first_chunk::<4>().ok_or(Malformed::Length)?;
        let mut reader = Reader(rest);
        let request = match word {
            FILE_OPEN if rest.is_empty() => FileRequest::Open(Access::Read),
            FILE_OPEN => FileRequest::Open(reader.access()?),
            FILE_STAT => FileRequest::Stat,
            FILE_MODE => FileRequest::SetMode(reader.mode()?),
            FILE_TIME => FileRequest::SetTimes(reader.times()?),
            _ => return Err(Malformed::Operation),
        };
        if reader.0.is_empty() { Ok(request) } else { Err(Malformed::Length) }
    }

    /// The request as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            FileRequest::Open(Access::Read) => FILE_OPEN.to_vec(),
            FileRequest::Open(access) => [&FILE_OPEN[..], &[access.byte()]].concat(),
            FileRequest::Stat => FILE_STAT.to_vec(),
            FileRequest::SetMode(mode) => [&FILE_MODE[..], &mode.to_le_bytes()].concat(),
            FileRequest::SetTimes(times) => {
                let mut bytes = FILE_TIME.to_vec();
                times.write(&mut bytes);
                bytes
            }
        }
    }

    /// Whether it would change anything.
    pub fn changes(&self) -> bool {
        match self {
            FileRequest::Open(access) => access.writes(),
            FileRequest::Stat => false,
            FileRequest::SetMode(_) | FileRequest::SetTimes(_) => true,
        }
    }
}

impl LinkRequest {
    /// Reads a request.
    pub fn parse(bytes: &[u8]) -> Result<LinkRequest, Malformed> {
        match bytes.try_into() {
            Ok(LINK_READ) => Ok(LinkRequest::Read),
            Ok(FILE_STAT) => Ok(LinkRequest::Stat),
            _ => Err(Malformed::Operation),
        }
    }

    /// The request as it is sent.
    #[cfg(test)]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            LinkRequest::Read => LINK_READ.to_vec(),
            LinkRequest::Stat => FILE_STAT.to_vec(),
        }
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

/// What is beneath a directory: leaf names joined by slashes, each of which is one; or nothing, which is the
/// directory itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    /// The directory itself.
    pub const HERE: Path<'static> = Path(b"");

    /// Refuses what is too long, and what has a part that is no leaf name: so it never leads up, and never
    /// begins at a root.
    pub fn new(bytes: &'a [u8]) -> Result<Path<'a>, Malformed> {
        let leaves = || bytes.split(|&byte| byte == b'/').all(|leaf| Leaf::new(leaf).is_ok());
        let usable = bytes.is_empty() || (bytes.len() <= PATH_BYTES_MAX && leaves());
        if usable { Ok(Path(bytes)) } else { Err(Malformed::Name) }
    }

    /// The path's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether it is the directory itself.
    pub fn is_here(&self) -> bool {
        self.0.is_empty()
    }

    /// Its leaves.
    pub fn leaves(&self) -> impl Iterator<Item = Leaf<'a>> + use<'a> {
        self.0.split(|&byte| byte == b'/').filter(|leaf| !leaf.is_empty()).map(Leaf)
    }

    /// The same as a place, unless it is the directory itself.
    pub fn place(&self) -> Option<Place<'a>> {
        (!self.is_here()).then_some(Place(*self))
    }
}

impl<'a> From<Leaf<'a>> for Path<'a> {
    fn from(leaf: Leaf<'a>) -> Path<'a> {
        Path(leaf.0)
    }
}

/// A path that is not the directory itself: something with a name, in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a>(Path<'a>);

impl<'a> Place<'a> {
    /// Refuses what [`Path::new`] refuses, and the empty path.
    pub fn new(bytes: &'a [u8]) -> Result<Place<'a>, Malformed> {
        Path::new(bytes)?.place().ok_or(Malformed::Name)
    }

    /// The path.
    pub fn path(&self) -> Path<'a> {
        self.0
    }

    /// The directory it is in, and its name there.
    pub fn split(&self) -> (Path<'a>, Leaf<'a>) {
        let bytes = self.0.0;
        match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (Path(&bytes[..slash]), Leaf(&bytes[slash + 1..])),
            None => (Path::HERE, Leaf(bytes)),
        }
    }

    fn write_before(&self, second: &[u8], bytes: &mut Vec<u8>) {
        let first = self.0.0;
        let length = u16::try_from(first.len()).expect("no path is as long");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
    }
}

impl<'a> From<Leaf<'a>> for Place<'a> {
    fn from(leaf: Leaf<'a>) -> Place<'a> {
        Place(leaf.into())
    }
}

/// Where a symbolic link points: any bytes but zero. Nothing here ever goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a>(&'a [u8]);

impl<'a> Target<'a> {
    /// Refuses what is empty or too long, and zero bytes.
    pub fn new(bytes: &'a [u8]) -> Result<Target<'a>, Malformed> {
        let usable = !bytes.is_empty() && bytes.len() <= PATH_BYTES_MAX && !bytes.contains(&0);
        if usable { Ok(Target(bytes)) } else { Err(Malformed::Name) }
    }

    /// The target's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// What is left of a request.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Flag),
        }
    }

    fn access(&mut self) -> Result<Access, Malformed> {
        match self.u8()? {
            0 => Ok(Access::Read),
            1 => Ok(Access::Write),
            2 => Ok(Access::ReadWrite),
            _ => Err(Malformed::Flag),
        }
    }

    fn view(&mut self) -> Result<View, Malformed> {
        let flags = self.u8()?;
        if flags > 3 {
            return Err(Malformed::Flag);
        }
        Ok(View { read_only: flags & 1 != 0, leashed: flags & 2 != 0 })
    }

    /// Bits of a mode, the two that are refused included: that is a matter of policy, and answered as such.
    fn mode(&mut self) -> Result<u32, Malformed> {
        let mode = self.u32()?;
        if mode & !(MODE_GIVEN | MODE_SET_ID) == 0 { Ok(mode) } else { Err(Malformed::Mode) }
    }

    fn times(&mut self) -> Result<NewTimes, Malformed> {
        NewTimes::read(self)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn path(&mut self) -> Result<Path<'a>, Malformed> {
        Path::new(self.rest())
    }

    fn place(&mut self) -> Result<Place<'a>, Malformed> {
        Place::new(self.rest())
    }

    /// The first of two, with its length before it.
    fn first_place(&mut self) -> Result<Place<'a>, Malformed> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (first, rest) = self.0.split_at_checked(length).ok_or(Malformed::Length)?;
        self.0 = rest;
        Place::new(first)
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
    /// The request made no sense, or a name in it is not a leaf name.
    BadRequest,
    /// There is nothing of that name, or not any more.
    NotFound,
    /// The service itself may not.
    Denied,
    /// It is there, and of a kind that this cannot be done with, or that this service does not hand out.
    WrongKind,
    /// The service holds as many objects as it has descriptors for, or as many as one holder may have. Later
    /// is a good time.
    Busy,
    /// The name stands for something else than when the object was made.
    Changed,
    /// Whatever else the kernel said.
    Failed,
    /// Nothing can be changed through this object.
    ReadOnly,
    /// There is something of that name.
    Exists,
    /// The directory is not empty.
    NotEmpty,
    /// A symbolic link stands in the way. None is followed.
    Link,
    /// Set-user-id and set-group-id bits are not given.
    SetId,
    /// The directory that was passed is none of this service, or has been taken back.
    Stranger,
}

impl Refusal {
    /// Every refusal, for tests and tables.
    pub const ALL: [Refusal; 13] = [
        Refusal::BadRequest,
        Refusal::NotFound,
        Refusal::Denied,
        Refusal::WrongKind,
        Refusal::Busy,
        Refusal::Changed,
        Refusal::Failed,
        Refusal::ReadOnly,
        Refusal::Exists,
        Refusal::NotEmpty,
        Refusal::Link,
        Refusal::SetId,
        Refusal::Stranger,
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
            Refusal::ReadOnly => 8,
            Refusal::Exists => 9,
            Refusal::NotEmpty => 10,
            Refusal::Link => 11,
            Refusal::SetId => 12,
            Refusal::Stranger => 13,
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
            Refusal::WrongKind => "of a kind for which this cannot be done",
            Refusal::Busy => "the service has no descriptors to spare",
            Refusal::Changed => "replaced since the object was made",
            Refusal::ReadOnly => "read-only",
            Refusal::Exists => "there is something of that name",
            Refusal::NotEmpty => "not empty",
            Refusal::Link => "a symbolic link is in the way, and none is followed",
            Refusal::SetId => "set-user-id and set-group-id bits are not given",
            Refusal::Stranger => "the other directory is not of this service",
            Refusal::Failed => match i32::try_from(self.errno) {
                // The kernel's words for its own number.
                Ok(errno @ 1..) => return std::io::Error::from_raw_os_error(errno).fmt(f),
                _ => "failed",
            },
        };
        f.write_str(words)
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

/// The good answer to a request that only changes something, and to [`KEEP`].
pub fn done() -> Vec<u8> {
    vec![DONE]
}

/// Reads the answer to such a request.
pub fn parse_done(bytes: &[u8]) -> Result<Result<(), Refused>, Malformed> {
    match status(bytes)? {
        Ok(b"") => Ok(Ok(())),
        Ok(_) => Err(Malformed::Length),
        Err(refused) => Ok(Err(refused)),
    }
}

/// The good answer to [`Request::Stat`].
pub fn attributes(attributes: &Attributes) -> Vec<u8> {
    let mut bytes = vec![DONE];
    attributes.write(&mut bytes);
    bytes
}

/// Reads the answer to [`Request::Stat`].
pub fn parse_attributes(bytes: &[u8]) -> Result<Result<Attributes, Refused>, Malformed> {
    match status(bytes)? {
        Ok(rest) => Ok(Ok(Attributes::read(rest)?)),
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

/// The good answer to [`Request::Content`] and [`FileRequest::Open`]; the descriptor travels beside it.
pub fn content(size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![DONE];
    bytes.extend_from_slice(&size_bytes.to_le_bytes());
    bytes
}

/// Reads the answer to [`Request::Content`] and [`FileRequest::Open`]: the size in bytes when it was opened.
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
    /// Not a leaf name, not made of leaf names, or too long.
    Name,
    /// A kind nobody defined.
    Kind,
    /// A status nobody defined.
    Status,
    /// A flag that nobody defined.
    Flag,
    /// Bits that are no permissions.
    Mode,
    /// A time that is none.
    Time,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Empty => "an empty message",
            Malformed::Length => "a message of the wrong length",
            Malformed::Operation => "an unknown operation",
            Malformed::Name => "a name that cannot be used",
            Malformed::Kind => "an unknown kind of file",
            Malformed::Status => "an unknown status",
            Malformed::Flag => "an unknown flag",
            Malformed::Mode => "permissions that are none",
            Malformed::Time => "a time that is none",
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
        let path = Path::new(b"a/\xff\n -/b").unwrap();
        let (place, other) = (path.place().unwrap(), Place::new(b"-rf").unwrap());
        let times = NewTimes { accessed: NewTime::Now, modified: NewTime::At(Moment::new(-1, 999_999_999)) };
        let view = View { read_only: true, leashed: true };
        let requests = [
            Request::List { cursor: u64::MAX, path },
            Request::List { cursor: 0, path: Path::HERE },
            Request::Open { path },
            Request::ReadLink { path: place },
            Request::Stat { path: Path::HERE },
            Request::Content { access: Access::ReadWrite, path: place },
            Request::Create { mode: 0o6755, onto: Onto::Anything, path: place },
            Request::Create { mode: 0, onto: Onto::Nothing, path: other },
            Request::MakeDirectory { mode: 0o1777, path: place },
            Request::MakeSymlink { path: place, target: Target::new(b"/../x").unwrap() },
            Request::Rename { from: place, to: other },
            Request::Link { from: other, to: place },
            Request::Unlink { path: other },
            Request::RemoveDirectory { path: place },
            Request::SetMode { mode: 0o644, path },
            Request::SetTimes { times, path: Path::HERE },
            Request::View { view, path },
            Request::View { view: View::default(), path: Path::HERE },
        ];
        for request in requests {
            assert_eq!(Request::parse(&request.encode()), Ok(request));
        }
        let of_files = [
            FileRequest::Open(Access::Read),
            FileRequest::Open(Access::Write),
            FileRequest::Stat,
            FileRequest::SetMode(0o7),
            FileRequest::SetTimes(times),
        ];
        for request in of_files {
            assert_eq!(FileRequest::parse(&request.encode()), Ok(request));
        }
        for request in [LinkRequest::Read, LinkRequest::Stat] {
            assert_eq!(LinkRequest::parse(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn what_changes_nothing_is_all_that_a_read_only_directory_does() {
        let place = Place::new(b"x").unwrap();
        let harmless = [
            Request::List { cursor: 0, path: Path::HERE },
            Request::Open { path: Path::HERE },
            Request::ReadLink { path: place },
            Request::Stat { path: Path::HERE },
            Request::Content { access: Access::Read, path: place },
            Request::View { view: View::default(), path: Path::HERE },
        ];
        assert!(harmless.iter().all(|request| !request.changes()));
        assert!(Request::Content { access: Access::Write, path: place }.changes());
        assert!(Request::Content { access: Access::ReadWrite, path: place }.changes());
        assert!(FileRequest::Open(Access::ReadWrite).changes());
        assert!(!FileRequest::Open(Access::Read).changes());
    }

    #[test]
    fn a_path_is_made_of_leaf_names() {
        let long = [&b"x/"[..]; 2_047].concat();
        let longest = [&long[..], b"y"].concat();
        for path in
            [&b"/"[..], b"/etc", b"a//b", b"a/", b"../a", b"a/../b", b"a/./b", b"a/..", b"a\0b", &long]
        {
            assert_eq!(Path::new(path), Err(Malformed::Name), "{path:?}");
        }
        assert_eq!(longest.len(), PATH_BYTES_MAX);
        assert!(Path::new(&longest).is_ok());
        assert_eq!(Path::new(&[&longest[..], b"z"].concat()), Err(Malformed::Name));
        let path = Path::new(b"a/b/...").unwrap();
        assert_eq!(path.leaves().map(|leaf| leaf.bytes()).collect::<Vec<_>>(), [&b"a"[..], b"b", b"..."]);
        assert_eq!(Path::HERE.leaves().count(), 0);
        let (parent, leaf) = path.place().unwrap().split();
        assert_eq!((parent.bytes(), leaf.bytes()), (&b"a/b"[..], &b"..."[..]));
        assert_eq!(Place::new(b""), Err(Malformed::Name));
    }

    #[test]
    fn bits_that_are_no_permissions_are_refused() {
        for mode in [0o10000_u32, 0o40755, u32::MAX] {
            let bytes = [&[MAKE_DIRECTORY][..], &mode.to_le_bytes(), b"x"].concat();
            assert_eq!(Request::parse(&bytes), Err(Malformed::Mode), "{mode:o}");
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
            assert_eq!(parse_done(&refused.encode()), Ok(Err(refused)));
            assert_eq!(parse_attributes(&refused.encode()), Ok(Err(refused)));
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
        assert_eq!(parse_done(&done()), Ok(Ok(())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(&bytes);
            let _ = parse_opened(&bytes);
            let _ = parse_target(&bytes);
            let _ = parse_content(&bytes);
            let _ = parse_done(&bytes);
            let _ = parse_attributes(&bytes);
            let _ = FileRequest::parse(&bytes);
            let _ = LinkRequest::parse(&bytes);
            let _ = Entrance::parse(&bytes);
            let _ = Admission::parse(&bytes);
            if let Ok(Ok(page)) = Page::parse(&bytes) {
                for entry in page.entries() {
                    prop_assert!(Leaf::new(entry.name.bytes()).is_ok());
                }
            }
        }

        #[test]
        fn what_is_parsed_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(&request.encode(), &bytes);
            }
            if let Ok(request) = FileRequest::parse(&bytes) {
                // `open` is short for `open` and 0.
                prop_assert_eq!(FileRequest::parse(&request.encode()), Ok(request));
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
