//! The side of the file service that has the files.
//!
//! It owns the directories it was given, does what it is asked beneath them and nowhere else, and answers. It
//! must never know who asks: what may be done is what the object that is asked may do. What changes something
//! is refused by a read-only object before anything is looked at.
//!
//! File system calls are made on the reactor's thread. A service for slow media would give them to other
//! threads.

mod beneath;
mod draft;
mod lease;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use ring::{Executor, Fd, Message, Reactor, Spawner};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use seqpacket::{Mailbox, MailboxOptions, ObjectOptions, PlainMailbox};

use super::wire::{
    self, FileRequest, Kind, LinkRequest, Onto, Path, Place, Refusal, Refused, Request, Target, View,
};
use crate::permits::{Permit, Permits};
use beneath::{Identity, Opener, refused};
use draft::Draft;
use lease::Taken;

pub use lease::Lease;

/// What an object costs at most, in descriptors: directory and mailbox, and what [`little`] allows. Each call
/// that is under way may be one for a file, whose descriptor stays open here until its caller reads.
pub const DESCRIPTORS_PER_OBJECT: usize = 2 + LITTLE_SESSIONS * (1 + LITTLE_CALLS) + LITTLE_GRANTS;

const LITTLE_SESSIONS: usize = 4;
const LITTLE_CALLS: usize = 8;
const LITTLE_GRANTS: usize = 4;

/// Calls are small here, and many objects share the descriptors of one process.
fn little() -> MailboxOptions {
    MailboxOptions {
        calls: LITTLE_CALLS as u32,
        call_descriptors: 1,
        descriptors: 8,
        message_bytes: 0,
        sessions: LITTLE_SESSIONS,
        granted_sessions: LITTLE_SESSIONS,
        grants: LITTLE_GRANTS,
        ..MailboxOptions::default()
    }
}

/// What may be done with a directory and all that comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing that changes anything.
    ReadOnly,
    /// Everything there is to ask.
    Writable,
}

/// Serves directories, files and links. Clones serve the same.
#[derive(Clone)]
pub struct Service(Rc<Shared>);

struct Shared {
    reactor: Reactor,
    spawner: Spawner,
    opener: Opener,
    objects: Permits,
    /// Every directory that has an address, by the number the kernel gave that.
    known: RefCell<BTreeMap<u64, Weak<Directory>>>,
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

/// What a directory object stands for.
struct Directory {
    fd: Rc<OwnedFd>,
    rights: Rights,
    lease: Lease,
}

/// What a file object stands for: a path, and which file was there. It keeps no descriptor of its own, so
/// that the service can have many.
struct File {
    directory: Rc<OwnedFd>,
    path: Vec<u8>,
    is: Identity,
    rights: Rights,
}

/// The room an object takes: of the service and of whoever it was made for.
struct Room {
    _ours: Permit,
    _theirs: Taken,
}

impl Service {
    /// A service that keeps at most `objects_max` objects alive at a time, and says it is busy beyond that.
    pub fn new(executor: &Executor, root: impl AsFd, objects_max: usize) -> Service {
        Service(Rc::new(Shared {
            reactor: executor.reactor().clone(),
            spawner: executor.spawner(),
            opener: Opener::choose(root),
            objects: Permits::new(objects_max),
            known: RefCell::default(),
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

    /// Answers for `directory` on `mailbox` until nobody holds the object any more. Nothing can be changed
    /// through it.
    pub fn serve(&self, mailbox: Mailbox, directory: OwnedFd) {
        let lease = Lease::new(self.0.objects.total());
        // Without room for it the mailbox is dropped, which tells its holders.
        if let Ok(room) = self.room(&lease) {
            let directory = Directory { fd: Rc::new(directory), rights: Rights::ReadOnly, lease };
            self.spawn_directory(mailbox, Rc::new(directory), None, room);
        }
    }

    /// A fresh address of what is at `path` beneath `root`, for as long as `lease` lasts.
    pub fn give(
        &self,
        root: &OwnedFd,
        path: Path<'_>,
        rights: Rights,
        lease: &Lease,
    ) -> Result<OwnedFd, Refused> {
        let directory = Rc::new(self.0.opener.hold_directory(root, path)?);
        self.address(directory, rights, lease)
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

    fn room(&self, lease: &Lease) -> Result<Room, Refused> {
        let ours = self.0.objects.try_take();
        match (ours, lease.try_take()) {
            (Some(ours), Some(theirs)) => Ok(Room { _ours: ours, _theirs: theirs }),
            _ => Err(Refused::plainly(Refusal::Busy)),
        }
    }

    fn address(&self, fd: Rc<OwnedFd>, rights: Rights, lease: &Lease) -> Result<OwnedFd, Refused> {
        let room = self.room(lease)?;
        let made = seqpacket::object_with(&self.0.reactor, ObjectOptions::default(), little());
        let (object, mailbox) = made.map_err(out_of_objects)?;
        let address = object.share().map_err(out_of_objects)?;
        let number = ring::socket_cookie(&address).map_err(out_of_objects)?;
        let directory = Rc::new(Directory { fd, rights, lease: lease.clone() });
        self.0.known.borrow_mut().insert(number, Rc::downgrade(&directory));
        self.spawn_directory(mailbox, directory, Some(number), room);
        Ok(address)
    }

    fn spawn_directory(&self, mailbox: Mailbox, directory: Rc<Directory>, number: Option<u64>, room: Room) {
        add_one(&self.0.directories);
        let service = self.clone();
        self.0.spawner.spawn(async move {
            while let Some(Some(mut incoming)) = directory.lease.unless_ended(mailbox.next()).await {
                let passed = incoming.take_descriptor();
                let answer = service.answer(&directory, incoming.bytes(), passed);
                add_one(&service.0.answers);
                // Whoever asked may have gone: its own affair.
                let _ = incoming.answer(answer.unwrap_or_else(refuse));
            }
            if let Some(number) = number {
                service.0.known.borrow_mut().remove(&number);
            }
            drop((mailbox, room));
        });
    }

    /// Serves a plain object until nobody holds it any more or its lease has ended.
    fn spawn_plain(
        &self,
        lease: &Lease,
        room: Room,
        mut answer: impl FnMut(&Service, &[u8]) -> Result<Message, Refused> + 'static,
    ) -> Result<OwnedFd, Refused> {
        let (object, mailbox) = seqpacket::plain_object(&self.0.reactor).map_err(out_of_objects)?;
        let object = object.share().map_err(out_of_objects)?;
        mailbox.set_arguments_max(0);
        let (service, lease) = (self.clone(), lease.clone());
        self.0.spawner.spawn(async move {
            while let Some(Some(incoming)) = lease.unless_ended(next(&mailbox)).await {
                let answer = answer(&service, incoming.bytes());
                add_one(&service.0.answers);
                let _ = incoming.answer(answer.unwrap_or_else(refuse));
            }
            drop((mailbox, room));
        });
        Ok(object)
    }

    fn answer(
        &self,
        directory: &Directory,
        request: &[u8],
        passed: Option<OwnedFd>,
    ) -> Result<Message, Refused> {
        let request = Request::parse(request).map_err(|_| Refused::plainly(Refusal::BadRequest))?;
        if directory.rights == Rights::ReadOnly && request.changes() {
            return Err(Refused::plainly(Refusal::ReadOnly));
        }
        let opener = self.0.opener;
        let here = &*directory.fd;
        match request {
            Request::List { cursor, path } if path.is_here() => beneath::list(here, cursor).map(Message::new),
            Request::List { cursor, path } => {
                beneath::list(opener.hold_directory(here, path)?, cursor).map(Message::new)
            }
            Request::Open { path } => self.open(directory, path),
            Request::ReadLink { path } => {
                beneath::read_link(&opener.hold(here, path.path())?).map(Message::new)
            }
            Request::Stat { path } => {
                let stat = beneath::stat(opener.hold(here, path)?)?;
                Ok(Message::new(wire::attributes(&beneath::attributes(&stat))))
            }
            Request::Content { access, path } => {
                let (opened, stat) = opener.open_file(here, path.path(), access)?;
                let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(Message::new(wire::content(size_bytes)).with_descriptor(given(opened)))
            }
            Request::Create { mode, onto, path } => self.create(directory, mode, onto, path),
            Request::MakeDirectory { mode, path } => {
                let mode = beneath::mode(mode)?;
                self.change(directory, path, |above, name| rustix::fs::mkdirat(above, name, mode))
            }
            Request::MakeSymlink { path, target } => self.make_symlink(directory, path, target),
            Request::Rename { from, to } => {
                self.between(directory, from, passed, to, |from, old, to, new| {
                    rustix::fs::renameat(from, old, to, new)
                })
            }
            Request::Link { from, to } => self.between(directory, from, passed, to, |from, old, to, new| {
                rustix::fs::linkat(from, old, to, new, AtFlags::empty())
            }),
            Request::Unlink { path } => {
                // What Linux says of a directory is that, and not that it may not be done.
                self.change(directory, path, |above, name| {
                    rustix::fs::unlinkat(above, name, AtFlags::empty())
                })
            }
            Request::RemoveDirectory { path } => self
                .change(directory, path, |above, name| rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)),
            Request::SetMode { mode, path } => {
                beneath::mode(mode)?;
                beneath::set_mode(&opener.hold(here, path)?, mode)?;
                Ok(Message::new(wire::done()))
            }
            Request::SetTimes { times, path } => {
                beneath::set_times(&opener.hold(here, path)?, times)?;
                Ok(Message::new(wire::done()))
            }
            Request::View { view, path } => self.view(directory, view, path),
        }
    }

    /// Does something to a name in the directory that it is in.
    fn change(
        &self,
        directory: &Directory,
        place: Place<'_>,
        change: impl FnOnce(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<Message, Refused> {
        let (above, leaf) = place.split();
        match above.is_here() {
            true => change(&directory.fd, leaf.bytes()),
            false => change(&self.0.opener.hold_directory(&*directory.fd, above)?, leaf.bytes()),
        }
        .map_err(refused)?;
        Ok(Message::new(wire::done()))
    }

    fn make_symlink(
        &self,
        directory: &Directory,
        path: Place<'_>,
        target: Target<'_>,
    ) -> Result<Message, Refused> {
        self.change(directory, path, |above, name| rustix::fs::symlinkat(target.bytes(), above, name))
    }

    /// Does something with two names, the second of which may be in a directory that was passed.
    fn between(
        &self,
        directory: &Directory,
        from: Place<'_>,
        passed: Option<OwnedFd>,
        to: Place<'_>,
        change: impl FnOnce(&OwnedFd, &[u8], &OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<Message, Refused> {
        let (from_above, from) = from.split();
        let (to_above, to) = to.split();
        let other = passed.map(|address| self.recognise(&address)).transpose()?;
        let other = other.as_ref().map_or(&directory.fd, |other| &other.fd);
        let from_above = self.0.opener.hold_directory(&*directory.fd, from_above)?;
        let to_above = self.0.opener.hold_directory(&**other, to_above)?;
        change(&from_above, from.bytes(), &to_above, to.bytes()).map_err(refused)?;
        Ok(Message::new(wire::done()))
    }

    /// The directory whose address this is. Whoever passes it could call it: so it may be asked to write
    /// there, if it may write at all.
    fn recognise(&self, address: &OwnedFd) -> Result<Rc<Directory>, Refused> {
        let number = ring::socket_cookie(address).ok();
        let known = self.0.known.borrow();
        let directory = number.and_then(|number| known.get(&number)).and_then(Weak::upgrade);
        match directory.filter(|directory| !directory.lease.has_ended()) {
            Some(directory) if directory.rights == Rights::ReadOnly => {
                Err(Refused::plainly(Refusal::ReadOnly))
            }
            Some(directory) => Ok(directory),
            None => Err(Refused::plainly(Refusal::Stranger)),
        }
    }

    fn open(&self, directory: &Directory, path: Path<'_>) -> Result<Message, Refused> {
        let lease = &directory.lease;
        let held = self.0.opener.hold(&*directory.fd, path)?;
        let stat = beneath::stat(&held)?;
        let (kind, object) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (Kind::Directory, self.address(Rc::new(held), directory.rights, lease)?),
            FileType::RegularFile => {
                let file = File {
                    directory: directory.fd.clone(),
                    path: path.bytes().to_vec(),
                    is: Identity::of(&stat),
                    rights: directory.rights,
                };
                add_one(&self.0.files);
                let object = self.spawn_plain(lease, self.room(lease)?, move |service, request| {
                    service.answer_file(&file, request)
                })?;
                (Kind::File, object)
            }
            FileType::Symlink => {
                let object = self
                    .spawn_plain(lease, self.room(lease)?, move |_, request| answer_link(&held, request))?;
                (Kind::Symlink, object)
            }
            _ => return Err(Refused::plainly(Refusal::WrongKind)),
        };
        Ok(Message::new(wire::opened(kind)).with_descriptor(given(object)))
    }

    fn answer_file(&self, file: &File, request: &[u8]) -> Result<Message, Refused> {
        let request = FileRequest::parse(request).map_err(|_| Refused::plainly(Refusal::BadRequest))?;
        if file.rights == Rights::ReadOnly && request.changes() {
            return Err(Refused::plainly(Refusal::ReadOnly));
        }
        let path = Path::new(&file.path).map_err(|_| Refused::plainly(Refusal::BadRequest))?;
        match request {
            FileRequest::Open(access) => {
                let (opened, stat) = match self.0.opener.open_file(&*file.directory, path, access) {
                    // Something else has its name: nothing that was ever asked for.
                    Err(Refused { refusal: Refusal::WrongKind | Refusal::Link, .. }) => {
                        return Err(Refused::plainly(Refusal::Changed));
                    }
                    opened => opened?,
                };
                if Identity::of(&stat) != file.is {
                    return Err(Refused::plainly(Refusal::Changed));
                }
                let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(Message::new(wire::content(size_bytes)).with_descriptor(given(opened)))
            }
            FileRequest::Stat => {
                let (_, stat) = self.still_there(file, path)?;
                Ok(Message::new(wire::attributes(&beneath::attributes(&stat))))
            }
            FileRequest::SetMode(mode) => {
                beneath::mode(mode)?;
                beneath::set_mode(&self.still_there(file, path)?.0, mode)?;
                Ok(Message::new(wire::done()))
            }
            FileRequest::SetTimes(times) => {
                beneath::set_times(&self.still_there(file, path)?.0, times)?;
                Ok(Message::new(wire::done()))
            }
        }
    }

    /// The file itself, held, if its path still leads to it.
    fn still_there(&self, file: &File, path: Path<'_>) -> Result<(OwnedFd, rustix::fs::Stat), Refused> {
        let held = self.0.opener.hold(&*file.directory, path)?;
        let stat = beneath::stat(&held)?;
        match Identity::of(&stat) == file.is {
            true => Ok((held, stat)),
            false => Err(Refused::plainly(Refusal::Changed)),
        }
    }

    /// A file to be written, and the object that gives it its name.
    fn create(
        &self,
        directory: &Directory,
        mode: u32,
        onto: Onto,
        path: Place<'_>,
    ) -> Result<Message, Refused> {
        let mode = beneath::mode(mode)?;
        let room = self.room(&directory.lease)?;
        let (above, leaf) = path.split();
        let above = self.0.opener.hold_directory(&*directory.fd, above)?;
        let mut draft = Some(Draft::new(above, leaf, mode, onto)?);
        let file = draft.as_ref().map(Draft::share).transpose()?;
        let object = self.spawn_plain(&directory.lease, room, move |_, request| {
            if request != wire::KEEP {
                return Err(Refused::plainly(Refusal::BadRequest));
            }
            // Once only, whatever comes of it.
            let mut draft = draft.take().ok_or(Refused::plainly(Refusal::NotFound))?;
            draft.keep()?;
            Ok(Message::new(wire::done()))
        })?;
        let mut message = Message::new(wire::done());
        file.into_iter().chain([object]).for_each(|descriptor| message.push_descriptor(given(descriptor)));
        Ok(message)
    }

    fn view(&self, directory: &Directory, view: View, path: Path<'_>) -> Result<Message, Refused> {
        let rights = if view.read_only { Rights::ReadOnly } else { directory.rights };
        let fd = match path.is_here() {
            true => directory.fd.clone(),
            false => Rc::new(self.0.opener.hold_directory(&*directory.fd, path)?),
        };
        if !view.leashed {
            let address = self.address(fd, rights, &directory.lease)?;
            return Ok(Message::new(wire::opened(Kind::Directory)).with_descriptor(given(address)));
        }
        let lease = directory.lease.part();
        let room = self.room(&lease)?;
        let pair = ring::Socket::pair(&self.0.reactor, ring::Kind::SeqPacket);
        let (near, far) = pair.map_err(out_of_objects)?;
        let address = self.address(fd, rights, &lease)?;
        self.0.spawner.spawn(async move {
            lease.unless_ended(near.hung_up()).await;
            lease.end();
            drop(room);
        });
        let message = Message::new(wire::opened(Kind::Directory));
        Ok(message.with_descriptor(given(address)).with_descriptor(given(far)))
    }
}

async fn next(mailbox: &PlainMailbox) -> Option<seqpacket::PlainIncoming> {
    mailbox.next().await
}

fn answer_link(held: &OwnedFd, request: &[u8]) -> Result<Message, Refused> {
    match LinkRequest::parse(request) {
        Ok(LinkRequest::Read) => beneath::read_link(held).map(Message::new),
        Ok(LinkRequest::Stat) => {
            let stat = beneath::stat(held)?;
            Ok(Message::new(wire::attributes(&beneath::attributes(&stat))))
        }
        Err(_) => Err(Refused::plainly(Refusal::BadRequest)),
    }
}

/// What is on its way to somebody else: opened or made here, so that it need not be asked what it is, and not
/// the last copy, so that closing it is quick. By the closer threads, it costs six system calls more.
fn given(descriptor: OwnedFd) -> Fd {
    Fd::made_here(descriptor)
}

fn refuse(refused: Refused) -> Message {
    Message::new(refused.encode())
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
