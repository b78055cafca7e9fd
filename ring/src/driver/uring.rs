//! The io_uring driver: one enter submits everything of a turn and sleeps.
//!
//! It owns the ring and the list of buffers lent to the kernel; requests and buffers themselves it only
//! points at. It never touches a request between its submission and its last completion, except to read
//! which kind it is.

use std::alloc::{self, Layout};
use std::collections::HashSet;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::types::{self, BufRingEntry, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use super::epoll::{BURST_MAX, Now, out_of_descriptors, receive_now};
use super::{Alarm, Ground, STARVED_RETRY, Sleep, SleepPlace, refusal};
use crate::buffer::{BUFFER_BYTES, HEAD_BYTES};
use crate::envelope::{Control, Envelope, RECEIVE_FLAGS, ReceiveHeader, Room, SEND_FLAGS};
use crate::fd::{DESCRIPTORS_MAX, Fd, Kind};
use crate::message::{Message, PACKET_BYTES_MAX, Received};
use crate::request::{Armed, Arrival, Completion, Outcome, Request, Requests, Token, Want};
use crate::sys::{self, errno, ready};

/// Entries of the submission queue; more in one turn are submitted in several enters.
const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue. What does not fit the kernel keeps (FEAT_NODROP).
const COMPLETIONS: u32 = 4096;

/// How many descriptors the kernel may install for one buffer: as many as a message can carry, and a pidfd.
///
/// Not only as many as a socket wants: the kernel closes the rest inside the receive, on this thread, which
/// then waits as long as a stranger's socket lingers (3.06 s for a linger of 3 s).
const EXPOSED_PER_BUFFER: usize = DESCRIPTORS_MAX + 1;

const _: () = assert!(HEAD_BYTES >= mem::size_of::<[u32; 4]>() + Room::WIDEST.bytes());

/// `user_data` of what is not a token. Generations never get this high.
const BELL: u64 = u64::MAX;
const IGNORED: u64 = u64::MAX - 1;
const ALARM: u64 = u64::MAX - 2;

const GROUP: u16 = 0;

pub(crate) struct Uring {
    // First, so that the ring is closed before anything it points at is freed.
    ring: IoUring,
    entries: Entries,
    ground: Ground,
    bell: OwnedFd,
    bell_armed: bool,
    alarm: Alarm,
    /// What the entry that sets the alarm points at, until the kernel has read it.
    alarm_time: Box<Timespec>,
    no_iowait: bool,
    /// There are fewer descriptors than the kernel might install for the buffers it has.
    careful: bool,
    /// Buffers with the kernel.
    provided: usize,
    /// Silent sends that were submitted, or are about to be, and have not come home.
    silent: Vec<(Token, usize)>,
    /// One of them is not to be slept over.
    prompt: bool,
    /// Receives (and accepts) that wait for descriptors to come free; nothing of theirs is in the ring.
    starved: Vec<Token>,
    /// Asked to come home, and not home yet.
    cancelled: HashSet<Token>,
}

impl Uring {
    /// A ring that has just passed a descriptor, and how it is set up; or why there is none.
    pub(crate) fn probe(ground: &Ground, bell: OwnedFd) -> Result<(Uring, String), (String, OwnedFd)> {
        let (ring, sqarray) = match Uring::build() {
            Ok(built) => built,
            Err(error) => return Err((refusal("io_uring_setup", &error), bell)),
        };
        let entries = match Entries::register(&ring, ground.pool.count()) {
            Ok(entries) => entries,
            Err(error) => return Err((refusal("registering buffers", &error), bell)),
        };
        let mut uring = Uring {
            no_iowait: ring.params().is_feature_no_iowait(),
            ring,
            entries,
            ground: ground.clone(),
            bell,
            bell_armed: false,
            alarm: Alarm::default(),
            alarm_time: Box::default(),
            careful: false,
            provided: 0,
            silent: Vec::new(),
            prompt: false,
            starved: Vec::new(),
            cancelled: HashSet::new(),
        };
        // The enter through a registered descriptor saves a table look-up; without it nothing is different.
        let _ = uring.ring.submitter().register_ring_fd();
        match uring.pass_a_descriptor().and_then(|()| uring.prepare_to_be_watched()) {
            Ok(()) => {
                let watched = match uring.ground.place {
                    SleepPlace::OwnTurn => "",
                    SleepPlace::HostLoop => ", an eventfd to be watched",
                };
                let sqarray = if sqarray { "" } else { ", NO_SQARRAY" };
                let iowait = if uring.no_iowait { ", NO_IOWAIT" } else { "" };
                let how = format!("io_uring passed a descriptor (DEFER_TASKRUN{sqarray}{iowait}{watched})");
                Ok((uring, how))
            }
            Err(error) => {
                let reason = refusal("passing a descriptor through io_uring", &error);
                Err((reason, uring.bell))
            }
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
        let receive = requests.insert(Request::Receive {
            fd: near,
            want: Want { room, many: true },
            armed: Armed::Plainly,
        });
        let send = requests.insert(Request::Send { fd: far, envelope, silent: true, prompt: true });
        self.submit(receive, &mut requests);
        self.submit(send, &mut requests);
        let mut result = Err(io::Error::other("nothing arrived"));
        let mut asked = false;
        // Two completions and a cancellation; twenty turns are plenty.
        for turn in 0..20 {
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
                    // With few buffers the multishot ends after the message, for want of another.
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
            SleepPlace::HostLoop => self.ring.submitter().register_eventfd(self.bell.as_raw_fd()),
        }
    }

    // -- submitting -------------------------------------------------------------------------------------

    pub(crate) fn submit(&mut self, token: Token, requests: &mut Requests) {
        let Some(request) = requests.find(token) else { return };
        let entry = match request {
            Request::Send { fd, envelope, silent, prompt } => {
                let fd = types::Fd(fd.as_fd().as_raw_fd());
                let entry = opcode::SendMsg::new(fd, envelope.header()).flags(SEND_FLAGS as u32).build();
                if *silent {
                    self.prompt |= *prompt;
                    self.silent.push((token, envelope.length()));
                    entry.flags(squeue::Flags::SKIP_SUCCESS)
                } else {
                    entry
                }
            }
            Request::Receive { fd, want, armed } => {
                self.top_up();
                let room = Room { descriptors: DESCRIPTORS_MAX, pidfd: want.room.pidfd };
                let fd = types::Fd(fd.as_fd().as_raw_fd());
                // No buffer that the budget covers: wait for a message, then look how many descriptors there
                // is room for, then take it.
                if self.provided == 0 || self.careful {
                    *armed = Armed::Plainly;
                    opcode::PollAdd::new(fd, ready::READ).build()
                } else if want.many {
                    let header = ReceiveHeader::new(room, 0);
                    let entry =
                        opcode::RecvMsgMulti::new(fd, header.header(), GROUP).flags(RECEIVE_FLAGS as u32);
                    *armed = Armed::Many(header);
                    entry.build()
                } else {
                    let mut header = ReceiveHeader::new(room, PACKET_BYTES_MAX);
                    let entry = opcode::RecvMsg::new(fd, header.header_mut()).flags(RECEIVE_FLAGS as u32);
                    *armed = Armed::Once(header);
                    entry.buf_group(GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
                }
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
        if self.cancelled.insert(token) && !self.starved.contains(&token) {
            self.push(opcode::AsyncCancel::new(token.to_bits()).build().user_data(IGNORED));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        while self.ring.submission().is_full() {
            // What goes wrong here goes wrong again in `turn`, which can say so.
            if self.enter(Sleep::Not).is_err() {
                break;
            }
        }
        // SAFETY: all that `entry` points at is in the request, which stays in its slot until its last
        // completion, or the time of the alarm, which is in a box of the driver's. Kept honest by
        // `withdrawal.rs::a_dropped_future_leaves_its_slot` and `guest.rs::a_timer_wakes_the_host`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue was emptied by an enter");
    }

    /// Lends the kernel every free buffer whose descriptors the budget covers.
    fn top_up(&mut self) {
        if self.provided == self.ground.pool.count() {
            return;
        }
        let budget = &self.ground.budget;
        if !budget.may_expose(EXPOSED_PER_BUFFER) {
            if self.provided > 0 {
                return;
            }
            budget.measure();
        }
        while self.ground.budget.may_expose(EXPOSED_PER_BUFFER) {
            let Some(number) = self.ground.pool.take() else { break };
            self.entries.provide(number, self.ground.pool.address(number));
            self.ground.budget.expose(EXPOSED_PER_BUFFER);
            self.provided += 1;
        }
        self.entries.publish();
    }

    // -- one turn ---------------------------------------------------------------------------------------

    pub(crate) fn turn(
        &mut self,
        requests: &mut Requests,
        sleep: Sleep,
        home: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.ground.budget.turn();
        self.look_at_the_budget(requests);
        self.top_up();
        if !self.bell_armed && self.ground.place == SleepPlace::OwnTurn {
            self.bell_armed = true;
            let bell = types::Fd(self.bell.as_fd().as_raw_fd());
            self.push(opcode::PollAdd::new(bell, ready::READ).build().user_data(BELL));
        }
        self.feed_the_starved(requests, home);

        let mut sleep = if home.is_empty() { sleep } else { Sleep::Not };
        // Nobody but us knows that a silent send has succeeded, and we know it when the enter returns. Two
        // enters are cheaper than a sleep with a time limit: on a virtual machine a timer costs more than a
        // whole call.
        if std::mem::take(&mut self.prompt) {
            sleep = Sleep::Not;
        }
        if !self.starved.is_empty() {
            sleep = sleep.at_most(STARVED_RETRY);
        }
        self.enter(sleep)?;
        // Asked before reaping, which may queue entries anew: a silent send whose entry the kernel has
        // consumed, and whose failure is not among what is reaped now, has succeeded. A failure may also
        // stand in the kernel's overflow list, behind a full queue.
        let submission = self.ring.submission();
        let consumed = submission.is_empty() && !submission.cq_overflow();
        drop(submission);
        self.reap(requests, home);
        if consumed {
            self.bring_home_the_silent(home);
        } else {
            self.prompt = !self.silent.is_empty();
        }
        Ok(())
    }

    /// Buffers that the kernel has cannot be taken back. But when there are fewer descriptors than it might
    /// install for them, receives can be asked home and wait for readiness instead, to look before they take.
    fn look_at_the_budget(&mut self, requests: &mut Requests) {
        let overdrawn = self.ground.budget.is_overdrawn();
        if overdrawn {
            let mut armed = requests.tokens();
            armed.retain(|token| {
                // Of those that wait for descriptors nothing is in the ring.
                let request = requests.find(*token).filter(|_| !self.starved.contains(token));
                matches!(request, Some(Request::Receive { armed: Armed::Once(_) | Armed::Many(_), .. }))
            });
            armed.iter().for_each(|token| self.cancel(*token));
            self.ground.budget.set_unused(armed.is_empty());
        } else {
            self.ground.budget.set_unused(false);
        }
        self.careful = overdrawn;
    }

    /// Looks at memory that the kernel writes, without a system call.
    pub(crate) fn look(&mut self) -> bool {
        let submission = self.ring.submission();
        let told = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        told || !self.ring.completion().is_empty()
    }

    /// Under DEFER_TASKRUN the kernel receives inside an enter and nowhere else. Before that it says that
    /// there is work, and that none of it is done: nothing in the completion queue, nor in the list behind it.
    pub(crate) fn holds_back(&mut self) -> bool {
        let submission = self.ring.submission();
        let waiting = submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        waiting && self.ring.completion().is_empty()
    }

    /// What arrives for a receive that the kernel has makes work at once, and there is none.
    pub(crate) fn hears_nothing(&mut self, armed: &Armed) -> bool {
        matches!(armed, Armed::Many(_)) && self.ring.submission().is_empty() && !self.look()
    }

    // -- in a host's loop -------------------------------------------------------------------------------

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(crate) fn hand_over(&mut self, first: Option<Instant>) -> io::Result<bool> {
        let first = self.first(first);
        if let Some(moment) = first.filter(|_| self.alarm.is_late_for(first)) {
            self.set_alarm(moment)?;
        }
        self.ring.completion().enable_eventfd();
        sys::counter_drain(self.bell.as_fd());
        // What came before the drain has left a mark in the ring: the kernel marks first and rings then.
        fence(Ordering::SeqCst);
        Ok(self.look() || !self.silent.is_empty() || !self.ring.submission().is_empty())
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
        self.alarm.is_late_for(first) || !self.ring.submission().is_empty()
    }

    fn set_alarm(&mut self, moment: Instant) -> io::Result<()> {
        // Never zero, which the kernel would take for a mistake.
        let time = moment.saturating_duration_since(self.ground.clock.now()).max(Duration::from_nanos(1));
        *self.alarm_time = Timespec::from(time);
        let entry = if self.alarm.is_set() {
            // If it has gone off meanwhile this fails, and the turn that sees it go off sets it anew.
            opcode::TimeoutUpdate::new(ALARM, &raw const *self.alarm_time).build().user_data(IGNORED)
        } else {
            opcode::Timeout::new(&raw const *self.alarm_time).build().user_data(ALARM)
        };
        self.push(entry);
        self.alarm.set(moment);
        self.enter(Sleep::Not)
    }

    fn first(&self, first: Option<Instant>) -> Option<Instant> {
        if self.starved.is_empty() {
            return first;
        }
        let retry = self.ground.clock.now() + STARVED_RETRY;
        Some(first.map_or(retry, |first| first.min(retry)))
    }

    // -- entering and reaping ---------------------------------------------------------------------------

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let submission = self.ring.submission();
        let queued = submission.len() as u32;
        let deferred = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let waiting = !self.ring.completion().is_empty();
        let want = u32::from(!waiting && sleep != Sleep::Not);
        if queued == 0 && want == 0 && !deferred {
            return Ok(());
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
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up; a signal; or the kernel wants its completions reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
        for completion in completions {
            match completion.user_data() {
                IGNORED => {}
                BELL => {
                    sys::counter_drain(self.bell.as_fd());
                    self.bell_armed = false;
                }
                ALARM => self.alarm.went_off(),
                bits => self.bring_home(Token::from_bits(bits), &completion, requests, home),
            }
        }
    }

    fn bring_home(
        &mut self,
        token: Token,
        completion: &cqueue::Entry,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) {
        let result = check(completion.result());
        let Some(request) = requests.find(token) else {
            unreachable!("a completion belongs to a request that is away");
        };
        let outcome = match request {
            Request::Send { silent, .. } => {
                if *silent {
                    self.silent.retain(|(silent, _)| *silent != token);
                }
                Some(Outcome::Sent(result))
            }
            Request::Receive { fd, want, armed: Armed::Plainly } => {
                let (fd, want) = (fd.clone(), *want);
                result.map_or_else(
                    |error| Some(Outcome::Arrived(Err(error))),
                    |_| self.take(token, &fd, want, requests, home),
                )
            }
            Request::Receive { armed: Armed::Once(header), .. } => {
                let parts = result.map(|length| Parts {
                    start: 0,
                    length,
                    // SAFETY: this completion is the kernel's word that it has filled the control area, and
                    // the request comes home with it, so that nobody claims it twice.
                    // Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
                    control: unsafe { Control::claim(header.control()) },
                    flags: header.flags(),
                });
                Some(Outcome::Arrived(self.collect(completion.flags(), parts)))
            }
            Request::Receive { armed: Armed::Many(header), .. } => {
                let parts = result.and_then(|_| {
                    let number =
                        cqueue::buffer_select(completion.flags()).ok_or(io::ErrorKind::UnexpectedEof)?;
                    let start = self.ground.pool.address(number).as_ptr();
                    // SAFETY: the kernel has let go of this buffer, which nobody else has been lent yet.
                    // Kept honest by `descriptors.rs::buffers_come_back`.
                    let buffer = unsafe { std::slice::from_raw_parts(start, BUFFER_BYTES) };
                    let out = RecvMsgOut::parse(buffer, header.header())
                        .map_err(|()| io::ErrorKind::InvalidData)?;
                    Ok(Parts {
                        start: out.payload_data().as_ptr() as usize - start as usize,
                        length: out.payload_data().len(),
                        // SAFETY: written by the kernel for this message, of which this is the only
                        // completion. Kept honest by `descriptors.rs::every_verb_gives_back_what_it_took`.
                        control: unsafe { Control::claim(out.control_data()) },
                        flags: out.flags() as i32,
                    })
                });
                Some(Outcome::Arrived(self.collect(completion.flags(), parts)))
            }
            Request::Ready { .. } => Some(Outcome::Ready(result.map(|mask| mask as u32))),
            Request::Accept { fd } => match result.and_then(|_| sys::accept(fd.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.again(token, requests),
                Err(error) if out_of_descriptors(&error) => {
                    self.starved.push(token);
                    None
                }
                result => Some(Outcome::Accepted(result)),
            },
        };
        if let Some(outcome) = outcome {
            let last = !cqueue::more(completion.flags());
            if last {
                self.cancelled.remove(&token);
            }
            home.push(Completion { token, outcome, last });
        }
    }

    /// Makes an arrival of what a receive through the ring brought, and takes its buffer back.
    fn collect(&mut self, flags: u32, parts: io::Result<Parts>) -> io::Result<Arrival> {
        let number = cqueue::buffer_select(flags);
        if number.is_some() {
            self.provided -= 1;
            self.ground.budget.cover(EXPOSED_PER_BUFFER);
        }
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => {
                if let Some(number) = number {
                    self.ground.pool.put(number);
                }
                return match error.kind() {
                    // A multishot that ended without a buffer and without an error has met the end.
                    io::ErrorKind::UnexpectedEof => Ok(end_of_file()),
                    _ => Err(error),
                };
            }
        };
        let count = parts.control.descriptors.len() + usize::from(parts.control.pidfd.is_some());
        self.ground.budget.took(count);
        if parts.flags & libc::MSG_CTRUNC != 0 {
            // Others have opened descriptors meanwhile, or lowered the limit.
            self.ground.budget.measure();
        }
        let nothing = parts.length == 0 && parts.control.is_empty();
        let mut bytes_lost = parts.flags & libc::MSG_TRUNC != 0;
        let message = match number {
            Some(number) => {
                // A head smaller than the largest leaves room for more than a packet.
                bytes_lost |= parts.length > PACKET_BYTES_MAX;
                let length = parts.length.min(PACKET_BYTES_MAX);
                let lease = self.ground.pool.lend(number, parts.start..parts.start + length);
                let mut message = Received::lent(lease, parts.control);
                if length == 0 {
                    message.detach();
                }
                message
            }
            None => Received::owned(Vec::new(), parts.control),
        };
        let control_lost = parts.flags & libc::MSG_CTRUNC != 0;
        Ok(Arrival { message, bytes_lost, control_lost, nothing })
    }

    pub(crate) fn take_now(&mut self, fd: &Fd, room: Room) -> Now {
        receive_now(&self.ground, fd, room)
    }

    /// The socket is readable: takes one message with a plain call, or several if it streams.
    fn take(
        &mut self,
        token: Token,
        fd: &Fd,
        want: Want,
        requests: &mut Requests,
        home: &mut Vec<Completion>,
    ) -> Option<Outcome> {
        for _ in 0..BURST_MAX {
            match receive_now(&self.ground, fd, want.room) {
                Now::Arrived(arrival) if want.many && !arrival.nothing => {
                    home.push(Completion { token, outcome: Outcome::Arrived(Ok(arrival)), last: false });
                }
                Now::Arrived(arrival) => return Some(Outcome::Arrived(Ok(arrival))),
                Now::Failed(error) => return Some(Outcome::Arrived(Err(error))),
                Now::Empty => break,
                Now::Starved if self.cancelled.contains(&token) => {
                    return Some(Outcome::Arrived(Err(io::Error::from_raw_os_error(errno::ECANCELED))));
                }
                Now::Starved => {
                    self.starved.push(token);
                    return None;
                }
            }
        }
        self.again(token, requests)
    }

    /// Somebody else was faster, or there may be more: waits once more, unless asked to come home meanwhile.
    fn again(&mut self, token: Token, requests: &mut Requests) -> Option<Outcome> {
        if self.cancelled.contains(&token) {
            let error = io::Error::from_raw_os_error(errno::ECANCELED);
            return requests.find(token).map(|request| request.failed(error));
        }
        self.submit(token, requests);
        None
    }

    fn feed_the_starved(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        if self.starved.is_empty() {
            return;
        }
        // What goes through the ring is covered already.
        let room = self.provided > 0 && !self.careful || self.ground.budget.has_room();
        for token in std::mem::take(&mut self.starved) {
            if !room && !self.cancelled.contains(&token) {
                self.starved.push(token);
                continue;
            }
            let outcome = match requests.find(token) {
                Some(Request::Receive { fd, want, .. }) if self.provided == 0 || self.careful => {
                    let (fd, want) = (fd.clone(), *want);
                    self.take(token, &fd, want, requests, home)
                }
                _ => self.again(token, requests),
            };
            if let Some(outcome) = outcome {
                self.cancelled.remove(&token);
                home.push(Completion { token, outcome, last: true });
            }
        }
    }

    /// They were done inside the enter, since they may not wait and are never handed to a worker.
    fn bring_home_the_silent(&mut self, home: &mut Vec<Completion>) {
        for (token, length) in self.silent.drain(..) {
            home.push(Completion { token, outcome: Outcome::Sent(Ok(length)), last: true });
        }
    }
}

struct Parts {
    start: usize,
    length: usize,
    control: Control,
    flags: i32,
}

fn end_of_file() -> Arrival {
    let message = Received::owned(Vec::new(), Control::default());
    Arrival { message, bytes_lost: false, control_lost: false, nothing: true }
}

fn check(result: i32) -> io::Result<usize> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) }
}

/// The ring of buffer numbers shared with the kernel: written by us, consumed by it.
struct Entries {
    memory: NonNull<BufRingEntry>,
    layout: Layout,
    mask: u16,
    tail: u16,
}

impl Entries {
    fn register(ring: &IoUring, buffers: usize) -> io::Result<Entries> {
        let count = buffers.next_power_of_two();
        let layout = Layout::array::<BufRingEntry>(count).and_then(|layout| layout.align_to(4096));
        let layout = layout.map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the layout is not empty. Kept honest by `descriptors.rs::buffers_come_back`.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory.cast::<BufRingEntry>()) else {
            alloc::handle_alloc_error(layout)
        };
        let mask = u16::try_from(count - 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entries = Entries { memory, layout, mask, tail: 0 };
        let address = memory.as_ptr() as u64;
        // SAFETY: page-aligned, of `count` entries, and freed only after the ring was closed (the order of
        // `Uring`'s fields). Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count as u16, GROUP, 0) }?;
        Ok(entries)
    }

    /// Writes the next entry; the kernel sees it with `publish`.
    fn provide(&mut self, number: u16, address: NonNull<u8>) {
        let index = usize::from(self.tail & self.mask);
        // SAFETY: `index` is within the array. Kept honest by `descriptors.rs::buffers_come_back`.
        let place = unsafe { self.memory.add(index) };
        // SAFETY: an entry the kernel does not read before the tail has passed it.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        let entry = unsafe { &mut *place.as_ptr() };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the address of the first entry of a registered ring. Kept honest by
        // `descriptors.rs::buffers_come_back`.
        let tail = unsafe { BufRingEntry::tail(self.memory.as_ptr()) };
        // SAFETY: two aligned bytes that the kernel only reads; release, so that it sees the entries first.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with this layout; the ring that read it is closed.
        // Kept honest by `descriptors.rs::buffers_come_back`.
        unsafe { alloc::dealloc(self.memory.as_ptr().cast(), self.layout) };
    }
}
