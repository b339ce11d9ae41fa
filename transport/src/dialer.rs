//! One connection per address, dialled when first needed and again when lost, with backoff.
//!
//! Callers of one address share one attempt. Failures that only a person can mend (see
//! [`ConnectError::is_permanent`]) are told at once; others are tried again until the caller's deadline, with waits that
//! double and are spread at random, so that a node that comes back is not met by everybody at the same instant.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::peer::Peer;

/// Addresses kept at most; beyond it the lost ones are forgotten, then any that nobody is dialling.
const MAX_ADDRESSES: usize = 1024;

/// Waits between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait after the first failure; each further failure doubles it.
    pub first: Duration,
    /// Longest wait of all.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row: a uniform draw from the upper half of
    /// `min(first * 2^(failures - 1), max)`. `draw` is in [0, 1).
    fn wait(&self, failures: u32, draw: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let longest = self.first.saturating_mul(1 << doublings).min(self.max);
        longest.mul_f64(0.5 + 0.5 * draw)
    }
}

/// Gives the connection to an address; clones share the connections.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    backoff: Backoff,
    lines: Arc<Mutex<HashMap<SocketAddr, Arc<Line>>>>,
}

/// One address; the lock is held while dialling, so that others wait for the same attempt.
type Line = tokio::sync::Mutex<LineState>;

#[derive(Debug, Default)]
struct LineState {
    peer: Option<Peer>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Dialer {
    /// A dialer on an endpoint.
    pub fn new(endpoint: Endpoint, backoff: Backoff) -> Self {
        Self { endpoint, backoff, lines: Arc::default() }
    }

    /// The living connection to `address`, or a new one within `deadline`.
    ///
    /// # Errors
    /// The last attempt's error; [`ConnectError::Timeout`] if there was none.
    pub async fn peer(&self, address: SocketAddr, deadline: Duration) -> Result<Peer, ConnectError> {
        let mut last_error = None;
        let attempt = async {
            let line = self.line(address);
            let mut state = line.lock().await;
            self.dial_until_connected(address, &mut state, &mut last_error).await
        };
        match tokio::time::timeout(deadline, attempt).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(last_error.unwrap_or(ConnectError::Timeout { address, after: deadline })),
        }
    }

    /// Lets go of a connection to an address, if it is the one that others would be given: whoever wants one next dials. Streams that are
    /// open on it go on, and it closes behind the last of them.
    pub fn forget(&self, address: SocketAddr, peer: &Peer) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // A line that is locked is being dialled, so it has no connection.
        let is_this = |line: &Arc<Line>| {
            let state = line.try_lock();
            state.is_ok_and(|state| {
                state.peer.as_ref().is_some_and(|other| other.connection_id() == peer.connection_id())
            })
        };
        if lines.get(&address).is_some_and(is_this) {
            lines.remove(&address);
        }
    }

    async fn dial_until_connected(
        &self,
        address: SocketAddr,
        state: &mut LineState,
        last_error: &mut Option<ConnectError>,
    ) -> Result<Peer, ConnectError> {
        if let Some(peer) = state.peer.take_if(|peer| peer.close_reason().is_some()) {
            tracing::debug!(%address, reason = ?peer.close_reason(), "connection lost, dialling again");
        }
        if let Some(peer) = &state.peer {
            return Ok(peer.clone());
        }
        loop {
            if let Some(not_before) = state.not_before {
                tokio::time::sleep_until(not_before).await;
            }
            match self.endpoint.connect(address).await {
                Ok(peer) => {
                    *state = LineState { peer: Some(peer.clone()), ..LineState::default() };
                    return Ok(peer);
                }
                Err(error) if error.is_permanent() => return Err(error),
                Err(error) => {
                    state.failures = state.failures.saturating_add(1);
                    let wait = self.backoff.wait(state.failures, rand::rng().random());
                    state.not_before = Some(Instant::now() + wait);
                    *last_error = Some(error);
                }
            }
        }
    }

    fn line(&self, address: SocketAddr) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MAX_ADDRESSES && !lines.contains_key(&address) {
            lines.retain(|_, line| is_alive_or_busy(line));
            if lines.len() >= MAX_ADDRESSES {
                lines.retain(|_, line| line.try_lock().is_err());
            }
        }
        Arc::clone(lines.entry(address).or_default())
    }
}

fn is_alive_or_busy(line: &Line) -> bool {
    line.try_lock()
        .map_or(true, |state| state.peer.as_ref().is_some_and(|peer| peer.close_reason().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_keep_half_of_themselves() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1) };
        let longest: Vec<_> = (1..=6).map(|failures| backoff.wait(failures, 1.0).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.wait(2, 0.0), Duration::from_millis(100));
        assert_eq!(backoff.wait(u32::MAX, 1.0), Duration::from_secs(1));
    }
}
