//! Hostile connections to an introduction server: garbage, half records, lengths, floods, descriptors where
//! none belong, and peers that register and then never read, ask too much or judge without end.
//!
//! Blocking and by hand, with nothing from the library: it is the other side. It owns a crowd of connections
//! that are still open, of which the oldest makes room. Whatever a server does to it, it goes on.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use data_encoding::{Encoding, Specification};
use ed25519_dalek::{Signer, SigningKey};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// So many are open at the same time: more than a server has room for from one user.
const CROWD: usize = 160;

/// What is asked for at once, where there is room: three times what one peer may have under way.
const FLOOD: usize = 48;

/// Verdicts in one read: twenty times what a connection is given in a turn.
const VERDICTS: usize = 320;

/// Whoever does not answer has turned us away.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a connection does. Each in its turn.
const MALICE: [fn(&Attacker, UnixStream) -> io::Result<UnixStream>; 10] = [
    Attacker::talks_nonsense,
    Attacker::says_half_of_it,
    Attacker::announces_too_much,
    Attacker::registers_and_closes,
    Attacker::says_nothing,
    Attacker::passes_descriptors_where_none_belong,
    Attacker::floods_with_registrations,
    Attacker::asks_for_too_much,
    Attacker::asks_for_somebody_and_never_reads,
    Attacker::judges_without_end,
];

/// Makes so many hostile connections, one after the other, and says how many of them were let in far enough
/// to register. `victim` is the designator of somebody honest.
pub fn attack(path: &Path, count: usize, victim: &str) -> io::Result<usize> {
    let mut crowd = VecDeque::with_capacity(CROWD);
    let mut registered = 0;
    for number in 0..count {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let kind = number % MALICE.len();
        let attacker = Attacker { number, victim: victim.to_owned() };
        // The server may end it at any moment, which is all that it can do.
        match MALICE[kind](&attacker, stream) {
            Ok(stream) => {
                registered += usize::from(kind >= 7);
                if crowd.len() == CROWD {
                    crowd.pop_front();
                }
                crowd.push_back(stream);
            }
            Err(_) => continue,
        }
    }
    Ok(registered)
}

struct Attacker {
    number: usize,
    victim: String,
}

impl Attacker {
    /// Fresh keys are free.
    fn key(&self) -> SigningKey {
        let mut seed = [250; 32];
        seed[..8].copy_from_slice(&self.number.to_le_bytes());
        SigningKey::from_bytes(&seed)
    }

    fn talks_nonsense(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")?;
        Ok(stream)
    }

    fn says_half_of_it(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        let registration = registration(&self.key(), "f");
        stream.write_all(&registration[..1 + self.number % (registration.len() - 1)])?;
        Ok(stream)
    }

    fn announces_too_much(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        stream.write_all(b"<300000000:")?;
        Ok(stream)
    }

    fn registers_and_closes(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        stream.write_all(&registration(&self.key(), "f"))?;
        drop(stream);
        Err(ErrorKind::BrokenPipe.into())
    }

    fn says_nothing(&self, stream: UnixStream) -> io::Result<UnixStream> {
        Ok(stream)
    }

    fn passes_descriptors_where_none_belong(&self, stream: UnixStream) -> io::Result<UnixStream> {
        let (one, other) = UnixStream::pair()?;
        let both = [one.as_fd(), other.as_fd()];
        pass(&stream, &registration(&self.key(), "f"), &both[..1 + self.number / MALICE.len() % 2])?;
        Ok(stream)
    }

    fn floods_with_registrations(&self, stream: UnixStream) -> io::Result<UnixStream> {
        flood(&stream, &registration(&self.key(), "f").repeat(100))?;
        Ok(stream)
    }

    fn asks_for_too_much(&self, stream: UnixStream) -> io::Result<UnixStream> {
        let key = self.key();
        let stream = register(stream, &key)?;
        let record = introduction(&key, &"a".repeat(52));
        for _ in 0..FLOOD {
            pass_end(&stream, &record)?;
        }
        Ok(stream)
    }

    fn asks_for_somebody_and_never_reads(&self, stream: UnixStream) -> io::Result<UnixStream> {
        let key = self.key();
        let stream = register(stream, &key)?;
        let (own, victim) = (introduction(&key, &designator(&key)), introduction(&key, &self.victim));
        for _ in 0..FLOOD / 2 {
            pass_end(&stream, &own)?;
            pass_end(&stream, &victim)?;
        }
        Ok(stream)
    }

    /// As one who speaks the extension: it is introduced to itself, and takes the connection again and again.
    fn judges_without_end(&self, stream: UnixStream) -> io::Result<UnixStream> {
        let key = self.key();
        let stream = register_bound(stream, &key)?;
        pass_end(&stream, &introduction(&key, &designator(&key)))?;
        let first = introduction(&key, &designator(&key)).len() + b"0+".len();
        read(&stream, first)?;
        flood(&stream, &b"<17'sendright:verdict0+t>".repeat(VERDICTS))?;
        Ok(stream)
    }
}

fn designator(key: &SigningKey) -> String {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    let encoding: Encoding = specification.encoding().expect("thirty-two symbols");
    encoding.encode(key.verifying_key().as_bytes())
}

fn locator(designator: &str, hints: &str) -> String {
    format!("<10'ocapn-peer18'unix-domain-socket52\"{designator}{hints}>")
}

fn registration(key: &SigningKey, hints: &str) -> Vec<u8> {
    format!("<12'uds:register{}64:{}>", locator(&designator(key), hints), "c".repeat(64)).into_bytes()
}

fn introduction(key: &SigningKey, to: &str) -> Vec<u8> {
    let (from, to) = (locator(&designator(key), "f"), locator(to, "f"));
    format!("<18'uds:new-connection{from}{to}>").into_bytes()
}

fn read(mut stream: &UnixStream, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What a server answers: its key and its challenge.
fn response(stream: &UnixStream, end: &[u8]) -> io::Result<([u8; 32], Vec<u8>)> {
    const BEFORE_KEY: usize = 84;
    const BETWEEN: usize = 6;
    const SIGNATURE: usize = 25 + 32 + 8 + 32 + 3;
    let bytes = read(stream, BEFORE_KEY + 32 + BETWEEN + 64 + SIGNATURE + end.len())?;
    let key = bytes[BEFORE_KEY..][..32].try_into().expect("as many");
    Ok((key, bytes[BEFORE_KEY + 32 + BETWEEN..][..64].to_vec()))
}

fn register(mut stream: UnixStream, key: &SigningKey) -> io::Result<UnixStream> {
    stream.write_all(&registration(key, "f"))?;
    let (_, challenge) = response(&stream, b">")?;
    say_signed(&stream, &challenge, &key.sign(&challenge).to_bytes())?;
    Ok(stream)
}

fn register_bound(mut stream: UnixStream, key: &SigningKey) -> io::Result<UnixStream> {
    stream.write_all(&registration(key, "{9\"sendright1\"1}"))?;
    let (server, challenge) = response(&stream, b"1+>")?;
    let line = b"sendright registration 1\n".as_slice();
    let own = key.verifying_key();
    let statement = [line, &server, own.as_bytes(), &[b'c'; 64], &challenge].concat();
    say_signed(&stream, &challenge, &key.sign(&statement).to_bytes())?;
    Ok(stream)
}

fn say_signed(mut stream: &UnixStream, challenge: &[u8], signature: &[u8]) -> io::Result<()> {
    stream.write_all(&[b"<13'uds:signature64:".as_slice(), challenge, b"64:", signature, b">"].concat())
}

/// As much as there is room for at once.
fn flood(mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    match stream.write(bytes) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Asks with an end of a pair, of which the other is closed. Nothing happens if there is no room for it now.
fn pass_end(stream: &UnixStream, record: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let (_near, far) = UnixStream::pair()?;
    let far = OwnedFd::from(far);
    let both = [record, b"\x39\x30\0\0"].concat();
    let passed = pass(stream, &both, &[far.as_fd()]);
    stream.set_nonblocking(false)?;
    match passed {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

fn pass(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let is_pushed = control.push(SendAncillaryMessage::ScmRights(descriptors));
    assert!(is_pushed, "room for two");
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}
