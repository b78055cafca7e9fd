//! Peers that come and go, and are introduced to each other all the time.
//!
//! Shared by the program that does it for long and the test that does it for a short time. It owns the peers
//! of one process; what is measured, and against which limit, is for whoever asks. It knows nothing of bytes.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use futures_util::future::join as both;
use introduction::{
    Connection, Disconnected, Expect, Identity, Netlayer, NetlayerOptions, Proof, Server, ServerOptions,
};
use ring::{Fd, Kind, Message, Reactor, Socket};

/// With each so-many-th introduction one peer leaves, and one that has left comes back.
const STAY: usize = 10;

/// So many peers are away at the same time, of 200; fewer of fewer.
const AWAY_MAX: usize = 10;

/// After so many introductions, what was handed to other threads to be closed is waited for: they may lag
/// behind as far as the machine is busy.
const CLOSED_AFTER: usize = 8;

/// What one introduction leaves to be closed at most: both ends of its pair, of a pair that was proved, and
/// of the line of one who left.
const CLOSED_EACH: usize = 6;

/// What there is beside the lines of peers: one introduction in the making with both its ends and what comes
/// of a proof, and what the reactor has.
const OTHER_DESCRIPTORS: usize = 16;

/// The most descriptors that a process with a server and so many peers may have open: both ends of each line.
pub const fn descriptors_max(before: usize, peers: usize) -> usize {
    before + 2 * peers + CLOSED_AFTER * CLOSED_EACH + OTHER_DESCRIPTORS
}

/// How many are open now: one call, since Linux 6.2.
pub fn descriptors() -> io::Result<usize> {
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(std::fs::read_dir("/proc/self/fd")?.count() - 1),
        count => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
    }
}

/// A server with room for so many.
pub fn server(reactor: &Reactor, peers: usize) -> io::Result<Server> {
    let mut options = ServerOptions::default();
    options.connections_max = options.connections_max.max(peers + 2);
    options.user_connections_max = options.connections_max;
    Ok(Server::new(reactor, Identity::generate()?, options))
}

struct Member {
    identity: Identity,
    /// While it is here.
    netlayer: Option<(Netlayer, Disconnected)>,
}

/// All peers, in one process with their server.
pub struct Crowd<'a> {
    reactor: &'a Reactor,
    server: &'a Server,
    proof: Proof,
    /// Nobody leaves: whoever came back might find its place taken.
    pub stays: bool,
    members: Vec<Member>,
    away: VecDeque<usize>,
    round: usize,
    /// The most descriptors that were open in the middle of an introduction.
    pub descriptors_most: usize,
    /// Introductions to somebody who was away when it was asked for.
    pub to_the_absent: usize,
    /// How often a peer has come back.
    pub returns: usize,
}

impl<'a> Crowd<'a> {
    pub async fn gather(
        reactor: &'a Reactor,
        server: &'a Server,
        peers: usize,
        proof: Proof,
    ) -> Result<Crowd<'a>, Box<dyn Error>> {
        let mut crowd = Crowd {
            reactor,
            server,
            proof,
            stays: false,
            members: Vec::with_capacity(peers),
            away: VecDeque::new(),
            round: 0,
            descriptors_most: 0,
            to_the_absent: 0,
            returns: 0,
        };
        for place in 0..peers {
            crowd.members.push(Member { identity: Identity::generate()?, netlayer: None });
            crowd.come(place).await?;
        }
        Ok(crowd)
    }

    /// One introduction, and who comes and goes with it. Says how long it took, if both were here.
    pub async fn meet(&mut self) -> Result<Option<Duration>, Box<dyn Error>> {
        let (round, peers) = (self.round, self.members.len());
        self.round += 1;
        if round % CLOSED_AFTER == 0 {
            ring::closer_idle();
        }
        if !self.stays && round % STAY == 0 {
            self.leave(round / STAY * 7 % peers);
            if self.away.len() > AWAY_MAX.min(peers / 4) {
                let back = self.away.pop_front().ok_or("somebody is away")?;
                self.come(back).await?;
                self.returns += 1;
            }
        }
        // Every pair of neighbours in turn, and then those further apart.
        let from = self.present(round % peers);
        let to = (from + 1 + round / peers) % peers;
        if self.members[to].netlayer.is_none() {
            self.ask_for_the_absent(from, to).await?;
            return Ok(None);
        }
        let (asker, answerer) = (self.netlayer(from)?, self.netlayer(to)?);
        let start = Instant::now();
        let location = answerer.our_location();
        let (ours, theirs) = both(asker.connect(&location), answerer.incoming()).await;
        let time = start.elapsed();
        let most = descriptors()?;
        are_connected(round, ours?, theirs.accept()).await?;
        self.descriptors_most = self.descriptors_most.max(most);
        Ok(Some(time))
    }

    /// Asked for while it is away, it gets the connection when it is back.
    async fn ask_for_the_absent(&mut self, from: usize, to: usize) -> Result<(), Box<dyn Error>> {
        let mut location = introduction::Locator::new(self.members[to].identity.key());
        location.hints.servers.insert(self.server.key());
        location.hints.seqpacket = true;
        location.hints.proof = self.proof;
        let asking = self.server.stats().introductions;
        // Taken out, so that others can be let in while it waits.
        let (asker, gone) = self.members[from].netlayer.take().ok_or("it is here")?;
        let meeting = async {
            let connecting = asker.connect(&location);
            let arriving = async {
                while self.server.stats().introductions == asking {
                    self.reactor.sleep(Duration::from_micros(50)).await;
                }
                self.away.retain(|away| *away != to);
                self.come(to).await?;
                self.returns += 1;
                let netlayer = &self.members[to].netlayer.as_ref().ok_or("it has come")?.0;
                Ok::<_, Box<dyn Error>>(netlayer.incoming().await.accept())
            };
            let (ours, theirs) = both(connecting, arriving).await;
            are_connected(self.round, ours?, theirs?).await
        };
        meeting.await?;
        self.members[from].netlayer = Some((asker, gone));
        self.to_the_absent += 1;
        Ok(())
    }

    fn netlayer(&self, place: usize) -> Result<&Netlayer, &'static str> {
        self.members[place].netlayer.as_ref().map(|(netlayer, _)| netlayer).ok_or("it is away")
    }

    /// The next one who is here.
    fn present(&self, from: usize) -> usize {
        let places = (from..self.members.len()).chain(0..from);
        places.into_iter().find(|place| self.members[*place].netlayer.is_some()).unwrap_or(from)
    }

    fn leave(&mut self, place: usize) {
        if self.members[place].netlayer.take().is_some() {
            self.away.push_back(place);
        }
    }

    async fn come(&mut self, place: usize) -> Result<(), Box<dyn Error>> {
        let (near, far) = Socket::pair(self.reactor, Kind::Stream)?;
        self.server.admit(far)?;
        let mut options = NetlayerOptions::default();
        options.proof = self.proof;
        let identity = self.members[place].identity.clone();
        let netlayer = Netlayer::with_options(self.reactor, identity, options);
        let line: OwnedFd = near.into_fd().map_err(|_| "a fresh socket is idle")?;
        let before = self.server.stats().registrations;
        let gone = netlayer.add_server(line, Expect::key(self.server.key())).await?;
        while self.server.stats().registrations == before {
            self.reactor.sleep(Duration::from_micros(20)).await;
        }
        self.members[place].netlayer = Some((netlayer, gone));
        Ok(())
    }
}

/// Whether it is this connection and no other.
async fn are_connected(round: usize, ours: Connection, theirs: Connection) -> Result<(), Box<dyn Error>> {
    let (Connection::SeqPacket(ours), Connection::SeqPacket(theirs)) = (ours, theirs) else {
        return Err("a connection of another kind".into());
    };
    ours.try_send(round.to_le_bytes().as_slice())?;
    if theirs.receive().await?.bytes() != round.to_le_bytes() {
        return Err("a connection to somebody else".into());
    }
    Ok(())
}

/// What an introduction is beside: one end of a fresh pair from one to another by way of a third, on the same
/// reactor, and nothing else.
pub struct Forwarding {
    reactor: Reactor,
    anne: Socket,
    hers: Socket,
    bert: Socket,
    his: Socket,
}

impl Forwarding {
    pub fn new(reactor: &Reactor) -> Result<Forwarding, Box<dyn Error>> {
        let pair = || -> Result<(Socket, Socket), Box<dyn Error>> {
            let (near, far) = Socket::pair(reactor, Kind::Stream)?;
            Ok((near, Socket::wrap(reactor, far)?))
        };
        let ((anne, hers), (bert, his)) = (pair()?, pair()?);
        Ok(Forwarding { reactor: reactor.clone(), anne, hers, bert, his })
    }

    pub async fn pass_one(&self) -> Result<Duration, Box<dyn Error>> {
        let start = Instant::now();
        let (_near, far) = Socket::pair(&self.reactor, Kind::SeqPacket)?;
        self.anne.send(Message::from("1234").with_descriptor(Fd::made_here(far))).await?;
        let fd = self.hers.receive().await?.take_descriptor().ok_or("no descriptor")?;
        self.his.send(Message::from("1234").with_descriptor(fd)).await?;
        let fd = self.bert.receive().await?.take_descriptor().ok_or("no descriptor")?;
        let time = start.elapsed();
        drop(Socket::wrap(&self.reactor, fd)?);
        Ok(time)
    }
}
