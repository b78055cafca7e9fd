//! Others who hold the same sockets: whatever they set, send, receive or leave there, the server serves, the
//! calls of others end as they should, and nothing is left behind. Servers are processes of their own.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use ring::{Executor, Message, Reactor};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown};
use seqpacket::wire::{Header, Hello, Kind, Size};
use seqpacket::{
    CallError, Mailbox, Object, Part, PlainMailbox, PlainObject, blocking, make_socket, object, plain_object,
};
use support::*;
use testing::meddling::{SO_PASSRIGHTS, set_option};
use testing::{
    Census, Lingering, helper, lingering_tcp, meddle, on_each_driver, only, packet_pair, park,
    receive_packet, send_packet, start_helper,
};

helper! {
    /// Answers each call with its own bytes and descriptors, until nobody holds the object.
    fn serves(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = Mailbox::from_fd(&reactor, only(descriptors)).unwrap();
        Executor::new(&reactor).block_on(echo(mailbox));
    }

    /// The same with a plain object.
    fn serves_plainly(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let mailbox = PlainMailbox::from_fd(&reactor, only(descriptors)).unwrap();
        Executor::new(&reactor).block_on(plain_echo(mailbox));
    }

    /// Leaves as many descriptors as it can in the queue of the first, each packet with the bytes it was
    /// told, and says on the second how many.
    fn parks(descriptors: Vec<OwnedFd>) {
        testing::count_apart();
        let count = park(&descriptors[0], testing::helper_argument().as_bytes());
        send_packet(&descriptors[1], count.to_string().as_bytes(), &[]).unwrap();
    }

    /// Of the user it is told, has as many descriptors in flight as a process of that user with 200 may not
    /// have, until it is told to go.
    fn crowds(descriptors: Vec<OwnedFd>) {
        let user = testing::helper_argument().parse().unwrap();
        if !testing::become_user_of(user) {
            return;
        }
        let (near, _far) = packet_pair();
        let (reader, _writer) = std::io::pipe().unwrap();
        for _ in 0..2 {
            send_packet(&near, b"parked", &[reader.as_fd(); 200]).unwrap();
        }
        send_packet(&descriptors[0], b"parked", &[]).unwrap();
        let _ = receive_packet(&descriptors[0]);
    }
}

/// Bytes that fill a packet, and a descriptor.
fn largest() -> Message {
    Message::new(vec![7; 60_000]).with_descriptor(null())
}

/// The number of descriptors a hostile process has left in the queue of `socket`.
#[track_caller]
fn parked(socket: &OwnedFd, bytes: &str) -> usize {
    let (told, tell) = packet_pair();
    let helper = start_helper!(parks, vec![socket.try_clone().unwrap(), tell], bytes);
    let count = String::from_utf8(receive_packet(&told).unwrap().bytes).unwrap().parse().unwrap();
    helper.succeeded();
    if count < 70_000 {
        eprintln!("no more than {count} could be parked here");
    }
    count
}

fn unconnected() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn listening() -> OwnedFd {
    let path = std::env::temp_dir().join(format!("sendright-holders-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    listener.into()
}

/// Everything that a stranger may give as the end to answer on and that is none.
fn forgeries() -> Vec<(&'static str, OwnedFd)> {
    let (stream, _) = testing::stream_pair();
    let (reader, writer) = std::io::pipe().unwrap();
    let path_only = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let memory = rustix::fs::memfd_create("forged", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    vec![
        ("a file", std::fs::File::open("/proc/self/status").unwrap().into()),
        ("a directory", std::fs::File::open("/").unwrap().into()),
        ("a path", path_only),
        ("a device", null()),
        ("a file in memory", memory),
        ("a pipe to read", reader.into()),
        ("a pipe to write", writer.into()),
        ("a stream", stream),
        ("a socket connected to nobody", unconnected()),
        ("a socket that listens", listening()),
        ("a socket of another family", std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()),
    ]
}

on_each_driver! {
    // What others set.

    fn whatever_a_holder_sets_on_a_plain_object_calls_are_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, object) = packet_pair();
        let (theirs, servers) = (object.try_clone().unwrap(), bound.try_clone().unwrap());
        let server = start_helper!(serves_plainly, vec![bound]);
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let waiting = blocking::PlainObject::from_fd(theirs.try_clone().unwrap()).unwrap();
        // The end that is called on, which every caller holds; and the end that serves, which siblings hold.
        for held in [theirs, servers] {
            meddle(&held, |what| {
                let answer = executor.block_on(object.call(largest()));
                let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!((answer.bytes().len(), answer.descriptors()), (60_000, 1), "{what}");
                let answer = waiting.call("hello").unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(answer.bytes(), b"hello", "{what}");
            });
        }
        drop((object, waiting));
        server.succeeded();
    }

    fn whatever_a_holder_sets_on_an_address_clients_attach(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = packet_pair();
        let servers = bound.try_clone().unwrap();
        let server = start_helper!(serves, vec![bound]);
        for held in [&address, &servers] {
            meddle(held, |what| {
                let object = Object::from_fd(reactor, address.try_clone().unwrap()).unwrap();
                let answer = executor.block_on(object.call(largest()));
                let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!((answer.bytes().len(), answer.descriptors()), (60_000, 1), "{what}");
                let object = blocking::Object::from_fd(address.try_clone().unwrap()).unwrap();
                let answer = object.call("hello").unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(answer.bytes(), b"hello", "{what}");
            });
        }
        drop((address, servers));
        server.succeeded();
    }

    /// The client made the session's pair, and may have kept the end that it gave away.
    fn whatever_a_client_sets_on_the_servers_end_its_calls_are_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = packet_pair();
        let server = start_helper!(serves, vec![bound]);
        let (near, far) = packet_pair();
        send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        assert_eq!(receive_packet(&near).unwrap().bytes, Hello::default().frame());
        let friend = Object::from_fd(reactor, address).unwrap();
        meddle(&far, |what| {
            let fd = null();
            send_packet(&near, &call_with(7, &[7; 60_000], 1, 60_000), &[fd.as_fd()]).unwrap();
            // It had room for bytes and for no descriptor; another has for both.
            let refused = said_by_server(&receive_packet(&near).unwrap());
            assert_eq!((refused[0].0, refused[0].1), (Kind::Refused, 7), "{what}");
            let room = Size::of_bytes(60_000).unwrap().with_descriptors(1).unwrap();
            let sent = Size::of_bytes(60_000).unwrap().with_descriptors(1).unwrap();
            send_packet(&near, &frame(Header::call(8, sent, room), &[7; 60_000]), &[fd.as_fd()]).unwrap();
            let answer = receive_packet(&near).unwrap();
            assert_eq!(answer.descriptors.len(), 1, "{what}");
            assert_eq!(said_by_server(&answer), [(Kind::Answer, 8, vec![7; 60_000])], "{what}");
            assert_eq!(executor.block_on(friend.call("mine")).unwrap().bytes(), b"mine", "{what}");
        });
        drop((near, far, friend));
        server.succeeded();
    }

    fn whatever_a_holder_sets_the_callback_is_called(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let heard = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = std::rc::Rc::clone(&heard);
        let (socket, listening) = make_socket(reactor, move |_| count.set(count.get() + 1)).unwrap();
        let mut said = 0;
        meddle(&socket, |what| {
            send_packet(&socket, b"hello", &[]).unwrap();
            said += 1;
            until(&executor, what, || heard.get() == said);
        });
        drop(listening);
    }

    /// A descriptor cannot be sent to a server that takes none (Linux 6.16): an error of that call, and what
    /// needs none goes on.
    fn a_server_that_takes_no_descriptors_is_an_error_of_those_calls(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (server, object) = RawServer::new(reactor);
        let mut first = object.call("first");
        assert!(poll_once(&mut first).is_pending());
        let session = server.attach(&executor, Hello::default());
        executor.settle();
        if !set_option(session.near.as_fd(), SO_PASSRIGHTS, &0_i32.to_ne_bytes()) {
            eprintln!("skipped: this kernel has no SO_PASSRIGHTS");
            return;
        }
        let error = executor.block_on(object.call(largest())).unwrap_err();
        assert!(matches!(&error, CallError::Io(error) if error.raw_os_error() == Some(1)), "{error}");
        assert!(session.say(&answer(0, b"still served", 0), &[]));
        assert_eq!(executor.block_on(first).unwrap().bytes(), b"still served");
        // Nor can a call of a plain object, which always carries one, or a request to attach.
        let (bound, plain) = packet_pair();
        assert!(set_option(bound.as_fd(), SO_PASSRIGHTS, &0_i32.to_ne_bytes()));
        let attaching = Object::from_fd(reactor, plain.try_clone().unwrap()).unwrap();
        assert!(matches!(executor.block_on(attaching.call("hello")), Err(CallError::Io(_))));
        let plain = PlainObject::from_fd(reactor, plain).unwrap();
        assert!(matches!(executor.block_on(plain.call("hello")), Err(CallError::Io(_))));
    }

    /// A client that takes no descriptors has no answers with any, and keeps nobody else from theirs.
    fn a_client_that_takes_no_descriptors_harms_itself_only(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let client = RawClient::attach(&executor, friend.share().unwrap());
        if !set_option(client.near.as_fd(), SO_PASSRIGHTS, &0_i32.to_ne_bytes()) {
            eprintln!("skipped: this kernel has no SO_PASSRIGHTS");
            return;
        }
        let fd = null();
        let room = Size::of_bytes(8).unwrap().with_descriptors(1).unwrap();
        let one = Size::NONE.with_descriptors(1).unwrap();
        for number in 0..300 {
            assert!(client.say(&frame(Header::call(number, one, room), &[]), &[fd.as_fd()]));
            let answer = said_by_server(&client.hear_from(&executor));
            assert_eq!((answer[0].0, answer[0].1), (Kind::Refused, number));
        }
        assert_eq!(executor.block_on(friend.call(largest())).unwrap().descriptors(), 1);
    }

    // What others shut down.

    /// All holders of one address are one trust domain, and a grant is the way out of it.
    fn who_shuts_an_address_down_ends_no_session_and_no_grant(reactor: &Reactor) {
        for half in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let executor = Executor::new(reactor);
            let (friend, mailbox) = object(reactor).unwrap();
            let granted = Object::from_fd(reactor, mailbox.grant().unwrap()).unwrap();
            executor.spawn(echo(mailbox));
            let friend = attached(&executor, friend);
            let address = friend.share().unwrap();
            shutdown(&address, half).unwrap();
            assert_eq!(executor.block_on(friend.call("attached")).unwrap().bytes(), b"attached");
            assert_eq!(executor.block_on(granted.call("granted")).unwrap().bytes(), b"granted");
            let late = Object::from_fd(reactor, address).unwrap();
            match executor.block_on(late.call("late")) {
                Ok(answer) => assert!(half == Shutdown::Read && answer.bytes() == b"late"),
                Err(error) => assert!(half != Shutdown::Read && matches!(error, CallError::Gone), "{error}"),
            }
        }
    }

    fn who_shuts_a_plain_object_down_ends_it_for_its_holders_and_loses_no_call(reactor: &Reactor) {
        for half in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let executor = Executor::new(reactor);
            let (object, mailbox) = plain_object(reactor).unwrap();
            let mut sent = object.call("sent before");
            assert!(poll_once(&mut sent).is_pending());
            executor.settle();
            shutdown(object.share().unwrap(), half).unwrap();
            executor.spawn(plain_echo(mailbox));
            assert_eq!(executor.block_on(sent).unwrap().bytes(), b"sent before");
            match executor.block_on(object.call("after")) {
                Ok(answer) => assert!(half == Shutdown::Read && answer.bytes() == b"after"),
                Err(error) => assert!(half != Shutdown::Read && matches!(error, CallError::Gone), "{error}"),
            }
        }
    }

    /// A session has two ends, and whoever holds either can end it, which ends its calls and nobody else's.
    fn who_shuts_its_session_down_ends_that_session_only(reactor: &Reactor) {
        for half in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let executor = Executor::new(reactor);
            let (friend, mailbox) = object(reactor).unwrap();
            let friend = attached(&executor, friend);
            for servers_end in [false, true] {
                let (near, far) = packet_pair();
                send_packet(friend.share().unwrap(), b"c", &[far.as_fd()]).unwrap();
                until(&executor, "it is attached", || mailbox.sessions() == 2);
                shutdown(if servers_end { &far } else { &near }, half).unwrap();
                // Half a session is none: what cannot be answered is not served for long.
                let _ = send_packet(&near, &call(7, b"hello", 8), &[]);
                drop((near, far));
                until(&executor, "it has ended", || mailbox.sessions() == 1);
            }
            let mut asked = friend.call("hello");
            assert!(poll_once(&mut asked).is_pending());
            let call = executor.block_on(async {
                loop {
                    let call = mailbox.next().await.unwrap();
                    if call.continuation().is_cancelled() {
                        continue;
                    }
                    break call;
                }
            });
            call.answer("still there").unwrap();
            assert_eq!(executor.block_on(asked).unwrap().bytes(), b"still there");
        }
    }

    // What others receive.

    /// What another holder of the serving end takes and closes is dropped; what it keeps is a call that
    /// nobody answers; what it leaves is served.
    fn a_stolen_plain_call_is_dropped_or_never_answered(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, object) = packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let mut calls: Vec<_> = ["thrown away", "kept", "left"].map(|text| object.call(text)).into();
        calls.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
        executor.settle();
        drop(receive_packet(&bound).unwrap());
        let kept = receive_packet(&bound).unwrap();
        let server = start_helper!(serves_plainly, vec![bound]);
        let left = executor.block_on(calls.pop().unwrap()).unwrap();
        assert_eq!(left.bytes(), b"left");
        let mut second = calls.pop().unwrap().within(Duration::from_millis(20));
        assert!(matches!(executor.block_on(calls.pop().unwrap()), Err(CallError::Dropped)));
        assert!(poll_once(&mut second).is_pending());
        assert!(matches!(executor.block_on(second), Err(CallError::Deadline)));
        drop((kept, object));
        server.succeeded();
    }

    /// A request to attach that another holder of the bound end keeps is one that nobody looks at; and it
    /// takes no place at the server.
    fn a_stolen_request_to_attach_is_one_that_nobody_looks_at(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = packet_pair();
        let (kept, thrown) = [(); 2].map(|()| address.try_clone().unwrap()).into();
        let kept = Object::from_fd(reactor, kept).unwrap();
        let thrown = Object::from_fd(reactor, thrown).unwrap();
        let mut first = kept.call("kept").within(Duration::from_millis(20));
        assert!(poll_once(&mut first).is_pending());
        executor.settle();
        let stolen = receive_packet(&bound).unwrap();
        let mut second = thrown.call("thrown away");
        assert!(poll_once(&mut second).is_pending());
        executor.settle();
        drop(receive_packet(&bound).unwrap());
        let server = start_helper!(serves, vec![bound]);
        assert!(matches!(executor.block_on(first), Err(CallError::Deadline)));
        let ended = executor.block_on(second).unwrap_err();
        assert!(matches!(ended, CallError::Dropped | CallError::Gone), "{ended}");
        let friend = Object::from_fd(reactor, address).unwrap();
        assert_eq!(executor.block_on(friend.call("served")).unwrap().bytes(), b"served");
        drop((stolen, kept, thrown, friend));
        server.succeeded();
    }

    /// A client that reads on the server's end of its own session takes nothing but its own.
    fn a_client_that_reads_the_servers_end_steals_from_itself(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let (near, far) = packet_pair();
        send_packet(friend.share().unwrap(), b"c", &[far.as_fd()]).unwrap();
        let client = RawClient { near };
        testing::set_nonblocking(&client.near);
        client.hear_from(&executor);
        client.say_all(&[call(1, b"stolen", 8)]);
        assert_eq!(receive_packet(&far).unwrap().bytes, call(1, b"stolen", 8));
        client.say_all(&[call(2, b"left", 8)]);
        assert_eq!(said_by_server(&client.hear_from(&executor)), [(Kind::Answer, 2, b"left".to_vec())]);
        assert_eq!(executor.block_on(friend.call("mine")).unwrap().bytes(), b"mine");
    }

    // What others forge.

    fn what_is_no_end_to_answer_on_is_dropped(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = plain_object(reactor).unwrap();
        let (other, sessions) = object(reactor).unwrap();
        let other = attached(&executor, other);
        let (plain, address) = (friend.share().unwrap(), other.share().unwrap());
        for (count, (what, forged)) in forgeries().iter().enumerate() {
            send_packet(&plain, b"a call", &[forged.as_fd()]).unwrap();
            let call = executor.block_on(async {
                let answered = friend.call("honest");
                (mailbox.next().await.unwrap().answer("served"), answered.await)
            });
            assert_eq!(call.1.unwrap().bytes(), b"served", "{what}");
            assert_eq!(mailbox.violations().not_a_continuation, count as u64 + 1, "{what}");
            send_packet(&address, b"c", &[forged.as_fd()]).unwrap();
            until(&executor, what, || sessions.violations().not_attaching == count as u64 + 1);
            assert_eq!(sessions.sessions(), 1, "{what}");
        }
    }

    /// Answered on itself a call would be the next call, in the server's own name, for ever.
    fn an_object_is_no_end_to_answer_its_own_calls_on(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for returning in [false, true] {
            let (object, mailbox) = plain_object(reactor).unwrap();
            if returning {
                mailbox.return_continuations();
            }
            let itself = object.share().unwrap();
            for _ in 0..3 {
                send_packet(&itself, b"round and round", &[itself.as_fd()]).unwrap();
            }
            let mut call = object.call("honest");
            assert!(poll_once(&mut call).is_pending());
            let incoming = executor.block_on(mailbox.next()).unwrap();
            assert_eq!(incoming.bytes(), b"honest");
            assert_eq!(mailbox.violations().not_a_continuation, 3);
            incoming.answer("served").unwrap();
            assert_eq!(executor.block_on(call).unwrap().bytes(), b"served");
        }
    }

    /// A session with oneself would take a place that nobody but the server could free: the object's own
    /// address, one that was granted, and one for the other.
    fn an_address_is_no_client_of_its_own_object(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let friend = attached(&executor, friend);
        let (main, granted) = (friend.share().unwrap(), mailbox.grant().unwrap());
        let mut counted = 0;
        for to in [&main, &granted] {
            for what in [&main, &granted] {
                send_packet(to, b"c", &[what.as_fd()]).unwrap();
                counted += 1;
                until(&executor, "it is refused", || mailbox.violations().not_attaching == counted);
                assert_eq!(mailbox.sessions(), 1);
            }
        }
        executor.spawn(echo(mailbox));
        for address in [main, granted] {
            let object = Object::from_fd(reactor, address).unwrap();
            assert_eq!(executor.block_on(object.call("served")).unwrap().bytes(), b"served");
        }
    }

    /// The near end of another session, a plain object, and the end of a session of somebody else's: what is
    /// said there is a word on the wrong object, and ends at most the session that was given away.
    fn a_session_on_somebody_elses_end_harms_whoever_gave_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let friend = attached(&executor, friend);
        let address = friend.share().unwrap();
        let (elsewhere, other) = object(reactor).unwrap();
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        let mine = RawClient::attach(&executor, &address);
        let theirs = RawClient::attach(&executor, elsewhere.share().unwrap());
        for end in [mine.near, theirs.near, plain.share().unwrap(), elsewhere.share().unwrap()] {
            send_packet(&address, b"c", &[end.as_fd()]).unwrap();
            executor.settle();
            assert_eq!(executor.block_on(friend.call("mine")).unwrap().bytes(), b"mine");
        }
        assert_eq!(other.violations().malformed, 1);
        until(&executor, "a greeting is no call", || {
            let mut next = Box::pin(plain_mailbox.next());
            assert!(poll_once(&mut next).is_pending());
            plain_mailbox.violations().without_continuation == 1
        });
    }

    /// An answer from elsewhere, by whatever a hostile server sends as the end of it.
    fn an_answer_from_a_forged_elsewhere_ends_that_call_or_that_session(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let census = Census::take();
        for (what, forged) in forgeries() {
            let (server, object) = RawServer::new(reactor);
            let mut asked = object.call("hello");
            assert!(poll_once(&mut asked).is_pending());
            let session = server.attach(&executor, Hello::default());
            session.hear_from(&executor);
            assert!(session.say(&bare(Header::elsewhere(0)), &[forged.as_fd()]), "{what}");
            let error = executor.block_on(asked).unwrap_err();
            assert!(matches!(error, CallError::Malformed(_)), "{what}: {error}");
            drop((server, forged, session, object));
            executor.settle();
        }
        // The address, the server's own end, the bound end: sockets all, on which nobody answers.
        let (server, object) = RawServer::new(reactor);
        let mut calls: Vec<_> = (0..3).map(|n| object.call(vec![n])).collect();
        calls.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
        let session = server.attach(&executor, Hello::default());
        session.hear_from(&executor);
        let address = object.share().unwrap();
        for (number, end) in [&address, &session.near, &server.bound].into_iter().enumerate() {
            let end: &OwnedFd = end;
            assert!(session.say(&bare(Header::elsewhere(number as u32)), &[end.as_fd()]));
        }
        executor.settle();
        drop((session, server, address));
        drop(calls);
        drop(object);
        until(&executor, "nothing is left", || Census::take().len() <= census.len());
    }

    /// Once it has been answered nobody reads there, whoever still holds the far end, and however often.
    fn a_far_end_kept_after_the_answer_says_nothing_to_a_later_call(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, object) = packet_pair();
        let object = PlainObject::from_fd(reactor, object).unwrap();
        let fd = null();
        let mut kept = Vec::new();
        for n in 0..64_u8 {
            let mut asked = object.call(vec![n]);
            assert!(poll_once(&mut asked).is_pending());
            executor.settle();
            let mut call = receive_packet(&bound).unwrap();
            kept.push(call.descriptors.pop().unwrap());
            // All that were kept answer, again and again; this call has one answer.
            for end in &kept {
                let _ = send_packet(end, &[n, kept.len() as u8], &[fd.as_fd()]);
            }
            assert_eq!(executor.block_on(asked).unwrap().bytes(), &[n, n + 1]);
        }
        drop(object);
        executor.settle();
        for end in kept {
            assert!(send_packet(&end, b"anybody?", &[]).is_err(), "all near ends are closed");
        }
    }

    // What others leave behind.

    /// Some 70,000 descriptors in one queue: received as the closers keep up, and nobody's call is lost.
    fn seventy_thousand_descriptors_in_a_plain_mailbox_are_closed_and_others_served(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = plain_object(reactor).unwrap();
        let packets = parked(&friend.share().unwrap(), "a call") / 253;
        // No limit of this process is reached, and in no turn more than a message and a queue are held.
        let limit = testing::leave_descriptors(900);
        let answered = executor.block_on(async {
            let call = friend.call("still there?");
            let served = async {
                let call = mailbox.next().await.unwrap();
                assert_eq!(call.bytes(), b"still there?");
                call.answer("yes").unwrap();
            };
            served.await;
            call.await
        });
        drop(limit);
        assert_eq!(answered.unwrap().bytes(), b"yes");
        let violations = mailbox.violations();
        assert_eq!(violations.descriptors_lost + violations.not_a_continuation, packets as u64);
    }

    /// As many for an object with sessions, at its address.
    fn seventy_thousand_descriptors_at_an_address_keep_nobody_from_attaching(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let address = friend.share().unwrap();
        let packets = parked(&address, "c") / 253;
        let limit = testing::leave_descriptors(900);
        let violations = std::rc::Rc::new(mailbox);
        let served = std::rc::Rc::clone(&violations);
        executor.spawn(async move {
            while let Some(call) = served.next().await {
                let bytes = call.bytes().to_vec();
                let _ = call.answer(bytes);
            }
        });
        assert_eq!(executor.block_on(friend.call("still there?")).unwrap().bytes(), b"still there?");
        drop(limit);
        assert_eq!(violations.violations().not_attaching, packets as u64);
    }

    /// As many in a session: it ends with the first packet, and the rest is closed by other threads.
    fn seventy_thousand_descriptors_in_a_session_end_it_and_are_closed_elsewhere(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let friend = attached(&executor, friend);
        let census = Census::take();
        let (near, far) = packet_pair();
        // Before anybody looks, and behind them one that takes long.
        let count = parked(&near, std::str::from_utf8(&call_with(7, b"", 253, 0)).unwrap_or("x"));
        assert!(count > 0);
        send_packet(friend.share().unwrap(), b"c", &[far.as_fd()]).unwrap();
        drop(far);
        until(&executor, "it is attached and ended", || {
            let violations = mailbox.violations();
            violations.malformed + violations.beyond_window == 1 && mailbox.sessions() == 1
        });
        drop(near);
        executor.spawn(echo(mailbox));
        assert_eq!(executor.block_on(friend.call("mine")).unwrap().bytes(), b"mine");
        until(&executor, "all are closed", || Census::take().len() <= census.len());
    }

    /// Dropped with all that nobody has looked at: whoever drops it does not close it.
    fn a_mailbox_is_dropped_with_seventy_thousand_descriptors_in_it(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        for plain in [false, true] {
            let Lingering { near, far: reader } = lingering_tcp();
            let census = Census::take();
            if plain {
                let (bound, object) = packet_pair();
                send_packet(&object, b"first", &[near.as_fd()]).unwrap();
                parked(&object, "a call");
                drop((near, object));
                drop(PlainMailbox::from_fd(reactor, bound).unwrap());
            } else {
                let (bound, object) = packet_pair();
                send_packet(&object, b"first", &[near.as_fd()]).unwrap();
                parked(&object, "c");
                drop((near, object));
                drop(Mailbox::from_fd(reactor, bound).unwrap());
            }
            executor.settle();
            assert!(ring::closer_busy(), "nothing is left for the closer: this thread has closed it");
            drop(reader);
            until(&executor, "all are closed", || Census::take().len() <= census.len() - 2);
        }
    }

    /// Sockets in sockets in sockets, as deep as the kernel takes them, with one at the bottom that takes
    /// long.
    fn descriptors_nested_deep_are_closed_elsewhere(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = plain_object(reactor).unwrap();
        let (other, sessions) = object(reactor).unwrap();
        for to in [friend.share().unwrap(), other.share().unwrap()] {
            let (near, reader) = nested(1_000);
            send_packet(&to, b"c", &[near.as_fd()]).unwrap();
            drop(near);
            // A call, or a client, that says nothing; whoever lets go of it does not close what lies in it.
            until(&executor, "it has come", || {
                let mut next = Box::pin(mailbox.next());
                drop(poll_once(&mut next));
                ring::closer_busy() || sessions.sessions() == 1
            });
            until(&executor, "it is closed elsewhere", ring::closer_busy);
            drop(reader);
            ring::closer_idle();
        }
        assert_eq!(sessions.sessions(), 0);
    }

    /// A client whose descriptors each take seconds to close holds up eight threads, and nobody's calls but
    /// those that could bring more.
    fn descriptors_that_take_long_hold_up_as_many_threads_as_there_are_and_no_more(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        executor.spawn(echo(mailbox));
        let friend = attached(&executor, friend);
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        let mut readers = Vec::new();
        for _ in 0..20 {
            let Lingering { near, far } = lingering_tcp();
            send_packet(plain.share().unwrap(), b"close this", &[near.as_fd()]).unwrap();
            readers.push(far);
        }
        let mut next = Box::pin(plain_mailbox.next());
        until(&executor, "all have come", || {
            assert!(poll_once(&mut next).is_pending());
            plain_mailbox.violations().not_a_continuation == 20
        });
        assert_eq!(executor.block_on(friend.call(largest())).unwrap().descriptors(), 1);
        assert!(closers() <= 8);
        drop(readers);
    }

    /// A process of the same user has as many descriptors in flight as that user may: calls and answers that
    /// carry any are refused by name, shares come back, and when it is gone all is as before.
    fn a_crowd_of_the_same_user_is_an_error_by_name_and_passes(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (friend, mailbox) = object(reactor).unwrap();
        let (plain, plain_mailbox) = plain_object(reactor).unwrap();
        executor.spawn(async move {
            while let Some(call) = mailbox.next().await {
                let _ = match call.bytes() {
                    b"give" => call.answer(Message::from("here").with_descriptor(null())),
                    _ => call.answer("thanks"),
                };
            }
        });
        let friend = attached(&executor, friend);
        // Made ahead: a plain call that is under way when the crowd comes.
        let mut earlier = plain.call("before");
        assert!(poll_once(&mut earlier).is_pending());
        let earlier_call = executor.block_on(plain_mailbox.next()).unwrap();
        let (told, tell) = packet_pair();
        let mut crowd = start_helper!(crowds, vec![tell], std::process::id().to_string());
        if !testing::become_user_of(std::process::id()) {
            eprintln!("skipped: there are no users to be had here");
            crowd.kill();
            return;
        }
        assert_eq!(receive_packet(&told).unwrap().bytes, b"parked");
        let limit = testing::limit_descriptors(200);
        // More than the windows hold: each refusal gives back what it had taken.
        for _ in 0..300 {
            let error = executor.block_on(friend.call(largest())).unwrap_err();
            assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
            let error = executor.block_on(friend.call("give")).unwrap_err();
            assert!(matches!(error, CallError::OutOfDescriptors(Part::Answer)), "{error}");
            let error = executor.block_on(plain.call("hello")).unwrap_err();
            assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
            assert_eq!(executor.block_on(friend.call("thank")).unwrap().bytes(), b"thanks");
        }
        let answer = Message::from("with one").with_descriptor(null());
        let (error, earlier_call) = earlier_call.into_continuation().try_answer(answer).unwrap_err();
        assert!(matches!(error, seqpacket::AnswerError::OutOfDescriptors), "{error}");
        let stranger = Object::from_fd(reactor, friend.share().unwrap()).unwrap();
        let error = executor.block_on(stranger.call("attach")).unwrap_err();
        assert!(matches!(error, CallError::OutOfDescriptors(Part::Call)), "{error}");
        drop(told);
        crowd.wait();
        assert_eq!(executor.block_on(friend.call("give")).unwrap().descriptors(), 1);
        assert!(executor.block_on(friend.call(largest())).is_ok());
        assert!(executor.block_on(stranger.call("attach")).is_ok());
        earlier_call.try_answer("at last").map_err(|(error, _)| error).unwrap();
        assert_eq!(executor.block_on(earlier).unwrap().bytes(), b"at last");
        drop(limit);
    }
}

/// A socket in whose queue there is a socket in whose queue there is … and at the bottom one that takes long
/// to close, with what lets it go. The kernel before Linux 6.10 takes four.
fn nested(depth: usize) -> (OwnedFd, OwnedFd) {
    testing::count_apart();
    let Lingering { near, far: reader } = lingering_tcp();
    let mut inner = near;
    for _ in 0..depth {
        let (outer, say) = packet_pair();
        if send_packet(&say, b"inside", &[inner.as_fd()]).is_err() {
            break;
        }
        inner = outer;
    }
    (inner, reader)
}

/// How many threads of this process close.
fn closers() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    // Linux keeps 15 characters.
    names.filter(|name| !name.trim().is_empty() && "sendright-closer".starts_with(name.trim())).count()
}
