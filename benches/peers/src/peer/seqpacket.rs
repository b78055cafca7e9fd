//! tokio-seqpacket on a runtime of one thread: all calls of a batch are sent before the first answer is
//! received, so that `epoll_wait` is asked once for as many of them as possible. Descriptors travel as its
//! documentation has it, in ancillary messages.

use std::os::fd::{AsFd, OwnedFd};

use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{AncillaryMessageReader, AncillaryMessageWriter, OwnedAncillaryMessage};

use super::{Calls, PAYLOAD, Terms, runtime, whole};
use crate::Failure;

/// Room for one descriptor, wherever the buffer begins.
const ANCILLARY_BYTES: usize = 64;

pub fn call(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let runtime = runtime()?;
    let socket = {
        let _inside = runtime.enter();
        UnixSeqpacket::try_from(nonblocking(end)?)?
    };
    let passed = terms.has_descriptor.then(perf::floor::something_to_pass).transpose()?;
    Ok(Box::new(move |count, recorder| {
        runtime.block_on(async {
            recorder.begin_round(terms.depth);
            let mut room = [0; 2 * PAYLOAD];
            for _ in 0..count {
                let began = recorder.begin();
                for _ in 0..terms.depth {
                    match &passed {
                        None => socket.send(&[7; PAYLOAD]).await?,
                        Some(passed) => send_with(&socket, &[7; PAYLOAD], passed).await?,
                    };
                }
                for _ in 0..terms.depth {
                    match &passed {
                        None => whole(socket.recv(&mut room).await?.bytes_read())?,
                        Some(_) => {
                            let (length, _descriptor) = receive_with(&socket, &mut room).await?;
                            whole(length)?;
                        }
                    }
                }
                recorder.end(began);
            }
            recorder.end_round();
            Ok(())
        })
    }))
}

pub fn serve(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let socket = UnixSeqpacket::try_from(nonblocking(end)?)?;
        let mut room = [0; 2 * PAYLOAD];
        loop {
            if !terms.has_descriptor {
                match socket.recv(&mut room).await?.bytes_read() {
                    0 => return Ok(()),
                    length => socket.send(&room[..length]).await?,
                };
                continue;
            }
            match receive_with(&socket, &mut room).await? {
                (0, _) => return Ok(()),
                (length, Some(passed)) => send_with(&socket, &room[..length], &passed).await?,
                (_, None) => return Err("a call without its descriptor".into()),
            };
        }
    })
}

async fn send_with(socket: &UnixSeqpacket, bytes: &[u8], passed: &OwnedFd) -> Result<usize, Failure> {
    let mut space = [0; ANCILLARY_BYTES];
    let mut ancillary = AncillaryMessageWriter::new(&mut space);
    ancillary.add_fds([passed.as_fd()]).map_err(|_| "no room for a descriptor")?;
    Ok(socket.send_with_ancillary(bytes, &mut ancillary).await?)
}

async fn receive_with(socket: &UnixSeqpacket, room: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Failure> {
    let mut space = [0; ANCILLARY_BYTES];
    let (received, ancillary) = socket.recv_with_ancillary(room, &mut space).await?;
    Ok((received.bytes_read(), first_descriptor(ancillary)))
}

fn first_descriptor(ancillary: AncillaryMessageReader<'_>) -> Option<OwnedFd> {
    ancillary.into_messages().find_map(|message| match message {
        OwnedAncillaryMessage::FileDescriptors(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// What the crate asks of a descriptor that it has not made.
fn nonblocking(end: OwnedFd) -> Result<OwnedFd, Failure> {
    rustix::io::ioctl_fionbio(&end, true)?;
    Ok(end)
}
