//! The io_uring driver: one enter submits everything of a turn and sleeps.
//!
//! Receives wait by readiness, and what is ready is taken with a plain call: measured against the same
//! receive inside the ring, that is a tenth faster for one message at a time and no slower for many, lends
//! the kernel no buffers and exposes no descriptors. It owns the ring; requests it only points at. It never
//! touches a request between its submission and its last completion, except to read which kind it is and to
//! write down what the kernel knows nothing of: a stream's share of a turn, and whom nobody needs be told of.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::types::{self, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use super::epoll::{Now, Yielding, out_of_descriptors, receive_asleep, receive_now, tells_the_end};
use super::{Alarm, Ground, STARVED_RETRY, Sleep, SleepPlace, is_put_off, refusal};
use crate::envelope::{Envelope, Room, SEND_FLAGS, Snare};
use crate::fd::{Fd, Kind};
use crate::message::Message;
use crate::remote::Bell;
use crate::request::{Arrival, BURST_BYTES_MAX, Completion, Outcome, Request, Requests, Share, Token, Want};
use crate::sys::{self, errno, ready};

/// Entries of the submission queue; more in one turn are submitted in several enters.
const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue. What does not fit the kernel keeps (FEAT_NODROP).
const COMPLETIONS: u32 = 4096;

/// How often a turn asks the kernel for the rest of its news. It tells of 20 sockets at a time (since 6.13),
/// and one that has just become ready would otherwise wait for as many turns as there are times 20 busy ones
/// before it: 7 turns behind 150, each of which brings a share of all of them.
const REST_MAX: usize = 64;

/// How long a turn waits that was to sleep, and whose enter the kernel puts off (EAGAIN, EBUSY, ENOMEM): it
/// has no memory for it, and says so at once. Without the pause whoever waits would try as fast as it can.
const PUT_OFF_PAUSE: Duration = Duration::from_millis(1);

/// After so many enters in a row that were put off a turn says so. A second of pauses, at least.
const PUT_OFF_MAX: u32 = 1_000;

/// `user_data` of what is not a token. Generations never get this high.
const BELL: u64 = u64::MAX;
const IGNORED: u64 = u64::MAX - 1;
const ALARM: u64 = u64::MAX - 2;

/// In the ring of the alert: its read, of as many bytes as an eventfd holds.
const ALERT: u64 = 1;
const ALERT_BYTES: u32 = 8;

/// After so many sleeps in a row that one socket has ended, and nothing else, the next is slept in a receive
/// of that socket. To end such a sleep for something else costs as much as three of them save, by reckoning.
const SLEEPS_BEFORE_RECEIVE: u8 = 16;

pub(crate) struct Uring {
    // First, so that the ring is closed before anything it points at is freed.
    ring: IoUring,
    /// After it, since this is what the other writes to when there is news.
    alert: Option<Alert>,
    ground: Ground,
    bell: Arc<Bell>,
    bell_armed: bool,
    alarm: Alarm,
    /// What the entry that sets the alarm points at, until the kernel has read it.
    alarm_time: Box<Timespec>,
    no_iowait: bool,
    /// Silent sends that were submitted, or are about to be. One that has failed is not silent any more.
    silent: Vec<(Token, usize)>,
    /// One of them is not to be slept over.
    prompt: bool,
    /// Receives (and accepts) that wait for descriptors to come free; nothing is in the ring of those that
    /// want one message.
    starved: Vec<Token>,
    /// Receives of one message that have not looked for it yet, and of which nothing is in the ring.
    fresh: Vec<Token>,
    /// Streams to be looked at before the ring tells of them: at first those of ends that came from somebody;
    /// then those whose next message may have come while the last was answered.
    hot: Vec<Token>,
    /// Memory for that list while this turn's are gone on with.
    spare_hot: Vec<Token>,
    /// Streams that have had their share of a turn, and go on behind whoever has had none.
    busy: Vec<Token>,
    /// So many of them may go on in this turn.
    busy_due: usize,
    yielding: Yielding,
    /// Streams at their end, whose polls are on their way home, and what there is to tell when they are there
    /// and not before: whoever hears of it may give the descriptor away.
    ending: HashMap<Token, io::Result<Arrival>>,
    /// Receives of which nothing is in the ring, which is to tell of them if it is slept in.
    unwatched: Vec<Token>,
    /// The stream that delivered last: where a spinner looks.
    lately: Option<Token>,
    /// The socket that has ended the last sleeps, alone, and how many in a row.
    ended_by: Option<RawFd>,
    sleeps_ended: u8,
    /// The last turn that could not sleep looked there, and found nothing.
    looked_in_vain: bool,
    /// An executor takes the turns, and they need not end for a signal. The kernel begins a receive again
    /// behind one whose handler asked for that (SA_RESTART), as it never does with an enter.
    driven: bool,
    /// How many sleeps were slept in a receive.
    slept_in_receives: u64,
    /// Somebody looks there, and nothing need tell of it.
    looked_at: bool,
    /// The number of this turn, or between two of them of the next: what a look brings is part of that.
    turn: u32,
    /// Asked to come home, and not home yet.
    cancelled: HashSet<Token>,
    /// Entries for which the queue had no room, and could not be emptied. Whatever comes after them waits
    /// behind them: an entry that is cancelled has to be there before the cancellation.
    kept: VecDeque<squeue::Entry>,
    /// Enters in a row that the kernel has put off.
    put_off: u32,
}

/// What became of an enter.
enum Entered {
    Done,
    /// The kernel wants its completions reaped first, or has no memory for it just now, and has taken
    /// nothing.
    PutOff(io::Error),
}

impl Uring {
    /// A ring that has just passed a descriptor, and how it is set up; or why there is none.
    pub(crate) fn probe(ground: &Ground, bell: Arc<Bell>) -> Result<(Uring, String), String> {
        let (ring, sqarray) = match Uring::build() {
            Ok(built) => built,
            Err(error) => return Err(refusal("io_uring_setup", &error)),
        };
        let mut uring = Uring {
            no_iowait: ring.params().is_feature_no_iowait(),
            ring,
            alert: None,
            ground: ground.clone(),
            bell,
            bell_armed: false,
            alarm: Alarm::default(),
            alarm_time: Box::default(),
            silent: Vec::new(),
            prompt: false,
            starved: Vec::new(),
            fresh: Vec::new(),
            hot: Vec::new(),
            spare_hot: Vec::new(),
            busy: Vec::new(),
            busy_due: 0,
            yielding: Yielding::default(),
            ending: HashMap::new(),
            unwatched: Vec::new(),
            lately: None,
            ended_by: None,
            sleeps_ended: 0,
            looked_in_vain: false,
            driven: false,
            slept_in_receives: 0,
            looked_at: false,
            turn: 1,
            cancelled: HashSet::new(),
            kept: VecDeque::new(),
            put_off: 0,
        };
        // The enter through a registered descriptor saves a table look-up; without it nothing is different.
        let _ = uring.ring.submitter().register_ring_fd();
        match uring.pass_a_descriptor().and_then(|()| uring.prepare_to_be_watched()) {
            Ok(()) => {
                // Without it each sleep is the ring's.
                uring.alert = Alert::beside(&mut uring.ring, Arc::clone(&uring.bell)).ok();
                // As it is now, and not as it was while the probe had its pair.
                uring.ground.budget.measure();
                let watched = match uring.ground.place {
                    SleepPlace::OwnTurn => "",
                    SleepPlace::HostLoop => ", an eventfd to be watched",
                };
                let sqarray = if sqarray { "" } else { ", NO_SQARRAY" };
                let iowait = if uring.no_iowait { ", NO_IOWAIT" } else { "" };
                let how = format!("io_uring passed a descriptor (DEFER_TASKRUN{sqarray}{iowait}{watched})");
                Ok((uring, how))
            }
            Err(error) => Err(refusal("passing a descriptor through io_uring", &error)),
        }
    }

    fn build() -> io::Result<(IoUring, bool)> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        builder.setup_cqsize(COMPLETIONS);
        let with_array = builder.clone();
        match builder.setup_no_sqarray().build(SUBMISSIONS) {
            // A kernel before 6.6 does not know the flag.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Ok((with_array.build(SUBMISSIONS)?, true))
            }
            result => Ok((result?, false)),
        }
    }

    /// The thing itself: one descriptor, sent and received through this ring.
    fn pass_a_descriptor(&mut self) -> io::Result<()> {
        let (near, far) = sys::socketpair(Kind::SeqPacket)?;
        let (near, far) = (Fd::ours(near), Fd::ours(far));
        let mut envelope = Envelope::new(Message::from("probe").with_descriptor(near.clone()));
        envelope.seal();
        let mut requests = Requests::default();
        let room = Room { descriptors: 0, pidfd: false };
        let receive = requests.insert(Request::receive(
            near,
            Want {
                room,
                many: true,
                burst: 1,
                strange: false,
                unnamed: false,
                connected: true,
                looked: false,
                packets: true,
            },
        ));
        let send = requests.insert(Request::Send { fd: far, envelope, silent: true, prompt: true });
        self.submit(receive, &mut requests);
        self.submit(send, &mut requests);
        let mut result = Err(io::Error::other("nothing arrived"));
        let mut asked = false;
        // Two completions and a cancellation; twenty turns are plenty.
        const TURNS: u32 = 20;
        for turn in 0..TURNS {
            let mut home = Vec::new();
            self.turn(&mut requests, Sleep::For(Duration::from_millis(50)), &mut home)?;
            for completion in home {
                match completion.outcome {
                    // Ours, and closed here: no other thread is needed for that.
                    Outcome::Arrived(Ok(mut arrival)) if arrival.message.descriptors() == 1 => {
                        drop(arrival.message.take_descriptors());
                        result = Ok(());
                    }
                    // It came as far as this process, which has no room for it just now.
                    Outcome::Arrived(Ok(arrival)) if arrival.control_lost => result = Ok(()),
                    // The ring did what it should; the kernel counts descriptors in flight by user.
                    Outcome::Sent(Err(error)) if error.raw_os_error() == Some(errno::ETOOMANYREFS) => {
                        result = Ok(());
                    }
                    // The receive comes home cancelled after all has gone well.
                    Outcome::Arrived(Err(error)) | Outcome::Sent(Err(error)) if result.is_err() => {
                        result = Err(error);
                    }
                    _ => {}
                }
                if completion.last {
                    requests.remove(completion.token);
                }
            }
            if requests.is_empty() {
                return result;
            }
            if (result.is_ok() || turn > 10) && !asked {
                asked = true;
                self.cancel(receive);
            }
        }
        if self.put_off >= TURNS {
            // It has never taken anything, so nothing of this is away.
            return Err(io::Error::other("the kernel puts off each enter"));
        }
        // The kernel may still touch what is away.
        std::mem::forget(requests);
        Err(io::Error::other("a receive did not come home"))
    }

    /// In a host's loop the bell's eventfd is told of completions too: one descriptor for all there is to
    /// wake up for, since timers are the ring's own. Not the ring's descriptor, which wakes nobody under
    /// DEFER_TASKRUN; and not another mode, whose completions interrupt the host's system calls.
    fn prepare_to_be_watched(&mut self) -> io::Result<()> {
        match self.ground.place {
            SleepPlace::OwnTurn => Ok(()),
            SleepPlace::HostLoop => self.ring.submitter().register_eventfd(self.bell.eventfd().as_raw_fd()),
        }
    }

    // -- submitting -------------------------------------------------------------------------------------

    pub(crate) fn submit(&mut self, token: Token, requests: &mut Requests) {
        let Some(request) = requests.find(token) else { return };
        let entry = match request {
            Request::Send { fd, envelope, silent, prompt } => {
                let fd = types::Fd(fd.as_fd().as_raw_fd());
                let entry = match envelope.bare() {
                    Some(bytes) => {
                        opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(SEND_FLAGS).build()
                    }
                    None => opcode::SendMsg::new(fd, envelope.header()).flags(SEND_FLAGS as u32).build(),
                };
                if *silent {
                    self.prompt |= *prompt;
                    self.silent.push((token, envelope.length()));
                    entry.flags(squeue::Flags::SKIP_SUCCESS)
                } else {
                    entry
                }
            }
            Request::Receive { want: Want { many: false, strange: true, looked: false, .. }, .. } => {
                return self.fresh.push(token);
            }
            Request::Receive { fd, want, share } => {
                let asked_first = want.strange && !want.connected && !want.looked;
                if asked_first && !std::mem::replace(&mut share.hot, true) {
                    self.hot.push(token);
                }
                let (fd, many) = (fd.clone(), want.many);
                return if many { self.poll(token, &fd) } else { self.poll_soon(token, &fd) };
            }
            Request::Ready { fd, interest } => {
                opcode::PollAdd::new(types::Fd(fd.as_fd().as_raw_fd()), *interest).build()
            }
            Request::Accept { fd } => {
                opcode::PollAdd::new(types::Fd(fd.as_fd().as_raw_fd()), ready::READ).build()
            }
        };
        self.push(entry.user_data(token.to_bits()));
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        // Of those that wait for descriptors some have nothing in the ring. Then nothing is found there.
        if self.cancelled.insert(token) {
            self.push(opcode::AsyncCancel::new(token.to_bits()).build().user_data(IGNORED));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.kept.is_empty() || !self.has_room() {
            return self.kept.push_back(entry);
        }
        // SAFETY: all that `entry` points at is in the request, which stays in its slot until its last
        // completion, or the time of the alarm, which is in a box of the driver's. Kept honest by
        // `withdrawal.rs::a_dropped_future_leaves_its_slot` and `guest.rs::a_timer_wakes_the_host`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue has room");
    }

    /// Whether there is room for an entry, after one enter if need be. What goes wrong here goes wrong again
    /// in `turn`, which can say so, wait, and reap: the ring may be refused for good, by a filter of system
    /// calls that was installed over it, or be put off for as long as nobody reaps.
    fn has_room(&mut self) -> bool {
        let full = self.ring.submission().is_full();
        !full || self.enter(Sleep::Not).is_ok() && !self.ring.submission().is_full()
    }

    fn push_what_was_kept(&mut self) {
        while !self.kept.is_empty() && self.has_room() {
            let kept = std::mem::take(&mut self.kept);
            kept.into_iter().for_each(|entry| self.push(entry));
        }
    }

    /// Whether the kernel has been shown everything.
    fn all_is_submitted(&mut self) -> bool {
        self.kept.is_empty() && self.ring.submission().is_empty()
    }

    // -- one turn ---------------------------------------------------------------------------------------

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
        if !self.bell_armed && self.ground.place == SleepPlace::OwnTurn {
            self.watch_the_bell();
        }
        if !self.nothing_is_out_of_the_ordinary() {
            self.see_to_the_unusual(requests, home);
        }
        if !self.hot.is_empty() {
            self.go_on_with_the_hot(requests, home);
        }
        let (asked, mut sleep) = (sleep, sleep);
        let watched = match self.sleeps_ended >= SLEEPS_BEFORE_RECEIVE && home.is_empty() {
            true => self.wait_past_the_ring(&mut sleep, requests, home),
            false => false,
        };
        let slept = sleep != asked;
        if !watched {
            self.watch_the_unwatched(requests, home);
        }
        self.busy_due = self.busy.len();

        // With something to report, nothing to show to the kernel and no mark of its own that it has news,
        // there is nothing to enter for.
        let reports = !home.is_empty() || self.busy_due > 0;
        let quiet = reports && self.all_is_submitted() && self.silent.is_empty();
        if quiet && self.busy_due == 0 && !self.is_told() {
            return Ok(());
        }
        // In a host's loop no turn sleeps, and one follows the other while anything is to be submitted.
        let pause = match self.ground.place {
            SleepPlace::OwnTurn => sleep.at_most(PUT_OFF_PAUSE).duration().unwrap_or(PUT_OFF_PAUSE),
            SleepPlace::HostLoop => PUT_OFF_PAUSE,
        };
        if reports {
            sleep = Sleep::Not;
        }
        // Nobody but us knows that a silent send has succeeded, and we know it when the enter returns. Two
        // enters are cheaper than a sleep with a time limit: on a virtual machine a timer costs more than a
        // whole call.
        if std::mem::take(&mut self.prompt) {
            sleep = Sleep::Not;
        }
        if !self.starved.is_empty() {
            sleep = sleep.at_most(STARVED_RETRY);
        }
        if sleep != Sleep::Not {
            self.be_told_by_the_ring();
        }
        let (entered, before) = (self.enter(sleep)?, home.len());
        // Asked before reaping, which may queue entries anew: a silent send whose entry the kernel has
        // consumed, and whose failure is not among what is reaped now, has succeeded. A failure may also
        // stand in the kernel's overflow list, behind a full queue.
        let consumed = self.all_is_submitted() && !self.ring.submission().cq_overflow();
        self.reap(requests, home);
        let slept = slept || sleep != Sleep::Not;
        if slept {
            self.ground.budget.slept();
        }
        let mut ended_it = before..home.len();
        self.hear_the_rest(requests, home)?;
        if self.busy_due > 0 && !self.yielding.yields(!home.is_empty()) {
            self.go_on_with_the_busy(requests, home);
            // After a sleep these are streams whose polls were home by the end of it, too.
            ended_it.end = home.len();
        }
        if slept {
            self.note_who_ended_it(&home[ended_it], requests);
        }
        if !self.silent.is_empty() {
            if consumed {
                self.bring_home_the_silent(requests, home);
            } else {
                self.prompt = true;
            }
        }
        let Entered::PutOff(error) = entered else { return Ok(()) };
        // It was put off for want of room among the completions, which have been reaped.
        if !home.is_empty() {
            return Ok(());
        }
        std::thread::sleep(pause);
        if self.put_off < PUT_OFF_MAX { Ok(()) } else { Err(error) }
    }

    /// Whether this turn begins with nothing but streams that are watched, or are to be again: what nearly
    /// all turns do. What else there may be stands apart, so that their code is short: after a sleep none of
    /// it is in the processor's cache, and each line of it that a turn runs through has to be fetched.
    #[inline]
    fn nothing_is_out_of_the_ordinary(&self) -> bool {
        self.cancelled.is_empty() && self.kept.is_empty() && self.starved.is_empty() && self.fresh.is_empty()
    }

    #[inline(never)]
    fn see_to_the_unusual(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        // Some had come home already when they were asked to, and nobody had looked.
        self.cancelled.retain(|token| requests.find(*token).is_some());
        self.push_what_was_kept();
        self.feed_the_starved(requests, home);
        self.begin_with_the_fresh(requests, home);
    }

    #[inline(never)]
    fn watch_the_bell(&mut self) {
        self.bell_armed = true;
        let bell = types::Fd(self.bell.eventfd().as_raw_fd());
        self.push(opcode::PollAdd::new(bell, ready::READ).build().user_data(BELL));
    }

    /// Whether somebody looks at the socket that delivered last, again and again, until this is taken back.
    /// Then nothing in the ring tells of it, which spares a poll and the news of what was found already.
    pub(crate) fn set_looked_at(&mut self, looked_at: bool) {
        self.looked_at = looked_at;
    }

    /// Looks at the socket that delivered last, past the ring: there the answer is most likely to come, and
    /// one plain call finds it sooner than the ring tells of it.
    pub(crate) fn look(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) -> bool {
        if let Some(token) = self.lately
            && let Some(Request::Receive { fd, want, share }) = requests.find(token)
            && !self.cancelled.contains(&token)
            && !share.starved
            && share.is_left(self.turn, *want)
        {
            match receive_now(&self.ground, fd, want.room) {
                Now::Arrived(arrival) if !arrival.nothing => {
                    share.took(arrival.message.length());
                    home.push(Completion { token, outcome: Outcome::Arrived(Ok(arrival)), last: false });
                    return true;
                }
                Now::Empty => {}
                // What else there is to say the ring says, which has to watch for that.
                _ => {
                    self.lately = None;
                    return true;
                }
            }
        }
        self.is_told()
    }

    /// Looks at memory that the kernel writes, without a system call.
    fn is_told(&mut self) -> bool {
        is_told(&mut self.ring)
    }

    /// Whether there is news of which nobody has looked what it is.
    pub(crate) fn holds_back(&mut self) -> bool {
        self.is_told()
    }

    /// What arrives for a stream whose poll is in the ring, and which is on none of the lists, makes work at
    /// once, and there is none.
    pub(crate) fn hears_nothing(&mut self) -> bool {
        self.all_is_submitted() && !self.is_told()
    }

    /// Whether nothing is kept for any token: what it is to be when all are home.
    #[cfg(all(test, feature = "script"))]
    pub(super) fn is_at_rest(&self) -> bool {
        let lists = [&self.starved, &self.fresh, &self.hot, &self.busy, &self.unwatched];
        let nothing_waits = self.silent.is_empty() && lists.into_iter().all(Vec::is_empty);
        nothing_waits && self.ending.is_empty() && self.cancelled.is_empty() && self.kept.is_empty()
    }

    // -- asleep in a receive ----------------------------------------------------------------------------

    /// Waits for the one socket that has ended all the last sleeps where it is, if there is nothing else but
    /// what the ring tells of already. False if the ring is to tell of it too. A sleep that is over is not to
    /// be slept again in the same turn: what a signal's handler has done is seen between two.
    fn wait_past_the_ring(
        &mut self,
        sleep: &mut Sleep,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) -> bool {
        let Some((token, fd, want)) = self.where_to_sleep(requests) else { return false };
        if *sleep == Sleep::Not {
            // A look costs less than to have the ring tell, and the next turn may sleep. But not again and
            // again; and a spinner looks by itself.
            if self.looked_at || self.looked_in_vain {
                return false;
            }
            self.take_past_the_ring(token, &fd, want, How::Now { hung_up: false }, requests, home);
            self.looked_in_vain = home.is_empty();
            return true;
        }
        self.looked_in_vain = false;
        if let Slept::Once = self.sleep_in_receive(token, &fd, want, *sleep, requests, home) {
            *sleep = Sleep::Not;
        }
        !home.is_empty()
    }

    /// The receive in which this turn may sleep: the only one of which the ring does not tell yet, while all
    /// that there is to wait for besides is in the ring already.
    #[inline]
    fn where_to_sleep(&mut self, requests: &mut Requests) -> Option<(Token, Fd, Want)> {
        let &[token] = self.unwatched.as_slice() else { return None };
        let nothing_else = self.has_only_the_unwatched();
        match requests.find(token).filter(|_| nothing_else)? {
            Request::Receive { fd, share, want } if want.packets && !share.hot && !share.starved => {
                self.sleeps_in(fd).then(|| (token, fd.clone(), *want))
            }
            _ => None,
        }
    }

    /// Sleeps until the socket has something, which is home then; or until there is anything else, or for no
    /// time at all.
    fn sleep_in_receive(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        sleep: Sleep,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) -> Slept {
        if let Sleep::For(time) = sleep {
            // It is left where it is when the sleep ends sooner, and mostly serves the next ones too.
            let moment = Some(self.ground.clock.now() + time);
            if self.set_alarm_for(moment).is_err() {
                return Slept::Not;
            }
            // The kernel may have put it off, and then there is no alarm yet.
            if !self.all_is_submitted() {
                return Slept::Not;
            }
        }
        let before = self.slept_in_receives;
        self.take_past_the_ring(token, fd, want, How::Asleep, requests, home);
        self.ground.budget.slept();
        if home.is_empty() {
            // Whatever else it is that has ended it, or kept it from beginning, may do so the next time.
            if !self.is_told() {
                self.sleeps_ended = 0;
            }
            self.be_told_by_the_ring();
        }
        if self.slept_in_receives == before { Slept::Not } else { Slept::Once }
    }

    /// Takes what there is of a socket of which nothing is in the ring.
    fn take_past_the_ring(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        how: How,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) {
        if want.many {
            return self.take_many(token, fd, want, how, requests, home);
        }
        let found = match how {
            How::Asleep => self.receive_asleep(fd, want.room),
            How::Now { .. } => receive_now(&self.ground, fd, want.room),
        };
        let result = match found {
            Now::Arrived(arrival) => Ok(arrival),
            Now::Failed(error) => Err(error),
            Now::Empty | Now::Starved => return,
        };
        self.unwatched.clear();
        self.bring_home_for_good(token, Outcome::Arrived(result), requests, home);
    }

    fn receive_asleep(&mut self, fd: &Fd, room: Room) -> Now {
        let Uring { ring, alert: Some(alert), ground, slept_in_receives, .. } = self else {
            return Now::Empty;
        };
        if !alert.is_armed(ring) {
            return Now::Empty;
        }
        let Alert { ring: own, snare: Some(snare), .. } = alert else { return Now::Empty };
        receive_asleep(ground, fd, room, |place, room| {
            snare.receive_asleep(fd.as_fd(), place, room, || {
                let quiet = !is_told(ring) && own.completion().is_empty();
                *slept_in_receives += u64::from(quiet);
                quiet
            })
        })
    }

    pub(crate) fn set_driven(&mut self, driven: bool) {
        if !driven {
            self.be_told_by_the_ring();
        }
        self.driven = driven;
    }

    /// From here on no news need be told past the ring.
    fn be_told_by_the_ring(&mut self) {
        if let Some(alert) = &mut self.alert {
            alert.put_away(&mut self.ring);
        }
    }

    /// A sleep in the ring is over, and this is home.
    fn note_who_ended_it(&mut self, home: &[Completion], requests: &mut Requests) {
        let one = match home {
            // The alarm, which says nothing of anybody; or the bell.
            [] if !self.bell_armed => None,
            [] => return,
            [first, rest @ ..] => rest.iter().all(|other| other.token == first.token).then_some(first),
        };
        let fd = one.and_then(|one| match requests.find(one.token) {
            Some(Request::Receive { fd, .. }) => Some(fd.as_fd().as_raw_fd()),
            _ => None,
        });
        let again = fd.is_some() && fd == self.ended_by;
        self.sleeps_ended = if again { self.sleeps_ended.saturating_add(1) } else { 0 };
        self.ended_by = fd;
    }

    /// Whether nothing is to be done and nothing to be submitted, but for what is not watched.
    fn has_only_the_unwatched(&mut self) -> bool {
        self.nothing_is_out_of_the_ordinary()
            && self.hot.is_empty()
            && self.busy.is_empty()
            && self.silent.is_empty()
            && !self.prompt
            && self.all_is_submitted()
    }

    pub(crate) fn sleeps_in(&self, fd: &Fd) -> bool {
        let often = self.sleeps_ended >= SLEEPS_BEFORE_RECEIVE && self.alert.is_some() && self.driven;
        often && self.ended_by == Some(fd.as_fd().as_raw_fd())
    }

    /// How many sleeps were slept in a receive.
    pub(crate) fn slept_in_receives(&self) -> u64 {
        self.slept_in_receives
    }

    // -- in a host's loop -------------------------------------------------------------------------------

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.eventfd().as_fd()
    }

    pub(crate) fn hand_over(&mut self, first: Option<Instant>, requests: &mut Requests) -> io::Result<bool> {
        let first = self.first(first);
        self.set_alarm_for(first)?;
        self.ring.completion().enable_eventfd();
        sys::counter_drain(self.bell.eventfd().as_fd());
        // What came before the drain has left a mark in the ring: the kernel marks first and rings then.
        fence(Ordering::SeqCst);
        let waiting = !self.silent.is_empty() || self.goes_on();
        // Those that wait for descriptors are watched again when they have got some.
        let is_fed = |token: &Token| requests.share(*token).is_some_and(|share| !share.starved);
        let unwatched = self.unwatched.iter().any(is_fed);
        Ok(self.is_told() || waiting || unwatched || !self.all_is_submitted())
    }

    /// While turns are taken nobody need be told, which spares the kernel a write for each enter.
    ///
    /// Only where an atomic operation is a barrier too. Elsewhere the kernel may look whether it is to ring
    /// before its mark can be seen, while we look for the mark before it can see that it is to ring, and the
    /// host would sleep over a message.
    pub(crate) fn take_back(&mut self) {
        if cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
            self.ring.completion().disable_eventfd();
        }
    }

    pub(crate) fn wants_a_turn(&mut self, first: Option<Instant>) -> bool {
        let submitted = !self.all_is_submitted() || !self.fresh.is_empty();
        submitted || self.alarm.is_late_for(first)
    }

    /// Sees to it that the alarm goes off by then, if there is such a moment.
    fn set_alarm_for(&mut self, first: Option<Instant>) -> io::Result<()> {
        let Some(moment) = first.filter(|_| self.alarm.is_late_for(first)) else { return Ok(()) };
        // Never zero, which the kernel would take for a mistake.
        let time = moment.saturating_duration_since(self.ground.clock.now()).max(Duration::from_nanos(1));
        *self.alarm_time = Timespec::from(time);
        let entry = if self.alarm.is_set() {
            // If it has gone off meanwhile this fails, and the turn that sees it go off sets it anew.
            let update = opcode::TimeoutUpdate::new(ALARM, &raw const *self.alarm_time).build();
            update.flags(squeue::Flags::SKIP_SUCCESS).user_data(IGNORED)
        } else {
            opcode::Timeout::new(&raw const *self.alarm_time).build().user_data(ALARM)
        };
        self.push(entry);
        self.alarm.set(moment);
        self.enter(Sleep::Not).map(drop)
    }

    fn first(&self, first: Option<Instant>) -> Option<Instant> {
        if self.starved.is_empty() {
            return first;
        }
        let retry = self.ground.clock.now() + STARVED_RETRY;
        Some(first.map_or(retry, |first| first.min(retry)))
    }

    // -- entering and reaping ---------------------------------------------------------------------------

    fn enter(&mut self, sleep: Sleep) -> io::Result<Entered> {
        let submission = self.ring.submission();
        let queued = submission.len() as u32;
        let deferred = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let waiting = !self.ring.completion().is_empty();
        let want = u32::from(!waiting && sleep != Sleep::Not);
        if queued == 0 && want == 0 && !deferred {
            return Ok(Entered::Done);
        }
        let mut flags = EnterFlags::GETEVENTS;
        // Without it an idle reactor is accounted as waiting for a disk: 100 % iowait.
        if self.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let result = match sleep {
            Sleep::For(time) if want > 0 => {
                let timespec = Timespec::from(time);
                let arguments = SubmitArgs::new().timespec(&timespec);
                flags |= EnterFlags::EXT_ARG;
                // SAFETY: `arguments` and the time it points at outlive the call; the queued entries are
                // good, see `push`. Kept honest by `executor.rs::timers_fire_in_order`.
                unsafe { self.ring.submitter().enter(queued, want, flags.bits(), Some(&arguments)) }
            }
            // SAFETY: no argument; the queued entries are good, see `push`.
            // Kept honest by `driver.rs::each_driver_can_be_forced`.
            _ => unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, flags.bits(), None) },
        };
        let entered = match result {
            Ok(_) => Entered::Done,
            // Time is up, or a signal.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Entered::Done,
            Err(error) if is_put_off(&error) => Entered::PutOff(error),
            Err(error) => return Err(error),
        };
        self.put_off = match entered {
            Entered::Done => 0,
            Entered::PutOff(_) => self.put_off.saturating_add(1),
        };
        Ok(entered)
    }

    fn hear_the_rest(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) -> io::Result<()> {
        for _ in 0..REST_MAX {
            if !self.ring.submission().taskrun() {
                break;
            }
            if let Entered::PutOff(_) = self.enter(Sleep::Not)? {
                break;
            }
            self.reap(requests, home);
        }
        Ok(())
    }

    fn reap(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        while let Some(completion) = self.next_completion() {
            match completion.user_data() {
                IGNORED => {}
                BELL => {
                    sys::counter_drain(self.bell.eventfd().as_fd());
                    self.bell_armed = false;
                }
                ALARM => self.alarm.went_off(),
                bits => self.bring_home(Token::from_bits(bits), completion.result(), requests, home),
            }
        }
    }

    #[inline]
    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn bring_home(&mut self, token: Token, result: i32, requests: &mut Requests, home: &mut Vec<Completion>) {
        let Some(request) = requests.find(token) else {
            unreachable!("a completion belongs to a request that is away");
        };
        let outcome = match request {
            Request::Receive { fd, want, .. } if want.many && result >= 0 => {
                let (fd, want) = (fd.clone(), *want);
                self.stream(token, &fd, want, has_ended(result as usize), requests, home)
            }
            _ => self.single(token, check(result), requests),
        };
        if let Some(outcome) = outcome {
            self.bring_home_for_good(token, outcome, requests, home);
        }
    }

    /// What has become of anything but a stream that is readable.
    #[inline(never)]
    fn single(
        &mut self,
        token: Token,
        result: io::Result<usize>,
        requests: &mut Requests,
    ) -> Option<Outcome> {
        match requests.find(token)? {
            Request::Send { silent, .. } => {
                *silent = false;
                Some(Outcome::Sent(result))
            }
            Request::Receive { fd, want, .. } => {
                let (fd, want) = (fd.clone(), *want);
                match result {
                    Err(error) => Some(Outcome::Arrived(Err(error))),
                    Ok(mask) => self.take(token, &fd, want, has_ended(mask)),
                }
            }
            Request::Ready { .. } => Some(Outcome::Ready(result.map(|mask| mask as u32))),
            request @ Request::Accept { .. } if self.cancelled.contains(&token) => {
                Some(request.failed(cancelled()))
            }
            Request::Accept { fd } => match result.and_then(|_| sys::accept(fd.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.again(token, requests),
                Err(error) if out_of_descriptors(&error) => {
                    self.starved.push(token);
                    None
                }
                result => Some(Outcome::Accepted(result)),
            },
        }
    }

    /// Nothing of it is in the ring any more.
    #[inline(never)]
    fn bring_home_for_good(
        &mut self,
        token: Token,
        outcome: Outcome,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) {
        self.cancelled.remove(&token);
        // The lists may still name it; whoever goes through them looks here.
        if let Some(Request::Receive { share, .. }) = requests.find(token) {
            (share.hot, share.starved) = (false, false);
        }
        // What a stream has ended with is said instead of how its poll came home: asked to, or by itself.
        let outcome = self.ending.remove(&token).map_or(outcome, Outcome::Arrived);
        home.push(Completion { token, outcome, last: true });
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.fresh.is_empty() || !self.hot.is_empty() || !self.busy.is_empty()
    }

    pub(crate) fn comes_back_at_once(&self) -> bool {
        self.prompt
    }

    pub(crate) fn take_now(&mut self, fd: &Fd, room: Room) -> Now {
        receive_now(&self.ground, fd, room)
    }

    /// Takes one message with a plain call, or has the ring tell when there is one.
    fn take(&mut self, token: Token, fd: &Fd, want: Want, hung_up: bool) -> Option<Outcome> {
        // Whoever asked it home does not want it: it stays for others who hold the socket.
        if self.cancelled.contains(&token) {
            return Some(Outcome::Arrived(Err(cancelled())));
        }
        match receive_now(&self.ground, fd, want.room) {
            Now::Arrived(arrival) => {
                let hung_up = hung_up && arrival.nothing && tells_the_end(fd, want);
                Some(Outcome::Arrived(Ok(Arrival { hung_up, ..arrival })))
            }
            Now::Failed(error) => Some(Outcome::Arrived(Err(error))),
            Now::Empty => {
                self.poll_soon(token, fd);
                None
            }
            Now::Starved => {
                self.starved.push(token);
                None
            }
        }
    }

    /// Has the ring tell of it, at the latest when it is entered next.
    fn poll_soon(&mut self, token: Token, fd: &Fd) {
        match self.ground.place {
            SleepPlace::OwnTurn => self.unwatched.push(token),
            // What a turn has to show to the kernel is looked for in the queue of the ring.
            SleepPlace::HostLoop => self.poll(token, fd),
        }
    }

    /// Has the ring tell, once, when the socket is readable, which it looks at when it is given this. A poll
    /// of many shots need not be armed again, but tells of what comes and not of what is there: after it a
    /// queue has to be emptied, and the receive that finds it empty costs more than another poll.
    fn poll(&mut self, token: Token, fd: &Fd) {
        let fd = types::Fd(fd.as_fd().as_raw_fd());
        self.push(opcode::PollAdd::new(fd, ready::READ).build().user_data(token.to_bits()));
    }

    /// The socket is readable: takes what there is, but no more than one turn's share. Its poll has come home
    /// with this, and goes back before the ring is asked again; or it was the last.
    fn stream(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        hung_up: bool,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) -> Option<Outcome> {
        let share = requests.share(token)?;
        share.unwatched = true;
        // Of one that waits for descriptors, or for its turn, this is no news; and what is asked home leaves
        // what there is to others.
        let waits = share.starved || share.hot;
        if !waits && !self.cancelled.contains(&token) {
            // One that has brought as many bytes as it may goes behind those who were just heard of, too.
            // What its poll said of the end would be forgotten there.
            if share.was_full() && !hung_up {
                share.hot = true;
                self.busy.push(token);
                let last = self.busy.len() - 1;
                self.busy.swap(self.busy_due, last);
                self.busy_due += 1;
            } else {
                self.take_many(token, fd, want, How::Now { hung_up }, requests, home);
            }
        }
        // Asked before, or at its end: nothing of it is in the ring.
        if self.cancelled.contains(&token) {
            return Some(Outcome::Arrived(Err(cancelled())));
        }
        self.unwatched.push(token);
        None
    }

    /// Takes what there is, and what is left of the stream's share of this turn. Where mostly one message
    /// comes at a time it takes one.
    fn take_many(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        how: How,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) {
        let Some(share) = requests.share(token) else { return };
        let (mut asleep, hung_up) = match how {
            How::Now { hung_up } => (false, hung_up),
            How::Asleep => (true, false),
        };
        let mut nothing = false;
        let mut taken = 0;
        while share.is_left(self.turn, want) {
            let found = match std::mem::take(&mut asleep) {
                false => receive_now(&self.ground, fd, want.room),
                true => self.receive_asleep(fd, want.room),
            };
            let length = match &found {
                Now::Arrived(arrival) if !arrival.nothing => arrival.message.length(),
                Now::Empty => {
                    // Behind several another may come the next time, too.
                    if taken == 1 {
                        share.behind.found(false);
                    }
                    return;
                }
                _ => {
                    let ended = hung_up && tells_the_end(fd, want);
                    let found = found.told_of_the_end(ended);
                    let ends = nothing || ended;
                    let Some(result) = self.take_no_message(token, fd, want, share, found, ends) else {
                        return;
                    };
                    nothing |= result.is_ok();
                    home.push(Completion { token, outcome: Outcome::Arrived(result), last: false });
                    continue;
                }
            };
            nothing = false;
            if let Now::Arrived(arrival) = found {
                home.push(Completion { token, outcome: Outcome::Arrived(Ok(arrival)), last: false });
            }
            share.took(length);
            self.lately = Some(token);
            taken += 1;
            if taken > 1 {
                share.behind.found(length < BURST_BYTES_MAX);
            }
            // What stands behind it the ring tells of, unless it is found first when this has been answered.
            if share.unwatched && (length >= BURST_BYTES_MAX || !share.behind.is_due()) {
                if how != How::Asleep && share.soon.is_due() {
                    share.hot = true;
                    self.hot.push(token);
                }
                return;
            }
        }
        if !std::mem::replace(&mut share.hot, true) {
            self.busy.push(token);
        }
    }

    /// Something that may be the end of a stream, or why there is nothing. What is to be told of it, if the
    /// stream goes on.
    #[inline(never)]
    fn take_no_message(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        share: &mut Share,
        found: Now,
        ends: bool,
    ) -> Option<io::Result<Arrival>> {
        match found {
            // The end of file is believed when it is said twice, or when the other end was closed before; and
            // then there is nothing more to come.
            Now::Arrived(arrival) if ends => self.end(token, share.unwatched, Ok(arrival)),
            Now::Arrived(arrival) => {
                if want.strange || want.unnamed {
                    // As in `op.rs`, whose turn comes too late: the second one is taken here.
                    sys::name_senders_again(fd.as_fd());
                }
                // No part of the stream's share: what decides comes next, and a turn that had no room for it
                // would leave the question to the next, which begins with the same.
                self.lately = Some(token);
                return Some(Ok(arrival));
            }
            // A reset stands in front of what is queued.
            Now::Failed(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                share.took(0);
                return Some(Err(error));
            }
            Now::Failed(error) => self.end(token, share.unwatched, Err(error)),
            Now::Starved => {
                if !std::mem::replace(&mut share.starved, true) {
                    self.starved.push(token);
                }
            }
            Now::Empty => {}
        }
        None
    }

    /// Nothing more comes of this stream. If its poll has come home there is nothing in the ring to be asked
    /// for it: the answer to that would be an enter of its own.
    #[cold]
    fn end(&mut self, token: Token, unwatched: bool, result: io::Result<Arrival>) {
        self.ending.insert(token, result);
        match unwatched {
            true => _ = self.cancelled.insert(token),
            false => self.cancel(token),
        }
    }

    /// Has the ring tell again of streams whose polls have come home. Not of those that go on in the next
    /// turn or wait for descriptors; nor of the one that somebody looks at.
    fn watch_the_unwatched(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        let mut place = 0;
        while let Some(&token) = self.unwatched.get(place) {
            match requests.find(token) {
                Some(request) if self.cancelled.contains(&token) => {
                    let outcome = request.failed(cancelled());
                    self.bring_home_for_good(token, outcome, requests, home);
                }
                Some(Request::Receive { share, .. }) if share.hot || share.starved => {
                    place += 1;
                    continue;
                }
                Some(_) if self.looked_at && self.lately == Some(token) => {
                    place += 1;
                    continue;
                }
                Some(Request::Receive { fd, share, .. }) => {
                    share.unwatched = false;
                    let fd = fd.clone();
                    self.poll(token, &fd);
                }
                // It has come home, and was only not taken off the list.
                _ => {}
            }
            self.unwatched.swap_remove(place);
        }
    }

    fn begin_with_the_fresh(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        for token in std::mem::take(&mut self.fresh) {
            let Some(Request::Receive { fd, want, .. }) = requests.find(token) else { continue };
            let (fd, want) = (fd.clone(), *want);
            if let Some(outcome) = self.take(token, &fd, want, false) {
                self.bring_home_for_good(token, outcome, requests, home);
            }
        }
    }

    /// Streams at which a look may find something before the ring tells of it. Those that bring full packets
    /// go behind whoever it has news of, or could have none of for want of a poll.
    fn go_on_with_the_hot(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        let mut hot = std::mem::replace(&mut self.hot, std::mem::take(&mut self.spare_hot));
        for token in hot.drain(..) {
            let is_full = requests.share(token).is_some_and(|share| share.was_full());
            if is_full && (self.unwatched.len() > 1 || self.is_told()) {
                self.busy.push(token);
                continue;
            }
            let before = home.len();
            self.go_on_with(token, requests, home);
            if let Some(share) = requests.share(token) {
                share.soon.found(home.len() > before);
            }
        }
        self.spare_hot = hot;
    }

    /// Streams that had more than their share in a turn before, and those that mostly have: those at the
    /// front, without those who have just had it.
    fn go_on_with_the_busy(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        let fresh = self.busy.split_off(self.busy_due);
        for token in std::mem::replace(&mut self.busy, fresh) {
            self.go_on_with(token, requests, home);
        }
    }

    fn go_on_with(&mut self, token: Token, requests: &mut Requests, home: &mut Vec<Completion>) {
        if let Some(Request::Receive { fd, want, share }) = requests.find(token)
            && std::mem::take(&mut share.hot)
            && !self.cancelled.contains(&token)
        {
            let (fd, want) = (fd.clone(), *want);
            self.take_many(token, &fd, want, How::Now { hung_up: false }, requests, home);
        }
    }

    /// Somebody else was faster, or there may be more: waits once more, unless asked to come home meanwhile.
    fn again(&mut self, token: Token, requests: &mut Requests) -> Option<Outcome> {
        if self.cancelled.contains(&token) {
            return requests.find(token).map(|request| request.failed(cancelled()));
        }
        self.submit(token, requests);
        None
    }

    fn feed_the_starved(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        if self.starved.is_empty() {
            return;
        }
        let room = self.ground.budget.has_room();
        for token in std::mem::take(&mut self.starved) {
            let cancelled = self.cancelled.contains(&token);
            let outcome = match requests.find(token) {
                // It has come home, and was only not taken off the list.
                None => None,
                Some(Request::Receive { want, share, .. }) if want.many && !share.starved => None,
                // Its poll comes home from the ring.
                Some(Request::Receive { want, share, .. }) if want.many && cancelled => {
                    share.starved = false;
                    None
                }
                Some(_) if !room && !cancelled => {
                    self.starved.push(token);
                    None
                }
                Some(Request::Receive { fd, want, share }) => {
                    share.starved = false;
                    let (fd, want) = (fd.clone(), *want);
                    if want.many {
                        self.take_many(token, &fd, want, How::Now { hung_up: false }, requests, home);
                        None
                    } else {
                        self.take(token, &fd, want, false)
                    }
                }
                Some(_) => self.again(token, requests),
            };
            if let Some(outcome) = outcome {
                self.bring_home_for_good(token, outcome, requests, home);
            }
        }
    }

    /// They were done inside the enter, since they may not wait and are never handed to a worker.
    fn bring_home_the_silent(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        for (token, length) in self.silent.drain(..) {
            // Of one that has failed this was told.
            if !matches!(requests.find(token), Some(Request::Send { silent: true, .. })) {
                continue;
            }
            home.push(Completion { token, outcome: Outcome::Sent(Ok(length)), last: true });
        }
    }
}

/// What became of a sleep in a receive.
enum Slept {
    /// Something was in the way, or there was news already.
    Not,
    Once,
}

/// How a stream is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Now {
        /// The peer is known to be gone.
        hung_up: bool,
    },
    /// By a call that sleeps, once.
    Asleep,
}

/// What ends a sleep in a receive when the ring has news: a ring of its own, in which one read is away, of an
/// eventfd that the other ring writes to, and whoever rings the bell. Its completion interrupts system calls,
/// as those of the other do not; and what is read spoils the header of the receive, so that one that was just
/// about to begin fails too.
///
/// To sleep like this costs what a bare receive does. The ring's sleep is three calls (the poll, the sleep
/// and the receive) in two, and some 1 µs more.
struct Alert {
    ring: IoUring,
    /// Always there, until it may have to be leaked.
    snare: Option<Snare>,
    bell: Arc<Bell>,
    /// The read is away.
    armed: bool,
    /// The other ring writes, and so do ringers.
    told: bool,
}

impl Alert {
    /// `Unsupported` where a mark of the kernel's and our look for it may pass each other: see `take_back`.
    fn beside(ring: &mut IoUring, bell: Arc<Bell>) -> io::Result<Alert> {
        let (true, Some(eventfd)) = (cfg!(target_arch = "x86_64"), bell.alert()) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let own = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(1)?;
        own.submitter().register_files(&[eventfd.as_raw_fd()])?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        ring.completion().disable_eventfd();
        Ok(Alert { ring: own, snare: Some(Snare::new()), bell, armed: false, told: false })
    }

    /// Sees to it that whatever there is to be told of from here on spoils the snare. False if something has,
    /// or it cannot be had.
    fn is_armed(&mut self, ring: &mut IoUring) -> bool {
        if !std::mem::replace(&mut self.told, true) {
            ring.completion().enable_eventfd();
            // What has come before this has left a mark in the ring: the kernel marks first and rings then.
            fence(Ordering::SeqCst);
            if !self.bell.alert_too() {
                return false;
            }
        }
        self.reap();
        // What was written late, of news that are known, is read at once.
        for _ in 0..2 {
            if !self.armed {
                self.arm();
                self.reap();
            }
        }
        self.armed
    }

    fn arm(&mut self) {
        if let Some(snare) = &self.snare {
            let eventfd = types::Fixed(0);
            let read = opcode::Read::new(eventfd, snare.weak_place(), ALERT_BYTES).build().user_data(ALERT);
            // SAFETY: what is read goes to the header of the snare, which stays where it is until the read
            // is home: see `drop`. Kept honest by `sleeping.rs::another_socket_ends_it`.
            // With no room there is the same entry, which the kernel has put off.
            let _ = unsafe { self.ring.submission().push(&read) };
            self.armed = self.ring.submit().is_ok_and(|taken| taken == 1);
        }
    }

    fn reap(&mut self) {
        while let Some(completion) = self.ring.completion().next() {
            self.armed &= completion.user_data() != ALERT;
        }
    }

    /// The ring tells of its news itself.
    fn put_away(&mut self, ring: &mut IoUring) {
        if std::mem::take(&mut self.told) {
            ring.completion().disable_eventfd();
            self.bell.alert_no_more();
        }
    }
}

impl Drop for Alert {
    /// The kernel may write to the snare for as long as the read is away. Not in a forked child, to which the
    /// memory is a copy and the ring none of its business.
    fn drop(&mut self) {
        if !self.armed || self.bell.is_a_parents() {
            return;
        }
        let cancel = opcode::AsyncCancel::new(ALERT).build().user_data(IGNORED);
        // SAFETY: it points at nothing. Kept honest by `sleeping.rs::what_is_armed_is_taken_back`.
        let _ = unsafe { self.ring.submission().push(&cancel) };
        // One completion, or two, one after the other.
        for _ in 0..2 {
            if self.armed && self.ring.submit_and_wait(1).is_ok() {
                self.reap();
            }
        }
        if self.armed {
            std::mem::forget(self.snare.take());
        }
    }
}

/// Whether there is news in a ring, by memory that the kernel writes.
fn is_told(ring: &mut IoUring) -> bool {
    let submission = ring.submission();
    let told = submission.taskrun() || submission.cq_overflow();
    drop(submission);
    told || !ring.completion().is_empty()
}

/// Whether a poll has come home with the news that the peer is gone.
fn has_ended(mask: usize) -> bool {
    mask as u32 & ready::ENDED != 0
}

fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(errno::ECANCELED)
}

fn check(result: i32) -> io::Result<usize> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) }
}
