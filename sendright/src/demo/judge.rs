//! The verdict: what agreed, what did not, what only changed meanwhile, and what else must be so.
//!
//! It owns the decision and its grounds. A difference is excused as a change only on evidence of the file
//! system itself: a second direct reading that differs from the first, or a change time within the
//! demonstration. It must never know how any of it is shown.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use super::compare::{Comparison, Dispute, Tally};
use super::report::{Fact, Met, Served, Walked};
use super::{Cut, End, Role, Story, direct};
use crate::latency::Latencies;
use crate::output;

/// Everything there is to say at the end.
#[derive(Debug)]
pub struct Judgement {
    /// The client's reading of the whole tree.
    pub whole: Reading,
    /// The third process's reading of what it was granted.
    pub part: Reading,
    pub walked: HashMap<Role, Walked>,
    pub served: Option<Served>,
    /// How client and service found each other, where they had to.
    pub introduction: Option<Introduction>,
    pub session: Latencies,
    pub plain: Latencies,
    /// Grounds for a bad verdict, each a sentence.
    pub trouble: Vec<String>,
    /// Descriptors left or lost, in all three; `None` if one of them could not count.
    pub leaked_descriptors: Option<i64>,
}

/// A meeting through an introduction server.
#[derive(Debug)]
pub struct Introduction {
    /// The server's key.
    pub server: String,
    /// Where the service is to be found.
    pub locator: String,
    pub client: Option<Met>,
    pub service: Option<Met>,
    /// Whether the server had ended, and well, before anything was read.
    pub stepped_out: bool,
}

/// One process's reading against direct reading.
#[derive(Debug)]
pub struct Reading {
    pub tally: Tally,
    /// Places that changed while they were read.
    pub changed: u64,
    pub mismatches: Vec<Dispute>,
}

impl Judgement {
    /// The verdict.
    pub fn is_good(&self) -> bool {
        self.mismatches() == 0 && self.trouble.is_empty() && self.leaked_descriptors.unwrap_or(0) == 0
    }

    /// Places where a process read something else than is there.
    pub fn mismatches(&self) -> usize {
        self.whole.mismatches.len() + self.part.mismatches.len()
    }
}

/// Weighs what was heard. `began` is when the demonstration did, by the clock that stamps files.
pub fn judge(
    mut story: Story,
    ends: &HashMap<Role, End>,
    root: BorrowedFd<'_>,
    began: Duration,
    granted: Option<&[u8]>,
) -> Judgement {
    let weigh = Weigh { root, began, complete: story.cut.is_none() };
    let whole = weigh.reading(std::mem::take(&mut story.whole), &[]);
    let part = weigh.reading(std::mem::take(&mut story.part), granted.unwrap_or_default());
    let leaked_descriptors = leaked(&story);
    let mut trouble = std::mem::take(&mut story.trouble);
    trouble.extend(deaths(&story, ends));
    trouble.extend(walls_with_holes(&story));
    trouble.extend(strangers(&story));
    if let Some(count @ 1..) = leaked_descriptors {
        trouble.push(format!("{count} descriptors were left open or lost"));
    }
    if let Some(Served { left: left @ 1.., .. }) = story.served {
        trouble.push(format!("{left} objects outlived their holders"));
    }
    let Story { walked, served, introduction, session, plain, .. } = story;
    Judgement { whole, part, walked, served, introduction, session, plain, trouble, leaked_descriptors }
}

/// How disputes are settled.
struct Weigh<'a> {
    root: BorrowedFd<'a>,
    began: Duration,
    /// Whether both sides came to their end: if not, what only one side has means nothing.
    complete: bool,
}

impl Weigh<'_> {
    fn reading(&self, comparison: Comparison, below: &[u8]) -> Reading {
        let (mut tally, disputes) = comparison.finish();
        let mut changed = 0;
        let mut mismatches = Vec::new();
        for mut dispute in disputes {
            if !self.complete && (dispute.direct.is_none() || dispute.reported.is_none()) {
                continue;
            }
            if let Some(Fact::File { bytes, .. }) = dispute.reported {
                tally.files += 1;
                tally.bytes += bytes;
            }
            if !below.is_empty() {
                dispute.path = direct::join(below, &dispute.path);
            }
            if self.is_change(&dispute) {
                changed += 1;
            } else {
                mismatches.push(dispute);
            }
        }
        Reading { tally, changed, mismatches }
    }

    fn is_change(&self, dispute: &Dispute) -> bool {
        let there = |fact: &Option<Fact>| fact.clone().filter(|fact| *fact != Fact::Vanished);
        let (first, reported) = (there(&dispute.direct), there(&dispute.reported));
        let again = direct::read_again(self.root, &dispute.path);
        if again != first || again == reported {
            return true;
        }
        if direct::touched_since(self.root, &dispute.path, self.began) {
            return true;
        }
        // A name that came or went leaves its mark on a directory above. A file both have seen does not get
        // off so: somebody else's new file next to it is no excuse for a wrong content.
        let one_sided = first.is_none() || reported.is_none();
        one_sided && direct::names_changed_since(self.root, &dispute.path, self.began)
    }
}

fn leaked(story: &Story) -> Option<i64> {
    let walkers = story.walked.values().map(|walked| walked.leaked_descriptors);
    let service = story.served.iter().map(|served| served.leaked_descriptors);
    // One too many here does not make up for one too few there.
    walkers.chain(service).map(|leaked| leaked.map(i64::abs)).sum()
}

fn deaths(story: &Story, ends: &HashMap<Role, End>) -> Vec<String> {
    let died = |role: Role, end: &End| {
        let ended = end.status.map_or("did not end and was killed".to_string(), describe);
        format!("the {} (pid {}) {ended}", role.name(), end.pid)
    };
    let roles = Role::ALL.into_iter().filter_map(|role| Some((role, ends.get(&role)?)));
    let bad = roles.filter(|(_, end)| !end.status.is_some_and(|status| status.success()));
    match story.cut {
        // The others were ended because of these.
        Some(Cut::Died(_)) => {
            let culprits = bad.filter(|(_, end)| end.by_itself);
            culprits.map(|(role, end)| format!("{} before it was done", died(role, end))).collect()
        }
        Some(Cut::Trouble) => Vec::new(),
        None => bad.map(|(role, end)| died(role, end)).collect(),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => "ended".to_string(),
    }
}

/// Who was introduced must be who was asked for, and know it, and need the server no more.
fn strangers(story: &Story) -> Option<String> {
    let Introduction { client, service, stepped_out, .. } = story.introduction.as_ref()?;
    match (client, service) {
        _ if story.cut.is_some() => None,
        (Some(client), Some(service)) => {
            let know_each_other = client.other == service.key && service.other == client.key;
            let proved = client.proved && service.proved;
            if !know_each_other || !proved {
                Some("client and service are not whom the other takes them for".to_string())
            } else if !stepped_out {
                Some("the introduction server was needed after the introduction".to_string())
            } else {
                None
            }
        }
        _ => Some("client and service have not met".to_string()),
    }
}

/// Where there is Landlock, a process that can open the directory directly proves nothing.
fn walls_with_holes(story: &Story) -> Vec<String> {
    let roles = Role::ALL.into_iter().filter_map(|role| Some((role, story.walked.get(&role)?)));
    let open = roles.filter(|(_, walked)| walked.sandbox.landlock_abi.is_some() && !walked.sandbox.refused);
    open.map(|(role, _)| format!("the {} could open the directory itself", role.name())).collect()
}

/// One mismatch in words.
pub fn describe_mismatch(dispute: &Dispute) -> String {
    let path = match dispute.path.as_slice() {
        b"" => ".".to_string(),
        path => output::printable(path),
    };
    let direct = describe_fact(dispute.direct.as_ref());
    let reported = describe_fact(dispute.reported.as_ref());
    format!("{path}: {reported}, read directly: {direct}")
}

fn describe_fact(fact: Option<&Fact>) -> String {
    match fact {
        None => "nothing".to_string(),
        Some(Fact::Directory) => "a directory".to_string(),
        Some(Fact::File { bytes, sha256 }) => {
            let hash: String = sha256[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{bytes} bytes, sha256 {hash}\u{2026}")
        }
        Some(Fact::Endless { bytes }) => format!("more than {bytes} bytes, without end"),
        Some(Fact::Link { target }) => format!("a link to {}", output::printable(target)),
        Some(Fact::Other(kind)) => format!("a special file ({})", char::from(kind.byte())),
        Some(Fact::Unreadable { errno }) => {
            let error = i32::try_from(*errno).map(std::io::Error::from_raw_os_error);
            error.map_or("unreadable".to_string(), |error| format!("unreadable, {error}"))
        }
        Some(Fact::Vanished) => "gone".to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    const LATER: Duration = Duration::from_secs(u32::MAX as u64);

    fn truth(tree: &std::path::Path, name: &str) -> Fact {
        let root = direct::open_root(tree).unwrap();
        direct::read_again(root.as_fd(), name.as_bytes()).unwrap()
    }

    fn judged(
        tree: &std::path::Path,
        began: Duration,
        direct: Option<Fact>,
        reported: Option<Fact>,
    ) -> Reading {
        let root = direct::open_root(tree).unwrap();
        let mut comparison = Comparison::default();
        if let Some(fact) = direct {
            comparison.direct(b"f".to_vec(), fact);
        }
        if let Some(fact) = reported {
            comparison.reported(b"f".to_vec(), fact);
        }
        Weigh { root: root.as_fd(), began, complete: true }.reading(comparison, b"")
    }

    #[test]
    fn another_content_is_a_mismatch_when_nothing_changed() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("f"), b"truth").unwrap();
        let lie = Fact::File { bytes: 5, sha256: [1; 32] };
        let reading = judged(tree.path(), LATER, Some(truth(tree.path(), "f")), Some(lie));
        assert_eq!((reading.mismatches.len(), reading.changed), (1, 0));
        assert!(describe_mismatch(&reading.mismatches[0]).starts_with("f: 5 bytes, sha256 01010101"));
    }

    #[test]
    fn who_is_not_who_was_asked_for_is_trouble() {
        let met = |key: &str, other: &str, proved| Met { key: key.into(), other: other.into(), proved };
        let told = |client, service, stepped_out| {
            let (server, locator) = ("s".to_string(), "ocapn://b".to_string());
            let introduction = Introduction { server, locator, client, service, stepped_out };
            strangers(&Story::new(None, Some(introduction)))
        };
        let (anne, bert) = (met("a", "b", true), met("b", "a", true));
        assert_eq!(told(Some(anne.clone()), Some(bert.clone()), true), None);
        assert!(told(Some(anne.clone()), Some(bert.clone()), false).unwrap().contains("was needed"));
        let carl = met("b", "c", true);
        assert!(told(Some(anne.clone()), Some(carl), true).unwrap().contains("takes them for"));
        let claims = met("b", "a", false);
        assert!(told(Some(anne), Some(claims), true).unwrap().contains("takes them for"));
        assert!(told(None, Some(bert), true).unwrap().contains("have not met"));
        assert_eq!(strangers(&Story::new(None, None)), None);
    }

    #[test]
    fn a_file_written_meanwhile_is_a_change() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("f"), b"truth").unwrap();
        let other = Fact::File { bytes: 4, sha256: [1; 32] };
        let now = Some(truth(tree.path(), "f"));
        // Touched since it all began; or another content than direct reading saw at first.
        let touched = judged(tree.path(), Duration::ZERO, now.clone(), Some(other.clone()));
        let grown = judged(tree.path(), LATER, Some(other), now);
        assert_eq!((touched.mismatches.len(), touched.changed), (0, 1));
        assert_eq!((grown.mismatches.len(), grown.changed), (0, 1));
    }

    #[test]
    fn a_file_one_side_missed_is_a_mismatch_unless_names_came_and_went() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("f"), b"truth").unwrap();
        let now = Some(truth(tree.path(), "f"));
        assert_eq!(judged(tree.path(), LATER, now.clone(), None).mismatches.len(), 1);
        assert_eq!(judged(tree.path(), Duration::ZERO, now, None).changed, 1);
        fs::remove_file(tree.path().join("f")).unwrap();
        let ghost = Some(Fact::File { bytes: 5, sha256: [1; 32] });
        assert_eq!(judged(tree.path(), LATER, None, ghost.clone()).mismatches.len(), 1);
        assert_eq!(judged(tree.path(), Duration::ZERO, None, ghost).changed, 1);
    }
}
