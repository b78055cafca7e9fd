//! The reactor: one turn is submit, sleep, reap, and then wake.
//!
//! It owns the driver, the table of what is away, and the companions: tasks of the protocols built on it,
//! which it runs itself so that a session goes on whoever polls what. It never runs user code while anything
//! of its own is borrowed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::buffer::Pool;
use crate::clock::Clock;
#[cfg(feature = "script")]
use crate::driver::script::Fate;
use crate::driver::{self, Driver, DriverChoice, DriverReport, Ground, SleepPlace, StartError};
use crate::fd::Fd;
use crate::fork::{ForkedChild, Origin};
use crate::op::{Core, Woken, take_each};
use crate::remote::{Bell, Remote};
use crate::stats::Stats;
use crate::task::{Asker, TaskId, Tasks};
use crate::timer::Alarm;
use crate::wait::{LOOKS_PER_YIELD, Spinner, WaitPolicy};

/// How a reactor is to be made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which driver. The default leaves it to the machine, or to `SENDRIGHT_DRIVER`.
    pub driver: DriverChoice,
    /// How many receive buffers, of 100 KiB each; memory is used as they are. Default 64, at least 1,
    /// at most 4,096.
    pub buffers: u16,
    /// How many descriptors received messages leave free for everybody else in the process. Default 32; with
    /// a limit below 128 a quarter of the limit.
    pub descriptors_reserve: usize,
    /// Whether to look for a short while before sleeping. Default: not. A guest never does, whatever this
    /// says: the thread is its host's.
    pub wait: WaitPolicy,
}

impl Default for Config {
    fn default() -> Config {
        Config { driver: DriverChoice::Auto, buffers: 64, descriptors_reserve: 32, wait: WaitPolicy::Sleep }
    }
}

/// The most receive buffers a reactor takes.
pub const BUFFERS_MAX: u16 = 4096;

/// The longest [`Reactor::sleep`]: thirty years.
pub const SLEEP_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// How long [`Reactor::turn`] may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Not,
    /// Until this moment, if nothing happens before.
    Until(Instant),
    /// Until something happens.
    Forever,
}

/// A single-threaded reactor. A handle: clones are the same reactor, which ends with the last handle, socket
/// and future that holds it.
///
/// ```
/// use ring::{Executor, Kind, Message, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
/// let far = Socket::wrap(&reactor, far)?;
/// let executor = Executor::new(&reactor);
/// executor.block_on(async {
///     far.send(Message::from("hello")).await?;
///     assert_eq!(near.receive().await?.bytes(), b"hello");
///     Ok(())
/// })
/// # as Result<(), Box<dyn std::error::Error>>
/// # ;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Reactor(Rc<Shared>);

pub(crate) struct Shared {
    core: RefCell<Core>,
    companions: Tasks,
    bell: Arc<Bell>,
    place: SleepPlace,
    /// In a host's loop: a turn is being taken, at the end of which everything is looked at.
    turning: Cell<bool>,
    spinner: RefCell<Spinner>,
    /// Whether the spinner is ever to look.
    looks: bool,
    /// Not here while a turn fills it.
    woken: Cell<Option<Box<Woken>>>,
    report: DriverReport,
    origin: Origin,
    /// What protocols have in common for all that they serve on this reactor: one of each kind.
    in_common: RefCell<Vec<Rc<dyn Any>>>,
}

impl Reactor {
    /// A reactor as the machine allows it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new() -> Result<Reactor, StartError> {
        Reactor::with_config(Config::default())
    }

    /// A reactor as asked for.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn with_config(config: Config) -> Result<Reactor, StartError> {
        Reactor::sleeping_in(config, SleepPlace::OwnTurn)
    }

    pub(crate) fn sleeping_in(config: Config, place: SleepPlace) -> Result<Reactor, StartError> {
        let (bell, ground) = (Arc::new(Bell::new(place)?), ground(&config, Clock::Real, place));
        let (driver, report) = Driver::open(config.driver, ground.clone(), &bell)?;
        driver::announce(&report);
        Ok(Reactor::on(driver, report, ground, bell, config.wait)?)
    }

    /// One of a simulated world.
    #[cfg(feature = "script")]
    pub(crate) fn scripted(config: &Config, fate: Rc<Fate>) -> io::Result<Reactor> {
        let (bell, ground) =
            (Arc::new(Bell::new(SleepPlace::OwnTurn)?), ground(config, fate.clock(), SleepPlace::OwnTurn));
        let (driver, report) = Driver::script(ground.clone(), fate);
        Reactor::on(driver, report, ground, bell, WaitPolicy::Sleep)
    }

    fn on(
        driver: Driver,
        report: DriverReport,
        ground: Ground,
        bell: Arc<Bell>,
        wait: WaitPolicy,
    ) -> io::Result<Reactor> {
        let origin = Origin::here()?;
        let place = ground.place;
        let core = RefCell::new(Core::new(driver, ground));
        let companions = Tasks::new(Arc::clone(&bell));
        let spinner = Spinner::new(wait);
        let (looks, spinner) = (spinner.ever_looks(), RefCell::new(spinner));
        let (turning, woken, in_common) = (Cell::new(false), Cell::new(None), RefCell::default());
        let shared = Shared {
            core,
            companions,
            bell,
            place,
            turning,
            spinner,
            looks,
            woken,
            report,
            origin,
            in_common,
        };
        Ok(Reactor(Rc::new(shared)))
    }

    /// Which driver runs, and why.
    pub fn driver(&self) -> DriverReport {
        self.0.report.clone()
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote::new(Arc::clone(&self.0.bell))
    }

    /// What has been counted so far.
    pub fn stats(&self) -> Stats {
        self.0.core.borrow().stats()
    }

    /// What a protocol has in common for all that it serves on this reactor, made when it is first asked for.
    /// It must not hold the reactor.
    ///
    /// For memory that goes from one to the next of very many: what each of them kept for itself would have
    /// left the processor's caches when its turn comes again, and take as much as all the rest of it.
    #[doc(hidden)]
    pub fn in_common<T: Default + 'static>(&self) -> Rc<T> {
        let mut kinds = self.0.in_common.borrow_mut();
        let known = kinds.iter().find_map(|kind| Rc::clone(kind).downcast().ok());
        known.unwrap_or_else(|| {
            let made = Rc::new(T::default());
            kinds.push(Rc::clone(&made) as Rc<dyn Any>);
            made
        })
    }

    /// How many turns there have been: for whoever shares out what is done between two of them.
    #[doc(hidden)]
    pub fn turns(&self) -> u64 {
        self.0.core.borrow().stats.turns
    }

    /// Whoever has done its share for this turn goes on after the next, and it has to come: a host whose own
    /// code was told to wait would otherwise not turn its guest, which has nothing else to do.
    #[doc(hidden)]
    pub fn ask_for_turn(&self) {
        if self.0.place == SleepPlace::HostLoop && !self.0.turning.get() {
            self.call_the_host();
        }
    }

    /// Whether this process has room for so many more descriptors, without those kept in reserve
    /// ([`Config::descriptors_reserve`]). Receives wait while there is none.
    ///
    /// For whoever opens descriptors that others ask for: a server that accepts connections until there is no
    /// room left can receive on none of them, and so does not even see them close.
    ///
    /// ```
    /// let reactor = ring::Reactor::new()?;
    /// assert!(reactor.may_open(1));
    /// assert!(!reactor.may_open(usize::MAX));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn may_open(&self, descriptors: usize) -> bool {
        self.0.core.borrow().budget().has_room_for(descriptors)
    }

    /// One turn: submits what was asked for, sleeps until something happens (or not at all), and wakes who
    /// waited for it. Says whether anything happened.
    ///
    /// The reactor of a [`Guest`](crate::Guest) can be turned like this too, and then blocks the thread like
    /// any other, its host's loop included; it costs a few system calls more than a reactor of one's own.
    ///
    /// # Errors
    /// The kernel refuses to go on (`io_uring_enter` or `epoll_wait` failed with anything but a signal or a
    /// timeout), which no peer can cause. When that is for want of memory (EAGAIN, EBUSY, ENOMEM) the turn
    /// pauses for a millisecond and says so only after a thousand in a row; what was asked for stays asked
    /// for, and the next turn may go well. Or this is a forked child: [`ForkedChild`]; whoever waited on this
    /// reactor has been told so when it returns.
    pub fn turn(&self, wait: Wait) -> io::Result<bool> {
        if self.is_forked() {
            self.turn_in_child();
            return Err(ForkedChild.into());
        }
        self.turn_here(wait)
    }

    /// Whether this is a forked child of the process that made the reactor. Then each verb of it, and of what
    /// was made on it, says so by name, and touches nothing: see [`ForkedChild`]. Asking is two loads.
    ///
    /// ```
    /// assert!(!ring::Reactor::new()?.is_forked());
    /// # Ok::<(), ring::StartError>(())
    /// ```
    #[inline]
    pub fn is_forked(&self) -> bool {
        self.0.origin.is_a_parents()
    }

    /// As [`is_forked`](Reactor::is_forked), for those who would go on otherwise.
    pub(crate) fn is_ours(&self) -> io::Result<()> {
        if self.is_forked() { Err(ForkedChild.into()) } else { Ok(()) }
    }

    /// One turn in a forked child: tells those who wait, and runs the companions, who tell others. Says
    /// whether anything happened.
    pub(crate) fn turn_in_child(&self) -> bool {
        self.0.become_child();
        self.step(driver::Sleep::Not).is_ok_and(|happened| happened)
    }

    /// A turn of the process that made the reactor.
    pub(crate) fn turn_here(&self, wait: Wait) -> io::Result<bool> {
        let mut sleep = match wait {
            Wait::Not => driver::Sleep::Not,
            Wait::Until(moment) => driver::Sleep::For(moment.saturating_duration_since(self.now())),
            Wait::Forever => driver::Sleep::Forever,
        };
        if self.0.place == SleepPlace::HostLoop {
            return self.turn_as_own_host(sleep);
        }
        let may_sleep = sleep != driver::Sleep::Not && !self.0.companions.any_ready();
        if may_sleep && self.0.looks && self.look_first(sleep)? {
            return Ok(true);
        }
        if !may_sleep || !self.0.bell.fall_asleep() {
            sleep = driver::Sleep::Not;
        }
        self.step(sleep)
    }

    /// Looks for as long as the wait policy has it, before a sleep. Says whether anything happened.
    #[inline(never)]
    fn look_first(&self, sleep: driver::Sleep) -> io::Result<bool> {
        let Some(look) = self.0.spinner.borrow_mut().look() else { return Ok(false) };
        self.0.core.borrow_mut().driver.set_looked_at(true);
        let result = self.look_for(look, sleep);
        self.0.core.borrow_mut().driver.set_looked_at(false);
        result
    }

    fn look_for(&self, look: Duration, sleep: driver::Sleep) -> io::Result<bool> {
        // What is to be awaited has to be submitted first.
        if self.step(driver::Sleep::Not)? {
            return Ok(true);
        }
        // A sleep that ends sooner says nothing about how long answers take.
        let shortened = sleep.duration().is_some_and(|time| time <= look);
        let look = sleep.duration().map_or(look, |time| time.min(look));
        let start = Instant::now();
        self.count(|stats| stats.spins += 1);
        let mut looks = 0_u32;
        loop {
            let seen = self.0.core.borrow_mut().look()?;
            let after = start.elapsed();
            if seen && self.step(driver::Sleep::Not)? {
                self.count(|stats| stats.spins_hit += 1);
                self.0.spinner.borrow_mut().hit(after);
                return Ok(true);
            }
            if self.0.bell.is_rung() {
                return Ok(false);
            }
            if after >= look {
                break;
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_YIELD) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        if !shortened {
            self.0.spinner.borrow_mut().miss();
        }
        Ok(false)
    }

    fn count(&self, count: impl FnOnce(&mut Stats)) {
        count(&mut self.0.core.borrow_mut().stats);
    }

    // In a host's loop. Between two turns the descriptor is readable whenever there is something to do.

    /// What a foreign loop watches: a descriptor of its own for what the driver has.
    pub(crate) fn watched(&self) -> io::Result<OwnedFd> {
        self.0.core.borrow().driver.descriptor().try_clone_to_owned()
    }

    /// Turns follow, and nobody need be told of anything.
    pub(crate) fn take_back(&self) {
        self.0.turning.set(true);
        self.0.bell.awake();
        self.0.core.borrow_mut().driver.take_back();
    }

    /// Leaves the watch to the descriptor. False if there is something to do at once.
    pub(crate) fn hand_over(&self) -> io::Result<bool> {
        self.0.turning.set(false);
        // A companion has forked in this turn: the watch is the parent's.
        self.is_ours()?;
        let waiting = self.0.core.borrow_mut().hand_over()?;
        // After the descriptor was drained: who rings from here on writes to it, who rang before is seen.
        Ok(self.0.bell.fall_asleep() && !waiting && !self.0.companions.any_ready())
    }

    /// Something is left to do: the host must come back.
    pub(crate) fn call_the_host(&self) {
        self.0.turning.set(false);
        self.0.bell.awake();
        self.0.bell.strike();
    }

    /// A turn that nobody's loop asked for: the reactor watches its own descriptor, and the host's loop finds
    /// it as a turn of the guest would have left it.
    fn turn_as_own_host(&self, sleep: driver::Sleep) -> io::Result<bool> {
        self.take_back();
        let mut any = self.step(driver::Sleep::Not)?;
        if !any && sleep != driver::Sleep::Not {
            let _unattended = self.0.bell.unattended();
            if self.hand_over()? {
                self.0.core.borrow().wait_for_descriptor(sleep)?;
                self.take_back();
                any = self.step(driver::Sleep::Not)?;
            }
        }
        if !self.hand_over()? {
            self.call_the_host();
        }
        Ok(any)
    }

    /// One turn, whoever's it is.
    pub(crate) fn step(&self, sleep: driver::Sleep) -> io::Result<bool> {
        let mut woken = self.0.woken.take().unwrap_or_default();
        let result = self.0.core.borrow_mut().turn(sleep, &mut woken);
        self.0.bell.awake();
        let any = !woken.wake.is_empty();
        woken.finish(&self.0.companions);
        // Empty now, and kept for its memory.
        self.0.woken.set(Some(woken));
        let ran = self.0.companions.run();
        result.map(|home| home || any || ran)
    }

    /// As [`Fd::made_here`], in memory that this reactor has at hand.
    ///
    /// ```
    /// # use ring::{Kind, Message, Reactor, Socket};
    /// # let reactor = Reactor::new()?;
    /// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
    /// let call = Message::from("answer here").with_descriptor(reactor.made_here(far));
    /// # drop((near, call));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn made_here(&self, fd: OwnedFd) -> Fd {
        self.with(|core, _| core.hold(fd))
    }

    /// Whether something was asked for that only a turn shows to the kernel, or tells of.
    pub(crate) fn has_something_to_show(&self) -> bool {
        self.is_forked() || self.0.companions.any_ready() || self.with_core(Core::has_something_to_show)
    }

    /// Whether it sleeps by itself, and not in a host's loop.
    pub(crate) fn sleeps_in_its_turns(&self) -> bool {
        self.0.place == SleepPlace::OwnTurn
    }

    /// Runs a task of a protocol as part of this reactor's turns, until it ends or the handle is dropped.
    ///
    /// For what must go on whoever polls what: the receiving side of a session. The task is dropped with the
    /// handle, so whoever owns the task's state owns the handle too.
    pub fn companion(&self, task: impl Future<Output = ()> + 'static) -> Companion {
        let id = self.0.companions.spawn(Box::pin(task));
        Companion { shared: Rc::downgrade(&self.0), id }
    }

    /// What time it is. In a simulated world that is not what the machine says.
    #[doc(hidden)]
    pub fn now(&self) -> Instant {
        self.0.core.borrow().now()
    }

    /// Fills these bytes with random ones, from the kernel. For what decides when something happens: a
    /// simulated world, in which everything follows from one seed, has them from there.
    ///
    /// ```
    /// let reactor = ring::Reactor::new()?;
    /// let mut drawn = [0; 16];
    /// reactor.fill_random(&mut drawn)?;
    /// assert_ne!(drawn, [0; 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The kernel's, which has had none since before it could start a process.
    pub fn fill_random(&self, into: &mut [u8]) -> io::Result<()> {
        self.with(|core, _| core.driver.fill_random(into))
    }

    /// Ends after so long, or after [`SLEEP_MAX`]: `Duration::MAX` is more than the clock can say, and means
    /// "as good as never".
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time.min(SLEEP_MAX))
    }

    /// Ends at this moment.
    pub fn sleep_until(&self, moment: Instant) -> Sleep {
        Sleep { reactor: self.clone(), moment, alarm: None }
    }

    /// Borrows the table for one step, then wakes and drops what the step has collected.
    pub(crate) fn with<T>(&self, step: impl FnOnce(&mut Core, &mut Woken) -> T) -> T {
        // Mostly nobody is to be woken, and two vectors that never had memory need not be dropped.
        let mut woken = ManuallyDrop::new(Woken::default());
        let result = self.with_core(|core| step(core, &mut woken));
        if !woken.is_unused() {
            ManuallyDrop::into_inner(woken).finish(&self.0.companions);
        }
        result
    }

    /// Borrows the table for one step that wakes and drops nothing.
    #[inline]
    pub(crate) fn with_core<T>(&self, step: impl FnOnce(&mut Core) -> T) -> T {
        if self.is_forked() {
            self.0.become_child();
        }
        let mut core = self.0.core.borrow_mut();
        let result = step(&mut core);
        // The host's own code, between two turns: only a turn shows the kernel what was asked for.
        let call = self.0.place == SleepPlace::HostLoop
            && !self.0.turning.get()
            && (core.was_hurried() || self.0.bell.is_asleep() && core.wants_a_turn());
        drop(core);
        if call {
            self.call_the_host();
        }
        result
    }

    /// Who polls: a companion is known by its place, and costs no waker.
    #[inline]
    pub(crate) fn asker<'a>(&self, context: &Context<'a>) -> Asker<'a> {
        self.0.companions.asker(context.waker())
    }

    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    pub(crate) fn is(&self, other: &Reactor) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Shared {
    /// What belongs to the parent is left to it, once.
    #[cold]
    fn become_child(&self) {
        let mut woken = Woken::default();
        self.core.borrow_mut().become_child(&mut woken);
        woken.finish(&self.companions);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Before the table is drained, which would send what is left to send.
        if self.origin.is_a_parents() {
            self.become_child();
        }
    }
}

/// What a driver leans on, as configured.
fn ground(config: &Config, clock: Clock, place: SleepPlace) -> Ground {
    let pool = Pool::new(config.buffers.clamp(1, BUFFERS_MAX));
    let budget = Rc::new(Budget::new(config.descriptors_reserve, clock.clone()));
    Ground { pool, budget, clock, place }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("driver", &self.0.report.kind()).finish_non_exhaustive()
    }
}

impl Woken {
    /// Whether anybody is in it, or was: then its memory is to be given back.
    #[inline]
    fn is_unused(&self) -> bool {
        self.wake.capacity() == 0 && self.drop.capacity() == 0
    }

    fn finish(&mut self, companions: &Tasks) {
        take_each(&mut self.wake, |sleeper| companions.wake(sleeper));
        self.drop.clear();
    }
}

/// Keeps a [companion](Reactor::companion) running.
pub struct Companion {
    shared: std::rc::Weak<Shared>,
    id: TaskId,
}

impl Drop for Companion {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.companions.remove(&self.id);
        }
    }
}

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Companion")
    }
}

/// Ends at a moment. Made by [`Reactor::sleep`]. Never early; late by as long as the reactor is busy, and by
/// up to a millisecond on the epoll driver (in a guest by less).
#[must_use = "a sleep does nothing until awaited"]
pub struct Sleep {
    reactor: Reactor,
    moment: Instant,
    alarm: Option<Alarm>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.reactor.now() >= self.moment {
            self.unset();
            return Poll::Ready(());
        }
        let (moment, asker) = (self.moment, self.reactor.asker(context));
        let alarm = self.alarm;
        self.alarm = self.reactor.with(|core, woken| match alarm {
            Some(alarm) => {
                woken.drop.extend(core.timers.replace(alarm, asker));
                Some(alarm)
            }
            None => Some(core.timers.set(moment, asker)),
        });
        Poll::Pending
    }
}

impl Sleep {
    fn unset(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            self.reactor.with(|core, woken| woken.drop.extend(core.timers.unset(alarm)));
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unset();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("moment", &self.moment).finish_non_exhaustive()
    }
}
