//! Flags of the prefill node.

use std::time::Duration;

use clap::Args;
use node::NodeArgs;

/// What a prefill node can be told.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Flags shared with decode nodes.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How long reaching a decode node may take, in seconds.
    #[arg(long, env = "KVFERRY_DIAL_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub dial_seconds: u32,
    /// How long a decode node may take to accept a cache after its last byte, in seconds.
    #[arg(long, env = "KVFERRY_ACCEPT_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub accept_seconds: u32,
}

impl Config {
    /// Settings of a node inside another process, everything at its default but for the shared flags.
    #[must_use]
    pub fn local(node: NodeArgs) -> Self {
        Self { node, dial_seconds: 5, accept_seconds: 30 }
    }

    pub(crate) fn dial_deadline(&self) -> Duration {
        Duration::from_secs(self.dial_seconds.into())
    }

    pub(crate) fn accept_deadline(&self) -> Duration {
        Duration::from_secs(self.accept_seconds.into())
    }
}
