//! KV capacity: a session reserves room for its prompt and everything it may generate before any work is done for it,
//! so that no running session can run out; dropping the slot gives the room back.

use std::sync::Arc;

use half::bf16;
use model::{Config, KvCache};
use node::failure::fail;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use transport::message::{Failure, FailureKind};

/// The node's capacity; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SlotPool {
    model: Config,
    tokens: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    used_tokens: Gauge,
}

/// Room for one session's cache.
#[derive(Debug)]
pub(crate) struct Slot {
    // Fields are dropped in this order: memory first, then the room is given back, then the gauge says so.
    pub(crate) cache: KvCache<bf16>,
    _tokens: OwnedSemaphorePermit,
    _session: OwnedSemaphorePermit,
    _used: Used,
}

/// Reserved tokens as the gauge shows them.
#[derive(Debug)]
struct Used {
    gauge: Gauge,
    tokens: i64,
}

impl SlotPool {
    pub(crate) fn new(model: Config, capacity_tokens: u32, sessions: u32, used_tokens: Gauge) -> Self {
        Self {
            model,
            tokens: Arc::new(Semaphore::new(capacity_tokens as usize)),
            sessions: Arc::new(Semaphore::new(sessions as usize)),
            used_tokens,
        }
    }

    /// Room for a session of `tokens`, or [`FailureKind::Busy`] with what is free.
    pub(crate) fn reserve(&self, tokens: u32) -> Result<Slot, Failure> {
        let no_session =
            |_| fail(FailureKind::Busy, "the decode node has as many sessions as it takes (--max-num-seqs)");
        let session = Arc::clone(&self.sessions).try_acquire_owned().map_err(no_session)?;
        let no_room = |_| {
            let free = self.tokens.available_permits();
            let message = format!("{tokens} cache tokens wanted, {free} free (--kv-capacity-tokens)");
            fail(FailureKind::Busy, message)
        };
        let permit = Arc::clone(&self.tokens).try_acquire_many_owned(tokens).map_err(no_room)?;
        let used = Used { gauge: self.used_tokens.clone(), tokens: i64::from(tokens) };
        used.gauge.inc_by(used.tokens);
        let cache = KvCache::new(&self.model, tokens as usize);
        Ok(Slot { cache, _tokens: permit, _session: session, _used: used })
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.gauge.dec_by(self.tokens);
    }
}
