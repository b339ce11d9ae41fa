//! The last requests and what they have cost so far, for people to look at: a bounded ring, totals, and the feed of
//! both over HTTP. Ids, counts, times and bytes only: no text of a prompt or of an answer ever comes here.
//!
//! ```text
//! begin ─► Entry ─► admitted ─► placed.. ─► first_token ─► token.. ─► end, or dropped: cancelled
//!                                  Row in the ring ─► view ─► feed ─► GET /board, /board/events
//! ```

mod feed;
mod ring;
#[cfg(test)]
mod tests;
mod totals;
mod view;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use openai::KvTransfer;
use transport::ids::{NodeId, RequestId};
use transport::message::KvCoding;

use crate::cluster::Pair;

pub(crate) use feed::{Feed, events, show};
use ring::Ring;
pub(crate) use view::{LinkView, NodeView, Sizes};
use view::{Read, RequestView, State};

/// The board; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    ring: Mutex<Ring>,
}

/// Turns moments of this process into times of day that never run backwards.
#[derive(Debug, Clone, Copy)]
struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

/// One request's line on the board; clones share it. When the last one is dropped before an end was told, the request
/// was cancelled: the client has left.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    line: Arc<EntryLine>,
}

#[derive(Debug)]
struct EntryLine {
    board: Board,
    arrived: Instant,
    /// Set when the request was admitted: those that are refused before are counted and not shown.
    number: OnceLock<u64>,
    ended: OnceLock<()>,
    tokens: Arc<AtomicU32>,
}

impl Board {
    pub(crate) fn new() -> Self {
        // A clock before 1970 is shown as 1970.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started_unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let clock = Clock { started: Instant::now(), started_unix_ms };
        Self { shared: Arc::new(Shared { clock, ring: Mutex::new(Ring::new()) }) }
    }

    /// A request has arrived.
    pub(crate) fn begin(&self) -> Entry {
        let (arrived, tokens) = (Instant::now(), Arc::default());
        let (number, ended) = Default::default();
        Entry { line: Arc::new(EntryLine { board: self.clone(), arrived, number, ended, tokens }) }
    }

    /// What has changed since an earlier read's version; 0 for everything.
    fn read(&self, since: u64) -> Read {
        self.ring().read(since)
    }

    /// Milliseconds since 1970.
    fn now(&self) -> u64 {
        self.shared.clock.unix_ms(Instant::now())
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn unix_ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_millis();
        self.started_unix_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

impl Entry {
    /// The request is good and looks for nodes: from now on it is shown.
    pub(crate) fn admitted(&self, id: RequestId, sizes: Sizes) {
        let EntryLine { board, arrived, number, tokens, .. } = &*self.line;
        let arrived = board.shared.clock.unix_ms(*arrived);
        number.get_or_init(|| {
            let view = RequestView::new(id, arrived, sizes);
            board.ring().admit(view, Arc::clone(tokens))
        });
    }

    /// An attempt on these nodes begins.
    pub(crate) fn placed(&self, pair: &Pair) {
        let (node, coding) = pair.prefill.as_ref().map(|(node, coding)| (&node.id, coding)).unzip();
        self.attempted(node, coding, Some(&pair.decode.id));
    }

    /// An attempt on a prefill node begins that is to keep the cache.
    pub(crate) fn keeper(&self, node: &NodeId, coding: &KvCoding) {
        self.attempted(Some(node), Some(coding), None);
    }

    fn attempted(&self, prefill: Option<&NodeId>, coding: Option<&KvCoding>, decode: Option<&NodeId>) {
        self.change(|view| {
            // Of several sequences one may have begun already.
            if view.kv_transfer.is_none() {
                view.state = State::Prefill;
            }
            view.attempts += 1;
            view.prefill_node = prefill.map(|node| node.0.clone());
            view.decode_node = decode.map(|node| node.0.clone());
            view.codec = coding.map(|coding| coding.codec.clone());
            view.tier = coding.and_then(view::tier);
            view.mode = coding.map(|coding| coding.mode.name());
        });
    }

    /// The cache is in place and the first token there. Of a request with several sequences, the first one is shown;
    /// all count in the totals.
    pub(crate) fn first_token(&self, transfer: &KvTransfer) {
        let mut ring = self.line.board.ring();
        ring.totals.transferred(transfer);
        let number = self.line.number.get().copied();
        ring.change(number, |view| {
            view.state = State::Decode;
            view.kv_transfer.get_or_insert_with(|| transfer.clone());
        });
    }

    /// The second token has come, whose time is part of the report.
    pub(crate) fn second_token(&self, transfer: &KvTransfer) {
        self.change(|view| {
            if let Some(shown) = &mut view.kv_transfer {
                shown.second_token_ms = shown.second_token_ms.or(transfer.second_token_ms);
            }
        });
    }

    /// One more token; on the path of every token, so no more than this.
    pub(crate) fn token(&self) {
        self.line.tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// The request has ended: `"ok"`, `"cancelled"`, or the error's code. The first call counts.
    pub(crate) fn end(&self, outcome: &'static str) {
        self.line.end(outcome);
    }

    fn change(&self, change: impl FnOnce(&mut RequestView)) {
        self.line.board.ring().change(self.line.number.get().copied(), change);
    }
}

impl EntryLine {
    fn end(&self, outcome: &'static str) {
        if self.ended.set(()).is_ok() {
            let now = self.board.now();
            self.board.ring().end(self.number.get().copied(), outcome, now);
        }
    }
}

impl Drop for EntryLine {
    fn drop(&mut self) {
        self.end("cancelled");
    }
}
