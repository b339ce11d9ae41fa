//! Caches that wait, coded, for a decode node to ask for them. Each is kept under a lease, with its prompt's admission, until
//! a decode node has accepted it or the lease ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use model::Drawn;
use node::Admitted;
use node::failure::{fail, invalid, transfer};
use prometheus_client::metrics::gauge::Gauge;
use service::Shutdown;
use tokio::task::AbortHandle;
use tracing::info;
use transport::ids::{LeaseId, PromptDigest};
use transport::message::{Failure, FailureKind, KvCoding, PrefillStats};

use crate::busy::Busy;
use crate::metrics::Metrics;

/// A prompt's cache, coded, with all that its delivery says.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) prompt: PromptDigest,
    pub(crate) tokens: usize,
    pub(crate) coding: KvCoding,
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) first: Drawn,
    pub(crate) stats: PrefillStats,
    pub(crate) busy: Busy,
    pub(crate) prompt_done: Instant,
}

/// The node's leases; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    all: Arc<Mutex<HashMap<LeaseId, Lease>>>,
    time: Duration,
    metrics: Metrics,
    shutdown: Shutdown,
}

#[derive(Debug)]
struct Lease {
    held: Arc<Held>,
    /// Whether a delivery is on its way.
    is_out: bool,
    _timer: Timer,
}

/// A cache and its room in the node, given back together.
#[derive(Debug)]
struct Held {
    cache: Cache,
    active: Gauge,
    _admitted: Admitted,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.active.dec();
    }
}

/// Ends a lease that nobody has used; ends with it.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A cache on its way to a decode node. Dropped before it was accepted, it can be asked for again.
#[derive(Debug)]
pub(crate) struct Taken {
    leases: Leases,
    id: LeaseId,
    held: Arc<Held>,
    is_accepted: bool,
}

impl Leases {
    /// Leases that last so long. A drain waits for them as it does for other work.
    pub(crate) fn new(time: Duration, metrics: Metrics, shutdown: Shutdown) -> Self {
        Self { all: Arc::default(), time, metrics, shutdown }
    }

    /// Keeps a cache; says under which lease, and when that ends in seconds since 1970.
    pub(crate) fn keep(&self, cache: Cache, admitted: Admitted) -> (LeaseId, u64) {
        let (id, active) = (LeaseId::random(), self.metrics.leases_active.clone());
        active.inc();
        let held = Arc::new(Held { cache, active, _admitted: admitted });
        let (leases, time) = (self.clone(), self.time);
        let mut all = self.lock();
        // The timer needs the lock, too, so it does not come before its lease.
        let timer = self.shutdown.spawn(async move {
            tokio::time::sleep(time).await;
            leases.expire(id);
        });
        all.insert(id, Lease { held, is_out: false, _timer: Timer(timer.abort_handle()) });
        let ends = SystemTime::now() + time;
        (id, ends.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// Takes a cache out for delivery, if it is one of this prompt.
    pub(crate) fn take(&self, id: LeaseId, prompt: PromptDigest) -> Result<Taken, Failure> {
        let mut all = self.lock();
        let seconds = self.time.as_secs();
        let unknown = || {
            let message = format!(
                "there is no such lease: its cache was delivered already, or not asked for within {seconds} seconds (--lease-seconds)"
            );
            transfer(message)
        };
        let lease = all.get_mut(&id).ok_or_else(unknown)?;
        if lease.held.cache.prompt != prompt {
            return Err(invalid("the cache under this lease is of another prompt"));
        }
        if std::mem::replace(&mut lease.is_out, true) {
            return Err(fail(FailureKind::Busy, "the cache under this lease is being delivered already"));
        }
        let held = Arc::clone(&lease.held);
        Ok(Taken { leases: self.clone(), id, held, is_accepted: false })
    }

    /// Gives a cache up that nobody will ask for.
    pub(crate) fn give_up(&self, id: LeaseId) {
        // What it holds is freed behind the lock.
        let lease = self.lock().remove(&id);
        drop(lease);
    }

    fn expire(&self, id: LeaseId) {
        let lease = self.lock().remove(&id);
        if let Some(lease) = lease.filter(|lease| !lease.is_out) {
            self.metrics.leases_expired.inc();
            info!(%id, tokens = lease.held.cache.tokens, "nobody has asked for a cache in time");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseId, Lease>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// What is delivered.
    pub(crate) fn cache(&self) -> &Cache {
        &self.held.cache
    }

    /// A decode node has it: the lease is over.
    pub(crate) fn accepted(mut self) {
        self.is_accepted = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.is_accepted {
            return self.leases.give_up(self.id);
        }
        // None: the lease has ended meanwhile.
        if let Some(lease) = self.leases.lock().get_mut(&self.id) {
            lease.is_out = false;
        }
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
