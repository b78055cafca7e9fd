//! What became of each call and each descriptor of a run, worked out from the journal alone.
//!
//! It owns the verdict. It remembers eight bytes for each call that was ever made, so that a call or a
//! descriptor that comes a second time is noticed however late it is, and more for those that are under way.
//! It must never ask a party, nor know what time it is: the same journal has the same verdict.

use std::collections::{BTreeMap, HashMap};

use super::journal::{Direction, Ending, Entry, Event, Role, Seen, Tag};

/// Sentences kept of what is wrong; there may be as many as calls.
const SENTENCES_MAX: usize = 20;

/// What is counted. The fields are those of the JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub calls: u64,
    pub answered: u64,
    /// Nobody will answer, the caller was told, and there is a reason.
    pub dropped: u64,
    /// Not seen by anybody, the caller was told, and that is so.
    pub gone: u64,
    /// Withdrawn by the caller.
    pub withdrawn: u64,
    /// Under way when the caller was killed.
    pub cut_off: u64,
    /// Descriptors or memory were short, and whoever had to know was told.
    pub reported_lost: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub misdelivered: u64,
    /// Told otherwise than it was, or for no reason.
    pub unexplained: u64,
    pub killed: u64,
    pub descriptors_passed: u64,
    pub handed_on: u64,
}

/// What a party was left with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    pub kinds: BTreeMap<String, u32>,
    pub peak_kib: u64,
    refused: u64,
    answers_lost: Option<u64>,
}

/// Reads the journal.
pub struct Judge {
    fds: u8,
    lives: BTreeMap<u32, Life>,
    under_way: HashMap<u64, UnderWay>,
    /// How many calls of this client's life, taken by this server's, were told that their answer was lost.
    answers_lost: BTreeMap<(u32, u32), u64>,
    tally: Tally,
    sentences: Vec<String>,
    entries: u64,
}

struct Life {
    role: Role,
    /// The number of the entry.
    started: u64,
    /// The number of the entry that says that it is about to be killed.
    killing: Option<u64>,
    /// The number of the entry, and whether it went well.
    over: Option<(u64, bool)>,
    rest: Option<Rest>,
    /// Of a client: what it has called, by the lower half of the number.
    calls: Vec<Record>,
    /// Of a client: on each of its connections the last life of the server that has taken a call of it.
    served_by: [u32; 3],
}

/// What is remembered of a call for ever.
#[derive(Clone, Copy, Default)]
struct Record {
    flags: u16,
    arguments: u16,
    arguments_of_third: u16,
    answer: u16,
}

const OBJECT_ONE: u16 = 1;
const TAKEN: u16 = 1 << 1;
const HANDING_ON: u16 = 1 << 2;
const TAKEN_BY_THIRD: u16 = 1 << 3;
const ANSWERING: u16 = 1 << 4;
/// Somebody has said that, or why, it will not be answered.
const EXCUSED: u16 = 1 << 5;
const ENDED: u16 = 1 << 6;
/// The caller was told that nobody has seen it.
const UNSEEN: u16 = 1 << 7;
/// The canary was among …
const CANARY_OF_CALL: u16 = 1 << 8;
const CANARY_OF_THIRD: u16 = 1 << 9;
const CANARY_OF_ANSWER: u16 = 1 << 10;
/// By the thread that waits for each answer.
const WAITS: u16 = 1 << 11;

/// On which of its client's connections such a call is made: each notices deaths by itself.
fn connection(flags: u16) -> usize {
    match (flags & OBJECT_ONE != 0, flags & WAITS != 0) {
        (false, false) => 0,
        (true, _) => 1,
        (false, true) => 2,
    }
}

/// What is remembered of a call until it has ended and that is explained.
struct UnderWay {
    /// The number of the entry.
    begun: u64,
    /// Who had served the caller last when it was begun.
    served_by: u32,
    taken_by: Option<u32>,
    answerer: Option<u32>,
    /// It has ended so, in the entry of that number, and nobody knows why yet.
    ending: Option<(Ending, u64)>,
}

impl Judge {
    /// Of a run with so many tagged descriptors in each message.
    pub fn new(fds: u8) -> Judge {
        Judge {
            fds,
            lives: BTreeMap::new(),
            under_way: HashMap::new(),
            answers_lost: BTreeMap::new(),
            tally: Tally::default(),
            sentences: Vec::new(),
            entries: 0,
        }
    }

    /// Takes the next entry.
    pub fn see(&mut self, entry: Entry) {
        self.entries += 1;
        let life = entry.life;
        match entry.event {
            Event::Started { role } => {
                let started = self.entries;
                let (calls, served_by) = (Vec::new(), [0; 3]);
                let new = Life { role, started, killing: None, over: None, rest: None, calls, served_by };
                self.lives.insert(life, new);
            }
            Event::Killing => {
                self.tally.killed += 1;
                if let Some(life) = self.lives.get_mut(&life) {
                    life.killing = Some(self.entries);
                }
            }
            Event::Over { well } => self.over(life, well),
            Event::Begun { call, object, waits } => self.begun(life, call, object, waits),
            Event::Withdrawing { call } => self.withdrawing(call),
            Event::Answered { call, seen, right } => self.answered(call, &seen, right),
            Event::Failed { call, ending, may_have_been_seen, error } => {
                self.failed(call, ending, may_have_been_seen, &error);
            }
            Event::Taken { call, object, seen, right } => self.taken(life, call, object, &seen, right),
            Event::HandTaken { call, seen, right } => self.taken_by_third(call, &seen, right),
            Event::HandingOn { call } => {
                self.tally.handed_on += 1;
                self.flag(call, HANDING_ON);
            }
            Event::LettingGo { call } | Event::ErrandFailed { call } | Event::NotAnswered { call } => {
                self.excused(call);
            }
            Event::Answering { call } => self.answering(life, call),
            Event::AtRest { kinds, peak_kib, refused, answers_lost } => {
                if let Some(life) = self.lives.get_mut(&life) {
                    life.rest = Some(Rest { kinds, peak_kib, refused, answers_lost });
                }
            }
            Event::Trouble { sentence } => self.trouble(sentence),
        }
    }

    /// How many entries there were: as long as it grows something happens.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What is counted so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many calls this life has begun.
    pub fn calls_of(&self, life: u32) -> u64 {
        self.lives.get(&life).map_or(0, |life| life.calls.len() as u64)
    }

    /// Whether nothing of this life will come any more.
    pub fn is_over(&self, life: u32) -> bool {
        self.lives.get(&life).is_some_and(|life| life.over.is_some())
    }

    /// What a life has let go of everything with, if it has.
    pub fn rest(&self, life: u32) -> Option<&Rest> {
        self.lives.get(&life).and_then(|life| life.rest.as_ref())
    }

    /// Something is wrong that no call can be blamed for.
    pub fn trouble(&mut self, sentence: String) {
        self.tally.unexplained += 1;
        self.say(sentence);
    }

    /// What is left unsaid when nobody will say anything any more, and the sentences about what is wrong.
    pub fn end(mut self) -> (Tally, Vec<String>) {
        self.hear_servers_out();
        let mut refused: HashMap<u32, u64> = HashMap::new();
        for (number, life) in &self.lives {
            refused.insert(*number, life.rest.as_ref().map_or(0, |rest| rest.refused));
        }
        let mut left: Vec<(u64, UnderWay)> = self.under_way.drain().collect();
        left.sort_by_key(|(call, _)| *call);
        for (call, under_way) in left {
            if self.is_explained(call, &under_way) {
                continue;
            }
            let told_by_kernel =
                under_way.answerer.and_then(|life| refused.get_mut(&life)).filter(|count| **count > 0);
            match (under_way.ending.map(|(ending, _)| ending), told_by_kernel) {
                // The kernel did not take the answer: the caller was told, and the answerer has counted it.
                (Some(Ending::Dropped), Some(count)) => {
                    *count -= 1;
                    self.tally.dropped -= 1;
                    self.tally.reported_lost += 1;
                }
                (Some(Ending::Dropped), None) => {
                    self.tally.dropped -= 1;
                    self.tally.lost += 1;
                    self.complain(call, "was dropped by nobody");
                }
                (Some(_), _) => {
                    self.tally.unexplained += 1;
                    self.complain(call, "is told to be gone, and nobody has died of whom that could be so");
                }
                (None, _) => {
                    self.tally.lost += 1;
                    self.complain(call, "has never ended");
                }
            }
        }
        (self.tally, self.sentences)
    }

    /// Of each answer that was lost its server is told by the client, unless one of them has been killed.
    fn hear_servers_out(&mut self) {
        let mut told: BTreeMap<u32, u64> = BTreeMap::new();
        for ((client, server), count) in std::mem::take(&mut self.answers_lost) {
            if self.lives.get(&client).is_some_and(|client| client.killing.is_none()) {
                *told.entry(server).or_default() += count;
            }
        }
        for (server, told) in told {
            let Some(life) = self.lives.get(&server) else { continue };
            let Some(heard) = life.rest.as_ref().and_then(|rest| rest.answers_lost) else { continue };
            let unheard = told.saturating_sub(heard);
            if unheard > 0 {
                let sentence =
                    format!("{} (life {server}) was not told of {unheard} lost answers", life.role);
                self.tally.lost += unheard;
                self.say(sentence);
            }
        }
    }

    // -- what happens -------------------------------------------------------------------------------------

    fn over(&mut self, number: u32, well: bool) {
        let entries = self.entries;
        let Some(life) = self.lives.get_mut(&number) else { return };
        life.over = Some((entries, well));
        let (role, killing) = (life.role, life.killing);
        if killing.is_none() && !well {
            self.trouble(format!("{role} (life {number}) has ended by itself, and not well"));
        }
        let before = self.under_way.len();
        // What has ended is kept until it is explained; what has not is known to nobody any more.
        self.under_way.retain(|call, under_way| life_of(*call) != number || under_way.ending.is_some());
        self.tally.cut_off += (before - self.under_way.len()) as u64;
    }

    fn begun(&mut self, number: u32, call: u64, object: u8, waits: bool) {
        let Some(life) = self.lives.get_mut(&number) else { return };
        if life_of(call) != number || call_of(call) != life.calls.len() {
            return self.trouble(format!("call {call:#x} of life {number} comes out of order"));
        }
        let flags = if object == 1 { OBJECT_ONE } else { 0 } | if waits { WAITS } else { 0 };
        life.calls.push(Record { flags, ..Record::default() });
        self.tally.calls += 1;
        let served_by = life.served_by[connection(flags)];
        let begun = self.entries;
        let under_way = UnderWay { begun, served_by, taken_by: None, answerer: None, ending: None };
        self.under_way.insert(call, under_way);
    }

    fn withdrawing(&mut self, call: u64) {
        if self.ends(call) {
            self.tally.withdrawn += 1;
            self.under_way.remove(&call);
        }
    }

    fn answered(&mut self, call: u64, seen: &[Seen], right: bool) {
        if !self.ends(call) {
            return;
        }
        self.under_way.remove(&call);
        self.tally.answered += 1;
        let flags = self.record(call).map_or(0, |record| record.flags);
        let handed_on = flags & HANDING_ON != 0;
        if !right {
            self.misdelivered(call, "was answered with other bytes than its own");
        } else if flags & TAKEN == 0 || flags & ANSWERING == 0 || (handed_on && flags & TAKEN_BY_THIRD == 0) {
            self.misdelivered(call, "was answered by nobody who had it");
        }
        self.descriptors(call, Direction::Answer, seen, CANARY_OF_ANSWER);
    }

    fn failed(&mut self, call: u64, ending: Ending, may_have_been_seen: bool, error: &str) {
        if !self.ends(call) {
            return;
        }
        if !may_have_been_seen {
            if self.record(call).is_some_and(|record| record.flags & TAKEN != 0) {
                self.unexplained(call, "is told not to have been seen, and was taken");
            }
            self.flag(call, UNSEEN);
        }
        match ending {
            Ending::Dropped => self.tally.dropped += 1,
            Ending::Gone => self.tally.gone += 1,
            Ending::Lost => self.tally.reported_lost += 1,
            Ending::AnswerLost => {
                self.tally.reported_lost += 1;
                match self.under_way.get(&call).and_then(|under_way| under_way.taken_by) {
                    Some(server) => *self.answers_lost.entry((life_of(call), server)).or_default() += 1,
                    None => self.unexplained(call, "has lost an answer of nobody's"),
                }
            }
            Ending::Other => self.unexplained(call, &format!("ended otherwise than it can: {error}")),
        }
        let is_to_explain = matches!(ending, Ending::Dropped | Ending::Gone);
        if let Some(mut under_way) = self.under_way.remove(&call)
            && is_to_explain
        {
            under_way.ending = Some((ending, self.entries));
            if !self.is_explained(call, &under_way) {
                self.under_way.insert(call, under_way);
            }
        }
    }

    fn taken(&mut self, server: u32, call: u64, object: u8, seen: &[Seen], right: bool) {
        if let Some(flags) = self.record(call).map(|record| record.flags)
            && let Some(client) = self.lives.get_mut(&life_of(call))
        {
            client.served_by[connection(flags)] = server;
        }
        if let Some(under_way) = self.under_way.get_mut(&call) {
            under_way.taken_by = Some(server);
        }
        let Some(record) = self.record(call) else {
            return self.misdelivered(call, "was taken, and nobody has made it");
        };
        let flags = record.flags;
        record.flags |= TAKEN;
        if flags & TAKEN != 0 {
            self.duplicated(call, "was taken twice");
        }
        if !right {
            self.misdelivered(call, "arrived with other bytes than its own");
        }
        if (flags & OBJECT_ONE != 0) != (object == 1) {
            self.misdelivered(call, "arrived at another object");
        }
        if flags & UNSEEN != 0 {
            self.unexplained(call, "was taken after it was told that nobody has seen it");
        }
        self.descriptors(call, Direction::Argument, seen, CANARY_OF_CALL);
    }

    fn taken_by_third(&mut self, call: u64, seen: &[Seen], right: bool) {
        let Some(record) = self.record(call) else {
            return self.misdelivered(call, "was handed on, and nobody has made it");
        };
        let flags = record.flags;
        record.flags |= TAKEN_BY_THIRD;
        if flags & TAKEN_BY_THIRD != 0 {
            self.duplicated(call, "was handed on twice");
        }
        if !right || flags & HANDING_ON == 0 {
            self.misdelivered(call, "arrived at a third party without having been handed on to it");
        }
        self.descriptors(call, Direction::Argument, seen, CANARY_OF_THIRD);
    }

    fn answering(&mut self, life: u32, call: u64) {
        let Some(record) = self.record(call) else {
            return self.misdelivered(call, "is answered, and nobody has made it");
        };
        let flags = record.flags;
        record.flags |= ANSWERING;
        if flags & ANSWERING != 0 {
            self.duplicated(call, "is answered twice");
        }
        if let Some(under_way) = self.under_way.get_mut(&call) {
            under_way.answerer = Some(life);
        }
    }

    fn excused(&mut self, call: u64) {
        self.flag(call, EXCUSED);
        let is_dropped = |under_way: &UnderWay| matches!(under_way.ending, Some((Ending::Dropped, _)));
        if self.under_way.get(&call).is_some_and(is_dropped) {
            self.under_way.remove(&call);
        }
    }

    /// The descriptors of a message: those of this call, in their order, each for the first time, and the
    /// canary behind them. `third` has the same descriptors that the server had before.
    fn descriptors(&mut self, call: u64, direction: Direction, seen: &[Seen], canary: u16) {
        self.tally.descriptors_passed += seen.len() as u64;
        if self.fds == 0 {
            if !seen.is_empty() {
                self.misdelivered(call, "has descriptors that nobody sent");
            }
            return;
        }
        for (place, seen) in seen.iter().enumerate() {
            match seen {
                Seen::Tagged(tag) => self.descriptor(call, direction, place, *tag, canary),
                Seen::Canary => {
                    let Some(record) = self.record(call) else { continue };
                    let before = record.flags;
                    record.flags |= canary;
                    if before & canary != 0 {
                        self.duplicated(call, "has its last descriptor twice");
                    }
                }
                Seen::Strange => self.misdelivered(call, "has a descriptor that nobody sent"),
            }
        }
        let all = ((1_u32 << self.fds) - 1) as u16;
        let Some(record) = self.record(call) else { return };
        let missing = (all & !*record.mask(direction, canary)).count_ones() as u64;
        let missing = missing + u64::from(record.flags & canary == 0);
        if missing > 0 {
            self.tally.lost += missing;
            self.complain(call, &format!("has lost {missing} descriptors, and nobody was told"));
        }
    }

    fn descriptor(&mut self, call: u64, direction: Direction, place: usize, tag: Tag, canary: u16) {
        let is_own = tag.call == call && tag.direction == direction && tag.index < self.fds;
        if !is_own || usize::from(tag.index) != place {
            self.misdelivered(call, &format!("has {tag:?} at place {place}"));
        }
        if !is_own {
            return;
        }
        let Some(record) = self.record(call) else { return };
        let mask = record.mask(direction, canary);
        let before = *mask;
        *mask |= 1 << tag.index;
        if before & 1 << tag.index != 0 {
            self.duplicated(call, &format!("has {tag:?} twice"));
        }
    }

    // -- what is known ------------------------------------------------------------------------------------

    /// A call that was dropped has a reason: somebody let go of it, or somebody who had it was killed, after
    /// it was begun and before it ended. One that nobody took, as one that is gone, may also have been said
    /// to somebody who was dead already: the caller notices a death when it speaks, and until then all that
    /// is known of it is who has served it last, and that it is not somebody before that.
    fn is_explained(&mut self, call: u64, under_way: &UnderWay) -> bool {
        let Some((ending, ended)) = under_way.ending else { return false };
        let flags = self.record(call).map_or(0, |record| record.flags);
        if ending == Ending::Dropped && flags & EXCUSED != 0 {
            return true;
        }
        let object = u8::from(flags & OBJECT_ONE != 0);
        let started = self.lives.get(&life_of(call)).map_or(0, |client| client.started);
        let could_end_it = |number: u32, life: &Life| {
            let ended_after = |moment| life.over.is_none_or(|(over, _)| over > moment);
            let meanwhile = ended_after(under_way.begun);
            let unnoticed = flags & TAKEN == 0 && number >= under_way.served_by && ended_after(started);
            match life.role {
                Role::Server(index) => index == object && (meanwhile || unnoticed),
                Role::Third(_) => ending == Ending::Dropped && flags & HANDING_ON != 0 && meanwhile,
                Role::Client(_) | Role::Introducer => false,
            }
        };
        let killed_before = |life: &Life| life.killing.is_some_and(|killing| killing < ended);
        // The latest first: of a long run only the last lives matter.
        self.lives.iter().rev().any(|(number, life)| killed_before(life) && could_end_it(*number, life))
    }

    /// Marks a call as ended. False for one that has ended before, or that was never made.
    fn ends(&mut self, call: u64) -> bool {
        let Some(record) = self.record(call) else {
            self.misdelivered(call, "has ended, and nobody has made it");
            return false;
        };
        let before = record.flags;
        record.flags |= ENDED;
        if before & ENDED != 0 {
            self.duplicated(call, "has ended twice");
        }
        before & ENDED == 0
    }

    fn record(&mut self, call: u64) -> Option<&mut Record> {
        self.lives.get_mut(&life_of(call)).and_then(|life| life.calls.get_mut(call_of(call)))
    }

    fn flag(&mut self, call: u64, flag: u16) {
        match self.record(call) {
            Some(record) => record.flags |= flag,
            None => self.misdelivered(call, "is nobody's"),
        }
    }

    fn misdelivered(&mut self, call: u64, what: &str) {
        self.tally.misdelivered += 1;
        self.complain(call, what);
    }

    fn duplicated(&mut self, call: u64, what: &str) {
        self.tally.duplicated += 1;
        self.complain(call, what);
    }

    fn unexplained(&mut self, call: u64, what: &str) {
        self.tally.unexplained += 1;
        self.complain(call, what);
    }

    fn complain(&mut self, call: u64, what: &str) {
        let (life, number) = (life_of(call), call_of(call));
        let who = self.lives.get(&life).map_or("nobody".to_string(), |life| life.role.to_string());
        self.say(format!("call {number} of {who} (life {life}) {what}"));
    }

    fn say(&mut self, sentence: String) {
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(sentence);
        }
    }
}

impl Record {
    fn mask(&mut self, direction: Direction, canary: u16) -> &mut u16 {
        match (direction, canary) {
            (Direction::Answer, _) => &mut self.answer,
            (Direction::Argument, CANARY_OF_THIRD) => &mut self.arguments_of_third,
            (Direction::Argument, _) => &mut self.arguments,
        }
    }
}

/// The number of a call: who makes it, and which of its calls it is.
pub fn call_number(life: u32, call: u32) -> u64 {
    u64::from(life) << 32 | u64::from(call)
}

fn life_of(call: u64) -> u32 {
    (call >> 32) as u32
}

fn call_of(call: u64) -> usize {
    call as u32 as usize
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
