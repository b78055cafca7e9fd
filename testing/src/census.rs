//! Counting open descriptors, so that each test notices the one that was left open or closed too often.
//!
//! Reads `/proc/self/fd` and nothing else. It does not know who opened what.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const DESCRIPTORS: &str = "/proc/self/fd";

/// The descriptors of this process at one moment.
///
/// The harness takes one around every body, so a test needs its own only to say something about a moment in
/// between. Compared is what descriptors refer to, not their numbers: a socket that travelled and came back
/// under another number is the same descriptor to a census.
///
/// ```standalone_crate
/// let census = testing::Census::take();
/// let pair = testing::packet_pair();
/// assert_eq!(testing::Census::take().len(), census.len() + 2);
/// drop(pair);
/// census.unchanged();
/// ```
#[derive(Clone, Debug)]
pub struct Census {
    /// What each open number refers to, as `readlink` tells it.
    targets: BTreeMap<i32, String>,
}

impl Census {
    /// Counts what is open now, after everything handed to the closer thread is closed.
    #[track_caller]
    pub fn take() -> Census {
        ring::closer_idle();
        // The numbers first, their targets when the directory is closed again: its own number, which is in
        // the list, then has no target any more and so leaves the count.
        let numbers: Vec<i32> = fs::read_dir(DESCRIPTORS)
            .unwrap_or_else(|error| panic!("a census needs one free descriptor and {DESCRIPTORS}: {error}"))
            .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
            .collect();
        let targets = numbers.into_iter().filter_map(|number| Some((number, target(number)?))).collect();
        Census { targets }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether none is open, standard input included.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The lowest limit under which exactly `free` more descriptors can be opened. The kernel hands out the
    /// lowest free number, and the limit is one on numbers.
    pub(crate) fn limit_leaving(&self, free: usize) -> u64 {
        let last = (0..).filter(|number| !self.targets.contains_key(number)).nth(free).unwrap();
        u64::try_from(last).unwrap()
    }

    /// The same without some numbers: what will be left once they are closed.
    pub(crate) fn without(mut self, numbers: impl IntoIterator<Item = i32>) -> Census {
        for number in numbers {
            self.targets.remove(&number);
        }
        self
    }

    /// # Panics
    /// If the process has other descriptors open now, saying which.
    #[track_caller]
    pub fn unchanged(&self) {
        if let Some(difference) = self.difference(&Census::take()) {
            panic!("the descriptors changed:\n{difference}");
        }
    }

    /// Whether the process has the same descriptors open now, for whoever waits until it has.
    pub fn is_unchanged(&self) -> bool {
        self.difference(&Census::take()).is_none()
    }

    /// What `now` has too many and what it lacks, a line for each; `None` when they agree.
    fn difference(&self, now: &Census) -> Option<String> {
        let mut lost = self.by_target();
        let mut left = now.by_target();
        for (target, before) in &mut lost {
            let after = left.get_mut(target).map(std::mem::take).unwrap_or_default();
            let (stayed, came): (Vec<i32>, Vec<i32>) = after.iter().partition(|n| before.contains(n));
            before.retain(|number| !stayed.contains(number));
            // Those that only changed their number cancel out.
            let moved = before.len().min(came.len());
            before.drain(..moved);
            left.insert(target.clone(), came[moved..].to_vec());
        }
        let mut lines = String::new();
        for (word, targets) in [("left open", &left), ("lost", &lost)] {
            for (target, numbers) in targets {
                for number in numbers {
                    let _ = writeln!(lines, "  {word}: {number} -> {target}");
                }
            }
        }
        (!lines.is_empty()).then_some(lines)
    }

    fn by_target(&self) -> BTreeMap<String, Vec<i32>> {
        let mut numbers: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (number, target) in &self.targets {
            numbers.entry(target.clone()).or_default().push(*number);
        }
        numbers
    }
}

/// `None` if the number is not open (any more).
fn target(number: i32) -> Option<String> {
    match fs::read_link(Path::new(DESCRIPTORS).join(number.to_string())) {
        // A file that was removed while open is still the same file.
        Ok(target) => Some(target.to_string_lossy().trim_end_matches(" (deleted)").to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("reading what descriptor {number} refers to: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(targets: &[(i32, &str)]) -> Census {
        Census { targets: targets.iter().map(|(number, target)| (*number, (*target).to_owned())).collect() }
    }

    #[test]
    fn equal_censuses_have_no_difference() {
        let one = census(&[(0, "/dev/null"), (3, "socket:[1]"), (4, "socket:[1]")]);
        assert_eq!(one.difference(&one), None);
    }

    #[test]
    fn a_limit_counts_free_numbers_only() {
        let sparse = census(&[(0, "/dev/null"), (1, "/dev/null"), (3, "socket:[1]"), (9, "socket:[2]")]);
        assert_eq!(sparse.limit_leaving(0), 2);
        assert_eq!(sparse.limit_leaving(1), 4);
        assert_eq!(sparse.limit_leaving(6), 10);
    }

    #[test]
    fn what_was_left_and_what_was_lost_are_named() {
        let before = census(&[(3, "socket:[1]"), (4, "socket:[2]")]);
        let after = census(&[(3, "socket:[1]"), (5, "anon_inode:[eventfd]")]);
        let difference = before.difference(&after).unwrap();
        assert_eq!(difference, "  left open: 5 -> anon_inode:[eventfd]\n  lost: 4 -> socket:[2]\n");
    }

    #[test]
    fn a_second_number_for_the_same_socket_is_left_open() {
        let before = census(&[(3, "socket:[1]")]);
        let after = census(&[(3, "socket:[1]"), (4, "socket:[1]")]);
        assert_eq!(before.difference(&after).unwrap(), "  left open: 4 -> socket:[1]\n");
    }

    #[test]
    fn another_number_for_the_same_socket_is_no_change() {
        let before = census(&[(3, "socket:[1]"), (4, "socket:[1]")]);
        let after = census(&[(4, "socket:[1]"), (9, "socket:[1]")]);
        assert_eq!(before.difference(&after), None);
    }
}
