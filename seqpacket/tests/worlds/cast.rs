//! Who lives in a simulated world: servers that do as they are asked, and the calls of their clients.
//!
//! They tell the model what they do and what they are told. They do not know what happens to them.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ring::script::{Fault, Faults, STEPS_MAX, World};
use ring::{Executor, Message, Reactor, Spawner};
use seqpacket::{
    CallError, CallOptions, Incoming, Mailbox, MailboxOptions, Object, ObjectOptions, PlainContinuation,
    SharedMailbox, Violations,
};

use super::{Allowed, Holdings, Made, Model, Party, Quota, Verb, at_most, identified, identities, identity};

/// The largest messages of these worlds: several parts.
const LARGE_BYTES_MAX: usize = 250_000;

/// Descriptors of one process: its reactor's own, a mailbox or two objects, a session with each of the others
/// and what it has just received.
const PARTY_DESCRIPTORS_MAX: usize = 24;

/// … and the pairs that a plain object makes ahead.
const PAIRS_DESCRIPTORS_MAX: usize = 4 * seqpacket::PAIRS_DEFAULT;

/// Descriptors of one call: what it brings and what comes back, on both sides; a continuation, and the object
/// it is handed on with.
const CALL_DESCRIPTORS_MAX: usize = 12;

/// Memory of one process: its buffers and queues.
const PARTY_BYTES_MAX: usize = 3 << 20;

/// Memory of one call: its message and its answer, each on both sides, and a part on its way.
const CALL_BYTES_MAX: usize = 4 * LARGE_BYTES_MAX + (128 << 10);

/// What calls of rogues begin with: nobody knows them, and they are dropped.
pub const ROGUES_MARK: u64 = u64::MAX;

/// What a server does that is not to be trusted: for tests of the account, which is to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Betrayal {
    /// Two calls get each other's answers.
    SwapsAnswers,
    /// A descriptor of one call comes back with the answer to another.
    SwapsDescriptors,
    /// A call is shown to the handler again.
    SeesTwice,
    /// Memory is kept for each call.
    KeepsMemory,
    /// Descriptors are kept for each call.
    KeepsDescriptors,
    /// Of what its callers have lost it hears nothing.
    HearsNoLoss,
}

/// What such a server has put by.
#[derive(Default)]
pub struct Hoard {
    mark: Option<u64>,
    descriptors: Vec<OwnedFd>,
    memory: Vec<Vec<u8>>,
}

/// Of a message that was lengthened, the byte at this place: no two of its parts are the same.
fn padding(place: usize) -> u8 {
    (place ^ place >> 8 ^ place >> 16) as u8
}

/// Whether what follows the words of a message is as it was sent.
pub fn is_padded(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().skip(17).all(|(place, byte)| *byte == padding(place))
}

/// What all parties of one world share.
pub struct Setting {
    pub world: World,
    pub model: Rc<Model>,
    /// Tasks of clients, and then of servers, that have not ended.
    pub busy: Cell<usize>,
    pub serving: Cell<usize>,
    pub tiny: bool,
    pub betrayal: Cell<Option<Betrayal>>,
    /// There are rogues, who are to be blamed.
    pub rogues: Cell<bool>,
    pub hoard: RefCell<Hoard>,
    pub quota: Quota,
    /// The most processes there have been at a time.
    parties: Cell<usize>,
    steps: Cell<u64>,
    /// How many steps nothing has been told to anybody.
    still: Cell<(u64, usize)>,
}

/// So many steps in a row in which no call begins or ends are taken for no progress.
const STILL_STEPS_MAX: u64 = 100_000;

impl Setting {
    /// Half of all worlds have small windows.
    pub fn new(seed: u64, allowed: Allowed) -> Rc<Setting> {
        let quota = Quota::begin();
        let world = World::new(seed, Faults::NONE);
        let (tiny, model) = (world.happens(500), Model::new(allowed));
        Rc::new(Setting {
            world,
            model,
            busy: Cell::new(0),
            serving: Cell::new(0),
            tiny,
            betrayal: Cell::new(None),
            rogues: Cell::new(false),
            hoard: RefCell::default(),
            quota,
            parties: Cell::new(0),
            steps: Cell::new(0),
            still: Cell::default(),
        })
    }

    /// After each step: it goes on, and nothing is kept beyond what parties and open calls may have.
    pub fn look(&self, parties: usize, plain: bool) {
        self.steps.set(self.steps.get() + 1);
        assert!(self.steps.get() < STEPS_MAX, "it goes round in circles: {:?}", self.world);
        let (since, open) = self.still.get();
        if open != self.model.open() {
            self.still.set((self.steps.get(), self.model.open()));
        }
        let still = self.steps.get() - since;
        assert!(still < STILL_STEPS_MAX, "nothing is told any more: {:?}", self.world);
        self.parties.set(self.parties.get().max(parties));
        let (parties, open) = (self.parties.get(), self.model.open());
        let pairs = if plain { PAIRS_DESCRIPTORS_MAX } else { 0 };
        self.quota.holds(Holdings {
            descriptors: parties * (PARTY_DESCRIPTORS_MAX + pairs) + open * CALL_DESCRIPTORS_MAX,
            bytes: parties * PARTY_BYTES_MAX + open * CALL_BYTES_MAX,
        });
    }

    /// Everybody has gone.
    pub fn is_given_back(self: Rc<Self>) {
        self.model.over();
        let setting = Rc::try_unwrap(self).unwrap_or_else(|_| panic!("somebody is still there"));
        let Setting { world, model, hoard, quota, .. } = setting;
        drop((world, model, hoard));
        quota.is_given_back();
    }

    /// What a server that is not to be trusted does before it answers.
    fn betray(&self, mark: u64, descriptors: &mut [OwnedFd]) -> u64 {
        let hoard = &mut *self.hoard.borrow_mut();
        match self.betrayal.get() {
            Some(Betrayal::SwapsAnswers) => return hoard.mark.replace(mark).unwrap_or(mark),
            Some(Betrayal::SwapsDescriptors) if !descriptors.is_empty() => {
                let before = hoard.descriptors.pop().unwrap_or_else(|| identified().0);
                hoard.descriptors.push(std::mem::replace(&mut descriptors[0], before));
            }
            Some(Betrayal::KeepsMemory) => hoard.memory.push(vec![1; 8 << 20]),
            Some(Betrayal::KeepsDescriptors) => {
                hoard.descriptors.extend((0..200).map(|_| identified().0));
            }
            _ => {}
        }
        mark
    }

    pub fn milliseconds(&self, below: usize) -> Duration {
        Duration::from_millis(1 + self.world.below(below) as u64)
    }

    /// Some messages fill a packet and do not go with others, and some need several; if there is room.
    fn lengthen(&self, bytes: &mut Vec<u8>, room: usize) {
        let length = match self.world.below(20) {
            0 | 1 => 20_000 + self.world.below(40_000),
            2 => 103_000 + self.world.below(LARGE_BYTES_MAX - 103_000),
            _ => return,
        };
        bytes.extend((bytes.len()..length.min(room)).map(padding));
    }

    pub fn mailbox_options(&self) -> MailboxOptions {
        if !self.tiny {
            return MailboxOptions::default();
        }
        MailboxOptions {
            calls: 1 + self.world.below(3) as u32,
            bytes: 204_160 + self.world.below(20_000) as u32,
            descriptors: 2 + self.world.below(3) as u32,
            call_descriptors: 2,
            message_bytes: LARGE_BYTES_MAX as u32,
            large_bytes: 2 * LARGE_BYTES_MAX as u32,
            granted_sessions: 1 + self.world.below(3),
            grants: 1 + self.world.below(5),
            ..MailboxOptions::default()
        }
    }

    pub fn object_options(&self) -> ObjectOptions {
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

/// A mailbox of one process, or one that several serve.
pub enum AnyMailbox {
    Own(Mailbox),
    Shared(SharedMailbox),
}

impl AnyMailbox {
    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        match self {
            AnyMailbox::Own(mailbox) => mailbox.poll_next(context),
            AnyMailbox::Shared(mailbox) => mailbox.poll_next(context),
        }
    }

    async fn leave(self, within: Duration) {
        match self {
            AnyMailbox::Own(mailbox) => mailbox.leave(within).await,
            AnyMailbox::Shared(mailbox) => mailbox.leave(within).await,
        }
    }

    fn revoke_all(&self) {
        match self {
            AnyMailbox::Own(mailbox) => mailbox.revoke_all(),
            AnyMailbox::Shared(mailbox) => mailbox.revoke_all(),
        }
    }

    fn lost(&self) -> Lost {
        let stats = match self {
            AnyMailbox::Own(mailbox) => mailbox.stats(),
            AnyMailbox::Shared(mailbox) => mailbox.stats(),
        };
        Lost { calls: stats.calls.descriptors_lost, answers: stats.answers_lost }
    }

    fn violations(&self) -> Violations {
        match self {
            AnyMailbox::Own(mailbox) => mailbox.violations(),
            AnyMailbox::Shared(mailbox) => mailbox.violations(),
        }
    }
}

/// What has lost descriptors on its way, as servers know.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    calls: u64,
    answers: u64,
}

/// Where a server has its mailbox, until it is taken away.
#[derive(Default)]
pub struct Desk {
    pub mailbox: Option<AnyMailbox>,
    pub waker: Option<Waker>,
}

impl Desk {
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.waker = Some(context.waker().clone());
        self.mailbox.as_ref().map_or(Poll::Ready(None), |mailbox| mailbox.poll_next(context))
    }
}

/// Serves until nobody holds the object any more, or until told to stop.
pub async fn serve(serving: Serving, reactor: Reactor, desk: Rc<RefCell<Desk>>, spawner: Spawner) {
    let setting = Rc::clone(&serving.0);
    while let Some(call) = poll_fn(|context| desk.borrow_mut().poll_next(context)).await {
        spawner.spawn(handle(Rc::clone(&setting), reactor.clone(), call));
    }
}

/// A server that has not seen the end; its death is one too.
pub struct Serving(pub Rc<Setting>);

impl Serving {
    pub fn new(setting: &Rc<Setting>) -> Serving {
        setting.serving.set(setting.serving.get() + 1);
        Serving(Rc::clone(setting))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.set(self.0.serving.get() - 1);
    }
}

pub fn mark_and_verb(bytes: &[u8]) -> (u64, Verb) {
    (u64::from_ne_bytes(bytes[..8].try_into().unwrap()), Verb::of_byte(bytes[8]))
}

pub async fn handle(setting: Rc<Setting>, reactor: Reactor, call: Incoming) {
    let (bytes, mut descriptors, continuation) = call.into_parts();
    let (mark, verb) = mark_and_verb(&bytes);
    if mark == ROGUES_MARK {
        assert!(setting.rogues.get(), "there is nobody who would call so");
        return;
    }
    assert!(is_padded(&bytes), "call {mark} has other bytes than were sent");
    let (model, room) = (&setting.model, continuation.room().0);
    model.seen(mark, verb, &descriptors);
    if setting.betrayal.get() == Some(Betrayal::SeesTwice) {
        model.seen(mark, verb, &descriptors);
    }
    let answer = |mut descriptors: Vec<OwnedFd>| {
        model.answered(mark, identities(&descriptors));
        let mut bytes = setting.betray(mark, &mut descriptors).to_ne_bytes().to_vec();
        setting.lengthen(&mut bytes, room);
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
        Verb::HandOn => {
            let object = Object::from_fd(&reactor, descriptors.remove(0)).unwrap();
            let Ok(fd) = continuation.into_fd() else { return };
            // Of how the errand ends only this one is told; the caller waits for whoever has the descriptor.
            let _ = errand(&setting, &object, mark, fd).await;
        }
        Verb::Errand => {
            let other = u64::from_ne_bytes(bytes[9..17].try_into().unwrap());
            let theirs = PlainContinuation::from_fd(&reactor, descriptors.remove(0)).unwrap();
            if setting.world.happens(300) {
                reactor.sleep(setting.milliseconds(5)).await;
            }
            let made = identified().0;
            model.answered(other, identities(std::slice::from_ref(&made)));
            theirs.answer(Message::new(other.to_ne_bytes()).with_descriptor(made)).unwrap();
            let _ = continuation.answer(answer(Vec::new()));
        }
    }
}

/// Has somebody answer the call of this mark.
async fn errand(setting: &Rc<Setting>, object: &Object, mark: u64, fd: OwnedFd) -> Option<()> {
    let made = Made::new(&setting.model, Verb::Errand, vec![identity(&fd)], None);
    let bytes = [&made.mark.to_ne_bytes()[..], &[Verb::Errand.byte()], &mark.to_ne_bytes()].concat();
    let result = object.call(Message::new(bytes).with_descriptor(fd)).await;
    made.ended(result).ok().map(drop)
}

// The clients.

/// Makes a call and tells the model how it ended. Gives back the descriptors of its answer.
pub async fn call_as_model(
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
    setting.lengthen(&mut bytes, LARGE_BYTES_MAX);
    let message = descriptors.into_iter().fold(Message::new(bytes), Message::with_descriptor);
    let answer_bytes = world.happens(300).then_some(LARGE_BYTES_MAX);
    let call = object.call_with(message, CallOptions { within, answer_bytes, ..CallOptions::default() });
    let result = match patience {
        None => call.await,
        Some(patience) => at_most(object.reactor(), patience, call).await?,
    };
    let whole = result.as_ref().ok().is_none_or(|answer| is_padded(answer.bytes()));
    assert!(whole, "the answer to call {} has other bytes than were sent", made.mark);
    Some(made.ended(result))
}

/// Something of a client that has not ended; its death ends it too.
pub struct Busy(pub Rc<Setting>);

impl Busy {
    pub fn new(setting: &Rc<Setting>) -> Busy {
        setting.busy.set(setting.busy.get() + 1);
        Busy(Rc::clone(setting))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

/// The processes that serve an object, and where others can take over.
pub struct Server {
    pub workers: Vec<Worker>,
    pub bound: Option<OwnedFd>,
    pub address: OwnedFd,
    /// How many processes serve it: one, unless they share the mailbox.
    wanted: usize,
}

/// One of these processes, and its mailbox to take away.
pub struct Worker {
    party: Party,
    desk: Rc<RefCell<Desk>>,
}

impl Worker {
    /// What has lost descriptors on its way here and from here, unless the mailbox is gone.
    fn lost(&self) -> Option<Lost> {
        self.desk.borrow().mailbox.as_ref().map(AnyMailbox::lost)
    }
}

impl Server {
    pub fn start(setting: &Rc<Setting>) -> Server {
        let (bound, address) = testing::packet_pair();
        let wanted = if setting.world.happens(700) { 1 } else { 2 };
        let mut server = Server { workers: Vec::new(), bound: Some(bound), address, wanted };
        server.take_over(setting);
        server
    }

    pub fn is_missed(&self) -> bool {
        self.bound.is_some() && self.workers.len() < self.wanted
    }

    /// Processes have died, and others serve the mailbox; unless that is gone for good.
    pub fn take_over(&mut self, setting: &Rc<Setting>) {
        while self.is_missed() {
            let Some(bound) = &self.bound else { return };
            let bound = bound.try_clone().unwrap();
            let party = Party::join(&setting.world);
            let (reactor, options) = (party.reactor(), setting.mailbox_options());
            let mailbox = match self.wanted {
                1 => AnyMailbox::Own(Mailbox::from_fd_with(reactor, bound, options).unwrap()),
                _ => AnyMailbox::Shared(SharedMailbox::from_fd_with(reactor, bound, options).unwrap()),
            };
            let desk = Rc::new(RefCell::new(Desk { mailbox: Some(mailbox), waker: None }));
            let (serving, reactor) = (Serving::new(setting), reactor.clone());
            party.0.spawn(serve(serving, reactor, Rc::clone(&desk), party.0.spawner()));
            self.workers.push(Worker { party, desk });
        }
    }

    /// One of the processes dies.
    pub fn die(&mut self, world: &World) {
        if !self.workers.is_empty() {
            let worker = self.workers.swap_remove(world.below(self.workers.len()));
            world.kill(worker.party.reactor());
        }
    }

    pub fn farewell(&mut self, setting: &Rc<Setting>, within: Option<Duration>) {
        self.bound = None;
        for Worker { party, desk } in &self.workers {
            let Desk { mailbox, waker } = std::mem::take(&mut *desk.borrow_mut());
            if let (Some(mailbox), Some(within)) = (mailbox, within) {
                let serving = Serving::new(setting);
                party.0.spawn(async move {
                    mailbox.leave(within).await;
                    drop(serving);
                });
            }
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// All sessions through grants end.
    pub fn revoke_all(&self) {
        for worker in &self.workers {
            worker.desk.borrow().mailbox.iter().for_each(AnyMailbox::revoke_all);
        }
    }

    pub fn is_blameless(&self) {
        for worker in &self.workers {
            let desk = worker.desk.borrow();
            let violations = desk.mailbox.as_ref().map(AnyMailbox::violations).unwrap_or_default();
            assert_eq!(violations.malformed, 0, "something is malformed");
            assert_eq!(violations.beyond_window, 0, "a caller thinks it has more room than it has");
            assert_eq!(violations.unread, 0, "a caller that reads is said not to");
        }
    }
}

/// Two servers, of which the first is given the second's object to call, and their clients.
pub struct Cast {
    pub servers: [Server; 2],
    pub clients: Vec<Option<Party>>,
}

impl Cast {
    pub fn new(setting: &Rc<Setting>) -> Cast {
        let servers = [Server::start(setting), Server::start(setting)];
        Cast { servers, clients: Vec::new() }
    }

    /// The objects of both servers, for one client.
    pub fn objects(&self, setting: &Setting, reactor: &Reactor) -> [Object; 2] {
        self.servers.each_ref().map(|server| {
            let address = server.address.try_clone().unwrap();
            Object::from_fd_with(reactor, address, setting.object_options()).unwrap()
        })
    }

    pub fn executors(&self) -> Vec<&Executor> {
        let workers = self.servers.iter().flat_map(|server| &server.workers);
        workers
            .map(|worker| &worker.party)
            .chain(self.clients.iter().flatten())
            .map(|party| &party.0)
            .collect()
    }

    /// Somebody does something, or time passes. Servers that can be replaced are, sooner or later.
    pub fn step(&mut self, setting: &Rc<Setting>) {
        let waits = self.servers.iter().any(Server::is_missed);
        if waits && setting.world.happens(50) {
            self.revive(setting);
        }
        if let Err(stuck) = setting.world.step(&self.executors()) {
            assert!(waits, "{stuck}");
            self.revive(setting);
        }
        if !setting.rogues.get() {
            self.servers.iter().for_each(Server::is_blameless);
        }
        setting.look(self.executors().len(), false);
        self.losses_are_told(setting);
    }

    /// What the servers hold against their callers.
    pub fn violations(&self) -> u64 {
        let workers = self.servers.iter().flat_map(|server| &server.workers);
        let blamed = |worker: &Worker| {
            let desk = worker.desk.borrow();
            let Violations { malformed, beyond_window, .. } =
                desk.mailbox.as_ref().map(AnyMailbox::violations).unwrap_or_default();
            malformed + beyond_window
        };
        workers.map(blamed).sum()
    }

    /// Whoever lost descriptors knows it, and so does whoever sent them, if it lives to hear it.
    fn losses_are_told(&self, setting: &Setting) {
        let happened = setting.world.happened().count(Fault::DescriptorsLost);
        let parties = self.executors().into_iter().map(|executor| executor.reactor().stats());
        let noticed: u64 = parties.map(|stats| stats.descriptors_lost).sum();
        assert!(noticed <= happened, "{noticed} losses are reported, of {happened}");
        let Some(known) = self.known(setting) else { return };
        let told = setting.model.told_lost();
        assert!(told <= known.calls, "{told} callers told of a loss: {known:?}");
        assert!(known.calls + known.answers <= noticed, "{known:?}, and {noticed} losses are reported");
    }

    /// What all servers know to be lost, unless somebody is gone: then what that one knew is gone too.
    fn known(&self, setting: &Setting) -> Option<Lost> {
        if setting.world.happened().count(Fault::Killed) > 0 {
            return None;
        }
        let workers = self.servers.iter().flat_map(|server| &server.workers);
        workers.map(Worker::lost).try_fold(Lost::default(), |all, lost| {
            let Lost { calls, answers } = lost?;
            let hears = setting.betrayal.get() != Some(Betrayal::HearsNoLoss);
            let answers = if hears { answers } else { 0 };
            Some(Lost { calls: all.calls + calls, answers: all.answers + answers })
        })
    }

    /// When all calls have ended: of each answer that has lost descriptors whoever gave it hears, if its
    /// session has lasted.
    fn lost_answers_are_known(&self, setting: &Setting) {
        if setting.model.allowed.get().dropped || self.known(setting).is_none() {
            return;
        }
        let told = setting.model.told_answers_lost();
        let known = || self.known(setting).map_or(0, |known| known.answers);
        if let Err(stuck) = setting.world.run(&self.executors(), || known() >= told) {
            panic!("servers know of {} answers that were lost, and {told} callers: {stuck}", known());
        }
    }

    fn revive(&mut self, setting: &Rc<Setting>) {
        self.servers.iter_mut().for_each(|server| server.take_over(setting));
    }

    /// Everybody goes, and the servers notice. Then all is counted.
    pub fn finish(mut self, setting: &Rc<Setting>) {
        self.lost_answers_are_known(setting);
        self.clients.clear();
        let workers: Vec<Worker> = self.servers.into_iter().flat_map(|server| server.workers).collect();
        let executors: Vec<&Executor> = workers.iter().map(|worker| &worker.party.0).collect();
        let served = setting.world.run(&executors, || setting.serving.get() == 0);
        served.unwrap_or_else(|stuck| panic!("a server does not see that everybody is gone: {stuck}"));
        drop(executors);
        drop(workers);
    }
}
