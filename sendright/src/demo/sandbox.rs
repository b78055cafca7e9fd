//! Leaving the file system: a Landlock ruleset that handles everything and allows nothing.
//!
//! It owns the restriction of this thread and of every thread and process it starts afterwards, so it comes
//! before any of them. It must never know what the process does next. Descriptors that are already open stay
//! as they are: that is the whole point of handing them over.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
};
use landlock::{RulesetStatus, Scope};
use rustix::fs::{Mode, OFlags};

use super::report::Sandboxed;

/// The newest rules we ask for; an older kernel enforces those it knows.
const ABI_WANTED: ABI = ABI::V6;

/// Gives up the file system, the network and signals to others, as far as this kernel lets us, and tries
/// `forbidden`.
pub fn enter(forbidden: &Path) -> Sandboxed {
    let (landlock_abi, detail) = match restrict() {
        Ok(status) => describe(&status),
        Err(error) => (None, format!("not available: {error}")),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(forbidden, flags, Mode::empty());
    let (refused, direct_open) = match opened {
        Ok(_) => (false, "it opens".to_string()),
        Err(errno) => (true, std::io::Error::from(errno).to_string()),
    };
    Sandboxed { landlock_abi, detail, direct_open, refused }
}

/// What Landlock here is, found by using it. The calling thread keeps the restriction: give it one to spare.
pub fn restrict() -> Result<landlock::RestrictionStatus, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?
        .restrict_self()
}

/// The version in force and a sentence about it.
pub fn describe(status: &landlock::RestrictionStatus) -> (Option<i32>, String) {
    match (&status.landlock, &status.ruleset) {
        (LandlockStatus::NotImplemented, _) => {
            (None, "not available: not built into this kernel".to_string())
        }
        (LandlockStatus::NotEnabled, _) => {
            (None, "not available: not enabled when this kernel started".to_string())
        }
        (_, RulesetStatus::NotEnforced) => (None, "not available: nothing was enforced".to_string()),
        (LandlockStatus::Available { effective_abi, kernel_abi }, enforced) => {
            let abi = kernel_abi.unwrap_or(*effective_abi as i32);
            let amount = match enforced {
                RulesetStatus::FullyEnforced => "file system, network and signals to others",
                _ => "what this kernel knows of it, the file system included",
            };
            (Some(abi), format!("Landlock ABI {abi}: {amount}"))
        }
    }
}
