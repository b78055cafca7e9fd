//! The side of the file service that holds nothing but objects.
//!
//! It owns the way from an object to what it answers, and measures every call. It must never open anything by
//! name: what it reads came to it as a descriptor.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::{Message, Reactor};
use seqpacket::{Answer, CallError, CallOptions, Object, Pairs, PlainObject, WrapError};

use super::wire::{
    self, Access, Attributes, FileRequest, Kind, Malformed, NewTimes, Onto, Page, Path, Place, Refused,
    Request, Target, View,
};
use crate::latency::{Latencies, Way};

/// A directory, held as an object. What it answers is all there is to know about it.
#[derive(Debug)]
pub struct Directory {
    object: Object,
    /// Of which every file below makes its calls.
    pairs: Pairs,
    meter: Rc<Meter>,
    options: CallOptions,
}

impl Directory {
    /// The directory an address leads to. Nothing is sent before the first request.
    ///
    /// Every file below it makes its calls with `pairs`: a stock of them is a stock of descriptors, and how
    /// many there are to spare the caller knows.
    pub fn from_fd(
        pairs: &Pairs,
        reactor: &Reactor,
        address: OwnedFd,
        meter: &Rc<Meter>,
    ) -> Result<Directory, Trouble> {
        let object = Object::from_fd(reactor, address).map_err(Trouble::Wrap)?;
        // Attaching passes one end of a socket pair.
        meter.count_descriptor();
        let options = CallOptions::default();
        Ok(Directory { object, pairs: pairs.clone(), meter: meter.clone(), options })
    }

    /// The same, and a call that is not answered in time has failed.
    pub fn within(mut self, time: Duration) -> Directory {
        self.options.within = Some(time);
        self
    }

    /// One page of names from `cursor` on, as bytes for [`Page::parse`].
    pub async fn page(&self, path: Path<'_>, cursor: u64) -> Result<Names, Trouble> {
        let answer = self.call(Request::List { cursor, path }).await?;
        Page::parse(answer.bytes())??;
        Ok(Names(answer))
    }

    /// The object that stands for what is there.
    pub async fn open(&self, path: impl Into<Path<'_>>) -> Result<Opened, Trouble> {
        let mut answer = self.call(Request::Open { path: path.into() }).await?;
        let kind = wire::parse_opened(answer.bytes())??;
        let object = answer.take_descriptor().ok_or(Trouble::NoDescriptor)?;
        self.meter.count_descriptor();
        let (pairs, reactor, meter) = (&self.pairs, self.object.reactor(), &self.meter);
        match kind {
            Kind::Directory => {
                let directory = Directory::from_fd(pairs, reactor, object, meter)?;
                Ok(Opened::Directory(Directory { options: self.options, ..directory }))
            }
            Kind::File => Ok(Opened::File(File::from_fd(pairs, reactor, object, meter)?)),
            Kind::Symlink => Ok(Opened::Link),
            _ => Err(Trouble::Malformed(Malformed::Kind)),
        }
    }

    /// Where a symbolic link points.
    pub async fn read_link(&self, path: impl Into<Place<'_>>) -> Result<Vec<u8>, Trouble> {
        let answer = self.call(Request::ReadLink { path: path.into() }).await?;
        Ok(wire::parse_target(answer.bytes())??.to_vec())
    }

    /// What is said about what is there.
    pub async fn stat(&self, path: Path<'_>) -> Result<Attributes, Trouble> {
        let answer = self.call(Request::Stat { path }).await?;
        Ok(wire::parse_attributes(answer.bytes())??)
    }

    /// A file, opened: one call, and the answer brings the descriptor. With its size in bytes.
    pub async fn content(&self, path: Place<'_>, access: Access) -> Result<(OwnedFd, u64), Trouble> {
        let mut answer = self.call(Request::Content { access, path }).await?;
        let size_bytes = wire::parse_content(answer.bytes())??;
        self.meter.count_descriptor();
        Ok((answer.take_descriptor().ok_or(Trouble::NoDescriptor)?, size_bytes))
    }

    /// A file that has no name yet, to be written and [kept](Draft::keep).
    pub async fn create(&self, path: Place<'_>, mode: u32, onto: Onto) -> Result<Draft, Trouble> {
        let mut answer = self.call(Request::Create { mode, onto, path }).await?;
        wire::parse_done(answer.bytes())??;
        let file = answer.take_descriptor().ok_or(Trouble::NoDescriptor)?;
        let object = answer.take_descriptor().ok_or(Trouble::NoDescriptor)?;
        let object = PlainObject::from_fd_with(&self.pairs, self.object.reactor(), object);
        Ok(Draft { file, object: object.map_err(Trouble::Wrap)?, within: self.options.within })
    }

    /// A new directory.
    pub async fn make_directory(&self, path: Place<'_>, mode: u32) -> Result<(), Trouble> {
        self.change(Request::MakeDirectory { mode, path }).await
    }

    /// A new symbolic link.
    pub async fn make_symlink(&self, path: Place<'_>, target: Target<'_>) -> Result<(), Trouble> {
        self.change(Request::MakeSymlink { path, target }).await
    }

    /// Another name in place of one, both beneath this directory.
    pub async fn rename(&self, from: Place<'_>, to: Place<'_>) -> Result<(), Trouble> {
        self.change(Request::Rename { from, to }).await
    }

    /// One more name, both beneath this directory.
    pub async fn link(&self, from: Place<'_>, to: Place<'_>) -> Result<(), Trouble> {
        self.change(Request::Link { from, to }).await
    }

    /// One name less.
    pub async fn unlink(&self, path: Place<'_>) -> Result<(), Trouble> {
        self.change(Request::Unlink { path }).await
    }

    /// One empty directory less.
    pub async fn remove_directory(&self, path: Place<'_>) -> Result<(), Trouble> {
        self.change(Request::RemoveDirectory { path }).await
    }

    /// Other permissions.
    pub async fn set_mode(&self, path: Path<'_>, mode: u32) -> Result<(), Trouble> {
        self.change(Request::SetMode { mode, path }).await
    }

    /// Other times.
    pub async fn set_times(&self, path: Path<'_>, times: NewTimes) -> Result<(), Trouble> {
        self.change(Request::SetTimes { times, path }).await
    }

    /// An address of a directory that may do less, or that can be taken back; with it comes what takes it
    /// back when it is closed, if that was asked for.
    pub async fn view(&self, path: Path<'_>, view: View) -> Result<(OwnedFd, Option<OwnedFd>), Trouble> {
        let mut answer = self.call(Request::View { view, path }).await?;
        wire::parse_opened(answer.bytes())??;
        let address = answer.take_descriptor().ok_or(Trouble::NoDescriptor)?;
        let leash = answer.take_descriptor();
        if leash.is_some() == view.leashed { Ok((address, leash)) } else { Err(Trouble::NoDescriptor) }
    }

    async fn change(&self, request: Request<'_>) -> Result<(), Trouble> {
        Ok(wire::parse_done(self.call(request).await?.bytes())??)
    }

    /// A fresh address of the same directory, to hand to somebody else.
    pub async fn grant(&self) -> Result<OwnedFd, Trouble> {
        let address = self.meter.time(Way::Session, self.object.grant()).await?;
        self.meter.count_descriptor();
        Ok(address)
    }

    async fn call(&self, request: Request<'_>) -> Result<Answer, Trouble> {
        let call = self.object.call_with(Message::new(request.encode()), self.options);
        Ok(self.meter.time(Way::Session, call).await?)
    }
}

/// What a name turned out to be.
#[derive(Debug)]
pub enum Opened {
    Directory(Directory),
    File(File),
    /// Its own object is of no use to anybody who holds the directory.
    Link,
}

/// A page of names, checked when it arrived.
#[derive(Debug)]
pub struct Names(Answer);

impl Names {
    /// The page; `None` never, since it was read once already.
    pub fn page(&self) -> Option<Page<'_>> {
        Page::parse(self.0.bytes()).ok()?.ok()
    }
}

/// A file, held as a plain object: asked once, it answers with a descriptor opened for reading.
#[derive(Debug)]
pub struct File {
    object: PlainObject,
    meter: Rc<Meter>,
}

impl File {
    fn from_fd(
        pairs: &Pairs,
        reactor: &Reactor,
        object: OwnedFd,
        meter: &Rc<Meter>,
    ) -> Result<File, Trouble> {
        let object = PlainObject::from_fd_with(pairs, reactor, object).map_err(Trouble::Wrap)?;
        Ok(File { object, meter: meter.clone() })
    }

    /// The file opened for reading.
    pub async fn open(&self) -> Result<OwnedFd, Trouble> {
        // The continuation travels with the message.
        self.meter.count_descriptor();
        let mut answer =
            self.meter.time(Way::Plain, self.object.call(FileRequest::Open(Access::Read).encode())).await?;
        wire::parse_content(answer.bytes())??;
        self.meter.count_descriptor();
        answer.take_descriptor().ok_or(Trouble::NoDescriptor)
    }
}

/// A file that is being written. Dropped, it is gone, unless it was kept.
#[derive(Debug)]
pub struct Draft {
    /// What is written.
    pub file: OwnedFd,
    object: PlainObject,
    within: Option<Duration>,
}

impl Draft {
    /// Gives the file its name, whole and at once.
    pub async fn keep(self) -> Result<(), Trouble> {
        let call = self.object.call(wire::KEEP);
        let answer = match self.within {
            Some(time) => call.within(time).await?,
            None => call.await?,
        };
        Ok(wire::parse_done(answer.bytes())??)
    }
}

/// What the calls of a process took, and how many descriptors they carried. Shared by all its objects.
#[derive(Debug)]
pub struct Meter {
    session: RefCell<Latencies>,
    plain: RefCell<Latencies>,
    descriptors: Cell<u64>,
}

impl Meter {
    /// Nothing counted yet.
    pub fn new() -> Rc<Meter> {
        let (session, plain) = (RefCell::new(Latencies::new()), RefCell::new(Latencies::new()));
        Rc::new(Meter { session, plain, descriptors: Cell::new(0) })
    }

    /// A descriptor crossed a socket.
    pub fn count_descriptor(&self) {
        self.descriptors.set(self.descriptors.get() + 1);
    }

    /// Descriptors sent and received so far.
    pub fn descriptors(&self) -> u64 {
        self.descriptors.get()
    }

    /// The latencies of the calls that went this way and were answered.
    pub fn latencies(&self, way: Way) -> &RefCell<Latencies> {
        match way {
            Way::Session => &self.session,
            Way::Plain => &self.plain,
        }
    }

    async fn time<T>(
        &self,
        way: Way,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let start = Instant::now();
        let answer = call.await?;
        self.latencies(way).borrow_mut().record(start.elapsed());
        Ok(answer)
    }
}

/// Why there is no answer to use.
#[derive(Debug)]
pub enum Trouble {
    /// The service said no, and why.
    Refused(Refused),
    /// The call itself failed.
    Call(CallError),
    /// The answer is none.
    Malformed(Malformed),
    /// The answer says there is a descriptor, and there is none.
    NoDescriptor,
    /// The descriptor is not what an object is made of.
    Wrap(WrapError),
    /// What leads there is longer than any path may be. Nothing was asked.
    TooLong,
    /// A directory has more names than are kept at a time.
    TooMany,
}

/// A path that was put together of names that a service has told.
pub fn path(bytes: &[u8]) -> Result<Path<'_>, Trouble> {
    Path::new(bytes).map_err(|_| Trouble::TooLong)
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused(refused) => refused.fmt(f),
            Trouble::Call(error) => error.fmt(f),
            Trouble::Malformed(malformed) => write!(f, "the service answered with {malformed}"),
            Trouble::NoDescriptor => f.write_str("the service answered without a descriptor"),
            Trouble::Wrap(error) => error.fmt(f),
            Trouble::TooLong => f.write_str("the path is too long to be asked for"),
            Trouble::TooMany => f.write_str("the directory has too many names"),
        }
    }
}

impl From<Refused> for Trouble {
    fn from(refused: Refused) -> Trouble {
        Trouble::Refused(refused)
    }
}

impl From<Malformed> for Trouble {
    fn from(malformed: Malformed) -> Trouble {
        Trouble::Malformed(malformed)
    }
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Trouble {
        Trouble::Call(error)
    }
}
