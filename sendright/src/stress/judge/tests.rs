//! Journals that were made up, so that what the judge must notice is in them.
#![allow(clippy::unwrap_used)]

use super::*;

const CLIENT: u32 = 1;
const SERVER: u32 = 2;
const THIRD: u32 = 3;
const CALL: u64 = (CLIENT as u64) << 32;

/// A run with one tagged descriptor in each message, and a party of each kind.
fn judge() -> Judge {
    let mut judge = Judge::new(1);
    let roles = [(CLIENT, Role::Client(0)), (SERVER, Role::Server(0)), (THIRD, Role::Third(0))];
    for (life, role) in roles {
        judge.see(Entry { life, event: Event::Started { role } });
    }
    judge
}

fn tell(judge: &mut Judge, story: impl IntoIterator<Item = (u32, Event)>) {
    story.into_iter().for_each(|(life, event)| judge.see(Entry { life, event }));
}

fn told(story: impl IntoIterator<Item = (u32, Event)>) -> (Tally, Vec<String>) {
    let mut judge = judge();
    tell(&mut judge, story);
    judge.end()
}

fn tag(call: u64, direction: Direction) -> Seen {
    Seen::Tagged(Tag { call, direction, index: 0 })
}

fn begun() -> (u32, Event) {
    (CLIENT, Event::Begun { call: CALL, object: 0, waits: false })
}

fn taken() -> (u32, Event) {
    taken_with(vec![tag(CALL, Direction::Argument), Seen::Canary])
}

fn taken_with(seen: Vec<Seen>) -> (u32, Event) {
    (SERVER, Event::Taken { call: CALL, object: 0, seen, right: true })
}

fn answering() -> (u32, Event) {
    (SERVER, Event::Answering { call: CALL })
}

fn answered() -> (u32, Event) {
    answered_with(vec![tag(CALL, Direction::Answer), Seen::Canary])
}

fn answered_with(seen: Vec<Seen>) -> (u32, Event) {
    (CLIENT, Event::Answered { call: CALL, seen, right: true })
}

fn failed(ending: Ending) -> (u32, Event) {
    let may_have_been_seen = ending != Ending::Gone;
    (CLIENT, Event::Failed { call: CALL, ending, may_have_been_seen, error: String::new() })
}

fn good(tally: &Tally) -> bool {
    tally.lost + tally.duplicated + tally.misdelivered + tally.unexplained == 0
}

#[track_caller]
fn complains(story: impl IntoIterator<Item = (u32, Event)>, what: &str) -> Tally {
    let (tally, sentences) = told(story);
    assert!(sentences.iter().any(|sentence| sentence.contains(what)), "{sentences:?}");
    assert!(!good(&tally), "{tally:?}");
    tally
}

#[test]
fn a_call_that_is_answered_once_is_good() {
    let (tally, sentences) = told([begun(), taken(), answering(), answered()]);
    assert_eq!((tally.calls, tally.answered, tally.descriptors_passed), (1, 1, 4));
    assert!(good(&tally) && sentences.is_empty(), "{sentences:?}");
}

#[test]
fn a_call_that_is_handed_on_is_good() {
    let handing_on = (SERVER, Event::HandingOn { call: CALL });
    let seen = vec![tag(CALL, Direction::Argument), Seen::Canary];
    let hand_taken = (THIRD, Event::HandTaken { call: CALL, seen, right: true });
    let answering = (THIRD, Event::Answering { call: CALL });
    let (tally, sentences) = told([begun(), taken(), handing_on, hand_taken, answering, answered()]);
    assert_eq!((tally.answered, tally.handed_on), (1, 1));
    assert!(good(&tally), "{sentences:?}");
}

#[test]
fn a_call_that_never_ends_is_lost() {
    assert_eq!(complains([begun()], "never ended").lost, 1);
    assert_eq!(complains([begun(), taken(), answering()], "never ended").lost, 1);
}

#[test]
fn a_call_whose_caller_was_killed_is_cut_off() {
    let killed = [(CLIENT, Event::Killing), (CLIENT, Event::Over { well: false })];
    let (tally, _) = told([begun(), taken()].into_iter().chain(killed));
    assert_eq!((tally.cut_off, tally.killed), (1, 1));
    assert!(good(&tally));
}

#[test]
fn who_ends_by_itself_is_told() {
    let tally = complains([(SERVER, Event::Over { well: false })], "server 0 (life 2) has ended by itself");
    assert_eq!(tally.unexplained, 1);
    assert!(good(&told([(SERVER, Event::Over { well: true })]).0));
}

#[test]
fn a_call_dropped_by_nobody_is_lost() {
    let story = [begun(), taken(), answering(), failed(Ending::Dropped)];
    let tally = complains(story, "was dropped by nobody");
    assert_eq!((tally.lost, tally.dropped), (1, 0));
}

#[test]
fn a_call_that_was_let_go_of_is_dropped_whoever_is_heard_first() {
    let letting_go = (SERVER, Event::LettingGo { call: CALL });
    let (tally, _) = told([begun(), taken(), letting_go, failed(Ending::Dropped)]);
    assert_eq!((tally.dropped, good(&tally)), (1, true));
    let errand_failed = (SERVER, Event::ErrandFailed { call: CALL });
    let (tally, _) = told([begun(), taken(), failed(Ending::Dropped), errand_failed]);
    assert_eq!((tally.dropped, good(&tally)), (1, true));
}

#[test]
fn a_death_excuses_only_the_calls_that_it_could_end() {
    let death = || [(SERVER, Event::Killing), (SERVER, Event::Over { well: false })];
    let during = [begun(), taken()].into_iter().chain(death()).chain([failed(Ending::Dropped)]);
    assert!(good(&told(during).0));
    let heard_early =
        [begun(), taken(), (SERVER, Event::Killing), failed(Ending::Dropped)].into_iter().chain(death());
    assert!(good(&told(heard_early).0));
    let before = || death().into_iter().chain([begun()]);
    complains(before().chain([taken(), failed(Ending::Dropped)]), "was dropped by nobody");
    // Said to the dead, before that was noticed.
    assert!(good(&told(before().chain([failed(Ending::Dropped)])).0));
    let somebody_else = [begun(), taken(), (THIRD, Event::Killing), failed(Ending::Dropped)];
    complains(somebody_else, "was dropped by nobody");
}

#[test]
fn who_was_served_by_another_since_says_nothing_to_the_dead() {
    let second = CALL + 1;
    let next = SERVER + 10;
    let seen = || vec![tag(CALL, Direction::Argument), Seen::Canary];
    let story = [
        (SERVER, Event::Killing),
        (SERVER, Event::Over { well: false }),
        (next, Event::Started { role: Role::Server(0) }),
        begun(),
        (next, Event::Taken { call: CALL, object: 0, seen: seen(), right: true }),
        (next, Event::Answering { call: CALL }),
        answered(),
        (CLIENT, Event::Begun { call: second, object: 0, waits: false }),
        (
            CLIENT,
            Event::Failed {
                call: second,
                ending: Ending::Dropped,
                may_have_been_seen: true,
                error: String::new(),
            },
        ),
    ];
    assert_eq!(complains(story, "call 1 of client 0 (life 1) was dropped by nobody").lost, 1);
}

#[test]
fn what_the_kernel_refused_and_the_answerer_counted_is_reported() {
    let story = [begun(), taken(), answering(), failed(Ending::Dropped), at_rest(1, None)];
    let (tally, _) = told(story);
    assert_eq!((tally.reported_lost, tally.dropped, good(&tally)), (1, 0, true));
}

fn at_rest(refused: u64, answers_lost: Option<u64>) -> (u32, Event) {
    (SERVER, Event::AtRest { kinds: BTreeMap::new(), peak_kib: 0, refused, answers_lost })
}

#[test]
fn of_an_answer_that_was_lost_both_sides_hear() {
    let story = |heard| [begun(), taken(), answering(), failed(Ending::AnswerLost), at_rest(0, heard)];
    // Who is served plainly is told nothing.
    for heard in [Some(1), Some(2), None] {
        let (tally, _) = told(story(heard));
        assert_eq!((tally.reported_lost, good(&tally)), (1, true), "{heard:?}");
    }
    let unheard = complains(story(Some(0)), "server 0 (life 2) was not told of 1 lost answers");
    assert_eq!((unheard.reported_lost, unheard.lost), (1, 1));
    complains([begun(), failed(Ending::AnswerLost)], "has lost an answer of nobody's");
}

#[test]
fn whoever_is_killed_need_not_have_told_of_a_lost_answer() {
    let lost = || [begun(), taken(), answering(), failed(Ending::AnswerLost)].into_iter();
    let (tally, _) = told(lost().chain([(CLIENT, Event::Killing), at_rest(0, Some(0))]));
    assert!(good(&tally), "{tally:?}");
    let (tally, _) = told(lost().chain([(SERVER, Event::Killing)]));
    assert!(good(&tally), "{tally:?}");
}

#[test]
fn gone_needs_a_death_and_that_nobody_has_seen_it() {
    complains([begun(), failed(Ending::Gone)], "nobody has died");
    let (tally, _) = told([begun(), (SERVER, Event::Killing), failed(Ending::Gone)]);
    assert_eq!((tally.gone, good(&tally)), (1, true));
    let killing = || (SERVER, Event::Killing);
    complains([begun(), taken(), killing(), failed(Ending::Gone)], "told not to have been seen");
    complains([begun(), killing(), failed(Ending::Gone), taken()], "after it was told that nobody");
}

/// A death that comes later, one that the caller had got over, one at another object, one that the caller was
/// not born for: none of them is why a call is gone.
#[test]
fn gone_needs_a_death_that_lies_between() {
    const NEXT: u32 = 4;
    const STRANGER: u32 = 5;
    let call = |number: u32| CALL + u64::from(number);
    let begins = |number| (CLIENT, Event::Begun { call: call(number), object: 0, waits: false });
    let gone = |number| {
        let (call, error) = (call(number), String::new());
        (CLIENT, Event::Failed { call, ending: Ending::Gone, may_have_been_seen: false, error })
    };
    let (killing, over) = ((SERVER, Event::Killing), (SERVER, Event::Over { well: false }));
    let starts = |life, role| (life, Event::Started { role });
    let next = starts(NEXT, Role::Server(0));
    let seen = vec![tag(CALL, Direction::Argument), Seen::Canary];
    let next_takes = (NEXT, Event::Taken { call: CALL, object: 0, seen, right: true });
    let next_answers = (NEXT, Event::Answering { call: CALL });
    let dead = [killing.clone(), over.clone(), next];
    let served = [begins(0), next_takes, next_answers, answered()];

    // Meanwhile, and before, as long as nobody else has served since.
    for story in [
        vec![begins(0), killing.clone(), gone(0), over.clone()],
        vec![begins(0), killing.clone(), over.clone(), gone(0)],
        [dead.to_vec(), vec![begins(0), gone(0)]].concat(),
    ] {
        let (tally, sentences) = told(story);
        assert!(good(&tally) && tally.gone == 1, "{sentences:?}");
    }
    let another = vec![starts(STRANGER, Role::Server(1)), (STRANGER, Event::Killing)];
    for story in [
        vec![begins(0), gone(0), killing.clone(), over.clone()],
        [dead.to_vec(), served.to_vec(), vec![begins(1), gone(1)]].concat(),
        [another, vec![begins(0), gone(0)]].concat(),
    ] {
        complains(story, "nobody has died");
    }
    // The thread that waits has a connection of its own, and finds out by itself that its server is dead.
    let waiting = (CLIENT, Event::Begun { call: call(1), object: 0, waits: true });
    let (tally, sentences) = told([dead.to_vec(), served.to_vec(), vec![waiting, gone(1)]].concat());
    assert!(good(&tally) && tally.gone == 1, "{sentences:?}");
    // Nor one of before the caller was born.
    let mut judge = judge();
    tell(&mut judge, dead);
    let begun = u64::from(STRANGER) << 32;
    let failed =
        Event::Failed { call: begun, ending: Ending::Gone, may_have_been_seen: false, error: String::new() };
    let story = [
        starts(STRANGER, Role::Client(1)),
        (STRANGER, Event::Begun { call: begun, object: 0, waits: false }),
        (STRANGER, failed),
    ];
    tell(&mut judge, story);
    assert_eq!(judge.end().0.unexplained, 1);
}

#[test]
fn everything_that_happens_twice_is_duplicated() {
    assert_eq!(complains([begun(), taken(), taken()], "taken twice").duplicated, 3);
    complains([begun(), taken(), answering(), answering()], "answered twice");
    complains([begun(), taken(), answering(), answered(), answered()], "ended twice");
    complains([begun(), taken(), answering(), answered(), taken()], "taken twice");
    let withdrawing = (CLIENT, Event::Withdrawing { call: CALL });
    complains([begun(), taken(), answering(), withdrawing, answered()], "ended twice");
    let twice = vec![tag(CALL, Direction::Argument), tag(CALL, Direction::Argument), Seen::Canary];
    complains([begun(), taken_with(twice)], "twice");
}

#[test]
fn what_was_withdrawn_may_be_taken_and_answered_all_the_same() {
    let withdrawing = (CLIENT, Event::Withdrawing { call: CALL });
    let (tally, _) = told([begun(), withdrawing, taken(), answering()]);
    assert_eq!((tally.withdrawn, good(&tally)), (1, true));
}

#[test]
fn a_descriptor_that_is_missing_is_lost() {
    assert_eq!(complains([begun(), taken_with(vec![Seen::Canary])], "lost 1 descriptors").lost, 2);
    let without_canary = vec![tag(CALL, Direction::Argument)];
    complains([begun(), taken_with(without_canary)], "lost 1 descriptors");
    complains([begun(), taken(), answering(), answered_with(Vec::new())], "lost 2 descriptors");
}

#[test]
fn a_descriptor_of_another_message_is_misdelivered() {
    let others = [tag(CALL + 1, Direction::Argument), tag(CALL, Direction::Answer), Seen::Strange];
    for other in others {
        let tally = complains([begun(), taken_with(vec![other, Seen::Canary])], "has ");
        assert_eq!(tally.misdelivered, 1);
    }
    let behind = vec![Seen::Canary, tag(CALL, Direction::Argument)];
    assert_eq!(complains([begun(), taken_with(behind)], "at place 1").misdelivered, 1);
}

#[test]
fn a_message_that_is_not_what_it_should_be_is_misdelivered() {
    let seen = || vec![tag(CALL, Direction::Argument), Seen::Canary];
    let wrong = |right, object| (SERVER, Event::Taken { call: CALL, object, seen: seen(), right });
    complains([begun(), wrong(false, 0)], "other bytes");
    complains([begun(), wrong(true, 1)], "another object");
    complains([taken()], "nobody has made it");
    complains([begun(), answered()], "answered by nobody");
    let hand_taken = (THIRD, Event::HandTaken { call: CALL, seen: seen(), right: true });
    complains([begun(), taken(), hand_taken], "without having been handed on");
}

#[test]
fn an_end_that_nothing_leads_to_is_unexplained() {
    let tally = complains([begun(), failed(Ending::Other)], "otherwise than it can");
    assert_eq!(tally.unexplained, 1);
}

#[test]
fn every_call_is_counted_once() {
    let call = |index| call_number(CLIENT, index);
    let mut judge = judge();
    tell(
        &mut judge,
        (0..4).map(|index| (CLIENT, Event::Begun { call: call(index), object: 0, waits: false })),
    );
    let failed = |call, ending| Event::Failed {
        call,
        ending,
        may_have_been_seen: ending == Ending::Dropped,
        error: String::new(),
    };
    let story = [
        (CLIENT, Event::Withdrawing { call: call(0) }),
        (SERVER, Event::Killing),
        (CLIENT, failed(call(1), Ending::Gone)),
        (CLIENT, failed(call(2), Ending::Dropped)),
        (CLIENT, failed(call(3), Ending::Lost)),
    ];
    tell(&mut judge, story);
    assert_eq!(judge.calls_of(CLIENT), 4);
    let (tally, sentences) = judge.end();
    assert!(good(&tally), "{sentences:?}");
    assert_eq!((tally.withdrawn, tally.gone, tally.dropped, tally.reported_lost), (1, 1, 1, 1));
}
