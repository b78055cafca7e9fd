//! The law all drivers obey, the choice between them, and the `match`.
//!
//! - Every token accepted by `submit` comes home exactly once as `last`, also after `cancel`.
//! - Between the two nothing that the kernel may touch moves: it is in the request, in its slot.
//! - A driver never calls up. It knows no waker and no future; it fills a list of completions.
//! - At most one send and one receive are in flight for a socket, which whoever submits sees to: a ring
//!   delivers several in another order than they were given. (Sends that may overtake each other may be
//!   more.)

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::budget::Budget;
use crate::buffer::Pool;
use crate::clock::Clock;
use crate::envelope::{self, Envelope, Room, Taken};
use crate::fd::{Fd, Kind};
use crate::remote::Bell;
#[cfg(uring)]
use crate::request::Request;
use crate::request::{Completion, Requests, Token};
use crate::sys::{self, Half, UnixAddress, errno};

pub(crate) mod child;
pub(crate) mod epoll;
#[cfg(feature = "script")]
pub(crate) mod faults;
#[cfg(all(test, feature = "script"))]
mod law;
#[cfg(feature = "script")]
pub(crate) mod script;
#[cfg(uring)]
pub(crate) mod uring;

use child::Child;
use epoll::Epoll;
pub(crate) use epoll::Now;
pub use epoll::UNSEEN_TURNS_MAX;
#[cfg(feature = "script")]
use script::{Fate, Script};
#[cfg(uring)]
use uring::Uring;

/// The environment variable that chooses the driver where the program leaves it open.
pub const DRIVER_VARIABLE: &str = "SENDRIGHT_DRIVER";

/// Which driver a program wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DriverChoice {
    /// io_uring where it works, epoll elsewhere; unless `SENDRIGHT_DRIVER` names one.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll.
    Epoll,
}

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(name: &str) -> Result<DriverChoice, UnknownDriver> {
        match name {
            "auto" => Ok(DriverChoice::Auto),
            "uring" => Ok(DriverChoice::Uring),
            "epoll" => Ok(DriverChoice::Epoll),
            _ => Err(UnknownDriver(name.to_owned())),
        }
    }
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverChoice::Auto => "auto",
            DriverChoice::Uring => "uring",
            DriverChoice::Epoll => "epoll",
        })
    }
}

/// A name that is no driver's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no driver {0:?}: choose auto, uring or epoll")]
pub struct UnknownDriver(String);

/// Which driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DriverKind {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
    /// The driver of simulated worlds, for tests.
    #[cfg(feature = "script")]
    #[doc(hidden)]
    Script,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverKind::Uring => "uring",
            DriverKind::Epoll => "epoll",
            #[cfg(feature = "script")]
            DriverKind::Script => "script",
        })
    }
}

/// Which driver runs, and why that one.
#[derive(Clone, Debug)]
pub struct DriverReport {
    kind: DriverKind,
    reason: String,
}

impl DriverReport {
    /// Which.
    pub fn kind(&self) -> DriverKind {
        self.kind
    }

    /// Why, in one sentence.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for DriverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.reason)
    }
}

/// No reactor could be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The uring driver was asked for, and this is what refused it. Ask for `auto` or `epoll`, or remove the
    /// obstacle it names.
    #[error(
        "the uring driver was asked for ({asked_by}) and cannot be had: {why}; \
         ask for auto or epoll, or lift the refusal"
    )]
    UringRefused {
        /// What asked: the configuration or the environment variable.
        asked_by: &'static str,
        /// What refused, and what is known to cause that.
        why: String,
    },
    /// The environment variable holds something else than a driver's name.
    #[error("SENDRIGHT_DRIVER: {0}")]
    UnknownDriver(#[from] UnknownDriver),
    /// The kernel refused something every driver needs (an eventfd, an epoll): most often the process is out
    /// of descriptors.
    #[error("cannot start a reactor: {0}")]
    Io(#[from] io::Error),
}

/// How long a turn may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleep {
    Not,
    For(Duration),
    Forever,
}

impl Sleep {
    pub(crate) fn at_most(self, limit: Duration) -> Sleep {
        match self {
            Sleep::Not => Sleep::Not,
            Sleep::For(time) => Sleep::For(time.min(limit)),
            Sleep::Forever => Sleep::For(limit),
        }
    }

    pub(crate) fn duration(self) -> Option<Duration> {
        match self {
            Sleep::Not => Some(Duration::ZERO),
            Sleep::For(time) => Some(time),
            Sleep::Forever => None,
        }
    }
}

/// How long receives wait, when descriptors have run out, before asking again whether any came free. Their
/// closing is not announced to anybody.
pub(crate) const STARVED_RETRY: Duration = Duration::from_millis(10);

/// Whether a turn that failed with this may go well a little later: the kernel had no memory for it (EAGAIN,
/// and ENOMEM, as some say), or wanted its completions reaped first (EBUSY).
pub(crate) fn is_put_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(errno::EBUSY | errno::EAGAIN | errno::ENOMEM))
}

/// Where a reactor sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SleepPlace {
    /// In its own turn: in the kernel, until the driver has something.
    OwnTurn,
    /// In somebody else's loop, which watches one descriptor of the driver's.
    HostLoop,
}

/// What a driver leans on.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) pool: Rc<Pool>,
    pub(crate) budget: Rc<Budget>,
    pub(crate) clock: Clock,
    pub(crate) place: SleepPlace,
}

/// The moment for which a driver in a host's loop has asked the kernel to be woken.
///
/// It is moved forward when something earlier comes up, and never back: calls with deadlines set and unset a
/// timer each, and the kernel would be asked twice for each call. An alarm for something that is no longer
/// wanted wakes the host once, in vain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alarm(Option<Instant>);

impl Alarm {
    /// Whether it has to be set anew for this moment.
    pub(crate) fn is_late_for(self, first: Option<Instant>) -> bool {
        first.is_some_and(|first| self.0.is_none_or(|set| first < set))
    }

    pub(crate) fn is_set(self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn set(&mut self, moment: Instant) {
        self.0 = Some(moment);
    }

    pub(crate) fn went_off(&mut self) {
        self.0 = None;
    }
}

/// One of them.
pub(crate) enum Driver {
    #[cfg(uring)]
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
    /// What the others become in a forked child.
    Child(Child),
    #[cfg(feature = "script")]
    Script(Box<Script>),
}

impl Driver {
    /// The driver of a simulated world.
    #[cfg(feature = "script")]
    pub(crate) fn script(ground: Ground, fate: Rc<Fate>) -> (Driver, DriverReport) {
        let reason = format!("a world made of seed {}", fate.seed());
        let driver = Driver::Script(Box::new(Script::new(ground, fate)));
        (driver, DriverReport { kind: DriverKind::Script, reason })
    }

    /// Opens the driver that was chosen, or that works.
    pub(crate) fn open(
        choice: DriverChoice,
        ground: Ground,
        bell: &Arc<Bell>,
    ) -> Result<(Driver, DriverReport), StartError> {
        let (choice, asked_by) = match (choice, std::env::var(DRIVER_VARIABLE)) {
            (DriverChoice::Auto, Ok(name)) => (name.parse()?, DRIVER_VARIABLE),
            (DriverChoice::Auto, Err(std::env::VarError::NotUnicode(name))) => {
                return Err(UnknownDriver(name.to_string_lossy().into_owned()).into());
            }
            (choice, _) => (choice, "configuration"),
        };
        match choice {
            DriverChoice::Epoll => {
                let reason = format!("asked for by {asked_by}");
                Ok((Driver::epoll(ground, bell)?, DriverReport { kind: DriverKind::Epoll, reason }))
            }
            DriverChoice::Uring => match Driver::uring(&ground, bell) {
                Ok((driver, how)) => {
                    let reason = format!("asked for by {asked_by}; {how}");
                    Ok((driver, DriverReport { kind: DriverKind::Uring, reason }))
                }
                Err(why) => Err(StartError::UringRefused { asked_by, why }),
            },
            DriverChoice::Auto => match Driver::uring(&ground, bell) {
                Ok((driver, how)) => Ok((driver, DriverReport { kind: DriverKind::Uring, reason: how })),
                Err(reason) => {
                    Ok((Driver::epoll(ground, bell)?, DriverReport { kind: DriverKind::Epoll, reason }))
                }
            },
        }
    }

    fn epoll(ground: Ground, bell: &Arc<Bell>) -> io::Result<Driver> {
        Ok(Driver::Epoll(Box::new(Epoll::new(ground, Arc::clone(bell))?)))
    }

    /// The ring, if it passes a descriptor; or what refused.
    #[cfg(uring)]
    fn uring(ground: &Ground, bell: &Arc<Bell>) -> Result<(Driver, String), String> {
        let (uring, how) = Uring::probe(ground, Arc::clone(bell))?;
        Ok((Driver::Uring(Box::new(uring)), how))
    }

    #[cfg(not(uring))]
    fn uring(_: &Ground, _: &Arc<Bell>) -> Result<(Driver, String), String> {
        let reason = match cfg!(feature = "uring") {
            true => "there are no bindings to io_uring for this processor",
            false => "this program was built without the feature `uring`",
        };
        Err(reason.to_owned())
    }

    /// Accepts a request that stands in its slot.
    pub(crate) fn submit(&mut self, token: Token, requests: &mut Requests) {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.submit(token, requests),
            Driver::Epoll(epoll) => epoll.submit(token, requests),
            Driver::Child(child) => child.submit(token),
            #[cfg(feature = "script")]
            Driver::Script(script) => script.submit(token),
        }
    }

    /// Asks for a token to come home soon, with or without success.
    pub(crate) fn cancel(&mut self, token: Token) {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.cancel(token),
            Driver::Epoll(epoll) => epoll.cancel(token),
            // It is on its way home already.
            Driver::Child(_) => {}
            #[cfg(feature = "script")]
            Driver::Script(script) => script.cancel(token),
        }
    }

    /// Shows the kernel what was submitted, sleeps until something is home, and lists what is.
    #[inline]
    pub(crate) fn turn(
        &mut self,
        requests: &mut Requests,
        sleep: Sleep,
        home: &mut Vec<Completion>,
    ) -> io::Result<()> {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.turn(requests, sleep, home),
            Driver::Epoll(epoll) => epoll.turn(requests, sleep, home),
            Driver::Child(child) => {
                child.turn(requests, home);
                Ok(())
            }
            #[cfg(feature = "script")]
            Driver::Script(script) => script.turn(requests, sleep, home),
        }
    }

    /// Whether the next turn has something to look at, whatever the kernel says.
    pub(crate) fn goes_on(&self) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.goes_on(),
            Driver::Epoll(epoll) => epoll.goes_on(),
            Driver::Child(_) => false,
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// Whether the next turn only shows the kernel what is to be sent, and does not sleep even if told to.
    pub(crate) fn comes_back_at_once(&self) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.comes_back_at_once(),
            Driver::Epoll(epoll) => epoll.comes_back_at_once(),
            Driver::Child(_) => false,
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// Receives one message now, without a token, where nothing else receives for this descriptor.
    pub(crate) fn take(&mut self, fd: &Fd, room: Room) -> Now {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.take_now(fd, room),
            Driver::Epoll(epoll) => epoll.take_now(fd, room),
            Driver::Child(_) => Now::Failed(child::refusal()),
            #[cfg(feature = "script")]
            Driver::Script(script) => script.take_now(fd, room),
        }
    }

    /// Whether there is something to receive, for somebody, that only the next turn takes out of a queue:
    /// until then a receive that is away has taken nothing that was not reaped.
    pub(crate) fn holds_back(&mut self, token: Token, requests: &mut Requests) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => {
                uring.holds_back() || requests.share(token).is_some_and(|share| share.unwatched)
            }
            // It would have to ask.
            Driver::Epoll(_) => false,
            Driver::Child(_) => true,
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// Whether what others take out of a queue is the next, although a receive is away.
    pub(crate) fn lets_others_take(&self) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(_) => true,
            Driver::Epoll(_) => true,
            Driver::Child(_) => false,
            // It has packets in places of its own.
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// Whether it is certain, without asking, that nothing has arrived for a receive that is away.
    pub(crate) fn hears_nothing(&mut self, token: Token, requests: &mut Requests) -> bool {
        match (self, requests.find(token)) {
            #[cfg(uring)]
            (Driver::Uring(uring), Some(Request::Receive { want, share, .. })) => {
                want.many && !share.hot && !share.starved && !share.unwatched && uring.hears_nothing()
            }
            _ => false,
        }
    }

    /// Whether a turn would find something now. Never sleeps, and costs little: a spinner asks again and
    /// again.
    pub(crate) fn look(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) -> io::Result<bool> {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => Ok(uring.look(requests, home)),
            Driver::Epoll(epoll) => epoll.look(requests, home),
            Driver::Child(_) => Ok(true),
            // Time does not pass while somebody looks.
            #[cfg(feature = "script")]
            Driver::Script(_) => Ok(false),
        }
    }

    /// Whether somebody looks for what comes next, again and again, until this is taken back.
    pub(crate) fn set_looked_at(&mut self, looked_at: bool) {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.set_looked_at(looked_at),
            Driver::Epoll(_) | Driver::Child(_) => {}
            #[cfg(feature = "script")]
            Driver::Script(_) => {}
        }
    }

    /// Whether an executor takes the turns. Whoever takes them one by one may want to hear of each signal.
    pub(crate) fn set_driven(&mut self, driven: bool) {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.set_driven(driven),
            Driver::Epoll(_) | Driver::Child(_) => {}
            #[cfg(feature = "script")]
            Driver::Script(_) => {}
        }
    }

    /// Whether a turn that sleeps, with nothing else to do, begins with a receive of this socket.
    pub(crate) fn sleeps_in(&self, fd: &Fd) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.sleeps_in(fd),
            Driver::Epoll(_) | Driver::Child(_) => false,
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// How many sleeps were slept in a receive of one socket, past what else there is to hear of.
    pub(crate) fn slept_in_receives(&self) -> u64 {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.slept_in_receives(),
            Driver::Epoll(_) | Driver::Child(_) => 0,
            #[cfg(feature = "script")]
            Driver::Script(_) => 0,
        }
    }

    // In a host's loop. The law there: between `hand_over` and the next turn `descriptor` is, or becomes,
    // readable whenever a turn would find something.

    /// What a foreign loop watches for reading.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.descriptor(),
            Driver::Epoll(epoll) => epoll.descriptor(),
            Driver::Child(_) => unreachable!("a forked child has no host"),
            #[cfg(feature = "script")]
            Driver::Script(_) => unreachable!("a simulated world has no host"),
        }
    }

    /// Makes the descriptor unreadable and sets the alarm for the first moment at which something is due.
    /// True if there is something to do now after all, of which the descriptor says nothing.
    pub(crate) fn hand_over(&mut self, first: Option<Instant>, requests: &mut Requests) -> io::Result<bool> {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.hand_over(first, requests),
            Driver::Epoll(epoll) => epoll.hand_over(first),
            Driver::Child(_) => unreachable!("a forked child has no host"),
            #[cfg(feature = "script")]
            Driver::Script(_) => unreachable!("a simulated world has no host"),
        }
    }

    /// Turns follow: the descriptor need not say anything until the next `hand_over`.
    pub(crate) fn take_back(&mut self) {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.take_back(),
            Driver::Epoll(_) | Driver::Child(_) => {}
            #[cfg(feature = "script")]
            Driver::Script(_) => unreachable!("a simulated world has no host"),
        }
    }

    /// Whether something has been asked for since `hand_over` that only a turn can show to the kernel.
    pub(crate) fn wants_a_turn(&mut self, first: Option<Instant>) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.wants_a_turn(first),
            Driver::Epoll(epoll) => epoll.wants_a_turn(first),
            Driver::Child(_) => false,
            #[cfg(feature = "script")]
            Driver::Script(_) => unreachable!("a simulated world has no host"),
        }
    }

    /// Whether something has been asked for that only a turn shows to the kernel.
    pub(crate) fn has_something_to_show(&mut self) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(uring) => uring.wants_a_turn(None),
            Driver::Epoll(epoll) => epoll.wants_a_turn(None),
            Driver::Child(_) => false,
            // It knows its own time.
            #[cfg(feature = "script")]
            Driver::Script(_) => true,
        }
    }

    /// A descriptor is about to be closed.
    pub(crate) fn forget(&mut self, fd: &Fd) {
        match self {
            #[cfg(uring)]
            Driver::Uring(_) => {}
            Driver::Epoll(epoll) => epoll.forget(fd),
            Driver::Child(_) => {}
            #[cfg(feature = "script")]
            Driver::Script(script) => script.forget(fd),
        }
    }

    // What is done at once goes through here too, so that a script can make it fail.

    /// A connected pair.
    pub(crate) fn pair(&mut self, kind: Kind) -> io::Result<(OwnedFd, OwnedFd)> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.pair(kind),
            Driver::Child(_) => Err(child::refusal()),
            _ => sys::socketpair(kind),
        }
    }

    /// A socket that is connected to nobody yet.
    pub(crate) fn socket(&mut self, kind: Kind) -> io::Result<OwnedFd> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.socket(kind),
            _ => sys::socket(kind),
        }
    }

    /// One attempt to connect it to a name.
    pub(crate) fn connect(&mut self, fd: BorrowedFd<'_>, address: &UnixAddress) -> io::Result<()> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.connect(fd, address),
            _ => sys::connect(fd, address),
        }
    }

    /// Fills the bytes with what nobody can guess; or, in a simulated world, with what its seed says.
    pub(crate) fn fill_random(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => {
                script.fill_random(into);
                Ok(())
            }
            _ => sys::random(into),
        }
    }

    /// One receive into memory of the caller's, for a descriptor of which the driver knows nothing.
    pub(crate) fn receive_beside(&mut self, fd: &Fd, bytes: &mut [u8], room: Room) -> io::Result<Taken> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.receive_beside(fd, bytes, room),
            _ => {
                if let Some(landing) = fd.landing() {
                    landing.expect_nothing();
                }
                envelope::receive(fd.as_fd(), bytes, room)
            }
        }
    }

    /// Whether a message for a socket with none away is best sent with a plain call: there it costs less than
    /// through the ring, and whoever sent it knows at once how it went.
    pub(crate) fn sends_now(&mut self) -> bool {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.sends_now(),
            _ => true,
        }
    }

    /// Whether many sends leave with fewer system calls than each by itself.
    pub(crate) fn sends_together(&self) -> bool {
        match self {
            #[cfg(uring)]
            Driver::Uring(_) => true,
            Driver::Epoll(_) => true,
            Driver::Child(_) => false,
            // Each has a fate of its own there.
            #[cfg(feature = "script")]
            Driver::Script(_) => false,
        }
    }

    /// Sends a sealed envelope now, past what is away.
    pub(crate) fn send_now(&mut self, fd: &Fd, envelope: &Envelope) -> io::Result<usize> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.send_now(fd, envelope),
            Driver::Child(_) => Err(child::refusal()),
            _ => envelope.send(fd.as_fd()),
        }
    }

    /// Sends a packet of bytes alone now, with a plain call.
    #[inline]
    pub(crate) fn send_bytes_now(&mut self, fd: &Fd, bytes: &[u8]) -> io::Result<usize> {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.send_bytes_now(fd, bytes),
            Driver::Child(_) => Err(child::refusal()),
            _ => envelope::send_bytes(fd.as_fd(), bytes),
        }
    }

    /// Sends pieces of one whole now, with one system call, each behind bytes of its own and in a message of
    /// its own. Says how many have gone.
    pub(crate) fn send_pieces_now(
        &mut self,
        fd: &Fd,
        whole: &[u8],
        pieces: &[(&[u8], Range<usize>)],
    ) -> io::Result<usize> {
        match self {
            // Messages have a fate of their own there, and go one by one.
            #[cfg(feature = "script")]
            Driver::Script(_) => Ok(0),
            Driver::Child(_) => Err(child::refusal()),
            _ => envelope::send_pieces(fd.as_fd(), whole, pieces),
        }
    }

    /// Ends a connection for everybody who holds either end.
    pub(crate) fn shut_down(&mut self, fd: &Fd) {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.shut_down(fd),
            // The connection is the parent's.
            Driver::Child(_) => {}
            // Whoever is not connected has nothing to end.
            _ => drop(sys::shutdown(fd.as_fd(), Half::Both)),
        }
    }

    /// Which party of a simulated world this is the driver of.
    #[cfg(feature = "script")]
    pub(crate) fn party_of(&self, fate: &Rc<Fate>) -> Option<usize> {
        match self {
            Driver::Script(script) => script.party_of(fate),
            _ => None,
        }
    }

    /// Whether something is under way there.
    #[cfg(feature = "script")]
    pub(crate) fn is_at_work(&self) -> bool {
        match self {
            Driver::Script(script) => script.is_at_work(),
            _ => false,
        }
    }

    /// Whether nothing is sent any more, not even on leaving: the process has died, in a simulated world, or
    /// is a forked child.
    pub(crate) fn is_dead(&self) -> bool {
        match self {
            #[cfg(feature = "script")]
            Driver::Script(script) => script.is_dead(),
            _ => self.is_child(),
        }
    }

    /// Whether this is a forked child, in which nothing is touched.
    pub(crate) fn is_child(&self) -> bool {
        matches!(self, Driver::Child(_))
    }

    /// Becomes the driver of a forked child. What the child has of the one before is closed here and stays
    /// as it is in the parent: nothing is cancelled, removed or submitted.
    pub(crate) fn become_child(&mut self) {
        *self = Driver::Child(Child::default());
    }
}

/// What is known to cause an error of `io_uring_setup`.
#[cfg(uring)]
pub(crate) fn refusal(what: &str, error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(sys::errno::EPERM) => "a seccomp filter (containers) or kernel.io_uring_disabled refuses it",
        Some(sys::errno::EACCES) => "a security policy refuses it",
        Some(sys::errno::ENOSYS) => "the kernel has no io_uring, or a seccomp filter hides it",
        _ => "the kernel is older than 6.1, or out of memory or descriptors",
    };
    format!("{what}: {error}; {cause}")
}

/// Says once for each reactor which driver runs, and why.
pub(crate) fn announce(report: &DriverReport) {
    #[cfg(feature = "tracing")]
    tracing::debug!(driver = %report.kind, reason = report.reason, "reactor started");
    #[cfg(not(feature = "tracing"))]
    let _ = report;
}
