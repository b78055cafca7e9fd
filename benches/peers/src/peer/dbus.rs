//! zbus, peer to peer: an interface and its proxy, as its documentation writes them, without a bus between.
//!
//! On tokio, where the connection has no thread of its own; `spawn = false`, so that a call is answered where
//! it is read; `serde_bytes` for an array of bytes that is not taken apart.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use futures_util::future::try_join_all;
use serde_bytes::{ByteBuf, Bytes};
use zbus::connection::Builder;
use zbus::{Connection, Guid};

use super::{Calls, PAYLOAD, Terms, runtime, whole};
use crate::Failure;

const PATH: &str = "/org/sendright/Echo";

struct Echoing;

#[zbus::interface(name = "org.sendright.Echo", spawn = false)]
impl Echoing {
    fn echo(&self, bytes: ByteBuf) -> ByteBuf {
        bytes
    }

    fn echo_with(&self, bytes: ByteBuf, passed: zbus::OwnedFd) -> (ByteBuf, zbus::OwnedFd) {
        (bytes, passed)
    }
}

// Without a bus nobody looks at the service's name, but a proxy wants one.
#[zbus::proxy(
    interface = "org.sendright.Echo",
    default_service = "org.sendright.Echo",
    default_path = "/org/sendright/Echo"
)]
trait Echo {
    fn echo(&self, bytes: &Bytes) -> zbus::Result<ByteBuf>;
    fn echo_with(&self, bytes: &Bytes, passed: zbus::Fd<'_>) -> zbus::Result<(ByteBuf, zbus::OwnedFd)>;
}

pub fn call(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let runtime = runtime()?;
    let passed = terms.has_descriptor.then(perf::floor::something_to_pass).transpose()?;
    let proxy = runtime.block_on(async {
        let connection = Builder::unix_stream(UnixStream::from(end)).p2p().build().await?;
        // A peer has no properties that could change behind the proxy's back.
        let proxy = EchoProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No);
        proxy.build().await
    })?;
    Ok(Box::new(move |count, recorder| {
        runtime.block_on(async {
            recorder.begin_round(terms.depth);
            for _ in 0..count {
                let began = recorder.begin();
                match &passed {
                    None if terms.depth == 1 => whole(echo(&proxy).await?.len())?,
                    None => {
                        let answers = try_join_all((0..terms.depth).map(|_| echo(&proxy))).await?;
                        answers.iter().try_for_each(|answer| whole(answer.len()))?;
                    }
                    Some(passed) => {
                        let ask = |_| proxy.echo_with(Bytes::new(&[7; PAYLOAD]), passed.as_fd().into());
                        let answers = try_join_all((0..terms.depth).map(ask)).await?;
                        answers.iter().try_for_each(|(bytes, _)| whole(bytes.len()))?;
                    }
                }
                recorder.end(began);
            }
            recorder.end_round();
            Ok(())
        })
    }))
}

async fn echo(proxy: &EchoProxy<'_>) -> zbus::Result<ByteBuf> {
    proxy.echo(Bytes::new(&[7; PAYLOAD])).await
}

pub fn serve(end: OwnedFd) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let builder = Builder::unix_stream(UnixStream::from(end)).server(Guid::generate()).p2p();
        let connection: Connection = builder.serve_at(PATH, Echoing).build().await?;
        connection.closed().await;
        Ok(())
    })
}
