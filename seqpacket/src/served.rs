//! One client's session, as the server sees it.
//!
//! It owns the client's socket, the calls that nobody has taken and the account of what is under way. A
//! companion of the reactor receives and files; it goes on when the mailbox is gone, for as long as somebody
//! has a call to answer. Whose turn it is, and how many sessions there may be, is the mailbox's business. It
//! never knows what a message means.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ring::{Companion, Credentials, Fd, Kind, Message, Reactor, ReceiveError, Received, Socket};

use crate::credit::{Account, Cost};
use crate::error::AnswerError;
use crate::mailbox::Shared;
use crate::parcel::Parcel;
use crate::waiting::wake;
use crate::wire::{self, Arrived, Body, FromClient, Header, Hello, Opening, RefusedReason, Size};

/// A session and the companion that serves it: held by the mailbox and by every call taken from it.
pub(crate) struct Served {
    session: Rc<Session>,
    _companion: Companion,
}

impl Served {
    /// Says HELLO, and receives from now on.
    pub(crate) fn begin(
        reactor: &Reactor,
        mailbox: Weak<Shared>,
        socket: Socket,
        hello: Hello,
        client: Client,
    ) -> Rc<Served> {
        socket.set_private(true);
        socket.set_descriptors_max(hello.call_descriptors_max as usize);
        socket.stream();
        let account = Account::new(hello.windows);
        let state = RefCell::new(State {
            account,
            calls: BTreeMap::new(),
            queue: VecDeque::new(),
            in_turn: false,
            leaving: false,
            client_leaving: false,
            over: false,
            said: 0,
            unsettled: VecDeque::new(),
        });
        let session = Rc::new(Session { client, socket, hello, mailbox, state });
        session.say(&[&hello.frame()], Vec::new(), None);
        let served = Rc::clone(&session);
        let companion = reactor.companion(async move { serve(&served).await });
        Rc::new(Served { session, _companion: companion })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }
}

/// What the mailbox knows of whoever attached.
pub(crate) struct Client {
    /// Of the session in the mailbox.
    pub(crate) key: usize,
    /// Through which address it came.
    pub(crate) address: u64,
    pub(crate) credentials: Credentials,
}

pub(crate) struct Session {
    client: Client,
    socket: Socket,
    hello: Hello,
    mailbox: Weak<Shared>,
    state: RefCell<State>,
}

struct State {
    account: Account,
    /// In order, so that those who wait are woken in the same one each time.
    calls: BTreeMap<u32, Entry>,
    /// Calls that nobody has taken, in order.
    queue: VecDeque<(u32, Size, Parcel)>,
    /// The mailbox has this session on its list of those whose turn it will be.
    in_turn: bool,
    /// We have said GOODBYE.
    leaving: bool,
    /// The client has.
    client_leaving: bool,
    over: bool,
    /// Bytes given to the socket since it had nothing left to send.
    said: u64,
    /// Final frames that may not have left, in order: where they end in what was said, and what they give
    /// back.
    unsettled: VecDeque<(u64, Cost)>,
}

/// One call under way.
struct Entry {
    cost: Cost,
    /// When its caller gives up, if it has said.
    deadline: Option<Instant>,
    withdrawn: bool,
    waker: Option<Waker>,
}

/// What ended a session.
pub(crate) enum Over {
    Closed,
    Malformed,
    BeyondWindow,
    Unread,
}

async fn serve(session: &Rc<Session>) {
    let over = session.receive_all().await;
    let mailbox = session.mailbox.upgrade();
    if let Some(mailbox) = &mailbox {
        mailbox.count(&over);
    }
    session.end();
    if let Some(mailbox) = &mailbox {
        mailbox.detach(session);
    }
}

impl Session {
    pub(crate) fn reactor(&self) -> &Reactor {
        self.socket.reactor()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The mailbox it belongs to, while there is one.
    pub(crate) fn mailbox(&self) -> &Weak<Shared> {
        &self.mailbox
    }

    pub(crate) fn is_of(&self, mailbox: &Weak<Shared>) -> bool {
        Weak::ptr_eq(&self.mailbox, mailbox)
    }

    // -- what the client says ---------------------------------------------------------------------------

    async fn receive_all(&self) -> Over {
        loop {
            let (packet, cut) = match self.socket.receive().await {
                Ok(packet) => (packet, false),
                Err(ReceiveError::DescriptorsLost(packet)) => (packet, true),
                Err(ReceiveError::Truncated(_)) => return Over::Malformed,
                Err(_) => return Over::Closed,
            };
            if let Err(over) = self.file(packet, cut) {
                return over;
            }
            // One packet, then the others have theirs.
            yield_once().await;
        }
    }

    /// Files what a packet says.
    fn file(&self, mut packet: Received, cut: bool) -> Result<(), Over> {
        let mut descriptors = Parcel::of_descriptors(packet.take_descriptors());
        let arrived = match cut {
            false => Arrived::Whole(descriptors.descriptors()),
            true => Arrived::Cut(descriptors.descriptors()),
        };
        let packet = Rc::new(packet);
        let mut result = Ok(());
        for frame in wire::frames(packet.bytes(), arrived) {
            result = frame.map_err(|_| Over::Malformed).and_then(|frame| {
                let opening = frame.opening();
                self.hello.admits(&opening).map_err(|_| Over::Malformed)?;
                let said = frame.from_client().map_err(|_| Over::Malformed)?;
                self.frame(said, &opening, &packet, &mut descriptors)
            });
            if result.is_err() {
                break;
            }
        }
        self.ask_for_turn();
        result
    }

    fn frame(
        &self,
        said: FromClient<'_>,
        opening: &Opening,
        packet: &Rc<Received>,
        descriptors: &mut Parcel,
    ) -> Result<(), Over> {
        match said {
            FromClient::Call { number, body, descriptors: declared, missing, answer, time_left } => {
                let Body::Whole(payload) = body else { return Err(Over::Malformed) };
                self.begin(number, Cost::of_call(opening, &self.hello))?;
                self.wait_no_longer(number, time_left);
                if missing > 0 {
                    drop(std::mem::take(descriptors));
                    self.refuse(number, RefusedReason::DescriptorsLost);
                    return Ok(());
                }
                let start = payload.as_ptr() as usize - packet.bytes().as_ptr() as usize;
                let mut parcel = Parcel::part(packet, start..start + payload.len());
                if declared > 0 {
                    parcel.take_from(descriptors);
                }
                if self.is_leaving() {
                    self.refuse(number, RefusedReason::Leaving);
                } else {
                    self.state.borrow_mut().queue.push_back((number, answer, parcel));
                }
            }
            FromClient::Grant { number } => {
                self.begin(number, Cost::of_grant())?;
                self.grant(number, opening.answer());
            }
            FromClient::Part { .. } => return Err(Over::Malformed),
            FromClient::Cancel { number } => self.cancel(number),
            FromClient::Goodbye => {
                let again = std::mem::replace(&mut self.state.borrow_mut().client_leaving, true);
                return if again { Err(Over::Malformed) } else { Ok(()) };
            }
        }
        Ok(())
    }

    fn is_leaving(&self) -> bool {
        self.state.borrow().leaving
    }

    /// A call is under way from here to its final frame.
    fn begin(&self, number: u32, cost: Cost) -> Result<(), Over> {
        let state = self.state.borrow();
        if state.over {
            return Err(Over::Closed);
        }
        if state.client_leaving || state.calls.contains_key(&number) {
            return Err(Over::Malformed);
        }
        let short = state.account.room_for(cost).is_err();
        drop(state);
        if short {
            self.settle();
        }
        let mut state = self.state.borrow_mut();
        if state.account.try_reserve(cost).is_err() {
            // Either way it has sent more than it may. If answers wait, that is because it does not read
            // them.
            return Err(if state.unsettled.is_empty() { Over::BeyondWindow } else { Over::Unread });
        }
        state.calls.insert(number, Entry { cost, deadline: None, withdrawn: false, waker: None });
        Ok(())
    }

    /// The caller has said how long it waits, as of the writing of its call. A time that no clock here can
    /// tell is none.
    fn wait_no_longer(&self, number: u32, time_left: Option<Duration>) {
        let Some(time_left) = time_left else { return };
        let deadline = self.reactor().now().checked_add(time_left);
        if let Some(entry) = self.state.borrow_mut().calls.get_mut(&number) {
            entry.deadline = deadline;
        }
    }

    fn grant(&self, number: u32, room: Size) {
        if self.is_leaving() {
            return self.refuse(number, RefusedReason::Leaving);
        }
        let granted = match self.mailbox.upgrade() {
            Some(mailbox) => mailbox.grant_to_client(&self.client),
            None => Err(RefusedReason::Leaving),
        };
        match granted {
            // That the answer leaves is up to the client from here on.
            Ok(fd) => drop(self.answer(number, room, Message::default().with_descriptor(fd))),
            Err(reason) => self.refuse(number, reason),
        }
    }

    fn cancel(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        // A number that is not under way has crossed its final frame.
        let Some(entry) = state.calls.get_mut(&number) else { return };
        entry.withdrawn = true;
        let waker = entry.waker.take();
        let queued = state.queue.iter().position(|(queued, _, _)| *queued == number);
        let untaken = queued.and_then(|place| state.queue.remove(place));
        drop(state);
        if untaken.is_some() {
            self.refuse(number, RefusedReason::Cancelled);
        }
        drop(untaken);
        wake(waker);
    }

    // -- taking -----------------------------------------------------------------------------------------

    fn ask_for_turn(&self) {
        let mut state = self.state.borrow_mut();
        if state.over || state.queue.is_empty() || state.in_turn {
            return;
        }
        let Some(mailbox) = self.mailbox.upgrade() else { return };
        state.in_turn = true;
        drop(state);
        mailbox.take_turn(self.client.key);
    }

    /// The oldest call that nobody has taken, and whether there are more: then this session's turn comes
    /// again. Those whose callers have given up by now are not worth handling.
    pub(crate) fn take(&self) -> Option<(Taken, bool)> {
        loop {
            let mut state = self.state.borrow_mut();
            let untaken = state.queue.pop_front();
            state.in_turn = !state.queue.is_empty();
            let more = state.in_turn;
            let (number, room, parcel) = untaken?;
            let deadline = state.calls.get(&number).and_then(|entry| entry.deadline);
            drop(state);
            if !deadline.is_some_and(|deadline| deadline <= self.reactor().now()) {
                return Some((Taken { number, room, deadline, parcel }, more));
            }
            drop(parcel);
            self.refuse(number, RefusedReason::Expired);
        }
    }

    // -- final frames -----------------------------------------------------------------------------------

    pub(crate) fn answer(&self, number: u32, room: Size, message: Message) -> Result<(), AnswerError> {
        if self.state.borrow().over {
            self.finish(number);
            return Err(AnswerError::Gone);
        }
        if self.is_withdrawn(number) {
            self.refuse(number, RefusedReason::Cancelled);
            return Err(AnswerError::Withdrawn);
        }
        let (bytes, descriptors) = message.into_parts();
        let size = Size::of_bytes(bytes.len()).and_then(|size| size.with_descriptors(descriptors.len()));
        let Some(size) = size.ok().filter(|size| room.holds(*size)) else {
            self.refuse(number, RefusedReason::TooLarge);
            return Err(AnswerError::TooLarge);
        };
        let header = Header::answer_to(number, size).encode();
        let instead =
            (!descriptors.is_empty()).then(|| RefusedReason::OutOfDescriptors.frame(number).to_vec());
        self.say(&[&header, &bytes], descriptors, instead);
        self.finish(number);
        Ok(())
    }

    /// Somebody else will answer, who has the far end that this gives back.
    pub(crate) fn hand_on(&self, number: u32) -> Result<OwnedFd, AnswerError> {
        if self.state.borrow().over {
            self.finish(number);
            return Err(AnswerError::Gone);
        }
        if self.is_withdrawn(number) {
            self.refuse(number, RefusedReason::Cancelled);
            return Err(AnswerError::Withdrawn);
        }
        let Ok((near, far)) = pair(self.reactor()) else {
            self.refuse(number, RefusedReason::OutOfDescriptors);
            return Err(AnswerError::OutOfDescriptors);
        };
        // If the near end cannot be sent it is closed, and so is the far end for whoever has it.
        let instead = RefusedReason::OutOfDescriptors.frame(number).to_vec();
        self.say(&[&Header::elsewhere(number).encode()], vec![Fd::made_here(near)], Some(instead));
        self.finish(number);
        Ok(far)
    }

    /// Nobody will answer.
    pub(crate) fn drop_call(&self, number: u32) {
        if self.is_withdrawn(number) {
            return self.refuse(number, RefusedReason::Cancelled);
        }
        self.say(&[&Header::dropped(number).encode()], Vec::new(), None);
        self.finish(number);
    }

    pub(crate) fn refuse(&self, number: u32, reason: RefusedReason) {
        self.say(&[&reason.frame(number)], Vec::new(), None);
        self.finish(number);
    }

    fn say(&self, parts: &[&[u8]], descriptors: Vec<Fd>, instead: Option<Vec<u8>>) {
        let mut state = self.state.borrow_mut();
        if state.over {
            return;
        }
        state.said += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        drop(state);
        match instead {
            Some(instead) => self.socket.post_or(parts, descriptors, instead),
            None => self.socket.post(parts, descriptors),
        }
    }

    /// The final frame has been said. What the call took is given back when the frame has left, not now: a
    /// client that calls and never reads could otherwise make us keep as many answers, and descriptors in
    /// them, as it likes.
    fn finish(&self, number: u32) {
        let mut state = self.state.borrow_mut();
        let Some(entry) = state.calls.remove(&number) else { return };
        let said = state.said;
        state.unsettled.push_back((said, entry.cost));
        drop(state);
        drop(entry.waker);
    }

    /// Gives back what calls took whose final frames have left.
    fn settle(&self) {
        let unsent = self.socket.unsent() as u64;
        let state = &mut *self.state.borrow_mut();
        // A refusal sent in an answer's place is shorter, so that more seems to have left than has. Where
        // nothing waits the count is right again.
        let left = if unsent == 0 { u64::MAX } else { state.said.saturating_sub(unsent) };
        while let Some(&(end, cost)) = state.unsettled.front()
            && end <= left
        {
            state.unsettled.pop_front();
            state.account.release(cost);
        }
        if unsent == 0 {
            state.said = 0;
        }
    }

    // -- withdrawal -------------------------------------------------------------------------------------

    pub(crate) fn is_withdrawn(&self, number: u32) -> bool {
        let state = self.state.borrow();
        state.over || state.calls.get(&number).is_none_or(|entry| entry.withdrawn)
    }

    pub(crate) fn poll_withdrawn(&self, number: u32, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.over {
            return Poll::Ready(());
        }
        let old = match state.calls.get_mut(&number) {
            Some(entry) if !entry.withdrawn => entry.waker.replace(context.waker().clone()),
            _ => return Poll::Ready(()),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    // -- the end ----------------------------------------------------------------------------------------

    /// The client is gone, or shall be: handlers notice, and nothing is sent any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        let queue = std::mem::take(&mut state.queue);
        let woken: Vec<Waker> = state.calls.values_mut().filter_map(|entry| entry.waker.take()).collect();
        drop(state);
        self.socket.shut_down();
        drop(queue);
        wake(woken);
    }

    /// No more calls are taken: what nobody has taken is refused, what was taken can still be answered.
    pub(crate) fn leave(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.leaving, true) {
            return;
        }
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        for (number, _, parcel) in queue {
            drop(parcel);
            self.refuse(number, RefusedReason::Leaving);
        }
        self.say(&[&Header::goodbye().encode()], Vec::new(), None);
    }
}

/// A call that was taken, as it came.
pub(crate) struct Taken {
    pub(crate) number: u32,
    pub(crate) room: Size,
    /// When its caller gives up, if it has said.
    pub(crate) deadline: Option<Instant>,
    pub(crate) parcel: Parcel,
}

/// Two ends to give away.
fn pair(reactor: &Reactor) -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
    let near = near.into_fd().map_err(|_| io::Error::other("a fresh socket is in use"))?;
    Ok((near, far))
}

/// Lets everybody else have a turn.
async fn yield_once() {
    let yielded = Cell::new(false);
    poll_fn(|context| {
        if yielded.replace(true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
