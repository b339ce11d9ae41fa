//! How answers are written: as completions or as chat, whole or chunk by chunk.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use openai::response::{ASSISTANT, Answer, AssistantMessage, ChatChoice, Delta, Logprobs, TokenLogprobs};
use openai::{ChatCompletion, Choice, Completion, FinishReason, KvTransfer, KvTransferParams, Usage, sse};
use serde::Serialize;
use transport::ids::RequestId;

use super::Kind;
use super::ask::Ask;
use crate::error::Error;
use crate::generation::Piece;
use crate::sequences::{Item, Sequences};

/// What the answer and all chunks have in common, and what was sent so far.
#[derive(Debug)]
pub(crate) struct Frame {
    shape: Shape,
    include_usage: bool,
    continuous_usage: bool,
    report_transfer: bool,
    wants_logprobs: bool,
    /// One per sequence.
    sent: Vec<Sent>,
}

#[derive(Debug)]
enum Shape {
    Completion(Completion),
    Chat(ChatCompletion),
}

/// What was sent of one sequence.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// Whether its role was.
    role: bool,
    /// Characters up to the next token.
    offset: u32,
}

/// Sequences as they are collected.
#[derive(Debug)]
pub(crate) struct Whole {
    sequences: Vec<Collected>,
}

/// What stands beside the choices of a whole answer.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    pub(crate) usage: Usage,
    pub(crate) transfer: Option<&'a KvTransfer>,
    pub(crate) kv_transfer_params: Option<KvTransferParams>,
}

#[derive(Debug, Clone, Default)]
struct Collected {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    end: Option<FinishReason>,
}

impl Whole {
    pub(super) fn new(sequences: usize) -> Self {
        Self { sequences: vec![Collected::default(); sequences] }
    }

    pub(super) fn add(&mut self, Item { index, piece, .. }: Item) {
        let sequence = &mut self.sequences[index];
        sequence.text.push_str(&piece.text);
        sequence.logprobs.extend(piece.logprobs);
        sequence.end = piece.end;
    }
}

impl Frame {
    pub(super) fn new(kind: Kind, id: RequestId, ask: &Ask) -> Self {
        let shape = match kind {
            Kind::Completion => Shape::Completion(Completion::new(id.0, &ask.model)),
            Kind::Chat => Shape::Chat(ChatCompletion::new(id.0, &ask.model, ask.delivery.stream)),
        };
        let characters = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let echoes = ask.prompts.iter().map(|prompt| Sent { role: false, offset: characters(&prompt.echo) });
        Self {
            shape,
            include_usage: ask.delivery.include_usage,
            continuous_usage: ask.delivery.continuous_usage,
            report_transfer: ask.kv.report,
            wants_logprobs: ask.logprobs.is_some(),
            sent: echoes.flat_map(|sent| std::iter::repeat_n(sent, ask.n as usize)).collect(),
        }
    }

    /// The event for one piece; its `usage` is that of its own sequence.
    pub(crate) fn chunk(&mut self, Item { index, prompt_tokens, cached_tokens, piece, .. }: Item) -> String {
        let usage = || Usage::new(prompt_tokens, piece.generated, cached_tokens);
        let usage = self.continuous_usage.then(usage);
        let sent = &mut self.sent[index];
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let Piece { text, logprobs, end, .. } = piece;
        match &mut self.shape {
            Shape::Completion(frame) => {
                let logprobs = self.wants_logprobs.then(|| Logprobs::of(logprobs, &mut sent.offset));
                chunk(frame, Choice { index, text, logprobs, finish_reason: end }, usage)
            }
            Shape::Chat(frame) => {
                let role = (!std::mem::replace(&mut sent.role, true)).then(|| ASSISTANT.to_owned());
                let choice = ChatChoice {
                    index,
                    message: None,
                    delta: Some(Delta { role, content: Some(text) }),
                    logprobs: self.wants_logprobs.then(|| logprobs.into()),
                    finish_reason: end,
                };
                chunk(frame, choice, usage)
            }
        }
    }

    /// The event behind the last token, with usage and transfer and without choices; nothing if neither was asked for.
    pub(crate) fn usage(&self, sequences: &Sequences) -> String {
        if !self.include_usage && !self.report_transfer {
            return String::new();
        }
        let (usage, kv_transfer) = (Some(sequences.usage()), self.transfer(sequences));
        match &self.shape {
            Shape::Completion(frame) => event(&Completion { usage, kv_transfer, ..frame.clone() }),
            Shape::Chat(frame) => event(&ChatCompletion { usage, kv_transfer, ..frame.clone() }),
        }
    }

    /// The event for an error inside the stream.
    pub(crate) fn error(&self, error: &Error) -> String {
        event(&error.body())
    }

    /// The whole answer.
    pub(super) fn whole(mut self, whole: Whole, ending: Ending<'_>) -> Response {
        let Ending { usage, transfer, kv_transfer_params } = ending;
        let headers = transfer.map(transfer_headers).unwrap_or_default();
        let (usage, kv_transfer) = (Some(usage), transfer.filter(|_| self.report_transfer).cloned());
        let sent = std::mem::take(&mut self.sent);
        let collected = (0..).zip(whole.sequences).zip(sent);
        let wants_logprobs = self.wants_logprobs;
        match self.shape {
            Shape::Completion(frame) => {
                let choice = |((index, collected), mut sent): ((u32, Collected), Sent)| Choice {
                    index,
                    text: collected.text,
                    logprobs: wants_logprobs.then(|| Logprobs::of(collected.logprobs, &mut sent.offset)),
                    finish_reason: collected.end,
                };
                let choices = collected.map(choice).collect();
                let answer = Completion { choices, usage, kv_transfer, kv_transfer_params, ..frame };
                (headers, Json(answer)).into_response()
            }
            Shape::Chat(frame) => {
                let choice = |((index, collected), _sent): ((u32, Collected), Sent)| ChatChoice {
                    index,
                    message: Some(AssistantMessage {
                        role: ASSISTANT.to_owned(),
                        content: collected.text,
                        refusal: None,
                    }),
                    delta: None,
                    logprobs: wants_logprobs.then(|| collected.logprobs.into()),
                    finish_reason: collected.end,
                };
                let choices = collected.map(choice).collect();
                let answer = ChatCompletion { choices, usage, kv_transfer, kv_transfer_params, ..frame };
                (headers, Json(answer)).into_response()
            }
        }
    }

    fn transfer(&self, sequences: &Sequences) -> Option<KvTransfer> {
        sequences.transfer().filter(|_| self.report_transfer).cloned()
    }
}

/// The transfer in short, for whoever reads only headers; nothing of a local prefill.
fn transfer_headers(transfer: &KvTransfer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(ratio) = transfer.ratio else { return headers };
    headers.insert(HeaderName::from_static("x-kv-raw-bytes"), transfer.raw_bytes.into());
    headers.insert(HeaderName::from_static("x-kv-wire-bytes"), transfer.wire_bytes.into());
    if let Ok(ratio) = HeaderValue::try_from(format!("{ratio:.3}")) {
        headers.insert(HeaderName::from_static("x-kv-ratio"), ratio);
    }
    headers
}

/// The event for one choice. The object that all chunks share is filled for it and emptied again, so that nothing of it is
/// copied for a token.
fn chunk<C: Serialize>(frame: &mut Answer<C>, choice: C, usage: Option<Usage>) -> String {
    frame.choices.push(choice);
    frame.usage = usage;
    let event = event(frame);
    frame.choices.clear();
    frame.usage = None;
    event
}

fn event(value: &impl Serialize) -> String {
    sse::encode(value).expect("answers have string keys and finite numbers; this is a bug")
}
