//! The twenty lines of Python: they call a plain object of ours, serve one to us, pass one on to us, and get
//! one passed on. On each driver; without a `python3` each body says that it is skipped.
//!
//! Python has only what it is given, so that what it drops is noticed here, and what is dropped here is
//! noticed there.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{ErrorKind, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ring::{Executor, Message, Reactor};
use seqpacket::{CallError, PlainMailbox, PlainObject, PlainViolations, plain_object};
use testing::{on_each_driver, packet_pair, send_packet, settle};

/// Where `plain.py` is.
const MODULES: &str = env!("CARGO_MANIFEST_DIR");

/// What every script begins with. Descriptor 3 is what Python was given.
const PREAMBLE: &str = "\
import os, socket
from plain import call, serve
def pair(): return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def end(number): return socket.socket(fileno=number)
def passed_on(number): return socket.fromfd(number, socket.AF_UNIX, socket.SOCK_SEQPACKET)
given = end(3)
";

#[test]
fn twenty_lines_are_twenty_lines() {
    let text = fs::read_to_string(Path::new(MODULES).join("plain.py")).unwrap();
    let mut lines = 0;
    for (index, part) in text.split("\"\"\"").enumerate() {
        // Every other part is documentation; what stands before and after one is no line of its own.
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
        lines += if index % 2 == 0 { part.lines().filter(is_code).count() } else { 0 };
    }
    assert!(lines > 10, "only {lines} lines were found");
    assert!(lines <= 20, "{lines} lines");
}

on_each_driver! {
    fn python_calls_an_object_of_ours(reactor: &Reactor) {
        let (shouter, mailbox) = plain_object(reactor).unwrap();
        let script = "
answer, fds, *_ = call(given, b'hello')
assert (answer, fds) == (b'HELLO', []), (answer, fds)
answer, *_ = call(given, bytes(102080))
assert answer == bytes(102080)
";
        let Some(python) = start(shouter.share().unwrap(), script) else { return };
        drop(shouter);
        settle(reactor, async {
            for expected in [5, 102_080] {
                let call = mailbox.next().await.expect("python has not called");
                assert_eq!(call.bytes().len(), expected);
                let louder = call.bytes().to_ascii_uppercase();
                call.answer(louder).unwrap();
            }
            assert!(mailbox.next().await.is_none(), "python has ended and still calls");
        });
        assert_eq!(mailbox.violations(), PlainViolations::default());
        succeeded(python);
    }

    fn python_notices_that_nobody_will_answer(reactor: &Reactor) {
        let (silent, mailbox) = plain_object(reactor).unwrap();
        let script = "
answer, fds, *_ = call(given, b'anyone?')
assert (answer, fds) == (b'', []), (answer, fds)
";
        let Some(python) = start(silent.share().unwrap(), script) else { return };
        drop(silent);
        settle(reactor, async {
            drop(mailbox.next().await.expect("python has not called"));
            assert!(mailbox.next().await.is_none());
        });
        succeeded(python);
    }

    fn python_sends_descriptors_in_order_and_gets_them_answered(reactor: &Reactor) {
        let (writer, mailbox) = plain_object(reactor).unwrap();
        let script = "
ends = [os.pipe() for _ in range(3)]
answer, fds, *_ = call(given, b'write', *(far for near, far in ends))
assert answer == b'written' and len(fds) == 1, (answer, fds)
for near, far in ends: os.close(far)
assert [os.read(near, 9) for near, far in ends] == [b'0', b'1', b'2']
assert os.read(fds[0], 9) == b'of ours'
";
        let Some(python) = start(writer.share().unwrap(), script) else { return };
        drop(writer);
        settle(reactor, async {
            let mut call = mailbox.next().await.expect("python has not called");
            assert_eq!(call.descriptors(), 3);
            for (number, fd) in call.take_descriptors().into_iter().enumerate() {
                write!(std::fs::File::from(fd), "{number}").unwrap();
            }
            let (reader, mut ours) = pipe().unwrap();
            ours.write_all(b"of ours").unwrap();
            call.answer(Message::from("written").with_descriptor(OwnedFd::from(reader))).unwrap();
            assert!(mailbox.next().await.is_none());
        });
        succeeded(python);
    }

    fn python_serves_an_object_to_us(reactor: &Reactor) {
        let (thing, mailbox) = packet_pair();
        let script = "serve(given, lambda message, arguments: ([message[::-1]], []))";
        let Some(python) = start(mailbox, script) else { return };
        let reverser = PlainObject::from_fd(reactor, thing).unwrap();
        settle(reactor, async {
            assert_eq!(reverser.call("stressed").await.unwrap().bytes(), b"desserts");
            // Many at a time: each answer comes to its own call.
            let calls: Vec<_> = (0..100).map(|n| (n, reverser.call(format!("{n:03}")))).collect();
            for (n, call) in calls {
                let reversed: String = format!("{n:03}").chars().rev().collect();
                assert_eq!(call.await.unwrap().bytes(), reversed.as_bytes());
            }
        });
        ends_with(reactor, reverser);
        succeeded(python);
    }

    fn python_serves_on_whatever_becomes_of_a_call(reactor: &Reactor) {
        let (thing, mailbox) = packet_pair();
        let script = "
def handler(message, arguments):
    if message == b'fail': raise FileNotFoundError()
    if message == b'wait': os.read(arguments[0], 1)
    return [b'answer'], []
before = len(os.listdir('/proc/self/fd'))
serve(given, handler)
assert len(os.listdir('/proc/self/fd')) == before, os.listdir('/proc/self/fd')
";
        let Some(python) = start(mailbox, script) else { return };
        // No descriptor to answer on, and one that is no socket.
        send_packet(&thing, b"nobody", &[]).unwrap();
        let (reader, _writer) = pipe().unwrap();
        send_packet(&thing, b"a pipe", &[reader.as_fd()]).unwrap();
        let object = PlainObject::from_fd(reactor, thing).unwrap();
        settle(reactor, async {
            assert!(matches!(object.call("fail").await, Err(CallError::Dropped)));
            // Withdrawn while python is at it: the answer finds nobody.
            let (reader, mut writer) = pipe().unwrap();
            let withdrawn = object.call(Message::from("wait").with_descriptor(OwnedFd::from(reader)));
            let next = object.call("next");
            reactor.turn(ring::Wait::Not).unwrap();
            drop(withdrawn);
            reactor.turn(ring::Wait::Not).unwrap();
            writer.write_all(b".").unwrap();
            assert_eq!(next.await.unwrap().bytes(), b"answer");
        });
        ends_with(reactor, object);
        succeeded(python);
    }

    fn python_passes_an_object_on_to_us(reactor: &Reactor) {
        let (ours, mailbox) = plain_object(reactor).unwrap();
        let script = "
thing, mailbox = pair()
with thing, given:
    assert call(given, b'call me', thing.fileno())[0] == b'thank you'
serve(mailbox, lambda message, arguments: ([b'python says ' + message], []))
";
        let Some(python) = start(ours.share().unwrap(), script) else { return };
        drop(ours);
        settle(reactor, async {
            let mut call = mailbox.next().await.expect("python has not called");
            let thing = call.take_descriptor().expect("python has passed nothing on");
            call.answer("thank you").unwrap();
            assert!(mailbox.next().await.is_none(), "python still holds an object of ours");
            let thing = PlainObject::from_fd(reactor, thing).unwrap();
            assert_eq!(thing.call("hello").await.unwrap().bytes(), b"python says hello");
            drop(thing);
        });
        // With the last holder gone python ends.
        Executor::new(reactor).settle();
        succeeded(python);
    }

    fn python_is_passed_an_object_of_ours_and_passes_it_back(reactor: &Reactor) {
        let (thing, mailbox) = packet_pair();
        let script = "
def handler(message, arguments):
    with passed_on(arguments[0]) as theirs:
        return [call(theirs, message)[0] + b', says python'], arguments
serve(given, handler)
";
        let Some(python) = start(mailbox, script) else { return };
        let errand = PlainObject::from_fd(reactor, thing).unwrap();
        let (ours, our_mailbox) = plain_object(reactor).unwrap();
        settle(reactor, async {
            let call = errand.call(Message::from("hello").with_descriptor(ours.share().unwrap()));
            drop(ours);
            serve_once(&our_mailbox).await;
            let mut answer = call.await.unwrap();
            assert_eq!(answer.bytes(), b"HELLO, says python");
            // What came back is the object itself: whoever calls it reaches us.
            let back = PlainObject::from_fd(reactor, answer.take_descriptor().unwrap()).unwrap();
            let call = back.call("again");
            serve_once(&our_mailbox).await;
            assert_eq!(call.await.unwrap().bytes(), b"AGAIN");
            // Python has closed its own, so this one is the last.
            drop(back);
            assert!(our_mailbox.next().await.is_none(), "python still holds an object of ours");
        });
        ends_with(reactor, errand);
        succeeded(python);
    }

    fn python_hands_a_call_of_ours_to_somebody_who_answers_in_its_place(reactor: &Reactor) {
        let (front, front_mailbox) = packet_pair();
        let (worker, worker_mailbox) = plain_object(reactor).unwrap();
        // The front is given the worker with the first call, and sends it all others as they came.
        let script = "
answer, (worker, continuation), *_ = socket.recv_fds(given, 102080, 253)
os.close(continuation)
while (packet := socket.recv_fds(given, 102080, 253))[0]:
    socket.send_fds(end(os.dup(worker)), [packet[0]], packet[1])
    for fd in packet[1]: os.close(fd)
";
        let Some(python) = start(front_mailbox, script) else { return };
        let front = PlainObject::from_fd(reactor, front).unwrap();
        settle(reactor, async {
            let introduction = Message::from("your worker").with_descriptor(worker.share().unwrap());
            drop(worker);
            assert!(matches!(front.call(introduction).await, Err(CallError::Dropped)));
            let call = front.call("hello");
            serve_once(&worker_mailbox).await;
            assert_eq!(call.await.unwrap().bytes(), b"HELLO");
        });
        ends_with(reactor, front);
        succeeded(python);
    }

    fn the_death_of_python_ends_our_calls(reactor: &Reactor) {
        let (thing, mailbox) = packet_pair();
        let script = "
import signal
serve(given, lambda message, arguments: os.kill(os.getpid(), signal.SIGKILL))
";
        let Some(mut python) = start(mailbox, script) else { return };
        let object = PlainObject::from_fd(reactor, thing).unwrap();
        settle(reactor, async {
            // One that python has taken, and one that nobody reads.
            let (taken, unread) = (object.call("taken"), object.call("unread"));
            assert!(matches!(taken.await, Err(CallError::Dropped)));
            assert!(matches!(unread.await, Err(CallError::Dropped | CallError::Gone)));
            assert!(matches!(object.call("late").await, Err(CallError::Gone)));
        });
        assert!(!python.wait().unwrap().success());
    }
}

async fn serve_once(mailbox: &PlainMailbox) {
    let call = mailbox.next().await.expect("nobody has called");
    let louder = call.bytes().to_ascii_uppercase();
    call.answer(louder).unwrap();
}

/// Lets go of an object, so that whoever serves it ends.
fn ends_with(reactor: &Reactor, object: PlainObject) {
    drop(object);
    Executor::new(reactor).settle();
}

/// Starts a script that has this descriptor as its third and no other. `None` if the machine has no Python,
/// which has then been said.
#[track_caller]
fn start(descriptor: OwnedFd, script: &str) -> Option<Child> {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{PREAMBLE}{script}")]);
    command.env("PYTHONPATH", MODULES).env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    ring::inherit::give(&mut command, vec![(descriptor, 3)]);
    match command.spawn() {
        Ok(python) => Some(python),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: python3: {error}");
            None
        }
        Err(error) => panic!("python3: {error}"),
    }
}

#[track_caller]
fn succeeded(mut python: Child) {
    let mut complaints = String::new();
    python.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    let status = python.wait().unwrap();
    assert!(status.success() && complaints.is_empty(), "python3: {status}\n{complaints}");
}
