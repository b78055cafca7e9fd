//! Two readings of one tree, in any order, laid against each other.
//!
//! It owns what has been said by one side and not yet by the other, and the counts of what agreed. It must
//! never know how either side read, and it does no input or output: what is left over is handed to whoever
//! can look again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::report::Fact;

/// A comparison under way. What both sides have said alike is counted and forgotten, so it holds no more than
/// the distance between the two readers.
#[derive(Debug, Default)]
pub struct Comparison {
    direct: HashMap<Vec<u8>, Fact>,
    reported: HashMap<Vec<u8>, Fact>,
    agreed: Tally,
    disputes: Vec<Dispute>,
}

/// What both sides agreed about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub directories: u64,
    pub files: u64,
    pub bytes: u64,
    pub links: u64,
    /// Files that go on and on, which both sides left unread beyond the same bound.
    pub endless: u64,
    /// Listed and never opened: pipes, devices, sockets.
    pub skipped: u64,
    pub unreadable: u64,
}

/// A place about which the two sides do not say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    pub path: Vec<u8>,
    /// What direct reading found; `None` if it never came by.
    pub direct: Option<Fact>,
    /// What came through the objects; `None` if it was never reported.
    pub reported: Option<Fact>,
}

impl Comparison {
    /// What direct reading found at `path`.
    pub fn direct(&mut self, path: Vec<u8>, fact: Fact) {
        match self.reported.remove(&path) {
            Some(reported) => self.settle(path, fact, reported),
            None => {
                // A name listed twice (the directory changed while it was read): the later reading counts.
                self.direct.insert(path, fact);
            }
        }
    }

    /// What came through the objects for `path`.
    pub fn reported(&mut self, path: Vec<u8>, fact: Fact) {
        match self.direct.entry(path) {
            Entry::Occupied(entry) => {
                let (path, direct) = entry.remove_entry();
                self.settle(path, direct, fact);
            }
            Entry::Vacant(entry) => {
                self.reported.insert(entry.into_key(), fact);
            }
        }
    }

    /// Places where both sides have spoken.
    pub fn settled(&self) -> u64 {
        let Tally { directories, files, links, endless, skipped, unreadable, .. } = self.agreed;
        directories + files + links + endless + skipped + unreadable + self.disputes.len() as u64
    }

    /// What agreed, and everything that did not.
    pub fn finish(mut self) -> (Tally, Vec<Dispute>) {
        let unreported = self.direct.drain().filter(|(_, fact)| *fact != Fact::Vanished);
        let unreported = unreported.map(|(path, fact)| Dispute { path, direct: Some(fact), reported: None });
        self.disputes.extend(unreported);
        let unseen = self.reported.drain().filter(|(_, fact)| *fact != Fact::Vanished);
        let unseen = unseen.map(|(path, fact)| Dispute { path, direct: None, reported: Some(fact) });
        self.disputes.extend(unseen);
        self.disputes.sort_by(|one, other| one.path.cmp(&other.path));
        (self.agreed, self.disputes)
    }

    fn settle(&mut self, path: Vec<u8>, direct: Fact, reported: Fact) {
        if direct == reported {
            self.agreed.add(&direct);
        } else {
            self.disputes.push(Dispute { path, direct: Some(direct), reported: Some(reported) });
        }
    }
}

impl Tally {
    fn add(&mut self, fact: &Fact) {
        match fact {
            Fact::Directory => self.directories += 1,
            Fact::File { bytes, .. } => {
                self.files += 1;
                self.bytes += bytes;
            }
            Fact::Endless { .. } => self.endless += 1,
            Fact::Link { .. } => self.links += 1,
            Fact::Other(_) => self.skipped += 1,
            Fact::Unreadable { .. } => self.unreadable += 1,
            Fact::Vanished => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(byte: u8) -> Fact {
        Fact::File { bytes: 10, sha256: [byte; 32] }
    }

    #[test]
    fn the_order_of_the_sides_does_not_matter() {
        let mut comparison = Comparison::default();
        comparison.direct(b"a".to_vec(), file(1));
        comparison.reported(b"b".to_vec(), file(2));
        comparison.reported(b"a".to_vec(), file(1));
        comparison.direct(b"b".to_vec(), file(2));
        assert_eq!(comparison.settled(), 2);
        let (tally, disputes) = comparison.finish();
        assert_eq!(tally, Tally { files: 2, bytes: 20, ..Tally::default() });
        assert_eq!(disputes, []);
    }

    #[test]
    fn another_content_is_disputed() {
        let mut comparison = Comparison::default();
        comparison.direct(b"a".to_vec(), file(1));
        comparison.reported(b"a".to_vec(), file(2));
        let (tally, disputes) = comparison.finish();
        assert_eq!(tally, Tally::default());
        assert_eq!(
            disputes,
            [Dispute { path: b"a".to_vec(), direct: Some(file(1)), reported: Some(file(2)) }]
        );
    }

    #[test]
    fn what_only_one_side_saw_is_disputed() {
        let mut comparison = Comparison::default();
        comparison.direct(b"missed".to_vec(), file(1));
        comparison.reported(b"invented".to_vec(), file(2));
        let (_, disputes) = comparison.finish();
        let paths: Vec<_> = disputes.iter().map(|dispute| dispute.path.as_slice()).collect();
        assert_eq!(paths, [&b"invented"[..], b"missed"]);
    }

    #[test]
    fn what_was_gone_on_one_side_and_never_seen_by_the_other_is_nothing() {
        let mut comparison = Comparison::default();
        comparison.direct(b"a".to_vec(), Fact::Vanished);
        comparison.reported(b"b".to_vec(), Fact::Vanished);
        assert_eq!(comparison.finish(), (Tally::default(), Vec::new()));
    }

    #[test]
    fn what_neither_side_may_read_agrees() {
        let mut comparison = Comparison::default();
        comparison.direct(b"a".to_vec(), Fact::Unreadable { errno: 13 });
        comparison.reported(b"a".to_vec(), Fact::Unreadable { errno: 13 });
        assert_eq!(comparison.finish().0, Tally { unreadable: 1, ..Tally::default() });
    }
}
