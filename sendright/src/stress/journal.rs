//! What the parties of a stress run write down, before and after each step, and how it is written.
//!
//! It owns the entries and their form, a line of JSON each, in a pipe that all parties and the judging
//! process write to. What is in the pipe survives whoever wrote it: a party that is killed takes nothing
//! along, and no line is ever torn, because the kernel takes so few bytes whole or not at all. The order in
//! the pipe is the order for everybody. It must never know what an entry means.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// What the kernel writes to a pipe whole or not at all.
const LINE_BYTES_MAX: usize = 4_096;

/// The longest sentence in an entry, in bytes; what is beyond is cut.
const SENTENCE_BYTES_MAX: usize = 500;

/// A process of the run has a role, and many lives in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    Client(u8),
    Server(u8),
    Third(u8),
    Introducer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Client(index) => write!(f, "client {index}"),
            Role::Server(index) => write!(f, "server {index}"),
            Role::Third(index) => write!(f, "third party {index}"),
            Role::Introducer => f.write_str("introduction server"),
        }
    }
}

/// Which way a descriptor of a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    Argument,
    Answer,
}

/// Who a descriptor is: nobody but the one that was made for this place in this message has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub call: u64,
    pub direction: Direction,
    pub index: u8,
}

/// What a descriptor that arrived turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    Tagged(Tag),
    /// The writing end of the pipe by which the last of everything is noticed to be gone.
    Canary,
    /// Nothing that a party sends.
    Strange,
}

/// How a call ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    Dropped,
    Gone,
    /// Descriptors or memory were short somewhere, and it was told.
    Lost,
    /// Descriptors of the answer were lost, and the caller was told.
    AnswerLost,
    /// Nothing in a run should lead to that.
    Other,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    // Of the judging process, about a life.
    Started {
        role: Role,
    },
    /// It is about to be killed.
    Killing,
    /// It has ended: nothing that it wrote comes after this.
    Over {
        well: bool,
    },

    // Of a client. The first is written before the call is made.
    Begun {
        call: u64,
        object: u8,
        /// By the thread that waits for each answer, which has a connection of its own.
        waits: bool,
    },
    Withdrawing {
        call: u64,
    },
    Answered {
        call: u64,
        seen: Vec<Seen>,
        right: bool,
    },
    Failed {
        call: u64,
        ending: Ending,
        may_have_been_seen: bool,
        error: String,
    },

    // Of a server. All but the first and the last are written before it is done.
    Taken {
        call: u64,
        object: u8,
        seen: Vec<Seen>,
        right: bool,
    },
    LettingGo {
        call: u64,
    },
    HandingOn {
        call: u64,
    },
    ErrandFailed {
        call: u64,
    },

    // Of a third party.
    HandTaken {
        call: u64,
        seen: Vec<Seen>,
        right: bool,
    },

    // Of whoever answers; the first before it does.
    Answering {
        call: u64,
    },
    NotAnswered {
        call: u64,
    },

    // Of every party.
    /// It has let go of everything. `kinds` is what is open all the same, `refused` how many last messages
    /// the kernel did not take, `answers_lost` how many of its answers a server of sessions was told to be
    /// lost.
    AtRest {
        kinds: BTreeMap<String, u32>,
        peak_kib: u64,
        refused: u64,
        answers_lost: Option<u64>,
    },
    Trouble {
        sentence: String,
    },
}

/// An event and in which life it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub life: u32,
    pub event: Event,
}

/// Where entries are written.
pub struct Journal {
    pipe: io::PipeWriter,
}

impl Journal {
    /// Of the writing end.
    pub fn new(pipe: OwnedFd) -> Journal {
        Journal { pipe: pipe.into() }
    }

    /// Writes it down, waiting for the reader if it is behind. An error is the reader's end.
    pub fn write(&self, life: u32, event: Event) -> io::Result<()> {
        let line = line(&Entry { life, event: within_limits(event) });
        assert!(line.len() <= LINE_BYTES_MAX, "an entry is written whole");
        (&self.pipe).write_all(&line)
    }
}

/// The entry as a line.
fn line(entry: &Entry) -> Vec<u8> {
    // Plain enums of numbers and strings: writing them into memory cannot fail.
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The entry of a line.
pub fn entry(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

fn within_limits(event: Event) -> Event {
    let cut = |text: String| {
        let end = (0..=text.len().min(SENTENCE_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
        text[..end.unwrap_or(0)].to_owned()
    };
    match event {
        Event::Failed { call, ending, may_have_been_seen, error } => {
            Event::Failed { call, ending, may_have_been_seen, error: cut(error) }
        }
        Event::Trouble { sentence } => Event::Trouble { sentence: cut(sentence) },
        event => event,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let journal = Journal::new(OwnedFd::from(writer));
        let tag = Tag { call: 1 << 40, direction: Direction::Answer, index: 3 };
        let seen = vec![Seen::Tagged(tag), Seen::Canary, Seen::Strange];
        let events = [
            Event::Started { role: Role::Server(1) },
            Event::Taken { call: 7, object: 1, seen, right: true },
            Event::Over { well: false },
        ];
        for event in &events {
            journal.write(9, event.clone()).unwrap();
        }
        drop(journal);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        let read: Vec<Entry> = text.split_inclusive(|byte| *byte == b'\n').filter_map(entry).collect();
        assert_eq!(read, events.map(|event| Entry { life: 9, event }));
    }

    #[test]
    fn the_longest_entry_is_written_whole() {
        let tag = Tag { call: u64::MAX, direction: Direction::Argument, index: u8::MAX };
        let seen = vec![Seen::Tagged(tag); usize::from(super::super::FDS_MAX) + 1];
        let taken = Event::Taken { call: u64::MAX, object: 1, seen, right: false };
        // In JSON a control character takes six bytes.
        let long = Event::Trouble { sentence: "\u{1}".repeat(SENTENCE_BYTES_MAX * 2) };
        for event in [taken, long] {
            let entry = Entry { life: u32::MAX, event: within_limits(event) };
            assert!(line(&entry).len() <= LINE_BYTES_MAX, "{}", line(&entry).len());
        }
    }
}
