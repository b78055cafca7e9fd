//! Whoever accepts connections, and what it does with them: plain and typed messages, memory that is mapped,
//! addresses that are connected to.
//!
//! It owns the bound socket and all that comes of it. It does not know who connects.

use imc::{
    AcceptError, BoundSocket, Capability, ConnectedSocket, Room, SocketAddress, TypedMessage,
    TypedReceiveError, TypedSocket,
};
use ring::{Executor, Reactor, Spawner};

use super::{HONEST, act};
use crate::packet::Tongue;
use crate::peer::Peer;
use crate::script::Script;

/// How many messages of a connection are answered. Whoever passes both ends of a pair makes two of our
/// connections lead to each other, and if each message were answered they would talk for ever.
const ANSWERED_MAX: usize = 16;

/// What is done with connections, one way after the other.
#[derive(Clone, Copy, Debug)]
enum Use {
    Typed(Room),
    Messages,
    /// Taken, and let go of.
    Nothing,
}

pub(super) fn play(reactor: &Reactor, mut script: Script<'_>) {
    let executor = Executor::new(reactor);
    let ruthless = script.flag();
    let (bound, address) = testing::packet_pair();
    let own_end = ruthless.then(|| bound.try_clone().unwrap());
    let bound = BoundSocket::from_fd(reactor, bound).unwrap();
    let confirming = script.below(4) == 3;
    bound.set_confirming(confirming);
    let uses = [(); 3].map(|()| one_use(&mut script));
    executor.spawn(accept(bound, uses, executor.spawner()));
    let friend = SocketAddress::from_fd(reactor, address.try_clone().unwrap()).unwrap();

    let mut peer = Peer::new(script);
    match own_end {
        Some(bound) => {
            peer.holds(bound);
            peer.holds(address);
        }
        None => peer.shares(address),
    }
    peer.connect_on_newest();
    executor.settle();
    act(&mut peer, Tongue::Typed, &executor);

    if !ruthless {
        // Which use it is put to is not known; that it is accepted is, where that is said.
        executor.block_on(async {
            if confirming {
                drop(friend.connect_confirmed(super::HONEST_TIME_MAX).await.unwrap());
            } else {
                friend.connect().await.unwrap().send("hello").await.unwrap();
            }
        });
    }
    is_served(reactor, &executor);
    drop(peer);
    is_served(reactor, &executor);
}

fn one_use(script: &mut Script<'_>) -> Use {
    match script.below(8) {
        0..=2 => Use::Typed(Room::default()),
        3 => Use::Typed(Room { bytes: script.one_of(&[0, 1, 100]), descriptors: script.below(3) }),
        4..=6 => Use::Messages,
        _ => Use::Nothing,
    }
}

async fn accept(bound: BoundSocket, uses: [Use; 3], spawner: Spawner) {
    for used in uses.into_iter().cycle() {
        match bound.accept().await {
            Ok(arrival) => match used {
                Use::Typed(room) => {
                    spawner.spawn(converse(arrival.socket, room));
                }
                Use::Messages => {
                    spawner.spawn(listen(arrival.socket));
                }
                Use::Nothing => drop(arrival),
            },
            Err(AcceptError::Gone) => break,
            Err(error) => panic!("nothing that a peer does is an error: {error}"),
        }
    }
    let _ = bound.violations();
}

async fn listen(connection: ConnectedSocket) {
    connection.set_descriptors_max(253);
    for number in 0.. {
        let Ok(mut message) = connection.receive().await else { break };
        drop(message.take_descriptors());
        if number < ANSWERED_MAX {
            let _ = connection.try_send("heard");
        }
    }
}

async fn converse(connection: ConnectedSocket, room: Room) {
    let Ok(connection) = TypedSocket::new(connection) else { return };
    for number in 0.. {
        match connection.receive_into(room).await {
            Ok(message) => {
                assert!(message.data.len() <= room.bytes && message.capabilities.len() <= room.descriptors);
                message.capabilities.iter().for_each(examine);
                let answer = message.capabilities.into_iter().fold(TypedMessage::new("heard"), |all, one| {
                    if all.capabilities().len() < 2 { all.with(one) } else { all }
                });
                if number < ANSWERED_MAX {
                    let _ = connection.try_send(answer);
                }
            }
            Err(TypedReceiveError::DescriptorsLost(_)) => {}
            Err(_) => break,
        }
    }
    let _ = connection.violations();
}

/// What is taken for memory can be read from its first byte to its last, whatever its maker does to it.
fn examine(capability: &Capability) {
    let mut byte = [0];
    match capability {
        Capability::SharedMemory(memory) => {
            if let Ok(mapping) = memory.map() {
                mapping.read_at(0, &mut byte).unwrap();
                mapping.read_at(memory.len() - 1, &mut byte).unwrap();
            }
        }
        Capability::FrozenMemory(memory) => {
            if let Ok(mapping) = memory.map() {
                let _ = mapping.first().copied();
                let _ = mapping.last().copied();
            }
        }
        Capability::SocketAddress(address) => drop(address.try_connect()),
        _ => {}
    }
}

/// Strangers on the same reactor connect, and send each other what has a type.
#[track_caller]
fn is_served(reactor: &Reactor, executor: &Executor) {
    let (bound, address) = imc::bound_socket(reactor).unwrap();
    let heard = executor.block_on(async {
        let client = TypedSocket::new(address.connect().await.unwrap()).unwrap();
        let server = TypedSocket::new(bound.accept().await.unwrap().socket).unwrap();
        client.send(TypedMessage::new(HONEST)).await.unwrap();
        server.receive().await.unwrap().data
    });
    assert_eq!(heard, HONEST);
}
