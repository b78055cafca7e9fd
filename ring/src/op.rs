//! Who waits for what: the tokens that are away, a lane of letters and an inbox for each socket, and those
//! who asked.
//!
//! A slot (`request.rs`) owns what the kernel may touch; this table owns who is to be told. Dropping a future
//! moves nothing: a send that is away stays away and is forgotten when it comes home, a receive belongs to
//! its socket. Nothing here runs user code, but for a protocol's reader of messages where they arrive, which
//! must not use the reactor: wakers are collected, and woken (or dropped) by whoever called, when nothing is
//! borrowed any more.

use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::beside::LARGE_PACKET_BYTES_MAX;
use crate::budget::Budget;
use crate::buffer::Pool;
use crate::clock::Clock;
use crate::closer;
use crate::driver::{Driver, Ground, Now, Sleep, child};
use crate::envelope::{Envelope, Otherwise, PIECES_SENT_AT_ONCE_MAX, Room};
use crate::error::{ReceiveError, SendError};
use crate::fd::{DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, Fd, Kind, Shell, discard};
use crate::message::{Fds, Message, PACKET_BYTES_MAX, Received};
use crate::reader::{Reader, Reading, Wakes};
use crate::request::{
    Arrival, BURST_BYTES_MAX, BURST_MAX, Completion, Outcome, Request, Requests, Token, Want,
};
use crate::spare::{Line, Queue, Spare};
use crate::stats::Stats;
use crate::sys::{self, Half, SocketOption, errno, ready};
use crate::task::{Asker, Sleeper};
use crate::timer::Timers;

/// A socket whose owner does not receive may have so many messages waiting before its stream is stopped …
const BACKLOG_MESSAGES_MAX: usize = 64;

/// … or so many bytes.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

/// The most memory, in bytes, that messages take which wait in a socket whose owner does not receive: about
/// 1.3 MiB. What one turn brings comes on top of what stops the stream, and one message more while it is cut
/// to its length.
pub const WAITING_BYTES_MAX: usize = BACKLOG_BYTES_MAX + BURST_BYTES_MAX + 2 * PACKET_BYTES_MAX;

/// A full queue on an end that others hold too is tried again after this long, at first: the kernel says
/// "writable" only when three quarters are free, and newcomers can take every slot before that.
const RETRY_FIRST: Duration = Duration::from_millis(1);

/// The longest pause between two such attempts.
const RETRY_LAST: Duration = Duration::from_millis(32);

/// How long a closed socket may hold back its last messages for a peer that does not receive.
const CLOSING_MAX: Duration = Duration::from_secs(10);

/// How often a queue is looked into for one message before others have their turn.
const LOOKS_MAX: usize = 16;

/// How many messages are taken between two turns by those who look for themselves.
const TAKEN_HERE_MAX: u32 = 16;

/// And how many where many wait together: as many as leave together.
const TAKEN_TOGETHER_MAX: u32 = 32;

/// Who sleeps in the very socket that is asked looks there first only where that is likely to find something.
/// That is found out by a look after so many sleeps …
const SLEEPS_BEFORE_A_LOOK: u8 = 32;

/// … and believed until so many looks in a row were in vain. One is at the end of each queue, and one behind
/// a message that came ahead of the others.
const LOOKS_IN_VAIN_MAX: u8 = 4;

/// How many [pieces](crate::Socket::send_piece) all sockets of a reactor [take](crate::Socket::take_piece)
/// between two of its turns, without waiting for one: 2. With the one that each socket has in its turn these
/// are as many as fill the kernel's queue at the usual SO_SNDBUF. Everybody else waits for no more than
/// that.
pub const PIECES_AT_ONCE_MAX: usize = 2;

/// How many letters of one socket are sent with plain calls in one turn before others have theirs.
const LETTERS_MAX: usize = 16;

/// So many sockets with something to send in one turn are each sent to with a plain call. For more of them
/// one enter of the ring is cheaper than as many system calls.
const DIRECT_SENDS_MAX: usize = 8;

/// So many sockets that are let go of between two sleeps are closed at once: what can be gained by waiting
/// grows with their number, and whoever lets go of a few may expect to see them gone.
const CLOSED_AT_ONCE_MAX: u8 = 4;

/// Where there were more there will be more again, and none is closed at once: until so many sleeps had only
/// a few before them.
const FEW_BEFORE_MAX: u8 = 4;

/// So many sockets that were let go of may wait to be closed together: as many as somebody connects at once,
/// and few beside what else a process has open.
const RETIRED_MAX: usize = 32;

/// … and no longer than this. Longer than a tick of the kernel's clock, so that a sleep before it need not
/// program a timer.
const RETIRED_TIME_MAX: Duration = Duration::from_millis(20);

/// So many sockets are given to the threads that close them as they come: whoever lets go of a few may expect
/// to see them gone. The count begins anew when none came between two sleeps. In a flood of them there is no
/// time for the threads' being woken each time.
const ELSEWHERE_AT_ONCE_MAX: u8 = 8;

/// So many of those that follow are given to them together, if no sleep comes before. With as
/// many as may wait a thread that shares the CPU ran for a quarter of a millisecond in front of everybody.
const ELSEWHERE_TOGETHER_MAX: usize = 8;

/// Envelopes kept to be used again, so that a message costs no allocation …
const SPARE_ENVELOPES_MAX: usize = 32;

/// … unless they have grown larger than this, in bytes.
const SPARE_BYTES_MAX: usize = 4096;

/// Handles kept to be used again, for the same reason.
const SPARE_SHELLS_MAX: usize = 64;

/// How many turns are taken for what is still to be sent, by a reactor that is dropped or a `block_on` that
/// ends.
pub(crate) const LAST_TURNS_MAX: usize = 1024;

/// Everything of a reactor that is borrowed together.
pub(crate) struct Core {
    pub(crate) driver: Driver,
    pub(crate) requests: Requests,
    pub(crate) timers: Timers,
    pub(crate) stats: Stats,
    pool: Rc<Pool>,
    budget: Rc<Budget>,
    clock: Clock,
    /// For each slot of `requests`, who asked.
    owners: Vec<Owner>,
    channels: Slab<Channel>,
    waiters: Slab<Waiter>,
    /// Channels with letters to submit in the next turn.
    dirty: Vec<usize>,
    /// How many letters are with the driver: one of each lane at most.
    letters_away: usize,
    /// Channels that wait for a full queue on the clock.
    retrying: Vec<(Instant, usize)>,
    /// Closed channels with letters still to go.
    closing: Vec<(Instant, usize)>,
    /// Let go of, and not closed yet.
    retired: Vec<Retired>,
    /// Since when there are some.
    retired_since: Option<Instant>,
    /// When the threads that close were last given several together, of which some may still wait.
    given_since: Option<Instant>,
    /// An executor takes turns until something ends, and then sees to it that nothing stays open.
    driven: bool,
    /// How many of those that could wait were let go of since the last sleep: no more than one beyond those
    /// that are closed at once.
    let_go: u8,
    /// Before how many more sleeps there may be only a few, until some are closed at once again.
    many_expected: u8,
    /// How many were given to other threads as they came.
    given_at_once: u8,
    /// Some of them came since the last sleep.
    given_awake: bool,
    /// Posts that could not be sent, of which somebody wants to be told: of which channel, and under which
    /// number.
    failed: Vec<(usize, u64, SendError)>,
    /// How often a turn was to sleep. Begins anew after the last number, where nothing is lost by two sockets
    /// that look of the same time.
    sleeps: u16,
    home: Vec<Completion>,
    /// Memory for the queues of those channels that are in use.
    spare_letters: Spare<Letter>,
    spare_arrivals: Spare<Result<Received, ReceiveError>>,
    /// Handles without their descriptors.
    spare_shells: Vec<Shell>,
    /// Empty envelopes.
    // Boxed as they are in use: the kernel is given what is in the box, which never moves.
    #[allow(clippy::vec_box)]
    spare_envelopes: Vec<Box<Envelope>>,
    hurried: bool,
    /// The last turn before which a message went at once that others may overtake.
    first_went: Option<u64>,
    /// Messages taken since the last turn by those who looked for themselves.
    taken_here: u32,
    /// One look of those who wait together was in vain since the last turn: the others would be, too.
    unanswered: bool,
    /// And pieces of something larger.
    pieces_taken: usize,
    /// Pieces sent since the last turn that did not wait for one.
    pieces_sent: usize,
}

/// What one socket has going on.
struct Channel {
    fd: Fd,
    kind: Kind,
    /// Nobody else holds this end: it may be shut down.
    private: bool,
    /// One end of a pair that was made for this channel.
    made_here: bool,
    /// It came from somebody, or was shared: whoever that was may hold it still.
    given: bool,
    /// An end of a connection and nothing else: without a name that others could want, and no listener.
    nameless: bool,
    /// One receive brings messages until it is asked home.
    many: bool,
    /// Messages of one turn.
    burst: u8,
    room: Room,
    credentials: Credentials,
    lane: Lane,
    inbox: Inbox,
    /// Connections whose taker went away before they came, which few sockets ever have.
    accepted: Queue<OwnedFd>,
    /// Tokens that are neither the lane's nor the inbox's.
    others: u32,
    closed: bool,
    /// Shut down both ways, here or because the other end is closed.
    shut: bool,
    travels: Travels,
    /// The count of sleeps when it came.
    since: u16,
    /// Who reads what arrives before anybody is woken for it.
    reader: Option<Weak<dyn Reader>>,
}

/// A socket that was let go of soon after it came, and has been shut down: its peer knows. What is left is to
/// close it, which costs the kernel a search for garbage, on another CPU, for as long as a descriptor is in
/// flight anywhere. So that waits until those are likely to have arrived.
struct Retired {
    fd: OwnedFd,
    closing: Closing,
    until: Until,
}

/// Who closes a retired socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Whoever retired it, after a look whether anything is in it.
    Here { credentials_asked: bool },
    /// The threads, which are woken once for all that are given to them together: each time takes longer than
    /// what they do, and where they share a CPU they run in front of whoever has woken them.
    Elsewhere,
}

/// When a retired socket is closed, at the latest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Before the next sleep: it came from a queue that others of its kind may be in, and before a sleep that
    /// queue has been emptied.
    Sleeping,
    /// After the next sleep: its other end was sent away just now, and whoever is to receive it has run when
    /// something wakes us.
    Awake,
}

/// Whether a socket goes to its peer, inside its own last message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Travels {
    No,
    /// With the last letter.
    Soon,
    /// Others have it now: it must not be shut down any more, and to close it here ends nothing.
    Gone,
}

/// SO_PASSCRED, which belongs to the open description and so to all its holders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Credentials {
    NotAsked,
    /// By us: to be undone when the descriptor is given back.
    AskedHere,
    /// By somebody before us, who counts on it.
    AskedBefore,
    /// Nobody wants to know who sends. They are asked for when something may be the end.
    Forgone,
}

impl Credentials {
    fn are_settled(self) -> bool {
        self != Credentials::NotAsked
    }

    fn are_asked(self) -> bool {
        matches!(self, Credentials::AskedHere | Credentials::AskedBefore)
    }
}

/// Letters on their way out, in order; one at a time.
#[derive(Default)]
struct Lane {
    away: Option<Token>,
    current: Option<Slip>,
    waiting: Line<Letter>,
    dirty: bool,
    /// The queue was full: nothing is submitted until it is writable or the clock says try.
    blocked: bool,
    /// The wait for the queue to be writable. It may outlast the block, which the clock can end too.
    unblock: Option<Token>,
    /// How many attempts in a row have found the queue full.
    attempts: u32,
    /// The other end is gone, for good.
    broken: bool,
    /// SO_SNDBUF has been raised for the letter that goes first.
    raised: bool,
}

/// How a letter goes.
#[derive(Clone, Copy)]
enum Way {
    /// With a system call of its own.
    Direct,
    /// Through the driver, with all the others of the turn.
    Submitted,
}

struct Letter {
    envelope: Box<Envelope>,
    slip: Slip,
}

/// Who waits, as small as what is known of a letter can be: each idle socket has a place for one. One more
/// than the key, so that nobody takes no more than somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Number(NonZeroU32);

/// What is to happen when a letter has gone, or could not.
struct Slip {
    waiter: Option<Number>,
    /// Success is told to nobody; no completion is wanted.
    silent: bool,
    /// More may be appended while it waits.
    open: bool,
}

#[derive(Default)]
struct Inbox {
    away: Option<Token>,
    arrived: Queue<Result<Received, ReceiveError>>,
    bytes: usize,
    /// Somebody asked for a message that has not come.
    wanted: bool,
    /// There are posts that have failed, of which somebody is to be told.
    failed: bool,
    sleeper: Option<Sleeper>,
    ended: bool,
    /// Asked home so that the descriptor can be given away: not armed again unless somebody receives.
    leaving: bool,
    /// Zero bytes without control data, so many times in a row.
    nothings: u8,
    /// The stream was stopped because nobody takes what it brings.
    stopped: bool,
    cancelled: bool,
    /// How often the socket was glanced at in a row, and something was there each time.
    glances: u8,
    /// How often it was slept in without a look before, since the last one.
    unlooked: u8,
    /// How many looks may be in vain from here on until it is slept in without one.
    looks_left: u8,
}

#[derive(Clone, Copy)]
struct Owner {
    channel: u32,
    role: Role,
}

#[derive(Clone, Copy)]
enum Role {
    Lane,
    Inbox,
    Unblock,
    Waiter(Number),
}

/// Somebody who asked for one thing and will come back for the answer.
struct Waiter {
    sleeper: Option<Sleeper>,
    state: WaiterState,
    channel: usize,
}

enum WaiterState {
    Waiting(Option<Token>),
    Done(Done),
    Abandoned,
    /// Whoever asked does not wait any more, and the message goes out all the same.
    LetGo,
}

/// What a waiter is told.
pub(crate) enum Done {
    Sent(Result<(), SendError>),
    Ready(io::Result<u32>),
    Accepted(io::Result<OwnedFd>),
}

/// What became of a message that was to go at once.
pub(crate) enum AtOnce {
    Gone,
    /// The waiter, if one was wanted, is told how it goes.
    Queued(Option<usize>),
}

/// How somebody waits who looks first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// For what comes whatever comes to others.
    Alone,
    /// For one of many that come together: where one look is in vain the others would be.
    Together,
}

/// What a look for one message found.
pub(crate) enum OneTaken {
    Here(Result<Received, ReceiveError>),
    Nothing,
    /// There may be one, but no descriptor is left for what it brings.
    Starved,
}

/// Who is to be woken, and whose waker to be dropped, when nothing is borrowed.
#[derive(Default)]
pub(crate) struct Woken {
    pub(crate) wake: Vec<Sleeper>,
    pub(crate) drop: Vec<Sleeper>,
}

impl Core {
    pub(crate) fn new(driver: Driver, ground: Ground) -> Core {
        let Ground { pool, budget, clock, .. } = ground;
        Core {
            driver,
            requests: Requests::default(),
            timers: Timers::default(),
            stats: Stats::default(),
            pool,
            budget,
            clock,
            owners: Vec::new(),
            channels: Slab::new(),
            waiters: Slab::new(),
            dirty: Vec::new(),
            letters_away: 0,
            retrying: Vec::new(),
            closing: Vec::new(),
            retired: Vec::new(),
            retired_since: None,
            given_since: None,
            driven: false,
            let_go: 0,
            many_expected: 0,
            given_at_once: 0,
            given_awake: false,
            failed: Vec::new(),
            sleeps: 0,
            home: Vec::new(),
            spare_letters: Spare::default(),
            spare_arrivals: Spare::default(),
            spare_shells: Vec::new(),
            spare_envelopes: Vec::new(),
            hurried: false,
            first_went: None,
            taken_here: 0,
            unanswered: false,
            pieces_taken: 0,
            pieces_sent: 0,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let slept_in_receives = self.driver.slept_in_receives();
        Stats { receives_starved: self.budget.starved(), slept_in_receives, ..self.stats }
    }

    // -- channels ---------------------------------------------------------------------------------------

    /// A handle to a descriptor that was made here, or is to be closed where it stands.
    pub(crate) fn hold(&mut self, fd: OwnedFd) -> Fd {
        match self.spare_shells.pop() {
            Some(shell) => shell.hold(fd),
            None => Fd::ours(fd),
        }
    }

    pub(crate) fn open(&mut self, fd: Fd, kind: Kind, private: bool) -> usize {
        self.channels.insert(Channel {
            fd,
            kind,
            private,
            made_here: false,
            given: !private,
            nameless: false,
            many: false,
            burst: BURST_MAX as u8,
            room: Room { descriptors: DESCRIPTORS_DEFAULT as u16, pidfd: false },
            credentials: Credentials::NotAsked,
            lane: Lane::default(),
            inbox: Inbox::default(),
            accepted: Queue::new(),
            others: 0,
            closed: false,
            shut: false,
            travels: Travels::No,
            since: self.sleeps,
            reader: None,
        })
    }

    pub(crate) fn set_descriptors_max(&mut self, channel: usize, count: usize) {
        let count = count.min(DESCRIPTORS_MAX) as u16;
        self.channels[channel].room.descriptors = count;
        // The receive that is away has control room for all there can be; this is what it waits for.
        if let Some(want) = self.want_away(channel) {
            want.room.descriptors = count;
        }
    }

    pub(crate) fn set_burst(&mut self, channel: usize, messages: u8) {
        self.channels[channel].burst = messages;
        if let Some(want) = self.want_away(channel) {
            want.burst = messages;
        }
    }

    /// What a socket's receive is for, if it is away.
    fn want_away(&mut self, channel: usize) -> Option<&mut Want> {
        match self.requests.find(self.channels[channel].inbox.away?) {
            Some(Request::Receive { want, .. }) => Some(want),
            _ => None,
        }
    }

    pub(crate) fn set_private(&mut self, channel: usize, private: bool) {
        self.channels[channel].private = private;
    }

    pub(crate) fn set_made_here(&mut self, channel: usize) {
        self.channels[channel].made_here = true;
        self.channels[channel].nameless = true;
    }

    pub(crate) fn set_nameless(&mut self, channel: usize) {
        self.channels[channel].nameless = true;
    }

    /// Others hold this end from now on, may change what was set here, and count on what was asked for.
    pub(crate) fn set_shared(&mut self, key: usize) {
        let channel = &mut self.channels[key];
        (channel.made_here, channel.given) = (false, true);
        if channel.credentials.are_asked() {
            channel.credentials = Credentials::AskedBefore;
        }
        if let Some(want) = self.want_away(key) {
            want.strange = true;
        }
    }

    pub(crate) fn ask_for_credentials_again(&mut self, channel: usize) {
        self.channels[channel].ask_for_credentials_again();
    }

    pub(crate) fn set_many(&mut self, channel: usize) {
        self.channels[channel].many = true;
    }

    pub(crate) fn set_reader(
        &mut self,
        channel: usize,
        reader: Weak<dyn Reader>,
    ) -> Option<Weak<dyn Reader>> {
        self.channels[channel].reader.replace(reader)
    }

    pub(crate) fn ask_for_credentials(&mut self, channel: usize) {
        if self.channels[channel].credentials == Credentials::Forgone {
            self.channels[channel].credentials = Credentials::NotAsked;
        }
        self.settle_credentials(channel);
        self.note_whether_named(channel);
    }

    /// Before the first receive.
    pub(crate) fn settle_credentials(&mut self, channel: usize) {
        let channel = &mut self.channels[channel];
        // A child asks nothing of its parent's sockets.
        if !channel.credentials.are_settled() && !self.driver.is_child() {
            channel.ask_for_credentials();
        }
    }

    pub(crate) fn forgo_credentials(&mut self, key: usize) {
        let channel = &mut self.channels[key];
        if channel.credentials == Credentials::AskedHere && !self.driver.is_child() {
            let _ = sys::set_socket_option(channel.fd.as_fd(), SocketOption::PassCredentials, 0);
        }
        // Who has asked before counts on it, and has it so.
        if channel.credentials != Credentials::AskedBefore {
            channel.credentials = Credentials::Forgone;
        }
        self.note_whether_named(key);
    }

    /// For the receive that is away already.
    fn note_whether_named(&mut self, key: usize) {
        let unnamed = self.channels[key].credentials == Credentials::Forgone;
        if let Some(want) = self.want_away(key) {
            want.unnamed = unnamed;
        }
    }

    pub(crate) fn set_pidfd(&mut self, channel: usize) {
        self.channels[channel].room.pidfd = true;
    }

    /// Whether nothing of the socket is away or waiting, neither to go nor to be taken.
    pub(crate) fn is_idle(&self, channel: usize) -> bool {
        let channel = &self.channels[channel];
        channel.lane.is_idle()
            && channel.inbox.away.is_none()
            // What "arrives" in a child is the refusal.
            && (channel.inbox.arrived.is_empty() || self.driver.is_child())
            && channel.accepted.is_empty()
            && channel.others == 0
    }

    /// Asks home what only waits for others: a receive that nobody awaits, a wait for a full queue that has
    /// emptied. What arrives on the way home is kept.
    pub(crate) fn withdraw(&mut self, channel: usize) {
        let channel = &mut self.channels[channel];
        if let Some(token) = channel.inbox.away {
            channel.inbox.leaving = true;
            self.driver.cancel(token);
        }
        if let Some(token) = channel.lane.unblock
            && channel.lane.is_empty()
        {
            self.driver.cancel(token);
        }
    }

    /// Takes an idle channel apart without closing its descriptor.
    pub(crate) fn take_apart(&mut self, channel: usize, woken: &mut Woken) -> Fd {
        assert!(self.is_idle(channel));
        self.forget_failed(channel);
        let channel = self.channels.remove(channel);
        woken.drop.extend(channel.inbox.sleeper);
        self.driver.forget(&channel.fd);
        if channel.credentials == Credentials::AskedHere && !self.driver.is_child() {
            // The next holder may offer control room for descriptors only, and would find credentials in it.
            let _ = sys::set_socket_option(channel.fd.as_fd(), SocketOption::PassCredentials, 0);
        }
        channel.fd
    }

    /// The socket's owner has dropped it. It is closed when its last letter has gone and its last token is
    /// home. Says whether the driver should be asked to submit at once, so that no receive of ours takes what
    /// is meant for others.
    pub(crate) fn close(&mut self, key: usize, woken: &mut Woken) -> bool {
        self.forget_failed(key);
        let channel = &mut self.channels[key];
        channel.closed = true;
        woken.drop.extend(channel.inbox.sleeper.take());
        channel.inbox.arrived = Queue::new();
        std::iter::from_fn(|| channel.accepted.pop_front()).for_each(discard);
        let hurry = channel.inbox.away.is_some() && !channel.private;
        if !channel.lane.is_empty() {
            self.closing.push((self.clock.now() + CLOSING_MAX, key));
        }
        self.advance_close(key);
        hurry
    }

    fn advance_close(&mut self, key: usize) {
        let channel = &mut self.channels[key];
        assert!(channel.closed);
        // The receive first: on an end that others hold too it would take their messages, for as long as our
        // last letters wait.
        if let Some(token) = channel.inbox.away
            && !channel.inbox.cancelled
        {
            channel.inbox.cancelled = true;
            self.driver.cancel(token);
        }
        if !channel.lane.is_empty() {
            return;
        }
        if let Some(token) = channel.lane.unblock {
            self.driver.cancel(token);
        }
        if !channel.is_home() {
            if channel.private && !channel.shut && channel.travels != Travels::Gone {
                // Closing alone is seen by nobody while the driver holds the file; this the peer sees at
                // once.
                channel.shut = true;
                self.driver.shut_down(&channel.fd);
            }
            return;
        }
        let channel = self.channels.remove(key);
        self.driver.forget(&channel.fd);
        self.closing.retain(|(_, closing)| *closing != key);
        self.retire(channel);
    }

    /// Closes the descriptor of a channel that nothing of is away, with whatever lies in its queue.
    fn retire(&mut self, channel: Channel) {
        let Channel {
            fd, private, given, credentials, travels, lane, made_here, nameless, since, shut, ..
        } = channel;
        // A letter that never left may hold this very descriptor.
        drop(lane);
        // Somebody may send this very descriptor; then the message closes it.
        let Ok((fd, shell)) = fd.try_into_parts() else { return };
        keep_shell(&mut self.spare_shells, shell);
        let (received, credentials_asked) = (credentials.are_settled(), credentials.are_asked());
        if self.driver.is_child() {
            // A copy, and mostly not the last: what lies in its queue is for the parent.
            closer::close(fd);
        } else if travels == Travels::Gone {
            closer::retire_connected(fd);
        } else if !private {
            closer::retire_shared(fd);
        } else if received && given {
            // Whoever made it may hold it still, have taken back what was asked for, and so make a packet
            // look like the end in front of what is slow to close. Ended here, closed elsewhere.
            if !shut {
                let _ = sys::shutdown(fd.as_fd(), Half::Both);
            }
            self.close_elsewhere(fd);
        } else if !self.budget.covers(DESCRIPTORS_MAX) {
            closer::queue(fd);
        } else if self.driven
            && nameless
            && since == self.sleeps
            && self.has_descriptors_to_spare()
            && self.is_one_of_many()
        {
            let until = if made_here { Until::Awake } else { Until::Sleeping };
            self.retire_for_now(Retired { fd, closing: Closing::Here { credentials_asked }, until }, shut);
        } else {
            closer::retire(fd, credentials_asked);
        }
    }

    /// Leaves a socket that has been shut down to the threads, together with others where that can wait.
    fn close_elsewhere(&mut self, fd: OwnedFd) {
        let many = self.given_at_once >= ELSEWHERE_AT_ONCE_MAX;
        self.given_at_once += u8::from(!many);
        self.given_awake = true;
        if many && self.driven && self.has_descriptors_to_spare() {
            self.keep_for_now(Retired { fd, closing: Closing::Elsewhere, until: Until::Sleeping });
            let elsewhere = |retired: &&Retired| retired.closing == Closing::Elsewhere;
            if self.retired.iter().filter(elsewhere).count() >= ELSEWHERE_TOGETHER_MAX {
                self.close_those_retired(|retired| elsewhere(&retired));
            }
        } else {
            closer::queue(fd);
        }
    }

    /// Whether this one is one of many.
    fn is_one_of_many(&mut self) -> bool {
        let many = self.let_go >= CLOSED_AT_ONCE_MAX;
        self.let_go = if many { CLOSED_AT_ONCE_MAX + 1 } else { self.let_go + 1 };
        many || self.many_expected > 0
    }

    /// Whether those that wait to be closed are in nobody's way.
    fn has_descriptors_to_spare(&self) -> bool {
        self.budget.covers(DESCRIPTORS_MAX + RETIRED_MAX)
    }

    fn retire_for_now(&mut self, retired: Retired, shut: bool) {
        // Nothing more is sent to it, and whoever has the other end sees that this one is gone.
        if !shut {
            let _ = sys::shutdown(retired.fd.as_fd(), Half::Both);
        }
        self.keep_for_now(retired);
    }

    fn keep_for_now(&mut self, retired: Retired) {
        if self.retired.len() >= RETIRED_MAX {
            self.close_the_retired();
        }
        if self.retired.is_empty() {
            self.retired_since = Some(self.clock.now());
        }
        self.retired.push(retired);
    }

    /// Closes what was let go of.
    pub(crate) fn close_the_retired(&mut self) {
        self.retired_since = None;
        if self.driver.is_child() {
            // Copies, in whose queues this process has nothing to look for.
            self.retired.drain(..).for_each(|retired| closer::close(retired.fd));
        }
        let given = close_retired(self.retired.drain(..), &self.budget);
        self.note_given(given);
    }

    /// One thread was woken for all of them.
    fn note_given(&mut self, given: bool) {
        if given {
            self.given_since = Some(self.clock.now());
        }
    }

    fn close_the_retired_until(&mut self, moment: Until) {
        if self.retired.iter().all(|retired| retired.until == moment) {
            return self.close_the_retired();
        }
        self.close_those_retired(|retired| retired.until == moment);
    }

    fn close_those_retired(&mut self, is_one: impl Fn(&Retired) -> bool) {
        let those = self.retired.extract_if(.., |retired| is_one(retired));
        let given = close_retired(those, &self.budget);
        self.note_given(given);
        // With none left there is no moment to wake up for.
        self.retired_since = self.retired_since.filter(|_| !self.retired.is_empty());
    }

    /// How long a turn may sleep that was to sleep for so long, with what is to be closed before.
    #[inline(never)]
    fn close_before_sleeping(&mut self, sleep: Sleep, taken_here: u32) -> Sleep {
        if !self.budget.covers(DESCRIPTORS_MAX) {
            self.close_the_retired();
        }
        let is_no_sleep = sleep == Sleep::Not || self.driver.comes_back_at_once();
        if is_no_sleep || self.retired.iter().all(|retired| retired.until != Until::Sleeping) {
            return sleep;
        }
        if self.driver.goes_on() || taken_here >= TAKEN_HERE_MAX {
            // What is still in the queue comes first.
            return Sleep::Not;
        }
        self.close_the_retired_until(Until::Sleeping);
        sleep
    }

    /// From here on turns follow until something ends, or no longer; then nothing may stay open. Says what
    /// was so before.
    pub(crate) fn set_driven(&mut self, driven: bool) -> bool {
        self.close_the_retired();
        self.given_at_once = 0;
        self.driver.set_driven(driven);
        std::mem::replace(&mut self.driven, driven)
    }

    // -- sending ----------------------------------------------------------------------------------------

    /// Queues a message. The waiter, if one is wanted, is told how it went.
    pub(crate) fn send(
        &mut self,
        key: usize,
        mut message: Message,
        silent: bool,
        waited: bool,
    ) -> Option<usize> {
        let waiter = waited.then(|| self.wait(key));
        let silent = silent && succeeds_whole(self.channels[key].kind);
        let slip = Slip { waiter: waiter.map(Number::of), silent, open: false };
        let letter = Letter { envelope: self.envelope(&mut message), slip };
        self.spare_letters.push_back(&mut self.channels[key].lane.waiting, letter);
        self.mark_dirty(key);
        waiter
    }

    /// One that holds this message.
    fn envelope(&mut self, message: &mut Message) -> Box<Envelope> {
        match self.spare_envelopes.pop() {
            Some(mut envelope) => {
                envelope.fill(message);
                envelope
            }
            None => Envelope::new(std::mem::take(message)),
        }
    }

    /// A place for somebody who waits.
    fn wait(&mut self, channel: usize) -> usize {
        self.waiters.insert(Waiter { sleeper: None, state: WaiterState::Waiting(None), channel })
    }

    fn count_sent(&mut self, envelope: &Envelope) {
        self.stats.messages_sent += 1;
        self.stats.bytes_sent += envelope.length() as u64;
        self.stats.descriptors_sent += envelope.descriptors().len() as u64;
    }

    /// Queues a message of a few bytes and a piece of others. The waiter is told how it went.
    pub(crate) fn send_piece(
        &mut self,
        key: usize,
        bytes: &[u8],
        whole: Arc<Vec<u8>>,
        piece: Range<usize>,
    ) -> usize {
        let envelope = self.envelope_of_piece(bytes, whole, piece);
        self.queue_waited(key, envelope)
    }

    /// Sends as many of these pieces as go now, and as this turn has left, with one system call. The one
    /// behind them waits. Says how many have gone, and who is told of that one.
    pub(crate) fn send_pieces(
        &mut self,
        key: usize,
        whole: &Arc<Vec<u8>>,
        pieces: &[(&[u8], Range<usize>)],
    ) -> (usize, Option<usize>) {
        let lane = &self.channels[key].lane;
        let share = (PIECES_SENT_AT_ONCE_MAX - self.pieces_sent).min(pieces.len());
        let goes_now = share > 0 && lane.is_idle() && !lane.broken;
        let sent = match goes_now {
            true => self.driver.send_pieces_now(&self.channels[key].fd, whole, &pieces[..share]),
            false => Ok(0),
        };
        let (gone, full) = match sent {
            // Something has kept the next from going, and it is mostly that the queue is full.
            Ok(gone) => (gone, 0 < gone && gone < share),
            // What else it is the next turn finds out.
            Err(error) => (0, error.kind() == io::ErrorKind::WouldBlock),
        };
        self.pieces_sent += gone;
        self.stats.messages_sent += gone as u64;
        let bytes = pieces[..gone].iter().map(|(bytes, piece)| bytes.len() + piece.len());
        self.stats.bytes_sent += bytes.sum::<usize>() as u64;
        let Some((bytes, piece)) = pieces.get(gone) else { return (gone, None) };
        let waiter = self.send_piece(key, bytes, Arc::clone(whole), piece.clone());
        if full {
            self.block(key);
        }
        (gone, Some(waiter))
    }

    fn envelope_of_piece(&mut self, bytes: &[u8], whole: Arc<Vec<u8>>, piece: Range<usize>) -> Box<Envelope> {
        let mut envelope = self.spare_envelope();
        envelope.append(bytes);
        envelope.append_piece(whole, piece);
        envelope
    }

    /// Whoever asked for this letter does not wait any more, and it goes out all the same. If it cannot, what
    /// follows would not make sense.
    pub(crate) fn let_go(&mut self, key: usize, woken: &mut Woken) {
        let waiter = &mut self.waiters[key];
        if let WaiterState::Waiting(Some(_)) = waiter.state {
            // It is away by itself, and its token knows whom to tell.
            waiter.state = WaiterState::LetGo;
            return woken.drop.extend(waiter.sleeper.take());
        }
        let waiter = self.waiters.remove(key);
        woken.drop.extend(waiter.sleeper);
        let Some(Channel { lane, .. }) = self.channels.get_mut(waiter.channel) else { return };
        let slips =
            lane.waiting.with_memory().iter_mut().map(|letter| &mut letter.slip).chain(lane.current.as_mut());
        let number = Some(Number::of(key));
        slips.filter(|slip| slip.waiter == number).for_each(|slip| slip.waiter = None);
    }

    /// Sends now if nothing waits before it, and closes what it carried. What cannot go now is queued, for
    /// the next turn to find out why, and to wait or to tell.
    pub(crate) fn send_at_once(&mut self, key: usize, message: &mut Message, waited: bool) -> AtOnce {
        let channel = &mut self.channels[key];
        if !channel.lane.is_idle() || channel.lane.broken || !succeeds_whole(channel.kind) {
            return AtOnce::Queued(self.send(key, std::mem::take(message), true, waited));
        }
        let mut envelope = self.envelope(message);
        envelope.seal();
        if self.driver.send_now(&self.channels[key].fd, &envelope).is_ok() {
            self.count_sent(&envelope);
            self.keep_envelope(envelope);
            return AtOnce::Gone;
        }
        let waiter = waited.then(|| self.wait(key));
        let slip = Slip { waiter: waiter.map(Number::of), silent: true, open: false };
        self.spare_letters.push_back(&mut self.channels[key].lane.waiting, Letter { envelope, slip });
        self.mark_dirty(key);
        AtOnce::Queued(waiter)
    }

    /// Sends a message that others may overtake: the first of a turn at once, and those after it together, in
    /// the next turn. Whoever is to receive them may run on this CPU, and would in between if each were sent
    /// by itself.
    pub(crate) fn send_in_any_order(&mut self, key: usize, mut message: Message) -> AtOnce {
        let lane = &self.channels[key].lane;
        if !lane.is_idle() || lane.broken || !succeeds_whole(self.channels[key].kind) {
            return AtOnce::Queued(self.send(key, message, false, true));
        }
        let mut envelope = self.envelope(&mut message);
        envelope.seal();
        let turn = self.stats.turns;
        if !self.driver.sends_together() || self.first_went.replace(turn) != Some(turn) {
            if self.driver.send_now(&self.channels[key].fd, &envelope).is_ok() {
                self.count_sent(&envelope);
                self.keep_envelope(envelope);
                return AtOnce::Gone;
            }
            return AtOnce::Queued(Some(self.queue_waited(key, envelope)));
        }
        let request = |fd| Request::Send { fd, envelope, silent: true, prompt: true };
        AtOnce::Queued(Some(self.ask(key, request)))
    }

    /// Queues what could not go, for the next turn to find out why, and to wait or to tell.
    fn queue_waited(&mut self, key: usize, envelope: Box<Envelope>) -> usize {
        let waiter = self.wait(key);
        self.queue_for(key, waiter, envelope);
        waiter
    }

    fn queue_for(&mut self, key: usize, waiter: usize, envelope: Box<Envelope>) {
        let slip = Slip { waiter: Some(Number::of(waiter)), silent: false, open: false };
        self.spare_letters.push_back(&mut self.channels[key].lane.waiting, Letter { envelope, slip });
        self.mark_dirty(key);
    }

    /// A message that others may overtake has gone, or could not: then it waits in the lane.
    fn sent_in_any_order(
        &mut self,
        key: usize,
        waiter: usize,
        envelope: Box<Envelope>,
        result: io::Result<usize>,
        woken: &mut Woken,
    ) {
        let channel = &self.channels[key];
        if result.is_ok() {
            self.count_sent(&envelope);
            self.keep_envelope(envelope);
        } else if !channel.closed && !self.waiters[waiter].is_abandoned() {
            let is_let_go = matches!(self.waiters[waiter].state, WaiterState::LetGo);
            self.waiters[waiter].state = WaiterState::Waiting(None);
            self.queue_for(key, waiter, envelope);
            if is_let_go {
                self.let_go(waiter, woken);
            }
            return;
        }
        let result = result.map(drop).map_err(SendError::from_kernel);
        self.tell(waiter, Done::Sent(result), false, woken);
    }

    /// Sends a last message that holds this very socket, now if it can.
    pub(crate) fn send_inside(&mut self, key: usize, message: &mut Message) {
        self.channels[key].travels = Travels::Soon;
        if let AtOnce::Gone = self.send_at_once(key, message, false) {
            self.channels[key].travels = Travels::Gone;
        }
    }

    /// Sends a last message on a private packet socket that has no channel, with the socket inside, and
    /// closes it. One that cannot go now needs a channel, and goes the way of all last messages.
    pub(crate) fn send_inside_alone(&mut self, fd: OwnedFd, message: &mut Message, woken: &mut Woken) {
        let fd = self.hold(fd);
        message.push_descriptor(fd.clone());
        let mut envelope = self.envelope(message);
        envelope.seal();
        if self.driver.send_now(&fd, &envelope).is_err() {
            let key = self.open(fd, Kind::SeqPacket, true);
            (self.channels[key].given, self.channels[key].travels) = (true, Travels::Soon);
            let slip = Slip { waiter: None, silent: true, open: false };
            self.spare_letters.push_back(&mut self.channels[key].lane.waiting, Letter { envelope, slip });
            self.mark_dirty(key);
            self.close(key, woken);
            return;
        }
        self.count_sent(&envelope);
        self.keep_envelope(envelope);
        let Ok((fd, shell)) = fd.try_into_parts() else { return };
        keep_shell(&mut self.spare_shells, shell);
        closer::retire_connected(fd);
    }

    /// Queues self-delimiting data, in the packet of this turn's earlier posts where it fits.
    #[inline]
    pub(crate) fn post(&mut self, key: usize, parts: &[&[u8]], descriptors: Fds) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let envelope = self.post_parts(key, parts, length, !descriptors.is_empty(), length);
        if !descriptors.is_empty() {
            envelope.attach(descriptors);
        }
    }

    /// As `post`, a head and a message, which loses its descriptors by that; and what becomes of both if the
    /// descriptors cannot be sent.
    pub(crate) fn post_with(
        &mut self,
        key: usize,
        head: &[u8],
        message: &mut Message,
        otherwise: Otherwise<'_>,
    ) {
        let length = head.len() + message.bytes().len();
        let at_most = match otherwise {
            Otherwise::Say(instead) => length.max(instead.len()),
            Otherwise::Tell(_) => length,
        };
        let envelope = self.post_parts(key, &[head, message.bytes()], length, true, at_most);
        envelope.attach(message.take_descriptors());
        envelope.provide(length, otherwise);
    }

    /// As `post`, in a packet of its own; and what is said in its place if it cannot be sent.
    pub(crate) fn post_or(&mut self, key: usize, parts: &[&[u8]], descriptors: Fds, instead: &[u8]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert!((1..=PACKET_BYTES_MAX).contains(&length), "whoever posts keeps to the packet");
        let letter = self.post_apart(key, parts);
        letter.envelope.attach(descriptors);
        letter.envelope.provide(length, Otherwise::Say(instead));
        letter.slip.open = false;
        self.mark_dirty(key);
    }

    /// Queues parts of so many bytes together, which may become more, and gives the packet that they are in.
    /// Descriptors belong to one post of a packet only, or nobody could say whose they are: a packet that has
    /// some is of no use to another post that has some.
    #[inline]
    fn post_parts(
        &mut self,
        key: usize,
        parts: &[&[u8]],
        length: usize,
        has_some: bool,
        at_most: usize,
    ) -> &mut Envelope {
        assert!(length <= PACKET_BYTES_MAX, "whoever posts keeps to the packet");
        assert!(length > 0, "an empty post could not be told from the end of file");
        self.mark_dirty(key);
        let joins = self.channels[key].lane.waiting.back_mut().is_some_and(|Letter { envelope, slip }| {
            let fits = envelope.length_at_most() + at_most <= PACKET_BYTES_MAX;
            slip.open && fits && !(has_some && envelope.has_descriptors())
        });
        if !joins {
            return &mut self.post_apart(key, parts).envelope;
        }
        self.stats.posts_joined += 1;
        let Some(Letter { envelope, .. }) = self.channels[key].lane.waiting.back_mut() else {
            unreachable!("looked at above")
        };
        parts.iter().for_each(|part| envelope.append(part));
        envelope
    }

    /// As `post`, bytes alone: what nearly all posts are, and so with nothing in it for the others.
    #[inline]
    pub(crate) fn post_bytes<const HEAD: usize>(&mut self, key: usize, head: &[u8; HEAD], rest: &[u8]) {
        let length = HEAD + rest.len();
        assert!(length <= PACKET_BYTES_MAX, "whoever posts keeps to the packet");
        assert!(length > 0, "an empty post could not be told from the end of file");
        let lane = &mut self.channels[key].lane;
        if let Some(Letter { envelope, slip }) = lane.waiting.back_mut()
            && slip.open
            && envelope.length_at_most() + length <= PACKET_BYTES_MAX
        {
            envelope.append(head);
            envelope.append(rest);
            self.stats.posts_joined += 1;
        } else {
            self.post_alone(key, head, rest);
        }
        self.mark_dirty(key);
    }

    /// As `post_apart`, two parts.
    #[inline]
    fn post_alone<const HEAD: usize>(&mut self, key: usize, head: &[u8; HEAD], rest: &[u8]) {
        let mut envelope = self.spare_envelope();
        envelope.append(head);
        envelope.append(rest);
        let Channel { kind, lane, .. } = &mut self.channels[key];
        let slip = Slip { waiter: None, silent: succeeds_whole(*kind), open: true };
        self.spare_letters.push_back(&mut lane.waiting, Letter { envelope, slip });
    }

    #[inline]
    fn spare_envelope(&mut self) -> Box<Envelope> {
        self.spare_envelopes.pop().unwrap_or_else(|| Envelope::new(Message::default()))
    }

    /// Queues parts in a packet of their own, to which more may be added.
    fn post_apart(&mut self, key: usize, parts: &[&[u8]]) -> &mut Letter {
        let mut envelope = self.spare_envelope();
        parts.iter().for_each(|part| envelope.append(part));
        let Channel { kind, lane, .. } = &mut self.channels[key];
        let slip = Slip { waiter: None, silent: succeeds_whole(*kind), open: true };
        self.spare_letters.push_back(&mut lane.waiting, Letter { envelope, slip });
        lane.waiting.back_mut().expect("just put there")
    }

    /// Sends now or not at all, keeping to the order of what is queued.
    pub(crate) fn try_send(&mut self, key: usize, mut message: Message) -> Result<(), SendError> {
        let lane = &self.channels[key].lane;
        if lane.broken {
            return Err(self.broken());
        }
        if !lane.is_idle() {
            return Err(SendError::WouldBlock);
        }
        let mut envelope = self.envelope(&mut message);
        envelope.seal();
        let channel = &mut self.channels[key];
        let sent = match self.driver.send_now(&channel.fd, &envelope).map_err(SendError::from_kernel) {
            Err(SendError::TooLarge) if envelope.length() <= LARGE_PACKET_BYTES_MAX => {
                channel.raise_send_buffer();
                self.driver.send_now(&channel.fd, &envelope).map_err(SendError::from_kernel)?
            }
            sent => sent?,
        };
        if envelope.advance(sent) {
            // A stream took a part; the rest must follow before anything else.
            let slip = Slip { waiter: None, silent: false, open: false };
            channel.lane.waiting.with_memory().push_front(Letter { envelope, slip });
            self.mark_dirty(key);
        } else {
            self.count_sent(&envelope);
            self.keep_envelope(envelope);
        }
        Ok(())
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Ends the connection of a socket for everybody who holds either end.
    pub(crate) fn shut_down(&mut self, key: usize) {
        let channel = &mut self.channels[key];
        if !std::mem::replace(&mut channel.shut, true) {
            self.driver.shut_down(&channel.fd);
        }
    }

    pub(crate) fn is_broken(&self, key: usize) -> bool {
        self.channels[key].lane.broken
    }

    /// Bytes that the kernel has not taken yet, those that are away not counted.
    pub(crate) fn unsent(&self, key: usize) -> usize {
        self.channels[key].lane.unsent()
    }

    #[inline]
    fn mark_dirty(&mut self, key: usize) {
        let lane = &mut self.channels[key].lane;
        if !lane.dirty {
            lane.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Submits what was queued since the last turn.
    ///
    /// Says whether something waits behind a letter that was submitted, silently, when the last turn ended:
    /// nobody is told when that is home, so this turn must not sleep over it. A large answer stood still for
    /// ten seconds behind a small one.
    fn flush(&mut self, woken: &mut Woken) -> bool {
        let mut behind = false;
        let count = self.dirty.len();
        let way = if count > DIRECT_SENDS_MAX { Way::Submitted } else { Way::Direct };
        for place in 0..count {
            let key = self.dirty[place];
            let Some(channel) = self.channels.get_mut(key) else { continue };
            channel.lane.dirty = false;
            if matches!(way, Way::Direct) && self.send_straight(key) {
                continue;
            }
            self.advance_lane(key, way, woken);
            let Some(channel) = self.channels.get(key) else { continue };
            behind |= channel.lane.waits_behind_silence();
            // Of a closed socket whose peer is gone nothing went out, and nothing will come home.
            if channel.closed {
                self.advance_close(key);
            }
        }
        self.dirty.drain(..count);
        // Nothing was queued meanwhile but what is too much for one turn.
        behind || !self.dirty.is_empty()
    }

    /// Sends the one letter of a lane where it lies, if it is what nearly all are: a packet of bytes alone,
    /// of which nobody wants to be told. Says whether it has gone and nothing is left to do; otherwise
    /// nothing has been done, and the lane goes the way of all of them.
    #[inline]
    fn send_straight(&mut self, key: usize) -> bool {
        let Channel { fd, kind, lane, travels, closed, .. } = &mut self.channels[key];
        let is_plain = *kind == Kind::SeqPacket && *travels == Travels::No && !*closed;
        if !is_plain || !lane.is_untroubled() {
            return false;
        }
        let Some(Letter { envelope, slip: Slip { waiter: None, .. } }) = lane.waiting.alone() else {
            return false;
        };
        let Some(bytes) = envelope.bytes_alone() else { return false };
        if self.driver.send_bytes_now(fd, bytes).is_err() {
            return false;
        }
        let bytes = bytes.len() as u64;
        if let Some(Letter { envelope, .. }) = lane.waiting.pop_front() {
            self.keep_envelope(envelope);
        }
        self.stats.messages_sent += 1;
        self.stats.bytes_sent += bytes;
        true
    }

    fn advance_lane(&mut self, key: usize, way: Way, woken: &mut Woken) {
        let way = if self.driver.sends_now() { way } else { Way::Submitted };
        for _ in 0..LETTERS_MAX {
            let Some(letter) = self.next_letter(key, woken) else { return };
            match way {
                Way::Submitted => return self.submit_letter(key, letter),
                Way::Direct => {
                    let sent = self.driver.send_now(&self.channels[key].fd, &letter.envelope);
                    self.sent(key, letter, sent, woken);
                    if self.channels[key].lane.waiting.is_empty() {
                        return;
                    }
                }
            }
        }
        if !self.channels[key].lane.waiting.is_empty() {
            self.mark_dirty(key);
        }
    }

    /// The letter that goes next, sealed, if one can go.
    fn next_letter(&mut self, key: usize, woken: &mut Woken) -> Option<Letter> {
        let lane = &mut self.channels[key].lane;
        if lane.away.is_some() {
            return None;
        }
        if lane.broken {
            self.fail_lane(key, woken);
            return None;
        }
        if lane.blocked {
            return None;
        }
        let mut letter = self.spare_letters.pop_front_of(&mut lane.waiting)?;
        letter.envelope.seal();
        Some(letter)
    }

    fn submit_letter(&mut self, key: usize, letter: Letter) {
        let Letter { envelope, slip } = letter;
        let channel = &mut self.channels[key];
        let silent = slip.silent;
        channel.lane.current = Some(slip);
        // A far end that is kept here hides the death of whoever has it too, an answered continuation is to
        // be closed, and what waits behind this letter goes when it is home.
        let prompt = !envelope.descriptors().is_empty() || channel.closed || !channel.lane.waiting.is_empty();
        let fd = channel.fd.clone();
        let token = self.submit(key, Role::Lane, Request::Send { fd, envelope, silent, prompt });
        self.channels[key].lane.away = Some(token);
        self.letters_away += 1;
    }

    /// The other end is gone: everybody in the lane is told.
    fn fail_lane(&mut self, key: usize, woken: &mut Woken) {
        let mut letters = std::mem::take(&mut self.channels[key].lane.waiting);
        while let Some(letter) = letters.pop_front() {
            let error = self.broken();
            self.tell_failed(key, &letter.envelope, error, woken);
            self.settle(letter.slip, Err(self.broken()), woken);
        }
    }

    /// What is said of a lane that is broken.
    fn broken(&self) -> SendError {
        if self.driver.is_child() { SendError::Forked } else { SendError::Gone }
    }

    /// A letter has gone, or could not.
    #[inline]
    fn sent(&mut self, key: usize, mut letter: Letter, result: io::Result<usize>, woken: &mut Woken) {
        let channel = &mut self.channels[key];
        match result {
            Ok(count) if channel.kind == Kind::Stream && letter.envelope.advance(count) => {
                channel.lane.attempts = 0;
                // What is on its way already does not become longer.
                letter.slip.open = false;
                channel.lane.waiting.with_memory().push_front(letter);
            }
            Ok(_) => {
                let Letter { envelope, slip } = letter;
                channel.lane.attempts = 0;
                channel.lane.raised = false;
                if channel.travels == Travels::Soon && channel.lane.waiting.is_empty() {
                    channel.travels = Travels::Gone;
                }
                self.count_sent(&envelope);
                if slip.waiter.is_some() {
                    self.settle(slip, Ok(()), woken);
                }
                self.keep_envelope(envelope);
            }
            Err(error) => self.not_sent(key, letter, SendError::from_kernel(error), woken),
        }
    }

    /// Empties an envelope, to be used again.
    #[inline]
    fn keep_envelope(&mut self, mut envelope: Box<Envelope>) {
        envelope.clear(|shell| keep_shell(&mut self.spare_shells, shell));
        if self.spare_envelopes.len() < SPARE_ENVELOPES_MAX && envelope.capacity() <= SPARE_BYTES_MAX {
            self.spare_envelopes.push(envelope);
        }
    }

    #[inline(never)]
    fn not_sent(&mut self, key: usize, mut letter: Letter, error: SendError, woken: &mut Woken) {
        let under_way = letter.envelope.is_under_way();
        let abandoned = letter.slip.waiter.is_some_and(|waiter| self.waiters[waiter.key()].is_abandoned());
        let channel = &mut self.channels[key];
        match error {
            // Taken back: it has not left, and whoever sent it does not want it sent any more.
            SendError::WouldBlock if abandoned && !under_way => {
                self.settle(letter.slip, Err(SendError::WouldBlock), woken);
            }
            SendError::WouldBlock => {
                channel.lane.waiting.with_memory().push_front(letter);
                self.block(key);
            }
            SendError::Gone => {
                channel.lane.broken = true;
                self.tell_failed(key, &letter.envelope, SendError::Gone, woken);
                self.settle(letter.slip, Err(SendError::Gone), woken);
            }
            // The packet belongs to the protocol, not to whoever shrank the buffer.
            SendError::TooLarge
                if !channel.lane.raised && letter.envelope.length() <= LARGE_PACKET_BYTES_MAX =>
            {
                channel.lane.raised = true;
                channel.raise_send_buffer();
                channel.lane.waiting.with_memory().push_front(letter);
            }
            // With nothing to take along but the socket itself the message goes alone.
            SendError::OutOfDescriptors
                if channel.travels == Travels::Soon
                    && channel.lane.waiting.is_empty()
                    && letter.envelope.descriptors().len() == 1 =>
            {
                channel.travels = Travels::No;
                letter.envelope.leave_descriptors();
                channel.lane.waiting.with_memory().push_front(letter);
            }
            error if letter.envelope.is_provided_for() && !under_way => {
                if letter.envelope.told().is_some() {
                    self.tell_failed(key, &letter.envelope, error, woken);
                } else {
                    self.stats.posts_lost += 1;
                    self.stats.posts_replaced += 1;
                }
                letter.envelope.go_without();
                // It may have been all there was.
                if letter.envelope.length() > 0 {
                    self.channels[key].lane.waiting.with_memory().push_front(letter);
                } else {
                    self.keep_envelope(letter.envelope);
                }
            }
            error => {
                channel.lane.raised = false;
                // Nobody can be told that a post was lost, and what follows it would not make sense: for both
                // sides this connection is over. So it is if the rest of a stream's bytes cannot follow.
                if letter.slip.waiter.is_none() || under_way {
                    channel.lane.broken = true;
                    if channel.private {
                        self.driver.shut_down(&channel.fd);
                    }
                    self.tell_failed(key, &letter.envelope, SendError::Gone, woken);
                }
                self.settle(letter.slip, Err(error), woken);
            }
        }
    }

    /// Whoever has posted this, and wants to be told, is.
    #[cold]
    fn tell_failed(&mut self, key: usize, envelope: &Envelope, error: SendError, woken: &mut Woken) {
        let channel = &mut self.channels[key];
        if let Some(number) = envelope.told()
            && !channel.closed
        {
            channel.inbox.failed = true;
            woken.wake.extend(channel.inbox.sleeper.take());
            self.failed.push((key, number, error));
        }
    }

    /// Whether a post has failed of which somebody is to be told.
    pub(crate) fn has_failed(&self, key: usize) -> bool {
        self.channels[key].inbox.failed
    }

    /// The posts of a socket that have failed, in order, by their numbers.
    pub(crate) fn take_failed(&mut self, key: usize) -> Vec<(u64, SendError)> {
        if !std::mem::take(&mut self.channels[key].inbox.failed) {
            return Vec::new();
        }
        let failed = self.failed.extract_if(.., |(channel, ..)| *channel == key);
        failed.map(|(_, number, error)| (number, error)).collect()
    }

    /// Nobody will ask any more.
    fn forget_failed(&mut self, key: usize) {
        if self.channels[key].inbox.failed {
            drop(self.take_failed(key));
        }
    }

    /// The queue is full.
    fn block(&mut self, key: usize) {
        let Channel { fd, private, lane, .. } = &mut self.channels[key];
        lane.blocked = true;
        lane.attempts += 1;
        self.stats.sends_blocked += 1;
        if !*private {
            let pause = RETRY_FIRST.saturating_mul(1 << (lane.attempts - 1).min(16)).min(RETRY_LAST);
            self.retrying.push((self.clock.now() + pause, key));
        }
        if lane.unblock.is_none() {
            let request = Request::Ready { fd: fd.clone(), interest: ready::WRITE };
            let token = self.submit(key, Role::Unblock, request);
            self.channels[key].lane.unblock = Some(token);
        }
    }

    /// Writable, or time to try: one send is attempted past the block.
    fn try_blocked(&mut self, key: usize, woken: &mut Woken) {
        let Some(channel) = self.channels.get_mut(key) else { return };
        if std::mem::take(&mut channel.lane.blocked) {
            self.advance_lane(key, Way::Direct, woken);
        }
    }

    /// Whether letters go out as fast as turns are taken. Those that wait for a full queue do not.
    ///
    /// A letter that may go is with the driver or in a lane that is dirty; to look through all lanes made
    /// each end of a `block_on` as long as the list of sockets.
    pub(crate) fn is_sending(&self) -> bool {
        let sending = self.letters_away > 0
            || self.dirty.iter().any(|key| self.channels.get(*key).is_some_and(|c| c.lane.is_moving()));
        debug_assert_eq!(sending, self.channels.iter().any(|(_, channel)| channel.lane.is_moving()));
        sending
    }

    /// Tells whoever waits how a letter went.
    fn settle(&mut self, slip: Slip, result: Result<(), SendError>, woken: &mut Woken) {
        let Some(waiter) = slip.waiter else {
            match result {
                Ok(()) => return,
                Err(SendError::Gone) => self.stats.posts_lost_gone += 1,
                Err(_) => self.stats.posts_lost_refused += 1,
            }
            self.stats.posts_lost += 1;
            return;
        };
        // Whoever sent silently waits for something else, and looks here only for bad news.
        let quiet = slip.silent && result.is_ok();
        self.tell(waiter.key(), Done::Sent(result), quiet, woken);
    }

    // -- waiting ----------------------------------------------------------------------------------------

    fn tell(&mut self, key: usize, done: Done, quiet: bool, woken: &mut Woken) {
        let waiter = &mut self.waiters[key];
        match waiter.state {
            WaiterState::Abandoned | WaiterState::LetGo => {
                let waiter = self.waiters.remove(key);
                woken.drop.extend(waiter.sleeper);
                if let Done::Accepted(Ok(fd)) = done {
                    self.keep_accepted(waiter.channel, fd);
                }
            }
            _ => {
                waiter.state = WaiterState::Done(done);
                let sleeper = waiter.sleeper.take();
                if quiet { woken.drop.extend(sleeper) } else { woken.wake.extend(sleeper) }
            }
        }
    }

    /// Asks for readiness or a connection.
    pub(crate) fn ask(&mut self, key: usize, request: impl FnOnce(Fd) -> Request) -> usize {
        let waiter = self.wait(key);
        let request = request(self.channels[key].fd.clone());
        self.channels[key].others += 1;
        let token = self.submit(key, Role::Waiter(Number::of(waiter)), request);
        self.waiters[waiter].state = WaiterState::Waiting(Some(token));
        waiter
    }

    /// Asks for a connection, which may have come for somebody who is gone.
    pub(crate) fn ask_for_connection(&mut self, key: usize) -> usize {
        let Some(fd) = self.channels[key].accepted.pop_front() else {
            return self.ask(key, |fd| Request::Accept { fd });
        };
        let state = WaiterState::Done(Done::Accepted(Ok(fd)));
        self.waiters.insert(Waiter { sleeper: None, state, channel: key })
    }

    /// Whoever wanted this connection is gone: it is kept for the next, while there may be one.
    fn keep_accepted(&mut self, key: usize, fd: OwnedFd) {
        match self.channels.get_mut(key) {
            Some(channel) if !channel.closed => channel.accepted.with_memory().push_back(fd),
            _ => discard(fd),
        }
    }

    /// The answer, if there is one; or whoever asks is kept.
    pub(crate) fn poll_waiter(&mut self, key: usize, asker: Asker<'_>, woken: &mut Woken) -> Poll<Done> {
        let waiter = &mut self.waiters[key];
        if let WaiterState::Done(_) = waiter.state {
            let waiter = self.waiters.remove(key);
            woken.drop.extend(waiter.sleeper);
            let WaiterState::Done(done) = waiter.state else { unreachable!("looked at above") };
            return Poll::Ready(done);
        }
        if !waiter.sleeper.as_ref().is_some_and(|kept| kept.is(asker)) {
            woken.drop.extend(waiter.sleeper.replace(Sleeper::from(asker)));
        }
        Poll::Pending
    }

    /// Whoever asked is gone. A letter that has not left is taken back.
    pub(crate) fn abandon(&mut self, key: usize, woken: &mut Woken) {
        let waiter = &mut self.waiters[key];
        woken.drop.extend(waiter.sleeper.take());
        match std::mem::replace(&mut waiter.state, WaiterState::Abandoned) {
            WaiterState::Done(done) => {
                let channel = self.waiters.remove(key).channel;
                if let Done::Accepted(Ok(fd)) = done {
                    self.keep_accepted(channel, fd);
                }
            }
            WaiterState::Waiting(Some(token)) => self.driver.cancel(token),
            WaiterState::Waiting(None) => {
                // Gone already if the socket was dropped first and its letters are with the kernel.
                let owner = waiter.channel;
                let Some(channel) = self.channels.get_mut(owner) else { return };
                let waiting = channel.lane.waiting.with_memory();
                if let Some(place) =
                    waiting.iter().position(|letter| letter.slip.waiter == Some(Number::of(key)))
                    && !waiting[place].envelope.is_under_way()
                {
                    waiting.remove(place);
                    self.waiters.remove(key);
                    // It may have been all that a dropped socket was waiting for.
                    self.advance_if_closed(owner);
                }
            }
            WaiterState::Abandoned | WaiterState::LetGo => unreachable!("abandoned once"),
        }
    }

    // -- receiving --------------------------------------------------------------------------------------

    /// The next message, if it is here; or the receive is armed and the waker kept.
    pub(crate) fn poll_receive(
        &mut self,
        key: usize,
        asker: Asker<'_>,
        woken: &mut Woken,
    ) -> Poll<Result<Received, ReceiveError>> {
        if let Some(result) = self.take_arrived(key) {
            return Poll::Ready(result);
        }
        self.wait_for_message(key, asker, woken);
        self.arm(key);
        Poll::Pending
    }

    /// Keeps whoever asks for what the receive brings, which is to be armed.
    #[inline]
    fn wait_for_message(&mut self, key: usize, asker: Asker<'_>, woken: &mut Woken) {
        let inbox = &mut self.channels[key].inbox;
        if !inbox.sleeper.as_ref().is_some_and(|kept| kept.is(asker)) {
            woken.drop.extend(inbox.sleeper.replace(Sleeper::from(asker)));
        }
        inbox.wanted = true;
    }

    /// As `poll_receive`; and whether more is here with the message. If not, whoever asks is kept for it
    /// already.
    pub(crate) fn poll_receive_of_many(
        &mut self,
        key: usize,
        asker: Asker<'_>,
        woken: &mut Woken,
    ) -> Poll<(Result<Received, ReceiveError>, bool)> {
        let taken = self.take_arrived(key);
        let more = self.has_arrived(key);
        if !more {
            self.wait_for_message(key, asker, woken);
            self.arm(key);
        }
        taken.map_or(Poll::Pending, |result| Poll::Ready((result, more)))
    }

    /// As `poll_receive`, but looks into the queue itself where that may spare a turn: on one CPU whoever
    /// answers has often run before the send has returned. Not again and again: others wait for a turn.
    pub(crate) fn poll_receive_here(
        &mut self,
        key: usize,
        waits: Waits,
        asker: Asker<'_>,
        woken: &mut Woken,
    ) -> Poll<Result<Received, ReceiveError>> {
        let share = TAKEN_HERE_MAX / u32::from(self.channels[key].burst);
        if self.looks_are_left(waits) && self.may_look(key) && self.is_worth_a_look(key) {
            self.settle_credentials(key);
            let channel = &self.channels[key];
            match self.driver.take(&channel.fd, channel.room) {
                // What it mostly is goes straight to whoever looks.
                Now::Arrived(arrival) if arrival.is_whole() => {
                    self.taken_here += share;
                    self.channels[key].inbox.looks_left = LOOKS_IN_VAIN_MAX;
                    return Poll::Ready(self.hand_over_at_once(key, arrival));
                }
                // What waits for it now need not look again.
                Now::Empty => {
                    self.unanswered |= waits == Waits::Together;
                    let looks_left = &mut self.channels[key].inbox.looks_left;
                    *looks_left = looks_left.saturating_sub(1);
                    self.wait_for_message(key, asker, woken);
                    self.arm_after_a_look(key, true);
                    return Poll::Pending;
                }
                found => {
                    if self.found_here(key, found, woken) {
                        self.taken_here += share;
                    }
                }
            }
        }
        // One that came from somewhere may be no connected socket: nothing is known of it without a look.
        let known_in_vain = waits == Waits::Together && self.unanswered && self.channels[key].made_here;
        if known_in_vain && self.may_look(key) {
            self.wait_for_message(key, asker, woken);
            self.arm_after_a_look(key, true);
            return Poll::Pending;
        }
        self.poll_receive(key, asker, woken)
    }

    /// Whether anybody may look so before the next turn.
    fn looks_are_left(&self, waits: Waits) -> bool {
        match waits {
            Waits::Alone => self.taken_here < TAKEN_HERE_MAX,
            Waits::Together => !self.unanswered && self.taken_here < TAKEN_TOGETHER_MAX,
        }
    }

    /// Where the next sleep is a receive of this socket that is the look, unless many come together: then
    /// whoever looks knows when that was the last.
    fn is_worth_a_look(&mut self, key: usize) -> bool {
        let Channel { fd, inbox, .. } = &mut self.channels[key];
        if !self.driver.sleeps_in(fd) || inbox.looks_left > 0 || inbox.unlooked >= SLEEPS_BEFORE_A_LOOK {
            inbox.unlooked = 0;
            return true;
        }
        inbox.unlooked += 1;
        false
    }

    /// Takes the next message out of the queue if it is the piece that is expected. Whether it was. What else
    /// it is arrives as ever, but that nobody is woken for it: whoever looks here receives next.
    pub(crate) fn take_piece(&mut self, key: usize, woken: &mut Woken) -> bool {
        if !self.driver.lets_others_take() || !self.may_take_piece() {
            return false;
        }
        self.settle_credentials(key);
        let channel = &self.channels[key];
        match self.driver.take(&channel.fd, channel.room) {
            Now::Arrived(arrival) if arrival.message.landed() > 0 => {
                self.stats.messages_received += 1;
                self.stats.bytes_received += arrival.message.length() as u64;
                arrival.message.let_go();
                self.channels[key].inbox.nothings = 0;
                true
            }
            found => {
                let sleeper = self.channels[key].inbox.sleeper.take();
                self.found_here(key, found, woken);
                self.channels[key].inbox.sleeper = sleeper;
                false
            }
        }
    }

    /// Whether what has arrived first is a piece that may be received without waiting for a turn.
    pub(crate) fn goes_on_with_piece(
        &mut self,
        key: usize,
        is_piece: impl FnOnce(&[u8], usize) -> bool,
    ) -> bool {
        let first = self.channels[key].inbox.arrived.front();
        first.is_some_and(|first| first.as_ref().is_ok_and(|first| is_piece(first.bytes(), first.length())))
            && self.may_take_piece()
    }

    /// Whether one more piece may be taken without waiting for a turn. If so, it is counted.
    fn may_take_piece(&mut self) -> bool {
        let may = self.pieces_taken < PIECES_AT_ONCE_MAX;
        self.pieces_taken += usize::from(may);
        may
    }

    /// What a look past the receive that is armed has found. That receive knows what to do where it is
    /// nothing. Says whether it was a message.
    fn found_here(&mut self, key: usize, found: Now, woken: &mut Woken) -> bool {
        match found {
            Now::Arrived(arrival) => {
                self.arrived(key, Ok(arrival), false, woken);
                true
            }
            Now::Failed(error) => {
                self.arrived(key, Err(error), false, woken);
                false
            }
            Now::Starved | Now::Empty => false,
        }
    }

    /// As what is delivered and taken at once. Whoever else waits here still does.
    fn hand_over_at_once(&mut self, key: usize, mut arrival: Arrival) -> Result<Received, ReceiveError> {
        self.detach_where_few_are_left(&mut arrival);
        let inbox = &mut self.channels[key].inbox;
        inbox.nothings = 0;
        inbox.wanted &= inbox.sleeper.is_some();
        self.judge(key, arrival)
    }

    /// Whoever keeps messages must not keep everybody's buffers.
    fn detach_where_few_are_left(&self, arrival: &mut Arrival) {
        if self.pool.lent() > self.pool.count() / 4 * 3 {
            arrival.message.detach();
        }
    }

    /// Whether a message taken out of the queue now would be the next, and there may be one.
    fn may_look(&mut self, key: usize) -> bool {
        let inbox = &self.channels[key].inbox;
        let nothing_here = inbox.arrived.is_empty() && !inbox.ended && self.home.is_empty();
        let away = inbox.away;
        nothing_here && away.is_none_or(|token| self.driver.holds_back(token, &mut self.requests))
    }

    /// The next message or the end, if it is here.
    pub(crate) fn take_arrived(&mut self, key: usize) -> Option<Result<Received, ReceiveError>> {
        let inbox = &mut self.channels[key].inbox;
        if let Some(result) = self.spare_arrivals.pop_front(&mut inbox.arrived) {
            let bytes = result.as_ref().map_or(0, |received| received.bytes().len());
            self.has_taken(key, bytes);
            return Some(result);
        }
        let end = || if self.driver.is_child() { ReceiveError::Forked } else { ReceiveError::Closed };
        inbox.ended.then(|| Err(end()))
    }

    /// A message of so many bytes is not kept here any more.
    #[inline]
    fn has_taken(&mut self, key: usize, bytes: usize) {
        let inbox = &mut self.channels[key].inbox;
        inbox.bytes -= bytes;
        let low = inbox.arrived.len() <= BACKLOG_MESSAGES_MAX / 2 && inbox.bytes <= BACKLOG_BYTES_MAX / 2;
        if inbox.stopped && low {
            inbox.stopped = false;
            self.rearm(key);
        }
    }

    /// Whether a message or the end is here.
    #[inline]
    pub(crate) fn has_arrived(&self, key: usize) -> bool {
        let inbox = &self.channels[key].inbox;
        !inbox.arrived.is_empty() || inbox.ended
    }

    /// Whether all that was taken out of the queue of a socket has been received here, and more may come.
    pub(crate) fn is_drained(&self, key: usize) -> bool {
        let inbox = &self.channels[key].inbox;
        inbox.arrived.is_empty() && !inbox.ended && self.home.is_empty()
    }

    /// Whether neither a message nor the end is here, nor on its way here.
    pub(crate) fn is_quiet(&mut self, key: usize) -> bool {
        if self.driver.is_child() {
            return false;
        }
        let Channel { inbox, fd, .. } = &self.channels[key];
        if !inbox.arrived.is_empty() || inbox.ended || !self.home.is_empty() {
            return false;
        }
        inbox.away.is_some_and(|token| self.driver.hears_nothing(token, &mut self.requests))
            || sys::poll_now(fd.as_fd(), ready::READ | ready::HUNG_UP).is_ok_and(|mask| mask == 0)
    }

    /// Takes the next message out of the queue, now or not at all, and only this one: for a socket on which
    /// other processes receive too.
    pub(crate) fn take_one(&mut self, key: usize, woken: &mut Woken) -> OneTaken {
        // Each look may find something that is no message: an empty packet, a reset, half an end.
        for _ in 0..LOOKS_MAX {
            if let Some(result) = self.take_arrived(key) {
                return OneTaken::Here(result);
            }
            self.settle_credentials(key);
            let channel = &self.channels[key];
            match self.driver.take(&channel.fd, channel.room) {
                Now::Arrived(arrival) => self.arrived(key, Ok(arrival), false, woken),
                Now::Failed(error) => self.arrived(key, Err(error), false, woken),
                Now::Starved => return OneTaken::Starved,
                Now::Empty => break,
            }
            self.channels[key].inbox.wanted = false;
        }
        match self.take_arrived(key) {
            Some(result) => OneTaken::Here(result),
            None => OneTaken::Nothing,
        }
    }

    /// Starts receiving before anybody asks.
    pub(crate) fn arm(&mut self, key: usize) {
        self.arm_after_a_look(key, false);
    }

    fn arm_after_a_look(&mut self, key: usize, looked: bool) {
        let channel = &mut self.channels[key];
        channel.inbox.leaving = false;
        if channel.inbox.away.is_some() || channel.inbox.ended || channel.inbox.stopped || channel.closed {
            return;
        }
        if channel.kind == Kind::SeqPacket && !channel.credentials.are_settled() && !self.driver.is_child() {
            channel.ask_for_credentials();
        }
        let (fd, room, many) = (channel.fd.clone(), channel.room, channel.many);
        let (strange, connected) = (!channel.made_here, channel.nameless);
        let unnamed = channel.credentials == Credentials::Forgone;
        let packets = channel.kind == Kind::SeqPacket;
        let want = Want { room, many, burst: channel.burst, strange, unnamed, connected, looked, packets };
        let token = self.submit(key, Role::Inbox, Request::receive(fd, want));
        let inbox = &mut self.channels[key].inbox;
        inbox.away = Some(token);
        inbox.cancelled = false;
    }

    fn rearm(&mut self, key: usize) {
        let channel = &self.channels[key];
        if channel.inbox.leaving {
            return;
        }
        if channel.many || (channel.inbox.wanted && channel.inbox.arrived.is_empty()) {
            self.arm(key);
        }
    }

    /// Shows a message to whoever reads it where it has arrived. Says whether that was all there is to do.
    #[inline]
    fn is_read(&mut self, key: usize, arrival: &mut Arrival, woken: &mut Woken) -> bool {
        let Channel { reader: Some(reader), inbox, lane, room, closed: false, .. } = &mut self.channels[key]
        else {
            return false;
        };
        // What came before it is read before it, and posts have failed before.
        let is_next = inbox.arrived.is_empty() && !inbox.ended && !inbox.failed;
        if !is_next || !arrival.is_whole() || !arrival.message.is_all_here() {
            return false;
        }
        let Some(reader) = reader.upgrade() else { return false };
        let (turn, unsent) = (self.stats.turns, lane.unsent());
        let (bytes, descriptors) = arrival.message.lying();
        let came = descriptors.len();
        if came > usize::from(room.descriptors) {
            return false;
        }
        let reading =
            Reading { bytes, descriptors: &mut *descriptors, turn, unsent, wakes: Wakes(&mut woken.wake) };
        let is_read = reader.read(reading);
        // What is left to be received is counted when it is.
        let left = if is_read { 0 } else { descriptors.len() };
        self.stats.descriptors_received += came.saturating_sub(left) as u64;
        if is_read {
            inbox.nothings = 0;
            self.stats.messages_received += 1;
            self.stats.bytes_received += bytes.len() as u64;
        }
        is_read
    }

    /// What a receive has brought.
    fn arrived(&mut self, key: usize, result: io::Result<Arrival>, last: bool, woken: &mut Woken) {
        match result {
            Ok(arrival) if !last && arrival.is_whole() && !self.channels[key].closed => {
                self.deliver(key, arrival, woken);
            }
            result => self.arrived_otherwise(key, result, last, woken),
        }
    }

    #[inline(never)]
    fn arrived_otherwise(&mut self, key: usize, result: io::Result<Arrival>, last: bool, woken: &mut Woken) {
        let channel = &mut self.channels[key];
        if last {
            channel.inbox.away = None;
        }
        if channel.closed {
            // Whatever it was, its descriptors are closed here.
            let message = result.is_ok_and(|arrival| !arrival.nothing);
            self.stats.messages_unwanted += u64::from(message);
            if last {
                self.advance_close(key);
            }
            return;
        }
        match result {
            Ok(arrival) if arrival.nothing => self.nothing(key, arrival.hung_up, woken),
            // A stream has no empty packets; if another holder asked for credentials they come with its end
            // too.
            Ok(arrival) if channel.kind == Kind::Stream && arrival.message.bytes().is_empty() => {
                self.nothing(key, false, woken);
            }
            Ok(arrival) if arrival.message.bytes().is_empty() && !arrival.bytes_lost => {
                // An empty packet: nobody of ours sends one, and it must not pass for the end of file.
                channel.inbox.nothings = 0;
                self.stats.empty_packets += 1;
            }
            Ok(arrival) => self.deliver(key, arrival, woken),
            Err(error) => match error.raw_os_error() {
                // A reset says that the peer left messages of ours unread; its own are still in the queue.
                Some(errno::ECONNRESET) => self.stats.resets += 1,
                // No buffer, or stopped: nothing is lost, and it is armed again below or later.
                Some(errno::ENOBUFS | errno::ECANCELED | errno::EINTR) => {}
                _ => self.end(key, Some(error), woken),
            },
        }
        if last && !self.channels[key].closed {
            self.rearm(key);
        }
    }

    /// Becomes what a forked child has of its parent's table: whatever is away comes home refused, and what
    /// has arrived is forgotten, since the parent has it too. Nothing is sent, cancelled or shut down.
    pub(crate) fn become_child(&mut self, woken: &mut Woken) {
        if self.driver.is_child() {
            return;
        }
        self.driver.become_child();
        self.home.clear();
        self.retrying.clear();
        for (_, channel) in &mut self.channels {
            channel.inbox.arrived = Queue::new();
            channel.inbox.bytes = 0;
            std::iter::from_fn(|| channel.accepted.pop_front()).for_each(drop);
        }
        for (_, waiter) in &mut self.waiters {
            if let WaiterState::Done(Done::Accepted(result)) = &mut waiter.state {
                *result = Err(child::refusal());
            }
        }
        for token in self.requests.tokens() {
            self.driver.submit(token, &mut self.requests);
        }
        // Cannot fail, since nobody is asked; and each turn brings some home, of finitely many.
        while self.turn(Sleep::Not, woken).is_ok_and(|any| any) {}
    }

    /// Zero bytes and no control data: the end, if it is said twice, or after the other end was closed. Once,
    /// before that, it may be a lie: a receive that found the queue empty, and looked for the end only after
    /// the peer had sent and closed.
    fn nothing(&mut self, key: usize, hung_up: bool, woken: &mut Woken) {
        let channel = &mut self.channels[key];
        channel.inbox.nothings = channel.inbox.nothings.saturating_add(1);
        // Nobody hears of a shutdown, and nobody can undo it.
        channel.shut |= hung_up;
        if hung_up || channel.kind == Kind::Stream || channel.inbox.nothings >= 2 {
            self.end(key, None, woken);
        } else {
            // Another holder may have had the kernel name no senders any more, or nobody has had it name any,
            // and then two empty packets of anybody were the end. This makes the second one known for what it
            // is.
            channel.ask_for_credentials_again();
            // Asked again even where nobody waits, or a stream of one message would never end.
            channel.inbox.wanted = true;
        }
    }

    fn end(&mut self, key: usize, error: Option<io::Error>, woken: &mut Woken) {
        let inbox = &mut self.channels[key].inbox;
        inbox.ended = true;
        inbox.arrived.with_memory().extend(error.map(|error| Err(ReceiveError::from_kernel(error))));
        woken.wake.extend(inbox.sleeper.take());
    }

    /// What a receive beside the driver needs to know.
    pub(crate) fn receiving(&self, key: usize) -> (Fd, Room) {
        let channel = &self.channels[key];
        (channel.fd.clone(), channel.room)
    }

    /// Counts the glances in a row that found something.
    pub(crate) fn count_glance(&mut self, key: usize, found: bool) {
        let glances = &mut self.channels[key].inbox.glances;
        *glances = if found { glances.saturating_add(1) } else { 0 };
    }

    /// Whether there were so many glances in a row. Then the count begins anew.
    pub(crate) fn has_glanced(&mut self, key: usize, most: u8) -> bool {
        let glances = &mut self.channels[key].inbox.glances;
        let many = *glances >= most;
        if many {
            *glances = 0;
        }
        many
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What is handed out of what arrived: no more descriptors than the socket takes, and nothing lost in
    /// silence.
    pub(crate) fn judge(&mut self, key: usize, arrival: Arrival) -> Result<Received, ReceiveError> {
        let mut message = arrival.message;
        self.stats.descriptors_received += message.descriptors() as u64;
        let too_many = message.keep_descriptors(usize::from(self.channels[key].room.descriptors));
        if arrival.bytes_lost {
            self.stats.messages_truncated += 1;
            Err(ReceiveError::Truncated(message))
        } else if too_many || arrival.control_lost {
            self.stats.descriptors_lost += 1;
            Err(ReceiveError::DescriptorsLost(message))
        } else {
            self.stats.messages_received += 1;
            self.stats.bytes_received += message.length() as u64;
            Ok(message)
        }
    }

    fn deliver(&mut self, key: usize, mut arrival: Arrival, woken: &mut Woken) {
        self.detach_where_few_are_left(&mut arrival);
        let length = arrival.message.bytes().len();
        let result = self.judge(key, arrival);
        let inbox = &mut self.channels[key].inbox;
        inbox.nothings = 0;
        inbox.bytes += if result.is_ok() { length } else { 0 };
        let arrived = self.spare_arrivals.lend(&mut inbox.arrived);
        arrived.push_back(result);
        inbox.wanted = false;
        if let Some(sleeper) = inbox.sleeper.take() {
            woken.wake.push(sleeper);
        }
        let full = arrived.len() >= BACKLOG_MESSAGES_MAX || inbox.bytes >= BACKLOG_BYTES_MAX;
        if full && !inbox.stopped {
            inbox.stopped = true;
            if let Some(token) = inbox.away {
                self.driver.cancel(token);
            }
        }
    }

    // -- one turn ---------------------------------------------------------------------------------------

    fn submit(&mut self, channel: usize, role: Role, request: Request) -> Token {
        let token = self.requests.insert(request);
        let slot = token.slot as usize;
        let channel = u32::try_from(channel).expect("fewer than 2^32 sockets");
        let owner = Owner { channel, role };
        if slot == self.owners.len() {
            self.owners.push(owner);
        } else {
            self.owners[slot] = owner;
        }
        self.driver.submit(token, &mut self.requests);
        token
    }

    /// Shows the kernel what is submitted, now. What comes home meanwhile is kept for the next turn.
    pub(crate) fn hurry(&mut self) {
        let mut home = std::mem::take(&mut self.home);
        // What goes wrong here goes wrong again in the next turn, which can say so.
        let _ = self.driver.turn(&mut self.requests, Sleep::Not, &mut home);
        self.home = home;
        self.hurried = true;
    }

    /// Submits, sleeps, reaps. Says whether anything came home.
    pub(crate) fn turn(&mut self, sleep: Sleep, woken: &mut Woken) -> io::Result<bool> {
        self.stats.turns += 1;
        let taken_here = std::mem::take(&mut self.taken_here);
        (self.pieces_taken, self.pieces_sent) = (0, 0);
        self.unanswered = false;
        let nothing_here = self.home.is_empty() && woken.wake.is_empty();
        let mut sleep = if nothing_here { sleep } else { Sleep::Not };
        if !self.retired.is_empty() {
            // What is closed now is nothing to be woken for. And before anything is sent: on one CPU whoever
            // is woken by that may run before we do again, and what he sends is in flight then.
            sleep = self.close_before_sleeping(sleep, taken_here);
        }
        let retired = self.retired.len();
        let behind = !self.dirty.is_empty() && self.flush(woken);
        if behind || !woken.wake.is_empty() {
            sleep = Sleep::Not;
        }
        if self.retired.len() > retired {
            // Those whose last letters have gone just now, or never will.
            sleep = self.close_before_sleeping(sleep, 0);
        }
        if self.given_since.is_some() && closer::backlog() == 0 {
            self.given_since = None;
        }
        let sleep = self.sleep_within(sleep);
        let sleeps = sleep != Sleep::Not && !self.driver.comes_back_at_once();
        let result = self.driver.turn(&mut self.requests, sleep, &mut self.home);
        let any = !self.home.is_empty();
        self.take_home(woken);
        if sleeps {
            self.sleeps = self.sleeps.wrapping_add(1);
            self.many_expected = match std::mem::take(&mut self.let_go) {
                0 => self.many_expected,
                1..=CLOSED_AT_ONCE_MAX => self.many_expected.saturating_sub(1),
                _ => FEW_BEFORE_MAX,
            };
            if !std::mem::take(&mut self.given_awake) {
                self.given_at_once = 0;
            }
            if !self.retired.is_empty() {
                self.close_the_retired_until(Until::Awake);
            }
        }
        if !self.waits_for_no_moment() {
            self.look_at_the_clock(woken);
        }
        result.map(|()| any)
    }

    /// Tells whoever is to be told of what has come home, which is mostly one message.
    #[inline]
    fn take_home(&mut self, woken: &mut Woken) {
        if self.home.len() > 1 {
            return self.take_all_home(woken);
        }
        if let Some(completion) = self.home.pop() {
            self.take_one_home(completion, woken);
        }
    }

    #[inline(never)]
    fn take_all_home(&mut self, woken: &mut Woken) {
        let mut home = std::mem::take(&mut self.home);
        home.drain(..).for_each(|completion| self.take_one_home(completion, woken));
        self.home = home;
    }

    #[inline(never)]
    fn take_one_home(&mut self, completion: Completion, woken: &mut Woken) {
        match completion {
            // What nearly all of them are. Taken out once: to move a message takes as long as a part of all
            // that is done with it here.
            Completion { token, outcome: Outcome::Arrived(Ok(mut arrival)), last: false } => {
                let key = self.owners[token.slot as usize].channel as usize;
                match self.is_read(key, &mut arrival, woken) {
                    true => arrival.message.let_go(),
                    false => self.arrived(key, Ok(arrival), false, woken),
                }
            }
            Completion { token, outcome, last } => self.bring_home(token, outcome, last, woken),
        }
    }

    /// No longer than until the first thing that is due.
    fn sleep_within(&self, sleep: Sleep) -> Sleep {
        match self.first_moment() {
            Some(moment) if sleep != Sleep::Not => {
                sleep.at_most(moment.saturating_duration_since(self.clock.now()))
            }
            _ => sleep,
        }
    }

    /// When something is due, of what the table itself waits for.
    #[inline]
    fn first_moment(&self) -> Option<Instant> {
        if self.waits_for_no_moment() { None } else { self.first_of_the_moments() }
    }

    #[inline]
    fn waits_for_no_moment(&self) -> bool {
        self.timers.is_empty() && self.has_only_timers()
    }

    /// Nothing that the table itself waits for.
    #[inline]
    fn has_only_timers(&self) -> bool {
        let nothing_waits = self.retrying.is_empty() && self.closing.is_empty() && self.retired.is_empty();
        nothing_waits && self.given_since.is_none()
    }

    #[inline(never)]
    fn first_of_the_moments(&self) -> Option<Instant> {
        if self.has_only_timers() {
            return self.timers.first();
        }
        let retry = self.retrying.iter().map(|(moment, _)| *moment).min();
        let closing = self.closing.iter().map(|(moment, _)| *moment).min();
        let retired = self.retired_since.map(|since| since + RETIRED_TIME_MAX);
        let given = self.given_since.map(|since| since + RETIRED_TIME_MAX);
        [self.timers.first(), retry, closing, retired, given].into_iter().flatten().min()
    }

    /// Whether a turn would find something: what a spinner asks. What it has found on the way is kept.
    pub(crate) fn look(&mut self) -> io::Result<bool> {
        let mut home = std::mem::take(&mut self.home);
        let result = self.driver.look(&mut self.requests, &mut home);
        self.home = home;
        result
    }

    // -- in a host's loop -------------------------------------------------------------------------------

    /// From here on the driver's descriptor says when there is something to do. True if there is already, of
    /// which it says nothing.
    pub(crate) fn hand_over(&mut self) -> io::Result<bool> {
        self.hurried = false;
        let first = self.first_moment();
        let waiting = self.driver.hand_over(first, &mut self.requests)?;
        let due = first.is_some_and(|moment| moment <= self.clock.now());
        Ok(waiting || due || !self.home.is_empty() || !self.dirty.is_empty())
    }

    /// Sleeps on the descriptor that a host would watch.
    pub(crate) fn wait_for_descriptor(&self, sleep: Sleep) -> io::Result<()> {
        sys::wait_readable(self.driver.descriptor(), sleep.duration())
    }

    /// Whether the driver was turned since `hand_over` without anybody looking at what it found: it may have
    /// heard the bell for us. Said once.
    pub(crate) fn was_hurried(&mut self) -> bool {
        std::mem::take(&mut self.hurried)
    }

    /// Whether something was asked for that the kernel has not been shown, or is not known to have taken.
    pub(crate) fn has_something_to_show(&mut self) -> bool {
        !self.home.is_empty()
            || self.is_sending()
            || !self.dirty.is_empty()
            || self.driver.has_something_to_show()
    }

    /// Whether the host must be told of something that was asked for since `hand_over`.
    pub(crate) fn wants_a_turn(&mut self) -> bool {
        !self.dirty.is_empty() || !self.home.is_empty() || self.driver.wants_a_turn(self.first_moment())
    }

    #[inline(never)]
    fn look_at_the_clock(&mut self, woken: &mut Woken) {
        let now = self.clock.now();
        if !self.has_only_timers() {
            self.see_to_what_is_due(now, woken);
        }
        self.timers.expire(now, &mut woken.wake);
    }

    #[inline(never)]
    fn see_to_what_is_due(&mut self, now: Instant, woken: &mut Woken) {
        if self.given_since.is_some_and(|since| since + RETIRED_TIME_MAX <= now) {
            // What still waits may stand behind something that lingers, while threads are idle.
            self.given_since = closer::urge().then_some(now);
        }
        if self.retired_since.is_some_and(|since| since + RETIRED_TIME_MAX <= now) {
            self.close_the_retired();
        }
        let due: Vec<_> = self.retrying.extract_if(.., |(moment, _)| *moment <= now).collect();
        for (_, key) in due {
            self.try_blocked(key, woken);
            // It may have been all that a dropped socket was waiting for.
            self.advance_if_closed(key);
        }
        for (_, key) in self.closing.extract_if(.., |(moment, _)| *moment <= now).collect::<Vec<_>>() {
            self.give_up(key, woken);
        }
    }

    /// The peer does not receive what a closed socket still has for it.
    fn give_up(&mut self, key: usize, woken: &mut Woken) {
        let lane = &mut self.channels[key].lane;
        let mut letters = std::mem::take(&mut lane.waiting);
        while let Some(letter) = letters.pop_front() {
            if letter.slip.waiter.is_some() {
                self.settle(letter.slip, Err(SendError::Gone), woken);
            } else {
                self.stats.posts_lost += 1;
                self.stats.posts_lost_late += 1;
            }
        }
        self.advance_close(key);
    }

    #[inline(never)]
    fn bring_home(&mut self, token: Token, outcome: Outcome, last: bool, woken: &mut Woken) {
        let Owner { channel, role } = self.owners[token.slot as usize];
        let key = channel as usize;
        let request = last.then(|| self.requests.remove(token));
        match (role, outcome) {
            (Role::Inbox, Outcome::Arrived(result)) => {
                // The request goes first: it holds a clone of the descriptor that may be closed now.
                drop(request);
                self.arrived(key, result, last, woken);
            }
            (Role::Lane, Outcome::Sent(result)) => {
                let Some(Request::Send { envelope, fd, .. }) = request else {
                    unreachable!("a send comes home once")
                };
                drop(fd);
                let lane = &mut self.channels[key].lane;
                lane.away = None;
                self.letters_away -= 1;
                let slip = lane.current.take().expect("a slip for what was away");
                self.sent(key, Letter { envelope, slip }, result, woken);
                self.advance_lane(key, Way::Submitted, woken);
                self.advance_if_closed(key);
            }
            (Role::Unblock, Outcome::Ready(_)) => {
                drop(request);
                self.channels[key].lane.unblock = None;
                self.try_blocked(key, woken);
                self.advance_if_closed(key);
            }
            (Role::Waiter(waiter), Outcome::Sent(result)) => {
                let Some(Request::Send { envelope, fd, .. }) = request else {
                    unreachable!("a send comes home once")
                };
                drop(fd);
                self.channels[key].others -= 1;
                self.sent_in_any_order(key, waiter.key(), envelope, result, woken);
                self.advance_if_closed(key);
            }
            (Role::Waiter(waiter), Outcome::Ready(result)) => {
                drop(request);
                self.channels[key].others -= 1;
                self.tell(waiter.key(), Done::Ready(result), false, woken);
                self.advance_if_closed(key);
            }
            (Role::Waiter(waiter), Outcome::Accepted(result)) => {
                drop(request);
                self.channels[key].others -= 1;
                self.tell(waiter.key(), Done::Accepted(result), false, woken);
                self.advance_if_closed(key);
            }
            _ => unreachable!("an outcome is of the kind that was asked for"),
        }
    }

    fn advance_if_closed(&mut self, key: usize) {
        if self.channels.get(key).is_some_and(|channel| channel.closed) {
            self.advance_close(key);
        }
    }

    // -- the end ----------------------------------------------------------------------------------------

    /// Brings everything home before the driver is closed: descriptors of a receive that has completed but
    /// has not been reaped are already in our table, and memory the kernel may write to must not be freed.
    fn drain(&mut self) {
        if self.driver.is_dead() {
            // Of a process that is killed nothing more is sent, and everything is closed.
            self.requests = Requests::default();
            self.retired.clear();
            return self.channels.clear();
        }
        let mut woken = Woken::default();
        // Answers given in the last moment still go out; a letter of each socket in each turn.
        for _ in 0..LAST_TURNS_MAX {
            let turned = self.turn(Sleep::Not, &mut woken);
            if turned.is_err() || !self.is_sending() {
                break;
            }
        }
        for token in self.requests.tokens() {
            self.driver.cancel(token);
        }
        const ATTEMPTS: usize = 100;
        let mut home = std::mem::take(&mut self.home);
        for _ in 0..ATTEMPTS {
            for completion in home.drain(..) {
                if let Outcome::Accepted(Ok(fd)) = completion.outcome {
                    discard(fd);
                }
                if completion.last {
                    drop(self.requests.remove(completion.token));
                }
            }
            if self.requests.is_empty() {
                break;
            }
            let _ = self.driver.turn(&mut self.requests, Sleep::For(Duration::from_millis(20)), &mut home);
        }
        if !self.requests.is_empty() {
            // A filter of system calls was installed over the ring, and nothing can be asked of it any more.
            // What only waits has given the kernel nothing to write to; of a send leaking is better than
            // freeing under the kernel's hands.
            self.requests.forget_all_but_waits();
        }
        // Sockets that were dropped, and whose last token has just come home.
        for channel in std::mem::take(&mut self.channels) {
            self.retire(channel.1);
        }
        self.close_the_retired();
    }
}

impl Channel {
    /// Nothing is away: the kernel and the driver have let go of the descriptor.
    fn is_home(&self) -> bool {
        self.lane.away.is_none()
            && self.lane.unblock.is_none()
            && self.inbox.away.is_none()
            && self.others == 0
    }

    /// Another holder of the end may have shrunk it.
    fn raise_send_buffer(&self) {
        // The kernel doubles it, for what it needs itself, and so the largest packet fits as well.
        let room = 2 * PACKET_BYTES_MAX as i32;
        let _ = sys::set_socket_option(self.fd.as_fd(), SocketOption::SendBuffer, room);
    }

    /// Only credentials tell an empty packet from the end of file.
    fn ask_for_credentials(&mut self) {
        let fd = self.fd.as_fd();
        // Of an end that was made here nobody else can have asked for them.
        let before = !self.made_here && sys::names_senders(fd);
        self.credentials = if before { Credentials::AskedBefore } else { Credentials::AskedHere };
        if !before {
            let _ = sys::set_socket_option(fd, SocketOption::PassCredentials, 1);
        }
    }

    /// Of an end that others may hold too, and change; or of which nobody has asked.
    fn ask_for_credentials_again(&mut self) {
        let forgone = self.credentials == Credentials::Forgone;
        if forgone || self.given {
            sys::name_senders_again(self.fd.as_fd());
        }
        if forgone {
            self.credentials = Credentials::AskedHere;
        }
    }
}

/// Says whether some were given to the threads.
fn close_retired(retired: impl Iterator<Item = Retired>, budget: &Budget) -> bool {
    let elsewhere = retired.filter_map(|Retired { fd, closing, .. }| match closing {
        // The look into it installs what it finds: without room the kernel would close that on this thread.
        Closing::Here { credentials_asked } if budget.covers(DESCRIPTORS_MAX) => {
            closer::retire_shut(fd, credentials_asked);
            None
        }
        Closing::Here { .. } | Closing::Elsewhere => Some(fd),
    });
    closer::queue_all(elsewhere)
}

/// Takes out each of a list, in order. Mostly there is one, and to drain a list takes more than that.
#[inline]
pub(crate) fn take_each<T>(list: &mut Vec<T>, mut each: impl FnMut(T)) {
    if list.len() > 1 {
        list.drain(..).for_each(&mut each);
    } else if let Some(one) = list.pop() {
        each(one);
    }
}

impl Number {
    fn of(waiter: usize) -> Number {
        let number = u32::try_from(waiter).ok().and_then(|key| NonZeroU32::MIN.checked_add(key));
        Number(number.expect("fewer than 2^32 who wait"))
    }

    fn key(self) -> usize {
        self.0.get() as usize - 1
    }
}

fn keep_shell(spare: &mut Vec<Shell>, shell: Shell) {
    if spare.len() < SPARE_SHELLS_MAX {
        spare.push(shell);
    }
}

/// Only a whole packet can succeed silently: part of a stream's bytes would be lost without a word.
fn succeeds_whole(kind: Kind) -> bool {
    kind == Kind::SeqPacket
}

impl Waiter {
    fn is_abandoned(&self) -> bool {
        matches!(self.state, WaiterState::Abandoned)
    }
}

impl Lane {
    /// No letter is waiting or away.
    fn is_empty(&self) -> bool {
        self.away.is_none() && self.waiting.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.is_empty() && self.unblock.is_none()
    }

    /// Nothing is away, and nothing has come between the last letter and the next.
    #[inline]
    fn is_untroubled(&self) -> bool {
        self.away.is_none() && !self.blocked && !self.broken && self.attempts == 0 && !self.raised
    }

    /// Bytes that wait.
    #[inline]
    fn unsent(&self) -> usize {
        if self.waiting.is_empty() { 0 } else { self.add_up_unsent() }
    }

    #[inline(never)]
    fn add_up_unsent(&self) -> usize {
        self.waiting.iter().map(|letter| letter.envelope.length()).sum()
    }

    /// What is with the driver comes home without a word, and something waits for that.
    fn waits_behind_silence(&self) -> bool {
        let silent = self.current.as_ref().is_some_and(|slip| slip.silent);
        self.away.is_some() && silent && !self.waiting.is_empty()
    }

    /// A letter is with the driver, or goes to it in the next turn.
    fn is_moving(&self) -> bool {
        self.away.is_some() || (!self.waiting.is_empty() && !self.blocked)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::task::Waker;

    use super::*;
    use crate::driver::{DriverChoice, SleepPlace};
    use crate::envelope::Control;
    use crate::remote::Bell;
    use crate::request::BURST_MAX;

    /// Each idle socket has a place for one letter.
    #[test]
    fn a_letter_is_two_words_and_so_is_a_line_of_them() {
        assert!(size_of::<Line<Letter>>() <= 16);
    }

    fn core() -> Core {
        let budget = Rc::new(Budget::new(0, Clock::Real));
        let ground = Ground { pool: Pool::new(4), budget, clock: Clock::Real, place: SleepPlace::OwnTurn };
        let (driver, _) = Driver::open(
            DriverChoice::Epoll,
            ground.clone(),
            &Arc::new(Bell::new(SleepPlace::OwnTurn).unwrap()),
        )
        .unwrap();
        Core::new(driver, ground)
    }

    /// A moment that was left standing ended a sleep in vain.
    #[test]
    fn with_nothing_left_to_close_there_is_no_moment_to_wake_up_for() {
        let mut core = core();
        let retired = |until| {
            let (fd, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
            Retired { fd: fd.into(), closing: Closing::Here { credentials_asked: false }, until }
        };
        core.keep_for_now(retired(Until::Sleeping));
        core.keep_for_now(retired(Until::Awake));
        core.close_those_retired(|retired| retired.until == Until::Sleeping);
        assert!(core.retired_since.is_some(), "one is left");
        core.close_those_retired(|retired| retired.until == Until::Awake);
        assert!(core.retired_since.is_none());
    }

    fn turns(core: &mut Core) {
        for _ in 0..4 {
            core.turn(Sleep::Not, &mut Woken::default()).unwrap();
        }
    }

    /// What the kernel says when its look at the queue and its look for the end have a message and a close
    /// between them. In the wild one receive in thousands.
    fn zero() -> io::Result<Arrival> {
        let message = Received::owned(Vec::new(), Control::default());
        Ok(Arrival { message, bytes_lost: false, control_lost: false, nothing: true, hung_up: false })
    }

    /// A spinner looks, and then takes a turn to see what it has found.
    #[test]
    fn what_a_look_brings_is_part_of_the_share_of_the_turn_that_follows() {
        let mut core = core();
        let (near, far) = sys::socketpair(Kind::SeqPacket).unwrap();
        let key = core.open(Fd::ours(near), Kind::SeqPacket, true);
        core.set_many(key);
        core.arm(key);
        turns(&mut core);
        let mut received = core.stats().messages_received;
        for _ in 0..3 {
            (0..3 * BURST_MAX).for_each(|_| testing::send_packet(&far, b"more", &[]).unwrap());
            core.look().unwrap();
            core.look().unwrap();
            core.turn(Sleep::Not, &mut Woken::default()).unwrap();
            assert_eq!(core.stats().messages_received - received, BURST_MAX as u64);
            received += BURST_MAX as u64;
            while core.take_arrived(key).is_some() {}
        }
    }

    /// Nothing can come any more, and nobody hears of a shutdown.
    #[test]
    fn the_end_is_believed_at_once_of_a_peer_that_had_hung_up() {
        for many in [false, true] {
            let mut core = core();
            let (near, far) = sys::socketpair(Kind::SeqPacket).unwrap();
            let key = core.open(Fd::ours(near), Kind::SeqPacket, true);
            if many {
                core.set_many(key);
            }
            let mut woken = Woken::default();
            assert!(core.poll_receive(key, Asker::Other(Waker::noop()), &mut woken).is_pending());
            turns(&mut core);
            testing::send_packet(&far, b"farewell", &[]).unwrap();
            drop(far);
            core.turn(Sleep::Forever, &mut woken).unwrap();
            assert_eq!(core.take_arrived(key).unwrap().unwrap().bytes(), b"farewell");
            if !many {
                assert!(core.poll_receive(key, Asker::Other(Waker::noop()), &mut woken).is_pending());
            }
            turns(&mut core);
            assert!(matches!(core.take_arrived(key), Some(Err(ReceiveError::Closed))));
            let channel = &core.channels[key];
            assert_eq!((channel.inbox.nothings, channel.shut), (1, true));
        }
    }

    #[test]
    fn a_false_end_of_file_is_not_believed() {
        for many in [false, true] {
            let mut core = core();
            let mut woken = Woken::default();
            let (near, far) = sys::socketpair(Kind::SeqPacket).unwrap();
            let key = core.open(Fd::ours(near), Kind::SeqPacket, true);
            if many {
                core.set_many(key);
            }
            assert!(core.poll_receive(key, Asker::Other(Waker::noop()), &mut woken).is_pending());
            testing::send_packet(&far, b"answer", &[]).unwrap();
            drop(far);
            core.arrived(key, zero(), false, &mut woken);
            turns(&mut core);
            assert_eq!(core.take_arrived(key).unwrap().unwrap().bytes(), b"answer");
            if !many {
                assert!(core.poll_receive(key, Asker::Other(Waker::noop()), &mut woken).is_pending());
            }
            turns(&mut core);
            assert!(matches!(core.take_arrived(key), Some(Err(ReceiveError::Closed))));
        }
    }
}
