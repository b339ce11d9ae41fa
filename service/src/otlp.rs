//! The OTLP exporter: finished spans in batches over HTTP, from a thread of its own. Its queue is bounded and drops what
//! does not fit, so a collector that is slow or away costs spans and never time of a request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};
use tracing::{info, warn};

use crate::build::BUILD;
use crate::process;

/// How long the last spans may take to get out when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(2);
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OtlpError {
    /// Only plain HTTP is spoken.
    #[error(
        "cannot export spans to {endpoint:?}: give an address such as http://127.0.0.1:4318; for TLS put a collector beside this process"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The exporter's own settings.
    #[error("cannot export spans: {0}")]
    Build(#[from] ExporterBuildError),
}

/// The exporter; dropped, it sends what it still has, within a deadline.
#[derive(Debug)]
pub(crate) struct Exporter {
    provider: SdkTracerProvider,
}

/// Where spans go: the flag or `OTEL_EXPORTER_OTLP_ENDPOINT` as a base, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` as it stands. None
/// where neither is set, or OpenTelemetry is switched off.
pub(crate) fn endpoint(base: Option<&str>) -> Option<String> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let base = base.filter(|base| !base.is_empty());
    let of_base = |base: &str| format!("{}/v1/traces", base.trim_end_matches('/'));
    variable(TRACES_ENDPOINT).or_else(|| base.map(of_base)).filter(|_| !is_off)
}

impl Exporter {
    /// Starts the exporter's thread. Queue, batch and delays are the SDK's: `OTEL_BSP_*` changes them.
    pub(crate) fn start(endpoint: &str) -> Result<Self, OtlpError> {
        if !endpoint.starts_with("http://") {
            return Err(OtlpError::Endpoint { endpoint: endpoint.to_owned() });
        }
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
        let inner = exporter.with_endpoint(endpoint).build()?;
        let watched = Watched { inner, endpoint: endpoint.to_owned(), failing: AtomicBool::new(false) };
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(watched).with_resource(resource()).build();
        Ok(Self { provider })
    }

    pub(crate) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("kvferry")
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // What could not be sent has been logged by then.
        drop(self.provider.shutdown_with_timeout(LAST_SPANS));
    }
}

/// Who exports: the program's name, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has another.
fn resource() -> Resource {
    let is_named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let resource = Resource::builder().with_attribute(KeyValue::new("service.version", BUILD.version));
    if is_named { resource.build() } else { resource.with_service_name(process::program()).build() }
}

/// An exporter that says once that the collector cannot be reached, and once that it can again.
#[derive(Debug)]
struct Watched<E> {
    inner: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.inner.export(batch).await;
        let was_failing = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Err(error) if !was_failing => {
                warn!(endpoint = self.endpoint, %error, "spans are lost until the collector answers");
            }
            Ok(()) if was_failing => info!(endpoint = self.endpoint, "the collector answers again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SpanExporter as _;

    use super::*;

    #[test]
    fn only_plain_http_is_spoken() {
        for bad in ["https://collector:4318/v1/traces", "collector:4318", "grpc://collector"] {
            let error = Exporter::start(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("http://127.0.0.1:4318"), "{error}");
        }
    }

    #[test]
    fn a_base_gets_the_path_of_traces() {
        assert_eq!(endpoint(Some("http://c:4318/")).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!((endpoint(None), endpoint(Some(""))), (None, None));
    }

    #[derive(Debug)]
    struct Scripted(std::sync::Mutex<Vec<bool>>);

    impl opentelemetry_sdk::trace::SpanExporter for Scripted {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            if self.0.lock().unwrap().remove(0) {
                Ok(())
            } else {
                Err(OTelSdkError::InternalFailure("no".into()))
            }
        }
    }

    /// Counts events.
    struct Counter(std::sync::Arc<std::sync::atomic::AtomicUsize>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Counter {
        fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_collector_that_is_away_is_logged_once() {
        use tracing_subscriber::layer::SubscriberExt;
        let lines = std::sync::Arc::default();
        let _logs = tracing::subscriber::set_default(
            tracing_subscriber::registry().with(Counter(std::sync::Arc::clone(&lines))),
        );
        let inner = Scripted(std::sync::Mutex::new(vec![true, false, false, false, true, true]));
        let watched = Watched { inner, endpoint: "http://away".into(), failing: AtomicBool::new(false) };
        for expected in [0, 1, 1, 1, 2, 2] {
            drop(watched.export(Vec::new()).await);
            assert_eq!(lines.load(Ordering::Relaxed), expected);
        }
    }
}
