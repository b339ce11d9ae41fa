//! The process's metrics: one registry, our prefix, common bucket bounds, text encoding.
//!
//! A crate declares its metrics once, with help text, in its own `metrics.rs` and keeps the handles, which are
//! cheap clones. Names are `kvferry_<what>_<unit>`, in base units; counters get `_total` appended when encoded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Metric;

use crate::build::BUILD;

/// Prefix of all our metrics.
pub const PREFIX: &str = "kvferry_";

/// Bounds for times, in seconds: from a token's 1 ms to a long prompt's minutes.
pub const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Bounds for compression ratios; raw caches lie just below 1, since their headers count.
pub const RATIOS: [f64; 15] =
    [0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0];
/// Bounds for sizes, in bytes: 4 KiB to 16 GiB by fours.
pub const BYTES: [f64; 12] = {
    let mut bounds = [4096.0; 12];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 4.0;
        i += 1;
    }
    bounds
};

/// The metrics of one process; clones share them.
#[derive(Clone)]
pub struct Registry {
    metrics: Arc<Mutex<prometheus_client::registry::Registry>>,
}

impl Registry {
    /// A registry that holds `kvferry_build_info`.
    pub fn new() -> Self {
        let mut metrics = prometheus_client::registry::Registry::default();
        let labels =
            vec![("version", BUILD.version), ("commit", BUILD.commit.as_str()), ("profile", BUILD.profile)];
        metrics.register(format!("{PREFIX}build"), "Which build is running", Info::new(labels));
        Self { metrics: Arc::new(Mutex::new(metrics)) }
    }

    /// Adds a metric under `kvferry_<name>` and gives it back. Help is a sentence without a full stop, which
    /// the encoding appends.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.register_as(&format!("{PREFIX}{name}"), help, metric)
    }

    /// Adds a metric under a name that others have coined, such as `vllm:num_requests_running`.
    pub fn register_as<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.register(name, help, metric.clone());
        metric
    }

    /// Adds metrics that are worked out when they are read.
    pub fn collector(&self, collector: impl Collector) {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.register_collector(Box::new(collector));
    }

    /// Adds a counter; `_total` is appended to its name when encoded.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// Adds a gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// Adds a histogram with the given bounds, such as [`SECONDS`].
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.register(name, help, Histogram::new(bounds.iter().copied()))
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// Only if a metric of the caller's own making fails to encode itself.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.metrics.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(encoded)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_our_prefix_and_counters_their_suffix() {
        let registry = Registry::new();
        registry.counter("requests", "Requests taken").inc();
        registry.register_as("vllm:num_requests_running", "Requests running", Gauge::<i64>::default()).set(3);
        let encoded = registry.encode().unwrap();
        assert!(encoded.contains("# HELP kvferry_requests Requests taken.\n"), "{encoded}");
        assert!(encoded.contains("kvferry_requests_total 1\n"), "{encoded}");
        assert!(encoded.contains("vllm:num_requests_running 3\n"), "{encoded}");
        assert!(encoded.ends_with("# EOF\n"), "{encoded}");
    }

    #[test]
    fn the_build_can_be_read_from_the_metrics() {
        let encoded = Registry::new().encode().unwrap();
        assert!(encoded.contains(&format!("kvferry_build_info{{version=\"{}\"", BUILD.version)), "{encoded}");
    }

    #[test]
    fn clones_share_their_metrics() {
        let registry = Registry::new();
        let seconds = registry.clone().histogram("wait_seconds", "Wait", &SECONDS);
        seconds.observe(0.2);
        assert!(registry.encode().unwrap().contains("kvferry_wait_seconds_bucket{le=\"0.25\"} 1\n"));
    }

    #[test]
    fn bounds_rise() {
        for bounds in [&SECONDS[..], &RATIOS, &BYTES] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
        assert_eq!(BYTES[11], 16.0 * 1024.0 * 1024.0 * 1024.0);
    }
}
