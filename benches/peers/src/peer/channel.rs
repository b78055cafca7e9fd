//! ipc-channel, both ways that a call is made of channels: one for calls and one for answers that live as
//! long as the caller, and a sender for the answer that is made for each call and sent along with it.
//!
//! Where bytes are all there is, channels of bytes are the fastest, which serialize nothing; where a sender
//! goes along they are typed, with `serde_bytes` for the bytes. The two processes meet as the documentation
//! has it, at a one-shot server, whose name travels on the pair.

use std::os::fd::OwnedFd;

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender};
use ipc_channel::{IpcError, TryRecvError};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Calls, PAYLOAD, Terms, batches, whole};
use crate::{Failure, note};

/// What the server keeps of the two channels.
#[derive(Serialize, Deserialize)]
struct Ends {
    calls: IpcBytesReceiver,
    answers: IpcBytesSender,
}

/// The same, where each message brings a sender.
#[derive(Serialize, Deserialize)]
struct SaidEnds {
    calls: IpcReceiver<Said>,
    answers: IpcSender<Said>,
}

#[derive(Serialize, Deserialize)]
struct Said {
    bytes: ByteBuf,
    passed: IpcSender<()>,
}

#[derive(Serialize, Deserialize)]
struct Question {
    bytes: ByteBuf,
    reply: IpcBytesSender,
}

pub fn call(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    if terms.has_descriptor {
        return call_with_sender(terms, end);
    }
    let (calls, their_calls) = ipc::bytes_channel()?;
    let (their_answers, answers) = ipc::bytes_channel()?;
    meet(&end, Ends { calls: their_calls, answers: their_answers })?;
    Ok(Box::new(move |count, recorder| {
        batches(count, terms.depth, recorder, || {
            for _ in 0..terms.depth {
                calls.send(&[7; PAYLOAD])?;
            }
            (0..terms.depth).try_for_each(|_| whole(receive_bytes(&answers, terms)?.len()))
        })
    }))
}

pub fn serve(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    if terms.has_descriptor {
        return serve_with_sender(terms, end);
    }
    let Ends { calls, answers } = met(&end)?;
    until_disconnected(|| Ok(answers.send(&receive_bytes(&calls, terms)?)?))
}

fn call_with_sender(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let (calls, their_calls) = ipc::channel()?;
    let (their_answers, answers) = ipc::channel()?;
    meet(&end, SaidEnds { calls: their_calls, answers: their_answers })?;
    let (passed, _open) = ipc::channel()?;
    Ok(Box::new(move |count, recorder| {
        batches(count, terms.depth, recorder, || {
            for _ in 0..terms.depth {
                calls.send(Said { bytes: ByteBuf::from([7; PAYLOAD]), passed: passed.clone() })?;
            }
            (0..terms.depth).try_for_each(|_| whole(receive(&answers, terms)?.bytes.len()))
        })
    }))
}

fn serve_with_sender(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    let SaidEnds { calls, answers } = met(&end)?;
    until_disconnected(|| answers.send(receive(&calls, terms)?))
}

pub fn call_with_reply_sender(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let (calls, their_calls) = ipc::channel::<Question>()?;
    meet(&end, their_calls)?;
    Ok(Box::new(move |count, recorder| {
        batches(count, terms.depth, recorder, || {
            let ask = |_| {
                let (reply, answer) = ipc::bytes_channel()?;
                calls.send(Question { bytes: ByteBuf::from([7; PAYLOAD]), reply })?;
                Ok(answer)
            };
            if terms.depth == 1 {
                return whole(receive_bytes(&ask(0)?, terms)?.len());
            }
            let answers: Vec<IpcBytesReceiver> = (0..terms.depth).map(ask).collect::<Result<_, Failure>>()?;
            answers.into_iter().try_for_each(|answer| whole(receive_bytes(&answer, terms)?.len()))
        })
    }))
}

pub fn serve_reply_senders(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    let calls: IpcReceiver<Question> = met(&end)?;
    until_disconnected(|| {
        let Question { bytes, reply } = receive(&calls, terms)?;
        Ok(reply.send(&bytes)?)
    })
}

/// At the caller: hands over what the server is to have.
fn meet<T: Serialize>(end: &OwnedFd, theirs: T) -> Result<(), Failure> {
    let name = String::from_utf8(note::read(end)?)?;
    Ok(IpcSender::connect(name)?.send(theirs)?)
}

/// At the server: what was handed over.
fn met<T: Serialize + for<'de> Deserialize<'de>>(end: &OwnedFd) -> Result<T, Failure> {
    let (server, name) = IpcOneShotServer::new()?;
    note::write(end, name.as_bytes())?;
    let (_, theirs) = server.accept()?;
    Ok(theirs)
}

fn until_disconnected(mut answer: impl FnMut() -> Result<(), IpcError>) -> Result<(), Failure> {
    loop {
        match answer() {
            Ok(()) => {}
            Err(IpcError::Disconnected) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_bytes(from: &IpcBytesReceiver, terms: Terms) -> Result<Vec<u8>, IpcError> {
    if terms.looks { look(|| from.try_recv()) } else { from.recv() }
}

fn receive<T: Serialize + for<'de> Deserialize<'de>>(
    from: &IpcReceiver<T>,
    terms: Terms,
) -> Result<T, IpcError> {
    if terms.looks { look(|| from.try_recv()) } else { from.recv() }
}

fn look<T>(mut receive: impl FnMut() -> Result<T, TryRecvError>) -> Result<T, IpcError> {
    let mut has_ended = false;
    loop {
        match receive() {
            Ok(received) => return Ok(received),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
            // The kernel says so too if it finds the queue empty while the answerer sends and closes: a run
            // in four ended with "Ipc Disconnected", and the answer was in the queue. So it is believed when
            // it is said again.
            Err(TryRecvError::IpcError(IpcError::Disconnected)) if !has_ended => has_ended = true,
            Err(TryRecvError::IpcError(error)) => return Err(error),
        }
    }
}
