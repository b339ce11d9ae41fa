//! One request as client and stub nodes see it: both are in this process, so their instants are of one clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use transport::ids::RequestId;

/// What the stub nodes note of a request, for its client to read.
#[derive(Debug)]
pub(super) struct Track {
    /// Tokens that the decode node generates, the first included; none: it falls silent after the first.
    pub(super) tokens: Option<u32>,
    /// When the decode node had the reservation, and when it handed its answer to QUIC.
    pub(super) reserve: OnceLock<Instant>,
    pub(super) reserved: OnceLock<Instant>,
    /// When the prefill node had the prompt.
    pub(super) prefill: OnceLock<Instant>,
    /// Wakes the decode node's side, which otherwise the cache would.
    pub(super) delivered: Notify,
    /// When each token was handed to its QUIC stream.
    handed: Mutex<Vec<Instant>>,
}

impl Track {
    pub(super) fn new(tokens: Option<u32>) -> Self {
        let handed = Mutex::new(Vec::with_capacity(tokens.unwrap_or(1) as usize));
        let (reserve, reserved, prefill) = Default::default();
        Self { tokens, reserve, reserved, prefill, delivered: Notify::new(), handed }
    }

    /// The next token is about to be written.
    pub(super) fn hand(&self) {
        lock(&self.handed).push(Instant::now());
    }

    /// When a token was handed over; none of a token that never was.
    pub(super) fn handed(&self, token: usize) -> Option<Instant> {
        lock(&self.handed).get(token).copied()
    }
}

/// The requests that are under way; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Tracks {
    by_request: Arc<Mutex<HashMap<RequestId, Arc<Track>>>>,
}

impl Tracks {
    /// Notes a request that is about to be sent.
    pub(super) fn begin(&self, id: RequestId, tokens: Option<u32>) -> Tracked {
        let track = Arc::new(Track::new(tokens));
        lock(&self.by_request).insert(id, Arc::clone(&track));
        Tracked { tracks: self.clone(), id, track }
    }

    pub(super) fn get(&self, id: RequestId) -> Option<Arc<Track>> {
        lock(&self.by_request).get(&id).cloned()
    }
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Tracked {
    tracks: Tracks,
    pub(super) id: RequestId,
    pub(super) track: Arc<Track>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        lock(&self.tracks.by_request).remove(&self.id);
    }
}

/// Times that were measured, all in seconds.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// From the request's first byte written to the prefill node's having the prompt.
    pub(super) prefill_call: Vec<f64>,
    /// Its two parts: until the decode node had the reservation, and from its answer on.
    pub(super) reserve: Vec<f64>,
    pub(super) prefill: Vec<f64>,
    /// From the first token, and from every further one, handed to QUIC to its event at the client.
    pub(super) first_token: Vec<f64>,
    pub(super) token: Vec<f64>,
}

impl Samples {
    pub(super) fn append(&mut self, mut other: Self) {
        self.prefill_call.append(&mut other.prefill_call);
        self.reserve.append(&mut other.reserve);
        self.prefill.append(&mut other.prefill);
        self.first_token.append(&mut other.first_token);
        self.token.append(&mut other.token);
    }
}

/// Seconds from one instant to the next.
pub(super) fn seconds(from: Instant, to: Instant) -> f64 {
    to.checked_duration_since(from).map_or(f64::NAN, |passed: Duration| passed.as_secs_f64())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
