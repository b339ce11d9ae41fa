//! Every message of the cluster on one page.
//!
//! ```text
//! first stream     dialler -> other   Hello             other   -> dialler  Welcome | Refused
//! control stream   node    -> router  Register, then Heartbeat for ever
//! request stream   router  -> decode  Reserve           decode  -> router   Reserved, Ready, Token.., Finished | Fail
//! request stream   router  -> prefill Prefill           prefill -> router   Prefilled | Kept | Fail
//! request stream   decode  -> prefill Deliver           prefill -> decode   Prefilled | Fail
//! KV stream        prefill -> decode  Begin, data.., End decode -> prefill  Accepted | Fail
//! ```
//!
//! Messages are postcard-encoded inside bounded frames (see [`crate::frame`]); a KV chunk is a data frame of
//! opaque bytes. Resetting a stream, in either direction, cancels what it carries.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use crate::handover::{DecodeTarget, Deliver, Holder, Kept};
use crate::ids::{InstanceId, NodeId, RequestId, Ticket};
pub use crate::sampling::{Logprobs, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, Sampling};

/// What a process is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Takes client requests and places them.
    Router,
    /// Runs prompt passes.
    Prefill,
    /// Continues generations.
    Decode,
}

impl Role {
    /// The role in node names, log lines, metric labels and names of certificates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What two peers must agree on before any KV cache may pass between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The served model id, for people.
    pub model_id: String,
    /// Digest of configuration and weights, for certainty.
    pub fingerprint: [u8; 16],
    /// Element type of the cache, `bf16`.
    pub kv_dtype: String,
    /// Layers of the cache.
    pub layers: u32,
    /// KV heads per layer.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Content id of the calibrated plan, or none when only plan-free codecs can be spoken.
    pub plan_id: Option<[u8; 16]>,
    /// KV container format versions that this process reads and writes.
    pub kv_format_versions: Vec<u16>,
}

/// First message on every connection, in both directions; see [`crate::handshake`] for what is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who speaks.
    pub node: NodeId,
    /// As what.
    pub role: Role,
    /// With which model.
    pub model: ModelIdentity,
    /// Which run of that node; tells a node that was started again from the one that it replaces.
    pub instance: InstanceId,
}

impl Hello {
    /// The first message of a process that has just started.
    #[must_use]
    pub fn new(node: NodeId, role: Role, model: ModelIdentity) -> Self {
        Self { node, role, model, instance: InstanceId::random() }
    }
}

/// A node's offer to the router, once per connection after the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Where other nodes reach this one: prefill nodes a decode node with KV streams, decode nodes a prefill node that keeps
    /// a cache for them. None for a prefill node that keeps none.
    pub kv_address: Option<SocketAddr>,
    /// Longest prompt plus generation that one session may have, in tokens.
    pub max_session_tokens: u32,
    /// Cache capacity over all sessions, in tokens.
    pub kv_capacity_tokens: u32,
    /// Concurrent requests the node admits before it answers [`FailureKind::Busy`].
    pub max_sessions: u32,
    /// Tokens of a prompt that it runs, and streams, as one chunk.
    pub chunk_tokens: u32,
    /// Tokens of a cache that it codes as one chunk after the prompt (prefill nodes only, otherwise 0).
    pub after_chunk_tokens: u32,
    /// Tokens of finished prompts that it keeps for those that begin alike (prefill nodes only, otherwise 0).
    pub prefix_cache_tokens: u32,
}

/// How busy a node is, sent at every heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Requests being worked on.
    pub running: u32,
    /// Requests admitted and waiting.
    pub waiting: u32,
    /// Requests that are done and still hold their places, since a decode node will ask for their caches (prefill nodes only).
    pub kept: u32,
    /// Cache tokens reserved.
    pub kv_used_tokens: u32,
    /// The node finishes what it has and takes nothing new.
    pub is_draining: bool,
}

/// Messages a node sends on its control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Join the cluster.
    Register(Register),
    /// Still here.
    Heartbeat(Load),
}

/// How a KV cache is to be coded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCoding {
    /// Name of the codec, as in the API's `kv_codec`.
    pub codec: String,
    /// Body ratio aimed at, where the codec has tiers.
    pub tier: u8,
    /// When it is coded and sent.
    pub mode: KvMode,
}

/// When a cache is coded and sent. The coded bytes say themselves how to read them; a decode node only reports this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvMode {
    /// Each chunk while the next one computes; every codec can.
    #[default]
    Stream,
    /// All of it when the prompt is done, with steps that depend on the attention each token received; `kvtc` can.
    After,
}

impl KvMode {
    /// The mode in the API's `kv_mode`, log lines and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::After => "after",
        }
    }
}

/// Where a decode node's cache for a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvSource {
    /// A prefill node will deliver it against the ticket.
    Remote,
    /// The decode node runs the prompt itself.
    Local {
        /// The prompt.
        token_ids: Vec<u32>,
    },
    /// A prefill node keeps it already; the decode node asks for it with [`Request::Deliver`].
    Kept(Holder),
}

/// Where a message belongs in a trace: what W3C calls a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The sender's span.
    pub span_id: [u8; 8],
    /// W3C trace flags.
    pub flags: u8,
}

/// Router asks decode for a slot, before any prefill starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reserve {
    /// The request.
    pub request: RequestId,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Tokens to generate at most, the first one included.
    pub max_tokens: u32,
    /// How to draw them.
    pub sampling: Sampling,
    /// Distinct tokens of the prompt in ascending order, where draws depend on them and the cache comes from elsewhere;
    /// otherwise none. See [`Sampling::penalized`].
    pub prompt_ids: Vec<u32>,
    /// Where the cache comes from.
    pub source: KvSource,
    /// The request's trace, if it has one.
    pub trace: Option<TraceContext>,
}

/// Router asks prefill to run a prompt and deliver its cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prefill {
    /// The request.
    pub request: RequestId,
    /// The prompt.
    pub token_ids: Vec<u32>,
    /// It shares the caches of prompts that have the same here; a digest of what the client said.
    pub cache_salt: Option<[u8; 16]>,
    /// How to draw the first token.
    pub sampling: Sampling,
    /// How to code the cache.
    pub coding: KvCoding,
    /// Where to deliver it; none to keep it, coded, under a lease.
    pub target: Option<DecodeTarget>,
    /// The request's trace, if it has one.
    pub trace: Option<TraceContext>,
}

/// First frame of a request stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// To a decode node.
    Reserve(Reserve),
    /// To a prefill node.
    Prefill(Prefill),
    /// From a decode node to a prefill node.
    Deliver(Deliver),
}

/// What the prompt pass cost on the prefill node; travels with [`KvStream::End`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefillStats {
    /// Tokens of the prompt whose cache an earlier prompt had left.
    pub cached_tokens: u32,
    /// Wait for the engine, in milliseconds.
    pub queue_ms: f32,
    /// Forward passes over the rest of the prompt, in milliseconds.
    pub prefill_ms: f32,
    /// Coding of the cache, summed over chunks, in milliseconds.
    pub encode_ms: f32,
    /// Share of the time spent coding and sending, each summed over chunks, that lay before the end of the last forward
    /// pass: 0 when all of it followed, near 1 when the prompt pass hid it. Time in QUIC's own buffers is not seen.
    pub overlap: f32,
    /// Speed of the path to the decode node in gigabits per second, as measured on this connection up to now
    /// ([`crate::Sender::link_gbps`]); 0 before there was enough to measure, and for a local prefill.
    pub link_gbps: f32,
}

/// What one cache transfer was; travels with [`FromDecode::Ready`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// How the cache was coded; none for a local prefill.
    pub coding: Option<KvCoding>,
    /// The prefill node that delivered it; none for a local prefill.
    pub prefill_node: Option<NodeId>,
    /// Size of the prompt's cache in bf16.
    pub raw_bytes: u64,
    /// Every byte that was written to the request's KV stream, frame headers included.
    pub wire_bytes: u64,
    /// Time during which a frame of the transfer was arriving, in milliseconds (idle gaps excluded).
    pub wire_ms: f32,
    /// Decoding of the cache, summed over chunks, in milliseconds.
    pub decode_ms: f32,
    /// The prefill side.
    pub prefill: PrefillStats,
}

/// Why a generation ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// An end-of-sequence token, or one of [`Sampling::stop_token_ids`].
    Stop,
    /// `max_tokens` reached.
    Length,
}

/// Decode to router, on the request stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromDecode {
    /// The slot is held; the ticket opens it.
    Reserved {
        /// To be handed to a prefill node.
        ticket: Ticket,
    },
    /// The cache is complete and verified; this is the first token.
    Ready {
        /// The token that prefill (or the local prompt pass) sampled.
        first_token: u32,
        /// How likely it was, if asked for.
        logprobs: Option<Logprobs>,
        /// What the transfer was.
        transfer: Transfer,
    },
    /// One more token.
    Token {
        /// Its id.
        id: u32,
        /// How likely it was, if asked for.
        logprobs: Option<Logprobs>,
    },
    /// No more tokens.
    Finished {
        /// Why.
        reason: FinishReason,
    },
    /// It went wrong.
    Fail(Failure),
}

/// Prefill to router, or to the decode node that asked for a delivery, on the request stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromPrefill {
    /// The cache was delivered and accepted by decode.
    Prefilled,
    /// It went wrong.
    Fail(Failure),
    /// The cache is coded and kept, as a [`Prefill`] without a target asks.
    Kept(Kept),
}

/// Prefill to decode, on a KV stream; chunks travel between `Begin` and `End` as data frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum KvStream {
    /// Opens the delivery.
    Begin {
        /// The reservation to fill.
        ticket: Ticket,
        /// How the chunks are coded.
        coding: KvCoding,
        /// Length of the prompt.
        prompt_tokens: u32,
        /// The delivery in the request's trace, if it has one.
        trace: Option<TraceContext>,
    },
    /// Everything was sent.
    End {
        /// Number of data frames sent.
        chunks: u32,
        /// BLAKE3 of all data frames in order, first 16 bytes.
        digest: [u8; 16],
        /// First generated token.
        first_token: u32,
        /// How likely it was, if asked for.
        logprobs: Option<Logprobs>,
        /// What it cost.
        stats: PrefillStats,
    },
}

/// Decode to prefill, on a KV stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum KvReply {
    /// Complete and verified.
    Accepted,
    /// It went wrong.
    Fail(Failure),
}

/// What kind of failure, so that the router can choose between answering and trying elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request itself is wrong; trying again elsewhere gives the same.
    Invalid,
    /// No room now.
    Busy,
    /// A deadline passed.
    Timeout,
    /// The cache that arrived was not what was promised.
    Transfer,
    /// The peer needed for this request cannot be reached.
    Unreachable,
    /// The node is shutting down.
    Draining,
    /// A fault inside the node.
    Internal,
}

/// A failure in words that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For the router's decision.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}
