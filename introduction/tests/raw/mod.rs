//! A peer and a server that are not ours: records put together by hand from the protocol's tables, keys and
//! base32 from their crates, nothing from the library under test.
//!
//! Shared by the tests of the server and of the netlayer. It checks only what it has to in order to go on.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};

use data_encoding::{Encoding, Specification};
use ed25519_dalek::{Signer, SigningKey};
use ring::{Fd, Kind, Message, Reactor, ReceiveError, Socket};

/// As Goblins sends them: 12345 in four bytes.
pub const DUMMY: &[u8] = b"\x39\x30\0\0";

pub fn base32(bytes: &[u8]) -> String {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    let encoding: Encoding = specification.encoding().unwrap();
    encoding.encode(bytes)
}

/// `<ocapn-peer …>` without hints.
pub fn locator(designator: &str) -> String {
    locator_with(designator, "f")
}

pub fn locator_with(designator: &str, hints: &str) -> String {
    format!("<10'ocapn-peer18'unix-domain-socket52\"{designator}{hints}>")
}

pub fn introduction(from: &str, to: &str) -> Vec<u8> {
    format!("<18'uds:new-connection{}{}>", locator(from), locator(to)).into_bytes()
}

pub fn signature_list(signature: &[u8; 64]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    [b"[7'sig-val[5'eddsa[1'r32:".as_slice(), r, b"][1's32:", s, b"]]]"].concat()
}

pub fn public_key(key: &[u8; 32]) -> Vec<u8> {
    [b"[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa][1'q32:".as_slice(), key, b"]]]"].concat()
}

/// How a peer that is not ours writes and reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Goblins,
    Draft,
}

/// Bytes and descriptors of a stream, taken as they are wanted.
pub struct Stream {
    pub socket: Socket,
    bytes: RefCell<Vec<u8>>,
    descriptors: RefCell<Vec<OwnedFd>>,
    closed: Cell<bool>,
}

impl Stream {
    pub fn new(socket: Socket) -> Stream {
        socket.set_private(true);
        Stream {
            socket,
            bytes: RefCell::default(),
            descriptors: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    /// A stream, and the other end for whoever is tested.
    pub fn pair(reactor: &Reactor) -> (Stream, OwnedFd) {
        let (near, far) = Socket::pair(reactor, Kind::Stream).unwrap();
        (Stream::new(near), far)
    }

    /// Reads once. False at the end.
    async fn read(&self) -> bool {
        match self.socket.receive().await {
            Ok(mut received) => {
                self.bytes.borrow_mut().extend_from_slice(received.bytes());
                self.descriptors.borrow_mut().extend(received.take_descriptors());
                true
            }
            Err(ReceiveError::Closed | ReceiveError::Io(_)) => {
                self.closed.set(true);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Exactly so many bytes.
    pub async fn take(&self, count: usize) -> Vec<u8> {
        while self.bytes.borrow().len() < count {
            assert!(self.read().await, "ended after {}", self.bytes.borrow().escape_ascii());
        }
        self.bytes.borrow_mut().drain(..count).collect()
    }

    pub async fn take_descriptor(&self) -> OwnedFd {
        assert_eq!(self.take(DUMMY.len()).await, DUMMY);
        assert_eq!(self.descriptors.borrow().len(), 1);
        self.descriptors.borrow_mut().remove(0)
    }

    /// The descriptors that have come and were not taken.
    pub fn descriptors(&self) -> Vec<OwnedFd> {
        self.descriptors.take()
    }

    /// Until the end; what came before it.
    pub async fn rest(&self) -> Vec<u8> {
        while !self.closed.get() && self.read().await {}
        self.bytes.take()
    }

    pub async fn say(&self, bytes: impl AsRef<[u8]>) {
        self.socket.send(bytes.as_ref()).await.unwrap();
    }

    pub async fn pass(&self, bytes: &[u8], fd: impl Into<Fd>) {
        self.socket.send(Message::from(bytes).with_descriptor(fd)).await.unwrap();
    }
}

/// A peer that is not ours.
pub struct RawPeer {
    pub stream: Stream,
    pub key: SigningKey,
    pub dialect: Dialect,
    /// What it has the server sign.
    pub challenge: [u8; 64],
    /// What the server has signed it with.
    pub signed: Cell<Option<[u8; 64]>>,
}

impl RawPeer {
    /// A peer, and the end for the server.
    pub fn new(reactor: &Reactor, seed: u8) -> (RawPeer, OwnedFd) {
        let (stream, far) = Stream::pair(reactor);
        let key = SigningKey::from_bytes(&[seed; 32]);
        let (dialect, challenge) = (Dialect::Goblins, [b'c'; 64]);
        (RawPeer { stream, key, dialect, challenge, signed: Cell::default() }, far)
    }

    pub fn designator(&self) -> String {
        base32(self.key.verifying_key().as_bytes())
    }

    pub fn registration(&self) -> Vec<u8> {
        let start = format!("<12'uds:register{}64:", locator(&self.designator())).into_bytes();
        [start.as_slice(), &self.challenge, b">"].concat()
    }

    /// What the server answers: its key and the challenge.
    pub async fn response(&self) -> ([u8; 32], [u8; 64]) {
        let before = b"<19'uds:server-response[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa][1'q32:";
        assert_eq!(self.stream.take(before.len()).await, before);
        let key: [u8; 32] = self.stream.take(32).await.try_into().unwrap();
        assert_eq!(self.stream.take(6).await, b"]]]64:");
        let challenge: [u8; 64] = self.stream.take(64).await.try_into().unwrap();
        if self.dialect == Dialect::Draft {
            let before = [b"<13'uds:signature64:".as_slice(), &self.challenge].concat();
            assert_eq!(self.stream.take(before.len()).await, before);
        }
        assert_eq!(self.stream.take(25).await, b"[7'sig-val[5'eddsa[1'r32:");
        let r = self.stream.take(32).await;
        assert_eq!(self.stream.take(8).await, b"][1's32:");
        let s = self.stream.take(32).await;
        assert_eq!(self.stream.take(3).await, b"]]]");
        if self.dialect == Dialect::Draft {
            assert_eq!(self.stream.take(1).await, b">");
        }
        let signature = ed25519_dalek::Signature::from_slice(&[r, s].concat()).unwrap();
        let server = ed25519_dalek::VerifyingKey::from_bytes(&key).unwrap();
        server.verify_strict(&self.challenge, &signature).unwrap();
        self.signed.set(Some(signature.to_bytes()));
        (key, challenge)
    }

    pub fn signature(&self, challenge: &[u8; 64]) -> Vec<u8> {
        let signature = self.key.sign(challenge).to_bytes();
        let signature = match self.dialect {
            Dialect::Goblins => [b"64:".as_slice(), &signature].concat(),
            Dialect::Draft => signature_list(&signature),
        };
        [b"<13'uds:signature64:".as_slice(), challenge, &signature, b">"].concat()
    }

    /// Registers, whatever the server thinks of it.
    pub async fn register(&self) {
        self.stream.say(self.registration()).await;
        let (_, challenge) = self.response().await;
        assert_eq!(self.stream.take(1).await, b">");
        self.stream.say(self.signature(&challenge)).await;
    }

    /// Registers as one who speaks the extension, with what is signed put together by hand.
    pub async fn register_bound(&self) {
        let own = locator_with(&self.designator(), "{9\"sendright1\"1}");
        self.stream.say(format!("<12'uds:register{own}64:{}>", "c".repeat(64))).await;
        let (server, challenge) = self.response().await;
        assert_eq!(self.stream.take(3).await, b"1+>");
        let line = b"sendright registration 1\n".as_slice();
        let key = self.key.verifying_key();
        let statement = [line, &server, key.as_bytes(), &[b'c'; 64], &challenge].concat();
        let signature = self.key.sign(&statement).to_bytes();
        let start = b"<13'uds:signature64:".as_slice();
        self.stream.say([start, &challenge, b"64:", &signature, b">"].concat()).await;
    }

    /// Asks to be introduced to somebody; the near end of the pair it made.
    pub async fn ask_for(&self, designator: &str) -> Socket {
        let (near, far) = Socket::pair(self.stream.socket.reactor(), Kind::Stream).unwrap();
        self.stream.say(introduction(&self.designator(), designator)).await;
        self.stream.pass(DUMMY, Fd::made_here(far)).await;
        near
    }

    /// The next introduction that the server passes on, whoever has asked: its designator, and the far end.
    pub async fn introduced(&self) -> (String, OwnedFd) {
        let length = introduction(&self.designator(), &self.designator()).len();
        let record = self.stream.take(length).await;
        let start = b"<18'uds:new-connection<10'ocapn-peer18'unix-domain-socket52\"".len();
        let from = String::from_utf8(record[start..][..52].to_vec()).unwrap();
        assert_eq!(record, introduction(&from, &self.designator()));
        (from, self.stream.take_descriptor().await)
    }

    /// The next introduction that the server passes on; the far end of somebody's pair.
    pub async fn introduced_by(&self, designator: &str) -> OwnedFd {
        let expected = introduction(designator, &self.designator());
        assert_eq!(self.stream.take(expected.len()).await, expected);
        self.stream.take_descriptor().await
    }
}

/// Whether both ends are of one pair and nobody else holds either.
pub async fn are_connected(near: Socket, far: OwnedFd) {
    let far = Socket::wrap(near.reactor(), far).unwrap();
    near.send("to").await.unwrap();
    assert_eq!(far.receive().await.unwrap().bytes(), b"to");
    far.send("fro").await.unwrap();
    assert_eq!(near.receive().await.unwrap().bytes(), b"fro");
    far.set_private(false);
    drop(far);
    assert!(matches!(near.receive().await, Err(ReceiveError::Closed)));
}

/// The end of file, and nothing before it.
pub async fn is_closed(socket: &Socket) {
    let received = socket.receive().await;
    assert!(matches!(received, Err(ReceiveError::Closed)), "{received:?}");
}

/// Whether nothing has happened to a socket.
pub fn is_quiet(socket: &impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let flags = PollFlags::IN | PollFlags::RDHUP;
    poll(&mut [PollFd::new(socket, flags)], Some(&now)).unwrap() == 0
}

/// A server that is not ours.
pub struct RawServer {
    pub key: SigningKey,
}

impl RawServer {
    pub fn new(seed: u8) -> RawServer {
        RawServer { key: SigningKey::from_bytes(&[seed; 32]) }
    }

    pub fn designator(&self) -> String {
        base32(self.key.verifying_key().as_bytes())
    }

    /// Reads a registration of the library's, and gives the key and the challenge.
    pub async fn registration(&self, stream: &Stream) -> (String, Vec<u8>) {
        let before = b"<12'uds:register<10'ocapn-peer18'unix-domain-socket52\"";
        assert_eq!(stream.take(before.len()).await, before);
        let designator = String::from_utf8(stream.take(52).await).unwrap();
        let after = b"{9\"sendright1\"1}>64:";
        assert_eq!(stream.take(after.len()).await, after);
        let challenge = stream.take(64).await;
        assert_eq!(stream.take(1).await, b">");
        (designator, challenge)
    }

    pub fn response(&self, signed: &[u8], challenge: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(signed).to_bytes();
        let key = public_key(self.key.verifying_key().as_bytes());
        let length = format!("{}:", challenge.len());
        let start = b"<19'uds:server-response".as_slice();
        [start, &key, length.as_bytes(), challenge, &signature_list(&signature), b">"].concat()
    }

    /// A registration as a server of Goblins has it; the designator of who registered.
    pub async fn register(&self, stream: &Stream) -> String {
        let (designator, challenge) = self.registration(stream).await;
        let ours = [7; 64];
        stream.say(self.response(&challenge, &ours)).await;
        let before = [b"<13'uds:signature64:".as_slice(), &ours, b"64:"].concat();
        assert_eq!(stream.take(before.len()).await, before);
        let signature = ed25519_dalek::Signature::from_slice(&stream.take(64).await).unwrap();
        assert_eq!(stream.take(1).await, b">");
        let key: [u8; 32] = base32_decode(&designator).try_into().unwrap();
        ed25519_dalek::VerifyingKey::from_bytes(&key).unwrap().verify_strict(&ours, &signature).unwrap();
        designator
    }
}

pub fn base32_decode(designator: &str) -> Vec<u8> {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().unwrap().decode(designator.as_bytes()).unwrap()
}
