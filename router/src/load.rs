//! How busy the cluster is, under vLLM's names, worked out when it is read from what the nodes' heartbeats have said.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use transport::message::{Load, Role};

use crate::cluster::Cluster;

/// Gauges over all nodes.
#[derive(Debug)]
pub(crate) struct ClusterLoad {
    pub(crate) cluster: Cluster,
    pub(crate) model: String,
}

/// What the nodes of the cluster come to together.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Sum {
    running: u32,
    waiting: u32,
    /// Share of the decode nodes' cache that is reserved.
    kv_usage: f64,
}

impl Sum {
    /// Sums over nodes, each with its role, its load and its capacity in cache tokens. A session that waits for a cache is
    /// counted once: where its prompt is, as long as a prefill node has it.
    fn of(nodes: &[(Role, Load, u32)]) -> Self {
        let sum = |role, part: fn(&Load) -> u32| -> u32 {
            nodes.iter().filter(|node| node.0 == role).map(|node| part(&node.1)).sum()
        };
        let (prompts_running, prompts_waiting) =
            (sum(Role::Prefill, |load| load.running), sum(Role::Prefill, |load| load.waiting));
        let sessions_waiting = sum(Role::Decode, |load| load.waiting);
        let elsewhere = prompts_running + prompts_waiting;
        let capacity: u64 =
            nodes.iter().filter(|node| node.0 == Role::Decode).map(|node| u64::from(node.2)).sum();
        Self {
            running: prompts_running + sum(Role::Decode, |load| load.running),
            waiting: prompts_waiting + sessions_waiting.saturating_sub(elsewhere),
            kv_usage: f64::from(sum(Role::Decode, |load| load.kv_used_tokens)) / capacity.max(1) as f64,
        }
    }
}

impl Collector for ClusterLoad {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Sum { running, waiting, kv_usage } = Sum::of(&self.cluster.loads());
        let labels = [("model_name", self.model.as_str()), ("engine", "0")];
        for (name, help, value) in [
            ("vllm:num_requests_running", "Requests that nodes work on.", f64::from(running)),
            (
                "vllm:num_requests_waiting",
                "Requests that nodes have admitted and that wait.",
                f64::from(waiting),
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Share of the decode nodes' KV cache that is reserved, 1 is all of it.",
                kv_usage,
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(running: u32, waiting: u32, kv_used_tokens: u32) -> Load {
        Load { running, waiting, kv_used_tokens, ..Load::default() }
    }

    #[test]
    fn a_split_request_is_counted_once() {
        // One prompt runs and one waits, and decode holds a slot for each; one session generates.
        let nodes = [
            (Role::Prefill, load(1, 1, 700), 1000),
            (Role::Decode, load(1, 2, 300), 1000),
            (Role::Decode, load(0, 0, 0), 500),
        ];
        assert_eq!(Sum::of(&nodes), Sum { running: 2, waiting: 1, kv_usage: 0.2 });
    }

    #[test]
    fn sessions_whose_prompt_runs_nowhere_else_wait() {
        assert_eq!(Sum::of(&[(Role::Decode, load(0, 3, 0), 10)]).waiting, 3);
        assert_eq!(Sum::of(&[]), Sum::default());
    }
}
