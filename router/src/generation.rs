//! One generation as text: tokens from [`crate::relay`] become pieces to send, stop strings end it, time and tokens are
//! counted. Whether the pieces are streamed or collected is decided elsewhere.

use std::time::Instant;

use openai::response::{TokenLogprob, TokenLogprobs};
use openai::{Detokenizer, FinishReason, KvCodec, KvSource, KvTransfer, StopMatcher, Tokenizer};
use transport::message::{FinishReason as NodeReason, Logprobs};

use crate::board::Entry;
use crate::leg::NodeError;
use crate::metrics::Metrics;
use crate::relay::{Drawn, Step, Tokens};
use crate::vllm::Course;

/// A generation under way. Dropped, it is cancelled on the nodes.
#[derive(Debug)]
pub(crate) struct Generation {
    /// None once everything has been said.
    tokens: Option<Tokens>,
    /// The first token, until it has been turned into text.
    first_token: Option<Drawn>,
    text: Text,
    limits: Limits,
    /// When the last token, or the end, was read from the node.
    read: Instant,
    generated: u32,
    has_spoken: bool,
    /// Of tokens whose text is not out yet.
    logprobs: Vec<TokenLogprobs>,
    course: Course,
    transfer: KvTransfer,
    metrics: Metrics,
    entry: Entry,
}

/// What a generation is measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) arrived: Instant,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
}

/// Tokens to text.
#[derive(Debug)]
pub(crate) struct Text {
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// What goes out before the first text.
    echo: String,
}

impl Text {
    pub(crate) fn new(tokenizer: &Tokenizer, echo: String, stop: Vec<String>) -> Self {
        let detokenizer = tokenizer.detokenizer();
        Self { tokenizer: tokenizer.clone(), detokenizer, stop: StopMatcher::new(stop), echo }
    }

    /// All of a generation of one token.
    pub(crate) fn only(mut self, Drawn { id, logprobs }: Drawn, reason: NodeReason) -> Piece {
        let logprobs = logprobs.map(|logprobs| self.logprobs(id, &logprobs)).into_iter().collect();
        let token = self.detokenizer.push(id) + &self.detokenizer.finish();
        let delivery = self.stop.push(&token);
        let mut text = std::mem::take(&mut self.echo) + &delivery.text;
        let end = if delivery.stopped {
            FinishReason::Stop
        } else {
            text.push_str(&self.stop.finish());
            told(reason)
        };
        Piece { text, logprobs, generated: 1, end: Some(end) }
    }

    fn token(&self, id: u32, logprob: f32) -> TokenLogprob {
        let bytes = self.tokenizer.token_bytes(id);
        TokenLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes }
    }

    fn logprobs(&self, id: u32, logprobs: &Logprobs) -> TokenLogprobs {
        let top = logprobs.top.iter().map(|(id, logprob)| self.token(*id, *logprob));
        TokenLogprobs { drawn: self.token(id, logprobs.drawn), top: top.collect() }
    }
}

/// The next thing to tell the client.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Piece {
    /// The text of one token; empty while a character or a stop string may be incomplete.
    pub(crate) text: String,
    /// How likely its tokens were, where that was asked for.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Tokens up to here.
    pub(crate) generated: u32,
    /// Why it is the last piece, if it is.
    pub(crate) end: Option<FinishReason>,
}

impl Generation {
    pub(crate) fn new(tokens: Tokens, limits: Limits, text: Text, metrics: Metrics) -> Self {
        let ttft = limits.arrived.elapsed();
        let transfer = report(&tokens, ttft.as_secs_f64() * 1e3);
        let (bypass, read) = (tokens.choice.bypass, tokens.read_at());
        let course = metrics.first_token(limits.arrived, limits.prompt_tokens, &transfer, bypass);
        tokens.entry.first_token(&transfer);
        Self {
            first_token: Some(tokens.first.clone()),
            entry: tokens.entry.clone(),
            tokens: Some(tokens),
            text,
            limits,
            read,
            generated: 0,
            has_spoken: false,
            logprobs: Vec::new(),
            course,
            transfer,
            metrics,
        }
    }

    /// The next piece; nothing may be asked after the last or after an error.
    pub(crate) async fn next(&mut self) -> Result<Piece, NodeError> {
        let mut last_text = std::mem::take(&mut self.text.echo);
        loop {
            let step = self.step().await;
            if let Err(error) = &step {
                self.metrics.failed("generation");
                self.course.failed(error);
            }
            let (text, stopped) = match step? {
                Step::Token(drawn) => self.take(drawn),
                Step::Finished(reason) => return Ok(self.finish(last_text, reason)),
            };
            last_text.push_str(&text);
            if stopped {
                return Ok(self.end(last_text, FinishReason::Stop));
            }
            // The last token's text goes out with the finish reason, which follows it at once.
            let is_last = self.generated == self.limits.max_tokens;
            if !is_last && (self.has_spoken || !last_text.is_empty()) {
                self.has_spoken = true;
                return Ok(self.piece(last_text, None));
            }
        }
    }

    /// When what the last piece was made of was read from the node.
    pub(crate) fn read_at(&self) -> Instant {
        self.read
    }

    /// Length of the prompt.
    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.limits.prompt_tokens
    }

    /// What the cache cost.
    pub(crate) fn transfer(&self) -> &KvTransfer {
        &self.transfer
    }

    /// Turns a token into text, and tells whether a stop string has ended it.
    fn take(&mut self, Drawn { id, logprobs }: Drawn) -> (String, bool) {
        self.count();
        if let Some(logprobs) = logprobs {
            self.logprobs.push(self.text.logprobs(id, &logprobs));
        }
        let text = self.text.detokenizer.push(id);
        // A stop string counts from the token on that makes up `min_tokens`.
        if self.generated < self.limits.min_tokens {
            return (text, false);
        }
        let delivery = self.text.stop.push(&text);
        (delivery.text, delivery.stopped)
    }

    async fn step(&mut self) -> Result<Step, NodeError> {
        if let Some(drawn) = self.first_token.take() {
            return Ok(Step::Token(drawn));
        }
        let tokens = self.tokens.as_mut().expect("nothing is asked after the end; this is a bug");
        let step = tokens.next().await?;
        self.read = tokens.read_at();
        if matches!(step, Step::Token(_)) && self.generated == self.limits.max_tokens {
            let reason = format!("more than the {} tokens asked for", self.limits.max_tokens);
            return Err(tokens.protocol_error(reason));
        }
        Ok(step)
    }

    fn count(&mut self) {
        self.generated += 1;
        self.entry.token();
        self.course.token();
        if self.generated == 2 {
            let since = self.limits.arrived.elapsed();
            self.transfer.second_token_ms = Some(to_thousandths(since.as_secs_f64() * 1e3));
            self.entry.second_token(&self.transfer);
        }
    }

    /// No more tokens: what was held back can no longer become a character or a stop string.
    fn finish(&mut self, mut text: String, reason: NodeReason) -> Piece {
        let tail = self.text.detokenizer.finish();
        let delivery = self.text.stop.push(&tail);
        text.push_str(&delivery.text);
        if delivery.stopped {
            return self.end(text, FinishReason::Stop);
        }
        text.push_str(&self.text.stop.finish());
        self.end(text, told(reason))
    }

    /// Lets the nodes go; if they were still at work, that cancels them.
    fn end(&mut self, text: String, reason: FinishReason) -> Piece {
        self.tokens = None;
        self.course.finished(reason);
        self.piece(text, Some(reason))
    }

    fn piece(&mut self, text: String, end: Option<FinishReason>) -> Piece {
        Piece { text, logprobs: std::mem::take(&mut self.logprobs), generated: self.generated, end }
    }
}

/// A node's reason as the API tells it.
fn told(reason: NodeReason) -> FinishReason {
    match reason {
        NodeReason::Stop => FinishReason::Stop,
        NodeReason::Length => FinishReason::Length,
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
        cached_tokens: transfer.prefill.cached_tokens,
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
