//! What a prefill node counts. Bytes and time of a transfer are taken together, and only when a cache moved.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use service::Registry;
use service::metrics::SECONDS;

/// Which codec a number is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Codec {
    pub(crate) codec: String,
}

/// How far a delivery came that failed: `compute`, `connect`, `send` or `accept`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// The labels of vLLM's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model_name: String,
    engine: &'static str,
}

/// How a prompt ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: String,
}

/// The node's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) prompts: Family<Outcome, Counter>,
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) prompt_tokens: Counter,
    pub(crate) queue_seconds: Histogram,
    pub(crate) prefill_seconds: Histogram,
    pub(crate) encode_seconds: Histogram,
    pub(crate) raw_bytes: Family<Codec, Counter>,
    pub(crate) wire_bytes: Family<Codec, Counter>,
    pub(crate) leases_active: Gauge,
    pub(crate) leases_expired: Counter,
    pub(crate) prefix: PrefixMetrics,
    transfer_failures: Family<Phase, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, model: &str) -> Self {
        let metrics = Self {
            prompts: registry.register("prefill_prompts", "Prompts by outcome", Family::default()),
            running: registry
                .gauge("prefill_prompts_running", "Prompts admitted and neither delivered nor kept yet"),
            waiting: registry
                .gauge("prefill_prompts_waiting", "Prompts admitted that the engine has not begun"),
            prompt_tokens: registry.counter("prefill_prompt_tokens", "Prompt tokens run through the model"),
            queue_seconds: registry.histogram("prefill_queue_seconds", "Wait for the engine", &SECONDS),
            prefill_seconds: registry.histogram("prefill_seconds", "Forward passes of one prompt", &SECONDS),
            encode_seconds: registry.histogram("prefill_kv_encode_seconds", "Coding of one cache", &SECONDS),
            raw_bytes: registry.register(
                "prefill_kv_raw_bytes",
                "Size in bf16 of the caches delivered",
                Family::default(),
            ),
            wire_bytes: registry.register(
                "prefill_kv_wire_bytes",
                "Bytes written to the KV streams of the caches delivered",
                Family::default(),
            ),
            leases_active: registry.gauge(
                "prefill_kv_leases_active",
                "Caches that are kept, coded, for a decode node to ask for",
            ),
            leases_expired: registry.counter(
                "prefill_kv_leases_expired",
                "Caches that were kept and given up, since nobody asked for them in time",
            ),
            prefix: PrefixMetrics::new(registry, model),
            transfer_failures: registry.register(
                "prefill_kv_transfer_failures",
                "Caches that were not delivered, by the phase that failed",
                Family::default(),
            ),
        };
        // There before anything has happened, so that the first failure is seen as a rise.
        for phase in ["compute", "connect", "send", "accept"] {
            drop(metrics.transfer_failures.get_or_create(&Phase { phase }));
        }
        metrics
    }

    /// A delivery failed.
    pub(crate) fn transfer_failed(&self, phase: &'static str) {
        self.transfer_failures.get_or_create(&Phase { phase }).inc();
    }
}

/// Of the caches of finished prompts.
#[derive(Debug, Clone)]
pub(crate) struct PrefixMetrics {
    pub(crate) kept: Gauge,
    queries: Counter,
    hits: Counter,
}

impl PrefixMetrics {
    fn new(registry: &Registry, model: &str) -> Self {
        let labels = Model { model_name: model.to_owned(), engine: "0" };
        let kept = registry.gauge(
            "prefill_prefix_cache_tokens",
            "Tokens of finished prompts that are kept for those that begin alike",
        );
        let queries = of_vllm(registry, "prefix_cache_queries", "Prompt tokens looked up", &labels);
        let hits = of_vllm(registry, "prefix_cache_hits", "Prompt tokens found", &labels);
        Self { kept, queries, hits }
    }

    /// So many of a prompt's tokens were found.
    pub(crate) fn looked_up(&self, tokens: usize, found: usize) {
        self.queries.inc_by(tokens as u64);
        self.hits.inc_by(found as u64);
    }
}

/// A counter under a name that vLLM coined.
fn of_vllm(registry: &Registry, name: &str, help: &str, labels: &Model) -> Counter {
    let family = registry.register_as(&format!("vllm:{name}"), help, Family::<Model, Counter>::default());
    let counter = family.get_or_create(labels);
    counter.clone()
}
