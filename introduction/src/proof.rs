//! Two peers prove to each other who they are, so that no server between them has to be believed.
//!
//! Three messages, PROTOCOL.md, "Introductions". It owns the sockets while it is about it and leaves one that
//! nobody else can hold: the pair that the server passed on is only used to agree on a fresh one. It does not
//! know how the server is spoken to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use imc::ConnectedSocket;
use ring::fork::ForkedChild;
use ring::{Fd, Reactor, ReceiveError, Socket};
use rustix::net::sockopt;

use crate::identity::{Identity, is_signed, random};
use crate::passing::pass;
use crate::record::SignatureBytes;
use crate::statement::{Between, Nonce, Told};

pub(crate) const HELLO: &[u8; 5] = b"srp1\x01";
pub(crate) const ANSWER: &[u8; 5] = b"srp1\x02";
const FINISH: &[u8; 5] = b"srp1\x03";

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The other side is gone.
    Closed,
    /// It said something that whoever it should be would not say.
    Wrong,
    /// What was needed here could not be had.
    Ours(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Ours(error)
    }
}

/// The kernel's number of a socket, which no other has had since the machine was started.
fn cookie(socket: impl AsFd) -> io::Result<u64> {
    Ok(sockopt::socket_cookie(socket)?)
}

/// The side that asked for the introduction, between its first message and its last.
pub(crate) struct Asking {
    between: Between,
    told: Told,
}

impl Asking {
    /// Before the far end is given away: says who we are, to whoever will hold it, and what the locator is
    /// that they will be told.
    pub(crate) async fn begin(
        identity: &Identity,
        between: Between,
        locator: &[u8],
        near: &Socket,
        far: &OwnedFd,
    ) -> io::Result<Asking> {
        let told = Told { asker: random()?, far: cookie(far)?, ..Told::default() };
        let signature = identity.sign_statement(&between.hello(&told, locator));
        let hello = [HELLO.as_slice(), &told.asker, &signature].concat();
        near.set_descriptors_max(1);
        near.send(hello).await.map_err(io::Error::other)?;
        Ok(Asking { between, told })
    }

    /// Waits for the answer, and finishes over the pair it brings.
    pub(crate) async fn finish(
        mut self,
        identity: &Identity,
        near: &Socket,
    ) -> Result<ConnectedSocket, Failed> {
        let mut answer = near.receive().await.map_err(failed)?;
        let (nonce, signature) = parts_of(answer.bytes(), ANSWER).ok_or(Failed::Wrong)?;
        let fresh = answer.take_descriptor().ok_or(Failed::Wrong)?;
        // Judged before its kernel number is asked for: of something else the question means nothing.
        let fresh = ConnectedSocket::from_fd(near.reactor(), fresh).map_err(|_| Failed::Wrong)?;
        self.told.answerer = nonce;
        self.told.fresh = cookie(&fresh)?;
        if !is_signed(&self.between.answerer, &self.between.answer(&self.told), &signature) {
            return Err(Failed::Wrong);
        }
        let signature = identity.sign_statement(&self.between.finish(&self.told));
        fresh.send([FINISH.as_slice(), &signature].concat()).await.map_err(|_| Failed::Closed)?;
        Ok(fresh)
    }
}

/// The side that was asked for. Where it fails, it gives back what it was introduced with, for as long as
/// that is to be kept open.
pub(crate) async fn answer(
    reactor: &Reactor,
    identity: &Identity,
    between: Between,
    locator: &[u8],
    fd: OwnedFd,
) -> (Result<ConnectedSocket, Failed>, Option<OwnedFd>) {
    // Others may hold this end: it is not private, and nothing that matters is said on it.
    let Ok(far) = Socket::wrap(reactor, fd) else { return (Err(Failed::Wrong), None) };
    far.set_descriptors_max(1);
    let answered = answer_on(identity, between, locator, &far).await;
    (answered, far.into_fd().ok())
}

async fn answer_on(
    identity: &Identity,
    between: Between,
    locator: &[u8],
    far: &Socket,
) -> Result<ConnectedSocket, Failed> {
    let hello = far.receive().await.map_err(failed)?;
    let (nonce, signature) = parts_of(hello.bytes(), HELLO).ok_or(Failed::Wrong)?;
    let mut told = Told { asker: nonce, far: cookie(far)?, ..Told::default() };
    // With it we know that whoever signed has made this pair, and that the other end is theirs alone. What we
    // send there nobody else receives. And the server has left their locator as they wrote it.
    if !is_signed(&between.asker, &between.hello(&told, locator), &signature) {
        return Err(Failed::Wrong);
    }
    let (fresh, theirs) = ConnectedSocket::pair(far.reactor())?;
    told.answerer = random()?;
    told.fresh = cookie(&theirs)?;
    let signature = identity.sign_statement(&between.answer(&told));
    let answer = [ANSWER.as_slice(), &told.answerer, &signature].concat();
    pass(far, &answer, Fd::made_here(theirs)).await.map_err(|_| Failed::Closed)?;

    let finish = fresh.receive().await.map_err(failed)?;
    let signature = finish.bytes().strip_prefix(FINISH).and_then(|rest| rest.try_into().ok());
    let signature: SignatureBytes = signature.ok_or(Failed::Wrong)?;
    if finish.descriptors() == 0 && is_signed(&between.asker, &between.finish(&told), &signature) {
        Ok(fresh)
    } else {
        Err(Failed::Wrong)
    }
}

fn failed(error: ReceiveError) -> Failed {
    match error {
        ReceiveError::Closed => Failed::Closed,
        ReceiveError::Io(error) => Failed::Ours(error),
        ReceiveError::Forked => Failed::Ours(ForkedChild.into()),
        // There was one, and no room for it here: that says nothing of who sent it.
        ReceiveError::DescriptorsLost(message) if message.descriptors() == 0 => {
            Failed::Ours(rustix::io::Errno::MFILE.into())
        }
        _ => Failed::Wrong,
    }
}

/// Nonce and signature of a message of this kind.
pub(crate) fn parts_of(message: &[u8], kind: &[u8; 5]) -> Option<(Nonce, SignatureBytes)> {
    let rest = message.strip_prefix(kind)?;
    let (nonce, signature) = rest.split_at_checked(32)?;
    Some((nonce.try_into().ok()?, signature.try_into().ok()?))
}
