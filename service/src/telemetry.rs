//! Log set-up, once per process.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::TryInitError;

use crate::args::{CommonArgs, LogFormat};

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level or the directives cannot be read.
    #[error(
        "cannot read log level {directives:?}: {source}; use a level or directives such as \"info,transport=debug\""
    )]
    Directives {
        /// What was given.
        directives: String,
        /// What the parser said.
        source: ParseError,
    },
    /// Logs were set up before.
    #[error(transparent)]
    AlreadySet(#[from] TryInitError),
}

/// Sends log lines to standard error from now on, as the flags say; `RUST_LOG`, where set, says what to log.
///
/// # Errors
/// If the directives cannot be read, or logs were set up before.
pub fn init(args: &CommonArgs) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let directives = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|value| !value.is_empty());
    let filter = filter(directives.as_deref().unwrap_or(&args.log_level))?;
    subscriber(args.log, filter, io::stderr, io::stderr().is_terminal()).try_init()?;
    Ok(())
}

fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| TelemetryError::Directives { directives: directives.into(), source })
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(lines.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged, by a subscriber of the given kind, for one event below and one above the level.
    fn logged(format: LogFormat) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, filter("warn").unwrap(), move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("quiet");
            tracing::warn!(node = "decode-1", "loud");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_carry_the_fields() {
        let logged = logged(LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(&logged).unwrap();
        assert_eq!((&line["message"], &line["node"]), (&"loud".into(), &"decode-1".into()));
    }

    #[test]
    fn text_lines_are_plain_without_a_terminal() {
        let logged = logged(LogFormat::Text);
        assert!(logged.contains("loud") && logged.contains("node=\"decode-1\""), "{logged}");
        assert!(!logged.contains("quiet") && !logged.contains('\u{1b}'), "{logged}");
    }

    #[test]
    fn unreadable_directives_are_named() {
        let error = filter("transport=loud").unwrap_err().to_string();
        assert!(error.contains("transport=loud"), "{error}");
    }
}
