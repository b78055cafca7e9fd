//! Copying what may be long, with a bar for whoever waits.
//!
//! It owns the copying and the bar. It must never know where the bytes come from or go.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// From here on a transfer is long enough for a bar.
const LONG_BYTES: u64 = 16 * 1024 * 1024;

/// So much is copied between two looks at the bar.
const STEP_BYTES: u64 = 4 * 1024 * 1024;

/// So much is read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A bar on standard error, if that is a terminal and there is enough to wait for.
pub struct Progress(ProgressBar);

impl Progress {
    /// For so many bytes.
    pub fn of(bytes: u64) -> Progress {
        if bytes < LONG_BYTES || !stderr().is_terminal() {
            return Progress::none();
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress(bar)
    }

    /// For so many bytes as will come, which nobody knows.
    pub fn unbounded() -> Progress {
        if !stderr().is_terminal() {
            return Progress::none();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bytes}, {bytes_per_sec}") {
            bar.set_style(style);
        }
        Progress(bar)
    }

    /// Nothing to be seen.
    pub fn none() -> Progress {
        Progress(ProgressBar::hidden())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// On which side a copy has failed.
#[derive(Debug)]
pub enum Copied {
    Reading(io::Error),
    Writing(io::Error),
}

/// Copies to the end. Gives the number of bytes.
pub fn copy(mut from: File, to: &mut (impl Write + ?Sized), progress: &Progress) -> Result<u64, Copied> {
    let mut copied = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let mut step = 0;
        while step < STEP_BYTES {
            let read = match from.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(Copied::Reading)?,
            };
            if read == 0 {
                progress.0.set_position(copied + step);
                return to.flush().map(|()| copied + step).map_err(Copied::Writing);
            }
            to.write_all(&chunk[..read]).map_err(Copied::Writing)?;
            step += read as u64;
        }
        copied += step;
        progress.0.set_position(copied);
    }
}
