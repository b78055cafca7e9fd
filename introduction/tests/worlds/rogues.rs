//! Those who are not honest: peers that talk nonsense, half of it, in another's name or nothing at all, and a
//! server that hands out what it likes in anybody's name.
//!
//! By hand, with nothing of the library's but sockets. Whatever is done to them, they go on.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use introduction::{Expect, PublicKey};
use ring::{Kind, Message, Reactor, ReceiveError, Socket, Spawner};

use super::cast::Cast;
use super::{Party, Setting, at_most};
use crate::raw::{DUMMY, base32, introduction, locator, locator_with, public_key, signature_list};

/// Whoever does not answer a rogue for so long is left.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long what a server answers is: its key, its challenge and its signature.
const RESPONSE_BYTES: usize = BEFORE_KEY + 32 + 6 + 64 + SIGNATURE_BYTES + 1;
const BEFORE_KEY: usize = 84;
const SIGNATURE_BYTES: usize = 25 + 32 + 8 + 32 + 3;

/// The number of the server that is not honest.
pub const ROGUE_SERVER: u8 = 50;

/// A connection of which nothing is expected.
struct Line {
    socket: Socket,
    bytes: RefCell<Vec<u8>>,
    descriptors: RefCell<Vec<OwnedFd>>,
}

impl Line {
    fn new(socket: Socket) -> Line {
        socket.set_private(true);
        socket.set_descriptors_max(8);
        Line { socket, bytes: RefCell::default(), descriptors: RefCell::default() }
    }

    async fn say(&self, message: impl Into<Message>) -> Option<()> {
        let sending = Box::pin(self.socket.send(message));
        at_most(self.socket.reactor(), PATIENCE, sending).await?.ok()
    }

    /// Reads once.
    async fn read(&self) -> Option<()> {
        let receiving = Box::pin(self.socket.receive());
        match at_most(self.socket.reactor(), PATIENCE, receiving).await? {
            Ok(mut received) | Err(ReceiveError::DescriptorsLost(mut received)) => {
                self.bytes.borrow_mut().extend_from_slice(received.bytes());
                self.descriptors.borrow_mut().extend(received.take_descriptors());
                Some(())
            }
            Err(_) => None,
        }
    }

    async fn take(&self, count: usize) -> Option<Vec<u8>> {
        while self.bytes.borrow().len() < count {
            self.read().await?;
        }
        Some(self.bytes.borrow_mut().drain(..count).collect())
    }

    fn stream(&self) -> Option<(Socket, OwnedFd)> {
        Socket::pair(self.socket.reactor(), Kind::Stream).ok()
    }
}

fn designator(key: &SigningKey) -> String {
    base32(key.verifying_key().as_bytes())
}

fn registration(key: &SigningKey, hints: &str) -> Vec<u8> {
    let own = locator_with(&designator(key), hints);
    format!("<12'uds:register{own}64:{}>", "c".repeat(64)).into_bytes()
}

async fn register(line: &Line, key: &SigningKey) -> Option<()> {
    line.say(registration(key, "f")).await?;
    let response = line.take(RESPONSE_BYTES).await?;
    let challenge = &response[BEFORE_KEY + 32 + 6..][..64];
    let signature = key.sign(challenge).to_bytes();
    line.say([b"<13'uds:signature64:".as_slice(), challenge, b"64:", &signature, b">"].concat()).await
}

/// What a rogue does with a connection.
#[derive(Clone, Copy, Debug)]
enum Malice {
    Nonsense,
    Half,
    TooMuch,
    Silence,
    Descriptors,
    ClosesInBetween,
    AnothersName,
    NotASocket,
    Half2,
    JudgesWhatItNeverGot,
    AsksAndNeverReads,
    AsksAndTalks,
    AsksForItself,
}

const MALICE: [Malice; 13] = [
    Malice::Nonsense,
    Malice::Half,
    Malice::TooMuch,
    Malice::Silence,
    Malice::Descriptors,
    Malice::ClosesInBetween,
    Malice::AnothersName,
    Malice::NotASocket,
    Malice::Half2,
    Malice::JudgesWhatItNeverGot,
    Malice::AsksAndNeverReads,
    Malice::AsksAndTalks,
    Malice::AsksForItself,
];

/// Does so with this connection.
async fn misbehave(setting: &Setting, line: &Line, number: u8, malice: Malice) -> Option<()> {
    let world = &setting.world;
    let key = SigningKey::from_bytes(&[100 + number; 32]);
    let own = designator(&key);
    let honest = setting.keys.borrow()[world.below(setting.keys.borrow().len())].to_string();
    match malice {
        Malice::Nonsense => line.say("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").await?,
        Malice::Half => {
            let whole = registration(&key, "f");
            line.say(&whole[..1 + world.below(whole.len() - 1)]).await?;
        }
        Malice::TooMuch => line.say("<300000000:").await?,
        Malice::Silence => {}
        Malice::Descriptors => {
            let pairs = [line.stream()?, line.stream()?];
            let message = Message::new(registration(&key, "f"));
            let message = pairs.into_iter().fold(message, |message, (_, far)| message.with_descriptor(far));
            line.say(message).await?;
        }
        Malice::ClosesInBetween => {
            line.say(registration(&key, "f")).await?;
            return None;
        }
        Malice::AnothersName => {
            register(line, &key).await?;
            line.say(introduction(&honest, &own)).await?;
            line.say(Message::from(DUMMY).with_descriptor(line.stream()?.1)).await?;
        }
        Malice::NotASocket => {
            register(line, &key).await?;
            let (reader, _writer) = std::io::pipe().unwrap();
            line.say(introduction(&own, &honest)).await?;
            line.say(Message::from(DUMMY).with_descriptor(OwnedFd::from(reader))).await?;
        }
        Malice::Half2 => {
            register(line, &key).await?;
            // The descriptor does not follow.
            line.say(introduction(&own, &honest)).await?;
        }
        Malice::JudgesWhatItNeverGot => {
            register(line, &key).await?;
            line.say(b"<17'sendright:verdict0+t>".repeat(40)).await?;
        }
        Malice::AsksAndNeverReads => {
            register(line, &key).await?;
            for _ in 0..6 {
                line.say(introduction(&own, &honest)).await?;
                line.say(Message::from(DUMMY).with_descriptor(line.stream()?.1)).await?;
            }
        }
        Malice::AsksAndTalks => {
            register(line, &key).await?;
            let (near, far) = line.stream()?;
            line.say(introduction(&own, &honest)).await?;
            line.say(Message::from(DUMMY).with_descriptor(far)).await?;
            let near = Line::new(near);
            near.say("whatever").await?;
            near.read().await?;
        }
        Malice::AsksForItself => {
            register(line, &key).await?;
            line.say([introduction(&own, &own), DUMMY.to_vec()].concat()).await?;
        }
    }
    line.socket.reactor().sleep(setting.milliseconds(8000)).await;
    line.read().await
}

async fn be_a_nuisance(setting: Rc<Setting>, reactor: Reactor, path: PathBuf, number: u8) {
    for _ in 0..1 + setting.world.below(6) {
        if let Ok(socket) = Socket::connect(&reactor, &path, Kind::Stream).await {
            let malice = MALICE[setting.world.below(MALICE.len())];
            let _ = misbehave(&setting, &Line::new(socket), number, malice).await;
        }
        reactor.sleep(setting.milliseconds(1000)).await;
    }
}

// The server that is not honest.

/// Who has registered with it.
struct Victim {
    designator: String,
    line: Line,
}

type Victims = Rc<RefCell<Vec<Rc<Victim>>>>;

async fn betray(setting: Rc<Setting>, reactor: Reactor, listener: Socket, spawner: Spawner) {
    let victims = Victims::default();
    spawner.spawn(introduce_anybody(Rc::clone(&setting), reactor, Rc::clone(&victims)));
    while let Ok(socket) = listener.accept().await {
        spawner.spawn(take_in(Rc::clone(&setting), socket, Rc::clone(&victims)));
    }
}

/// Shakes hands as a server of Goblins does, and then keeps whatever comes.
async fn take_in(setting: Rc<Setting>, socket: Socket, victims: Victims) {
    let line = Line::new(socket);
    if setting.world.happens(200) {
        // Silent from the beginning.
        let _ = line.read().await;
        return;
    }
    let Some(victim) = shake_hands(&setting, line).await else { return };
    let victim = Rc::new(victim);
    victims.borrow_mut().push(Rc::clone(&victim));
    while victim.line.read().await.is_some() {
        victim.line.bytes.borrow_mut().clear();
    }
    victims.borrow_mut().retain(|other| !Rc::ptr_eq(other, &victim));
}

async fn shake_hands(setting: &Setting, line: Line) -> Option<Victim> {
    let key = SigningKey::from_bytes(&[ROGUE_SERVER; 32]);
    let before = b"<12'uds:register<10'ocapn-peer18'unix-domain-socket52\"".len();
    line.take(before).await?;
    let designator = String::from_utf8(line.take(52).await?).ok()?;
    line.take(b"{9\"sendright1\"1}>64:".len()).await?;
    let challenge = line.take(64).await?;
    line.take(1).await?;
    // Sometimes under something else than it was asked for.
    let signed = if setting.world.happens(100) { vec![0; 64] } else { challenge };
    let signature = key.sign(&signed).to_bytes();
    let start = b"<19'uds:server-response".as_slice();
    let (key, list) = (public_key(key.verifying_key().as_bytes()), signature_list(&signature));
    line.say([start, &key, b"64:", &[7; 64], &list, b">"].concat()).await?;
    line.take(b"<13'uds:signature64:".len() + 64 + b"64:".len() + 64 + 1).await?;
    Some(Victim { designator, line })
}

/// Hands out ends of its own and of others, in anybody's name; and says what may not be said.
async fn introduce_anybody(setting: Rc<Setting>, reactor: Reactor, victims: Victims) {
    let world = &setting.world;
    for _ in 0..40 {
        reactor.sleep(setting.milliseconds(300)).await;
        let chosen = {
            let victims = victims.borrow();
            if victims.is_empty() {
                continue;
            }
            [Rc::clone(&victims[world.below(victims.len())]), Rc::clone(&victims[world.below(victims.len())])]
        };
        let [to, from] = chosen;
        let kept = from.line.descriptors.borrow_mut().pop();
        let own = || to.line.stream().map(|(_, far)| far);
        let _ = match (world.below(12), kept.or_else(own)) {
            (0, _) => to.line.say("<7'nonsense>").await,
            (1, _) => to.line.say("<18'uds:new-conn").await,
            (2, _) => to.line.say(introduction(&from.designator, &to.designator)).await,
            (3, Some(fd)) => to.line.say(Message::from(DUMMY).with_descriptor(fd)).await,
            (4, _) => {
                to.line.socket.shut_down();
                None
            }
            (5, Some(fd)) => {
                // For somebody else.
                let record = introduction(&from.designator, &base32(&[9; 32]));
                hand_over(&to.line, record, fd).await
            }
            (6, Some(fd)) => {
                let hints = "{9\"sendright1\"1}";
                let (from, to_whom) = (locator_with(&from.designator, hints), locator(&to.designator));
                let record = format!("<18'uds:new-connection{from}{to_whom}>").into_bytes();
                hand_over(&to.line, record, fd).await
            }
            (_, Some(fd)) => hand_over(&to.line, introduction(&from.designator, &to.designator), fd).await,
            (_, None) => None,
        };
    }
}

async fn hand_over(line: &Line, record: Vec<u8>, fd: OwnedFd) -> Option<()> {
    line.say(record).await?;
    line.say(Message::from(DUMMY).with_descriptor(fd)).await
}

/// What the honest think of the rogue server: it is one of Goblins'.
pub fn rogue_key() -> PublicKey {
    PublicKey(SigningKey::from_bytes(&[ROGUE_SERVER; 32]).verifying_key().to_bytes())
}

/// Moves in: some rogues, and a server that all programs register with besides.
pub fn move_in(setting: &Rc<Setting>, cast: &mut Cast) {
    let path = cast.folder.path().join("rogue");
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let party = Party::join(&setting.world);
    let listener = Socket::wrap(party.reactor(), listener).unwrap();
    let betraying = betray(Rc::clone(setting), party.reactor().clone(), listener, party.0.spawner());
    party.0.spawn(betraying);
    cast.rogues.push(party);
    for program in &cast.programs {
        program.keep(setting, path.clone(), Expect::key(rogue_key()), false);
    }
    for number in 0..1 + setting.world.below(3) as u8 {
        let party = Party::join(&setting.world);
        let server = &cast.servers[setting.world.below(cast.servers.len())];
        let nuisance =
            be_a_nuisance(Rc::clone(setting), party.reactor().clone(), server.path.clone(), number);
        party.0.spawn(nuisance);
        cast.rogues.push(party);
    }
}
