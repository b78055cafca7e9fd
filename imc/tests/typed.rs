//! Typed messages: what may be sent, what arrives, what does not fit, and what a peer that breaks the rules
//! gets out of it.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;

use imc::{
    Capability, ConnectedSocket, DATA_TRUNCATED, DESC_TRUNCATED, DataOnlySocket, FrozenMemory,
    MEMORY_UNIT_BYTES, NACL_BYTES_MAX, NACL_DESCRIPTORS_MAX, NACL_PARTS_MAX, PlainFile, Room, SharedMemory,
    Truncated, TypedMessage, TypedReceiveError, TypedSendError, TypedSocket, TypedViolations, WrapError,
    bound_socket,
};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use ring::{DriverChoice, PACKET_BYTES_MAX, Reactor, SendError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use testing::{Census, on_each_driver, packet_pair, poll_once, send_packet, settle};

fn pair(reactor: &Reactor) -> (TypedSocket, TypedSocket) {
    let (near, far) = ConnectedSocket::pair(reactor).unwrap();
    let far = ConnectedSocket::from_fd(reactor, far).unwrap();
    (TypedSocket::new(near).unwrap(), TypedSocket::new(far).unwrap())
}

/// One whose peer is raw.
fn facing_a_stranger(reactor: &Reactor) -> (TypedSocket, OwnedFd) {
    let (near, far) = packet_pair();
    let socket = TypedSocket::new(ConnectedSocket::from_fd(reactor, near).unwrap()).unwrap();
    (socket, far)
}

fn pipe_end() -> OwnedFd {
    std::io::pipe().unwrap().0.into()
}

fn file() -> PlainFile {
    PlainFile::new(pipe_end()).unwrap()
}

/// The bytes of a message, as PROTOCOL.md has them.
fn packet(kinds: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[0] = 1;
    bytes[1] = kinds.len() as u8;
    bytes[4..8].copy_from_slice(&(data.len() as u32).to_le_bytes());
    for (place, kind) in bytes[8..].iter_mut().zip(kinds) {
        *place = *kind;
    }
    bytes.extend(data);
    bytes
}

/// Sends this to a fresh socket, and checks that it is counted, leaves nothing, and that the next message is
/// received.
#[track_caller]
fn is_counted(
    reactor: &Reactor,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    counter: fn(&TypedViolations) -> u64,
) {
    let (socket, peer) = facing_a_stranger(reactor);
    let census = Census::take();
    for times in 1..=3 {
        send_packet(&peer, bytes, descriptors).unwrap();
        send_packet(&peer, &packet(&[], b"honest"), &[]).unwrap();
        assert_eq!(settle(reactor, socket.receive()).unwrap().data, b"honest");
        assert_eq!(counter(&socket.violations()), times);
        assert_eq!(socket.violations().total(), times);
    }
    census.unchanged();
}

on_each_driver! {
    fn data_goes_both_ways_in_exact_lengths_without_descriptors(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            for length in [0, 1, 100, PACKET_BYTES_MAX, PACKET_BYTES_MAX + 1, NACL_BYTES_MAX] {
                for (from, to) in [(&one, &other), (&other, &one)] {
                    from.send(TypedMessage::new(vec![7; length])).await.unwrap();
                    let received = to.receive().await.unwrap();
                    assert_eq!(received.data, vec![7; length]);
                    assert!(received.capabilities.is_empty());
                    assert_eq!(received.truncated, Truncated::default());
                    assert_eq!(received.credentials.unwrap().pid, std::process::id() as i32);
                }
            }
        });
    }

    fn each_kind_of_capability_arrives_as_what_it_is(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        let (data_near, data_far) = DataOnlySocket::pair(reactor).unwrap();
        let shared = SharedMemory::create(MEMORY_UNIT_BYTES).unwrap();
        let shown = shared.map_writable().unwrap();
        let frozen = FrozenMemory::of(&[b"for ever"]).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = PlainFile::new(writer.into()).unwrap();
        settle(reactor, async {
            let message = TypedMessage::new("all of them").with(address).with(data_far).with(shared);
            let message = message.with(Capability::Nothing).with(frozen).with(writer);
            one.send(message).await.unwrap();
            let received = other.receive().await.unwrap();
            let [
                Capability::SocketAddress(address),
                Capability::DataOnlySocket(data),
                Capability::SharedMemory(shared),
                Capability::Nothing,
                Capability::FrozenMemory(frozen),
                Capability::File(file),
            ] = <[Capability; 6]>::try_from(received.capabilities).unwrap()
            else {
                panic!("something is something else")
            };

            let client = address.connect().await.unwrap();
            client.send("connected").await.unwrap();
            let server = bound.accept().await.unwrap().socket;
            assert_eq!(server.receive().await.unwrap().bytes(), b"connected");

            data.send("bytes").await.unwrap();
            assert_eq!(data_near.receive().await.unwrap().bytes(), b"bytes");

            shared.map_writable().unwrap().write_at(9, b"shared").unwrap();
            let mut seen = [0; 6];
            shown.read_at(9, &mut seen).unwrap();
            assert_eq!(&seen, b"shared");

            assert_eq!(&frozen.map().unwrap()[..], b"for ever");

            File::from(file.into_fd()).write_all(b"through the pipe").unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "through the pipe");
        });
    }

    fn eight_copies_of_one_address_are_each_connected_and_used(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        settle(reactor, async {
            let mut message = TypedMessage::new("eight");
            for _ in 0..8 {
                message.push(address.try_clone().unwrap());
            }
            one.send(message).await.unwrap();
            let received = other.receive().await.unwrap();
            assert_eq!(received.capabilities.len(), 8);
            for (number, capability) in received.capabilities.into_iter().enumerate() {
                let Capability::SocketAddress(copy) = capability else { panic!("no address") };
                let client = copy.connect().await.unwrap();
                client.send(vec![number as u8]).await.unwrap();
                let server = bound.accept().await.unwrap().socket;
                assert_eq!(server.receive().await.unwrap().bytes(), [number as u8]);
            }
        });
    }

    /// A connection with a request on its way cannot give its descriptor up; it sends a duplicate.
    fn an_address_that_is_being_used_is_sent_all_the_same(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        while address.try_connect().is_ok() {}
        poll_once(pin!(address.connect()));
        settle(reactor, async {
            one.send(TypedMessage::new("busy").with(address)).await.unwrap();
            let mut received = other.receive().await.unwrap();
            assert!(matches!(received.capabilities.pop(), Some(Capability::SocketAddress(_))));
        });
        drop(bound);
    }

    // Rules.

    fn connections_are_refused_as_files(reactor: &Reactor) {
        let census = Census::take();
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let (bound, address) = bound_socket(reactor).unwrap();
        let ends = [near.into_fd().unwrap(), far, bound.into_fd().unwrap(), address.into_fd().unwrap()];
        for end in ends {
            assert_eq!(PlainFile::new(end).unwrap_err(), WrapError::WrongKind);
        }
        assert_eq!(PlainFile::new(testing::stream_pair().0).unwrap_err(), WrapError::WrongKind);
        census.unchanged();
    }

    fn a_place_left_free_is_sent_alone_and_eight_times(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            for count in [1, 8] {
                let message = |m: TypedMessage, _| m.with(Capability::Nothing);
                one.send((0..count).fold(TypedMessage::new(""), message)).await.unwrap();
                let received = other.receive().await.unwrap();
                assert_eq!(received.capabilities.len(), count);
                assert!(received.capabilities.iter().all(|one| matches!(one, Capability::Nothing)));
            }
        });
    }

    fn nine_are_refused_and_closed(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let census = Census::take();
        let nine = |free: bool| {
            (0..=NACL_DESCRIPTORS_MAX).fold(TypedMessage::new("nine"), |message, _| match free {
                true => message.with(Capability::Nothing),
                false => message.with(file()),
            })
        };
        settle(reactor, async {
            for free in [true, false] {
                let refused = one.send(nine(free)).await;
                assert!(matches!(refused, Err(TypedSendError::TooManyDescriptors)));
                assert!(matches!(one.try_send(nine(free)), Err(TypedSendError::TooManyDescriptors)));
            }
            one.send(TypedMessage::new("nothing before this")).await.unwrap();
            assert_eq!(other.receive().await.unwrap().data, b"nothing before this");
        });
        census.unchanged();
    }

    fn too_much_data_is_refused(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            let message = TypedMessage::new(vec![7; NACL_BYTES_MAX + 1]).with(file());
            assert!(matches!(one.send(message).await, Err(TypedSendError::TooLarge)));
            one.send(TypedMessage::new(vec![7; NACL_BYTES_MAX]).with(file())).await.unwrap();
            let received = other.receive().await.unwrap();
            assert_eq!((received.data.len(), received.capabilities.len()), (NACL_BYTES_MAX, 1));
        });
    }

    fn parts_are_gathered_up_to_256(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let bytes: Vec<u8> = (0..=255).collect();
        let mut parts: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        assert_eq!(parts.len(), NACL_PARTS_MAX);
        settle(reactor, async {
            one.send(TypedMessage::gather(&parts).unwrap()).await.unwrap();
            assert_eq!(other.receive().await.unwrap().data, bytes);
        });
        parts.push(IoSlice::new(b"one more"));
        assert!(matches!(TypedMessage::gather(&parts), Err(TypedSendError::TooManyParts)));
    }

    /// A ring is the one thing that has a descriptor and cannot be sent: the kernel refuses it.
    fn a_list_of_good_bad_and_good_sends_nothing_and_leaks_nothing(reactor: &Reactor) {
        let config = ring::Config { driver: DriverChoice::Uring, ..ring::Config::default() };
        let Ok(holder) = Reactor::with_config(config) else {
            println!("no io_uring here, and so nothing that cannot be sent");
            return;
        };
        let (one, other) = pair(reactor);
        let bad = ring_of_this_process();
        let census = Census::take();
        settle(reactor, async {
            for waits in [true, false] {
                let bad = PlainFile::new(bad.try_clone().unwrap()).unwrap();
                let message = TypedMessage::new("never seen").with(file()).with(bad).with(file());
                let refused = if waits { one.send(message).await } else { one.try_send(message) };
                let Err(TypedSendError::Send(SendError::Io(error))) = refused else { panic!("{refused:?}") };
                assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            }
            one.send(TypedMessage::new("seen")).await.unwrap();
            let received = other.receive().await.unwrap();
            assert_eq!((received.data, received.capabilities.len()), (b"seen".to_vec(), 0));
        });
        census.unchanged();
        drop(holder);
    }

    // Truncation.

    fn two_descriptors_into_room_for_one_are_one_and_a_flag(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let closed = PlainFile::new(writer.into()).unwrap();
            one.send(TypedMessage::new("all the data").with(file()).with(closed)).await.unwrap();
            let received = other.receive_into(Room { descriptors: 1, ..Room::default() }).await.unwrap();
            assert_eq!(received.data, b"all the data");
            assert_eq!(received.capabilities.len(), 1);
            assert_eq!(received.truncated, Truncated { data: false, descriptors: true });
            assert_eq!(received.truncated.flags(), DESC_TRUNCATED);
            // The writer's last copy is closed, or this would wait for ever.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        });
    }

    fn data_into_less_room_is_its_beginning_and_a_flag(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            for (bytes, flags) in [(5, 0), (4, DATA_TRUNCATED), (0, DATA_TRUNCATED)] {
                one.send(TypedMessage::new("12345").with(file())).await.unwrap();
                let received = other.receive_into(Room { bytes, ..Room::default() }).await.unwrap();
                assert_eq!(received.data, b"12345"[..bytes]);
                assert_eq!((received.capabilities.len(), received.truncated.flags()), (1, flags));
            }
            one.send(TypedMessage::new("12345").with(file())).await.unwrap();
            let received = other.receive_into(Room { bytes: 1, descriptors: 0 }).await.unwrap();
            assert_eq!(received.truncated.flags(), DATA_TRUNCATED | DESC_TRUNCATED);
        });
    }

    fn what_is_not_taken_is_closed(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let census = Census::take();
        settle(reactor, async {
            for room in [Room::default(), Room { bytes: 0, descriptors: 0 }] {
                let (_, address) = bound_socket(reactor).unwrap();
                let message = TypedMessage::new("x").with(address).with(file());
                let memory = SharedMemory::create(MEMORY_UNIT_BYTES).unwrap();
                one.send(message.with(memory)).await.unwrap();
                drop(other.receive_into(room).await.unwrap());
            }
        });
        census.unchanged();
    }

    // Withdrawing, waiting, ends.

    fn a_receive_that_is_dropped_loses_no_message(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        settle(reactor, async {
            for _ in 0..10 {
                poll_once(pin!(other.receive()));
                one.send(TypedMessage::new("kept").with(file())).await.unwrap();
                assert_eq!(other.receive().await.unwrap().capabilities.len(), 1);
            }
        });
    }

    fn a_full_queue_is_said_at_once_and_awaited_by_send(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let mut sent = 0;
        let refused = loop {
            match one.try_send(TypedMessage::new([7; 1000]).with(file())) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, TypedSendError::Send(SendError::WouldBlock)));
        let census = Census::take();
        settle(reactor, async {
            {
                let mut withdrawn = pin!(one.send(TypedMessage::new("withdrawn").with(file())));
                poll_once(withdrawn.as_mut());
            }
            testing::turn(reactor);
            census.unchanged();
            let mut sending = pin!(one.send(TypedMessage::new("the last")));
            poll_once(sending.as_mut());
            for _ in 0..sent {
                assert_eq!(other.receive().await.unwrap().data, [7; 1000]);
            }
            sending.await.unwrap();
            assert_eq!(other.receive().await.unwrap().data, b"the last");
        });
    }

    fn the_end_is_told_and_sending_to_nobody_is_an_error(reactor: &Reactor) {
        let (one, other) = pair(reactor);
        let census = Census::take();
        settle(reactor, async {
            other.send(TypedMessage::new("farewell")).await.unwrap();
            drop(other);
            assert_eq!(one.receive().await.unwrap().data, b"farewell");
            assert!(matches!(one.receive().await, Err(TypedReceiveError::Closed)));
            let refused = one.send(TypedMessage::new("anyone?").with(file())).await;
            assert!(matches!(refused, Err(TypedSendError::Send(SendError::Gone))));
        });
        assert_eq!(Census::take().len(), census.len() - 1);
    }

    /// A peer that sends rubbish as fast as it is read must not have the whole thread.
    fn a_flood_of_rubbish_lets_others_have_their_turn(reactor: &Reactor) {
        let (socket, peer) = facing_a_stranger(reactor);
        (0..100).for_each(|_| send_packet(&peer, b"rubbish", &[]).unwrap());
        send_packet(&peer, &packet(&[], b"honest"), &[]).unwrap();
        poll_once(socket.receive());
        assert!(socket.violations().malformed < 100);
        assert_eq!(settle(reactor, socket.receive()).unwrap().data, b"honest");
        assert_eq!(socket.violations().malformed, 100);
    }

    /// Nor one that sends honest messages to a task which only waits for the next.
    fn a_flood_of_messages_lets_others_have_their_turn(reactor: &Reactor) {
        let (socket, peer) = facing_a_stranger(reactor);
        (0..100).for_each(|_| send_packet(&peer, &packet(&[], b"honest"), &[]).unwrap());
        let count = Cell::new(0);
        let mut all = Box::pin(async {
            while count.get() < 100 {
                socket.receive().await.unwrap();
                count.set(count.get() + 1);
            }
        });
        poll_once(all.as_mut());
        assert!(count.get() < 100);
        settle(reactor, all);
        assert_eq!(count.get(), 100);
    }

    /// The kernel was not asked yet, and says "process 0, nobody", which is not to be believed.
    fn of_a_message_sent_before_anybody_asked_the_sender_is_not_known(reactor: &Reactor) {
        let (near, far) = packet_pair();
        send_packet(&far, &packet(&[], b"early"), &[]).unwrap();
        let socket = TypedSocket::new(ConnectedSocket::from_fd(reactor, near).unwrap()).unwrap();
        send_packet(&far, &packet(&[], b"late"), &[]).unwrap();
        assert_eq!(settle(reactor, socket.receive()).unwrap().credentials, None);
        let who = settle(reactor, socket.receive()).unwrap().credentials.unwrap();
        assert_eq!(who.pid, std::process::id() as i32);
    }

    fn a_connection_that_is_receiving_is_given_back(reactor: &Reactor) {
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        poll_once(pin!(near.receive()));
        testing::turn(reactor);
        let Err(near) = TypedSocket::new(near) else { panic!("its receive would take the first message") };
        testing::turn(reactor);
        let near = TypedSocket::new(near).unwrap();
        send_packet(&far, &packet(&[], b"the first"), &[]).unwrap();
        assert_eq!(settle(reactor, near.receive()).unwrap().data, b"the first");
    }

    fn descriptors_lost_for_want_of_room_are_told_with_the_data(_reactor: &Reactor) {
        let limit = testing::limit_descriptors(64);
        let reactor = &testing::reactor();
        let (socket, peer) = facing_a_stranger(reactor);
        let pipe = pipe_end();
        send_packet(&peer, &packet(&[5; 8], b"whole"), &[pipe.as_fd(); 8]).unwrap();
        let mut kept: Vec<OwnedFd> = Vec::new();
        // The reserve is taken by others in this process, while the estimate says that there is room.
        while let Ok(copy) = pipe.try_clone() {
            kept.push(copy);
        }
        kept.truncate(kept.len() - 3);
        settle(reactor, async {
            let Err(TypedReceiveError::DescriptorsLost(data)) = socket.receive().await else {
                panic!("there was room for three")
            };
            assert_eq!(data, b"whole");
            kept.clear();
            send_packet(&peer, &packet(&[5; 8], b"again"), &[pipe.as_fd(); 8]).unwrap();
            assert_eq!(socket.receive().await.unwrap().capabilities.len(), 8);
        });
        assert_eq!(socket.violations().total(), 0);
        drop(limit);
    }

    // Strangers.

    fn what_is_no_typed_message_is_counted(reactor: &Reactor) {
        let pipe = pipe_end();
        let good = packet(&[5], b"data");
        let spoilt = |place: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[place] = byte;
            bytes
        };
        for (place, byte) in [(0, 2), (1, 9), (2, 1), (4, 5), (8, 6), (9, 5)] {
            is_counted(reactor, &spoilt(place, byte), &[pipe.as_fd()], |v| v.malformed);
        }
        is_counted(reactor, b"c", &[pipe.as_fd()], |v| v.malformed);
        is_counted(reactor, &packet(&[], &vec![0; NACL_BYTES_MAX + 1]), &[], |v| v.malformed);
    }

    fn more_or_fewer_descriptors_than_declared_are_counted(reactor: &Reactor) {
        let pipe = pipe_end();
        is_counted(reactor, &packet(&[5], b""), &[], |v| v.miscounted);
        is_counted(reactor, &packet(&[5], b""), &[pipe.as_fd(); 2], |v| v.miscounted);
        is_counted(reactor, &packet(&[0], b""), &[pipe.as_fd()], |v| v.miscounted);
        is_counted(reactor, &packet(&[], b""), &[pipe.as_fd()], |v| v.miscounted);
        is_counted(reactor, &packet(&[5; 8], b""), &[pipe.as_fd(); 9], |v| v.miscounted);
        is_counted(reactor, &packet(&[5; 8], b""), &[pipe.as_fd(); 253], |v| v.miscounted);
    }

    fn what_is_not_what_it_is_declared_to_be_is_counted(reactor: &Reactor) {
        let pipe = pipe_end();
        let (socket, _peer) = packet_pair();
        let (stream, _other) = testing::stream_pair();
        let loose = memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&loose, MEMORY_UNIT_BYTES as u64).unwrap();
        let shared = SharedMemory::create(MEMORY_UNIT_BYTES).unwrap();
        let odd = FrozenMemory::of(&[b"no multiple of 64 KiB"]).unwrap();
        let lies: [(u8, BorrowedFd<'_>); 11] = [
            (1, pipe.as_fd()),
            (1, stream.as_fd()),
            (2, pipe.as_fd()),
            (2, stream.as_fd()),
            (3, pipe.as_fd()),
            (3, loose.as_fd()),
            (3, odd.as_fd()),
            (4, shared.as_fd()),
            (4, socket.as_fd()),
            (5, socket.as_fd()),
            (5, stream.as_fd()),
        ];
        for (kind, fd) in lies {
            // Between two that are what they should be.
            let packet = packet(&[5, kind, 5], b"a lie");
            is_counted(reactor, &packet, &[pipe.as_fd(), fd, pipe.as_fd()], |v| v.misdeclared);
        }
    }

    fn a_lingering_file_does_not_hold_the_reactor_up(reactor: &Reactor) {
        let (socket, peer) = facing_a_stranger(reactor);
        let lingering = testing::lingering_tcp();
        send_packet(&peer, &packet(&[5], b"untaken"), &[lingering.near.as_fd()]).unwrap();
        send_packet(&peer, &packet(&[1], b"a lie"), &[lingering.near.as_fd()]).unwrap();
        send_packet(&peer, &packet(&[], b"next"), &[]).unwrap();
        drop(lingering.near);
        settle(reactor, async {
            drop(socket.receive().await.unwrap());
            assert_eq!(socket.receive().await.unwrap().data, b"next");
        });
        assert!(ring::closer_busy(), "somebody else waits for it");
        drop(lingering.far);
        ring::closer_idle();
    }

    fn any_bytes_and_any_descriptors_are_survived(reactor: &Reactor) {
        let (socket, peer) = facing_a_stranger(reactor);
        let pipe = pipe_end();
        let census = Census::take();
        let near_right = (prop::collection::vec(0..7_u8, 0..10), prop::collection::vec(any::<u8>(), 0..20));
        let bytes = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..40),
            near_right.prop_map(|(kinds, data)| packet(&kinds, &data)),
        ];
        let mut runner = TestRunner::new(Cases { failure_persistence: None, ..Cases::with_cases(300) });
        let tried = runner.run(&(bytes, 0..12_usize), |(bytes, count)| {
            send_packet(&peer, &bytes, &vec![pipe.as_fd(); count]).unwrap();
            send_packet(&peer, &packet(&[], b"end of round"), &[]).unwrap();
            while settle(reactor, socket.receive()).unwrap().data != b"end of round" {}
            Ok(())
        });
        tried.unwrap();
        census.unchanged();
    }
}

/// A copy of some ring's descriptor of this process.
fn ring_of_this_process() -> OwnedFd {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let rings = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let is_ring = std::fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("io_uring"));
        is_ring.then(|| path.file_name().unwrap().to_string_lossy().parse::<i32>().unwrap())
    });
    let number = rings.last().unwrap();
    let own = pidfd_open(rustix::process::getpid() as Pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).unwrap()
}
