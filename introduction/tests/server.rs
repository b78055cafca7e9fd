//! The server, seen by peers that are not ours: both forms of the protocol byte for byte, what becomes of an
//! introduction, and each limit on both sides.
#![allow(clippy::unwrap_used)]

mod raw;

use std::cell::Cell;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use introduction::{AdmitError, Expect, Form, Identity, Netlayer, Peer, Policy, Server, ServerOptions};
use raw::{Dialect, RawPeer, Stream, are_connected, introduction, is_closed, is_quiet, locator};
use ring::script::{Faults, World};
use ring::{Credentials, Fd, Kind, Message, Reactor, Socket};
use testing::worlds::for_seeds;
use testing::{Census, in_own_process, on_each_driver, settle};

/// Long enough for all that a test wants to happen before.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to be waited for.
const SHORT: Duration = Duration::from_millis(200);

fn patient() -> ServerOptions {
    let mut options = ServerOptions::default();
    options.handshake_time = LONG;
    options.record_time = LONG;
    options.write_time = LONG;
    options.introduction_time = LONG;
    options
}

fn server_with(reactor: &Reactor, options: ServerOptions) -> Server {
    Server::new(reactor, Identity::from_seed(&[100; 32]), options)
}

/// A peer that is connected and says nothing yet.
fn newcomer(reactor: &Reactor, server: &Server, seed: u8) -> RawPeer {
    let (peer, far) = RawPeer::new(reactor, seed);
    server.admit(far).unwrap();
    peer
}

async fn registered(reactor: &Reactor, server: &Server, seed: u8) -> RawPeer {
    let before = server.stats().registrations;
    let peer = newcomer(reactor, server, seed);
    peer.register().await;
    until(reactor, || server.stats().registrations > before).await;
    peer
}

/// Takes turns until it is so. A test that waits in vain is ended by the harness.
async fn until(reactor: &Reactor, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

/// An honest pair of peers meets, in spite of all that happened before.
async fn serves(reactor: &Reactor, server: &Server) {
    let before = server.registered();
    let (anne, bert) = (registered(reactor, server, 201).await, registered(reactor, server, 202).await);
    let near = anne.ask_for(&bert.designator()).await;
    are_connected(near, bert.introduced_by(&anne.designator()).await).await;
    drop((anne, bert));
    until(reactor, || server.registered() == before).await;
}

/// Whether a connection is ended for a violation, with all that it brought, and nobody else notices.
fn is_violation(reactor: &Reactor, misbehave: impl AsyncFnOnce(&RawPeer)) {
    let server = server_with(reactor, patient());
    settle(reactor, async {
        serves(reactor, &server).await;
        let census = Census::take();
        let peer = registered(reactor, &server, 1).await;
        misbehave(&peer).await;
        assert_eq!(peer.stream.rest().await, b"");
        drop(peer);
        reactor.sleep(Duration::ZERO).await;
        census.unchanged();
        assert_eq!(server.stats().violations, 1);
        serves(reactor, &server).await;
    });
}

/// The descriptors that lie in a peer's queue, taken past the reactor and without a turn.
fn drained(peer: &RawPeer) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    while !is_quiet(&peer.stream.socket) {
        let read = testing::receive_packet(&peer.stream.socket).unwrap();
        if read.bytes.is_empty() {
            break;
        }
        descriptors.extend(read.descriptors);
    }
    descriptors
}

/// Sends, and closes what was sent before anybody else has a turn: the server's is then the last copy.
fn pass_and_forget(peer: &RawPeer, bytes: &[u8], fds: Vec<OwnedFd>) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let sent = sendmsg(&peer.stream.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT);
    assert_eq!(sent, Ok(bytes.len()));
}

/// Whether a descriptor that takes long to close keeps nobody waiting, however a peer has passed it.
fn is_closed_elsewhere(reactor: &Reactor, pass: impl AsyncFnOnce(&RawPeer, OwnedFd)) {
    let stuck = testing::lingering_tcp();
    let server = server_with(reactor, patient());
    settle(reactor, async {
        let peer = registered(reactor, &server, 1).await;
        pass(&peer, stuck.near).await;
        assert_eq!(peer.stream.rest().await, b"");
        serves(reactor, &server).await;
    });
    assert!(ring::closer_busy(), "somebody else is still closing it");
    drop(stuck.far);
}

/// What the kernel says of each socket of this process, but for what it was started with.
fn sockets() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let is_socket =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let is_standard = |path: &PathBuf| ["0", "1", "2"].iter().any(|number| path.ends_with(number));
    let sockets = open.map(|entry| entry.path()).filter(|path| is_socket(path) && !is_standard(path));
    let told = |path: PathBuf| Path::new("/proc/self/fdinfo").join(path.file_name().unwrap());
    sockets.map(|path| std::fs::read_to_string(told(path)).unwrap()).collect()
}

struct Nobody;

impl Policy for Nobody {
    fn may_register(&self, peer: &Peer) -> bool {
        assert_eq!(peer.credentials.pid, std::process::id() as i32);
        assert_eq!(peer.credentials.uid, rustix::process::geteuid().as_raw());
        false
    }
}

struct Apart;

impl Policy for Apart {
    fn may_reach(&self, _from: &Peer, _to: &Peer) -> bool {
        false
    }
}

/// Closed, until they are opened.
#[derive(Clone, Default)]
struct Doors {
    connecting: Rc<Cell<bool>>,
    registering: Rc<Cell<bool>>,
}

impl Policy for Doors {
    fn may_connect(&self, credentials: &Credentials) -> bool {
        assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
        self.connecting.get()
    }

    fn may_register(&self, _peer: &Peer) -> bool {
        self.registering.get()
    }
}

on_each_driver! {
    fn two_peers_meet_and_the_server_steps_out(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            serves(reactor, &server).await;
        });
        assert_eq!(server.introductions(), 0);
        assert_eq!(server.stats().passed_on, 1);
        assert_eq!(server.stats().violations, 0);
    }

    fn a_connection_outlives_the_server(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let near = anne.ask_for(&bert.designator()).await;
            let far = bert.introduced_by(&anne.designator()).await;
            drop(server);
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!(bert.stream.rest().await, b"");
            are_connected(near, far).await;
        });
    }

    fn the_drafts_forms_are_spoken_too(reactor: &Reactor) {
        let mut options = patient();
        options.form = Form::Draft;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let mut peers = Vec::new();
            for seed in [1, 2] {
                let mut peer = newcomer(reactor, &server, seed);
                peer.dialect = Dialect::Draft;
                peer.register().await;
                peers.push(peer);
            }
            until(reactor, || server.registered() == 2).await;
            let near = peers[0].ask_for(&peers[1].designator()).await;
            are_connected(near, peers[1].introduced_by(&peers[0].designator()).await).await;
        });
    }

    fn a_peer_of_the_draft_may_register_with_a_server_as_goblins_has_it(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let mut peer = newcomer(reactor, &server, 1);
            peer.stream.say(peer.registration()).await;
            let (_, challenge) = peer.response().await;
            peer.dialect = Dialect::Draft;
            peer.stream.say(peer.signature(&challenge)).await;
            until(reactor, || server.registered() == 1).await;
        });
    }

    fn records_may_come_a_byte_at_a_time(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = newcomer(reactor, &server, 1);
            let bert = registered(reactor, &server, 2).await;
            for byte in anne.registration() {
                anne.stream.say([byte]).await;
            }
            let (_, challenge) = anne.response().await;
            assert_eq!(anne.stream.take(1).await, b">");
            for byte in anne.signature(&challenge) {
                anne.stream.say([byte]).await;
            }
            for byte in introduction(&anne.designator(), &bert.designator()) {
                anne.stream.say([byte]).await;
            }
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            anne.stream.pass(b"!", Fd::made_here(far)).await;
            are_connected(near, bert.introduced_by(&anne.designator()).await).await;
        });
    }

    fn record_and_descriptor_may_come_together_with_any_bytes_beside(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let record = introduction(&anne.designator(), &bert.designator());
            for dummy in [1, 4, 4096] {
                let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
                let together = [record.as_slice(), &vec![b'<'; dummy]].concat();
                anne.stream.pass(&together, Fd::made_here(far)).await;
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
                let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
                anne.stream.say(&record).await;
                anne.stream.pass(&vec![b'<'; dummy], Fd::made_here(far)).await;
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
            }
        });
    }

    fn many_introductions_may_follow_each_other_at_once(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let mut nears = Vec::new();
            for _ in 0..40 {
                nears.push(anne.ask_for(&bert.designator()).await);
            }
            for near in nears {
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
            }
        });
    }

    fn hints_are_passed_on_as_they_were(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let from = raw::locator_with(&anne.designator(), "{7'unknown[1+2+]}");
            let some_server = "{52\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaat}";
            let to = raw::locator_with(&bert.designator(), some_server);
            let record = format!("<18'uds:new-connection{from}{to}>");
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            anne.stream.say(&record).await;
            anne.stream.pass(b"1", Fd::made_here(far)).await;
            assert_eq!(bert.stream.take(record.len()).await, record.as_bytes());
            are_connected(near, bert.stream.take_descriptor().await).await;
        });
    }

    fn a_seqpacket_socket_is_passed_on(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let (near, far) = Socket::pair(reactor, Kind::SeqPacket).unwrap();
            anne.stream.say(introduction(&anne.designator(), &bert.designator())).await;
            anne.stream.pass(b"1", Fd::made_here(far)).await;
            are_connected(near, bert.introduced_by(&anne.designator()).await).await;
        });
    }

    fn a_peer_may_ask_for_itself(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let near = anne.ask_for(&anne.designator()).await;
            are_connected(near, anne.introduced_by(&anne.designator()).await).await;
        });
    }

    fn who_registers_late_is_still_met(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let bert = newcomer(reactor, &server, 2);
            let first = anne.ask_for(&bert.designator()).await;
            let second = anne.ask_for(&bert.designator()).await;
            until(reactor, || server.introductions() == 2).await;
            bert.register().await;
            are_connected(first, bert.introduced_by(&anne.designator()).await).await;
            are_connected(second, bert.introduced_by(&anne.designator()).await).await;
        });
    }

    fn a_peer_that_reconnects_is_served_again(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            for _ in 0..3 {
                let bert = registered(reactor, &server, 2).await;
                let near = anne.ask_for(&bert.designator()).await;
                are_connected(near, bert.introduced_by(&anne.designator()).await).await;
            }
        });
    }

    fn the_same_key_may_register_again_before_its_old_connection_is_gone(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, old) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let bert = registered(reactor, &server, 2).await;
            assert_eq!(old.stream.rest().await, b"");
            assert_eq!(server.registered(), 2);
            let near = anne.ask_for(&bert.designator()).await;
            are_connected(near, bert.introduced_by(&anne.designator()).await).await;
        });
    }

    /// The old connection's queue has room again at the moment at which the new one is registered: whether
    /// what was on its way has left is known only after that.
    fn who_comes_again_while_a_descriptor_is_handed_over_gets_it_once(reactor: &Reactor) {
        const ASKED: usize = 16;
        let server = server_with(reactor, patient());
        let (anne, old, new, challenge, nears) = settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let old = registered(reactor, &server, 2).await;
            let new = newcomer(reactor, &server, 2);
            new.stream.say(new.registration()).await;
            let (_, challenge) = new.response().await;
            assert_eq!(new.stream.take(1).await, b">");
            let mut nears = Vec::new();
            for number in 0..ASKED {
                let near = anne.ask_for(&old.designator()).await;
                near.send(&[number as u8]).await.unwrap();
                nears.push(near);
            }
            until(reactor, || server.stats().introductions == ASKED as u64).await;
            serves(reactor, &server).await;
            (anne, old, new, challenge, nears)
        });
        assert!(server.introductions() > 1, "the queue of the old one is full");
        new.stream.socket.try_send(new.signature(&challenge)).unwrap();
        let mut fars = drained(&old);
        settle(reactor, async {
            old.stream.rest().await;
            fars.extend(old.stream.descriptors());
            assert!(fars.len() < ASKED, "some were left for the new one");
            for _ in fars.len()..ASKED {
                fars.push(new.introduced_by(&anne.designator()).await);
            }
            assert!(is_quiet(&new.stream.socket), "one came twice");
            let mut numbers = Vec::new();
            for far in fars {
                let far = Socket::wrap(reactor, far).unwrap();
                numbers.push(far.receive().await.unwrap().bytes()[0]);
            }
            numbers.sort();
            assert!(numbers.into_iter().eq(0..ASKED as u8), "each end came once");
            drop(nears);
        });
    }

    fn whoever_asks_for_nobody_sees_the_end_when_the_time_is_over(reactor: &Reactor) {
        let mut options = patient();
        options.introduction_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let near = anne.ask_for(&raw::base32(&[9; 32])).await;
            is_closed(&near).await;
            assert_eq!(server.stats().expired, 1);
            assert!(is_quiet(&anne.stream.socket));
            assert_eq!(server.introductions(), 0);
        });
    }

    fn no_program_that_is_started_inherits_what_a_server_keeps(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let (_near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            anne.stream.say(introduction(&anne.designator(), &raw::base32(&[9; 32]))).await;
            pass_and_forget(&anne, raw::DUMMY, vec![far]);
            until(reactor, || server.introductions() == 1).await;
            // Both ends of the line, one of the pair, and the one that waits here.
            let sockets = sockets();
            assert!(sockets.len() >= 4);
            for told in sockets {
                let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
                assert_ne!(i32::from_str_radix(flags.trim(), 8).unwrap() & 0o2000000, 0, "{told}");
            }
        });
    }

    fn whoever_asks_for_somebody_forbidden_sees_the_same(reactor: &Reactor) {
        let mut options = patient();
        options.introduction_time = SHORT;
        let server = Server::with_policy(reactor, Identity::from_seed(&[100; 32]), options, Apart);
        settle(reactor, async {
            let (anne, bert) = (registered(reactor, &server, 1).await, registered(reactor, &server, 2).await);
            let near = anne.ask_for(&bert.designator()).await;
            is_closed(&near).await;
            assert_eq!((server.stats().expired, server.stats().refused), (1, 1));
            assert!(is_quiet(&anne.stream.socket));
            assert!(is_quiet(&bert.stream.socket));
        });
    }

    fn who_may_not_register_is_disconnected(reactor: &Reactor) {
        let server = Server::with_policy(reactor, Identity::from_seed(&[100; 32]), patient(), Nobody);
        settle(reactor, async {
            let anne = newcomer(reactor, &server, 1);
            anne.register().await;
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!((server.stats().refused, server.connections()), (1, 0));
        });
    }

    fn what_a_peer_has_asked_for_goes_with_it(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let near = anne.ask_for(&raw::base32(&[9; 32])).await;
            until(reactor, || server.introductions() == 1).await;
            drop(anne);
            is_closed(&near).await;
            assert_eq!(server.introductions(), 0);
        });
    }

    /// With nothing read and the connection closed, the answer finds nobody.
    fn registering_and_closing_at_once_harms_nobody(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            for seed in 1..20 {
                let peer = newcomer(reactor, &server, seed);
                peer.stream.say(peer.registration()).await;
            }
            until(reactor, || server.connections() == 0).await;
            serves(reactor, &server).await;
        });
    }

    fn garbage_ends_the_connection(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let garbage: [&[u8]; 5] =
                [b"GET / HTTP/1.0", b"<300000000:", &[b'['; 20], b"t", b"<12'uds:register>"];
            for bytes in garbage {
                let peer = newcomer(reactor, &server, 1);
                peer.stream.say(bytes).await;
                assert_eq!(peer.stream.rest().await, b"");
            }
            assert_eq!(server.stats().violations, 5);
            serves(reactor, &server).await;
        });
    }

    fn somebody_elses_signature_is_refused(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (mut anne, mallory) = (newcomer(reactor, &server, 1), newcomer(reactor, &server, 3));
            anne.stream.say(anne.registration()).await;
            let (_, challenge) = anne.response().await;
            anne.stream.take(1).await;
            anne.key = mallory.key.clone();
            anne.stream.say(anne.signature(&challenge)).await;
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!((server.stats().violations, server.registered()), (1, 0));
        });
    }

    fn a_signature_for_another_challenge_is_refused(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = newcomer(reactor, &server, 1);
            anne.stream.say(anne.registration()).await;
            anne.response().await;
            anne.stream.take(1).await;
            anne.stream.say(anne.signature(&[7; 64])).await;
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!((server.stats().violations, server.registered()), (1, 0));
        });
    }

    fn speaking_in_anothers_name_is_a_violation(reactor: &Reactor) {
        is_violation(reactor, async |peer| {
            let (_near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            peer.stream.say(introduction(&raw::base32(&[9; 32]), &peer.designator())).await;
            peer.stream.pass(b"1234", Fd::made_here(far)).await;
        });
    }

    fn bytes_where_a_descriptor_belongs_are_a_violation(reactor: &Reactor) {
        is_violation(reactor, async |peer| {
            peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
            peer.stream.say(b"1234").await;
        });
    }

    fn a_descriptor_where_none_belongs_is_a_violation(reactor: &Reactor) {
        is_violation(reactor, async |peer| {
            peer.stream.pass(b"<", testing::packet_pair().0).await;
        });
    }

    fn two_descriptors_are_a_violation(reactor: &Reactor) {
        for count in [2, 3, 100, 253] {
            is_violation(reactor, async |peer| {
                peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
                let (_near, far) = testing::packet_pair();
                let mut message = Message::from(b"1234");
                (0..count).for_each(|_| message.push_descriptor(far.try_clone().unwrap()));
                peer.stream.socket.send(message).await.unwrap();
            });
        }
    }

    fn only_connected_sockets_are_passed_on(reactor: &Reactor) {
        let path = std::env::temp_dir().join(format!("sendright-introduction-{}", std::process::id()));
        let listener = || {
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            listener
        };
        let unconnected = || {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
        };
        let mut unfit: Vec<OwnedFd> = vec![
            std::io::pipe().unwrap().0.into(),
            std::fs::File::open("/dev/null").unwrap().into(),
            std::fs::File::open("/").unwrap().into(),
            listener().into(),
            unconnected(),
            std::os::unix::net::UnixDatagram::pair().unwrap().0.into(),
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        ];
        for fd in unfit.drain(..) {
            is_violation(reactor, async |peer| {
                peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
                peer.stream.pass(b"1234", fd.try_clone().unwrap()).await;
            });
        }
    }

    fn a_lingering_socket_keeps_nobody_waiting(reactor: &Reactor) {
        is_closed_elsewhere(reactor, async |peer, stuck| {
            peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
            pass_and_forget(peer, b"1234", vec![stuck]);
        });
    }

    fn a_lingering_socket_where_none_belongs_keeps_nobody_waiting(reactor: &Reactor) {
        is_closed_elsewhere(reactor, async |peer, stuck| pass_and_forget(peer, b"<", vec![stuck]));
    }

    fn a_lingering_socket_among_two_keeps_nobody_waiting(reactor: &Reactor) {
        is_closed_elsewhere(reactor, async |peer, stuck| {
            let (_, far) = Socket::pair(peer.stream.socket.reactor(), Kind::Stream).unwrap();
            peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
            pass_and_forget(peer, b"1234", vec![stuck, far]);
        });
    }

    fn a_lingering_socket_in_anothers_name_keeps_nobody_waiting(reactor: &Reactor) {
        is_closed_elsewhere(reactor, async |peer, stuck| {
            peer.stream.say(introduction(&raw::base32(&[9; 32]), &peer.designator())).await;
            pass_and_forget(peer, b"1234", vec![stuck]);
        });
    }

    fn a_lingering_socket_of_a_stranger_keeps_nobody_waiting(reactor: &Reactor) {
        let stuck = testing::lingering_tcp();
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let peer = newcomer(reactor, &server, 1);
            peer.stream.say(introduction(&peer.designator(), &peer.designator())).await;
            pass_and_forget(&peer, b"1234", vec![stuck.near]);
            assert_eq!(peer.stream.rest().await, b"");
            serves(reactor, &server).await;
        });
        assert!(ring::closer_busy(), "somebody else is still closing it");
        drop(stuck.far);
    }

    fn a_second_registration_on_one_connection_is_a_violation(reactor: &Reactor) {
        is_violation(reactor, async |peer| peer.stream.say(peer.registration()).await);
    }

    /// The server signs what it is asked to, with the key that it is known by. A peer gives it its own
    /// challenge to sign.
    fn nobody_registers_in_the_servers_own_name(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (mallory, mut signer) = (newcomer(reactor, &server, 1), newcomer(reactor, &server, 2));
            let own = locator(&server.key().to_string());
            let registration = format!("<12'uds:register{own}64:{}>", "c".repeat(64));
            mallory.stream.say(registration).await;
            let (_, challenge) = mallory.response().await;
            assert_eq!(mallory.stream.take(1).await, b">");
            signer.challenge = challenge;
            signer.stream.say(signer.registration()).await;
            signer.response().await;
            let start = b"<13'uds:signature64:".as_slice();
            let signed = signer.signed.take().unwrap();
            mallory.stream.say([start, &challenge, b"64:", &signed, b">"].concat()).await;
            assert_eq!(mallory.stream.rest().await, b"");
            assert_eq!(server.registered(), 0);
        });
    }

    fn who_never_registers_is_disconnected(reactor: &Reactor) {
        let mut options = patient();
        options.handshake_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let silent = newcomer(reactor, &server, 1);
            assert_eq!(silent.stream.rest().await, b"");
            let half = newcomer(reactor, &server, 1);
            half.stream.say(half.registration()).await;
            half.response().await;
            assert_eq!(half.stream.rest().await, b">");
            assert_eq!(server.stats().late, 2);
        });
    }

    fn who_does_not_finish_a_record_is_disconnected(reactor: &Reactor) {
        let mut options = patient();
        options.record_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let half = registered(reactor, &server, 1).await;
            half.stream.say(b"<").await;
            assert_eq!(half.stream.rest().await, b"");
            let missing = registered(reactor, &server, 1).await;
            missing.stream.say(introduction(&missing.designator(), &missing.designator())).await;
            assert_eq!(missing.stream.rest().await, b"");
            assert_eq!(server.stats().late, 2);
            serves(reactor, &server).await;
        });
    }

    fn there_are_so_many_connections_and_no_more(reactor: &Reactor) {
        let mut options = patient();
        options.connections_max = 3;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let peers = [1, 2, 3].map(|seed| newcomer(reactor, &server, seed));
            let (late, far) = Stream::pair(reactor);
            assert_eq!(server.admit(far), Err(introduction::AdmitError::Full));
            assert_eq!(late.rest().await, b"");
            drop(peers);
            until(reactor, || server.connections() == 0).await;
            serves(reactor, &server).await;
        });
    }

    fn one_user_has_so_many_connections_and_no_more(reactor: &Reactor) {
        let mut options = patient();
        options.user_connections_max = 2;
        let server = server_with(reactor, options);
        let _peers = [newcomer(reactor, &server, 1), newcomer(reactor, &server, 2)];
        assert_eq!(server.admit(Stream::pair(reactor).1), Err(introduction::AdmitError::Full));
    }

    fn newcomers_do_not_keep_others_out(reactor: &Reactor) {
        let mut options = patient();
        options.newcomers_max = 2;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let first = newcomer(reactor, &server, 1);
            let second = newcomer(reactor, &server, 2);
            assert!(is_quiet(&first.stream.socket));
            let _third = newcomer(reactor, &server, 3);
            assert_eq!(first.stream.rest().await, b"");
            assert!(is_quiet(&second.stream.socket));
            serves(reactor, &server).await;
        });
    }

    fn what_is_no_stream_is_not_admitted(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        for fd in [testing::packet_pair().0, std::io::pipe().unwrap().0.into()] {
            assert_eq!(server.admit(fd), Err(introduction::AdmitError::NotAStream));
        }
    }

    fn a_peer_holds_so_many_introductions_and_no_more(reactor: &Reactor) {
        let mut options = patient();
        options.held_max = 3;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let mut nears = Vec::new();
            for _ in 0..5 {
                nears.push(anne.ask_for(&raw::base32(&[9; 32])).await);
            }
            until(reactor, || server.introductions() == 3).await;
            // Others go on meanwhile, and it is not read any further.
            serves(reactor, &server).await;
            assert_eq!(server.introductions(), 3);
            assert!(nears.iter().all(is_quiet));
        });
    }

    fn a_peer_that_waits_for_room_goes_on_when_there_is_some(reactor: &Reactor) {
        let mut options = patient();
        options.held_max = 1;
        options.introduction_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let bert = registered(reactor, &server, 2).await;
            let nobody = anne.ask_for(&raw::base32(&[9; 32])).await;
            let near = anne.ask_for(&bert.designator()).await;
            is_closed(&nobody).await;
            are_connected(near, bert.introduced_by(&anne.designator()).await).await;
        });
    }

    /// Whoever is not told how its introductions end could still count how many it may ask for.
    fn by_the_quota_nobody_tells_who_refuses_from_who_is_not_there(reactor: &Reactor) {
        let mut options = patient();
        options.held_max = 1;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let bert = newcomer(reactor, &server, 2);
            bert.register_bound().await;
            until(reactor, || server.registered() == 1).await;
            let anne = registered(reactor, &server, 1).await;
            let mut record = introduction(&anne.designator(), &bert.designator());
            record.pop();
            let mut passed = Vec::new();
            // Until it is taken nothing more is read from her; then it is.
            for number in 0..2 {
                passed.push(anne.ask_for(&bert.designator()).await);
                until(reactor, || server.stats().passed_on == number + 1).await;
                let expected = [record.as_slice(), format!("{number}+>").as_bytes()].concat();
                assert_eq!(bert.stream.take(expected.len()).await, expected);
                passed.push(Socket::wrap(reactor, bert.stream.take_descriptor().await).unwrap());
                assert_eq!(server.introductions(), 1);
                let verdict = if number == 0 { 't' } else { 'f' };
                bert.stream.say(format!("<17'sendright:verdict{number}+{verdict}>")).await;
                if number == 0 {
                    until(reactor, || server.introductions() == 0).await;
                }
            }
            // Refused as if she had asked for nobody.
            let _waits = anne.ask_for(&raw::base32(&[9; 32])).await;
            serves(reactor, &server).await;
            assert_eq!(server.introductions(), 1);
            assert!(is_quiet(&anne.stream.socket));
        });
    }

    fn whoever_asks_for_most_makes_room(reactor: &Reactor) {
        let mut options = patient();
        options.introductions_max = 4;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let greedy = registered(reactor, &server, 1).await;
            let modest = registered(reactor, &server, 2).await;
            let one = modest.ask_for(&raw::base32(&[9; 32])).await;
            until(reactor, || server.introductions() == 1).await;
            let mut nears = Vec::new();
            for _ in 0..3 {
                nears.push(greedy.ask_for(&raw::base32(&[9; 32])).await);
            }
            until(reactor, || server.introductions() == 4).await;
            assert_eq!(server.stats().evicted, 0);
            serves(reactor, &server).await;
            is_closed(&nears[0]).await;
            assert_eq!(server.stats().evicted, 1);
            assert!(is_quiet(&one) && is_quiet(&nears[1]) && is_quiet(&nears[2]));
        });
    }

    /// What lies in the queue of a peer that does not read counts against the server's user.
    fn few_descriptors_are_in_flight_to_a_silent_peer(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let silent = registered(reactor, &server, 2).await;
            let mut nears = Vec::new();
            for _ in 0..16 {
                nears.push(anne.ask_for(&silent.designator()).await);
            }
            until(reactor, || server.stats().introductions == 16).await;
            serves(reactor, &server).await;
            let in_flight = server.stats().passed_on - 1;
            assert!((1..=8).contains(&in_flight), "{in_flight} in flight");
            for near in nears {
                are_connected(near, silent.introduced_by(&anne.designator()).await).await;
            }
        });
    }

    /// Those in flight may be anybody's of the same user, and whoever is to get one more has done nothing.
    fn what_cannot_be_passed_on_while_too_many_are_in_flight_is_passed_on_later(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let near = anne.ask_for(&RawPeer::new(reactor, 2).0.designator()).await;
            until(reactor, || server.introductions() == 1).await;
            let crowd = testing::too_many_in_flight();
            let bert = registered(reactor, &server, 2).await;
            let record = introduction(&anne.designator(), &bert.designator());
            assert_eq!(bert.stream.take(record.len()).await, record);
            // In the turns that this takes it is tried again.
            let _carl = registered(reactor, &server, 3).await;
            assert!(is_quiet(&bert.stream.socket));
            drop(crowd);
            are_connected(near, bert.stream.take_descriptor().await).await;
        });
    }

    fn who_does_not_read_is_disconnected(reactor: &Reactor) {
        let mut options = patient();
        options.write_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let silent = registered(reactor, &server, 2).await;
            let mut nears = Vec::new();
            for _ in 0..16 {
                nears.push(anne.ask_for(&silent.designator()).await);
            }
            until(reactor, || server.registered() == 1).await;
            assert_eq!(server.stats().late, 1);
            // What did not reach it waits for it to come back.
            let left = server.introductions();
            let back = registered(reactor, &server, 2).await;
            for near in nears.split_off(16 - left) {
                are_connected(near, back.introduced_by(&anne.designator()).await).await;
            }
        });
    }

    fn the_extension_numbers_and_judges_and_tells(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let (anne, bert) = (newcomer(reactor, &server, 1), newcomer(reactor, &server, 2));
            anne.register_bound().await;
            bert.register_bound().await;
            until(reactor, || server.registered() == 2).await;
            for number in 0..3 {
                let near = anne.ask_for(&bert.designator()).await;
                let mut expected = introduction(&anne.designator(), &bert.designator());
                expected.pop();
                expected.extend(format!("{number}+>").bytes());
                assert_eq!(bert.stream.take(expected.len()).await, expected);
                let far = bert.stream.take_descriptor().await;
                assert!(is_quiet(&anne.stream.socket));
                bert.stream.say(format!("<17'sendright:verdict{number}+t>")).await;
                let outcome = format!("<17'sendright:outcome{number}+8'accepted>");
                assert_eq!(anne.stream.take(outcome.len()).await, outcome.as_bytes());
                are_connected(near, far).await;
                // Said twice it means nothing.
                bert.stream.say(format!("<17'sendright:verdict{number}+f>")).await;
            }
            until(reactor, || server.introductions() == 0).await;
            assert_eq!(server.stats().violations, 0);
        });
    }

    fn a_verdict_on_what_was_never_sent_is_a_violation(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = newcomer(reactor, &server, 1);
            anne.register_bound().await;
            anne.stream.say(b"<17'sendright:verdict0+t>").await;
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!(server.stats().violations, 1);
        });
    }

    fn a_bound_registration_is_not_signed_raw(reactor: &Reactor) {
        let server = server_with(reactor, patient());
        settle(reactor, async {
            let anne = newcomer(reactor, &server, 1);
            let own = raw::locator_with(&anne.designator(), "{9\"sendright1\"1}");
            anne.stream.say(format!("<12'uds:register{own}64:{}>", "c".repeat(64))).await;
            let (_, challenge) = anne.response().await;
            assert_eq!(anne.stream.take(3).await, b"1+>");
            anne.stream.say(anne.signature(&challenge)).await;
            assert_eq!(anne.stream.rest().await, b"");
            assert_eq!(server.stats().violations, 1);
        });
    }

    /// Whoever asks cannot tell it from somebody who is not there; and it gets what is whole, if late.
    fn the_time_is_over_for_those_before_a_full_queue_too(reactor: &Reactor) {
        let mut options = patient();
        options.introduction_time = SHORT;
        let server = server_with(reactor, options);
        settle(reactor, async {
            let anne = registered(reactor, &server, 1).await;
            let silent = registered(reactor, &server, 2).await;
            let mut nears = Vec::new();
            for _ in 0..16 {
                nears.push(anne.ask_for(&silent.designator()).await);
            }
            until(reactor, || server.stats().introductions == 16 && server.introductions() == 0).await;
            let passed_on = server.stats().passed_on as usize;
            assert!(nears[..passed_on].iter().all(is_quiet));
            for near in &nears[passed_on..] {
                is_closed(near).await;
            }
            assert_eq!(server.registered(), 2);
            // The one that was on its way has ended, and is followed by what comes next.
            let mut nears = nears.into_iter();
            for near in nears.by_ref().take(passed_on) {
                are_connected(near, silent.introduced_by(&anne.designator()).await).await;
            }
            let ended = Socket::wrap(reactor, silent.introduced_by(&anne.designator()).await).unwrap();
            is_closed(&ended).await;
            let near = anne.ask_for(&silent.designator()).await;
            are_connected(near, silent.introduced_by(&anne.designator()).await).await;
        });
    }

    fn a_listener_is_served(reactor: &Reactor) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = server_with(reactor, patient());
        let listener = Socket::listen(reactor, &path, Kind::Stream).unwrap();
        let executor = ring::Executor::new(reactor);
        let serving = std::rc::Rc::new(server);
        let served = std::rc::Rc::clone(&serving);
        executor.spawn(async move { served.serve(&listener).await.unwrap() });
        executor.block_on(async {
            let (mut peer, _) = RawPeer::new(reactor, 1);
            peer.stream = Stream::new(Socket::connect(reactor, &path, Kind::Stream).await.unwrap());
            peer.register().await;
            until(reactor, || serving.registered() == 1).await;
        });
    }

    fn who_may_not_connect_is_not_heard(reactor: &Reactor) {
        let identity = Identity::from_seed(&[100; 32]);
        let server = Server::with_policy(reactor, identity, patient(), Doors::default());
        settle(reactor, async {
            let (peer, far) = RawPeer::new(reactor, 1);
            assert_eq!(server.admit(far), Err(AdmitError::Refused));
            assert_eq!(peer.stream.rest().await, b"");
            assert_eq!((server.connections(), server.stats().refused), (0, 1));
        });
    }

    fn who_may_no_longer_be_there_is_disconnected(reactor: &Reactor) {
        let doors = Doors::default();
        doors.connecting.set(true);
        doors.registering.set(true);
        let server = Server::with_policy(reactor, Identity::from_seed(&[100; 32]), patient(), doors.clone());
        settle(reactor, async {
            let peer = registered(reactor, &server, 1).await;
            let newcomer = newcomer(reactor, &server, 2);
            assert_eq!(server.review(), 0);
            // Only of those who have registered is it asked whether they may.
            doors.registering.set(false);
            assert_eq!(server.review(), 1);
            assert_eq!(peer.stream.rest().await, b"");
            assert_eq!(server.connections(), 1);
            doors.connecting.set(false);
            assert_eq!(server.review(), 1);
            assert_eq!(newcomer.stream.rest().await, b"");
            assert_eq!((server.connections(), server.registered(), server.stats().refused), (0, 0, 2));
        });
    }

    fn newcomers_take_no_descriptor_that_peers_need(reactor: &Reactor) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut options = patient();
        options.newcomers_max = 100;
        let server = std::rc::Rc::new(server_with(reactor, options));
        let listener = Socket::listen(reactor, &path, Kind::Stream).unwrap();
        let executor = ring::Executor::new(reactor);
        executor.block_on(async {
            let (mut first, _) = RawPeer::new(reactor, 1);
            first.stream = Stream::new(Socket::connect(reactor, &path, Kind::Stream).await.unwrap());
            let mut crowd = Vec::new();
            for _ in 0..60 {
                crowd.push(Socket::connect(reactor, &path, Kind::Stream).await.unwrap());
            }
            // Fewer than there are newcomers.
            let limit = testing::leave_descriptors(48);
            let served = std::rc::Rc::clone(&server);
            executor.spawn(async move { served.serve(&listener).await.unwrap() });
            until(reactor, || server.connections() > 0).await;
            // Whoever is connected is heard, and the others have waited when there is room for them.
            first.register().await;
            until(reactor, || server.registered() == 1).await;
            assert!(server.connections() < 48);
            drop(limit);
            until(reactor, || server.connections() == 1 + crowd.len()).await;
            drop(crowd);
            until(reactor, || server.connections() == 1).await;
        });
    }
}

/// How long it took until a peer was told what became of its introduction, and until it saw the end of its
/// pair.
async fn waits_for_the_end(reactor: &Reactor, server: &Server, to: &str) -> (Duration, Duration) {
    let anne = newcomer(reactor, server, 1);
    let before = server.stats().registrations;
    anne.register_bound().await;
    until(reactor, || server.stats().registrations > before).await;
    let start = reactor.now();
    let near = anne.ask_for(to).await;
    let told = async {
        let outcome = b"<17'sendright:outcome0+10'unanswered>";
        assert_eq!(anne.stream.take(outcome.len()).await, outcome);
        reactor.now() - start
    };
    let closed = async {
        is_closed(&near).await;
        reactor.now() - start
    };
    futures_util::future::join(told, closed).await
}

/// What may happen in any order. A stream takes four bytes whole, as the kernel has it.
const FAULTS: Faults = Faults { short: 0, ..Faults::SOON };

in_own_process! {
    fn in_any_order_who_comes_again_gets_a_descriptor_once() {
        for_seeds(0, 300, |seed| {
            let world = World::new(seed, FAULTS);
            who_comes_again_while_a_descriptor_is_handed_over_gets_it_once(&world.reactor().unwrap());
        });
    }

    /// Whoever is not there is let go by the server, and whoever refuses lets go itself: both some time after
    /// ten seconds, in words first as often as not.
    fn by_the_clock_nobody_tells_who_refuses_from_who_is_not_there() {
        const ASKED: usize = 60;
        let world = World::new(1, Faults::NONE);
        let reactor = &world.reactor().unwrap();
        let server = server_with(reactor, ServerOptions::default());
        settle(reactor, async {
            let bert = Netlayer::new(reactor, Identity::from_seed(&[2; 32]));
            let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
            server.admit(far).unwrap();
            let _gone = bert.add_server(near.into_fd().unwrap(), Expect::default()).await.unwrap();
            let refusing = reactor.companion({
                async move {
                    loop {
                        bert.incoming().await.refuse();
                    }
                }
            });
            let (refuses, absent) = (Identity::from_seed(&[2; 32]).key(), raw::base32(&[9; 32]));
            for to in [refuses.to_string(), absent] {
                let mut told_first = 0;
                for _ in 0..ASKED {
                    let (told, closed) = waits_for_the_end(reactor, &server, &to).await;
                    for time in [told, closed] {
                        assert!((10.0..11.1).contains(&time.as_secs_f64()), "{time:?}");
                    }
                    told_first += usize::from(told < closed);
                }
                assert!((ASKED / 5..ASKED * 4 / 5).contains(&told_first), "{told_first} of {ASKED}");
            }
            drop(refusing);
        });
    }
}
