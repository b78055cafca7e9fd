//! The side of the file service that has the files.
//!
//! It owns the directories it was given, opens what is below them and nothing else, for reading and nothing
//! else, and answers. It must never know who asks, and no request makes it look outside the directory it is
//! about: a request names one leaf, and the kernel is told to stay beneath.
//!
//! File system calls are made on the reactor's thread. A service for slow media would give them to other
//! threads.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use ring::{Executor, Message, Reactor, Spawner};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use seqpacket::{Mailbox, PlainMailbox};

use super::wire::{self, Kind, Leaf, More, PageWriter, Refusal, Refused, Request};
use crate::permits::{Permit, Permits};

/// Serves directories and files. Clones serve the same.
#[derive(Clone)]
pub struct Service(Rc<Shared>);

struct Shared {
    reactor: Reactor,
    spawner: Spawner,
    opener: Opener,
    objects: Permits,
    directories: Cell<u64>,
    files: Cell<u64>,
    answers: Cell<u64>,
}

/// What a service has done so far.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub directories: u64,
    pub files: u64,
    pub answers: u64,
    /// Objects somebody still holds.
    pub objects: usize,
}

impl Service {
    /// A service that keeps at most `objects_max` objects alive at a time, and says it is busy beyond that.
    pub fn new(executor: &Executor, root: &OwnedFd, objects_max: usize) -> Service {
        Service(Rc::new(Shared {
            reactor: executor.reactor().clone(),
            spawner: executor.spawner(),
            opener: Opener::choose(root),
            objects: Permits::new(objects_max),
            directories: Cell::new(0),
            files: Cell::new(0),
            answers: Cell::new(0),
        }))
    }

    /// How leaves are opened on this machine, for people.
    pub fn opens_with(&self) -> &'static str {
        match self.0.opener {
            Opener::Beneath => "openat2, beneath the directory, no links",
            Opener::LeafByLeaf => "openat of single names, no links (this kernel has no openat2)",
        }
    }

    /// Answers for `directory` on `mailbox` until nobody holds the object any more.
    pub fn serve(&self, mailbox: Mailbox, directory: OwnedFd) {
        // Without room for it the mailbox is dropped, which tells its holders.
        if let Some(permit) = self.0.objects.try_take() {
            self.spawn_directory(mailbox, directory, permit);
        }
    }

    /// When nobody holds any object of this service.
    pub async fn idle(&self) {
        self.0.objects.all_back().await;
    }

    /// What was done so far.
    pub fn done(&self) -> Done {
        Done {
            directories: self.0.directories.get(),
            files: self.0.files.get(),
            answers: self.0.answers.get(),
            objects: self.0.objects.out(),
        }
    }

    fn spawn_directory(&self, mailbox: Mailbox, directory: OwnedFd, permit: Permit) {
        add_one(&self.0.directories);
        let service = self.clone();
        let directory = Rc::new(directory);
        self.0.spawner.spawn(async move {
            while let Some(incoming) = mailbox.next().await {
                let answer = service.answer(&directory, incoming.bytes());
                add_one(&service.0.answers);
                // Whoever asked may have gone: its own affair.
                let _ = incoming.answer(answer);
            }
            drop((mailbox, permit));
        });
    }

    fn spawn_file(&self, mailbox: PlainMailbox, file: File, permit: Permit) {
        add_one(&self.0.files);
        let service = self.clone();
        self.0.spawner.spawn(async move {
            while let Some(incoming) = mailbox.next().await {
                let answer = match incoming.bytes() {
                    wire::OPEN => service.open_file(&file).unwrap_or_else(refuse),
                    _ => refuse(Refused::plainly(Refusal::BadRequest)),
                };
                add_one(&service.0.answers);
                let _ = incoming.answer(answer);
            }
            drop((mailbox, permit));
        });
    }

    fn answer(&self, directory: &Rc<OwnedFd>, request: &[u8]) -> Message {
        let answer = match Request::parse(request) {
            Ok(Request::List { cursor }) => list(directory, cursor).map(Message::new),
            Ok(Request::Open { name }) => self.open(directory, name),
            Ok(Request::ReadLink { name }) => read_link(directory, name).map(Message::new),
            Err(_) => Err(Refused::plainly(Refusal::BadRequest)),
        };
        answer.unwrap_or_else(refuse)
    }

    fn open(&self, directory: &Rc<OwnedFd>, name: Leaf<'_>) -> Result<Message, Refused> {
        let permit = self.0.objects.try_take().ok_or(Refused::plainly(Refusal::Busy))?;
        let leaf = self.0.opener.open(directory, name, OFlags::PATH).map_err(refused)?;
        let stat = rustix::fs::fstat(&leaf).map_err(refused)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let (object, mailbox) = seqpacket::object(&self.0.reactor).map_err(out_of_objects)?;
                let address = object.share().map_err(out_of_objects)?;
                self.spawn_directory(mailbox, leaf, permit);
                Ok(Message::new(wire::opened(Kind::Directory)).with_descriptor(address))
            }
            FileType::RegularFile => {
                let (object, mailbox) = seqpacket::plain_object(&self.0.reactor).map_err(out_of_objects)?;
                let object = object.share().map_err(out_of_objects)?;
                let file = File {
                    directory: directory.clone(),
                    name: name.bytes().to_vec(),
                    is: Identity::of(&stat),
                };
                self.spawn_file(mailbox, file, permit);
                Ok(Message::new(wire::opened(Kind::File)).with_descriptor(object))
            }
            _ => Err(Refused::plainly(Refusal::WrongKind)),
        }
    }

    fn open_file(&self, file: &File) -> Result<Message, Refused> {
        let name = Leaf::new(&file.name).map_err(|_| Refused::plainly(Refusal::BadRequest))?;
        // O_NONBLOCK: a pipe that took the file's place must not hold the whole service until somebody
        // writes.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.0.opener.open(&file.directory, name, flags).map_err(refused)?;
        let stat = rustix::fs::fstat(&opened).map_err(refused)?;
        if Identity::of(&stat) != file.is {
            return Err(Refused::plainly(Refusal::Changed));
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Message::new(wire::content(size_bytes)).with_descriptor(opened))
    }
}

/// What a file object stands for: a name, and which file it was. It keeps no descriptor of its own, so that
/// the service can have many.
struct File {
    directory: Rc<OwnedFd>,
    name: Vec<u8>,
    is: Identity,
}

/// Which file and of which type, on this machine, while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    kind: FileType,
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity { device: stat.st_dev, inode: stat.st_ino, kind: FileType::from_raw_mode(stat.st_mode) }
    }
}

/// How a leaf is opened.
#[derive(Clone, Copy, Debug)]
enum Opener {
    /// The kernel keeps us beneath the directory, whatever the name.
    Beneath,
    /// A kernel without `openat2`: the name is one leaf, checked, and `O_NOFOLLOW` keeps it one.
    LeafByLeaf,
}

impl Opener {
    /// Tries `openat2` and goes without where it is missing or a filter refuses it.
    fn choose(directory: &OwnedFd) -> Opener {
        match open_beneath(directory, b".", OFlags::PATH) {
            Ok(_) => Opener::Beneath,
            Err(_) => Opener::LeafByLeaf,
        }
    }

    fn open(self, directory: &OwnedFd, name: Leaf<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self {
            Opener::Beneath => open_beneath(directory, name.bytes(), flags),
            Opener::LeafByLeaf => {
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(directory, name.bytes(), flags, Mode::empty())
            }
        }
    }
}

fn open_beneath(directory: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)
}

/// One page of the names in `directory`.
///
/// Nothing is remembered between pages: the cursor is the place the kernel gave for the entry after which to
/// go on, so any holder may list at any pace, and a listing that is never finished costs nothing.
fn list(directory: &OwnedFd, cursor: u64) -> Result<Vec<u8>, Refused> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(refused)?;
    if cursor != wire::CURSOR_START {
        let place = SeekFrom::Start(cursor);
        rustix::fs::seek(&readable, place).map_err(refused)?;
    }
    let mut page = PageWriter::new(cursor);
    for entry in Dir::new(readable).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        // What cannot be named in a request is `.`, `..`, or longer than any name Linux knows.
        let Ok(name) = Leaf::new(entry.file_name().to_bytes()) else { continue };
        let kind = kind_of(directory, name, entry.file_type());
        let goes_on_at = entry.offset().cast_unsigned();
        if !page.push(kind, name.bytes(), goes_on_at) {
            return Ok(page.finish(More::Yes));
        }
    }
    Ok(page.finish(More::No))
}

fn kind_of(directory: &OwnedFd, name: Leaf<'_>, listed: FileType) -> Kind {
    match listed {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::Unknown => {
            match rustix::fs::statat(directory.as_fd(), name.bytes(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Unknown => Kind::Unknown,
                    known => kind_of(directory, name, known),
                },
                Err(_) => Kind::Unknown,
            }
        }
    }
}

fn read_link(directory: &OwnedFd, name: Leaf<'_>) -> Result<Vec<u8>, Refused> {
    let target = rustix::fs::readlinkat(directory, name.bytes(), Vec::new()).map_err(refused)?;
    Ok(wire::target(target.to_bytes()))
}

fn refuse(refused: Refused) -> Message {
    Message::new(refused.encode())
}

fn refused(errno: Errno) -> Refused {
    let refusal = match errno {
        // LOOP: a link has taken the place of what was listed.
        Errno::NOENT | Errno::LOOP => Refusal::NotFound,
        Errno::ACCESS | Errno::PERM => Refusal::Denied,
        Errno::MFILE | Errno::NFILE => Refusal::Busy,
        _ => Refusal::Failed,
    };
    Refused { refusal, errno: errno.raw_os_error().unsigned_abs() }
}

fn out_of_objects(error: impl Into<std::io::Error>) -> Refused {
    let error: std::io::Error = error.into();
    match Errno::from_io_error(&error) {
        Some(errno) => refused(errno),
        None => Refused::plainly(Refusal::Failed),
    }
}

fn add_one(count: &Cell<u64>) {
    count.set(count.get() + 1);
}
