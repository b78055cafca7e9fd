//! The end of the demonstration in words, and as one JSON object.
//!
//! It owns the wording and the names of the fields. It must never decide anything: the verdict is the
//! judge's.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::judge::{self, Judgement, Reading, describe_mismatch};
use super::report::{Served, Walked};
use super::{Role, printable};
use crate::latency::{Latencies, Quantiles};
use crate::output::{self, Ink, grouped, paint};

/// Mismatches and troubles shown; there may be as many as files.
const SHOWN_MAX: usize = 10;

/// What is said. The fields are the JSON object's.
#[derive(Debug, Serialize)]
pub struct Summary {
    verdict: &'static str,
    directory: String,
    files: u64,
    bytes: u64,
    directories: u64,
    links: u64,
    endless: u64,
    skipped: u64,
    unreadable: u64,
    changed: u64,
    mismatches: usize,
    mismatched: Vec<String>,
    granted: Granted,
    introduction: Option<Introduction>,
    calls: u64,
    session: Calls,
    plain: Calls,
    descriptors_passed: u64,
    leaked_descriptors: Option<i64>,
    driver: String,
    driver_reason: String,
    sandboxed: bool,
    sandbox: String,
    direct_open: String,
    client: Option<Walked>,
    third: Option<Walked>,
    service: Option<Served>,
    trouble: Vec<String>,
    elapsed_s: f64,
}

/// What the third process was granted, and made of it.
#[derive(Debug, Serialize)]
struct Granted {
    directory: String,
    files: u64,
    bytes: u64,
    directories: u64,
    changed: u64,
    mismatches: usize,
}

/// Who met whom, by key, and through whom.
#[derive(Debug, Serialize)]
struct Introduction {
    server: String,
    locator: String,
    client: Option<String>,
    service: Option<String>,
    /// Both ends have proved who they are to each other, on the connection itself.
    proved: bool,
    /// The server had ended before anything was read.
    stepped_out: bool,
}

/// The calls of one way.
#[derive(Debug, Serialize)]
struct Calls {
    calls: u64,
    #[serde(flatten)]
    latency: Quantiles,
}

impl Summary {
    /// What there is to say about a judgement.
    pub fn new(judgement: &Judgement, path: &Path, granted: Option<&[u8]>, elapsed: Duration) -> Summary {
        let Reading { tally, changed, .. } = &judgement.whole;
        let mismatches = judgement.whole.mismatches.iter().chain(&judgement.part.mismatches);
        let client = judgement.walked.get(&Role::Client);
        let third = judgement.walked.get(&Role::Guest);
        let sandbox = client.map(|client| &client.sandbox);
        let (driver, driver_reason) = drivers(judgement);
        Summary {
            verdict: if judgement.is_good() { "pass" } else { "fail" },
            directory: printable(path),
            files: tally.files,
            bytes: tally.bytes,
            directories: tally.directories,
            links: tally.links,
            endless: tally.endless,
            skipped: tally.skipped,
            unreadable: tally.unreadable,
            changed: changed + judgement.part.changed,
            mismatches: judgement.mismatches(),
            mismatched: mismatches.take(SHOWN_MAX).map(describe_mismatch).collect(),
            granted: Granted {
                directory: granted.map_or(".".to_string(), output::printable),
                files: judgement.part.tally.files,
                bytes: judgement.part.tally.bytes,
                directories: judgement.part.tally.directories,
                changed: judgement.part.changed,
                mismatches: judgement.part.mismatches.len(),
            },
            introduction: judgement.introduction.as_ref().map(Introduction::new),
            calls: judgement.session.calls() + judgement.plain.calls(),
            session: Calls::new(&judgement.session),
            plain: Calls::new(&judgement.plain),
            descriptors_passed: judgement.walked.values().map(|walked| walked.descriptors_passed).sum(),
            leaked_descriptors: judgement.leaked_descriptors,
            driver,
            driver_reason,
            sandboxed: sandbox.is_some_and(|sandbox| sandbox.landlock_abi.is_some() && sandbox.refused),
            sandbox: sandbox.map_or("unknown: the client did not come so far".into(), |it| it.detail.clone()),
            direct_open: sandbox.map_or("not tried".into(), |sandbox| sandbox.direct_open.clone()),
            client: client.cloned(),
            third: third.cloned(),
            service: judgement.served.clone(),
            trouble: judgement.trouble.clone(),
            elapsed_s: (elapsed.as_secs_f64() * 1_000.0).round() / 1_000.0,
        }
    }

    /// One line, one object.
    pub fn json(&self) -> String {
        output::json_line(self)
    }

    /// A few lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |head: &str, rest: String| {
            let head = paint(&format!("{head:<12}"), Ink::Heading, &io::stdout());
            text.push_str(&format!("  {head} {rest}\n"));
        };
        line("directory", self.directory.clone());
        line("sandbox", self.sandbox.clone());
        line("", format!("a direct open from the client: {}", self.direct_open));
        let introduced = self.introduction.as_ref().map_or(Vec::new(), Introduction::text);
        for (index, sentence) in introduced.into_iter().enumerate() {
            line(if index == 0 { "introduction" } else { "" }, sentence);
        }
        line("client", self.read_text(self.files, self.bytes, self.directories));
        let others = [
            (self.links, "links compared, not followed"),
            (self.endless, "without an end, and not read for ever"),
            (self.skipped, "special files never opened"),
            (self.unreadable, "unreadable to both sides"),
            (self.changed, "changed while they were read"),
        ];
        let others: Vec<_> = others.iter().filter(|(count, _)| *count > 0).collect();
        if !others.is_empty() {
            let others: Vec<_> =
                others.iter().map(|(count, what)| format!("{} {what}", grouped(*count))).collect();
            line("", others.join(", "));
        }
        let granted = &self.granted;
        let read = self.read_text(granted.files, granted.bytes, granted.directories);
        line("third", format!("{read} in {}, by a directory object granted to it", granted.directory));
        line("driver", format!("{}: {}", self.driver, self.driver_reason));
        line("calls", self.session.text("by session"));
        line("", self.plain.text("by plain object"));
        let leaked = self.leaked_descriptors.map_or("not counted".into(), |count| format!("{count}"));
        line("descriptors", format!("{} passed, {leaked} leaked", grouped(self.descriptors_passed)));
        line("time", format!("{:.2} s", self.elapsed_s));
        for sentence in self.trouble.iter().take(SHOWN_MAX) {
            line("trouble", sentence.clone());
        }
        if let Some(more @ 1..) = self.trouble.len().checked_sub(SHOWN_MAX) {
            line("", format!("and {more} more"));
        }
        for sentence in &self.mismatched {
            line("mismatch", sentence.clone());
        }
        if let Some(more @ 1..) = self.mismatches.checked_sub(SHOWN_MAX) {
            line("", format!("and {more} more"));
        }
        text.push_str(&self.verdict_text());
        text
    }

    fn verdict_text(&self) -> String {
        if self.verdict == "pass" {
            let pass = paint("PASS", Ink::Good, &io::stdout());
            return format!(
                "{pass}  what came through the objects is what is there, and nothing is left behind\n"
            );
        }
        let fail = paint("FAIL", Ink::Bad, &io::stdout());
        let mismatches = several(self.mismatches as u64, "mismatch", "mismatches");
        let others = several(self.trouble.len() as u64, "other reason", "other reasons");
        format!("{fail}  {mismatches}, {others}\n")
    }

    fn read_text(&self, files: u64, bytes: u64, directories: u64) -> String {
        format!(
            "{}, {} in {}",
            several(files, "file", "files"),
            size(bytes),
            several(directories, "directory", "directories")
        )
    }
}

impl Introduction {
    fn new(introduction: &judge::Introduction) -> Introduction {
        let judge::Introduction { server, locator, client, service, stepped_out } = introduction;
        Introduction {
            server: server.clone(),
            locator: locator.clone(),
            client: client.as_ref().map(|met| met.key.clone()),
            service: service.as_ref().map(|met| met.key.clone()),
            proved: [client, service].into_iter().all(|met| met.as_ref().is_some_and(|met| met.proved)),
            stepped_out: *stepped_out,
        }
    }

    fn text(&self) -> Vec<String> {
        // The beginning of a key is enough to tell three of them apart.
        let short = |key: &Option<String>| {
            let shown = key.as_deref().and_then(|key| key.get(..8));
            shown.map_or("somebody unknown".to_string(), |shown| format!("{shown}\u{2026}"))
        };
        let (client, service) = (short(&self.client), short(&self.service));
        let how = if self.proved { "both have proved who they are" } else { "without a proof" };
        let server = short(&Some(self.server.clone()));
        let end = match self.stepped_out {
            true => "had ended before the first file was opened",
            false => "was still there",
        };
        vec![
            format!("client {client} met service {service} by its locator; {how}"),
            format!("the introduction server {server} {end}"),
        ]
    }
}

impl Calls {
    fn new(latencies: &Latencies) -> Calls {
        Calls { calls: latencies.calls(), latency: latencies.quantiles() }
    }

    fn text(&self, way: &str) -> String {
        let Quantiles { p50_us, p99_us, p99_9_us, .. } = self.latency;
        let calls = grouped(self.calls);
        let micros = |latency_us: f64| format!("{} \u{b5}s", grouped(latency_us.round() as u64));
        let (p50, p99, p99_9) = (micros(p50_us), micros(p99_us), micros(p99_9_us));
        format!("{calls:>9} {way:<15}  p50 {p50}, p99 {p99}, p99.9 {p99_9}")
    }
}

/// The driver of the three processes, and why; each by name if they differ.
fn drivers(judgement: &Judgement) -> (String, String) {
    let walked = judgement.walked.iter().map(|(role, walked)| (*role, &walked.driver, &walked.reason));
    let served = judgement.served.iter().map(|served| (Role::Service, &served.driver, &served.reason));
    let mut all: Vec<_> = walked.chain(served).collect();
    all.sort();
    match all.as_slice() {
        [] => ("unknown".into(), "no process came so far as to say".into()),
        [(_, driver, reason), rest @ ..] if rest.iter().all(|(_, other, _)| other == driver) => {
            ((*driver).clone(), (*reason).clone())
        }
        different => {
            let each =
                different.iter().map(|(role, driver, reason)| format!("{}: {driver}, {reason}", role.name()));
            ("mixed".into(), each.collect::<Vec<_>>().join("; "))
        }
    }
}

fn several(count: u64, one: &str, more: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { more })
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
