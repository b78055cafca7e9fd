//! Whatever crosses threads, in every order in which threads can take their steps.
//!
//! Each model is an arrangement of a few threads around the files of the library themselves, compiled here
//! with loom's atomics and locks in the place of the standard library's. Loom runs it once for each order,
//! with up to [`PREEMPTIONS_MAX`] interruptions that nothing asked for, and lets a load see whatever the
//! ordering allows. What nobody wakes is a deadlock, and that is a failure. It is not shown what the kernel
//! does: an eventfd here is a lock and a condition.
//!
//! Loom has each sequentially consistent access acquire and release and no more, and a store that nothing
//! orders may be older than any other: a model may fail where the hardware could not. What is only ever
//! swapped is ordered for both.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crew::Crew;
use driver::SleepPlace;
use generation::Generation;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use remote::Bell;
use sys::EventFd;
use task::{Main, Tasks};

#[path = "../src/crew.rs"]
mod crew;
#[path = "../src/generation.rs"]
#[allow(dead_code)]
mod generation;
#[path = "../src/remote.rs"]
#[allow(dead_code, unused_imports)]
mod remote;
#[path = "loom/sync.rs"]
mod sync;
#[path = "loom/sys.rs"]
mod sys;
#[path = "../src/task.rs"]
#[allow(dead_code)]
mod task;

/// What the files ask of the rest of the library.
mod driver {
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum SleepPlace {
        OwnTurn,
        HostLoop,
    }
}

/// Nobody forks here.
mod fork {
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Generation;

    pub(crate) fn generation() -> Generation {
        Generation
    }
}

/// How often a thread is interrupted where it would not wait. With two nearly every defect that is known in
/// such programs shows itself; with each one more the orders are many times as many.
const PREEMPTIONS_MAX: usize = 3;

fn in_every_order(arrangement: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(arrangement);
}

/// A bell, and what its reactor sleeps on.
fn bell(place: SleepPlace) -> (Arc<Bell>, EventFd) {
    let bell = Arc::new(Bell::new(place).unwrap());
    let eventfd = bell.eventfd().try_clone().unwrap();
    (bell, eventfd)
}

/// Sleeps as a reactor's turn does, unless there is a reason not to.
fn turn(bell: &Bell, eventfd: &EventFd, may_sleep: bool) {
    if may_sleep && bell.fall_asleep() {
        eventfd.sleep();
    }
    bell.awake();
}

/// As `Executor::block_on`.
fn block_on<T>(tasks: &Tasks, bell: &Arc<Bell>, eventfd: &EventFd, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let main = Main::new(Arc::clone(bell));
    let waker = Waker::from(Arc::clone(&main));
    loop {
        if main.take_wake()
            && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return output;
        }
        tasks.run();
        turn(bell, eventfd, !main.is_woken() && !tasks.any_ready());
    }
}

/// What another thread has to say, and whom it wakes then. Looked at without a lock and without any ordering
/// of its own: that it is seen is for the wake-up to see to.
struct News {
    told: AtomicBool,
    wants: Mutex<Option<Waker>>,
}

impl News {
    fn new() -> Arc<News> {
        Arc::new(News { told: AtomicBool::new(false), wants: Mutex::new(None) })
    }

    fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        let waker = self.wants.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            *self.wants.lock().unwrap() = Some(context.waker().clone());
            if self.told.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A host's thread: asleep until somebody wakes its task.
struct Host {
    woken: Mutex<bool>,
    wakes: Condvar,
}

impl Host {
    fn new() -> Arc<Host> {
        Arc::new(Host { woken: Mutex::new(false), wakes: Condvar::new() })
    }

    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.wakes.wait(woken).unwrap();
        }
        *woken = false;
    }
}

impl Wake for Host {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.wakes.notify_all();
    }
}

// The bell.

#[test]
fn who_is_rung_for_looks_again() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        let told = Arc::new(AtomicBool::new(false));
        let (rings, tells) = (Arc::clone(&bell), Arc::clone(&told));
        let other = thread::spawn(move || {
            tells.store(true, Ordering::Relaxed);
            rings.ring();
        });
        while !told.load(Ordering::Relaxed) {
            turn(&bell, &eventfd, true);
        }
        other.join().unwrap();
    });
}

#[test]
fn nobody_who_rings_is_missed_beside_another() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        let told = Arc::new(AtomicUsize::new(0));
        let others = [(), ()].map(|()| {
            let (rings, tells) = (Arc::clone(&bell), Arc::clone(&told));
            thread::spawn(move || {
                tells.fetch_add(1, Ordering::Relaxed);
                rings.ring_from_elsewhere();
            })
        });
        while told.load(Ordering::Relaxed) < 2 {
            turn(&bell, &eventfd, true);
        }
        for other in others {
            other.join().unwrap();
        }
    });
}

/// A reactor that sleeps where its bell is not heard, and has said so: the second eventfd ends that.
#[test]
fn who_sleeps_elsewhere_is_alerted() {
    in_every_order(|| {
        let (bell, _) = bell(SleepPlace::OwnTurn);
        let alert = bell.alert().unwrap().try_clone().unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let (rings, tells) = (Arc::clone(&bell), Arc::clone(&told));
        let other = thread::spawn(move || {
            tells.store(true, Ordering::Relaxed);
            rings.ring();
        });
        let mut alerted = false;
        while !told.load(Ordering::Relaxed) {
            if bell.fall_asleep() {
                // Once for many sleeps.
                if alerted || bell.alert_too() {
                    alert.sleep();
                }
                alerted = true;
            }
            bell.awake();
        }
        other.join().unwrap();
    });
}

/// Nothing else runs on that thread then.
#[test]
fn who_rings_on_a_sleepers_thread_handles_a_signal() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        bell.ring_from_elsewhere();
        assert!(!bell.is_rung(), "it is awake, and looks at everything before it sleeps");
        assert!(bell.fall_asleep());
        bell.ring_from_elsewhere();
        eventfd.sleep();
    });
}

/// A guest is asleep between two turns, whatever the host does then. It may have become the task of another
/// runtime meanwhile.
#[test]
fn a_guest_that_is_rung_for_wakes_the_task_it_is_in() {
    in_every_order(|| {
        let (bell, _eventfd) = bell(SleepPlace::HostLoop);
        let told = Arc::new(AtomicBool::new(false));
        let (rings, tells) = (Arc::clone(&bell), Arc::clone(&told));
        let other = thread::spawn(move || {
            tells.store(true, Ordering::Relaxed);
            rings.ring_from_elsewhere();
        });
        let hosts = [Host::new(), Host::new()];
        for round in 0.. {
            let host = &hosts[round.min(1)];
            drop(bell.attend(Some(Waker::from(Arc::clone(host)))));
            bell.awake();
            bell.hear();
            if told.load(Ordering::Relaxed) {
                break;
            }
            // In the first round it comes back by itself, as after an event of the host's own.
            if bell.fall_asleep() && round > 0 {
                host.sleep();
            }
        }
        other.join().unwrap();
    });
}

/// A turn as its own host, which sleeps on the descriptor though a task attends it.
#[test]
fn a_guest_that_turns_by_itself_sleeps_on_its_descriptor() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::HostLoop);
        let told = Arc::new(AtomicBool::new(false));
        let (rings, tells) = (Arc::clone(&bell), Arc::clone(&told));
        let other = thread::spawn(move || {
            tells.store(true, Ordering::Relaxed);
            rings.ring_from_elsewhere();
        });
        drop(bell.attend(Some(Waker::from(Host::new()))));
        // Between two turns it is asleep, and a ring there wakes the task, which has no part in this.
        let _ = bell.fall_asleep();
        loop {
            bell.awake();
            bell.hear();
            if told.load(Ordering::Relaxed) {
                break;
            }
            let unattended = bell.unattended();
            if bell.fall_asleep() {
                eventfd.sleep();
            }
            drop(unattended);
        }
        other.join().unwrap();
    });
}

// Tasks and their wakers.

#[test]
fn a_task_woken_from_another_thread_is_polled() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        let tasks = Tasks::new(Arc::clone(&bell));
        let news = News::new();
        let (waits, ended) = (Arc::clone(&news), Rc::new(Cell::new(false)));
        let ends = Rc::clone(&ended);
        tasks.spawn(Box::pin(async move {
            waits.wait().await;
            ends.set(true);
        }));
        let other = thread::spawn(move || news.tell());
        loop {
            tasks.run();
            if ended.get() {
                break;
            }
            turn(&bell, &eventfd, !tasks.any_ready());
        }
        other.join().unwrap();
    });
}

/// The second wake-up finds the task queued by the first and leaves it at that. No lock orders what is said.
#[test]
fn a_task_woken_twice_sees_what_the_second_was_about() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        let tasks = Tasks::new(Arc::clone(&bell));
        let told = Arc::new(AtomicBool::new(false));
        let (looks, ended, waker) = (Arc::clone(&told), Rc::new(Cell::new(false)), Rc::new(Cell::new(None)));
        let (ends, shows) = (Rc::clone(&ended), Rc::clone(&waker));
        tasks.spawn(Box::pin(async move {
            poll_fn(|context| {
                shows.set(Some(context.waker().clone()));
                if looks.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            ends.set(true);
        }));
        tasks.run();
        let waker = waker.take().unwrap();
        waker.wake_by_ref();
        let other = thread::spawn(move || {
            told.store(true, Ordering::Release);
            waker.wake();
        });
        loop {
            tasks.run();
            if ended.get() {
                break;
            }
            turn(&bell, &eventfd, !tasks.any_ready());
        }
        other.join().unwrap();
    });
}

#[test]
fn a_future_woken_from_another_thread_is_polled() {
    in_every_order(|| {
        let (bell, eventfd) = bell(SleepPlace::OwnTurn);
        let tasks = Tasks::new(Arc::clone(&bell));
        let news = News::new();
        let tells = Arc::clone(&news);
        let other = thread::spawn(move || tells.tell());
        block_on(&tasks, &bell, &eventfd, news.wait());
        other.join().unwrap();
    });
}

/// The queue holds what is woken, and that holds the queue.
#[test]
fn a_wake_up_that_comes_when_the_tasks_are_gone_keeps_nothing() {
    in_every_order(|| {
        let (bell, _eventfd) = bell(SleepPlace::OwnTurn);
        let tasks = Tasks::new(Arc::clone(&bell));
        let news = News::new();
        let waits = Arc::clone(&news);
        tasks.spawn(Box::pin(async move { waits.wait().await }));
        tasks.run();
        let other = thread::spawn(move || news.tell());
        drop(tasks);
        other.join().unwrap();
        assert_eq!(Arc::strong_count(&bell), 1);
    });
}

// The crew that drops what takes long.

/// Made anew for each order, and never freed, as the library's is not.
fn crew<T>() -> &'static Crew<T> {
    Box::leak(Box::new(Crew::new()))
}

/// A thread of the crew. It serves as long as there is anything left to be served in this model, and so ends.
fn serves<T: 'static>(crew: &'static Crew<T>, left: &Arc<AtomicUsize>) -> bool {
    let left = Arc::clone(left);
    thread::spawn(move || {
        while take_one(&left) {
            crew.serve_one(|| serves(crew, &left));
        }
    });
    true
}

/// Of so many that are to be served each is for one thread.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Counts that it was dropped.
struct Thing(Arc<AtomicUsize>);

impl Drop for Thing {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn when_the_crew_is_idle_all_that_was_queued_is_dropped() {
    in_every_order(|| {
        let (crew, dropped) = (crew(), Arc::new(AtomicUsize::new(0)));
        let left = Arc::new(AtomicUsize::new(2));
        let (counted, others) = (Arc::clone(&dropped), Arc::clone(&left));
        let other = thread::spawn(move || {
            assert!(crew.queue(Thing(counted), || serves(crew, &others)).is_ok());
        });
        assert!(crew.queue(Thing(Arc::clone(&dropped)), || serves(crew, &left)).is_ok());
        other.join().unwrap();
        crew.wait_until_idle();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        assert_eq!(crew.backlog(), 0);
        assert!(!crew.is_busy());
    });
}

#[test]
fn what_is_queued_together_is_dropped_like_anything_else() {
    in_every_order(|| {
        let (crew, dropped) = (crew(), Arc::new(AtomicUsize::new(0)));
        let left = Arc::new(AtomicUsize::new(2));
        let things: Vec<_> = (0..2).map(|_| Thing(Arc::clone(&dropped))).collect();
        assert!(crew.queue_all(things.into_iter(), || serves(crew, &left)).is_ok());
        crew.wait_until_idle();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        assert_eq!(crew.backlog(), 0);
    });
}

/// Dropping this takes until that is dropped.
enum Odd {
    Waits(Arc<(Mutex<bool>, Condvar)>),
    Lets(Arc<(Mutex<bool>, Condvar)>),
}

impl Drop for Odd {
    fn drop(&mut self) {
        match self {
            Odd::Waits(gate) => {
                let mut is_open = gate.0.lock().unwrap();
                while !*is_open {
                    is_open = gate.1.wait(is_open).unwrap();
                }
            }
            Odd::Lets(gate) => {
                *gate.0.lock().unwrap() = true;
                gate.1.notify_all();
            }
        }
    }
}

#[test]
fn what_takes_for_ever_does_not_keep_the_next_one() {
    in_every_order(|| {
        let (crew, left) = (crew(), Arc::new(AtomicUsize::new(2)));
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        for odd in [Odd::Waits(Arc::clone(&gate)), Odd::Lets(gate)] {
            assert!(crew.queue(odd, || serves(crew, &left)).is_ok());
        }
        crew.wait_until_idle();
    });
}

/// Of two idle threads one is woken for both, and is kept by the first, until the other is called.
#[test]
fn what_takes_for_ever_does_not_keep_what_was_queued_with_it() {
    in_every_order(|| {
        let (crew, left) = (crew(), Arc::new(AtomicUsize::new(4)));
        let odd = || {
            let gate = Arc::new((Mutex::new(false), Condvar::new()));
            [Odd::Waits(Arc::clone(&gate)), Odd::Lets(gate)]
        };
        for odd in odd() {
            assert!(crew.queue(odd, || serves(crew, &left)).is_ok());
        }
        crew.wait_until_idle();
        assert!(crew.queue_all(odd().into_iter(), || serves(crew, &left)).is_ok());
        crew.urge(|| serves(crew, &left));
        crew.wait_until_idle();
    });
}

#[test]
fn with_no_thread_to_be_had_it_comes_back() {
    in_every_order(|| {
        let (crew, dropped) = (crew(), Arc::new(AtomicUsize::new(0)));
        let thing = crew.queue(Thing(Arc::clone(&dropped)), || false);
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
        drop(thing);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        assert!(!crew.is_busy());
    });
}

#[test]
fn all_threads_of_a_process_have_one_crew_and_another_process_has_another() {
    in_every_order(|| {
        let first: &'static Crew<()> = crew();
        let other = thread::spawn(move || std::ptr::from_ref(first.of(7)));
        let ours = std::ptr::from_ref(first.of(7));
        assert_eq!(ours, other.join().unwrap());
        // Two threads of a child, which was not there before.
        let other = thread::spawn(move || std::ptr::from_ref(first.of(8)));
        let childs = std::ptr::from_ref(first.of(8));
        assert_eq!(childs, other.join().unwrap());
        assert_ne!(childs, ours);
        assert!(first.is_used());
    });
}

// Generations.

#[test]
fn threads_of_one_process_are_of_one_generation() {
    in_every_order(|| {
        let words = Arc::new((AtomicU64::new(0), AtomicU64::new(4)));
        let theirs = Arc::clone(&words);
        let other = thread::spawn(move || Generation::of_page(&theirs.0, &theirs.1));
        let ours = Generation::of_page(&words.0, &words.1);
        assert_eq!(ours, other.join().unwrap());
        assert!(ours.number() > 4);
        assert_eq!(Generation::of_page(&words.0, &words.1), ours);
    });
}

#[test]
fn threads_of_one_process_are_of_one_generation_without_the_page() {
    in_every_order(|| {
        let before = AtomicU64::new(0);
        let parent = Generation::of_process(7, &before);
        let asked = Arc::new(before);
        let theirs = Arc::clone(&asked);
        let other = thread::spawn(move || Generation::of_process(8, &theirs));
        let ours = Generation::of_process(8, &asked);
        assert_eq!(ours, other.join().unwrap());
        assert!(ours.number() > parent.number());
    });
}
