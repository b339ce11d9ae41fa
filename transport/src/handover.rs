//! Where caches go and where they come from: targets of deliveries; and caches that a prefill node codes before it is known where
//! they go, and keeps until a decode node asks for them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, LeaseId, NodeId, PromptDigest, RequestId, Ticket};
use crate::message::{FinishReason, Logprobs, PrefillStats, TraceContext};

/// Where prefill delivers the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeTarget {
    /// The node expected there.
    pub node: NodeId,
    /// The run of it that holds the reservation.
    pub instance: InstanceId,
    /// Its address for KV streams.
    pub address: SocketAddr,
    /// The reservation.
    pub ticket: Ticket,
}

/// Where a coded cache is kept, and under which lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The prefill node that keeps it.
    pub node: NodeId,
    /// The run of it that gave the lease.
    pub instance: InstanceId,
    /// Its address for streams of decode nodes.
    pub address: SocketAddr,
    /// The lease.
    pub lease: LeaseId,
    /// The prompt that the cache must be of.
    pub prompt: PromptDigest,
}

/// A decode node asks a prefill node for a cache that it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliver {
    /// The request.
    pub request: RequestId,
    /// Under which the cache is kept.
    pub lease: LeaseId,
    /// The prompt that it must be of.
    pub prompt: PromptDigest,
    /// Where to deliver it; an unspecified IP address stands for the one that the decode node is seen at.
    pub target: DecodeTarget,
    /// The request's trace, if it has one.
    pub trace: Option<TraceContext>,
}

/// A cache that a prefill node keeps, and the first token behind its prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Whoever names it may have the cache delivered, once.
    pub lease: LeaseId,
    /// When the lease ends, in seconds since 1970 by the node's clock.
    pub expires: u64,
    /// First generated token; it also travels with the delivery.
    pub first_token: u32,
    /// How likely it was, if asked for.
    pub logprobs: Option<Logprobs>,
    /// Whether the token ends the generation.
    pub reason: FinishReason,
    /// What it cost.
    pub stats: PrefillStats,
}
