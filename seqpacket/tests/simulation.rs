//! Whole worlds from one seed each: clients, a server and a third party, with and without faults, deaths and
//! farewells, against a model that only knows what was asked and what was done.
//!
//! `SENDRIGHT_SEED` runs one seed, `SENDRIGHT_SEEDS` another number of them than the tests' own.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ring::script::{Faults, STEPS_MAX, World};
use ring::{Executor, Message, Reactor, Spawner};
use seqpacket::{CallError, CallOptions, Incoming, Mailbox, MailboxOptions, Object, ObjectOptions};
use testing::{Census, in_own_process};
use worlds::*;

/// What happens in a world besides calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    None,
    /// The server, a client or the third party dies, and servers come back.
    Deaths,
    /// A server drops its mailbox, or leaves in a hurry.
    Farewells,
    /// A server leaves, and takes the time it needs.
    Leaves,
}

/// What all parties of one world share.
struct Setting {
    world: World,
    model: Rc<Model>,
    /// Tasks of clients, and then of servers, that have not ended.
    busy: Cell<usize>,
    serving: Cell<usize>,
    tiny: bool,
}

impl Setting {
    fn milliseconds(&self, below: usize) -> Duration {
        Duration::from_millis(1 + self.world.below(below) as u64)
    }

    fn mailbox_options(&self) -> MailboxOptions {
        if !self.tiny {
            return MailboxOptions::default();
        }
        MailboxOptions {
            calls: 1 + self.world.below(3) as u32,
            bytes: 131_072 + self.world.below(20_000) as u32,
            descriptors: 2 + self.world.below(3) as u32,
            call_descriptors: 2,
            granted_sessions: 1 + self.world.below(3),
            grants: 1 + self.world.below(5),
            ..MailboxOptions::default()
        }
    }

    fn object_options(&self) -> ObjectOptions {
        if !self.tiny {
            return ObjectOptions::default();
        }
        ObjectOptions {
            answer_descriptors: 2,
            answer_descriptors_together: 1 + self.world.below(4),
            ..ObjectOptions::default()
        }
    }
}

// The server.

/// Where a server has its mailbox, until it is taken away.
#[derive(Default)]
struct Desk {
    mailbox: Option<Mailbox>,
    waker: Option<Waker>,
}

impl Desk {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.waker = Some(context.waker().clone());
        self.mailbox.as_ref().map_or(Poll::Ready(None), |mailbox| mailbox.poll_next(context))
    }
}

/// Serves until nobody holds the object any more, or until told to stop.
async fn serve(serving: Serving, reactor: Reactor, desk: Rc<RefCell<Desk>>, spawner: Spawner) {
    let setting = Rc::clone(&serving.0);
    while let Some(call) = poll_fn(|context| desk.borrow_mut().poll_next(context)).await {
        spawner.spawn(handle(Rc::clone(&setting), reactor.clone(), call));
    }
}

/// A server that has not seen the end; its death is one too.
struct Serving(Rc<Setting>);

impl Serving {
    fn new(setting: &Rc<Setting>) -> Serving {
        setting.serving.set(setting.serving.get() + 1);
        Serving(Rc::clone(setting))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.set(self.0.serving.get() - 1);
    }
}

fn mark_and_verb(bytes: &[u8]) -> (u64, Verb) {
    (u64::from_ne_bytes(bytes[..8].try_into().unwrap()), Verb::of_byte(bytes[8]))
}

async fn handle(setting: Rc<Setting>, reactor: Reactor, call: Incoming) {
    let (bytes, mut descriptors, continuation) = call.into_parts();
    let (mark, verb) = mark_and_verb(&bytes);
    let model = &setting.model;
    model.seen(mark, verb, &descriptors);
    let answer = |descriptors: Vec<OwnedFd>| {
        let mut bytes = mark.to_ne_bytes().to_vec();
        // Some answers fill a packet, and do not go with others.
        if setting.world.happens(100) {
            bytes.resize(20_000 + setting.world.below(40_000), 0);
        }
        model.answered(mark, identities(&descriptors));
        descriptors.into_iter().fold(Message::new(bytes), Message::with_descriptor)
    };
    match verb {
        Verb::Echo => {
            let _ = continuation.answer(answer(descriptors));
        }
        Verb::Make => {
            let count = 1 + setting.world.below(2);
            let _ = continuation.answer(answer((0..count).map(|_| identified().0).collect()));
        }
        Verb::Later => {
            reactor.sleep(setting.milliseconds(10)).await;
            if !continuation.is_cancelled() {
                let _ = continuation.answer(answer(descriptors));
            }
        }
        Verb::Drop => drop(continuation),
        Verb::Refuse => continuation.refuse(),
        Verb::Never => continuation.cancelled().await,
        Verb::Forward => {
            let object = Object::from_fd(&reactor, descriptors.remove(0)).unwrap();
            let inner = call_as_model(&setting, &object, Verb::Make, Vec::new(), None);
            if let Some(Ok(answered)) = inner.await {
                model.passed_on(&identities(&answered));
                let _ = continuation.answer(answer(answered));
            }
        }
    }
}

// The clients.

/// Makes a call and tells the model how it ended. Gives back the descriptors of its answer.
async fn call_as_model(
    setting: &Rc<Setting>,
    object: &Object,
    verb: Verb,
    descriptors: Vec<OwnedFd>,
    patience: Option<Duration>,
) -> Option<Result<Vec<OwnedFd>, CallError>> {
    let world = &setting.world;
    let within = world.happens(150).then(|| setting.milliseconds(20));
    // Nobody ends this one but its caller.
    let within = if verb == Verb::Never { Some(setting.milliseconds(20)) } else { within };
    let made = Made::new(&setting.model, verb, identities(&descriptors), within);
    let mut bytes = made.mark.to_ne_bytes().to_vec();
    bytes.push(verb.byte());
    if world.happens(100) {
        bytes.resize(20_000 + world.below(40_000), 0);
    }
    let message = descriptors.into_iter().fold(Message::new(bytes), Message::with_descriptor);
    let call = object.call_with(message, CallOptions { within, ..CallOptions::default() });
    let result = match patience {
        None => call.await,
        Some(patience) => at_most(object.reactor(), patience, call).await?,
    };
    Some(made.ended(result))
}

/// One task of a client: some calls, one after the other or several at a time.
async fn client(busy: Busy, object: Object, third: Object, spawner: Spawner) {
    let setting = Rc::clone(&busy.0);
    for _ in 0..1 + setting.world.below(5) {
        if setting.world.happens(200) {
            for _ in 0..1 + setting.world.below(6) {
                spawner.spawn(some_call(Busy::new(&setting), object.clone(), third.clone()));
            }
        } else {
            some_call(Busy::new(&setting), object.clone(), third.clone()).await;
        }
        if setting.world.happens(200) {
            object.reactor().sleep(setting.milliseconds(5)).await;
        }
    }
}

async fn some_call(busy: Busy, object: Object, third: Object) {
    let setting = &busy.0;
    let verb = Verb::ALL[setting.world.below(Verb::ALL.len())];
    let patience = setting.world.happens(150).then(|| setting.milliseconds(8));
    let mut descriptors = Vec::new();
    if verb == Verb::Forward {
        // Granted, so that the server need not be trusted; or there is nothing to forward to.
        match third.grant().await {
            Ok(granted) => descriptors.push(granted),
            Err(_) => return,
        }
    } else {
        descriptors.extend((0..setting.world.below(3)).map(|_| identified().0));
    }
    let _ = call_as_model(setting, &object, verb, descriptors, patience).await;
}

/// Something of a client that has not ended; its death ends it too.
struct Busy(Rc<Setting>);

impl Busy {
    fn new(setting: &Rc<Setting>) -> Busy {
        setting.busy.set(setting.busy.get() + 1);
        Busy(Rc::clone(setting))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

// The world.

/// A server's process, its mailbox to take away, and where another can take over.
struct Server {
    party: Option<Party>,
    desk: Rc<RefCell<Desk>>,
    bound: Option<OwnedFd>,
    address: OwnedFd,
}

impl Server {
    fn start(setting: &Rc<Setting>) -> Server {
        let (bound, address) = testing::packet_pair();
        let mut server = Server { party: None, desk: Rc::default(), bound: Some(bound), address };
        server.take_over(setting);
        server
    }

    /// The process has died, and another serves the mailbox; unless that is gone for good.
    fn take_over(&mut self, setting: &Rc<Setting>) {
        let Some(bound) = &self.bound else { return };
        let party = Party::join(&setting.world);
        let bound = bound.try_clone().unwrap();
        let mailbox = Mailbox::from_fd_with(party.reactor(), bound, setting.mailbox_options()).unwrap();
        self.desk = Rc::new(RefCell::new(Desk { mailbox: Some(mailbox), waker: None }));
        let (serving, reactor) = (Serving::new(setting), party.reactor().clone());
        let serving = serve(serving, reactor, Rc::clone(&self.desk), party.0.spawner());
        party.0.spawn(serving);
        self.party = Some(party);
    }

    fn die(&mut self, world: &World) {
        if let Some(party) = self.party.take() {
            world.kill(party.reactor());
            self.desk = Rc::default();
        }
    }

    fn farewell(&mut self, setting: &Rc<Setting>, within: Option<Duration>) {
        let Some(party) = &self.party else { return };
        let Desk { mailbox, waker } = std::mem::take(&mut *self.desk.borrow_mut());
        let Some(mailbox) = mailbox else { return };
        self.bound = None;
        if let Some(within) = within {
            let serving = Serving::new(setting);
            party.0.spawn(async move {
                mailbox.leave(within).await;
                drop(serving);
            });
        }
        waker.into_iter().for_each(Waker::wake);
    }

    fn is_blameless(&self) {
        if let Some(mailbox) = &self.desk.borrow().mailbox {
            let violations = mailbox.violations();
            assert_eq!(violations.malformed, 0, "something is malformed");
            assert_eq!(violations.beyond_window, 0, "a caller thinks it has more room than it has");
            assert_eq!(violations.unread, 0, "a caller that reads is said not to");
        }
    }
}

struct Cast {
    servers: [Server; 2],
    clients: Vec<Option<Party>>,
}

impl Cast {
    fn executors(&self) -> Vec<&Executor> {
        let servers = self.servers.iter().filter_map(|server| server.party.as_ref());
        servers.chain(self.clients.iter().flatten()).map(|party| &party.0).collect()
    }

    fn step(&mut self, setting: &Rc<Setting>) {
        let dead = self.servers.iter().filter(|server| server.party.is_none() && server.bound.is_some());
        let waits = dead.count() > 0;
        if waits && setting.world.happens(50) {
            self.revive(setting);
        }
        if let Err(stuck) = setting.world.step(&self.executors()) {
            assert!(waits, "{stuck}");
            self.revive(setting);
        }
    }

    fn revive(&mut self, setting: &Rc<Setting>) {
        for server in self.servers.iter_mut().filter(|server| server.party.is_none()) {
            server.take_over(setting);
        }
    }

    fn happens(&mut self, events: Events, setting: &Rc<Setting>) {
        let world = &setting.world;
        let which = world.below(2);
        match events {
            Events::None => {}
            Events::Farewells => {
                let within = world.happens(500).then(|| setting.milliseconds(20));
                self.servers[which].farewell(setting, within);
            }
            Events::Leaves => self.servers[which].farewell(setting, Some(Duration::from_secs(3600))),
            Events::Deaths if world.happens(600) => {
                self.servers[which].die(world);
                if world.happens(300) {
                    self.servers[which].bound = None;
                }
            }
            Events::Deaths => {
                let client = world.below(self.clients.len());
                if let Some(party) = self.clients[client].take() {
                    party.die(world);
                }
            }
        }
        world.stir();
    }
}

/// One world from its beginning to its end. Gives back what another of the same seed has in common with it.
fn live(seed: u64, faults: Faults, events: Events, tally: &mut Tally) -> u64 {
    let census = Census::take();
    let allowed = Allowed {
        gone: events != Events::None || faults.out_of_descriptors > 0,
        dropped: matches!(events, Events::Deaths | Events::Farewells) || faults.out_of_memory > 0,
        shortages: faults.out_of_descriptors > 0,
    };
    let world = World::new(seed, Faults::NONE);
    let (tiny, model) = (world.happens(500), Model::new(allowed));
    let setting = Rc::new(Setting { world, model, busy: Cell::new(0), serving: Cell::new(0), tiny });
    let world = &setting.world;
    let servers = [Server::start(&setting), Server::start(&setting)];
    let mut cast = Cast { servers, clients: Vec::new() };
    for _ in 0..1 + world.below(3) {
        let party = Party::join(world);
        let object = |server: &Server| {
            let address = server.address.try_clone().unwrap();
            Object::from_fd_with(party.reactor(), address, setting.object_options()).unwrap()
        };
        let (object, third) = (object(&cast.servers[0]), object(&cast.servers[1]));
        for _ in 0..1 + world.below(3) {
            party.0.spawn(client(Busy::new(&setting), object.clone(), third.clone(), party.0.spawner()));
        }
        cast.clients.push(Some(party));
    }
    world.set_faults(faults);
    let mut left = 1 + world.below(3);
    for _ in 0..STEPS_MAX {
        if setting.busy.get() == 0 {
            break;
        }
        if left > 0 && world.happens(10) {
            left -= 1;
            cast.happens(events, &setting);
        }
        cast.step(&setting);
        cast.servers.iter().for_each(Server::is_blameless);
    }
    assert_eq!(setting.busy.get(), 0, "it goes round in circles: {world:?}");
    end(&setting, cast);
    setting.model.over();
    tally.add(&setting.model);
    let print = world.print();
    drop(setting);
    census.unchanged();
    print
}

/// Everybody goes, and the servers notice.
fn end(setting: &Rc<Setting>, mut cast: Cast) {
    cast.clients.clear();
    setting.world.stir();
    for server in &mut cast.servers {
        server.bound = None;
    }
    let Cast { servers, .. } = cast;
    let (parties, desks): (Vec<_>, Vec<_>) =
        servers.into_iter().map(|server| (server.party, server.desk)).unzip();
    let parties: Vec<Party> = parties.into_iter().flatten().collect();
    let executors: Vec<&Executor> = parties.iter().map(|party| &party.0).collect();
    let served = setting.world.run(&executors, || setting.serving.get() == 0);
    served.unwrap_or_else(|stuck| panic!("a server does not see that everybody is gone: {stuck}"));
    drop(desks);
}

// The tests.

fn worlds(first: u64, faults: Faults, events: Events, ends: &[&str]) {
    let mut tally = Tally::default();
    for_seeds(first, 400, |seed| {
        live(seed, faults, events, &mut tally);
    });
    tally.has(ends);
}

in_own_process! {
    fn without_faults_every_call_has_its_answer() {
        worlds(0, Faults::NONE, Events::None, &["answered", "refused", "dropped", "forgotten", "late"]);
    }

    fn what_no_program_should_notice_is_not_noticed() {
        worlds(1_000_000, Faults::UNNOTICED, Events::None, &["answered", "refused", "dropped", "late"]);
    }

    fn every_shortage_of_descriptors_is_told() {
        let ends = ["call lost descriptors", "answer lost descriptors", "no descriptors to call with"];
        worlds(2_000_000, Faults { out_of_memory: 0, ..Faults::ALL }, Events::None, &ends);
    }

    fn without_memory_every_call_ends_once() {
        worlds(2_500_000, Faults::ALL, Events::None, &["answered", "kernel"]);
    }

    fn whoever_dies_every_call_ends_once() {
        worlds(3_000_000, Faults::UNNOTICED, Events::Deaths, &["answered", "gone", "dropped"]);
    }

    fn whoever_dies_in_a_world_of_shortages_every_call_ends_once() {
        worlds(4_000_000, Faults::ALL, Events::Deaths, &["answered", "gone", "dropped"]);
    }

    fn after_a_farewell_every_call_ends_once() {
        worlds(5_000_000, Faults::UNNOTICED, Events::Farewells, &["answered", "gone", "dropped"]);
    }

    fn a_server_that_leaves_leaves_no_call_in_doubt() {
        worlds(5_500_000, Faults::UNNOTICED, Events::Leaves, &["answered", "gone", "dropped"]);
    }

    fn two_worlds_of_one_seed_are_the_same() {
        for_seeds(6_000_000, 20, |seed| {
            let print = || live(seed, Faults::ALL, Events::Deaths, &mut Tally::default());
            assert_eq!(print(), print(), "seed {seed} does not decide everything");
        });
    }
}
