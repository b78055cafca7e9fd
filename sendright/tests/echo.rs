//! `sendright echo`, spoken to with the libraries and with bare packets: all that was sent comes back, at the
//! limit of descriptors it goes on, and it ends when nobody is left.
#![allow(clippy::unwrap_used)]

mod program;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use imc::{ConnectedSocket, SocketAddress};
use ring::{DESCRIPTORS_MAX, Executor, Fd, Message, Reactor};
use seqpacket::wire::PAYLOAD_BYTES_MAX;
use seqpacket::{Object, ObjectOptions, PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX, PlainObject};

/// The number under which the program finds what it is to serve.
const NUMBER: i32 = 7;

/// A limit of descriptors that bites.
const FEW: usize = 64;

/// The program, serving; killed when dropped.
struct Server(Child);

impl Server {
    /// Serves one end of a fresh pair, on the driver of the test; gives back the other end.
    fn start(arguments: &[&str]) -> (Server, OwnedFd) {
        Server::start_as(program::sendright(), arguments)
    }

    /// The same with few descriptors.
    fn start_with_few(arguments: &[&str]) -> (Server, OwnedFd) {
        let mut shell = program::at("sh".as_ref());
        shell
            .arg("-c")
            .arg(format!("ulimit -n {FEW} && exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_sendright"));
        Server::start_as(shell, arguments)
    }

    fn start_as(mut command: Command, arguments: &[&str]) -> (Server, OwnedFd) {
        let (near, far) = testing::packet_pair();
        command.arg("echo").args(arguments).args(["--fd", &NUMBER.to_string()]);
        command.env(ring::DRIVER_VARIABLE, testing::driver().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        ring::inherit::give(&mut command, vec![(far, NUMBER)]);
        (Server(command.spawn().unwrap()), near)
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    fn ends_well(mut self) {
        let mut status = None;
        testing::wait_until("the server ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let mut told = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(!told.contains("panicked"), "{told}");
        assert_eq!(status.unwrap().code(), Some(0), "{told}");
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A message with so many descriptors, each of a file that holds its place in the list.
fn message(bytes: Vec<u8>, descriptors: usize) -> Message {
    numbered(descriptors).into_iter().map(Fd::from).fold(Message::new(bytes), Message::with_descriptor)
}

fn numbered(count: usize) -> Vec<OwnedFd> {
    let write_number = |number: usize| {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "{number}").unwrap();
        OwnedFd::from(file)
    };
    (0..count).map(write_number).collect()
}

#[track_caller]
fn are_numbered(descriptors: Vec<OwnedFd>, count: usize) {
    assert_eq!(descriptors.len(), count);
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        let mut file = File::from(descriptor);
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, number.to_string());
    }
}

fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}

fn run<F: Future>(reactor: &Reactor, future: F) -> F::Output {
    Executor::new(reactor).block_on(future)
}

async fn returns(connection: &ConnectedSocket, bytes: usize, descriptors: usize) {
    connection.send(message(vec![7; bytes], descriptors)).await.unwrap();
    let mut received = connection.receive().await.unwrap();
    assert_eq!(received.bytes(), vec![7; bytes]);
    are_numbered(received.take_descriptors(), descriptors);
}

async fn answers(object: &Object, bytes: usize, descriptors: usize) {
    let mut answer = object.call(message(vec![7; bytes], descriptors)).await.unwrap();
    assert_eq!(answer.bytes(), vec![7; bytes]);
    are_numbered(answer.take_descriptors(), descriptors);
}

async fn answers_plainly(object: &PlainObject, bytes: usize, descriptors: usize) {
    let mut answer = object.call(message(vec![7; bytes], descriptors)).await.unwrap();
    assert_eq!(answer.bytes(), vec![7; bytes]);
    are_numbered(answer.take_descriptors(), descriptors);
}

/// Descriptors that a server with few can send back whatever else goes on: those that other tests of the same
/// user have in flight count against its limit, unless the user is root.
fn a_few() -> usize {
    if rustix::process::geteuid().is_root() { 2 } else { 0 }
}

fn roomy(reactor: &Reactor, address: OwnedFd) -> Object {
    let (answer_bytes, answer_descriptors) = (PAYLOAD_BYTES_MAX, DESCRIPTORS_MAX);
    let options = ObjectOptions { answer_bytes, answer_descriptors, ..ObjectOptions::default() };
    Object::from_fd_with(reactor, address, options).unwrap()
}

testing::on_each_driver! {
    fn a_connection_gets_back_what_it_sends(reactor: &Reactor) {
        let (server, near) = Server::start(&["imc"]);
        let address = SocketAddress::from_fd(reactor, near).unwrap();
        run(reactor, async {
            let connection = address.connect().await.unwrap();
            connection.set_descriptors_max(DESCRIPTORS_MAX);
            for (bytes, descriptors) in [(1, 0), (5, 1), (ring::PACKET_BYTES_MAX, 17), (2, DESCRIPTORS_MAX)] {
                returns(&connection, bytes, descriptors).await;
            }
        });
        drop(address);
        server.ends_well();
    }

    fn connections_are_served_side_by_side_and_to_the_last(reactor: &Reactor) {
        let (mut server, near) = Server::start(&["imc"]);
        let address = SocketAddress::from_fd(reactor, near).unwrap();
        run(reactor, async {
            let one = address.connect().await.unwrap();
            let other = address.connect().await.unwrap();
            drop(address);
            returns(&one, 3, 1).await;
            returns(&other, 3, 1).await;
            drop(one);
            returns(&other, 3, 1).await;
            assert!(server.is_running(), "somebody is still connected");
        });
        server.ends_well();
    }

    fn a_session_gets_back_what_it_calls_with(reactor: &Reactor) {
        let (server, near) = Server::start(&["object"]);
        let object = roomy(reactor, near);
        run(reactor, async {
            for (bytes, descriptors) in [(0, 0), (5, 1), (PAYLOAD_BYTES_MAX, 17), (2, DESCRIPTORS_MAX)] {
                answers(&object, bytes, descriptors).await;
            }
            let call = |number: u32| object.call(number.to_le_bytes().to_vec());
            let calls: Vec<_> = (0..300).map(call).collect();
            for (number, call) in calls.into_iter().enumerate() {
                assert_eq!(call.await.unwrap().bytes(), u32::try_from(number).unwrap().to_le_bytes());
            }
        });
        drop(object);
        server.ends_well();
    }

    fn an_object_granted_to_somebody_else_is_served_as_long(reactor: &Reactor) {
        let (mut server, near) = Server::start(&["object"]);
        let object = roomy(reactor, near);
        let granted = run(reactor, async { object.grant().await.unwrap() });
        drop(object);
        let object = roomy(reactor, granted);
        run(reactor, answers(&object, 5, 1));
        assert!(server.is_running());
        drop(object);
        server.ends_well();
    }

    fn a_plain_object_answers_with_what_it_is_called_with(reactor: &Reactor) {
        let (server, near) = Server::start(&["object", "--plain"]);
        let object = PlainObject::from_fd(reactor, near).unwrap();
        object.set_answer_descriptors(DESCRIPTORS_MAX);
        run(reactor, async {
            for (bytes, descriptors) in [(1, 0), (5, 1), (PLAIN_BYTES_MAX, 17), (2, PLAIN_ARGUMENTS_MAX)] {
                answers_plainly(&object, bytes, descriptors).await;
            }
        });
        drop(object);
        server.ends_well();
    }

    fn bare_packets_are_enough_to_speak_imc(_reactor: &Reactor) {
        let (server, address) = Server::start(&["imc"]);
        let (near, far) = testing::packet_pair();
        testing::send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        drop(far);
        let files = numbered(DESCRIPTORS_MAX);
        testing::send_packet(&near, b"hello", &borrowed(&files)).unwrap();
        let packet = testing::receive_packet(&near).unwrap();
        assert_eq!(packet.bytes, b"hello");
        are_numbered(packet.descriptors, DESCRIPTORS_MAX);
        drop((address, near));
        server.ends_well();
    }

    fn bare_packets_are_enough_to_call_a_plain_object(_reactor: &Reactor) {
        let (server, object) = Server::start(&["object", "--plain"]);
        let (near, far) = testing::packet_pair();
        let mut files = numbered(PLAIN_ARGUMENTS_MAX);
        files.push(far);
        testing::send_packet(&object, b"hello", &borrowed(&files)).unwrap();
        drop(files);
        let packet = testing::receive_packet(&near).unwrap();
        assert_eq!(packet.bytes, b"hello");
        are_numbered(packet.descriptors, PLAIN_ARGUMENTS_MAX);
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"", "closed after the answer");
        drop(object);
        server.ends_well();
    }

    fn what_is_no_call_ends_nothing(_reactor: &Reactor) {
        let (mut server, object) = Server::start(&["object", "--plain"]);
        let (near, far) = testing::packet_pair();
        testing::send_packet(&object, b"nobody can answer this", &[]).unwrap();
        testing::send_packet(&object, b"", &[]).unwrap();
        testing::send_packet(&object, b"no socket", &[tempfile::tempfile().unwrap().as_fd()]).unwrap();
        testing::send_packet(&object, b"a call", &[far.as_fd()]).unwrap();
        drop(far);
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"a call");
        assert!(server.is_running());
        drop(object);
        server.ends_well();
    }

    fn what_is_no_request_to_connect_ends_nothing(_reactor: &Reactor) {
        let (mut server, address) = Server::start(&["imc"]);
        testing::send_packet(&address, b"c", &[]).unwrap();
        testing::send_packet(&address, b"x", &[address.as_fd()]).unwrap();
        testing::send_packet(&address, b"", &[]).unwrap();
        let (near, far) = testing::packet_pair();
        testing::send_packet(&address, b"c", &[far.as_fd()]).unwrap();
        drop(far);
        testing::send_packet(&near, b"still there", &[]).unwrap();
        assert_eq!(testing::receive_packet(&near).unwrap().bytes, b"still there");
        assert!(server.is_running());
        drop((address, near));
        server.ends_well();
    }

    fn with_few_descriptors_connections_wait_for_their_turn(reactor: &Reactor) {
        let (server, near) = Server::start_with_few(&["imc"]);
        let address = SocketAddress::from_fd(reactor, near).unwrap();
        run(reactor, async {
            // It serves already: what is in flight counts against the limit of whoever starts, too.
            returns(&address.connect().await.unwrap(), 5, 1).await;
            let mut connections = Vec::new();
            for number in 0..2 * FEW {
                let connection = address.connect().await.unwrap();
                connection.send(number.to_string()).await.unwrap();
                connections.push(connection);
            }
            for (number, connection) in connections.into_iter().enumerate() {
                assert_eq!(connection.receive().await.unwrap().bytes(), number.to_string().as_bytes());
            }
        });
        drop(address);
        server.ends_well();
    }

    fn with_few_descriptors_a_message_with_too_many_ends_nothing(reactor: &Reactor) {
        let (server, near) = Server::start_with_few(&["imc"]);
        let address = SocketAddress::from_fd(reactor, near).unwrap();
        run(reactor, async {
            let connection = address.connect().await.unwrap();
            connection.set_descriptors_max(DESCRIPTORS_MAX);
            returns(&connection, 5, 2).await;
            connection.send(message(b"too many".to_vec(), 2 * FEW)).await.unwrap();
            let received = connection.receive().await.unwrap();
            assert_eq!(received.bytes(), b"too many");
            assert!(received.descriptors() < FEW, "{received:?}");
            drop(received);
            returns(&connection, 5, 2).await;
            returns(&address.connect().await.unwrap(), 5, 2).await;
        });
        drop(address);
        server.ends_well();
    }

    fn with_few_descriptors_a_call_with_too_many_is_told_and_others_are_served(reactor: &Reactor) {
        let (server, near) = Server::start_with_few(&["object"]);
        let object = roomy(reactor, near);
        run(reactor, async {
            answers(&object, 5, a_few()).await;
            let error = object.call(message(b"too many".to_vec(), 2 * FEW)).await.unwrap_err();
            assert!(!error.may_have_been_seen(), "{error}");
            answers(&object, 5, a_few()).await;
        });
        drop(object);
        server.ends_well();
    }

    fn with_few_descriptors_a_plain_call_with_too_many_is_dropped_and_others_are_served(reactor: &Reactor) {
        let (server, near) = Server::start_with_few(&["object", "--plain"]);
        let object = PlainObject::from_fd(reactor, near).unwrap();
        run(reactor, async {
            answers_plainly(&object, 5, a_few()).await;
            object.call(message(b"too many".to_vec(), 2 * FEW)).await.unwrap_err();
            answers_plainly(&object, 5, a_few()).await;
        });
        drop(object);
        server.ends_well();
    }

    fn with_few_descriptors_sessions_wait_for_their_turn(reactor: &Reactor) {
        let (server, near) = Server::start_with_few(&["object"]);
        run(reactor, async {
            let first = roomy(reactor, near);
            answers(&first, 5, a_few()).await;
            let mut objects = Vec::new();
            for _ in 0..FEW {
                objects.push(roomy(reactor, first.share().unwrap()));
            }
            drop(first);
            let mut calls = Vec::new();
            for object in objects {
                let call = object.call("hello");
                calls.push((object, call));
            }
            for (object, call) in calls {
                assert_eq!(call.await.unwrap().bytes(), b"hello");
                // Makes room for those that wait.
                drop(object);
            }
        });
        server.ends_well();
    }
}
