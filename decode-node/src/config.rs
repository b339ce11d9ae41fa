//! Flags of the decode node.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use node::{NodeArgs, PrefillFailure, Runtime};

/// What a decode node can be told.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Flags shared with prefill nodes.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Address at which prefill nodes reach this node's QUIC port [default: the interface that reaches the router].
    #[arg(long, env = "KVFERRY_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
    /// How long a reserved slot waits for its cache, in seconds.
    #[arg(long, env = "KVFERRY_TRANSFER_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub transfer_seconds: u32,
    /// How long a KV stream may stay silent, in seconds; it has to cover one chunk's prompt pass and its queue.
    #[arg(long, env = "KVFERRY_KV_SILENCE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub kv_silence_seconds: u32,
    /// With --http: what becomes of a request whose cache a prefill node should have kept and has not, or cannot deliver: an
    /// error, or a prompt pass on this node.
    #[arg(long, env = "KVFERRY_NODE_PREFILL_FAILURE", value_enum, default_value_t)]
    pub prefill_failure: PrefillFailure,
}

impl Config {
    /// Settings of a node inside another process, everything at its default but for the shared flags.
    #[must_use]
    pub fn local(node: NodeArgs) -> Self {
        Self {
            node,
            advertise: None,
            transfer_seconds: 120,
            kv_silence_seconds: 60,
            prefill_failure: PrefillFailure::default(),
        }
    }

    /// Where prefill nodes reach the node.
    pub(crate) fn kv_address(&self, runtime: &Runtime) -> SocketAddr {
        self.advertise.unwrap_or(runtime.quic_address)
    }

    pub(crate) fn transfer_deadline(&self) -> Duration {
        Duration::from_secs(self.transfer_seconds.into())
    }

    pub(crate) fn kv_silence(&self) -> Duration {
        Duration::from_secs(self.kv_silence_seconds.into())
    }
}
