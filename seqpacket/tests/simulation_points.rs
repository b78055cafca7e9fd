//! One small story, stopped at every one of its steps: there a call is withdrawn, a process dies, or somebody
//! takes his leave. Whatever the moment, every call ends once and everybody comes to an end.
//!
//! It knows the steps of a world by their number only.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ring::script::Faults;
use seqpacket::Object;
use testing::{Census, in_own_process};
use worlds::cast::{Busy, Cast, Setting, call_as_model};
use worlds::*;

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// One of the calls is withdrawn.
    Withdrawn(usize),
    /// The client lets go of the objects; its calls stay under way.
    LetGo,
    ClientDies,
    /// … and another takes over.
    ServerDies(usize),
    /// … for good.
    ServerEnds(usize),
    MailboxDropped(usize),
    Leaves(usize),
}

const CALLS: usize = 7;

fn events() -> Vec<Event> {
    let mut events = vec![Event::LetGo, Event::ClientDies];
    events.extend((0..CALLS).map(Event::Withdrawn));
    for server in 0..2 {
        events.extend([Event::ServerDies(server), Event::ServerEnds(server)]);
        events.extend([Event::MailboxDropped(server), Event::Leaves(server)]);
    }
    events
}

/// A call in a place from which it can be taken away.
#[derive(Clone, Default)]
struct Place(Rc<RefCell<(Option<Work>, Option<Waker>)>>);

type Work = Pin<Box<dyn Future<Output = ()>>>;

impl Place {
    fn of(work: impl Future<Output = ()> + 'static) -> Place {
        Place(Rc::new(RefCell::new((Some(Box::pin(work)), None))))
    }

    async fn ends(self) {
        poll_fn(|context| {
            let (work, waker) = &mut *self.0.borrow_mut();
            *waker = Some(context.waker().clone());
            let poll = work.as_mut().map_or(Poll::Ready(()), |work| work.as_mut().poll(context));
            if poll.is_ready() {
                *work = None;
            }
            poll
        })
        .await;
    }

    /// Drops it where it stands.
    fn withdraw(&self) {
        let (work, waker) = std::mem::take(&mut *self.0.borrow_mut());
        drop(work);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// One of each: with descriptors both ways, late, unanswered, never answered, and passed on.
async fn call(busy: Busy, object: Rc<RefCell<Option<[Object; 2]>>>, number: usize) {
    let setting = &busy.0;
    let verbs = [Verb::Echo, Verb::Make, Verb::Later, Verb::Drop, Verb::Never, Verb::Forward, Verb::HandOn];
    let Some([object, third]) = object.borrow().clone() else { return };
    let mut descriptors = Vec::new();
    match verbs[number] {
        Verb::Echo => descriptors.extend([identified().0, identified().0]),
        Verb::Forward | Verb::HandOn => match third.grant().await {
            Ok(granted) => descriptors.push(granted),
            Err(_) => return,
        },
        _ => {}
    }
    drop(third);
    let _ = call_as_model(setting, &object, verbs[number], descriptors, None).await;
}

/// The story with this event at this step. Says whether it lasted so long.
fn tell(seed: u64, faults: Faults, event: Event, at: u64, tally: &mut Tally) -> bool {
    let forceful = !matches!(event, Event::Withdrawn(_) | Event::LetGo);
    let allowed = Allowed {
        gone: forceful,
        dropped: forceful && !matches!(event, Event::Leaves(_)),
        ..Allowed::default()
    };
    let setting = Setting::new(seed, allowed);
    let mut cast = Cast::new(&setting);
    let party = Party::join(&setting.world);
    let objects = Rc::new(RefCell::new(Some(cast.objects(&setting, party.reactor()))));
    let places: Vec<Place> =
        (0..CALLS).map(|number| Place::of(call(Busy::new(&setting), Rc::clone(&objects), number))).collect();
    places.iter().for_each(|place| party.0.spawn(place.clone().ends()));
    cast.clients.push(Some(party));
    setting.world.set_faults(faults);
    let mut step = 0;
    while setting.busy.get() > 0 {
        if step == at {
            happens(event, &setting, &mut cast, &places, &objects);
            setting.world.stir();
        }
        step += 1;
        cast.step(&setting);
    }
    drop((places, objects));
    cast.finish(&setting);
    tally.add(&setting.model);
    step > at
}

fn happens(
    event: Event,
    setting: &Rc<Setting>,
    cast: &mut Cast,
    places: &[Place],
    objects: &Rc<RefCell<Option<[Object; 2]>>>,
) {
    match event {
        Event::Withdrawn(number) => places[number].withdraw(),
        Event::LetGo => drop(objects.take()),
        Event::ClientDies => {
            let party = cast.clients.pop().unwrap().unwrap();
            setting.world.kill(party.reactor());
            objects.take();
            places.iter().for_each(Place::withdraw);
        }
        Event::ServerDies(which) => cast.servers[which].die(&setting.world),
        Event::ServerEnds(which) => {
            cast.servers[which].die(&setting.world);
            cast.servers[which].bound = None;
        }
        Event::MailboxDropped(which) => cast.servers[which].farewell(setting, None),
        Event::Leaves(which) => cast.servers[which].farewell(setting, Some(Duration::from_secs(3600))),
    }
}

/// Each event at each step of the stories of some seeds.
fn at_every_step(first: u64, stories: u64, faults: Faults, chosen: impl Fn(Event) -> bool) {
    let census = Census::take();
    let (mut tally, mut told) = (Tally::default(), 0);
    for_seeds(first, stories, |seed| {
        for event in events().into_iter().filter(|event| chosen(*event)) {
            let mut at = 0;
            while tell(seed, faults, event, at, &mut tally) {
                at += 1;
                told += 1;
            }
        }
    });
    println!("{told} stories");
    tally.has(&["answered", "dropped", "late"]);
    census.unchanged();
}

fn is_withdrawal(event: Event) -> bool {
    matches!(event, Event::Withdrawn(_) | Event::LetGo)
}

in_own_process! {
    fn a_call_can_be_withdrawn_at_every_step() {
        at_every_step(0, 2, Faults::NONE, is_withdrawal);
    }

    fn a_call_can_be_withdrawn_at_every_step_of_a_world_with_faults() {
        at_every_step(100, 1, Faults::UNNOTICED, is_withdrawal);
    }

    fn everybody_can_go_at_every_step() {
        at_every_step(200, 1, Faults::NONE, |event| !is_withdrawal(event));
    }

    fn everybody_can_go_at_every_step_of_a_world_with_faults() {
        at_every_step(300, 1, Faults::UNNOTICED, |event| !is_withdrawal(event));
    }
}
