//! The last requests in the order in which they were admitted, each with the version of its last change, so that a
//! reader is told what is new to it and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::board::totals::Totals;
use crate::board::view::{Read, RequestView, State};

/// Requests shown.
pub(crate) const MAX_ROWS: usize = 200;

/// The requests, oldest first, and the totals.
#[derive(Debug)]
pub(crate) struct Ring {
    rows: VecDeque<Row>,
    /// Number of the next request; the rows' numbers are the ones just before it.
    next: u64,
    /// Changes so far and one: a reader that knows nothing says 0.
    version: u64,
    pub(crate) totals: Totals,
}

#[derive(Debug)]
struct Row {
    version: u64,
    view: RequestView,
    tokens: Arc<AtomicU32>,
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self { rows: VecDeque::new(), next: 0, version: 1, totals: Totals::default() }
    }

    /// Takes a request in, and lets the oldest go where there is no room. Gives its number.
    pub(crate) fn admit(&mut self, mut view: RequestView, tokens: Arc<AtomicU32>) -> u64 {
        self.version += 1;
        self.totals.admitted();
        view.number = self.next;
        self.next += 1;
        if self.rows.len() == MAX_ROWS {
            self.rows.pop_front();
        }
        let number = view.number;
        self.rows.push_back(Row { version: self.version, view, tokens });
        number
    }

    /// Changes what is shown of a request, if it is shown; the totals may have changed in any case.
    pub(crate) fn change(&mut self, number: Option<u64>, change: impl FnOnce(&mut RequestView)) {
        self.version += 1;
        let version = self.version;
        if let Some(row) = number.and_then(|number| self.row(number)) {
            row.version = version;
            change(&mut row.view);
        }
    }

    /// A request has ended; one without a number was refused.
    pub(crate) fn end(&mut self, number: Option<u64>, outcome: &'static str, now: u64) {
        let state = match outcome {
            "ok" => State::Done,
            "cancelled" => State::Cancelled,
            _ => State::Failed,
        };
        self.totals.ended(number.is_some(), state);
        self.change(number, |view| {
            view.state = state;
            view.outcome = Some(outcome);
            view.ended = Some(now);
        });
    }

    /// What has changed since an earlier read's version; 0 for everything.
    pub(crate) fn read(&self, since: u64) -> Read {
        let is_news = |row: &&Row| row.version > since;
        let requests = self.rows.iter().filter(is_news).map(Row::view).collect();
        let quiet = self.rows.iter().filter(|row| row.version <= since && row.view.ended.is_none());
        Read {
            version: self.version,
            requests,
            tokens: quiet.map(|row| (row.view.number, row.count())).collect(),
            totals: (self.version > since).then(|| self.totals.view()),
        }
    }

    fn row(&mut self, number: u64) -> Option<&mut Row> {
        let first = self.rows.front()?.view.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.rows.get_mut(at)
    }
}

impl Row {
    fn count(&self) -> u32 {
        self.tokens.load(Ordering::Relaxed)
    }

    fn view(&self) -> RequestView {
        RequestView { tokens: self.count(), ..self.view.clone() }
    }
}
