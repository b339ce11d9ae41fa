//! What the router counts: requests and how they ended, times as clients feel them, bytes of caches, the cluster.

use std::time::{Duration, Instant};

use openai::KvTransfer;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use service::Registry;
use service::metrics::{RATIOS, SECONDS};

use crate::board::{Board, Entry};
use crate::measured::Gauges;

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
    codec: String,
}

/// The router's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<Outcome, Counter>,
    in_flight: Gauge,
    request_seconds: Histogram,
    pub(crate) ttft_seconds: Histogram,
    pub(crate) inter_token_seconds: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) retries: Counter,
    node_failures: Family<NodeFailure, Counter>,
    nodes: Family<Role, Gauge>,
    placements: Family<Codec, Counter>,
    kv_raw_bytes: Family<Codec, Counter>,
    kv_wire_bytes: Family<Codec, Counter>,
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
    pub(crate) fn new(registry: &Registry) -> Self {
        let seconds = |name, help| registry.histogram(name, help, &SECONDS);
        let codecs = |name, help| registry.register(name, help, Family::default());
        Self {
            requests: registry.register(
                "router_requests",
                "Requests that ended, by outcome",
                Family::default(),
            ),
            in_flight: registry.gauge("router_requests_in_flight", "Requests that hold a place"),
            request_seconds: seconds("router_request_seconds", "From a request's arrival to its end"),
            ttft_seconds: seconds("router_ttft_seconds", "From a request's arrival to its first token"),
            inter_token_seconds: seconds("router_inter_token_seconds", "Between two tokens of a request"),
            prompt_tokens: registry.counter("router_prompt_tokens", "Prompt tokens of requests placed"),
            generated_tokens: registry.counter("router_generated_tokens", "Tokens generated"),
            retries: registry.counter("router_retries", "Requests tried on other nodes"),
            node_failures: registry.register(
                "router_node_failures",
                "Attempts that a node failed, by kind",
                Family::default(),
            ),
            nodes: registry.register("router_nodes", "Nodes in the cluster", Family::default()),
            placements: codecs("router_placements", "Requests with a first token, by how the cache came"),
            kv_raw_bytes: codecs("router_kv_raw_bytes", "Size in bf16 of the caches that were shipped"),
            kv_wire_bytes: codecs("router_kv_wire_bytes", "Bytes of the KV streams of these caches"),
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
        }
    }

    /// A request has arrived; the record must be told how it ended.
    pub(crate) fn request(&self) -> Record {
        self.in_flight.inc();
        let entry = self.board.begin();
        Record { metrics: self.clone(), arrived: Instant::now(), entry, ended: None }
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

    /// A cache is in place.
    pub(crate) fn transferred(&self, transfer: &KvTransfer) {
        let codec = Codec { codec: transfer.codec.clone().unwrap_or_else(|| "none".into()) };
        self.placements.get_or_create(&codec).inc();
        self.prefill_seconds.observe(transfer.prefill_ms / 1e3);
        self.prefill_queue_seconds.observe(transfer.queue_ms / 1e3);
        let Some(ratio) = transfer.ratio else { return };
        self.kv_raw_bytes.get_or_create(&codec).inc_by(transfer.raw_bytes);
        self.kv_wire_bytes.get_or_create(&codec).inc_by(transfer.wire_bytes);
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
        self.metrics.requests.get_or_create(&outcome).inc();
        self.metrics.in_flight.dec();
        self.metrics.request_seconds.observe(self.arrived.elapsed().as_secs_f64());
    }
}
