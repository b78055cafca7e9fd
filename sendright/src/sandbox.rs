//! Giving up the file system and the network: a Landlock ruleset that handles everything and allows what it
//! is told, which is little or nothing.
//!
//! It owns the restriction of this thread and of every thread and process it starts afterwards, so it comes
//! before any of them. It must never know what the process does next. Descriptors that are already open stay
//! as they are: that is the whole point of handing them over.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rules we ask for; an older kernel enforces those it knows.
const ABI_WANTED: ABI = ABI::V6;

/// Something that stays allowed below a directory.
#[derive(Clone, Copy, Debug)]
pub enum Allowed<'a> {
    /// Reading files.
    Reading(BorrowedFd<'a>),
    /// Removing files, sockets among them.
    Removing(BorrowedFd<'a>),
}

/// What Landlock here is, found by using it: file system, network and signals to others are given up, but for
/// what is allowed. The calling thread keeps the restriction: give it one to spare.
pub fn restrict(allowed: &[Allowed<'_>]) -> Result<RestrictionStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    let rules = allowed.iter().try_fold(rules, |rules, allowed| {
        let (directory, access) = match *allowed {
            Allowed::Reading(directory) => (directory, AccessFs::ReadFile),
            Allowed::Removing(directory) => (directory, AccessFs::RemoveFile),
        };
        rules.add_rule(PathBeneath::new(directory, access))
    })?;
    rules.restrict_self()
}

/// The version in force and a sentence about it.
pub fn describe(status: &RestrictionStatus) -> (Option<i32>, String) {
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
