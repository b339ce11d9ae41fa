//! What is counted under names that vLLM coined, with its labels and bounds, so that its dashboards, endpoint pickers and
//! benchmark tools read this router as they read vLLM. One [`Course`] per generation, from its first token to its end.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use openai::{FinishReason, KvSource, KvTransfer};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Metric;
use service::Registry;
use service::trace::{self, TARGET};
use tracing::field::Empty;
use tracing::{Span, info_span};
use transport::message::PrefillStats;

/// vLLM's bounds for the time to the first token, in seconds.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's bounds for the time of one further token, in seconds.
const NEXT_TOKEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's bounds for times of a whole request, in seconds.
const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model_name: String,
    engine: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    model_name: String,
    engine: &'static str,
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FromSource {
    model_name: String,
    engine: &'static str,
    source: Source,
}

/// How a prompt's cache came to the node that generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    LocalCompute,
    LocalCacheHit,
    ExternalKvTransfer,
}

impl EncodeLabelValue for Source {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> std::fmt::Result {
        let name = match self {
            Self::LocalCompute => "local_compute",
            Self::LocalCacheHit => "local_cache_hit",
            Self::ExternalKvTransfer => "external_kv_transfer",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// The metrics.
#[derive(Debug)]
pub(crate) struct Vllm {
    model: Model,
    first_token: Histogram,
    next_token: Histogram,
    time_per_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    prompt_length: Histogram,
    generation_length: Histogram,
    finished: Family<Finished, Counter>,
    sources: Family<FromSource, Counter>,
}

impl Vllm {
    pub(crate) fn new(registry: &Registry, model_name: &str, max_model_len: u32) -> Self {
        let model = Model { model_name: model_name.to_owned(), engine: "0" };
        let seconds =
            |name, help, bounds: &'static [f64]| histogram(registry, &model, name, help, bounds.to_vec());
        let lengths = one_two_five(max_model_len);
        let tokens = |name, help| histogram(registry, &model, name, help, lengths.clone());
        let counter = |name, help| one(registry, &model, name, help, Counter::<u64, AtomicU64>::default);
        let sources =
            family(registry, "prompt_tokens_by_source", "Prompt tokens by where their cache came from");
        for source in [Source::LocalCompute, Source::LocalCacheHit, Source::ExternalKvTransfer] {
            drop(sources.get_or_create(&model.of(source)));
        }
        Self {
            first_token: seconds(
                "time_to_first_token_seconds",
                "From a request's arrival to its first token",
                &FIRST_TOKEN,
            ),
            next_token: seconds(
                "inter_token_latency_seconds",
                "Between two tokens of a request",
                &NEXT_TOKEN,
            ),
            time_per_token: seconds(
                "request_time_per_output_token_seconds",
                "Mean time of a request's tokens after the first",
                &NEXT_TOKEN,
            ),
            whole: seconds("e2e_request_latency_seconds", "From a request's arrival to its end", &REQUEST),
            queue: seconds(
                "request_queue_time_seconds",
                "Wait for the engine that runs the prompt",
                &REQUEST,
            ),
            prefill: seconds(
                "request_prefill_time_seconds",
                "Forward passes over a request's prompt",
                &REQUEST,
            ),
            decode: seconds(
                "request_decode_time_seconds",
                "From a request's first token to its last",
                &REQUEST,
            ),
            prompt_tokens: counter(
                "prompt_tokens",
                "Prompt tokens of requests that came to their first token",
            ),
            generation_tokens: counter("generation_tokens", "Tokens generated"),
            prompt_length: tokens("request_prompt_tokens", "Prompt tokens of a request"),
            generation_length: tokens("request_generation_tokens", "Tokens generated for a request"),
            finished: family(
                registry,
                "request_success",
                "Requests with a first token that ended, by why they did",
            ),
            sources,
            model,
        }
    }

    /// A request has its first token.
    pub(crate) fn begin(
        self: &Arc<Self>,
        arrived: Instant,
        prompt_tokens: u32,
        transfer: &KvTransfer,
    ) -> Course {
        let source = match transfer.source {
            KvSource::Remote => Source::ExternalKvTransfer,
            KvSource::Local => Source::LocalCompute,
        };
        let times = (transfer.queue_ms / 1e3, transfer.prefill_ms / 1e3);
        self.begin_from(source, arrived, (prompt_tokens, transfer.cached_tokens), times)
    }

    /// The same of a request whose cache has not travelled.
    pub(crate) fn begin_kept(
        self: &Arc<Self>,
        arrived: Instant,
        prompt_tokens: u32,
        stats: &PrefillStats,
    ) -> Course {
        let times = (f64::from(stats.queue_ms) / 1e3, f64::from(stats.prefill_ms) / 1e3);
        self.begin_from(Source::LocalCompute, arrived, (prompt_tokens, stats.cached_tokens), times)
    }

    fn begin_from(
        self: &Arc<Self>,
        source: Source,
        arrived: Instant,
        (prompt_tokens, cached_tokens): (u32, u32),
        (queue, prefill): (f64, f64),
    ) -> Course {
        let now = Instant::now();
        self.first_token.observe(now.duration_since(arrived).as_secs_f64());
        self.prompt_tokens.inc_by(prompt_tokens.into());
        let cached = cached_tokens.min(prompt_tokens);
        self.sources.get_or_create(&self.model.of(Source::LocalCacheHit)).inc_by(cached.into());
        self.sources.get_or_create(&self.model.of(source)).inc_by((prompt_tokens - cached).into());
        Course {
            vllm: Arc::clone(self),
            arrived,
            first_token: now,
            last_token: now,
            prompt_tokens,
            generated: 0,
            queue,
            prefill,
            reason: "abort",
            span: info_span!(target: TARGET, "generation", completion_tokens = Empty, finish_reason = Empty),
        }
    }
}

impl Model {
    fn of(&self, source: Source) -> FromSource {
        FromSource { model_name: self.model_name.clone(), engine: self.engine, source }
    }
}

/// A generation in the books. Dropped without an end, it was aborted: the client has left.
#[derive(Debug)]
pub(crate) struct Course {
    vllm: Arc<Vllm>,
    arrived: Instant,
    first_token: Instant,
    last_token: Instant,
    prompt_tokens: u32,
    generated: u32,
    queue: f64,
    prefill: f64,
    reason: &'static str,
    /// In the request's trace.
    span: Span,
}

impl Course {
    /// The next token has come; the first one counts as well.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        self.generated += 1;
        self.vllm.generation_tokens.inc();
        if self.generated > 1 {
            self.vllm.next_token.observe(now.duration_since(self.last_token).as_secs_f64());
        }
        self.last_token = now;
    }

    /// It has ended well.
    pub(crate) fn finished(&mut self, reason: FinishReason) {
        self.reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
    }

    /// A node has failed it.
    pub(crate) fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.reason = "error";
        trace::fail(&self.span, error);
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        let vllm = &self.vllm;
        let decode = self.last_token.duration_since(self.first_token).as_secs_f64();
        let finished = Finished {
            model_name: vllm.model.model_name.clone(),
            engine: vllm.model.engine,
            finished_reason: self.reason,
        };
        vllm.finished.get_or_create(&finished).inc();
        vllm.whole.observe(self.arrived.elapsed().as_secs_f64());
        vllm.queue.observe(self.queue);
        vllm.prefill.observe(self.prefill);
        vllm.decode.observe(decode);
        vllm.prompt_length.observe(self.prompt_tokens.into());
        vllm.generation_length.observe(self.generated.into());
        if self.generated > 1 {
            vllm.time_per_token.observe(decode / f64::from(self.generated - 1));
        }
        self.span.record("completion_tokens", self.generated).record("finish_reason", self.reason);
    }
}

/// 1, 2, 5, 10, 20, … up to a limit, which are vLLM's bounds for counts of tokens.
fn one_two_five(limit: u32) -> Vec<f64> {
    let decades = (0..10).map(|exponent| 10_f64.powi(exponent));
    let bounds = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * decade));
    bounds.take_while(|bound| *bound <= f64::from(limit)).collect()
}

fn family<S, M, C>(registry: &Registry, name: &str, help: &str) -> Family<S, M, C>
where
    Family<S, M, C>: Metric + Clone + Default,
{
    registry.register_as(&format!("vllm:{name}"), help, Family::default())
}

/// The one member that a family has here.
fn one<M, C>(registry: &Registry, model: &Model, name: &str, help: &str, make: C) -> M
where
    M: Clone,
    C: MetricConstructor<M> + Clone,
    Family<Model, M, C>: Metric,
{
    let family = Family::new_with_constructor(make);
    registry.register_as(&format!("vllm:{name}"), help, family.clone());
    family.get_or_create_owned(model)
}

fn histogram(registry: &Registry, model: &Model, name: &str, help: &str, bounds: Vec<f64>) -> Histogram {
    one(registry, model, name, help, Bounds(bounds))
}

/// Makes histograms of these bounds.
#[derive(Debug, Clone)]
struct Bounds(Vec<f64>);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_vllm() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(one_two_five(8192).last(), Some(&5000.0));
        for bounds in [&FIRST_TOKEN[..], &NEXT_TOKEN, &REQUEST] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
