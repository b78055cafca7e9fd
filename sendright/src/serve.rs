//! A directory for strangers: whoever knows a locator has what it grants.
//!
//! It owns the order in which a service comes to life and how its grants are told. It must never know what
//! is asked of a directory, nor who asks.

mod book;
mod control;
mod desk;
mod reception;
mod registration;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::{Rc, Weak};

use introduction::{Identity, Keyring, Locator, Netlayer, NetlayerOptions, Proof, SturdyRef};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use serde::Serialize;

use crate::files::server::{DESCRIPTORS_PER_OBJECT, Rights, Service};
use crate::options::files::{Grants, GrantsAction, Serve};
use crate::output::{Failure, Outcome, remark, say};
use crate::{reach, reactor};
use book::{Book, BookError, Entry, Wish, beside};
use control::{Answer, Ask, Told};
use desk::{Desk, InUse};
use registration::Registration;

/// What is granted when nobody says what.
const NAME_DEFAULT: &str = "all";

/// Descriptors that belong to no object: standard streams, the reactor and its reserve, servers, strangers.
const DESCRIPTORS_RESERVE: usize = 160;

/// As many descriptors as are asked for, if the machine lets us: nobody needs more objects than these allow.
const DESCRIPTORS_WANTED: u64 = 65_536;

const OBJECTS_MIN: usize = 16;

/// Serves until it is killed.
pub fn run(options: &Serve) -> Result<Outcome, Failure> {
    let rights = if options.writable { Rights::Writable } else { Rights::ReadOnly };
    let wishes: Result<Vec<Wish>, String> =
        options.name.iter().map(|text| Wish::read(text, rights)).collect();
    let wishes = wishes.map_err(|sentence| Failure::usage(format_args!("--name: {sentence}")))?;
    let vias = reach::vias(&options.via)?;
    let root = open(&options.directory)?;
    let (keyring, mut book) = open_files(options.key.as_deref())?;
    grant_wishes(&mut book, wishes, rights)?;

    // What a holder asks for is what it gets: its own umask has been taken off before.
    rustix::process::umask(Mode::empty());
    raise_descriptor_limit();
    let (reactor, executor) = reactor::start(None)?;
    let room = reactor::descriptors_max().saturating_sub(DESCRIPTORS_RESERVE) / DESCRIPTORS_PER_OBJECT;
    let objects_max = room.max(OBJECTS_MIN);
    let service = Service::new(&executor, &root, objects_max);
    let desk = Desk::new(service, root, objects_max);
    for entry in book.entries() {
        if !desk.is_there(&entry.wish) {
            remark(format_args!("{}: there is no directory at {}", entry.wish.name, entry.wish.directory));
        }
        desk.grant(entry.clone());
    }

    let identity = match &keyring {
        Some(keyring) => keyring.identity().clone(),
        None => Identity::generate().map_err(Failure::new)?,
    };
    let mut netlayer_options = NetlayerOptions::default();
    netlayer_options.proof = Proof::Required;
    let netlayer = Rc::new(Netlayer::with_options(&reactor, identity, netlayer_options));
    let office = Rc::new_cyclic(|office: &Weak<Office>| {
        let office = office.clone();
        let registration = Registration::new(netlayer.clone(), keyring, vias, move || {
            if let Some(office) = office.upgrade() {
                office.tell_locators();
            }
        });
        let (book, told) = (RefCell::new(book), RefCell::default());
        Office { desk: Rc::new(desk), book, registration, rights, told, json: options.json }
    });
    let spawner = executor.spawner();
    if let Some(key) = &options.key {
        let (path, office) = (beside(key, "control"), office.clone());
        let shown = path.display().to_string();
        control::listen(&path, &reactor, &spawner, move |ask| office.answer(ask))
            .map_err(|error| Failure::new(format_args!("{shown}: {error}")))?;
    }
    office.registration.start(&spawner, &reactor);
    let desk = office.desk.clone();
    spawner.spawn(reception::receive(netlayer, spawner.clone(), desk, reactor.clone()));
    executor.block_on(pending::<()>());
    Ok(Outcome::Good)
}

/// Grants what is wished for; and all of it, if nobody ever wished for anything.
fn grant_wishes(book: &mut Book, wishes: Vec<Wish>, rights: Rights) -> Result<(), Failure> {
    let wishes = match wishes.is_empty() && book.entries().is_empty() {
        true => vec![Wish { name: NAME_DEFAULT.into(), rights, directory: String::new() }],
        false => wishes,
    };
    // Before anything is written: who mistypes has not granted anything.
    let is_wished = |name: &str| wishes.iter().any(|wish| wish.name == name);
    let mut writable = book.entries().iter().filter(|entry| entry.wish.rights == Rights::Writable);
    match writable.find(|entry| !is_wished(&entry.wish.name)) {
        Some(entry) if rights == Rights::ReadOnly => {
            return Err(Failure::usage(format_args!(
                "{} may change things, by an earlier grant: say --writable, or --name {0}:ro",
                entry.wish.name
            )));
        }
        _ => {}
    }
    for wish in wishes {
        book.grant(wish).map_err(Failure::new)?;
    }
    Ok(())
}

fn open_files(key: Option<&Path>) -> Result<(Option<Keyring>, Book), Failure> {
    let Some(key) = key else { return Ok((None, Book::in_memory())) };
    // The book first: with it comes the lock.
    let book = Book::open(key).map_err(Failure::new)?;
    let keyring = Keyring::open(key);
    let keyring = keyring.map_err(|error| Failure::new(format_args!("{}: {error}", key.display())))?;
    Ok((Some(keyring), book))
}

fn open(directory: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(|errno| {
        Failure::new(format_args!("{}: {}", directory.display(), std::io::Error::from(errno)))
    })
}

/// Each object is some descriptors, and the usual limit is for programs that have few.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS_WANTED, |maximum| maximum.min(DESCRIPTORS_WANTED));
    if current.is_some_and(|current| current < wanted) {
        // Then there are fewer objects.
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

/// Where grants are given, told and taken back.
struct Office {
    desk: Rc<Desk>,
    book: RefCell<Book>,
    registration: Rc<Registration>,
    rights: Rights,
    /// The locators that were printed last.
    told: RefCell<BTreeMap<String, String>>,
    json: bool,
}

impl Office {
    fn answer(&self, ask: Ask) -> Answer {
        let answered = match ask {
            Ask::List => Ok(self.tell()),
            Ask::Add { grant } => self.add(&grant),
            Ask::Revoke { name } => self.revoke(&name),
        };
        answered.map_or_else(Answer::No, Answer::Grants)
    }

    fn add(&self, text: &str) -> Result<Vec<Told>, String> {
        let wish = Wish::read(text, self.rights)?;
        if !self.desk.is_there(&wish) {
            return Err(format!("there is no directory at {:?}", wish.directory));
        }
        let entry = self.book.borrow_mut().grant(wish).map_err(|error| error.to_string())?;
        let name = entry.wish.name.clone();
        self.desk.grant(entry);
        Ok(self.tell().into_iter().filter(|told| told.name == name).collect())
    }

    fn revoke(&self, name: &str) -> Result<Vec<Told>, String> {
        // First what is in force, whatever becomes of the file.
        let was = self.desk.revoke(name);
        let written = self.book.borrow_mut().revoke(name);
        match (was, written) {
            (_, Err(error)) => {
                Err(format!("it is taken back now, but will be there after a restart: {error}"))
            }
            (Some(was), Ok(_)) => Ok(vec![told(was, None)]),
            // It was taken back before, when the file could not be written.
            (None, Ok(true)) => Ok(Vec::new()),
            (None, Ok(false)) => Err(format!("nothing is granted as {name:?}")),
        }
    }

    fn tell(&self) -> Vec<Told> {
        let (locators, in_use) = (self.locators(), self.desk.in_use());
        let tell = |was: InUse| {
            let locator = locators.get(&was.wish.name).cloned();
            told(was, locator)
        };
        in_use.into_iter().map(tell).collect()
    }

    fn locators(&self) -> BTreeMap<String, String> {
        let Some(location) = self.registration.location() else { return BTreeMap::new() };
        let book = self.book.borrow();
        book.entries().iter().map(|entry| (entry.wish.name.clone(), uri(&location, entry))).collect()
    }

    /// Prints where everything is to be found, once and whenever that has changed.
    fn tell_locators(&self) {
        let locators = self.locators();
        if locators.is_empty() || *self.told.borrow() == locators {
            return;
        }
        if !self.told.replace(locators.clone()).is_empty() {
            remark("the locators are now");
        }
        let book = self.book.borrow();
        let names = book.entries().iter().map(|entry| &entry.wish);
        let mut text = String::new();
        for wish in names {
            let Some(locator) = locators.get(&wish.name) else { continue };
            if self.json {
                let line = Printed {
                    name: &wish.name,
                    writable: wish.rights == Rights::Writable,
                    directory: &wish.directory,
                    locator,
                };
                text.push_str(&serde_json::to_string(&line).expect("plain data"));
            } else if locators.len() == 1 {
                text.push_str(locator);
            } else {
                text.push_str(&format!("{}\t{locator}", wish.name));
            }
            text.push('\n');
        }
        // Whoever does not want to see them serves all the same.
        let _ = say(&text);
    }
}

#[derive(Serialize)]
struct Printed<'a> {
    name: &'a str,
    writable: bool,
    directory: &'a str,
    locator: &'a str,
}

fn told(was: InUse, locator: Option<String>) -> Told {
    let InUse { wish, holders, objects } = was;
    let writable = wish.rights == Rights::Writable;
    Told { name: wish.name, writable, directory: wish.directory, locator, holders, objects }
}

fn uri(location: &Locator, entry: &Entry) -> String {
    SturdyRef { locator: location.clone(), swiss: entry.swiss.clone() }.to_string()
}

/// Lists, adds to and takes back what a service grants: by asking it, or in its file while it does not run.
pub fn grants(options: &Grants) -> Result<Outcome, Failure> {
    let key = &options.key;
    // Without it no service has ever had a book there, and the question is about another file.
    key.metadata().map_err(|error| Failure::new(format_args!("{}: {error}", key.display())))?;
    let book = match Book::open(key) {
        Ok(book) => Some(book),
        Err(BookError::InUse) => None,
        Err(error) => return Err(Failure::new(error)),
    };
    let ask = match &options.action {
        GrantsAction::List { .. } => Ask::List,
        GrantsAction::Add { grant } => Ask::Add { grant: grant.clone() },
        GrantsAction::Revoke { name } => Ask::Revoke { name: name.clone() },
    };
    let answer = match book {
        Some(book) => by_hand(book, ask),
        None => by_asking(&beside(key, "control"), &ask)?,
    };
    let grants = match answer {
        Answer::Grants(grants) => grants,
        Answer::No(sentence) => return Err(Failure::new(sentence)),
    };
    match &options.action {
        GrantsAction::List { json } => list(&grants, *json)?,
        GrantsAction::Add { .. } => {
            let locators = grants.iter().filter_map(|grant| grant.locator.as_deref());
            say(&locators.map(|locator| format!("{locator}\n")).collect::<String>())?;
        }
        GrantsAction::Revoke { .. } => {}
    }
    Ok(Outcome::Good)
}

/// A service that has just been started has its book and does not listen yet.
fn by_asking(control: &Path, ask: &Ask) -> Result<Answer, Failure> {
    const TRIES: u32 = 20;
    let mut last = String::new();
    for _ in 0..TRIES {
        match control::ask(control, ask) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(Failure::new(format_args!("{}: the service that runs does not answer: {last}", control.display())))
}

fn by_hand(mut book: Book, ask: Ask) -> Answer {
    let done = match ask {
        Ask::List => Ok(()),
        // Where it would be found is known only to a service that runs.
        Ask::Add { .. } => Err("no service runs with this key: start it with --name instead".to_owned()),
        Ask::Revoke { name } => match book.revoke(&name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("nothing is granted as {name:?}")),
            Err(error) => Err(error.to_string()),
        },
    };
    let unused = |entry: &Entry| told(InUse { wish: entry.wish.clone(), holders: 0, objects: 0 }, None);
    match done {
        Ok(()) => Answer::Grants(book.entries().iter().map(unused).collect()),
        Err(sentence) => Answer::No(sentence),
    }
}

fn list(grants: &[Told], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for grant in grants {
        if json {
            text.push_str(&serde_json::to_string(grant).expect("plain data"));
        } else {
            let rights = if grant.writable { "rw" } else { "ro" };
            let Told { name, directory, holders, objects, .. } = grant;
            text.push_str(&format!("{name}\t{rights}\t{directory}\t{holders}\t{objects}"));
            if let Some(locator) = &grant.locator {
                text.push_str(&format!("\t{locator}"));
            }
        }
        text.push('\n');
    }
    say(&text)
}
