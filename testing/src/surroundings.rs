//! A poorer machine to test on: without io_uring, without privilege, with few descriptors.
//!
//! Each of these changes this thread or this process for good (or until a guard is dropped), so they belong
//! into a body, which has a process to itself. Nothing here knows what is tested under them.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::census::Census;

/// `io_uring_setup`, `io_uring_enter` and `io_uring_register`. Calls this young have the same number on every
/// architecture.
const IO_URING_CALLS: [i64; 3] = [425, 426, 427];

/// `openat2`, `openat`, `socket`, `connect`, `bind`, `listen`, `execve`, `ptrace`: what gets hold of anything
/// that was not given. `socketpair` is not among them, and needs no name.
#[cfg(target_arch = "x86_64")]
const REACHING_CALLS: [i64; 8] = [437, 257, 41, 42, 49, 50, 59, 101];
#[cfg(not(target_arch = "x86_64"))]
const REACHING_CALLS: [i64; 8] = [437, 56, 198, 203, 200, 201, 221, 117];

/// The user that owns nothing.
pub const NOBODY: u32 = 65_534;

/// Users from here on are those that a process has for itself: this and its own number. Nobody is given one
/// so high, and no two processes that live have one number.
const OWN_USERS: u32 = 1 << 30;

/// From now on the kernel answers this thread's io_uring calls, and those of every thread and process it
/// starts, with `errno`: `Errno::PERM` as in a container with the usual profile, `Errno::NOSYS` as on a
/// kernel built without.
///
/// # Panics
/// If the machine does not let us install the filter.
#[track_caller]
pub fn refuse_io_uring(errno: Errno) {
    let refusal = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
    let calls: BTreeMap<i64, Vec<_>> = IO_URING_CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    apply_filter(&program).unwrap_or_else(|error| panic!("no seccomp filter can be installed: {error}"));
}

/// From now on this thread, and what it starts, has a kernel without Landlock.
///
/// # Panics
/// If the machine does not let us install the filter.
#[track_caller]
pub fn refuse_landlock() {
    // Calls this young have the same number on every architecture.
    const LANDLOCK_CALLS: [i64; 3] = [444, 445, 446];
    let refusal = SeccompAction::Errno(Errno::NOSYS.raw_os_error().unsigned_abs());
    let calls: BTreeMap<i64, Vec<_>> = LANDLOCK_CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    apply_filter(&program).unwrap_or_else(|error| panic!("no seccomp filter can be installed: {error}"));
}

/// From now on the kernel refuses this thread, and what it starts, a page that is wiped on fork, as one
/// before Linux 4.14 does.
///
/// # Panics
/// If the machine does not let us install the filter.
#[track_caller]
pub fn refuse_wiping_on_fork() {
    const MADV_WIPEONFORK: u64 = 18;
    let advice =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, MADV_WIPEONFORK).unwrap();
    let rules = vec![SeccompRule::new(vec![advice]).unwrap()];
    let refusal = SeccompAction::Errno(Errno::INVAL.raw_os_error().unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let calls = BTreeMap::from([(madvise_number(arch), rules)]);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    apply_filter(&program).unwrap_or_else(|error| panic!("no seccomp filter can be installed: {error}"));
}

/// An old call, with another number on each architecture.
fn madvise_number(arch: TargetArch) -> i64 {
    match arch {
        TargetArch::x86_64 => 28,
        TargetArch::aarch64 => 233,
        TargetArch::riscv64 => 233,
    }
}

/// From now on this thread, and every thread and process it starts, has nothing but the descriptors it holds:
/// no files, no network, no names (Landlock), and none of the calls that could reach any (seccomp). A reactor
/// is made before. A census cannot be taken after, so a body or helper enters on a thread of its own.
///
/// On a kernel without Landlock there is seccomp alone.
///
/// # Panics
/// If the machine does not let us install the filter, or something can be opened after it.
#[track_caller]
pub fn enter_sandbox() {
    const NEWEST: ABI = ABI::V6;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self())
        .unwrap();
    let refusal = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let calls: BTreeMap<i64, Vec<_>> = REACHING_CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap())
        .unwrap_or_else(|error| panic!("no seccomp filter can be installed: {error}"));
    assert!(std::fs::File::open("/").is_err(), "the sandbox is open");
    assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_err(), "the sandbox is open");
}

/// Gives up root for good: this thread becomes [`NOBODY`], with no groups and no capabilities. Nothing
/// happens if the tests do not run as root in the first place.
///
/// In Linux a uid belongs to a thread. A body has one thread that matters, and the threads it starts later
/// inherit; the test program's main thread stays root, which is why this needs a process of its own. A helper
/// started afterwards is nobody altogether (if nobody may read the test program).
///
/// # Panics
/// If root may not do so here.
#[track_caller]
pub fn become_nobody() {
    if rustix::process::geteuid().is_root() {
        become_user(NOBODY).unwrap();
    }
}

/// As [`become_nobody`], but as a user that no other process is: what the kernel counts for each user, the
/// descriptors in flight above all, is counted for this process alone, whatever runs beside it. In a user
/// namespace that has no such users it is nobody after all.
///
/// # Panics
/// As [`become_nobody`].
#[track_caller]
pub fn become_a_user_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    match become_user(OWN_USERS + std::process::id()) {
        Err(Errno::INVAL) => become_nobody(),
        became => became.unwrap(),
    }
}

fn become_user(number: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// From now on this thread is, to the kernel's accounts, a user that no other process is: what it has in
/// flight counts for nobody else. It keeps its privileges, and all that it may do; what it starts later is
/// that user too. Nothing happens if the tests do not run as root, or in a user namespace that has no such
/// users.
///
/// The kernel counts by the *real* user, and asks the *effective* one what is allowed.
#[track_caller]
pub fn count_apart() {
    let root = Uid::ROOT;
    if rustix::process::geteuid().is_root() {
        let _ = set_thread_res_uid(Uid::from_raw(OWN_USERS + std::process::id()), root, root);
    }
}

/// As [`become_a_user_of_its_own`], but the user that the process of this number would become. False if there
/// is no such user to be had: the tests do not run as root, or in a user namespace of few.
#[track_caller]
pub fn become_user_of(process: u32) -> bool {
    rustix::process::geteuid().is_root() && become_user(OWN_USERS + process).is_ok()
}

/// Lets this process open exactly `free` more descriptors (by its soft RLIMIT_NOFILE), until the guard is
/// dropped. A census needs one free descriptor, so take it before.
///
/// ```standalone_crate
/// let limit = testing::leave_descriptors(1);
/// let one = std::fs::File::open("/dev/null").unwrap();
/// assert!(std::fs::File::open("/dev/null").is_err());
/// drop(limit);
/// assert!(std::fs::File::open("/dev/null").is_ok());
/// ```
///
/// # Panics
/// If there is no such room below the hard limit.
#[track_caller]
pub fn leave_descriptors(free: usize) -> DescriptorLimit {
    limit_descriptors(Census::take().limit_leaving(free))
}

/// Sets this process's soft RLIMIT_NOFILE until the guard is dropped: no descriptor gets a number of
/// `numbers_max` or above. To run out at a known moment use [`leave_descriptors`]; this one is for what reads
/// the limit itself.
///
/// # Panics
/// If `numbers_max` is above the hard limit.
#[track_caller]
pub fn limit_descriptors(numbers_max: u64) -> DescriptorLimit {
    let before = getrlimit(Resource::Nofile);
    let limited = Rlimit { current: Some(numbers_max), maximum: before.maximum };
    setrlimit(Resource::Nofile, limited).unwrap();
    DescriptorLimit { before }
}

/// Raises this process's soft RLIMIT_NOFILE as high as it may, until the guard is dropped.
#[track_caller]
pub(crate) fn unlimited_descriptors() -> DescriptorLimit {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
    DescriptorLimit { before }
}

/// Leaves this process so many bytes of address space beyond what it has now (by its soft RLIMIT_AS), until
/// the guard is dropped: what asks for more gets none. A thread that is started needs some too.
///
/// # Panics
/// If there is no such room below the hard limit.
#[track_caller]
pub fn leave_memory(free: u64) -> MemoryLimit {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let before = getrlimit(Resource::As);
    let current = Some(pages * rustix::param::page_size() as u64 + free);
    setrlimit(Resource::As, Rlimit { current, maximum: before.maximum }).unwrap();
    MemoryLimit { before }
}

/// Restores the limit when dropped: see [`leave_memory`].
#[derive(Debug)]
#[must_use = "the limit ends when this is dropped"]
pub struct MemoryLimit {
    before: Rlimit,
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Raising the soft limit to what it was is always allowed.
        let _ = setrlimit(Resource::As, self.before);
    }
}

/// Restores the descriptor limit when dropped: see [`leave_descriptors`].
#[derive(Debug)]
#[must_use = "the limit ends when this is dropped"]
pub struct DescriptorLimit {
    before: Rlimit,
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        // Raising the soft limit to what it was is always allowed.
        let _ = setrlimit(Resource::Nofile, self.before);
    }
}
