//! What the router counts: requests and how they ended, times as clients feel them, bytes of caches, the cluster.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openai::{KvCodec, KvTransfer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use service::Registry;
use service::metrics::{RATIOS, SECONDS};
use tracing::Span;
use transport::message::PrefillStats;

use crate::board::{Board, Entry};
use crate::choice::Bypass;
use crate::measured::Gauges;
use crate::model::RouterModel;
use crate::trace;
use crate::vllm::{Course, Vllm};

/// Bounds for what the router itself adds, in seconds.
const OVERHEAD: [f64; 16] = [
    0.00001, 0.00002, 0.00003, 0.00005, 0.000075, 0.0001, 0.00015, 0.0002, 0.0003, 0.0004, 0.0005, 0.00075,
    0.001, 0.0025, 0.01, 0.1,
];

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// "ok", "cancelled" (the client left), or the error's label.
    outcome: &'static str,
    /// HTTP status that the client saw; an error inside a stream keeps its 200.
    status: u16,
}

/// Why a node failed a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeFailure {
    role: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Role {
    role: &'static str,
}

/// How a cache was coded; "none" for a local prefill.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Codec {
    codec: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Whether a request ran on one node or two, under the label that llm-d uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    decision_type: &'static str,
}

/// The router's metrics; clones share them, and are one pointer, since every request holds some.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    all: Arc<All>,
}

impl Deref for Metrics {
    type Target = All;

    fn deref(&self) -> &All {
        &self.all
    }
}

/// Every metric.
#[derive(Debug)]
pub(crate) struct All {
    requests: Family<Outcome, Counter>,
    in_flight: Gauge,
    request_seconds: Histogram,
    dispatch_seconds: Histogram,
    pub(crate) token_seconds: Histogram,
    vllm: Arc<Vllm>,
    model: String,
    pub(crate) retries: Counter,
    node_failures: Family<NodeFailure, Counter>,
    failures: Family<Phase, Counter>,
    nodes: Family<Role, Gauge>,
    placements: Family<Codec, Counter>,
    decisions: Family<Decision, Counter>,
    bypasses: Family<Why, Counter>,
    local_prefills: Family<Why, Counter>,
    kv_raw_bytes: Family<Codec, Counter>,
    kv_wire_bytes: Family<Codec, Counter>,
    kv_saved_bytes: Family<Codec, Counter>,
    kv_ratio: Histogram,
    kv_encode_seconds: Histogram,
    kv_wire_seconds: Histogram,
    kv_decode_seconds: Histogram,
    prefill_seconds: Histogram,
    prefill_queue_seconds: Histogram,
    pub(crate) measured: Gauges,
    pub(crate) board: Board,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, model: &RouterModel) -> Self {
        let seconds = |name, help| registry.histogram(name, help, &SECONDS);
        let reasons = |name, help| registry.register(name, help, Family::default());
        let codecs = |name, help| registry.register(name, help, Family::default());
        let all = All {
            requests: registry.register(
                "router_requests",
                "Requests that ended, by outcome",
                Family::default(),
            ),
            in_flight: registry.gauge("router_requests_in_flight", "Requests that hold a place"),
            request_seconds: seconds("router_request_seconds", "From a request's arrival to its end"),
            dispatch_seconds: registry.histogram(
                "router_dispatch_seconds",
                "From a request's arrival to the call of its prefill node, without the wait for its decode node",
                &OVERHEAD,
            ),
            token_seconds: registry.histogram(
                "router_token_seconds",
                "From a token read from its node to its event taken by the client's connection",
                &OVERHEAD,
            ),
            vllm: Arc::new(Vllm::new(registry, &model.served_name, model.max_model_len)),
            model: model.served_name.clone(),
            retries: registry.counter("router_retries", "Requests tried on other nodes"),
            node_failures: registry.register(
                "router_node_failures",
                "Attempts that a node failed, by kind",
                Family::default(),
            ),
            failures: registry.register(
                "router_failures",
                "Attempts that failed, by the phase that they were in",
                Family::default(),
            ),
            decisions: registry.register(
                "router_pd_decisions",
                "Requests with a first token, by whether a prefill node ran the prompt",
                Family::default(),
            ),
            bypasses: reasons(
                "router_bypasses",
                "Requests whose cache was not coded or not shipped though it might, by why",
            ),
            local_prefills: reasons(
                "router_local_prefills",
                "Requests whose prompt the decode node ran, by why",
            ),
            nodes: registry.register("router_nodes", "Nodes in the cluster", Family::default()),
            placements: codecs("router_placements", "Requests with a first token, by how the cache came"),
            kv_raw_bytes: codecs("router_kv_raw_bytes", "Size in bf16 of the caches that were shipped"),
            kv_wire_bytes: codecs("router_kv_wire_bytes", "Bytes of the KV streams of these caches"),
            kv_saved_bytes: codecs("router_kv_saved_bytes", "Bytes that coding kept off the wire"),
            kv_ratio: registry.histogram(
                "router_kv_ratio",
                "Raw bytes over wire bytes of a request",
                &RATIOS,
            ),
            kv_encode_seconds: seconds("router_kv_encode_seconds", "Coding of a request's cache"),
            kv_wire_seconds: seconds("router_kv_wire_seconds", "Arrival of a request's cache"),
            kv_decode_seconds: seconds("router_kv_decode_seconds", "Decoding of a request's cache"),
            prefill_seconds: seconds("router_prefill_seconds", "Forward passes over a prompt"),
            prefill_queue_seconds: seconds("router_prefill_queue_seconds", "Wait for the prefill engine"),
            measured: Gauges::new(registry),
            board: Board::new(),
        };
        let metrics = Self { all: Arc::new(all) };
        metrics.begin_at_zero();
        metrics
    }

    /// Series of closed sets are there before anything has happened, so that the first event is seen as a rise.
    fn begin_at_zero(&self) {
        for phase in ["reserve", "prefill", "transfer", "first_token", "generation"] {
            drop(self.failures.get_or_create(&Phase { phase }));
        }
        for decision_type in ["prefill-decode", "decode-only"] {
            drop(self.decisions.get_or_create(&Decision { decision_type }));
        }
        for bypass in Bypass::ALL {
            let why = Why { reason: bypass.name() };
            drop(self.bypasses.get_or_create(&why));
            if bypass.may_be_local() {
                drop(self.local_prefills.get_or_create(&why));
            }
        }
    }

    /// A request has arrived; the record must be told how it ended.
    pub(crate) fn request(&self) -> Record {
        self.in_flight.inc();
        let entry = self.board.begin();
        Record { metrics: self.clone(), arrived: Instant::now(), entry, ended: None, span: Span::current() }
    }

    /// The cluster has so many nodes now.
    pub(crate) fn nodes(&self, prefill: usize, decode: usize) {
        for (role, count) in [("prefill", prefill), ("decode", decode)] {
            self.nodes.get_or_create(&Role { role }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A node failed a request, which may yet be tried elsewhere.
    pub(crate) fn node_failed(&self, role: &'static str, kind: &'static str) {
        self.node_failures.get_or_create(&NodeFailure { role, kind }).inc();
    }

    /// An attempt failed, or a generation.
    pub(crate) fn failed(&self, phase: &'static str) {
        self.failures.get_or_create(&Phase { phase }).inc();
    }

    /// A prefill node was called; of that the decode node was waited for so long.
    pub(crate) fn dispatched(&self, arrived: Option<Instant>, waited: Duration) {
        if let Some(arrived) = arrived {
            self.dispatch_seconds.observe(arrived.elapsed().saturating_sub(waited).as_secs_f64());
        }
    }

    /// A request has its first token: its cache is in place, and its generation begins.
    pub(crate) fn first_token(
        &self,
        arrived: Instant,
        prompt_tokens: u32,
        transfer: &KvTransfer,
        bypass: Option<Bypass>,
    ) -> Course {
        trace::describe(&self.model, prompt_tokens, transfer);
        self.decided(transfer, bypass);
        self.transferred(transfer);
        self.vllm.begin(arrived, prompt_tokens, transfer)
    }

    /// A prompt has run, and its cache is kept for a request to come.
    pub(crate) fn kept(&self, arrived: Instant, prompt_tokens: u32, stats: &PrefillStats) -> Course {
        self.prefill_seconds.observe(f64::from(stats.prefill_ms) / 1e3);
        self.prefill_queue_seconds.observe(f64::from(stats.queue_ms) / 1e3);
        self.vllm.begin_kept(arrived, prompt_tokens, stats)
    }

    fn decided(&self, transfer: &KvTransfer, bypass: Option<Bypass>) {
        let decision_type = if transfer.codec.is_some() { "prefill-decode" } else { "decode-only" };
        self.decisions.get_or_create(&Decision { decision_type }).inc();
        let Some(why) = bypass.map(|bypass| Why { reason: bypass.name() }) else { return };
        self.bypasses.get_or_create(&why).inc();
        if transfer.codec.is_none() {
            self.local_prefills.get_or_create(&why).inc();
        }
    }

    /// Bytes and times of a transfer are taken together, once, and only when a cache moved.
    fn transferred(&self, transfer: &KvTransfer) {
        let name = |codec: &str| KvCodec::named(codec).map_or("other", KvCodec::as_str);
        let codec = Codec { codec: transfer.codec.as_deref().map_or("none", name) };
        self.placements.get_or_create(&codec).inc();
        self.prefill_seconds.observe(transfer.prefill_ms / 1e3);
        self.prefill_queue_seconds.observe(transfer.queue_ms / 1e3);
        let Some(ratio) = transfer.ratio else { return };
        self.kv_raw_bytes.get_or_create(&codec).inc_by(transfer.raw_bytes);
        self.kv_wire_bytes.get_or_create(&codec).inc_by(transfer.wire_bytes);
        let saved = transfer.raw_bytes.saturating_sub(transfer.wire_bytes);
        self.kv_saved_bytes.get_or_create(&codec).inc_by(saved);
        self.kv_ratio.observe(ratio);
        self.kv_encode_seconds.observe(transfer.encode_ms / 1e3);
        self.kv_wire_seconds.observe(transfer.wire_ms / 1e3);
        self.kv_decode_seconds.observe(transfer.decode_ms / 1e3);
    }
}

/// One request's entry in the books. Dropped without an end, it was cancelled: the client has left.
#[derive(Debug)]
pub(crate) struct Record {
    metrics: Metrics,
    arrived: Instant,
    entry: Entry,
    ended: Option<Outcome>,
    /// Of the request, in its trace.
    span: Span,
}

impl Record {
    /// Status that proxies write for a client that has left; nobody sees it.
    const CLIENT_CLOSED_REQUEST: u16 = 499;

    /// When the request arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Time since the request arrived.
    pub(crate) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// Its line on the board.
    pub(crate) fn entry(&self) -> Entry {
        self.entry.clone()
    }

    /// The request has ended.
    pub(crate) fn end(&mut self, outcome: &'static str, status: u16) {
        self.entry.end(outcome);
        self.ended = Some(Outcome { outcome, status });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let cancelled = Outcome { outcome: "cancelled", status: Self::CLIENT_CLOSED_REQUEST };
        let outcome = self.ended.take().unwrap_or(cancelled);
        self.span.record("http.response.status_code", outcome.status);
        // OpenTelemetry asks that what is the client's fault be no error of the server's span.
        let has_failed_midway = outcome.status == 200 && outcome.outcome != "ok";
        if outcome.status >= 500 || has_failed_midway {
            service::trace::fail(&self.span, &outcome.outcome);
        }
        self.metrics.requests.get_or_create(&outcome).inc();
        self.metrics.in_flight.dec();
        self.metrics.request_seconds.observe(self.arrived.elapsed().as_secs_f64());
    }
}
