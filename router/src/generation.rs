//! One generation as text: tokens from [`crate::relay`] become pieces to send, stop strings end it, time and tokens are
//! counted. Whether the pieces are streamed or collected is decided elsewhere.

use std::time::Instant;

use openai::{Detokenizer, FinishReason, KvCodec, KvSource, KvTransfer, StopMatcher, Usage};
use transport::message::FinishReason as NodeReason;

use crate::leg::NodeError;
use crate::metrics::Metrics;
use crate::relay::{Step, Tokens};

/// A generation under way. Dropped, it is cancelled on the nodes.
#[derive(Debug)]
pub(crate) struct Generation {
    /// None once everything has been said.
    tokens: Option<Tokens>,
    /// The first token, until it has been turned into text.
    first_token: Option<Step>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    limits: Limits,
    generated: u32,
    has_spoken: bool,
    last_token: Instant,
    transfer: KvTransfer,
    metrics: Metrics,
}

/// What a generation is measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) arrived: Instant,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
}

/// The next thing to tell the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The text of one token; empty while a character or a stop string may be incomplete.
    Text(String),
    /// The last text, and why it is the last.
    End(String, FinishReason),
}

impl Generation {
    pub(crate) fn new(
        tokens: Tokens,
        limits: Limits,
        detokenizer: Detokenizer,
        stop: StopMatcher,
        metrics: Metrics,
    ) -> Self {
        let ttft = limits.arrived.elapsed();
        metrics.ttft_seconds.observe(ttft.as_secs_f64());
        metrics.prompt_tokens.inc_by(limits.prompt_tokens.into());
        let transfer = report(&tokens, ttft.as_secs_f64() * 1e3);
        metrics.transferred(&transfer);
        Self {
            first_token: Some(Step::Token {
                id: tokens.first_token,
                logprobs: tokens.first_logprobs.clone(),
            }),
            tokens: Some(tokens),
            detokenizer,
            stop,
            limits,
            generated: 0,
            has_spoken: false,
            last_token: Instant::now(),
            transfer,
            metrics,
        }
    }

    /// The next piece; nothing may be asked after [`Piece::End`] or an error.
    pub(crate) async fn next(&mut self) -> Result<Piece, NodeError> {
        let mut last_text = String::new();
        loop {
            let text = match self.step().await? {
                Step::Token { id, .. } => {
                    self.count();
                    let text = self.detokenizer.push(id);
                    let delivery = self.stop.push(&text);
                    if delivery.stopped {
                        return Ok(self.end(delivery.text, FinishReason::Stop));
                    }
                    delivery.text
                }
                Step::Finished(reason) => return Ok(self.finish(last_text, reason)),
            };
            // The last token's text goes out with the finish reason, which follows it at once.
            if self.generated == self.limits.max_tokens {
                last_text = text;
            } else if self.has_spoken || !text.is_empty() {
                self.has_spoken = true;
                return Ok(Piece::Text(text));
            }
        }
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self.limits.prompt_tokens, self.generated)
    }

    /// What the cache cost.
    pub(crate) fn transfer(&self) -> &KvTransfer {
        &self.transfer
    }

    async fn step(&mut self) -> Result<Step, NodeError> {
        if let Some(first) = self.first_token.take() {
            return Ok(first);
        }
        let tokens = self.tokens.as_mut().expect("nothing is asked after the end; this is a bug");
        let step = tokens.next().await?;
        if matches!(step, Step::Token { .. }) && self.generated == self.limits.max_tokens {
            let reason = format!("more than the {} tokens asked for", self.limits.max_tokens);
            return Err(tokens.protocol_error(reason));
        }
        Ok(step)
    }

    fn count(&mut self) {
        let now = Instant::now();
        self.generated += 1;
        self.metrics.generated_tokens.inc();
        if self.generated > 1 {
            let gap = now.duration_since(self.last_token);
            self.metrics.inter_token_seconds.observe(gap.as_secs_f64());
        }
        if self.generated == 2 {
            let since = now.duration_since(self.limits.arrived);
            self.transfer.second_token_ms = Some(to_thousandths(since.as_secs_f64() * 1e3));
        }
        self.last_token = now;
    }

    /// No more tokens: what was held back can no longer become a character or a stop string.
    fn finish(&mut self, mut text: String, reason: NodeReason) -> Piece {
        let tail = self.detokenizer.finish();
        let delivery = self.stop.push(&tail);
        text.push_str(&delivery.text);
        if delivery.stopped {
            return self.end(text, FinishReason::Stop);
        }
        text.push_str(&self.stop.finish());
        let reason = match reason {
            NodeReason::Stop => FinishReason::Stop,
            NodeReason::Length => FinishReason::Length,
        };
        self.end(text, reason)
    }

    /// Lets the nodes go; if they were still at work, that cancels them.
    fn end(&mut self, text: String, reason: FinishReason) -> Piece {
        self.tokens = None;
        Piece::End(text, reason)
    }
}

/// To three digits: more than any clock here can tell would only be noise to read.
fn to_thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// The transfer in the API's words. A local prefill moved nothing, so its bytes are 0.
fn report(tokens: &Tokens, ttft_ms: f64) -> KvTransfer {
    let (transfer, choice, decode_node) = (&tokens.transfer, &tokens.choice, &tokens.decode_node().0);
    let is_remote = transfer.coding.is_some();
    let (raw, wire) = if is_remote { (transfer.raw_bytes, transfer.wire_bytes) } else { (0, 0) };
    let prefill_node = transfer.prefill_node.as_ref().map_or(decode_node, |node| &node.0);
    KvTransfer {
        source: if is_remote { KvSource::Remote } else { KvSource::Local },
        codec: transfer.coding.as_ref().map(|coding| coding.codec.clone()),
        tier: transfer
            .coding
            .as_ref()
            .filter(|coding| KvCodec::named(&coding.codec).is_some_and(KvCodec::is_transform))
            .map(|coding| coding.tier),
        mode: transfer.coding.as_ref().map(|coding| coding.mode.name().to_owned()),
        bypass_reason: choice.bypass_reason.clone(),
        raw_bytes: raw,
        wire_bytes: wire,
        saved_bytes: i64::try_from(i128::from(raw) - i128::from(wire)).unwrap_or(i64::MAX),
        ratio: (wire > 0).then(|| raw as f64 / wire as f64),
        encode_ms: to_thousandths(transfer.prefill.encode_ms.into()),
        wire_ms: to_thousandths(transfer.wire_ms.into()),
        overlap: is_remote.then(|| to_thousandths(transfer.prefill.overlap.into())),
        decode_ms: to_thousandths(transfer.decode_ms.into()),
        prefill_ms: to_thousandths(transfer.prefill.prefill_ms.into()),
        queue_ms: to_thousandths(transfer.prefill.queue_ms.into()),
        link_gbps: (transfer.prefill.link_gbps > 0.0)
            .then(|| to_thousandths(transfer.prefill.link_gbps.into())),
        predicted_ms: choice.predicted_ms.map(to_thousandths),
        ttft_ms: to_thousandths(ttft_ms),
        second_token_ms: None,
        prefill_node: prefill_node.clone(),
        decode_node: decode_node.clone(),
    }
}
