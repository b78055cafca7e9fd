//! What Native Client's own tests asserted of IMC, each between processes, of the ways to connect it applies
//! to. The same of one process is in the other files; this one knows what the list was.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;

use imc::older::{Token, datagram, stream};
use imc::{
    AcceptError, BoundSocket, Capability, ConnectError, ConnectedSocket, DataOnlySocket, MEMORY_UNIT_BYTES,
    PlainFile, Room, SharedMemory, SocketAddress, TypedMessage, TypedReceiveError, TypedSendError,
    TypedSocket, bound_socket,
};
use ring::{Kind, Message, Reactor, ReceiveError, SendError, Socket};
use testing::{helper, in_own_process, on_each_driver, only, settle, start_helper};

/// How many descriptors each of the seven messages brings.
const SEVEN: [usize; 7] = [1, 1, 2, 3, 4, 8, 7];

/// The typed end of a connection that a helper was given.
fn typed(reactor: &Reactor, descriptors: Vec<OwnedFd>) -> TypedSocket {
    let connection = ConnectedSocket::from_fd(reactor, only(descriptors)).unwrap();
    TypedSocket::new(connection).unwrap()
}

/// A typed end here, and the other for a helper.
fn typed_pair(reactor: &Reactor) -> (TypedSocket, OwnedFd) {
    let (near, far) = ConnectedSocket::pair(reactor).unwrap();
    (TypedSocket::new(near).unwrap(), far)
}

/// A pipe that has this in it, and no end to write to.
fn pipe_with(text: &[u8]) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text).unwrap();
    reader.into()
}

fn contents(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes).unwrap();
    bytes
}

fn file(text: &[u8]) -> PlainFile {
    PlainFile::new(pipe_with(text)).unwrap()
}

helper! {
    /// Sends everything back as it came.
    fn echoes(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let socket = typed(&reactor, descriptors);
        settle(&reactor, async {
            while let Ok(message) = socket.receive().await {
                let mut answer = TypedMessage::new(&message.data);
                message.capabilities.into_iter().for_each(|capability| answer.push(capability));
                socket.send(answer).await.unwrap();
            }
        });
        assert_eq!(socket.violations().total(), 0);
    }

    /// Connects to each address that comes, and says hello on each connection.
    fn connects_to_each_address(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let socket = typed(&reactor, descriptors);
        settle(&reactor, async {
            let message = socket.receive().await.unwrap();
            let mut connections = Vec::new();
            for capability in message.capabilities {
                let Capability::SocketAddress(address) = capability else { panic!("no address") };
                connections.push(address.connect().await.unwrap());
            }
            for (number, connection) in connections.iter().enumerate() {
                connection.send(vec![b'0' + number as u8]).await.unwrap();
                assert_eq!(connection.receive().await.unwrap().bytes(), b"welcome");
            }
        });
    }

    /// Holds an address until it hears the end of the other descriptor.
    fn holds_an_address_for_a_while(descriptors: Vec<OwnedFd>) {
        let [address, end] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        assert!(testing::receive_packet(&end).unwrap().bytes.is_empty());
        drop(address);
    }

    /// Accepts nothing, and ends.
    fn drops_what_it_got(descriptors: Vec<OwnedFd>) {
        drop(descriptors);
    }

    /// Expects the seven messages.
    fn expects_seven_messages(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let connection = ConnectedSocket::from_fd(&reactor, only(descriptors)).unwrap();
        let socket = TypedSocket::new(connection).unwrap();
        settle(&reactor, async {
            for (number, count) in SEVEN.into_iter().enumerate() {
                let message = socket.receive().await.unwrap();
                assert_eq!(message.data, [number as u8]);
                assert_eq!(message.capabilities.len(), count);
                for (place, capability) in message.capabilities.into_iter().enumerate() {
                    let Capability::File(file) = capability else { panic!("no file") };
                    assert_eq!(contents(file.into_fd()), [number as u8, place as u8]);
                }
            }
            assert!(matches!(socket.receive().await, Err(TypedReceiveError::Closed)));
        });
    }

    /// Expects the seven messages on an ordinary connection, whichever way it was made.
    fn connects_by_name_and_expects_seven_messages(_descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let argument = testing::helper_argument();
        let (way, token) = argument.split_once(' ').unwrap();
        let token = Token::new(token).unwrap();
        settle(&reactor, async {
            let (by_datagram, by_stream);
            let socket: &Socket = if way == "datagram" {
                let service = datagram::ServiceSocket::new(&reactor).unwrap();
                by_datagram = datagram::SocketAddress::from(token).connect(&service).await.unwrap();
                by_datagram.socket()
            } else {
                by_stream = stream::SocketAddress::from(token).connect(&reactor).await.unwrap();
                by_stream.socket()
            };
            for (number, count) in SEVEN.into_iter().enumerate() {
                let mut message = socket.receive().await.unwrap();
                assert_eq!((message.bytes(), message.descriptors()), (&[number as u8][..], count));
                for (place, fd) in message.take_descriptors().into_iter().enumerate() {
                    assert_eq!(contents(fd), [number as u8, place as u8]);
                }
                // A stream would join what is sent without waiting for this.
                socket.send("next").await.unwrap();
            }
        });
    }

    /// Takes two descriptors into room for one.
    fn has_room_for_one(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let socket = typed(&reactor, descriptors);
        settle(&reactor, async {
            let room = Room { descriptors: 1, ..Room::default() };
            let mut message = socket.receive_into(room).await.unwrap();
            assert_eq!(message.data, b"all of the data");
            assert_eq!(message.truncated.flags(), imc::DESC_TRUNCATED);
            let Some(Capability::File(file)) = message.capabilities.pop() else { panic!("no file") };
            assert_eq!(contents(file.into_fd()), b"first");
            assert!(message.capabilities.is_empty());
            socket.send(TypedMessage::new("done")).await.unwrap();
            assert!(matches!(socket.receive().await, Err(TypedReceiveError::Closed)));
        });
    }

    /// Reads what the other side has written into shared memory and writes below it.
    fn answers_in_shared_memory(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let socket = typed(&reactor, descriptors);
        settle(&reactor, async {
            let mut message = socket.receive().await.unwrap();
            let Some(Capability::SharedMemory(memory)) = message.capabilities.pop() else { panic!() };
            let mapping = memory.map_writable().unwrap();
            drop(memory);
            let mut question = [0; 9];
            mapping.read_at(0, &mut question).unwrap();
            assert_eq!(&question, b"question?");
            mapping.write_at(mapping.len() - 6, b"answer").unwrap();
            socket.send(TypedMessage::new("look")).await.unwrap();
        });
    }

    /// Was given one descriptor, as was its twin, under the same number. What uses it has nothing else in the
    /// world; the thread that started it only counts descriptors at the end.
    fn says_hello_from_a_sandbox(descriptors: Vec<OwnedFd>) {
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&descriptors[0]), 3);
        std::thread::spawn(|| {
            let reactor = testing::reactor();
            testing::enter_sandbox();
            let socket = typed(&reactor, descriptors);
            settle(&reactor, async {
                match testing::helper_argument().as_str() {
                    "first" => say_hello(&socket).await,
                    _ => say_hello_back(&socket).await,
                }
            });
        })
        .join()
        .unwrap();
    }

    /// Sends to nobody in every way there is, where SIGPIPE would be noticed.
    fn sends_to_nobody_with_sigpipe_blocked(_descriptors: Vec<OwnedFd>) {
        let mask = signals("SigBlk:");
        assert!(mask & SIGPIPE != 0, "it is blocked, and so would be kept: {mask:x}");
        let reactor = testing::reactor();
        settle(&reactor, async {
            let (near, far) = ConnectedSocket::pair(&reactor).unwrap();
            drop(far);
            assert!(matches!(near.try_send("anyone?"), Err(SendError::Gone)));
            assert!(matches!(near.send("anyone?").await, Err(SendError::Gone)));

            let (near, far) = typed_pair(&reactor);
            drop(far);
            let refused = near.send(TypedMessage::new("anyone?")).await;
            assert!(matches!(refused, Err(TypedSendError::Send(SendError::Gone))));

            let (one, other) = DataOnlySocket::pair(&reactor).unwrap();
            drop(other);
            assert!(matches!(one.send("anyone?").await, Err(SendError::Gone)));

            let (bound, address) = bound_socket(&reactor).unwrap();
            drop(bound);
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));

            for kind in [Kind::Stream, Kind::SeqPacket] {
                let (near, far) = Socket::pair(&reactor, kind).unwrap();
                drop(far);
                assert!(matches!(near.try_send("anyone?"), Err(SendError::Gone)));
                assert!(matches!(near.send("anyone?").await, Err(SendError::Gone)));
            }
            let (bound, address) = stream::bound_socket(&reactor, 1).unwrap();
            let client = address.connect(&reactor).await.unwrap();
            drop(bound);
            // A listener is closed by another thread, since what waits in it may be slow to close.
            assert!(matches!(client.receive().await, Err(ReceiveError::Closed)));
            assert!(matches!(client.send("anyone?").await, Err(SendError::Gone)));
        });
        assert_eq!(signals("SigPnd:") & SIGPIPE, 0, "nobody was signalled");
        // And it would have been noticed.
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        assert!(writer.write_all(b"anyone?").is_err());
        assert!(signals("SigPnd:") & SIGPIPE != 0, "a pipe does signal");
    }
}

/// A pair needs no name, and so an address can be had in a sandbox too.
async fn say_hello(socket: &TypedSocket) {
    let (bound, address) = bound_socket(socket.reactor()).unwrap();
    socket.send(TypedMessage::new("hello").with(address)).await.unwrap();
    let connection = bound.accept().await.unwrap().socket;
    assert_eq!(connection.receive().await.unwrap().bytes(), b"hello to you");
}

async fn say_hello_back(socket: &TypedSocket) {
    let mut message = socket.receive().await.unwrap();
    assert_eq!(message.data, b"hello");
    let Some(Capability::SocketAddress(address)) = message.capabilities.pop() else { panic!("no address") };
    let connection = address.connect().await.unwrap();
    connection.send("hello to you").await.unwrap();
    // Not before it was heard.
    assert!(matches!(connection.receive().await, Err(ReceiveError::Closed)));
}

/// The bit of SIGPIPE, number 13, in a mask.
const SIGPIPE: u64 = 1 << 12;

/// A mask of this thread, as the kernel tells it.
fn signals(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

on_each_driver! {
    fn data_goes_both_ways_in_exact_lengths_with_no_descriptors(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(echoes, vec![far]);
        settle(reactor, async {
            for length in [0, 1, 2, 100, 4_096, 65_536, 131_072] {
                socket.send(TypedMessage::new(vec![7; length])).await.unwrap();
                let back = socket.receive().await.unwrap();
                assert_eq!((back.data.len(), back.capabilities.len()), (length, 0));
                assert_eq!(back.data, vec![7; length]);
            }
            drop(socket);
        });
        helper.succeeded();
    }

    fn an_address_sent_over_a_connection_arrives_as_one_descriptor_and_connects(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(connects_to_each_address, vec![far]);
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            socket.send(TypedMessage::new("connect").with(address)).await.unwrap();
            let arrival = bound.accept().await.unwrap();
            assert_eq!(arrival.who.credentials.unwrap().pid, helper.pid());
            assert_eq!(arrival.socket.receive().await.unwrap().bytes(), b"0");
            arrival.socket.send("welcome").await.unwrap();
            // Its copy went with it, and ours was given away.
            assert!(matches!(bound.accept().await, Err(AcceptError::Gone)));
        });
        helper.succeeded();
    }

    fn eight_copies_of_one_address_are_each_connected_and_used(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(connects_to_each_address, vec![far]);
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut message = TypedMessage::new("connect");
            for _ in 0..8 {
                message.push(address.try_clone().unwrap());
            }
            socket.send(message).await.unwrap();
            let mut connections = Vec::new();
            for _ in 0..8 {
                connections.push(bound.accept().await.unwrap().socket);
            }
            for (number, connection) in connections.iter().enumerate() {
                assert_eq!(connection.receive().await.unwrap().bytes(), [b'0' + number as u8]);
                connection.send("welcome").await.unwrap();
            }
        });
        helper.succeeded();
    }

    fn accept_fails_after_all_addresses_are_dropped(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let (near, far) = testing::packet_pair();
        let helper = start_helper!(holds_an_address_for_a_while, vec![address.share().unwrap(), far]);
        settle(reactor, async {
            let mut accepting = std::pin::pin!(bound.accept());
            drop(address);
            // Another process still could.
            testing::poll_once(accepting.as_mut());
            drop(near);
            assert!(matches!(accepting.await, Err(AcceptError::Gone)));
        });
        helper.succeeded();
    }

    fn connect_fails_after_the_acceptor_is_dropped(reactor: &Reactor) {
        let (bound, address) = bound_socket(reactor).unwrap();
        let queued = address.try_connect().unwrap();
        start_helper!(drops_what_it_got, vec![bound.into_fd().unwrap()]).succeeded();
        settle(reactor, async {
            assert!(matches!(address.connect().await, Err(ConnectError::Gone)));
            assert!(matches!(queued.receive().await, Err(ReceiveError::Closed)));
        });
    }

    fn places_left_free_go_there_and_back(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(echoes, vec![far]);
        settle(reactor, async {
            for count in [1, 8] {
                let with = |message: TypedMessage, _| message.with(Capability::Nothing);
                socket.send((0..count).fold(TypedMessage::new("free"), with)).await.unwrap();
                let back = socket.receive().await.unwrap();
                assert_eq!((back.data, back.capabilities.len()), (b"free".to_vec(), count));
            }
            let nine = (0..9).fold(TypedMessage::new(""), |message, _| message.with(Capability::Nothing));
            assert!(matches!(socket.send(nine).await, Err(TypedSendError::TooManyDescriptors)));
            let mixed = TypedMessage::new("mixed").with(Capability::Nothing).with(file(b"x"));
            socket.send(mixed.with(Capability::Nothing)).await.unwrap();
            let back = socket.receive().await.unwrap().capabilities;
            let kinds = <[Capability; 3]>::try_from(back).unwrap();
            assert!(matches!(kinds, [Capability::Nothing, Capability::File(_), Capability::Nothing]));
            drop(socket);
        });
        helper.succeeded();
    }

    fn two_descriptors_into_room_for_one_are_full_data_and_a_flag(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(has_room_for_one, vec![far]);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = PlainFile::new(writer.into()).unwrap();
        settle(reactor, async {
            let message = TypedMessage::new("all of the data").with(file(b"first")).with(writer);
            socket.send(message).await.unwrap();
            assert_eq!(socket.receive().await.unwrap().data, b"done");
            // Closed there too, where it did not fit.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            drop(socket);
        });
        helper.succeeded();
    }

    fn seven_messages_bring_their_descriptors_in_order(reactor: &Reactor) {
        let (socket, far) = typed_pair(reactor);
        let helper = start_helper!(expects_seven_messages, vec![far]);
        settle(reactor, async {
            for (number, count) in SEVEN.into_iter().enumerate() {
                let mut message = TypedMessage::new([number as u8]);
                (0..count).for_each(|place| message.push(file(&[number as u8, place as u8])));
                socket.send(message).await.unwrap();
            }
            drop(socket);
        });
        helper.succeeded();
    }

    fn seven_messages_after_connecting_by_datagram(reactor: &Reactor) {
        let (bound, address) = datagram::bound_socket(reactor).unwrap();
        let argument = format!("datagram {}", address.token().characters());
        let helper = start_helper!(connects_by_name_and_expects_seven_messages, vec![], argument);
        settle(reactor, async {
            let connection = bound.accept().await.unwrap().socket;
            send_seven(connection.socket()).await;
        });
        helper.succeeded();
    }

    fn seven_messages_after_connecting_by_stream(reactor: &Reactor) {
        let (bound, address) = stream::bound_socket(reactor, stream::BACKLOG).unwrap();
        let argument = format!("stream {}", address.token().characters());
        let helper = start_helper!(connects_by_name_and_expects_seven_messages, vec![], argument);
        settle(reactor, async {
            let connection = bound.accept().await.unwrap();
            send_seven(connection.socket()).await;
        });
        helper.succeeded();
    }

    fn two_processes_share_memory_that_was_sent(reactor: &Reactor) {
        for units in [1, 2, 16] {
            let (socket, far) = typed_pair(reactor);
            let helper = start_helper!(answers_in_shared_memory, vec![far]);
            let memory = SharedMemory::create(units * MEMORY_UNIT_BYTES).unwrap();
            let mapping = memory.map_writable().unwrap();
            mapping.write_at(0, b"question?").unwrap();
            settle(reactor, async {
                socket.send(TypedMessage::new("memory").with(memory)).await.unwrap();
                assert_eq!(socket.receive().await.unwrap().data, b"look");
            });
            let mut answer = [0; 6];
            mapping.read_at(mapping.len() - 6, &mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            helper.succeeded();
        }
    }

    fn one_descriptor_goes_between_two_threads_a_hundred_times(reactor: &Reactor) {
        let (near, far) = typed_pair(reactor);
        let other = std::thread::spawn(move || {
            let reactor = &testing::reactor();
            let socket = typed(reactor, vec![far]);
            settle(reactor, async {
                while let Ok(mut message) = socket.receive().await {
                    let capability = message.capabilities.pop().unwrap();
                    assert!(message.capabilities.is_empty());
                    socket.send(TypedMessage::new(message.data).with(capability)).await.unwrap();
                }
            });
        });
        settle(reactor, async {
            let mut travelling: Capability = file(b"well travelled").into();
            for round in 0..100_u8 {
                near.send(TypedMessage::new([round]).with(travelling)).await.unwrap();
                let mut back = near.receive().await.unwrap();
                assert_eq!(back.data, [round]);
                travelling = back.capabilities.pop().unwrap();
            }
            let Capability::File(file) = travelling else { panic!("it was a file") };
            assert_eq!(contents(file.into_fd()), b"well travelled");
            drop(near);
        });
        other.join().unwrap();
    }

    fn two_sandboxed_processes_given_the_same_number_say_hello(_reactor: &Reactor) {
        let (one, other) = testing::packet_pair();
        let first = start_helper!(says_hello_from_a_sandbox, vec![one], "first");
        let second = start_helper!(says_hello_from_a_sandbox, vec![other], "second");
        first.succeeded();
        second.succeeded();
    }
}

in_own_process! {
    /// A process in which SIGPIPE is not ignored, as it is in Rust's by default, but blocked: then the kernel
    /// keeps it, ignored or not, and tells.
    fn sending_to_a_closed_peer_is_an_error_and_no_signal() {
        for driver in ["uring", "epoll"] {
            let path = "sends_to_nobody_with_sigpipe_blocked";
            let mut command = Command::new("env");
            command.arg("--block-signal=PIPE").arg(std::env::current_exe().unwrap());
            command.args([path, "--exact", "--nocapture", "--test-threads=1"]);
            command.env("SENDRIGHT_TESTING_HELPER", path).env("SENDRIGHT_TESTING_HELPER_DESCRIPTORS", "0");
            command.env("SENDRIGHT_TESTING_DRIVER", driver).env_remove("SENDRIGHT_TESTING_BODY");
            if driver == "uring" && !ring_can_be_had() {
                println!("no io_uring here");
                continue;
            }
            let output = command.output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && told.contains("1 passed"), "{driver}: {told}");
        }
    }
}

fn ring_can_be_had() -> bool {
    let config = ring::Config { driver: ring::DriverChoice::Uring, ..ring::Config::default() };
    Reactor::with_config(config).is_ok()
}

async fn send_seven(socket: &Socket) {
    socket.set_descriptors_max(8);
    for (number, count) in SEVEN.into_iter().enumerate() {
        let mut message = Message::from(&[number as u8]);
        (0..count).for_each(|place| message.push_descriptor(pipe_with(&[number as u8, place as u8])));
        socket.send(message).await.unwrap();
        assert_eq!(socket.receive().await.unwrap().bytes(), b"next");
    }
}

/// By type: there is no way to write it down. See the documentation of [`Capability`], whose examples must
/// not compile; this one says that both can still be told apart from what may be sent.
#[test]
fn a_bound_and_a_connected_socket_are_no_capabilities() {
    fn is_sent<T: Into<Capability>>() {}
    is_sent::<SocketAddress>();
    is_sent::<DataOnlySocket>();
    is_sent::<SharedMemory>();
    is_sent::<PlainFile>();
    let _kept: Option<(BoundSocket, ConnectedSocket, TypedSocket)> = None;
}
