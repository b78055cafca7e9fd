//! The driver for places where io_uring is refused: plain system calls, and epoll to sleep in.
//!
//! It mirrors the kernel: a descriptor is watched once, edge-triggered, for all that can arrive. For room to
//! write it is watched only while somebody waits for that, or each message the peer takes would wake us.
//! It owns the epoll and what it remembers of each descriptor, never the descriptors themselves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::{Alarm, Ground, STARVED_RETRY, Sleep, SleepPlace};
use crate::buffer::Landing;
#[cfg(uring)]
use crate::envelope::Place;
use crate::envelope::{self, Room, SENT_TOGETHER_MAX, Taken};
use crate::fd::{DESCRIPTORS_MAX, Fd};
use crate::message::{PACKET_BYTES_MAX, Payload, Received};
use crate::remote::Bell;
use crate::request::{Arrival, BURST_BYTES_MAX, Completion, Outcome, Request, Requests, Share, Token, Want};
use crate::sys::{self, EVENTS_MAX, Event, Watched, errno, ready};

/// How many turns in a row may have something to report without looking who else has news, on epoll (io_uring
/// says by itself whether it has any): what arrives on a socket that was quiet is seen in the turn after
/// these at the latest, or sooner if they report much. A call and its answer are two turns, of which the
/// second looks anyway; and what one turn reports may be a client that attaches, which takes as long as
/// twenty looks.
pub const UNSEEN_TURNS_MAX: u32 = 2;

/// After so many messages the look is due too, since what one busy socket delivers may be much.
const UNSEEN_MESSAGES_MAX: usize = 16;

/// What has been reported since somebody looked who else has news.
#[derive(Default)]
pub(super) struct Unseen {
    turns: u32,
    messages: usize,
}

impl Unseen {
    /// A turn has so much to report. Whether the look can wait.
    pub(super) fn may_wait(&mut self, messages: usize) -> bool {
        self.turns += 1;
        self.messages += messages;
        self.turns < UNSEEN_TURNS_MAX && self.messages < UNSEEN_MESSAGES_MAX
    }

    /// A stream has had all of its share of a turn: the look is due. What it brings takes much longer to copy
    /// or to serve than the look that was put off; with three packets of 64 KiB in a turn, fifty times.
    pub(super) fn is_due(&mut self) {
        self.turns = UNSEEN_TURNS_MAX;
    }
}

/// Whether streams that have had their share of a turn leave the next one to those who were just heard of.
#[derive(Default)]
pub(super) struct Yielding {
    yielded: bool,
}

impl Yielding {
    /// They do, but never in two turns in a row. What is quiet mostly sends little and waits for it; behind
    /// three streams whose 64 KiB are copied first it would be answered 50 µs later.
    pub(super) fn yields(&mut self, others_have_news: bool) -> bool {
        self.yielded = others_have_news && !self.yielded;
        self.yielded
    }
}

const BELL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

pub(crate) struct Epoll {
    ground: Ground,
    epoll: OwnedFd,
    bell: Arc<Bell>,
    /// In a host's loop only, where no sleep of ours ends in time.
    timer: Option<OwnedFd>,
    alarm: Alarm,
    watches: Slab<Watch>,
    /// To be tried in the next turn.
    hot: Vec<Token>,
    /// Something is to be sent among them, of which that turn tells, instead of sleeping.
    sends: bool,
    /// Memory for that list while this turn's are tried.
    spare_hot: Vec<Token>,
    /// Streams that have had their share of a turn, and go on behind whoever has had none.
    busy: Vec<Token>,
    yielding: Yielding,
    /// To come home cancelled in the next turn.
    cancelled: Vec<Token>,
    /// Memory for those of them that have come home meanwhile.
    come: Vec<Token>,
    /// Receives (and accepts) that wait for descriptors to come free, or for the kernel to have memory.
    starved: Vec<Token>,
    unseen: Unseen,
    /// The number of this turn, or between two of them of the next: what a look brings is part of that.
    turn: u32,
    events: Vec<Event>,
    /// The last look brought as many events as it could: there may be more.
    more: bool,
}

/// What is known of one descriptor.
struct Watch {
    /// False once a receive has found it empty, until the next event.
    readable: bool,
    /// The other end is closed.
    hung_up: bool,
    /// Who waits for an event.
    parked: Parked,
    /// Writing as well, since somebody waits for it.
    what: Watched,
}

/// Those who wait for an event: mostly one, a receive.
#[derive(Default)]
struct Parked {
    first: Option<Token>,
    others: Vec<Token>,
}

impl Parked {
    fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }

    fn push(&mut self, token: Token) {
        if self.is_empty() {
            self.first = Some(token);
        } else {
            self.others.push(token);
        }
    }

    fn remove(&mut self, token: Token) {
        self.first = self.first.filter(|parked| *parked != token);
        self.others.retain(|parked| *parked != token);
    }

    fn iter(&self) -> impl Iterator<Item = Token> {
        self.first.iter().chain(&self.others).copied()
    }
}

enum Attempt {
    Home(Outcome),
    /// Not yet: wait for an event, one of arriving or one of either kind.
    Park(Fd, Watched),
    /// Not yet: wait for descriptors.
    Starve,
    /// A message, and perhaps another when this one has been answered.
    Again,
    /// All that one turn may bring, and perhaps more.
    Burst,
}

impl Epoll {
    pub(crate) fn new(ground: Ground, bell: Arc<Bell>) -> io::Result<Epoll> {
        let epoll = sys::epoll_create()?;
        sys::epoll_add_level(epoll.as_fd(), bell.eventfd().as_fd(), BELL)?;
        let timer = match ground.place {
            SleepPlace::OwnTurn => None,
            SleepPlace::HostLoop => {
                let timer = sys::timer_create()?;
                sys::epoll_add_level(epoll.as_fd(), timer.as_fd(), TIMER)?;
                Some(timer)
            }
        };
        Ok(Epoll {
            ground,
            epoll,
            bell,
            timer,
            alarm: Alarm::default(),
            watches: Slab::new(),
            hot: Vec::new(),
            sends: false,
            spare_hot: Vec::new(),
            busy: Vec::new(),
            yielding: Yielding::default(),
            cancelled: Vec::new(),
            come: Vec::new(),
            starved: Vec::new(),
            unseen: Unseen::default(),
            turn: 1,
            events: Vec::new(),
            more: false,
        })
    }

    pub(crate) fn submit(&mut self, token: Token, requests: &mut Requests) {
        match requests.find(token) {
            Some(Request::Receive { fd, want, .. }) if self.is_known_to_be_empty(fd, *want) => {
                let fd = fd.clone();
                if self.park(token, &fd, Watched::Reading).is_ok() {
                    return;
                }
            }
            Some(Request::Send { .. }) => self.sends = true,
            _ => {}
        }
        self.hot.push(token);
    }

    /// Whether a receive has found nothing there, and what has come since makes an event: where it was not
    /// watched yet, as soon as it is.
    fn is_known_to_be_empty(&self, fd: &Fd, want: Want) -> bool {
        match fd.watch().get() {
            Some(number) => !self.watches[number as usize].readable,
            None => want.looked,
        }
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        self.cancelled.push(token);
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.hot.is_empty() || !self.busy.is_empty()
    }

    pub(crate) fn comes_back_at_once(&self) -> bool {
        self.sends
    }

    pub(crate) fn take_now(&mut self, fd: &Fd, room: Room) -> Now {
        let found = receive_now(&self.ground, fd, room);
        // As after a receive in vain: what comes now makes an event.
        if let (Now::Empty, Some(number)) = (&found, fd.watch().get()) {
            self.watches[number as usize].readable = false;
        }
        found
    }

    pub(crate) fn forget(&mut self, fd: &Fd) {
        let Some(number) = fd.watch().take() else { return };
        let watch = self.watches.remove(number as usize);
        assert!(watch.parked.is_empty(), "a descriptor is forgotten after its last token is home");
        // Other processes may hold the same open file: only removal ends the events.
        let _ = sys::epoll_remove(self.epoll.as_fd(), fd.as_fd());
    }

    pub(crate) fn turn(
        &mut self,
        requests: &mut Requests,
        sleep: Sleep,
        home: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let result = self.go_round(requests, sleep, home);
        self.turn = self.turn.wrapping_add(1);
        result
    }

    fn go_round(
        &mut self,
        requests: &mut Requests,
        sleep: Sleep,
        home: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.ground.budget.turn();
        self.bring_home_cancelled(requests, home);
        if !self.starved.is_empty() && self.ground.budget.has_room() {
            self.hot.append(&mut self.starved);
        }
        let busy = self.busy.len();
        let mut tried = std::mem::replace(&mut self.hot, std::mem::take(&mut self.spare_hot));
        match std::mem::take(&mut self.sends) {
            true => self.attempt_each(&tried, requests, home),
            false => tried.iter().for_each(|token| self.attempt(*token, requests, home)),
        }
        tried.clear();
        self.spare_hot = tried;

        // With something to report, the look at epoll can wait a turn or two; but not for ever, or one busy
        // socket would starve the others.
        let mut sleep = sleep;
        if !home.is_empty() || self.goes_on() {
            // More than it could show were ready when it last looked.
            if !self.more && busy == 0 && self.unseen.may_wait(home.len()) {
                return Ok(());
            }
            sleep = Sleep::Not;
        }
        self.unseen = Unseen::default();
        if !self.starved.is_empty() {
            sleep = sleep.at_most(STARVED_RETRY);
        }
        self.wait(sleep)?;
        if sleep != Sleep::Not {
            self.ground.budget.slept();
        }
        self.see(requests, home);
        if busy > 0 && !self.yielding.yields(!home.is_empty()) {
            self.go_on_with_the_busy(busy, requests, home);
        }
        Ok(())
    }

    /// Streams that had more than their share in a turn before: the first so many, as of this turn's begin.
    fn go_on_with_the_busy(&mut self, count: usize, requests: &mut Requests, home: &mut Vec<Completion>) {
        let mut tried = std::mem::replace(&mut self.busy, std::mem::take(&mut self.spare_hot));
        self.busy.extend(tried.drain(count..));
        for token in tried.drain(..) {
            self.attempt(token, requests, home);
        }
        self.spare_hot = tried;
    }

    pub(crate) fn look(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) -> io::Result<bool> {
        self.wait(Sleep::Not)?;
        self.see(requests, home);
        Ok(!home.is_empty() || self.goes_on())
    }

    // -- in a host's loop -------------------------------------------------------------------------------

    /// The epoll itself: readable while it has events that were not fetched, of sockets, bell or timer.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn hand_over(&mut self, first: Option<Instant>) -> io::Result<bool> {
        let first = self.first(first);
        if let (true, Some(moment), Some(timer)) = (self.alarm.is_late_for(first), first, &self.timer) {
            sys::timer_set(timer.as_fd(), moment.saturating_duration_since(self.ground.clock.now()))?;
            self.alarm.set(moment);
        }
        // Bell and timer were drained when epoll showed them, which it does in each turn that finds nothing
        // else. Events that were not fetched are no news to a host that hears of edges only.
        Ok(self.goes_on() || !self.cancelled.is_empty() || self.more)
    }

    pub(crate) fn wants_a_turn(&self, first: Option<Instant>) -> bool {
        self.goes_on() || !self.cancelled.is_empty() || self.alarm.is_late_for(first)
    }

    fn first(&self, first: Option<Instant>) -> Option<Instant> {
        if self.starved.is_empty() {
            return first;
        }
        let retry = self.ground.clock.now() + STARVED_RETRY;
        Some(first.map_or(retry, |first| first.min(retry)))
    }

    // -- looking at epoll -------------------------------------------------------------------------------

    fn wait(&mut self, sleep: Sleep) -> io::Result<()> {
        let result = sys::epoll_wait(self.epoll.as_fd(), sleep.duration(), &mut self.events);
        self.more = self.events.len() == EVENTS_MAX;
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn see(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            if event.data == BELL {
                sys::counter_drain(self.bell.eventfd().as_fd());
                continue;
            }
            if let (TIMER, Some(timer)) = (event.data, &self.timer) {
                sys::counter_drain(timer.as_fd());
                self.alarm.went_off();
                continue;
            }
            // One event of this batch may have led to the forgetting of what the next is about.
            let Some(watch) = self.watches.get_mut(event.data as usize) else { continue };
            // A hang-up or an error is for everybody to look at.
            watch.readable |= event.mask & !ready::WRITE != 0;
            watch.hung_up |= event.mask & ready::ENDED != 0;
            let woken = std::mem::take(&mut watch.parked);
            if event.mask & ready::WRITE != 0 && watch.what == Watched::ReadingAndWriting {
                self.watch_for_reading_only(event.data as usize, &woken, requests);
            }
            for token in woken.iter() {
                self.attempt(token, requests, home);
            }
        }
        self.events = events;
    }

    /// There is room to write: whoever waits for more of it says so again.
    fn watch_for_reading_only(&mut self, number: usize, woken: &Parked, requests: &mut Requests) {
        let Some(fd) =
            woken.iter().find_map(|token| requests.find(token).map(|request| request.fd().clone()))
        else {
            return;
        };
        let what = Watched::Reading;
        if sys::epoll_modify(self.epoll.as_fd(), fd.as_fd(), number as u64, what).is_ok() {
            self.watches[number].what = what;
        }
    }

    fn bring_home_cancelled(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        if self.cancelled.is_empty() {
            return;
        }
        // In order, each of them once: a set would ask for memory each time.
        let mut asked = std::mem::take(&mut self.cancelled);
        asked.sort_unstable();
        asked.dedup();
        let is_asked = |token: &Token| asked.binary_search(token).is_ok();
        self.hot.retain(|token| !is_asked(token));
        self.busy.retain(|token| !is_asked(token));
        self.starved.retain(|token| !is_asked(token));
        // Those that came home when nobody looked, between two turns, have come home.
        let come = home.iter().filter(|completion| completion.last).map(|completion| completion.token);
        self.come.extend(come.filter(is_asked));
        self.come.sort_unstable();
        for token in asked.drain(..) {
            let has_come = self.come.binary_search(&token).is_ok();
            let Some(request) = requests.find(token).filter(|_| !has_come) else { continue };
            let outcome = request.failed(io::Error::from_raw_os_error(errno::ECANCELED));
            if let Some(number) = request.fd().watch().get() {
                self.watches[number as usize].parked.remove(token);
            }
            home.push(Completion { token, outcome, last: true });
        }
        self.come.clear();
        self.cancelled = asked;
    }

    /// Those that leave from the same socket leave together.
    fn attempt_each(&mut self, tokens: &[Token], requests: &mut Requests, home: &mut Vec<Completion>) {
        let mut tokens = tokens;
        while let Some(token) = tokens.first() {
            let from = requests.sending(*token).map(|(fd, _)| fd.clone());
            let together = from.as_ref().map_or(0, |fd| {
                let goes_too = |token: &&Token| {
                    requests.sending(**token).is_some_and(|(other, _)| other.is_clone_of(fd))
                };
                tokens.iter().take(SENT_TOGETHER_MAX).take_while(goes_too).count()
            });
            let sent = match from {
                Some(fd) if together > 1 => {
                    let envelopes = tokens[..together].iter().filter_map(|token| requests.sending(*token));
                    envelope::send_together(fd.as_fd(), envelopes.map(|(_, envelope)| envelope))
                }
                _ => Ok(0),
            };
            let mut sent_with = |token: &Token, result| {
                home.push(Completion { token: *token, outcome: Outcome::Sent(result), last: true });
            };
            let done = match sent {
                Ok(gone) => {
                    for token in &tokens[..gone] {
                        let length = requests.sending(*token).map_or(0, |(_, envelope)| envelope.length());
                        sent_with(token, Ok(length));
                    }
                    gone
                }
                // A queue that is full is so for all of them.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokens[..together].iter().for_each(|token| sent_with(token, Err(error.kind().into())));
                    together
                }
                Err(_) => 0,
            };
            // What else keeps the next from going is found out by trying each alone.
            let alone = if done == 0 { together.max(1) } else { 0 };
            tokens[..alone].iter().for_each(|token| self.attempt(*token, requests, home));
            tokens = &tokens[done + alone..];
        }
    }

    fn attempt(&mut self, token: Token, requests: &mut Requests, home: &mut Vec<Completion>) {
        let Some(request) = requests.find(token) else { return };
        let attempt = match request {
            Request::Send { fd, envelope, .. } => Attempt::Home(Outcome::Sent(envelope.send(fd.as_fd()))),
            Request::Receive { fd, want, share } => self.receive(token, fd, *want, share, home),
            Request::Ready { fd, interest } => match sys::poll_now(fd.as_fd(), *interest) {
                Ok(0) if *interest & ready::WRITE != 0 => {
                    Attempt::Park(fd.clone(), Watched::ReadingAndWriting)
                }
                Ok(0) => Attempt::Park(fd.clone(), Watched::Reading),
                result => Attempt::Home(Outcome::Ready(result)),
            },
            Request::Accept { fd } => match sys::accept(fd.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Attempt::Park(fd.clone(), Watched::Reading)
                }
                Err(error) if out_of_descriptors(&error) => Attempt::Starve,
                result => Attempt::Home(Outcome::Accepted(result)),
            },
        };
        match attempt {
            Attempt::Home(outcome) => home.push(Completion { token, outcome, last: true }),
            Attempt::Starve => self.starved.push(token),
            Attempt::Again => self.hot.push(token),
            Attempt::Burst => self.busy.push(token),
            Attempt::Park(fd, what) => {
                if let Err(error) = self.park(token, &fd, what)
                    && let Some(request) = requests.find(token)
                {
                    home.push(Completion { token, outcome: request.failed(error), last: true });
                }
            }
        }
    }

    fn receive(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        share: &mut Share,
        home: &mut Vec<Completion>,
    ) -> Attempt {
        if fd.watch().get().is_some_and(|number| !self.watches[number as usize].readable) {
            return Attempt::Park(fd.clone(), Watched::Reading);
        }
        let mut taken = 0;
        while share.is_left(self.turn, want) {
            match receive_now(&self.ground, fd, want.room) {
                Now::Arrived(arrival) if want.many && !arrival.nothing => {
                    let length = arrival.message.length();
                    share.took(length);
                    home.push(Completion { token, outcome: Outcome::Arrived(Ok(arrival)), last: false });
                    taken += 1;
                    if taken > 1 {
                        share.behind.found(length < BURST_BYTES_MAX);
                    }
                    // One receive has to find it empty. The next turn's may find what comes while this is
                    // answered.
                    if share.is_left(self.turn, want) && !share.behind.is_due() {
                        return Attempt::Again;
                    }
                }
                Now::Arrived(mut arrival) => {
                    let hung_up =
                        fd.watch().get().is_some_and(|number| self.watches[number as usize].hung_up);
                    arrival.hung_up = hung_up && arrival.nothing && tells_the_end(fd, want);
                    return Attempt::Home(Outcome::Arrived(Ok(arrival)));
                }
                Now::Starved => return Attempt::Starve,
                Now::Empty => {
                    if taken == 1 {
                        share.behind.found(false);
                    }
                    if let Some(number) = fd.watch().get() {
                        self.watches[number as usize].readable = false;
                    }
                    return Attempt::Park(fd.clone(), Watched::Reading);
                }
                Now::Failed(error) => return Attempt::Home(Outcome::Arrived(Err(error))),
            }
        }
        self.unseen.is_due();
        Attempt::Burst
    }

    fn park(&mut self, token: Token, fd: &Fd, what: Watched) -> io::Result<()> {
        let number = match fd.watch().get() {
            Some(number) => number as usize,
            None => {
                // Readable until a receive has found it empty *after* it was added: what arrived between the
                // two made no event. Adding a readable descriptor does make one, at once.
                let number = self.watches.insert(Watch {
                    readable: true,
                    hung_up: false,
                    parked: Parked::default(),
                    what,
                });
                if let Err(error) = sys::epoll_add(self.epoll.as_fd(), fd.as_fd(), number as u64, what) {
                    self.watches.remove(number);
                    return Err(error);
                }
                fd.watch().set(Some(u32::try_from(number).expect("fewer than 2^32 descriptors")));
                number
            }
        };
        let watch = &mut self.watches[number];
        if what == Watched::ReadingAndWriting && watch.what != what {
            sys::epoll_modify(self.epoll.as_fd(), fd.as_fd(), number as u64, what)?;
            watch.what = what;
        }
        watch.parked.push(token);
        Ok(())
    }
}

/// What a receive that does not wait found.
pub(crate) enum Now {
    Arrived(Arrival),
    Empty,
    /// For want of descriptors, or of the kernel's memory.
    Starved,
    Failed(io::Error),
}

impl Now {
    /// The same, with what the driver was told before.
    #[cfg(uring)]
    pub(super) fn told_of_the_end(self, hung_up: bool) -> Now {
        match self {
            Now::Arrived(arrival) => Now::Arrived(Arrival { hung_up, ..arrival }),
            other => other,
        }
    }
}

/// Whether what looks like the end, of a peer that had hung up before, is the end: another holder may have
/// told the kernel to name no senders, and then it may be an empty packet, in front of others.
pub(super) fn tells_the_end(fd: &Fd, want: Want) -> bool {
    want.unnamed || !want.strange || sys::names_senders(fd.as_fd())
}

/// Receives one message with a plain system call, into a buffer of the pool or, with none free, into one of
/// its own.
///
/// It has room for as many descriptors as a message can carry, or as the budget has left, whatever the socket
/// wants: those for which there is no room the kernel closes during the call, and if the last reference to a
/// socket that lingers is among them this thread waits with it. What is too much is sorted out afterwards.
pub(super) fn receive_now(ground: &Ground, fd: &Fd, room: Room) -> Now {
    receive(ground, fd, room, PACKET_BYTES_MAX, fd.landing().as_ref())
}

/// The same, and of a stream no more than so many bytes. Nothing lands: for whoever keeps what it has
/// received for longer than until the turn ends.
#[cfg(feature = "script")]
pub(super) fn receive_at_most(ground: &Ground, fd: &Fd, room: Room, bytes_max: usize) -> Now {
    receive(ground, fd, room, bytes_max, None)
}

fn receive(ground: &Ground, fd: &Fd, room: Room, bytes_max: usize, landing: Option<&Landing>) -> Now {
    let wanted = usize::from(room.descriptors) + usize::from(room.pidfd);
    let granted = ground.budget.room(wanted);
    if granted == 0 && wanted > 0 {
        return Now::Starved;
    }
    let room = Room { descriptors: granted.min(DESCRIPTORS_MAX) as u16, pidfd: room.pidfd };
    let Some(number) = ground.pool.take() else {
        // What comes now is the next, and has not landed.
        if let Some(landing) = landing {
            landing.expect_nothing();
        }
        return receive_apart(ground, fd, room, bytes_max);
    };
    receive_into(ground, number, bytes_max, room, |bytes| match landing {
        Some(landing) => landing.receive(bytes, |place| envelope::receive_in(fd.as_fd(), place, room)),
        None => envelope::receive(fd.as_fd(), bytes, room),
    })
}

/// How many descriptors have to be free for a receive that sleeps, besides those it has room for: what other
/// threads open meanwhile it does not notice.
#[cfg(uring)]
const SPARE_ASLEEP: usize = 2 * DESCRIPTORS_MAX;

/// Receives one message by a call that sleeps until there is one, into a buffer of the pool, or where it is
/// to land. `Empty` if it does not, or was interrupted, or where it had better not sleep like this: with few
/// descriptors left, or no buffer.
#[cfg(uring)]
pub(super) fn receive_asleep(
    ground: &Ground,
    fd: &Fd,
    room: Room,
    receive: impl FnOnce(Place<'_>, Room) -> io::Result<Taken>,
) -> Now {
    let room = Room { descriptors: DESCRIPTORS_MAX as u16, pidfd: room.pidfd };
    if !ground.budget.covers(DESCRIPTORS_MAX + SPARE_ASLEEP) {
        return Now::Empty;
    }
    let Some(number) = ground.pool.take() else { return Now::Empty };
    receive_into(ground, number, PACKET_BYTES_MAX, room, |bytes| match fd.landing() {
        Some(landing) => landing.receive(bytes, |place| receive(place, room)),
        None => receive(Place::one(bytes), room),
    })
}

/// Receives by this call.
#[inline]
fn receive_into(
    ground: &Ground,
    number: u16,
    bytes_max: usize,
    room: Room,
    receive: impl FnOnce(&mut [u8]) -> io::Result<Taken>,
) -> Now {
    let mut lease = ground.pool.lend(number, 0..bytes_max);
    match receive(lease.bytes_mut()) {
        // Taken apart here, and not handed on: to move it from hand to hand takes as long as all else.
        Ok(Taken { length, landed, control, bytes_lost, control_lost: false }) if length > 0 => {
            lease.keep_head(length - landed, landed);
            ground.budget.took(control.descriptors.len() + usize::from(room.pidfd));
            let message = Received::new(Payload::Lent(lease), control);
            Now::Arrived(Arrival { message, bytes_lost, control_lost: false, nothing: false, hung_up: false })
        }
        Ok(taken) => {
            lease.keep_head(taken.length - taken.landed, taken.landed);
            arrived(ground, Payload::Lent(lease), room, taken)
        }
        Err(error) => failed(error),
    }
}

/// The same, into memory of its own.
#[inline(never)]
fn receive_apart(ground: &Ground, fd: &Fd, room: Room, bytes_max: usize) -> Now {
    let mut bytes = vec![0; bytes_max];
    match envelope::receive(fd.as_fd(), &mut bytes, room) {
        Ok(taken) => {
            bytes.truncate(taken.length);
            // It may wait for long, and is counted by its length.
            bytes.shrink_to_fit();
            arrived(ground, Payload::Owned(bytes), room, taken)
        }
        Err(error) => failed(error),
    }
}

#[inline(never)]
fn arrived(ground: &Ground, payload: Payload, room: Room, taken: Taken) -> Now {
    let Taken { length, control, bytes_lost, control_lost, .. } = taken;
    ground.budget.took(control.descriptors.len() + usize::from(room.pidfd));
    if control_lost {
        // Others have opened descriptors meanwhile, or lowered the limit.
        ground.budget.measure();
    }
    let nothing = length == 0 && control.is_empty();
    let mut message = Received::new(payload, control);
    if length == 0 {
        message.detach();
    }
    Now::Arrived(Arrival { message, bytes_lost, control_lost, nothing, hung_up: false })
}

/// A connection waits in the listener's queue until a descriptor comes free.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(errno::EMFILE | errno::ENFILE))
}

/// Of the kernel's, which may have some a little later.
fn out_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(errno::ENOBUFS | errno::ENOMEM))
}

#[inline(never)]
fn failed(error: io::Error) -> Now {
    match error.kind() {
        io::ErrorKind::WouldBlock => Now::Empty,
        // A signal between two messages; the queue has not been looked at.
        io::ErrorKind::Interrupted => Now::Empty,
        // It slept, and was ended like this. No address of ours is bad otherwise.
        _ if error.raw_os_error() == Some(errno::EFAULT) => Now::Empty,
        // What is queued stays there until the kernel has what it takes.
        _ if out_of_descriptors(&error) || out_of_memory(&error) => Now::Starved,
        _ => Now::Failed(error),
    }
}
