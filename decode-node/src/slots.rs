//! KV capacity: a session reserves room for its prompt and everything it may generate before any work is done for it,
//! so that no running session can run out; dropping the slot gives the room back.

use std::sync::Arc;

use node::compute::Cache;
use node::{Admitted, Capacity, Served};
use prometheus_client::metrics::gauge::Gauge;
use transport::message::Failure;

/// The node's capacity; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SlotPool {
    served: Arc<Served>,
    capacity: Capacity,
    used_tokens: Gauge,
}

/// Room for one session's cache.
#[derive(Debug)]
pub(crate) struct Slot {
    // Fields are dropped in this order: memory first, then the room is given back, then the gauge says so.
    pub(crate) cache: Cache,
    _admitted: Admitted,
    _used: Used,
}

/// Reserved tokens as the gauge shows them.
#[derive(Debug)]
struct Used {
    gauge: Gauge,
    tokens: i64,
}

impl SlotPool {
    pub(crate) fn new(served: Arc<Served>, capacity: Capacity, used_tokens: Gauge) -> Self {
        Self { served, capacity, used_tokens }
    }

    /// Room for a session of `tokens`, or a refusal with what is free.
    pub(crate) fn reserve(&self, tokens: u32) -> Result<Slot, Failure> {
        let admitted = self.capacity.admit(tokens)?;
        let used = Used { gauge: self.used_tokens.clone(), tokens: i64::from(tokens) };
        used.gauge.inc_by(used.tokens);
        let cache = self.served.cache(tokens as usize)?;
        Ok(Slot { cache, _admitted: admitted, _used: used })
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.gauge.dec_by(self.tokens);
    }
}
