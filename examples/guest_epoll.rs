//! Objects in a program that has a loop already: plain epoll, with the reactor as one of its guests.
//!
//! The loop owns the thread and sleeps. It watches a clock of its own, and the guest's descriptor, which is
//! readable whenever there is something to do for the sockets, timers and tasks that live on the guest. A
//! second process is called from those tasks; it is an ordinary program that sleeps in its reactor.
//!
//! ```text
//! cargo run --release -p sendright-examples --example guest_epoll
//! ```

use std::cell::RefCell;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Duration;

use ring::{Executor, Guest, Reactor};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use seqpacket::{Mailbox, Object};

type Failure = Box<dyn Error>;

/// The number under which the child finds its descriptor.
const MAILBOX: i32 = 3;

/// What the loop is told about.
const CLOCK: u64 = 0;
const GUEST: u64 = 1;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(ring::inherit::take(MAILBOX)?),
        _ => host(),
    }
}

// -- the host: a loop like any program's -------------------------------------------------------------------

fn host() -> Result<(), Failure> {
    let guest = Guest::new()?;
    println!("the guest runs on {}", guest.reactor().driver());
    let (object, mut server) = start_server(guest.reactor())?;

    // What the program's loop did before there was a guest: here it looks at a clock.
    let clock = ticking(Duration::from_millis(5))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &clock, epoll::EventData::new_u64(CLOCK), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &guest, epoll::EventData::new_u64(GUEST), epoll::EventFlags::IN)?;

    // Work for the guest: calls and timers, written as if there were no loop.
    let story: Rc<RefCell<Vec<String>>> = Rc::default();
    let (told, reactor) = (Rc::clone(&story), guest.reactor().clone());
    guest.executor().spawn(async move {
        for word in ["one", "loop", "serves", "both"] {
            match object.call(word).await {
                Ok(answer) => told.borrow_mut().push(String::from_utf8_lossy(answer.bytes()).into_owned()),
                Err(error) => told.borrow_mut().push(error.to_string()),
            }
            reactor.sleep(Duration::from_millis(10)).await;
        }
        // The object is dropped here, and the server ends.
    });

    let mut ticks = 0_u64;
    let mut tasks_left = true;
    let mut events = Vec::with_capacity(8);
    while tasks_left || ticks < 3 {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                CLOCK => ticks += expired(&clock)?,
                _ => tasks_left = guest.turn()?.tasks_left,
            }
        }
    }
    println!("the guest was told: {}", story.borrow().join(" "));
    println!("the clock ticked, too: {}", ticks >= 3);
    // The object is closed in the guest's next turn.
    guest.turn()?;
    let status = server.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the server did not end well: {status}").into()) }
}

fn ticking(every: Duration) -> Result<OwnedFd, Failure> {
    let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let every = Timespec::try_from(every)?;
    let times = Itimerspec { it_interval: every, it_value: every };
    timerfd_settime(&clock, TimerfdTimerFlags::empty(), &times)?;
    Ok(clock)
}

fn expired(clock: &OwnedFd) -> Result<u64, Failure> {
    let mut count = [0; 8];
    rustix::io::read(clock, &mut count)?;
    Ok(u64::from_ne_bytes(count))
}

// -- the server: a program of the ordinary kind ------------------------------------------------------------

fn start_server(reactor: &Reactor) -> Result<(Object, Child), Failure> {
    let (bound, address) = imc::bound_socket(reactor)?;
    let mailbox = bound.into_fd().map_err(|_| "a fresh socket is idle")?;
    let address = address.into_fd().map_err(|_| "a fresh socket is idle")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve");
    ring::inherit::give(&mut command, vec![(mailbox, MAILBOX)]);
    Ok((Object::from_fd(reactor, address)?, command.spawn()?))
}

fn serve(mailbox: OwnedFd) -> Result<(), Failure> {
    let reactor = Reactor::new()?;
    let mailbox = Mailbox::from_fd(&reactor, mailbox)?;
    Executor::new(&reactor).block_on(async {
        while let Some(call) = mailbox.next().await {
            let loud = call.bytes().to_ascii_uppercase();
            // A caller that went away meanwhile is not an error of the server.
            let _ = call.answer(loud);
        }
    });
    Ok(())
}
