//! Flags of the prefill node.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use node::prompt::AFTER_CHUNK_TOKENS;
use node::{NodeArgs, Served};

use crate::MAX_CHUNK_BYTES;

/// Tokens kept in host memory by default: half a gigabyte of Llama 3.2 1B.
const HOST_PREFIX_CACHE_TOKENS: u32 = 16_384;

/// What a prefill node can be told.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Flags shared with decode nodes.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Tokens of a cache that are coded and sent as one chunk once the prompt is done (kv_mode "after"), less where so many
    /// would not fit a frame: large chunks code better, small ones overlap coding with the wire.
    #[arg(long, env = "KVFERRY_AFTER_CHUNK_TOKENS", default_value_t = AFTER_CHUNK_TOKENS as u32, value_parser = clap::value_parser!(u32).range(16..=8192))]
    pub after_chunk_tokens: u32,
    /// Tokens of finished prompts' caches that are kept for prompts that begin alike; 0 keeps none. In host memory they come on top of
    /// --kv-capacity-tokens, on a GPU they fill what prompts leave free of it [default: 16384 in host memory, all of it on a GPU].
    #[arg(long, env = "KVFERRY_PREFIX_CACHE_TOKENS")]
    pub prefix_cache_tokens: Option<u32>,
    /// How long reaching a decode node may take, in seconds.
    #[arg(long, env = "KVFERRY_DIAL_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub dial_seconds: u32,
    /// How long a decode node may take to accept a cache after its last byte, in seconds.
    #[arg(long, env = "KVFERRY_ACCEPT_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub accept_seconds: u32,
    /// Address at which decode nodes reach this node's QUIC port, for caches that it keeps [default: the interface that reaches
    /// the router].
    #[arg(long, env = "KVFERRY_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
    /// How long a coded cache is kept for the decode node that will ask for it (kv_transfer_params), in seconds; until then
    /// its prompt counts as one that the node has.
    #[arg(long, env = "KVFERRY_LEASE_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub lease_seconds: u32,
}

impl Config {
    /// Settings of a node inside another process, everything at its default but for the shared flags.
    #[must_use]
    pub fn local(node: NodeArgs) -> Self {
        Self {
            node,
            after_chunk_tokens: AFTER_CHUNK_TOKENS as u32,
            prefix_cache_tokens: None,
            dial_seconds: 5,
            accept_seconds: 30,
            advertise: None,
            lease_seconds: 120,
        }
    }

    /// Tokens of a chunk that is coded after the prompt, for caches of so many bytes a token.
    pub(crate) fn after_chunk(&self, bytes_per_token: usize) -> usize {
        (self.after_chunk_tokens as usize).min(MAX_CHUNK_BYTES / bytes_per_token)
    }

    pub(crate) fn lease_time(&self) -> Duration {
        Duration::from_secs(self.lease_seconds.into())
    }

    /// Tokens of prompts that are done that are kept.
    pub(crate) fn prefix_cache(&self, served: &Served) -> u32 {
        let all = self.node.kv_capacity_tokens;
        let usual = if served.keeps_in_pool() { all } else { HOST_PREFIX_CACHE_TOKENS };
        self.prefix_cache_tokens.unwrap_or(usual)
    }

    pub(crate) fn dial_deadline(&self) -> Duration {
        Duration::from_secs(self.dial_seconds.into())
    }

    pub(crate) fn accept_deadline(&self) -> Duration {
        Duration::from_secs(self.accept_seconds.into())
    }
}
