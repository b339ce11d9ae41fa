//! How busy the node is, under the names that vLLM coined: endpoint pickers read these three from every model server. They are
//! worked out when they are read, from what the heartbeats say.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use transport::message::Load;

/// Gauges over a node's load.
pub(crate) struct LoadGauges<F> {
    pub(crate) load: F,
    pub(crate) kv_capacity_tokens: u32,
    pub(crate) model: String,
}

impl<F> fmt::Debug for LoadGauges<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadGauges").field("model", &self.model).finish_non_exhaustive()
    }
}

impl<F: Fn() -> Load + Send + Sync + 'static> Collector for LoadGauges<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let load = (self.load)();
        let labels = [("model_name", self.model.as_str()), ("engine", "0")];
        let usage = f64::from(load.kv_used_tokens) / f64::from(self.kv_capacity_tokens.max(1));
        for (name, help, value) in [
            ("vllm:num_requests_running", "Requests that the node works on.", f64::from(load.running)),
            (
                "vllm:num_requests_waiting",
                "Requests that the node has admitted and that wait.",
                f64::from(load.waiting),
            ),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache that is reserved, 1 is all of it.", usage),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
