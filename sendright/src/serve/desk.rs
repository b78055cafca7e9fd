//! Who is given what: the grants in force, and what became of each.
//!
//! It owns the exported directory and what hangs on each grant. It does not know connections or files of
//! secrets.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use introduction::Swiss;

use super::book::{Entry, Wish};
use crate::files::server::{Lease, Rights, Service};
use crate::files::wire::{Admission, NotAdmitted, Path, Refusal};

/// The part of all objects that those of one grant may be, and those of one holder: so one leaves something
/// to the others.
const GRANT_PART: usize = 4;
const HOLDER_PART: usize = 8;

/// Fewer objects would be of no use to anybody.
const OBJECTS_MIN: usize = 8;

/// Everything that is granted of one directory.
pub struct Desk {
    service: Service,
    root: OwnedFd,
    objects_max: usize,
    grants: RefCell<Vec<Rc<Grant>>>,
}

struct Grant {
    wish: Wish,
    swiss: Swiss,
    lease: Lease,
}

/// What is to be said about a grant.
#[derive(Clone, Debug)]
pub struct InUse {
    pub wish: Wish,
    /// Of which something is still held.
    pub holders: usize,
    pub objects: usize,
}

impl Desk {
    /// One that grants nothing yet.
    pub fn new(service: Service, root: OwnedFd, objects_max: usize) -> Desk {
        Desk { service, root, objects_max, grants: RefCell::default() }
    }

    /// Whether there is a directory where a grant is to be.
    pub fn is_there(&self, wish: &Wish) -> bool {
        let lease = Lease::new(1);
        let given = path_of(wish).map(|path| self.service.give(&self.root, path, wish.rights, &lease));
        lease.end();
        matches!(given, Some(Ok(_)))
    }

    /// Puts a grant in force. One of the same name and secret that gives something else is taken back.
    pub fn grant(&self, entry: Entry) {
        let mut grants = self.grants.borrow_mut();
        let known = grants.iter().position(|grant| grant.wish.name == entry.wish.name);
        if known.is_some_and(|known| grants[known].wish == entry.wish && grants[known].swiss == entry.swiss) {
            return;
        }
        let before = known.map(|known| grants.remove(known));
        let lease = Lease::new((self.objects_max - self.objects_max / GRANT_PART).max(OBJECTS_MIN));
        grants.push(Rc::new(Grant { wish: entry.wish, swiss: entry.swiss, lease }));
        drop(grants);
        if let Some(before) = before {
            before.lease.end();
        }
    }

    /// Takes a grant back, with all that came of it. Says what that was.
    pub fn revoke(&self, name: &str) -> Option<InUse> {
        let mut grants = self.grants.borrow_mut();
        let known = grants.iter().position(|grant| grant.wish.name == name)?;
        let grant = grants.remove(known);
        drop(grants);
        let was = grant.in_use();
        grant.lease.end();
        Some(was)
    }

    /// What is granted, in order.
    pub fn in_use(&self) -> Vec<InUse> {
        self.grants.borrow().iter().map(|grant| grant.in_use()).collect()
    }

    /// A directory for whoever knows a secret.
    pub fn admit(&self, swiss: &[u8]) -> (Admission, Option<OwnedFd>) {
        let no = |reason| (Admission::No(reason), None);
        let Some(grant) = self.known_by(swiss) else { return no(NotAdmitted::Unknown) };
        let Some(path) = path_of(&grant.wish) else { return no(NotAdmitted::NotThere) };
        let holder = grant.lease.below((self.objects_max / HOLDER_PART).max(OBJECTS_MIN));
        match self.service.give(&self.root, path, grant.wish.rights, &holder) {
            Ok(address) => {
                let writable = grant.wish.rights == Rights::Writable;
                (Admission::Directory { writable }, Some(address))
            }
            Err(refused) if refused.refusal == Refusal::Busy => no(NotAdmitted::Busy),
            Err(_) => no(NotAdmitted::NotThere),
        }
    }

    /// Each secret is compared, and each comparison takes the same time wherever they differ: so how long
    /// this takes tells how many grants there are, and nothing else.
    fn known_by(&self, swiss: &[u8]) -> Option<Rc<Grant>> {
        let presented = Swiss::new(swiss.to_vec()).ok()?;
        let mut known = None;
        for grant in self.grants.borrow().iter() {
            if grant.swiss == presented {
                known = Some(grant.clone());
            }
        }
        known
    }
}

impl Grant {
    fn in_use(&self) -> InUse {
        let (holders, objects) = (self.lease.leases_below(), self.lease.objects());
        InUse { wish: self.wish.clone(), holders, objects }
    }
}

fn path_of(wish: &Wish) -> Option<Path<'_>> {
    Path::new(wish.directory.as_bytes()).ok()
}
