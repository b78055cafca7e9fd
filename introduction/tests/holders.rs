//! Peers that keep a copy of the end which the server has of their connection, servers that keep a copy of
//! the end which a netlayer has of theirs, and ends that are passed on with all sorts of things in them:
//! whatever they set, shut, take or leave there, others meet, and nothing is left behind.
#![allow(clippy::unwrap_used)]

mod raw;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use introduction::{Expect, Identity, Netlayer, Server, ServerOptions};
use raw::{RawPeer, are_connected};
use ring::{Fd, Kind, Reactor, Socket};
use rustix::net::{Shutdown, shutdown};
use testing::{
    Census, Lingering, helper, lingering_tcp, meddle, on_each_driver, packet_pair, park, receive_packet,
    send_packet, settle, start_helper,
};

fn server(reactor: &Reactor) -> Server {
    let options = ServerOptions::default();
    server_that_holds(reactor, options.held_max)
}

/// One that holds so many introductions for each peer.
fn server_that_holds(reactor: &Reactor, held_max: usize) -> Server {
    let mut options = ServerOptions::default();
    options.held_max = held_max;
    Server::new(reactor, Identity::from_seed(&[100; 32]), options)
}

async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(Duration::from_micros(100)).await;
    }
}

/// A peer that has registered, and a copy of the server's end of its connection.
async fn registered(reactor: &Reactor, server: &Server, seed: u8) -> (RawPeer, OwnedFd) {
    let (peer, far) = RawPeer::new(reactor, seed);
    let kept = far.try_clone().unwrap();
    let before = server.stats().registrations;
    server.admit(far).unwrap();
    peer.register().await;
    until(reactor, || server.stats().registrations > before).await;
    (peer, kept)
}

async fn meet(anne: &RawPeer, bert: &RawPeer) {
    let near = anne.ask_for(&bert.designator()).await;
    are_connected(near, bert.introduced_by(&anne.designator()).await).await;
}

helper! {
    /// Is a server for whoever is at the other end of the two streams, until both are gone.
    fn introduces(descriptors: Vec<OwnedFd>) {
        let reactor = testing::reactor();
        let server = server(&reactor);
        descriptors.into_iter().for_each(|line| server.admit(line).unwrap());
        settle(&reactor, until(&reactor, || server.connections() == 0));
    }

    /// Leaves as many descriptors as it can in the queue of the first, and says on the second that it has.
    fn parks(descriptors: Vec<OwnedFd>) {
        testing::count_apart();
        assert!(park(&descriptors[0], b"parked") > 0);
        send_packet(&descriptors[1], b"parked", &[]).unwrap();
    }
}

on_each_driver! {
    /// The server is a process of its own; both peers kept the ends they gave it.
    fn whatever_a_peer_sets_on_the_servers_end_others_meet(reactor: &Reactor) {
        let (anne, annes) = RawPeer::new(reactor, 1);
        let (bert, berts) = RawPeer::new(reactor, 2);
        let kept = [annes.try_clone().unwrap(), berts.try_clone().unwrap()];
        let helper = start_helper!(introduces, vec![annes, berts]);
        settle(reactor, async {
            anne.register().await;
            bert.register().await;
        });
        for end in &kept {
            meddle(end, |what| {
                settle(reactor, async {
                    meet(&anne, &bert).await;
                    meet(&bert, &anne).await;
                });
                assert!(anne.stream.descriptors().is_empty(), "{what}");
            });
        }
        drop((anne, bert, kept));
        helper.succeeded();
    }

    fn who_shuts_the_servers_end_down_ends_its_own_connection_only(reactor: &Reactor) {
        for half in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let server = server(reactor);
            settle(reactor, async {
                let (anne, _) = registered(reactor, &server, 1).await;
                let (bert, _) = registered(reactor, &server, 2).await;
                let (mallory, kept) = registered(reactor, &server, 3).await;
                shutdown(&kept, half).unwrap();
                // Whoever asks for what cannot be written to does not keep the server from others.
                let asked = anne.ask_for(&mallory.designator()).await;
                meet(&anne, &bert).await;
                drop((mallory, kept, asked));
                until(reactor, || server.connections() == 2).await;
                meet(&bert, &anne).await;
            });
        }
    }

    /// What it takes is what it has said itself, and what was meant for itself.
    fn who_reads_the_servers_end_takes_its_own_words(reactor: &Reactor) {
        let server = server(reactor);
        settle(reactor, async {
            let (anne, _) = registered(reactor, &server, 1).await;
            let (bert, _) = registered(reactor, &server, 2).await;
            let (mallory, kept) = registered(reactor, &server, 3).await;
            let absent = raw::base32(&[9; 32]);
            let record = raw::introduction(&mallory.designator(), &absent);
            testing::set_nonblocking(&kept);
            for _ in 0..10 {
                // What is left of it, if anything, is no record; and then it is disconnected.
                let _ = mallory.stream.socket.try_send(record.as_slice());
                let _ = receive_packet(&kept);
                meet(&anne, &bert).await;
            }
            drop((mallory, kept));
            until(reactor, || server.connections() == 2).await;
        });
    }

    /// Whatever lies in an end that is passed on, whoever lets go of it does not close that: of one that
    /// nobody takes, of one that pushes another out, and of one whose asker is gone.
    fn what_lies_in_an_end_that_is_passed_on_is_closed_elsewhere(reactor: &Reactor) {
        let census = Census::take();
        let server = server_that_holds(reactor, 1);
        let readers = settle(reactor, async {
            let (anne, _) = registered(reactor, &server, 1).await;
            let (bert, _) = registered(reactor, &server, 2).await;
            let mut readers = Vec::new();
            for kind in [Kind::Stream, Kind::SeqPacket] {
                let (mallory, _) = registered(reactor, &server, 3).await;
                let Lingering { near: stuck, far: reader } = lingering_tcp();
                let (near, far) = match kind {
                    Kind::Stream => testing::stream_pair(),
                    _ => packet_pair(),
                };
                send_packet(&near, b"inside", &[stuck.as_fd()]).unwrap();
                if kind == Kind::SeqPacket {
                    let (told, tell) = packet_pair();
                    let helper = start_helper!(parks, vec![near.try_clone().unwrap(), tell]);
                    assert_eq!(receive_packet(&told).unwrap().bytes, b"parked");
                    helper.succeeded();
                }
                drop((stuck, near));
                let absent = raw::base32(&[9; 32]);
                mallory.stream.say(raw::introduction(&mallory.designator(), &absent)).await;
                mallory.stream.pass(raw::DUMMY, Fd::from(far)).await;
                let asked = server.stats().introductions;
                until(reactor, || server.stats().introductions >= asked.max(1)).await;
                drop(mallory);
                until(reactor, || server.introductions() == 0 && server.connections() == 2).await;
                assert!(ring::closer_busy(), "nothing is left for the closer: this thread has closed it");
                meet(&anne, &bert).await;
                readers.push(reader);
            }
            drop((anne, bert));
            readers
        });
        drop((readers, server));
        testing::wait_until("all are closed", || {
            reactor.turn(ring::Wait::Not).unwrap();
            Census::take().len() <= census.len()
        });
    }

    /// A server that made the pair it is reached by can do as much to its peers, and no more than to stop
    /// serving them: the netlayer goes on with the others.
    fn whatever_a_server_sets_on_a_netlayers_end_the_netlayer_goes_on(reactor: &Reactor) {
        let server = server(reactor);
        let (line, theirs) = testing::stream_pair();
        let kept = line.try_clone().unwrap();
        let bert = Netlayer::new(reactor, Identity::from_seed(&[2; 32]));
        settle(reactor, async {
            server.admit(theirs).unwrap();
            let joined = bert.add_server(line, Expect::default()).await.unwrap();
            let (anne, _) = registered(reactor, &server, 1).await;
            let designator = bert.key().to_string();
            let asks = async || {
                let near: Socket = anne.ask_for(&designator).await;
                let incoming = bert.incoming().await;
                let connection = incoming.accept();
                near.send("hello").await.unwrap();
                match connection {
                    introduction::Connection::Stream(socket) => {
                        assert_eq!(socket.receive().await.unwrap().bytes(), b"hello");
                    }
                    other => panic!("{other:?}"),
                }
            };
            asks().await;
            let mut changes = Vec::new();
            meddle(&kept, |what| changes.push(what.to_owned()));
            asks().await;
            for half in [Shutdown::Read, Shutdown::Both] {
                shutdown(&kept, half).unwrap();
            }
            // Told like any end.
            joined.await;
        });
    }
}
