//! tarpc over a Unix stream, as its example services are written: length-delimited frames, a client whose
//! dispatch is a task of its own, a server that takes requests from a channel.
//!
//! Bincode is the fastest of the formats it comes with, and `serde_bytes` the fastest way to have bytes in
//! it. The server completes each request where it arrives, as tarpc's own tests do, and not in a task of its
//! own, as its example does: the handler has nothing to wait for.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde_bytes::ByteBuf;
use tarpc::client::{self, RpcError};
use tarpc::context::{self, Context};
use tarpc::serde_transport;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;

use super::{Calls, PAYLOAD, Terms, runtime, whole};
use crate::Failure;

#[tarpc::service]
trait Echo {
    async fn echo(bytes: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Echoing;

impl Echo for Echoing {
    async fn echo(self, _: Context, bytes: ByteBuf) -> ByteBuf {
        bytes
    }
}

pub fn call(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let runtime = runtime()?;
    let client = {
        let _inside = runtime.enter();
        let framed = LengthDelimitedCodec::builder().new_framed(stream(end)?);
        EchoClient::new(client::Config::default(), serde_transport::new(framed, Bincode::default())).spawn()
    };
    Ok(Box::new(move |count, recorder| {
        runtime.block_on(async {
            recorder.begin_round(terms.depth);
            for _ in 0..count {
                let began = recorder.begin();
                if terms.depth == 1 {
                    whole(client.echo(context::current(), ByteBuf::from([7; PAYLOAD])).await?.len())?;
                } else {
                    let ask = |_| client.echo(context::current(), ByteBuf::from([7; PAYLOAD]));
                    let answers: Result<Vec<ByteBuf>, RpcError> =
                        try_join_all((0..terms.depth).map(ask)).await;
                    answers?.iter().try_for_each(|answer| whole(answer.len()))?;
                }
                recorder.end(began);
            }
            recorder.end_round();
            Ok(())
        })
    }))
}

pub fn serve(end: OwnedFd) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let framed = LengthDelimitedCodec::builder().new_framed(stream(end)?);
        let channel = BaseChannel::with_defaults(serde_transport::new(framed, Bincode::default()));
        channel.execute(Echoing.serve()).for_each(|answered| answered).await;
        Ok(())
    })
}

fn stream(end: OwnedFd) -> std::io::Result<tokio::net::UnixStream> {
    let stream = UnixStream::from(end);
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}
