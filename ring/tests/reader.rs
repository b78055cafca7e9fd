//! Messages that are read where they have arrived: what a reader is shown, what it is not, who is woken, and
//! that nothing changes its place.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ring::{Executor, Kind, Reactor, Reader, Reading, ReceiveError, Socket, Wait};
use testing::{on_each_driver, receive_packet, send_packet, settle, turn};

#[derive(Default)]
struct Woken(AtomicUsize);

impl Woken {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Is done with what begins with "read", and keeps it.
#[derive(Default)]
struct Shelf {
    read: RefCell<Vec<Vec<u8>>>,
    shown: Cell<usize>,
    unsent: Cell<usize>,
    turn: Cell<u64>,
    wakes: RefCell<Option<Waker>>,
    /// Whether it takes a descriptor out of each message, and the last it has taken.
    takes: Cell<bool>,
    taken: RefCell<Option<OwnedFd>>,
}

impl Reader for Shelf {
    fn read(&self, reading: Reading<'_>) -> bool {
        let Reading { bytes, descriptors, turn, unsent, mut wakes, .. } = reading;
        self.shown.set(self.shown.get() + 1);
        self.unsent.set(unsent);
        self.turn.set(turn);
        if let Some(waker) = &*self.wakes.borrow() {
            wakes.wake(waker.clone());
        }
        if self.takes.get() {
            *self.taken.borrow_mut() = descriptors.take_first();
        }
        let read = bytes.starts_with(b"read");
        if read {
            self.read.borrow_mut().push(bytes.to_vec());
        }
        read
    }
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

fn pair(reactor: &Reactor) -> (Socket, OwnedFd, Rc<Shelf>) {
    let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
    let shelf = Rc::new(Shelf::default());
    near.set_reader(Rc::downgrade(&shelf));
    near.stream();
    (near, far, shelf)
}

/// Takes turns until the reader has been shown so many.
fn turn_until_shown(reactor: &Reactor, shelf: &Shelf, count: usize) {
    while shelf.shown.get() < count {
        turn(reactor);
    }
}

fn next(near: &Socket, waker: &Waker) -> Option<Result<Vec<u8>, ReceiveError>> {
    match near.poll_receive(&mut Context::from_waker(waker)) {
        Poll::Ready(received) => Some(received.map(|message| message.into_bytes())),
        Poll::Pending => None,
    }
}

on_each_driver! {
    fn what_the_reader_is_done_with_wakes_nobody(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        let woken = Arc::new(Woken::default());
        assert!(next(&near, &Waker::from(Arc::clone(&woken))).is_none());
        for count in 1..=3 {
            send_packet(&far, b"read", &[]).unwrap();
            turn_until_shown(reactor, &shelf, count);
        }
        assert_eq!((woken.count(), near.has_arrived()), (0, false));
        // And whoever waited waits still.
        send_packet(&far, b"wake", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 4);
        assert_eq!(woken.count(), 1);
        assert_eq!(next(&near, Waker::noop()).unwrap().unwrap(), b"wake");
    }

    fn what_the_reader_is_not_done_with_is_still_to_be_received(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        send_packet(&far, b"another", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 1);
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"another");
        assert!(shelf.read.borrow().is_empty());
    }

    fn nothing_is_read_before_what_came_before_it(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        [b"read 1", b"kept 2", b"read 3"].iter().for_each(|packet| send_packet(&far, *packet, &[]).unwrap());
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"kept 2");
        // It may have come before the second was taken, or after that.
        if shelf.read.borrow().len() == 1 {
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"read 3");
        }
        assert_eq!(shelf.read.borrow()[0], b"read 1");
        // Nothing waits any more, and the next is read.
        send_packet(&far, b"read 4", &[]).unwrap();
        let count = shelf.read.borrow().len();
        while shelf.read.borrow().len() == count {
            turn(reactor);
        }
        assert_eq!(shelf.read.borrow().last().unwrap(), b"read 4");
    }

    fn what_waits_to_be_received_keeps_all_behind_it(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        send_packet(&far, b"kept 1", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 1);
        send_packet(&far, b"read 2", &[]).unwrap();
        let far = Socket::wrap(reactor, far).unwrap();
        settle(reactor, far.send("read 3")).unwrap();
        turn(reactor);
        turn(reactor);
        for expected in [b"kept 1", b"read 2", b"read 3"] {
            assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), expected);
        }
        assert_eq!(shelf.shown.get(), 1);
    }

    fn the_reader_takes_descriptors_and_what_it_leaves_is_closed(reactor: &Reactor) {
        let (_near, far, shelf) = pair(reactor);
        shelf.takes.set(true);
        let [(one, _), (other, watched)] = [(); 2].map(|()| std::io::pipe().unwrap());
        send_packet(&far, b"read two", &[one.as_fd(), other.as_fd()]).unwrap();
        drop(other);
        turn_until_shown(reactor, &shelf, 1);
        assert_eq!(inode(shelf.taken.borrow().as_ref().unwrap()), inode(&one));
        // Of the other none is open any more, sooner or later.
        testing::wait_until("nobody can read", || (&watched).write(b"?").is_err());
    }

    fn what_the_reader_has_taken_does_not_come_with_the_rest(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        shelf.takes.set(true);
        let [(one, _), (other, _)] = [(); 2].map(|()| std::io::pipe().unwrap());
        send_packet(&far, b"two", &[one.as_fd(), other.as_fd()]).unwrap();
        let left = settle(reactor, near.receive()).unwrap().take_descriptors();
        assert_eq!(inode(shelf.taken.borrow().as_ref().unwrap()), inode(&one));
        assert_eq!((left.len(), inode(&left[0])), (1, inode(&other)));
        assert_eq!(reactor.stats().descriptors_received, 2);
    }

    fn what_has_lost_descriptors_is_not_shown(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        near.set_descriptors_max(1);
        let (one, other) = std::io::pipe().unwrap();
        send_packet(&far, b"read two pipes", &[one.as_fd(), other.as_fd()]).unwrap();
        let received = settle(reactor, near.receive());
        assert!(matches!(received, Err(ReceiveError::DescriptorsLost(_))));
        assert_eq!(shelf.shown.get(), 0);
    }

    fn the_end_is_not_shown(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        send_packet(&far, b"read this", &[]).unwrap();
        drop(far);
        assert!(matches!(settle(reactor, near.receive()), Err(ReceiveError::Closed)));
        assert_eq!((shelf.shown.get(), shelf.read.borrow().len()), (1, 1));
    }

    fn an_empty_packet_is_not_shown_and_is_not_the_end(reactor: &Reactor) {
        let (_near, far, shelf) = pair(reactor);
        for packet in [b"".as_slice(), b"", b"read this"] {
            send_packet(&far, packet, &[]).unwrap();
        }
        turn_until_shown(reactor, &shelf, 1);
        assert_eq!(shelf.read.borrow()[0], b"read this");
    }

    fn whom_the_reader_wakes_is_woken_in_that_turn(reactor: &Reactor) {
        let (_near, far, shelf) = pair(reactor);
        let woken = Arc::new(Woken::default());
        *shelf.wakes.borrow_mut() = Some(Waker::from(Arc::clone(&woken)));
        send_packet(&far, b"read", &[]).unwrap();
        while shelf.shown.get() == 0 {
            assert_eq!(woken.count(), 0);
            reactor.turn(Wait::Not).unwrap();
        }
        assert_eq!((woken.count(), shelf.turn.get()), (1, reactor.turns()));
    }

    /// Somebody else's code, which may use the reactor.
    fn whom_the_reader_wakes_may_use_the_reactor(reactor: &Reactor) {
        let (_near, far, shelf) = pair(reactor);
        let executor = Executor::new(reactor);
        let wakes = Rc::clone(&shelf);
        executor.block_on(std::future::poll_fn(|context| {
            if wakes.wakes.borrow_mut().replace(context.waker().clone()).is_none() {
                send_packet(&far, b"read", &[]).unwrap();
            }
            // It was woken by the reader, and asks the reactor.
            if wakes.turn.get() > 0 && reactor.turns() > 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(shelf.read.borrow().len(), 1);
    }

    fn the_reader_is_told_what_its_socket_has_not_sent(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        // Beyond what the queue takes.
        (0..200).for_each(|_| near.post(&[&[0; 60_000]], Vec::new()));
        turn(reactor);
        assert!(near.unsent() > 0);
        send_packet(&far, b"read", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 1);
        assert_eq!(shelf.unsent.get(), near.unsent());
        while receive_packet(&far).is_ok_and(|_| near.unsent() > 0) {
            turn(reactor);
        }
        send_packet(&far, b"read", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 2);
        assert_eq!(shelf.unsent.get(), 0);
    }

    fn once_the_reader_is_gone_all_is_received(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        drop(shelf);
        send_packet(&far, b"read", &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().bytes(), b"read");
    }

    fn another_reader_takes_the_place_of_the_first(reactor: &Reactor) {
        let (near, far, shelf) = pair(reactor);
        let second = Rc::new(Shelf::default());
        near.set_reader(Rc::downgrade(&second));
        send_packet(&far, b"read", &[]).unwrap();
        turn_until_shown(reactor, &second, 1);
        assert_eq!((shelf.shown.get(), Rc::weak_count(&shelf)), (0, 0));
    }

    fn what_is_read_is_counted(reactor: &Reactor) {
        let (_near, far, shelf) = pair(reactor);
        let before = reactor.stats();
        send_packet(&far, b"read this", &[]).unwrap();
        turn_until_shown(reactor, &shelf, 1);
        let after = reactor.stats();
        let messages = after.messages_received - before.messages_received;
        assert_eq!((messages, after.bytes_received - before.bytes_received), (1, 9));
    }
}
