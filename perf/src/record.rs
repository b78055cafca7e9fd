//! Results that are kept: what was measured, where and when, in a file of their own.
//!
//! It owns the form of these files and which of them is the newest. It does not know what becomes of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::row::Row;
use crate::surroundings::Surroundings;

/// Where records lie, from the root of the checkout.
pub const DIRECTORY: &str = "perf/record";

/// The rows of one suite on the same CPUs, and what they were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of all rows.
    pub suite: String,
    /// Of all rows.
    pub cpus: String,
    /// Where and when.
    pub surroundings: Surroundings,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// Why rows are no record, or a file has none.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The kernel's.
        error: io::Error,
    },
    /// It is not what `sendright bench --json` prints, or not a record.
    #[error("{what}: {error}")]
    Malformed {
        /// Which text.
        what: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// No rows.
    #[error("there is not a single row")]
    Empty,
    /// Rows that were not measured together.
    #[error("rows of {0} and of {1} are not of one record")]
    Mixed(String, String),
}

impl Record {
    /// What `sendright bench --json` printed, here and now.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn here(json: &str) -> Result<Record, RecordError> {
        let rows: Vec<Row> = serde_json::from_str(json)
            .map_err(|error| RecordError::Malformed { what: "standard input".to_owned(), error })?;
        Record::of(rows, Surroundings::now())
    }

    /// These rows, measured there and then.
    ///
    /// # Errors
    /// [`RecordError::Empty`] and [`RecordError::Mixed`].
    pub fn of(rows: Vec<Row>, surroundings: Surroundings) -> Result<Record, RecordError> {
        let Some(first) = rows.first() else { return Err(RecordError::Empty) };
        let named = |row: &Row| format!("{} on CPU {}", row.suite, row.cpus);
        let (suite, cpus) = (first.suite.clone(), first.cpus.clone());
        match rows.iter().find(|row| (&row.suite, &row.cpus) != (&suite, &cpus)) {
            Some(other) => Err(RecordError::Mixed(named(first), named(other))),
            None => Ok(Record { suite, cpus, surroundings, rows }),
        }
    }

    /// Whether each side had a CPU for itself.
    pub fn is_apart(&self) -> bool {
        self.cpus.contains(',')
    }

    /// The name of its file: of one day the last one is kept.
    pub fn file_name(&self) -> String {
        let cpus = if self.is_apart() { "two-cpus" } else { "one-cpu" };
        format!("{}-{}-{cpus}.json", self.surroundings.day(), self.suite)
    }

    /// As it lies in its file: a line for each row, so that two records can be compared line by line.
    ///
    /// # Errors
    /// None that a record can bring about.
    pub fn to_text(&self) -> serde_json::Result<String> {
        let rows = self.rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let (suite, cpus) = (serde_json::to_string(&self.suite)?, serde_json::to_string(&self.cpus)?);
        let surroundings = serde_json::to_string(&self.surroundings)?;
        let (head, rows) = (format!("\"suite\":{suite},\"cpus\":{cpus}"), rows.join(",\n"));
        Ok(format!("{{{head},\n\"surroundings\":{surroundings},\n\"rows\":[\n{rows}\n]}}\n"))
    }

    /// Writes it into a directory of records: the path of its file.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn keep_in(&self, directory: &Path) -> Result<PathBuf, RecordError> {
        let path = directory.join(self.file_name());
        let failed = |error| RecordError::File { path: path.clone(), error };
        let text = self.to_text().map_err(|error| failed(error.into()))?;
        fs::create_dir_all(directory).and_then(|()| fs::write(&path, text)).map_err(failed)?;
        Ok(path)
    }
}

/// The newest record of each suite, on one CPU and on two.
#[derive(Clone, Debug, Default)]
pub struct Records(Vec<Record>);

impl Records {
    /// Those in a directory, which need not exist.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn read(directory: &Path) -> Result<Records, RecordError> {
        let mut all = Vec::new();
        let Ok(files) = fs::read_dir(directory) else { return Ok(Records::default()) };
        for file in files.flatten() {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text =
                fs::read_to_string(&path).map_err(|error| RecordError::File { path: path.clone(), error })?;
            let record: Record = serde_json::from_str(&text)
                .map_err(|error| RecordError::Malformed { what: path.display().to_string(), error })?;
            all.push(record);
        }
        Ok(Records::of(all))
    }

    /// The newest of these.
    pub fn of(mut all: Vec<Record>) -> Records {
        all.sort_by(|one, other| other.surroundings.date.cmp(&one.surroundings.date));
        let mut newest: Vec<Record> = Vec::new();
        for record in all {
            let is_known =
                |known: &Record| known.suite == record.suite && known.is_apart() == record.is_apart();
            if !newest.iter().any(is_known) {
                newest.push(record);
            }
        }
        Records(newest)
    }

    /// That of a suite.
    pub fn find(&self, suite: &str, is_apart: bool) -> Option<&Record> {
        self.0.iter().find(|record| record.suite == suite && record.is_apart() == is_apart)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn row(suite: &str, name: &str, way: &str, driver: &str, p50_ns: u64) -> Row {
        Row {
            suite: suite.to_owned(),
            name: name.to_owned(),
            driver: driver.to_owned(),
            way: way.to_owned(),
            client: if way == "raw" { "blocking" } else { "async" }.to_owned(),
            wait: "sleep".to_owned(),
            cpus: "0".to_owned(),
            depth: 1,
            payload: 64,
            fds: 0,
            p50_ns,
            p99_ns: p50_ns * 2,
            p999_ns: p50_ns * 3,
            p9999_ns: p50_ns * 4,
            max_ns: p50_ns * 5,
            calls_per_s: 1e9 / p50_ns as f64,
            floor_p50_ns: 10_000,
            ratio: p50_ns as f64 / 10_000.0,
        }
    }

    pub(crate) fn surroundings(date: &str) -> Surroundings {
        Surroundings { date: date.to_owned(), commit: "0123456789".to_owned(), ..Surroundings::now() }
    }

    pub(crate) fn record(date: &str, p50_ns: u64) -> Record {
        let rows = vec![
            row("quick", "raw ping-pong", "raw", "none", 10_000),
            row("quick", "session call", "session", "uring", p50_ns),
            row("quick", "session call", "session", "epoll", p50_ns + 1_000),
        ];
        Record::of(rows, surroundings(date)).unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_kept() {
        let directory = tempfile::tempdir().unwrap();
        let record = record("2026-11-21T12:00:00Z", 12_000);
        let path = record.keep_in(&directory.path().join("new")).unwrap();
        assert!(path.ends_with("2026-11-21-quick-one-cpu.json"), "{}", path.display());
        let records = Records::read(&directory.path().join("new")).unwrap();
        assert_eq!(records.find("quick", false), Some(&record));
        assert_eq!(records.find("quick", true), None);
    }

    #[test]
    fn the_newest_of_each_counts() {
        let records = ["2026-11-21T12:00:00Z", "2026-11-22T07:00:00Z", "2026-11-20T23:00:00Z"];
        let records = Records::of(records.map(|date| record(date, 12_000)).into());
        assert_eq!(records.find("quick", false).unwrap().surroundings.day(), "2026-11-22");
    }

    #[test]
    fn what_was_not_measured_together_is_no_record() {
        let mut rows = record("2026-11-21T12:00:00Z", 12_000).rows;
        rows[1].suite = "pairs".to_owned();
        let error = Record::of(rows, surroundings("2026-11-21T12:00:00Z")).unwrap_err();
        assert_eq!(error.to_string(), "rows of quick on CPU 0 and of pairs on CPU 0 are not of one record");
        assert!(matches!(Record::here("[]"), Err(RecordError::Empty)));
        assert!(matches!(Record::here("not measured"), Err(RecordError::Malformed { .. })));
    }

    #[test]
    fn where_nothing_was_recorded_there_is_nothing() {
        assert!(Records::read(Path::new("/nowhere/at/all")).unwrap().is_empty());
    }
}
