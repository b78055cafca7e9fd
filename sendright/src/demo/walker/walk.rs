//! From one directory object to every file below it, with so much in flight and no more.
//!
//! It owns the order of the walk, the bound on descriptors and what is reported. Directories are gone through
//! depth first, each listed before those inside it; files are fetched many at a time, across directories. It
//! must never know what the report is for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ring::{Executor, Reactor, Socket};
use seqpacket::PAIRS_DEFAULT;

use super::failed;
use crate::demo::hasher::{Content, Hashed, Hasher};
use crate::demo::report::{self, Fact, PACKET_BYTES_SOFT, Record};
use crate::files::client::{Directory, Opened, Trouble};
use crate::files::wire::{CURSOR_START, Kind, Leaf, Path, Refusal, Refused};
use crate::output::Failure;
use crate::permits::{Permit, Permits};

/// How long a report may wait for more records.
const REPORT_WAIT_MAX: Duration = Duration::from_millis(50);

/// How long to leave a busy service alone, at first and at most.
const BUSY_WAIT_MIN: Duration = Duration::from_millis(1);
const BUSY_WAIT_MAX: Duration = Duration::from_millis(200);

/// How often to ask a busy service. It is this same program, with room for two walkers.
const BUSY_TRIES_MAX: usize = 500;

/// How much a walk holds at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files (and links) being fetched or read.
    pub in_flight_max: usize,
    /// Directory objects kept on the way down. Those further up are let go and opened again when needed.
    pub kept_max: usize,
    /// Continuation pairs made ahead, two descriptors each.
    pub pairs_max: usize,
}

impl Limits {
    /// What fits into so many descriptors: a file in flight takes up to four and its directory up to three
    /// more, in a process that needs some two dozen for itself.
    pub fn within(descriptors_max: usize) -> Limits {
        let in_flight_max = (descriptors_max.saturating_sub(64) / 8).clamp(2, 32);
        Limits {
            in_flight_max,
            kept_max: (descriptors_max / 64).clamp(2, 8),
            pairs_max: (in_flight_max / 2).min(PAIRS_DEFAULT),
        }
    }
}

/// Walks everything below `root`. `Ok(false)` if something was told as trouble; `Err` if the report cannot be
/// made.
pub async fn walk(
    executor: &Executor,
    root: Directory,
    report: Socket,
    limits: Limits,
) -> Result<bool, Failure> {
    let (hasher, results) =
        Hasher::start(executor.reactor()).map_err(|error| failed("starting a thread", error))?;
    let walk = Rc::new(Walk {
        reactor: executor.reactor().clone(),
        permits: Permits::new(limits.in_flight_max),
        hasher: RefCell::new(Some(hasher)),
        reading: RefCell::default(),
        tickets: Cell::new(0),
        report: Report::new(report),
    });
    executor.spawn(collect(walk.clone(), results));
    descend(&walk, executor, root, limits).await;
    walk.permits.all_back().await;
    // The thread is idle: every result is in.
    drop(walk.hasher.take());
    walk.report.flush().await;
    match walk.report.broken.take() {
        Some(error) => Err(failed("reporting", error)),
        None => Ok(!walk.report.trouble.get()),
    }
}

struct Walk {
    reactor: Reactor,
    permits: Permits,
    hasher: RefCell<Option<Hasher>>,
    /// What is with the hasher, by ticket.
    reading: RefCell<HashMap<u32, Reading>>,
    tickets: Cell<u32>,
    report: Report,
}

/// A file whose content is being read.
struct Reading {
    directory: u32,
    name: Vec<u8>,
    _permit: Permit,
}

/// A directory on the way down.
struct Level {
    number: u32,
    /// Its name in the level above.
    name: Vec<u8>,
    /// `None` when it was let go to save descriptors.
    directory: Option<Rc<Directory>>,
    /// Directories in it that are still to be gone through.
    pending: Vec<Vec<u8>>,
}

async fn descend(walk: &Rc<Walk>, executor: &Executor, root: Directory, limits: Limits) {
    let root = Rc::new(root);
    let mut numbers = report::ROOT;
    let Some(pending) = visit(walk, executor, &root, report::ROOT).await else { return };
    let mut levels = vec![Level { number: report::ROOT, name: Vec::new(), directory: Some(root), pending }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.pending.pop() else {
            levels.pop();
            continue;
        };
        let parent = level.number;
        let Some(above) = reopen(walk, &mut levels, limits).await else { continue };
        let Ok(leaf) = Leaf::new(&name) else { continue };
        let directory = match walk.open(&above, leaf).await {
            Ok(Opened::Directory(directory)) => Rc::new(directory),
            Ok(Opened::File(_) | Opened::Link) => {
                walk.found(parent, Some(leaf), Fact::Vanished).await;
                continue;
            }
            Err(trouble) => {
                walk.found_nothing(parent, leaf, &trouble).await;
                continue;
            }
        };
        drop(above);
        numbers += 1;
        walk.report.add(&Record::Number { number: numbers, parent, name: leaf }).await;
        let Some(pending) = visit(walk, executor, &directory, numbers).await else { continue };
        levels.push(Level { number: numbers, name, directory: Some(directory), pending });
        let_go(&mut levels, limits.kept_max);
    }
}

/// Keeps the root and the deepest directories, and no more than `kept_max` of them.
fn let_go(levels: &mut [Level], kept_max: usize) {
    let depth = levels.len();
    if depth > kept_max {
        levels[1..=depth - kept_max].iter_mut().for_each(|level| level.directory = None);
    }
}

/// The object of the deepest level, opened again from the one above it that is still there if it was let go.
async fn reopen(walk: &Walk, levels: &mut [Level], limits: Limits) -> Option<Rc<Directory>> {
    let there = levels.iter().rposition(|level| level.directory.is_some())?;
    for depth in there + 1..levels.len() {
        let above = levels[depth - 1].directory.clone()?;
        let leaf = Leaf::new(&levels[depth].name).ok()?;
        match walk.open(&above, leaf).await {
            Ok(Opened::Directory(directory)) => levels[depth].directory = Some(Rc::new(directory)),
            lost => {
                if let Err(trouble @ (Trouble::Call(_) | Trouble::Malformed(_) | Trouble::NoDescriptor)) =
                    &lost
                {
                    walk.report.trouble(&format!("opening a directory again: {trouble}")).await;
                }
                // It was there before: what was still to be seen in it is gone with it.
                levels.iter_mut().skip(depth).for_each(|level| level.pending.clear());
                return None;
            }
        }
        let_go(&mut levels[..=depth], limits.kept_max);
    }
    levels.last()?.directory.clone()
}

/// Lists a directory and starts on what is in it; gives back the directories in it, or `None` if it cannot be
/// listed.
async fn visit(
    walk: &Rc<Walk>,
    executor: &Executor,
    directory: &Rc<Directory>,
    number: u32,
) -> Option<Vec<Vec<u8>>> {
    let mut inside = Vec::new();
    let mut cursor = CURSOR_START;
    let mut first = true;
    loop {
        let names = match directory.page(Path::HERE, cursor).await {
            Ok(names) => names,
            Err(Trouble::Refused(refused)) if first => {
                walk.found(number, None, fact_of(refused)).await;
                return None;
            }
            Err(trouble) => {
                walk.report.trouble(&format!("listing a directory: {trouble}")).await;
                return Some(inside);
            }
        };
        if first {
            walk.found(number, None, Fact::Directory).await;
            first = false;
        }
        let page = names.page()?;
        for entry in page.entries() {
            match entry.kind {
                Kind::Directory => inside.push(entry.name.bytes().to_vec()),
                Kind::File | Kind::Symlink => {
                    let permit = walk.permits.take().await;
                    let name = entry.name.bytes().to_vec();
                    executor.spawn(fetch(walk.clone(), directory.clone(), number, name, entry.kind, permit));
                }
                other => walk.found(number, Some(entry.name), Fact::Other(other)).await,
            }
        }
        match page.next_cursor() {
            Some(next) => cursor = next,
            None => return Some(inside),
        }
        if walk.report.is_broken() {
            return None;
        }
    }
}

/// Everything about one leaf that is no directory.
async fn fetch(
    walk: Rc<Walk>,
    directory: Rc<Directory>,
    number: u32,
    name: Vec<u8>,
    kind: Kind,
    permit: Permit,
) {
    let Ok(leaf) = Leaf::new(&name) else { return };
    if kind == Kind::Symlink {
        match directory.read_link(leaf).await {
            Ok(target) => walk.found(number, Some(leaf), Fact::Link { target }).await,
            Err(trouble) => walk.found_nothing(number, leaf, &trouble).await,
        }
        return;
    }
    let file = match walk.open(&directory, leaf).await {
        Ok(Opened::File(file)) => file,
        Ok(Opened::Directory(_) | Opened::Link) => {
            return walk.found(number, Some(leaf), Fact::Vanished).await;
        }
        Err(trouble) => return walk.found_nothing(number, leaf, &trouble).await,
    };
    // Nothing more is asked of the directory here: let go before the reading begins.
    drop(directory);
    let content = walk.patiently(async || file.open().await).await;
    drop(file);
    match content {
        Ok(content) => {
            let ticket = walk.tickets.get();
            walk.tickets.set(ticket.wrapping_add(1));
            walk.reading.borrow_mut().insert(ticket, Reading { directory: number, name, _permit: permit });
            if let Some(hasher) = &*walk.hasher.borrow() {
                hasher.submit(ticket, content);
            }
        }
        Err(trouble) => walk.found_nothing(number, leaf, &trouble).await,
    }
}

/// Reports what the hasher found, until its thread ends.
async fn collect(walk: Rc<Walk>, results: Socket) {
    while let Ok(result) = results.receive().await {
        let Some(hashed) = Hashed::parse(result.bytes()) else { continue };
        let Some(reading) = walk.reading.borrow_mut().remove(&hashed.ticket) else { continue };
        let fact = match hashed.content {
            Content::Whole { bytes, sha256 } => Fact::File { bytes, sha256 },
            Content::Endless { bytes } => Fact::Endless { bytes },
            Content::Unreadable { errno } => Fact::Unreadable { errno },
        };
        walk.found(reading.directory, Leaf::new(&reading.name).ok(), fact).await;
    }
}

impl Walk {
    async fn open(&self, directory: &Directory, name: Leaf<'_>) -> Result<Opened, Trouble> {
        self.patiently(async || directory.open(name).await).await
    }

    /// Asks again while the service has no descriptors to spare.
    async fn patiently<T>(&self, ask: impl AsyncFn() -> Result<T, Trouble>) -> Result<T, Trouble> {
        let mut wait = BUSY_WAIT_MIN;
        for _ in 1..BUSY_TRIES_MAX {
            match ask().await {
                Err(Trouble::Refused(Refused { refusal: Refusal::Busy, .. })) => {
                    self.reactor.sleep(wait).await;
                    wait = BUSY_WAIT_MAX.min(wait * 2);
                }
                other => return other,
            }
        }
        ask().await
    }

    async fn found(&self, directory: u32, name: Option<Leaf<'_>>, fact: Fact) {
        self.report.add(&Record::Found { directory, name, fact }).await;
    }

    /// A leaf that cannot be had: a property of the tree, or trouble.
    async fn found_nothing(&self, directory: u32, name: Leaf<'_>, trouble: &Trouble) {
        match trouble {
            Trouble::Refused(refused) if refused.refusal != Refusal::Busy => {
                self.found(directory, Some(name), fact_of(*refused)).await;
            }
            other => {
                let name = crate::output::printable(name.bytes());
                self.report.trouble(&format!("{name}: {other}")).await;
            }
        }
    }
}

fn fact_of(refused: Refused) -> Fact {
    match refused.refusal {
        Refusal::NotFound | Refusal::Changed | Refusal::WrongKind | Refusal::Link => Fact::Vanished,
        _ => Fact::Unreadable { errno: refused.errno },
    }
}

/// Records on their way to the process that compares, gathered into packets.
struct Report {
    socket: Socket,
    packet: RefCell<Vec<u8>>,
    sent: Cell<Instant>,
    trouble: Cell<bool>,
    broken: Cell<Option<ring::SendError>>,
    is_broken: Cell<bool>,
}

impl Report {
    fn new(socket: Socket) -> Report {
        Report {
            socket,
            packet: RefCell::default(),
            sent: Cell::new(Instant::now()),
            trouble: Cell::new(false),
            broken: Cell::new(None),
            is_broken: Cell::new(false),
        }
    }

    async fn add(&self, record: &Record<'_>) {
        record.encode(&mut self.packet.borrow_mut());
        let full = self.packet.borrow().len() >= PACKET_BYTES_SOFT;
        if full || self.sent.get().elapsed() >= REPORT_WAIT_MAX {
            self.flush().await;
        }
    }

    async fn trouble(&self, sentence: &str) {
        self.trouble.set(true);
        self.add(&Record::Trouble { sentence: sentence.to_string() }).await;
    }

    async fn flush(&self) {
        let packet = self.packet.take();
        self.sent.set(Instant::now());
        if packet.is_empty() || self.is_broken() {
            return;
        }
        // Packets leave in the order in which they are asked for, whoever asks.
        if let Err(error) = self.socket.send(packet).await {
            self.is_broken.set(true);
            self.broken.set(Some(error));
        }
    }

    fn is_broken(&self) -> bool {
        self.is_broken.get()
    }
}
