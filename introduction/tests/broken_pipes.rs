//! Nobody dies of a broken pipe, in a process in which it is not ignored as it is in Rust's by default: not a
//! server whose peers register and close, and not a program whose server or peer is gone.
#![allow(clippy::unwrap_used)]

mod raw;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use introduction::{Expect, Identity, Netlayer, Server, ServerOptions};
use raw::RawPeer;
use ring::script::die_of_broken_pipes;
use ring::{Kind, Reactor, Socket};
use testing::{helper, in_own_process, on_each_driver, settle, start_helper};

/// The signal that kills whoever writes to a pipe that nobody reads.
const SIGPIPE: i32 = 13;

async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

helper! {
    /// What the others would do if they were careless.
    fn writes_to_nobody(_descriptors: Vec<OwnedFd>) {
        die_of_broken_pipes().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        drop(reader);
        let _ = writer.write_all(b"anyone?");
    }

    /// A stream and no pipe, which is what servers speak over.
    fn says_it_to_nobody(_descriptors: Vec<OwnedFd>) {
        die_of_broken_pipes().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(far);
        let flags = rustix::net::SendFlags::empty();
        let _ = rustix::net::send(&near, b"anyone?", flags);
    }

    /// Peers close at each moment at which the server has something to say to them.
    fn serves_those_who_close(_descriptors: Vec<OwnedFd>) {
        die_of_broken_pipes().unwrap();
        let reactor = testing::reactor();
        let server =
            Server::new(&reactor, Identity::from_seed(&[100; 32]), ServerOptions::default());
        settle(&reactor, async {
            for seed in 1..100 {
                // It has asked to register, and is gone before it is answered.
                let (peer, far) = RawPeer::new(&reactor, seed);
                peer.stream.socket.try_send(peer.registration()).unwrap();
                drop(peer);
                server.admit(far).unwrap();
            }
            until(&reactor, || server.connections() == 0).await;
            let (anne, far) = RawPeer::new(&reactor, 201);
            server.admit(far).unwrap();
            anne.register().await;
            for round in 0..20 {
                // It is registered, and is gone when it is asked for.
                let (bert, far) = RawPeer::new(&reactor, 202);
                server.admit(far).unwrap();
                let before = server.stats().registrations;
                bert.register().await;
                until(&reactor, || server.stats().registrations > before).await;
                drop(bert);
                for _ in 0..round % 4 {
                    testing::turn(&reactor);
                }
                drop(anne.ask_for(&raw::base32(&Identity::from_seed(&[202; 32]).key().0)).await);
            }
        });
    }

    /// Everybody a program could say something to is gone.
    fn speaks_to_those_who_are_gone(_descriptors: Vec<OwnedFd>) {
        die_of_broken_pipes().unwrap();
        let reactor = testing::reactor();
        settle(&reactor, async {
            let anne = Netlayer::new(&reactor, Identity::from_seed(&[1; 32]));
            let (near, far) = Socket::pair(&reactor, Kind::Stream).unwrap();
            drop(far);
            let line = near.into_fd().unwrap();
            assert!(anne.add_server(line, Expect::default()).await.is_err());

            let server = Server::new(&reactor, Identity::from_seed(&[100; 32]), ServerOptions::default());
            let (near, far) = Socket::pair(&reactor, Kind::Stream).unwrap();
            server.admit(far).unwrap();
            let gone =
                anne.add_server(near.into_fd().unwrap(), Expect::key(server.key())).await.unwrap();
            until(&reactor, || server.registered() == 1).await;
            let connection = anne.connect(&anne.our_location()).await.unwrap();
            drop(anne.incoming().await.accept());
            let connection = connection.into_seqpacket().unwrap();
            assert!(connection.send("anyone?").await.is_err());
            let location = anne.our_location();
            drop(server);
            // It is not known yet that the server is gone.
            let _ = anne.connect(&location).await;
            gone.await;
        });
    }
}

in_own_process! {
    fn a_broken_pipe_would_kill_it() {
        let mut careless = start_helper!(writes_to_nobody);
        assert_eq!(careless.wait().signal(), Some(SIGPIPE));
        let mut careless = start_helper!(says_it_to_nobody);
        assert_eq!(careless.wait().signal(), Some(SIGPIPE));
    }
}

on_each_driver! {
    fn a_server_survives_peers_that_close_before_they_are_answered(_reactor: &Reactor) {
        start_helper!(serves_those_who_close).succeeded();
    }

    fn a_program_survives_a_server_and_a_peer_that_are_gone(_reactor: &Reactor) {
        start_helper!(speaks_to_those_who_are_gone).succeeded();
    }
}
