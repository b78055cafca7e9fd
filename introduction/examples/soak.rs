//! Introduces peers that come and go to each other, many times, and says how fast, with how many descriptors,
//! and what merely passing a descriptor on costs on the same reactor.
//!
//! `cargo run --release -p sendright-introduction --example soak -- [INTRODUCTIONS] [PEERS] [plain|proof]`
//!
//! Everything is in one process and on one thread, so the numbers are of work and not of waiting. It checks
//! as it goes that each connection is the right one, and shows in the end that no descriptor is left.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use futures_util::future::join as both;
use introduction::{Connection, Expect, Identity, Netlayer, NetlayerOptions, Proof, Server, ServerOptions};
use ring::{Executor, Fd, Kind, Message, Reactor, Socket};

struct Plan {
    introductions: usize,
    peers: usize,
    proof: Proof,
}

/// After so many introductions a peer leaves and comes back.
const STAY: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let plan = plan()?;
    let reactor = Reactor::new()?;
    let executor = Executor::new(&reactor);
    println!("{}", reactor.driver());
    let before = open_descriptors()?;
    let mut most = before;
    let mut times = executor.block_on(introduce(&reactor, &plan, &mut most))?;
    report("introductions", &mut times);
    let mut times = executor.block_on(pass_on(&reactor, plan.introductions))?;
    report("descriptors passed on over two hops", &mut times);
    reactor.turn(ring::Wait::Not)?;
    println!("descriptors: {before} before, {most} at most, {} after", open_descriptors()?);
    Ok(())
}

fn plan() -> Result<Plan, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse());
    let (introductions, peers) = (number(100_000)?, number(200)?);
    let proof = match std::env::args().nth(3).as_deref() {
        None | Some("plain") => Proof::None,
        Some("proof") => Proof::Required,
        Some(other) => return Err(format!("{other}: neither plain nor proof").into()),
    };
    Ok(Plan { introductions, peers, proof })
}

async fn introduce(
    reactor: &Reactor,
    plan: &Plan,
    most: &mut usize,
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut options = ServerOptions::default();
    options.connections_max = plan.peers + 2;
    options.user_connections_max = plan.peers + 2;
    let server = Server::new(reactor, Identity::generate()?, options);
    let mut peers = Vec::new();
    for _ in 0..plan.peers {
        peers.push(come(reactor, &server, plan, Identity::generate()?).await?);
    }
    let mut times = Vec::with_capacity(plan.introductions);
    for round in 0..plan.introductions {
        // Every pair of neighbours in turn, and then those further apart.
        let from = round % plan.peers;
        let to = (from + 1 + round / plan.peers) % plan.peers;
        if round % STAY == STAY - 1 {
            let identity = peers[to].1.clone();
            peers[to] = come(reactor, &server, plan, identity).await?;
        }
        let start = Instant::now();
        let (asker, answerer) = (&peers[from].0, &peers[to].0);
        let location = answerer.our_location();
        let (ours, theirs) = both(asker.connect(&location), answerer.incoming()).await;
        times.push(start.elapsed());
        let (ours, theirs) = (ours?, theirs.accept());
        let (Connection::SeqPacket(ours), Connection::SeqPacket(theirs)) = (ours, theirs) else {
            return Err("a connection of another kind".into());
        };
        ours.try_send(round.to_le_bytes().as_slice())?;
        if theirs.receive().await?.bytes() != round.to_le_bytes() {
            return Err("a connection to somebody else".into());
        }
        if round % 100 == 0 {
            *most = open_descriptors()?.max(*most);
        }
    }
    println!("{:?}", server.stats());
    Ok(times)
}

async fn come(
    reactor: &Reactor,
    server: &Server,
    plan: &Plan,
    identity: Identity,
) -> Result<(Netlayer, Identity), Box<dyn Error>> {
    let (near, far) = Socket::pair(reactor, Kind::Stream)?;
    server.admit(far)?;
    let mut options = NetlayerOptions::default();
    options.proof = plan.proof;
    let netlayer = Netlayer::with_options(reactor, identity.clone(), options);
    let line: OwnedFd = near.into_fd().map_err(|_| "a fresh socket is idle")?;
    let before = server.stats().registrations;
    let _gone = netlayer.add_server(line, Expect::key(server.key())).await?;
    while server.stats().registrations == before {
        reactor.sleep(Duration::ZERO).await;
        yield_once().await;
    }
    Ok((netlayer, identity))
}

/// One end of a pair from one to another by way of a third, and nothing else.
async fn pass_on(reactor: &Reactor, count: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let pair = || -> io::Result<(Socket, Socket)> {
        let (near, far) = Socket::pair(reactor, Kind::Stream)?;
        Ok((near, Socket::wrap(reactor, far).map_err(io::Error::other)?))
    };
    let ((anne, hers), (bert, his)) = (pair()?, pair()?);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let (_near, far) = Socket::pair(reactor, Kind::SeqPacket)?;
        anne.send(Message::from("1234").with_descriptor(Fd::made_here(far))).await?;
        let fd = hers.receive().await?.take_descriptor().ok_or("no descriptor")?;
        his.send(Message::from("1234").with_descriptor(fd)).await?;
        let fd = bert.receive().await?.take_descriptor().ok_or("no descriptor")?;
        times.push(start.elapsed());
        drop(Socket::wrap(reactor, fd)?);
    }
    Ok(times)
}

async fn yield_once() {
    let mut is_first = true;
    std::future::poll_fn(|context| {
        if std::mem::take(&mut is_first) {
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let total: Duration = times.iter().sum();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let rate = times.len() as f64 / total.as_secs_f64();
    let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
    println!("{} {what}: {rate:.0} a second; p50 {p50:?}, p99 {p99:?}, p99.9 {p999:?}", times.len());
}

fn open_descriptors() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count() - 1)
}
