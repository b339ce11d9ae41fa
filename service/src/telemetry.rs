//! Set-up of logs and traces, once per process.

use std::io::{self, IsTerminal};

use opentelemetry_sdk::trace::SdkTracer;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::args::{CommonArgs, LogFormat};
use crate::otlp::{self, Exporter, OtlpError};
use crate::trace;

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
    /// Spans cannot be exported.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
}

/// Logs and traces of the process. Dropped, it sends the last spans, within a deadline: outside of the runtime, since it blocks.
#[derive(Debug)]
#[must_use = "spans are exported until this is dropped"]
pub struct Telemetry {
    _exporter: Option<Exporter>,
}

/// Sends log lines to standard error from now on, as the flags say; `RUST_LOG`, where set, says what to log. Spans go to the
/// flags' OTLP endpoint, where there is one.
///
/// # Errors
/// If the directives cannot be read, the endpoint cannot be used, or logs were set up before.
pub fn init(args: &CommonArgs) -> Result<Telemetry, TelemetryError> {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|value| !value.is_empty());
    let filter = filter(directives.as_deref().unwrap_or(&args.log_level))?;
    let endpoint = otlp::endpoint(args.otlp_endpoint.as_deref());
    let exporter = endpoint.map(|endpoint| Exporter::start(&endpoint)).transpose()?;
    let spans = exporter.as_ref().map(|exporter| spans(exporter.tracer(), filter.max_level_hint()));
    let lines = lines(args.log, filter, io::stderr, io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(spans).try_init()?;
    if exporter.is_some() {
        trace::turn_on();
    }
    Ok(Telemetry { _exporter: exporter })
}

fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| TelemetryError::Directives { directives: directives.into(), source })
}

/// Events as lines, with the spans that are meant for logs.
fn lines<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    // Without the hint, every line that QUIC would log for a packet would be made and only then dropped.
    let is_for_lines = filter_fn(|metadata| !is_for_traces(metadata)).with_max_level_hint(level);
    let filter = filter.and(is_for_lines);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => lines.with_ansi(colours).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    }
}

/// Spans for the exporter, and what is logged inside them; details where the log has them too.
fn spans<S>(tracer: SdkTracer, logged: Option<LevelFilter>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let level = logged.unwrap_or(LevelFilter::TRACE).clamp(LevelFilter::INFO, LevelFilter::DEBUG);
    let is_wanted = move |metadata: &Metadata<'_>| {
        *metadata.level() <= level && (metadata.is_event() || is_for_traces(metadata))
    };
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_threads(false)
        .with_location(false)
        .with_target(false)
        .with_level(true)
        .with_filter(filter_fn(is_wanted).with_max_level_hint(level))
        .boxed()
}

fn is_for_traces(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == trace::TARGET
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;

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
        let lines = lines(format, filter("warn").unwrap(), move || writer.clone(), false);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("quiet");
            let _log = tracing::error_span!("request", request_id = 7).entered();
            let _trace = tracing::error_span!(target: trace::TARGET, "unseen").entered();
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
    fn spans_for_traces_are_not_in_the_lines_and_do_not_hide_those_around_them() {
        let logged = logged(LogFormat::Text);
        assert!(logged.contains("request{request_id=7}") && !logged.contains("unseen"), "{logged}");
    }

    #[test]
    fn what_no_layer_wants_is_not_even_made() {
        let lines = || lines(LogFormat::Text, filter("info,transport=debug").unwrap(), io::sink, false);
        let level = |subscriber: &dyn Subscriber| subscriber.max_level_hint();
        assert_eq!(level(&tracing_subscriber::registry().with(lines())), Some(LevelFilter::DEBUG));
        let tracer = opentelemetry_sdk::trace::SdkTracerProvider::builder().build().tracer("test");
        let spans = spans(tracer, Some(LevelFilter::WARN));
        assert_eq!(level(&tracing_subscriber::registry().with(spans)), Some(LevelFilter::INFO));
    }

    #[test]
    fn unreadable_directives_are_named() {
        let error = filter("transport=loud").unwrap_err().to_string();
        assert!(error.contains("transport=loud"), "{error}");
    }
}
