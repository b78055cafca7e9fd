//! The side of the file service that holds nothing but objects.
//!
//! It owns the way from an object to what it answers, and measures every call. It must never open anything by
//! name: what it reads came to it as a descriptor.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use ring::Reactor;
use seqpacket::{Answer, CallError, Object, Pairs, PlainObject, WrapError};

use super::wire::{self, Kind, Leaf, Malformed, Page, Refused, Request};
use crate::latency::{Latencies, Way};

/// A directory, held as an object. What it answers is all there is to know about it.
#[derive(Debug)]
pub struct Directory {
    object: Object,
    /// Of which every file below makes its calls.
    pairs: Pairs,
    meter: Rc<Meter>,
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
        Ok(Directory { object, pairs: pairs.clone(), meter: meter.clone() })
    }

    /// One page of names from `cursor` on, as bytes for [`Page::parse`].
    pub async fn page(&self, cursor: u64) -> Result<Names, Trouble> {
        let answer = self.call(Request::List { cursor }).await?;
        Page::parse(answer.bytes())??;
        Ok(Names(answer))
    }

    /// The object `name` stands for.
    pub async fn open(&self, name: Leaf<'_>) -> Result<Opened, Trouble> {
        let mut answer = self.call(Request::Open { name }).await?;
        let kind = wire::parse_opened(answer.bytes())??;
        let object = answer.take_descriptor().ok_or(Trouble::NoDescriptor)?;
        self.meter.count_descriptor();
        let (pairs, reactor, meter) = (&self.pairs, self.object.reactor(), &self.meter);
        match kind {
            Kind::Directory => Ok(Opened::Directory(Directory::from_fd(pairs, reactor, object, meter)?)),
            Kind::File => Ok(Opened::File(File::from_fd(pairs, reactor, object, meter)?)),
            _ => Err(Trouble::Malformed(Malformed::Kind)),
        }
    }

    /// Where the symbolic link `name` points.
    pub async fn read_link(&self, name: Leaf<'_>) -> Result<Vec<u8>, Trouble> {
        let answer = self.call(Request::ReadLink { name }).await?;
        Ok(wire::parse_target(answer.bytes())??.to_vec())
    }

    /// A fresh address of the same directory, to hand to somebody else.
    pub async fn grant(&self) -> Result<OwnedFd, Trouble> {
        let address = self.meter.time(Way::Session, self.object.grant()).await?;
        self.meter.count_descriptor();
        Ok(address)
    }

    async fn call(&self, request: Request<'_>) -> Result<Answer, Trouble> {
        Ok(self.meter.time(Way::Session, self.object.call(request.encode())).await?)
    }
}

/// What a name turned out to be.
#[derive(Debug)]
pub enum Opened {
    Directory(Directory),
    File(File),
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
        let mut answer = self.meter.time(Way::Plain, self.object.call(wire::OPEN)).await?;
        wire::parse_content(answer.bytes())??;
        self.meter.count_descriptor();
        answer.take_descriptor().ok_or(Trouble::NoDescriptor)
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
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused(refused) => refused.fmt(f),
            Trouble::Call(error) => error.fmt(f),
            Trouble::Malformed(malformed) => write!(f, "the service answered with {malformed}"),
            Trouble::NoDescriptor => f.write_str("the service answered without a descriptor"),
            Trouble::Wrap(error) => error.fmt(f),
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
