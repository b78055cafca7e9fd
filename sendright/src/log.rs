//! Log lines on standard error: where they go, how they are written and which of them.
//!
//! It owns the one subscriber of the process. It must never know what is logged.

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::output::Failure;

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Which lines are written, to be changed while they are.
pub struct Log(reload::Handle<EnvFilter, Registry>);

impl Log {
    /// From now on lines are written.
    pub fn start(format: Format, filter: &str) -> Result<Log, Failure> {
        let (filter, handle) = reload::Layer::new(parse(filter).map_err(Failure::usage)?);
        let layer = fmt::layer()
            .with_writer(std::io::stderr)
            // Logs are read by programs. Colours came along where another crate of the build wanted them.
            .with_ansi(false)
            // A standard error that cannot be written to is nobody's reason to panic.
            .log_internal_errors(false);
        let layer = match format {
            Format::Text => layer.boxed(),
            Format::Json => layer.json().flatten_event(true).boxed(),
        };
        let started = tracing_subscriber::registry().with(filter).with(layer).try_init();
        started.map_err(|error| Failure::new(format_args!("log lines: {error}")))?;
        Ok(Log(handle))
    }

    /// From now on other lines are written.
    pub fn change(&self, filter: &str) -> Result<(), String> {
        self.0.reload(parse(filter)?).map_err(|error| error.to_string())
    }
}

/// Log lines of the libraries, if the environment asks for them.
pub fn if_asked() {
    let Ok(filter) = std::env::var(EnvFilter::DEFAULT_ENV) else { return };
    // What it says wrong is ignored, as it always was: it is not the command that was asked for.
    drop(Log::start(Format::Text, &filter));
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| format!("no filter of log lines: {filter}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(parse("info,introduction=debug").is_ok());
        assert!(parse("ring=loudly").is_err());
    }
}
