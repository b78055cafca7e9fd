//! The end of a stress run in words, and as one JSON object.
//!
//! It owns the wording, the names of the fields, and which of them must be nothing for the verdict to be
//! good. It must never count anything itself.

use std::io;

use serde::Serialize;

use super::judge::Tally;
use super::stage::{Ended, Leak};
use super::{MEMORY_MAX_KIB, Settings};
use crate::output::{self, Ink, grouped, paint};

/// What is said. The fields are the JSON object's: the sums of all ways, and each way for itself.
#[derive(Debug, Serialize)]
pub struct Summary {
    verdict: &'static str,
    #[serde(flatten)]
    sums: Counts,
    driver: String,
    seed: u64,
    fds: u8,
    kill_every_ms: u64,
    memory_max_kib: u64,
    interrupted: bool,
    ways: Vec<OneWay>,
    leaks: Vec<String>,
    trouble: Vec<String>,
}

#[derive(Debug, Serialize)]
struct OneWay {
    way: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    calls: u64,
    answered: u64,
    dropped: u64,
    gone: u64,
    withdrawn: u64,
    cut_off: u64,
    reported_lost: u64,
    lost: u64,
    duplicated: u64,
    misdelivered: u64,
    unexplained: u64,
    leaked_descriptors: u64,
    max_rss_kib: u64,
    killed: u64,
    handed_on: u64,
    descriptors_passed: u64,
    seconds: f64,
}

impl Summary {
    pub fn new(settings: &Settings, driver: String, ended: &[Ended]) -> Summary {
        let ways: Vec<OneWay> =
            ended.iter().map(|ended| OneWay { way: ended.way.name(), counts: Counts::of(ended) }).collect();
        let sums = ways.iter().fold(Counts::default(), |sums, way| sums.and(&way.counts));
        let leaks = ended.iter().flat_map(|ended| ended.leaked.iter().map(Leak::text)).collect();
        let trouble = ended.iter().flat_map(|ended| {
            ended.sentences.iter().map(|sentence| format!("{}: {sentence}", ended.way.name()))
        });
        Summary {
            verdict: if sums.is_good() { "pass" } else { "fail" },
            sums,
            driver,
            seed: settings.seed,
            fds: settings.fds,
            kill_every_ms: settings.kill_every.map_or(0, |every| every.as_millis() as u64),
            memory_max_kib: MEMORY_MAX_KIB,
            interrupted: ended.iter().any(|ended| ended.interrupted),
            ways,
            leaks,
            trouble: trouble.collect(),
        }
    }

    /// Whether nothing is lost, doubled, in the wrong place, unexplained or left behind.
    pub fn is_good(&self) -> bool {
        self.sums.is_good()
    }

    /// One line, one object.
    pub fn json(&self) -> String {
        output::json_line(self)
    }

    /// A table for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let heads: Vec<&str> = self.ways.iter().map(|way| way.way).collect();
        text.push_str(&row("", heads.iter().map(|head| (*head).to_owned()), Ink::Heading));
        for (name, value, ink) in Counts::ROWS {
            let values = self.ways.iter().map(|way| grouped(value(&way.counts)));
            text.push_str(&row(name, values, ink));
        }
        text.push_str(&row(
            "seconds",
            self.ways.iter().map(|way| format!("{:.1}", way.counts.seconds)),
            Ink::Faint,
        ));
        text.push_str(&format!(
            "{} on {}, seed {}, {} in each message, memory bound {} KiB\n",
            match self.kill_every_ms {
                0 => "nobody killed".to_owned(),
                every => format!("somebody killed every {every} ms"),
            },
            self.driver,
            self.seed,
            match self.fds {
                0 => "no descriptors".to_owned(),
                fds => format!("{} descriptors", fds + 1),
            },
            grouped(self.memory_max_kib),
        ));
        for sentence in self.leaks.iter().chain(&self.trouble) {
            text.push_str(&format!("  {sentence}\n"));
        }
        if self.interrupted {
            text.push_str("interrupted: this is the verdict so far\n");
        }
        text.push_str(&if self.is_good() {
            let pass = paint("PASS", Ink::Good, &io::stdout());
            format!("{pass}  every call has one end and every descriptor is accounted for\n")
        } else {
            let fail = paint("FAIL", Ink::Bad, &io::stdout());
            format!(
                "{fail}  lost, duplicated, misdelivered, unexplained and leaked must be 0, memory bounded\n"
            )
        });
        text
    }
}

type Row = (&'static str, fn(&Counts) -> u64, Ink);

impl Counts {
    const ROWS: [Row; 16] = [
        ("calls", |counts| counts.calls, Ink::Heading),
        ("answered", |counts| counts.answered, Ink::Faint),
        ("dropped", |counts| counts.dropped, Ink::Faint),
        ("gone", |counts| counts.gone, Ink::Faint),
        ("withdrawn", |counts| counts.withdrawn, Ink::Faint),
        ("cut off", |counts| counts.cut_off, Ink::Faint),
        ("reported lost", |counts| counts.reported_lost, Ink::Faint),
        ("lost", |counts| counts.lost, Ink::Heading),
        ("duplicated", |counts| counts.duplicated, Ink::Heading),
        ("misdelivered", |counts| counts.misdelivered, Ink::Heading),
        ("unexplained", |counts| counts.unexplained, Ink::Heading),
        ("leaked descriptors", |counts| counts.leaked_descriptors, Ink::Heading),
        ("max rss, KiB", |counts| counts.max_rss_kib, Ink::Heading),
        ("killed", |counts| counts.killed, Ink::Faint),
        ("handed on", |counts| counts.handed_on, Ink::Faint),
        ("descriptors passed", |counts| counts.descriptors_passed, Ink::Faint),
    ];

    fn of(ended: &Ended) -> Counts {
        let Tally {
            calls,
            answered,
            dropped,
            gone,
            withdrawn,
            cut_off,
            reported_lost,
            lost,
            duplicated,
            misdelivered,
            unexplained,
            killed,
            descriptors_passed,
            handed_on,
        } = ended.tally;
        Counts {
            calls,
            answered,
            dropped,
            gone,
            withdrawn,
            cut_off,
            reported_lost,
            lost,
            duplicated,
            misdelivered,
            unexplained,
            leaked_descriptors: ended.leaked.iter().map(|leak| leak.count).sum(),
            max_rss_kib: ended.max_rss_kib,
            killed,
            handed_on,
            descriptors_passed,
            seconds: (ended.elapsed.as_secs_f64() * 1_000.0).round() / 1_000.0,
        }
    }

    /// Both together; of memory the larger.
    fn and(&self, other: &Counts) -> Counts {
        Counts {
            calls: self.calls + other.calls,
            answered: self.answered + other.answered,
            dropped: self.dropped + other.dropped,
            gone: self.gone + other.gone,
            withdrawn: self.withdrawn + other.withdrawn,
            cut_off: self.cut_off + other.cut_off,
            reported_lost: self.reported_lost + other.reported_lost,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            misdelivered: self.misdelivered + other.misdelivered,
            unexplained: self.unexplained + other.unexplained,
            leaked_descriptors: self.leaked_descriptors + other.leaked_descriptors,
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            killed: self.killed + other.killed,
            handed_on: self.handed_on + other.handed_on,
            descriptors_passed: self.descriptors_passed + other.descriptors_passed,
            seconds: self.seconds + other.seconds,
        }
    }

    fn is_good(&self) -> bool {
        let bad =
            self.lost + self.duplicated + self.misdelivered + self.unexplained + self.leaked_descriptors;
        bad == 0 && self.max_rss_kib <= MEMORY_MAX_KIB
    }
}

impl Leak {
    fn text(&self) -> String {
        let Leak { who, kind, count } = self;
        format!("{who}: {count} of {kind} more than a fresh one")
    }
}

fn row(name: &str, values: impl Iterator<Item = String>, ink: Ink) -> String {
    let name = paint(&format!("{name:<20}"), ink, &io::stdout());
    let values: String = values.map(|value| format!("{value:>14}")).collect();
    format!("{name}{values}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_must_be_nothing_decides() {
        assert!(Counts::default().is_good());
        assert!(Counts { dropped: 1, gone: 1, cut_off: 1, reported_lost: 1, ..Counts::default() }.is_good());
        for bad in [
            Counts { lost: 1, ..Counts::default() },
            Counts { duplicated: 1, ..Counts::default() },
            Counts { misdelivered: 1, ..Counts::default() },
            Counts { unexplained: 1, ..Counts::default() },
            Counts { leaked_descriptors: 1, ..Counts::default() },
            Counts { max_rss_kib: MEMORY_MAX_KIB + 1, ..Counts::default() },
        ] {
            assert!(!bad.is_good(), "{bad:?}");
        }
        assert!(Counts { max_rss_kib: MEMORY_MAX_KIB, ..Counts::default() }.is_good());
    }
}
