//! What a fuzzer begins with: what real peers say to each other, listened to on the way, and scripts that
//! take each kind of step with each sort of descriptor.
//!
//! It runs the peers and copies what passes. It does not know what a fuzzer makes of it.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use imc::{Capability, ConnectedSocket, SharedMemory, TypedMessage, TypedSocket};
use introduction::{Expect, Identity, Netlayer, Server, ServerOptions, SturdyRef, Swiss, syrup};
use ring::{Executor, Message, Reactor};
use seqpacket::wire::Header;
use seqpacket::{CallOptions, Mailbox, Object, PlainMailbox, PlainObject};

use crate::decoders::Decoder;
use crate::packet::{Beside, receive, send};
use crate::scenes::Scene;

/// What the committed corpora may have together.
pub const CORPUS_BYTES_MAX: usize = 200_000;

/// What is longer is of no use to begin with.
const SEED_BYTES_MAX: usize = 1_024;

/// Names of targets, each with what it begins with.
pub fn seeds(reactor: &Reactor) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let (typed, plain) = (typed(reactor), plain(reactor));
    let (streams, uris) = introductions(reactor);
    let records: Vec<Vec<u8>> = streams.iter().flat_map(|stream| records(stream)).collect();
    let (requests, answers) = sendright::fuzzing::samples();
    let of = |decoder: Decoder| match decoder {
        Decoder::Packet => session(reactor),
        // Real ones are of 102,016 bytes. Here a message has 300, in parts of 100.
        Decoder::Parts => vec![[&[43, 1, 0, 99, 0][..], &[7; 300]].concat()],
        Decoder::LargeAnswer => plain.iter().map(|packet| [&[255, 255][..], packet].concat()).collect(),
        Decoder::Typed => typed.clone(),
        Decoder::Syrup | Decoder::Record => records.clone(),
        // As reads of as much as one can say, the last of which brings a descriptor.
        Decoder::Stream => streams.iter().map(|stream| in_reads(stream)).collect(),
        Decoder::Uri => uris.clone(),
        Decoder::Proof => [1, 2].map(|word| [b"srp1", &[word][..], &[7; 96]].concat()).to_vec(),
        Decoder::FileRequest => requests.clone(),
        Decoder::FileAnswer => answers.clone(),
    };
    let decoders = Decoder::ALL.into_iter().map(|decoder| (decoder.name(), short(of(decoder))));
    let scenes = Scene::ALL.into_iter().map(|scene| (scene.name(), scripts()));
    decoders.chain(scenes).collect()
}

fn short(mut all: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    all.iter_mut().for_each(|one| one.truncate(SEED_BYTES_MAX));
    all.sort();
    all.dedup();
    all
}

/// Each kind of step by itself and after another, and packets with each sort of descriptor.
fn scripts() -> Vec<Vec<u8>> {
    const OPENING: [u8; 12] = [0, 2, 1, 0, 3, 1, 0, 2, 0, 4, 1, 0];
    let mut scripts = Vec::new();
    for first in 0..16_u8 {
        let steps = [first, 0, 1, 3, 9, 0, 0, first, 1, 2, 5, 3, 9, 6, 0, 0, 1, 1];
        scripts.push([&OPENING[..], &steps, &[6, 0, 9, 0, 0, 3, 64, 2, 2]].concat());
    }
    for sort in (0..48_u8).step_by(6) {
        // A packet of twelve: six sorts twice over, on the newest end.
        let passed: Vec<u8> = (12 + sort..18 + sort).collect();
        let packet = [&[0, 5, 12][..], &passed, &[0, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        let packets = [packet.clone(), packet.clone(), vec![6, 0], packet].concat();
        scripts.push([&OPENING[..], &packets].concat());
    }
    // And full packets.
    scripts.push(
        [&OPENING[..], &[0, 7, 1, 12, 13, 14, 15, 16, 17, 0, 3, 2, 0, 0, 7, 0, 4, 5, 6, 7, 8, 9]].concat(),
    );
    scripts
}

/// The packets of some calls, both ways, with the number of descriptors that each brought.
fn session(reactor: &Reactor) -> Vec<Vec<u8>> {
    let executor = Executor::new(reactor);
    let (bound, address) = testing::packet_pair();
    let mailbox = Mailbox::from_fd(reactor, bound).unwrap();
    executor.spawn(async move {
        while let Some(mut call) = mailbox.next().await {
            match call.bytes() {
                b"drop" => drop(call),
                b"refuse" => call.refuse(),
                b"elsewhere" => drop(call.into_continuation().into_fd()),
                b"large" => drop(call.answer(vec![7; 110_000])),
                _ => {
                    let echo = Message::new(call.bytes().to_vec());
                    let echo = call.take_descriptors().into_iter().fold(echo, Message::with_descriptor);
                    let _ = call.answer(echo);
                }
            }
        }
    });
    let (tapped_bound, tapped_address) = testing::packet_pair();
    let object = Object::from_fd(reactor, tapped_address).unwrap();
    let calling = async move {
        object.attach().await.unwrap();
        let one = || Message::from("one").with_descriptor(testing::packet_pair().0);
        let _ = futures([object.call("add"), object.call(one()), object.call("drop"), object.call("refuse")])
            .await;
        let large = CallOptions { answer_bytes: Some(150_000), ..CallOptions::default() };
        let patient = CallOptions { within: Some(super::scenes::HONEST_TIME_MAX), ..CallOptions::default() };
        let _ = object.call_with("large", large).await;
        let _ = object.call_with(vec![7; 110_000], patient).await;
        let _ = object.call("elsewhere").await;
        let _ = object.grant().await;
        drop(object.call("withdrawn"));
        let _ = object.call("last").await;
    };
    let heard = tap(&executor, calling, || {
        let (_, mut far) = receive(&tapped_bound).ok()?;
        let (near, theirs) = testing::packet_pair();
        let beside = Beside { descriptors: &[theirs.as_fd()], credentials: false, urgent: false };
        send(&address, b"c", beside).unwrap();
        Some((far.pop()?, near))
    });
    let written = |(descriptors, packet): &(usize, Vec<u8>)| [&[0, *descriptors as u8][..], packet].concat();
    // Nobody says this one where descriptors find room.
    let lost = (0, Header::lost(0).encode().to_vec());
    heard.iter().chain([&lost]).map(written).collect()
}

async fn futures<F: Future>(all: impl IntoIterator<Item = F>) {
    for one in all {
        one.await;
    }
}

/// Runs a client whose connection leads through us. Gives back what passed.
fn tap(
    executor: &Executor,
    client: impl Future<Output = ()> + 'static,
    connect: impl Fn() -> Option<(OwnedFd, OwnedFd)>,
) -> Vec<(usize, Vec<u8>)> {
    let done = Rc::new(RefCell::new(false));
    let finishing = Rc::clone(&done);
    executor.spawn(async move {
        client.await;
        *finishing.borrow_mut() = true;
    });
    let (mut ends, mut heard) = (None, Vec::new());
    testing::wait_until("the client is done", || {
        executor.settle();
        ends = ends.take().or_else(&connect);
        if let Some((one, other)) = &ends {
            for (from, to) in [(one, other), (other, one)] {
                while let Ok((bytes, descriptors)) = receive(from)
                    && !bytes.is_empty()
                {
                    let passed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                    let beside = Beside { descriptors: &passed, credentials: false, urgent: false };
                    send(to, &bytes, beside).unwrap();
                    heard.push((descriptors.len(), bytes));
                    executor.settle();
                }
            }
        }
        *done.borrow()
    });
    heard
}

/// A large answer of a plain object.
fn plain(reactor: &Reactor) -> Vec<Vec<u8>> {
    let executor = Executor::new(reactor);
    let (near, far) = testing::packet_pair();
    let mailbox = PlainMailbox::from_fd(reactor, near).unwrap();
    executor.spawn(async move {
        while let Some(call) = mailbox.next().await {
            let _ = call.into_continuation().answer_large(vec![7; 300]).await;
        }
    });
    let (tapped, ours) = testing::packet_pair();
    let object = PlainObject::from_fd(reactor, ours).unwrap();
    let calling = async move { drop(object.call_large("how long?").await) };
    let heard = tap(&executor, calling, || {
        let (bytes, mut continuation) = receive(&tapped).ok()?;
        let (near, theirs) = testing::packet_pair();
        let beside = Beside { descriptors: &[theirs.as_fd()], credentials: false, urgent: false };
        send(&far, &bytes, beside).unwrap();
        Some((continuation.pop()?, near))
    });
    heard.into_iter().map(|(_, packet)| packet).collect()
}

/// Typed messages with capabilities of each kind.
fn typed(reactor: &Reactor) -> Vec<Vec<u8>> {
    let (near, far) = ConnectedSocket::pair(reactor).unwrap();
    let near = TypedSocket::new(near).unwrap();
    let (_bound, address) = imc::bound_socket(reactor).unwrap();
    let messages = [
        TypedMessage::new("hello"),
        TypedMessage::new("here").with(Capability::Nothing).with(address),
        TypedMessage::new("").with(SharedMemory::create(imc::MEMORY_UNIT_BYTES).unwrap()),
    ];
    let heard = messages.map(|message| {
        near.try_send(message).unwrap();
        testing::turn(reactor);
        receive(&far).unwrap().0
    });
    heard.to_vec()
}

/// What two strangers and the server that introduces them say, and what is printed of them.
fn introductions(reactor: &Reactor) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let executor = Executor::new(reactor);
    let server = Rc::new(Server::new(reactor, Identity::from_seed(&[1; 32]), ServerOptions::default()));
    let anne = Netlayer::new(reactor, Identity::from_seed(&[2; 32]));
    let bert = Netlayer::new(reactor, Identity::from_seed(&[3; 32]));
    let expect = Expect::key(server.key());
    let (ours, tapped) = testing::stream_pair();
    executor.block_on(async {
        let (line, far) = testing::stream_pair();
        server.admit(far).unwrap();
        let disconnected = bert.add_server(line, expect).await.unwrap();
        executor.spawn(disconnected);
    });
    let location = bert.our_location();
    let asked = location.clone();
    let calling = async move {
        let _disconnected = anne.add_server(ours, expect).await.unwrap();
        let _connection = anne.connect(&asked).await.unwrap();
        drop(bert.incoming().await.accept());
    };
    let tapped = RefCell::new(Some(tapped));
    let heard = tap(&executor, calling, || {
        let (line, far) = testing::stream_pair();
        server.admit(far).unwrap();
        Some((tapped.take()?, line))
    });
    let swiss = Swiss::new(b"a secret of somebody's".to_vec()).unwrap();
    let reference = SturdyRef { locator: location.clone(), swiss };
    let printed = [location.to_string(), reference.to_string(), server.key().to_string()];
    (heard.into_iter().map(|(_, bytes)| bytes).collect(), printed.map(String::into_bytes).to_vec())
}

fn records(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut records) = (stream, Vec::new());
    while let Ok(Some(end)) = syrup::Scanner::new(introduction::RECORD_BYTES_MAX).scan(rest) {
        records.push(rest[..end].to_vec());
        rest = &rest[end..];
    }
    records
}

/// As the decoder's check has it: sixteen bytes a read for each that the first byte says.
fn in_reads(stream: &[u8]) -> Vec<u8> {
    let reads = stream.chunks(16 * 15).map(|read| [&[15, 7][..], read].concat());
    [reads.collect::<Vec<_>>().concat(), vec![1, 0], b"\x39\x30\0\0".to_vec()].concat()
}
