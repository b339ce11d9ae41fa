//! KV capacity: a session reserves room for its prompt and everything it may generate before any work is done for it,
//! so that no running session can run out; dropping the slot gives the room back.

use std::sync::Arc;

use node::compute::Cache;
use node::{Admitted, Capacity, Served};
use transport::message::Failure;

use crate::metrics::Metrics;

/// The node's capacity; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SlotPool {
    served: Arc<Served>,
    capacity: Capacity,
    metrics: Metrics,
}

/// Room for one session's cache.
#[derive(Debug)]
pub(crate) struct Slot {
    // Fields are dropped in this order: memory first, then the room is given back, then the gauge says so.
    pub(crate) cache: Cache,
    _admitted: Admitted,
    _used: Used,
}

/// A slot and its tokens as the gauges show them.
#[derive(Debug)]
struct Used {
    metrics: Metrics,
    tokens: i64,
}

impl Used {
    fn new(metrics: &Metrics, tokens: u32) -> Self {
        let tokens = i64::from(tokens);
        metrics.slots_held.inc();
        metrics.kv_used_tokens.inc_by(tokens);
        Self { metrics: metrics.clone(), tokens }
    }
}

impl SlotPool {
    pub(crate) fn new(served: Arc<Served>, capacity: Capacity, metrics: Metrics) -> Self {
        Self { served, capacity, metrics }
    }

    /// Room for a session of `tokens`, or a refusal with what is free.
    pub(crate) fn reserve(&self, tokens: u32) -> Result<Slot, Failure> {
        let admitted = self.capacity.admit(tokens)?;
        let used = Used::new(&self.metrics, tokens);
        let cache = self.served.cache(tokens as usize)?;
        Ok(Slot { cache, _admitted: admitted, _used: used })
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.metrics.slots_held.dec();
        self.metrics.kv_used_tokens.dec_by(self.tokens);
    }
}
