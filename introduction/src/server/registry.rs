//! Who is connected, who is registered, and which introductions are under way: the tables, their limits, and
//! what follows from what.
//!
//! Owns the descriptors of introductions until they are passed on or their time is over. It neither sends nor
//! wakes nor closes anything itself: what is to happen is collected in [`After`] and happens when the table
//! is no longer borrowed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use ring::{Companion, Credentials, Fd};

use super::{Line, ServerOptions, ServerStats};
use crate::locator::PublicKey;
use crate::policy::Peer;
use crate::record::{Form, Outcome, Record, with_number};

/// A connection's name, never used again.
pub(super) type Id = u64;

/// An introduction's name, never used again. The older has the lower.
pub(super) type Serial = u64;

pub(super) struct Registry {
    limits: ServerOptions,
    pub(super) stats: ServerStats,
    connections: BTreeMap<Id, Connection>,
    /// Gone, but for an introduction that was on its way to them: whether the kernel has taken it is not
    /// known yet, and nobody else may get it before that is.
    leaving: BTreeMap<Id, Connection>,
    keys: HashMap<PublicKey, Id>,
    introductions: BTreeMap<Serial, Introduction>,
    /// Of introductions whose end has been told, until they are closed as well. They count as introductions;
    /// where there are too many the oldest of these is closed at once.
    lingering: VecDeque<(Instant, Fd)>,
    count: u64,
}

struct Connection {
    credentials: Credentials,
    key: Option<PublicKey>,
    /// Speaks the extension.
    is_extended: bool,
    line: Rc<Line>,
    /// Its tasks, which end with it.
    reading: Option<Companion>,
    writing: Option<Companion>,
    outbox: VecDeque<Outgoing>,
    /// Introductions under way that it has asked for.
    held: usize,
    /// Introductions it has asked for so far.
    asked: u64,
    /// Introductions it has been sent so far.
    sent: u64,
}

/// When an introduction ends that nobody answers, and when it is closed at the latest.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) deadline: Instant,
    pub(super) closed_by: Instant,
}

enum Outgoing {
    Introduction(Serial),
    Outcome(Serial, Vec<u8>),
}

struct Introduction {
    from: Id,
    /// Its number among those of `from`.
    number: u64,
    to: PublicKey,
    record: Vec<u8>,
    /// Until it is passed on.
    fd: Option<Fd>,
    deadline: Instant,
    /// When the descriptor is closed that nobody was given, if whoever asked is also told in words. These two
    /// come one before the other as they do where somebody else closes it.
    closed_by: Instant,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// For somebody to register, or for the time to be over.
    Waiting,
    /// In the outbox of this connection.
    Queued(Id),
    /// Being sent there, under this number.
    Leaving(Id, u64),
    /// Passed on under this number; a verdict may come.
    Passed(Id, u64),
    /// Nothing more comes but the end of its time.
    Silent,
    /// Its end is in the outbox of whoever asked.
    Told,
}

/// What is to be sent next on a connection.
pub(super) enum Letter {
    Introduction { serial: Serial, record: Vec<u8>, fd: Fd },
    Outcome { serial: Serial, record: Vec<u8> },
}

/// Two peers to be introduced, if policy has nothing against it.
pub(super) struct Match {
    pub(super) from: Peer,
    pub(super) to: Peer,
    pub(super) to_id: Id,
}

/// No room for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A peer gave a verdict on what it was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeverSent;

/// What happens when nothing is borrowed any more.
#[derive(Default)]
pub(super) struct After {
    lines: Vec<Rc<Line>>,
    /// Connections that are over, and have something to say still.
    shut: Vec<Rc<Line>>,
    companions: Vec<Companion>,
    connections: Vec<Connection>,
    introductions: Vec<Introduction>,
    fds: Vec<Fd>,
    /// Of introductions whose time is over while they are being sent to somebody who does not read.
    ended: Vec<Fd>,
}

impl After {
    pub(super) fn happen(self) {
        let After { lines, shut, companions, connections, introductions, fds, ended } = self;
        for fd in &ended {
            // Whoever asked sees what it would see if this were closed, which it cannot be yet.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
        for line in shut.iter().chain(connections.iter().map(|connection| &connection.line)) {
            line.socket.shut_down();
        }
        drop((shut, companions, connections, introductions, fds, ended));
        for line in lines {
            line.outgoing.ring();
            line.room.ring();
        }
    }
}

impl Registry {
    pub(super) fn new(limits: ServerOptions) -> Registry {
        Registry {
            limits,
            stats: ServerStats::default(),
            connections: BTreeMap::new(),
            leaving: BTreeMap::new(),
            keys: HashMap::new(),
            introductions: BTreeMap::new(),
            lingering: VecDeque::new(),
            count: 0,
        }
    }

    fn next_number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    // -- connections ------------------------------------------------------------------------------------

    /// A newcomer. Among those that have not proved who they are one makes room: of the user who has most of
    /// them, with this one, that which has had the most time for it. A user who connects again and again
    /// pushes out nobody else.
    pub(super) fn admit(
        &mut self,
        credentials: Credentials,
        line: Rc<Line>,
        after: &mut After,
    ) -> Result<Id, Full> {
        let same_user = |connection: &&Connection| connection.credentials.uid == credentials.uid;
        let of_user = self.connections.values().filter(same_user).count();
        if self.connections.len() >= self.limits.connections_max
            || of_user >= self.limits.user_connections_max
        {
            self.stats.turned_away += 1;
            return Err(Full);
        }
        let unproved = self.connections.iter().filter(|(_, connection)| connection.key.is_none());
        let unproved: Vec<(Id, u32)> =
            unproved.map(|(id, connection)| (*id, connection.credentials.uid)).collect();
        if unproved.len() >= self.limits.newcomers_max {
            let users = unproved.iter().map(|(_, user)| *user).chain([credentials.uid]);
            // Of equals the last is found, which from the other end is the oldest.
            let of_most =
                unproved.iter().rev().max_by_key(|(_, it)| users.clone().filter(|u| u == it).count());
            if let Some((id, _)) = of_most {
                self.stats.turned_away += 1;
                self.remove(*id, after);
            }
        }
        let id = self.next_number();
        let connection = Connection {
            credentials,
            key: None,
            is_extended: false,
            line,
            reading: None,
            writing: None,
            outbox: VecDeque::new(),
            held: 0,
            asked: 0,
            sent: 0,
        };
        self.connections.insert(id, connection);
        self.stats.admitted += 1;
        Ok(id)
    }

    /// The tasks of a connection. Gives them back if it is gone already.
    pub(super) fn employ(
        &mut self,
        id: Id,
        reading: Companion,
        writing: Companion,
    ) -> Option<(Companion, Companion)> {
        match self.connections.get_mut(&id) {
            Some(connection) => {
                (connection.reading, connection.writing) = (Some(reading), Some(writing));
                None
            }
            None => Some((reading, writing)),
        }
    }

    /// A connection has proved its key. Whoever had it before is disconnected; that one is the same peer, and
    /// may not have noticed that it lost its connection. Gives the introductions that wait for this key, the
    /// oldest first.
    pub(super) fn register(
        &mut self,
        id: Id,
        key: PublicKey,
        is_extended: bool,
        after: &mut After,
    ) -> Vec<Serial> {
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        connection.key = Some(key);
        connection.is_extended = is_extended;
        self.stats.registrations += 1;
        if let Some(before) = self.keys.insert(key, id)
            && before != id
        {
            self.remove(before, after);
        }
        let waits = |(_, introduction): &(&Serial, &Introduction)| {
            introduction.state == State::Waiting && introduction.to == key
        };
        self.introductions.iter().filter(waits).map(|(serial, _)| *serial).collect()
    }

    /// Everybody who is connected, with the key they have proved.
    pub(super) fn connected(&self) -> Vec<(Id, Credentials, Option<PublicKey>)> {
        let told = |(id, connection): (&Id, &Connection)| (*id, connection.credentials, connection.key);
        self.connections.iter().map(told).collect()
    }

    /// A connection is gone, with what it has asked for. What waits for it waits for it to come back; what
    /// was on its way to it does so once it is known not to have left.
    pub(super) fn remove(&mut self, id: Id, after: &mut After) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return after.connections.extend(self.leaving.remove(&id));
        };
        if let Some(key) = connection.key
            && self.keys.get(&key) == Some(&id)
        {
            self.keys.remove(&key);
        }
        let of_it = self.introductions.iter().filter(|(_, introduction)| introduction.from == id);
        for serial in of_it.map(|(serial, _)| *serial).collect::<Vec<_>>() {
            self.unqueue(serial);
            after.introductions.extend(self.introductions.remove(&serial));
        }
        let mut is_awaited = false;
        for introduction in self.introductions.values_mut() {
            match introduction.state {
                State::Queued(to) if to == id => introduction.state = State::Waiting,
                State::Leaving(to, _) if to == id => is_awaited = true,
                State::Passed(to, _) if to == id => introduction.state = State::Silent,
                _ => {}
            }
        }
        if is_awaited {
            after.shut.push(Rc::clone(&connection.line));
            after.companions.extend(connection.reading.take());
            self.leaving.insert(id, connection);
        } else {
            after.connections.push(connection);
        }
    }

    /// Whether nothing more is to be sent on this connection.
    pub(super) fn is_gone(&self, id: Id) -> bool {
        !self.connections.contains_key(&id)
    }

    pub(super) fn remove_all(&mut self, after: &mut After) {
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.remove(id, after);
        }
        after.connections.extend(std::mem::take(&mut self.leaving).into_values());
        after.fds.extend(std::mem::take(&mut self.lingering).into_iter().map(|(_, fd)| fd));
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn registered(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn introductions(&self) -> usize {
        self.introductions.len()
    }

    // -- introductions ----------------------------------------------------------------------------------

    /// Whether this connection may ask for one more introduction now.
    pub(super) fn has_room(&self, id: Id) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.held < self.limits.held_max)
    }

    /// A connection asks to be introduced. Where there are too many in all, whoever has asked for most loses
    /// its oldest.
    pub(super) fn introduce(
        &mut self,
        from: Id,
        to: PublicKey,
        record: Vec<u8>,
        fd: Fd,
        times: Times,
        after: &mut After,
    ) -> Option<Serial> {
        if self.introductions.len() + self.lingering.len() >= self.limits.introductions_max {
            match self.lingering.pop_front() {
                Some((_, fd)) => after.fds.push(fd),
                None => self.evict(after),
            }
        }
        let Times { deadline, closed_by } = times;
        let serial = self.next_number();
        let Some(connection) = self.connections.get_mut(&from) else {
            after.fds.push(fd);
            return None;
        };
        let number = connection.asked;
        connection.asked += 1;
        connection.held += 1;
        self.stats.introductions += 1;
        let introduction = Introduction {
            from,
            number,
            to,
            record,
            fd: Some(fd),
            deadline,
            closed_by,
            state: State::Waiting,
        };
        self.introductions.insert(serial, introduction);
        Some(serial)
    }

    /// An introduction that was asked for and whose descriptor was lost in this process: it has its number,
    /// and ends like one that nobody answers.
    pub(super) fn lost(&mut self, from: Id) {
        self.stats.lost += 1;
        if let Some(connection) = self.connections.get_mut(&from) {
            connection.asked += 1;
        }
    }

    fn evict(&mut self, after: &mut After) {
        let movable =
            |introduction: &Introduction| !matches!(introduction.state, State::Leaving(..) | State::Told);
        let held = |id: &Id| self.connections.get(id).map_or(0, |connection| connection.held);
        let candidates = self.introductions.iter().filter(|(_, introduction)| movable(introduction));
        // Of equals the last is found, which from the other end is the oldest.
        let found = candidates.rev().max_by_key(|(_, introduction)| held(&introduction.from));
        if let Some(serial) = found.map(|(serial, _)| *serial) {
            self.stats.evicted += 1;
            self.finish(serial, after);
        }
    }

    /// Who is to be introduced to whom, if the other is there. Whoever asks for nobody is matched with
    /// nobody: `Err` is the peer who asked, if it can be told.
    pub(super) fn matched(&self, serial: Serial) -> Option<Result<Match, Peer>> {
        let introduction = self.introductions.get(&serial)?;
        if introduction.state != State::Waiting {
            return None;
        }
        let from = self.connections.get(&introduction.from)?.peer()?;
        let found = self.keys.get(&introduction.to).and_then(|to_id| {
            let to = self.connections.get(to_id)?.peer()?;
            Some(Match { from, to, to_id: *to_id })
        });
        Some(found.ok_or(from))
    }

    /// Into the outbox of this connection, unless something has changed since.
    pub(super) fn pass_on(&mut self, serial: Serial, to: Id, after: &mut After) {
        let Some(introduction) = self.introductions.get_mut(&serial) else { return };
        let Some(connection) = self.connections.get_mut(&to) else { return };
        if introduction.state == State::Waiting {
            introduction.state = State::Queued(to);
            connection.outbox.push_back(Outgoing::Introduction(serial));
            after.lines.push(Rc::clone(&connection.line));
        }
    }

    /// What is to be sent next on this connection.
    pub(super) fn next_letter(&mut self, id: Id) -> Option<Letter> {
        let connection = self.connections.get_mut(&id)?;
        while let Some(outgoing) = connection.outbox.pop_front() {
            match outgoing {
                Outgoing::Outcome(serial, record) => return Some(Letter::Outcome { serial, record }),
                Outgoing::Introduction(serial) => {
                    let Some(introduction) = self.introductions.get_mut(&serial) else { continue };
                    let Some(fd) = introduction.fd.clone() else { continue };
                    let number = connection.sent;
                    connection.sent += 1;
                    introduction.state = State::Leaving(id, number);
                    let record = match connection.is_extended {
                        true => with_number(&introduction.record, number),
                        false => introduction.record.clone(),
                    };
                    return Some(Letter::Introduction { serial, record, fd });
                }
            }
        }
        None
    }

    /// Takes an introduction that has come to its end out of the outbox it waits in: whoever does not read
    /// would collect there what others have long given up.
    fn unqueue(&mut self, serial: Serial) {
        let Some(introduction) = self.introductions.get(&serial) else { return };
        let State::Queued(to) = introduction.state else { return };
        let Some(connection) = self.connections.get_mut(&to) else { return };
        connection
            .outbox
            .retain(|outgoing| !matches!(outgoing, Outgoing::Introduction(queued) if *queued == serial));
    }

    /// An introduction has left for this connection.
    pub(super) fn passed(&mut self, serial: Serial, to: Id, after: &mut After) {
        self.stats.passed_on += 1;
        let is_judged = self.connections.get(&to).is_some_and(|connection| connection.is_extended);
        let Some(introduction) = self.introductions.get_mut(&serial) else { return };
        // Our copy goes at once: while it is open here nobody sees that the other side has closed.
        after.fds.extend(introduction.fd.take());
        if let State::Leaving(to, number) = introduction.state {
            introduction.state = if is_judged { State::Passed(to, number) } else { State::Silent };
        }
        // It may be refused still. Whoever is not told could see that by being read further: with somebody
        // who is not there it would have to wait.
        let is_told = self.connections.get(&introduction.from).is_some_and(|from| from.is_extended);
        if !is_told && !is_judged {
            self.finish(serial, after);
        }
    }

    /// An introduction has not left for this connection, and waits for the peer to come back.
    pub(super) fn returned(&mut self, serial: Serial, from: Id) {
        if let Some(introduction) = self.introductions.get_mut(&serial)
            && matches!(introduction.state, State::Leaving(to, _) if to == from)
        {
            introduction.state = State::Waiting;
        }
    }

    /// The peer says whether it has taken a connection. Gives the introduction and who asked for it, if a
    /// refusal is still of interest.
    pub(super) fn judge(
        &mut self,
        by: Id,
        number: u64,
        accepted: bool,
        after: &mut After,
    ) -> Result<Option<(Serial, Peer)>, NeverSent> {
        if self.connections.get(&by).is_none_or(|connection| number >= connection.sent) {
            return Err(NeverSent);
        }
        // The verdict may be here before it is known that the introduction has left.
        let states = [State::Passed(by, number), State::Leaving(by, number)];
        let mut introductions = self.introductions.iter_mut();
        let found = introductions.find(|(_, introduction)| states.contains(&introduction.state));
        // The time is over, or whoever asked is gone.
        let Some((serial, introduction)) = found else { return Ok(None) };
        let (serial, from) = (*serial, introduction.from);
        introduction.state = State::Silent;
        after.fds.extend(introduction.fd.take());
        if accepted {
            self.end(serial, Outcome::Accepted, after);
            return Ok(None);
        }
        let peer = self.connections.get(&from).and_then(Connection::peer);
        Ok(peer.map(|peer| (serial, peer)))
    }

    /// Whoever asked is told, if it understands. With that the descriptor, if it is still here, is closed.
    pub(super) fn tell(&mut self, serial: Serial, outcome: Outcome, after: &mut After) {
        self.unqueue(serial);
        let Some(introduction) = self.introductions.get_mut(&serial) else { return };
        let Some(connection) = self.connections.get_mut(&introduction.from) else { return };
        if !connection.is_extended {
            return;
        }
        introduction.state = State::Told;
        after.fds.extend(introduction.fd.take());
        let record = Record::Outcome { number: introduction.number, outcome }.to_bytes(Form::Goblins);
        connection.outbox.push_back(Outgoing::Outcome(serial, record));
        after.lines.push(Rc::clone(&connection.line));
    }

    /// With this outcome an introduction ends, whether whoever asked is told or not.
    fn end(&mut self, serial: Serial, outcome: Outcome, after: &mut After) {
        let from = self.introductions.get(&serial).and_then(|it| self.connections.get(&it.from));
        match from {
            Some(from) if from.is_extended => self.tell(serial, outcome, after),
            _ => self.finish(serial, after),
        }
    }

    /// An introduction has come to its end, and whoever asked may ask for another.
    pub(super) fn finish(&mut self, serial: Serial, after: &mut After) {
        self.unqueue(serial);
        let Some(introduction) = self.introductions.remove(&serial) else { return };
        if let Some(connection) = self.connections.get_mut(&introduction.from) {
            connection.held -= 1;
            after.lines.push(Rc::clone(&connection.line));
        }
        after.introductions.push(introduction);
    }

    /// When the time of the first introduction is over.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        let timed = |introduction: &&Introduction| introduction.is_timed();
        let told = self.introductions.values().filter(timed).map(|introduction| introduction.deadline);
        let is_kept = |introduction: &&Introduction| self.is_closed_apart(introduction);
        let closed = self.introductions.values().filter(is_kept).map(|introduction| introduction.closed_by);
        let lingering = self.lingering.iter().map(|(moment, _)| *moment);
        told.chain(closed).chain(lingering).min()
    }

    /// Ends those whose time is over.
    pub(super) fn expire(&mut self, now: Instant, after: &mut After) {
        self.close_due(now, after);
        let due = |(_, introduction): &(&Serial, &Introduction)| {
            introduction.is_timed() && introduction.deadline <= now
        };
        let due: Vec<(Serial, Id)> = self
            .introductions
            .iter()
            .filter(due)
            .map(|(serial, introduction)| (*serial, introduction.from))
            .collect();
        for (serial, from) in due {
            self.stats.expired += 1;
            if let Some(introduction) = self.introductions.get(&serial)
                && matches!(introduction.state, State::Leaving(..))
            {
                after.ended.extend(introduction.fd.clone());
            }
            if self.connections.get(&from).is_some_and(|from| from.is_extended) {
                self.linger(serial);
            }
            self.end(serial, Outcome::Unanswered, after);
        }
    }

    /// Whether its descriptor is here, and closed at a moment of its own.
    fn is_closed_apart(&self, introduction: &Introduction) -> bool {
        matches!(introduction.state, State::Waiting | State::Queued(_))
            && introduction.fd.is_some()
            && self.connections.get(&introduction.from).is_some_and(|from| from.is_extended)
    }

    /// Closes the descriptors whose time is over, whether that has been told or not.
    fn close_due(&mut self, now: Instant, after: &mut After) {
        let due = |(_, introduction): &(&Serial, &Introduction)| {
            introduction.closed_by <= now && self.is_closed_apart(introduction)
        };
        let due: Vec<Serial> = self.introductions.iter().filter(due).map(|(serial, _)| *serial).collect();
        for serial in due {
            self.unqueue(serial);
            if let Some(introduction) = self.introductions.get_mut(&serial) {
                introduction.state = State::Silent;
                after.fds.extend(introduction.fd.take());
            }
        }
        let (due, left) = self.lingering.drain(..).partition(|(moment, _)| *moment <= now);
        self.lingering = left;
        let due: VecDeque<(Instant, Fd)> = due;
        after.fds.extend(due.into_iter().map(|(_, fd)| fd));
    }

    /// The end of an introduction is told, and its descriptor stays for a while if it is here.
    fn linger(&mut self, serial: Serial) {
        let is_kept = self.introductions.get(&serial).is_some_and(|it| self.is_closed_apart(it));
        if !is_kept {
            return;
        }
        let Some(introduction) = self.introductions.get_mut(&serial) else { return };
        self.lingering.extend(introduction.fd.take().map(|fd| (introduction.closed_by, fd)));
    }
}

impl Introduction {
    fn is_timed(&self) -> bool {
        self.state != State::Told
    }
}

impl Connection {
    fn peer(&self) -> Option<Peer> {
        Some(Peer { key: self.key?, credentials: self.credentials })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ring::{Kind, Reactor, Socket};

    use super::*;
    use crate::signal::Signal;

    fn admit(registry: &mut Registry, reactor: &Reactor, uid: u32) -> Id {
        let (socket, _) = Socket::pair(reactor, Kind::Stream).unwrap();
        let mut credentials = socket.peer_credentials().unwrap();
        credentials.uid = uid;
        let line = Rc::new(Line { socket, outgoing: Signal::default(), room: Signal::default() });
        let mut after = After::default();
        let id = registry.admit(credentials, line, &mut after).unwrap();
        after.happen();
        id
    }

    fn register(registry: &mut Registry, reactor: &Reactor, key: u8) -> Id {
        let id = admit(registry, reactor, 0);
        registry.register(id, PublicKey([key; 32]), false, &mut After::default());
        id
    }

    #[test]
    fn a_user_who_connects_again_and_again_pushes_out_nobody_else() {
        let reactor = Reactor::new().unwrap();
        let limits = ServerOptions { newcomers_max: 3, ..ServerOptions::default() };
        let mut registry = Registry::new(limits);
        let honest = [1, 2, 3].map(|uid| admit(&mut registry, &reactor, uid));
        // All have one, and the one that comes makes them two.
        let flood: Vec<Id> = (0..10).map(|_| admit(&mut registry, &reactor, 3)).collect();
        let left: Vec<Id> = registry.connections.keys().copied().collect();
        assert_eq!(left, [honest[0], honest[1], flood[9]]);
        assert_eq!(registry.stats.turned_away, 10);
    }

    #[test]
    fn nothing_is_left_of_those_who_asked_and_went() {
        let reactor = Reactor::new().unwrap();
        let mut registry = Registry::new(ServerOptions::default());
        let bert = register(&mut registry, &reactor, 2);
        for _ in 0..100 {
            let anne = register(&mut registry, &reactor, 1);
            let (_, far) = Socket::pair(&reactor, Kind::Stream).unwrap();
            let mut after = After::default();
            let later = reactor.now() + ServerOptions::default().introduction_time;
            let times = Times { deadline: later, closed_by: later };
            let serial =
                registry.introduce(anne, PublicKey([2; 32]), vec![], Fd::from(far), times, &mut after);
            registry.pass_on(serial.unwrap(), bert, &mut after);
            assert_eq!(registry.connections[&bert].outbox.len(), 1);
            registry.remove(anne, &mut after);
            after.happen();
        }
        assert_eq!(registry.connections[&bert].outbox.len(), 0);
    }
}
