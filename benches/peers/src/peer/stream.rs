//! `std::os::unix::net::UnixStream`, blocking: frames of a fixed length through a buffered reader and
//! writer, so that calls that are begun together leave in one `write`. A number for each call, a length and
//! an end are what a protocol would add to it.

use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{Calls, PAYLOAD, Terms, batches};
use crate::Failure;

pub fn call(terms: Terms, end: OwnedFd) -> Result<Calls, Failure> {
    let (mut reader, mut writer) = halves(terms, end)?;
    Ok(Box::new(move |count, recorder| {
        batches(count, terms.depth, recorder, || {
            for _ in 0..terms.depth {
                writer.write_all(&[7; PAYLOAD])?;
            }
            writer.flush()?;
            let mut answer = [0; PAYLOAD];
            for _ in 0..terms.depth {
                reader.read_exact(&mut answer)?;
            }
            Ok(())
        })
    }))
}

pub fn serve(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    let (mut reader, mut writer) = halves(terms, end)?;
    let mut frame = [0; PAYLOAD];
    loop {
        match reader.read_exact(&mut frame) {
            Ok(()) => writer.write_all(&frame)?,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        // Answers to what came together leave together.
        if reader.buffer().is_empty() {
            writer.flush()?;
        }
    }
}

type Halves = (BufReader<Looking>, BufWriter<UnixStream>);

fn halves(terms: Terms, end: OwnedFd) -> Result<Halves, Failure> {
    let stream = UnixStream::from(end);
    stream.set_nonblocking(terms.looks)?;
    Ok((BufReader::new(Looking(stream.try_clone()?)), BufWriter::new(stream)))
}

/// Reads; where the stream does not block, until something is there.
struct Looking(UnixStream);

impl Read for Looking {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                result => return result,
            }
        }
    }
}
