//! A call beside sessions that misbehave, and a raw pair beside the same.
//!
//! Three processes: a server, somebody who attacks it on three sessions as fast as it takes them, and the
//! caller, which is this process. For a raw pair the server is a loop of `poll`, `recv` and `send` that
//! answers the same attack with as little as possible. It does not know what a library should withstand, and
//! judges nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use ring::{Executor, PACKET_BYTES_MAX, Reactor};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use seqpacket::wire::{
    self, Arrived, Body, FromClient, HELLO_FRAME_BYTES, Header, Hello, PART_BYTES_MAX, RefusedReason, Size,
};
use seqpacket::{Mailbox, Object, PlainMailbox};

use crate::aligned::Aligned;
use crate::floor::{self, packet_pair};
use crate::place::Wait;
use crate::process::{Failure, Order};

/// What the attacker does, on each of its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// Nothing: what the others are compared with.
    Nothing,
    /// Packets of 4,096 frames that mean nothing.
    SmallFrames,
    /// Small calls, as many as the window has.
    SmallCalls,
    /// Calls of a mebibyte.
    LargeCalls,
    /// Calls of 64 MiB that are withdrawn before their last part, over and over.
    EndlessParts,
    /// Calls with large answers, none of which is ever read.
    Unread,
    /// Everything that a session may have under way: large calls that stand still, and calls with
    /// descriptors.
    Quotas,
    /// Calls with sixteen descriptors, as many as the window has.
    Descriptors,
    /// Calls that the server hands on to somebody else.
    HandedOn,
    /// Clients that attach and hang up.
    Clients,
    /// Calls to a plain object of the same server.
    Plain,
}

impl Misdeed {
    /// All of them.
    pub const ALL: [Misdeed; 11] = [
        Misdeed::Nothing,
        Misdeed::SmallFrames,
        Misdeed::SmallCalls,
        Misdeed::LargeCalls,
        Misdeed::EndlessParts,
        Misdeed::Unread,
        Misdeed::Quotas,
        Misdeed::Descriptors,
        Misdeed::HandedOn,
        Misdeed::Clients,
        Misdeed::Plain,
    ];

    /// What it is, after "beside".
    pub fn name(self) -> &'static str {
        match self {
            Misdeed::Nothing => "quiet sessions",
            Misdeed::SmallFrames => "floods of small frames",
            Misdeed::SmallCalls => "floods of small calls",
            Misdeed::LargeCalls => "floods of 1 MiB calls",
            Misdeed::EndlessParts => "parts that never end",
            Misdeed::Unread => "sessions that never read",
            Misdeed::Quotas => "sessions that fill every quota",
            Misdeed::Descriptors => "floods of descriptors",
            Misdeed::HandedOn => "floods of calls that are handed on",
            Misdeed::Clients => "a flood of clients",
            Misdeed::Plain => "a flooded plain object",
        }
    }

    /// Whether it sends parts of large calls, which a server that is to answer them has to keep.
    pub fn sends_parts(self) -> bool {
        matches!(self, Misdeed::LargeCalls | Misdeed::EndlessParts)
    }

    /// Whether its sessions are ended when their server has waited for long enough. They come again.
    fn stands_still(self) -> bool {
        matches!(self, Misdeed::Unread | Misdeed::Quotas)
    }
}

impl FromStr for Misdeed {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Misdeed, Failure> {
        let named = Misdeed::ALL.into_iter().find(|misdeed| misdeed.name() == name);
        named.ok_or_else(|| format!("nobody here does {name}").into())
    }
}

/// Who is attacked: see [`serve_victim`].
pub const VICTIM: &str = "victim";
/// Who attacks: see [`serve_attacker`].
pub const ATTACKER: &str = "attacker";
/// Who is attacked in place of a library: see [`serve_polled`].
pub const POLLED: &str = "raw poll loop";

/// What the loop is told that keeps the parts of large calls.
pub const KEEPS_PARTS: &str = "keeps parts";

/// Sessions of one attacker.
pub const SESSIONS: usize = 3;

/// What the caller says, and hears.
pub const SMALL: &[u8; 5] = b"small";

const LARGE_ANSWER: usize = 60_000;
const MIB: usize = 1 << 20;

/// Serves an object with sessions, and a plain one, as any program would: each call is answered at once, but
/// for what it is asked to hand on.
///
/// # Errors
/// The first of anything that no client can cause.
pub fn serve_victim(mut order: Order) -> Result<(), Failure> {
    let [bound, plain] = order.take()?;
    let reactor = order.reactor()?;
    let mailbox = Mailbox::from_fd(&reactor, bound)?;
    let plain = PlainMailbox::from_fd(&reactor, plain)?;
    let executor = Executor::new(&reactor);
    executor.spawn(async move {
        while let Some(call) = plain.next().await {
            let _ = call.answer(SMALL);
        }
    });
    executor.block_on(async {
        while let Some(call) = mailbox.next().await {
            let (bytes, _, continuation) = call.into_parts();
            // Whoever has gone meanwhile hears nothing, which is its own doing.
            let _ = match bytes.as_slice() {
                b"hand on" => continuation.into_fd().map(drop),
                b"large" => continuation.answer(vec![7; LARGE_ANSWER]),
                _ => continuation.answer(SMALL),
            };
        }
    });
    Ok(())
}

/// The least that answers the same attack, and sends back what comes on a socket of its own: one packet of
/// each that is readable, and then `poll` again. It trusts everybody, and ends with that socket.
///
/// Parts of large calls it throws away, unless it is told to keep them: that is less than any server can do
/// which has to answer them, for that one has to copy them, into memory that it has asked for. So where parts
/// are sent there is a row of either.
///
/// # Errors
/// The kernel's.
pub fn serve_polled(mut order: Order) -> Result<(), Failure> {
    let [bound, plain, socket] = order.take()?;
    let keeps_parts = order.told == KEEPS_PARTS;
    let mut sessions: Vec<RawSession> = Vec::new();
    let mut room = Aligned::new(PACKET_BYTES_MAX);
    loop {
        let strangers = [&socket, &bound, &plain].into_iter();
        let all = strangers.chain(sessions.iter().map(|session| &session.near));
        let mut watched: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        rustix::event::poll(&mut watched, None)?;
        let mut is_readable: Vec<bool> = watched.iter().map(|one| !one.revents().is_empty()).collect();
        let of_sessions = is_readable.split_off(3);
        if is_readable[0] {
            match rustix::net::recv(&socket, &mut room[..], RecvFlags::empty())? {
                (_, 0) => return Ok(()),
                (_, length) => floor::send(socket.as_fd(), &room[..length])?,
            }
        }
        let mut of_sessions = of_sessions.into_iter();
        sessions.retain_mut(|session| {
            !of_sessions.next().unwrap_or_default() || session.serve(&mut room).unwrap_or_default()
        });
        let mut descriptors = Vec::new();
        if is_readable[1] {
            floor::receive_with(bound.as_fd(), &mut room, &mut descriptors, Wait::Sleep)?;
            for near in descriptors.drain(..) {
                rustix::io::ioctl_fionbio(&near, true)?;
                // Whoever has hung up by now is found out by the next look.
                let _ = floor::send(near.as_fd(), &Hello::default().frame());
                let kept = keeps_parts.then(BTreeMap::new);
                sessions.push(RawSession { near, missing: BTreeMap::new(), kept });
            }
        }
        if is_readable[2] {
            floor::receive_with(plain.as_fd(), &mut room, &mut descriptors, Wait::Sleep)?;
            for far in &descriptors {
                is_sent(floor::send_with(far.as_fd(), SMALL, &[], SendFlags::DONTWAIT))?;
            }
        }
    }
}

/// A client of the loop.
struct RawSession {
    near: OwnedFd,
    /// Bytes that have not come of large calls.
    missing: BTreeMap<u32, usize>,
    /// Those that have come, where they are kept.
    kept: Option<BTreeMap<u32, Vec<u8>>>,
}

impl RawSession {
    /// Answers what stands in the next packet. False at the end.
    fn serve(&mut self, room: &mut [u8]) -> Result<bool, Failure> {
        let mut descriptors = Vec::new();
        let length = floor::receive_with(self.near.as_fd(), room, &mut descriptors, Wait::Sleep)?;
        let mut answers = Vec::new();
        for frame in wire::frames(&room[..length], Arrived::Whole(descriptors.len())) {
            match frame?.from_client()? {
                FromClient::Call { number, body: Body::Large { total }, .. } => {
                    self.missing.insert(number, total as usize);
                    if let Some(kept) = &mut self.kept {
                        kept.insert(number, Vec::with_capacity(total as usize));
                    }
                }
                FromClient::Call { number, body: Body::Whole(b"hand on"), .. } => {
                    let (near, _) = packet_pair()?;
                    let frame = Header::elsewhere(number).encode();
                    is_sent(floor::send_with(
                        self.near.as_fd(),
                        &frame,
                        &[near.as_fd()],
                        SendFlags::empty(),
                    ))?;
                }
                FromClient::Call { number, body: Body::Whole(b"large"), .. } => {
                    let answer = answer(number, &[7; LARGE_ANSWER])?;
                    is_sent(floor::send_with(self.near.as_fd(), &answer, &[], SendFlags::empty()))?;
                }
                FromClient::Call { number, .. } => answers.extend(answer(number, SMALL)?),
                FromClient::Part { number, payload } => {
                    if let Some(kept) = self.kept.as_mut().and_then(|kept| kept.get_mut(&number)) {
                        kept.extend_from_slice(payload);
                    }
                    let missing = self.missing.entry(number).or_default();
                    *missing = missing.saturating_sub(payload.len());
                    if *missing == 0 {
                        self.missing.remove(&number);
                        self.kept.as_mut().and_then(|kept| kept.remove(&number));
                        answers.extend(answer(number, SMALL)?);
                    }
                }
                FromClient::Cancel { number } if self.missing.remove(&number).is_some() => {
                    self.kept.as_mut().and_then(|kept| kept.remove(&number));
                    answers.extend_from_slice(&RefusedReason::Cancelled.frame(number));
                }
                _ => {}
            }
        }
        if !answers.is_empty() {
            is_sent(floor::send_with(self.near.as_fd(), &answers, &[], SendFlags::empty()))?;
        }
        Ok(length > 0)
    }
}

fn answer(number: u32, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let header = Header::answer_to(number, Size::of_bytes(payload.len())?);
    Ok([header.encode().as_slice(), payload].concat())
}

/// Misbehaves from `go` to `stop`, both of which it hears on the first descriptor and confirms. The second is
/// the address of an object, the third a plain object.
///
/// # Errors
/// The kernel's; the server has ended a session.
pub fn serve_attacker(mut order: Order) -> Result<(), Failure> {
    let [control, address, plain] = order.take()?;
    let misdeed: Misdeed = order.told.parse()?;
    rustix::io::ioctl_fionbio(&plain, true)?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Session::attach(&address, misdeed)?);
    }
    rustix::io::ioctl_fionbio(&address, true)?;
    let mut stranger = Stranger { address, plain, far: packet_pair()?, misdeed };
    let mut word = [0; 8];
    while rustix::net::recv(&control, &mut word[..], RecvFlags::empty())?.0 > 0 {
        floor::send(control.as_fd(), b"gone")?;
        loop {
            let mut watched = vec![PollFd::new(&control, PollFlags::IN)];
            let asked = stranger.misbehave()?;
            watched.extend(asked);
            for session in &mut sessions {
                let flags = session.misbehave()?;
                watched.push(PollFd::new(&session.near, flags));
            }
            rustix::event::poll(&mut watched, None)?;
            let is_told = !watched[0].revents().is_empty();
            let hung_up = |one: &PollFd<'_>| one.revents().contains(PollFlags::HUP);
            let ended: Vec<bool> = watched[watched.len() - SESSIONS..].iter().map(hung_up).collect();
            drop(watched);
            for (session, _) in sessions.iter_mut().zip(ended).filter(|(_, ended)| *ended) {
                if !misdeed.stands_still() {
                    return Err("the server has ended a session".into());
                }
                *session = Session::attach(&stranger.address, misdeed)?;
            }
            if is_told {
                rustix::net::recv(&control, &mut word[..], RecvFlags::empty())?;
                break;
            }
        }
        floor::send(control.as_fd(), b"done")?;
    }
    Ok(())
}

/// Somebody without a session.
struct Stranger {
    address: OwnedFd,
    plain: OwnedFd,
    far: (OwnedFd, OwnedFd),
    misdeed: Misdeed,
}

impl Stranger {
    /// Sends as much as is taken, and says what to wait for.
    fn misbehave(&mut self) -> Result<Option<PollFd<'_>>, Failure> {
        let socket = match self.misdeed {
            Misdeed::Clients => &self.address,
            Misdeed::Plain => &self.plain,
            _ => return Ok(None),
        };
        // Not more of them: what is in flight the kernel counts for the user.
        for _ in 0..32 {
            let fresh;
            let (bytes, far): (&[u8], _) = match self.misdeed {
                Misdeed::Clients => {
                    fresh = packet_pair()?;
                    (b"c", &fresh.1)
                }
                _ => (SMALL, &self.far.1),
            };
            if !is_sent(floor::send_with(socket.as_fd(), bytes, &[far.as_fd()], SendFlags::DONTWAIT))? {
                break;
            }
        }
        // The answers to plain calls all go to one place, which must not fill up.
        let mut room = [0; 128];
        while rustix::net::recv(&self.far.0, &mut room[..], RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n > 0) {}
        Ok(Some(PollFd::new(socket, PollFlags::OUT)))
    }
}

/// One session that misbehaves. It keeps to its windows, or it would be ended.
struct Session {
    near: OwnedFd,
    misdeed: Misdeed,
    number: u32,
    under_way: u32,
    /// Bytes sent of the large call under way.
    sent: Option<usize>,
    stands_still: bool,
    passed: OwnedFd,
    cancels: Vec<u8>,
    part: Vec<u8>,
    room: Vec<u8>,
}

impl Session {
    fn attach(address: &OwnedFd, misdeed: Misdeed) -> Result<Session, Failure> {
        let (near, far) = packet_pair()?;
        floor::send_with(address.as_fd(), b"c", &[far.as_fd()], SendFlags::empty())?;
        drop(far);
        let mut room = vec![0; PACKET_BYTES_MAX];
        if rustix::net::recv(&near, &mut room[..], RecvFlags::empty())?.0 != HELLO_FRAME_BYTES {
            return Err("a server that does not say hello".into());
        }
        rustix::io::ioctl_fionbio(&near, true)?;
        let cancels = Header::cancel(u32::MAX).encode().repeat(PACKET_BYTES_MAX / 16);
        let (passed, part) = (floor::something_to_pass()?, vec![7; PACKET_BYTES_MAX]);
        let (number, under_way, sent, stands_still) = (0, 0, None, false);
        Ok(Session { near, misdeed, number, under_way, sent, stands_still, passed, cancels, part, room })
    }

    /// Sends as much as is taken, and says what to wait for.
    fn misbehave(&mut self) -> Result<PollFlags, Failure> {
        let (both, reading) = (PollFlags::IN | PollFlags::OUT, PollFlags::IN);
        match self.misdeed {
            Misdeed::Nothing | Misdeed::Clients | Misdeed::Plain => Ok(reading),
            Misdeed::SmallFrames => {
                while self.say(&self.cancels, &[])? {}
                Ok(both)
            }
            Misdeed::SmallCalls => self.call_on_and_on(b"flood", 0, 256),
            Misdeed::HandedOn => self.call_on_and_on(b"hand on", 0, 16),
            Misdeed::Descriptors => self.call_on_and_on(b"flood", 16, 4),
            Misdeed::LargeCalls => self.send_parts(MIB, MIB),
            Misdeed::EndlessParts => self.send_parts(64 * MIB, 64 * MIB - 1),
            Misdeed::Unread => {
                while self.under_way < 256 {
                    if !self.say(&call(self.number, b"large", 0, LARGE_ANSWER)?, &[])? {
                        return Ok(PollFlags::OUT);
                    }
                    self.number += 1;
                    self.under_way += 1;
                }
                Ok(PollFlags::empty())
            }
            Misdeed::Quotas => {
                if !std::mem::replace(&mut self.stands_still, true) {
                    for number in [1 << 20, (1 << 20) + 1] {
                        self.say(&large_call(number, 64 * MIB - 64)?, &[])?;
                    }
                }
                self.call_on_and_on(b"flood", 16, 4)
            }
        }
    }

    /// Hears what was answered, and calls anew for it.
    fn call_on_and_on(
        &mut self,
        payload: &[u8],
        descriptors: usize,
        most: u32,
    ) -> Result<PollFlags, Failure> {
        while let Some(answers) = self.hear()? {
            self.under_way -= answers;
        }
        while self.under_way < most {
            // One packet holds the descriptors of one call only.
            let together = if descriptors > 0 { 1 } else { most - self.under_way };
            let mut packet = Vec::new();
            for one in 0..together {
                let number = self.number.wrapping_add(one) & 0xffff;
                packet.extend(call(number, payload, descriptors, 64)?);
            }
            if !self.say(&packet, &vec![self.passed.as_fd(); descriptors])? {
                return Ok(PollFlags::IN | PollFlags::OUT);
            }
            self.number = self.number.wrapping_add(together);
            self.under_way += together;
        }
        Ok(PollFlags::IN)
    }

    /// Large calls one after the other, each of them withdrawn after so many bytes if there are more.
    fn send_parts(&mut self, total: usize, most: usize) -> Result<PollFlags, Failure> {
        while self.hear()?.is_some() {}
        let both = PollFlags::IN | PollFlags::OUT;
        loop {
            let Some(sent) = self.sent else {
                let number = (self.number + 1) % 1_000;
                if !self.say(&large_call(number, total)?, &[])? {
                    return Ok(both);
                }
                (self.number, self.sent) = (number, Some(0));
                continue;
            };
            let length = PART_BYTES_MAX.min(total - sent);
            if sent + length > most {
                if !self.say(&Header::cancel(self.number).encode(), &[])? {
                    return Ok(both);
                }
                self.sent = None;
                continue;
            }
            let header = Header::part(self.number, length as u32).encode();
            self.part[..header.len()].copy_from_slice(&header);
            if !self.say(&self.part[..header.len() + length], &[])? {
                return Ok(both);
            }
            self.sent = Some(sent + length).filter(|sent| *sent < total);
        }
    }

    fn say(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<bool, Failure> {
        is_sent(floor::send_with(self.near.as_fd(), packet, descriptors, SendFlags::DONTWAIT))
    }

    /// How many frames the next packet has, if there is one.
    fn hear(&mut self) -> Result<Option<u32>, Failure> {
        // Ends that come from elsewhere are closed: nobody wants the answers.
        let mut descriptors = Vec::new();
        match floor::receive_with(self.near.as_fd(), &mut self.room, &mut descriptors, Wait::Sleep) {
            Ok(0) => Ok(None),
            Ok(length) => {
                let arrived = Arrived::Whole(descriptors.len());
                Ok(Some(wire::frames(&self.room[..length], arrived).count() as u32))
            }
            Err(Errno::AGAIN | Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_sent(result: rustix::io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        // A full queue; or as many descriptors in flight as this user may have; or the end, of which `poll`
        // tells.
        Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::PIPE | Errno::CONNRESET) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn call(number: u32, payload: &[u8], descriptors: usize, answer_bytes: usize) -> Result<Vec<u8>, Failure> {
    let size = Size::of_bytes(payload.len())?.with_descriptors(descriptors)?;
    let header = Header::call(number, size, Size::of_bytes(answer_bytes)?);
    Ok([header.encode().as_slice(), payload].concat())
}

fn large_call(number: u32, total: usize) -> Result<Vec<u8>, Failure> {
    let opening = Hello::default().call(number, Size::of_bytes(total)?, Size::of_bytes(64)?, None);
    Ok(opening.encode().to_vec())
}

/// The attacker, told when.
pub struct Attack(OwnedFd);

impl Attack {
    /// By whoever has the other end of this.
    pub fn new(control: OwnedFd) -> Attack {
        Attack(control)
    }

    fn tell(&self, word: &[u8]) -> Result<(), Failure> {
        floor::send(self.0.as_fd(), word)?;
        match rustix::net::recv(&self.0, &mut [0; 8], RecvFlags::empty())?.0 {
            0 => Err("nobody attacks any more".into()),
            _ => Ok(()),
        }
    }

    /// What this does while it is going on.
    fn during(&self, call: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        self.tell(b"go")?;
        call()?;
        self.tell(b"stop")
    }
}

/// Somebody who means well, on a session of its own with the victim.
pub struct Caller {
    executor: Executor,
    object: Object,
    attack: Attack,
}

impl Caller {
    /// On an object of [`serve_victim`]'s.
    ///
    /// # Errors
    /// The first of anything.
    pub fn new(reactor: &Reactor, address: OwnedFd, attack: Attack) -> Result<Caller, Failure> {
        let executor = Executor::new(reactor);
        let object = Object::from_fd(reactor, address)?;
        executor.block_on(object.attach())?;
        Ok(Caller { executor, object, attack })
    }

    /// So many calls during the attack; tells what each took.
    ///
    /// # Errors
    /// The first of anything.
    pub fn calls(&mut self, count: u64, mut tell: impl FnMut(Duration)) -> Result<(), Failure> {
        let Caller { executor, object, attack } = self;
        attack.during(|| {
            executor.block_on(async {
                for _ in 0..count {
                    let start = Instant::now();
                    object.call(SMALL).await?;
                    tell(start.elapsed());
                }
                Ok(())
            })
        })
    }

    /// Lets go of everything.
    pub fn end(self) {
        let Caller { executor, object, .. } = self;
        drop(object);
        executor.settle();
    }
}

/// A raw pair, while its server is attacked.
pub struct RawCaller {
    socket: OwnedFd,
    attack: Attack,
}

impl RawCaller {
    /// On a socket whose other end is a [`serve_polled`]'s.
    pub fn new(socket: OwnedFd, attack: Attack) -> RawCaller {
        RawCaller { socket, attack }
    }

    /// So many round trips during the attack; tells what each took.
    ///
    /// # Errors
    /// The kernel's.
    pub fn calls(&mut self, count: u64, mut tell: impl FnMut(Duration)) -> Result<(), Failure> {
        self.attack.during(|| {
            for _ in 0..count {
                tell(floor::round_trip(self.socket.as_fd(), SMALL)?);
            }
            Ok(())
        })
    }
}
