//! A request's sequences on their way to the client, with the request's entry in the books.

use axum::response::Response;
use tracing::{info, warn};

use super::frame::{Ending, Frame, Whole};
use crate::error::Error;
use crate::metrics::Record;
use crate::sequences::{Item, Sequences};

/// A request that has its first token, and all that is needed to answer it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) sequences: Sequences,
    /// What came first, until it is sent.
    pub(crate) first: Option<Item>,
    pub(crate) frame: Frame,
    record: Record,
}

impl Answer {
    pub(super) fn new(sequences: Sequences, first: Option<Item>, frame: Frame, record: Record) -> Self {
        Self { sequences, first, frame, record }
    }

    /// The next piece of one of the sequences; none when all have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, Error> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.sequences.next().await,
        }
    }

    /// The client gets everything.
    pub(crate) fn succeeded(&mut self) {
        self.record.end("ok", 200);
        let usage = self.sequences.usage();
        let transfer = self.sequences.transfer();
        info!(
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            codec = transfer.and_then(|transfer| transfer.codec.as_deref()).unwrap_or("none"),
            ratio = transfer.and_then(|transfer| transfer.ratio),
            ttft_ms = transfer.map(|transfer| transfer.ttft_ms),
            total_ms = self.record.elapsed().as_secs_f64() * 1e3,
            "completed"
        );
    }

    /// The client, which has seen the answer begin, is told that it failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.record.end(error.face().code, 200);
        warn!(%error, "failed after the first token");
    }

    /// Collects the whole answer.
    pub(super) async fn whole(mut self) -> Response {
        let mut whole = Whole::new(self.sequences.len());
        loop {
            match self.next().await {
                Ok(Some(item)) => whole.add(item),
                Ok(None) => {
                    self.succeeded();
                    let (usage, transfer) = (self.sequences.usage(), self.sequences.transfer());
                    return self.frame.whole(whole, Ending { usage, transfer, kv_transfer_params: None });
                }
                Err(error) => return super::failed(&mut self.record, &error),
            }
        }
    }
}
