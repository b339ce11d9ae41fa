//! Every input of a forecast as a gauge, and how often which way was chosen and why.

use std::sync::atomic::AtomicU64;

use openai::KvCodec;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use service::Registry;
use transport::ids::NodeId;
use transport::message::KvMode;

use crate::line::Line;

type Number = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Link {
    prefill: String,
    decode: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    codec: &'static str,
    mode: &'static str,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ratio {
    codec: &'static str,
    mode: &'static str,
    tier: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Choice {
    way: String,
    reason: &'static str,
}

/// The gauges; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Gauges {
    prompt_fixed: Family<Node, Number>,
    prompt_per_token: Family<Node, Number>,
    queue: Family<Node, Number>,
    links: Family<Link, Number>,
    codecs: Family<Stage, Number>,
    ratios: Family<Ratio, Number>,
    choices: Family<Choice, Counter>,
}

impl Gauges {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            prompt_fixed: registry.register(
                "router_prompt_fixed_seconds",
                "Measured part of a prompt pass that does not depend on its length, by node",
                Family::default(),
            ),
            prompt_per_token: registry.register(
                "router_prompt_token_seconds",
                "Measured part of a prompt pass that each token adds, by node",
                Family::default(),
            ),
            queue: registry.register(
                "router_prefill_wait_seconds",
                "Wait for a prefill node that the last forecast took from its load",
                Family::default(),
            ),
            links: registry.register(
                "router_link_bytes_per_second",
                "Measured speed from a prefill to a decode node",
                Family::default(),
            ),
            codecs: registry.register(
                "router_codec_bytes_per_second",
                "Measured bytes of bf16 cache coded or decoded per second",
                Family::default(),
            ),
            ratios: registry.register(
                "router_codec_ratio",
                "Raw bytes over wire bytes of the last cache of its kind",
                Family::default(),
            ),
            choices: registry.register(
                "router_choices",
                "Attempts placed, by the way they were sent and why",
                Family::default(),
            ),
        }
    }

    pub(crate) fn prompt(&self, node: &NodeId, line: Line) {
        let node = Node { node: node.0.clone() };
        self.prompt_fixed.get_or_create(&node).set(line.fixed_ms / 1e3);
        self.prompt_per_token.get_or_create(&node).set(line.ms_per_token / 1e3);
    }

    pub(crate) fn queue(&self, node: &NodeId, ms: f64) {
        self.queue.get_or_create(&Node { node: node.0.clone() }).set(ms / 1e3);
    }

    pub(crate) fn link(&self, prefill: &NodeId, decode: &NodeId, gbps: f64) {
        let link = Link { prefill: prefill.0.clone(), decode: decode.0.clone() };
        self.links.get_or_create(&link).set(gbps * 1e9 / 8.0);
    }

    pub(crate) fn codec(&self, codec: KvCodec, mode: KvMode, stage: &'static str, bytes_per_second: f64) {
        let stage = Stage { codec: codec.as_str(), mode: mode.name(), stage };
        self.codecs.get_or_create(&stage).set(bytes_per_second);
    }

    /// Tier 0 for codecs without tiers.
    pub(crate) fn ratio(&self, codec: KvCodec, mode: KvMode, tier: u8, ratio: f64) {
        let label = Ratio { codec: codec.as_str(), mode: mode.name(), tier };
        self.ratios.get_or_create(&label).set(ratio);
    }

    pub(crate) fn chose(&self, way: String, reason: &'static str) {
        self.choices.get_or_create(&Choice { way, reason }).inc();
    }

    pub(crate) fn forget_link(&self, prefill: &NodeId, decode: &NodeId) {
        self.links.remove(&Link { prefill: prefill.0.clone(), decode: decode.0.clone() });
    }

    pub(crate) fn forget_node(&self, node: &NodeId) {
        let node = Node { node: node.0.clone() };
        self.prompt_fixed.remove(&node);
        self.prompt_per_token.remove(&node);
        self.queue.remove(&node);
    }
}
