//! The objects of `GET /board` and of its feed (docs/http-api.md). Times of day are milliseconds since 1970.

use std::net::SocketAddr;

use openai::{KvCodec, KvTransfer};
use serde::Serialize;
use transport::ids::RequestId;
use transport::message::KvCoding;

use crate::board::totals::TotalsView;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Looks for nodes.
    Placing,
    /// Has nodes, and no token yet: the prompt runs or its cache travels.
    Prefill,
    /// Tokens come.
    Decode,
    Done,
    /// The client has left.
    Cancelled,
    Failed,
}

/// How much a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// One for each prompt and `n`.
    pub(crate) sequences: usize,
    /// Of all prompts.
    pub(crate) prompt_tokens: u32,
    /// Of all sequences.
    pub(crate) max_tokens: u32,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RequestView {
    /// Counts admitted requests from 0.
    pub(crate) number: u64,
    pub(crate) id: String,
    pub(crate) state: State,
    /// `"ok"`, `"cancelled"` or an error's code, as in the metrics; none while it runs.
    pub(crate) outcome: Option<&'static str>,
    pub(crate) arrived: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) sequences: usize,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    /// Generated so far.
    pub(crate) tokens: u32,
    /// Pairs of nodes tried, by all sequences.
    pub(crate) attempts: u32,
    pub(crate) prefill_node: Option<String>,
    pub(crate) decode_node: Option<String>,
    pub(crate) codec: Option<String>,
    pub(crate) tier: Option<u8>,
    pub(crate) mode: Option<&'static str>,
    /// The report that the client can ask for; none before the first token.
    pub(crate) kv_transfer: Option<KvTransfer>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NodeView {
    pub(crate) id: String,
    pub(crate) role: &'static str,
    /// Where its connection to the router comes from.
    pub(crate) address: SocketAddr,
    /// As its last heartbeat says.
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    pub(crate) kv_used_tokens: u32,
    pub(crate) draining: bool,
    /// Requests that the router has given it.
    pub(crate) assigned: u32,
    pub(crate) max_sessions: u32,
    pub(crate) kv_capacity_tokens: u32,
    pub(crate) has_plan: bool,
    /// Whole seconds since its last heartbeat; they come every second.
    pub(crate) silent_seconds: u64,
}

/// A measured path from a prefill to a decode node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LinkView {
    pub(crate) prefill: String,
    pub(crate) decode: String,
    pub(crate) gbps: f64,
}

/// Everything: the answer of `GET /board`, and the first event of the feed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) now: u64,
    pub(crate) model: String,
    pub(crate) max_model_len: u32,
    pub(crate) totals: TotalsView,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) links: Vec<LinkView>,
    /// Oldest first.
    pub(crate) requests: Vec<RequestView>,
}

/// What has changed since the event before.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Change {
    pub(crate) now: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) totals: Option<TotalsView>,
    /// New and changed ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nodes: Vec<NodeView>,
    /// Ids of nodes that have left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) gone: Vec<String>,
    /// All of them, if one has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) links: Option<Vec<LinkView>>,
    /// New and changed ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) requests: Vec<RequestView>,
    /// Number and tokens so far of running requests of which nothing else has changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tokens: Vec<(u64, u32)>,
}

/// What the ring gives a reader that knows an earlier version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    pub(crate) version: u64,
    pub(crate) requests: Vec<RequestView>,
    /// Of running requests that are not among `requests`.
    pub(crate) tokens: Vec<(u64, u32)>,
    /// None if nothing has changed.
    pub(crate) totals: Option<TotalsView>,
}

impl RequestView {
    pub(crate) fn new(id: RequestId, arrived: u64, sizes: Sizes) -> Self {
        let Sizes { sequences, prompt_tokens, max_tokens } = sizes;
        Self {
            number: 0,
            id: id.to_string(),
            state: State::Placing,
            outcome: None,
            arrived,
            ended: None,
            sequences,
            prompt_tokens,
            max_tokens,
            tokens: 0,
            attempts: 0,
            prefill_node: None,
            decode_node: None,
            codec: None,
            tier: None,
            mode: None,
            kv_transfer: None,
        }
    }
}

impl Change {
    /// Whether there is anything to tell.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self { now: self.now, ..Self::default() }
    }
}

/// The tier of a coding whose codec has tiers.
pub(crate) fn tier(coding: &KvCoding) -> Option<u8> {
    KvCodec::named(&coding.codec).is_some_and(KvCodec::is_transform).then_some(coding.tier)
}
